"""`verify`: sound registries of every kind pass; what does not hold is found where it is, by name."""

from __future__ import annotations

import json
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from flows.commands import proving
from flywheel.errors import RegistryError
from flywheel.params import load, parse
from storage import cache, clone, gc, lock, remote_settings, remotes, tracking, upgrade
from storage.history import published
from storage.publish import publish
from storage.registry import Registry, write_state
from storage.rollback import exclude, rollback, undo
from storage.verification import objects, repository, tables
from storage.verification import verify as verifying
from storage.verification.findings import Findings
from storage.verification.verify import Verdict, verify
from storage.views import query
from tests.storage import injections, sample
from tests.storage.conftest import copy_of
from tests.storage.forging import forged, git, said

ARCHIVE = Path(__file__).parent / "data" / "version-1.tar.xz"
Fresh = Callable[..., Registry]


def tree_of(root: Path) -> dict[str, tuple[int, int, int]]:
    """Every file below a folder: inode, size, time of its last change."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(path): (held.st_ino, held.st_size, held.st_mtime_ns) for path in paths for held in [path.stat()]}


@pytest.fixture(scope="module")
def supervised(made: dict[int, Registry]) -> Registry:
    """Five generations with reward models, the second of which judges the third, left at 3 and gone on from 1."""
    with pytest.MonkeyPatch.context() as patch:
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Test")
            patch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
        registry = sample.new_registry(
            made[0].root.parent / "verified-supervised", supervise={"enabled": True, "base": None}
        )
        for generation in range(4):
            values = load(registry.layout.params).model_dump(mode="json")
            values["reward"]["name"] = "process" if generation == 2 else "exact"
            values["filter"]["threshold"] = 0.7 if generation == 2 else 1.0
            sample.make_generation(registry, parse(values), promoted=generation != 2)
        rollback(registry, 1, "bad labels")
        sample.make_generation(registry)
    return registry


def test_sound_ones_pass(fresh: Fresh, supervised: Registry) -> None:
    for generations in (0, 1, 4):
        registry = fresh(generations, f"registry-{generations}")
        verdict = verify(registry.root)
        assert said(verdict) == []
        assert verdict.checked["tags"] == generations
    # Against what git and the cache say themselves.
    assert verdict.checked["commits"] == int(git(registry.root, "rev-list", "--count", "--all"))
    assert verdict.checked["anchors"] == 3
    named = injections.named_objects(registry)
    assert verdict.checked["objects"] == len(named)
    files = [cache.cache_path(registry, md5) for md5 in named if not md5.endswith(".dir")]
    assert verdict.checked["bytes"] == sum(path.stat().st_size for path in files)
    tables = [published(registry, generation)["tables"] for generation in range(4)]
    rows = sum(entry["rows"] for one in tables for name, entry in one.items() if name not in {"problems", "excluded"})
    assert verdict.checked["rows"] == rows + tables[0]["problems"]["rows"] + tables[0]["excluded"]["rows"]
    verdict = verify(supervised.root)
    assert said(verdict) == []
    assert verdict.checked["models"] == 2 * 5 + 1


def test_it_leaves_no_trace(fresh: Fresh) -> None:
    registry = fresh(4)
    before = tree_of(registry.root)
    assert verify(registry.root).ok
    assert tree_of(registry.root) == before


def test_after_exclusion_undo_and_another_exclusion(fresh: Fresh) -> None:
    registry = fresh(4)
    exclude(registry, sample.snapshot_of(2), "it cheats")
    assert said(verify(registry.root)) == []
    undo(registry)
    exclude(registry, sample.snapshot_of(1), "it cheats")
    sample.make_generation(registry)
    sample.make_generation(registry)
    assert said(verify(registry.root)) == []
    # Its labels may not be learned by whoever comes after it, whatever its window says.
    document = json.loads(git(registry.root, "show", "HEAD:exclusions.json"))
    assert document["exclusions"][0]["model"] == sample.snapshot_of(1)
    document["exclusions"][0]["labels_kept"] = [0]
    with forged(registry, {"exclusions.json": json.dumps(document)}):
        assert any("lineage/window.json of gen/5" in one for one in said(verify(registry.root, quick=True)))


def test_dropped_objects_are_elsewhere_and_others_are_missed(fresh: Fresh, tmp_path: Path) -> None:
    registry = fresh(4)
    remote_settings.name_data(registry, str(tmp_path / "remote"), None)
    named = set(injections.named_objects(registry))
    remotes.send(registry, named, "all of it")
    done = gc.collect(registry, keep_last=1)
    gone = {md5 for md5 in named if not cache.cache_path(registry, md5).exists()}
    assert gone, done
    verdict = verify(registry.root)
    assert said(verdict) == []
    assert verdict.checked["elsewhere"] == len(gone)
    assert verdict.checked["objects"] == len(named - gone)
    left = sorted(md5 for md5 in named - gone if not md5.endswith(".dir"))[0]
    cache.cache_path(registry, left).unlink()
    (failure,) = verify(registry.root).failures
    assert "not in the cache" in failure.why
    assert "flywheel pull gen/" in failure.fix


def test_a_clone_has_what_its_head_needs(fresh: Fresh, tmp_path: Path) -> None:
    clone.clone(str(fresh(4).root), tmp_path / "clone")
    copied = Registry.open(tmp_path / "clone")
    verdict = verify(copied.root)
    assert said(verdict) == []
    assert verdict.checked["elsewhere"] > 0
    student = published(copied, 3)["outputs"]["student"]
    cache.cache_path(copied, student).unlink()
    assert [one.where for one in verify(copied.root).failures] == ["gen/3/student"]


def test_an_earlier_version(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    old = Registry.open(tmp_path / "version-1")
    verdict = verify(old.root)
    assert said(verdict) == []
    assert verdict.checked["anchors"] == 0
    upgrade.upgrade(old)
    verdict = verify(old.root, quick=True)
    assert said(verdict) == []
    assert verdict.checked["anchors"] == verdict.checked["tags"] == 4
    git(old.root, "tag", "-f", "-a", "-m", "Generation 1", "gen/0001", "gen/0001^{commit}")
    assert ["anchors.json holds" in one for one in said(verify(old.root, quick=True))] == [True]


def test_labels_of_an_earlier_version_are_looked_for_in_the_window(tmp_path: Path) -> None:
    """Its `trained_on` does not say of which generation a label is."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    old, findings = Registry.open(tmp_path / "version-1"), Findings()
    _, _, made = verifying._history(old, repository.refs(old.root), findings)
    held = objects.gather(old, made.values(), findings)
    objects.check(held, 1, True, verifying.silent)
    made[3] = replace(made[3], documents={**made[3].documents, "window": {"generations": []}})
    tables.check_all(held, made.values(), 1, verifying.silent)
    (failure,) = findings.failures
    sql = (
        "SELECT count(*) AS n FROM trained_on t JOIN labels l USING (label_id) "
        f"WHERE t.snapshot = '{published(old, 3)['student']['snapshot']}' AND l.generation < 3"
    )
    (older,) = query(old, sql).rows
    assert (failure.where, failure.why.partition(" rows")[0]) == ("gen/3/trained_on", str(older["n"]))
    assert failure.why.endswith("of no label in the window")


