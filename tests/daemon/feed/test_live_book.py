"""A live book gives the same fills as a replay, however late a bar arrives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from depth_cases import FIRST_MS
from forging import verified
from recordings import run_into
from records import rows
from seeded_events import ITEM, MINUTE_MS, SeededMarket, by_book, seeded_market

from tracepaper.daemon.feed.book_follower import HELD_MOST, LiveBook, ReadFrame
from tracepaper.replay.archive import read_candles
from tracepaper.replay.archive.events import EventsFile, EventsWriter
from tracepaper.replay.backtest.book_feed import EventsSource
from tracepaper.replay.backtest.build import Replay, build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run import Tally, predictor_over, run_events
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.strategies.types.market import Bar, BookUpdate, Event

MINUTES = 8


GAP = (3, 6)
MARKETS: dict[str, dict[str, Any]] = {
    "whole": {},
    "a gap": {"gap": GAP},
    "a silence": {"gap": GAP, "is_silent": True},
    "no word": {"gap": GAP, "is_silent": True},
}


@pytest.fixture(scope="module", params=MARKETS)
def market(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> SeededMarket:
    folder = tmp_path_factory.mktemp("market")
    seeded = seeded_market(folder, minutes=MINUTES, every_ms=250, **MARKETS[request.param])
    if request.param != "no word":
        return seeded
    quiet, file = folder / "quiet.events", EventsFile(seeded.events)
    first_ms, last_ms = (FIRST_MS + minute * MINUTE_MS for minute in GAP)
    with EventsWriter(quiet, file.header) as writer:
        for line in file.lines():
            if not first_ms <= line.received_ms < last_ms:
                writer.add(line.received_ms, line.data.encode())
    return SeededMarket(seeded.candles, quiet)


def built(path: Path, market: SeededMarket, response_ms: int, latency_ms: int = 300) -> Replay:
    candles = [read_candles(str(market.candles), category="linear")]
    data = MarketData(candles, events=[EventsSource(market.events)])
    config = by_book(options={"away": 0.2}, latency_ms=latency_ms, response_ms=response_ms)
    return build(config, data, started_at_ms=1, database=path)


def as_they_come(
    book: LiveBook, events: Iterable[Event], frames: Iterable[ReadFrame], late_ms: int
) -> Iterator[Event]:
    """Yield a feed's events from *frames* and *events*, whose bars are *late_ms* late."""
    coming = iter(frames)
    frame = next(coming, None)
    for event in events:
        if not isinstance(event, Bar):
            yield event
            book.forget()
            continue
        while frame is not None and frame.at_ms <= event.close_time_ms + late_ms:
            yield from book.take(frame)
            frame = next(coming, None)
        yield from book.before(event)
        yield event
        book.forget()
        yield from book.after(event)


def live(path: Path, market: SeededMarket, late_ms: int, response_ms: int, latency_ms: int) -> None:
    replay = built(path, market, response_ms, latency_ms)
    watch = replay.engine.broker.watch
    book = LiveBook(ITEM.id, watch, interval_ms=MINUTE_MS, response_ms=response_ms)
    way = predictor_over(replay)
    start = [event for event in [*way.events(replay)][:1] if not isinstance(event, Bar)]
    (item,) = replay.instruments
    frames = EventsSource(market.events).frames(item)
    events = as_they_come(book, chain(start, replay.feed.events()), frames, late_ms)
    log = SqlAuditLog.open(path)
    log.begin(replay.run, replay.engine.gate_sets)
    run_events(events, way.predictor, replay.engine, log, Tally())
    log.end(1)
    log.close()


FILLS = "SELECT filled_ms, side, price_text, quantity_text, liquidity FROM v_fills ORDER BY rowid"
EVENTS = "SELECT kind, market_ms, content FROM v_events ORDER BY sequence"


@pytest.mark.parametrize(
    ("late_ms", "response_ms", "latency_ms"),
    [(0, 0, 300), (700, 0, 300), (4_900, 400, 300), (700, 0, 59_900), (4_900, 0, 59_990)],
)
def test_whenever_a_bar_comes_the_events_are_those_of_a_replay(
    tmp_path: Path, market: SeededMarket, late_ms: int, response_ms: int, latency_ms: int
) -> None:
    replayed, path = tmp_path / "known.db", tmp_path / "live.db"
    replay = built(replayed, market, response_ms, latency_ms)
    run_into(replayed, replay)
    live(path, market, late_ms, response_ms, latency_ms)
    events, wanted = rows(path, EVENTS), rows(replayed, EVENTS)
    bars = [place for place, event in enumerate(events) if event[0] == "bar"]
    assert len(bars) == MINUTES
    assert events[: bars[-1] + 1] == wanted[: bars[-1] + 1]
    assert sum(event[0] == "book" for event in events) > 5
    last_ms = int(replay.feed.candles[0].closes_ms[-1]) - response_ms
    assert [row for row in rows(path, FILLS) if row[0] <= last_ms] == rows(replayed, FILLS)
    assert verified(path).differences == []


def test_a_bar_that_never_comes_holds_nothing_up_for_long(tmp_path: Path) -> None:
    market = seeded_market(tmp_path, minutes=2)
    replay = built(tmp_path / "a.db", market, 0)
    book = LiveBook(ITEM.id, replay.engine.broker.watch, interval_ms=MINUTE_MS, response_ms=0)
    bar = next(event for event in replay.feed.events() if isinstance(event, Bar))
    updates: list[BookUpdate] = [*book.before(bar), *book.after(bar)]
    due_ms = bar.close_time_ms + MINUTE_MS
    assert updates == []
    for at_ms in range(due_ms + 1, due_ms + 1 + HELD_MOST):
        assert [*book.take(ReadFrame(at_ms, trades=()))] == []
    assert book.held == HELD_MOST
    assert [*book.take(ReadFrame(due_ms + HELD_MOST, trades=()))] == []
    assert book.held == 0  # too many
    other = LiveBook(ITEM.id, replay.engine.broker.watch, interval_ms=MINUTE_MS, response_ms=0)
    assert [*other.before(bar), *other.after(bar)] == []
    for late_ms, held in ((1, 1), (5_000, 2), (5_001, 0), (5_002, 0)):
        assert [*other.take(ReadFrame(due_ms + late_ms))] == []
        assert other.held == held
    assert [*other.after(bar), *other.before(bar)] == []  # a revision of an older bar
    assert [*other.take(ReadFrame(bar.close_time_ms + 1_000))] == []
    assert other.held == 0
