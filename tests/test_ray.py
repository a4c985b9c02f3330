"""Replicas on a real Ray of this machine: killed, replaced, deployed anew, and the texts meanwhile.

They take minutes, and run when they are asked for: ``python -m pytest -n 0 -m ray``.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from app_server import app_server, call, post, save_tiny

from biogpt.cluster.data import RayWorkers
from biogpt.cluster.far import FarGenerator
from biogpt.cluster.fleet import Fleet
from biogpt.cluster.jobs import Done, Job, work_here
from biogpt.cluster.work import Generate, Task
from biogpt.generation.options import GenerationOptions
from biogpt.serving.service import Step, Stream
from biogpt.serving.text_generator import TextGenerator
from biogpt.serving.worker import Health

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("ray") is None, reason='needs pip install "ray[data,serve]==2.60.*"'),
]
LONG = GenerationOptions(max_new_tokens=1000, min_new_tokens=1000, temperature=1.0, seed=1)
TEXT = "ab a"


def wait_for(condition: Callable[[], Any]) -> Any:
    while not (found := condition()):
        time.sleep(0.05)
    return found


def replica(generator: TextGenerator) -> tuple[int, int]:
    """The process that serves this, and how many texts it writes."""
    engine = generator._worker.engine
    return os.getpid(), len(engine.running) + len(engine.waiting)


def node(_: TextGenerator) -> tuple[int, str]:
    import ray

    return os.getpid(), ray.get_runtime_context().get_node_id()


def pace(generator: TextGenerator, seconds: float) -> tuple[int, float]:
    """Let each step last so much longer."""
    runner = generator._worker.engine.runner
    runner.__dict__.pop("step", None)
    if seconds:
        step = runner.step
        runner.step = lambda *given: (time.sleep(seconds), step(*given))[1]
    return os.getpid(), seconds


def written(generator: TextGenerator) -> tuple[int, int]:
    return os.getpid(), generator.counts.tokens


def slowly(generator: TextGenerator) -> int:
    time.sleep(4.0)  # longer than a replica goes without a sign of life
    return os.getpid()


class Serving:
    """Two replicas of a tiny model, and the same model here."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        from biogpt.cluster.cluster import RayDeployment

        self.config = config
        self.near = TextGenerator.from_pretrained(folder, device="cpu", precision="float32")
        self.deployment = RayDeployment("writing", str(folder), lambda: Health("serving"))
        self.far = FarGenerator(self.deployment)

    def on_both(self, work: Callable[..., tuple[int, Any]], *arguments: Any) -> dict[int, Any]:
        """What both replicas return, by their processes; a call goes to either."""
        found: dict[int, Any] = {}
        while len(found) < 2:
            found |= [self.far.ask(work, *arguments)]
        return found

    def busy(self) -> dict[int, int]:
        """The texts of each replica that is there."""
        return dict(self.far.ask(replica) for _ in range(12))

    def pids(self) -> set[int]:
        return set(self.busy())

    def expected(self, options: GenerationOptions) -> list[int]:
        return [step.token_id for step in self.near.stream(TEXT, options)]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    from biogpt.cluster.starting import start_ray

    start_ray(cpus=2)
    import ray
    from ray import cloudpickle

    from biogpt.cluster.replicas import run

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas know no tests

    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    fleet = Fleet(model=str(folder), device="cpu", precision="float32", least=2, most=2, cpus=0.5)
    config = fleet.config(["writing"])
    run(config)
    yield Serving(folder, config)
    ray.shutdown()


def ids(steps: Iterator[Step] | Stream) -> list[int]:
    return [step.token_id for step in steps]


def begun(serving: Serving, count: int) -> tuple[list[Stream], list[list[int]]]:
    """Streams that are in the middle of their texts, and what each has given."""
    streams = [serving.far.stream(TEXT, LONG) for _ in range(count)]
    return streams, [[next(stream).token_id for _ in range(5)] for stream in streams]


def test_a_far_text_is_the_near_one(serving: Serving) -> None:
    for options in (
        GenerationOptions(max_new_tokens=60),
        GenerationOptions(max_new_tokens=20, temperature=1.0, seed=3, num_return_sequences=2, top_logprobs=4),
        GenerationOptions(max_new_tokens=20, num_beams=3),
        GenerationOptions(max_new_tokens=60, temperature=1.0, seed=5, stop=["b"]),
    ):
        assert list(serving.far.stream(TEXT, options)) == list(serving.near.stream(TEXT, options))
    prompt, beams = serving.near.prompt(TEXT), GenerationOptions(max_new_tokens=20, num_beams=3)
    far, near = (list(filter(None, each.beams(prompt, beams))) for each in (serving.far, serving.near))
    assert far == near


