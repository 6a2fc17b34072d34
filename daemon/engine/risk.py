"""Risk limits on the account, and the inputs of the gates at a bar.

The rules are docs/decisions.md, G15 and G22 to G26, and docs/money.md, M22.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.broker.account import Holdings
from tracepaper.daemon.engine.book_shortfall import BookShortfall
from tracepaper.daemon.engine.history import InstrumentState, RegimeTracker
from tracepaper.daemon.engine.settings import EngineSettings, ModelTerms
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
    risk_universe,
)
from tracepaper.strategies.gates.evaluator import GateEvaluator
from tracepaper.strategies.gates.gate import GateInputs
from tracepaper.strategies.months import intervals_between
from tracepaper.strategies.sessions import Calendar
from tracepaper.strategies.types.decisions import (
    Account,
    Fill,
    FillModel,
    Forecast,
    LimitBreach,
    Order,
    OrderRole,
    OrderStatus,
    Position,
    Prediction,
    PredictionTimeout,
)
from tracepaper.strategies.types.market import Bar, Instrument, Quote
from tracepaper.strategies.units import DAY_MS, HOUR_MS, MONEY_SCALE

TRADING: Final = "Trading"
"""The exchange's status of a symbol that accepts orders."""
COOLDOWN_ROLES: Final = frozenset({OrderRole.STOP, OrderRole.TRAILING, OrderRole.LIQUIDATION})
"""Roles of the orders whose fill begins a cooldown."""
LEFT_UNIVERSE: Final = "left the universe"
_SENT: Final = frozenset({OrderStatus.NEW, OrderStatus.ACCEPTED})


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
        calendar: Calendar | None = None,
        closes_outside: bool = False,
        book: BookShortfall | None = None,
    ) -> None:
        """Take the *limits* by gate; with *flattens* a breach closes all positions.

        *closes_outside* also closes positions in symbols that left the universe. The limit of the
        whole book measures by *book*. A day lasts from
        the open of a session of *calendar* to the next open; without a calendar it is a UTC day.
        """
        self._day_at = _utc_day if calendar is None else calendar.day_at
        self.active = bool(limits)
        self._measures = bool(limits.keys() - {risk_universe.name})
        self.chosen: tuple[str, ...] | None = None  # the universe, best first; None before a choice
        self._has_universe, self._inside = risk_universe.name in limits, frozenset[str]()
        self._closes_outside = closes_outside
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

    @property
    def breach(self) -> str:
        """The limit that halts new exposure until RESUME; empty if none does."""
        breach = self.state.breach
        return breach.limit if breach is not None and self._latches else ""

    def closing(self, inputs: GateInputs) -> str:
        """Return why positions must be closed: a breach or a left universe; empty if not."""
        if self._flattens and (breach := self.state.breach) is not None:
            return f"halted by {breach.limit}"
        return LEFT_UNIVERSE if self._closes_outside and inputs.is_outside else ""

    def choose(self, chosen: tuple[str, ...]) -> None:
        """Let only the *chosen* instruments open positions from now on."""
        self.chosen, self._inside = chosen, frozenset(chosen)

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
        inputs.is_outside = self._has_universe and instrument not in self._inside
        if not self._measures:
            return
        state, equity = self.state, account.equity
        day = self._day_at(market_ms)
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


def _utc_day(at_ms: int) -> int:
    return at_ms // DAY_MS


def _net_profit(position: Position) -> int:
    """Return the realized profit of a position so far, net of fees and funding."""
    return position.realized_pnl - position.fees_paid - position.funding_paid


