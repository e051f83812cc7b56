"""What a registry of Hex came to: strength by generation against FLOPs and seconds, and when weights swallowed search.

Blunder rates and perfect play's games are those that each generation's evaluation published. What is played here is the
last question: each generation's network alone against generation 0's with a large search.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import board_players
from flywheel.errors import InputError
from flywheel.evaluation import arena, intervals
from flywheel.evaluation.intervals import Interval
from flywheel.params import Params
from flywheel.problems.hex_positions import games_of
from flywheel.seeds import stream
from storage import recipes
from storage.history import history
from storage.ledger import INVESTED
from storage.tables import replace_text
from storage.views import query

if TYPE_CHECKING:
    from storage.registry import Registry

_WORK = ("generate", "filter", "train")
"""Stages whose seconds are those of learning; evaluation and the rest are told apart."""


def strength(opened: Registry, out: Path, budget: int, openings: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Write README.md, strength.json and strength.svg to `out`; the document of the second. `budget`: simulations of
    generation 0's search. Raises InputError for a registry without a generation that learned."""
    params = board_players.recipe_of(opened)
    everything = history(opened)
    line = [row for row in everything if row["status"] != "abandoned"]
    if len(line) < 2:
        raise InputError(f"{opened.root} has no generation that learned; `flywheel run` makes one")
    common = set.intersection(*(set(row["metrics"]["test"]) for row in line)) - {"greedy"}
    if not common:
        raise InputError(
            f"the generations of {opened.root} share no budget (evaluate.budgets), so that none compares them"
        )
    # The matches' own, where all were measured at it, else the largest.
    searched = max((int(key.partition("@")[2]) for key in common), key=lambda n: (n == params.evaluate.match_budget, n))
    rows: list[dict[str, Any]] = []
    flops = seconds = elapsed = 0.0
    for row in everything:
        number = row["generation"]
        taken = {
            held["stage"]: float(held["seconds"])
            for held in query(
                opened, f"SELECT stage, sum(seconds) AS seconds FROM ledger WHERE generation = {number} GROUP BY 1"
            ).rows
        }
        # To the ledger's own digits: DuckDB adds in no fixed order.
        taken = {stage: round(held, 3) for stage, held in taken.items()}
        flops += sum(row["stages"].get(stage, 0.0) for stage in INVESTED)
        seconds += sum(taken.get(stage, 0.0) for stage in _WORK)
        elapsed += sum(taken.values())
        # What was rolled back was paid for all the same.
        if row["status"] == "abandoned":
            continue
        test = row["metrics"]["test"]
        say(f"gen/{number} alone against gen/0@{budget}: {2 * openings} games")
        rows.append(
            {
                "generation": number,
                "flops": flops,
                "learning_seconds": seconds,
                "seconds": elapsed,
                "alone": test["greedy"],
                "search": test[f"search@{searched}"],
                "elo": {key: entry["value"] for key, entry in row["metrics"]["elo"].items() if key != "random"},
                "against_perfect": _against_perfect(opened, number),
                "against_old_search": _against(opened, number, budget, openings).as_dict(),
            }
        )
    begun = _begun([row["against_old_search"] for row in rows])
    document = {
        "registry": {name: getattr(params, name).model_dump(mode="json") for name in ("problems", "model", "generate")},
        "learning": {name: getattr(params, name).model_dump(mode="json") for name in ("filter", "train", "evaluate")},
        "seed": params.seed,
        "recipe": _recipe(opened, params),
        "budget": searched,
        "old_budget": budget,
        "swallowed": None if begun is None else rows[begun]["generation"],
        "parameters": _parameters(opened),
        "rows": rows,
    }
    replace_text(out / "strength.json", json.dumps(document, indent=1) + "\n")
    replace_text(out / "strength.svg", picture(document))
    replace_text(out / "README.md", page(document))
    return document


def _against_perfect(opened: Registry, generation: int) -> dict[str, Any] | None:
    """The share of games that the generation's searching network won against perfect play, both sides of each opening;
    None where nobody plays perfectly."""
    games = list(
        query(
            opened,
            f"SELECT problem_id, winner FROM matches WHERE generation = {generation} AND 'perfect' IN (first, second)"
            f" AND (first LIKE 'gen/{generation}@%' OR second LIKE 'gen/{generation}@%') ORDER BY match_id",
        ).rows
    )
    if not games:
        return None
    won = [float(game["winner"] != "perfect") for game in games]
    return intervals.share(won, [game["problem_id"] for game in games]).as_dict()


def _against(opened: Registry, generation: int, budget: int, openings: int) -> Interval:
    """The share of games that a generation's network, alone, wins against generation 0 with a search."""
    params = board_players.recipe_of(opened)
    drawn = board_players.openings_of(params, openings, params.seed)
    names = [f"gen/{generation}", f"gen/0@{budget}"]
    with board_players.players(opened, names) as (new, old):
        boards = games_of(drawn, params.problems.size, params.problems.swap)
        games = arena.play(new, old, boards, stream(params.seed, "strength", generation))
    return intervals.share([float(game.winner == names[0]) for game in games], [str(game.opening) for game in games])


