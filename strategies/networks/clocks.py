"""What a bar's open time says by itself: sessions, funding, month, season, halving, week.

Each clock turns a time into some columns within [-1, 1]; a network adds a learned linear map of
the clocks that its card names to its first state. They depend on the time alone, so a forecast
stays a function of its bars. Times are UTC: sessions keep no daylight saving.

The rule is docs/attention.md, A27.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from tracepaper.strategies.errors import ConfigInvalid, shown

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
    """Columns of a time."""

    columns: int
    of: Callable[[Tensor], Tensor]
    """Open times in UTC milliseconds, int64 [..] → float64 [.., columns]."""


def _circle(phase: Tensor, harmonics: Sequence[int]) -> Tensor:
    """Return sines, then cosines [.., 2 * harmonics] of *phase*, in turns."""
    angles = (2.0 * math.pi) * (phase - phase.floor())[..., None]
    angles = angles * torch.tensor(harmonics, dtype=torch.float64, device=phase.device)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def _week(time_ms: Tensor) -> Tensor:
    return _circle(time_ms.double() / _WEEK_MS, _WEEK_HARMONICS)


def _sessions(time_ms: Tensor) -> Tensor:
    """Return for each session whether it is open, and how much of it is over."""
    hour = (time_ms % _DAY_MS).double() / _HOUR_MS
    opened = [(hour >= first) & (hour < last) for first, last in _SESSIONS]
    over = [
        torch.where(is_open, (hour - first) / (last - first), 0.0)
        for is_open, (first, last) in zip(opened, _SESSIONS, strict=True)
    ]
    return torch.stack([*(is_open.double() for is_open in opened), *over], dim=-1)


def _funding(time_ms: Tensor) -> Tensor:
    """Return the turn of the eight hours between settlements, and how much of them is over."""
    phase = (time_ms % _FUNDING_MS).double() / _FUNDING_MS
    return torch.cat((_circle(phase, (1, 2)), phase[..., None]), dim=-1)


def _month(time_ms: Tensor) -> Tensor:
    """Return the turn of the calendar month, whose days are as many as they are.

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


def _season(time_ms: Tensor) -> Tensor:
    return _circle(time_ms.double() / (_YEAR_DAYS * _DAY_MS), (1, 2))


def _halving(time_ms: Tensor) -> Tensor:
    """Return how much of four years is over since the last halving of Bitcoin, and its turn.

    Before the first it is 0, and four years after the last that is known it stays at 1.
    """
    known = [int(moment.timestamp() * 1_000) for moment in HALVINGS]
    times = torch.tensor(known, device=time_ms.device)
    last = times[(torch.searchsorted(times, time_ms.contiguous(), right=True) - 1).clamp_min(0)]
    over = ((time_ms - last).double() / (_HALVING_DAYS * _DAY_MS)).clamp(0.0, 1.0)
    return torch.cat((over[..., None], _circle(over, (1,))), dim=-1)


CLOCKS: Final[dict[str, ClockColumns]] = {
    "week": ClockColumns(2 * len(_WEEK_HARMONICS), _week),
    "sessions": ClockColumns(2 * len(_SESSIONS), _sessions),
    "funding": ClockColumns(5, _funding),
    "month": ClockColumns(4, _month),
    "season": ClockColumns(4, _season),
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


def check_clocks(names: Sequence[str]) -> None:
    """Raise ``ConfigInvalid`` for a clock that is unknown or named twice."""
    for at, name in enumerate(names):
        if name not in CLOCKS:
            raise ConfigInvalid(
                f"architecture.clock names {shown(name)}; choose of {', '.join(CLOCKS)}."
            )
        if name in names[:at]:
            raise ConfigInvalid(f"architecture.clock names {name} twice; name it once.")


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
        code: Tensor = self.project(columns.to(self.project.weight.dtype))
        return code


def clock_codes(
    dim: int, interval_minutes: int, *, time_of_week: bool, clock: Sequence[str]
) -> tuple[ClockCode | None, ClockCode | None]:
    """Return the codes of the week and of the clocks that an architecture names, None for none."""
    week = ClockCode(("week",), dim, interval_minutes) if time_of_week else None
    return week, ClockCode(clock, dim, interval_minutes) if clock else None
