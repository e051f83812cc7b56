"""Data to a remote and back: S3 over real HTTP, folders, real git remotes; what is refused, and what a cut leaves."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flywheel.errors import FlywheelError, InputError, RegistryBusy, RegistryError
from storage import cache, contents, dropped, dvc, exchange, gc, remote_urls, remotes, views
from storage.history import history, published
from storage.registry import Registry, read_state, write_state
from storage.rollback import rollback
from storage.verification.verify import verify
from tests.storage import sample
from tests.storage.conftest import copy_of
from tests.storage.stores import S3, Wire, cached, leftovers
from tests.storage.stores import s3 as s3
from tests.storage.stores import service as service

Fresh = Callable[[int], Registry]


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def empty_cache(registry: Registry, *kept: str) -> None:
    """Take all objects out of the cache but these."""
    for md5 in cached(registry):
        if md5 not in kept:
            cache.cache_path(registry, md5).unlink()


@pytest.mark.parametrize(
    ("take", "text"),
    [
        (remote_urls.data_address, "s3://key:hush@bucket/path"),
        (remote_urls.data_address, "s3://hush@bucket/path"),
        (remote_urls.data_address, "s3://bucket/path?token=hush"),
        (remote_urls.data_address, "ssh://me:hush@host/path"),
        (remote_urls.git_address, "https://me:hush@host/a.git"),
        (remote_urls.git_address, "https://hush@host/a.git"),
        (remote_urls.git_address, "https://host/a.git?private_token=hush"),
        (remote_urls.endpoint_address, "https://me:hush@host:9000"),
        (remote_urls.git_address, "ext::sh -c hush% >&2"),
        (remote_urls.git_address, "--upload-pack=hush"),
    ],
)
def test_addresses_with_secrets_or_programs_are_refused_and_never_shown(take: Callable[[str], str], text: str) -> None:
    with pytest.raises(InputError) as error:
        take(text)
    if "::" not in text and not text.startswith("-"):
        assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    ("take", "text", "taken"),
    [
        (remote_urls.data_address, "s3://bucket/path/", "s3://bucket/path"),
        (remote_urls.data_address, "ssh://me@host:22/path", "ssh://me@host:22/path"),
        (remote_urls.data_address, "/somewhere/else", "/somewhere/else"),
        (remote_urls.git_address, "git@host:me/a.git", "git@host:me/a.git"),
        (remote_urls.git_address, "file:///somewhere/a.git", "/somewhere/a.git"),
        (remote_urls.git_address, "ssh://git@host/a.git", "ssh://git@host/a.git"),
    ],
)
def test_addresses_that_are_taken(take: Callable[[str], str], text: str, taken: str) -> None:
    assert take(text) == taken
    words = f"fatal: 'https://a:b@h/x?t=1' and ssh://me:b@h and {taken}"
    assert remote_urls.redacted(words) == f"fatal: 'https://***@h/x?***' and ssh://me:***@h and {taken}"


@pytest.mark.parametrize("address", ["gs://bucket/path", "http://host/path", "remote://other/path", "memory://x", ""])
def test_addresses_of_other_kinds_are_refused(address: str) -> None:
    with pytest.raises(InputError, match="expected"):
        remote_urls.data_address(address)


def test_pushed_to_s3_and_brought_back(fresh: Fresh, s3: S3, tmp_path: Path) -> None:
    registry = fresh(4)
    held = cached(registry)
    done = exchange.push(registry, s3.url, str(tmp_path / "history.git"), s3.endpoint)
    # Every object that a tag names, by the cache's own names; the bytes are those the names promise.
    assert s3.keys() == set(held)
    assert done["data"] == {
        "remote": s3.url, "objects": len(held), "bytes": sum(map(len, held.values())), "held": 0,
    }  # fmt: skip
    assert all(hashlib.md5(s3.read(md5)).hexdigest() == md5[:32] for md5 in sorted(held)[:5])
    # Git holds the address, and its remote everything.
    assert git(registry.root, "log", "-1", "--format=%s|%(trailers:key=Flywheel-Remote,valueonly)").strip() == (
        f"Name the remote|{s3.url}"
    )
    assert dvc.run(registry, "remote", "list").split()[:2] == ["data", s3.url]
    refs = git(tmp_path / "history.git", "for-each-ref", "--format=%(refname) %(objectname)")
    assert refs == git(registry.root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/heads", "refs/tags")
    again = exchange.push(registry)
    assert (again["data"]["objects"], again["data"]["held"], again["history"]["tags"]) == (0, len(held), [])
    registry.check_clean()
    # All of it again, by way of the lists; read-only and under its own name.
    empty_cache(registry)
    roots = {md5 for one in contents.of(registry, range(4)).values() for md5 in one.roots()}
    assert remotes.bring(registry, roots, "everything") == len(held)
    assert cached(registry) == held
    assert {path.stat().st_mode & 0o777 for path in (registry.root / ".dvc/cache/files/md5").glob("??/*")} == {0o444}
    assert leftovers(registry) == []
    assert remotes.bring(registry, roots, "everything") == 0
    assert remotes.held(registry, [*held, "0" * 32]) == set(held)
    # So many that the remote is listed instead.
    others = [hashlib.md5(str(number).encode()).hexdigest() for number in range(400)]
    assert remotes.held(registry, [*held, *others]) == set(held)


def test_a_query_brings_the_tables_it_names(fresh: Fresh, s3: S3) -> None:
    registry = fresh(4)
    count = list(views.query(registry, "SELECT count(*) AS n FROM labels").rows)
    remotes_named(registry, s3)
    tables = {name: entry["files"] for name, entry in published(registry, 1)["tables"].items()}
    empty_cache(registry)
    assert list(views.query(registry, 'SELECT count(*) AS n FROM "Labels"', at=3).rows) == count
    names = {name for name, files in tables.items() if all(file["md5"] in cached(registry) for file in files)}
    assert names == {"labels"}
    with pytest.raises(InputError, match="expected one that reads"):
        views.query(registry, "DELETE FROM attempts")
    assert tables["attempts"][0]["md5"] not in cached(registry)
    with views.connect(registry, tables=["snapshots"]) as connection:
        assert connection.execute("SELECT count(*) FROM snapshots").fetchall() == [(4,)]
    assert tables["attempts"][0]["md5"] not in cached(registry)
    with views.connect(registry, at=0) as connection:
        assert connection.execute("SELECT count(*) FROM attempts").fetchall() == [(sample.LABELS + 2,)]


def test_without_a_remote_the_message_says_what_would_bring_it(fresh: Fresh) -> None:
    registry = fresh(1)
    empty_cache(registry)
    with pytest.raises(RegistryError, match=r"table labels of gen/0, is not in the cache.*`flywheel pull gen/0`"):
        views.query(registry, "FROM labels")
    with pytest.raises(RegistryError, match=r"the student of gen/0 .* is not in the cache and no remote has it"):
        remotes.bring(registry, [published(registry, 0)["outputs"]["student"]], "the student of gen/0")


def test_what_a_remote_cannot_do_is_said_and_changes_nothing(
    fresh: Fresh, s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    registry = fresh(1)
    tip = git(registry.root, "rev-parse", "HEAD")
    cases = [
        ("s3://no-such-bucket/x", s3.endpoint, InputError, "bucket does not exist|HeadBucket.*make the bucket"),
        (s3.url, "http://127.0.0.1:9", FlywheelError, "Could not connect.*run again"),
    ]
    for url, endpoint, kind, words in cases:
        with pytest.raises(kind, match=words):
            exchange.push(copy_of(registry, tmp_path / url[5:9]), url, str(tmp_path / "a.git"), endpoint)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match=r"Unable to locate credentials.*AWS_ACCESS_KEY_ID.*config\.local"):
        exchange.push(copy_of(registry, tmp_path / "keyless"), s3.url, None, s3.endpoint)
    with pytest.raises(InputError, match="no remote is named for the data"):
        exchange.push(registry)
    with pytest.raises(InputError, match="--endpoint"):
        exchange.push(registry, str(tmp_path / "data"), None, s3.endpoint)
    assert git(registry.root, "rev-parse", "HEAD") == tip
    assert git(tmp_path / "a.git", "for-each-ref") == ""


def test_a_missing_extra_is_named(fresh: Fresh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = fresh(1)
    # As where dvc-ssh is not installed, be it here or not.
    (tmp_path / "dvc_ssh").mkdir()
    (tmp_path / "dvc_ssh" / "__init__.py").write_text("raise ImportError('no')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match=r"pip install 'flywheel-search\[ssh\]'"):
        exchange.push(registry, "ssh://host/path")


def test_what_the_remote_has_wrong_or_in_half_is_not_taken(fresh: Fresh, s3: S3) -> None:
    registry = fresh(1)
    remotes_named(registry, s3)
    held = cached(registry)
    wrong, gone, half = sorted(md5 for md5 in held if not md5.endswith(".dir") and len(held[md5]) > 10)[:3]
    s3.write(wrong, held[wrong] + b"!")
    s3.delete(gone)
    s3.write(half, held[half][:-1])
    assert remotes.held(registry, held) == set(held) - {wrong, gone, half}
    empty_cache(registry)
    with pytest.raises(RegistryError) as error:
        remotes.bring(registry, held, "all of it")
    assert all(md5 in str(error.value) for md5 in (wrong, gone, half))
    assert cached(registry) == {md5: body for md5, body in held.items() if md5 not in {wrong, gone, half}}
    # Whoever has them whole mends the remote.
    for md5 in (wrong, gone, half):
        path = cache.cache_path(registry, md5)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(held[md5])
    assert exchange.push(registry)["data"]["objects"] == 3
    assert s3.read(half) == held[half]


def test_a_list_that_leaves_its_folder_is_refused(fresh: Fresh, s3: S3) -> None:
    registry = fresh(1)
    remotes_named(registry, s3)
    for entry in ({"md5": "0" * 32, "relpath": "../../x"}, {"md5": "../" * 9 + "x", "relpath": "x"}):
        body = json.dumps([entry]).encode()
        name = hashlib.md5(body).hexdigest() + ".dir"
        s3.write(name, body)
        with pytest.raises(RegistryError, match="do not trust this remote"):
            remotes.bring(registry, [name], "a list")
        assert name not in cached(registry)


@pytest.mark.parametrize("limit", [3_000, 60_000])
def test_a_remote_that_goes_away_in_the_middle(fresh: Fresh, s3: S3, tmp_path: Path, limit: int) -> None:
    registry = fresh(4)
    held = cached(registry)
    wire = Wire(s3.endpoint, limit)
    with pytest.raises(FlywheelError, match="failed at remote 'data'"):
        exchange.push(registry, s3.url, str(tmp_path / "history.git"), wire.endpoint)
    assert wire.reached.is_set()
    # No history without its data; what is there is whole.
    assert git(tmp_path / "history.git", "for-each-ref") == ""
    assert all(hashlib.md5(s3.read(md5)).hexdigest() == md5[:32] for md5 in sorted(s3.keys()))
    assert not s3.keys() >= set(held)
    registry.check_clean()
    exchange.push(registry, s3.url, None, s3.endpoint)
    assert s3.keys() == set(held)
    # And on the way back.
    wire = Wire(s3.endpoint, limit)
    dvc.run(registry, "remote", "modify", "-q", "--local", "data", "endpointurl", wire.endpoint)
    empty_cache(registry)
    with pytest.raises(FlywheelError, match="failed at remote 'data'"):
        remotes.bring(registry, held, "all of it")
    assert all(held[md5] == body for md5, body in cached(registry).items())
    assert leftovers(registry) == []
    dvc.run(registry, "remote", "modify", "-q", "--local", "data", "--unset", "endpointurl")
    remotes.bring(registry, held, "all of it")
    assert cached(registry) == held


def test_a_child_that_is_killed_leaves_no_half_object(fresh: Fresh, s3: S3) -> None:
    registry = fresh(4)
    remotes_named(registry, s3)
    held = cached(registry)
    wire = Wire(s3.endpoint, 60_000, stalls=True)
    dvc.run(registry, "remote", "modify", "-q", "--local", "data", "endpointurl", wire.endpoint)
    empty_cache(registry)
    failed: list[FlywheelError] = []

    def bring() -> None:
        try:
            remotes.bring(registry, held, "all of it")
        except FlywheelError as error:
            failed.append(error)

    worker = threading.Thread(target=bring)
    worker.start()
    assert wire.reached.wait(30)
    time.sleep(0.2)
    children = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _is_child(int(pid))]
    assert children
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    worker.join(30)
    wire.cut()
    assert len(failed) == 1
    assert all(held[md5] == body for md5, body in cached(registry).items())
    dvc.run(registry, "remote", "modify", "-q", "--local", "data", "--unset", "endpointurl")
    # The folder of one that cannot clean up after itself goes with the next, unless its process lives.
    mine = registry.root / ".dvc" / "cache" / f"incoming-{remotes._host()}-{os.getpid()}-0"
    other = registry.root / ".dvc" / "cache" / f"incoming-{remotes._host()}-4194305-0"
    mine.mkdir()
    other.mkdir()
    remotes.bring(registry, held, "all of it")
    assert cached(registry) == held
    assert leftovers(registry) == [mine.name]


def _is_child(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return False
    return b"remote_objects.py" in words and parent == os.getpid()


def test_rolling_back_brings_what_is_missing_from_s3(fresh: Fresh, s3: S3) -> None:
    registry = fresh(4)
    remotes_named(registry, s3)
    student = registry.layout.student
    empty_cache(registry)
    rollback(registry, 1, "try")
    assert b"student-1-0" in (student / "model.safetensors").read_bytes()
    assert json.loads(dvc.run(registry, "status", "--json")) == {}
    empty_cache(registry)
    assert sample.make_generation(registry).parent == 1
    assert dropped.read(registry).objects == frozenset()


def remotes_named(registry: Registry, s3: S3) -> None:
    exchange.push(registry, s3.url, None, s3.endpoint)


@pytest.fixture
def two(fresh: Fresh, tmp_path: Path) -> tuple[Registry, Registry]:
    """Two machines' registries with the same four generations and the same remotes."""
    first = fresh(4)
    exchange.push(first, str(tmp_path / "data"), str(tmp_path / "history.git"))
    return first, copy_of(first, tmp_path / "second")


