"""Pre-training of a causal language model from plain text, on one machine, resumable after a kill.

The recipe: first rows of half the positions from all texts, at a constant learning rate; then rows of all
positions from the texts nearest to the purpose, while the rate falls to zero (warm-up, stable, decay: Hu et al.
2024, arXiv 2404.06395). Muon on the hidden matrices, AdamW on the rest; bfloat16 arithmetic where it is fast,
float32 weights.
"""

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from biogpt.checkpoint.files import written_whole
from biogpt.checkpoint.pretrained import BioGptForCausalLM, BioGptTokenizer
from biogpt.model.config import BioGptConfig
from biogpt.runners.precision import bfloat16_pays
from biogpt.training.corpus import Documents, pack_rows, read_lines, tokenize_file
from biogpt.training.metrics import bits_per_byte
from biogpt.training.optimizer import make_optimizers
from biogpt.training.state import read_state, restore, write_state
from biogpt.training.vocabulary import count_words, learn_vocabulary

logger = logging.getLogger(__name__)

_QUICK_LINES = 100  # held-out lines scored while training; the last score takes all of them
_SHARD_BYTES = 9_000_000  # files small enough for any git host


@dataclass(frozen=True)
class PretrainOptions:
    """What to train, on what, how long.

    Attributes:
        out: folder of the run: vocabulary, tokens, state, log, and ``best``, the checkpoint.
        texts: files of one document a line (``.txt`` or ``.txt.xz``); one named twice is read twice as often.
        final_texts: the files of the decay phase; ``texts`` when empty.
        heldout: file to score; never trained on.
        model: embedded name, folder or Hub id to go on from, with its vocabulary and shape, in place of a new model.
        tokens: how many to train on; may be changed when resuming, until the decay has begun.
        decay: share of ``tokens`` during which the learning rate falls to zero.
        batch_tokens: tokens a step.
        vocab_size, width, layers, heads, positions: shape of a new model; ``positions`` is the length of a row in
            any case.
        muon_lr, adam_lr: learning rates of the hidden matrices and of the rest.
        warmup: steps of rising learning rate.
        minutes_between: how often to score and save.
        compiled: fuse operations with ``torch.compile``: faster, needs a C++ compiler.
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
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    warmup: int = 100
    minutes_between: float = 10.0
    compiled: bool = False
    processes: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_tokens", "vocab_size", "width", "layers", "heads", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("muon_lr", "adam_lr", "warmup", "minutes_between"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
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
                f"batch_tokens is {self.batch_tokens} and positions {self.positions}; expected an even number of "
                "positions and a whole number of such rows a step"
            )
        for path in (*self.texts, *self.final_texts, self.heldout):
            if not path.is_file():
                raise FileNotFoundError(f"{path} is not a file; expected text, one document a line")

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.batch_tokens)

    @property
    def stable_steps(self) -> int:
        return min(self.steps - 1, round(self.steps * (1 - self.decay)))  # the last step decays in any case

    def learning_rate(self, step: int) -> float:
        """Share of the full learning rate at a step: up, level, then down to zero."""
        falling = (self.steps - step) / (self.steps - self.stable_steps)
        return min(1.0, (step + 1) / max(1, self.warmup), falling)


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: steps done.
        decay_step: the step at which the decay began; None before.
        seconds: of training, over all sessions of the run.
        loss: smoothed training loss, nats a token.
        best: lowest held-out bits per byte so far.
    """

    step: int = 0
    decay_step: int | None = None
    seconds: float = 0.0
    loss: float = 0.0
    best: float = float("inf")


