"""The live feed delivers each bar of a scripted exchange exactly once and in order."""

from __future__ import annotations

import asyncio
import random
from functools import partial

import pytest
from aiohttp import web
from bybit_feed import BITCOIN, Live, live
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
from msgspec import structs
from structlog.testing import capture_logs
from waiting import deadline, until

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.daemon.engine.price_checks import AcceptedPrices
from tracepaper.daemon.feed import feed
from tracepaper.daemon.feed.client import EventQueue, FeedStart
from tracepaper.daemon.feed.maintenance import POLL_S, FeedMaintenance
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    Funding,
    Gap,
    GapCause,
    InstrumentChange,
    Mark,
    Quote,
    Source,
    Trade,
)

ID = BITCOIN.id
HOUR = 3_600_000
KINDS = ("kline", "orderbook")


def start_at(minute: int) -> FeedStart:
    """Return the start of a run that holds bars up to *minute*."""
    return FeedStart(
        interval_ms=MINUTE,
        period_start_ms=START_MS - 10 * MINUTE,
        warmup_bars=5,
        last_open_ms={ID: START_MS + minute * MINUTE},
    )


async def test_a_new_run_is_warmed_with_the_bars_before_its_period() -> None:
    async with ScriptedServer() as server:
        for index in range(-30, 0):
            server.add_candle(START_MS + index * MINUTE)
        server.server_ms = START_MS + 2_000
        start = FeedStart(interval_ms=MINUTE, period_start_ms=START_MS + 2_000, warmup_bars=20)
        async with live(server, start=start) as run:
            await until(lambda: len(run.bars()) == 20)
            await run.close_bar(0)
            await until(lambda: len(run.bars()) == 21)
            assert run.opens() == list(range(-20, 1))
            assert [bar.source for bar in run.bars()] == [Source.REST] * 20 + [Source.STREAM]
            assert run.bars()[0].market_ms == START_MS - 19 * MINUTE
            assert run.bars()[0].seen_ms == START_MS + 2_000
            assert not run.gaps()


async def test_a_server_behind_the_database_is_refused() -> None:
    async def misled() -> None:
        async with ScriptedServer() as server, live(server, start=start_at(5)) as run:
            await until(lambda: run.is_ended)

    with pytest.raises(ExceptionGroup) as caught:  # the test's own group around the consumer
        await misled()
    assert caught.group_contains(ConfigInvalid, match="behind the last bar")


async def test_a_server_behind_what_it_told_this_run_is_waited_for() -> None:
    start = structs.replace(start_at(5), is_served=True)
    async with ScriptedServer() as server, live(server, start=start) as run:
        await run.expect(lambda: run.feed.counters["resyncs"] >= 3)
        for index in range(6, 8):
            server.add_candle(START_MS + index * MINUTE)
        run.move_to(START_MS + 8 * MINUTE + 2_500)
        await run.expect(lambda: len(run.bars()) == 2)
        assert run.opens() == [6, 7]


async def test_a_missed_bar_is_repaired_before_the_one_that_shows_it() -> None:
    async with ScriptedServer() as server, live(server) as run:
        await run.close_bar(0)
        await until(run.bars)
        await run.close_bar(1, stream=False)
        await run.close_bar(2, stream=False)
        await run.close_bar(3)
        await until(lambda: len(run.bars()) == 4)
        assert run.opens() == [0, 1, 2, 3]
        assert [bar.source for bar in run.bars()[1:]] == [Source.REST] * 2 + [Source.STREAM]
        assert run.gaps() == [(1, 3, GapCause.MISSED, "rest")]
        order = [type(event) for event in run.events]
        assert order == [Bar, Gap, Bar, Bar, Bar]


async def test_what_rest_lacks_twice_half_a_minute_apart_is_a_hole_for_good() -> None:
    async with ScriptedServer() as server, live(server) as run:
        await run.close_bar(0)
        await run.close_bar(1, stream=False, rest=False)
        await run.close_bar(2, stream=False)
        await run.close_bar(3, stream=False, rest=False)
        await run.close_bar(4)
        run.move_to(START_MS + 5 * MINUTE + 2_000)
        begun_s = run.clock.network_s()
        await run.expect(lambda: run.clock.network_s() >= begun_s + 29)
        assert run.opens() == [0]
        assert not run.gaps()
        await run.expect(lambda: len(run.bars()) == 3)
        assert run.clock.network_s() < begun_s + 31.2
        assert run.opens() == [0, 2, 4]
        assert run.gaps() == [
            (1, 2, GapCause.MISSED, ""),
            (2, 3, GapCause.MISSED, "rest"),
            (3, 4, GapCause.MISSED, ""),
        ]
        assert run.feed.counters["holes"] == 2


