"""One run as NumPy columns, for page, report, frames, notebook and sweep.

Prices and money are in quote currency, quantities in base currency, times in UTC milliseconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tracepaper.daemon.session.run_row import sessions_of
from tracepaper.storage.checks import StoredCheck, newest_check
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_rows import WHOLE, Columns, Span
from tracepaper.storage.database.run_views import Row, RunViews
from tracepaper.storage.record.columns import STEADY_GATES, usual_measure
from tracepaper.storage.record.trades import Totals, inherited
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.sessions import Calendar, closes_of, joint, opens_later
from tracepaper.strategies.units import MONEY_SCALE, RATE_SCALE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tracepaper.strategies.types.decisions import Decision, GateSet
    from tracepaper.strategies.types.market import FrameBar, Instrument

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Texts = npt.NDArray[np.str_]
OUTCOME_WORDS: Final = ("action", "refused_by", "reason", "unfilled_reason", "regime")
"""The text columns of a decision; an absent text is empty."""


@dataclass(frozen=True)
class NoteColumns:
    """The strategy's notes of one name at bars of one instrument, oldest first."""

    open_time_ms: Ints
    number: Floats  # NaN of a text, or of a number that was not finite
    text: Texts  # empty of a number


@dataclass(frozen=True)
class BarTimes:
    """When the bars of a run open and close."""

    interval_ms: int
    calendar: Calendar | None  # of sessions; None if the market never closes

    def close_ms(self, open_ms: int) -> int:
        """Return the close of the bar that opens at *open_ms*."""
        return int(self.closes_of(np.array([open_ms]))[0])

    def closes_of(self, opens_ms: Ints) -> Ints:
        """Return the closes of the bars that open at *opens_ms*."""
        return closes_of(opens_ms, self.interval_ms, self.calendar)

    def open_closing_after(self, at_ms: int) -> int:
        """Return the earliest open of a bar that closes after *at_ms*."""
        if self.calendar is None:
            return at_ms - self.interval_ms + 1
        at = np.searchsorted(self.calendar.closes, at_ms, side="right")
        return int(self.calendar.opens[at.clip(max=len(self.calendar) - 1)])

    def opens_later(self, opens_ms: Ints, bars: int) -> Ints:
        """Return the open of the bar that follows each of *opens_ms* by *bars* bars."""
        return opens_later(opens_ms, bars, self.interval_ms, self.calendar)

    def bars_between(self, first_ms: Ints, second_ms: Ints) -> Ints:
        """Count the bars from the opens *first_ms* to the opens *second_ms*."""
        if self.calendar is None:
            return (second_ms - first_ms) // self.interval_ms
        return self.calendar.places(second_ms) - self.calendar.places(first_ms)


