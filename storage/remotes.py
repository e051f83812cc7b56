"""The remote that a registry's data go to and come from, as objects by their MD5.

    bring   objects into the cache, hashed on arrival       held   which objects the remote has
    send    objects that the remote lacks                   source where objects are brought from

A child process does the work (`storage.remote_objects`), so that readers never import DVC. Bringing needs no lock: an
object has one content, and gets its name once it is whole. History, which is git's, is `storage.exchange`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel.errors import FlywheelError, InputError, RegistryError, StorageFull
from storage import cache, contents, dropped, git, lock
from storage.remote_urls import redacted

if TYPE_CHECKING:
    from storage.registry import Registry

SOURCE = "source"
"""Name of the remote that a clone of a registry's folder has: that folder's cache. Read, never written to."""
_CHILD = Path(__file__).with_name("remote_objects.py")
_STAGING = "incoming-"
_OLD_SECONDS = 86_400.0
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Remote:
    """A remote by DVC's name and by its address, which is for showing: secrets are left out of it."""

    name: str
    url: str

    def __str__(self) -> str:
        return f"{self.name!r} ({self.url})"


@dataclass(frozen=True, slots=True)
class Sent:
    """What `send` did: objects and bytes that went, objects that were there before."""

    objects: int
    bytes: int
    held: int


def default(registry: Registry) -> Remote | None:
    """The remote that data are sent to, DVC's default."""
    name = cache.setting(registry.root, "core", "remote")
    return None if name is None else _named(registry, name)


def sources(registry: Registry) -> list[Remote]:
    """Where objects are brought from, in order; none if no remote is named."""
    found = [default(registry), _named(registry, SOURCE)]
    return list(dict.fromkeys(remote for remote in found if remote is not None and remote.url))


def bring(registry: Registry, md5s: Iterable[str], what: str, lists_only: bool = False) -> int:
    """Put the objects into the cache where they are not there yet; how many came. `x.dir` means the list and its files,
    or with `lists_only` the list alone.

    `what` names them in messages ("the student of gen/4"). Each is hashed on arrival. Those that can be had are brought
    even where others cannot. Raises RegistryError where no remote is named or none has them, StorageFull, InputError or
    FlywheelError where a remote cannot be reached, with what to do.
    """
    wanted = absent(registry, md5s, lists_only)
    if not wanted:
        return 0
    there = sources(registry)
    if not there:
        raise RegistryError(
            f"{what} ({_names(wanted)}) is not in the cache and no remote has it: none is named; name one that has it "
            "with `dvc remote add -d NAME URL`, or copy .dvc/cache from where it was made"
        )
    count, told = 0, []
    for remote in there:
        done = _run(registry, remote, "bring", wanted, what, lists_only=lists_only)
        count += len(done["brought"])
        dropped.forget(registry, done["brought"])
        if wrong := done["wrong"]:
            told.append(f"remote {remote} has {len(wrong)} damaged: {_names(wrong)} hash to something else")
        if lacks := done["lacks"]:
            told.append(f"the remote lacks {_names(lacks)}: {remote}")
        wanted = absent(registry, wanted, lists_only)
        if not wanted:
            return count
    raise RegistryError(
        f"{what} is not in the cache and no remote has it: {'; '.join(told)}; where a machine has it, "
        "`flywheel push` there sends it, else restore it from a copy of .dvc/cache"
    )


def absent(registry: Registry, md5s: Iterable[str], lists_only: bool = False) -> list[str]:
    """Those of the objects that are not in the cache, or of which (unless `lists_only`) a list's file is not."""
    missing = []
    for md5 in sorted(set(md5s)):
        path = cache.cache_path(registry, md5)
        if not path.exists() or (
            not lists_only
            and md5.endswith(".dir")
            and not all(cache.cache_path(registry, file).exists() for file in contents.listed(registry, md5).values())
        ):
            missing.append(md5)
    return missing


