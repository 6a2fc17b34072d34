"""Declared columns: bits that no block, no start and no later bar changes."""

import random
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from builders import bar, instrument

from tracepaper.strategies.api.arrays import BarArrays
from tracepaper.strategies.api.columns import (
    BLOCK_BARS,
    Column,
    ColumnRecord,
    Compute,
    checked_columns,
)
from tracepaper.strategies.errors import StrategyFailed
from tracepaper.strategies.indicators import ema
from tracepaper.strategies.types.market import Bar

LOOKBACK = 20
ITEM = instrument()


def of_history(history: BarArrays) -> dict[str, Column]:
    return {"mean": ema(history.close, 7), "traded": np.cumsum(history.volume), "at": history.time}


def walked(count: int) -> list[Bar]:
    """Bars with holes, over several blocks; the first ones of a run."""
    rng, bars, place = random.Random(5), list[Bar](), 0
    for _ in range(count):
        place += rng.choice((1, 1, 1, 1, 2, 40))
        close, volume = 100_000 + rng.randint(-900, 900), rng.randint(1, 10**6)
        bars.append(bar(close, index=place, volume=volume))
    return bars


BARS = walked(400)


NAMES = ("mean", "traded", "at")


def later_rows(column: Column) -> Column:
    """Return what the memory of *column* holds behind it."""
    memory: Any = column.base
    behind = column.ctypes.data + column.nbytes - memory.ctypes.data
    return np.asarray(memory[behind // memory.itemsize :])


def rows_at(record: ColumnRecord, bars: list[Bar]) -> dict[int, list[bytes]]:
    """Return what each bar with enough before it is handed, by its time."""
    handed = {}
    for place, each in enumerate(bars, start=1):
        record.append(each)
        if place >= LOOKBACK:
            columns = [record[each, name, False] for name in NAMES]
            assert {len(column) for column in columns} == {LOOKBACK}
            assert [record[each, name, True] for name in NAMES] == [rows[-1] for rows in columns]
            assert not any(later_rows(column).any() for column in columns)
            assert columns[2][-1] == each.closed_ms
            handed[each.open_time_ms] = [column.tobytes() for column in columns]
    return handed


def record(calls: list[int] | None = None) -> ColumnRecord:
    def counted(history: BarArrays) -> dict[str, Column]:
        if calls is not None:
            calls.append(len(history))
        return of_history(history)

    return ColumnRecord(ITEM, LOOKBACK, counted)


def test_bars_that_are_known_ahead_and_a_later_start_give_equal_bits() -> None:
    live_calls: list[int] = []
    live = rows_at(record(live_calls), BARS)
    calls: list[int] = []
    ahead = record(calls)
    for each in BARS:
        ahead.precompute_columns(each)
    assert rows_at(ahead, BARS) == live
    assert len(calls) < len(BARS) / 10 < len(live_calls)
    started = 130
    again = rows_at(record(), BARS[started:])
    settled = BARS[started + LOOKBACK + BLOCK_BARS].open_time_ms
    assert {at: again[at] for at in again if at >= settled} == {
        at: live[at] for at in live if at >= settled
    }


def normalised(history: BarArrays) -> dict[str, Column]:
    return {"mean": history.close - history.close.mean()}


def rounded_otherwise(history: BarArrays) -> dict[str, Column]:
    return {"mean": history.close * (1 + 1e-13 * len(history))}


@pytest.mark.parametrize(("compute", "is_found"), [
    (of_history, False), (rounded_otherwise, False), (normalised, True),
])  # fmt: skip
def test_a_row_that_depends_on_later_bars_is_found_where_they_are_known(
    compute: Compute, is_found: bool
) -> None:
    record = ColumnRecord(ITEM, LOOKBACK, compute)
    record.probes = True
    for each in BARS:
        record.precompute_columns(each)
    words = "where later bars are cut off: it looks ahead"
    with pytest.raises(StrategyFailed, match=words) if is_found else nullcontext():
        for place, each in enumerate(BARS, start=1):
            record.append(each)
            if place >= LOOKBACK:
                assert np.isfinite(record[each, "mean", True])


def test_a_foreseen_bar_that_does_not_come_is_in_no_value() -> None:
    without = [each for place, each in enumerate(BARS) if place != 50]
    ahead = record()
    for each in BARS:
        ahead.precompute_columns(each)
    assert rows_at(ahead, without) == rows_at(record(), without)


def test_what_is_no_column_is_refused_and_what_is_late_as_well() -> None:
    for given in (
        [1],
        {"a": np.zeros(3)},
        {"a": np.zeros((4, 1))},
        {"a": ["b"] * 4},
        {1: np.zeros(4)},
    ):
        with pytest.raises(StrategyFailed, match=r"Mine\.columns"):
            checked_columns("Mine", given, 4)
    held = record()
    rows_at(held, BARS[:30])
    for key in ((BARS[28], "mean", False), (BARS[29], "unknown", True)):
        with pytest.raises(StrategyFailed, match="was read"):
            held[key]
    with pytest.raises(ValueError, match="read-only"):
        held[BARS[29], "mean", False][0] = 0.0
