"""The broker before accounts were books, as it was but for books of orders: an oracle.

``opened`` gives it what the engine asks of today's.
"""

from __future__ import annotations

from typing import Any

from broker_before.broker import Broker
from broker_before.divided import DividedBroker
from broker_before.hedged import HedgedBroker


def opened(
    instruments: Any,
    settings: Any,
    day_ranges: Any,
    *,
    is_hedged: bool = False,
    owners: Any = None,
    **named: Any,
) -> Any:
    """Open it, as the engine opens today's."""
    if not owners:
        before = (HedgedBroker if is_hedged else Broker)(instruments, settings, day_ranges, **named)
        before.own.owners = {}
    else:
        before = DividedBroker(instruments, settings, day_ranges)
        before.divide(
            instruments,
            {name: owner.settings for name, owner in owners.items()},
            {name: owner.share for name, owner in owners.items()},
            reports_fills={name: owner.reports_fills for name, owner in owners.items()},
            confirms=named["confirms"],
        )
        before.own.owners, before.own.reserve = before.parts, 0
    before.router, before.beside = before, before.shadows
    for account in (before.own, *before.shadows.values()):
        account.subtotal, account.fills = account.ledger.account, account.ledger.fills
    return before
