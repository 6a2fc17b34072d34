"""What a strategy sees: prices as prices, and a past that nothing reaches beyond or writes into."""

from __future__ import annotations

import ctypes
import pickle
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from builders import bar, bars, explanation, forecast, instrument
from hypothesis import given, settings
from hypothesis import strategies as st

from tracepaper.strategies.api.context import BarContext, BarRecord, InstrumentContext
from tracepaper.strategies.errors import StrategyFailed
from tracepaper.strategies.types.decisions import Regime
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import unscaled

COLUMNS = ("open", "high", "low", "close", "volume", "time")


class Engine:
    """Hands out a context a bar, as the engine does."""

    def __init__(self, length: int) -> None:
        self.record = BarRecord(instrument(), length)
        self._shared = InstrumentContext.of(instrument(), self.record)

    def context(self, observed: Bar) -> BarContext:
        self.record.append(observed)
        return BarContext(observed, None, Regime.UNKNOWN, None, None, self._shared)


def test_prices_are_the_nearest_floats_to_the_exact_decimals() -> None:
    candles = bars(50, seed=3)
    now = BarContext.of(candles, instrument())
    exact = candles[-1]
    assert now.exact is exact
    assert (now.symbol, now.instrument) == ("BTCUSDT", instrument())
    assert now.time == exact.close_time_ms == now.history.time[-1]
    for name in ("open", "high", "low", "close"):
        price = float(unscaled(getattr(exact, name), 2))
        assert getattr(now, name) == price == getattr(now.history, name)[-1]
    assert now.volume == float(unscaled(exact.volume, 8)) == now.history.volume[-1]
    assert now.history is now.history
    assert (now.forecast, now.explanation, now.regime, now.verdict) == (None, None, "UNKNOWN", None)


def test_a_context_shows_forecast_and_explanation() -> None:
    answer = forecast(0.01, explained=explanation())
    now = BarContext.of([bar()], instrument(), forecast=answer, regime=Regime.MIXED)
    assert (now.forecast, now.explanation, now.regime) == (answer, answer.explanation, Regime.MIXED)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 90), st.sets(st.integers(0, 89)))
def test_history_is_the_last_bars_however_often_it_is_read(
    length: int, count: int, read_at: set[int]
) -> None:
    engine, fed_bars = Engine(length), bars(count, seed=count)
    for at, observed in enumerate(fed_bars):
        now = engine.context(observed)
        if at not in read_at and at != count - 1:
            continue
        window = fed_bars[max(0, at + 1 - length) : at + 1]
        assert len(now.history) == len(window)
        assert now.history.close.tolist() == [old.close / 100 for old in window]
        assert now.history.time.tolist() == [old.close_time_ms for old in window]


def test_history_of_a_long_run_drops_what_lies_before_its_window() -> None:
    engine, candles = Engine(5), bars(3_000)
    for observed in candles:
        closes = engine.context(observed).history.close
    assert closes.tolist() == [old.close / 100 for old in candles[-5:]]
    assert engine.context(bar(index=3_000)).history.volume.size == 5


# ---------------------------------------------------------------- plants of a leak


def test_a_kept_array_and_its_base_show_for_ever_what_they_showed() -> None:
    engine, candles = Engine(10), bars(40, seed=1)
    kept: list[tuple[np.ndarray[Any, Any], list[float]]] = []
    for observed in candles:
        history = engine.context(observed).history
        kept += [(getattr(history, name), getattr(history, name).tolist()) for name in COLUMNS]
    for array, values in kept:
        assert array.tolist() == values
        owner: Any = array.base
        assert type(owner) is bytes
        assert np.frombuffer(owner, array.dtype).tolist() == values


def test_no_stride_over_a_kept_array_reaches_a_later_bar() -> None:
    engine, candles = Engine(100), bars(60, seed=2)
    third = engine.context(candles[0]), engine.context(candles[1]), engine.context(candles[2])
    kept = third[-1].history.close
    later = [engine.context(candle).history.close for candle in candles[3:]]
    beyond = np.lib.stride_tricks.as_strided(kept, (6,))
    assert kept.size == 3
    assert not set(beyond[3:].tolist()) & set(later[-1][3:].tolist())


@pytest.mark.parametrize("name", COLUMNS)
def test_history_cannot_be_written(name: str) -> None:
    engine = Engine(10)
    for observed in bars(20):
        now = engine.context(observed)
    column = getattr(now.history, name)
    values = column.tolist()
    with pytest.raises(ValueError, match="read-only"):
        column[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        column.flags.writeable = True
    with pytest.raises(ValueError, match="WRITEABLE"):
        column.view().setflags(write=True)
    with pytest.raises(TypeError, match="read-only"):
        memoryview(column)[0] = 1
    with pytest.raises(TypeError):
        ctypes.c_char.from_buffer(column)
    with pytest.raises(AttributeError):
        setattr(now.history, name, column)
    with pytest.raises(AttributeError):
        setattr(now, name, 1.0)
    copied = pickle.loads(pickle.dumps(column))
    copied[0] = 1
    assert getattr(now.history, name).tolist() == values


def test_writing_by_address_spoils_one_bars_copy_alone() -> None:
    engine, candles = Engine(4), bars(20, seed=4)
    closes = engine.context(candles[0]).history.close
    ctypes.memset(closes.ctypes.data, 0, 8)  # nothing in one process prevents that
    assert closes[0] == 0
    assert engine.context(candles[1]).history.close.tolist() == [
        old.close / 100 for old in candles[:2]
    ]


def test_no_attribute_leads_to_the_memory_that_grows() -> None:
    engine = Engine(10)
    for observed in bars(20):
        now = engine.context(observed)
    assert now.history.close.size == 10
    types = {type(node).__name__ for node in _reachable(now)}
    assert {"BarContext", "BarArrays", "ndarray", "bytes"} <= types
    assert not types & {"BarRecord", "BarColumns", "array", "bytearray", "deque"}
    arrays = [node for node in _reachable(now) if isinstance(node, np.ndarray)]
    assert not any(array.flags.writeable for array in arrays)


def _reachable(start: object) -> Iterator[object]:
    """Yield all that attributes, items and the methods' owners lead to from *start*."""
    visited: dict[int, object] = {}
    waiting: deque[object] = deque([start])
    while waiting:
        node = waiting.popleft()
        if id(node) in visited or isinstance(node, (type, ModuleType)):
            continue
        visited[id(node)] = node
        yield node
        if isinstance(node, (tuple, list)):
            waiting += node
        elif not isinstance(node, (str, bytes, int, float, np.generic)):
            for name in [
                *(attribute for attribute in dir(node) if attribute[:2] != "__"),
                "__self__",
            ]:
                with suppress(Exception):  # such as the .mT of an array of one dimension
                    waiting += [getattr(node, name)] if len(visited) < 5_000 else []


def test_the_history_of_an_earlier_bar_does_not_move_on() -> None:
    engine, candles = Engine(10), bars(3)
    first = engine.context(candles[0])
    kept = first.history
    closes = kept.close
    second = engine.context(candles[1])
    assert second.history.close.size == 2
    assert kept.close is closes
    for late in (lambda: kept.open, lambda: first.history):
        with pytest.raises(StrategyFailed, match="read its columns in the call"):
            late()
    assert second.history.close.size == 2
