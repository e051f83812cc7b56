"""Prompts being continued by one model, in this process: the tree of their answers, and the account of its cost.

Every request is one row; what rows share, prompts and the answers they go on from, is computed once. Which rows are in
flight together, and in what order they come and go, is a function of the requests alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flywheel.compute import Cost, DecoderShape
from flywheel.models.decoding import Decoder
from flywheel.models.flight import EOS, STOPS, Flight
from flywheel.models.language import LanguageModel
from flywheel.models.protocols import Extension, Segment
from flywheel.models.steps import StepEnds
from flywheel.models.trie import Node, no_slots


class TextSession:
    """A session on one language model; see `flywheel.models.protocols.Session`.

    If `should_stop` raises, the call's answers are lost and its work counts as padding; what earlier calls returned
    stays, and the session can be used on.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        shape: DecoderShape,
        decoder: Decoder,
        step_ends: Callable[[], StepEnds],
        prompts: Sequence[Sequence[int]],
    ) -> None:
        self._language_model = language_model
        self._shape = shape
        self._decoder = decoder
        self._step_ends = step_ends
        self._lengths = [len(prompt) for prompt in prompts]
        vocabulary = language_model.model.get_output_embeddings().weight.shape[0]
        self._is_end = np.zeros(vocabulary, dtype=bool)
        self._is_end[[end for end in language_model.end_ids if end < vocabulary]] = True
        self._nodes: list[Node] = []
        self._kept: dict[int, list[Node]] = {}
        """By prompt, those nodes that may be gone on from."""
        self._released: set[int] = set()
        self._texts: dict[tuple[int, ...], str] = {}
        """By token ids: samples of one problem are often alike."""
        self._policy = 0.0
        self._tokens = 0

    def extend(self, requests: Sequence[Extension], should_stop: Callable[[], None]) -> list[Segment]:
        """Go on from each request's node, all as one batch; answers in the order of the requests. Raises ValueError
        for a request that cannot be."""
        import torch

        for request in requests:
            self._check(request)
        if not requests:
            return []
        # Siblings stand together, and rows of one prompt.
        order = sorted(
            range(len(requests)),
            key=lambda number: (requests[number].prompt, _or_first(requests[number].parent), number),
        )
        asked = [requests[number] for number in order]
        with torch.inference_mode():
            drawn = self._draw(asked, should_stop)
        segments: list[Segment | None] = [None] * len(requests)
        for number, segment in zip(order, self._grow(asked, drawn), strict=True):
            segments[number] = segment
        return [segment for segment in segments if segment is not None]

    def _check(self, request: Extension) -> None:
        if not 0 <= request.prompt < len(self._lengths):
            raise ValueError(f"got prompt {request.prompt}; expected 0 to {len(self._lengths) - 1}")
        if request.prompt in self._released:
            raise ValueError(f"prompt {request.prompt} was released; nothing can go on from it any more")
        if request.max_new_tokens < 1:
            raise ValueError(f"got max_new_tokens={request.max_new_tokens}; expected 1 or more")
        if request.parent is None:
            return
        if not 0 <= request.parent < len(self._nodes):
            raise ValueError(f"got parent {request.parent}; expected a node that this session made, or None")
        node = self._nodes[request.parent]
        if node.prompt != request.prompt:
            raise ValueError(f"node {request.parent} belongs to prompt {node.prompt}, the request to {request.prompt}")
        if node.ended:
            raise ValueError(f"node {request.parent} ended with an end token; nothing comes after it")

    def _draw(self, asked: Sequence[Extension], should_stop: Callable[[], None]) -> Flight:
        """Draw every request's tokens."""
        parents = [None if request.parent is None else self._nodes[request.parent] for request in asked]
        step_ends = self._step_ends() if any(request.one_step for request in asked) else None
        if step_ends is not None:
            for parent in {parent for parent in parents if parent is not None and parent.blank is None}:
                parent.blank = step_ends.blank(list(parent.answer()))
        flight = Flight(asked, parents, step_ends, self._is_end)
        flight.run(self._decoder, should_stop)
        return flight

    def _grow(self, asked: Sequence[Extension], drawn: Flight) -> list[Segment]:
        """Nodes for what was drawn, and their segments."""
        segments = []
        there = np.arange(drawn.tokens.shape[1]) < drawn.counts[:, None]
        sums = np.where(there, drawn.log_probabilities, 0.0).sum(axis=1, dtype=np.float64)
        lines = zip(
            asked,
            drawn.tokens,
            drawn.log_probabilities,
            drawn.counts.tolist(),
            drawn.stops.tolist(),
            drawn.shares.tolist(),
            drawn.blank.tolist(),
            drawn.slots,
            sums.tolist(),
            strict=True,
        )
        for request, tokens, log_probabilities, count, stop, share, blank, slots, total in lines:
            node = Node(
                prompt=request.prompt,
                parent=None if request.parent is None else self._nodes[request.parent],
                token_ids=tuple(tokens[:count].tolist()),
                log_probabilities=tuple(log_probabilities[:count].tolist()),
                ended=stop == EOS,
                blank=blank if request.one_step else None,
                slots=slots,
            )
            # The last token is drawn but not fed; if it ever is, those that go on from it bear that.
            end = self._lengths[request.prompt] + node.depth - 1
            flops = share + self._shape.forward_sequence(end, start=end - count + 1)
            segments.append(Segment(len(self._nodes), STOPS[stop], count, total, flops))
            self._nodes.append(node)
            if not node.ended:
                self._kept.setdefault(node.prompt, []).append(node)
            self._policy += flops
            self._tokens += count
        return segments

    def text(self, node: int) -> str:
        """The whole answer from the prompt's end to the node, without the end token."""
        found = self._nodes[node]
        if found.text is None:
            ids = tuple(found.answer())
            found.text = self._texts.get(ids)
            if found.text is None:
                found.text = self._texts[ids] = self._language_model.decode(ids)
        return found.text

    def token_ids(self, node: int) -> tuple[int, ...]:
        """The whole answer's token ids, the end token included."""
        return tuple(self._nodes[node].answer())

    def tokens(self, node: int) -> int:
        """How many the whole answer has, the end token included."""
        return self._nodes[node].depth

    def log_probabilities(self, node: int) -> tuple[float, ...]:
        """Of each token of the whole answer, in nats."""
        return tuple(value for one in self._nodes[node].path() for value in one.log_probabilities)

    def prompt_flops(self, prompt: int) -> float:
        """FLOPs of running a prompt once, with logits after its last token alone."""
        return self._shape.forward_sequence(self._lengths[prompt], logits=1)

    def release(self, prompt: int) -> None:
        """Forget keys and values of this prompt's nodes; texts stay. Releasing twice is no error."""
        self._released.add(prompt)
        for node in self._kept.pop(prompt, []):
            self._decoder.forget(node.slots)
            node.slots = no_slots()

    def cost(self) -> Cost:
        """All work so far; `policy` is the sum of the segments' FLOPs."""
        padding = self._decoder.executed - self._decoder.prefill - self._policy
        return Cost(policy=self._policy, prefill=self._decoder.prefill, padding=max(0.0, padding), tokens=self._tokens)


def _or_first(parent: int | None) -> int:
    return -1 if parent is None else parent
