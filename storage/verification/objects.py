"""DVC's cache: every object that a generation names is there and hashes to its name.

Objects that `flywheel gc` dropped since a remote has them are counted, not missed. Files are read in large pieces by
several threads; hashing lets go of the interpreter's lock.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flywheel.errors import FlywheelError, RegistryError
from flywheel.params import folder_name
from storage import cache, dropped, exchange, needs, remotes, trust
from storage.verification.findings import Findings, Tell
from storage.verification.generations import Generation

if TYPE_CHECKING:
    from storage.registry import Registry

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where an object is first named: a path of a generation, or of what goes into it."""

    generation: int
    path: str

    def __str__(self) -> str:
        return f"gen/{self.generation}/{self.path}"


@dataclass(slots=True)
class Objects:
    """What the cache should hold, and what of it can be relied on."""

    registry: Registry
    findings: Findings
    places: dict[str, Place] = field(default_factory=dict)
    """Every object by MD5, lists of folders (`.dir`) too, in the order of generations."""
    trees: dict[str, dict[str, str]] = field(default_factory=dict)
    """A folder's files by the MD5 of its list: path in it -> MD5. Without those that are not there or damaged."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of the objects that are there."""
    sound: set[str] = field(default_factory=set)
    """Objects that were hashed (with `quick`: looked at) and found right."""
    has_remote: bool = False
    absent: list[str] = field(default_factory=list)
    """Objects that were looked for and not found."""

    def path(self, md5: str) -> Path:
        return cache.cache_path(self.registry, md5)

    def files(self, output: cache.Output) -> dict[str, str] | None:
        """The files of an output, if all of them are sound."""
        tree = self.trees.get(output.md5)
        return tree if tree is not None and self.sound.issuperset(tree.values()) else None

    def fail(self, md5: str, why: str) -> None:
        place = self.places[md5]
        fix = f"`flywheel pull gen/{place.generation}`"
        path = self.path(md5).relative_to(self.registry.root) if self._is_inside(md5) else self.path(md5)
        if md5 not in self.absent:
            fix = f"remove {path}, then {fix}"
        if not self.has_remote:
            fix = f"no remote is set; copy {path} from another copy of the registry"
        self.findings.fail("object", str(place), f"{why} ({path})", fix)

    def _is_inside(self, md5: str) -> bool:
        return self.path(md5).is_relative_to(self.registry.root)


def gather(registry: Registry, generations: Iterable[Generation], findings: Findings) -> Objects:
    """Every object that is named, once; the lists of folders are read and hashed here."""
    objects = Objects(registry, findings, has_remote=bool(remotes.sources(registry)))
    for generation in generations:
        pointers = [generation.parent, *([generation.judge] if generation.judge is not None else [])]
        for output in (*generation.outputs.values(), *pointers):
            if output.cached:
                _add(objects, generation.number, output)
        # Where a list was dropped, the tables in it may be there still.
        for entry in generation.lineage["tables"].values():
            for file in entry["files"]:
                _add_file(objects, str(file["md5"]), Place(generation.number, str(file["path"])))
    return objects


def _add(objects: Objects, number: int, output: cache.Output) -> None:
    if output.md5 not in objects.places:
        objects.places[output.md5] = Place(number, output.path)
        if output.md5.endswith(".dir"):
            _read_list(objects, output)
    tree = objects.trees.get(output.md5)
    if tree is None:
        return
    for inside, md5 in tree.items():
        _add_file(objects, md5, Place(number, f"{output.path}/{inside}"))
    if objects.sizes.keys() >= set(tree.values()):
        size = sum(objects.sizes[md5] for md5 in tree.values())
        if (size, len(tree)) != (output.size, output.files):
            why = f"its {len(tree)} files have {size} bytes, dvc.lock says {output.files} files of {output.size}"
            objects.findings.fail("object", f"gen/{number}/{output.path}", why, f"`flywheel pull gen/{number}`")


def _read_list(objects: Objects, output: cache.Output) -> None:
    md5 = output.md5
    content = _content(objects, md5)
    if content is None:
        return
    objects.sizes[md5] = len(content)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5.removesuffix(".dir"):
        objects.fail(md5, f"the list of files of {output.path}/ is damaged")
        return
    objects.sound.add(md5)
    objects.trees[md5] = {str(entry["relpath"]): str(entry["md5"]) for entry in json.loads(content)}


def _content(objects: Objects, md5: str) -> bytes | None:
    try:
        return objects.path(md5).read_bytes()
    except FileNotFoundError:
        objects.absent.append(md5)
    except OSError as error:
        objects.fail(md5, f"it cannot be read: {error.strerror}")
    return None


def _add_file(objects: Objects, md5: str, place: Place) -> None:
    if md5 in objects.places:
        return
    objects.places[md5] = place
    try:
        objects.sizes[md5] = objects.path(md5).stat().st_size
    except FileNotFoundError:
        objects.absent.append(md5)
    except OSError as error:
        objects.fail(md5, f"it cannot be read: {error.strerror}")


