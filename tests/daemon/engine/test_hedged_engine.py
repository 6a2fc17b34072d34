"""Hedge mode: two sides of one symbol, equal to an independent account to the last unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from account_laws import check_account, run
from builders import bars, instrument
from hedged_cases import (
    DRAWN,
    LONG,
    SCRIPTED,
    SHORT,
    configured,
    walk,
)
from msgspec.structs import replace

from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import build_engine
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import PortfolioStrategy
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken, StrategyFailed
from tracepaper.strategies.types.decisions import Action, FillModel, OrderStatus, Step
from tracepaper.strategies.types.market import CloseStart, Event

ITEM = instrument()
KEY = ITEM.id


def built(config: Config, execution: FillModel = FillModel.NEXT_OPEN) -> Engine:
    return build_engine(config, [ITEM], execution=execution, period_start_ms=0, forecaster=None)


def scripted(says: dict[str, Any], **options: Any) -> Engine:
    named = ("gate", "risk", "account", "sizing")
    sections = {key: options.pop(key) for key in named if key in options}
    return built(configured({"says": says, **options}, of=SCRIPTED, **sections))


def sides(step: Step) -> tuple[int, int]:
    long, short = (shadow.position.quantity for shadow in step.shadows)
    return long, short


def test_long_only_on_cross_margin_is_as_in_one_way_mode() -> None:
    strategy = {"name": "sma_cross", "fast": 2, "slow": 5, "long_only": True}
    account = {"cash": "3000", "margin": "cross", "leverage": "50"}
    hedge, one_way = (
        built(
            load(
                None,
                {
                    "strategy": strategy, "account": {**account, "position_mode": mode},
                    "sizing": {"mode": "notional", "notional": "120000"},
                },
            )
        )
        for mode in ("hedge", "one_way")
    )  # fmt: skip
    models = set()
    for close in bars(200, seed=4):
        wide = replace(close, low=close.low * (100 - 3 * (close.volume % 7 == 0)) // 100)
        step, other = hedge.step(wide, None), one_way.step(wide, None)
        assert step.account == other.account
        assert [replace(fill, position_side=None) for fill in step.fills] == list(other.fills)
        check_account(hedge.broker.account)
        models |= {fill.model for fill in step.fills}
    assert FillModel.LIQUIDATION in models


def test_a_shadow_account_of_the_same_decisions_is_the_run() -> None:
    config = configured({"seed": 4, "shadows": ["ungated"]})
    steps = run(built(config, FillModel.QUOTE), walk(4, quotes=True, shocks=True))
    for step in steps:
        for shadow in step.shadows[2:]:
            assert (shadow.position, shadow.account) == (step.position, step.account)
            fills = [replace(fill, order_id="") for fill in step.fills]
            assert [replace(fill, order_id="") for fill in shadow.fills] == fills
    assert {fill.position_side for step in steps for fill in step.shadows[2].fills} == {LONG, SHORT}


def test_sides_that_end_together_are_not_asked_for_again() -> None:
    """Signal and sum of targets stay the same, but the target of each side changes."""
    says = {"1": ["LONG", None, 1], "2": ["SHORT", None, 1]}
    before, both, after = bars(12)[:6], bars(12)[6], bars(12)[7:]
    wide = replace(both, high=both.high + 20_000, low=both.low - 20_000)
    stream: list[Event] = [*before, wide, *after]
    steps = run(scripted(says, sizing={"mode": "fixed", "quantity": "0.4"}), stream)
    assert sides(steps[5]) == (400, -400)
    assert {fill.position_side for fill in steps[6].fills} == {LONG, SHORT}
    held, ended = steps[5].decision, steps[6].decision
    assert held is not None
    assert ended is not None
    assert (ended.action, ended.target_quantity) == (held.action, held.target_quantity)
    assert {sides(step) for step in steps[6:]} == {(0, 0)}
    assert not [order for step in steps[7:] for order in step.orders]


def test_a_refusal_by_a_gate_of_integrity_leaves_both_sides_as_they_are() -> None:
    engine = scripted({"1": ["LONG"], "2": ["SHORT"], "6": ["LONG"]}, gate={"on_refusal": "flat"})
    stream = list(bars(12))
    late = replace(stream[6], seen_ms=stream[6].seen_ms + 10**9)
    steps = run(engine, [*stream[:6], late, *stream[7:]])
    decided = steps[6].decision
    assert decided is not None
    assert decided.refused_by == "late"
    assert not steps[6].orders
    assert sides(steps[-1])[0] > 0 > sides(steps[-1])[1]


def test_limits_of_a_symbol_count_both_sides() -> None:
    engine = scripted({"1": ["LONG"], "3": ["SHORT"]}, risk={"max_notional": "60000"})
    steps = run(engine, list(bars(8)))
    decided = steps[3].decision
    assert decided is not None
    assert decided.refused_by == "risk.notional"
    assert sides(steps[-1])[1] == 0 < sides(steps[-1])[0]


def test_the_size_of_a_side_leaves_room_for_the_other() -> None:
    sizing = {"mode": "equity", "fraction": "0.6", "max_gross": "1"}
    steps = run(scripted({"1": ["LONG"], "3": ["SHORT"]}, sizing=sizing), list(bars(6)))
    long, short = (abs(quantity) for quantity in sides(steps[-1]))
    assert abs(short / long - 0.4 / 0.6) < 0.02


def test_orders_of_a_list_open_and_close_the_side_that_they_name() -> None:
    def of(side: str, name: str | None, quantity: float) -> dict[str, Any]:
        return {"side": side, "of": name, "quantity": quantity}

    engine = scripted(
        {
            "1": ["ORDERS", [of("BUY", "LONG", 1), of("SELL", "SHORT", 2)]],
            "3": ["ORDERS", [of("SELL", "LONG", 5), of("BUY", "SHORT", 0.5)]],
            "5": ["ORDERS", [of("SELL", "LONG", 1)]],
        }
    )
    steps = run(engine, list(bars(8)))
    assert sides(steps[2]) == (1_000, -2_000)
    assert sides(steps[4]) == (0, -1_500)  # what closes is cut to what there is
    (refused,) = steps[5].orders
    assert refused.status is OrderStatus.REJECTED
    assert refused.reason == "it is reduce-only, and there is no position for it to close"
    assert all(order.reduce_only for order in steps[3].orders)
    unnamed = scripted({"1": ["ORDERS", [of("BUY", None, 1)]]})
    with pytest.raises(
        StrategyFailed, match="without a position_side, which an account in hedge mode needs"
    ):
        run(unnamed, list(bars(3)))


def test_an_account_is_engaged_in_what_both_sides_hold_alike() -> None:
    """The net is 0, but both sides must still be valued."""
    sizing = {"mode": "fixed", "quantity": "1"}
    engine = scripted({"1": ["LONG"], "2": ["SHORT"], "5": ["FLAT"]}, sizing=sizing)
    states = []
    for candle in bars(8):
        states.append((engine.broker.account.held(KEY), engine.broker.is_engaged(KEY)))
        engine.step(candle, None)
    held, engaged = zip(*states, strict=True)
    assert held == (0, 0, 0, 1_000, 0, 0, 0, 0)
    assert engaged == (False, False, True, True, True, True, True, False)


def test_a_fill_that_would_turn_a_side_is_a_bug_that_ends_the_run() -> None:
    engine = scripted({"1": ["LONG"]})
    steps = run(engine, list(bars(4)))
    (fill,) = [fill for step in steps for fill in step.fills]
    line = engine.broker.account.sides[SHORT].lines[KEY]
    with pytest.raises(InvariantBroken, match="closed more of linear:BTCUSDT than its SHORT side"):
        line.post(fill)


@pytest.mark.parametrize(
    ("says", "what"),
    [
        ({"1": ["FLAT", "LONG"]}, "names a position_side, but the account is in one-way mode"),
        (
            {"1": ["ORDERS", [{"side": "BUY", "of": "LONG", "quantity": 1}]]},
            "names a position_side, but the account is in one-way mode",
        ),
    ],
)
def test_a_side_is_refused_in_one_way_mode(says: dict[str, Any], what: str) -> None:
    config = configured({"says": says}, of=SCRIPTED, account={"position_mode": "one_way"})
    engine = build_engine(
        config, [ITEM], execution=FillModel.NEXT_OPEN, period_start_ms=0, forecaster=None
    )
    engine.step(bars(1)[0], None)
    with pytest.raises(StrategyFailed, match=what):
        engine.step(bars(2)[1], None)


def test_what_hedge_mode_does_not_take_is_one_sentence() -> None:
    config = configured({"seed": 1}, of=DRAWN)
    with pytest.raises(ConfigInvalid, match="is settled in USDC"):
        build_engine(
            config,
            [replace(ITEM, quote_coin="USDC")],
            execution=FillModel.NEXT_OPEN,
            period_start_ms=0,
            forecaster=None,
        )


class Weights(PortfolioStrategy):
    """Weighs all symbols by the volume of their bars: above 0, below it, or nothing."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    def decide(self, contexts: Mapping[str, BarContext]) -> dict[str, Signal]:
        actions = Action.LONG, Action.SHORT, Action.FLAT, Action.HOLD
        return {
            symbol: Signal(actions[of.exact.volume % 4], "drawn", (0.5, 1.0)[of.exact.volume % 2])
            for symbol, of in contexts.items()
        }