async def test_an_overdue_closing_frame_is_replaced_by_rest() -> None:
    async with ScriptedServer() as server, live(server) as run:
        await run.close_bar(0)
        await until(run.bars)
        await run.close_bar(1, stream=False)
        run.move_to(START_MS + 2 * MINUTE + 5_000)
        await run.expect(lambda: len(run.bars()) == 2)
        assert run.gaps() == [(1, 2, GapCause.MISSED, "rest")]
        await run.server.send(kline(START_MS + MINUTE))  # the frame arrives at last
        await run.close_bar(2)
        await until(lambda: len(run.bars()) == 3)
        assert run.opens() == [0, 1, 2]
        assert run.feed.counters["repeated_bars"] == 1


async def test_a_hole_of_a_lost_connection_is_said_to_be_one() -> None:
    async with ScriptedServer() as server, live(server) as run:
        await run.close_bar(0)
        await until(run.bars)
        await server.drop()
        await until(lambda: run.feed.counters["disconnects"])
        await run.close_bar(1, stream=False)
        await run.expect(lambda: server.connections == 2)
        await until(lambda: len(server.subscribed()) == 6)
        await run.close_bar(2)
        await run.close_bar(3, stream=False)
        await run.close_bar(4)
        await until(lambda: len(run.bars()) == 5)
        assert run.opens() == [0, 1, 2, 3, 4]
        assert run.gaps() == [
            (1, 2, GapCause.DISCONNECTED, "rest"),
            (3, 4, GapCause.MISSED, "rest"),
        ]


async def test_a_bar_is_preceded_by_the_newest_quote_and_mark_once() -> None:
    async with ScriptedServer() as server, live(server) as run:
        at_ms = START_MS + 59_000
        run.move_to(at_ms)
        await server.send(book(at_ms - 5), ticker(at_ms), book(at_ms, bid="100.3"))
        await run.close_bar(0)
        await run.close_bar(1)
        await until(lambda: len(run.bars()) == 2)
        assert [type(event) for event in run.events] == [Quote, Mark, Bar, Bar]
        quote, mark = run.events[0], run.events[1]
        assert isinstance(quote, Quote)
        assert isinstance(mark, Mark)
        assert (quote.bid, quote.market_ms, mark.price) == (1003, at_ms, 1004)


async def test_a_full_line_drops_quotes_before_bars_and_no_bar_in_silence() -> None:
    async with ScriptedServer() as server, live(server, queue_limit=4) as run:
        run.gate.clear()
        await run.close_bar(0)
        await until(run.bars)
        with capture_logs() as lines:
            await server.send(*(book(START_MS + 2 * MINUTE + at) for at in range(5)))
            for index in range(1, 6):
                await run.close_bar(index)
            await until(lambda: run.feed.counters["overflow_bars"] == 3)
        behind = [line["reason"] for line in lines if line["event"] == "behind"]
        assert behind == ["the queue of the feed is full, and quotes are dropped"]
        assert run.feed.counters["overflow_quotes"] == 3
        run.gate.set()
        await run.close_bar(6)
        await until(lambda: len(run.bars()) == 7)
        assert run.opens() == [0, 1, 2, 3, 4, 5, 6]
        assert run.gaps() == [(3, 6, GapCause.OVERFLOW, "rest")]


FUNDED = structs.replace(BITCOIN, funding_interval_minutes=480)
EIGHT = START_MS - START_MS % (8 * HOUR) + 8 * HOUR  # the next settlement


async def test_a_settlement_comes_once_and_after_the_bar_that_closed_before_it() -> None:
    async with ScriptedServer() as server:
        start = FeedStart(interval_ms=MINUTE, period_start_ms=EIGHT - 2 * MINUTE, warmup_bars=0)
        server.server_ms = EIGHT - 2 * MINUTE
        async with live(server, start=start, instruments=(FUNDED,)) as run:
            first = (EIGHT - START_MS) // MINUTE - 2
            await run.close_bar(first)
            await until(run.bars)
            server.funding.append((EIGHT, "0.0001"))
            await run.close_bar(first + 1)  # closes at the settlement
            await run.close_bar(first + 2)
            await until(lambda: len(run.bars()) == 3)
            assert [type(event) for event in run.events] == [Bar, Funding, Bar, Bar]
            funding = run.events[1]
            assert isinstance(funding, Funding)
            assert (funding.rate, funding.market_ms) == (1_000_000, EIGHT)


