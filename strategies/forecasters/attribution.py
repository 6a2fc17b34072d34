"""Attribution of one forecast: occluded rows, integrated gradients, and single heads.

The rollout shows where attention flowed. The first two run the network itself: they measure the
forecast without some rows, and the contribution of each number to it.

This works for every network that attends: a stream reads the queries and keys that it keeps, and a
network over whole windows makes one pass per decision. Weights on positions that distilling joined
are carried down to bars.

The rule is docs/attention.md, A28.
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

from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.features import rows as features
from tracepaper.strategies.forecasters.passes import relevance_of
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.forecasters.tabular import network_member
from tracepaper.strategies.forecasters.windowed import WindowedForecaster
from tracepaper.strategies.heads import (
    HeadFigures,
    HeadReading,
    Ties,
    feature_attribution,
    head_figures,
    read_head,
    rows_by_age,
    ties_of,
)
from tracepaper.strategies.networks.architecture import BarWeights, LayerAttribution
from tracepaper.strategies.types.market import Bar

Floats = NDArray[np.float64]
Rows = NDArray[np.float32]

PATH_NODES: Final = 8
"""Gauss-Legendre nodes of the path integral: exact where the answer along the path is a polynomial
of degree 16, and within 1e-4 of the forecast for the default model."""


Attending = StreamingForecaster | WindowedForecaster
"""The forecasters whose network may attend."""


def attending(forecaster: Forecaster) -> Attending | None:
    """Return *forecaster*, or an ensemble's network, if its network attends; else None."""
    network = network_member(forecaster)
    if isinstance(network, WindowedForecaster) and not network.attends:
        return None
    return network if isinstance(network, Attending) else None


class Figures(NamedTuple):
    """The network's output at one horizon."""

    mean_return: float  # log return, as in ``Forecast``
    lean: float  # p_up - p_down


@dataclass(frozen=True, slots=True)
class Contributions:
    """How much each number of each row adds to the mean return (integrated gradients)."""

    mean_return: Floats  # [bar, feature], log return; oldest bar first
    relevance: Floats  # [bar], the same by one backward pass under the rules of relevance
    forecast: float  # the mean return of the rows, unchanged
    neutral: float  # the mean return of neutral rows: where the path starts

    @property
    def gap(self) -> float:
        """The contributions' sum less ``forecast - neutral``; 0 if the integral is exact."""
        return float(self.mean_return.sum()) - (self.forecast - self.neutral)


class Probe:
    """The rows of one decision and their network, to measure the effect of changed rows.

    A neutral row is zero: every feature is scaled so that 0 is its ordinary value (or, for the
    hour and the weekday, no time at all), and 0 replaces values that are not finite. The scale of
    the forecast, σ of the decided bar, does not change.
    """

    def __init__(
        self,
        forecaster: Attending,
        bars: Sequence[Bar],
        *,
        horizon: int,
    ) -> None:
        """Take the newest of *bars* that the network needs; the last is the decided bar.

        Raises ``DataInvalid`` if they are too few or the decided bar's row is not finite.
        """
        model = forecaster.model
        if len(bars) < forecaster.context:
            raise DataInvalid(
                f"The model looks back on {forecaster.context} bars, not {len(bars)}; give more."
            )
        recent = bars[-(forecaster.receptive_field + model.schema.lookback - 1) :]
        block = features.compute(model.schema, features.columns(recent))
        sigma = float(block.sigma[-1])
        if not (math.isfinite(sigma) and bool(np.isfinite(block.values[-1]).all())):
            raise DataInvalid(
                f"The features of the bar at {recent[-1].open_time_ms} are not finite, so it has "
                "no forecast to explain; choose another decision."
            )
        decided = recent[block.first :]
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
        """Return the network's output for the unchanged rows."""
        return self.without([])

    def without(self, bars: Sequence[int]) -> Figures:
        """Return the network's output when the rows of *bars* (0 is the oldest) are neutral."""
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
        return Contributions(
            moved.cpu().numpy(), self.relevance().sum(axis=1), self.figures().mean_return, neutral
        )

    def relevance(self) -> Floats:
        """Return the relevance [bar, feature] of each number for the mean return, in log returns.

        It takes one backward pass; with the share of biases the sum is the forecast.
        """
        return self.scale * relevance_of(self._network, self._rows, self._positions, self._index)

    def shares(self, rollout: Floats) -> dict[str, float]:
        """Return each feature's share of |row × gradient| of the mean return; they sum to 1.

        Bars are weighted by their *rollout* [bar], oldest first.
        """
        rows = self._rows.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self._mean(rows), rows)
        shares = feature_attribution(
            self._rows.double(), slope.double(), torch.from_numpy(rollout).to(slope.device)
        )
        return dict(zip(self.names, shares.tolist(), strict=True))

    def attended(self, method: Rollout) -> BarWeights:
        """Return the attention of the decided bar by *method*: weights [1, 1, bars] of the newest.

        Raises ``AttentionInvalid`` if the network does not support the method.
        """
        rollout = self._network.explain(self._rows[None], self._positions, method).rollout
        return BarWeights(rollout.weights.cpu(), rollout.l1_error.cpu())

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


