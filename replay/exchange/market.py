"""One symbol's market at a moment: the bar, its trades so far, its state.

Every method is a function of market time and the seed; nothing remembers the moment before.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.archive import Candles
from tracepaper.replay.exchange.candles import (
    TRADES_MOST,
    TURNOVER_DECIMALS,
    Candle,
    CandleSeries,
    CandleTable,
    Marks,
    Path,
    key,
    mix,
    typical_turnover,
    walk,
)
from tracepaper.replay.exchange.instruments import ServedInstrument, list_instrument, padded
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import (
    DAY_MS,
    HOUR_MS,
    INTERVAL_NAMES,
    MINUTE_MS,
    interval_text,
    rescaled,
    unscaled,
)

CONFIRM_DELAY_MS: Final = (100, 1_000)
PATHS_KEPT: Final = 64
SEQUENCE_EPOCH_MS: Final = 1_262_304_000_000
"""2010-01-01; subtracted from times, so that counters made of them stay short."""


class Day(NamedTuple):
    """A ticker's figures for the 24 hours before a bar, without that bar."""

    high: int
    low: int
    volume: int
    turnover: int
    price_day_ago: int
    price_hour_ago: int


class BarProgress(NamedTuple):
    """A bar's values after each trade; all but ``times`` begin with those before any trade."""

    times: list[int]
    highs: list[int]
    lows: list[int]
    volumes: list[int]
    notionals: list[int]


class Touch(NamedTuple):
    """The last trade, whose price is the best bid or the best ask of the book."""

    price: int
    is_buy: bool
    direction: str


