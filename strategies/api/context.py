"""The context that a strategy gets at a bar's close, and the signals and orders it returns.

The rules are docs/strategies.md, U2 and U4.

Prices are floats in quote currency and quantities floats in base; times are UTC milliseconds of
market time. The engine converts them to exact integers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy.typing as npt
from msgspec import Struct

from tracepaper.strategies.api.arrays import BarArrays, RecentBars
from tracepaper.strategies.api.columns import ColumnRecord
from tracepaper.strategies.api.timeframes import TimeframeBars, is_made_of
from tracepaper.strategies.errors import StrategyFailed
from tracepaper.strategies.order_book import OrderBookHistory
from tracepaper.strategies.types.decisions import (
    Account,
    Action,
    DecisionOutcome,
    Explanation,
    Fill,
    Forecast,
    Order,
    OrderKind,
    OrderRole,
    Position,
    Regime,
)
from tracepaper.strategies.types.market import Bar, Instrument, Side
from tracepaper.strategies.units import INTERVALS, MONEY_SCALE, interval_name, tuple_text

if TYPE_CHECKING:
    from tracepaper.strategies.order_book import Books


class PositionView(Struct, frozen=True, gc=False):
    """The position in the instrument; prices and money in quote currency, quantities in base."""

    quantity: float  # negative if short, 0 without a position
    entry_price: float | None  # mean price of its fills; None without a position
    opened_at: int | None  # market time of the opening fill, UTC ms; None without a position
    bars_held: int  # closes since it was opened, including this one; 0 without a position
    unrealized: float  # profit at the newest mark, before fees
    exact: Position


class OrderView(Struct, frozen=True, gc=False):
    """A resting order."""

    side: Side
    kind: OrderKind
    role: OrderRole
    quantity: float  # still unfilled
    price: float | None
    trigger: float | None
    tag: str
    reason: str
    exact: Order


class FillView(Struct, frozen=True, gc=False):
    """An execution since the last decision on the instrument."""

    side: Side
    quantity: float
    price: float
    fee: float  # in quote currency; 0 for a spot buy, which pays in base
    time: int  # market time, UTC ms
    reason: str
    exact: Fill


class AccountView(Struct, frozen=True, gc=False):
    """The account at the close of the bar, before the decisions of this close."""

    position: PositionView
    orders: tuple[OrderView, ...]  # of the instrument
    fills: tuple[FillView, ...]  # of the instrument
    equity: float  # of all instruments, at the newest marks
    cash: float
    exact: Account


def account_view(
    instrument: Instrument,
    *,
    position: Position,
    opened_ms: int,
    bars_held: int,
    orders: Sequence[Order],
    fills: Sequence[Fill],
    account: Account,
) -> AccountView:
    """Build the view of *account*; *position*, *orders* and *fills* are *instrument*'s.

    *opened_ms* is the market time of the fill that opened *position*, *bars_held* the closes since.
    """
    base, price = 10**instrument.quantity_decimals, 10**instrument.price_decimals
    held = position.quantity
    return AccountView(
        PositionView(
            held / base,
            position.entry_notional * base / (held * MONEY_SCALE) if held else None,
            opened_ms if held else None,
            bars_held if held else 0,
            position.unrealized_pnl / MONEY_SCALE,
            position,
        ),
        tuple(_order_view(order, base, price) for order in orders),
        tuple(_fill_view(fill, base, price) for fill in fills),
        account.equity / MONEY_SCALE,
        account.cash / MONEY_SCALE,
        account,
    )


def _order_view(order: Order, base: int, price: int) -> OrderView:
    return OrderView(
        order.side,
        order.kind,
        order.role,
        (order.quantity - order.filled) / base,
        None if order.price is None else order.price / price,
        None if order.trigger is None else order.trigger / price,
        order.tag,
        order.reason,
        order,
    )


def _fill_view(fill: Fill, base: int, price: int) -> FillView:
    return FillView(
        fill.side,
        fill.quantity / base,
        fill.price / price,
        fill.fee / MONEY_SCALE,
        fill.filled_ms,
        fill.reason,
        fill,
    )


class InstrumentContext(Struct, frozen=True, gc=False):
    """The data that all ``BarContext`` objects of one instrument share."""

    instrument: Instrument
    price_unit: int
    volume_unit: int
    histories: Mapping[Bar, BarArrays]
    columns: Mapping[tuple[Bar, str, bool], Any] | None = None
    books: int = 0

    @classmethod
    def of(cls, instrument: Instrument, record: BarRecord, books: int = 0) -> InstrumentContext:
        """Build it for *instrument*; *books* is the number of order books in ``depth``."""
        # A mapping proxy does not expose the record, so a strategy can read the history up to its
        # own bar, but cannot write to it.
        histories: Mapping[Bar, BarArrays] = MappingProxyType(record)  # type: ignore[arg-type]
        price, volume = 10**instrument.price_decimals, 10**instrument.volume_decimals
        columns: Mapping[tuple[Bar, str, bool], Any] | None = None
        if record.columns is not None:
            columns = MappingProxyType(record.columns)  # type: ignore[arg-type]
        return cls(instrument, price, volume, histories, columns, books)


class BarContext(Struct, frozen=True, gc=False):
    """The data for a strategy's decision at the close of a bar.

    Prices and volume are floats nearest to the exact decimals; ``exact`` holds these as integers.
    """

    exact: Bar
    """The closed bar in integers of 10⁻ᵏ, as the record keeps it."""
    forecast: Forecast | None
    """The model's forecast; None if the strategy needs none, or if it missed the deadline."""
    regime: Regime
    """The attention regime; UNKNOWN without a model."""
    verdict: DecisionOutcome | None
    """The outcome of the last decision on this instrument in this run; None before the first."""
    account: AccountView | None
    """The account before the decisions of this close; None unless ``sees_account``."""
    _shared: InstrumentContext
    _frames: Mapping[str, TimeframeBars] = MappingProxyType({})
    _books: OrderBookHistory | None = None

    @classmethod
    def of(
        cls,
        bars: Sequence[Bar],
        instrument: Instrument,
        *,
        forecast: Forecast | None = None,
        regime: Regime = Regime.UNKNOWN,
        verdict: DecisionOutcome | None = None,
        account: AccountView | None = None,
        books: OrderBookHistory | None = None,
    ) -> BarContext:
        """Build the context at the last of *bars*, all of which its history holds."""
        record = BarRecord(instrument, len(bars))
        for bar in bars:
            record.append(bar)
        shared = InstrumentContext.of(instrument, record, 0 if books is None else books.length)
        return cls(bars[-1], forecast, regime, verdict, account, shared, _books=books)

    @property
    def instrument(self) -> Instrument:
        """The instrument with its scales and trading rules, as the exchange publishes them."""
        return self._shared.instrument

    @property
    def symbol(self) -> str:
        """The instrument's symbol."""
        return self._shared.instrument.symbol

    @property
    def time(self) -> int:
        """The time at which the bar closed, UTC milliseconds."""
        return self.exact.closed_ms

    @property
    def open_time(self) -> int:
        """The time at which the bar opened, UTC milliseconds: the index of a table of candles."""
        return self.exact.open_time_ms

    @property
    def open(self) -> float:
        """Opening price."""
        return self.exact.open / self._shared.price_unit

    @property
    def high(self) -> float:
        """Highest price."""
        return self.exact.high / self._shared.price_unit

    @property
    def low(self) -> float:
        """Lowest price."""
        return self.exact.low / self._shared.price_unit

    @property
    def close(self) -> float:
        """Closing price."""
        return self.exact.close / self._shared.price_unit

    @property
    def volume(self) -> float:
        """Volume, in base."""
        return self.exact.volume / self._shared.volume_unit

    @property
    def share_of_equity(self) -> float:
        """The position's value ÷ equity, negative for a short; 0 without ``sees_account``."""
        if self.account is None or self.account.equity <= 0.0:
            return 0.0
        return self.account.position.quantity * self.close / self.account.equity

    @property
    def explanation(self) -> Explanation | None:
        """The attention behind the model's forecast."""
        return None if self.forecast is None else self.forecast.explanation

    @property
    def history(self) -> BarArrays:
        """The last ``warmup`` closed bars as read-only arrays, this one included."""
        return self._shared.histories[self.exact]

    @property
    def columns(self) -> Columns:
        """The last ``warmup`` rows of the arrays that ``columns`` returned, by name."""
        if self._shared.columns is None:
            raise StrategyFailed(
                "context.columns was read, but the class declares none; define columns(history)."
            )
        return Columns(self._shared.columns, self.exact)

    @property
    def depth(self) -> Books | None:
        """The newest order books up to the bar's close, at most ``books`` of them.

        Books from before the last gap or start are not included. None without any.
        """
        if self._books is None:
            raise StrategyFailed(
                "context.depth was read, but the class declares no books; set books = 100, say."
            )
        return self._books.until(self.time, self._shared.books)

    def timeframe(self, name: str) -> TimeframeBars:
        """Return the closed bars of the higher timeframe *name*, one of the declared ``frames``.

        These are its last ``frames_warmup`` intervals. A bar appears with the bar that closes it; a
        bar with a hole never appears.
        """
        if (bars := self._frames.get(name)) is None:
            declared = f"frames declares {', '.join(map(repr, self._frames)) or 'none'}"
            if (known := interval_name(name)) is None:
                advice = f"there are the intervals {', '.join(INTERVALS)}"
            elif not is_made_of(INTERVALS[known], self.exact.interval_ms):
                advice = "context.history has the run's own bars, which cannot make it"
            elif known in self._frames:
                advice = f'read context.timeframe("{known}")'
            else:
                advice = f"declare frames = {tuple_text((*self._frames, known))}"
                advice += f', and read context.timeframe("{known}")' * (known != name)
            raise StrategyFailed(f"context.timeframe({name!r}) was read, and {declared}; {advice}.")
        return bars


