"""Language models: a transformers causal LM and its tokenizer, from scratch or from a folder or hub id.

Weights are safetensors; code that comes with a model is never run (`trust_remote_code` stays off). On CUDA a model runs
in bfloat16, on CPU in float32: on the CPUs at hand bfloat16 was slower for small models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flywheel import params
from flywheel.compute import DecoderShape
from flywheel.errors import ModelError
from flywheel.models.checkpoints import tokenizer_digest, weights_digest


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A loaded model. `model` is a transformers causal LM, `tokenizer` its fast tokenizer."""

    model: Any
    tokenizer: Any
    snapshot: str
    """Digest of the weights."""
    tokenizer_id: str
    """Digest of tokenizer.json."""

    @property
    def shape(self) -> DecoderShape:
        """What the FLOP formulas need."""
        return decoder_shape(self.model)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def fill_id(self) -> int:
        """Token id that pads a batch; masked, so any will do where the tokenizer has none."""
        padding = self.tokenizer.pad_token_id
        return int(padding if padding is not None else self.tokenizer.eos_token_id)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt, with the tokenizer's own beginning-of-sequence token where it has one."""
        begin = self.tokenizer.bos_token_id
        return ([] if begin is None else [begin]) + self.encode(text)

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> tuple[str, list[int]]:
        """Messages (role, content) as the model's own chat template renders them, the answer still to come, and their
        token ids. Raises ModelError where the tokenizer has no template or its template refuses the messages."""
        if self.tokenizer.chat_template is None:
            raise ModelError(
                "the tokenizer has no chat template; expected one, as chat models have: set problems.chat to false, or "
                "take a chat model"
            )
        from jinja2 import TemplateError

        try:
            text: str = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ModelError(
                f"the chat template refuses messages with the roles {roles}: {error}; a template may know no system "
                "message, then set problems.system to null"
            ) from error
        # The template writes special tokens itself, a beginning of sequence among them.
        return text, self.encode(text)

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of a whole answer, the end token at its end."""
        return [*self.encode(text), self.tokenizer.eos_token_id]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of an answer without the end token that closes it. Other special tokens are shown, not dropped: an
        answer with one in its midst must not be judged as if it were not there."""
        shown = list(ids)
        if shown and shown[-1] in self.end_ids:
            del shown[-1]
        return self.decode_all(shown)

    def decode_all(self, ids: Sequence[int]) -> str:
        """The text of token ids, every one of them."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ends = {self.tokenizer.eos_token_id}
        configured = self.model.generation_config.eos_token_id
        ends.update(configured if isinstance(configured, list) else [configured])
        return frozenset(end for end in ends if end is not None)


def quiet() -> None:
    """No bars or notes of transformers' own: a stage shows its own progress and raises its own errors."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def warm_up() -> None:
    """Import what models need, some seconds, while something else is waited for."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Trainer

    assert all((torch, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Trainer))


def create(section: params.Model, words: Iterable[str] | None, corpus: Iterable[str], seed: int, folder: Path) -> str:
    """Make generation 0's base model in `folder`; returns its snapshot digest.

    From scratch a Llama with the section's sizes, weights drawn from `seed`, whose tokens are `words` or, where there
    is no such list, byte pairs learned from the texts of `corpus`; otherwise the pretrained `section.base`.
    """
    if section.base is not None:
        loaded = load(section.base, "cpu", dtype="auto")
        save(loaded.model, loaded.tokenizer, folder)
        return weights_digest(folder)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from flywheel.models.tokenizer import byte_pair, word_level

    tokenizer = byte_pair(corpus, section.vocabulary) if words is None else word_level(words)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=section.hidden_size,
        num_hidden_layers=section.layers,
        num_attention_heads=section.heads,
        num_key_value_heads=section.heads,
        intermediate_size=section.intermediate_size,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    save(model, tokenizer, folder)
    return weights_digest(folder)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write safetensors, config and tokenizer, so that AutoModelForCausalLM and AutoTokenizer load them anywhere."""
    quiet()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(source: str | Path, device: str, dtype: str | None = None) -> LanguageModel:
    """Load a model by local folder or hub id, ready for inference. Raises ModelError.

    `device` is `cpu` or `cuda`; `dtype` is a torch dtype's name or `auto` for the stored one, by default float32 on
    CPU and bfloat16 on CUDA. Training wants float32.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    folder = folder_of(source)
    wanted = dtype or ("bfloat16" if device == "cuda" else "float32")
    try:
        snapshot = weights_digest(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder, dtype=wanted, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{source} cannot be loaded as a causal language model: {error}") from error
    if loading["missing_keys"]:
        # Transformers draws what is missing at random and goes on.
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ModelError(
            f"{source} lacks {len(loading['missing_keys'])} of its tensors, such as {missing}; save it anew"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {source} has no end-of-sequence token; expected one, answers must end")
    return LanguageModel(model.to(device).eval(), tokenizer, snapshot, tokenizer_digest(folder))


def snapshot_of(source: str | Path) -> str:
    """Digest of the weights of a model by local folder or hub id, without loading it. Raises ModelError."""
    return weights_digest(folder_of(source))


def folder_of(source: str | Path) -> Path:
    """Where a model's files lie; those of a hub id are fetched if they are not there."""
    local = Path(source)
    if not (isinstance(source, Path) or local.exists() or str(source).startswith((".", "/"))):
        return _download(str(source))
    if not (local / "config.json").is_file():
        raise ModelError(f"{source} is no model folder: it has no config.json; expected what save_pretrained makes")
    return local


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{hub_id} is neither a local folder nor a model the hub gave: {str(error).splitlines()[0]}"
        ) from error


def decoder_shape(model: Any) -> DecoderShape:
    """Sizes of a decoder for the FLOP formulas, whatever head it has. A tied embedding counts once, as the output head
    that it is; tables that are only looked up (tokens, learned positions) do not."""
    import torch

    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    head = model.get_output_embeddings()
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    if head is not None:
        looked_up.discard(id(head.weight))
    matrices = sum(p.numel() for p in model.parameters() if p.dim() >= 2 and id(p) not in looked_up)
    logits = 0 if head is None else head.weight.numel()
    return DecoderShape(matrices, config.num_hidden_layers, config.num_attention_heads * width, logits)


def device_for(wanted: str) -> str:
    """`auto` becomes `cuda` where there is one. Raises ModelError where CUDA is asked for and missing."""
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ModelError("execution.device: got cuda, but torch finds no CUDA device here; set it to auto or cpu")
    return "cuda" if available and wanted != "cpu" else "cpu"
