from __future__ import annotations

from collections.abc import Callable

import empyrical
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import stdtrit

from tracepaper.replay.report import metrics
from tracepaper.replay.report.metrics import Floats

HOUR = 3_600_000
DAY = 24 * HOUR
START = 1_735_689_600_000  # 2025-01-01

returns = st.lists(
    st.integers(-2_000, 2_000).map(lambda points: points / 10_000), min_size=3, max_size=200
).filter(lambda values: len(set(values)) > 1)


def near(number: float) -> object:
    return pytest.approx(number, rel=1e-7, abs=1e-9)


def curve(values: list[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return an equity curve that starts at a million and has these returns."""
    return 1_000_000.0 * np.concatenate(([1.0], np.cumprod(1.0 + np.array(values))))


def closes(count: int, interval_ms: int = DAY) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the closes of *count* bars from the first of January on."""
    return START + interval_ms * np.arange(1, count + 1)


@given(returns.filter(lambda values: len(values) >= 30))
def test_figures_of_a_year_equal_the_established_library(values: list[float]) -> None:
    performance = metrics.performance(closes(len(values)), curve(values), DAY)
    series = np.array(values, dtype=np.float64)
    options = {"annualization": 365}
    assert performance.days == len(values)
    assert performance.total_return == near(empyrical.cum_returns_final(series))
    assert performance.max_drawdown == near(-empyrical.max_drawdown(series))
    assert performance.volatility == near(empyrical.annual_volatility(series, **options))
    assert performance.sharpe == near(empyrical.sharpe_ratio(series, **options))
    assert performance.mean_day == near(float(series.mean()))
    assert performance.error_day is not None
    growth = float(np.log1p(series).sum()) * 365 / series.size
    if growth < 600:
        expected = empyrical.cagr(series, **options)
        assert performance.cagr == pytest.approx(expected, rel=1e-4, abs=1e-9)
    if (series < 0).any():
        assert performance.sortino == near(empyrical.sortino_ratio(series, **options))
    else:
        assert performance.sortino is None


@given(returns, st.integers(0, 29 * 24 - 1))
def test_nothing_is_a_year_s_under_thirty_days(values: list[float], more: int) -> None:
    count = len(values) + more
    hours = min(count, 30 * 24 - 1)
    equity = curve((values * hours)[:hours])
    performance = metrics.performance(closes(hours, HOUR), equity, HOUR)
    assert performance.days < 30
    annual = (
        performance.cagr, performance.volatility, performance.sharpe, performance.sharpe_error,
        performance.probabilistic_sharpe, performance.sortino, performance.calmar,
    )  # fmt: skip
    assert annual == (None,) * 7
    activity = metrics.activity(
        exposures=[],
        gross_exposures=[],
        notionals=[1e6],
        equity=equity,
        profits=[1.0, 2.0],
        days=performance.days,
    )
    nothing = (activity.exposure, activity.turnover, activity.profit_factor)
    assert nothing == (None, None, None)


def test_a_year_of_bars_grows_by_its_total_return() -> None:
    equity = np.linspace(100.0, 121.0, 365 * 24 + 1)
    figures = metrics.performance(closes(365 * 24, HOUR), equity, HOUR)
    assert figures.days == pytest.approx(365)
    assert figures.cagr == pytest.approx(0.21)
    assert figures.total_return == pytest.approx(0.21)
    assert (figures.max_drawdown, figures.drawdown_bars, figures.calmar) == (0.0, 0, None)


def test_days_are_those_with_bars_and_parts_of_days_are_no_whole_ones() -> None:
    assert metrics.days_of(closes(30), DAY) == 30
    assert metrics.days_of(closes(36, HOUR), HOUR) == 1.5
    # Noon to noon touches 30 UTC days and covers 29.
    assert metrics.days_of(closes(29 * 24, HOUR) + 12 * HOUR, HOUR) == 29
    holed = np.concatenate((closes(24, HOUR), closes(24, HOUR) + 90 * DAY))
    assert metrics.days_of(holed, HOUR) == 2
    assert metrics.days_of(closes(10, 7 * DAY), 7 * DAY) == 70
    assert metrics.days_in_year(7 * DAY) == pytest.approx(365 / 7)
    assert metrics.days_of([], HOUR) == 0


def test_midnight_ends_the_day_before() -> None:
    times = closes(48, HOUR)
    assert metrics.day_ends(times).tolist() == [23, 47]
    equity = np.concatenate(([100.0], np.repeat([110.0, 99.0], 24)))
    assert metrics.daily_returns(times, equity).tolist() == pytest.approx([0.1, -0.1])


def test_the_error_of_a_sharpe_ratio_is_its_spread_over_many_samples() -> None:
    """The samples are returns with tails and skew, as in paper accounts."""
    chance = np.random.default_rng(7)
    drawn = chance.gamma(2.0, 0.01, size=(4_000, 250)) - 0.018
    ratios = drawn.mean(axis=1) / drawn.std(axis=1, ddof=1)
    errors = [metrics.sharpe_error(row) or 0.0 for row in drawn[:400]]
    assert float(np.mean(errors)) == pytest.approx(float(ratios.std()), rel=0.05)


def test_the_probability_of_skill_is_half_where_there_is_none() -> None:
    chance = np.random.default_rng(8)
    ratios = [
        metrics.probabilistic_sharpe(row) or 0.0 for row in chance.standard_normal((500, 100))
    ]
    assert float(np.mean(ratios)) == pytest.approx(0.5, abs=0.05)
    assert float(np.mean(np.array(ratios) > 0.95)) == pytest.approx(0.05, abs=0.03)
    assert metrics.probabilistic_sharpe([0.1, 0.1, 0.1]) is None


def test_ratios_are_of_returns_over_the_risk_free_rate() -> None:
    values = np.random.default_rng(8).normal(0.001, 0.01, 60)
    figures = metrics.performance(closes(60), curve(values.tolist()), DAY, risk_free=0.05)
    plain = metrics.performance(closes(60), curve(values.tolist()), DAY)
    rate = 1.05 ** (1 / 365) - 1
    assert figures.sharpe == near(empyrical.sharpe_ratio(values, risk_free=rate, annualization=365))
    assert figures.sortino == near(
        empyrical.sortino_ratio(values, required_return=rate, annualization=365)
    )
    assert plain.probabilistic_sharpe is not None
    assert figures.probabilistic_sharpe is not None
    assert figures.probabilistic_sharpe == near(metrics.probabilistic_sharpe(values - rate) or 0.0)
    assert figures.probabilistic_sharpe < plain.probabilistic_sharpe
    assert (figures.mean_day, figures.cagr) == (plain.mean_day, plain.cagr)


def test_a_rolling_ratio_is_that_of_each_window() -> None:
    values = np.random.default_rng(9).normal(0.001, 0.01, 40)
    times = closes(40)
    ends, ratios = metrics.rolling_sharpe(times, curve(values.tolist()), DAY)
    assert ends.tolist() == times[29:].tolist()
    for place, ratio in enumerate(ratios):
        window = values[place : place + 30]
        assert ratio == near(empyrical.sharpe_ratio(window, annualization=365))
    rate = 1.05 ** (1 / 365) - 1
    last = metrics.rolling_sharpe(times, curve(values.tolist()), DAY, risk_free=0.05)[1][-1]
    assert last == near(empyrical.sharpe_ratio(values[-30:], risk_free=rate, annualization=365))
    assert metrics.rolling_sharpe(times[:29], curve(values[:29].tolist()), DAY)[1].size == 0


def test_the_worst_drawdowns_are_apart_and_deepest_first() -> None:
    equity = [100, 120, 90, 110, 121, 60, 70]
    times = [10, 11, 12, 13, 14, 15, 16]
    drawdown, two = metrics.worst_drawdowns(times, equity)
    assert drawdown.depth == pytest.approx(61 / 121)
    assert (drawdown.peak_ms, drawdown.trough_ms) == (14, 15)
    assert drawdown.recovered_ms is None
    assert (two.depth, two.peak_ms, two.trough_ms, two.recovered_ms) == (0.25, 11, 12, 14)
    assert metrics.worst_drawdowns([1, 2, 3], [1.0, 2.0, 3.0]) == []
    waves = [100, 90] * 9
    assert len(metrics.worst_drawdowns(range(18), waves)) == metrics.DRAWDOWNS_SHOWN


def test_drawdown_is_measured_from_the_highest_equity_so_far() -> None:
    equity = [100, 120, 90, 110, 121, 60, 121]
    assert metrics.drawdowns(equity).tolist() == pytest.approx([0, 0, 0.25, 1 / 12, 0, 61 / 121, 0])
    assert metrics.longest_drawdown(equity) == 2
    assert metrics.longest_drawdown([100, 90, 80, 70]) == 3
    assert metrics.longest_drawdown([100]) == 0


def test_what_is_not_defined_is_none_and_never_infinite() -> None:
    flat = metrics.performance(closes(50), [100.0] * 51, DAY)
    assert (flat.total_return, flat.sharpe, flat.sortino, flat.calmar) == (0.0, None, None, None)
    assert (flat.mean_day, flat.error_day, flat.probabilistic_sharpe) == (0.0, 0.0, None)
    flat = metrics.performance(closes(50), [100.0] * 51, DAY, risk_free=0.04)
    assert (flat.sharpe, flat.sortino, flat.calmar) == (None, None, None), "it never traded"
    single = metrics.performance([], [100.0], HOUR)
    assert (single.bars, single.mean_day, single.cagr) == (0, None, None)
    assert metrics.cagr(1e30, 1.0) is None


def test_an_account_that_lost_everything_has_no_ratios() -> None:
    ruined = metrics.performance(closes(40), [100.0, 50.0, *[-10.0] * 39], DAY)
    assert ruined.total_return == pytest.approx(-1.1)
    assert (ruined.cagr, ruined.calmar) == (None, None)
    assert (ruined.sharpe, ruined.sortino, ruined.volatility) == (None, None, None)
    assert (ruined.mean_day, ruined.volatility_day) == (None, None)
    assert ruined.max_drawdown == pytest.approx(1.1)


def test_trades_and_exposure_are_counted() -> None:
    activity = metrics.activity(
        exposures=[0, 0.5, -1.0, 0, 1.5],
        gross_exposures=[0, 0.5, 1.0, 0, 2.0],
        notionals=[500, -300, 200],
        equity=[1_000, 1_000, 1_000, 1_000, 1_000],
        profits=[30.0, -10.0, 0.0, 20.0],
        days=73.0,
    )
    assert activity.exposure == pytest.approx(0.6)
    assert activity.mean_exposure == pytest.approx(0.2)
    assert activity.gross_exposure == pytest.approx(0.7)
    assert activity.turnover == pytest.approx(5.0)
    assert (activity.trades, activity.hit_rate) == (4, 0.5)
    assert activity.profit_factor == pytest.approx(5.0)


@given(st.lists(st.floats(min_value=-0.05, max_value=0.05), min_size=1, max_size=60))
def test_months_compound_to_the_total(values: list[float]) -> None:
    equity = curve(values)
    times = 1_735_689_600_000 + np.arange(equity.size) * 3 * 86_400_000
    months = metrics.monthly_returns(times, equity)
    product = float(np.prod([1.0 + change for _, _, change in months]))
    assert product == pytest.approx(1.0 + metrics.total_return(equity))
    assert months[0][:2] == (2025, 1)
    assert [m[:2] for m in months] == sorted({m[:2] for m in months})


def regimes(rng: np.random.Generator, days: int) -> Floats:
    """Return days that earn .3 or lose .3 of their spread for three weeks on average."""
    turns = np.cumsum(rng.random(days) < 0.05) + rng.integers(2)
    return rng.normal(size=days) + 0.3 * (-1.0) ** turns


@pytest.mark.parametrize(
    ("days", "draw", "share"),
    [
        (29, None, (0.0, 0.0)),
        (30, None, (0.04, 0.06)),
        (60, None, (0.03, 0.05)),
        (365, None, (0.03, 0.05)),
        (365, regimes, (0.05, 0.08)),
        (1_000, regimes, (0.04, 0.07)),
    ],
)
def test_chance_makes_a_mean_of_more_than_two_errors_in_one_of_twenty_runs(
    days: int, draw: Callable[..., Floats] | None, share: tuple[float, float]
) -> None:
    """However few the days: under thirty there is no error.

    By blocks of five days, regimes passed two errors in 17 to 20 of a hundred runs.
    """
    rng = np.random.default_rng(days)
    count = min(1_500, 900_000 // days)
    draws = [rng.normal(size=days) if draw is None else draw(rng, days) for _ in range(count)]
    errors = [metrics.mean_error(each, np.arange(days)) for each in draws]
    claimed = [
        metrics.is_credible(each.mean(), error) for each, error in zip(draws, errors, strict=True)
    ]
    assert {error is None for error in errors} == {days < 30}
    assert share[0] <= np.mean(claimed) <= share[1]


def test_blocks_count_by_what_they_hold() -> None:
    for count in (6, 12, 400):
        exact = float(stdtrit(count - 1, 0.975)) / 2
        assert metrics.widened(1.0, np.full(count, 10)) == pytest.approx(exact, abs=1e-3)
    assert metrics.widened(1.0, np.array([*[1] * 11, 500])) is None, "one block has nearly all"
    assert metrics.widened(1.0, np.full(5, 10)) is None


@pytest.mark.parametrize(
    ("value", "error", "is_told"),
    [
        (0.21, 0.1, True),
        (-0.21, 0.1, True),
        (0.19, 0.1, False),
        (9.0, None, False),
        (9.0, 0.0, False),
    ],
)
def test_a_value_is_credible_beyond_two_errors_that_are_known(
    value: float, error: float | None, *, is_told: bool
) -> None:
    assert metrics.is_credible(value, error) is is_told
