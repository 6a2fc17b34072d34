"""The rows that a prune keeps of the steps it dropped, booked once more by the broker.

These steps cannot be derived: their bars are gone. So their fills are posted in the broker's own
lines, from where the run began. Orders, ledger, holdings and closed trades must follow from them,
and they must lead to the state from which the kept steps are derived. The amount of a settlement is
taken from the record, because the mark at which it fell due is dropped.

docs/storage.md, S17, has the rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from operator import add, attrgetter
from typing import Any, Final

from msgspec.structs import replace

from tracepaper.daemon.broker.account import AccountState, Holdings
from tracepaper.daemon.broker.line import Line, signed_quantity
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.restart import Restart
from tracepaper.daemon.engine.state import decode_state, resting_orders
from tracepaper.replay.checks.compare import Unlike
from tracepaper.storage.database.chunks import (
    WITHIN,
    PrunePoint,
    StoredRun,
    interned,
    run_span,
    select,
)
from tracepaper.storage.database.reader import OPEN_STATUSES, Reader
from tracepaper.storage.database.trade_rows import trades_until
from tracepaper.storage.record.columns import place
from tracepaper.storage.record.decode import FILL, HOLDING, StepDecoder
from tracepaper.storage.record.rows import gather
from tracepaper.strategies.errors import DataInvalid, InvariantBroken
from tracepaper.strategies.types.decisions import (
    Fill,
    FillModel,
    LedgerEntry,
    LedgerKind,
    Order,
    OrderKind,
    OrderStatus,
)
from tracepaper.strategies.types.market import InstrumentChange

Row = Sequence[Any]

_QUERIES: Final = {
    "events": select("events", f"{WITHIN} AND kind = 'instrument_change'"),
    **{table: select(table, WITHIN) for table in ("fills", "orders", "ledger", "holdings")},
}
_TRADES: Final = select("trades", WITHIN)
_ORDINAL: Final = place("orders", "ordinal")  # the same in ``ledger``
_HELD: Final = gather("holdings", "quantity", "entry_notional", "realized_pnl", "fees_paid")
_TOTALS: Final = gather(
    "holdings", "cash", "account_realized_pnl", "account_fees_paid", "account_funding_paid"
)
_OF_HOLDING: Final = attrgetter("quantity", "entry_notional", "realized_pnl", "fees_paid")
_OF_ACCOUNT: Final = attrgetter("cash", "realized_pnl", "fees_paid", "funding_paid")
_TRADED: Final = attrgetter("instrument", "side", "position_side")
_QUANTITIES: Final = attrgetter("instrument", "side", "position_side", "quantity", "filled")
_PART_OF: Final = attrgetter(
    *("order_id", "instrument", "position_side", "side", "model", "liquidity", "price"),
    "filled_ms",
)
_AMOUNTS: Final = attrgetter("quantity", "notional", "fee", "fee_base")


def first_contradiction(
    reader: Reader, stored: StoredRun, engine: Engine, pruned: PrunePoint, *, resets: bool
) -> Unlike | None:
    """Return the first kept row before the end of a prune that does not follow, or None.

    *engine* is a new one of the run. With *resets* the owners' cash is not compared, because it
    was distributed at prices that are gone.
    """
    kept = _KeptRows(reader, stored, engine, pruned, resets=resets)
    try:
        return next(kept.contradictions(), None)
    except (InvariantBroken, DataInvalid, LookupError) as error:
        return f"fills (step {kept.sequence})", error, "what the broker can book"


class _KeptRows:
    """Posts the fills of one pruned run, and compares what is stored beside them."""

    def __init__(
        self,
        reader: Reader,
        stored: StoredRun,
        engine: Engine,
        pruned: PrunePoint,
        *,
        resets: bool,
    ) -> None:
        self._reader, self._stored, self._resets = reader, stored, resets
        self._until = pruned.until_sequence
        self._decoder = StepDecoder(stored.run, interned(reader.connection, stored.run_key))
        self._instruments = [item.id for item in stored.run.instruments]
        self._is_paid_in_full = any(item.category.is_cash for item in stored.run.instruments)
        self._end = decode_state(pruned.state)
        self._resting: dict[str, Order] = {}
        self._filled: Counter[tuple[str, str]] = Counter()  # by account and order
        self._first = 0  # the first step whose fills are posted
        self.sequence = 0  # the step that is compared
        if stored.run.parent_run_id is not None:
            opened = decode_state(pruned.kept_start().opened)
            Restart(engine).restore(opened, next_sequence=0, taken_over=True)
            self._resting = {order.order_id: order for order in resting_orders(opened)}
            self._filled.update({("", key): order.filled for key, order in self._resting.items()})
            self._first = 1  # the state is that after the first step
        self._broker, self._account = engine.broker, engine.broker.account
        self._others, self._owners = engine.broker.others, engine.broker.account.owners
        accounts: dict[str, Holdings] = {"": self._account, **self._others}
        self._accounts = accounts  # the run's has no name
        self._books = {name: book for book, name in enumerate(accounts)}
        self._opening = {name: _opening_cash(_totals(of)) for name, of in accounts.items()}
        self._entries: list[tuple[int, LedgerEntry]] = []  # as stored, with their steps
        self._cash = 0  # the sum of the ledger
        self._last: dict[str, Sequence[int]] = {}  # the newest totals stored of each account
        self._unseen: dict[tuple[str, str], int] = {}  # steps with fills that no row shows yet

    def contradictions(self) -> Iterator[Unlike]:
        """Yield what does not follow; only the first is sure, since others may follow from it."""
        for sequence, rows in self._steps():
            self.sequence = sequence
            for row in rows["events"]:
                change = self._decoder.event(row)
                assert isinstance(change, InstrumentChange)
                self._broker.change(change.instrument)
            fills = [(row[FILL.shadow] or "", self._decoder.fill(row)) for row in rows["fills"]]
            for name, fill in fills if self.sequence >= self._first else ():
                yield from self._post(name, fill)
            yield from self._of_keys(rows)
            yield from self._of_orders(fills, [*map(self._decoder.order, rows["orders"])])
            yield from self._of_parts(fills)
            yield from self._of_ledger(rows["ledger"])
            for row in rows["holdings"]:
                yield from self._of_holding(row)
        yield from self._of_end()

    def _steps(self) -> Iterator[tuple[int, Mapping[str, list[Row]]]]:
        """Yield the kept rows of each step, by table."""
        steps: dict[int, dict[str, list[Row]]] = {}
        for table, query in _QUERIES.items():
            span = run_span(self._stored.run_key, self._until)
            for row in self._reader.connection.execute(query, span):
                steps.setdefault(row[FILL.sequence], {key: [] for key in _QUERIES})[table].append(
                    row
                )
        for sequence in sorted(steps):
            yield sequence, steps[sequence]

    def _of_keys(self, rows: Mapping[str, list[Row]]) -> Iterator[Unlike]:
        """Check the numbers of books, and those of the rows within the step."""
        for table in ("orders", "ledger"):
            ordinals = [row[_ORDINAL] for row in rows[table]]
            yield from self._unlike(f"{table}.ordinal", ordinals, [*range(len(ordinals))])
        counts: Counter[int] = Counter()
        for row in rows["fills"]:
            book = self._books[row[FILL.shadow] or ""]
            due = book, counts[book]
            yield from self._unlike("fills.ordinal", (row[FILL.book], row[FILL.ordinal]), due)
            counts[book] += 1

    # ------------------------------------------------------------ fills and orders

    def _post(self, name: str, fill: Fill) -> Iterator[Unlike]:
        """Book *fill* of the account *name*, and compare it with what an executor makes of it."""
        if name in self._broker.sides:
            return  # the account's fill, shown once more: see ``_of_parts``
        line = _line(self._accounts[name], fill)
        order = Order(
            fill.order_id, fill.instrument, fill.side, fill.quantity,
            self._filled[name, fill.order_id], OrderStatus.FILLED, fill.reason, 0, 0,
            position_side=fill.position_side,
        )  # fmt: skip
        due = line.executor.part(order, fill, fill.quantity)
        if fill.model is FillModel.CROSSED:
            due = replace(due, fee=0, fee_base=0)
        elif name in self._owners:  # their fees are parts of the account's: see ``_of_parts``
            due = replace(due, fee=fill.fee, fee_base=fill.fee_base)
        yield from self._unlike("fills", fill, replace(due, while_down=fill.while_down))
        self._filled[name, fill.order_id] += fill.quantity
        line.post(fill)
        if fill.model is not FillModel.LIQUIDATION:  # another symbol's bar may liquidate it
            self._unseen[name, fill.instrument] = self.sequence

    def _of_orders(
        self, fills: Iterable[tuple[str, Fill]], orders: Sequence[Order]
    ) -> Iterator[Unlike]:
        """Compare the changed *orders* of a step with its *fills*, and with what they were."""
        for order in orders:
            before = self._resting.pop(order.order_id, order)
            yield from self._unlike("orders", _TRADED(order), _TRADED(before))
            filled = self._filled["", order.order_id]
            yield from self._unlike("orders.filled", order.filled, filled)
            if order.status is OrderStatus.REJECTED:
                continue  # it may have been rejected for what it asked
            is_filled = order.status is OrderStatus.FILLED
            yield from self._unlike("orders.status", is_filled, order.filled == order.quantity)
            due_kind = OrderKind.of(order.price, order.trigger)
            yield from self._unlike("orders.kind", order.kind, due_kind)
            if order.status in OPEN_STATUSES:
                self._resting[order.order_id] = order
        traded = {order.order_id: _TRADED(order) for order in orders}
        for name, fill in fills:
            if not name:
                due_order = traded.get(fill.order_id)
                yield from self._unlike("fills.order_id", _TRADED(fill), due_order)

    def _of_parts(self, fills: Sequence[tuple[str, Fill]]) -> Iterator[Unlike]:
        """Compare the fills of sides and owners with those of the account."""
        of_account = [fill for name, fill in fills if not name]
        for side in self._broker.sides:
            of_side = [fill for name, fill in fills if name == side]
            due = [fill for fill in of_account if fill.position_side == side]
            yield from self._unlike("fills", of_side, due)
        if not self._owners:
            return
        of_owners = [fill for name, fill in fills if name in self._owners]
        parts = [fill for fill in of_owners if fill.model is not FillModel.CROSSED]
        yield from self._unlike("fills", _sums(parts), _sums(of_account))
        crossed: Counter[tuple[str, str | None, int]] = Counter()
        for fill in of_owners:
            if fill.model is FillModel.CROSSED:
                crossed[fill.instrument, fill.position_side, fill.price] += signed_quantity(fill)
        yield from self._unlike("fills.quantity", {*crossed.values()} - {0}, set())

    # ------------------------------------------------------------ ledger and holdings

    def _of_ledger(self, rows: Iterable[Row]) -> Iterator[Unlike]:
        """Book the settlements among *rows*, and check that the balance is the sum."""
        for row in rows:
            entry = self._decoder.entry(row)
            self._entries.append((self.sequence, replace(entry, balance=0)))
            self._cash += entry.amount
            yield from self._unlike("ledger.balance", entry.balance, self._cash)
            if entry.kind is LedgerKind.FUNDING:
                _line(self._account, entry).post_funding(-entry.amount)

    def _of_holding(self, row: Row) -> Iterator[Unlike]:
        """Compare a row of ``holdings`` with the lines of its account."""
        name = row[HOLDING.shadow] or ""
        holder = self._accounts[name]
        yield from self._unlike("holdings.book", row[HOLDING.book], self._books[name])
        if row[HOLDING.instrument] is not None and row[HOLDING.quantity] is not None:
            key = self._instruments[row[HOLDING.instrument]]
            self._unseen.pop((name, key), None)
            paid, of_long = row[HOLDING.funding_paid], row[HOLDING.long_funding] or 0
            if name in self._owners or name in self._broker.shadows:
                lines = holder.lines_of(key)
                for line, due in zip(lines, (of_long, paid - of_long)[-len(lines) :], strict=True):
                    line.post_funding(due - line.holding.funding_paid)
            position = holder.position(key)
            yield from self._unlike("holdings", _HELD(row), _OF_HOLDING(position))
            funding = position.funding_paid, position.long_funding
            yield from self._unlike("holdings.funding_paid", (paid, of_long), funding)
            if name == next(reversed(self._owners), None):  # the last owner's row of the step
                yield from self._of_shares(self._account.lines_of(key))
        totals = self._last[name] = _TOTALS(row)
        if not name:
            yield from self._unlike("holdings.cash", totals[0], self._cash)
        if len(self._instruments) == 1:
            yield from self._of_totals(name)
        elif not (self._is_paid_in_full or (self._resets and name)):
            # The bars of a close are matched before the first is decided, so that the totals of
            # its first steps contain fills of later ones.
            yield from self._unlike("holdings.cash", _opening_cash(totals), self._opening[name])

    def _of_totals(self, name: str) -> Iterator[Unlike]:
        """Compare the newest stored totals of the account *name* with those of its lines."""
        skipped = 1 if self._resets and name else 0  # the cash
        due = _totals(self._accounts[name])[skipped:]
        yield from self._unlike("holdings", self._last[name][skipped:], due)

    def _of_shares(self, lines: Iterable[Line]) -> Iterator[Unlike]:
        """Check that the funding of the shares adds up to that of their position."""
        for line in lines:
            funding = sum(share.holding.funding_paid for share in line.shares)
            yield from self._unlike("holdings.funding_paid", funding, line.holding.funding_paid)

    # ------------------------------------------------------------ the end of the prune

    def _of_end(self) -> Iterator[Unlike]:
        """Compare ledger, accounts, resting orders and trades at the end of the pruned steps."""
        posted = [replace(entry, balance=0) for entry in self._account.report(None)[-1]]
        entries = [entry for _, entry in self._entries if entry.kind is not LedgerKind.FUNDING]
        movements = [entry for entry in posted if entry.kind is not LedgerKind.FUNDING]
        for entry, due in zip_longest(entries, movements):
            yield from self._unlike("ledger", entry, due)
        yield from self._unlike("holdings", self._unseen, {})
        for name in self._last:
            yield from self._of_totals(name)
        account, others = self._broker.state()
        for name, kept in {"": self._end.account, **self._end.shadows}.items():
            if self._owners.keys() & name.split("/")[1:]:
                continue  # an owner in a shadow account: no row holds its fills
            posted_state = others[name] if name else account
            for key, holding in kept.holdings.items():
                due_holding = _OF_HOLDING(posted_state.holdings[key])
                yield from self._unlike("prunes.state", _OF_HOLDING(holding), due_holding)
            if not (self._resets and name):
                cash = _without_funding(kept), _without_funding(posted_state)
                yield from self._unlike("prunes.state", *cash)
        resting = {order.order_id: _QUANTITIES(order) for order in resting_orders(self._end)}
        due_orders = {key: _QUANTITIES(order) for key, order in self._resting.items()}
        yield from self._unlike("prunes.state", resting, due_orders)
        connection, run_key = self._reader.connection, self._stored.run_key
        trades = connection.execute(_TRADES, run_span(run_key, self._until))
        closed = trades_until(connection, run_key, self._stored.run, self._until)[1]
        for row, due_row in zip_longest(trades, closed):
            yield from self._unlike("trades", row, due_row)

    def _unlike(self, column: str, stored: object, due: object) -> Iterator[Unlike]:
        if stored != due:
            yield f"{column} (step {self.sequence})", stored, due


def _line(holder: Holdings, of: Fill | LedgerEntry) -> Line:
    """Return the line of *holder* that a fill or an entry is of."""
    assert of.instrument is not None
    lines = {line.book.side: line for line in holder.lines_of(of.instrument)}
    return lines[of.position_side]


def _totals(holder: Holdings) -> tuple[int, ...]:
    """Return cash, realized profit, fees and funding, as a row of ``holdings`` stores them."""
    return _OF_ACCOUNT(holder.subtotal())


def _opening_cash(totals: Sequence[int]) -> int:
    """Return the cash before all results of an account whose positions bind no cash."""
    cash, realized, fees, funding = totals
    return cash - realized + fees + funding


def _without_funding(state: AccountState) -> int:
    """Return the cash of *state* before funding, which rows of other accounts may show later."""
    return state.cash + sum(holding.funding_paid for holding in state.holdings.values())


def _sums(fills: Iterable[Fill]) -> dict[object, tuple[int, ...]]:
    """Return quantity, notional and fees of *fills*, added up by what all parts have in common."""
    sums: dict[object, tuple[int, ...]] = {}
    for fill in fills:
        key, amounts = _PART_OF(fill), _AMOUNTS(fill)
        sums[key] = tuple(map(add, sums.get(key, (0,) * len(amounts)), amounts))
    return sums
