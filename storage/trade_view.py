"""``v_trades``: closed round trips out of fills, in plain SQL that walks no more than each trade.

A trade is closed by a fill after which less than a quantity step is held, or the other side is;
it was opened by the last fill before that which found the account flat or turned it. A fill that
turns the position is shared between the two trades by quantity.
"""

from __future__ import annotations

from typing import Final

from tracepaper.storage.columns import MONEY, PRICE, QUANTITY, SEQUENCE_BITS
from tracepaper.storage.view_columns import INSTRUMENT, Shown, View, moment, of_step, real
from tracepaper.strategies.types import ACTING_ONLY

_BEGUN: Final = f"r.run_key << {SEQUENCE_BITS}"


def _signed(of: str) -> str:
    """Return what fill *of* moved the position by; a spot buy pays its fee in base."""
    return f"CASE {of}.side WHEN 'BUY' THEN {of}.quantity - {of}.fee_base ELSE -{of}.quantity END"


def _before(of: str) -> str:
    """Return the position that fill *of* found."""
    return (
        f"(coalesce((SELECT h.quantity FROM holdings h WHERE h.step < {of}.step "
        f"AND h.step >= {_BEGUN} AND h.book = 0 AND h.instrument = {of}.instrument "
        "ORDER BY h.step DESC LIMIT 1), 0) "
        f"+ coalesce((SELECT sum({_signed('b')}) FROM fills b WHERE b.step = {of}.step "
        f"AND b.ordinal < {of}.ordinal AND b.instrument = {of}.instrument), 0))"
    )


def _after(of: str) -> str:
    return f"({_before(of)} + {_signed(of)})"


def _turned(of: str) -> str:
    """Return whether fill *of* left the other side than it found."""
    return (
        f"(min({_before(of)}, {_after(of)}) <= -i.quantity_step "
        f"AND max({_before(of)}, {_after(of)}) >= i.quantity_step)"
    )


_CLOSES: Final = (
    f"abs({_before('f')}) >= i.quantity_step "
    f"AND (abs({_after('f')}) < i.quantity_step OR {_turned('f')})"
)


def _opening(column: str) -> str:
    """Return *column* of the fill that opened the trade which fill ``f`` closed."""
    return (
        f"(SELECT g.{column} FROM fills g WHERE g.step BETWEEN {_BEGUN} AND f.step "
        "AND g.instrument = f.instrument AND (g.step < f.step OR g.ordinal < f.ordinal) "
        f"AND (abs({_before('g')}) < i.quantity_step OR {_turned('g')}) "
        "ORDER BY g.step DESC, g.ordinal DESC LIMIT 1)"
    )


_SIDE: Final = f"CASE WHEN {_before('f')} > 0 THEN 1 ELSE -1 END"
_ENTERS: Final = "CASE x.side WHEN 'BUY' THEN 1 ELSE -1 END"
# A fill that adds is counted as far as something is held after it, one that closes as far as
# something was held before: of a fill that turns, each trade has its own part.
_PART: Final = (
    f"CASE WHEN x.step = e.step AND x.ordinal = e.ordinal "
    f"THEN min(1.0, abs({_after('x')}) * 1.0 / abs({_signed('x')})) "
    f"WHEN x.step = f.step AND x.ordinal = f.ordinal "
    f"THEN min(1.0, abs({_before('x')}) * 1.0 / abs({_signed('x')})) ELSE 1.0 END"
)


def _over(aggregate: str, condition: str = "1") -> str:
    """Return *aggregate* over the fills ``x`` of the trade that satisfy *condition*."""
    return (
        f"(SELECT {aggregate} FROM fills x WHERE x.step BETWEEN e.step AND f.step "
        "AND x.instrument = f.instrument AND (x.step > e.step OR x.ordinal >= e.ordinal) "
        f"AND (x.step < f.step OR x.ordinal <= f.ordinal) AND {condition})"
    )


