"""Lasting states that make a run look idle: halts, and many absent or late bars.

The rule is docs/decisions.md, G22.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Final

import msgspec
import numpy as np

from tracepaper.replay.report.metrics import LEFT_LEAST, is_used_up
from tracepaper.replay.run_columns import Floats, Ints, RunColumns
from tracepaper.storage.database.run_views import Row
from tracepaper.strategies.gates.declared import (
    operator,
    risk_daily_loss,
    risk_drawdown,
    risk_halt,
    warm,
)
from tracepaper.strategies.types.decisions import Action, OrderRole, OrderStatus
from tracepaper.strategies.types.market import Command, CommandKind, GapCause, GapWord, gap_word
from tracepaper.strategies.units import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    count_of,
    minute_text,
    percent,
    without_zeros,
)
from tracepaper.strategies.without_fills import DecisionCounts
from tracepaper.strategies.without_value import lacked_value, says_warmup

LIMITS: Final = (*risk_halt.only_with, risk_halt.name)
"""The gates that refuse while a limit halts the run."""
_ENTRIES: Final = (Action.LONG, Action.SHORT, Action.ORDERS)
LONG_GAPS: Final = 0.01
"""Share of a run's time from which its absent or late bars count as a state."""
_CAUSES: Final = {
    GapCause.DISCONNECTED: "the feed was disconnected",
    GapCause.MISSED: "no closing frame came",
    GapCause.DOWN: "the daemon did not run",
    GapCause.OVERFLOW: "the feed's queue was full",
    GapCause.ARCHIVE: "the candles lack these bars",
    GapCause.STALE: "the stream was silent",
    GapCause.IMPLAUSIBLE: "its closes were implausible",
    GapCause.JUMPED: "the exchange's time jumped, or this machine slept",
}
_LENGTHS: Final = ((DAY_MS, "days"), (HOUR_MS, "hours"), (MINUTE_MS, "minutes"))


@dataclass(frozen=True)
class LastingState:
    """One lasting state; ``refused`` is None for absent and late bars."""

    kind: str  # limit, operator, absent or late
    by: str  # the gate; for bars the cause of the longest gap
    since_ms: int  # market time; for bars the open time of the first in the longest gap
    sequence: int  # of the step that recorded the state
    refused: int | None
    sentence: str

    @property
    def is_halt(self) -> bool:
        """Whether the state lasts until RESUME."""
        return self.kind in ("limit", "operator")


def lasting_states(columns: RunColumns, *, until: int | None = None) -> tuple[LastingState, ...]:
    """Return the states that hold a run after step *until*, by default after its newest step.

    The last ones are those of absent and late bars until then, if these are many.
    """
    views = columns.views
    newest = views.rows("v_events", newest=1) if until is None else ()
    newest = newest or views.rows("v_events", sequence=until or 0)
    if not newest:
        return ()
    last, now_ms = newest[-1]["sequence"], newest[-1]["market_ms"]
    span = _Span(columns, last, now_ms)
    commands = [
        (event.sequence, command_of(json.loads(event.content), event.market_ms))
        for event in columns.rows.events("command", (0, last))
    ]
    resumed = max(
        (at for at, command in commands if command.kind is CommandKind.RESUME), default=-1
    )
    states = []
    if lasting := [command for command in commands if command[0] > resumed]:
        states.append(span.of_operator(*lasting[0], lasting[-1][1]))
    halts = columns.rows.halts((resumed + 1, last))
    if halts:
        halt = halts[-1]
        states.append(span.of_limit(halt.limit, halt.since_ms, halt.sequence))
    elif (state := span.refused_by_drawdown(resumed)) is not None:
        states.append(state)
    states += filter(None, (span.of_bars("absent"), span.of_bars("late")))
    return tuple(states)


