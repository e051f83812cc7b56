"""The child that talks to a DVC remote: which objects it has, bringing some into the cache, sending some to it.

Run by file path with one JSON request on stdin; answers in JSON lines on stdout: {"progress": ...} while it works,
{"done": ...} or {"failed": {"kind", "words"}} at the end. It reads DVC's config and moves bytes with DVC's own file
systems, and imports nothing of Flywheel. It neither takes DVC's lock nor trusts DVC's notes of what a remote had: the
remote is asked. Bytes arrive in a staging folder beside the cache, are hashed there, made read-only and renamed, so
that no half or wrong object ever has an object's name, whenever this process dies.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

_FEW = 256
"""Up to so many objects are asked for one by one; for more the remote is listed, a thousand a request."""
_BATCH_OBJECTS = 128
_BATCH_BYTES = 256 * 2**20
"""A batch is hashed and in the cache before the next is brought: what a kill can cost."""
_BEAT_SECONDS = 1.0
_ROOM_BYTES = 16 * 2**20
_OBJECT = re.compile(r"[0-9a-f]{32}(\.dir)?")


class Refused(Exception):  # noqa: N818 (an answer, not a fault)
    """Something to be told to the user: `kind` is what the parent knows how to explain."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


class Store:
    """A remote's objects. `sizes` asks for them by their MD5 (of a folder's list with `.dir` at the end)."""

    def __init__(self, root: str, name: str) -> None:
        from dvc.config import Config
        from dvc.fs import get_cloud_fs

        config = Config(os.path.join(root, ".dvc"))
        kind, settings, path = get_cloud_fs(config, name=name)
        if settings.get("version_aware") or settings.get("worktree"):
            raise Refused("config", "it is a cloud-versioned remote, where objects are not found by their digest")
        # DVC would lend the user's SSH agent to the host; nothing there needs it.
        self.fs = kind(**settings, **({"agent_forwarding": False} if kind.protocol == "ssh" else {}))
        self.path = str(path)
        self.local = self.fs.protocol == "local"

    def where(self, md5: str) -> str:
        return str(self.fs.join(self.path, "files", "md5", md5[:2], md5[2:]))

    def require(self) -> None:
        """Raise what tells a remote that is not there from one that is empty."""
        if self.fs.protocol == "s3":
            self.fs.fs.info(self.path.split("/", 1)[0])
        elif self.local and not os.path.isdir(self.path):
            raise Refused("absent", f"there is no folder {self.path}; is its disk mounted?")

    def sizes(self, md5s: set[str]) -> dict[str, int]:
        """Bytes of each of `md5s` that the remote has."""
        self.fs.fs.invalidate_cache()
        if len(md5s) > _FEW and not self.local:
            base = self.fs.join(self.path, "files", "md5")
            try:
                found = self.fs.fs.find(base, detail=True)
            except FileNotFoundError:
                return {}
            names = {"".join(path.rsplit("/", 2)[-2:]): info for path, info in found.items()}
            return {md5: int(names[md5]["size"]) for md5 in md5s if md5 in names}
        wanted = sorted(md5s)
        answers = self.fs.info([self.where(md5) for md5 in wanted], return_exceptions=True)
        there = {}
        for md5, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, FileNotFoundError | NotADirectoryError):
                continue
            if isinstance(answer, BaseException):
                raise answer
            there[md5] = int(answer["size"])
        return there


class Progress:
    """Objects and bytes so far, told once a second by a thread; a parent that is gone ends this process."""

    def __init__(self) -> None:
        self.value: dict[str, int] = {"objects": 0, "of": 0, "bytes": 0, "of_bytes": 0}
        self._guard = threading.Lock()
        threading.Thread(target=self._beat, daemon=True).start()

    def add(self, objects: int, count: int) -> None:
        with self._guard:
            self.value["objects"] += objects
            self.value["bytes"] += count

    def _beat(self) -> None:
        while True:
            time.sleep(_BEAT_SECONDS)
            try:
                say({"progress": self.value})
            except OSError:
                os._exit(1)


_saying = threading.Lock()


def say(answer: dict[str, Any]) -> None:
    """One line of the answer; raises OSError where nobody reads it any more."""
    with _saying:
        os.write(1, (json.dumps(answer) + "\n").encode())


