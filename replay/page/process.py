"""The processes that read databases for the page, so that the serving process reads nothing.

The child, in ``reader``, answers one request at a time, in frames; the last frame is the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.child import ChildFailed, ChildProcess, TimeLimits
from tracepaper.replay.page.answers import Error

ANSWER, PROGRESS, LATER, REFUSED = "answer", "progress", "later", "refused"
"""Kinds of frames: the answer, progress, a request for the heavy process, an error."""
STREAMS: Final = re.compile(r"/runs/[^/]+/(verify|decisions/[^/]+/(ask|verify))")
"""Paths that are answered in lines, with progress."""
HEAVY: Final = re.compile(r"/runs/[^/]+/(refusals|report|model|what-if|compare/[^/]+)")
"""Paths that the second process answers, so that the chart stays quick."""
NICENESS: Final = 5
QUICK_LIMIT_S: Final = 30.0
HEAVY_LIMIT_S: Final = 3_600.0
log = Logger("page")


class ReplyFrame(NamedTuple):
    """A part of an answer, with an HTTP *status* and the *trace* of a program error."""

    kind: str
    status: int
    body: bytes
    trace: str = ""


class ReaderProcess:
    """One child, started at the first request and again if it died, was stopped or was idle.

    A heavy child may take long. Only one child *builds* roll-ups, since two would overwrite each
    other's. A child that *derives* decisions loads the libraries before the first request. Without
    *stays*, the child ends after each answer of :meth:`ask`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        served: str,
        is_heavy: bool,
        builds: bool = False,
        derives: bool = False,
        stays: bool = True,
    ) -> None:
        opening = {
            "paths": [str(path) for path in paths],
            "served": served,
            "builds": builds,
            "derives": derives,
        }
        command = (sys.executable, "-m", "tracepaper.replay.page.reader")
        self._child = ChildProcess("page reader", command, TimeLimits(), opening=opening)
        self._limit_s = HEAVY_LIMIT_S if is_heavy else QUICK_LIMIT_S
        self._stays = stays
        self._turn = asyncio.Lock()
        self._is_closed = False

    async def ask(self, request: dict[str, Any]) -> AsyncIterator[ReplyFrame]:
        """Yield the frames of one answer; closing the generator early ends a heavy child."""
        async with self._turn, contextlib.aclosing(self._frames(request)) as frames:
            async for frame in frames:
                yield frame
            if not self._stays:
                await self._child.stop()

    async def prepare(self) -> None:
        """Start the child before the first request; that takes a second."""
        async with self._turn:
            if not self._is_closed:  # it may be closed while this waits for its turn
                with contextlib.suppress(ChildFailed):  # the first request reports it
                    async with self._child.exchange():
                        pass

    async def answer(self, request: dict[str, Any]) -> ReplyFrame:
        """Return the last frame of an answer.

        A caller that is cancelled before its turn sends no request; later cancellation does not end
        the child.
        """
        await self._turn.acquire()
        return await asyncio.shield(asyncio.create_task(self._last(request)))

    async def _last(self, request: dict[str, Any]) -> ReplyFrame:
        """Return the last frame of an answer, and release the turn."""
        try:
            *_, frame = [frame async for frame in self._frames(request)]
            return frame
        finally:
            self._turn.release()

    async def _frames(self, request: dict[str, Any]) -> AsyncGenerator[ReplyFrame]:
        """Yield the frames of one answer; the caller holds the turn."""
        deadline_s = asyncio.get_running_loop().time() + self._limit_s
        if self._is_closed:  # closed while this request waited for its turn
            yield refused(503, "The server is stopping; start it again.")
            return
        try:
            async with self._child.exchange():
                self._child.write(request)
                while (frame := await self._frame(deadline_s)).kind == PROGRESS:
                    yield frame
            for line in frame.trace.splitlines():
                log.warning("page reader", line=line)
            yield frame
        except ChildFailed as error:
            sentence = str(error)
            yield refused(503, f"{sentence[0].upper()}{sentence[1:]}; ask again.")

    async def _frame(self, deadline_s: float) -> ReplyFrame:
        # A limit around the whole answer would strike the caller between two frames.
        try:
            async with asyncio.timeout_at(deadline_s):
                return await self._child.read(ReplyFrame)
        except TimeoutError:
            raise ChildFailed("the answer took too long") from None

    async def close(self) -> None:
        """End the child."""
        self._is_closed = True
        await self._child.stop()


def refused(status: int, sentence: str) -> ReplyFrame:
    """Return the frame of an error."""
    return ReplyFrame(REFUSED, status, msgspec.json.encode(Error(sentence)))
