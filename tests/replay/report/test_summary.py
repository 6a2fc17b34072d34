"""The summary of a run: its newest fills, and the position after each."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from report_cases import SAMPLE

from tracepaper.replay.api import backtest
from tracepaper.replay.document.values import Table
from tracepaper.replay.report.terminal import FILLS_SHOWN, summary_document
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row, RunViews

PARAMS = {"trend_sized_by": "ewma", "trend_windows": ["12h", "1d", "2d"]}


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Replay the trend, sized by the volatility of its closes."""
    path = tmp_path_factory.mktemp("sized") / "run.db"
    config = {"sizing": {"rebalance": "0.25"}}
    run_views = backtest("trend", str(SAMPLE), params=PARAMS, config=config, db=path)
    return path, run_views.run_id


def rows(path: Path, run_id: str, view: str) -> list[Row]:
    with Reader.open(path) as reader:
        return RunViews(reader.connection, run_id).rows(view)


def test_a_fill_says_what_is_held_after_it(sized: tuple[Path, str]) -> None:
    path, run_id = sized
    held, after = Decimal(0), []
    for row in rows(path, run_id, "v_fills"):
        quantity = Decimal(row["quantity_text"])
        held += quantity if row["side"] == "BUY" else -quantity
        after.append(held)
    parts = summary_document(path, run_id).parts
    (table,) = (of for of in parts if isinstance(of, Table) and of.key == "fills")
    shown = [Decimal(str(row["held"])) for row in table.records()]
    assert shown == after[-FILLS_SHOWN:]
    assert len(set(shown)) > 1
