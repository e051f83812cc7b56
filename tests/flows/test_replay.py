"""A generation made again by the real stages, on the smoke recipe: the verdict, what is left alone, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from flows import replay as replays
from flows.commands.replaying import text_of
from flywheel.errors import ConfigError, FlywheelError, InputError, RegistryError
from flywheel.params import load, parse
from storage import cache, equivalence, git, trust
from storage import replay as recordings
from storage.cache import cache_path
from storage.history import published
from storage.layout import Layout
from storage.registry import Registry, json_text
from storage.schemas import ATTEMPTS
from storage.tables import write_file
from tests.flows.command import environment, flywheel_json, until

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from flows import cli
from flows.commands import replaying
if replaying.replay not in cli.COMMANDS:
    cli.app.command()(replaying.replay)
cli.main()
"""


def command(*arguments: str | Path, **extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**extra), start_new_session=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with generations 0 and 1, never to be changed."""
    registry = tmp_path_factory.mktemp("replayed") / "registry"
    flywheel_json("run", "--preset", "smoke", "--registry", registry, "-n", "1")
    return registry


@dataclass(frozen=True)
class Again:
    """What two replays of generation 1 said and told: as it was made, and with two threads in a clone that is kept."""

    plain: tuple[str, str]
    other: tuple[dict[str, Any], str]
    clone: Path
    left: list[Path]
    """Clones that were not removed."""
    before: dict[str, tuple[int, int]]
    """The registry before."""


@pytest.fixture(scope="module")
def again(campaign: Path, tmp_path_factory: pytest.TempPathFactory) -> Again:
    """Both at once, as no lock is taken. To be read only."""
    folder = tmp_path_factory.mktemp("again")
    before = listing(campaign)
    plain = command("replay", "gen/1", "-r", campaign, TMPDIR=str(folder))
    arguments = ("replay", "gen/1", "-r", campaign, "--keep", folder / "kept", "--set", "execution.threads=2", "--json")
    other = command(*arguments, TMPDIR=str(folder))
    said, told = zip(plain.communicate(timeout=240), other.communicate(timeout=240), strict=True)
    assert (plain.returncode, other.returncode) == (0, 0), told
    left = list(folder.glob("flywheel-*"))
    return Again((said[0], told[0]), (json.loads(said[1]), told[1]), folder / "kept", left, before)


def listing(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in root.rglob("*")}


def test_it_comes_out_as_recorded_and_leaves_the_registry_alone(campaign: Path, again: Again) -> None:
    said, told = again.plain
    assert said.startswith("gen/1 is identical: every output")
    assert said.count("the same") == 8
    for stage in ("problems", "generate", "filter", "train", "evaluate"):
        assert f"gen/1: {stage} made again in" in told
    assert listing(campaign) == again.before
    assert again.left == []


def test_with_other_threads_the_bytes_may_differ_and_the_distribution_does_not(campaign: Path, again: Again) -> None:
    found, told = again.other
    recorded = json.loads((campaign / "lineage" / "0001.json").read_text())
    assert {name: sides["recorded"] for name, sides in found["outputs"].items()} == {
        **recorded["outputs"], "student weights": recorded["student"]["snapshot"],
    }  # fmt: skip
    assert set(found["numerics"]["recorded"]) == set(found["numerics"]["here"]) == {"generate", "train", "evaluate"}
    assert "1 threads" in found["numerics"]["recorded"]["train"]
    assert "2 threads" in found["numerics"]["here"]["train"]
    assert found["code"]["recorded"] == found["code"]["here"]
    assert found["leeway"] == ["generate, train, evaluate: " + _threads(found)]
    assert found["result"] in {"identical", "equivalent"}
    if found["result"] == "equivalent":
        assert {test["test"] for test in found["tests"]} == {equivalence.TEST}
        assert found["differences"]
    else:
        assert found["tests"] == found["differences"] == []
    assert found["kept"] == str(again.clone)
    assert yaml.safe_load((again.clone / "params.yaml").read_text())["execution"]["threads"] == 2
    assert "evaluate made again" in told


def _threads(found: dict[str, Any]) -> str:
    sides = [found["numerics"][side]["train"].rpartition(", ")[2] for side in ("recorded", "here")]
    return f"{sides[0]}; here {sides[1]}"


@pytest.fixture
def judged(campaign: Path, tmp_path: Path) -> Any:
    """A registry that a test may change, a clone with its generation 1 made again byte by byte, and the verdict."""
    registry = tmp_path / "registry"
    shutil.copytree(campaign, registry, symlinks=True)
    opened = Registry.open(registry)
    layout = Layout(tmp_path / "made")
    for name, output in cache.lock_outputs((registry / "dvc.lock").read_text()).items():
        for path, md5 in cache.tree(opened, output).items() if output.cached else {}:
            (layout.root / name / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cache_path(opened, md5), layout.root / name / path)
            (layout.root / name / path).chmod(0o644)
    shutil.copyfile(opened.layout.metrics, layout.metrics)

    def look(numerics: dict[str, str] | None = None) -> dict[str, Any]:
        recorded = recordings.recorded(opened, 1)
        return replays.verdict(opened, layout, load(opened.layout.params), recorded, numerics or recorded.numerics)

    return opened, layout, look


def retag(registry: Registry) -> None:
    git.run(registry.root, "commit", "-qam", "Tamper")
    git.run(registry.root, "tag", "-f", "-a", "-m", "1", "gen/0001")


def change_attempts(layout: Layout, **values: Any) -> list[dict[str, Any]]:
    path = layout.attempts / "part-00000.parquet"
    rows = pq.read_table(path, partitioning=None).to_pylist()
    for row in rows[5:]:
        row |= values
    write_file(path, rows, ATTEMPTS)
    return list(rows)


def test_equal_numerics_and_other_bytes_are_different_and_the_first_row_is_named(judged: Any) -> None:
    _, layout, look = judged
    assert look()["result"] == "identical"
    rows = change_attempts(layout, log_probability=-1.5)
    found = look()
    assert (found["result"], found["leeway"], found["tests"]) == ("different", [], [])
    (one,) = found["differences"]
    assert (one["output"], one["table"], one["only_recorded"], one["only_here"]) == ("attempts", "attempts", 91, 91)
    assert one["first"]["row"] == 5
    assert one["first"]["here"] == {"attempt_id": rows[5]["attempt_id"], "log_probability": -1.5}
    text = text_of({**found, "generation": 1, "seconds": 1.0, "flops": 1.0, "kept": None})
    assert text.startswith("gen/1 is different")
    assert "table attempts: 91 of 96 rows are only recorded, 91 of 96 only here; first at row 5" in text


def test_other_numerics_are_leeway_as_long_as_the_distribution_is_the_same(judged: Any) -> None:
    _, layout, look = judged
    change_attempts(layout, log_probability=-1.5)
    found = look({"generate": "another machine"})
    assert found["result"] == "equivalent"
    assert [test["of"] for test in found["tests"]] == [
        "greedy accuracy", "mean reward of attempts", "labels kept of a problem's attempts",
    ]  # fmt: skip
    assert all(test["p"] == 1.0 for test in found["tests"])
    # All answers right: no threads did that.
    change_attempts(layout, reward=1.0)
    found = look({"generate": "another machine"})
    assert found["result"] == "different"
    assert min(found["tests"], key=lambda test: test["p"])["of"] == "mean reward of attempts"
    text = text_of({**found, "generation": 1, "seconds": 1.0, "flops": 1.0, "kept": None})
    assert "leeway: generate: torch" in text
    assert f"{equivalence.TEST}: mean reward of attempts, here minus recorded +0." in text


def test_a_reward_that_timed_out_is_leeway(judged: Any) -> None:
    _, layout, look = judged
    change_attempts(layout, status="timeout")
    found = look()
    assert found["result"] == "equivalent"
    assert found["leeway"] == ["a reward did not finish in time, which another time it may"]


def test_the_same_rows_in_other_bytes(judged: Any) -> None:
    _, layout, look = judged
    path = layout.attempts / "part-00000.parquet"
    pq.write_table(pq.read_table(path, partitioning=None), path, compression="none")
    assert look()["result"] == "different"
    found = look({"generate": "another pyarrow"})
    assert found["result"] == "equivalent"
    assert [test["test"] for test in found["tests"]] == ["equality"]


@pytest.mark.parametrize("output", ["attempts", "student"])
def test_a_tampered_record_is_not_reproduced(judged: Any, output: str) -> None:
    registry, _, look = judged
    lineage = published(registry, 1)
    md5 = lineage["outputs"][output]
    path = registry.root / "dvc.lock"
    path.write_text(path.read_text().replace(md5, "0" * 32 + ".dir"))
    retag(registry)
    found = look({"generate": "another machine"})
    assert found["result"] == "different"
    assert {one["output"] for one in found["differences"]} == {output}
    assert f"dvc.lock says {'0' * 32}.dir, lineage says {md5}" in found["differences"][0]["why"]


def test_weights_that_lineage_names_wrongly(judged: Any) -> None:
    registry, _, look = judged
    path = registry.layout.published(1)
    lineage = json.loads(path.read_text())
    lineage["student"]["snapshot"] = "f" * 32
    path.write_text(json_text(lineage))
    retag(registry)
    found = look()
    assert found["result"] == "different"
    assert found["outputs"]["student weights"]["recorded"] == "f" * 32
    assert "lineage says that their weights are ffff" in found["differences"][0]["why"]


def test_ctrl_c_removes_the_clone(campaign: Path, tmp_path: Path) -> None:
    before = listing(campaign)
    run = command("replay", "gen/1", "-r", campaign, TMPDIR=str(tmp_path))
    # In the second stage, so that there is something to remove.
    until(lambda: (any(tmp_path.glob("flywheel-replay-*/problems")) and _at_work(tmp_path)) or run.poll() is not None)
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert "the clone was removed, the registry is as it was" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.glob("flywheel-*")) == []
    assert not _at_work(tmp_path)
    assert listing(campaign) == before


def _at_work(folder: Path) -> bool:
    """Whether a process works in a folder below this one."""
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if Path(os.readlink(link)).is_relative_to(folder):
                return True
        except OSError:  # it ended, or is another user's
            continue
    return False


def recipe(registry: Registry, **sections: dict[str, Any]) -> None:
    """Give generation 1 another recipe, after the fact."""
    values = load(registry.layout.params).model_dump(mode="json")
    for name, changes in sections.items():
        values[name].update(changes)
    parse(values)
    registry.layout.params.write_text(yaml.safe_dump(values))
    retag(registry)


def test_what_cannot_be_made_again_is_refused_before_anything_runs(judged: Any, tmp_path: Path) -> None:
    registry = judged[0]
    with pytest.raises(InputError, match=r"gen/0007, which was never published"):
        replays.replay(registry, 7)
    with pytest.raises(InputError, match=r"got --set seed=2, expected execution\.NAME=VALUE"):
        replays.replay(registry, 1, overrides=["seed=2"])
    with pytest.raises(ConfigError, match="unknown key"):
        replays.replay(registry, 1, overrides=["execution.thread=2"])
    with pytest.raises(InputError, match="is not an empty folder"):
        replays.replay(registry, 1, keep=registry.root)
    recipe(registry, generate={"teacher": "/nowhere/model"}, supervise={"enabled": True, "base": "/nowhere/reward"})
    with pytest.raises(ConfigError, match=r"generate.teacher: there is no /nowhere/model(?s:.)*supervise.base: there"):
        replays.replay(registry, 1)
    recipe(
        registry,
        generate={"teacher": "champion"},
        supervise={"enabled": False},
        problems={"domain": "file", "path": "/nowhere/problems.jsonl"},
    )
    with pytest.raises(ConfigError, match=r"problems.path: .*/nowhere/problems.jsonl"):
        replays.replay(registry, 1)


def test_a_clone_runs_no_function_of_its_params_unasked(
    judged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = judged[0]
    recipe(registry, reward={"name": "function", "function": "nowhere_to_be_found:reward"})
    (registry.layout.local / trust.MARK).write_text(json.dumps({"from": "/elsewhere", "trusted": False}))
    with pytest.raises(InputError, match=r"nowhere_to_be_found:reward' would be run(?s:.)*--trust"):
        replays.replay(registry, 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    with pytest.raises(FlywheelError, match=r"generate of gen/0001, made again, ended(?s:.)*nowhere_to_be"):
        replays.replay(registry, 1, trusted=True)
    assert list((tmp_path / "scratch").iterdir()) == [], "also after a failure"


def test_params_of_another_generation_are_refused(judged: Any) -> None:
    registry = judged[0]
    path = registry.layout.params
    path.write_text(path.read_text().replace("generation: 1\n", "generation: 0\n"))
    retag(registry)
    with pytest.raises(RegistryError, match="is that of generation 0"):
        replays.replay(registry, 1)
