"""Rows of answers that share their prompts, and what they go on from: the quick way of running a model.

Buffers are made once a call; rows that ended make room for others, which then end at the same column (drawing in
`flywheel.models.attention`). A node that is gone on from is completed first: its last token was drawn, but never fed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flywheel.compute import DecoderShape
from flywheel.models import llama
from flywheel.models.attention import InterfaceStep, Step, rows_innermost
from flywheel.models.decoding import MEMORY_BYTES, Rows, affordable
from flywheel.models.language import LanguageModel
from flywheel.models.pool import TokenPool
from flywheel.models.prompts import PromptStore, Seating
from flywheel.models.suffix import Memory, Suffix
from flywheel.models.trie import Node, Slots, Start, no_slots


class CascadeDecoder:
    """Rows that share their prompts' keys and values."""

    def __init__(
        self,
        language_model: LanguageModel,
        shape: DecoderShape,
        prompts: Sequence[Sequence[int]],
        memory: Memory,
        memory_bytes: int = MEMORY_BYTES,
        capacity: int | None = None,
    ) -> None:
        model = language_model.model
        config = model.config
        self._model, self._shape = model, shape
        self._store = PromptStore(language_model, shape, prompts)
        heads = config.num_attention_heads
        self._heads = getattr(config, "num_key_value_heads", None) or heads
        self._size = getattr(config, "head_dim", None) or config.hidden_size // heads
        self._layers = config.num_hidden_layers
        self._vocabulary = model.get_output_embeddings().weight.shape[0]
        self._memory_bytes, self._most = memory_bytes, capacity
        bits = 8 * model.dtype.itemsize
        by_rows = rows_innermost(model.device.type, bits, heads, self._heads, self._size)
        written = by_rows and llama.serves(model)
        self._step: Callable[[Any, Any, Step], Any] = llama.LlamaStep(model) if written else InterfaceStep(model)
        self._pool = TokenPool((self._layers, 2, self._heads, self._size), model.dtype, model.device)
        self._suffix = Suffix(self._layers, self._heads, self._size, by_rows, memory, self._pool)
        self._executed = 0.0
        self._reset(0)

    def _reset(self, capacity: int) -> None:
        self.capacity = capacity
        self._rows = 0
        self._column = 0
        self._row_prompts = np.zeros(capacity, dtype=np.int64)
        self._row_starts = np.zeros(capacity, dtype=np.int64)
        self._seating: Seating | None = None
        self._mask: Any = None
        self._fed: dict[Node, tuple[Any, float]] = {}

    @property
    def prefill(self) -> float:
        return self._store.useful

    @property
    def executed(self) -> float:
        return self._executed + self._store.executed

    def begin(self, starts: Sequence[Start], limits: Sequence[int], should_stop: Callable[[], None]) -> None:
        self._store.run(np.array([start.prompt for start in starts], dtype=np.int64), should_stop)
        span = max(start.depth for start in starts) + max(limits)
        unfed = max((_unfed(start.parent) for start in starts if start.parent is not None), default=0)
        columns = span + unfed
        capacity = self._affordable(columns, len(starts))
        if capacity < len(starts):
            # Rows come and go: columns are used up faster than by the longest row.
            columns += span
            capacity = self._affordable(columns, len(starts))
        self._reset(capacity)
        self._suffix.allocate(columns, capacity, self._model.dtype, self._model.device)

    def _affordable(self, columns: int, wanted: int) -> int:
        """How many of the wanted rows memory allows, one at least."""
        row_bytes = columns * self._layers * 2 * self._heads * self._size * int(self._model.dtype.itemsize)
        return min(wanted, affordable(row_bytes, self._vocabulary, self._memory_bytes), self._most or wanted)

    def room(self, waiting: Sequence[Start]) -> int:
        free = self.capacity - self._rows
        if self._rows == 0:
            return min(free, len(waiting))
        if free < max(1, self.capacity // 8):
            return 0
        fitting = 0
        for start in waiting[:free]:
            # Its first tokens have to fit before the column of the others.
            if start.depth > self._column:
                break
            fitting += 1
        return fitting

    def admit(self, starts: Sequence[Start]) -> tuple[Any, list[float]]:
        import torch

        if self._rows == 0:
            self._column = max(start.depth for start in starts)
        shares = self._feed_parents(starts)
        first, last = self._rows, self._rows + len(starts)
        self._rows = last
        depths = np.array([start.depth for start in starts], dtype=np.int64)
        self._row_prompts[first:last] = [start.prompt for start in starts]
        self._row_starts[first:last] = self._column - depths
        self._suffix.load([_kept(start.parent) for start in starts], first, self._column)
        self._seating = None
        prompts = torch.from_numpy(self._row_prompts[first:last]).to(self._model.device)
        logits = self._store.logits.index_select(0, prompts)
        children = [row for row, start in enumerate(starts) if start.parent is not None]
        if children:
            logits[torch.tensor(children, device=logits.device)] = torch.stack(
                [self._fed[parent][0] for parent in (starts[row].parent for row in children) if parent is not None]
            )
        return logits, shares

    def feed(self, tokens: Any) -> Any:
        rows = self._rows
        if self._column == self._suffix.columns:
            self._shift()
        if self._seating is None:
            self._seating = self._store.seat(self._row_prompts[:rows])
            self._mask = self._suffix.mask(self._row_starts[:rows])
        first = int(self._row_starts[:rows].min())
        positions = self._store.lengths[self._row_prompts[:rows]] + self._column - self._row_starts[:rows]
        logits = self._forward(tokens, positions, 0, first, self._column, self._seating, self._mask)
        self._column += 1
        return logits

    def leave(self, rows: Rows, kept: Rows) -> tuple[list[Slots], Rows]:
        slots = self._suffix.save(rows, kept, np.full(len(rows), self._column))
        staying = self._rows - len(rows)
        former = np.arange(staying)
        holes = rows[rows < staying]
        if len(holes):
            stays = np.ones(self._rows, dtype=bool)
            stays[rows] = False
            movers = staying + np.flatnonzero(stays[staying:])
            former[holes] = movers
            self._row_prompts[holes], self._row_starts[holes] = self._row_prompts[movers], self._row_starts[movers]
            self._suffix.move(movers, holes, int(self._row_starts[:staying].min()), self._column)
        self._rows = staying
        self._seating = None
        return slots, former

    def forget(self, slots: Slots) -> None:
        self._pool.free(slots)

    def _forward(
        self, tokens: Any, positions: Rows, row: int, first: int, column: int, seating: Seating, mask: Any
    ) -> Any:
        """One token for each of some rows from number `row` on; logits [rows, vocabulary]."""
        import torch

        count = len(tokens)
        step = Step(
            prompts=seating.prompts,
            prompt_mask=seating.prompt_mask,
            seats=seating.seats,
            row_at=seating.row_at,
            seat_of=seating.seat_of,
            suffix=self._suffix.data[..., row : row + count],
            suffix_mask=mask[first : column + 1] if mask is not None else None,
            first=first,
            column=column,
        )
        logits = self._step(tokens, torch.from_numpy(positions).to(tokens.device), step)
        pairs = seating.prompt_positions + count * (column + 1 - first)
        self._executed += self._shape.forward(count, pairs / count)
        return logits.float()

    def _feed_parents(self, starts: Sequence[Start]) -> list[float]:
        """Run the newest token of each parent, which was drawn but never fed, once for all its children; or more of
        them where none were kept. Leaves logits and FLOPs in `_fed`; returns each start's share."""
        parents = dict.fromkeys(start.parent for start in starts if start.parent not in self._fed)
        # The longest first, so that those still to be fed are always the first rows.
        order = sorted((node for node in parents if node is not None), key=lambda node: -_unfed(node))
        if order:
            self._feed_nodes(order)
        return [self._fed[start.parent][1] / start.siblings if start.parent is not None else 0.0 for start in starts]

    def _feed_nodes(self, nodes: Sequence[Node]) -> None:
        import torch

        unfed = [_unfed(node) for node in nodes]
        kept = [_kept(node)[: node.depth - count] for node, count in zip(nodes, unfed, strict=True)]
        # They borrow the rows that their children will have.
        base, row = max(map(len, kept)), self._rows
        self._suffix.load(kept, row, base)
        prompts = np.array([node.prompt for node in nodes], dtype=np.int64)
        starts = base - np.array([len(slots) for slots in kept], dtype=np.int64)
        first, mask = int(starts.min()), self._suffix.mask(starts)
        for fed in range(unfed[0]):
            count = sum(left > fed for left in unfed)
            ids = [node.token_ids[fed - left] for node, left in zip(nodes[:count], unfed, strict=False)]
            logits = self._forward(
                torch.tensor(ids, device=self._model.device),
                (self._store.lengths[prompts] + base + fed - starts)[:count],
                row,
                first,
                base + fed,
                self._store.seat(prompts[:count]),
                mask[:, :count] if mask is not None else None,
            )
            for number in range(count):
                if unfed[number] == fed + 1:
                    node = nodes[number]
                    end = int(self._store.lengths[node.prompt]) + node.depth
                    self._fed[node] = logits[number], self._shape.forward_sequence(end, start=end - unfed[number])
        counts = np.array(unfed, dtype=np.int64)
        # Rows end at different columns here, unlike where they are in flight.
        ends = base + counts
        for node, count, slots in zip(
            nodes, unfed, self._suffix.save(row + np.arange(len(nodes)), counts, ends), strict=True
        ):
            whole = len(node.token_ids) - count
            self._pool.free(node.slots[whole:])
            node.slots = np.concatenate([node.slots[:whole], slots])

    def _shift(self) -> None:
        """Move the rows' columns to the front, over those of rows that left."""
        first = int(self._row_starts[: self._rows].min())
        assert first > 0, "columns are at least as many as the longest row needs"
        self._suffix.shift(first, self._column, self._rows)
        self._row_starts[: self._rows] -= first
        self._column -= first
        self._mask = self._suffix.mask(self._row_starts[: self._rows])


def _unfed(node: Node) -> int:
    """Tokens of a node that have to be fed, for the logits after it at least the last."""
    return max(1, len(node.token_ids) - len(node.slots))


def _kept(node: Node | None) -> Slots:
    """Slots of all tokens from the prompt to the node that have one."""
    return np.concatenate([one.slots for one in node.path()]) if node is not None else no_slots()
