"""Data quality of candles, their instrument, and funding settlements."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.daemon.bybit.instruments import recorded_instruments
from tracepaper.replay.archive.candles import Candles, Span
from tracepaper.replay.archive.columns import IntArray, parse
from tracepaper.replay.archive.names import NAMES, TIME, coins_of, split_argument
from tracepaper.replay.archive.read import of_one_symbol, parsed_times
from tracepaper.replay.archive.tables import read_table
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.sessions import Calendar
from tracepaper.strategies.types.market import Category, Instrument
from tracepaper.strategies.units import HOUR_MS, MINUTE_MS, RATE_DECIMALS


@dataclass(frozen=True)
class Quality:
    """Figures of one file; times are UTC milliseconds of candle opens."""

    path: str
    instrument: str
    interval_ms: int
    rows: int
    first_ms: int
    last_ms: int
    gaps: tuple[Span, ...]  # (first missing open time, open time after it)
    missing: int  # candles missing in the gaps
    zero_volume: int  # candles without volume
    price_decimals: int
    volume_decimals: int
    turnover_decimals: int | None  # None if the file has no turnover
    open_is_previous_close: float | None
    """Share of candles that open at the previous close: all of Bybit's, whose open is no traded
    price; few of those built from trades."""
    flat: int  # candles with a single price
    notes: tuple[str, ...]
    sessions: int | None  # of a share, from the first candle to the last


def quality(candles: Candles) -> Quality:
    """Return the figures of *candles*."""
    consecutive = candles.steps == 1
    same = candles.open[1:] == candles.close[:-1]
    joined = int(np.count_nonzero(consecutive))
    gaps = tuple(candles.gaps)
    calendar = candles.calendar if candles.category is Category.STOCK else None
    return Quality(
        path=candles.path,
        instrument=candles.instrument,
        interval_ms=candles.interval_ms,
        rows=len(candles),
        first_ms=int(candles.open_time_ms[0]),
        last_ms=int(candles.open_time_ms[-1]),
        gaps=gaps,
        missing=candles.missing,
        zero_volume=int(np.count_nonzero(candles.volume == 0)),
        price_decimals=candles.price_decimals,
        volume_decimals=candles.volume_decimals,
        turnover_decimals=None if candles.turnover is None else candles.turnover_decimals,
        open_is_previous_close=int(np.count_nonzero(same & consecutive)) / joined
        if joined
        else None,
        flat=int(np.count_nonzero(candles.high == candles.low)),
        notes=candles.notes,
        sessions=None
        if calendar is None
        else _sessions(calendar, *candles.open_time_ms[[0, -1]].tolist()),
    )


def _sessions(calendar: Calendar, first_ms: int, last_ms: int) -> int:
    """Return the number of sessions from one bar to another."""
    first, last = calendar.place(first_ms), calendar.place(last_ms)
    sessions = calendar.sessions
    opens, closes = (np.array(part) * MINUTE_MS for part in (sessions.opens, sessions.closes))
    inside = (opens >= calendar.opens[first]) & (closes <= calendar.closes[last])
    return int(np.unique(np.array(sessions.days)[inside]).size)


QUANTITY_DECIMALS: Final = {Category.LINEAR: 3, Category.SPOT: 6, Category.STOCK: 0}
"""Defaults without recorded filters: the finest usual steps of a category; whole shares."""
NOTIONAL_DECIMALS: Final = 10
"""The maximum decimals of price and quantity together; finer steps have no value."""
FRACTION_DECIMALS: Final = 3
"""The decimals of fractional shares."""

FUNDING_MINUTES: Final = 480


def archive_instrument(
    candles: Candles, *, fractional: bool = False, currency: str = "USD"
) -> Instrument:
    """Return the instrument under which *candles* are replayed.

    *fractional* allows fractions of shares; *currency* is that of shares.

    The tick is the finer of the data's and the recorded one, since old candles may be finer than
    today's tick. The quantity step is the recorded one, at most 1. The instrument has no limits of
    order size or notional: today's limits would reject orders that were possible then.
    """
    recorded = (
        recorded_instruments().get(candles.symbol) if candles.category is Category.LINEAR else None
    )
    price_decimals = candles.price_decimals
    tick = Decimal(1).scaleb(-price_decimals)
    is_stock = candles.category is Category.STOCK
    quantity_decimals = QUANTITY_DECIMALS[candles.category]
    if is_stock and fractional:
        quantity_decimals = FRACTION_DECIMALS
    step = Decimal(1).scaleb(-quantity_decimals)
    base, quote = (candles.symbol, currency) if is_stock else coins_of(candles.symbol)
    funding = FUNDING_MINUTES if candles.category is Category.LINEAR else 0
    if recorded is not None:
        base, quote = str(recorded["baseCoin"]), str(recorded["quoteCoin"])
        funding = int(recorded["fundingInterval"])
        recorded_tick = Decimal(recorded["priceFilter"]["tickSize"])
        price_decimals = max(price_decimals, _decimals(recorded_tick))
        tick = min(tick, recorded_tick)
        step = min(Decimal(recorded["lotSizeFilter"]["qtyStep"]), Decimal(1))
        quantity_decimals = _decimals(step)
    elif price_decimals + quantity_decimals > NOTIONAL_DECIMALS:
        quantity_decimals = max(NOTIONAL_DECIMALS - price_decimals, 0)
        step = Decimal(1).scaleb(-quantity_decimals)
    return Instrument(
        category=candles.category,
        symbol=candles.symbol,
        base_coin=base,
        quote_coin=quote,
        price_decimals=price_decimals,
        quantity_decimals=quantity_decimals,
        volume_decimals=candles.volume_decimals,
        turnover_decimals=candles.turnover_decimals,
        tick_size=int(tick.scaleb(price_decimals)),
        quantity_step=int(step.scaleb(quantity_decimals)),
        min_quantity=0,
        max_quantity=0,
        min_notional=0,
        funding_interval_minutes=funding,
    )


def _decimals(number: Decimal) -> int:
    """Return the decimals of *number*: 1 for 0.10, 0 for 10."""
    exponent = number.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(-exponent, 0)


PERCENT_FROM: Final = 0.004
"""A median rate from here on is in percent: as a fraction it would be 400 % a year."""
FUNDING_NAMES: Final = {
    TIME: ("fundingtime", "fundingratetimestamp", "calctime", *NAMES[TIME]),
    # What OKX settled; its fundingRate was expected.
    "funding_rate": ("realizedrate", "fundingrate", "lastfundingrate", "rate", "open"),
    "hours": ("fundingintervalhours",),
}


@dataclass(frozen=True, eq=False)
class FundingRates:
    """Settlements of one perpetual, oldest first; ``rate`` in 10⁻¹⁰, paid by longs if positive."""

    path: str
    symbol: str
    time_ms: IntArray
    rate: IntArray
    interval_ms: IntArray | None = None  # since the previous settlement, if the file says it

    @property
    def instrument(self) -> str:
        """The instrument's id, ``linear:BTCUSDT``; only linear contracts have funding here."""
        return f"{Category.LINEAR.value}:{self.symbol}"

    def select(self, rows: NDArray[np.bool_]) -> FundingRates:
        """Return the settlements for which *rows* is true."""
        interval_ms = None if self.interval_ms is None else self.interval_ms[rows]
        return FundingRates(
            self.path, self.symbol, self.time_ms[rows], self.rate[rows], interval_ms
        )

    def __len__(self) -> int:
        return int(self.time_ms.size)


