"""Finding out what a server can do, by a few short requests at the start: nothing is taken for granted by its name.

A field that a server refuses is left out; one that it takes is tried for its effect where there is one to be seen,
since servers also take fields that they ignore.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from flywheel.errors import ModelError
from flywheel.models.protocols import Sampling
from flywheel.models.server_client import Client, Post, Reply
from flywheel.models.server_requests import (
    NEUTRAL,
    PATHS,
    Choice,
    Features,
    Kind,
    Limits,
    Question,
    read_choices,
    request_body,
    unusable,
)
from flywheel.records import canonical_json

_TEXT = "1 + 2 = 3\n3 + 4 ="
_TOKENS = 24
_HOT = 2.0
_SEEDS = (11, 22)
_GREEDY = Limits(Sampling(None), _TOKENS, None)


@dataclass(frozen=True, slots=True)
class Found:
    """What was found out about an endpoint."""

    features: Features | None
    """None where it is not offered for this model."""
    notes: tuple[str, ...] = ()
    """What is missing and what that means, a line each."""
    refusal: str = ""
    """What the server said, where it is not offered."""


@dataclass(frozen=True, slots=True)
class _Trial:
    features: Features
    limits: Limits
    seed: int | None = None
    count: int = 1
    prefix: str = ""
    extra: tuple[tuple[str, Any], ...] = ()


def find(client: Client, model: str, kind: Kind) -> Found:
    """Try one endpoint. Raises ModelError where the server cannot be reached or wants a key."""
    bare = Features(kind, continues=kind == "completions")
    reply = _try(client, model, [_Trial(bare, _GREEDY)], must=True)[0]
    if reply.status in {401, 403}:
        raise ModelError(
            f"the server at {client.address} refuses the key ({reply.problem}); set OPENAI_API_KEY in the environment"
        )
    if reply.body is None:
        return Found(None, refusal=reply.problem)
    greedy = read_choices(reply.body, 1)[0]
    features = _accepted(client, model, bare)
    features, alive = _drawn(client, model, features, greedy)
    features = replace(features, stops=_stops(client, model, features, greedy, reply.body["choices"][0]))
    if kind == "chat":
        features = replace(features, continues=_continues(client, model, features))
    return Found(features, tuple(_notes(features, alive, greedy)))


def _accepted(client: Client, model: str, bare: Features) -> Features:
    """Which optional fields the endpoint takes, and answers to."""
    short = Limits(Sampling(1.0), 1, None)
    trials = {
        "n": _Trial(bare, short, count=2),
        "logprobs": _Trial(replace(bare, log_probabilities=True), short),
        "seed": _Trial(replace(bare, seed=True), short, seed=1),
        **{name: _Trial(replace(bare, neutral=(name,)), short) for name in NEUTRAL},
    }
    replies = dict(zip(trials, _try(client, model, list(trials.values())), strict=True))
    read = {name: read_choices(reply.body, 2) if reply.body is not None else [] for name, reply in replies.items()}
    return replace(
        bare,
        many=len(read["n"]) == 2,
        log_probabilities=bool(read["logprobs"] and read["logprobs"][0].log_probabilities),
        seed=bool(read["seed"]),
        neutral=tuple(name for name in NEUTRAL if read[name]),
    )


def _drawn(client: Client, model: str, features: Features, greedy: Choice) -> tuple[Features, bool]:
    """Whether answers are drawn at all, by the seed, from the likeliest k, and n of them apart; and by which dialect.
    The second value says whether temperature had an effect."""
    plain, alive = _draws(client, model, features, greedy, "top_k" in features.neutral)
    if alive and plain.top_k:
        return plain, True
    # transformers serve samples only where the model's own settings say so, or the request's.
    native, native_alive = _draws(client, model, replace(features, native=True), greedy, True)
    if native_alive and native.top_k:
        return native, True
    return plain, alive


def _draws(client: Client, model: str, features: Features, greedy: Choice, with_top_k: bool) -> tuple[Features, bool]:
    hot, narrow = Limits(Sampling(_HOT), _TOKENS, None), Limits(Sampling(_HOT, top_k=1), _TOKENS, None)
    one, two = _SEEDS
    # All at once, as answers will be asked for: a seed that others' requests disturb is none.
    trials = [_Trial(features, hot, seed=seed) for seed in (one, two, one, two)]
    trials += [_Trial(features, narrow, seed=seed) for seed in _SEEDS] if with_top_k else []
    trials += [_Trial(features, hot, seed=one, count=2)] if features.many else []
    read = [read_choices(reply.body, 2) if reply.body is not None else [] for reply in _try(client, model, trials)]
    if not all(read[:4]):
        return replace(features, native=False), False
    first, second, third, fourth = (choices[0].text for choices in read[:4])
    alive = len({first, second, third, fourth}) > 1
    likeliest = [choices[0].text for choices in read[4:6] if choices] if with_top_k else []
    start = greedy.text[: max(1, len(greedy.text) // 3)]
    apart = features.many and len({choice.text for choice in read[-1]}) == 2
    found = replace(
        features,
        seed_honoured=features.seed and first == third and second == fourth and first != second,
        top_k=alive and len(likeliest) == 2 and all(text.startswith(start) for text in likeliest),
        many=apart or (features.many and not alive and len(read[-1]) == 2),
    )
    return found, alive


def _stops(
    client: Client, model: str, features: Features, greedy: Choice, choice: dict[str, Any]
) -> Literal["told", "kept", "unsaid"]:
    """How a stop string shows. Tried on a letter from the midst of the greedy answer."""
    if "stop_reason" in choice or "matched_stop" in choice:
        return "told"
    letter = greedy.text.strip()[len(greedy.text.strip()) // 2 :][:1]
    if not letter:
        return "unsaid"
    reply = _try(client, model, [_Trial(replace(features, stops="kept"), replace(_GREEDY, stop=letter))])[0]
    stopped = read_choices(reply.body, 1)[0].text if reply.body is not None else ""
    return "kept" if letter in stopped else "unsaid"


def _continues(client: Client, model: str, features: Features) -> bool:
    """Whether chat goes on from a partial answer: then the prompt lacks the marks that end a message and begin the
    next, and so counts fewer tokens than the same messages sent as complete."""
    whole = (("continue_final_message", False), ("add_generation_prompt", True))
    trials = [_Trial(features, _GREEDY, prefix="3 +"), _Trial(features, _GREEDY, prefix="3 +", extra=whole)]
    replies = _try(client, model, trials)
    if any(reply.body is None for reply in replies):
        return False
    partial, complete = (read_choices(reply.body or {}, 1)[0].prompt_tokens for reply in replies)
    return 0 < partial < complete


def _try(client: Client, model: str, trials: Sequence[_Trial], must: bool = False) -> list[Reply]:
    """Replies in the order of the trials. A refusal is an answer here, and so is HTTP 500 where not `must`: some break
    on fields that they cannot serve. Raises ModelError where there is no answer at all."""
    posts = []
    for trial in trials:
        kind = trial.features.kind
        text = _TEXT if kind == "completions" else canonical_json([{"role": "user", "content": _TEXT}])
        question = Question(kind, text, trial.prefix)
        body = request_body(model, trial.features, question, trial.limits, trial.seed, trial.count)
        posts.append(Post(PATHS[kind], body | dict(trial.extra), is_trial=not must))
    replies: dict[int, Reply] = {}
    client.post_all(posts, unusable, replies.__setitem__, lambda: None)
    for reply in replies.values():
        if reply.body is None and not reply.refused and (must or reply.status != 500):
            raise ModelError(
                f"the server at {client.address} gave no usable answer to a first short request: {reply.problem}; "
                "see whether it is well, and whether the address is right"
            )
    return [replies[number] for number in range(len(posts))]


def _notes(features: Features, alive: bool, greedy: Choice) -> list[str]:
    lines = []
    if not alive:
        lines.append("temperature made no difference to the first answers: samples of a problem may all be equal")
    if features.native:
        lines.append("sampling is asked for by generation_config, transformers' own, since the plain fields do not do")
    if not features.many:
        lines.append("it does not give several different answers to one request: each sample is a request of its own")
    if not features.log_probabilities:
        lines.append("it gives no log-probabilities: attempts have none")
    if not features.seed_honoured:
        lines.append("it does not keep to a seed: asked again it answers otherwise; answers kept on disk stay the same")
    if not features.top_k and not features.native:
        lines.append("it does not draw from the likeliest k tokens: generate.top_k cannot be set")
    if not greedy.tokens_said:
        lines.append("it does not count tokens: they are estimated at four characters each")
    if features.stops == "unsaid":
        lines.append(
            "it does not say whether an answer or only its step ended: searches by steps ask for whole answers and cut"
        )
    if not features.continues:
        lines.append("it cannot go on from a partial chat answer: searches by steps are refused")
    return lines
