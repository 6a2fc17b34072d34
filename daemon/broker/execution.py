"""Execution models: the price and fee of a fill at a quote or within a bar.

``matching`` decides when an order is filled. The rules are docs/money.md, M10 to M15.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from math import isqrt
from typing import Final, Self

from msgspec import Struct

from tracepaper.strategies.types.decisions import Fill, FillModel, Liquidity, Order
from tracepaper.strategies.types.market import Bar, Category, Instrument, Quote, Side
from tracepaper.strategies.units import (
    DAY_MS,
    RATE_DECIMALS,
    RATE_SCALE,
    Notional,
    divide_half_even,
    paid_for,
)

RANGE_BARS: Final = 60
"""The closed bars of the mean true range by which ``execution.spread_slippage`` is scaled."""
RANGE_BARS_LEAST: Final = 14
"""The bars of a day's mean true range if a day has fewer: the usual length of an ATR."""
PARTICIPATION_MOST: Final = 100
"""A participation above this counts as this, and so does one where nothing traded."""


class ExecutionCosts(Struct, frozen=True):
    """The costs of trading: rates as integers of 10⁻¹⁰ of the notional or price."""

    taker_fee: int
    slippage: int = 0
    half_spread: int = 0  # for bars only: quotes have a spread
    per_share: int = 0  # fee for each traded share, in 10⁻¹⁰ of the currency
    minimum: int = 0  # the least fee of an order, in money
    maker_fee: int = 0
    ranges: int = 0  # slippage of a taker in true ranges
    impact: int | None = None  # price impact at a participation of 1; None: what exceeds waits
    is_root: bool = False  # whether impact grows with the root of the participation

    @property
    def round_trip(self) -> float:
        """Return the cost of buying and selling again, as a fraction of the notional."""
        return 2 * (self.taker_fee + self.slippage + self.half_spread) / RATE_SCALE

    def fee(
        self,
        quantity: int,
        decimals: int,
        notional: int,
        *,
        is_first: bool,
        is_maker: bool = False,
    ) -> int:
        """Return the fee in money of *quantity* (10^-*decimals*) worth *notional*.

        The first fill of an order pays at least the minimum.
        """
        rate = self.maker_fee if is_maker else self.taker_fee
        fee = divide_half_even(notional * rate, RATE_SCALE)
        fee += paid_for(quantity, 10**decimals, self.per_share)
        return max(fee, self.minimum) if is_first and self.minimum else fee

    def impact_rate(self, quantity: int, liquidity: int) -> int:
        """Return the rate by which *quantity* moves the price; 0 without impact.

        Its participation is *quantity* ÷ *liquidity*: the volume of a candle, or the size that a
        quote shows, beyond which *quantity* goes. The impact is ``impact`` times the
        participation or its square root, rounded down. The root is the law of Torre (1997, Barra's
        handbook) and Bouchaud (Tóth et al. 2011, Phys. Rev. X 1, 021006); Almgren et al. (2005,
        Risk 18(7)) found a power of 3/5 and a permanent part, which is left out here.
        """
        if self.impact is None:
            return 0
        if quantity >= PARTICIPATION_MOST * liquidity:
            quantity, liquidity = PARTICIPATION_MOST, 1
        if self.is_root:
            return min(isqrt(self.impact**2 * quantity // liquidity), RATE_SCALE)
        return min(self.impact * quantity // liquidity, RATE_SCALE)

    def per_share_of(self, instrument: Instrument) -> float:
        """Return the fee of a share as a price of *instrument*: in 10^-price_decimals."""
        return self.per_share * 10.0 ** (instrument.price_decimals - RATE_DECIMALS)


class MeanRange:
    """The mean true range of the last *bars* closed bars.

    A bar's true range is the largest of high minus low and the distances of both from the close
    before it. The mean therefore depends on these bars and the one before them, and a start that
    is fed those again has the same mean. The sum is computed lazily, on the first request.
    """

    def __init__(self, bars: int) -> None:
        self.bars = bars
        self._recent: deque[Bar] = deque(maxlen=bars + 1)
        self._ranges: deque[int] | None = None  # None before the first request
        self._sum = 0
        self.push: Callable[[Bar], None] = self._recent.append
        """Add the next closed bar."""

    @classmethod
    def of_day(cls, interval_ms: int) -> Self:
        """Return the mean range of a day's bars, the unit of ``Volatility``."""
        return cls(max(DAY_MS // interval_ms, RANGE_BARS_LEAST))

    def _push(self, bar: Bar) -> None:
        """Add the next closed bar and its range."""
        ranges, high, low = self._ranges, bar.high, bar.low
        assert ranges is not None
        if self._recent:
            before = self._recent[-1].close
            high, low = max(high, before), min(low, before)
        if len(ranges) == self.bars:
            self._sum -= ranges[0]
        ranges.append(high - low)
        self._sum += high - low
        self._recent.append(bar)

    def last(self, count: int) -> list[Bar]:
        """Return the last *count* bars, newest first; fewer if fewer are known."""
        return list(islice(reversed(self._recent), count))

    def mean(self) -> int | None:
        """Return the mean in units of the price; None while too few bars are known."""
        if len(self._recent) <= self.bars:
            return None
        return divide_half_even(self._range_sum(), self.bars)

    @property
    def rate(self) -> int:
        """The mean over the known bars, in 10⁻¹⁰ of the last close; 0 before the first bar."""
        if not self._recent:
            return 0
        count = min(len(self._recent), self.bars)
        return self._range_sum() * RATE_SCALE // (count * self._recent[-1].close)

    def _range_sum(self) -> int:
        """Return the sum of the ranges; the first call computes them."""
        if self._ranges is None:
            bars = [*self._recent]
            self._recent.clear()
            self._ranges, self.push = deque(maxlen=self.bars), self._push
            for bar in bars:
                self._push(bar)
        return self._sum


class Executor:
    """Computes the fills of one instrument's orders."""

    def __init__(
        self, instrument: Instrument, costs: ExecutionCosts, ranges: MeanRange | None = None
    ) -> None:
        self.tick = instrument.tick_size
        self.step = instrument.quantity_step
        self.notional = Notional.of(instrument)
        self._spot = instrument.category is Category.SPOT
        self._decimals = instrument.quantity_decimals
        self._volume_decimals = instrument.volume_decimals
        self.costs = costs
        self._ranges = ranges

    # ------------------------------------------------------------ takers

    def taken(
        self,
        order: Order,
        price: int,
        model: FillModel,
        filled_ms: int,
        *,
        quantity: int | None = None,
        of_bar: tuple[int, int] | None = None,
    ) -> Fill:
        """Fill *order* at *price*, worsened by spread, slippage and impact: all, or a *quantity*.

        The impact is that of what takers take from a candle: *of_bar* has what others took before,
        and its volume. Without it there is none.
        On Bybit a candle's open is the previous close, not a traded price; on other venues it is
        the first trade. In both cases the order was decided before it.
        """
        quantity, rate = quantity or order.quantity - order.filled, self.costs.half_spread
        if of_bar is not None:
            before, volume = of_bar
            rate += self.costs.impact_rate(
                (before + quantity) * 10**self._volume_decimals, volume * 10**self._decimals
            )
        return self.take(order, quantity, price, price, model, filled_ms, rate)

    def far_side(self, price: int, side: Side) -> int:
        """Return the price at which an order of *side* takes, with the bar's price at *price*."""
        return self._worse(price, side, self.costs.half_spread)

    def at_quote(
        self, order: Order, quote: Quote, available: int, wanted: int | None = None
    ) -> Fill | None:
        """Fill *order*, or what is *wanted* of it, at the far side of *quote*.

        Of the quote's size *available* is left. None if nothing is.
        """
        wanted = wanted or order.quantity - order.filled
        quantity, rate = min(wanted, available), 0
        if quantity <= 0:
            return None
        if wanted > available and self.costs.impact is not None and order.price is None:
            quantity, rate = wanted, self.costs.impact_rate(wanted - available, available)
        far = quote.ask if order.side is Side.BUY else quote.bid
        middle, at_ms = (quote.bid + quote.ask) // 2, quote.market_ms
        return self.take(order, quantity, far, middle, FillModel.QUOTE, at_ms, rate)

    # ------------------------------------------------------------ makers and liquidations

    def fill_resting(self, order: Order, quantity: int, model: FillModel, filled_ms: int) -> Fill:
        """Fill *quantity* of a resting limit at its price, with the maker fee."""
        price = order.price
        assert price is not None
        return self._fill(order, quantity, price, price, model, filled_ms, Liquidity.MAKER)

    def liquidated(self, order: Order, mark: int, filled_ms: int) -> Fill:
        """Fill all that is left of a liquidation *order* at its price, the bankruptcy price.

        The exchange takes the position over at that price, wherever the market is. *mark* is the
        mark price. An order without a price reduces a position at the market.
        """
        price, remaining = order.price, order.quantity - order.filled
        if price is None:
            return self.taken(order, mark, FillModel.LIQUIDATION, filled_ms)
        return self._fill(order, remaining, price, mark, FillModel.LIQUIDATION, filled_ms)

    # ------------------------------------------------------------ prices and fees

    def _worse(self, price: int, side: Side, rate: int) -> int:
        """Return *price* worsened by *rate* for *side*, rounded up to the next worse tick."""
        if rate == 0:
            return price
        tick = self.tick
        if side is Side.BUY:
            return -(-price * (RATE_SCALE + rate) // (RATE_SCALE * tick)) * tick
        return max(price * (RATE_SCALE - rate) // (RATE_SCALE * tick), 1) * tick

    def take(
        self,
        order: Order,
        quantity: int,
        price: int,
        reference_price: int,
        model: FillModel,
        filled_ms: int,
        rate: int = 0,
    ) -> Fill:
        """Fill *quantity* of *order* at *price*, worsened by *rate* and slippage.

        A limit is never filled at a worse price than its own.
        """
        rate += self.costs.slippage
        if self.costs.ranges and self._ranges is not None:
            rate += self.costs.ranges * self._ranges.rate // RATE_SCALE
        price = self._worse(price, order.side, rate)
        if order.price is not None:
            price = (min if order.side is Side.BUY else max)(price, order.price)
        return self._fill(order, quantity, price, reference_price, model, filled_ms)

    def _fill(
        self,
        order: Order,
        quantity: int,
        price: int,
        reference_price: int,
        model: FillModel,
        filled_ms: int,
        liquidity: Liquidity = Liquidity.TAKER,
    ) -> Fill:
        notional = self.notional(price, quantity)
        in_base = self._spot and order.side is Side.BUY
        is_maker = liquidity is Liquidity.MAKER
        if in_base:
            rate = self.costs.maker_fee if is_maker else self.costs.taker_fee
            fee = divide_half_even(quantity * rate, RATE_SCALE)
        else:
            fee = self.costs.fee(
                quantity, self._decimals, notional, is_first=order.filled == 0, is_maker=is_maker
            )
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
            liquidity,
            model,
            order.reason,
            filled_ms,
        )
