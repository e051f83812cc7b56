"""`verify` on histories that are whole, every digest in place, and say what no generation would say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flywheel.records import digest
from storage.history import published
from storage.registry import Registry
from storage.rollback import exclude
from storage.verification.verify import verify
from tests.storage import sample
from tests.storage.forging import forged, said

Fresh = Callable[..., Registry]


def _edited(path: str, change: Callable[[Any], None]) -> Callable[[Path], dict[str, str]]:
    def edit(root: Path) -> dict[str, str]:
        document = json.loads((root / path).read_text(encoding="utf-8"))
        change(document)
        return {path: json.dumps(document)}

    return edit


def _replaced(path: str, old: str, new: str) -> Callable[[Path], dict[str, str]]:
    def edit(root: Path) -> dict[str, str]:
        text = (root / path).read_text(encoding="utf-8")
        assert old in text
        return {path: text.replace(old, new, 1)}

    return edit


def _parent_of_another(root: Path) -> dict[str, str]:
    registry = Registry(root)
    wrong, right = (published(registry, generation)["outputs"]["student"] for generation in (0, 1))
    return {"parent.dvc": (root / "parent.dvc").read_text(encoding="utf-8").replace(right, wrong)}


OWN = "lineage/0003.json"
FORGERIES: list[tuple[Callable[[Path], dict[str, str]], str]] = [
    (_edited("flywheel.json", lambda d: d.update(registry_id="0" * 32)), "flywheel.json of gen/3: registry id"),
    (_edited("metrics.json", lambda d: d["champion"].update(generation=2)), "metrics.json of gen/3: champion"),
    (_edited("lineage/window.json", lambda d: d["generations"].pop(0)), "lineage/window.json of gen/3: generations"),
    (
        _edited("lineage/window.json", lambda d: d["generations"][1]["files"][0].update(md5="0" * 32)),
        "lineage/window.json of gen/3: files of gen/1",
    ),
    (_edited("lineage/teacher.json", lambda d: d.update(generation=0)), "lineage/0003.json of gen/3: teacher, ag"),
    (_edited("lineage/champion.json", lambda d: d.update(generation=0)), "lineage/champion.json of gen/3: the champ"),
    (_edited("lineage/champion.json", lambda d: d["valid_greedy"].clear()), "dvc.lock of gen/3: digest of lineage/ch"),
    (_edited(OWN, lambda d: d.update(parent=1)), "params.yaml of gen/3: parent"),
    (_edited(OWN, lambda d: d["outputs"].update(student="0" * 32 + ".dir")), "dvc.lock of gen/3: digests of its out"),
    (_edited(OWN, lambda d: d["student"].update(initialised_from="0" * 32)), f"{OWN} of gen/3: what the student beg"),
    (_edited(OWN, lambda d: d["tables"]["labels"].update(rows=5)), f"{OWN} of gen/3: rows of table labels"),
    (_edited(OWN, lambda d: d["tables"].pop("rejected")), f"{OWN} of gen/3"),
    (_edited(OWN, lambda d: d["tables"]["labels"]["files"][0].update(md5="0" * 32)), f"{OWN} of gen/3: table labels"),
    (_edited(OWN, lambda d: d["flops"].update(policy=1.0)), "ledger/0003.jsonl of gen/3: FLOPs"),
    (_edited(OWN, lambda d: d.pop("champion")), "gen/3: it is not what Flywheel writes"),
    (_edited("lineage/0001.json", lambda d: d["flops"].update(policy=1.0)), "lineage/0001.json of gen/3: it is not"),
    (_replaced("ledger/0003.jsonl", '"seconds":0.5', '"second":0.5'), "ledger/0003.jsonl of gen/3: columns"),
    (_replaced("ledger/0003.jsonl", "{", ""), "ledger/0003.jsonl of gen/3: it is not what"),
    (_replaced("ledger/0001.jsonl", '"seconds":0.5', '"seconds":0.6'), "ledger/0001.jsonl of gen/3: it is not what"),
    (_replaced("params.yaml", "temperature: 1.0", "temperature: 0.9"), "params.yaml of gen/3: digest of the recipe"),
    (_replaced("params.yaml", "largest: 16", "largest: 17"), "params.yaml of gen/3: problems.largest"),
    (_replaced("dvc.lock", "seed: 0", "seed: 1"), "dvc.lock of gen/3: seed in stage"),
    (_parent_of_another, "parent.dvc of gen/3: digest, against the student of gen/1"),
]


def test_what_files_say_is_held_against_each_other(fresh: Fresh) -> None:
    """In a history that is whole and in order only the newest generation, which nothing holds yet, says otherwise."""
    registry = fresh(4)
    for edit, expected in FORGERIES:
        with forged(registry, edit(registry.root)):
            found = said(verify(registry.root, quick=True))
            assert any(expected in one for one in found), (expected, found)
    assert said(verify(registry.root, quick=True)) == []


def _break_rows(rows: dict[str, list[dict[str, Any]]]) -> None:
    """What stages must not write, a defect a table or two, each in rows of its own."""
    attempts, labels, parents = rows["attempts"], rows["labels"], rows["label_parents"]
    elsewhere = rows["problems"][0]["problem_id"]
    attempts[0]["problem_id"] = labels[0]["problem_id"] = elsewhere  # of split valid
    attempts[5]["generation"] = labels[3]["generation"] = 3
    parents.pop(2)
    parents[2]["parent_id"] = digest("no attempt")
    rows["rejected"].append({"attempt_id": attempts[4]["attempt_id"], "reason": "twice"})
    rows["trained_on"][0]["label_id"] = digest("no label")
    rows["trained_on"][1]["generation"] = 7
    rows["snapshots"][0]["params_digest"] = digest("another")
    rows["evaluations"][0]["split"] = "train"
    rows["outcomes"][0]["generation"] = 9


def _name_twice(rows: dict[str, list[dict[str, Any]]]) -> None:
    rows["labels"][1]["label_id"] = rows["labels"][0]["label_id"]
    rows["problems"][3]["problem_id"] = rows["problems"][0]["problem_id"]


@pytest.fixture
def written(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], Registry]:
    """A registry whose generation 1 was published, in good order, with rows that stages would not write."""

    def write(change: Callable[..., None]) -> Registry:
        registry, rows_of = fresh(1, change.__name__.strip("_")), sample._rows

        def changed(params: Any) -> dict[str, list[dict[str, Any]]]:
            rows = rows_of(params)
            change(rows)
            return rows

        with monkeypatch.context() as patch:
            patch.setattr(sample, "_rows", changed)
            sample.make_generation(registry)
        return registry

    return write


def test_rows_are_held_against_each_other(written: Callable[[Callable[..., None]], Registry]) -> None:
    found = said(verify(written(_break_rows).root))
    for expected in (
        "gen/1/attempts: 1 rows, ",
        "at a problem that is none of the training problems",
        "gen/1/labels: 1 rows, ",
        "of a problem that is none of the training problems",
        "of another generation, teacher or seed than lineage and params say",
        "of another generation or teacher than lineage says",
        "without the one attempt that it came from",
        "its parent is no attempt at the label's problem",
        "it is neither a label nor rejected",
        "it is a label and rejected, or two labels",
        "of a label that its generation does not have",
        "of a generation that was not in the window",
        "gen/1/snapshots: got",
        "gen/1/evaluations: 1 rows",
        "gen/1/outcomes: 1 rows",
    ):
        assert any(expected in one for one in found), (expected, found)
    found = said(verify(written(_name_twice).root))
    assert any("gen/1/labels: it has a row twice" in one for one in found), found
    assert any("gen/1/problems: it has a row twice" in one for one in found), found


def test_labels_of_an_excluded_model_are_not_learned(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = fresh(4)
    exclude(registry, sample.snapshot_of(1), "it cheats")
    bad = digest("label", digest("attempt", 2, 0, 0))  # the student of 1 taught generation 2
    rows_of = sample._rows

    def learned(params: Any) -> dict[str, list[dict[str, Any]]]:
        rows = rows_of(params)
        rows["trained_on"].append({**rows["trained_on"][0], "label_id": bad, "generation": 2})
        return rows

    monkeypatch.setattr(sample, "_rows", learned)
    sample.make_generation(registry)
    found = said(verify(registry.root))
    assert any("gen/4/trained_on" in one and bad in one for one in found), found


def test_weights_are_weighed(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = fresh(1)
    write = sample.write_model
    monkeypatch.setattr(sample, "write_model", lambda folder, name: write(folder, name.replace("student-1", "other")))
    sample.make_generation(registry)
    (failure,) = verify(registry.root).failures
    assert (failure.what, failure.where) == ("model", "gen/1/student")
    assert sample.model_digest("other-0") in failure.why
    assert sample.snapshot_of(1) in failure.why