def without_fills(columns: RunColumns) -> str:
    """Return why nothing has filled in a run so far, in sentences; nothing if an order filled."""
    rows, views = columns.rows, columns.views
    if rows.filled(columns.span):
        return ""
    counts, outcomes = DecisionCounts(), {each.key: each for each in rows.outcomes}
    for key, counted in rows.outcome_counts(columns.span).items():
        outcome = outcomes[key]
        counts.add(
            outcome.action,
            outcome.refused_by,
            outcome.reason,
            outcome.unfilled_reason,
            open_ms=rows.open_ms(counted.first),
            bars=counted.times,
        )
    known = ""
    is_cold = counts.refused[warm.name] == counts.bars
    for gate in () if not is_cold else views.rows("v_gates", newest=1, gate=warm.name):
        known = f"{gate['measure']:,.0f} of {gate['threshold']:,.0f}"
    counts.rejected.update(dict(views.counts("v_orders", "reason", status=OrderStatus.REJECTED)))
    return counts.why_no_fill(known=known)


def without_value(columns: RunColumns) -> str:
    """Return a sentence on the bars of a run with fills that were decided without a value."""
    rows = columns.rows
    if not rows.filled(columns.span):
        return ""  # its reasons are in :func:`without_fills`
    counts = rows.outcome_counts(columns.span)
    lacking = [
        (counts[outcome.key], outcome.reason)
        for outcome in rows.outcomes
        if outcome.key in counts and lacked_value(outcome.reason)
    ]
    if not lacking:
        return ""
    first = minute_text(rows.open_ms(min(counted.first for counted, _ in lacking)))
    bars = count_of(sum(counted.times for counted, _ in lacking), "bar")
    _, reason = max(lacking, key=lambda each: each[0].times)
    return f"The strategy decided {bars} without a value, first at {first}. Most often: {reason}."


def short_history(columns: RunColumns) -> str:
    """Return a sentence on a class that answers otherwise with a longer history (U7)."""
    if any(says_warmup(outcome.reason) for outcome in columns.rows.outcomes):
        return ""  # an indicator without a value says it
    check = columns.check_of_warmup()
    return "" if check is None else f"{check.result.reason}."


def rejections(columns: RunColumns) -> str:
    """Return a sentence on a run with fills of whose orders the venue refuses one in a hundred."""
    views = columns.views
    counts = views.counts("v_orders", "reason", status=OrderStatus.REJECTED)
    rejected, orders = sum(count for _, count in counts), views.count("v_orders")
    if not rejected or 100 * rejected < orders or not columns.rows.filled(columns.span):
        return ""  # without fills the reasons are in :func:`without_fills`
    named = f"{rejected:,} of {count_of(orders, 'order')} were rejected"
    return f"{named}, as the exchange would reject them. Most often: {counts[0][0]}."


_SHARE_OF: Final = re.compile(r"(?:stop|target|trailing stop) (\S+) %")
"""The reason of a protective order whose distance the strategy gave as ``Percent``."""
_FAR, _NEAR_PERCENT = 0.5, 0.1


def odd_levels(columns: RunColumns) -> str:
    """Return a sentence on the last stop and target that are probably shares of the price.

    ``stop=0.02`` is a price, and ``Percent(0.02)`` is .02 %; for 2 % both are mistakes.
    """
    views, said = columns.views, []
    for role in (OrderRole.STOP, OrderRole.TARGET, OrderRole.TRAILING):
        for order in views.rows("v_orders", newest=1, role=role.value):
            share = _SHARE_OF.fullmatch(order["reason"])
            if share and float(share[1]) < _NEAR_PERCENT:
                said.append(f"{order['reason']} is {share[1]} in a hundred")
            if order["reason"] != role.value.lower() or role is OrderRole.TRAILING:
                continue
            # It is placed in the step that fills the entry, which may be that of a quote.
            step = int(order["order_id"].partition("-")[0])
            for held in views.rows("v_positions", sequence=step, instrument=order["instrument"]):
                price, entry = order["trigger_price"] or order["limit_price"], held["average_price"]
                if entry and abs(price - entry) > _FAR * entry:
                    away = percent(price / entry - 1, signed=True)
                    said.append(
                        f"{order['reason']} {price:g} is {away} from the entry at {entry:g}"
                    )
    if not said:
        return ""
    return f"Look at the exits: {'; '.join(said)}. A number is a price, and Percent(2) is 2 %."


