"""Exit orders: placed by the fill, sized to the position, never skipped; re-entry waits."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from builders import MINUTE, START_MS, bar, bars, present
from exit_cases import (
    KEY,
    at_quotes,
    fills,
    flat_bars,
    held,
    long,
    machine,
    of_role,
    others,
    path,
    quoted,
    short,
    steps_of,
)
from msgspec.structs import replace

from tracepaper.daemon.broker.execution import MeanRange
from tracepaper.daemon.engine.restart import Restart
from tracepaper.daemon.engine.state import decode_state
from tracepaper.strategies.types.decisions import FillModel, OrderRole, OrderStatus, Step
from tracepaper.strategies.types.market import Bar, Command, CommandKind, Event, Gap, GapCause

# ---------------------------------------------------------------- the average true range


def true_range(history: list[Bar], count: int) -> Decimal:
    """Return the mean true range of the last *count* bars, by its definition."""
    widths = [
        max(bar.high - bar.low, abs(bar.high - last.close), abs(bar.low - last.close))
        for last, bar in zip(history[-count - 1 :], history[-count:], strict=False)
    ]
    return sum(map(Decimal, widths), Decimal(0)) / count


def test_the_range_of_a_day_is_that_of_its_definition_however_it_is_asked() -> None:
    history = bars(2_000, seed=9)
    often, once = MeanRange.of_day(MINUTE), MeanRange.of_day(MINUTE)
    assert often.bars == 1_440
    for place, candle in enumerate(history):
        often.push(candle)
        once.push(candle)
        if place < 1_440:
            assert often.mean() is None
        elif place % 97 == 0:
            assert often.mean() == round(true_range(history[: place + 1], 1_440))
    assert once.mean() == often.mean()
    again = MeanRange.of_day(MINUTE)
    for candle in history[-1_441:]:  # as a restart does
        again.push(candle)
    assert again.mean() == often.mean()


def test_a_range_of_fewer_bars_than_a_day_holds_takes_fourteen() -> None:
    assert MeanRange.of_day(24 * 60 * MINUTE).bars == 14
    assert MeanRange.of_day(60 * MINUTE).bars == 24


# ---------------------------------------------------------------- what replaces it


def test_neither_a_halt_nor_a_flatten_cancels_it_before_the_position_is_closed() -> None:
    engine = machine({0: long(stop=98.0)})
    steps_of(engine, flat_bars(3))
    at = START_MS + 3 * MINUTE
    engine.step(Command(CommandKind.HALT, "", at, at), None)
    assert len(others(engine)) == 1
    stopped = engine.step(path(3, 9_950, 9_960, 9_700, 9_990), None)
    assert [fill.price for fill in stopped.fills] == [9_800]  # exits skip all gates
    engine = machine({0: long(stop=98.0)})
    steps_of(engine, flat_bars(3))
    engine.step(Command(CommandKind.FLATTEN, "", at, at), None)
    assert [order.role for order in others(engine)] == [OrderRole.STOP]
    closed = engine.step(bar(10_000, index=3), None)
    assert OrderStatus.CANCELED in {order.status for order in closed.orders}
    assert [fill.reason for fill in closed.fills] == ["FLATTEN"]
    assert others(engine) == ()


# ---------------------------------------------------------------- kept until it is closed


def test_a_reversal_that_the_account_cannot_bear_leaves_the_position_protected() -> None:
    poor: dict[str, Any] = {"account": {"cash": "30", "margin": "isolated", "leverage": "10"}}
    signals = {0: long(stop=98.0, strength=0.5), 2: short(stop=105.0)}
    engine = machine(signals, **poor, sizing={"mode": "fixed", "quantity": "4"})
    steps = steps_of(engine, flat_bars(3))
    assert present(steps[2].decision).unfilled_reason is not None
    assert OrderRole.STOP in {order.role for order in others(engine)}


# ---------------------------------------------------------------- while it was down


def missed(index: int, *prices: int) -> Bar:
    return replace(path(index, *prices), seen_ms=START_MS + 60 * MINUTE)


def gap(first: int, last: int, cause: GapCause = GapCause.DOWN) -> Gap:
    at = START_MS + 60 * MINUTE
    spans = START_MS + first * MINUTE, START_MS + last * MINUTE
    return Gap(KEY, *spans, cause, "rest", at, at)


@pytest.mark.parametrize("repaired_by", ["", "clock"])
def test_a_bar_whose_quotes_came_is_not_run_again(repaired_by: str) -> None:
    hole = replace(gap(2, 3, GapCause.JUMPED), repaired_by=repaired_by)
    for events in ([], [hole]):
        _, steps = at_quotes(
            {0: long(stop=98.0)},
            [
                *flat_bars(1),
                quoted(10_000, 1),
                bar(10_000, index=1),
                *events,
                path(2, 10_000, 10_010, 9_700, 10_000),
            ],
        )
        assert held(steps[-1]) == 1_000


def test_an_entry_waits_for_a_quote_through_bars_that_were_missed() -> None:
    _, steps = at_quotes(
        {0: long(stop=98.0)},
        [
            *flat_bars(1),
            gap(1, 3, GapCause.MISSED),
            path(1, 10_000, 10_010, 9_990, 10_000),
            path(2, 10_000, 10_010, 9_990, 10_000),
            quoted(10_100, 3 * 60),
        ],
        exchange={"time_scale": 600.0},  # an order waits for a quote for 6,000 market seconds
    )
    assert not [step for step in steps[:-1] if step.fills]
    (fill,) = steps[-1].fills
    assert (fill.model, fill.while_down) == (FillModel.QUOTE, False)


LOW, CALM = ([10_000, 10_010, low, 10_000] for low in (9_700, 9_990))


@pytest.mark.parametrize(
    ("after_s", "bars", "quantity"),
    [
        # The stop is armed inside bar 1, whose low may have been before the entry.
        (1, [missed(1, *LOW)], 1_000),
        # It is armed as bar 1 opens.
        (0, [missed(1, *LOW)], 0),
        # The bar that opens where the gap ends had its quotes.
        (
            1,
            [missed(1, 10_000, 10_010, 9_990, 10_000), path(2, 10_000, 10_010, 9_700, 10_000)],
            1_000,
        ),
    ],
)
def test_a_missed_bar_meets_what_rested_as_it_opened(
    after_s: int, bars: list[Bar], quantity: int
) -> None:
    events = [*flat_bars(1), quoted(10_000, after_s), gap(1, 2, GapCause.MISSED), *bars]
    _, steps = at_quotes({0: long(stop=98.0)}, events)
    assert held(steps[-1]) == quantity


def trailed(*events: Event, cut: int = 0) -> list[Step]:
    """Enter in bar 1 under a stop that trails by 1; at 105, in minute 5, it has moved to 104.

    The bars from 2 on were missed and arrive after that. A restart follows step *cut*.
    """
    events = (
        *flat_bars(1), quoted(10_000, 1), bar(10_000, index=1), quoted(10_500, 4.5 * 60),
        gap(2, 6, GapCause.DISCONNECTED), *events,
    )  # fmt: skip
    signals = {0: long(trailing=1.0)}
    engine, steps = at_quotes(signals, list(events[: cut or None]))
    if cut:
        steps_before, state = steps, engine.state()
        engine = machine(signals, execution=FillModel.QUOTE)
        Restart(engine).restore(state, next_sequence=cut)
        for step in steps_before:
            if isinstance(step.event, Bar):
                Restart(engine).recall(step.event)
        steps = [*steps_before, *steps_of(engine, list(events[cut:]))]
    return steps


ROSE = [
    missed(index, low, low + 90, low, low + 90)
    for index, low in ((2, 10_000), (3, 10_100), (4, 10_200), (5, 10_300))
]


@pytest.mark.parametrize("cut", [0, 4])
def test_a_trailing_stop_meets_a_missed_bar_where_it_stood_before_newer_quotes(cut: int) -> None:
    steps = trailed(*ROSE, quoted(10_410, 5 * 60), quoted(10_390, 5 * 60 + 1), cut=cut)
    assert [fill.filled_ms for fill in fills(steps)[1:]] == [steps[-1].event.market_ms]
    (stop,) = of_role(steps, OrderRole.TRAILING)
    assert stop.trigger == 10_400, "where the quote had moved it"


@pytest.mark.parametrize("cut", [0, 4])
def test_a_missed_bar_fires_a_trailing_stop_that_newer_quotes_moved_away(cut: int) -> None:
    steps = trailed(ROSE[0], missed(3, 10_100, 10_100, 9_900, 10_100), *ROSE[2:], cut=cut)
    (fill,) = fills(steps)[1:]
    assert (fill.price, fill.while_down) == (10_000, True), "1 below that bar's open"


def test_a_trailing_stop_stands_after_the_bars_as_tight_as_they_left_it() -> None:
    steps = trailed(*ROSE[:3], missed(5, 10_650, 10_700, 10_650, 10_680), bar(10_680, index=6))
    (stop,) = of_role(steps, OrderRole.TRAILING)
    assert stop.trigger == 10_600


def test_a_trailing_stop_armed_inside_a_missed_bar_meets_the_next_where_quotes_moved_it() -> None:
    _, steps = at_quotes(
        {0: long(trailing=1.0)},
        [
            *flat_bars(1),
            quoted(10_000, 1),
            quoted(10_300, 2),
            gap(1, 3, GapCause.MISSED),
            missed(1, 10_000, 10_300, 10_000, 10_210),
            missed(2, 10_190, 10_190, 10_190, 10_190),
        ],
    )
    (fill,) = fills(steps)[1:]
    assert (fill.price, fill.while_down) == (10_190, True)


def test_a_missed_bar_that_drops_what_quotes_moved_stores_the_state() -> None:
    events = [quoted(10_000, 1), quoted(10_300, 2), gap(1, 2, GapCause.MISSED), missed(1, *CALM)]
    engine, steps = at_quotes({0: long(trailing=1.0)}, [*flat_bars(1), *events])
    stored = [step.state for step in steps if step.state is not None]
    assert decode_state(stored[-1]) == engine.state()


def test_what_quotes_moved_stays_once_a_bar_came_whose_quotes_were_seen() -> None:
    steps = trailed()[:-1]
    engine, steps = at_quotes({0: long(trailing=1.0)}, [step.event for step in steps])
    assert engine.state().account.lines[KEY].orders.before_quotes
    heard = engine.step(path(2, 10_000, 10_500, 10_000, 10_450), None)
    assert heard.state is not None
    assert not engine.state().account.lines[KEY].orders.before_quotes
    later = [gap(3, 4), missed(3, 10_390, 10_390, 10_390, 10_390)]
    assert [fill.price for fill in fills(steps_of(engine, later))] == [10_390]
