"""What runs on replicas of Ray Serve: a deployment for each task, which wraps what serves on one machine.

Requests that meet in a replica share the steps of its model. What is refused is sent as it is and not raised,
so that no log of Ray's quotes it.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from contextvars import copy_context
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar
from weakref import WeakSet

from ray import serve

from biogpt.cluster.far import SIGN, Answer, Message, Place, Refusal
from biogpt.generation.options import GenerationOptions
from biogpt.generation.search import Hypothesis
from biogpt.generation.tree import Node, TreeOptions
from biogpt.serving.engine import QueueFull, Stopping
from biogpt.serving.service import Prompt, Stream, with_pauses
from biogpt.serving.text_generator import TextGenerator
from biogpt.serving.turns import CLIENT
from biogpt.tasks.classification import TextClassifier
from biogpt.tasks.entities import EntityRecognizer
from biogpt.text.results import SentenceLabel

Model = TypeVar("Model")
Reader = TypeVar("Reader", EntityRecognizer, TextClassifier)
T = TypeVar("T")
Self = TypeVar("Self", bound="_Replica[Any]")
P = ParamSpec("P")

_REFUSED = (ValueError, TypeError, FloatingPointError, QueueFull, Stopping)
_KEPT = 2  # models in one replica
_LOOK = 0.25  # seconds after which it is looked how a text that waits stands in line
_AT_ONCE = 16  # steps in one message
_CALLS = 64  # that one replica may have under way
_TOGETHER = 16  # requests whose passages are read together


def _told(
    method: Callable[Concatenate[Self, P], AsyncGenerator[Message, None]],
) -> Callable[Concatenate[Self, P], AsyncGenerator[Message | None, None]]:
    """The messages of a method, with signs of life: one at once, and then where it takes a while."""

    @wraps(method)
    async def told(self: Self, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Message | None, None]:
        yield None
        async with aclosing(with_pauses(method(self, *args, **kwargs), SIGN)) as messages:
            async for message in messages:
                yield message

    return told


class _Replica(ABC, Generic[Model]):
    """Models in one process, each loaded when it is first asked for, and the threads that ask them."""

    def __init__(self, device: str, precision: str, threads: int) -> None:
        self._device, self._precision = device, precision
        self._pool = ThreadPoolExecutor(threads)

    async def reconfigure(self, user_config: dict[str, list[str]]) -> None:
        """Load models before a request comes."""
        for source in user_config["models"]:
            await self.loaded(source)

    @abstractmethod
    def load(self, source: str) -> Model: ...

    @serve.multiplexed(max_num_models_per_replica=_KEPT)
    async def loaded(self, source: str) -> Model:
        return await self.run(self.load, source)

    async def model(self) -> Model:
        """The one that the request names."""
        return await self.loaded(serve.get_multiplexed_model_id())

    @_told
    async def answer(self, method: str, arguments: Sequence[Any]) -> AsyncGenerator[Message, None]:
        """What another method returns."""
        yield Answer(await getattr(self, method)(*arguments))

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        # With whose request it is, which a thread of the pool would not know.
        context = copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._pool, context.run, work, *arguments)


class Writing(_Replica[TextGenerator]):
    """Texts are written, and looked into."""

    def __init__(self, device: str, precision: str) -> None:
        super().__init__(device, precision, _CALLS)
        self._known: WeakSet[TextGenerator] = WeakSet()

    def load(self, source: str) -> TextGenerator:
        generator = TextGenerator.from_pretrained(source, device=self._device, precision=self._precision)
        generator.share_cores()  # with replicas beside it, and perhaps the page
        self._known.add(generator)
        return generator

    def check_health(self) -> None:
        """Raise where a model fails; Serve then starts another replica in place of this one."""
        for generator in list(self._known):
            health = generator.health()
            if health.state != "serving":
                raise RuntimeError(f"{health.state}: {health.reason}")

    @_told
    async def stream(
        self, prompt: Prompt, options: GenerationOptions, session: Hashable, client: Hashable
    ) -> AsyncGenerator[Message, None]:
        """As ``TextService.stream``, several steps in one message; closing it ends the work within a step."""
        try:
            generator = await self.model()
            CLIENT.set(client)
            stream = generator.stream(prompt, options, session)
        except _REFUSED as error:
            yield Refusal(error)
            return
        with stream:
            place: Place | None = None
            ended = False
            while not ended:
                steps, ended = await self.run(_next_steps, stream)
                before, place = place, Place(stream.position, stream.running)
                if place != before and not ended:
                    yield place
                for step in steps:
                    yield step

    @_told
    async def grow(
        self, prompt: Prompt, options: TreeOptions, session: Hashable, client: Hashable
    ) -> AsyncGenerator[Message, None]:
        """As ``TextService.grow``."""
        generator = await self.model()
        CLIENT.set(client)
        async with aclosing(self._listed(generator.grow(prompt, options, session))) as levels:
            async for level in levels:
                yield level

    @_told
    async def beams(
        self, prompt: Prompt, options: GenerationOptions, session: Hashable, client: Hashable
    ) -> AsyncGenerator[Message, None]:
        """As ``TextService.beams``."""
        generator = await self.model()
        CLIENT.set(client)
        async with aclosing(self._listed(generator.beams(prompt, options, session))) as steps:
            async for step in steps:
                yield step

    async def _listed(self, lists: "_Lists") -> AsyncGenerator[Message, None]:
        """What a generator makes in threads that wait for it, and at last why it is refused if it is."""
        coming = asyncio.ensure_future(self.run(_next_list, lists))
        try:
            while (found := await asyncio.shield(coming)) is not None:
                if found:
                    yield found
                if isinstance(found, Refusal):
                    return
                coming = asyncio.ensure_future(self.run(_next_list, lists))
        finally:
            await asyncio.wait([coming])  # what runs in a thread can't be closed before it looks up
            lists.close()

    async def ask(self, work: Callable[..., T], arguments: Sequence[Any]) -> T | Refusal:
        """As ``TextService.ask``."""
        try:
            return await self.run((await self.model()).ask, work, *arguments)
        except _REFUSED as error:
            return Refusal(error)


def _next_steps(stream: Stream) -> tuple[list[Message], bool]:
    """The steps that are there, waiting for the first one a little; and whether it was the last."""
    steps: list[Message] = []
    try:
        while stream.wait(0.0 if steps else _LOOK) and len(steps) < _AT_ONCE:
            step = next(stream, None)
            if step is None:
                return steps, True
            steps.append(step)
    except _REFUSED as error:
        return [*steps, Refusal(error)], True
    return steps, False


_Lists = Generator[list[Node] | None, None, None] | Generator[list[Hypothesis] | None, None, None]


def _next_list(lists: _Lists) -> list[Node] | list[Hypothesis] | Refusal | None:
    """The next nodes of a tree, or hypotheses: none if they take a while, None after the last."""
    try:
        return next(lists) or []
    except StopIteration:
        return None
    except _REFUSED as error:
        return Refusal(error)


class _Reading(_Replica[Reader]):
    """Passages are read; those of several requests together."""

    def __init__(self, device: str, precision: str) -> None:
        super().__init__(device, precision, 1)

    async def about(self, names: Sequence[str]) -> list[Any]:
        """Attributes of the model."""
        model = await self.model()
        return [getattr(model, name) for name in names]

    async def batch(self, texts: list[str], *settings: Any) -> list[Any] | Refusal:
        """As of the model, whose ``batch`` the texts of several requests with these settings may share."""
        return await self.together((await self.model(), settings, texts))

    @serve.batch(max_batch_size=_TOGETHER, batch_wait_timeout_s=0.0)
    async def together(
        self, asked: list[tuple[Reader, tuple[Any, ...], list[str]]]
    ) -> list[list[Any] | Refusal]:
        return await self.run(_batches, asked)


class Entities(_Reading[EntityRecognizer]):
    """Entities are found."""

    def load(self, source: str) -> EntityRecognizer:
        return EntityRecognizer.from_pretrained(source, device=self._device, precision=self._precision)


class Classes(_Reading[TextClassifier]):
    """Texts and their sentences are labelled."""

    def load(self, source: str) -> TextClassifier:
        return TextClassifier.from_pretrained(source, device=self._device, precision=self._precision)

    async def sentences(self, text: str) -> list[SentenceLabel] | Refusal:
        try:
            return await self.run((await self.model()).sentences, text)
        except _REFUSED as error:
            return Refusal(error)


def _batches(asked: Sequence[tuple[Reader, tuple[Any, ...], list[str]]]) -> list[list[Any] | Refusal]:
    """What each request gets: those that ask the same together, and each alone where one is refused."""
    results: dict[int, list[Any] | Refusal] = {}
    for model, settings in dict.fromkeys((model, settings) for model, settings, _ in asked):
        places = [place for place, (*other, _) in enumerate(asked) if other == [model, settings]]
        try:
            found = iter(model.batch([text for place in places for text in asked[place][2]], None, *settings))
            results |= {place: [next(found) for _ in asked[place][2]] for place in places}
        except _REFUSED as error:
            one_by_one = [Refusal(error)] if len(places) == 1 else [_batches([asked[p]])[0] for p in places]
            results |= dict(zip(places, one_by_one, strict=True))
    return [results[place] for place in range(len(asked))]


_KINDS: dict[str, type] = {"writing": Writing, "entities": Entities, "classes": Classes}


def writing(given: dict[str, Any]) -> serve.Application:
    """The application ``writing``, as ``import_path`` of ``serve deploy`` names it."""
    return _application("writing", given)


def entities(given: dict[str, Any]) -> serve.Application:
    """The application ``entities``."""
    return _application("entities", given)


def classes(given: dict[str, Any]) -> serve.Application:
    """The application ``classes``."""
    return _application("classes", given)


def _application(task: str, given: dict[str, Any]) -> serve.Application:
    return serve.deployment(_KINDS[task], name=task).bind(**given)


def run(config: dict[str, Any]) -> None:
    """Start on this machine what ``serve deploy`` would start on a cluster, and wait until all is there."""
    serve.start(proxy_location=config["proxy_location"])
    targets = []
    for application in config["applications"]:
        [options] = application["deployments"]
        target = serve.deployment(_KINDS[options["name"]]).options(**options).bind(**application["args"])
        targets.append(serve.RunTarget(target, application["name"], None))
    serve.run_many(targets)
