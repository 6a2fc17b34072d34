"""Paper's fills of given orders: at a candle's open, or at a recorded order book.

An order's cost is side × (its price - paper's) ÷ the reference price, in basis points. Paper's
price is that of the daemon's executor at the same time.

The rules are docs/money.md, M40 and M41.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from tracepaper.daemon.broker.execution import RANGE_BARS, ExecutionCosts, Executor, MeanRange
from tracepaper.replay.archive import Candles, read_candles
from tracepaper.replay.archive.books import RecordedDepth, read_depth
from tracepaper.replay.archive.candles import merge_candles
from tracepaper.replay.archive.executions import Execution
from tracepaper.replay.archive.series import archive_instrument
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.order_book import Books
from tracepaper.strategies.types.decisions import Fill, FillModel, Order, OrderStatus
from tracepaper.strategies.types.market import Instrument, Quote, Side

LATENCY_MOST_MS: Final = 5_000
"""The longest latency that is tried."""
LATENCY_STEP_LEAST_MS: Final = 50


class TakenOrder(NamedTuple):
    """The taker fills of one order: their mean price by quantity, at the time of the first."""

    symbol: str
    side: Side
    price: Decimal
    quantity: Decimal
    time_ms: int
    created_ms: int | None

    @property
    def sent_ms(self) -> int:
        """The time of its creation, or of its first fill where that is unknown."""
        return self.time_ms if self.created_ms is None else self.created_ms


def by_order(executions: Iterable[Execution]) -> list[list[Execution]]:
    """Return *executions* grouped by order; a fill without an order id is a group of its own."""
    groups: dict[object, list[Execution]] = defaultdict(list)
    for place, execution in enumerate(executions):
        groups[
            (execution.symbol, execution.side, execution.order) if execution.order else place
        ].append(execution)
    return list(groups.values())


def orders_of(executions: Iterable[Execution]) -> list[TakenOrder]:
    """Return the orders of *executions*, oldest first."""
    orders = []
    for fills in by_order(executions):
        quantity = sum((execution.quantity for execution in fills), Decimal(0))
        paid = sum((execution.price * execution.quantity for execution in fills), Decimal(0))
        price = fills[0].price if len(fills) == 1 else paid / quantity
        created = [execution.created_ms for execution in fills if execution.created_ms is not None]
        first = fills[0]
        time_ms = min(execution.time_ms for execution in fills)
        orders.append(
            TakenOrder(
                first.symbol, first.side, price, quantity, time_ms, min(created, default=None)
            )
        )
    return sorted(orders, key=lambda order: order.time_ms)


# ---------------------------------------------------------------- paper's fills


class OpenFills:
    """Fills by ``next_open``: at the open of the candle in which an order was sent.

    Raises ``ConfigInvalid`` where two of *candles* have the same symbol.
    """

    model = "next_open"

    def __init__(self, candles: Sequence[Candles]) -> None:
        self._by_symbol = {part.symbol: part for part in candles}
        if len(self._by_symbol) < len(candles):
            raise ConfigInvalid("The candles hold a symbol of two categories; give those of one.")
        self._instruments = {
            symbol: archive_instrument(part) for symbol, part in self._by_symbol.items()
        }
        self._closes = {symbol: part.closes_ms for symbol, part in self._by_symbol.items()}
        self.symbols = frozenset(self._by_symbol)

    def decimals(self, symbol: str) -> int:
        """Return the decimals of a fill's prices."""
        return self._instruments[symbol].price_decimals

    def place(self, order: TakenOrder) -> int | None:
        """Return the row of the candle in which *order* was sent; None without one."""
        part = self._by_symbol[order.symbol]
        row = int(np.searchsorted(part.open_time_ms, order.sent_ms, side="right")) - 1
        return row if row >= 0 and order.sent_ms < int(self._closes[order.symbol][row]) else None

    def age_ms(self, order: TakenOrder) -> int:
        """Return how long after that candle's open a covered *order* was sent."""
        row = self.place(order)
        assert row is not None
        return order.sent_ms - int(self._by_symbol[order.symbol].open_time_ms[row])

    def fill(self, order: TakenOrder, costs: ExecutionCosts, latency_ms: int) -> Fill | None:
        """Return paper's fill at that open; the latency has no effect (M13)."""
        del latency_ms
        row = self.place(order)
        if row is None:
            return None
        part, instrument = self._by_symbol[order.symbol], self._instruments[order.symbol]
        ranges = MeanRange(RANGE_BARS)
        if costs.ranges:
            for bar in part[max(row - RANGE_BARS - 1, 0) : row].bars():
                ranges.push(bar)
        scale = 10 ** (instrument.price_decimals - part.price_decimals)
        executor = Executor(instrument, costs, ranges)
        price, at_ms = int(part.open[row]) * scale, int(part.open_time_ms[row])
        units = int(order.quantity.scaleb(instrument.quantity_decimals)) or 1
        taken = _order(order, instrument, 1, at_ms)
        of_bar = units, int(part.volume[row])
        return executor.taken(taken, price, FillModel.BAR_PATH, at_ms, of_bar=of_bar)