class RunColumns:
    """The columns of one run up to its newest step; :meth:`refresh` includes later steps.

    A span is the first and the last sequence, by default the whole run.
    """

    def __init__(self, reader: Reader, run_id: str) -> None:
        stored = reader.stored_run(run_id)
        self.run, self.run_key = stored.run, stored.run_key
        self.interval_ms = stored.run.interval_ms
        sessions = joint(sessions_of(stored.run).values())
        calendar = None if sessions is None else Calendar(sessions, self.interval_ms)
        self.times = BarTimes(self.interval_ms, calendar)
        self.instruments: dict[str, Instrument] = {item.id: item for item in stored.run.instruments}
        self.rows = reader.run_rows(self.run_key)
        self.views = RunViews(reader.connection, run_id)
        self._reader = reader
        self.decision: Callable[[int], Decision] = lru_cache(maxsize=1)(self._decision)
        """Returns the decision of a step."""
        self.refresh()

    def refresh(self) -> None:
        """Include the steps that were stored since."""
        _, end = self._reader.counted(self.run.run_id)
        self.span = (0, end - 1)
        self.rows.refresh()
        self.gate_sets: tuple[GateSet, ...] = self._reader.gate_sets(self.run_key)

    def check_of_warmup(self) -> StoredCheck | None:
        """Return the comparison with decisions by a longer history, if it found a difference."""
        stored, connection = self._reader.stored_run(self.run.run_id), self._reader.connection
        return newest_check(connection, self.run_key, stored.head_digest, of_warmup=True)

    @property
    def gates(self) -> tuple[str, ...]:
        """The run's gates, in the order of their first gate sets."""
        return tuple(dict.fromkeys(gate for gate_set in self.gate_sets for gate in gate_set.gates))

    def frame_bars(self) -> list[FrameBar]:
        """Return the candles of higher timeframes that the run was fed."""
        return self._reader.frame_bars(self.run.run_id)

    @property
    def thresholds(self) -> dict[str, float]:
        """The last threshold of each gate."""
        return {
            gate: limit
            for gate_set in self.gate_sets
            for gate, limit in zip(gate_set.gates, gate_set.thresholds, strict=True)
        }

    # ------------------------------------------------------------ columns

    def bars(self, instrument: str, span: Span = WHOLE) -> Columns:
        """Return the accepted bars of *instrument*, oldest first.

        ``sequence``, ``open_time_ms``, ``open``, ``high``, ``low``, ``close``, ``volume``;
        ``quantity``, the signed position after the bar; ``outcome``, which :meth:`of_outcomes`
        reads, -1 for a bar without a decision.
        """
        return self._scaled(instrument, self.rows.bars(self.place(instrument), span))

    def bars_by_instrument(self) -> dict[str, Columns]:
        """Return the accepted bars of every instrument, by one query; faster than one by one."""
        stored = self.rows.bars_by_instrument(WHOLE, len(self.instruments))
        return {
            name: self._scaled(name, columns)
            for name, columns in zip(self.instruments, stored, strict=True)
        }

    def _scaled(self, instrument: str, columns: Columns) -> Columns:
        item = self.instruments[instrument]
        for name in ("open", "high", "low", "close"):
            columns[name] = columns[name] / 10.0**item.price_decimals
        columns["volume"] = columns["volume"] / 10.0**item.volume_decimals
        columns["quantity"] = columns["quantity"] / 10.0**item.quantity_decimals
        return columns

    def forecasts(self, instrument: str, names: Sequence[str], at: Ints) -> Columns:
        """Return columns *names* of the forecasts and measures at the steps *at*, which ascend.

        Names are those of the tables, such as ``mean_return``, ``measure_edge`` and
        ``target_quantity``. An unknown value is NaN.
        """
        place = self.place(instrument)
        return self._values(names, place, at, np.full(at.size, place))

    def _values(self, names: Sequence[str], place: int | None, at: Ints, of: Ints) -> Columns:
        """Return columns at the steps *at*, of the instruments *of*; all of *place* if given."""
        columns = self.rows.values(names, place, at)
        if (target := columns.get("target_quantity")) is not None:
            scales = [10.0**item.quantity_decimals for item in self.instruments.values()]
            target /= np.array(scales)[of]
        return columns

    def of_outcomes(self, outcome: Ints, name: str) -> npt.NDArray[Any]:
        """Return the field *name* of ``Outcome`` for each *outcome*; a null is empty or 0."""
        nothing = "" if name in OUTCOME_WORDS else 0
        places, at = np.unique(outcome, return_inverse=True)
        fields = [
            nothing if place < 0 else getattr(self.rows.outcomes[place], name) or nothing
            for place in places.tolist()
        ]
        return np.array(fields, type(nothing))[at]

    def _decision(self, sequence: int) -> Decision:
        decision = self._reader.step(self.run.run_id, sequence).decision
        assert decision is not None, "only what was decided is asked for"
        return decision

    def decisions(
        self, names: Sequence[str] = (), every: Mapping[str, Columns] | None = None
    ) -> Columns:
        """Return a row per decision, in the order of the run.

        ``sequence``, ``instrument`` (its id), ``open_time_ms``, ``OUTCOME_WORDS``, ``allowed``, and
        *names* of :meth:`forecasts`. *every* is :meth:`bars` of each instrument, if read before.
        """
        bars = (self.bars_by_instrument() if every is None else every).values()
        columns = {
            name: np.concatenate([each[name] for each in bars])
            for name in ("sequence", "open_time_ms", "outcome")
        }
        place = np.repeat(np.arange(len(bars)), [each["sequence"].size for each in bars])
        decided = np.flatnonzero(columns["outcome"] >= 0)
        order = decided[np.argsort(columns["sequence"][decided])]
        columns, place = {name: column[order] for name, column in columns.items()}, place[order]
        outcome = columns.pop("outcome")
        return (
            columns
            | {"instrument": np.array([*self.instruments])[place]}
            | self._values(names, None, columns["sequence"], place)
            | {"allowed": self.of_outcomes(outcome, "allowed").astype(np.bool_)}
            | {name: self.of_outcomes(outcome, name) for name in OUTCOME_WORDS}
        )

    def notes(self, instrument: str, span: Span = WHOLE) -> dict[str, NoteColumns]:
        """Return the notes at the bars of *instrument* by name, in the order of their first use."""
        by_name: dict[str, list[tuple[int, float, str]]] = {}
        for at_ms, name, number, text in self.rows.notes(self.place(instrument), span):
            value = np.nan if number is None else number
            by_name.setdefault(name, []).append((at_ms, value, text or ""))
        notes = {}
        for name, rows in by_name.items():
            times, numbers, texts = zip(*rows, strict=True)
            notes[name] = NoteColumns(
                np.array(times, np.int64), np.array(numbers, np.float64), np.array(texts, np.str_)
            )
        return notes

    def accounts(self, span: Span = WHOLE) -> dict[str, Columns]:
        """Return every account after each decided bar, in the order of the run.

        By the name of the shadow account; the run's own account has an empty name. Columns:
        ``sequence``, ``open_time_ms``, ``instrument`` (its index), ``close``, ``quantity``, the
        account's signed position, and ``equity``.
        """
        items = self.instruments.values()
        accounts = self.rows.accounts(span)
        for columns in accounts.values():
            for name, decimals in (
                ("close", [item.price_decimals for item in items]),
                ("quantity", [item.quantity_decimals for item in items]),
            ):
                scales = np.array([10.0**each for each in decimals])
                columns[name] = columns[name] / scales[columns["instrument"]]
            columns["equity"] = columns["equity"] / MONEY_SCALE
        return accounts

    def first_equity(self, decided: int, name: str = "") -> float:
        """Return the equity of an account before the run's first decision, at step *decided*.

        That of an account that was taken over is the one with which the run before ended. *name* is
        that of a shadow account; empty is the run's own.
        """
        if (totals := self.totals_before(name)) is not None:
            return totals.equity / MONEY_SCALE
        return self.equity_before(decided, name)

    def equity_before(self, sequence: int, name: str = "") -> float:
        """Return the equity of an account before the step *sequence*, after it if it is the first.

        *name* is that of a shadow account; empty is the run's own.
        """
        of: dict[str, Any] = {"shadow": name} if name else {}
        for at in (sequence - 1, sequence):
            for row in self.views.rows(
                "v_shadow_equity" if name else "v_equity", sequence=at, **of
            ):
                return float(row["equity"])
        raise DataInvalid(
            f"Run {self.run.run_id} holds no account at step {sequence}; run `tracepaper audit "
            "verify` and restore a backup."
        )

    def totals_before(self, name: str = "") -> Totals | None:
        """Return the sums of an account that the run took over; None if it began the account."""
        before = inherited(self.run)
        return None if before is None else before.totals.get(name)

    def own_sums(self, row: Row, name: str = "") -> Row:
        """Return *row*, the equity of an account, with profit, fees and funding of this run alone.

        The account counts them since its own beginning. Profit is realized against the marks of the
        run's start. *name* is that of a shadow account.
        """
        if (before := self.totals_before(name)) is None:
            return row
        sums = {
            "realized_pnl": before.realized_pnl + before.unrealized_pnl,
            "fees_paid": before.fees_paid,
            "funding_paid": before.funding_paid,
        }
        return {**row, **{key: float(row[key]) - sums[key] / MONEY_SCALE for key in sums}}

    def settled(self) -> tuple[dict[str, dict[int, float]], int]:
        """Return the settled rates by instrument and market time, and the count of repeated ones.

        A repeated rate was booked once.
        """
        events = self.rows.events("funding", (0, self.span[1]))
        names = list(self.instruments)
        rates: dict[str, dict[int, float]] = {name: {} for name in names}
        for event in events:
            rate = json.loads(event.content)["rate"]
            rates[names[event.instrument or 0]].setdefault(event.market_ms, rate)
        again = len(events) - sum(map(len, rates.values()))
        return rates, again

    # ------------------------------------------------------------ places and times

    def place(self, instrument: str) -> int:
        """Return the index of *instrument* in the run."""
        return list(self.instruments).index(instrument)

    def quantity_step(self, instrument: str) -> float:
        """Return the smallest tradable quantity of *instrument*."""
        item = self.instruments[instrument]
        return float(item.quantity_step / 10**item.quantity_decimals)

    def sequence_at(self, instrument: str, open_ms: int) -> int | None:
        """Return the sequence of the bar of *instrument* that opened at *open_ms*."""
        place = self.place(instrument)
        span = (self.rows.opened_at(place, self.span, open_ms), self.span[1])
        bar = self.rows.bar_at(place, span, newest=False)
        return None if bar is None or bar.open_time_ms != open_ms else bar.sequence

    def sequences(self, from_ms: float, until_ms: float) -> Span:
        """Return the first and last sequence of the bars that open in [*from_ms*, *until_ms*)."""
        places = range(len(self.instruments))
        first = min(self.rows.opened_at(place, self.span, from_ms) for place in places)
        if until_ms == np.inf:
            return first, self.span[1]
        return first, max(self.rows.opened_at(place, self.span, until_ms) for place in places) - 1

    def bounds_ms(self, instrument: str) -> tuple[int, int] | None:
        """Return when an instrument's first bar opens and when its last one closes."""
        place = self.place(instrument)
        first = self.rows.bar_at(place, self.span, newest=False)
        last = self.rows.bar_at(place, self.span, newest=True)
        if first is None or last is None:
            return None
        return first.open_time_ms, self.times.close_ms(last.open_time_ms)


def with_usual(measured: Floats, gate: str, threshold: float) -> Floats:
    """Return the *measured* values of *gate*, and its usual measure in place of NaN."""
    if gate not in STEADY_GATES:
        return measured
    return np.where(np.isnan(measured), usual_measure(gate, threshold), measured)


# ---------------------------------------------------------------- payments to and by a holder


def funding_in_bars(closes_ms: Ints, settled: Iterable[tuple[int, float]]) -> Floats:
    """Return the sum of the rates settled within each bar; rates after the last are left out."""
    rates = np.zeros(closes_ms.size)
    for market_ms, rate in settled:
        place = int(np.searchsorted(closes_ms, market_ms, side="right"))
        if place < closes_ms.size:
            rates[place] += rate / RATE_SCALE
    return rates


def without_dust(held: Floats, step: Floats | float) -> Floats:
    """Return *held* without remainders below a *step*, which spot fees leave."""
    return np.where(np.abs(held) < (1.0 - 1e-9) * step, 0.0, held)
