"""Text to ids and back: Moses words, byte-pair encoding, exact character offsets.

Words come from Moses (``sacremoses``: English, dashes split, XML escaped), pieces from byte-pair encoding
(Sennrich et al. 2016, arXiv 1508.07909). With ``normalize=False`` the ids are those of the reference
(``transformers`` ``models/biogpt``) called with ``split_special_tokens=True``: a typed ``</s>`` is text like
any other and never becomes a control token. Tokens that a checkpoint has beside its vocabulary are found in a
text as the reference finds them, see ``added``.
"""

import heapq
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from sacremoses import MosesDetokenizer, MosesTokenizer

from biogpt.text.added import ROLES, TOKENIZER_CONFIG, AddedTokens, read_added
from biogpt.text.files import read_json, read_small
from biogpt.text.plain import PlainForms, PlainText
from biogpt.text.results import Look, go_on

CONTROL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
END_OF_WORD = "</w>"
UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # stands in a text for ``<unk>``

VOCAB_FILE = "vocab.json"
MERGES_FILE = "merges.txt"

# Bounds of the memory of split words, some 30 MB when full: how many, and the longest one kept.
_CACHED_WORDS = 65_536
_CACHED_WORD_LENGTH = 64

_WRITTEN_AS_ESCAPES = frozenset("&|<>'\"[]")  # by Moses: the vocabulary has them as &amp; and the like
_CONTROL_IDS = range(len(CONTROL_TOKENS))
_EMPTY_SPAN = (0, 0)

_ROLES = {name: content for name, content in ROLES.items() if content}

Offsets = tuple[int, int]  # first character, and the one after the last
Pair = tuple[str, str]


@dataclass(frozen=True)
class Encoding:
    """One tokenised text, or pair of texts: T tokens.

    Attributes:
        ids: T token ids.
        offsets: T spans (start, end) in characters of the text as given, start never falling. The pieces of
            one escaped character (``&quot;``) all have its span. A separator has the empty span (0, 0); after
            the second one, spans point into the second text.
    """

    ids: list[int]
    offsets: list[Offsets]


@dataclass(frozen=True)
class BatchEncoding:
    """B tokenised texts, padded to the longest of them: T tokens.

    Attributes:
        input_ids: [B][T].
        attention_mask: [B][T], 1 for a token and 0 for padding.
        offsets: [B][T] spans as in ``Encoding``; (0, 0) for padding.
        cut: [B], how many tokens each row lost at its end to keep to ``max_length``.
    """

    input_ids: list[list[int]]
    attention_mask: list[list[int]]
    offsets: list[list[Offsets]]
    cut: list[int]


class _Piece(NamedTuple):
    """A piece of a word: its id, and which characters of the word, escapes undone, are its first and last."""

    id: int
    first: int
    last: int


