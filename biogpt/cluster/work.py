"""What a job does with each row: a task says which model and how, and can be sent to another process.

What a task needs is imported when its model is loaded: the commands know all tasks, and do one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from biogpt.cluster.parquet import Column
from biogpt.text.documents import Document, Row
from biogpt.text.export import class_objects, entity_objects, sentence_objects

if TYPE_CHECKING:
    from biogpt.generation.options import GenerationOptions

Results = Callable[[Sequence[Document]], Iterable[dict[str, Any]]]  # one for each, or an error for all

_SPAN: Column = {"text": str, "label": str, "start": int, "end": int, "score": float}
_STREAMS = 16  # texts that are written at once


@dataclass(frozen=True, kw_only=True)
class FindEntities:
    """Entities of at least ``min_score``, of some types or of all."""

    model: str
    device: str = "auto"
    precision: str = "auto"
    types: tuple[str, ...] = ()
    min_score: float = 0.0
    columns: ClassVar[Mapping[str, Column]] = {"entities": [_SPAN]}

    def load(self) -> Results:
        from biogpt.tasks.entities import EntityRecognizer

        recognizer = EntityRecognizer.from_pretrained(
            self.model, device=self.device, precision=self.precision
        )
        types = recognizer.chosen(self.types)

        def results(documents: Sequence[Document]) -> Iterable[dict[str, Any]]:
            found = recognizer.batch([document.text for document in documents], types=types)
            wanted = [[entity for entity in entities if entity.score >= self.min_score] for entities in found]
            return entity_objects(documents, wanted)

        return results


@dataclass(frozen=True, kw_only=True)
class Classify:
    """Labels of texts, or of their sentences; with ``labels``, a language model compares these."""

    model: str
    device: str = "auto"
    precision: str = "auto"
    labels: tuple[str, ...] | None = None
    template: str
    sentences: bool = False

    @property
    def columns(self) -> Mapping[str, Column]:
        if self.sentences:
            return {"sentences": [_SPAN]}
        return {"labels": [{"label": str, "score": float}], "tokens_not_read": int}

    def load(self) -> Results:
        from biogpt.tasks.classification import TextClassifier

        classifier = TextClassifier.from_pretrained(
            self.model,
            device=self.device,
            precision=self.precision,
            labels=self.labels,
            template=self.template,
        )

        def results(documents: Sequence[Document]) -> Iterable[dict[str, Any]]:
            if self.sentences:
                return sentence_objects(documents, [classifier.sentences(item.text) for item in documents])
            return class_objects(documents, classifier.batch([item.text for item in documents]))

        return results


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Texts continued."""

    model: str
    device: str = "auto"
    precision: str = "auto"
    options: "GenerationOptions"
    columns: ClassVar[Mapping[str, Column]] = {
        "completions": [{"text": str, "finish_reason": str, "tokens": int, "logprob": float}]
    }

    def load(self) -> Results:
        from biogpt.serving.text_generator import TextGenerator

        generator = TextGenerator.from_pretrained(self.model, device=self.device, precision=self.precision)
        pool = ThreadPoolExecutor(_STREAMS)

        def completed(document: Document) -> dict[str, Any]:
            completions = [
                {
                    "text": completion.text,
                    "finish_reason": completion.finish_reason,
                    "tokens": len(completion.tokens),
                    "logprob": round(completion.logprob, 6),
                }
                for completion in generator.generate(document.text, self.options)
            ]
            return {"id": document.id, "text": document.text, "completions": completions}

        return lambda documents: list(pool.map(completed, documents))


Task = FindEntities | Classify | Generate


@cache
def loaded(task: Task) -> Results:
    """What a task does, its model loaded once a process."""
    return task.load()


def worked(results: Results, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One result for each row, in their order; ``error`` says why a row has no other."""
    documents = [Document(row.id, row.text) for row in rows if not row.error]
    found = iter(_each(results, documents))
    return [_failed(row, row.error) if row.error else next(found) for row in rows]


def _each(results: Results, documents: Sequence[Document]) -> list[dict[str, Any]]:
    try:
        return list(results(documents)) if documents else []
    except Exception as error:  # of whatever kind, and of one of them: each is tried alone
        if len(documents) > 1:
            return [result for document in documents for result in _each(results, [document])]
        [document] = documents
        return [_failed(Row(document.id, document.text), str(error) or type(error).__name__)]


def _failed(row: Row, error: str) -> dict[str, Any]:
    return {"id": row.id, "text": row.text, "error": error}
