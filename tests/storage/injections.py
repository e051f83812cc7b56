"""Damage for `verify` to find: one at a time, at random places of a registry, each taken back afterwards.

    python -m tests.storage.injections REGISTRY SECONDS SEED [bits]     on a copy: how many were made, which not found

A byte is turned round whole, or with `bits` in one bit. What is expected of a finding: a failure whose address or words
name what was damaged.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from storage import cache, git
from storage.registry import Registry
from storage.verification.verify import Verdict, verify


@dataclass(frozen=True, slots=True)
class Injection:
    """What was done to what; `named`: texts of which one must stand in a failure; `quick`: whether the quick
    verification must find it, too."""

    what: str
    named: tuple[str, ...]
    quick: bool


@dataclass(slots=True)
class Tally:
    """Injections by kind, and those that were not found, with what was found in their place."""

    made: dict[str, int] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)


def run(registry: Registry, seconds: float, seed: int, least: int = 0) -> Tally:
    """Inject for so long, and at least so many; the registry is as before in the end."""
    rng, tally = random.Random(seed), Tally()
    injectors = kinds(registry)
    end = time.monotonic() + seconds
    done = 0
    while time.monotonic() < end or done < least:
        inject = injectors[done % len(injectors)]
        with inject(registry, rng) as injection:
            verdict = verify(registry.root, quick=injection.quick, jobs=1)
        name = injection.what.partition(":")[0]
        tally.made[name] = tally.made.get(name, 0) + 1
        if not found(verdict, injection):
            said = [f"{failure.where}: {failure.why}" for failure in verdict.failures]
            tally.missed.append(f"{injection.what}, expected {injection.named}, got {said[:3]}")
        done += 1
    return tally


def found(verdict: Verdict, injection: Injection) -> bool:
    """Whether a failure names what was damaged."""
    texts = [f"{failure.where} {failure.why}" for failure in verdict.failures]
    return not verdict.ok and any(name in text for name in injection.named for text in texts)


Injector = Callable[[Registry, random.Random], "contextmanager[Injection]"]


def kinds(registry: Registry) -> list[Callable[..., object]]:
    """What can be done to this registry."""
    able: list[Callable[..., object]] = [flip_object, flip_work_file, flip_cached, remove_cached, swap_tables, move_tag]
    able += [remake_generation, remove_tag, flip_ref]
    if loose_objects(registry):
        able.append(remove_object)
    return able


def loose_objects(registry: Registry) -> list[Path]:
    """Files of loose git objects that something names; others are nobody's loss."""
    text = git.run(registry.root, "rev-list", "--objects", "--all", "--no-object-names")
    tags = git.run(registry.root, "for-each-ref", "--format=%(objectname)", "refs/tags").split()
    paths = [registry.root / ".git" / "objects" / name[:2] / name[2:] for name in sorted({*text.split(), *tags})]
    return [path for path in paths if path.exists()]


def packs(registry: Registry) -> list[Path]:
    return sorted(
        path for path in (registry.root / ".git" / "objects" / "pack").glob("*") if path.suffix in {".pack", ".idx"}
    )


def named_objects(registry: Registry) -> dict[str, str]:
    """Every object in the cache that a generation names -> a path of it."""
    found: dict[str, str] = {}
    for number in registry.generations():
        tag = f"gen/{number:04d}"
        texts = git.read_many(registry.root, [f"{tag}:{name}" for name in ("dvc.lock", "parent.dvc", "judge.dvc")])
        outputs = list(cache.lock_outputs((texts[0] or b"").decode()).values())
        outputs += [cache.pointed(text.decode()) for text in texts[1:] if text is not None]
        for output in outputs:
            if output.cached:
                found.setdefault(output.md5, output.path)
                for inside, md5 in cache.tree(registry, output).items():
                    found.setdefault(md5, f"{output.path}/{inside}")
    return found


@contextmanager
def kept(*paths: Path) -> Iterator[None]:
    """Puts files back as they were, cut loose from others that shared their bytes."""
    held = {path: (path.read_bytes(), path.stat().st_mode) if path.exists() else None for path in paths}
    try:
        yield
    finally:
        for path, content in held.items():
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content[0])
                path.chmod(content[1])


_MASKS = [0xFF]


def flip(path: Path, rng: random.Random) -> int:
    """Turn a byte round; its place. The file is made anew, so that links to it keep theirs."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    content[place] ^= rng.choice(_MASKS)
    path.unlink()
    path.write_bytes(content)
    return place


@contextmanager
def flip_object(registry: Registry, rng: random.Random) -> Iterator[Injection]:
    path = rng.choice([*loose_objects(registry), *packs(registry)])
    with kept(path):
        place = flip(path, rng)
        name = path.relative_to(registry.root).as_posix()
        kind = "git pack" if "pack" in name else "git object"
        yield Injection(f"{kind}: byte {place} of {name}", (name, path.stem), True)


@contextmanager
def remove_object(registry: Registry, rng: random.Random) -> Iterator[Injection]:
    path = rng.choice(loose_objects(registry))
    with kept(path):
        path.unlink()
        name = path.relative_to(registry.root).as_posix()
        yield Injection(f"git object removed: {name}", (name,), True)


@contextmanager
def flip_ref(registry: Registry, rng: random.Random) -> Iterator[Injection]:
    folder = registry.root / ".git"
    choices = [*sorted((folder / "refs").rglob("*")), folder / "packed-refs", folder / "HEAD"]
    path = rng.choice([path for path in choices if path.is_file()])
    with kept(path):
        place = flip(path, rng)
        name = path.relative_to(registry.root).as_posix()
        # Without a HEAD git takes it for no repository at all.
        tag = name.removeprefix(".git/refs/tags/")
        yield Injection(f"ref: byte {place} of {name}", (name, tag, *([".git "] if path.name == "HEAD" else [])), True)


@contextmanager
def remove_tag(registry: Registry, rng: random.Random) -> Iterator[Injection]:
    tag = f"gen/{rng.choice(registry.generations()):04d}"
    with refs_kept(registry):
        git.run(registry.root, "tag", "-d", tag)
        yield Injection(f"tag removed: {tag}", (tag,), True)


@contextmanager
def move_tag(registry: Registry, rng: random.Random) -> Iterator[Injection]:
    """To another generation's commit, or made again where it is, as an annotated tag or a plain one."""
    number = rng.choice(registry.generations())
    other = rng.choice([*registry.generations()])
    tag, how = f"gen/{number:04d}", rng.choice(["annotated", "plain"])
    words = ["-a", "-m", f"Generation {number}"] if how == "annotated" else []
    with refs_kept(registry):
        if number == max(registry.generations()) and other == number and how == "annotated":
            other = 0  # the newest, made anew where it was, is known to MLflow alone
        git.run(registry.root, "tag", "-f", *words, tag, f"gen/{other:04d}^{{commit}}")
        yield Injection(f"tag moved: {how} {tag} to gen/{other:04d}", (tag,), True)


