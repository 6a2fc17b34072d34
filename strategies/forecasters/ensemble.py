"""The ensemble: a streaming network and a row model, whose volatilities are one geometric mean.

Mean, odds and explanation are the network's, so its measures and its calibration hold. The row
model answers by the very features that the network was given: a bar's are computed once. What each
half said stands in every forecast (``Forecast.halves``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features import FeatureRows
from tracepaper.strategies.forecasters.rowwise import RowForecaster
from tracepaper.strategies.forecasters.streaming import Attribution, StreamingForecaster
from tracepaper.strategies.types import Bar, Forecast

Floats = NDArray[np.float64]


class EnsembleForecaster:
    """Both halves behind the ``Forecaster`` protocol, for many instruments."""

    def __init__(
        self, network: StreamingForecaster, rows: RowForecaster, shares: Sequence[float]
    ) -> None:
        """Mix by *shares*, one a horizon: of the network in the logarithm of the variance.

        Raises ``ConfigInvalid`` for halves of other features or horizons, and for shares that are
        none.
        """
        if (network.model.schema, network.horizons) != (rows.trained.schema, rows.horizons):
            raise ConfigInvalid(
                "The halves of an ensemble must see the same features and speak of the same "
                "horizons; train both with the same --schema and --horizons."
            )
        if len(shares) != len(network.horizons) or not all(0 <= one <= 1 for one in shares):
            raise ConfigInvalid(
                "An ensemble needs one share from 0 to 1 for each horizon; fit it again."
            )
        self.network, self.rows = network, rows
        self.shares = tuple(shares)
        self.model_id = network.model_id
        self.model_sha256 = network.model_sha256
        self.context = network.context
        self.horizons = network.horizons
        self.calibration = network.calibration
        self.mode = network.mode
        self.device = network.device
        self.dtype = network.dtype
        self.threads = network.threads
        self.backend = network.backend
        self.causal = True
        self.measures = network.measures
        self.is_outside = False

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        """Forget *instrument*, then take in *bars* (oldest first); only the last ones matter."""
        self.network.warm(instrument, bars)

    def step(self, bar: Bar) -> Forecast | None:
        """Take in one bar; return its forecast, or None while fewer than ``context`` are known."""
        return self.predict_many([bar])[0]

    def predict_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in one bar of each of several instruments, as the network does."""
        return list(self._mixed(self.network.predict_many(bars), self.network.newest))

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in many known bars of one instrument, as the network does."""
        said = self.network.scan(bars)
        if not bars:
            return said
        found = self.network.newest
        unknown = len(said) - len(found.values)
        return [*said[:unknown], *self._mixed(said[unknown:], found)]

    def explain(self, instrument: str) -> Attribution:
        """Return where the network looked at *instrument*'s last decision, bar by bar."""
        return self.network.explain(instrument)

    def _mixed(
        self, said: Sequence[Forecast | None], seen: FeatureRows
    ) -> Iterator[Forecast | None]:
        """Yield each forecast of the network mixed with the row model's; *seen* are its rows."""
        ready = [at for at, forecast in enumerate(said) if forecast is not None]
        rows = iter(self.rows.forecasts(seen.values[ready], seen.sigma[ready])) if ready else None
        for forecast in said:
            if forecast is None or rows is None:
                yield None
            else:
                yield self._one(forecast, next(rows))

    def _one(self, network: Forecast, rows: Forecast) -> Forecast:
        volatility = tuple(
            exp(share * log(one) + (1.0 - share) * log(other))
            for share, one, other in zip(
                self.shares, network.volatility, rows.volatility, strict=True
            )
        )
        said = (network.mean_return, network.volatility, rows.mean_return, rows.volatility)
        return Forecast(
            network.horizons,
            network.mean_return,
            network.stdev_return,
            network.p_down,
            network.p_flat,
            network.p_up,
            volatility,
            network.model_id,
            network.explanation,
            np.array(said, dtype="<f4").tobytes(),
        )


def halves(forecast: Forecast) -> Floats:
    """Return [half, 2, horizon]: mean return and volatility of the network, and of the row model.

    Empty where one model answered.
    """
    found = np.frombuffer(forecast.halves, dtype="<f4").astype(np.float64)
    return found.reshape(-1, 2, len(forecast.horizons))
