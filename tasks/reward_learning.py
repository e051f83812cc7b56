"""The learning half of supervise: a reward model from the step labels of all units, and the tables about it.

Step labels are read from the units' files; how they are made is in `tasks.supervise`, what the network reads in
`flywheel.models.reward_model`.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from flywheel import sections
from flywheel.errors import InputError
from flywheel.learning import reward_training
from flywheel.learning.reward_training import RewardTraining, StepExamples
from flywheel.models import language, reward_model
from flywheel.models.checkpoints import weights_digest
from flywheel.models.reward_model import RewardModel
from flywheel.params import Params
from flywheel.records import Problem
from flywheel.seeds import stream
from storage.layout import Layout
from storage.schemas import SNAPSHOTS, SUPERVISION, TRAINED_ON
from storage.tables import TableWriter
from tasks import models
from tasks.stage import Hooks, Units

HELD_OUT = 0.1
"""Share of the problems whose labels measure the reward model and do not teach it."""
_Example = tuple[list[int], list[int], list[float]]
"""Token ids, the positions at which steps are scored, and their scores."""


def unit_file(work: Units, number: int, table: str) -> Path:
    """A unit's rows of one of the tables in SUPERVISION. The rollouts' file is what makes a unit done."""
    return work.table(number) if table == "rollouts" else work.table(number).with_suffix(f".{table}.parquet")


@dataclass(frozen=True, slots=True)
class Trained:
    """A reward model in a temporary folder, and what it came from."""

    folder: Path
    snapshot: str
    initialised_from: str
    parameters: int
    label_ids: list[str]
    unfit: int
    """Labels left out since the model cannot read them: too long, or a step that is nothing but the step tag."""
    training: RewardTraining


@dataclass(frozen=True, slots=True)
class Learner:
    """Training on the labels of all units."""

    params: Params
    layout: Layout
    work: Units
    units: list[list[Problem]]
    mark: str

    @property
    def checkpoints(self) -> Path:
        return self.layout.work(self.params.generation) / f"supervise-training-{self.mark}"

    def train(self, begins_with_judge: bool, hooks: Hooks) -> Trained:
        """Train anew, or go on from the judge. Raises InputError where there is nothing to learn."""
        params, section = self.params, self.params.supervise
        started = self._start(begins_with_judge)
        model = started.model.to(language.device_for(params.execution.device))
        label_ids, learned, held_out, unfit = self._examples(started)
        if not learned:
            raise InputError(
                f"generation {params.generation} has no step label to train a reward model on: no attempt at "
                f"{section.problems} problems came to the end of a step that the model can read; allow more "
                "generate.max_new_tokens, label more supervise.problems, or train the student longer first"
            )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        training = reward_training.train(
            model,
            StepExamples(learned),
            StepExamples(held_out),
            section,
            seed=stream(params.seed, params.generation, "supervise"),
            fill=_fill_id(started.tokenizer),
            work=self.checkpoints,
            checkpoint_seconds=params.execution.checkpoint_seconds,
            progress=hooks.progress,
            should_stop=hooks.should_stop,
        )
        folder = self.layout.tmp / f"reward-model-{uuid.uuid4().hex[:8]}"
        language.save(model, started.tokenizer, folder)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        begun_from = started.snapshot
        if section.base == reward_model.STUDENT and not begins_with_judge:
            # What is new of it is the head alone.
            begun_from = weights_digest(self.layout.student)
        return Trained(folder, weights_digest(folder), begun_from, parameters, label_ids, unfit, training)

    def _start(self, begins_with_judge: bool) -> RewardModel:
        """The weights to start from, on the CPU, where they are float32."""
        params, layout = self.params, self.layout
        read_as = sections.Reward(name="process", style="token", step_tag=params.reward.step_tag)
        if begins_with_judge:
            return reward_model.load(layout.judge, "cpu", read_as)
        base = layout.tmp / f"reward-base-{uuid.uuid4().hex[:8]}"
        reward_model.create(params.supervise, layout.student, stream(params.seed, "reward model"), base)
        started = reward_model.load(base, "cpu", read_as)
        shutil.rmtree(base)
        return started

    def _examples(self, started: RewardModel) -> tuple[list[str], list[_Example], list[_Example], int]:
        """Ids of the labels to learn from, their examples, those held out, and how many do not fit."""
        problems = {problem.problem_id: problem for unit in self.units for problem in unit}
        domain, tag = models.domain_of(self.params.problems), self.params.reward.step_tag
        label_ids: list[str] = []
        learned: list[_Example] = []
        held_out: list[_Example] = []
        unfit = 0
        for batch in self._batches("step_labels"):
            for row in batch.to_pylist():
                problem = problems[row["problem_id"]]
                # Asked in the reward model's own form, as it will be when it judges.
                prompt = reward_model.prompt_text(started.tokenizer, domain.prompt(problem), domain.messages(problem))
                ids, positions = reward_model.encode_steps(started.tokenizer, prompt, row["steps"], tag)
                if len(positions) != len(row["scores"]) or not started.fits(ids):
                    unfit += 1
                elif reward_training.is_held_out(problem.problem_id, HELD_OUT):
                    held_out.append((ids, positions, row["scores"]))
                else:
                    learned.append((ids, positions, row["scores"]))
                    label_ids.append(row["step_label_id"])
        return label_ids, learned, held_out, unfit

    def _batches(self, table: str) -> Iterator[Any]:
        for number in range(len(self.units)):
            with pq.ParquetFile(unit_file(self.work, number, table)) as file:
                yield from file.iter_batches()

    def write_tables(self, trained: Trained) -> Path:
        """The folder `supervision`, at a temporary place."""
        params, training = self.params, trained.training
        tables = self.layout.tmp / f"supervision-{uuid.uuid4().hex[:8]}"
        for name, schema in SUPERVISION.items():
            with TableWriter(tables / name, schema) as writer:
                writer.write_batches(self._batches(name))
        row = {
            "snapshot": trained.snapshot,
            "role": "reward",
            "generation": params.generation,
            "initialised_from": trained.initialised_from,
            "params_digest": params.digest(),
            "parameters": trained.parameters,
            "training_flops": training.cost.training + training.cost.padding,
            "verified": True,
        }
        with TableWriter(tables / "snapshots", SNAPSHOTS) as writer:
            writer.write([row])
        with TableWriter(tables / "trained_on", TRAINED_ON) as writer:
            for name in trained.label_ids:
                learned = {"label_id": name, "generation": params.generation, "weight": 1.0, "epochs": training.epochs}
                writer.write([{"snapshot": trained.snapshot, **learned}])
        return tables


def _fill_id(tokenizer: Any) -> int:
    """Token id that pads a batch; masked, so any will do where the tokenizer has none."""
    padding = tokenizer.pad_token_id
    return int(padding if padding is not None else tokenizer.eos_token_id)
