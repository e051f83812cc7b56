"""Step labels by rollouts in a world whose chances are known by brute force.

The world: an answer is three coin tosses, a line each (`a` or `b`), then it ends; it is right if at least two lines
say `a`. A token is a character; the model draws `a` with the chance P.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
import pytest

from flywheel.compute import Cost
from flywheel.errors import Interrupted
from flywheel.models.language import LanguageModel
from flywheel.models.sampler import TextSampler
from flywheel.problems.countdown import Countdown
from flywheel.records import Problem, Rollout, StepLabel
from flywheel.rewards.exact import Exact
from flywheel.rewards.reward import Answer, Judgement, NoSteps
from flywheel.search.best_of_n import BestOfN
from flywheel.search.protocols import Extension, Run, Sampling, Segment
from flywheel.search.rollouts import label_steps
from flywheel.seeds import uniform

P, LINES, END = 0.6, 3, "."
SAMPLING = Sampling(1.0)


@dataclass
class Coins:
    """Sampler, session and text of the world in one."""

    snapshot: str = "coins"
    tokenizer_id: str = "characters"
    step_end: str = "\n"
    blank_end: bool = True
    """Whether the last line is closed by a line end too, so that the end token stands alone."""
    nodes: list[tuple[str, bool]] = field(default_factory=list)
    asked: list[Extension] = field(default_factory=list)

    def encode_prompt(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> tuple[str, list[int]]:
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(map(chr, ids))

    def prompt(self, problem: Problem) -> str:
        return "toss\n"

    def messages(self, problem: Problem) -> None:
        return None

    def steps(self, output: str) -> list[str]:
        return [line for line in output.split("\n") if line.strip()]

    def open(self, prompts: Sequence[Sequence[int]], texts: Sequence[str], step_end: str) -> Coins:
        assert step_end == "\n"
        return self

    def extend(self, requests: Sequence[Extension], should_stop: Callable[[], None]) -> list[Segment]:
        should_stop()
        self.asked += requests
        return [self._go_on(request) for request in requests]

    def _go_on(self, request: Extension) -> Segment:
        text, ended = self.nodes[request.parent] if request.parent is not None else ("", False)
        assert not ended, "nothing comes after the end"
        tokens, stop = 0, "length"
        while tokens < request.max_new_tokens:
            draw = float(uniform(np.array([request.key], dtype=np.uint64), len(text))[0])
            closed = LINES if self.blank_end else LINES - 1
            if text.count("\n") == closed and (self.blank_end or text[-1] != "\n"):
                letter = END
            elif text and text[-1] != "\n":
                letter = "\n"
            else:
                letter = "a" if draw < P else "b"
            tokens += 1
            if letter == END:
                stop = "eos"
                break
            text += letter
            if letter == "\n" and request.one_step:
                stop = "step"
                break
        self.nodes.append((text, stop == "eos"))
        return Segment(len(self.nodes) - 1, stop, tokens, 0.0, 10.0 * tokens)  # type: ignore[arg-type]

    def text(self, node: int) -> str:
        return self.nodes[node][0]

    def token_ids(self, node: int) -> tuple[int, ...]:
        return tuple(map(ord, self.nodes[node][0]))

    def tokens(self, node: int) -> int:
        return len(self.nodes[node][0])

    def log_probabilities(self, node: int) -> tuple[float, ...]:
        return ()

    def prompt_flops(self, prompt: int) -> float:
        return 5.0

    def release(self, prompt: int) -> None: ...

    def cost(self) -> Cost:
        return Cost(policy=1.0, prefill=5.0)


class MostlyA(NoSteps):
    """The world's exact checker. `unsure` answers get no verdict."""

    name, needs_reference, verifies, votes = "exact", False, True, False
    unsure: frozenset[str] = frozenset()

    def judge(
        self, groups: Sequence[tuple[Problem, Sequence[Answer]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[list[Judgement]]:
        return [[self._one(answer) for answer in answers] for _, answers in groups]

    def _one(self, answer: Answer) -> Judgement:
        if answer.stop_reason == "length":
            return Judgement(0.0, "truncated", None)
        if "".join(answer.steps) in self.unsure:
            return Judgement(None, "timeout", None)
        return Judgement(float(answer.steps.count("a") >= 2), "judged", "".join(answer.steps), flops=2.0)


def problem(number: int) -> Problem:
    return Problem(f"problem-{number}", "coins", 1, "train", 1.0, "g", {})


def chance(prefix: Sequence[str]) -> float:
    """That an answer which begins so comes right, over all ways to end it."""
    total = 0.0
    for rest in itertools.product("ab", repeat=LINES - len(prefix)):
        weight = np.prod([P if letter == "a" else 1 - P for letter in rest]) if rest else 1.0
        total += float(weight) * ([*prefix, *rest].count("a") >= 2)
    return total


def labelled(world: Coins | None = None, **changes: Any) -> tuple[list[Rollout], list[StepLabel], Cost]:
    options: dict[str, Any] = {
        "attempts": 2, "rollouts": 4, "sampling": SAMPLING, "max_new_tokens": 20, "estimate": "soft",
    }  # fmt: skip
    world = world or Coins()
    problems = changes.pop("problems", [problem(0), problem(1)])
    exact = changes.pop("exact", MostlyA())
    return label_steps(problems, world, world, exact, Run(7, 2, "supervise"), **{**options, **changes})


@pytest.mark.parametrize("blank_end", [True, False])
def test_soft_scores_come_near_the_true_chances(blank_end: bool) -> None:
    count = 1500
    _, labels, _ = labelled(Coins(blank_end=blank_end), problems=[problem(3)], attempts=6, rollouts=count)
    assert len(labels) == 6
    for label in labels:
        assert len(label.steps) == len(label.scores) == LINES
        assert label.judged == (count, count, 1)
        for length, score in enumerate(label.scores[:-1], 1):
            expected = chance(label.steps[:length])
            # Four standard deviations of a mean of `count` tosses: some 36 comparisons, once in 400 runs by chance;
            # the noise is fixed, so it passes always or never.
            assert abs(score - expected) <= 4 * sqrt(expected * (1 - expected) / count) + 1e-12
        assert label.scores[-1] == float(label.steps.count("a") >= 2), "the answer's own verdict"
    assert len({label.steps for label in labels}) > 2
    between = [score for label in labels for score in label.scores[:-1] if 0.1 < score < 0.9]
    assert between, "the world has steps that decide nothing yet"


def test_hard_is_any_and_both_stand_on_the_same_rollouts() -> None:
    many = [problem(number) for number in range(30)]
    soft_rollouts, soft, _ = labelled(problems=many, rollouts=2)
    hard_rollouts, hard, _ = labelled(problems=many, rollouts=2, estimate="hard")
    assert soft_rollouts == hard_rollouts
    for one, other in zip(soft, hard, strict=True):
        assert (one.steps, one.right, one.judged) == (other.steps, other.right, other.judged)
        assert one.scores == tuple(right / of for right, of in zip(one.right, one.judged, strict=True))
        assert other.scores == tuple(float(right > 0) for right in other.right)
        assert one.step_label_id != other.step_label_id
    assert any(0 < score < 1 for label in soft for score in label.scores)


def test_an_outcome_label_is_the_answers_own_verdict_at_every_step() -> None:
    many = [problem(number) for number in range(30)]
    with_rollouts, soft, dearer = labelled(problems=many)
    sampled, labels, cost = labelled(problems=many, rollouts=0, estimate="outcome")
    assert sampled == [one for one in with_rollouts if one.step == 0], "the same attempts, and nothing else"
    assert cost.reward < dearer.reward
    rewards = {one.rollout_id: one.reward for one in sampled}
    assert [label.steps for label in labels] == [label.steps for label in soft]
    for label in labels:
        ((attempt, role),) = label.parents
        assert role == "attempt"
        assert label.scores == (rewards[attempt],) * len(label.steps)
        assert set(label.judged) == {1}
    assert {label.scores[0] for label in labels} == {0.0, 1.0}


def test_a_label_is_recounted_from_its_parents() -> None:
    sampled, labels, cost = labelled()
    rows = {one.rollout_id: one for one in sampled}
    assert len(rows) == len(sampled) == 2 * 2 * (1 + 2 * 4)
    places = [(one.problem_id, one.attempt, one.step, one.index) for one in sampled]
    assert places == sorted(places)
    for label in labels:
        parents = [(rows[name], role) for name, role in label.parents]
        (attempt,) = [one for one, role in parents if role == "attempt"]
        assert attempt.output.split() == list(label.steps)
        for step in range(1, LINES):
            completions = [one for one, _ in parents if one.step == step]
            assert len(completions) == 4
            assert len({one.prefix for one in completions}) == 1
            for one in completions:
                assert one.parent_id == attempt.rollout_id
                assert one.output.split()[:step] == list(label.steps[:step]), "it goes on from the prefix"
                # Only what was sampled from the prefix on is counted.
                assert one.tokens == len(one.output) + 1 - 2 * step
                assert one.flops_policy == 10.0 * one.tokens
            assert label.right[step - 1] == sum(one.reward == 1.0 for one in completions)
    assert len({label.step_label_id for label in labels}) == 4
    assert cost == Cost(policy=1.0, prefill=5.0, reward=2.0 * len(sampled))


def test_noise_is_addressed() -> None:
    """No two draws share a key but the segments of one attempt, which draw as best-of-N's attempt would."""
    world = Coins()
    sampled, _, _ = labelled(world)
    keys = [request.key for request in world.asked]
    assert len(set(keys)) == len(sampled)
    alone, _, _ = labelled(problems=[problem(1)])
    assert alone == [one for one in sampled if one.problem_id == "problem-1"], "its neighbours do not matter"
    whole = Coins()
    keys_of_attempts = {request.key for request in world.asked if request.one_step}
    requests = [Extension(0, None, key, SAMPLING, 20) for key in sorted(keys_of_attempts)]
    answers = {whole.text(segment.node) for segment in whole.extend(requests, lambda: None)}
    assert answers == {one.output for one in sampled if one.step == 0}


def test_a_step_that_was_cut_off_is_no_step() -> None:
    # Five tokens: two whole lines and one letter.
    sampled, labels, _ = labelled(max_new_tokens=5)
    assert {one.stop_reason for one in sampled} == {"length"}
    assert {len(label.steps) for label in labels} == {2}
    assert {label.right for label in labels} == {(0, 0)}, "an answer that was cut off is not right"
    # Four: the second line's end leaves no token to go on with.
    _, labels, _ = labelled(max_new_tokens=4)
    assert {len(label.steps) for label in labels} == {1}
    _, labels, _ = labelled(max_new_tokens=1)
    assert labels == []


def test_completions_without_a_verdict_count_on_neither_side() -> None:
    class Unsure(MostlyA):
        unsure = frozenset({"aab", "aaa"})

    _, certain, _ = labelled(problems=[problem(n) for n in range(20)])
    sampled, labels, _ = labelled(problems=[problem(n) for n in range(20)], exact=Unsure())
    rows = {one.rollout_id: one for one in sampled}
    assert any(sum(label.judged) < sum(other.judged) for label, other in zip(labels, certain, strict=False))
    for label in labels:
        for step, (right, judged) in enumerate(zip(label.right, label.judged, strict=True), 1):
            heard = [rows[name] for name, _ in label.parents if rows[name].step == step] or [rows[label.parents[0][0]]]
            assert judged == sum(one.reward is not None for one in heard) > 0
            assert right == sum(one.reward == 1.0 for one in heard)
        if label.steps[:2] == ("a", "a"):
            assert len(label.steps) <= 2, "its own verdict is missing, so its last step has no label"


def test_a_stop_ends_the_work() -> None:
    def stop() -> None:
        raise Interrupted("stop")

    with pytest.raises(Interrupted):
        labelled(should_stop=stop)


def test_the_same_question_has_the_same_answer() -> None:
    assert labelled() == labelled()


def test_with_a_model_attempts_are_best_of_ns(tiny: LanguageModel, countdown: Countdown) -> None:
    """Sampled step by step, they are the answers that best-of-N samples at once, at the same price; completions go on
    from whole steps, and prefixes are not run again."""
    problems, run, limit = countdown.problems("train", 5), Run(3, 1, "supervise"), 60
    exact = Exact(countdown)
    sampled, labels, cost = label_steps(
        problems, countdown, TextSampler(tiny), exact, run, attempts=4, rollouts=3, sampling=SAMPLING,
        max_new_tokens=limit, estimate="soft",
    )  # fmt: skip
    found, _ = BestOfN(4, SAMPLING, limit).search(problems, countdown, TextSampler(tiny), exact, run)
    attempts = [one for one in sampled if one.step == 0]
    expected = [attempt for row in found for attempt in row]
    for name in ("output", "stop_reason", "status", "reward", "tokens"):
        assert [getattr(one, name) for one in attempts] == [getattr(one, name) for one in expected], name
    assert [one.flops_policy for one in attempts] == pytest.approx([one.flops_policy for one in expected])
    rows = {one.rollout_id: one for one in sampled}
    completions = [one for one in sampled if one.step > 0]
    assert len(completions) > 10, "the model ends some steps"
    for one in completions:
        parent = rows[str(one.parent_id)]
        assert countdown.steps(one.output)[: one.step] == countdown.steps(parent.output)[: one.step]
        assert one.tokens < limit
    assert cost.policy == pytest.approx(sum(one.flops_policy for one in sampled))
    assert cost.tokens == sum(one.tokens for one in sampled)
    assert {len(label.steps) for label in labels} - {0}
