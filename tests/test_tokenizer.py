"""Ids and text against the reference, offsets against the text itself."""

import copy
import json
import lzma
import pickle
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from sacremoses import MosesDetokenizer

from biogpt.checkpoint.pretrained import BioGptTokenizer
from biogpt.text.plain import is_blank
from biogpt.text.tokenizer import Encoding
from biogpt.training.vocabulary import train_vocabulary

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

SENTENCES = (
    "Famotidine-associated delirium: a series of six cases (n=6), e.g. the patient's H2-receptor antagonist.",
    'The "control" group & the treated group [3] had p < 0.05 or > 0.9 | 5,300 mg/kg/day, i.e. 12.5 %.',
    "We didn't observe any effect of lithium ... in the patients' serum; U.S. trials vs. ours disagree.",
)

# What Moses, XML escapes, byte-pair encoding and Unicode treat in ways of their own.
FRAGMENTS = (
    *(
        " ",
        "\t",
        "\n",
        "\r\n",
        "\x00",
        "\x01",
        "\x1c",
        "\x1f",
        "\x7f",
        "\x85",
        "\xa0",
        "\u2028",
        "\u3000",
        "\u200b",
    ),
    *(
        "&amp;",
        "&amp",
        "&",
        "&#124;",
        "&apos;s",
        "|",
        "<",
        ">",
        "[",
        "]",
        "'",
        '"',
        "''",
        "`",
        "<b>",
        "</w>",
        "@@",
    ),
    *(
        " @-@ ",
        "@-@",
        "-",
        "--",
        "a-b",
        "-1",
        "@",
        "1,000",
        ",",
        "a,b",
        ".",
        "..",
        "...",
        ".'",
        "U.S.",
        "vs.",
        "No. 5",
    ),
    *(
        "</s>",
        "<s>",
        "<pad>",
        "<unk>",
        "DOT",
        "can't",
        "rock'n'roll",
        "5's",
        "'tis",
        "the patients'",
        "e.g. this",
    ),
    *(
        "β1–42",
        "can-\ncer",
        "℃",
        "≥",
        "µ",
        "e\u0301",
        "\u0301",
        "ﬁ",
        "İ",
        "ß",
        "中文",
        "한",
        "क्ष",
        "𝛽",
        "👩‍🔬",
        "\ud800",
        "\ufeff",
    ),
)
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=6)).map("".join)


