"""Probabilities of a trained head made honest: of what it calls 80 % sure, 80 % is then right.

One temperature, by which logits are divided, fitted on texts that were not trained on (Guo et al. 2017,
arXiv:1706.04599); where a text may have several labels also a bias (Platt 1999). Both are the same for all
labels, so that none overtakes another. That of a tagger is fitted to entities as a whole.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from biogpt.checkpoint.files import written_whole
from biogpt.checkpoint.layout import CONFIG, require
from biogpt.checkpoint.pretrained import BioGptForSequenceClassification
from biogpt.tasks.classification import TextClassifier
from biogpt.tasks.entities import EntityRecognizer
from biogpt.tasks.words import words_of
from biogpt.text.files import read_json
from biogpt.training.metrics import calibration_error, entity_hits
from biogpt.training.objectives import EntityCorpus, SentenceObjective, TextObjective

_LEAST = 1e-7  # a probability; float32 has none nearer to 1
_MOST_TEMPERATURE = 100.0
# Of a tagger's temperature: the most of its logarithm, either way, and how exactly that is fitted.
_MOST_LOG, _EXACT = math.log(10), 0.005


class Calibration(NamedTuple):
    """What was fitted, and the expected calibration error without and with it; see ``calibration_error``."""

    temperature: float
    bias: float
    before: float
    after: float


def fit_calibration(probabilities: np.ndarray, right: np.ndarray, multi_label: bool) -> tuple[float, float]:
    """The temperature and the bias under which what is right is likeliest; the bias is 0 for single labels.

    Args:
        probabilities: [R, N] without either.
        right: [R, N], 1 for what is right.

    Raises:
        ValueError: the head is always right, or no better than chance, so that no temperature is best.
    """
    found = torch.from_numpy(probabilities).double().clamp(_LEAST, 1 - _LEAST)
    logits = found.logit() if multi_label else found.log()
    targets = torch.from_numpy(right).double()
    dim = (0, 1) if multi_label else (1,)
    of_right, of_wrong = (
        logits.masked_fill(targets != value, worst) for value, worst in ((1, math.inf), (0, -math.inf))
    )
    if bool((of_right.amin(dim) > of_wrong.amax(dim)).all()):
        raise ValueError(
            f"the head is always right in these {len(right)} cases, so that no score would be too high; "
            "calibrate on more texts that it was not trained on"
        )
    slope, bias = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    fitted = [slope, bias] if multi_label else [slope]
    optimizer = torch.optim.LBFGS(fitted, max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scaled = logits * slope.exp() + bias
        if multi_label:
            value = F.binary_cross_entropy_with_logits(scaled, targets)
        else:
            value = -(scaled.log_softmax(dim=1) * targets).sum(dim=1).mean()
        value.backward()
        return value

    optimizer.step(loss)
    temperature = float((-slope.detach()).exp())
    if not 1 / _MOST_TEMPERATURE < temperature < _MOST_TEMPERATURE:
        raise ValueError(
            f"the best temperature for these {len(right)} cases is {temperature:.3g}: the head is no better "
            "than chance there; calibrate on texts with the labels that it was trained for"
        )
    return temperature, float(bias.detach())


def fit_entities(
    recognizer: EntityRecognizer, corpora: Sequence[EntityCorpus]
) -> tuple[float, tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The temperature under which the scores of the entities found are likeliest.

    Returns:
        The temperature, and what ``entity_hits`` gives without and with it.

    Raises:
        ValueError: nothing was found, all or none of it is right, or no temperature within reason is best.
    """
    texts = [(text.text, text.spans, corpus.types) for corpus in corpora for text in corpus.texts]
    words = [words_of(recognizer.tokenizer, text) for text, _, _ in texts]
    model = recognizer.model
    model.config = replace(model.config, score_temperature=1.0)
    raw = recognizer.log_probabilities(words)

    def hits(temperature: float) -> tuple[np.ndarray, np.ndarray]:
        found = []
        for (text, _, types), of_text, scores in zip(texts, words, raw, strict=True):
            scaled = torch.from_numpy(scores / temperature).log_softmax(dim=1).numpy()
            entities = recognizer.entities_of(text, of_text, scaled)
            found.append([entity for entity in entities if entity.label in types])
        return entity_hits([spans for _, spans, _ in texts], found)

    def loss(log_temperature: float) -> float:
        scores, right = hits(math.exp(log_temperature))
        scores = scores.clip(_LEAST, 1 - _LEAST)
        return float(-(right * np.log(scores) + (1 - right) * np.log1p(-scores)).mean())

    before = hits(1.0)
    if before[1].min(initial=1) == before[1].max(initial=0):
        raise ValueError(
            f"of the {len(before[1])} entities found all or none are right, so that no temperature is best; "
            "calibrate on more text that it was not trained on"
        )
    best = _lowest(loss, -_MOST_LOG, _MOST_LOG)
    if abs(best) > _MOST_LOG - _EXACT:  # it is further on, and the search has stopped at its end
        limit = math.exp(math.copysign(_MOST_LOG, best))
        raise ValueError(
            f"the best temperature for these {len(before[1])} entities is {limit:.3g} or beyond: scores say "
            f"{'hardly anything' if best > 0 else 'too little'} of what is right; calibrate on more text "
            "with the types that the tagger was trained for"
        )
    temperature = round(math.exp(best), 4)
    return temperature, before, hits(temperature)


