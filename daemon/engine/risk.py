"""Limits on the account: what each risk gate measures, kept from step to step.

The rules are docs/decisions.md, G15, and docs/money.md, M22.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.strategies.gates import GateInputs
from tracepaper.strategies.market import DAY_MS
from tracepaper.strategies.types import MONEY_SCALE, Account


class RiskState(Struct, frozen=True, array_like=True):
    """What the risk gates carry: the highest equity, the running UTC day, and that of trades."""

    peak_equity: int = 0
    day: int = -1
    day_equity: int = 0
    trades_day: int = -1
    day_trades: int = 0


class RiskWatch:
    """Measures drawdown, the day's loss and the day's trades, where a limit asks for them."""

    def __init__(self, limits: Mapping[str, float]) -> None:
        self.active = bool(limits)
        self.state = RiskState()

    def measure(self, seen: GateInputs, *, account: Account, market_ms: int) -> None:
        """Write this bar's measures into *seen*; ``state`` is another object where it changed.

        Drawdown is a fraction of the highest equity; the day's loss is money, in quote currency,
        since the first bar of the UTC day; a trade is an order of which something was filled.
        """
        state, equity = self.state, account.equity
        day = market_ms // DAY_MS
        if day != state.day:
            peak = max(state.peak_equity, equity)
            after = replace(state, peak_equity=peak, day=day, day_equity=equity)
        elif equity > state.peak_equity:
            after = replace(state, peak_equity=equity)
        else:
            after = state
        seen.drawdown = 1 - equity / after.peak_equity if after.peak_equity > 0 else 0.0
        seen.daily_loss = max(after.day_equity - equity, 0) / MONEY_SCALE
        traded = after.day_trades if after.trades_day == day else 0
        seen.daily_trades = traded + 1  # the one now being judged
        self.state = after

    def count_trade(self, market_ms: int) -> None:
        """Count an order at its first fill, in the UTC day of that fill."""
        state, day = self.state, market_ms // DAY_MS
        traded = state.day_trades if state.trades_day == day else 0
        self.state = replace(state, trades_day=day, day_trades=traded + 1)
