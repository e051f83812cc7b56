"""Reward models: networks that score answers, or the steps of answers, and the token format they are scored in.

    sequence   a classifier of whole texts (`AutoModelForSequenceClassification`), for outcome rewards alone
    token      a classifier of tokens, read where a step has ended (`AutoModelForTokenClassification`)
    words      a causal LM that says a good or a bad word where a step has ended (Wang et al. 2024, *Math-Shepherd*)

With one label a score is the logistic function of its logit, with two the probability of label 1. The registry's own
model is of the kind `token` with two labels, 1 = right, and shares the student's tokenizer. `encode_steps` is the one
place that says what such a model reads, for its training and for its use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flywheel import sections
from flywheel.compute import DecoderShape
from flywheel.errors import ConfigError, ModelError
from flywheel.models import language
from flywheel.models.checkpoints import weights_digest

Style = Literal["sequence", "token", "words"]
STUDENT = "student"
"""As `supervise.base`: the new student itself."""
_HEADS = ("score.", "classifier.")
_CLASSES = {"ForSequenceClassification": "sequence", "ForTokenClassification": "token", "ForCausalLM": "words"}


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A loaded reward model, ready for inference."""

    model: Any
    tokenizer: Any
    style: Style
    snapshot: str
    """Digest of the weights."""
    words: tuple[int, int] | None = None
    """Style words: the good and the bad word's token."""
    names_padding: bool = True
    """Whether the model's config says which token pads."""

    @property
    def shape(self) -> DecoderShape:
        """What the FLOP formulas need."""
        return language.decoder_shape(self.model)

    def fits(self, ids: Sequence[int]) -> bool:
        """Whether the model has positions for so many tokens."""
        longest = getattr(self.model.config, "max_position_embeddings", None)
        return longest is None or len(ids) <= longest


def load(source: str | Path, device: str, section: sections.Reward) -> RewardModel:
    """Load the reward model that lies in a folder or has this hub id; `section` says how it is read.

    Raises ModelError where it cannot be loaded or is of a kind that the reward has no use for, ConfigError where the
    section's words are none of its tokens.
    """
    folder = language.folder_of(source)
    style = _style(source, folder, section)
    if style == "words":
        loaded = language.load(source, device)
        words = (_word(loaded.tokenizer, "good", section.good), _word(loaded.tokenizer, "bad", section.bad))
        found = RewardModel(loaded.model, loaded.tokenizer, style, loaded.snapshot, words)
    else:
        dtype = "bfloat16" if device == "cuda" else "float32"
        model, tokenizer, missing = _classifier(source, folder, style, dtype, {})
        if missing:
            raise ModelError(f"{source} lacks tensors, such as {missing[0]}; expected a trained reward model")
        if model.config.num_labels not in (1, 2):
            raise ModelError(_labels(source, model))
        pads = model.config.pad_token_id is not None
        found = RewardModel(model.to(device).eval(), tokenizer, style, weights_digest(folder), names_padding=pads)
    if style != "sequence":
        _word(found.tokenizer, "step_tag", section.step_tag)
    return found


def create(section: sections.Supervise, student: Path, seed: int, folder: Path) -> str:
    """Make an untrained reward model of steps in `folder`; returns its snapshot digest.

    The student's weights below a new head (base `student`), as process reward models usually begin; `section.base`,
    whose head is drawn anew where it has none that classifies tokens; or a Llama that classifies tokens, with the
    section's sizes and the tokenizer of `student`. What is new is drawn from `seed`. Raises ModelError.
    """
    import torch

    language.quiet()
    source: str | Path | None = student if section.base == STUDENT else section.base
    if source is not None:
        base = language.folder_of(source)
        own = _architecture(source, base).endswith("ForTokenClassification")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, tokenizer, missing = _classifier(source, base, "token", "float32", {} if own else {"num_labels": 2})
        lacking = [name for name in missing if own or not name.startswith(_HEADS)]
        if lacking:
            raise ModelError(f"{source} lacks {len(lacking)} of its tensors, such as {lacking[0]}; save it anew")
        if model.config.num_labels not in (1, 2):
            raise ModelError(_labels(source, model))
    else:
        from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForTokenClassification

        tokenizer = AutoTokenizer.from_pretrained(student, trust_remote_code=False)
        students = AutoConfig.from_pretrained(student, trust_remote_code=False)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=section.hidden_size,
            num_hidden_layers=section.layers,
            num_attention_heads=section.heads,
            num_key_value_heads=section.heads,
            intermediate_size=section.intermediate_size,
            max_position_embeddings=getattr(students, "max_position_embeddings", 1024),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            id2label={0: "wrong", 1: "right"},
            label2id={"wrong": 0, "right": 1},
            classifier_dropout=0.0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForTokenClassification(config)
    language.save(model, tokenizer, folder)
    return weights_digest(folder)


