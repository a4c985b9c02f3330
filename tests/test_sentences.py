"""Sentence boundaries: rules by example, exact offsets for any text, agreement with a real corpus."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biogpt.text.sentences import sentence_spans
from biogpt.training.labelled import read_sections


def split(text):
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    "sentences",
    [
        ["Aspirin helped.", "We saw it."],
        ["Is it so?", "(Yes) it is.", "12 patients died."],
        ["Growth of E. coli fell (Smith et al. 2001, i.e. Fig. 2).", "It rose vs. controls."],
        ["p was 0.05.", "Doses of 2.5 mg, e.g. daily, helped"],
        ["He took vitamin D.", "The dose was low."],
        ['They said "no."', "We agreed."],
    ],
)
def test_boundaries(sentences):
    assert split(" ".join(sentences)) == sentences


def test_line_breaks_always_end_a_sentence():
    assert split("METHODS\r\nwe did\n\n\tmore ") == ["METHODS", "we did", "more"]
    assert split("") == split(" \n ") == []


@pytest.mark.parametrize("line", ["." * 200_000, ".)" * 100_000, "a." + " " * 200_000, "! (" + "(" * 200_000])
def test_long_runs_of_stops_and_brackets_come_to_an_end(line):
    """Tried from every stop in turn, 20,000 of them took 16 seconds and 200,000 half an hour."""
    assert len(sentence_spans(line)) <= 2


@given(st.text(st.sampled_from("aB. \n\r\t?!()1\U0001f9ecα\u0301"), max_size=60))
def test_spans_are_sorted_apart_and_lose_nothing(text):
    spans = sentence_spans(text)
    assert all(text[start:end].strip() == text[start:end] != "" for start, end in spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    assert "".join("".join(text[start:end].split()) for start, end in spans) == "".join(text.split())


def test_agreement_with_the_sentences_of_trial_abstracts(shared_data):
    """99 of 100 boundaries either way: the roles of an abstract are scored sentence by sentence."""
    right = found = gold = 0
    for abstract in read_sections(shared_data / "classification/rct-sections/dev.txt"):
        ends, position = set(), 0
        for sentence in abstract.sentences:
            position += len(sentence)
            ends.add(position)
            position += 1
        guessed = {end for _, end in sentence_spans(" ".join(abstract.sentences))}
        right, found, gold = right + len(ends & guessed), found + len(guessed), gold + len(ends)
    assert right / found > 0.99
    assert right / gold > 0.99
