"""Fees: maker and taker by category, and those of single symbols."""

from __future__ import annotations

from typing import Any

import pytest
from builders import bar, instrument
from engines import Says, engine_of

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import costs_for, fees_of_symbols
from tracepaper.strategies.api.context import Orders, Signal, buy
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import Action, Liquidity


def engine(wanted: Signal | Orders, **execution: Any) -> Engine:
    items = [instrument(), instrument("WIFUSDT")]
    return engine_of(
        {
            "market": {"symbols": ["BTCUSDT", "WIFUSDT"]},
            "strategy": {"name": "sma_cross"},
            "sizing": {"mode": "fixed", "quantity": "1"},
            "execution": execution,
        },
        items,
        strategies={item.symbol: Says(wanted) for item in items},
    )


OWN = {"WIFUSDT": {"taker": "0.0011", "maker": "-0.0001"}}


@pytest.mark.parametrize(
    ("fees", "rates"), [({}, (5_500_000, 5_500_000)), (OWN, (5_500_000, 11_000_000))]
)
def test_a_fill_that_takes_pays_the_taker_fee_of_its_symbol(
    fees: Any, rates: tuple[int, int]
) -> None:
    machine = engine(Signal(Action.LONG, "now"), fees=fees)
    for key, rate in zip(("linear:BTCUSDT", "linear:WIFUSDT"), rates, strict=True):
        machine.step(bar(10_000, instrument_id=key), None)
        (fill,) = machine.step(bar(10_000, index=1, instrument_id=key), None).fills
        assert fill.liquidity is Liquidity.TAKER
        assert fill.fee == fill.notional * rate // 10**10


def test_a_limit_that_rested_pays_the_maker_fee_of_its_symbol_or_earns_it() -> None:
    wanted = Orders((buy(1, limit=99.0),), "rest")
    machine = engine(wanted, fees=OWN, maker_fee="0.0003")
    for key, rate in (("linear:BTCUSDT", 3_000_000), ("linear:WIFUSDT", -1_000_000)):
        machine.step(bar(10_000, instrument_id=key), None)
        step = machine.step(bar(9_900, index=1, open_=10_000, low=9_800, instrument_id=key), None)
        (fill,) = step.fills
        assert (fill.liquidity, fill.price) == (Liquidity.MAKER, 9_900)
        assert fill.fee == fill.notional * rate // 10**10
        assert [entry.amount for entry in step.ledger] == [-fill.fee]


def test_what_a_symbol_does_not_say_is_that_of_all() -> None:
    config = load(
        None,
        {
            "market": {"symbols": ["BTCUSDT", "WIFUSDT"]},
            "strategy": {"name": "sma_cross"},
            "execution": {"slippage_bp": "2", "fees": {"WIFUSDT": {"maker": "0.0001"}}},
        },
    )
    general, document = costs_for(config), fees_of_symbols(config)
    assert list(document) == ["WIFUSDT"]
    assert document["WIFUSDT"].taker_fee == general.taker_fee
    assert document["WIFUSDT"].slippage == general.slippage
    assert (document["WIFUSDT"].maker_fee, general.maker_fee) == (1_000_000, 2_000_000)


def test_fees_of_a_symbol_that_is_not_traded_are_refused() -> None:
    config = load(None, {"execution": {"fees": OWN}, "strategy": {"name": "sma_cross"}})
    with pytest.raises(ConfigInvalid, match=r"execution.fees names WIFUSDT, which is not traded"):
        fees_of_symbols(config)
