"""How much memory this process could still be given, where the system tells."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_KIB: Final = 1024


def free_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes that machine and container would still give; None where neither tells.

    Linux tells: ``MemAvailable`` of ``/proc/meminfo`` and, in a container, the limit of its
    control group (version 2). What either can drop at once, such as cached files, counts as free.
    """
    found = [_of_machine(root / "proc/meminfo"), _of_group(root / "sys/fs/cgroup")]
    return min((free for free in found if free is not None), default=None)


def _of_machine(meminfo: Path) -> int | None:
    available = _table(meminfo).get("MemAvailable:")
    return None if available is None else available * _KIB


def _of_group(folder: Path) -> int | None:
    limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
    if limit is None or used is None:
        return None
    return max(0, limit - used + _table(folder / "memory.stat").get("inactive_file", 0))


def _number(path: Path) -> int | None:
    """Return the number in *path*; None where there is no such file, or it says ``max``."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    """Return the names and numbers of the lines of *path*; empty where there is no such file."""
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
