"""Rows of one run as NumPy columns, read from the tables, for ``RunColumns``.

The stable views have each number twice and one row per gate, so a year of minutes takes a minute to
read. Here a bar is one row of the stored integers.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tracepaper.storage.database.chunks import WITHIN, commit_at, find_step
from tracepaper.storage.database.run_views import BATCH_ROWS
from tracepaper.storage.database.view_columns import MARKET_MS, UNREALIZED, at_step, shared_row
from tracepaper.storage.record.columns import (
    SEQUENCE_LIMIT,
    STEP_GATES,
    measure_name,
    stored_columns,
)
from tracepaper.storage.record.rows import INDEXED_KINDS
from tracepaper.strategies.units import DAY_MS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

Ints = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]
"""Columns of equal length by name."""
Span = tuple[int, int]
"""The first and the last sequence."""
WHOLE: Final[Span] = (0, SEQUENCE_LIMIT - 1)

_IS_BAR: Final = "instrument IS NOT NULL AND ignored IS NULL"
_BAR: Final = ("sequence", "open_time_ms", "open", "high", "low", "close", "volume", "outcome")
_BARS_OF: Final = (
    "SELECT sequence, open_time_ms, open, high, low, close, volume, coalesce(outcome, -1), "
    f"holding, instrument FROM steps WHERE {WITHIN} AND {_IS_BAR} {{}}ORDER BY sequence"
)
_BARS: Final = _BARS_OF.format("AND instrument = ? ")
_CLOSES: Final = (
    f"SELECT instrument, open_time_ms, close FROM steps WHERE {WITHIN} AND {_IS_BAR} "
    "AND (open_time_ms + ?) % ? = 0"
)
_ACCOUNT: Final = ("sequence", "open_time_ms", "instrument", "close", "quantity", "equity")
DECIDED: Final = ("sequence", "open_time_ms", "instrument", "target_quantity")
NOT_STORED: Final = -(2**63)
"""Stands for null, such as the target of a decision that requests a list of orders."""
_AFTER: Final = (
    "SELECT s.sequence, s.open_time_ms, s.instrument, s.close, {account}, {of}.holding, "
    "coalesce({of}.account_unrealized_pnl, {profit}, 0), "
    f"coalesce({{of}}.equity, {NOT_STORED}) "
    "FROM steps s {joined} WHERE s.run_key = ? AND s.sequence BETWEEN ? AND ? "
    "AND s.instrument IS NOT NULL AND s.outcome IS NOT NULL ORDER BY s.sequence"
)
_RUN_ACCOUNT: Final = _AFTER.format(of="s", account=0, profit="s.unrealized_pnl", joined="")
_SHADOWS: Final = _AFTER.format(
    of="m",
    account="m.account",
    profit=UNREALIZED.format("m"),
    joined=f"CROSS JOIN shadow_steps m ON {shared_row('m', 's.shadows')} "
    f"CROSS JOIN holdings h ON {shared_row('h', 'm.holding')} AND h.account = m.account "
    "CROSS JOIN instruments i ON i.run_key = s.run_key AND i.instrument = s.instrument",
)
_DECIDED: Final = (
    f"SELECT sequence, open_time_ms, instrument, coalesce(target_quantity, {NOT_STORED}), "
    "outcome, holding, coalesce(account_unrealized_pnl, unrealized_pnl, 0), "
    f"coalesce(equity, {NOT_STORED}) FROM steps "
    "WHERE run_key = ? AND instrument IS NOT NULL AND outcome IS NOT NULL ORDER BY sequence"
)
_ACCOUNT_BITS: Final = 64 - SEQUENCE_LIMIT.bit_length()
_HOLDINGS: Final = (
    "SELECT sequence, account, coalesce(quantity, 0), cash, coalesce(shadow, '') FROM holdings "
    f"WHERE {WITHIN} ORDER BY sequence, account"
)
_OUTCOMES: Final = (
    "SELECT sequence, action, allowed, refused_by, reason, unfilled_reason, regime, gate_set, "
    f"passed, regime_cell FROM outcomes WHERE {WITHIN} ORDER BY sequence"
)
_OF_STEP: Final = {name: f"s.{name}" for name in stored_columns("steps")} | {
    measure_name(gate): f"json_extract(s.measures, '$.\"{gate}\"')" for gate in STEP_GATES
}
"""SQL of the numbers of a step, by name."""
_NOTES: Final = (
    "SELECT s.open_time_ms, n.key, CASE WHEN n.type IN ('real', 'integer') THEN n.value END, "
    "CASE n.type WHEN 'text' THEN n.value END "
    "FROM answers a CROSS JOIN steps s ON s.run_key = a.run_key AND s.sequence = a.sequence "
    "JOIN json_each(a.note) n "
    "WHERE a.run_key = ? AND a.sequence BETWEEN ? AND ? AND s.instrument = ? "
    "AND s.instrument IS NOT NULL ORDER BY a.sequence"
)


class Outcome(NamedTuple):
    """A stored outcome, which many decisions share."""

    key: int  # the step that first had it
    action: str
    allowed: int
    refused_by: str | None
    reason: str
    unfilled_reason: str | None
    regime: str
    gate_set: int
    passed: int  # bit i is set if gate i of the set passed
    regime_cell: int | None


class OutcomeCount(NamedTuple):
    """How often a stored outcome was decided, and its first and last step."""

    times: int
    first: int
    last: int


class OpenedBar(NamedTuple):
    """A bar's step and open time."""

    sequence: int
    open_time_ms: int


