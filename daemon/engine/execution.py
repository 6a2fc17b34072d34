"""Execution models: an order and a later quote or bar → a ``Fill``.

The rules are docs/money.md, M10 to M15.
"""

from __future__ import annotations

from decimal import Decimal

from msgspec import Struct

from tracepaper.strategies.market import Notional, divide_half_even, scaled
from tracepaper.strategies.types import (
    MONEY_DECIMALS,
    MONEY_SCALE,
    Bar,
    Category,
    Fill,
    FillModel,
    Instrument,
    Liquidity,
    Order,
    Quote,
    Side,
)


class ExecutionCosts(Struct, frozen=True):
    """What trading costs: rates as integers of 10⁻¹⁰ of the notional or price."""

    taker_fee: int
    slippage: int = 0
    half_spread: int = 0  # next_open only: quotes carry their own spread

    @classmethod
    def of(cls, *, taker_fee: Decimal, slippage_bp: Decimal, spread_bp: Decimal) -> ExecutionCosts:
        """Return the costs of configured decimals; 1 bp is 0.0001."""
        return cls(
            scaled(taker_fee, MONEY_DECIMALS, name="execution.taker_fee"),
            scaled(slippage_bp.scaleb(-4), MONEY_DECIMALS, name="execution.slippage_bp"),
            scaled(spread_bp.scaleb(-4) / 2, MONEY_DECIMALS, name="execution.spread_bp"),
        )

    @property
    def round_trip(self) -> float:
        """Return what buying and selling again costs, as a fraction of the notional."""
        return 2 * (self.taker_fee + self.slippage + self.half_spread) / MONEY_SCALE


class Executor:
    """Fills market orders of one instrument."""

    def __init__(self, instrument: Instrument, costs: ExecutionCosts) -> None:
        self._tick = instrument.tick_size
        self._notional = Notional.of(instrument)
        self._spot = instrument.category is Category.SPOT
        self._costs = costs

    def at_open(self, order: Order, bar: Bar) -> Fill:
        """Fill all that is left of *order* at *bar*'s open, worse by half the spread and slippage.

        On Bybit a candle's open is the previous close, not a price that anyone traded at; on
        other venues it is the first trade. Either way the order came before it.
        """
        price = self._worse(bar.open, order.side, self._costs.half_spread + self._costs.slippage)
        return self._fill(
            order,
            order.quantity - order.filled,
            price,
            reference_price=bar.open,
            model=FillModel.NEXT_OPEN,
            filled_ms=bar.open_time_ms,
        )

    def at_quote(self, order: Order, quote: Quote) -> Fill | None:
        """Fill *order* at the far side of *quote*, at most its size; None if it shows no size."""
        buys = order.side is Side.BUY
        available = quote.ask_size if buys else quote.bid_size
        quantity = min(order.quantity - order.filled, available)
        if quantity <= 0:
            return None
        touched = quote.ask if buys else quote.bid
        return self._fill(
            order,
            quantity,
            self._worse(touched, order.side, self._costs.slippage),
            reference_price=(quote.bid + quote.ask) // 2,
            model=FillModel.QUOTE,
            filled_ms=quote.market_ms,
        )

    def _worse(self, price: int, side: Side, rate: int) -> int:
        """Return *price* moved by *rate* against *side*, to the next whole tick."""
        if rate == 0:
            return price
        tick = self._tick
        if side is Side.BUY:
            return -(-price * (MONEY_SCALE + rate) // (MONEY_SCALE * tick)) * tick
        return max(price * (MONEY_SCALE - rate) // (MONEY_SCALE * tick), 1) * tick

    def _fill(
        self,
        order: Order,
        quantity: int,
        price: int,
        *,
        reference_price: int,
        model: FillModel,
        filled_ms: int,
    ) -> Fill:
        notional = self._notional(price, quantity)
        in_base = self._spot and order.side is Side.BUY
        charged = quantity if in_base else notional
        fee = divide_half_even(charged * self._costs.taker_fee, MONEY_SCALE)
        return Fill(
            order.order_id,
            order.instrument,
            order.side,
            quantity,
            price,
            reference_price,
            notional,
            0 if in_base else fee,
            fee if in_base else 0,
            Liquidity.TAKER,
            model,
            order.reason,
            filled_ms,
        )
