"""A history forged in good order, and the words of what `verify` finds."""

from __future__ import annotations

import subprocess
from pathlib import Path

from storage.registry import Registry
from storage.verification.verify import Verdict


def git(root: Path, *arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True, input=stdin)
    return done.stdout.strip()


def said(verdict: Verdict) -> list[str]:
    return [f"{one.what} {one.where}: {one.why}" for one in verdict.failures]


class forged:  # noqa: N801 (read as a word)
    """The newest commit and its tag made anew with other files, in good order, as one who may write could."""

    def __init__(self, registry: Registry, files: dict[str, str]) -> None:
        self.root, self.files = registry.root, files
        self.newest = max(registry.generations())

    def __enter__(self) -> None:
        self.before = git(self.root, "rev-parse", "HEAD"), git(self.root, "rev-parse", f"gen/{self.newest:04d}")
        for path, text in self.files.items():
            (self.root / path).write_text(text, encoding="utf-8")
        git(self.root, "commit", "-q", "--amend", "--no-edit", "--", *self.files)
        git(self.root, "tag", "-f", "-a", "-m", f"Generation {self.newest}", f"gen/{self.newest:04d}")

    def __exit__(self, *_: object) -> None:
        commit, tag = self.before
        git(self.root, "reset", "-q", "--hard", commit)
        git(self.root, "update-ref", f"refs/tags/gen/{self.newest:04d}", tag)
