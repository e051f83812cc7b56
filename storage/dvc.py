"""DVC as a child process. It records what ran; it never runs anything here.

The command line costs about 0.6 s a call, of which 0.4 s are imports, and keeps DVC's thousand modules out of this
process. Calls wait for another DVC of the user's (`--wait-for-lock`) rather than fail.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flywheel.errors import FlywheelError, StorageFull
from storage import cache, git, lock

if TYPE_CHECKING:
    from storage.registry import Registry

CONFIG = """\
[core]
    analytics = false
    check_update = false
    autostage = false
    site_cache_dir = .flywheel/dvc
[cache]
    dir = cache
    type = "{types}"
"""
LINKS = "hardlink,symlink,copy"
"""Linked read-only where the file system can; nothing is ever edited in place."""
# -P: the registry's folders must not stand in for Python packages of the same name.
_PROGRAM = (sys.executable, "-P", "-m", "dvc", "--wait-for-lock")
_FULL_BYTES = 2**20
"""With less than this DVC's databases may not grow."""
_LOOK_SECONDS = 1.0
_LOOKS = 5
"""For so many looks in a row there is no space, and DVC has not ended, before it is ended."""


def commit(registry: Registry) -> None:
    """Move every output of dvc.yaml into the cache, link it back, and write dvc.lock."""
    run(registry, "commit", "-q", "-f")


def add(registry: Registry, path: str) -> None:
    """Put a folder into the cache and write `<path>.dvc`."""
    run(registry, "add", "-q", path)


def checkout(registry: Registry, *targets: str) -> None:
    """Make the worktree's folders what dvc.lock and parent.dvc say (or only `targets`)."""
    run(registry, "checkout", "-q", "-f", *targets)


def remote(registry: Registry) -> str | None:
    """The name of the default remote, if one is set."""
    return cache.setting(registry.root, "core", "remote")


def push(registry: Registry) -> None:
    """Send what the worktree names to the default remote, and ask the remote whether it is there.

    Not `dvc push`, which goes by a note of what the remote once had. Raises FlywheelError; nothing was published then.
    """
    from storage import contents, remotes

    here = contents.worktree(registry)
    objects, _ = contents.expand(registry, here.flywheels)
    own, _ = contents.expand(registry, here.own)
    objects |= {md5 for md5 in own if cache.cache_path(registry, md5).exists()}
    try:
        remotes.send(registry, objects, "the new generation")
    except FlywheelError as error:
        raise type(error)(f"nothing was published: {error}") from error


def run(registry: Registry, *arguments: str) -> str:
    """Run `dvc <arguments>` in the registry; its standard output. Raises FlywheelError with DVC's own words,
    StorageFull where it cannot end for want of space."""
    settings = {
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "DVC_SITE_CACHE_DIR": str(registry.layout.local / "dvc"),
    }
    command = [*_PROGRAM, *arguments]
    with lock.lent(registry.root) as descriptors:
        child = subprocess.Popen(
            command,
            cwd=registry.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=git.environment(**settings),
            pass_fds=descriptors,
            start_new_session=True,
        )
    with child:
        try:
            out, err = _heard(child, registry.root, arguments[0])
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
    result = subprocess.CompletedProcess(command, child.returncode, out, err)
    if result.returncode != 0:
        raise git.failed("dvc", registry.root, arguments, result)
    return result.stdout.decode("utf-8", "replace")


def _heard(child: subprocess.Popen[bytes], root: Path, verb: str) -> tuple[bytes, bytes]:
    """What a child says until it ends. Raises StorageFull where it works on while there is no space.

    DVC would never end: its notes are in diskcache, which asks an SQLite that cannot write again, at once and for ever.
    """
    looks = 0
    while True:
        try:
            return child.communicate(timeout=_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            looks = looks + 1 if shutil.disk_usage(root).free < _FULL_BYTES else 0
            if looks == _LOOKS:
                raise StorageFull(
                    f"no space left while `dvc {verb}` wrote to {root}; free some and run again"
                ) from None
