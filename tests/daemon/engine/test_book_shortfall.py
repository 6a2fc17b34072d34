"""The limit of the whole book: its figure, what it lets pass, and days that are too few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from builders import START_MS, bar, instrument, present
from engines import Says, engine_of

from tracepaper.daemon.engine.engine import Engine
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.api.timeframes import frame_bar_of
from tracepaper.strategies.types.decisions import Action, Decision
from tracepaper.strategies.units import DAY_MS

GATE = "risk.book_shortfall"
DAYS = 100
MIDNIGHT_MS = START_MS // DAY_MS * DAY_MS
WALK = np.random.default_rng(4).normal(size=(DAYS, 2))
CLOSES = np.round(1e6 * np.exp(np.cumsum(0.02 * (WALK @ [[1, 0.9], [0, 0.4]]), axis=0))).astype(int)
"""Closes of two symbols that move together: int [day, symbol]."""
SYMBOLS = ("AUSDT", "BUSDT")


def decided(
    answers: Sequence[Sequence[Action]],
    limit: str = "0.9",
    *,
    interval: str = "D",
    absent: int = 0,
    **risk: Any,
) -> tuple[Engine, list[list[Decision]]]:
    """Run both symbols; at the last bars their strategies give the *answers* by bar.

    The second symbol trades from day *absent* on. A half-day's first bar has another close.
    """
    items = [instrument(symbol) for symbol in SYMBOLS]
    parts = 1 if interval == "D" else 2
    quiet = DAYS * parts - len(answers)
    told = {}
    for place, symbol in enumerate(SYMBOLS):
        first = [Signal(Action.HOLD, "") for _ in range(quiet - place * absent)]
        told[symbol] = Says(*first, *(Signal(day[place], "") for day in answers))
    sections = {
        "market": {"symbols": SYMBOLS, "interval": interval},
        "strategy": {"name": "sma_cross"},
        "risk": {"max_book_shortfall": limit, **risk},
        "execution": {"taker_fee": "0"},
    }
    engine = engine_of(sections, items, period_start_ms=MIDNIGHT_MS, strategies=told)
    by_day: list[list[Decision]] = []
    for index in range(DAYS * parts):
        day = index // parts
        closes = CLOSES[day] if index % parts == parts - 1 else CLOSES[day] + 999
        by_day.append([])
        for place, item in enumerate(items):
            if day < place * absent:
                continue
            candle = bar(
                int(closes[place]),
                open_time_ms=MIDNIGHT_MS + index * DAY_MS // parts,
                interval_ms=DAY_MS // parts,
                instrument_id=item.id,
            )
            by_day[-1].append(present(engine.step(candle, None).decision))
    return engine, by_day


def measure(decision: Decision) -> float | None:
    return decision.measures[decision.gate_set.gates.index(GATE)]


LONG, SHORT, HOLD, FLAT = Action.LONG, Action.SHORT, Action.HOLD, Action.FLAT


def reference(until: int, *sides: int) -> float:
    """Return the shortfall of 10,000 on each of *sides* at the close of day *until*, of 100,000."""
    returns = CLOSES[1 : until + 1] / CLOSES[:until] - 1
    profits, worst = np.sort(10_000 * returns @ sides), until * 0.025 - 0.4
    whole = int(worst)
    total = profits[:whole].sum() + (worst - whole) * profits[whole]
    return -float(total) / worst / 100_000


@pytest.mark.parametrize("second", [LONG, SHORT])
def test_the_figure_is_the_mean_of_the_books_worst_days(second: Action) -> None:
    _, by_day = decided([(LONG, HOLD), (HOLD, second)])
    alone, both = measure(by_day[-2][0]), measure(by_day[-1][1])
    assert alone == pytest.approx(reference(DAYS - 2, 1, 0), rel=1e-3)
    if second is SHORT:
        assert both == 0.0, "a position that hedges the book adds nothing"
    else:
        assert both == pytest.approx(reference(DAYS - 1, 1, 1), rel=0.1)
        assert present(both) > 1.5 * present(alone)


def test_half_days_make_the_same_figure_as_their_days() -> None:
    _, days = decided([(LONG, HOLD)])
    _, halves = decided([(LONG, HOLD)], interval="720")
    assert measure(days[-1][0]) == measure(halves[-1][0])


def test_what_passes_the_limit_is_refused_and_what_reduces_never_is() -> None:
    _, by_day = decided([(LONG, HOLD), (HOLD, LONG), (FLAT, HOLD)], limit="0.006")
    assert by_day[-3][0].refused_by is None
    assert by_day[-2][1].refused_by == GATE
    assert (by_day[-1][0].action, by_day[-1][0].refused_by) == (FLAT, None)


def test_an_exit_passes_whatever_the_book_could_lose() -> None:
    engine, _ = decided([(LONG, HOLD)])
    reducing = {"linear:AUSDT": 1}
    book = present(engine.risk.book)
    assert book.measure(reducing, {"linear:AUSDT": 2}) == 0.0


@pytest.mark.parametrize(("few", "refused"), [("refuse", GATE), ("allow", None)])
def test_under_sixty_days_a_key_refuses_or_allows(few: str, refused: str | None) -> None:
    _, by_day = decided([(HOLD, LONG)], absent=40, book_too_few=few)
    decision = by_day[-1][1]
    assert decision.refused_by == refused
    assert measure(decision) == (None if refused else 0.0)


def test_a_symbol_with_too_few_days_leaves_the_limit_of_the_others() -> None:
    _, by_day = decided([(HOLD, LONG), (LONG, HOLD)], "0.0001", absent=40, book_too_few="allow")
    assert by_day[-2][1].refused_by is None
    assert by_day[-1][0].refused_by == GATE


def test_a_short_position_is_hedged_by_a_long_one() -> None:
    _, by_day = decided([(SHORT, HOLD), (HOLD, LONG)])
    assert present(measure(by_day[-2][0])) > 0
    assert measure(by_day[-1][1]) == 0.0


def test_candles_of_a_day_that_a_start_fetches_make_the_figure_of_minutes() -> None:
    sections = {
        "market": {"symbols": ["AUSDT"]},
        "strategy": {"name": "sma_cross"},
        "risk": {"max_book_shortfall": "0.9", "book_days": DAYS},
    }
    item = instrument("AUSDT")
    says = Says(Signal(LONG, ""))
    engine = engine_of(sections, [item], period_start_ms=MIDNIGHT_MS, strategy=says)
    (lacking,) = engine.lacking_frames(MIDNIGHT_MS)
    assert (lacking.until_ms - lacking.from_ms) // DAY_MS == DAYS + 1
    for day, close in enumerate(CLOSES[:, 0].tolist()):
        at_ms = lacking.until_ms - (DAYS - day) * DAY_MS
        candle = bar(close, open_time_ms=at_ms, interval_ms=DAY_MS, instrument_id=item.id)
        engine.step(frame_bar_of(candle, seen_ms=MIDNIGHT_MS), None)
    minute = bar(10_000, open_time_ms=MIDNIGHT_MS, instrument_id=item.id)
    figure = measure(present(engine.step(minute, None).decision))
    assert figure == pytest.approx(reference(DAYS - 1, 1, 0), rel=1e-3)