def test_a_push_is_followed_by_a_pull(two: tuple[Registry, Registry]) -> None:
    first, second = two
    sample.make_generation(second)
    sample.make_generation(second)
    rollback(second, 4, "the fifth was no good")
    git(second.root, "tag", "liked", "gen/0004^{commit}")
    assert exchange.push(second)["history"]["tags"] == ["gen/0004", "gen/0005", "liked"]
    with pytest.raises(RegistryBusy, match=r"has gen/0004, gen/0005, liked, which is not here; .*flywheel pull"):
        exchange.push(first)
    done = exchange.pull(first)
    assert done["history"]["tags"] == ["gen/0004", "gen/0005", "liked"]
    # To the byte and the tag what the other has; runs are a machine's own.
    refs = ("for-each-ref", "--format=%(refname) %(objectname)", "refs/heads", "refs/tags")
    assert git(first.root, *refs) == git(second.root, *refs)
    assert history(first) == history(second)
    assert git(first.root, "status", "--porcelain") == ""
    assert json.loads(dvc.run(first, "status", "--json")) == {}
    assert first.head_generation() == 4
    assert b"student-4-0" in (first.layout.student / "model.safetensors").read_bytes()
    assert git(first.root, "for-each-ref", "refs/flywheel") == ""
    assert sample.make_generation(first).generation == 6
    exchange.push(first)
    assert exchange.pull(second)["history"]["tags"] == ["gen/0006"]
    assert exchange.pull(second)["history"]["tags"] == []


