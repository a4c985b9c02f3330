"""What stands before Gradio: calls are checked before they wait in line, and every error is said in words."""

import asyncio
import ctypes
import gc
import json
import logging
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from threading import Event
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
from gradio.route_utils import get_root_url
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from biogpt.serving.engine import Stopping
from biogpt.serving.turns import CLIENT
from biogpt.ui.inputs import as_given
from biogpt.ui.line import BUSY, FAULTY, RETRY, FairQueue, client_of, task_of
from biogpt.ui.requests import REFUSED, how_of
from biogpt.ui.scripts import with_preview
from biogpt.ui.status import api_error

logger = logging.getLogger(__name__)

FAULT = "The service failed at this request; its log says why. Try again, or with another text"
_UNFIT = "A setting is out of its range, or is none of its choices; programs call {}"
_MOST_BYTES = 32_000_000  # of a call's body: more than the longest text, each of its characters escaped
# Where a client reads what became of its calls: of one, or of all of a session.
_READ = re.compile(r"/gradio_api/(call/(v2/)?[^/]+/(?P<event>[^/]+)/?|queue/data)$")
_DIRECT = 2  # calls of a task that may run at once without waiting in its line (``/run``)
_UNREAD = 10.0  # seconds after which a call that nobody reads is given up
_KEPT = 200  # sessions whose state is kept though they ask for nothing: pages that are read, or were closed
_IDLE = 30.0  # seconds without a call after which memory is given back
_TOOLS = re.compile(r"/gradio_api/mcp/?$")
_API = re.compile(r"/v1/")
# What the page's own functions raise when they are called with what no control can hold.
_OF_GARBAGE = (TypeError, ValueError, LookupError, AttributeError)
_CALL = re.compile(r"/gradio_api/(?P<way>call/v2|call|run|api|queue)/(?P<name>[^/]+)/?$")


class Page(gr.Blocks):
    """Blocks that tell a client nothing of Python's: a fault is logged, and said in words of our own.

    No request is held open while nothing runs, as Gradio's heartbeat would be: browsers allow six to a host,
    all tabs together. A closed tab ends its runs by the stream of their updates, and what is kept of a
    session has its own time to live.

    Attributes:
        api: answers below ``/v1``.
        stopping: set once calls are to be refused, since the process ends.
        under_way: clients that have called and do not know yet what became of it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.api: ASGIApp | None = None
        self.stopping = Event()
        self.under_way = 0

    def queue(self, *values: Any, **named: Any) -> "Page":
        super().queue(*values, **named)
        self._queue = FairQueue(
            live_updates=True,
            concurrency_count=self.max_threads,
            update_intervals=1,
            max_size=None,  # of all lines together
            blocks=self,
        )
        return self

    @property
    def lines(self) -> FairQueue:
        """What waits, and for whose turn."""
        assert isinstance(self._queue, FairQueue)
        return self._queue

    def forget(self, session: str) -> None:
        """Let go of what is kept for a session that will not come back."""
        holder = self.state_holder
        with holder.lock:
            holder.session_data.pop(session, None)
            holder.time_last_used.pop(session, None)

    def tidy(self, busy: Container[str]) -> None:
        """Forget sessions, those used least lately first, until few are kept beside those that are busy."""
        idle = [session for session in list(self.state_holder.session_data) if session not in busy]
        for session in idle[:-_KEPT]:
            self.forget(session)

    def get_config_file(self) -> Any:
        return super().get_config_file() | {"connect_heartbeat": False}

    def endpoints(self) -> dict[str, list[dict[str, Any]]]:
        """The parameters of each endpoint for programs, as Gradio's ``/info`` lists them."""
        named = self.get_api_info()["named_endpoints"]
        return {name.removeprefix("/"): about["parameters"] for name, about in named.items()}

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        """Refuse a call with fewer values than the function takes."""
        if len(inputs) < len(block_fn.inputs):
            raise api_error(
                ValueError(f"data holds {len(inputs)} values; expected {len(block_fn.inputs)}"), "Not done"
            )

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """What the function is given for what was sent; refused where a component can't hold that."""
        self.validate_inputs(block_fn, inputs)
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except Exception as error:
            raise self._unfit() from error

    async def process_api(self, block_fn: Any, *values: Any, **named: Any) -> dict[str, Any]:
        """Run a function for a client.

        Raises:
            gr.Error: whatever went wrong.
        """
        try:
            return await super().process_api(block_fn, *values, **named)
        except gr.Error:
            raise
        except Exception as error:
            logger.exception("a request failed")
            function = block_fn if not isinstance(block_fn, int) else self.fns[block_fn]
            if function.api_visibility == "private" and isinstance(error, _OF_GARBAGE):
                raise self._unfit() from error
            raise api_error(RuntimeError(FAULT), FAULTY) from error

    def _unfit(self) -> gr.Error:
        names = ", ".join(f"/{name}" for name in self.endpoints())
        return api_error(ValueError(_UNFIT.format(names)), "Not done")


