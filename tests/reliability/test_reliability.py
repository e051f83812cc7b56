"""A sample of `make reliability`, and the judge itself: what it must not let pass.

Cases are chosen by what the killed process was about to do, so that they stay where it hurts when steps come and go.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from storage.recovery import recover
from storage.registry import Registry, write_state
from tests.reliability import checks, faults, situations
from tests.reliability.injection import Fault, Outcome, Twin, calm, copy, endure, environment, inject
from tests.reliability.operations import REGISTRY
from tests.reliability.page import name_of, page
from tests.reliability.scenarios import by_name

Prepare = Callable[[str], tuple[Twin, Path]]
ALONE = ("sh", "-c", ': > "$0"; kill -9 $$', "{hit}")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """`prepared("next")`: the scenario's calm twin and its base."""
    folder = tmp_path_factory.mktemp("reliability")

    @cache
    def base_of(name: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            for key, value in environment().items():
                patch.setenv(key, value)
            scenario = by_name(name)
            base = folder / scenario.base.__name__
            if not base.exists():
                scenario.base(base)
        return base

    @cache
    def prepare(name: str) -> tuple[Twin, Path]:
        base = base_of(name)
        return calm(by_name(name), base, folder / f"twin-{name}", traced=False), base

    return prepare


def step(twin: Twin, process: str, words: str) -> int:
    """Which step of a process this is."""
    found = [n for n, done in enumerate(faults.changes(twin.steps[process]), 1) if done.startswith(words)]
    assert found, f"{process} never comes to {words!r}: {twin.steps[process]}"
    return found[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "process", "words", "action", "survives"),
    [
        ("next", "product", "os.rename lineage/champion.json", "kill", "old"),
        ("next", "product", "subprocess.Popen git tag", "kill", "old"),
        ("next", "dvc commit", "os.link .dvc/cache/files", "kill both", "old"),
        ("next", "dvc commit", "os.rename .dvc/cache/files", "full", "old"),
        ("rollback", "product", "subprocess.Popen git commit", "kill", "old"),
        ("rollback", "dvc checkout", "os.link student/", "kill both", "new"),
    ],
)
def test_a_fault_leaves_the_old_or_the_new_and_loses_nothing(
    prepared: Prepare, tmp_path: Path, scenario: str, process: str, words: str, action: str, survives: str
) -> None:
    twin, base = prepared(scenario)
    fault = Fault(action, process, step(twin, process, words), action)
    outcome = inject(by_name(scenario), fault, twin, base, tmp_path / "case")
    assert outcome.violations == []
    assert (outcome.hit, outcome.survived, outcome.lost) == (True, survives, checks.Lost(0, 0))


@pytest.mark.slow
def test_dvc_is_ended_where_a_full_disk_keeps_it_from_ending(prepared: Prepare, tmp_path: Path) -> None:
    """Its SQLite cannot write, and it would ask it again for ever."""
    if not faults.can_mount(tmp_path):
        pytest.skip("needs a file system of its own")
    twin, base = prepared("next")
    filled = step(twin, "dvc commit", "open .dvc/cache/runs")
    fault = Fault(faults.FILLED, "dvc commit", filled, "fill", spare=65536, mounted=True)
    outcome = inject(by_name("next"), fault, twin, base, tmp_path / "case")
    assert (outcome.hit, outcome.survived, outcome.violations) == (True, "old", [])


@pytest.mark.slow
def test_a_git_that_is_killed_has_not_said_no(prepared: Prepare, tmp_path: Path) -> None:
    """The one that asks whether the rollback's commit is there: taken for a no, the folders would stay behind HEAD."""
    twin, base = prepared("rollback")
    asked = [words for words in twin.steps["product"] if "git rev-parse" in words or "git commit" in words]
    number = asked.index("subprocess.Popen git commit") + 1  # the first after the commit: whether it is there
    fault = Fault(faults.CHILD, f"start git rev-parse {number}", 0, ALONE)
    outcome = inject(by_name("rollback"), fault, twin, base, tmp_path / "case")
    assert (outcome.hit, outcome.violations) == (True, [])


@pytest.mark.slow
def test_a_live_lock_is_never_taken(prepared: Prepare, tmp_path: Path) -> None:
    where = ".flywheel/lock of another process"
    found = [s for s in situations.situations(tmp_path) if (s.where, s.scenario) == (where, "rollback")]
    twin, base = prepared("rollback")
    outcome = endure(by_name("rollback"), found[0], twin, base, tmp_path / "case")
    assert (outcome.violations, outcome.survived) == ([], "old")


@pytest.fixture
def finished(prepared: Prepare, tmp_path: Path) -> tuple[Path, Twin]:
    """A registry that holds what its twin holds."""
    twin, base = prepared("rollback")
    copy(base, tmp_path)
    same = dataclasses.replace(twin, after=twin.before or twin.after)
    assert checks.difference(tmp_path / REGISTRY, same.after) == []
    return tmp_path / REGISTRY, same


def test_an_upgrade_cut_off_before_its_commit_is_taken_back(finished: tuple[Path, Twin]) -> None:
    root, twin = finished
    marker = root / "flywheel.json"
    values = json.loads(marker.read_text(encoding="utf-8"))
    marker.write_text(json.dumps({**values, "registry_version": 1}), encoding="utf-8")
    (root / "anchors.json").write_text("{}", encoding="utf-8")
    subprocess.run(["git", "-C", root, "add", "anchors.json"], check=True)
    registry = Registry.open(root)
    assert recover(registry) == ["took back an upgrade that was cut off before its commit; ask for it again"]
    assert checks.difference(root, twin.after) == []
    assert not (root / "anchors.json").exists()
    marker.write_text(json.dumps({**values, "registry_id": "another"}), encoding="utf-8")
    assert recover(registry) == []
    assert json.loads(marker.read_text(encoding="utf-8"))["registry_id"] == "another"


