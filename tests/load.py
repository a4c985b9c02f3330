"""Many clients at once on the real page: is an answer lost, mixed up or changed, and is the process level?

``PYTHONPATH=. python tests/load.py`` sends a thousand requests of all tasks from 32 clients, of which one in
ten leaves; with ``--sessions 10000`` then as many visitors come, each with one short text.
"""

import argparse
import json
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app_server import app_server

WORDS = re.findall(
    r"\w+",
    "naloxone reverses the effect of clonidine in rats with hypertension and aspirin lowers BRCA1 expression "
    "in breast cancer cells of patients treated by tamoxifen while p53 induces apoptosis",
)
LEAVES = 0.1  # of requests: their clients leave before the end
REST = 35.0  # seconds after which an idle page has given back what it can


@dataclass(frozen=True)
class Ask:
    """A request.

    Attributes:
        path: where it goes; of Gradio's endpoints the answer comes by a second one.
    """

    path: str
    body: str

    @property
    def task(self) -> str:
        return self.path.removeprefix("gradio_api/call/v2")


@dataclass(frozen=True)
class Level:
    """What a process holds."""

    threads: int
    files: int
    megabytes: float

    @classmethod
    def of(cls, process: int) -> "Level":
        status = Path(f"/proc/{process}/status").read_text()
        threads, kilobytes = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("Threads", "VmRSS"))
        return cls(threads, len(os.listdir(f"/proc/{process}/fd")), kilobytes / 1024)


@dataclass
class Outcome:
    """What became of requests.

    Attributes:
        same: how many got the very answer that each gets alone.
        wrong: the others, with what they got.
        left: how many clients left before the end.
        refused: how often one was told to come back, and did.
    """

    same: int = 0
    left: int = 0
    refused: int = 0
    wrong: list[tuple[Ask, Any]] = field(default_factory=list)
    seconds: float = 0.0


def asks(count: int, seed: int = 0, size: float = 1.0) -> list[Ask]:
    """Requests of all tasks and ways, of mixed lengths; ``size``: of the longest, in place of the whole."""
    draw = random.Random(seed)

    def words(least: int, most: int) -> str:
        most = round(most * size)
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most))).capitalize()

    def writing(name: str) -> dict[str, Any]:
        settings = {"temperature": draw.choice((0, 0.7, 1.2)), "seed": draw.randint(0, 99)}
        return {"prompt": words(1, 90), name: draw.randint(1, 40), **settings}

    def one(number: int) -> tuple[str, dict[str, Any]]:
        match number % 8:
            case 0:
                return "gradio_api/call/v2/generate", writing("max_new_tokens")
            case 1:
                return "v1/completions", {**writing("max_tokens"), "stream": True, "n": 1}
            case 2:
                return "v1/completions", {**writing("max_tokens"), "logprobs": 2}
            case 3:
                return "gradio_api/call/v2/ner", {"text": words(1, 400)}
            case 4:
                return "v1/ner", {"input": [words(1, 60), words(1, 200)]}
            case 5:
                return "gradio_api/call/v2/classify", {"text": words(1, 300)}
            case 6:
                task = draw.choice(({"task": "sentences"}, {"labels": ["drug", "disease", "gene"]}))
                return "v1/classify", {"input": words(1, 80), **task}
            case _:
                return "v1/score", {"input": words(1, 90)}

    return [Ask(path, json.dumps(body)) for path, body in map(one, range(count))]


def _open(url: str, client: str, body: str | None = None) -> Any:
    headers = {"Content-Type": "application/json", "X-Forwarded-For": client}
    return urllib.request.urlopen(urllib.request.Request(url, body and body.encode(), headers), timeout=600)


def answer(url: str, ask: Ask, client: str = "10.0.0.1") -> Any:
    """What a request gets, but for its times and its number."""
    with _open(url + ask.path, client, ask.body) as asked:
        got = asked.read().decode()
    if ask.path.startswith("gradio_api"):
        event = json.loads(got)["event_id"]
        place = ask.path.replace("/v2", "")
        with _open(f"{url}{place}/{event}", client) as told:
            *_, name, data = told.read().decode().strip().splitlines()
        rows = json.loads(data.removeprefix("data: "))
        return name, [{**row, "seconds": 0} if isinstance(row, dict) else row for row in rows]
    if got.startswith("data: "):
        *events, done = (line.removeprefix("data: ") for line in got.split("\n\n") if line)
        choices = [json.loads(event)["choices"][0] for event in events]
        return done, "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]
    return {name: value for name, value in json.loads(got).items() if name not in ("id", "created")}


