"""Where a bar stands in time: RoPE, ALiBi, sinusoidal, learned and time-of-week encodings.

A position is the absolute index of a bar, ``open_time_ms // interval_ms``, so that a network
restarted today sees the same positions as one that has run for a year. RoPE and ALiBi depend
on differences alone; sinusoidal and learned codes, which do not, take the position modulo the
window, so that they too mean the same anywhere in an endless stream.

The rule is docs/attention.md, A16.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

_DIGITS: Final = {torch.bfloat16: (256, 3), torch.float16: (2_048, 2)}
"""Half types hold whole numbers exactly up to a base: ages are written in so many digits of it."""
_PIECES: Final = 3
"""A coefficient as a sum of so many half numbers keeps float32's 24 bits."""
_ROPE_BASE: Final = 10_000.0
_WEEK_HARMONICS: Final = (1, 2, 7, 14)  # a week, half a week, a day, half a day
_MINUTES_PER_WEEK: Final = 7 * 24 * 60


def rope_table(positions: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines [time, dim / 2], float32, of int64 *positions* [time].

    Angles are float64: at bar 525,600 float32 angles are off by 0.05 rad.
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


def alibi_dims(dtype: torch.dtype) -> int:
    """Return how many extra head dimensions carry ALiBi's bias through an ordinary kernel.

    Two for float32 and float64. A half number of 5,000 is off by up to 16, so for half types the
    bias is split into numbers that they hold exactly, for ages up to 2^22 bars; their products
    are summed in float32.
    """
    if dtype not in _DIGITS:
        return 2
    return _PIECES * (_DIGITS[dtype][1] + 1)


def alibi_query(query: Tensor, age: Tensor, slopes: Tensor) -> Tensor:
    """Return *query* [..., head, time, dim] with the further dimensions that carry its bias.

    With ``alibi_key`` the product at the default scale of the widened dim is
    ``q·k / sqrt(dim) - slope (age_key - age_query)``. *age* [time], float32, counts back from any
    common origin; keep that near, for float32 holds the difference of two small numbers better.
    """
    dim, dtype = query.shape[-1], query.dtype
    root = math.sqrt(dim + alibi_dims(dtype))
    scaled = query * (root / math.sqrt(dim))
    if dtype not in _DIGITS:
        steep = (slopes * root).to(dtype)[:, None].expand(query.shape[-3:-1])
        extra = torch.stack((steep, steep * age.to(dtype)), dim=-1)  # [head, time, 2]
    else:
        base, digits = _DIGITS[dtype]
        steep = (slopes * root)[:, None].expand(query.shape[-3:-1])
        lift = (steep * age) / base  # its key is the base: float16 ends at 65,504
        parts = [*(steep * float(base) ** place for place in range(digits)), lift]
        pieces = [piece for part in parts for piece in _pieces(part, dtype)]
        extra = torch.stack(pieces, dim=-1)  # [head, time, pieces]
    return torch.cat((scaled, extra.expand(*query.shape[:-1], extra.shape[-1])), dim=-1)


def alibi_key(key: Tensor, age: Tensor) -> Tensor:
    """Return *key* [..., time, dim] with what its query's further dimensions meet; see above."""
    if key.dtype not in _DIGITS:
        extra = torch.stack((-age, torch.ones_like(age)), dim=-1).to(key.dtype)  # [time, 2]
    else:
        base, digits = _DIGITS[key.dtype]
        whole = age.to(torch.int64)
        columns = [-(whole // base**place % base) for place in range(digits)]
        columns.append(torch.full_like(whole, base))
        extra = torch.stack(columns, dim=-1).to(key.dtype).repeat_interleave(_PIECES, dim=-1)
    return torch.cat((key, extra.expand(*key.shape[:-1], extra.shape[-1])), dim=-1)


def _pieces(value: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return numbers of a half *dtype* whose sum is the float32 *value*, the largest first."""
    found = []
    for _ in range(_PIECES):
        piece = value.to(dtype)
        found.append(piece)
        value = value - piece.float()
    return found


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