def test_a_pull_cut_off_before_the_folders_followed_is_finished(finished: tuple[Path, Twin]) -> None:
    root, twin = finished
    registry = Registry.open(root)
    commit = subprocess.check_output(["git", "-C", root, "rev-parse", "HEAD"], text=True).strip()
    write_state(registry, pull={"from": commit, "to": commit})
    shutil.rmtree(root / "student")
    (root / "params.yaml").unlink()
    assert recover(registry) == ["finished a pull that was cut off"]
    assert checks.difference(root, twin.after) == []


def test_the_judge_sees_objects_that_are_gone_or_damaged(finished: tuple[Path, Twin]) -> None:
    root, twin = finished
    victim = next(path for path in (root / ".dvc" / "cache" / "files" / "md5").rglob("*") if path.suffix == ".dir")
    text = victim.read_bytes()
    victim.unlink()
    assert "is not in the cache" in " ".join(checks.damage(root, twin.after, twin.after))
    victim.write_bytes(text + b" ")
    assert "is damaged in the cache" in " ".join(checks.damage(root, twin.after, twin.after))


def test_the_judge_sees_tags_and_commits_that_should_not_be(finished: tuple[Path, Twin]) -> None:
    root, twin = finished
    subprocess.run(["git", "-C", root, "tag", "-d", "gen/0003"], check=True, capture_output=True)
    assert "tags went away" in checks.damage(root, twin.after, twin.after)[0]
    subprocess.run(["git", "-C", root, "tag", "gen/0003", "HEAD"], check=True)
    assert "gen/0003 is a commit" in checks.damage(root, twin.after, twin.after)[0]
    subprocess.run(["git", "-C", root, "tag", "-f", "-a", "-m", "x", "gen/0003", "gen/0002"], check=True)
    assert "gen/0003 is a tag" in checks.damage(root, twin.after, twin.after)[0]


def test_the_judge_sees_what_is_left_behind(finished: tuple[Path, Twin]) -> None:
    root, twin = finished
    (root / ".git" / "index.lock").touch()
    (root / "lineage" / ".champion.json.0123abcd").touch()
    (root / "student" / "model.safetensors").unlink()
    (root / "metrics.json").write_text("{}", encoding="utf-8")
    found = " ".join(checks.difference(root, twin.after))
    assert "left behind: .git/index.lock, lineage/.champion.json.0123abcd" in found
    assert "student/ is not what HEAD records" in found
    assert "git status is not clean" in found


def test_the_judge_counts_labels(finished: tuple[Path, Twin]) -> None:
    root, twin = finished
    ids = twin.after.labels["gen/0002"]
    path = root / "labels" / "0002" / "labels" / "part-00000.parquet"
    assert tuple(pq.ParquetFile(path).read(["label_id"])["label_id"].to_pylist()) == ids
    one_more = dataclasses.replace(twin.after, labels={**twin.after.labels, "gen/0002": (*ids, "another")})
    one_less = dataclasses.replace(twin.after, labels={**twin.after.labels, "gen/0002": ids[1:]})
    assert checks.labels_lost(root, one_more) == checks.Lost(1, 0)
    assert checks.labels_lost(root, one_less) == checks.Lost(0, 1)


def test_the_page_counts_and_a_case_can_be_named(tmp_path: Path) -> None:
    sound = Outcome("next", Fault("SIGKILL", "product", 3, "kill"), True, "old", checks.Lost(0, 0), 1.4)
    missed = dataclasses.replace(sound, hit=False)
    broken = dataclasses.replace(sound, survived="new", lost=checks.Lost(2, 0), violations=["something is gone"])
    text = page([sound, missed, broken], {"next": "a generation"}, 0, "a few", [])
    assert "**2 faults in 1 operations: 1 violation, 2 labels lost, 0 duplicated.**" in text
    assert "| SIGKILL | Flywheel | 2 | 1 | 1 | 2 | 0 | 3 |" in text
    assert f"- `{name_of(broken)}`: something is gone" in text
    assert name_of(broken) == "--only 'next/SIGKILL/product' --step 3"


def test_the_same_seed_gives_the_same_faults_evenly_spread() -> None:
    steps = {"product": [f"open {n}" for n in range(64)], "dvc commit": [f"os.rename {n}" for n in range(64)]}
    twin = Twin(None, checks.Facts({}, {}, 0), steps)
    found = faults.faults(twin, 3, mounting=False)
    assert found == faults.faults(twin, 3, mounting=False)
    assert {fault.step for fault in found if fault.kind == faults.KILLED} == set(range(1, 65))
    early = [fault.step for fault in found[: len(found) // 8] if fault.process == "product"]
    assert {(number - 1) // 16 for number in early} == {0, 1, 2, 3}


def test_a_violation_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.reliability import __main__ as runner

    broken = Outcome("next", Fault("SIGKILL", "product", 1, "kill"), True, "old", checks.Lost(0, 0), 0.0, ["gone"])
    for outcome, code in ((broken, 1), (dataclasses.replace(broken, violations=[]), 0)):
        case = runner.Case("next", outcome.fault, 0.0, lambda _, outcome=outcome: [outcome])  # type: ignore[misc]
        monkeypatch.setattr(runner, "_cases", lambda *_, case=case: [case])
        out = tmp_path / "page.md"
        assert runner.main(["--out", str(out), "--work", str(tmp_path)]) == code
        assert ("## Violations" in out.read_text(encoding="utf-8")) == bool(code)
