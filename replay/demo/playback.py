"""Progress, speed and files of the demo."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from tracepaper.replay.archive.columns import iso
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.gates.declared import late
from tracepaper.strategies.types.decisions import Run, Step
from tracepaper.strategies.types.market import Bar, Command, Gap, Instrument
from tracepaper.strategies.units import DAY_MS, MONEY_SCALE


class Begun(Struct, frozen=True, tag="begun"):
    """The process has opened its run, or goes on with it."""

    pid: int
    run_id: str
    strategy: str
    model_id: str  # "" without a model
    cash: float  # at the start of the account, quote currency
    warnings: tuple[str, ...]


class Bought(Struct, frozen=True):
    """One fill of the run's own account."""

    side: str  # BUY or SELL
    quantity: float
    price: float
    reason: str


class BarTold(Struct, frozen=True, tag="bar"):
    """One stored bar, and where it left every account; money in quote currency."""

    sequence: int
    instrument: str
    close_ms: int  # market time at which it closed
    close: float
    is_decided: bool  # False while the run warms up
    refused_by: str  # "" where no gate refused
    held: float  # what the run holds of the instrument, in base currency, signed
    equities: dict[str, float]  # the run's own under "", then every twin's
    fills: tuple[Bought, ...]
    twin_fills: dict[str, int]  # how many each twin had in this step


class GapTold(Struct, frozen=True, tag="gap"):
    """A hole, and what filled it."""

    instrument: str
    from_ms: int
    until_ms: int
    cause: str
    repaired_by: str  # "" where nothing ever will


class CommandTold(Struct, frozen=True, tag="command"):
    """The operator's word, as the run took it in."""

    sequence: int
    kind: str


class Paced(Struct, frozen=True, tag="paced"):
    """The process's clock follows a new pace, in market seconds a second."""

    speed: float


Told = Begun | BarTold | GapTold | CommandTold | Paced
"""One line."""

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Told)


def line_of(told: Told) -> bytes:
    """Return *told* as a line."""
    return _ENCODER.encode(told) + b"\n"


def read(line: bytes) -> Told:
    """Decode *line*; raise ``msgspec.DecodeError`` where it is cut short."""
    found: Told = _DECODER.decode(line)
    return found


def begun(run: Run, *, pid: int, cash: float) -> Begun:
    """Describe *run*, which process *pid* has opened."""
    return Begun(pid, run.run_id, run.strategy, run.model_id, cash, run.warnings)


def told_of(step: Step, instruments: Mapping[str, Instrument]) -> Iterator[Told]:
    """Yield what is told of *step*, which was stored just now."""
    match step.event:
        case Bar() as bar if step.accepted:
            yield _bar(step, bar, instruments[bar.instrument])
        case Gap() as gap:
            yield GapTold(
                gap.instrument, gap.from_ms, gap.until_ms, gap.cause.value, gap.repaired_by
            )
        case Command() as command:
            yield CommandTold(step.sequence, command.kind.value)
        case _:
            pass


def _bar(step: Step, bar: Bar, instrument: Instrument) -> BarTold:
    price, quantity = 10**instrument.price_decimals, 10**instrument.quantity_decimals
    decision, position = step.decision, step.position
    return BarTold(
        sequence=step.sequence,
        instrument=bar.instrument,
        close_ms=bar.close_time_ms,
        close=bar.close / price,
        is_decided=decision is not None,
        refused_by="" if decision is None else decision.refused_by or "",
        held=0.0 if position is None else position.quantity / quantity,
        equities={
            "": step.account.equity / MONEY_SCALE,
            **{twin.twin: twin.account.equity / MONEY_SCALE for twin in step.twins},
        },
        fills=tuple(
            Bought(fill.side.value, fill.quantity / quantity, fill.price / price, fill.reason)
            for fill in step.fills
        ),
        twin_fills={twin.twin: len(twin.fills) for twin in step.twins},
    )


OWN: Final = ""
"""The run's own account among the equities."""
FILLS_KEPT: Final = 4


@dataclass(frozen=True)
class FillSeen:
    """One of the newest fills."""

    close_ms: int
    instrument: str
    side: str
    quantity: float
    price: float
    reason: str


