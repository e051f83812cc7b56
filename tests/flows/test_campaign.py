"""Whole campaigns through the command line, on the smoke recipe: made, killed, resumed, rolled back, reproduced."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flywheel.models.checkpoints import weights_digest
from tests.flows.command import environment, flywheel, flywheel_json, made, made_again_by_hand, progress, start, until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A registry with generations 0 to 2, never to be changed, and what `run --json` said."""
    registry = tmp_path_factory.mktemp("campaign") / "registry"
    return registry, flywheel_json("run", "--preset", "smoke", "--registry", registry)


@pytest.fixture
def copy(campaign: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A registry of the same content that a test may change."""
    target = tmp_path / "registry"
    shutil.copytree(campaign[0], target, symlinks=True)
    return target


def test_a_run_tells_its_generations_and_publishes_them(campaign: tuple[Path, dict[str, Any]]) -> None:
    registry, said = campaign
    assert [row["generation"] for row in said["generations"]] == [0, 1, 2]
    rows = flywheel_json("history", "--registry", registry)
    assert [(row["tag"], row["parent"], row["status"]) for row in rows] == [
        ("gen/0000", None, "ancestor"),
        ("gen/0001", 0, "ancestor"),
        ("gen/0002", 1, "current"),
    ]
    assert all(row["mlflow_run"] and row["prefect_flow_run"] for row in rows)
    assert rows[0]["labels"] == 60
    assert set(rows[2]["metrics"]["test"]) >= {"greedy", "pass@1", "pass@4", "best@4", "majority@4"}
    tags = subprocess.run(["git", "-C", registry, "tag"], capture_output=True, text=True, check=True).stdout.split()
    assert tags == ["gen/0000", "gen/0001", "gen/0002"]


def test_tables_agree_with_each_other(campaign: tuple[Path, dict[str, Any]]) -> None:
    def one(sql: str) -> dict[str, Any]:
        (row,) = flywheel_json("query", sql, "--registry", campaign[0])
        return dict(row)

    # Every attempt of a generation is either a label's parent or rejected with a reason.
    counts = one(
        "SELECT (SELECT count(*) FROM attempts) AS attempts, (SELECT count(*) FROM rejected) AS rejected,"
        " (SELECT count(*) FROM label_parents) AS parents, (SELECT count(*) FROM labels) AS labels"
    )
    assert counts["attempts"] == counts["rejected"] + counts["parents"] == 60 + 2 * 24 * 4
    assert counts["labels"] == counts["parents"]
    # No problem of valid or test is ever learned from, and no hand stands in two splits.
    assert one(
        "SELECT count(*) AS n FROM trained_on JOIN labels USING (label_id) JOIN problems USING (problem_id)"
        " WHERE split <> 'train'"
    ) == {"n": 0}
    shared = 'SELECT "group" FROM problems GROUP BY 1 HAVING count(DISTINCT split) > 1'
    assert one(f"SELECT count(*) AS n FROM ({shared})") == {"n": 0}
    # The FLOPs of attempts add up to the ledger's.
    sums = one(
        "SELECT (SELECT sum(flops_policy) FROM attempts) AS attempts,"
        " (SELECT sum(flops_policy) FROM ledger WHERE stage = 'generate') AS ledger"
    )
    assert sums["attempts"] == pytest.approx(sums["ledger"], rel=1e-12)


def test_the_student_loads_with_plain_transformers_and_solves_a_problem(
    campaign: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    registry, _ = campaign
    solved = flywheel_json(
        "query",
        "SELECT payload FROM outcomes JOIN problems USING (problem_id)"
        " WHERE metric = 'greedy' AND value = 1 AND outcomes.generation = 2",
        "--registry",
        registry,
    )
    trained = flywheel_json(
        "query",
        "SELECT prompt, completion FROM trained_on JOIN labels USING (label_id) JOIN snapshots USING (snapshot)"
        " WHERE snapshots.generation = 2 ORDER BY label_id",
        "--registry",
        registry,
    )
    prompts = [row["prompt"] for row in trained]
    for row in solved:
        payload = json.loads(row["payload"])
        prompts.append(f"{' '.join(map(str, payload['numbers']))} -> {payload['target']}\n")
    script = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompts = sys.argv[1], json.loads(sys.argv[2])
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
answers = []
for prompt in prompts:
    ids = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**ids, do_sample=False, max_new_tokens=8)
    answers.append(tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True))
print(json.dumps(answers))
"""
    shutil.copytree(registry / "student", tmp_path / "student")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "student"), json.dumps(prompts)],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=environment(),
    )  # fmt: skip
    answers = json.loads(done.stdout)
    right = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        hand, _, target = prompt.strip().partition(" -> ")
        left, _, result = answer.partition(" = ")
        a, _, b = left.partition(" ")
        operator, _, b = b.partition(" ")
        if sorted([a, b]) == sorted(hand.split()) and result == target:
            value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}.get(operator)
            right += value == int(target) or (operator == "/" and int(b) * int(target) == int(a))
    assert right >= 1