class SimulatedMarket:
    """One symbol's simulated market. Prices, sizes and turnovers are integers in its scales."""

    def __init__(self, candles: Candles, *, seed: int, frames: int | None = None) -> None:
        """Raise ``DataInvalid`` where *candles* are of shares, or of no Bybit interval.

        *frames* is the most trades of a bar beside those that make its prices; None: as many as the
        exchange has.
        """
        self._frames = frames
        served = INTERVAL_NAMES.keys() - {MONTH_MS}
        if candles.interval_ms < MINUTE_MS or candles.interval_ms not in served:
            raise DataInvalid(
                f"{candles.path} holds candles of {interval_text(candles.interval_ms)}, which is "
                "no interval of the exchange's data: give 1, 3, 5, 15, 30, 60, 120, 240, 360 or "
                "720 minutes, days or weeks."
            )
        if candles.category is Category.STOCK:
            raise DataInvalid(
                f"{candles.path} holds shares, which the exchange does not trade; replay them by "
                "`tracepaper replay`."
            )
        self.category: Final[Category] = candles.category
        self.symbol: Final = candles.symbol
        self.interval_ms: Final = candles.interval_ms
        self.interval: Final = INTERVAL_NAMES[candles.interval_ms]
        self.listing: Final[ServedInstrument] = list_instrument(candles)
        self.seed: Final = key(seed, candles.category.value, candles.symbol)
        scaled = candles.rescaled(
            price_decimals=self.listing.price_decimals, volume_decimals=self.listing.size_decimals
        )
        turnover, decimals = scaled.turnover, scaled.turnover_decimals
        if turnover is None:
            turnover, decimals = typical_turnover(scaled), TURNOVER_DECIMALS
        # Keep as many decimals as let the sum of all turnovers fit into 62 bits.
        total = int(turnover.sum(dtype=np.float64))
        surplus = min(decimals, len(str(total >> 62).lstrip("0")))
        turnover, self.turnover_decimals = turnover // 10**surplus, decimals - surplus
        scaled = replace(scaled, turnover=turnover, turnover_decimals=self.turnover_decimals)
        self.base: Final = CandleTable(**vars(scaled))
        self.series: Final = CandleSeries(self.base, self.running)
        self._day: tuple[int, Day] | None = None
        self.path = lru_cache(maxsize=PATHS_KEPT)(self._path)
        self.progress = lru_cache(maxsize=PATHS_KEPT)(self._progress)
        self.directions = lru_cache(maxsize=PATHS_KEPT)(self._directions)

    # ------------------------------------------------------------ time

    @property
    def start_ms(self) -> int:
        """The open of the first bar."""
        return int(self.base.open_time_ms[0])

    @property
    def end_ms(self) -> int:
        """The first millisecond after the last bar."""
        return int(self.base.open_time_ms[-1]) + self.interval_ms

    def open_ms(self, row: int) -> int:
        """Return the open time of bar *row*."""
        return int(self.base.open_time_ms[row])

    def close_ms(self, row: int) -> int:
        """Return the first millisecond after bar *row*."""
        return self.open_ms(row) + self.interval_ms

    def is_open(self, row: int, time_ms: int) -> bool:
        """Return whether bar *row* exists and covers *time_ms*."""
        return row >= 0 and time_ms < self.close_ms(row)

    def confirm_ms(self, close_ms: int) -> int:
        """Return when the candle that ends at *close_ms* is confirmed, 0.1 to 1 s later."""
        least, most = CONFIRM_DELAY_MS
        return close_ms + least + mix(self.seed ^ close_ms) % (most - least + 1)

    def sequence(self, time_ms: int) -> int:
        """Return the cross sequence number at *time_ms*; it never decreases."""
        return self.seed % 10**9 + time_ms - SEQUENCE_EPOCH_MS

    # ------------------------------------------------------------ bars and trades

    def _path(self, row: int) -> Path:
        return walk(
            self.base.candle(row),
            interval_ms=self.interval_ms,
            tick=self.listing.tick,
            step=self.listing.step,
            seed=mix(self.seed + self.open_ms(row)),
            typical=int(self.typical_volumes[row]),
            most=TRADES_MOST if self._frames is None else self._frames,
        )

    @cached_property
    def typical_volumes(self) -> NDArray[np.float64]:
        """The mean volume of the bars in the day before each bar; for the first bar, its volume."""
        volumes = self.base.volume.astype(np.float64)
        sums = np.concatenate((np.zeros(1), np.cumsum(volumes)))
        rows = np.arange(len(volumes))
        first = np.maximum(0, rows - max(1, DAY_MS // self.interval_ms))
        means = (sums[rows] - sums[first]) / np.maximum(1, rows - first)
        means[0] = volumes[0]
        return means

    def activity(self, row: int) -> float:
        """Return the volume of bar *row* as a multiple of the typical volume at its time."""
        return float(self.base.volume[row] / max(1.0, self.typical_volumes[row]))

    def _progress(self, row: int) -> BarProgress:
        """Return the times of the trades of bar *row*, and the candle's values after each."""
        trades = self.path(row).trades
        prices = [int(self.base.open[row]), *(trade.price for trade in trades)]
        return BarProgress(
            [trade.time_ms for trade in trades],
            list(accumulate(prices, max)),
            list(accumulate(prices, min)),
            list(accumulate((trade.size for trade in trades), initial=0)),
            list(accumulate((trade.price * trade.size for trade in trades), initial=0)),
        )

    def running(self, row: int, time_ms: int) -> Candle:
        """Return bar *row* as of *time_ms*, made only of its trades up to then.

        The turnover is that of the trades; the closed bar has the data's, so it may change at the
        close.
        """
        closed = self.base.candle(row)
        if time_ms >= closed.start_ms + self.interval_ms:
            return closed
        path, progress = self.path(row), self.progress(row)
        count = bisect_right(progress.times, time_ms)
        decimals = self.listing.price_decimals + self.listing.size_decimals
        return Candle(
            closed.start_ms,
            closed.open,
            progress.highs[count],
            progress.lows[count],
            path.trades[count - 1].price if count else closed.open,
            progress.volumes[count] // path.size_scale,
            rescaled(
                progress.notionals[count] // path.size_scale, decimals, self.turnover_decimals
            ),
        )

    def touch(self, row: int, time_ms: int) -> Touch:
        """Return the last trade at *time_ms* in bar *row*, else the close of the bar before."""
        if count := bisect_right(self.progress(row).times, time_ms):
            trade = self.path(row).trades[count - 1]
            return Touch(trade.price, trade.is_buy, self.directions(row)[count - 1])
        price = int(self.base.close[row - 1]) if row > 0 else int(self.base.open[0])
        if row > 0 and self.path(row - 1).trades:
            is_buy, direction = self.path(row - 1).trades[-1].is_buy, self.directions(row - 1)[-1]
            return Touch(price, is_buy, direction)
        return Touch(price, mix(self.seed ^ row) % 2 == 0, "ZeroPlusTick")

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

    @cached_property
    def marks(self) -> Marks:
        """The index and mark prices, derived from the trades."""
        return Marks(self.base, self.seed)

    @cached_property
    def marked(self) -> CandleSeries:
        """The candles of the mark price."""

        def running(row: int, time_ms: int) -> Candle:
            return self.marks.running(row, self.running(row, time_ms))

        return CandleSeries(self.marks.table(), running)

    # ------------------------------------------------------------ the ticker's figures

    def day(self, row: int) -> Day:
        """Return the figures of the 24 hours before bar *row*."""
        if self._day is not None and self._day[0] == row:
            return self._day[1]
        open_ms = self.open_ms(row)
        first = self.base.row_at(open_ms - DAY_MS - 1) + 1
        hour = max(self.base.row_at(open_ms - HOUR_MS), 0)
        past = slice(min(first, row), row)
        if past.start == row:
            price = int(self.base.open[row])
            day = Day(price, price, 0, 0, price, price)
        else:
            day = Day(
                int(self.base.high[past].max()),
                int(self.base.low[past].min()),
                int(self.base.volume[past].sum()),
                int(self.base.turnover[past].sum()),
                int(self.base.open[past.start]),
                int(self.base.open[hour]),
            )
        self._day = (row, day)
        return day

    @cached_property
    def daily_volume(self) -> int:
        """The mean volume of a day."""
        return int(np.mean(self.base.volume.astype(np.float64)) * DAY_MS / self.interval_ms)

    # ------------------------------------------------------------ text

    def candle_texts(self, candle: Candle) -> tuple[str, str, str, str, str, str]:
        """Return open, high, low, close, volume and turnover as candles write them."""
        scale = self.listing.price_decimals
        return (
            unscaled(candle.open, scale),
            unscaled(candle.high, scale),
            unscaled(candle.low, scale),
            unscaled(candle.close, scale),
            unscaled(candle.volume, self.listing.size_decimals),
            unscaled(candle.turnover, self.turnover_decimals),
        )

    def price_text(self, price: int) -> str:
        """Return *price* as books, trades and tickers write it: padded on linear."""
        write = padded if self.category is Category.LINEAR else unscaled
        return write(price, self.listing.price_decimals)

    def size_text(self, size: int, scale: int = 1) -> str:
        """Return *size* (in 1/*scale* units) as books and trades write it."""
        listing = self.listing
        decimals = listing.size_decimals + (1 if scale > 1 else 0)
        surplus = 10 ** (decimals - listing.step_decimals)
        if self.category is Category.LINEAR and size % surplus == 0:
            return padded(size // surplus, listing.step_decimals)
        return unscaled(size, decimals)


# ------------------------------------------------------------ funding

RATE_DECIMALS: Final = 8
USUAL_RATE: Final = 10_000


def funding_interval_ms(market: SimulatedMarket) -> int:
    """Return the funding interval of *market*; 0 where there is none."""
    return market.listing.funding_minutes * MINUTE_MS


def next_funding_ms(market: SimulatedMarket, time_ms: int) -> int:
    """Return the next settlement after *time_ms*; 0 where there is no funding."""
    interval_ms = funding_interval_ms(market)
    return (time_ms // interval_ms + 1) * interval_ms if interval_ms else 0


def funding_rate(market: SimulatedMarket, settled_ms: int) -> int:
    """Return the rate settled at *settled_ms*, in 10⁻⁸; half of them are the usual 0.0001."""
    number = mix(market.seed + settled_ms)
    if number % 2 == 0:
        return USUAL_RATE
    return (number >> 8) % (3 * USUAL_RATE) - USUAL_RATE


def open_interest(market: SimulatedMarket, time_ms: int) -> int:
    """Return an open interest of about a day's volume, which moves every minute."""
    wiggle = mix(market.seed ^ (time_ms // MINUTE_MS)) % 10_001
    step = market.listing.step
    return max(1, market.daily_volume * (95_000 + wiggle) // (100_000 * step)) * step


# ------------------------------------------------------------ all markets

WARM_UP_BARS: Final = 7_250
"""Default number of bars before the start, so that the default model can warm up over REST."""
SETTLE_MS: Final = 5_000
"""Time starts this far into a bar, when every client takes the bar before it as final."""
HOLE_LINGER_MS: Final = 1_500
"""Time stays this long in a hole, so that the last candle before it is confirmed."""
END_LINGER_MS: Final = 10_000
"""Time stops this long after the last close, so that the last bar is final over REST."""


class Venue:
    """Every market of one exchange."""

    def __init__(self, markets: Sequence[SimulatedMarket]) -> None:
        """Raise ``ConfigInvalid`` where there are no *markets* or two of one symbol."""
        self.markets: Final = {(market.category.value, market.symbol): market for market in markets}
        if len(self.markets) < len(markets) or not markets:
            raise ConfigInvalid("Give at least one --data, and each symbol of a category once.")

    def start_ms(self, start: int | None) -> int:
        """Return where time starts: *start* bars into the data of every market.

        The default is the smaller of the default model's warm-up and half of the data. Raises
        ``ConfigInvalid`` where the shortest data has no such bar.
        """
        rows = [
            (market, start_row(market.symbol, len(market.base), start))
            for market in self.markets.values()
        ]
        return max(market.open_ms(row) for market, row in rows) + SETTLE_MS

    @property
    def end_ms(self) -> int:
        """The first millisecond after all data."""
        return max(market.end_ms for market in self.markets.values())

    def holes(self) -> list[tuple[int, int]]:
        """Return the spans in which no market has a bar, as (from, until)."""
        markets = list(self.markets.values())
        starts = np.concatenate([market.base.open_time_ms for market in markets])
        ends = np.concatenate([market.base.open_time_ms + market.interval_ms for market in markets])
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], np.maximum.accumulate(ends[order])
        after = np.flatnonzero(starts[1:] > ends[:-1])
        return [(int(ends[row]), int(starts[row + 1])) for row in after.tolist()]

    def find(self, category: str, symbol: str) -> SimulatedMarket | None:
        """Return the market of *symbol*, or None."""
        return self.markets.get((category, symbol))


def start_row(symbol: str, count: int, start: int | None) -> int:
    """Return the row of the start bar among the *count* bars of *symbol*."""
    row = min(WARM_UP_BARS, count * 3 // 4) if start is None else start
    if not 0 <= row < count:
        raise ConfigInvalid(
            f"--start {row} lies outside the {count} bars of {symbol}: give 0 to {count - 1}."
        )
    return row


def shifted(parts: Sequence[Candles], now_ms: int, start: int | None) -> list[Candles]:
    """Return *parts* moved together by whole bars, so that *now_ms* lies in the start bar.

    Raises ``ConfigInvalid`` as ``Venue.start_ms`` does.
    """
    if not parts:
        return []
    begins = [part.open_time_ms[start_row(part.symbol, len(part), start)] for part in parts]
    step_ms = math.lcm(*(part.interval_ms for part in parts))
    shift_ms = (now_ms - int(max(begins))) // step_ms * step_ms
    return [replace(part, open_time_ms=part.open_time_ms + shift_ms) for part in parts]
