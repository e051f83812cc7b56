"""Every reward keeps its contract; the vote, the noise and the aggregates against sums done by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from flywheel import sections
from flywheel.errors import ConfigError
from flywheel.models import reward_model
from flywheel.problems.countdown import Countdown
from flywheel.problems.domain import Verdict
from flywheel.records import Problem, Status
from flywheel.rewards import reward as rewards
from flywheel.rewards.aggregate import aggregate
from flywheel.rewards.exact import Exact
from flywheel.rewards.majority import Majority
from flywheel.rewards.noisy import Noisy
from flywheel.rewards.reward import Answer, Judgement, Reward
from tests.flywheel.test_reward_models import SMALL, sequence_folder

JUDGE = """
def judge(problem, answers):
    return [len(answer["answer"]) % 3 / 2 if "9" not in answer["output"] else None for answer in answers]
"""
SECTIONS = {
    "exact": sections.Reward(),
    "majority": sections.Reward(name="majority"),
    "noisy": sections.Reward(name="noisy", flip=0.3),
    "noisy function": sections.Reward(name="noisy", base="function", function="contract_judge:judge", flip=0.3),
    "function": sections.Reward(name="function", function="contract_judge:judge"),
    "outcome": sections.Reward(name="outcome", model="texts"),
    "outcome of steps": sections.Reward(name="outcome"),
    "process": sections.Reward(name="process", aggregate="min"),
    "words": sections.Reward(name="process", model="words", step_tag="=", aggregate="prod"),
    "oracle_steps": sections.Reward(name="oracle_steps"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, str]:
    made = tmp_path_factory.mktemp("rewards")
    reward_model.create(SMALL, model_folder, 5, made / "steps")
    sequence_folder(made / "texts", model_folder, 2)
    (made / "contract_judge.py").write_text(JUDGE)
    return {"texts": str(made / "texts"), "words": str(model_folder), "steps": str(made / "steps"), "": str(made)}


@pytest.fixture(params=SECTIONS)
def reward(
    request: pytest.FixtureRequest, folders: dict[str, str], countdown: Countdown, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Reward]:
    monkeypatch.setenv("PYTHONPATH", folders[""])
    section = SECTIONS[request.param]
    if section.model is not None:
        section = section.model_copy(update={"model": folders[section.model]})
    return rewards.load(section, countdown, 7, folders["steps"], "cpu", 2)


def attempts(countdown: Countdown, problem: Problem) -> list[Answer]:
    """Right, wrong, malformed, empty, cut off and lost ones."""
    right = countdown.solutions(problem, 1)[0]
    texts = [right, "1 + 1 = 2", "2 * 3 = 6\n6 + 9 = 15", right, "nonsense", "8 *", "", " \n "]
    ended = [Answer(text, "eos", tuple(countdown.steps(text))) for text in texts]
    cut = [Answer(text, "length", tuple(countdown.steps(text))) for text in (right, "", "1 + 1 = 2")]
    return [*ended, *cut, Answer(right, "finished", tuple(countdown.steps(right))), Answer("", "failed", ())]


def test_a_reward_keeps_its_contract(reward: Reward, countdown: Countdown) -> None:
    problems = countdown.problems("train", 4)
    groups = [(problem, attempts(countdown, problem)) for problem in problems[:3]] + [(problems[3], [])]
    looks = []
    judged = reward.judge(groups, lambda: looks.append(1))
    assert looks
    assert [len(row) for row in judged] == [13, 13, 13, 0]
    for (problem, answers), row in zip(groups[:3], judged[:3], strict=True):
        for answer, judgement in zip(answers, row, strict=True):
            assert judgement.status in get_args(Status)
            assert (judgement.reward is None) == (judgement.status in {"timeout", "failed"})
            assert judgement.reward is None or 0.0 <= judgement.reward <= 1.0
            assert judgement.flops >= 0.0
            assert not judgement.step_rewards or len(judgement.step_rewards) == len(answer.steps)
            assert all(0.0 <= score <= 1.0 for score in judgement.step_rewards)
            if judgement.status == "judged":
                assert judgement.answer == countdown.check(problem, answer.output).answer is not None
                assert bool(judgement.step_rewards) == reward.gives_steps
            if judgement.reward is None:
                assert judgement.reason
        statuses = [judgement.status for judgement in row]
        assert statuses[4:8] == ["malformed"] * 4
        assert statuses[8:11] == ["truncated"] * 3
        assert all(judgement.reward == 0.0 for judgement in row[4:11])
        assert (row[12].reward, row[12].status) == (None, "failed")
        assert row[0].answer == row[3].answer == row[11].answer
    assert reward.judge(groups) == judged


def test_a_reward_says_the_same_of_a_problem_alone(reward: Reward, countdown: Countdown) -> None:
    """And, but for a vote, of an answer alone."""
    groups = [(problem, attempts(countdown, problem)) for problem in countdown.problems("train", 3)]
    together = reward.judge(groups)
    for group, row in zip(groups, together, strict=True):
        (alone,) = reward.judge([group])
        singly = alone if reward.votes else [reward.judge([(group[0], [answer])])[0][0] for answer in group[1]]
        for one, other, another in zip(row, alone, singly, strict=True):
            assert one.status == other.status == another.status
            if one.reward is not None:
                assert one.reward == pytest.approx(other.reward, abs=1e-5)
                assert one.reward == pytest.approx(another.reward, abs=1e-5)


def test_step_scores_are_there_if_said(reward: Reward, countdown: Countdown) -> None:
    (problem,) = countdown.problems("train", 1)
    steps = countdown.steps(countdown.solutions(problem, 1)[0])
    if not reward.gives_steps:
        with pytest.raises(TypeError, match="has no step scores"):
            reward.score_steps([(problem, steps)])
        return
    scored = reward.score_steps([(problem, []), (problem, steps[:1]), (problem, steps)])
    assert [len(one.scores) for one in scored] == [0, 1, len(steps)]
    assert all(0.0 <= score <= 1.0 for one in scored for score in one.scores)
    assert all(one.flops >= 0.0 for one in scored)
    (judged,) = reward.judge([(problem, [Answer("\n".join(steps), "eos", tuple(steps))])])
    assert judged[0].step_rewards == pytest.approx(scored[2].scores, abs=1e-5)


def test_what_rewards_say_of_themselves(reward: Reward, request: pytest.FixtureRequest) -> None:
    flags = (reward.needs_reference, reward.verifies, reward.votes, reward.gives_steps)
    expected = {
        "majority": (False, False, True, False),
        "outcome": (False, False, False, False),
        "outcome of steps": (False, False, False, False),
        "process": (False, False, False, True),
        "words": (False, False, False, True),
        "oracle_steps": (True, True, False, True),
    }
    which = request.node.callspec.params["reward"]
    assert flags == expected.get(which, (False, True, False, False))
    assert reward.name.split("(")[0] == SECTIONS[which].name
    if which == "noisy function":
        assert reward.name == "noisy(function(contract_judge:judge), 0.3)"


class Blind(Countdown):
    """A checker that takes every well-formed answer for right, or for wrong: votes must not look."""

    right = True

    def check(self, problem: Problem, output: str) -> Verdict:
        verdict = super().check(problem, output)
        return Verdict(self.right, verdict.answer, verdict.reason)


def vote(countdown: Countdown, *texts: str, right: bool = True) -> list[Judgement]:
    blind = Blind(3, 1, 9, 40, (0.6, 0.2, 0.2))
    blind.right = right
    (problem,) = countdown.problems("train", 1)
    return Majority(blind).judge([(problem, [Answer(text, "eos", ()) for text in texts])])[0]


def test_the_vote(countdown: Countdown) -> None:
    a, b, c = "2 + 3 = 5", "2 * 4 = 9", "2 - 1 = 1"
    for right in (True, False):
        # Whatever the checker says.
        assert [j.reward for j in vote(countdown, b, a, c, a, "?", right=right)] == [0.0, 0.5, 0.0, 0.5, 0.0]
    # A tie goes to the group seen first; malformed answers neither vote nor count.
    assert [j.reward for j in vote(countdown, b, a, a, b)] == [0.5, 0.0, 0.0, 0.5]
    assert [j.reward for j in vote(countdown, "?", "", a)] == [0.0, 0.0, 1.0]
    assert [(j.reward, j.status) for j in vote(countdown, "?", "")] == [(0.0, "malformed")] * 2
    assert vote(countdown) == []


def test_noise_turns_round_the_stated_share_always_the_same(countdown: Countdown) -> None:
    """Of 2,000 well-formed answers: within four standard deviations of a share of a tenth."""
    problems = countdown.problems("train", 200)
    groups = [
        (problem, [Answer(f"{a} + {b} = {a + b}", "eos", ()) for a, b in itertools.combinations(range(1, 6), 2)])
        for problem in problems
    ]
    exact = [j.reward for row in Exact(countdown).judge(groups) for j in row]
    noisy = [j.reward for row in Noisy(Exact(countdown), 0.1, 3).judge(groups) for j in row]
    assert len(exact) == 10 * len(problems)
    flipped = [one != other for one, other in zip(exact, noisy, strict=True)]
    assert all(other in (one, 1.0 - (one or 0.0)) for one, other in zip(exact, noisy, strict=True))
    assert abs(sum(flipped) - 0.1 * len(flipped)) < 4 * (0.1 * 0.9 * len(flipped)) ** 0.5
    # The same in another order, for another way of writing them; others of another seed.
    turned = [(p, [Answer("  " + a.output, "eos", ()) for a in answers[::-1]]) for p, answers in groups[::-1]]
    again = [j.reward for row in Noisy(Exact(countdown), 0.1, 3).judge(turned)[::-1] for j in row[::-1]]
    assert again == noisy
    assert [j.reward for row in Noisy(Exact(countdown), 0.1, 4).judge(groups) for j in row] != noisy
    assert [j.reward for row in Noisy(Exact(countdown), 0.0, 3).judge(groups) for j in row] == exact
    turned_all = [j.reward for row in Noisy(Exact(countdown), 1.0, 3).judge(groups) for j in row]
    assert turned_all == [1.0 - (reward or 0.0) for reward in exact]


def test_noise_makes_no_answer_of_what_is_none(countdown: Countdown) -> None:
    (problem,) = countdown.problems("train", 1)
    right = countdown.solutions(problem, 1)[0]
    answers = [Answer(right, "length", ()), Answer("", "eos", ()), Answer("?", "eos", ()), Answer("", "failed", ())]
    (row,) = Noisy(Exact(countdown), 1.0, 0).judge([(problem, answers)])
    assert [j.reward for j in row] == [0.0, 0.0, 0.0, None]
    assert Noisy(Exact(countdown), 0.05, 0).name == "noisy(exact, 0.05)"


def test_an_unsure_checker_is_no_zero(countdown: Countdown) -> None:
    class Unsure(Countdown):
        def check(self, problem: Problem, output: str) -> Verdict:
            if output == "slow":
                return Verdict(False, None, "took too long", "timeout")
            return super().check(problem, output)

    domain = Unsure(3, 1, 9, 40, (0.6, 0.2, 0.2))
    (problem,) = countdown.problems("train", 1)
    answers = [Answer(text, "eos", ("x",)) for text in ("slow", "1 + 1 = 2", "?")]
    for reward in (Exact(domain), Majority(domain), Noisy(Exact(domain), 1.0, 0)):
        (row,) = reward.judge([(problem, answers)])
        assert [j.status for j in row] == ["timeout", "judged", "malformed"]
        assert (row[0].reward, row[0].reason) == (None, "took too long")


@pytest.mark.parametrize(("how", "expected"), [("last", 0.5), ("min", 0.25), ("prod", 0.1)])
def test_aggregates(how: sections.Aggregate, expected: float) -> None:
    assert aggregate([0.8, 0.25, 0.5], how) == pytest.approx(expected)
    assert aggregate([0.8], how) == 0.8
    with pytest.raises(ValueError, match="no step scores"):
        aggregate([], how)


def test_process_without_any_model(countdown: Countdown) -> None:
    with pytest.raises(ConfigError, match=r"supervise\.enabled"):
        rewards.load(sections.Reward(name="process"), countdown, 0, None, "cpu", 1)


def test_a_model_of_its_own_goes_before_the_registrys(
    countdown: Countdown, folders: dict[str, str], tmp_path: Path
) -> None:
    section = sections.Reward(name="process", model=folders["steps"])
    assert rewards.load(section, countdown, 0, str(tmp_path), "cpu", 1).name.startswith("process(")
