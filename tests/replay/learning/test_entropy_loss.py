"""The auxiliary loss of entropy: its definition, its gradient and its effect."""

from __future__ import annotations

import math

import models
import numpy as np
import pytest
import torch

from tracepaper.replay.learning.losses import confidence_loss, traced, trained_confidence
from tracepaper.strategies.attention.methods import confidence
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.lstm import LstmConfig, LstmNetwork

ROWS = 48


def test_the_confidence_that_is_trained_is_the_one_that_gates() -> None:
    network = models.network()
    reads = network.trace(torch.randn(2, ROWS, network.config.features), torch.arange(ROWS)).reads
    gated = torch.stack(confidence(reads, range(ROWS)), dim=1).mean(dim=(1, 2))
    tensor = trained_confidence(reads)
    torch.testing.assert_close(tensor, gated, atol=1e-5, rtol=0)


def test_it_is_the_correlation_of_confidence_with_the_rows_losses() -> None:
    generator = torch.Generator().manual_seed(5)
    sure = torch.rand(2, ROWS, generator=generator)
    each = torch.rand(3, 2, ROWS, 2, generator=generator)
    weights = torch.ones(2, ROWS, 2)
    weights[0, :9] = 0.0
    each[:, 0, :9] = math.nan  # where nothing is labelled a loss means nothing
    used = weights[..., 0] > 0
    kept = each[:, used].numpy()
    standardised = (kept - kept.mean(1, keepdims=True)) / kept.std(1, keepdims=True)
    wanted = np.corrcoef(sure[used].numpy(), standardised.mean((0, 2)))[0, 1]
    assert float(confidence_loss(sure, each, weights)) == pytest.approx(wanted, abs=1e-5)
    wrong = each[:, used].mean((0, 2))
    values = torch.zeros_like(sure)
    values[used] = -wrong
    assert float(confidence_loss(values, each, weights)) < -0.95
    assert float(confidence_loss(-values, each, weights)) > 0.95


@pytest.mark.parametrize("labelled", [0, 1, ROWS])
def test_where_nothing_varies_it_is_zero_and_has_a_finite_gradient(labelled: int) -> None:
    sure = torch.full((1, ROWS), 0.25, requires_grad=True)
    weights = torch.zeros(1, ROWS, 2)
    weights[:, :labelled] = 1.0
    tensor = confidence_loss(sure, torch.ones(3, 1, ROWS, 2), weights)
    assert float(tensor) == 0.0
    if tensor.requires_grad:
        (gradient,) = torch.autograd.grad(tensor, sure)
        assert torch.isfinite(gradient).all()


def test_its_gradient_reaches_the_attention_alone_and_teaches_it_to_be_sure_where_it_is_right() -> (
    None
):
    torch.manual_seed(3)
    network = models.network().train()
    x = torch.randn(2, ROWS, network.config.features)
    # A row's loss is known from its first feature: an attention that can tell says so.
    each = (x[..., 0] > 0).float()[None, ..., None].requires_grad_()
    weights = torch.ones(2, ROWS, 1)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        reads = network.trace(x, torch.arange(ROWS)).reads
        loss = confidence_loss(trained_confidence(reads), each, weights)
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert each.grad is None
    assert all(parameter.grad is None for parameter in network.heads.parameters())
    assert losses[-1] < losses[0] - 0.5
    assert losses[-1] < -0.6


def test_other_networks_are_refused() -> None:
    lstm = LstmNetwork(LstmConfig(features=3, dim=8, layers=1, window=8, horizons=(1,)))
    with pytest.raises(ConfigInvalid, match="entropy_weight is for the kind flash"):
        traced(lstm)
