"""What every searcher does at the start and at the end of a batch unit: ask the questions, write down the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from flywheel.compute import Cost
from flywheel.records import Attempt, Problem, StopReason, attempt_ids
from flywheel.rewards.reward import Answer, Judgement, Reward
from flywheel.search.protocols import Run, Sampler, Sampling, Searcher, Segment, Session, Text
from flywheel.seeds import numbered_streams, stream


@dataclass(frozen=True, slots=True)
class Asked:
    """A problem as the model is asked it."""

    problem: Problem
    prompt: str
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where an answer ends: a node, and what the attempt is told beside it."""

    node: int
    stop_reason: StopReason
    flops: float
    """The attempt's share of the search: its own samples, or an equal part of a search that its problem's attempts
    came out of together, discarded branches included."""
    flops_reward: float = 0.0
    """Likewise, of scoring steps on the way; judging the whole answer comes on top."""


class Encoder(Protocol):
    """How questions become token ids: a sampler's part in it."""

    def encode_prompt(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> tuple[str, list[int]]: ...


def ask(problem: Problem, text: Text, encoder: Encoder) -> Asked:
    """A problem in the words of the domain, or by the model's own chat template."""
    messages = text.messages(problem)
    if messages is not None:
        prompt, ids = encoder.encode_chat(messages)
    else:
        prompt = text.prompt(problem)
        ids = encoder.encode_prompt(prompt)
    return Asked(problem, prompt, tuple(ids))


def open_session(asked: Sequence[Asked], text: Text, sampler: Sampler) -> Session:
    """A session in which prompt number i is the i-th problem's."""
    return sampler.open([one.prompt_ids for one in asked], [one.prompt for one in asked], text.step_end)


def key(run: Run, problem: Problem, *names: int | str) -> int:
    """The noise key of one sample: a function of run, generation, purpose, problem and the names of its place."""
    return stream(run.seed, run.generation, run.purpose, problem.problem_id, *names)


def keys(run: Run, problem: Problem, numbers: Iterable[int]) -> list[int]:
    """`key(run, problem, number)` for each number."""
    return numbered_streams(run.seed, run.generation, run.purpose, problem.problem_id, numbers=numbers)


def check_draws(samples: int, sampling: Sampling) -> None:
    """Greedy decoding gives one answer, however often it is asked."""
    if sampling.temperature is None and samples != 1:
        raise ValueError(f"greedy decoding gives one answer, got samples={samples}")


def sampling_params(sampling: Sampling, max_new_tokens: int) -> dict[str, Any]:
    """What shapes a sample, for an attempt's id and row."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_new_tokens": max_new_tokens,
    }


Content = tuple[int, ...] | str


def content(session: Session, node: int) -> Content:
    """What an answer so far says: its token ids, or its text where a server gives no ids. Two nodes of one problem that
    say the same are one prefix; the end token is among the ids, so an answer that ended is none that did not."""
    return session.token_ids(node) or session.text(node)


def stop_reason(segment: Segment) -> StopReason:
    """A segment's end as an answer's; an answer that stops with a step was cut off."""
    return "length" if segment.stop_reason == "step" else segment.stop_reason


def attempts(
    searcher: Searcher,
    asked: Asked,
    leaves: Sequence[Leaf],
    judgements: Sequence[Judgement],
    session: Session,
    text: Text,
    sampler: Sampler,
    reward: Reward,
    run: Run,
) -> list[Attempt]:
    """One problem's attempts, judged, in the order of `leaves`."""
    problem, params = asked.problem, searcher.params()
    if searcher.needs_steps or searcher.needs_decision or searcher.judges_alone:
        # The reward steered the search, and so shaped what it found.
        params = {**params, "reward": reward.name}
    names = attempt_ids(
        problem.problem_id, run.generation, sampler.snapshot, searcher.name, params, run.seed, len(leaves)
    )
    made = []
    for index, (name, leaf, judgement) in enumerate(zip(names, leaves, judgements, strict=True)):
        output, token_ids = session.text(leaf.node), session.token_ids(leaf.node)
        log_probabilities = session.log_probabilities(leaf.node)
        made.append(
            Attempt(
                attempt_id=name,
                problem_id=problem.problem_id,
                generation=run.generation,
                teacher=sampler.snapshot,
                searcher=searcher.name,
                search_params=params,
                seed=run.seed,
                index=index,
                prompt=asked.prompt,
                prompt_ids=asked.prompt_ids,
                output=output,
                token_ids=token_ids,
                tokenizer=sampler.tokenizer_id,
                steps=tuple(text.steps(output)),
                stop_reason=leaf.stop_reason,
                status=judgement.status,
                answer=judgement.answer,
                reward=judgement.reward,
                reward_source=reward.name,
                step_rewards=judgement.step_rewards,
                flops_policy=leaf.flops,
                flops_reward=leaf.flops_reward + judgement.flops,
                tokens=session.tokens(leaf.node),
                log_probability=sum(log_probabilities) if log_probabilities else None,
            )
        )
    return made


def judge(
    reward: Reward,
    found: Sequence[tuple[Asked, Sequence[Leaf]]],
    session: Session,
    text: Text,
    should_stop: Callable[[], None],
) -> list[list[Judgement]]:
    """What the reward says of the answers of some problems, as one batch."""
    groups = []
    for asked, leaves in found:
        answers = []
        for leaf in leaves:
            output = session.text(leaf.node)
            answers.append(Answer(output, leaf.stop_reason, tuple(text.steps(output))))
        groups.append((asked.problem, answers))
    return reward.judge(groups, should_stop)


def total(session: Session, found: Sequence[Sequence[Attempt]]) -> Cost:
    """The unit's cost: the session's work, and what the reward took."""
    cost = session.cost()
    return replace(cost, reward=cost.reward + sum(attempt.flops_reward for row in found for attempt in row))
