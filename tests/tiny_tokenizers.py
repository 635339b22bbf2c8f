"""A character tokenizer that fits the vocabulary of the tiny models, built in memory.

Ids: 0 `<pad>`, 1 `<bos>`, 2 `<eos>`, then one per character, then one per merge. There is no
pre-tokenizer, so a merge may join the end of a context with the start of a choice.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

CHARACTERS = string.ascii_lowercase + string.ascii_uppercase[:8] + string.digits + " .,:?\n"


def build(*, merges: Sequence[tuple[str, str]] = (), template: str = "<bos> $A") -> Any:
    """A fast tokenizer.

    Args:
        merges: pairs joined into one token, in order of rank.
        template: what surrounds a text by default; empty for nothing.
    """
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<bos>", "<eos>", *CHARACTERS, *("".join(pair) for pair in merges)]
    vocabulary = {name: index for index, name in enumerate(names)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    if template:
        special = [(name, vocabulary[name]) for name in ("<bos>", "<eos>")]
        core.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def ids(text: str) -> list[int]:
    """Ids of a text without merges and special tokens."""
    return [3 + CHARACTERS.index(character) for character in text]
