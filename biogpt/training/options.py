"""What can be chosen about a training run; importable without torch, so that the command line can show it."""

from dataclasses import dataclass
from pathlib import Path

ARITHMETIC = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class PretrainOptions:
    """What to train, on what, how long.

    Attributes:
        out: folder of the run: vocabulary, tokens, state, log, and ``best``, the checkpoint.
        texts: files of one document a line (``.txt`` or ``.txt.xz``); one named twice is read twice as often.
        final_texts: the files of the decay phase; ``texts`` when empty.
        heldout: file to score; never trained on.
        model: embedded name, folder or Hub id to go on from, with its vocabulary and shape, in place of a
            new model.
        tokens: how many to train on; may be changed when resuming, until the decay has begun.
        decay: share of ``tokens`` during which the learning rate falls to zero.
        batch_tokens: tokens a step.
        vocab_size, width, layers, heads, positions: shape of a new model; ``positions`` is the length of a
            row in any case.
        first_positions: length of a row before the decay; 0: half of ``positions``. All of them lets a GPU
            compile one shape only.
        muon_lr, adam_lr: learning rates of the hidden matrices and of the rest; muon_lr 0 gives all to AdamW.
        weight_decay: of Muon's matrices, decoupled.
        dropout: of the hidden states; 0 where each text is read about once.
        warmup: steps of rising learning rate.
        averaged: the weights at the end are the mean of those after each of so many last steps; 0: the last.
        minutes_between: how often to score and save.
        compiled: fuse operations with ``torch.compile``: faster, needs a C++ compiler.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        processes: for tokenising.
    """

    out: Path
    texts: tuple[Path, ...]
    heldout: Path
    final_texts: tuple[Path, ...] = ()
    model: str = ""
    tokens: int = 24_000_000
    decay: float = 0.4
    batch_tokens: int = 4096
    vocab_size: int = 8704
    width: int = 256
    layers: int = 6
    heads: int = 4
    positions: int = 512
    first_positions: int = 0
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    weight_decay: float = 0.0
    dropout: float = 0.0
    warmup: int = 100
    averaged: int = 0
    minutes_between: float = 10.0
    compiled: bool = False
    device: str = "auto"
    processes: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_tokens", "vocab_size", "width", "layers", "heads", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("muon_lr", "adam_lr", "weight_decay", "warmup", "averaged", "minutes_between"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected 0 up to, but not, 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; expected 0 to {2**63 - 1}")
        if not self.model and self.width % self.heads:
            raise ValueError(f"width is {self.width}; expected a multiple of heads, {self.heads}")
        if not self.texts:
            raise ValueError("texts is empty; name at least one file of one document a line")
        if not 0 < self.decay <= 1:
            raise ValueError(
                f"decay is {self.decay}; expected a share of the tokens, more than 0 and at most 1"
            )
        if self.positions < 2 or self.positions % 2 or self.batch_tokens % self.positions:
            raise ValueError(
                f"batch_tokens is {self.batch_tokens} and positions {self.positions}; expected an even "
                "number of "
                "positions and a whole number of such rows a step"
            )
        if not 0 <= self.first_positions <= self.positions or self.batch_tokens % self.first_length:
            raise ValueError(
                f"first_positions is {self.first_positions}; expected 0 to positions, {self.positions}, and "
                f"a whole number of such rows in batch_tokens, {self.batch_tokens}"
            )
        for path in (*self.texts, *self.final_texts, self.heldout):
            if not path.is_file():
                raise FileNotFoundError(f"{path} is not a file; expected text, one document a line")

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.batch_tokens)

    @property
    def first_length(self) -> int:
        """Positions of a row before the decay."""
        return self.first_positions or self.positions // 2

    @property
    def stable_steps(self) -> int:
        return min(self.steps - 1, round(self.steps * (1 - self.decay)))  # the last step decays in any case

    def learning_rate(self, step: int) -> float:
        """Share of the full learning rate at a step: up, level, then down to zero."""
        falling = (self.steps - step) / (self.steps - self.stable_steps)
        return min(1.0, (step + 1) / max(1, self.warmup), falling)


@dataclass(frozen=True)
class FinetuneOptions:
    """How to fine-tune.

    Attributes:
        out: folder of the run: state, log, and ``best``, the checkpoint with its metrics.
        model: what to start from: embedded name, folder or Hub id.
        epochs: passes over the training data.
        frozen_epochs: so many first ones train what is above the decoder only: several times faster.
        editions: of a frozen decoder: rows are drawn so many times only, and what it says of them is kept in
            memory (2 bytes a label read and unit of its width, for each) for the epochs that take turns with
            them; 0 draws and reads anew in each epoch.
        muon_lr: highest learning rate of the matrices of the top layer, by Muon; 0 gives all to AdamW, the
            safe choice for large checkpoints.
        lr: highest learning rate of AdamW, for the head and what else is not Muon's.
        layer_decay: each layer below learns at this share of the rate of the one above (1: all the same).
        batch_tokens: tokens a batch, padding included.
        accumulation: batches a step.
        warmup: share of the steps during which the rate rises.
        dropout: while training.
        balanced: count rare labels more, by the inverse of their frequency.
        patience: stop after so many epochs without a better dev score; 0 never stops early.
        arithmetic: ``float32``, ``bfloat16``, on a GPU ``float16``, or ``auto``: bfloat16 where it is fast,
            else float32. Weights stay float32.
        gradient_checkpointing: recompute each layer in the backward pass: less memory, more time.
        compiled: fuse operations with ``torch.compile``: faster, needs a C++ compiler.
        minutes_between: how often the state is saved, beside the end of each epoch.
        shard_bytes: largest weight file of the checkpoint.
    """

    out: Path
    model: str = "mini"
    epochs: int = 5
    frozen_epochs: int = 0
    editions: int = 0
    muon_lr: float = 0.01
    lr: float = 1e-3
    layer_decay: float = 1.0
    batch_tokens: int = 1024
    accumulation: int = 1
    warmup: float = 0.05
    dropout: float = 0.1
    weight_decay: float = 0.01
    balanced: bool = False
    patience: int = 0
    arithmetic: str = "auto"
    device: str = "auto"
    gradient_checkpointing: bool = False
    compiled: bool = False
    minutes_between: float = 5.0
    shard_bytes: int = 9_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "lr", "layer_decay", "batch_tokens", "accumulation", "shard_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("frozen_epochs", "editions", "muon_lr", "weight_decay", "patience", "minutes_between"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; expected 0 to {2**63 - 1}")
        for name in ("warmup", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 up to, but not, 1")
        if self.arithmetic not in ARITHMETIC:
            raise ValueError(f"arithmetic is {self.arithmetic!r}; expected one of {', '.join(ARITHMETIC)}")

    def learning_rate(self, share: float) -> float:
        """Share of the full learning rate when ``share`` of the steps is done: up, then down to zero."""
        rising = share / self.warmup if self.warmup else 1.0
        return min(1.0, rising, (1 - share) / (1 - self.warmup))
