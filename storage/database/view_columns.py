"""SQL of view columns: exact numbers, times, hashes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from tracepaper.storage.record.columns import (
    ANSWER_GATES,
    FLAG,
    HASH,
    MONEY,
    PLAUSIBLE,
    PRICE,
    QUANTITY,
    SOURCE_CODES,
    STEADY_GATES,
    TABLES,
    TIME,
    measure_name,
    usual_measure,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracepaper.storage.record.columns import Column

BAR_MARKET_MS: Final = "s.open_time_ms + r.interval_ms + coalesce(s.market_delay_ms, 0)"
BAR_SEEN_MS: Final = f"{BAR_MARKET_MS} + coalesce(s.seen_delay_ms, 0)"


_OF_STEP: Final = "s.measures, '$.\"' || g.gate || '\"'"


def _steady(gate: str, threshold: str) -> str:
    """Return the SQL of the measure of a gate of ``STEADY_GATES``, stored or usual."""
    usual = threshold if usual_measure(gate, 1.0) else "0.0"
    return f"CASE WHEN json_type({_OF_STEP}) IS NULL THEN {usual} ELSE json_extract({_OF_STEP}) END"


ANSWERED: Final = " ".join(f"WHEN '{gate}' THEN a.{measure_name(gate)}" for gate in ANSWER_GATES)
"""SQL cases of the gates with a column in ``answers``; a user's gate adds one."""


def measured(threshold: str = "g.threshold") -> str:
    """Return the SQL of gate ``g``'s measure in the decision of step ``s`` with answer ``a``.

    *threshold* is the SQL of the decision's threshold.
    """
    measures = {
        **{gate: _steady(gate, threshold) for gate in STEADY_GATES},
        PLAUSIBLE: f"s.{measure_name(PLAUSIBLE)}",
    }
    cases = (f"WHEN '{gate}' THEN {measure}" for gate, measure in measures.items())
    return f"CASE g.gate {' '.join(cases)} {ANSWERED} ELSE json_extract({_OF_STEP}) END"


# ---------------------------------------------------------------- numbers and times in SQL


def power_of_ten(decimals: str) -> str:
    """Return SQL of 10^decimals as an integer; SQLite casts ``1e3`` correctly only to REAL."""
    return f"CAST(CAST('1e' || ({decimals}) AS REAL) AS INTEGER)"


def real(number: str, decimals: str) -> str:
    """Return *number* (an integer of 10^-decimals) as REAL, correctly rounded."""
    return f"({number}) / CAST('1e' || {decimals} AS REAL)"


def text(number: str, decimals: str) -> str:
    """Return *number* as exact decimal text with all its decimals."""
    power = power_of_ten(decimals)
    whole = f"abs({number}) / {power}"
    sign = f"CASE WHEN ({number}) < 0 THEN '-' ELSE '' END"
    rest = f"printf('.%0*d', {decimals}, abs({number}) % {power})"
    return (
        f"CASE WHEN ({number}) IS NULL THEN NULL ELSE {sign} || ({whole}) || "
        f"CASE WHEN {decimals} = 0 THEN '' ELSE {rest} END END"
    )


def iso(number: str) -> str:
    """Return *number*, UTC milliseconds, as ``2025-06-01T00:05:00.000Z``."""
    seconds = f"strftime('%Y-%m-%dT%H:%M:%S', ({number}) / 1000, 'unixepoch')"
    return f"{seconds} || printf('.%03dZ', ({number}) % 1000)"


# ---------------------------------------------------------------- columns of views


class ViewColumn(NamedTuple):
    """A column of a view: its name, SQL expression and documentation."""

    name: str
    sql: str
    doc: str
    kind: str = "TEXT"  # `INTEGER`, `REAL` or `TEXT`
    is_flag: bool = False  # a boolean, 1 or 0
    is_money: bool = False  # an amount in quote currency

    @property
    def typed(self) -> str:
        """The expression, written so that SQLite declares ``kind`` as its type.

        SQLite declares a type for a table's column, but none for an expression. A subquery has the
        type of the column that its last SELECT names.
        """
        if _CARRIED.match(self.sql):
            return self.sql
        return f"(SELECT {self.sql} UNION ALL {_NO_ROW[self.kind]})"


_CARRIED: Final = re.compile(r"\w+\.\w+$|\(SELECT \w+\.\w+ FROM ")
_NO_ROW: Final = {
    "INTEGER": "SELECT z.interval_ms FROM runs z WHERE 0",
    "REAL": "SELECT z.threshold FROM gate_sets z WHERE 0",
    "TEXT": "SELECT z.run_id FROM runs z WHERE 0",
}


class View(NamedTuple):
    """A stable view."""

    name: str
    row: str  # a description of one row
    columns: tuple[ViewColumn, ...]
    source: str  # FROM and the clauses after it
    others: str = ""  # a second SELECT of the same columns, with its UNION ALL
    key: tuple[str, ...] = ("sequence",)  # the columns that with ``run_id`` identify a row
    grows: bool = True  # whether later steps only add rows, which are theirs

    @property
    def sql(self) -> str:
        """The statement that creates the view."""
        return f"CREATE VIEW {self.name} AS {self.question}"

    @property
    def question(self) -> str:
        """The SELECT of its rows."""
        listed = ",\n  ".join(f"{column.typed} AS {column.name}" for column in self.columns)
        return f"SELECT\n  {listed}\n{self.source}{self.others}"


def exact(name: str, sql: str, decimals: str, doc: str) -> tuple[ViewColumn, ViewColumn]:
    """Return the two columns of a number: *name* as REAL and *name*_text exactly."""
    is_money = decimals == MONEY
    return (
        ViewColumn(name, real(sql, decimals), doc, "REAL", is_money=is_money),
        ViewColumn(f"{name}_text", text(sql, decimals), f"`{name}`, exactly", is_money=is_money),
    )


