"""What a sweep of Hex says, and when label search pays, in markdown: every number comes from the fits."""

from __future__ import annotations

from pathlib import Path

from flows.page import amortization_rows
from flows.sweeps.hex_fits import ALL, LOWERED, SOLVED, HexFits, Rated
from flows.sweeps.markdown import spread, table
from flows.sweeps.paying import Paid, shown
from flywheel.scaling.frontier import LEAST_DECADES, FrontierIntervals
from flywheel.scaling.tradeoff import TradeoffIntervals


def hex_section(fits: HexFits, pictures: Path) -> str:
    """Tables and figures of a sweep of Hex; `pictures` is their folder as seen from the page."""
    parts = [
        table(
            ["board", "players", "games", "0 Elo is", "weakest", "strongest"],
            [
                [
                    f"{each.size}x{each.size}", f"{len(each.rows)}", f"{each.games:,}",
                    "perfect play" if each.anchor == "perfect" else f"`{each.anchor}`",
                    f"{each.elo[0].min():.0f}", f"{each.elo[0].max():.0f}",
                ]
                for each in fits.rated
            ],
        )
    ]  # fmt: skip
    parts.append(
        "![Elo against FLOPs of label search and training, one colour a board, with the fitted frontier]"
        f"({pictures / 'frontier.svg'})"
    )
    parts += [_anchored(each) for each in fits.rated if not each.solved]
    if fits.frontiers:
        parts += [_frontiers(fits), _variants(fits)]
    if fits.tradeoffs:
        parts.append(f"![Least FLOPs a move that reach an Elo, against training FLOPs]({pictures / 'tradeoff.svg'})")
        parts += [_tradeoffs(fits), _tradeoff_variants(fits)]
    parts += [f"Not identified: {name}: {reason}." for name, reason in fits.reasons.items()]
    return "\n\n".join(parts)


def amortization_section(cells: list[Paid], pictures: Path) -> str:
    """When each cell's last generation has paid for itself, and the figure of one."""
    if not cells:
        return ""
    best, asked = shown(cells), "move" if cells[0].document["board"] else "query"
    rows = []
    for each in cells:
        lines = amortization_rows(each.document)
        first, last = lines[0], lines[-1]
        queries, never = (last.get(name, "") for name in last if name.startswith(("moves", "queries", "never")))
        # Where the search falls short of the student, it is priced at its most, too cheap.
        short = first["on test"] != last["on test"]
        rows.append(
            [
                each.family, each.cell, f"{each.seeds}", f"{first['generation']} {first['search']}",
                first["on test"], first[f"FLOPs a {asked}"], f"{last['generation']} {last['search']}",
                last["on test"], last[f"FLOPs a {asked}"], last["invested"],
                f"at most {queries}" if short else queries, never,
            ]
        )  # fmt: skip
    head = ["problems", "cell", "seeds", "by search", "solved", f"FLOPs a {asked}", "distilled", "solved",
            f"FLOPs a {asked}", "invested", "pays back after", "never in draws"]  # fmt: skip
    return "\n\n".join(
        [
            f"![Cost in all, and a solved one, against the number asked, with the crossings: {best.family} {best.cell}]"
            f"({pictures / 'amortization.svg'})",
            f"Drawn is {best.family} {best.cell}. {best.document['sentence']}",
            table(head, rows),
        ]
    )


