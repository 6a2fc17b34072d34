"""Several strategies on one account under the checks: what is forged, what fails, what moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import user_strategies as users
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from forging import forged, verified

from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import Limits, lookahead
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader

CROSS = {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False}
PAIR = [made_candles(walk_rows(80)), replace(made_candles(walk_rows(80, seed=2)), symbol="ETHUSDT")]


def configured(other: dict[str, Any], candles: list[Candles]) -> Config:
    """Return two strategies whose sizes follow from what the account became."""
    return load(
        None,
        {
            "market": {"symbols": [part.symbol for part in candles]},
            "strategies": {"cross": {**CROSS, "share": "0.5"}, "other": {**other, "share": "0.4"}},
            "sizing": {"mode": "equity", "fraction": "1"},
        },
    )


def recorded(path: Path, other: dict[str, Any], candles: list[Candles]) -> Path:
    log = SqlAuditLog.open(path)
    config = configured(other, candles)
    run_replay(build(config, MarketData(candles), started_at_ms=1, database=path), log, Tally())
    log.end(2)
    log.close()
    return path


def test_what_the_account_became_by_another_symbol_is_no_lookahead(fresh: FreshProcesses) -> None:
    config = configured({**CROSS, "slow": 11}, PAIR)
    finding = lookahead(config, MarketData(PAIR), fresh, Limits(probes=2))
    assert finding.differences == []
    assert not finding.cause


SHARED = {
    "top": "LAST = {}",
    "observe": "LAST[0] = (LAST.get(0, 0) + int(bar.volume * 1000)) % 1_000_003",
    "decide": "return by(LAST[0] % 2 == 0)",
}
"""What its objects share tells one symbol of the other."""


def test_a_leak_of_one_of_several_strategies_is_found(
    tmp_path: Path, fresh: FreshProcesses
) -> None:
    (tmp_path / "own_shared.py").write_text(users.source(**SHARED))
    config = configured({"name": "own_shared:Mine"}, PAIR)
    with users.importable(tmp_path):
        finding = lookahead(config, MarketData(PAIR), fresh, Limits(probes=2))
    assert finding.differences


@pytest.mark.parametrize("ordinal", [0, 1])
def test_a_forged_threshold_of_one_of_several_strategies_is_found(
    tmp_path: Path, ordinal: int
) -> None:
    path = recorded(tmp_path / "run.db", {**CROSS, "slow": 11}, PAIR[:1])
    assert verified(path).passes
    changed = "UPDATE gate_sets SET threshold = threshold + 1 WHERE gate_set = 1"
    copy = forged(path, tmp_path / "forged.db", f"{changed} AND ordinal = {ordinal}")
    verification = verified(copy)
    assert not verification.passes
    assert verification.differences[0].field == "runs.gate_sets"


NAMELESS = """class Nameless(Exception):
    def __str__(self):
        raise RuntimeError("nothing to say")
    __repr__ = __str__"""


@pytest.mark.parametrize("decide", ["raise Nameless()", "return Nameless()"])
def test_an_error_that_has_no_text_sets_its_strategy_aside(tmp_path: Path, decide: str) -> None:
    (tmp_path / "own_nameless.py").write_text(users.source(top=NAMELESS, decide=decide))
    with users.importable(tmp_path):
        path = recorded(tmp_path / "run.db", {"name": "own_nameless:Mine"}, PAIR[:1])
        assert verified(path).passes
        with Reader.open(path) as reader:
            *_, last = (step for step in reader.steps(reader.find("last")) if step.decision)
    (reason,) = [each.outcome.reason for each in last.strategies if each.strategy == "other"]
    assert reason.startswith("set aside: Mine ")
    assert "(Nameless has no text: RuntimeError)" in reason
