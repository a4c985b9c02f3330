"""What is told of requests, in the log and for Prometheus: kind, size, times and end, never their words."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

from biogpt.serving.engine import Counts

logger = logging.getLogger(__name__)

DONE, REFUSED, FAILED, LEFT = "done", "refused", "failed", "left"  # how a request ends
_NUMBERS = count(1)
_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)  # seconds


class Requests:
    """All requests that models work for.

    Attributes:
        running: of each task, how many are served now.
    """

    def __init__(self) -> None:
        self.running: dict[str, int] = {}
        self._listeners: list[Callable[[str, str, float], None]] = []

    def begin(self, task: str, size: int, waited: float = 0.0) -> "Served":
        """A request is served from now on.

        Args:
            task: what it asks for.
            size: of what it sent: characters of its texts, or bytes of a body that is not looked into.
            waited: seconds in its line.
        """
        self.running[task] = self.running.get(task, 0) + 1
        return Served(self, task, size, waited)

    def listen(self, told: Callable[[str, str, float], None]) -> None:
        """Call something with task, end and seconds of each request that ends."""
        self._listeners.append(told)

    def ended(self, request: "Served", how: str) -> None:
        seconds = time.monotonic() - request.begun
        self.running[request.task] -= 1
        logger.info(
            "request %d: %s, size %d, waited %.1f s, took %.1f s, %s",
            request.number,
            request.task,
            request.size,
            request.waited,
            seconds,
            how,
        )
        for told in self._listeners:
            told(request.task, how, seconds)


class Served:
    """A request that is being served; used as a context, it ends with that: failed, if something is raised.

    Attributes:
        how: it will have ended, one of the words above.
    """

    def __init__(self, requests: Requests, task: str, size: int, waited: float) -> None:
        self.number, self.begun = next(_NUMBERS), time.monotonic()
        self.task, self.size, self.waited = task, size, waited
        self.how = LEFT
        self._requests = requests

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception):  # and not that the client has left
            self.how = FAILED
        self._requests.ended(self, self.how)


def how_of(status: int) -> str:
    """How a request ended that was answered with this HTTP status."""
    return DONE if status < 400 else REFUSED if status < 500 or status == 503 else FAILED


def metrics_of(
    requests: Requests, waiting: Callable[[], Mapping[str, int]], written: Callable[[], Counts]
) -> Callable[[], tuple[bytes, str]]:
    """What Prometheus reads, by its own client library: the text and its content type.

    Args:
        waiting: how many wait in the line of each task.
        written: what the models have written so far.

    Raises:
        ImportError: ``prometheus-client`` is not installed.
    """
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        Counter,
        Histogram,
        ProcessCollector,
        generate_latest,
    )
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

    registry = CollectorRegistry()
    ended = Counter("biogpt_requests", "Requests that ended", ["task", "how"], registry=registry)
    seconds = Histogram(
        "biogpt_request_seconds", "From begin to end", ["task"], registry=registry, buckets=_BUCKETS
    )

    def told(task: str, how: str, took: float) -> None:
        ended.labels(task, how).inc()
        seconds.labels(task).observe(took)

    class Now:
        def collect(self) -> Iterator[Any]:
            for name, about, of_tasks in (
                ("running", "Requests served now", requests.running),
                ("waiting", "Requests in line", waiting()),
            ):
                family = GaugeMetricFamily(f"biogpt_requests_{name}", about, labels=["task"])
                for task, number in of_tasks.items():
                    family.add_metric([task], number)
                yield family
            counts = written()
            yield CounterMetricFamily("biogpt_tokens", "Tokens written", counts.tokens)
            yield SummaryMetricFamily(
                "biogpt_first_token_seconds", "Until a text's first token", counts.texts, counts.first_seconds
            )

    registry.register(Now())  # type: ignore[arg-type]
    ProcessCollector(registry=registry)  # memory, files, processor time
    requests.listen(told)
    return lambda: (generate_latest(registry), CONTENT_TYPE_LATEST)