def test_stop_frees_the_remote_slot(serving: Serving) -> None:
    serving.on_both(pace, 0.05)
    before = sum(serving.on_both(written).values())
    streams, _ = begun(serving, 4)
    beams = serving.far.beams(serving.far.prompt(TEXT), replace(LONG, temperature=0.0, num_beams=3))
    assert any(beams)
    for work in (*streams, beams):
        work.close()
    wait_for(lambda: not any(serving.busy().values()))
    assert sum(serving.on_both(written).values()) - before < 4 * 900, "none was written to its end"
    serving.on_both(pace, 0.0)


def test_a_replica_is_killed_and_no_text_is_lost_or_doubled(serving: Serving) -> None:
    expected = serving.expected(LONG)
    before = wait_for(lambda: len(found := serving.pids()) == 2 and found)
    streams, given = begun(serving, 6)
    loads = serving.busy()
    victim = max(loads, key=lambda pid: loads[pid])
    assert loads[victim] > 0
    os.kill(victim, signal.SIGKILL)
    late = serving.far.stream(TEXT, LONG)  # may be sent to the one that is gone
    for stream, first in zip(streams, given, strict=True):
        assert first + ids(stream) == expected
    assert ids(late) == expected
    after = wait_for(lambda: len(found := serving.pids() - {victim}) == 2 and found)
    assert len(after & before) == 1, "the other one lives, and a new one came"


def test_a_replica_that_is_killed_before_the_first_token_is_not_noticed(serving: Serving) -> None:
    expected = serving.expected(GenerationOptions(max_new_tokens=30))
    [victim, _] = wait_for(lambda: len(found := serving.pids()) == 2 and sorted(found))
    os.kill(victim, signal.SIGSTOP)  # takes calls, and answers none
    with ThreadPoolExecutor(6) as pool:
        asked = [
            pool.submit(lambda: ids(serving.far.stream(TEXT, GenerationOptions(max_new_tokens=30))))
            for _ in range(6)
        ]
        time.sleep(0.5)
        os.kill(victim, signal.SIGKILL)
        assert [each.result() for each in asked] == 6 * [expected]
    wait_for(lambda: len(serving.pids() - {victim}) == 2)


def test_a_replica_that_falls_silent_is_left_before_ray_misses_it(serving: Serving) -> None:
    expected = serving.expected(LONG)
    before = wait_for(lambda: len(found := serving.pids()) == 2 and found)
    with ThreadPoolExecutor(6) as pool:
        streams, given = begun(serving, 6)
        loads = serving.busy()
        asked = [pool.submit(serving.far.ask, slowly) for _ in range(6)]
        time.sleep(1.0)
        victim = max(loads, key=lambda pid: loads[pid])
        os.kill(victim, signal.SIGSTOP)  # as if its cable were cut: nothing comes, and nothing is closed
        for stream, first in zip(streams, given, strict=True):
            assert first + ids(stream) == expected
        assert {each.result() for each in asked} == before - {victim}
    assert Path(f"/proc/{victim}/stat").read_text().split()[2] == "T", "it was replaced meanwhile"
    os.kill(victim, signal.SIGCONT)
    wait_for(lambda: serving.pids() == before)


def test_deploying_anew_drops_no_text(serving: Serving) -> None:
    from biogpt.cluster.replicas import run

    expected = serving.expected(LONG)
    before = wait_for(lambda: len(found := serving.pids()) == 2 and found)
    streams, given = begun(serving, 4)
    anew = deepcopy(serving.config)
    anew["applications"][0]["args"]["precision"] = "auto"  # a change that needs new replicas
    anew["applications"][0]["args"]["device"] = "cpu"
    deploying = threading.Thread(target=run, args=[anew])
    deploying.start()
    for stream, first in zip(streams, given, strict=True):
        assert first + ids(stream) == expected
    deploying.join()
    wait_for(lambda: len(found := serving.pids()) == 2 and not found & before)
    assert ids(serving.far.stream(TEXT, LONG)) == expected


