"""Positions of several strategies behave like those of one: margin, sizes, paths."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from account_laws import check_account
from builders import START_MS, bar, instrument, quote
from several_strategies import LISTING, SCRIPTED, TURNING, configured, fills_of

from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import build_engine, resolved
from tracepaper.strategies.types.decisions import Fill, FillModel, Step
from tracepaper.strategies.types.market import (
    Category,
    Event,
    Gap,
    GapCause,
    Instrument,
    Mark,
)

MINUTE = 60_000
ITEM = instrument()
COSTS = {"fill_within_ms": MINUTE, "spread_slippage": "0.3"}


def built(config: Config, model: FillModel, item: Instrument = ITEM) -> Engine:
    return build_engine(
        resolved(config, model), [item], execution=model, period_start_ms=0, forecaster=None
    )  # fmt: skip


def several(model: FillModel, *options: dict[str, Any], of: str, **more: Any) -> Engine:
    """Return the engine of two strategies with *options*: one made *of* a class, one scripted."""
    category = Category(more.get("market", {}).get("category", "linear"))
    return built(
        configured(("a", "b"), ("0.5", "0.5"), of=(of, SCRIPTED), options=options, **more),
        model,
        instrument(category=category),
    )


def jumping(rng: random.Random, count: int, *, quotes: bool) -> Iterator[Event]:
    """Yield bars that jump, with thin quotes and marks between them, of which some are missed."""
    price = 1_000_000
    for index in range(count):
        opened, most = price, 90_000 if rng.random() < 0.1 else 3_000
        price = max(opened + rng.randint(-most, most), 200_000) // 10 * 10
        ends = opened, price
        candle = bar(
            price, index=index, open_=opened, volume=rng.randint(1, 10**6),
            high=max(ends) + rng.randint(0, 300) * 10, low=min(ends) - rng.randint(0, 300) * 10,
        )  # fmt: skip
        end = candle.close_time_ms
        if quotes and rng.random() < 0.1:
            yield Gap(candle.instrument, end - MINUTE, end, GapCause.DOWN, "rest", end, end)
            for ms in (100, 900):  # newer than the bar
                middle = price + rng.randint(-600, 600) * 10
                yield quote(middle - 50, middle + 50, at_ms=end + ms)
        elif quotes:
            for ms in (59_000, 40_000, 1_000):
                middle = price if rng.random() < 0.4 else opened
                size = rng.choice((30, 300, 2_000, 200_000))
                yield quote(middle - 50, middle + 50, at_ms=end - ms, size=size)
        if rng.random() < 0.3:
            mark = sum(ends) // 2 + rng.randint(-10_000, 10_000)
            yield Mark(candle.instrument, mark, end - 500, end - 500)
        yield candle


def plain(fills: Sequence[Fill]) -> list[tuple[Any, ...]]:
    return [
        (f.position_side, f.side, f.quantity, f.price, f.fee, f.model, f.filled_ms) for f in fills
    ]


def shadow(step: Step) -> list[tuple[Any, ...]]:
    named = [shadow for shadow in step.shadows if shadow.shadow == "ungated"]
    return [(plain(shadow.fills), shadow.position, shadow.account) for shadow in named]


@pytest.mark.parametrize(
    ("of", "seed", "margin", "mode"),
    [
        (TURNING, 2, "isolated", "one_way"), (TURNING, 27, "isolated", "one_way"),
        (TURNING, 25, "none", "one_way"), (TURNING, 2, "cross", "one_way"),
        (TURNING, 15, "cross", "one_way"), (TURNING, 2, "isolated", "hedge"),
        (TURNING, 27, "isolated", "hedge"), (TURNING, 25, "none", "hedge"),
        (TURNING, 2, "cross", "hedge"), (TURNING, 15, "cross", "hedge"),
        (LISTING, 8, "none", "one_way"), (LISTING, 4, "isolated", "one_way"),
        (LISTING, 5, "isolated", "one_way"), (LISTING, 6, "cross", "one_way"),
        (LISTING, 7, "cross", "one_way"), (LISTING, 4, "isolated", "hedge"),
        (LISTING, 8, "none", "hedge"), (LISTING, 6, "cross", "hedge"),
    ],
)  # fmt: skip
def test_a_strategy_beside_a_silent_one_is_filled_as_if_alone(
    of: str, seed: int, margin: str, mode: str
) -> None:
    model = FillModel.QUOTE if seed % 2 else FillModel.NEXT_OPEN
    account = {"cash": "100000", "margin": margin, "leverage": "50", "position_mode": mode}
    common: dict[str, Any] = {
        "account": account,
        "sizing": {"mode": "notional", "notional": "30000"},
        "execution": COSTS,
    }
    options = {"seed": seed}
    strategy = {"name": of, "options": options, "shadows": ["ungated"]}
    alone = built(load(None, {**common, "strategy": strategy}), model)
    both = several(model, options, {"says": {}}, of=of, shadows=["ungated"], **common)
    filled = 0
    for event in jumping(random.Random(seed), 60, quotes=bool(seed % 2)):
        first, two = alone.step(event, None), both.step(event, None)
        assert plain(first.fills) == plain(two.fills) == plain([part for _, part in fills_of(two)])
        assert first.account == two.account
        # A shadow account of all is that of the one that trades.
        assert shadow(first) == shadow(two)
        check_account(both.broker.account)
        check_account(both.broker.shadows["ungated"])
        filled += len(first.fills)
    assert filled > 20


@pytest.mark.parametrize("mode", ["one_way", "hedge"])
def test_half_an_account_is_traded_as_an_account_of_half_the_cash(mode: str) -> None:
    options, sizing = {"seed": 4}, {"mode": "equity", "fraction": "0.6"}
    common: dict[str, Any] = {"sizing": sizing, "execution": COSTS}
    half, whole = ({"cash": cash, "position_mode": mode} for cash in ("50000", "100000"))
    strategy = {"name": TURNING, "options": options}
    model = FillModel.NEXT_OPEN
    alone = built(load(None, {**common, "account": half, "strategy": strategy}), model)
    both = several(model, options, {"says": {}}, of=TURNING, account=whole, **common)
    filled = 0
    for event in jumping(random.Random(5), 80, quotes=False):
        first, two = alone.step(event, None), both.step(event, None)
        assert plain(first.fills) == plain(two.fills)
        filled += len(first.fills)
    assert filled > 20


def entered(engine: Engine) -> list[Fill]:
    """Let *engine* decide a first bar at 10,000, and fill its orders by a large quote."""
    fills: list[Fill] = []
    quotes = [quote(999_900, 1_000_000, at_ms=START_MS + ms) for ms in (MINUTE - 500, MINUTE + 500)]
    for event in (quotes[0], bar(1_000_000), quotes[1]):
        fills += engine.step(event, None).fills
    return fills


def later(bid: int, *, size: int = 10**9) -> Event:
    return quote(bid, bid + 100, size=size, at_ms=START_MS + MINUTE + 2_000)


def test_a_stop_of_one_of_two_fills_no_further_than_the_bankruptcy_price() -> None:
    options = {"says": {"0": ["LONG", 2]}}
    common: dict[str, Any] = {
        "account": {"cash": "20000", "margin": "isolated", "leverage": "30"},
        "execution": COSTS,
    }
    halves = {"mode": "notional", "notional": "15000"}
    whole = {**common, "sizing": {"mode": "notional", "notional": "30000"}}
    single = built(
        load(None, {**whole, "strategy": {"name": SCRIPTED, "options": options}}), FillModel.QUOTE
    )
    two = several(FillModel.QUOTE, options, options, of=SCRIPTED, sizing=halves, **common)
    ended: list[Step] = []
    for engine in (single, two):
        assert [fill.quantity for fill in entered(engine)] == [3_000]
        ended.append(engine.step(later(930_000), None))
        assert engine.step(bar(930_000, index=1), None).orders == ()  # nobody wants it back
    assert plain(ended[0].fills) == plain(ended[1].fills)
    assert ended[0].account == ended[1].account
    assert [fill.model for fill in ended[1].fills] == [FillModel.LIQUIDATION]
    assert {name: fill.quantity for name, fill in fills_of(ended[1])} == {"a": 1_500, "b": 1_500}


def test_on_spot_a_fee_s_rounding_is_bought_and_no_more_is_sold_than_is_held() -> None:
    says = {"0": ["LONG", 1]}, {"1": ["LONG"], "2": ["FLAT"]}
    engine = several(
        FillModel.QUOTE, *({"says": option} for option in says), of=SCRIPTED, execution=COSTS,
        market={"category": "spot"}, sizing={"mode": "notional", "notional": "3000"},
    )  # fmt: skip
    key = "spot:BTCUSDT"
    held = []
    for index, quotes in enumerate(
        (
            [(999_900, 300), (999_900, 10**6)],  # of 301 that were ordered the fee takes nothing
            [(999_900, 10**6)],
            [(980_000, 100), (980_000, 10**6)],  # through a's stop, while b is leaving
        )
    ):
        at_ms = START_MS + index * MINUTE
        before = quote(999_900, 1_000_000, at_ms=at_ms + MINUTE - 500, instrument_id=key)
        close = bar(1_000_000, index=index, instrument_id=key)
        after = [
            quote(bid, bid + 100, size=size, at_ms=at_ms + MINUTE + 500 + ms, instrument_id=key)
            for ms, (bid, size) in enumerate(quotes)
        ]
        events: list[Event] = [before, close, *after]
        for event in events:
            engine.step(event, None)
            check_account(engine.broker.account)
            held.append(engine.broker.account.held(key))
    assert 301 in held
    assert max(held) > 600
    assert [part.held(key) for part in engine.broker.account.owners.values()] == [0, 0]