DECISIONS: Final = 40
"""The newest decisions from which heads are analysed."""
ROWS_MAX: Final = 512
"""Rows of a map; a longer window is sampled evenly."""
_DECISIONS_MIN: Final = 2


@dataclass(frozen=True, slots=True)
class RolloutMap:
    """The rollout of each of the newest positions, an exact row each.

    All rows come from one pass. Under a causal mask each is the rollout of that bar's decision.
    """

    ages: NDArray[np.int64]  # [row] age in bars of the position's newest bar; falling
    weights: Floats  # [row, bar] of the newest bars, oldest first
    older: Floats  # [row] on older bars


@dataclass(frozen=True, slots=True)
class HeadActivity:
    """The analysis of the heads; layers from the lowest."""

    readings: tuple[tuple[HeadReading, ...], ...]  # [layer][head]
    figures: tuple[tuple[HeadFigures, ...], ...]  # [layer][head]
    ties: tuple[tuple[Ties | None, ...], ...]  # [layer][head]
    by_age: Floats  # [layer, head, decision, age] the oldest decision first
    flow: Floats  # [layer, from group, to group], from the decision down; each layer sums to 1
    rollout: Floats  # [bar] the mass that reaches each bar through all layers, oldest first
    map: RolloutMap


def head_activity(
    forecaster: Attending,
    bars: Sequence[Bar],
    edges: Sequence[int],
) -> HeadActivity:
    """Return the activity of the heads at the last decisions of *bars* of one instrument.

    *edges* are the first ages, in bars, of the groups between which the flow is summed. Raises
    ``DataInvalid`` unless there are more *bars* than the model's context.
    """
    needed = forecaster.context + _DECISIONS_MIN - 1
    if len(bars) < needed:
        raise DataInvalid(
            f"The run holds {len(bars):,} bars of {bars[-1].instrument} and its model's heads are "
            f"read from {needed:,}; leave --heads out."
        )
    window = forecaster.model.network.config.window
    count = min(DECISIONS, len(bars) - forecaster.context + 1)
    instrument = bars[-1].instrument
    forecaster.warm(instrument, bars[: 1 - count])
    attributions = [forecaster.attribution_by_layer(instrument)]
    for bar in bars[1 - count :]:
        forecaster.step(bar)
        attributions.append(forecaster.attribution_by_layer(instrument))
    decided = range(window - 1, window + count - 1)
    readings, figures, ties, by_age = [], [], [], []
    series = _series(bars[-(window + count - 1) :])
    for layer in zip(*attributions, strict=True):
        # Each decision's window begins a bar later: [head, decision, bar].
        laid = torch.zeros(len(layer[0].rows), count, window + count - 1)
        for at, attribution in enumerate(layer):
            laid[:, at, at : at + window] = attribution.rows[:, -window:].cpu()
        readings.append(tuple(read_head(head, decided, window) for head in laid))
        figures.append(tuple(head_figures(laid, decided, window)))
        ties.append(tuple(ties_of(head, decided, window, *series) for head in laid))
        by_age.append(rows_by_age(laid, decided)[..., :window].double().numpy())
    flow, rollout = flow_down(attributions[-1], edges)
    return HeadActivity(
        tuple(readings),
        tuple(figures),
        tuple(ties),
        np.array(by_age),
        flow,
        rollout,
        map_of(forecaster, attributions[-1]),
    )


