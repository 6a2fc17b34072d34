"""The end of a run: what a fill that only changed a size is told by, and how long a bar is."""

from __future__ import annotations

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


def test_a_fill_that_changed_a_size_says_what_changed_it(sized: tuple[Path, str]) -> None:
    path, run_id = sized
    fills = rows(path, run_id, "v_fills")
    noted: dict[int, dict[str, float]] = {}
    for row in rows(path, run_id, "v_notes"):
        noted.setdefault(row["sequence"], {})[row["name"]] = row["number"]
    parts = summary_document(path, run_id).parts
    (table,) = (of for of in parts if isinstance(of, Table) and of.key == "fills")
    texts = [str(row["reason"]) for row in table.records()]
    assert len(texts) == FILLS_SHOWN < len(fills)
    assert {row["reason"] for row in fills[-FILLS_SHOWN:]} == {"trend up"}
    before, *listed = fills[-FILLS_SHOWN - 1 :]
    for fill, text in zip(listed, texts, strict=True):
        now, then = (noted[int(of["order_id"].partition("-")[0])] for of in (fill, before))
        change, _, cause = text.partition(": ")
        assert change == ("more" if fill["side"] == "BUY" else "less")
        moved_by = {
            "trend": now["trend"] / then["trend"],
            "volatility": (now["size"] / now["trend"]) / (then["size"] / then["trend"]),
        }
        pick = max if change == "more" else min
        assert cause.startswith(pick(moved_by, key=moved_by.__getitem__))
        before = fill
    assert set(texts) >= {"less: trend weaker", "more: trend stronger"}
