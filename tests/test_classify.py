"""Label scores: the reference's logits, windows, sentences in one pass, labels of your own."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from biogpt import BioGptForCausalLM, BioGptForSequenceClassification, BioGptTokenizer, TextClassifier
from biogpt.model.config import BioGptConfig
from biogpt.tasks.classification import sentence_rows
from biogpt.text.sentences import sentence_spans

TEXTS = [
    "Aspirin reduced the risk of colorectal cancer.",
    "Tumours need new vessels.",
    "TP53 was mutated in most of the samples that we sequenced, and patients with a mutation died sooner.",
    "p < 0.05",
]


@pytest.fixture(scope="module")
def tokenizer():
    return BioGptTokenizer.from_pretrained("mini")


@pytest.fixture
def build(tokenizer, lively):
    def make(problem="single_label_classification", head=BioGptForSequenceClassification, **changes):
        config = BioGptConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
            id2label={0: "a", 1: "b", 2: "c"},
            problem_type=problem,
        )
        return lively(head, replace(config, **changes))

    return make


def by_label(scores):
    return {score.label: score.score for score in scores}


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_probabilities_are_those_of_the_reference(build, tokenizer, reference_of, problem):
    model = build(problem)
    reference = reference_of(model)
    results = TextClassifier(model, tokenizer).batch(TEXTS)
    for text, result in zip(TEXTS, results, strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([tokenizer.encode(text).ids])).logits[0]
        expected = logits.softmax(-1) if problem.startswith("single") else logits.sigmoid()
        found = by_label(result.scores)
        assert [found[label] for label in "abc"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert [s.score for s in result.scores] == sorted(found.values(), reverse=True)


def test_a_batch_gives_each_text_what_it_gets_alone_in_its_place(build, tokenizer, monkeypatch):
    """Texts are read by length, several batches of them; the answers come in the order given."""
    monkeypatch.setattr("biogpt.tasks.batching._CPU_BATCH_TOKENS", 100)
    for problem in ("single_label_classification", "multi_label_classification"):
        classifier = TextClassifier(build(problem), tokenizer)
        texts = [TEXTS[i % 4][: 90 - 7 * i] for i in range(12)] + [" ".join(TEXTS * 4), "."]
        alone = [classifier.classify(text) for text in texts]
        together = classifier.batch(texts)
        assert len({result.scores[0].score for result in alone}) > 8
        for one, other in zip(alone, together, strict=True):
            assert one.windows == other.windows
            assert by_label(one.scores) == pytest.approx(by_label(other.scores), abs=1e-5)


def test_padding_is_not_seen_by_layers_that_look_both_ways(build, tokenizer):
    classifier = TextClassifier(build(bidirectional_layers=2), tokenizer)
    together = classifier.batch([TEXTS[1], TEXTS[2]])[0]
    assert by_label(together.scores) == pytest.approx(by_label(classifier(TEXTS[1])), abs=1e-5)


def test_long_texts_are_read_whole_in_windows(build, tokenizer):
    long = " ".join(TEXTS * 8)
    for problem in ("single_label_classification", "multi_label_classification"):
        model = build(problem)
        result = TextClassifier(model, tokenizer).classify(long)
        ids = tokenizer.encode(long).ids
        assert result.windows > 2
        assert result.cut == 0
        rows = []
        for start in range(0, len(ids) - 1, 32):  # 63 tokens beside the separator, half of them new
            rows.append(ids[:1] + ids[1 + start : 1 + start + 63])
            if start + 63 >= len(ids) - 1:
                break
        assert len(rows) == result.windows
        with torch.no_grad():
            logits = torch.cat([model(torch.tensor([row])).logits for row in rows]).numpy()
        if problem.startswith("multi"):
            expected = (1 / (1 + np.exp(-logits))).max(axis=0)
        else:
            parts = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            expected = np.average(parts, axis=0, weights=[len(row) for row in rows])
        found = by_label(result.scores)
        assert [found[label] for label in "abc"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_sentences_are_scored_as_the_text_up_to_their_end(build, tokenizer):
    classifier = TextClassifier(build(), tokenizer)
    text = "We studied aspirin. It was given daily.\r\n\tFewer tumours grew \U0001f9ec. It works."
    roles = classifier.sentences(text)
    assert [(role.start, role.end) for role in roles] == sentence_spans(text)
    for role in roles:
        alone = classifier(text[: role.end])[0]
        assert (role.label, role.score) == (alone.label, pytest.approx(alone.score, abs=1e-5))
    assert len({round(role.score, 4) for role in roles}) == len(roles)


def test_rows_of_sentences_read_each_once_with_context():
    pieces = [[10 * n + k for k in range(4)] for n in range(1, 9)] + [[7] * 20] + [[9, 9]]
    read = []
    for ids, first, reads, begins in sentence_rows(pieces, 20, 2):
        assert len(ids) <= 21
        assert ids[0] == 2
        assert first == len(read)
        whole = [ids[begin : at + 1] for begin, at in zip(begins, reads, strict=True)]
        assert whole == pieces[first : first + len(reads)]
        read += [ids[at] for at in reads]
        if len(read) > 6 and ids[-1] not in (7, 9):  # a later row begins with sentences of the one before
            assert reads[0] > 4
    assert read == [sentence[-1] for sentence in pieces]


def test_a_long_abstract_gets_a_label_for_every_sentence(build, tokenizer):
    text = " ".join(TEXTS[:2] * 20)
    roles = TextClassifier(build(), tokenizer).sentences(text)
    assert [(role.start, role.end) for role in roles] == sentence_spans(text)
    given = TextClassifier(build(), tokenizer).sentences(text, [(0, 5), (6, 20)])
    assert [(role.start, role.end) for role in given] == [(0, 5), (6, 20)]


def test_a_sentence_longer_than_the_model_is_read_by_its_end(build, tokenizer):
    classifier = TextClassifier(build(), tokenizer)
    text = "It works. We gave " + "aspirin and " * 60 + "placebo. Tumours shrank."
    roles = classifier.sentences(text)
    assert len(roles) == 3
    pieces = tokenizer.encode(text[roles[1].start : roles[1].end], special_tokens=False).ids
    with torch.no_grad():
        end = classifier.model(torch.tensor([[2, *pieces[-63:]]])).logits.softmax(-1)
    assert roles[1].score == pytest.approx(end.max().item(), abs=1e-5)


def test_an_abstract_is_read_both_ways_whole_however_long(build, tokenizer):
    """Windows are the decoder's alone: the layers above read the sentences of all of them."""
    model = build(pooling="mean", sentence_encoder_size=4, label_chain=True)
    torch.nn.init.normal_(model.chain.transitions)
    classifier = TextClassifier(model, tokenizer)
    for text in (" ".join(TEXTS[:2]), " ".join(TEXTS[:3] * 8)):
        spans = sentence_spans(text)
        pieces = [tokenizer.encode(text[a:b], special_tokens=False).ids for a, b in spans]
        vectors = []
        for ids, _, reads, begins in sentence_rows(pieces, 63, 2):
            hidden = model.biogpt(torch.tensor([ids])).last_hidden_state[0]
            for begin, read in zip(begins, reads, strict=True):
                tokens = torch.nn.functional.layer_norm(hidden[begin : read + 1], (24,))
                vectors.append(tokens.mean(dim=0))
        scores = model.read(torch.stack(vectors), [len(spans)])
        expected = model.chain.log_marginals(scores, [len(spans)]).exp()
        found = classifier.sentences(text)
        assert [role.label for role in found] == ["abc"[index] for index in expected.argmax(dim=1)]
        assert [role.score for role in found] == pytest.approx(expected.amax(dim=1).tolist(), abs=1e-5)
    assert len(vectors) > 20  # several windows


