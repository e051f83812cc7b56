"""Preference training: which pairs, the loss against its formula, and that a killed run ends as an unbroken one."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel import params
from flywheel.errors import ConfigError, Interrupted
from flywheel.learning import preference
from flywheel.learning.preference import Preference, PreferenceTraining
from flywheel.models import language
from flywheel.models.checkpoints import weights_digest
from flywheel.models.language import LanguageModel
from flywheel.problems.countdown import Countdown

SECTION = params.Train(
    preference="dpo", batch_size=4, preference_learning_rate=0.01, preference_epochs=3, preference_beta=0.5
)
"""Ten pairs make three steps an epoch, the last of them a short one."""


class Killed(Exception):  # noqa: N818
    """Stands for a process that dies: nothing gets to tidy up."""


def attempt(index: int, output: str, reward: float | None, stop_reason: str = "eos") -> dict[str, Any]:
    return {"index": index, "output": output, "reward": reward, "stop_reason": stop_reason}


def test_pairs_are_of_distinct_texts_that_ended_and_were_judged() -> None:
    rows = [
        attempt(0, "cut", 0.0, "length"),
        attempt(1, "right", 1.0),
        attempt(2, "right", 1.0),
        attempt(3, "wrong", 0.0),
        attempt(4, "late", None),
        attempt(5, "wrong", 0.0),
        attempt(6, "cut right", 1.0, "length"),
        attempt(7, "solver's", 1.0, "finished"),
    ]
    for given in (rows, rows[::-1]):
        got = preference.pairs(given, threshold=1.0, per_problem=10)
        assert [(right["index"], wrong["index"]) for right, wrong in got] == [(1, 3)]


def test_a_soft_reward_is_cut_at_the_threshold() -> None:
    rows = [attempt(0, "a", 0.9), attempt(1, "b", 0.5), attempt(2, "c", 0.4)]
    got = preference.pairs(rows, threshold=0.5, per_problem=10)
    assert {(right["output"], wrong["output"]) for right, wrong in got} == {("a", "c"), ("b", "c")}
    assert preference.pairs(rows, threshold=0.0, per_problem=10) == []
    assert preference.pairs([], threshold=1.0, per_problem=10) == []


@pytest.mark.parametrize(("right", "wrong"), [(1, 5), (3, 2), (4, 6), (3, 3), (6, 4)])
def test_all_pairs_in_the_end_and_evenly_before(right: int, wrong: int) -> None:
    rows = [attempt(i, f"r{i}", 1.0) for i in range(right)] + [attempt(9 + i, f"w{i}", 0.0) for i in range(wrong)]
    every = [(a["output"], b["output"]) for a, b in preference.pairs(rows, 1.0, 1000)]
    assert len(every) == len(set(every)) == right * wrong
    for count in range(1, right * wrong + 1):
        some = preference.pairs(rows, 1.0, count)
        assert len(some) == count
        for side, number in ((0, right), (1, wrong)):
            uses = [sum(pair[side]["output"] == name for pair in some) for name in {p[side]["output"] for p in some}]
            uses += [0] * (number - len(uses))
            assert max(uses) - min(uses) <= 1


@pytest.fixture(scope="module")
def some(model_folder: Path, countdown: Countdown) -> list[Preference]:
    """The reference answer over another problem's: prompts and answers of different lengths."""
    model = language.load(model_folder, "cpu", dtype="float32")
    problems = countdown.problems("train", 11)
    return [
        Preference(
            model.encode_prompt(countdown.prompt(problem)),
            model.encode_answer(str(problem.reference)),
            model.encode_answer(str(other.reference).splitlines()[0]),
        )
        for problem, other in pairwise(problems)
    ]


Teach = Callable[..., tuple[PreferenceTraining, str, LanguageModel]]


@pytest.fixture
def teach(model_folder: Path, some: list[Preference], tmp_path: Path) -> Teach:

    def run(work: str, **hooks: Any) -> tuple[PreferenceTraining, str, LanguageModel]:
        model = language.load(model_folder, "cpu", dtype="float32")
        training = preference.train(
            model.model, model.tokenizer, hooks.pop("some", some), hooks.pop("section", SECTION), seed=11,
            fill=model.fill_id, work=tmp_path / work, **hooks,
        )  # fmt: skip
        language.save(model.model, model.tokenizer, tmp_path / f"{work}-out")
        return training, weights_digest(tmp_path / f"{work}-out"), model

    return run


def by_hand(model: Any, prompt: Any, answer: Any) -> Any:
    """Log-probability of an answer, without padding."""
    import torch

    logs = torch.log_softmax(model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0], dim=-1)
    return sum(logs[len(prompt) + i - 1, token] for i, token in enumerate(answer))


