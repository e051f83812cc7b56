"""Generations against each other: where each starts from, who taught it, what it may learn from, who is champion.

    gen/3: student ── md5 ──> parent.dvc of gen/4        champion of gen/3 ──> champion.json, teacher.json of gen/4
    gen/0..3: labels ── files, md5 ──> window.json of gen/4      gen/3: reward_model ──> judge.dvc, judge.json of gen/4

What a generation should say is worked out anew from the generations before it, as `storage.prepare` did.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from flywheel.params import folder_name
from storage import cache, exclusions
from storage.layout import tag_name
from storage.verification.findings import Findings
from storage.verification.generations import FIX, Files, Generation, shaped

_NUMBERED = re.compile(r"(?:lineage/(\d{4,})\.json|ledger/(\d{4,})\.jsonl)")


@dataclass(slots=True)
class Chain:
    """The generations so far; each is checked against those before it as it is added."""

    findings: Findings
    known: dict[int, Generation] = field(default_factory=dict)
    _objects: dict[str, str] = field(default_factory=dict)
    """Git's ids of lineage/NNNN.json and ledger/NNNN.jsonl as they were published."""

    def line(self, number: int | None) -> list[int]:
        """A generation with its ancestors, oldest first, as far as they are known."""
        found: list[int] = []
        while number is not None and number in self.known and number not in found:
            found.append(number)
            number = self.known[number].lineage["parent"]
        return found[::-1]

    def add(self, generation: Generation, files: Files) -> None:
        number, parent = generation.number, generation.lineage.get("parent")
        if parent is None and number > 0:
            self._fail(generation.name, "parent: got none, expected one: only generation 0 has none")
        elif parent is not None and (not isinstance(parent, int) or parent not in self.known):
            self._fail(generation.name, f"it goes on from gen/{parent}, which is not there or could not be read")
        else:
            with shaped(self.findings, generation.name):
                self._check(generation, None if parent is None else self.known[parent])
        self.known[number] = generation
        self._check_kept(generation, files)

    def _fail(self, where: str, why: str, fix: str = FIX) -> None:
        self.findings.fail("manifest", where, why, fix)

    def _expect(self, where: str, what: str, got: Any, expected: Any) -> None:
        if got != expected:
            self._fail(where, f"{what}: got {got!r}, expected {expected!r}"[:500])

    def _check(self, generation: Generation, before: Generation | None) -> None:
        first = next(iter(self.known.values()), generation)
        self._expect(f"flywheel.json of {generation.name}", "registry id", generation.registry_id, first.registry_id)
        self._check_start(generation, before)
        self._check_champion(generation, before)
        self._check_teacher(generation, before)
        self._check_judge(generation)
        self._check_window(generation)
        self._check_ground(generation, before)
        if generation.exclusions:
            check_exclusions(self, generation.exclusions, f"exclusions.json of {generation.name}")

    def _check_start(self, generation: Generation, before: Generation | None) -> None:
        """`parent.dvc` is the champion's student, and the student began from those weights (or from the base)."""
        lineage, train = generation.lineage, generation.params.get("train", {})
        if before is None:
            return
        champion = self.known.get(before.lineage["champion"]["generation"])
        if champion is None:
            return  # said where its own lineage is checked
        student = champion.outputs["student"]
        where = f"parent.dvc of {generation.name}"
        self._expect(where, f"digest, against the student of {champion.name}", _of(generation.parent), _of(student))
        own = f"lineage/{folder_name(generation.number)}.json of {generation.name}"
        begun = lineage["student"]["initialised_from"]
        if train.get("start", "parent") == "parent":
            wanted = champion.lineage["student"]["snapshot"]
            self._expect(own, f"what the student began from, the student of {champion.name}", begun, wanted)
        elif _same_base(generation, self.known.get(0)):
            wanted = self.known[0].lineage["student"]["initialised_from"]
            self._expect(own, "what the student began from, the base", begun, wanted)

    def _check_champion(self, generation: Generation, before: Generation | None) -> None:
        own, held = generation.lineage["champion"], generation.documents["champion"]
        wanted = {
            key: None if before is None else before.lineage["champion"][key] for key in ("generation", "snapshot")
        }
        self._expect(f"lineage/champion.json of {generation.name}", "the champion before it", held, wanted)
        student = {"generation": generation.number, "snapshot": generation.lineage["student"]["snapshot"]}
        wanted = student if own["promoted"] else held
        told = {key: own[key] for key in ("generation", "snapshot")}
        self._expect(f"metrics.json of {generation.name}", "the champion", told, wanted)

    def _check_teacher(self, generation: Generation, before: Generation | None) -> None:
        teacher, where = generation.lineage["teacher"], f"lineage/teacher.json of {generation.name}"
        asked = generation.params.get("generate", {}).get("teacher", "champion")
        kind = "solver" if before is None else "champion" if asked == "champion" else "external"
        self._expect(where, "kind of teacher", teacher["kind"], kind)
        if kind == "champion" and before is not None:
            named, champion = teacher["generation"], before.lineage["champion"]
            self._expect(where, "the generation whose student teaches", named, champion["generation"])
            made = self.known.get(champion["generation"])
            snapshot = made.lineage["student"]["snapshot"] if made else champion["snapshot"]
            self._expect(where, f"snapshot, against the student of gen/{named}", teacher["snapshot"], snapshot)
        if kind == "external":
            self._expect(where, "source, against params.yaml", teacher["source"], asked)
        if not teacher["verified"]:
            self.findings.count("unverified")

    def _check_judge(self, generation: Generation) -> None:
        """The judge is the newest reward model of an ancestor that is not excluded."""
        judge = generation.documents.get("judge")
        trained = generation.lineage.get("reward_model")
        own = f"lineage/{folder_name(generation.number)}.json of {generation.name}"
        if judge is not None and generation.judge is not None:
            out = exclusions.models(generation.exclusions)
            line = [self.known[number] for number in self.line(generation.lineage["parent"])]
            makers = [g for g in line if g.is_supervised and g.lineage["reward_model"]["snapshot"] not in out]
            where = f"lineage/judge.json of {generation.name}"
            if not makers:
                self._fail(where, f"it names the reward model of gen/{judge['generation']}, no ancestor has one")
                return
            maker = makers[-1]
            named = {"generation": judge["generation"], "snapshot": judge["snapshot"]}
            wanted = {"generation": maker.number, "snapshot": maker.lineage["reward_model"]["snapshot"]}
            self._expect(where, "the judge", named, wanted)
            made = maker.outputs["reward_model"]
            what = f"digest, against the reward model of {maker.name}"
            self._expect(f"judge.dvc of {generation.name}", what, _of(generation.judge), _of(made))
        if trained is not None:
            section = generation.params["supervise"]
            if judge is not None and section.get("start") == "previous":
                self._expect(own, "what the reward model began from", trained["initialised_from"], judge["snapshot"])
            elif section.get("base") == "student":
                student = generation.lineage["student"]["snapshot"]
                self._expect(own, "what the reward model began from", trained["initialised_from"], student)

    def _check_window(self, generation: Generation) -> None:
        parent, entries = generation.lineage["parent"], generation.exclusions
        line = self.line(parent)
        older = sorted([*line, *exclusions.kept(exclusions.applying(entries, line), line)])
        width = generation.params.get("filter", {}).get("window")
        if width is not None:
            older = older[len(older) - min(len(older), width - 1) :]
        window, where = generation.documents["window"], f"lineage/window.json of {generation.name}"
        self._expect(where, "generations", [row["generation"] for row in window["generations"]], older)
        for row in window["generations"]:
            if row["generation"] in self.known:
                self._expect(where, f"files of gen/{row['generation']}", row, self._learned(row["generation"]))
        self._expect(where, "excluded models", window.get("excluded", []), sorted(exclusions.models(entries)))
        tried = generation.documents.get("tried")
        if tried is not None:
            share = generation.params.get("generate", {}).get("solved_share")
            wanted = [
                {"generation": number, "files": self.known[number].lineage["tables"]["attempts"]["files"]}
                for number in line
                if number > 0 and share is not None
            ]
            where = f"lineage/tried.json of {generation.name}"
            self._expect(where, "older attempts", tried["generations"], wanted)

    def _learned(self, number: int) -> dict[str, Any]:
        tables = self.known[number].lineage["tables"]
        row = {"generation": number, "folder": folder_name(number), "files": tables["labels"]["files"]}
        return {**row, **({"targets": tables["targets"]["files"]} if "targets" in tables else {})}

    def _check_ground(self, generation: Generation, before: Generation | None) -> None:
        """Problems and model are fixed for a registry's life; keys that one of both did not know yet are left out."""
        for section in ("problems", "model") if before is not None else ():
            held, now = before.params.get(section, {}), generation.params.get(section, {})  # type: ignore[union-attr]
            for key in held.keys() & now.keys():
                where = f"params.yaml of {generation.name}"
                self._expect(where, f"{section}.{key}, fixed for a registry's life", now[key], held[key])

    def _check_kept(self, generation: Generation, files: Files) -> None:
        """Lineage and ledger of older generations are what they were; lineage has just those of the line."""
        numbers = set()
        for path, digest in files.objects.items():
            match = _NUMBERED.fullmatch(path)
            if match is None:
                continue
            if match[1]:
                numbers.add(int(match[1]))
            held = self._objects.setdefault(path, digest)
            if held != digest and int(match[1] or match[2]) in self.known:
                why = f"it is not what gen/{int(match[1] or match[2])} was published with"
                self._fail(f"{path} of {generation.name}", why)
        line = self.line(generation.number)
        if numbers != set(line) and line[0] == 0:
            self._expect(f"lineage/ of {generation.name}", "generations it tells of", sorted(numbers), line)


