"""The processes that read for the page: the interpreter that serves, or decides, reads nothing.

A child answers one request at a time. It gets lines of JSON on its standard input, and writes
frames: a byte that says what follows, four bytes of length, and JSON. It ends with its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import re
import sqlite3
import struct
import sys
import threading
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

import msgspec
from msgspec import Struct

from tracepaper.daemon.log import Logger
from tracepaper.replay.page.answers import Error
from tracepaper.storage.database.connection import is_busy_error
from tracepaper.strategies.errors import ConfigInvalid, TracepaperError

if TYPE_CHECKING:
    from tracepaper.replay.page.databases import Databases, FleetSource
    from tracepaper.replay.page.routes import Report

ANSWER, PROGRESS, LATER, REFUSED = b"A", b"P", b"L", b"E"
"""What a frame is: the answer, how far it is, for the heavy process, or an error's status."""
HEAD: Final = struct.Struct(">cI")
STREAMS: Final = re.compile(r"/runs/[^/]+/(verify|decisions/[^/]+/(ask|verify))|/fleet/pull")
"""What is answered in lines, as they come."""
HEAVY: Final = re.compile(r"/runs/[^/]+/(refusals|report|model|what-if|compare/[^/]+)")
"""What the second process answers, so that the chart stays quick."""
NICENESS: Final = 5
QUICK_LIMIT_S: Final = 30.0
HEAVY_LIMIT_S: Final = 3_600.0
IDLE_S: Final = 600.0
"""A child that nobody asked for so long ends, and gives its memory back."""
FRAME_MAX: Final = 512 << 20
LOGGED_MAX: Final = 4_096

log = Logger("page")


class ReplyFrame(NamedTuple):
    """A part of an answer; *status* is that of HTTP."""

    kind: bytes
    status: int
    body: bytes


class ReaderProcess:
    """One child, started at the first request and again where it died or was ended.

    A heavy one may take long; one of them *builds* roll-ups, which another would write over; one
    *derives* decisions, and loads what that needs before it is asked. One that does not stay ends
    with each answer of :meth:`ask`. *late* says what an answer that takes too long means.
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
        fleet: FleetSource | None = None,
        late: str = "The answer took too long; ask for less of the run.",
    ) -> None:
        self._opening = msgspec.json.encode(
            {
                "paths": [str(path) for path in paths],
                "served": served,
                "builds": builds,
                "derives": derives,
                "fleet": None if fleet is None else (fleet.url, str(fleet.folder)),
            }
        )
        self._stays, self._late = stays, late
        self._limit_s = HEAVY_LIMIT_S if is_heavy else QUICK_LIMIT_S
        self._turn = asyncio.Lock()
        self._child: asyncio.subprocess.Process | None = None
        self._logging: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def ask(self, request: dict[str, Any]) -> AsyncIterator[ReplyFrame]:
        """Yield the frames of one answer; a caller that leaves early ends a heavy child."""
        async with self._turn, contextlib.aclosing(self._frames(request)) as frames:
            async for frame in frames:
                yield frame
            if not self._stays:
                self._kill()

    async def prepare(self) -> None:
        """Start the child, which takes a second, before the first request."""
        async with self._turn:
            with contextlib.suppress(OSError):  # the first request says so
                await self._started()
                self._wait_idle()

    async def answer(self, request: dict[str, Any]) -> ReplyFrame:
        """Return the last frame of an answer.

        A caller that leaves before its turn is forgotten; one that leaves later does not end the
        child.
        """
        await self._turn.acquire()
        return await asyncio.shield(asyncio.create_task(self._last(request)))

    async def _last(self, request: dict[str, Any]) -> ReplyFrame:
        """Return the last frame of an answer, and give the turn to the next."""
        try:
            frame = refused(503, "The process that reads has died; ask again.")
            async for reply in self._frames(request):
                frame = reply
            return frame
        finally:
            self._turn.release()

    async def _frames(self, request: dict[str, Any]) -> AsyncGenerator[ReplyFrame]:
        """Yield the frames of one answer; the caller holds the turn."""
        deadline_s = asyncio.get_running_loop().time() + self._limit_s
        is_whole = False
        self._forget_idle()
        try:
            async with asyncio.timeout_at(deadline_s):
                child = await self._started()
                assert child.stdin is not None
                child.stdin.write(msgspec.json.encode(request) + b"\n")
                await child.stdin.drain()
            while not is_whole:
                async with asyncio.timeout_at(deadline_s):
                    frame = await self._frame(child)
                is_whole = frame.kind != PROGRESS
                yield frame
        except TimeoutError:
            yield refused(503, self._late)
        except (asyncio.IncompleteReadError, ConnectionError):
            is_gone = self._is_closed
            yield refused(
                503,
                "The server is ending."
                if is_gone
                else "The process that reads has died; ask again.",
            )
        except OSError as error:
            yield refused(
                503, f"The process that reads cannot be started ({error.strerror}); ask again."
            )
        finally:
            if not is_whole:
                self._kill()
            self._wait_idle()

    def _wait_idle(self) -> None:
        """End the child where no request comes for long."""
        self._forget_idle()
        if self._child is not None:
            self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._kill)

    def _forget_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    async def _started(self) -> asyncio.subprocess.Process:
        if self._is_closed:  # while this request waited for its turn
            raise ConnectionError("closed")
        if self._child is None or self._child.returncode is not None:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tracepaper.replay.page.process"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # an interrupt at the terminal is the server's
            )
            if self._is_closed:  # while it was started
                child.kill()
                await child.wait()
                raise ConnectionError("closed")
            self._child = child
            assert self._child.stdin is not None
            assert self._child.stderr is not None
            self._child.stdin.write(self._opening + b"\n")
            self._logging = asyncio.create_task(_log_lines(self._child.stderr))
        return self._child

    async def _frame(self, child: asyncio.subprocess.Process) -> ReplyFrame:
        assert child.stdout is not None
        kind, length = HEAD.unpack(await child.stdout.readexactly(HEAD.size))
        if length > FRAME_MAX:
            raise ConnectionError("a frame beyond its bound")
        body = await child.stdout.readexactly(length)
        if kind != REFUSED:
            return ReplyFrame(kind, 200, body)
        status, _, sentence = body.partition(b" ")
        return ReplyFrame(REFUSED, int(status), sentence)

    def _kill(self) -> None:
        if self._child is not None and self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
        self._child = None

    async def close(self) -> None:
        """End the child."""
        self._is_closed = True
        self._forget_idle()
        child = self._child
        self._kill()
        if child is not None:
            await child.wait()
        if self._logging is not None:
            self._logging.cancel()


async def _log_lines(stream: asyncio.StreamReader) -> None:
    """Log what a child says on its standard error, until it ends."""
    while piece := await stream.read(LOGGED_MAX):
        for line in piece.decode(errors="replace").splitlines():
            log.warning("page reader", line=line)


def refused(status: int, sentence: str) -> ReplyFrame:
    """Return the frame of an error."""
    return ReplyFrame(REFUSED, status, msgspec.json.encode(Error(sentence)))


# ---------------------------------------------------------------- the child


def main() -> None:
    """Answer requests until the input ends."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no frame
    os.nice(NICENESS)
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    opening = msgspec.json.decode(lines.get())

    from tracepaper.replay.page.databases import Databases, FleetSource

    fleet = opening["fleet"]
    shelf = Databases(
        [Path(path) for path in opening["paths"]],
        served=opening["served"],
        builds=opening["builds"],
        fleet=None if fleet is None else FleetSource(fleet[0], Path(fleet[1])),
    )
    from tracepaper.replay.page import routes  # noqa: F401 - before the first request needs it

    if opening["derives"]:
        from tracepaper.replay.page import derivations

        derivations.load_libraries(shelf)

    while True:
        respond(shelf, msgspec.json.decode(lines.get()), out)


