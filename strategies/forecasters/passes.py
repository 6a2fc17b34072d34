"""Passes over the newest rows of each instrument, which extend every answer.

Passes with dropout run for each bar separately, so that a live step, a scan and a resumed run
agree. The bar's open time seeds the masks, and no other random numbers change. Source: Gal and
Ghahramani, 2016.

The rules are docs/decisions.md, G40, and docs/attention.md, A38.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from tracepaper.strategies.attention.propagation import relevance, relevance_rules
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.base import FeatureWindow, RowPasses, Rows
from tracepaper.strategies.forecasters.outputs import TrainedModel
from tracepaper.strategies.networks.architecture import Network
from tracepaper.strategies.time_buckets import buckets_of, units_of
from tracepaper.strategies.types.decisions import Forecast, HeadForecasts

DROPOUT_SPREAD: Final = "dropout_spread"
"""The measure that passes with dropout give, a field of ``HeadForecasts``."""


class DropoutPasses(RowPasses):
    """Passes with dropout; they add the spread of their means."""

    def __init__(self, model: TrainedModel, passes: int) -> None:
        """Make *passes* at each bar through the network of *model*, which has dropout."""
        super().__init__(model)
        self._passes = passes

    def _extended(self, answer: Forecast, window: FeatureWindow, sigma: float) -> Forecast:
        # A standard deviation in log returns: outputs are in units of σ √horizon.
        spread = self._spread(window, int(window.opened[-1])) * sigma * np.sqrt(answer.horizons)
        heads = replace(
            answer.heads or HeadForecasts(), dropout_spread=spread.astype("<f4").tobytes()
        )
        return replace(answer, heads=heads)

    def _spread(self, window: FeatureWindow, seed: int) -> Array:
        """Return the sample standard deviation over passes of each horizon's mean: [horizon]."""
        network = self._model.network
        rows, positions = self._inputs(window)
        dropping = network.dropping()
        cuda = [network.device] if network.device.type == "cuda" else []
        try:
            for module in dropping:
                module.train()
            with torch.random.fork_rng(devices=cuda), torch.inference_mode():
                torch.manual_seed(seed)
                batch = rows.expand(self._passes, -1, -1)
                means = network(batch, positions).mean[:, -1].double().cpu().numpy()
        finally:
            for module in dropping:
                module.eval()
        spread: Array = means.std(axis=0, ddof=1)
        return spread


class RelevancePasses(RowPasses):
    """One pass forward and one back; the relevance of each block replaces its stored rollout."""

    def __init__(self, model: TrainedModel, horizon: int | None) -> None:
        """Explain the mean return of *model* at *horizon*, or at its first if it lacks that.

        Raises ``AttentionInvalid`` for a network whose answer cannot be differentiated.
        """
        super().__init__(model)
        config = model.network.config
        self._index = config.horizons.index(horizon) if horizon in config.horizons else 0
        rows = torch.zeros(config.receptive_field, config.features, device=model.network.device)
        positions = torch.arange(len(rows), device=rows.device)
        relevance_of(model.network, rows, positions, self._index)  # raises now, not at a bar

    def by_bar(self, instrument: str) -> Array:
        """Return the signed shares of *instrument*'s newest bars [bar], oldest first."""
        by_bar, blocks = self._contributions(self._windows[instrument])
        return by_bar / _size(blocks)

    def _extended(self, answer: Forecast, window: FeatureWindow, sigma: float) -> Forecast:
        del sigma  # shares have no unit
        if answer.explanation is None or not np.isfinite(answer.mean_return[self._index]):
            return answer  # gates refuse it
        _, blocks = self._contributions(window)
        shares = (blocks / _size(blocks)).astype("<f4")
        explanation = replace(
            answer.explanation,
            buckets=units_of(shares[None, :-1])[0],
            older_mass=float(shares[-1]),
            l1_error=abs(1.0 - float(np.abs(shares).sum(dtype=np.float64))),
        )
        return replace(answer, explanation=explanation)

    def _contributions(self, window: FeatureWindow) -> tuple[Array, Rows]:
        """Return the contribution of each bar of *window* [bar], and of each block of time."""
        by_bar = relevance_of(self._model.network, *self._inputs(window), self._index).sum(axis=1)
        return by_bar, buckets_of(by_bar, window.positions)


def relevance_of(network: Network, rows: Tensor, positions: Tensor, index: int) -> Array:
    """Return the contribution [bar, feature] of each number of *rows* to one horizon's mean.

    *index* is the place of the horizon. Contributions are in units of σ √horizon, by one backward
    pass; with the share of biases they sum to the mean.
    """
    inputs = rows.detach().requires_grad_()
    with relevance_rules(network):
        added = relevance(network(inputs[None], positions).mean[0, -1, index], inputs)
    contributions: Array = added.double().cpu().numpy()
    return contributions


def _size(blocks: Rows) -> float:
    """Return the sum of the absolute values of *blocks*, above 0, to scale shares by."""
    return max(float(np.abs(blocks).sum(dtype=np.float64)), float(np.finfo(np.float64).tiny))
