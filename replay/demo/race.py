"""The race that a demo shows, read from the record as it grows; the demo's pace and files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import RunRow, Step
from tracepaper.strategies.types.market import Bar, Gap
from tracepaper.strategies.units import MONEY_SCALE, iso


@dataclass(slots=True)
class Race:
    """The state of a demo's run, from the steps stored so far."""

    run: RunRow | None = None
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
        """Return whether each instrument has a decided bar that closed at *time_ms* or later."""
        return min(self.closes_ms.values()) >= time_ms

    def poll(self, database: Path) -> None:
        """Read the steps that the run in *database* stored since the last poll."""
        if self._reader is None:
            try:
                self._reader = Reader.open(database)
            except DataInvalid:
                return  # the daemon has not created it yet
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
        """Update the state with the next *step*."""
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
"""Market seconds per second while a daemon starts or catches up."""
SPEED_MAX: Final = 30_000.0
SHARE_PLAYED: Final = 0.9
"""Share of a demo's seconds in which market time passes; in the rest the daemon starts."""
BEHIND_S: Final = 0.3
BEHIND_INTERVALS: Final = 3.0
"""The machine is behind if a bar is stored later after its close than both of these."""
FASTER: Final = 1.02
SLOWER: Final = 0.7


def planned_speed(span_ms: int, seconds: float) -> float:
    """Return the speed at which *span_ms* of market time pass in *seconds*."""
    return min(SPEED_MAX, max(SPEED_MIN, span_ms / 1_000 / (seconds * SHARE_PLAYED)))


class MarketPace:
    """Market time on the exchange, and the highest speed that the machine keeps up with.

    It never exceeds the planned speed, at which the daemon's clock runs between two frames.
    """

    def __init__(self, planned: float, interval_ms: int) -> None:
        self.planned: Final = planned
        self.speed = SPEED_MIN
        self._interval_ms = interval_ms
        self._ceiling = planned
        self._is_behind = False
        self._mark: tuple[float, int] | None = None  # seconds, market time

    def set(self, speed: float, *, now_ms: int, now_s: float) -> None:
        """Record that market time is *now_ms* at *now_s* and passes at *speed* from then on."""
        self.speed = speed
        self._mark = now_s, now_ms

    def market_ms(self, now_s: float) -> int:
        """Return market time at *now_s*; 0 before any speed was set."""
        if self._mark is None:
            return 0
        from_s, from_ms = self._mark
        return from_ms + round((now_s - from_s) * 1_000 * self.speed)

    def choose(self, stored_ms: int, *, now_s: float) -> float:
        """Return the next speed, given the close time *stored_ms* of the newest stored bar."""
        was_behind, limit_ms = self._is_behind, float(self._interval_ms)
        if not was_behind:
            limit_ms = max(BEHIND_INTERVALS * limit_ms, BEHIND_S * 1_000 * self.speed)
        delay_ms = self.market_ms(now_s) - stored_ms - self._interval_ms
        self._is_behind = delay_ms > limit_ms
        if self._is_behind:
            if not was_behind:  # lower the ceiling once per time that the machine falls behind
                self._ceiling = max(SPEED_MIN, self._ceiling * SLOWER)
            return SPEED_MIN
        self._ceiling = min(self.planned, self._ceiling * FASTER)
        return self._ceiling


# ---------------------------------------------------------------- files


@dataclass(frozen=True)
class ShowFiles:
    """The demo's files: the record, its configuration, the daemon's log."""

    database: Path

    @property
    def config(self) -> Path:
        """The configuration, with which the run can be repeated."""
        return self.database.with_suffix(".toml")

    @property
    def log(self) -> Path:
        """The log lines of the daemon's processes."""
        return self.database.with_suffix(".log")


def require_new(path: Path) -> None:
    """Raise ``DataInvalid`` if *path* exists: each demo creates a new database."""
    if path.exists():
        raise DataInvalid(f"{path} exists already; give another --db, or remove it.")


def stamp(wall_ms: int) -> str:
    """Return a UTC time for a file name: ``20250501-120000``."""
    return iso(wall_ms)[:19].replace(":", "").replace("-", "").replace("T", "-")


def create_files(database: Path | None, *, wall_ms: int) -> ShowFiles:
    """Create the configuration file of a new demo and return the paths of its files.

    *database* is by default named after *wall_ms*. Raises ``DataInvalid`` if a file exists.
    """
    files = ShowFiles(database or Path(f"demo-{stamp(wall_ms)}.db"))
    for path in (files.database, files.config):
        require_new(path)
    try:
        files.config.touch(exist_ok=False)
    except OSError as error:
        raise DataInvalid(
            f"{files.config} cannot be written ({error.strerror}); go to a folder of yours, or "
            "give --db."
        ) from None
    return files
