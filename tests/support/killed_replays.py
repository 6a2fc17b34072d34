"""A backtest that is killed amid its steps: its files as a dead process leaves them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tracepaper.replay.backtest.build import Replay
from tracepaper.replay.backtest.make import resume_replay
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.storage.audit import SqlAuditLog


class KillReplay(Exception):
    """Ends a backtest in place of a signal."""


def killed(
    built: Callable[[Path], Replay],
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    bars: int,
    every: int = 7,
    group_steps: int = 3,
) -> Path:
    """Kill a backtest behind *bars* events; return a copy of the database that it left.

    It is asked after *every* so many of them, and commits *group_steps* at once.
    """
    running, cut = folder / "running.db", folder / "cut.db"
    patch.setattr("tracepaper.replay.backtest.run.PROGRESS_EVENTS", every)

    def kill(done: int) -> None:
        if done > bars:
            for suffix in ("", "-wal"):
                shutil.copy(f"{running}{suffix}", f"{cut}{suffix}")
            raise KillReplay

    log = SqlAuditLog.open(running, group_steps=group_steps)
    replay = built(running)
    with pytest.raises(KillReplay):
        run_replay(replay, log, Tally(progress=kill))
    log.close()
    if (models := folder / "running.db.checkpoints").exists():
        shutil.copytree(models, folder / "cut.db.checkpoints")
    return cut


def resumed(path: Path, data: MarketData) -> str:
    """Resume the newest backtest of a database, over *data*; return its id."""
    log = SqlAuditLog.open(path)
    run_id = resume_replay("last", data, log, path, Tally())
    log.end(1)
    log.close()
    return run_id
