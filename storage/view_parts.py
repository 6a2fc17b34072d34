"""The SQL from which the views are made: exact text, REAL, ISO times; built-in functions only."""

from __future__ import annotations

from typing import Final, NamedTuple

from tracepaper.storage.rows import SEQUENCE_BITS, SEQUENCE_LIMIT, SOURCES

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


class View(NamedTuple):
    """A stable view."""

    name: str
    row: str  # what one row is
    columns: tuple[Column, ...]
    source: str  # FROM and what follows
    ctes: str = ""

    @property
    def sql(self) -> str:
        """The statement that makes the view."""
        listed = ",\n  ".join(f"{column.sql} AS {column.name}" for column in self.columns)
        return f"CREATE VIEW {self.name} AS {self.ctes}SELECT\n  {listed}\n{self.source}"


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


def exact(name: str, sql: str, decimals: str, doc: str) -> tuple[Column, Column]:
    """Return the two columns of a number: *name* as REAL and *name*_text exactly."""
    return (
        Column(name, real(sql, decimals), doc),
        Column(f"{name}_text", text(sql, decimals), f"`{name}`, exactly"),
    )


def moment(name: str, sql: str, doc: str) -> tuple[Column, Column]:
    """Return the two columns of a time: *name* in UTC ms, and as ISO text."""
    stem = name.removesuffix("_ms")
    return (
        Column(name, sql, f"{doc}, UTC ms"),
        Column(f"{stem}_iso", iso(sql), f"`{name}` as ISO 8601 text"),
    )


def digest(name: str, sql: str, doc: str) -> Column:
    """Return a hash as lower-case hexadecimal text."""
    return Column(name, f"lower(hex({sql}))", doc)


def nullable_digest(name: str, sql: str, doc: str) -> Column:
    """Return a hash that may be null as lower-case hexadecimal text."""
    return Column(name, f"CASE WHEN {sql} IS NOT NULL THEN lower(hex({sql})) END", doc)


def in_run(table: str) -> str:
    """Return the condition that a row of *table* belongs to run ``r``: a range of its key."""
    return (
        f"{table}.step BETWEEN r.run_key << {SEQUENCE_BITS} "
        f"AND ((r.run_key + 1) << {SEQUENCE_BITS}) - 1 "
        f"AND r.run_key = {table}.step >> {SEQUENCE_BITS}"
    )


def shared_row(place: str) -> str:
    """Return the key of an interned row of step ``s``, named by the sequence *place*."""
    return f"(s.step & ~{SEQUENCE_LIMIT - 1}) | {place}"


def of_step(table: str) -> tuple[Column, Column]:
    """Return the columns that name a step of *table*'s row."""
    return (
        Column("run_id", "r.run_id", "the run"),
        Column("sequence", f"{table}.step & {SEQUENCE_LIMIT - 1}", "place in the run, from 0"),
    )


def source_name(code: str) -> str:
    """Return the name of a bar's source."""
    cases = " ".join(f"WHEN {number} THEN '{name}'" for number, name in enumerate(SOURCES))
    return f"CASE {code} {cases} END"


INSTRUMENT: Final = Column("instrument", "i.instrument_id", "`category:SYMBOL`")
MARKET_MS: Final = "coalesce(b.open_time_ms + r.interval_ms + b.market_delay_ms, e.market_ms)"