def test_a_machine_is_lost_and_no_text_is(serving: Serving) -> None:
    import ray

    from biogpt.cluster.replicas import run

    expected = serving.expected(LONG)
    address = ray.get_runtime_context().gcs_address
    command = ["-m", "ray.scripts.scripts", "start", "--block", "--address", address, "--num-cpus", "1"]
    other = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        here = ray.get_runtime_context().get_node_id()
        apart = deepcopy(serving.config)
        apart["applications"][0]["deployments"][0]["max_replicas_per_node"] = 1
        run(apart)
        nodes = wait_for(lambda: len(set((found := serving.on_both(node)).values())) == 2 and found)
        [there] = [pid for pid, place in nodes.items() if place != here]
        streams, given = begun(serving, 6)
        assert serving.busy()[there] > 0
        os.killpg(other.pid, signal.SIGKILL)
        for stream, first in zip(streams, given, strict=True):
            assert first + ids(stream) == expected
        assert serving.pids() == set(nodes) - {there}
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()
    run(serving.config)
    wait_for(lambda: len(serving.pids()) == 2)


def test_a_job_runs_on_what_replicas_leave(serving: Serving, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("ab a\n" * 20)
    options = GenerationOptions(max_new_tokens=2)
    task = Generate(model=serving.deployment.model, device="cpu", precision="float32", options=options)
    for name, workers in (("far", RayWorkers(1)), ("near", work_here)):
        assert Job(task, str(texts), tmp_path / name).run(workers) == 0
    far, near = (tmp_path / name / "texts.txt.jsonl" for name in ("far", "near"))
    assert far.read_text() == near.read_text()
    with pytest.raises(OSError, match="no CPU to spare"):
        Job(task, str(texts), tmp_path / "none").run(held)


def held(task: Task, paths: Sequence[str]) -> Generator[Done, None, None]:
    """As Ray's workers, while somebody else has what was left."""
    import ray

    holder = ray.remote(num_cpus=1)(Holder).remote()
    ray.get(holder.ready.remote())
    wait_for(lambda: ray.available_resources().get("CPU", 0.0) < 1)
    try:
        yield from RayWorkers(1)(task, paths)
    finally:
        ray.kill(holder)


class Holder:
    def ready(self) -> bool:
        return True


def test_what_a_replica_refuses_is_told_in_its_words(serving: Serving) -> None:
    with pytest.raises(ValueError, match="no such model, or whatever"):
        serving.far.ask(refuse)
    with pytest.raises(ZeroDivisionError):
        serving.far.ask(fail)


def refuse(_: TextGenerator) -> None:
    raise ValueError("no such model, or whatever")


def fail(_: TextGenerator) -> float:
    return 1 / 0


def test_another_model_is_loaded_when_it_is_asked_for(serving: Serving, tmp_path: Path) -> None:
    from biogpt.cluster.cluster import RayDeployment

    save_tiny(tmp_path)
    other = FarGenerator(RayDeployment("writing", str(tmp_path), lambda: Health("serving")))
    near = TextGenerator.from_pretrained(tmp_path, device="cpu")
    options = GenerationOptions(max_new_tokens=20)
    assert ids(other.stream(TEXT, options)) == ids(near.stream(TEXT, options))
    near.close()


@pytest.mark.parametrize("backend", ["ray"])
def test_the_page_answers_as_the_local_one(backend: str, tmp_path: Path) -> None:
    save_tiny(tmp_path)
    text = "Naloxone reverses hypertension of HD gene carriers."
    asked: list[tuple[str, dict[str, Any]]] = [
        ("v1/completions", {"prompt": "ab a", "max_tokens": 12, "seed": 1, "logprobs": 2}),
        ("v1/ner", {"input": [text]}),
        ("v1/ner", {"input": [text], "types": ["Disease"]}),
        ("v1/classify", {"input": [text, text]}),
        ("v1/score", {"input": "ab ab"}),
        ("v1/tree", {"prompt": "ab a", "depth": 3}),
    ]

    def answers(*flags: str) -> tuple[list[Any], Any]:
        with app_server("--model", str(tmp_path), "--precision", "float32", *flags) as (url, _):
            found = [post(url, path, body) for path, body in asked]
            return found, call(url, "generate", prompt="ab a", max_new_tokens=8, seed=1)

    far, near = answers("--backend", backend), answers()
    assert [status for status, _ in far[0]] == [200] * len(asked)
    for found in (far, near):
        for field in ("id", "created"):
            found[0][0][1].pop(field)
    assert far == near
