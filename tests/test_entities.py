"""Spans from labels: legal sequences, windows without seams, exact offsets."""

import itertools
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from biogpt import BioGptForTokenClassification, BioGptTokenizer
from biogpt.model.config import BioGptConfig
from biogpt.tasks.brackets import balanced
from biogpt.tasks.entities import EntityRecognizer, windows_of
from biogpt.tasks.tags import TagScheme
from biogpt.tasks.words import word_forms, words_of
from biogpt.text.results import Entity

BIO = ("O", "B-Disease", "I-Disease", "B-Gene", "I-Gene")
IOBES = ("O", "B-X", "I-X", "E-X", "S-X")
BOTH_WAYS = {"word_encoder_size": 16, "word_form_rows": 64, "word_form_size": 8}
APART = BOTH_WAYS | {"word_encoder_groups": (("Gene",), ("Disease",))}
ABSTRACT = (
    "Naloxone reverses the antihypertensive effect of clonidine. In unanesthetized rats the decrease in "
    "blood pressure produced by clonidine (5–20 µg/kg) was reversed by α-methyldopa; “β1-blockers” were not "
    "tested. "
)


@pytest.fixture(scope="module")
def tokenizer() -> BioGptTokenizer:
    return BioGptTokenizer.from_pretrained("mini")


def recognizer(tokenizer: BioGptTokenizer, labels=BIO, seed: int = 0, **changes) -> EntityRecognizer:
    torch.manual_seed(seed)
    config = BioGptConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        id2label=dict(enumerate(labels)),
    )
    model = BioGptForTokenClassification(replace(config, **changes))
    with torch.no_grad():
        for parameter in model.parameters():  # spread labels, which fresh weights of 0.02 do not give
            parameter.mul_(8)
    return EntityRecognizer(model, tokenizer)


@pytest.mark.parametrize("labels", [BIO, IOBES, ("O", "Disease", "Gene")])
def test_decoding_finds_the_likeliest_legal_sequence(labels):
    scheme = TagScheme(labels)
    random = np.random.default_rng(1)
    for count in (1, 2, 4):
        scores = np.log(random.dirichlet(np.ones(len(labels)), count))
        best = max(
            (path for path in itertools.product(range(len(labels)), repeat=count) if legal(labels, path)),
            key=lambda path: sum(scores[word, label] for word, label in enumerate(path)),
        )
        assert scheme.decode(scores) == list(best)


def legal(labels, path) -> bool:
    """The rules in words, beside the table that the scheme builds."""
    opened = None  # (type, whether an end is owed)
    ends = any(label.startswith("E-") for label in labels)
    for label in [*(labels[index] for index in path), "O"]:
        prefix, _, kind = label.partition("-") if "-" in label else ("O" if label == "O" else "T", "", label)
        if prefix in ("I", "E"):
            if opened != kind:
                return False
        elif ends and opened is not None:
            return False
        opened = kind if prefix in ("B", "I") else None
    return True


def test_spans_of_bio_iobes_and_bare_labels():
    assert TagScheme(BIO).spans([1, 2, 1, 0, 3, 4, 4]) == [
        (0, 2, "Disease"),
        (2, 3, "Disease"),
        (4, 7, "Gene"),
    ]
    assert TagScheme(IOBES).spans([1, 2, 3, 4, 0, 4]) == [(0, 3, "X"), (3, 4, "X"), (5, 6, "X")]
    assert TagScheme(("O", "Disease")).spans([1, 1, 0, 1]) == [(0, 2, "Disease"), (3, 4, "Disease")]


def test_labels_saved_without_names_keep_the_first_for_outside():
    scheme = TagScheme(("LABEL_0", "LABEL_1"))
    assert scheme.types == ("LABEL_1",)
    assert scheme.spans([0, 1, 1, 0]) == [(1, 3, "LABEL_1")]


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("piece", ["first", "last"])
def test_windows_read_every_word_at_the_right_piece_of_the_last_copy(tokenizer, copies, piece):
    config = recognizer(tokenizer, passage_copies=copies, label_piece=piece).model.config
    words = words_of(tokenizer, ABSTRACT * 3)
    seen = set()
    for window in windows_of(words.pieces, config):
        assert len(window.ids) <= config.max_position_embeddings
        copy = len(window.ids) // copies
        assert window.ids == window.ids[:copy] * copies
        for word, read in enumerate(window.reads, window.first):
            assert read >= (copies - 1) * copy
            assert window.ids[read] == words.pieces[word][0 if piece == "first" else -1]
            seen.add(word)
    assert seen == set(range(len(words.pieces)))


