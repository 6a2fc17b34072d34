"""Intervals, fees, exact decimals as integers of 10⁻ᵏ, and their formatting.

Days begin at 00:00 UTC, weeks on Monday. The names of intervals and the fees are Bybit's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from math import floor, isfinite, log10
from typing import Final

from msgspec import Struct

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.months import MONTH_MS, month_of, month_start
from tracepaper.strategies.types.market import Instrument

MONEY_DECIMALS: Final = 8
MONEY_SCALE: Final = 10**MONEY_DECIMALS
MONEY_LIMIT: Final = 2**63 - 1
MONEY_MAX: Final = MONEY_LIMIT // MONEY_SCALE
"""Largest whole amount of a currency in 64 bits."""
RATE_DECIMALS: Final = 10
"""Decimals of rates (fees, funding, margins, shares of money) and of amounts per share."""
RATE_SCALE: Final = 10**RATE_DECIMALS

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
WEEK_MS: Final = 7 * DAY_MS
YEAR_MS: Final = 365 * DAY_MS
_MONDAY_MS: Final = 4 * DAY_MS  # the epoch began on a Thursday

INTERVALS: Final[dict[str, int]] = {
    **{str(n): n * MINUTE_MS for n in (1, 3, 5, 15, 30, 60, 120, 240, 360, 720)},
    "D": DAY_MS,
    "W": WEEK_MS,
    "M": MONTH_MS,
}
"""Bybit's intervals in milliseconds; a month is the marker of ``strategies/months.py``."""
INTERVAL_NAMES: Final = {length_ms: name for name, length_ms in INTERVALS.items()}
UNITS_MS: Final = {"m": MINUTE_MS, "min": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS, "w": WEEK_MS}
"""Units of an interval as people and files write it: ``5m``, ``4h``, ``1d``."""

BASE_FEES: Final = {
    "spot": ("0.001", "0.001"),
    "linear": ("0.00055", "0.0002"),
    "inverse": ("0.00055", "0.0002"),
    "option": ("0.0003", "0.0002"),
    "stock": ("0.0005", "0.0005"),
}
"""Fees by category: taker and maker, fractions of the notional; Bybit's base (VIP 0) ones.

Stocks have no common rate: five basis points stand for commission and exchange fees.
"""


_TIME: Final = re.compile(r"(?P<count>\d{1,5}) ?(?P<unit>min|m|h|d|w)", re.IGNORECASE)


def time_of(text: str) -> int | None:
    """Return the milliseconds of a time such as ``30m``, ``4h`` or ``1d``; None for other text."""
    parts = _TIME.fullmatch(text.strip())
    return None if parts is None else int(parts["count"]) * UNITS_MS[parts["unit"].lower()]


def interval_name(written: object) -> str | None:
    """Return the name of the interval that people write as ``1h``, ``1D`` or 60; None for others.

    Of the names ``1m`` and ``1M`` only the second is a month.
    """
    text = str(written).strip()
    if text in INTERVALS or text.upper() in {"D", "W"}:
        return text.upper()
    return "M" if text == "1M" else INTERVAL_NAMES.get(time_of(text) or 0)


def tuple_text(names: Iterable[object]) -> str:
    """Return *names* as a tuple in Python: ``("60", "D")``."""
    listed = [f'"{name}"' for name in names]
    return f"({', '.join(listed)}{',' * (len(listed) == 1)})"


def time_of_day_ms(text: str) -> int:
    """Return the milliseconds from midnight until the time of day *text*, ``HH:MM``."""
    hours, minutes = map(int, text.split(":"))
    return hours * HOUR_MS + minutes * MINUTE_MS


def interval_text(interval_ms: int) -> str:
    """Return *interval_ms* in the largest unit that divides it: ``5m``, ``4h``, ``1d``, ``1M``."""
    if interval_ms == MONTH_MS:
        return "1M"
    for unit in ("w", "d", "h", "m"):
        if interval_ms % UNITS_MS[unit] == 0:
            return f"{interval_ms // UNITS_MS[unit]}{unit}"
    return f"{interval_ms / 1000:g}s"


