"""SQL of view columns: exact numbers, times, hashes; closed trades.

A trade is closed by a fill after which less than a quantity step is held, or the other side is;
it was opened by the last fill before that which found the account flat or turned it. A fill that
turns the position is shared between the two trades by quantity.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from tracepaper.storage.record.columns import (
    ANSWER_GATES,
    FLAG,
    HASH,
    MONEY,
    PRICE,
    QUANTITY,
    SOURCE_CODES,
    STEP_GATES,
    TABLES,
    TIME,
    measure_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracepaper.storage.record.columns import Column

_MEASURES: Final = " ".join(
    f"WHEN '{gate}' THEN {table}.{measure_name(gate)}"
    for table, gates in (("s", STEP_GATES), ("a", ANSWER_GATES))
    for gate in gates
)
MEASURE: Final = f"CASE g.gate {_MEASURES} END"
"""The measure of a gate ``g`` in the decision of step ``s`` with answer ``a``."""

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


class ViewColumn(NamedTuple):
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
    columns: tuple[ViewColumn, ...]
    source: str  # FROM and what follows
    others: str = ""  # a second SELECT of the same columns, with its UNION ALL

    @property
    def sql(self) -> str:
        """The statement that makes the view."""
        listed = ",\n  ".join(f"{column.typed} AS {column.name}" for column in self.columns)
        return f"CREATE VIEW {self.name} AS SELECT\n  {listed}\n{self.source}{self.others}"


def exact(name: str, sql: str, decimals: str, doc: str) -> tuple[ViewColumn, ViewColumn]:
    """Return the two columns of a number: *name* as REAL and *name*_text exactly."""
    return (
        ViewColumn(name, real(sql, decimals), doc, "REAL"),
        ViewColumn(f"{name}_text", text(sql, decimals), f"`{name}`, exactly"),
    )


def moment(name: str, sql: str, doc: str) -> tuple[ViewColumn, ViewColumn]:
    """Return the two columns of a time: *name* in UTC ms, and as ISO text."""
    stem = name.removesuffix("_ms")
    return (
        ViewColumn(name, sql, f"{doc}, UTC ms", "INTEGER"),
        ViewColumn(f"{stem}_iso", iso(sql), f"`{name}` as ISO 8601 text"),
    )


def digest(name: str, sql: str, doc: str) -> ViewColumn:
    """Return a hash as lower-case hexadecimal text; it may be null."""
    return ViewColumn(name, f"CASE WHEN {sql} IS NOT NULL THEN lower(hex({sql})) END", doc)


def source_name(code: str) -> str:
    """Return the name of a bar's source."""
    cases = " ".join(f"WHEN {number} THEN '{name}'" for name, number in SOURCE_CODES.items())
    return f"CASE {code} {cases} END"


def at_step(alias: str, step: str = "s") -> str:
    """Return the condition that the row *alias* is of the step of the row *step*."""
    return f"{alias}.run_key = {step}.run_key AND {alias}.sequence = {step}.sequence"


def shared_row(alias: str, place: str) -> str:
    """Return the condition that *alias* is the row that step ``s`` names by a sequence."""
    return f"{alias}.run_key = s.run_key AND {alias}.sequence = {place}"


def of_step(table: str) -> tuple[ViewColumn, ViewColumn]:
    """Return the columns that name a step of *table*'s row."""
    return (
        ViewColumn("run_id", "r.run_id", "the run"),
        ViewColumn("sequence", f"{table}.sequence", "place in the run, from 0", "INTEGER"),
    )


def caused(alias: str, table: str) -> ViewColumn:
    """Return the decision that caused the order of *table*'s row *alias*.

    An order's id begins with the sequence of its birth, and its run has a row of it there, unless
    it was taken over from another run. Where a command bore it, the event of that step is the
    command, which a prune keeps; where a decision did, it is a bar. An exit order that a fill at a
    quote or a book placed was born at that fill, which a prune keeps too.
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
        "AND z.book = 0 AND z.model IN ('quote', 'book')) LIMIT 1)",
        "the decision that caused the order; null where a command (FLATTEN) or a fill between bars "
        "did, or one of the run from which the order was taken over",
        "INTEGER",
    )


INSTRUMENT: Final = ViewColumn("instrument", "i.instrument_id", "`category:SYMBOL`")
MARKET_MS: Final = "coalesce(s.open_time_ms + r.interval_ms + s.market_delay_ms, e.market_ms)"


def shown(alias: str, table: str, *names: str) -> tuple[ViewColumn, ...]:
    """Return how the columns *names* of *table* read, by their scales and with their texts."""
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

    So a view shows a new column of its tables without another line.
    """
    shown = list(listed)
    for alias, columns in tables:
        for column in columns:
            if column.doc and (column.shown or column.name) not in {item.name for item in shown}:
                shown += _shown(alias, column)
    return tuple(shown)


