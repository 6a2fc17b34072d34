"""The shipped example with state, notes and stop: what its checks, report and answers say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exchange_client import candles, walk_rows
from pages import layers_of
from programs import run
from recordings import recorded

from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import Limits, lookahead
from tracepaper.replay.checks.recursive import recursive
from tracepaper.replay.report.charts import price_chart
from tracepaper.replay.report.report import build_report
from tracepaper.storage.database.reader import Reader

EXAMPLE = "tracepaper.strategies.examples.rsi_reversion:RsiReversion"
OPTIONS = {"bars": 3, "low": 40, "high": 60, "stop": 0.03, "losses": 2, "pause": 6}
BARS = 200


@pytest.fixture(scope="module")
def walk() -> Candles:
    return candles(walk_rows(BARS, seed=5))


def configured(**options: float) -> Config:
    strategy = {"name": EXAMPLE, "options": {**OPTIONS, **options}}
    return load(None, {"strategy": strategy, "sizing": {"mode": "fixed", "quantity": "0.1"}})


@pytest.fixture(scope="module")
def whole(walk: Candles) -> Path:
    """Return the database of a replay."""
    return recorded(configured(), [walk])


def test_nothing_of_it_depends_on_later_bars_or_on_undeclared_state(walk: Candles) -> None:
    with FreshProcesses() as fresh:
        seen = lookahead(configured(), MarketData([walk]), fresh, Limits(probes=2))
        assert seen.holds, seen.sentence()
        started = recursive(configured(), MarketData([walk]), fresh, probes=3, warmup=60)
        assert started.holds, started.sentence()


def test_the_report_draws_what_it_noted_and_explain_says_it(whole: Path) -> None:
    with Reader.open(whole) as reader:
        report = build_report(whole, reader.find("last"))
    chart = price_chart(report, "linear:BTCUSDT")
    assert chart is not None
    rsi = layers_of(chart)["rsi"]
    assert rsi in chart.panels[1].layers  # it moves between 0 and 100, far from the price
    assert len(rsi.x) > 100
    said = run(["explain", f"last:{BARS - 5}", "--db", whole.name, "--json"], whole.parent)
    assert said.code == 0, said.err
    assert {"rsi", "streak"} == json.loads(said.out)["notes"].keys()
