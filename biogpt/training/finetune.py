"""Fine-tuning of a head on labelled text, resumable after a kill.

Every task is the same to the loop: rows of tokens, positions at which labels are read, and for each of these the
labels that would be right. More than one right label is a marginal likelihood, -log of their summed probability:
what an ``O`` asks for in a corpus that annotates only some of the types (Tsuboi et al. 2008, aclanthology
C08-1113). Muon and AdamW, linear warm-up and decay; bfloat16 arithmetic where asked, float32 weights.
"""

import json
import logging
import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from biogpt.checkpoint.files import written_whole
from biogpt.checkpoint.pretrained import (
    BioGptForSequenceClassification,
    BioGptForTokenClassification,
    BioGptTokenizer,
)
from biogpt.model.config import BioGptConfig
from biogpt.runners.precision import bfloat16_pays, choose_device
from biogpt.tasks.words import forms_of
from biogpt.training.optimizer import Muon
from biogpt.training.plots import confusion_plot
from biogpt.training.state import read_state, restore, write_state

logger = logging.getLogger(__name__)

Head = BioGptForTokenClassification | BioGptForSequenceClassification

ARITHMETIC = ("auto", "float32", "bfloat16", "float16")
_LENGTHS = 8  # rows are padded to a multiple of this
_COMPILED_LENGTHS = 64  # the same where each length is compiled
_POOL = 50  # so many batches of examples at random are sorted by length before they are cut into batches
_BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class Example:
    """A row to learn from.

    Attributes:
        ids: T token ids.
        reads: R positions at which labels are read.
        targets: [R, N] float32, 1 for a right label. One label a read: any of those with 1 counts as right;
            multi-label: all of them do.
        words: [R] the words that are read, for a word encoder.
        types: of entities that are annotated here, the only ones that a word encoder scores.
    """

    ids: list[int]
    reads: list[int]
    targets: np.ndarray
    words: Sequence[str] = ()
    types: Collection[str] = ()


@dataclass(frozen=True)
class Result:
    """What a task found on its dev split.

    Attributes:
        score: what early stopping goes by, more is better.
        metrics: for ``metrics.json``.
        confusion: [N, N] counts, gold by row, and the N names; None for tasks without.
    """

    score: float
    metrics: dict[str, Any]
    confusion: tuple[np.ndarray, list[str]] | None = None


class Task(Protocol):
    """What is to be learned.

    Attributes:
        head: the class of model.
        labels: N labels of the head.
        multi_label: whether a read may have several labels at once.
        settings: fields of the config that the task decides, such as ``problem_type``.
    """

    labels: tuple[str, ...]
    multi_label: bool
    settings: dict[str, Any]

    @property
    def head(self) -> type[BioGptForTokenClassification] | type[BioGptForSequenceClassification]: ...

    def examples(
        self, tokenizer: BioGptTokenizer, config: BioGptConfig, random: np.random.Generator
    ) -> list[Example]:
        """The rows of one epoch."""
        ...

    def evaluate(self, model: Any, tokenizer: BioGptTokenizer) -> Result | None:
        """Scores on the dev split; None where there is none."""
        ...


@dataclass(frozen=True)
class FinetuneOptions:
    """How to fine-tune.

    Attributes:
        out: folder of the run: state, log, and ``best``, the checkpoint with its metrics.
        model: what to start from: embedded name, folder or Hub id.
        epochs: passes over the training data.
        frozen_epochs: so many first ones train what is above the decoder only: several times faster.
        muon_lr: highest learning rate of the matrices of the top layer, by Muon; 0 gives all to AdamW, the safe
            choice for large checkpoints.
        lr: highest learning rate of AdamW, for the head and what else is not Muon's.
        layer_decay: each layer below learns at this share of the rate of the one above (1: all the same).
        batch_tokens: tokens a batch, padding included.
        accumulation: batches a step.
        warmup: share of the steps during which the rate rises.
        dropout: while training.
        balanced: count rare labels more, by the inverse of their frequency.
        patience: stop after so many epochs without a better dev score; 0 never stops early.
        arithmetic: ``float32``, ``bfloat16``, on a GPU ``float16``, or ``auto``: bfloat16 where it is fast, else
            float32. Weights stay float32.
        gradient_checkpointing: recompute each layer in the backward pass: less memory, more time.
        compiled: fuse operations with ``torch.compile``: faster, needs a C++ compiler.
        minutes_between: how often the state is saved, beside the end of each epoch.
        shard_bytes: largest weight file of the checkpoint.
    """

    out: Path
    model: str = "mini"
    epochs: int = 5
    frozen_epochs: int = 0
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
        for name in ("frozen_epochs", "muon_lr", "weight_decay", "patience", "minutes_between"):
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


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: epochs finished.
        batch: batches done of the one under way.
        seconds: of training, over all sessions of the run.
        loss: smoothed training loss, nats a read.
        best: highest dev score so far, and the epoch after which it was reached.
    """

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    best: float = -math.inf
    best_epoch: int = 0


def finetune(task: Task, options: FinetuneOptions, metadata: dict[str, Any] | None = None) -> Path:
    """Train until the epochs are done or the dev score stops rising, from where an earlier run stopped.

    Args:
        metadata: about the data, kept in ``metrics.json`` beside the options.

    Returns:
        The folder of the best checkpoint (of the last one, without a dev split): half precision, with the
        vocabulary, ``metrics.json`` and ``confusion.png``.

    Raises:
        ValueError: the state in the folder is damaged or belongs to another run; the loss is no longer a number.
        FloatingPointError: the weights are no longer numbers.
        OSError: something could not be written, as on a full disk; the state before is kept.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    run = _Run(task, options, metadata or {})
    run.resume()
    while run.progress.epoch < options.epochs and not run.stalled():
        run.epoch()
    return options.out / "best"


