"""One false quote, mark or rate fills and liquidates nothing; a confirmed crash does."""

from __future__ import annotations

from typing import Any

import pytest
from builders import MINUTE, START_MS, bar, instrument, present, quote
from engines import engine_of
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.price_checks import SOURCE_MEMORY_MS, largest_rate
from tracepaper.strategies.api.context import BarContext, Orders, Percent, Signal, buy, sell
from tracepaper.strategies.api.strategy import CORE_GATES, Strategy
from tracepaper.strategies.types.decisions import Action, Fill, FillModel, OrderStatus, Step
from tracepaper.strategies.types.market import (
    Category,
    Event,
    Funding,
    Mark,
    ModelChange,
    Quote,
    Side,
    Trade,
)
from tracepaper.strategies.units import RATE_SCALE

KEY = "linear:BTCUSDT"
PRICE = 100_000  # 1,000.00
BARS = 20
HELD_MS = START_MS + BARS * MINUTE  # the close of the last bar


class Says(Strategy):
    """Gives its signal at the last of the bars, and HOLD at the others."""

    gates = CORE_GATES

    def __init__(self, signal: Signal | Orders) -> None:
        self._answer = signal

    def decide(self, context: BarContext) -> Signal | Orders:
        is_last = context.time == HELD_MS - MINUTE
        return self._answer if is_last else Signal(Action.HOLD, "said")


def machine(
    signal: Signal | Orders,
    *,
    margin: bool = False,
    category: Category = Category.LINEAR,
    leverage: str = "5",
    execution: FillModel = FillModel.QUOTE,
    **keys: Any,
) -> Engine:
    item = instrument(category=category, tick_size=1)
    account = {"margin": "isolated", "leverage": leverage} if margin else {}
    return engine_of(
        {
            "market": {"category": category.value},
            "strategy": {"name": "sma_cross"},
            "sizing": {"mode": "fixed", "quantity": "1"},
            "account": {"cash": "5000", **account},
            "execution": keys,
        },
        [item],
        execution=execution,
        strategy=Says(signal),
    )


def held(engine: Engine, *, category: Category = Category.LINEAR) -> Engine:
    """Return *engine* after bars of a range of 1.00 at 1,000.00, its signal filled there."""
    key = f"{category.value}:BTCUSDT"
    warned(engine, key=key)
    engine.step(book(PRICE, HELD_MS - MINUTE + 500, key=key), None)
    candle = bar(PRICE, index=BARS - 1, high=PRICE + 50, low=PRICE - 50, instrument_id=key)
    engine.step(candle, None)
    return engine


def warned(engine: Engine, *, key: str = KEY) -> Engine:
    """Return *engine* after the bar at whose close it was asked."""
    for index in range(BARS - 1):
        close_ms = START_MS + (index + 1) * MINUTE
        engine.step(book(PRICE, close_ms - 1, key=key), None)
        candle = bar(PRICE, index=index, high=PRICE + 50, low=PRICE - 50, instrument_id=key)
        engine.step(candle, None)
    return engine


def book(price: int, at_ms: int, *, key: str = KEY) -> Quote:
    return quote(price - 5, price + 5, at_ms=at_ms, instrument_id=key)


def mark(price: int, at_ms: int, **others: int) -> Mark:
    return Mark(KEY, price, at_ms, at_ms, **others)


def trade(price: int, at_ms: int, *, key: str = KEY) -> Trade:
    return Trade(key, "t", Side.SELL, price, 1, at_ms, at_ms)


def fills(engine: Engine, *events: Event) -> list[Fill]:
    return [fill for event in events for fill in engine.step(event, None).fills]


LONG, SHORT = (Signal(action, "now") for action in (Action.LONG, Action.SHORT))
STOPPED = Signal(Action.LONG, "now", stop=Percent(5))
STOPPED_SHORT = Signal(Action.SHORT, "now", stop=Percent(5))
AIMED = Signal(Action.LONG, "now", target=Percent(5))
TRAILED = Signal(Action.LONG, "now", trailing=Percent(5))
RESTING = Orders((buy(1, limit=800.0),), "rests")
RESTING_SELL = Orders((sell(1, limit=1_250.0),), "rests")

DOWN, UP = 7 * PRICE // 10, 13 * PRICE // 10
T0 = HELD_MS + 1_000


