"""The campaign's judgement: what it must find is planted, and what is right it lets pass."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import campaign
import pytest
from builders import MINUTE, START_MS, bar, instrument, quote
from drawn import KINDS, RoundFailed
from engines import engine_of
from histories import RecordedHistory
from records import tamper
from storage_cases import run, write_run
from world.checker import unequal_parts, unequal_sides, wrong_universe

from tracepaper.daemon.broker import matching
from tracepaper.daemon.config.loading import load
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import Action, FillModel, OrderRole, OrderStatus, Step
from tracepaper.strategies.types.market import Bar, Event, Gap, GapCause, Source

BITCOIN, ETHER = instrument(), instrument("ETHUSDT")
KEY = ETHER.id


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"covariates"}))  # which trains a model
def test_what_a_round_draws_is_a_configuration(kind: str, tmp_path: Path) -> None:
    for seed in range(5):
        drawn = KINDS[kind](tmp_path, campaign.CANDLES, random.Random(seed))
        sections: dict[str, dict[str, object]] = {}
        for key, value in drawn.keys.items():
            section, _, name = key.partition(".")
            sections.setdefault(section, {})[name] = value
        load(sections)
        with pytest.raises(ConfigInvalid, match="write a time such as"):  # what a round once drew
            load({**sections, "retrain": {"time_limit": "15s"}})


CHOICES = "UPDATE events SET {} WHERE kind = 'universe'"
SUMS: dict[str, tuple[int, str, Callable[[Path], Iterator[str]], dict[str, str]]] = {
    "parts": (
        11,
        "",
        partial(unequal_parts, is_all=False),
        {
            "parts hold": "UPDATE holdings SET quantity = quantity + 1 WHERE book = "
            "(SELECT max(book) FROM holdings)"
        },
    ),
    "sides": (
        16,
        "",
        unequal_sides,
        {"both sides have": "UPDATE holdings SET cash = cash + 1 WHERE book = 1"},
    ),
    "universe": (
        2,
        "universe",
        wrong_universe,
        {
            "outside": CHOICES.format("content = json_set(content, '$.chosen', json('[]'))"),
            "made twice": CHOICES.format("market_ms = 7"),
            "nothing was ever chosen": CHOICES.format("kind = 'closed'"),
        },
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_what_does_not_add_up_is_found(name: str, tmp_path: Path) -> None:
    seed, kind, check, forgeries = SUMS[name]
    path = tmp_path / "run.db"
    assert RecordedHistory(seed, path, kind, most=150).counted["fills"] > 5
    assert [*check(path)] == []
    for message, statement in forgeries.items():
        forged = Path(shutil.copy(path, tmp_path / "forged.db"))
        tamper(forged, statement)
        assert any(message in sentence for sentence in check(forged))


class Enters(Strategy):
    """Buys ether under a stop at 98 at the first bar, and holds."""

    gates = frozenset({"operator"})

    def decide(self, context: BarContext) -> Signal:
        if context.symbol == "ETHUSDT" and context.exact.open_time_ms == START_MS:
            return Signal(Action.LONG, "up", stop=98.0)
        return Signal(Action.HOLD, "nothing")


def recorded(database: Path, events: list[Event]) -> list[Step]:
    """Run *events* of two symbols by quotes, into *database*."""
    items = (BITCOIN, ETHER)
    given: dict[str, dict[str, Any]] = {
        "market": {"symbols": [context.symbol for context in items]},
        "sizing": {"mode": "fixed", "quantity": "1"},
        "account": {"cash": "1000000"},
        "execution": {"model": "quote", "latency_ms": 0},
        "exchange": {"time_scale": 1_200.0},
    }
    engine = engine_of(
        given,
        items,
        execution=FillModel.QUOTE,
        strategies={item.symbol: Enters() for item in items},
    )
    steps = [engine.step(event, None) for event in events]
    write_run(database, steps, of=run(instruments=items, strategy="enters"))
    return steps


def at(index: int, *prices: int, source: Source = Source.STREAM) -> Bar:
    """Return ether's bar number *index* with those open, high, low and close."""
    open_, high, low, close = prices
    return bar(
        close, index=index, open_=open_, high=high, low=low, source=source, instrument_id=KEY
    )


