"""One-click explanations of trades: the decision, its gates, the price, and where it looked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tracepaper.replay.report.attention import RunAttention
from tracepaper.replay.report.listed import of_decision
from tracepaper.replay.report.record import Floats, Ints, RunRecord
from tracepaper.replay.report.trades import ClosedTrade
from tracepaper.storage.reader import Reader
from tracepaper.storage.run_views import Row, RunViews
from tracepaper.strategies.types import BLOCK_BARS, Action

EXPLAINED_MAX: Final = 60
POINTS_MAX: Final = 160
_BEFORE_BARS: Final = 200
_AFTER_BARS: Final = 30


@dataclass(frozen=True)
class ExplainedTrade:
    """A trade, the decision that opened it, its gates, the price around, and the rollout."""

    trade: ClosedTrade
    decision: Row
    gates: tuple[Row, ...]
    times_ms: Ints  # of the closes shown
    closes: Floats
    rollout: tuple[tuple[int, int, float], ...]  # (from_ms, until_ms, weight), oldest first
    orders: tuple[Row, ...]  # of ``v_orders``: what a list of that decision sent or canceled


def chosen(trades: Sequence[ClosedTrade], most: int = EXPLAINED_MAX) -> list[ClosedTrade]:
    """Return the trades to explain, by time: all, or half the best and half the worst."""
    if len(trades) <= most:
        return list(trades)
    by_profit = sorted(trades, key=lambda trade: trade.profit)
    picked = [*by_profit[: most // 2], *by_profit[-(most - most // 2) :]]
    return sorted(picked, key=lambda trade: trade.entered_ms)


def explain_trades(
    reader: Reader, record: RunRecord, trades: Sequence[ClosedTrade], attention: RunAttention | None
) -> list[ExplainedTrade]:
    """Return what opened each of *trades*, from the views."""
    views = RunViews(reader.connection, str(record.run["run_id"]))
    found = []
    for trade in trades:
        # By equality: a range of sequences would go over the whole run.
        if decided := views.rows("v_decisions", sequence=trade.entry_sequence):
            by_age = (
                None if attention is None else attention.rollout_by_age.get(trade.entry_sequence)
            )
            rollout = () if by_age is None else _rollout(by_age, decided[0], record.interval_ms)
            times, closes = _price(record, trade, decided[0], rollout)
            gates = tuple(views.rows("v_gates", sequence=trade.entry_sequence))
            by_list = decided[0]["action"] == Action.ORDERS
            orders = of_decision(reader, views, trade.entry_sequence) if by_list else ()
            found.append(ExplainedTrade(trade, decided[0], gates, times, closes, rollout, orders))
    return found


def _rollout(by_age: Floats, decision: Row, interval_ms: int) -> tuple[tuple[int, int, float], ...]:
    """Return the cells of age as stretches of time, oldest first; "older" has no length."""
    end = int(decision["open_time_ms"]) + interval_ms
    cell_ms = BLOCK_BARS * interval_ms
    return tuple(
        (end - (cell + 1) * cell_ms, end - cell * cell_ms, float(by_age[cell]))
        for cell in reversed(range(by_age.size - 1))
    )


def _price(
    record: RunRecord,
    trade: ClosedTrade,
    decision: Row,
    rollout: Sequence[tuple[int, int, float]],
) -> tuple[Ints, Floats]:
    """Return the closes from where the decision looked, or a little before it, to the exit.

    None of a run that kept only some bars: a line between them would be no price.
    """
    if not record.every_bar:
        return np.empty(0, dtype=np.int64), np.empty(0)
    bars = record.bars[trade.instrument]
    closes_ms = record.closes_of(bars.open_time_ms)
    back_ms = (
        rollout[0][0]
        if rollout
        else int(decision["open_time_ms"]) - _BEFORE_BARS * record.interval_ms
    )
    first = int(np.searchsorted(closes_ms, back_ms))
    last = int(np.searchsorted(closes_ms, trade.left_ms)) + _AFTER_BARS
    places = np.arange(first, min(last, closes_ms.size))
    if places.size > POINTS_MAX:
        places = places[np.linspace(0, places.size - 1, POINTS_MAX).round().astype(np.int64)]
    return closes_ms[places], bars.close[places]
