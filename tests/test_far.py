"""Models elsewhere, called as those here are: what was lost is asked again, and nothing comes twice.

What carries the calls is a plain object here; ``test_ray.py`` has Ray.
"""

import pickle
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from app_server import save_tiny

from biogpt.cli import main
from biogpt.cluster.far import (
    FarGenerator,
    FarRecognizer,
    Message,
    Place,
    Refusal,
    Unanswered,
    answered,
    going_on,
)
from biogpt.cluster.fleet import Fleet
from biogpt.generation.options import GenerationOptions
from biogpt.generation.search import Hypothesis, Token
from biogpt.generation.tree import TreeOptions
from biogpt.serving.engine import QueueFull, Stopping
from biogpt.serving.inspection import read_whole
from biogpt.serving.service import Lost, Step
from biogpt.serving.text_generator import TextGenerator
from biogpt.serving.tree import TextTree, grown, searched
from biogpt.serving.worker import Health

STEPS = [Step(token, " a" * token, -float(token)) for token in range(1, 6)]
LONG = GenerationOptions(max_new_tokens=1000, min_new_tokens=1000)


def calls(*scripts: list[Message | Exception | None]) -> Callable[[], Iterator[Message | None]]:
    """A call that says what the first script has, made again what the next one has; errors are raised."""
    left = list(scripts)

    def begin() -> Iterator[Message | None]:
        for message in left.pop(0):
            if isinstance(message, Exception):
                raise message
            yield message

    return begin


@pytest.mark.parametrize("told", range(len(STEPS) + 1))
def test_what_a_lost_replica_had_told_comes_once(told: int) -> None:
    begin = calls([None, Place(1, 3), *STEPS[:told], Lost("gone")], [None, Place(0, 1), None, *STEPS, None])
    found = list(going_on(begin))
    assert [step for step in found if isinstance(step, Step)] == STEPS
    assert found[0] == Place(1, 3)


def test_last_digits_may_differ_and_words_may_not() -> None:
    other = [Step(step.token_id, step.text, step.logprob + 1e-6) for step in STEPS]
    assert list(going_on(calls([*STEPS[:2], Lost("gone")], other))) == [*STEPS[:2], *other[2:]]
    begin = calls([*STEPS[:2], Lost("gone")], [STEPS[0], STEPS[3]], STEPS)
    with pytest.raises(Lost, match="in other words"):
        list(going_on(begin))
    assert list(begin()) == STEPS, "a third replica was not asked"
    beams, others = ([Hypothesis((Token(token, -1.0),), -1.0, finished=False)] for token in (5, 6))
    with pytest.raises(Lost, match="in other words"):
        list(going_on(calls([beams, Lost("gone")], [others])))
    with pytest.raises(Lost, match="in other words"):
        list(going_on(calls([*STEPS[:2], Lost("gone")], STEPS[:1])))


def test_replicas_that_give_nothing_new_end_the_call() -> None:
    gone = Lost("gone")
    begin = calls(*([*STEPS[:told], gone] for told in (1, 2, 3, 4)), STEPS)
    assert list(going_on(begin)) == STEPS, "each gave something new"
    begin = calls([STEPS[0], gone], [gone], [gone], STEPS)
    with pytest.raises(Lost, match="gone"):
        list(going_on(begin))
    assert list(begin()) == STEPS


def test_a_refusal_is_not_asked_again_and_a_replica_that_stops_is_left() -> None:
    with pytest.raises(QueueFull, match="full"):
        list(going_on(calls([Refusal(QueueFull("full"))], STEPS)))
    assert list(going_on(calls([*STEPS[:3], Refusal(Stopping())], STEPS))) == STEPS
    waits = Unanswered("silent")
    assert list(going_on(calls(*(5 * [[waits]]), STEPS))) == STEPS, "nothing had begun, so nothing was lost"
    with pytest.raises(Lost, match="gone"):
        list(going_on(calls([waits], *(3 * [[Lost("gone")]]), STEPS)))
    answers = iter([Refusal(Stopping()), 7])
    assert answered(lambda: next(answers)) == 7
    with pytest.raises(ValueError, match="wrong"):
        answered(lambda: Refusal(ValueError("wrong")))


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


