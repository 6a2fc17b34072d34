"""Every fault does what it says, counts only what it hit, and leaves REST true."""

from __future__ import annotations

import json
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSServerHandshakeError
from builders import instrument
from exchange_client import MINUTE, Client, Message, StreamClient, candles, serving, walk_rows

from tracepaper.daemon.bybit.wire import ClosedCandles, Wire
from tracepaper.replay.exchange.fault_kinds import FAULTS
from tracepaper.replay.exchange.faults import FaultPlan, fault_from, read_plan
from tracepaper.replay.exchange.server import EmbeddedExchange
from tracepaper.strategies.errors import ConfigInvalid, MessageMalformed
from tracepaper.strategies.types.market import EXCHANGE_CATEGORIES, Bar, Category

# ------------------------------------------------------------ schedule


def test_each_round_deals_every_kind_once_in_another_order() -> None:
    rounds = list(islice(FaultPlan(seed=3, every_s=2.0).scheduled(), 3 * len(FAULTS)))
    orders = [
        [timed.fault.kind for timed in rounds[at : at + len(FAULTS)]]
        for at in range(0, len(rounds), len(FAULTS))
    ]
    assert all(sorted(order) == sorted(FAULTS) for order in orders)
    assert orders[0] != orders[1]
    assert all(1.0 <= timed.wait_s <= 3.0 for timed in rounds)


def test_one_seed_gives_one_schedule() -> None:
    first, again, other = (
        list(islice(FaultPlan(seed=seed, every_s=1.0).scheduled(), 20)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_the_schedule_draws_every_form() -> None:
    scheduled = islice(FaultPlan(every_s=1).scheduled(), 8 * len(FAULTS))
    drawn = {(timed.fault.kind, timed.fault.form) for timed in scheduled}
    assert drawn == {(name, form) for name, kind in FAULTS.items() for form in kind.forms}


def test_a_file_lists_faults_by_time(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(
        "seed = 4\nevery_s = 2.5\nkinds = ['stall']\n"
        "[[faults]]\nafter_s = 5\nkind = 'stall'\nseconds = 3\n"
        "[[faults]]\nafter_s = 1.5\nkind = 'delivery'\ntopic = 'kline.'\n"
    )
    plan = read_plan(path)
    assert (plan.seed, plan.every_s, plan.kinds) == (4, 2.5, ("stall",))
    assert [(timed.wait_s, timed.fault.kind) for timed in plan.listed()] == [
        (1.5, "delivery"),
        (3.5, "stall"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "sed = 1",
        "every_s = -1",
        "kinds = ['boom']",
        "[[faults]]\nafter_s = 1",
        "[[faults]]\nkind = 'delivery'\nafter_s = 'soon'",
    ],
)
def test_a_wrong_plan_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match=r"give .*\.$"):
        read_plan(path)


ROWS = walk_rows(60, seed=8)
START = 10
KLINE = "kline.1.BTCUSDT"


# ---------------------------------------------------------------- every form


TOPICS = (KLINE, "orderbook.1.BTCUSDT", "tickers.BTCUSDT", "publicTrade.BTCUSDT")
CALLS = ("time", "kline?interval=1&limit=4", "funding/history?limit=4")


async def exchanged(**fault: Any) -> tuple[list[str], list[list[tuple[int, str]]]]:
    """Return the texts of three minutes of every topic, and the answers to ``CALLS``, asked twice.

    With *fault*, it is armed before the first frame and call, and must hit once.
    """
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe(*TOPICS)
        await stream.drain()
        if fault:
            exchange.arm(**fault)
        rounds: list[list[tuple[int, str]]] = []
        for _ in range(2):
            rounds.append([])
            for call in CALLS:
                path, _, query = call.partition("?")
                url = f"{exchange.rest_url}/v5/market/{path}?category=linear&symbol=BTCUSDT&{query}"
                async with client.session.get(url, allow_redirects=False) as response:
                    rounds[-1].append((response.status, await response.text()))
        await exchange.advance(3 * MINUTE)
        await stream.ask("ping")
        if fault:
            tally = exchange.faults.tally(str(fault["kind"]))
            assert (tally.scheduled, tally.fired, len(tally.times)) == (1, 1, 1)
        return stream.texts, rounds


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        (kind, form)
        for kind, of in FAULTS.items()
        for form in of.forms
        if of.stage not in {"connection", "handshake"}
    ],
)
async def test_a_form_changes_the_stream_or_one_answer_once_and_what_follows_is_true(
    kind: str, form: str
) -> None:
    plain, disturbed = await exchanged(), await exchanged(kind=kind, form=form, seconds=0.01)
    (texts, (first, second)), (others, (changed, again)) = plain, disturbed
    assert again == second
    assert others[-20:] == texts[-20:]
    is_of_rest = FAULTS[kind].stage in {"answer", "body", "time", "rows"}
    assert (others == texts) is is_of_rest
    assert sum(one != other for one, other in zip(first, changed, strict=True)) == is_of_rest


