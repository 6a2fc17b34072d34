"""Exit orders: placed by the fill, sized to the position, never skipped; re-entry waits."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from builders import MINUTE, START_MS, bar, bars, present, quote
from exit_cases import (
    FLAT,
    KEY,
    at_quotes,
    entered,
    fills,
    flat_bars,
    held,
    latest,
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
from tracepaper.daemon.broker.exit_plans import NO_VOLATILITY
from tracepaper.daemon.engine.restart import Restart
from tracepaper.daemon.engine.state import decode_state
from tracepaper.strategies.api.context import Percent, Signal, Volatility
from tracepaper.strategies.types.decisions import (
    Action,
    FillModel,
    Liquidity,
    OrderRole,
    OrderStatus,
    Step,
)
from tracepaper.strategies.types.market import (
    Bar,
    Command,
    CommandKind,
    Event,
    Gap,
    GapCause,
    Quote,
    Side,
)

# ---------------------------------------------------------------- where it is filled


def test_a_target_that_the_market_has_reached_when_its_entry_moves_it_takes() -> None:
    sized: dict[str, Any] = {"sizing": {"mode": "fixed", "quantity": "4"}}
    signals = {0: long(strength=0.75), 2: long(target=Percent(3), strength=1.0)}
    engine = machine(signals, **sized)
    steps = steps_of(engine, [*flat_bars(3), path(3, 10_600, 10_600, 10_600, 10_600)])
    assert [order.price for order in of_role(steps[:3], OrderRole.TARGET)] == [10_300]
    # 3 % above the average entry of 101.50 lies below the open, at which that moved.
    assert [(fill.price, fill.quantity, fill.liquidity) for fill in steps[3].fills] == [
        (10_600, 1_000, Liquidity.TAKER), (10_600, 4_000, Liquidity.TAKER),
    ]  # fmt: skip
    # What the entry at the open brings below that open arrives there, and takes.
    steps = entered(long(target=102.0), path(2, 10_000, 10_000, 10_000, 10_000))
    assert of_role(steps, OrderRole.TARGET)[0].status is OrderStatus.ACCEPTED
    steps = steps_of(
        machine({0: long(target=102.0)}), [*flat_bars(1), path(1, 10_300, 10_310, 10_290, 10_300)]
    )
    assert [(fill.price, fill.liquidity) for fill in steps[1].fills] == [
        (10_300, Liquidity.TAKER), (10_300, Liquidity.TAKER),
    ]  # fmt: skip


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


def test_volatility_is_named_and_refused_until_a_day_is_known() -> None:
    history = bars(1_450, seed=3)
    early = long(stop=Volatility(2))
    steps = steps_of(machine({5: early, 1_440: early}), history)
    assert steps[5].decision is not None
    assert steps[5].decision.unfilled_reason == NO_VOLATILITY
    assert (steps[5].decision.action, steps[5].decision.target_quantity) == (Action.LONG, 1_000)
    assert not fills(steps[:1_441])
    (stop,) = of_role(steps[:1_442], OrderRole.STOP)
    mean = round(true_range(history[:1_441], 1_440))
    assert stop.reason == "stop 2 x ATR(1d)"
    assert stop.trigger is not None
    assert abs(stop.trigger - (history[1_441].open - 2 * mean)) <= 5  # a tick is 10


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("signal", "why"),
    [
        (long(stop=101.0), "stop is not below the close"),
        (long(stop=100.0), "stop is not below the close"),
        (long(target=99.0), "target is not above the close"),
        (short(stop=99.0), "stop is not above the close"),
        (short(target=101.0), "target is not below the close"),
        (long(stop=Percent(-1)), "stop -1 % is not below the close"),
        (long(stop=Percent(0)), "stop 0 % is not below the close"),
        (long(stop=Percent(100)), "stop 100 % is not a valid price"),
        (long(stop=-3.0), "stop"),
        (long(trailing=-1.0), "trailing stop is not below the close"),
        (long(stop=float("nan")), "stop is not a finite number"),
        (long(target=float("inf")), "target is not a finite number"),
        (long(trailing=Percent(float("nan"))), "trailing stop is not a finite number"),
        (long(stop=Volatility(float("inf"))), "stop is not a finite number"),
        (long(target=1e300), "target"),
        (long(until=START_MS + MINUTE), "until is over already"),
    ],
)
def test_a_level_on_the_wrong_side_refuses_the_entry_with_its_reason(
    signal: Signal, why: str
) -> None:
    steps = steps_of(machine({0: signal}), flat_bars(3))
    decided = present(steps[0].decision)
    if why == "stop":  # a price below the least tick is the least tick
        assert fills(steps)
        return
    assert present(decided.unfilled_reason).startswith(why)
    assert not latest(steps)
    assert held(steps[-1]) == 0


# ---------------------------------------------------------------- the same signal waits

STOPPED = path(2, 9_950, 9_960, 9_700, 9_990)


def test_a_signal_that_waits_says_so_and_decides_as_ever() -> None:
    up = long(stop=98.0)
    events = flat_bars(6)
    events[2] = STOPPED
    steps = steps_of(machine({0: up, 3: up}), events)
    decided = present(steps[3].decision)
    assert (decided.action, decided.target_quantity) == (Action.LONG, 1_000)
    assert decided.unfilled_reason == ("closed by its stop; it enters again after another signal")


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


# ---------------------------------------------------------------- quotes


def test_a_stop_is_checked_at_every_quote_and_sized_to_a_partial_fill() -> None:
    _, steps = at_quotes(
        {0: long(stop=98.0)},
        [
            *flat_bars(1),
            quoted(10_000, 1, size=400),
            quoted(9_990, 2, size=600),
            quoted(9_900, 3),
            quoted(9_790, 4, size=300),
            quoted(9_850, 5),
        ],
    )
    sizes = [
        order.quantity for step in steps for order in step.orders if order.role is OrderRole.STOP
    ]
    assert sizes[:2] == [400, 1_000]
    assert [(fill.side, fill.quantity, fill.price) for fill in fills(steps)] == [
        (Side.BUY, 400, 10_010), (Side.BUY, 600, 10_000),
        (Side.SELL, 300, 9_790), (Side.SELL, 700, 9_850),
    ]  # fmt: skip
    assert held(steps[-1]) == 0


def test_a_trailing_stop_follows_quotes_and_asks_for_those_that_move_it() -> None:
    engine, _ = at_quotes({0: long(trailing=1.0)}, [*flat_bars(1), quoted(10_000, 1)])
    engine.step(quoted(10_000, 2), None)
    higher, same, lower = quoted(10_200, 3), quoted(10_000, 3), quoted(9_900, 3)
    assert engine.broker.quote_from_ms(higher) is not None
    assert engine.broker.quote_from_ms(same) is None
    assert engine.broker.quote_from_ms(lower) is not None
    engine.step(higher, None)
    (stop,) = others(engine)
    assert stop.trigger == 10_100
    fill = engine.step(quoted(10_090, 4), None).fills[0]
    assert (fill.price, fill.model) == (10_090, FillModel.QUOTE)


def test_a_time_limit_asks_for_the_first_quote_after_it() -> None:
    until = START_MS + MINUTE + 30_000
    engine, _ = at_quotes({0: long(until=until)}, [*flat_bars(1), quoted(10_000, 1)])
    assert engine.broker.quote_from_ms(quoted(10_000, 29)) is None
    after = quoted(10_000, 31)
    assert engine.broker.quote_from_ms(after) == until
    assert [fill.reason for fill in engine.step(after, None).fills] == ["until"]


# ---------------------------------------------------------------- kept until it is closed


def minute(index: int, bid: int, second: float = 1, *, size: int = 10**9) -> Any:
    """Return a quote in the minute of bar *index*, whose ask is one tick above *bid*."""
    at_ms = START_MS + index * MINUTE + int(second * 1_000)
    return quote(bid, bid + 10, at_ms=at_ms, size=size)


def unfilled_exit(signal: Signal, *events: Event, later: dict[int, Signal] | None = None) -> Any:
    """Enter long in minute 1 with a stop; no quote fills the order of *said* at bar 2."""
    signals = {0: long(stop=98.0), 2: signal, **(later or {})}
    opened = [*flat_bars(1), minute(1, 10_000), bar(10_000, index=1), bar(10_000, index=2)]
    return at_quotes(signals, [*opened, bar(10_000, index=3), *events])


@pytest.mark.parametrize("signal", [FLAT, short(stop=105.0), short()])
def test_an_exit_that_no_quote_filled_leaves_the_position_protected(signal: Signal) -> None:
    engine, steps = unfilled_exit(signal)
    reasons = [order.reason for order in steps[4].orders if order.status is OrderStatus.CANCELED]
    assert reasons == ["no quote filled it within 10,000 ms"]
    assert [order.trigger for order in others(engine)] == [9_800]
    (fill,) = engine.step(minute(4, 9_790, 0), None).fills[:1]
    assert (fill.price, fill.reason, fill.quantity) == (9_790, "stop", 1_000)


def test_a_reversal_that_the_account_cannot_bear_leaves_the_position_protected() -> None:
    poor: dict[str, Any] = {"account": {"cash": "30", "margin": "isolated", "leverage": "10"}}
    signals = {0: long(stop=98.0, strength=0.5), 2: short(stop=105.0)}
    engine = machine(signals, **poor, sizing={"mode": "fixed", "quantity": "4"})
    steps = steps_of(engine, flat_bars(3))
    assert present(steps[2].decision).unfilled_reason is not None
    assert OrderRole.STOP in {order.role for order in others(engine)}


# ---------------------------------------------------------------- a plan and its entry


def test_a_target_that_its_entry_moves_below_the_bid_takes_at_the_next_quote() -> None:
    engine, _ = at_quotes(
        {0: long(target=Percent(1))}, [*flat_bars(1), quoted(10_000, 1, size=400)]
    )
    both = engine.step(quoted(10_300, 2), None)
    assert [(fill.price, fill.quantity, fill.liquidity) for fill in both.fills] == [
        (10_310, 600, Liquidity.TAKER), (10_110, 400, Liquidity.MAKER),
    ]  # fmt: skip
    (target,) = others(engine)  # 1 % above 101.90, which the bid of 103 has reached
    assert (target.price, target.quantity, target.status) == (10_290, 600, OrderStatus.NEW)
    (fill,) = engine.step(quoted(10_300, 3), None).fills
    assert (fill.price, fill.liquidity) == (10_300, Liquidity.TAKER)


def test_what_closes_at_its_time_grows_with_what_its_entry_still_fills() -> None:
    until = START_MS + MINUTE + 5_000
    thin = Quote(KEY, 10_000, 0, 10_010, 600, until, until)
    engine, _ = at_quotes(
        {0: long(until=until)}, [*flat_bars(1), quoted(10_000, 1, size=400), thin]
    )
    assert [(order.role, order.quantity) for order in others(engine)] == [(OrderRole.UNTIL, 1_000)]


# ---------------------------------------------------------------- while it was down


def missed(index: int, *prices: int) -> Bar:
    return replace(path(index, *prices), seen_ms=START_MS + 60 * MINUTE)


def gap(first: int, last: int, cause: GapCause = GapCause.DOWN) -> Gap:
    at = START_MS + 60 * MINUTE
    spans = START_MS + first * MINUTE, START_MS + last * MINUTE
    return Gap(KEY, *spans, cause, "rest", at, at)


@pytest.mark.parametrize("cause", GapCause)
def test_a_missed_interval_is_run_on_its_bars_path_and_its_fills_say_so(cause: GapCause) -> None:
    _, steps = at_quotes(
        {0: long(stop=98.0, target=103.0)},
        [
            *flat_bars(1),
            quoted(10_000, 1),
            gap(1, 4, cause),
            missed(1, 10_000, 10_310, 9_990, 10_000),
            missed(2, 10_000, 10_010, 9_700, 9_950),
            missed(3, 9_950, 9_960, 9_940, 9_950),
            bar(9_950, index=4),
        ],
    )
    # In the bar of the entry the target may not: the price was there before, perhaps.
    assert not steps[3].fills
    (fill,) = steps[4].fills
    assert (fill.price, fill.model, fill.while_down) == (9_800, FillModel.BAR_PATH, True)
    assert not steps[1].fills[0].while_down


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
    assert engine.state().account.books[KEY].orders.before_quotes
    heard = engine.step(path(2, 10_000, 10_500, 10_000, 10_450), None)
    assert heard.state is not None
    assert not engine.state().account.books[KEY].orders.before_quotes
    later = [gap(3, 4), missed(3, 10_390, 10_390, 10_390, 10_390)]
    assert [fill.price for fill in fills(steps_of(engine, later))] == [10_390]


# ---------------------------------------------------------------- shadows and state


def test_a_shadow_is_protected_alike() -> None:
    events = flat_bars(6)
    events[2] = STOPPED
    signals = {0: long(stop=98.0), 3: long(stop=98.0)}
    steps = steps_of(machine(signals, shadows=("ungated",)), events)
    shadows = [shadow for step in steps for shadow in step.shadows]
    assert [fill.price for shadow in shadows for fill in shadow.fills] == [10_000, 9_800]
    assert shadows[-1].position == steps[-1].position
