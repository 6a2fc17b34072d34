"""Topics as streams of due frames: candles and trades."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Final, NamedTuple

import msgspec

from tracepaper.replay.exchange.candles import Candle, mix
from tracepaper.replay.exchange.fault_kinds import ClosingCandle, FaultEffect
from tracepaper.replay.exchange.faults import Faults
from tracepaper.replay.exchange.market import SimulatedMarket, Venue
from tracepaper.strategies.months import interval_end
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import INTERVALS, interval_start

BOOK_FRAMES_PER_WALL_S: Final = 40
TICKER_FRAMES_PER_WALL_S: Final = 20
TRADE_FRAMES_PER_WALL_S: Final = 50
BOOK_FRAMES_PER_CANDLE_MIN: Final = 5
SYMBOLS_AT_FULL_PACE: Final = 10
"""With more symbols than this the frames per wall second are shared: one process makes all."""
GRID_MS: Final = 100

encode: Final[Callable[[Any], bytes]] = msgspec.json.Encoder().encode


class Frame(NamedTuple):
    """One text frame of *topic*, to be sent at *at_ms* market time."""

    topic: str
    body: bytes
    at_ms: float


Due = tuple[float, Callable[[], list[Frame]]]
"""A market time, and the function that then builds the frames."""


class Channel(ABC):
    """One topic of one category."""

    def opening(self, now_ms: int) -> list[Frame]:
        """Return the state before *now_ms* as frames for a new subscriber; none by default."""
        del now_ms
        return []

    @abstractmethod
    def steps(self, from_ms: int) -> Iterator[Due]:
        """Yield the frames due after *from_ms*, in time order, until the data ends."""

    def reset(self) -> None:  # noqa: B027 - most channels keep no state
        """Forget the state last sent, as nobody listens any more; counters never go back."""


@dataclass(frozen=True)
class FramePace:
    """Market milliseconds between frames; above speed 1 the wall clock limits books and tickers.

    Candles and trades are never dropped: trades close in time share a frame. ``frames`` is the most
    pushes of an open candle and books in it; None sends as many as the exchange.
    """

    speed: float
    symbols: int = 1
    frames: int | None = None

    def trade_gap_ms(self) -> int:
        """Return the span within which trades share a frame; 1 sends each millisecond's alone."""
        return self._gap_ms(TRADE_FRAMES_PER_WALL_S, 1)

    def book_gap_ms(self, interval_ms: int) -> int:
        """Return the least gap between two book frames, for at least five frames a candle."""
        if self.frames is not None:
            return interval_ms // self.frames
        gap = self._gap_ms(BOOK_FRAMES_PER_WALL_S, GRID_MS)
        return min(gap, interval_ms // BOOK_FRAMES_PER_CANDLE_MIN)

    def ticker_gap_ms(self, interval_ms: int) -> int:
        """Return the least gap between two ticker frames, for at least one frame a candle."""
        if self.frames is not None:
            return interval_ms
        return min(self._gap_ms(TICKER_FRAMES_PER_WALL_S, GRID_MS), interval_ms)

    def _gap_ms(self, frames_per_s: int, natural_ms: int) -> int:
        if self.speed <= 1:
            return natural_ms
        share = max(self.symbols / SYMBOLS_AT_FULL_PACE, 1.0)
        return max(natural_ms, int(1000 * self.speed * share / frames_per_s))


@dataclass(frozen=True)
class TopicRequest:
    """A client's topic ``{name}.{argument}.{symbol}`` of a category, with its pace and faults."""

    venue: Venue
    category: str
    topic: str
    pacing: FramePace
    faults: Faults

    @property
    def name(self) -> str:
        """The kind of topic."""
        return self.topic.partition(".")[0]

    @property
    def argument(self) -> str:
        """The text between the name and the symbol."""
        return self.topic.partition(".")[2].rpartition(".")[0]

    @property
    def market(self) -> SimulatedMarket | None:
        """The market of the symbol."""
        return self.venue.find(self.category, self.topic.rpartition(".")[2])


@dataclass(frozen=True)
class Topic:
    """One kind of topic: its form, and the function that makes its channel or returns None."""

    form: str
    function: Callable[[TopicRequest], Channel | None]

    @property
    def name(self) -> str:
        """The first part of the kind's topics."""
        return self.form.partition(".")[0]

    @property
    def meaning(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").partition("\n")[0]


def topic(form: str) -> Callable[[Callable[[TopicRequest], Channel | None]], Topic]:
    """Decorate the function that makes the channels of topics of *form*."""
    return partial(Topic, form)


# ------------------------------------------------------------ candles, trades

PUSH_MS: Final = 1_000
EARLY_CONFIRM_MS: Final = 2_000
"""A fault that marks an open candle as closed does so at least this long before its close."""
UUID_DIGITS: Final = 32


@topic("kline.{interval}.{symbol}")
def kline(request: TopicRequest) -> Channel | None:
    """Send candles: updates of the open one; at a close, the closed and the new one."""
    market = request.market
    if market is None or market.series.table(request.argument) is None:
        return None
    return CandleChannel(
        request.topic, market, request.argument, request.faults, request.pacing.frames
    )


@topic("publicTrade.{symbol}")
def public_trade(request: TopicRequest) -> Channel | None:
    """Send public trades as they happen."""
    if request.market is None or request.argument:
        return None
    return TradeChannel(request.topic, request.market, request.pacing)


class CandleChannel(Channel):
    """One kline topic: updates on a one-second grid after trades, and the roll at a close.

    At the roll linear sends one frame of two candles and spot two frames, 0.1 to 1 s late, as the
    exchange does. The candle faults act here, so that REST stays correct.
    """

    def __init__(
        self,
        topic: str,
        market: SimulatedMarket,
        interval: str,
        faults: Faults,
        frames: int | None = None,
    ) -> None:
        self.topic: Final = topic
        self._frames = frames
        self._market = market
        self._interval, self._length_ms = interval, INTERVALS[interval]
        self._faults = faults
        self._phase = market.seed % PUSH_MS

    def opening(self, now_ms: int) -> list[Frame]:
        """Return the open candle as of the last push."""
        market = self._market
        at_ms = now_ms - (now_ms - self._phase) % PUSH_MS
        row = market.base.row_at(at_ms)
        if not market.is_open(row, now_ms - PUSH_MS):
            return []
        candle = market.series.open_candle(self._interval, row, at_ms)
        return [self._frame([self._element(candle, at_ms, confirm=False)], at_ms)]

    def steps(self, from_ms: int) -> Iterator[Due]:
        """Yield the pushes of each bar and the roll of each candle."""
        market = self._market
        for row in range(max(0, market.base.row_at(from_ms) - 1), len(market.base)):
            for at_ms in self._pushes(row):
                if at_ms > from_ms:
                    yield at_ms, partial(self._pushed, row, at_ms)
            start_ms = interval_start(market.open_ms(row), self._length_ms)
            end_ms = interval_end(start_ms, self._length_ms)
            at_ms = market.confirm_ms(end_ms)
            if self._is_last(row, end_ms) and at_ms > from_ms:
                yield at_ms, partial(self._roll, row, end_ms, at_ms)

    def _is_last(self, row: int, end_ms: int) -> bool:
        """Return whether bar *row* is the data's last one of the candle that ends at *end_ms*."""
        if end_ms > self._market.end_ms:
            return False
        return row + 1 == len(self._market.base) or self._market.open_ms(row + 1) >= end_ms

    def _pushes(self, row: int) -> list[int]:
        """Return the grid times in bar *row* that follow a trade."""
        close_ms = self._market.close_ms(row)
        times = {
            trade.time_ms + (self._phase - trade.time_ms) % PUSH_MS
            for trade in self._market.path(row).trades
        }
        pushes = sorted(time_ms for time_ms in times if time_ms < close_ms)
        return pushes if self._frames is None else pushes[-self._frames :]

    def _pushed(self, row: int, at_ms: int) -> list[Frame]:
        """Return the push of the open candle, as a fault changes it."""
        candle = self._market.series.open_candle(self._interval, row, at_ms)
        element = self._element(candle, at_ms, confirm=False)
        left_ms = interval_end(candle.start_ms, self._length_ms) - at_ms
        if left_ms >= EARLY_CONFIRM_MS and (fault := self._faults.hit("push", at_ms, self.topic)):
            element = fault(element)
        return [self._frame([element], at_ms)]

    def _roll(self, row: int, end_ms: int, at_ms: int) -> list[Frame]:
        """Return the closing frame or frames, as a fault changes them."""
        market = self._market
        candle = market.series.open_candle(self._interval, row, end_ms)
        element = self._element(candle, at_ms, confirm=True)
        effect = FaultEffect((element,))
        if fault := self._faults.hit("close", at_ms, self.topic):
            write = partial(self._element, at_ms=at_ms, confirm=True)
            listing = market.listing
            effect = fault(ClosingCandle(element, candle, listing.tick, listing.step, write))
        opened = self._opened(row, end_ms, at_ms)
        contents = [[*effect.now, *opened]]
        if market.category is Category.SPOT:
            contents = [[*effect.now], opened]
        frames = [self._frame(content, at_ms) for content in contents if content]
        for by_ms, late in effect.later:
            frames.append(self._frame([late | {"timestamp": at_ms + by_ms}], at_ms + by_ms))
        return frames

    def _opened(self, row: int, end_ms: int, at_ms: int) -> list[dict[str, Any]]:
        """Return the new, still empty candle, or nothing before a hole in the data."""
        market = self._market
        if row + 1 == len(market.base) or market.open_ms(row + 1) != end_ms:
            return []
        price = int(market.base.open[row + 1])
        candle = Candle(end_ms, price, price, price, price, 0, 0)
        return [self._element(candle, at_ms, confirm=False)]

    def _element(self, candle: Candle, at_ms: int, *, confirm: bool) -> dict[str, Any]:
        opened, high, low, close, volume, turnover = self._market.candle_texts(candle)
        return {
            "start": candle.start_ms,
            "end": interval_end(candle.start_ms, self._length_ms) - 1,
            "interval": self._interval,
            "open": opened,
            "close": close,
            "high": high,
            "low": low,
            "volume": volume,
            "turnover": turnover,
            "confirm": confirm,
            "timestamp": at_ms,
        }

    def _frame(self, elements: list[dict[str, Any]], at_ms: int) -> Frame:
        body = {"topic": self.topic, "data": elements, "ts": at_ms, "type": "snapshot"}
        return Frame(self.topic, encode(body), at_ms)


class TradeChannel(Channel):
    """One publicTrade topic; trades within the gap of its pace share a frame.

    As on the exchange, a new subscriber gets no past trades.
    """

    def __init__(self, topic: str, market: SimulatedMarket, pacing: FramePace) -> None:
        self.topic: Final = topic
        self._market = market
        self._gap_ms = pacing.trade_gap_ms()

    def steps(self, from_ms: int) -> Iterator[Due]:
        """Yield the trades after *from_ms*, each once."""
        market = self._market
        for row in range(max(0, market.base.row_at(from_ms)), len(market.base)):
            open_ms = market.open_ms(row)
            places = [
                (place, (trade.time_ms - open_ms) // self._gap_ms)
                for place, trade in enumerate(market.path(row).trades)
                if trade.time_ms > from_ms
            ]
            for _, group in groupby(places, key=lambda pair: pair[1]):
                chosen = [place for place, _ in group]
                traded_ms = market.path(row).trades[chosen[-1]].time_ms
                # Between two milliseconds, so that no book frame shows a trade before its print.
                yield traded_ms + 0.5, partial(self._frames, row, chosen, traded_ms)

    def _frames(self, row: int, places: list[int], traded_ms: int) -> list[Frame]:
        market, at_ms = self._market, traded_ms + 1
        elements = [trade_element(market, row, place) for place in places]
        body = {"topic": self.topic, "type": "snapshot", "ts": at_ms, "data": elements}
        return [Frame(self.topic, encode(body), traded_ms + 0.5)]


def trade_element(market: SimulatedMarket, row: int, place: int) -> dict[str, Any]:
    """Return trade number *place* of bar *row* as the stream writes it."""
    path = market.path(row)
    trade = path.trades[place]
    element: dict[str, Any] = {
        "T": trade.time_ms,
        "s": market.symbol,
        "S": "Buy" if trade.is_buy else "Sell",
        "v": market.size_text(trade.size, path.size_scale),
        "p": market.price_text(trade.price),
    }
    if market.category is Category.LINEAR:
        element["L"] = market.directions(row)[place]
    return element | {
        "i": trade_id(market, row, place),
        "BT": False,
        "RPI": False,
        "seq": market.sequence(trade.time_ms),
    }


def trade_id(market: SimulatedMarket, row: int, place: int) -> str:
    """Return a trade's id: a uuid of version 5 on linear, rising digits on spot."""
    open_ms = market.open_ms(row)
    if market.category is Category.SPOT:
        return str(2_290_000_000_000_000_000 + open_ms * 100 + place)
    first = mix(market.seed ^ (open_ms * 64 + place))
    digits = f"{first:016x}{mix(first + 1):016x}"[:UUID_DIGITS]
    return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
