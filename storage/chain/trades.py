"""Consistency of a run's fills, orders, positions and ledger.

A prune keeps all four but drops the steps from which they were computed. So ``audit verify``
compares them with each other in pruned runs: it finds a row that was removed or changed in one of
them even if every digest was computed again. A run that was not pruned is computed again by
``verify``. In every run the columns of each order and each fill are checked against each other.

docs/storage.md, S10, and docs/money.md, M24, have the rules.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from tracepaper.storage.chain.verify import ChainProblem
from tracepaper.storage.database.chunks import select
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.trade_rows import trades_until
from tracepaper.strategies.corporate_actions import (
    ShareTerms,
    entitlement,
    entitlement_parts,
)
from tracepaper.strategies.holding import Holding
from tracepaper.strategies.types.decisions import (
    FillModel,
    LedgerKind,
    Liquidity,
    OrderKind,
    PositionSide,
)
from tracepaper.strategies.types.market import Category, Side
from tracepaper.strategies.units import (
    BASE_FEES,
    MONEY_DECIMALS,
    RATE_DECIMALS,
    RATE_SCALE,
    Notional,
    divide_half_even,
    paid_for,
    scaled,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tracepaper.strategies.types.market import CorporateAction, Instrument

# In hedge mode the account's fills are those of its sides: see _PARTS.
_FILLS: Final = (
    "SELECT sequence, coalesce(shadow || '/' || position_side, shadow, position_side), instrument, "
    "side, quantity, notional, fee, "
    "fee_base, model, order_id, book = 0 FROM fills WHERE run_key = ? "
    "AND (book = 0 OR shadow NOT IN ('LONG', 'SHORT')) ORDER BY sequence, book, ordinal"
)
_HOLDINGS: Final = (
    "SELECT sequence, shadow, instrument, quantity, entry_notional, realized_pnl, fees_paid "
    "FROM holdings WHERE run_key = ? AND instrument IS NOT NULL AND quantity IS NOT NULL "
    "ORDER BY sequence, book DESC"
)
_MOVED: Final = (
    "SELECT sequence, kind, instrument, amount, order_id, position_side FROM ledger "
    "WHERE run_key = ? "
    "AND kind IN ('realized', 'fee', 'liquidation_fee', 'bought', 'sold', 'dividend', "
    "'cash_in_lieu') ORDER BY sequence, ordinal"
)
_BALANCES: Final = (
    "SELECT h.sequence, h.shadow, h.cash + h.account_fees_paid + h.account_funding_paid "
    "- h.account_realized_pnl, i.category, h.instrument, h.realized_pnl, h.fees_paid, "
    "h.funding_paid, h.account_realized_pnl, h.account_fees_paid, "
    "h.account_funding_paid FROM holdings h LEFT JOIN instruments i ON i.run_key = ?1 "
    "AND i.instrument = h.instrument WHERE h.run_key = ?1 AND h.shadow IS NOT NULL "
    "ORDER BY h.sequence, h.book"
)
_FUNDING: Final = (
    "SELECT sequence FROM (SELECT sequence, instrument, sum(paid) AS paid FROM "
    "(SELECT sequence, instrument, "
    "funding_paid - lag(funding_paid, 1, {}) OVER (PARTITION BY shadow, instrument "
    "ORDER BY sequence) AS paid "
    "FROM holdings WHERE run_key = ?1 AND instrument IS NOT NULL AND shadow IN ({}) "
    "UNION ALL SELECT sequence, instrument, amount FROM ledger "
    "WHERE run_key = ?1 AND kind = 'funding') GROUP BY 1, 2) WHERE paid <> 0 ORDER BY 1 LIMIT 1"
)
"""The first step at which the funding of the strategies is not what the account paid."""
_ORDERED: Final = (
    "SELECT order_id, max(sequence), filled FROM orders WHERE run_key = ? GROUP BY order_id"
)
_SUMS: Final = (
    "SELECT order_id, max(sequence), sum(quantity) FROM fills WHERE run_key = ? AND book = 0 "
    "GROUP BY order_id"
)


_ORDER: Final = "SELECT sequence FROM orders WHERE run_key = ? AND status <> 'REJECTED' AND "
_PRICES_OF_KINDS: Final = ", ".join(
    f"('{kind}', {kind.has_price:d}, {kind.has_trigger:d})" for kind in OrderKind
)
_CONTRADICTIONS: Final = (
    (
        _ORDER + f"(coalesce(kind, 'MARKET'), price IS NOT NULL, trigger IS NOT NULL) NOT IN "
        f"(VALUES {_PRICES_OF_KINDS}) ORDER BY sequence LIMIT 1",
        "the kind of an order does not match its prices",
        "orders",
    ),
    (
        _ORDER + "(status = 'FILLED') <> (filled = quantity) ORDER BY sequence LIMIT 1",
        "the status of an order does not match its filled quantity",
        "orders",
    ),
    (
        (
            "SELECT sequence FROM fills f WHERE run_key = ? AND book = 0 AND NOT EXISTS "
            "(SELECT 1 FROM orders o WHERE o.run_key = f.run_key AND o.sequence = f.sequence "
            "AND o.order_id = f.order_id AND o.side = f.side AND o.instrument = f.instrument "
            "AND o.position_side IS f.position_side) ORDER BY sequence LIMIT 1"
        ),
        "a fill has no order with its side and instrument",
        "fills",
    ),
)
"""Contradictions within a step: the query that finds one, its description and its table."""
_CLOSED: Final = select("trades", "run_key = ?")
_PRICED: Final = (
    "SELECT sequence, instrument, book > 0, side, quantity, price, notional, fee, fee_base, "
    "liquidity FROM fills WHERE run_key = ? ORDER BY book > 0, sequence"
)
_SUMMED: Final = (
    "SELECT sequence, order_id, {} AS position_side, side, model, liquidity, price, "
    "sum(quantity), sum(notional), sum(fee), sum(fee_base), max(filled_ms) FROM fills "
    "WHERE run_key = ?1 AND {} GROUP BY 1, 2, 3, 4, 5, 6, 7"
)
_OF_ACCOUNT: Final = _SUMMED.format("position_side", "book = 0")
# Contradictions between fills of the account and its parts: a query and its description.
_PARTS: Final = (
    "SELECT sequence FROM ({} EXCEPT {}) ORDER BY sequence LIMIT 1",
    "the parts of a fill do not add up to it",
)
_CROSSED: Final = (
    (
        "SELECT sequence FROM fills WHERE run_key = ? AND book > 0 AND model = 'crossed' "
        "GROUP BY sequence, instrument, position_side HAVING sum(fee) <> 0 OR sum(CASE side "
        "WHEN 'BUY' THEN quantity ELSE -quantity END) <> 0 OR min(price) <> max(price) "
        "ORDER BY sequence LIMIT 1"
    ),
    "the fills that strategies crossed with each other do not add up to zero",
)


class _SymbolFees(Struct, frozen=True):
    """``[execution.fees]`` of one symbol."""

    taker: Decimal | None = None
    maker: Decimal | None = None


class _Execution(Struct, frozen=True):
    """The fees in ``[execution]`` of a stored configuration."""

    taker_fee: Decimal | None = None
    maker_fee: Decimal | None = None
    fee_per_share: Decimal | None = None
    fee_minimum: Decimal = Decimal(0)
    fees: dict[str, _SymbolFees] = {}


class _Account(Struct, frozen=True):
    position_mode: str = "one_way"
    margin: str = "none"
    cash: Decimal = Decimal(0)


class _RunTerms(Struct, frozen=True):
    execution: _Execution = _Execution()
    account: _Account = _Account()
    strategies: dict[str, Any] = {}

    @property
    def is_hedged(self) -> bool:
        """Whether the account has a long and a short position of each symbol."""
        return self.account.position_mode != "one_way"

    @property
    def cash(self) -> Decimal:
        """The initial cash of the account, in units of money."""
        return self.account.cash.scaleb(MONEY_DECIMALS)

    @property
    def shares(self) -> dict[str, Decimal]:
        """The share of each strategy."""
        shares = {name: of for name, of in self.strategies.items() if isinstance(of, dict)}
        return {name: Decimal(of["share"]) for name, of in shares.items()}

    def initial_cash(self) -> dict[str, Decimal]:
        """Return the initial cash of each strategy, in units of money, not rounded."""
        return {name: self.cash * share for name, share in self.shares.items()}

    def parts_queries(self) -> Iterator[tuple[str, str]]:
        """Yield queries for fills of strategies, or of sides, that contradict the account's.

        Each comes with a description of the contradiction.
        """
        parted = []
        if self.is_hedged:
            parted.append(("shadow", _SIDE_NAMES))
        if shares := self.shares:
            parted.append(("position_side", tuple(shares)))
        for side, names in parted:
            of_names = ", ".join(f"'{name}'" for name in names)
            parts = _SUMMED.format(side, f"shadow IN ({of_names}) AND model <> 'crossed'")
            query, statement = _PARTS
            yield query.format(_OF_ACCOUNT, parts), statement
            yield query.format(parts, _OF_ACCOUNT), statement
        if shares:
            yield _CROSSED


class _StoredFill(NamedTuple):
    """A stored fill."""

    step: int
    shadow: str | None  # None is the run's account, in one-way mode
    instrument: int
    side: str
    quantity: int
    notional: int
    fee: int
    fee_base: int
    model: str
    order_id: str
    is_own: bool  # whether it belongs to the run's account
    is_cash: bool  # whether it is paid in full


class _StoredAction(NamedTuple):
    """A stored split or dividend."""

    step: int
    instrument: int
    action: CorporateAction
    terms: ShareTerms


class _StoredHolding(NamedTuple):
    """The columns of a row of ``holdings`` that are computed from fills."""

    step: int
    shadow: str | None
    instrument: int
    held: tuple[int, ...]  # as ``_held`` returns them


Entry = tuple[str, int, int, str | None, str | None]
"""Kind, instrument, amount, order and side of a movement of cash."""


def _held(holding: Holding) -> tuple[int, int, int, int]:
    """Return the columns of ``holdings`` that are computed from fills."""
    return holding.quantity, holding.entry_notional, holding.realized_pnl, holding.fees_paid


def _booked(holding: Holding, fill: _StoredFill) -> list[Entry]:
    """Apply *fill* to *holding*; return its movements of cash."""
    movements = holding.fill(
        fill.quantity if fill.side == Side.BUY.value else -fill.quantity,
        fill.notional,
        fill.fee,
        fill.fee_base,
        is_cash=fill.is_cash,
        is_liquidation=fill.model == _LIQUIDATION,
    )
    return [
        (kind.value, fill.instrument, amount, fill.order_id, fill.shadow)
        for kind, amount in movements
        if amount
    ]


def check_terms(connection: sqlite3.Connection, run_id: str) -> ChainProblem | None:
    """Return the first step of *run_id* at which an order or a fill contradicts itself.

    An order has the prices of its kind, and is FILLED if its whole quantity is filled; rejected
    orders are not checked. A fill has an order of its side; its notional is its price times its
    quantity, and its fee is that of the run's configuration.
    """
    stored = Reader(connection).stored_run(run_id)
    run_key = stored.run_key
    for query, statement, table in _CONTRADICTIONS:
        for (step,) in connection.execute(query, (run_key,)):
            return _contradicts(step, statement, table)
    configured = msgspec.json.decode(stored.run.config, type=_RunTerms)
    for query, statement in configured.parts_queries():
        for (step,) in connection.execute(query, (run_key,)):
            return _contradicts(step, statement, "fills")
    terms = [_Terms.of(configured.execution, item) for item in stored.run.instruments]
    for step, place, is_shadow, *fill in connection.execute(_PRICED, (run_key,)):
        is_part = bool(configured.strategies) and is_shadow
        if statement := terms[place].contradiction(*fill, is_part=is_part):
            return _contradicts(step, statement, "fills")
    return None


class _Terms(NamedTuple):
    """Notional and fees of the fills of one instrument."""

    notional: Notional
    quantity_decimals: int
    pays_in_base: bool  # whether the fee of a buy is paid in base currency
    rates: dict[str, int]  # by liquidity, in 10⁻¹⁰ of the notional
    per_share: int  # in 10⁻¹⁰
    minimum: int  # least fee of the first fill of an order

    @classmethod
    def of(cls, execution: _Execution, instrument: Instrument) -> _Terms:
        """Return the terms of *instrument* under *execution*."""
        category, of_symbol = (
            instrument.category,
            execution.fees.get(instrument.symbol, _SymbolFees()),
        )
        usual = BASE_FEES[category] if execution.fee_per_share is None else ("0", "0")
        taker, maker = (
            _rate(next(rate for rate in rates if rate is not None))  # the first that is set
            for rates in (
                (of_symbol.taker, execution.taker_fee, Decimal(usual[0])),
                (of_symbol.maker, execution.maker_fee, Decimal(usual[1])),
            )
        )
        return cls(
            Notional.of(instrument),
            instrument.quantity_decimals,
            category is Category.SPOT,
            {Liquidity.TAKER.value: taker, Liquidity.MAKER.value: maker},
            _rate(execution.fee_per_share or Decimal(0)),
            scaled(execution.fee_minimum, MONEY_DECIMALS, name="a fee"),
        )

    def contradiction(
        self,
        side: str,
        quantity: int,
        price: int,
        notional: int,
        fee: int,
        fee_base: int,
        liquidity: str,
        *,
        is_part: bool = False,
    ) -> str:
        """Return a description of how the columns of a fill contradict each other, or ""."""
        if notional != self.notional(price, quantity):
            return "the notional of a fill is not its price times its quantity"
        if is_part:
            return ""  # _PARTS checks that the fees of all parts add up
        rate = self.rates[liquidity]
        if self.pays_in_base and side == Side.BUY.value:
            due = {(0, divide_half_even(quantity * rate, RATE_SCALE))}
        else:
            of_shares = paid_for(quantity, 10**self.quantity_decimals, self.per_share)
            usual = divide_half_even(notional * rate, RATE_SCALE) + of_shares
            # The minimum applies once per order, so only some of its fills may have it.
            due = {(usual, 0), (max(usual, self.minimum) if self.minimum else usual, 0)}
        if (fee, fee_base) not in due:
            return "the fee of a fill is not the configured one"
        return ""


def _rate(amount: Decimal) -> int:
    return scaled(amount, RATE_DECIMALS, name="a fee")


def _contradicts(at: int, statement: str, table: str) -> ChainProblem:
    return ChainProblem(at, (table,), "changed", f"At step {at} {statement}: its row was changed.")


def check_trades(connection: sqlite3.Connection, run_id: str) -> ChainProblem | None:
    """Return the first step of *run_id* at which fills, orders, positions and ledger disagree.

    The positions of a run that took over an account begin with the first one stored.
    """
    reader = Reader(connection)
    stored = reader.stored_run(run_id)
    run_key, run, is_taken_over = stored.run_key, stored.run, stored.run.parent_run_id is not None
    terms = msgspec.json.decode(run.config, type=_RunTerms)
    is_cash = [item.category.is_cash for item in run.instruments]
    due: list[tuple[int, Entry]] = []
    places = {item.id: (place, item) for place, item in enumerate(run.instruments)}
    acted = [
        _StoredAction(step, place, action, ShareTerms.of(item))
        for step, action in reader.actions(run_id)
        for place, item in (places[action.instrument],)
    ]
    checks: tuple[Callable[[], Iterator[ChainProblem]], ...] = (
        lambda: _check_positions(
            connection, run_key, is_cash, acted, due, terms=terms, is_taken_over=is_taken_over
        ),
        lambda: _check_funding(connection, run_key, terms, is_taken_over=is_taken_over),
        lambda: _check_balances(connection, run_key, terms, is_taken_over=is_taken_over),
        lambda: _check_ledger(connection, run_key, due),
        lambda: _check_orders(connection, run_key, is_taken_over=is_taken_over),
    )
    return next((problem for check in checks for problem in check()), None)


def check_closed(connection: sqlite3.Connection, run_id: str) -> ChainProblem | None:
    """Return the first step of *run_id* whose closed trade differs from the one of its fills."""
    run = Reader(connection).stored_run(run_id)
    computed = trades_until(connection, run.run_key, run.run)[1]
    for stored, expected in zip_longest(connection.execute(_CLOSED, (run.run_key,)), computed):
        if stored != expected:
            at: Any = next(row[1] for row in (expected, stored) if row is not None)
            return _disagree(at, "trades", "fills", "trades", "fills")
    return None


def _check_positions(
    connection: sqlite3.Connection,
    run_key: int,
    is_cash: Sequence[bool],
    acted: list[_StoredAction],
    due: list[tuple[int, Entry]],
    *,
    terms: _RunTerms,
    is_taken_over: bool,
) -> Iterator[ChainProblem]:
    """Check every position against the fills before it; append their cash movements to *due*."""
    fills = [
        _StoredFill._make((*row, is_cash[row[2]])) for row in connection.execute(_FILLS, (run_key,))
    ]
    rows = connection.execute(_HOLDINGS, (run_key,))
    stored = [_StoredHolding(step, shadow, at, tuple(held)) for step, shadow, at, *held in rows]
    names = {*terms.shares, None, *(fill.shadow for fill in fills)}
    positions = [{name: Holding() for name in names} for _ in is_cash]
    if is_taken_over:  # its positions were opened in the run before
        for holding in stored:
            positions[holding.instrument].clear()
    shown: dict[tuple[str | None, int], int] = {}
    changes: list[_StoredFill | _StoredAction | _StoredHolding]
    changes = [*acted, *fills, *stored]  # the order within a step
    for change in sorted(changes, key=lambda change: change.step):
        at_place = positions[change.instrument]
        if isinstance(change, _StoredFill):
            position = at_place.get(change.shadow)
            entries = [_UNKNOWN] if position is None else _booked(position, change)
            due += [(change.step, entry) for entry in entries if change.is_own]
        elif isinstance(change, _StoredAction):
            due += [(change.step, entry) for entry in _entitled(change, at_place, terms)]
        else:
            books = _books_of(change.shadow, is_hedged=terms.is_hedged)
            if is_taken_over and len(books) == 1:  # else the share of each side is unknown
                at_place.setdefault(books[0], Holding(*change.held))
            shown |= {(book, change.instrument): change.step for book in books}
            of_books = [_held(at_place[book]) for book in books if book in at_place]
            if of_books and tuple(map(sum, zip(*of_books, strict=True))) != change.held:
                yield _disagree(change.step, "positions", "fills", "holdings", "fills")
                return
    for fill in fills:
        if fill.model != _LIQUIDATION and fill.step > shown.get((fill.shadow, fill.instrument), -1):
            yield _disagree(fill.step, "positions", "fills", "holdings", "fills")
            return


_SIDE_NAMES: Final = tuple(side.value for side in PositionSide)


def _entitled(
    change: _StoredAction, positions: Mapping[str | None, Holding], terms: _RunTerms
) -> list[Entry]:
    """Apply *change* to the *positions* of its instrument; return the account's movement."""
    action, owners = change.action, tuple(terms.shares)
    effects = {
        name: entitlement(action, holding.quantity, holding.entry_notional, change.terms)
        for name, holding in positions.items()
    }
    if owners and positions.keys() >= {None, *owners}:
        held = [(positions[name].quantity, positions[name].entry_notional) for name in owners]
        parts = entitlement_parts(action, effects[None], held, change.terms)
        effects |= dict(zip(owners, parts, strict=True))
    moved = {name: holding.act(action, effects[name]) for name, holding in positions.items()}
    kind, paid = moved.get(None, (LedgerKind.DIVIDEND, 0))
    return [(kind.value, change.instrument, paid, None, None)] if paid else []


