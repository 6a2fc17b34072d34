"""Faults whose prices, rates and candles look plausible.

They stand behind those of ``fault_kinds`` in the order of the schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Final

import msgspec

from tracepaper.replay.exchange.fault_kinds import (
    FACTOR,
    FAULTS,
    CloseFault,
    CloseOutcome,
    ClosingCandle,
    FaultKind,
    FrameFault,
    FrameOutcome,
    Hit,
    Message,
    encode,
)

__all__ = ["FAULTS", "FUNDING_PATH", "SettlementFault"]

FUNDING_PATH: Final = "/v5/market/funding/history"
ABSURD_RATE: Final = "0.25"
ANNOUNCED_RATE: Final = "-0.4"
"""Another one: two lies that agree by chance would be believed, as they should be."""
FALSE_MARK: Final = Decimal("1.26")
FALSE_BOOK: Final = Decimal("0.67")
TICKERS: Final = "tickers."


class SettlementFault(FaultKind):
    """Acts on an answer of settlements that is not empty: (rows, hit) -> rows, newest first."""


def _in_ticker(body: bytes, changed: Callable[[Message], Message]) -> FrameOutcome:
    """Return the ticker frame *body* with what *changed* makes of its data."""
    frame: Message = msgspec.json.decode(body)
    frame["data"] = frame["data"] | changed(frame["data"])
    return FrameOutcome((encode(frame),))


def _moved(text: str, factor: Decimal) -> str:
    """Return the price *text* times *factor*, with one decimal less: texts are finer than ticks."""
    price = Decimal(text)
    coarser = price.scaleb(1) if price.as_tuple().exponent else price
    return f"{(price * factor).quantize(coarser):f}"


def _mark_of(data: Message) -> str:
    """Return the mark price of a ticker, or one of its other prices where a delta lacks it."""
    names = ("markPrice", "indexPrice", "lastPrice", "ask1Price", "bid1Price")
    return next((data[name] for name in names if data.get(name)), "1000000")


@FrameFault.declare("false_mark", "the mark price of one ticker is 26 % too high", aim=TICKERS)
def _false_mark(body: bytes, _hit: Hit) -> FrameOutcome:
    return _in_ticker(body, lambda data: {"markPrice": _moved(_mark_of(data), FALSE_MARK)})


@FrameFault.declare("mark_of_one", "the mark price of one ticker is 1", aim=TICKERS)
def _mark_of_one(body: bytes, _hit: Hit) -> FrameOutcome:
    return _in_ticker(body, lambda _data: {"markPrice": "1"})


@FrameFault.declare(
    "false_ticker", "all prices of one ticker are 26 % too high, its mark too", aim=TICKERS
)
def _false_ticker(body: bytes, _hit: Hit) -> FrameOutcome:
    names = ("markPrice", "indexPrice", "lastPrice", "bid1Price", "ask1Price")

    def changed(data: Message) -> Message:
        prices = {"markPrice": _mark_of(data)} | {key: data[key] for key in names if data.get(key)}
        return {name: _moved(price, FALSE_MARK) for name, price in prices.items()}

    return _in_ticker(body, changed)


@FrameFault.declare(
    "absurd_rate", "the funding rate that one ticker announces is -40 %", aim=TICKERS
)
def _absurd_rate(body: bytes, _hit: Hit) -> FrameOutcome:
    return _in_ticker(body, lambda _data: {"fundingRate": ANNOUNCED_RATE})


@FrameFault.declare(
    "false_book", "one book of the best level stands a third too low", aim="orderbook.1."
)
def _false_book(body: bytes, _hit: Hit) -> FrameOutcome:
    frame: Message = msgspec.json.decode(body)
    for side in ("b", "a"):
        levels = frame["data"][side]
        frame["data"][side] = [[_moved(price, FALSE_BOOK), size] for price, size in levels]
    return FrameOutcome((encode(frame),))


@SettlementFault.declare(
    "absurd_settlement", "the newest settlement of one answer has a rate of 25 %"
)
def _absurd_settlement(rows: list[dict[str, str]], _hit: Hit) -> list[dict[str, str]]:
    return [rows[0] | {"fundingRate": ABSURD_RATE}, *rows[1:]]


@CloseFault.declare("hollow_close", "one closed candle is sent with a range and a volume of 0")
def _hollow_close(closing: ClosingCandle, _hit: Hit) -> CloseOutcome:
    candle = closing.candle
    hollow = candle._replace(high=candle.high + closing.tick, volume=0, turnover=0)
    return CloseOutcome((closing.write(hollow),))


@CloseFault.declare(
    "absurd_turnover", "one closed candle is sent with 1,000 times its turnover and more"
)
def _absurd_turnover(closing: ClosingCandle, _hit: Hit) -> CloseOutcome:
    whole = int(closing.element["turnover"].partition(".")[0]) + 1
    return CloseOutcome((closing.element | {"turnover": str(FACTOR * whole)},))
