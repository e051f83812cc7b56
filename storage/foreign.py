"""What a registry from elsewhere may hold before any of it is written here: the newest commit, and every tag's, for a
rollback may go to any.

git writes files, DVC writes folders where dvc.yaml, dvc.lock and `.dvc` files say, and reads `.dvc/config`. None of
that may reach outside the registry, into .git or .flywheel, or name a program or a file to read secrets from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flywheel.errors import RegistryError
from storage import cache, contents, git
from storage.layout import DVC_IGNORED, OUTPUTS, REGISTRY_VERSION, SUPERVISED
from storage.remote_settings import check_foreign

_FOLDERS = {"parent", "judge", *OUTPUTS, *SUPERVISED}
_OURS = {".git", ".dvc", ".flywheel"}
_UNREAD = {"vars", "wdir", "foreach", "matrix", "do"}
"""Keys of dvc.yaml by which a path could turn into another than the one written."""
_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
_SHOWN = 5


def check(root: Path, revision: str) -> None:
    """Raise RegistryError, with what is wrong, unless the commit is a registry's that is safe to have here."""
    problems = [*_marker(root, revision), *_files(root, revision)]
    config = git.read_many(root, [f"{revision}:.dvc/config"])[0]
    problems += check_foreign((config or b"").decode("utf-8", "replace"))
    if problems:
        shown = "; ".join(problems[:_SHOWN]) + ("; ..." if len(problems) > _SHOWN else "")
        raise RegistryError(f"refused, nothing of it was written: {shown}")


def check_tags(root: Path, tags: Iterable[str]) -> None:
    """As `check`, for the commits of these tags (or their objects)."""
    for tag in tags:
        if git.attempt(root, "rev-parse", "-q", "--verify", f"{tag}^{{commit}}") is None:
            raise RegistryError(f"refused, nothing of it was written: tag {tag} names no commit")
        check(root, f"{tag}^{{commit}}")


def _marker(root: Path, revision: str) -> list[str]:
    text = git.read_many(root, [f"{revision}:flywheel.json"])[0]
    if text is None:
        return ["it is not a registry (it has no flywheel.json)"]
    try:
        version = json.loads(text)["registry_version"]
    except (ValueError, KeyError, TypeError):
        return ["its flywheel.json is damaged"]
    if not isinstance(version, int) or version > REGISTRY_VERSION:
        return [f"it has registry version {version}, this Flywheel reads up to {REGISTRY_VERSION}; upgrade Flywheel"]
    return []


def _files(root: Path, revision: str) -> list[str]:
    problems, described = [], []
    for entry in git.run(root, "ls-tree", "-r", "-z", "--full-tree", revision).split("\0"):
        facts, _, path = entry.partition("\t")
        if not path:
            continue
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in path):
            problems.append(f"{path!r} has a control character in its name")
            continue
        top, _, rest = path.partition("/")
        if facts.startswith("120000"):
            problems.append(f"{path} is a symbolic link")
        elif facts.startswith("160000"):
            problems.append(f"{path} is a submodule")
        elif top in _FOLDERS and rest:
            problems.append(f"{path} lies in a folder that is DVC's")
        elif (top in _OURS and path not in {".dvc/config", ".dvc/.gitignore"}) or top in _FOLDERS:
            problems.append(f"{path} has a name that git must not bring")
        elif path.endswith(".dvc") or path.rpartition("/")[2] in {"dvc.yaml", "dvc.lock"}:
            described.append(path)
    ignored = git.read_many(root, [f"{revision}:.dvcignore"])[0]
    if ignored != DVC_IGNORED.encode():
        problems.append(f".dvcignore is not {DVC_IGNORED!r}, which keeps DVC out of .flywheel")
    texts = git.read_many(root, [f"{revision}:{path}" for path in [*described, "params.yaml"]])
    values = {
        path: cache.yaml_mapping((text or b"{}").decode("utf-8", "replace"), path)
        for path, text in zip([*described, "params.yaml"], texts, strict=True)
    }
    folder = str(values.pop("params.yaml").get("folder", ""))
    if not re.fullmatch(r"(\d{4,})?", folder):
        problems.append(f"params.yaml: folder is {folder!r}")
    for path, value in values.items():
        problems += _described(path, value)
    return problems


def _described(path: str, values: dict[str, Any]) -> list[str]:
    """What is wrong with where a dvc.yaml, dvc.lock or `.dvc` file would have DVC write."""
    pointer = path.endswith(".dvc")
    stages = {path: values} if pointer else (values.get("stages") or {})
    problems = [f"{path} has {key}" for key in values if key in _UNREAD]
    for name, stage in stages.items():
        if not isinstance(stage, dict):
            problems.append(f"{path}: {name} is no stage")
            continue
        problems += [f"{path}: {name} has {key}" for key in stage if key in _UNREAD]
        for kind in ("outs", "metrics", "plots"):
            for out in stage.get(kind) or []:
                place = _place(out)
                if isinstance(out, dict) and not _MD5.fullmatch(str(out.get("md5", "0" * 32))):
                    problems.append(f"{path}: {name} names an object {out['md5']!r}, which is no MD5")
                if not _inside(place):
                    problems.append(f"{path}: {name} writes to {place!r}")
                if pointer and path in contents.POINTERS and place != path.removesuffix(".dvc"):
                    problems.append(f"{path} writes to {place!r}")
    return problems


def _place(out: Any) -> str:
    """The path of an output, which is a text, {"path": ...}, or {path: options}."""
    if isinstance(out, dict):
        return str(out["path"] if "path" in out else next(iter(out), ""))
    return str(out)


def _inside(place: str) -> bool:
    parts = place.replace("${folder}", "0000").split("/")
    return (
        bool(re.fullmatch(r"[\w./ -]+", place.replace("${folder}", "0000")))
        and parts[0] not in {"", *_OURS}
        and not {"", ".."} & set(parts)
    )
