"""Buy and hold on the page equals the report's, as a run grows and after a prune."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_step import closes_of, live_config, live_parts, quote_of
from long_replays import tiled
from msgspec import structs
from page_cases import shown_of
from records import prune
from report_cases import build_report_of

from tracepaper.replay.archive.series import archive_instrument
from tracepaper.replay.page import holding, rollups, runs
from tracepaper.replay.page.databases import OpenRun
from tracepaper.replay.report.report import buy_and_hold_at_equal_exposure
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.types.market import Event, Funding
from tracepaper.strategies.units import DAY_MS, MINUTE_MS

PARTS = 3


class Sides(Strategy):
    """Holds a random side for a while."""

    warmup = 10

    def __init__(self, options: dict[str, Any]) -> None:
        self._draw = random.Random(options.get("seed", 0))

    def decide(self, _context: BarContext) -> Signal:
        """Throw the dice."""
        action = self._draw.choice([Action.LONG, Action.SHORT, Action.FLAT, *[Action.HOLD] * 5])
        return Signal(action, "the dice")


def events(bars: int, most: int, *, seed: int) -> list[Event]:
    """Return quotes, bars and settlements of two instruments in the order of their times.

    Funding is settled on a bar's close and between two, some of it twice, some before the first
    decision; the second instrument begins later.
    """
    draw, settlements = random.Random(seed), list[Funding]()
    stream: list[Event] = []
    for number, close in enumerate(closes_of(2, bars)):
        present = close if number >= 25 else close[:1]
        stream += present
        at = close[0].close_time_ms
        for after_ms in (0, 1_000, 20_000):
            if after_ms == 1_000:  # the orders of these bars have reached the exchange
                quotes = map(quote_of, present)
                stream += [
                    structs.replace(quote, market_ms=at + 1_000, seen_ms=at + 1_000)
                    for quote in quotes
                ]
                continue
            for bar in present:
                if draw.random() < 0.05:
                    rate = draw.randrange(-most, most)
                    settlements.append(Funding(bar.instrument, rate, at + after_ms, at + after_ms))
                    stream.append(settlements[-1])
        if settlements and draw.random() < 0.05:
            stream.append(settlements[-1])
    return stream


def check(run: OpenRun) -> None:
    """Compare buy and hold on the page with the report."""
    report = build_report_of(run.database).record
    expected = {f"{held.share:.9f}": held for held in buy_and_hold_at_equal_exposure(report)}
    by_share = {f"{held.share:.9f}": held for held in holding.held(run)}
    assert by_share.keys() == expected.keys()
    curves = runs.equity(run, None, None, 20_000)
    at = np.searchsorted(report.times_ms, curves.time_ms, side="right")
    listed = {account.name: account for account in runs.run(run).accounts}
    for share, held in by_share.items():
        curve = expected[share].equity
        assert curves.equity[held.name] == pytest.approx(curve[at], abs=1e-6)
        assert listed[held.name].equity == pytest.approx(curve[-1], abs=1e-6)
        assert listed[held.name].total_return == pytest.approx(curve[-1] / curve[0] - 1)


# Settlements of a ten-thousandth at most, and of a hundredth, which uses an account up.
LONG = [pytest.param(2, 3_000, rate, marks=pytest.mark.slow) for rate in (10**6, 10**8)]


@pytest.mark.parametrize(("seed", "bars", "rate"), [(0, 200, 10**7), *LONG])
def test_holding_is_the_reports_as_a_run_grows_and_after_a_prune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, bars: int, rate: int
) -> None:
    monkeypatch.setattr(rollups, "SHORT_BARS", 50)
    monkeypatch.setattr(rollups, "FOLDED_BARS", 20)
    every, database = events(bars, rate, seed=seed), tmp_path / "run.db"
    config = live_config(f"{__name__}:{Sides.__name__}", ["BENCH0USDT", "BENCH1USDT"])
    # Each part ends with a settlement, whose bar is not there yet.
    settled = [at for at, event in enumerate(every, 1) if at > 60 and isinstance(event, Funding)]
    chosen = random.Random(seed).sample(settled[:-1], PARTS - 1)
    edges = [0, *sorted(chosen), len(every)]
    instrument = archive_instrument(tiled(10))
    instruments = [structs.replace(instrument, symbol=name) for name in config.market.symbols]
    with live_parts(config, instruments, None, database, start_ms=every[0].market_ms) as parts:
        asyncio.run(_append(parts, [parts.start()]))
        followed = shown_of(database)
        for first, end in pairwise(edges):
            asyncio.run(_append(parts, every[first:end]))
            for run in (followed, shown_of(database)):
                run.rollups.refresh()
                check(run)
    held = [row["quantity"] for row in followed.views.rows("v_positions")]
    assert min(held) < 0 < max(held)
    units = holding.held(followed)[0].units.bought.values()
    assert all(unit.settled_ms.size > 5 and unit.paid.any() for unit in units)
    if bars > DAY_MS // MINUTE_MS:
        assert prune(database, keep_days=1).steps
        for run in (followed, shown_of(database)):
            run.rollups.refresh()
            assert run.columns.span[0] > 0
            check(run)


async def _append(parts: Any, some: list[Event]) -> None:
    await parts.audit.append(*(parts.engine.step(event, None) for event in some))
