"""How a request of ``/v1`` is served: in its turn, ended when its client leaves; or refused."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from contextlib import aclosing, asynccontextmanager, closing, suppress
from threading import Event, Thread
from typing import TypeVar

from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from biogpt.serving.engine import QueueFull, Stopping, TooMany
from biogpt.serving.service import Lost
from biogpt.serving.shelf import NotLoaded, NotOffered
from biogpt.ui.completions import Refused
from biogpt.ui.gate import FAULT
from biogpt.ui.inputs import sendable
from biogpt.ui.line import BUSY, RETRY
from biogpt.ui.requests import Requests, how_of

logger = logging.getLogger(__name__)

MOST_BYTES = 1_000_000  # of a body
_DRAINED = 32 * MOST_BYTES  # read and dropped of one that is larger, so that its sender hears why
_ASKED = ("completions", "score", "tree", "ner", "classify")
_HALF = 400  # characters of an error's beginning, and of its end

T = TypeVar("T")


def wrong(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error as OpenAI's API words it; the middle of a long message is left out."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    message = sendable(message if len(message) <= 2 * _HALF else f"{message[:_HALF]} … {message[-_HALF:]}")
    error = {"message": message, "type": kind, "param": param and sendable(param), "code": code}
    return JSONResponse({"error": error}, status, headers)


def refusal(error: Exception, names_any: bool = False) -> JSONResponse:
    """What a client is told of an error.

    Args:
        names_any: visitors may name any model, so that one that cannot be loaded is theirs to mend.
    """
    later = {"Retry-After": str(RETRY)}
    match error:
        case NotOffered():
            return wrong(404, str(error), "model", "model_not_found")
        case NotLoaded():
            return wrong(404 if names_any else 503, str(error), "model", "model_not_found")
        case Refused():
            return wrong(400, str(error), error.param, error.code)
        case TooMany():
            return wrong(429, str(error), code="too_many", headers=later)
        case Lost():
            return wrong(503, str(error), code="lost", headers=later)
        case QueueFull() | Stopping():
            code = "busy" if isinstance(error, QueueFull) else "stopping"
            return wrong(503, str(error), code=code, headers=later)
        case ValueError() | TypeError():
            return wrong(400, str(error))
        case FloatingPointError():
            return wrong(500, str(error))
    logger.error("a request failed", exc_info=error)
    return wrong(500, FAULT)


class Line:
    """Those that are served at once, and those that wait for it; the others are refused."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._most, self._here = at_once + waiting, 0
        self._turns = asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        if self._here >= self._most:
            raise QueueFull(BUSY)
        self._here += 1
        try:
            async with self._turns:
                yield
        finally:
            self._here -= 1


class Events(StreamingResponse):
    """Server-sent events; whatever ends the response ends their source."""

    media_type = "text/event-stream"

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().stream_response(send)


class Door:
    """An ASGI application before the others of ``/v1``: reads a body whole, and ends the work of who leaves.

    Args:
        stopping: set once requests are to be refused.
        requests: are told of each that has a body.
    """

    def __init__(self, app: ASGIApp, stopping: Event, requests: Requests) -> None:
        self.app, self.stopping, self.requests = app, stopping, requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        refused = self._refusal(scope, body)
        if refused is not None:
            await refused(scope, receive, send)
            return
        if scope["method"] != "POST":
            await self._serve(body, scope, receive, send)
            return
        asked = scope["path"].rpartition("/")[2]
        with self.requests.begin(f"/v1/{asked if asked in _ASKED else ''}", len(body or b"")) as served:
            status = 500

            async def sent(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    served.how = how_of(status)

            await self._serve(body, scope, receive, sent)

    async def _serve(self, body: bytes | None, scope: Scope, receive: Receive, send: Send) -> None:
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        left = asyncio.ensure_future(_leaving(receive))

        async def replayed() -> Message:
            return unread.pop() if unread else await asyncio.shield(left)

        work = asyncio.ensure_future(self.app(scope, replayed, send))  # type: ignore[arg-type]
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            left.cancel()
            await asyncio.wait({work, left})
        if not work.cancelled():
            work.exception()  # was told and logged already

    def _refusal(self, scope: Scope, body: bytes | None) -> JSONResponse | None:
        if self.stopping.is_set():
            return refusal(Stopping())
        if body is None:
            return wrong(413, f"the body has more than {MOST_BYTES:,} bytes; send fewer texts at once")
        kind = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":  # no other site's form can send that
            return wrong(400, "the content type is not application/json; send JSON and say so")
        return None


async def _body(receive: Receive) -> bytes | None:
    """The body of a request; None if it is too large."""
    body, size = bytearray(), 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if size <= MOST_BYTES:
            body += message.get("body", b"")
        if not message.get("more_body") or size > _DRAINED:
            return bytes(body) if size <= MOST_BYTES else None


async def _leaving(receive: Receive) -> Message:
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


async def from_thread(make: Callable[[], Generator[T | None, None, None]]) -> AsyncGenerator[T, None]:
    """What an iterator gives but None, made in a thread of its own; closing this ends it at its next look."""
    loop, left = asyncio.get_running_loop(), Event()
    items: asyncio.Queue[tuple[T | None, Exception | None]] = asyncio.Queue()

    def put(item: T | None, error: Exception | None = None) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(items.put_nowait, (item, error))

    def work() -> None:
        try:
            with closing(make()) as source:
                for item in source:
                    if left.is_set():
                        return
                    if item is not None:
                        put(item)
            put(None)
        except Exception as error:  # of whatever kind: who waits is told
            put(None, error)

    Thread(target=work, daemon=True).start()
    try:
        while True:
            item, error = await items.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        left.set()