def _lowest(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that falls and then rises is lowest, by golden sections (Kiefer 1953)."""
    share = (math.sqrt(5) - 1) / 2
    left, right = high - share * (high - low), low + share * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > _EXACT:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - share * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + share * (high - low)
            at_right = function(right)
    return (low + high) / 2


def calibrate_entities(
    folder: Path, corpora: Sequence[EntityCorpus], device: str = "auto", precision: str = "auto"
) -> Calibration:
    """Fit the temperature of a tagger to corpora, and write it into its config; no entity changes by it.

    Args:
        folder: of the head; the temperature that it has is replaced.
        corpora: each by the types that it annotates.
        device, precision: as of ``PretrainedModel.from_pretrained``.

    Raises:
        ValueError: ``folder`` is not a folder, or holds no tagger; or as ``fit_entities``.
        OSError: it cannot be written to; what was there is kept.
    """
    _check_folder(folder)
    recognizer = EntityRecognizer.from_pretrained(folder, device=device, precision=precision)
    temperature, before, after = fit_entities(recognizer, corpora)
    _write(folder, {"score_temperature": temperature})
    return Calibration(temperature, 0.0, calibration_error(*before), calibration_error(*after))


def calibrate(
    folder: Path, task: TextObjective | SentenceObjective, device: str = "auto", precision: str = "auto"
) -> Calibration:
    """Fit the temperature and bias of a head to texts, and write them into its config.

    Args:
        folder: of the head; what it has of either is replaced.
        task: its dev split is what to calibrate on.
        device, precision: as of ``PretrainedModel.from_pretrained``.

    Raises:
        ValueError: ``folder`` is not a folder, or holds no such head; or as ``fit_calibration``.
        OSError: it cannot be written to; what was there is kept.
    """
    _check_folder(folder)
    classifier = TextClassifier.from_pretrained(folder, device=device, precision=precision)
    model = classifier.model
    assert isinstance(model, BioGptForSequenceClassification)
    task.labels = classifier.labels
    model.config = replace(model.config, score_temperature=1.0, score_bias=0.0)
    raw, right = task.probabilities(model, classifier.tokenizer)
    multi_label = classifier.multi_label
    temperature, bias = (round(value, 4) for value in fit_calibration(raw, right, multi_label))
    model.config = replace(model.config, score_temperature=temperature, score_bias=bias)
    fitted, _ = task.probabilities(model, classifier.tokenizer)
    _write(folder, {"score_temperature": temperature, "score_bias": bias})
    errors = (calibration_error(one, right, multi_label) for one in (raw, fitted))
    return Calibration(temperature, bias, *errors)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder; expected that of a trained head, whose config is changed"
        )


def _write(folder: Path, fitted: dict[str, float]) -> None:
    values = read_json(require(folder, CONFIG)) | fitted
    with written_whole(folder, CONFIG) as (unfinished,):
        text = json.dumps(values, indent=2, ensure_ascii=False)
        unfinished.write_text(text + "\n", encoding="utf-8")
