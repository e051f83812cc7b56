"""Hex through the command line, on 3x3: registry, lineage, rollback, resume and report as for texts, and games."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flywheel.models.checkpoints import weights_digest
from flywheel.problems.hex_positions import canonical
from tests.flows.command import environment, flywheel, flywheel_json, made, made_again_by_hand, progress, start, until

pytestmark = pytest.mark.slow

SMALL = [
    "generate.problems=24", "generate.unit=6", "generate.samples=2", "generate.simulations=16", "train.epochs=3",
    "evaluate.openings=4", "execution.threads=1", "execution.checkpoint_seconds=0.5",
]  # fmt: skip


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A registry with generations 0 to 2, never to be changed, and what `run --json` said."""
    registry = tmp_path_factory.mktemp("hex") / "registry"
    changes = [part for change in SMALL for part in ("--set", change)]
    return registry, flywheel_json("run", "--preset", "hex-3", "--registry", registry, "-n", "2", *changes)


@pytest.fixture
def copy(campaign: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    target = tmp_path / "registry"
    shutil.copytree(campaign[0], target, symlinks=True)
    return target


def query(registry: Path, sql: str) -> list[dict[str, Any]]:
    return list(flywheel_json("query", sql, "--registry", registry))


def test_generations_are_published_as_for_texts(campaign: tuple[Path, dict[str, Any]]) -> None:
    registry, said = campaign
    assert [row["generation"] for row in said["generations"]] == [0, 1, 2]
    rows = flywheel_json("history", "--registry", registry)
    assert [(row["tag"], row["parent"], row["promoted"]) for row in rows] == [
        ("gen/0000", None, True), ("gen/0001", 0, True), ("gen/0002", 1, True),
    ]  # fmt: skip
    assert rows[0]["labels"] == 0
    assert all(row["mlflow_run"] and row["prefect_flow_run"] for row in rows)
    assert set(rows[2]["metrics"]["test"]) == {"greedy", "search@8", "search@32"}
    assert set(rows[2]["metrics"]["elo"]) == {"greedy", "search@32", "random"}
    shown = flywheel("history", "--registry", registry).stdout
    assert "elo search@32" in shown


def test_tables_agree_with_each_other(campaign: tuple[Path, dict[str, Any]]) -> None:
    registry = campaign[0]
    (counts,) = query(
        registry,
        "SELECT (SELECT count(*) FROM searched) AS searched, (SELECT count(*) FROM rejected) AS rejected,"
        " (SELECT count(*) FROM labels) AS labels, (SELECT count(*) FROM targets) AS targets,"
        " (SELECT count(DISTINCT attempt_id) FROM searched) AS games, (SELECT count(*) FROM attempts) AS attempts",
    )
    assert counts["games"] == counts["attempts"] == 2 * 24 * 2
    assert counts["searched"] == counts["labels"] + counts["rejected"]
    assert counts["labels"] == counts["targets"]
    # No valid or test position is ever learned, nor one that its network sees as the same.
    learned = query(registry, "SELECT DISTINCT board, mover FROM trained_on JOIN targets USING (label_id)")
    held_out = query(registry, "SELECT \"group\" FROM problems WHERE split <> 'train'")
    assert not {canonical(row["board"], row["mover"]) for row in learned} & {row["group"] for row in held_out}
    (sums,) = query(
        registry,
        "SELECT (SELECT sum(flops_policy) FROM attempts) AS games,"
        " (SELECT sum(flops_policy) FROM ledger WHERE stage = 'generate') AS ledger",
    )
    assert sums["games"] == pytest.approx(sums["ledger"], rel=1e-12)


def test_lineage_goes_from_the_student_to_games_and_network_zero(campaign: tuple[Path, dict[str, Any]]) -> None:
    registry = campaign[0]
    students = [row["student"] for row in flywheel_json("history", "--registry", registry)]
    graph = flywheel_json("lineage", "gen/2/student", "--registry", registry)
    digests = {node["digest"] for node in graph["nodes"]}
    assert set(students) <= digests
    made_by = query(registry, "SELECT DISTINCT generation, teacher FROM labels ORDER BY 1")
    assert [(row["generation"], row["teacher"]) for row in made_by] == [(1, students[0]), (2, students[1])]
    assert weights_digest(registry / "student") == students[2]


def test_killed_in_any_stage_it_ends_with_the_digests_of_one_left_alone(
    campaign: tuple[Path, dict[str, Any]], copy: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(campaign[0], alone, symlinks=True)
    flywheel("run", "--registry", alone, "-n", "1", fresh=True)
    for shards, stage in enumerate(("generate", "train", "evaluate"), 1):
        run = start("run", "--registry", copy, "-n", "1", "--set", f"execution.shards={shards}")
        try:
            until(lambda stage=stage, run=run: progress(copy)[:2] == (3, stage) or run.poll() is not None)  # type: ignore[misc]
        finally:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
        assert run.returncode == -signal.SIGKILL, stage
    if flywheel_json("status", "--registry", copy)["published"] == 2:
        flywheel("run", "--registry", copy, "-n", "1", "--set", "execution.shards=3")
    assert made(copy)["0003"] == made(alone)["0003"]


def test_who_does_not_win_enough_stays_out_and_the_next_goes_on_from_the_champion(copy: Path) -> None:
    (kept_out,) = flywheel_json("run", "--registry", copy, "-n", "1", "--set", "evaluate.gate=1.0")["generations"]
    assert not kept_out["promoted"]
    rows = {row["generation"]: row for row in flywheel_json("history", "--registry", copy)}
    assert re.fullmatch(
        r"not promoted: won [\d.]+% of 8 games against the champion, 100.0% asked for", rows[3]["reason"]
    )
    flywheel("run", "--registry", copy, "-n", "1", "--set", "evaluate.gate=null")
    met = query(copy, "SELECT DISTINCT first FROM matches WHERE generation = 4 AND first LIKE 'gen/%' ORDER BY 1")
    assert {row["first"].partition("@")[0] for row in met} == {"gen/2", "gen/4"}, "the champion, not the newest"
    (taught,) = query(copy, "SELECT DISTINCT teacher FROM labels WHERE generation = 4")
    assert taught["teacher"] == rows[2]["student"]
    (snapshot,) = query(copy, "SELECT initialised_from FROM snapshots WHERE generation = 4")
    assert snapshot["initialised_from"] == rows[2]["student"]


def test_rolled_back_it_goes_on_from_the_older_network(copy: Path) -> None:
    flywheel_json("rollback", "gen/1", "--registry", copy, "--reason", "lost to its parent", "--yes")
    said = flywheel_json("run", "--registry", copy, "--generations", "1")
    assert [(row["generation"], row["parent"]) for row in said["generations"]] == [(3, 1)]
    students = {row["generation"]: row["student"] for row in flywheel_json("history", "--registry", copy)}
    teachers = {
        row["generation"]: row["teacher"] for row in query(copy, "SELECT DISTINCT generation, teacher FROM labels")
    }
    assert teachers == {1: students[0], 3: students[1]}


def test_dvc_repro_by_hand_in_a_clone_gives_the_recorded_digests(
    campaign: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    recorded, made_again, _ = made_again_by_hand(campaign[0], tmp_path / "clone")
    assert made_again == recorded


def test_the_report_shows_boards_ratings_and_blunders(campaign: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    flywheel("report", "--registry", campaign[0], "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("Elo by generation", "Wins kept by generation", "Wins kept by runtime budget", "perfect play at 0"):
        assert words in page
    positions = query(campaign[0], "SELECT board, line FROM analyses WHERE generation = 2")
    assert len(positions) == 6
    for row in positions:
        assert page.count(f"to move: {row['board']}</title>") == 2, "alone and by search"
        assert f"line: <code>{row['line']}</code>" in page
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert "plays at once" in page or "playing at once" in page


def play(registry: Path, lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "play", "--registry", str(registry), *arguments],
        input=lines, capture_output=True, text=True, env=environment(), timeout=120, check=False,
    )  # fmt: skip


def test_a_person_plays_a_game_to_its_end(campaign: tuple[Path, dict[str, Any]]) -> None:
    """All cells are tried in turn, the first twice: those that are taken are refused, and the game ends."""
    cells = "b2\n" + "\n".join(f"{letter}{number}" for number in (2, 1, 3) for letter in "bac") + "\n"
    done = play(campaign[0], cells, "--model", "gen/2", "--budget", "16", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["model"], told["budget"]) == ("gen/2", 16)
    assert told["winner"] in {"you", "model"}
    assert len(told["moves"]) == len(set(told["moves"])) == sum(mark in "XO" for mark in told["board"])
    assert "b2 is taken; enter a cell" in done.stderr


def test_bad_input_is_told_and_the_game_goes_on(campaign: tuple[Path, dict[str, Any]]) -> None:
    done = play(campaign[0], "z9\nhello\nb2\nback\nquit\n", "--side", "first", "--budget", "0")
    assert done.returncode == 0, done.stderr
    assert "got cell 'z9', expected a column a to c" in done.stdout
    assert done.stdout.count("your move:") == 5
    assert "The game was left." in done.stdout
    second = play(campaign[0], "", "--side", "second", "--budget", "8")
    assert second.returncode == 0
    assert "the model plays" in second.stdout
    refused = play(campaign[0], "", "--side", "third")
    assert refused.returncode == 2
    assert "expected first or second" in refused.stderr


def test_matches_between_whoever_is_named(campaign: tuple[Path, dict[str, Any]]) -> None:
    found = flywheel_json(
        "arena", "gen/2@16", "gen/0", "perfect", "random", "--openings", "5", "--registry", campaign[0]
    )
    assert len(found["pairs"]) == 6
    assert all(pair["games"] == 10 for pair in found["pairs"])
    assert len(found["games"]) == 60
    ratings = {row["player"]: row["elo"] for row in found["ratings"]}
    assert ratings["perfect"] == 0.0
    assert ratings["random"] < ratings["gen/2@16"]
    assert found == flywheel_json(
        "arena", "gen/2@16", "gen/0", "perfect", "random", "--openings", "5", "--registry", campaign[0]
    )
    for names, words in (
        (["gen/2"], "got 1 player"), (["gen/2", "gen/9"], "gen/9"), (["gen/2", "you"], "got player 'you'"),
        (["random", "random"], "expected each once"),
        (["gen/1", "gtp:/nowhere/engine"], "no program '/nowhere/engine'"),
    ):  # fmt: skip
        refused = flywheel("arena", *names, "--registry", campaign[0], code=2)
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr


def test_strength_by_generation_adds_up_and_repeats(campaign: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    registry = campaign[0]
    asked = ("strength", "--registry", registry, "--budget", "16", "--openings", "4", "--out")
    document = flywheel_json(*asked, tmp_path / "one")
    assert [row["generation"] for row in document["rows"]] == [0, 1, 2]
    (spent,) = query(
        registry,
        "SELECT sum(flops_policy + flops_prefill + flops_reward + flops_training + flops_padding) AS flops,"
        " (SELECT sum(seconds) FROM ledger) AS seconds FROM ledger WHERE stage IN ('generate', 'train')",
    )
    assert document["rows"][-1]["flops"] == pytest.approx(spent["flops"])
    assert document["rows"][-1]["seconds"] == pytest.approx(spent["seconds"])
    for row in document["rows"]:
        assert row["against_old_search"]["count"] == 8
        assert row["against_perfect"]["count"] == 8
        wins = query(
            registry,
            f"SELECT avg((winner = 'gen/{row['generation']}@32')::INT) AS share FROM matches"
            f" WHERE generation = {row['generation']} AND list_contains([first, second], 'perfect')"
            f" AND list_contains([first, second], 'gen/{row['generation']}@32')",
        )
        assert row["against_perfect"]["value"] == pytest.approx(wins[0]["share"])
    flywheel(*asked, tmp_path / "two", fresh=True)
    for name in ("README.md", "strength.json", "strength.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert "# Hex 3 x 3 from nothing" in (tmp_path / "one" / "README.md").read_text()


def test_what_is_about_texts_is_refused_for_a_game(campaign: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for arguments in (
        ("control", "no-search", "--registry", campaign[0]),
        ("searchers", "gen/2", "--registry", campaign[0], "--out", tmp_path / "searchers"),
        ("compare", "--preset", "hex-3", "--out", tmp_path / "comparison"),
        ("rewards", "--preset", "hex-3", "--out", tmp_path / "rewards"),
        ("export", "gen/2/labels", "--registry", campaign[0], "--out", tmp_path / "export"),
    ):
        refused = flywheel(*arguments, code=2)
        assert "domain hex" in refused.stderr, arguments
        assert "Traceback" not in refused.stderr
    assert not list(tmp_path.iterdir())


def test_a_game_is_refused_for_texts(tmp_path: Path) -> None:
    flywheel("init", "--preset", "smoke", "--registry", tmp_path / "texts")
    refused = flywheel("arena", "random", "perfect", "--registry", tmp_path / "texts", code=2)
    assert "is a registry of countdown, which is no game" in refused.stderr


def test_who_asks_for_hex_gets_its_preset(tmp_path: Path) -> None:
    flywheel("init", "--set", "problems.domain=hex", "--registry", tmp_path / "registry")
    text = (tmp_path / "registry" / "params.yaml").read_text(encoding="utf-8")
    assert "domain: hex" in text
    assert "searcher: gumbel" in text
