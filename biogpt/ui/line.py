"""The lines that requests wait in on the page: one for each task, in which clients take turns."""

import time
from collections import defaultdict
from collections.abc import Hashable
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from gradio.block_function import BlockFunction
from gradio.queueing import Event, Queue
from gradio.server_messages import EventMessage, ProcessCompletedMessage
from starlette.exceptions import HTTPException
from starlette.requests import Request

from biogpt.serving.turns import CLIENT, Turns, has_share
from biogpt.ui.requests import DONE, FAILED, REFUSED, Requests, Served

FAULTY = "Failed"  # title of an error that is a fault of ours, not of what was sent
WAITING_LINE = 32  # requests that may wait for a task; one more is refused with HTTP 503
RETRY = 15  # seconds after which a client that was refused is told to come back
BUSY = f"Too many texts wait here already. Try again in {RETRY} seconds"
YOURS = "{} of your requests wait here already, the most for one client. Try again in {} seconds"


def client_of(address: str, session: str | None = None) -> Hashable:
    """Who asks, so that whoever asks for much takes turns with others: an address, of IPv6 its network.

    From this machine's own address come its user, and everyone whom a proxy or a tunnel lets in without
    saying for whom it asks (``X-Forwarded-For``): only sessions tell these apart.

    Args:
        address: where the request comes from.
        session: of the browser's tab or the Python client that asks; None for one that calls by HTTP alone.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return address, session
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or ip
    if ip.is_loopback:
        return str(ip), session
    return str(ip) if ip.version == 4 else str(ip_network((int(ip), 64), strict=False))


class FairQueue(Queue):
    """Gradio's queue, but that each task has a line of its own, in which clients take turns.

    Attributes:
        most: requests of one client that may wait in a line; one more is refused with HTTP 429.
        requests: what is told of calls; of others, too, that have no line here.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ANALYTICS_MAX_EVENTS = 0  # Gradio keeps 10,000, and counts them anew after each call
        self.most = WAITING_LINE
        self.requests = Requests()
        self._turns: defaultdict[str, Turns] = defaultdict(Turns)
        self._served: dict[Event, Served] = {}

    async def push(self, body: Any, request: Request, username: str | None) -> Any:
        """Put a call into its line.

        Raises:
            HTTPException: 429, this client has too many there; 503, all have.
        """
        if body.fn_index is not None:
            self._refuse_if_full(self.blocks.fns[body.fn_index], _client(request, body.session_hash))
        return await super().push(body, request, username)

    def _refuse_if_full(self, function: BlockFunction, client: Hashable) -> None:
        line = self.event_queue_per_concurrency_id.get(function.concurrency_id)
        waiting = line.queue if line is not None else []
        headers = {"Retry-After": str(RETRY)}
        if sum(_client_of(event) == client for event in waiting) >= self.most:
            raise HTTPException(429, YOURS.format(self.most, RETRY), headers)
        if len(waiting) >= WAITING_LINE:
            raise HTTPException(503, BUSY, headers)

    def waiting(self) -> dict[str, int]:
        """How many wait in each line."""
        return {task: len(line.queue) for task, line in self.event_queue_per_concurrency_id.items()}

    def get_events(self) -> tuple[list[Event], bool, str] | None:
        """Who goes next, of any line with room."""
        for task, line in self.event_queue_per_concurrency_id.items():
            if (event := self._next(task)) is not None:
                line.queue.remove(event)
                self._turns[task].took(_client_of(event))
                return [event], False, task
        return None

    def _next(self, task: str) -> Event | None:
        line = self.event_queue_per_concurrency_id[task]
        running = [event for job in self.active_jobs for event in job or () if event.concurrency_id == task]
        limit = float("inf") if line.concurrency_limit is None else line.concurrency_limit
        free = limit - line.current_concurrency
        if free <= 0 or not line.queue:
            return None
        clients = [_client_of(event) for event in running]
        waiting = self._turns[task].order(line.queue, _client_of)
        return next((event for event in waiting if has_share(clients.count(_client_of(event)), free)), None)

    async def process_events(self, events: list[Event], *rest: Any) -> None:
        """Run a call; what it asks for is asked for its client."""
        [event] = events
        CLIENT.set(_client_of(event))
        given = event.data.data if event.data is not None else []
        size = sum(len(value) for value in given if isinstance(value, str))
        waited = time.monotonic() - event.enqueue_time
        with self.requests.begin(task_of(event.fn), size, waited) as served:
            self._served[event] = served
            try:
                await super().process_events(events, *rest)
            finally:
                del self._served[event]

    def send_message(self, event: Event, event_message: EventMessage) -> None:
        """Put what becomes of a call where its client reads it."""
        if isinstance(event_message, ProcessCompletedMessage) and (served := self._served.get(event)):
            failed = FAILED if event_message.output.get("title") == FAULTY else REFUSED
            served.how = DONE if event_message.success else failed
        super().send_message(event, event_message)


def task_of(function: BlockFunction) -> str:
    """What programs call it, or the line that the page's own calls wait in."""
    is_public = function.api_visibility != "private" and isinstance(function.api_name, str)
    return f"/{function.api_name}" if is_public else f"page {function.concurrency_id}"


def _client_of(event: Event) -> Hashable:
    # A call by HTTP alone has a session of its own, named as the call is.
    is_a_tab = event.data is None or event.data.event_id != event.session_hash
    return _client(event.request, event.session_hash if is_a_tab else None)


def _client(request: Request, session: str | None) -> Hashable:
    return client_of(request.client.host if request.client is not None else "", session)
