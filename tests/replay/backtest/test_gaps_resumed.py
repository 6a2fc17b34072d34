"""A backtest that is ended between a hole and the bar behind it says the hole once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows

from tracepaper.daemon.config.loading import load
from tracepaper.replay.backtest import run as running
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.run import Tally, resume_replay, run_replay
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader

HOUR = 3_600_000
NAMES = ("AAAUSDT", "BBBUSDT")
SAID = (
    "SELECT kind, instrument, market_ms, content FROM v_events WHERE kind <> 'model_change' "
    "ORDER BY sequence"
)


@pytest.mark.parametrize("gather_ms", [250, 0])
def test_a_hole_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gather_ms: int
) -> None:
    first = made_candles(walk_rows(8), interval_ms=HOUR, symbol=NAMES[0])
    times = [*first.open_time_ms[:3].tolist(), *first.open_time_ms[5:].tolist()]
    data = [first, made_candles(walk_rows(6), interval_ms=HOUR, symbol=NAMES[1], times_ms=times)]
    config = load(
        None,
        {
            "market": {"symbols": NAMES, "interval": "60", "gather_ms": gather_ms},
            "strategy": {"name": "sma_cross", "fast": 1, "slow": 2},
        },
    )

    def ended(path: Path, tally: Tally) -> str:
        replay = build(config, data, started_at_ms=0)
        audit = SqlAuditLog.open(path)
        run_replay(replay, audit, tally)
        audit.close()
        return replay.run.run_id

    def asked(path: Path, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(path)) as database:
            return database.execute(query).fetchall()

    ended(tmp_path / "whole.db", Tally())
    events = asked(tmp_path / "whole.db", SAID)
    (hole,) = (place for place, (kind, *_) in enumerate(events, 1) if kind == "gap")
    for every in range(2, hole + 2):  # the bars of a close count as one or as several
        monkeypatch.setattr(running, "PROGRESS_EVENTS", every)
        path = tmp_path / f"{every}.db"
        run_id = ended(path, Tally(stopped=lambda: True))
        if asked(path, SAID)[-1][0] == "gap":
            break
    assert asked(path, SAID)[-1][0] == "gap"
    for tally in (Tally(stopped=lambda: True), Tally()):  # ended once more behind the new start
        monkeypatch.setattr(running, "PROGRESS_EVENTS", 1)
        audit = SqlAuditLog.open(path)
        resume_replay(run_id, data, [], audit, path, tally)
        audit.close()
    assert asked(path, SAID) == events
    with Reader.open(path) as reader:
        assert verify_run(reader, path, run_id).differences == []
