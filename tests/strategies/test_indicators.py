"""Indicators: TA-Lib's values on the same array; of windows, whatever lies before them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import talib
from hypothesis import given, settings
from hypothesis import strategies as st

from tracepaper.strategies import indicators as ind
from tracepaper.strategies.errors import StrategyFailed
from tracepaper.strategies.smoothing import Floats
from tracepaper.strategies.without_value import IndicatorCall, IndicatorWatch

Candles = dict[str, Floats]
Found = Floats | tuple[Floats, ...]
HLC = ("high", "low", "close")
CLOSE = ("close",)


def candles(rows: int, seed: int, *, still: bool = False) -> Candles:
    """Return columns of a walk from 100; *still* has many bars without range, change or volume."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0.0, 1.0, rows)
    reach = rng.random((2, rows))
    volume = rng.random(rows) * 1e3
    if still:
        quiet = rng.random(rows) < 0.8
        steps[quiet], reach[:, quiet], volume[quiet] = 0.0, 0.0, 0.0
    close = 100 * np.exp(np.cumsum(steps) / 100)
    before = np.concatenate([close[:1], close[:-1]])
    high, low = np.maximum(before, close) + reach[0], np.minimum(before, close) - reach[1]
    return {"open": before, "high": high, "low": low, "close": close, "volume": volume}


CLOSES = candles(40, seed=5)["close"]


def parts(result: Found) -> tuple[Floats, ...]:
    return result if isinstance(result, tuple) else (result,)


def of(
    function: Callable[..., Any], *given: float, window: int | None = None
) -> Callable[..., Any]:
    """Return *function* with its last arguments given."""
    named = {} if window is None else {"window": window}
    return lambda *columns: function(*columns, *given, **named)


def sorted_by(function: Callable[..., Any], step: int = 1) -> Callable[..., Any]:
    """Return *function* of values that rise, or by a *step* of -1 fall."""
    return lambda values: function(np.sort(values)[::step].copy())


COUNTERPARTS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[str, ...]]] = {
    "sma": (ind.sma, talib.SMA, CLOSE),
    "sma of 3": (of(ind.sma, 3), of(talib.SMA, 3), CLOSE),
    "ema": (ind.ema, talib.EMA, CLOSE),
    "macd": (ind.macd, talib.MACD, CLOSE),
    "macd of others": (of(ind.macd, 5, 9, 4), of(talib.MACD, 5, 9, 4), CLOSE),
    "stddev": (ind.stddev, talib.STDDEV, CLOSE),
    "bbands": (ind.bbands, talib.BBANDS, CLOSE),
    "bbands of 20": (of(ind.bbands, 20, 1.5, 3.0), of(talib.BBANDS, 20, 1.5, 3.0), CLOSE),
    "trange": (ind.trange, talib.TRANGE, HLC),
    "atr": (ind.atr, talib.ATR, HLC),
    "natr": (ind.natr, talib.NATR, HLC),
    "highest": (ind.highest, talib.MAX, CLOSE),
    "lowest": (ind.lowest, talib.MIN, CLOSE),
    "mom": (ind.mom, talib.MOM, CLOSE),
    "roc": (ind.roc, talib.ROC, CLOSE),
    "rsi": (ind.rsi, talib.RSI, CLOSE),
    "rsi of 2": (of(ind.rsi, 2), of(talib.RSI, 2), CLOSE),
    "rsi of no change": (lambda x: ind.rsi(x * 0 + 5), lambda x: talib.RSI(x * 0 + 5), CLOSE),
    "rsi of rises": (sorted_by(ind.rsi), sorted_by(talib.RSI), CLOSE),
    "rsi of falls": (sorted_by(ind.rsi, -1), sorted_by(talib.RSI, -1), CLOSE),
    "stoch": (ind.stoch, talib.STOCH, HLC),
    "willr": (ind.willr, talib.WILLR, HLC),
    "cci": (ind.cci, talib.CCI, HLC),
    "adx": (ind.adx, talib.ADX, HLC),
    "adx of 3": (of(ind.adx, 3), of(talib.ADX, 3), HLC),
    "obv": (ind.obv, talib.OBV, ("close", "volume")),
    "linearreg": (ind.linearreg, talib.LINEARREG, CLOSE),
    "wma": (ind.wma, talib.WMA, CLOSE),
    "wma of 3": (of(ind.wma, 3), of(talib.WMA, 3), CLOSE),
    "dema": (of(ind.dema, 7), of(talib.DEMA, 7), CLOSE),
    "tema": (of(ind.tema, 7), of(talib.TEMA, 7), CLOSE),
    "tema of 30": (ind.tema, talib.TEMA, CLOSE),
    "trix": (of(ind.trix, 7), of(talib.TRIX, 7), CLOSE),
    "sar": (ind.sar, talib.SAR, ("high", "low")),
    "sar of others": (of(ind.sar, 0.1, 0.3), of(talib.SAR, 0.1, 0.3), ("high", "low")),
    "sar at its most": (of(ind.sar, 0.3, 0.2), of(talib.SAR, 0.3, 0.2), ("high", "low")),
    "stochf": (ind.stochf, talib.STOCHF, HLC),
    "stochrsi": (ind.stochrsi, talib.STOCHRSI, CLOSE),
    "plus_di": (ind.plus_di, talib.PLUS_DI, HLC),
    "minus_di": (of(ind.minus_di, 3), of(talib.MINUS_DI, 3), HLC),
    "aroon": (ind.aroon, talib.AROON, ("high", "low")),
    "mfi": (ind.mfi, talib.MFI, (*HLC, "volume")),
    "mfi of 3": (of(ind.mfi, 3), of(talib.MFI, 3), (*HLC, "volume")),
}