class Tokenizer:
    """The tokenizer of BioGPT; threads may share one.

    Args:
        vocab: id of each piece, 0 to V - 1, the control tokens ``<s> <pad> </s> <unk>`` first. A piece that
            ends a word carries ``</w>``.
        merges: pairs of pieces to join, the most urgent first.
        normalize: read what the vocabulary lacks in its plain form, see ``plain``; False gives the
            reference's ids for every text.
        added: tokens beside the vocabulary; none when None.

    Attributes:
        pad_token_id: of ``<pad>``, or of the added token that pads in its place.

    Raises:
        ValueError: the vocabulary holds a wrong id, has a gap, or lacks a control token.
    """

    bos_token_id, pad_token_id, eos_token_id, unk_token_id = _CONTROL_IDS

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[Pair],
        normalize: bool = True,
        added: AddedTokens | None = None,
    ) -> None:
        self._tokens = dict(enumerate(_tokens_by_id(vocab)))
        self.vocab = dict(vocab)
        self.merges = list(merges)
        self.normalize = normalize
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.added = AddedTokens() if added is None else added
        self._tokens |= {index: token.content for index, token in self.added.by_id.items()}
        self._added_ids, self._added_pattern = self.added.ids, self.added.pattern()
        self._control_ids = {*_CONTROL_IDS, *self.added.control_ids}
        pad = self.added.roles.get("pad_token", "")
        self.pad_token_id = self._added_ids.get(pad, self.vocab.get(pad, self.pad_token_id))
        pieces = (token for index, token in self._tokens.items() if index not in _CONTROL_IDS)
        known = frozenset("".join(pieces)) | _WRITTEN_AS_ESCAPES
        self._plain_forms = PlainForms(known, lambda word: word + END_OF_WORD in self.vocab)
        self._split_cached = lru_cache(_CACHED_WORDS)(self._split)

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        # The cache can be neither pickled nor copied; a copy starts with an empty one.
        return type(self), (self.vocab, self.merges, self.normalize, self.added)

    @classmethod
    def from_files(cls, vocab_path: str | Path, merges_path: str | Path, normalize: bool = True) -> Self:
        """Read a ``vocab.json`` (piece: id) and a ``merges.txt`` (two pieces and, if any, a count a line).

        Files beside ``vocab.json`` tell of added tokens, if they are there: ``biogpt.text.added``.

        Raises:
            FileNotFoundError: one of the files is missing.
            ValueError: one of them is malformed; the message names file and line.
        """
        merges = _parse_merges(_read(read_small, merges_path), merges_path)
        vocab = _read(read_json, vocab_path)
        try:
            _tokens_by_id(vocab)
        except ValueError as error:
            raise ValueError(f"{vocab_path}: {error}") from error
        tokenizer = cls(vocab, merges, normalize, read_added(Path(vocab_path).parent, vocab))
        pieces = (piece for piece in vocab if piece not in CONTROL_TOKENS)
        joined = next((piece for piece in pieces if len(piece.removesuffix(END_OF_WORD)) > 1), None)
        if joined is not None and not merges:
            raise ValueError(
                f"{merges_path} holds no merges, which the pieces of {vocab_path} such as {joined!r} are "
                "made by; copy it anew from where the checkpoint came from"
            )
        return tokenizer

    def files(self) -> dict[str, str]:
        """The content of the files of a checkpoint by their names, as ``transformers`` reads them."""
        config = {"tokenizer_class": "BioGptTokenizer", **_ROLES, **self.added.settings()}
        files = {  # the vocabulary last: where it is, all are
            MERGES_FILE: "\n".join(" ".join(pair) for pair in self.merges),
            TOKENIZER_CONFIG: json.dumps(config, indent=2, ensure_ascii=False),
            VOCAB_FILE: json.dumps(self.vocab, ensure_ascii=False, indent=0),
        }
        return {name: content + "\n" for name, content in files.items()}

    @property
    def vocab_size(self) -> int:
        """V: ids are below it; control and added tokens included."""
        return max(self._tokens) + 1

    def token(self, index: int) -> str:
        """The piece, control or added token of an id.

        Raises:
            ValueError: no token has this id.
        """
        if index not in self._tokens:
            raise ValueError(f"token id {index} is unknown; the vocabulary has 0 to {self.vocab_size - 1}")
        return self._tokens[index]

    def is_control(self, index: int) -> bool:
        """Whether an id is that of a control token, which is left out of a decoded text."""
        return index in self._control_ids

    def ends_word(self, index: int) -> bool:
        """Whether the next token begins another word; after a control token or an added one it does."""
        token = self.token(index)
        return token.endswith(END_OF_WORD) or token in self._added_ids or self.is_control(index)

    def padding_rows(self, rows: int) -> list[int]:
        """Which of a model's ``rows`` embeddings stand for no token: they fill it up to a round size."""
        return [index for index in range(rows) if index not in self._tokens]

    def plain(self, text: str) -> PlainText:
        """What is read of a text: where ``normalize`` is set, plain forms of what the vocabulary lacks."""
        return self._plain_forms(text) if self.normalize else PlainText.of(text)

    def encode(
        self, text: str, pair: str | None = None, special_tokens: bool = True, look: Look = go_on
    ) -> Encoding:
        """Tokenise a text, ``</s> text``, or two of them, ``</s> text </s> pair``.

        Args:
            text, pair: any characters; none of them yields a control token other than ``<unk>``. An added
                token is one token, wherever it stands.
            special_tokens: False leaves the separators ``</s>`` out.
            look: called every few milliseconds: a text may take seconds.
        """
        ids: list[int] = []
        offsets: list[Offsets] = []
        for part in (text,) if pair is None else (text, pair):
            if special_tokens:
                ids.append(self.eos_token_id)
                offsets.append(_EMPTY_SPAN)
            self._encode_part(part, ids, offsets, look)
        return Encoding(ids, offsets)

    def encode_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        padding_side: str = "right",
        max_length: int | None = None,
    ) -> BatchEncoding:
        """Tokenise B texts, or pairs of texts, and pad them to one length.

        Args:
            texts: B texts.
            pairs: B second texts.
            padding_side: ``"right"`` or ``"left"``.
            max_length: cut each row to so many tokens and tell in ``cut`` what was lost; None cuts nothing.

        Raises:
            ValueError: an argument is out of range, or the numbers of texts and pairs differ.
        """
        if isinstance(texts, str) or isinstance(pairs, str):
            raise ValueError("encode_batch takes a list of texts; use encode for one text")
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(
                f"{len(texts)} texts and {len(pairs)} pairs were given; expected as many of each"
            )
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {padding_side!r}; expected 'left' or 'right'")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length is {max_length}; expected at least 1")
        second: Sequence[str | None] = [None] * len(texts) if pairs is None else pairs
        encodings = [self.encode(*both) for both in zip(texts, second, strict=True)]
        width = max((len(encoding.ids[:max_length]) for encoding in encodings), default=0)
        batch = BatchEncoding([], [], [], [])
        for encoding in encodings:
            ids, offsets = encoding.ids[:max_length], encoding.offsets[:max_length]
            padding = width - len(ids)
            left, right = (padding, 0) if padding_side == "left" else (0, padding)
            pad = self.pad_token_id
            batch.input_ids.append([pad] * left + ids + [pad] * right)
            batch.attention_mask.append([0] * left + [1] * len(ids) + [0] * right)
            batch.offsets.append([_EMPTY_SPAN] * left + offsets + [_EMPTY_SPAN] * right)
            batch.cut.append(len(encoding.ids) - len(ids))
        return batch

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, spaced by Moses' rules; control tokens are left out.

        One more id may change characters before the last (an opening quote becomes a closing one): a stream
        shows the text of all ids so far, not the difference.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        pieces = (self.token(index) for index in ids if not self.is_control(index))
        words = "".join(piece.replace(END_OF_WORD, " ") for piece in pieces).split()
        return _DETOKENIZER.detokenize(words)

    def words(self, ids: Iterable[int]) -> list[str]:
        """The Moses words of some ids, the last one perhaps begun only; ``<unk>`` is ``UNKNOWN`` in them."""
        pieces = (
            UNKNOWN if index == self.unk_token_id else self.token(index)
            for index in ids
            if index == self.unk_token_id or not self.is_control(index)
        )
        return "".join(piece.replace(END_OF_WORD, " ") for piece in pieces).split()

    def begun(self, text: str, ids: Sequence[int]) -> tuple[list[int], list[int]] | None:
        """How the last word of a text is read, and how it would be if it were to go on.

        Byte-pair encoding joins the pieces before the last of a word as if they stood alone: a text cut
        between two pieces has, read as begun, the very ids that were there.

        Args:
            ids: of the text, by ``encode``.

        Returns:
            The last of the ids, and those in their place; None where no letter or digit is last, where the
            vocabulary lacks one of them, or where they are only a part of a word.
        """
        word = _LAST_LETTERS.search(self.plain(text[-_CACHED_WORD_LENGTH:]).text)
        if word is None:
            return None
        whole = [piece.id for piece in self._split(word[0])]
        begun = [self.vocab.get(piece, self.unk_token_id) for piece in _merge([*word[0]], self._ranks)]
        before, last = ids[: -len(whole)], ids[-len(whole) :]
        if list(last) != whole or self.unk_token_id in begun or not before or not self.ends_word(before[-1]):
            return None
        return whole, begun

    def last_spans(self, text: str, begun: Sequence[int]) -> list[Offsets]:
        """Which characters of a text the pieces of its begun last word, as by ``begun``, stand for."""
        plain = self.plain(text)
        ends = [*accumulate(len(self.token(index)) for index in begun)]
        start = len(plain.text) - ends[-1]
        return [plain.given(start + first, start + end) for first, end in pairwise((0, *ends))]

    def _encode_part(self, text: str, ids: list[int], offsets: list[Offsets], look: Look) -> None:
        plain = self.plain(text)
        done = 0
        for match in self._added_pattern.finditer(plain.text) if self._added_pattern else ():
            self._encode_words(plain, done, match.start(), ids, offsets, look)
            ids.append(self._added_ids[match[0]])
            offsets.append(plain.given(*match.span()))
            done = match.end()
        self._encode_words(plain, done, len(plain.text), ids, offsets, look)

    def _encode_words(
        self, plain: PlainText, first: int, end: int, ids: list[int], offsets: list[Offsets], look: Look
    ) -> None:
        while first < end:
            cut = _BETWEEN_WORDS.search(plain.text, min(first + _STRETCH, end), end)
            last = cut.start() if cut is not None else end
            look()
            self._encode_stretch(plain, first, last, ids, offsets, look)
            first = last

    def _encode_stretch(
        self, plain: PlainText, first: int, end: int, ids: list[int], offsets: list[Offsets], look: Look
    ) -> None:
        text = plain.text[first:end]
        spans = _character_spans(text)
        words = [
            self._split_cached(word) if len(word) <= _CACHED_WORD_LENGTH else self._split(word, look)
            for word in moses_words(text)
        ]
        lengths = [pieces[-1].last + 1 for pieces in words]
        if sum(lengths) != len(spans):
            raise RuntimeError(
                f"Moses made {sum(lengths)} characters of {len(spans)}: this version of sacremoses splits "
                "text in an unknown way; install the one named in requirements.txt"
            )
        start = 0
        for pieces, length in zip(words, lengths, strict=True):
            for piece in pieces:
                ids.append(piece.id)
                span = spans[start + piece.first][0], spans[start + piece.last][1]
                offsets.append(plain.given(first + span[0], first + span[1]))
            start += length

    def _split(self, word: str, look: Look = go_on) -> list[_Piece]:
        characters = [
            index
            for index, match in enumerate(_ESCAPED.finditer(word))
            for _ in range(match.end() - match.start())
        ]
        pieces = []
        end = 0
        for text in _merge(word_symbols(word), self._ranks, look):
            start, end = end, end + len(text.removesuffix(END_OF_WORD))
            index = self.vocab.get(text, self.unk_token_id)
            pieces.append(_Piece(index, characters[start], characters[end - 1]))
        return pieces


