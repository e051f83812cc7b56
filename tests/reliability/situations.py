"""What a registry may be found in rather than die of: stale and live locks, a remote that is gone, folders that cannot
be written, a broken MLflow database (`tests.reliability.databases`).

A situation is brought about on a copy of a base, an operation is run in it, what had to happen is looked at, the
trouble is taken away, the operation run again, and the registry compared with its calm twin.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.reliability.injection import environment
from tests.reliability.operations import STORE

STALE, LIVE, LOCKED_OUT, GONE = "a stale lock", "a live lock", "a folder that cannot be written", "the remote is gone"
DAMAGED = "a damaged file of this machine's"
DONE, REFUSED, BUSY = (0,), (1, 2), (3,)
"""Exit codes that the operation may end with."""
_LOCKS_OF_GIT = ("index", "HEAD", "config", "packed-refs", "refs/heads/main", "refs/tags/gen/0001")


@dataclass(frozen=True, slots=True)
class Told:
    """What a trouble expects: words in the refusal, and files that must be left as they are."""

    words: str = ""
    untouched: tuple[Path, ...] = ()


Trouble = Callable[[Path], AbstractContextManager[Told]]


@dataclass(frozen=True, slots=True)
class Situation:
    """`trouble(root)` holds while the operation of `scenario` runs the first time, and is then taken away."""

    kind: str
    where: str
    scenario: str
    expected: tuple[int, ...]
    trouble: Trouble
    during: Callable[[Path], list[str]] | None = None
    """Looks at the registry while the trouble lasts, after the operation; sentences for what is wrong."""
    afterwards: Callable[[Path], list[str]] | None = None
    """The same, when all is done."""


def _left(*files: tuple[str, str], words: str = "", emptied: bool = False) -> Trouble:
    """Files that somebody dead has left: (path, text); `<dead>`, `<live>` and `<host>` stand for PIDs and this host."""

    @contextmanager
    def trouble(root: Path) -> Iterator[Told]:
        values = {"<dead>": str(_dead_process()), "<live>": str(os.getpid()), "<host>": socket.gethostname()}
        for path, text in files:
            for name, value in values.items():
                text = text.replace(name, value)
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        yield Told(words)
        if emptied:
            for path, _ in files:
                (root / path).write_text("", encoding="utf-8")

    return trouble


@contextmanager
def _held(root: Path) -> Iterator[Told]:
    """Another process holds the registry's lock."""
    program = (
        "import sys, time; from pathlib import Path; from storage import lock; from storage.registry import Registry\n"
        "with lock.hold(Registry.open(Path(sys.argv[1])), 'something long'):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(root)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield Told(f"PID {process.pid}")
        with (root / ".flywheel" / "lock").open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            raise AssertionError("the lock of a live process was taken from it")
    finally:
        process.kill()
        process.communicate()


@contextmanager
def _git_at_work(root: Path) -> Iterator[Told]:
    """The user's own `git commit`, with an editor open."""
    opened = root.parent / "editing"
    process = subprocess.Popen(
        ["git", "commit", "-q", "--allow-empty"],
        cwd=root, env=environment(GIT_EDITOR=f"touch {opened}; sleep 600 #"), start_new_session=True,
    )  # fmt: skip
    try:
        until(opened.exists)
        index = root / ".git" / "index.lock"
        index.touch()
        yield Told(f"PID {process.pid}", (index,))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        opened.unlink()


@contextmanager
def _dvc_at_work(root: Path) -> Iterator[Told]:
    """The user's own `dvc commit`, stopped in the middle."""
    rwlock = root / ".dvc" / "tmp" / "rwlock"
    process = subprocess.Popen([sys.executable, "-P", "-m", "dvc", "commit", "-q", "-f"], cwd=root, env=environment())
    try:
        until(lambda: rwlock.exists() and str(process.pid) in rwlock.read_text(encoding="utf-8"), 0.0)
        process.send_signal(signal.SIGSTOP)
        yield Told(f"PID {process.pid}", (rwlock,))
        process.send_signal(signal.SIGCONT)
        process.wait()
    finally:
        process.kill()
        process.wait()


def unwritable(path: str) -> Trouble:
    """A folder that nobody may change, root included."""

    @contextmanager
    def trouble(root: Path) -> Iterator[Told]:
        folder = (root / path).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        _protect(folder)
        try:
            yield Told()
        finally:
            _release(folder)

    return trouble


@contextmanager
def _no_store(root: Path) -> Iterator[Told]:
    """Where the remote was is a file."""
    store, aside = root.parent / STORE, root.parent / "aside"
    store.rename(aside)
    store.write_text("not a folder", encoding="utf-8")
    yield Told()
    store.unlink()
    aside.rename(store)


@contextmanager
def _no_server(root: Path) -> Iterator[Told]:
    """The remote is a server that does not answer."""
    config = root / ".dvc" / "config.local"
    before = config.read_text(encoding="utf-8") if config.exists() else None
    with socket.socket() as taken:  # bound and not listening: who connects is refused
        taken.bind(("127.0.0.1", 0))
        text = f"['remote \"store\"']\n    url = http://127.0.0.1:{taken.getsockname()[1]}/store\n"
        config.write_text((before or "") + text, encoding="utf-8")
        yield Told()
    if before is None:
        config.unlink()
    else:
        config.write_text(before, encoding="utf-8")


def situations(folder: Path) -> list[Situation]:
    """All that can be brought about here: who is root needs a file system that knows immutable files (`folder`'s)."""
    found = [
        Situation(STALE, "every lock file of git's", "next", DONE,
                  _left(*((f".git/{name}.lock", "") for name in _LOCKS_OF_GIT))),
        Situation(STALE, ".git/index.lock, half an index in it", "rollback", DONE,
                  _left((".git/index.lock", "DIRC\0\0\0\2"))),
        Situation(STALE, ".dvc/tmp/rwlock, empty", "next", DONE, _left((_RWLOCK, ""))),
        Situation(STALE, ".dvc/tmp/rwlock, half of it", "next", DONE, _left((_RWLOCK, '{"write": {"x'))),
        Situation(STALE, ".dvc/tmp/rwlock of a dead PID", "next", DONE,
                  _left((_RWLOCK, '{"write": {"<dead>": {"pid": <dead>, "cmd": "dvc commit"}}}'))),
        Situation(STALE, ".dvc/tmp/rwlock of a PID that is another's now", "rollback", DONE,
                  _left((_RWLOCK, '{"read": {"x": [{"pid": <live>, "cmd": "dvc commit"}]}}'))),
        Situation(STALE, ".dvc/tmp/lock", "next", DONE, _left((".dvc/tmp/lock", "<dead>\n"))),
        Situation(STALE, ".flywheel/lock of a dead PID", "next", DONE,
                  _left((_LOCK, '{"pid": <dead>, "host": "<host>", "purpose": "run"}'))),
        Situation(STALE, ".flywheel/lock of a PID that is another's now", "undo", DONE,
                  _left((_LOCK, '{"pid": <live>, "host": "<host>", "purpose": "run"}'))),
        Situation(STALE, ".flywheel/lock, half of it", "next", DONE, _left((_LOCK, '{"pid": '))),
        Situation(LIVE, ".flywheel/lock of another machine", "next", BUSY,
                  _left((_LOCK, '{"pid": <dead>, "host": "elsewhere", "boot": "x"}'), words="elsewhere", emptied=True)),
        Situation(LIVE, ".flywheel/lock of another process", "next", BUSY, _held),
        Situation(LIVE, ".flywheel/lock of another process", "rollback", BUSY, _held),
        Situation(LIVE, "a `git commit` with its editor open", "next", BUSY, _git_at_work),
        Situation(LIVE, "a `dvc commit` at work", "rollback", BUSY, _dvc_at_work),
        Situation(DAMAGED, "half-written files", "next", DONE,
                  _left(("lineage/.teacher.json.0123abcd", "{"), (".flywheel/.state.json.0123abcd", "{"))),
        Situation(DAMAGED, ".flywheel/state.json", "next", REFUSED, _damaged_state),
        Situation(GONE, "a file in its place", "stored", REFUSED, _no_store),
        Situation(GONE, "a file in its place", "fetch", REFUSED, _no_store),
        Situation(GONE, "a server that does not answer", "stored", REFUSED, _no_server),
    ]  # fmt: skip
    if can_protect(folder):
        found += [Situation(LOCKED_OUT, path, "next", REFUSED, unwritable(path)) for path in _FOLDERS]
        found.append(Situation(LOCKED_OUT, "the remote", "stored", REFUSED, unwritable(f"../{STORE}/files/md5")))
    return found


_RWLOCK, _LOCK = ".dvc/tmp/rwlock", ".flywheel/lock"
_FOLDERS = (".", ".git", ".git/objects", ".git/refs/tags/gen", ".dvc/cache/files/md5", ".flywheel", "lineage", "labels")


@contextmanager
def _damaged_state(root: Path) -> Iterator[Told]:
    state = root / ".flywheel" / "state.json"
    state.write_text('{"unfinished": {"gen', encoding="utf-8")
    yield Told("state.json is damaged", (state,))
    state.unlink()


@cache
def can_protect(folder: Path) -> bool:
    """Whether a folder can be made such that this user may not write to it."""
    probe = folder / "probe"
    probe.mkdir(parents=True)
    try:
        _protect(probe)
        (probe / "file").touch()
    except (OSError, subprocess.CalledProcessError):
        return True
    else:
        return False
    finally:
        _release(probe)
        shutil.rmtree(probe)


def _protect(folder: Path) -> None:
    if os.geteuid():
        folder.chmod(0o500)
    elif shutil.which("chattr"):
        subprocess.run(["chattr", "+i", str(folder)], check=False, capture_output=True)


def _release(folder: Path) -> None:
    if os.geteuid():
        folder.chmod(0o700)
    elif shutil.which("chattr"):
        subprocess.run(["chattr", "-i", str(folder)], check=False, capture_output=True)


def _dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def until(condition: Callable[[], bool], pause: float = 0.01) -> None:
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("waited in vain for what a test of faults had started")
        time.sleep(pause)
