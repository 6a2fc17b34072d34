"""Views of orders, fills, positions and equity, of the run's account and of its twins."""

from __future__ import annotations

from typing import Final

from tracepaper.storage.expressions import power_of_ten, real, text
from tracepaper.storage.view_parts import (
    INSTRUMENT,
    MARKET_MS,
    MONEY,
    PRICE,
    QUANTITY,
    Column,
    View,
    caused,
    exact,
    moment,
    of_step,
    shared_row,
)

_STEP_TABLES: Final = (
    "LEFT JOIN bars b ON b.step = s.step LEFT JOIN events e ON e.step = s.step "
    "LEFT JOIN instruments i "
    "ON i.run_key = r.run_key AND i.instrument = coalesce(b.instrument, e.instrument)"
)

# An average price is a decimal only where the division leaves no rest.
_UNIT: Final = f"(h.quantity * {power_of_ten(f'10 - {PRICE} - {QUANTITY}')})"
_AVERAGE: Final = f"CASE WHEN h.quantity <> 0 THEN {real('h.entry_notional', MONEY)} / "
_AVERAGE_REAL: Final = f"{_AVERAGE}({real('h.quantity', QUANTITY)}) END"
_AVERAGE_TEXT: Final = (
    "CASE WHEN h.quantity <> 0 AND i.price_decimals + i.quantity_decimals <= 10 "
    f"AND h.entry_notional % {_UNIT} = 0 "
    f"THEN {text(f'h.entry_notional / {_UNIT}', PRICE)} END"
)

_UNREALIZED: Final = "coalesce(m.account_unrealized_pnl, m.unrealized_pnl)"
_EQUITY: Final = f"coalesce(m.equity, h.cash + {_UNREALIZED})"

_POSITION_SUMS: Final = (
    ("realized_pnl", "h.realized_pnl", "profit of what was closed, before fees"),
    ("unrealized_pnl", "m.unrealized_pnl", "profit of what is open, at the mark"),
    ("fees_paid", "h.fees_paid", "fees"),
    ("funding_paid", "h.funding_paid", "funding, positive where paid"),
)
_ACCOUNT_SUMS: Final = (
    ("realized_pnl", "h.account_realized_pnl", "profit of what was closed, before fees"),
    ("unrealized_pnl", _UNREALIZED, "profit of what is open, at the mark"),
    ("fees_paid", "h.account_fees_paid", "fees"),
    ("funding_paid", "h.account_funding_paid", "funding, positive where paid"),
)


def _holding_columns(sums: tuple[tuple[str, str, str], ...], whose: str) -> tuple[Column, ...]:
    """Return the columns of a position and its account after a step; *sums* are *whose*."""
    return (
        *moment("market_ms", MARKET_MS, "market time of the step's event"),
        Column("instrument", "i.instrument_id", "the event's; null where it has none"),
        *exact("quantity", "h.quantity", QUANTITY, "the instrument's position, signed"),
        Column(
            "average_price", _AVERAGE_REAL, "entry notional by quantity; null when flat", "REAL"
        ),
        Column(
            "average_price_text", _AVERAGE_TEXT, "exactly; null where it is no decimal of a price"
        ),
        *exact("entry_notional", "h.entry_notional", MONEY, "what the position cost, signed"),
        *(
            column
            for name, sql, doc in sums
            for column in exact(name, sql, MONEY, f"{doc}; the {whose}")
        ),
        *exact("cash", "h.cash", MONEY, "cash of the account"),
        *exact("equity", _EQUITY, MONEY, "cash and what is held, at the mark"),
    )


_OWN: Final = (
    "FROM runs r JOIN steps s ON s.run_key = r.run_key JOIN steps m ON m.step = s.step "
    f"JOIN holdings h ON h.step = {shared_row('s.holding')} AND h.book = 0 "
) + _STEP_TABLES
_TWIN: Final = (
    "FROM runs r JOIN steps s ON s.run_key = r.run_key "
    "AND EXISTS (SELECT 1 FROM twin_steps) JOIN twin_steps m ON m.step = s.step "
    f"JOIN holdings h ON h.step = {shared_row('m.holding')} AND h.book = m.book "
) + _STEP_TABLES

V_POSITIONS: Final = View(
    "v_positions",
    "an instrument's position after a step that named it",
    (*of_step("s"), *_holding_columns(_POSITION_SUMS, "position's")),
    f"{_OWN} WHERE h.quantity IS NOT NULL",
)

V_EQUITY: Final = View(
    "v_equity",
    "the account after a step",
    (*of_step("s"), *_holding_columns(_ACCOUNT_SUMS, "account's")),
    _OWN,
)

