"""What every searcher keeps to, with every reward it can be used with."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from flywheel import sections
from flywheel.errors import ConfigError, Interrupted
from flywheel.models import reward_model
from flywheel.models.language import LanguageModel
from flywheel.models.sampler import TextSampler
from flywheel.problems.countdown import Countdown
from flywheel.records import Attempt, Problem
from flywheel.rewards import reward as rewards
from flywheel.rewards.exact import Exact
from flywheel.rewards.majority import Majority
from flywheel.rewards.noisy import Noisy
from flywheel.rewards.oracle_steps import OracleSteps
from flywheel.rewards.reward import Answer, Judgement, Reward, StepScores
from flywheel.search import searcher as searchers
from flywheel.search.protocols import Run, Sampler, Searcher, never_stop
from tests.flywheel.test_reward_models import SMALL, sequence_folder
from tests.flywheel.worlds import Scored, World, countdown_world

RUN = Run(0, 1)
SEARCHERS: tuple[str, ...] = tuple(
    name for name in get_args(sections.SearcherName) if name not in sections.BOARD_SEARCHERS
)
REWARDS: tuple[str, ...] = get_args(sections.RewardName)


FUNCTION = """
def judge(problem, answers):
    return [len(answer["output"]) % 5 / 4 for answer in answers]
"""


@pytest.fixture(scope="module")
def real(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, countdown: Countdown
) -> Iterator[Callable[[str], Reward]]:
    """Every reward as a run gets it, made when first asked for; the networks are tiny, with random weights."""
    folder = tmp_path_factory.mktemp("conformance")
    made: dict[str, Reward] = {}

    def get(name: str) -> Reward:
        if name not in made:
            settings: dict[str, Any] = {"base": "exact", "flip": 0.3} if name == "noisy" else {}
            if name == "process":
                settings["model"] = str(folder / "process")
                reward_model.create(SMALL, model_folder, 5, folder / "process")
            elif name == "outcome":
                settings["model"] = str(sequence_folder(folder / "outcome", model_folder, 1))
            elif name == "function":
                settings["function"] = "conformance_judge:judge"
                (folder / "conformance_judge.py").write_text(FUNCTION)
            made[name] = rewards.load(sections.Reward(name=name, **settings), countdown, 0, None, "cpu", 1)
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield get
    if "function" in made:
        made["function"].close()  # type: ignore[attr-defined]


def table(name: str, domain: Countdown) -> Reward:
    """The same, with tables of the same flags and countable FLOPs in place of networks and processes."""
    return {
        "exact": lambda: Exact(domain),
        "majority": lambda: Majority(domain),
        "noisy": lambda: Noisy(Exact(domain), 0.3, 0),
        "oracle_steps": lambda: OracleSteps(domain),
        "function": lambda: Scored(lambda output: len(output) % 5 / 4, verifies=True),
        "outcome": lambda: Scored(lambda output: len(output) % 7 / 7),
        "process": lambda: Scored(lambda output: len(output) % 7 / 7, lambda steps: len(steps[-1]) % 7 / 7),
    }[name]()


def searcher_named(name: str, **settings: Any) -> Searcher:
    """Eight samples, small in all else."""
    chosen = {"samples": 8, "max_new_tokens": 12, "max_steps": 3} | settings
    return searchers.load(sections.Generate(searcher=name, **chosen), sections.Reward())


def fits(searcher: str, reward: str) -> bool:
    """The table of docs/search.md."""
    steps, decision = reward in {"process", "oracle_steps"}, reward not in {"outcome", "process"}
    return {"beam": steps, "dvts": steps, "tree": reward != "majority", "adaptive": decision}.get(searcher, True)


PAIRS = [(searcher, reward) for searcher in SEARCHERS for reward in REWARDS if fits(searcher, reward)]
every_pair = pytest.mark.parametrize(("name", "judge"), PAIRS)


class Counted:
    """A reward that counts the FLOPs it says it took."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward
        self.name, self.needs_reference = reward.name, reward.needs_reference
        self.verifies, self.votes, self.gives_steps = reward.verifies, reward.votes, reward.gives_steps
        self.flops = 0.0
        self.calls = 0

    def judge(
        self, groups: Sequence[tuple[Problem, Sequence[Answer]]], should_stop: Callable[[], None] = never_stop
    ) -> list[list[Judgement]]:
        assert groups
        assert all(answers for _, answers in groups), "nothing to judge is not asked for"
        judged = self._reward.judge(groups, should_stop)
        self.flops += sum(judgement.flops for row in judged for judgement in row)
        return judged

    def score_steps(
        self, partial: Sequence[tuple[Problem, Sequence[str]]], should_stop: Callable[[], None] = never_stop
    ) -> list[StepScores]:
        assert partial
        assert all(steps and all(step.strip() for step in steps) for _, steps in partial), "blank steps are none"
        self.calls += 1
        scores = self._reward.score_steps(partial, should_stop)
        self.flops += sum(score.flops for score in scores)
        return scores

    def take_padding(self) -> float:
        return self._reward.take_padding()