def test_a_head_for_sentences_labels_no_text_as_a_whole(build, tokenizer):
    classifier = TextClassifier(build(sentence_encoder_size=4), tokenizer)
    with pytest.raises(ValueError, match=r"labels the sentences of an abstract.*--sentences"):
        classifier("We studied aspirin.")


def test_calibration_changes_scores_and_no_ranking_and_is_kept(build, tokenizer, tmp_path):
    kinds = [
        ("single_label_classification", {"pooling": "mean"}),
        ("single_label_classification", {"sentence_encoder_size": 4, "label_chain": True}),
        ("multi_label_classification", {}),
    ]
    for number, (problem, changes) in enumerate(kinds):
        model = build(problem, **changes)
        classifier = TextClassifier(model, tokenizer)
        text, spans = TEXTS[2], [(0, 20), (21, len(TEXTS[2]))]
        raw = classifier.sentence_probabilities(text, spans)
        bias = 0.5 if classifier.multi_label else 0.0
        model.config = replace(model.config, score_temperature=2.0, score_bias=bias)
        model.save_pretrained(tmp_path / str(number))
        tokenizer.save_pretrained(tmp_path / str(number))
        kept = TextClassifier.from_pretrained(tmp_path / str(number), precision="float32")
        scores = kept.sentence_probabilities(text, spans)
        if classifier.multi_label:
            expected = 1 / (1 + np.exp(-(np.log(raw / (1 - raw)) / 2 + 0.5)))
        else:
            expected = np.sqrt(raw) / np.sqrt(raw).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        assert np.abs(scores - raw).max() > 0.01
        assert np.array_equal(np.argsort(scores, axis=1), np.argsort(raw, axis=1))
        if not changes.get("sentence_encoder_size"):
            assert [s.label for s in kept(text)] == [s.label for s in classifier(text)]
            whole = by_label(kept(text))
            model.config = replace(model.config, score_temperature=1.0, score_bias=0.0)
            assert whole != pytest.approx(by_label(classifier(text)), abs=0.01)


