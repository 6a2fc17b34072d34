"""A connection to a scripted server subscribes, pings, watches for data and reconnects."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
from builders import instrument
from bybit_server import (
    MINUTE,
    START_MS,
    ScriptedServer,
    SteppedClock,
    exchange_section,
    is_equal,
    kline,
)
from waiting import until

from tracepaper.daemon.bybit.websocket import (
    CategoryStream,
    PublicStream,
    StreamCallbacks,
    topics_of,
)
from tracepaper.daemon.bybit.wire import Received, Wire
from tracepaper.daemon.feed.client import Cooldown, MarketData, StreamRequest
from tracepaper.strategies.errors import ConfigInvalid, MessageMalformed, Recoverable
from tracepaper.strategies.types.market import Bar, Category, GapCause, Instrument
from tracepaper.strategies.units import DAY_MS

# ---------------------------------------------------------------- topics


def test_linear_needs_candles_quotes_and_marks() -> None:
    wanted = topics_of(instrument(), StreamRequest((instrument(),), 5 * MINUTE))
    assert wanted == ["kline.5.BTCUSDT", "orderbook.1.BTCUSDT", "tickers.BTCUSDT"]


def test_spot_has_no_mark_to_listen_to_and_trades_show_what_quotes_are_worth() -> None:
    spot = instrument(category=Category.SPOT)
    wanted = topics_of(spot, StreamRequest((spot,), DAY_MS))
    assert wanted == ["kline.D.BTCUSDT", "orderbook.1.BTCUSDT", "publicTrade.BTCUSDT"]


TOPICS = tuple(f"kline.1.S{number}USDT" for number in range(23))


class Listener:
    """Keeps the calls of a stream."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.connected = 0
        self.lost: list[Recoverable] = []
        self._wire = Wire(category=Category.LINEAR, instruments=[instrument()], interval_ms=60_000)

    def receive(self, frame: bytes) -> Received | None:
        self.frames.append(frame)
        try:
            return self._wire.receive(frame)
        except MessageMalformed:
            return None

    def connect(self) -> None:
        self.connected += 1


class Setup:
    """A running stream with its server, clock and listener."""

    def __init__(self, server: ScriptedServer, topics: tuple[str, ...]) -> None:
        self.server = server
        self.clock = SteppedClock()
        self.listener = Listener()
        self.cooldown = Cooldown(clock=self.clock)
        self.exchange = exchange_section(stream_url=server.stream_url)
        self.topics = topics

    def stream(self) -> PublicStream:
        return PublicStream(
            category=Category.LINEAR,
            topics=self.topics,
            exchange=self.exchange,
            handler=StreamCallbacks(
                self.listener.receive, self.listener.connect, self.listener.lost.append
            ),
            clock=self.clock,
            rng=random.Random(1),
            cooldown=self.cooldown,
        )


@asynccontextmanager
async def running(
    server: ScriptedServer, *topics: str, **keys: float
) -> AsyncIterator[tuple[Setup, PublicStream]]:
    setup = Setup(server, topics or ("kline.1.BTCUSDT",))
    setup.exchange = setup.exchange.model_copy(update=keys)
    stream = setup.stream()
    task = asyncio.create_task(stream.run())
    try:
        yield setup, stream
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_topics_are_subscribed_ten_at_a_time_with_their_own_ids() -> None:
    async with ScriptedServer() as server, running(server, *TOPICS) as (_, stream):
        await until(stream.answered.is_set)
        requests = [row for row in server.received if row["op"] == "subscribe"]
        assert [len(request["args"]) for request in requests] == [10, 10, 3]
        assert server.subscribed() == list(TOPICS)
        assert len({request["req_id"] for request in requests}) == 3
        assert stream.is_open


async def test_pings_are_sent_on_their_beat() -> None:
    async with ScriptedServer() as server, running(server) as (setup, stream):
        await until(stream.answered.is_set)
        for beat in (1, 2):
            setup.clock.advance(network_s=20)
            await server.send(kline(START_MS + beat * MINUTE))
            await until(is_equal(server.pings, beat))
        assert not setup.listener.lost
        assert setup.listener.connected == 1


async def test_reconnecting_never_ends_and_waits_no_longer_than_its_ceiling() -> None:
    async with (
        ScriptedServer() as server,
        running(server, backoff_max_s=3, data_watchdog_s=1e9) as (setup, stream),
    ):
        await until(stream.answered.is_set)
        for drop in range(2, 12):
            await server.drop()
            began_s = setup.clock.network_s()
            await setup.clock.run(is_equal(lambda: server.connections, drop))
            assert setup.clock.network_s() - began_s <= 3.5


async def test_a_refused_topic_does_not_cost_its_neighbours() -> None:
    async with ScriptedServer() as server:
        server.refused_topics = {"kline.1.S3USDT"}
        async with running(server, *TOPICS[:10]) as (setup, stream):
            await until(stream.answered.is_set)
            assert stream.refused == {"kline.1.S3USDT"}
            alone = [row["args"] for row in server.received if len(row["args"]) == 1]
            assert sorted(topic for (topic,) in alone) == sorted(TOPICS[:10])
            server.refused_topics.clear()
            await setup.clock.run(lambda: not stream.refused)
            assert setup.listener.connected == 1


