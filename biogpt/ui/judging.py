"""Labels that were found, judged by those that a file gave: accuracy and confusion, or scores by label."""

import html
from collections import Counter
from collections.abc import Sequence

from biogpt.text.documents import Document


def judged(
    documents: Sequence[Document], found: Sequence[Sequence[str]], known: Sequence[str], multi_label: bool
) -> str:
    """A judgement as HTML; empty where no document was given a label that there is.

    Args:
        found: labels of each document.
        known: all that could be found.
        multi_label: whether a text may have several, or none: each label is then scored by itself.
    """
    pairs = [
        (tuple(map(_plain, document.labels)), tuple(labels))
        for document, labels in zip(documents, found, strict=False)
        if document.labels is not None
    ]
    there_are = {label.casefold() for label in known}
    if not any(label.casefold() in there_are for given, _ in pairs for label in given):
        return ""
    return _by_label(pairs) if multi_label else _confusion(pairs)


def _plain(label: str) -> str:
    return " ".join(label.split())


def _same(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def _confusion(pairs: Sequence[tuple[tuple[str, ...], tuple[str, ...]]]) -> str:
    """How often each label was found where each was given."""
    counts: Counter[tuple[str, str]] = Counter()
    for given, (label, *_) in pairs:
        wanted = given[0] if given else "none"
        counts[label if _same(wanted, label) else wanted, label] += 1
    right = sum(number for (wanted, label), number in counts.items() if wanted == label)
    rows = sorted({wanted for wanted, _ in counts})
    columns = sorted({label for _, label in counts})
    of_row = {row: sum(counts[row, column] for column in columns) for row in rows}
    lines = [
        [(row, 0.0), *((f"{counts[row, column]:,}", counts[row, column] / of_row[row]) for column in columns)]
        for row in rows
    ]
    title = f"Accuracy {right / len(pairs):.3f}: {right:,} of {len(pairs):,} texts as the file gives them"
    return _table(title, ["Given \N{RIGHTWARDS ARROW} found", *columns], lines)


def _by_label(pairs: Sequence[tuple[tuple[str, ...], tuple[str, ...]]]) -> str:
    """Precision, recall and F1 of each label, and of all together."""
    given: Counter[str] = Counter()
    found: Counter[str] = Counter()
    both: Counter[str] = Counter()
    names = {label.casefold(): label for _, labels in pairs for label in labels}
    for wanted, labels in pairs:
        wanted_here = {names.setdefault(label.casefold(), label) for label in wanted}
        given.update(wanted_here)
        found.update(labels)
        both.update(wanted_here & set(labels))
    lines = []
    for label in sorted({*given, *found}):
        scores = _scores(both[label], found[label], given[label])
        counts = (given[label], found[label], both[label])
        lines.append([(label, 0.0), *((f"{n:,}", 0.0) for n in counts), *((f"{s:.2f}", s) for s in scores)])
    *_, f1 = _scores(both.total(), found.total(), given.total())
    exact = sum({n.casefold() for n in wanted} == {n.casefold() for n in labels} for wanted, labels in pairs)
    title = f"Micro-F1 {f1:.3f}; {exact:,} of {len(pairs):,} texts have just the labels that the file gives"
    return _table(title, ["Label", "Given", "Found", "Both", "Precision", "Recall", "F1"], lines)


def _scores(both: int, found: int, given: int) -> tuple[float, float, float]:
    """Precision, recall, F1."""
    return both / (found or 1), both / (given or 1), 2 * both / ((found + given) or 1)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[tuple[str, float]]]) -> str:
    """A table in which the first cell of a row names it, and the others are tinted by their shares."""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(f'<td style="--share: {share:.3f}">{html.escape(cell)}</td>' for cell, share in cells)
        + "</tr>"
        for (name, _), *cells in rows
    )
    return (
        f'<div class="judged" role="region" tabindex="0" aria-label="Judgement"><h3>{html.escape(title)}</h3>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
