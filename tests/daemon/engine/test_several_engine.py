"""Several strategies on one account: netted, crossed, protected, adding up to the unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hedged_cases
import pytest
from account_laws import check_account, run
from builders import START_MS, bars, explanation, forecast, instrument, quote
from builders import bar as at_price
from fakes import FixedForecaster
from hedged_cases import walk
from msgspec.structs import replace
from several_strategies import (
    ACCOUNTING,
    DRAWN,
    SCRIPTED,
    configured,
    crossed_in,
)

from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import build_engine, resolved
from tracepaper.strategies.api.context import BarContext, Orders, Signal
from tracepaper.strategies.api.strategy import PortfolioStrategy
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import (
    Action,
    FillModel,
    OrderStatus,
    Step,
)
from tracepaper.strategies.types.market import (
    Bar,
    Event,
)

MINUTE = 60_000
ITEM = instrument()


def built(config: Config, execution: FillModel = FillModel.NEXT_OPEN, **item: Any) -> Engine:
    return build_engine(
        config,
        [instrument(**item)],
        execution=execution,
        period_start_ms=0,
        forecaster=None,
    )


def test_a_measure_that_moves_is_that_of_each_bar_though_its_verdict_stays() -> None:
    config = resolved(
        load(
            None,
            {
                "gate": {"confidence": "0", "collapse": "0", "direction": "0", "shift": "1"},
                "regime": {"momentum": "0.6", "mean_reversion": "0.3"},
                "sizing": {"mode": "notional", "notional": "5000"},
                "strategies": {name: {"name": "attention", "share": "0.5"} for name in ("a", "b")},
            },
        ),
        FillModel.NEXT_OPEN,
    )
    calibration = Calibration({}, {30: 1.0}, 0.0)
    model = FixedForecaster(lambda _: forecast(0.0), context=4, calibration=calibration)
    machine = build_engine(
        config, [ITEM], execution=FillModel.NEXT_OPEN, period_start_ms=0, forecaster=model
    )
    matches = []
    for at, bar in enumerate(bars(40, seed=3)):
        confidence = 0.5 + at / 1_000
        step = machine.step(
            bar, forecast(0.0, explained=explanation(confidence_entropy=confidence))
        )
        matches += [
            dict(line.measures).get("confidence_entropy") == confidence for line in step.strategies
        ]
    assert matches.count(True) > 50
    assert all(matches[-20:])


def test_a_strategy_that_fails_is_set_aside_and_closed_and_the_rest_goes_on() -> None:
    fails_at = (START_MS // MINUTE + 40) % 1_000
    config = configured(options=({"seed": 1}, {"seed": 2, "fails_at": fails_at}, {"seed": 3}))
    engine = built(config)
    steps = run(engine, walk(5))
    by_name = [
        {line.strategy: line for line in step.strategies} for step in steps if step.strategies
    ]
    failed = [outcomes["b"] for outcomes in by_name[40:]]
    assert all(
        outcome.outcome.reason.startswith("set aside: DrawnActions failed") for outcome in failed
    )
    assert "0x…" in failed[0].outcome.reason
    assert r"\ud800\x00" in failed[0].outcome.reason  # what no text can hold is escaped
    assert "at several_strategies.py:" in failed[0].outcome.reason
    assert {outcome.target_quantity for outcome in failed} == {0}
    assert engine.broker.account.owners["b"].held(ITEM.id) == 0
    assert any(outcomes["a"].target_quantity for outcomes in by_name[41:])
    shares = engine.state().shares
    assert shares is not None
    assert list(shares.failed) == ["b"]


class Breaks(PortfolioStrategy):
    """Buys every symbol at two closes, and breaks at the third."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._closes = 0

    def decide(self, contexts: Mapping[str, BarContext]) -> dict[str, Signal | Orders]:
        self._closes += 1
        assert self._closes < 3
        return {symbol: Signal(Action.LONG, "all") for symbol in contexts}


def test_a_portfolio_that_fails_is_set_aside_as_any_strategy_is() -> None:
    of, options = (f"{__name__}:Breaks", SCRIPTED), [{"says": {"0": ["LONG"]}}] * 2
    engine = built(configured(("a", "b"), ("0.5", "0.5"), of=of, options=options))
    steps = run(engine, [at_price(10_000, index=at) for at in range(5)])
    reasons = [step.strategies[0].outcome.reason for step in steps]
    assert reasons[:2] == ["all", "all"]
    assert all(reason.startswith("set aside: ") for reason in reasons[2:])
    assert [owner.held(ITEM.id) > 0 for owner in engine.broker.account.owners.values()] == [
        False,
        True,
    ]