def pretrain(options: PretrainOptions) -> Path:
    """Train until ``options.tokens`` are read, from where an earlier run in the same folder stopped.

    Returns:
        The folder of the best checkpoint: half precision, with vocabulary and ``training.json``.

    Raises:
        ValueError: the state in the folder is damaged, or belongs to another model or schedule.
        OSError: something could not be written, as on a full disk; the state before is kept.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = _vocabulary(options)
    torch.manual_seed(options.seed)
    model = _model(options, tokenizer).train()
    optimizers = make_optimizers(model, options.muon_lr, options.adam_lr)
    progress = _resume(options, model, optimizers)
    heldout = read_lines(options.heldout)
    loss_of = torch.compile(_loss) if options.compiled else _loss

    bar = tqdm(
        total=options.steps * options.batch_tokens,
        initial=progress.step * options.batch_tokens,
        unit="tok",
        unit_scale=True,
        smoothing=0.05,
    )
    scored_at = clock = time.monotonic()
    for batch in _batches(options, tokenizer, progress.step):
        if progress.step == options.stable_steps:
            progress.decay_step = progress.step
            _save_state(options.out / "stable.pt", options, model, optimizers, progress)
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, full in zip(optimizers, (options.muon_lr, options.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = full * options.learning_rate(progress.step)
            optimizer.step()
            optimizer.zero_grad()
        progress.step += 1
        progress.loss += (loss.item() - progress.loss) * max(0.02, 1 / progress.step)
        now = time.monotonic()
        progress.seconds += now - clock
        clock = now
        bar.set_postfix(loss=f"{progress.loss:.3f}", best=f"{progress.best:.4f} bits/byte", refresh=False)
        bar.update(options.batch_tokens)
        if now - scored_at > 60 * options.minutes_between and progress.step < options.steps:
            _score_and_save(options, tokenizer, model, optimizers, progress, heldout[:_QUICK_LINES])
            scored_at = clock = time.monotonic()
    bar.close()
    progress.best = float("inf")  # scores of a few lines do not compare with the score of all
    _score_and_save(options, tokenizer, model, optimizers, progress, heldout)
    return options.out / "best"


def _loss(model: BioGptForCausalLM, batch: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the next id; ``batch`` is [B, T + 1] ids."""
    kind = batch.device.type
    with torch.autocast(kind, torch.bfloat16, enabled=bfloat16_pays(kind)):
        # Asked for its attentions, the model multiplies matrices instead of calling the fused kernel, whose
        # backward pass is slow on CPUs; nothing of them is kept after compilation.
        hidden = model.biogpt(batch[:, :-1], output_attentions=True).last_hidden_state
        logits = model.output_projection(hidden)
    return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def _model(options: PretrainOptions, tokenizer: BioGptTokenizer) -> BioGptForCausalLM:
    base = None
    if options.model:
        base = BioGptForCausalLM.from_pretrained(options.model, device="cpu", precision="float32")
        config = base.config
        if options.positions > config.max_position_embeddings:
            raise ValueError(
                f"positions is {options.positions}, but {options.model} has {config.max_position_embeddings}"
            )
    else:
        config = BioGptConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=options.width,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            intermediate_size=4 * options.width,
            max_position_embeddings=options.positions,
        )
    # Every text is read about once: there is nothing to over-fit, and no dropout.
    model = BioGptForCausalLM(replace(config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    if base is not None:
        model.load_state_dict(base.state_dict())
    return model


def _vocabulary(options: PretrainOptions) -> BioGptTokenizer:
    """The run's vocabulary: that of the model to go on from, or learned from all training texts when the run is new."""
    if options.model:
        return BioGptTokenizer.from_pretrained(options.model)
    folder = options.out / "vocabulary"
    if not (folder / "vocab.json").exists():
        counts: Counter[str] = Counter()
        for path in sorted(set(options.texts + options.final_texts)):
            logger.info("counting the words of %s", path.name)
            counts += count_words(read_lines(path), options.processes)
        learn_vocabulary(counts, options.vocab_size).save_pretrained(folder)
    return BioGptTokenizer.from_files(folder / "vocab.json", folder / "merges.txt")


def _batches(options: PretrainOptions, tokenizer: BioGptTokenizer, done: int) -> Iterator[Tensor]:
    """The batches after the first ``done``, [B, T + 1] each: short rows of all texts, then long ones of the final."""
    stable = options.stable_steps
    phases = (
        (options.texts, options.positions // 2, 0, stable),
        (options.final_texts or options.texts, options.positions, stable, options.steps),
    )
    for paths, length, first, last in phases:
        if done >= last:
            continue
        folder = options.out / "tokens"
        parts = {path: tokenize_file(path, tokenizer, folder, options.processes) for path in set(paths)}
        documents = Documents.join([parts[path] for path in paths])
        rows = pack_rows(documents, length, tokenizer.eos_token_id, options.seed + first)
        count = options.batch_tokens // length
        for step in range(first, last):
            batch = np.stack(list(islice(rows, count)))
            if step >= done:
                yield torch.from_numpy(batch)


def _state_of(options: PretrainOptions) -> dict[str, object]:
    """The options that can't change within a run."""
    kept = asdict(options)
    for name in ("out", "tokens", "decay", "minutes_between", "compiled", "processes", "heldout"):
        del kept[name]
    for name in ("texts", "final_texts"):
        kept[name] = [path.name for path in kept[name]]
    return kept


def _save_state(
    path: Path,
    options: PretrainOptions,
    model: BioGptForCausalLM,
    optimizers: tuple[torch.optim.Optimizer, ...],
    progress: Progress,
) -> None:
    state = {
        "options": _state_of(options),
        "progress": asdict(progress),
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    write_state(path, state)


def _resume(
    options: PretrainOptions, model: BioGptForCausalLM, optimizers: tuple[torch.optim.Optimizer, ...]
) -> Progress:
    path = options.out / "state.pt"
    if not path.exists():
        return Progress()
    state = read_state(path, ("options", "progress", "model", "optimizers"))
    if state["options"] != _state_of(options):
        differing = [
            f"{name} was {state['options'].get(name)!r}, now {value!r}"
            for name, value in _state_of(options).items()
            if state["options"].get(name) != value
        ]
        raise ValueError(f"{path} is of another run: {'; '.join(differing)}. Choose another folder.")
    progress = Progress(**state["progress"])
    if progress.decay_step not in (None, options.stable_steps):
        raise ValueError(
            f"{path}: the decay began at step {progress.decay_step}, with these options it would at "
            f"{options.stable_steps}; keep tokens and decay, or go on from stable.pt in its place"
        )
    if progress.decay_step is None and progress.step > options.stable_steps:
        raise ValueError(
            f"{path} is at step {progress.step}, past the last stable step {options.stable_steps}; "
            "give more tokens or a smaller decay"
        )
    restore(path, state, model, optimizers)
    return progress


def _score_and_save(
    options: PretrainOptions,
    tokenizer: BioGptTokenizer,
    model: BioGptForCausalLM,
    optimizers: tuple[torch.optim.Optimizer, ...],
    progress: Progress,
    texts: list[str],
) -> None:
    """Score on held-out text, keep the checkpoint if it is the best, and the state in any case."""
    model.eval()
    score = bits_per_byte(model, tokenizer, texts)
    if not math.isfinite(score):
        raise FloatingPointError(
            f"bits per byte are {score} after step {progress.step}: training has diverged; choose lower learning rates"
        )
    model.train()
    entry = {
        "step": progress.step,
        "tokens": progress.step * options.batch_tokens,
        "hours": round(progress.seconds / 3600, 3),
        "loss": round(progress.loss, 4),
        "bits_per_byte": round(score, 4),
        "texts": len(texts),
    }
    logger.info("%s", entry)
    with (options.out / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(entry) + "\n")
    if score < progress.best:
        progress.best = score
        half = BioGptForCausalLM(model.config)
        half.load_state_dict(model.state_dict())
        half.half().save_pretrained(options.out / "best", max_shard_size=_SHARD_BYTES)
        tokenizer.save_pretrained(options.out / "best")
        recipe = _state_of(options) | {"tokens": options.tokens, "decay": options.decay}
        text = json.dumps({"recipe": recipe, "score": entry}, indent=2)
        with written_whole(options.out / "best", "training.json") as (recipe_path,):
            recipe_path.write_text(text + "\n", encoding="utf-8")
    _save_state(options.out / "state.pt", options, model, optimizers, progress)