def _series(bars: Sequence[Bar]) -> tuple[Tensor, Tensor, Tensor]:
    """Return volume, log of high over low and size of the log return of *bars*, [bar] each."""
    table = torch.tensor(
        [[bar.volume, bar.high, bar.low, bar.close] for bar in bars], dtype=torch.float64
    )
    volume, high, low, close = table.T
    move_sizes = close.log().diff(prepend=close[:1].log()).abs()
    return volume, (high / low).log(), move_sizes


def map_of(forecaster: Attending, layers: Sequence[LayerAttribution]) -> RolloutMap:
    """Return the map of the newest bars: at most those that a layer sees, and only exact rows."""
    time, window = layers[0].rows.shape[-1], forecaster.model.network.config.window
    # The windows of a stream's oldest bars began before the kept bars, so their rows are not exact.
    exact = time - window + 1 if forecaster.streams or time > window else time
    return rollout_map(layers, min(time, window, max(exact, 1)))


def rollout_map(layers: Sequence[LayerAttribution], bars: int) -> RolloutMap:
    """Return the rollout of each of the newest positions, over the newest *bars* bars.

    There are at most ``ROWS_MAX`` positions, evenly spaced. Of several that end at one bar the last
    counts: it covers the fewest bars.
    """
    place_of = {age: place for place, age in enumerate(layers[-1].age.tolist()) if age < bars}
    ages = np.array(sorted(place_of, reverse=True), dtype=np.int64)
    if len(ages) > ROWS_MAX:
        ages = ages[np.linspace(0, len(ages) - 1, ROWS_MAX).round().astype(np.int64)]
    rows = layers[0].rows.new_zeros(len(ages), len(layers[-1].age))
    rows[range(len(ages)), [place_of[age] for age in ages.tolist()]] = 1.0
    for layer in reversed(layers):
        rows = layer.carry(rows)
    weights = rows.double().cpu().numpy()
    weights /= weights.sum(axis=1, keepdims=True)
    newest = weights[:, -bars:]
    return RolloutMap(ages, newest, np.maximum(1.0 - newest.sum(axis=1), 0.0))


def flow_down(layers: Sequence[LayerAttribution], edges: Sequence[int]) -> tuple[Floats, Floats]:
    """Return the flow between groups of age, by layer from the top, and the mass on each bar.

    Half of a position's mass stays (the residual stream) and half goes where the layer's mean head
    attends, or a stream follows its own method. After all layers this is the newest bar's rollout.
    """
    bars = layers[0].rows.shape[-1]
    count = group_count(bars, edges)
    ages = [torch.arange(bars - 1, -1, -1), *(layer.age.cpu() for layer in layers)]
    begins = torch.tensor(list(edges))
    above, *below = [torch.searchsorted(begins, age, right=True) - 1 for age in reversed(ages)]
    mass = torch.zeros(len(above))
    mass[-1] = 1.0
    flow = torch.zeros(len(layers), count, count)
    for place, (layer, under) in enumerate(zip(reversed(layers), below, strict=True)):
        by_group = torch.nn.functional.one_hot(above, count).T * mass  # [group, position]
        carried = layer.carry(by_group.to(layer.rows.device)).cpu()
        flow[place].index_add_(1, under, carried)
        above, mass = under, carried.sum(dim=0)
    return flow.double().numpy(), mass.double().numpy()


def group_count(bars: int, edges: Sequence[int]) -> int:
    """Return the number of age groups of *bars* bars."""
    return sum(edge < bars for edge in edges)
