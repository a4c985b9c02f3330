"""``cluster config``: which replicas a Ray cluster is to serve with, for ``serve deploy``."""

import argparse
import sys
from pathlib import Path

from biogpt.cli.arguments import whole
from biogpt.cluster.fleet import Fleet
from biogpt.runners.precision import PRECISIONS


def add_config(parser: argparse.ArgumentParser) -> None:
    for flag, default, what in (
        (
            "--model",
            Fleet.model,
            "writes, and is there from the start; others are loaded when they are asked for",
        ),
        ("--ner-model", Fleet.ner_model, "finds entities"),
        ("--classify-model", Fleet.classify_model, "labels texts"),
        ("--sentence-model", Fleet.sentence_model, "labels sentences"),
    ):
        parser.add_argument(flag, default=default, help=f"{what} (%(default)s)")
    parser.add_argument("--device", default=Fleet.device, help="of the replicas (%(default)s)")
    parser.add_argument("--precision", default=Fleet.precision, choices=PRECISIONS, help="(%(default)s)")
    parser.add_argument(
        "--replicas",
        type=whole(1),
        nargs="+",
        default=[Fleet.least],
        metavar="N",
        help="of each task; two numbers: at least and at most, as requests need",
    )
    parser.add_argument("--cpus", type=float, default=Fleet.cpus, help="that a replica takes (%(default)g)")
    parser.add_argument("--gpus", type=float, default=Fleet.gpus, help="or a share of one (%(default)g)")
    parser.add_argument("--out", type=Path, help="a file; standard output when left out")
    parser.set_defaults(run=_config)


def _config(chosen: argparse.Namespace) -> None:
    if len(chosen.replicas) > 2:
        raise ValueError(f"--replicas has {len(chosen.replicas)} numbers; expected one, or least and most")
    fleet = Fleet(
        model=chosen.model,
        ner_model=chosen.ner_model,
        classify_model=chosen.classify_model,
        sentence_model=chosen.sentence_model,
        device=chosen.device,
        precision=chosen.precision,
        least=chosen.replicas[0],
        most=chosen.replicas[-1],
        cpus=chosen.cpus,
        gpus=chosen.gpus,
    )
    text = fleet.yaml()
    if chosen.out is None:
        sys.stdout.write(text)
        return
    chosen.out.write_text(text, encoding="utf-8")
