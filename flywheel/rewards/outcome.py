"""A reward model of whole answers: it needs no reference, and can be wrong.

A classifier of texts, or a model of steps, whose score after the last step is the answer's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flywheel.models.reward_model import RewardModel, encode_steps, encode_text, prompt_text
from flywheel.models.reward_scores import flops_of, score_positions, score_texts
from flywheel.problems.domain import Domain
from flywheel.records import Problem
from flywheel.rewards import form
from flywheel.rewards.reward import Answer, Judgement, NoSteps

_Row = tuple[tuple[int, ...], int]
"""Token ids of a text, and the position at which its score is read."""


class Outcome(NoSteps):
    """Scores well-formed answers by a reward model of any style; others are worth 0 and cost nothing."""

    needs_reference = False
    verifies = False
    votes = False

    def __init__(self, reward_model: RewardModel, domain: Domain, step_tag: str, batch_size: int) -> None:
        self._reward_model = reward_model
        self._domain = domain
        self._step_tag = step_tag
        self._batch_size = batch_size
        self._padding = 0.0
        self.name = f"outcome({reward_model.snapshot[:12]})"

    def judge(
        self, groups: Sequence[tuple[Problem, Sequence[Answer]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[list[Judgement]]:
        judged: list[list[Judgement]] = []
        rows: list[_Row] = []
        places: list[tuple[int, int, str]] = []
        for problem, answers in groups:
            should_stop()
            judged_here: list[Judgement] = []
            for answer in answers:
                found = form.canonical(self._domain, problem, answer)
                if isinstance(found, str):
                    ids, last = self._encode(problem, answer)
                    reason = f"{len(ids)} tokens are too many for the model"
                    if last is None:
                        reason = "no steps to score"
                    elif self._reward_model.fits(ids):
                        places.append((len(judged), len(judged_here), found))
                        rows.append((ids, last))
                    # Stays where there is nothing to score or the text does not fit.
                    found = Judgement(None, "failed", found, reason=reason)
                judged_here.append(found)
            judged.append(judged_here)
        # Equal answers are run once, at the cost of the first.
        distinct = list(dict.fromkeys(rows))
        scores = dict(zip(distinct, self._score(distinct, should_stop), strict=True))
        flops, padding = flops_of(self._reward_model, [(ids, (last,)) for ids, last in distinct], self._batch_size)
        self._padding += padding
        unpaid = dict(zip(distinct, flops, strict=True))
        for (group, index, canonical), row in zip(places, rows, strict=True):
            judged[group][index] = Judgement(scores[row], "judged", canonical, flops=unpaid.pop(row, 0.0))
        return judged

    def take_padding(self) -> float:
        taken, self._padding = self._padding, 0.0
        return taken

    def _encode(self, problem: Problem, answer: Answer) -> tuple[tuple[int, ...], int | None]:
        """Token ids of question and answer, and where the score stands; None where there is no step to score."""
        tokenizer, prompt, messages = (
            self._reward_model.tokenizer,
            self._domain.prompt(problem),
            self._domain.messages(problem),
        )
        if self._reward_model.style == "sequence":
            ids = encode_text(tokenizer, prompt, messages, answer.output)
            return tuple(ids), len(ids) - 1
        ids, positions = encode_steps(tokenizer, prompt_text(tokenizer, prompt, messages), answer.steps, self._step_tag)
        return tuple(ids), positions[-1] if positions else None

    def _score(self, rows: Sequence[_Row], should_stop: Callable[[], None]) -> list[float]:
        model, size = self._reward_model, self._batch_size
        if model.style == "sequence":
            return score_texts(model, [ids for ids, _ in rows], size, should_stop)
        read = [(ids, (last,)) for ids, last in rows]
        return [score for (score,) in score_positions(model, read, size, should_stop)]