@pytest.fixture(scope="module")
def problems(countdown: Countdown) -> list[Problem]:
    return countdown.problems("train", 5)


@pytest.fixture(params=["world", "model"])
def sampler(
    request: pytest.FixtureRequest, countdown: Countdown, problems: list[Problem]
) -> Iterator[Callable[[], Sampler]]:
    """A table that guesses at Countdown, and a network whose random weights write anything at all."""
    if request.param == "world":
        yield lambda: countdown_world(countdown, problems)
    else:
        model: LanguageModel = request.getfixturevalue("tiny")
        yield lambda: TextSampler(model)


@every_pair
def test_what_every_search_keeps_to(
    name: str,
    judge: str,
    sampler: Callable[[], Sampler],
    real: Callable[[str], Reward],
    countdown: Countdown,
    problems: list[Problem],
) -> None:
    searcher, reward, model = searcher_named(name), Counted(real(judge)), sampler()
    assert searchers.misfit(searcher, judge, reward) is None
    told: dict[int, list[Attempt]] = {}
    found, cost = searcher.search(
        problems, countdown, model, reward, RUN, should_stop=never_stop, finished=lambda at, row: told.update({at: row})
    )
    assert [told[at] for at in range(len(problems))] == found
    flat = [attempt for row in found for attempt in row]
    assert len({attempt.attempt_id for attempt in flat}) == len(flat)
    assert all(1 <= len(row) <= 8 for row in found) or (name == "adaptive" and 5 <= len(flat) <= 40)
    for problem, row in zip(problems, found, strict=True):
        for index, attempt in enumerate(row):
            assert (attempt.problem_id, attempt.index, attempt.searcher) == (problem.problem_id, index, name)
            steered = {} if name == "best_of_n" else {"reward": reward.name}
            assert attempt.search_params == searcher.params() | steered
            assert attempt.prompt == countdown.prompt(problem)
            assert model.decode(attempt.token_ids) == attempt.output
            assert attempt.steps == tuple(countdown.steps(attempt.output))
            assert attempt.tokens == len(attempt.token_ids) <= 12
            assert (attempt.status == "truncated") == (attempt.stop_reason == "length") or attempt.reward is None
            if not reward.votes and attempt.reward is not None:
                answer = Answer(attempt.output, attempt.stop_reason, attempt.steps)
                assert real(judge).judge([(problem, [answer])])[0][0].reward == pytest.approx(attempt.reward, abs=1e-5)
    assert sum(attempt.flops_policy for attempt in flat) == pytest.approx(cost.policy, rel=1e-12)
    assert sum(attempt.flops_reward for attempt in flat) == pytest.approx(cost.reward, rel=1e-12)
    assert cost.reward == pytest.approx(reward.flops, rel=1e-12)
    if isinstance(model, World):
        (session,) = model.sessions
        assert session.cost().policy == cost.policy
        assert session.released == set(range(len(problems)))
        if name in {"beam", "dvts", "tree"}:
            assert reward.calls <= len(session.asked) <= 8 + 1, "a round is one batch, for the model and for the reward"


@every_pair
def test_a_search_can_be_made_again_and_depends_on_its_own_problem_alone(
    name: str, judge: str, countdown: Countdown, problems: list[Problem]
) -> None:
    def search(some: list[Problem], run: Run = RUN) -> list[list[Attempt]]:
        world = countdown_world(countdown, problems)
        return searcher_named(name).search(
            some,
            countdown,
            world,
            table(judge, countdown),
            run,
            should_stop=never_stop,
            finished=lambda *_: None,
        )[0]

    found = search(problems)
    assert found == search(problems)
    if name != "adaptive":
        assert [search([problem])[0] for problem in problems] == found
    for other in (Run(1, 1), Run(0, 2), Run(0, 1, "evaluate")):
        assert [[a.token_ids for a in row] for row in search(problems, other)] != [
            [a.token_ids for a in row] for row in found
        ]


