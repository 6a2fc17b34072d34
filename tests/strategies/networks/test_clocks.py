"""What a bar's open time says by itself, held to the calendar of the standard library."""

from __future__ import annotations

import calendar
import math
from datetime import UTC, datetime, timedelta

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.networks.encodings import (
    CLOCKS,
    HALVINGS,
    ClockCode,
    clock_columns,
    clock_of,
)
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork

moments = st.integers(0, 47_000_000).map(
    lambda minutes: datetime(2009, 1, 3, tzinfo=UTC) + timedelta(minutes=minutes)
)


def clock_row(name: str, at: datetime) -> list[float]:
    position = torch.tensor([round(at.timestamp()) // 60])
    columns: list[float] = clock_of([name], position, 1)[0].tolist()
    return columns


def turn(phase: float, *harmonics: int) -> list[float]:
    angles = [2 * math.pi * phase * harmonic for harmonic in harmonics]
    return [*map(math.sin, angles), *map(math.cos, angles)]


def within_day(at: datetime) -> float:
    return (at - at.replace(hour=0, minute=0)) / timedelta(days=1)


@given(moments)
def test_a_month_turns_once_in_as_many_days_as_it_has(at: datetime) -> None:
    days = calendar.monthrange(at.year, at.month)[1]
    phase = (at.day - 1 + within_day(at)) / days
    assert clock_row("month", at) == pytest.approx(turn(phase, 1, 2), abs=1e-9)


@given(moments)
def test_sessions_are_open_by_the_hours_of_utc(at: datetime) -> None:
    hour = 24 * within_day(at)
    expected = [
        (first <= hour < last, (hour - first) / (last - first))
        for first, last in ((0, 8), (7, 16), (13.5, 20))
    ]
    columns = clock_row("sessions", at)
    assert columns[:3] == [float(is_open) for is_open, _ in expected]
    assert columns[3:] == pytest.approx([over if is_open else 0.0 for is_open, over in expected])


@given(moments)
def test_funding_turns_thrice_a_day_and_the_week_begins_at_the_epochs_thursday(
    at: datetime,
) -> None:
    phase = 3 * within_day(at) % 1
    assert clock_row("funding", at) == pytest.approx([*turn(phase, 1, 2), phase], abs=1e-9)
    week = ((at.weekday() - 3) % 7 + within_day(at)) / 7
    assert clock_row("week", at) == pytest.approx(turn(week, 1, 2, 7, 14), abs=1e-7)


@given(moments)
def test_a_halving_is_counted_from_the_last_one_that_had_been(at: datetime) -> None:
    before = [halving for halving in HALVINGS if halving <= at]
    over = min((at - before[-1]) / timedelta(days=1_461), 1.0) if before else 0.0
    assert clock_row("halving", at) == pytest.approx([over, *turn(over, 1)], abs=1e-9)


@given(moments)
def test_a_season_returns_after_a_year_and_every_column_is_bounded(at: datetime) -> None:
    later = at + timedelta(days=146_097)  # 400 years, a whole number of mean years
    assert clock_row("season", at) == pytest.approx(clock_row("season", later), abs=1e-6)
    for name, clock in CLOCKS.items():
        columns = clock_row(name, at)
        assert len(columns) == clock.columns == clock_columns([name])
        assert max(map(abs, columns)) <= 1.0


def test_the_interval_says_what_a_position_is() -> None:
    hours, minutes = torch.tensor([500_000]), torch.tensor([30_000_000])
    names = list(CLOCKS)
    assert torch.equal(clock_of(names, hours, 60), clock_of(names, minutes, 1))
    assert clock_of([], hours, 60).shape == (1, 0)


@pytest.mark.parametrize("kind", ["flash", "informer"])
def test_a_clock_moves_a_forecast_and_none_does_not(kind: str) -> None:
    def answer(clock: tuple[str, ...], first: int) -> torch.Tensor:
        torch.manual_seed(1)
        shape = {"features": 3, "dim": 8, "layers": 1, "heads": 2, "window": 16, "clock": clock}
        net = (
            FlashNetwork(FlashConfig(**shape, encoding="rope"))  # type: ignore[arg-type]
            if kind == "flash"
            else InformerNetwork(InformerConfig(**shape))  # type: ignore[arg-type]
        ).eval()
        torch.nn.init.normal_(net.heads.project.weight)
        for code in net.modules():
            if isinstance(code, ClockCode):
                torch.nn.init.normal_(code.project.weight)
        with torch.inference_mode():
            tensor: torch.Tensor = net(torch.ones(1, 16, 3), torch.arange(16) + first).mean[:, -1]
        return tensor

    assert torch.allclose(answer((), 0), answer((), 240), atol=1e-6)
    assert not torch.allclose(answer(("sessions",), 0), answer(("sessions",), 240), atol=1e-3)
