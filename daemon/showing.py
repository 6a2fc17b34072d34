"""What ``run`` and ``demo`` show while they go on, and when they end by themselves."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from tracepaper.daemon.assembly import Hooks
from tracepaper.daemon.view import View
from tracepaper.strategies.types import MONEY_SCALE, Account, Bar, Gate, Instrument, Run, Step

log = structlog.get_logger("run")


class Shown:
    """Passes every stored step on to a view, and counts the bars that were decided in time."""

    def __init__(self, view: View, *, limit: int | None, until_ms: int | None) -> None:
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
        """Learn which run it is."""
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
                self._refusals[decision.refused_by.value] += 1
            elif decision.unfilled_reason is not None:
                self._unfilled[decision.unfilled_reason] += 1
            self.decided += decision.refused_by is not Gate.LATE
        return not self.reached_end and (self._limit is None or self.decided < self._limit)

    def farewell(self, database: Path) -> None:
        """Say what happened since the start and what to type next; a log line off a terminal."""
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
        told, left = (
            ", ".join(f"{name} {count:,}" for name, count in counted.most_common(3))
            for counted in (self._refusals, self._unfilled)
        )
        run_id = self.run.run_id
        sys.stdout.write(
            f"Run {run_id} since this start: {self._bars:,} bars decided, {self._allowed:,} "
            f"allowed, {self._fills:,} fills; equity {equity}.\n"
            + (f"Refused most by {told}.\n" if told else "")
            + (f"Left unfilled: {left}.\n" if left else "")
            + "The next start goes on with this run and this account. Next:\n"
            f"  tracepaper report {run_id} --db {database}\n"
            f"  tracepaper audit verify {run_id} --db {database}\n"
            f"  tracepaper audit decisions {run_id} --db {database}\n"
        )

    def hooks(self) -> Hooks:
        """Return the hooks of a daemon."""
        return Hooks(opened=self.opened, watch=self.watch)


@contextmanager
def showing(*, limit: int | None, until_ms: int | None = None) -> Iterator[Shown]:
    """Show a daemon's steps: a calm live view on a terminal, log lines elsewhere.

    It ends after *limit* bars that were decided in time, or with the bar that closes at
    *until_ms*, market time.
    """
    with View() as view:
        yield Shown(view, limit=limit, until_ms=until_ms)