async def test_settlements_missed_while_down_come_in_their_places() -> None:
    async with ScriptedServer() as server:
        first = (EIGHT - START_MS) // MINUTE - 2
        for index in range(first, first + 4):
            server.add_candle(START_MS + index * MINUTE)
        server.funding = [(EIGHT - 8 * HOUR, "0.0003"), (EIGHT, "0.0001")]
        server.server_ms = EIGHT + 2 * MINUTE + 5_000
        start = FeedStart(
            interval_ms=MINUTE,
            period_start_ms=EIGHT - HOUR,
            warmup_bars=0,
            last_open_ms={ID: EIGHT - 3 * MINUTE},
            known_funding={ID: EIGHT - 8 * HOUR},
        )
        async with live(server, start=start, instruments=(FUNDED,)) as run:
            await until(lambda: len(run.bars()) == 4)
            kinds = [type(event).__name__ for event in run.events]
            assert kinds == ["Gap", "Bar", "Funding", "Bar", "Bar", "Bar"]


async def test_filters_are_read_again_daily_and_handed_on_when_they_differ() -> None:
    async with ScriptedServer() as server:
        clock = SteppedClock()
        async with BybitClient(
            exchange_section(rest_url=server.rest_url), clock=clock, rng=random.Random(1)
        ) as client:
            kept = await client.instrument(Category.LINEAR, "BTCUSDT")
        kept = structs.replace(kept, funding_interval_minutes=0)
        server.filters[0]["fundingInterval"] = 0
        async with live(server, instruments=(kept,)) as run:
            await until(lambda: len(server.queries("instruments-info")) == 1)
            await run.expect(lambda: run.feed.counters["resyncs"] > 1)
            run.move_to(START_MS + 24 * HOUR + MINUTE)
            await run.expect(lambda: len(server.queries("instruments-info")) == 2)
            server.filters[0]["lotSizeFilter"]["maxMktOrderQty"] = "120"
            run.move_to(START_MS + 48 * HOUR + 2 * MINUTE)
            changes: list[InstrumentChange] = []

            def is_handed_on() -> bool:
                changes[:] = [event for event in run.events if isinstance(event, InstrumentChange)]
                return bool(changes)

            await run.expect(is_handed_on)
            (change,) = changes
            assert change.instrument == structs.replace(kept, max_quantity=120_000)
    assert FILTERS["lotSizeFilter"]["maxMktOrderQty"] == "150.000"


async def test_filters_that_the_run_cannot_express_are_refused_and_end_nothing() -> None:
    async with ScriptedServer() as server, live(server) as run:
        await run.close_bar(0)
        await until(run.bars)
        server.filters[0]["priceFilter"]["tickSize"] = "0.0001"
        begun_s = run.clock.network_s()
        await run.expect(lambda: run.clock.network_s() > begun_s + 1)
        for days in (1, 2):
            run.move_to(START_MS + days * 25 * HOUR)
            await run.expect(partial(run.has_counted, "filters_refused", days))
        assert not [event for event in run.events if isinstance(event, InstrumentChange)]


# ---------------------------------------------------------------- frames that cannot be true


async def close_honestly(run: Live, first: int, count: int) -> None:
    """Close *count* minutes like the real exchange, with a quote in each."""
    for index in range(first, first + count):
        await run.close_bar(index)
        await run.server.send(book(run.clock.market_ms() + index % 7, size=str(index + 1)))
    await run.expect(lambda: len(run.bars()) == first + count)


@pytest.mark.parametrize("planted", ["a book", "a candle in a frame of now"])
async def test_whatever_is_dated_ahead_has_the_time_read_anew(planted: str) -> None:
    async with ScriptedServer() as server, live(server, data_watchdog_s=1e9) as run:
        await close_honestly(run, 0, 1)
        now_ms, count = run.clock.market_ms(), len(server.queries("time"))
        later = kline(START_MS + 5 * MINUTE, ts=now_ms)
        await server.send(book(now_ms + 4_900) if planted == "a book" else later)
        await until(lambda: sum(run.feed.counters[f"ahead.{kind}"] for kind in KINDS))
        began_s = run.clock.network_s()
        await run.expect(lambda: len(server.queries("time")) > count)
        assert run.clock.network_s() - began_s <= 2  # and not after half a minute


