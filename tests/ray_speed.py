"""How fast replicas on a Ray of this machine serve, beside the same service without: a table for the README.

``PYTHONPATH=. python tests/ray_speed.py``
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from biogpt.cluster.data import RayWorkers
from biogpt.cluster.fleet import Fleet
from biogpt.cluster.jobs import Job, Workers, work_here
from biogpt.cluster.work import FindEntities
from biogpt.generation.options import GenerationOptions
from biogpt.serving.service import TextService
from biogpt.serving.text_generator import TextGenerator

PROMPT = "Trastuzumab is a monoclonal antibody that"
ABSTRACT = (
    "Naloxone reverses the antihypertensive effect of clonidine. In unanesthetized, spontaneously "
    "hypertensive rats the decrease in blood pressure and heart rate produced by intravenous clonidine was "
    "inhibited or reversed by naloxone. "
) * 4


@dataclass(frozen=True)
class Speed:
    """Of requests that came from so many clients at once."""

    requests: float
    tokens: float
    first: tuple[float, float]  # milliseconds until the first token: median, and 95 of 100

    def row(self, name: str) -> str:
        median, slow = self.first
        return f"| {name} | {self.requests:.2f} | {self.tokens:.0f} | {median:.0f} | {slow:.0f} |"


def speed(service: TextService, clients: int, requests: int, tokens: int) -> Speed:
    """What requests of this length come to."""

    def ask(seed: int) -> float:
        options = GenerationOptions(max_new_tokens=tokens, min_new_tokens=tokens, temperature=1.0, seed=seed)
        begun = time.perf_counter()
        with service.stream(PROMPT, options) as stream:
            next(stream)
            first = time.perf_counter() - begun
            assert sum(1 for _ in stream) == tokens - 1
        return 1000 * first

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(2 * clients)))  # so that all is warm
        begun = time.perf_counter()
        firsts = list(pool.map(ask, range(requests)))
        seconds = time.perf_counter() - begun
    median, slow = np.percentile(firsts, [50, 95])
    return Speed(requests / seconds, requests * tokens / seconds, (median, slow))


@contextmanager
def replicas(count: int, model: str, precision: str) -> Iterator[TextService]:
    """A service by so many replicas of this machine, each with its share of the cores."""
    from biogpt.cluster.cluster import Cluster

    cpus = max(1, (os.cpu_count() or 1) // count)
    fleet = Fleet(model=model, precision=precision, device="cpu", least=count, most=count, cpus=cpus)
    cluster = Cluster(None, fleet, ["writing"])
    try:
        yield cluster.generator(model)
    finally:
        cluster.close()


def rows_a_second(workers: Workers, rows: int) -> tuple[float, float]:
    """Entities of texts of 149 tokens: rows a second, and a second of this process's cores."""
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts"
        texts.mkdir()
        for number in range(4):
            (texts / f"{number}.txt").write_text(f"{ABSTRACT}\n" * (rows // 4))
        job = Job(FindEntities(model="mini-ner", precision="float32"), str(texts), Path(folder) / "out")
        begun, computed = time.perf_counter(), time.process_time()
        job.run(workers)
        return rows / (time.perf_counter() - begun), rows / (time.process_time() - computed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--rows", type=int, default=400)
    asked = parser.parse_args()
    load = (asked.clients, asked.requests, asked.tokens)
    print("| Served by | requests/s | tokens/s | first token, p50, ms | p95, ms |\n|---|---|---|---|---|")
    near = TextGenerator.from_pretrained(asked.model, device="cpu", precision=asked.precision)
    near.share_cores()
    for name, clients in (("one process", asked.clients), ("one process, one client", 1)):
        print(speed(near, clients, *load[1:]).row(name), flush=True)
    near.close()
    for count in (1, 2):
        with replicas(count, asked.model, asked.precision) as far:
            print(speed(far, *load).row(f"{count} replica{'s' * (count > 1)}"), flush=True)
            if count == 1:
                print(speed(far, 1, *load[1:]).row("1 replica, one client"), flush=True)
    print("\n| Entities, mini-ner | rows/s |\n|---|---|")
    alone, of_a_core = rows_a_second(work_here, asked.rows)
    print(f"| one process | {alone:.1f}; {of_a_core:.1f} a second of a core |", flush=True)
    print(f"| Ray Data, 2 workers | {rows_a_second(RayWorkers(2), asked.rows)[0]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
