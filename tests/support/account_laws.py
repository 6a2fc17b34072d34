"""What holds of an account after every event: cash is what was earned, and sums are of the lines.

Each law is computed from lines and books, and not from the account's sums.
"""

from __future__ import annotations

from collections.abc import Iterable

from tracepaper.daemon.broker.account import Book, PaperAccount
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.engine.engine import Engine
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import Event


def check_account(account: PaperAccount, opened: int | None = None) -> None:
    """Assert the laws of *account*, which may have begun with *opened* in cash."""
    for book in account.books:
        _check_sums(book)
    positions = [line for book in account.books for line in book.lines.values()]
    for line in positions:
        _check_line(line)
    if opened is not None:
        assert account.cash == opened + sum(map(_earned, positions))
    assert account.cash == sum(book.cash for book in account.books)
    bound = sum(line.holding.margin for line in positions)
    assert account.ledger.available == account.cash - bound
    ids = [
        order.order_id
        for book in account.books
        for line in book.lines.values()
        for order in line.orders
    ]
    assert len(ids) == len(set(ids))


def _check_sums(book: Book) -> None:
    """Assert that the sums that *book* keeps are those of its lines."""
    held = [line.holding for line in book.lines.values()]
    total = book.subtotal()
    assert book.realized == total.realized_pnl == sum(holding.realized_pnl for holding in held)
    assert book.fees == total.fees_paid == sum(holding.fees_paid for holding in held)
    assert book.funding == total.funding_paid == sum(holding.funding_paid for holding in held)
    assert total.unrealized_pnl == sum(
        line.value(line.held) - line.holding.entry_notional
        for line in book.lines.values()
        if line.held
    )
    assert total.equity == total.cash + total.unrealized_pnl + sum(
        line.holding.entry_notional for line in book.lines.values() if line.is_cash
    )


def _check_line(line: Line) -> None:
    assert line.held * line.book.sign >= 0
    assert line.held >= 0 or not line.is_cash
    for order in line.orders if line.book.sign else ():
        closes = (order.side.value == "SELL") == (line.book.sign > 0)
        assert not closes or order.quantity - order.filled <= abs(line.held)


def _earned(line: Line) -> int:
    """Return what *line* has added to the cash."""
    held = line.holding
    earned = held.realized_pnl - held.fees_paid - held.funding_paid
    return earned - held.entry_notional if line.is_cash else earned


def run(engine: Engine, events: Iterable[Event]) -> list[Step]:
    """Step through *events*, at each of which the account keeps its laws."""
    steps = []
    for event in events:
        steps.append(engine.step(event, None))
        check_account(engine.broker.account)
    return steps