_OPEN_SHOWN: Final = 5


def open_positions(columns: RunColumns) -> str:
    """Return the positions that a run still has, with their value; empty if it has none."""
    held = []
    for name, item in columns.instruments.items():
        for row in columns.views.rows("v_positions", newest=1, instrument=name):
            if row["quantity"]:
                quantity = without_zeros(row["quantity_text"].lstrip("-"))
                gain = row["unrealized_pnl"]
                worth = f"{abs(row['entry_notional'] + gain):,.2f} ({gain:+,.2f})"
                held.append(f"{row['side'].lower()} {quantity} {item.symbol} worth {worth}")
    if not held:
        return ""
    more = len(held) - _OPEN_SHOWN
    named = ", ".join(held[:_OPEN_SHOWN]) + f" and {more} more" * (more > 0)
    return f"still open, in the result and in no closed trade: {named}"


def below_zero(times_ms: Ints, equity: Floats, first: float) -> str:
    """Return a sentence on an account with next to nothing left at one of *times_ms*, or nothing.

    *equity* has a value at each time; it was *first* at the start.
    """
    gone = np.flatnonzero(is_used_up(equity, first))
    return used_up(int(times_ms[gone[0]]), float(equity.min())) if gone.size else ""


def used_up(from_ms: int, lowest: float) -> str:
    """Return the sentence on an account that had next to nothing left from *from_ms* on."""
    when = f"from {time_text(from_ms)}; its lowest equity was {lowest:,.2f}."
    if lowest > 0:
        return (
            f"The account had lost {percent(1 - LEFT_LEAST, 0)} or more {when} A mean day of what "
            "was left is none, so there are no figures a day or a year."
        )
    return (
        f"The account was at or below zero {when} What it made later needed money that it had not, "
        "so there are no figures a day or a year."
    )


def command_of(content: dict[str, Any], market_ms: int = 0) -> Command:
    """Return the operator's command in an event's *content*."""
    return msgspec.convert({**content, "market_ms": market_ms, "seen_ms": market_ms}, Command)