@contextmanager
def remake_generation(registry: Registry, rng: random.Random) -> Iterator[Injection]:
    """An older generation's commit made anew with another ledger, and its tag with it, in good order."""
    number = rng.choice(registry.generations()[:-1])
    tag = f"gen/{number:04d}"
    root = registry.root
    with refs_kept(registry), kept(root / ".git" / "index"):
        message = git.run(root, "log", "-1", "--format=%B", tag)
        parent = git.run(root, "rev-parse", f"{tag}^{{commit}}^")
        path = f"ledger/{number:04d}.jsonl"
        text = git.run(root, "show", f"{tag}:{path}").replace('"seconds":0.5', '"seconds":0.25')
        blob = git.run(root, "hash-object", "-w", "--stdin", stdin=text + "\n")
        git.run(root, "read-tree", f"{tag}^{{tree}}")
        git.run(root, "update-index", "--cacheinfo", f"100644,{blob},{path}")
        commit = git.run(root, "commit-tree", git.run(root, "write-tree"), "-p", parent, stdin=message + "\n")
        git.run(root, "tag", "-f", "-a", "-m", f"Generation {number}", tag, commit)
        yield Injection(f"generation made anew: {tag}", (tag,), True)


@contextmanager
def refs_kept(registry: Registry) -> Iterator[None]:
    """Puts tags back as they were."""
    tags = registry.root / ".git" / "refs" / "tags"
    packed = registry.root / ".git" / "packed-refs"
    loose = [tags / "gen" / f"{number:04d}" for number in registry.generations()]
    with kept(packed, *loose):
        yield


@contextmanager
def flip_cached(registry: Registry, rng: random.Random) -> Iterator[Injection]:
    md5, place_of = rng.choice(sorted(named_objects(registry).items()))
    path = cache.cache_path(registry, md5)
    with kept(path):
        place = flip(path, rng)
        name = f"{md5[:2]}/{md5[2:]}"
        yield Injection(f"cached: byte {place} of {name} ({place_of})", (name,), md5.endswith(".dir"))


@contextmanager
def remove_cached(registry: Registry, rng: random.Random) -> Iterator[Injection]:
    md5, place_of = rng.choice(sorted(named_objects(registry).items()))
    path = cache.cache_path(registry, md5)
    with kept(path):
        path.unlink()
        yield Injection(f"cached object removed: {place_of}", (f"{md5[:2]}/{md5[2:]}",), True)


@contextmanager
def swap_tables(registry: Registry, rng: random.Random) -> Iterator[Injection]:
    """Two cached Parquet files in each other's place."""
    tables = sorted(md5 for md5, path in named_objects(registry).items() if path.endswith(".parquet"))
    one, other = (cache.cache_path(registry, md5) for md5 in rng.sample(tables, 2))
    with kept(one, other):
        first, second = one.read_bytes(), other.read_bytes()
        for path, content in ((one, second), (other, first)):
            path.unlink()
            path.write_bytes(content)
        yield Injection(f"tables swapped: {one.name} and {other.name}", (one.name, other.name), False)


@contextmanager
def flip_work_file(registry: Registry, rng: random.Random) -> Iterator[Injection]:
    """A tracked file, with its time stamp put back, as git's index knows it."""
    names = [name for name in git.run(registry.root, "ls-files").split("\n") if (registry.root / name).stat().st_size]
    path = registry.root / rng.choice(names)
    name = path.relative_to(registry.root).as_posix()
    stamp = path.stat()
    with kept(path):
        if rng.random() < 0.2:
            path.unlink()
            yield Injection(f"file removed: {name}", (name,), True)
            return
        content = bytearray(path.read_bytes())
        place = rng.randrange(len(content))
        content[place] ^= rng.choice(_MASKS)
        with path.open("r+b") as file:
            file.write(content)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        yield Injection(f"file: byte {place} of {name}", (name,), True)


def main(root: str, seconds: str, seed: str, how: str = "bytes") -> int:
    if how == "bits":
        _MASKS[:] = [1 << bit for bit in range(8)]
    copy = Path(root + ".injected")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root, copy, symlinks=True)
    for packed in (False, True):
        registry = Registry.open(copy)
        if packed:
            git.run(copy, "gc", "-q")
        tally = run(registry, float(seconds) / 2, int(seed) + packed)
        print(f"packed {packed}: {sum(tally.made.values())} injections {tally.made}, {len(tally.missed)} missed")  # noqa: T201
        for missed in tally.missed:
            print(f"  {missed}")  # noqa: T201
        assert verify(copy).ok
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
