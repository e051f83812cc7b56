"""A scratch clone to make a published generation again in: what went into it, and nothing that it is to make.

    scratch/params.yaml lineage/   as the tag has them          scratch/parent/ judge/    links to the cache
    scratch/.dvc/cache/            labels of the window and attempts that were tried: links

What the tag holds besides and could stand in for work (outputs, finished units, objects) is taken out. The registry is
only read; objects that it lacks are brought into its cache from its remote. Links are to read-only files.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from flywheel.errors import RegistryError, StorageFull
from storage import cache, contents, dvc, git, remotes
from storage.layout import OUTPUTS, SUPERVISED, Layout, tag_name
from storage.registry import require_generation
from storage.tables import file_md5

if TYPE_CHECKING:
    from storage.registry import Registry

_MD5 = re.compile(r"[0-9a-f]{32}")
_MADE = (".flywheel", ".dvc", "parent", "judge", "metrics.json", *OUTPUTS, *SUPERVISED)
"""What the stages make or find: of the tag's commit none of it is taken."""


def prepare(registry: Registry, generation: int, folder: Path) -> Layout:
    """Make the scratch clone in `folder`, which must be absent or empty; where everything in it lies.

    Raises InputError for a generation that was never published, RegistryError where what went into it can be had
    neither from the cache nor from a remote, or is damaged.
    """
    tag = require_generation(registry, generation)
    commit = git.run(registry.root, "rev-parse", f"{tag}^{{commit}}")
    arguments = ("clone", "-q", "--no-checkout", "--no-recurse-submodules", "--template=")
    git.run(registry.root, *arguments, "--", str(registry.root), str(folder))
    git.run(folder, "-c", "core.symlinks=false", "checkout", "-q", "--detach", commit)
    for name in _MADE:
        _remove(folder / name)
    layout = Layout(folder)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text(dvc.CONFIG.format(types=dvc.LINKS), encoding="utf-8")
    named = contents.of(registry, [generation])[generation].outputs
    models = {name: named[name] for name in ("parent", "judge") if name in named}
    for name, output in models.items():
        remotes.bring(registry, [output.md5], f"{name}/ of {tag}")
        for inside, md5 in cache.tree(registry, output).items():
            target = layout.root / name / within(inside, f"the list of files of {name}/ of {tag}")
            _place(registry, md5, target, f"{name}/{inside} of {tag}")
    older = list(_older(layout, tag))
    remotes.bring(registry, [md5 for md5, _ in older], f"tables of older generations, which went into {tag},")
    for md5, what in older:
        _place(registry, md5, cache.object_path(layout.root, md5), what)
    return layout


def _older(layout: Layout, tag: str) -> Iterator[tuple[str, str]]:
    """MD5 and name of each file of an older generation that the stages read from the cache."""
    for name, keys in (("window", ("files", "targets")), ("tried", ("files",))):
        path = layout.lineage / f"{name}.json"
        document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"generations": []}
        for entry in document["generations"]:
            for key in keys:
                for file in entry.get(key, []):
                    if not _MD5.fullmatch(str(file["md5"])):
                        raise RegistryError(f"lineage/{name}.json of {tag} names {file['md5']!r}, which is no MD5")
                    yield file["md5"], f"{file['path']} of {tag_name(entry['generation'])}"


def within(inside: str, name: str) -> PurePosixPath:
    """A path that `name` names, of something below a folder. Raises RegistryError for any other."""
    path = PurePosixPath(inside)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise RegistryError(f"{name} names {inside!r}, which lies outside; restore it from a copy")
    return path


def _place(registry: Registry, md5: str, target: Path, what: str) -> None:
    """Link an object of the cache to where it is wanted, or copy it where that cannot be; hashed first."""
    source = cache.cache_path(registry, md5)
    if file_md5(source) != md5:
        raise RegistryError(f"{what} is damaged in the cache ({source}); see `flywheel verify`, restore it from a copy")
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StorageFull(
                    f"no space left for a copy of {what} in {target}; free some, or set TMPDIR"
                ) from error
            raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
