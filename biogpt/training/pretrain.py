"""Pre-training of a causal language model from plain text, on one machine, resumable after a kill.

The recipe: first shorter rows from all texts, at a constant learning rate; then rows of all
positions from the texts nearest to the purpose, while the rate falls to zero (warm-up, stable, decay: Hu et
al. 2024, arXiv 2404.06395). Muon on the hidden matrices, AdamW on the rest; bfloat16 arithmetic where it is
fast, float32 weights.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from biogpt.checkpoint.pretrained import BioGptForCausalLM, BioGptTokenizer
from biogpt.model.config import BioGptConfig
from biogpt.runners.precision import bfloat16_pays, choose_device
from biogpt.training.corpus import Documents, pack_rows, read_texts, tokenize_file
from biogpt.training.loop import TrainingProgress, TrainingRun
from biogpt.training.metrics import bits_per_byte
from biogpt.training.optimizer import make_optimizers
from biogpt.training.options import PretrainOptions
from biogpt.training.vocabulary import count_words, learn_vocabulary

logger = logging.getLogger(__name__)

_QUICK_LINES = 100  # held-out lines scored while training; the last score takes all of them
_SHARD_BYTES = 9_000_000  # files small enough for any git host
_BETAS, _EPSILON = (0.9, 0.95), 1e-10  # of AdamW


@dataclass
class PretrainProgress(TrainingProgress):
    """How far pre-training is; ``best`` is the lowest held-out bits per byte.

    Attributes:
        decay_step: the step at which the decay began; None before.
    """

    decay_step: int | None = None


def pretrain(options: PretrainOptions) -> Path:
    """Train until ``options.tokens`` are read, from where an earlier run in the same folder stopped.

    Returns:
        The folder of the best checkpoint: half precision, with vocabulary and ``training.json``.

    Raises:
        ValueError: the state in the folder is damaged, or belongs to another model or schedule; its
            vocabulary is of another size.
        FloatingPointError: the loss, the weights or the score are no longer numbers.
        OSError: something could not be written, as on a full disk; the state before is kept.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = _vocabulary(options)
    torch.manual_seed(options.seed)
    model = _model(options, tokenizer).to(choose_device(options.device)).train()
    optimizers = make_optimizers(
        model,
        lr=options.adam_lr,
        muon_lr=options.muon_lr,
        betas=_BETAS,
        eps=_EPSILON,
        weight_decay=0.0,
        muon_weight_decay=options.weight_decay,
    )
    progress = PretrainProgress()
    averaged_from = options.steps - options.averaged if options.averaged else None
    run = TrainingRun(
        options.out, _settings(options), model, tokenizer, optimizers, progress, averaged_from=averaged_from
    )
    run.resume()
    _check_schedule(options, progress)
    _train(options, run, progress)
    return options.out / "best"


def _check_schedule(options: PretrainOptions, progress: PretrainProgress) -> None:
    """Refuse to go on where other options would already have lowered the rates, or not yet."""
    path = options.out / "state.pt"
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


def _train(options: PretrainOptions, run: TrainingRun[BioGptForCausalLM], progress: PretrainProgress) -> None:
    """All steps that are left, with their scores and states."""
    heldout = read_texts(options.heldout)
    loss_of = torch.compile(_loss) if options.compiled else _loss
    bar = tqdm(
        total=options.steps * options.batch_tokens,
        initial=progress.step * options.batch_tokens,
        unit="tok",
        unit_scale=True,
        smoothing=0.05,
    )
    run.start_clock()
    for batch in _on_device(_batches(options, run.tokenizer, progress.step), run.model.device):
        if progress.step == options.stable_steps:
            progress.decay_step = progress.step
            run.save_state("stable.pt")
        loss = loss_of(run.model, batch)
        run.backward(loss)
        run.update(options.learning_rate(progress.step))
        run.count(loss.item())
        best = "" if progress.best is None else f"{progress.best:.4f} bits/byte"
        bar.set_postfix(loss=f"{progress.loss:.3f}", best=best, refresh=False)
        bar.update(options.batch_tokens)
        if run.unsaved_for(options.minutes_between) and progress.step < options.steps:
            _score_and_save(options, run, progress, heldout[:_QUICK_LINES])
            run.start_clock()
    bar.close()
    run.take_average()
    progress.best = None  # scores of a few lines do not compare with the score of all
    _score_and_save(options, run, progress, heldout)


