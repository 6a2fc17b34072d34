"""The bounded queue between the connections and the engine, in order of arrival."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Line(Generic[T]):
    """First in, first out; what may be dropped is offered, what may not is insisted on.

    ``offer`` refuses beyond a share of the limit, so that quotes, which are many and soon
    replaced, can never take the place of bars. ``insist`` always succeeds: its callers are few
    by their nature (one reminder an instrument, operators' commands).
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._items: deque[T] = deque()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, item: T, *, share: float = 1.0) -> bool:
        """Append *item* unless *share* of the limit is taken; return whether it was."""
        if len(self._items) >= self.limit * share:
            return False
        self.insist(item)
        return True

    def insist(self, item: T) -> None:
        """Append *item*, whatever the limit."""
        self._items.append(item)
        self._filled.set()

    async def get(self) -> T:
        """Return the oldest item, waiting for one."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        return self._items.popleft()
