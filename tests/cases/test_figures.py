"""Public reports about figures, indicators and what a strategy sees."""

from __future__ import annotations

import json
import math
import random
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from public_cases import (
    DAY,
    HOUR,
    MINUTE,
    START,
    always,
    at_bar,
    columns,
    fills,
    play,
    records,
    scripted,
)

from tracepaper import Action, Signal
from tracepaper.replay.report.charts import price_chart
from tracepaper.replay.report.report import build_report
from tracepaper.strategies.indicators import adx, ema, macd, rsi, supertrend

ONE = {"sizing": {"mode": "fixed", "quantity": "1"}}
HUNDRED = {**ONE, "account": {"cash": "100"}}


def test_a_week_is_no_day() -> None:
    """Case 09: quantstats#116. A week earns 100 bp, so a day earns 14."""
    closes = [round(100 * 1.01**week, 2) for week in range(60)]
    opens = [closes[0], *closes[:-1]]
    bars = [
        (opened, max(opened, close), opened, close)
        for opened, close in zip(opens, closes, strict=True)
    ]
    run = play(
        always(Action.LONG), columns(bars, 7 * DAY), {"sizing": {"mode": "equity", "fraction": "1"}}
    )
    day = re.search(r"a day ([+-][\d.]+)", str(run))
    assert day is None or abs(float(day[1])) < 30


def test_a_drawdown_from_the_first_day_lasts_to_the_end() -> None:
    """Case 48: pyfolio#179, quantstats#438 and #233, freqtrade#11593, backtesting.py#535."""
    prices = [100.0] * 2 + [90.0] * 3 + [75.0] * 3 + [80.0] * 40
    run = play(at_bar({0: Signal(Action.LONG, "in")}, DAY), columns(prices, DAY), HUNDRED)
    drawdown = run.report().document["drawdowns"][0]
    assert (run.summary["max_drawdown"], drawdown["recovered_ms"]) == (0.25, None)
    assert (run.summary["drawdown_bars"], len(run.trades["side"])) == (46, 0)


def test_a_drawdown_has_its_peak_and_its_recovery() -> None:
    """Case 116: QuantInvestStrats#15, pinkfish#23, pyalgotrade#55."""
    prices = [100.0, 100.0, 99, 50, 90, 100, 101]
    run = play(at_bar({0: Signal(Action.LONG, "in")}, DAY), columns(prices, DAY), HUNDRED)
    drawdown = run.report().document["drawdowns"][0]
    assert run.summary["max_drawdown"] == 0.5
    assert (drawdown["recovered_ms"] - START) // DAY in {5, 6}


def test_bars_before_the_start_only_warm_up() -> None:
    """Case 111: Vibe-Trading#1240, backtesting.py#327, PineTS#235."""
    start = START + 200 * DAY
    run = play(
        scripted(always(Action.LONG), warmup=200),
        columns([100.0] * 100 + [200.0] * 100 + [300.0] * 100, DAY),
        {**ONE, "account": {"cash": "1000"}},
        start=start,
    )
    assert records(run.decisions)[0]["open_time_ms"] == start
    assert (run.summary["bars"], run.summary["days"]) == (100, 100.0)
    assert run.summary["buy_and_hold_return"] == pytest.approx(0)


