"""Tree search against visits counted by hand, and against all answers of tiny worlds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from flywheel.records import Attempt
from flywheel.search import puct, unit
from flywheel.search.protocols import Run, Sampling, never_stop
from flywheel.search.puct import Node
from flywheel.search.tree import Forest, Tree
from tests.flywheel.worlds import END, Lines, Scored, Table, World, forest, problem

RUN = Run(0, 1)


def tree(samples: int, width: int, **settings: Any) -> Tree:
    chosen = {"max_steps": 8, "aggregate": "last", "sampling": Sampling(1.0), "max_new_tokens": 20} | settings
    return Tree(samples, width, **chosen)


def searched(searcher: Tree, world: World, reward: Scored, names: Sequence[str] = ("p",)) -> list[list[Attempt]]:
    return searcher.search([problem(name) for name in names], Lines(), world, reward, RUN)[0]


def planted(searcher: Tree, world: World, reward: Scored) -> Forest:
    asked = [unit.ask(problem("p"), Lines(), world)]
    return Forest(searcher, asked, unit.open_session(asked, Lines(), world), Lines(), reward, RUN, never_stop)


def test_the_exploration_constant_of_the_paper() -> None:
    parent = Node(visits=19652)
    child = Node(prior=0.5, visits=3, total=1.5)
    assert puct.puct(parent, child) == pytest.approx(
        0.5 + (1.25 + math.log(2 + 1 / 19652)) * 0.5 * math.sqrt(19652) / 4
    )
    assert puct.puct(Node(visits=1), Node(prior=1.0)) == pytest.approx(1.25 + math.log(1 + 2 / 19652))


TWO: Table = {"": {"a": 0.7, "b": 0.3}}
"""A right answer that is unlikely, and a likely one that is wrong."""


@pytest.mark.parametrize(
    ("iterations", "visits"),
    # By hand, with c = 1.25: a is worth 0 + 0.875 sqrt(N) / (1 + n), b 1 + 0.375 sqrt(N) / (1 + n) once seen, 0 before.
    # N = 1: 0.875 > 0.375. N = 2: 0.619 > 0.530. N = 3: 0.505 < 0.650. From then on b, until a third look at a is due:
    # N = 14: 1.091 < 1.117; N = 15: 1.130 > 1.112.
    [(1, {}), (2, {"a": 1}), (3, {"a": 2}), (4, {"a": 2, "b": 1}), (15, {"a": 2, "b": 12}), (16, {"a": 3, "b": 12})],
)
def test_visits_are_those_counted_by_hand(iterations: int, visits: dict[str, int]) -> None:
    reward = Scored(lambda output: float(output == "b"), lambda steps: 0.5)
    world = World({"p": TWO})
    grown = planted(tree(16, 16), world, reward)
    for _ in range(iterations):
        grown.simulate([0])
    root = grown.trees[0].root
    named = {world.sessions[0].text(child.node or 0): child for child in root.children}
    assert {name: child.visits for name, child in named.items() if child.visits} == visits
    assert (named["a"].prior, named["b"].prior) == (pytest.approx(0.7), pytest.approx(0.3))
    assert root.visits == iterations == 1 + sum(visits.values())
    assert [len(requests) for requests in world.sessions[0].asked] == [16], "what is known is not asked again"
    assert (len(reward.judged), reward.scored) == (1, []), "nor judged again; a prompt has no steps to score"


@pytest.mark.parametrize("says", [True, False])
def test_priors_are_the_model_s_or_the_share_of_draws(says: bool) -> None:
    world = World({"p": {"": {"a\n": 0.6, "b\n": 0.3, "c\n": 0.1}}}, says_log_probability=says)
    grown = planted(tree(4, 12), world, Scored(lambda output: 1.0, lambda steps: 0.5))
    grown.simulate([0])
    session = world.sessions[0]
    drawn = [session.text(node) for node in range(12)]
    got = {session.text(child.node or 0): child.prior for child in grown.trees[0].root.children}
    seen = {"a\n": 0.6, "b\n": 0.3, "c\n": 0.1} if says else {text: drawn.count(text) / 12 for text in drawn}
    whole = sum(seen[text] for text in got)
    assert set(got) == set(drawn)
    assert got == pytest.approx({text: seen[text] / whole for text in got})


def test_leaves_are_worth_their_step_scores_and_ends_their_reward() -> None:
    table: Table = {"": {"a\n": 1.0}, "a\n": {"b\n": 1.0}}
    reward = Scored(lambda output: 0.9, lambda steps: {"a": 0.3, "b": 0.6}[steps[-1]])
    grown = planted(tree(8, 2), World({"p": table}), reward)
    for _ in range(5):
        grown.simulate([0])
    root = grown.trees[0].root
    (first,) = root.children
    (second,) = first.children
    (end,) = second.children
    assert [node.visits for node in (root, first, second, end)] == [5, 4, 3, 2]
    assert [node.total for node in (root, first, second, end)] == pytest.approx([2.7, 2.7, 2.4, 1.8])
    assert [steps for call in reward.scored for _, steps in call] == [("a",), ("a", "b")]


def test_without_step_scores_one_answer_to_the_end_says_what_a_leaf_is_worth() -> None:
    world = World({"p": forest(1, 3, 2)})
    reward = Scored(lambda output: float(output.startswith("b")))
    grown = planted(tree(8, 2), world, reward)
    grown.simulate([0])
    grown.simulate([0])
    session = world.sessions[0]
    assert [[request.one_step for request in requests] for requests in session.asked] == [[True, True, False]] * 2
    (visited,) = [child for child in grown.trees[0].root.children if child.visits]
    rolled = session.text(5)
    assert rolled.startswith(session.text(visited.node or 0))
    assert visited.total == float(rolled.startswith("b"))
    assert next(answer.node for answer in grown.trees[0].answers.values()) == 2, "roll-outs are answers"


@pytest.mark.parametrize("steps", [None, lambda steps: 0.0])
def test_the_one_right_answer_is_found_wherever_it_is(steps: Callable[[Sequence[str]], float] | None) -> None:
    """Nothing says where it is, so all 40 nodes that do not end have to be looked at."""
    world = World({"p": forest(0, 3, 3)})
    for right, _ in list(world.answers("p"))[::6]:
        (found,) = searched(tree(200, 32), world, Scored(lambda output, right=right: float(output == right), steps))
        assert [attempt.output for attempt in found if attempt.reward] == [right] == [found[0].output]
        assert len({attempt.output for attempt in found}) == len(found)


def test_search_goes_where_the_reward_is() -> None:
    """Of 1296 answers 36 are right, those that begin with two rare steps; visits gather there."""
    world = World({"p": forest(4, 4, 6)})
    reward = Scored(lambda output: (output[0] == "b") * 0.5 + (output[:3] == "b\nd") * 0.5)
    (found,) = searched(tree(64, 24), world, reward)
    right = sum(chance for answer, chance in world.answers("p") if answer[:3] == "b\nd")
    assert right < 0.1
    assert sum(attempt.reward == 1.0 for attempt in found) / len(found) > 4 * right


def test_at_most_so_many_answers_and_the_best_of_them() -> None:
    world = World({"p": {"": dict.fromkeys("abcdefghij", 0.1)}})
    reward = Scored(lambda output: None if output == "j" else (ord(output) - 97) / 10, lambda steps: 0.5)
    (found,) = searched(tree(3, 60), world, reward)
    assert [attempt.output for attempt in found] == ["i", "h", "g"]
    assert [attempt.index for attempt in found] == [0, 1, 2]
    assert sum(attempt.flops_reward for attempt in found) == pytest.approx(50.0), (
        "judging those that are not told is not free"
    )


def test_an_answer_comes_out_where_none_ended() -> None:
    table: Table = {"": {"a\n": 0.8, "b\n": 0.2}, "a\n": {"c\n": 0.6, "d\n": 0.4}, "a\nc\n": {"e": 0.9, "f": 0.1}}
    world = World({"p": table, "q": table})
    reward = Scored(lambda output: 1.0, lambda steps: 0.5)
    (found,) = searched(tree(2, 6), world, reward)
    assert [(a.output, a.stop_reason, a.reward) for a in found] == [("a\nc\ne", "eos", 1.0)]
    (last,) = world.sessions[0].asked[-1]
    assert (last.sampling.temperature, last.one_step) == (None, False)
    (cut,) = searched(tree(2, 6, max_new_tokens=2), world, reward)
    assert [(len(a.output), a.stop_reason, a.reward) for a in cut] == [(4, "length", 0.0)]
    (spent,) = searched(tree(2, 6, max_flops=6.0), world, reward)
    assert [(a.output, a.stop_reason, a.status) for a in spent] == [("a\n", "length", "truncated")]
    assert sum(a.flops_policy for a in spent) == 6.0


def test_the_last_step_runs_to_the_end() -> None:
    world = World({"p": forest(2, 4, 2)})
    (found,) = searched(tree(4, 3, max_steps=2), world, Scored(lambda output: 1.0, lambda steps: 0.5))
    assert [request.one_step for request in world.sessions[0].asked[0]] == [True] * 3
    assert [request.one_step for request in world.sessions[0].asked[1]] == [False] * 3
    assert {len(attempt.steps) for attempt in found} == {4}


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("steps", [None, lambda steps: 0.5])
def test_an_answer_has_no_more_tokens_than_it_may(limit: int, steps: Callable[[Sequence[str]], float] | None) -> None:
    """Lines of two tokens, three of them and the end."""
    table: Table = {
        "": {"a": 1.0},
        "a": {"b\n": 1.0},
        "ab\n": {"c": 1.0},
        "ab\nc": {"d\n": 1.0},
        "ab\ncd\n": {"e": 1.0},
    }
    world = World({"p": table})
    (found,) = searched(tree(6, 2, max_new_tokens=limit), world, Scored(lambda output: 1.0, steps))
    assert [(a.tokens, a.stop_reason) for a in found] == [(limit, "length")]
    for requests in world.sessions[0].asked:
        for request in requests:
            before = len(world.sessions[0].places[request.parent].tokens) if request.parent is not None else 0
            assert before + request.max_new_tokens == limit


def test_a_server_that_gives_up_leaves_the_rest_of_the_tree() -> None:
    world = World({"p": forest(2, 2, 2)})
    world.fails = lambda request: request.key % 2 == 0
    for steps in (None, lambda steps: 0.5):
        (found,) = searched(tree(12, 4), world, Scored(lambda output: 1.0, steps))
        assert {attempt.stop_reason for attempt in found} == {"eos"}
    world.fails = lambda request: True
    for steps in (None, lambda steps: 0.5):
        (found,) = searched(tree(12, 4), world, Scored(lambda output: 1.0, steps))
        assert [(attempt.stop_reason, attempt.reward) for attempt in found] == [("failed", None)]


def test_a_tree_with_nothing_left_to_sample_is_done_at_once() -> None:
    world = World({"p": {"": {"a": 0.5, "b": 0.5}}, "q": forest(1, 2, 2)})
    reward = Scored(lambda output: 0.5, lambda steps: 0.5)
    told: list[int] = []

    def finished(position: int, attempts: list[Attempt]) -> None:
        told.append(position)
        assert attempts
        assert position == 1 or len(world.sessions[0].asked) == 1

    problems = [problem("p"), problem("q")]
    found, _ = tree(20, 8).search(problems, Lines(), world, reward, RUN, finished=finished)
    assert told == [0, 1]
    assert {attempt.output for attempt in found[0]} == {"a", "b"}
    assert len(found[1]) == 4


def test_a_round_is_one_batch() -> None:
    world = World({name: {"": {"a\n": 0.5, "b\n": 0.5}, "a\n": {END: 1.0}, "b\n": {"c\n": 1.0}} for name in "pqr"})
    reward = Scored(lambda output: 0.5)
    searched(tree(5, 4), world, reward, "pqr")
    assert len(world.sessions[0].asked) <= 5
    assert len(world.sessions[0].asked[0]) == 3 * (4 + 1)
