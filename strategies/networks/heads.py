"""What a network says of each bar: return distribution, direction, volatility, allocation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def map(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        """Return *change* of every head that the network has."""
        return Outputs._make(None if x is None else change(x) for x in self)

    def by_stream(self, streams: int) -> Outputs:
        """Return outputs [1, stream * time, …] as [stream, time, …]: views."""
        return self.map(lambda x: x[0].unflatten(0, (streams, -1)))

    def first(self, bars: int) -> Outputs:
        """Return the outputs of the first *bars* positions."""
        return self.map(lambda x: x[:, :bars])

    def cpu(self) -> Outputs:
        """Return the outputs on the CPU, without a copy where they are there."""
        return self.map(Tensor.cpu)


def together(parts: Sequence[Outputs]) -> Outputs:
    """Return outputs of several passes as those of one: their batches one after the other."""
    columns = zip(*parts, strict=True)
    return Outputs._make(None if column[0] is None else torch.cat(column) for column in columns)


def _bounded(raw: Tensor) -> Tensor:
    """Return *raw* where it is small, and never beyond ``LOG_RANGE``."""
    return LOG_RANGE * torch.tanh(raw / LOG_RANGE)


def _ascending(raw: Tensor) -> Tensor:
    """Return quantiles that cannot cross: a lowest one and positive steps."""
    steps = functional.softplus(raw[..., 1:])
    return torch.cat((raw[..., :1], raw[..., :1] + steps.cumsum(-1)), dim=-1)


class Head(NamedTuple):
    """How wide a head is at each horizon, and what its raw numbers [..., width] become."""

    width: Callable[[int, bool], int]
    """Of the number of quantiles, and of whether there is an allocation; 0 where it is absent."""
    of: Callable[[Tensor], Tensor]


HEADS: Final[dict[str, Head]] = {
    "mean": Head(lambda *_: 1, lambda raw: raw.squeeze(-1)),
    "log_scale": Head(lambda *_: 1, lambda raw: _bounded(raw.squeeze(-1))),
    "dof": Head(lambda *_: 1, lambda raw: DOF_MIN + functional.softplus(raw.squeeze(-1) + 2.0)),
    "direction_logits": Head(lambda *_: DIRECTIONS, lambda raw: raw),
    "log_variance": Head(lambda *_: 1, lambda raw: _bounded(raw.squeeze(-1))),
    "allocation": Head(
        lambda _, allocation: int(allocation), lambda raw: torch.tanh(raw.squeeze(-1))
    ),
    "quantiles": Head(lambda quantiles, _: quantiles, _ascending),
}
"""Every field of ``Outputs``, in its order, which is that of the projection's columns."""


class Heads(nn.Module):
    """One linear layer over the last state; its slices become ``Outputs``."""

    def __init__(self, dim: int, horizons: int, quantiles: int, *, allocation: bool) -> None:
        super().__init__()
        self.widths = [head.width(quantiles, allocation) for head in HEADS.values()]
        self.horizons = horizons
        self.project = nn.Linear(dim, horizons * sum(self.widths))
        # Start at "nothing is known": mean 0, scale and variance 1, even odds.
        nn.init.normal_(self.project.weight, std=0.01)
        nn.init.zeros_(self.project.bias)

    def forward(self, state: Tensor) -> Outputs:
        """Map *state* [batch, time, dim] to the outputs."""
        raw: Tensor = self.project(state)
        raw = raw.unflatten(-1, (self.horizons, -1))  # [batch, time, horizon, width]
        slices = zip(HEADS.values(), raw.split(self.widths, -1), strict=True)
        return Outputs._make(head.of(part) if part.shape[-1] else None for head, part in slices)
