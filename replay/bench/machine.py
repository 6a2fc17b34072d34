"""A description of the machine, interleaved timing of routes, and a process's memory."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

ROUNDS_MIN: Final = 3
ROUNDS_MAX: Final = 9
ENOUGH_S: Final = 3.0
"""Total seconds of rounds after which no further round is measured."""
WARM_S: Final = 1.0
"""Seconds from which the warm-up of a route is long enough to count as a round."""
LONG_S: Final = 2.5
"""Seconds of one route after which it is not run again."""

Route = Callable[[], object]


def machine_line() -> str:
    """Describe the machine in one line, as every ``tracepaper bench`` prints it.

    The load is that of the last 1, 5 and 15 minutes; a measurement adds its own.
    """
    from tracepaper.daemon.session.run_row import code_version

    load = " ".join(f"{average:.1f}" for average in os.getloadavg())
    return (
        f"version {code_version()}, {_processor()}, {len(os.sched_getaffinity(0))} cores, "
        f"load {load}, Python {platform.python_version()}, "
        f"PyTorch {version('torch').partition('+')[0]}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def interleaved(
    routes: Mapping[str, Route],
    *,
    clock: Callable[[], float] = time.process_time,
    wait: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return each route's median seconds; after a warm-up, every round runs each route once.

    A route of seconds is run less often: its warm-up counts, and ``LONG_S`` of it are enough.
    *wait* blocks until the work that a route started is done.
    """

    def seconds(route: Route) -> float:
        before = clock()
        route()
        wait()
        return clock() - before

    warmed = {name: seconds(route) for name, route in routes.items()}
    spent = {name: [first] if first >= WARM_S else [] for name, first in warmed.items()}
    for done in range(ROUNDS_MAX):
        left = [name for name in routes if sum(spent[name]) < LONG_S]
        if not left or (done >= ROUNDS_MIN and sum(map(sum, spent.values())) > ENOUGH_S):
            break
        for name in left:
            spent[name].append(seconds(routes[name]))
    return {name: statistics.median(each) for name, each in spent.items()}


def resident_mb(*, peak: bool = False) -> float:
    """Return the resident memory of this process in MB, or its *peak*, as without ``/proc``.

    The peak of ``getrusage`` is second choice, since a child process inherits its parent's.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1_024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    name = "VmHWM" if peak else "VmRSS"
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1_024 / 1e6
