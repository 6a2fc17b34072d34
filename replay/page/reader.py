"""The child process that reads databases for the page and answers the requests of its parent."""

from __future__ import annotations

import signal
import sqlite3
import sys
import threading
import traceback
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import msgspec
from msgspec import Struct

from tracepaper.daemon.session.child import (
    frame_of,
    limit_this_process,
    messages_of,
    reserve_stdout,
)
from tracepaper.replay.page import news
from tracepaper.replay.page.answers import Progress
from tracepaper.replay.page.databases import Databases, HttpRefusal
from tracepaper.replay.page.interface import openapi
from tracepaper.replay.page.process import ANSWER, LATER, NICENESS, PROGRESS, ReplyFrame, refused
from tracepaper.replay.page.rollups import RollupMissing
from tracepaper.replay.page.routes import Report, match
from tracepaper.storage.database.connection import is_busy_error
from tracepaper.strategies.errors import ConfigInvalid, TracepaperError

IDLE_S: Final = 600
"""A reader without a request for so long is ended by its alarm, which releases its memory."""
OPEN_S: Final = 30
"""It closes its databases when it had no request for so long, or within a second of a rotation."""


def main() -> None:
    """Answer requests until the input ends."""
    out = reserve_stdout()
    limit_this_process(nice=NICENESS, reads_input=True)
    messages = cast("Iterator[dict[str, Any]]", messages_of(sys.stdin.buffer))
    opening = next(messages)
    databases = Databases(
        [Path(path) for path in opening["paths"]],
        served=opening["served"],
        builds=opening["builds"],
    )
    if opening["derives"]:
        from tracepaper.replay.page import derivations  # only this child needs the engine

        derivations.load_libraries(databases)
    waited, turn = count(1), threading.Lock()

    def let_go() -> None:
        while not ended.wait(1):
            with turn:
                databases.let_go(idle=next(waited) >= OPEN_S)

    ended = threading.Event()
    threading.Thread(target=let_go, name="let go", daemon=True).start()
    signal.alarm(IDLE_S)
    for request in messages:
        signal.alarm(0)
        with turn:
            respond(databases, request, out)
            waited = count(1)
        signal.alarm(IDLE_S)


def respond(databases: Databases, request: dict[str, Any], out: BinaryIO) -> None:
    """Write the frames of one answer, or an error, to *out*."""

    def report(share: float, doing: str) -> None:
        _write(out, ReplyFrame(PROGRESS, 200, msgspec.json.encode(Progress(share, doing))))

    try:
        answer = msgspec.json.encode(_answer(databases, request, report))
        _write(out, ReplyFrame(ANSWER, 200, answer))
    except RollupMissing:
        _write(out, ReplyFrame(LATER, 200, b""))
    except HttpRefusal as error:
        _reject(out, error.status, str(error))
    except ConfigInvalid as error:
        _reject(out, 400, str(error))
    except TracepaperError as error:
        _reject(out, 409, str(error))
    except Exception as error:  # noqa: BLE001 - the next request must be answered
        reason = " ".join(str(error).split()).rstrip(".")
        sentence = (
            f"This cannot be answered ({type(error).__name__}: {reason}); run `tracepaper audit "
            "verify`, see the log, and ask again."
        )
        is_busy = isinstance(error, sqlite3.OperationalError) and is_busy_error(error)
        frame = refused(503 if is_busy else 409, sentence)
        _write(out, frame if is_busy else frame._replace(trace=traceback.format_exc()))


def _answer(
    databases: Databases, request: dict[str, Any], report: Report
) -> Struct | dict[str, Any]:
    if "news" in request:
        return news.since(databases, request["news"], request["after"])
    if request["path"] == "/openapi.json":
        return openapi()
    databases.status, databases.verified = request.get("status"), request.get("verified")
    call = match(request["path"], request["query"])
    return call.respond(databases, report)


def _reject(out: BinaryIO, status: int, sentence: str) -> None:
    _write(out, refused(status, " ".join(sentence.split())))


def _write(out: BinaryIO, frame: ReplyFrame) -> None:
    out.write(frame_of(frame))


if __name__ == "__main__":
    main()
