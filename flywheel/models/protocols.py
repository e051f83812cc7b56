"""What a model is to those that search with it: sessions on prompts, continued node by node.

A searcher opens a session on the prompts of its batch unit and asks it, round after round, to go on from some nodes of
the prompts' trees; what several nodes have in common is computed once.

    prompt 0 ──┬── node 3  "8 * 3 = 24"  ──┬── node 7  "24 - 5 = 19" (eos)
               │                           └── node 8  "24 + 5 = 29" (eos)
               └── node 4  "3 + 5 = 8"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from flywheel.compute import Cost

SegmentStop = Literal["eos", "length", "step", "failed"]
"""Why a segment ended: the model ended its answer; the token limit cut it; a step was complete; a server gave up."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn."""

    temperature: float | None = 1.0
    """None takes the likeliest token (greedy)."""
    top_p: float = 1.0
    top_k: int | None = None


@dataclass(frozen=True, slots=True)
class Extension:
    """A request to go on from a node. The draw at the answer's token number p (from 0, whatever the segment) is a
    function of (key, p) alone."""

    prompt: int
    """Number of the prompt in the session."""
    parent: int | None
    """The node to go on from; None: the prompt itself."""
    key: int
    """64-bit key of the noise."""
    sampling: Sampling
    max_new_tokens: int
    """Tokens this segment may have."""
    one_step: bool = False
    """End with the step (at the session's `step_end`), not only with the answer."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What a session answers to an Extension: a new node."""

    node: int
    stop_reason: SegmentStop
    tokens: int
    """Tokens of this segment, the end token included."""
    log_probability: float | None
    """Sum over the segment's tokens under the distribution drawn from, nats; None where a server does not say."""
    flops: float
    """Forward work of this segment alone; prompts and padding are in the session's cost. NaN-free: a server whose
    model's size is not known counts 0 and says so once."""


class Session(Protocol):
    """Prompts being continued by one model. Nodes are numbered across all prompts."""

    def extend(self, requests: Sequence[Extension], should_stop: Callable[[], None]) -> list[Segment]:
        """Go on from each request's node, all as one batch; answers in the order of the requests. `should_stop` is
        called often and may raise."""

    def text(self, node: int) -> str:
        """The whole answer from the prompt's end to the node, without the end token."""

    def token_ids(self, node: int) -> tuple[int, ...]:
        """The whole answer's token ids, the end token included; empty where a server gives text only."""

    def tokens(self, node: int) -> int:
        """How many tokens the whole answer has, the end token included; known also where their ids are not."""

    def log_probabilities(self, node: int) -> tuple[float, ...]:
        """Of each token of the whole answer; empty where a server does not say."""

    def prompt_flops(self, prompt: int) -> float:
        """FLOPs of running a prompt once."""

    def release(self, prompt: int) -> None:
        """Forget what is kept to go on from the nodes of this prompt: its search is over. Texts stay."""

    def cost(self) -> Cost:
        """Policy, prefill, padding and tokens of all work so far."""


class Sampler(Protocol):
    """A model that continues prompts."""

    snapshot: str
    tokenizer_id: str

    def prompt_flops(self, tokens: int) -> float:
        """FLOPs of running a prompt of so many tokens once; 0 where a model's size is not known."""

    def encode_prompt(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> tuple[str, list[int]]:
        """Messages as the model's own chat template renders them, and their token ids. Raises ModelError where the
        tokenizer has no template."""

    def decode(self, ids: Iterable[int]) -> str: ...

    def open(self, prompts: Sequence[Sequence[int]], texts: Sequence[str], step_end: str) -> Session:
        """A session on prompts given as token ids and as text (a server takes the text). `step_end` is what ends a
        step; a step that is blank so far does not end."""
