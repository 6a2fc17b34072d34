"""Progress, speed and files of the demo."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.gates.declared import late
from tracepaper.strategies.types.decisions import Run, Step
from tracepaper.strategies.types.market import Bar, Command, Gap, Instrument
from tracepaper.strategies.units import DAY_MS, MONEY_SCALE, iso


class StartMessage(Struct, frozen=True, tag="begun"):
    """The process has opened a run, or continues one."""

    pid: int
    run_id: str
    strategy: str
    model_id: str  # "" without a model
    cash: float  # at the start of the account, quote currency
    warnings: tuple[str, ...]


class BarFill(Struct, frozen=True):
    """One fill of the run's own account."""

    side: str  # BUY or SELL
    quantity: float
    price: float
    reason: str


class BarMessage(Struct, frozen=True, tag="bar"):
    """One stored bar, and every account after it; money in quote currency."""

    sequence: int
    instrument: str
    close_ms: int  # market time at which it closed
    close: float
    is_decided: bool  # False while the run warms up
    refused_by: str  # "" where no gate refused
    held: float  # the run's position in the instrument, in base currency, signed
    equities: dict[str, float]  # the run's own under "", then every twin's
    fills: tuple[BarFill, ...]
    twin_fills: dict[str, int]  # how many each twin had in this step


class GapMessage(Struct, frozen=True, tag="gap"):
    """A gap in the bars, and how it was repaired."""

    instrument: str
    from_ms: int
    until_ms: int
    cause: str
    repaired_by: str  # "" where it never will be


class CommandMessage(Struct, frozen=True, tag="command"):
    """An operator's command, as the run stored it."""

    sequence: int
    kind: str


class SpeedMessage(Struct, frozen=True, tag="paced"):
    """The process's clock follows a new speed, in market seconds a second."""

    speed: float


Message = StartMessage | BarMessage | GapMessage | CommandMessage | SpeedMessage
"""One line of the daemon's process to the demo."""

_ENCODER = msgspec.json.Encoder()
_DECODER: Final[msgspec.json.Decoder[Message]] = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return *message* as a line."""
    return _ENCODER.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    """Decode *line*; raise ``msgspec.DecodeError`` where it is cut short."""
    return _DECODER.decode(line)


def start_message(run: Run, *, pid: int, cash: float) -> StartMessage:
    """Describe *run*, which process *pid* has opened."""
    return StartMessage(pid, run.run_id, run.strategy, run.model_id, cash, run.warnings)


def messages_of(step: Step, instruments: Mapping[str, Instrument]) -> Iterator[Message]:
    """Yield the messages about *step*, which was stored just now."""
    match step.event:
        case Bar() as bar if step.accepted:
            yield _bar_message(step, bar, instruments[bar.instrument])
        case Gap() as gap:
            yield GapMessage(
                gap.instrument, gap.from_ms, gap.until_ms, gap.cause.value, gap.repaired_by
            )
        case Command() as command:
            yield CommandMessage(step.sequence, command.kind.value)
        case _:
            pass


def _bar_message(step: Step, bar: Bar, instrument: Instrument) -> BarMessage:
    price, quantity = 10**instrument.price_decimals, 10**instrument.quantity_decimals
    decision, position = step.decision, step.position
    return BarMessage(
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
            BarFill(fill.side.value, fill.quantity / quantity, fill.price / price, fill.reason)
            for fill in step.fills
        ),
        twin_fills={twin.twin: len(twin.fills) for twin in step.twins},
    )


OWN: Final = ""
"""The run's own account among the equities."""
FILLS_KEPT: Final = 4


