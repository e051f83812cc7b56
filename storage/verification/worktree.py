"""The work tree's tracked files against HEAD, byte for byte, and HEAD against the generation it stands for.

Git's own `status` trusts time stamps; here every file is hashed. What a generation in progress or a rollback under way
may have changed is left alone, by the rule of `Registry.check_clean`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flywheel.errors import FlywheelError
from storage import exclusions, git
from storage.registry import IN_PROGRESS, RECORDED, read_state
from storage.verification import repository
from storage.verification.findings import Findings
from storage.verification.generations import FIX
from storage.verification.tags import History, Tag

if TYPE_CHECKING:
    from storage.registry import Registry

_TRIES = 5
_USERS = {"dvc.yaml", ".gitignore", "params.yaml"}
"""Recorded files that a user may edit and commit between generations."""


def check(registry: Registry, findings: Findings) -> None:
    """Every tracked file holds the bytes that HEAD says. A HEAD that moved meanwhile is looked at again."""
    listed: list[tuple[str, str, str]] | None = []
    changed: list[tuple[str, str]] = []
    for _ in range(_TRIES):
        head, state = _now(registry)
        listed = _listed(registry.root, head) if head is not None else []
        changed = [
            (path, why)
            for path, mode, digest in listed or []
            if (why := _changed(registry.root / path, mode, digest)) and not _allowed(registry, state, path)
        ]
        if not changed or _now(registry) == (head, state):
            break
    if listed is None:
        findings.fail("git", ".git/HEAD", "the files of its commit cannot be listed", FIX)
    findings.count("files", len(listed or []))
    for path, why in changed:
        findings.fail("file", path, why, f"`git -C {registry.root} restore --staged --worktree -- {path}`")


def _now(registry: Registry) -> tuple[str | None, dict[str, Any]]:
    """HEAD's commit, and what is under way."""
    head = git.attempt(registry.root, "rev-parse", "-q", "--verify", "HEAD")
    try:
        return head, read_state(registry)
    except FlywheelError:  # `pointers` says so
        return head, {}


def _listed(root: Path, head: str) -> list[tuple[str, str, str]] | None:
    """(path, mode, object id) of every file of a commit."""
    text = git.attempt(root, "--no-replace-objects", "ls-tree", "-r", "-z", "--full-tree", head)
    if text is None:
        return None
    found = []
    for line in text.split("\0"):
        told, tab, path = line.partition("\t")
        if tab:
            mode, _, digest = told.split()
            found.append((path, mode, digest))
    return found


def _changed(path: Path, mode: str, digest: str) -> str | None:
    """Why a file is not what HEAD says, None where it is."""
    try:
        content = os.readlink(path).encode() if mode == "120000" else path.read_bytes()
    except FileNotFoundError:
        return "it is gone"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    hashed = hashlib.new("sha1" if len(digest) == 40 else "sha256", usedforsecurity=False)
    hashed.update(b"blob %d\0" % len(content) + content)
    return None if hashed.hexdigest() == digest else "its bytes are not those that HEAD holds"


def _allowed(registry: Registry, state: dict[str, Any], path: str) -> bool:
    if state.get("pull") is not None:
        return True
    if state.get("rollback") is not None:
        return path.partition("/")[0] in {*RECORDED, exclusions.FILE}
    entry = state.get("unfinished")
    if not isinstance(entry, dict) or entry.get("generation") in registry.generations():
        return False
    return bool(IN_PROGRESS.fullmatch(path)) or registry.wrote(entry, path)


def check_head(
    registry: Registry,
    head: str | None,
    tags: dict[int, Tag],
    history: History,
    underway: Iterable[int],
    findings: Findings,
) -> None:
    """HEAD holds what the generation it stands for recorded. `underway`: about to be published."""
    text = repository.read(registry.root, [f"{head}:params.yaml"])[0] if head else None
    try:
        values = yaml.safe_load(text or b"")
        number = values["generation"]
    except (yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        findings.fail("manifest", "params.yaml of HEAD", f"it cannot be read: {error!r}"[:300], FIX)
        return
    tag = tags.get(number)
    if tag is None or head is None or number in underway:
        return  # before the first, or without its tag, which was said
    paths = [path for path in RECORDED if path not in _USERS]
    found = repository.kinds(registry.root, [f"{point}:{path}" for point in (head, tag.commit) for path in paths])
    for path, one, other in zip(paths, found[: len(paths)], found[len(paths) :], strict=True):
        if one != other:
            why = f"it is not what {tag.name}, for which HEAD stands, was published with"
            findings.fail("manifest", f"{path} of HEAD", why, f"`git restore --source={tag.name} -- {path}`, commit it")
    _check_exclusions(registry.root, head, history, findings)


def _check_exclusions(root: Path, head: str, history: History, findings: Findings) -> None:
    """What HEAD excludes is what commits excluded and none took back."""
    before = history.before(head)
    told = {commit: history.trailers.get(commit, {}) for commit in before}
    undone = {trailers["Flywheel-Undo"] for trailers in told.values() if "Flywheel-Undo" in trailers}
    wanted = {t["Flywheel-Exclude"] for commit, t in told.items() if "Flywheel-Exclude" in t and commit not in undone}
    content = repository.read(root, [f"{head}:{exclusions.FILE}"])[0]
    try:
        held = {entry.model for entry in exclusions.parse(content)} if content is not None else set()
    except FlywheelError as error:
        findings.fail("manifest", exclusions.FILE, str(error), FIX)
        return
    for model in held ^ wanted:
        why = "is in force, but no commit excluded it" if model in held else "was excluded by a commit and is not in it"
        findings.fail("manifest", exclusions.FILE, f"model/{model[:12]} {why}", FIX)
