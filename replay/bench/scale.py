"""``bench scale``: what leaving this process, or this machine, costs; one function a figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from tracepaper.daemon.clock import SystemClock
from tracepaper.replay.bench.machine import machine_line
from tracepaper.replay.bench.replay import CONFIG, FAST, SLOW, Tell, tiled
from tracepaper.replay.sweep.executor import LocalProcesses, UnitExecutor
from tracepaper.replay.sweep.on_ray import OnRay
from tracepaper.replay.sweep.space import grid
from tracepaper.replay.sweep.trial import WHOLE, Cell, CellResult, read_request
from tracepaper.strategies.errors import InvariantBroken

REACH_TIMES_LOCAL: Final = 1.15
"""The time of cells on Ray over that of local processes, start apart, that is to be reached."""


def measure_ray(
    bars: int = 12_000,
    *,
    jobs: int = 2,
    rounds: int = 3,
    fast: Sequence[int] = FAST,
    slow: Sequence[int] = SLOW,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Return wall seconds of a hundred cells by *jobs* local processes and on a local Ray.

    Both are started first, each worker with one cell; then the cells are made *rounds* times by
    each in turn. The figures are medians. Raises ``InvariantBroken`` where a cell differs.
    """
    space = {"fast": list(fast), "slow": list(slow)}
    request = read_request("sma_cross", tiled(bars), space, "return", config=CONFIG)
    cells = [
        Cell(0, WHOLE, number, point, None, None) for number, point in enumerate(grid(request.axes))
    ]
    places: dict[str, UnitExecutor[Cell, CellResult]] = {
        "local": LocalProcesses(jobs),
        "ray": OnRay(jobs),
    }
    seconds: dict[str, list[float]] = {name: [] for name in places}
    starts, found, clock = {}, {}, SystemClock()
    opened: list[UnitExecutor[Cell, CellResult]] = []
    try:
        for name, executor in places.items():
            tell(f"{jobs} workers start: {name}")
            began_s = clock.network_s()
            executor.open(request.work, None)
            opened.append(executor)
            _made(executor, cells[:jobs])
            starts[name] = clock.network_s() - began_s
        for _ in range(rounds):
            for name, executor in places.items():
                tell(f"{len(cells)} cells of {bars:,} bars: {name}")
                taken_s, found[name] = _made(executor, cells)
                seconds[name].append(taken_s)
    finally:
        for executor in opened:
            executor.close()
    if found["local"] != found["ray"]:
        raise InvariantBroken("A cell on Ray differs from the local one.")
    local, there = (statistics.median(seconds[name]) for name in places)
    return {
        "machine": machine_line(),
        "cells": len(cells),
        "bars": bars,
        "workers": jobs,
        "s_start_local": starts["local"],
        "s_start_ray": starts["ray"],
        "s_local": local,
        "s_ray": there,
        "ray_times_local": there / local,
        "reach_times_local": REACH_TIMES_LOCAL,
    }


def _made(
    executor: UnitExecutor[Cell, CellResult], cells: Sequence[Cell]
) -> tuple[float, list[CellResult]]:
    """Make *cells*; return the seconds, and the results in order without how long each took."""
    clock = SystemClock()
    began_s = clock.network_s()
    waiting, outstanding = iter(cells), 0
    results: list[CellResult] = []
    while True:
        while outstanding < executor.slots and (cell := next(waiting, None)) is not None:
            executor.submit(cell)
            outstanding += 1
        if not outstanding:
            break
        results.append(replace(executor.next(), seconds=0.0))
        outstanding -= 1
    return clock.network_s() - began_s, sorted(results, key=lambda one: one.number)
