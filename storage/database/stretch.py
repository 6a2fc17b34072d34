"""Bars, decisions and accounts of a stretch of steps as plain rows, straight from the tables.

The stable views say each number twice and each gate in a row of its own, which costs a year of
minutes a minute to read; here a bar is one row of the integers that are stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tracepaper.storage.record.columns import SEQUENCE_LIMIT, STEP_GATES, measure_name
from tracepaper.storage.record.rows import INDEXED_KINDS, sequence_of, step_key

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

BAR_FIELDS: Final = (
    *("sequence", "open_time_ms", "open", "high", "low", "close", "volume"),
    *("action", "refused_by", "regime", "gate_set", "passed"),
    *("confidence", "mean_return", "stdev_return", "quantity"),
)
"""The fields of a bar's row before the measures; those of a bar that was not decided are null."""
BATCH_ROWS: Final = 512

_SAME_RUN: Final = f"(s.step & ~{SEQUENCE_LIMIT - 1})"
_BARS: Final = f"""
SELECT s.sequence, s.open_time_ms, s.open, s.high, s.low, s.close, s.volume,
  o.action, o.refused_by, o.regime, o.gate_set, o.passed,
  a.confidence, a.mean_return, a.stdev_return, h.quantity {{measures}}
FROM steps s LEFT JOIN outcomes o ON o.step = {_SAME_RUN} | s.outcome
LEFT JOIN answers a ON a.step = s.step
LEFT JOIN holdings h ON h.step = {_SAME_RUN} | s.holding AND h.book = 0
WHERE s.step BETWEEN ? AND ? AND s.instrument = ? AND s.open_time_ms IS NOT NULL
AND s.ignored IS NULL
ORDER BY s.step
"""
_VALUE: Final = "coalesce({}, h.cash + coalesce(m.account_unrealized_pnl, m.unrealized_pnl))"
_OWN: Final = f"""
SELECT s.open_time_ms, NULL, {_VALUE.format("q.equity")}, s.instrument, s.close, h.quantity
FROM steps s JOIN steps m ON m.step = s.step LEFT JOIN states q ON q.step = s.step
JOIN holdings h ON h.step = {_SAME_RUN} | s.holding AND h.book = 0
WHERE s.step BETWEEN ? AND ? AND s.open_time_ms IS NOT NULL AND s.outcome IS NOT NULL
ORDER BY s.step
"""
_TWINS: Final = f"""
SELECT s.open_time_ms, h.twin, {_VALUE.format("m.equity")}, s.instrument, s.close, h.quantity
FROM steps s JOIN twin_steps m ON m.step = s.step
JOIN holdings h ON h.step = {_SAME_RUN} | m.holding AND h.book = m.book
WHERE s.step BETWEEN ? AND ? AND s.open_time_ms IS NOT NULL AND s.outcome IS NOT NULL
ORDER BY s.step
"""
_NOTED: Final = """
SELECT s.open_time_ms, n.key, n.value FROM steps s JOIN answers a ON a.step = s.step
JOIN json_each(a.note) n
WHERE s.step BETWEEN ? AND ? AND s.instrument = ? AND s.open_time_ms IS NOT NULL
AND n.type IN ('real', 'integer') ORDER BY s.step
"""
_SETTLED: Final = (
    "SELECT sequence, instrument, market_ms, content FROM events WHERE run_key = ? "
    f"AND sequence BETWEEN ? AND ? AND {INDEXED_KINDS} AND kind = 'funding' ORDER BY sequence"
)
_OUTCOMES: Final = (
    "SELECT outcome, count(*), min(step), max(step) FROM steps WHERE step BETWEEN ? AND ? "
    "AND outcome IS NOT NULL GROUP BY outcome"
)
_OPENED: Final = (
    "SELECT step, open_time_ms FROM steps WHERE step >= ? AND step <= ? AND instrument = ? "
    "AND open_time_ms IS NOT NULL AND ignored IS NULL ORDER BY step {} LIMIT 1"
)


class OpenedBar(NamedTuple):
    """A bar's step and when the bar opened."""

    sequence: int
    open_time_ms: int


def bar_rows(
    connection: sqlite3.Connection,
    run_key: int,
    instrument: int,
    span: tuple[int, int],
    gates: Sequence[str],
) -> Iterator[list[tuple[Any, ...]]]:
    """Yield ``BAR_FIELDS`` and the measures of *gates* of an instrument's accepted bars, in order.

    In batches of rows; *span* is the first and the last sequence, *instrument* its place in the
    run. Prices and quantities are the stored integers.
    """
    own = set(STEP_GATES)
    names = "".join(f", {'s' if one in own else 'a'}.{measure_name(one)}" for one in gates)
    query = _BARS.format(measures=names)
    cursor = connection.execute(query, (*_keys(run_key, span), instrument))
    while rows := cursor.fetchmany(BATCH_ROWS):
        yield rows


