"""Learning a vocabulary, against a learner that recounts everything before each merge."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from biogpt.text.plain import NORMALIZATION
from biogpt.text.tokenizer import word_symbols
from biogpt.training.vocabulary import count_words, learn_vocabulary, train_vocabulary

LINES = (
    "The patients' serum lithium was > 3 mEq/L; the newborn's heart rate fell.",
    'Lithium-induced "toxicity" in the newest & widest series, e.g. of lower doses.',
    "Patients with lower serum levels were slower to recover than the newest patients.",
)

word_counts = st.dictionaries(
    st.text("abc", min_size=1, max_size=8), st.integers(1, 9), min_size=1, max_size=12
)


def recounted_merges(counts: dict[str, int], pieces: int) -> tuple[list[tuple[str, str]], Counter[str]]:
    """Merges until there are so many pieces, or none is left, and how often each piece stands in them."""
    words = [(word_symbols(word), count) for word, count in counts.items()]
    known = {character + end for word in counts for character in word for end in ("", "</w>")}
    merges = []
    while len(known) < pieces:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, count in words:
            for pair in pairwise(symbols):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        known.add("".join(best))
        for symbols, _ in words:
            place = 0
            while place < len(symbols) - 1:
                if (symbols[place], symbols[place + 1]) == best:
                    symbols[place : place + 2] = ["".join(best)]
                place += 1
    frequency: Counter[str] = Counter(dict.fromkeys(known, 0))
    for symbols, count in words:
        for symbol in symbols:
            frequency[symbol] += count
    return merges, frequency


@settings(max_examples=200, deadline=None)
@given(counts=word_counts, wanted=st.integers(0, 25))
def test_merges_and_ids_are_those_of_recounting(counts: dict[str, int], wanted: int) -> None:
    characters = 2 * len(set("".join(counts)))
    merges, frequency = recounted_merges(counts, characters + wanted)
    learned = learn_vocabulary(counts, 4 + len(frequency), min_character_count=1)
    assert learned.merges == merges
    by_frequency = sorted(frequency, key=lambda piece: (-frequency[piece], piece))
    assert list(learned.vocab) == ["<s>", "<pad>", "</s>", "<unk>", *by_frequency]
    assert list(learned.vocab.values()) == list(range(4 + len(frequency)))


def test_the_order_of_the_counts_does_not_matter() -> None:
    counts = count_words(LINES)
    backwards = dict(reversed(counts.items()))
    once, again = (learn_vocabulary(each, 170, min_character_count=1) for each in (counts, backwards))
    assert list(once.vocab) == list(again.vocab)
    assert once.merges == again.merges


def test_a_rare_character_is_in_no_piece() -> None:
    counts = {"aba": 50, "ab": 50, "aγ": 19, "γb": 0, "bγa": 19}
    learned = learn_vocabulary(counts, 4 + 4 + 3, min_character_count=39)
    assert {"a", "b", "a</w>", "b</w>"} < set(learned.vocab)
    assert not any("γ" in token for token in learned.vocab)
    assert learned.encode("bγa", special_tokens=False).ids == [learned.vocab["b"], 3, learned.vocab["a</w>"]]
    common = learn_vocabulary(counts, 4 + 6 + 3, min_character_count=38)
    assert {"γ", "γ</w>"} < set(common.vocab)


def test_a_size_that_cannot_be_reached_is_refused() -> None:
    counts = {"aa": 5, "ab": 5}
    with pytest.raises(ValueError, match="the 2 characters that occur 1 times or more need at least 8"):
        learn_vocabulary(counts, 7, min_character_count=1)
    assert learn_vocabulary(counts, 8, min_character_count=1).merges == []
    assert learn_vocabulary(counts, 10, min_character_count=1).vocab_size == 10
    with pytest.raises(ValueError, match="vocab_size is 11; the text has no pair left to merge at 10"):
        learn_vocabulary(counts, 11, min_character_count=1)


def test_words_are_counted_as_moses_writes_them_with_the_table_applied() -> None:
    assert count_words(["A–B “c”", "c & …"]) == {
        "A": 1,
        "@-@": 1,
        "B": 1,
        "&quot;": 2,
        "c": 2,
        "&amp;": 1,
        ".": 1,
    }
    assert count_words(["".join(NORMALIZATION)]).keys().isdisjoint(NORMALIZATION)


def test_processes_share_the_counting() -> None:
    many = [f"{line} {number}" for number in range(1500) for line in LINES]
    assert count_words(iter(many), processes=2) == count_words(many)


@pytest.mark.parametrize("size", [150, 180])
def test_transformers_opens_a_learned_vocabulary_with_the_same_ids(tmp_path: Path, size: int) -> None:
    ours = train_vocabulary(LINES, size, min_character_count=1)
    ours.save_pretrained(tmp_path)
    theirs = transformers.BioGptTokenizer.from_pretrained(tmp_path)
    assert theirs.vocab_size == ours.vocab_size == size
    for line in LINES:
        ids = ours.encode(line).ids
        assert theirs(line).input_ids == ids
        assert ours.unk_token_id not in ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
