"""Frames, pages and bodies that cannot be true, made out of true ones. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from tracepaper.replay.exchange.faults import Fault, FaultKind
from tracepaper.replay.exchange.series import bucket_end
from tracepaper.strategies.market import WEEK_MS

STRANGER: Final = "OTHERUSDT"
FACTOR: Final = 1_000
"""How many times the true one an implausible close is."""
FOREIGN_PRICE: Final = "0.5"
PRICES: Final = ("open", "close", "high", "low", "p", "markPrice", "lastPrice")
YEAR_MS: Final = 52 * WEEK_MS
DEEP_LEVELS: Final = 1_500
CLOSE_COLUMN: Final = 4
HIGH_COLUMN: Final = 2

encode: Final = msgspec.json.encode
Message = dict[str, Any]
Row = list[str]


def malformed(body: bytes, turn: int) -> bytes:
    """Return a frame's *body* broken in one of four ways, each in its turn."""
    topic = msgspec.json.encode({"topic": msgspec.json.decode(body).get("topic")})
    broken = (
        body[: len(body) // 2],  # cut short
        topic[:-1] + b',"data":null}',  # no data where a list or an object belongs
        body.replace(b'":"', b'":"x'),  # words where numbers belong
        b"[]",  # JSON, but no object
    )
    return broken[turn % len(broken)]


def malformed_body(body: bytes, turn: int) -> bytes:
    """Return a REST *body* broken in one of five ways, each in its turn."""
    whole = msgspec.json.decode(body)
    broken = (
        body[: len(body) // 2],
        encode({**whole, "result": None}),
        encode({**whole, "retCode": "OK"}),
        b"<html><body>Bad gateway</body></html>",
        b"",
    )
    return broken[turn % len(broken)]


def forged(body: bytes, kind: FaultKind, ahead_ms: int) -> bytes:
    """Return what is sent before, or in place of, the true frame *body* under *kind*."""
    frame: Message = msgspec.json.decode(body)
    match kind:
        case FaultKind.FOREIGN_FRAME:
            _rename(frame)
        case FaultKind.CROSSED_BOOK:
            _cross(frame)
        case FaultKind.DEEP_BOOK:
            _deepen(frame)
        case _:
            _date_ahead(frame, ahead_ms)
    return encode(frame)


def _rename(frame: Message) -> None:
    """Let the data of *frame* name another symbol than its topic."""
    data = frame["data"]
    for item in data if isinstance(data, list) else [data]:
        for name in ("s", "symbol"):
            if name in item:
                item[name] = STRANGER


def _cross(frame: Message) -> None:
    """Swap the sides of a book and make it whole."""
    data = frame["data"]
    data["b"], data["a"] = (data["a"] or [["2", "1"]]), (data["b"] or [["1", "1"]])
    frame["type"] = "snapshot"


def _deepen(frame: Message) -> None:
    """Make a delta of more bids than any book has."""
    frame["data"]["b"] = [[str(price), "1"] for price in range(1, DEEP_LEVELS + 1)]
    frame["data"]["a"] = []
    frame["type"] = "delta"


def _date_ahead(frame: Message, ahead_ms: int) -> None:
    """Date *frame* and all that it holds ahead; its prices are doubled, its candles closed."""
    frame["ts"] += ahead_ms
    if "cts" in frame:
        frame["cts"] += ahead_ms
    data = frame["data"]
    for item in data if isinstance(data, list) else [data]:
        if "start" in item:
            interval = item["interval"]
            length_ms = item["end"] + 1 - item["start"]
            item["start"] += ahead_ms - ahead_ms % length_ms
            item["end"] = bucket_end(item["start"], interval) - 1
            frame["ts"] = max(frame["ts"], item["end"] + 1)
            item["confirm"] = True
        if "T" in item:
            item["T"] += ahead_ms
        for name in PRICES:
            if item.get(name):
                item[name] = times(item[name], 2)
        for side in ("b", "a"):
            if side in item:
                item[side] = [[times(price, 2), size] for price, size in item[side]]


def times(text: str, factor: int) -> str:
    """Return the decimal *text* times *factor*, exactly, with as many decimals."""
    whole, dot, decimals = text.partition(".")
    if not dot:
        return str(int(whole) * factor)
    places = len(decimals)
    digits = str(int(whole + decimals) * factor).rjust(places + 1, "0")
    return f"{digits[:-places]}.{digits[-places:]}"


def _empty(_: list[Row], __: Message, ___: Fault) -> list[Row]:
    return []


def _short(rows: list[Row], _: Message, __: Fault) -> list[Row]:
    """Return the older half of *rows*, which stand newest first."""
    return rows[(len(rows) + 1) // 2 :]


def _foreign(rows: list[Row], result: Message, _: Fault) -> list[Row]:
    """Return *rows* at another symbol's price, and let the page say so."""
    result["symbol"] = STRANGER
    return [[row[0], *(FOREIGN_PRICE for _ in row[1:5]), *row[5:]] for row in rows]


def _elsewhere(rows: list[Row], _: Message, __: Fault) -> list[Row]:
    """Return *rows* as if they had opened a year before."""
    return [[str(int(row[0]) - YEAR_MS), *row[1:]] for row in rows]


def _off_grid(rows: list[Row], _: Message, fault: Fault) -> list[Row]:
    return [[str(int(row[0]) + fault.delay_ms), *row[1:]] for row in rows]


def _implausible(rows: list[Row], _: Message, __: Fault) -> list[Row]:
    """Return *rows* with the newest close times ``FACTOR``, its high with it."""
    newest = list(rows[0])
    newest[CLOSE_COLUMN] = newest[HIGH_COLUMN] = times(newest[CLOSE_COLUMN], FACTOR)
    return [newest, *rows[1:]]


_BENDING: Final[dict[FaultKind, Callable[[list[Row], Message, Fault], list[Row]]]] = {
    FaultKind.EMPTY_PAGE: _empty,
    FaultKind.SHORT_PAGE: _short,
    FaultKind.FOREIGN_PAGE: _foreign,
    FaultKind.FOREIGN_WINDOW: _elsewhere,
    FaultKind.OFF_GRID_PAGE: _off_grid,
    FaultKind.IMPLAUSIBLE_PAGE: _implausible,
}


def bent(result: Message, fault: Fault) -> Message:
    """Return a page of candles as *fault* bends it; *result* stays as it is."""
    page = dict(result)
    page["list"] = _BENDING[fault.kind](page["list"], page, fault)
    return page
