"""Several strategies on cross margin: every step of a liquidation is shared, to the last unit."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

from account_laws import check_account
from builders import START_MS, bar, instrument, quote
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from several_strategies import SCRIPTED, OwnParts, configured, fills_of

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.member import NO_EQUITY
from tracepaper.daemon.session.build import build_engine
from tracepaper.strategies.types.decisions import FillModel, OrderRole, OrderStatus, Step
from tracepaper.strategies.types.market import Bar, Event, Funding, Instrument, Mark, RiskTier, Side
from tracepaper.strategies.units import MONEY_SCALE

MINUTE = 60_000
SYMBOLS = ("BTCUSDT", "ETHUSDT")
TIERS = (
    RiskTier(20_000 * MONEY_SCALE, 50_000_000, 10_000, 0),
    RiskTier(60_000 * MONEY_SCALE, 100_000_000, 5_000, 100 * MONEY_SCALE),
    RiskTier(0, 200_000_000, 3_000, 700 * MONEY_SCALE),
)


def items() -> list[Instrument]:
    return [replace(instrument(one, tick_size=1), risk_tiers=TIERS) for one in SYMBOLS]


def built(fraction: str = "6", **sections: Any) -> Engine:
    given: dict[str, Any] = {
        "market": {"symbols": list(SYMBOLS)},
        "account": {"cash": "20000", "margin": "cross", "leverage": "30"},
        "sizing": {"mode": "equity", "fraction": fraction},
        **sections,
    }
    return build_engine(
        configured(**given), items(), execution=FillModel.NEXT_OPEN, period_start_ms=0,
        forecaster=None,
    )  # fmt: skip


def wild(seed: int, count: int) -> list[Event]:
    """Return bars of two symbols that jump now and then, marks between and a settlement."""
    rng, prices = random.Random(seed), dict.fromkeys(SYMBOLS, 100000)
    made: list[Event] = []
    for at in range(count):
        for symbol in SYMBOLS:
            key, opened = f"linear:{symbol}", prices[symbol]
            far = rng.random() < 0.12
            jump = rng.randint(-160, 160) * 100 if far else rng.randint(-700, 700)
            close = max(opened + jump, 20_000)
            one = bar(
                close, index=at, instrument_id=key, open_=opened,
                high=max(opened, close) + rng.randint(0, 200),
                low=min(opened, close) - rng.randint(0, 200), volume=5_000 + rng.randint(0, 999),
            )  # fmt: skip
            prices[symbol] = close
            if rng.random() < 0.3:
                at_ms = one.open_time_ms + 30_000
                made.append(
                    Mark(key, (opened + close) // 2 + rng.randint(-4_000, 4_000), at_ms, at_ms)
                )
            made.append(one)
            if at % 16 == 15:
                at_ms = one.close_time_ms
                made.append(Funding(key, rng.randint(-9, 9) * 10**6, at_ms, at_ms))
    return made


class OwnCrossParts:
    """Independent code: what each strategy has of both symbols, by fills and settlements alone."""

    def __init__(self, engine: Engine) -> None:
        cash = {name: part.cash for name, part in engine.broker.own.owners.items()}
        nothing = dict.fromkeys(cash, 0)
        self.cash = {name: Fraction(money) for name, money in cash.items()}
        self.of = {item.id: OwnParts(item, nothing) for item in items()}

    def take(self, step: Step, funding: int) -> None:
        """Book what *step* filled and settled."""
        for name, fill in fills_of(step):
            self.of[fill.instrument].fill(name, fill)
        if isinstance(step.event, Funding):
            own = self.of[step.event.instrument]
            own.settle(step.event, self.marks[step.event.instrument], funding)

    marks: dict[str, int]

    def equity(self, name: str) -> Fraction:
        """Return cash and what is held of both symbols, at the marks."""
        return self.cash[name] + sum(
            one.equity(name, self.marks[key]) for key, one in self.of.items() if key in self.marks
        )


def shared_by_rule(quantity: int, weights: list[int]) -> list[int]:
    """Return *quantity* by *weights*, in fractions: whole units, then the largest remainders."""
    exact = [Fraction(quantity * one, sum(weights)) for one in weights]
    parts = [one.__floor__() for one in exact]
    order = sorted(range(len(parts)), key=lambda at: parts[at] - exact[at])
    for at in order[: quantity - sum(parts)]:
        parts[at] += 1
    return parts


class Seen:
    """What liquidations a run had."""

    def __init__(self) -> None:
        self.taken = self.reduced = self.others = self.opposed = self.by_mark = 0


def run(engine: Engine, events: list[Event]) -> tuple[list[Step], Seen]:
    """Step through *events*; the parts are the account, an own ledger agrees, shares follow."""
    own, seen, steps, paid = OwnCrossParts(engine), Seen(), [], 0
    own.marks = {}
    names = list(engine.broker.own.owners)
    marked: set[str] = set()
    for event in events:
        before = {key: {n: own.of[key].held[n] for n in names} for key in own.of}
        step = engine.step(event, None)
        steps.append(step)
        check_account(engine.broker.own)
        held = before
        for fill in step.fills:
            parts = [
                one for one in fills_of(step)
                if one[1].order_id == fill.order_id and one[1].model is fill.model
            ]  # fmt: skip
            if fill.model is FillModel.LIQUIDATION or "risk tier" in fill.reason:
                sign = -1 if fill.side is Side.BUY else 1
                weights = [max(sign * held[fill.instrument][name], 0) for name in names]
                expected = dict(zip(names, shared_by_rule(fill.quantity, weights), strict=True))
                got = {name: one.quantity for name, one in parts}
                assert got == {name: most for name, most in expected.items() if most}
                seen.opposed += any(sign * one < 0 for one in held[fill.instrument].values())
                seen.taken += "taken over" in fill.reason
                seen.reduced += "risk tier" in fill.reason
                seen.by_mark += isinstance(event, Mark)
                seen.others += fill.instrument != getattr(event, "instrument", "")
            for name, one in parts:
                signed = one.quantity if one.side is Side.BUY else -one.quantity
                held[fill.instrument][name] += signed
        if isinstance(event, Mark):
            own.marks[event.instrument] = event.price
            marked.add(event.instrument)
        elif isinstance(event, Bar):
            if event.instrument not in marked:
                own.marks[event.instrument] = event.close
            marked.discard(event.instrument)
        own.take(step, step.account.funding_paid - paid)
        paid = step.account.funding_paid
        for name, part in engine.broker.own.owners.items():
            for key, of in own.of.items():
                assert of.held[name] == part.held(key)
            assert own.equity(name) == part.balance().equity
    return steps, seen


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_parts_are_the_account_through_every_liquidation(seed: int) -> None:
    run(built(), wild(seed, 150))


def test_all_kinds_of_liquidation_are_shared() -> None:
    total = Seen()
    for at in range(8):
        engine = built(("4", "12", "20")[at % 3])
        steps, seen = run(engine, wild(10 + at, 120))
        for name, count in vars(seen).items():
            setattr(total, name, getattr(total, name) + count)
        assert all(step.account.equity >= 0 for step in steps)
        orders = [one for step in steps for one in step.orders if one.role is OrderRole.LIQUIDATION]
        assert all(not one.owner for one in orders)
    assert all(vars(total).values()), vars(total)


def scripted(execution: FillModel = FillModel.NEXT_OPEN, **said: dict[str, Any]) -> Engine:
    """Return an engine of two strategies that say what they are told of BTCUSDT."""
    config = configured(
        ("a", "b"), ("0.5", "0.5"), of=(SCRIPTED, SCRIPTED),
        options=({"says": said["a"]}, {"says": said["b"]}),
        account={"cash": "20000", "margin": "cross", "leverage": "10"},
        sizing={"mode": "equity", "fraction": "8"},
        execution={"fill_within_ms": MINUTE},
    )  # fmt: skip
    return build_engine(
        config, items()[:1], execution=execution, period_start_ms=0, forecaster=None
    )


KEY = "linear:BTCUSDT"


def flat(count: int, price: int = 100_000) -> list[Bar]:
    return [bar(price, index=at, instrument_id=KEY) for at in range(count)]


def test_only_the_liquidated_side_is_taken_and_what_is_left_is_closed_by_the_next_close() -> None:
    engine = scripted(a={"0": ["LONG", None]}, b={"0": ["SHORT", None]})
    broker = engine.broker
    for one in flat(2):
        engine.step(one, None)
    taken = broker.own.owners["a"].held(KEY)
    assert (broker.own.owners["b"].held(KEY), broker.own.held(KEY)) == (-taken, 0)
    broker.share_out()
    broker.own.owners["b"].lines[KEY].want(-taken // 4, "less")  # of what crosses, a half is bought
    broker.own.line(KEY).agree()
    for one in flat(4)[2:]:
        engine.step(one, None)
    long, short = (broker.own.owners[name].held(KEY) for name in ("a", "b"))
    net = broker.own.held(KEY)
    assert short < 0 < net < long
    at_ms = START_MS + 4 * MINUTE
    broker.on_mark(Mark(KEY, 40_000, at_ms, at_ms))
    filled = broker.take()
    check_account(engine.broker.own)
    assert broker.own.held(KEY) == 0
    assert [fill.quantity for fill in filled.fills] == [net]
    assert list(filled.beside) == ["a"]  # b stands on the other side
    assert [owner.held(KEY) for owner in broker.own.owners.values()] == [long - net, short]
    step = engine.step(bar(40_000, index=4, instrument_id=KEY), None)
    check_account(engine.broker.own)
    assert {one.strategy: one.outcome.reason for one in step.strategies}["a"] == NO_EQUITY


def test_a_close_that_would_cost_more_than_there_is_takes_the_account_over() -> None:
    said: dict[str, Any] = {"a": {"0": ["LONG", 0.05]}, "b": {"0": ["LONG", None]}}
    engine = scripted(FillModel.QUOTE, **said)
    broker = engine.broker
    engine.step(quote(99_990, 100_010, at_ms=START_MS + 59_000, instrument_id=KEY), None)
    engine.step(bar(100_000, index=0, instrument_id=KEY), None)
    at_ms = START_MS + 70_000
    engine.step(quote(99_990, 100_010, at_ms=at_ms, instrument_id=KEY), None)
    assert all(part.held(KEY) > 0 for part in broker.own.owners.values())
    stop = broker.own.owners["a"].lines[KEY].orders.protective(OrderRole.STOP)
    assert stop is not None
    broker.on_quote(quote(40_000, 40_020, at_ms=at_ms + 1, instrument_id=KEY))
    filled = broker.take()
    check_account(engine.broker.own)
    assert broker.own.held(KEY) == 0
    assert 0 <= broker.own.balance().equity < 2 * MONEY_SCALE  # by a tick
    assert {fill.model for fill in filled.fills} == {FillModel.LIQUIDATION}
    ended = {one.order_id: one for one in filled.orders}[stop.order_id]
    assert (ended.status, ended.filled) == (OrderStatus.CANCELED, 0)


def test_a_settlement_calls_the_account() -> None:
    engine = scripted(a={"0": ["LONG", None]}, b={"0": ["LONG", None]})
    for one in flat(2):
        engine.step(one, None)
    assert engine.broker.own.held(KEY) > 0
    at_ms = START_MS + 2 * MINUTE
    engine.broker.on_funding(Funding(KEY, 11 * 10**8, at_ms, at_ms))
    filled = engine.broker.take()
    check_account(engine.broker.own)
    assert {fill.model for fill in filled.fills} == {FillModel.LIQUIDATION}
    assert {*filled.beside} == {"a", "b"}
