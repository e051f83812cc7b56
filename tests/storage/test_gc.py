"""What `gc` takes and leaves: against copies without a remote, `du`, and the remote's own files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flywheel.errors import FlywheelError, InputError, RegistryBusy
from flywheel.params import load
from storage import cache, contents, dropped, dvc, exchange, gc, lock, prepare, remotes, views
from storage.history import history, published
from storage.lineage import lineage, outline
from storage.publish import publish
from storage.registry import Registry
from storage.rollback import rollback
from tests.storage import sample
from tests.storage.conftest import copy_of
from tests.storage.stores import cached, leftovers

Fresh = Callable[[int], Registry]


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def du(registry: Registry) -> int:
    """Bytes of files as `find` counts them, each file once."""
    command = ["find", str(registry.root), "-type", "f", "-printf", r"%D:%i %b\n"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return 512 * sum(int(line.split()[1]) for line in set(lines))


def noted(registry: Registry) -> int:
    """Bytes of the note of what was dropped."""
    return 512 * dropped.path(registry).stat().st_blocks


def files_of(registry: Registry, generation: int, *outputs: str) -> set[str]:
    """Files of a generation's outputs, read from git and DVC's lists by hand."""
    text = git(registry.root, "show", f"gen/{generation:04d}:dvc.lock")
    known = cache.lock_outputs(text)
    found = set()
    for name in outputs or tuple(known):
        if name != "metrics.json":
            found |= {
                entry["md5"] for entry in json.loads(cache.cache_path(registry, known[name].md5).read_text("utf-8"))
            }
    return found


def without_remote(registry: Registry, target: Path) -> Registry:
    alone = copy_of(registry, target)
    (alone.root / ".dvc" / "config.local").unlink()
    return alone


@pytest.fixture
def pushed(made: dict[int, Registry], tmp_path: Path) -> Registry:
    """Four generations, all of them at a remote in the folder `data`; the worktree linked to the cache, as DVC does."""
    subprocess.run(["cp", "-a", made[4].root, tmp_path / "registry"], check=True)
    registry = Registry.open(tmp_path / "registry")
    assert (registry.layout.student / "model.safetensors").stat().st_nlink == 2
    exchange.push(registry, str(tmp_path / "data"))
    return registry


def test_what_the_remote_has_goes_and_the_rest_works_without_it(pushed: Registry, tmp_path: Path) -> None:
    held = cached(pushed)
    told = history(pushed), outline(lineage(pushed, "gen/0/student", "both"))
    attempts = list(views.query(pushed, "FROM attempts ORDER BY attempt_id").rows)
    size = du(pushed)
    planned = gc.plan(pushed, 2).document()
    assert (cached(pushed), du(pushed)) == (held, size)
    done = gc.collect(pushed, 2)
    gone = set(held) - set(cached(pushed))
    # Counted by the system: as planned, as done; what was dropped is written down, which takes a block too.
    assert done["dropped"] == planned["dropped"]
    assert size - du(pushed) == planned["dropped"]["bytes"] - noted(pushed)
    assert size - du(pushed) == done["bytes_before"] - done["bytes_after"]
    assert planned["bytes_before"] == size
    # All that went is at the remote, whole; heavy parts of old generations did go, small tables and lists did not.
    for md5 in gone:
        assert hashlib.md5((tmp_path / "data" / "files" / "md5" / md5[:2] / md5[2:]).read_bytes()).hexdigest() == md5
    heavy = files_of(pushed, 0, "attempts", "student") | files_of(pushed, 1, "attempts")
    assert heavy <= gone
    last = files_of(pushed, 2) | files_of(pushed, 3)
    assert not gone & last
    # gen/1's student is champion still and parent of 2 and 3; gen/0's is parent of 1 alone.
    assert not gone & files_of(pushed, 1, "student")
    names = ("labels", "label_parents", "trained_on", "snapshots", "evaluations", "outcomes")
    tables = [published(pushed, number)["tables"] for number in range(4)]
    assert not gone & {file["md5"] for one in tables for name in names for file in one[name]["files"]}
    # What older generations left in the worktree are other names of the same files; they would hold the room.
    left = {path.relative_to(pushed.root).as_posix() for path in (pushed.root / "labels").rglob("*.parquet")}
    assert "labels/0001/labels/part-00000.parquet" in left
    assert "labels/0001/rejected/part-00000.parquet" not in left
    assert "labels/0003/rejected/part-00000.parquet" in left
    assert sorted(gone) == json.loads(dropped.path(pushed).read_text("utf-8"))["dropped"]
    assert leftovers(pushed) == []
    assert gc.collect(pushed, 2)["dropped"]["objects"] == 0
    # With no remote at all: history, lineage, labels of old, the last generations whole, and the next one.
    alone = without_remote(pushed, tmp_path / "alone")
    assert (history(alone), outline(lineage(alone, "gen/0/student", "both"))) == told
    assert list(views.query(alone, "SELECT count(*) AS n FROM labels", at=0).rows) == [{"n": sample.LABELS}]
    rollback(alone, 2, "the last ones are whole")
    assert json.loads(dvc.run(alone, "status", "--json")) == {}
    rollback(alone, 3, "and back")
    assert sample.make_generation(alone).generation == 4
    # With it: what went comes back when asked for, and is no longer dropped.
    assert list(views.query(pushed, "FROM attempts ORDER BY attempt_id").rows) == attempts
    assert not set(json.loads(dropped.path(pushed).read_text("utf-8"))["dropped"]) & set(cached(pushed))
    rollback(pushed, 0, "all the way")
    assert b"student-0-0" in (pushed.layout.student / "model.safetensors").read_bytes()


def test_tables_go_too_when_asked(pushed: Registry) -> None:
    old = published(pushed, 0)["tables"]
    gc.collect(pushed, 1, tables=True)
    left = cached(pushed)
    assert old["evaluations"]["files"][0]["md5"] not in left
    # The next student's window is all labels there are; lineage needs trained_on, and has it brought.
    assert all(published(pushed, number)["tables"]["labels"]["files"][0]["md5"] in left for number in range(4))
    assert list(views.query(pushed, "SELECT count(DISTINCT snapshot) AS n FROM trained_on").rows) == [{"n": 4}]
    assert old["trained_on"]["files"][0]["md5"] in cached(pushed)
    sample.make_generation(pushed)


def short_window(registry: Registry) -> Registry:
    """Its recipe, committed by hand, lets students learn from their own labels and those of one generation before."""
    params = registry.layout.params
    text = params.read_text("utf-8")
    assert "window: null" in text
    params.write_text(text.replace("window: null", "window: 2"), "utf-8")
    git(registry.root, "commit", "-qam", "A shorter window")
    return registry


def test_a_short_window_lets_old_labels_go(fresh: Fresh, tmp_path: Path) -> None:
    registry = short_window(fresh(4))
    exchange.push(registry, str(tmp_path / "data"))
    gc.collect(registry, 1, tables=True)
    there = [published(registry, n)["tables"]["labels"]["files"][0]["md5"] in cached(registry) for n in range(4)]
    assert there == [False, False, False, True]
    assert sample.make_generation(without_remote(registry, tmp_path / "alone")).generation == 4


def test_without_a_remote_only_orphans_go(fresh: Fresh) -> None:
    registry = fresh(4)
    held = cached(registry)
    # Work that was dropped: published objects of another line of the same names are not touched.
    orphan = b"left by a run that was dropped"
    folder = cache.cache_folder(registry.root) / "files" / "md5" / "ab"
    folder.mkdir(exist_ok=True)
    (folder / ("0" * 30)).write_bytes(orphan)
    (folder / ("1" * 30 + ".dir")).write_bytes(b"[]")
    young, old = folder / ".young.tmp", folder / ".old.tmp"
    young.write_bytes(b"x")
    old.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    done = gc.collect(registry, 1)
    assert cached(registry).keys() == {*held, "ab.young.tmp"}
    assert done["orphans"]["objects"] == 3
    assert (done["dropped"]["objects"], done["lost"]["objects"]) == (0, 0)
    assert done["unpushed"]["objects"] > 0
    size = du(registry)
    again = gc.collect(registry, 1, unpushed=True)
    assert again["lost"] == again["dropped"] == done["unpushed"]
    assert size - du(registry) == done["unpushed"]["bytes"] - noted(registry)
    assert dropped.read(registry).lost == set(held) - set(cached(registry))
    assert sample.make_generation(registry).generation == 4


def test_only_what_the_remote_has_now_goes(pushed: Registry, tmp_path: Path) -> None:
    """A note of what once was sent would not do."""
    objects = sorted(files_of(pushed, 0, "attempts", "student"))
    first, second = (tmp_path / "data" / "files" / "md5" / md5[:2] / md5[2:] for md5 in objects[:2])
    first.unlink()
    body = second.read_bytes()
    second.unlink()
    second.write_bytes(body[:-1])
    gc.collect(pushed, 1)
    assert set(objects[:2]) <= set(cached(pushed))
    assert not set(objects[2:]) & set(cached(pushed))
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    held = cached(pushed)
    with pytest.raises(FlywheelError, match="is its disk mounted"):
        gc.collect(pushed, 1)
    assert cached(pushed) == held


def test_lines_that_were_left_tags_and_aliases_stay_whole(fresh: Fresh, tmp_path: Path) -> None:
    """0 -- 1 -- 4 -- 5 and 2 -- 3, which was left; a user likes 1, MLflow's alias names 0."""
    from storage import mlflow, mlflow_run, tracking

    registry = fresh(4)
    rollback(registry, 1, "elsewhere")
    sample.make_generation(registry)
    sample.make_generation(registry)
    exchange.push(registry, str(tmp_path / "data"))
    everything = {number: files_of(registry, number) for number in range(6)}
    own = {
        number: everything[number] - set().union(*(everything[n] for n in range(6) if n != number))
        for number in everything
    }
    git(registry.root, "tag", "liked", "gen/0001^{commit}")
    document = published(registry, 0)
    tracking.record(registry.layout, document, {}, {"seed": 0}, "run", "gen/0000", None, 1.0)
    client = mlflow.client(registry.layout)
    assert client.get_registered_model(mlflow_run.MODEL).aliases == {"champion": 1}
    gc.collect(registry, 1)
    left = set(cached(registry))
    whole = [number for number in range(6) if own[number] <= left]
    assert whole == [0, 1, 3, 5]
    assert not own[2] <= left
    git(registry.root, "tag", "-d", "liked")
    client.delete_registered_model_alias(mlflow_run.MODEL, "champion")
    gc.collect(registry, 1)
    assert [number for number in range(6) if own[number] <= set(cached(registry))] == [3, 5]
    # What a user keeps with DVC in a file of its own is the user's.
    (registry.root / "notes.bin").write_bytes(b"mine")
    dvc.run(registry, "add", "-q", "notes.bin")
    git(registry.root, "add", "-f", "notes.bin.dvc")
    git(registry.root, "commit", "-qm", "Keep notes")
    exchange.push(registry)
    git(registry.root, "rm", "-q", "notes.bin.dvc")
    git(registry.root, "commit", "-qm", "No notes")
    gc.collect(registry, 1)
    assert b"mine" in cached(registry).values()