class StoredEvent(NamedTuple):
    """An event: its kind, the instrument's index, market time and content as JSON."""

    sequence: int
    kind: str
    instrument: int | None
    market_ms: int
    content: str


class Halt(NamedTuple):
    """A limit that was breached, and the market time of its breach."""

    sequence: int
    market_ms: int
    since_ms: int
    limit: str


class RunRows:
    """Queries about one run. An instrument is given by its index; a span includes both its ends.

    Outcomes and holdings, which many steps share, are cached: :meth:`refresh` reads new ones.
    """

    def __init__(self, connection: sqlite3.Connection, run_key: int) -> None:
        self._connection, self._run_key = connection, run_key
        self._find = partial(find_step, connection, run_key)
        self.outcomes: list[Outcome] = []
        self._outcome_keys = np.empty(0, dtype=np.int64)
        self._held_keys = self._quantity = self._cash = np.empty(0, dtype=np.int64)
        self._shadows = np.empty(0, dtype=np.str_)  # of each holding: the shadow account's name

    def refresh(self) -> None:
        """Read new outcomes and holdings."""
        after = self.outcomes[-1].key + 1 if self.outcomes else 0
        rows = self._connection.execute(_OUTCOMES, (self._run_key, after, WHOLE[1])).fetchall()
        self.outcomes += [Outcome(*row) for row in rows]
        self._outcome_keys = np.append(self._outcome_keys, np.array([row[0] for row in rows], int))
        after = (int(self._held_keys[-1]) >> _ACCOUNT_BITS) + 1 if self._held_keys.size else 0
        held = self._connection.execute(_HOLDINGS, (self._run_key, after, WHOLE[1])).fetchall()
        if held:
            *numbers, shadows = zip(*held, strict=True)
            sequence, account, quantity, cash = np.array(numbers, dtype=np.int64)
            self._held_keys = np.append(self._held_keys, sequence << _ACCOUNT_BITS | account)
            self._quantity = np.append(self._quantity, quantity)
            self._cash = np.append(self._cash, cash)
            self._shadows = np.append(self._shadows, np.array(shadows, dtype=np.str_))

    @property
    def version(self) -> int:
        """A number that changes with every write of another connection."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)

    # ------------------------------------------------------------ columns

    def bars(self, place: int, span: Span) -> Columns:
        """Return an instrument's accepted bars, oldest first; integers as they are stored.

        ``outcome`` is the index in ``outcomes``, -1 for a bar without a decision, and ``quantity``
        the account's position in the instrument after the bar.
        """
        return self._bars(_BARS, (*span, place))[0]

    def bars_by_instrument(self, span: Span, instruments: int) -> list[Columns]:
        """Return what :meth:`bars` returns of each of so many *instruments*, by one query."""
        columns, place = self._bars(_BARS_OF.format(""), span)
        chosen = [np.flatnonzero(place == each) for each in range(instruments)]
        return [{name: column[at] for name, column in columns.items()} for at in chosen]

    def closes(self, interval_ms: int, period_ms: int) -> tuple[Ints, Ints, Ints]:
        """Return instrument, open time and close of each bar that ends a period of *period_ms*."""
        values = (self._run_key, *WHOLE, interval_ms, period_ms)
        instrument, open_time_ms, close = self._integers(_CLOSES, values, 3)
        return instrument, open_time_ms, close

    def _bars(self, query: str, values: Sequence[int]) -> tuple[Columns, Ints]:
        """Return the bars of a *query*, and the instrument of each."""
        *bar, holding, place = self._integers(query, (self._run_key, *values), len(_BAR) + 2)
        columns: Columns = dict(zip(_BAR, bar, strict=True))
        at = np.searchsorted(self._outcome_keys, columns["outcome"])
        columns["outcome"] = np.where(columns["outcome"] < 0, -1, at)
        columns["quantity"] = self._quantity[self._held(holding, 0)]
        return columns, place

    def accounts(self, span: Span) -> dict[str, Columns]:
        """Return every account after each decided bar; integers as they are stored.

        The keys are names of shadow accounts, "" for the run's account. ``instrument`` is the
        bar's instrument, and ``quantity`` the account's position in it after the bar.
        """
        accounts: dict[str, Columns] = {}
        for query in (_RUN_ACCOUNT, _SHADOWS):
            *bar, account, holding, profit, stored = self._integers(
                query, (self._run_key, *span), 8
            )
            at = self._held(holding, account)
            equity = np.where(stored == NOT_STORED, self._cash[at] + profit, stored)
            shadows = self._shadows[at]
            for name in np.unique(shadows).tolist():
                columns = (*bar, self._quantity[at], equity)
                accounts[name] = {
                    key: column[shadows == name]
                    for key, column in zip(_ACCOUNT, columns, strict=True)
                }
        return accounts

    def decided(self) -> Columns:
        """Return the decision at each decided bar, in the order of the run.

        ``sequence``, ``open_time_ms``, ``instrument`` (its index), ``target_quantity`` as it is
        stored (-2⁶³ for a list of orders), ``outcome`` (its index in ``outcomes``), and the
        ``equity`` of the run's account after it.
        """
        *bar, outcome, holding, profit, stored = self._integers(_DECIDED, (self._run_key,), 8)
        columns: Columns = dict(zip(DECIDED, bar, strict=True))
        columns["outcome"] = np.searchsorted(self._outcome_keys, outcome)
        equity = self._cash[self._held(holding, 0)] + profit
        return columns | {"equity": np.where(stored == NOT_STORED, equity, stored)}

    def values(self, names: Sequence[str], place: int | None, at: Ints) -> Columns:
        """Return columns of the forecasts, or of the steps, at the steps *at*.

        All are of the instrument *place*, or of any if it is None.

        *at* ascends. NaN stands for a null, a step without a forecast, and a measure that is not
        stored because it equals ``usual_measure``.
        """
        columns: Columns = {name: np.full(at.size, np.nan) for name in names}
        for source, alias in (
            ("steps s", "s"),
            (
                "answers a CROSS JOIN steps s ON s.run_key = a.run_key AND s.sequence = a.sequence",
                "a",
            ),
        ):
            chosen = [name for name in names if (name in _OF_STEP) == (alias == "s")]
            if not chosen or not at.size:
                continue
            listed = ", ".join(_OF_STEP.get(name, f"a.{name}") for name in chosen)
            cursor = self._connection.execute(
                f"SELECT {alias}.sequence, {listed} FROM {source} "
                f"WHERE {alias}.run_key = ? AND {alias}.sequence BETWEEN ? AND ? "
                "AND coalesce(s.instrument = ?, 1)",
                (self._run_key, int(at[0]), int(at[-1]), place),
            )
            while rows := cursor.fetchmany(BATCH_ROWS):
                block = np.array(rows, dtype=np.float64)
                steps = block[:, 0].astype(np.int64)
                for place_in_row, name in enumerate(chosen, start=1):
                    _spread(columns[name], at, steps, block[:, place_in_row])
        return columns

    def notes(self, place: int, span: Span) -> list[tuple[int, str, float | None, str | None]]:
        """Return (open time, name, number, text) of each note at an instrument's bars."""
        return self._connection.execute(_NOTES, (self._run_key, *span, place)).fetchall()

    def noted(self, span: Span) -> list[tuple[int, str]]:
        """Return (instrument, name) of every noted number, in the order of its first note."""
        query = (
            "SELECT s.instrument, n.key FROM answers a "
            "JOIN steps s ON s.run_key = a.run_key AND s.sequence = a.sequence "
            "JOIN json_each(a.note) n WHERE a.run_key = ? AND a.sequence BETWEEN ? AND ? "
            "AND a.note IS NOT NULL AND n.type IN ('integer', 'real') GROUP BY 1, 2 "
            "ORDER BY min(a.sequence), min(n.id)"
        )
        return self._connection.execute(query, (self._run_key, *span)).fetchall()

    def is_attributed(self, span: Span) -> bool:
        """Return whether the newest forecast within *span* says where the model looked."""
        query = (
            f"SELECT buckets IS NOT NULL FROM answers WHERE {WITHIN} AND horizon IS NOT NULL "
            "ORDER BY sequence DESC LIMIT 1"
        )
        row = self._connection.execute(query, (self._run_key, *span)).fetchone()
        return row is not None and bool(row[0])

    # ------------------------------------------------------------ places in the run

    def digest(self, sequence: int) -> str | None:
        """Return the digest of the commit that holds a step; None if it is not stored."""
        commit = commit_at(self._connection, self._run_key, sequence)
        return None if commit is None else commit[-1].hex()

    def decided_at(
        self,
        span: Span,
        chosen: Sequence[int] | None = None,
        *,
        instrument: int | None = None,
        newest: bool,
    ) -> int | None:
        """Return the first or *newest* step within *span* with a decision.

        If given, it has one of the outcomes with keys *chosen*, and is on *instrument*.
        """
        if chosen is not None and not chosen:
            return None
        condition = "IS NOT NULL" if chosen is None else f"IN ({', '.join('?' * len(chosen))})"
        where = f"outcome {condition} AND coalesce(instrument = ?, 1)"
        values = *(chosen or ()), instrument
        return self._find(*span, "steps", where, *values, newest=newest)

    def bar_at(self, place: int, span: Span, *, newest: bool) -> OpenedBar | None:
        """Return the oldest or *newest* accepted bar of an instrument within *span*."""
        query = (
            f"SELECT sequence, open_time_ms FROM steps WHERE {WITHIN} "
            f"AND instrument = ? AND {_IS_BAR} ORDER BY sequence {'DESC' if newest else ''} LIMIT 1"
        )
        row = self._connection.execute(query, (self._run_key, *span, place)).fetchone()
        return None if row is None else OpenedBar(*row)

    def opened_at(self, place: int, span: Span, at_ms: float) -> int:
        """Return the sequence after an instrument's last bar that opened before *at_ms*.

        Bars within *span* are ordered by time, so a binary search finds it.
        """
        low, high = span[0], span[1] + 1
        while low < high:
            middle = (low + high) // 2
            bar = self.bar_at(place, (middle, high - 1), newest=False)
            if bar is None or bar.open_time_ms >= at_ms:
                high = middle
            else:
                low = bar.sequence + 1
        return low

    def open_ms(self, sequence: int) -> int:
        """Return the open time of a step's bar."""
        query = "SELECT open_time_ms FROM steps WHERE run_key = ? AND sequence = ?"
        (opened,) = self._connection.execute(query, (self._run_key, sequence)).fetchone()
        return int(opened)

    def market_times(self, interval_ms: int, sequences: Iterable[int]) -> dict[int, int]:
        """Return the market time of each of the steps *sequences*."""
        query = (
            "SELECT coalesce(s.open_time_ms + ? + coalesce(s.market_delay_ms, 0), e.market_ms) "
            "FROM steps s "
            "LEFT JOIN events e ON e.run_key = s.run_key AND e.sequence = s.sequence "
            "WHERE s.run_key = ? AND s.sequence = ?"
        )
        times = {}
        for sequence in dict.fromkeys(sequences):
            values = (interval_ms, self._run_key, sequence)
            row = self._connection.execute(query, values).fetchone()
            if row is not None and row[0] is not None:
                times[sequence] = int(row[0])
        return times

    # ------------------------------------------------------------ counts and events

    def outcome_counts(self, span: Span) -> dict[int, OutcomeCount]:
        """Return how often each stored outcome was decided within *span*, by the outcome's key."""
        query = (
            f"SELECT outcome, count(*), min(sequence), max(sequence) FROM steps WHERE {WITHIN} "
            "AND outcome IS NOT NULL GROUP BY outcome"
        )
        rows = self._connection.execute(query, (self._run_key, *span))
        return {outcome: OutcomeCount(*counted) for outcome, *counted in rows}

    def outcome_days(self, span: Span) -> list[tuple[int, int, int]]:
        """Return (UTC day, outcome's key, number of decisions on bars of that day)."""
        query = (
            f"SELECT open_time_ms / {DAY_MS}, outcome, count(*) FROM steps "
            f"WHERE {WITHIN} AND outcome IS NOT NULL AND instrument IS NOT NULL "
            "GROUP BY 1, 2"
        )
        return self._connection.execute(query, (self._run_key, *span)).fetchall()

    def events(self, kind: str, span: Span) -> list[StoredEvent]:
        """Return the events of an indexed *kind*, such as ``funding``, in order."""
        query = (
            "SELECT sequence, kind, instrument, market_ms, content FROM events WHERE run_key = ? "
            f"AND sequence BETWEEN ? AND ? AND {INDEXED_KINDS} AND kind = ? ORDER BY sequence"
        )
        rows = self._connection.execute(query, (self._run_key, *span, kind))
        return [StoredEvent(*row) for row in rows]

    def newest_events(self, kinds: Sequence[str], span: Span, most: int) -> list[StoredEvent]:
        """Return the newest *most* events of *kinds*, newest first."""
        query = (
            "SELECT sequence, kind, instrument, market_ms, content FROM events "
            f"WHERE {WITHIN} AND kind IN ({', '.join('?' * len(kinds))}) "
            "ORDER BY sequence DESC LIMIT ?"
        )
        rows = self._connection.execute(query, (self._run_key, *span, *kinds, most))
        return [StoredEvent(*row) for row in rows]

    def halts(self, span: Span) -> list[Halt]:
        """Return the limits that were breached, in order."""
        query = (
            f"SELECT l.sequence, {MARKET_MS}, l.since_ms, l.breached FROM halts l "
            f"JOIN runs r USING (run_key) JOIN steps s ON {at_step('s', 'l')} "
            f"LEFT JOIN events e ON {at_step('e')} "
            "WHERE l.run_key = ? AND l.sequence BETWEEN ? AND ? ORDER BY l.sequence"
        )
        return [Halt(*row) for row in self._connection.execute(query, (self._run_key, *span))]

    def held(self, last: int) -> list[tuple[int, int]]:
        """Return (instrument, quantity) of every position after step *last*."""
        query = (
            f"SELECT instrument, quantity, max(sequence) FROM holdings WHERE {WITHIN} "
            "AND account = 0 AND instrument IS NOT NULL GROUP BY instrument"
        )
        rows = self._connection.execute(query, (self._run_key, 0, last))
        return [(place, quantity) for place, quantity, _ in rows]

    # ------------------------------------------------------------ orders and fills

    def filled(self, span: Span) -> list[int]:
        """Return the sequence of each fill, the newest first."""
        query = f"SELECT sequence FROM fills WHERE {WITHIN} AND account = 0 ORDER BY sequence DESC"
        values = (self._run_key, *span)
        return [sequence for (sequence,) in self._connection.execute(query, values)]

    def liquidated(self, span: Span, reason: str) -> list[int]:
        """Return the steps with a liquidation, or an order with the *reason*."""
        within = "run_key = ?1 AND sequence BETWEEN ?2 AND ?3"
        query = (
            f"SELECT sequence FROM fills WHERE {within} AND account = 0 AND model = 'liquidation' "
            f"UNION SELECT sequence FROM orders WHERE {within} AND reason = ?4 "
            "ORDER BY 1"
        )
        values = (self._run_key, *span, reason)
        return [sequence for (sequence,) in self._connection.execute(query, values)]

    def rested_orders(
        self, span: Span, instruments: Sequence[int], until_ms: int, most: int
    ) -> list[int]:
        """Return the last steps of orders with a price or trigger, newest first, at most *most*.

        Only orders that were created before *until_ms* and changed last within *span*.
        """
        query = (
            "SELECT o.sequence FROM orders o WHERE o.run_key = ? AND o.sequence BETWEEN ? AND ? "
            f"AND o.instrument IN ({', '.join('?' * len(instruments))}) AND o.created_ms < ? "
            "AND coalesce(o.price, o.trigger) IS NOT NULL AND NOT EXISTS (SELECT 1 FROM orders n "
            "WHERE n.order_id = o.order_id AND n.run_key = o.run_key AND n.sequence > o.sequence) "
            "ORDER BY o.sequence DESC LIMIT ?"
        )
        values = (self._run_key, *span, *instruments, until_ms, most)
        return [int(row[0]) for row in self._connection.execute(query, values)]

    def order_roles(self, span: Span) -> dict[str, str]:
        """Return the role of each order with a row within *span*; signal orders are left out."""
        query = f"SELECT order_id, role FROM orders WHERE {WITHIN} AND role IS NOT NULL"
        return dict(self._connection.execute(query, (self._run_key, *span)).fetchall())

    def born_orders(self, sequence: int) -> list[str]:
        """Return the ids of the orders that were created at a step."""
        query = (
            "SELECT DISTINCT order_id FROM orders WHERE run_key = ? AND sequence = ? AND birth = ?"
        )
        values = (self._run_key, sequence, sequence)
        return [order_id for (order_id,) in self._connection.execute(query, values)]

    # ------------------------------------------------------------ reading

    def _held(self, holding: Ints, account: Ints | int) -> npt.NDArray[np.intp]:
        """Return the indices of the holdings with these sequences and accounts."""
        return np.searchsorted(self._held_keys, holding << _ACCOUNT_BITS | account)

    def _integers(self, query: str, values: Sequence[int], columns: int) -> list[Ints]:
        cursor = self._connection.execute(query, values)
        parts = [[np.empty(0, dtype=np.int64)] for _ in range(columns)]
        while rows := cursor.fetchmany(BATCH_ROWS):
            # Column by column: an array of tuples costs NumPy nearly twice as much.
            for part, column in zip(parts, zip(*rows, strict=True), strict=True):
                part.append(np.fromiter(column, np.int64, len(column)))
        return [*map(np.concatenate, parts)]


def _spread(column: npt.NDArray[Any], at: Ints, steps: Ints, values: npt.NDArray[Any]) -> None:
    """Set the *values* of *steps* in *column*, whose rows are the ascending steps *at*."""
    if at.size and steps.size:
        places = np.searchsorted(at, steps).clip(max=at.size - 1)
        is_there = at[places] == steps
        column[places[is_there]] = values[is_there]
