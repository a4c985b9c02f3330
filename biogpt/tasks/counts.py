"""Names counted over many texts: grouped by their spelling, and those that share a sentence."""

import re
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from biogpt.text.documents import Document
from biogpt.text.results import Entity
from biogpt.text.sentences import sentence_spans

_GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "kappa": "κ"}
_GREEK_NAME = re.compile(rf"(?<![^\W\d_])({'|'.join(_GREEK)})(?![^\W\d_])")
_NO_LETTER = re.compile(r"[\W_]+")
_PLURAL = re.compile(r"(?<=[^\W\d_]{3})(?<![siu])s$")
_TOGETHER = 60  # names of a sentence: a list of hundreds would be thousands of pairs


@dataclass(frozen=True)
class Name:
    """What is called the same in some texts.

    Attributes:
        label: its type.
        text: as it is written most often.
        mentions: in all texts.
        texts: that mention it.
    """

    label: str
    text: str
    mentions: int
    texts: int


@dataclass(frozen=True)
class Pair:
    """Two names, and how many sentences have both."""

    first: Name
    second: Name
    sentences: int


def spelling(name: str) -> str:
    """What spellings of a name share: no case, spaces or hyphens, Greek letters as such, no plural s."""
    plain = _PLURAL.sub("", unicodedata.normalize("NFKC", name)).casefold()  # AIDS is no plural
    plain = _GREEK_NAME.sub(lambda match: _GREEK[match[1]], plain)
    return _NO_LETTER.sub("", plain) or plain


def names_of(entities: Sequence[Sequence[Entity]]) -> list[Name]:
    """The names in the entities of each text, those with most mentions first."""
    return sorted(_names(entities).values(), key=lambda name: (-name.mentions, name.text, name.label))


def pairs_of(documents: Sequence[Document], entities: Sequence[Sequence[Entity]]) -> list[Pair]:
    """The pairs of names that sentences share, those with most sentences first.

    Args:
        entities: of each document, sorted by start.
    """
    names = _names(entities)
    counts: Counter[tuple[tuple[str, str], tuple[str, str]]] = Counter()
    for document, found in zip(documents, entities, strict=True):
        if len(found) < 2:
            continue
        starts = [start for start, _ in sentence_spans(document.text)]
        sentences: defaultdict[int, set[tuple[str, str]]] = defaultdict(set)
        for entity in found:
            sentences[bisect_right(starts, entity.start)].add(_key(entity))
        for together in sentences.values():
            counts.update(combinations(sorted(together)[:_TOGETHER], 2))
    pairs = (Pair(names[first], names[second], count) for (first, second), count in counts.items())
    return sorted(pairs, key=lambda pair: (-pair.sentences, pair.first.text, pair.second.text))


def _key(entity: Entity) -> tuple[str, str]:
    return entity.label, spelling(entity.text)


def _names(entities: Iterable[Sequence[Entity]]) -> dict[tuple[str, str], Name]:
    written: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    texts: Counter[tuple[str, str]] = Counter()
    for found in entities:
        keys = [_key(entity) for entity in found]
        texts.update(set(keys))
        for key, entity in zip(keys, found, strict=True):
            written[key][" ".join(entity.text.split())] += 1
    return {
        key: Name(key[0], forms.most_common(1)[0][0], forms.total(), texts[key])
        for key, forms in written.items()
    }
