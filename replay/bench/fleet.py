"""What shipping to a fleet costs: steps a CPU second, the lag at a pace, and a pull.

Every figure is of a real PostgreSQL at an address that the caller gives, whose schema is made by
``db upgrade --to``. CPU time is this process's; the server's is not counted.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np

from tracepaper.daemon.clock import SystemClock
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.bench.machine import machine_line
from tracepaper.replay.bench.replay import replay_of, tiled
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.fleet.follow import Follower
from tracepaper.storage.fleet.pull import pull
from tracepaper.storage.fleet.server import connect
from tracepaper.storage.fleet.ship import Shipper, database_id

REACH_STEPS_PER_CPU_S: Final = 20_000
REACH_LAG_P99_S: Final = 2.0
REACH_PULL_MILLION_S: Final = 60.0
_LOOK_S: Final = 0.01

Tell = Callable[[str], None]


def measure_fleet(
    url: str,
    *,
    bars: int = 200_000,
    paced: int = 3_000,
    bars_per_s: float = 100.0,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Return the figures of shipping a replay of *bars* to *url*, and of pulling it back.

    Then *paced* of its steps are written as a live run writes them, *bars_per_s* a second, and
    followed: the lag of a step is from its commit here to when the server shows it.
    """
    with tempfile.TemporaryDirectory() as folder:
        database, back = Path(folder) / "bench.db", Path(folder) / "back.db"
        tell(f"replaying {bars:,} bars")
        audit = SqlAuditLog.open(database)
        run_replay(replay_of([tiled(bars)], "sma_cross"), audit, Tally())
        audit.end(0)
        audit.close()
        tell("shipping them")
        shipper = Shipper(database, url)
        shipper.open()
        wall, began = time.perf_counter(), time.process_time()
        steps = shipper.ship().steps
        cpu_s, wall_s = time.process_time() - began, time.perf_counter() - wall
        shipper.close()
        tell("pulling them back")
        wall = time.perf_counter()
        pull(url, back, database=database_id(database))
        pull_s = time.perf_counter() - wall
        tell(f"following {paced:,} steps, {bars_per_s:g} a second")
        lags = _lags(url, database, Path(folder) / "live.db", paced, bars_per_s)
    return {
        "machine": machine_line(),
        "steps": steps,
        "shipped_steps_per_cpu_s": steps / cpu_s,
        "reach_shipped_steps_per_cpu_s": REACH_STEPS_PER_CPU_S,
        "shipped_steps_per_s": steps / wall_s,
        "pull_s_per_million": pull_s / steps * 1e6,
        "reach_pull_s_per_million": REACH_PULL_MILLION_S,
        "lag_p50_s": float(np.quantile(lags, 0.5)),
        "lag_p99_s": float(np.quantile(lags, 0.99)),
        "reach_lag_p99_s": REACH_LAG_P99_S,
    }


def _lags(url: str, source: Path, database: Path, count: int, bars_per_s: float) -> list[float]:
    """Write the first *count* steps of *source* into *database* at a pace; return their lags."""
    seconds, stop = SystemClock().network_s, threading.Event()
    with Reader.open(source) as reader:
        run_id = reader.find("last")
        run = reader.stored_run(run_id).run
        steps = [stored.step for stored in reader.steps(run_id, until=count - 1)]
        sets = reader.gate_sets(1)
    log = SqlAuditLog.open(database)
    log.begin(run, sets[:0])
    committed: list[float] = []
    shown: list[float] = []
    follower = Follower(database, url, stop=stop, seconds=seconds)
    threads = [
        threading.Thread(target=follower.run),
        threading.Thread(target=_watch, args=(url, database_id(database), shown, len(steps))),
    ]
    for thread in threads:
        thread.start()
    begun = seconds()
    for number, step in enumerate(steps):
        if (wait_s := begun + number / bars_per_s - seconds()) > 0:
            time.sleep(wait_s)
        log.append_now(step)
        log.flush()
        committed.append(seconds())
    threads[1].join()
    stop.set()
    threads[0].join()
    log.close()
    return [there - here for here, there in zip(committed, shown, strict=True)]


def _watch(url: str, name: str, shown: list[float], count: int) -> None:
    """Note when the server first shows each step of the database *name*."""
    seconds = SystemClock().network_s
    query = "SELECT step & 268435455 FROM marks WHERE database_id = %s"
    with closing(connect(url)) as server:
        while len(shown) < count:
            row = server.execute(query, (name,)).fetchone()
            arrived = 0 if row is None else row[0] + 1
            shown += [seconds()] * (arrived - len(shown))
            time.sleep(_LOOK_S)
