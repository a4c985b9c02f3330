"""Sentence boundaries: rules by example, exact offsets for any text, agreement with a real corpus."""

import textwrap
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


STARTS = (
    "p53 was mutated", "mTOR was inhibited", "miR-21 fell", "eGFR did not change", "siRNA was given",
    "iPSCs grew", "c-Myc rose", "n-3 acids fell", "α-Synuclein was seen", "von Willebrand factor fell",
    "tRNA(Leu) was lost", "cAMP rose", "β2-Agonists were given", "d-Limonene was safe", "tert-Butanol was "
    "not",
    "van der Waals forces act",
)  # fmt: skip


@pytest.mark.parametrize("start", STARTS)
def test_names_in_lower_case_begin_a_sentence(start):
    sentences = ["We saw 40 patients.", f"{start} in 12 of them.", "It was seen (P<0.01).", f"{start}."]
    assert split(" ".join(sentences)) == sentences


def test_a_common_word_in_lower_case_begins_none():
    assert (
        len(split("It rose by 5 conc. units, approx. p53 levels vs. mTOR of E. coli p53 and ca. n-3.")) == 1
    )


@pytest.mark.parametrize(
    "sentences",
    [
        ["It needs protein kinase A.", "Activation is fast."],
        ["They had hepatitis C.", "Treatment was given."],
        ["We gave vitamin E.", "Controls got none."],
        ["It was found by Smith et al.", "However, we did not."],
        ["It was given i.p.", "Controls got saline."],
        ["It ran for 5 min.", "Cells were lysed."],
        ["We saw it before.(1)", "We did it again.[2,3]", "Others did.¹", "Nobody cares.4,5", "Good."],
        ["Growth of E. coli fell.", "J. Smith and A. Jones saw Fig. 2 of Dr. Brown et al. Nature 2001."],
        ["It was given, e.g. Monday, at 0.5 mg i.v. to rats.", "Doses of no. 3 vs. No. 4 differ."],
    ],
)
def test_abbreviations_letters_and_citations_may_end_a_sentence(sentences):
    assert split(" ".join(sentences)) == sentences


def test_a_sentence_may_begin_without_a_space():
    assert split("We did it.RESULTS: It fell.CONCLUSIONS: Good.") == [
        "We did it.",
        "RESULTS: It fell.",
        "CONCLUSIONS: Good.",
    ]
    assert split("It helped.We saw E.coli and www.Nature.com in p.Val600Glu.") == [
        "It helped.",
        "We saw E.coli and www.Nature.com in p.Val600Glu.",
    ]


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", " \n  "])
@pytest.mark.parametrize("width", [25, 44, 72, 100])
def test_text_that_was_wrapped_has_the_sentences_of_one_line(line_break, width):
    """Each line break ended a sentence, so fragments got roles."""
    text = (
        "Metformin lowers the risk of hepatic steatosis in women with polycystic ovary syndrome. We asked "
        "whether "
        "it lowers alanine aminotransferase, too, e.g. by way of AMPK. In 40 women, Lithium harmed the "
        "kidneys, as "
        "found by Smith et al. in 2001. p53 was mutated. Growth of E. coli fell by 40% (P<0.01) in both arms."
    )
    wrapped = line_break.join(textwrap.wrap(text, width, break_on_hyphens=False))
    assert len(split(text)) == 5
    assert [" ".join(sentence.split()) for sentence in split(wrapped)] == split(text)


def test_a_wrapped_line_may_go_on_with_a_capital():
    assert len(split("We studied forty women of the wards who were given\nLithium.")) == 1
    assert split("It was so.\nWe gave rats\nLithium and saw it.") == [
        "It was so.",
        "We gave rats\nLithium and saw it.",
    ]
    assert len(split("Lithium in women of the ward\nAspirin in men of the other wards in the town")) == 2


def test_line_breaks_that_were_meant_end_a_sentence():
    assert split("METHODS\r\nwe did\n\n\tmore ") == ["METHODS", "we did", "more"]
    assert split("A title without a stop\nWe did it\nquickly.\nwe saw.\nConclusions\nAll is well.") == [
        "A title without a stop",
        "We did it\nquickly.",
        "we saw.",
        "Conclusions",
        "All is well.",
    ]
    assert split("We gave\n- aspirin\n- naloxone, and\n1. lithium") == [
        "We gave",
        "- aspirin",
        "- naloxone, and",
        "1. lithium",
    ]
    assert split("Aspirin\nIbuprofen\nNaproxen") == ["Aspirin", "Ibuprofen", "Naproxen"]
    assert split("") == split(" \n ") == []


@pytest.mark.parametrize(
    "line",
    [
        "a\n" * 100_000,
        "A. " * 60_000,
        "a.(1" + "1" * 200_000,
        "a.1" + ",1" * 100_000,
        "." * 200_000,
        ".)" * 100_000,
        "a." + " " * 200_000,
        "! (" + "(" * 200_000,
    ],
)
def test_long_runs_of_stops_and_brackets_come_to_an_end(line):
    """Tried from every stop in turn, 20,000 of them took 16 seconds and 200,000 half an hour."""
    assert len(sentence_spans(line)) <= 2 + line.count("A. ")


@given(st.text(st.sampled_from("aB. \n\r\t?!()[],:-1¹\U0001f9ecα\u0301"), max_size=60))
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
