from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from exchange_client import candles as made_candles
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.replay.archive import Candles, FundingRates
from tracepaper.replay.archive.series import archive_instrument
from tracepaper.replay.backtest.feed import ArchiveFeed
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.tracks import BATCH_BARS
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import Bar, Event, Funding, Gap, GapCause, Source

MINUTE = 60_000
T0 = 1_735_689_600_000


def candles(indexes: Sequence[int], symbol: str = "BTCUSDT", interval_ms: int = MINUTE) -> Candles:
    """Candles that open at the given multiples of the interval after T0."""
    return made_candles(
        [(100 + at, 102 + at, 98 + at, 101 + at, 3 * at) for at in indexes],
        symbol=symbol,
        interval_ms=interval_ms,
        times_ms=[T0 + at * interval_ms for at in indexes],
        price_decimals=0,
        volume_decimals=0,
    )


def feed(*parts: Candles, **options: Any) -> ArchiveFeed:
    instruments = [archive_instrument(part) for part in parts]
    funding = options.pop("funding", ())
    return ArchiveFeed(MarketData(parts, funding=funding), instruments, **options)


def bars(events: Sequence[Event]) -> list[Bar]:
    return [event for event in events if isinstance(event, Bar)]


def test_a_bar_is_seen_at_its_close_with_its_values_rescaled() -> None:
    part = candles([7], "WIFUSDT")
    (event,) = feed(part).events()
    scale = 10 ** archive_instrument(part).price_decimals
    assert scale > 1
    open_time = T0 + 7 * MINUTE
    close = open_time + MINUTE
    prices = (107 * scale, 109 * scale, 105 * scale, 108 * scale)
    assert event == Bar(
        "linear:WIFUSDT", open_time, MINUTE, *prices, 21, None, close, close, Source.ARCHIVE
    )


def test_a_hole_is_a_gap_before_the_bar_that_shows_it() -> None:
    events = list(feed(candles([0, 1, 4, 5])).events())
    at = T0 + 5 * MINUTE
    gap = Gap("linear:BTCUSDT", T0 + 2 * MINUTE, T0 + 4 * MINUTE, GapCause.ARCHIVE, "", at, at)
    assert [type(event) for event in events] == [Bar, Bar, Gap, Bar, Bar]
    assert events[2] == gap


def test_several_symbols_come_in_order_of_close_then_of_symbol() -> None:
    events = list(feed(candles([1, 2, 3], "ETHUSDT"), candles([0, 1, 3])).events())
    closes = [(type(e).__name__, getattr(e, "instrument", "")[7:10], e.seen_ms) for e in events]
    close = [T0 + (i + 1) * MINUTE for i in range(4)]
    assert closes == [
        ("Bar", "BTC", close[0]),
        ("Bar", "BTC", close[1]),
        ("Bar", "ETH", close[1]),
        ("Bar", "ETH", close[2]),
        ("Gap", "BTC", close[3]),
        ("Bar", "BTC", close[3]),
        ("Bar", "ETH", close[3]),
    ]


subsets = st.sets(st.integers(0, 60), min_size=1, max_size=40).map(sorted)


