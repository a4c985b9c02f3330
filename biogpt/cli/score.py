"""``score``: bits per byte of a text."""

import argparse
import math
from pathlib import Path

from biogpt.checkpoint.pretrained import BioGptForCausalLM, BioGptTokenizer
from biogpt.cli.arguments import add_model
from biogpt.training.corpus import read_texts
from biogpt.training.metrics import bits_per_byte


def add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help=".txt or .txt.xz, UTF-8, one document a line")
    add_model(parser)
    parser.set_defaults(run=_score)


def _score(chosen: argparse.Namespace) -> None:
    texts = read_texts(chosen.file)
    model = BioGptForCausalLM.from_pretrained(chosen.model, device=chosen.device, precision=chosen.precision)
    tokenizer = BioGptTokenizer.from_pretrained(model.folder)
    bits = bits_per_byte(model, tokenizer, texts)
    if not math.isfinite(bits):
        raise FloatingPointError(
            f"bits per byte are {bits}: the weights of {chosen.model} may be damaged, or "
            "too large for this precision; "
            "try --precision float32"
        )
    print(f"{bits:.4f} bits per byte on {len(texts)} texts of {chosen.file.name}")
