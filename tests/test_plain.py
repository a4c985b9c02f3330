"""Plain forms: what is read of typographic text, and where each character of it came from."""

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biogpt import BioGptTokenizer, EntityRecognizer
from biogpt.tasks.words import words_of
from biogpt.text.plain import NORMALIZATION, PlainText, is_blank, without_emphasis

FRAGMENTS = (
    "“aspirin”", "„a‟", "ﬁ", "ﬂuoro", "ﬀ", "³", "⁺", "₀", "℃", "㎎", "Ⅳ", "ｄｏｘ．", "e\u0301", "o\u0308",
    "x\u0302", "\u0301", "e\u200b\u0301", "\u200b\u200d", "\u00ad", "can-\ncer", "IL-\n6", "-\n", "\n",
    "insulin-\r\ndependent", "\u1112\u1161\u11ab", "한", "İ", "½", "´", "**a**", "`", "\x00", "☃\ufe0f", "क्ष",
    " ", "𝛽",
)  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4)).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> BioGptTokenizer:
    return BioGptTokenizer.from_pretrained("mini")


@pytest.fixture(scope="module")
def tagger() -> EntityRecognizer:
    return EntityRecognizer.from_pretrained("mini-ner", device="cpu", precision="float32")


@given(
    st.text(
        "\u200b\u200c\u200d\ufeff\u2060\u00ad\ufe0f\U000e0100\u0301\u20dd\u180e\u3164\u2800\x00 \t\n\u3000"
    )
)
def test_what_shows_nothing_is_blank(text: str) -> None:
    assert is_blank(text)
    for visible in ("a", ".", "\u4e2d", "\U0001f600", "\u2603\ufe0f", "e\u0301", "\ufffd"):
        assert not is_blank(text + visible + text)


def test_no_entity_is_found_where_nothing_is_seen(tagger: EntityRecognizer) -> None:
    assert tagger.batch(["", "\u200b", "\u0301 \u00ad\n\ufeff", "\u2800"]) == [[], [], [], []]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("“aspirin” ‘a’ „b“ ‹c›", "\"aspirin\" 'a' \"b\" 'c'"),
        ("ﬁbrosis ﬂu eﬀect", "fibrosis flu effect"),
        ("x⁶ CaCO₅ IC₇₈", "x6 CaCO5 IC78"),
        ("39 ℉, 5 ㎎, stage Ⅳ", "39 °F, 5 mg, stage IV"),
        ("ｄｏｘｏｒｕｂｉｃｉｎ．", "doxorubicin."),
        ("Sjo\u0308gren Me\u0301nie\u0300re", "Sjögren Ménière"),
        ("e\u200b\u0301", "é"),
        ("pa\u00adtient", "patient"),
        ("can-\ncer, Can-\r\ncer and can\u00ad\ncer", "cancer, Cancer and cancer"),
        ("lith- \n  ium", "lithium"),
        ("insulin-\ndependent", "insulin-dependent"),  # two words of their own: the hyphen is theirs
        ("IL-\n6 TNF-\nα c-\nMyc DNA-\nbinding", "IL-6 TNF-α c-Myc DNA-binding"),
        ("a -\nb", "a -\nb"),
        ("can-\n\ncer", "can-\n\ncer"),  # another paragraph
    ],
)
def test_what_is_read_of_a_text(tokenizer, text, read):
    assert tokenizer.plain(text).text == read


def test_one_becomes_many_and_many_one_with_exact_places(tokenizer):
    plain = tokenizer.plain("ﬁ e\u0301 can-\ncer")
    assert plain.text == "fi é cancer"
    assert [plain.given(i, i + 1) for i in range(4)] == [(0, 1), (0, 1), (1, 2), (2, 4)]
    assert plain.given(5, 11) == (5, 13)
    assert plain.given(7, 9) == (7, 11)  # n, then c after the line break
    alone = tokenizer.plain(" \u0301a")  # a mark without a letter is no part of the space
    assert (alone.text, alone.given(0, 1), alone.given(1, 2)) == (" a", (0, 1), (2, 3))


def test_what_a_vocabulary_knows_is_read_as_it_stands():
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "ﬁ</w>", "e", "\u0301</w>", "“</w>"]
    knowing = BioGptTokenizer({piece: index for index, piece in enumerate(pieces)}, [])
    for text in ("ﬁ", "“", "e\u0302"[:1]):
        assert knowing.plain(text).text == text
    as_given = BioGptTokenizer(knowing.vocab, [], normalize=False)
    assert as_given.plain("can-\ncer ³") == PlainText.of("can-\ncer ³")


