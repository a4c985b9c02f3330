"""Texts from files, and what is said of files that hold none."""

import json

import pytest

from biogpt.documents import Document, read_documents, read_pubtator

PUBTATOR = (
    "17|t|Naloxone in rats.\n17|a|It reversed hypotension, severe hypotension.\n"
    "17\t0\t8\tNaloxone\tChemical\tD1\n17\t30\t41\thypotension\tDisease\tD2\n"
    "17\t43\t61\tsevere hypotension\tDisease\tD2\n17\t50\t61\thypotension\tDisease\tD2\n17\tCID\tD1\tD2\n\n"
    "18|t|Second\n18|a|\n"
)


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def texts(path):
    return [document.text for document in read_documents(path)]


def test_lines_of_a_text_file_with_a_mark_and_windows_line_ends(file):
    path = file("a.txt", b"\xef\xbb\xbf" + "α one \U0001f9ec\r\n\r\n two\r\n".encode())
    assert read_documents(path) == [Document("1", "α one \U0001f9ec"), Document("2", " two")]


def test_columns_of_a_table(file):
    assert read_documents(file("a.csv", 'pmid,Text\r\n7,"a, ""b""\nc"\r\n')) == [Document("7", 'a, "b"\nc')]
    assert texts(file("a.tsv", "title\tabstract\nT.\tA.\n")) == ["T. A."]
    long = "x" * 200_000
    assert texts(file("b.csv", f"text\n{long}\n")) == [long]


def test_objects(file):
    lines = '{"id": 5, "text": "a\\u2028b"}\n\n{"text": "c"}\n'
    assert read_documents(file("a.jsonl", lines)) == [Document("5", "a\u2028b"), Document("2", "c")]
    assert texts(file("a.json", json.dumps([{"text": "a"}, {"text": "b"}]))) == ["a", "b"]


def test_ids_used_twice_are_told_apart(file):
    path = file("a.csv", "id,text\n1,a\n1,b\n1-2,c\n,d\n")
    ids = [document.id for document in read_documents(path)]
    assert ids[:2] == ["1", "1-2"]
    assert len(set(ids)) == 4


def test_pubtator_by_its_content(file):
    path = file("a.txt", PUBTATOR)
    assert texts(path)[0] == "Naloxone in rats. It reversed hypotension, severe hypotension."
    (document, entities), (_, none) = read_pubtator(path)
    assert [(kind, document.text[start:end]) for start, end, _, kind in entities] == [
        ("Chemical", "Naloxone"),
        ("Disease", "hypotension"),
        ("Disease", "severe hypotension"),  # the one inside it is left out
    ]
    assert none == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ok\n\xff\xfe", "byte 3 is 0xff"),
        ("a.txt", "", "is empty"),
        ("a.txt", " \r\n", "is empty"),
        ("a.csv", "name,age\nx,3\n", "has the columns name, age"),
        ("a.csv", "text\n\n", "holds no text"),
        ("a.jsonl", '{"text": "a"}\nnope\n', "line 2: not JSON"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', "line 2: expected"),
        ("a.json", '{"a"', "not JSON"),
        ("a.docx", "x", "unknown kind"),
        ("a.pubtator", "1|t|x\n1|a|y\nhello\n", "line 3: 'hello' is not PubTator"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(file, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_documents(file(name, content))


def test_an_entity_that_is_not_where_the_file_says(file):
    wrong = PUBTATOR.replace("17\t0\t8", "17\t1\t9")
    with pytest.raises(ValueError, match="'Naloxone' was expected at 1 to 9; there is 'aloxone '"):
        read_pubtator(file("a.txt", wrong))


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_the_bc5cdr_abstracts_all_load(shared_data, split):
    abstracts = read_pubtator(shared_data / f"ner/bc5cdr/pubtator/{split}.PubTator.txt")
    assert len(abstracts) == 500
    for document, entities in abstracts:
        assert all(document.text[start:end] == mention for start, end, mention, _ in entities)
