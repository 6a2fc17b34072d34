"""The parts of which the views are made: columns, exact numbers, times; built-in functions only."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from tracepaper.storage.rows import SEQUENCE_LIMIT, SOURCES

# ---------------------------------------------------------------- numbers and times in SQL


def power_of_ten(decimals: str) -> str:
    """Return 10^decimals as an integer; text such as ``1e3`` is a number only by way of REAL."""
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


MONEY: Final = "10"
PRICE: Final = "i.price_decimals"
QUANTITY: Final = "i.quantity_decimals"
VOLUME: Final = "i.volume_decimals"
TURNOVER: Final = "i.turnover_decimals"


class Column(NamedTuple):
    """A column of a view: its name, its expression, and what it means."""

    name: str
    sql: str
    doc: str
    kind: str = "TEXT"  # of its values: `INTEGER`, `REAL` or `TEXT`

    @property
    def typed(self) -> str:
        """The expression, such that a view declares ``kind`` as its type.

        SQLite declares what a column of a table has, and nothing for an expression; but a
        question in parentheses has the type of the column that its last SELECT names.
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
    row: str  # what one row is
    columns: tuple[Column, ...]
    source: str  # FROM and what follows
    others: str = ""  # a second SELECT of the same columns, with its UNION ALL

    @property
    def sql(self) -> str:
        """The statement that makes the view."""
        listed = ",\n  ".join(f"{column.typed} AS {column.name}" for column in self.columns)
        return f"CREATE VIEW {self.name} AS SELECT\n  {listed}\n{self.source}{self.others}"


def exact(name: str, sql: str, decimals: str, doc: str) -> tuple[Column, Column]:
    """Return the two columns of a number: *name* as REAL and *name*_text exactly."""
    return (
        Column(name, real(sql, decimals), doc, "REAL"),
        Column(f"{name}_text", text(sql, decimals), f"`{name}`, exactly"),
    )


def moment(name: str, sql: str, doc: str) -> tuple[Column, Column]:
    """Return the two columns of a time: *name* in UTC ms, and as ISO text."""
    stem = name.removesuffix("_ms")
    return (
        Column(name, sql, f"{doc}, UTC ms", "INTEGER"),
        Column(f"{stem}_iso", iso(sql), f"`{name}` as ISO 8601 text"),
    )


def digest(name: str, sql: str, doc: str) -> Column:
    """Return a hash as lower-case hexadecimal text; it may be null."""
    return Column(name, f"CASE WHEN {sql} IS NOT NULL THEN lower(hex({sql})) END", doc)


def source_name(code: str) -> str:
    """Return the name of a bar's source."""
    cases = " ".join(f"WHEN {number} THEN '{name}'" for number, name in enumerate(SOURCES))
    return f"CASE {code} {cases} END"


def shared_row(place: str) -> str:
    """Return the key of an interned row of step ``s``, named by the sequence *place*."""
    return f"(s.step & ~{SEQUENCE_LIMIT - 1}) | {place}"


def of_step(table: str) -> tuple[Column, Column]:
    """Return the columns that name a step of *table*'s row."""
    return (
        Column("run_id", "r.run_id", "the run"),
        Column("sequence", f"{table}.sequence", "place in the run, from 0", "INTEGER"),
    )


def caused(alias: str, table: str) -> Column:
    """Return the decision that caused the order of *table*'s row *alias*.

    An order's id begins with the sequence of its birth, and its run has a row of it there, unless
    it was taken over from another run. Where a command bore it, the event of that step is the
    command, which a prune keeps; where a decision did, it is a bar.
    """
    born = f"(({alias}.step & ~{SEQUENCE_LIMIT - 1}) | {alias}.birth)"
    return Column(
        "decision_sequence",
        f"(SELECT c.birth FROM {table} c WHERE c.step = {alias}.step "
        f"AND c.ordinal = {alias}.ordinal AND {born} <= {alias}.step "
        f"AND EXISTS (SELECT 1 FROM orders y WHERE y.order_id = {alias}.order_id "
        f"AND y.step = {born}) "
        f"AND NOT EXISTS (SELECT 1 FROM events x WHERE x.step = {born}))",
        "the decision that caused the order; null where a command (FLATTEN) did, or one of the run "
        "from which the order was taken over",
        "INTEGER",
    )


INSTRUMENT: Final = Column("instrument", "i.instrument_id", "`category:SYMBOL`")
MARKET_MS: Final = "coalesce(b.open_time_ms + r.interval_ms + b.market_delay_ms, e.market_ms)"
