"""The ensemble: a network and a row model, whose volatilities are one geometric mean.

Mean, odds and explanation are the network's; the spread of the return is the mixed volatility times
the factor of the calibration slice. A bar's features are computed once, by the wider of both
halves' schemas; each half takes its own columns, which are the first. What each half said stands in
every forecast (``Forecast.further``).

The rules are docs/models.md, L36 to L37 and L49.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.attention.rollout import Rollout
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.features import FeatureRows
from tracepaper.strategies.forecasters.plain import PlainForecaster
from tracepaper.strategies.forecasters.rowwise import RowForecaster
from tracepaper.strategies.forecasters.streaming import Attribution, StreamingForecaster
from tracepaper.strategies.forecasters.windowed import WindowedForecaster
from tracepaper.strategies.strategy import Forecaster
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
        self._shares, self._spread = np.array(self.shares), np.array(self.spread)
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
        self.scanned_at_once = network.scanned_at_once
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
        return self._mixed(self.network.predict_many(bars), self.network.newest)

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

    def _mixed(self, said: Sequence[Forecast | None], seen: FeatureRows) -> list[Forecast | None]:
        """Return each forecast of the network mixed with the row model's; *seen* are its rows.

        None where a half lacks its history: the row model's is longer where its features are.
        """
        schema = self.rows.trained.schema
        whole = seen.complete(schema).tolist()
        ready = [at for at, one in enumerate(said) if one is not None and whole[at]]
        found: list[Forecast | None] = [None] * len(said)
        if not ready:
            return found
        own = seen.values[ready, : len(schema.names)]
        network = [one for at in ready if (one := said[at]) is not None]
        mixed = self._of_halves(network, *self.rows.figures(own, seen.sigma[ready]))
        for at, one in zip(ready, mixed, strict=True):
            found[at] = one
        return found

    def _of_halves(
        self, network: Sequence[Forecast], mean: Floats, volatility: Floats
    ) -> Iterator[Forecast]:
        """Yield the forecasts of *network* with the row model's *mean* and *volatility* mixed in.

        These are [row, horizon].
        """
        own = np.array([one.volatility for one in network])
        logs = self._shares * np.log(own) + (1.0 - self._shares) * np.log(volatility)
        mixed = np.exp(logs)
        said = np.empty((len(network), 4, len(self.horizons)), dtype="<f4")
        said[:, 0], said[:, 1] = [one.mean_return for one in network], own
        said[:, 2], said[:, 3] = mean, volatility
        columns = ((mixed * self._spread).tolist(), mixed.tolist(), said)
        for one, stdev, both, halves_of in zip(network, *columns, strict=True):
            yield Forecast(
                one.horizons,
                one.mean_return,
                tuple(stdev),
                one.p_down,
                one.p_flat,
                one.p_up,
                tuple(both),
                one.model_id,
                one.explanation,
                halves_of.tobytes(),
            )


def network_half(forecaster: Forecaster) -> Forecaster:
    """Return the half of an ensemble that is a network; any other forecaster itself."""
    return forecaster.network if isinstance(forecaster, EnsembleForecaster) else forecaster


def halves(forecast: Forecast) -> Floats:
    """Return [half, 2, horizon]: mean return and volatility of the network, and of the row model.

    Empty where one model answered.
    """
    found = np.frombuffer(forecast.further, dtype="<f4").astype(np.float64)
    return found.reshape(-1, 2, len(forecast.horizons))