class EquityRow(NamedTuple):
    """An account after a decided bar, as stored; *twin* is None of the run's own account.

    With it the bar's instrument (its place), its close and what the account holds of it.
    """

    open_time_ms: int
    twin: str | None
    equity: int  # of 10⁻⁸
    instrument: int
    close: int
    quantity: int | None


def equity_rows(
    connection: sqlite3.Connection, run_key: int, span: tuple[int, int]
) -> list[EquityRow]:
    """Return every account after each decided bar; the rows of an account are in order."""
    keys = _keys(run_key, span)
    return [EquityRow(*row) for query in (_OWN, _TWINS) for row in connection.execute(query, keys)]


class Settlement(NamedTuple):
    """Funding that was settled: when, of which instrument (its place), and the event's content."""

    sequence: int
    instrument: int
    market_ms: int
    content: str


def settlements(
    connection: sqlite3.Connection, run_key: int, span: tuple[int, int]
) -> list[Settlement]:
    """Return the funding that the run was told of within *span*, in order."""
    rows = connection.execute(_SETTLED, (run_key, *span))
    return [Settlement(*row) for row in rows]


def opens(connection: sqlite3.Connection, run_key: int, span: tuple[int, int]) -> list[list[int]]:
    """Return (instrument, open) of every accepted bar within *span*, in order."""
    query = (
        "SELECT instrument, open FROM steps WHERE step BETWEEN ? AND ? "
        "AND open_time_ms IS NOT NULL AND ignored IS NULL ORDER BY step"
    )
    return connection.execute(query, _keys(run_key, span)).fetchall()


def noted_rows(
    connection: sqlite3.Connection, run_key: int, instrument: int, span: tuple[int, int]
) -> list[tuple[int, str, float]]:
    """Return (open time, name, number) of what the strategy noted at an instrument's bars."""
    keys = (*_keys(run_key, span), instrument)
    return connection.execute(_NOTED, keys).fetchall()


class OutcomeCount(NamedTuple):
    """How often a stored outcome was decided, and the first and the last sequence of it."""

    times: int
    first: int
    last: int


def outcome_counts(
    connection: sqlite3.Connection, run_key: int, span: tuple[int, int]
) -> dict[int, OutcomeCount]:
    """Return how often each stored outcome was decided within *span*, by the outcome's key."""
    rows = connection.execute(_OUTCOMES, _keys(run_key, span))
    return {
        outcome: OutcomeCount(times, sequence_of(first), sequence_of(last))
        for outcome, times, first, last in rows
    }


def decided_at(
    connection: sqlite3.Connection,
    run_key: int,
    span: tuple[int, int],
    chosen: Sequence[int] | None = None,
    *,
    instrument: int | None = None,
    newest: bool,
) -> int | None:
    """Return the first or the *newest* sequence within *span* that is a decision.

    Of those with one of the outcomes *chosen*, and on *instrument* (its place), where they are
    given.
    """
    if chosen is not None and not chosen:
        return None
    among = "IS NOT NULL" if chosen is None else f"IN ({', '.join('?' * len(chosen))})"
    query = (
        f"SELECT step FROM steps WHERE step BETWEEN ? AND ? AND outcome {among} "
        f"AND coalesce(instrument = ?, 1) ORDER BY step {'DESC' if newest else ''} LIMIT 1"
    )
    keys = (*_keys(run_key, span), *(chosen or ()), instrument)
    row = connection.execute(query, keys).fetchone()
    return None if row is None else sequence_of(row[0])


def bar_at(
    connection: sqlite3.Connection,
    run_key: int,
    instrument: int,
    span: tuple[int, int],
    *,
    newest: bool,
) -> OpenedBar | None:
    """Return the oldest or the *newest* accepted bar of an instrument within *span*."""
    query = _OPENED.format("DESC" if newest else "")
    row = connection.execute(query, (*_keys(run_key, span), instrument)).fetchone()
    return None if row is None else OpenedBar(sequence_of(row[0]), row[1])


def sequence_opened(
    connection: sqlite3.Connection, run_key: int, instrument: int, span: tuple[int, int], at_ms: int
) -> int:
    """Return the sequence behind an instrument's last bar within *span* that opened before *at_ms*.

    Its bars lie in the order of their times, so they are halved.
    """
    low, high = span[0], span[1] + 1
    while low < high:
        middle = (low + high) // 2
        found = bar_at(connection, run_key, instrument, (middle, high - 1), newest=False)
        if found is None or found.open_time_ms >= at_ms:
            high = middle
        else:
            low = found.sequence + 1
    return low


