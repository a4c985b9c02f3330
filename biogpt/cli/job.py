"""``--input`` and ``--output`` of ``ner``, ``classify`` and ``generate``: files of any number of texts."""

import argparse
import sys
from pathlib import Path
from typing import Any

from biogpt.cli.arguments import whole
from biogpt.cluster.jobs import OUTPUTS, Job, Processes, Workers, work_here
from biogpt.cluster.work import Task


def add_job(parser: argparse.ArgumentParser, given: Any) -> None:
    """Add the arguments of a job.

    Args:
        given: the group of what may be read, of which one is to be chosen.
    """
    given.add_argument(
        "--input",
        metavar="FOLDER|GLOB",
        help="files of any number of texts, Parquet included; run again to go on with what was cut off",
    )
    parser.add_argument("--output", type=Path, help="folder of the results of --input, a file for each")
    parser.add_argument(
        "--workers", type=whole(1), help="processes that work on --input (1; with --ray a CPU each)"
    )
    parser.add_argument("--ray", action="store_true", help="work on --input by Ray Data")
    parser.add_argument("--ray-address", help="of a Ray cluster; one of this machine's own when left out")
    parser.add_argument(
        "--gpus", type=float, default=0.0, help="share of a GPU that each worker of --ray takes"
    )


def refuse_job_flags(chosen: argparse.Namespace) -> None:
    """Refuse what is for ``--input`` alone."""
    if chosen.output is not None or chosen.workers or chosen.ray or chosen.ray_address:
        raise ValueError("--output, --workers and --ray are for a job; name its files with --input")


def run_job(chosen: argparse.Namespace, task: Task) -> None:
    """Work on ``--input``."""
    if chosen.output is None:
        raise ValueError("--input needs --output, a folder for the results")
    if getattr(chosen, "out", None) is not None:
        raise ValueError("--out is for one text or --file; the results of --input go to the folder --output")
    kind = "jsonl" if chosen.format in (None, "table") else chosen.format
    if kind not in OUTPUTS:
        raise ValueError(f"--format is {kind}; the results of --input are {' or '.join(OUTPUTS)}")
    job = Job(task, chosen.input, chosen.output, kind)
    failed = job.run(_workers(chosen))
    if failed:
        print(f"biogpt: {failed:,} rows failed; each has its error in place of a result", file=sys.stderr)


def _workers(chosen: argparse.Namespace) -> Workers:
    if chosen.ray or chosen.ray_address:
        from biogpt.cluster.data import RayWorkers

        return RayWorkers(chosen.workers, chosen.ray_address, chosen.gpus)
    return Processes(chosen.workers) if (chosen.workers or 1) > 1 else work_here