@pytest.mark.parametrize("moves", [(0, 0, 0), (), (-5, -5), (-5, 5)])
def test_a_run_without_a_loss_or_a_gain_has_no_infinite_figure(moves: tuple[int, ...]) -> None:
    """Case 113: freqtrade#9026 and #3517, vnpy#162, quantstats#10, fund#961."""
    bars = [100.0, 100.0, *(price for move in moves for price in (100.0 + move, 100.0)), 100.0]

    def script(context: Any) -> Signal:
        is_even = ((context.time - START) // MINUTE) % 2 == 0
        return Signal(Action.LONG if is_even else Action.FLAT, "x")

    run = play(script, columns(bars), ONE)
    json.dumps(dict(run.summary), allow_nan=False)
    for name in ("trades", "hit_rate", "profit_factor"):
        assert (figure := run.summary[name]) is None or math.isfinite(figure)
    assert not re.search(r"\b(inf|nan)", str(run).lower())


def test_an_annual_sharpe_ratio_is_that_of_days_whatever_the_bars() -> None:
    """Case 114: quantstats_lumi#44, go-trader#925, FinRL#438, gekko#2064."""
    draws = np.random.default_rng(3).normal(0.001, 0.02, 120)
    days = 100 * np.exp(np.cumsum(draws))
    days[0] = days[1]

    def run(step: int, closes: npt.NDArray[np.float64], **more: Any) -> Any:
        prices = [round(float(close), 2) for close in closes]
        return play(always(Action.LONG), columns(prices, step), {**HUNDRED, **more})

    daily, hourly = run(DAY, days), run(HOUR, np.repeat(days, 24))
    free = run(DAY, days, report={"risk_free": "0.05"})
    equity = np.array([row["equity"] for row in records(daily.equity)])
    before = np.concatenate(([100], equity[:-1]))
    returns = equity / before - 1

    def annual(excess: npt.NDArray[np.float64]) -> float:
        return float(excess.mean() / excess.std(ddof=1) * 365**0.5)

    assert daily.summary["sharpe"] == pytest.approx(annual(returns), abs=0.02)
    assert daily.summary["sharpe"] == pytest.approx(hourly.summary["sharpe"], abs=0.05)
    assert free.summary["sharpe"] == pytest.approx(annual(returns - 0.05 / 365), abs=0.02)


def test_an_account_below_zero_is_named() -> None:
    """Case 117: go-trader#1005, ai-hedge-fund#688, Vibe-Trading#958."""
    prices = [100.0, 100.0] + [250.0] * 20 + [90.0] * 30
    run = play(always(Action.SHORT), columns(prices, DAY), HUNDRED)
    for text in (str(run), str(run.report())):
        assert "below zero from 2024-01-04 00:00 UTC; its lowest equity was -50.00" in text
    assert run.summary["cagr"] is None


def test_a_mean_day_of_what_a_loss_of_nearly_all_leaves_is_none() -> None:
    prices = [100.0, 100.0, 199.8, *[199.7, 199.9] * 30, *[150.0] * 5]
    run = play(always(Action.SHORT), columns(prices, DAY), HUNDRED)
    for text in (str(run), str(run.report())):
        assert "had lost 99 % or more from 2024-01-04 00:00 UTC" in " ".join(text.split())
    assert (run.summary["mean_day"], run.summary["mean_day_error"]) == (None, None)


def test_prices_of_one_value_a_day_are_plausible() -> None:
    """Case 20: portfolio-backtester#11, epymetheus#102, bt#53. A fund moves by a percent."""
    draw, price, closes = random.Random(1), 423.14, []
    for _ in range(250):
        closes.append(round(price, 2))
        price *= 1 + draw.gauss(0.0003, 0.009)
    data = {"VFIAX": columns(closes, DAY)}
    run = play("sma_cross", data, params={"fast": 3, "slow": 20})
    assert not [row for row in records(run.decisions) if row["refused_by"] == "plausible"]


@pytest.mark.parametrize("strength", [np.float32(0.5), np.int64(1), np.float16(0.5)])
def test_a_strength_may_come_from_a_library_of_numbers(strength: Any) -> None:
    """Case 15: freqtrade#3718, mlsynth#320."""
    run = play(always(Action.LONG, strength=strength), columns([100.0] * 5), ONE)
    assert fills(run)[0][1] == float(strength)


def test_a_picture_of_many_bars_and_trades_draws_few_points(tmp_path: Path) -> None:
    """Public reports: backtesting.py#35 and #840, jesse#500, fastquant#382, vectorbt#31."""
    moves = np.random.default_rng(1).normal(0, 0.0005, 4_000)
    closes = np.round(40_000 * np.exp(np.cumsum(moves)), 1).tolist()
    run = play("sma_cross", columns(closes), params={"fast": 2, "slow": 5})
    assert len(run.trades["net"]) > 400
    chart = price_chart(build_report(run.database, run.run_id), "linear:BTCUSDT")
    assert chart is not None
    layers = [layer for panel in chart.panels for layer in panel.layers]
    assert 100 < max(len(getattr(layer, "x", ())) for layer in layers) <= 1_000
    run.plot("price").save(tmp_path / "price.svg")
    assert "NaN" not in (tmp_path / "price.svg").read_text()


def test_months_and_weeks_are_known_with_the_close_of_their_last_day() -> None:
    """Case 47: freqtrade#9490, #8972 and #9518, ccxt#14959."""
    seen = {}

    def script(context: Any) -> None:
        month, week = context.timeframe("M").close, context.timeframe("W").close
        day = f"{datetime.fromtimestamp(context.time / 1000, UTC):%Y-%m-%d}"
        seen[day] = tuple(closes[-1] if len(closes) else None for closes in (month, week))

    start = int(datetime(2023, 11, 1, tzinfo=UTC).timestamp() * 1000)
    data = columns([float(place + 1) for place in range(130)], DAY, start=start)
    warmup = {"M": 1, "W": 1}
    play(scripted(script, frames=("M", "W"), frames_warmup=warmup), data)
    expected = {
        "2023-12-31": (30.0, 54.0),
        "2024-01-01": (61.0, 61.0),
        "2024-01-07": (61.0, 61.0),
        "2024-01-08": (61.0, 68.0),
        "2024-02-29": (92.0, 117.0),
        "2024-03-01": (121.0, 117.0),
    }
    assert {day: seen[day] for day in expected} == expected


def test_a_higher_candle_is_known_when_it_closed_and_not_before() -> None:
    """Case 120: freqtrade#12507 and #4073, technical#250 and #283."""
    steps = {"15": 15 * MINUTE, "60": HOUR, "D": DAY}
    seen: dict[str, list[tuple[int, int]]] = {name: [] for name in steps}

    def script(context: Any) -> None:
        for name in steps:
            times = context.timeframe(name).time
            if len(times):
                seen[name].append((context.time, int(times[-1])))

    warmup = {"15": 3, "60": 3, "D": 1}
    player = scripted(script, frames=tuple(steps), frames_warmup=warmup)
    play(player, columns([100.0 + place % 9 for place in range(2 * 1440)]))
    assert len(seen["60"]) > 1000
    for name, step in steps.items():
        assert [last for _, last in seen[name]] == [now // step * step for now, _ in seen[name]]


def test_supertrend_is_that_of_the_published_pine_code() -> None:
    """Case 122: pandas-ta#591, #357 and #116, debut-js/Indicators#29. Wilder's ATR, final bands."""
    draw, bars, period, factor = np.random.default_rng(1), 800, 10, 3.0
    close = 100 + np.cumsum(draw.normal(0, 1, bars))
    opens = np.concatenate(([100], close[:-1]))
    high = np.maximum(opens, close) + draw.random(bars)
    low = np.minimum(opens, close) - draw.random(bars)
    gaps = np.maximum(abs(high[1:] - close[:-1]), abs(low[1:] - close[:-1]))
    ranges = np.concatenate(([high[0] - low[0]], np.maximum(high[1:] - low[1:], gaps)))
    line, side = np.full(bars, np.nan), np.ones(bars)
    average = upper = lower = math.nan
    for place in range(period - 1, bars):
        is_first = place == period - 1
        average = (
            ranges[:period].mean() if is_first else average + (ranges[place] - average) / period
        )
        middle, width = (high[place] + low[place]) / 2, factor * average
        before_upper, before_lower = upper, lower
        if is_first or middle + width < upper or close[place - 1] > upper:
            upper = middle + width
        if is_first or middle - width > lower or close[place - 1] < lower:
            lower = middle - width
        if is_first:
            side[place] = 1
        elif line[place - 1] == before_upper:
            side[place] = -1 if close[place] > upper else 1
        else:
            assert line[place - 1] == before_lower
            side[place] = 1 if close[place] < lower else -1
        line[place] = lower if side[place] == -1 else upper  # in Pine -1 is up
    computed, direction = supertrend(high, low, close)
    np.testing.assert_allclose(computed[200:], line[200:], atol=1e-6)
    assert (np.sign(direction[200:]) == -side[200:]).all()


def test_a_recursive_indicator_does_not_know_where_the_run_began() -> None:
    """Case 123: Lean#8623, freqtrade#5957, backtesting.py#674."""
    moves = np.random.default_rng(2).normal(0, 0.3, 2000)
    closes = [round(float(close), 2) for close in 100 + np.cumsum(moves)]

    def values(first: int) -> dict[int, tuple[float, ...]]:
        seen: dict[int, tuple[float, ...]] = {}

        def script(context: Any) -> None:
            past = context.history
            seen[context.time] = (
                ema(past.close, 20)[-1],
                rsi(past.close, 14)[-1],
                macd(past.close)[2][-1],
                adx(past.high, past.low, past.close, 14)[-1],
            )

        data = columns(closes[first:], start=START + first * MINUTE)
        play(scripted(script, warmup=300), data)
        return seen

    early, late = values(1000), values(1400)
    common = early.keys() & late.keys()
    assert len(common) > 200
    assert all(early[time] == late[time] for time in common)