@dataclass(frozen=True)
class ShownFill:
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

    begun: StartMessage | None = None
    starts: int = 0  # how often the process began
    sequence: int = -1  # of the newest stored step that a message named
    start_ms: int = 0  # close of the first decided bar
    now_ms: int = 0  # close of the newest
    prices: dict[str, list[float]] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    times_ms: list[int] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)  # equity at each of the times
    fill_counts: Counter[str] = field(default_factory=Counter)  # by account
    fills: deque[ShownFill] = field(default_factory=lambda: deque(maxlen=FILLS_KEPT))
    gaps: list[GapMessage] = field(default_factory=list)
    commands: list[CommandMessage] = field(default_factory=list)
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

    def observe(self, message: Message) -> None:
        """Take in one message of the daemon's process."""
        match message:
            case StartMessage():
                self.begun = message
                self.starts += 1
            case BarMessage():
                self.sequence = message.sequence
                if message.is_decided:
                    self._observe_bar(message)
            case GapMessage():
                self.gaps.append(message)
            case CommandMessage():
                self.sequence = message.sequence
                self.commands.append(message)
            case SpeedMessage():
                pass

    def _observe_bar(self, message: BarMessage) -> None:
        self.start_ms = self.start_ms or message.close_ms
        if message.close_ms > self.now_ms:
            self.now_ms = message.close_ms
            self.closes += 1
        self.decisions += 1
        self.late += message.refused_by == late.name
        self.refused[message.refused_by] += 1
        self.prices.setdefault(message.instrument, []).append(message.close)
        self.held[message.instrument] = message.held
        if not self.times_ms or message.close_ms > self.times_ms[-1]:
            self.times_ms.append(message.close_ms)
            for name in {**self.curves, **message.equities}:
                curve = self.curves.setdefault(name, [])
                curve.append(curve[-1] if curve else 0.0)
        for name, equity in message.equities.items():
            self.curves[name][-1] = equity
        self.fill_counts[OWN] += len(message.fills)
        self.fill_counts.update(message.twin_fills)
        for fill in message.fills:
            self.fills.append(
                ShownFill(
                    message.close_ms,
                    message.instrument,
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
"""A machine falls behind where a bar is stored later than both after its close, or none comes for
that long."""
PROMPT_S: Final = 0.08
PROMPT_INTERVALS: Final = 1.0
"""A bar that is stored sooner than one of them after its close lets the demo run faster."""
FASTER: Final = 1.06
SLOWER: Final = 0.7
SLOW_MOTION: Final = 0.3
"""Share of the speed at which an incident is shown."""
WAITS_S: Final = 5.0
"""Market time approaches ``waits_ms`` at a speed that would take so long: a daemon may follow a
slower speed a second late, and the exchange waits for it."""
STANDSTILL: Final = 1.0
"""The speed while market time waits, that of the machine's clock: it all but stands still."""
LEAST_LEFT_S: Final = 1.0
PACES_KEPT: Final = 100
"""At least ten seconds of them: few bars are older when they are stored."""


class MarketPast:
    """The past speeds of market time, which convert a span of it to this machine's time."""

    def __init__(self) -> None:
        self._paces: deque[tuple[int, float, float]] = deque(maxlen=PACES_KEPT)

    def change(self, speed: float, *, now_ms: int, now_s: float) -> None:
        """Remember that market time is *now_ms* and passes at *speed* from *now_s* on."""
        self._paces.append((now_ms, now_s, speed))

    def market_ms(self, *, now_s: float) -> int:
        """Return market time at *now_s*, at the last known speed; 0 before the first."""
        if not self._paces:
            return 0
        from_ms, from_s, speed = self._paces[-1]
        return from_ms + round((now_s - from_s) * 1_000 * speed)

    def seconds_since(self, time_ms: int, *, now_s: float) -> float:
        """Return the seconds on this machine since market time was *time_ms*.

        It goes no further back than the known speeds; 0 before the first.
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
    included; a machine that stores bars late takes longer. While it catches up, market time runs at
    ``SPEED_MIN``, so that no bar comes too late to be decided. During a long incident market time
    does not pass *waits_ms*.
    """

    until_ms: int
    seconds: float
    interval_ms: int
    ceiling: float = FIRST_SPEED
    waits_ms: int | None = None  # where market time waits for the incident that is shown
    expects_silence: bool = False  # then silence is no sign of a slow machine
    _started_s: float | None = None
    _last_bar_s: float = 0.0
    slowest_s: float = 0.0  # the longest lag of all
    _worst_s: float = 0.0  # the longest since the last choice
    _is_behind: bool = False

    def observe(self, lag_s: float, *, now_s: float) -> None:
        """Take in at *now_s* that a bar was stored *lag_s* seconds after its close."""
        self._last_bar_s = now_s
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
        is_silent = not self.expects_silence and now_s - self._last_bar_s > limit_s + interval_s
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


def stamp(wall_ms: int) -> str:
    """Return a time as the names of files bear it: ``20250501-120000``."""
    return iso(wall_ms)[:19].replace(":", "").replace("-", "").replace("T", "-")


def claimed(database: Path | None, *, wall_ms: int) -> ShowFiles:
    """Return the files of a new show: *database* and what lies beside it, or new names."""
    if database is not None:
        files = ShowFiles(database)
        files.claim()
        return files
    for number in range(1, NAMES_MAX):
        files = ShowFiles(Path(f"demo-{stamp(wall_ms)}{'' if number == 1 else f'-{number}'}.db"))
        if not files.config.exists():
            files.claim()
            return files
    raise DataInvalid(f"{NAMES_MAX} demos began in this second; wait a moment.")
