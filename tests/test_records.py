"""Records of bibliographies, whatever the file is called, and what is said of structures that are not
read."""

import json

import pytest

from biogpt.text.documents import Document, read_documents

MEDLINE = """
PMID- 90000001
OWN - NLM
STAT- MEDLINE
DP  - 2021 Mar
TI  - Metformin lowers the risk of hepatic steatosis in women with polycystic ovary¬
      syndrome.
PG  - 11-19
AB  - BACKGROUND: Hepatic steatosis is common.
      RESULTS: Metformin lowered it
      in 40 women. TNF - a cytokine - fell.
OAB - Autre resume.
FAU - Example, Ann
SO  - J Example. 2021 Mar;1(1):11-19.

PMID- 90000002
OWN - NLM
TI  - Lithium and renal function.
AU  - Sample B

PMID- 90000003
AU  - Nobody
""".replace("¬", " ")
RIS = """TY  - JOUR
T1  - Lithium and
the kidney
AB  - Lithium harmed kidneys.
AN  - 7
ER  -¬

TY  - JOUR
TI  - Second.
N2  - Its abstract.
ER  -¬
""".replace("¬", " ")
WEB_OF_SCIENCE = """FN Clarivate Analytics Web of Science
VR 1.0
PT J
AU Sample, B
TI Lithium and the
   kidney
AB Lithium harmed kidneys.
UT WOS:1
ER

PT J
TI Second.
PM 8
ER
EF
"""
ENDNOTE = """%0 Journal Article
%T Lithium and the kidney
%X Lithium harmed
kidneys.
%M 9

%0 Book
%T Second.
"""
XML = """<?xml version="1.0" ?>
<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2019//EN" "x.dtd">
<PubmedArticleSet>
<PubmedArticle><MedlineCitation><PMID Version="1">90000001</PMID><Article>
<ArticleTitle>Role of <i>TP53</i> &amp; Na<sup>+</sup> in &#x3b2;-cells.</ArticleTitle>
<Abstract><AbstractText Label="AIM">We asked.</AbstractText><AbstractText>We
 saw.</AbstractText></Abstract></Article>
<OtherAbstract><AbstractText>Autre.</AbstractText></OtherAbstract>
<CommentsCorrectionsList><CommentsCorrections><PMID>1</PMID></CommentsCorrections></CommentsCorrectionsList>
</MedlineCitation></PubmedArticle>
<PubmedArticle><AbstractText>Lithium harmed kidneys.</AbstractText></PubmedArticle>
<PubmedBookArticle><BookDocument><PMID>3</PMID><Book><BookTitle>A book.</BookTitle></Book></BookDocument>
</PubmedBookArticle>
</PubmedArticleSet>
"""


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode())
        return path

    return write


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("ending", ["txt", "nbib", "medline"])
def test_medline(file, ending, end):
    assert read_documents(file(f"a.{ending}", MEDLINE.replace("\n", end))) == [
        Document(
            "90000001",
            "Metformin lowers the risk of hepatic steatosis in women with polycystic ovary syndrome. "
            "BACKGROUND: "
            "Hepatic steatosis is common. RESULTS: Metformin lowered it in 40 women. TNF - a cytokine - "
            "fell.",
        ),
        Document("90000002", "Lithium and renal function."),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("ending", "content", "ids"),
    [("ris", RIS, ["7", "2"]), ("ciw", WEB_OF_SCIENCE, ["WOS:1", "8"]), ("enw", ENDNOTE, ["9", "2"])],
)
def test_ris_web_of_science_and_endnote(file, ending, content, ids, end):
    for name in (f"a.{ending}", "a.txt"):
        one, two = read_documents(file(name, content.replace("\n", end)))
        assert one == Document(ids[0], "Lithium and the kidney Lithium harmed kidneys.")
        assert (two.id, two.text.split(".")[0]) == (ids[1], "Second")


