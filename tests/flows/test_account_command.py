"""`flywheel ledger`: its sums are those of the ledger's lines, whichever way they are cut."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.account import NO_MODEL, OUTSIDE, account, divided
from flywheel.compute import Cost
from flywheel.errors import InputError
from flywheel.params import load, parse
from storage import lock
from storage.ledger import KINDS
from storage.publish import publish
from storage.registry import Registry
from storage.rollback import rollback
from storage.verification import manifests
from storage.views import query
from tasks.stage import Report
from tests.flows.command import environment, flywheel, flywheel_json
from tests.storage import sample

BY = ["generation", "stage", "model"]
PRICE, EUROS = 7.2, "EUR"
SECONDS = {"generate": 30.0, "train": 60.0, "supervise": 40.0, "evaluate": 20.0, "overhead": 9.0}


def whole_ledger(generation: int) -> list[dict[str, Any]]:
    """The lines that stages write: whose work it was is in them."""
    made = {"teacher": sample.snapshot_of(0), "student": sample.snapshot_of(generation),
            "judge": sample.reward_snapshot_of(generation)}  # fmt: skip
    work = {
        "generate": [("teacher", Cost(policy=7e9, prefill=1e8, padding=3e8, tokens=4000))],
        "train": [("student", Cost(training=9e9, policy=2e8, padding=5e8, tokens=9000))],
        "supervise": [
            ("student", Cost(policy=3e9, prefill=5e7, padding=1e7, tokens=700)),
            ("judge", Cost(training=2e9, reward=4e7, padding=6e8, tokens=300)),
        ],
        # The teacher is the champion, whom the student met.
        "evaluate": [("student", Cost(policy=6e9, tokens=50)), ("teacher", Cost(policy=2e9))],
        "overhead": [],
    }
    return [
        Report(
            stage, generation, cost=sum((cost for _, cost in parts), Cost()), seconds=SECONDS[stage],
            models={made[role]: cost for role, cost in parts},
        ).ledger_row()
        for stage, parts in work.items()
    ]  # fmt: skip


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """0 -- 2, and 1, rolled back, whose lines say whose work they are. 0 and 1 have a price, 2 has none."""
    with pytest.MonkeyPatch.context() as patch:
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Test")
            patch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
        execution = {"device_hour_price": PRICE, "currency": EUROS}
        made = sample.new_registry(
            tmp_path_factory.mktemp("account") / "registry", supervise={"enabled": True}, execution=execution
        )
        sample.make_generation(made)
        with lock.hold(made, "make a sample generation"):
            params = sample.begin_generation(made)
            sample.write_outputs(made, params)
            lines = [json.dumps(row, sort_keys=True) + "\n" for row in whole_ledger(1)]
            made.layout.ledger(1).write_text("".join(lines), encoding="utf-8")
            publish(made, params, sample.REVISION)
        rollback(made, 0, "bad labels")
        settings = load(made.layout.params)
        free = settings.execution.model_copy(update={"device_hour_price": None})
        sample.make_generation(made, settings.model_copy(update={"execution": free}))
    return made


@pytest.mark.parametrize("by", BY)
def test_sums_are_those_of_the_lines_and_of_the_table(registry: Registry, by: str) -> None:
    document = account(registry, by)
    lines = [json.loads(line) for path in sorted((registry.root / "ledger").glob("*.jsonl"))
             for line in path.read_text(encoding="utf-8").splitlines()]  # fmt: skip
    columns = [*(f"flops_{kind}" for kind in KINDS), "tokens", "seconds"]
    (table,) = query(registry, f"SELECT {', '.join(f'sum({name}) AS {name}' for name in columns)} FROM ledger").rows
    told = {**{f"flops_{kind}": document["total"]["flops"][kind] for kind in KINDS},
            "tokens": document["total"]["tokens"], "seconds": document["total"]["seconds"]}  # fmt: skip
    for name in columns:
        assert told[name] == pytest.approx(sum(line[name] for line in lines), rel=1e-12)
        assert told[name] == pytest.approx(float(table[name]), rel=1e-12)
    for part in (document["total"], *document["rows"]):
        flops = part["flops"]
        assert part["decoding"]["executed"] + part["training"]["executed"] == pytest.approx(sum(flops.values()))
        padding = sum(part[work]["padding"] for work in ("decoding", "training"))
        assert padding == pytest.approx(flops["padding"])
    for kind in KINDS:
        assert sum(row["flops"][kind] for row in document["rows"]) == pytest.approx(document["total"]["flops"][kind])
    for figure in ("tokens", "seconds"):
        assert sum(row[figure] for row in document["rows"]) == pytest.approx(document["total"][figure])
    assert sum(row["money"].get(EUROS, 0.0) for row in document["rows"]) == pytest.approx(
        document["total"]["money"][EUROS]
    )


def test_however_it_is_cut_it_is_the_same_total(registry: Registry) -> None:
    totals = [account(registry, by)["total"] for by in BY]
    assert totals[0] == totals[1] == totals[2]


def test_what_was_rolled_back_stays_spent_and_is_marked(registry: Registry) -> None:
    document = account(registry, "generation")
    assert [(row["tag"], row["rolled_back"]) for row in document["rows"]] == [
        ("gen/0000", False), ("gen/0001", True), ("gen/0002", False),
    ]  # fmt: skip
    one = document["rows"][1]
    assert {name: one[name] for name in document["rolled_back"]} == document["rolled_back"]
    assert one["seconds"] == sum(SECONDS.values())
    assert one["decoding"] == {"useful": 18.15e9, "padding": 3.1e8, "executed": 18.46e9}
    assert one["training"] == {"useful": 11.24e9, "padding": 1.1e9, "executed": 12.34e9}
    assert one["money"] == {EUROS: pytest.approx(PRICE * sum(SECONDS.values()) / 3600)}
    assert (document["rows"][2]["money"], document["unpriced"]) == ({}, [2])


def test_models_are_named_and_have_their_part(registry: Registry) -> None:
    rows = {row["model"]: row for row in account(registry, "model")["rows"]}
    # The sample's other lines have no FLOPs of reward models and none of generation 0's students' evaluations.
    assert set(rows) >= {"gen/0/student", "gen/1/student", "gen/1/reward_model", NO_MODEL}
    made = [name for name in rows if name.startswith("gen/")]
    assert made == sorted(made, key=lambda name: (name[4], "reward" in name)), "as they were made"
    teacher, student, judge = rows["gen/0/student"], rows["gen/1/student"], rows["gen/1/reward_model"]
    assert (student["snapshot"], rows[NO_MODEL]["snapshot"]) == (sample.snapshot_of(1), None)
    assert student["training"]["executed"] == 9.7e9
    assert student["decoding"]["executed"] == pytest.approx(3.06e9 + 6e9)
    assert judge["training"]["executed"] == 2.64e9
    assert judge["decoding"]["executed"] == 0.0
    # Generation 0's own work, its search in 1 and 2, and its match with generation 1.
    assert teacher["decoding"]["executed"] >= 7.4e9 + 2e9
    assert rows[NO_MODEL]["seconds"] == SECONDS["overhead"]
    supervised = SECONDS["supervise"] * 2.64 / (2.64 + 3.06)
    assert judge["seconds"] == pytest.approx(supervised)


LINEAGE = {
    "teacher": {"snapshot": "t"}, "student": {"snapshot": "s"}, "reward_model": {"snapshot": "r", "judges": True},
    "judge": {"snapshot": "j", "judges": True},
}  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "without", "expected"),
    [
        ("generate", "", {"t": 1 + 2 + 8 + 16, "j": 4}),
        ("generate", "judge", {"t": 1 + 2 + 8 + 16, OUTSIDE: 4}),
        ("train", "", {"s": 31}),
        ("supervise", "", {"s": 3, "r": 28}),
        ("evaluate", "", {"s": 27, "r": 4}),
        ("evaluate", "reward_model", {"s": 27, "j": 4}),
    ],
)
def test_lines_of_earlier_versions_are_divided_by_lineage(stage: str, without: str, expected: dict[str, int]) -> None:
    flops = {"policy": 1.0, "prefill": 2.0, "reward": 4.0, "training": 8.0, "padding": 16.0}
    row = {"generation": 3, "stage": stage, "tokens": 5, "seconds": 62.0} | {f"flops_{k}": v for k, v in flops.items()}
    lineage = {name: facts for name, facts in LINEAGE.items() if name != without}
    parts = divided(row, lineage, (3600.0, "JPY"))
    assert {part.model: part.executed for part in parts} == expected
    assert sum(part.tokens for part in parts) == 5
    assert sum(part.money["JPY"] for part in parts) == pytest.approx(62.0)


def test_verify_compares_models_with_their_line() -> None:
    rows = whole_ledger(1)
    del rows[1]["models"], rows[2]["models"]
    assert unlike(rows) == [], "a line of an earlier version is whole"
    rows[0]["flops_policy"] += 1e6
    del rows[3]["tokens"]
    assert [what for what in unlike(rows) if "lineage" not in what] == [
        "whether its models add up to the line of generate", "columns of a line",
    ]  # fmt: skip


def unlike(rows: list[dict[str, Any]]) -> list[str]:
    """What `verify` finds wrong with generation 1's ledger."""
    wrong: list[str] = []
    sums = {kind: sum(row[f"flops_{kind}"] for row in whole_ledger(1)) for kind in KINDS}
    stages = {row["stage"]: sum(row[f"flops_{kind}"] for kind in KINDS) for row in whole_ledger(1)}
    files: Any = SimpleNamespace(blobs={"ledger/0001.jsonl": "\n".join(map(json.dumps, rows)).encode()})
    generation: Any = SimpleNamespace(number=1, name="gen/0001", lineage={"flops": sums, "stages": stages})

    def expect(_where: str, what: str, got: Any, expected: Any) -> None:
        if got != expected:
            wrong.append(what)

    manifests._check_ledger(files, generation, expect)
    return wrong