def moment(name: str, sql: str, doc: str) -> tuple[ViewColumn, ViewColumn]:
    """Return the two columns of a time: *name* in UTC ms, and as ISO text."""
    stem = name.removesuffix("_ms")
    return (
        ViewColumn(name, sql, f"{doc}, UTC ms", "INTEGER"),
        ViewColumn(f"{stem}_iso", iso(sql), f"`{name}` as ISO 8601 text"),
    )


def digest(name: str, sql: str, doc: str) -> ViewColumn:
    """Return the column of a hash as lower-case hexadecimal text; it may be null."""
    return ViewColumn(name, f"CASE WHEN {sql} IS NOT NULL THEN lower(hex({sql})) END", doc)


_CASES: Final = " ".join(
    f"WHEN s.source IS {'NULL' if number is None else number} THEN '{name}'"
    for name, number in SOURCE_CODES.items()
)
SOURCE_NAME: Final = f"CASE {_CASES} END"
"""The SQL of the name of a bar's source."""


def at_step(alias: str, step: str = "s") -> str:
    """Return the condition that the row *alias* belongs to the step of the row *step*."""
    return f"{alias}.run_key = {step}.run_key AND {alias}.sequence = {step}.sequence"


def shared_row(alias: str, place: str) -> str:
    """Return the condition that *alias* is the row of ``s``'s run with the sequence *place*."""
    return f"{alias}.run_key = s.run_key AND {alias}.sequence = {place}"


def of_step(table: str) -> tuple[ViewColumn, ViewColumn]:
    """Return the columns that identify the step of a row of *table*."""
    return (
        ViewColumn("run_id", "r.run_id", "the run"),
        ViewColumn("sequence", f"{table}.sequence", "place in the run, from 0", "INTEGER"),
    )


def of_content(name: str, doc: str) -> ViewColumn:
    """Return the column with the text *name* in the content of the event ``e``."""
    return ViewColumn(name, f"json_extract(e.content, '$.{name}')", doc)


def ordinal(alias: str, doc: str) -> ViewColumn:
    """Return the column with the index of the row *alias* among those of its step."""
    return ViewColumn("ordinal", f"{alias}.ordinal", doc, "INTEGER")


def caused(alias: str, table: str) -> ViewColumn:
    """Return the column with the decision that caused the order of *table*'s row *alias*.

    An order's id begins with the sequence of the step that created it. Its run has a row of it
    there, unless it was taken over from another run. A step of a decision has a bar and so no
    event; an order of a command has the command as its event, and an exit order that a
    fill at a quote placed has that fill at its step.
    """
    run, born = f"{alias}.run_key", f"{alias}.birth"
    return ViewColumn(
        "decision_sequence",
        f"(SELECT c.birth FROM {table} c WHERE {at_step('c', alias)} "
        f"AND c.order_id = {alias}.order_id AND {born} <= {alias}.sequence "
        f"AND EXISTS (SELECT 1 FROM orders y WHERE y.order_id = {alias}.order_id "
        f"AND y.run_key = {run} AND y.sequence = {born}) "
        f"AND NOT EXISTS (SELECT 1 FROM events x WHERE x.run_key = {run} AND x.sequence = {born}) "
        f"AND NOT EXISTS (SELECT 1 FROM fills z WHERE z.run_key = {run} AND z.sequence = {born} "
        "AND z.account = 0 AND z.model = 'quote') LIMIT 1)",
        "the decision that caused the order; null if a command (FLATTEN), a fill between bars or "
        "an earlier run caused it",
        "INTEGER",
    )


INSTRUMENT: Final = ViewColumn("instrument", "i.instrument_id", "`category:SYMBOL`")
MARKET_MS: Final = f"coalesce({BAR_MARKET_MS}, e.market_ms)"


def shown(alias: str, table: str, *names: str) -> tuple[ViewColumn, ...]:
    """Return the view columns for the columns *names* of *table*, with their documentation."""
    columns = {column.name: column for column in TABLES[table]}
    return tuple(part for name in names for part in _shown(alias, columns[name]))


def _shown(alias: str, column: Column) -> tuple[ViewColumn, ...]:
    sql = column.sql.format(t=alias) or f"{alias}.{column.name}"
    name = column.shown or column.name
    if column.scale == TIME:
        return moment(name, sql, column.doc)
    if column.scale == HASH:
        return (digest(name, sql, column.doc),)
    if column.scale == FLAG:
        return (ViewColumn(name, sql, column.doc, column.kind, is_flag=True),)
    if column.scale:
        return exact(name, sql, column.scale, column.doc)
    return (ViewColumn(name, sql, column.doc, column.kind),)


def complete(
    listed: Iterable[ViewColumn], *tables: tuple[str, Iterable[Column]]
) -> tuple[ViewColumn, ...]:
    """Return *listed*, then the other documented columns of *tables* (by alias).

    So a view shows a new column of its tables automatically.
    """
    shown = list(listed)
    for alias, columns in tables:
        for column in columns:
            if column.doc and (column.shown or column.name) not in {item.name for item in shown}:
                shown += _shown(alias, column)
    return tuple(shown)


_FACTOR: Final = power_of_ten(f"{MONEY} - {PRICE} - {QUANTITY}")
UNIT: Final = f"(h.quantity * {_FACTOR})"
"""SQL of a position's value at a price of 1, as money; 0 if it would be rounded."""
# A mark that is not stored is computed from the step's close.
UNREALIZED: Final = f"coalesce({{0}}.unrealized_pnl, s.close * {UNIT} - h.entry_notional)"