def _keys(run_key: int, span: tuple[int, int]) -> tuple[int, int]:
    return step_key(run_key, span[0]), step_key(run_key, span[1])


class SharedOutcome(NamedTuple):
    """What a stored outcome says that many decisions share."""

    key: int
    action: str
    refused_by: str | None
    unfilled_reason: str | None


def outcomes(connection: sqlite3.Connection, run_key: int) -> list[SharedOutcome]:
    """Return every outcome that a run has stored."""
    query = (
        f"SELECT step & {SEQUENCE_LIMIT - 1}, action, refused_by, unfilled_reason FROM outcomes "
        "WHERE step BETWEEN ? AND ? ORDER BY step"
    )
    keys = _keys(run_key, (0, SEQUENCE_LIMIT - 1))
    return [SharedOutcome(*row) for row in connection.execute(query, keys)]


def decision_beside(
    connection: sqlite3.Connection, run_key: int, instrument: int, sequence: int, *, newest: bool
) -> int | None:
    """Return the sequence of an instrument's last decision before *sequence* (or next after it)."""
    span = (0, sequence - 1) if newest else (sequence + 1, SEQUENCE_LIMIT - 1)
    query = (
        "SELECT step FROM steps WHERE step BETWEEN ? AND ? AND instrument = ? "
        f"AND outcome IS NOT NULL ORDER BY step {'DESC' if newest else ''} LIMIT 1"
    )
    row = connection.execute(query, (*_keys(run_key, span), instrument)).fetchone()
    return None if row is None else sequence_of(row[0])


def first_of_newest(
    connection: sqlite3.Connection,
    run_key: int,
    span: tuple[int, int],
    instruments: Sequence[int],
    most: int,
) -> int | None:
    """Return the sequence at which the *most* newest fills of *instruments* within *span* begin.

    None where there are no more than those.
    """
    query = (
        "SELECT sequence FROM fills WHERE run_key = ? AND sequence BETWEEN ? AND ? "
        f"AND instrument IN ({', '.join('?' * len(instruments))}) "
        "ORDER BY sequence DESC LIMIT 1 OFFSET ?"
    )
    row = connection.execute(query, (run_key, *span, *instruments, most)).fetchone()
    return None if row is None else int(row[0])


def rested_orders(
    connection: sqlite3.Connection,
    run_key: int,
    span: tuple[int, int],
    instruments: Sequence[int],
    until_ms: int,
    most: int,
) -> list[int]:
    """Return the sequences within *span* of the newest word on orders that rested at a price.

    Only those that were sent before *until_ms*, *most* of them, the newest first.
    """
    query = (
        "SELECT o.sequence FROM orders o WHERE o.run_key = ? AND o.sequence BETWEEN ? AND ? "
        f"AND o.instrument IN ({', '.join('?' * len(instruments))}) AND o.created_ms < ? "
        "AND coalesce(o.price, o.trigger) IS NOT NULL AND NOT EXISTS (SELECT 1 FROM orders n "
        "WHERE n.order_id = o.order_id AND n.run_key = o.run_key AND n.step > o.step) "
        "ORDER BY o.sequence DESC LIMIT ?"
    )
    values = (run_key, *span, *instruments, until_ms, most)
    return [int(row[0]) for row in connection.execute(query, values)]


def order_roles(
    connection: sqlite3.Connection, run_key: int, span: tuple[int, int]
) -> dict[str, str]:
    """Return the role of each order of which a step within *span* has word; no signals."""
    query = (
        "SELECT order_id, role FROM orders WHERE run_key = ? AND sequence BETWEEN ? AND ? "
        "AND role IS NOT NULL"
    )
    return dict(connection.execute(query, (run_key, *span)).fetchall())


def market_times(
    connection: sqlite3.Connection, run_key: int, interval_ms: int, sequences: Sequence[int]
) -> dict[int, int]:
    """Return the market time of each of the steps *sequences*."""
    query = (
        "SELECT coalesce(s.open_time_ms + ? + s.market_delay_ms, e.market_ms) FROM steps s "
        "LEFT JOIN events e ON e.step = s.step WHERE s.step = ?"
    )
    found = {}
    for sequence in dict.fromkeys(sequences):
        row = connection.execute(query, (interval_ms, step_key(run_key, sequence))).fetchone()
        if row is not None and row[0] is not None:
            found[sequence] = int(row[0])
    return found
