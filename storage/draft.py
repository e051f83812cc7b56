"""A new registry's folder: built beside its place and renamed there, so that a failure leaves nothing behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flywheel.errors import FlywheelError
from storage import git


@dataclass(frozen=True, slots=True)
class Draft:
    """The folder to build in, not there yet, and who commits there."""

    folder: Path
    name: str
    email: str


@contextmanager
def drafted(target: Path, purpose: str) -> Iterator[Draft]:
    """Inside, build `folder`; at the end it becomes `target`. `purpose`: a word for the draft's name.

    Raises InputError without git or a git identity, FlywheelError where the file system refuses.
    """
    existing = next(folder for folder in (target, *target.parents) if folder.is_dir())
    git.check_version(existing)
    name, email = git.identity(existing)
    parent_existed = target.parent.is_dir()
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(target, purpose)
    draft = target.parent / f".{target.name}.{purpose}-{os.getpid()}"
    try:
        yield Draft(draft, name, email)
        os.rename(draft, target)
    except OSError as error:
        raise FlywheelError(f"could not make {target}: {error.strerror or error}; nothing was left behind") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if not target.exists() and not parent_existed and not any(target.parent.iterdir()):
            target.parent.rmdir()


def own_identity(draft: Draft) -> None:
    """Where the identity came from a repository around the draft's: carry it over."""
    if git.attempt(draft.folder, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT") is None:
        git.run(draft.folder, "config", "user.name", draft.name)
        git.run(draft.folder, "config", "user.email", draft.email)


def _clear_abandoned(target: Path, purpose: str) -> None:
    """Remove drafts that were killed half-way."""
    for draft in target.parent.glob(f".{target.name}.{purpose}-*"):
        process = draft.name.rpartition("-")[2]
        try:
            os.kill(int(process), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(draft, ignore_errors=True)
        except PermissionError:
            continue
