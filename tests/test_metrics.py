"""Strict entity scores against an independent scorer, and by hand."""

import numpy as np
import pytest

from biogpt.training.labelled import GoldSpan, tag_spans
from biogpt.training.metrics import classification_scores, confusion, entity_confusion, entity_scores
from biogpt.training.plots import confusion_figure, confusion_plot


def spans(tags):
    return [GoldSpan(*span) for span in tag_spans(tags)]


def test_strict_scores_equal_those_of_seqeval():
    metrics = pytest.importorskip("seqeval.metrics")
    random = np.random.default_rng(0)
    tags = ["O", "B-X", "I-X", "B-Y", "I-Y"]
    for _ in range(40):
        gold, found = ([list(random.choice(tags, 12)) for _ in range(5)] for _ in range(2))
        ours = entity_scores([spans(s) for s in gold], [spans(s) for s in found])
        theirs = metrics.classification_report(gold, found, output_dict=True, zero_division=0)
        for label, name in (("X", "X"), ("Y", "Y"), ("micro", "micro avg")):
            scores = ours[label]
            assert scores.precision == pytest.approx(theirs[name]["precision"])
            assert scores.recall == pytest.approx(theirs[name]["recall"])
            assert scores.f1 == pytest.approx(theirs[name]["f1-score"])
            assert scores.support == theirs[name]["support"]


def test_a_wrong_end_or_type_earns_nothing():
    gold = [[GoldSpan(0, 4, "X"), GoldSpan(6, 9, "Y")]]
    found = [[GoldSpan(0, 5, "X"), GoldSpan(6, 9, "X"), GoldSpan(6, 9, "X")]]
    scores = entity_scores(gold, found)
    assert (scores["micro"].correct, scores["micro"].predicted, scores["micro"].support) == (0, 2, 2)
    scores = entity_scores(gold, [[GoldSpan(6, 9, "Y"), GoldSpan(0, 3, "Y")]])
    assert (scores["Y"].precision, scores["Y"].recall, scores["X"].recall) == (0.5, 1.0, 0.0)
    assert scores["micro"].f1 == 0.5
    assert scores["micro"].to_dict() == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}


def test_the_same_span_in_another_text_is_not_the_same():
    one = [GoldSpan(0, 4, "X")]
    assert entity_scores([one, []], [[], one])["micro"].f1 == 0


def test_scores_of_several_labels_a_text():
    scores = classification_scores([{"a", "b"}, set(), {"b"}], [{"a"}, {"b"}, {"b"}])
    assert (scores["a"].f1, scores["b"].f1) == (1.0, 0.5)
    assert scores["micro"].f1 == pytest.approx(2 / 3)


def test_confusion_counts_by_row_what_was_meant():
    assert confusion(["a", "a", "b"], ["a", "b", "b"], ["a", "b"]).tolist() == [[1, 1], [0, 1]]
    gold = [[GoldSpan(0, 4, "X"), GoldSpan(6, 9, "Y")]]
    found = [[GoldSpan(0, 4, "Y"), GoldSpan(6, 8, "Y")]]
    assert entity_confusion(gold, found, ["X", "Y"]).tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_the_plot_shows_counts_and_is_a_png(tmp_path):
    matrix = np.array([[5, 0], [2, 7]])
    figure = confusion_figure(matrix, ["Gene", "none"])
    (axes,) = figure.axes
    shown = {text.get_position(): text.get_text() for text in axes.texts}  # (column, row)
    assert shown == {(0, 0): "5\n100%", (0, 1): "2\n22%", (1, 1): "7\n78%"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Gene", "none"]
    confusion_plot(matrix, ["Gene", "none"], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_label_that_the_head_does_not_have_is_named():
    with pytest.raises(ValueError, match="METHOD is not among the labels AIM, METHODS"):
        confusion(["METHOD"], ["AIM"], ["AIM", "METHODS"])
