"""Where everything in a registry lies. Names only: nothing here reads or writes.

registry/
├── flywheel.json            registry version; marks the folder as ours                  git
├── params.yaml dvc.yaml     the recipe of the generation at hand                        git
├── dvc.lock parent.dvc      digests of what went in and came out                        git
├── judge.dvc                the reward model that goes in, where there is one           git
├── metrics.json             evaluate's summary                                          git
├── lineage/                 teacher, champion, window, judge (inputs); 0007.json        git
├── ledger/0007.jsonl        what each stage took                                        git
├── controls/                results of control runs                                     git
├── parent/                  the model the generation starts from                        DVC
├── judge/                   the reward model it searches with, where there is one       DVC
├── problems/ attempts/ labels/0007/ student/ training/ evaluations/                     DVC
├── supervision/ reward_model/   with process supervision only                           DVC
└── .flywheel/               lock, state, scratch, servers                               this machine only
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flywheel.params import folder_name

REGISTRY_VERSION = 2
"""2: commits anchor the tag before them, tables are of schema version 2; `storage.upgrade` leads here from 1."""
TABLE_FOLDERS = ("problems", "attempts", "training", "evaluations")
OUTPUTS = (*TABLE_FOLDERS, "student", "labels")
DVC_IGNORED = "/.flywheel/\n"
"""The whole `.dvcignore`."""
SUPERVISED = ("supervision", "reward_model")
"""Outputs of generations with process supervision only."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of a registry at `root`."""

    root: Path

    @property
    def marker(self) -> Path:
        return self.root / "flywheel.json"

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    @property
    def problems(self) -> Path:
        """Table `problems`; in the folder `excluded` the table of that name."""
        return self.root / "problems"

    @property
    def attempts(self) -> Path:
        """Table `attempts` of this generation."""
        return self.root / "attempts"

    def labels(self, generation: int) -> Path:
        """A generation's folder with the tables `labels`, `label_parents` and `rejected`, one folder each."""
        return self.root / "labels" / folder_name(generation)

    @property
    def parent(self) -> Path:
        """The model the generation starts from: the champion's student, or the base for generation 0."""
        return self.root / "parent"

    @property
    def judge(self) -> Path:
        """The registry's own reward model that goes into the generation: the newest ancestor's; often absent."""
        return self.root / "judge"

    @property
    def student(self) -> Path:
        """The generation's model: safetensors, config and tokenizer, loadable by plain transformers."""
        return self.root / "student"

    @property
    def training(self) -> Path:
        """Tables `snapshots` and `trained_on` of this generation, one folder each."""
        return self.root / "training"

    @property
    def supervision(self) -> Path:
        """Tables `rollouts`, `step_labels`, `step_label_parents` of this generation, and the reward model's rows of
        `snapshots` and `trained_on`, one folder each; absent without process supervision."""
        return self.root / "supervision"

    @property
    def reward_model(self) -> Path:
        """The reward model that this generation trained; absent without process supervision."""
        return self.root / "reward_model"

    @property
    def evaluations(self) -> Path:
        """Tables `evaluations` and `outcomes` of this generation, one folder each."""
        return self.root / "evaluations"

    @property
    def lineage(self) -> Path:
        return self.root / "lineage"

    def published(self, generation: int) -> Path:
        """lineage/0007.json: each table's files with md5, rows and key range; ids of teacher, student, champion."""
        return self.lineage / f"{folder_name(generation)}.json"

    def ledger(self, generation: int) -> Path:
        return self.root / "ledger" / f"{folder_name(generation)}.jsonl"

    @property
    def controls(self) -> Path:
        return self.root / "controls"

    @property
    def local(self) -> Path:
        """This machine's own: never in git or DVC."""
        return self.root / ".flywheel"

    @property
    def lock(self) -> Path:
        return self.local / "lock"

    @property
    def state(self) -> Path:
        return self.local / "state.json"

    @property
    def tmp(self) -> Path:
        """Scratch on the registry's own file system, cleared at every start; renames out of it are atomic."""
        return self.local / "tmp"

    def work(self, generation: int) -> Path:
        """Finished units, checkpoints and stamps of a generation that is not published yet; survives a crash."""
        return self.local / "work" / folder_name(generation)

    @property
    def prefect(self) -> Path:
        return self.local / "prefect"

    @property
    def mlflow(self) -> Path:
        return self.local / "mlflow"


def tag_name(generation: int) -> str:
    """`7` -> `gen/0007`, the tag that makes a generation visible to readers."""
    return f"gen/{folder_name(generation)}"
