"""The words of ``GenerationOptions`` as rules of ids, by a tokenizer."""

import math

from biogpt.generation.options import GenerationOptions
from biogpt.generation.words import NO_WORDS, Phrase, WordRules
from biogpt.text.tokenizer import END_OF_WORD, Tokenizer, moses_words


def word_rules(tokenizer: Tokenizer, options: GenerationOptions) -> WordRules:
    """The rules for banned words and for those with a bias.

    A banned word is followed through all pieces that spell it, since a model whose usual way is barred takes
    another; a bias holds for the pieces that the tokenizer makes of its word.

    Raises:
        ValueError: the model cannot write one of the words, so there is nothing to ban or favour.
    """
    if not options.banned_words and not options.word_bias:
        return NO_WORDS
    phrases = [
        Phrase(_spellings(tokenizer, words), -math.inf)
        for text in options.banned_words
        for words in [_written(tokenizer, "banned_words", text)]
    ]
    for text, bias in options.biased_words():
        _written(tokenizer, "word_bias", text)
        ids = tokenizer.encode(text, special_tokens=False).ids
        phrases.append(Phrase([{token_id: state} for state, token_id in enumerate(ids, start=1)], bias))
    ends = frozenset(index for index in range(tokenizer.vocab_size) if _ends_word(tokenizer, index))
    return WordRules(phrases, ends)


def _ends_word(tokenizer: Tokenizer, index: int) -> bool:
    try:
        return tokenizer.ends_word(index)
    except ValueError:  # a gap between added tokens
        return False


def _written(tokenizer: Tokenizer, name: str, text: str) -> list[str]:
    """The words of a text as the tokenizer splits them; refused where it has no pieces for them."""
    words = moses_words(tokenizer.plain(text).text)
    ids = tokenizer.encode(text, special_tokens=False).ids
    if not words or not ids or tokenizer.unk_token_id in ids:
        raise ValueError(
            f"{name} holds {text!r}, which this model cannot write: its vocabulary lacks a character of it; "
            "leave it out"
        )
    return words


def _spellings(tokenizer: Tokenizer, words: list[str]) -> list[dict[int, int]]:
    """The steps of a phrase through all pieces of the vocabulary that spell it; states are places in it."""
    symbols = [
        letter + END_OF_WORD * (place == len(word))
        for word in words
        for place, letter in enumerate(word, start=1)
    ]
    return [
        {
            tokenizer.vocab[piece]: end
            for end in range(start + 1, len(symbols) + 1)
            if (piece := "".join(symbols[start:end])) in tokenizer.vocab
        }
        for start in range(len(symbols))
    ]
