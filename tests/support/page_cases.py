"""What tests of the page share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from long_replays import replay_of, tiled

from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.page.databases import Databases, OpenRun
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader


def shown_of(database: Path, *, builds: bool = True) -> OpenRun:
    """Return the newest run of *database*."""
    with Reader.open(database) as reader:
        run_id = reader.find("last")
    return Databases([database], builds=builds).find(run_id)


def record(bars: int, database: Path) -> None:
    """Replay *bars* bundled bars with ``sma_cross`` into the new *database*."""
    audit = SqlAuditLog.open(database)
    run_replay(replay_of([tiled(bars)], "sma_cross"), audit, Tally())
    audit.end(0)
    audit.close()


@contextmanager
def serving_apart(*databases: Path) -> Iterator[str]:
    """Serve *databases* by ``tracepaper ui`` in a process of its own; yield the address."""
    arguments = [argument for path in databases for argument in ("--db", str(path))]
    command = [sys.executable, "-u", "-m", "tracepaper.daemon.cli", "ui", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            yield line.split("The page is ", 1)[1].split("/ ", 1)[0]
        finally:
            process.terminate()
