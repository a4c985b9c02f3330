"""Results as files, each read back by a reader that is not ours."""

import csv
import io
import json
import re
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biogpt import Classification, Entity, LabelScore, SentenceLabel
from biogpt.text.documents import Document
from biogpt.text.export import CLASS_FORMATS, ENTITY_FORMATS, classes_as, entities_as, sentences_as

# Astral characters, a combining accent, a tab, Windows line ends, an entity over a line break, a formula.
TEXT = "\U0001f9ec Café-au-lait spots,\r\n\tinterleukin\r\n2. =1+1 and α-synuclein."


def entity(text, mention, label, score=0.25, after=0):
    start = text.index(mention, after)
    return Entity(label, start, start + len(mention), mention, score)


ENTITIES = [
    entity(TEXT, "Café-au-lait spots", "Disease"),
    entity(TEXT, "interleukin\r\n2", "Gene"),
    entity(TEXT, "=1+1", "Chemical", 1 / 3),
    entity(TEXT, "α-synuclein", "Gene or protein"),
]
DOCUMENTS = [Document("12", TEXT), Document("=cmd|' /C'", "nothing here")]
RESULTS = [ENTITIES, []]


def export(kind):
    return entities_as(kind, DOCUMENTS, RESULTS)


def test_json_and_its_lines_hold_texts_and_offsets():
    whole = json.loads(export("json"))
    assert whole == [json.loads(line) for line in export("jsonl").decode().split("\n") if line]
    assert [one["id"] for one in whole] == ["12", "=cmd|' /C'"]
    for found, given_ in zip(whole[0]["entities"], ENTITIES, strict=True):
        assert whole[0]["text"][found["start"] : found["end"]] == found["text"] == given_.text
        assert found["label"] == given_.label
        assert found["score"] == pytest.approx(given_.score, abs=1e-6)


def test_csv_keeps_offsets_as_numbers_and_runs_no_formula():
    rows = list(csv.DictReader(io.StringIO(export("csv").decode(), newline="")))
    assert [row["label"] for row in rows] == [each.label for each in ENTITIES]
    assert [(int(row["start"]), int(row["end"])) for row in rows] == [(e.start, e.end) for e in ENTITIES]
    assert rows[2]["text"] == "'=1+1"
    assert rows[1]["text"] == "interleukin\r\n2"
    risky = [Document(start + "x", "a") for start in "=+-@\t\r"]
    cells = entities_as("csv", risky, [[Entity("X", 0, 1, "a", 1.0)]] * len(risky)).decode()
    ids = [row["id"] for row in csv.DictReader(io.StringIO(cells, newline=""))]
    assert all(cell.startswith("'") for cell in ids)
    assert len(ids) == 6


