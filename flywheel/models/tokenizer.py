"""Tokenizers for models trained from scratch. Saved as an ordinary `tokenizer.json`, they load with `AutoTokenizer`.

Word level, for a domain that knows its words: what single spaces separate is a token, so is a newline. Byte pairs, for
any text: learned from a corpus (Sennrich et al. 2016; on bytes, Radford et al. 2019). Both give text back as it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flywheel.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
_SPACE = "▁"


def word_level(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is these words (a newline among them stands for itself)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marked = [word if word == "\n" else _SPACE + word for word in words]
    vocabulary = {token: index for index, token in enumerate([PAD, END, UNKNOWN, *marked])}
    tokenizer: Any = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    # A marker stands before each word instead of a space, at the start of a line too, so that lines decode as written.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(" ", _SPACE), normalizers.Replace(Regex(r"(?m)^(?=[^▁\n])"), _SPACE)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁[^▁\n]+|\n"), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.Fuse(), decoders.Replace(Regex(r"(?m)^ "), "")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def byte_pair(corpus: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of at most `size` tokens, the same for the same corpus; fewer where the corpus is small.

    A digit is a token of its own: numbers that are cut up by how frequent they are make arithmetic a matter of
    spelling. So is a single newline, the usual end of a step. Raises ConfigError for a size that does not hold all
    bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [PAD, END]
    if size < len(alphabet) + len(special):
        raise ConfigError(
            [f"model.vocabulary: got {size}, expected at least {len(alphabet) + len(special)}, one token for each byte"]
        )
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        # A problem that quotes `</s>` has not ended.
        split_special_tokens=True,
    )
