"""The losses of the heads, per horizon, on masked bars: NLL, cross-entropy, QLIKE and pinball."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tracepaper.replay.training.targets import NO_LABEL, VARIANCE_FLOOR
from tracepaper.strategies.networks.heads import Outputs

TASKS: Final = ("return", "direction", "volatility")


def student_t_nll(value: Tensor, mean: Tensor, log_scale: Tensor, dof: Tensor) -> Tensor:
    """Return the negative log density of a located and scaled Student t, elementwise."""
    squared = ((value - mean) * torch.exp(-log_scale)) ** 2
    return (
        torch.lgamma(dof / 2)
        - torch.lgamma((dof + 1) / 2)
        + 0.5 * torch.log(dof * math.pi)
        + log_scale
        + 0.5 * (dof + 1) * torch.log1p(squared / dof)
    )


def qlike(variance: Tensor, log_forecast: Tensor) -> Tensor:
    """Return v ÷ f - log(v ÷ f) - 1, elementwise: zero for a perfect forecast (Patton, 2011)."""
    log_ratio = torch.log(torch.clamp(variance, min=VARIANCE_FLOOR)) - log_forecast
    return torch.exp(log_ratio) - log_ratio - 1


def pinball(value: Tensor, quantiles: Tensor, levels: Sequence[float]) -> Tensor:
    """Return the mean pinball loss of [.., level] *quantiles* (Koenker and Bassett, 1978)."""
    level = torch.tensor(levels, device=value.device)
    missed = value[..., None] - quantiles
    return torch.maximum(level * missed, (level - 1) * missed).mean(-1)


def lost_utility(value: Tensor, allocation: Tensor) -> Tensor:
    """Return the negative quadratic utility of holding *allocation* units of the scaled return.

    Its best answer is the mean divided by the mean square: Kelly's share, cut at one.
    """
    gain = allocation * value
    return 0.5 * gain * gain - gain


def elementwise(
    outputs: Outputs,
    returns: Tensor,
    direction: Tensor,
    variance: Tensor,
    used: Tensor,
    levels: Sequence[float] = (),
) -> Tensor:
    """Return [task, batch, time, horizon] losses; labels and *used* are [batch, time, horizon].

    Quantiles (at *levels*) and allocation, where the network has them, add to the return's loss.
    Where *used* is false a label may hold anything, and its losses mean nothing.
    """
    value = torch.where(used, returns, torch.zeros_like(returns))
    realised = torch.where(used, variance, torch.ones_like(variance))
    classes = torch.where(used, direction, torch.full_like(direction, NO_LABEL))
    entropy = functional.cross_entropy(
        outputs.direction_logits.flatten(0, -2),
        classes.flatten(),
        ignore_index=NO_LABEL,
        reduction="none",
    ).view(classes.shape)
    price = student_t_nll(value, outputs.mean, outputs.log_scale, outputs.dof)
    if outputs.quantiles is not None:
        price = price + pinball(value, outputs.quantiles, levels)
    if outputs.allocation is not None:
        price = price + lost_utility(value, outputs.allocation)
    return torch.stack([price, entropy, qlike(realised, outputs.log_variance)])


def as_float32(outputs: Outputs) -> Outputs:
    """Return *outputs* in float32, in which the losses are computed."""
    return outputs._replace(
        mean=outputs.mean.float(),
        log_scale=outputs.log_scale.float(),
        dof=outputs.dof.float(),
        direction_logits=outputs.direction_logits.float(),
        log_variance=outputs.log_variance.float(),
        allocation=None if outputs.allocation is None else outputs.allocation.float(),
        quantiles=None if outputs.quantiles is None else outputs.quantiles.float(),
    )


def averaged(each: Tensor, weights: Tensor) -> Tensor:
    """Return [task, horizon] means of [task, batch, time, horizon] losses by *weights*."""
    total = torch.clamp(weights.sum((0, 1)), min=1e-9)  # [horizon]
    return (each * weights).sum((1, 2)) / total


class TaskWeights(nn.Module):
    """Weights of [task, horizon] losses: all one, or learnt as log variances.

    Source of the learnt form: Kendall, Gal and Cipolla, 2018.
    """

    def __init__(self, horizons: int, *, learned: bool) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(len(TASKS), horizons), requires_grad=learned)

    def forward(self, each: Tensor, active: Tensor) -> Tensor:
        """Return the weighted sum of [task, horizon] losses over the *active* ones."""
        weighted = torch.exp(-self.log_variance) * each + self.log_variance
        return (weighted * active).sum()
