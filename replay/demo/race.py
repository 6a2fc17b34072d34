"""The race that a demo shows: its files, and its state as the record grows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import RunRow, Step
from tracepaper.strategies.types.market import Bar, Gap
from tracepaper.strategies.units import MONEY_SCALE, iso


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

    def require_new(self) -> None:
        """Raise ``DataInvalid`` if there is a record or a configuration."""
        for path in (self.database, self.config):
            if path.exists():
                raise DataInvalid(f"{path} exists already; give another --db, or remove it.")

    def create(self, config: str) -> None:
        """Write the text of the configuration; raise ``DataInvalid`` if a file exists."""
        self.require_new()
        try:
            self.config.write_text(config, encoding="utf-8")
        except OSError as error:
            raise DataInvalid(
                f"{self.config} cannot be written ({error.strerror}); go to a folder of yours, or "
                "give --db."
            ) from None


def named_by_time(wall_ms: int) -> Path:
    """Return the name of a new demo's database: ``demo-20250501-120000.db``."""
    digits = iso(wall_ms)[:19].replace(":", "").replace("-", "").replace("T", "-")
    return Path(f"demo-{digits}.db")


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
                self.now_ms = max(self.now_ms, bar.close_time_ms)
                self.start_ms = self.start_ms or bar.close_time_ms
                self.closes_ms[bar.instrument] = bar.close_time_ms
                self.decisions += 1
                self.refused[step.decision.refused_by or ""] += 1
                self.equity = step.account.equity / MONEY_SCALE
                self.fills += len(step.fills)
            case Gap() as gap:
                self.gaps.append(gap)
            case _:
                pass
