"""How many samples a problem the next label search should draw, by what the newest one found: most label gain a FLOP.

Attempts of the newest generation that searched say how many of a problem's n samples were right, and so, without bias,
what any fewer would have found (`flywheel.scaling.planner.label_gain`). Prices are that generation's own: of a sample
by its attempts, of a prompt and of learning a label by its ledger. What more than n would find is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

from flywheel.scaling.planner import LabelYield, label_gain
from storage.registry import Registry
from storage.views import query

_NEWEST = """
    WITH newest AS (SELECT max(generation) AS generation FROM attempts WHERE searcher = 'best_of_n'),
    asked AS (
        SELECT problem_id, count(*) AS samples, count(*) FILTER (reward >= {threshold}) AS good,
            avg(flops_policy) AS flops
        FROM attempts JOIN newest USING (generation) GROUP BY problem_id
    )
    SELECT generation, samples, list(good) AS good, avg(flops) AS sample_flops,
        (SELECT sum(flops_prefill) FROM ledger JOIN newest USING (generation) WHERE stage = 'generate') AS prompts,
        (SELECT sum(flops_training + flops_padding) / max(rows_out) FROM ledger JOIN newest USING (generation)
            WHERE stage = 'train') AS label_flops
    FROM asked, newest GROUP BY generation, samples ORDER BY count(*) DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class LabelBudget:
    """What the newest attempts say."""

    generation: int
    samples: int
    """Drawn a problem then."""
    best: int
    """Of most label gain a FLOP; equal to `samples` where perhaps even more would pay."""
    yields: tuple[LabelYield, ...]

    def follow(self, planned: int) -> tuple[int, str]:
        """The samples a problem to draw, where a plan says so many, and why."""
        told = f"of gen/{self.generation}'s {self.samples} samples a problem"
        if self.best < self.samples:
            return self.best, f"{told} {self.best} brought most labels a FLOP: the next search draws {self.best}"
        if planned <= self.samples:
            return self.samples, f"{told} the last still paid: the next search draws {self.samples} again"
        return planned, f"{told} the last still paid: the next search draws {planned}, as the plan says"


def newest(opened: Registry, threshold: float, per_problem: int | None) -> LabelBudget | None:
    """By the registry's newest attempts of best-of-N; None before any, and where one sample a problem was drawn."""
    rows = [*query(opened, _NEWEST.format(threshold=threshold)).rows]
    if not rows or rows[0]["samples"] < 2 or not rows[0]["label_flops"]:
        return None
    row = rows[0]
    budgets = [2**power for power in range(31) if 2**power < row["samples"]]
    right = [int(good) for good in row["good"]]
    best, yields = label_gain(
        right, row["samples"], [*budgets, row["samples"]], row["sample_flops"], row["prompts"] / len(right),
        row["label_flops"], per_problem or row["samples"],
    )  # fmt: skip
    return LabelBudget(row["generation"], row["samples"], best, tuple(yields))