def _listen(lines: queue.Queue[bytes]) -> None:
    """Hand over each line; end the process with its input, whatever it is at."""
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


def respond(shelf: Databases, request: dict[str, Any], out: BinaryIO) -> None:
    """Write the frames of one answer, or its refusal, to *out*."""
    from tracepaper.replay.page.databases import HttpRefusal
    from tracepaper.replay.page.rollups import RollupMissing

    def report(share: float, doing: str) -> None:
        from tracepaper.replay.page.answers import Progress

        _write(out, PROGRESS, msgspec.json.encode(Progress(share, doing)))

    try:
        _write(out, ANSWER, msgspec.json.encode(_answer(shelf, request, report)))
    except RollupMissing:
        _write(out, LATER, b"")
    except HttpRefusal as error:
        _refuse(out, error.status, str(error))
    except ConfigInvalid as error:
        _refuse(out, 400, str(error))
    except TracepaperError as error:
        _refuse(out, 409, str(error))
    except sqlite3.OperationalError as error:
        is_busy = is_busy_error(error)
        _refuse(out, 503 if is_busy else 409, f"The database cannot be read ({error}); {_NEXT}")
    except (
        sqlite3.Error, OSError, ArithmeticError, AssertionError, AttributeError, LookupError,
        MemoryError, msgspec.MsgspecError, RecursionError, TypeError, ValueError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()).rstrip(".")
        _refuse(
            out,
            409,
            f"The record holds what no run writes ({type(error).__name__}: {reason}); {_NEXT}",
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, the next request is answered
        traceback.print_exc()
        reason = " ".join(str(error).split()).rstrip(".")
        _refuse(
            out, 500, f"This cannot be answered ({type(error).__name__}: {reason}); see the log."
        )


_NEXT: Final = "run `tracepaper audit verify`, and ask again."


def _answer(shelf: Databases, request: dict[str, Any], report: Report) -> Struct | dict[str, Any]:
    if "news" in request:
        from tracepaper.replay.page import news

        return news.since(shelf, request["news"], request["after"])
    if request["path"] == "/openapi.json":
        from tracepaper.replay.page.interface import openapi

        return openapi()
    from tracepaper.replay.page.routes import match

    shelf.status = request.get("status")
    call = match(request["path"], request["query"])
    return call.respond(shelf, report)


def _refuse(out: BinaryIO, status: int, sentence: str) -> None:
    body = msgspec.json.encode(Error(" ".join(sentence.split())))
    _write(out, REFUSED, f"{status} ".encode() + body)


def _write(out: BinaryIO, kind: bytes, body: bytes) -> None:
    out.write(HEAD.pack(kind, len(body)) + body)
    out.flush()


if __name__ == "__main__":
    main()
