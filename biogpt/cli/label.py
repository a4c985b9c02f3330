"""``ner`` and ``classify``: entities and labels of texts."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from biogpt.cli.arguments import add_model, share, standard_input
from biogpt.cli.job import add_job, refuse_job_flags, run_job
from biogpt.cli.results import as_table, check_out, put
from biogpt.cluster.work import Classify, FindEntities
from biogpt.tasks.classification import TEMPLATE, TextClassifier
from biogpt.tasks.entities import EntityRecognizer
from biogpt.text.documents import FORMATS, Document, read_documents
from biogpt.text.export import CLASS_FORMATS, ENTITY_FORMATS, classes_as, entities_as, sentences_as
from biogpt.text.plain import is_blank


def add_ner(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "mini-ner")
    _add_texts(parser, ENTITY_FORMATS)
    parser.add_argument("--min-score", type=share, default=0.0, help="leave out less sure ones (%(default)s)")
    parser.add_argument("--types", nargs="+", help="these types only")
    parser.set_defaults(run=_ner)


def add_classify(parser: argparse.ArgumentParser) -> None:
    add_model(parser, None, "mini-hoc; mini-rct with --sentences, mini with --labels")
    _add_texts(parser, CLASS_FORMATS)
    parser.add_argument("--labels", nargs="+", help="labels of your own, compared by a language model")
    parser.add_argument("--template", default=TEMPLATE, help="what it reads with --labels (%(default)s)")
    parser.add_argument("--sentences", action="store_true", help="label each sentence after those before it")
    parser.set_defaults(run=_classify)


def _add_texts(parser: argparse.ArgumentParser, formats: Iterable[str]) -> None:
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("text", nargs="?", help="the text; - reads it from standard input")
    given.add_argument("--file", type=Path, help=f"many texts: {', '.join(FORMATS)}")
    add_job(parser, given)
    parser.add_argument(
        "--format",
        choices=("table", *formats, "parquet"),
        help="of the results (table; with --input jsonl, or parquet)",
    )
    parser.add_argument("--out", type=Path, help="file to write; standard output when left out")


def _documents(chosen: argparse.Namespace) -> list[Document]:
    refuse_job_flags(chosen)
    chosen.format = chosen.format or "table"
    if chosen.format == "parquet":
        raise ValueError("--format parquet needs --input and --output")
    if chosen.file:
        return read_documents(chosen.file)
    text = standard_input() if chosen.text == "-" else chosen.text
    if is_blank(text):
        raise ValueError("the text is empty; give a text, or a file with --file")
    return [Document("1", text)]


def _ner(chosen: argparse.Namespace) -> None:
    if chosen.input is not None:
        task = FindEntities(
            model=chosen.model,
            device=chosen.device,
            precision=chosen.precision,
            types=tuple(chosen.types or ()),
            min_score=chosen.min_score,
        )
        return run_job(chosen, task)
    documents = _documents(chosen)
    check_out(chosen)
    recognizer = EntityRecognizer.from_pretrained(
        chosen.model, device=chosen.device, precision=chosen.precision
    )
    types = recognizer.chosen(chosen.types or ())
    with _bar(documents) as bar:
        found = recognizer.batch([document.text for document in documents], bar, types)
    wanted = [[entity for entity in entities if entity.score >= chosen.min_score] for entities in found]
    if chosen.format == "table":
        rows = [
            (
                document.id,
                entity.label,
                str(entity.start),
                str(entity.end),
                f"{entity.score:.3f}",
                " ".join(entity.text.split()),
            )
            for document, entities in zip(documents, wanted, strict=True)
            for entity in entities
        ]
        put(chosen, as_table(("id", "label", "start", "end", "score", "text"), rows).encode())
    else:
        put(chosen, entities_as(chosen.format, documents, wanted))


def _classify(chosen: argparse.Namespace) -> None:
    default = "mini-rct" if chosen.sentences else "mini" if chosen.labels else "mini-hoc"
    if chosen.input is not None:
        task = Classify(
            model=chosen.model or default,
            device=chosen.device,
            precision=chosen.precision,
            labels=None if chosen.labels is None else tuple(chosen.labels),
            template=chosen.template,
            sentences=chosen.sentences,
        )
        return run_job(chosen, task)
    documents = _documents(chosen)
    check_out(chosen)
    classifier = TextClassifier.from_pretrained(
        chosen.model or default,
        device=chosen.device,
        precision=chosen.precision,
        labels=chosen.labels,
        template=chosen.template,
    )
    label = _label_sentences if chosen.sentences else _label_texts
    label(chosen, classifier, documents)


def _label_sentences(
    chosen: argparse.Namespace, classifier: TextClassifier, documents: Sequence[Document]
) -> None:
    roles = []
    with _bar(documents) as bar:
        for number, document in enumerate(documents, 1):
            roles.append(classifier.sentences(document.text))
            bar(number, len(documents))
    if chosen.format != "table":
        return put(chosen, sentences_as(chosen.format, documents, roles))
    rows = [
        (
            document.id,
            role.label,
            f"{role.score:.3f}",
            " ".join(document.text[role.start : role.end].split()),
        )
        for document, of_document in zip(documents, roles, strict=True)
        for role in of_document
    ]
    put(chosen, as_table(("id", "label", "score", "sentence"), rows).encode())


def _label_texts(
    chosen: argparse.Namespace, classifier: TextClassifier, documents: Sequence[Document]
) -> None:
    with _bar(documents) as bar:
        results = classifier.batch([document.text for document in documents], bar)
    for document, result in zip(documents, results, strict=True):
        if result.cut:
            print(f"biogpt: text {document.id}: its last {result.cut} tokens were not read", file=sys.stderr)
    if chosen.format != "table":
        return put(chosen, classes_as(chosen.format, documents, results))
    rows = [
        (document.id, score.label, f"{score.score:.3f}")
        for document, result in zip(documents, results, strict=True)
        for score in result.scores
    ]
    put(chosen, as_table(("id", "label", "score"), rows).encode())


@contextmanager
def _bar(documents: Sequence[Document]) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, for more than one text."""
    with tqdm(total=len(documents), unit="text", disable=len(documents) < 2) as bar:

        def show(done: int, total: int) -> None:
            bar.update(done - bar.n)

        yield show
