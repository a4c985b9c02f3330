"""The state of a training run on the disk, from which it goes on after a kill."""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from biogpt.checkpoint.files import written_whole


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Put a state in the place of the one before, whole or not at all.

    Raises:
        OSError: it could not be written, as on a full disk; the state before is kept.
    """
    with written_whole(path.parent, path.name) as (unfinished,), unfinished.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # "unexpected pos", while a write that failed was handled
            if isinstance(error.__context__, OSError):
                raise OSError(error.__context__.errno, error.__context__.strerror) from error
            raise


def read_state(path: Path, names: Sequence[str], device: torch.device | None = None) -> dict[str, Any]:
    """What ``write_state`` wrote.

    Args:
        names: what it must hold.

    Raises:
        ValueError: the file is damaged, or not of such a run.
    """
    with path.open("rb") as file:
        try:
            state = torch.load(file, weights_only=True, map_location=device)
        # torch has no error of its own for a file that is cut short, empty or something else: it may be any of these.
        except (
            RuntimeError,
            OSError,
            EOFError,
            UnpicklingError,
            ValueError,
            LookupError,
            TypeError,
        ) as error:
            raise ValueError(
                f"{path} is damaged or cut short: delete it to begin anew, or choose another folder"
            ) from error
    if not isinstance(state, dict) or not state.keys() >= set(names):
        raise ValueError(
            f"{path} is no state of such a run: expected {', '.join(names)}; choose another folder"
        )
    return state


def restore(
    path: Path, state: dict[str, Any], model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Fill a model and its optimizers from a state.

    Raises:
        ValueError: it is of a model of another shape.
    """
    try:
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} is of a model of another shape: delete it to begin anew, or choose another folder"
        ) from error
