"""One self-contained HTML page about a registry: what was reached, at what price, and where the labels came from.

Read here, turned into a page by `flows.page`. The same registry gives the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.page import Facts, render

if TYPE_CHECKING:
    from storage.registry import Registry

SAMPLES = 12
"""Labels shown, spread over the generations."""


def report(registry: Registry, path: Path, summary: dict[str, Any] | None = None) -> Path:
    """Write the page to `path` and return it.

    `summary` holds `sentence`, the headline, and `break_even`, a list of rows; without it the headline states what the
    newest student reaches. Raises InputError where nothing is published yet or `path` is a folder, RegistryError where
    the data of a table are not in the cache.
    """
    from flywheel.errors import InputError
    from storage.tables import replace_text

    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a file to write the report to, such as {path / 'report.html'}")
    replace_text(path, render(gather(registry), summary or {}))
    return path


def gather(registry: Registry) -> Facts:
    """Read what the page shows from a registry: history, ledger, labels and lineage as of its head."""
    from flywheel.errors import InputError
    from storage.history import history
    from storage.lineage import lineage, outline
    from storage.views import query

    rows = history(registry)
    if not rows:
        raise InputError(
            f"nothing to report: got a registry without generations at {registry.root}, expected at least one; "
            "make it with `flywheel run`"
        )
    costs = query(
        registry,
        "SELECT generation, stage, sum(flops_policy + flops_prefill + flops_reward + flops_training + flops_padding)"
        " AS flops FROM ledger GROUP BY ALL ORDER BY ALL",
    )
    led_here = [row["generation"] for row in rows if row["status"] != "abandoned"]
    each = max(1, SAMPLES // max(1, len(led_here)))
    samples = query(
        registry,
        # The smallest ids first, the rows afterwards: a sort of whole rows would not fit in memory for millions.
        f"WITH chosen AS (SELECT unnest(min(label_id, {each})) AS label_id FROM labels GROUP BY generation)"
        " SELECT l.*, p.payload FROM labels l JOIN chosen USING (label_id) JOIN problems p USING (problem_id)"
        f" ORDER BY l.generation DESC, label_id LIMIT {SAMPLES}",
    )
    labels = list(samples.rows)
    lineages = {
        generation: outline(lineage(registry, f"gen/{generation}/labels", "up"))
        for generation in sorted({row["generation"] for row in labels}, reverse=True)
    }
    positions, matches = _of_the_game(registry, led_here)
    return Facts(
        name=registry.root.resolve().name,
        history=rows,
        costs=list(costs.rows),
        controls=_controls(registry.layout.controls),
        samples=labels,
        lineages=lineages,
        positions=positions,
        matches=matches,
        amortization=_amortization(registry, rows),
    )


def _amortization(registry: Registry, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    from flows.amortize import amortized
    from flywheel.errors import InputError, RegistryError

    try:
        return amortized(registry, rows)
    except RegistryError:
        raise
    except InputError:
        # Nothing was invested yet, or nothing measured that it could be paid back against.
        return None


def _of_the_game(registry: Registry, led_here: list[int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of a board game: how the newest student sees some positions, and who won how often against whom."""
    from storage.views import query

    positions = query(
        registry,
        "SELECT a.*, p.reference FROM analyses a JOIN problems p USING (problem_id)"
        f" WHERE generation = {led_here[-1]} ORDER BY a.problem_id",
    )
    matches = query(
        registry,
        "SELECT winner, CASE WHEN winner = first THEN second ELSE first END AS loser, count(*) AS count"
        " FROM matches GROUP BY ALL ORDER BY ALL",
    )
    return list(positions.rows), list(matches.rows)


def _controls(folder: Path) -> list[dict[str, Any]]:
    from flywheel.errors import RegistryError

    rows = []
    for path in sorted(folder.glob("*.json")):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RegistryError(
                f"{path} is no JSON ({error}); expected a control's result: remove it or run it again"
            ) from error
        if not isinstance(row, dict) or not {"name", "test"} <= set(row):
            raise RegistryError(
                f"{path} is no control's result: expected an object with `name`, `seed`, `test` and `flops`"
            )
        rows.append(row)
    return rows
