"""Splits of positions with orders of all kinds, by docs/stocks.md, K18 to K20, in fractions."""

from __future__ import annotations

import random
from fractions import Fraction
from functools import partial
from math import floor
from typing import Final

from builders import START_MS, instrument, quote
from msgspec.structs import replace

from tracepaper.daemon.broker.account import PaperAccount
from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.broker.exit_orders import place_protection
from tracepaper.daemon.broker.exit_plans import Level, Plan
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.orders import OrderContext
from tracepaper.daemon.broker.settings import BrokerSettings, Latency, Ownership
from tracepaper.daemon.broker.splits import apply_action
from tracepaper.strategies.types.decisions import FillModel, Order, OrderRole, OrderStatus
from tracepaper.strategies.types.market import Category, CorporateAction, CorporateActionKind
from tracepaper.strategies.units import RATE_SCALE

DRAWN: Final = 300
KEY: Final = "stock:ACME"
RATIOS: Final = ((7, 1), (3, 2), (2, 3), (1, 10), (1, 1_000), (20, 1), (137, 100))


class Drawn:
    """An account of shares, alone or of several owners, with orders before a split."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        decimals, self.step = rng.choice(((0, 1), (3, 1), (3, 10)))
        self.tick = rng.choice((1, 5))
        item = instrument(
            "ACME", Category.STOCK, tick_size=self.tick, quantity_step=self.step,
            quantity_decimals=decimals, price_decimals=2,
        )  # fmt: skip
        settings = BrokerSettings(FillModel.QUOTE, ExecutionCosts(0), 10**17, Latency(0))
        count = rng.randint(0, 3)
        share = RATE_SCALE // max(count, 1)
        owners = {name: Ownership(settings, share) for name in "abc"[:count]}
        self.account = PaperAccount([item], settings, owners=owners or None)
        self.line = self.account.line(KEY)
        self.parts = [*self.line.shares] or [self.line]
        self._aim([self.step * rng.choice((0, rng.randint(1, 900))) for _ in self.parts])
        self._fill(rng.choice((self.step * rng.randint(1, 500), 10**7)))
        if rng.random() < 0.4:
            self._aim([rng.choice((part.held, self._steps())) for part in self.parts])
        for part in self.parts:
            self._protect(part)
        self.new, self.old = rng.choice(RATIOS)
        self.ratio = Fraction(self.new, self.old)

    def _steps(self) -> int:
        return self.step * self.rng.randint(0, 900)

    def _aim(self, targets: list[int]) -> None:
        self.account.ledger.step.number += 1
        aims = zip(self.parts, targets, strict=True) if self.line.shares else ()
        for part, target in (*aims, (self.line, sum(targets))):
            part.submit(target, "why", OrderContext(START_MS, 0, 1_000))

    def _fill(self, size: int) -> None:
        level = quote(1_000, 1_000, at_ms=START_MS + 1, size=size, instrument_id=KEY)
        self.account.markets[KEY].match_quote(level)

    def _price(self) -> int:
        return self.tick * self.rng.randint(1, 600)

    def _protect(self, part: Line) -> None:
        place, rng = partial(place_protection, part), self.rng
        if part.held and rng.random() < 0.7:
            place(OrderRole.STOP, START_MS, "why", trigger=self._price())
        if part.held and rng.random() < 0.7:
            place(OrderRole.TARGET, START_MS, "why", price=self._price())
        levels = [
            rng.choice((None, Level(self._price(), is_price, is_share, "why")))
            for is_price, is_share in ((True, False), (False, True), (False, False))
        ]
        stop, target, trailing = rng.sample(levels, 3)
        plans = [rng.choice((None, Plan(1, stop, target, trailing))) for _ in range(2)]
        trail = rng.choice((0, self._price()))
        part.protect_by(replace(part.protection, plan=plans[0], next_plan=plans[1], trail=trail))

    # ------------------------------------------------------------ what the rules say

    def quantity(self, before: int) -> int:
        return floor(before * self.ratio / self.step) * self.step

    def price(self, before: int) -> int:
        return max(round(before / self.ratio / self.tick), 1) * self.tick

    def level(self, before: Level | None) -> Level | None:
        if before is None or before.is_share:
            return before
        return replace(before, value=round(before.value / self.ratio))

    def plan(self, before: Plan | None) -> Plan | None:
        if before is None:
            return None
        return Plan(
            1, self.level(before.stop), self.level(before.target), self.level(before.trailing)
        )

    def target(self, before: int, held: int, after: int) -> int:
        """Return the target of what held as much *before* and *after*; its order keeps its side."""
        if before == held:
            return after
        return (max if before > held else min)(self.quantity(before), after)


def rest(order: Order) -> int:
    return order.quantity - order.filled


def test_a_split_moves_targets_orders_and_plans_as_fractions_do() -> None:
    counted = dict.fromkeys(("order", "no order", "exit", "rounded up", "kept"), 0)
    for seed in range(DRAWN):
        drawn = Drawn(seed)
        line, parts = drawn.line, drawn.parts
        before = [(part.held, part.target, part.others, part.protection) for part in parts]
        signal, held = line.order, line.held
        drawn.account.ledger.take()
        given = 0, 1_000, START_MS + 9, START_MS + 9
        kind = CorporateActionKind.SPLIT
        apply_action(line, CorporateAction(KEY, kind, drawn.new, drawn.old, *given))
        assert line.held == drawn.quantity(held) == sum(part.held for part in parts)
        for part, (had, target, others, state) in zip(parts, before, strict=True):
            assert part.target == drawn.target(target, had, part.held)
            counted["rounded up"] += part.held > drawn.quantity(had)
            counted["kept"] += target == had > 0 and part.held != drawn.quantity(had)
            assert len(part.others) == (len(others) if part.held else 0)
            for order, was in zip(part.others, others, strict=False):
                assert (rest(order), order.status) == (part.held, was.status)
                prices = zip((order.price, order.trigger), (was.price, was.trigger), strict=True)
                assert all(is_ == (of and drawn.price(of)) for is_, of in prices)
                counted["exit"] += 1
            after = part.protection
            assert after.plan == drawn.plan(state.plan)
            assert after.next_plan == drawn.plan(state.next_plan)
            assert after.trail == (drawn.price(state.trail) if state.trail else 0)
        wanted = sum(part.target for part in parts)
        assert line.target == wanted
        now, changed = line.order, drawn.account.ledger.take().orders
        if signal is not None:
            assert (0 if now is None else rest(now)) == abs(wanted - line.held)
            counted["order" if now else "no order"] += 1
            ended = [order for order in changed if order.order_id == signal.order_id]
            assert now or [(of.status, of.reason) for of in ended] == [
                (OrderStatus.CANCELED, "split")
            ]
    assert min(counted.values()) > 5, counted