async def test_each_kind_of_refusal_is_said_once() -> None:
    with capture_logs() as lines:
        async with ScriptedServer() as server, live(server) as run:
            ahead_ms = run.clock.market_ms() + HOUR
            for _ in range(3):
                await server.send(book(ahead_ms), ticker(ahead_ms), b"[]")
                await server.send(kline(START_MS + 7_000))
            await until(lambda: run.feed.counters["off_grid.kline"] == 3)
            assert run.feed.counters["ahead.orderbook"] == 3
    refused = [line["kind"] for line in lines if line["event"] == "refused"]
    assert sorted(refused) == [
        "ahead.orderbook",
        "ahead.tickers",
        "malformed.frame",
        "off_grid.kline",
    ]


async def test_an_answer_that_was_long_on_its_way_does_not_set_the_clock_back() -> None:
    clock = SteppedClock(START_MS)
    answers = [START_MS + 900, START_MS + 899, START_MS + 5_000]

    class SlowClient(BybitClient):
        async def server_time_ms(self) -> int:
            clock.advance(network_s=1.0)
            return answers.pop(0)

    maintenance = FeedMaintenance(
        client=SlowClient(exchange_section(), clock=clock, rng=random.Random(1)),
        clock=clock,
        exchange=exchange_section(),
        states={},
        queue=EventQueue(10),
        spawn=lambda work: work.close(),
    )
    clock.synchronise(START_MS + 1_900)  # as the frames' dates show
    await maintenance.synchronise()
    assert clock.market_ms() == START_MS + 1_900
    await maintenance.synchronise()
    assert clock.market_ms() == START_MS + 899  # a round trip of a second explains no more
    await maintenance.synchronise()
    assert clock.market_ms() == START_MS + 5_000


# ---------------------------------------------------------------- implausible closes


HIGH = "100500"
"""A thousand times the close of all other candles."""


async def used_to_the_market(run: Live, count: int = 12) -> None:
    """Close enough minutes with a range for the usual range to be known."""
    for index in range(count):
        await run.close_bar(index, low="100.4")
    await run.expect(lambda: len(run.bars()) == count)


async def test_a_close_times_a_thousand_is_replaced_by_what_rest_has() -> None:
    async with ScriptedServer() as server, live(server) as run:
        await used_to_the_market(run)
        await run.close_bar(12, stream=False)
        for _ in range(3):  # repeating it on the stream proves nothing
            await server.send(kline(START_MS + 12 * MINUTE, HIGH))
        run.move_to(START_MS + 13 * MINUTE + 6_000)
        await run.expect(lambda: len(run.bars()) == 13)
        await run.close_bar(13)
        await run.expect(lambda: len(run.bars()) == 14)
        assert {bar.close for bar in run.bars()} == {1005}
        assert run.gaps() == [(12, 13, GapCause.IMPLAUSIBLE, "rest")]
        assert run.feed.counters["implausible_bars"] >= 1


def lying_page(server: ScriptedServer, *indices: int, close: str = HIGH) -> web.Response:
    """Return a page of these minutes with closes a thousand times too high."""
    rows = [
        [str(START_MS + index * MINUTE), "100.5", close, "100.5", close, "1.5", "150.75"]
        for index in sorted(indices, reverse=True)
    ]
    return server.reply({"category": "linear", "symbol": "BTCUSDT", "list": rows})


@pytest.mark.parametrize(("lies", "closes"), [(1, 1005), (2, 1_005_000)])
async def test_what_rest_alone_told_of_a_lost_bar_is_asked_again(lies: int, closes: int) -> None:
    async with ScriptedServer() as server, live(server) as run:
        await used_to_the_market(run)
        await run.close_bar(12, stream=False)
        run.move_to(START_MS + 13 * MINUTE + 6_000)
        server.answer_next("kline", *(lying_page(server, 12) for _ in range(lies)))
        await run.expect(lambda: len(run.bars()) == 13)
        assert run.bars()[12].close == closes
        assert run.feed.counters["implausible_bars"] == 1
        assert run.gaps() == [(12, 13, GapCause.MISSED, "rest")]


