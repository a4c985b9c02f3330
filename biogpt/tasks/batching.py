"""Windows of texts read in batches of like length: several texts at once, a long text in several windows."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from biogpt.model.heads import Head
from biogpt.model.readers import pooled
from biogpt.runners.threads import side_by_side
from biogpt.text.results import Look, OnProgress, go_on

NOT_FINITE = (
    "the model's scores are not finite: its weights may be damaged, or too large for this precision; "
    "try float32"
)
_BATCH_TOKENS = 4096  # of a batch of windows, padding included
# The activations of more leave a CPU's caches: 4096 are 1.6 times as slow on BioGPT base.
_CPU_BATCH_TOKENS = 512

Scores = TypeVar("Scores")


class Window(NamedTuple):
    """A stretch of a text that the model reads at once.

    Attributes:
        ids: [T] token ids, control tokens and copies included.
        first: which of the text's results the window's first one is: of its words, or of its windows.
        reads: the position at which each result is read, so ``len(reads)`` of them from ``first`` on.
        begins: where the tokens begin whose mean is read, up to each read; for a head that pools so.
    """

    ids: list[int]
    first: int
    reads: list[int]
    begins: Sequence[int] = ()

    @property
    def stretch(self) -> slice:
        """Its share of the text's results."""
        return slice(self.first, self.first + len(self.reads))


class Read(Protocol):
    """A row of tokens and where it is read."""

    @property
    def reads(self) -> Sequence[int]: ...
    @property
    def begins(self) -> Sequence[int]: ...


class TextWindow(NamedTuple):
    """A window, and the index of the text that it is of."""

    text: int
    window: Window


def looking(progress: OnProgress | None, total: int) -> Look:
    """What is called while texts are made ready, of which none is done yet."""
    return go_on if progress is None else partial(progress, 0, total)


def read_windows(
    model: Head,
    pad_token_id: int,
    windows: Sequence[Sequence[Window]],
    score: Callable[[Tensor, Sequence[TextWindow]], Sequence[Scores]],
    progress: OnProgress | None = None,
) -> Iterator[tuple[TextWindow, Scores]]:
    """Read the windows of many texts, those of like length together; on a CPU two batches at a time.

    Args:
        pad_token_id: fills up the shorter windows of a batch, on the right.
        windows: of each text.
        score: what a head makes of the states at all reads of some windows, [R, D] in their order: one result
            a window.
        progress: called after each batch, once its results have been taken.

    Yields:
        Each window and its result, shortest windows first.
    """
    pending = [TextWindow(text, window) for text, of_text in enumerate(windows) for window in of_text]
    pending.sort(key=lambda item: len(item.window.ids))
    unread = np.array([len(of_text) for of_text in windows])
    on_cpu = model.device.type == "cpu"

    def read(batch: Sequence[TextWindow]) -> Sequence[Scores]:
        return score(states_of(model, pad_token_id, [window for _, window in batch]), batch)

    batches = list(_batches(pending, _CPU_BATCH_TOKENS if on_cpu else _BATCH_TOKENS))
    results = side_by_side(read, batches) if on_cpu else map(read, batches)
    for batch, scores in zip(batches, results, strict=True):
        yield from zip(batch, scores, strict=True)
        np.subtract.at(unread, [text for text, _ in batch], 1)
        if progress is not None:
            progress(int((unread == 0).sum()), len(windows))


def states_of(model: Head, pad_token_id: int, windows: Sequence[Window]) -> Tensor:
    """[R, D] at all reads of some windows, read as one padded batch; see ``biogpt.model.readers.pooled``.

    A decoder never looks at padding on the right, so it needs a mask only where layers look both ways.
    """
    width = max(len(window.ids) for window in windows)
    ids = torch.full((len(windows), width), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, window in enumerate(windows):
        ids[row, : len(window.ids)] = torch.tensor(window.ids)
        mask[row, : len(window.ids)] = 1
    needs_mask = model.config.bidirectional_layers and not bool(mask.all())
    hidden = model.biogpt(
        ids.to(model.device), mask.to(model.device) if needs_mask else None
    ).last_hidden_state
    return pooled(hidden, spans_of(windows), model.config.pooling)


def spans_of(rows: Sequence[Read]) -> list[tuple[int, int, int]]:
    """(row, first, last) of all that is read in some rows; see ``biogpt.model.readers.pooled``."""
    return [
        (index, begin, read)
        for index, row in enumerate(rows)
        for begin, read in zip(row.begins or row.reads, row.reads, strict=True)
    ]


def _batches(windows: Sequence[TextWindow], most: int) -> Iterator[Sequence[TextWindow]]:
    """Consecutive windows, sorted by length, as many at once as come to ``most`` tokens; at least one."""
    first = 0
    for end in range(1, len(windows) + 1):
        full = end < len(windows) and (end + 1 - first) * len(windows[end].window.ids) > most
        if full or end == len(windows):
            yield windows[first:end]
            first = end
