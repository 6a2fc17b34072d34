"""``bench sweep``: what a sweep costs beside its runs, on CPU time of all its processes."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tracepaper.replay.backtest.request import Request, carry_out
from tracepaper.replay.bench.machine import machine_line
from tracepaper.replay.bench.replay import tiled
from tracepaper.replay.sweep.cell import WHOLE, Cell, Work, make, overrides_of
from tracepaper.replay.sweep.executors import LocalProcesses
from tracepaper.replay.sweep.request import read_request
from tracepaper.replay.sweep.run import carry_out_sweep
from tracepaper.replay.sweep.space import grid

REACH_TIMES_RUNS: Final = 1.2
FAST: Final = tuple(range(2, 22, 2))
SLOW: Final = tuple(range(30, 130, 10))
CONFIG: Final = {"sizing": {"mode": "fixed", "quantity": "1"}, "account": {"cash": "1000000"}}

Tell = Callable[[str], None]


def measure(
    bars: int = 12_000,
    *,
    jobs: int | None = None,
    fast: Sequence[int] = FAST,
    slow: Sequence[int] = SLOW,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Return the figures of a sweep over *bars* bars: a hundred runs, of every *fast* and *slow*.

    Beside it the same runs are made one after another in this process: each as ``tracepaper
    replay`` makes it (``replays``), and with the figures that a sweep reads of each (``runs``).
    The sweep's trials are counted in a registry of its own.
    """
    candles = tiled(bars)
    with tempfile.TemporaryDirectory() as folder:
        request = read_request(
            "sma_cross",
            candles,
            {"fast": list(fast), "slow": list(slow)},
            "return",
            config=CONFIG,
        )
        cells = [
            Cell(0, WHOLE, number, point, None, None)
            for number, point in enumerate(grid(request.axes))
        ]
        make(request.work, cells[0])  # what is imported and read once is no run's cost
        tell(f"{len(cells)} replays of {bars:,} bars, one after another")
        replays = _cpu_s(lambda: [_replayed(request.work, cell, Path(folder)) for cell in cells])
        tell("the same with their figures")
        runs = _cpu_s(lambda: [make(request.work, cell) for cell in cells])
        tell("the same as a sweep")
        processes = LocalProcesses(jobs)
        swept = _cpu_s(
            lambda: carry_out_sweep(
                request,
                processes,
                state=Path(folder) / "sweep.db",
                progress=lambda _done, _of, _best: None,
                registry=Path(folder) / "trials.db",
            )
        )
        swept += processes.cpu_s  # of processes that are none of this one's children
    return {
        "machine": machine_line(),
        "runs": len(cells),
        "bars": bars,
        "cpu_s_replays": replays,
        "cpu_s_runs": runs,
        "cpu_s_sweep": swept,
        "sweep_times_runs": swept / runs,
        "sweep_times_replays": swept / replays,
        "reach_times_runs": REACH_TIMES_RUNS,
    }


def _replayed(work: Work, cell: Cell, folder: Path) -> str:
    database = folder / "run.db"
    made = carry_out(
        Request(
            data=work.candles,
            config=work.config,
            overrides=overrides_of(work, cell.point),
            database=database,
        )
    )
    for left in folder.glob("run.db*"):
        left.unlink()
    return made.run_id


def _cpu_s(job: Callable[[], object]) -> float:
    """Return the CPU seconds of *job* in this process and in those that it started and ended."""
    before = _used_s()
    job()
    return _used_s() - before


def _used_s() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)
