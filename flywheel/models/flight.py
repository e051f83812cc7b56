"""One call of a session: rows take off, get a token a step, and land, until every request has been answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel.models.decoding import Decoder, Rows
from flywheel.models.drawing import draws_for
from flywheel.models.protocols import Extension, SegmentStop
from flywheel.models.steps import StepEnds
from flywheel.models.trie import Node, Slots, Start, no_slots

STOPS: tuple[SegmentStop, ...] = ("length", "step", "eos")
LENGTH, STEP, EOS = range(3)


class Flight:
    """The requests of a call, and what was drawn for them so far: a line a request in each array."""

    def __init__(
        self,
        asked: Sequence[Extension],
        parents: Sequence[Node | None],
        step_ends: StepEnds | None,
        is_end: npt.NDArray[np.bool_],
    ) -> None:
        """`parents` are the nodes that the requests go on from; `step_ends` is there if any ends with a step;
        `is_end` [vocabulary] says which tokens end an answer."""
        siblings = Counter((request.prompt, request.parent) for request in asked)
        self._starts = [
            Start(request.prompt, parent, siblings[request.prompt, request.parent])
            for request, parent in zip(asked, parents, strict=True)
        ]
        self._limits = np.array([request.max_new_tokens for request in asked], dtype=np.int64)
        self._depths = np.array([start.depth for start in self._starts], dtype=np.int64)
        self._one_step = np.array([request.one_step for request in asked], dtype=bool)
        self._draws = draws_for([request.sampling for request in asked], [request.key for request in asked])
        self._step_ends, self._is_end = step_ends, is_end
        count, longest = len(asked), int(self._limits.max())
        self.tokens = np.zeros((count, longest), dtype=np.int64)
        self.log_probabilities = np.zeros((count, longest), dtype=np.float32)
        self.counts = np.zeros(count, dtype=np.int64)
        """Tokens drawn."""
        self.stops = np.full(count, LENGTH, dtype=np.int64)
        """Places in STOPS."""
        self.blank = np.array([parent is None or bool(parent.blank) for parent in parents])
        """Whether the step is blank so far."""
        self.shares = np.zeros(count)
        """FLOPs of what a row set out from, its share of them."""
        self.slots: list[Slots] = [no_slots()] * count

    def run(self, decoder: Decoder, should_stop: Callable[[], None]) -> None:
        """Draw a token for each row, let those go that ended, feed the others. If `should_stop` raises, nothing that
        was drawn is kept."""
        import torch

        decoder.begin(self._starts, self._limits.tolist(), should_stop)
        waiting, rows = 0, np.empty(0, dtype=np.int64)  # the request of each row
        logits: Any = None
        try:
            while waiting < len(self._starts) or len(rows):
                should_stop()
                count = decoder.room(self._starts[waiting:]) if waiting < len(self._starts) else 0
                if count:
                    first, shares = decoder.admit(self._starts[waiting : waiting + count])
                    self.shares[waiting : waiting + count] = shares
                    logits = first if len(rows) == 0 else torch.cat([logits, first])
                    rows = np.concatenate([rows, np.arange(waiting, waiting + count)])
                    waiting += count
                chosen = self._draw(logits, rows)
                over = self._over(rows)
                if over.any():
                    former = self._land(decoder, rows, np.flatnonzero(over))
                    rows, chosen = rows[former], chosen[torch.from_numpy(former).to(chosen.device)]
                if len(rows):
                    logits = decoder.feed(chosen)
        except BaseException:
            for slots in self.slots:
                decoder.forget(slots)
            raise

    def _draw(self, logits: Any, rows: Rows) -> Any:
        """A token for each row, written down and returned."""
        counts = self.counts[rows]
        chosen, log_probabilities = self._draws.choose(logits, rows, self._depths[rows] + counts)
        self.tokens[rows, counts] = chosen.cpu().numpy()
        self.log_probabilities[rows, counts] = log_probabilities.cpu().numpy()
        self.counts[rows] = counts + 1
        return chosen

    def _over(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which rows end with the token just drawn, [rows]; writes down why: an end token, else a step, else length."""
        newest = self.tokens[rows, self.counts[rows] - 1]
        over = self.counts[rows] >= self._limits[rows]
        if self._step_ends is not None:
            which = np.flatnonzero(self._one_step[rows])
            requests = rows[which]
            blank = self.blank[requests]
            ended = self._step_ends.ends(newest[which], blank, lambda place: self._answer(int(requests[place])))
            self.blank[requests] = blank
            self.stops[requests[ended]] = STEP
            over[which[ended]] = True
        by_itself = self._is_end[newest]
        self.stops[rows[by_itself]] = EOS
        return over | by_itself

    def _answer(self, request: int) -> list[int]:
        """The whole answer so far."""
        parent = self._starts[request].parent
        own: list[int] = self.tokens[request, : self.counts[request]].tolist()
        return [*(parent.answer() if parent is not None else ()), *own]

    def _land(self, decoder: Decoder, rows: Rows, leaving: Rows) -> Rows:
        """Let rows go; returns for each that stays its former number."""
        gone = rows[leaving]
        # What ended by itself is not gone on from, and hardly ever an answer cut at its limit.
        wanted = self._one_step[gone] & (self.stops[gone] != EOS)
        slots, former = decoder.leave(leaving, np.where(wanted, self.counts[gone] - 1, 0))
        for request, where in zip(gone.tolist(), slots, strict=True):
            self.slots[request] = where
        return former
