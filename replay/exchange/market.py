"""One symbol's market at any moment: the bar, its trades so far, and the state that follows.

Every method is a function of market time and the seed; nothing remembers the moment before.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from tracepaper.replay.exchange.instruments import Listing, list_instrument
from tracepaper.replay.exchange.intervals import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    bucket_start,
    is_coarser,
    is_name,
    name_of,
)
from tracepaper.replay.exchange.noise import key, mix
from tracepaper.replay.exchange.path import Candle, Path, walk
from tracepaper.replay.exchange.table import (
    TURNOVER_DECIMALS,
    Table,
    aggregate,
    typical_turnover,
)
from tracepaper.replay.exchange.text import padded, plain, rescaled
from tracepaper.replay.importers import Candles
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types import Category

CONFIRM_DELAY_MS: Final = (100, 1_000)
PATHS_KEPT: Final = 64
SEQUENCE_EPOCH_MS: Final = 1_262_304_000_000
"""2010-01-01: counters derived from time stay short."""


class Day(NamedTuple):
    """What a ticker says of the day before one bar, that bar excluded."""

    high: int
    low: int
    volume: int
    turnover: int
    price_day_ago: int
    price_hour_ago: int


class Touch(NamedTuple):
    """The last trade, which stands at the touch of the book."""

    price: int
    is_buy: bool
    direction: str


class Market:
    """The served market of one symbol. Prices, sizes and turnovers are integers of its scales."""

    def __init__(self, candles: Candles, *, seed: int) -> None:
        """Raise ``DataInvalid`` where *candles* are finer than a minute or of no Bybit interval."""
        if candles.interval_ms < MINUTE_MS or name_of(candles.interval_ms) is None:
            raise DataInvalid(
                f"{candles.path} holds candles of {candles.interval_ms // 1000} s, which is no "
                "interval of the exchange: give 1, 3, 5, 15, 30, 60, 120, 240, 360 or 720 minutes, "
                "days or weeks."
            )
        self.category: Final[Category] = candles.category
        self.symbol: Final = candles.symbol
        self.interval_ms: Final = candles.interval_ms
        self.interval: Final = str(name_of(candles.interval_ms))
        self.listing: Final[Listing] = list_instrument(candles)
        self.seed: Final = key(seed, candles.category.value, candles.symbol)
        self.base: Final = _base_table(candles, self.listing)
        self.turnover_decimals: Final = (
            TURNOVER_DECIMALS if candles.turnover is None else candles.turnover_decimals
        )
        self._tables: dict[str, Table] = {self.interval: self.base}
        self._day: tuple[int, Day] | None = None
        self.path = lru_cache(maxsize=PATHS_KEPT)(self._path)
        self.directions = lru_cache(maxsize=PATHS_KEPT)(self._directions)

    # ------------------------------------------------------------ time

    @property
    def start_ms(self) -> int:
        """The open of the first bar."""
        return int(self.base.start_ms[0])

    @property
    def end_ms(self) -> int:
        """The first millisecond after the last bar."""
        return int(self.base.start_ms[-1]) + self.interval_ms

    def open_ms(self, row: int) -> int:
        """Return the open time of bar *row*."""
        return int(self.base.start_ms[row])

    def close_ms(self, row: int) -> int:
        """Return the first millisecond after bar *row*."""
        return self.open_ms(row) + self.interval_ms

    def is_open(self, row: int, time_ms: int) -> bool:
        """Return whether bar *row* exists and covers *time_ms*."""
        return row >= 0 and time_ms < self.close_ms(row)

    def confirm_ms(self, close_ms: int) -> int:
        """Return when the candle that ends at *close_ms* is confirmed (PROTOCOL 7)."""
        least, most = CONFIRM_DELAY_MS
        return close_ms + least + mix(self.seed ^ close_ms) % (most - least + 1)

    def sequence(self, time_ms: int) -> int:
        """Return the cross sequence at *time_ms*: it never goes back."""
        return self.seed % 10**9 + time_ms - SEQUENCE_EPOCH_MS

    # ------------------------------------------------------------ bars and trades

    def _path(self, row: int) -> Path:
        return walk(
            self.base.candle(row),
            interval_ms=self.interval_ms,
            tick=self.listing.tick,
            step=self.listing.step,
            seed=mix(self.seed + self.open_ms(row)),
        )

    def running(self, row: int, time_ms: int) -> Candle:
        """Return bar *row* as it stands at *time_ms*, from the trades so far alone.

        Its turnover is the trades' own; the closed bar has the data's, so it may move at the close.
        """
        whole = self.base.candle(row)
        if time_ms >= whole.start_ms + self.interval_ms:
            return whole
        path = self.path(row)
        prices = [whole.open]
        volume = paid = 0
        for trade in path.trades:
            if trade.time_ms > time_ms:
                break
            prices.append(trade.price)
            volume += trade.size
            paid += trade.price * trade.size
        decimals = self.listing.price_decimals + self.listing.size_decimals
        return Candle(
            whole.start_ms,
            whole.open,
            max(prices),
            min(prices),
            prices[-1],
            volume // path.size_scale,
            rescaled(paid // path.size_scale, decimals, self.turnover_decimals),
        )

    def touch(self, row: int, time_ms: int) -> Touch:
        """Return the last trade at *time_ms* in bar *row*, else the close of the bar before."""
        price = int(self.base.close[row - 1]) if row > 0 else int(self.base.open[0])
        is_buy, direction = mix(self.seed ^ row) % 2 == 0, "ZeroPlusTick"
        if row > 0 and self.path(row - 1).trades:
            is_buy, direction = self.path(row - 1).trades[-1].is_buy, self.directions(row - 1)[-1]
        for trade, name in zip(self.path(row).trades, self.directions(row), strict=True):
            if trade.time_ms > time_ms:
                break
            price, is_buy, direction = trade.price, trade.is_buy, name
        return Touch(price, is_buy, direction)

    def _directions(self, row: int) -> list[str]:
        """Return the tick direction of each trade of bar *row*."""
        trades = self.path(row).trades
        before = int(self.base.close[row - 1]) if row > 0 else int(self.base.open[0])
        names: list[str] = []
        last = "Plus"
        for earlier, later in pairwise([before, *(trade.price for trade in trades)]):
            if later != earlier:
                last = "Plus" if later > earlier else "Minus"
            names.append(f"{'' if later != earlier else 'Zero'}{last}Tick")
        return names

    # ------------------------------------------------------------ candles of any interval

    def table(self, interval: str) -> Table | None:
        """Return the candles at *interval*, or None where the data cannot make them."""
        if interval not in self._tables:
            if not is_name(interval) or not is_coarser(interval, self.interval_ms):
                return None
            self._tables[interval] = aggregate(self.base, interval)
        return self._tables[interval]

    def open_candle(self, interval: str, row: int, time_ms: int) -> Candle:
        """Return the candle at *interval* around bar *row*, with nothing after *time_ms* in it."""
        now = self.running(row, time_ms)
        if interval == self.interval:
            return now
        start = bucket_start(self.open_ms(row), interval)
        first = self.base.row_at(start - 1) + 1
        if first == row:
            return now._replace(start_ms=start)
        past = slice(first, row)
        return Candle(
            start,
            int(self.base.open[first]),
            max(int(self.base.high[past].max()), now.high),
            min(int(self.base.low[past].min()), now.low),
            now.close,
            int(self.base.volume[past].sum()) + now.volume,
            int(self.base.turnover[past].sum()) + now.turnover,
        )

    def is_open_in(self, interval: str, row: int, time_ms: int) -> bool:
        """Return whether the candle at *row* of the table of *interval* is open at *time_ms*."""
        table = self.table(interval)
        return table is not None and time_ms < table.end_of(row, interval)

    # ------------------------------------------------------------ what a ticker says

    def day(self, row: int) -> Day:
        """Return the figures of the 24 hours before bar *row*."""
        if self._day is None or self._day[0] != row:
            self._day = (row, self._day_before(row))
        return self._day[1]

    def _day_before(self, row: int) -> Day:
        now = self.open_ms(row)
        first = self.base.row_at(now - DAY_MS - 1) + 1
        hour = max(self.base.row_at(now - HOUR_MS), 0)
        past = slice(min(first, row), row)
        if past.start == row:
            price = int(self.base.open[row])
            return Day(price, price, 0, 0, price, price)
        return Day(
            int(self.base.high[past].max()),
            int(self.base.low[past].min()),
            int(self.base.volume[past].sum()),
            int(self.base.turnover[past].sum()),
            int(self.base.open[past.start]),
            int(self.base.open[hour]),
        )

    def marked(self, candle: Candle, start: int) -> Candle:
        """Return the mark price's candle for a trade candle; *start* is the close before it.

        The data holds no mark prices: the mark is the last trade, and a mark candle opens at the
        last close, as the exchange's do. It has no volume.
        """
        high, low = max(start, candle.high), min(start, candle.low)
        return Candle(candle.start_ms, start, high, low, candle.close, 0, 0)

    @cached_property
    def daily_volume(self) -> int:
        """The mean volume of a day."""
        return int(np.mean(self.base.volume.astype(np.float64)) * DAY_MS / self.interval_ms)

    # ------------------------------------------------------------ text

    def candle_texts(self, candle: Candle) -> tuple[str, str, str, str, str, str]:
        """Return open, high, low, close, volume and turnover as candles write them."""
        scale = self.listing.price_decimals
        return (
            plain(candle.open, scale),
            plain(candle.high, scale),
            plain(candle.low, scale),
            plain(candle.close, scale),
            plain(candle.volume, self.listing.size_decimals),
            plain(candle.turnover, self.turnover_decimals),
        )

    def price_text(self, price: int) -> str:
        """Return *price* as books, trades and tickers write it: padded on linear."""
        write = padded if self.category is Category.LINEAR else plain
        return write(price, self.listing.price_decimals)

    def size_text(self, size: int, scale: int = 1) -> str:
        """Return *size* (in 1/*scale* units) as books and trades write it."""
        listing = self.listing
        decimals = listing.size_decimals + (1 if scale > 1 else 0)
        surplus = 10 ** (decimals - listing.step_decimals)
        if self.category is Category.LINEAR and size % surplus == 0:
            return padded(size // surplus, listing.step_decimals)
        return plain(size, decimals)


def _base_table(candles: Candles, listing: Listing) -> Table:
    """Return the data in the scales of *listing*, with a turnover."""
    scaled = candles.rescaled(
        price_decimals=listing.price_decimals, volume_decimals=listing.size_decimals
    )
    rows = np.arange(len(scaled), dtype=np.int64)
    zeros = np.zeros(len(scaled), dtype=np.int64)
    columns = (scaled.open_time_ms, scaled.open, scaled.high, scaled.low, scaled.close)
    if scaled.turnover is not None:
        return Table(*columns, scaled.volume, scaled.turnover, rows)
    table = Table(*columns, scaled.volume, zeros, rows)
    turnover = typical_turnover(
        table, price_decimals=listing.price_decimals, size_decimals=listing.size_decimals
    )
    return Table(*columns, scaled.volume, turnover, rows)
