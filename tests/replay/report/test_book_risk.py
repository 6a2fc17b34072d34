"""The risk of the open positions: its figures, and what there is too little data for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import present
from pages import record_in, said_in
from scenarios import SCENARIOS
from scipy.stats import norm, t

from tracepaper.daemon.cli import invoke
from tracepaper.replay.report import book_risk
from tracepaper.replay.report.book_risk import (
    BookRisk,
    Period,
    forecast_scaled,
    read_book_risk,
    returns_of,
    risk_json,
    tails_of,
)
from tracepaper.replay.run import open_run
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.shortfall import LEVEL, common_days, expected_shortfall, has_shortfall
from tracepaper.strategies.units import DAY_MS

BOOK = "a limit of the whole book"


def risk_of(path: Path, period: Period = "day") -> BookRisk:
    with Reader.open(path) as reader:
        return read_book_risk(RunColumns(reader, reader.find("last")), period)


def test_the_book_of_a_run_is_held_over_the_days_of_its_bars() -> None:
    path = SCENARIOS[BOOK].recorded()
    risk = risk_of(path)
    (candles, others), equity = SCENARIOS[BOOK].candles(), risk.equity
    # The run begins at a midnight, and has two bars a day.
    closes = np.array([each.close[1::2] / 10**each.price_decimals for each in (candles, others)])
    returns = closes[:, 1:] / closes[:, :-1] - 1
    net = {coin.coin: coin.net for coin in risk.coins}
    profits = (net["AAA"] * returns[0] + net["BBB"] * returns[1]) / equity
    assert risk.periods == profits.size == 109
    tail = next(tail for tail in risk.tails if tail.level == LEVEL)
    lost = -np.sort(profits)[:3]  # 109 × 2.5 % less .4 is 2.325
    assert present(tail.shortfall)[0] == pytest.approx(lost @ [1, 1, 0.325] / 2.325, rel=1e-12)
    assert tail.value_at_risk[0] == pytest.approx(
        -np.quantile(profits, (110 * LEVEL - 1) / 108), rel=1e-12
    )
    assert sum(coin.shortfall or 0 for coin in risk.coins) == pytest.approx(
        present(tail.shortfall)[0]
    )
    fallen = risk.stress[0]
    assert fallen.profit == pytest.approx(-0.2 * sum(net.values()))
    worst = next(case for case in risk.stress if case.case.startswith("the worst day"))
    assert worst.profit == pytest.approx(profits.min() * equity)
    beta = np.cov(returns[1], returns[0])[0, 1] / returns[0].var(ddof=1)
    assert risk.coins[1].beta is not None
    assert risk.coins[1].beta[0] == pytest.approx(beta)


def test_python_gives_the_document_of_the_command() -> None:
    path = SCENARIOS[BOOK].recorded()
    run = open_run("last", path)
    read = run.risk()
    assert read.document == risk_json(run.run_id, risk_of(path))
    assert "Exposure by coin" in read.text
    assert read["too_few"] is False


def test_report_page_and_account_draw_the_book_and_have_its_tables(tmp_path: Path) -> None:
    path, page, alone = SCENARIOS[BOOK].recorded(), tmp_path / "run.html", tmp_path / "risk.html"
    assert invoke(["report", f"{path}#last", "--html", str(page)]) == 0
    assert invoke(["risk", f"{path}#last", "--page", str(alone)]) == 0
    record = record_in(page.read_text(encoding="utf-8"))
    (account,) = (str(answer) for name, answer in record.items() if name.endswith("/account"))
    for shown in (said_in(page), account, said_in(alone)):
        for title in ("Exposure and stress", "Exposure by coin", "Stress", "days say of the book"):
            assert title in shown


def test_hours_are_enough_where_days_are_too_few() -> None:
    path = SCENARIOS["crossing"].recorded()
    days, hours = risk_of(path), risk_of(path, "hour")
    assert not days.tails
    assert "too few days (3 days that all symbols share, and 80 are wanted)" in days.sentence
    assert {tail.level for tail in hours.tails} == set(book_risk.LEVELS)


def test_a_run_without_a_position_says_so() -> None:
    risk = risk_of(SCENARIOS["several symbols"].recorded())
    assert risk.sentence == "No position is open, so nothing is at risk."


def test_symbols_that_never_traded_at_one_time_share_no_day() -> None:
    times = np.arange(1, 200) * DAY_MS
    closes = np.linspace(100, 200, 199)
    before, after = (
        returns_of(part, closes[: part.size], DAY_MS) for part in (times[:90], times[100:])
    )
    assert min(len(before), len(after)) > 60
    assert common_days([before, after]) == []


def test_a_day_with_a_hole_is_no_return() -> None:
    closed_ms = np.array([1, 2, 4, 5]) * DAY_MS
    assert returns_of(closed_ms, np.array([1.0, 2.0, 8.0, 4.0]), DAY_MS) == {2: 1.0, 5: -0.5}


def test_by_forecast_volatility_the_newest_storm_counts() -> None:
    calm = np.random.default_rng(1).normal(scale=0.01, size=300)
    storm = np.concatenate((calm, 5 * calm[:20]))
    history, forecast = (
        present(tail.shortfall)[0]
        for tail in tails_of(storm, np.arange(storm.size), 1.0)
        if tail.level == 0.05
    )
    assert forecast > 1.5 * history
    assert forecast_scaled(np.full(100, 0.01)) == pytest.approx(0.01)


DISTRIBUTIONS = {"normal": norm(), "t4": t(4)}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("days", [80, 100, 250])
@pytest.mark.parametrize("level", book_risk.LEVELS)
def test_a_shortfall_is_that_of_the_distribution(name: str, days: int, level: float) -> None:
    drawn = DISTRIBUTIONS[name]
    ends = drawn.ppf((np.arange(100_000) + 0.5) / 100_000 * level)
    samples = drawn.rvs((3_000, days), random_state=np.random.default_rng(days))
    if not has_shortfall(days, level):
        tails = tails_of(samples[0], np.arange(days), 1.0)
        assert {tail.shortfall for tail in tails if tail.level == level} == {None}
        return
    mean = np.mean([expected_shortfall(sample, level) for sample in samples])
    assert mean == pytest.approx(-ends.mean(), rel=0.05)


def test_errors_shrink_with_the_days() -> None:
    rng = np.random.default_rng(2)
    errors = []
    for size in (250, 1_000):
        values = rng.normal(size=size)
        tail = next(tails_of(values, np.arange(size), 1.0))
        shortfall, error = present(tail.shortfall)
        errors.append(present(error))
        assert abs(shortfall - 2.063) < 2 * errors[-1]
    assert errors[1] < errors[0]
