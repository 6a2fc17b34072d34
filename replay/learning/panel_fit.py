"""Fit a network over several assets: its heads, relative returns and, of a portfolio, its weights.

Losses are those of the other networks, over all assets alike, and Huber's of the relative return.
A portfolio's weights are held for ``every`` bars and lose a fee of what is traded in between.

The rules are docs/several.md, P25 and P26.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from tracepaper.replay.learning.card import ROUND_TRIP_COST
from tracepaper.replay.learning.fit import FitOptions, Objective, Progress, device_of, loss_shares
from tracepaper.replay.learning.losses import as_float32, averaged, elementwise
from tracepaper.replay.learning.panel import AlignedBatch, AlignedChunks, Labelled, answered
from tracepaper.strategies.networks.cross_asset import (
    CrossAssetNetwork,
    PortfolioCosts,
    correlation_loss,
    portfolio_loss,
    relative_loss,
)

AVERSION: Final = 0.1
"""Price of variance in a portfolio's loss, in units of a usual return over the time held."""
_VALIDATED: Final = 8
"""Batches of the validation part that are judged at a time."""


def usual_return(training: Sequence[Labelled], every: int) -> float:
    """Return the standard deviation of equal weights' returns over *every* bars in *training*.

    Of returns that end within the part.
    """
    found = []
    for one in training:
        column = one.samples[0].horizons.index(every)
        within = np.flatnonzero(one.samples[0].weights[:, column] > 0)
        rows = one.panel.decisions(within, every)
        moves = np.expm1(one.panel.moves(every)[:, rows]).mean(axis=0)
        found.append(moves[np.isfinite(moves)])
    return float(np.concatenate(found).std())


def usual_error(training: Sequence[Labelled], horizons: Sequence[int]) -> Tensor:
    """Return how far correlations lie from their mean in *training*, squared: [horizon], or 1."""
    found = np.ones(len(horizons))
    parts = [one.panel.correlations(horizons)[:, one.rows] for one in training]
    for at in range(len(horizons)):
        came = np.concatenate([part[..., at] for part in parts], axis=1)
        came = came[:, np.isfinite(came).all(axis=0)]
        if came.shape[1] and (usual := float(came.var(axis=1).mean())) > 0.0:
            found[at] = usual
    return torch.from_numpy(found).float()


class CrossSection(Objective[AlignedBatch]):
    """What a network over several assets learns; its score is the mean validation loss, below 0."""

    def __init__(
        self,
        network: CrossAssetNetwork,
        training: Sequence[Labelled],
        validation: Sequence[Labelled],
        options: FitOptions,
    ) -> None:
        config = network.config
        self.network: CrossAssetNetwork = network
        self._options = options
        self._device = device_of(network)
        self._assets = torch.arange(len(config.symbols), device=self._device)
        self._chunks = AlignedChunks(training, network, length=options.length, batch=options.batch)
        self._validation = AlignedChunks(
            validation, network, length=options.length, batch=options.batch
        )
        shares = torch.from_numpy(loss_shares(config.horizons, options)).float()
        self._shares = shares.to(self._device)
        self._costs = PortfolioCosts(
            fee=ROUND_TRIP_COST / 2.0, unit=usual_return(training, config.every), aversion=AVERSION
        )
        usual = usual_error(training, config.horizons) if config.factors else torch.ones(1)
        self._usual = usual.to(self._device)

    def batches(self, done: int) -> Iterator[AlignedBatch]:
        """Yield the batches after *done* others."""
        generator = np.random.default_rng(self._options.seed)
        return islice((self._chunks.drawn(generator) for _ in count()), done, None)

    def gradient(self, batch: AlignedBatch) -> tuple[float, int]:
        """Add the gradient of *batch*; return its loss, and the bars of all assets."""
        loss = self._loss(self.network, batch)
        torch.autograd.backward(loss / self._options.accumulate)
        bars = int((batch.weights > 0).any(-1).sum()) * batch.relative.shape[1]
        return float(loss.detach()), bars

    def validate(self, network: nn.Module, progress: Progress) -> float:
        """Return the mean loss over the validation part, below 0."""
        assert isinstance(network, CrossAssetNetwork)
        network.eval()
        with torch.inference_mode():
            found = [float(self._loss(network, b)) for b in self._validation.spread(_VALIDATED)]
        score = -sum(found) / len(found)
        progress.scores = [[score]]
        return score

    def _loss(self, network: CrossAssetNetwork, batch: AlignedBatch) -> Tensor:
        """Return the sum of all losses of *batch*, each by its share."""
        batch = batch.to(self._device)
        said = answered(network, self._assets, batch)
        assets = batch.relative.shape[1]
        weights = batch.weights.repeat_interleave(assets, dim=0)  # [batch * asset, row, horizon]
        each = elementwise(
            as_float32(said.each.map(lambda part: part.flatten(0, 1))),
            {name: label.flatten(0, 1) for name, label in batch.labels.items()},
            weights > 0,
        )
        total = (averaged(each, weights) * self._shares).sum()
        apart = relative_loss(said, batch.relative).flatten(0, 1)[None]
        total = total + (averaged(apart, weights)[0] * self._shares[0]).sum()
        if said.loadings is not None and batch.came is not None:
            total = total + (self._apart(said.loadings, batch.came, batch.weights)).sum()
        if said.allocation is None:
            return total
        held = said.allocation
        if batch.decided.shape[1] != held.shape[2]:  # a decision is some of a chunk's rows
            at = batch.decided[:, None].expand(-1, assets, -1)
            held = held.gather(2, at)
        return total + portfolio_loss(held, batch.gains, self._costs)

    def _apart(self, loadings: Tensor, came: Tensor, weights: Tensor) -> Tensor:
        """Return the correlations' squared error, in units of a usual one, by its share: [horizon].

        A horizon without a known correlation has 0.
        """
        known = came.isfinite().all(dim=1) & (weights > 0)  # [batch, row, horizon]
        errors = correlation_loss(loadings, came).mean(dim=-1) * known
        mean = errors.sum(dim=(0, 1)) / known.sum(dim=(0, 1)).clamp_min(1)
        return mean / self._usual * self._shares[0]
