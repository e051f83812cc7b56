"""A diff of two generations in words: lines of text, and tables as lists of rows, one section after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Section = str | list[dict[str, str]]

_TOLD = ("kind", "split", "status", "reward", "weight", "prompt", "completion", "output", "payload", "scores")
"""Columns of an example that are shown."""
_BARS = " ▁▂▃▄▅▆▇█"
_WIDEST = 48
"""Letters of a text in an example."""


def sections(found: dict[str, Any], table: str) -> Iterator[Section]:
    """`found`: what `storage.diff.diff` says with its table `table`. Empty sections are left out."""
    yield _heading(found)
    yield _counted(found[table], table)
    yield [_made(line) for line in found[table]["by"]]
    yield from _examples(found[table]["examples"])
    yield list(_facts(found))
    yield [
        {"metric": f"{split} {name}", **_measured(cell)}
        for split, cells in found["metrics"].items()
        for name, cell in cells.items()
    ]
    yield [
        {"rewards of": name, "": side, **_spread(found["rewards"][name][side], found["rewards"][name]["bins"])}
        for name in found["rewards"]
        for side in ("from", "to")
    ]
    yield [{"rejected": reason, **_sides(counts, "{:,}")} for reason, counts in found["reasons"].items()]
    yield [{"param": name, **_sides(values)} for name, values in found["params"].items()] or "The params are the same."


def _heading(found: dict[str, Any]) -> str:
    before, after, common = f"gen/{found['from']}", f"gen/{found['to']}", found["common"]
    if found["relation"] == "same":
        return f"{before} and itself"
    if found["relation"] == "descendant":
        return f"From {before} to {after}, which follows it"
    if found["relation"] == "ancestor":
        return f"From {before} to {after}, which it follows"
    line = f"on another line from gen/{common} on" if common is not None else "with no generation in common"
    return f"From {before} to {after}, {line}"


def _counted(rows: dict[str, Any], table: str) -> str:
    counts = [f"{rows[name]:,} {name}" for name in ("added", "removed", "changed")]
    counts.append(f"{rows['same']:,} the same")
    if rows["equal"]:
        counts.append(f"{rows['equal']:,} made anew alike")
    if repeated := sum(rows["repeated"].values()):
        counts.append(f"{repeated:,} repeat an older one")
    return f"{table}: {rows['rows']['from']:,} -> {rows['rows']['to']:,} ({', '.join(counts)})"


def _made(line: dict[str, Any]) -> dict[str, str]:
    """Rows that only one side has, by who made them."""
    who = {"only": line["on"], "generation": _text(line["generation"]), "made by": (line["maker"] or "-")[:12]}
    return who | {name: f"{count:,}" for name, count in line.items() if isinstance(count, int) and name != "generation"}


def _examples(examples: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    for sign, name in (("+", "added"), ("-", "removed")):
        yield from (f"{sign} {_row(row)}" for row in examples[name])
    for pair in examples["changed"]:
        yield f"~ {_row(pair['from'])}"
        yield f"  {_row(pair['to'])}"


def _row(row: dict[str, Any]) -> str:
    """A row's name and what it says, on one line."""
    name = row.get("address") or next(iter(row.values()))
    said = [f"{key} {_short(row[key])}" for key in _TOLD if row.get(key) not in (None, "")]
    return f"{name}  {', '.join(said)}"


def _facts(found: dict[str, Any]) -> Iterator[dict[str, str]]:
    for role, sides in found["models"].items():
        told = {side: _model(model) for side, model in sides.items()}
        yield {"": role.replace("_", " "), "from": told["from"], "to": told["to"]}
    yield {"": "code", "from": _text(found["code"]["from"]), "to": _text(found["code"]["to"])}
    for kind, sides in found["flops"].items():
        if sides["from"] or sides["to"]:
            yield {"": f"FLOPs, {kind}", **_sides(sides, "{:.3g}"), "difference": f"{sides['difference']:+.3g}"}


def _model(model: dict[str, Any] | None) -> str:
    if model is None:
        return "-"
    where = model["source"] if "source" in model else f"gen/{model['generation']}" if "generation" in model else ""
    return f"{model['snapshot'][:12]}{f' ({where})' if where else ''}"


def _measured(cell: dict[str, Any]) -> dict[str, str]:
    told = {side: f"{cell[side]['value']:.4g}" if cell[side] else "-" for side in ("from", "to")}
    difference = cell["difference"]
    if difference is None:
        return told
    told["difference"] = f"{difference['value']:+.4g}"
    if difference["low"] is not None:
        told["95 % interval"] = f"{difference['low']:+.4g} to {difference['high']:+.4g}"
        told["problems"] = f"{difference['count']}"
    return told


def _spread(side: dict[str, Any], bins: list[float]) -> dict[str, str]:
    """Number, mean and quartiles of rewards, and their histogram drawn in a row of bars."""
    quantiles = side["quantiles"]
    return {
        "rewards": f"{side['count']:,}",
        "none": f"{side['without']:,}",
        "mean": _number(side["mean"]),
        "quartiles": " ".join(_number(quantiles[key]) for key in ("0.25", "0.5", "0.75")),
        f"{bins[0]:.3g} to {bins[1]:.3g}": bars(side["histogram"]),
    }


def bars(counts: list[int]) -> str:
    """A letter a count: its height is the share of the largest; only 0 is empty."""
    most = max([*counts, 1])
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)


def _sides(sides: dict[str, Any], form: str | None = None) -> dict[str, str]:
    return {side: form.format(sides[side]) if form else _text(sides[side]) for side in ("from", "to")}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _text(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(value: Any) -> str:
    """A value on one line, cut off where it is long."""
    text = f"{value:.4g}" if isinstance(value, float) else " / ".join(str(value).split("\n")).strip(" /")
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
