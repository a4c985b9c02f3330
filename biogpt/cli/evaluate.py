"""``evaluate``: scores of heads on labelled text."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from biogpt.checkpoint.pretrained import BioGptForSequenceClassification
from biogpt.cli.arguments import add_model
from biogpt.cli.labelled import TAGGED_FILES, add_labelled, add_tagged, labelling_task, read_scored
from biogpt.cli.results import as_table
from biogpt.tasks.classification import TextClassifier
from biogpt.tasks.entities import EntityRecognizer
from biogpt.training.objectives import EntityObjective


def add_ner(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE[:old=New,…]", help=TAGGED_FILES)
    add_tagged(parser)
    add_model(parser, "mini-ner")
    parser.set_defaults(run=_evaluate_ner)


def add_classify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="TSV or JSONL files")
    add_model(parser, None, "mini-hoc; mini-rct with --sentences")
    add_labelled(parser)
    parser.set_defaults(run=_evaluate_classify)


def _evaluate_ner(chosen: argparse.Namespace) -> None:
    corpora = [read_scored(name, chosen.discontinuous) for name in chosen.files]
    recognizer = EntityRecognizer.from_pretrained(
        chosen.model, device=chosen.device, precision=chosen.precision
    )
    for corpus in corpora:
        _check_known(f"the types of {corpus.name}", corpus.types, recognizer.types, "; FILE:old=New renames")
    result = EntityObjective(corpora, corpora, {}).evaluate(recognizer.model, recognizer.tokenizer)
    assert result is not None
    for name, metrics in result.metrics.items():
        scores = dict(metrics)
        print(f"{name}\ncalibration error {scores.pop('calibration_error'):.4f}\n{_scores(scores)}", end="")


def _evaluate_classify(chosen: argparse.Namespace) -> None:
    task = labelling_task(chosen, chosen.files, chosen.files)
    classifier = TextClassifier.from_pretrained(
        chosen.model or ("mini-rct" if chosen.sentences else "mini-hoc"),
        device=chosen.device,
        precision=chosen.precision,
    )
    _check_known("the labels", task.labels, classifier.labels)
    task.labels = classifier.labels
    assert isinstance(classifier.model, BioGptForSequenceClassification)
    result = task.evaluate(classifier.model, classifier.tokenizer)
    assert result is not None
    scores = dict(result.metrics)
    for name in ("accuracy", "calibration_error"):
        if name in scores:
            print(f"{name.replace('_', ' ')} {scores.pop(name):.4f}")
    print(_scores(scores), end="")


def _check_known(what: str, given: Iterable[str], known: Sequence[str], hint: str = "") -> None:
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{what} include {unknown}; the model knows {', '.join(known)}{hint}")


def _scores(scores: dict[str, dict[str, float]]) -> str:
    columns = ("precision", "recall", "f1", "support")
    rows = [(label, *(f"{of_label[column]}" for column in columns)) for label, of_label in scores.items()]
    return as_table(("label", *columns), rows)
