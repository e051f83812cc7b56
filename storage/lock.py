"""One writer a registry: an advisory `flock` on `.flywheel/lock`.

The lock is the kernel's, so death frees it; the file is never deleted, and what it says (process, host, purpose) only
serves messages. git and DVC children inherit the descriptor: an orphan of a killed run keeps the lock until it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel.errors import RegistryBusy, RegistryError

if TYPE_CHECKING:
    from storage.registry import Registry

_PATIENCE_SECONDS = 0.5
"""How long `hold` tries: `holder` takes the lock for an instant to see whether it is free."""
_ORPHAN_SECONDS = 60.0
"""How long it tries when the recorded process is dead: a git or DVC child of it is about to end."""

_held: dict[Path, int] = {}
_open: set[int] = set()
"""Every descriptor of a lock file, for a fork to close."""
_guard = threading.Lock()


@contextmanager
def hold(registry: Registry, purpose: str) -> Iterator[None]:
    """Hold the registry for writing. Raises RegistryBusy, which names the holder, if another has it."""
    path = registry.layout.lock
    if registry.root in _held:
        raise RegistryBusy(f"this process (PID {os.getpid()}) already holds {registry.root}; it asked for it twice")
    descriptor = _acquire(path)
    try:
        with _guard:
            _held[registry.root] = descriptor
        body = {"pid": os.getpid(), "host": socket.gethostname(), "boot": _boot(), "purpose": purpose}
        body["since"] = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(body).encode(), 0)
        yield
    finally:
        with _guard:
            mine = _held.pop(registry.root, None)
        if mine is not None:  # not so in a forked child, which let go of it at once
            try:
                os.ftruncate(descriptor, 0)
            finally:
                # Closed, not unlocked: unlocking would take it from a child that is still at work.
                _close(descriptor)


@contextmanager
def ensure(registry: Registry, purpose: str) -> Iterator[None]:
    """Within `hold` of this process: nothing more. Elsewhere: `hold`."""
    if registry.root in _held:
        yield
        return
    with hold(registry, purpose):
        yield


def holder(registry: Registry) -> dict[str, Any] | None:
    """Who holds the registry now: {"pid", "host", "purpose", "since"}; None if nobody does."""
    path = registry.layout.lock
    try:
        descriptor = _opened(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        body = _body(path)
        return {name: body.get(name) for name in ("pid", "host", "purpose", "since")}
    finally:
        _close(descriptor)
    return None


@contextmanager
def lent(root: Path) -> Iterator[tuple[int, ...]]:
    """The descriptors that a child working on the registry at `root` must inherit (`pass_fds`), kept open until it
    has started. They are copies: the thread that holds the registry may let go of it at any moment."""
    with _guard:
        copies = (os.dup(_held[root]),) if root in _held else ()
        _open.update(copies)
    try:
        yield copies
    finally:
        for copy in copies:
            _close(copy)


def _opened(path: Path, flags: int) -> int:
    with _guard:
        descriptor = os.open(path, flags, 0o644)
        _open.add(descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    with _guard:
        if descriptor in _open:  # not so in a forked child, which closed it at once
            _open.remove(descriptor)
            os.close(descriptor)


def _acquire(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _opened(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RegistryError(f"cannot open {path} for writing ({reason}); check the folder's owner and mode") from error
    started = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            body = _body(path)
            waited = time.monotonic() - started
            if waited > (_ORPHAN_SECONDS if _dead(body) else _PATIENCE_SECONDS):
                _close(descriptor)
                raise RegistryBusy(_busy(path, body)) from None
            time.sleep(0.05)
        except OSError as error:
            _close(descriptor)
            raise RegistryError(f"the file system of {path} cannot lock files ({error.strerror}); move it") from error
    body = _body(path)
    if body and not _this_machine(body):
        _close(descriptor)
        raise RegistryBusy(
            f"{_who(body)} on another machine never let go of {path.parent.parent}, and locks of another machine may "
            f"not be seen from here; if that process has ended, empty the lock file: `: > {path}`"
        )
    return descriptor


def _busy(path: Path, body: dict[str, Any]) -> str:
    if not body or _dead(body):
        return f"a child of an ended process still works on {path.parent.parent}; try again when it is done"
    return f"{path.parent.parent} is held by {_who(body)}; wait until it is done, or stop that process"


def _who(body: dict[str, Any]) -> str:
    return f"PID {body.get('pid')} on {body.get('host')} ({body.get('purpose')}, since {body.get('since')})"


def _body(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # empty, or caught while being written
        return {}
    return body if isinstance(body, dict) else {}


def _this_machine(body: dict[str, Any]) -> bool:
    # Containers of one machine differ in host name but share the kernel, and with it the lock.
    return body.get("host") == socket.gethostname() or (bool(body.get("boot")) and body.get("boot") == _boot())


def _dead(body: dict[str, Any]) -> bool:
    if not body or body.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(body["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:  # killed, and its parent has not looked yet
        return Path(f"/proc/{body['pid']}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _let_go_after_fork() -> None:
    # A forked worker must not keep the lock of a parent that died.
    for descriptor in _open:
        os.close(descriptor)
    _open.clear()
    _held.clear()
    _guard.release()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_let_go_after_fork)