def test_what_was_entered_is_held() -> None:
    engine = held(machine(LONG, margin=True))
    step = engine.step(mark(PRICE, T0), None)
    assert present(step.position).quantity == 1_000
    assert step.price_verdict is None


# ---------------------------------------------------------------- one false frame


@pytest.mark.parametrize(
    ("signal", "margin", "frame"),
    [
        (LONG, True, mark(DOWN, T0)),
        (LONG, True, mark(1, T0)),
        (SHORT, True, mark(UP, T0)),
        (SHORT, True, mark(UP, T0, index=UP, last=UP)),  # a whole ticker that is false
        (STOPPED, False, book(DOWN, T0)),
        (STOPPED, True, book(DOWN, T0)),
        (STOPPED_SHORT, False, book(UP, T0)),
        (STOPPED_SHORT, True, book(UP, T0)),
        (AIMED, False, book(UP, T0)),
        (RESTING, False, book(DOWN, T0)),
        (RESTING_SELL, False, book(UP, T0)),
    ],
)
def test_one_false_frame_fills_and_liquidates_nothing(
    signal: Signal | Orders, margin: bool, frame: Quote | Mark
) -> None:
    engine = held(machine(signal, margin=margin))
    before = engine.step(mark(PRICE + 1, T0 - 500, index=PRICE, last=PRICE), None)
    assert fills(engine, book(PRICE, T0 - 400)) == []
    assert engine.accepted_prices[KEY].doubts(frame)
    step = engine.step(frame, None)
    assert step.fills == ()
    assert step.position == before.position  # nor is it valued at such a price
    assert present(step.price_verdict).startswith("not believed: ")
    # What was true before goes on, and the false frame has left nothing behind.
    for place in range(1, 8):
        at = T0 + place * 500
        assert fills(engine, book(PRICE + place, at), mark(PRICE + place, at)) == []


def test_a_false_ticker_that_is_sent_twice_does_not_confirm_itself() -> None:
    """A delta leaves out what has not changed: a false mark stands until the next one."""
    engine = held(machine(SHORT, margin=True))
    for at in (T0, T0, T0 + 100, T0 + 900):
        assert fills(engine, mark(UP, at, index=UP, last=UP)) == []


def test_a_trailing_stop_follows_no_false_book() -> None:
    engine = held(machine(TRAILED))
    engine.step(book(UP, T0), None)
    assert fills(engine, book(PRICE, T0 + 100)) == []
    (order,) = engine.state().account.lines[KEY].orders.others
    assert order.trigger == 95_005


def test_no_entry_is_filled_by_a_false_book_and_the_next_one_fills_it() -> None:
    engine = warned(machine(LONG))
    at = START_MS + (BARS - 1) * MINUTE + 500
    assert fills(engine, book(DOWN, at)) == []
    (fill,) = fills(engine, book(PRICE + 10, at + 100))
    assert fill.price == PRICE + 15


def test_an_order_whose_time_is_over_ends_at_a_false_book_too() -> None:
    engine = warned(machine(LONG, fill_within_ms=1_000))
    step = engine.step(book(DOWN, START_MS + (BARS - 1) * MINUTE + 5_000), None)
    assert [order.status for order in step.orders] == [OrderStatus.CANCELED]


def test_a_quote_that_is_not_believed_shows_that_quotes_come() -> None:
    engine = held(machine(LONG))
    engine.step(book(DOWN, HELD_MS + 50_000), None)
    decided = present(engine.step(bar(PRICE, index=BARS), None).decision)
    stale = dict(zip(decided.gate_set.gates, decided.measures, strict=True))["stale"]
    assert stale == 10_000


# ---------------------------------------------------------------- what another source shows


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "other", ["quote", "trade", "index of the ticker before", "last trade of the ticker before"]
)
def test_a_mark_that_another_source_shows_liquidates(other: str, sign: int) -> None:
    engine = held(machine(LONG if sign > 0 else SHORT, margin=True))
    price = DOWN if sign > 0 else UP
    evidence: dict[str, Event] = {
        "quote": book(price + 10, T0),
        "trade": trade(price + 10, T0),
        "index of the ticker before": mark(price + 60, T0, index=price),
        "last trade of the ticker before": mark(price + 60, T0, last=price),
    }
    assert fills(engine, evidence[other]) == []
    step = engine.step(mark(price, T0 + 300), None)
    (fill,) = step.fills
    assert fill.model is FillModel.LIQUIDATION
    name = other.removesuffix(" of the ticker before")
    assert present(step.price_verdict).startswith(f"believed on the {name} {price // 100}")


