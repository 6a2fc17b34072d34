"""What a figure was measured on, and how much memory a process holds."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path


def machine_line() -> str:
    """Return cores, processor and interpreter in one line."""
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {_processor()}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def resident_mb() -> float:
    """Return the memory this process holds now, in MB."""
    return _held_mb("VmRSS")


def most_resident_mb() -> float:
    """Return the most memory that this process has held, in MB; mapped files count with it."""
    return _held_mb("VmHWM")


def status_kib(name: str) -> int:
    """Return the kernel's own figure of this process, in KiB; raise ``OSError`` without one.

    ``getrusage`` hands the peak of a parent on to its children.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def _held_mb(name: str) -> float:
    try:
        return status_kib(name) * 1_024 / 1e6
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1_024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
