"""A word-level tokenizer for models trained from scratch: a word is a token, so is a newline; text round-trips.

Words are what single spaces separate. Saved as an ordinary `tokenizer.json`, it loads with `AutoTokenizer` anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

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
