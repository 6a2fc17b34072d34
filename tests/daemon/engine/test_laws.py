"""The laws of the engine on short random histories; planted faults break them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_laws import WORLDS, Laws, World, examine
from msgspec.structs import replace

from tracepaper.daemon.broker import matching, orders
from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.margin import IsolatedMargin
from tracepaper.daemon.broker.matching import Market
from tracepaper.daemon.broker.orders import OrdersState
from tracepaper.daemon.broker.rules import Filters
from tracepaper.daemon.broker.settings import Latency
from tracepaper.daemon.engine.decider import Decider
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.risk import BookShortfall
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.decisions import Decision, Fill, Order

MARGIN_BY_QUOTES, TWO_BY_QUOTES, MARGIN_BY_BARS, _, SPOT_BY_QUOTES, SPOT_BY_BARS = WORLDS


@pytest.mark.parametrize("world", WORLDS, ids=[world.name for world in WORLDS])
def test_the_laws_hold_whatever_comes(world: World) -> None:
    examine(world, examples=5, steps=25)


def test_a_late_bar_meets_orders_as_they_stood_before_newer_quotes() -> None:
    history = type("History", (Laws,), {"world": MARGIN_BY_QUOTES})()
    try:
        history.begin(options={})
        history.bars(seed=0, size=10**6, volumes=[369620, 54], wild=100)
        history.quote(later=0, moved=-12, sizes=(0, 0), spread=1, which=0)
        history.missed(count=1, seed=0, volume=1)
    finally:
        history.teardown()


# ---------------------------------------------------------------- the machine says no


def _loses_a_unit(honest: Callable[..., None]) -> Callable[..., None]:
    def post(self: Line, fill: Fill) -> None:
        honest(self, fill)
        self.ledger.cash -= 1

    return post


def _only_beyond(honest: Callable[..., bool]) -> Callable[..., bool]:
    def touched(order: Order, far: int) -> bool:
        return honest(order, far) and far != order.trigger

    return touched


def _forgets(_honest: Callable[..., None]) -> Callable[..., None]:
    def restore_orders(self: Line, state: OrdersState) -> None:
        self.target, self.order = state.target, state.order

    return restore_orders


def _at_once(_honest: Callable[..., int]) -> Callable[..., int]:
    return lambda *_named: 0


def _nothing(_honest: Callable[..., Any]) -> Callable[..., tuple[()]]:
    return lambda *_given, **_named: ()


def _never(_honest: Callable[..., Any]) -> Callable[..., None]:
    return lambda *_given, **_named: None


def _always(_honest: Callable[..., bool]) -> Callable[..., bool]:
    return lambda *_given: True


def _zero(_honest: Callable[..., float]) -> Callable[..., float]:
    return lambda *_given: 0.0


def _says_nothing(_honest: Callable[..., Any]) -> Callable[..., Decision]:
    return lambda _state, decision, _refusal: decision


def _loses_bars(honest: Callable[..., int]) -> Callable[..., int]:
    return lambda self, *given: honest(replace(self, bars=0), *given)


def _by_participation(honest: Callable[..., int]) -> Callable[..., int]:
    return lambda self, *given: honest(replace(self, is_root=False), *given)


PLANTED: list[tuple[World, Any, str, Callable[..., Any]]] = [
    (SPOT_BY_BARS, Line, "post", _loses_a_unit),
    (MARGIN_BY_BARS, orders, "touched", _only_beyond),
    (TWO_BY_QUOTES, Line, "restore_orders", _forgets),
    (MARGIN_BY_QUOTES, Latency, "of", _at_once),
    (MARGIN_BY_QUOTES, Line, "resize", _nothing),
    (SPOT_BY_BARS, Market, "_refusal", _never),
    (SPOT_BY_BARS, Filters, "refusal", _never),
    (SPOT_BY_QUOTES, matching, "is_through", _never),
    (TWO_BY_QUOTES, IsolatedMargin, "match_mark", _never),
    (TWO_BY_QUOTES, Engine, "clear_transient", _never),
    (MARGIN_BY_QUOTES, Line, "expire", _nothing),
    (SPOT_BY_BARS, Decider, "unfilled", _says_nothing),
    (MARGIN_BY_BARS, matching, "passes", _always),
    (SPOT_BY_BARS, Latency, "eligible_ms", _loses_bars),
    (TWO_BY_QUOTES, Latency, "eligible_ms", _loses_bars),
    (MARGIN_BY_QUOTES, ExecutionCosts, "impact_rate", _by_participation),
    (MARGIN_BY_BARS, ExecutionCosts, "impact_rate", _at_once),
    (SPOT_BY_BARS, BookShortfall, "measure", _zero),
]


@pytest.mark.parametrize(
    ("world", "where", "name", "plant"),
    PLANTED,
    ids=[f"{planted[2]}{planted[3].__name__}" for planted in PLANTED],
)
def test_the_laws_refute_an_engine_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, world: World, where: Any, name: str, plant: Callable[..., Any]
) -> None:
    monkeypatch.setattr(where, name, plant(getattr(where, name)))
    with pytest.raises((AssertionError, InvariantBroken, ExceptionGroup)):
        examine(world, examples=400, steps=25)  # most are found within ten
