"""What each feature of the decided bar added to what a tree or a glm said: exact, not estimated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from tracepaper.replay.explain.recomputed import PastOf
from tracepaper.strategies.forecasters.ensemble import EnsembleForecaster, halves
from tracepaper.strategies.forecasters.rowwise import RowForecaster
from tracepaper.strategies.strategy import Forecaster


@dataclass(frozen=True)
class FeatureAdded:
    """What one feature added: to the mean (log return), and as a factor of the volatility."""

    feature: str
    value: float  # of the decided bar
    mean_return: float
    volatility: float


@dataclass(frozen=True)
class ByFeature:
    """Contributions at the gates' horizon, those that change the volatility most first.

    ``mean_base`` and all means sum to ``mean_return``, ``volatility_base`` (in σ √h, as the labels
    are) times all factors and σ √h is ``volatility``; ``gap`` is the largest difference from what
    was stored.
    """

    horizon: int  # bars
    mean_return: float
    mean_base: float
    volatility: float
    volatility_base: float
    gap: float
    features: tuple[FeatureAdded, ...]
    share: float | None = None  # of an ensemble's log variance: this model's, the network the rest


def of_rows(past: PastOf[Forecaster]) -> PastOf[RowForecaster] | None:
    """Return *past* of the model of one row that decided, or that was one half; None for others.

    Of an ensemble its forecast is what that half said.
    """
    forecaster, forecast = past.forecaster, past.forecast
    if isinstance(forecaster, EnsembleForecaster):
        forecaster = forecaster.rows
        forecaster.warm(past.decided.instrument, past.bars)
        mean, volatility = (tuple(column) for column in halves(forecast)[1].tolist())
        forecast = replace(forecast, mean_return=mean, volatility=volatility)
    if not isinstance(forecaster, RowForecaster):
        return None
    return PastOf(**{**vars(past), "forecaster": forecaster, "forecast": forecast})


def share_of_rows(past: PastOf[Forecaster]) -> float | None:
    """Return the row model's share of an ensemble's log variance; None for any other model."""
    if not isinstance(past.forecaster, EnsembleForecaster):
        return None
    return 1.0 - past.forecaster.shares[past.horizon_index]


def by_feature(past: PastOf[RowForecaster], *, share: float | None = None) -> ByFeature:
    """Return what each feature added to the forecast, computed from the stored bars.

    *share* is that of an ensemble, where the model is a half.
    """
    found = past.forecaster.explain(past.decided.instrument)
    at = past.horizon_index
    horizon = past.forecast.horizons[at]
    root = found.sigma * float(np.sqrt(horizon))
    mean, log_variance = found.added.mean[at] * root, found.added.log_variance[at]
    mean_base = float(found.added.mean_base[at]) * root
    volatility_base = float(np.exp(0.5 * found.added.log_variance_base[at]))
    whole_mean = mean_base + float(mean.sum())
    volatility = volatility_base * float(np.exp(0.5 * log_variance.sum())) * root
    names = past.forecaster.trained.schema.names
    columns = (names, found.row.tolist(), mean.tolist(), np.exp(0.5 * log_variance).tolist())
    features = [FeatureAdded(*column) for column in zip(*columns, strict=True)]
    return ByFeature(
        horizon=horizon,
        mean_return=whole_mean,
        mean_base=mean_base,
        volatility=volatility,
        volatility_base=volatility_base,
        gap=max(
            abs(whole_mean - past.forecast.mean_return[at]),
            abs(volatility - past.forecast.volatility[at]),
        ),
        features=tuple(sorted(features, key=lambda one: -abs(np.log(one.volatility)))),
        share=share,
    )
