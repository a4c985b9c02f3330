"""Which web sites may talk to the page: what a browser is told by another site is not done here."""

import re
import socket
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ANY = "*"
_EMBEDDERS = ("https://huggingface.co", "https://*.huggingface.co")  # show a Space in a frame
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}  # links hold texts
_STREAM = "text/event-stream"
_PATH = re.compile(r"(/[\w.~-]+)+", re.ASCII)


class Sites:
    """The hosts that the page may be reached by, and the sites that may ask it for something.

    Args:
        allowed: hosts or origins, such as ``lab.example.org`` or ``https://lab.example.org``; ``*`` is any.
        listening: the address that the page listens on.
        environment: of the process; tells of a Hugging Face Space, whose proxy says for whom it asks.
    """

    def __init__(self, allowed: Iterable[str], listening: str, environment: Mapping[str, str]) -> None:
        self.allowed = [site.strip().lower().rstrip("/") for site in allowed if site.strip()]
        self.is_space = "SPACE_ID" in environment
        name = socket.gethostname().lower()
        self._names = {"localhost", listening.lower(), name, f"{name}.local", socket.getfqdn().lower()}
        self._sites = {site for site in environment.get("SPACE_HOST", "").lower().split(",") if site}

    def refusal(self, headers: Headers, shared: str | None) -> str:
        """Why a request is not answered; empty where it is.

        A name that anybody may point at this machine is refused as its host (DNS rebinding). Addresses cannot
        be, and whoever reaches a Space comes through its proxy.

        Args:
            shared: the public link of this page, if it has one.
        """
        if ANY in self.allowed:
            return ""
        sites = self._sites | ({_host(shared)} if shared else set())
        known = self._names | sites | set(map(_host, self.allowed))
        # Both: a page of another site can name any host as that of a proxy, but not in place of its own.
        for given in (headers.get("host", "").lower(), _reached(headers).lower()):
            host = _host(given)
            # A browser always names one.
            is_own = not given or _is_address(host) or host.endswith(".localhost")
            if not (self.is_space or is_own or host in known):
                return _said("Host", given, host)
        origin = headers.get("origin", "").lower()
        site = _host(origin)
        may_ask = (
            not origin
            or origin in self.allowed
            or site in sites.union(self.allowed)
            or given in (origin.rpartition("/")[2], site)
            or (_is_local(site) and _is_local(host))  # another page of this machine, as Gradio has it
            or (self.is_space and f".{origin.removeprefix('https://')}".endswith(".huggingface.co"))
        )
        return "" if may_ask else _said("Origin", origin, origin)

    @property
    def embedders(self) -> str:
        """Who may show the page in a frame, as ``frame-ancestors`` wants it."""
        if ANY in self.allowed:
            return ANY
        return " ".join(["'self'", *self.allowed, *(_EMBEDDERS if self.is_space else ())])


class SiteCheck:
    """An ASGI middleware that answers no request of another site, and tells browsers what not to do.

    What it lets in is told where the page is reached, and proxies are told to hold back no stream.

    Args:
        sites: that may ask.
        shared: the public link of this page, once it has one.
    """

    def __init__(self, app: ASGIApp, sites: Sites, shared: Callable[[], str | None]) -> None:
        self.app, self.sites, self.shared = app, sites, shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", f"frame-ancestors {self.sites.embedders}")
                if headers.get("content-type", "").startswith(_STREAM):
                    headers["X-Accel-Buffering"] = "no"
            await send(message)

        refused = self.sites.refusal(Headers(scope=scope), self.shared())
        if refused:
            await JSONResponse({"detail": refused}, 403)(scope, receive, sent)
        else:
            await self.app(_as_reached(scope), receive, sent)


def _reached(headers: Headers) -> str:
    """The host by which a client reaches the page: a proxy's, if it names one."""
    return headers.get("x-forwarded-host", "").partition(",")[0].strip() or headers.get("host", "")


def _as_reached(scope: Scope) -> Scope:
    """A request as if no proxy stood before the page, but that Gradio is told the whole address of the page.

    A proxy that serves the page below a path, and takes that away, says so in ``X-Forwarded-Prefix``.
    """
    scope = {**scope, "headers": list(scope["headers"])}
    headers = MutableHeaders(scope=scope)
    host, path = _reached(headers), headers.get("x-forwarded-prefix", "").rstrip("/")
    for name in ("x-forwarded-host", "x-gradio-server"):
        del headers[name]
    if host:
        headers["host"] = host
    if host and _PATH.fullmatch(path):
        headers["x-gradio-server"] = f"{scope['scheme']}://{host}{path}"
    return scope


def _host(site: str) -> str:
    """The host of an origin or of a ``Host`` header, without port; empty where there is none."""
    try:
        return (urlsplit(site if "//" in site else f"//{site}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_local(host: str) -> bool:
    return f".{host}".endswith(".localhost") or (_is_address(host) and ip_address(host).is_loopback)


def _said(header: str, given: str, site: str) -> str:
    return (
        f"{header} is {given[:100]!r}, which is not this page's. Whoever runs the page may let that in: "
        f"--allow-origin {site[:100] or 'HOST'}"
    )