def test_two_that_went_on_from_one_generation_stay_apart(two: tuple[Registry, Registry], tmp_path: Path) -> None:
    first, second = two
    sample.make_generation(first)
    exchange.push(first)
    sample.make_generation(second)
    refs = ("for-each-ref", "refs/heads", "refs/tags", "refs/flywheel")
    before = git(second.root, *refs)
    for attempt in (exchange.push, exchange.pull):
        with pytest.raises(RegistryBusy) as error:
            attempt(second)
        assert "here gen/0004" in str(error.value)
        assert "both made gen/0004" in str(error.value)
        assert "flywheel clone" in str(error.value)
        assert git(second.root, *refs) == before
    # What the message says can be done; nothing is lost.
    exchange.push(second, None, str(tmp_path / "apart.git"))
    assert git(tmp_path / "apart.git", "rev-parse", "gen/0004") == git(second.root, "rev-parse", "gen/0004")
    assert git(tmp_path / "history.git", "rev-parse", "gen/0004") == git(first.root, "rev-parse", "gen/0004")


def test_a_pull_waits_for_an_unfinished_generation_or_drops_it(two: tuple[Registry, Registry]) -> None:
    first, second = two
    sample.make_generation(second)
    exchange.push(second)
    params = sample.begin_generation(first)
    sample.write_outputs(first, params)
    # While nothing is to be followed, data can be brought.
    empty_cache(first)
    with pytest.raises(RegistryBusy, match=r"gen/4 is unfinished here.*gen/0004.*--drop-unfinished.*flywheel run"):
        exchange.pull(first)
    assert (first.generations(), read_state(first)["unfinished"]["generation"]) == ([0, 1, 2, 3], 4)
    done = exchange.pull(first, drop_unfinished=True)
    assert done["history"]["tags"] == ["gen/0004"]
    assert read_state(first) == {}
    assert git(first.root, "status", "--porcelain") == ""
    assert json.loads(dvc.run(first, "status", "--json")) == {}
    assert sample.make_generation(first).generation == 5


