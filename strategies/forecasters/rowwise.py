"""The row-wise forecaster: a tree or a generalised linear model of the features of one bar.

It gives mean return, its spread and volatility, and nothing of attention: gates of other measures
are not declared (docs/own_models.md, N3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.features import FeatureSchema, FeatureStreams
from tracepaper.strategies.forecasters.answers import require_one_of_each
from tracepaper.strategies.forecasters.row_models import Added, RowKind, RowModel
from tracepaper.strategies.forecasters.streaming import InstrumentMemory, take_rows
from tracepaper.strategies.strategy import SCANNED_AT_ONCE
from tracepaper.strategies.types import Bar, Calibration, Forecast

Floats = NDArray[np.float64]

ROW_MEASURES: Final = frozenset({"mean_return", "stdev_return", "volatility"})
"""What a row model gives, of ``gates.MEASURES``."""


@dataclass(frozen=True, slots=True)
class TrainedRows:
    """What a checkpoint says of a row model: arrays read, identity, features and calibration."""

    kind: RowKind
    model: RowModel
    schema: FeatureSchema
    horizons: tuple[int, ...]
    model_id: str
    sha256: str
    spread: tuple[float, ...]  # standard deviation of the return ÷ root of the variance
    calibration: Calibration | None


class RowAdded(NamedTuple):
    """One bar's features [feature], its σ, and what each feature added."""

    row: NDArray[np.float32]
    sigma: float
    added: Added


class RowForecaster:
    """A row model behind the ``Forecaster`` protocol, for many instruments."""

    def __init__(self, trained: TrainedRows, *, mode: str, threads: int) -> None:
        """Answer by *trained*; *threads* is what a run records, one is used."""
        self.trained = trained
        self.model_id = trained.model_id
        self.model_sha256 = trained.sha256
        self.context = trained.schema.lookback
        self.horizons = trained.horizons
        self.calibration = trained.calibration
        self.mode = mode
        self.device = "cpu"
        self.dtype = "float64"
        self.threads = threads
        self.backend = trained.kind.name
        self.causal = True
        self.scanned_at_once = SCANNED_AT_ONCE
        self.measures = ROW_MEASURES
        self.is_outside = False
        self._roots = np.sqrt(trained.horizons)
        self._spread = np.array(trained.spread)
        self._features = FeatureStreams(trained.schema, streams=0)
        self._instruments: dict[str, InstrumentMemory] = {}

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        """Forget *instrument*, then take in *bars* (oldest first); only the last ones matter."""
        known = self._of(instrument)
        known.clear()
        known.take_all(bars)

    def step(self, bar: Bar) -> Forecast | None:
        """Take in one bar; return its forecast, or None while fewer than ``context`` are known."""
        return self.predict_many([bar])[0]

    def predict_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in one bar of each of several instruments; equal to ``step`` on each in every bit.

        Raises ``InvariantBroken`` for two bars of one instrument, and for one that does not
        follow; nothing is taken in then.
        """
        require_one_of_each(bars)
        memories = [self._of(bar.instrument) for bar in bars]
        for known, bar in zip(memories, bars, strict=True):
            known.admit([bar])
        taken = take_rows(self._features, memories, bars)
        ready = np.flatnonzero(taken.complete(self.trained.schema)).tolist()
        answers: list[Forecast | None] = [None] * len(bars)
        if ready:
            said = self.forecasts(taken.values[ready], taken.sigma[ready])
            for at, forecast in zip(ready, said, strict=True):
                answers[at] = forecast
        return answers

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in known *bars* of one instrument; equal to ``step`` on each in every bit."""
        if not bars:
            return []
        taken, _ = self._of(bars[0].instrument).take_all(bars)
        found = len(taken.values)
        answers: list[Forecast | None] = [None] * (len(bars) - found)
        return [*answers, *self.forecasts(taken.values, taken.sigma)] if found else answers

    def explain(self, instrument: str) -> RowAdded:
        """Return what each feature of the last bar added to what was said of it.

        Raises ``InvariantBroken`` before the first decision.
        """
        known = self._of(instrument)
        if len(known.tail) < self.context:
            raise InvariantBroken(
                f"{instrument} has no decision to explain yet; warm it with {self.context} bars."
            )
        fresh = InstrumentMemory(self.trained.schema, 0)
        taken, _ = fresh.take_all(list(known.tail))
        row = taken.values[-1]
        return RowAdded(row, float(taken.sigma[-1]), self.trained.model.added(row))

    def _of(self, instrument: str) -> InstrumentMemory:
        if instrument not in self._instruments:
            used = len(self._instruments)
            self._features.extend(1)
            self._instruments[instrument] = InstrumentMemory(self.trained.schema, used)
        return self._instruments[instrument]

    def figures(self, rows: NDArray[np.float32], sigmas: Floats) -> tuple[Floats, Floats]:
        """Return mean return and volatility, [row, horizon] each; NaN as in ``forecasts``."""
        mean, log_variance = self.trained.model.answer(rows)
        root = sigmas[:, None] * self._roots
        if not (finite := np.isfinite(rows)).all():
            root[~finite.all(axis=1)] = np.nan
        return mean * root, np.exp(0.5 * log_variance) * root

    def forecasts(self, rows: NDArray[np.float32], sigmas: Floats) -> list[Forecast]:
        """Return the forecast of each of *rows*; NaN where a feature is not finite."""
        mean, volatility = self.figures(rows, sigmas)
        every = (mean, volatility * self._spread, volatility)
        columns = [map(tuple, figure.tolist()) for figure in every]
        nothing = repeat(())
        return list(
            map(
                Forecast,
                repeat(self.horizons),
                *columns[:2],
                nothing,
                nothing,
                nothing,
                columns[2],
                repeat(self.model_id),
            )
        )
