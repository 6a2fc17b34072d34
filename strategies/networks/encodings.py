"""Positional and calendar encodings: RoPE, ALiBi, sinusoidal, learned, clocks, and mixtures.

A position is the absolute index of a bar, ``open_time_ms // interval_ms``, so that a network
restarted today sees the same positions as one that has run for a year. RoPE and ALiBi depend
on differences alone; sinusoidal and learned codes, which do not, take the position modulo the
window, so that they too mean the same anywhere in an endless stream.

The rule is docs/attention.md, A16.

Each clock turns a time into some columns within [-1, 1]; a network adds a learned linear map of
the clocks that its card names to its first state. They depend on the time alone, so a forecast
stays a function of its bars. Times are UTC: sessions ignore daylight saving.

The rule is docs/attention.md, A27.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import ClassVar, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tracepaper.strategies.attention.checks import working_type
from tracepaper.strategies.errors import shown
from tracepaper.strategies.heads import content_free_confidence

_ROPE_BASE: Final = 10_000.0


def rope_table(positions: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines [.., time, dim / 2], float32, of int64 *positions* [.., time].

    Angles are float64: at bar 525,600 float32 angles are off by 0.05 rad.
    Source: Su et al., RoFormer, 2021.
    """
    # No cache while torch.compile traces: its tensors have no values.
    frequencies = _rope_frequencies if torch.compiler.is_compiling() else _cached_frequencies
    angles = positions.to(torch.float64)[..., None] * frequencies(dim, positions.device)
    return angles.cos().float(), angles.sin().float()


def _rope_frequencies(dim: int, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):
        return _ROPE_BASE ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)


_cached_frequencies: Final = cache(_rope_frequencies)


