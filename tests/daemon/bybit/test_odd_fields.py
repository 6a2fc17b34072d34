"""Every field of every answer and frame in other forms: read or refused, never an end."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import product
from typing import Any

import pytest
from aiohttp import web
from builders import instrument
from bybit_server import (
    FILTERS,
    MINUTE,
    START_MS,
    ScriptedServer,
    SteppedClock,
    book,
    exchange_section,
    kline,
    ticker,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_values import FORMS, odd, places, put, unstorable

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.daemon.bybit.wire import ClosedCandles, Wire
from tracepaper.strategies.errors import MessageMalformed
from tracepaper.strategies.types.market import Category

BITCOIN = instrument(price_decimals=1, tick_size=1)
HOUR = 3_600_000
NOW_MS = START_MS + HOUR

ROWS = [
    [str(START_MS + index * MINUTE), "100.5", "101.0", "99.5", "100.0", "1.5", "150.75"]
    for index in reversed(range(3))
]
SETTLED = {"symbol": "BTCUSDT", "fundingRate": "0.0001", "fundingRateTimestamp": str(START_MS)}
TIER = {
    "symbol": "BTCUSDT",
    "riskLimitValue": "2000000",
    "maintenanceMargin": "0.005",
    "initialMargin": "0.01",
    "maxLeverage": "100.00",
    "mmDeduction": "",
    "isLowestRisk": 1,
}
TICKER = {
    "symbol": "BTCUSDT",
    "lastPrice": "100.5",
    "markPrice": "100.4",
    "fundingRate": "0.0001",
    "nextFundingTime": str(START_MS + 8 * HOUR),
}


def page(*rows: Any) -> dict[str, Any]:
    return {"category": "linear", "symbol": "BTCUSDT", "nextPageCursor": "", "list": [*rows]}


def answer(result: dict[str, Any]) -> dict[str, Any]:
    return {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": NOW_MS}


CALLS: dict[str, tuple[Callable[[BybitClient], Awaitable[Any]], dict[str, Any]]] = {
    "time": (
        lambda rest: rest.server_time_ms(),
        answer({"timeSecond": str(NOW_MS // 1_000), "timeNano": f"{NOW_MS}000000"}),
    ),
    "kline": (
        lambda rest: rest.candles(BITCOIN, MINUTE, START_MS, START_MS + 2 * MINUTE),
        answer(page(*ROWS)),
    ),
    "instruments-info": (
        lambda rest: rest.instrument(Category.LINEAR, "BTCUSDT"),
        answer(page({**FILTERS, "leverageFilter": {"maxLeverage": "100.00"}})),
    ),
    "risk-limit": (lambda rest: rest.risk_tiers(BITCOIN), answer(page(TIER))),
    "funding/history": (
        lambda rest: rest.funding(BITCOIN, START_MS, START_MS + 8 * HOUR),
        answer(page(SETTLED)),
    ),
    "tickers": (lambda rest: rest.last_price(BITCOIN), answer(page(TICKER))),
}


async def answered(name: str, odd_bodies: list[bytes]) -> None:
    """Ask *name* once for each of *odd_bodies*; after each the exchange answers as it should."""
    call, document = CALLS[name]
    clock = SteppedClock(NOW_MS)
    async with (
        ScriptedServer() as server,
        BybitClient(
            exchange_section(rest_url=server.rest_url), clock=clock, rng=random.Random(1)
        ) as rest,
    ):
        rest.prove()
        good = put(document, ("retMsg",), '"OK"')
        server.answer_next(name, web.Response(body=good))
        expected = await clock.finish(call(rest))
        assert expected
        for body in odd_bodies:
            server.answer_next(name, *(web.Response(body=one) for one in (body, good)))
            found = await clock.finish(call(rest))
            is_read = bool(server.answers[name])
            server.answers[name].clear()
            assert is_read or found == expected, body
            assert not unstorable(found), body


@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=12)
@given(data=st.data())
async def test_any_value_of_an_answer_in_any_form_is_read_or_asked_again(
    name: str, data: st.DataObject
) -> None:
    bodies = data.draw(st.lists(odd(CALLS[name][1]), min_size=1, max_size=40))
    await answered(name, bodies)


FRAMES = {
    "kline": kline(START_MS),
    "book": book(NOW_MS),
    "ticker": ticker(NOW_MS, next_funding_ms=NOW_MS + HOUR),
    "trades": {
        "topic": "publicTrade.BTCUSDT",
        "type": "snapshot",
        "ts": NOW_MS,
        "data": [{"T": NOW_MS, "s": "BTCUSDT", "S": "Buy", "v": "1", "p": "100.5", "i": "a"}],
    },
    "acknowledgement": {"success": True, "ret_msg": "", "req_id": "linear-1", "op": "subscribe"},
}


@pytest.mark.parametrize("name", FRAMES)
def test_any_value_of_a_frame_in_any_form_is_read_or_refused(name: str) -> None:
    for at, form in product(places(FRAMES[name]), FORMS):
        frame = put(FRAMES[name], at, form)
        wire = Wire(category=Category.LINEAR, instruments=[BITCOIN], interval_ms=MINUTE)
        try:
            received = wire.receive(frame)
        except MessageMalformed:
            assert sum(wire.counters.values()) == 1
        else:
            assert not unstorable(received), frame


@given(data=st.data())
def test_a_connection_reads_on_whatever_forms_its_frames_have(data: st.DataObject) -> None:
    wire = Wire(
        category=Category.LINEAR,
        instruments=[BITCOIN],
        interval_ms=MINUTE,
        observe=lambda server_ms: server_ms <= NOW_MS,
    )
    for frame in data.draw(st.lists(st.one_of(*map(odd, FRAMES.values())), max_size=20)):
        with suppress(MessageMalformed):
            assert not unstorable(wire.receive(frame)), frame
    received = wire.receive(put(FRAMES["kline"], ("type",), '"snapshot"'))
    assert isinstance(received, ClosedCandles)
    assert len(received.bars) == 1
