"""Bars of higher frames: whole, closed, exact; never early, and the same after a restart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from builders import bars as made_bars
from builders import instrument, present
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tracepaper.strategies.api.context import BarContext
from tracepaper.strategies.api.timeframes import (
    TimeframeAggregator,
    frame_bar_of,
    frames_reach,
    open_frames_ms,
)
from tracepaper.strategies.errors import StrategyFailed
from tracepaper.strategies.types.market import Bar, FrameBar

Row = tuple[int, int, int, int, int, int]
"""Open time, open, high, low, close, volume."""

MINUTE, FIVE = 60_000, 300_000
START_MS = 1_700_000_100_000  # a whole number of five minutes
ITEM = instrument()


def minutes(count: int, *, first: int = 0, seed: int = 1) -> list[Bar]:
    return [
        replace(
            bar,
            open_time_ms=START_MS + (first + place) * MINUTE,
            market_ms=START_MS + (first + place + 1) * MINUTE,
        )
        for place, bar in enumerate(made_bars(count, seed=seed))
    ]


def higher(wanted: int = 4) -> TimeframeAggregator:
    return TimeframeAggregator(ITEM, "5", MINUTE, wanted)


def whole(bars: Sequence[Bar]) -> list[Row]:
    """Return what five bars each add up to, another way: by their place in time."""
    groups: dict[int, list[Bar]] = {}
    for bar in bars:
        groups.setdefault(bar.open_time_ms // FIVE * FIVE, []).append(bar)
    return [
        (
            at,
            group[0].open,
            max(bar.high for bar in group),
            min(bar.low for bar in group),
            group[-1].close,
            sum(bar.volume for bar in group),
        )
        for at, group in sorted(groups.items())
        if len(group) == 5
    ]


def test_it_is_warm_at_the_very_time_that_it_says() -> None:
    frame = higher(3)
    times = {frame.warm_at(START_MS - MINUTE)}  # before any bar the next bar of the frame is first
    for bar in minutes(30, first=2):
        if frame.is_warm:
            break
        frame.add(bar)
        if not frame.is_warm:
            times.add(frame.warm_at(bar.market_ms))
    assert frame.is_warm
    # Bars from within a frame's bar on, so the first that is whole is the second.
    assert times == {bar.market_ms - MINUTE, START_MS + 3 * FIVE}


def rows_of(frame: TimeframeAggregator) -> list[Row]:
    """Return what is handed on, from the columns that a strategy reads."""
    bars = frame.bars
    price, volume = 10**ITEM.price_decimals, 10**ITEM.volume_decimals
    columns = [np.rint(column * price) for column in (bars.open, bars.high, bars.low, bars.close)]
    columns = [bars.time - FIVE, *columns, np.rint(bars.volume * volume)]
    return [tuple(int(cell) for cell in row) for row in zip(*columns, strict=True)]  # type: ignore[misc]


def candle(row: Row) -> FrameBar:
    at, opened, high, low, close, volume = row
    bar = replace(
        minutes(1)[0], open_time_ms=at, interval_ms=FIVE, open=opened, high=high, low=low,
        close=close, volume=volume,
    )  # fmt: skip
    return frame_bar_of(bar, seen_ms=at + FIVE)


def test_no_candle_comes_before_own_bars_have_made_theirs() -> None:
    frame = higher()
    bars = minutes(5)
    frame.add(bars[0])
    assert frame.take(candle((START_MS - FIVE, 10, 12, 9, 11, 5)))
    assert not frame.take(candle(whole(bars)[0]))


@given(
    missing=st.sets(st.integers(0, 59), max_size=12),
    first=st.integers(0, 9),
    wanted=st.integers(1, 7),
)
def test_a_bar_appears_with_the_bar_that_closes_it_and_holes_never_do(
    missing: set[int], first: int, wanted: int
) -> None:
    bars: list[Bar] = []
    frame = higher(wanted)
    for bar in minutes(60, first=first):
        if (bar.open_time_ms - START_MS) // MINUTE in missing:
            continue
        bars.append(bar)
        frame.add(bar)
        now_ms = bar.close_time_ms // FIVE * FIVE
        due = [row for row in whole(bars) if now_ms - wanted * FIVE <= row[0] < now_ms]
        assert rows_of(frame) == due
        assert all(row[0] + FIVE <= bar.close_time_ms for row in due)


@given(
    cut=st.integers(30, 59),
    missing=st.sets(st.integers(0, 59), max_size=12),
    wanted=st.integers(1, 5),
)
def test_what_is_handed_on_follows_from_the_last_bars_alone(
    cut: int, missing: set[int], wanted: int
) -> None:
    candles = [bar for place, bar in enumerate(minutes(60)) if place not in missing]
    frame, again = higher(wanted), higher(wanted)
    for bar in candles[:cut]:
        frame.add(bar)
    for bar in candles[:cut][-frames_reach({"5": wanted}, MINUTE) :]:
        again.add(bar)
    assert rows_of(frame) == rows_of(again)
    for bar in candles[cut:]:
        frame.add(bar)
        again.add(bar)
        assert rows_of(frame) == rows_of(again)


def test_candles_from_elsewhere_warm_what_own_bars_do_not_reach() -> None:
    bars = minutes(30, first=3)
    earlier = whole(minutes(60, first=-55))[-6:]
    frame = higher(4)
    for bar in bars[:2]:
        frame.add(bar)
    assert rows_of(frame) == []
    wanted = present(frame.lacking(bars[1].close_time_ms))
    assert (wanted.from_ms, wanted.until_ms) == (START_MS - 3 * FIVE, START_MS + FIVE)
    assert not frame.is_warm
    assert all(frame.take(candle(row)) for row in earlier)
    assert frame.lacking(bars[1].close_time_ms) is None
    assert frame.is_warm
    assert rows_of(frame) == [row for row in earlier if row[0] >= START_MS - 3 * FIVE]
    for bar in bars[2:]:
        frame.add(bar)
    assert rows_of(frame) == whole(bars)[-4:]


def test_a_candle_that_closes_later_is_not_handed_on_before() -> None:
    frame = higher(4)
    bars = minutes(9, first=3)
    partial = whole(minutes(5))[0]
    frame.add(bars[0])
    assert frame.take(candle(partial))  # it closes with the next bar
    assert rows_of(frame) == []
    frame.add(bars[1])
    assert rows_of(frame) == [partial]


def test_own_bars_have_the_word_from_where_they_begin() -> None:
    bars = minutes(12)
    frame = higher(4)
    for bar in bars:
        frame.add(bar)
    first, second = whole(bars)
    assert frame.take(candle(first))
    assert not frame.take(candle((*second[:4], second[4] + 1, second[5])))
    assert not frame.take(candle((START_MS + 2 * FIVE, *second[1:])))  # still open
    assert not frame.take(candle((second[0] + MINUTE, *second[1:])))  # off the grid
    assert rows_of(frame) == [first, second]


def test_a_start_that_feeds_candles_first_hands_on_the_same() -> None:
    bars = minutes(40, first=3)
    frame, again = higher(4), higher(4)
    given = [candle(row) for row in whole(minutes(60, first=-45))]
    for bar in bars[:25]:
        frame.add(bar)
    used = [candle for candle in given if frame.take(candle)]
    for given_candle in used:
        again.take(given_candle)
    for bar in bars[:25]:
        again.add(bar)
    assert rows_of(frame) == rows_of(again)
    for bar in bars[25:]:
        frame.add(bar)
        again.add(bar)
        assert rows_of(frame) == rows_of(again)
        assert frame.is_warm
        assert again.is_warm


def test_a_candle_never_fills_a_hole_of_own_bars() -> None:
    bars = minutes(15)
    frame = higher(4)
    for bar in (*bars[:7], *bars[8:]):
        frame.add(bar)
    first, second, third = whole(bars)
    assert rows_of(frame) == [first, third]
    assert not frame.take(candle(second))
    assert rows_of(frame) == [first, third]


def test_a_kept_frame_shows_for_ever_what_it_showed_and_cannot_be_written() -> None:
    frame = higher(2)
    for bar in minutes(10):
        frame.add(bar)
    kept, before = frame.bars, rows_of(frame)
    close = kept.close.copy()
    with pytest.raises(ValueError, match="read-only"):
        kept.close[0] = 1.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        kept.close.flags.writeable = True
    assert isinstance(kept.close.base, bytes)
    for bar in minutes(10, first=10, seed=2):
        frame.add(bar)
    assert (kept.close == close).all()
    assert rows_of(frame) != before


def test_reach_covers_the_open_bar_and_all_that_are_handed_on() -> None:
    assert frames_reach({"5": 4, "60": 1}, MINUTE) == 120
    assert frames_reach({}, MINUTE) == 0
    assert (
        open_frames_ms(["5", "60"], START_MS + FIVE)
        == START_MS // 3_600_000 * 3_600_000 - 3_600_000
    )
    assert open_frames_ms([], START_MS) == START_MS


@pytest.mark.parametrize(
    ("read", "advice"),
    [
        ("60", 'none; declare frames = ("60",).'),
        ("1h", 'none; declare frames = ("60",), and read context.timeframe("60").'),
        ("1m", "none; context.history has the run's own bars, which cannot make it."),
        ("7m", "none; there are the intervals 1, 3, 5, "),
    ],
)
def test_a_frame_that_was_not_declared_is_named(read: str, advice: str) -> None:
    context = BarContext.of(minutes(1), ITEM)
    with pytest.raises(StrategyFailed) as error:
        context.timeframe(read)
    said = f"context.timeframe({read!r}) was read, and frames declares {advice}"
    assert str(error.value).startswith(said)
