"""`verify`: walks git, dvc.lock, the cache, the tables and MLflow, and says what of a registry's history does not hold.

    git objects, refs ─> tags, commits, anchors ─> manifests ─> cache: every byte ─> weights ─> tables ─> MLflow, queue

It takes no lock and changes nothing. The list of tags is taken once; a generation that a run publishes meanwhile, and
the files of one in progress, are left alone. A bound on its word: the newest tag is held by MLflow alone, and a history
rewritten whole, tags, commits, objects and database, is another history.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flywheel.errors import FlywheelError
from storage import git
from storage.registry import Registry
from storage.verification import generations, manifests, objects, pointers, repository, tags, worktree
from storage.verification.chain import Chain
from storage.verification.findings import Failure, Findings, Tell
from storage.verification.generations import Generation
from storage.verification.repository import Refs
from storage.verification.tags import History, Tag


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was looked at and what was found. `quick`: nothing was hashed in the cache, no table opened."""

    quick: bool
    checked: dict[str, int]
    failures: list[Failure]
    notes: list[str]
    seconds: float
    bytes_per_second: float

    @property
    def ok(self) -> bool:
        return not self.failures

    def document(self) -> dict[str, Any]:
        """What `flywheel verify --json` prints."""
        return {
            "ok": self.ok,
            "quick": self.quick,
            "checked": self.checked,
            "failures": [asdict(failure) for failure in self.failures],
            "notes": self.notes,
            "seconds": round(self.seconds, 3),
            "bytes_per_second": round(self.bytes_per_second),
        }


COUNTED = (
    "commits", "tags", "anchors", "git_objects", "files", "manifests", "objects", "bytes", "elsewhere", "lost",
    "models", "unverified", "tables", "rows", "aliases",
)  # fmt: skip


def silent(_what: str, _done: int, _of: int) -> None:
    """Tells nobody."""


def verify(root: Path, quick: bool = False, jobs: int | None = None, tell: Tell = silent) -> Verdict:
    """Verify the registry at `root`, with `jobs` threads (default: one a core).

    `quick` leaves out hashing the cache, weights and tables: there objects are only looked for, and their sizes
    compared. Raises RegistryError for a folder that is no registry or one of a newer version; whatever else is wrong
    with it is among the failures.
    """
    start = time.monotonic()
    registry, findings = _open(root), Findings()
    threads = jobs or os.cpu_count() or 1
    speed = 0.0
    try:
        known = repository.refs(registry.root)
        repository.check(registry.root, known, findings)
    except FlywheelError as error:
        repository.check_refs(registry.root, registry.root / ".git", findings)
        fix = "restore .git from a clone or a backup"
        findings.fail("git", ".git", f"git does not take it for a repository: {error}"[:400], fix)
    else:
        tell("reading git", 0, 1)
        named, history, made = _history(registry, known, findings)
        speed = _contents(registry, made, findings, quick, threads, tell)
        pointers.check_mlflow(registry, made, named, history, findings)
    checked = {name: findings.checked[name] for name in COUNTED}
    return Verdict(quick, checked, findings.failures, findings.notes, time.monotonic() - start, speed)


def _open(root: Path) -> Registry:
    """As `Registry.open`, for a registry that may be damaged, or stand on no branch."""
    registry = Registry(Path(os.path.realpath(root)))
    layout = registry.layout
    if not (registry.root / ".git").exists() or not (layout.marker.is_file() or layout.lineage.is_dir()):
        return Registry.open(root)  # says what is wrong
    try:
        version = json.loads(layout.marker.read_text(encoding="utf-8"))["registry_version"]
    except (OSError, ValueError, KeyError, TypeError):
        return registry
    if not isinstance(version, int) or git.attempt(registry.root, "symbolic-ref", "-q", "HEAD") is None:
        return registry
    return Registry.open(root)


def _history(
    registry: Registry, known: Refs, findings: Findings
) -> tuple[dict[int, Tag], History, dict[int, Generation]]:
    """All that git holds: tags, commits, and what tracked files say."""
    root = registry.root
    named = tags.read_tags(root, known, findings)
    history = tags.read_history(root, known, findings)
    underway = pointers.check_state(registry, named, findings)
    tags.check(registry, known, named, history, underway, findings)
    placed = tags.in_place(known, named, history)
    tags.check_rollbacks(root, known, placed, history, findings)
    chain = Chain(findings)
    for files in generations.read(root, placed, history, findings):
        parsed = generations.parse(files, findings)
        if parsed is not None:
            generation, lock = parsed
            manifests.check(files, generation, lock, findings)
            chain.add(generation, files)
    worktree.check(registry, findings)
    worktree.check_head(registry, known.head, placed, history, underway, findings)
    return named, history, chain.known


def _contents(
    registry: Registry, made: dict[int, Generation], findings: Findings, quick: bool, jobs: int, tell: Tell
) -> float:
    """All that DVC holds: objects, and unless `quick` weights and tables; bytes hashed a second."""
    try:
        held = objects.gather(registry, made.values(), findings)
    except (FlywheelError, UnicodeDecodeError) as error:
        why = f"DVC's settings cannot be read, so its cache was not looked at: {error}"
        findings.fail("file", ".dvc/config", why, f"`git -C {registry.root} restore .dvc/config`")
        return 0.0
    for generation in made.values():
        with generations.shaped(findings, generation.name):
            objects.check_tables(held, generation)
    speed = objects.check(held, jobs, quick, tell)
    objects.check_absent(held)
    if not quick:
        from storage.verification import models, tables

        models.check(held, made.values(), jobs, tell)
        tables.check_all(held, made.values(), jobs, tell)
    return speed