class _FastMosesTokenizer(MosesTokenizer):
    """Moses with the same words in a third of the time.

    The original builds a set of all letters for each word that ends in a full stop, and searches a long run
    of ``DOT`` for its placeholder again from every position.
    """

    MULTIDOT_MARKER: ClassVar[re.Pattern[str]] = re.compile(r"(?<!DOT)(?:DOT)+MULTI")
    _letters = frozenset(MosesTokenizer.IsAlpha)
    _lowercase = frozenset(MosesTokenizer.IsLower)

    def isanyalpha(self, text: str) -> bool:
        return not self._letters.isdisjoint(text)

    def islower(self, text: str) -> bool:
        return self._lowercase.issuperset(text)


_TOKENIZER = _FastMosesTokenizer(lang="en")
_DETOKENIZER = MosesDetokenizer(lang="en")

# Long texts are split in stretches of so many characters, with the same words: no rule of Moses looks from
# one word of letters or digits across a space to the next.
_STRETCH = 8_000
_BETWEEN_WORDS = re.compile(r"(?<=[a-zA-Z0-9])[ \n](?=[a-zA-Z0-9])")
_MERGES = 1_000  # of a word of absurd length, after which somebody may look

# Moses turns a run of full stops into DOTDOTMULTI and back, and so a typed DOTDOTMULTI into two full stops.
_SOURCE_CHARACTERS = re.compile(rf"{_FastMosesTokenizer.MULTIDOT_MARKER.pattern}|\S")