class _Run:
    def __init__(self, task: Task, options: FinetuneOptions, metadata: dict[str, Any]) -> None:
        self.task, self.options, self.metadata = task, options, metadata
        self.device = choose_device(options.device)
        torch.manual_seed(options.seed)
        self.tokenizer = BioGptTokenizer.from_pretrained(options.model)
        self.model = _model(task, options).to(self.device)
        self.optimizers = _optimizers(self.model, options)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.arithmetic == "float16")
        self.progress = Progress()
        self.hidden = torch.compile(self._hidden, dynamic=False) if options.compiled else self._hidden
        self.state_path = options.out / "state.pt"

    def epoch(self) -> None:
        """Train one epoch, or the rest of it, and score."""
        options, progress = self.options, self.progress
        examples = self.task.examples(self.tokenizer, self.model.config, self._random())
        weights = _label_weights(examples, self.task.multi_label) if options.balanced else None
        batches = list(_batches(examples, options, self._random()))
        bar = tqdm(
            batches[progress.batch :],
            f"epoch {progress.epoch + 1} of {options.epochs}",
            len(batches),
            initial=progress.batch,
            unit="batch",
        )
        self.model.train()
        self.model.biogpt.train(not self.frozen)
        clock = saved = time.monotonic()
        for batch in bar:
            share = (progress.epoch + progress.batch / len(batches)) / options.epochs
            loss = self._learn(batch, weights, share, last=progress.batch + 1 == len(batches))
            if not math.isfinite(loss):
                raise ValueError(
                    f"the loss is {loss} in epoch {progress.epoch + 1}; try a lower lr than {options.lr}"
                )
            progress.batch += 1
            progress.loss += (loss - progress.loss) * 0.02
            now = time.monotonic()
            progress.seconds += now - clock
            clock = now
            bar.set_postfix(loss=f"{progress.loss:.3f}", refresh=False)
            if now - saved > 60 * options.minutes_between and progress.batch % options.accumulation == 0:
                self.save_state()
                saved = now
        progress.epoch, progress.batch = progress.epoch + 1, 0
        self._score_and_save()
        self.save_state()

    @property
    def frozen(self) -> bool:
        """Whether the decoder stays as it is in this epoch."""
        return self.progress.epoch < self.options.frozen_epochs

    def stalled(self) -> bool:
        """Whether the dev score has not risen for ``patience`` epochs."""
        options, progress = self.options, self.progress
        return 0 < options.patience <= progress.epoch - progress.best_epoch

    def _random(self) -> np.random.Generator:
        """The same draws for an epoch, whether it is begun or taken up again."""
        return np.random.default_rng((self.options.seed, self.progress.epoch))

    def _hidden(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        # Asked for its attentions, the model multiplies matrices instead of calling the fused kernel, whose
        # backward pass is slow on CPUs; nothing of them is kept after compilation.
        learns = not self.frozen
        with self._autocast(), torch.set_grad_enabled(learns):
            with_attentions = learns and self.device.type == "cpu"
            return self.model.biogpt(ids, mask, output_attentions=with_attentions).last_hidden_state

    def _autocast(self) -> AbstractContextManager:
        name, kind = self.options.arithmetic, self.device.type
        if name == "auto":
            name = "bfloat16" if bfloat16_pays(kind) else "float32"
        return nullcontext() if name == "float32" else torch.autocast(kind, getattr(torch, name))

    def _learn(self, batch: Sequence[Example], weights: Tensor | None, share: float, last: bool) -> float:
        """One batch: its gradient, and a step after every ``accumulation`` of them."""
        options = self.options
        length = max(_padded_length(example, options) for example in batch)
        length = min(length, self.model.config.max_position_embeddings)
        rows = max(len(batch), options.batch_tokens // length) if options.compiled else len(batch)
        ids = torch.full((rows, length), self.tokenizer.pad_token_id)
        for row, example in enumerate(batch):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
        ids = ids.to(self.device)
        mask = None  # padding on the right is never looked at by tokens that only look back
        if self.model.config.bidirectional_layers:
            mask = (ids != self.tokenizer.pad_token_id).long()
            mask[:, 0] = 1
        where = [(row, read) for row, example in enumerate(batch) for read in example.reads]
        rows, reads = torch.tensor(where, device=self.device).T
        targets = torch.from_numpy(np.concatenate([example.targets for example in batch])).to(self.device)
        hidden = self.hidden(ids, mask)[rows, reads].float()
        loss = label_loss(head_logits(self.model, hidden, batch), targets, weights, self.task.multi_label)
        self.scaler.scale(loss / options.accumulation).backward()
        if last or (self.progress.batch + 1) % options.accumulation == 0:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["full"] * options.learning_rate(share)
                self.scaler.step(optimizer)
                optimizer.zero_grad()
            self.scaler.update()
        return loss.item()

    def _score_and_save(self) -> None:
        """Score on the dev split, keep the checkpoint if it is the best."""
        options, progress = self.options, self.progress
        self.model.eval()
        if not all(bool(parameter.half().isfinite().all()) for parameter in self.model.parameters()):
            raise FloatingPointError(
                f"the weights are not finite in half precision after epoch {progress.epoch}: training has diverged; "
                f"try a lower lr than {options.lr}"
            )
        result = self.task.evaluate(self.model, self.tokenizer)
        entry: dict[str, Any] = {
            "epoch": progress.epoch,
            "hours": round(progress.seconds / 3600, 3),
            "loss": round(progress.loss, 4),
        }
        if result is not None:
            entry["dev"] = round(result.score, 4)
        logger.info("%s", entry)
        with (options.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        if result is not None and result.score <= progress.best:
            return
        progress.best = result.score if result is not None else progress.best
        progress.best_epoch = progress.epoch
        folder = options.out / "best"
        half = self.task.head(self.model.config)
        half.load_state_dict(self.model.state_dict())
        half.half().save_pretrained(folder, options.shard_bytes)
        self.tokenizer.save_pretrained(folder)
        metrics = {"options": self._kept(), "data": self.metadata, "training": entry}
        if result is not None:
            metrics["dev"] = result.metrics
            if result.confusion is not None:
                with written_whole(folder, "confusion.png") as (picture,):
                    confusion_plot(*result.confusion, picture)
        text = json.dumps(metrics, indent=2, ensure_ascii=False)
        with written_whole(folder, "metrics.json") as (unfinished,):
            unfinished.write_text(text + "\n", encoding="utf-8")

    def _kept(self) -> dict[str, Any]:
        """The options that can't change within a run."""
        kept = asdict(self.options)
        for name in ("out", "minutes_between", "compiled", "device", "gradient_checkpointing", "patience"):
            del kept[name]
        return kept | {"labels": list(self.task.labels), "multi_label": self.task.multi_label}

    def save_state(self) -> None:
        state = {
            "options": self._kept(),
            "data": self.metadata,
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
        }
        write_state(self.state_path, state)

    def resume(self) -> None:
        if not self.state_path.exists():
            return
        names = ("options", "data", "progress", "model", "optimizers", "scaler", "random")
        state = read_state(self.state_path, names, self.device)
        saved = state["options"] | state["data"]
        given = self._kept() | self.metadata
        differing = [
            f"{name} was {saved.get(name)!r}, now {value!r}"
            for name, value in given.items()
            if saved.get(name) != value
        ]
        if differing:
            raise ValueError(
                f"{self.state_path} is of another run: {'; '.join(differing)}. Choose another folder."
            )
        self.progress = Progress(**state["progress"])
        restore(self.state_path, state, self.model, self.optimizers)
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"].cpu())


def _model(task: Task, options: FinetuneOptions) -> Head:
    """The checkpoint with a new head and the task's settings, in float32."""
    base = task.head.from_pretrained(options.model, precision="float32", device="cpu", labels=task.labels)
    problem = "multi_label_classification" if task.multi_label else "single_label_classification"
    config = replace(
        base.config,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=0.0,  # its mask costs more than the rest of attention on a CPU
        problem_type=problem,
        **task.settings,
    )
    model = task.head(config)
    model.biogpt.load_state_dict(base.biogpt.state_dict())
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            model.set_submodule(name, _Dropout(module.p))
    model.biogpt.gradient_checkpointing = options.gradient_checkpointing
    return model


class _Dropout(nn.Dropout):
    """Dropout that draws eight elements at once: on a CPU the draws cost as much as half the matrices.

    The probability is rounded to a multiple of 1/256.
    """

    def forward(self, input: Tensor) -> Tensor:
        cut = round(256 * self.p)
        if not self.training or not cut:
            return input
        count = input.numel()
        draws = torch.empty(-(-count // 8), dtype=torch.int64, device=input.device).random_(-(2**63), None)
        keep = draws.view(torch.uint8)[:count].view(input.shape) >= cut
        return input * keep.to(input.dtype).mul_(256 / (256 - cut))


def _optimizers(model: Head, options: FinetuneOptions) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest; one group a depth.

    Rates fall by ``layer_decay`` from the head, depth 0, to the embeddings. Biases and norms do not decay.
    """
    layers = model.config.num_hidden_layers
    matrices: dict[int, list[nn.Parameter]] = {}
    others: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        depth = layers if ".embed_" in name else 0
        if ".layers." in name:
            depth = layers - 1 - int(name.partition(".layers.")[2].partition(".")[0])
            if options.muon_lr and parameter.ndim == 2:
                matrices.setdefault(depth, []).append(parameter)
                continue
        others.setdefault((depth, parameter.ndim == 2), []).append(parameter)

    def group(parameters: list[nn.Parameter], lr: float, depth: int) -> dict[str, Any]:
        lr *= options.layer_decay**depth
        return {"params": parameters, "lr": lr, "full": lr}

    adam = [
        group(parameters, options.lr, depth) | {"weight_decay": options.weight_decay if matrix else 0.0}
        for (depth, matrix), parameters in others.items()
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(adam, betas=_BETAS)]
    if matrices:
        groups = [group(parameters, options.muon_lr, depth) for depth, parameters in matrices.items()]
        optimizers.append(Muon(groups, lr=options.muon_lr))
    return optimizers


def _batches(
    examples: Sequence[Example], options: FinetuneOptions, random: np.random.Generator
) -> Iterator[list[Example]]:
    """All examples in random order, those of like length together, at most ``batch_tokens`` with padding."""
    lengths = np.array([_padded_length(example, options) for example in examples])
    pools = max(1, round(lengths.sum() / options.batch_tokens / _POOL))
    for pool in np.array_split(random.permutation(len(examples)), pools):
        batches: list[list[Example]] = []
        for index in sorted(pool, key=lambda index: lengths[index]):
            if not batches or (len(batches[-1]) + 1) * lengths[index] > options.batch_tokens:
                batches.append([])
            batches[-1].append(examples[index])
        yield from (batches[index] for index in random.permutation(len(batches)))


def _padded_length(example: Example, options: FinetuneOptions) -> int:
    unit = _COMPILED_LENGTHS if options.compiled else _LENGTHS
    return -(-len(example.ids) // unit) * unit


def _label_weights(examples: Sequence[Example], multi_label: bool) -> Tensor:
    """How much each label counts, [N]: by the inverse of its frequency; multi-label: absent to present."""
    targets = np.concatenate([example.targets for example in examples])
    counts = np.maximum(targets.sum(axis=0), 1)
    weights = (len(targets) - counts) / counts if multi_label else len(targets) / len(counts) / counts
    return torch.tensor(np.sqrt(weights), dtype=torch.float32)


def head_logits(model: Head, hidden: Tensor, batch: Sequence[Example]) -> Tensor:
    """Scores of the labels at the R positions that a batch reads: [R, D] to [R, N]."""
    if isinstance(model, BioGptForSequenceClassification):
        return model.score(hidden)
    words = [word for example in batch for word in example.words]
    forms = forms_of(words, model.config, hidden.device)
    counts = [len(example.reads) for example in batch]
    return model.read(hidden, forms, counts, [example.types for example in batch])


def label_loss(logits: Tensor, targets: Tensor, weights: Tensor | None, multi_label: bool) -> Tensor:
    """Mean loss in nats over R reads.

    Args:
        logits, targets: [R, N]; targets as in ``Example``.
        weights: [N], how much a read counts, by its right labels, or in multi-label how much a present label
            counts beside an absent one; None counts all the same.
    """
    logits = logits.float()
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
    right = logits.masked_fill(targets == 0, -math.inf).logsumexp(dim=1)
    losses = logits.logsumexp(dim=1) - right
    if weights is None:
        return losses.mean()
    share = (targets * weights).sum(dim=1) / targets.sum(dim=1)
    return (losses * share).sum() / share.sum()
