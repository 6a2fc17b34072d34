from __future__ import annotations

import empyrical
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.replay import metrics

HOUR = 3_600_000
A_YEAR_OF_HOURS = 8_760

returns = st.lists(
    st.integers(-2_000, 2_000).map(lambda points: points / 10_000), min_size=3, max_size=200
).filter(lambda values: len(set(values)) > 1)


def near(number: float) -> object:
    return pytest.approx(number, rel=1e-7, abs=1e-9)


def curve(values: list[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return an equity curve of a million that makes these returns."""
    return 1_000_000.0 * np.concatenate(([1.0], np.cumprod(1.0 + np.array(values))))


@given(returns)
def test_figures_equal_the_established_library(values: list[float]) -> None:
    found = metrics.performance(curve(values), HOUR)
    series = np.array(values, dtype=np.float64)
    options = {"annualization": A_YEAR_OF_HOURS}
    assert found.total_return == near(empyrical.cum_returns_final(series))
    assert found.max_drawdown == near(-empyrical.max_drawdown(series))
    assert found.volatility == near(empyrical.annual_volatility(series, **options))
    assert found.sharpe == near(empyrical.sharpe_ratio(series, **options))
    growth = float(np.log1p(series).sum()) * A_YEAR_OF_HOURS / series.size
    if growth < 600:
        expected = empyrical.cagr(series, **options)
        assert found.cagr == pytest.approx(expected, rel=1e-4, abs=1e-9)
    if (series < 0).any():
        assert found.sortino == near(empyrical.sortino_ratio(series, **options))
    else:
        assert found.sortino is None


def test_a_year_of_bars_grows_by_its_total_return() -> None:
    equity = np.linspace(100.0, 121.0, A_YEAR_OF_HOURS + 1)
    found = metrics.performance(equity, HOUR)
    assert found.years == pytest.approx(1.0)
    assert found.cagr == pytest.approx(0.21)
    assert found.total_return == pytest.approx(0.21)
    assert (found.max_drawdown, found.drawdown_bars, found.calmar) == (0.0, 0, None)


def test_drawdown_is_measured_from_the_highest_equity_so_far() -> None:
    equity = [100, 120, 90, 110, 121, 60, 121]
    assert metrics.drawdowns(equity).tolist() == pytest.approx([0, 0, 0.25, 1 / 12, 0, 61 / 121, 0])
    assert metrics.longest_drawdown(equity) == 2
    assert metrics.longest_drawdown([100, 90, 80, 70]) == 3
    assert metrics.longest_drawdown([100]) == 0


def test_what_is_not_defined_is_none_and_never_infinite() -> None:
    flat = metrics.performance([100.0] * 50, HOUR)
    assert (flat.total_return, flat.sharpe, flat.sortino, flat.calmar) == (0.0, None, None, None)
    single = metrics.performance([100.0], HOUR)
    assert (single.bars, single.cagr, single.volatility) == (0, None, None)
    wild = metrics.performance([1.0, 100.0], 60_000)
    assert wild.cagr is None
    assert metrics.profit_factor([1.0, 2.0]) is None
    assert metrics.hit_rate([]) is None
    assert metrics.exposure([]) is None


def test_an_account_that_lost_everything_has_no_ratios() -> None:
    ruined = metrics.performance([100.0, 50.0, -10.0, -20.0], HOUR)
    assert ruined.cagr == -1.0
    assert (ruined.sharpe, ruined.sortino, ruined.volatility) == (None, None, None)
    assert ruined.max_drawdown == pytest.approx(1.2)


def test_trades_and_exposure_are_counted() -> None:
    found = metrics.activity(
        quantities=[0, 1, 1, 0, -2],
        notionals=[500, -300, 200],
        equity=[1_000, 1_000, 1_000, 1_000, 1_000],
        profits=[30.0, -10.0, 0.0, 20.0],
        interval_ms=HOUR,
    )
    assert found.exposure == pytest.approx(0.6)
    assert found.turnover == pytest.approx(A_YEAR_OF_HOURS / 4)
    assert (found.trades, found.hit_rate) == (4, 0.5)
    assert found.profit_factor == pytest.approx(5.0)
    assert found.mean_profit == pytest.approx(10.0)


@given(st.lists(st.floats(min_value=-0.05, max_value=0.05), min_size=1, max_size=60))
def test_months_compound_to_the_total(values: list[float]) -> None:
    equity = curve(values)
    times = 1_735_689_600_000 + np.arange(equity.size) * 3 * 86_400_000
    months = metrics.monthly_returns(times, equity)
    product = float(np.prod([1.0 + change for _, _, change in months]))
    assert product == pytest.approx(1.0 + metrics.total_return(equity))
    assert months[0][:2] == (2025, 1)
    assert [m[:2] for m in months] == sorted({m[:2] for m in months})
