"""A reward model of steps: it needs no reference, and can be wrong.

The score of a step is the chance that the answer comes right from there; an answer's is that of its steps, aggregated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flywheel.models.reward_model import RewardModel, encode_steps, prompt_text
from flywheel.models.reward_scores import flops_of, score_positions
from flywheel.problems.domain import Domain
from flywheel.records import Problem
from flywheel.rewards import form
from flywheel.rewards.aggregate import aggregate
from flywheel.rewards.reward import Answer, Judgement, StepScores
from flywheel.sections import Aggregate


class Process:
    """Scores the steps of answers, finished or not. An answer that is malformed or cut off is worth 0, whatever its
    steps."""

    needs_reference = False
    verifies = False
    votes = False
    gives_steps = True

    def __init__(
        self, reward_model: RewardModel, domain: Domain, step_tag: str, how: Aggregate, batch_size: int
    ) -> None:
        self._reward_model = reward_model
        self._domain = domain
        self._step_tag = step_tag
        self._how: Aggregate = how
        self._batch_size = batch_size
        self._padding = 0.0
        self.name = f"process({reward_model.snapshot[:12]}, {how})"

    def judge(
        self, groups: Sequence[tuple[Problem, Sequence[Answer]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[list[Judgement]]:
        judged: list[list[Judgement]] = []
        partial: list[tuple[Problem, Sequence[str]]] = []
        places: list[tuple[int, int, str]] = []
        for problem, answers in groups:
            should_stop()
            row: list[Judgement] = []
            for answer in answers:
                found = form.canonical(self._domain, problem, answer)
                if isinstance(found, str):
                    places.append((len(judged), len(row), found))
                    partial.append((problem, answer.steps))
                    found = Judgement(None, "failed", found, reason="no steps to score")
                row.append(found)
            judged.append(row)
        scored = self._score(partial, should_stop)
        for (group, index, canonical), steps in zip(places, scored, strict=True):
            if steps is None:
                reason = "too long for the reward model"
                judged[group][index] = Judgement(None, "failed", canonical, reason=reason)
            elif steps.scores:
                judged[group][index] = Judgement(
                    aggregate(steps.scores, self._how), "judged", canonical, steps.flops, steps.scores
                )
        return judged

    def score_steps(
        self, partial: Sequence[tuple[Problem, Sequence[str]]], should_stop: Callable[[], None] = lambda: None
    ) -> list[StepScores]:
        """A score for each step that is not blank; zeros for an answer that has grown too long for the model."""
        found = []
        for (_, steps), scores in zip(partial, self._score(partial, should_stop), strict=True):
            found.append(scores or StepScores((0.0,) * sum(bool(step.strip()) for step in steps)))
        return found

    def take_padding(self) -> float:
        taken, self._padding = self._padding, 0.0
        return taken

    def _score(
        self, partial: Sequence[tuple[Problem, Sequence[str]]], should_stop: Callable[[], None]
    ) -> list[StepScores | None]:
        """None where the text is too long. Equal texts are run once, at the cost of the first."""
        tokenizer, domain, model = self._reward_model.tokenizer, self._domain, self._reward_model
        rows = []
        for problem, steps in partial:
            prompt = prompt_text(tokenizer, domain.prompt(problem), domain.messages(problem))
            ids, positions = encode_steps(tokenizer, prompt, steps, self._step_tag)
            rows.append((tuple(ids), tuple(positions)))
        distinct = [row for row in dict.fromkeys(rows) if model.fits(row[0])]
        scores = dict(zip(distinct, score_positions(model, distinct, self._batch_size, should_stop), strict=True))
        flops, padding = flops_of(model, distinct, self._batch_size)
        self._padding += padding
        unpaid = dict(zip(distinct, flops, strict=True))
        return [StepScores(scores[row], unpaid.pop(row, 0.0)) if row in scores else None for row in rows]
