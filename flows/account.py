"""What a registry took: FLOPs by kind, tokens, device-seconds and money, by generation, by stage or by model.

Read from git alone: the ledger's lines, lineage and params of all generations, rolled-back ones too, for what was spent
stays spent. Decoding (search, roll-outs, evaluation) and training are two kinds of work, which a machine does at
different speeds: they have a total each. FLOPs, seconds and money are beside one another, none is made from another but
money from seconds: seconds times the price that the generation's own params name.

A line of the ledger is divided among the models that did the work, seconds in proportion to executed FLOPs. Lines of
earlier versions do not say which those were; lineage does, but for the matches of a board game, where all is put down
to the student, and for the padding of `supervise`, nearly all of which is training's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from flywheel.errors import InputError
from flywheel.params import folder_name
from storage.ledger import KINDS

if TYPE_CHECKING:
    from storage.registry import Registry

By = Literal["generation", "stage", "model"]
NO_MODEL = "no model"
"""What problems, filters, solvers and orchestration are put down to."""
OUTSIDE = "a reward model from outside"
"""One that params named, in lines that do not say whose work they were."""
STAGES = ("problems", "generate", "filter", "train", "supervise", "evaluate", "overhead")
"""In the order in which they run."""
_SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Part:
    """One model's part in a line of the ledger."""

    generation: int
    stage: str
    model: str
    """Snapshot; NO_MODEL or OUTSIDE."""
    trains: bool
    """Whether the model was being made, passes that only watch its loss included."""
    flops: dict[str, float]
    """By kind."""
    tokens: int
    seconds: float
    money: dict[str, float]
    """By currency; empty where there is no price."""

    @property
    def executed(self) -> float:
        return math.fsum(self.flops.values())


def account(registry: Registry, by: str) -> dict[str, Any]:
    """{by, rows, total, rolled_back, unpriced: generations without a price}. A row names what it is of and has
    {flops: by kind, decoding and training: {useful, padding, executed}, tokens, seconds, money: by currency}; rows of
    generations also {tag, status, rolled_back}, rows of models {snapshot}.

    Raises InputError for another `by`, and where nothing was published.
    """
    from storage import git, ledger
    from storage.addresses import made
    from storage.history import history, published_many

    if by not in get_args(By):
        raise InputError(f"--by: got {by!r}, expected one of {', '.join(get_args(By))}")
    rows = {row["generation"]: row for row in history(registry)}
    if not rows:
        raise InputError(
            f"nothing was spent: got a registry without generations at {registry.root}; make one with `flywheel run`"
        )
    lineages = published_many(registry, list(rows))
    texts = git.read_many(registry.root, [f"{row['tag']}:params.yaml" for row in rows.values()])
    prices = {number: _price(text) for number, text in zip(rows, texts, strict=True)}
    parts = [
        part
        for row in ledger.committed(registry)
        for part in divided(row, lineages.get(row["generation"], {}), prices.get(row["generation"]))
    ]
    abandoned = {number for number, row in rows.items() if row["status"] == "abandoned"}
    named = {snapshot: f"gen/{number}/{part}" for snapshot, (number, part) in made(lineages).items()}
    groups: dict[Any, list[Part]] = {}
    for part in parts:
        groups.setdefault(getattr(part, by), []).append(part)
    told = []
    for key in sorted(groups, key=lambda key: _place(key, by, named)):
        if by == "generation":
            status = rows[key]["status"] if key in rows else "unpublished"
            name = {"generation": key, "tag": f"gen/{folder_name(key)}", "status": status,
                    "rolled_back": key in abandoned}  # fmt: skip
        elif by == "model":
            outside = key in (NO_MODEL, OUTSIDE)
            name = {"model": named.get(key, key if outside else f"model/{key}"), "snapshot": None if outside else key}
        else:
            name = {"stage": key}
        told.append({**name, **summed(groups[key])})
    return {
        "by": by,
        "rows": told,
        "total": summed(parts),
        "rolled_back": summed(part for part in parts if part.generation in abandoned),
        "unpriced": sorted(number for number, price in prices.items() if price is None),
    }


def divided(row: dict[str, Any], lineage: dict[str, Any], price: tuple[float, str] | None) -> list[Part]:
    """A line of the ledger as the parts of the models that worked; they add up to it. `lineage`: the generation's
    lineage/NNNN.json; `price`: of an hour, and its currency."""
    costs = json.loads(row["models"]) if row.get("models") else _derived(row, lineage)
    worked = {model: math.fsum(cost[kind] for kind in KINDS) for model, cost in costs.items()}
    total = math.fsum(worked.values())
    if total == 0.0:
        costs = {NO_MODEL: {**{kind: row[f"flops_{kind}"] for kind in KINDS}, "tokens": row["tokens"]}}
        worked, total = {NO_MODEL: 1.0}, 1.0
    found = []
    for model, cost in costs.items():
        seconds = row["seconds"] * worked[model] / total
        flops = {kind: float(cost[kind]) for kind in KINDS}
        money = {} if price is None else {price[1]: price[0] * seconds / _SECONDS_AN_HOUR}
        trains = flops["training"] > 0.0
        found.append(Part(row["generation"], row["stage"], model, trains, flops, cost["tokens"], seconds, money))
    return found


