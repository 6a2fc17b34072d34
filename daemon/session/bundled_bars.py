"""Runs a user's class over bundled bars, before a market has to show that it asks for nothing.

The rule is docs/strategies.md, U6.
"""

from __future__ import annotations

import csv
import gzip
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Final

from tracepaper.daemon.config.loading import Config, custom_classes
from tracepaper.daemon.session.build import (
    build_engine,
    make_strategies,
    needs_forecaster,
    resolved,
    warmup_bars,
)
from tracepaper.daemon.session.run_row import (
    STAND_IN_PRICE_DECIMALS,
    STAND_IN_VOLUME_DECIMALS,
    stand_in,
    usage_errors,
)
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Bar, CloseStart, Source
from tracepaper.strategies.units import scaled
from tracepaper.strategies.without_fills import DecisionCounts, most_given

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
    engine = build_engine(
        config,
        [stand_in(config, symbol) for symbol in config.market.symbols],
        execution=FillModel.NEXT_OPEN,
        period_start_ms=0,
        forecaster=None,
        strategies=strategies,
    )
    with gzip.open(CANDLES, "rt", encoding="utf-8") as file:
        rows = list(islice(csv.reader(file), 1, wanted + 1))
    if len(rows) < wanted:
        return f"It was not tried on bundled bars: it needs {wanted:,}, and {len(rows):,} exist."
    counts = DecisionCounts()
    with usage_errors():
        for place, row in enumerate(rows):
            bars = [_bar(row, place, key, config.market.interval_ms) for key in engine.markets]
            at_ms = bars[0].close_time_ms
            start = CloseStart(bars[0].open_time_ms, len(bars), (), at_ms, at_ms)
            for step in engine.close(start, bars, [None] * len(bars)):
                if (decision := step.decision) is not None:
                    counts.add(decision.action, decision.refused_by, decision.reason, None)
    if not counts.asked:
        return f"Tried on {wanted:,} bundled bars: {counts.why_no_fill()}"
    asked = f"it asked for a position on {counts.asked.total():,}"
    return f"Tried on {wanted:,} bundled bars, {asked}.{most_given(counts.asked)}"


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
