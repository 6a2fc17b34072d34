"""A false snapshot of an order book moves no decision; a fall that its bar shows does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from builders import MINUTE, START_MS, bar, instrument
from depth_cases import depth
from engines import engine_of

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.restart import Restart
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import CORE_GATES, Strategy
from tracepaper.strategies.order_book import books_of, packed_books
from tracepaper.strategies.types.decisions import Action, FillModel, Step
from tracepaper.strategies.types.market import Bar, Depths, Mark

KEY = "linear:BTCUSDT"
PRICE = 100_000
DOWN = 2 * PRICE // 3
EVERY_MS = 1_000
BARS = 20


class Looks(Strategy):
    """Records the times of the books that it saw, in seconds before the close."""

    gates = CORE_GATES
    books = 60

    def __init__(self) -> None:
        self.saw: list[int] | None = None

    def decide(self, context: BarContext) -> Signal:
        self.saw = None
        if context.depth is not None:
            self.saw = [(context.time - at) // 1_000 for at in context.depth.seen_ms.tolist()]
        return Signal(Action.HOLD, "looks")


def machine(bars: int = BARS) -> tuple[Engine, Looks]:
    item = instrument(tick_size=1)
    looks = Looks()
    engine = engine_of(
        {"strategy": {"name": "sma_cross"}, "sizing": {"mode": "fixed", "quantity": "1"}},
        [item],
        execution=FillModel.QUOTE,
        strategy=looks,
    )
    for index in range(bars):
        engine.step(minute(index), None)
    return engine, looks


def minute(index: int, close: int = PRICE, *, open_: int = PRICE) -> Bar:
    edges = (max(open_, close) + 50, min(open_, close) - 50)
    return bar(close, index=index, open_=open_, high=edges[0], low=edges[1])


def books(mids: Sequence[int], *, index: int = BARS, from_s: int = 1) -> Depths:
    """Return the books of minute *index*, one a second from *from_s* on."""
    first_ms = START_MS + index * MINUTE + from_s * EVERY_MS
    nodes = [
        depth([(mid - 5, 1)], [(mid + 5, 1)], first_ms + place * EVERY_MS)
        for place, mid in enumerate(mids)
    ]
    laid = books_of(nodes, 1)
    return packed_books(KEY, laid, every_ms=EVERY_MS, seen_ms=int(laid.seen_ms[-1]))


def steps(engine: Engine, events: Iterable[Depths | Bar | Mark]) -> list[Step]:
    return [engine.step(event, None) for event in events]


@pytest.mark.parametrize("false", [DOWN, 4 * PRICE // 3, 1_000])
@pytest.mark.parametrize("at", [0, 30, 59])
def test_of_a_false_book_and_those_before_it_none_is_seen(false: int, at: int) -> None:
    engine, looks = machine()
    mids = [PRICE] * 60
    mids[at] = false
    step, _ = steps(engine, [books(mids), minute(BARS)])
    assert looks.saw == (list(range(58 - at, -1, -1)) or None)
    assert step.price_verdict is not None
    assert step.price_verdict.startswith(
        "not believed unless their bar goes there: 1 of 60 order books"
    )
    # It stays unseen; what comes after it is seen.
    steps(engine, [books([PRICE] * 60, index=BARS + 1), minute(BARS + 1)])
    assert looks.saw == list(range(59, -1, -1))


def test_where_the_last_book_before_the_close_is_false_none_is_seen() -> None:
    """Also where its block reaches beyond the close."""
    engine, looks = machine()
    mids = [PRICE] * 64
    mids[59] = DOWN
    steps(engine, [books(mids), minute(BARS)])
    assert looks.saw is None


def test_true_books_are_seen_and_nothing_is_said_of_them() -> None:
    engine, looks = machine()
    step, _ = steps(engine, [books([PRICE + place for place in range(60)]), minute(BARS)])
    assert step.price_verdict is None
    assert looks.saw == list(range(59, -1, -1))


def test_books_of_a_crash_that_their_bar_shows_are_seen() -> None:
    engine, looks = machine()
    fall = [PRICE] * 20 + [DOWN] * 40
    step, _ = steps(engine, [books(fall), minute(BARS, DOWN, open_=PRICE)])
    assert step.price_verdict is not None
    assert step.price_verdict.startswith(
        "not believed unless their bar goes there: 40 of 60 order books"
    )
    assert looks.saw == list(range(59, -1, -1))


def test_books_before_a_crash_are_usual_where_quotes_showed_it_already() -> None:
    engine, looks = machine()
    at = START_MS + (BARS + 1) * MINUTE - 500
    fall = [PRICE] * 20 + [DOWN] * 40
    marks = (Mark(KEY, DOWN + 60, at - 100, at, index=DOWN), Mark(KEY, DOWN, at, at))
    *_, step, _ = steps(engine, [*marks, books(fall), minute(BARS, DOWN, open_=PRICE)])
    assert step.price_verdict is None
    assert looks.saw == list(range(59, -1, -1))


@pytest.mark.parametrize("far", [DOWN, 4 * PRICE // 3])
def test_a_book_between_the_last_close_and_a_bar_that_opens_elsewhere_is_seen(far: int) -> None:
    engine, looks = machine()
    mids = [PRICE] * 5 + [far] * 55
    steps(engine, [books(mids), minute(BARS, far, open_=far)])
    assert looks.saw == list(range(59, -1, -1))


def test_a_bar_judges_no_book_of_an_earlier_one() -> None:
    engine, looks = machine()
    steps(engine, [books([PRICE] * 60), minute(BARS, DOWN)])
    assert looks.saw == list(range(59, -1, -1))
    later = minute(BARS + 1, DOWN, open_=DOWN)
    steps(engine, [books([DOWN] * 10, index=BARS + 1), later])
    assert looks.saw == [*range(109, 59, -1), *range(59, 49, -1)]


def test_bars_that_come_late_judge_the_books_of_their_own_time() -> None:
    engine, looks = machine()
    first, second = [PRICE] * 60, [PRICE] * 60
    first[10], second[20] = DOWN, DOWN
    steps(engine, [books(first), books(second, index=BARS + 1), minute(BARS)])
    assert looks.saw == list(range(48, -1, -1))
    steps(engine, [minute(BARS + 1)])
    assert looks.saw == list(range(38, -1, -1))


def test_what_is_recalled_hides_the_same() -> None:
    """A replay that resumes, and one that begins in the middle of a run."""
    mids = [PRICE] * 60
    mids[30] = DOWN
    events: list[Depths | Bar] = [books(mids), minute(BARS), books([PRICE] * 9, index=BARS + 1)]
    (live, live_prices), (recalled, again), (repeated, third) = machine(), machine(), machine()
    steps(live, events)
    for event in events:
        restart = Restart(recalled)
        restart.recall(event) if isinstance(event, Bar) else restart.recall_frame(event)
        Restart(repeated).repeat(event)
    for engine in (live, recalled, repeated):
        engine.step(minute(BARS + 1), None)
    assert live_prices.saw == again.saw == third.saw
    assert live_prices.saw is not None
    assert len(live_prices.saw) == 29 + 9


def test_before_ten_bars_every_book_is_believed() -> None:
    engine, looks = machine(bars=0)
    step, _ = steps(engine, [books([DOWN] * 60, index=0), minute(0)])
    assert step.price_verdict is None
    assert looks.saw == list(range(59, -1, -1))
