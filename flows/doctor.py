"""What is wrong with this machine or registry, and how to mend it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flywheel.errors import FlywheelError

_PACKAGES = ("prefect", "dvc", "mlflow", "duckdb", "pyarrow", "torch", "transformers")
_TESTED_BELOW = {"fastapi": (0, 151), "sqlalchemy": (2, 1)}
_ROOM_BYTES = 2 * 10**9


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `detail` says what was found and, where it is not ok, what to do."""

    ok: bool
    what: str
    detail: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(root: Path) -> list[Finding]:
    """Look at Python, packages, git, memory, disk, and the registry at `root` if there is one. Changes nothing."""
    findings = [_python(), _packages(), *_pins(), _git(), _cores(), _disk(root)]
    if (root / "flywheel.json").exists():
        findings += _registry(root)
    else:
        findings.append(Finding(True, "registry", f"none at {root}; `flywheel init` or `flywheel run` makes one"))
    return findings


def _python() -> Finding:
    text = ".".join(map(str, sys.version_info[:3]))
    return Finding(sys.version_info >= (3, 11), "python", f"{text} at {sys.executable}; 3.11 or newer is needed")


def _packages() -> Finding:
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding(False, "packages", f"missing: {', '.join(missing)}; install with `make setup`")
    return Finding(True, "packages", ", ".join(found))


def _pins() -> list[Finding]:
    """Packages whose newer releases break Prefect's server."""
    findings = []
    for name, below in _TESTED_BELOW.items():
        text = version(name)
        ok = tuple(int(part) for part in text.split(".")[: len(below)]) < below
        wanted = ".".join(map(str, below))
        advice = "" if ok else f"; Prefect's server fails with it, install {name}<{wanted}"
        findings.append(Finding(ok, name, f"{text}{advice}"))
    return findings


def _git() -> Finding:
    from storage import git

    if shutil.which("git") is None:
        return Finding(False, "git", "not found on PATH; install it")
    try:
        name, email = git.identity(Path.cwd())
    except FlywheelError as error:
        return Finding(False, "git", str(error))
    return Finding(True, "git", f"commits as {name} <{email}>")


def _cores() -> Finding:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding(memory >= 2, "machine", f"{cores} cores, {memory:.1f} GiB memory; 2 GiB at least is needed")


def _disk(root: Path) -> Finding:
    folder = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    return Finding(free >= _ROOM_BYTES, "disk", f"{free / 1e9:.1f} GB free at {folder}; 2 GB at least is wise")


def _registry(root: Path) -> list[Finding]:
    from flows.status import status
    from flywheel import params
    from storage.registry import Registry

    checks: list[tuple[str, Callable[[], str]]] = [
        ("registry", lambda: f"{Registry.open(root).root}: {'; '.join(status(Registry.open(root)).lines)}"),
        ("params", lambda: f"digest {params.load(root / 'params.yaml').digest()[:12]}"),
        ("tracked files", lambda: _clean(root)),
        ("cache", lambda: _cache(root)),
    ]
    findings = []
    for what, check in checks:
        try:
            findings.append(Finding(True, what, check()))
        except FlywheelError as error:
            findings.append(Finding(False, what, str(error)))
    return findings


def _clean(root: Path) -> str:
    from storage.registry import Registry

    Registry.open(root).check_clean()
    return "as published"


def _cache(root: Path) -> str:
    """Every file that the generations on the head's line name is in the cache."""
    from storage import cache, dropped, history
    from storage.registry import Registry

    opened = Registry.open(root)
    line = history.window(opened, opened.head_generation())
    named = {
        file["md5"]
        for document in history.published_many(opened, line).values()
        for table in document["tables"].values()
        for file in table["files"]
    }
    elsewhere = named & dropped.read(opened).objects
    missing = [md5 for md5 in named - elsewhere if not cache.cache_path(opened, md5).exists()]
    if missing:
        raise FlywheelError(
            f"{len(missing)} of {len(named)} files of tables are missing (first: {missing[0]}); "
            "bring them with `flywheel pull --all` where a remote has them"
        )
    away = f"; {len(elsewhere)} of them are at the remote, where `flywheel gc` left them" if elsewhere else ""
    return f"{len(named)} files of tables, all there{away}"
