"""Plots beside a trained checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES_A_LABEL = 0.55
_DARK = 0.7  # share above which a cell's text is white


def confusion_figure(matrix: np.ndarray, labels: Sequence[str]) -> "Figure":
    """A confusion matrix: counts and, also as the shade, their shares of the row; empty cells stay empty.

    Args:
        matrix: [N, N] counts, gold by row.
        labels: N names.
    """
    from matplotlib.figure import Figure  # most of a second, for what few runs draw

    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.5 + _INCHES_A_LABEL * len(labels)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")
    for row, column in np.ndindex(*matrix.shape):
        if matrix[row, column]:
            colour = "white" if shares[row, column] > _DARK else "black"
            text = f"{matrix[row, column]}\n{shares[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return figure


def confusion_plot(matrix: np.ndarray, labels: Sequence[str], path: str | Path) -> None:
    """Write ``confusion_figure`` as a PNG."""
    confusion_figure(matrix, labels).savefig(path, dpi=120, format="png")
