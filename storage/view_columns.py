"""How a column reads in a view: exact numbers, times, hashes; built-in functions only; pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from tracepaper.storage.columns import (
    FLAG,
    HASH,
    SEQUENCE_LIMIT,
    SOURCE_CODES,
    TABLES,
    TIME,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracepaper.storage.columns import Column

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


# ---------------------------------------------------------------- columns of views


class Shown(NamedTuple):
    """A column of a view: its name, its expression, and what it means."""

    name: str
    sql: str
    doc: str
    kind: str = "TEXT"  # of its values: `INTEGER`, `REAL` or `TEXT`
    is_flag: bool = False  # 1 or 0, which say yes or no

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
    columns: tuple[Shown, ...]
    source: str  # FROM and what follows
    others: str = ""  # a second SELECT of the same columns, with its UNION ALL

    @property
    def sql(self) -> str:
        """The statement that makes the view."""
        listed = ",\n  ".join(f"{column.typed} AS {column.name}" for column in self.columns)
        return f"CREATE VIEW {self.name} AS SELECT\n  {listed}\n{self.source}{self.others}"


def exact(name: str, sql: str, decimals: str, doc: str) -> tuple[Shown, Shown]:
    """Return the two columns of a number: *name* as REAL and *name*_text exactly."""
    return (
        Shown(name, real(sql, decimals), doc, "REAL"),
        Shown(f"{name}_text", text(sql, decimals), f"`{name}`, exactly"),
    )


def moment(name: str, sql: str, doc: str) -> tuple[Shown, Shown]:
    """Return the two columns of a time: *name* in UTC ms, and as ISO text."""
    stem = name.removesuffix("_ms")
    return (
        Shown(name, sql, f"{doc}, UTC ms", "INTEGER"),
        Shown(f"{stem}_iso", iso(sql), f"`{name}` as ISO 8601 text"),
    )


def digest(name: str, sql: str, doc: str) -> Shown:
    """Return a hash as lower-case hexadecimal text; it may be null."""
    return Shown(name, f"CASE WHEN {sql} IS NOT NULL THEN lower(hex({sql})) END", doc)


def source_name(code: str) -> str:
    """Return the name of a bar's source."""
    cases = " ".join(f"WHEN {number} THEN '{name}'" for name, number in SOURCE_CODES.items())
    return f"CASE {code} {cases} END"


def shared_row(place: str) -> str:
    """Return the key of an interned row of step ``s``, named by the sequence *place*."""
    return f"(s.step & ~{SEQUENCE_LIMIT - 1}) | {place}"


def of_step(table: str) -> tuple[Shown, Shown]:
    """Return the columns that name a step of *table*'s row."""
    return (
        Shown("run_id", "r.run_id", "the run"),
        Shown("sequence", f"{table}.sequence", "place in the run, from 0", "INTEGER"),
    )


def caused(alias: str, table: str) -> Shown:
    """Return the decision that caused the order of *table*'s row *alias*.

    An order's id begins with the sequence of its birth, and its run has a row of it there, unless
    it was taken over from another run. Where a command bore it, the event of that step is the
    command, which a prune keeps; where a decision did, it is a bar.
    """
    born = f"(({alias}.step & ~{SEQUENCE_LIMIT - 1}) | {alias}.birth)"
    return Shown(
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


INSTRUMENT: Final = Shown("instrument", "i.instrument_id", "`category:SYMBOL`")
MARKET_MS: Final = "coalesce(s.open_time_ms + r.interval_ms + s.market_delay_ms, e.market_ms)"


def shown(alias: str, table: str, *names: str) -> tuple[Shown, ...]:
    """Return how the columns *names* of *table* read, by their scales and with their texts."""
    columns = {column.name: column for column in TABLES[table]}
    return tuple(part for name in names for part in _shown(alias, columns[name]))


def _shown(alias: str, column: Column) -> tuple[Shown, ...]:
    sql = column.sql.format(t=alias) or f"{alias}.{column.name}"
    name = column.shown or column.name
    if column.scale == TIME:
        return moment(name, sql, column.doc)
    if column.scale == HASH:
        return (digest(name, sql, column.doc),)
    if column.scale == FLAG:
        return (Shown(name, sql, column.doc, column.kind, is_flag=True),)
    if column.scale:
        return exact(name, sql, column.scale, column.doc)
    return (Shown(name, sql, column.doc, column.kind),)


def complete(listed: Iterable[Shown], *tables: tuple[str, Iterable[Column]]) -> tuple[Shown, ...]:
    """Return *listed*, and behind it what else the columns of *tables* (by alias) have a text for.

    So a view shows a new column of its tables without another line.
    """
    found = list(listed)
    for alias, columns in tables:
        for column in columns:
            if column.doc and (column.shown or column.name) not in {one.name for one in found}:
                found += _shown(alias, column)
    return tuple(found)
