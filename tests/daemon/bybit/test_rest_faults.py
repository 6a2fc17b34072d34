"""Every REST call is retried after any faulty status, retCode or body, until it succeeds."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from builders import instrument
from bybit_server import FILTERS, MINUTE, START_MS, ScriptedServer, SteppedClock, exchange_section
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_values import odd, put, unstorable
from structlog.testing import capture_logs

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import Category

BITCOIN = instrument(price_decimals=1, tick_size=1)
HOUR = 3_600_000
NOW_MS = START_MS + HOUR
ROW = [str(START_MS), "100.5", "100.5", "100.5", "100.5", "1.5", "150.75"]
SETTLED = {"symbol": "BTCUSDT", "fundingRate": "0.0001", "fundingRateTimestamp": str(START_MS)}

STATUSES = (
    *(200, 201, 202, 203, 204, 205, 206, 207, 226),
    *(300, 301, 302, 303, 304, 305, 307, 308),
    *(400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417),
    *(418, 421, 422, 423, 424, 425, 426, 428, 429, 431, 451, 499),
    *(500, 501, 502, 503, 504, 505, 507, 508, 510, 511, 520, 521, 524, 599),
    *(600, 700, 999),
)
CODES = (1, -1, 10000, 10001, 10002, 10006, 10009, 10016, 10017, 10018, 10024, 10029, 99999, 2**70)

BODIES: dict[str, bytes] = {
    "empty": b"",
    "HTML": b"<html><body>maintenance</body></html>",
    "null": b"null",
    "a list": b"[]",
    "cut off": b'{"retCode":0,"result":{"list":[["17',
    "deep": b"[" * 100_000,
    "no UTF-8": b'{"retCode":0,"retMsg":"\xff\xfe","result":{},"time":1}',
    "code as text": b'{"retCode":"0","result":{},"time":1700000040000}',
    "time missing": b'{"retCode":0,"result":{}}',
    "result null": b'{"retCode":0,"result":null,"time":1700000040000}',
    "result a list": b'{"retCode":0,"result":[],"time":1700000040000}',
}
TIMES: tuple[Any, ...] = (
    *(0, -1, 1, 2**31, 2**62, 2**63, 2**70, -(2**62), 10**40),
    *(1_262_303_999_999, 4_102_444_800_000, "1700000040000", 1.5e12, None, True, [], {}),
)


def pages(rows: Any, **changes: Any) -> dict[str, Any]:
    return {"category": "linear", "symbol": "BTCUSDT", "list": rows} | changes


def row(open_ms: int, **_: Any) -> list[str]:
    return [str(open_ms), *ROW[1:]]


def filters(**changes: Any) -> list[dict[str, Any]]:
    return [{**FILTERS, **changes}]


Call = Callable[[BybitClient], Awaitable[object]]

CALLS: dict[str, tuple[str, Call, dict[str, Any]]] = {
    "time": (
        "time",
        lambda rest: rest.server_time_ms(),
        {"numbers for text": {"timeSecond": 1, "timeNano": 2}, "nothing": {}},
    ),
    "klines": (
        "kline",
        lambda rest: rest.candles(BITCOIN, MINUTE, START_MS, START_MS + 2 * MINUTE),
        {
            "another symbol": pages([ROW], symbol="ETHUSDT"),
            "no symbol": {"category": "linear", "list": [ROW]},
            "another category": pages([ROW], category="spot"),
            "no category": {"symbol": "BTCUSDT", "list": [ROW]},
            "off the grid": pages([row(START_MS + 1)]),
            "too new": pages([row(START_MS + 3 * MINUTE)]),
            "a newest page": pages([row(NOW_MS), row(NOW_MS - MINUTE)]),
            "oldest first": pages([row(START_MS), row(START_MS + MINUTE)]),
            "one row twice": pages([ROW, ROW]),
            "a negative time": pages([row(-MINUTE)]),
            "a time of words": pages([["yesterday", *ROW[1:]]]),
            "null rows": pages(None),
            "no rows": {"category": "linear", "symbol": "BTCUSDT"},
        },
    ),
    "instrument": (
        "instruments-info",
        lambda rest: rest.instrument(Category.LINEAR, "BTCUSDT"),
        {
            "none": pages([]),
            "another symbol": pages(filters(symbol="ETHUSDT")),
            "another category": pages(filters(), category="spot"),
            "no category": {"list": filters()},
            "no tick": pages(filters(priceFilter={})),
            "a tick of zero": pages(filters(priceFilter={"tickSize": "0"})),
            "a negative tick": pages(filters(priceFilter={"tickSize": "-0.1"})),
            "endless decimals": pages(filters(priceFilter={"tickSize": f"0.{'0' * 50}1"})),
            "a giant funding interval": pages(filters(fundingInterval=2**62)),
            "a negative one": pages(filters(fundingInterval=-480)),
            "null": pages(None),
        },
    ),
    "instruments": (
        "instruments-info",
        lambda rest: rest.instruments(Category.LINEAR, "BTCUSDT"),
        {
            "another symbol": pages(filters(symbol="ETHUSDT")),
            "another category": pages(filters(), category="spot"),
            "unreadable": pages([{"symbol": "BTCUSDT"}]),
        },
    ),
    "funding": (
        "funding/history",
        lambda rest: rest.funding(BITCOIN, START_MS, START_MS + 8 * HOUR),
        {
            "another symbol": pages([{**SETTLED, "symbol": "ETHUSDT"}]),
            "another category": pages([SETTLED], category="inverse"),
            "too early": pages([{**SETTLED, "fundingRateTimestamp": str(START_MS - 1)}]),
            "too late": pages([{**SETTLED, "fundingRateTimestamp": str(START_MS + 9 * HOUR)}]),
            "a giant time": pages([{**SETTLED, "fundingRateTimestamp": "9" * 30}]),
            "no number": pages([SETTLED, {**SETTLED, "fundingRate": "NaN"}]),
            "null": pages(None),
        },
    ),
    "all tickers": (
        "tickers",
        lambda rest: rest.listed(Category.LINEAR),
        {
            "another category": pages([{"symbol": "BTCUSDT"}], category="spot"),
            "no category": {"list": [{"symbol": "BTCUSDT"}]},
            "null": pages(None),
        },
    ),
}


@asynccontextmanager
async def asking(
    server: ScriptedServer, clock: SteppedClock, *, is_proven: bool, is_dated_by_server: bool = True
) -> AsyncIterator[BybitClient]:
    settings = exchange_section(rest_url=server.rest_url, ban_cooldown_s=1)
    async with BybitClient(
        settings,
        clock=clock,
        rng=random.Random(1),
        is_proven=is_proven,
        latest_ms=None if is_dated_by_server else clock.market_ms,
    ) as rest:
        yield rest


def serving() -> ScriptedServer:
    server = ScriptedServer()
    for index in range(3):
        server.add_candle(START_MS + index * MINUTE)
    server.funding = [(START_MS, "0.0001")]
    server.server_ms = NOW_MS
    return server


def bad_answers(server: ScriptedServer, wrong: dict[str, Any]) -> dict[str, web.Response]:
    """Return every answer that a call must reject."""
    good = {"retCode": 0, "retMsg": "OK", "result": {}, "time": NOW_MS}
    answers = {
        f"HTTP {status}": web.Response(
            status=status, body=b"" if status in {204, 304} else json.dumps(good).encode()
        )
        for status in STATUSES
        if status != 200
    }
    answers |= {f"body {name}": web.Response(body=body) for name, body in BODIES.items()}
    answers |= {f"retCode {code}": server.reply({}, code=code, message="no") for code in CODES}
    for time in TIMES:
        body = json.dumps({**good, "time": time}).encode()
        answers[f"time {time!r}"] = web.Response(body=body)
    answers |= {f"result {name}": server.reply(result) for name, result in wrong.items()}
    answers["a redirect"] = web.Response(status=302, headers={"Location": "/v5/market/other"})
    answers["a redirect to nowhere"] = web.Response(status=307, headers={"Location": "x://[::"})
    answers["broken gzip"] = web.Response(body=b"no gzip", headers={"Content-Encoding": "gzip"})
    return answers


@pytest.mark.parametrize("name", CALLS)
async def test_whatever_a_call_is_answered_it_is_asked_again_and_never_ends_a_proven_run(
    name: str,
) -> None:
    path, call, wrong = CALLS[name]
    clock = SteppedClock(NOW_MS)
    async with serving() as server, asking(server, clock, is_proven=True) as rest:
        expected = await call(rest)
        assert expected
        with capture_logs() as lines:
            begun_s = clock.network_s()
            for what, answer in bad_answers(server, wrong).items():
                count = len(server.queries(path))
                server.answer_next(path, answer)
                task = asyncio.ensure_future(call(rest))
                await clock.run(task.done)
                assert await task == expected, what
                assert len(server.queries(path)) == count + 2, what
        retries = [line for line in lines if line["event"] == "retrying"]
        assert (
            sum(line["log_level"] == "warning" for line in retries)
            <= 1 + (clock.network_s() - begun_s) // 60
        )
        assert not server.queries("other")


TIER = {
    "symbol": "BTCUSDT",
    "riskLimitValue": "2000000",
    "maintenanceMargin": "0.005",
    "initialMargin": "0.01",
    "maxLeverage": "100.00",
    "mmDeduction": "",
    "isLowestRisk": 1,
}
GOOD: dict[str, tuple[str, Call, dict[str, Any]]] = {
    **{
        name: (*CALLS[name][:2], result)
        for name, result in {
            "time": {"timeSecond": str(NOW_MS // 1_000), "timeNano": f"{NOW_MS}000000"},
            "klines": pages([row(START_MS + index * MINUTE) for index in reversed(range(3))]),
            "instrument": pages(
                filters(leverageFilter={"maxLeverage": "100.00"}), nextPageCursor=""
            ),
            "funding": pages([SETTLED]),
        }.items()
    },
    "risk tiers": (
        "risk-limit", lambda rest: rest.risk_tiers(BITCOIN), pages([TIER], nextPageCursor="")
    ),
}  # fmt: skip
"""For each call its path, the call itself, and a valid result."""


def document(name: str) -> dict[str, Any]:
    return {"retCode": 0, "retMsg": "OK", "result": GOOD[name][2], "time": NOW_MS}


@pytest.mark.parametrize("name", GOOD)
@settings(max_examples=12)
@given(data=st.data())
async def test_any_value_of_an_answer_in_any_form_is_read_or_asked_again(
    name: str, data: st.DataObject
) -> None:
    path, call, _ = GOOD[name]
    clock, good = SteppedClock(NOW_MS), put(document(name), ("retMsg",), '"OK"')
    async with ScriptedServer() as server, asking(server, clock, is_proven=True) as rest:
        server.answer_next(path, web.Response(body=good))
        expected = await clock.finish(call(rest))
        assert expected
        for body in data.draw(st.lists(odd(document(name)), min_size=1, max_size=40)):
            server.answer_next(path, *(web.Response(body=content) for content in (body, good)))
            answer = await clock.finish(call(rest))
            is_read = bool(server.answers[path])
            server.answers[path].clear()
            assert is_read or answer == expected, body
            assert not unstorable(answer), body


@pytest.mark.parametrize("status", [201, 204, 302, 400, 401, 404, 410, 451])
async def test_before_the_first_success_a_wrong_address_stops_with_advice(status: int) -> None:
    async with serving() as server, asking(server, SteppedClock(), is_proven=False) as rest:
        server.answer_next("time", web.Response(status=status))
        with pytest.raises(ConfigInvalid, match=r"exchange\.rest_url"):
            await rest.server_time_ms()


@pytest.mark.parametrize("status", [302, 404, 451])
async def test_after_the_first_success_a_refusal_of_the_address_is_the_networks(
    status: int,
) -> None:
    clock = SteppedClock()
    async with serving() as server, asking(server, clock, is_proven=False) as rest:
        server.answer_next("risk-limit", web.Response(status=status), server.reply(pages([TIER])))
        await rest.server_time_ms()
        assert await clock.finish(rest.risk_tiers(BITCOIN))
        with pytest.raises(ConfigInvalid, match=r"trades no linear instrument ADAUSDT; correct"):
            await rest.instrument(Category.LINEAR, "ADAUSDT")


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_before_the_first_success_a_busy_server_is_waited_for(status: int) -> None:
    clock = SteppedClock()
    async with serving() as server, asking(server, clock, is_proven=False) as rest:
        server.answer_next("time", web.Response(status=status))
        task = asyncio.ensure_future(rest.server_time_ms())
        await clock.run(task.done)
        assert await task == NOW_MS


async def test_filters_that_cannot_be_read_are_no_mistake_of_the_symbol() -> None:
    clock = SteppedClock()
    async with serving() as server, asking(server, clock, is_proven=False) as rest:
        server.answer_next("instruments-info", server.reply(pages([{"symbol": "BTCUSDT"}])))
        task = asyncio.ensure_future(rest.instrument(Category.LINEAR, "BTCUSDT"))
        await clock.run(task.done)
        assert (await task).symbol == "BTCUSDT"


async def test_a_server_that_dates_itself_ahead_makes_no_open_candle_final() -> None:
    clock = SteppedClock(START_MS + MINUTE + 30_000)
    async with (
        serving() as server,
        asking(server, clock, is_proven=True, is_dated_by_server=False) as rest,
    ):
        server.server_ms = START_MS + 400 * 24 * HOUR
        bars = await rest.candles(BITCOIN, MINUTE, START_MS, START_MS + 2 * MINUTE)
        assert [bar.open_time_ms for bar in bars] == [START_MS]


async def test_what_cannot_have_closed_is_not_asked_for() -> None:
    async with serving() as server, asking(server, SteppedClock(), is_proven=True) as rest:
        bars = await rest.candles(BITCOIN, MINUTE, START_MS, START_MS + 500_000 * MINUTE)
        assert len(bars) == 3
        assert len(server.queries("kline")) == 1