def send(registry: Registry, md5s: Iterable[str], what: str) -> Sent:
    """Send objects of the cache that the default remote lacks, and see them arrive; lists of files last.

    `x.dir` means the list alone: name its files too. Raises RegistryError without a remote or where an object is not in
    the cache, else as `bring` does where the remote cannot be reached, and FlywheelError where it did not keep them.
    """
    remote = default(registry)
    if remote is None:
        raise RegistryError(f"no remote is named for {what}; name one: `flywheel push --remote URL`")
    objects = sorted(set(md5s))
    if not objects:
        return Sent(0, 0, 0)
    if away := absent(registry, objects, lists_only=True):
        raise RegistryError(f"{what} cannot be sent: {_names(away)} not in the cache; restore .dvc/cache from a copy")
    done = _run(registry, remote, "send", objects, what)
    if done["damaged"]:
        raise RegistryError(
            f"{what} cannot be sent: {_names(done['damaged'])} in the cache do not hash to their names, so they are "
            "damaged; `flywheel verify` says what they belong to, restore them from a copy"
        )
    if done["lacks"]:
        raise FlywheelError(
            f"remote {remote} took {what} but still lacks {_names(done['lacks'])}; check its space and run again"
        )
    return Sent(done["sent"], done["bytes"], done["held"])


def held(registry: Registry, md5s: Iterable[str], prove: bool = False) -> set[str]:
    """Which of the objects the default remote has, asked now; of those in the cache only where the size is the same.

    `prove`: in a folder they are hashed too; a service is believed to give back what was sent, which was hashed. The
    files of a list are not asked for along with it. Raises as `send`.
    """
    remote = default(registry)
    if remote is None:
        raise RegistryError("no remote is named, so none can be asked; name one: `flywheel push --remote URL`")
    objects = sorted(set(md5s))
    if not objects:
        return set()
    sizes = _run(registry, remote, "held", objects, "what the remote has", prove=prove)["sizes"]
    return {md5 for md5, size in sizes.items() if _size(cache.cache_path(registry, md5)) in {None, size}}


def clear_staging(registry: Registry) -> None:
    """Remove what processes that were killed had brought only in part."""
    folder = cache.cache_folder(registry.root)
    for path in sorted(folder.glob(f"{_STAGING}*")) if folder.is_dir() else []:
        host, _, rest = path.name.removeprefix(_STAGING).partition("-")
        # Another machine's processes cannot be seen from here; what they left goes when it is old.
        dead = host == _host() and not Path(f"/proc/{rest.partition('-')[0]}").exists()
        with contextlib.suppress(FileNotFoundError):
            if dead or time.time() - path.stat().st_mtime > _OLD_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _named(registry: Registry, name: str) -> Remote | None:
    for section in (f"'remote \"{name}\"'", f'remote "{name}"'):
        url = cache.setting(registry.root, section, "url")
        if url:
            return Remote(name, redacted(url))
    return None


def _run(registry: Registry, remote: Remote, work: str, md5s: list[str], what: str, **flags: bool) -> dict[str, Any]:
    """One child's work; its answer. Raises what the child could not do, in words for the user."""
    clear_staging(registry)
    folder = cache.cache_folder(registry.root)
    staging = folder / f"{_STAGING}{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    request = {
        "root": str(registry.root),
        "remote": remote.name,
        "work": work,
        "objects": md5s,
        **flags,
        "cache": str(folder / "files" / "md5"),
        "staging": str(staging),
    }
    shown = Shown(f"{_VERBS[work]} {what}")
    with tempfile.TemporaryFile() as noise:
        with lock.lent(registry.root) as descriptors:
            child = subprocess.Popen(
                # -P: the registry's folders must not stand in for Python packages of the same name.
                [sys.executable, "-P", str(_CHILD)],
                cwd=registry.root,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=noise,
                env=git.environment(DVC_NO_ANALYTICS="1", DO_NOT_TRACK="1"),
                pass_fds=descriptors,
                start_new_session=True,
            )
        try:
            answer = _talk(child, request, shown)
        finally:
            child.kill()
            child.wait()
            shutil.rmtree(staging, ignore_errors=True)
            shown.clear()
        if "done" in answer:
            done: dict[str, Any] = answer["done"]
            return done
        noise.seek(0)
        lines = noise.read().decode("utf-8", "replace").strip().splitlines()
    words = lines[-1] if lines else f"the child ended with status {child.returncode}"
    failed = answer.get("failed", {"kind": "other", "words": words})
    raise _explained(remote, f"{_VERBS[work]} {what}", str(failed["kind"]), redacted(str(failed["words"])))