def test_the_table_has_the_price_and_a_total(registry: Registry) -> None:
    text = flywheel("ledger", "--registry", registry.root).stdout
    for words in ("gen/0001 (rolled back)", "of it rolled back", "total", f" {EUROS}", "device-seconds", "on padding",
                  "gen/2 had no price (execution.device_hour_price)"):  # fmt: skip
        assert words in text
    assert "gen/1/reward_model" in flywheel("ledger", "--by", "model", "--registry", registry.root).stdout
    document = flywheel_json("ledger", "--by", "stage", "--registry", registry.root)
    assert document == json.loads(json.dumps(account(registry, "stage")))
    assert [row["stage"] for row in document["rows"]] == ["generate", "train", "supervise", "evaluate", "overhead"]


def test_nothing_heavy_is_waited_for(registry: Registry) -> None:
    script = (
        "import sys; sys.argv = ['flywheel', 'ledger', '--registry', sys.argv[1]]\n"
        "from flows.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'dvc', 'mlflow', 'prefect', 'torch', 'transformers', 'pandas', 'duckdb'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, registry.root], env=environment(), check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("stage", "execution", "expected"),
    [
        ("generate", {}, 4.0),
        ("generate", {"runner": "processes", "workers": 3}, 3 * 10.0 - 6.0),
        ("evaluate", {"runner": "processes", "workers": 9, "shards": 2}, 2 * 10.0 - 6.0),
        ("supervise", {"runner": "processes"}, 4.0),
        ("train", {"training_processes": 2}, 2 * 10.0 - 6.0),
    ],
)
def test_processes_that_start_and_wait_are_paid_for(stage: str, execution: dict[str, Any], expected: float) -> None:
    from flows.generation import waiting

    params = parse({"execution": execution})
    assert waiting(stage, params, elapsed=10.0, seconds=6.0) == expected
    assert waiting(stage, params, elapsed=0.1, seconds=60.0) == 0.0, "an earlier run had done it"


def test_bad_input_is_refused(registry: Registry, tmp_path: Path) -> None:
    refused = flywheel("ledger", "--by", "day", "--registry", registry.root, code=2)
    assert "--by: got 'day', expected one of generation, stage, model" in refused.stderr
    assert refused.stdout == ""
    with pytest.raises(InputError, match="registry without generations"):
        account(sample.new_registry(tmp_path / "registry"), "stage")
