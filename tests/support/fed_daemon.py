"""A daemon's life on one database: opened like the real one, fed by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from builders import START_MS, instrument

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.session.build import resolved
from tracepaper.daemon.session.loop import InlinePredictor
from tracepaper.daemon.session.resume import OpenedRun, Opening, open_run
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import FillModel, Step
from tracepaper.strategies.types.market import Bar, Event, Instrument, InstrumentChange, RunKind

MINUTE = 60_000


class Process:
    """One process; its run's period begins behind *warm* bars."""

    def __init__(
        self,
        path: Path,
        config: Config,
        execution: FillModel,
        *,
        warm: int = 3,
        items: Sequence[Instrument] = (),
        forecaster: Forecaster | None = None,
    ) -> None:
        self._period_start_ms = START_MS + warm * MINUTE
        self.audit = SqlAuditLog.open(path)
        opening = Opening(
            config=resolved(config, execution),
            kind=RunKind.LIVE,
            database=path,
            instruments=tuple(items) or (instrument(),),
            forecaster=forecaster,
            period_start_ms=self._period_start_ms,
            wall_ms=1,
        )
        try:
            self.opened: OpenedRun = open_run(opening, self.audit)
        except ConfigInvalid:
            self.audit.close()
            raise
        self.predictor = None
        if forecaster is not None:
            start_ms = self.opened.run.period_start_ms
            self.predictor = InlinePredictor(
                forecaster, self.opened.history, period_start_ms=start_ms
            )
        self.steps: list[Step] = []

    def begin(self) -> None:
        """Do what every start does: announce the filters, and the start itself."""
        for item in self.opened.instruments:
            self.feed(InstrumentChange(item, START_MS, START_MS))
        if self.opened.resumed:
            self.start()

    def start(self) -> None:
        """Tell the engine that the process has started."""
        self.feed(self.opened.started(START_MS))

    def feed(self, event: Event) -> None:
        """Store all that *event* causes."""
        prediction = None if self.predictor is None else self.predictor.predict(event)[0]
        step = self.opened.engine.step(event, prediction)
        asyncio.run(self.audit.append(step))
        self.steps.append(step)

    def live(self, given: Sequence[Event]) -> None:
        """Feed *given*, with the start after the warm-up where this is a new run."""
        self.begin()
        started = self.opened.resumed
        for event in given:
            is_late = isinstance(event, Bar) and event.open_time_ms >= self._period_start_ms
            if not started and is_late:
                self.start()
                started = True
            self.feed(event)

    def stop(self) -> None:
        """End the run in good order."""
        self.audit.end(2)
        self.audit.close()

    def through(self, given: Sequence[Event]) -> Self:
        """Live through *given* and stop; return itself."""
        self.live(given)
        self.stop()
        return self
