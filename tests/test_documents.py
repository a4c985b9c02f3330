"""Texts from files, and what is said of files that hold none."""

import json

import pytest

from biogpt.text.documents import Document, read_documents, read_pubtator

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


def test_lines_that_show_nothing_are_no_texts(file):
    blank = "\u200b\u00ad \u0301"
    assert read_documents(file("a.txt", f"a\n{blank}\nb\n")) == [Document("1", "a"), Document("2", "b")]
    assert texts(file("a.csv", f"id,text\n1,a\n2,{blank}\n{blank},{blank}\n")) == ["a"]
    assert texts(file("a.tsv", f"id\ttext\n1\ta\n{blank}\n2\t{blank}\n")) == ["a"]
    assert texts(file("a.jsonl", f'{{"text": "a"}}\n{{"text": "{blank}"}}\n')) == ["a"]
    assert texts(file("a.pubtator", f"1|t|a\n1|a|b\n{blank}\n2|t|c\n")) == ["a b", "c"]
    assert texts(file("a.ris", f"TY  - JOUR\nTI  - {blank}\nER  - \nTY  - JOUR\nTI  - a\nER  - \n")) == ["a"]
    with pytest.raises(ValueError, match=r"a\.txt holds no text"):
        read_documents(file("a.txt", f"{blank}\n{blank}\n"))


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


def test_of_overlapping_entities_the_longer_is_kept_and_of_equally_long_ones_the_first(file):
    """Neither the first in the file, nor the first in the text: both would keep "lung cancer" here."""
    text = "lung cancer cell line of mice"
    spans = [(0, 11), (5, 21), (17, 21), (22, 29), (17, 24)]
    rows = [f"1\t{start}\t{end}\t{text[start:end]}\tX{number}" for number, (start, end) in enumerate(spans)]
    ((_, entities),) = read_pubtator(file("a.txt", "\n".join([f"1|t|{text}", *rows])))
    assert [(kind, mention) for _, _, mention, kind in entities] == [
        ("X1", "cancer cell line"),
        ("X3", "of mice"),
    ]
    rows = ["1\t0\t11\tlung cancer\tlater", "1\t5\t16\tcancer cell\tlater", "1\t0\t11\tlung cancer\tfirst"]
    ((_, entities),) = read_pubtator(file("a.txt", "\n".join([f"1|t|{text}", *rows])))
    assert [(start, end) for start, end, _, _ in entities] == [(0, 11)]


def test_an_entity_of_several_parts_is_read_from_its_first_to_its_last_character(file, caplog):
    """Lines whose start is no plain number were taken for relations, and lost."""
    caplog.set_level("INFO")
    for places in ("0;19\t6;25", "0,19\t6,25"):
        path = file("a.txt", f"1|t|Breast and ovarian cancer.\n1\t{places}\tBreast cancer\tDisease\n")
        ((_, entities),) = read_pubtator(path)
        assert entities == [(0, 25, "Breast and ovarian cancer", "Disease")]
        assert "a.txt: 1 entities of several parts" in caplog.text
        with pytest.raises(ValueError, match=r"a\.txt, line 2: 'Breast cancer' has 2 parts"):
            read_pubtator(path, discontinuous=False)


@pytest.mark.parametrize(
    "line",
    [
        "1\t-1\t6\tBreast\tX",
        "1\t0.0\t6.0\tBreast\tX",
        "1\t 0\t6\tBreast\tX",
        "1\tT1\tX\t0\t6\tBreast",
        "1\t0;7\t6\tBreast\tX",
        "1\t7;0\t10;6\tand Breast\tX",
        "1\t0;4\t6;10\tBreast and\tX",
        "1\t\t6\tBreast\tX",
        "1\t٠\t6\tBreast\tX",
        "1\t0\t60\tBreast and ovarian cancer.\tX",
        "1\tT1\tX",
    ],
)
def test_a_pubtator_line_without_plain_places_is_refused_not_dropped(file, line):
    path = file("a.txt", f"1|t|Breast and ovarian cancer.\n{line}\n1\tCID\tD1\tD2\n1\tBind\t1\t2\tNovel\n")
    with pytest.raises(ValueError, match=r"a\.txt, line 2"):
        read_pubtator(path)
    assert texts(path) == ["Breast and ovarian cancer."]