def _begun(shares: list[dict[str, Any]]) -> int | None:
    """From which row on all shares are above a half, their intervals included."""
    above = [share["low"] > 0.5 for share in shares]
    return next((place for place in range(len(above)) if all(above[place:])), None)


def _recipe(opened: Registry, params: Params) -> str:
    """The preset that the registry was made with, and what is set otherwise."""
    preset = json.loads(opened.layout.marker.read_text(encoding="utf-8"))["preset"]
    own, shipped = params.model_dump(mode="json"), recipes.recipe(preset, []).model_dump(mode="json")
    changes = [
        f" --set {section}.{key}={json.dumps(value)}"
        for section, values in own.items()
        if isinstance(values, dict) and section != "campaign"
        for key, value in values.items()
        if value != shipped[section][key]
    ]
    seed = f" --set seed={params.seed}" if params.seed else ""
    return f"--preset {preset}{seed}{''.join(changes)}"


def _parameters(opened: Registry) -> int:
    (row,) = query(opened, "SELECT max(parameters) AS parameters FROM snapshots").rows
    return int(row["parameters"])


def picture(document: dict[str, Any]) -> str:
    """Blunder rates against FLOPs and against seconds. SVG text."""
    import io

    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = [row for row in document["rows"] if row["flops"] > 0]
    lines = (("alone", "the network alone", "#D55E00"), ("search", f"{document['budget']} simulations", "#0072B2"))
    with mpl.rc_context({"svg.hashsalt": "flywheel", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        for axes, key, words in zip(
            figure.subplots(1, 2, sharey=True),
            ("flops", "seconds"),
            ("FLOPs of search and training so far", "seconds so far, evaluation included"),
            strict=True,
        ):
            for name, label, colour in lines:
                x = [row[key] for row in rows]
                axes.fill_between(
                    x, [1 - row[name]["high"] for row in rows], [1 - row[name]["low"] for row in rows],
                    color=colour, alpha=0.15, lw=0,
                )  # fmt: skip
                axes.plot(x, [1 - row[name]["value"] for row in rows], color=colour, marker="o", ms=3.5, label=label)
            axes.set_xlabel(words)
            axes.set_ylim(bottom=0.0)
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set_ylabel("blunders on test")
        figure.axes[0].legend(fontsize=8, frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def page(document: dict[str, Any]) -> str:
    """The study as Markdown."""
    problems, old = document["registry"]["problems"], document["old_budget"]
    count, last = document["rows"][-1]["alone"]["count"], document["rows"][-1]
    size = problems["size"]
    swallowed = document["swallowed"]
    search = f"{document['budget']} simulations"
    lines = [
        f"# Hex {size} x {size} from nothing",
        "",
        f"A network of {document['parameters']:,} parameters teaches itself by search, seed {document['seed']}. A "
        f"blunder is a move that loses one of {count} test positions, which are won for the mover and can be lost, by "
        "the exact solver; none of them, turned or not, is ever learned. FLOPs are those of search and training so "
        "far, seconds those of all stages and what lies between them; 95 % intervals.",
        "",
        "![Blunders against FLOPs and seconds](strength.svg)",
        "",
        f"| generation | FLOPs | seconds | of these learning | blunders alone | 95 % | with {search} | 95 % "
        f"| Elo alone | games won against perfect play | alone against generation 0 with {old} |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        perfect = row["against_perfect"]
        against = row["against_old_search"]
        lines.append(
            f"| {row['generation']} | {row['flops']:.2g} | {row['seconds']:.0f} | {row['learning_seconds']:.0f} | "
            f"{_blunders(row['alone'])} | {_blunders(row['search'])} | {row['elo']['greedy']:.0f} | "
            f"{format(perfect['value'], '.1%') if perfect else ''} | "
            f"{against['value']:.1%} ({against['low']:.1%} to {against['high']:.1%}) |"
        )
    lines += [
        "",
        (
            f"From generation {swallowed} on the network alone, at one look, wins more games than not against "
            f"generation 0 with {old} simulations a move: the weights have swallowed that search."
            if swallowed is not None
            else f"The network alone does not beat generation 0 with {old} simulations a move for certain."
        ),
        "",
        f"With {search} generation {last['generation']} blunders in {1 - last['search']['value']:.1%} of the "
        f"positions, alone in {1 - last['alone']['value']:.1%}. Who plays perfectly wins half of the games against "
        "perfect play.",
        "",
        f"Rerun it: `flywheel run {document['recipe']} -n {last['generation']}` and `flywheel strength`. With "
        "equal package versions, instruction set and threads all but the seconds is the same to the last digit.",
    ]
    return "\n".join(lines) + "\n"


def _blunders(share: dict[str, Any]) -> str:
    return f"{1 - share['value']:.1%} | {1 - share['high']:.1%} to {1 - share['low']:.1%}"