@dataclass
class _Answer:
    """A response kept back, to be changed before it is sent."""

    start: Message = field(default_factory=dict)  # type: ignore[arg-type]
    body: bytes = b""

    async def keep(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
        else:
            self.body += message.get("body", b"")

    async def send(self, send: Send) -> None:
        await send(self.start)
        await send({"type": "http.response.body", "body": self.body})


class Gate:
    """An ASGI middleware that refuses what no endpoint can take, with HTTP status and reason.

    Args:
        page: whose endpoints they are.
    """

    def __init__(self, app: ASGIApp, page: Page) -> None:
        self.app, self.page = app, page
        self._calls: dict[str, dict[str, int]] = {}  # event ids of each session, and their functions
        self._timers: dict[str, asyncio.TimerHandle] = {}  # of sessions that nobody reads yet
        self._read: Counter[str] = Counter()  # how often each session is being read
        self._ending: set[asyncio.Task[None]] = set()
        self._rest: asyncio.TimerHandle | None = None
        self._direct: Counter[str] = Counter()  # calls of each task that run beside its line

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        CLIENT.set(client_of((scope["client"] or ("", 0))[0]))
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        called = _CALL.search(scope["path"]) if scope["method"] == "POST" else None
        read = _READ.search(scope["path"]) if scope["method"] == "GET" else None
        is_tool = scope["method"] == "POST" and _TOOLS.search(scope["path"]) is not None
        is_asked = scope["method"] == "POST" and _API.match(scope["path"]) is not None
        is_awaited = called is not None or read is not None or is_tool or is_asked
        self.page.under_way += is_awaited
        try:
            if called is not None:
                await self._call(called["way"], called["name"], scope, receive, sent)
            elif read is not None:
                query = parse_qs(scope["query_string"].decode("latin-1"))
                session = read["event"] or query.get("session_hash", [""])[0]
                await self._read_out(session, scope, receive, sent)
            elif is_tool:
                await self._use_tool(scope, receive, sent)
            elif scope["method"] == "GET" and scope["path"] == scope.get("root_path", "") + "/":
                await self._show(scope, receive, sent)
            else:
                await self.app(scope, receive, sent)
        except Exception:
            if begun:
                raise
            logger.exception("a request failed")
            await JSONResponse({"detail": FAULT}, 500)(scope, receive, send)
        finally:
            self.page.under_way -= is_awaited
            if is_awaited:
                self.page.tidy(self._calls.keys() | self._read.keys())
                self._rest_later()

    async def _show(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The page itself, with what other sites show of a link to it."""
        answer = _Answer()
        await self.app(scope, receive, answer.keep)
        if answer.start["status"] == 200:
            root = get_root_url(Request(scope), "/", scope.get("root_path") or None)
            answer.body = with_preview(answer.body.decode(), f"{root.rstrip('/')}/").encode()
            MutableHeaders(scope=answer.start)["content-length"] = str(len(answer.body))
        await answer.send(send)

    def _rest_later(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
        loop = asyncio.get_running_loop()
        self._rest = loop.call_later(_IDLE, loop.run_in_executor, None, give_memory_back)

    async def _call(self, way: str, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        begin = self.page.lines.requests.begin

        async def refuse(task: str, refused: JSONResponse) -> None:
            with begin(task, len(body)) as served:
                served.how = REFUSED
                await refused(scope, receive, send)

        is_stopping = self.page.stopping.is_set()
        refused = _later(str(Stopping())) if is_stopping else self._refusal(way, name, body)
        if refused is not None:
            await refuse(f"/{name}" if name in self.page.endpoints() else "/", refused)
            return
        given = json.loads(body)
        index = next(
            (index for index, function in self.page.fns.items() if function.api_name == name),
            given.get("fn_index"),
        )
        answer = _Answer()
        is_direct = way in ("run", "api") and self.page.fns[index].queue
        task = self.page.fns[index].concurrency_id if is_direct else ""
        name = task_of(self.page.fns[index])
        if task and self._direct[task] == _DIRECT:
            await refuse(name, _later(BUSY))
            return
        self._direct[task] += 1
        try:
            with begin(name, len(body)) if task else nullcontext() as served:
                await self.app(scope, _replay(body, receive), answer.keep)
                if answer.start["status"] == 500 and json.loads(answer.body).get("title") != FAULTY:
                    answer.start["status"] = 422  # Gradio knows no other status for a refusal
                if served is not None:
                    served.how = how_of(answer.start["status"])
        finally:
            self._direct[task] -= 1
        if answer.start["status"] == 200 and way in ("call", "call/v2", "queue"):
            event = json.loads(answer.body)["event_id"]
            self._expect_reader(given["session_hash"] if way == "queue" else event, event, index, scope)
        elif not is_direct and self.page.fns[index].queue:  # its line takes no more
            with begin(name, len(body)) as served:
                served.how = how_of(answer.start["status"])
        await answer.send(send)

    def _expect_reader(self, session: str, event: str, index: int, scope: Scope) -> None:
        """Give a call up if nobody comes for what becomes of it."""
        self._calls.setdefault(session, {})[event] = index
        if not self._read[session] and session not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[session] = loop.call_later(_UNREAD, self._give_up, session, scope)
            self.page.under_way += 1

    async def _read_out(self, session: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell a client what becomes of its calls; if it leaves before the end, they are given up."""
        self._forget_timer(session)
        told_all = False

        async def sent(message: Message) -> None:
            nonlocal told_all
            await send(message)
            told_all = message["type"] == "http.response.body" and not message.get("more_body")

        self._read[session] += 1
        try:
            await self.app(scope, receive, sent)
        finally:
            self._read[session] -= 1
            if told_all:
                self._calls.pop(session, None)
            if not self._read[session]:
                del self._read[session]
                is_over = told_all and scope["path"].rstrip("/").endswith(session)  # of a call, not of a page
                self._give_up(session, scope)
                if is_over:
                    self.page.forget(session)

    def _forget_timer(self, session: str) -> None:
        if (timer := self._timers.pop(session, None)) is not None:
            timer.cancel()
            self.page.under_way -= 1

    def _give_up(self, session: str, scope: Scope) -> None:
        self._forget_timer(session)
        for event, index in self._calls.pop(session, {}).items():
            ending = asyncio.ensure_future(self._cancel(session, event, index, scope))
            self._ending.add(ending)  # or else it might be collected before it has run
            ending.add_done_callback(self._ending.discard)

    async def _cancel(self, session: str, event: str, index: int, scope: Scope) -> None:
        """What the page's Stop does, by Gradio's own door."""
        body = json.dumps({"session_hash": session, "event_id": event, "fn_index": index}).encode()
        asked = {
            **scope,
            "method": "POST",
            "path": "/gradio_api/cancel",
            "raw_path": b"/gradio_api/cancel",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }

        async def nothing_more() -> Message:
            return {"type": "http.disconnect"}

        await self.app(asked, _replay(body, nothing_more), _Answer().keep)
        if session == event:  # of a call, not of a page
            self.page.forget(session)

    async def _use_tool(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A message for the MCP server; arguments that a tool does not take are answered here."""
        body = await _read(receive)
        try:
            given = json.loads(body)
            name, arguments = given["params"]["name"], given["params"].get("arguments") or {}
            parameters = self.page.endpoints()[name]
            wrong = _wrong_arguments(parameters, arguments)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            wrong = ""  # no call of a tool; the server says what is wrong with it
        if not wrong:
            await self.app(scope, _replay(body, receive), send)
            return
        with self.page.lines.requests.begin(f"/{name}", len(body)) as served:
            served.how = REFUSED
        said = {"type": "text", "text": f"{wrong}; {name} takes {_listed(parameters)}"}
        result = {"content": [said], "isError": True}
        await JSONResponse({"jsonrpc": "2.0", "id": given.get("id"), "result": result})(scope, receive, send)

    def _refusal(self, way: str, name: str, body: bytes) -> JSONResponse | None:
        """Why a call can't be made, if so."""
        if len(body) > _MOST_BYTES:
            return _refused(413, f"the body has more than {_MOST_BYTES:,} bytes")
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):
            return _refused(422, "the body is no JSON; send an object")
        if not isinstance(given, dict):
            return _refused(422, "the body is JSON, but no object")
        index = given.get("fn_index")
        if way == "queue" or (way in ("run", "api") and index is not None):
            if isinstance(index, int) and index in self.page.fns:
                return None
            return _refused(422, f"fn_index is {as_given(index)}; the page has no such function")
        endpoints = self.page.endpoints()
        if name not in endpoints:
            offered = ", ".join(f"/{endpoint}" for endpoint in endpoints)
            return _refused(404, f"there is no endpoint {as_given(name)}; there are {offered}")
        check = _wrong_arguments if way == "call/v2" else _wrong_count
        wrong = check(endpoints[name], given)
        return _refused(422, f"{wrong}; /{name} takes {_listed(endpoints[name])}") if wrong else None


def _wrong_arguments(parameters: list[dict[str, Any]], given: Mapping[str, Any]) -> str:
    known = [parameter["parameter_name"] for parameter in parameters]
    unknown = [name for name in given if name not in known]
    if unknown:
        return f"unknown {_counted('argument', unknown)}"
    missing = [
        parameter["parameter_name"]
        for parameter in parameters
        if not parameter["parameter_has_default"] and parameter["parameter_name"] not in given
    ]
    return f"missing {_counted('argument', missing)}" if missing else ""


def _wrong_count(parameters: list[dict[str, Any]], given: Mapping[str, Any]) -> str:
    data = given.get("data")
    if not isinstance(data, list):
        return f"data is {as_given(data)}; expected a list of {len(parameters)} values"
    if len(data) != len(parameters):
        return f"data holds {len(data)} values; expected {len(parameters)}, in their order"
    return ""


def _counted(what: str, names: Iterable[str]) -> str:
    shown = [as_given(name) for name in names]
    return f"{what}{'s' if len(shown) > 1 else ''} {', '.join(shown[:5])}"


def _listed(parameters: list[dict[str, Any]]) -> str:
    return ", ".join(parameter["parameter_name"] for parameter in parameters)


def give_memory_back() -> bool:
    """Return memory that is free to the system, where the C library can (glibc); says whether any was."""
    gc.collect()
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False


def _later(reason: str) -> JSONResponse:
    return JSONResponse({"detail": reason}, 503, {"Retry-After": str(RETRY)})


def _refused(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"detail": reason}, status)


async def _read(receive: Receive) -> bytes:
    """The body of a request; what goes beyond the limit is read no further."""
    body = bytearray()
    while len(body) <= _MOST_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read already, and then what else comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
