"""The ensemble: a network and a row model, whose volatilities are one geometric mean.

Mean, odds and explanation are the network's; the spread of the return is the mixed volatility times
the factor of the calibration slice. A bar's features are computed once, by the wider of both
halves' schemas; each half takes its own columns, which are the first. What each half said stands in
every forecast (``Forecast.halves``).

The rules are docs/models.md, L36 to L37 and L49.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.attention.rollout import Rollout
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.features import FeatureRows
from tracepaper.strategies.forecasters.plain import PlainForecaster
from tracepaper.strategies.forecasters.rowwise import RowForecaster
from tracepaper.strategies.forecasters.streaming import Attribution, StreamingForecaster
from tracepaper.strategies.forecasters.windowed import WindowedForecaster
from tracepaper.strategies.types import Bar, Calibration, Forecast

Floats = NDArray[np.float64]
NetworkForecaster = StreamingForecaster | WindowedForecaster | PlainForecaster
"""What answers for the half that is a network."""


class EnsembleForecaster:
    """Both halves behind the ``Forecaster`` protocol, for many instruments."""

    def __init__(
        self,
        network: NetworkForecaster,
        rows: RowForecaster,
        shares: Sequence[float],
        *,
        spread: Sequence[float],
        calibration: Calibration | None,
    ) -> None:
        """Mix by *shares*, one a horizon: of the network in the logarithm of the variance.

        *network* computes the wider of both halves' features. *spread* is, by horizon, the standard
        deviation of the return ÷ the mixed volatility; *calibration* is that of the whole. Raises
        ``ConfigInvalid`` for halves of other horizons, and for shares that are none.
        """
        if network.horizons != rows.horizons:
            raise ConfigInvalid(
                "The halves of an ensemble must speak of the same horizons; train both with the "
                "same --horizons."
            )
        if len(shares) != len(network.horizons) or not all(0 <= one <= 1 for one in shares):
            raise ConfigInvalid(
                "An ensemble needs one share from 0 to 1 for each horizon; fit it again."
            )
        self.network, self.rows = network, rows
        self.shares, self.spread = tuple(shares), tuple(spread)
        self.model_id = network.model_id
        self.model_sha256 = network.model_sha256
        self.context = network.context
        self.horizons = network.horizons
        self.calibration = calibration
        self.mode = network.mode
        self.device = network.device
        self.dtype = network.dtype
        self.threads = network.threads
        self.backend = network.backend
        self.causal = network.causal
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
        """Take in many known bars of one instrument, as the network does.

        Raises ``InvariantBroken`` where the network is not causal.
        """
        said = self.network.scan(bars)
        if not bars:
            return said
        found = self.network.newest
        unknown = len(said) - len(found.values)
        return [*said[:unknown], *self._mixed(said[unknown:], found)]

    def explain(self, instrument: str) -> Attribution | Rollout:
        """Return where the network looked at *instrument*'s last decision, bar by bar."""
        if isinstance(self.network, PlainForecaster):
            raise InvariantBroken(
                f"The network of {self.model_id} has no attention, so there is nowhere it looked; "
                "ask its features."
            )
        return self.network.explain(instrument)

    def _mixed(
        self, said: Sequence[Forecast | None], seen: FeatureRows
    ) -> Iterator[Forecast | None]:
        """Yield each forecast of the network mixed with the row model's; *seen* are its rows.

        None where a half lacks its history: the row model's is longer where its features are.
        """
        schema = self.rows.trained.schema
        whole = seen.complete(schema).tolist()
        ready = [at for at, one in enumerate(said) if one is not None and whole[at]]
        if not ready:
            yield from [None] * len(said)
            return
        own = seen.values[ready, : len(schema.names)]
        rows = iter(self.rows.forecasts(own, seen.sigma[ready]))
        for at, forecast in enumerate(said):
            yield None if forecast is None or not whole[at] else self._one(forecast, next(rows))

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
            tuple(spread * one for spread, one in zip(self.spread, volatility, strict=True)),
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