def test_a_word_longer_than_a_window_is_read_by_its_end(tokenizer):
    tagger = recognizer(tokenizer)
    text = "x" + "qzjk" * 200 + " aspirin"
    assert all(text[entity.start : entity.end] == entity.text for entity in tagger(text))
    window = next(windows_of(words_of(tokenizer, text).pieces, tagger.model.config))
    assert len(window.ids) == tagger.model.config.max_position_embeddings


def test_copies_that_cannot_fit_are_refused(tokenizer):
    config = recognizer(tokenizer, passage_copies=64).model.config
    with pytest.raises(ValueError, match="64 copies of a passage do not fit into 64 positions"):
        next(windows_of([[5]], config))


def test_a_batch_gives_what_each_text_gives_alone_in_its_place(tokenizer):
    for changes in ({}, {"passage_copies": 2}, {"bidirectional_layers": 1}, BOTH_WAYS, APART):
        tagger = recognizer(tokenizer, **changes)
        texts = [ABSTRACT[i : i + 20 + 13 * i] for i in range(12)] + ["", ABSTRACT * 4, " \n"]
        alone = [tagger(text) for text in texts]
        assert sum(map(len, alone)) > 20
        together = tagger.batch(texts)
        for one, other in zip(alone, together, strict=True):
            assert [(e.label, e.start, e.end) for e in one] == [(e.label, e.start, e.end) for e in other]
            assert [e.score for e in one] == pytest.approx([e.score for e in other], abs=1e-4)


def test_a_word_encoder_sees_what_follows_and_how_a_word_is_written(tokenizer):
    tagger = recognizer(tokenizer, **BOTH_WAYS)

    def first_word(text: str) -> np.ndarray:
        return tagger.log_probabilities([words_of(tokenizer, text)])[0][0]

    given = first_word("BRCA1 carriers")
    assert np.abs(given - first_word("BRCA1 mice")).max() > 1e-3
    plain = recognizer(tokenizer)
    assert np.array_equal(
        plain.log_probabilities([words_of(tokenizer, "BRCA1 carriers")])[0][0],
        plain.log_probabilities([words_of(tokenizer, "BRCA1 mice")])[0][0],
    )
    with pytest.raises(
        ValueError, match="word_encoder_size 16 labels words, not tokens; use EntityRecognizer"
    ):
        tagger.model(torch.tensor([[2, 5]]))


def test_each_group_of_types_has_a_reader_of_its_own(tokenizer):
    model = recognizer(tokenizer, **APART).model
    hidden, forms, counts = torch.randn(5, 32), torch.randint(64, (5, 5)), [2, 3]
    with torch.inference_mode():
        whole = model.read(hidden, forms, counts)
        genes, diseases = [3, 4], [1, 2]
        assert (whole[:, 0] == 0).all()
        assert whole.isfinite().all()
        # What a row is not asked for is left out; what it is asked for stays as it was.
        part = model.read(hidden, forms, counts, [{"Gene"}, {"Disease"}])
        close = {"rtol": 0, "atol": 1e-5}
        assert part[:2, genes].allclose(whole[:2, genes], **close)
        assert part[2:, diseases].allclose(whole[2:, diseases], **close)
        assert (part[:2, diseases] == -np.inf).all()
        assert (part[2:, genes] == -np.inf).all()
        # Another reader for genes changes them alone.
        model.words.readers[0].inner.weight.mul_(-1)
        other = model.read(hidden, forms, counts)
        assert other[:, diseases].equal(whole[:, diseases])
        assert not other[:, genes].allclose(whole[:, genes])
    with pytest.raises(ValueError, match=r"labels such as B-Gene; got \('O', 'Gene'\)"):
        recognizer(tokenizer, ("O", "Gene"), **BOTH_WAYS)


def test_the_forms_of_a_word_are_those_that_the_files_were_trained_with():
    """The rows are addresses in a saved table: another hash would read other words' rows."""
    assert word_forms("BRCA1", 16384) == (16197, 2514, 7561, 7381, 3557)
    known, unseen = word_forms("BRCA1", 16384), word_forms("BRXA2", 16384)
    assert [a == b for a, b in zip(known, unseen, strict=True)] == [False, False, False, False, True]
    assert word_forms("aaa", 7) != word_forms("AAA", 7)
    assert all(0 <= row < 7 for row in word_forms("\ud83d 🙂", 7))


