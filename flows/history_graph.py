"""The tree of generations as a drawing, oldest first, a lane for each line of generations.

○    gen/0000
○    gen/0001
├─╮
│ ○  gen/0002, where gen/0003 was rolled back to gen/0001
│ ○  gen/0003
●    gen/0004, the head
"""

from __future__ import annotations

from typing import Any


def graph(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any] | None]]:
    """Lines of the drawing from top to bottom, with the history row that each shows (None: a fork only).

    A generation stays in its parent's lane if it is the one to go on there: on the way to the current one, else the
    newest that goes on from its parent; the lanes of others fork off right below the parent.
    """
    heirs = _heirs(rows)
    lanes: dict[int, int] = {}
    busy: list[int | None] = []
    """The last generation of each lane in use."""
    lines: list[tuple[str, dict[str, Any] | None]] = []
    for row in rows:
        number = row["generation"]
        if row["parent"] is None:
            lanes[number] = _open(busy, _end(number, heirs))
        lane = lanes[number]
        lines.append((_row(busy, lane, row["status"] == "current"), row))
        for child in (other["generation"] for other in rows if other["parent"] == number):
            if heirs[number] == child:
                lanes[child] = lane
            else:
                lanes[child] = _open(busy, _end(child, heirs))
                lines.append((_fork(busy, lane, lanes[child]), None))
        if busy[lane] == number:
            busy[lane] = None
            while busy and busy[-1] is None:
                busy.pop()
    width = max((len(text) for text, _ in lines), default=0)
    return [(text.ljust(width), row) for text, row in lines]


def _open(busy: list[int | None], end: int) -> int:
    """Take the first free lane, until the generation `end`."""
    lane = next((index for index, held in enumerate(busy) if held is None), len(busy))
    busy[lane : lane + 1] = [end]
    return lane


def told(rows: list[dict[str, Any]]) -> list[str]:
    """The drawing with words: labels, accuracy, why the generation exists, why it was left."""
    return [f"{text}  {_words(row)}".rstrip() if row else text.rstrip() for text, row in graph(rows)]


def _words(row: dict[str, Any]) -> str:
    test = row["metrics"]["test"]["greedy"]
    words = [row["tag"], f"{row['labels']} labels", f"test {test['value']:.3f}", row["why"]]
    if row["changed"]:
        words.append("changed: " + ", ".join(f"{key} {old} -> {new}" for key, (old, new) in row["changed"].items()))
    if row["status"] == "current":
        words.append("HEAD")
    if row["reason"]:
        words.append(f"rolled back: {row['reason']}" if row["status"] == "abandoned" else row["reason"])
    return "; ".join(words)


def _heirs(rows: list[dict[str, Any]]) -> dict[int, int]:
    heirs: dict[int, int] = {}
    for row in rows:
        if row["parent"] is not None:
            heirs[row["parent"]] = row["generation"]
    for row in rows:
        if row["parent"] is not None and row["status"] != "abandoned":
            heirs[row["parent"]] = row["generation"]
    return heirs


def _end(number: int, heirs: dict[int, int]) -> int:
    while number in heirs:
        number = heirs[number]
    return number


def _row(busy: list[int | None], lane: int, current: bool) -> str:
    mark = "●" if current else "○"
    return " ".join(mark if index == lane else " " if end is None else "│" for index, end in enumerate(busy))


def _fork(busy: list[int | None], start: int, lane: int) -> str:
    """From the parent's lane, which goes on, over to a new one."""
    low, high = sorted((start, lane))
    cells = []
    for index, end in enumerate(busy):
        if index == start:
            cells.append("├" if lane > start else "┤")
        elif index == lane:
            cells.append("╮" if lane > start else "╭")
        elif low < index < high:
            cells.append("─" if end is None else "┼")
        else:
            cells.append(" " if end is None else "│")
    return "".join(cell + ("─" if low <= index < high else " ") for index, cell in enumerate(cells)).rstrip()