@dataclass(slots=True)
class Race:
    """Every account's equity over market time, the newest fills, and what was late."""

    begun: Begun | None = None
    starts: int = 0  # how often the process began
    sequence: int = -1  # of the newest stored step that was told
    start_ms: int = 0  # close of the first decided bar
    now_ms: int = 0  # close of the newest
    prices: dict[str, list[float]] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    times_ms: list[int] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)  # equity at each of the times
    fill_counts: Counter[str] = field(default_factory=Counter)  # by account
    fills: deque[FillSeen] = field(default_factory=lambda: deque(maxlen=FILLS_KEPT))
    gaps: list[GapTold] = field(default_factory=list)
    commands: list[CommandTold] = field(default_factory=list)
    closes: int = 0  # moments at which bars closed
    decisions: int = 0
    late: int = 0  # decisions that `late` refused
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def day(self) -> int:
        """The UTC day that the newest bar closes in, as a number."""
        return max(0, self.now_ms - 1) // DAY_MS

    def change(self, account: str) -> float:
        """Return the return of *account* so far, as a fraction of the cash at the start."""
        curve, cash = self.curves.get(account), self.begun.cash if self.begun else 0.0
        return curve[-1] / cash - 1.0 if curve and cash else 0.0

    def observe(self, told: Told) -> None:
        """Take in one line of the daemon's process."""
        match told:
            case Begun():
                self.begun = told
                self.starts += 1
            case BarTold():
                self.sequence = told.sequence
                if told.is_decided:
                    self._bar(told)
            case GapTold():
                self.gaps.append(told)
            case CommandTold():
                self.sequence = told.sequence
                self.commands.append(told)
            case Paced():
                pass

    def _bar(self, told: BarTold) -> None:
        self.start_ms = self.start_ms or told.close_ms
        if told.close_ms > self.now_ms:
            self.now_ms = told.close_ms
            self.closes += 1
        self.decisions += 1
        self.late += told.refused_by == late.name
        self.refused[told.refused_by] += 1
        self.prices.setdefault(told.instrument, []).append(told.close)
        self.held[told.instrument] = told.held
        if not self.times_ms or told.close_ms > self.times_ms[-1]:
            self.times_ms.append(told.close_ms)
            for name in {**self.curves, **told.equities}:
                curve = self.curves.setdefault(name, [])
                curve.append(curve[-1] if curve else 0.0)
        for name, equity in told.equities.items():
            self.curves[name][-1] = equity
        self.fill_counts[OWN] += len(told.fills)
        self.fill_counts.update(told.twin_fills)
        for fill in told.fills:
            self.fills.append(
                FillSeen(
                    told.close_ms,
                    told.instrument,
                    fill.side,
                    fill.quantity,
                    fill.price,
                    fill.reason,
                )
            )


FIRST_SPEED: Final = 4_000.0
SPEED_MIN: Final = 500.0
SPEED_MAX: Final = 40_000.0
BEHIND_S: Final = 0.15
BEHIND_INTERVALS: Final = 3.0
"""A bar stored later than both after its close says that the machine does not keep up; so does no
bar for so long."""
PROMPT_S: Final = 0.08
PROMPT_INTERVALS: Final = 1.0
"""A bar stored sooner than one of them says that it could be faster."""
FASTER: Final = 1.06
SLOWER: Final = 0.7
SLOW_MOTION: Final = 0.3
"""Share of the pace at which an incident is shown."""
WAITS_S: Final = 5.0
"""Market time nears where it waits by a pace that would take so long: a daemon may follow a slower
pace a second late, and the exchange waits for it."""
STANDSTILL: Final = 1.0
"""Market time that waits passes as the machine's does: of a quarter of an hour, next to nothing."""
LEAST_LEFT_S: Final = 1.0
PACES_KEPT: Final = 100
"""Some ten seconds of them, at the least: few bars are older when they are stored."""


class MarketPast:
    """The paces that market time had, so that a span of it can be told in this machine's time."""

    def __init__(self) -> None:
        self._paces: deque[tuple[int, float, float]] = deque(maxlen=PACES_KEPT)

    def change(self, speed: float, *, now_ms: int, now_s: float) -> None:
        """Learn that market time is *now_ms* and passes at *speed* from *now_s* on."""
        self._paces.append((now_ms, now_s, speed))

    def market_ms(self, *, now_s: float) -> int:
        """Return market time at *now_s*, at the last pace that is known; 0 before the first."""
        if not self._paces:
            return 0
        from_ms, from_s, speed = self._paces[-1]
        return from_ms + round((now_s - from_s) * 1_000 * speed)

    def seconds_since(self, time_ms: int, *, now_s: float) -> float:
        """Return the seconds on this machine since market time was *time_ms*.

        No further back than the paces that are known; 0 before the first.
        """
        until_s = now_s
        for from_ms, from_s, speed in reversed(self._paces):
            if from_ms <= time_ms:
                return max(0.0, now_s - min(until_s, from_s + (time_ms - from_ms) / 1_000 / speed))
            until_s = from_s
        return now_s - until_s