def test_who_asks_for_some_types_gets_those_that_others_would_claim(tokenizer):
    """Genes that claim every word leave no disease, unless genes are not asked for."""
    tagger = recognizer(tokenizer, **APART)
    with torch.no_grad():
        tagger.model.classifier.bias[:] = torch.tensor([0.0, 50, -50, 90, -50])  # O, then B and I of each
    texts = [ABSTRACT, "HD gene", ""]
    assert {entity.label for entity in tagger(ABSTRACT)} == {"Gene"}
    asked = tagger.batch(texts, types=["Disease"])
    words = [[text[a:b] for a, b in words_of(tokenizer, text).spans] for text in texts]
    assert [[entity.text for entity in entities] for entities in asked] == [
        [word for word in of_text if word not in "()"] for of_text in words
    ]
    assert {entity.label for entities in asked for entity in entities} == {"Disease"}
    assert all(entity.text == ABSTRACT[entity.start : entity.end] for entity in asked[0])
    assert tagger.batch(texts, types=["Gene", "Disease"]) == tagger.batch(texts)
    with pytest.raises(ValueError, match=r"unknown types \['Drug'\]; the model knows Disease, Gene"):
        tagger.batch(texts, types=["Drug"])
    plain = recognizer(tokenizer)
    found = plain.batch([ABSTRACT], types=["Gene"])
    assert found == [[entity for entity in plain(ABSTRACT) if entity.label == "Gene"]]
    assert 0 < len(found[0]) < len(plain(ABSTRACT))


def test_each_window_begins_in_the_middle_of_the_one_before(tokenizer):
    """Without overlap, each edge is a seam: words there are read with nothing on one side."""
    for copies in (1, 2):
        config = recognizer(tokenizer, passage_copies=copies).model.config
        pieces = words_of(tokenizer, ABSTRACT * 4).pieces
        windows = list(windows_of(pieces, config))
        assert len(windows) > 4
        longest = max(map(len, pieces))
        for before, after in pairwise(windows):
            shared = sum(len(word) for word in pieces[after.first : before.stretch.stop])
            whole = sum(len(word) for word in pieces[before.stretch])
            assert abs(shared - whole / 2) <= longest


@pytest.mark.parametrize("changes", [{}, {"bidirectional_layers": 1}])
def test_a_word_takes_its_label_from_the_window_in_which_it_is_furthest_from_the_edges(tokenizer, changes):
    """The first or the last window that has a word would read some of them at its very edge."""
    tagger = recognizer(tokenizer, **changes)
    words = words_of(tokenizer, ABSTRACT * 3)
    windows = list(windows_of(words.pieces, tagger.model.config))
    with torch.inference_mode():
        read = [tagger.model(torch.tensor([window.ids])).logits[0].log_softmax(-1) for window in windows]
    found = tagger.log_probabilities([words])[0]
    last = len(words.pieces) - 1
    for word, scores in enumerate(found):
        depths = {}
        for number, window in enumerate(windows):
            end = window.first + len(window.reads) - 1
            if window.first <= word <= end:
                before = np.inf if window.first == 0 else word - window.first  # a text's end cuts nothing off
                after = np.inf if end == last else end - word
                depths[number] = min(before, after)
        right = [number for number, depth in depths.items() if depth == max(depths.values())]
        assert any(
            np.allclose(scores, read[number][windows[number].reads[word - windows[number].first]], atol=1e-4)
            for number in right
        ), f"word {word} of {last + 1}: window {right} of {depths}"
    assert len(windows) > 3


def test_padding_is_not_seen_by_layers_that_look_both_ways(tokenizer):
    tagger = recognizer(tokenizer, bidirectional_layers=2)
    short, long = words_of(tokenizer, "Clonidine"), words_of(tokenizer, ABSTRACT[:100])
    together, alone = tagger.log_probabilities([short, long])[0], tagger.log_probabilities([short])[0]
    assert np.allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_words_far_from_a_windows_edge_do_not_change_when_the_text_grows(tokenizer):
    """A seam shows as a label that depends on where a window happened to end."""
    tagger = recognizer(tokenizer)
    scores = tagger.log_probabilities([words_of(tokenizer, ABSTRACT * 4)])[0]
    assert np.isfinite(scores).all()
    assert np.allclose(np.exp(scores).sum(axis=1), 1, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(), max_size=80))
def test_offsets_are_exact_sorted_and_apart_for_any_text(text):
    tagger = _shared()
    end = 0
    for entity in tagger(text):
        assert text[entity.start : entity.end] == entity.text != ""
        assert end <= entity.start < entity.end
        assert 0 <= entity.score <= 1
        end = entity.end


_made: list[EntityRecognizer] = []


def _shared() -> EntityRecognizer:
    if not _made:
        _made.append(recognizer(BioGptTokenizer.from_pretrained("mini")))
    return _made[0]


