"""One run of a sweep: a point of the space over a span of the data, and what it came to.

Its log keeps what acted, in a temporary file that is then removed; what figures need of every
other bar, the random twins and the drawdown above all, is taken as the run goes (docs/python.md,
Y14).
"""

from __future__ import annotations

import hashlib
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Sections
from tracepaper.daemon.session.user_class import known_class
from tracepaper.replay.archive import Candles, FundingRates
from tracepaper.replay.archive.depth import StoredDepth
from tracepaper.replay.backtest.request import Request, Watch, carry_out
from tracepaper.replay.python import strategy_keys
from tracepaper.replay.report import metrics
from tracepaper.replay.report.headline import Headline, headline
from tracepaper.replay.report.record import read_record
from tracepaper.replay.report.trades import closed_trades
from tracepaper.replay.sweep.every_bar import EveryBar
from tracepaper.replay.sweep.space import Point
from tracepaper.storage.reader import Reader
from tracepaper.storage.sweeps import CellKey
from tracepaper.strategies.errors import TracepaperError

WHOLE: Final = "whole"
TRAIN: Final = "train"
TEST: Final = "test"
CALLER: Final = "the point"


@dataclass(frozen=True)
class Work:
    """What all runs of a sweep share; handed to each worker once."""

    strategy: str | None  # None for the configured one
    params: Mapping[str, Any]
    config: Path | Sections | None
    candles: tuple[Candles, ...]
    funding: tuple[FundingRates, ...] = ()
    frames: tuple[Candles, ...] = ()
    depth: tuple[StoredDepth, ...] = ()
    made_of: type | None = None  # a class that only this process knows
    kept_in: Path | None = None  # where records wait for the objective that reads them


class Cell(NamedTuple):
    """One run to be made: the trial's number and point, and the span in UTC milliseconds."""

    span: int
    part: str
    number: int
    point: Point
    from_ms: int | None
    until_ms: int | None

    @property
    def key(self) -> CellKey:
        """What names it in the sweep."""
        return self.span, self.part, self.number


@dataclass(frozen=True)
class CellResult:
    """What one run came to; ``error`` is one sentence where it came to nothing."""

    span: int
    part: str
    number: int
    point: Point
    value: float | None = None  # of the objective
    error: str = ""
    figures: Headline = field(default_factory=dict)
    daily: tuple[float, ...] = ()  # simple returns of UTC days
    config_sha256: str = ""
    strategy_sha256: str = ""
    model_sha256: str = ""
    seconds: float = 0.0
    run_id: str = ""  # of its record, while that is kept

    @property
    def key(self) -> CellKey:
        """What names it in the sweep."""
        return self.span, self.part, self.number

    @property
    def trial_sha256(self) -> str:
        """The id of what was tried, wherever and however often it is tried."""
        tried = f"{self.config_sha256}/{self.strategy_sha256}/{self.model_sha256}"
        return hashlib.sha256(tried.encode()).hexdigest()


class TookTooLong(TracepaperError):
    """A run was stopped at its limit."""


def too_long(limit_s: float) -> str:
    """Return the sentence of a run that was stopped."""
    return f"It took longer than {limit_s:g} s and was stopped; give a higher limit, or mend it."


def overrides_of(work: Work, point: Point) -> dict[str, dict[str, Any]]:
    """Return the keys of the configuration that *point* sets.

    ``section.key`` is one of the configuration, a bare name one of the strategy's params.
    """
    params = dict(work.params)
    own = ":" in (work.strategy or "")
    sections: dict[str, dict[str, Any]] = {}
    for name, value in point.items():
        section, dot, key = name.partition(".")
        if not dot and own:
            params[name] = value
            continue
        # A key of money is written as text; the shortest is the number that was meant.
        written = str(value) if isinstance(value, float) else value
        if dot:
            sections.setdefault(section, {})[key] = written
        else:
            params[name] = written
    if work.strategy is not None:
        sections["strategy"] = {
            **sections.get("strategy", {}),
            **strategy_keys(work.strategy, params, work.config),
        }
    elif params:
        sections["strategy"] = {**sections.get("strategy", {}), **params}
    return sections


def make(work: Work, cell: Cell) -> CellResult:
    """Make one run; what goes wrong in it is its outcome, in one sentence."""
    began_s = SystemClock().network_s()
    with tempfile.TemporaryDirectory(prefix="tracepaper-sweep-") as folder:
        kept = work.kept_in is not None
        database = Path(folder) / "run.db" if work.kept_in is None else kept_database(work, cell)
        request = Request(
            data=work.candles,
            config=work.config,
            funding=work.funding,
            frames=work.frames,
            depth=work.depth,
            caller=CALLER,
            from_text=None if cell.from_ms is None else str(cell.from_ms),
            to_text=None if cell.until_ms is None else str(cell.until_ms),
            database=database,
            # An objective that is given the run is given all of it.
            log="full" if kept else "acted",
        )
        try:
            found = _made(work, cell, request)
        except TracepaperError as error:
            return CellResult(*cell[:4], error=str(error))
    seconds = round(SystemClock().network_s() - began_s, 3)
    return (
        CellResult(*cell[:4], **found, seconds=seconds)
        if kept
        else CellResult(*cell[:4], **{**found, "run_id": ""}, seconds=seconds)
    )


def _made(work: Work, cell: Cell, request: Request) -> dict[str, Any]:
    from dataclasses import replace

    with known_class(work.made_of):
        wanted = replace(request, overrides=overrides_of(work, cell.point))
        every = EveryBar()
        made = carry_out(wanted, Watch(observe=every.observe))
    with Reader.open(made.database) as reader:
        record = read_record(reader, made.database, made.run_id)
        row = reader.run(made.run_id)
    record = record if record.every_bar else every.whole(record)
    equity = record.account.equity[: 1 if record.holds_over_split(record.account) else None]
    return {
        "figures": headline(record, closed_trades(record, record.account)),
        "daily": tuple(metrics.daily_returns(record.times_ms[: equity.size - 1], equity).tolist()),
        "config_sha256": row.config_sha256,
        "strategy_sha256": row.strategy_sha256,
        "model_sha256": row.model_sha256,
        "run_id": made.run_id,
    }


def kept_database(work: Work, cell: Cell | CellResult) -> Path:
    """Return where the record of one run waits for the objective."""
    assert work.kept_in is not None
    return work.kept_in / f"{cell.span}-{cell.part}-{cell.number}.db"


@contextmanager
def limited(limit_s: float | None) -> Iterator[None]:
    """Raise ``TookTooLong`` after *limit_s* of Python code; only in the main thread of a process.

    Elsewhere a thread cannot be stopped, and nothing is limited.
    """
    if limit_s is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: object) -> None:
        raise TookTooLong(too_long(limit_s))

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