@pytest.mark.parametrize("name", COUNTERPARTS)
@pytest.mark.parametrize("rows", [1, 2, 14, 28, 35, 300])
@pytest.mark.parametrize("still", [False, True], ids=["walk", "still"])
def test_values_and_lookback_are_talibs(name: str, rows: int, still: bool) -> None:
    """Public reports: vectorbt#471 and #650, pandas-ta#69, #233 and #553, ta4j#454, Lean#6506."""
    ours, theirs, columns = COUNTERPARTS[name]
    table = candles(rows, seed=rows, still=still)
    given_columns = [table[column] for column in columns]
    for column, two in zip(parts(ours(*given_columns)), parts(theirs(*given_columns)), strict=True):
        assert column.tolist() == pytest.approx(two.tolist(), rel=1e-9, abs=1e-8, nan_ok=True)


PERIOD, WINDOW = 7, 30
WINDOWED: dict[str, tuple[Callable[..., Any], tuple[str, ...], int]] = {
    "sma": (of(ind.sma, PERIOD), CLOSE, PERIOD),
    "ema": (lambda x: ind.ema(x, PERIOD, window=WINDOW), CLOSE, WINDOW),
    "macd": (lambda x: ind.macd(x, 4, 7, 3, window=WINDOW), CLOSE, 2 * WINDOW - 1),
    "rsi": (lambda x: ind.rsi(x, PERIOD, window=WINDOW), CLOSE, WINDOW),
    "atr": (lambda high, low, close: ind.atr(high, low, close, PERIOD, window=WINDOW), HLC, WINDOW),
    "natr": (
        lambda high, low, close: ind.natr(high, low, close, PERIOD, window=WINDOW),
        HLC,
        WINDOW,
    ),
    "adx": (
        lambda high, low, close: ind.adx(high, low, close, PERIOD, window=WINDOW),
        HLC,
        2 * WINDOW - 1,
    ),
    "obv": (lambda *x: ind.obv(*x, window=WINDOW), ("close", "volume"), WINDOW),
    "stddev": (of(ind.stddev, PERIOD), CLOSE, PERIOD),
    "zscore": (of(ind.zscore, PERIOD), CLOSE, PERIOD),
    "bbands": (of(ind.bbands, PERIOD), CLOSE, PERIOD),
    "donchian": (of(ind.donchian, PERIOD), ("high", "low"), PERIOD),
    "vwap": (of(ind.vwap, PERIOD), (*HLC, "volume"), PERIOD),
    "mom": (of(ind.mom, PERIOD), CLOSE, PERIOD + 1),
    "roc": (of(ind.roc, PERIOD), CLOSE, PERIOD + 1),
    "stoch": (of(ind.stoch, 5, 3, 3), HLC, 9),
    "willr": (of(ind.willr, PERIOD), HLC, PERIOD),
    "cci": (of(ind.cci, PERIOD), HLC, PERIOD),
    "linearreg": (of(ind.linearreg, PERIOD), CLOSE, PERIOD),
    "trange": (ind.trange, HLC, 2),
    "wma": (of(ind.wma, PERIOD), CLOSE, PERIOD),
    "hma": (of(ind.hma, PERIOD), CLOSE, PERIOD + 1),
    "vwma": (of(ind.vwma, PERIOD), ("close", "volume"), PERIOD),
    "rma": (lambda x: ind.rma(x, PERIOD, window=WINDOW), CLOSE, WINDOW),
    "dema": (lambda x: ind.dema(x, 3, window=12), CLOSE, 23),
    "tema": (lambda x: ind.tema(x, 3, window=12), CLOSE, 34),
    "trix": (lambda x: ind.trix(x, 3, window=12), CLOSE, 35),
    "keltner": (of(ind.keltner, PERIOD, window=WINDOW), HLC, WINDOW),
    "ichimoku": (of(ind.ichimoku, 3, 5, 8, 4), ("high", "low"), 12),
    "supertrend": (of(ind.supertrend, PERIOD, window=WINDOW), HLC, WINDOW),
    "sar": (of(ind.sar, window=WINDOW), ("high", "low"), WINDOW),
    "heikin_ashi": (of(ind.heikin_ashi, window=WINDOW), ("open", *HLC), WINDOW),
    "stochf": (of(ind.stochf, 5, 3), HLC, 7),
    "stochrsi": (lambda x: ind.stochrsi(x, PERIOD, 5, 3, window=WINDOW), CLOSE, WINDOW + 6),
    "plus_di": (of(ind.plus_di, PERIOD, window=WINDOW), HLC, WINDOW),
    "minus_di": (of(ind.minus_di, PERIOD, window=WINDOW), HLC, WINDOW),
    "aroon": (of(ind.aroon, PERIOD), ("high", "low"), PERIOD + 1),
    "mfi": (of(ind.mfi, PERIOD), (*HLC, "volume"), PERIOD + 1),
    "cmf": (of(ind.cmf, PERIOD), (*HLC, "volume"), PERIOD),
    "crossover": (lambda x, y: ind.crossover(x, y).astype(float), ("close", "open"), 2),
    "crossunder": (lambda x, y: ind.crossunder(x, y).astype(float), ("close", "open"), 2),
}
WITHOUT_VOLUME = {"vwap", "vwma", "cmf"}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(60, 150), st.booleans())
@pytest.mark.parametrize("name", WINDOWED)
def test_a_windowed_value_follows_from_its_rows_and_no_others(
    name: str, seed: int, rows: int, still: bool
) -> None:
    function, columns, depends_on = WINDOWED[name]
    table = candles(rows, seed, still=still)
    whole = parts(function(*(table[column] for column in columns)))
    end = rows - seed % (rows - depends_on + 1)
    for cut in (slice(end - depends_on, end), slice(0, end)):
        some = parts(function(*(table[column][cut] for column in columns)))
        for column, two in zip(whole, some, strict=True):
            assert column[end - 1] == pytest.approx(two[-1], rel=1e-9, abs=1e-9, nan_ok=True)
            assert not np.isnan(column[depends_on - 1 :]).any() or name in {
                "zscore",
                *WITHOUT_VOLUME,
            }