@pytest.mark.parametrize("span", [(-1, 3), (2, 2), (3, 2), (0, 10), (4, 5)])
def test_spans_that_hold_no_sentence_are_refused(build, tokenizer, span):
    with pytest.raises(ValueError, match=re.escape(f"{span} is not a sentence of this text of 9 characters")):
        TextClassifier(build(), tokenizer).sentences("Yes. No. ", [(0, 4), span])


def naive(model, tokenizer, text, labels, start=""):
    """Every label with its own full pass."""
    scores = []
    ask = tokenizer.encode(" This is about ", special_tokens=False).ids
    for label in labels:
        means = []
        for before in (tokenizer.encode(start + text).ids, tokenizer.encode(start).ids):
            own = tokenizer.encode(label, special_tokens=False).ids
            whole = torch.tensor([before + ask + own])
            with torch.no_grad():
                chosen = model(whole).logits[0].log_softmax(-1)
            first = len(before) + len(ask)
            means.append(np.mean([chosen[first + k - 1, index].item() for k, index in enumerate(own)]))
        scores.append(means[0] - means[1])
    return np.exp(scores) / np.exp(scores).sum()


def test_labels_of_your_own_equal_a_pass_for_each(build, tokenizer):
    model = build(head=BioGptForCausalLM, problem=None, id2label=None)
    labels = ["cancer", "heart and kidney disease", "α-synuclein"]
    for start in (
        "",
        "Patients with heart disease were seen. ",
    ):  # calibrated with it, or it would favour its words
        classifier = TextClassifier(model, tokenizer, labels, start + "{text} This is about {label}.")
        for text in TEXTS:
            found = by_label(classifier(text))
            expected = naive(model, tokenizer, text, labels, start)
            assert [found[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-5)
        assert not classifier.multi_label


def test_more_labels_than_memory_are_compared_in_turns(build, tokenizer, monkeypatch):
    model = build(head=BioGptForCausalLM, problem=None, id2label=None)
    labels = ["cancer", "heart and kidney disease", "α-synuclein", "sleep"]
    at_once = TextClassifier(model, tokenizer, labels).batch(TEXTS)
    row = 2 * 2 * 24 * 64 * 4  # bytes: keys and values, 2 layers, 24 wide, at most 64 positions, float32
    for size in (1, 3 * row):
        monkeypatch.setattr("biogpt.tasks.phrases._CACHE_BYTES", size)
        in_turns = TextClassifier(model, tokenizer, labels).batch(TEXTS)
        for one, other in zip(at_once, in_turns, strict=True):
            assert by_label(one.scores) == pytest.approx(by_label(other.scores), abs=1e-5)


def test_each_text_of_a_batch_is_compared_as_alone(build, tokenizer):
    model = build(head=BioGptForCausalLM, problem=None, id2label=None)
    calls = []
    classifier = TextClassifier(model, tokenizer, ["cancer", "heart disease"])
    together = classifier.batch(TEXTS, lambda done, total: calls.append((done, total)))
    assert list(dict.fromkeys(calls)) == [(done, 4) for done in range(5)]  # also between two texts
    assert len({result.scores[0].score for result in together}) == 4
    assert [TextClassifier(model, tokenizer, ["cancer", "heart disease"])(text) for text in TEXTS] == [
        result.scores for result in together
    ]


def test_a_text_that_does_not_fit_beside_the_labels_says_what_was_cut(build, tokenizer):
    model = build(head=BioGptForCausalLM, problem=None, id2label=None)
    classifier = TextClassifier(model, tokenizer, ["cancer", "heart disease"])
    long = " ".join(TEXTS * 4)
    assert classifier.classify(TEXTS[0]).cut == 0
    cut = classifier.classify(long).cut
    assert 0 < cut < len(tokenizer.encode(long).ids)
    kept = tokenizer.encode(long)
    end = kept.offsets[len(kept.ids) - cut - 1][1]
    assert classifier.classify(long[:end]).scores == classifier.classify(long).scores


def test_mini_knows_diabetes_from_cancer():
    classifier = TextClassifier.from_pretrained("mini", labels=["cancer", "diabetes"])
    assert classifier("Insulin lowered blood glucose in these patients.")[0].label == "diabetes"
    assert classifier("Tumours shrank after chemotherapy in these patients.")[0].label == "cancer"


@pytest.mark.parametrize(
    ("labels", "template", "message"),
    [
        (None, "{text} {label}", "no labels of its own"),
        (["a"], "{text} {label}", "expected at least two"),
        (["a", "a"], "{text} {label}", "all different"),
        (["a", " a"], "{text} {label}", "all different"),
        (["a", " "], "{text} {label}", "none empty"),
        (["a", "\u200b"], "{text} {label}", "none empty"),
        ("ab", "{text} {label}", "expected a list of phrases"),
        ([1, 2], "{text} {label}", "expected a list of phrases"),
        (["a", "b"], "{label} {text}", "the template is"),
        (["a", "b"], "{text}", "the template is"),
        (["a", "b"], "{text} {text} {label}", "the template is"),
        (["a", "b"], "b " * 99 + "{text} {label}", "no room for a text"),
        (["a", "b " * 99], "{text} {label}", "no room for a text"),
    ],
)
def test_wrong_labels_and_templates_are_refused(build, tokenizer, labels, template, message):
    model = build(head=BioGptForCausalLM, problem=None, id2label=None)
    with pytest.raises(ValueError, match=message):
        TextClassifier(model, tokenizer, labels, template)


def test_labels_of_your_own_for_a_trained_head_are_refused_by_name(build, tokenizer, tmp_path):
    build().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no language model head, which labels of your own need"):
        TextClassifier.from_pretrained(tmp_path, labels=["x", "y"])
    assert TextClassifier.from_pretrained(tmp_path).labels == ("a", "b", "c")


def test_what_does_not_fit_a_head_is_refused(build, tokenizer):
    classifier = TextClassifier(build(), tokenizer)
    for blank in (" \n", "\u200b", "\ufeff \u00ad", "\u0301\ufe0f"):
        with pytest.raises(ValueError, match="the text is empty"):
            classifier(blank)
        with pytest.raises(ValueError, match="the text is empty"):
            classifier.sentences(blank)
    assert [found.start for found in classifier.sentences("One.\n\n\u200b\n\nTwo.")] == [0, 9]
    with pytest.raises(ValueError, match="text 2 of 2 is empty"):
        classifier.batch(["a", ""])
    with pytest.raises(TypeError, match="text 2 of 2 is of type int; expected a string"):
        classifier.batch(["a", 5])
    with pytest.raises(ValueError, match="takes a list"):
        classifier.batch("a")
    with pytest.raises(ValueError, match="need a language model"):
        TextClassifier(build(), tokenizer, labels=["x", "y"])
    with pytest.raises(ValueError, match="predicts a number"):
        TextClassifier(build("regression"), tokenizer)
    with pytest.raises(ValueError, match="give labels of your own"):
        TextClassifier.from_pretrained("mini")
    model = build(head=BioGptForCausalLM, problem=None, id2label=None)
    with pytest.raises(ValueError, match="need a trained head"):
        TextClassifier(model, tokenizer, ["x", "y"]).sentences("One.")


def test_progress_counts_to_all_texts(build, tokenizer):
    calls = []
    TextClassifier(build(), tokenizer).batch(TEXTS, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (4, 4)


@pytest.mark.parametrize("task", ["texts", "sentences", "labels of your own"])
def test_a_long_text_can_be_left_before_the_model_has_read_any_of_it(build, tokenizer, monkeypatch, task):
    text = "Naloxone reverses the effect of clonidine in rats. " * 2_000
    own = task == "labels of your own"
    model = build(head=BioGptForCausalLM, problem=None, id2label=None) if own else build()
    classifier = TextClassifier(model, tokenizer, ["x", "y"] if own else None)
    classifier("A short one.")  # what is kept of the labels alone
    monkeypatch.setattr(model.biogpt, "forward", None)
    looks = 0

    def stop(done: int, total: int) -> None:
        nonlocal looks
        looks += 1
        if looks == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classifier.sentences(text, None, stop) if task == "sentences" else classifier.batch([text], stop)