def summed(parts: Iterable[Part]) -> dict[str, Any]:
    """The figures of some parts."""
    held = list(parts)
    money: dict[str, float] = {}
    for currency in sorted({currency for part in held for currency in part.money}):
        money[currency] = math.fsum(part.money.get(currency, 0.0) for part in held)
    return {
        "flops": {kind: math.fsum(part.flops[kind] for part in held) for kind in KINDS},
        "decoding": _work([part for part in held if not part.trains]),
        "training": _work([part for part in held if part.trains]),
        "tokens": sum(part.tokens for part in held),
        "seconds": math.fsum(part.seconds for part in held),
        "money": money,
    }


def cells(row: dict[str, Any], name: str) -> dict[str, str]:
    """A row of the document, or a total, as a line of the table."""
    return {
        "": name,
        **{kind: _short(row["flops"][kind]) for kind in KINDS},
        "decoding, executed": _short(row["decoding"]["executed"]),
        "training, executed": _short(row["training"]["executed"]),
        "tokens": f"{row['tokens']:,}",
        "device-seconds": f"{row['seconds']:,.1f}",
        **({"money": amounts(row["money"])} if row["money"] else {}),
    }


def table(document: dict[str, Any]) -> list[dict[str, str]]:
    """Lines of the table, the total at the end."""
    lines = []
    for row in document["rows"]:
        name = row["tag"] if document["by"] == "generation" else row[document["by"]]
        lines.append(cells(row, f"{name} (rolled back)" if row.get("rolled_back") else _shown(name)))
    lines.append(cells(document["total"], "total"))
    if document["rolled_back"]["seconds"]:
        lines.append(cells(document["rolled_back"], "of it rolled back"))
    return lines


def sentences(document: dict[str, Any]) -> list[str]:
    """What the table's total means, in words."""
    total = document["total"]
    decoding, training = total["decoding"], total["training"]
    said = [
        f"Decoding (search, roll-outs, evaluation) {_short(decoding['executed'])} FLOPs executed, "
        f"{_share(decoding)} of them on padding; training {_short(training['executed'])}, {_share(training)} on "
        "padding; these two are not added up. FLOPs are matrix products and attention: docs/compute.md says what that "
        "leaves out."
    ]
    if total["money"]:
        missing = ", ".join(f"gen/{number}" for number in document["unpriced"])
        said.append(
            f"{amounts(total['money'])} for {total['seconds'] / _SECONDS_AN_HOUR:,.2f} device-hours"
            + (f"; {missing} had no price (execution.device_hour_price)." if missing else ".")
        )
    return said


def amounts(money: dict[str, float]) -> str:
    """Amounts of money, each with its currency."""
    return " + ".join(f"{amount:,.2f} {currency}" if amount >= 1.0 else f"{amount:.2g} {currency}"
                      for currency, amount in money.items())  # fmt: skip


def _derived(row: dict[str, Any], lineage: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Who did the work of a line that does not say so."""
    cost = {**{kind: row[f"flops_{kind}"] for kind in KINDS}, "tokens": row["tokens"]}

    def only(*kinds: str) -> dict[str, Any]:
        return {kind: value if kind in kinds else 0 for kind, value in cost.items()}

    student = lineage.get("student", {}).get("snapshot", NO_MODEL)
    trained, judge = lineage.get("reward_model"), lineage.get("judge")
    if row["stage"] == "supervise" and trained is not None:
        return _joined([
            (student, only("policy", "prefill", "tokens")),
            (trained["snapshot"], only("reward", "training", "padding")),
        ])  # fmt: skip
    if row["stage"] not in {"generate", "evaluate"}:
        return {student: cost}
    # The search is judged by the reward model that came in, the evaluation by the newest there is.
    judges = [judge] if row["stage"] == "generate" else [trained, judge]
    judging = next((one["snapshot"] for one in judges if one is not None and one["judges"]), OUTSIDE)
    searching = lineage.get("teacher", {}).get("snapshot", NO_MODEL) if row["stage"] == "generate" else student
    return _joined([(searching, only("policy", "prefill", "training", "padding", "tokens")), (judging, only("reward"))])


def _joined(costs: list[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for model, cost in costs:
        if any(cost.values()):
            held = found.get(model, dict.fromkeys(cost, 0))
            found[model] = {kind: held[kind] + value for kind, value in cost.items()}
    return found


def _price(text: bytes | None) -> tuple[float, str] | None:
    """A generation's price of a device-hour and its currency; None where its params name none."""
    import yaml

    execution = (yaml.safe_load(text or b"") or {}).get("execution") or {}
    price = execution.get("device_hour_price")
    return None if price is None else (float(price), str(execution.get("currency", "USD")))


def _place(key: Any, by: str, named: dict[str, str]) -> tuple[Any, ...]:
    """Where a row stands: generations by number, stages as they run, models as they were made, others last."""
    if by == "generation":
        return (key,)
    if by == "stage":
        return (STAGES.index(key) if key in STAGES else len(STAGES), key)
    name = named.get(key)
    return (1, 0, key) if name is None else (0, int(name.split("/")[1]), name.replace("student", ""))


def _work(parts: list[Part]) -> dict[str, float]:
    useful = math.fsum(part.flops[kind] for part in parts for kind in KINDS if kind != "padding")
    padding = math.fsum(part.flops["padding"] for part in parts)
    return {"useful": useful, "padding": padding, "executed": useful + padding}


def _share(work: dict[str, float]) -> str:
    return f"{work['padding'] / work['executed']:.1%}" if work["executed"] else "none"


def _short(flops: float) -> str:
    return f"{flops:.3g}" if flops else "-"


def _shown(name: str) -> str:
    return name[:18] if name.startswith("model/") else name
