"""A tokenizer whose word number n is ``wn``."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def tokenizer_of(words: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer of so many *words*; the first ends, begins and fills a text."""
    numbers = {f"w{number}": number for number in range(words)}
    splits = Tokenizer(models.WordLevel(numbers, unk_token="w0"))
    splits.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = dict.fromkeys(("eos_token", "bos_token", "pad_token", "unk_token"), "w0")
    return PreTrainedTokenizerFast(tokenizer_object=splits, **ends)