def test_a_pull_that_is_cut_off_is_finished_by_the_next(two: tuple[Registry, Registry]) -> None:
    first, second = two
    sample.make_generation(second)
    exchange.push(second)
    before = git(first.root, "rev-parse", "HEAD")
    # Cut off before the branch moved: nothing happened.
    write_state(first, pull={"from": before, "to": git(second.root, "rev-parse", "HEAD")})
    assert exchange.settle(first) is None
    assert read_state(first) == {}
    # And after: files and folders are still the old ones.
    git(first.root, "fetch", "-q", "origin", "refs/tags/*:refs/tags/*")
    objects = {md5 for one in contents.of(first, [4]).values() for md5 in one.roots()}
    remotes.bring(first, objects, "gen/4")
    write_state(first, pull={"from": before, "to": git(second.root, "rev-parse", "HEAD")})
    git(first.root, "update-ref", "refs/heads/main", "gen/0004^{commit}")
    assert exchange.pull(first)["history"]["tags"] == []
    assert git(first.root, "status", "--porcelain") == ""
    assert b"student-4-0" in (first.layout.student / "model.safetensors").read_bytes()
    assert read_state(first) == {}


def test_a_pull_brings_what_is_asked_for(two: tuple[Registry, Registry]) -> None:
    first, _ = two
    held = cached(first)
    empty_cache(first)
    assert exchange.pull(first)["data"]["what"] == "data of the head"
    # Enough to go on with the remote away.
    remote = first.root.parent / "data"
    remote.rename(remote.with_name("elsewhere"))
    alone = copy_of(first, first.root.parent / "alone")
    (alone.root / ".dvc" / "config.local").unlink()
    assert sample.make_generation(alone).generation == 4
    remote.with_name("elsewhere").rename(remote)
    empty_cache(first)
    exchange.pull(first, [1])
    expected, unread = contents.expand(first, contents.of(first, [1])[1].roots())
    assert not unread
    assert set(cached(first)) == expected
    with pytest.raises(InputError, match="gen/0009, which was never published"):
        exchange.pull(first, [9])
    exchange.pull(first, everything=True)
    assert cached(first) == held