V_TWIN_EQUITY: Final = View(
    "v_twin_equity",
    "a shadow account after a step",
    (
        *of_step("s"),
        Column("twin", "h.twin", "its name, such as `ungated`"),
        *_holding_columns(_ACCOUNT_SUMS, "account's"),
    ),
    _TWIN,
)


def _fill_columns() -> tuple[Column, ...]:
    return (
        Column("ordinal", "f.ordinal", "place among the fills of the step", "INTEGER"),
        Column("order_id", "f.order_id", "the order: sequence and ordinal of its birth"),
        INSTRUMENT,
        Column("side", "f.side", "`BUY` or `SELL`"),
        *exact("quantity", "f.quantity", QUANTITY, "quantity filled"),
        *exact("price", "f.price", PRICE, "price, with spread and slippage"),
        *exact("reference_price", "f.reference_price", PRICE, "mid or open before them"),
        *exact("notional", "f.notional", MONEY, "price times quantity"),
        *exact("fee", "f.fee", MONEY, "fee in quote currency"),
        *exact("fee_base", "f.fee_base", QUANTITY, "fee in base: a spot buy pays there"),
        Column("liquidity", "f.liquidity", "`TAKER`: paper market orders always take"),
        Column("model", "f.model", "filled against: `quote` or `next_open`"),
        Column("reason", "f.reason", "why it was wanted"),
        *moment("filled_ms", "f.filled_ms", "market time of the fill"),
    )


_FILLED_BY: Final = "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = f.instrument"

V_FILLS: Final = View(
    "v_fills",
    "a fill of the run's account",
    (
        *of_step("f"),
        *_fill_columns(),
        Column("status", "o.status", "of its order after the step"),
        caused("f", "fills"),
    ),
    f"FROM runs r JOIN fills f ON f.run_key = r.run_key {_FILLED_BY} "
    "LEFT JOIN orders o ON o.step = f.step AND o.order_id = f.order_id",
)

V_TWIN_FILLS: Final = View(
    "v_twin_fills",
    "a fill of a shadow account",
    (*of_step("f"), Column("twin", "f.twin", "its name, such as `ungated`"), *_fill_columns()),
    f"FROM runs r JOIN twin_fills f ON f.run_key = r.run_key {_FILLED_BY}",
)


def _of_fills(sql: str) -> str:
    """Return *sql*, an aggregate of the fills of order ``o`` in its run."""
    return f"(SELECT {sql} FROM fills f WHERE f.order_id = o.order_id AND f.run_key = o.run_key)"


_MEAN_PRICE: Final = _of_fills("sum(CAST(f.price AS REAL) * f.quantity) / sum(f.quantity)")
_ONE_PRICE: Final = _of_fills("CASE WHEN min(f.price) = max(f.price) THEN min(f.price) END")
_LATEST: Final = (
    "NOT EXISTS (SELECT 1 FROM orders n WHERE n.order_id = o.order_id "
    "AND n.run_key = o.run_key AND n.step > o.step)"
)

V_ORDERS: Final = View(
    "v_orders",
    "an order as it stood last",
    (
        *of_step("o"),
        Column("order_id", "o.order_id", "sequence and ordinal of its birth"),
        INSTRUMENT,
        Column("side", "o.side", "`BUY` or `SELL`"),
        *exact("quantity", "o.quantity", QUANTITY, "quantity ordered"),
        *exact("filled", "o.filled", QUANTITY, "quantity filled so far"),
        Column(
            "price",
            f"{_MEAN_PRICE} / CAST('1e' || {PRICE} AS REAL)",
            "mean price of its fills; null where it has none",
            "REAL",
        ),
        Column(
            "price_text",
            text(_ONE_PRICE, PRICE),
            "exactly; null where its fills have several prices",
        ),
        *exact("fee", _of_fills("sum(f.fee)"), MONEY, "fees of its fills in quote currency"),
        Column("liquidity", _of_fills("max(f.liquidity)"), "of its fills"),
        Column("reason", "o.reason", "why it was wanted"),
        Column("status", "o.status", "where its life stands"),
        *moment("created_ms", "o.created_ms", "market time of its birth"),
        *moment(
            "eligible_ms",
            "o.eligible_ms",
            "market time from which a quote may fill it",
        ),
        caused("o", "orders"),
    ),
    f"FROM runs r JOIN orders o ON o.run_key = r.run_key AND {_LATEST} "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = o.instrument",
)

ACCOUNT_VIEWS: Final = (
    V_ORDERS,
    V_FILLS,
    V_POSITIONS,
    V_EQUITY,
    V_TWIN_FILLS,
    V_TWIN_EQUITY,
)