def read_brat(data):
    """A reader by the format's description, written apart from the exporter."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        contents = {name: archive.read(name).decode() for name in archive.namelist()}
    for name in sorted(name for name in contents if name.endswith(".ann")):
        text, found = contents[name[:-4] + ".txt"], []
        for line in contents[name].split("\n")[:-1]:
            key, place, mention = line.split("\t")
            assert re.fullmatch(r"T\d+", key)
            label, _, spans = place.partition(" ")
            parts = [tuple(map(int, part.split(" "))) for part in spans.split(";")]
            covered = " ".join(text[start:end] for start, end in parts)
            assert re.sub(r"\s", " ", covered) == re.sub(r"\s", " ", mention)
            found.append((label, parts[0][0], parts[-1][1]))
        yield name, text, found


def test_brat_offsets_point_at_the_text():
    by_name = {name: (text, found) for name, text, found in read_brat(export("brat"))}
    text, found = by_name["12.ann"]
    assert text == TEXT
    assert found == [(e.label.replace(" ", "_"), e.start, e.end) for e in ENTITIES]
    assert len(by_name) == 2


def test_brat_names_are_safe_and_differ():
    ids = ["../../x", "x", "X", "", "con", "a/b", "a\\b", ".", "ü" * 200]
    documents = [Document(key, key) for key in ids]
    names = [name for name, _, _ in read_brat(entities_as("brat", documents, [[]] * len(ids)))]
    assert len({name.lower() for name in names}) == len(ids)
    assert all(re.fullmatch(r"\w[\w.-]{0,90}", name) for name in names)
    assert "con.ann" not in names


def read_pubtator_elsewhere(data):
    for block in data.decode().strip("\n").split("\n\n"):
        lines = block.split("\n")
        title, abstract = (line.split("|", 2)[2] for line in lines[:2])
        yield title + " " + abstract, [line.split("\t") for line in lines[2:]]


def test_pubtator_offsets_point_at_title_and_abstract():
    (text, rows), (second, none) = read_pubtator_elsewhere(export("pubtator"))
    assert [text[int(row[1]) : int(row[2])] for row in rows] == [row[3] for row in rows]
    assert [(int(row[1]), int(row[2]), row[4]) for row in rows] == [
        (e.start, e.end, e.label) for e in ENTITIES
    ]
    assert (second.strip(), none) == ("nothing here", [])


@given(st.text(max_size=50), st.data())
def test_any_text_keeps_its_offsets_in_every_format(text, data):
    if not text.strip():
        return
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    if text[start:end].strip() != text[start:end]:
        return
    document = [Document("1", text)]
    found = [[Entity("X", start, end, text[start:end], 0.5)]]
    row = json.loads(entities_as("json", document, found))[0]
    assert row["text"][row["entities"][0]["start"] : row["entities"][0]["end"]] == row["entities"][0]["text"]
    ((whole, rows),) = read_pubtator_elsewhere(entities_as("pubtator", document, found))
    assert whole[int(rows[0][1]) : int(rows[0][2])] == rows[0][3]
    ((_, _, placed),) = read_brat(entities_as("brat", document, found))
    assert placed == [("X", start, end)]


def test_half_of_a_surrogate_pair_keeps_its_place():
    documents = [Document("1", "a\ud83d b")]
    found = [[Entity("X", 3, 4, "b", 0.5)]]
    for kind in ENTITY_FORMATS:
        assert entities_as(kind, documents, found)
    assert json.loads(entities_as("json", documents, found))[0]["text"][3] == "b"


def test_classes_and_sentences():
    documents = [Document("1", "One. Two.")]
    result = Classification([LabelScore("a", 0.75), LabelScore("b", 0.25)], cut=3)
    sentences = [SentenceLabel("A", 0, 4, 0.5), SentenceLabel("B", 5, 9, 0.5)]
    row = json.loads(classes_as("json", documents, [result]))[0]
    assert row["labels"] == [{"label": "a", "score": 0.75}, {"label": "b", "score": 0.25}]
    assert row["tokens_not_read"] == 3
    row = json.loads(sentences_as("jsonl", documents, [sentences]))
    assert [one["text"] for one in row["sentences"]] == ["One.", "Two."]
    assert classes_as("csv", documents, [result]).decode().split() == [
        "id,label,score",
        "1,a,0.75",
        "1,b,0.25",
    ]
    assert sentences_as("csv", documents, [sentences]).decode().split()[1:] == [
        "1,One.,A,0,4,0.5",
        "1,Two.,B,5,9,0.5",
    ]


def test_wrong_formats_and_counts_are_refused():
    with pytest.raises(
        ValueError, match="format is 'xml'; expected one of json, jsonl, csv, brat, conll, pubtator"
    ):
        entities_as("xml", DOCUMENTS, RESULTS)
    with pytest.raises(ValueError, match="expected one of json, jsonl, csv"):
        classes_as("brat", [], [])
    with pytest.raises(ValueError, match="1 results were given for 2 documents"):
        entities_as("json", DOCUMENTS, RESULTS[:1])
    assert set(CLASS_FORMATS) <= set(ENTITY_FORMATS)
