"""Risk limits on the account.

The rules are docs/decisions.md, G15, G22 to G26 and G42, and docs/money.md, M22.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_not
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.engine.history import InstrumentState
from tracepaper.strategies.api.timeframes import TimeframeBars
from tracepaper.strategies.gates.declared import (
    risk_book_shortfall,
    risk_cooldown,
    risk_daily_loss,
    risk_drawdown,
    risk_exposure,
    risk_halt,
    risk_hourly_orders,
    risk_leverage,
    risk_losing_streak,
)
from tracepaper.strategies.gates.gate import GateInputs
from tracepaper.strategies.months import intervals_between
from tracepaper.strategies.sessions import Sessions
from tracepaper.strategies.shortfall import (
    DAYS_LEAST,
    Returns,
    book_profits,
    common_days,
    day_returns,
    expected_shortfall,
)
from tracepaper.strategies.types.decisions import (
    Account,
    Fill,
    LimitBreach,
    Order,
    OrderRole,
    OrderStatus,
    Position,
)
from tracepaper.strategies.units import DAY_MS, HOUR_MS, MONEY_SCALE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

COOLDOWN_ROLES: Final = frozenset({OrderRole.STOP, OrderRole.TRAILING, OrderRole.LIQUIDATION})
"""Roles of the orders whose fill begins a cooldown."""
_SENT: Final = frozenset({OrderStatus.NEW, OrderStatus.ACCEPTED})


class BookShortfall:
    """Measures the expected shortfall of a book over the days that all its symbols have."""

    def __init__(self, markets: Mapping[str, InstrumentState], *, ignores_few: bool) -> None:
        """Read the days of *markets*; with *ignores_few* a symbol with too few days is left out."""
        self._markets, self._ignores_few = markets, ignores_few
        self._read: dict[str, tuple[TimeframeBars, Returns]] = {}
        self._aligned: tuple[list[Returns], list[npt.NDArray[np.float64]] | None] = [], None

    def measure(self, after: Mapping[str, int], before: Mapping[str, int]) -> float | None:
        """Return the shortfall of the book *after* a target, in money; 0 if it does not rise.

        Both are signed notionals by instrument. None if the days are too few.
        """
        new, old = self._shortfall(after), self._shortfall(before)
        return new if new is None or old is None or new > old else 0.0

    def _shortfall(self, exposures: Mapping[str, int]) -> float | None:
        held = [(self._returns(key), exposures[key]) for key in self._markets if exposures.get(key)]
        if self._ignores_few:
            held = [each for each in held if len(each[0]) >= DAYS_LEAST]
        if not held:
            return 0.0
        columns = self._columns([returns for returns, _ in held])
        if columns is None:
            return 0.0 if self._ignores_few else None
        return max(expected_shortfall(book_profits([size for _, size in held], columns)), 0.0)

    def _returns(self, key: str) -> Returns:
        """Return the returns of an instrument by day, which are computed once a day."""
        candles = self._markets[key].day_candles
        read = self._read.get(key)
        if read is None or read[0] is not candles:
            read = self._read[key] = candles, day_returns(candles.closes())
        return read[1]

    def _columns(self, returns: list[Returns]) -> list[npt.NDArray[np.float64]] | None:
        """Return each of *returns* [day] over their common days; None if these are too few."""
        import numpy as np

        known, columns = self._aligned
        if len(known) != len(returns) or any(map(is_not, known, returns)):
            days, columns = common_days(returns), None
            if len(days) >= DAYS_LEAST:
                columns = [np.array([each[day] for day in days]) for each in returns]
            self._aligned = returns, columns
        return columns


class RiskState(Struct, frozen=True, array_like=True):
    """The stored state of the risk gates."""

    peak_equity: int = 0
    day: int = -1
    day_equity: int = 0
    trades_day: int = -1
    day_trades: int = 0
    breach: LimitBreach | None = None  # halts new exposure until the operator sends RESUME
    hour: int = -1
    hour_orders: int = 0
    streak_day: int = -1
    streak: int = 0
    stopped_ms: dict[str, int] = {}  # by instrument: the time of its newest fill of a stop
    opened_at: dict[str, int] = {}  # by instrument: its net profit when it was last flat


class RiskWatch:
    """Computes the measures of the configured limits, and remembers a breach."""

    def __init__(
        self,
        limits: Mapping[str, float],
        *,
        flattens: bool = False,
        sessions: Sessions | None = None,
        book: BookShortfall | None = None,
    ) -> None:
        """Take the *limits* by gate; with *flattens* a breach closes all positions.

        The limit of the whole book measures by *book*. A day lasts from the open of a session of
        *sessions* to the next open; without any it is a UTC day.
        """
        self._sessions = sessions
        self.active = bool(limits)
        self.book = book if risk_book_shortfall.name in limits else None
        self.sees_gross = not limits.keys().isdisjoint({risk_exposure.name, risk_leverage.name})
        self.state = RiskState()
        self.halted: LimitBreach | None = None  # a breach that no step has recorded yet
        self._drawdown_most = limits.get(risk_drawdown.name)
        self._loss_most = limits.get(risk_daily_loss.name)
        self._cooldown = int(limits.get(risk_cooldown.name, 0))
        self._counts_orders = risk_hourly_orders.name in limits
        self._counts_losses = risk_losing_streak.name in limits
        self._flattens = flattens
        self._latches = risk_halt.name in limits

    def _day_at(self, at_ms: int, *, is_close: bool = False) -> int:
        """Return the day of a time; a close belongs to the session that it ends."""
        if self._sessions is None:
            return at_ms // DAY_MS
        return self._sessions.day_at(at_ms - is_close)

    @property
    def breach(self) -> str:
        """The limit that halts new exposure until RESUME; empty if none does."""
        breach = self.state.breach
        return breach.limit if breach is not None and self._latches else ""

    @property
    def closing(self) -> str:
        """Why positions must be closed, after a breach; empty if not."""
        if self._flattens and (breach := self.state.breach) is not None:
            return f"halted by {breach.limit}"
        return ""

    def resume(self) -> None:
        """Lift a breach at the operator's command: peak and day begin anew at the next bar."""
        if self.state.breach is not None:
            self.state = replace(self.state, breach=None, peak_equity=0, day=-1)

    def take_over(self, state: RiskState) -> None:
        """Continue the *state* of another run; the first step of this run records its breach."""
        self.state = state
        self.halted = state.breach if self._latches else None

    def measure(
        self,
        inputs: GateInputs,
        *,
        account: Account,
        market_ms: int,
        instrument: str = "",
        interval_ms: int = 1,
    ) -> None:
        """Write this bar's measures into *inputs*; ``state`` becomes a new object if it changes.

        Drawdown is a fraction of the highest equity. The daily loss is in quote currency, since the
        first bar of the day. A trade is an order with at least one fill.
        """
        state, equity = self.state, account.equity
        day = self._day_at(market_ms, is_close=True)
        if day != state.day:
            peak = max(state.peak_equity, equity)
            after = replace(state, peak_equity=peak, day=day, day_equity=equity)
        elif equity > state.peak_equity:
            after = replace(state, peak_equity=equity)
        else:
            after = state
        inputs.equity = equity
        inputs.drawdown = 1 - equity / after.peak_equity if after.peak_equity > 0 else 0.0
        inputs.daily_loss = max(after.day_equity - equity, 0) / MONEY_SCALE
        inputs.daily_trades = 1 + (after.day_trades if after.trades_day == day else 0)
        inputs.hourly_orders = 1 + (after.hour_orders if after.hour == market_ms // HOUR_MS else 0)
        inputs.losing_streak = after.streak if after.streak_day == day else 0
        if self._cooldown:
            inputs.since_stop = self._since_stop(instrument, market_ms, interval_ms)
        if after.breach is None and (breach := self._breach(inputs, market_ms)) is not None:
            after = replace(after, breach=breach)
            self.halted = breach if self._latches else None
        inputs.is_breached = after.breach is not None
        self.state = after

    def _breach(self, inputs: GateInputs, at_ms: int) -> LimitBreach | None:
        """Return the limit that equity has exceeded, regardless of the target, or None."""
        if self._drawdown_most is not None and inputs.drawdown > self._drawdown_most:
            return LimitBreach(risk_drawdown.name, inputs.drawdown, self._drawdown_most, at_ms)
        if self._loss_most is not None and inputs.daily_loss > self._loss_most:
            return LimitBreach(risk_daily_loss.name, inputs.daily_loss, self._loss_most, at_ms)
        return None

    def _since_stop(self, instrument: str, market_ms: int, interval_ms: int) -> int:
        """Return the number of whole bars since the newest stop, at most the limit."""
        stopped_ms = self.state.stopped_ms.get(instrument)
        if stopped_ms is None:
            return self._cooldown
        return min(intervals_between(stopped_ms, market_ms, interval_ms), self._cooldown)

    # ------------------------------------------------------------ counting orders and fills

    def count_orders(self, orders: Sequence[Order], market_ms: int) -> None:
        """Count those of *orders* that were sent, in the clock hour of *market_ms*."""
        sent = sum(order.status in _SENT for order in orders)
        if not self._counts_orders or not sent:
            return
        state, hour = self.state, market_ms // HOUR_MS
        before = state.hour_orders if state.hour == hour else 0
        self.state = replace(state, hour=hour, hour_orders=before + sent)

    def count_fill(self, fill: Fill, order: Order, before: Position, after: Position) -> None:
        """Count *fill* of *order* as a trade, a stop or a position closed with a loss.

        A trade counts at its first fill, on the day of that fill. *before* and *after* are the
        positions before and after the fill. A loss is net of fees and funding.
        """
        key, day = fill.instrument, self._day_at(fill.filled_ms)
        if fill.quantity == order.filled:
            state = self.state
            traded = state.day_trades if state.trades_day == day else 0
            self.state = replace(state, trades_day=day, day_trades=traded + 1)
        if self._cooldown and order.role in COOLDOWN_ROLES:
            stopped = {**self.state.stopped_ms, key: fill.filled_ms}
            self.state = replace(self.state, stopped_ms=stopped)
        if not self._counts_losses:
            return
        opened_at = self.state.opened_at
        if before.quantity == 0:
            opened_at = {**opened_at, key: _net_profit(before)}
            self.state = replace(self.state, opened_at=opened_at)
        elif after.quantity == 0 or (after.quantity > 0) != (before.quantity > 0):
            earned = _net_profit(after) - opened_at.get(key, 0)
            state = self.state
            streak = state.streak if state.streak_day == day else 0
            self.state = replace(
                state,
                streak_day=day,
                streak=streak + 1 if earned < 0 else 0,
                opened_at={**opened_at, key: _net_profit(after)},
            )


def _net_profit(position: Position) -> int:
    """Return the realized profit of a position so far, net of fees and funding."""
    return position.realized_pnl - position.fees_paid - position.funding_paid
