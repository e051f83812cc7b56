"""Every domain keeps its contract; Countdown's solver against a naive recursion; splits by hand alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel import params
from flywheel.problems import domain as domains
from flywheel.problems.countdown import Countdown
from flywheel.problems.countdown_grammar import canonical
from flywheel.problems.countdown_solver import MOST_SOLUTIONS, as_steps, solve
from flywheel.records import Problem, Split

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
SECTIONS = [
    params.Problems(),
    params.Problems(numbers=2, largest=9, largest_target=40),
    params.Problems(numbers=4, largest=6, largest_target=30),
    params.Problems(domain="file", path="package:gsm8k/test.jsonl.gz", prompt_column="question"),
    params.Problems(
        domain="file", path="package:gsm8k/test.jsonl.gz", prompt_column="question", extractor="last_number", chat=True
    ),
]


@pytest.mark.parametrize(
    "section", SECTIONS, ids=lambda section: f"{section.domain}-{section.numbers}-{section.extractor}"
)
def test_a_domain_keeps_its_contract(section: params.Problems) -> None:
    domain = domains.load(section)
    vocabulary = domain.vocabulary()
    words = None if vocabulary is None else set(vocabulary)
    corpus = set(domain.corpus())
    assert (words is None) == bool(corpus), "a tokenizer is made from the one or the other"
    groups: dict[str, set[str]] = {}
    for split in SPLITS:
        problems = domain.problems(split, 12)
        assert 0 < len(problems) <= 12
        assert problems == domains.load(section).problems(split, 12)
        assert [p.problem_id for p in problems] == sorted({p.problem_id for p in problems})
        groups[split] = {p.group for p in domain.problems(split, 10_000)}
        for problem in problems:
            assert (problem.split, problem.domain, problem.domain_version) == (split, domain.name, domain.version)
            assert 0.0 < problem.difficulty <= 1.0
            solutions = domain.solutions(problem, 3)
            assert solutions
            assert problem.reference == solutions[0]
            verdicts = [domain.check(problem, solution) for solution in solutions]
            assert all(verdict.right for verdict in verdicts)
            assert len({verdict.answer for verdict in verdicts}) == len(solutions)
            assert domain.step_end.join(domain.steps(solutions[0])).split() == solutions[0].split()
            contents = [domain.content(text, str(v.answer)) for text, v in zip(solutions, verdicts, strict=True)]
            assert len(set(contents)) == len(solutions)
            assert domain.content(solutions[0] + "\n", str(verdicts[0].answer)) == contents[0]
            assert (domain.prompt(problem) in corpus) == (split == "train" and words is None)
            for message in domain.messages(problem) or []:
                assert message.keys() == {"role", "content"}
            if words is not None:
                text = domain.prompt(problem) + solutions[0]
                assert set(text.replace("\n", " \n ").split(" ")) - {""} <= words
            for nothing in ("", " ", "\n"):
                verdict = domain.check(problem, nothing)
                assert (verdict.right, verdict.answer, verdict.unsure) == (False, None, None)
            if not domain.needs_reference:
                blind = Problem(*[getattr(problem, name) for name in Problem.__slots__[:-1]])
                assert blind.reference is None
                assert domain.check(blind, solutions[0]).right
    assert not groups["train"] & groups["valid"]
    assert not groups["train"] & groups["test"]
    assert not groups["valid"] & groups["test"]


def joined(values: tuple[Fraction, ...], cap: int) -> Iterator[Fraction]:
    """Naive: put any two together in every way, until one is left. Positive integers up to `cap` only."""
    if len(values) == 1:
        yield values[0]
        return
    for i, j in itertools.permutations(range(len(values)), 2):
        rest = tuple(values[k] for k in range(len(values)) if k not in (i, j))
        a, b = values[i], values[j]
        for value in (a + b, a - b, a * b, a / b):
            if value > 0 and value.denominator == 1 and value <= cap:
                yield from joined((*rest, value), cap)


HANDS = [(1, 1), (3, 8), (2, 3, 5), (7, 7, 7), (1, 2, 12), (4, 6, 16), (1, 3, 4, 6), (2, 2, 9, 10), (1, 5, 5, 5)]


@pytest.mark.parametrize("hand", HANDS, ids=str)
def test_the_solver_reaches_what_brute_force_reaches(hand: tuple[int, ...]) -> None:
    cap = 200
    solved = solve(hand, cap)
    assert set(solved) == {int(value) for value in joined(tuple(map(Fraction, hand)), cap)}
    domain = Countdown(len(hand), 1, 16, 100, (0.6, 0.12, 0.28))
    for target, expressions in solved.items():
        assert 0 < len(expressions) <= MOST_SOLUTIONS
        problem = Problem("p", "countdown", 1, "train", 1.0, "g", {"numbers": list(hand), "target": target})
        verdicts = [domain.check(problem, "\n".join(as_steps(expression))) for expression in expressions]
        assert all(verdict.right for verdict in verdicts)
        assert len({canonical(expression) for expression in expressions}) == len(expressions)


def test_the_solver_finds_every_solution_of_a_small_hand() -> None:
    """Worked out on paper: 8 3 2 -> 12 has one solution, in two orders; 8 3 2 -> 13 has 8 + 3 + 2 and 8 * 2 - 3."""
    solved = solve((2, 3, 8), 200)
    assert [canonical(expression) for expression in solved[12]] == ["(/2*3*8)"]
    assert {canonical(expression) for expression in solved[13]} == {"(+2+3+8)", "(+(*2*8)-3)"}


def test_solutions_that_read_the_same_are_one() -> None:
    """3 + 3 = 6, 6 * 3 = 18, 18 + 6 = 24: either six may be meant, so the text is one answer."""
    domain = Countdown(4, 1, 9, 40, (0.6, 0.2, 0.2))
    problem = Problem("p", "countdown", 1, "train", 1.0, "g", {"numbers": [3, 3, 3, 6], "target": 24})
    answers = [domain.check(problem, text).answer for text in domain.solutions(problem, 99)]
    assert len(answers) == len(set(answers)) < len(solve((3, 3, 3, 6), domain.largest_value)[24])


@settings(deadline=None)
@given(st.lists(st.integers(1, 16), min_size=3, max_size=3), st.randoms(use_true_random=False))
def test_the_split_is_of_the_hand_in_any_order(hand: list[int], random: object) -> None:
    domain = Countdown(3, 1, 16, 100, (0.6, 0.12, 0.28))
    splits = {domain.split_of(order) for order in itertools.permutations(hand)}
    assert len(splits) == 1
    # Neither the targets asked for nor the range of the other hands moves a hand.
    assert Countdown(3, 1, 99, 7, (0.6, 0.12, 0.28)).split_of(tuple(hand)) in splits


def test_shares_are_what_the_splits_get() -> None:
    domain = Countdown(3, 1, 30, 100, (0.6, 0.12, 0.28))
    hands = list(itertools.combinations_with_replacement(range(1, 31), 3))
    for split, share in zip(SPLITS, domain.shares, strict=True):
        got = sum(domain.split_of(hand) == split for hand in hands) / len(hands)
        # Five standard errors of a binomial share.
        assert abs(got - share) < 5 * (share * (1 - share) / len(hands)) ** 0.5


def test_so_many_hands_that_they_are_drawn() -> None:
    domain = Countdown(6, 1, 60, 50, (0.6, 0.2, 0.2))
    hands = list(domain._hands())
    assert 19_000 < len(hands) == len(set(hands)) <= 20_000
    assert all(list(hand) == sorted(hand) and hand[0] >= 1 and hand[-1] <= 60 for hand in hands)
    assert hands == list(domain._hands())
