"""Splits and dividends in a ledger, compared with an independent account in fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import builders
from actions_ledger import UNIT, ReferenceAccount
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tracepaper.daemon.broker.account import PaperAccount
from tracepaper.daemon.broker.execution import RANGE_BARS, ExecutionCosts, MeanRange
from tracepaper.daemon.broker.settings import BrokerSettings, Latency
from tracepaper.daemon.broker.splits import apply_action
from tracepaper.strategies.api.sizing import VolatilityKind, WindowedVolatility
from tracepaper.strategies.corporate_actions import (
    ShareTerms,
    adjusted_bar,
    adjusted_price,
    entitlement,
    entitlement_parts,
)
from tracepaper.strategies.types.decisions import Fill, FillModel, Liquidity
from tracepaper.strategies.types.market import (
    Category,
    CorporateAction,
    CorporateActionKind,
    Instrument,
    Side,
)

CASH = 100_000 * UNIT
RATE = 10**10  # of an amount for each share
RATIOS = st.sampled_from(
    [(7, 1), (3, 2), (2, 1), (1, 10), (1, 8), (2, 3), (11, 10), (1, 1000), (20, 1), (137, 100)]
)
MOVES = st.one_of(
    st.tuples(st.just("buy"), st.integers(1, 90), st.integers(100, 90_000)),
    st.tuples(st.just("sell"), st.integers(1, 100), st.integers(100, 90_000)),
    st.tuples(st.just("split"), RATIOS, st.integers(100, 90_000)),
    st.tuples(st.just("dividend"), st.integers(1, 3 * RATE), st.integers(100, 90_000)),
)


def share(decimals: int) -> Instrument:
    return Instrument(Category.STOCK, "ACME", "ACME", "USD", 2, decimals, 0, 2, 1, 1, 0, 0, 0)


def fill(side: Side, quantity: int, price: int, decimals: int, fee: int) -> Fill:
    values: dict[str, Any] = {
        "order_id": "1-0",
        "instrument": "stock:ACME",
        "side": side,
        "quantity": quantity,
        "price": price,
        "reference_price": price,
        "notional": quantity * price * 10 ** (6 - decimals),
        "fee": fee,
        "fee_base": 0,
        "liquidity": Liquidity.TAKER,
        "model": FillModel.NEXT_OPEN,
        "reason": "",
        "filled_ms": 5,
    }
    return Fill(**{name: values[name] for name in Fill.__struct_fields__ if name in values})


def opened(decimals: int) -> PaperAccount:
    settings = BrokerSettings(FillModel.NEXT_OPEN, ExecutionCosts(0), CASH, Latency(0))
    return PaperAccount([share(decimals)], settings, keeps_ledger=True)


def action(kind: str, new: int = 1, old: int = 1, amount: int = 0, close: int = 1) -> Any:
    return CorporateAction("stock:ACME", CorporateActionKind(kind), new, old, amount, close, 9, 9)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from([0, 3]), st.lists(MOVES, max_size=14))
def test_any_sequence_leaves_what_fractions_leave(decimals: int, moves: list[Any]) -> None:
    ledger = opened(decimals)
    scale = 10**decimals
    reference = ReferenceAccount(Fraction(CASH, UNIT), Fraction(1, scale))
    for what, size, price in moves:
        held, fee = ledger.held("stock:ACME"), UNIT + 1
        at = Fraction(price, 100)
        if what == "buy":
            ledger.line("stock:ACME").post(fill(Side.BUY, size * 7, price, decimals, fee))
            reference.buy(Fraction(size * 7, scale), at, Fraction(fee, UNIT))
        elif what == "sell" and held:
            sold = max(held * size // 100, 1)
            ledger.line("stock:ACME").post(fill(Side.SELL, sold, price, decimals, fee))
            reference.sell(Fraction(sold, scale), at, Fraction(fee, UNIT))
        elif what == "split":
            apply_action(ledger.line("stock:ACME"), action("split", size[0], size[1], close=price))
            reference.split(Fraction(*size), at)
        elif what == "dividend":
            apply_action(ledger.line("stock:ACME"), action("dividend", amount=size, close=price))
            reference.dividend(Fraction(size, RATE))
        ledger.line("stock:ACME").mark_to(price)
        account, position = ledger.balance(), ledger.position("stock:ACME")
        assert Fraction(position.quantity, scale) == reference.quantity
        assert Fraction(position.entry_notional, UNIT) == reference.entry
        assert Fraction(account.cash, UNIT) == reference.cash
        assert Fraction(account.realized_pnl, UNIT) == reference.realized
        assert Fraction(account.fees_paid, UNIT) == reference.fees
        assert Fraction(account.equity, UNIT) == reference.equity(at)
        # K10: cash = start + realized profit - fees - cost of the held shares.
        cost = position.entry_notional
        assert account.cash == CASH + account.realized_pnl - account.fees_paid - cost
    assert ledger.ledger.entries is not None
    moved = [
        (entry.kind.value, Fraction(entry.amount, UNIT)) for entry in ledger.ledger.entries[1:]
    ]
    assert moved == reference.moves
    assert sum(entry.amount for entry in ledger.ledger.entries) == ledger.cash


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.one_of(RATIOS, st.integers(1, 3 * RATE)),
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 10**13)), min_size=1, max_size=4),
    st.integers(100, 90_000),
)
def test_parts_of_an_action_add_up_and_each_gets_its_own_to_a_unit(
    what: Any, parts: list[tuple[int, int]], close: int
) -> None:
    parts = [(quantity, entry if quantity else 0) for quantity, entry in parts]
    given = {"amount": what} if isinstance(what, int) else {"new": what[0], "old": what[1]}
    acted = action("dividend" if isinstance(what, int) else "split", close=close, **given)
    terms, held = ShareTerms.of(share(0)), tuple(map(sum, zip(*parts, strict=True)))
    whole = entitlement(acted, held[0], held[1], terms)
    assert entitlement_parts(acted, whole, [(held[0], held[1])], terms) == [whole]
    shared = entitlement_parts(acted, whole, parts, terms)
    for name in ("quantity", "paid"):
        assert sum(getattr(part, name) for part in shared) == getattr(whole, name)
    ratio, price = Fraction(acted.new, acted.old), Fraction(close * UNIT, 100)
    for (before, _), after in zip(parts, shared, strict=True):
        got = price / ratio * after.quantity + after.paid
        assert abs(got - before * (price + Fraction(acted.amount * UNIT, RATE))) < 1
        assert abs(after.quantity - before * ratio) < 1
        assert after.paid > 0 or after.entry == after.paid  # what is paid for is held at its cost


def test_a_bar_before_a_split_is_one_of_the_new_shares() -> None:
    bar = builders.bar(index=0)
    bar = replace(bar, open=64_557, high=65_001, low=64_000, close=64_557, volume=1_001)
    adjusted = adjusted_bar(action("split", 3, 2), bar)
    assert (adjusted.open, adjusted.high, adjusted.low) == (43_038, 43_334, 42_667)
    assert (adjusted.close, adjusted.volume) == (43_038, 1_502)  # 1,501.5, to the even one
    assert adjusted_bar(action("split", 1, 10), bar).volume == 100


def test_what_histories_and_ranges_know_is_as_if_fed_with_adjusted_bars() -> None:
    bars = [
        replace(builders.bar(index=at), high=900 + 7 * at, low=850 - at, close=880 + 3 * at)
        for at in range(90)
    ]
    split = action("split", 3, 2)
    later = replace(builders.bar(index=90), high=700, low=500, close=600)
    true = MeanRange(RANGE_BARS), MeanRange(RANGE_BARS)
    mean = MeanRange.of_day(86_400_000), MeanRange.of_day(86_400_000)
    pairs: tuple[tuple[Any, Any], ...] = (true, mean)
    for raw, adjusted in pairs:
        for bar in bars:
            raw.push(bar)
            adjusted.push(adjusted_bar(split, bar))
        raw.adjust(split)
        raw.push(later)
        adjusted.push(later)
    assert true[0].rate == true[1].rate > 0
    assert mean[0].mean() == mean[1].mean() is not None
    for kind in VolatilityKind:
        volatility, fed = WindowedVolatility(kind, 40), WindowedVolatility(kind, 40)
        for bar in bars:
            volatility.add(bar.close)
            fed.add(adjusted_price(split, bar.close))
        volatility.adjust(split)
        volatility.add(700)
        fed.add(700)
        assert volatility.of_bars(1) == fed.of_bars(1)
