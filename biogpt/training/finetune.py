"""Fine-tuning of a head on labelled text, resumable after a kill.

Every objective is the same to the loop: rows of tokens, positions at which labels are read, and for each of
these the labels that would be right. More than one right label is a marginal likelihood, -log of their
summed probability: what an ``O`` asks for in a corpus that annotates only some of the types (Tsuboi et al.
2008, aclanthology C08-1113). Muon and AdamW, linear warm-up and decay; bfloat16 arithmetic where asked,
float32 weights.
"""

import math
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
from biogpt.model.readers import pooled
from biogpt.runners.precision import bfloat16_pays, choose_device
from biogpt.tasks.batching import spans_of
from biogpt.tasks.words import forms_of
from biogpt.training.extending import Learned, with_types, without_types
from biogpt.training.loop import TrainingProgress, TrainingRun
from biogpt.training.optimizer import make_optimizers
from biogpt.training.options import FinetuneOptions
from biogpt.training.plots import confusion_plot

Head = BioGptForTokenClassification | BioGptForSequenceClassification

_LENGTHS = 8  # rows are padded to a multiple of this
_COMPILED_LENGTHS = 64  # the same where each length is compiled
_POOL = 50  # so many batches of examples at random are sorted by length before they are cut into batches
_BETAS = (0.9, 0.98)


@dataclass
class Example:
    """A row to learn from.

    Attributes:
        ids: T token ids.
        reads: R positions at which labels are read.
        targets: [R, N] float32, 1 for a right label, or [1, N] where a text is read at all tokens to be
            labelled as a whole. One label a read: any of those with 1 counts as right; multi-label: all do.
        words: [R] the words that are read, for a word encoder.
        types: of entities that are annotated here, the only ones that a word encoder scores.
        left_out: indices of labels that a word encoder does not score here.
        begins: [R], for a head that pools, where the tokens begin whose mean is read, up to the read.
        states: [R, D] bfloat16, what a frozen decoder says at the reads, once that was kept.
    """

    ids: list[int]
    reads: list[int]
    targets: np.ndarray
    words: Sequence[str] = ()
    types: Collection[str] = ()
    left_out: Sequence[int] = ()
    begins: Sequence[int] = ()
    states: Tensor | None = None


@dataclass(frozen=True)
class Evaluation:
    """What an objective found on its dev split.

    Attributes:
        score: what early stopping goes by, more is better.
        metrics: for ``metrics.json``.
        confusion: [N, N] counts, gold by row, and the N names; None for objectives without.
    """

    score: float
    metrics: dict[str, Any]
    confusion: tuple[np.ndarray, list[str]] | None = None


class Objective(Protocol):
    """What is to be learned.

    Attributes:
        head: the class of model.
        labels: N labels of the head.
        multi_label: whether a read may have several labels at once.
        settings: fields of the config that it decides, such as ``problem_type``.
        extends: a tagger whose own types stay as they are, and to which those of ``learned`` are added.
        learned: types of a tagger.
        auxiliary: types among these that are not kept: to tell them from the others helps.
    """

    extends: BioGptForTokenClassification | None = None
    learned: tuple[str, ...] = ()
    auxiliary: tuple[str, ...] = ()
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

    def evaluate(self, model: Any, tokenizer: BioGptTokenizer) -> Evaluation | None:
        """Scores on the dev split; None where there is none."""
        ...


@dataclass
class FinetuneProgress(TrainingProgress):
    """How far fine-tuning is; ``best`` is the highest dev score.

    Attributes:
        epoch: epochs finished.
        batch: batches done of the one under way.
        best_epoch: the epoch after which the best score was reached.
    """

    epoch: int = 0
    batch: int = 0
    best_epoch: int = 0


def finetune(objective: Objective, options: FinetuneOptions, metadata: dict[str, Any] | None = None) -> Path:
    """Train until the epochs are done or the dev score stops rising, from where an earlier run stopped.

    Args:
        metadata: about the data, kept in ``metrics.json`` beside the options.

    Returns:
        The folder of the best checkpoint (of the last one, without a dev split): half precision, with the
        vocabulary, ``metrics.json`` and ``confusion.png``.

    Raises:
        ValueError: the state in the folder is damaged or belongs to another run.
        FloatingPointError: the loss or the weights are no longer numbers.
        OSError: something could not be written, as on a full disk; the state before is kept.
    """
    loop = FinetuneLoop(objective, options, metadata or {})
    loop.run.resume()
    while loop.progress.epoch < options.epochs and not loop.stalled():
        loop.epoch()
    return options.out / "best"


