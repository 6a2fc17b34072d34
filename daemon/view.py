"""What people see while a run goes on: a calm live view on a terminal, log lines elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

import structlog
from rich.console import Console
from rich.live import Live

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.engine.ports import Clock
from tracepaper.daemon.terminal import Terminal
from tracepaper.daemon.view_parts import Seen, screen
from tracepaper.strategies.market import unscaled
from tracepaper.strategies.types import (
    MONEY_DECIMALS,
    Bar,
    Command,
    Fill,
    Forecast,
    Gap,
    Instrument,
    Run,
    Step,
)

REFRESH_S: Final = 0.2
LOG_EVERY_S: Final = 1.0
PACE_WINDOW_S: Final = 10.0

log = structlog.get_logger("run")


class View:
    """A live screen if stderr is a terminal, else log lines; a context manager.

    ``opened`` tells which run it is, so that its name and the change of equity can be shown.
    """

    def __init__(self, *, clock: Clock | None = None, console: Console | None = None) -> None:
        clock = clock if clock is not None else SystemClock()
        target = console if console is not None else Terminal(stderr=True, highlight=False)
        is_screen = target.is_terminal and not target.is_dumb_terminal
        self._shown = Screen(clock, target) if is_screen else Lines(clock)

    def __enter__(self) -> Self:
        self._shown.begin()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Draw a last time and give the terminal back."""
        self._shown.end()

    def opened(self, run: Run) -> None:
        """Learn which run is shown."""
        self._shown.opened(run)

    def show(self, step: Step, instruments: Mapping[str, Instrument]) -> None:
        """Show one stored step; *instruments* by id say how to write its numbers."""
        self._shown.show(step, instruments)


class Pace:
    """Bars per wall second over the last ten seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque()
        self.bars = 0

    def count(self) -> None:
        """Count one bar; remember at most ten marks a second."""
        self.bars += 1
        now_s = self._clock.network_s()
        if not self._marks or now_s - self._marks[-1][0] >= PACE_WINDOW_S / 100:
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
        self._seen = Seen()
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
        self._seen.open(run)

    def show(self, step: Step, instruments: Mapping[str, Instrument]) -> None:
        """Take in *step*; redraw if the screen is old enough."""
        if not self._seen.decisions and step.decision is not None:
            self._pace = Pace(self._clock)  # the pace of warming up is another
        self._seen.take(step, instruments)
        if isinstance(step.event, Bar) and step.accepted:
            self._pace.count()
        if self._clock.network_s() - self._drawn_s >= REFRESH_S:
            self._draw()

    def _draw(self) -> None:
        self._drawn_s = self._clock.network_s()
        self._seen.bars_per_s = self._pace.per_second()
        self._live.update(screen(self._seen), refresh=True)


class Lines:
    """Says each fill, gap and command, and a decision at most once a second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pace = Pace(clock)
        self._said_s = -LOG_EVERY_S

    def begin(self) -> None:
        """Nothing to prepare."""

    def end(self) -> None:
        """Say how many bars there were."""
        log.info("view closed", bars=self._pace.bars)

    def opened(self, run: Run) -> None:
        """Say which run began."""
        log.info(
            "run opened",
            run_id=run.run_id,
            kind=run.kind.value,
            strategy=run.strategy,
            model_id=run.model_id,
            instruments=[one.id for one in run.instruments],
            warnings=list(run.warnings),
        )

    def show(self, step: Step, instruments: Mapping[str, Instrument]) -> None:
        """Log what is worth a line."""
        for fill in step.fills:
            self._say_fill(step, fill, instruments[fill.instrument])
        match step.event:
            case Bar() as bar if step.accepted:
                self._pace.count()
                if self._clock.network_s() - self._said_s >= LOG_EVERY_S:
                    self._said_s = self._clock.network_s()
                    self._say_bar(step, bar, instruments[bar.instrument])
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

    def _say_fill(self, step: Step, fill: Fill, instrument: Instrument) -> None:
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

    def _say_bar(self, step: Step, bar: Bar, instrument: Instrument) -> None:
        facts: dict[str, object] = {
            "sequence": step.sequence,
            "instrument": bar.instrument,
            "open_time_ms": bar.open_time_ms,
            "close": unscaled(bar.close, instrument.price_decimals),
        }
        if isinstance(step.prediction, Forecast) and step.prediction.explanation is not None:
            facts["confidence"] = round(step.prediction.explanation.confidence, 4)
        if (decision := step.decision) is not None:
            facts["action"] = decision.action.value
            facts["refused_by"] = decision.refused_by.value if decision.refused_by else None
            facts["unfilled"] = decision.unfilled_reason
            facts["regime"] = decision.regime.value
        if step.position is not None:
            quantity = step.position.quantity
            facts["quantity"] = unscaled(quantity, instrument.quantity_decimals)
        facts["equity"] = unscaled(step.account.equity, MONEY_DECIMALS)
        facts["bars_per_s"] = round(self._pace.per_second(), 1)
        log.info("decision" if step.decision is not None else "warm-up", **facts)