@dataclass(slots=True)
class Pacer:
    """Chooses the speed (market seconds a second) from how late bars were stored.

    The plan is to reach *until_ms* when *seconds* have passed since the first choice, slow motion
    included; a machine that stores bars late is given more time, and the plan takes longer. While
    it catches up, market time all but stands still, so that no bar comes too late to be decided.
    An incident that takes long is waited for: market time does not pass *waits_ms* before its end.
    """

    until_ms: int
    seconds: float
    interval_ms: int
    ceiling: float = FIRST_SPEED
    waits_ms: int | None = None  # where market time waits for the incident that is shown
    expects_silence: bool = False  # it is no sign of a slow machine
    _started_s: float | None = None
    _heard_s: float = 0.0
    slowest_s: float = 0.0  # the longest lag of all
    _worst_s: float = 0.0  # the longest since the last choice
    _is_behind: bool = False

    def observe(self, lag_s: float, *, now_s: float) -> None:
        """Take in at *now_s* that a bar was stored *lag_s* seconds after its close."""
        self._heard_s = now_s
        self._worst_s = max(self._worst_s, lag_s)
        self.slowest_s = max(self.slowest_s, lag_s)

    def choose(self, speed: float, *, now_ms: int, now_s: float) -> float:
        """Return the speed from here on, after *speed*; market time is *now_ms*."""
        planned = self._planned(speed, now_ms=now_ms, now_s=now_s)
        if self.waits_ms is None:
            return planned
        return max(STANDSTILL, min(planned, (self.waits_ms - now_ms) / 1_000 / WAITS_S))

    def _planned(self, speed: float, *, now_ms: int, now_s: float) -> float:
        if self._started_s is None:
            self._started_s = now_s
        interval_s = self.interval_ms / 1_000 / speed
        limit_s = max(BEHIND_S, BEHIND_INTERVALS * interval_s)
        is_silent = not self.expects_silence and now_s - self._heard_s > limit_s + interval_s
        was_behind, worst_s = self._is_behind, self._worst_s
        self._worst_s = 0.0
        self._is_behind = is_silent or worst_s > limit_s
        if self._is_behind:
            if not was_behind:  # once for each time that it falls behind
                self.ceiling = max(SPEED_MIN, self.ceiling * SLOWER)
            return SPEED_MIN
        if worst_s < max(PROMPT_S, PROMPT_INTERVALS * interval_s):
            self.ceiling = min(SPEED_MAX, self.ceiling * FASTER)
        left_s = max(LEAST_LEFT_S, self._started_s + self.seconds - now_s)
        wanted = (self.until_ms - now_ms) / 1_000 / left_s
        shown = 1.0 if self.waits_ms is None else SLOW_MOTION
        return max(SPEED_MIN, min(wanted, self.ceiling) * shown)


NAMES_MAX: Final = 100
"""Shows that may begin in one folder within one second."""


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

    def claim(self) -> None:
        """Make the configuration's file; raise ``DataInvalid`` where one of the files exists."""
        for path in (self.database, self.config, self.changed):
            if path.exists():
                raise DataInvalid(f"{path} exists already; give another --db, or remove it.")
        try:
            self.config.touch(exist_ok=False)
        except OSError as error:
            raise DataInvalid(
                f"{self.config} cannot be written ({error.strerror}); go to a folder of yours, or "
                "give --db."
            ) from None


def claimed(database: Path | None, *, wall_ms: int) -> ShowFiles:
    """Return the files of a new show: *database* and what lies beside it, or new names."""
    if database is not None:
        files = ShowFiles(database)
        files.claim()
        return files
    stamp = iso(wall_ms)[:19].replace(":", "").replace("-", "").replace("T", "-")
    for number in range(1, NAMES_MAX):
        files = ShowFiles(Path(f"demo-{stamp}{'' if number == 1 else f'-{number}'}.db"))
        if not files.config.exists():
            files.claim()
            return files
    raise DataInvalid(f"{NAMES_MAX} demos began in this second; wait a moment.")
