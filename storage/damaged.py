"""Objects of the cache that no longer hash to their names: taken out where the remote has them sound, to come anew.

DVC takes what lies in its cache read-only to be sound, so a damaged object would stay for ever, and the worktree's name
of the same file with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from storage import cache, contents, remotes
from storage.tables import file_md5

if TYPE_CHECKING:
    from storage.registry import Registry


def drop(registry: Registry, md5s: Iterable[str]) -> list[str]:
    """Take the damaged ones of these objects, and of the files that their lists name, out of the cache and out of the
    worktree's folders, where the default remote has them; which. Hashes all of them."""
    roots = set(md5s)
    gone = _drop(registry, {md5 for md5 in roots if md5.endswith(".dir")})
    remotes.bring(registry, gone, "damaged lists of files", lists_only=True)
    known, _ = contents.expand(registry, roots)
    return sorted({*gone, *_drop(registry, {md5 for md5 in known if not md5.endswith(".dir")})})


def _drop(registry: Registry, md5s: set[str]) -> list[str]:
    paths = {md5: cache.cache_path(registry, md5) for md5 in sorted(md5s)}
    wrong = [md5 for md5, path in paths.items() if path.exists() and file_md5(path) != md5.partition(".")[0]]
    if not wrong or remotes.default(registry) is None:
        return []
    there = sorted(remotes.held(registry, wrong, prove=True))
    nodes = {(facts.st_dev, facts.st_ino) for md5 in there for facts in [paths[md5].stat()]}
    for path in _worktree(registry):
        facts = path.lstat()
        if (facts.st_dev, facts.st_ino) in nodes or (path.is_symlink() and path.resolve() in paths.values()):
            path.unlink()
    for md5 in there:
        paths[md5].unlink()
    return there


def _worktree(registry: Registry) -> list[Path]:
    """Files in the folders that DVC keeps here."""
    recorded = registry.root / "dvc.lock"
    names = list(cache.lock_outputs(recorded.read_text(encoding="utf-8"))) if recorded.exists() else []
    names += [pointer.removesuffix(".dvc") for pointer in contents.POINTERS]
    folders = [registry.root / name for name in names if os.path.isdir(registry.root / name)]
    return [path for folder in folders for path in cache.listing(folder).values()]