def test_work_under_way_is_left_alone(fresh: Fresh) -> None:
    registry = fresh(1)
    with lock.hold(registry, "a generation"):
        params = sample.begin_generation(registry)
        assert said(verify(registry.root)) == []
        sample.write_outputs(registry, params)
        assert said(verify(registry.root)) == []
        publish(registry, params, sample.REVISION)
    # Killed between commit and tag: recovery sets it.
    git(registry.root, "tag", "-d", "gen/0001")
    write_state(registry, unfinished={"generation": 1, "parent": 0, "run": "1", "recipe": "2"})
    assert said(verify(registry.root)) == []
    write_state(registry, unfinished=None)
    assert ["tag gen/0001: it is gone" in one for one in said(verify(registry.root))] == [True]


def test_a_run_meanwhile_raises_no_alarm(fresh: Fresh) -> None:
    registry, verdicts, done = fresh(1), list[Verdict](), threading.Event()

    def watch() -> None:
        while not done.is_set():
            verdicts.append(verify(registry.root, quick=len(verdicts) % 3 > 0, jobs=1))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(2):
            sample.make_generation(registry)
        rollback(registry, 1, "bad labels")
    finally:
        done.set()
        watcher.join()
    assert [one for verdict in verdicts for one in said(verdict)] == []
    assert len(verdicts) > 5