@pytest.mark.parametrize("name", WINDOWED)
def test_a_value_that_is_missing_says_how_many_rows_give_one(name: str) -> None:
    function, columns, _ = WINDOWED[name]
    table, watch = candles(200, seed=3), IndicatorWatch()

    def missing(rows: int) -> list[IndicatorCall]:
        watch.clear()
        with watch:
            function(*(table[column][:rows] for column in columns))
        return list(watch.calls)

    if not (at_one_row := missing(1)):
        assert name in {"obv", "heikin_ashi"}
        return
    (call,) = at_one_row
    assert call.is_short
    (short,) = missing(call.needed - 1)
    assert short == replace(call, rows=call.needed - 1)
    assert not missing(call.needed)
    missing(1)
    assert watch.sentence(1, {}) == (
        f"{call.call} has no value with 1 bar of history: set warmup = {call.needed} or more"
    )
    assert watch.sentence(5, {"60": 1}).endswith(
        f'set frames_warmup = {{"60": {call.needed}}} or more'
    )
    assert watch.sentence(5, {}).endswith(f"has no value with 1 row: give it {call.needed} or more")


SETTLING: dict[str, tuple[Callable[..., Any], tuple[str, ...], int]] = {
    "ema": (of(ind.ema, 21), CLOSE, 94),
    "rma": (of(ind.rma, 14), CLOSE, 108),
    "rsi": (of(ind.rsi, 14), CLOSE, 109),
    "atr": (of(ind.atr, 14), HLC, 109),
    "dema": (of(ind.dema, 20), CLOSE, 131),
    "trix": (of(ind.trix, 10), CLOSE, 84),
    "macd": (of(ind.macd), CLOSE, 129),
    "adx": (of(ind.adx, 14), HLC, 153),
    "keltner": (of(ind.keltner, 20), HLC, 91),
    "supertrend": (of(ind.supertrend, 10), HLC, 77),
    "stochrsi": (of(ind.stochrsi), CLOSE, 115),
    "heikin_ashi": (of(ind.heikin_ashi), ("open", *HLC), 11),
    "an ema of an ema": (lambda close: ind.ema(ind.ema(close, 9), 21), CLOSE, 133),
    "a cross": (lambda close: ind.crossover(ind.ema(close, 9), ind.ema(close, 21)), CLOSE, 95),
}


