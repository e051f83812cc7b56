"""A language model in this process as searchers see it: prompts in, sessions out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flywheel.models.cascade import CascadeDecoder
from flywheel.models.decoding import MEMORY_BYTES, Decoder
from flywheel.models.language import LanguageModel
from flywheel.models.recomputing import RecomputingDecoder
from flywheel.models.session import TextSession
from flywheel.models.steps import StepEnds
from flywheel.models.suffix import Memory
from flywheel.models.suitability import suits


class TextSampler:
    """A language model as searchers see it; see `flywheel.models.protocols.Sampler`.

    `capacity` bounds the rows in flight, by default what `memory_bytes` of keys and values, or of logits, allow.
    """

    def __init__(
        self, language_model: LanguageModel, *, capacity: int | None = None, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._language_model = language_model
        self._capacity, self._memory_bytes = capacity, memory_bytes
        self._shape = language_model.shape
        self._memory = Memory()
        self._suits: bool | None = None
        self._step_ends: dict[str, StepEnds] = {}
        self.snapshot = language_model.snapshot
        self.tokenizer_id = language_model.tokenizer_id

    @property
    def shares_prompts(self) -> bool:
        """Whether answers share their prompt's keys and values, and what they go on from; else both are run again."""
        if self._suits is None:
            self._suits = suits(self._language_model)
        return self._suits

    def prompt_flops(self, tokens: int) -> float:
        """FLOPs of running a prompt once, with logits after its last token alone."""
        return self._shape.forward_sequence(tokens, logits=1)

    def encode_prompt(self, text: str) -> list[int]:
        return self._language_model.encode_prompt(text)

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> tuple[str, list[int]]:
        """Messages as the model's own chat template renders them, and their token ids. Raises ModelError where the
        tokenizer has no template."""
        return self._language_model.encode_chat(messages)

    def encode_answer(self, text: str) -> list[int]:
        return self._language_model.encode_answer(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self._language_model.decode(ids)

    def open(self, prompts: Sequence[Sequence[int]], texts: Sequence[str], step_end: str) -> TextSession:
        """A session on prompts, given as token ids; their texts are for other samplers. Raises ValueError for a
        prompt without tokens."""
        if empty := [number for number, prompt in enumerate(prompts) if not len(prompt)]:
            raise ValueError(f"prompts {empty} have no tokens; expected one at least, after which to go on")
        decoder: Decoder
        if self.shares_prompts:
            decoder = CascadeDecoder(
                self._language_model, self._shape, prompts, self._memory, self._memory_bytes, self._capacity
            )
        else:
            decoder = RecomputingDecoder(self._language_model, self._shape, prompts, self._memory_bytes, self._capacity)
        return TextSession(self._language_model, self._shape, decoder, lambda: self._ends_of(step_end), prompts)

    def _ends_of(self, step_end: str) -> StepEnds:
        if step_end not in self._step_ends:
            self._step_ends[step_end] = StepEnds(self._language_model, step_end)
        return self._step_ends[step_end]
