"""Limits on the account: what each risk gate measures, kept from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from tracepaper.strategies.gate import Evidence
from tracepaper.strategies.types import MONEY_SCALE, Account, Gate

DAY_MS: Final = 86_400_000


class RiskState(Struct, frozen=True):
    """What the risk gates carry: the highest equity, and the running UTC day."""

    peak_equity: int = 0
    day: int = -1
    day_equity: int = 0
    day_trades: int = 0


class RiskWatch:
    """Measures drawdown, the day's loss and the day's orders, where a limit asks for them."""

    def __init__(self, limits: Mapping[Gate, float]) -> None:
        self.active = bool(limits)
        self.state = RiskState()

    def measure(self, seen: Evidence, *, account: Account, market_ms: int) -> bool:
        """Write this bar's measures into *seen*; return whether the carried state changed.

        Drawdown is a fraction of the highest equity; the day's loss is money, in quote currency,
        since the first bar of the UTC day.
        """
        state, equity = self.state, account.equity
        day = market_ms // DAY_MS
        if day != state.day:
            after = RiskState(max(state.peak_equity, equity), day, equity, 0)
        elif equity > state.peak_equity:
            after = RiskState(equity, day, state.day_equity, state.day_trades)
        else:
            after = state
        seen.drawdown = 1 - equity / after.peak_equity if after.peak_equity > 0 else 0.0
        seen.daily_loss = max(after.day_equity - equity, 0) / MONEY_SCALE
        seen.daily_trades = after.day_trades + 1  # the order now being judged
        changed = after is not state
        self.state = after
        return changed

    def count_order(self) -> None:
        """Count an order that was sent."""
        state = self.state
        self.state = RiskState(state.peak_equity, state.day, state.day_equity, state.day_trades + 1)
