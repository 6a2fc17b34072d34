"""What ``run`` and ``demo`` show while they go on, and when they end by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tracepaper.daemon.assembly import Hooks
from tracepaper.daemon.view import View
from tracepaper.strategies.types import Bar, Gate, Instrument, Run, Step


class Shown:
    """Passes every stored step on to a view, and counts the bars that were decided in time."""

    def __init__(self, view: View, *, limit: int | None, until_ms: int | None) -> None:
        self._view = view
        self._limit = limit
        self._until_ms = until_ms
        self._instruments: dict[str, Instrument] = {}
        self.decided = 0
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
        bar = step.event
        if isinstance(bar, Bar) and self._until_ms is not None:
            self.reached_end = bar.close_time_ms >= self._until_ms
        if (decision := step.decision) is not None and decision.refused_by is not Gate.LATE:
            self.decided += 1
        return not self.reached_end and (self._limit is None or self.decided < self._limit)

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
