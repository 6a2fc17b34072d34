"""What comparing two runs found, as a document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from recordings import record

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import load
from tracepaper.replay.checks.parity import Parity


def test_nothing_that_agrees_is_no_agreement() -> None:
    parity = Parity("one", "two", exact=True)
    assert not parity.passes
    parity.compared, parity.timing = 2, {"late": 2}
    assert not parity.passes
    parity.identical = 1
    assert parity.passes


def test_runs_of_no_common_bar_are_said_to_be_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "one.db", tmp_path / "two.db"]
    for path, start in zip(paths, (0, 500), strict=True):
        candles = made_candles(walk_rows(600))[start : start + 50]
        config = load(None, {"strategy": {"name": "sma_cross", "fast": 3, "slow": 7}})
        record(path, config, [candles])
    assert invoke(["parity", *(f"{path}#last" for path in paths)]) == 1
    printed = capsys.readouterr().out
    assert "Nothing was compared: give two runs that decided the same bars." in printed


def test_fills_that_differ_are_said_with_prices_and_the_bar_by_its_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "one.db", tmp_path / "two.db"]
    for path, slippage in zip(paths, ("0", "3"), strict=True):
        keys = {"strategy": {"name": "sma_cross", "fast": 3, "slow": 7}}
        config = load(None, {**keys, "execution": {"slippage_bp": slippage}})
        record(path, config, [made_candles(walk_rows(40))])
    assert invoke(["parity", *(f"{path}#last" for path in paths)]) == 1
    side = r"(BUY|SELL) [\d.]+ at [\d.]+ \(fee [\d.]+\)"
    line = rf"linear:BTCUSDT bar 20\S+:00Z: fills is {side} in the first and {side} in the second"
    assert re.search(line, capsys.readouterr().out)