def turns(positions: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines for ``rotate`` at *positions* [.., time]: two of [.., time, dim]."""
    cosine, sine = rope_table(positions, dim)
    return torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return *x* [..., dim] with its two halves rotated by the tables of ``turns``, broadcast."""
    first, second = x.chunk(2, dim=-1)
    crossed = torch.cat((second, first), dim=-1).mul_(sine.to(x.dtype))
    return crossed.add_(x * cosine.to(x.dtype))


def alibi_slopes(heads: int) -> Tensor:
    """Return the slope of each head, ``2^(-8 h / heads)`` for h = 1 … heads, float32.

    Source: Press et al., Train Short, Test Long, 2022.
    """
    return torch.exp2(-8.0 * torch.arange(1, heads + 1, dtype=torch.float32) / heads)


ALIBI_DIMS: Final = 2
"""The extra head dimensions that carry ALiBi's bias through an ordinary kernel."""


def alibi_query(query: Tensor, age: Tensor, slopes: Tensor) -> Tensor:
    """Return *query* [..., head, time, dim] with the further dimensions that carry its bias.

    With ``alibi_key`` the product at the default scale of the widened dim is
    ``q·k / sqrt(dim) - slope (age_key - age_query)``. *age* [time], float32, counts back from any
    common origin; keep that near, for float32 holds the difference of two small numbers better.
    """
    dim = query.shape[-1]
    root = math.sqrt(dim + ALIBI_DIMS)
    steep = (slopes * root).to(query.dtype)[:, None].expand(query.shape[-3:-1])
    extra = torch.stack((steep, steep * age.to(query.dtype)), dim=-1)  # [head, time, 2]
    scaled = query * (root / math.sqrt(dim))
    return torch.cat((scaled, extra.expand(*query.shape[:-1], -1)), dim=-1)


def alibi_key(key: Tensor, age: Tensor) -> Tensor:
    """Return *key* [..., time, dim] with the dimensions that match those of ``alibi_query``."""
    extra = torch.stack((-age, torch.ones_like(age)), dim=-1).to(key.dtype)  # [time, 2]
    return torch.cat((key, extra.expand(*key.shape[:-1], -1)), dim=-1)


def sinusoidal_table(positions: Tensor, dim: int, period: int) -> Tensor:
    """Return the code [.., time, dim], float32, of *positions* modulo *period* (Vaswani 2017)."""
    cosine, sine = rope_table(positions % period, dim)
    return torch.cat((sine, cosine), dim=-1)


class Phases(NamedTuple):
    """The encoded positions of some bars, computed once for all layers."""

    cosine: Tensor | None = None
    """[time, 1, 1, head_dim], both of ``turns``: they rotate queries and keys."""
    sine: Tensor | None = None
    age: Tensor | None = None
    """[time] float32, bars back from the last position, if scores have a bias."""
    volatility: Tensor | None = None  # [batch, time], if it scales the scores of a bar


class Sizes(NamedTuple):
    """The sizes of an architecture on which an encoding depends."""

    dim: int
    heads: int
    window: int


class Encoding(nn.Module):
    """The base class of position encodings, and the encoding ``none``.

    A subclass adds a code to the first state, rotates queries and keys, or adds a bias to scores. A
    bias has two forms: plain for tiles, and in auxiliary head dimensions for kernels.
    """

    looks_back_only: ClassVar[bool] = False
    """Whether it needs a mask that hides later bars."""
    has_bias: ClassVar[bool] = False

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes

    def enter(self, state: Tensor, positions: Tensor) -> Tensor:
        """Return the first *state* [batch, time, dim] with the code of *positions*."""
        code = self.code(positions)
        return state if code is None else state + code.to(state.dtype)

    def code(self, positions: Tensor) -> Tensor | None:
        """Return the addend of the first state: [.., time, dim], None for nothing."""
        del positions
        return None

    def phases(self, positions: Tensor) -> Phases:
        """Return the phases of int64 *positions* [time], which all layers share."""
        del positions
        return Phases()

    def bias(self, distance: Tensor) -> Tensor:
        """Return the bias of the scores: [stream, head, query, key].

        *distance* [stream, query, key] is in bars, negative for earlier keys.
        """
        return torch.zeros_like(distance, dtype=torch.float32)[:, None]

    def widen(
        self, query: Tensor, key: Tensor, value: Tensor, age: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tensors [..., head, time, dim] with the dimensions that carry the bias.

        *age* is that of ``phases``. The dimensions added to the values are zeros, and half types
        may become float32.
        """
        del age
        return query, key, value

    def content_free(self) -> float:
        """Return the confidence over a full window when no score depends on content."""
        return 0.0


ENCODINGS: Final[dict[str, type[Encoding]]] = {}
"""Every encoding by the name that an architecture gives it."""


def encoding(name: str) -> Callable[[type[Encoding]], type[Encoding]]:
    """Register a class as the encoding *name*; raise ``ConfigInvalid`` for a name that is taken."""

    def register(kind: type[Encoding]) -> type[Encoding]:
        ENCODINGS[name] = kind
        return kind

    return register


@encoding("rope")
class Rope(Encoding):
    """Rotated queries and keys (Su et al., RoFormer, 2021)."""

    def phases(self, positions: Tensor) -> Phases:
        """Return the tables of ``turns``."""
        cosine, sine = turns(positions, self.sizes.dim // self.sizes.heads)
        return Phases(cosine[:, None, None], sine[:, None, None])


@encoding("alibi")
class Alibi(Encoding):
    """A bias that falls with age (Press et al., Train Short, Test Long, 2022)."""

    looks_back_only = True
    has_bias = True
    slopes: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.register_buffer("slopes", alibi_slopes(sizes.heads), persistent=False)

    def phases(self, positions: Tensor) -> Phases:
        """Return the ages of the bars."""
        return Phases(age=(positions[-1] - positions).float())

    def bias(self, distance: Tensor) -> Tensor:
        """Return each head's slope times the distance; exact below 2^24 bars."""
        return self.slopes[:, None, None] * distance.float()[:, None]

    def widen(
        self, query: Tensor, key: Tensor, value: Tensor, age: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Extend *query* and *key* by ``alibi_query`` and ``alibi_key``, *value* by zeros.

        Half types become float32: a half number of 5,000 is off by up to 16.
        """
        assert age is not None
        kind = working_type(query)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
        wide = functional.pad(value, (0, ALIBI_DIMS))
        return alibi_query(query, age, self.slopes), alibi_key(key, age), wide

    def content_free(self) -> float:
        """Return the confidence of the slopes alone: queries of zero see every key alike."""
        return content_free_confidence(self.sizes.window, self.slopes.tolist())


@encoding("sinusoidal")
class Sinusoidal(Encoding):
    """The code of ``sinusoidal_table`` (Vaswani, 2017), added to the input."""

    def code(self, positions: Tensor) -> Tensor:
        """Return the code [time, dim]."""
        return sinusoidal_table(positions, self.sizes.dim, self.sizes.window)


class _LearnedPlaces(Encoding):
    """An encoding with a learned code for each place in the window."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.place = nn.Parameter(torch.empty(sizes.window, sizes.dim))
        nn.init.normal_(self.place, std=0.02)


@encoding("learned")
class LearnedCode(_LearnedPlaces):
    """A learned code for each place in the window, added to the input."""

    def code(self, positions: Tensor) -> Tensor:
        """Return the code [time, dim]."""
        return self.place[positions % self.sizes.window]


@encoding("mixture")
class Mixture(_LearnedPlaces, Rope):
    """A learned mixture of the sinusoidal and the learned code, beside rotated queries and keys.

    ``shares`` are their learned weights, equal at first.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.lean = nn.Parameter(torch.zeros(2))

    def shares(self) -> Tensor:
        """Return the shares [2] of the sinusoidal and of the learned code; they sum to 1."""
        return self.lean.softmax(dim=0)

    def code(self, positions: Tensor) -> Tensor:
        """Return the mixed code [time, dim]."""
        fixed, learned = self.shares()
        waves = sinusoidal_table(positions, self.sizes.dim, self.sizes.window).to(self.place.dtype)
        return fixed * waves + learned * self.place[positions % len(self.place)]


@encoding("context")
class Contextual(_LearnedPlaces, Rope):
    """A learned code scaled by each bar's own features.

    ``state + code · σ(W·state)``, beside rotated queries and keys: a place in the window can matter
    more in one market than in another.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.ask = nn.Linear(sizes.dim, sizes.dim)

    def enter(self, state: Tensor, positions: Tensor) -> Tensor:
        """Return *state* with the code of each bar, scaled by its state."""
        code = self.place[positions % len(self.place)].to(state.dtype)
        return state + code * self.ask(state).sigmoid()


ENCODINGS["none"] = Encoding

_MINUTE_MS: Final = 60_000
_HOUR_MS: Final = 60 * _MINUTE_MS
_DAY_MS: Final = 24 * _HOUR_MS
_WEEK_MS: Final = 7 * _DAY_MS
_YEAR_DAYS: Final = 365.2425
_WEEK_HARMONICS: Final = (1, 2, 7, 14)  # a week, half a week, a day, half a day
_SESSIONS: Final = ((0.0, 8.0), (7.0, 16.0), (13.5, 20.0))
"""Hours of UTC in which Asia, Europe and the US trade: Tokyo to Singapore, London, New York."""
_FUNDING_MS: Final = 8 * _HOUR_MS
HALVINGS: Final = (
    datetime(2012, 11, 28, 15, 24, tzinfo=UTC),
    datetime(2016, 7, 9, 16, 46, tzinfo=UTC),
    datetime(2020, 5, 11, 19, 23, tzinfo=UTC),
    datetime(2024, 4, 20, 0, 9, tzinfo=UTC),
)
"""Bitcoin's blocks 210,000, 420,000, 630,000 and 840,000; a later one is added when it is mined."""
_HALVING_DAYS: Final = 1_461
_MONTH_DAYS: Final = (31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31, 28)  # from March on
_FEBRUARY: Final = 11


class ClockColumns(NamedTuple):
    """The columns of a clock."""

    columns: int
    of: Callable[[Tensor], Tensor]
    """Open times in UTC milliseconds, int64 [..] → float64 [.., columns]."""


def _circle(phase: Tensor, harmonics: Sequence[int]) -> Tensor:
    """Return the sines, then the cosines [.., 2 * harmonics], of *phase*, in units of a turn."""
    angles = (2.0 * math.pi) * (phase - phase.floor())[..., None]
    angles = angles * torch.tensor(harmonics, dtype=torch.float64, device=phase.device)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def _sessions(time_ms: Tensor) -> Tensor:
    """Return whether each session is open, then the share of each open session that is over."""
    hour = (time_ms % _DAY_MS).double() / _HOUR_MS
    opened = [(hour >= first) & (hour < last) for first, last in _SESSIONS]
    over = [
        torch.where(is_open, (hour - first) / (last - first), 0.0)
        for is_open, (first, last) in zip(opened, _SESSIONS, strict=True)
    ]
    return torch.stack([*(is_open.double() for is_open in opened), *over], dim=-1)


def _funding(time_ms: Tensor) -> Tensor:
    """Return the phase between two funding settlements as circles, and as a share of 8 hours."""
    phase = (time_ms % _FUNDING_MS).double() / _FUNDING_MS
    return torch.cat((_circle(phase, (1, 2)), phase[..., None]), dim=-1)


def _month(time_ms: Tensor) -> Tensor:
    """Return the phase within the calendar month, of its true number of days, as circles.

    Source: Hinnant, chrono-compatible low-level date algorithms (civil_from_days).
    """
    day = time_ms.div(_DAY_MS, rounding_mode="floor") + 719_468  # since 0000-03-01
    of_era = day % 146_097
    year = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153  # 0 is March
    of_month = of_year - (153 * month + 2) // 5
    after = year + 1  # the civil year of that January and February, less whole eras
    is_leap = (after % 4 == 0) & ((after % 100 != 0) | (after % 400 == 0))
    days = torch.tensor(_MONTH_DAYS, device=time_ms.device)[month]
    days = days + ((month == _FEBRUARY) & is_leap)
    return _circle((of_month.double() + (time_ms % _DAY_MS).double() / _DAY_MS) / days, (1, 2))


def _halving(time_ms: Tensor) -> Tensor:
    """Return the share of four years since Bitcoin's last halving, and the same as a circle.

    The share is 0 before the first halving, and stays at 1 four years after the last known one.
    """
    halvings = [int(moment.timestamp() * 1_000) for moment in HALVINGS]
    times = torch.tensor(halvings, device=time_ms.device)
    last = times[(torch.searchsorted(times, time_ms.contiguous(), right=True) - 1).clamp_min(0)]
    over = ((time_ms - last).double() / (_HALVING_DAYS * _DAY_MS)).clamp(0.0, 1.0)
    return torch.cat((over[..., None], _circle(over, (1,))), dim=-1)


CLOCKS: Final[dict[str, ClockColumns]] = {
    "week": ClockColumns(
        2 * len(_WEEK_HARMONICS),
        lambda time_ms: _circle(time_ms.double() / _WEEK_MS, _WEEK_HARMONICS),
    ),
    "sessions": ClockColumns(2 * len(_SESSIONS), _sessions),
    "funding": ClockColumns(5, _funding),
    "month": ClockColumns(4, _month),
    "season": ClockColumns(
        4, lambda time_ms: _circle(time_ms.double() / (_YEAR_DAYS * _DAY_MS), (1, 2))
    ),
    "halving": ClockColumns(3, _halving),
}
"""Every clock by the name that an architecture gives it."""


def clock_columns(names: Sequence[str]) -> int:
    """Return how many columns the clocks *names* have together."""
    return sum(CLOCKS[name].columns for name in names)


def clock_of(names: Sequence[str], positions: Tensor, interval_minutes: int) -> Tensor:
    """Return the columns of the clocks *names* at int64 *positions* [..]: float64 [.., column].

    A position is the absolute number of a bar of *interval_minutes*.
    """
    time_ms = positions * (interval_minutes * _MINUTE_MS)
    none = torch.zeros(*positions.shape, 0, dtype=torch.float64, device=positions.device)
    return torch.cat([none, *(CLOCKS[name].of(time_ms) for name in names)], dim=-1)


def wrong_clock(names: Sequence[str]) -> str:
    """Return the fault of the clocks *names*, to follow ``architecture.``; empty for none."""
    for at, name in enumerate(names):
        if name not in CLOCKS:
            return f"clock names {shown(name)}; choose from {', '.join(CLOCKS)}"
        if name in names[:at]:
            return f"clock names {name} twice; name it once"
    return ""


class ClockCode(nn.Module):
    """A learned linear map of some clocks, added to the first state."""

    def __init__(self, names: Sequence[str], dim: int, interval_minutes: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.interval_minutes = interval_minutes
        self.project = nn.Linear(clock_columns(names), dim, bias=False)

    def forward(self, positions: Tensor) -> Tensor:
        """Return the code [.., dim] of int64 *positions* [..]."""
        columns = clock_of(self.names, positions, self.interval_minutes)
        return self.project(columns.to(self.project.weight.dtype))


def clock_code(dim: int, interval_minutes: int, clock: Sequence[str]) -> ClockCode | None:
    """Return the code of the clocks that an architecture names, None for none."""
    return ClockCode(clock, dim, interval_minutes) if clock else None
