"""Killed anywhere, a registry is mended at the next start and ends as if nothing had happened.

The kills are real: a child process is sent SIGKILL at its n-th system step (starting a program, renaming a file), for
n over the whole of begin, publish and rollback. No hook for that is in the product.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flywheel.errors import RegistryBusy
from storage import lock
from storage.cache import cache_path
from storage.history import published
from storage.prepare import unfinished
from storage.recovery import recover
from storage.registry import Registry, read_state
from storage.rollback import rollback
from storage.tables import file_md5
from tests.storage import sample

DRIVER = """
import os, signal, subprocess, sys
from pathlib import Path
steps, last = 0, int(sys.argv[3])

def watch(call):
    def step(*arguments, **options):
        global steps
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return step

from flywheel.params import load
from storage import lock
from storage.publish import publish
from storage.recovery import recover
from storage.registry import Registry
from storage.rollback import rollback
from tests.storage import sample
registry = Registry.open(Path(sys.argv[1]))
subprocess.run, os.replace = watch(subprocess.run), watch(os.replace)
with lock.hold(registry, "a run to be killed"):
    recover(registry)
    if sys.argv[2] == "generation":
        params = sample.begin_generation(registry, load(registry.layout.params, sys.argv[4:]))
        written = registry.layout.work(params.generation) / "written"
        if not written.exists():  # as a stage whose stamp says that it is done
            sample.write_outputs(registry, params)
            written.parent.mkdir(parents=True, exist_ok=True)
            written.touch()
        publish(registry, params, sample.REVISION)
    else:
        rollback(registry, 1, "a reason")
