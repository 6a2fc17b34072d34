"""Margins and sizes of drawn instruments, held to the definitions of docs/money.md in fractions."""

from __future__ import annotations

import random
from fractions import Fraction
from math import ceil, floor

import pytest
from builders import instrument
from msgspec.structs import replace

from tracepaper.daemon.broker.rules import MarginRules, MarginUse, largest_multiple
from tracepaper.strategies.types.decisions import Position
from tracepaper.strategies.types.market import Instrument, RiskTier
from tracepaper.strategies.units import MONEY_SCALE, RATE_SCALE

DRAWN = 400


def tiers(rng: random.Random) -> tuple[RiskTier, ...]:
    """Return tiers whose maintenance margins meet at the limits, as the exchange's do."""
    made, limit, deduction, rate = list[RiskTier](), 0, Fraction(0), Fraction(0)
    for _ in range(rng.randint(1, 4)):
        higher = rate + Fraction(rng.randint(5, 40), 2_000)
        deduction += limit * (higher - rate)
        rate, limit = higher, limit + rng.randint(1, 50) * 1_000 * MONEY_SCALE
        made.append(RiskTier(limit, int(rate * RATE_SCALE), 10_000, int(deduction)))
    return (*made[:-1], replace(made[-1], limit=0)) if rng.random() < 0.5 else tuple(made)


class Drawn:
    """A position on isolated margin, and what the rules say of it in exact fractions."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.item: Instrument = replace(
            instrument(
                price_decimals=rng.randint(1, 7),
                quantity_decimals=rng.randint(0, 5),
                tick_size=rng.choice((1, 5, 10)),
                quantity_step=rng.choice((1, 10)),
            ),
            risk_tiers=tiers(rng),
        )
        self.fee = Fraction(rng.choice((0, 1_000_000, 5_500_000)), RATE_SCALE)
        self.leverage = Fraction(rng.choice((100, 200, 550, 1_000, 5_000)), 100)
        self.rules = MarginRules(self.item, int(self.leverage * 100), int(self.fee * RATE_SCALE))
        decimals = self.item.price_decimals + self.item.quantity_decimals
        self.worth = Fraction(MONEY_SCALE, 10**decimals)  # money of one unit at a price of one unit
        self.price = rng.randint(2_000, 90_000) * self.item.tick_size
        least = ceil(MONEY_SCALE * 10 / (self.price * self.worth))
        step = self.item.quantity_step
        self.held = -(-least * rng.randint(1, 9_000) // step) * step * rng.choice((1, -1))
        self.sign = 1 if self.held > 0 else -1
        self.entry = round(self.held * self.price * self.worth)
        self.margin = self.rules.required(self.entry)
        self.lost_at = self.lost(self.margin)

    def lost(self, margin: int) -> Fraction:
        """Return the value at which closing loses *margin*, with the fee."""
        return (abs(self.entry) - self.sign * margin) / (1 - self.sign * self.fee)

    def value(self, price: int) -> Fraction:
        return abs(self.held) * price * self.worth

    def maintenance(self, value: Fraction) -> Fraction:
        every = self.item.risk_tiers
        tier = next((tier for tier in every if value <= tier.limit or not tier.limit), every[-1])
        return max(value * Fraction(tier.maintenance, RATE_SCALE) - tier.deduction, Fraction(0))

    def is_liquidated(self, price: int, slack: int) -> bool:
        """Return whether the margin less the loss is the maintenance margin or less, by *slack*."""
        value = self.value(price)
        return self.sign * (value - self.lost_at) <= self.maintenance(value) + slack


@pytest.mark.parametrize("first", range(0, DRAWN, DRAWN // 4))
def test_prices_of_bankruptcy_and_liquidation_are_those_of_their_definitions(first: int) -> None:
    for seed in range(first, first + DRAWN // 4):
        drawn = Drawn(seed)
        tick, sign, size = drawn.item.tick_size, drawn.sign, abs(drawn.entry)
        initial = ceil(size / drawn.leverage)
        assert drawn.margin == initial + ceil((size - sign * initial) * drawn.fee)
        bounds = drawn.rules.bounds(drawn.entry, drawn.held, drawn.margin)
        outwards = ceil if sign > 0 else floor  # so that no more than the margin is lost
        ticks = max(outwards(outwards(drawn.lost_at) / drawn.value(tick)), 1)
        assert bounds.bankruptcy == ticks * tick
        at_least = bounds.liquidation == tick  # where margin and entry are nearly the same
        assert at_least or drawn.is_liquidated(bounds.liquidation - sign * tick, 2), seed
        assert not drawn.is_liquidated(bounds.liquidation + sign * tick, -2), seed
        position = Position(drawn.held, drawn.entry, 0, 0, 0, 0, drawn.margin)
        used = drawn.rules.use_of(position)
        leverage = int(drawn.leverage * 100)
        assert used == MarginUse(drawn.margin, leverage, bounds.liquidation)


def test_a_reduction_leaves_the_most_that_stands_in_a_lower_tier() -> None:
    reduced = 0
    for seed in range(DRAWN):
        drawn = Drawn(seed)
        step, held = drawn.item.quantity_step, abs(drawn.held)
        mark = drawn.rules.bounds(drawn.entry, drawn.held, drawn.margin).liquidation
        outcome = drawn.rules.reduction(drawn.entry, drawn.held, drawn.margin, mark)
        if outcome is None:
            continue
        quantity, number = outcome
        left = held - quantity
        limit = drawn.item.risk_tiers[number - 1].limit
        assert not quantity % step
        assert drawn.value(mark) * left / held <= limit + 1
        assert drawn.value(mark) * (left + step) / held > limit - drawn.value(mark) / held
        rest = drawn.sign * left
        entry, margin = round(Fraction(drawn.entry * left, held)), drawn.margin * left // held
        liquidation = drawn.rules.bounds(entry, rest, margin).liquidation
        assert drawn.sign * (mark - liquidation) > 0
        reduced += 1
    assert reduced > 10


def test_the_largest_affordable_multiple_is_that_of_counting() -> None:
    for quantity in range(40):
        for step in (1, 2, 7):
            for most in range(-1, 45):
                asked = largest_multiple(quantity, step, most.__ge__)
                counted = [part for part in range(0, quantity + 1, step) if part <= most]
                assert asked == max(counted, default=0)
