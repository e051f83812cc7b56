"""Mending what a killed process left, at every start, under the lock.

Under the lock no child of Flywheel's is alive, so whatever such a child left half-done is dead. A git or DVC that the
user runs by hand is another matter: where one is at work in the registry, its locks stay and we step back.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel.errors import RegistryBusy
from storage import exchange, git, lock
from storage.layout import REGISTRY_VERSION, tag_name
from storage.prepare import unfinished
from storage.publish import close, committed, mend_outputs, tag_head
from storage.registry import read_state
from storage.rollback import settle
from storage.upgrade import ANCHORS

if TYPE_CHECKING:
    from storage.registry import Registry

_YOUNG_SECONDS = 60.0
"""Where processes cannot be listed, a lock file younger than this may be a live one."""
_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}")


def recover(registry: Registry) -> list[str]:
    """Mend the registry; a sentence for each thing mended, none if it was sound.

    Raises RegistryBusy if a git or DVC process of the user's is at work in the registry.
    """
    with lock.ensure(registry, "recover"):
        done = [*_clear_git_locks(registry), *_clear_dvc_locks(registry), *_clear_drafts(registry)]
        done += [settled for settled in (settle(registry), exchange.settle(registry)) if settled]
        done += _take_back_upgrade(registry)
        generation = committed(registry)
        if generation is not None and generation not in registry.generations():
            tag_head(registry, generation)
            done.append(f"tagged generation {generation}, whose commit was made before the process ended")
        done += _clear_work(registry)
        entry = unfinished(registry)
        if entry is not None:
            mended = mend_outputs(registry, entry["generation"])
            done += [f"put back {path} from the cache" for path in mended]
        return done


def _take_back_upgrade(registry: Registry) -> list[str]:
    """An upgrade, or its undoing, that was cut off before its commit: the files are HEAD's again."""
    names = (registry.layout.marker.name, ANCHORS)
    paths = [registry.root / name for name in names]
    here = [path.read_bytes() if path.exists() else None for path in paths]
    if here[1] is None and _marker(here[0])[1] == REGISTRY_VERSION:  # never upgraded
        return []
    held = git.read_many(registry.root, [f"HEAD:{name}" for name in names])
    (marker, version), (committed_marker, committed_version) = (_marker(texts[0]) for texts in (here, held))
    if marker != committed_marker or (version == committed_version and (held[1] or not here[1])):
        return []
    git.run(registry.root, "reset", "-q", "--", *names)
    for path, text in zip(paths, held, strict=True):
        if text is None:
            path.unlink(missing_ok=True)
        else:
            git.run(registry.root, "restore", "--source=HEAD", "--worktree", "--", path.name)
    return ["took back an upgrade that was cut off before its commit; ask for it again"]


def _marker(text: bytes | None) -> tuple[dict[str, Any], int]:
    """What a flywheel.json says but for its version, and that version."""
    values = json.loads(text or b"{}")
    kept = {name: value for name, value in values.items() if name not in {"registry_version", "upgraded_from"}}
    return kept, int(values.get("registry_version", 0))


def _clear_work(registry: Registry) -> list[str]:
    """Scratch of generations that are published or were dropped."""
    done = []
    entry = unfinished(registry)
    noted = read_state(registry).get("unfinished")
    if noted is not None and entry is None:
        close(registry, noted["generation"])
        done.append(f"closed {tag_name(noted['generation'])}, which was published")
    work = registry.layout.local / "work"
    for folder in sorted(work.iterdir()) if work.is_dir() else []:
        if entry is None or folder != registry.layout.work(entry["generation"]):
            shutil.rmtree(folder)
    return done


def _clear_drafts(registry: Registry) -> list[str]:
    """Files and folders that were being written."""
    for path in list(registry.layout.tmp.iterdir()) if registry.layout.tmp.is_dir() else []:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    done = []
    for folder in (registry.root, registry.layout.lineage, registry.layout.local, registry.root / "ledger"):
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.is_file() and _DRAFT.fullmatch(path.name):
                path.unlink()
                done.append(f"removed the half-written {path.name}")
    return done


def _clear_git_locks(registry: Registry) -> list[str]:
    root = registry.root
    locks = sorted(path for path in (root / ".git").rglob("*.lock") if path.is_file())
    if not locks:
        return []
    names = ", ".join(path.relative_to(root).as_posix() for path in locks)
    live = _processes_in(root, "git")
    if live is None:
        live = [0] if any(time.time() - path.stat().st_mtime < _YOUNG_SECONDS for path in locks) else []
    if live:
        who = f"PID {live[0]}" if live[0] else "perhaps a live one"
        raise RegistryBusy(f"a git process ({who}) is at work in {root} and holds {names}; try again when it has ended")
    for path in locks:
        path.unlink()
    return [f"removed {names}, left by a git that was killed"]


def _clear_dvc_locks(registry: Registry) -> list[str]:
    """`.dvc/tmp/rwlock` names processes; DVC believes it even if it is empty or its number now is another's."""
    path = registry.root / ".dvc" / "tmp" / "rwlock"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    try:
        entries = json.loads(text)
        infos = [info for infos in entries.get("read", {}).values() for info in infos]
        infos += list(entries.get("write", {}).values())
        pids = {int(info["pid"]) for info in infos}
    except (ValueError, AttributeError, KeyError, TypeError):
        pids, infos = set(), [{}]
    if not infos:
        return []
    live = _processes_in(registry.root, "dvc")
    alive = [pid for pid in pids if (pid in live if live is not None else _exists(pid))]
    if alive:
        raise RegistryBusy(f"a DVC process (PID {alive[0]}) is at work in {registry.root}; try again when it has ended")
    path.unlink()
    return ["removed .dvc/tmp/rwlock, left by a DVC that was killed"]


def _processes_in(root: Path, program: str) -> list[int] | None:
    """Live processes of `program` that work below `root`; None where the system does not list processes."""
    if not Path("/proc/self/cwd").exists():
        return None
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            where = Path(os.readlink(entry / "cwd"))
        except OSError:  # it ended, or is another user's
            continue
        names = {Path(os.fsdecode(word)).name for word in words[:4]}
        if any(name == program or name.startswith(f"{program}-") for name in names) and where.is_relative_to(root):
            found.append(int(entry.name))
    return found


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
