"""Segments on their way to a server, and the requests that ask for several of them at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flywheel.models.protocols import Extension, SegmentStop
from flywheel.models.server_client import Client, Post
from flywheel.models.server_requests import PATHS, Features, Limits, Question, request_body
from flywheel.records import digest

_SEED_BITS = 31
"""Of the key that a seed is: a number that every server takes."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of a server, for one model."""

    client: Client
    model: str
    revision: str | None
    features: Features
    flops_a_token: float
    """0 where the model's size is not known."""

    def address(self, question: Question, limits: Limits) -> dict[str, Any]:
        """All that shapes an answer but its place among those to the same request."""
        return {
            "format": 1,
            "address": self.client.address,
            "model": self.model,
            "revision": self.revision,
            "endpoint": question.kind,
            "dialect": [self.features.native, list(self.features.neutral), self.features.stops],
            "prompt": question.text,
            "prefix": question.prefix,
            "temperature": limits.sampling.temperature,
            "top_p": limits.sampling.top_p,
            "top_k": limits.sampling.top_k,
            "max_tokens": limits.max_tokens,
            "stop": limits.stop,
        }


@dataclass(frozen=True, slots=True)
class Node:
    prompt: int
    text: str
    tokens: int
    log_probabilities: tuple[float, ...]
    known: bool
    """Whether the log-probability of every token of the answer so far is known."""


@dataclass(slots=True)
class Growing:
    """A segment on its way. A step that comes out blank is gone on with, so that it may take several requests."""

    request: Extension
    start: Node
    text: str = ""
    tokens: int = 0
    log_probabilities: tuple[float, ...] = ()
    known: bool = True
    pieces: int = 0
    stop: SegmentStop | None = None

    @property
    def key(self) -> int:
        """The noise key of the next request for it."""
        if self.request.sampling.temperature is None:
            return 0  # The likeliest answer is the same for every key.
        return self.request.key if not self.pieces else int(digest("piece", self.request.key, self.pieces)[:16], 16)


@dataclass(slots=True)
class Call:
    """One request for the answers of some growing segments, alike in all but their keys."""

    endpoint: Endpoint
    question: Question
    limits: Limits
    group: list[Growing]
    missing: list[int] = field(default_factory=list)
    """Places in the group that wait for an answer."""

    def address(self, place: int) -> dict[str, Any]:
        """All that shapes the answer at this place: the request's key and place, and the segment's own key."""
        return self.endpoint.address(self.question, self.limits) | {
            "seed": f"{self.group[0].key:016x}",
            "key": f"{self.group[place].key:016x}",
            "index": place,
        }

    def post(self) -> Post:
        seed = self.group[self.missing[0]].key % 2**_SEED_BITS
        body = request_body(self.endpoint.model, self.endpoint.features, self.question, self.limits, seed, self.wanted)
        return Post(PATHS[self.question.kind], body)

    @property
    def wanted(self) -> int:
        """Answers to ask for: one for each place, but the likeliest answer is the same for all."""
        return 1 if self.limits.sampling.temperature is None else len(self.missing)
