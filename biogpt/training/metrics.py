"""Scores of trained models."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from biogpt.checkpoint.pretrained import BioGptForCausalLM, BioGptTokenizer
from biogpt.text.results import Entity

ALL = "micro"  # the row of a table that counts all labels together
NONE = "none"
_BINS = 15


class Labelled(Protocol):
    """A span with a label: a gold ``GoldSpan`` or a predicted ``Entity``."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def label(self) -> str: ...


@dataclass(frozen=True)
class Scores:
    """How well a label was found; 0 where there is nothing to divide by.

    Attributes:
        support: how many there are; predicted: how many were found; correct: how many are both.
    """

    support: int
    predicted: int
    correct: int

    @property
    def precision(self) -> float:
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        return self.correct / self.support if self.support else 0.0

    @property
    def f1(self) -> float:
        both = self.support + self.predicted
        return 2 * self.correct / both if both else 0.0

    def to_dict(self) -> dict[str, float]:
        """For a metrics file: precision, recall and F1 to 4 digits, and the number of cases."""
        ratios = {name: round(getattr(self, name), 4) for name in ("precision", "recall", "f1")}
        return ratios | {"support": self.support}


def entity_scores(
    gold: Sequence[Sequence[Labelled]], predicted: Sequence[Sequence[Labelled]]
) -> dict[str, Scores]:
    """Strict scores, by type and for all: an entity counts when both ends and the type are right.

    As the CoNLL scorer defines them (Tjong Kim Sang & De Meulder 2003, aclanthology W03-0419).

    Args:
        gold, predicted: the entities of each text; one given twice counts once.
    """
    return _scores([_triples(spans) for spans in gold], [_triples(spans) for spans in predicted])


def classification_scores(gold: Sequence[set[str]], predicted: Sequence[set[str]]) -> dict[str, Scores]:
    """Scores by label and for all, of texts with one label, several, or none."""
    return _scores(
        [{(label,) for label in labels} for labels in gold],
        [{(label,) for label in labels} for labels in predicted],
    )


def _triples(spans: Sequence[Labelled]) -> set[tuple]:
    return {(span.start, span.end, span.label) for span in spans}


def _scores(gold: Sequence[set[tuple]], predicted: Sequence[set[tuple]]) -> dict[str, Scores]:
    support: Counter[str] = Counter()
    found: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for true, guessed in zip(gold, predicted, strict=True):
        support.update(item[-1] for item in true)
        found.update(item[-1] for item in guessed)
        correct.update(item[-1] for item in true & guessed)
    labels = sorted(support | found)
    scores = {label: Scores(support[label], found[label], correct[label]) for label in labels}
    return scores | {ALL: Scores(support.total(), found.total(), correct.total())}


def entity_hits(
    gold: Sequence[Sequence[Labelled]], predicted: Sequence[Sequence[Entity]]
) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the entities found, and 1 for each that is right as in ``entity_scores``: [R] each."""
    hits = [
        (entity.score, (entity.start, entity.end, entity.label) in right)
        for right, entities in zip(map(_triples, gold), predicted, strict=True)
        for entity in entities
    ]
    scores, right = np.array(hits, dtype=float).reshape(-1, 2).T
    return scores, right


def calibration_error(probabilities: np.ndarray, right: np.ndarray, multi_label: bool = True) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): how far scores are from shares of hits.

    The mean distance, over 15 bins of like scores, weighted by their size, between the mean score and how
    often it was right.

    Args:
        probabilities: [R, N], or [R] of entities.
        right: of the same shape, 1 for what is right.
        multi_label: every label counts; else the likeliest of each row alone.
    """
    if multi_label:
        scores, hits = probabilities.ravel(), right.ravel()
    else:
        scores = probabilities.max(axis=1)
        hits = right[np.arange(len(right)), probabilities.argmax(axis=1)]
    if not len(scores):
        return 0.0
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    distances = np.bincount(bins, weights=scores - hits, minlength=_BINS)
    return float(np.abs(distances).sum() / len(scores))


def confusion(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """[N, N] counts, gold by row.

    Raises:
        ValueError: a label is not one of the N, as when only the dev split has it.
    """
    if unknown := {*gold, *predicted} - set(labels):
        raise ValueError(f"{', '.join(sorted(unknown))} is not among the labels {', '.join(labels)}")
    matrix = np.zeros((len(labels), len(labels)), dtype=int)
    for true, guessed in zip(gold, predicted, strict=True):
        matrix[labels.index(true), labels.index(guessed)] += 1
    return matrix


def entity_confusion(
    gold: Sequence[Sequence[Labelled]], predicted: Sequence[Sequence[Labelled]], types: Sequence[str]
) -> np.ndarray:
    """[N + 1, N + 1] counts of spans with the same ends, gold by row; the last is "no entity right here"."""
    true: list[str] = []
    guessed: list[str] = []
    for spans, found in zip(gold, predicted, strict=True):
        types_of = [{(span.start, span.end): span.label for span in side} for side in (spans, found)]
        for ends in types_of[0].keys() | types_of[1].keys():
            true.append(types_of[0].get(ends, NONE))
            guessed.append(types_of[1].get(ends, NONE))
    return confusion(true, guessed, [*types, NONE])


@torch.inference_mode()
def bits_per_byte(
    model: BioGptForCausalLM, tokenizer: BioGptTokenizer, texts: Sequence[str], batch_size: int = 16
) -> float:
    """How many bits the model needs for each UTF-8 byte of the texts, each scored whole after ``</s>``.

    A text longer than the model's positions is read in windows that overlap by half, so that every token but
    the first few hundred is predicted from at least half a window of context. The end of a text is not
    scored.

    Raises:
        ValueError: the texts are empty.
    """
    total_bytes = sum(len(text.encode()) for text in texts)
    if not total_bytes:
        raise ValueError("no text to score")
    device = model.device
    limit = model.config.max_position_embeddings
    windows = []  # (ids, first target that counts)
    for text in texts:
        ids = tokenizer.encode(text).ids
        windows.append((ids[: limit + 1], 0))
        for start in range(limit // 2, len(ids) - 1 - limit // 2, limit // 2):
            windows.append((ids[start : start + limit + 1], limit - limit // 2))
    windows.sort(key=lambda window: len(window[0]))
    nats = 0.0
    for first in range(0, len(windows), batch_size):
        batch = windows[first : first + batch_size]
        longest = max(len(ids) for ids, _ in batch)
        rows = torch.full((len(batch), longest), -100)
        scored = torch.full((len(batch), longest), -100)
        for row, (ids, begin) in enumerate(batch):
            rows[row, : len(ids)] = scored[row, : len(ids)] = torch.tensor(ids)
            scored[row, : begin + 1] = -100
        if longest < 2:
            continue
        rows = rows.masked_fill(rows < 0, tokenizer.pad_token_id).to(device)
        logits = model(rows[:, :-1]).logits.float()
        targets = scored[:, 1:].to(device)
        nats += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    return nats / math.log(2) / total_bytes
