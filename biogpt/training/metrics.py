"""Scores of trained models."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from biogpt.heads import BioGptForCausalLM
from biogpt.tokenizer import BioGptTokenizer


@torch.inference_mode()
def bits_per_byte(
    model: BioGptForCausalLM, tokenizer: BioGptTokenizer, texts: Sequence[str], batch_size: int = 16
) -> float:
    """How many bits the model needs for each UTF-8 byte of the texts, each scored whole after ``</s>``.

    A text longer than the model's positions is read in windows that overlap by half, so that every token but the
    first few hundred is predicted from at least half a window of context. The end of a text is not scored.

    Raises:
        ValueError: the texts are empty.
    """
    total_bytes = sum(len(text.encode()) for text in texts)
    if not total_bytes:
        raise ValueError("no text to score")
    device = model.output_projection.weight.device
    limit = model.config.max_position_embeddings
    windows = []  # (ids, first target that counts)
    for text in texts:
        ids = tokenizer.encode(text).ids
        windows.append((ids[: limit + 1], 0))
        for start in range(limit // 2, len(ids) - 1 - limit // 2, limit // 2):
            windows.append((ids[start : start + limit + 1], limit - limit // 2))
    windows.sort(key=lambda window: len(window[0]))
    nats = 0.0
    for first in range(0, len(windows), batch_size):
        batch = windows[first : first + batch_size]
        longest = max(len(ids) for ids, _ in batch)
        rows = torch.full((len(batch), longest), -100)
        scored = torch.full((len(batch), longest), -100)
        for row, (ids, begin) in enumerate(batch):
            rows[row, : len(ids)] = scored[row, : len(ids)] = torch.tensor(ids)
            scored[row, : begin + 1] = -100
        if longest < 2:
            continue
        rows = rows.masked_fill(rows < 0, tokenizer.pad_token_id).to(device)
        logits = model(rows[:, :-1]).logits.float()
        targets = scored[:, 1:].to(device)
        nats += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    return nats / math.log(2) / total_bytes