@pytest.mark.parametrize("name", SETTLING)
def test_a_smoothing_says_after_how_many_rows_what_is_cut_off_weighs_nothing(name: str) -> None:
    """What came before the last *needed* rows moves the newest value by 2 % of its spread."""
    function, columns, needed = SETTLING[name]
    table, watch = candles(900, seed=3), IndicatorWatch(1)
    with watch:
        whole = function(*(table[column] for column in columns))
    assert watch.calls[-1].needed == needed
    moved = [column.copy() for column in (table[name] for name in columns)]
    for column in moved:
        column[: 900 - needed] *= 1.02
    last = [part[-1] for part in parts(function(*moved))]
    spreads = [float(np.nanmax(part * 1.0) - np.nanmin(part)) for part in parts(whole)]
    for value, part, spread in zip(last, parts(whole), spreads, strict=True):
        assert abs(value * 1.0 - part[-1]) <= 0.02 * spread


@given(st.integers(0, 10_000), st.integers(20, 200), st.integers(2, 19))
@settings(max_examples=60, deadline=None)
def test_a_windowed_ema_is_as_near_to_the_endless_one_as_it_says(
    seed: int, window: int, period: int
) -> None:
    close = candles(400, seed)["close"]
    endless, windowed = ind.ema(close, period), ind.ema(close, period, window=window)
    bound = (1 - 2 / (period + 1)) ** (window - period) * np.ptp(close)
    assert np.nanmax(np.abs(endless - windowed)) <= bound + 1e-9


@given(st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=20), st.data())
def test_a_ratio_is_the_same_with_and_without_a_zero_beside_it(
    rows: list[float], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(rows)))
    with_zero = [*rows[:at], 0.0, *rows[at:]]
    changes = np.array(rows, float)[1:] - np.array(rows, float)[:-1]
    expected = 100 * (changes / np.array(rows, float)[:-1])
    assert ind.roc(np.array(rows), 1)[1:].tolist() == expected.tolist()
    floats = ind.roc(np.array(with_zero), 1)
    kept = [place for place in range(1, len(with_zero)) if place not in {at, at + 1}]
    of_rows = [place - (place > at) for place in kept]
    assert floats[kept].tolist() == expected[[place - 1 for place in of_rows]].tolist()
    if at < len(rows):
        assert floats[at + 1] == 0.0


def test_what_talib_lacks_is_what_it_says() -> None:
    table = candles(40, seed=5)
    close = table["close"]
    last = close[-10:]
    assert ind.zscore(close, 10)[-1] == pytest.approx((last[-1] - last.mean()) / last.std())
    assert np.isnan(ind.zscore(np.full(20, 3.3), 10)).all()
    upper, middle, lower = ind.donchian(table["high"], table["low"], 10)
    assert (upper[-1], lower[-1]) == (table["high"][-10:].max(), table["low"][-10:].min())
    assert middle[-1] == (upper[-1] + lower[-1]) / 2
    typical = (table["high"] + table["low"] + close) / 3
    mean = np.average(typical[-10:], weights=table["volume"][-10:])
    columns = table["high"], table["low"], close
    assert ind.vwap(*columns, table["volume"], 10)[-1] == pytest.approx(mean)
    assert np.isnan(ind.vwap(*columns, np.zeros(40), 10)).all()


