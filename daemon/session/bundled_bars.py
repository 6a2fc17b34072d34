"""Runs a user's class over bundled bars, before a market has to show that it asks for nothing.

The rule is docs/strategies.md, U6.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Final

from tracepaper.daemon.config.loading import Config, custom_classes
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import (
    Strategies,
    build_engine,
    make_strategies,
    needs_forecaster,
    resolved,
    warmup_bars,
)
from tracepaper.daemon.session.longer_history import (
    Answers,
    Lookback,
    ShortHistory,
    is_tried,
    lengthen,
    remedied,
    short_history,
)
from tracepaper.daemon.session.run_row import (
    STAND_IN_PRICE_DECIMALS,
    STAND_IN_VOLUME_DECIMALS,
    stand_in,
    usage_errors,
)
from tracepaper.daemon.session.user_class import guard_of
from tracepaper.strategies.errors import StrategyFailed
from tracepaper.strategies.types.decisions import FillModel, Step
from tracepaper.strategies.types.market import Bar, CloseStart, Source
from tracepaper.strategies.units import minute_text, scaled
from tracepaper.strategies.without_fills import DecisionCounts, most_given
from tracepaper.strategies.without_value import says_warmup

CANDLES: Final = (
    Path(__file__).resolve().parents[2]
    / "replay"
    / "samples"
    / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
)
BARS_LEAST: Final = 100
"""Bars over which a class runs whose warm-up is short."""


def asked_over_bundled_bars(config: Config) -> str:
    """Return in sentences what the user's class asks for over twice its warm-up of bundled bars.

    Each symbol gets the bundled minutes of BTCUSDT as bars of the configured interval. Returns
    nothing for a built-in strategy. Raises ``ConfigInvalid`` if the class fails.
    """
    if not custom_classes(config):
        return ""
    if needs_forecaster(config):
        return "It was not tried on bundled bars: it needs a model's forecasts."
    config = resolved(config, FillModel.NEXT_OPEN)  # no gate then waits for quotes
    strategies = make_strategies(config, None)
    if any(strategy.books for strategy in strategies.values()):
        return "It was not tried on bundled bars: it needs order books."
    wanted = max(2 * warmup_bars(strategies, config), BARS_LEAST)
    rows = _rows()
    if len(rows) < wanted:
        return f"It was not tried on bundled bars: it needs {wanted:,}, and {len(rows):,} exist."
    counts = DecisionCounts()
    with usage_errors(), remedied(lambda: _short_history(config)):
        for step, _ in _steps(config, strategies, rows[:wanted]):
            if (decision := step.decision) is not None:
                counts.add(decision.action, decision.refused_by, decision.reason, None)
    more = ""
    reasons = (*counts.asked, *counts.idle)
    if not any(says_warmup(reason) for reason in reasons) and (found := _short_history(config)):
        more = f" {found.sentence}."
    if not counts.asked:
        return f"Tried on {wanted:,} bundled bars: {counts.why_no_fill()}{more}"
    asked = f"it asked for a position on {counts.asked.total():,}"
    return f"Tried on {wanted:,} bundled bars, {asked}.{most_given(counts.asked)}{more}"


def _short_history(config: Config) -> ShortHistory | None:
    """Return the history of the class of *config*, which is resolved, if it is too short (U7)."""
    guard = guard_of(strategies := make_strategies(config, None))
    if guard is None or not is_tried(strategies):
        return None
    rows = _rows()

    def decide(lookback: Lookback, bars: int) -> Answers:
        lengthen(fresh := make_strategies(config, None), lookback)
        answers = Answers()
        with answers.taken(fresh):
            for step, engine in _steps(config, fresh, rows[:bars]):
                answers.add(step, engine)
        return answers

    interval_ms = config.market.interval_ms
    return short_history(decide, guard, interval_ms=interval_ms, given=len(rows))


def _rows() -> list[list[str]]:
    """Return the rows of the bundled candles."""
    with gzip.open(CANDLES, "rt", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def _steps(
    config: Config, strategies: Strategies, rows: Sequence[list[str]]
) -> Iterator[tuple[Step, Engine]]:
    """Yield the steps over *rows*, and the engine of *strategies*."""
    engine = build_engine(
        config,
        [stand_in(config, symbol) for symbol in config.market.symbols],
        execution=FillModel.NEXT_OPEN,
        period_start_ms=0,
        forecaster=None,
        strategies=strategies,
    )
    for place, row in enumerate(rows):
        bars = [_bar(row, place, key, config.market.interval_ms) for key in engine.markets]
        at_ms = bars[0].close_time_ms
        start = CloseStart(bars[0].open_time_ms, len(bars), (), at_ms, at_ms)
        for step in _tried(engine, place, start, bars):
            yield step, engine


def _tried(engine: Engine, place: int, start: CloseStart, bars: Sequence[Bar]) -> list[Step]:
    """Return the steps of a close; the failure of a class names the bar by its number."""
    try:
        return engine.close(start, bars, [None] * len(bars))
    except StrategyFailed as error:  # the times of these bars are none
        dated = f"the bar {minute_text(bars[0].open_time_ms)}"
        error.args = (str(error).replace(dated, f"bundled bar {place + 1:,}"),)
        raise


def _bar(row: list[str], place: int, instrument: str, interval_ms: int) -> Bar:
    """Return the bundled *row* as the bar at *place* of *instrument*."""
    open_ms, close_ms = place * interval_ms, (place + 1) * interval_ms
    first, high, low, last = (
        scaled(Decimal(price), STAND_IN_PRICE_DECIMALS, name="price") for price in row[1:5]
    )
    volume = scaled(Decimal(row[5]), STAND_IN_VOLUME_DECIMALS, name="volume")
    return Bar(
        *(instrument, open_ms, interval_ms, first, high, low, last, volume, None),
        *(close_ms, close_ms, Source.ARCHIVE),
    )
