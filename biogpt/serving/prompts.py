"""Prompts that were read before: their keys and values, for whoever sent them."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from torch import Tensor

from biogpt.model.cache import KVCache


class PromptStore:
    """Keys and values of the prompts that sessions sent lately, in whole chunks.

    A chunk is found by its session and by every token up to its end, and is given back in the bits it was
    computed in; computing it again would take the same shapes and give the same bits. So reuse never changes
    a result.

    Args:
        stretch: positions of a chunk, as many as are read at once.

    Attributes:
        bytes: that are held.
    """

    def __init__(self, stretch: int) -> None:
        self._stretch = stretch
        self._chunks: OrderedDict[tuple[Hashable, tuple[int, ...]], list[Tensor]] = OrderedDict()
        self.bytes = 0

    def keep(self, session: Hashable, ids: Sequence[int], cache: KVCache, room: int) -> None:
        """Keep the last chunk of the positions ``ids`` that a cache of one row holds.

        ``room`` bytes must suffice for it and for the chunks before it, without which it is of no use.
        """
        key = (session, tuple(ids))
        self._touch(session, ids)
        if key in self._chunks:
            return
        chunk = cache.copy(len(ids) - self._stretch, len(ids))
        size = sum(part.nbytes for part in chunk)
        if size * len(ids) // self._stretch > room:
            return
        self.shrink(room - size)
        self._chunks[key] = chunk
        self.bytes += size
        self._touch(session, ids)

    def recall(self, session: Hashable, ids: Sequence[int], cache: KVCache) -> None:
        """Fill an empty cache with the chunks that are known.

        The last token is left to be read in any case.
        """
        while session is not None and cache.length + self._stretch < len(ids):
            key = (session, tuple(ids[: cache.length + self._stretch]))
            if key not in self._chunks:
                break
            cache.append(self._chunks[key])
        self._touch(session, ids[: cache.length])

    def _touch(self, session: Hashable, ids: Sequence[int]) -> None:
        """Forget the chunks of these positions after all others, and the first of them last."""
        for end in range(len(ids), 0, -self._stretch):
            if (key := (session, tuple(ids[:end]))) in self._chunks:
                self._chunks.move_to_end(key)

    def shrink(self, limit: int) -> None:
        """Forget the chunks that were not used for longest, until no more than ``limit`` bytes are held."""
        while self._chunks and self.bytes > limit:
            _, chunk = self._chunks.popitem(last=False)
            self.bytes -= sum(part.nbytes for part in chunk)
