"""Entities corrected by hand, and checked passages gathered in the browser as training data."""

import json
import re
from collections.abc import Sequence
from typing import Any

from biogpt.text.documents import Document
from biogpt.text.export import entities_as, suffix_of
from biogpt.text.results import Entity

TRAINING_FORMATS = ("jsonl", "brat", "conll", "pubtator")  # the browser keeps 500 passages: assets/marks.js
MOST_TYPES = 40
_TYPE = re.compile(r"[\w-]{1,40}")
_UNREADABLE = "What this browser keeps cannot be read: clear it, and keep passages anew"


def corrected(
    text: str, entities: Sequence[Entity], old: Any, start: Any, end: Any, label: Any
) -> list[Entity]:
    """Entities with one changed, added or taken out, by a reader who is sure: its score is 1.

    What the new one overlaps makes room. White space at its edges is left out.

    Args:
        old: start and end of the one that is changed or taken out; None adds one.
        start, end: characters of the text.
        label: the type; empty takes the old one out.

    Raises:
        ValueError: there is no such entity, nothing between start and end, or the type is malformed.
    """
    kept = [entity for entity in entities if old is None or [entity.start, entity.end] != list(old)]
    if old is not None and len(kept) == len(entities):
        raise ValueError("That entity is gone: find entities again")
    if not label:
        return kept
    if not isinstance(label, str) or not _TYPE.fullmatch(label):
        raise ValueError("A type has 1 to 40 letters, digits, - or _, and no space: Cell_Line")
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end <= len(text):
        raise ValueError("That is not within the text: select words of it")
    content = text[start:end].strip()
    if not content:
        raise ValueError("There is only white space: select words")
    start += len(text[start:end]) - len(text[start:end].lstrip())
    end = start + len(content)
    apart = [entity for entity in kept if entity.end <= start or end <= entity.start]
    return sorted([*apart, Entity(label, start, end, content, 1.0)], key=lambda entity: entity.start)


def passage_row(name: str, document: Document, entities: Sequence[Entity]) -> str:
    """A checked passage as the browser keeps it, JSON."""
    spans = [{"start": e.start, "end": e.end, "label": e.label} for e in entities]
    called = f"{name}-{document.id}" if name else document.id
    return json.dumps({"id": called, "text": document.text, "entities": spans}, ensure_ascii=False)


def training_file(kind: str, rows: str) -> tuple[str, bytes]:
    """Name and content of a file of kept passages.

    Args:
        rows: JSON, a list of what ``passage_row`` gives.

    Raises:
        ValueError: it is something else, or there are none.
    """
    try:
        kept = json.loads(rows)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(_UNREADABLE) from error
    if not isinstance(kept, list):
        raise ValueError(_UNREADABLE)
    documents: list[Document] = []
    entities: list[list[Entity]] = []
    for number, row in enumerate(kept, 1):
        match row:
            case {"id": str(name), "text": str(text), "entities": list(spans)}:
                documents.append(Document(f"{number}-{name}", text))
                entities.append([_entity(text, span) for span in spans])
            case _:
                raise ValueError(_UNREADABLE)
    if not documents:
        raise ValueError("No passage is kept yet: check one, then keep it")
    return f"training-{len(documents)}-passages{suffix_of(kind)}", entities_as(kind, documents, entities)


def _entity(text: str, span: Any) -> Entity:
    match span:
        case {"start": int(start), "end": int(end), "label": str(label)} if 0 <= start < end <= len(text):
            return Entity(label, start, end, text[start:end], 1.0)
    raise ValueError(_UNREADABLE)