# A run in hedge mode has its sides ``b`` as the first books of a step; any other one has its own
# row ``h``, once, whatever shadow accounts it has. The account is row ``a``.
OF_SIDES: Final = (
    "FROM runs r JOIN steps s ON s.run_key = r.run_key "
    f"LEFT JOIN twin_steps t ON {at_step('t')} AND t.book <= 2 "
    f"LEFT JOIN holdings b ON {shared_row('b', 't.holding')} AND b.book = t.book "
    "AND b.twin IN ('LONG', 'SHORT') "
    f"JOIN holdings h ON {shared_row('h', 'coalesce(b.sequence, s.holding)')} "
    "AND h.book = coalesce(b.book, 0) "
    f"JOIN holdings a ON {shared_row('a', 's.holding')} AND a.book = 0 "
)
A_SIDE_EACH: Final = (
    "WHERE (b.twin IS NOT NULL OR coalesce(t.book, 1) = 1) AND h.quantity IS NOT NULL"
)
MARKED_SIDE: Final = "CASE WHEN b.twin IS NULL THEN s.unrealized_pnl ELSE t.unrealized_pnl END"
SIDE_HELD: Final = ViewColumn(
    "side",
    "coalesce(h.twin, CASE WHEN h.quantity > 0 THEN 'LONG' WHEN h.quantity < 0 THEN 'SHORT' "
    "ELSE 'FLAT' END)",
    "`LONG`, `SHORT` or `FLAT`; in hedge mode `LONG` or `SHORT`, held or not",
)
LIQUIDATED_AT: Final = (
    "CASE WHEN h.margin IS NOT NULL THEN (SELECT o.trigger FROM orders o "
    "WHERE o.run_key = s.run_key AND o.sequence <= s.sequence AND o.instrument = i.instrument "
    "AND o.role = 'LIQUIDATION' AND coalesce(o.position_side, '') = coalesce(h.twin, '') "
    "ORDER BY o.sequence DESC, o.ordinal DESC LIMIT 1) END"
)


def _signed(fill: str) -> str:
    """Return the signed quantity of *fill*; a spot buy pays its fee in base."""
    bought = f"{fill}.quantity - {fill}.fee_base"
    return f"CASE {fill}.side WHEN 'BUY' THEN {bought} ELSE -{fill}.quantity END"


def _before(fill: str) -> str:
    """Return what was held before *fill*: in the newest row before its step, and by fills since.

    On cross margin a price of another instrument fills in a step that has no row of this one.
    """
    since = (
        f"coalesce((SELECT sum({_signed('b')}) FROM fills b "
        f"WHERE b.run_key = {fill}.run_key AND b.sequence > {{}} AND b.book = 0 "
        f"AND (b.sequence, b.ordinal) < ({fill}.sequence, {fill}.ordinal) "
        f"AND b.instrument = {fill}.instrument AND b.position_side IS {fill}.position_side), 0)"
    )
    return (
        f"coalesce((SELECT h.quantity + {since.format('h.sequence')} FROM holdings h "
        f"WHERE h.run_key = {fill}.run_key AND h.sequence < {fill}.sequence "
        f"AND h.twin IS {fill}.position_side "
        f"AND h.instrument = {fill}.instrument ORDER BY h.sequence DESC LIMIT 1), "
        f"{since.format('-1')})"
    )


def _after(fill: str) -> str:
    return f"({_before(fill)} + {_signed(fill)})"


def _turned(fill: str) -> str:
    """Return whether *fill* turned the position to the other side."""
    return (
        f"(min({_before(fill)}, {_after(fill)}) <= -i.quantity_step "
        f"AND max({_before(fill)}, {_after(fill)}) >= i.quantity_step)"
    )


_CLOSES: Final = (
    f"abs({_before('f')}) >= i.quantity_step "
    f"AND (abs({_after('f')}) < i.quantity_step OR {_turned('f')})"
)


def _opening(column: str) -> str:
    """Return *column* of the fill that opened the trade which fill ``f`` closed."""
    return (
        f"(SELECT g.{column} FROM fills g WHERE g.run_key = f.run_key AND g.book = 0 "
        "AND g.instrument = f.instrument AND g.position_side IS f.position_side "
        "AND (g.sequence, g.ordinal) < (f.sequence, f.ordinal) "
        f"AND (abs({_before('g')}) < i.quantity_step OR {_turned('g')}) "
        "ORDER BY g.sequence DESC, g.ordinal DESC LIMIT 1)"
    )