def check(objects: Objects, jobs: int, quick: bool, tell: Tell) -> float:
    """Hash every object that is there (with `quick`: none); bytes a second."""
    todo = sorted(objects.sizes.keys() - objects.trees.keys(), key=lambda md5: -objects.sizes[md5])
    todo = [md5 for md5 in todo if not md5.endswith(".dir")]
    objects.findings.count("objects", len(objects.sizes))
    if quick:
        objects.sound.update(todo)
        return 0.0
    total, done = sum(objects.sizes[md5] for md5 in todo), 0
    start = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for md5, found, size in pool.map(lambda md5: (md5, *_hash(objects.path(md5))), todo):
                done += size
                tell("hashing", done, total)
                if found == md5:
                    objects.sound.add(md5)
                elif found is None:
                    objects.absent.append(md5)
                else:
                    objects.fail(md5, _what_it_is(objects, found, size))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    seconds = time.monotonic() - start
    objects.findings.count("bytes", done)
    return done / seconds if seconds > 0 else 0.0


def _what_it_is(objects: Objects, found: str, size: int) -> str:
    if not found:
        return "it cannot be read"
    other = objects.places.get(found)
    return f"it holds the bytes of {other}" if other is not None else f"it is damaged: its {size} bytes hash to {found}"


def check_absent(objects: Objects) -> None:
    """Of the objects that were not found: those that `flywheel gc` dropped, maybe meanwhile, are elsewhere."""
    findings = objects.findings
    try:
        held = dropped.read(objects.registry)
    except RegistryError as error:
        findings.fail("pointer", ".flywheel/dropped.json", str(error), "remove it")
        held = dropped.Dropped(frozenset(), frozenset())
    absent = set(objects.absent)
    lost = absent & held.lost
    elsewhere = (absent & held.objects - lost) | _made_elsewhere(objects, absent - held.objects)
    for md5 in objects.absent:
        if md5 not in lost | elsewhere:
            objects.fail(md5, "it is not in the cache")
    if lost:
        findings.count("lost", len(lost))
        findings.note(f"{len(lost)} objects were dropped by `flywheel gc` without a copy anywhere; they are lost")
    if elsewhere:
        findings.count("elsewhere", len(elsewhere))
        findings.note(
            f"{len(elsewhere)} objects are not here but at the remote, and were not looked at; `flywheel pull --all` "
            "brings them"
        )


def _made_elsewhere(objects: Objects, absent: set[str]) -> set[str]:
    """Of generations that another machine made, a clone or a pull brings only what the head needs; the rest of them is
    at the remote."""
    registry = objects.registry
    if not absent or not objects.has_remote:
        return set()
    runs = registry.layout.local / "runs"
    theirs = {md5 for md5 in absent if not (runs / f"{folder_name(objects.places[md5].generation)}.json").exists()}
    try:
        if not (registry.layout.local / trust.MARK).exists() and exchange.origin_url(registry) is None:
            return set()
        needed = needs.to_go_on(registry)
    except FlywheelError:  # of a damaged registry, which is said elsewhere
        return set()
    needed |= {md5 for whole in needed & objects.trees.keys() for md5 in objects.trees[whole].values()}
    return theirs - needed


def _hash(path: Path) -> tuple[str | None, int]:
    """MD5 and size of a file's bytes; None for the MD5 of one that is gone, "" for one that cannot be read."""
    hashed, size = hashlib.md5(usedforsecurity=False), 0
    piece = memoryview(bytearray(_PIECE))
    try:
        with path.open("rb", buffering=0) as file:
            while read := file.readinto(piece):
                hashed.update(piece[:read])
                size += read
    except FileNotFoundError:
        return None, 0
    except OSError:
        return "", 0
    return hashed.hexdigest(), size


def check_tables(objects: Objects, generation: Generation) -> None:
    """Lineage's list of each table's files is that of the outputs, with their sizes."""
    listed = {
        f"{output.path}/{inside}": md5
        for output in generation.outputs.values()
        for inside, md5 in objects.trees.get(output.md5, {}).items()
    }
    whole = {path for path, output in generation.outputs.items() if output.md5 in objects.trees}
    named: set[str] = set()
    own = f"lineage/{generation.tag.name[4:]}.json of {generation.name}"
    for table, entry in generation.lineage["tables"].items():
        for file in entry["files"]:
            named.add(file["path"])
            is_known = any(file["path"].startswith(f"{path}/") for path in whole)
            if is_known and listed.get(file["path"]) != file["md5"]:
                why = f"table {table} has {file['path']} as {file['md5']}, its folder has {listed.get(file['path'])}"
                objects.findings.fail("manifest", own, why, "the registry's lineage is not what was published")
            held = objects.sizes.get(file["md5"])
            if held is not None and held != file["bytes"]:
                objects.fail(str(file["md5"]), f"it has {held} bytes, lineage says {file['bytes']}")
    models = tuple(f"{path}/" for path in ("student", "reward_model"))
    extra = {path for path in listed if path.endswith(".parquet") and not path.startswith(models)} - named
    for path in sorted(extra):
        objects.findings.fail("manifest", own, f"no table of it has {path}", "the lineage is not what was published")