print(steps)
"""


def _drive(registry: Registry, what: str, last: int, *overrides: str) -> int | None:
    """Run until step `last` and be killed there (None), or to the end (the number of steps)."""
    command = [sys.executable, "-c", DRIVER, str(registry.root), what, str(last), *overrides]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == -signal.SIGKILL:
        return None
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def _recover(registry: Registry) -> list[str]:
    with lock.hold(registry, "recover"):
        return recover(registry)


@pytest.mark.slow
def test_a_generation_killed_again_and_again_ends_the_same(fresh: Callable[..., Registry]) -> None:
    calm, killed = fresh(1, "calm"), fresh(1, "killed")
    steps = _drive(calm, "generation", -1)
    assert steps is not None
    kills = 0
    # Each life gets a little further than the one before; steps that are done are not repeated.
    for last in range(8, 3 * steps, 5):
        if _drive(killed, "generation", last) is not None:
            break
        kills += 1
    assert kills >= 4
    assert killed.generations() == [0, 1]
    assert _git(killed.root, "rev-parse", "gen/0001^{tree}") == _git(calm.root, "rev-parse", "gen/0001^{tree}")
    assert _git(killed.root, "rev-list", "--count", "HEAD") == _git(calm.root, "rev-list", "--count", "HEAD")
    for table in published(killed, 1)["tables"].values():
        for file in table["files"]:
            assert file_md5(cache_path(killed, file["md5"])) == file_md5(killed.root / file["path"]) == file["md5"]
    killed.check_clean()
    assert _recover(killed) == []


@pytest.mark.slow
def test_supervision_switched_on_and_off_survives_kills(fresh: Callable[..., Registry]) -> None:
    """On (dvc.yaml is rewritten), with a judge (judge.dvc comes), off (both go): each generation killed again and
    again ends as the one left alone."""
    calm, killed = fresh(1, "calm"), fresh(1, "killed")
    for overrides in (
        ["supervise.enabled=true"],
        ["supervise.enabled=true", "reward.name=process", "filter.threshold=0.7"],
        ["supervise.enabled=false", "reward.name=exact"],
    ):
        steps = _drive(calm, "generation", -1, *overrides)
        assert steps is not None
        kills = 0
        for last in range(9, 3 * steps, 9):
            if _drive(killed, "generation", last, *overrides) is not None:
                break
            kills += 1
            _recover(killed)
            if killed.generations() == calm.generations():
                break
        assert kills >= 3
        assert killed.generations() == calm.generations()
        tag = f"gen/{calm.head_generation():04d}"
        assert _git(killed.root, "rev-parse", f"{tag}^{{tree}}") == _git(calm.root, "rev-parse", f"{tag}^{{tree}}")
        assert _recover(killed) == []
        killed.check_clean()
        assert _git(killed.root, "status", "--porcelain") == ""
    assert killed.generations() == [0, 1, 2, 3]
    assert published(killed, 2)["judge"]["generation"] == 1
    assert not (killed.root / "judge.dvc").exists()
    assert not killed.layout.judge.exists()


@pytest.mark.slow
def test_a_rollback_killed_anywhere_is_finished_or_undone(fresh: Callable[..., Registry]) -> None:
    steps = _drive(fresh(4, "calm"), "rollback", -1)
    assert steps is not None
    finished = undone = 0
    for last in (steps - 13, steps - 5, steps - 1):
        registry = fresh(4, f"killed-{last}")
        assert _drive(registry, "rollback", last) is None
        done = _recover(registry)
        assert read_state(registry) == {}
        registry.check_clean()
        generation = registry.head_generation()
        finished += any("finished the rollback" in sentence for sentence in done)
        undone += any("took back" in sentence for sentence in done)
        model = (registry.layout.student / "model.safetensors").read_bytes()
        assert f"student-{generation}-".encode() in model
        assert generation in {1, 3}
    assert finished
    assert undone


def test_a_commit_without_its_tag_is_tagged(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    _git(registry.root, "tag", "-d", "gen/0003")
    assert registry.head_generation() == 2
    assert _recover(registry) == ["tagged generation 3, whose commit was made before the process ended"]
    assert registry.head_generation() == 3
    assert _recover(registry) == []


def test_files_lost_by_a_killed_dvc_come_back(fresh: Callable[[int], Registry]) -> None:
    from storage import dvc, publish

    registry = fresh(1)
    params = sample.begin_generation(registry)
    sample.write_outputs(registry, params)
    noted = publish._note_outputs(registry, params)
    dvc.commit(registry)
    # DVC unlinks each file and links it from the cache; killed in between, it leaves neither in the folder.
    lost = [registry.layout.student / "model.safetensors", registry.root / "labels/0001/labels/part-00000.parquet"]
    for path in lost:
        path.unlink()
    done = _recover(registry)
    assert done == [
        "put back labels/0001/labels/part-00000.parquet from the cache",
        "put back student/model.safetensors from the cache",
    ]
    assert file_md5(lost[0]) == noted["student"]["model.safetensors"]
    publish.publish(registry, params, sample.REVISION)
    assert published(registry, 1)["labels"]["kept"] == sample.LABELS + 1


def test_stale_locks_and_drafts_go(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(1)
    (registry.root / ".git" / "index.lock").touch()
    (registry.root / ".git" / "refs" / "heads" / "main.lock").touch()
    rwlock = registry.root / ".dvc" / "tmp" / "rwlock"
    # A PID that lives, but is no DVC: this test itself.
    rwlock.write_text(json.dumps({"write": {"x": {"pid": os.getpid(), "cmd": "dvc commit"}}}), encoding="utf-8")
    draft = registry.layout.lineage / ".teacher.json.0123abcd"
    draft.write_text("{", encoding="utf-8")
    (registry.layout.tmp / "half").mkdir(parents=True)
    done = " ".join(_recover(registry))
    assert ".git/index.lock, .git/refs/heads/main.lock" in done
    assert "rwlock" in done
    assert "half-written .teacher.json.0123abcd" in done
    assert not draft.exists()
    assert not any(registry.layout.tmp.iterdir())
    rwlock.write_text("", encoding="utf-8")
    assert _recover(registry) == ["removed .dvc/tmp/rwlock, left by a DVC that was killed"]
    sample.make_generation(registry)


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs a /proc that lists processes")
def test_a_live_git_of_the_user_keeps_its_lock(fresh: Callable[[int], Registry], tmp_path: Path) -> None:
    registry = fresh(1)
    open_in_editor = tmp_path / "editing"
    environment = {**os.environ, "GIT_EDITOR": f"touch {open_in_editor}; sleep 60 #"}
    command = ["git", "commit", "-q", "--allow-empty"]
    process = subprocess.Popen(command, cwd=registry.root, env=environment, start_new_session=True)
    index = registry.root / ".git" / "index.lock"
    try:
        while not open_in_editor.exists():
            assert process.poll() is None
            time.sleep(0.01)
        index.touch()
        with pytest.raises(RegistryBusy, match=rf"PID {process.pid}.*index\.lock"):
            _recover(registry)
        assert index.exists()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "removed .git/index.lock" in " ".join(_recover(registry))


def test_what_was_dropped_leaves_no_scratch(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    sample.begin_generation(registry)
    for generation in (2, 4, 9):
        registry.layout.work(generation).mkdir(parents=True)
    assert _recover(registry) == []
    assert [path.name for path in (registry.layout.local / "work").iterdir()] == ["0004"]
    assert unfinished(registry) is not None
    rollback(registry, 1, "drop it")
    shutil.rmtree(registry.layout.tmp, ignore_errors=True)
    assert _recover(registry) == []
