"""The nouns that stages pass on: problems, attempts, labels, and the digests that name them.

Rows carry no clock times and no machine facts: the same inputs give the same bytes. Those facts belong to the ledger
and to MLflow. The columns of each table are in `storage.schemas`; a record here holds what its table row holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "valid", "test"]
StopReason = Literal["eos", "length", "finished", "failed"]
"""`eos`: the model ended its answer; `length`: the token limit cut it; `finished`: a solver or engine, no tokens;
`failed`: a server gave no answer."""

Estimate = Literal["hard", "soft", "outcome"]
"""How step labels are made; see `flywheel.search.rollouts`."""
Status = Literal["judged", "truncated", "malformed", "timeout", "failed"]
"""`judged`: the reward saw a well-formed answer; `truncated`, `malformed`: there was none, reward 0; `timeout`: the
judge did not finish, reward null, to be tried again; `failed`: the judge crashed or answered nonsense (or there was
nothing to judge), reward null."""


# Made once: a search writes several texts an answer.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return _ENCODER.encode(value)


def digest(*parts: Any) -> str:
    """128-bit digest of the parts, 32 lower-case hex digits. Parts are JSON values; their order and types matter."""
    return hashlib.blake2b(canonical_json(list(parts)).encode(), digest_size=16).hexdigest()


def numbered_digests(first: Any, *parts: Any, numbers: Iterable[int]) -> list[str]:
    """`digest(first, *parts, number)` for each number; the parts are read once."""
    begun = hashlib.blake2b(canonical_json([first, *parts])[:-1].encode(), digest_size=16)
    found = []
    for number in numbers:
        one = begun.copy()
        one.update(f",{number}]".encode())
        found.append(one.hexdigest())
    return found


@dataclass(frozen=True, slots=True)
class Problem:
    """Something to solve. `group` is what intervals cluster by (Countdown: the hand)."""

    problem_id: str
    domain: str
    domain_version: int
    split: Split
    difficulty: float
    group: str
    payload: dict[str, Any]
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One searched answer. FLOPs are this attempt's own; a prefill shared by a problem's attempts is a ledger row."""

    attempt_id: str
    problem_id: str
    generation: int
    teacher: str
    searcher: str
    search_params: dict[str, Any]
    seed: int
    index: int
    prompt: str
    prompt_ids: tuple[int, ...]
    output: str
    token_ids: tuple[int, ...]
    """The sampled tokens, the end token included where there was one."""
    tokenizer: str
    """Digest of the tokenizer that the ids belong to."""
    steps: tuple[str, ...]
    stop_reason: StopReason
    status: Status
    answer: str | None
    """Canonical form of the answer, the key of votes and of dedupe; None where there is none to be had."""
    reward: float | None
    reward_source: str
    step_rewards: tuple[float, ...]
    flops_policy: float
    flops_reward: float
    tokens: int
    log_probability: float | None = None
    """Of the output under the distribution it was sampled from, in nats; None where there is no such thing."""


def attempt_ids(
    problem_id: str, generation: int, teacher: str, searcher: str, search_params: dict[str, Any], seed: int, count: int
) -> list[str]:
    """Names a problem's attempts, numbered from 0, by everything that shaped each."""
    return numbered_digests(
        "attempt", problem_id, generation, teacher, searcher, search_params, seed, numbers=range(count)
    )


@dataclass(frozen=True, slots=True)
class Label:
    """Something to train on: prompt and completion with the very token ids they were sampled as."""

    label_id: str
    content_id: str
    kind: Literal["policy", "process", "preference", "seed"]
    problem_id: str
    generation: int
    teacher: str
    searcher: str
    reward: float
    reward_source: str
    weight: float
    prompt: str
    completion: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    tokenizer: str
    parents: tuple[tuple[str, str], ...] = field(default=())
    """(parent id, role) pairs; the `label_parents` table."""


def content_id(problem_id: str, answer: str) -> str:
    """Names what a label teaches: the problem and the canonical answer; the key of dedupe and of diffs."""
    return digest("content", problem_id, answer)


def label_id(parents: list[str], part: str, params: dict[str, Any], content: str) -> str:
    """Names a label by its sorted parents, the part of them it is, how it was made, and its content id."""
    return digest("label", sorted(parents), part, params, content)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer sampled to learn how good the steps of an attempt are: the attempt itself, or a completion of it."""

    rollout_id: str
    problem_id: str
    generation: int
    policy: str
    """The model that sampled it."""
    seed: int
    attempt: int
    """Number of the problem's attempt."""
    step: int
    """0: the attempt, from the prompt; k: a completion from the end of its k-th step."""
    index: int
    """Number of the completion."""
    parent_id: str | None
    """The attempt that it completes."""
    prefix: str
    """Digest of the problem and the steps that it goes on from."""
    output: str
    """The whole answer, the prefix included."""
    stop_reason: StopReason
    status: Status
    answer: str | None
    reward: float | None
    flops_policy: float
    """Forward work of what was sampled, the prefix left out; likewise `tokens`."""
    tokens: int


@dataclass(frozen=True, slots=True)
class StepLabel:
    """An attempt's steps with the estimated chance that the answer comes right from each of them."""

    step_label_id: str
    problem_id: str
    generation: int
    policy: str
    prompt: str
    steps: tuple[str, ...]
    scores: tuple[float, ...]
    """Of each step, in 0..1."""
    right: tuple[int, ...]
    """Completions from the step's end that came right; of a finished answer's last step, and of every step with the
    estimate `outcome`, 1 if the answer is right."""
    judged: tuple[int, ...]
    """Completions that got a verdict; there 1, the answer itself."""
    rollouts: int
    """Completions asked for; 0 where the answer itself is all that is heard (estimate `outcome`)."""
    estimate: Estimate
    tokenizer: str
    parents: tuple[tuple[str, str], ...] = field(default=())
    """(rollout id, role) pairs, roles `attempt` and `rollout`; the `step_label_parents` table."""


def rollout_id(
    problem_id: str, generation: int, policy: str, settings: dict[str, Any], seed: int, attempt: int, step: int,
    index: int,
) -> str:  # fmt: skip
    """Names a rollout by everything that shaped it."""
    return digest("rollout", problem_id, generation, policy, settings, seed, attempt, step, index)


def step_label_id(parents: list[str], steps: list[str], estimate: str) -> str:
    """Names a step label by its sorted parents, the steps it labels and how the scores were estimated."""
    return digest("step label", sorted(parents), steps, estimate)