_SIDE: Final = f"CASE WHEN {_before('f')} > 0 THEN 1 ELSE -1 END"
_ENTERS: Final = "CASE x.side WHEN 'BUY' THEN 1 ELSE -1 END"
# A fill that adds is counted as far as something is held after it, one that closes as far as
# something was held before: of a fill that turns, each trade has its own part.
_PART: Final = (
    "CASE WHEN x.sequence = e.sequence AND x.ordinal = e.ordinal "
    f"THEN min(1.0, abs({_after('x')}) * 1.0 / abs({_signed('x')})) "
    "WHEN x.sequence = f.sequence AND x.ordinal = f.ordinal "
    f"THEN min(1.0, abs({_before('x')}) * 1.0 / abs({_signed('x')})) ELSE 1.0 END"
)


def _within(alias: str) -> str:
    """Return the condition for rows of the steps from the opening to the closing fill."""
    return f"{alias}.run_key = f.run_key AND {alias}.sequence BETWEEN e.sequence AND f.sequence"


def _over(aggregate: str, condition: str = "1") -> str:
    """Return *aggregate* over the fills ``x`` of the trade that satisfy *condition*."""
    return (
        f"(SELECT {aggregate} FROM fills x WHERE {_within('x')} AND x.book = 0 "
        "AND x.instrument = f.instrument AND x.position_side IS f.position_side "
        "AND (x.sequence, x.ordinal) >= (e.sequence, e.ordinal) "
        f"AND (x.sequence, x.ordinal) <= (f.sequence, f.ordinal) AND {condition})"
    )


def _mean_price(side: str) -> str:
    """Return the mean price of the fills that go with the trade's side, or against it."""
    weight = f"abs({_signed('x')}) * {_PART}"
    mean = _over(f"sum(x.price * {weight}) / sum({weight})", f"{_ENTERS} = {side}")
    return real(mean, PRICE)


def _worth(price: str) -> str:
    """Return the money that the trade's fills moved at *price*, positive where it came in."""
    scale = f"CAST('1e' || ({PRICE} + {QUANTITY}) AS REAL)"
    return _over(f"-sum({_ENTERS} * x.{price} * 1.0 * x.quantity * {_PART})") + f" / {scale}"


_MOST_AT_FILLS: Final = _over(
    "max(abs(CASE WHEN x.sequence = f.sequence AND x.ordinal = f.ordinal THEN 0 "
    f"ELSE {_after('x')} END))"
)
_MOST_BETWEEN: Final = (  # a split makes it more without a fill
    "(SELECT max(abs(h.quantity)) FROM holdings h WHERE h.run_key = f.run_key "
    "AND h.sequence >= e.sequence AND h.sequence < f.sequence "
    "AND h.instrument = f.instrument AND h.twin IS f.position_side)"
)
_MOST_HELD: Final = f"max({_MOST_AT_FILLS}, coalesce({_MOST_BETWEEN}, 0))"
_FEES: Final = real(_over(f"sum(x.fee * {_PART})"), MONEY)
_GROSS: Final = _worth("reference_price")
_COSTS: Final = f"({_FEES} + {_GROSS} - {_worth('price')})"
_FUNDING: Final = (
    f"(SELECT coalesce(-sum(l.amount), 0) FROM ledger l WHERE {_within('l')} "
    "AND l.kind = 'funding' AND l.instrument = f.instrument "
    f"AND l.position_side IS f.position_side) / CAST('1e' || {MONEY} AS REAL)"
)
_DIVIDENDS: Final = (
    f"(SELECT coalesce(sum(l.amount), 0) FROM ledger l WHERE {_within('l')} "
    "AND l.kind IN ('dividend', 'cash_in_lieu') AND l.instrument = f.instrument) "
    f"/ CAST('1e' || {MONEY} AS REAL)"
)
_BARS: Final = (
    "CASE WHEN NOT EXISTS (SELECT 1 FROM prunes p "
    "WHERE p.run_key = r.run_key AND p.until_sequence >= e.sequence) "
    "THEN (SELECT count(*) FROM steps s "
    "WHERE s.run_key = f.run_key AND s.sequence >= e.sequence AND s.sequence < f.sequence "
    "AND s.instrument = f.instrument "
    "AND s.open_time_ms IS NOT NULL AND s.ignored IS NULL) END"
)