# What makes the characters of a text other than its non-space characters, seldom found.
_DROPPED_OR_PLACEHOLDER = re.compile(r"(?!\s)[\x00-\x1f]|MULTI")

# One character of the text, as it stands in a word: a split dash, an escaped character (Moses escapes each
# ``&``), or itself.
_ESCAPED = re.compile(r"^@-@$|&\S+?;|\S")


# The letters and digits at the end of a text.
_LAST_LETTERS = re.compile(r"[^\W_]+\Z")

_DASH = "@-@"  # as Moses writes one that parts a word
_DASH_WORD = "\ufdd0"  # and what it is for the detokenizer; never a character of a text
_AROUND_DASH = re.compile(rf" ?{_DASH_WORD} ?")
_BEGUN_ESCAPE = re.compile(r"&#?\w*\Z")


def moses_text(words: Iterable[str]) -> str:
    """The text of Moses' words, for people: one more word never changes what is there.

    As by ``Tokenizer.decode``, but for dashes: the words beside one keep their own spaces, so that it is
    ``(TNF)-α`` and not ``(TNF )-α``, and of two in a row none is left as ``@-@``.
    """
    text = _DETOKENIZER.detokenize([_DASH_WORD if word == _DASH else word for word in words])
    return _AROUND_DASH.sub("-", text)


def settled_part(word: str) -> str:
    """Of a word that may go on, the part whose text and space before it no ending can change.

    ``,`` alone takes no space, and ``,x`` does; ``&qu`` may become a quotation mark.
    """
    settled = _BEGUN_ESCAPE.sub("", word)
    plain = _DETOKENIZER.unescape_xml(settled)
    changes = _DETOKENIZER.IS_PUNCT.search(plain) or _DETOKENIZER.IS_OPEN_QUOTE.search(plain)
    return "" if changes or _DASH.startswith(settled) else settled


