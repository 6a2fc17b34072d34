"""What people see while a run goes on: a calm live view on a terminal, log lines elsewhere."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Final, Protocol, Self

import structlog
from rich.console import Console
from rich.live import Live

from tracepaper.daemon.ports import Clock
from tracepaper.daemon.view_parts import Seen, screen
from tracepaper.strategies.exact import unscaled
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


class View(Protocol):
    """Shows the steps of a run; a context manager, so that the terminal is given back."""

    def show(self, step: Step) -> None:
        """Show one stored step."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def view_of(
    run: Run, *, clock: Clock, cash: int, horizon: int = 30, console: Console | None = None
) -> View:
    """Return the live view if stderr is a terminal, else the log view.

    *cash* is the money at the start of the account; *horizon* the forecast that is shown, in bars.
    """
    target = console if console is not None else Console(stderr=True, highlight=False)
    if target.is_terminal and not target.is_dumb_terminal:
        return LiveView(run, clock=clock, cash=cash, horizon=horizon, console=target)
    return LogView(run, clock=clock)


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


class LiveView:
    """Redraws one screen at most five times a second; log lines pass above it."""

    def __init__(
        self, run: Run, *, clock: Clock, cash: int, horizon: int, console: Console
    ) -> None:
        self.seen = Seen(run, cash, horizon)
        self._pace = Pace(clock)
        self._clock = clock
        self._drawn_s = -REFRESH_S
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._draw()
        self._live.stop()

    def show(self, step: Step) -> None:
        """Take in *step*; redraw if the screen is old enough."""
        self.seen.take(step)
        if isinstance(step.event, Bar) and step.accepted:
            self._pace.count()
        if self._clock.network_s() - self._drawn_s >= REFRESH_S:
            self._draw()

    def _draw(self) -> None:
        self._drawn_s = self._clock.network_s()
        self.seen.bars_per_s = self._pace.per_second()
        self._live.update(screen(self.seen), refresh=True)


class LogView:
    """Says each fill, gap and command, and a decision at most once a second."""

    def __init__(self, run: Run, *, clock: Clock) -> None:
        self._instruments = {one.id: one for one in run.instruments}
        self._clock = clock
        self._pace = Pace(clock)
        self._said_s = -LOG_EVERY_S

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        log.info("view closed", bars=self._pace.bars)

    def show(self, step: Step) -> None:
        """Log what is worth a line."""
        for fill in step.fills:
            self._say_fill(step, fill)
        match step.event:
            case Bar() as bar if step.accepted:
                self._pace.count()
                if self._clock.network_s() - self._said_s >= LOG_EVERY_S:
                    self._said_s = self._clock.network_s()
                    self._say_bar(step, bar, self._instruments[bar.instrument])
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

    def _say_fill(self, step: Step, fill: Fill) -> None:
        instrument = self._instruments[fill.instrument]
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
        if isinstance(step.answer, Forecast) and step.answer.explanation is not None:
            facts["confidence"] = round(step.answer.explanation.confidence, 4)
        if (decision := step.decision) is not None:
            facts["action"] = decision.action.value
            facts["refused_by"] = decision.refused_by.value if decision.refused_by else None
            facts["regime"] = decision.regime.value
        if step.position is not None:
            quantity = step.position.quantity
            facts["quantity"] = unscaled(quantity, instrument.quantity_decimals)
        facts["equity"] = unscaled(step.account.equity, MONEY_DECIMALS)
        facts["bars_per_s"] = round(self._pace.per_second(), 1)
        log.info("decision" if step.decision is not None else "warm-up", **facts)