def test_a_mark_that_waits_liquidates_in_the_step_of_what_shows_it() -> None:
    engine = held(machine(LONG, margin=True))
    assert fills(engine, mark(DOWN, T0)) == []
    shows = book(DOWN + 20, T0 + 700)
    assert engine.accepted_prices[KEY].is_evidence(shows)
    step = engine.step(shows, None)
    (fill,) = step.fills
    assert (fill.model, fill.reference_price) == (FillModel.LIQUIDATION, DOWN)
    assert fill.filled_ms == T0 + 700
    assert present(step.price_verdict).endswith("; the mark before it is believed on this one")


@pytest.mark.parametrize(
    "other",
    [
        mark(DOWN, T0 + 200),
        mark(PRICE, T0 + 200, index=DOWN),
        mark(PRICE, T0 + 200, last=DOWN),
        trade(DOWN, T0 + 200),
    ],
)
def test_a_book_that_waits_fills_a_stop_in_the_step_of_what_shows_it(other: Mark | Trade) -> None:
    engine = held(machine(STOPPED))
    assert fills(engine, book(DOWN, T0)) == []
    assert engine.accepted_prices[KEY].holds_quote
    assert engine.accepted_prices[KEY].is_evidence(other)
    (fill,) = fills(engine, other)
    assert (fill.price, fill.model, fill.filled_ms) == (DOWN - 5, FillModel.QUOTE, T0 + 200)
    assert not engine.accepted_prices[KEY].holds_quote


def test_another_source_counts_only_within_the_stated_time() -> None:
    engine = held(machine(LONG, margin=True, agree_within_ms=2_000))
    late = trade(DOWN, T0 + 2_001)
    assert fills(engine, mark(DOWN, T0)) == []
    assert not engine.accepted_prices[KEY].is_evidence(late)
    assert fills(engine, late) == []
    assert len(fills(engine, mark(DOWN - 1, T0 + 4_001))) == 1  # the trade is as old, just