NEIGHBOURS: Final = 4
"""The interval of a settlement is the median distance of so many neighbours on each side."""


def missing_settlements(rates: FundingRates, from_ms: int, until_ms: int) -> list[tuple[int, int]]:
    """Return the due times in (*from_ms*, *until_ms*] that *rates* lack, with the next due time.

    The interval is that of the file, else that of the settlements around, since exchanges change
    it. A single settlement has none.
    """
    times = rates.time_ms
    if times.size < 2:
        return []
    steps = np.diff(times)
    if rates.interval_ms is not None:
        around = rates.interval_ms[1:].tolist()
    else:
        around = [
            int(np.sort(part)[(part.size - 1) // 2])
            for part in (
                steps[max(place - NEIGHBOURS, 0) : place + NEIGHBOURS + 1]
                for place in range(steps.size)
            )
        ]
    dues: list[int] = []
    first, last = int(times[0]), int(times[-1])
    if first > from_ms:
        dues += range(first - (first - from_ms - 1) // around[0] * around[0], first, around[0])
    for at, step, interval in zip(times.tolist(), steps.tolist(), around, strict=False):
        dues += [at + place * interval for place in range(1, round(step / interval))]
    dues += range(last + around[-1], until_ms + 1, around[-1])
    following = np.searchsorted(times, dues, side="right")
    return [
        (due, int(times[place]) if place < times.size else due + around[-1])
        for due, place in zip(dues, following.tolist(), strict=True)
        if from_ms < due <= until_ms
    ]


def read_funding(path: str | Path) -> FundingRates:
    """Return the settlements in a file of times and funding rates, as fractions.

    Rates are rounded half-even to 10⁻¹⁰. Raises ``DataInvalid`` with file and line, and
    ``ConfigInvalid`` if no symbol is known.
    """
    named, file = split_argument(path)
    table, symbol = of_one_symbol(read_table(file, FUNDING_NAMES), named)
    fields = table.find(FUNDING_NAMES)
    for field in (TIME, "funding_rate"):
        if field not in fields:
            names = ", ".join(table.written.values())
            raise DataInvalid(f"{file} has no column {field} (it has {names}): name one so.")
    times, _ = parsed_times(table, fields[TIME], "the time")
    rates = table.checked(fields["funding_rate"], "funding_rate", parse)
    if np.median(np.abs(rates.mantissa)) >= PERCENT_FROM * 10**rates.places:
        raise DataInvalid(
            f"{file} has funding rates of percent, where 0.0001 is wanted for 0.01 %: divide "
            "them by 100, or give more days where they are none."
        )
    for row in np.flatnonzero(np.abs(rates.mantissa) >= 10**rates.places).tolist():
        raise table.refuse("funding_rate is 100 % or more, so it is no rate", row=row, is_row=True)
    hours = table.checked(fields["hours"], "the interval", parse) if "hours" in fields else None
    order = np.argsort(times, kind="stable")
    times, mantissa = times[order], rates.mantissa[order]
    is_again = np.append(False, np.diff(times) == 0)
    for row in order[is_again & (np.append(0, np.diff(mantissa)) != 0)].tolist():
        raise DataInvalid(f"{table.place(row)}: contradicts another rate of its time; remove one.")
    scale = Decimal(10) ** (RATE_DECIMALS - rates.places)
    rate = [
        int((Decimal(value) * scale).to_integral_value()) for value in mantissa[~is_again].tolist()
    ]
    interval_ms = None
    if hours is not None and not hours.places and (hours.mantissa > 0).all():
        interval_ms = (hours.mantissa * HOUR_MS)[order][~is_again]  # else the times are more exact
    return FundingRates(
        str(file),
        symbol,
        times[~is_again],
        np.array(rate, dtype=np.int64),
        interval_ms,
    )
