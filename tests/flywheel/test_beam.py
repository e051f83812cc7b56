"""Beam search on worlds whose every answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from flywheel import sections
from flywheel.records import Attempt
from flywheel.search.beam import Beam
from flywheel.search.best_of_n import BestOfN
from flywheel.search.protocols import Run, Sampling
from flywheel.seeds import generator
from tests.flywheel.worlds import END, Lines, Scored, Table, World, forest, problem


def beam(samples: int, width: int, lookahead: int = 0, max_steps: int = 8, **settings: Any) -> Beam:
    chosen = {"aggregate": "last", "sampling": Sampling(1.0), "max_new_tokens": 20} | settings
    return Beam(samples, width, lookahead, max_steps, **chosen)


def searched(searcher: Beam, world: World, reward: Scored, names: Sequence[str] = ("p",)) -> list[list[Attempt]]:
    return searcher.search([problem(name) for name in names], Lines(), world, reward, Run(0, 1))[0]


def best_ahead(world: World, worth: dict[str, float]) -> Scored:
    """Exact step scores: the best reward that can still be reached from the lines so far."""

    def ahead(steps: Sequence[str]) -> float:
        start = "".join(f"{step}\n" for step in steps)
        return max(value for answer, value in worth.items() if answer.startswith(start))

    return Scored(lambda output: worth[output], ahead)


def test_exact_scores_and_enough_beams_find_the_best_answer_there_is() -> None:
    """One in 729, in each of twelve worlds; as many samples without search find it in a few of them."""
    sampled = 0
    for seed in range(12):
        world = World({"p": forest(seed, 6, 3)})
        answers = [answer for answer, _ in world.answers("p")]
        ranks = generator(seed, "worth").permutation(len(answers)) / len(answers)
        worth = dict(zip(answers, ranks.tolist(), strict=True))
        (found,) = searched(beam(128, 32), world, best_ahead(world, worth))
        assert max(attempt.reward or 0.0 for attempt in found) == max(worth.values())
        independent = BestOfN(128, Sampling(1.0), 20)
        drawn = independent.search([problem("p")], Lines(), world, best_ahead(world, worth), Run(0, 1))[0][0]
        sampled += max(attempt.reward or 0.0 for attempt in drawn) == max(worth.values())
    assert len(answers) == 729
    assert sampled <= 6


def test_each_round_keeps_the_best_of_what_was_drawn() -> None:
    """Against a sort of all that the model drew: parents of a round are the n / width best of the round before."""
    world = World({"p": forest(3, 5, 6)})
    value = dict(zip("abcdef", (0.1, 0.7, 0.3, 0.9, 0.5, 0.2), strict=True))
    reward = Scored(
        lambda output: 0.0, lambda steps: sum(value[step] * 0.1**number for number, step in enumerate(reversed(steps)))
    )
    searched(beam(16, 4), world, reward)
    (session,) = world.sessions
    assert [len(requests) for requests in session.asked] == [16] * 6
    first = 0
    for now, then in zip(session.asked[:4], session.asked[1:5], strict=True):
        drawn = {session.text(node) for node in range(first, first + len(now))}
        first += len(now)
        score = {text: sum(value[s] * 0.1**n for n, s in enumerate(reversed(text.split()))) for text in drawn}
        best = sorted(drawn, key=lambda text: -score[text])[:4]
        parents = [session.text(request.parent) for request in then if request.parent is not None]
        assert sorted(set(parents)) == sorted(best)
        assert [parents.count(text) for text in best] == [4] * len(best) or len(best) < 4
    keys = [request.key for requests in session.asked for request in requests]
    assert len(set(keys)) == len(keys), "no two draws share their noise"


@pytest.mark.parametrize(("samples", "width", "kept"), [(1, 4, 1), (2, 4, 1), (3, 4, 1), (7, 3, 2), (4, 1, 4)])
def test_any_number_of_beams_makes_sense(samples: int, width: int, kept: int) -> None:
    world = World({"p": forest(1, 3, 8)})
    reward = Scored(lambda output: 0.5, lambda steps: ord(steps[-1]) / 200)
    (found,) = searched(beam(samples, width), world, reward)
    parents = {request.parent for request in world.sessions[0].asked[1]}
    assert len(parents) <= kept
    assert 1 <= len(found) <= samples
    if samples == 1:
        assert reward.scored == [], "there is nothing to choose"


ENDS_EARLY: Table = {"": {"a\n": 0.6, "b\n": 0.4}, "a\n": {END: 1.0}, "b\n": {"c\n": 0.5, "d\n": 0.5}}


def test_finished_beams_leave_the_pool_and_blank_steps_are_not_scored() -> None:
    world = World({"p": ENDS_EARLY})
    reward = Scored(lambda output: 1.0, lambda steps: {"a": 0.9, "b": 0.8, "c": 0.2, "d": 0.1}[steps[-1]])
    (found,) = searched(beam(8, 4), world, reward)
    (session,) = world.sessions
    ended = sum(session.places[node].tokens[-1] == END for node in range(8, 16))
    assert 0 < ended < 8
    assert [len(requests) for requests in session.asked] == [8, 8, 8 - ended, *[8 - ended] * (len(session.asked) - 3)]
    assert all(attempt.stop_reason == "eos" for attempt in found)
    assert sorted(attempt.output for attempt in found)[0] == "a\n"
    assert all(step for call in reward.scored for _, steps in call for step in steps)
    assert ("a",) not in [steps for call in reward.scored[1:] for _, steps in call], (
        "an ended answer is not scored again"
    )


def test_equal_prefixes_count_once_within_a_problem_and_never_across() -> None:
    world = World({"p": {"": {"a\n": 0.5, "b\n": 0.5}, "a\n": {"c\n": 1.0}, "b\n": {"c\n": 1.0}}})
    reward = Scored(lambda output: 1.0, lambda steps: 0.5)
    found = searched(beam(8, 2), world, reward, ["p/0", "p/1"])
    assert [sorted(attempt.output for attempt in row) for row in found] == [["a\nc\n", "b\nc\n"]] * 2
    one, two = (
        sorted(steps for asked, steps in reward.scored[0] if asked.problem_id == name) for name in ("p/0", "p/1")
    )
    assert one == two == [("a",), ("b",)]
    keys = [[request.key for request in world.sessions[0].asked[0] if request.prompt == number] for number in (0, 1)]
    assert not set(keys[0]) & set(keys[1])


def test_the_last_step_runs_to_the_end_token() -> None:
    world = World({"p": forest(2, 4, 2)})
    (found,) = searched(beam(4, 2, max_steps=2), world, Scored(lambda output: 1.0, lambda steps: 0.5))
    assert [[request.one_step for request in requests] for requests in world.sessions[0].asked] == [
        [True] * 4,
        [False] * 4,
    ]
    assert {(len(attempt.steps), attempt.stop_reason) for attempt in found} == {(4, "eos")}


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 7])
def test_an_answer_has_no_more_tokens_than_it_may(limit: int) -> None:
    table = {
        "": {"a": 1.0},
        "a": {"b\n": 1.0},
        "ab\n": {"c": 0.5, "d": 0.5},
        "ab\nc": {"e\n": 1.0},
        "ab\nd": {END: 1.0},
    }
    (found,) = searched(
        beam(6, 3, max_new_tokens=limit), World({"p": table}), Scored(lambda output: 1.0, lambda steps: 0.5)
    )
    assert all(attempt.tokens <= limit for attempt in found)
    ended = {attempt.output: attempt.stop_reason for attempt in found}
    cut = {1: {"a": "length"}, 2: {"ab\n": "length"}, 3: {"ab\nc": "length", "ab\nd": "length"}}
    whole = {"ab\nd": "eos", "ab\nce\n": "length" if limit == 4 else "eos"}
    assert ended == cut.get(limit, whole)


PROMISE: Table = {
    "": {"good\n": 0.5, "bad\n": 0.5},
    "good\n": {"dead\n": 0.9, "alive\n": 0.1},
    "bad\n": {"gold\n": 0.7, "sand\n": 0.3},
}
LOOKS = {"good": 0.8, "bad": 0.3, "dead": 0.1, "alive": 0.2, "gold": 1.0, "sand": 0.9}


def test_lookahead_finds_what_a_look_at_the_step_alone_misses() -> None:
    def run(lookahead: int, aggregate: sections.Aggregate = "last") -> tuple[set[str], float, World]:
        world = World({"p": PROMISE})
        reward = Scored(lambda output: LOOKS[output.split()[-1]], lambda steps: LOOKS[steps[-1]])
        (found,) = searched(beam(12, 12, lookahead, aggregate=aggregate), world, reward)
        return {attempt.output for attempt in found}, sum(attempt.flops_policy for attempt in found), world

    plain, plain_flops, _ = run(0)
    ahead, ahead_flops, world = run(1)
    assert (plain, ahead) == ({"good\nalive\n"}, {"bad\ngold\n"})
    _, rolled, second, *_ = world.sessions[0].asked
    assert {world.sessions[0].text(request.parent or 0) for request in second} == {"bad\n"}, "only the step is kept"
    assert [(request.sampling.temperature, request.one_step) for request in rolled] == [(None, True)] * 2
    assert ahead_flops == plain_flops + 2 + 2, "two tokens rolled out in the first round, two end tokens in the second"
    assert ahead_flops == world.sessions[0].cost().policy


@pytest.mark.parametrize("aggregate", ["last", "min", "prod"])
def test_the_aggregate_is_honoured(aggregate: sections.Aggregate) -> None:
    """Second steps: after a strong and a weak first step. Which is best depends on how scores are put together."""
    scores = {("a",): 0.9, ("b",): 0.6, ("a", "x"): 0.7, ("b", "y"): 0.8}
    table = {
        "": {"a\n": 0.5, "b\n": 0.5},
        "a\n": {"x\n": 1.0},
        "b\n": {"y\n": 1.0},
        "a\nx\n": {"z\n": 1.0},
        "b\ny\n": {"z\n": 1.0},
    }
    reward = Scored(lambda output: 1.0, lambda steps: scores.get(tuple(steps), 0.5))
    world = World({"p": table})
    searched(beam(8, 4, aggregate=aggregate), world, reward)
    (session,) = world.sessions
    first = next(session.text(request.parent) for request in session.asked[2] if request.parent is not None)
    by_hand = {"last": {"a": 0.7, "b": 0.8}, "min": {"a": 0.7, "b": 0.6}, "prod": {"a": 0.63, "b": 0.48}}[aggregate]
    assert first[0] == max(by_hand, key=lambda name: by_hand[name])


def test_what_ended_is_kept_where_the_flops_are_spent() -> None:
    """A round of 8 tokens and two scores of 3 FLOPs: 14 a round. A limit of 15 allows a second round and no third."""
    world = World({"p": ENDS_EARLY, "q": {"": {"b\n": 1.0}, "b\n": {"c\n": 0.5, "d\n": 0.5}}})
    reward = Scored(lambda output: 1.0, lambda steps: ord(steps[-1]) / 200)
    one, two = searched(beam(8, 4, max_flops=15.0), world, reward, ["p", "q"])
    assert [len(requests) for requests in world.sessions[0].asked] == [16, 16]
    assert [(a.output, a.stop_reason) for a in one if a.stop_reason == "eos"] == [("a\n", "eos")]
    assert {a.output for a in one if a.stop_reason == "length"} <= {"b\nc\n", "b\nd\n"}
    assert [(a.stop_reason, a.status) for a in two] == [("length", "truncated")] * 2
    assert math.isclose(sum(a.flops_policy for a in one + two), world.sessions[0].cost().policy)


def test_a_server_that_gives_up_is_an_attempt_that_failed() -> None:
    world = World({"p": forest(2, 2, 2)})
    world.fails = lambda request: request.key % 2 == 0
    (found,) = searched(beam(8, 4), world, Scored(lambda output: 1.0, lambda steps: 0.5))
    assert {attempt.stop_reason for attempt in found} == {"eos", "failed"}
    assert {attempt.reward for attempt in found if attempt.stop_reason == "failed"} == {None}


def test_greedy_beams_are_refused() -> None:
    with pytest.raises(ValueError, match="greedy decoding gives one answer, got samples=4"):
        beam(4, 2, sampling=Sampling(None))