def test_a_source_that_shows_less_than_the_jump_confirms_nothing() -> None:
    engine = held(machine(LONG, margin=True))
    assert fills(engine, mark(DOWN, T0), trade(PRICE - 500, T0 + 100)) == []
    assert fills(engine, book(9 * PRICE // 10, T0 + 200)) == []  # waits itself
    assert fills(engine, mark(DOWN, T0 + 300)) == []


def test_a_price_of_one_tick_confirms_no_false_book() -> None:
    engine = held(machine(STOPPED, margin=True))
    assert fills(engine, mark(1, T0), book(DOWN, T0 + 100), mark(1, T0 + 200)) == []


# ---------------------------------------------------------------- true crashes


def crash(sources: str, *, lags: dict[str, int]) -> list[Event]:
    """Return a fall of 30 % within a minute, a frame each half second, some sources behind."""
    events: list[Event] = []
    for place in range(1, 121):
        at = HELD_MS + place * 500

        def price(source: str, at_ms: int = at) -> int:
            gone = max(at_ms - HELD_MS - lags.get(source, 0), 0)
            return PRICE - PRICE * 30 * gone // (100 * MINUTE)

        if "ticker" in sources:
            others = {"index": price("index"), "last": price("last")}
            events.append(mark(price("mark"), at, **others))
        if "book" in sources:
            events.append(book(price("book"), at + 100))
        if "trade" in sources:
            events.append(trade(price("trade"), at + 200))
    return events


NEVER = 10 * MINUTE


@pytest.mark.parametrize(
    ("sources", "lags"),
    [
        ("ticker book trade", {}),
        ("ticker book", {}),
        ("ticker", {}),
        ("ticker trade", {"index": NEVER}),
        ("ticker book", {"mark": 15_000}),  # marks lag
        ("ticker book", {"book": NEVER}),  # the book stands still
        ("ticker book", {"index": NEVER, "last": NEVER}),
        ("ticker book", {"index": 20_000, "book": 20_000}),
    ],
)
@pytest.mark.parametrize("gap", [1, 8])
def test_a_crash_that_sources_show_liquidates(sources: str, lags: dict[str, int], gap: int) -> None:
    """Also if only every fourth second arrives, so that each frame jumps."""
    engine = held(machine(LONG, margin=True))
    events = crash(sources, lags=lags)
    if gap > 1:
        each = len(events) // 120
        events = [event for place, event in enumerate(events) if place // each % gap == gap - 1]
    liquidations = fills(engine, *events)
    assert [fill.model for fill in liquidations] == [FillModel.LIQUIDATION]


@pytest.mark.parametrize("category", [Category.LINEAR, Category.SPOT])
def test_a_crash_fills_a_stop_by_books_and_trades_alone(category: Category) -> None:
    """On spot there is no mark."""
    key = f"{category.value}:BTCUSDT"
    engine = held(machine(STOPPED, category=category), category=category)
    assert fills(engine, book(DOWN, T0, key=key)) == []
    (fill,) = fills(engine, trade(DOWN + 3, T0 + 10, key=key))
    assert fill.price == DOWN - 5


def test_after_the_bar_of_the_crash_its_close_is_believed() -> None:
    engine = held(machine(STOPPED))
    assert fills(engine, book(DOWN, T0)) == []
    engine.step(bar(DOWN, index=BARS, open_=PRICE), None)
    (fill,) = fills(engine, book(DOWN - 10, HELD_MS + MINUTE + 200))
    assert fill.price == DOWN - 15


def test_a_source_that_lags_goes_on_from_its_own_last_price() -> None:
    engine = held(machine(LONG))
    engine.step(mark(PRICE, T0), None)
    assert fills(engine, book(DOWN, T0 + 100), trade(DOWN, T0 + 200)) == []  # believed by now
    far = T0 + 20_000
    assert engine.step(book(DOWN - 10, far), None).price_verdict is None
    assert engine.step(mark(PRICE - 50, far), None).price_verdict is None
    assert engine.step(mark(PRICE - 10_000, far + 9_000), None).price_verdict is not None


@pytest.mark.parametrize("late_ms", [0, 1])
def test_a_source_goes_on_from_its_own_price_of_two_minutes_before(late_ms: int) -> None:
    engine = held(machine(LONG))
    engine.step(mark(PRICE, T0), None)
    assert fills(engine, book(DOWN, T0 + 100), trade(DOWN, T0 + 200)) == []  # believed by now
    at = T0 + SOURCE_MEMORY_MS + late_ms
    engine.step(book(DOWN, at - 50), None)
    assert (engine.step(mark(PRICE - 50, at), None).price_verdict is None) is (late_ms == 0)


def test_a_slow_way_is_no_jump() -> None:
    """What is usual grows with the root of the time: 1 % a minute, and 2 % in four of them."""
    engine = held(machine(LONG))
    usual = 30 * 100  # ranges of 1.00
    assert not engine.accepted_prices[KEY].doubts(mark(PRICE - usual, HELD_MS + MINUTE))
    assert engine.accepted_prices[KEY].doubts(mark(PRICE - usual - 1, HELD_MS + MINUTE))
    assert not engine.accepted_prices[KEY].doubts(mark(PRICE - 2 * usual, HELD_MS + 4 * MINUTE))
    assert engine.accepted_prices[KEY].doubts(mark(PRICE - 2 * usual - 1, HELD_MS + 4 * MINUTE))


def test_the_least_jump_is_a_hundredth_and_its_key_is_in_usual_ranges() -> None:
    for ranges, most in ((30.0, 3_000), (1.0, 1_000), (20.0, 2_000)):
        engine = held(machine(LONG, plausible=ranges))
        assert not engine.accepted_prices[KEY].doubts(book(PRICE + most, T0))
        assert engine.accepted_prices[KEY].doubts(book(PRICE + most + 1, T0))


def test_nothing_is_doubted_before_ten_bars() -> None:
    engine = machine(LONG)
    for index in range(9):
        engine.step(bar(PRICE, index=index, high=PRICE + 50, low=PRICE - 50), None)
        assert not engine.accepted_prices[KEY].doubts(mark(1, START_MS + (index + 1) * MINUTE))
    engine.step(bar(PRICE, index=9), None)
    assert engine.accepted_prices[KEY].doubts(mark(1, START_MS + 10 * MINUTE))


@pytest.mark.parametrize("other", ["mark", "book"])
def test_what_waited_too_long_is_no_price_to_go_on_from(other: str) -> None:
    engine = held(machine(STOPPED, margin=True))
    true, false = (mark, book) if other == "mark" else (book, mark)
    between = true(PRICE, T0 + 6_000)
    assert not fills(engine, false(DOWN, T0), between, false(DOWN, T0 + 7_000))


def test_bars_without_a_range_doubt_a_price_as_well() -> None:
    engine = machine(STOPPED)
    for index in range(BARS):
        engine.step(book(PRICE, START_MS + (index + 1) * MINUTE - 1), None)
        engine.step(bar(PRICE, index=index), None)
    engine.step(book(PRICE, HELD_MS + 500), None)
    step = engine.step(book(DOWN, T0), None)
    assert not step.fills
    assert step.price_verdict is not None


def test_a_wide_book_about_the_price_is_believed() -> None:
    engine = held(machine(LONG))
    assert not engine.accepted_prices[KEY].doubts(quote(PRICE - 20_000, PRICE + 20_000, at_ms=T0))
    assert engine.accepted_prices[KEY].doubts(quote(PRICE - 20_000, PRICE, at_ms=T0))


def test_a_start_forgets_what_waited() -> None:
    engine = held(machine(LONG, margin=True))
    engine.step(mark(DOWN, T0), None)
    start = ModelChange("", "", "0", "step", "cpu", "", 1, (), T0 + 50, T0 + 50)
    engine.step(start, None)
    assert not engine.accepted_prices[KEY].is_evidence(trade(DOWN, T0 + 100))
    assert fills(engine, trade(DOWN, T0 + 100)) == []


# ---------------------------------------------------------------- asking changes nothing


frames = st.lists(
    st.tuples(
        st.sampled_from(["mark", "ticker", "book", "trade", "bar"]),
        st.integers(-4_000, 4_000).map(lambda tick: PRICE + 10 * tick),
        st.integers(0, 3_000),
    ),
    max_size=12,
)


@given(frames=frames)
def test_what_a_feed_asks_moves_no_step(frames: list[tuple[str, int, int]]) -> None:
    questioned, silent = (held(machine(STOPPED, margin=True)) for _ in range(2))
    at, index = HELD_MS, BARS
    for kind, price, wait in frames:
        at += wait
        event: Event = bar(price, index=index)
        if kind == "bar":
            at, index = max(at, HELD_MS + (index - BARS + 1) * MINUTE), index + 1
        elif kind == "book":
            event = book(price, at)
        elif kind == "trade":
            event = trade(price, at)
        else:
            others = {"index": price, "last": price} if kind == "ticker" else {}
            event = mark(price, at, **others)
        if isinstance(event, Quote | Mark):
            questioned.accepted_prices[KEY].doubts(event)
            questioned.accepted_prices[KEY].repeats(event)
        if isinstance(event, Quote | Mark | Trade):
            questioned.accepted_prices[KEY].is_evidence(event)
        assert questioned.step(event, None) == silent.step(event, None)


# ---------------------------------------------------------------- funding


def settled(engine: Engine, rate: int, at_ms: int = HELD_MS) -> Step:
    return engine.step(Funding(KEY, rate, at_ms, at_ms), None)


PERCENT = RATE_SCALE // 100


@pytest.mark.parametrize("rate", [250 * PERCENT // 10, -90 * PERCENT, 10 * PERCENT + 1])
def test_an_absurd_rate_moves_nothing(rate: int) -> None:
    engine = held(machine(LONG, margin=True))
    before = engine.step(mark(PRICE, T0 - 1), None)
    step = settled(engine, rate)
    assert not step.accepted
    assert step.account == before.account
    assert present(step.price_verdict).startswith("not believed: a funding rate of ")
    later = settled(engine, PERCENT // 100)  # the true one of the same time comes after it
    assert later.accepted
    assert [entry.kind for entry in later.ledger] == ["funding"]


def test_the_largest_rate_is_the_least_initial_margin() -> None:
    assert largest_rate(instrument()) == 10 * PERCENT
    assert largest_rate(replace(instrument(), max_leverage=100 * 100)) == PERCENT
    assert settled(held(machine(LONG)), 10 * PERCENT).accepted
