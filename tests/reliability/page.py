"""docs/reliability.md: what was done to registries, how often, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable

from tests.reliability.injection import Outcome

_HEAD = """\
# Reliability

What a registry survives, tried out: processes killed at every step, disks full, locks stale and live, remotes and
databases gone. `make reliability` writes this page; nothing in it is written by hand.

## How to read it
A row is a fault in an operation. The operation runs in a process of its own, on a copy of a registry; the fault strikes
there, or in a git or DVC that it started. Processes are cut at their *steps*: what changes the registry, such as a file
opened for writing, renamed, linked or removed, an `fsync`, a child started; of a git, its system calls. The product has
no hooks for it: Python's audit events and strace tell when a step comes.

After each fault, by git and hashing alone: `git fsck` finds nothing; each tag is one from before or the one that the
operation makes, never anything between; every object that any tag names is there and has the MD5 of its name; and
`history` reads. *Old* and *new* count which state that was. Then the operation is asked for again. It must succeed, and
the registry must equal, tree for tree and label for label, that of a twin that nothing disturbed, with a clean
worktree, no lock and no scratch left, and nothing left to mend. *Lost* and *twice* count label rows that the twin has
and this one has not, or has once more.
"""
_TAIL = """\
## To make it again
`make reliability` runs {chosen};
`python -m tests.reliability --every 1` runs all there are, for hours, and `--minutes 10` what fits. The order follows
from `--seed` alone. A violation is named on the terminal with the words that repeat it, `--only NAME --step N`, and its
registry is kept.

What needs strace (git cut at its system calls), a mount (a file system that is full) or immutable files (folders that
cannot be written, for root) is left out where the machine has none, and the page says so. A power cut, which may lose
what the kernel has not written yet, is not tried.
"""


def page(outcomes: list[Outcome], says: dict[str, str], seed: int, chosen: str, notes: Iterable[str]) -> str:
    """The page's text: `says` names the operations in the order of the page, `chosen` which of all faults these are."""
    struck = [outcome for outcome in outcomes if outcome.hit]
    broken = [outcome for outcome in outcomes if outcome.violations]
    lost, twice = sum(o.lost.lost for o in outcomes), sum(o.lost.duplicated for o in outcomes)
    groups = [(name, [o for o in struck if o.scenario == name]) for name in says]
    groups = [(name, found) for name, found in groups if found]
    lines = [_HEAD, "## What came of it"]
    lines.append(
        f"**{len(struck)} faults in {len(groups)} operations: {len(broken)} "
        f"violation{'' if len(broken) == 1 else 's'}, {lost} labels lost, {twice} "
        f"duplicated.** Seed {seed}."
    )
    lines += [*notes, "", *_table(("operation", *_COLUMNS), [(name, *_counts(found)) for name, found in groups]), ""]
    for name, found in groups:
        lines += [f"### {name}: {says[name]}", ""]
        kinds: dict[tuple[str, str], list[Outcome]] = {}
        for outcome in sorted(found, key=lambda o: (o.fault.kind, _where(o.fault.process))):
            kinds.setdefault((outcome.fault.kind, _where(outcome.fault.process)), []).append(outcome)
        lines += [*_table(("fault", "where", *_COLUMNS), [(*key, *_counts(rows)) for key, rows in kinds.items()]), ""]
    if broken:
        lines += ["## Violations", *(f"- `{name_of(o)}`: {'; '.join(o.violations)}" for o in broken), ""]
    return "\n".join(lines) + _TAIL.format(chosen=chosen)


def name_of(outcome: Outcome) -> str:
    """The words that repeat a case."""
    fault = outcome.fault
    return f"--only '{outcome.scenario}/{fault.kind}/{fault.process}' --step {fault.step}"


_COLUMNS = ("times", "old", "new", "lost", "twice", "seconds")


def _counts(outcomes: list[Outcome]) -> tuple[str, ...]:
    new = sum(outcome.survived == "new" for outcome in outcomes)
    numbers = (len(outcomes), len(outcomes) - new, new)
    lost = (sum(o.lost.lost for o in outcomes), sum(o.lost.duplicated for o in outcomes))
    return tuple(str(number) for number in (*numbers, *lost, round(sum(o.seconds for o in outcomes))))


def _where(process: str) -> str:
    """`start git add 2` -> `git add`; `product` -> `Flywheel`."""
    if process.startswith("start "):
        return "`" + " ".join(process.split()[1:3]) + "`"
    return {"product": "Flywheel"}.get(process, f"`{process}`" if process.startswith("dvc ") else process)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    line = ["---" if name not in _COLUMNS else "---:" for name in head]
    return ["| " + " | ".join(cells) + " |" for cells in (head, tuple(line), *rows)]
