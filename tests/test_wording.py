"""Words that may not come, or should, from the tokenizer to the text."""

import re
from typing import Any

import pytest
from test_writing import tiny

from biogpt.generation.options import GenerationOptions
from biogpt.serving.text_generator import TextGenerator

# "abc" can be spelled in four ways, three of them other than the tokenizer's.
PIECES = ("a", "b", "c</w>", "b</w>", "ab", "bc</w>", "abc</w>", "x</w>", "x", "-</w>")
MERGES = [("a", "b"), ("ab", "c</w>")]


def words_of(generator: TextGenerator, **options: Any) -> list[str]:
    drawn = (
        generator.generate("", GenerationOptions(max_new_tokens=36, temperature=1.5, seed=seed, **options))
        for seed in range(12)
    )
    return " | ".join(completion.text for [completion] in drawn).split()


def test_a_banned_word_does_not_come_in_any_spelling_and_longer_ones_do() -> None:
    with tiny(PIECES, MERGES) as generator:
        assert "abc" in words_of(generator), "the test could not fail"
        words = words_of(generator, banned_words=["abc"])
        assert "abc" not in words
        assert any("abc" in word for word in words), "a longer word"


def test_a_banned_phrase_does_not_come_and_its_words_do() -> None:
    with tiny(PIECES, MERGES) as generator:
        assert "bc abc" in " ".join(words_of(generator))
        text = " ".join(words_of(generator, banned_words=["bc abc"]))
        assert not re.search(r"(?<!\S)bc abc(?!\S)", text)
        assert {"bc", "abc"} <= set(text.split())


def test_a_word_that_the_prompt_begins_is_not_completed() -> None:
    """``continued`` leaves the last word of a run open."""
    with tiny(PIECES, MERGES) as generator:
        vocab = generator.tokenizer.vocab
        prompt = generator.continued("x ab", [2, vocab["x</w>"], vocab["a"], vocab["b"]])
        favoured = {"logit_bias": {vocab["c</w>"]: 50}, "max_new_tokens": 1}
        [plain] = generator.generate(prompt, GenerationOptions(**favoured))
        [banned] = generator.generate(prompt, GenerationOptions(**favoured, banned_words=["abc"]))
        assert (plain.text, "c" in banned.text) == ("c", False)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_favoured_word_comes_and_a_disliked_one_stays_away(beams: int) -> None:
    with tiny(PIECES, MERGES) as generator:
        searched = GenerationOptions(max_new_tokens=9, num_beams=beams, word_bias=["bab=60"])
        [favoured] = generator.generate("", searched)
        assert set(favoured.text.split()) == {"bab"}, "of three pieces, each in its place"
        disliked = words_of(generator, word_bias=["x=-100"])
        assert "x" not in disliked


def test_what_cannot_be_written_is_refused_before_anything_is_made() -> None:
    with tiny(PIECES, MERGES) as generator:
        for name in ("banned_words", "word_bias"):
            value = "☃" if name == "banned_words" else "☃=2"
            with pytest.raises(
                ValueError, match=f"{name} holds '☃', which this model cannot write: .* leave it out"
            ):
                generator.stream("x", GenerationOptions(**{name: [value]}))