def prompt_text(tokenizer: Any, prompt: str, messages: Sequence[dict[str, str]] | None) -> str:
    """A question as the reward model is told it: by its chat template where there are messages and it has one."""
    if messages is None or tokenizer.chat_template is None:
        return prompt
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return text


def encode_steps(tokenizer: Any, prompt: str, steps: Sequence[str], step_tag: str) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and the steps of an answer so far, and the positions at which the steps are scored.

        prompt   step 1   tag   step 2   tag        ids; with a begin-of-sequence token where the tokenizer has one
                          ^1             ^2         positions: the last token of each tag

    Steps and tags are encoded piece by piece, so a step's ids and score do not depend on what comes after it. Every
    step is followed by the tag, the last too, which in an answer is followed by the end token instead. A tag that is a
    word ends its line. Blank steps are left out: there is one position for each other step.
    """
    begin, newline = tokenizer.bos_token, "" if step_tag.isspace() else "\n"
    # A chat template has written it already.
    ids = [] if begin is None or prompt.startswith(begin) else [tokenizer.bos_token_id]
    ids += tokenizer.encode(prompt, add_special_tokens=False)
    tag = tokenizer.encode(step_tag, add_special_tokens=False)
    positions: list[int] = []
    for step in steps:
        text = step.removesuffix(step_tag)
        if not text.strip():
            continue
        ids += tokenizer.encode((newline if positions else "") + text, add_special_tokens=False)
        ids += tag
        positions.append(len(ids) - 1)
    return ids, positions


def encode_text(tokenizer: Any, prompt: str, messages: Sequence[dict[str, str]] | None, output: str) -> list[int]:
    """Token ids of a question with its answer, for a classifier of whole texts: by its chat template where there are
    messages and it has one, else the one text after the other, with the special tokens that the tokenizer adds."""
    if messages is None or tokenizer.chat_template is None:
        return list(tokenizer.encode(prompt + output))
    text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": output}], tokenize=False)
    return list(tokenizer.encode(text, add_special_tokens=False))


def _style(source: str | Path, folder: Path, section: sections.Reward) -> Style:
    wanted: dict[str, list[Style]] = {"outcome": ["sequence", "token", "words"], "process": ["token", "words"]}
    style: Any = section.style
    if style == "auto":
        # Any causal LM has words; to take one for a judge of answers has to be asked for.
        wanted["outcome"].remove("words")
        name = _architecture(source, folder)
        style = next((style for ending, style in _CLASSES.items() if name.endswith(ending)), name or "nothing")
    if style not in wanted[section.name]:
        kinds = " or ".join(wanted[section.name])
        raise ModelError(
            f"{source} is a reward model of the kind {style}, expected {kinds} for reward.name {section.name}; take "
            "another model, or say by reward.style how this one is to be read"
        )
    return style  # type: ignore[no-any-return]


def _architecture(source: str | Path, folder: Path) -> str:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source} cannot be loaded as a reward model: {error}") from error
    return str((config.architectures or [""])[0])


def _classifier(
    source: str | Path, folder: Path, style: Style, dtype: str, settings: dict[str, Any]
) -> tuple[Any, Any, list[str]]:
    """Model, tokenizer, and the names of the tensors that its files lack."""
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

    language.quiet()
    kind = AutoModelForSequenceClassification if style == "sequence" else AutoModelForTokenClassification
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, loading = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **settings
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{source} cannot be loaded as a reward model: {error}") from error
    return model, tokenizer, sorted(loading["missing_keys"])


def _labels(source: str | Path, model: Any) -> str:
    return f"{source} has {model.config.num_labels} labels, expected 1, or 2 (0 wrong, 1 right)"


def _word(tokenizer: Any, name: str, text: str) -> int:
    """The token at which a word ends. Raises ConfigError where the tokenizer does not know it."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids or (tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids):
        raise ConfigError([f"reward.{name}: {text!r} is no token of the reward model's tokenizer; name one that is"])
    return int(ids[-1])
