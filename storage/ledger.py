"""The account of compute: a JSON line a stage, in git, never rolled back: what was spent stays spent."""

from __future__ import annotations

import json
from typing import Any

from storage.layout import Layout
from storage.tables import replace_text

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
    kinds = ("policy", "prefill", "reward", "training", "padding")
    return {kind: sum(row[f"flops_{kind}"] for row in rows) for kind in kinds}
