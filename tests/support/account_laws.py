"""What holds of an account after every event: cash is what was earned, and sums are of the lines.

Each law is computed from the lines, and not from the account's sums.
"""

from __future__ import annotations

from collections.abc import Iterable

from tracepaper.daemon.broker.account import PaperAccount
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.engine.engine import Engine
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import Event


def check_account(account: PaperAccount, opened: int | None = None) -> None:
    """Assert the laws of *account*, which may have begun with *opened* in cash."""
    _check_sums(account)
    lines, ledger = account.lines.values(), account.ledger
    for line in lines:
        assert line.held >= 0 or not line.is_cash
    if opened is not None:
        assert ledger.cash == opened + sum(map(_earned, lines))
    assert ledger.available == ledger.cash - sum(line.holding.margin for line in lines)
    ids = [order.order_id for line in lines for order in line.orders]
    assert len(ids) == len(set(ids))


def _check_sums(account: PaperAccount) -> None:
    """Assert that the sums that *account* keeps are those of its lines."""
    lines, total = account.lines.values(), account.balance()
    held = [line.holding for line in lines]
    assert total.cash == account.ledger.cash
    assert total.realized_pnl == sum(holding.realized_pnl for holding in held)
    assert total.fees_paid == sum(holding.fees_paid for holding in held)
    assert total.funding_paid == sum(holding.funding_paid for holding in held)
    assert total.unrealized_pnl == sum(
        line.value(line.held) - line.holding.entry_notional for line in lines if line.held
    )
    assert total.equity == total.cash + total.unrealized_pnl + sum(
        line.holding.entry_notional for line in lines if line.is_cash
    )


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