def test_a_score_is_the_probability_of_exactly_this_span(tokenizer):
    """Times the chance that the next word does not go on: else a cut span looks as sure as a whole one."""
    tagger = recognizer(tokenizer)
    text = "alpha beta gamma"
    words = words_of(tokenizer, text)
    p = np.array([[0.1, 0.7, 0.1, 0.05, 0.05], [0.05, 0.05, 0.8, 0.05, 0.05], [0.5, 0.05, 0.4, 0.03, 0.02]])
    found = tagger.entities_of(text, words, np.log(p))
    assert found == [Entity("Disease", 0, 10, "alpha beta", pytest.approx(0.7 * 0.8 * 0.6))]


@pytest.mark.parametrize(
    ("text", "span", "right"),
    [
        ("(HSP)70 rose", "HSP)70", "(HSP)70"),
        ("the tRNA(Leu) gene", "tRNA(Leu", "tRNA(Leu)"),
        ("of (S)-ketamine", "S)-ketamine", "(S)-ketamine"),
        ("of S)-ketamine", "S)-ketamine", "ketamine"),
        ("a tRNA(Leu gene", "tRNA(Leu", "tRNA"),
        ("(aspirin)", "(aspirin", "aspirin"),
        ("(aspirin)", "aspirin)", "aspirin"),
        ("(aspirin)", "(aspirin)", "(aspirin)"),
        ("poly[d(A-T)] x", "poly[d(A-T)", "poly[d(A-T)]"),
        ("((", "((", ""),
    ],
)
def test_brackets_of_an_entity_come_in_pairs(text, span, right):
    start = text.index(span)
    begin, end = balanced(text, start, start + len(span))
    assert text[begin:end] == right


def test_brackets_of_neighbours_come_to_pairs_apart():
    for text in map("".join, itertools.product("()[]a", repeat=6)):
        for middle in (2, 3, 4):
            before, after = balanced(text, 1, middle), balanced(text, middle, 5)
            for begin, end in (before, after):
                part = text[begin:end]
                while (less := part.replace("a", "").replace("()", "").replace("[]", "")) != part:
                    part = less
                assert part == ""
            assert before[1] <= after[0] or before[0] == before[1] or after[0] == after[1]


def test_entities_keep_apart_when_brackets_are_completed(tokenizer):
    tagger = recognizer(tokenizer, ("O", "B-X", "I-X"))
    text = "x (HSP)70 tRNA(Leu) y"
    words = words_of(tokenizer, text)
    inside = [index for index, word in enumerate(words.texts) if word not in "x(y"]
    scores = np.full((len(words.texts), 3), -9.0)
    for index in range(len(words.texts)):
        scores[index, 0 if index not in inside else 1 if words.texts[index] in ("HSP", "tRNA") else 2] = -0.1
    found = [
        (entity.text, text[entity.start : entity.end]) for entity in tagger.entities_of(text, words, scores)
    ]
    assert all(one == other for one, other in found)
    assert found[0][0] == "(HSP)70"


def test_progress_counts_to_all_texts_and_can_end_the_work(tokenizer):
    tagger = recognizer(tokenizer)
    calls: list[tuple[int, int]] = []
    tagger.batch([ABSTRACT, "", "aspirin"], lambda done, total: calls.append((done, total)))
    assert calls[-1] == (3, 3)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tagger.batch([ABSTRACT], stop)


@pytest.mark.parametrize("text", [ABSTRACT * 300, "tumour" * 30_000], ids=["long", "one word"])
def test_a_long_text_can_be_left_before_the_model_has_read_any_of_it(tokenizer, monkeypatch, text):
    tagger = recognizer(tokenizer)
    monkeypatch.setattr(tagger, "log_probabilities", None)
    looks = 0

    def stop(done: int, total: int) -> None:
        nonlocal looks
        looks += 1
        if looks == len(text) // 10_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tagger.batch([text], stop)


def test_the_likeliest_labels_of_many_words_can_be_left(tokenizer):
    looks: list[int] = []
    scheme = recognizer(tokenizer).scheme
    scheme.decode(np.zeros((5_000, len(scheme.tags)), dtype=np.float32), lambda: looks.append(1))
    assert len(looks) == 4


def test_a_text_in_place_of_a_list_is_refused(tokenizer):
    with pytest.raises(ValueError, match="takes a list"):
        recognizer(tokenizer).batch("aspirin")


def test_a_language_model_is_refused_and_a_saved_head_comes_back(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no token classification head"):
        EntityRecognizer.from_pretrained("mini")
    tagger = recognizer(tokenizer, passage_copies=2, label_piece="last", **APART)
    tagger.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = EntityRecognizer.from_pretrained(tmp_path, device="cpu", precision="float32")
    assert again.types == ("Disease", "Gene")
    assert again.model.config.passage_copies == 2
    assert again(ABSTRACT) == tagger(ABSTRACT)
