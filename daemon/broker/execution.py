"""Execution models: the price of a fill at a quote or within a bar.

When it does is decided in ``matching``. The rules are docs/money.md, M10 to M15.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, Self

from msgspec import Struct

from tracepaper.strategies.corporate_actions import adjusted_bar
from tracepaper.strategies.types.decisions import Fill, FillModel, Liquidity, Order
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    CorporateAction,
    Instrument,
    Quote,
    Side,
)
from tracepaper.strategies.units import (
    DAY_MS,
    RATE_DECIMALS,
    RATE_SCALE,
    Notional,
    divide_half_even,
    paid_for,
)

RANGE_BARS: Final = 60
"""Closed bars whose mean true range ``execution.spread_slippage`` is a share of."""
RANGE_BARS_LEAST: Final = 14
"""Bars of the mean true range where a day holds fewer: the length that is usual for it."""


class ExecutionCosts(Struct, frozen=True):
    """What trading costs: rates as integers of 10⁻¹⁰ of the notional or price."""

    taker_fee: int
    slippage: int = 0
    half_spread: int = 0  # next_open only: quotes carry their own spread
    per_share: int = 0  # 10⁻¹⁰ of the currency for each share that is traded
    minimum: int = 0  # money: the least fee of an order
    maker_fee: int = 0
    ranges: int = 0  # true ranges that a taker's price is moved by
    impact: int | None = None  # a multiple of the shown size; None: the rest waits

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

    def per_share_of(self, instrument: Instrument) -> float:
        """Return the fee of a share as a price of *instrument*: in 10^-price_decimals."""
        return self.per_share * 10.0 ** (instrument.price_decimals - RATE_DECIMALS)


class MeanRange:
    """The mean true range of the last *bars* closed bars.

    A bar's true range is the largest of high less low and the distances of both from the close
    before it. So these bars and the one before them decide it, and a start that is shown those
    again comes to the same number. Nothing is added up before it is asked for.
    """

    def __init__(self, bars: int) -> None:
        self.bars = bars
        self._recent: deque[Bar] = deque(maxlen=bars + 1)
        self._ranges: deque[int] | None = None  # once it was asked for
        self._sum = 0
        self.push: Callable[[Bar], None] = self._recent.append
        """Take in the next closed bar."""

    @classmethod
    def of_day(cls, interval_ms: int) -> Self:
        """Return that of a day, which is what ``Volatility`` counts in."""
        return cls(max(DAY_MS // interval_ms, RANGE_BARS_LEAST))

    def _push(self, bar: Bar) -> None:
        """Take in the next closed bar, and its range."""
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

    def adjust(self, action: CorporateAction) -> None:
        """Take the bars before a split as those of the shares after it."""
        bars = [adjusted_bar(action, bar) for bar in self._recent]
        self._recent.clear()
        self._ranges, self._sum = None, 0
        self._recent.extend(bars)
        self.push = self._recent.append

    def last(self, count: int) -> list[Bar]:
        """Return the last *count* bars, newest first, or as many as are known."""
        return list(islice(reversed(self._recent), count))

    def mean(self) -> int | None:
        """Return it in units of the price; None while fewer bars are known."""
        if len(self._recent) <= self.bars:
            return None
        return divide_half_even(self._added(), self.bars)

    @property
    def rate(self) -> int:
        """That of the bars that are known, as 10⁻¹⁰ of the last close; 0 before the first."""
        if not self._recent:
            return 0
        count = min(len(self._recent), self.bars)
        return self._added() * RATE_SCALE // (count * self._recent[-1].close)

    def _added(self) -> int:
        """Return the sum of the ranges."""
        if self._ranges is None:
            bars = [*self._recent]
            self._recent.clear()
            self._ranges, self.push = deque(maxlen=self.bars), self._push
            for bar in bars:
                self._push(bar)
        return self._sum


class Executor:
    """Prices the fills of one instrument's orders."""

    def __init__(
        self, instrument: Instrument, costs: ExecutionCosts, ranges: MeanRange | None = None
    ) -> None:
        self.tick = instrument.tick_size
        self.step = instrument.quantity_step
        self.notional = Notional.of(instrument)
        self._spot = instrument.category is Category.SPOT
        self._decimals = instrument.quantity_decimals
        self._costs = costs
        self._ranges = ranges

    # ------------------------------------------------------------ orders that take

    def taken(self, order: Order, price: int, model: FillModel, filled_ms: int) -> Fill:
        """Let *order* take all that is left of it at *price*, worse by spread and slippage.

        On Bybit a candle's open is the previous close, not a price that anyone traded at; on
        other venues it is the first trade. Either way an order that takes there came before it.
        """
        left, spread = order.quantity - order.filled, self._costs.half_spread
        return self._take(order, left, price, price, model, filled_ms, spread)

    def far_side(self, price: int, side: Side) -> int:
        """Return the price that an order of *side* takes at once where a bar stands at *price*."""
        return self._worse(price, side, self._costs.half_spread)

    def at_quote(self, order: Order, quote: Quote, available: int) -> Fill | None:
        """Fill *order* at the far side of *quote*, of which *available* is left, if any."""
        wanted = order.quantity - order.filled
        quantity, rate = min(wanted, available), 0
        if quantity <= 0:
            return None
        if wanted > available and self._costs.impact is not None and order.price is None:
            quantity = wanted
            rate = min(self._costs.impact * (wanted - available) // available, RATE_SCALE)
        touched = quote.ask if order.side is Side.BUY else quote.bid
        middle, at_ms = (quote.bid + quote.ask) // 2, quote.market_ms
        return self._take(order, quantity, touched, middle, FillModel.QUOTE, at_ms, rate)

    def at_level(self, order: Order, price: int, quantity: int, middle: int, at_ms: int) -> Fill:
        """Let *order* take *quantity* of a level at *price*; *middle* is that of the order book."""
        return self._take(order, quantity, price, middle, FillModel.BOOK, at_ms)

    # ------------------------------------------------------------ limits that rested

    def fill_resting(self, order: Order, quantity: int, model: FillModel, filled_ms: int) -> Fill:
        """Fill *quantity* of a resting limit at its own price, as maker, and at that fee."""
        price = order.price
        assert price is not None
        return self._fill(order, quantity, price, price, model, filled_ms, Liquidity.MAKER)

    def liquidated(self, order: Order, mark: int, filled_ms: int) -> Fill:
        """Close all that is left of the exchange's *order* at its bankruptcy price.

        The exchange takes it over there, wherever the market stands; *mark* is what reached it. An
        order without a price reduces a position at the mark.
        """
        price, left = order.price, order.quantity - order.filled
        if price is None:
            return self.taken(order, mark, FillModel.LIQUIDATION, filled_ms)
        return self._fill(order, left, price, mark, FillModel.LIQUIDATION, filled_ms)

    def part(self, order: Order, fill: Fill, quantity: int) -> Fill:
        """Return *fill* of *order* as it is for less, at the same price."""
        return self._fill(
            order, quantity, fill.price, fill.reference_price, fill.model, fill.filled_ms,
            fill.liquidity,
        )  # fmt: skip

    # ------------------------------------------------------------ prices and fees

    def _slippage(self) -> int:
        """Return by what rate a taker's price is moved, besides the spread."""
        costs = self._costs
        if not costs.ranges or self._ranges is None:
            return costs.slippage
        return costs.slippage + costs.ranges * self._ranges.rate // RATE_SCALE

    def _worse(self, price: int, side: Side, rate: int) -> int:
        """Return *price* moved by *rate* against *side*, to the next whole tick."""
        if rate == 0:
            return price
        tick = self.tick
        if side is Side.BUY:
            return -(-price * (RATE_SCALE + rate) // (RATE_SCALE * tick)) * tick
        return max(price * (RATE_SCALE - rate) // (RATE_SCALE * tick), 1) * tick

    def _take(
        self,
        order: Order,
        quantity: int,
        price: int,
        reference_price: int,
        model: FillModel,
        filled_ms: int,
        rate: int = 0,
    ) -> Fill:
        """Let *order* take *quantity* at *price*, worse by *rate* and slippage.

        A limit is never filled worse than at its own price.
        """
        price = self._worse(price, order.side, rate + self._slippage())
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
            rate = self._costs.maker_fee if is_maker else self._costs.taker_fee
            fee = divide_half_even(quantity * rate, RATE_SCALE)
        else:
            fee = self._costs.fee(
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
            position_side=order.position_side,
        )