def bars_in(text: str, interval_ms: int, *, name: str) -> int:
    """Return the number of bars of *interval_ms* in *text*, a time or a number of bars.

    Raises ``ConfigInvalid``, which names *name*, for other text and for partial bars.
    """
    if text.strip().isdecimal() and int(text) > 0:
        return int(text)
    length_ms = time_of(text)
    if not length_ms:
        raise ConfigInvalid(
            f"{name} = {text!r} is neither a time nor bars; write one such as 30m, 4h, 1d or 30."
        )
    if interval_ms == MONTH_MS:
        raise ConfigInvalid(
            f"{name} = {text!r} is a time, and months have no one length; write bars, such as 3."
        )
    if length_ms % interval_ms:
        a_bar = interval_text(interval_ms)
        raise ConfigInvalid(
            f"{name} = {text!r} is no whole number of bars of {a_bar}; write a multiple of "
            f"{a_bar}, or bars."
        )
    return length_ms // interval_ms


def interval_phase(interval_ms: int) -> int:
    """Return the offset of the candles of *interval_ms* from multiples of the interval, in ms.

    Do not use it for months.
    """
    return _MONDAY_MS if interval_ms % WEEK_MS == 0 else 0


def interval_start(time_ms: int, interval_ms: int) -> int:
    """Return the open time of the candle that contains *time_ms*."""
    if interval_ms == MONTH_MS:
        return month_start(month_of(time_ms))
    return time_ms - (time_ms - interval_phase(interval_ms)) % interval_ms


def divide_half_even(numerator: int, denominator: int) -> int:
    """Return *numerator* / *denominator* (positive), rounded half to even."""
    quotient, remainder = divmod(numerator, denominator)
    doubled = 2 * remainder
    if doubled > denominator or (doubled == denominator and quotient & 1):
        quotient += 1
    return quotient


def scaled(value: Decimal, decimals: int, *, name: str) -> int:
    """Return *value* as an integer of 10^-*decimals*; raise if it has more decimals."""
    shifted = value.scaleb(decimals)
    whole = int(shifted)
    if whole != shifted:
        raise ConfigInvalid(f"{name} {value} has more than {decimals} decimals; round it.")
    return whole


def unscaled(value: int, decimals: int) -> str:
    """Return the exact decimal text of *value* x 10^-*decimals*, without trailing zeros."""
    if decimals == 0:
        return str(value)
    sign = "-" if value < 0 else ""
    whole, fraction = divmod(abs(value), 10**decimals)
    text = f"{fraction:0{decimals}d}".rstrip("0")
    return f"{sign}{whole}.{text}" if text else f"{sign}{whole}"


def to_tick(price: float, instrument: Instrument) -> float:
    """Return *price* rounded to the nearest tick of *instrument*."""
    unit, tick = float(10**instrument.price_decimals), instrument.tick_size
    return round(price * unit / tick) * tick / unit


def to_step(quantity: float, instrument: Instrument) -> float:
    """Return *quantity*, in base, rounded to the nearest quantity step of *instrument*."""
    unit, step = float(10**instrument.quantity_decimals), instrument.quantity_step
    return round(quantity * unit / step) * step / unit


def rescaled(value: int, decimals: int, wanted: int) -> int:
    """Return *value* x 10^-*decimals* as an integer of 10^-*wanted*, rounded half to even."""
    if wanted >= decimals:
        return value * int(10 ** (wanted - decimals))
    return divide_half_even(value, int(10 ** (decimals - wanted)))


class Notional(Struct, frozen=True, gc=False):
    """Converts price x quantity of one instrument to money, exactly if the scales allow it."""

    multiplier: int
    divisor: int

    @classmethod
    def of(cls, instrument: Instrument) -> Notional:
        """Return the converter for *instrument*."""
        spare = MONEY_DECIMALS - instrument.price_decimals - instrument.quantity_decimals
        return cls(10**spare, 1) if spare >= 0 else cls(1, 10**-spare)

    def __call__(self, price: int, quantity: int) -> int:
        """Return the money of *quantity* (signed) at *price*, rounded half to even if necessary."""
        if self.divisor == 1:
            return price * quantity * self.multiplier
        return divide_half_even(price * quantity, self.divisor)

    def quantity(self, money: int, price: int) -> int:
        """Return the largest quantity whose notional at *price* is at most *money* (positive)."""
        return money * self.divisor // (price * self.multiplier)


