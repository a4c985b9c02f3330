"""What stands before Gradio: calls are checked before they wait in line, and every error is said in words."""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from biogpt.ui.inputs import as_given
from biogpt.ui.status import api_error

logger = logging.getLogger(__name__)

FAILED = "Failed"  # title of an error that is a fault of ours, not of what was sent
_FAULT = "The service failed at this request; its log says why. Try again, or with another text"
_UNFIT = "A setting is out of its range, or is none of its choices; programs call {}"
_MOST_BYTES = 32_000_000  # of a call's body: more than the longest text, each of its characters escaped
_TOOLS = re.compile(r"/gradio_api/mcp/?$")
# What the page's own functions raise when they are called with what no control can hold.
_OF_GARBAGE = (TypeError, ValueError, LookupError, AttributeError)
_CALL = re.compile(r"/gradio_api/(?P<way>call/v2|call|run|api|queue)/(?P<name>[^/]+)/?$")


class Page(gr.Blocks):
    """Blocks that tell a client nothing of Python's: a fault is logged, and said in words of our own."""

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
            raise api_error(RuntimeError(_FAULT), FAILED) from error

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        called = _CALL.search(scope["path"]) if scope["method"] == "POST" else None
        is_tool = scope["method"] == "POST" and _TOOLS.search(scope["path"]) is not None
        try:
            if called is not None:
                await self._call(called["way"], called["name"], scope, receive, sent)
            elif is_tool:
                await self._use_tool(scope, receive, sent)
            else:
                await self.app(scope, receive, sent)
        except Exception:
            if begun:
                raise
            logger.exception("a request failed")
            await JSONResponse({"detail": _FAULT}, 500)(scope, receive, send)

    async def _call(self, way: str, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        refused = self._refusal(way, name, body)
        if refused is not None:
            await refused(scope, receive, send)
            return
        answer = _Answer()
        await self.app(scope, _replay(body, receive), answer.keep)
        if answer.start["status"] == 500 and json.loads(answer.body).get("title") != FAILED:
            answer.start["status"] = 422  # Gradio knows no other status for a refusal
        await answer.send(send)

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