def confirmed(frames: list[Message]) -> list[Message]:
    return [each for frame in frames for each in frame["data"] if each["confirm"]]


@pytest.mark.parametrize("category", EXCHANGE_CATEGORIES)
async def test_a_late_close_is_late_and_true(category: Category) -> None:
    data = candles(ROWS, category=category)
    async with serving(data, start=START) as (exchange, client):
        async with client.stream(category.value) as stream:
            await stream.subscribe(KLINE)
            exchange.arm("wrong_close", form="late", ms=12_000)
            await exchange.advance(3 * MINUTE)
            done = confirmed(await stream.drain())
        lateness = [each["timestamp"] - each["end"] - 1 for each in done]
        assert [late > 12_000 for late in lateness] == [True, False, False]
        result = await client.result(
            "kline", category=category.value, symbol="BTCUSDT", interval="1", limit=4
        )
        assert [row[4] for row in result["list"][:0:-1]] == [each["close"] for each in done]


async def test_a_stall_stops_data_while_pongs_go_on_and_spares_new_connections() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        async with client.stream() as stalled:
            await stalled.subscribe(KLINE)
            await stalled.drain()
            exchange.arm("stall", seconds=600)
            await exchange.advance(2 * MINUTE)
            assert (await stalled.ask("ping"))["ret_msg"] == "pong"
            assert await stalled.drain() == []
            async with client.stream() as fresh:
                await fresh.subscribe(KLINE)
                await exchange.advance(2 * MINUTE)
                assert len(confirmed(await fresh.drain())) == 2
                assert await stalled.drain() == []
        assert exchange.faults.tally("stall").fired == 1


async def subscribed(stream: StreamClient) -> None:
    await stream.subscribe(KLINE)
    await stream.drain()


async def test_a_disconnect_cuts_every_stream_at_once() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        async with client.stream() as stream_client, client.stream() as other:
            await subscribed(stream_client)
            await subscribed(other)
            exchange.arm("disconnect")
            await stream_client.until_cut()
            await other.until_cut()
        assert exchange.faults.tally("disconnect").fired == 1
        async with client.stream() as again:
            await subscribed(again)


async def refused(client: Client) -> bool:
    try:
        async with client.stream():
            return False
    except WSServerHandshakeError:
        return True


async def test_refuse_cuts_the_stream_and_turns_the_next_connections_away() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        async with client.stream() as stream:
            await subscribed(stream)
            exchange.arm("refuse", count=2)
            await stream.until_cut()
        assert [await refused(client) for _ in range(3)] == [True, True, False]
        assert exchange.faults.tally("refuse").fired == 2


async def test_rest_faults_answer_10006_and_an_html_403() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        exchange.arm("retcode", code=10006)
        assert (await client.get("time"))["retCode"] == 10006
        exchange.arm("http_status", status=403)
        async with client.session.get(exchange.rest_url + "/v5/market/time") as response:
            assert response.status == 403
            assert response.content_type == "text/html"
            assert "access too frequent" in await response.text()
        assert (await client.get("time"))["retCode"] == 0


# ---------------------------------------------------------------- what cannot be true


def reader(*, ahead_ms: int = 2_000) -> tuple[Wire, list[int]]:
    """Return the daemon's own reader, which believes dates up to a market time set by the test."""
    now = [0]
    wire = Wire(
        category=Category.LINEAR,
        instruments=[instrument(price_decimals=1, quantity_decimals=3)],
        interval_ms=MINUTE,
        observe=lambda server_ms: server_ms <= now[0] + ahead_ms,
    )
    return wire, now


def read(wire: Wire, texts: list[str]) -> list[Bar]:
    """Return the bars that *wire* believes of *texts*."""
    bars: list[Bar] = []
    for text in texts:
        try:
            received = wire.receive(text.encode())
        except MessageMalformed:
            continue
        bars += received.bars if isinstance(received, ClosedCandles) else []
    return bars