def paid_for(shares: int, share: int, amount: int) -> int:
    """Return the money of *shares* (*share* units each) at *amount* (10⁻¹⁰) per share."""
    return divide_half_even(shares * amount, share * (RATE_SCALE // MONEY_SCALE))


def check_money(money: int, *, name: str) -> int:
    """Return *money*; raise ``ConfigInvalid`` if it exceeds 64 bits."""
    if not -MONEY_LIMIT <= money <= MONEY_LIMIT:
        raise ConfigInvalid(
            f"{name} {unscaled(money, MONEY_DECIMALS)} is beyond {MONEY_MAX:,}; use a smaller one."
        )
    return money


NOTHING: Final = "–"
DECIMALS_MOST: Final = 8
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_DURATIONS: Final = (
    # (below this many ms, unit in ms, decimals, unit)
    (999.5, 1, 0, "ms"),
    (119_950, 1_000, 1, "s"),
    (7_197_000, 60_000, 1, "min"),
    (172_620_000, HOUR_MS, 1, "h"),
    (float("inf"), DAY_MS, 1, "days"),
)


def number(value: float | None, *, digits: int = 4, signed: bool = False) -> str:
    """Return *value* with *digits* significant digits and commas, never with an exponent."""
    if value is None or not isfinite(value):
        return NOTHING
    sign = "+" if signed else ""
    if value == 0:
        return "0"
    places = digits - 1 - floor(log10(abs(value)))
    return without_zeros(f"{value:{sign},.{max(0, min(places, DECIMALS_MOST))}f}")


def money_text(amount: float | Decimal, *, signed: bool = False) -> str:
    """Return an *amount* of money to the cent: ``95,763.75``."""
    return f"{amount:{'+' if signed else ''},.2f}"


def without_zeros(text: str) -> str:
    """Return a decimal without trailing zeros: ``0.058`` for ``0.0580``."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(ms: float | None, *, signed: bool = False) -> str:
    """Return milliseconds in a readable unit: ``42.6 s``, ``1.5 h``."""
    if ms is None or not isfinite(ms):
        return NOTHING
    for below, length, decimals, unit in _DURATIONS:
        if abs(ms) < below:
            return f"{ms / length:{'+' if signed else ''},.{decimals}f} {unit}"
    raise AssertionError  # the last limit is infinite


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 bar``, ``12,000 bars``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float, decimals: int = 2, *, signed: bool = False) -> str:
    """Return a share in per cent: ``0.12 %`` for ``0.0012``, *signed* ``+0.12 %``."""
    return f"{100 * share:{'+' if signed else ''},.{decimals}f} %"


def iso(time_ms: int) -> str:
    """Return a time, UTC milliseconds, as ISO text: ``2025-06-22T00:00:00Z``."""
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace(".000", "").replace("+00:00", "Z")


def minute_text(time_ms: int) -> str:
    """Return a time, UTC milliseconds, to the minute: ``2025-05-26T07:32Z``."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%MZ")


def day_text(time_ms: int) -> str:
    """Return the UTC day of a time, UTC milliseconds: ``2025-05-26``."""
    return minute_text(time_ms)[:10]


def any_of(names: Iterable[str]) -> str:
    """Return two or more *names* as a choice in Markdown: ```a`, `b` or `c```."""
    *first, last = [f"`{name}`" for name in names]
    return f"{', '.join(first)} or {last}"


def visible(text: str) -> str:
    r"""Return *text* with control characters escaped like ``\x1b``, except newlines and tabs.

    That includes characters that change the direction of writing.
    """
    return _CONTROL.sub(_escaped, text)


def _escaped(character: re.Match[str]) -> str:
    code = ord(character[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
