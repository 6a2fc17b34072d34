"""The live view of a run."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog
from rich.console import Console
from rich.live import Live

from tracepaper.daemon.clock import Clock, SystemClock
from tracepaper.daemon.terminal.console import Terminal
from tracepaper.daemon.terminal.screen import ScreenState, screen
from tracepaper.strategies.gates.declared import late
from tracepaper.strategies.types.decisions import Account, Forecast, Run, Step
from tracepaper.strategies.types.market import Bar, Command, Gap, Instrument
from tracepaper.strategies.units import MONEY_DECIMALS, MONEY_SCALE, unscaled

REFRESH_S: Final = 0.2
LOG_EVERY_S: Final = 1.0
PACE_WINDOW_S: Final = 10.0
MARKS_MAX: Final = 100
"""Marks of the pace that are remembered."""

log = structlog.get_logger("run")


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
    """Redraws one screen at most five times a second; log lines pass above it."""

    def __init__(self, clock: Clock, console: Console) -> None:
        self._state = ScreenState()
        self._pace = Pace(clock)
        self._clock = clock
        self._drawn_s = -REFRESH_S
        self._live = Live(console=console, auto_refresh=False)

    def begin(self) -> None:
        """Take the terminal."""
        self._live.start()

    def end(self) -> None:
        """Draw a last time and give the terminal back."""
        self._draw()
        self._live.stop()

    def opened(self, run: Run) -> None:
        """Show the name of *run*."""
        self._state.open(run)

    def show(self, step: Step, instruments: Mapping[str, Instrument]) -> None:
        """Take in *step*; redraw if the screen is old enough.

        *instruments* by id have the decimals of its numbers.
        """
        if not self._state.decisions and step.decision is not None:
            self._pace = Pace(self._clock)  # warm-up bars had another pace
        self._state.observe(step, instruments)
        if isinstance(step.event, Bar) and step.accepted:
            self._pace.count()
        if self._clock.network_s() - self._drawn_s >= REFRESH_S:
            self._draw()

    def _draw(self) -> None:
        self._drawn_s = self._clock.network_s()
        self._state.bars_per_s = self._pace.per_second()
        self._live.update(screen(self._state), refresh=True)


class Lines:
    """Logs each fill, gap and command, and a decision at most once a second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pace = Pace(clock)
        self._logged_s = -LOG_EVERY_S

    def begin(self) -> None:
        """Do nothing: log lines need no preparation."""

    def end(self) -> None:
        """Log the number of bars."""
        log.info("view closed", bars=self._pace.bars)

    def opened(self, run: Run) -> None:
        """Log the run that began."""
        log.info(
            "run opened",
            run_id=run.run_id,
            kind=run.kind.value,
            strategy=run.strategy,
            model_id=run.model_id,
            instruments=[instrument.id for instrument in run.instruments],
            warnings=list(run.warnings),
        )

    def show(self, step: Step, instruments: Mapping[str, Instrument]) -> None:
        """Log fills, gaps and commands, and now and then a bar."""
        for fill in step.fills:
            instrument = instruments[fill.instrument]
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
                    self._log_bar(step, bar, instruments[bar.instrument])
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
                log.warning("command", kind=command.kind.value, note=command.note)
            case _:
                pass

    def _log_bar(self, step: Step, bar: Bar, instrument: Instrument) -> None:
        facts: dict[str, object] = {
            "sequence": step.sequence,
            "instrument": bar.instrument,
            "open_time_ms": bar.open_time_ms,
            "close": unscaled(bar.close, instrument.price_decimals),
        }
        if isinstance(step.prediction, Forecast) and (explanation := step.prediction.explanation):
            confidence = explanation.confidence
            facts["confidence"] = None if confidence is None else round(confidence, 4)
        if (decision := step.decision) is not None:
            facts["action"] = decision.action.value
            facts["refused_by"] = decision.refused_by
            facts["unfilled"] = decision.unfilled_reason
            facts["regime"] = decision.regime.value
        if step.position is not None:
            quantity = step.position.quantity
            facts["quantity"] = unscaled(quantity, instrument.quantity_decimals)
        facts["equity"] = unscaled(step.account.equity, MONEY_DECIMALS)
        facts["bars_per_s"] = round(self._pace.per_second(), 1)
        log.info("decision" if step.decision is not None else "warm-up", **facts)


