"""Low-rank adapters: a learned update B A of rank r beside each frozen matrix, merged into it at the end.

Hu et al. 2021, *LoRA: low-rank adaptation of large language models*, section 4.1; the update is scaled by alpha / r.
Adapters stand on all linear layers of the decoder, the output head apart. The method is peft's (extra `lora`). The
student is a plain model: nothing that loads it needs to know how it was taught.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flywheel import sections
from flywheel.errors import ConfigError


def require() -> None:
    """Raises ConfigError where peft is not installed."""
    from importlib.util import find_spec

    if find_spec("peft") is None:
        raise ConfigError(["train.method: lora needs peft; pip install 'flywheel-search[lora]', or set it to full"])


def configuration(model: Any, section: sections.Train) -> Any:
    """The peft config for a transformers model."""
    require()
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    return LoraConfig(
        r=section.lora_rank,
        lora_alpha=section.lora_alpha,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        # GPT-2 stores its matrices the other way round.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )


def adapt(model: Any, section: sections.Train, seed: int) -> Any:
    """A peft model around `model`, whose weights are frozen and which gets adapters that change nothing yet: A is drawn
    from `seed`, B is 0. Raises ConfigError where peft is not installed."""
    config = configuration(model, section)
    import torch
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]), nameless(model):
        torch.manual_seed(seed % 2**63)
        return get_peft_model(model, config)


@contextmanager
def nameless(model: Any) -> Iterator[None]:
    """Within it peft takes a model in without noting its name, which it would look up on the hub at each save, and
    without asking transformers by a name that transformers is giving up."""
    name = model.name_or_path
    model.name_or_path = ""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            yield
    finally:
        model.name_or_path = name


def adapter_parameters(adapted: Any) -> int:
    """How many parameters are learned."""
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


def load_adapters(adapted: Any, checkpoint: Path) -> None:
    """Put a checkpoint's adapters in place."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    result: Any = set_peft_model_state_dict(adapted, load_file(checkpoint / "adapter_model.safetensors"))
    assert not result.unexpected_keys, result.unexpected_keys


def merge(adapted: Any) -> Any:
    """Add the adapters' updates to the matrices they stand beside; returns the model that `adapt` was given, plain
    again and all of it open to learning."""
    model = adapted.merge_and_unload()
    model.requires_grad_(True)
    return model
