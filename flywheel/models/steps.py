"""Where a step ends, told by token ids: the vocabulary is read once, so that no text is decoded while sampling.

A step ends with the token that completes `step_end`, unless the step is blank before it (an empty line is no step).
Only where a tokenizer spells `step_end` with several tokens is text decoded, and only at tokens that could complete it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel.models.language import LanguageModel


class StepEnds:
    """What each token of a vocabulary does to a step."""

    def __init__(self, language_model: LanguageModel, step_end: str) -> None:
        """Raises ValueError where `step_end` is empty."""
        if not step_end:
            raise ValueError("step_end is empty; expected the text that ends a step, such as a newline")
        tokenizer: Any = language_model.tokenizer
        texts: list[str] = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        # A model may have more logits than its tokenizer has tokens.
        head = getattr(language_model.model.config.get_text_config(), "vocab_size", len(texts))
        texts += [""] * max(0, head - len(texts))
        self._step_end = step_end
        self._decode = language_model.decode_all
        found = [text.rfind(step_end) for text in texts]
        rest = tuple(step_end[start:] for start in range(1, len(step_end)))

        def each(values: Sequence[bool]) -> npt.NDArray[np.bool_]:
            return np.array(values, dtype=bool)

        self._completes = each([at >= 0 for at in found])
        self._blank = each([not text.strip() for text in texts])
        self._blank_before = each([not text[: max(at, 0)].strip() for text, at in zip(texts, found, strict=True)])
        self._blank_after = each(
            [not text[at + len(step_end) :].strip() for text, at in zip(texts, found, strict=True)]
        )
        # They begin with a tail of `step_end`, and could complete what the tokens before them began.
        self._may_complete = each([text.startswith(rest) for text in texts])

    def ends(
        self,
        tokens: npt.NDArray[np.int64],
        blank: npt.NDArray[np.bool_],
        answer: Callable[[int], list[int]],
    ) -> npt.NDArray[np.bool_]:
        """Which rows end their step with their newest of `tokens` [rows]. `blank` [rows] says whether the step was
        blank before it, and is brought up to date; `answer` gives a row's whole answer, that token included."""
        completes = self._completes[tokens]
        ended = completes & ~(blank & self._blank_before[tokens])
        blank &= self._blank[tokens]
        blank[completes] = self._blank_after[tokens[completes]]
        for row in np.flatnonzero(self._may_complete[tokens]).tolist():
            ended[row], blank[row] = self._read(answer(row))
        return ended

    def blank(self, answer: list[int]) -> bool:
        """Whether the last step of an answer so far is blank."""
        return not self._decode(answer).split(self._step_end)[-1].strip()

    def _read(self, answer: list[int]) -> tuple[bool, bool]:
        """Whether the newest token of an answer ends a step, and whether the step is blank after it."""
        before = self._decode(answer[:-1]).split(self._step_end)
        steps = self._decode(answer).split(self._step_end)
        return any(step.strip() for step in steps[len(before) - 1 : -1]), not steps[-1].strip()