def _of(output: cache.Output) -> tuple[str, int, int]:
    return output.md5, output.size, output.files


def _same_base(generation: Generation, first: Generation | None) -> bool:
    """Whether the base made anew is that of generation 0."""
    if first is None:
        return False
    return all(generation.params.get(key) == first.params.get(key) for key in ("seed", "model", "problems"))


def check_exclusions(chain: Chain, entries: list[exclusions.Exclusion], where: str) -> None:
    """Each entry is of models and generations that there are, and says of them what their lineage says."""
    models = {
        snapshot
        for generation in chain.known.values()
        for part in ("student", "reward_model", "teacher")
        for snapshot in (generation.lineage.get(part, {}).get(key) for key in ("snapshot", "initialised_from"))
    }
    for entry in entries:
        what = f"the exclusion of model/{entry.model[:12]}"
        line = chain.line(entry.source)
        wrong = [
            (not entry.reason.strip(), "it has no reason"),
            (entry.model not in entry.models, "its models lack the model itself"),
            (list(entry.models) != sorted(set(entry.models)), "its models are not in order, or twice there"),
            (not set(entry.models) <= models, f"no generation made or used {sorted(set(entry.models) - models)}"),
            (entry.to not in line, f"it goes back to gen/{entry.to}, no ancestor of gen/{entry.source}"),
            (
                list(entry.generations) != [number for number in line if number > entry.to],
                f"it leaves the generations {list(entry.generations)}, not those between",
            ),
            (not set(entry.labels_kept) <= set(chain.known), f"it keeps labels of {list(entry.labels_kept)}"),
            (entry.next <= entry.source, f"{tag_name(entry.next)} came before it"),
        ]
        for found, why in wrong:
            if found:
                chain.findings.fail("manifest", where, f"{what}: {why}", FIX)
