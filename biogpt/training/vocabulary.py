"""Learn a vocabulary: byte-pair merges (Sennrich et al. 2016, arXiv 1508.07909) over Moses words.

Not with ``tokenizers.BpeTrainer``: which of equally frequent pairs it merges first changes from run to run,
so the same text gave other merges each time (20,000 abstracts, 8,704 entries). It took 2 s where this takes 9
to 12 s, and is no better: both need 0.2539 pieces a byte of held-out text at 4,000 entries, 0.2168 at 8,704.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, pairwise
from multiprocessing import get_context

from biogpt.checkpoint.pretrained import BioGptTokenizer
from biogpt.runners.threads import interrupts_ignored
from biogpt.text.plain import NORMALIZATION
from biogpt.text.tokenizer import CONTROL_TOKENS, END_OF_WORD, Pair, moses_words, word_symbols

_LINES_PER_TASK = 2000
_EVERY_NORMALIZATION = str.maketrans(NORMALIZATION)


def train_vocabulary(
    lines: Iterable[str], vocab_size: int, min_character_count: int = 20, processes: int = 1
) -> BioGptTokenizer:
    """Count the words of a text and learn a vocabulary of exactly ``vocab_size`` entries.

    See ``count_words`` and ``learn_vocabulary`` for the arguments and errors.
    """
    return learn_vocabulary(count_words(lines, processes), vocab_size, min_character_count)


def count_words(lines: Iterable[str], processes: int = 1) -> Counter[str]:
    """Count the Moses words of a text, with every character of the normalisation table replaced.

    Args:
        lines: text; each is split into words on its own.
        processes: how many share the work; 1 stays in this process.
    """
    if processes == 1:
        return _count_task(lines)
    counts: Counter[str] = Counter()
    # Threads may be running by now: a forked child could inherit a lock that nobody frees.
    with interrupts_ignored():
        pool = get_context("spawn").Pool(processes)
    with pool:
        for part in pool.imap_unordered(_count_task, _tasks(lines)):
            counts.update(part)
    return counts


def _tasks(lines: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(lines)
    while task := list(islice(rest, _LINES_PER_TASK)):
        yield task


def _count_task(lines: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(moses_words(line.translate(_EVERY_NORMALIZATION)))
    return counts


def learn_vocabulary(
    counts: Mapping[str, int], vocab_size: int, min_character_count: int = 20
) -> BioGptTokenizer:
    """Learn merges until control tokens, characters and merged pieces are exactly ``vocab_size``.

    Ids go by falling frequency in the text; ties are broken by the piece itself, so the same counts give
    the same files whatever their order.

    Args:
        counts: how often each Moses word occurs.
        vocab_size: number of entries, the four control tokens included.
        min_character_count: a character that occurs so often gets two entries, inside a word and at its end;
            a rarer one is in no piece and is read as ``<unk>``.

    Raises:
        ValueError: the text has more characters, or fewer pieces, than the size asked for.
    """
    words = _Words(counts, min_character_count)
    least = len(CONTROL_TOKENS) + len(words.characters)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size is {vocab_size}; the {len(words.characters) // 2} characters that occur "
            f"{min_character_count} times or more need at least {least}; raise vocab_size or "
            "min_character_count"
        )
    merges: list[Pair] = []
    # Each merge adds an entry: a piece is always joined in the same way, whatever surrounds it.
    for size in range(least, vocab_size):
        pair = words.most_frequent_pair()
        if pair is None:
            raise ValueError(
                f"vocab_size is {vocab_size}; the text has no pair left to merge at {size}; "
                "lower vocab_size or give more text"
            )
        words.merge(pair)
        merges.append(pair)
    frequency = words.piece_counts()
    pieces = words.characters | {first + second for first, second in merges}
    ordered = sorted(pieces, key=lambda piece: (-frequency[piece], piece))
    return BioGptTokenizer({token: i for i, token in enumerate((*CONTROL_TOKENS, *ordered))}, merges)


class _Words:
    """The words of a text as symbols, with the counts of adjacent pairs kept up to date by every merge.

    A heap holds (-count, pair). A count that has fallen is noticed when its pair is popped; a pair whose
    count may have risen is pushed again.
    """

    def __init__(self, counts: Mapping[str, int], min_character_count: int) -> None:
        self.symbols = [word_symbols(word) for word in counts if word]
        self.counts = [count for word, count in counts.items() if word]
        frequency: Counter[str] = Counter()
        for symbol, count in self.piece_counts().items():
            frequency[symbol.removesuffix(END_OF_WORD)] += count
        frequent = {character for character, count in frequency.items() if count >= min_character_count}
        rare = set(frequency) - frequent
        self.characters = frequent | {character + END_OF_WORD for character in frequent}
        self._rare = rare | {character + END_OF_WORD for character in rare}
        self._pair_counts: Counter[Pair] = Counter()
        self._words_with: defaultdict[Pair, set[int]] = defaultdict(set)
        for index in range(len(self.symbols)):
            self._add_pairs(index)
        self._heap: list[tuple[int, Pair]] = []
        for pair in self._pair_counts:
            self._push(pair)

    def piece_counts(self) -> Counter[str]:
        """How often each symbol stands in the text as merged so far."""
        counts: Counter[str] = Counter()
        for symbols, count in zip(self.symbols, self.counts, strict=True):
            for symbol in symbols:
                counts[symbol] += count
        return counts

    def most_frequent_pair(self) -> Pair | None:
        """The pair to merge next, of equals the first in order of its text; None when all words are whole."""
        while self._heap:
            count, pair = heapq.heappop(self._heap)
            now = self._pair_counts[pair]
            if now and now == -count:
                return pair
            if now:
                self._push(pair)
        return None

    def merge(self, pair: Pair) -> None:
        """Join every occurrence of the pair, from left to right."""
        changed: set[Pair] = set()
        for index in self._words_with.pop(pair):
            merged = _merged(self.symbols[index], pair)
            if len(merged) == len(self.symbols[index]):
                continue  # an earlier merge has taken a symbol of the pair
            for old in pairwise(self.symbols[index]):
                self._pair_counts[old] -= self.counts[index]
            self.symbols[index] = merged
            self._add_pairs(index)
            changed.update(pairwise(merged))
        del self._pair_counts[pair]
        for new in changed:
            self._push(new)

    def _add_pairs(self, index: int) -> None:
        for pair in pairwise(self.symbols[index]):
            self._pair_counts[pair] += self.counts[index]
            self._words_with[pair].add(index)

    def _push(self, pair: Pair) -> None:
        if self._rare.isdisjoint(pair):
            heapq.heappush(self._heap, (-self._pair_counts[pair], pair))


def _merged(symbols: list[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    places = iter(range(len(symbols)))
    for i in places:
        if (*symbols[i : i + 2],) == pair:
            merged.append("".join(pair))
            next(places)
        else:
            merged.append(symbols[i])
    return merged
