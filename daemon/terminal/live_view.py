"""The display of a run in progress: a live view in a separate process, or log lines.

The rules are docs/operations.md, O29 and O30.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import termios
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Final, TextIO

from tracepaper.daemon.clock import Clock, SystemClock
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.child import import_path
from tracepaper.daemon.terminal.screen import LOG_KEPT, STOP, RunView, Status
from tracepaper.strategies.gates.declared import late
from tracepaper.strategies.types.decisions import RunRow, Step
from tracepaper.strategies.types.market import Bar, Command, Gap
from tracepaper.strategies.units import MONEY_DECIMALS, MONEY_SCALE, count_of, unscaled

UPDATE_EVERY_S: Final = 0.2
ENDS_WITHIN_S: Final = 2.0
"""Seconds after which a view that has not ended is killed."""
HELD_LINES: Final = 1_000
"""Newest lines written while the view has the terminal; they are printed after it ends."""
LEAVE: Final = b"\x1b[?2004l\x1b[?7h\x1b[?2048l\x1b[?1004l\x1b[?1049l\x1b[?25h\x1b[0m"
"""Restores the terminal after a killed view: reports off, normal screen, cursor on."""
DUMB: Final = frozenset({"", "dumb", "unknown"})
LOG_EVERY_S: Final = 1.0
PACE_WINDOW_S: Final = 10.0
MARKS_MAX: Final = 100
"""Most marks kept to compute the pace."""

log = Logger("run")


class Pace:
    """Bars per wall second over the last ten seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque()
        self.bars = 0

    def count(self) -> None:
        """Count one bar."""
        self.bars += 1
        now_s = self._clock.network_s()
        if not self._marks or now_s - self._marks[-1][0] >= PACE_WINDOW_S / MARKS_MAX:
            self._marks.append((now_s, self.bars))
        while now_s - self._marks[0][0] > PACE_WINDOW_S:
            self._marks.popleft()

    def per_second(self) -> float:
        """Return the pace; 0 before a second mark."""
        if not self._marks:
            return 0.0
        then_s, bars = self._marks[0]
        elapsed_s = self._clock.network_s() - then_s
        return (self.bars - bars) / elapsed_s if elapsed_s > 0 else 0.0


