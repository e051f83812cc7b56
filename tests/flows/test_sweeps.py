"""Sweeps: what a definition allows, runs that go on after a kill, the tables against the registries, and the arena."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows import stop
from flows.apart import run_module
from flows.sweeps import arena, definition, running
from flows.sweeps.definition import Run
from flywheel.errors import ConfigError, InputError, Interrupted
from storage import lock
from storage.history import history as read_history
from storage.registry import Registry
from tests.flows.command import environment, flywheel, flywheel_json, start, until

SMALL = """
preset: hex-3
seeds: [0, 1]
set:
  generate.simulations: 8
  generate.samples: 1
  generate.unit: 6
  train.epochs: 2
  evaluate.budgets: [2, 8]
  evaluate.openings: 1
  evaluate.match_budget: 2
  execution.shards: 1
families:
  3x3:
    cells:
      w4: {model.hidden_size: 4}
      w8: {model.hidden_size: 8}
    held_back: [w8]
    legs:
      - {generations: 1, set: {generate.problems: 6}}
      - {generations: 1, set: {generate.problems: 12}}
arena: {budgets: [0, 8], openings: 2}
"""
ONE_SEED = SMALL.replace("seeds: [0, 1]", "seeds: [0]")
TEXTS = """
preset: countdown
seeds: [0]
families: {three: {cells: {a: {}}, legs: [{generations: 1}]}}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["hex-quick", "hex", "hex-fixed", "hex-search", "countdown", "countdown-ablations"])
def test_shipped_sweeps_are_recipes(name: str) -> None:
    _, sweep = definition.load(name)
    runs = list(sweep.runs())
    assert len({run.name for run in runs}) == len(runs)
    # Whole replicates come first, so that a sweep that is cut off has some.
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert len(sweep.seeds) >= 3


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("generate.problems: 6", "generate.problms: 6", "did you mean problems?"),
        ("held_back: [w8]", "held_back: [w9]", "holds back w9, which are no cells of it"),
        ("seeds: [0, 1]", "seeds: [1, 1]", "different numbers"),
        ("budgets: [0, 8], openings", "budgets: [0, 16], openings", "and what 3x3-w4-seed-0 evaluates"),
        ("preset: hex-3", "preset: hex-33", "did you mean hex-3?"),
        ("families:", "familes:", "did you mean families?"),
        ("preset: hex-3", "preset: [", "not YAML"),
        ("{generate.problems: 12}", "{seed: 1}", "legs.1.set: seed is what `seeds` lists"),
        ("{model.hidden_size: 4}", "{execution.threads: 2}", "execution.threads is 1, so that"),
        ("{generate.problems: 12}", "{problems.train: 40}", "3x3-w4-seed-0: its `problems` differ"),
    ],
)
def test_bad_definitions_are_refused_in_words(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in SMALL
    with pytest.raises((ConfigError, InputError), match=said.replace("?", r"\?")):
        definition.load(str(written(tmp_path, SMALL.replace(before, after))))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXTS + "arena: {budgets: [0]}", "only hex is played"),
        ("preset: hex-3\nfamilies: {}", "families: got none"),
        (
            "preset: hex-3\nfamilies: {a: {cells: {b-c: {}}, legs: [{generations: 1}]},"
            " a-b: {cells: {c: {}}, legs: [{generations: 1}]}}",
            "two runs would be called a-b-c-seed-0",
        ),
    ],
)
def test_so_are_whole_ones(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        definition.load(str(written(tmp_path, text)))


def test_files_are_named_as_seen_from_the_sweeps_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    changes = "set: {problems.domain: file, problems.path: here.jsonl, model.base: model}"
    path = written(tmp_path, TEXTS + changes)
    (run,) = definition.load(str(path))[1].runs()
    monkeypatch.chdir(tmp_path)
    (as_well,) = definition.load(path.name)[1].runs()
    params = run.params(0)
    assert (params.problems.path, params.model.base) == (str(tmp_path / "here.jsonl"), str(tmp_path / "model"))
    assert run.digest() == as_well.digest()


def test_a_run_beyond_its_sweep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, sweep = definition.load(str(written(tmp_path, SMALL)))
    monkeypatch.setattr(running, "done", lambda _out, _run: 3)
    with pytest.raises(InputError, match=r"up to 3, the sweep makes 2; .* rollback gen/2 --registry .*3x3-w4-seed-0"):
        running.prepare(sweep, tmp_path / "out")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with lock.hold(Registry(tmp_path / "out"), "sweep"):
        errors = flywheel("sweep", written(tmp_path, SMALL), "-o", tmp_path / "out", code=3).stderr
    assert f"held by PID {os.getpid()}" in errors


def test_legs_add_up(tmp_path: Path) -> None:
    runs = list(definition.load(str(written(tmp_path, SMALL)))[1].runs())
    assert [run.name for run in runs] == ["3x3-w4-seed-0", "3x3-w8-seed-0", "3x3-w4-seed-1", "3x3-w8-seed-1"]
    assert [run.held_back for run in runs] == [False, True, False, True]
    assert [runs[1].params(leg).generate.problems for leg in (0, 1)] == [6, 12]
    assert {runs[1].params(leg).model.hidden_size for leg in (0, 1)} == {8}
    assert runs[1].generations == 2


def a_run(cell: str, seed: int, generations: int) -> Run:
    leg = definition.Leg(generations=generations)
    return Run("f", cell, seed, False, "hex-3", (leg,), {"seed": seed})


def test_pairings_connect_all_players_and_grow_with_their_number() -> None:
    runs = [a_run(cell, seed, 5) for cell in ("a", "b", "c") for seed in (0, 1, 2)]
    budgets = (0, 4, 16)
    met = list(arena.pairings(runs, budgets, perfect=True))
    assert len(met) == len({frozenset(pair) for pair in met})
    players = {arena.name(run.name, g, b) for run in runs for g in range(6) for b in budgets}
    reached, new = {arena.PERFECT}, {arena.PERFECT}
    while new:
        new = {other for pair in met for one, other in (pair, pair[::-1]) if one in new} - reached
        reached |= new
    assert reached == players | {arena.PERFECT}
    assert len(met) < 5 * len(players)


NESTED = """
import os, sys, time
from pathlib import Path
from flows import apart, stop
from flywheel.errors import Interrupted

apart._END_SECONDS = 1.0
here, level = Path.cwd(), int(sys.argv[1])
(here / f"{level}.pid").write_text(str(os.getpid()))
with stop.on_signals():
    if level == 0:
        time.sleep(200)  # It does not heed SIGTERM.
    try:
        apart.run_module("nested", str(level - 1), root=here, environment={**os.environ}, what="a level")
    except Interrupted as error:
        sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_children_end_with_their_parent(tmp_path: Path, number: int, code: int) -> None:
    (tmp_path / "nested.py").write_text(NESTED, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    root = subprocess.Popen([sys.executable, "-m", "nested", "2"], cwd=tmp_path, env=environment(PYTHONPATH=paths))
    until((tmp_path / "0.pid").exists)
    os.kill(root.pid, number)
    assert root.wait(30) == code
    pids = [int((tmp_path / f"{level}.pid").read_text()) for level in (0, 1)]
    until(lambda: not any(_runs(pid) for pid in pids), 10)


def test_what_a_child_leaves_behind_ends_and_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(
        "import subprocess\nfrom pathlib import Path\n"
        "left = [subprocess.Popen(['sleep', '100'], start_new_session=away) for away in (False, True)]\n"
        "Path('pids').write_text(' '.join(str(each.pid) for each in left))\n",
        encoding="utf-8",
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    before = time.monotonic()
    run_module("leaving", root=tmp_path, environment=environment(PYTHONPATH=paths), what="a child")
    assert time.monotonic() - before < 30
    near, far = map(int, (tmp_path / "pids").read_text().split())
    assert (_runs(near), _runs(far)) == (False, True)
    os.kill(far, signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_what_ends_the_main_thread_stops_the_others() -> None:
    with stop.on_signals():
        with pytest.raises(SystemExit), stop.at_termination():
            raise SystemExit
        with pytest.raises(Interrupted):
            stop.check()
    stop.check()


@dataclass(frozen=True)
class Swept:
    """A sweep that was killed in its first run, and went on by the same command."""

    path: Path
    out: Path
    before: str
    """The tag of the first run's generation 1 when it was killed."""
    said: dict[str, Any]

    def registry(self, cell: str) -> Path:
        return self.out / "runs" / f"3x3-{cell}-seed-0"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("sweep")
    path, out = written(folder, ONE_SEED), folder / "out"
    process = start("sweep", path, "-o", out, "--jobs", "1")
    first = out / "runs" / "3x3-w4-seed-0"
    until(lambda: (first / ".git" / "refs" / "tags" / "gen" / "0001").exists() or process.poll() is not None, 200)
    process.kill()
    process.communicate()
    return Swept(path, out, _tag(first, 1), flywheel_json("sweep", path, "-o", out, fresh=True))


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on(swept: Swept) -> None:
    # All that it had started had ended with it, or the same command would have found the registry held.
    games = pq.read_table(swept.out / "games.parquet").to_pylist()
    assert (swept.said["runs left"], swept.said["games"]) == (0, len(games))
    assert _tag(swept.registry("w4"), 1) == swept.before
    # Every pair plays every opening once from either side.
    played = [(game["first"], game["second"], game["opening"]) for game in games]
    assert len(played) == len(set(played)) > 0
    assert {(second, first, opening) for first, second, opening in played} == set(played)


@pytest.mark.slow
def test_its_tables_say_what_the_registries_say(swept: Swept) -> None:
    rows = pq.read_table(swept.out / "results.parquet").to_pylist()
    assert {(row["run"], row["held_back"]) for row in rows} == {("3x3-w4-seed-0", False), ("3x3-w8-seed-0", True)}
    for cell in ("w4", "w8"):
        _are_what_the_registry_says([row for row in rows if row["cell"] == cell], swept.registry(cell))
    shown = flywheel("fit", swept.out, "--draws", "20").stdout
    assert "| 3x3 |" in shown
    assert {"fits.json", "frontier.svg", "frontier.png"} <= {held.name for held in swept.out.iterdir()}


@pytest.mark.slow
def test_another_recipe_is_refused(swept: Swept, tmp_path: Path) -> None:
    _, other = definition.load(str(written(tmp_path, ONE_SEED.replace("train.epochs: 2", "train.epochs: 3"))))
    with pytest.raises(InputError, match="holds 3x3-w4-seed-0, 3x3-w8-seed-0 by another recipe"):
        running.prepare(other, swept.out)


@pytest.mark.slow
def test_where_nothing_is_left_to_do_no_server_starts(swept: Swept) -> None:
    def state() -> dict[str, bytes | int]:
        tables = {name: (swept.out / name).read_bytes() for name in ("results.parquet", "games.parquet")}
        return {**tables, "log": (swept.out / ".flywheel" / "logs" / "prefect-server.log").stat().st_ino}

    before = state()
    shutil.rmtree(swept.registry("w8") / "student")
    assert flywheel_json("sweep", swept.path, "-o", swept.out) == swept.said
    assert state() == before


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_costs_the_others_nothing(swept: Swept, tmp_path: Path) -> None:
    path, out = written(tmp_path, SMALL), tmp_path / "out"
    shutil.copytree(swept.out, out, symlinks=True)
    (out / "results.parquet").unlink()
    blocked = [out / "runs" / f"3x3-{cell}-seed-1" for cell in ("w4", "w8")]
    for folder in blocked:
        folder.mkdir()
        (folder / "in the way").touch()
    done = flywheel("sweep", path, "-o", out, code=2)
    for folder in blocked:
        assert f"run {folder.name} ended with 2: {folder} exists and is not an empty folder" in done.stderr
    assert "Runs left: 2." in done.stdout
    assert set(pq.read_table(out / "results.parquet")["run"].to_pylist()) == {"3x3-w4-seed-0", "3x3-w8-seed-0"}


def test_a_run_that_a_cap_ends_is_an_error_and_no_next_leg_begins(tmp_path: Path) -> None:
    """The next leg would make by its own recipe what the table counts to the one before."""
    capped = SMALL.replace("seeds: [0, 1]", "seeds: [0]").replace(
        "shards: 1\n", "shards: 1\n  campaign.max_flops: 1.0\n"
    )
    done = flywheel("sweep", written(tmp_path, capped), "-o", tmp_path / "out", code=2)
    assert done.stderr.count("ended with gen/0 of 1 generations: a cap or a plateau under `campaign`") >= 1
    assert Registry.open(tmp_path / "out" / "runs" / "3x3-w4-seed-0").head_generation() == 0
    assert "Runs left: 2." in done.stdout


def _tag(registry: Path, generation: int) -> str:
    """The object of a generation's tag."""
    command = ["git", "rev-parse", f"gen/{generation:04d}"]
    return subprocess.run(command, cwd=registry, capture_output=True, text=True, check=True).stdout.strip()


def _are_what_the_registry_says(rows: list[dict[str, Any]], registry: Path) -> None:
    history = read_history(Registry.open(registry))
    assert {(row["generation"], row["snapshot"]) for row in rows} == {(h["generation"], h["student"]) for h in history}
    for row in rows:
        until_then = [h["stages"] for h in history if h["generation"] <= row["generation"]]
        assert row["label_flops"] == pytest.approx(sum(stages["generate"] for stages in until_then))
        assert row["training_flops"] == pytest.approx(sum(stages["train"] for stages in until_then))
        assert row["evaluation_flops"] == pytest.approx(sum(stages["evaluate"] for stages in until_then))
        key = "greedy" if row["budget"] == 0 else f"search@{row['budget']}"
        measured = history[row["generation"]]["metrics"]["test"][key]
        assert [row[name] for name in ("value", "low", "high", "count")] == [
            measured[name] for name in ("value", "low", "high", "count")
        ]
        assert sum(row["outcomes"]) / len(row["outcomes"]) == pytest.approx(row["value"])
    assert {row["tag_object"] for row in rows if row["generation"] == 2} == {_tag(registry, 2)}
