"""A calm life of many days on the loop of the world: what grows, and what each bar writes.

    python tests/campaigns/campaign_soak.py [--days 30] [--model NAME]

It prints a line a day, and what SQLite wrote by table. It fails where memory, descriptors, tasks or
timers grow, where a bar gets slower or writes more than ``MOST_BYTES``, and where a law of the
checker, ``audit verify`` or ``verify`` does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import msgspec

TESTS: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from world.disk import Operation  # noqa: E402 - after its folder
from world.history import History  # noqa: E402
from world.life import Life, Shared  # noqa: E402
from world.processes import in_child  # noqa: E402
from world.spec import SMA, Spec, calm, drawn  # noqa: E402

from tracepaper.storage.database.connection import PAGE_BYTES  # noqa: E402
from tracepaper.strategies.types.decisions import Step  # noqa: E402

DAY: Final = 1_440
"""Bars of a day."""
WARM: Final = 5
"""Days after which nothing grows but the record: caches and the allocator have settled."""
MOST_MB_A_DAY: Final = 0.5
MOST_BYTES: Final = 30_000
"""Most bytes written a bar of one symbol without a model, log and checkpoints together: each commit
writes whole pages, one of each of five tables at least."""
FRAME_HEADER: Final = 24
"""Bytes before each page of the log: its number, the size of the file where a commit ends, and
checks."""
SLOWER: Final = 1.5
"""A day of bars may cost so many times the median day."""


class Writes:
    """What SQLite writes, by page: in frames of the log, and in checkpoints."""

    def __init__(self) -> None:
        self.frames: Counter[int] = Counter()
        self.checkpointed: Counter[int] = Counter()
        self.commits = 0

    def take(self, operation: Operation) -> None:
        """Count a write of the log or of the file."""
        if operation.kind != "write":
            return
        if operation.path.endswith("-wal") and len(operation.data) == FRAME_HEADER:
            self.frames[int.from_bytes(operation.data[:4])] += 1
            self.commits += bool(int.from_bytes(operation.data[4:8]))
        elif operation.path.endswith(".db"):
            self.checkpointed[operation.offset // len(operation.data) + 1] += 1


class Soak(Life):
    """A life that measures itself at the end of each day."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.writes, self.days = Writes(), list[dict[str, float]]()
        self._before_s = 0.0
        done = self._disk.done

        def watched(operation: Operation) -> None:
            self.writes.take(operation)
            done(operation)

        self._disk.done = watched  # type: ignore[method-assign]  # a disk that also counts

    def _watch(self, step: Step) -> bool:
        goes_on = super()._watch(step)
        if step.decision is not None and self.report.decided % DAY == 0:
            self.report.decided_s.clear()  # the world's own list grows, the daemon must not
            self._measure()
        return goes_on

    def _measure(self) -> None:
        spent_s = time.process_time()
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        day = {
            "day": self.report.decided // DAY,
            "MB": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1),
            "objects": len(gc.get_objects()),
            "descriptors": len([*Path("/proc/self/fd").iterdir()]),
            "tasks": len(asyncio.all_tasks()),
            "timers": len([*self.loop.pending_timers()]),
            "ms a bar": round((spent_s - self._before_s) / DAY * 1e3, 2),
            "file MB": round(sum(each.stat().st_size for each in _files(self.folder)) / 1e6, 2),
        }
        self.days.append(day)
        print("  ".join(f"{name} {figure}" for name, figure in day.items()), flush=True)
        self._before_s = time.process_time()


def _files(folder: Path) -> list[Path]:
    return [each for each in folder.glob("run.db*") if each.is_file()]


class Measured(msgspec.Struct):
    """What a soak tells the process that began it."""

    end: str
    left: list[str]
    days: list[dict[str, float]]
    commits: int
    frames: dict[int, int]
    checkpointed: dict[int, int]