def test_an_unfinished_generation_keeps_what_only_the_cache_has(pushed: Registry) -> None:
    """Cut off within `dvc commit`: a file is in the cache and not yet linked back, and no commit names it."""
    params = sample.begin_generation(pushed)
    sample.write_outputs(pushed, params)
    from storage.publish import _note_outputs

    _note_outputs(pushed, params)
    model = pushed.layout.student / "model.safetensors"
    md5 = hashlib.md5(model.read_bytes()).hexdigest()
    path = cache.cache_path(pushed, md5)
    path.parent.mkdir(exist_ok=True)
    model.rename(path)
    assert prepare.unfinished(pushed) is not None
    gc.collect(pushed, 1, tables=True)
    assert hashlib.md5(model.read_bytes()).hexdigest() == md5
    assert publish(pushed, params, sample.REVISION) == "gen/0004"


def test_an_unfinished_generation_keeps_its_own_window(fresh: Fresh, tmp_path: Path) -> None:
    """It was begun with a wider one than the head's recipe says."""
    registry = short_window(fresh(4))
    exchange.push(registry, str(tmp_path / "data"))
    sample.begin_generation(registry, load(registry.layout.params, ["filter.window=null"]))
    gc.collect(registry, 1, tables=True)
    named = json.loads((registry.layout.lineage / "window.json").read_text("utf-8"))["generations"]
    assert [entry["generation"] for entry in named] == [0, 1, 2, 3]
    assert {file["md5"] for entry in named for file in entry["files"]} <= set(cached(registry))


