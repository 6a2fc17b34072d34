"""What a strategy sees of its account: as it stood before the decision, and after any restart."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from builders import START_MS, bar, instrument, quote
from engines import engine_of
from forging import verified
from hypothesis import given, settings
from hypothesis import strategies as st
from records import parity_of, tamper
from test_recovery import Process, configured, events

from tracepaper.daemon.broker.account import posting_account
from tracepaper.daemon.engine.engine import Engine
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.context import AccountView, BarContext, Orders, Signal, buy
from tracepaper.strategies.api.strategy import PortfolioStrategy, Strategy
from tracepaper.strategies.types.decisions import (
    Action,
    Fill,
    FillModel,
    Liquidity,
    OrderKind,
    OrderRole,
)
from tracepaper.strategies.types.market import CloseStart, Side

SEEN: list[AccountView | None] = []
MINUTE = 60_000


class Looks(Strategy):
    """Keeps what it sees; answers what it is told to, bar by bar."""

    sees_account = True
    gates = frozenset({"operator", "warm"})

    def __init__(self, options: dict[str, Any]) -> None:
        self._answers = iter(options["answers"])

    def decide(self, context: BarContext) -> Signal | Orders:
        SEEN.append(context.account)
        answer = next(self._answers)
        return answer if isinstance(answer, Orders) else Signal(Action(answer), "told")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    SEEN.clear()


def engine(*answers: object, name: str = "Looks", by: FillModel = FillModel.NEXT_OPEN) -> Engine:
    sections: dict[str, dict[str, Any]] = {
        "strategy": {"name": f"{__name__}:{name}", "options": {"answers": answers}},
        "sizing": {"mode": "fixed", "quantity": "2"},
        "execution": {"slippage_bp": "0", "spread_bp": "0"},
    }
    return engine_of(sections, execution=by)


def test_what_filled_at_the_open_of_the_bar_is_seen_at_its_close_and_once() -> None:
    machine = engine("LONG", "HOLD", "HOLD")
    steps = [
        machine.step(bar(10_000 + 100 * at, index=at, open_=10_000 + 100 * at - 50), None)
        for at in range(3)
    ]
    before, filled, later = SEEN
    assert before is not None and filled is not None and later is not None  # noqa: PT018
    assert (before.position.quantity, before.position.entry_price) == (0, None)
    assert (before.position.opened_at, before.position.bars_held) == (None, 0)
    assert (before.orders, before.fills) == ((), ())
    assert before.equity == before.cash == 100_000
    assert filled.position.quantity == 2
    assert filled.position.entry_price == 100.5  # the open of the second bar
    assert filled.position.opened_at == START_MS + MINUTE
    assert (filled.position.bars_held, later.position.bars_held) == (1, 2)
    assert filled.position.unrealized == 1.0
    assert (filled.position.exact, filled.exact) == (steps[1].position, steps[1].account)
    assert filled.equity == pytest.approx(filled.cash + 1)
    (fill,) = filled.fills
    assert (fill.side, fill.quantity, fill.price) == (Side.BUY, 2, 100.5)
    assert (fill.time, fill.exact) == (START_MS + MINUTE, steps[1].fills[0])
    assert fill.fee == pytest.approx(2 * 100.5 * 0.00055)
    assert later.fills == ()


def test_what_rests_is_seen_and_a_fill_between_two_closes_too() -> None:
    listed = Orders((buy(1, limit=99.5, tag="low"),), "listed")
    machine = engine(listed, "HOLD", "HOLD", by=FillModel.QUOTE)
    machine.step(bar(10_000), None)
    machine.step(bar(10_000, index=1), None)
    at_ms = START_MS + 2 * MINUTE + 30_000
    machine.step(quote(9_930, 9_940, at_ms=at_ms), None)
    machine.step(bar(9_950, index=2), None)
    first, resting, filled = SEEN
    assert first is not None and resting is not None and filled is not None  # noqa: PT018
    (order,) = resting.orders
    assert (order.side, order.kind, order.role) == (Side.BUY, OrderKind.LIMIT, OrderRole.LIST)
    assert (order.quantity, order.price, order.trigger) == (1, 99.5, None)
    assert (order.tag, order.exact.order_id) == ("low", "0-0")
    assert (filled.orders, [fill.quantity for fill in filled.fills]) == ((), [1])
    assert (filled.position.opened_at, filled.position.bars_held) == (at_ms, 1)


class LooksAtAll(PortfolioStrategy):
    """Keeps what it sees of each symbol, and buys all of them."""

    sees_account = True

    def __init__(self, options: dict[str, Any]) -> None:
        pass

    def decide(self, contexts: Mapping[str, BarContext]) -> Mapping[str, Signal]:
        SEEN.extend(context.account for context in contexts.values())
        return dict.fromkeys(contexts, Signal(Action.LONG, "all"))


@pytest.mark.parametrize("name", ["Looks", "LooksAtAll"])
def test_all_instruments_of_a_close_see_the_same_account(name: str) -> None:
    symbols = ("BTCUSDT", "ETHUSDT")
    sections: dict[str, dict[str, Any]] = {
        "market": {"symbols": symbols},
        "strategy": {"name": f"{__name__}:{name}", "options": {"answers": ["LONG"] * 3}},
        "sizing": {"mode": "fixed", "quantity": "2"},
    }
    machine = engine_of(sections, [instrument(symbol) for symbol in symbols])
    for index in range(3):
        candles = [
            bar(10_000 + 70 * index * place, index=index, instrument_id=f"linear:{symbol}")
            for place, symbol in enumerate(symbols, 1)
        ]
        at_ms = candles[0].close_time_ms
        closed = CloseStart(candles[0].open_time_ms, 2, (), at_ms, at_ms)
        steps = machine.close(closed, candles, [None, None])
        earlier, two = SEEN[-2:]
        assert earlier is not None and two is not None  # noqa: PT018
        assert earlier.exact == two.exact == steps[-1].account
        assert [len(context.fills) for context in (earlier, two)] == [int(index == 1)] * 2
    held = [view.position.unrealized for view in SEEN[-2:] if view is not None]
    assert held[0] != held[1] != 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3).filter(bool), min_size=1, max_size=12))
def test_a_position_is_as_old_as_the_fill_that_opened_or_turned_it(changes: list[int]) -> None:
    ledger = posting_account([instrument()]).lines["linear:BTCUSDT"]
    held, opened = 0, 0
    for at, change in enumerate(changes, 1):
        after = held + change
        if after == 0:
            opened = 0
        elif held * after <= 0:
            opened = at
        held = after
        ledger.post(
            Fill(
                "0-0", "linear:BTCUSDT", Side.BUY if change > 0 else Side.SELL, abs(change), 100,
                100, abs(change) * 10**5, 0, 0, Liquidity.TAKER, FillModel.QUOTE, "", at,
            )
        )  # fmt: skip
        assert ledger.holding.opened_ms == opened


# ---------------------------------------------------------------- restarts and other models

SEES = """
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action

