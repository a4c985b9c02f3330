"""The words of a text that get labels, their pieces, and how they look.

A word is what Moses splits off.
"""

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from biogpt.model.config import BioGptConfig
from biogpt.text.plain import without_emphasis
from biogpt.text.results import Look, go_on
from biogpt.text.tokenizer import Tokenizer

_PIECES = 10_000  # after which somebody may look


class Words(NamedTuple):
    """The words of a text: W of them.

    Attributes:
        spans: [W] (start, end) in characters of the text as given.
        pieces: [W] token ids of each.
        texts: [W] the words as they are read.
    """

    spans: list[tuple[int, int]]
    pieces: list[list[int]]
    texts: list[str]


def words_of(tokenizer: Tokenizer, text: str, look: Look = go_on) -> Words:
    """Split a text into the words that get labels.

    Words of the plain text that share a character of the text as given, such as the two of ``℃``, are one.

    Args:
        look: called every few milliseconds, as by ``Tokenizer.encode``.
    """
    unmarked = without_emphasis(text)
    plain = tokenizer.plain(unmarked.text)
    encoding = tokenizer.encode(plain.text, special_tokens=False, look=look)
    spans: list[tuple[int, int]] = []  # in the plain text
    pieces: list[list[int]] = []
    within = False
    for number, (index, (start, end)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True)):
        if number % _PIECES == 0:
            look()
        if within or (spans and plain.starts[start] < plain.ends[spans[-1][1] - 1]):
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            pieces[-1].append(index)
        else:
            spans.append((start, end))
            pieces.append([index])
        within = not tokenizer.ends_word(index)
    given = [unmarked.given(*plain.given(start, end)) for start, end in spans]
    return Words(given, pieces, [plain.text[start:end] for start, end in spans])


def forms_of(words: Sequence[str], config: BioGptConfig, device: torch.device) -> Tensor | None:
    """[W, 5] forms of words for ``TokenClassifier.read``; None where the model has no word encoder."""
    if not config.word_encoder_size:
        return None
    return torch.tensor([word_forms(word, config.word_form_rows) for word in words], device=device)


@lru_cache(maxsize=100_000)
def word_forms(word: str, rows: int) -> tuple[int, ...]:
    """How a word looks, as rows of a ``WordEncoder``'s table of ``rows``: spelling, beginning, end, shape.

    Words that were never trained on share their beginnings, ends and shapes with some that were.
    """
    lower = word.lower()
    looks = ("w" + lower, "p" + word[:3], "s" + word[-3:], "e" + lower[-5:], "h" + _shape(word))
    return tuple(zlib.crc32(look.encode("utf-8", "surrogatepass")) % rows for look in looks)


def _shape(word: str) -> str:
    """``Xxdd`` of a word: letters by case, digits, at most two of a kind in a row; other characters stay."""
    kinds = ("X" if c.isupper() else "x" if c.islower() else "d" if c.isdigit() else c for c in word)
    return re.sub(r"(.)\1{2,}", r"\1\1", "".join(kinds))