def _books_of(shadow: str | None, *, is_hedged: bool) -> tuple[str | None, ...]:
    """Return the names of the books of the account *shadow*: itself, or its sides if hedged."""
    if not is_hedged or shadow in _SIDE_NAMES:
        return (shadow,)
    return tuple(side if shadow is None else f"{shadow}/{side}" for side in _SIDE_NAMES)


def _check_funding(
    connection: sqlite3.Connection, run_key: int, configured: _RunTerms, *, is_taken_over: bool
) -> Iterator[ChainProblem]:
    """Check that the funding of the strategies adds up to the account's, but for those reset."""
    names = ", ".join(f"'{name}'" for name in configured.shares)
    if not names or configured.strategies.get("reset", "never") != "never":
        return
    query = _FUNDING.format("funding_paid" if is_taken_over else "0", names)
    for (step,) in connection.execute(query, (run_key,)):
        yield _disagree(step, "funding of the strategies", "ledger", "holdings", "ledger")


def _check_balances(
    connection: sqlite3.Connection, run_key: int, configured: _RunTerms, *, is_taken_over: bool
) -> Iterator[ChainProblem]:
    """Check the cash of strategies and shadow accounts against share, fills and funding.

    With ``strategies.reset`` it depends on prices that a prune drops, so it is not checked.
    """
    if configured.strategies.get("reset", "never") != "never":
        return
    initial = {} if is_taken_over else configured.initial_cash()
    last: dict[str, tuple[int, tuple[int, ...]]] = {}
    sums: dict[str, dict[int, tuple[int, ...]]] = {}
    pays: set[str] = set()  # accounts that pay cash for positions, before the step that shows it
    for step, shadow, opened, kind, place, *rest in connection.execute(_BALANCES, (run_key,)):
        if shadow in _SIDE_NAMES:
            continue
        *results, realized, fees, funding = rest
        if place is not None and results[0] is not None:
            sums.setdefault(shadow, {})[place] = tuple(results)
            if Category(kind).is_cash:
                pays.add(shadow)
        last[shadow] = step, (realized, fees, funding)
        due = initial.setdefault(shadow, Decimal(opened) if is_taken_over else configured.cash)
        if shadow not in pays and abs(opened - due) >= 1:
            yield _disagree(step, f"cash of {shadow}", "fills and funding", "holdings")
            return
    if is_taken_over or configured.account.margin == "cross":  # some positions have no row
        return
    for shadow, rows in sums.items():
        step, added = last[shadow]
        if tuple(map(sum, zip(*rows.values(), strict=True))) != added:
            yield _disagree(step, f"results of {shadow}", "positions", "holdings")
            return


