"""A reward model of whole answers: it needs no reference, and can be wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flywheel.models.reward_model import RewardModel, encode_text
from flywheel.models.reward_scores import score_texts
from flywheel.problems.domain import Domain
from flywheel.records import Problem
from flywheel.rewards import form
from flywheel.rewards.reward import Answer, Judgement, NoSteps


class Outcome(NoSteps):
    """Scores well-formed answers by a classifier of texts; others are worth 0 and cost nothing."""

    needs_reference = False
    verifies = False
    votes = False

    def __init__(self, reward_model: RewardModel, domain: Domain, batch_size: int) -> None:
        self._reward_model = reward_model
        self._domain = domain
        self._batch_size = batch_size
        self.name = f"outcome({reward_model.snapshot[:12]})"

    def judge(
        self, groups: Sequence[tuple[Problem, Sequence[Answer]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[list[Judgement]]:
        judged: list[list[Judgement]] = []
        rows: list[tuple[int, ...]] = []
        places: list[tuple[int, int, str]] = []
        for problem, answers in groups:
            should_stop()
            row: list[Judgement] = []
            for answer in answers:
                found = form.canonical(self._domain, problem, answer)
                if isinstance(found, str):
                    ids = tuple(self._encode(problem, answer.output))
                    if self._reward_model.fits(ids):
                        places.append((len(judged), len(row), found))
                        rows.append(ids)
                    # Stays where the text does not fit.
                    found = Judgement(None, "failed", found, reason=f"{len(ids)} tokens are too many for the model")
                row.append(found)
            judged.append(row)
        # Equal answers are run once, at the cost of the first.
        distinct = list(dict.fromkeys(rows))
        scores = dict(
            zip(distinct, score_texts(self._reward_model, distinct, self._batch_size, should_stop), strict=True)
        )
        unpaid = {ids: self._reward_model.shape.forward_sequence(len(ids)) for ids in distinct}
        for (group, index, canonical), ids in zip(places, rows, strict=True):
            judged[group][index] = Judgement(scores[ids], "judged", canonical, flops=unpaid.pop(ids, 0.0))
        return judged

    def _encode(self, problem: Problem, output: str) -> list[int]:
        domain = self._domain
        return encode_text(self._reward_model.tokenizer, domain.prompt(problem), domain.messages(problem), output)