def leave(url: str, ask: Ask, client: str, patience: int) -> None:
    """Ask for something, and go away without all of it: at once, or after the first bytes."""
    with _open(url + ask.path, client, ask.body) as asked:
        got = asked.read(patience) if not ask.path.startswith("gradio_api") else asked.read()
    if ask.path.startswith("gradio_api") and patience:
        place = ask.path.replace("/v2", "")
        with _open(f"{url}{place}/{json.loads(got)['event_id']}", client) as told:
            told.read(patience)


def run(url: str, alone: dict[Ask, Any], count: int, clients: int, seed: int = 0) -> Outcome:
    """Send requests from several clients at once, each of which asks for one thing after another.

    Args:
        alone: what each request gets that is sent alone.
    """
    outcome, draw, begun = Outcome(), random.Random(seed), time.monotonic()
    todo = [
        (ask, f"10.0.0.{number % clients}", draw.random() < LEAVES, draw.choice((0, 40)))
        for number, ask in enumerate(draw.choices(list(alone), k=count))
    ]

    def serve(of_client: Sequence[tuple[Ask, str, bool, int]]) -> list[tuple[Ask, Any]]:
        wrong = []
        for ask, client, leaves, patience in of_client:
            while True:
                try:
                    if leaves:
                        leave(url, ask, client, patience)
                        outcome.left += 1
                    elif (got := answer(url, ask, client)) == alone[ask]:
                        outcome.same += 1
                    else:
                        wrong.append((ask, got))
                    break
                except urllib.error.HTTPError as error:
                    if error.code not in (429, 503):
                        wrong.append((ask, error.code))
                        break
                    outcome.refused += 1
                    time.sleep(0.5)
        return wrong

    with ThreadPoolExecutor(clients) as pool:
        for wrong in pool.map(serve, [todo[client::clients] for client in range(clients)]):
            outcome.wrong += wrong
    outcome.seconds = time.monotonic() - begun
    return outcome


def at_work(url: str) -> dict[str, float]:
    """The requests that are served or wait, by task, as told to Prometheus; those of none are left out."""
    told = urllib.request.urlopen(f"{url}metrics").read().decode()
    found = re.findall(r'^biogpt_requests_(?:running|waiting)\{task="(.*?)"\} (\S+)$', told, re.M)
    return {task: float(number) for task, number in found if float(number)}


def visit(url: str, count: int, clients: int) -> None:
    """Let visitors come, each with a session of its own, and go."""
    ask = Ask("gradio_api/call/v2/ner", json.dumps({"text": "Naloxone reverses clonidine."}))
    with ThreadPoolExecutor(clients) as pool:
        told = set(pool.map(lambda number: repr(answer(url, ask, f"10.1.0.{number % 250}")), range(count)))
    assert len(told) == 1, told


def main() -> None:
    parser = argparse.ArgumentParser(description="Put load on the page, and see that it stays as it was.")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--sessions", type=int, default=0)
    options = parser.parse_args()
    with open(os.devnull, "w") as log, app_server("--metrics", log=log) as (url, process):
        pid = process.pid
        alone = {ask: answer(url, ask) for ask in asks(80)}
        print(f"{len(alone)} requests alone, by task: {dict(Counter(ask.task for ask in alone))}")
        for name, count in (("warm-up", options.requests // 2), ("run", options.requests)):
            outcome = run(url, alone, count, options.clients, seed=count)
            told = (
                f"{outcome.same} the same as alone, {outcome.left} left, {outcome.refused} told to come back"
            )
            print(f"{name}: {count} requests in {outcome.seconds:.0f} s: {told}, {len(outcome.wrong)} wrong")
            for ask, got in outcome.wrong[:5]:
                print(f"  {ask.task} {ask.body[:60]}: {str(got)[:200]}")
            print(f"  at the end {Level.of(pid)}")
            time.sleep(REST)
            print(f"  at rest {Level.of(pid)}, at work {at_work(url)}", flush=True)
        for quarter in range(4 if options.sessions else 0):
            visit(url, options.sessions // 4, clients=8)
            print(f"{(quarter + 1) * options.sessions // 4} sessions: {Level.of(pid)}", flush=True)


if __name__ == "__main__":
    main()