class _Span:
    """The kept steps of a run until a given one."""

    def __init__(self, columns: RunColumns, last: int, now_ms: int) -> None:
        self._columns, self._views, self._rows = columns, columns.views, columns.rows
        self._last, self._now_ms = last, now_ms

    def of_limit(self, gate: str, since_ms: int, sequence: int) -> LastingState:
        """Return the halt by the limit of *gate* since step *sequence*."""
        ends = ""
        if gate == risk_daily_loss.name:
            ends = ' With risk.on_breach = "refuse" it would end with the day.'
        refused = self._refused(LIMITS, sequence)
        sentence = (
            f"This run is halted by {gate} since {time_text(since_ms)}; entries refused: "
            f"{refused:,}. Only RESUME lifts it.{ends}"
        )
        return LastingState("limit", gate, since_ms, sequence, refused, sentence)

    def of_operator(self, sequence: int, first: Command, newest: Command) -> LastingState:
        """Return the halt since the *first* command at *sequence*; a *newest* may have followed."""
        refused = self._refused((operator.name,), sequence)
        given = " and ".join(
            f"{command.kind} {command.giver} at {time_text(command.market_ms)}"
            + (f" ({command.note})" if command.note else "")
            for command in dict.fromkeys((first, newest))
        )
        sentence = (
            f"This run is halted by the operator's {given}; decisions refused: {refused:,}. Only "
            "RESUME lifts it."
        )
        since_ms = first.market_ms
        return LastingState("operator", operator.name, since_ms, sequence, refused, sentence)

    def refused_by_drawdown(self, after: int) -> LastingState | None:
        """Return the state of a run without a position whose entries a drawdown refuses, or None.

        Nothing is earned without a position, so the drawdown lasts as long as a halt would.
        """
        gates = self._columns.gates
        if risk_drawdown.name not in gates or risk_halt.name in gates:
            return None
        outcomes = self._rows.outcomes
        entries = [each.key for each in outcomes if each.allowed and each.action in _ENTRIES]
        first = after + 1
        entered = self._rows.decided_at((first, self._last), entries, newest=True)
        span = (first if entered is None else entered + 1, self._last)
        sequence = self._rows.decided_at(span, self._keys((risk_drawdown.name,)), newest=False)
        if sequence is None or self._is_held():
            return None
        (decision,) = self._views.rows("v_decisions", sequence=sequence)
        since_ms = self._columns.times.close_ms(decision["open_time_ms"])
        refused = self._refused((risk_drawdown.name,), sequence)
        sentence = (
            f"This run is held by {risk_drawdown.name} since {time_text(since_ms)}; entries "
            f"refused: {refused:,}. Without a position its equity stays where it is: RESUME begins "
            "a new peak."
        )
        return LastingState("limit", risk_drawdown.name, since_ms, sequence, refused, sentence)

    def of_bars(self, word: GapWord) -> LastingState | None:
        """Return the absent or late bars of the instrument with most of them; None if they are few.

        Absent bars count for their length, late ones for their delay beyond one interval.
        """
        interval_ms = self._columns.interval_ms
        lost: dict[str, list[tuple[int, Row]]] = {}
        for row in self._views.rows("v_gaps"):
            if row["sequence"] > self._last:
                continue
            times = {"from_ms": row["from_ms"], "market_ms": row["market_ms"]}
            if gap_word(row["cause"], row["repaired_by"], **times, interval_ms=interval_ms) != word:
                continue
            until_ms = row["until_ms"]
            if word == "late":
                until_ms = min(until_ms, row["market_ms"] - interval_ms)
            lost.setdefault(row["instrument"], []).append((until_ms - row["from_ms"], row))
        if not lost:
            return None
        name, gaps = max(lost.items(), key=lambda item: sum(length for length, _ in item[1]))
        total_ms = sum(length for length, _ in gaps)
        lasted_ms = self._now_ms - self._columns.run.period_start_ms
        if total_ms < max(LONG_GAPS * lasted_ms, 2 * interval_ms):
            return None
        length_ms, longest = max(gaps, key=itemgetter(0))
        begin, cause = time_text(longest["from_ms"]), longest["cause"]
        where = f"from {begin}"
        if len(gaps) > 1:
            where = (
                f"in {len(gaps):,} stretches, the longest of {span_text(length_ms)} from {begin}"
            )
        bars = f"bars of {name}" if len(self._columns.instruments) > 1 else "bars"
        effect, came = "No decision could trade", "are absent"
        if word == "late":
            effect, came = "Decisions were late", "were late, and repaired"
        sentence = f"{effect} for {span_text(total_ms)}: {bars} {came}, {where} ({_CAUSES[cause]})."
        first = longest["from_ms"], longest["sequence"]
        return LastingState(word, cause, *first, None, sentence)

    def _is_held(self) -> bool:
        """Whether a position was held after the last step."""
        steps = [item.quantity_step for item in self._columns.instruments.values()]
        held = self._rows.held(self._last)
        return any(abs(quantity) >= steps[place] for place, quantity in held)

    def _keys(self, gates: Collection[str]) -> list[int]:
        """Return the keys of the outcomes that one of *gates* refused.

        A refused decision is stored as HOLD, or as the FLAT that closes all the same: its action
        does not say what was asked for.
        """
        return [each.key for each in self._rows.outcomes if each.refused_by in gates]

    def _refused(self, gates: Collection[str], sequence: int) -> int:
        """Return the number of decisions from step *sequence* on that one of *gates* refused."""
        counts = self._rows.outcome_counts((sequence, self._last))
        return sum(counts[key].times for key in self._keys(gates) if key in counts)


def time_text(time_ms: int) -> str:
    """Return a time in UTC milliseconds as text, to the minute: ``2025-01-19 23:20 UTC``."""
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def span_text(ms: int) -> str:
    """Return a span in the largest unit of which it has at least two: ``254 days``."""
    for length, name in _LENGTHS:
        if ms >= 2 * length:
            return f"{ms // length:,} {name}"
    return f"{max(ms, 0) / MINUTE_MS:.0f} min"