def test_log_probabilities_by_hand(tiny: LanguageModel, some: list[Preference]) -> None:
    import torch

    got = preference.log_probabilities(tiny.model, some, tiny.fill_id)
    with torch.no_grad():
        expected = [[float(by_hand(tiny.model, p.prompt_ids, a)) for a in (p.chosen_ids, p.rejected_ids)] for p in some]
    assert got == pytest.approx(np.array(expected), abs=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_margin_rises_from_a_loss_of_log_2(
    teach: Teach, some: list[Preference], model_folder: Path, method: str
) -> None:
    section = SECTION.model_copy(update={"method": method, "lora_rank": 4})
    training, digest, model = teach("work", section=section)
    assert training.first_loss == pytest.approx(math.log(2), abs=1e-5)
    assert (training.pairs, training.steps) == (10, 9)
    assert digest != weights_digest(model_folder)
    before = language.load(model_folder, "cpu", dtype="float32")
    apart = [preference.log_probabilities(m.model, some, m.fill_id) for m in (before, model)]
    margins = np.diff(apart[0] - apart[1], axis=1)
    assert training.margin == pytest.approx(margins.mean(), abs=1e-4)
    assert training.margin > 0.5
    assert training.accuracy == (margins > 0).mean() > 0.7
    assert training.loss == pytest.approx(np.log1p(np.exp(-0.5 * margins)).mean(), abs=1e-4)
    assert training.loss < training.first_loss


def test_one_step_is_adam_on_the_formula(teach: Teach, some: list[Preference], model_folder: Path) -> None:
    """Against the paper's loss and an Adam step written out; at the second step the margin is no longer 0."""
    import torch

    section = SECTION.model_copy(
        update={"batch_size": 10, "preference_epochs": 2, "warmup_share": 0.0, "schedule": "constant",
                "weight_decay": 0.0, "gradient_clip": 1e6, "preference_learning_rate": 1e-3}
    )  # fmt: skip
    _, _, ours = teach("work", section=section)
    plain, reference = (language.load(model_folder, "cpu", dtype="float32").model for _ in range(2))
    optimiser = torch.optim.Adam(plain.parameters(), lr=1e-3)
    for _ in range(2):
        losses = []
        for p in some:
            with torch.no_grad():
                held = by_hand(reference, p.prompt_ids, p.chosen_ids) - by_hand(reference, p.prompt_ids, p.rejected_ids)
            wanted = by_hand(plain, p.prompt_ids, p.chosen_ids) - by_hand(plain, p.prompt_ids, p.rejected_ids)
            losses.append(-torch.nn.functional.logsigmoid(0.5 * (wanted - held)))
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        optimiser.step()
    for (name, got), expected in zip(ours.model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(got, expected, atol=5e-5), name


@pytest.mark.parametrize("method", ["full", "lora"])
def test_stopped_at_every_step_and_resumed_is_as_if_unbroken(teach: Teach, method: str) -> None:
    section = SECTION.model_copy(update={"method": method, "preference_epochs": 2})
    whole, digest, _ = teach("whole", section=section)
    assert teach("again", section=section)[:2] == (whole, digest)
    processes = 0
    while True:
        processes += 1

        def stop() -> None:
            raise Interrupted("stop")

        try:
            got, resumed, _ = teach("cut", section=section, should_stop=stop)
        except Interrupted:
            assert processes <= whole.steps
            continue
        break
    assert processes == whole.steps + 1
    assert (got, resumed) == (whole, digest)


def test_killed_and_resumed_is_as_if_unbroken(teach: Teach) -> None:
    whole, digest, _ = teach("whole")
    left = 5

    def dies() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Killed

    with pytest.raises(Killed):
        teach("cut", checkpoint_seconds=1e-9, should_stop=dies)
    assert teach("cut")[:2] == (whole, digest)


def test_it_leaves_nothing_of_its_own_on_the_model(teach: Teach, tmp_path: Path, model_folder: Path) -> None:
    before = language.load(model_folder, "cpu", dtype="float32")
    _, _, model = teach("work")
    assert "forward" not in model.model.__dict__
    assert model.model.config.to_dict() == before.model.config.to_dict() | {"dtype": "float32"}
    saved = {path.name for path in (tmp_path / "work-out").iterdir()}
    assert saved == {path.name for path in model_folder.iterdir()}
    assert not list((tmp_path / "work").rglob("README.md"))


def test_cost_by_hand(teach: Teach, some: list[Preference]) -> None:
    training, _, model = teach("work", section=SECTION.model_copy(update={"preference_epochs": 1, "batch_size": 10}))
    lengths = [len(p.prompt_ids) + len(ids) for p in some for ids in (p.chosen_ids, p.rejected_ids)]
    forward = sum(model.shape.forward_sequence(length) for length in lengths)
    assert training.cost.training == pytest.approx(3 * forward)
    assert training.cost.policy == pytest.approx(2 * forward), "the reference's pass and the student's at the end"
    longest = model.shape.forward_sequence(max(lengths))
    again = 2.0 * model.shape.head_parameters * 20 * max(lengths)
    assert training.cost.padding == pytest.approx((3 + 2) * (20 * longest - forward) + again)
    assert training.cost.tokens == sum(lengths)


def test_refused(tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        preference.train(tiny.model, tiny.tokenizer, [], SECTION, seed=0, fill=0, work=tmp_path)
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ConfigError, match=r"flywheel-search\[preference\]"):
        preference.require()
