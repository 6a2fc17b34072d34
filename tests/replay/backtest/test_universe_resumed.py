"""A backtest with a universe is ended around each of its choices, and goes on as if it had not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from records import rows

from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest import run as running
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.run import Tally, resume_replay, run_replay
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.walk import verify_chain
from tracepaper.storage.database.reader import Reader

HOUR = 3_600_000
NAMES = ("AAAUSDT", "BBBUSDT", "CCCUSDT")
BARS = 9
SAID = (
    "SELECT kind, instrument, market_ms, content FROM v_events WHERE kind <> 'model_change' "
    "ORDER BY sequence"
)
DECIDED = (
    "SELECT instrument, open_time_ms, action, refused_by, target_quantity, decision_sha256 "
    "FROM v_decisions ORDER BY sequence"
)


def configured(**market: Any) -> Config:
    rule = {"top": 1, "at": ["03:00", "06:30"], "on_leave": "close"}
    return load(
        None,
        {
            "market": {"symbols": NAMES, "interval": "60", "universe": rule, **market},
            "strategy": {"name": "sma_cross", "fast": 1, "slow": 2, "long_only": False},
            "sizing": {"mode": "notional", "notional": "1000"},
        },
    )


def data() -> list[Candles]:
    return [
        made_candles(walk_rows(BARS, seed=seed), interval_ms=HOUR, symbol=name)
        for seed, name in enumerate(NAMES)
    ]


def ended_after(path: Path, config: Config, tally: Tally, from_ms: int | None) -> str:
    """Replay until *tally* stops it; return the run's id."""
    replay = build(config, data(), started_at_ms=0, from_ms=from_ms)
    audit = SqlAuditLog.open(path)
    run_replay(replay, audit, tally)
    audit.close()
    return replay.run.run_id


@pytest.mark.parametrize(
    ("market", "begins"), [({}, None), ({}, 2), ({"gather_ms": 0}, None), ({"gather_ms": 0}, 2)]
)
def test_around_every_choice_a_run_goes_on_with_the_choice_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, market: dict[str, Any], begins: int | None
) -> None:
    config = configured(**market)
    from_ms = None if begins is None else int(data()[0].open_time_ms[begins])
    whole = tmp_path / "whole.db"
    ended_after(whole, config, Tally(), from_ms)
    events, decisions = rows(whole, SAID), rows(whole, DECIDED)
    assert sum(kind == "universe" for kind, *_ in events) >= 3
    # The run's first event, its start, is none of these.
    made = [place for place, (kind, *_) in enumerate(events, 1) if kind == "universe"]
    ends = set()
    for every in sorted({1, *(place + by for place in made for by in (0, 1, 2))}):
        monkeypatch.setattr(running, "PROGRESS_EVENTS", every)
        path = tmp_path / f"{every}.db"
        run_id = ended_after(path, config, Tally(stopped=lambda: True), from_ms)
        kinds = rows(path, "SELECT kind FROM v_events ORDER BY sequence DESC LIMIT 1")
        ends.update(kinds)
        audit, tally = SqlAuditLog.open(path), Tally()
        resume_replay(run_id, data(), [], audit, path, tally)
        audit.close()
        assert rows(path, SAID) == events, every
        assert rows(path, DECIDED) == decisions, every
        with Reader.open(path) as reader:
            assert verify_chain(reader.connection, run_id).holds
    with Reader.open(path) as reader:
        assert verify_run(reader, path, run_id).differences == []
    assert ("universe",) in ends
