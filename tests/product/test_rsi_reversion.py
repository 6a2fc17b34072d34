"""The shipped example with state, notes and stop: in replay, killed, live, verified, looked at."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from exchange_client import candles, walk_rows
from pages import layers_of
from programs import run

from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.engine.state import decode_state
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.run import Tally, resume_replay, run_replay
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import Limits, lookahead
from tracepaper.replay.checks.perturbations import Files
from tracepaper.replay.checks.recursive import recursive
from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.report.charts import price_chart
from tracepaper.replay.report.report import build_report
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader

pytestmark = pytest.mark.slow

EXAMPLE = "tracepaper.strategies.examples.rsi_reversion:RsiReversion"
OPTIONS = {"bars": 3, "low": 40, "high": 60, "stop": 0.03, "losses": 2, "pause": 6}
BARS = 200
CUTS = 100


@pytest.fixture(scope="module")
def walk() -> Candles:
    return candles(walk_rows(BARS, seed=5))


def configured(**options: float) -> Config:
    strategy = {"name": EXAMPLE, "options": {**OPTIONS, **options}}
    return load(None, {"strategy": strategy, "sizing": {"mode": "fixed", "quantity": "0.1"}})


def replayed(walk: Candles, database: Path, tally: Tally) -> None:
    audit = SqlAuditLog.open(database, group_steps=1)
    run_replay(build(configured(), [walk], started_at_ms=0, database=database), audit, tally)
    audit.end(1)
    audit.close()


@pytest.fixture(scope="module")
def whole(walk: Candles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the database of a replay, beside those that a kill after some bars would leave."""
    folder = tmp_path_factory.mktemp("rsi")
    database = folder / "whole.db"
    cuts = set(random.Random(1).sample(range(1, BARS), CUTS))

    def copy(bars: int) -> None:
        if bars in cuts:
            cuts.discard(bars)
            for suffix in ("", "-wal"):  # what another process would find now
                shutil.copy(f"{database}{suffix}", folder / f"cut-{bars}.db{suffix}")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tracepaper.replay.backtest.run.PROGRESS_EVENTS", 1)
        replayed(walk, database, Tally(progress=copy))
    assert not cuts
    return database


DECISIONS = (
    "SELECT open_time_ms, decision_sha256, action, target_quantity_text, reason, unfilled_reason, "
    "refused_by, window_sha256 FROM v_decisions ORDER BY open_time_ms"
)
FILLS = (
    "SELECT filled_ms, side, quantity_text, price_text, fee_text, reason, model, while_down "
    "FROM v_fills ORDER BY sequence, ordinal"
)
ORDERS = (
    "SELECT side, role, kind, trigger_price_text, quantity_text, filled_text, status, reason, "
    "created_ms FROM v_orders ORDER BY created_ms, role, sequence"
)
NOTES = "SELECT open_time_ms, name, number, text FROM v_notes ORDER BY open_time_ms, name"
EQUITY = (
    "SELECT market_ms, cash_text, equity_text, quantity_text FROM v_equity "
    "WHERE instrument IS NOT NULL ORDER BY sequence"
)


def left(database: Path) -> list[Any]:
    with closing(sqlite3.connect(database)) as db:
        found: list[Any] = [
            db.execute(question).fetchall()
            for question in (DECISIONS, FILLS, ORDERS, NOTES, EQUITY)
        ]
        (stored,) = db.execute(
            "SELECT state FROM states WHERE state IS NOT NULL ORDER BY step DESC LIMIT 1"
        ).fetchone()
    state = decode_state(stored)
    return [*found, state.declared, [book.protection for book in state.account.books.values()]]


def test_killed_after_any_bar_and_resumed_it_equals_one_that_was_never_killed(
    walk: Candles, whole: Path
) -> None:
    expected = left(whole)
    stops = [fill for fill in expected[1] if fill[5].startswith("stop")]
    assert len(stops) >= 5
    cuts = sorted(whole.parent.glob("cut-*.db"))
    assert len(cuts) == CUTS
    for cut in cuts:
        audit = SqlAuditLog.open(cut)
        resume_replay("last", [walk], (), audit, cut, Tally())
        audit.end(1)
        audit.close()
        assert left(cut) == expected, cut.name
    for cut in cuts[::25]:
        with Reader.open(cut) as reader:
            assert verify_run(reader, cut, reader.find("last")).differences == []


def test_nothing_of_it_depends_on_later_bars_or_on_undeclared_state(walk: Candles) -> None:
    with FreshProcesses() as fresh:
        seen = lookahead(configured(), Files([walk]), fresh, Limits(probes=2))
        assert seen.holds, seen.sentence()
        started = recursive(configured(), Files([walk]), fresh, probes=3, warmup=60)
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
