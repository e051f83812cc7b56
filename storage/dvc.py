"""DVC as a child process. It records what ran; it never runs anything here.

The command line costs about 0.6 s a call, of which 0.4 s are imports, and keeps DVC's thousand modules out of this
process. Calls wait for another DVC of the user's (`--wait-for-lock`) rather than fail.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from flywheel.errors import FlywheelError
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
    """Run `dvc <arguments>` in the registry; its standard output. Raises FlywheelError with DVC's own words."""
    settings = {
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "DVC_SITE_CACHE_DIR": str(registry.layout.local / "dvc"),
    }
    with lock.lent(registry.root) as descriptors:
        result = subprocess.run(
            # -P: the registry's folders must not stand in for Python packages of the same name.
            [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", *arguments],
            cwd=registry.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env=git.environment(**settings),
            pass_fds=descriptors,
            start_new_session=True,
        )
    if result.returncode != 0:
        raise git.failed("dvc", registry.root, arguments, result)
    return result.stdout.decode("utf-8", "replace")
