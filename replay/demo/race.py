"""The race that a demo shows, read from the record as it grows; its pace and its files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import Run, Step
from tracepaper.strategies.types.market import Bar, Gap
from tracepaper.strategies.units import MONEY_SCALE, iso


@dataclass(slots=True)
class Race:
    """The run of a demo as far as its record goes."""

    run: Run | None = None
    sequence: int = -1  # of the newest step
    start_ms: int = 0  # close of the first decided bar
    now_ms: int = 0  # close of the newest
    closes_ms: dict[str, int] = field(default_factory=dict)  # of the newest of each instrument
    equity: float = 0.0  # quote currency
    fills: int = 0
    gaps: list[Gap] = field(default_factory=list)
    decisions: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # decisions by the gate that refused
    _reader: Reader | None = None

    def has_passed(self, time_ms: int) -> bool:
        """Return whether a bar of each instrument is decided that closed at *time_ms* or later."""
        return min(self.closes_ms.values()) >= time_ms

    def poll(self, database: Path) -> None:
        """Take in the steps of the run in *database* that were stored since the last look."""
        if self._reader is None:
            try:
                self._reader = Reader.open(database)
            except DataInvalid:
                return  # the daemon is about to make it
        if self.run is None:
            if not (run_ids := self._reader.run_ids()):
                return
            self.run = self._reader.run(run_ids[-1])
        for step in self._reader.steps(self.run.run_id, after=self.sequence):
            self.observe(step)

    def close(self) -> None:
        """Close the database."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def observe(self, step: Step) -> None:
        """Take in the next *step*."""
        self.sequence = step.sequence
        match step.event:
            case Bar() as bar if step.accepted and step.decision is not None:
                self._observe_bar(step, bar, step.decision.refused_by or "")
            case Gap() as gap:
                self.gaps.append(gap)
            case _:
                pass

    def _observe_bar(self, step: Step, bar: Bar, refused_by: str) -> None:
        close_ms = bar.close_time_ms
        self.start_ms = self.start_ms or close_ms
        self.now_ms = max(self.now_ms, close_ms)
        self.closes_ms[bar.instrument] = close_ms
        self.decisions += 1
        self.refused[refused_by] += 1
        self.equity = step.account.equity / MONEY_SCALE
        self.fills += len(step.fills)


# ---------------------------------------------------------------- pace

SPEED_MIN: Final = 500.0
"""Market seconds a second while a daemon starts, or catches up."""
SPEED_MAX: Final = 30_000.0
SHARE_PLAYED: Final = 0.9
"""Of the seconds of a demo: for the rest market time stands still, while the daemon is started."""
BEHIND_S: Final = 0.3
BEHIND_INTERVALS: Final = 3.0
"""A machine falls behind where the next bar is stored later than both after its close."""
FASTER: Final = 1.02
SLOWER: Final = 0.7


def planned_speed(span_ms: int, seconds: float) -> float:
    """Return the speed at which *span_ms* of market time pass in *seconds*."""
    return min(SPEED_MAX, max(SPEED_MIN, span_ms / 1_000 / (seconds * SHARE_PLAYED)))


class MarketPace:
    """Market time on the exchange, and the speed that the machine keeps up with.

    No speed is above the planned one: the daemon's clock runs at that between two frames.
    """

    def __init__(self, planned: float, interval_ms: int) -> None:
        self.planned: Final = planned
        self.speed = SPEED_MIN
        self._interval_ms = interval_ms
        self._ceiling = planned
        self._is_behind = False
        self._mark: tuple[float, int] | None = None  # seconds, market time

    def set(self, speed: float, *, now_ms: int, now_s: float) -> None:
        """Remember that market time is *now_ms* and passes at *speed* from *now_s* on."""
        self.speed = speed
        self._mark = now_s, now_ms

    def market_ms(self, now_s: float) -> int:
        """Return market time at *now_s*; 0 before any speed was set."""
        if self._mark is None:
            return 0
        from_s, from_ms = self._mark
        return from_ms + round((now_s - from_s) * 1_000 * self.speed)

    def choose(self, stored_ms: int, *, now_s: float) -> float:
        """Return the speed from here on, where the newest stored bar closed at *stored_ms*."""
        was_behind, limit_ms = self._is_behind, float(self._interval_ms)
        if not was_behind:
            limit_ms = max(BEHIND_INTERVALS * limit_ms, BEHIND_S * 1_000 * self.speed)
        waits_ms = self.market_ms(now_s) - stored_ms - self._interval_ms
        self._is_behind = waits_ms > limit_ms
        if self._is_behind:
            if not was_behind:  # once for each time that it falls behind
                self._ceiling = max(SPEED_MIN, self._ceiling * SLOWER)
            return SPEED_MIN
        self._ceiling = min(self.planned, self._ceiling * FASTER)
        return self._ceiling


# ---------------------------------------------------------------- files


@dataclass(frozen=True)
class ShowFiles:
    """Where the show writes: the record, its configuration, the daemon's log, a changed copy."""

    database: Path

    @property
    def config(self) -> Path:
        """The configuration that the run can be repeated with."""
        return self.database.with_suffix(".toml")

    @property
    def log(self) -> Path:
        """The log lines of the daemon's processes."""
        return self.database.with_suffix(".log")

    @property
    def changed(self) -> Path:
        """The copy in which one value is changed; it is removed once the check has found it."""
        return self.database.with_name(f"{self.database.stem}-changed.db")

    def drop_changed(self) -> None:
        """Remove the changed copy, and what SQLite leaves beside it."""
        for end in ("", "-wal", "-shm"):
            self.changed.with_name(self.changed.name + end).unlink(missing_ok=True)


def require_new(path: Path) -> None:
    """Raise ``DataInvalid`` where *path* exists: each demo begins a new database."""
    if path.exists():
        raise DataInvalid(f"{path} exists already; give another --db, or remove it.")


def stamp(wall_ms: int) -> str:
    """Return a time as the names of files bear it: ``20250501-120000``."""
    return iso(wall_ms)[:19].replace(":", "").replace("-", "").replace("T", "-")


def claimed(database: Path | None, *, wall_ms: int) -> ShowFiles:
    """Return the files of a new show: *database*, by default of this second, and those beside it.

    Raises ``DataInvalid`` where one exists.
    """
    files = ShowFiles(database or Path(f"demo-{stamp(wall_ms)}.db"))
    for path in (files.database, files.config, files.changed):
        require_new(path)
    try:
        files.config.touch(exist_ok=False)
    except OSError as error:
        raise DataInvalid(
            f"{files.config} cannot be written ({error.strerror}); go to a folder of yours, or "
            "give --db."
        ) from None
    return files