def calm_days(days: int, model: str) -> Spec:
    """Return a history of *days* of minutes in which nothing strikes."""
    spec = calm(drawn(1, bars=days * DAY + 10, kind="plain", minutes=1))
    config = {**spec.config, "market": {**spec.config["market"], "symbols": ["BTCUSDT"]}}
    config |= {"exits": {}, "strategy": SMA}
    if model:
        del config["strategy"]
        config["model"] = {"checkpoint": model, "deadline_ms": 60_000}
    return msgspec.structs.replace(spec, config=config, symbols=("BTCUSDT",), bar_s=0.5)


def soak(spec: Spec, folder: Path) -> Measured:
    """Live *spec* in *folder*; return what was measured."""
    exchange = History(spec, folder)._exchange  # noqa: SLF001 - the world's own
    life = Soak(spec, 0, exchange, Shared(), folder, start_s=0.0, begin_ms=spec.first_ms)
    life.run()
    report, writes = life.report, life.writes
    left = [*report.left, *report.unhandled, report.trace]
    frames, checkpointed = dict(writes.frames), dict(writes.checkpointed)
    return Measured(report.end, left, life.days, writes.commits, frames, checkpointed)


def by_table(database: Path) -> dict[int, str]:
    """Return the table or index of each page."""
    with sqlite3.connect(database) as connection:
        return {
            page: f"{name}" for page, name in connection.execute("SELECT pageno, name FROM dbstat")
        }


def written(measured: Measured, tables: dict[int, str], bars: int) -> float:
    """Print the pages written a bar by table; return all bytes a bar."""
    frames: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    for page, count in measured.frames.items():
        frames[tables.get(page, "free")] += count
    for page, count in measured.checkpointed.items():
        stored[tables.get(page, "free")] += count
    print(f"{measured.commits / bars:.2f} commits a bar; pages a bar, in the log and checkpointed:")
    for name, count in frames.most_common():
        print(f"  {name:34}{count / bars:7.3f}{stored[name] / bars:7.3f}")
    log = frames.total() * (PAGE_BYTES + FRAME_HEADER) / bars
    checkpoints = stored.total() * PAGE_BYTES / bars
    print(f"{log:,.0f} bytes a bar in the log, {checkpoints:,.0f} in checkpoints")
    return log + checkpoints


def grown(days: list[dict[str, float]]) -> list[str]:
    """Return what grows from day to day after it is warm."""
    warm = days[min(WARM, len(days) - 1) :]
    first, last = warm[0], warm[-1]
    found = [
        f"{name}: {first[name]} to {last[name]}"
        for name in ("descriptors", "tasks", "timers")
        if last[name] > first[name]
    ]
    span = max(1.0, last["day"] - first["day"])
    if (last["MB"] - first["MB"]) / span > MOST_MB_A_DAY:
        found.append(f"memory: {first['MB']} to {last['MB']} MB")
    costs = sorted(each["ms a bar"] for each in warm)
    if last["ms a bar"] > SLOWER * costs[len(costs) // 2]:
        found.append(f"time: {last['ms a bar']} ms a bar, the median day {costs[len(costs) // 2]}")
    return found


def main() -> int:
    """Soak, print what was measured and return 1 where something grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--model", default="")
    wanted = parser.parse_args()
    folder, spec = Path(tempfile.mkdtemp()), calm_days(wanted.days, wanted.model)
    measured = in_child(lambda: soak(spec, folder))
    print(measured.end, *measured.left)
    found = grown(measured.days)
    total = written(measured, by_table(folder / "run.db"), wanted.days * DAY)
    if not wanted.model and total > MOST_BYTES:
        found.append(f"writes: {total:,.0f} bytes a bar")
    history = History(spec, folder)
    history._judge()  # noqa: SLF001 - the world's own
    found += [f"{law}: {sentence}" for law, sentence in history.outcome.violations]
    shutil.rmtree(folder)
    print(f"{wanted.days} days, {total:,.0f} bytes a bar;", "; ".join(found) or "nothing grows")
    return bool(found) or measured.end != "orderly"


if __name__ == "__main__":
    sys.exit(main())