def moses_words(text: str) -> list[str]:
    """The words of a text as Moses splits and escapes them."""
    return _TOKENIZER.tokenize(text, aggressive_dash_splits=True, return_str=False, escape=True)


def word_symbols(word: str) -> list[str]:
    """The characters of a word, the last one marked as its end: what byte-pair merging starts from."""
    return [*word[:-1], word[-1] + END_OF_WORD]


def _character_spans(text: str) -> list[Offsets]:
    """Where each character that Moses keeps lies in the text: neither white space nor a control character.

    Moses only moves words apart, so these are, in order, the characters of its words with escapes undone.
    """
    if not _DROPPED_OR_PLACEHOLDER.search(text):
        return [(i, i + 1) for i, character in enumerate(text) if not character.isspace()]
    kept = [i for i, character in enumerate(text) if character >= " " or character.isspace()]
    spans: list[Offsets] = []
    for match in _SOURCE_CHARACTERS.finditer("".join(text[i] for i in kept)):
        start, end = match.span()
        full_stops = range(start, end - len("MULTI"), len("DOT")) or (start,)
        spans += ((kept[first], kept[after - 1] + 1) for first, after in pairwise((*full_stops, end)))
    return spans


def _merge(symbols: list[str], ranks: Mapping[Pair, int], look: Look = go_on) -> list[str]:
    """Join neighbours, the pair of lowest rank first and each of its occurrences from left to right.

    A heap and linked neighbours take n log n steps for n symbols, so one absurdly long word costs little.

    Args:
        symbols: the characters of a word.
        ranks: place of each pair in the list of merges.
    """
    symbols = list(symbols)
    size = len(symbols)
    before = list(range(-1, size - 1))  # the nearest symbol on the left, -1 for none
    after = list(range(1, size + 1))  # the nearest symbol on the right, size for none
    heap: list[tuple[int, int]] = []  # rank of a pair, place of its left symbol

    def rank(left: int) -> int | None:
        if left < 0 or after[left] >= size:
            return None
        return ranks.get((symbols[left], symbols[after[left]]))

    def consider(left: int) -> None:
        if (found := rank(left)) is not None:
            heapq.heappush(heap, (found, left))

    for left in range(size):
        if left % _MERGES == 0:
            look()
        consider(left)
    while heap:
        lowest = heap[0][0]
        occurrences: list[int] = []
        # A merge may make a pair of lower rank; it waits until the present pair is joined everywhere.
        while heap and heap[0][0] == lowest:
            occurrences.append(heapq.heappop(heap)[1])
        for number, left in enumerate(occurrences):
            if number % _MERGES == 0:
                look()
            if rank(left) != lowest:
                continue  # one of the two symbols has been joined to another since
            right = after[left]
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            if after[left] < size:
                before[after[left]] = left
            consider(before[left])
            consider(left)
    return [symbol for symbol in symbols if symbol]


def _tokens_by_id(vocab: Any) -> list[str]:
    if not isinstance(vocab, Mapping):
        raise ValueError(f"the vocabulary is a {type(vocab).__name__}; expected an object of piece: id")
    tokens: list[str | None] = [None] * len(vocab)
    for token, index in vocab.items():
        if type(index) is not int or not 0 <= index < len(vocab):
            raise ValueError(
                f"the id of {token!r} is {index!r}; expected 0 to {len(vocab) - 1}, one for each piece"
            )
        if tokens[index] is not None:
            raise ValueError(f"{tokens[index]!r} and {token!r} have the same id, {index}")
        tokens[index] = token
    if tuple(tokens[: len(CONTROL_TOKENS)]) != CONTROL_TOKENS:
        raise ValueError(f"ids 0 to 3 are {tokens[:4]}; expected {' '.join(CONTROL_TOKENS)}")
    return [token for token in tokens if token is not None]


def _read(read: Callable[[str | Path], Any], path: str | Path) -> Any:
    try:
        return read(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is missing; a BioGPT checkpoint keeps its tokenizer in {VOCAB_FILE} and {MERGES_FILE}"
        ) from error


def _parse_merges(content: str, path: str | Path) -> list[Pair]:
    merges: list[Pair] = []
    for number, line in enumerate(content.split("\n"), start=1):
        match line.split():
            case []:
                continue
            case ["#version:", _] if number == 1:
                continue
            case [first, second] | [first, second, _]:
                merges.append((first, second))
            case _:
                raise ValueError(f"{path}, line {number}: {line!r}; expected two pieces and perhaps a count")
    return merges
