"""What a network says of each bar: return distribution, direction, volatility, allocation."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

DIRECTIONS: Final = 3  # down, flat, up
LOG_RANGE: Final = 6.0
DOF_MIN: Final = 2.1
"""Degrees of freedom stay above 2, where a Student-t still has a variance."""


class Outputs(NamedTuple):
    """One forecast a position; returns are in units of ``sigma_t * sqrt(horizon)``."""

    mean: Tensor  # [batch, time, horizon], the Student-t's location
    log_scale: Tensor  # [batch, time, horizon], in [-LOG_RANGE, LOG_RANGE]
    dof: Tensor  # [batch, time, horizon], above DOF_MIN
    direction_logits: Tensor  # [batch, time, horizon, 3]: down, flat, up
    log_variance: Tensor  # [batch, time, horizon], of the same scaled return
    allocation: Tensor | None  # [batch, time, horizon] in [-1, 1]
    quantiles: Tensor | None  # [batch, time, horizon, quantile], ascending

    def by_stream(self, streams: int) -> Outputs:
        """Return outputs [1, stream * time, …] as [stream, time, …]: views."""
        return Outputs._make(None if x is None else x[0].unflatten(0, (streams, -1)) for x in self)

    def first(self, bars: int) -> Outputs:
        """Return the outputs of the first *bars* positions."""
        kept = [None if x is None else x[:, :bars] for x in self]
        return Outputs._make(kept)

    def cpu(self) -> Outputs:
        """Return the outputs on the CPU, without a copy where they are there."""
        return Outputs._make(None if x is None else x.cpu() for x in self)


class Heads(nn.Module):
    """One linear layer over the last state; its slices become ``Outputs``."""

    def __init__(self, dim: int, horizons: int, quantiles: int, *, allocation: bool) -> None:
        super().__init__()
        self.widths = [1, 1, 1, DIRECTIONS, 1, int(allocation), quantiles]
        self.horizons = horizons
        self.project = nn.Linear(dim, horizons * sum(self.widths))
        # Start at "nothing is known": mean 0, scale and variance 1, even odds.
        nn.init.normal_(self.project.weight, std=0.01)
        nn.init.zeros_(self.project.bias)

    def forward(self, state: Tensor) -> Outputs:
        """Map *state* [batch, time, dim] to the outputs."""
        raw: Tensor = self.project(state)
        raw = raw.unflatten(-1, (self.horizons, -1))  # [batch, time, horizon, width]
        mean, scale, dof, direction, variance, allocation, quantiles = raw.split(self.widths, -1)
        return Outputs(
            mean=mean.squeeze(-1),
            log_scale=_bounded(scale.squeeze(-1)),
            dof=DOF_MIN + functional.softplus(dof.squeeze(-1) + 2.0),
            direction_logits=direction,
            log_variance=_bounded(variance.squeeze(-1)),
            allocation=torch.tanh(allocation.squeeze(-1)) if self.widths[5] else None,
            quantiles=_ascending(quantiles) if self.widths[6] else None,
        )


def _bounded(raw: Tensor) -> Tensor:
    """Return *raw* where it is small, and never beyond ``LOG_RANGE``."""
    return LOG_RANGE * torch.tanh(raw / LOG_RANGE)


def _ascending(raw: Tensor) -> Tensor:
    """Return quantiles that cannot cross: a lowest one and positive steps."""
    steps = functional.softplus(raw[..., 1:])
    return torch.cat((raw[..., :1], raw[..., :1] + steps.cumsum(-1)), dim=-1)