def test_white_space_at_the_edges_of_a_pubtator_entity_is_left_out(file, caplog):
    caplog.set_level("INFO")
    path = file("a.txt", "1|t|Naloxone works.\n1\t0\t9\tNaloxone \tX\n")
    ((_, entities),) = read_pubtator(path)
    assert entities == [(0, 8, "Naloxone", "X")]
    assert "a.txt: 1 entities had white space at an edge" in caplog.text
    with pytest.raises(ValueError, match="line 2: the entity at 8 to 9 is only white space"):
        read_pubtator(file("b.txt", "1|t|Naloxone works.\n1\t8\t9\t \tX\n"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_with_the_marks_of_pubtator_in_its_text_stays_json(file, name):
    assert texts(file(name, '{"text": "x|t|y"}')) == ["x|t|y"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ok\n\xff\xfe", "byte 3 .line 2. is 0xff"),
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


def test_a_quotation_mark_in_a_tsv_swallows_no_lines(file):
    """Read as quoting, the mark that opens line 3 would take line 4 into its cell, and close there."""
    path = file("a.tsv", 'id\ttext\n1\t"Aspirin" works\n2\t"We saw this.\n3\tAnd that."\n')
    assert texts(path) == ['"Aspirin" works', '"We saw this.', 'And that."']
    path = file("b.tsv", 'id\ttext\n2\t"We saw this.\n3\tAnd that."\n')
    assert texts(path) == ['"We saw this.', 'And that."']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\nAspirin, a drug\n", "line 2: 2 cells, but 1 columns"),
        ("id,text\n1,a\n2\n", "line 3: 1 cells, but 2 columns"),
        ('id,text\n1,a\n2,"b\n3,c\n', "line 3: unexpected end of data"),
        ("id;text\n1;a\n", "has the columns id;text; expected one of text, abstract, sentence"),
    ],
)
def test_a_row_of_a_csv_is_never_cut_or_dropped(file, content, message):
    with pytest.raises(ValueError, match=message):
        read_documents(file("a.csv", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"\xef\xbb\xbfab\xff",
            "byte 5 .line 1. is 0xff",
        ),  # counted from the start of the file, mark included
        ("text".encode("utf-16-le"), "byte 1 .line 1. is 0x00"),  # valid UTF-8, full of zeros
        (
            b'{"text": "a\\ud83db"}',
            "half of a surrogate pair",
        ),  # could not be written to a result file
    ],
)
def test_what_no_utf8_file_can_hold_is_refused(file, content, message):
    with pytest.raises(ValueError, match=message):
        read_documents(file("a.jsonl", content))


def test_texts_are_read_whatever_the_entities(file):
    """To tag a file anew, its old annotations need not be right."""
    path = file("a.txt", "1|t|Aspirin.\n1\t1\t8\tAspirin\tChemical\n")
    assert texts(path) == ["Aspirin."]


def test_a_pubtator_id_used_twice_loses_no_text(file):
    path = file("a.txt", "1|t|One.\n1|a|A.\n1\t0\t3\tOne\tX\n\n1|t|Two.\n1|a|B.\n1\t0\t3\tTwo\tX\n")
    assert read_pubtator(path) == [
        (Document("1", "One. A."), [(0, 3, "One", "X")]),
        (Document("1-2", "Two. B."), [(0, 3, "Two", "X")]),
    ]


@pytest.mark.parametrize("line", ["1\t0\t0\t\tX", "1\t0\t3\tOne", "2\t0\t3\tOne\tX", "nonsense"])
def test_a_malformed_pubtator_line_is_named(file, line):
    path = file("a.txt", f"1|t|One.\n1|a|A.\n{line}\n")
    with pytest.raises(ValueError, match="line 3"):
        read_pubtator(path)
