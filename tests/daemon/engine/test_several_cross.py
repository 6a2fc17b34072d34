"""Several strategies on cross margin: every step of a liquidation is shared, to the last unit."""

from __future__ import annotations

from typing import Any

from account_laws import check_account
from builders import START_MS, bar, instrument, quote
from msgspec.structs import replace
from several_strategies import SCRIPTED, configured

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.instrument_state import NO_EQUITY
from tracepaper.daemon.session.build import build_engine
from tracepaper.strategies.types.decisions import FillModel, OrderRole, OrderStatus
from tracepaper.strategies.types.market import Bar, Instrument, Mark, RiskTier
from tracepaper.strategies.units import MONEY_SCALE

MINUTE = 60_000
SYMBOLS = ("BTCUSDT", "ETHUSDT")
TIERS = (
    RiskTier(20_000 * MONEY_SCALE, 50_000_000, 10_000, 0),
    RiskTier(60_000 * MONEY_SCALE, 100_000_000, 5_000, 100 * MONEY_SCALE),
    RiskTier(0, 200_000_000, 3_000, 700 * MONEY_SCALE),
)


def items() -> list[Instrument]:
    return [replace(instrument(symbol, tick_size=1), risk_tiers=TIERS) for symbol in SYMBOLS]


def scripted(execution: FillModel = FillModel.NEXT_OPEN, **says: dict[str, Any]) -> Engine:
    """Return an engine of two scripted strategies on BTCUSDT."""
    config = configured(
        ("a", "b"), ("0.5", "0.5"), of=(SCRIPTED, SCRIPTED),
        options=({"says": says["a"]}, {"says": says["b"]}),
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
    for candle in flat(2):
        engine.step(candle, None)
    size = broker.account.owners["a"].held(KEY)
    assert (broker.account.owners["b"].held(KEY), broker.account.held(KEY)) == (-size, 0)
    broker.share_out()
    broker.account.owners["b"].lines_of(KEY)[0].set_target(
        -size // 4, "less"
    )  # of what crosses, a half is bought
    broker.account.line(KEY).sum_share_targets()
    for candle in flat(4)[2:]:
        engine.step(candle, None)
    long, short = (broker.account.owners[name].held(KEY) for name in ("a", "b"))
    net = broker.account.held(KEY)
    assert short < 0 < net < long
    at_ms = START_MS + 4 * MINUTE
    broker.on_mark(Mark(KEY, 40_000, at_ms, at_ms))
    filled = broker.take()
    check_account(engine.broker.account)
    assert broker.account.held(KEY) == 0
    assert [fill.quantity for fill in filled.fills] == [net]
    assert list(filled.other_fills) == ["a"]  # b stands on the other side
    assert [owner.held(KEY) for owner in broker.account.owners.values()] == [long - net, short]
    step = engine.step(bar(40_000, index=4, instrument_id=KEY), None)
    check_account(engine.broker.account)
    assert {strategy.strategy: strategy.outcome.reason for strategy in step.strategies}[
        "a"
    ] == NO_EQUITY


def test_a_close_that_would_cost_more_than_there_is_takes_the_account_over() -> None:
    says: dict[str, Any] = {"a": {"0": ["LONG", 0.05]}, "b": {"0": ["LONG", None]}}
    engine = scripted(FillModel.QUOTE, **says)
    broker = engine.broker
    engine.step(quote(99_990, 100_010, at_ms=START_MS + 59_000, instrument_id=KEY), None)
    engine.step(bar(100_000, index=0, instrument_id=KEY), None)
    at_ms = START_MS + 70_000
    engine.step(quote(99_990, 100_010, at_ms=at_ms, instrument_id=KEY), None)
    assert all(part.held(KEY) > 0 for part in broker.account.owners.values())
    stop = broker.account.owners["a"].lines_of(KEY)[0].protective(OrderRole.STOP)
    assert stop is not None
    broker.on_quote(quote(40_000, 40_020, at_ms=at_ms + 1, instrument_id=KEY))
    filled = broker.take()
    check_account(engine.broker.account)
    assert broker.account.held(KEY) == 0
    assert 0 <= broker.account.balance().equity < 2 * MONEY_SCALE  # by a tick
    assert {fill.model for fill in filled.fills} == {FillModel.LIQUIDATION}
    ended = {order.order_id: order for order in filled.orders}[stop.order_id]
    assert (ended.status, ended.filled) == (OrderStatus.CANCELED, 0)
