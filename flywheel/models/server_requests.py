"""How a request for answers is put to an endpoint of the OpenAI protocol, and how its answers are read.

The protocol leaves much open, and each server has its dialect; `Features` is what `server_features` found out about
one endpoint. Known dialects: vLLM (`stop_reason`), SGLang (`matched_stop`), transformers serve (`generation_config`,
and stop strings left in the text).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from flywheel.models.protocols import Sampling
from flywheel.records import canonical_json

Kind = Literal["completions", "chat"]
PATHS: dict[Kind, str] = {"completions": "/completions", "chat": "/chat/completions"}
NEUTRAL: dict[str, Any] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sent where a server takes them, because its own defaults may be others: vLLM reads them from the model's
generation_config.json, llama.cpp has top_k 40 and min_p 0.05."""
_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Features:
    """What one endpoint of a server can do."""

    kind: Kind
    many: bool = False
    """Several answers to one request (`n`), different from each other."""
    log_probabilities: bool = False
    seed: bool = False
    """It takes a seed."""
    seed_honoured: bool = False
    """Two requests with the same seed had the same answer, with another one another."""
    neutral: tuple[str, ...] = ()
    """Which of `NEUTRAL` it takes."""
    top_k: bool = False
    """It draws from the likeliest k tokens only."""
    native: bool = False
    """Sampling is told by transformers' own `generation_config`: `transformers serve` would be greedy otherwise."""
    stops: Literal["told", "kept", "unsaid"] = "unsaid"
    """How the end of a step is known from the end of an answer. told: the answer names the stop string; kept: the stop
    string is left in the text; unsaid: not at all, so that answers are asked for whole and cut at the step's end."""
    continues: bool = False
    """A partial answer can be gone on from."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt or chat messages, and the answer so far."""

    kind: Kind
    text: str
    """The prompt, or the messages as canonical JSON."""
    prefix: str = ""

    def fields(self) -> dict[str, Any]:
        if self.kind == "completions":
            return {"prompt": self.text + self.prefix}
        messages = json.loads(self.text)
        if not self.prefix:
            return {"messages": messages}
        return {
            "messages": [*messages, {"role": "assistant", "content": self.prefix}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        }


@dataclass(frozen=True, slots=True)
class Limits:
    """How the answers to one request are drawn."""

    sampling: Sampling
    max_tokens: int
    stop: str | None
    """The end of a step, where a request ends with it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer as the server gave it."""

    text: str
    finish: str
    """Its finish_reason; empty where it gave none."""
    tokens: int
    tokens_said: bool
    """Whether the server counted the tokens, or they are estimated from the text."""
    prompt_tokens: int
    matched: str | None = None
    """The stop string that ended it, where the server says."""
    pieces: tuple[str, ...] = ()
    """Its tokens as text, where log-probabilities came with them."""
    log_probabilities: tuple[float, ...] = ()
    """Of each token, in nats; empty where the server gave none."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Choice:
        fields = {**value, "pieces": tuple(value["pieces"]), "log_probabilities": tuple(value["log_probabilities"])}
        return cls(**fields)


def request_body(
    model: str, features: Features, question: Question, limits: Limits, seed: int | None, count: int
) -> dict[str, Any]:
    """The JSON of one request for `count` answers. Optional fields go along only where the endpoint takes them."""
    sampling, greedy = limits.sampling, limits.sampling.temperature is None
    temperature, top_p = (0.0, 1.0) if sampling.temperature is None else (sampling.temperature, sampling.top_p)
    top_k = None if greedy else sampling.top_k
    body: dict[str, Any] = {
        "model": model,
        **question.fields(),
        "max_tokens": limits.max_tokens,
        "temperature": temperature,
        "top_p": top_p,
    }
    if features.native:
        # It replaces the model's own settings, which leave sampling off and top_k at 50 unless told otherwise.
        native: dict[str, Any] = {"do_sample": not greedy, "max_new_tokens": limits.max_tokens}
        if not greedy:
            native |= {"temperature": temperature, "top_p": top_p, "top_k": top_k or 0}
        body["generation_config"] = canonical_json(native)
    else:
        body |= {name: NEUTRAL[name] for name in features.neutral}
        if top_k is not None:
            body["top_k"] = top_k
    if limits.stop is not None and features.stops != "unsaid":
        body["stop"] = [limits.stop]
    if features.seed and seed is not None:
        body["seed"] = seed
    if count > 1:
        body["n"] = count
    if features.log_probabilities:
        body["logprobs"] = 1 if features.kind == "completions" else True
    return body


def unusable(body: dict[str, Any]) -> str:
    """What is wrong with the body of an answer, so that it is asked for again; empty where it can be read."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        said = f": {canonical_json(body['error'])[:200]}" if body.get("error") else ""
        return f"an answer without choices{said}"
    for choice in choices:
        if not isinstance(choice, dict) or _text(choice) is None:
            return "a choice without text"
    return ""


def read_choices(body: dict[str, Any], most: int) -> list[Choice]:
    """Up to `most` answers of a body that is not `unusable`, in the order of their index.

    Where only the sum of their tokens is known it is shared out by length of text, so that the sum stays right.
    """
    choices = sorted(body["choices"], key=lambda choice: _whole(choice.get("index")) or 0)[:most]
    read = [_read(choice) for choice in choices]
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt_tokens, total = _whole(usage.get("prompt_tokens")) or 0, _whole(usage.get("completion_tokens"))
    if total is not None and (len(read) == 1 or not all(choice.tokens_said for choice in read)):
        shares = _share(total, [len(choice.text) for choice in read])
        read = [replace(choice, tokens=share, tokens_said=True) for choice, share in zip(read, shares, strict=True)]
    return [replace(choice, prompt_tokens=prompt_tokens) for choice in read]


def cut_at_step(choice: Choice, step_end: str, begun: str = "") -> tuple[Choice, bool]:
    """The answer up to the end of its first step, and whether it holds one. A step that is blank so far (with what was
    `begun` of it before) does not end. The tokens are those that reach into the step; where the server does not show
    them, the share of the text."""
    whole = begun + choice.text
    at = whole.find(step_end, max(0, len(begun) - len(step_end) + 1))
    while at >= 0 and not whole[:at].replace(step_end, "").strip():
        at = whole.find(step_end, at + len(step_end))
    if at < 0:
        return choice, False
    length = at + len(step_end) - len(begun)
    text = choice.text[:length]
    if "".join(choice.pieces) == choice.text:
        count, reached = 0, 0
        while reached < length:
            reached += len(choice.pieces[count])
            count += 1
        logs = choice.log_probabilities[:count]
        return replace(choice, text=text, tokens=count, pieces=choice.pieces[:count], log_probabilities=logs), True
    tokens = -(-choice.tokens * length // len(choice.text))
    return replace(choice, text=text, tokens=tokens, pieces=(), log_probabilities=()), True


def _read(choice: dict[str, Any]) -> Choice:
    text = _text(choice) or ""
    pieces, logs = _log_probabilities(choice.get("logprobs"))
    finish = choice.get("finish_reason")
    matched = choice.get("stop_reason", choice.get("matched_stop"))
    return Choice(
        text=text,
        finish=finish if isinstance(finish, str) else "",
        tokens=len(logs) if logs else math.ceil(len(text) / _CHARACTERS_A_TOKEN),
        tokens_said=bool(logs),
        prompt_tokens=0,
        matched=matched if isinstance(matched, str) else None,
        pieces=pieces,
        log_probabilities=logs,
    )


def _text(choice: dict[str, Any]) -> str | None:
    """The text of a choice of either endpoint; None where there is no such field."""
    if isinstance(choice.get("text"), str):
        return str(choice["text"])
    message = choice.get("message")
    if isinstance(message, dict) and "content" in message:
        # A reasoning model that used all its tokens on thoughts has the content null.
        return message["content"] if isinstance(message["content"], str) else ""
    return "" if isinstance(message, dict) else None


def _log_probabilities(said: Any) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Tokens and their log-probabilities in either endpoint's form; two empty tuples where there are none to use."""
    if not isinstance(said, dict):
        return (), ()
    content = said.get("content")
    if isinstance(content, list) and all(isinstance(entry, dict) for entry in content):
        pieces, logs = [entry.get("token") for entry in content], [entry.get("logprob") for entry in content]
    else:
        pieces, logs = said.get("tokens") or [], said.get("token_logprobs") or []
    usable = len(pieces) == len(logs) and all(isinstance(piece, str) for piece in pieces)
    if not usable or not all(isinstance(log, int | float) and math.isfinite(log) for log in logs):
        return (), ()
    return tuple(str(piece) for piece in pieces), tuple(float(log) for log in logs)


def _share(total: int, lengths: Sequence[int]) -> list[int]:
    """A whole number shared out in proportion to `lengths`, by largest remainder."""
    weights = [length + 1 for length in lengths]
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [math.floor(part) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda place: (shares[place] - exact[place], place))
    for place in by_remainder[: total - sum(shares)]:
        shares[place] += 1
    return shares


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
