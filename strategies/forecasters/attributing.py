"""What one forecast is made of: its rows taken away, and integrated gradients by bar and feature.

Unlike the rollout, which says where attention flowed, both ask the network itself: what it would
have said without some rows, and how much of what it said each number contributes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.strategies import features
from tracepaper.strategies.attention.heads import feature_attribution
from tracepaper.strategies.attention.rollout import Rollout
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.forecasters.windowed import WindowedForecaster
from tracepaper.strategies.networks.looked import Way, look_by
from tracepaper.strategies.types import Bar

Floats = NDArray[np.float64]
Rows = NDArray[np.float32]

PATH_NODES: Final = 8
"""Gauss-Legendre nodes of the path integral: exact where the answer along the path is a polynomial
of degree 16, and within 1e-4 of the forecast for the default model."""


class Figures(NamedTuple):
    """What the network says at one horizon."""

    mean_return: float  # log return, as in ``Forecast``
    lean: float  # p_up - p_down


@dataclass(frozen=True, slots=True)
class Contributions:
    """How much each number of each row adds to the mean return (integrated gradients)."""

    mean_return: Floats  # [bar, feature], log return; oldest bar first
    forecast: float  # the mean return of the rows as they are
    neutral: float  # the mean return of neutral rows: where the path starts

    @property
    def gap(self) -> float:
        """What the contributions miss of ``told - neutral``; 0 where the integral is exact."""
        return float(self.mean_return.sum()) - (self.forecast - self.neutral)


class Probe:
    """The rows of one decision and the network that answers for them, ready to be varied.

    A neutral row is zero: every feature is scaled so that 0 is its ordinary value (or, for the
    hour and the weekday, no time at all), and it is what the network gets for a value that is not
    finite. The scale of the forecast, σ of the decided bar, stays as it was.
    """

    def __init__(
        self,
        forecaster: StreamingForecaster | WindowedForecaster,
        bars: Sequence[Bar],
        *,
        horizon: int,
    ) -> None:
        """Take those of *bars* that the network's rows depend on; the last is the decided bar.

        Raises ``DataInvalid`` where they are too few or the decided bar's row is not finite.
        """
        model = forecaster.model
        if len(bars) < forecaster.context:
            raise DataInvalid(
                f"The model looks back on {forecaster.context} bars, not {len(bars)}; give more."
            )
        known = bars[-(forecaster.receptive_field + model.schema.lookback - 1) :]
        block = features.compute(model.schema, features.columns(known))
        sigma = float(block.sigma[-1])
        if not (math.isfinite(sigma) and bool(np.isfinite(block.values[-1]).all())):
            raise DataInvalid(
                f"The features of the bar at {known[-1].open_time_ms} are not finite, so it has "
                "no forecast to take apart; choose another decision."
            )
        decided = known[block.first :]
        self.names = model.schema.names
        self.rows: Rows = np.nan_to_num(block.values[block.first :], nan=0.0, posinf=0, neginf=0)
        self._network = model.network
        device = next(model.network.parameters()).device
        self._rows = torch.from_numpy(self.rows).to(device)
        places = [bar.open_time_ms // bar.interval_ms for bar in decided]
        self._positions = torch.tensor(places, device=device)
        self._index = forecaster.horizons.index(horizon)
        self.scale = sigma * math.sqrt(horizon)  # one standard deviation to the horizon
        self._temperature = model.temperature[self._index]

    def figures(self) -> Figures:
        """Return what the network says of the rows as they are."""
        return self.without([])

    def without(self, bars: Sequence[int]) -> Figures:
        """Return what the network says when the rows of *bars* (0 is the oldest) are neutral."""
        rows = self._rows.clone()
        rows[torch.tensor(list(bars), dtype=torch.int64, device=rows.device)] = 0.0
        with torch.inference_mode():
            outputs = self._network(rows[None], self._positions)
        logits = outputs.direction_logits[0, -1, self._index].double() / self._temperature
        down, _, up = torch.softmax(logits, dim=-1).tolist()
        mean = float(outputs.mean[0, -1, self._index]) * self.scale
        return Figures(mean, up - down)

    def contributions(self, nodes: int = PATH_NODES) -> Contributions:
        """Return the integrated gradients of the mean return over the path from neutral rows."""
        moved = integrated_gradients(self._mean, self._rows, nodes=nodes)
        neutral = self.without(range(len(self.rows))).mean_return
        return Contributions(moved.cpu().numpy(), self.figures().mean_return, neutral)

    def shares(self, rollout: Floats) -> dict[str, float]:
        """Return each feature's share of |row × gradient| of the mean return; they sum to 1.

        Bars are weighed by their *rollout* [bar], oldest first.
        """
        rows = self._rows.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self._mean(rows), rows)
        found = feature_attribution(
            self._rows.double(), slope.double(), torch.from_numpy(rollout).to(slope.device)
        )
        return dict(zip(self.names, found.tolist(), strict=True))

    def looked(self, way: Way) -> Rollout:
        """Return where the decided bar looked, by *way*: weights [1, 1, bars], the newest ones.

        Raises ``AttentionInvalid`` where the network cannot be asked so.
        """
        found = look_by(self._network, self._rows[None], self._positions, way)
        return Rollout(found.weights.cpu(), found.l1_error.cpu())

    def _mean(self, rows: Tensor) -> Tensor:
        """Return the mean return [] of *rows* [bar, feature], differentiably."""
        outputs = self._network(rows[None], self._positions)
        mean: Tensor = outputs.mean[0, -1, self._index]
        return mean * self.scale


def integrated_gradients(
    answer: Callable[[Tensor], Tensor], inputs: Tensor, *, nodes: int = PATH_NODES
) -> Tensor:
    """Return how much each of *inputs* adds to the scalar *answer*, from zero: float64, same shape.

    Sundararajan, Taly and Yan (2017) with a baseline of zeros: ``x · ∫ ∇f(t x) dt`` over t in
    [0, 1], by Gauss-Legendre quadrature. The sum is ``f(x) - f(0)`` up to the quadrature's error.
    """
    points, weights = np.polynomial.legendre.leggauss(nodes)
    gradient = torch.zeros_like(inputs, dtype=torch.float64)
    for point, weight in zip((0.5 * (points + 1)).tolist(), (0.5 * weights).tolist(), strict=True):
        at = (inputs * point).detach().requires_grad_()
        (slope,) = torch.autograd.grad(answer(at), at)
        gradient += weight * slope.double()
    return inputs.double() * gradient