def quote_at(bid: int, minute: float) -> Event:
    return quote(bid, bid + 10, at_ms=START_MS + int(minute * MINUTE), instrument_id=KEY)


def hole(first: int, last: int) -> Gap:
    now_ms = START_MS + 60 * MINUTE
    times = START_MS + first * MINUTE, START_MS + last * MINUTE
    return Gap(KEY, *times, GapCause.DISCONNECTED, "rest", now_ms, now_ms)


def stops(steps: list[Step]) -> list[tuple[OrderStatus, int]]:
    """Return the status of each stop and the step after which it has it."""
    last = {
        order.order_id: (order.status, step.sequence)
        for step in steps
        for order in step.orders
        if order.role is OrderRole.STOP
    }
    return list(last.values())


FELL = (9_700, 9_750, 9_650, 9_700)
FLAT = (10_000, 10_000, 10_000, 10_000)
DIPPED = (10_000, 10_000, 9_700, 10_000)
BEGIN: list[Event] = [at(0, *FLAT)]
LATE_BARS: list[Event] = [
    *BEGIN,
    quote_at(10_000, 6.4),  # behind the hole: it fills the entry, and the stop is armed
    hole(1, 6),
    *(at(index, *FELL, source=Source.REST) for index in range(1, 6)),
    at(6, *FLAT),
]
CLOSES: list[Event] = [
    *BEGIN,
    quote_at(10_000, 1.1),
    at(1, *FLAT),
    *(event for index in (2, 3) for event in (quote_at(9_700, index + 0.5), at(index, *FELL))),
    at(4, *FLAT),
]
MISSED: list[Event] = [
    *BEGIN,
    quote_at(10_000, 1.1),
    at(1, *FLAT),
    hole(2, 3),
    at(2, *DIPPED, source=Source.REST),
    at(3, *FLAT),
]


@pytest.fixture(autouse=True)
def one_stop_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "FEWEST_STOPS", 1)


def test_bars_that_closed_before_the_stop_was_armed_neither_meet_nor_blame_it(
    tmp_path: Path,
) -> None:
    database = tmp_path / "late.db"
    steps = recorded(database, [*LATE_BARS, quote_at(9_790, 7.1), at(7, *FELL)])
    assert stops(steps) == [(OrderStatus.FILLED, len(steps) - 2)], "the first quote through it"
    campaign.check_stops(database, "stopped", timely=10_000)


@pytest.mark.parametrize(
    ("events", "met_in", "message"),
    [
        pytest.param(CLOSES, 3, "2 closes beyond it", id="quotes"),
        pytest.param(MISSED, 4, "1 missed bars that went through it", id="a missed bar"),
        pytest.param(
            [*LATE_BARS, quote_at(9_700, 7.1), at(7, *FELL), quote_at(9_710, 8.1), at(8, *FELL)],
            9,
            "2 closes beyond it",
            id="after late bars",
        ),
    ],
)
def test_a_stop_that_is_skipped_is_found(
    events: list[Event], met_in: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = recorded(tmp_path / "right.db", events)
    assert stops(steps) == [(OrderStatus.FILLED, met_in)]
    campaign.check_stops(tmp_path / "right.db", "stopped", timely=10_000)
    monkeypatch.setattr(matching, "touched", lambda *_: False)
    skipped = recorded(tmp_path / "skipped.db", events)
    assert [status for status, _ in stops(skipped)] == [OrderStatus.ACCEPTED]
    with pytest.raises(RoundFailed, match=f"stop 1-0 at 98.00 stood for {message}"):
        campaign.check_stops(tmp_path / "skipped.db", "stopped", timely=10_000)


@pytest.mark.parametrize(
    ("name", "closes", "live", "is_found"),
    [
        ("sma", 99, 3_000, True),
        ("sma", 100, 3_000, False),
        ("stopped", 0, 0, True),
        ("model", 0, 499, False),
        ("model", 0, 500, True),
        ("model", 1, 500, False),
    ],
)
def test_closes_that_are_not_taken_together_are_found(
    name: str, closes: int, live: int, *, is_found: bool
) -> None:
    outcome = campaign.Outcome(closes=closes, live=live)
    with pytest.raises(RoundFailed) if is_found else nullcontext():
        campaign.check_together(outcome, name)
