"""Readers of labelled text: tag schemes, offsets, messages, and the real corpora against their table."""

import json
import re

import pytest

from biogpt.text.documents import read_documents
from biogpt.training.labelled import (
    GoldSpan,
    LabelledText,
    TaggedSentence,
    read_conll,
    read_labelled,
    read_sections,
    read_tagged_jsonl,
    tag_spans,
)


@pytest.fixture
def file(tmp_path):
    def write(content, name="a.tsv"):
        path = tmp_path / name
        path.write_bytes(content.encode())
        return path

    return write


def conll(tags):
    return "".join(f"w{number} NN {tag}\n" for number, tag in enumerate(tags.split()))


@pytest.mark.parametrize(
    "tags",
    ["O B-X I-X B-X O B-Y", "O B-X E-X S-X O S-Y", "O B-X L-X U-X O U-Y", "O I-X I-X B-X O I-Y"],
    ids=["BIO", "IOBES", "BILOU", "IOB1"],
)
def test_every_scheme_becomes_bio(file, tags):
    (sentence,) = read_conll(file(conll(tags)))
    assert sentence.tags == ("O", "B-X", "I-X", "B-X", "O", "B-Y")


def test_sentences_end_at_empty_lines_and_marks_are_skipped(file):
    path = file("-DOCSTART- -X- O\r\n\r\nS\tB-G\r\n-\tI-G\r\n\r\n\r\nso\tO\r\n")
    assert [sentence.tokens for sentence in read_conll(path)] == [("S", "-"), ("so",)]


def test_a_type_that_changes_within_begins_an_entity():
    assert tag_spans(["I-X", "I-Y", "O", "I-Y", "B-Y"]) == [
        (0, 1, "X"),
        (1, 2, "Y"),
        (3, 4, "Y"),
        (4, 5, "Y"),
    ]


def test_text_with_spaces_and_as_prose():
    tokens = ["(", "S", "-", "100", ")", ",", "Parkinson", "'", "s", "disease", "."]
    tags = ["O", "B-G", "I-G", "I-G", "O", "O", "B-D", "I-D", "I-D", "I-D", "O"]
    sentence = TaggedSentence(tuple(tokens), tuple(tags))
    spaced, prose = sentence.as_text(), sentence.as_text(natural=True)
    assert spaced.text == " ".join(tokens)
    assert prose.text == "(S-100), Parkinson's disease."
    assert [prose.text[s.start : s.end] for s in prose.spans] == ["S-100", "Parkinson's disease"]
    assert [spaced.text[s.start : s.end] for s in spaced.spans] == ["S - 100", "Parkinson ' s disease"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("a O\nb\n", "line 2: 'b' has no tag"),
        ("a X-Y\n", "line 1: 'a X-Y' has no tag"),
        (" \tB-X\n", "line 1"),
    ],
)
def test_malformed_conll_names_the_line(file, content, message):
    with pytest.raises(ValueError, match=message):
        read_conll(file(content))


def test_entities_as_json_lines(file):
    line = '{"text": "BRCA1 \\ud83e\\uddec", "entities": [{"start": 0, "end": 5, "label": "Gene"}]}\n'
    (text,) = read_tagged_jsonl(file(line, "a.jsonl"))
    assert text.spans == (GoldSpan(0, 5, "Gene"),)
    with pytest.raises(ValueError, match="line 1: Gene at 0 to 50"):
        read_tagged_jsonl(file(line.replace("5,", "50,"), "b.jsonl"))
    with pytest.raises(ValueError, match='line 1: expected "entities"'):
        read_tagged_jsonl(file('{"text": "a"}', "c.jsonl"))


def test_labels_of_texts(file):
    assert read_labelled(file("7\ta|b\tone\n8\tnone\ttwo\n")) == [
        LabelledText("one", ("a", "b")),
        LabelledText("two", ()),
    ]
    assert read_labelled(file("text\tx\tlabel\none\t-\ta\n"), "text", "label") == [
        LabelledText("one", ("a",))
    ]
    assert read_labelled(file("one\ta\n"), "1", "2") == [LabelledText("one", ("a",))]
    lines = '{"text": "one", "label": "a"}\n{"text": "two", "labels": []}\n'
    assert read_labelled(file(lines, "a.jsonl")) == [LabelledText("one", ("a",)), LabelledText("two", ())]


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("a\tone\nb\n", (), "line 2: 'b' lacks"),
        ("a\t \n", (), "line 1"),
        ("x\ty\n", ("text", "label"), "has the columns x, y; expected label, text"),
    ],
)
def test_malformed_labels_name_the_line(file, content, columns, message):
    with pytest.raises(ValueError, match=message):
        read_labelled(file(content), *columns)


