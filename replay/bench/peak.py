"""The peak memory of one attention route, in a process of its own: ``python -m … ROUTE MASK N``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

ROUTES = ("inputs", "flash", "ours", "dense")


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


def peak_bytes(route: str, mask: str, bars: int) -> int:
    """Return what *route* takes at its peak beyond the imports, measured in a fresh process.

    Raises ``DataInvalid`` where that process fails, as when memory runs out, and
    ``ConfigInvalid`` on a system without Linux's ``/proc``.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise ConfigInvalid("Peaks of memory are read from Linux's /proc; measure without memory.")
    done = subprocess.run(  # noqa: S603 - our own module, no shell
        [sys.executable, "-m", __name__, route, mask, str(bars)],
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode != 0:
        raise DataInvalid(
            f"Measuring {route} at {bars} bars ended with code {done.returncode}; free memory or "
            "choose fewer bars."
        )
    return int(json.loads(done.stdout)["bytes"])


def run(route: str, mask_name: str, bars: int) -> int:
    """Take the route in this process; return its peak beyond the imports in bytes."""
    from tracepaper.strategies.networks import workloads

    if route not in ROUTES:
        raise ConfigInvalid(f"No route is called {route!r}; choose one of {', '.join(ROUTES)}.")
    mask = mask_named(mask_name)
    workloads.set_threads(1)
    small = workloads.draw(workloads.Setting(), 64)
    workloads.explain(small, workloads.forward(small, mask), mask)
    before = _start()
    inputs = workloads.draw(workloads.Setting(), bars)
    if route == "dense":
        workloads.dense(inputs, mask)
    elif route != "inputs":
        sums = workloads.forward(inputs, mask)
        if route == "ours":
            workloads.explain(inputs, sums, mask)
    return (_status_kib("VmHWM") - before) * 1024


def _start() -> int:
    """Forget the peak that the imports made; return what is held now, in KiB.

    The kernel's own figures, since ``getrusage`` hands a parent's peak on to its children.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status_kib("VmRSS")


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"bytes": run(sys.argv[1], sys.argv[2], int(sys.argv[3]))}))