def weighted(values: Floats) -> float:
    """Return the mean of *values* that counts the oldest once and the newest most."""
    return sum((place + 1) * value for place, value in enumerate(values)) / sum(
        range(1, len(values) + 1)
    )


def test_means_that_talib_lacks_are_those_of_their_definition() -> None:
    table = candles(40, seed=6)
    close, volume = table["close"], table["volume"]
    ahead = [
        2 * weighted(close[end - 4 : end]) - weighted(close[end - 9 : end]) for end in (38, 39, 40)
    ]
    assert ind.hma(close, 9)[-1] == pytest.approx(weighted(np.array(ahead)))
    assert np.isnan(ind.hma(close, 9)[:10]).all()
    assert not np.isnan(ind.hma(close, 9)[10:]).any()
    assert ind.vwma(close, volume, 10)[-1] == pytest.approx(
        np.average(close[-10:], weights=volume[-10:])
    )
    assert np.isnan(ind.vwma(close, np.zeros(40), 10)).all()
    mean = close[:7].mean()
    for value in close[7:]:
        mean += (value - mean) / 7
    assert ind.rma(close, 7)[-1] == pytest.approx(mean)


def test_channels_and_candles_that_talib_lacks_are_those_of_their_definition() -> None:
    table = candles(80, seed=7)
    high, low, close = (table[column] for column in HLC)
    upper, middle, lower = ind.keltner(high, low, close, 10, 1.5)
    far = 1.5 * talib.EMA(talib.TRANGE(high, low, close)[1:], 10)[-1]
    assert middle[-1] == pytest.approx(talib.EMA(close, 10)[-1])
    assert (upper[-1] - middle[-1], middle[-1] - lower[-1]) == pytest.approx((far, far))
    conversion, base, first, second = ind.ichimoku(high, low, 3, 5, 8, 4)

    def centre(period: int, end: int) -> float:
        return float(high[end - period : end].max() + low[end - period : end].min()) / 2

    assert (conversion[-1], base[-1]) == (centre(3, 80), centre(5, 80))
    assert first[-1] == (centre(3, 76) + centre(5, 76)) / 2
    assert second[-1] == centre(8, 76)
    assert np.isnan(second[:11]).all()
    assert not np.isnan(second[11:]).any()
    opened, top, bottom, mean = ind.heikin_ashi(table["open"], high, low, close)
    previous = (table["open"][0] + close[0]) / 2
    for row in range(80):
        expected = (table["open"][row] + high[row] + low[row] + close[row]) / 4
        assert (opened[row], mean[row]) == pytest.approx((previous, expected))
        assert top[row] == max(high[row], opened[row], mean[row])
        assert bottom[row] == min(low[row], opened[row], mean[row])
        previous = (previous + expected) / 2
    flow = [
        (2 * close[row] - high[row] - low[row]) / (high[row] - low[row]) * table["volume"][row]
        for row in range(70, 80)
    ]
    flow_share = ind.cmf(high, low, close, table["volume"], 10)[-1]
    assert flow_share == pytest.approx(sum(flow) / table["volume"][-10:].sum())


@pytest.mark.parametrize("seed", range(6))
def test_supertrend_is_pines(seed: int) -> None:
    """Its bands never loosen, and it turns where the close passes the one that it follows."""
    table = candles(300, seed, still=seed > 3)
    high, low, close = (table[column] for column in HLC)
    lines, sides = ind.supertrend(high, low, close, 5, 1.5)
    mean = talib.ATR(high, low, close, 5)
    upper: float | None = None
    lower: float | None = None
    line: float | None = None
    side = -1
    for row in range(300):
        if np.isnan(mean[row]):
            assert np.isnan(lines[row])
            continue
        above = (high[row] + low[row]) / 2 + 1.5 * mean[row]
        below = (high[row] + low[row]) / 2 - 1.5 * mean[row]
        before_upper = above if upper is None else upper
        before_lower = below if lower is None else lower
        last = line
        if not (below > before_lower or close[row - 1] < before_lower):
            below = before_lower
        if not (above < before_upper or close[row - 1] > before_upper):
            above = before_upper
        if last is None:
            side = -1
        elif last == upper:
            side = 1 if close[row] > above else -1
        else:
            side = -1 if close[row] < below else 1
        upper, lower, line = above, below, below if side > 0 else above
        assert (lines[row], sides[row]) == pytest.approx((line, side))
    assert set(sides[~np.isnan(sides)]) == {-1.0, 1.0}


