"""What each head of a network does at its newest decisions, and how attention flows down.

The same for every network that attends: a stream reads the queries and keys that it keeps, a
network over whole windows makes a pass a decision. Positions that distilling has joined are carried
to the bars on which they rest.

The rule is docs/attention.md, A28.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.strategies.attention.heads import HeadReading, read_head, rows_by_age
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.forecasters.windowed import WindowedForecaster
from tracepaper.strategies.networks.architecture import LayerLook
from tracepaper.strategies.types import Bar

Floats = NDArray[np.float64]
DECISIONS: Final = 40
"""The newest decisions that heads are read from."""
_DECISIONS_MIN: Final = 2


@dataclass(frozen=True, slots=True)
class HeadsSeen:
    """What the heads do; layers from the lowest."""

    readings: tuple[tuple[HeadReading, ...], ...]  # [layer][head]
    by_age: Floats  # [layer, head, decision, age] the oldest decision first
    flow: Floats  # [layer, from group, to group], from the decision down; each layer sums to 1
    rollout: Floats  # [bar] what reaches each bar through all layers, oldest first; sums to 1


def look_into(
    forecaster: StreamingForecaster | WindowedForecaster,
    bars: Sequence[Bar],
    edges: Sequence[int],
) -> HeadsSeen:
    """Return what the heads do at the last decisions of *bars*, which are of one instrument.

    *edges* are the first ages, in bars, of the groups between which the flow is summed. Raises
    ``DataInvalid`` where *bars* are fewer than the model's context and one.
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
    looks = [forecaster.look_by_layer(instrument)]
    for bar in bars[1 - count :]:
        forecaster.step(bar)
        looks.append(forecaster.look_by_layer(instrument))
    decided = range(window - 1, window + count - 1)
    readings, by_age = [], []
    for layer in zip(*looks, strict=True):
        # Each decision's window begins a bar later: [head, decision, bar].
        laid = torch.zeros(len(layer[0].rows), count, window + count - 1)
        for at, one in enumerate(layer):
            laid[:, at, at : at + window] = one.rows[:, -window:].cpu()
        readings.append(tuple(read_head(head, decided, window) for head in laid))
        by_age.append(rows_by_age(laid, decided)[..., :window].double().numpy())
    flow, rollout = flow_down(looks[-1], edges)
    return HeadsSeen(tuple(readings), np.array(by_age), flow, rollout)


def flow_down(layers: Sequence[LayerLook], edges: Sequence[int]) -> tuple[Floats, Floats]:
    """Return the flow between groups of age, a layer from the top, and what reaches each bar.

    What a position holds passes to itself by half (the residual stream) and by half to those that
    the layer's mean head attends to; after all layers that is the rollout of the newest bar.
    """
    bars = layers[0].rows.shape[-1]
    count = group_count(bars, edges)
    ages = [torch.arange(bars - 1, -1, -1), *(layer.age.cpu() for layer in layers)]
    above, *below = [_groups(age, edges) for age in reversed(ages)]
    holds = torch.zeros(len(above))
    holds[-1] = 1.0
    flow = torch.zeros(len(layers), count, count)
    for place, (layer, under) in enumerate(zip(reversed(layers), below, strict=True)):
        by_group = torch.nn.functional.one_hot(above, count).T * holds  # [group, position]
        carried = layer.carry(by_group.to(layer.rows.device)).cpu()
        flow[place].index_add_(1, under, carried)
        above, holds = under, carried.sum(dim=0)
    return flow.double().numpy(), holds.double().numpy()


def group_count(bars: int, edges: Sequence[int]) -> int:
    """Return into how many groups of age *bars* fall."""
    return sum(edge < bars for edge in edges)


def _groups(age: Tensor, edges: Sequence[int]) -> Tensor:
    """Return the group that each *age* in bars belongs to."""
    return torch.searchsorted(torch.tensor(list(edges)), age, right=True) - 1