def _mean_price(side: str) -> str:
    """Return the mean price of the fills that go with the trade's side, or against it."""
    weight = f"abs({_signed('x')}) * {_PART}"
    mean = _over(f"sum(x.price * {weight}) / sum({weight})", f"{_ENTERS} = {side}")
    return real(mean, PRICE)


def _worth(price: str) -> str:
    """Return what the trade's fills moved in money at *price*, positive where it came in."""
    scale = f"CAST('1e' || ({PRICE} + {QUANTITY}) AS REAL)"
    return _over(f"-sum({_ENTERS} * x.{price} * 1.0 * x.quantity * {_PART})") + f" / {scale}"


_FEES: Final = real(_over(f"sum(x.fee * {_PART})"), MONEY)
_GROSS: Final = _worth("reference_price")
_COSTS: Final = f"({_FEES} + {_GROSS} - {_worth('price')})"
_FUNDING: Final = (
    "(SELECT coalesce(-sum(l.amount), 0) FROM ledger l WHERE l.step BETWEEN e.step AND f.step "
    f"AND l.kind = 'funding' AND l.instrument = f.instrument) / CAST('1e' || {MONEY} AS REAL)"
)
_BARS: Final = (
    f"CASE WHEN instr(r.warnings, '{ACTING_ONLY}') = 0 THEN (SELECT count(*) FROM steps s "
    "WHERE s.step >= e.step AND s.step < f.step AND s.instrument = f.instrument "
    "AND s.open_time_ms IS NOT NULL AND s.shape & 1) END"
)

V_TRADES: Final = View(
    "v_trades",
    "a closed round trip of the run's account; what was taken over from another run is none",
    (
        *of_step("f"),
        Shown(
            "ordinal", "f.ordinal", "place among the fills of the step that closed it", "INTEGER"
        ),
        INSTRUMENT,
        Shown("side", f"CASE {_SIDE} WHEN 1 THEN 'LONG' ELSE 'SHORT' END", "`LONG` or `SHORT`"),
        Shown(
            "quantity",
            real(
                _over(
                    f"max(abs(CASE WHEN x.step = f.step AND x.ordinal = f.ordinal THEN 0 "
                    f"ELSE {_after('x')} END))"
                ),
                QUANTITY,
            ),
            "the most that it held, not negative",
            "REAL",
        ),
        *moment("opened_ms", "e.filled_ms", "market time of the fill that opened it"),
        *moment("closed_ms", "f.filled_ms", "market time of the fill that closed it"),
        Shown("entry_price", _mean_price(_SIDE), "mean price of the fills that entered", "REAL"),
        Shown("exit_price", _mean_price(f"-({_SIDE})"), "mean price of those that left", "REAL"),
        Shown(
            "gross",
            _GROSS,
            "profit at the reference prices of its fills, before costs and funding; a fee that was "
            "paid in base is in it",
            "REAL",
        ),
        Shown(
            "costs",
            _COSTS,
            "fees, and what its fills were worse than their reference prices",
            "REAL",
        ),
        Shown("fees", _FEES, "the fees among them", "REAL"),
        Shown("funding", _FUNDING, "funding while it was held, positive where paid", "REAL"),
        Shown("net", f"{_GROSS} - {_COSTS} - {_FUNDING}", "gross less costs and funding", "REAL"),
        Shown(
            "bars_held",
            _BARS,
            "closes at which it was held; null where the log kept only steps that acted",
            "INTEGER",
        ),
        Shown("entry_reason", "e.reason", "why it was opened"),
        Shown("exit_reason", "f.reason", "why it was closed"),
        Shown("entry_sequence", "e.birth", "where the order that opened it was born", "INTEGER"),
        Shown("exit_sequence", "f.birth", "where the order that closed it was born", "INTEGER"),
    ),
    "FROM runs r JOIN fills f ON f.run_key = r.run_key "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = f.instrument "
    f"JOIN fills e ON e.step = {_opening('step')} AND e.ordinal = {_opening('ordinal')} "
    f"WHERE {_CLOSES}",
)
