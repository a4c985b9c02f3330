"""``bench``: the speed of this machine."""

import argparse
import json
from pathlib import Path

from biogpt.bench import POSITIONS, PROMPTS, REFERENCE, BenchOptions, bench, table
from biogpt.checkpoint.hub import find
from biogpt.cli.quick import QuickOptions, quick, wrong
from biogpt.model.config import BioGptConfig
from biogpt.runners.precision import PRECISIONS


def add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), help="folder to write to (%(default)s)"
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="of ours (auto, float32)")
    parser.add_argument(
        "--against",
        nargs="+",
        metavar="transformers[:PRECISION]",
        help="measure it as well, in turns; it must be installed (transformers is float32)",
    )
    for name, words, default in (
        ("prompts", "lengths of prompts, in tokens", PROMPTS),
        ("streams", "numbers of requests at once", BenchOptions.streams),
        ("positions", "lengths of the text so far, in tokens", POSITIONS),
    ):
        fitting = "" if name == "streams" else ", as far as they fit"
        text = f"{words} ({' '.join(map(str, default))}{fitting})"
        parser.add_argument(f"--{name}", nargs="+", type=int, help=text)
    parser.add_argument("--tagging", action="store_true", help="entities and labels of documents, too")
    parser.add_argument("--heads", nargs="+", help="trained heads, as mini-ner: documents a second of each")
    parser.add_argument("--rounds", type=int, help=f"times each figure is taken ({BenchOptions.rounds})")
    parser.add_argument("--steps", type=int, help=f"tokens a figure is taken over ({BenchOptions.steps})")
    parser.add_argument("--model", help="shape to measure: a folder or embedded name (BioGPT base, 347 M)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="check and measure a GPU in some minutes, and print JSON; of the others it takes --device, "
        "--model, --streams, --steps and the first of --precisions",
    )
    parser.add_argument(
        "--device", default="auto", help="of --quick: auto, cpu, mps, cuda or cuda:N (%(default)s)"
    )
    parser.set_defaults(run=_bench)


def _quick(chosen: argparse.Namespace) -> None:
    values = {"steps": chosen.steps, "streams": chosen.streams}
    values |= {"config": BioGptConfig.from_json(find(chosen.model) / "config.json") if chosen.model else None}
    given = {name: value for name, value in values.items() if value is not None}
    precision = (chosen.precisions or ["auto"])[0]
    results = quick(QuickOptions(device=chosen.device, precision=precision, **given))
    print(json.dumps(results, indent=2, ensure_ascii=False))
    if names := wrong(results):
        raise ValueError(f"wrong on this device: {', '.join(names)}; the JSON above says what")


def _bench(chosen: argparse.Namespace) -> None:
    if chosen.quick:
        return _quick(chosen)
    if chosen.device != "auto":
        raise ValueError(f"--device is {chosen.device!r}, which is for --quick; leave it out, or add --quick")
    names = ("out", "precisions", "prompts", "streams", "positions", "tagging", "heads", "rounds", "steps")
    values = {name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None}
    against = []
    for name in chosen.against or ():
        kind, _, precision = name.partition(":")
        if kind != REFERENCE or precision not in ("", "float32", "bfloat16"):
            raise ValueError(
                f"--against {name!r}; expected transformers, transformers:float32 or transformers:bfloat16"
            )
        against.append(precision or "float32")
    if chosen.model:
        values["config"] = BioGptConfig.from_json(find(chosen.model) / "config.json")
    results = bench(BenchOptions(against=against, **values))
    print(table(results))
    print(f"\nbench.json and plots are in {chosen.out}")
    return None
