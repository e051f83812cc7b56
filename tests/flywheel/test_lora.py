"""Low-rank adapters: what is learned, that it ends in plain weights, and that a killed run ends as an unbroken one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel import params
from flywheel.compute import DecoderShape
from flywheel.errors import ConfigError, Interrupted
from flywheel.learning import lora, supervised
from flywheel.learning.examples import EpochOrder, Examples, training_flops
from flywheel.learning.supervised import Training
from flywheel.models import language
from flywheel.models.checkpoints import weights_digest
from flywheel.models.language import LanguageModel
from flywheel.problems.countdown import Countdown

SECTION = params.Train(
    method="lora", lora_rank=4, lora_alpha=8, batch_size=4, learning_rate=0.02, patience=2, seed_epochs=6, epochs=3
)


class Killed(Exception):  # noqa: N818
    """Stands for a process that dies: nothing gets to tidy up."""


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=24, tie_word_embeddings=True,
        )
    )  # fmt: skip


def qwen() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=24, tie_word_embeddings=False,
        )
    )  # fmt: skip


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0))


@pytest.mark.parametrize("make", [llama, qwen, gpt2])
def test_merged_is_as_adapted(make: Callable[[], Any], tmp_path: Path) -> None:
    """Adapters change nothing at first; with updates of any size the merged model says what the adapted one said; and
    it is a model of its own kind, saved and loaded with no sign of adapters."""
    import torch
    from transformers import AutoModelForCausalLM

    model = make().eval()
    names, settings = set(model.state_dict()), model.config.to_dict()
    ids = torch.arange(21).reshape(3, 7)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        adapted = lora.adapt(model, SECTION, seed=1).eval()
        assert torch.equal(adapted(input_ids=ids).logits, before)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))
        said = adapted(input_ids=ids).logits
        assert (said - before).abs().max() > 0.1
        merged = lora.merge(adapted)
        assert torch.allclose(merged(input_ids=ids).logits, said, atol=1e-5)
        assert merged is model
        assert model.config.to_dict() == settings
        assert set(merged.state_dict()) == names
        assert all(parameter.requires_grad for parameter in merged.parameters())
        merged.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert torch.allclose(loaded(input_ids=ids).logits, said, atol=1e-5)
    assert type(loaded) is type(model)


def test_what_is_learned_is_the_adapters_of_every_linear_layer() -> None:
    """By hand: q, k, v, o, gate, up and down of both layers, r * (in + out) each; head and embedding have none."""
    adapted = lora.adapt(llama(), SECTION, seed=1)
    width, narrow, wide, rank = 16, 8, 24, 4
    sizes = [(width, width), (width, narrow), (width, narrow), (width, width)] + 2 * [(width, wide)] + [(wide, width)]
    assert lora.adapter_parameters(adapted) == 2 * sum(rank * (a + b) for a, b in sizes)
    assert all("lora_" in name for name, parameter in adapted.named_parameters() if parameter.requires_grad)


def test_adapters_are_drawn_from_the_seed_alone() -> None:
    import torch

    model = llama().state_dict()

    def drawn(seed: int, noise: int) -> list[Any]:
        torch.manual_seed(noise)
        fresh = llama()
        fresh.load_state_dict(model)
        return [p.clone() for n, p in lora.adapt(fresh, SECTION, seed).named_parameters() if "lora_A" in n]

    first, again, other = drawn(1, 5), drawn(1, 6), drawn(2, 5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


Teach = Callable[..., tuple[Training, str, LanguageModel]]


@pytest.fixture
def teach(model_folder: Path, countdown: Countdown, tmp_path: Path) -> Teach:
    """Train the tiny model with adapters in a work folder; the training, the digest of what came out, the model."""

    def run(work: str, until_stale: bool, **hooks: Any) -> tuple[Training, str, LanguageModel]:
        model = language.load(model_folder, "cpu", dtype="float32")
        train, valid = (
            Examples(
                (model.encode_prompt(countdown.prompt(p)), model.encode_answer(str(p.reference)), 1.0)
                for p in countdown.problems(split, count)
            )
            for split, count in (("train", 10), ("valid", 6))
        )
        training = supervised.train(
            model.model, train, valid, hooks.pop("section", SECTION), seed=11, fill=model.fill_id,
            work=tmp_path / work, until_stale=until_stale, **hooks,
        )  # fmt: skip
        language.save(model.model, model.tokenizer, tmp_path / f"{work}-out")
        return training, weights_digest(tmp_path / f"{work}-out"), model

    return run


def after(steps: int, error: Exception) -> Callable[[], None]:
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == steps:
            raise error

    return stop


def test_matrices_alone_change_and_by_a_low_rank(teach: Teach, model_folder: Path) -> None:
    import torch

    training, _, model = teach("work", False)
    before = language.load(model_folder, "cpu", dtype="float32").model.state_dict()
    assert training.epochs == 3.0
    for name, weights in model.model.state_dict().items():
        change = weights - before[name]
        if name.endswith("_proj.weight"):
            # The update is of rank 4; what adding it rounds off is far smaller than its 4 singular values.
            values = torch.linalg.svdvals(change)
            assert values[0] > 0.01, name
            assert values[4:].max() < 1e-5 * values[0], name
        else:
            assert not change.any(), name


def test_it_learns(model_folder: Path, countdown: Countdown, tmp_path: Path) -> None:
    """A model that knows some answers is taught others by adapters alone: their loss falls below half."""
    model = language.load(model_folder, "cpu", dtype="float32")
    known, new = (
        Examples(
            (model.encode_prompt(countdown.prompt(p)), model.encode_answer(str(p.reference)), 1.0)
            for p in countdown.problems(split, 8)
        )
        for split in ("train", "valid")
    )
    section = SECTION.model_copy(update={"schedule": "constant", "warmup_share": 0.0})
    losses = []
    for method, examples, epochs in (("full", known, 40), ("lora", new, 40)):
        training = supervised.train(
            model.model, examples, new, section.model_copy(update={"method": method}), seed=1, fill=model.fill_id,
            work=tmp_path / method, until_stale=False, epochs=epochs,
        )  # fmt: skip
        losses.append(training.valid_loss)
    assert losses[1] < losses[0] / 2


@pytest.mark.parametrize("until_stale", [True, False], ids=["until-stale", "fixed-epochs"])
def test_stopped_at_every_step_and_resumed_is_as_if_unbroken(teach: Teach, until_stale: bool, tmp_path: Path) -> None:
    whole, digest, _ = teach("whole", until_stale)
    processes = 0
    while True:
        processes += 1
        try:
            got, resumed, _ = teach("cut", until_stale, should_stop=after(1, Interrupted("stop")))
        except Interrupted:
            assert processes <= whole.steps, "each process makes a step of progress"
            continue
        break
    assert processes == whole.steps + 1
    assert (got, resumed) == (whole, digest)
    assert not list((tmp_path / "cut").rglob("model.safetensors")), "a checkpoint holds the adapters alone"


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_killed_and_resumed_is_as_if_unbroken(teach: Teach, steps: int) -> None:
    whole, digest, _ = teach("whole", True)
    with pytest.raises(Killed):
        teach("cut", True, checkpoint_seconds=1e-9, should_stop=after(steps, Killed()))
    got, resumed, _ = teach("cut", True, checkpoint_seconds=1e-9)
    assert (got, resumed) == (whole, digest)


def test_the_best_is_kept(teach: Teach, countdown: Countdown) -> None:
    """The merged weights have the best loss that was seen, not the last."""
    import torch

    section = SECTION.model_copy(update={"learning_rate": 0.3, "seed_epochs": 20})
    training, _, model = teach("work", True, section=section)
    losses = list(training.valid_losses)
    assert training.epochs == losses.index(min(losses)) + 1 < len(losses)
    total, count = 0.0, 0
    for problem in countdown.problems("valid", 6):
        prompt, answer = model.encode_prompt(countdown.prompt(problem)), model.encode_answer(str(problem.reference))
        with torch.no_grad():
            logs = torch.log_softmax(model.model.eval()(input_ids=torch.tensor([prompt + answer])).logits[0], dim=-1)
        total -= sum(float(logs[len(prompt) + i - 1, token]) for i, token in enumerate(answer))
        count += len(answer)
    assert total / count == pytest.approx(min(losses), rel=1e-4)


def test_flops_by_hand() -> None:
    """Kaplan et al., section 2.1: forward 2, the input's gradient 2, the weights' own 2, which frozen ones do not have.
    So 4 a frozen parameter and token, 6 a learned one; attention 3 times its forward price."""
    frozen, learned = 100, 10
    attention = 4 * 4 * sum(range(1, 6))
    useful, padding, _ = training_flops(
        np.array([5, 5]), EpochOrder(2, 0), 1, 2, DecoderShape(frozen + learned, 1, 4), frozen
    )
    assert useful == pytest.approx(2 * (5 * (4 * frozen + 6 * learned) + 3 * attention))
    assert padding == 0


def test_cost_is_counted_with_the_matrices_frozen(teach: Teach) -> None:
    adapted = teach("lora", False)[0].cost
    full = teach("full", False, section=SECTION.model_copy(update={"method": "full"}))[0].cost
    assert 4 / 6 * full.training < adapted.training < full.training
    assert adapted.tokens == full.tokens


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"flywheel-search\[lora\]"):
        lora.require()
