"""DVTS: subtrees that do not compete, and each of which is a beam search of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from flywheel.records import Attempt
from flywheel.search.beam import Beam
from flywheel.search.dvts import Dvts
from flywheel.search.protocols import Run, Sampling
from tests.flywheel.worlds import Lines, Scored, Table, World, forest, problem

RUN = Run(0, 1)


def dvts(samples: int, width: int, **settings: Any) -> Dvts:
    chosen = {"lookahead": 0, "max_steps": 8, "aggregate": "last", "sampling": Sampling(1.0), "max_new_tokens": 20}
    return Dvts(samples, width, **(chosen | settings))


def letters() -> Scored:
    """A line is worth more the later its letter."""
    return Scored(lambda output: 0.5, lambda steps: (ord(steps[-1]) - 96) / 26)


def searched(searcher: Dvts | Beam, world: World, reward: Scored, names: Sequence[str] = ("p",)) -> list[list[Attempt]]:
    return searcher.search([problem(name) for name in names], Lines(), world, reward, RUN)[0]


def test_each_subtree_goes_on_from_its_own_best() -> None:
    """Against a sort of what each subtree drew; some go on from a step that another has thrown away."""
    world = World({"p": forest(5, 4, 12)})
    searched(dvts(24, 4), world, letters())
    (session,) = world.sessions
    drawn = [[session.text(4 * tree + place) for place in range(4)] for tree in range(6)]
    parents = [session.text(request.parent or 0) for request in session.asked[1]]
    assert parents == [max(row) for row in drawn for _ in range(4)]
    keys = [request.key for requests in session.asked for request in requests]
    assert len(set(keys)) == len(keys), "no two subtrees share their noise"
    kept, thrown = {max(row) for row in drawn}, {text for row in drawn for text in row if text != max(row)}
    assert min(kept) < max(thrown), "a beam search would have had the better of the two"


def test_beam_search_puts_all_on_one_idea_and_dvts_does_not() -> None:
    """One first step looks better than all others and leads nowhere; eight of nine beams that draw it are lost."""
    table: dict[str, dict[str, float]] = {"": {"z\n": 0.3, "a\n": 0.7}}
    table |= {"a\n": {"y\n": 1.0}, "z\n": {"b\n": 1.0}}
    reward = Scored(lambda output: float(output.startswith("a")), lambda steps: (ord(steps[-1]) - 96) / 26)
    beam = Beam(16, 16, 0, 8, "last", Sampling(1.0), 20)
    (by_beam,) = searched(beam, World({"p": table}), reward)
    (by_dvts,) = searched(dvts(16, 2), World({"p": table}), reward)
    assert {attempt.reward for attempt in by_beam} == {0.0}
    # A subtree finds it unless one of its two beams draws the trap: half of eight subtrees in the mean.
    assert 1.0 in {attempt.reward for attempt in by_dvts}
    assert 0.0 in {attempt.reward for attempt in by_dvts}


def test_a_smaller_search_is_the_first_part_of_a_larger_one() -> None:
    few, many = (searched(dvts(n, 4), World({"p": forest(5, 4, 12, 0.2)}), letters())[0] for n in (4, 16))
    assert few == many[: len(few)], "ids and FLOPs too"
    assert len(many) > len(few)
    limited = (searched(dvts(n, 4, max_flops=1e9), World({"p": forest(5, 4, 12)}), letters())[0][0] for n in (4, 16))
    assert len({attempt.attempt_id for attempt in limited}) == 2, "a common limit is part of what shapes them"


def test_a_subtree_is_a_beam_search() -> None:
    """One subtree of four draws by other names than a beam search with four beams, and does the same with what it
    draws: in a world where nothing is left to chance they agree."""
    table: Table = {"": {"a\n": 1.0}, "a\n": {"b\n": 1.0}}
    rows = [
        searched(searcher, World({"p": table}), letters())[0]
        for searcher in (dvts(4, 4), Beam(4, 4, 0, 8, "last", Sampling(1.0), 20))
    ]
    assert [[(a.output, a.flops_policy, a.flops_reward) for a in row] for row in rows] == [[("a\nb\n", 12.0, 5.0)]] * 2


def test_whole_subtrees_only() -> None:
    with pytest.raises(ValueError, match=r"samples \(6\) must be a multiple of width \(4\)"):
        dvts(6, 4)
    world = World({"p": forest(5, 3, 4)})
    (found,) = searched(dvts(1, 4), world, letters())
    assert [len(requests) for requests in world.sessions[0].asked] == [1] * 4
    assert len(found) == 1