def test_a_crossing_is_of_the_row_in_which_the_side_changes() -> None:
    values = np.array([np.nan, 1.0, 2.0, 3.0, 2.0, 2.0, 1.0, 3.0])
    other = np.array([2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, np.nan])
    assert ind.crossover(values, other).nonzero()[0].tolist() == [3]
    assert ind.crossover(values, 2.0).nonzero()[0].tolist() == [3, 7]
    assert ind.crossunder(values, other).nonzero()[0].tolist() == [6]
    assert ind.crossunder(values, 2).nonzero()[0].tolist() == [6]
    assert not ind.crossover(values[1:2], 0.0).any()


def test_every_indicator_is_compared() -> None:
    tried = {name.split()[0] for name in (*COUNTERPARTS, *WINDOWED)}
    assert [name for name in ind.__all__ if name not in tried] == []


@pytest.mark.parametrize("name", WINDOWED)
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000))
def test_a_series_or_list_gives_the_values_of_its_array(name: str, seed: int) -> None:
    """Public reports: finta#74, bta-lib#2, backtesting.py#44."""
    function, columns, _ = WINDOWED[name]
    table = candles(80, seed, still=seed % 2 > 0)
    arrays = [np.round(table[column], 3) for column in columns]
    expected = [column.tolist() for column in parts(function(*arrays))]
    held: list[Callable[[Floats], Any]] = [
        lambda rows: pd.Series(rows, index=range(1_000, 1_000 + rows.size)),
        lambda rows: pd.Series(rows, dtype="Float64"),
        pl.Series,
        list,
    ]
    for kind in held:
        found = parts(function(*map(kind, arrays)))
        assert all(isinstance(column, np.ndarray) for column in found)
        np.testing.assert_equal([column.tolist() for column in found], expected)
    whole = [np.round(rows) for rows in arrays]
    of_integers = parts(function(*(rows.astype(np.int64) for rows in whole)))
    np.testing.assert_equal(of_integers, parts(function(*whole)))


@pytest.mark.parametrize("name", WINDOWED)
def test_no_value_depends_on_the_unit_of_prices_or_volumes(name: str) -> None:
    """A coin at a millionth of the price, in which a millionth is traded, has the same picture.

    Public reports: TA-Lib/ta-lib#244, ta-rs#10, stockstats#78, trading-signals#1214.
    """
    function, columns, _ = WINDOWED[name]
    table = candles(120, seed=4, still=True)
    small = {column: rows * 2.0**-40 for column, rows in table.items()}  # exact in binary
    for column, tiny in zip(
        parts(function(*(table[name] for name in columns))),
        parts(function(*(small[name] for name in columns))),
        strict=True,
    ):
        scaled = [tiny, tiny * 2.0**40, tiny * 2.0**80]  # of no unit, of one, or of money
        assert any(np.array_equal(column, each, equal_nan=True) for each in scaled)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        (
            "atr",
            (CLOSES, 14),
            "(high, low, close, period=14, window=None) failed: low is one number",
        ),
        ("rsi", (CLOSES[:, None],), "failed: values is shape (40, 1); give a column of numbers"),
        (
            "vwma",
            (CLOSES, CLOSES[1:]),
            "vwma(values, volume, period=20) failed: operands could not",
        ),
        ("macd", (CLOSES, "x"), "macd(values, fast=12, slow=26, signal=9, window=None) failed"),
        ("ema", (["1", "two"],), "failed: could not convert string to float: 'two'."),
    ],
    ids=["columns", "shape", "lengths", "text", "words"],
)
def test_an_error_inside_an_indicator_prints_its_parameters(
    name: str, arguments: tuple[object, ...], said: str
) -> None:
    with pytest.raises(StrategyFailed) as refused:
        getattr(ind, name)(*arguments)
    assert said in str(refused.value)


def test_a_period_or_window_that_cannot_be_is_refused_in_a_sentence() -> None:
    close = candles(40, seed=5)["close"]
    with pytest.raises(StrategyFailed, match="period of 0 is too short; give 1 or more"):
        ind.sma(close, 0)
    with pytest.raises(StrategyFailed, match="window of 10 rows is too short for its period"):
        ind.ema(close, 14, window=10)
