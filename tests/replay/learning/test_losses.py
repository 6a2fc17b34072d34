"""Losses agree with their definitions and ignore unlabelled rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from tracepaper.replay.learning.losses import (
    LOSSES,
    _noise,
    averaged,
    elementwise,
    lost_utility,
    pinball,
    qlike,
    student_t_nll,
)
from tracepaper.replay.learning.statistics import VARIANCE_FLOOR
from tracepaper.strategies.networks.architecture import Outputs


def labelled(returns: Tensor, direction: Tensor, variance: Tensor) -> dict[str, Tensor]:
    return {"returns": returns, "direction": direction, "variance": variance}


def outputs(batch: int, time: int, horizons: int, *, seed: int = 0) -> Outputs:
    source = torch.Generator().manual_seed(seed)

    def drawn(*more: int) -> Tensor:
        return torch.randn(batch, time, horizons, *more, generator=source)

    return Outputs(
        mean=drawn(),
        log_scale=drawn() * 0.3,
        dof=3 + drawn().abs(),
        direction_logits=drawn(3),
        log_variance=drawn() * 0.3,
    )


@given(st.floats(-5, 5), st.floats(-1, 1), st.floats(-2, 2), st.floats(2.1, 50.0))
def test_student_t_agrees_with_scipy(
    value: float, mean: float, log_scale: float, dof: float
) -> None:
    ours = student_t_nll(
        *(torch.tensor(x, dtype=torch.float64) for x in (value, mean, log_scale, dof))
    )
    theirs = -stats.t.logpdf(value, dof, mean, np.exp(log_scale))
    np.testing.assert_allclose(float(ours), theirs, rtol=1e-9, atol=1e-9)


@given(st.floats(VARIANCE_FLOOR, 50.0), st.floats(-3, 3))
def test_qlike_is_zero_only_for_the_variance_itself(variance: float, log_forecast: float) -> None:
    actual = torch.tensor(variance, dtype=torch.float64)
    assert float(qlike(actual, torch.log(actual))) < 1e-12
    assert float(qlike(actual, torch.tensor(log_forecast, dtype=torch.float64))) >= 0.0


def test_a_market_that_stands_still_has_a_finite_loss() -> None:
    assert torch.isfinite(qlike(torch.zeros(3), torch.tensor([-6.0, 0.0, 6.0]))).all()


def test_an_unused_position_has_no_say_whatever_its_label() -> None:
    heads = outputs(1, 6, 2)
    returns, variance = torch.randn(1, 6, 2), torch.rand(1, 6, 2) + 0.1
    classes = torch.randint(0, 3, (1, 6, 2))
    weights = torch.ones(1, 6, 2)
    weights[:, 4:] = 0.0
    clean = averaged(elementwise(heads, labelled(returns, classes, variance), weights > 0), weights)
    returns[:, 4:], variance[:, 4:], classes[:, 4:] = torch.nan, torch.nan, -1
    dirty = averaged(elementwise(heads, labelled(returns, classes, variance), weights > 0), weights)
    torch.testing.assert_close(clean, dirty, rtol=0, atol=0)


def test_pinball_is_least_at_the_quantile() -> None:
    value = torch.randn(20_000, generator=torch.Generator().manual_seed(5))
    level = 0.2
    truth = float(torch.quantile(value, level))

    def loss(guess: float) -> float:
        return float(pinball(value, torch.full((20_000, 1), guess), (level,)).mean())

    assert loss(truth) < min(loss(truth - 0.1), loss(truth + 0.1))


def test_the_best_allocation_is_mean_by_mean_square() -> None:
    value = torch.randn(20_000, generator=torch.Generator().manual_seed(6)) + 0.3
    best = float(value.mean() / (value * value).mean())

    def loss(position: float, cost: float = 0.0) -> float:
        return float(lost_utility(value, torch.tensor(position), torch.tensor(cost)).mean())

    assert loss(best) < min(loss(best - 0.05), loss(best + 0.05))
    # Net of costs the mean is lower by the cost, and one below it is worth no position.
    net = value - 0.2
    best = float(net.mean() / (net * net).mean())
    assert loss(best, 0.2) < min(loss(best - 0.05, 0.2), loss(best + 0.05, 0.2))
    assert loss(0.0, 0.4) < min(loss(-0.05, 0.4), loss(0.05, 0.4))


def test_extra_heads_add_to_the_loss_of_the_return_alone() -> None:
    plain = outputs(1, 4, 2)
    rich = plain._replace(allocation=torch.ones(1, 4, 2), quantiles=torch.zeros(1, 4, 2, 3))
    labels = (torch.ones(1, 4, 2), torch.zeros(1, 4, 2).long(), torch.ones(1, 4, 2))
    used = torch.ones(1, 4, 2, dtype=torch.bool)
    costed = labelled(*labels) | {"cost": torch.zeros(1, 4, 2)}
    added = elementwise(rich, costed, used, (0.1, 0.5, 0.9))
    added = added - elementwise(plain, labelled(*labels), used)
    # Pinball of 1 above 0 is the mean level; a unit held of a unit gained loses -1 + 1/2.
    torch.testing.assert_close(added[0], torch.full((1, 4, 2), 0.5 - 0.5))
    torch.testing.assert_close(added[1:], torch.zeros(2, 1, 4, 2))


def test_nothing_used_costs_nothing() -> None:
    heads, empty = outputs(1, 4, 2), torch.zeros(1, 4, 2)
    losses = elementwise(heads, labelled(empty, empty.long() - 1, empty + 1), empty > 0)
    assert averaged(losses, empty).abs().sum() == 0.0


def test_a_score_of_one_day_of_validation_is_of_the_size_of_its_losses() -> None:
    """There is no error over days; losses that do not vary have the unit 1."""
    losses = np.stack([np.linspace(0.0, 2.0, 50), np.full(50, 3.0)])[:, :, None]
    losses = np.concatenate([losses, losses, losses])[: len(LOSSES)]
    unit = _noise(losses, np.ones((50, 1), dtype=np.float32), np.zeros(50, dtype=np.int64))
    assert unit[0, 0] == pytest.approx(losses[0].std())
    assert unit[1, 0] == 1.0
