"""Impact has one meaning at candles and quotes: the participation's power (M111)."""

from __future__ import annotations

from math import isqrt
from typing import Any

import pytest
from builders import START_MS, bar, instrument, quote
from engines import Says, engine_of

from tracepaper.strategies.api.context import Orders, Signal, buy, sell
from tracepaper.strategies.types.decisions import Action, Fill, FillModel
from tracepaper.strategies.types.market import Event
from tracepaper.strategies.units import RATE_SCALE

IMPACT_BP = 50
COEFFICIENT = IMPACT_BP * RATE_SCALE // 10_000
VOLUME = 10**5
"""A quantity's unit in units of the volume, which has eight decimals."""


def fills(
    answer: Signal | Orders,
    event: Event,
    rule: str,
    *,
    by: FillModel = FillModel.NEXT_OPEN,
    **sections: Any,
) -> list[Fill]:
    """Return the fills of *answer*, given at the first bar, by the *event* that follows."""
    given = {
        "sizing": {"mode": "fixed", "quantity": "1"},
        "account": {"cash": "100000000"},
        "execution": {"beyond_best": rule, "impact_bp": str(IMPACT_BP), "latency_ms": 0},
        "gate": {"stale_ms": 10**9},
        **sections,
    }
    machine = engine_of(given, [instrument(tick_size=1)], strategy=Says(answer), execution=by)
    if by is FillModel.QUOTE:
        machine.step(quote(99_990, 100_000, at_ms=START_MS), None)
    machine.step(bar(100_000), None)
    return list(machine.step(event, None).fills)


def moved(price: int, quantity: int, liquidity: int) -> int:
    """Return *price* for a buyer of *quantity*, by the root of its participation."""
    rate = isqrt(COEFFICIENT**2 * quantity // liquidity)
    return -(-price * (RATE_SCALE + rate) // RATE_SCALE)


LONG = Signal(Action.LONG, "now")


@pytest.mark.parametrize("volume", [10, 1_000, 250_000])
def test_a_candles_fill_pays_by_the_share_of_its_volume(volume: int) -> None:
    opened = bar(100_000, index=1, volume=volume * VOLUME)
    (fill,) = fills(LONG, opened, "square_root")
    assert fill.price == moved(100_000, min(1_000, 100 * volume), volume)
    (linear,) = fills(LONG, opened, "impact")
    assert linear.price == 100_000 + 500 * min(1_000, 100 * volume) // volume
    (unmoved,) = fills(LONG, opened, "wait")
    assert unmoved.price == 100_000


def test_a_candle_without_volume_counts_as_the_largest_participation() -> None:
    (fill,) = fills(LONG, bar(100_000, index=1, volume=0), "square_root")
    assert fill.price == 105_000  # ten times 50 bp


def test_orders_of_one_side_share_the_candles_volume_and_a_maker_pays_nothing() -> None:
    listed = Orders((buy(1), buy(3), sell(1), buy(1, limit=990.0)), "list")
    opened = bar(100_000, index=1, low=98_000, volume=8_000 * VOLUME)
    first, second, sold, maker = fills(listed, opened, "square_root")
    assert first.price == moved(100_000, 1_000, 8_000)
    assert second.price == moved(100_000, 4_000, 8_000)
    assert sold.price == 100_000 * (RATE_SCALE - isqrt(COEFFICIENT**2 // 8)) // RATE_SCALE
    assert maker.price == 99_000


def test_a_quotes_fill_pays_by_what_exceeds_its_size() -> None:
    shown = quote(99_990, 100_000, at_ms=START_MS + 61_000, size=400)
    (fill,) = fills(LONG, shown, "square_root", by=FillModel.QUOTE)
    assert (fill.quantity, fill.price) == (1_000, moved(100_000, 600, 400))
