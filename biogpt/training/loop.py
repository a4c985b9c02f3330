"""What pre-training and fine-tuning share: a step of the optimizers, and the folder from which a run goes on.

A run may be killed at any time. Its state is written whole or not at all, and a run that goes on from it
ends with the weights that it would have had without the break.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from biogpt.checkpoint.base import base_name
from biogpt.checkpoint.files import written_whole
from biogpt.checkpoint.pretrained import BioGptTokenizer, PretrainedModel

logger = logging.getLogger(__name__)

_GRADIENT_NORM = 1.0  # gradients are shortened to it
_NEWEST = 0.02  # share of the newest batch in the smoothed loss, once there were enough
STATE = "state.pt"
_FIELDS = ("settings", "progress", "model", "optimizers", "scaler", "random", "device_random", "average")

Model = TypeVar("Model", bound=PretrainedModel)


@dataclass
class TrainingProgress:
    """How far a run is; each loop adds where it stands in its own plan.

    Attributes:
        step: batches learned from, over all sessions of the run.
        seconds: of training, over all sessions; scoring does not count.
        loss: of these batches, smoothed: the mean of the first ones, then one that forgets.
        best: the score of the best checkpoint so far, in the loop's own measure; None before the first.
    """

    step: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    best: float | None = None

    def count(self, loss: float, seconds: float) -> None:
        """One more batch."""
        self.step += 1
        self.seconds += seconds
        # A mean that starts at 0 would report for hundreds of batches a loss far below any that there was.
        self.loss += (loss - self.loss) * max(_NEWEST, 1 / self.step)


class TrainingRun(Generic[Model]):
    """A model that learns, with its optimizers and progress, and its folder on the disk.

    The folder holds ``state.pt``, from which the run goes on; ``log.jsonl``, a line a score; ``best``, the
    checkpoint.

    Args:
        folder: of the run; made when missing.
        settings: by name, what must not change within the run; plain values that JSON has.
        optimizers: their groups hold the full learning rate as ``full``; see ``make_optimizers``.
        progress: at the beginning; ``resume`` moves it on.
        scaled: scale the loss, which float16 arithmetic needs.
        averaged_from: the batch after which weights count for the mean that ``take_average`` puts in their
            place (Izmailov et al. 2018, arXiv 1803.05407); None for no mean.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        model: Model,
        tokenizer: BioGptTokenizer,
        optimizers: Sequence[torch.optim.Optimizer],
        progress: TrainingProgress,
        scaled: bool = False,
        averaged_from: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.model, self.tokenizer = folder, model, tokenizer
        self.optimizers, self.progress = optimizers, progress
        self.settings = settings | {"optimizers": [type(optimizer).__name__ for optimizer in optimizers]}
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=scaled)
        self.averaged_from = averaged_from
        self._average: list[Tensor] = []  # of the parameters, since averaged_from
        self._counted_until = self._saved_at = time.monotonic()

    def start_clock(self) -> None:
        """Count the time from now on: what was done before was no training."""
        self._counted_until = time.monotonic()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss."""
        self.scaler.scale(loss).backward()

    def update(self, rate: float) -> None:
        """Change the weights by the gradients so far, at a share of the full learning rates."""
        # Of an optimizer without gradients, as of a frozen decoder, the scaler would miss its check for
        # infinities.
        learning = [o for o in self.optimizers if any(p.grad is not None for p in _parameters(o))]
        for optimizer in learning:
            self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), _GRADIENT_NORM)
        for optimizer in learning:
            for group in optimizer.param_groups:
                group["lr"] = group["full"] * rate
            self.scaler.step(optimizer)
            optimizer.zero_grad()
        self.scaler.update()

    def count(self, loss: float) -> None:
        """Count a batch and the time it took.

        Args:
            loss: of the batch, nats a label or token.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} after {self.progress.step} batches: training has diverged; "
                "choose lower learning rates"
            )
        now = time.monotonic()
        self.progress.count(loss, now - self._counted_until)
        self._counted_until = now
        self._count_for_average()

    def _count_for_average(self) -> None:
        if self.averaged_from is None or self.progress.step <= self.averaged_from:
            return
        weights = [parameter.detach() for parameter in self.model.parameters()]
        if not self._average:
            self._average = [weight.clone() for weight in weights]
        else:
            torch._foreach_lerp_(self._average, weights, 1 / (self.progress.step - self.averaged_from))

    def take_average(self) -> None:
        """Put the mean of the weights in their place, where there is one."""
        if self._average:
            for parameter, mean in zip(self.model.parameters(), self._average, strict=True):
                parameter.data.copy_(mean)

    def unsaved_for(self, minutes: float) -> bool:
        """Whether the state on the disk is older than that."""
        return time.monotonic() - self._saved_at > 60 * minutes

    def record(self, entry: dict[str, Any]) -> None:
        """Add a line to the log."""
        logger.info("%s", entry)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")

    def check_weights(self) -> None:
        """Refuse weights that half precision cannot hold; the loss of a batch tells only of those before it.

        Raises:
            FloatingPointError: there are some.
        """
        if not all(bool(parameter.half().isfinite().all()) for parameter in self.model.parameters()):
            raise FloatingPointError(
                f"the weights are not finite in half precision after {self.progress.step} batches: "
                "training has diverged; choose lower learning rates"
            )

    def keep_best(
        self, name: str, report: dict[str, Any], shard_bytes: int, model: Model | None = None
    ) -> None:
        """Put the weights into ``best``, in half precision, with the tokenizer and a JSON file about them.

        Of a head whose decoder is still its base's, only what is its own.

        Args:
            model: to be kept in the place of the one that learns.

        Raises:
            OSError: something could not be written, as on a full disk.
        """
        best = self.folder / "best"
        model = model or self.model
        half = type(model)(model.config)
        half.load_state_dict(model.state_dict())
        half.base = model.base
        half.half().save_pretrained(best, shard_bytes)
        if base_name(best) is None:
            self.tokenizer.save_pretrained(best)
        text = json.dumps(report, indent=2, ensure_ascii=False)
        with written_whole(best, name) as (unfinished,):
            unfinished.write_text(text + "\n", encoding="utf-8")

    def save_state(self, name: str = STATE) -> None:
        """Put the state in the place of the one before, whole or not at all.

        Raises:
            OSError: it could not be written, as on a full disk; the state before is kept.
        """
        state = {
            "settings": self.settings,
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "device_random": _device_random(self.model.device),
            "average": self._average,
        }
        with written_whole(self.folder, name) as (unfinished,), unfinished.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # "unexpected pos", while a write that failed was handled
                if isinstance(error.__context__, OSError):
                    raise OSError(error.__context__.errno, error.__context__.strerror) from error
                raise
        if name == STATE:
            self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Go on from the state in the folder; without one, do nothing.

        Raises:
            ValueError: the state is damaged, of an earlier version, or of another run.
        """
        path = self.folder / STATE
        if not path.exists():
            return
        state = _read_state(path, self.model.device)
        saved = state["settings"]
        differing = [
            f"{name} was {saved.get(name)!r}, now {value!r}"
            for name, value in self.settings.items()
            if saved.get(name) != value
        ]
        if differing:
            raise ValueError(f"{path} is of another run: {'; '.join(differing)}. Choose another folder.")
        for name, value in state["progress"].items():
            setattr(self.progress, name, value)
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(optimizer_state)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{path} is of a model of another shape: delete it to begin anew, or choose another folder"
            ) from error
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"].cpu())
        if self.model.device.type == "cuda" and state["device_random"] is not None:
            torch.cuda.set_rng_state(state["device_random"].cpu(), self.model.device)
        self._average = state["average"]


def _device_random(device: torch.device) -> Tensor | None:
    """The state of a GPU's own random numbers, those of dropout."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _read_state(path: Path, device: torch.device) -> dict[str, Any]:
    with path.open("rb") as file:
        try:
            state = torch.load(file, weights_only=True, map_location=device)
        # torch has no error of its own for a file that is cut short, empty or something else: it may be any
        # of these.
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
    if not isinstance(state, dict) or not state.keys() >= set(_FIELDS):
        raise ValueError(
            f"{path} is no state of such a run, or one that an earlier version began: expected "
            f"{', '.join(_FIELDS)}; delete it to begin anew, or choose another folder"
        )
    return state