async def test_a_topic_is_renewed_by_leaving_it_and_more_and_more_seldom() -> None:
    async with ScriptedServer() as server, running(server, *TOPICS[:2]) as (setup, stream):
        await until(stream.answered.is_set)

        def subscriptions() -> list[tuple[str, list[str]]]:
            return [(row["op"], row["args"]) for row in server.received if row["op"] != "ping"][1:]

        both = [("unsubscribe", [TOPICS[1]]), ("subscribe", [TOPICS[1]])]
        stream.resubscribe((TOPICS[1], "orderbook.1.NOT.OURS"))
        await until(lambda: subscriptions() == both)
        began_s = setup.clock.network_s()
        for times in range(2, 5):
            stream.resubscribe((TOPICS[1],))
            await setup.clock.run(is_equal(subscriptions, times * both))
        assert setup.clock.network_s() - began_s >= 1 + 2 + 4
        assert setup.listener.connected == 1


async def test_a_renewal_that_is_refused_is_asked_for_again() -> None:
    async with ScriptedServer() as server, running(server, TOPICS[3]) as (setup, stream):
        await until(stream.answered.is_set)
        server.refused_topics = {TOPICS[3]}
        stream.resubscribe((TOPICS[3],))
        await until(lambda: len(server.subscribed()) == 2)
        server.refused_topics.clear()
        await setup.clock.run(lambda: len(server.subscribed()) == 3)
        assert server.subscribed() == [TOPICS[3]] * 3
        assert not setup.listener.lost


async def test_an_answer_is_waited_for_while_older_frames_are_read() -> None:
    async with ScriptedServer() as server:
        server.is_mute = True
        async with running(server, data_watchdog_s=1e9, ping_s=1e9) as (setup, stream):
            await until(lambda: server.received)
            began_s = setup.clock.network_s()
            for second in range(1, 32):
                setup.clock.advance(network_s=1)
                await server.send(kline(START_MS + second * MINUTE))
                await until(is_equal(setup.listener.frames.__len__, second))
                stream.note_date(START_MS + (9_999 if second < 31 else 10_000))
                assert not setup.listener.lost, "the answer may be behind these frames"
            await setup.clock.run(lambda: setup.listener.lost)
            assert "did not answer a subscription within 10 s" in str(setup.listener.lost[0])
            assert setup.clock.network_s() - began_s < 41, "it is not behind the last frame"


class BelievingFeed:
    """A feed that accepts every date, and keeps the causes of lost connections."""

    def __init__(self) -> None:
        self.lost: list[GapCause] = []

    def on_server_time(self, server_ms: int) -> bool:
        return server_ms > 0

    def on_future_date(self) -> None:
        raise AssertionError("nothing is dated ahead")

    def on_data(self, item: MarketData) -> None:
        assert isinstance(item, Bar)

    def on_funding_time(self, instrument: str, next_ms: int) -> None:
        raise AssertionError((instrument, next_ms))

    def on_lost(self, instruments: Iterable[Instrument], cause: GapCause) -> None:
        assert list(instruments)
        self.lost.append(cause)


async def test_the_dates_of_the_frames_tell_how_old_they_are() -> None:
    async with ScriptedServer() as server:
        server.is_mute = True
        clock, feed, counters = SteppedClock(), BelievingFeed(), Counter[str]()
        stream = CategoryStream(
            Category.LINEAR,
            StreamRequest(instruments=(instrument(),), interval_ms=MINUTE),
            feed,
            exchange=exchange_section(
                stream_url=server.stream_url, data_watchdog_s=1e9, ping_s=1e9
            ),
            clock=clock,
            rng=random.Random(1),
            cooldown=Cooldown(clock=clock),
            counters=counters,
        )
        task = asyncio.create_task(stream.run())
        await until(lambda: server.received)
        for second in range(1, 27):
            clock.advance(network_s=1)
            sent_ms = START_MS + (10_000 if second == 26 else 9_999)
            await server.send(kline(START_MS, ts=sent_ms))
            await until(is_equal(lambda: counters["frames"], second))
            assert not feed.lost
        began_s = clock.network_s()
        await clock.run(lambda: feed.lost)
        assert clock.network_s() - began_s < 10, "no answer follows a frame that is newer than it"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_ban_at_the_door_is_followed_by_silence() -> None:
    async with ScriptedServer() as server:
        server.reject_status = 403
        async with running(server) as (setup, stream):
            await until(lambda: setup.cooldown.ends_s > 0)
            assert setup.cooldown.ends_s == setup.clock.network_s() + 600
            server.reject_status = 0
            banned_ends_s = setup.cooldown.ends_s
            await setup.clock.run(stream.answered.is_set, step_s=5)
            assert setup.clock.network_s() >= banned_ends_s


async def test_an_address_that_is_none_stops_with_advice() -> None:
    async with ScriptedServer() as server:
        setup = Setup(server, ("kline.1.BTCUSDT",))
        setup.exchange = exchange_section(stream_url="http://127.0.0.1:1")
        with pytest.raises(ConfigInvalid, match=r"exchange\.stream_url"):
            await setup.stream().run()