def _frontiers(fits: HexFits) -> str:
    rows, notes = [], []
    level: dict[tuple[str, str], list[str]] = {}
    for each in fits.frontiers:
        fitted, found = each.law, each.intervals
        rows.append(
            [
                f"{each.budget}", each.boards, f"{fitted.slope:.0f}", _between(found, "slope", ".0f"),
                f"{fitted.compute_factor:.1f}", _between(found, "compute_factor", ".1f"),
                f"{fitted.size_slope:.0f}", _between(found, "size_slope", ".0f"), f"{fitted.root_mean_square:.0f}",
                f"{int(fitted.used.sum())} of {len(fitted.used)}",
                ", ".join(f"{size}x{size} {value:.1f}" for size, value in sorted(fitted.decades.items())),
            ]
        )  # fmt: skip
        flat = [f"{size}x{size}" for size, decades in sorted(fitted.decades.items()) if decades < LEAST_DECADES]
        if flat:
            level.setdefault((each.boards, ", ".join(flat)), []).append(f"{each.budget}")
        if found is not None and found.unidentified:
            notes.append(
                f"{found.unidentified} of the draws of {each.boards} with {each.budget} simulations identified no "
                "slope."
            )
    head = [
        "simulations a move", "fitted to", "Elo a decade of compute", "95 %", "compute a board size, times", "95 %",
        "Elo a board size", "95 %", "residual, Elo", "frontier points fitted", "decades on the incline",
    ]  # fmt: skip
    notes += [
        f"Less than {LEAST_DECADES} decades of {sizes} lie on the incline of {boards} with {', '.join(budgets)} "
        "simulations: it is that of the other boards."
        for (boards, sizes), budgets in level.items()
    ]
    jones = ["Jones 2021: 64", "3x3 to 9x9", "500", "", "7", "", "-430", "", "", "", ""]
    return table(head, [*rows, jones]) + "".join(f"\n\n{note}" for note in notes)


def _anchored(each: Rated) -> str:
    """What 0 Elo is where no solver plays, and what follows for the fits."""
    board = f"{each.size}x{each.size}"
    lowered = " and ".join(f"{elo:.0f}" for elo in LOWERED)
    return (
        f"No solver plays {board}: its 0 Elo is its largest network, last snapshot, with the most simulations, "
        f"`{each.anchor}`. If that player is x Elo short of perfect play, all points of {board} lie x too high, and "
        "the fit stops 50 below that player, not 50 below perfection. How large x is, these games cannot say. So the "
        f"fit to {SOLVED} is the one to rely on where there are two such boards or more; the fit to {ALL} holds "
        f"{board} too, and is made again below with it {lowered} Elo lower."
    )


def _variants(fits: HexFits) -> str:
    return table(
        [
            "simulations a move", "fitted to", "choice", "Elo a decade of compute", "compute a board size, times",
            "points",
        ],
        [
            [
                f"{each.budget}", each.boards, each.name, f"{each.slope:.0f}", f"{each.compute_factor:.1f}",
                f"{each.used}",
            ]
            for each in fits.variants
        ],
    )  # fmt: skip


def _tradeoffs(fits: HexFits) -> str:
    rows = []
    for size, (line, found) in fits.tradeoffs.items():
        rows.append(
            [
                f"{size}x{size}", f"{line.slope:.2f}", _between(found, "slope", ".2f"),
                f"{line.exchange:.1f}x", f"{line.within:.2f}", _between(found, "within", ".2f"),
                f"{line.exchange_within:.1f}x", f"{line.elo_slope:.4f}", f"{len(line.residuals)}",
                f"{len(set(line.pairs.levels.tolist()))}", f"{line.root_mean_square:.2f}",
            ]
        )  # fmt: skip
    return (
        table(
            [
                "board",
                "slope",
                "95 %",
                "10x training saves",
                "slope within levels",
                "95 %",
                "10x training saves",
                "decades of test an Elo",
                "pairs",
                "levels",
                "residual, decades",
            ],
            rows,
        )
        + "\n\nResiduals and decades an Elo are those of the plane, the lines of the figure those within levels. Jones "
        "2021, on 9x9: slope -1.2, so that 10x training saves 15x at test; 0.004 decades an Elo."
    )


def _tradeoff_variants(fits: HexFits) -> str:
    return table(
        ["board", "players", "slope", "slope within levels", "pairs"],
        [
            [f"{each.size}x{each.size}", each.name, f"{each.slope:.2f}", f"{each.within:.2f}", f"{each.pairs}"]
            for each in fits.tradeoff_variants
        ],
    )


def _between(found: FrontierIntervals | TradeoffIntervals | None, name: str, form: str) -> str:
    return spread(getattr(found, name, None), form)
