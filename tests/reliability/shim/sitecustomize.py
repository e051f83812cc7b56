"""Faults at a chosen step of a Python process, without a hook in the product: Python imports this file at the start of
every process that has its folder in PYTHONPATH, DVC's included.

A step is something that changes the registry: a file opened for writing, renamed, linked or removed, a folder made or
removed, an `fsync`, a git or DVC started. Python's own audit events tell of them. What happens inside `.flywheel/tmp`
is no step (recovery clears it whole), nor is DVC's book of digests in `.flywheel/dvc`. FLYWHEEL_FAULT holds, as JSON,

    root, also   the registry's folder; further folders whose files count (a remote)
    log          where to note each step: `process <tab> event <tab> path`; "" for nowhere
    hit          a file that is made when the fault strikes
    process      whose steps count: `product`, `dvc commit`, ...; `start git add 2` means the second `git add`
    step         the fault strikes just before this one; 0 never
    action       one of `_ACTIONS`; for `start ...`, the words that come before that child's command line
    aside, filler, spare   for the actions that need them
    trace, calls           whether strace is to note each git's system calls, and which
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {
    "open": (0, None),
    "os.rename": (1, 3),
    "os.remove": (0, 1),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
    "os.mkdir": (0, 2),
    "os.rmdir": (0, 1),
    "os.truncate": (0, None),
    "os.chmod": (0, 2),
    "fsync": (0, None),
    "subprocess.Popen": (0, None),
}
"""Audit events that count: which argument is the path that changes, and which the folder it is relative to."""
READS = {
    f"git {name}"
    for name in (
        "cat-file", "config", "diff", "for-each-ref", "fsck", "log", "ls-files", "ls-tree", "rev-list", "rev-parse",
        "show", "status", "symbolic-ref", "var", "version",
    )
}  # fmt: skip
"""Children that change nothing: noted, but the state before and after them is the same."""
_NEED_SPACE = {"open", "os.rename", "os.link", "os.symlink", "os.mkdir", "fsync"}


class Fault:
    """The fault that this process was told of; it counts the process's steps."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.process = _process_name(sys.orig_argv)
        self.roots = tuple(os.path.join(os.path.realpath(root), "") for root in (spec["root"], *spec.get("also", ())))
        self.steps = 0
        self.children: Counter[str] = Counter()
        self.busy = threading.local()

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _PATHS or getattr(self.busy, "now", False):
            return
        self.busy.now = True  # what is done here raises events, too
        try:
            path = self.changed(event, arguments)
            if path is not None:
                self.step(event, path)
        finally:
            self.busy.now = False

    def changed(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        """The path of a step, relative to its root; None if it is no step."""
        if event == "subprocess.Popen":
            return child_name([os.fsdecode(word) for word in arguments[1]])
        position, folder = _PATHS[event]
        path = arguments[position]
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
            return None
        try:
            if isinstance(path, int):
                path = os.readlink(f"/proc/self/fd/{path}")
            path = os.fsdecode(path)
            if folder is not None and isinstance(arguments[folder], int) and arguments[folder] >= 0:
                path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[folder]}"), path)
        except (OSError, TypeError):
            return None
        path = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path))
        found = [root for root in self.roots if path.startswith(root)]
        if not found or (event == "os.mkdir" and os.path.isdir(path)):
            return None
        name = os.path.relpath(path, found[0])
        scratch = name.startswith(".flywheel/tmp/") and event != "os.rename"
        return None if scratch or name.startswith(".flywheel/dvc/") else name

    def step(self, event: str, path: str) -> None:
        if self.spec["log"]:
            self.note(self.process, event, path)
        if self.spec["process"] == self.process and path not in READS:
            self.steps += 1
            if self.steps == self.spec["step"]:
                Path(self.spec["hit"]).touch()
                _ACTIONS[self.spec["action"]](self)
        if event in _NEED_SPACE and self.spec["action"] == "full" and os.path.exists(self.spec["hit"]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def note(self, *words: str) -> None:
        with open(self.spec["log"], "a", encoding="utf-8") as log:
            log.write("\t".join(words) + "\n")

    def command(self, arguments: list[str]) -> list[str]:
        """The command line of a child, with what the fault puts before it."""
        name = child_name(arguments)
        if name is None:
            return arguments
        self.children[name] += 1
        if self.spec.get("trace") and name not in READS:
            where = f"{self.spec['log']}.start {name} {self.children[name]}"
            return ["strace", "-f", "-qq", "-o", where, "-e", f"trace={self.spec['calls']}", *arguments]
        if self.spec["process"] == f"start {name} {self.children[name]}":
            return [*self.spec["action"], *arguments]
        return arguments


def child_name(words: list[str]) -> str | None:
    """`git commit`, `dvc push`, ...: what a command line starts; None for other programs."""
    program = next((name for name in ("git", "dvc") if name in [os.path.basename(word) for word in words[:20]]), None)
    if program is None:
        return None
    rest = words[[os.path.basename(word) for word in words].index(program) + 1 :]
    while rest and rest[0].startswith("-"):
        rest = rest[2:] if rest[0] == "-c" else rest[1:]
    return f"{program} {rest[0]}" if rest else program


def _process_name(arguments: list[str]) -> str:
    return (child_name(arguments) if "dvc" in arguments[:6] else None) or "product"


def _kill(_: Fault) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_parent(_: Fault) -> None:
    os.kill(os.getppid(), signal.SIGKILL)


def _kill_both(fault: Fault) -> None:
    _kill_parent(fault)
    _kill(fault)


def _fail_once(fault: Fault) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), fault.spec["root"])


def _full(_: Fault) -> None:
    """From here on there is no space, in any process: they look at the file `hit`."""


def _fill(fault: Fault) -> None:
    """Take what is free on the registry's file system, `spare` bytes apart."""
    filler = os.open(fault.spec["filler"], os.O_WRONLY | os.O_CREAT, 0o600)
    found = os.fstatvfs(filler)
    os.posix_fallocate(filler, 0, max(1, found.f_bavail * found.f_frsize - fault.spec["spare"]))
    os.close(filler)


def _limit(fault: Fault) -> None:
    """No file may become longer than `spare` bytes, here and in children."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (fault.spec["spare"], resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _unplug(fault: Fault) -> None:
    """The folder `also[0]` goes away, and what comes in its place cannot hold files."""
    os.rename(fault.spec["also"][0], fault.spec["aside"])
    Path(fault.spec["also"][0]).write_text("not a folder", encoding="utf-8")


_ACTIONS = {
    "kill": _kill, "kill parent": _kill_parent, "kill both": _kill_both, "fail once": _fail_once, "full": _full,
    "fill": _fill, "limit": _limit, "unplug": _unplug,
}  # fmt: skip


def install(spec: dict[str, Any]) -> None:
    """Listen from now on. It cannot be taken back, as audit hooks cannot."""
    fault = Fault(spec)
    start, fsync = subprocess.Popen.__init__, os.fsync

    def started(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        words = [os.fsdecode(word) for word in args] if isinstance(args, list | tuple) else args
        start(self, fault.command(words) if isinstance(words, list) else words, *rest, **options)

    def synced(fd: Any) -> None:
        fault.audit("fsync", (fd if isinstance(fd, int) else fd.fileno(),))
        fsync(fd)

    subprocess.Popen.__init__ = started  # type: ignore[method-assign]
    os.fsync = synced
    sys.addaudithook(fault.audit)


if "FLYWHEEL_FAULT" in os.environ:
    install(json.loads(os.environ["FLYWHEEL_FAULT"]))