class GateJudgement:
    """The gates of an instrument, and their inputs at a bar."""

    __slots__ = ("_by_quotes", "_round_trip", "_share_fee", "evaluator", "inputs", "risk")

    evaluator: GateEvaluator

    def __init__(self, risk: RiskWatch, instrument: Instrument, settings: EngineSettings) -> None:
        self.risk = risk
        self._by_quotes = settings.broker.execution is FillModel.QUOTE
        costs = settings.broker.costs_for(instrument.id)
        self._round_trip, self._share_fee = costs.round_trip, costs.per_share_of(instrument)
        self.inputs = GateInputs(
            round_trip_cost=self._round_trip,
            regimes=settings.regimes,
            learned_regimes=settings.learned_regimes,
        )
        self.change_model(instrument, settings.model)

    def change_model(self, instrument: Instrument, terms: ModelTerms) -> None:
        """Use another model's gates and card from now on."""
        self.evaluator = terms.gates[instrument.id]
        self.inputs.horizon_index, self.inputs.slope = terms.horizon_index, terms.slope
        self.inputs.fitted, self.inputs.tails = terms.fitted, terms.tails

    def update(
        self,
        bar: Bar,
        bars: int,
        market: InstrumentState,
        *,
        is_running: bool,
    ) -> None:
        """Set the inputs that follow from *bar* of *market*; *bars* is the number of known bars."""
        inputs = self.inputs
        inputs.running, inputs.bars = is_running, bars
        inputs.missing_bars, inputs.plausible = market.missing_bars, market.plausible
        inputs.late_ms = max(bar.seen_ms - bar.open_time_ms - bar.interval_ms, 0)
        if self._by_quotes:
            inputs.quote_age_ms = _age_ms(market.quote, bar)
            inputs.is_tradable = market.instrument.status == TRADING

    def judge_repeat(self, bars: int) -> tuple[tuple[float | None, ...], int]:
        """Return measures and passed gates of a bar directly after the last one, with its close.

        *bars* is the number of known bars. Later bars of this kind have the same measures except
        for ``plausible``.
        """
        inputs = self.inputs
        inputs.running, inputs.bars = True, bars
        inputs.missing_bars = inputs.late_ms = 0
        inputs.plausible = 0.0
        return self.evaluator.judge(inputs)

    def see_forecast(
        self, bar: Bar, prediction: Prediction, regimes: RegimeTracker, *, is_finite: bool | None
    ) -> None:
        """Set the inputs that follow from the model's *prediction*, and update the regime."""
        inputs = self.inputs
        inputs.finite = is_finite
        if self._share_fee:
            inputs.round_trip_cost = self._round_trip + 2 * self._share_fee / bar.close
        inputs.answered = not isinstance(prediction, PredictionTimeout)
        inputs.forecast = forecast = prediction if isinstance(prediction, Forecast) else None
        inputs.explanation = None if forecast is None else forecast.explanation
        regimes.follow(inputs.explanation)
        inputs.regime = regimes.regime

    def see_target(
        self,
        bar: Bar,
        target: int,
        account: Holdings,
        market: InstrumentState,
        notional: int,
        *,
        reduces: bool,
    ) -> None:
        """Set the inputs of the risk gates from the *target*, which is worth *notional*."""
        inputs = self.inputs
        inputs.reduces = reduces
        inputs.notional, inputs.is_short = notional, target < 0
        if self.risk.sees_gross:
            inputs.gross = notional + account.gross_of_others(bar.instrument)
        if (book := self.risk.book) is not None:
            key, others = bar.instrument, account.exposures_of_others(bar.instrument)
            own, held = others.get(key, 0), account.exposure(key)
            after = own + (-notional if target < 0 else notional)
            inputs.book_shortfall = book.measure(
                {**others, key: after}, {**others, key: own + held}
            )
        if self._by_quotes and (quote := market.quote) is not None:
            inputs.spread_bp = 20_000 * (quote.ask - quote.bid) / (quote.ask + quote.bid)
        if (plausibility := market.plausibility) is not None:
            inputs.range_bp = plausibility.range_bp()
        self.risk.measure(
            inputs,
            account=account.balance(),
            market_ms=bar.market_ms,
            instrument=bar.instrument,
            interval_ms=bar.interval_ms,
        )


def _age_ms(quote: Quote | None, bar: Bar) -> int | None:
    """Return the age of *quote* at *bar*; None without a quote, or if it is newer than *bar*."""
    if quote is None or quote.market_ms > bar.seen_ms:
        return None
    return bar.seen_ms - quote.market_ms