def held(store: Store, request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """{"sizes": bytes of each object that the remote has}; with "prove" none of those that a folder has wrong."""
    store.require()
    sizes = store.sizes(set(request["objects"]))
    if request["prove"] and store.local:
        sizes = {md5: size for md5, size in sizes.items() if _md5(store.where(md5)) == md5.partition(".")[0]}
    return {"sizes": sizes}


def bring(store: Store, request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """{"brought": objects put into the cache, "bytes", "lacks": objects that neither has, "wrong": those of which the
    remote has other bytes}. A `.dir` stands for the list and, unless "lists_only", for the files it names."""
    store.require()
    done: dict[str, Any] = {"brought": [], "bytes": 0, "lacks": [], "wrong": []}
    wanted = set(request["objects"])
    lists = {md5 for md5 in wanted if md5.endswith(".dir")}
    _bring(store, request, {md5 for md5 in lists if not os.path.exists(_cached(request, md5))}, progress, done)
    files = wanted - lists
    for md5 in set() if request["lists_only"] else lists - set(done["lacks"]) - set(done["wrong"]):
        files |= _listed(_cached(request, md5))
    _bring(store, request, {md5 for md5 in files if not os.path.exists(_cached(request, md5))}, progress, done)
    return done


def _bring(store: Store, request: dict[str, Any], wanted: set[str], progress: Progress, done: dict[str, Any]) -> None:
    from dvc_objects.fs import generic
    from dvc_objects.fs.local import localfs

    if not wanted:
        return
    sizes = store.sizes(wanted)
    done["lacks"] += sorted(wanted - set(sizes))
    total, free = sum(sizes.values()), shutil.disk_usage(request["staging"]).free
    if total + _ROOM_BYTES > free:
        raise Refused("full", f"{total} bytes are to come, {free} are free at {request['cache']}")
    progress.value["of"] += len(sizes)
    progress.value["of_bytes"] += total
    for batch in _batches(sizes):
        sources = [store.where(md5) for md5 in batch]
        staged = [os.path.join(request["staging"], md5) for md5 in batch]
        generic.copy(store.fs, sources, localfs, staged, callback=_counting(progress), on_error=_raise)
        for md5, path in zip(batch, staged, strict=True):
            if _md5(path) != md5.partition(".")[0]:
                done["wrong"].append(md5)
                continue
            if md5.endswith(".dir"):
                _listed(path)
            _install(path, _cached(request, md5))
            done["brought"].append(md5)
            done["bytes"] += sizes[md5]


def send(store: Store, request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """{"sent", "bytes", "held": objects that were there, "lacks": objects that are still not there or of another size,
    "damaged": objects of the cache that do not hash to their names, at the first of which sending ends}. Lists of files
    go last: what a list names is there before it."""
    from dvc_objects.fs import generic
    from dvc_objects.fs.local import localfs

    if store.local:
        os.makedirs(store.path, exist_ok=True)
    store.require()
    sizes = {md5: os.path.getsize(_cached(request, md5)) for md5 in request["objects"]}
    there = store.sizes(set(sizes))
    missing = {md5: size for md5, size in sizes.items() if there.get(md5) != size}
    progress.value["of"] += len(missing)
    progress.value["of_bytes"] += sum(missing.values())
    done: dict[str, Any] = {"sent": 0, "bytes": 0, "held": len(sizes) - len(missing), "lacks": [], "damaged": []}
    for batch in _batches(missing):
        targets = [store.where(md5) for md5 in batch]
        # Where they are there as half of an object, some file systems would not write over it.
        sources = [_cached(request, md5) for md5 in batch]
        # What is damaged here must not stand there under a sound one's name.
        hashes = [(md5, _md5(source)) for md5, source in zip(batch, sources, strict=True)]
        if damaged := [md5 for md5, found in hashes if found != md5.partition(".")[0]]:
            return {**done, "damaged": damaged}
        generic.copy(localfs, sources, store.fs, targets, callback=_counting(progress), on_error=_raise)
        if store.local:
            for target in targets:
                os.chmod(target, 0o444)
    after = store.sizes(set(missing)) if missing else {}
    lacks = sorted(md5 for md5, size in missing.items() if after.get(md5) != size)
    sent = {"sent": len(missing) - len(lacks), "bytes": sum(missing[md5] for md5 in after if md5 not in lacks)}
    return {**done, **sent, "lacks": lacks}


def _batches(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Objects in bounded batches, lists of files last."""
    batch: list[str] = []
    count = 0
    for md5 in sorted(sizes, key=lambda md5: (md5.endswith(".dir"), md5)):
        turn = bool(batch) and md5.endswith(".dir") != batch[-1].endswith(".dir")
        if len(batch) == _BATCH_OBJECTS or (batch and count + sizes[md5] > _BATCH_BYTES) or turn:
            yield batch
            batch, count = [], 0
        batch.append(md5)
        count += sizes[md5]
    if batch:
        yield batch


def _cached(request: dict[str, Any], md5: str) -> str:
    return os.path.join(request["cache"], md5[:2], md5[2:])


def _listed(path: str) -> set[str]:
    """MD5s of the files that a `.dir` list names. Raises Refused where it would put a file outside its folder."""
    with open(path, encoding="utf-8") as file:
        entries = json.load(file)
    for entry in entries:
        parts = str(entry["relpath"]).split("/")
        if parts[0] == "" or ".." in parts or "\\" in entry["relpath"]:
            raise Refused("unsafe", f"a list of files names {entry['relpath']!r}, which lies outside its folder")
    return _objects(entry["md5"] for entry in entries)


def _objects(names: Iterable[Any]) -> set[str]:
    """The names as a set, once each is an object's: they become paths."""
    found = {str(name) for name in names}
    for name in found:
        if not _OBJECT.fullmatch(name):
            raise Refused("unsafe", f"{name!r} is not an MD5")
    return found


def _md5(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _install(staged: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(staged, "rb") as file:
        # The name must not outlive the bytes in a power cut.
        os.fsync(file.fileno())
    os.chmod(staged, 0o444)
    os.replace(staged, target)


def _raise(_source: str, _target: str, error: BaseException) -> None:
    raise error


def _counting(progress: Progress) -> Any:
    """A callback that counts what DVC's file systems tell: objects by the call, bytes by each file's branch."""
    from fsspec.callbacks import Callback

    class Bytes(Callback):  # type: ignore[misc]
        told = 0

        def relative_update(self, inc: int = 1) -> None:
            progress.add(0, inc)

        def absolute_update(self, value: int) -> None:
            progress.add(0, value - self.told)
            self.told = value

    class Objects(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            progress.add(inc, 0)

        def branched(self, path_1: str, path_2: str, **_: Any) -> Any:
            return Bytes()

    return Objects()


def explain(error: BaseException) -> Refused:
    """What went wrong, by kind: extra, credentials, bucket, connection, full, config, other."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or following.__context__
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    words = " / ".join(dict.fromkeys(str(link).strip() or type(link).__name__ for link in chain))
    if isinstance(error, Refused):
        return error
    if any(isinstance(link, OSError) and link.errno in {28, 122} for link in chain):
        return Refused("full", words)
    for kind, classes, texts in _KINDS:
        if names & classes or any(text in words for text in texts):
            return Refused(kind, words)
    return Refused("other", f"{type(error).__name__}: {words}")


_KINDS = (
    ("extra", {"RemoteMissingDepsError", "ImportError"}, ("is supported, but requires",)),
    ("bucket", {"NoSuchBucket"}, ("bucket does not exist", "HeadBucket operation: Not Found")),
    (
        "credentials",
        {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound", "AuthError"},
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "Access Denied", "403", "ExpiredToken",
         "Permission denied"),
    ),
    (
        "connection",
        {"EndpointConnectionError", "ConnectionError", "HTTPClientError", "ClientConnectionError", "TimeoutError",
         "ConnectionLost", "gaierror"},
        ("Could not connect", "Connection refused", "Name or service not known"),
    ),
    ("config", {"ConfigError", "RemoteNotFoundError"}, ()),
)  # fmt: skip


def main() -> int:
    request = json.load(sys.stdin)
    # Only answers go to stdout; what libraries print goes to stderr.
    sys.stdout = sys.stderr
    work = {"held": held, "bring": bring, "send": send}[request["work"]]
    try:
        _objects(request["objects"])
        os.makedirs(request["staging"], exist_ok=True)
        progress = Progress()
        done = work(Store(request["root"], request["remote"]), request, progress)
    except Exception as error:  # noqa: BLE001 (told to the parent, whatever it is)
        told = explain(error)
        say({"failed": {"kind": told.kind, "words": str(told)}})
        return 1
    say({"done": done})
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Threads of file systems need not be waited for: all bytes are where they belong.
    os._exit(code)