@pytest.mark.parametrize("reset", ["day", "week", "month"])
def test_shares_are_given_anew_at_the_first_close_of_a_period(reset: str) -> None:
    spans = {"day": 24 * 60, "week": 7 * 24 * 60, "month": 31 * 24 * 60}
    engine = built(configured(reset=reset, shadows=["ungated"]))
    accounts = engine.broker.account, engine.broker.shadows["ungated"]
    first = bars(60, seed=3)
    events = [*first]
    later_ms = spans[reset] * MINUTE
    for bar in bars(60, seed=4):
        moved = bar.open_time_ms + later_ms
        events.append(_moved(bar, moved))
    given_anew = 0
    for event in events:
        before = [part.cash for part in engine.broker.account.shares]
        step = engine.step(event, None)
        check_account(engine.broker.account)
        if event is events[60]:
            given_anew += 1
            assert step.account.equity == accounts[0].balance().equity
            for account in accounts:
                total = account.balance().equity
                shares = [part.balance().equity for part in account.owners.values()]
                assert max(abs(5 * total // 10 - shares[0]), abs(3 * total // 10 - shares[1])) <= 1
            assert before != [part.cash for part in engine.broker.account.shares]
    assert given_anew == 1


def _moved(bar: Bar, open_ms: int) -> Bar:
    end = open_ms + MINUTE
    return replace(bar, open_time_ms=open_ms, market_ms=end, seen_ms=end)


def listing(*, risk: dict[str, Any], **says: dict[str, list[Any]]) -> Engine:
    """Return two strategies that answer each bar, at 100, by *says*."""
    options = [{"says": of} for of in says.values()]
    shares = ("0.5", "0.5")
    return built(configured([*says], shares, of=[SCRIPTED] * 2, options=options, risk=risk))


def orders_of(step: Step) -> list[tuple[str, int | None, OrderStatus]]:
    return [(order.owner, order.price, order.status) for order in step.orders]


def test_a_limit_counts_the_lists_of_all_and_holds_up_none_that_only_reduces() -> None:
    more = ["ORDERS", [6, 98, False], [-1, 101, True]]
    engine = listing(
        risk={"max_notional": "1000"},
        a={"0": ["ORDERS", [6, 99, False]], "2": ["ORDERS", [3, 99, False]]}, b={"1": more},
    )  # fmt: skip
    first, second, third = run(engine, [at_price(10_000, index=at) for at in range(3)])
    assert orders_of(first) == [("a", 9_900, OrderStatus.NEW)]
    assert second.decision is not None
    assert second.decision.refused_by == "risk.notional"
    (_, of_b) = second.strategies
    assert "risk.notional" in (of_b.outcome.unfilled_reason or "")
    # What may only reduce is asked for, and there is nothing to reduce.
    assert orders_of(second)[1:] == [("b", 10_100, OrderStatus.REJECTED)]
    assert orders_of(third) == [("a", 9_900, OrderStatus.NEW)]


def test_limits_bind_of_the_shadow_accounts_of_all_those_that_do_what_the_run_does() -> None:
    names = ("ungated", "no_edge")
    attention = {"name": "attention", "share": "0.5", "shadows": list(names)}
    gates = {"confidence": "0", "collapse": "0", "direction": "0", "shift": "1", "edge": "0"}
    config = resolved(
        load(
            None,
            {
                "gate": {**gates, "regimes": ["MOMENTUM", "MIXED", "MEAN_REVERSION"]},
                "regime": {"momentum": "0.6", "mean_reversion": "0.3"},
                "sizing": {"mode": "notional", "notional": "5000"},
                "risk": {"max_notional": "6000"},
                "strategies": dict.fromkeys(("a", "b"), attention),
            },
        ),
        FillModel.NEXT_OPEN,
    )
    calibration = Calibration({}, {30: 1.0}, 0.0)
    model = FixedForecaster(lambda _: forecast(0.0), context=4, calibration=calibration)
    engine = build_engine(
        config, [ITEM], execution=FillModel.NEXT_OPEN, period_start_ms=0, forecaster=model
    )
    refused = 0
    for close in bars(20, seed=3):
        step = engine.step(close, forecast(0.01, explained=explanation()))
        assert step.decision is not None
        refused += step.decision.refused_by == "risk.notional"
        for shadow in engine.broker.shadows.values():
            check_account(shadow)
    held = {name: engine.broker.shadows[name].held(ITEM.id) for name in names}
    assert refused > 5
    assert held["no_edge"] == engine.broker.account.held(ITEM.id) == 0
    assert held["ungated"] > 0


def hedged(
    *says: dict[str, list[Any]], model: FillModel = FillModel.NEXT_OPEN, **risk: str
) -> Engine:
    """Return the engine of scripted strategies in hedge mode."""
    config = configured(
        "abc", ["0.3"] * len(says), of=[SCRIPTED] * len(says),
        options=[{"says": of} for of in says], sizing={"mode": "fixed", "quantity": "0.4"},
        account={"cash": "100000", "position_mode": "hedge"}, risk=risk,
        execution={"fill_within_ms": 60 * MINUTE},
    )  # fmt: skip
    return built(config, model)


def test_in_hedge_mode_a_limit_counts_both_sides_of_all_and_refuses_no_exit() -> None:
    notional = f"{bars(1)[0].close / 100:.2f}"  # of a unit, which is 2.5 times what each wants
    says = {"0": ["LONG"], "5": ["FLAT"]}, {"1": ["SHORT"]}, {"3": ["LONG"]}
    engine = hedged(*says, max_notional=notional)
    steps = run(engine, list(bars(8)))
    refused = [step.decision.refused_by if step.decision else None for step in steps]
    assert refused == [None, None, None, "risk.notional", None, None, None, None]
    sides = [[shadow.position.quantity for shadow in step.shadows[:2]] for step in steps]
    assert sides[2:] == [[400, -400]] * 4 + [[0, -400]] * 2


def test_in_hedge_mode_a_limit_lets_one_side_go_while_the_other_is_not_reached() -> None:
    says = {"0": ["SHORT"], "3": ["FLAT"]}, {"1": ["LONG"]}, {"1": ["LONG"]}
    engine = hedged(*says, model=FillModel.QUOTE, max_drawdown="0.0002")
    events = list[Event]()
    for index, price in enumerate((1_000_000, 1_000_000, 1_010_000, 1_010_000)):
        level = quote(price - 50, price + 50, at_ms=START_MS + index * MINUTE + 59_500)
        events += [replace(level, ask_size=0), at_price(price, index=index)]  # nothing is bought
    steps = run(engine, events)[1::2]
    refused = [step.decision.refused_by for step in steps if step.decision is not None]
    assert refused == [None, None, "risk.drawdown", None]  # the price rose against the short side
    assert [side.held(ITEM.id) for side in engine.broker.account.books] == [0, -400]
    assert [side.target(ITEM.id) for side in engine.broker.account.books] == [800, 0]


def test_in_hedge_mode_a_confirmed_share_is_stored_at_once() -> None:
    """A step does not record which side of a share was confirmed."""
    says = {"says": {"1": ["LONG"], "4": ["LONG"]}, "horizon": 20}
    config = configured(
        ("a", "b"), ("0.5", "0.5"), of=[hedged_cases.SCRIPTED] * 2, options=[says, {"says": {}}],
        account={"cash": "100000", "position_mode": "hedge"},
    )  # fmt: skip
    steps = run(built(config), list(bars(6)))
    assert [step.state is not None for step in steps[3:]] == [False, True, False]


def test_each_strategy_sees_its_own_part_and_size() -> None:
    engine = built(configured(of=(ACCOUNTING, ACCOUNTING, DRAWN)))
    held = dict.fromkeys(("a", "b"), 0.0)
    for event in walk(5):
        step = engine.step(event, None)
        for line in step.strategies:
            if line.strategy in held and line.note is not None:
                note = line.note
                part = engine.broker.account.owners[line.strategy]
                crossed = sum(
                    fill.quantity * (1 if fill.side.value == "BUY" else -1)
                    for name, fill in crossed_in(step) if name == line.strategy
                )  # fmt: skip
                assert note["held"] == (part.held(ITEM.id) - crossed) / 1_000
    first = engine.broker.account.owners["a"].balance().equity
    assert first != engine.broker.account.owners["b"].balance().equity