def test_sections(file):
    one, two = read_sections(file("###1\nA\tx.\nB\ty.\n\n###2\nA\tz.\n"))
    assert (one.sentences, one.labels, two.labels) == (("x.", "y."), ("A", "B"), ("A",))
    (padded,) = read_sections(file("###1\nA \t x.\nA\ty.\n"))
    assert padded.labels == ("A", "A"), "a space would make a class of its own"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("###1\noops\n", "line 2: 'oops'"),
        ("###1\n\tx.\n", "line 2: 'x.'"),
        ("A\tx.\n###1\nA\ty.\n", "line 1: .*expected ###id"),
    ],
)
def test_malformed_sections_name_the_line(file, content, message):
    with pytest.raises(ValueError, match=message):
        read_sections(file(content))


@pytest.mark.parametrize(
    ("name", "sentences", "entities"),
    [
        ("ncbi-disease/train", 5424, {"Disease": 5134}),
        ("bc5cdr/dev", 4581, {"Chemical": 5347, "Disease": 4246}),
        ("bc2gm/test", 5038, {"GENE": 6325}),
        ("linnaeus/dev", 4078, {"Species": 711}),
        (
            "jnlpba/test",
            3856,
            {"DNA": 1056, "RNA": 118, "cell_line": 500, "cell_type": 1921, "protein": 5067},
        ),
    ],
)
def test_the_corpora_hold_what_their_table_says(shared_data, name, sentences, entities):
    read = read_conll(shared_data / f"ner/{name}.tsv")
    spans = [span for sentence in read for span in sentence.as_text(natural=True).spans]
    assert len(read) == sentences
    assert {kind: sum(span.label == kind for span in spans) for kind in entities} == entities
    assert len(spans) == sum(entities.values())


def test_the_classified_corpora_hold_what_their_table_says(shared_data):
    folder = shared_data / "classification"
    assert len(read_labelled(folder / "hoc-document/test.tsv")) == 366
    assert len(read_labelled(folder / "hoc-sentence/test.tsv", "1", "2", none_label="empty")) == 4947
    abstracts = read_sections(folder / "rct-sections/dev.txt")
    assert (len(abstracts), sum(len(a.sentences) for a in abstracts)) == (206, 2673)
    assert len(read_sections(folder / "nicta-piboso/test.txt")) == 200


def test_an_end_ends_even_where_an_inside_follows():
    assert tag_spans(["S-D", "I-D", "B-D", "E-D", "I-D"]) == [
        (0, 1, "D"),
        (1, 2, "D"),
        (2, 4, "D"),
        (4, 5, "D"),
    ]


def test_a_conll_file_without_sentences_is_refused(file):
    with pytest.raises(ValueError, match="holds no sentence"):
        read_conll(file("-DOCSTART- O\n\n", "a.conll"))


def test_a_token_with_a_no_break_space_stays_whole(file):
    (sentence,) = read_conll(file("5\u00a0mg\tO\nflu\tB-D\n", "a.conll"))
    assert sentence.tokens == ("5\u00a0mg", "flu")


@pytest.mark.parametrize(
    "line",
    [
        '{"entities": []}',
        '{"text": "flu", "entities": [{"start": 0.5, "end": 2, "label": "D"}]}',
        '{"text": "flu", "entities": [{"start": 0, "end": 2, "label": ""}]}',
    ],
)
def test_no_entity_or_text_is_made_up(file, line):
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1"):
        read_tagged_jsonl(file(line, "a.jsonl"))


BOTH = [LabelledText("One text.", ("a", "b c")), LabelledText('"Two" texts.', ())]


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("a.tsv", 'Label\tText\na | b c\tOne text.\nnone\t"Two" texts.\n', ()),
        ("a.tsv", 'One text.\ta|b c\n"Two" texts.\tnone\n', (1, 2)),
        ("a.csv", 'text,label\nOne text.,a|b c\n"""Two"" texts.",none\n', ("text", "label")),
    ],
)
def test_headers_numbers_and_commas(file, name, content, columns):
    """A header read as an example would teach the head a label called "label"."""
    assert read_labelled(file(content, name), *columns) == BOTH


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("a.tsv", "a||b\tx\n", ()),
        ("a.tsv", "a\tx\n", ("0", "1")),
        ("a.tsv", "label\ttext\n", ("text", "label")),
        ("a.jsonl", '{"text": "x", "labels": [null]}\n', ()),
    ],
)
def test_no_label_is_made_up(file, name, content, columns):
    with pytest.raises(ValueError, match=r"a\.|column 0"):
        read_labelled(file(content, name), *columns)


