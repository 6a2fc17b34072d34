from __future__ import annotations

from pathlib import Path

import empyrical
import numpy as np
import pytest
import storage_cases as cases
from builders import MINUTE, present
from report_cases import BTC, STRICT, build_report_of, cross, replayed

from tracepaper.replay.document.values import Table
from tracepaper.replay.report.benchmarks import mean_exposures
from tracepaper.replay.report.document import report_document
from tracepaper.replay.report.figures import tables
from tracepaper.replay.report.report import BUY_AND_HOLD, Report
from tracepaper.replay.run import Run
from tracepaper.storage.database.reader import resolve
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import Gap, GapCause

DAYS = 1_500 / 1_440


def test_figures_of_a_day_are_those_of_its_ends_and_of_a_year_there_are_none(
    cross_report: Report,
) -> None:
    record = cross_report.record
    equity = record.account.equity
    performance = cross_report.accounts[0].performance
    midnight = np.flatnonzero(record.times_ms % 86_400_000 == 0)
    ends = equity[[0, *(midnight + 1), -1]]
    daily = ends[1:] / ends[:-1] - 1
    assert daily.size == 2
    assert performance.bars == 1_500
    assert performance.days == pytest.approx(DAYS)
    assert performance.mean_day == pytest.approx(daily.mean())
    assert performance.error_day is None  # of one block of days
    assert performance.max_drawdown == pytest.approx(
        -empyrical.max_drawdown(equity[1:] / equity[:-1] - 1)
    )
    for account in cross_report.accounts:
        figures = account.performance
        assert (figures.cagr, figures.sharpe, figures.volatility) == (None, None, None)
        assert figures.probabilistic_sharpe is None
        assert account.activity is None or account.activity.turnover is None
    accounts = tables(cross_report)["accounts"]
    assert "a day, bp (too few days)" in map(accounts.heading, range(len(accounts.figures)))
    note, held = accounts.notes
    assert "buy and hold begins there too, with all the money" in held
    assert "1,500 bars on 1.0 days" in note


def test_a_run_of_one_day_stands_without_an_error(cross_database: Path) -> None:
    """Neither its sentence nor its page claims what a day cannot tell."""
    report = build_report_of(cross_database)
    sentence = repr(Run(cross_database, report.record.run["run_id"]))
    assert "% (too few days), worst drawdown" in sentence
    assert "±" not in sentence
    parts = report_document(report).parts
    (tiles,) = (part for part in parts if isinstance(part, Table) and part.look == "tiles")
    titles = [tiles.heading(place) for place in range(len(tiles.figures))]
    assert "bp a day, over 1.0 days (too few days)" in titles


def test_exposure_equals_a_count_by_hand(pair_report: Report) -> None:
    record, done = pair_report.record, pair_report.accounts[0].activity
    assert done is not None
    in_market = {
        int(time)
        for name, held in record.account.held.items()
        for time in record.bars[name].open_time_ms[held != 0]
    }
    first = int((record.decisions.refused_by != "warm").argmax()) // 2
    assert first > 0
    assert done.exposure == pytest.approx(len(in_market) / (record.times_ms.size - first))
    closes: dict[str, dict[int, float]] = {
        name: dict(zip(bars.open_time_ms.tolist(), (bars.close * held).tolist(), strict=True))
        for name, held in record.account.held.items()
        if (bars := record.bars[name])
    }
    shares = [
        np.array([of.get(time - 60_000, 0.0) for of in closes.values()]) / equity
        for time, equity in zip(
            record.times_ms.tolist(), record.account.equity[1:].tolist(), strict=True
        )
    ]
    by_symbol = np.mean(shares[first:], axis=0)
    assert done.mean_exposure == pytest.approx(by_symbol.sum())
    assert done.gross_exposure == pytest.approx(np.mean(np.abs(shares[first:]).sum(axis=1)))
    means = dict(zip(closes, by_symbol.tolist(), strict=True))
    assert present(mean_exposures(record)) == pytest.approx(means)
    closed = pair_report.own_trades
    assert done.hit_rate == pytest.approx(sum(trade.profit > 0 for trade in closed) / len(closed))


def test_buy_and_hold_stands_at_the_run_s_exposure_beside_the_full_one(
    cross_report: Report,
) -> None:
    done = present(cross_report.accounts[0].activity)
    assert done.mean_exposure is not None
    equal, full = cross_report.accounts[-2:]
    assert (equal.name, full.name) == (
        "buy and hold at its own exposure",
        BUY_AND_HOLD,
    )
    begun = cross_report.record.account.equity[0]
    assert equal.end - begun == pytest.approx(done.mean_exposure * (full.end - begun))


def test_shown_curves_start_and_end_with_the_account_and_keep_its_worst_drawdown(
    cross_report: Report,
) -> None:
    curve = cross_report.curves[0]
    equity = cross_report.record.account.equity
    assert curve.equity[[0, -1]].tolist() == equity[[0, -1]].tolist()
    assert curve.drawdown.max() == pytest.approx(cross_report.accounts[0].performance.max_drawdown)
    assert curve.equity.size == curve.drawdown.size == cross_report.marks_ms.size == 800
    assert (np.diff(cross_report.marks_ms) > 0).all()


def test_a_warning_of_the_run_and_the_card_s_honest_sentences_are_shown(
    attention_report: Report, tmp_path: Path
) -> None:
    text = " ".join(attention_report.sentences)
    assert attention_report.warnings == ()
    assert "The model's card: For paper trading only" in text
    assert "predicted no momentum in returns" in text
    assert "Binance" in text
    config = STRICT + '[market]\nsymbols = ["BTCUSDT"]\ninterval = "5"\n'
    other = build_report_of(replayed(tmp_path, config, "--data", BTC))
    warned = other.warnings
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
    assert any(
        "Gaps in the data: 1, " in text and "Absent bars: 7;" in text for text in report.sentences
    )


def test_a_run_without_a_decision_is_one_sentence(tmp_path: Path) -> None:
    gap = Gap(cases.BTC.id, 0, MINUTE, GapCause.ARCHIVE, "", MINUTE, MINUTE)
    cases.write_run(tmp_path / "a.db", [cases.undecided(0, gap)])
    with pytest.raises(DataInvalid, match="has decided no bar yet"):
        build_report_of(tmp_path / "a.db")


def test_a_report_leaves_its_database_as_it_was(tmp_path: Path) -> None:
    database = replayed(tmp_path, cross(), "--data", BTC)
    before = database.read_bytes()
    located = resolve(database, "last")
    build_report_of(database, located.run_id)
    assert database.read_bytes() == before
