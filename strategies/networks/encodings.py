"""Where a bar stands in time: RoPE, ALiBi, sinusoidal, learned and time-of-week encodings.

A position is the absolute index of a bar, ``open_time_ms // interval_ms``, so that a network
restarted today sees the same positions as one that has run for a year. RoPE and ALiBi depend
on differences alone; sinusoidal and learned codes, which do not, take the position modulo the
window, so that they too mean the same anywhere in an endless stream.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

ALIBI_DIMS: Final = 2
"""Extra head dimensions that carry ALiBi's bias through an ordinary kernel."""
_ROPE_BASE: Final = 10_000.0
_WEEK_HARMONICS: Final = (1, 2, 7, 14)  # a week, half a week, a day, half a day
_MINUTES_PER_WEEK: Final = 7 * 24 * 60


def rope_table(positions: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines [time, dim / 2], float32, of int64 *positions* [time].

    Angles are float64: at bar 525,600 float32 angles are off by 0.05 (ATTENTION.md section 6).
    Source: Su et al., RoFormer, 2021.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim
    angles = positions.to(torch.float64)[:, None] * _ROPE_BASE**-exponents
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return *x* [..., dim] with its two halves rotated; the tables broadcast against a half."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def alibi_slopes(heads: int) -> Tensor:
    """Return the slope of each head, ``2^(-8 h / heads)`` for h = 1 … heads, float32.

    Source: Press et al., Train Short, Test Long, 2022.
    """
    return torch.exp2(-8.0 * torch.arange(1, heads + 1, dtype=torch.float32) / heads)


def alibi_query(query: Tensor, age: Tensor, slopes: Tensor) -> Tensor:
    """Return *query* [..., head, time, dim] with two more dimensions that carry its bias.

    With ``alibi_key`` the product at the default scale of the widened dim is
    ``q·k / sqrt(dim) - slope (age_key - age_query)``. *age* [time] counts back from any common
    origin; keep that near, for float32 holds the difference of two small numbers better.
    """
    dim = query.shape[-1]
    root = math.sqrt(dim + ALIBI_DIMS)
    steep = (slopes * root).to(query.dtype)[:, None].expand(query.shape[-3:-1])
    extra = torch.stack((steep, steep * age.to(query.dtype)), dim=-1)  # [head, time, 2]
    extra = extra.expand(*query.shape[:-1], ALIBI_DIMS)
    return torch.cat((query * (root / math.sqrt(dim)), extra), dim=-1)


def alibi_key(key: Tensor, age: Tensor) -> Tensor:
    """Return *key* [..., time, dim] with its negative age and a one appended; see above."""
    extra = torch.stack((-age, torch.ones_like(age)), dim=-1).to(key.dtype)  # [time, 2]
    return torch.cat((key, extra.expand(*key.shape[:-1], ALIBI_DIMS)), dim=-1)


def sinusoidal_table(positions: Tensor, dim: int, period: int) -> Tensor:
    """Return the code [time, dim], float32, of *positions* modulo *period* (Vaswani 2017)."""
    cosine, sine = rope_table(positions % period, dim)
    return torch.cat((sine, cosine), dim=-1)


class TimeOfWeek(nn.Module):
    """A learned linear map of the week's first harmonics, added to the input."""

    def __init__(self, dim: int, interval_minutes: int) -> None:
        super().__init__()
        self.bars_per_week = _MINUTES_PER_WEEK / interval_minutes
        self.project = nn.Linear(2 * len(_WEEK_HARMONICS), dim, bias=False)

    def forward(self, positions: Tensor) -> Tensor:
        """Return the code [time, dim] of int64 *positions* [time]."""
        phase = positions.to(torch.float64) / self.bars_per_week
        phase = phase - phase.floor()
        harmonics = torch.tensor(_WEEK_HARMONICS, dtype=torch.float64, device=positions.device)
        angles = (2.0 * math.pi) * phase[:, None] * harmonics
        code = torch.cat((angles.sin(), angles.cos()), dim=-1).to(self.project.weight.dtype)
        out: Tensor = self.project(code)
        return out