@pytest.mark.parametrize("space", ["\u00a0", "\u2009", "\u2028", "\u0085", "\u3000"])
@pytest.mark.parametrize("separator", [" ", "\t", "  "])
def test_other_white_space_belongs_to_the_token(file, space, separator):
    """Cut there, "5 mg" lost its unit, and the tag of its line went to "5"."""
    lines = [(f"5{space}mg", "O"), ("of", "O"), ("aspirin", "B-Chemical")]
    path = file("".join(f"{token}{separator}{tag}\n" for token, tag in lines), "a.conll")
    (sentence,) = read_conll(path)
    assert sentence.tokens == (f"5{space}mg", "of", "aspirin")
    assert sentence.tags == ("O", "O", "B-Chemical")


@pytest.mark.parametrize(
    "numbers",
    [("1 2 3", "1 2"), ("0 1 2", "0 1"), ("1 2 3", "4 5")],
    ids=["from 1", "from 0", "on through the file"],
)
def test_a_first_column_that_counts_is_not_the_tokens(file, numbers):
    words = (["aspirin", "harmed", "rats"], ["We", "agreed"])
    content = "\n\n".join(
        "\n".join(f"{number} {word} NN O" for number, word in zip(line.split(), sentence, strict=True))
        for line, sentence in zip(numbers, words, strict=True)
    )
    assert [list(sentence.tokens) for sentence in read_conll(file(content, "a.conll"))] == list(words)


def test_numbers_that_do_not_count_are_refused_or_tokens(file):
    with pytest.raises(ValueError, match=r"a\.conll has numbers in its first column that do not count"):
        read_conll(file("1-2 del NN O\n1 de NN O\n2 el NN O\n", "a.conll"))
    assert read_conll(file("1 O\n2 O\n", "a.conll"))[0].tokens == ("1", "2")
    assert read_conll(file("1 NN O\naspirin NN O\n", "a.conll"))[0].tokens == ("1", "aspirin")


@pytest.mark.parametrize(
    ("spans", "right"),
    [([(0, 9), (18, 29)], [(0, 8), (18, 29)]), ([(0, 8), (17, 30)], [(0, 8), (18, 29)])],
    ids=["after", "before and after"],
)
def test_white_space_at_the_edges_of_gold_spans_is_left_out(file, caplog, spans, right):
    """No word has it, so such a span could never be found: F1 0.5 for a perfect tagger."""
    caplog.set_level("INFO")
    text = "Naloxone\nreversed hypotension\u00a0in rats."
    entities = [{"start": start, "end": end, "label": "X"} for start, end in spans]
    (tagged,) = read_tagged_jsonl(file(json.dumps({"text": text, "entities": entities}), "a.jsonl"))
    assert [(span.start, span.end) for span in tagged.spans] == right
    assert "a.jsonl: 1 entities had white space at an edge" in caplog.text
    entities = [{"start": 8, "end": 9, "label": "X"}]
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1: the entity at 8 to 9 is only white space"):
        read_tagged_jsonl(file(json.dumps({"text": text, "entities": entities}), "b.jsonl"))


def test_classes_may_be_numbers(file):
    content = '{"text": "x", "label": 0}\n{"text": "y", "labels": [1, 2]}\n'
    read = read_labelled(file(content, "a.jsonl"))
    assert read == [LabelledText("x", ("0",)), LabelledText("y", ("1", "2"))]


def test_sections_without_sentences_are_refused(file):
    with pytest.raises(ValueError, match="holds no sentence"):
        read_sections(file("###1\n\n###2\n", "a.txt"))


@pytest.mark.parametrize(
    "prose",
    [
        "P = 0.05 at 1:10 of 1,000",
        "12 +/- 3 mg",
        "in 1999, 200 mice",
        "both lines' cells",
        "the 5' end",
        "aged 3, 4 or 5",
    ],
)
def test_numbers_and_apostrophes_are_joined_as_prose_is_written(prose):
    tokens = tuple(re.findall(r"\w+|\S", prose))
    assert TaggedSentence(tokens, ("O",) * len(tokens)).as_text(natural=True).text == prose


def test_most_sentences_are_joined_as_their_authors_wrote_them(shared_data):
    folder = shared_data / "ner" / "bc5cdr"
    abstracts = " ".join(
        document.text for document in read_documents(folder / "pubtator" / "dev.PubTator.txt")
    )
    sentences = read_conll(folder / "dev.tsv")
    exact = sum(sentence.as_text(natural=True).text in abstracts for sentence in sentences)
    assert exact / len(sentences) > 0.88
