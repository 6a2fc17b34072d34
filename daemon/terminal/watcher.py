"""What ``tracepaper run`` says of a run in progress: log lines, the live view, and a summary."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tracepaper.daemon.clock import Clock, SystemClock
from tracepaper.daemon.http.monitor import bar_document
from tracepaper.daemon.log import Logger
from tracepaper.daemon.terminal.live_view import LiveView, view_of
from tracepaper.strategies.gates.declared import late
from tracepaper.strategies.types.decisions import RunRow, Step
from tracepaper.strategies.types.market import Bar, Command, Gap
from tracepaper.strategies.units import MONEY_DECIMALS, MONEY_SCALE, count_of, money_text, unscaled

LOG_EVERY_S: Final = 1.0

log = Logger("run")


class RunWatcher:
    """Logs every stored step of a run, and counts the bars decided in time.

    Fills, gaps and commands are logged everywhere; where no *view* is drawn, also a bar a second.
    The run ends after *limit* bars decided in time.
    """

    def __init__(
        self, clock: Clock, view: LiveView | None = None, *, limit: int | None = None
    ) -> None:
        self._clock = clock
        self._view = view
        self._limit = limit
        self._run: RunRow | None = None  # None until a run is open
        self._last: Step | None = None
        self._decided = 0
        self._counts: Counter[str] = Counter()  # decided bars, late ones included; allowed; fills
        self._refused: Counter[str] = Counter()
        self._unfilled: Counter[str] = Counter()
        self._logged_s = -LOG_EVERY_S

    @property
    def decisions(self) -> int:
        """The number of decided bars, late ones included."""
        return self._counts["bars"]

    def starts(self, outage: Callable[[], str | None]) -> None:
        """Have the view show what *outage* returns until a run is open."""
        if self._view is not None:
            self._view.outage = outage

    def opened(self, run: RunRow) -> None:
        """Start with *run*, to which the next steps belong."""
        self._run = run

    def watch(self, step: Step) -> bool:
        """Log *step*; return False once enough bars are decided."""
        assert self._run is not None
        self._last = step
        self._log(step, self._run)
        self._counts["fills"] += len(step.fills)
        if (decision := step.decision) is not None:
            self._counts["bars"] += 1
            self._counts["allowed"] += decision.allowed
            if decision.refused_by is not None:
                self._refused[decision.refused_by] += 1
            elif decision.unfilled_reason is not None:
                self._unfilled[decision.unfilled_reason] += 1
            self._decided += decision.refused_by != late.name
        return self._limit is None or self._decided < self._limit

    def _log(self, step: Step, run: RunRow) -> None:
        for fill in step.fills:
            (instrument,) = (item for item in run.instruments if item.id == fill.instrument)
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
            case Bar() if step.accepted and (self._view is None or not self._view.is_drawn):
                if self._clock.network_s() - self._logged_s >= LOG_EVERY_S:
                    self._logged_s = self._clock.network_s()
                    _log_bar(step, run)
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

    def print_summary(self, database: Path) -> None:
        """Print the summary since the start and the next commands; without a terminal, log it."""
        if self._run is None or self._last is None:
            return
        run_id, equity = self._run.run_id, money_text(self._last.account.equity / MONEY_SCALE)
        if not sys.stdout.isatty():
            log.info(
                "ended",
                run=run_id,
                **{name: self._counts[name] for name in ("bars", "allowed", "fills")},
                refused=dict(self._refused.most_common()),
                unfilled=dict(self._unfilled.most_common()),
                equity=equity,
            )
            return
        refused, unfilled = (
            ", ".join(f"{name} {count:,}" for name, count in counts.most_common(3))
            for counts in (self._refused, self._unfilled)
        )
        sys.stdout.write(
            f"Run {run_id} since this start: {count_of(self.decisions, 'bar')} decided, "
            f"{self._counts['allowed']:,} allowed, {count_of(self._counts['fills'], 'fill')}; "
            f"equity {equity}.\n"
            + (f"Refused most by {refused}.\n" if refused else "")
            + (f"Left unfilled: {unfilled}.\n" if unfilled else "")
            + "The next start goes on with this run and this account. Next:\n"
            f"  tracepaper report {run_id} --db {database}\n"
            f"  tracepaper audit verify {run_id} --db {database}\n"
            f"  tracepaper audit sql decisions --run {run_id} --db {database}\n"
        )


def _log_bar(step: Step, run: RunRow) -> None:
    name = getattr(step.event, "instrument", "")
    (instrument,) = (item for item in run.instruments if item.id == name)
    facts = bar_document(step, instrument, run.gate_horizon)
    fields: dict[str, object] = {"sequence": step.sequence}
    keys = ("instrument", "open_time_ms", "close", "action", "reason", "refused_by", "unfilled")
    fields |= {name: facts[name] for name in (*keys, "regime") if name in facts}
    if (explanation := getattr(step.prediction, "explanation", None)) is not None:
        fields["confidence_entropy"] = explanation.confidence_entropy
    if step.position is not None:
        fields["quantity"] = unscaled(step.position.quantity, instrument.quantity_decimals)
    fields["equity"] = unscaled(step.account.equity, MONEY_DECIMALS)
    log.info("decision" if step.decision is not None else "warm-up", **fields)


@contextmanager
def watched(*, database: Path, limit: int | None = None) -> Iterator[RunWatcher]:
    """Show the steps of the daemon of *database* in a live view on a terminal, else as log lines.

    The run ends after *limit* bars decided in time.
    """
    view = view_of(database)
    watcher = RunWatcher(SystemClock(), view, limit=limit)
    if view is None:
        yield watcher
        return
    with view.shown():
        yield watcher
