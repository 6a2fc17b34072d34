"""What comparing two runs found, as a document."""

from __future__ import annotations

from pathlib import Path

import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from recordings import record

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import load
from tracepaper.replay.archive import slice_candles
from tracepaper.replay.checks.parity import Parity


def test_nothing_that_agrees_is_no_agreement() -> None:
    found = Parity("one", "two", exact=True)
    assert not found.holds
    found.compared, found.timing = 2, {"late": 2}
    assert not found.holds
    found.identical = 1
    assert found.holds


def test_runs_of_no_common_bar_are_said_to_be_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "one.db", tmp_path / "two.db"]
    for path, start in zip(paths, (0, 500), strict=True):
        candles = slice_candles(made_candles(walk_rows(600)), slice(start, start + 50))
        config = load(None, {"strategy": {"name": "sma_cross", "fast": 3, "slow": 7}})
        record(path, config, [candles])
    assert invoke(["parity", *(f"{path}#last" for path in paths)]) == 1
    said = capsys.readouterr().out
    assert "Nothing was compared: give two runs that decided the same bars." in said