@every_pair
def test_a_stop_loses_nothing_that_was_told(
    name: str, judge: str, countdown: Countdown, problems: list[Problem]
) -> None:
    """Stopped at every call in turn (every seventh, where there are many)."""
    world = countdown_world(countdown, problems)
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    def search(should_stop: Callable[[], None], told: dict[int, list[Attempt]]) -> list[list[Attempt]]:
        return searcher_named(name).search(
            problems, countdown, world, table(judge, countdown), RUN, should_stop=should_stop,
            finished=lambda at, row: told.update({at: row}),
        )[0]  # fmt: skip

    whole = search(count, {})
    for limit in range(0, calls, 7):
        left, told = limit, {}

        def stop() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Interrupted("stopped")

        with pytest.raises(Interrupted):
            search(stop, told)
        assert all(whole[at] == row for at, row in told.items())


@every_pair
def test_flops_are_a_limit(name: str, judge: str, countdown: Countdown, problems: list[Problem]) -> None:
    """A search goes on to the end of the round in which its FLOPs are spent, and still gives an answer."""
    rounds = []
    for most in (None, 1.0, 30.0):
        world, reward = countdown_world(countdown, problems), Counted(table(judge, countdown))
        searcher = searcher_named(name, max_flops=most)
        found, cost = searcher.search(
            problems, countdown, world, reward, RUN, should_stop=never_stop, finished=lambda *_: None
        )
        assert min(map(len, found)) >= 1
        assert sum(a.flops_policy for row in found for a in row) == pytest.approx(cost.policy)
        assert sum(a.flops_reward for row in found for a in row) == pytest.approx(cost.reward)
        asked = world.sessions[0].asked
        rounds.append(len(asked))
        if most is not None:
            for at, row in enumerate(found):
                took = sum(a.flops_policy + a.flops_reward for a in row)
                last = [request for requests in asked for request in requests if request.prompt == at]
                widest = max(Counter(number for number, r in enumerate(asked) for q in r if q.prompt == at).values())
                # A round: a segment has three tokens at most here, and is scored (3) or judged (5).
                assert took < most + widest * (3 + 5 + 3), (took, len(last))
    assert rounds[1] <= 2


@pytest.mark.parametrize("name", SEARCHERS)
def test_settings_are_part_of_an_attempt_s_name(name: str) -> None:
    plain = searcher_named(name)
    assert json.loads(json.dumps(plain.params())) == plain.params()
    for settings in ({"temperature": 0.5}, {"top_p": 0.9}, {"top_k": 3}, {"max_new_tokens": 13}):
        assert searcher_named(name, **settings).params() != plain.params()
    if name in {"beam", "dvts", "tree"}:
        for settings in ({"width": 2}, {"max_steps": 5}, {"max_flops": 7.0}):
            assert searcher_named(name, **settings).params() != plain.params()
        by_least = searchers.load(sections.Generate(searcher=name), sections.Reward(aggregate="min"))
        assert by_least.params()["aggregate"] == "min"
    if name in {"beam", "dvts"}:
        assert searcher_named(name, lookahead=1).params() != plain.params()


@pytest.mark.parametrize("name", SEARCHERS)
@pytest.mark.parametrize("judge", REWARDS)
def test_pairs_that_do_not_fit_are_refused_by_name(name: str, judge: str, countdown: Countdown) -> None:
    searcher, loaded = searcher_named(name), table(judge, countdown)
    assert (searchers.misfit(searcher, judge, loaded) is None) == fits(name, judge)
    needed = {"outcome": {"model": "folder"}, "function": {"function": "module:function"}}.get(judge, {})
    section = sections.Reward.model_validate({"name": judge, **needed})
    facts = rewards.facts(section)
    assert (facts.verifies, facts.votes, facts.gives_steps) == (loaded.verifies, loaded.votes, loaded.gives_steps)
    if fits(name, judge):
        searchers.check_pair(searcher, section)
    else:
        with pytest.raises(ConfigError, match=rf"searcher {name} .*reward {judge}"):
            searchers.check_pair(searcher, section)


def test_search_by_steps_solves_more_than_samples_do(countdown: Countdown) -> None:
    """With the solver's step scores, eight beams against eight samples, 30 problems: a sample is right once in 40 (a
    first line in eight, a second in five), a beam that stands on the right line once in five. The tree, which samples
    the children of a node once, gets eight of them."""
    many = countdown.problems("train", 30)
    solved = {}
    for name in SEARCHERS:
        world, reward = countdown_world(countdown, many), OracleSteps(countdown)
        found, _ = searcher_named(name, width=8 if name == "tree" else 4).search(
            many, countdown, world, reward, RUN, should_stop=never_stop, finished=lambda *_: None
        )
        solved[name] = sum(any(attempt.reward == 1.0 for attempt in row) for row in found)
    assert solved["beam"] > solved["best_of_n"] + 4, solved
    assert solved["dvts"] > solved["best_of_n"] + 4, solved
    assert solved["tree"] > solved["best_of_n"] + 4, solved