V_TRADES: Final = View(
    "v_trades",
    "a closed round trip of the run's account; what was taken over from another run is none",
    (
        *of_step("f"),
        ViewColumn(
            "ordinal", "f.ordinal", "place among the fills of the step that closed it", "INTEGER"
        ),
        INSTRUMENT,
        ViewColumn(
            "side", f"CASE {_SIDE} WHEN 1 THEN 'LONG' ELSE 'SHORT' END", "`LONG` or `SHORT`"
        ),
        ViewColumn(
            "quantity",
            real(_MOST_HELD, QUANTITY),
            "the most that it held, not negative",
            "REAL",
        ),
        *moment("opened_ms", "e.filled_ms", "market time of the fill that opened it"),
        *moment("closed_ms", "f.filled_ms", "market time of the fill that closed it"),
        ViewColumn(
            "entry_price", _mean_price(_SIDE), "mean price of the fills that entered", "REAL"
        ),
        ViewColumn(
            "exit_price", _mean_price(f"-({_SIDE})"), "mean price of those that left", "REAL"
        ),
        ViewColumn(
            "gross",
            _GROSS,
            "profit at the reference prices of its fills, before costs and funding; a fee that was "
            "paid in base is in it",
            "REAL",
        ),
        ViewColumn(
            "costs",
            _COSTS,
            "fees, and what its fills were worse than their reference prices",
            "REAL",
        ),
        ViewColumn("fees", _FEES, "the fees among them", "REAL"),
        ViewColumn("funding", _FUNDING, "funding while it was held, positive where paid", "REAL"),
        ViewColumn("dividends", _DIVIDENDS, "dividends and cash in lieu while it was held", "REAL"),
        ViewColumn(
            "net",
            f"{_GROSS} - {_COSTS} - {_FUNDING} + {_DIVIDENDS}",
            "gross and dividends less costs and funding",
            "REAL",
        ),
        ViewColumn(
            "bars_held",
            _BARS,
            "closes at which it was held; null where a prune took some of them",
            "INTEGER",
        ),
        ViewColumn("entry_reason", "e.reason", "why it was opened"),
        ViewColumn("exit_reason", "f.reason", "why it was closed"),
        ViewColumn(
            "entry_sequence", "e.birth", "where the order that opened it was born", "INTEGER"
        ),
        ViewColumn(
            "exit_sequence", "f.birth", "where the order that closed it was born", "INTEGER"
        ),
        *(
            ViewColumn(name, f"d.{name}", f"{doc}; null without a model's forecast", kind)
            for name, doc, kind in (
                ("mean_return", "log return that the decision to open it expected", "REAL"),
                ("stdev_return", "its standard deviation", "REAL"),
                ("volatility", "volatility of the return that was expected then", "REAL"),
                ("horizon", "bars ahead of which these are", "INTEGER"),
            )
        ),
    ),
    "FROM runs r JOIN fills f ON f.run_key = r.run_key AND f.book = 0 "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = f.instrument "
    f"JOIN fills e ON e.run_key = f.run_key AND e.book = 0 AND e.sequence = {_opening('sequence')} "
    f"AND e.ordinal = {_opening('ordinal')} "
    # Of an order that was taken over from another run the birth is that run's.
    "LEFT JOIN answers d ON d.run_key = e.run_key AND d.sequence = e.birth AND EXISTS "
    f"(SELECT 1 FROM orders y WHERE y.order_id = e.order_id AND {at_step('y', 'd')}) "
    f"WHERE {_CLOSES}",
)


def _byte(place: int) -> str:
    """Return byte *place* of bucket ``n`` as a number."""
    byte = f"hex(substr(a.buckets, n.key * 4 + {place + 1}, 1))"
    high, low = (f"instr('123456789ABCDEF', substr({byte}, {at}, 1))" for at in (1, 2))
    return f"({high} * 16 + {low})"


# A little-endian float32, read with integers alone: mantissa / 2^shift. Weights are not negative.
# SQLite gives <<, >>, & and | one precedence, so every pair has its parentheses.
_EXPONENT: Final = f"((({_byte(3)} & 127) << 1) | ({_byte(2)} >> 7))"
_MANTISSA: Final = f"((({_byte(2)} & 127) << 16) | ({_byte(1)} << 8) | {_byte(0)})"
_SHIFT: Final = f"(150 - max({_EXPONENT}, 1))"
_WEIGHT: Final = (
    f"({_MANTISSA} + CASE WHEN {_EXPONENT} > 0 THEN 8388608 ELSE 0 END) * 1.0 "
    f"/ (1 << min({_SHIFT}, 60)) / (1 << max(min({_SHIFT} - 60, 60), 0)) "
    f"/ (1 << max({_SHIFT} - 120, 0))"
)