class BookFills:
    """Fills by ``quote``: at the far side of the first recorded book after the latency.

    An order larger than the touch is filled there whole, unless impact is configured.
    """

    model = "quote"

    def __init__(self, books: Sequence[RecordedDepth]) -> None:
        self._by_symbol: dict[str, list[tuple[RecordedDepth, Books]]] = defaultdict(list)
        self._instruments: dict[str, Instrument] = {}
        for part in books:
            symbol = part.header.instrument.symbol
            self._by_symbol[symbol].append((part, part.read_all()))
            self._instruments[symbol] = _instrument_of(part)
        self.symbols = frozenset(self._by_symbol)
        every = max((part.header.every_ms for part in books), default=LATENCY_STEP_LEAST_MS)
        step = max(every, LATENCY_STEP_LEAST_MS)
        self.latency_grid: Final = range(0, LATENCY_MOST_MS + 1, step)

    def decimals(self, symbol: str) -> int:
        """Return the decimals of a fill's prices."""
        return self._instruments[symbol].price_decimals

    def fill(self, order: TakenOrder, costs: ExecutionCosts, latency_ms: int) -> Fill | None:
        """Return paper's fill at the first book after the order was sent and *latency_ms* passed.

        Where only the time of execution is known, it already contains the latency.
        """
        at_ms = order.sent_ms + (latency_ms if order.created_ms is not None else 0)
        instrument = self._instruments[order.symbol]
        for part, books in self._by_symbol[order.symbol]:
            row = int(np.searchsorted(part.times, at_ms))
            if row == len(part.times) or int(part.times[row]) - at_ms >= part.header.every_ms:
                continue
            (bid, ask), (bids, asks) = books.price[row, :, 0], books.size[row, :, 0]
            if not (bids and asks):
                continue
            recorded = part.header.instrument
            scale = 10 ** (instrument.price_decimals - recorded.price_decimals)
            units = int(order.quantity.scaleb(recorded.quantity_decimals)) or 1
            quote = Quote(
                instrument.id,
                int(bid) * scale,
                int(bids),
                int(ask) * scale,
                int(asks),
                at_ms,
                at_ms,
            )
            shown = int(asks if order.side is Side.BUY else bids)
            available = units if costs.impact is None else shown
            taken = _order(order, instrument, units, at_ms)
            return Executor(instrument, costs).at_quote(taken, quote, available)
        return None


PaperFills = OpenFills | BookFills
"""Prices orders by paper's rules: at opens of candles, or at recorded books."""


def _instrument_of(part: RecordedDepth) -> Instrument:
    item, units = part.header.instrument, part.units
    return Instrument(
        item.category, item.symbol, item.symbol, "", item.price_decimals, item.quantity_decimals,
        0, 0, units.price, units.size, 0, 0, 0,
    )  # fmt: skip


def _order(order: TakenOrder, instrument: Instrument, quantity: int, at_ms: int) -> Order:
    return Order(
        "0-0", instrument.id, order.side, quantity, 0, OrderStatus.NEW, "", at_ms, at_ms
    )  # fmt: skip


def cost_bp(order: TakenOrder, fill: Fill, decimals: int) -> float:
    """Return by how many basis points *order* was filled worse than paper's *fill* of it."""
    paper, reference = (
        Decimal(price).scaleb(-decimals) for price in (fill.price, fill.reference_price)
    )
    worse = order.price - paper if order.side is Side.BUY else paper - order.price
    return float(worse / reference * 10_000)


def paper_by(
    candles: Sequence[str] | None,
    depth: Sequence[Path] | None,
    model: str,
    columns: Sequence[str] = (),
) -> PaperFills:
    """Return paper's fills by candles or by order books, whichever are given.

    Raises ``ConfigInvalid`` where neither or both are given, or *model* cannot use them.
    """
    if bool(candles) == bool(depth):
        raise ConfigInvalid(
            "Give --candles FILE (paper fills at the next open) or --depth FILE (at a quote)."
        )
    if candles:
        if model == "quote":
            raise ConfigInvalid("execution.model is quote, which candles lack; give --depth FILE.")
        return OpenFills(merge_candles([read_candles(path, columns=columns) for path in candles]))
    if model == "next_open":
        raise ConfigInvalid("execution.model is next_open, which needs candles; give --candles.")
    return BookFills([read_depth(path) for path in depth or ()])