def test_another_remote_is_named_only_with_everything_here(two: tuple[Registry, Registry], tmp_path: Path) -> None:
    first, _ = two
    held = cached(first)
    empty_cache(first)
    with pytest.raises(InputError, match=r"only at remote .*flywheel pull --all"):
        exchange.push(first, str(tmp_path / "new"))
    exchange.pull(first, everything=True)
    assert exchange.push(first, str(tmp_path / "new"))["data"]["objects"] == len(held)
    # An address that only means something here is not told to others.
    assert "data" not in git(first.root, "show", "HEAD:.dvc/config")
    assert git(first.root, "status", "--porcelain") == ""
    with pytest.raises(InputError, match="a registry at work"):
        exchange.push(first, None, str(first.root))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="not a bare git repository"):
        exchange.push(first, None, str(tmp_path / "full"))


def test_no_history_goes_where_an_object_is_nowhere(two: tuple[Registry, Registry], tmp_path: Path) -> None:
    first, _ = two
    sample.make_generation(first)
    file = published(first, 2)["tables"]["attempts"]["files"][0]["md5"]
    cache.cache_path(first, file).unlink()
    (tmp_path / "data" / "files" / "md5" / file[:2] / file[2:]).unlink()
    with pytest.raises(RegistryError, match=f"no history was sent: 1 objects.*{file}"):
        exchange.push(first)
    assert "gen/0004" not in git(tmp_path / "history.git", "tag")
    # Unless it was let go of on purpose.
    dropped.add(first, [file], [file])
    assert exchange.push(first)["lost"] == 1
    assert "gen/0004" in git(tmp_path / "history.git", "tag")