class Reference:
    """The tokenizer of transformers, told that control tokens in a text are text."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = transformers.BioGptTokenizer.from_pretrained(folder)

    def pieces(self, text: str) -> list[str]:
        return self.tokenizer.tokenize(text, split_special_tokens=True)

    def ids(self, text: str) -> list[int]:
        return [2, *self.tokenizer.convert_tokens_to_ids(self.pieces(text))]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


Both = tuple[BioGptTokenizer, Reference]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """A vocabulary of 180 entries, which splits even ``&quot;``, and the reference with the same files."""
    folder = tmp_path_factory.mktemp("tiny")
    train_vocabulary(SENTENCES, 180, min_character_count=1).save_pretrained(folder)
    ours = BioGptTokenizer.from_files(folder / "vocab.json", folder / "merges.txt", normalize=False)
    return ours, Reference(folder)


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """The vocabulary of microsoft/biogpt, from its fairseq files."""
    source = DATA / "biogpt-vocab" / "biogpt"
    if not source.is_dir():
        pytest.skip(f"the vocabulary of the paper is not at {source}")
    folder = tmp_path_factory.mktemp("paper")
    tokens = ["<s>", "<pad>", "</s>", "<unk>"]
    for line in (source / "dict.txt").read_text(encoding="utf-8").splitlines():
        symbol = line.rpartition(" ")[0]
        tokens.append(symbol.removesuffix("@@") if symbol.endswith("@@") else symbol + "</w>")
    vocab = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_bytes((source / "bpecodes").read_bytes())  # with a third column
    ours = BioGptTokenizer.from_files(folder / "vocab.json", folder / "merges.txt", normalize=False)
    return ours, Reference(folder)


def abstracts() -> Iterator[str]:
    """The 2,000 held-out abstracts, and title and abstract of the 1,500 of BC5CDR."""
    with lzma.open(DATA / "text" / "heldout.txt.xz", "rt", encoding="utf-8") as lines:
        yield from (line.rstrip("\n") for line in lines)
    for path in sorted((DATA / "ner" / "bc5cdr" / "pubtator").glob("*.txt")):
        articles = re.findall(r"^(\d+)\|[ta]\|(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        for _, parts in groupby(articles, key=lambda article: article[0]):
            yield " ".join(text for _, text in parts)


@cache
def kept(text: str) -> str:
    """What Moses does not drop."""
    return re.sub(r"[\x00-\x1f\s]", "", text)


# Moses writes a run of full stops as DOTDOTMULTI and back, and so reads one in the text as full stops.
PLACEHOLDER = re.compile("(?:DOT)+MULTI")


def full_stops(placeholder: re.Match[str]) -> str:
    return "." * placeholder.group().count("DOT")


@cache
def unescaped(word: str) -> str:
    return MosesDetokenizer().unescape_xml(word)


def assert_exact(text: str, pieces: list[str], encoding: Encoding) -> None:
    """Every span lies in the text, in order, and spells its piece; together they leave nothing out."""
    spans = encoding.offsets[1:]
    given = kept(text)
    assert encoding.offsets[0] == (0, 0)
    assert len(spans) == len(pieces) == len(encoding.ids) - 1
    assert all(0 <= start < end <= len(text) for start, end in spans)
    for (start, end), (next_start, next_end) in pairwise([(0, 0), *spans, (len(text), len(text))]):
        assert start <= next_start
        assert end <= next_end
        assert not kept(text[end:next_start])
        # Only the pieces of one escaped character share it.
        assert next_start >= end or (next_start == end - 1 and text[next_start] in "&|<>'\"[]-")
    word, first = "", 0
    for piece, (start, end) in zip(pieces, spans, strict=True):
        if not word:
            first = start
        word += piece
        if not set("&;@") & set(word) and "MULTI" not in given:
            assert kept(text[start:end]) == piece.removesuffix("</w>")
        if word.endswith("</w>"):
            expected = "-" if word == "@-@</w>" else unescaped(word.removesuffix("</w>"))
            assert PLACEHOLDER.sub(full_stops, kept(text[first:end])) == expected
            word = ""
    assert not word


@pytest.mark.slow
def test_real_abstracts_have_the_ids_of_the_reference_and_exact_offsets(paper: Both) -> None:
    ours, reference = paper
    everything = list(abstracts())
    assert len(everything) == 3500
    for text in everything[::3]:
        pieces = reference.pieces(text)
        encoding = ours.encode(text)
        assert encoding.ids == [2, *reference.tokenizer.convert_tokens_to_ids(pieces)]
        assert_exact(text, pieces, encoding)
        assert ours.decode(encoding.ids) == reference.decode(encoding.ids)


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_any_text_has_the_ids_of_the_reference(paper: Both, tiny: Both, text: str) -> None:
    for ours, reference in (paper, tiny):
        assert ours.encode(text).ids == reference.ids(text)


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_any_text_has_exact_offsets(tiny: Both, text: str) -> None:
    ours, reference = tiny
    assert_exact(text, reference.pieces(text), ours.encode(text))


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_offsets_hold_for_the_text_as_given_when_it_is_normalised(tiny: Both, text: str) -> None:
    ours, reference = tiny
    normalising = BioGptTokenizer(ours.vocab, ours.merges)
    # What is exact in the plain text is so in the given one: ``test_plain`` has the places of its characters.
    plain = normalising.plain(text)
    encoding = normalising.encode(text)
    in_plain = Encoding(encoding.ids, ours.encode(plain.text).offsets)
    assert_exact(plain.text, reference.pieces(plain.text), in_plain)
    assert encoding.offsets[1:] == [plain.given(*offsets) for offsets in in_plain.offsets[1:]]


def test_ten_thousand_texts_lose_no_character_and_no_place(tiny: Both) -> None:
    """Any characters, halves of surrogate pairs and unassigned ones included: ids, and spans in order."""
    ours, draw = tiny[0], random.Random(0)
    normalising = BioGptTokenizer(ours.vocab, ours.merges)
    for number in range(10_000):
        parts = [
            draw.choice(FRAGMENTS) if draw.random() < 0.8 else chr(draw.randrange(0x110000))
            for _ in range(draw.randrange(12))
        ]
        text = "".join(parts)
        encoding = (ours, normalising)[number % 2].encode(text)
        spans = [*encoding.offsets[1:], (len(text), len(text))]
        assert len(encoding.ids) == len(spans)
        begun = end = 0
        for start, next_end in spans:
            assert begun <= start <= next_end >= end, ascii(text)
            lost = text[end:start]
            if number % 2:  # made plain: without what shows nothing, and hyphens at the end of a line
                lost = "" if is_blank(re.sub(r"-(?=\s)", "", lost)) else lost
            assert not kept(lost), ascii(text)
            begun, end = start, next_end


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a &amp; b", ["a", "&", "amp", ";", "b"]),  # typed, not escaped by Moses
        ("x @-@ y", ["x", "@", "-", "@", "y"]),
        ("IL-2-induced", ["IL", "-", "2", "-", "induced"]),
        ("wait... what..", ["wait", "...", "what", ".."]),
        ("aDOTDOTMULTIb DOTMULTI", ["aDOTDOTMULTIb", "DOTMULTI"]),  # Moses reads its own placeholder as stops
        ("DO\x01TMULTI", ["DO\x01TMULTI"]),
        ("co\x02op\x1fa\x03\tb", ["co\x02op", "a", "b"]),
        ('"patient\'s"', ['"', "patient", "'s", '"']),
        ("5 µg\u2028β\u200bγ\u3000δ", ["5", "µg", "β", "\u200b", "γ", "δ"]),
        ("\U0001d6fd-catenin 👩‍🔬", ["\U0001d6fd", "-catenin", "👩", "\u200d", "🔬"]),
        ("  \x00 ", []),
        ("", []),
    ],
)
def test_words_are_found_in_the_text(tiny: Both, text: str, words: list[str]) -> None:
    ours, reference = tiny
    spans = ours.encode(text).offsets[1:]
    found, start = [], None
    for piece, span in zip(reference.pieces(text), spans, strict=True):
        start = span[0] if start is None else start
        if piece.endswith("</w>"):
            found.append(text[start : span[1]])
            start = None
    assert found == words


def test_typed_control_tokens_are_text(paper: Both) -> None:
    ours, _ = paper
    text = "A <s> </s> B <pad><unk></s>"
    encoding = ours.encode(text)
    assert all(index > 3 for index in encoding.ids[1:])
    assert [text[start:end] for start, end in encoding.offsets[1:8]] == ["A", "<", "s", ">", "<", "/", "s"]


def test_a_word_of_4000_characters_has_the_ids_of_the_reference(paper: Both, tiny: Both) -> None:
    for word in ("ACGT" * 1000, "a" * 4000, "antidisestablishment" * 200):
        for ours, reference in (paper, tiny):
            encoding = ours.encode(word)
            assert encoding.ids == reference.ids(word)
            assert [end for _, end in encoding.offsets[1:-1]] == [start for start, _ in encoding.offsets[2:]]


def test_merging_finishes_a_pair_before_one_of_lower_rank_that_it_makes() -> None:
    # Joining a + bc makes abc, and x + abc has a lower rank. Were it joined at once, the x of the second xabc
    # would still be free to go with the "c" before it.
    vocab = ["<s>", "<pad>", "</s>", "<unk>", "x", "a", "bc", "abc", "xabc", "abcx", "abc</w>", "xabc</w>"]
    merges = [("ab", "c"), ("b", "c"), ("x", "abc"), ("abc", "x"), ("a", "bc")]
    tokenizer = BioGptTokenizer({token: index for index, token in enumerate(vocab)}, merges)
    pieces = [tokenizer.token(index) for index in tokenizer.encode("abcxabcx", special_tokens=False).ids]
    assert pieces == ["abc", "xabc", "<unk>"]


def test_normalisation_replaces_only_what_the_vocabulary_lacks() -> None:
    plain = train_vocabulary(SENTENCES, 180, min_character_count=1)
    assert plain.encode("‘6–0.05’…").ids == plain.encode("'6-0.05'.").ids
    assert plain.encode("pa\u00adtient\u200b").ids == plain.encode("patient").ids
    assert plain.encode("ｐ\u3000＜\u20090.05").ids == plain.encode("p < 0.05").ids
    assert plain.unk_token_id in BioGptTokenizer(plain.vocab, plain.merges, normalize=False).encode("6–0").ids
    with_dash = BioGptTokenizer({**plain.vocab, "–</w>": plain.vocab_size}, plain.merges)
    assert with_dash.encode("6 – 0").ids[2] == plain.vocab_size
    assert with_dash.encode("‘").ids == plain.encode("'").ids


def test_pairs_have_a_separator_each_and_offsets_of_their_own(tiny: Both) -> None:
    ours, reference = tiny
    first, second = "the patient's serum", "lithium or not"
    encoding = ours.encode(first, second)
    assert encoding.ids == reference.tokenizer(first, second).input_ids
    separator = encoding.ids.index(2, 1)
    assert encoding.offsets[separator] == (0, 0)
    assert encoding.offsets[separator + 1 :] == ours.encode(second).offsets[1:]
    bare = ours.encode(first, second, special_tokens=False)
    assert bare.ids == [index for index in encoding.ids if index != 2]
    assert len(bare.offsets) == len(bare.ids)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_padded_as_by_the_reference(tiny: Both, side: str) -> None:
    ours, reference = tiny
    batch = ours.encode_batch([*SENTENCES, ""], padding_side=side)
    theirs = reference.tokenizer([*SENTENCES, ""], padding=True, padding_side=side)
    assert batch.input_ids == theirs.input_ids
    assert batch.attention_mask == theirs.attention_mask
    assert batch.cut == [0, 0, 0, 0]
    for text, ids, mask, offsets in zip(
        [*SENTENCES, ""], batch.input_ids, batch.attention_mask, batch.offsets, strict=True
    ):
        alone = ours.encode(text)
        present = [i for i, bit in enumerate(mask) if bit]
        assert [ids[i] for i in present] == alone.ids
        assert [offsets[i] for i in present] == alone.offsets
        assert len(offsets) == len(ids)


def test_a_batch_tells_what_it_cuts(tiny: Both) -> None:
    ours, _ = tiny
    questions, contexts = ["or", "the effect"], [SENTENCES[0], "of"]
    whole = [ours.encode(*both) for both in zip(questions, contexts, strict=True)]
    batch = ours.encode_batch(questions, contexts, max_length=12)
    assert batch.input_ids[0] == whole[0].ids[:12]
    assert batch.offsets[0] == whole[0].offsets[:12]
    assert batch.cut == [len(encoding.ids) - 12 if len(encoding.ids) > 12 else 0 for encoding in whole]
    assert batch.cut[0] > 0 == batch.cut[1]
    assert ours.encode_batch([]).input_ids == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "one text"}, "list of texts"),
        ({"texts": ["a"], "pairs": ["b", "c"]}, "1 texts and 2 pairs"),
        ({"texts": ["a"], "padding_side": "middle"}, "'middle'; expected 'left' or 'right'"),
        ({"texts": ["a"], "max_length": 0}, "max_length is 0"),
    ],
)
def test_a_wrong_batch_is_refused(tiny: Both, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny[0].encode_batch(**arguments)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_ids_decode_as_by_the_reference(paper: Both, tiny: Both, data: st.DataObject) -> None:
    for ours, reference in (paper, tiny):
        # Ids of little value are the frequent pieces: punctuation, quotes and escapes, where Moses has rules.
        some = st.integers(0, ours.vocab_size - 1) | st.integers(0, min(300, ours.vocab_size) - 1)
        ids = data.draw(st.lists(some, max_size=30))
        assert ours.decode(ids) == reference.decode(ids)


@pytest.mark.parametrize("index", [-1, 180])
def test_an_id_out_of_range_is_refused(tiny: Both, index: int) -> None:
    with pytest.raises(ValueError, match=f"{index} is unknown; the vocabulary has 0 to 179"):
        tiny[0].decode([5, index])
    with pytest.raises(ValueError, match=f"{index} is unknown"):
        tiny[0].token(index)


def test_decoding_a_growing_text_ends_in_the_text(tiny: Both) -> None:
    ours, _ = tiny
    ids = ours.encode("the patients' serum").ids
    shown = [ours.decode(ids[:end]) for end in range(len(ids) + 1)]
    assert shown[:2] == ["", ""]
    assert shown[-1] == "the patients' serum"
    assert all(len(step) <= len(after) for step, after in pairwise(shown))


def test_threads_share_a_tokenizer(tiny: Both) -> None:
    ours, _ = tiny
    shared = BioGptTokenizer(ours.vocab, ours.merges, normalize=False)
    tasks = [sentence + f" {number}x{number}" for number in range(50) for sentence in SENTENCES]
    expected = [ours.encode(text) for text in tasks]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shared.encode, tasks)) == expected


def test_copies_work_alike(tiny: Both) -> None:
    ours, _ = tiny
    for again in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert again.encode("6–0 serum") == ours.encode("6–0 serum")
        assert again.normalize is False


def test_a_saved_folder_holds_the_same_tokenizer(tiny: Both, tmp_path: Path) -> None:
    ours, _ = tiny
    ours.save_pretrained(tmp_path / "new" / "folder")
    again = BioGptTokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert (again.vocab, again.merges, again.normalize) == (ours.vocab, ours.merges, True)
    theirs = transformers.BioGptTokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert theirs(SENTENCES[1]).input_ids == ours.encode(SENTENCES[1]).ids
    assert (theirs.bos_token_id, theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id) == (
        0,
        1,
        2,
        3,
    )


CONTROLS = '"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3'


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        ("{", "", r"vocab\.json is not a JSON file"),
        ("[1]", "", r"vocab\.json: the vocabulary is a list"),
        (f'{{{CONTROLS}, "a": "4"}}', "", r"vocab\.json: the id of 'a' is '4'; expected 0 to 4"),
        (f'{{{CONTROLS}, "a": true}}', "", "the id of 'a' is True"),
        (f'{{{CONTROLS}, "a": 5}}', "", "the id of 'a' is 5; expected 0 to 4"),
        (f'{{{CONTROLS}, "a": 3}}', "", "'<unk>' and 'a' have the same id, 3"),
        ('{"<s>": 0, "<pad>": 1}', "", "expected <s> <pad> </s> <unk>"),
        (f"{{{CONTROLS}}}", "a b\nabc\n", r"merges\.txt, line 2: 'abc'; expected two pieces"),
        (f"{{{CONTROLS}}}", "a b 3 4\n", r"merges\.txt, line 1"),
        (
            f'{{{CONTROLS}, "a": 4, "ab</w>": 5}}',
            "#version: 0.2\n",
            r"merges\.txt holds no merges, which .*'ab</w>'",
        ),
    ],
)
def test_malformed_files_are_refused_by_name(tmp_path: Path, vocab: str, merges: str, message: str) -> None:
    (tmp_path / "vocab.json").write_text(vocab)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(ValueError, match=message):
        BioGptTokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")


def test_files_with_a_byte_order_mark_and_letters_without_merges(tmp_path: Path) -> None:
    files = (tmp_path / "vocab.json", tmp_path / "merges.txt")
    files[0].write_text(f'{{{CONTROLS}, "a": 4, "a</w>": 5, "aa</w>": 6}}', encoding="utf-8-sig")
    files[1].write_text("a a</w>\n", encoding="utf-8-sig")
    assert BioGptTokenizer.from_files(*files).encode("aa").ids == [2, 6]
    files[0].write_text(f'{{{CONTROLS}, "a": 4, "a</w>": 5}}')
    files[1].write_text("")
    assert BioGptTokenizer.from_files(*files).encode("aa").ids == [2, 4, 5]


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_missing_and_binary_files_are_named(tmp_path: Path, missing: str) -> None:
    (tmp_path / "vocab.json").write_text(f"{{{CONTROLS}}}")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    files = (tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert BioGptTokenizer.from_files(*files).merges == []
    (tmp_path / missing).write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=f"{missing} is not UTF-8"):
        BioGptTokenizer.from_files(*files)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"{missing} is missing"):
        BioGptTokenizer.from_files(*files)


ADDED = ["learned1", "learned12", "[GENE]", "+", "«x»"]


@pytest.fixture(scope="module")
def added(tiny: Both, tmp_path_factory: pytest.TempPathFactory) -> tuple[BioGptTokenizer, Any, Path]:
    """Ours and the reference with added tokens, saved by the reference; ``[PAD]`` and ``[GENE]`` special."""
    folder = tmp_path_factory.mktemp("added")
    tiny[0].save_pretrained(folder)
    theirs = transformers.BioGptTokenizer.from_pretrained(folder)
    theirs.add_special_tokens({"pad_token": "[PAD]", "extra_special_tokens": ["[GENE]"]})
    theirs.add_tokens([*ADDED, transformers.AddedToken("serum", single_word=True)])
    theirs.save_pretrained(folder)
    return BioGptTokenizer.from_pretrained(folder, normalize=False), theirs, folder


PARTS = [*ADDED, "serum", "a", "TP53 ", " ", " is\n", "learn", "ed1", "-"]
# Where a token for whole words touches two things, or another such token, the reference cuts it in two.
TOUCHED = re.compile(
    r"[^ ]serum[^ ]|serumserum|" + "|".join(f"{a}serum|serum{a}" for a in map(re.escape, ADDED))
)


@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from(PARTS)).map("".join))
def test_added_tokens_are_found_as_by_the_reference(added: tuple[Any, Any, Path], text: str) -> None:
    ours, theirs, _ = added
    if TOUCHED.search(text):
        return
    encoding = ours.encode(text)
    assert encoding.ids == theirs(text).input_ids
    known = [index for index in encoding.ids if index > 3]
    assert ours.decode(encoding.ids) == theirs.decode(known)
    for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if index >= 180:
            assert text[start:end] == ours.token(index)


def test_added_tokens_are_kept_and_the_one_that_pads_is_no_text(
    added: tuple[Any, Any, Path], tmp_path: Path
) -> None:
    ours, theirs, _ = added
    assert ours.pad_token_id == theirs.pad_token_id == 180
    assert ours.vocab_size == len(theirs) == 180 + 7
    assert ours.padding_rows(192) == list(range(187, 192))
    assert 180 not in ours.encode("a [PAD] b").ids
    assert ours.decode([180, 182]) == "learned1"
    ours.save_pretrained(tmp_path)
    again = BioGptTokenizer.from_pretrained(tmp_path)
    assert again.added == ours.added
    assert pickle.loads(pickle.dumps(again)).encode("learned1").ids == [2, 182]
    reopened = transformers.BioGptTokenizer.from_pretrained(tmp_path)
    assert reopened.get_vocab() == theirs.get_vocab()
    for index in range(180, 187):
        assert reopened.added_tokens_decoder[index] == theirs.added_tokens_decoder[index]
    assert reopened.all_special_tokens == theirs.all_special_tokens


def test_added_tokens_of_older_software(tiny: Both, tmp_path: Path) -> None:
    tiny[0].save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "added_tokens.json").write_text('{"learned1": 180, "[GENE]": 182}')
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "[PAD]"}}')
    ours = BioGptTokenizer.from_pretrained(tmp_path, normalize=False)
    theirs = transformers.BioGptTokenizer.from_pretrained(tmp_path)
    text = "a learned1 of [GENE]"
    assert ours.encode(text).ids == theirs(text).input_ids
    assert ours.pad_token_id == theirs.pad_token_id
    assert ours.padding_rows(185) == sorted({181, 183, 184} - {ours.pad_token_id})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("added_tokens.json", "[1]", "holds a list"),
        ("added_tokens.json", '{"x": "ten"}', "the id of 'x' is 'ten'"),
        ("added_tokens.json", '{"x": 1e30}', "the id of 'x' is 1e"),
        ("added_tokens.json", '{"x": 7}', "gives 'x' the id 7, and vocab.json says otherwise"),
        ("added_tokens.json", '{"</s>": 190}', "gives '</s>' the id 190"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"190": {}}}', "has no content"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "no object of id: token"),
        ("tokenizer_config.json", '{"pad_token": 3}', "the token 3 is no string"),
        ("tokenizer_config.json", "[" * 200_000, "nested too deep"),
    ],
)
def test_wrong_added_tokens_are_refused_by_file(
    tiny: Both, tmp_path: Path, name: str, content: str, message: str
) -> None:
    tiny[0].save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(name) + ".*" + re.escape(message)):
        BioGptTokenizer.from_pretrained(tmp_path)


@cache
def _mini() -> BioGptTokenizer:
    return BioGptTokenizer.from_pretrained("mini")


PARTS = (
    "a",
    "B",
    "7",
    " ",
    "\n",
    "\t",
    ".",
    ",",
    "'",
    "-",
    "...",
    "p53",
    "No.",
    "e.g.",
    "α",
    "é",
    "&",
    "@-@",
    "\x1f",
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=60).map("".join))
def test_a_text_split_in_stretches_has_the_same_tokens(text: str) -> None:
    tokenizer = _mini()
    whole = tokenizer.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("biogpt.text.tokenizer._STRETCH", 1)
        assert tokenizer.encode(text) == whole


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("with naloxozine", "naloxozine"),
        ("IL-6 and “glucocort", "glucocort"),
        ("ﬁbrin and the ﬁbrzqu", "ﬁbrzqu"),
    ],
)
def test_pieces_of_a_begun_word_have_their_characters(text: str, word: str) -> None:
    tokenizer = BioGptTokenizer.from_pretrained("mini")
    found = tokenizer.begun(text, tokenizer.encode(text).ids)
    assert found is not None
    spans = tokenizer.last_spans(text, found[1])
    assert (spans[0][0], spans[-1][1]) == (len(text) - len(word), len(text))
    assert len(spans) > 1
    assert all(end == start for (_, end), (start, _) in pairwise(spans))
