"""What a strategy sees: prices as prices, and a past that nothing reaches beyond or writes into."""

from __future__ import annotations

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
    with pytest.raises(AttributeError):
        setattr(now.history, name, column)
    with pytest.raises(AttributeError):
        setattr(now, name, 1.0)
    assert getattr(now.history, name).tolist() == values


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
