"""DVC's cache, read as what it is: files named by the MD5 of their bytes, and `.dir` files that list a folder's.

Reads `dvc.lock`, `parent.dvc`, `judge.dvc` and `.dvc/config` as text and imports no DVC, so that history stays quick.
"""

from __future__ import annotations

import configparser
import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flywheel.errors import RegistryError

if TYPE_CHECKING:
    from storage.registry import Registry


@dataclass(frozen=True, slots=True)
class Output:
    """One output as DVC records it. `md5` of a folder ends in `.dir` and names the list of its files."""

    path: str
    md5: str
    size: int
    files: int
    cached: bool
    """False for metrics.json, which git keeps."""


@functools.lru_cache(maxsize=64)
def cache_folder(root: Path) -> Path:
    """Where the registry at `root` keeps its objects: `cache.dir` of its DVC config."""
    folder = Path(setting(root, "cache", "dir") or "cache")
    return (root / ".dvc" / folder).resolve()


def cache_path(registry: Registry, md5: str) -> Path:
    """Where the object `md5` (or `md5.dir`) lies in the cache, whether it is there or not."""
    return object_path(registry.root, md5)


def object_path(root: Path, md5: str) -> Path:
    """As `cache_path`, for the registry at `root`."""
    return cache_folder(root) / "files" / "md5" / md5[:2] / md5[2:]


def setting(root: Path, section: str, option: str) -> str | None:
    """A value of `.dvc/config.local` or, failing that, `.dvc/config`."""
    for name in ("config.local", "config"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(root / ".dvc" / name, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise RegistryError(f"{root / '.dvc' / name} is not a DVC config: {error}; restore it with git") from error
        value = parser.get(section, option, fallback=None)
        if value is not None:
            return value.strip().strip("\"'")
    return None


def lock_outputs(text: str) -> dict[str, Output]:
    """Outputs of a `dvc.lock`, by path, in order of the path."""
    stages = (yaml_mapping(text, "dvc.lock").get("stages") or {}).values()
    return {entry["path"]: _output(entry) for entry in sorted(_outs(stages), key=lambda entry: str(entry["path"]))}


def pointed(text: str, name: str = "parent.dvc") -> Output:
    """The output of a `parent.dvc` or `judge.dvc`."""
    return _output(_outs([yaml_mapping(text, name)])[0])


def pointer_text(output: Output, path: str) -> str:
    """The `<path>.dvc` that makes `output`'s files the folder <path>/; what `dvc add <path>` would write."""
    return f"outs:\n- md5: {output.md5}\n  size: {output.size}\n  nfiles: {output.files}\n  hash: md5\n  path: {path}\n"


def without_stages(text: str, kept: set[str]) -> str:
    """A `dvc.lock` without entries of stages other than `kept`; as it was where there are none. DVC leaves the entry of
    a stage that its dvc.yaml no longer has."""
    values = yaml_mapping(text, "dvc.lock")
    stages = values.get("stages") or {}
    if set(stages) <= kept:
        return text
    values["stages"] = {name: stage for name, stage in stages.items() if name in kept}
    return yaml.safe_dump(values, sort_keys=False)


def tree(registry: Registry, output: Output) -> dict[str, str]:
    """Files of a folder output: POSIX path within it -> md5. Raises RegistryError if the list is not in the cache."""
    path = cache_path(registry, output.md5)
    try:
        entries = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RegistryError(
            f"the list of files of {output.path}/ ({output.md5}) is not in the cache at {path}; "
            "bring it with `flywheel pull --all`, or restore .dvc/cache from a copy"
        ) from None
    except ValueError as error:
        raise RegistryError(
            f"{path} should list the files of {output.path}/ but is not JSON ({error}): it is damaged; "
            "`flywheel pull gen/N` brings what a generation has damaged anew from the remote"
        ) from error
    return {entry["relpath"]: entry["md5"] for entry in entries}


def missing(registry: Registry, outputs: list[Output]) -> list[Output]:
    """Those of `outputs` of which at least one object is not in the cache."""
    absent = []
    for output in outputs:
        if not output.cached:
            continue
        there = cache_path(registry, output.md5).exists()
        if there and output.md5.endswith(".dir"):
            there = all(cache_path(registry, md5).exists() for md5 in tree(registry, output).values())
        if not there:
            absent.append(output)
    return absent


def holds(registry: Registry, folder: Path, output: Output) -> bool:
    """Whether `folder` has exactly the files of `output`: the same file as the cache's, or one with the same MD5."""
    if not cache_path(registry, output.md5).exists():
        return False
    expected = tree(registry, output)
    if set(listing(folder)) != set(expected):
        return False
    return all(_same(folder / name, cache_path(registry, md5), md5) for name, md5 in expected.items())


def listing(folder: Path) -> dict[str, Path]:
    """Every file below `folder`: POSIX path within it -> path, in order of name."""
    found = {}
    for base, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(base) / name
            found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))


def _same(path: Path, cached: Path, md5: str) -> bool:
    from storage.tables import file_md5  # brings pyarrow, which history does not need

    if cached.exists() and path.exists() and path.samefile(cached):
        return True
    return path.exists() and file_md5(path) == md5


def _outs(stages: Any) -> list[dict[str, Any]]:
    return [entry for stage in stages for entry in stage.get("outs", [])]


def _output(entry: dict[str, Any]) -> Output:
    md5 = str(entry["md5"])
    cached = bool(entry.get("cache", True)) and entry["path"] != "metrics.json"
    return Output(str(entry["path"]), md5, int(entry.get("size", 0)), int(entry.get("nfiles", 1)), cached)


def yaml_mapping(text: str, name: str) -> dict[str, Any]:
    """A YAML file of the registry. Raises RegistryError where it is none."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        value = yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise RegistryError(f"{name} is not YAML: {error}; restore it with git") from error
    if not isinstance(value, dict):
        raise RegistryError(f"{name}: got {type(value).__name__}, expected what DVC writes; restore it with git")
    return value
