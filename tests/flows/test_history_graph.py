"""The drawing of a tree of generations, against drawings made by hand and against the tree itself."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flows.history_graph import graph


def rows(parents: dict[int, int | None], current: int) -> list[dict[str, Any]]:
    line, generation = set(), parents[current]
    while generation is not None:
        line.add(generation)
        generation = parents[generation]
    return [
        {
            "generation": number,
            "parent": parent,
            "status": "current" if number == current else "ancestor" if number in line else "abandoned",
        }
        for number, parent in parents.items()
    ]


def drawn(parents: dict[int, int | None], current: int) -> list[str]:
    return [f"{text} {row['generation'] if row else ''}".rstrip() for text, row in graph(rows(parents, current))]


def test_a_line_is_a_line() -> None:
    assert drawn({0: None, 1: 0, 2: 1}, 1) == ["○ 0", "● 1", "○ 2"]
    assert graph([]) == []


def test_a_rollback_makes_a_fork() -> None:
    assert drawn({0: None, 1: 0, 2: 1, 3: 2, 4: 1}, 4) == ["○   0", "○   1", "├─╮", "│ ○ 2", "│ ○ 3", "●   4"]


def test_lanes_fork_right_below_the_parent() -> None:
    assert drawn({0: None, 1: 0, 2: 0, 3: 1, 4: 2}, 3) == ["○   0", "├─╮", "○ │ 1", "│ ○ 2", "● │ 3", "  ○ 4"]


def test_three_heads() -> None:
    assert drawn({0: None, 1: 0, 2: 1, 3: 2, 4: 1, 5: 4, 6: 1}, 6) == [
        "○     0",
        "○     1",
        "├─╮",
        "├─┼─╮",
        "│ ○ │ 2",
        "│ ○ │ 3",
        "│   ○ 4",
        "│   ○ 5",
        "●     6",
    ]


@given(st.lists(st.floats(0, 0.999), max_size=12), st.floats(0, 0.999))
@settings(max_examples=200, deadline=None)
def test_every_generation_hangs_on_its_parent(choices: list[float], head: float) -> None:
    """Follow the lines of the drawing up from each generation: they end at its parent."""
    parents: dict[int, int | None] = {0: None, **{i + 1: int(choice * (i + 1)) for i, choice in enumerate(choices)}}
    lines = graph(rows(parents, int(head * len(parents))))
    assert [row["generation"] for _, row in lines if row] == list(parents)
    assert sum("●" in text for text, _ in lines) == 1
    above: dict[int, int] = {}  # the generation that a column's line comes from
    for text, row in lines:
        cells = text[::2]
        column = next((i for i, cell in enumerate(cells) if cell in "○●"), None)
        if row is None:
            start = next(i for i, cell in enumerate(cells) if cell in "├┤")
            end = next(i for i, cell in enumerate(cells) if cell in "╮╭")
            above[end] = above[start]
            continue
        assert column is not None
        assert above.get(column) == row["parent"]
        for other, cell in enumerate(cells):
            assert (cell == "│") == (other in above and other != column and cell != " "), lines
        above[column] = row["generation"]
