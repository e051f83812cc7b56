"""The account of compute: a JSON line a stage, in git, never rolled back: what was spent stays spent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flywheel.errors import RegistryError
from storage import git
from storage.layout import Layout
from storage.tables import replace_text

if TYPE_CHECKING:
    from storage.registry import Registry

KINDS = ("policy", "prefill", "reward", "training", "padding")
"""What FLOPs are for; the last one is of no use."""

INVESTED = ("generate", "train", "supervise")
"""Stages whose FLOPs make a student. Evaluation, which only measures, comes on top."""
WORK = (*INVESTED, "evaluate")
"""Stages that are the point; the time of all else is overhead."""


def read(layout: Layout, generation: int) -> list[dict[str, Any]]:
    """Rows of one generation, in the order in which stages ended; none if nothing has."""
    try:
        text = layout.ledger(generation).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


def committed(registry: Registry, at: int | None = None) -> list[dict[str, Any]]:
    """Rows in git at HEAD, which rollbacks leave alone, of generations up to `at`. Raises RegistryError for a damaged
    file."""
    listed = git.run(registry.root, "ls-tree", "--name-only", "HEAD", "ledger/").splitlines()
    names = [f"HEAD:{name}" for name in listed if name.endswith(".jsonl")]
    rows = []
    for name, text in zip(names, git.read_many(registry.root, names), strict=True):
        try:
            rows += [json.loads(line) for line in (text or b"").splitlines() if line.strip()]
        except ValueError as error:
            raise RegistryError(f"{name} is not JSON lines ({error}); restore it from an older commit") from error
    return [row for row in rows if at is None or row["generation"] <= at]


def record(layout: Layout, row: dict[str, Any]) -> None:
    """Add a row; one of the same stage and shard is replaced (a stage that had to be done again)."""
    rows = [
        held
        for held in read(layout, row["generation"])
        if (held["stage"], held["shard"]) != (row["stage"], row["shard"])
    ]
    text = "".join(json.dumps(held, sort_keys=True) + "\n" for held in [*rows, row])
    replace_text(layout.ledger(row["generation"]), text)


def flops(rows: list[dict[str, Any]]) -> dict[str, float]:
    """FLOPs by kind over some rows."""
    return {kind: sum(row[f"flops_{kind}"] for row in rows) for kind in KINDS}
