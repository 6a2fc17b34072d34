"""Which of another symbol's bars a bar knows: those that closed and came, and no others."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from msgspec import structs
from other_symbol_cases import LEADER, LED, candles, closes

from tracepaper.strategies.covariates import Ids
from tracepaper.strategies.features.rows import columns, compute, schema, with_covariates
from tracepaper.strategies.forecasters.base import FeatureMemory, FeatureWindow
from tracepaper.strategies.other_symbol import KnownOtherBars, OtherColumns, RunOtherBars
from tracepaper.strategies.types.market import Bar, CloseStart, Event

COUNT = 540
SCHEMA = schema("v2-1m")
LAST = COUNT - 1


def source_of(events: Iterable[Event]) -> RunOtherBars:
    source = RunOtherBars(LEADER, "v2-1m")
    for event in events:
        source.see(event)
    return source


def close_of(place: int) -> Ids:
    return np.array([candles(LED, place + 1).bars()[-1].closed_ms])


def knows(source: RunOtherBars, place: int, symbol: str = LED) -> bool:
    return bool(np.isfinite(source.at(symbol, close_of(place)).values).all())


def test_the_row_of_a_bar_is_the_feature_row_of_the_others_bar_of_its_close() -> None:
    source = source_of(closes(COUNT))
    leader = compute(SCHEMA, columns(candles(LEADER, COUNT).bars()))
    times = np.concatenate([close_of(place) for place in (LAST - 20, LAST)])
    rows = OtherColumns.of(SCHEMA.names, source).at(LED, times, 60_000)
    assert np.array_equal(rows, leader.values[[LAST - 20, LAST]])
    fixed = KnownOtherBars(LEADER, SCHEMA.names, times, leader.values[[LAST - 20, LAST]])
    assert np.array_equal(OtherColumns.of(SCHEMA.names, fixed).at(LED, times, 60_000), rows)
    assert np.isnan(fixed.at(LED, times + 1).values).all()
    assert np.isnan(fixed.at(LEADER, times).values).all()


def test_its_first_rows_and_the_rows_of_the_symbol_itself_are_unknown() -> None:
    source = source_of(closes(COUNT))
    assert [knows(source, place) for place in (SCHEMA.lookback - 2, SCHEMA.lookback - 1)] == [
        False,
        True,
    ]
    assert not knows(source, LAST, LEADER)
    assert not knows(source, LAST, "CCCUSDT")  # nothing of it has come


@pytest.mark.parametrize("is_first", [True, False])
def test_in_one_close_the_order_of_the_bars_is_nothing(is_first: bool) -> None:
    *before, closed, led, leader = closes(COUNT)
    pair = (leader, led) if is_first else (led, leader)
    assert knows(source_of([*before, closed, *pair]), LAST)


def test_alone_a_bar_knows_what_came_before_it_and_no_later_one() -> None:
    *before, _, led, leader = closes(COUNT)
    assert knows(source_of([*before, leader, led]), LAST)
    assert not knows(source_of([*before, led, leader]), LAST)
    assert not knows(source_of([*before, led]), LAST)


def test_a_late_bar_is_known_from_the_next_own_bar_on() -> None:
    source = source_of(closes(COUNT, lacks=[LAST - 6], late=3))
    late = close_of(LAST - 6)
    by = [
        bool(
            np.isfinite(source.rows_by(LED, late, int(close_of(LAST - 6 + after)[0])).values).all()
        )
        for after in range(6)
    ]
    assert by == [False, False, False, False, True, True]
    assert np.isnan(source.rows_by(LED, late, 1).values).all()  # by a bar that never came


def test_a_revision_changes_nothing() -> None:
    events = list(closes(COUNT))
    source = source_of(events)
    rows = source.at(LED, close_of(LAST)).values.copy()
    leader = events[-1]
    assert isinstance(leader, Bar)
    source.see(structs.replace(leader, close=leader.close + 50))
    assert np.array_equal(source.at(LED, close_of(LAST)).values, rows)


@pytest.mark.parametrize(
    ("lacks", "late", "refused"), [((), 0, 0), ((530,), 0, 1), ((530,), 3, 4), ((531,), 1, 2)]
)
def test_a_window_taken_at_once_is_that_of_bars_taken_one_by_one(
    lacks: tuple[int, ...], late: int, refused: int
) -> None:
    events = list(closes(COUNT, lacks=lacks, late=late))
    led_bars = [event for event in events if isinstance(event, Bar) and LED in event.instrument]
    source = RunOtherBars(LEADER, "v2-1m")
    wide = with_covariates(SCHEMA, OtherColumns.of(SCHEMA.names, source))
    step, memory = FeatureWindow(20, wide), FeatureMemory(wide)
    sigmas: list[float | None] = []
    asking: Bar | None = None
    due = 0
    for event in events:  # live: each bar is asked before what follows is seen
        source.see(event)
        if isinstance(event, CloseStart):
            due = event.bars
        elif isinstance(event, Bar):
            due -= 1
            if event.instrument == led_bars[0].instrument:
                asking = event
            if due == 0 and asking is not None:
                rows_of_step = memory.take_group([asking])
                sigmas.append(step.take(asking, rows_of_step, 0))
                asking = None
    scan, warmed = FeatureWindow(20, wide), FeatureWindow(20, wide)
    rows = FeatureMemory(wide).of("scanned").take_all(led_bars)
    asked = led_bars[SCHEMA.lookback - 1 :]
    unit = np.array([scan.take(bar, rows, at) for at, bar in enumerate(asked)], dtype=float)
    assert set(sigmas[: -len(asked)]) == {None}
    assert np.array_equal(unit, np.array(sigmas[-len(asked) :], dtype=float), equal_nan=True)
    last = led_bars[-(19 + SCHEMA.lookback) :]
    warmed.fill(last, FeatureMemory(wide).of("warmed").take_all(last))
    assert warmed.is_full
    assert np.array_equal(scan.rows, step.rows)
    assert np.array_equal(warmed.rows, step.rows)
    row = scan.rows[530 - COUNT]
    assert bool((row[len(SCHEMA.names) : -1] == 0).all()) == (530 in lacks and not late)
    assert np.isnan(unit[-20:]).sum() == refused