class Seer(Strategy):
    sees_account = True
    gates = frozenset({"operator", "warm"})

    def __init__(self, options):
        pass

    def decide(self, now):
        seen = now.account
        held = seen.position
        told = [held.quantity, held.entry_price, held.opened_at, held.bars_held]
        told += [len(seen.orders), [fill.time for fill in seen.fills], seen.equity]
        if held.quantity == 0:
            action = Action.LONG
        else:
            patience = 2 + round(held.entry_price * 100) % 3
            action = Action.FLAT if held.bars_held > patience else Action.HOLD
        return Signal(action, " ".join(map(str, told)))
"""


@pytest.fixture
def seer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "seer.py").write_text(SEES)
    yield tmp_path
    sys.modules.pop("seer", None)


def ran(path: Path, model: FillModel, cuts: list[int], **sections: dict[str, Any]) -> list[str]:
    """Run the class with a restart at each of *cuts*; return the reasons of its decisions."""
    given = events(60, quotes=model is FillModel.QUOTE)
    config = configured("seer:Seer", model, **sections)
    for begin, end in pairwise(cuts):
        Process(path, config, model).through(given[begin:end])
    with Reader.open(path) as reader:
        run = reader.find("last")
        assert reader.run(run).sees_account
        assert verify_run(reader, path, run).passes
        steps = list(reader.steps(run))
    return [step.decision.reason for step in steps if step.decision is not None]


def test_what_is_seen_is_the_same_after_a_restart_at_any_place(seer: Path) -> None:
    whole = ran(seer / "whole.db", FillModel.QUOTE, [0, 120])
    assert any("[1" in reason for reason in whole), "fills are seen"
    cuts = [0, *range(41, 61, 2), 90, 120]
    assert ran(seer / "cut.db", FillModel.QUOTE, cuts) == whole


def test_parity_with_another_model_ends_at_the_first_fill_that_differs(seer: Path) -> None:
    first, second = seer / "quotes.db", seer / "opens.db"
    ran(first, FillModel.QUOTE, [0, 120])
    ran(second, FillModel.NEXT_OPEN, [0, 60])
    parity = parity_of(first, second)
    assert parity.passes
    assert parity.first_fill.startswith("linear:BTCUSDT at ")
    assert " in the first and BUY 1 at " in parity.first_fill
    assert parity.compared > 0
    assert parity.compared == parity.identical
    assert parity.after_first_fill > 20
    for path in (first, second):
        tamper(path, "UPDATE runs SET sees_account = NULL")
    forged = parity_of(first, second)
    assert not forged.passes, "compared in full, they differ"
    untrue = verified(first)
    assert not untrue.passes, "the run's row denies what its class declares"