_LIQUIDATION: Final = FillModel.LIQUIDATION.value


_UNKNOWN: Final[Entry] = ("", 0, 0, "", "")
"""Stands for the movement of a fill before the first stored position of a taken-over account."""


def _check_ledger(
    connection: sqlite3.Connection, run_key: int, due: list[tuple[int, Entry]]
) -> Iterator[ChainProblem]:
    """Compare the ledger with *due*, the movements computed from the fills."""
    moved: list[tuple[int, Entry]] = [
        (step, (kind, place, amount, order_id, side))
        for step, kind, place, amount, order_id, side in connection.execute(_MOVED, (run_key,))
    ]
    if unknown := [at for at, (_, entry) in enumerate(due) if entry == _UNKNOWN]:
        del due[: unknown[-1] + 1]
        moved = moved[len(moved) - len(due) :]
    for stored, expected in zip_longest(moved, due):
        if stored is None or expected is None or stored[1] != expected[1]:
            step = min(movement[0] for movement in (stored, expected) if movement is not None)
            yield _disagree(step, "ledger", "fills", "ledger", "fills")
            return


def _check_orders(
    connection: sqlite3.Connection, run_key: int, *, is_taken_over: bool
) -> Iterator[ChainProblem]:
    """Compare the filled quantity of each order with the sum of its fills."""
    ordered = {row[0]: row[1:] for row in connection.execute(_ORDERED, (run_key,))}
    sums = {row[0]: row[1:] for row in connection.execute(_SUMS, (run_key,))}
    for order_id, (step, filled) in sorted(ordered.items(), key=lambda item: item[1][0]):
        if filled != sums.get(order_id, (0, 0))[1] and not is_taken_over:
            yield _disagree(step, f"order {order_id}", "fills", "orders", "fills")
            return
    for order_id, (step, _) in sums.items():
        if order_id not in ordered:
            yield _disagree(step, f"order {order_id}", "fills", "orders", "fills")
            return


def _disagree(at: int, first: str, second: str, *tables: str) -> ChainProblem:
    sentence = f"The {first} and the {second} disagree at step {at}: one of them was changed, "
    return ChainProblem(at, tables, "changed", sentence + "removed or added.")