async def test_what_rest_tells_otherwise_each_time_is_asked_until_two_answers_agree() -> None:
    async with ScriptedServer() as server, live(server) as run:
        await used_to_the_market(run)
        await run.close_bar(12, stream=False)
        run.move_to(START_MS + 13 * MINUTE + 6_000)
        lies = (HIGH, "70000", HIGH, "80000")
        server.answer_next("kline", *(lying_page(server, 12, close=lie) for lie in lies[1:]))
        await server.send(kline(START_MS + 12 * MINUTE, HIGH))
        await run.expect(lambda: len(run.bars()) == 13)
        assert run.bars()[12].close == 1005
        assert run.feed.counters["implausible_bars"] == 4


async def test_the_warm_up_is_a_yardstick_and_its_own_closes_are_asked_again() -> None:
    async with ScriptedServer() as server:
        for index in range(-20, 0):
            server.add_candle(START_MS + index * MINUTE, low="100.4")
        server.server_ms = START_MS + 5_000
        lies = [lying_page(server, -1, close=close) for close in ("70000", "80000")]
        truth = server.rows["BTCUSDT"]
        start = FeedStart(interval_ms=MINUTE, period_start_ms=START_MS, warmup_bars=20)
        whole = [
            [str(cell) for cell in truth[START_MS + index * MINUTE]] for index in range(-20, 0)
        ]
        whole[-1] = [whole[-1][0], "100.5", HIGH, "100.5", HIGH, "1.5", "150.75"]
        page = {"category": "linear", "symbol": "BTCUSDT", "list": whole[::-1]}
        server.answer_next("kline", server.reply(page), *lies)
        async with live(server, start=start) as run:
            await run.expect(lambda: len(run.bars()) == 20)
            assert {bar.close for bar in run.bars()} == {1005}
            await run.close_bar(0, stream=False)
            await server.send(kline(START_MS, HIGH))
            run.move_to(START_MS + MINUTE + 6_000)
            await run.expect(lambda: len(run.bars()) == 21)
            assert run.bars()[20].close == 1005


class Wary(AcceptedPrices):
    """Doubts quotes below 50, for which marks below 50 are evidence."""

    def __init__(self) -> None:
        """Know no bars."""

    def doubts(self, price: Quote | Mark | Funding) -> bool:
        return isinstance(price, Quote) and price.bid < 50 * SCALE

    def is_evidence(self, price: Quote | Mark | Trade) -> bool:
        return isinstance(price, Mark) and price.price < 50 * SCALE

    def repeats(self, price: Quote | Mark) -> bool:
        return price is None

    @property
    def holds_quote(self) -> bool:
        return True


SCALE = 10**BITCOIN.price_decimals


async def test_a_doubted_quote_comes_behind_the_newest_mark_and_before_what_shows_it() -> None:
    async with (
        ScriptedServer() as server,
        live(server, accepted_prices={BITCOIN.id: Wary()}) as run,
    ):
        await until(lambda: len(server.subscribed()) == 3)
        run.quotes_from = START_MS
        at = server.server_ms
        await server.send(
            ticker(at + 1, "100.4"),
            book(at + 2, "100.4", "100.5"),
            ticker(at + 3, "100.6"),  # not needed before the doubt
            book(at + 4, "40.0", "40.1"),
            book(at + 5, "40.0", "40.1"),  # the same quote again, since it was not believed
            ticker(at + 6, "100.5"),
            ticker(at + 7, "41.0"),
        )
        await until(lambda: len(run.events) >= 5)
        prices = [event for event in run.events if isinstance(event, Quote | Mark)]
        order = [(type(price), price.market_ms - at) for price in prices]
        assert order == [(Quote, 2), (Mark, 3), (Quote, 4), (Quote, 5), (Mark, 7)]
        assert run.feed.counters["doubted_prices"] == 2


class HalfDeafClock(SteppedClock):
    """Lets background work forget a cancellation once, as a connection may."""

    def __init__(self) -> None:
        super().__init__()
        self.forgot: set[asyncio.Task[object] | None] = set()

    async def sleep(self, seconds: float) -> None:
        try:
            await super().sleep(seconds)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) in self.forgot or seconds != POLL_S:
                raise
            self.forgot.add(task)


async def test_what_forgets_that_it_was_cancelled_is_cancelled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "CANCEL_AGAIN_S", 0.05)
    clock = HalfDeafClock()
    async with deadline(), ScriptedServer() as server:
        async with live(server, clock=clock) as run:
            await run.close_bar(0)
            await until(run.bars)
        assert clock.forgot
