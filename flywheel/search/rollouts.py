"""Step labels by rollouts: how often an answer comes right when the model goes on from each of its steps.

The model samples attempts, each is cut into steps, and from the end of each step some completions are sampled and
judged by the domain's exact checker. Hard estimate: 1 where any completion is right (Wang et al. 2023,
*Math-Shepherd*, section 3.3); soft: the share that is (Luo et al. 2024, *OmegaPRM*). The last step of a finished
answer has the answer's own verdict. A step that the token limit cut is no step; completions without a verdict (a
checker that timed out) count on neither side. Outcome: no completions, each step has the answer's own verdict, as an
outcome model learns it (Cobbe et al. 2021, *Training verifiers*, section 4.2).

    prompt ──> step 1 ──> step 2 ──> step 3 (eos): right          score of step 3: 1
                  ├─> ...    ├─> ... right                         score of step 2: share of its completions
                  └─> ...    └─> ... wrong                         score of step 1: share of its completions

An attempt draws the same noise as best-of-N's attempt of that number; each completion has noise of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flywheel.compute import Cost
from flywheel.records import Estimate, Problem, Rollout, StepLabel, StopReason, digest, rollout_id, step_label_id
from flywheel.rewards.reward import Judgement, Reward
from flywheel.search import unit
from flywheel.search.protocols import Extension, Run, Sampler, Sampling, Segment, Session, Text, never_stop
from flywheel.search.unit import Asked, Leaf


@dataclass(slots=True)
class _Attempt:
    """An attempt as it grows, a segment a step."""

    prompt: int
    asked: Asked
    index: int
    segments: list[Segment] = field(default_factory=list)
    steps: tuple[str, ...] = ()
    """Steps that can be labelled."""
    ends: list[Segment] = field(default_factory=list)
    """Where completions go on: `ends[k]` is the end of step k + 1."""
    completions: list[list[Segment]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(segment.tokens for segment in self.segments)

    @property
    def last(self) -> Segment:
        return self.segments[-1]

    @property
    def stop_reason(self) -> StopReason:
        return unit.stop_reason(self.last)


def label_steps(
    problems: Sequence[Problem],
    text: Text,
    sampler: Sampler,
    exact: Reward,
    run: Run,
    *,
    attempts: int,
    rollouts: int,
    sampling: Sampling,
    max_new_tokens: int,
    estimate: Estimate,
    should_stop: Callable[[], None] = never_stop,
) -> tuple[list[Rollout], list[StepLabel], Cost]:
    """Label the steps of `attempts` answers a problem by `rollouts` completions from each step (0: by their own
    verdict, estimate `outcome`); one batch unit.

    `exact` compares whole final answers. Returns all that was sampled, in order of problem, attempt, step and index; a
    label for each attempt that has a step to label, in the same order; and the cost.
    """
    asked = [unit.ask(problem, text, sampler) for problem in problems]
    session = unit.open_session(asked, text, sampler)
    paths = [_Attempt(number, one, index) for number, one in enumerate(asked) for index in range(attempts)]
    _sample_attempts(paths, session, run, sampling, max_new_tokens, should_stop)
    for path in paths:
        _cut(path, session, text, max_new_tokens)
    _complete(paths, session, run, rollouts, sampling, max_new_tokens, should_stop)
    found = [(path.asked, _leaves(path)) for path in paths]
    settings = {
        "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k,
        "max_new_tokens": max_new_tokens,
    }  # fmt: skip
    sampled, labels, flops = [], [], 0.0
    for path, verdicts in zip(paths, unit.judge(exact, found, session, text, should_stop), strict=True):
        made = _rollouts(path, verdicts, session, sampler, run, settings)
        sampled += made
        flops += sum(verdict.flops for verdict in verdicts)
        label = _label(path, made, sampler, rollouts, estimate)
        labels += [label] if label is not None else []
    return sampled, labels, session.cost() + Cost(reward=flops)


def _sample_attempts(
    paths: list[_Attempt],
    session: Session,
    run: Run,
    sampling: Sampling,
    max_new_tokens: int,
    should_stop: Callable[[], None],
) -> None:
    """Step by step, so that there is a node at the end of each step."""
    growing = paths
    while growing:
        requests = [
            Extension(
                path.prompt,
                path.last.node if path.segments else None,
                unit.key(run, path.asked.problem, path.index),
                sampling,
                max_new_tokens - path.tokens,
                one_step=True,
            )
            for path in growing
        ]
        for path, segment in zip(growing, session.extend(requests, should_stop), strict=True):
            path.segments.append(segment)
        growing = [path for path in growing if path.last.stop_reason == "step" and path.tokens < max_new_tokens]


def _cut(path: _Attempt, session: Session, text: Text, max_new_tokens: int) -> None:
    """Find the steps of a whole attempt that can be labelled, and where they end."""
    whole = tuple(text.steps(session.text(path.last.node)))
    at: dict[int, Segment] = {}
    tokens = 0
    for segment in path.segments:
        tokens += segment.tokens
        steps = tuple(text.steps(session.text(segment.node)))
        # From an end that leaves no token to go on with nothing can be learned.
        if segment.stop_reason == "step" and tokens < max_new_tokens and steps == whole[: len(steps)]:
            at.setdefault(len(steps), segment)
    finished = path.stop_reason == "eos"
    sought = len(whole) - 1 if finished else len(whole)
    while len(path.ends) < sought and len(path.ends) + 1 in at:
        path.ends.append(at[len(path.ends) + 1])
    # The answer's own verdict is its last step's, if the steps before have theirs.
    labelled = len(whole) if finished and len(path.ends) == sought else len(path.ends)
    path.steps = whole[:labelled]


def _complete(
    paths: list[_Attempt],
    session: Session,
    run: Run,
    rollouts: int,
    sampling: Sampling,
    max_new_tokens: int,
    should_stop: Callable[[], None],
) -> None:
    """Sample the completions, all those from the ends of first steps as one batch, then of second steps, ..."""
    for depth in range(max((len(path.ends) for path in paths), default=0) if rollouts else 0):
        reached = [path for path in paths if len(path.ends) > depth]
        requests = []
        for path in reached:
            used = sum(segment.tokens for segment in path.segments[: path.segments.index(path.ends[depth]) + 1])
            requests += [
                Extension(
                    path.prompt,
                    path.ends[depth].node,
                    unit.key(run, path.asked.problem, path.index, "completion", depth + 1, index),
                    sampling,
                    max_new_tokens - used,
                )
                for index in range(rollouts)
            ]
        segments = session.extend(requests, should_stop)
        for position, path in enumerate(reached):
            path.completions.append(segments[position * rollouts : (position + 1) * rollouts])


def _leaves(path: _Attempt) -> list[Leaf]:
    """The attempt, then its completions in order of step and index."""
    attempt = Leaf(path.last.node, path.stop_reason, sum(segment.flops for segment in path.segments))
    completions = [segment for segments in path.completions for segment in segments]
    return [attempt, *(Leaf(one.node, unit.stop_reason(one), one.flops) for one in completions)]


def _rollouts(
    path: _Attempt,
    verdicts: Sequence[Judgement],
    session: Session,
    sampler: Sampler,
    run: Run,
    settings: dict[str, Any],
) -> list[Rollout]:
    """An attempt and its completions as records, in the order of `_leaves`."""
    problem = path.asked.problem
    places = [(0, 0, path.tokens)]
    places += [
        (step, index, segment.tokens)
        for step, segments in enumerate(path.completions, 1)
        for index, segment in enumerate(segments)
    ]
    made: list[Rollout] = []
    for (step, index, tokens), leaf, verdict in zip(places, _leaves(path), verdicts, strict=True):
        name = rollout_id(
            problem.problem_id, run.generation, sampler.snapshot, settings, run.seed, path.index, step, index
        )
        made.append(
            Rollout(
                rollout_id=name,
                problem_id=problem.problem_id,
                generation=run.generation,
                policy=sampler.snapshot,
                seed=run.seed,
                attempt=path.index,
                step=step,
                index=index,
                parent_id=made[0].rollout_id if made else None,
                prefix=digest("prefix", problem.problem_id, list(path.steps[:step])),
                output=session.text(leaf.node),
                stop_reason=leaf.stop_reason,
                status=verdict.status,
                answer=verdict.answer,
                reward=verdict.reward,
                flops_policy=leaf.flops,
                tokens=tokens,
            )
        )
    return made


def _label(
    path: _Attempt,
    made: list[Rollout],
    sampler: Sampler,
    rollouts: int,
    estimate: Estimate,
) -> StepLabel | None:
    """The attempt's step label; None where no step got a verdict."""
    attempt, parents = made[0], [(made[0].rollout_id, "attempt")]
    right: list[int] = []
    judged: list[int] = []
    for step in range(1, len(path.steps) + 1):
        own = step > len(path.ends) or estimate == "outcome"
        heard = [attempt] if own else [one for one in made if one.step == step]
        verdicts = [one.reward for one in heard if one.reward is not None]
        if not verdicts:
            break
        right.append(sum(reward == 1.0 for reward in verdicts))
        judged.append(len(verdicts))
        parents += [] if own else [(one.rollout_id, "rollout") for one in heard]
    if not right:
        return None
    steps = path.steps[: len(right)]
    scores = [float(count > 0) if estimate == "hard" else count / of for count, of in zip(right, judged, strict=True)]
    return StepLabel(
        step_label_id=step_label_id([name for name, _ in parents], list(steps), estimate),
        problem_id=attempt.problem_id,
        generation=attempt.generation,
        policy=attempt.policy,
        prompt=path.asked.prompt,
        steps=steps,
        scores=tuple(scores),
        right=tuple(right),
        judged=tuple(judged),
        rollouts=rollouts,
        estimate=estimate,
        tokenizer=sampler.tokenizer_id,
        parents=tuple(parents),
    )
