from __future__ import annotations

from pathlib import Path

import empyrical
import numpy as np
import pytest
import storage_cases as cases
from builders import MINUTE
from report_cases import BTC, build_report_of, cross, replayed

from tracepaper.replay.report.document import Report, build_report
from tracepaper.storage.reader import resolve
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types import Gap, GapCause

MINUTES_A_YEAR = 525_600


def test_figures_equal_the_established_library(cross_report: Report) -> None:
    equity = cross_report.record.account.equity
    returns = equity[1:] / equity[:-1] - 1
    found = cross_report.accounts[0].performance
    options = {"annualization": MINUTES_A_YEAR}
    assert found.bars == returns.size == 1_500
    assert found.total_return == pytest.approx(empyrical.cum_returns_final(returns))
    assert found.sharpe == pytest.approx(empyrical.sharpe_ratio(returns, **options))
    assert found.sortino == pytest.approx(empyrical.sortino_ratio(returns, **options))
    assert found.max_drawdown == pytest.approx(-empyrical.max_drawdown(returns))
    assert "1,500 bars" in cross_report.annualisation
    assert "365 days, 525,600 bars" in cross_report.annualisation


def test_exposure_and_turnover_equal_a_count_by_hand(pair_report: Report) -> None:
    record, done = pair_report.record, pair_report.accounts[0].activity
    assert done is not None
    in_market = {
        int(time)
        for name, held in record.account.held.items()
        for time in record.bars[name].open_time_ms[held != 0]
    }
    assert done.exposure == pytest.approx(len(in_market) / record.times_ms.size)
    traded = sum(fill["price"] * fill["quantity"] for fill in record.account.fills)
    years = record.times_ms.size / MINUTES_A_YEAR
    assert done.turnover == pytest.approx(traded / record.account.equity.mean() / years)
    closed = pair_report.own_trades
    assert done.hit_rate == pytest.approx(sum(one.profit > 0 for one in closed) / len(closed))


def test_shown_curves_start_and_end_with_the_account_and_keep_its_worst_drawdown(
    cross_report: Report,
) -> None:
    own = cross_report.curves[0]
    equity = cross_report.record.account.equity
    assert own.equity[[0, -1]].tolist() == equity[[0, -1]].tolist()
    assert own.drawdown.max() == pytest.approx(cross_report.accounts[0].performance.max_drawdown)
    assert own.equity.size == own.drawdown.size == cross_report.marks_ms.size == 800
    assert (np.diff(cross_report.marks_ms) > 0).all()


def test_months_compound_to_the_total(attention_report: Report, cross_report: Report) -> None:
    for report in (attention_report, cross_report):
        whole = np.prod([1 + earned for *_, earned in report.monthly]) - 1
        assert whole == pytest.approx(report.accounts[0].performance.total_return, abs=1e-12)
    assert [(year, month) for year, month, _ in cross_report.monthly] == [(2025, 5)]


def test_a_warning_of_the_run_and_the_card_s_honest_sentences_are_shown(
    attention_report: Report, tmp_path: Path
) -> None:
    said = " ".join(attention_report.sentences)
    assert "The model's card: For paper trading only" in said
    assert "predicted no momentum in returns" in said
    assert "Binance" in said
    config = '[market]\nsymbols = ["BTCUSDT"]\ninterval = "5"\n'
    other = build_report_of(replayed(tmp_path, config, "--data", BTC))
    warned = [text for text in other.sentences if text.startswith("Warning: ")]
    assert len(warned) == 1
    assert "trained on interval 1, and this run's is 5" in warned[0]


def test_gaps_are_counted_and_said(tmp_path: Path) -> None:
    steps = cases.plain_steps(40)
    last = steps[-1].event
    start = last.market_ms
    gap = Gap(cases.BTC.id, start, start + 7 * MINUTE, GapCause.ARCHIVE, "", start, start)
    cases.write_run(tmp_path / "a.db", [*steps, cases.undecided(40, gap)])
    report = build_report_of(tmp_path / "a.db")
    assert [row["cause"] for row in report.record.gaps] == ["archive"]
    assert any("1 gaps; 7 bars never came" in text for text in report.sentences)


def test_progress_says_what_is_done(attention_database: Path) -> None:
    said: list[str] = []
    located = resolve(attention_database, "last")
    build_report(located.path, located.run_id, progress=said.append)
    assert said == ["reading the run", "reading where attention lay", "drawing random twins"]


def test_a_run_without_a_decision_is_one_sentence(tmp_path: Path) -> None:
    cases.write_run(tmp_path / "a.db", [])
    with pytest.raises(DataInvalid, match="has decided no bar yet"):
        build_report_of(tmp_path / "a.db")


def test_a_report_leaves_its_database_as_it_was(tmp_path: Path) -> None:
    database = replayed(tmp_path, cross(), "--data", BTC)
    before = database.read_bytes()
    located = resolve(database, "last")
    build_report_of(database, located.run_id)
    assert database.read_bytes() == before