class Screen:
    """The live view: a separate process that receives the changes five times a second.

    A thread sends them, so that no step waits. A slow view receives fewer updates; one that hangs
    or dies is replaced by log lines.
    """

    def __init__(self, clock: Clock, terminal: str, database: Path) -> None:
        self._clock = clock
        self._database = database
        self._view: RunView | None = None  # None until a run is open
        self._log: tuple[str, ...] = ()  # the newest last
        self._pace = Pace(clock)
        self._lock = threading.Lock()
        self._is_changed = True
        self._lines: Lines | None = None  # None while the view lives
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send_updates, name="view", daemon=True)
        self._terminal = os.open(terminal, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        self._attributes = termios.tcgetattr(self._terminal)
        self._streams = _HeldStreams(self._hold)

    def begin(self) -> None:
        """Give the terminal to the view."""
        attributes = termios.tcgetattr(self._terminal)
        # Ctrl-C still reaches this process; Ctrl-Z is disabled, as it would stop the daemon.
        attributes[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(self._terminal, termios.TCSANOW, attributes)
        self._pipe, theirs = Pipe()
        env = {name: text for name, text in os.environ.items() if name not in {"LINES", "COLUMNS"}}
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                [
                    *(sys.executable, "-P", "-m", "tracepaper.daemon.terminal.app"),
                    *(str(theirs.fileno()), str(self._database)),
                ],
                stdin=self._terminal,
                stdout=self._terminal,
                stderr=self._terminal,
                pass_fds=[theirs.fileno()],
                env={
                    **env,
                    "PYTHONPATH": import_path(),
                    "TEXTUAL_ALLOW_SIGNALS": "1",
                    "TEXTUAL_DISABLE_KITTY_KEY": "1",  # else Ctrl-C is a key and no signal
                },
            )
        self._streams.hold()
        self._thread.start()

    def end(self) -> None:
        """Take the terminal back, even from a view that hangs."""
        self._ended.set()
        self._thread.join(2 * ENDS_WITHIN_S)
        if self._thread.is_alive():  # blocked by a view that does not read
            self.process.kill()
            self._thread.join(ENDS_WITHIN_S)

    def opened(self, view: RunView) -> None:
        """Show the run of *view*."""
        with self._lock:
            self._view = view
            self._is_changed = True

    def show(self, step: Step) -> None:
        """Show *step*, which the run's view has observed."""
        with self._lock:
            lines = self._lines
            assert self._view is not None
            if self._view.decisions == 1 and step.decision is not None:
                self._pace = Pace(self._clock)  # forget the pace of warm-up bars
            if isinstance(step.event, Bar) and step.accepted:
                self._pace.count()
            self._is_changed = True
        if lines is not None:
            lines.show(step)

    def _hold(self, line: str) -> None:
        """Show a line that was written to the terminal."""
        with self._lock:
            self._log = (*self._log, line)[-LOG_KEPT:]
            self._is_changed = True

    def _changes(self) -> list[Status]:
        with self._lock:
            if not self._is_changed:
                return []
            self._is_changed = False
            progress: Status = {"bars_per_s": self._pace.per_second(), "log": self._log}
            return [progress, *([] if self._view is None else self._view.changes())]

    def _send_updates(self) -> None:
        try:
            while not self._ended.is_set():
                if self._pipe.poll(UPDATE_EVERY_S) and self._pipe.recv() == STOP:
                    os.kill(os.getpid(), signal.SIGINT)
                for change in self._changes():
                    self._pipe.send(change)
        except (EOFError, OSError):
            pass  # the view is gone
        finally:
            self._take_back()

    def _take_back(self) -> None:
        """Wait for the view's end, restore the terminal, and continue with log lines."""
        self._pipe.close()
        try:
            code = self.process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        with suppress(OSError, termios.error):  # the terminal itself may be gone
            if code != 0:
                os.write(self._terminal, LEAVE)
            termios.tcsetattr(self._terminal, termios.TCSANOW, self._attributes)
        os.close(self._terminal)
        with self._lock:
            self._streams.release()
            self._lines = Lines(self._clock, self._view)
        if code != 0:
            log.warning("the live view is gone; log lines follow", exit_code=code)


class _HeldStreams:
    """Holds lines written to stdout and stderr while the view has their terminal."""

    def __init__(self, hold: Callable[[str], None]) -> None:
        self._hold = hold
        self._kept: deque[tuple[str, str]] = deque(maxlen=HELD_LINES)
        self._real: dict[str, TextIO] = {}

    def hold(self) -> None:
        """Hold lines from now on."""
        for name in ("stdout", "stderr"):
            stream: TextIO = getattr(sys, name)
            if stream.isatty():
                stream.flush()
                self._real[name] = stream
                setattr(sys, name, _HeldStream(stream, partial(self._keep, name)))

    def _keep(self, name: str, line: str) -> None:
        self._kept.append((name, line))
        self._hold(line)

    def release(self) -> None:
        """Restore the streams and write the held lines."""
        for name, stream in self._real.items():
            setattr(sys, name, stream)
        for name, line in self._kept:
            self._real[name].write(f"{line}\n")
        for stream in self._real.values():
            stream.flush()


class _HeldStream(io.TextIOBase):
    """Calls *keep* with each complete line; otherwise acts as *stream*."""

    encoding = "utf-8"

    def __init__(self, stream: TextIO, keep: Callable[[str], None]) -> None:
        self._stream = stream
        self._keep = keep
        self._pending = ""

    def write(self, text: str, /) -> int:
        *lines, self._pending = (self._pending + text).split("\n")
        for line in lines:
            self._keep(line)
        return len(text)

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()


class Lines:
    """Logs each fill, gap and command, and a decision at most once a second."""

    def __init__(self, clock: Clock, view: RunView | None = None) -> None:
        self._clock = clock
        self._view = view
        self._pace = Pace(clock)
        self._logged_s = -LOG_EVERY_S

    def begin(self) -> None:
        """Do nothing: log lines need no preparation."""

    def end(self) -> None:
        """Do nothing: the daemon logs the end of the run."""

    def opened(self, view: RunView) -> None:
        """Start with the run of *view*; the daemon logs its start."""
        self._view = view

    def show(self, step: Step) -> None:
        """Log the step's fills, gap or command, and at most one bar per ``LOG_EVERY_S``."""
        assert self._view is not None
        for fill in step.fills:
            instrument = self._view.instruments[fill.instrument]
            log.info(
                "fill",
                sequence=step.sequence,
                instrument=fill.instrument,
                side=fill.side.value,
                quantity=unscaled(fill.quantity, instrument.quantity_decimals),
                price=unscaled(fill.price, instrument.price_decimals),
                fee=unscaled(fill.fee, MONEY_DECIMALS),
                reason=fill.reason,
                equity=unscaled(step.account.equity, MONEY_DECIMALS),
            )
        match step.event:
            case Bar() as bar if step.accepted:
                self._pace.count()
                if self._clock.network_s() - self._logged_s >= LOG_EVERY_S:
                    self._logged_s = self._clock.network_s()
                    self._log_bar(step, self._view.monitor.instrument(bar.instrument))
            case Gap() as gap:
                log.warning(
                    "gap",
                    instrument=gap.instrument,
                    from_ms=gap.from_ms,
                    until_ms=gap.until_ms,
                    cause=gap.cause.value,
                    repaired_by=gap.repaired_by or "never",
                )
            case Command() as command:
                log.warning(
                    "command", kind=command.kind.value, note=command.note, giver=command.giver
                )
            case _:
                pass

    def _log_bar(self, step: Step, facts: Status) -> None:
        fields: Status = {"sequence": step.sequence, "instrument": facts["instrument"]}
        fields |= {name: facts[name] for name in ("open_time_ms", "close")}
        if facts["forecast"] is not None and "confidence_entropy" in facts["forecast"]:
            confidence = facts["forecast"]["confidence_entropy"]
            fields["confidence_entropy"] = None if confidence is None else round(confidence, 4)
        keys = ("action", "reason", "refused_by", "unfilled", "regime", "quantity")
        fields |= {name: facts[name] for name in keys if name in facts}
        fields["equity"] = unscaled(step.account.equity, MONEY_DECIMALS)
        fields["bars_per_s"] = round(self._pace.per_second(), 1)
        log.info("decision" if step.decision is not None else "warm-up", **fields)


class RunWatcher:
    """Passes every stored step to a view, and counts the bars decided in time."""

    def __init__(self, view: Screen | Lines, *, limit: int | None, until_ms: int | None) -> None:
        self._view = view
        self._limit = limit
        self._until_ms = until_ms
        self._run: RunView | None = None  # None until a run is open
        self._decided = 0
        self._allowed = 0
        self._unfilled: Counter[str] = Counter()
        self.reached_end = False

    @property
    def decisions(self) -> int:
        """The number of decided bars, late ones included."""
        return 0 if self._run is None else self._run.decisions

    def opened(self, run: RunRow) -> None:
        """Start with *run*, to which the next steps belong."""
        self._run = RunView(run, SystemClock())
        self._view.opened(self._run)

    def watch(self, step: Step) -> bool:
        """Show *step*; return False once enough bars are decided or the data have ended."""
        assert self._run is not None
        self._run.observe(step)
        self._view.show(step)
        bar = step.event
        if isinstance(bar, Bar) and self._until_ms is not None:
            self.reached_end = bar.close_time_ms >= self._until_ms
        if (decision := step.decision) is not None:
            self._allowed += decision.allowed
            if decision.refused_by is None and decision.unfilled_reason is not None:
                self._unfilled[decision.unfilled_reason] += 1
            self._decided += decision.refused_by != late.name
        return not self.reached_end and (self._limit is None or self._decided < self._limit)

    def print_summary(self, database: Path) -> None:
        """Print the summary since the start and the next commands; without a terminal, log it."""
        if self._run is None or (last := (monitor := self._run.monitor).last) is None:
            return
        run_id, equity = monitor.run.run_id, f"{last.account.equity / MONEY_SCALE:,.2f}"
        if not sys.stdout.isatty():
            log.info(
                "ended",
                run=run_id,
                bars=self.decisions,
                allowed=self._allowed,
                fills=monitor.fills,
                refused=dict(monitor.refusals.most_common()),
                unfilled=dict(self._unfilled.most_common()),
                equity=equity,
            )
            return
        refused, unfilled = (
            ", ".join(f"{name} {count:,}" for name, count in counts.most_common(3))
            for counts in (monitor.refusals, self._unfilled)
        )
        sys.stdout.write(
            f"Run {run_id} since this start: {count_of(self.decisions, 'bar')} decided, "
            f"{self._allowed:,} allowed, {count_of(monitor.fills, 'fill')}; equity {equity}.\n"
            + (f"Refused most by {refused}.\n" if refused else "")
            + (f"Left unfilled: {unfilled}.\n" if unfilled else "")
            + "The next start goes on with this run and this account. Next:\n"
            f"  tracepaper report {run_id} --db {database}\n"
            f"  tracepaper audit verify {run_id} --db {database}\n"
            f"  tracepaper audit decisions {run_id} --db {database}\n"
        )


def terminal_of_view() -> str | None:
    """Return the path of the terminal to draw on: stderr's, else stdout's.

    None if neither is a terminal, or it is a dumb one, or this process runs in its background.
    """
    if os.environ.get("TERM", "") in DUMB:
        return None
    for stream in (sys.stderr, sys.stdout):
        if stream.isatty():
            number = stream.fileno()
            with suppress(OSError):  # not the session's controlling terminal
                if os.tcgetpgrp(number) != os.getpgrp():
                    return None
            return os.ttyname(number)
    return None


@contextmanager
def live_view(
    *, database: Path, limit: int | None = None, until_ms: int | None = None
) -> Iterator[RunWatcher]:
    """Show a daemon's steps in a live view on a terminal, else as log lines.

    The run ends after *limit* bars decided in time, or with the bar that closes at market time
    *until_ms*. The view sends the operator's commands to the daemon of *database*.
    """
    clock, terminal = SystemClock(), terminal_of_view()
    view = Lines(clock) if terminal is None else Screen(clock, terminal, database)
    view.begin()
    try:
        yield RunWatcher(view, limit=limit, until_ms=until_ms)
    finally:
        view.end()