FALSIFIED = {
    "early.kline": {"kind": "early_confirm"},
    "off_grid.kline": {"kind": "wrong_close", "form": "off_grid"},
    "double.kline": {"kind": "wrong_close", "form": "double"},
    "ahead.kline": {"kind": "ahead"},
    "ahead.orderbook": {"kind": "ahead", "topic": "orderbook."},
    "ahead.tickers": {"kind": "ahead", "topic": "tickers."},
    "ahead.publicTrade": {"kind": "ahead", "topic": "publicTrade."},
    "crossed.orderbook": {"kind": "wrong_frame", "form": "crossed"},
    "untraded.kline": {"kind": "wrong_close", "form": "hollow"},
    "untraded.kline by turnover": {"kind": "wrong_close", "form": "turnover"},
}


@pytest.mark.parametrize("refusal", FALSIFIED)
async def test_what_it_falsifies_is_what_the_reader_of_the_daemon_refuses(refusal: str) -> None:
    fault = FALSIFIED[refusal]
    wire, now = reader()
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe(*TOPICS)
        now[0] = exchange.clock.now_ms()
        read(wire, [json.dumps(frame) for frame in await stream.drain()])
        assert not wire.counters
        exchange.arm(**fault)
        bars = []
        for _ in range(36):
            await exchange.advance(5_000)
            now[0] = exchange.clock.now_ms()
            bars += read(wire, [json.dumps(frame) for frame in await stream.drain()])
        assert wire.counters == {refusal.partition(" ")[0]: 1}
        assert exchange.faults.tally(fault["kind"]).fired == 1
        result = await client.result("kline", symbol="BTCUSDT", interval="1", limit=4)
        rows = {int(row[0]): row for row in result["list"][1:]}
        assert len(bars) == (2 if fault["kind"] == "wrong_close" else 3)
        assert {bar.open_time_ms for bar in bars} <= set(rows)
        assert all(Decimal(rows[bar.open_time_ms][4]) * 10 == bar.close for bar in bars)


async def test_data_of_another_symbol_stand_in_place_of_a_true_frame() -> None:
    wire, now = reader(ahead_ms=10**9)
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe(*TOPICS)
        await stream.drain()
        now[0] = exchange.clock.now_ms()
        for topic in TOPICS[1:]:
            exchange.arm("wrong_frame", form="foreign", topic=topic)
        exchange.arm("delivery", form="drop", topic="nothing")
        await exchange.advance(MINUTE)
        read(wire, [json.dumps(frame) for frame in await stream.drain()])
        foreign = {kind for kind in wire.counters if kind.startswith("foreign.")}
        assert foreign == {"foreign.orderbook", "foreign.tickers", "foreign.publicTrade"}
        assert exchange.faults.tally("wrong_frame").fired == 3


async def test_a_book_without_bottom_makes_the_daemon_ask_for_another() -> None:
    wire, now = reader(ahead_ms=10**9)
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe(TOPICS[1])
        now[0] = exchange.clock.now_ms()
        read(wire, [json.dumps(frame) for frame in await stream.drain()])
        exchange.arm("wrong_frame", form="deep")
        await exchange.advance(4_000)
        read(wire, [json.dumps(frame) for frame in await stream.drain()][:1])
        assert wire.counters == {"deep.orderbook": 1}
        assert wire.stale_topics == {TOPICS[1]}


async def test_an_armed_fault_that_hits_nothing_has_not_fired() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe("publicTrade.BTCUSDT")
        exchange.arm("wrong_close", form="missing")
        exchange.arm("delivery", form="drop", topic="kline.")
        await exchange.advance(3 * MINUTE)
        for kind in ("wrong_close", "delivery"):
            tally = exchange.faults.tally(kind)
            assert (tally.scheduled, tally.fired) == (1, 0)


@pytest.mark.parametrize(
    "request_body",
    [
        {},
        {"kind": "explode"},
        {"kind": "delivery", "form": "lost"},
        {"kind": "delivery", "speed": 3},
        {"kind": "delivery", "count": "2"},
        {"kind": "delivery", "count": 0},
        {"kind": "delivery", "form": "delay", "ms": -1},
        {"kind": "http_status", "status": 600},
        {"kind": "http_status", "status": 99},
        {"kind": "retcode", "code": "10001"},
    ],
)
def test_a_request_that_is_no_fault_is_refused(request_body: Message) -> None:
    with pytest.raises(ConfigInvalid):
        fault_from(request_body)


async def test_an_armed_provoking_fault_cuts_the_stream_so_that_the_client_asks() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        async with client.stream() as stream:
            await subscribed(stream)
            exchange.arm("retcode", code=10006, provoke=True)
            await stream.until_cut()
        assert isinstance(exchange, EmbeddedExchange)
        assert (await client.get("time"))["retCode"] == 10006