def _talk(child: subprocess.Popen[bytes], request: dict[str, Any], shown: Shown) -> dict[str, Any]:
    """Give the child its request and hear it out; its last answer, {} if it died without one."""
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdout:
        with contextlib.suppress(BrokenPipeError), child.stdin:
            child.stdin.write(json.dumps(request).encode())
        answer: dict[str, Any] = {}
        for line in child.stdout:
            answer = json.loads(line)
            if "progress" not in answer:
                break
            shown.tell(answer["progress"])
    return answer


class Shown:
    """Progress on stderr, where that is a terminal: one line, rewritten."""

    def __init__(self, what: str) -> None:
        self.what, self.width = what, 0

    def tell(self, progress: dict[str, int]) -> None:
        if not (sys.stderr.isatty() and progress["of"]):
            return
        done, total = progress["bytes"] / 2**20, progress["of_bytes"] / 2**20
        text = f"{self.what}: {progress['objects']} of {progress['of']} objects, {done:.1f} of {total:.1f} MiB"
        sys.stderr.write(f"\r{text:<{self.width}}")
        sys.stderr.flush()
        self.width = len(text)

    def clear(self) -> None:
        if self.width:
            sys.stderr.write(f"\r{'':<{self.width}}\r")
            sys.stderr.flush()
            self.width = 0


_VERBS = {"bring": "bringing", "send": "sending", "held": "asking for"}


def _explained(remote: Remote, doing: str, kind: str, words: str) -> FlywheelError:
    """The error for what a child could not do; `words` are those of DVC or of its file system."""
    scheme = remote.url.partition("://")[0] if "://" in remote.url else ""
    start = f"{doing} failed at remote {remote}: "
    if kind == "extra":
        package = {"s3": "s3", "ssh": "ssh"}.get(scheme)
        install = f"'flywheel-search[{package}]'" if package else f"'dvc[{scheme}]'"
        return InputError(f"{start}{words}; install what it needs: pip install {install}")
    if kind == "bucket":
        return InputError(f"{start}{words}; make the bucket, or name another with `flywheel push --remote URL`")
    if kind == "credentials":
        return InputError(
            f"{start}{words}; put credentials that may use it into the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY), ~/.aws or .dvc/config.local"
        )
    if kind == "absent":
        return RegistryError(f"{start}the remote lacks them: {words}")
    if kind == "full":
        return StorageFull(f"{start}no space left: {words}; free some and run again: what came is kept")
    if kind == "connection":
        return FlywheelError(
            f"{start}{words}; see whether the service runs and is reached from here, then run again: what was "
            "transferred is kept"
        )
    if kind == "config":
        return InputError(f"{start}{words}; see `dvc remote list` and `dvc remote modify`")
    if kind == "unsafe":
        return RegistryError(f"{start}{words}; nothing of it was written: do not trust this remote")
    return FlywheelError(f"{start}{words}")


def _names(md5s: Collection[str]) -> str:
    """How many objects, and the first few by name."""
    first = ", ".join(sorted(md5s)[:_NAMES_SHOWN])
    more = ", ..." if len(md5s) > _NAMES_SHOWN else ""
    return f"{len(md5s)} object{'' if len(md5s) == 1 else 's'}: {first}{more}"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())