@pytest.mark.parametrize("ending", ["txt", "xml"])
def test_the_xml_of_pubmed(file, ending):
    assert read_documents(file(f"a.{ending}", XML)) == [
        Document("90000001", "Role of TP53 & Na+ in β-cells. AIM: We asked. We saw."),
        Document("2", "Lithium harmed kidneys."),
        Document("3", "A book."),
    ]


def test_xml_that_grows_or_is_broken_is_refused(file):
    """Ten entities of ten each make a gigabyte of a kilobyte."""
    bomb = "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9))
    declared = f'<?xml version="1.0"?>\n<!DOCTYPE x [<!ENTITY a0 "ha">{bomb}]>\n'
    with pytest.raises(ValueError, match=r"a\.xml, line 2: the entity a0"):
        read_documents(
            file("a.xml", declared + "<PubmedArticle><ArticleTitle>&a9;</ArticleTitle></PubmedArticle>")
        )
    with pytest.raises(ValueError, match=r"a\.xml, line 6: the entity alpha"):
        read_documents(file("a.xml", XML.replace("AIM", "x").replace("We asked", "&alpha;")))
    with pytest.raises(ValueError, match=r"a\.xml, line 5: no well-formed XML \(mismatched tag\)"):
        read_documents(file("a.xml", XML.replace("</i>", "</b>")))
    with pytest.raises(ValueError, match=r"a\.txt is XML or HTML, but holds no PubmedArticle"):
        read_documents(file("a.txt", "<!DOCTYPE html>\n<html><p>Aspirin</p></html>"))
    deep = "<PubmedArticle>" + "<i>" * 100_000
    with pytest.raises(ValueError, match="no element found"):
        read_documents(file("a.xml", deep))


def test_tables_and_json_that_are_called_txt(file):
    right = [Document("1", "Lithium harmed, kidneys.")]
    assert read_documents(file("a.txt", 'pmid,text\n1,"Lithium harmed, kidneys."\n')) == right
    assert read_documents(file("b.txt", "pmid\ttext\n1\tLithium harmed, kidneys.\n")) == right
    row = {"id": 1, "text": "Lithium harmed, kidneys."}
    assert read_documents(file("c.txt", json.dumps(row) + "\n")) == right
    assert read_documents(file("d.txt", json.dumps([row], indent=1))) == right


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "@article{x2020,\n  title = {Lithium},\n}\n", "a.txt is BibTeX, .*RIS"),
        (
            "a.txt",
            "1. J Example. 2021;1:1.\n\nLithium.\n\nPMID: 9 [Indexed for MEDLINE]\n",
            "PubMed's Abstract format",
        ),
        ("a.txt", "Lithium\tB-Chemical\nharmed\tO\n\nkidneys\tO\n", "a.txt is CoNLL, .*evaluate ner"),
        ("a.txt", "Lithium NN B-Chemical\nharmed VB O\n", "a.txt is CoNLL"),
        (
            "a.ris",
            "Lithium harmed kidneys.\n",
            "a.ris begins with 'Lithium harmed kidneys.', which no record",
        ),
        ("a.nbib", "PMID- 1\nAU  - Sample B\n", "a.nbib holds no text"),
        ("a.csv", ",\n,,\n", "a.csv holds no text: all its cells are empty"),
    ],
)
def test_other_structures_are_refused_by_name(file, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_documents(file(name, content))


@pytest.mark.parametrize(
    "line",
    [
        "PMID- is how a record of MEDLINE begins.",
        "TI - title; AB - abstract, a text, and more",
        "1. Lithium harmed kidneys in 2021; doi: 10.1000/x",
        "Abstract, text and sentence",
        "<0.05 was significant",
        "<b>Lithium</b> harmed kidneys",
        "{Lithium} harmed [kidneys]",
        "[Lithium and the kidney].",
        "Blood group O",
        "@home we gave lithium {sic}",
        "PT J was absent",
    ],
)
def test_a_text_that_looks_a_little_like_it_stays_a_text(file, line):
    content = f"{line}\nIt harmed kidneys.\n"
    assert [document.text for document in read_documents(file("a.txt", content))] == content.splitlines()