def _loss(model: BioGptForCausalLM, batch: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the next id; ``batch`` is [B, T + 1] ids."""
    kind = batch.device.type
    with torch.autocast(kind, torch.bfloat16, enabled=bfloat16_pays(kind)):
        # Asked for its attentions, the model multiplies matrices instead of calling the fused kernel, whose
        # backward pass is slow on CPUs; nothing of them is kept after compilation.
        hidden = model.biogpt(batch[:, :-1], output_attentions=kind == "cpu").last_hidden_state
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
    # No dropout of attention: its mask costs more than the rest of attention.
    config = replace(config, hidden_dropout_prob=options.dropout, attention_probs_dropout_prob=0.0)
    model = BioGptForCausalLM(config)
    if base is not None:
        model.load_state_dict(base.state_dict())
    return model


def _vocabulary(options: PretrainOptions) -> BioGptTokenizer:
    """That of the model to go on from, or the run's own, learned from all its texts when it is new.

    Raises:
        ValueError: the run has one of another size.
    """
    if options.model:
        return BioGptTokenizer.from_pretrained(options.model)
    folder = options.out / "vocabulary"
    if not (folder / "vocab.json").exists():
        counts: Counter[str] = Counter()
        for path in sorted(set(options.texts + options.final_texts)):
            logger.info("counting the words of %s", path.name)
            counts += count_words(read_texts(path), options.processes)
        learn_vocabulary(counts, options.vocab_size).save_pretrained(folder)
    tokenizer = BioGptTokenizer.from_files(folder / "vocab.json", folder / "merges.txt")
    if tokenizer.vocab_size != options.vocab_size:
        raise ValueError(
            f"{folder} holds a vocabulary of {tokenizer.vocab_size} entries, "
            f"but vocab_size is {options.vocab_size}; "
            "give that size to go on, delete the folder to begin anew, or choose another"
        )
    return tokenizer


def _on_device(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The batches where the model is; beside a GPU, a thread makes the next one while it computes."""
    if device.type == "cpu":
        yield from batches
        return
    with ThreadPoolExecutor(1, "batches") as maker:
        coming = maker.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = maker.submit(next, batches, None)
            yield batch.to(device)


def _batches(options: PretrainOptions, tokenizer: BioGptTokenizer, done: int) -> Iterator[Tensor]:
    """Batches after the first ``done``, [B, T + 1]: first rows of all texts, then long ones of the final."""
    stable = options.stable_steps
    phases = (
        (options.texts, options.first_length, 0, stable),
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


def _settings(options: PretrainOptions) -> dict[str, Any]:
    """The options that can't change within a run."""
    settings = asdict(options)
    changing = ("out", "tokens", "decay", "minutes_between", "compiled", "processes", "heldout", "device")
    for name in changing:
        del settings[name]
    for name in ("texts", "final_texts"):
        settings[name] = [path.name for path in settings[name]]
    return settings


def _score_and_save(
    options: PretrainOptions,
    run: TrainingRun[BioGptForCausalLM],
    progress: PretrainProgress,
    texts: list[str],
) -> None:
    """Score on held-out text, keep the checkpoint if it is the best, and the state in any case."""
    run.check_weights()
    run.model.eval()
    score = bits_per_byte(run.model, run.tokenizer, texts)
    if not math.isfinite(score):
        raise FloatingPointError(
            f"bits per byte are {score} after step {progress.step}: training has diverged; choose lower "
            "learning rates"
        )
    run.model.train()
    entry = {
        "step": progress.step,
        "tokens": progress.step * options.batch_tokens,
        "hours": round(progress.seconds / 3600, 3),
        "loss": round(progress.loss, 4),
        "bits_per_byte": round(score, 4),
        "texts": len(texts),
    }
    run.record(entry)
    if progress.best is None or score < progress.best:
        progress.best = score
        recipe = _settings(options) | {"tokens": options.tokens, "decay": options.decay}
        run.keep_best("training.json", {"recipe": recipe, "score": entry}, _SHARD_BYTES)
    run.save_state()
