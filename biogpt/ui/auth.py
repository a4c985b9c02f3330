"""Who may use the page at all: names and passwords, asked for by HTTP itself (RFC 7617)."""

import asyncio
import base64
import binascii
import hmac
from collections.abc import Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_OPEN = ("/health", "/gradio_api/startup-events")  # balancers have no password, nor has Gradio at its start
_PAUSE = 1.0  # seconds before who gave a wrong password hears so
_ASK = {"WWW-Authenticate": 'Basic realm="BioGPT", charset="UTF-8"'}
_SAID = "A name and a password are needed here: send Authorization, Basic or Bearer, with NAME:PASSWORD"


def read_passwords(given: str) -> dict[str, str]:
    """The passwords by name.

    Args:
        given: ``NAME:PASSWORD``, or a file with such lines; empty lines and those that begin with ``#`` count
            for nothing.

    Raises:
        ValueError: a line is none of these, or there is none.
        OSError: the file cannot be read.
    """
    is_file = ":" not in given or Path(given).is_file()
    lines = Path(given).expanduser().read_text(encoding="utf-8").splitlines() if is_file else [given]
    passwords = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, password = line.strip().partition(":")
        if not (name and colon and password):
            place = f"line {number} of {given}" if is_file else "what was given"
            raise ValueError(f"{place} is not NAME:PASSWORD; write a name, a colon and a password")
        passwords[name] = password
    if not passwords:
        raise ValueError(f"{given} holds no NAME:PASSWORD; write one a line")
    return passwords


class Auth:
    """An ASGI middleware that lets in who knows a password: page, endpoints, ``/v1`` and MCP alike.

    Args:
        passwords: by name; everybody is let in where there are none.
    """

    def __init__(self, app: ASGIApp, passwords: Mapping[str, str]) -> None:
        self.app, self.passwords = app, passwords

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.passwords or scope["path"] in _OPEN:
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("authorization")
        if self._knows(given):
            await self.app(scope, receive, send)
            return
        if given is not None:
            await asyncio.sleep(_PAUSE)
        await JSONResponse({"detail": _SAID}, 401, _ASK)(scope, receive, send)

    def _knows(self, given: str | None) -> bool:
        scheme, _, value = (given or "").partition(" ")
        if scheme.lower() == "basic":
            try:
                value = base64.b64decode(value, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif scheme.lower() != "bearer":
            return False
        name, _, password = value.partition(":")
        known = self.passwords.get(name, "")
        return hmac.compare_digest(password.encode(), known.encode()) and bool(known)