class RunWatcher:
    """Passes every stored step on to a view, and counts the bars that were decided in time."""

    def __init__(self, view: Screen | Lines, *, limit: int | None, until_ms: int | None) -> None:
        self._view = view
        self._limit = limit
        self._until_ms = until_ms
        self._instruments: dict[str, Instrument] = {}
        self.decided = 0
        self._bars = 0
        self._allowed = 0
        self._fills = 0
        self._refusals: Counter[str] = Counter()
        self._unfilled: Counter[str] = Counter()
        self._account: Account | None = None
        self.reached_end = False
        self.run: Run | None = None

    def opened(self, run: Run) -> None:
        """Take in the run that the next steps belong to."""
        self.run = run
        self._view.opened(run)
        self._instruments = {item.id: item for item in run.instruments}

    def watch(self, step: Step) -> bool:
        """Show *step*; return False once enough bars were decided, or the data have ended."""
        self._view.show(step, self._instruments)
        self._account = step.account
        self._fills += len(step.fills)
        bar = step.event
        if isinstance(bar, Bar) and self._until_ms is not None:
            self.reached_end = bar.close_time_ms >= self._until_ms
        if (decision := step.decision) is not None:
            self._bars += 1
            self._allowed += decision.allowed
            if decision.refused_by is not None:
                self._refusals[decision.refused_by] += 1
            elif decision.unfilled_reason is not None:
                self._unfilled[decision.unfilled_reason] += 1
            self.decided += decision.refused_by != late.name
        return not self.reached_end and (self._limit is None or self.decided < self._limit)

    def print_summary(self, database: Path) -> None:
        """Print the summary since the start and the next commands; without a terminal, log it."""
        if self.run is None or self._account is None:
            return
        equity = f"{self._account.equity / MONEY_SCALE:,.2f}"
        if not sys.stdout.isatty():
            log.info(
                "ended",
                run=self.run.run_id,
                bars=self._bars,
                allowed=self._allowed,
                fills=self._fills,
                refused=dict(self._refusals.most_common()),
                unfilled=dict(self._unfilled.most_common()),
                equity=equity,
            )
            return
        refused, unfilled = (
            ", ".join(f"{name} {count:,}" for name, count in counts.most_common(3))
            for counts in (self._refusals, self._unfilled)
        )
        run_id = self.run.run_id
        sys.stdout.write(
            f"Run {run_id} since this start: {self._bars:,} bars decided, {self._allowed:,} "
            f"allowed, {self._fills:,} fills; equity {equity}.\n"
            + (f"Refused most by {refused}.\n" if refused else "")
            + (f"Left unfilled: {unfilled}.\n" if unfilled else "")
            + "The next start goes on with this run and this account. Next:\n"
            f"  tracepaper report {run_id} --db {database}\n"
            f"  tracepaper audit verify {run_id} --db {database}\n"
            f"  tracepaper audit decisions {run_id} --db {database}\n"
        )


@contextmanager
def open_view(
    *, clock: Clock | None = None, console: Console | None = None
) -> Iterator[Screen | Lines]:
    """Yield a live screen if stderr is a terminal, else log lines."""
    clock = clock if clock is not None else SystemClock()
    console = console if console is not None else Terminal(stderr=True, highlight=False)
    is_screen = console.is_terminal and not console.is_dumb_terminal
    view = Screen(clock, console) if is_screen else Lines(clock)
    view.begin()
    try:
        yield view
    finally:
        view.end()


@contextmanager
def live_view(*, limit: int | None, until_ms: int | None = None) -> Iterator[RunWatcher]:
    """Show a daemon's steps: a live view on a terminal, log lines elsewhere.

    It ends after *limit* bars that were decided in time, or with the bar that closes at
    *until_ms*, market time.
    """
    with open_view() as view:
        yield RunWatcher(view, limit=limit, until_ms=until_ms)
