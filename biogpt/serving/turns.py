"""Whose turn it is: clients go one after another, each with what it asked first."""

from collections.abc import Callable, Hashable, Iterable
from contextvars import ContextVar
from itertools import zip_longest
from typing import TypeVar

Item = TypeVar("Item")

# Who asks for what runs in this context, set where requests come in; None is this process itself.
CLIENT: ContextVar[Hashable] = ContextVar("client", default=None)

_SHARE = 3  # a client may take another place while it has fewer than so many for each that is free


class Turns:
    """A ring of the clients that have something in line; whoever was served goes to its end.

    One that comes anew waits for one request of each other client at most, however many these have.
    """

    def __init__(self) -> None:
        self._ring: dict[Hashable, None] = {}  # next comes first

    def order(self, waiting: Iterable[Item], client_of: Callable[[Item], Hashable]) -> list[Item]:
        """Those who wait, in the order in which they go.

        Args:
            waiting: first come, first.
        """
        lines: dict[Hashable, list[Item]] = {}
        for item in waiting:
            lines.setdefault(client_of(item), []).append(item)
        self._ring = {client: None for client in (*self._ring, *lines) if client in lines}
        rounds = zip_longest(*(lines[client] for client in self._ring))
        return [item for turn in rounds for item in turn if item is not None]

    def took(self, client: Hashable) -> None:
        """A client was served."""
        self._ring.pop(client, None)
        self._ring[client] = None


def has_share(own: float, free: float) -> bool:
    """Whether a client with so much may have more of what is free: some is left for whoever comes next.

    Alone, it gets three quarters of all; of two, each gets three sevenths.
    """
    return own == 0 or own < _SHARE * free