@settings(max_examples=400, deadline=None)
@given(text=texts)
def test_places_are_exact_and_a_plain_text_stays_itself(text):
    tokenizer = _mini()
    plain = tokenizer.plain(text)
    assert len(plain.text) == len(plain.starts) == len(plain.ends)
    assert all(0 <= start < end <= len(text) for start, end in zip(plain.starts, plain.ends, strict=True))
    assert all(one <= other for one, other in pairwise(plain.starts))
    assert all(one <= other for one, other in pairwise(plain.ends))
    assert tokenizer.plain(plain.text).text == plain.text
    for character, start, end in zip(plain.text, plain.starts, plain.ends, strict=True):
        assert character in (text[start:end], *tokenizer.plain(text[start:end]).text)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("eoa \u0301\u0308\u0323.Zż-éö1"), max_size=30))
def test_letters_with_marks_read_as_composed_ones(text):
    tokenizer = _mini()
    composed, apart = unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)
    assert tokenizer.encode(apart).ids == tokenizer.encode(composed).ids


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_words_for_labels_lie_apart_in_the_text_as_given(text):
    words = words_of(_mini(), text)
    assert all(0 <= start < end <= len(text) for start, end in words.spans)
    assert all(one[1] <= other[0] for one, other in pairwise(words.spans))


_loaded: list[BioGptTokenizer] = []


def _mini() -> BioGptTokenizer:
    if not _loaded:
        _loaded.append(BioGptTokenizer.from_pretrained("mini"))
    return _loaded[0]


def test_the_word_forms_are_made_of_what_is_read(tokenizer):
    assert words_of(tokenizer, "“aspirin” ﬂu e\u0301").texts == ['"', "aspirin", '"', "flu", "é"]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Patients took “aspirin” for two weeks.", 'Patients took "aspirin" for two weeks.'),
        ("„Lithium carbonate“ lowered it.", '"Lithium carbonate" lowered it.'),
        ("Ｈｏｄｇｋｉｎ＇ｓ ｌｙｍｐｈｏｍａ", "Hodgkin's lymphoma"),
        ("Pulmonary ﬁbrosis; ﬂuorouracil.", "Pulmonary fibrosis; fluorouracil."),
        (
            "Sjo\u0308gren's syndrome and Me\u0301nie\u0300re's disease",
            "Sjögren's syndrome and Ménière's disease",
        ),
        ("Breast can-\ncer took lith-\nium", "Breast cancer took lithium"),
    ],
)
def test_entities_of_typographic_text_are_those_of_plain_text(tagger, text, plain):
    found, right = tagger(text), tagger(plain)
    assert right
    assert [(e.label, e.score) for e in found] == [(e.label, pytest.approx(e.score, abs=1e-5)) for e in right]
    assert [tagger.tokenizer.plain(e.text).text for e in found] == [e.text for e in right]
    assert all(text[e.start : e.end] == e.text for e in found)


def test_no_entity_begins_with_a_superscript(tagger):
    found = [entity.text for entity in tagger("Na⁺/K⁺-ATPase and Ca²⁺-ATPase in CD4⁺ T cells")]
    assert [text for text in found if "⁺" in text]
    assert not [text for text in found if text[0] in "⁺²/"]


def test_marks_of_emphasis_are_not_read(tagger):
    text = "We gave **aspirin** and `naloxone` to _rats_ (*lithium*)."
    assert [entity.text for entity in tagger(text)] == ["aspirin", "naloxone", "rats", "lithium"]
    for kept in (
        "HLA-A*02:01 and HLA-B*57:01",
        "DRB1*04* and x_a_",
        "a * b * c",
        "p_1 and q_2",
        "2**3 **",
        "``control''",
        "*\n*a\n*",
    ):
        assert without_emphasis(kept) == PlainText.of(kept)


@pytest.mark.parametrize(
    "text", ["\u200b" * 50_000, "e" + "\u0301" * 50_000, "a-\n" * 20_000, "*a" * 50_000, "`" * 50_000]
)
def test_long_runs_come_to_an_end(tokenizer, text):
    """Looked through again from each character, such a run would take minutes."""
    words_of(tokenizer, text)


def test_the_table_maps_one_character_to_one_final_character():
    assert all(len(character) == len(plain) == 1 for character, plain in NORMALIZATION.items())
    assert not NORMALIZATION.keys() & set(NORMALIZATION.values())