def test_cut_off_half_way_it_is_finished_by_the_next(pushed: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = gc.plan(pushed, 1)
    assert len(planned.drop) > 6
    unlink, count = Path.unlink, 0

    def cut(path: Path, missing_ok: bool = False) -> None:
        nonlocal count
        count += "files/md5" in str(path)
        if count > 4:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", cut)
        with pytest.raises(KeyboardInterrupt):
            gc.collect(pushed, 1)
    assert len(dropped.read(pushed).objects) == 4
    assert not set(planned.drop) - dropped.read(pushed).objects - set(cached(pushed))
    assert gc.collect(pushed, 1)["dropped"]["objects"] == len(planned.drop) - 4
    assert dropped.read(pushed).objects == set(planned.drop)


def test_nothing_goes_while_a_run_is_active_or_others_may_need_it(pushed: Registry, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from storage import lock; from storage.registry import Registry\n"
        "with lock.hold(Registry.open(Path(sys.argv[1])), 'run'): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(pushed.root)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        held = cached(pushed)
        with pytest.raises(RegistryBusy, match=f"PID {child.pid}"):
            gc.collect(pushed, 1)
        child.kill()
    assert cached(pushed) == held
    with pytest.raises(InputError, match="at least 1"):
        gc.plan(pushed, 0)
    shared = tmp_path / "shared"
    shutil.copytree(pushed.root / ".dvc" / "cache", shared)
    dvc.run(pushed, "config", "-q", "--local", "cache.dir", str(shared))
    cache.cache_folder.cache_clear()
    with pytest.raises(InputError, match="may serve other registries"):
        gc.collect(pushed, 1)
    cache.cache_folder.cache_clear()


def test_where_a_list_is_missing_orphans_cannot_be_told(fresh: Fresh, tmp_path: Path) -> None:
    registry = fresh(4)
    exchange.push(registry, str(tmp_path / "data"))
    roots = contents.of(registry, [0])[0].outputs
    path = cache.cache_path(registry, roots["student"].md5)
    path.unlink()
    # The remote has it: it is brought, and the student's files are known by it.
    assert gc.plan(registry, 1).notes == []
    assert path.exists()
    alone = without_remote(registry, tmp_path / "alone")
    cache.cache_path(alone, roots["student"].md5).unlink()
    held = cached(alone)
    done = gc.collect(alone, 1)
    assert (done["orphans"]["objects"], cached(alone)) == (0, held)
    assert "1 lists of files are not in the cache" in done["notes"][0]
    assert lock.holder(alone) is None
    assert remotes.sources(alone) == []
