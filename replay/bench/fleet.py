"""What a fleet costs: steps shipped a CPU second, the lag at a pace, a pull, a view of one run.

And what shipping costs the daemon: a decision without and with a process that ships. Every figure
is of a real PostgreSQL at an address that the caller gives, whose schema is made by ``db create
--to``. CPU time is this process's; the server's is not counted.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.session.sidecars import SHIP_PROGRAM
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.bench.live import decision_latencies
from tracepaper.replay.bench.machine import machine_line
from tracepaper.replay.bench.replay import replay_of, tiled
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.fleet.follow import Follower
from tracepaper.storage.fleet.pull import pull
from tracepaper.storage.fleet.server import connect
from tracepaper.storage.fleet.ship import Shipper, database_id
from tracepaper.storage.fleet.views import FLEET_VIEWS
from tracepaper.strategies.errors import InvariantBroken

REACH_STEPS_PER_CPU_S: Final = 20_000
REACH_LAG_P99_S: Final = 2.0
REACH_PULL_MILLION_S: Final = 60.0
REACH_VIEW_RATIO: Final = 1.25
"""The time of a view of one run over that in a database of a tenth of the steps."""
RUNS: Final = 20
"""Runs of equal length of the database that is shipped; the smaller one has a tenth of them."""
_TIMES: Final = 5
_LOOK_S: Final = 0.01
_SHIPS_WITHIN_S: Final = 60.0

Tell = Callable[[str], None]


def measure_fleet(
    url: str,
    *,
    bars: int = 200_000,
    paced: int = 3_000,
    bars_per_s: float = 100.0,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Return the figures of shipping replays of *bars* in all to *url*, and of pulling them back.

    They are ``RUNS`` runs of one database. Each view of one of them is timed beside the same of a
    database of a tenth of the runs, which was shipped and timed before. Then *paced* steps of a run
    are written as a live run writes them, *bars_per_s* a second, and followed: the lag of a step is
    from its commit here to when the server shows it.
    """
    with tempfile.TemporaryDirectory() as folder:
        small, database = Path(folder) / "small.db", Path(folder) / "bench.db"
        _write(small, RUNS // 10, bars // RUNS, tell)
        _shipped(small, url, tell)
        views_small = _view_times(url, small, tell)
        _write(database, RUNS, bars // RUNS, tell)
        steps, cpu_s, wall_s = _shipped(database, url, tell)
        views = _view_times(url, database, tell)
        tell("pulling them back")
        wall = time.perf_counter()
        pull(url, Path(folder) / "back.db", database=database_id(database))
        pull_s = time.perf_counter() - wall
        paced = min(paced, bars // RUNS)
        tell(f"following {paced:,} steps, {bars_per_s:g} a second")
        lags = _lags(url, database, Path(folder) / "live.db", paced, bars_per_s)
    return {
        "machine": machine_line(),
        "steps": steps,
        "shipped_steps_per_cpu_s": steps / cpu_s,
        "reach_shipped_steps_per_cpu_s": REACH_STEPS_PER_CPU_S,
        "shipped_steps_per_s": steps / wall_s,
        "view_ms": {name: 1e3 * taken_s for name, taken_s in views.items()},
        "view_of_a_tenth_ms": {name: 1e3 * taken_s for name, taken_s in views_small.items()},
        "view_ratio": {name: taken_s / views_small[name] for name, taken_s in views.items()},
        "reach_view_ratio": REACH_VIEW_RATIO,
        "pull_s": pull_s,
        "pull_s_per_million": pull_s / steps * 1e6,
        "reach_pull_s_per_million": REACH_PULL_MILLION_S,
        "lag_p50_s": float(np.quantile(lags, 0.5)),
        "lag_p99_s": float(np.quantile(lags, 0.99)),
        "reach_lag_p99_s": REACH_LAG_P99_S,
    }


def _write(database: Path, runs: int, bars: int, tell: Tell) -> None:
    """Write *runs* equal replays of *bars* into *database*."""
    tell(f"replaying {runs} times {bars:,} bars")
    candles = tiled(bars)
    for _ in range(runs):
        audit = SqlAuditLog.open(database)
        run_replay(replay_of([candles], "sma_cross"), audit, Tally())
        audit.end(0)
        audit.close()


def _shipped(database: Path, url: str, tell: Tell) -> tuple[int, float, float]:
    """Ship *database*; return its steps, and the seconds of CPU and of wall time."""
    tell("shipping them")
    shipper = Shipper(database, url)
    shipper.open()
    wall, began = time.perf_counter(), time.process_time()
    steps = shipper.ship().steps
    taken = time.process_time() - began, time.perf_counter() - wall
    shipper.close()
    return steps, *taken


def _view_times(url: str, database: Path, tell: Tell) -> dict[str, float]:
    """Return the median seconds of all rows of each view of the middle run of *database*."""
    found = {}
    with Reader.open(database) as reader:
        run_ids = reader.run_ids()
    mine = (database_id(database), run_ids[len(run_ids) // 2])
    with closing(connect(url)) as server:
        server.execute("ANALYZE")
        for view in FLEET_VIEWS:
            tell(f"asking {view.name} for one run of {len(run_ids)}")
            query = f"SELECT * FROM {view.name} WHERE database_id = %s AND run_id = %s"  # noqa: S608
            taken = []
            for _ in range(_TIMES):
                began = time.perf_counter()
                server.execute(query.encode(), mine).fetchall()
                taken.append(time.perf_counter() - began)
            found[view.name] = statistics.median(taken)
    return found


def measure_decisions(
    url: str,
    *,
    decisions: int = 400,
    rounds: int = 10,
    pause_s: float = 0.01,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Return milliseconds of a daemon's decision without and with a process that ships its file.

    In each of *rounds* both are measured, the first of them in turn: *decisions*, *pause_s* apart.
    The differences are medians of the rounds' own, each with twice its standard error.
    """
    found: dict[str, list[list[float]]] = {"without": [], "with": []}
    for number in range(rounds):
        tell(f"decisions without and with a shipper, {number + 1} of {rounds}")
        for name in sorted(found, reverse=bool(number % 2)):
            beside = partial(_shipping, url) if name == "with" else nullcontext
            one = decision_latencies(decisions, "sma_cross", beside=beside, pause_s=pause_s)
            found[name].append(asyncio.run(one)[0])
    figures: dict[str, Any] = {"decisions": decisions, "rounds": rounds}
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        without, beside_one = (
            [float(np.quantile(one, part)) for one in found[which]] for which in ("without", "with")
        )
        apart = [b - a for a, b in zip(without, beside_one, strict=True)]
        figures[f"decision_{name}_ms"] = {
            "without": statistics.median(without),
            "with": statistics.median(beside_one),
            "difference": statistics.median(apart),
            # Of a median: 1.253 times that of a mean.
            "error": 2 * 1.253 * statistics.stdev(apart) / rounds**0.5,
        }
    return figures


@contextmanager
def _shipping(url: str, database: Path) -> Iterator[None]:
    """Have the process that a daemon starts ship *database* in the block, from its first mark."""
    name = database_id(database)
    query, seconds = "SELECT count(*) FROM marks WHERE database_id = %s", SystemClock().network_s
    process = subprocess.Popen(  # noqa: S603 - our own program
        (*SHIP_PROGRAM, "--service", "--to", url, "--db", str(database)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    try:
        until_s = seconds() + _SHIPS_WITHIN_S
        with closing(connect(url)) as server:
            while server.execute(query, (name,)).fetchone() == (0,):
                if process.poll() is not None or seconds() > until_s:
                    raise InvariantBroken("The process that ships did not begin.")
                time.sleep(_LOOK_S)
        yield
        if process.poll() is not None:
            raise InvariantBroken("The process that ships ended by itself.")
    finally:
        process.stdin.close()
        process.wait(_SHIPS_WITHIN_S)


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