def test_the_address_is_committed_once_after_a_kill(fresh: Fresh, s3: S3) -> None:
    registry = fresh(1)
    config = registry.root / ".dvc" / "config"
    before = config.read_text(encoding="utf-8")
    exchange.push(registry, s3.url, None, s3.endpoint)
    written = config.read_text(encoding="utf-8")
    # Written but not committed.
    git(registry.root, "reset", "-q", "--hard", "HEAD^")
    assert config.read_text(encoding="utf-8") == before
    config.write_text(written, encoding="utf-8")
    exchange.push(registry, s3.url, None, s3.endpoint)
    assert git(registry.root, "log", "-1", "--format=%s") == "Name the remote"
    registry.check_clean()
    # An edit of the user's is not swept in.
    config.write_text(written + "# mine\n", encoding="utf-8")
    with pytest.raises(RegistryBusy, match="changed by hand"):
        exchange.push(registry, f"{s3.url}/deeper", None, s3.endpoint)


def test_what_is_damaged_here_is_not_sent(fresh: Fresh, tmp_path: Path) -> None:
    """Of the right size, it would stand at the remote under a sound object's name."""
    registry = fresh(1)
    md5 = published(registry, 0)["tables"]["labels"]["files"][0]["md5"]
    path = cache.cache_path(registry, md5)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 0xFF]))
    with pytest.raises(RegistryError, match=rf"{md5}.* damaged"):
        exchange.push(registry, str(tmp_path / "data"))
    assert not (tmp_path / "data" / "files" / "md5" / md5[:2] / md5[2:]).exists()


def _rot(path: Path) -> None:
    """Turn the last byte round, in place and under every name of the file; DVC's time stamp is what it was."""
    facts = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 0xFF]))
    path.chmod(0o444)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_what_is_damaged_here_comes_anew_when_it_is_named(fresh: Fresh, tmp_path: Path) -> None:
    registry = fresh(4)
    exchange.push(registry, str(tmp_path / "data"))
    facts = published(registry, 3)
    victims = [facts["tables"]["labels"]["files"][0]["md5"], facts["outputs"]["student"]]
    for md5 in victims:
        _rot(cache.cache_path(registry, md5))
    done = exchange.pull(registry, [3])
    assert done["data"]["damaged"] == 2
    assert verify(registry.root).failures == []
    assert exchange.pull(registry, [3])["data"] == {"what": "data of gen/3", "objects": 0, "damaged": 0}


def test_a_folder_that_has_it_damaged_is_no_proof_for_gc(fresh: Fresh, tmp_path: Path) -> None:
    registry = fresh(4)
    exchange.push(registry, str(tmp_path / "data"))
    md5 = published(registry, 0)["tables"]["attempts"]["files"][0]["md5"]
    _rot(tmp_path / "data" / "files" / "md5" / md5[:2] / md5[2:])
    gc.collect(registry, 1)
    assert cache.cache_path(registry, md5).exists()
    assert not cache.cache_path(registry, published(registry, 1)["tables"]["attempts"]["files"][0]["md5"]).exists()