class FinetuneLoop:
    """A head that is fine-tuned: what an epoch, a batch and a score are.

    Attributes:
        run: the model, its optimizers and its folder.
        progress: where it stands.
    """

    def __init__(self, objective: Objective, options: FinetuneOptions, metadata: dict[str, Any]) -> None:
        self.objective, self.options, self.metadata = objective, options, metadata
        self.device = choose_device(options.device)
        torch.manual_seed(options.seed)
        self.model = _model(objective, options).to(self.device)
        self._learned: Learned | None = None
        if objective.extends is not None and isinstance(self.model, BioGptForTokenClassification):
            self._learned = Learned(self.model, objective.learned)
        self.progress = FinetuneProgress()
        self.run = TrainingRun(
            options.out,
            self._settings() | metadata,
            self.model,
            BioGptTokenizer.from_pretrained(options.model),
            make_optimizers(
                self.model,
                lr=options.lr,
                muon_lr=options.muon_lr,
                layer_decay=options.layer_decay,
                betas=_BETAS,
                weight_decay=options.weight_decay,
            ),
            self.progress,
            scaled=options.arithmetic == "float16",
        )
        self._editions: dict[int, list[Example]] = {}
        self._hidden_of = torch.compile(self._hidden, dynamic=False) if options.compiled else self._hidden

    def epoch(self) -> None:
        """Train one epoch, or the rest of it, and score."""
        options, progress, run = self.options, self.progress, self.run
        self.model.train()
        self.model.biogpt.train(not self.frozen)
        if self._learned is not None:
            self._learned.train()
        examples = self._examples()
        weights = self.label_weights(examples)
        batches = list(_batches(examples, options, self._random(progress.epoch)))
        bar = tqdm(
            batches[progress.batch :],
            f"epoch {progress.epoch + 1} of {options.epochs}",
            len(batches),
            initial=progress.batch,
            unit="batch",
        )
        run.start_clock()
        for batch in bar:
            loss = self.loss(batch, weights)
            run.backward(loss / options.accumulation)
            share = (progress.epoch + progress.batch / len(batches)) / options.epochs
            progress.batch += 1
            whole_step = progress.batch % options.accumulation == 0
            if whole_step or progress.batch == len(batches):
                run.update(options.learning_rate(share))
                if self._learned is not None:
                    self._learned.restore()
            run.count(loss.item())
            bar.set_postfix(loss=f"{progress.loss:.3f}", refresh=False)
            if whole_step and run.unsaved_for(options.minutes_between):
                run.save_state()
        progress.epoch, progress.batch = progress.epoch + 1, 0
        self.score()
        run.save_state()

    def _examples(self) -> list[Example]:
        """Those of the epoch; of a frozen decoder in ``editions``, what it says of each is kept."""
        epoch, editions = self.progress.epoch, self.options.editions if self.frozen else 0
        edition = epoch % editions if editions else epoch
        if edition in self._editions:
            return self._editions[edition]
        drawn = self.objective.examples(self.run.tokenizer, self.model.config, self._random(edition))
        if not editions:
            self._editions.clear()
            return drawn
        # The same batches whenever this is done: so a run that goes on keeps the same numbers to the bit.
        batches = list(_batches(drawn, self.options, self._random(edition)))
        for batch in tqdm(batches, f"edition {edition + 1} of {editions}", unit="batch"):
            counts = [len(example.reads) for example in batch]
            for example, states in zip(batch, self._read(batch).bfloat16().cpu().split(counts), strict=True):
                example.states = states.clone()
        self._editions[edition] = drawn
        return drawn

    def _read(self, batch: Sequence[Example]) -> Tensor:
        """[R, D] of the decoder at all reads of a batch, see ``biogpt.model.readers.pooled``."""
        if batch[0].states is not None:
            states = [example.states for example in batch if example.states is not None]
            return torch.cat(states).to(self.device, torch.float32)
        ids, mask = self._padded(batch)
        return pooled(self._hidden_of(ids, mask), spans_of(batch), self.model.config.pooling).float()

    @property
    def frozen(self) -> bool:
        """Whether the decoder stays as it is in this epoch."""
        return self._learned is not None or self.progress.epoch < self.options.frozen_epochs

    def stalled(self) -> bool:
        """Whether the dev score has not risen for ``patience`` epochs."""
        options, progress = self.options, self.progress
        return 0 < options.patience <= progress.epoch - progress.best_epoch

    def label_weights(self, examples: Sequence[Example]) -> Tensor | None:
        """How much each label counts, [N], where the device is; None where all count the same.

        By the inverse of its frequency; in multi-label, a present label beside an absent one.
        """
        if not self.options.balanced:
            return None
        if self.model.config.label_chain:
            raise ValueError("balanced weighs label by label, and this head learns chains of labels")
        targets = np.concatenate([example.targets for example in examples])
        present = np.maximum(targets.sum(axis=0), 1)
        if self.objective.multi_label:
            weights = (len(targets) - present) / present
        else:
            weights = len(targets) / len(present) / present
        return torch.tensor(np.sqrt(weights), dtype=torch.float32, device=self.device)

    def loss(self, batch: Sequence[Example], weights: Tensor | None = None) -> Tensor:
        """Mean loss of a batch, nats a read; see ``label_loss``."""
        logits = head_logits(self.model, self._read(batch), batch)
        targets = torch.from_numpy(np.concatenate([example.targets for example in batch])).to(self.device)
        if self.model.chain is not None:
            return self.model.chain.loss(logits.float(), targets, [len(example.reads) for example in batch])
        return label_loss(logits, targets, weights, self.objective.multi_label)

    def score(self) -> None:
        """Score on the dev split, keep the checkpoint if it is the best."""
        options, progress, run = self.options, self.progress, self.run
        self.model.eval()
        run.check_weights()
        model = self.model
        if self.objective.auxiliary and isinstance(model, BioGptForTokenClassification):
            model = without_types(model, self.objective.auxiliary)
        evaluation = self.objective.evaluate(model, run.tokenizer)
        entry: dict[str, Any] = {
            "epoch": progress.epoch,
            "hours": round(progress.seconds / 3600, 3),
            "loss": round(progress.loss, 4),
        }
        if evaluation is not None:
            entry["dev"] = round(evaluation.score, 4)
        run.record(entry)
        if evaluation is not None:
            if progress.best is not None and evaluation.score <= progress.best:
                return
            progress.best = evaluation.score
        progress.best_epoch = progress.epoch
        report = {"options": self._settings(), "data": self.metadata, "training": entry}
        if evaluation is not None:
            report["dev"] = evaluation.metrics
        run.keep_best("metrics.json", report, options.shard_bytes, model)
        if evaluation is not None and evaluation.confusion is not None:
            with written_whole(options.out / "best", "confusion.png") as (picture,):
                confusion_plot(*evaluation.confusion, picture)

    def _random(self, epoch: int) -> np.random.Generator:
        """The same draws for an epoch, whether it is begun or taken up again."""
        return np.random.default_rng((self.options.seed, epoch))

    def _padded(self, batch: Sequence[Example]) -> tuple[Tensor, Tensor | None]:
        """Ids and attention mask of a batch, [B, T]; no mask where all layers only look back.

        There, no token looks at the padding on its right.
        """
        options, config = self.options, self.model.config
        length = max(_padded_length(example, options) for example in batch)
        length = min(length, config.max_position_embeddings)
        rows = max(len(batch), options.batch_tokens // length) if options.compiled else len(batch)
        ids = torch.full((rows, length), self.run.tokenizer.pad_token_id)
        mask = torch.zeros((rows, length), dtype=torch.long)
        mask[:, 0] = 1  # also of rows that only fill up the batch: one without any token has no mean
        for row, example in enumerate(batch):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            mask[row, : len(example.ids)] = 1
        return ids.to(self.device), mask.to(self.device) if config.bidirectional_layers else None

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

    def _settings(self) -> dict[str, Any]:
        """The options that can't change within a run, and the labels."""
        settings = asdict(self.options)
        for name in ("out", "minutes_between", "compiled", "device", "gradient_checkpointing", "patience"):
            del settings[name]
        labels = {"labels": list(self.objective.labels), "multi_label": self.objective.multi_label}
        return settings | labels


def _model(objective: Objective, options: FinetuneOptions) -> Head:
    """The checkpoint in float32, with a new head, or with types added to its own."""
    if objective.extends is not None:
        return _for_training(with_types(objective.extends, objective.learned), options)
    base = objective.head.from_pretrained(
        options.model, precision="float32", device="cpu", labels=objective.labels
    )
    problem = "multi_label_classification" if objective.multi_label else "single_label_classification"
    config = replace(
        base.config,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=0.0,  # its mask costs more than the rest of attention on a CPU
        problem_type=problem,
        **objective.settings,
    )
    model = objective.head(config)
    model.biogpt.load_state_dict(base.biogpt.state_dict())
    model.base = base.base
    return _for_training(model, options)


def _for_training(model: Head, options: FinetuneOptions) -> Head:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            model.set_submodule(name, _Dropout(module.p))
    model.biogpt.gradient_checkpointing = options.gradient_checkpointing
    return model


class _Dropout(nn.Dropout):
    """Dropout that draws eight elements at once: on a CPU the draws cost as much as half the matrices.

    The probability is rounded to a multiple of 1/256, below 1.
    """

    def forward(self, input: Tensor) -> Tensor:
        cut = min(round(256 * self.p), 255)
        if not self.training or not cut:
            return input
        count = input.numel()
        draws = torch.empty(-(-count // 8), dtype=torch.int64, device=input.device).random_(-(2**63), None)
        keep = draws.view(torch.uint8)[:count].view(input.shape) >= cut
        return input * keep.to(input.dtype).mul_(256 / (256 - cut))


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


def head_logits(model: Head, hidden: Tensor, batch: Sequence[Example]) -> Tensor:
    """Scores of the labels from what a batch reads, [R, D]: [R, N], or as ``SequenceClassifier.read``."""
    counts = [len(example.reads) for example in batch]
    if isinstance(model, BioGptForSequenceClassification):
        return model.read(hidden, counts)
    words = [word for example in batch for word in example.words]
    forms = forms_of(words, model.config, hidden.device)
    scores = model.read(hidden, forms, counts, [example.types for example in batch])
    if any(example.left_out for example in batch):
        is_out = torch.zeros(scores.shape, dtype=torch.bool)
        for rows, example in zip(is_out.split(counts), batch, strict=True):
            rows[:, list(example.left_out)] = True
        scores = scores.masked_fill(is_out.to(scores.device), -math.inf)
    return scores


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
