"""The plain forecaster: a network without attention over the window that ends at the decided bar.

It gives returns, odds and volatility, and no measure of attention: the gates of confidence,
collapse, shift and regime are not declared. Windows of known bars are answered many at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tracepaper.strategies.features import FeatureRows
from tracepaper.strategies.forecasters.answers import TrainedModel, forecasts, require_one_of_each
from tracepaper.strategies.forecasters.streaming import NO_ROWS, bars_needed
from tracepaper.strategies.forecasters.windowed import FeatureWindow, rows_together
from tracepaper.strategies.gates import MEASURES
from tracepaper.strategies.model import EXPLAINED
from tracepaper.strategies.strategy import SCANNED_AT_ONCE
from tracepaper.strategies.types import Bar, Forecast

_WINDOWS_AT_ONCE: Final = 256  # bounds memory


class PlainForecaster:
    """A network without attention behind the ``Forecaster`` protocol, for many instruments."""

    def __init__(self, model: TrainedModel, *, mode: str, threads: int, backend: str) -> None:
        """Answer by *model* where its weights are."""
        self.model = model
        self.model_id = model.model_id
        self.model_sha256 = model.sha256
        self.context = bars_needed(model.network.config.window, model.schema, model.computed)
        self.horizons = model.network.config.horizons
        self.calibration = model.calibration
        self.mode = mode
        self.device = str(model.network.device)
        self.dtype = "float32"
        self.threads = threads
        self.backend = backend
        self.causal = True
        self.scanned_at_once = SCANNED_AT_ONCE
        self.measures = MEASURES - frozenset(EXPLAINED)
        self.is_outside = False
        self._network = model.network.eval()
        self._windows: dict[str, FeatureWindow] = {}
        self.newest = NO_ROWS
        """The rows of the last call, of each bar."""

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        """Forget *instrument*, then take in *bars* (oldest first); only the last ones matter."""
        window = self._windows[instrument] = FeatureWindow.of(self.model)
        for bar in bars[-self.context :]:
            window.take(bar)

    def step(self, bar: Bar) -> Forecast | None:
        """Take in one bar; return its forecast, or None while fewer than ``context`` are known."""
        return self._answered([bar])[0]

    def predict_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in one bar of each of several instruments; their windows are answered at once.

        Raises ``InvariantBroken`` for two bars of one instrument.
        """
        require_one_of_each(bars)
        return self._answered(bars)

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in known bars of one instrument; their windows are answered many at once."""
        found: list[Forecast | None] = []
        seen: list[FeatureRows] = []
        for start in range(0, len(bars), _WINDOWS_AT_ONCE):
            found += self._answered(bars[start : start + _WINDOWS_AT_ONCE])
            seen.append(self.newest)
        self.newest = rows_together(seen)
        return found

    def _answered(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in *bars*, in order, and answer those whose window is full."""
        seen: list[FeatureRows] = []
        rows: list[NDArray[np.float32]] = []
        sigmas: list[float] = []
        places: list[int] = []
        for place, bar in enumerate(bars):
            if (window := self._windows.get(bar.instrument)) is None:
                window = self._windows[bar.instrument] = FeatureWindow.of(self.model)
            sigma = window.take(bar)
            seen.append(window.newest)
            if window.is_full:
                rows.append(window.rows.view()[:, :-1].astype(np.float32))
                sigmas.append(sigma)
                places.append(place)
        self.newest = rows_together(seen)
        found: list[Forecast | None] = [None] * len(bars)
        if rows:
            for place, forecast in zip(places, self._said(rows, sigmas), strict=True):
                found[place] = forecast
        return found

    def _said(self, rows: Sequence[NDArray[np.float32]], sigmas: Sequence[float]) -> list[Forecast]:
        x = torch.from_numpy(np.stack(rows)).to(self.model.network.device)
        with torch.inference_mode():
            outputs = self._network(x).cpu()
        return forecasts(
            outputs,
            np.array(sigmas),
            repeat(None, len(rows)),
            horizons=self.horizons,
            temperature=self.model.temperature,
            model_id=self.model_id,
        )