@given(subsets, subsets, st.integers(0, 60), st.integers(0, 10))
def test_every_bar_comes_once_in_time_order_whatever_the_holes(
    first: list[int], second: list[int], start: int, warmup: int
) -> None:
    parts = {"BTCUSDT": first, "ETHUSDT": second}
    wanted = {
        name: [i for i in rows if i < start][-warmup or len(rows) :]
        + [i for i in rows if i >= start]
        for name, rows in parts.items()
    }
    if not any(i >= start for rows in parts.values() for i in rows):
        return
    fed = feed(
        *(candles(rows, name) for name, rows in parts.items()),
        from_ms=T0 + start * MINUTE,
        warmup_bars=warmup,
    )
    events = list(fed.events())
    times = [event.seen_ms for event in events]
    assert times == sorted(times)
    for name, rows in wanted.items():
        mine = [bar for bar in bars(events) if bar.instrument == f"linear:{name}"]
        assert [(bar.open_time_ms - T0) // MINUTE for bar in mine] == rows
        gaps = [e for e in events if isinstance(e, Gap) and e.instrument == f"linear:{name}"]
        missing = sum((gap.until_ms - gap.from_ms) // MINUTE for gap in gaps)
        assert missing == (rows[-1] - rows[0] + 1 - len(rows) if rows else 0)
    assert fed.bar_count == len(bars(events))


def test_batches_join_without_a_seam() -> None:
    rows = [i for i in range(2 * BATCH_BARS + 10) if i not in {BATCH_BARS, BATCH_BARS + 1}]
    part = candles(rows)
    events = list(feed(part).events())
    decimals = archive_instrument(part).price_decimals
    assert bars(events) == part.rescaled(price_decimals=decimals).bars()
    assert [e.from_ms for e in events if isinstance(e, Gap)] == [T0 + BATCH_BARS * MINUTE]


def test_events_of_several_instruments_start_anew_at_each_call() -> None:
    fed = feed(candles(range(5_000)), candles(range(3, 5_000), "ETHUSDT"))
    assert len(list(fed.events())) == 9_997
    assert list(fed.events()) == list(fed.events())


def test_a_period_is_fed_with_its_warm_up_before_it() -> None:
    fed = feed(
        candles(range(100)), from_ms=T0 + 50 * MINUTE, until_ms=T0 + 60 * MINUTE, warmup_bars=7
    )
    opens = [(bar.open_time_ms - T0) // MINUTE for bar in bars(list(fed.events()))]
    assert opens == list(range(43, 60))
    assert fed.period_start_ms == T0 + 50 * MINUTE
    assert fed.bar_count == 17


def test_without_a_start_the_period_starts_with_the_data() -> None:
    assert feed(candles([3, 4])).period_start_ms == T0 + 3 * MINUTE
    opens = np.array([-2 * MINUTE, -MINUTE])  # before 1970
    old = feed(replace(candles([3, 4]), open_time_ms=opens))
    assert (old.period_start_ms, old.bar_count) == (-2 * MINUTE, 2)


def test_an_empty_period_is_refused_with_the_span_of_the_data() -> None:
    with pytest.raises(DataInvalid) as caught:
        feed(candles(range(10)), from_ms=T0 + 10 * MINUTE, warmup_bars=5)
    assert str(caught.value) == (
        "No bar opens from 2025-01-01T00:10:00Z: the data goes from 2025-01-01T00:00:00Z to "
        "2025-01-01T00:10:00Z, choose a period inside it."
    )


def test_mixed_intervals_and_unknown_instruments_are_refused() -> None:
    with pytest.raises(DataInvalid, match="give one interval to one run"):
        feed(candles([0, 1]), candles([0, 1], "ETHUSDT", 5 * MINUTE))
    with pytest.raises(DataInvalid, match="not among the run's instruments"):
        ArchiveFeed(MarketData([candles([0, 1])]), [archive_instrument(candles([0], "ETHUSDT"))])
    with pytest.raises(DataInvalid, match="No candles were given"):
        ArchiveFeed(MarketData([]), [])


def test_candles_finer_than_the_instrument_are_refused() -> None:
    part = candles([0, 1])
    finer = part.rescaled(volume_decimals=2)
    with pytest.raises(DataInvalid, match="more decimals than the instrument"):
        ArchiveFeed(MarketData([finer]), [archive_instrument(part)])


def test_a_settlement_follows_the_bars_that_close_with_it() -> None:
    times = np.array([T0, T0 + 2 * MINUTE, T0 + 3 * MINUTE + 5, T0 + 99 * MINUTE])
    rates = FundingRates("f.csv", "BTCUSDT", times, np.array([1, 2, 3, 4]))
    events = list(feed(candles(range(5)), funding=[rates]).events())
    order = [e.rate if isinstance(e, Funding) else (e.seen_ms - T0) // MINUTE for e in events]
    assert [type(e) for e in events] == [Bar, Bar, Funding, Bar, Funding, Bar, Bar]
    assert order == [1, 2, 2, 3, 3, 4, 5]