class BarRecord:
    """The last *length* bars of an instrument.

    They become the columns of ``context.history`` only when a strategy reads it, so that runs
    without such a strategy do not import numpy.
    """

    __iter__ = copy = get = items = keys = values = None  # a proxy would expose these

    def __init__(
        self, instrument: Instrument, length: int, columns: ColumnRecord | None = None
    ) -> None:
        self._instrument = instrument
        self._length = length
        self._waiting: deque[Bar] = deque(maxlen=length)
        self._columns: RecentBars | None = None
        self.columns = columns  # declared by the class
        self.append = self._waiting.append if columns is None else self._append_to_both

    def _append_to_both(self, bar: Bar) -> None:
        self._waiting.append(bar)
        if self.columns is not None:
            self.columns.append(bar)

    def extend(self, bars: Sequence[Bar]) -> None:
        """Add *bars*, which the declared columns expect next."""
        self._waiting.extend(bars)
        if self.columns is not None:
            self.columns.extend(bars)

    def __getitem__(self, bar: Bar) -> BarArrays:
        """Return the history up to *bar*, which must be the newest."""
        columns = self._columns
        if columns is None:
            columns = self._columns = RecentBars(self._instrument, self._length)
        if self._waiting:
            columns.extend(self._waiting)
            self._waiting.clear()
        return columns.at(bar)


