"""Shares on the page: bars, times, holes and costs are those of the record and of the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from page_cases import shown_of
from report_cases import build_report_of
from stock_files import HOUR_MS, date_alone, opens, write

from tracepaper.daemon.cli import invoke
from tracepaper.replay.page import holding, runs
from tracepaper.replay.report.report import buy_and_hold_at_equal_exposure

SHARES = """
[market]
asset = "stock"
calendar = "XNAS"
[strategy]
name = "sma_cross"
fast = 3
slow = 7
[execution]
fee_per_share = "0.5"
"""
LOST = ("2014-11-11", "2014-11-28")


@pytest.fixture(scope="module", params=[HOUR_MS, 24 * HOUR_MS], ids=["hours", "days"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replay rising shares from the second week on, without two sessions."""
    folder = tmp_path_factory.mktemp("shares")
    times = opens("2014-11-03", "2014-12-31", request.param)
    times = [at for at in times if date_alone(at) not in LOST]
    candles = write(folder / "acme.csv", times, prices=lambda row: 1.0 + row / 20)
    config = folder / "shares.toml"
    config.write_text(SHARES)
    words = ["replay", f"ACME={candles}", "-c", config, "--db", folder / "run.db", "--json"]
    assert invoke([*map(str, words), "--from", "2014-11-10"]) == 0
    return folder / "run.db"


def test_holding_costs_what_it_does_in_the_report(database: Path) -> None:
    run, record = shown_of(database), build_report_of(database).record
    curves = runs.equity(run, None, None, 20_000)
    shown_curves = {held.share: curves.equity[held.name] for held in holding.held(run)}
    expected = {
        held.share: held.equity[1:].tolist() for held in buy_and_hold_at_equal_exposure(record)
    }
    assert sorted(shown_curves) == pytest.approx(sorted(expected))
    for here, there in zip(sorted(shown_curves), sorted(expected), strict=True):
        assert shown_curves[here] == pytest.approx(expected[there])
    opens_of = np.concatenate([bars.open for bars in record.bars.values()])
    assert record.cost_rate > 0.25 / float(np.median(opens_of))