@pytest.fixture(scope="module")
def third(campaign: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What generation 3 of the campaign is made of when nothing disturbs it."""
    registry = tmp_path_factory.mktemp("third") / "registry"
    shutil.copytree(campaign[0], registry, symlinks=True)
    flywheel("run", "--registry", registry, "-n", "1", fresh=True)
    third: dict[str, Any] = made(registry)["0003"]
    return third


def test_a_run_killed_in_every_stage_ends_with_the_digests_of_one_left_alone(copy: Path, third: dict[str, Any]) -> None:
    """SIGKILL in generate, train, evaluate and between evaluate and the tag, cut into other shards each time."""
    for shards, stage in enumerate(("generate", "train", "evaluate", "publish"), 1):
        run = start("run", "--registry", copy, "-n", "1", "--set", f"execution.shards={shards}")
        try:
            wanted = (3, stage)
            until(lambda wanted=wanted, run=run: progress(copy)[:2] == wanted or run.poll() is not None)  # type: ignore[misc]
        finally:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
        assert run.returncode == -signal.SIGKILL, stage
        state = flywheel_json("status", "--registry", copy)
        assert state["holder"] is None
        assert (state["state"], state["generation"]) == ("interrupted", 3) or state["published"] == 3
    if flywheel_json("status", "--registry", copy)["published"] == 2:
        flywheel("run", "--registry", copy, "-n", "1", "--set", "execution.shards=3")
    assert made(copy)["0003"] == third


def test_ctrl_c_ends_with_130_and_run_goes_on(copy: Path, third: dict[str, Any]) -> None:
    run = start("run", "--registry", copy, "-n", "1")
    until(lambda: progress(copy)[:2] == (3, "train") or run.poll() is not None)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert "Traceback" not in errors
    assert "goes on from there" in errors
    flywheel("run", "--registry", copy, "-n", "1")
    assert made(copy)["0003"] == third


def test_two_runs_on_one_registry(copy: Path) -> None:
    first = start("run", "--registry", copy, "--generations", "1")
    until(lambda: (copy / ".flywheel" / "progress.json").exists() or first.poll() is not None)
    refused = flywheel("run", "--registry", copy, "--generations", "1", code=3)
    assert f"PID {first.pid}" in refused.stderr
    assert flywheel_json("status", "--registry", copy)["holder"]["pid"] == first.pid
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors


def test_rollback_run_and_undo(copy: Path) -> None:
    planned = flywheel_json("rollback", "gen/1", "--registry", copy, "--dry-run")
    done = flywheel_json("rollback", "gen/1", "--registry", copy, "--reason", "worse on valid", "--yes")
    assert (planned["from"], planned["to"], planned["rows_dropped"]) == (done["from"], done["to"], done["rows_dropped"])
    rows = {row["generation"]: row for row in flywheel_json("history", "--registry", copy)}
    assert (rows[2]["status"], rows[2]["reason"]) == ("abandoned", "worse on valid")
    said = flywheel_json("run", "--registry", copy, "--generations", "1")
    assert [(row["generation"], row["parent"]) for row in said["generations"]] == [(3, 1)]
    kept = flywheel_json("query", "SELECT DISTINCT generation FROM labels ORDER BY 1", "--registry", copy)
    assert [row["generation"] for row in kept] == [0, 1, 3]
    flywheel_json("undo", "--registry", copy)
    rows = {row["generation"]: row for row in flywheel_json("history", "--registry", copy)}
    assert {number: row["status"] for number, row in rows.items()} == {
        0: "ancestor", 1: "ancestor", 2: "current", 3: "abandoned",
    }  # fmt: skip


def test_dvc_repro_by_hand_in_a_clone_gives_the_recorded_digests(
    campaign: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    recorded, made_again, log = made_again_by_hand(campaign[0], tmp_path / "clone")
    for stage in ("problems", "generate", "filter", "train", "evaluate"):
        assert f"Running stage '{stage}'" in log
        assert f"> python -P -m tasks.{stage}" in log
    assert made_again == recorded


def test_processes_give_the_digests_of_the_serial_runner(copy: Path, third: dict[str, Any]) -> None:
    flywheel("run", "--registry", copy, "-n", "1", "--set", "execution.runner=processes")
    assert made(copy)["0003"] == third


def test_caps_and_the_command_for_failures(copy: Path, tmp_path: Path) -> None:
    stopped = flywheel("run", "--registry", copy, "--set", "campaign.max_flops=1")
    assert "campaign.max_flops" in stopped.stderr
    assert flywheel_json("status", "--registry", copy)["published"] == 2
    told = tmp_path / "told"
    teller = tmp_path / "teller.py"
    teller.write_text(f"import os\nopen({str(told)!r}, 'w').write(os.environ['FLYWHEEL_ERROR'])\n")
    command = f"{sys.executable} {teller}"
    failed = flywheel(
        "run", "--registry", copy, "--set", "generate.teacher=./nowhere", "--set",
        f"execution.on_failure={json.dumps(command)}", code=2,
    )  # fmt: skip
    assert "./nowhere is no model folder" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert told.read_text().startswith("ModelError: ./nowhere")


def test_what_is_refused_changes_nothing(copy: Path) -> None:
    """Neither a teacher that is not there, nor another domain, nor a label set that would be empty."""
    before = (copy / "params.yaml").read_bytes()
    ground = flywheel("run", "--registry", copy, "--set", "problems.largest_target=30", code=2)
    assert "problems.largest_target: got 30, but gen/0002 was made with 40" in ground.stderr
    typo = flywheel("run", "--registry", copy, "--set", "generate.sampels=30", code=2)
    assert "did you mean samples?" in typo.stderr
    preset = flywheel("run", "--registry", copy, "--preset", "countdown-4", code=2)
    assert "made with preset smoke" in preset.stderr
    assert (copy / "params.yaml").read_bytes() == before
    assert flywheel_json("status", "--registry", copy)["state"] == "idle"


def test_report_and_lineage(campaign: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    flywheel("report", "--registry", campaign[0], "--out", page)
    assert "answering at once" in page.read_text(encoding="utf-8")
    graph = flywheel_json("lineage", "gen/2/student", "--registry", campaign[0])
    kinds = {node["kind"] for node in graph["nodes"]}
    assert {"model", "labels"} <= kinds or {"student", "labels"} <= kinds
    student = flywheel_json("history", "--registry", campaign[0])[2]["student"]
    assert any(node["digest"] == student for node in graph["nodes"])


def test_an_outside_teacher_searches_and_is_recorded_by_digest(copy: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(copy / "parent", teacher)
    (row,) = flywheel_json("run", "--registry", copy, "-n", "1", "--set", f"generate.teacher={teacher}")["generations"]
    assert row["teacher"] == weights_digest(teacher)
    lineage = json.loads((copy / "lineage" / "0003.json").read_text(encoding="utf-8"))
    assert lineage["teacher"]["kind"] == "external"
    assert lineage["teacher"]["verified"] is True
