"""The bars of one close in the engine: all observed before the first is decided, and repeatable."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import pytest
from builders import START_MS, bars, forecast, instrument
from engines import engine_of
from fakes import FixedForecaster, MemoryAudit, ScriptedFeed
from msgspec.structs import replace
from waiting import deadline_s

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.loop import (
    BarHistory,
    InlinePredictor,
    Worker,
    WorkerPredictor,
    drive,
    gathered,
    no_forecast,
    steps_of,
)
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import Forecast, PredictionTimeout, Step
from tracepaper.strategies.types.market import Bar, Close, CloseStart, Event, ModelChange, Quote

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
KEYS = tuple(f"linear:{symbol}" for symbol in SYMBOLS)
MINUTE = 60_000


def engine(**sections: dict[str, Any]) -> Engine:
    given: dict[str, dict[str, Any]] = {
        "market": {"symbols": SYMBOLS},
        "strategy": {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False},
        "sizing": {"mode": "fixed", "quantity": "1"},
        "account": {"cash": "1000000"},
        **sections,
    }
    return engine_of(given, [instrument(symbol) for symbol in SYMBOLS])


def closes(count: int) -> list[list[Bar]]:
    each = [bars(count, seed=place, instrument_id=key) for place, key in enumerate(KEYS)]
    return [list(together) for together in zip(*each, strict=True)]


def closed(together: Sequence[Bar], *, after_ms: int = 0) -> CloseStart:
    at = together[0].close_time_ms + after_ms
    absent = tuple(key for key in KEYS if key not in {bar.instrument for bar in together})
    return CloseStart(together[0].open_time_ms, len(together), absent, at, at)


def flat(count: int, order: Callable[[list[Bar]], list[Bar]] = list) -> Iterator[Event]:
    for together in closes(count):
        yield closed(together)
        yield from order(together)


def run(machine: Engine, events: Iterator[Event]) -> list[Step]:
    return [
        step
        for unit in gathered(events)
        for step in steps_of(machine, unit, [None] * (1 + len(SYMBOLS)))
    ]


def test_no_decision_depends_on_the_place_of_its_instrument() -> None:
    def by_bar(steps: list[Step]) -> dict[tuple[str, int], object]:
        return {
            (step.event.instrument, step.event.open_time_ms): (
                step.decision, [(fill.price, fill.fee, fill.filled_ms) for fill in step.fills],
                [order.eligible_ms for order in step.orders], step.position,
            )
            for step in steps
            if isinstance(step.event, Bar)
        }  # fmt: skip

    forwards = by_bar(run(engine(), flat(60)))
    assert forwards == by_bar(run(engine(), flat(60, order=lambda order: order[::-1])))


def test_orders_are_sent_when_the_close_was_complete() -> None:
    machine = engine(execution={"latency_ms": 100})
    sent: list[tuple[int, int]] = []
    for together in closes(40):
        late = closed(together, after_ms=250)
        for step in machine.close(late, together, [None] * 3):
            sent += [
                (late.market_ms, order.eligible_ms) for order in step.orders if not order.filled
            ]
    assert len(sent) > 6
    assert {eligible - at for at, eligible in sent} == {100}


def test_a_bar_that_is_not_the_newest_is_refused_in_its_place() -> None:
    machine = engine()
    first, second = closes(2)
    machine.close(closed(second), second, [None] * 3)
    mixed = [first[0], first[1]]
    steps = machine.close(closed(mixed), mixed, [None, None])
    assert [step.accepted for step in steps] == [True, False, False]


def test_a_group_of_one_equals_the_bar_alone() -> None:
    grouped, alone = engine(), engine()
    for first, *_ in closes(30):
        _, step = grouped.close(closed([first]), [first], [None])
        other = alone.step(first, None)
        assert step.decision == other.decision


# ---------------------------------------------------------------- the stream of events


def test_a_close_whose_bars_are_missing_is_refused() -> None:
    (together,) = closes(1)
    cut: list[list[Event]] = [
        [closed(together), *together[:2]],
        [closed(together), together[0], Quote(KEYS[0], 1, 1, 2, 1, 0, 0), *together[1:]],
        [closed(together), *together[:2], *closes(2)[1][:1]],
        [closed(together), closed(together), *together],
    ]
    for events in cut:
        with pytest.raises(DataInvalid, match="rows are missing"):
            list(gathered(events))


def test_what_is_not_of_a_close_stays_as_it_is() -> None:
    (together,) = closes(1)
    events: list[Event] = [*together, closed(together), *together]
    assert list(gathered(events)) == [*together, Close(closed(together), together)]


class Transactions(MemoryAudit):
    """Remembers which steps were appended together."""

    def __init__(self) -> None:
        super().__init__()
        self.together: list[int] = []

    async def append(self, *steps: Step) -> None:
        await super().append(*steps)
        self.together.append(len(steps))


async def test_a_close_is_stored_in_one_transaction_and_watched_whole() -> None:
    audit, watched = Transactions(), []

    def watch(step: Step) -> bool:
        watched.append(step)
        return step.sequence != 5

    first, second, third = closes(3)
    events: list[Event] = [closed(first), *first, closed(second), *second, closed(third), *third]
    await drive(ScriptedFeed(events), no_forecast, engine(), audit.append, watch=watch)
    assert audit.together == [4, 4]
    assert [step.sequence for step in watched] == list(range(8))


@pytest.mark.parametrize("is_behind", [False, True])
async def test_late_bars_that_trade_nothing_are_stored_with_those_behind_them(
    is_behind: bool,
) -> None:
    closed_together = closes(120)
    now_ms = closed_together[-1][0].close_time_ms + 300  # the newest alone is in time
    late = [replace(item, seen_ms=now_ms) for together in closed_together for item in together[:1]]
    audit, watched = Transactions(), []

    def watch(step: Step) -> bool:
        assert step in audit.steps
        watched.append(step.sequence)
        return True

    machine = engine()
    await drive(
        ScriptedFeed(late),
        no_forecast,
        machine,
        audit.append,
        watch=watch,
        is_behind=lambda: is_behind and machine.sequence not in {110, 120},
    )
    assert watched == list(range(120))
    assert audit.together == ([100, 10, 10] if is_behind else [1] * 120)


async def test_what_a_late_bar_trades_is_stored_at_once() -> None:
    events = [item for together in closes(60) for item in together[:1]]
    alone = Transactions()
    await drive(ScriptedFeed(events), no_forecast, engine(), alone.append)
    first = next(step.sequence for step in alone.steps if step.orders)
    assert alone.together == [1] * 60
    # From the bar behind the first order on all are late: that order is filled by one of them.
    late = [replace(event, seen_ms=event.seen_ms + 10**9) for event in events[first + 1 :]]
    audit, machine = Transactions(), engine()
    await drive(
        ScriptedFeed([*events[: first + 1], *late]),
        no_forecast,
        machine,
        audit.append,
        is_behind=lambda: machine.sequence < 60,
    )
    traded = [bool(step.orders or step.fills) for step in audit.steps]
    assert any(traded[first + 1 :])
    ends = list(accumulate(audit.together))
    assert all(place + 1 in ends for place, is_traded in enumerate(traded) if is_traded)
    assert len(ends) < 60


# ---------------------------------------------------------------- the model


def start() -> ModelChange:
    return ModelChange("", "", "", "batched", "", "", 1, (), START_MS, START_MS)


class CountingForecaster(FixedForecaster):
    def __init__(self) -> None:
        super().__init__(lambda history: forecast(history[-1].close / 1e9), context=1)
        self.groups: list[list[str]] = []

    def predict_many(self, given: Sequence[Bar]) -> list[Forecast | None]:
        self.groups.append([bar.instrument for bar in given])
        return super().predict_many(given)


def test_the_model_is_asked_once_and_every_bar_gets_its_own_answer() -> None:
    forecaster = CountingForecaster()
    inline = InlinePredictor(forecaster, BarHistory(KEYS, context=1), period_start_ms=0)
    inline.predict(start())
    (together,) = closes(1)
    (unit,) = gathered([closed(together), *together])
    predictions = inline.predict(unit)
    assert list(predictions) == [None, *(forecast(bar.close / 1e9) for bar in together)]
    assert forecaster.groups == [list(KEYS)]
    assert inline.predict(unit) == [None] * 4  # not newer than what it knows
    assert len(forecaster.groups) == 1


def test_a_recorded_timeout_of_a_close_is_given_again() -> None:
    inline = InlinePredictor(CountingForecaster(), BarHistory(KEYS, context=1), period_start_ms=0)
    inline.predict(start())
    (together,) = closes(1)
    late = PredictionTimeout(7)
    assert inline.predict(Close(closed(together), together), [None, late, None, late]) == [
        None, late, forecast(together[1].close / 1e9), late,
    ]  # fmt: skip


@pytest.mark.sockets
async def test_a_close_that_is_late_is_late_for_all_of_it() -> None:
    class Stuck(CountingForecaster):
        def predict_many(self, given: Sequence[Bar]) -> list[Forecast | None]:
            gate.wait(deadline_s())
            return super().predict_many(given)

    gate = threading.Event()
    worker = WorkerPredictor(
        Stuck(), BarHistory(KEYS, context=1), Worker("model"), period_start_ms=0, deadline_ms=30
    )
    await worker.predict(start())
    first, second = (Close(closed(together), together) for together in closes(2))
    assert await worker.predict(first) == [None, *[PredictionTimeout(30)] * 3]
    gate.set()
    assert len(await worker.predict(second)) == 4