class Columns:
    """The declared columns by name, each up to the decided bar."""

    __slots__ = ("_bar", "_record")

    def __init__(self, record: Mapping[tuple[Bar, str, bool], Any], bar: Bar) -> None:
        self._record, self._bar = record, bar

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Return the last ``warmup`` rows of column *name*, read-only, this bar's last."""
        rows: npt.NDArray[Any] = self._record[self._bar, name, False]
        return rows

    def last(self, name: str) -> float:
        """Return the newest value of column *name*, at half the cost of its array's last row."""
        value: float = self._record[self._bar, name, True]
        return value


class Percent(Struct, frozen=True):
    """A distance in per cent of the entry price: ``Percent(2)`` is 2 %."""

    value: float


class Volatility(Struct, frozen=True):
    """A distance in multiples of the engine's average true range over a day."""

    multiple: float


Distance = float | Percent | Volatility
"""A float is a price for a stop or a target, and a price distance for a trailing stop."""
Note = Mapping[str, float | str | None]
"""Up to 16 named numbers and texts stored with a decision; None is a non-finite number."""


class Signal(Struct, frozen=True, gc=False):
    """A strategy's signal, before gates and sizing; ``strength`` in [0, 1] scales the size."""

    action: Action
    reason: str
    strength: float = 1.0
    stop: Distance | None = None
    target: Distance | None = None
    trailing: Distance | None = None
    until: int | None = None  # market time at which the position is closed
    reenter: bool = False  # whether the same signal may enter again after a protective exit
    note: Note | None = None
    band: float | None = None  # no-trade band around the target, as a share of a full position
    by_forecast: float | None = None  # strength in the shadow account ``sized_by_forecast``
    uncorrelated: float | None = None  # signed strength in the shadow account ``uncorrelated``


class OrderRequest(Struct, frozen=True, kw_only=True):
    """One order of a list of orders."""

    side: Side
    quantity: float | Decimal
    price: float | None = None  # of a limit
    trigger: float | None = None  # of a stop
    post_only: bool = False
    reduce_only: bool = False
    until: int | None = None  # market time at which it expires; None: never
    tag: str = ""  # a request with the tag of a resting order replaces that order
    reason: str = ""

    @property
    def kind(self) -> OrderKind:
        """The type of the order, which follows from its prices."""
        return OrderKind.of(self.price, self.trigger)


class Cancel(Struct, frozen=True):
    """Cancel the resting order with this tag; an empty tag cancels all orders of lists."""

    tag: str = ""


class Orders(Struct, frozen=True):
    """A list of orders instead of a signal; resting orders with other tags stay."""

    requests: Sequence[OrderRequest | Cancel]
    reason: str
    note: Note | None = None


class OrderTerms(TypedDict, total=False):
    """The optional terms of an order; see ``OrderRequest``."""

    post_only: bool
    reduce_only: bool
    until: int | None
    tag: str
    reason: str


def buy(
    quantity: float | Decimal,
    limit: float | None = None,
    stop: float | None = None,
    **terms: Unpack[OrderTerms],
) -> OrderRequest:
    """Return a request to buy *quantity*, at market or by *limit* and *stop*."""
    return OrderRequest(side=Side.BUY, quantity=quantity, price=limit, trigger=stop, **terms)


def sell(
    quantity: float | Decimal,
    limit: float | None = None,
    stop: float | None = None,
    **terms: Unpack[OrderTerms],
) -> OrderRequest:
    """Return a request to sell *quantity*, at market or by *limit* and *stop*."""
    return OrderRequest(side=Side.SELL, quantity=quantity, price=limit, trigger=stop, **terms)
