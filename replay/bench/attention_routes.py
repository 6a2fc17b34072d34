"""Routes from one attention's inputs to an explanation, in turn, each peak in its own process.

Beside the product's own there are other forms of explanation and a user's implementations: a
function ``module:function`` of the inputs (their ``queries``, ``keys`` and ``values`` are lists
with one tensor [1, head, time, dim] a layer) and the mask (``kind`` and ``window_bars``).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from tracepaper.daemon.session.user_class import imported
from tracepaper.replay.bench.machine import status_kib
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

if TYPE_CHECKING:
    from tracepaper.strategies.networks.workloads import Inputs, Setting

ROUTES: Final = ("inputs", "flash", "ours", "dense")
FORMS_MAX: Final = 4_096
"""Beyond, forms that need whole rows take minutes."""
ROUNDS_MIN: Final = 3
ROUNDS_MAX: Final = 9
ENOUGH_S: Final = 3.0
"""Once its rounds took this long together, a size has been measured often enough."""
_PEAK: Final = "peak of a route, bytes: "

Figures = dict[str, Any]
Route = Callable[[], object]
Implementation = Callable[["Inputs", Mask], object]


def mask_named(name: str) -> Mask:
    """Return the mask called *name*: full, causal or window:BARS."""
    if name == "full":
        return Mask.full()
    if name == "causal":
        return Mask.causal()
    kind, _, bars = name.partition(":")
    if kind != "window" or not bars.isdigit():
        raise ConfigInvalid(f"No mask is called {name!r}; choose full, causal or window:BARS.")
    return Mask.window(int(bars))


def implementation(name: str) -> Implementation:
    """Return the user's function ``module:function``; raise ``ConfigInvalid`` where it is none."""
    found = imported(name, key="--compare")
    if not callable(found):
        raise ConfigInvalid(f"--compare {name} is no function; name one of (inputs, mask).")
    made: Implementation = found
    return made


def interleaved(
    routes: Mapping[str, Route],
    *,
    clock: Callable[[], float] = time.process_time,
    wait: Callable[[], None] = lambda: None,
    warm_up: Callable[[str, Route], object] = lambda _name, route: route(),
) -> dict[str, float]:
    """Return each route's median seconds; every round takes each route once, after a warm-up.

    *wait* returns when the work that a route started is done.
    """
    for name, route in routes.items():
        warm_up(name, route)
    wait()
    spent: dict[str, list[float]] = {name: [] for name in routes}
    for done in range(ROUNDS_MAX):
        if done >= ROUNDS_MIN and sum(map(sum, spent.values())) > ENOUGH_S:
            break
        for name, route in routes.items():
            before = clock()
            route()
            wait()
            spent[name].append(clock() - before)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def other_forms(
    setting: Setting,
    bars: int,
    mask_name: str,
    compare: Sequence[str],
    *,
    peaks: Peaks | None = None,
) -> list[Figures]:
    """Return a row for each other form of explanation, and for each implementation in *compare*.

    Seconds, ratios to the flash forward in the same rounds, floating-point operations as torch
    counts them in its products and attention kernels and, with *peaks*, the peak beyond the
    inputs: of a process of its own on the CPU, of the device on CUDA.
    """
    from tracepaper.strategies.networks import workloads

    mask = mask_named(mask_name)
    inputs = workloads.draw(setting, bars)
    sums = workloads.forward(inputs, mask)
    routes: dict[str, Route] = {}
    for form, explain in workloads.FORMS.items() if bars <= FORMS_MAX else ():
        routes[form] = partial(explain, inputs, sums, mask)
    for name in compare:
        routes[name] = partial(implementation(name), inputs, mask)
    on_cpu = setting.device == "cpu"
    operations: dict[str, int] = {}
    seconds = interleaved(
        {"flash": lambda: workloads.forward(inputs, mask), **routes},
        clock=time.process_time if on_cpu else time.perf_counter,
        wait=workloads.waiter(setting.device),
        warm_up=lambda name, route: operations.update({name: workloads.counted(route)}),
    )
    rows = []
    for name, route in routes.items():
        row: Figures = {"bars": bars, "mask": mask_name, "route": name, "s": seconds[name]}
        row |= {"ratio": seconds[name] / seconds["flash"], "flops": operations[name]}
        if not on_cpu:
            row["bytes"] = workloads.device_peak(route)
        elif peaks is not None:
            row["bytes"] = peaks.of(name, mask_name, bars)
        rows.append(row)
    return rows


class Peaks:
    """A process that has imported everything, and forks one of its own for each peak.

    Imports take longer than most routes. Raises ``ConfigInvalid`` on a system without ``/proc``.
    """

    def __init__(self) -> None:
        if not Path("/proc/self/clear_refs").exists():
            raise ConfigInvalid(
                "Peaks of memory are read from Linux's /proc; measure without memory."
            )
        self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """End the process."""
        with self._process:
            self._process.kill()

    def of(self, route: str, mask: str, bars: int) -> int:
        """Return what *route* takes at its peak beyond the imports.

        Raises ``DataInvalid`` where its process fails, as when memory runs out.
        """
        asked, told = self._process.stdin, self._process.stdout
        assert asked is not None
        assert told is not None
        asked.write(f"{json.dumps([route, mask, bars])}\n")
        asked.flush()
        # A user's function may have printed before it.
        for line in told:
            if line.startswith(_PEAK):
                found = int(line.removeprefix(_PEAK))
                if found >= 0:
                    return found
                break
        raise DataInvalid(
            f"Measuring {route} at {bars} bars failed; free memory or choose fewer bars."
        )


def serve() -> None:
    """Answer each line of stdin, a route, a mask and bars, with the peak of a process of its own.

    -1 stands for one that failed.
    """
    from tracepaper.strategies.networks import mechanisms, workloads

    assert mechanisms.MECHANISMS
    assert workloads.FORMS
    for line in sys.stdin:
        route, mask_name, bars = json.loads(line)
        child = os.fork()
        if not child:
            ended = 1
            try:
                sys.stdout.write(f"{_PEAK}{run(route, mask_name, bars)}\n")
                sys.stdout.flush()
                ended = 0
            finally:
                os._exit(ended)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            sys.stdout.write(f"{_PEAK}-1\n")
            sys.stdout.flush()


def run(route: str, mask_name: str, bars: int) -> int:
    """Take the route in this process; return its peak beyond the imports in bytes."""
    from tracepaper.strategies.networks import workloads
    from tracepaper.strategies.networks.mechanisms import MECHANISMS

    known = (*ROUTES, *workloads.FORMS, *MECHANISMS)
    if route not in known and ":" not in route:
        raise ConfigInvalid(f"No route is called {route!r}; choose one of {', '.join(known)}.")
    mask = mask_named(mask_name)
    workloads.set_threads(1)
    setting = workloads.Setting()
    own = implementation(route) if ":" in route else None

    def taken(inputs: Inputs) -> None:
        if route in MECHANISMS:
            MECHANISMS[route].make(inputs).explain()
        elif own is None:
            workloads.take(route, inputs, mask)
        else:
            own(inputs, mask)

    # Once small, for the pages of code that it takes belong to no route.
    taken(workloads.draw(setting, 64))
    before = _start()
    taken(workloads.draw(setting, bars))
    return (status_kib("VmHWM") - before) * 1024


def _start() -> int:
    """Forget the peak that the imports made; return what is held now, in KiB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status_kib("VmRSS")


if __name__ == "__main__":
    serve()