class Near:
    """Replicas of which each is this process: what ``biogpt.cluster.replicas`` sends, without Ray.

    Args:
        lost_after: the messages of a call, after which the next replica of this list is lost.
    """

    def __init__(self, generator: TextGenerator, *lost_after: int) -> None:
        self.generator = generator
        self.lost_after = list(lost_after)
        self.calls = self.cancelled = 0

    def begin(self, method: str, *arguments: Any) -> "NearCall":
        self.calls += 1
        *given, client = arguments
        assert client is None
        source = getattr(self.generator, method)(*given)
        return NearCall(self, source, self.lost_after.pop(0) if self.lost_after else -1)

    def ask(self, method: str, work: Callable[..., Any], arguments: Any, look: Any = None) -> Any:
        assert method == "ask"
        return self.generator.ask(work, *arguments)

    def health(self) -> Health:
        return self.generator.health()


class NearCall:
    def __init__(self, near: Near, source: Any, left: int) -> None:
        self.near, self.source, self.left = near, source, left

    def __iter__(self) -> Iterator[Message]:
        for message in self.source:
            if self.left == 0:
                self.source.close()
                raise Lost("gone")
            self.left -= 1
            if message is not None:
                yield pickle.loads(pickle.dumps(message))

    def cancel(self) -> None:
        self.near.cancelled += 1
        self.source.close()


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextGenerator]:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    generator = TextGenerator.from_pretrained(folder, device="cpu", precision="float32")
    yield generator
    generator.close()


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(max_new_tokens=30),
        GenerationOptions(max_new_tokens=20, temperature=1.0, seed=3, num_return_sequences=2),
        GenerationOptions(max_new_tokens=12, num_beams=3),
        GenerationOptions(max_new_tokens=30, temperature=1.0, seed=5, stop=["b"]),
    ],
)
def test_a_far_text_is_the_near_one_though_replicas_are_lost(
    near: TextGenerator, options: GenerationOptions
) -> None:
    expected = list(near.stream("ab a", options))
    with FarGenerator(Near(near, 0, 3, 5)).stream("ab a", options) as stream:
        assert list(stream) == expected
    assert stream.prompt == near.reading(near.prompt("ab a"), options.max_new_tokens)


def test_without_a_seed_a_text_that_is_asked_again_is_the_same(near: TextGenerator) -> None:
    deployment = Near(near, 500)
    options = GenerationOptions(max_new_tokens=600, min_new_tokens=600, temperature=1.0)
    assert len(list(FarGenerator(deployment).stream("ab a", options))) == 600
    assert deployment.calls == 2


def test_what_reads_texts_and_grows_trees_is_the_same_far_and_near(near: TextGenerator) -> None:
    far = FarGenerator(Near(near, 1))
    found = []
    for generator in (far, near):
        tree = TextTree(generator.prompt("ab a"))
        counts = [count for count in grown(generator, tree, TreeOptions(2, 4, 0.0, 8)) if count]
        found.append((counts, tree.nodes, tree.texts, generator.ask(read_whole, generator.prompt("ab ab"))))
    assert found[0] == found[1]
    assert far.description == f"{near.description}, on Ray"


def test_a_beam_search_is_the_same_far_and_near_though_a_replica_is_lost(near: TextGenerator) -> None:
    far = FarGenerator(Near(near, 4))
    found = []
    for generator in (far, near):
        tree = TextTree(generator.prompt("ab a"))
        counts = [
            count
            for count in searched(generator, tree, GenerationOptions(max_new_tokens=8, num_beams=3))
            if count
        ]
        found.append((counts, tree))
    assert found[0] == found[1]
    assert found[0][0][-1] > 4
    with pytest.raises(ValueError, match="positions"):
        list(far.beams(far.prompt("ab a"), GenerationOptions(max_new_tokens=2000, num_beams=3)))


def test_closing_a_far_stream_ends_the_work(near: TextGenerator) -> None:
    deployment = Near(near)
    far = FarGenerator(deployment)
    with far.stream("ab a", LONG) as stream:
        next(stream)
    assert list(stream) == []
    wait_for(lambda: not near._worker.engine.is_busy)
    assert deployment.cancelled == 1
    kept = far.stream("ab a", LONG)
    next(kept)
    del kept  # nobody holds it any more
    wait_for(lambda: not near._worker.engine.is_busy)
    assert deployment.cancelled == 2
    wait_for(lambda: far.counts.texts == 2 and far.counts.tokens >= 2)


