"""A backtest that is killed amid its steps: its files as a dead process leaves them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tracepaper.daemon.config.loading import Config
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.run import Tally, resume_replay, run_replay
from tracepaper.storage.audit import SqlAuditLog


class Killed(Exception):
    """Ends a backtest in place of a signal."""


def killed_and_resumed(
    config: Config,
    candles: list[Candles],
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    bars: int,
) -> Path:
    """Kill a backtest behind *bars* events, resume it from a copy; return the copy's database."""
    running, cut = folder / "running.db", folder / "cut.db"
    patch.setattr("tracepaper.replay.backtest.run.PROGRESS_EVENTS", 7)

    def kill(done: int) -> None:
        if done > bars:
            for suffix in ("", "-wal"):
                shutil.copy(f"{running}{suffix}", f"{cut}{suffix}")
            raise Killed

    log = SqlAuditLog.open(running, group_steps=3)
    replay = build(config, candles, started_at_ms=0, database=running)
    with pytest.raises(Killed):
        run_replay(replay, log, Tally(progress=kill))
    log.close()
    log = SqlAuditLog.open(cut)
    resume_replay("last", candles, (), log, cut, Tally())
    log.end(1)
    log.close()
    return cut