def test_mlflow_holds_the_newest_tag(fresh: Fresh) -> None:
    registry = fresh(1)
    layout, facts = registry.layout, published(registry, 0)
    run = git(registry.root, "log", "-1", "--format=%(trailers:key=Flywheel-Run,valueonly)")
    own = git(registry.root, "rev-parse", "gen/0000")
    tracking.record(layout, facts, {}, {"seed": 0}, run, "gen/0000", None, 1.0, own)
    before = tree_of(registry.root)
    verdict = verify(registry.root)
    assert (said(verdict), verdict.notes) == ([], [])
    assert (verdict.checked["anchors"], verdict.checked["aliases"]) == (1, 1)
    assert tree_of(registry.root) == before
    # The newest tag made anew where it was, which nothing in git can tell.
    git(registry.root, "tag", "-f", "-a", "-m", "Generation 0", "gen/0000", "gen/0000^{commit}")
    assert ["tag gen/0000: it was moved or made anew" in one for one in said(verify(registry.root))] == [True]
    git(registry.root, "update-ref", "refs/tags/gen/0000", own)
    # Another champion, by a generation that MLflow was not told of: no failure while it waits, nor before.
    sample.make_generation(registry)
    assert said(verify(registry.root, quick=True)) == []
    run = git(registry.root, "log", "-1", "--format=%(trailers:key=Flywheel-Run,valueonly)")
    tracking.record(layout, published(registry, 1), {}, {"seed": 0}, run, "gen/0001", None, 1.0, "")
    assert said(verify(registry.root, quick=True)) == []
    rollback(registry, 0, "bad labels")
    assert said(verify(registry.root, quick=True)) == []  # the alias is to follow
    for path in (layout.local / "queue").iterdir():
        path.unlink()
    assert ["pointer alias champion" in one for one in said(verify(registry.root, quick=True))] == [True]
    tracking.set_alias(layout, sample.snapshot_of(0))
    assert said(verify(registry.root, quick=True)) == []
    git(registry.root, "tag", "-d", "gen/0001")
    assert any("gen/0001: it is gone" in one for one in said(verify(registry.root, quick=True)))


def test_what_waits_must_make_sense(fresh: Fresh) -> None:
    registry = fresh(1)
    for text, expected in (
        ("{", "state.json: "),
        ('{"unfinished": {"generation": 9, "parent": 0, "run": "1"}}', "gen/9 from gen/0 is in progress"),
        ('{"unfinished": {"parent": 0}}', "lacks KeyError('generation')"),
        ('{"rollback": {"from": 5, "to": 0, "base": "0"}}', "from gen/5 to gen/0"),
    ):
        registry.layout.state.write_text(text, encoding="utf-8")
        assert [expected in one for one in said(verify(registry.root, quick=True))] == [True]
    registry.layout.state.unlink()
    waiting = registry.layout.local / "queue" / "0000.json"
    waiting.parent.mkdir()
    waiting.write_text("[", encoding="utf-8")
    assert [".flywheel/queue/0000.json" in one for one in said(verify(registry.root, quick=True))] == [True]


def test_what_is_no_registry_is_refused_and_a_damaged_one_is_not(fresh: Fresh, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="there is no registry"):
        verify(tmp_path / "nowhere")
    with pytest.raises(RegistryError, match="is not a registry"):
        verify(tmp_path)
    registry = fresh(1)
    registry.layout.marker.write_text("{", encoding="utf-8")
    assert ["file flywheel.json" in one for one in said(verify(registry.root, quick=True))] == [True]
    registry.layout.marker.unlink()
    assert ["file flywheel.json: it is gone" in one for one in said(verify(registry.root, quick=True))] == [True]
    # Git would look for another repository above.
    git(tmp_path, "init", "-q")
    (registry.root / ".git" / "HEAD").write_text("nonsense", encoding="utf-8")
    assert [one.where for one in verify(registry.root).failures] == [".git/HEAD", ".git"]


def test_the_command(fresh: Fresh) -> None:
    registry = fresh(4)
    app = typer.Typer()
    app.command()(proving.verify)
    done = CliRunner().invoke(app, ["--registry", str(registry.root), "--json"])
    document = json.loads(done.stdout)
    assert done.exit_code == 0
    assert (document["ok"], document["failures"], document["quick"]) == (True, [], False)
    assert document["bytes_per_second"] > 0
    md5 = published(registry, 2)["tables"]["labels"]["files"][0]["md5"]
    path = cache.cache_path(registry, md5)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    done = CliRunner().invoke(app, ["--registry", str(registry.root), "--quick"])
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert next(line for line in lines if line.startswith("cache")).endswith("not hashed: 2 failed")
    assert any("gen/2/labels/0002/labels/part-00000.parquet" in line and "no remote is set" in line for line in lines)
    assert not any(line.startswith("tables") for line in lines)
    assert "2 things do not hold" in lines[-1]


def test_all_damage_is_found(supervised: Registry, tmp_path: Path) -> None:
    """Bytes turned round, files removed, tables swapped, tags moved and made anew, anywhere, loose and packed."""
    registry = copy_of(supervised, tmp_path / "damaged")
    tally = injections.run(registry, 6.0, seed=1, least=11)
    git(registry.root, "gc", "-q")
    packed = injections.run(registry, 6.0, seed=2, least=10)
    assert tally.missed + packed.missed == []
    assert said(verify(registry.root)) == []