def test_at_the_end_texts_have_some_time_and_readers_are_told(near: TextGenerator) -> None:
    far = FarGenerator(Near(near))
    short = far.stream("ab a", GenerationOptions(max_new_tokens=4))
    far.close(timeout=60)
    assert 1 <= len(list(short)) <= 4
    assert far.health().state == "stopping"
    with pytest.raises(Stopping):
        far.stream("ab a", LONG)
    far = FarGenerator(Near(near))
    with far.stream("ab a", LONG) as stream:
        next(stream)
        far.close()
        with pytest.raises(Stopping):
            list(stream)


def test_what_no_replica_could_do_is_refused_at_once(near: TextGenerator) -> None:
    deployment = Near(near)
    far = FarGenerator(deployment)
    for options in (GenerationOptions(max_new_tokens=2000), GenerationOptions(banned_words=["xyz"])):
        with pytest.raises(ValueError, match=r"positions|xyz"):
            far.stream("ab a", options)
    assert deployment.calls == 0


class Passages:
    """Replicas that find in a passage its length."""

    def __init__(self) -> None:
        self.parts: list[list[str]] = []
        self.types: tuple[str, ...] = ()

    def ask(self, method: str, given: Any, types: Any = (), look: Callable[[], None] = lambda: None) -> Any:
        if method == "about":
            return [("Gene",)]
        assert types == self.types
        self.parts.append(given)
        look()
        return [[len(text)] for text in given]


def test_passages_are_sent_in_parts_and_come_back_in_order() -> None:
    deployment = Passages()
    texts = ["a" * size for size in (10, 1990, 5, 3000, 1, 2, 3)]
    told: list[tuple[int, int]] = []
    found = FarRecognizer(deployment).batch(texts, lambda done, total: told.append((done, total)))
    assert found == [[len(text)] for text in texts]
    assert sorted(map(len, deployment.parts)) == [2, 2, 3]
    assert told[-1] == (7, 7)
    assert FarRecognizer(deployment).batch([]) == []
    deployment.types = ("Gene",)
    assert FarRecognizer(deployment).batch(["ab"], None, ["Gene"]) == [[2]]
    deployment.types = ()

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        FarRecognizer(deployment).batch(texts, stop)


def test_the_yaml_says_what_the_flags_say(tmp_path: Path) -> None:
    out = tmp_path / "biogpt.yaml"
    flags = "--model microsoft/biogpt --precision bfloat16 --replicas 2 4 --cpus 4 --gpus 0.25"
    assert main(["cluster", "config", *flags.split(), "--out", str(out)]) == 0
    said = yaml.safe_load(out.read_text())
    writing, entities, classes = said["applications"]
    assert said["proxy_location"] == "Disabled"
    assert [application["route_prefix"] for application in said["applications"]] == [None] * 3
    assert writing["import_path"] == "biogpt.cluster.replicas:writing"
    assert writing["args"] == {"device": "auto", "precision": "bfloat16"}
    [deployment] = writing["deployments"]
    assert deployment["user_config"] == {"models": ["microsoft/biogpt"]}
    assert deployment["ray_actor_options"] == {"num_cpus": 4.0, "num_gpus": 0.25}
    assert deployment["autoscaling_config"]["min_replicas"] == 2
    assert deployment["autoscaling_config"]["max_replicas"] == 4
    assert entities["deployments"][0]["user_config"] == {"models": ["mini-ner"]}
    assert classes["deployments"][0]["user_config"] == {"models": ["mini-hoc", "mini-rct"]}


@pytest.mark.parametrize("flags", ["--replicas 4 2", "--replicas 1 2 3", "--gpus 1.5", "--cpus -1"])
def test_a_fleet_that_cannot_be_is_refused(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "config", *flags.split()]) == 1
    assert "expected" in capsys.readouterr().err


def test_replicas_have_places_for_what_a_page_lets_wait() -> None:
    for application in Fleet(most=3).config()["applications"]:
        [deployment] = application["deployments"]
        assert deployment["name"] == application["import_path"].rpartition(":")[2]
        assert application["name"] == f"biogpt-{deployment['name']}"


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_it_is_said_what_to_install() -> None:
    from biogpt.cluster.starting import start_ray

    with pytest.raises(ValueError, match="pip install"):
        start_ray()