def test_the_weights_of_a_portfolio_are_of_one_side_each_and_held_as_in_one_way_mode() -> None:
    items = [instrument(symbol) for symbol in ("BTCUSDT", "ETHUSDT")]
    whole, hedged = (
        build_engine(
            configured({}, of=f"{__name__}:Weights", account={"position_mode": mode},
                       market={"symbols": ["BTCUSDT", "ETHUSDT"]}, risk={"max_notional": "70000"}),
            items, execution=FillModel.NEXT_OPEN, period_start_ms=0, forecaster=None,
        )
        for mode in ("one_way", "hedge")
    )  # fmt: skip
    turned = 0
    for closes in zip(
        *(bars(60, seed=at, instrument_id=of.id) for at, of in enumerate(items)), strict=True
    ):
        closed = CloseStart(closes[0].open_time_ms, 2, (), closes[0].closed_ms, closes[0].closed_ms)
        before = [hedged.broker.account.held(item.id) for item in items]
        for engine in (whole, hedged):
            engine.close(closed, closes, [None, None])
            check_account(engine.broker.account)
        held = [hedged.broker.account.held(item.id) for item in items]
        assert held == [whole.broker.account.held(item.id) for item in items]
        assert all(0 in {book.held(of.id) for book in hedged.broker.account.books} for of in items)
        turned += sum(was * now < 0 for was, now in zip(before, held, strict=True))
    assert turned > 10
