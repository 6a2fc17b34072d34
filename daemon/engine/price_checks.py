"""Plausibility of quotes, marks and funding rates, judged across sources.

Pure: it depends only on the engine's bars, quotes, marks and trades, so a replay of the record
believes the same prices.

The rules are docs/money.md, M34 to M38.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import sqrt
from typing import Final, NamedTuple

from msgspec.structs import replace

from tracepaper.daemon.broker.execution import MeanRange
from tracepaper.daemon.broker.rules import ASSUMED_LEVERAGE
from tracepaper.strategies.gates.evaluator import YARDSTICK_MEMORY, Plausibility
from tracepaper.strategies.types.market import (
    LEVERAGE_DECIMALS,
    Bar,
    Funding,
    Instrument,
    Mark,
    Quote,
    Trade,
)
from tracepaper.strategies.units import MINUTE_MS, RATE_DECIMALS, RATE_SCALE, percent, unscaled

USUAL_RANGES: Final = 30.0
"""``execution.plausible``: 62 of 1.5 million minutes of eight perpetuals went further."""
AGREE_WITHIN_MS: Final = 5_000
"""``execution.agree_within_ms``: a live book is sent again at least every 3 s."""
LEAST_SHARE: Final = 100
"""A jump is at least one part in this many of the price: venues and sources differ by as much."""
SOURCE_MEMORY_MS: Final = 2 * MINUTE_MS
"""For this long a lagging source may continue from its own last price."""
LEVERAGE_UNKNOWN: Final = ASSUMED_LEVERAGE // 10
"""The leverage of an instrument whose own is unknown: the least of the exchange's perpetuals."""

Price = Quote | Mark | Trade


def largest_rate(instrument: Instrument) -> int:
    """Return the largest funding rate (10⁻¹⁰, unsigned) that is believed.

    It is the initial margin rate at the instrument's greatest leverage. The exchange's own cap is
    lower: three quarters of the difference between initial and maintenance margin rate.
    """
    greatest = instrument.max_leverage or LEVERAGE_UNKNOWN
    return RATE_SCALE * 10**LEVERAGE_DECIMALS // greatest


class PriceVerdict(NamedTuple):
    """Whether a price is believed and why, and the held prices that it confirms."""

    is_believed: bool
    reason: str | None = None  # None if nothing was in doubt
    released: tuple[Quote | Mark, ...] = ()


class _SourcePrice(NamedTuple):
    """The price of one source."""

    source: str
    doubled: int  # twice the price


class KnownBars:
    """What is known of the bars of one instrument, by which its prices are judged."""

    def __init__(self, instrument: Instrument, interval_ms: int) -> None:
        self.instrument = instrument
        self.last_bar: Bar | None = None
        self.day_range = MeanRange.of_day(interval_ms)  # for distances in volatility
        self.plausibility: Plausibility | None = None  # of the bars; None if no gate judges them

    def usual_range(self) -> int | None:
        """Return twice the median of the last 60 positive true ranges; None under ten bars.

        Without the gate ``plausible`` it is computed from the bars of the day's mean range.
        """
        if self.plausibility is not None:
            return self.plausibility.doubled_median
        yardstick = Plausibility()
        for bar in reversed(self.day_range.last(YARDSTICK_MEMORY)):
            yardstick.add(bar, self.instrument.tick_size)
        return yardstick.doubled_median


class AcceptedPrices:
    """Decides which prices of one instrument are believed.

    The reference is the newest bar's close, or a believed price since then that jumped. A lagging
    source may also continue from its own last price. A price that jumps is held until another
    source confirms it: a mark, index, last trade, quote or trade of another frame, at most
    *agree_ms* apart.
    """

    def __init__(self, state: KnownBars, *, ranges: float, agree_ms: int) -> None:
        self._state = state
        self._ranges = ranges
        self._agree_ms = agree_ms
        self.settled_ms = -1  # the newest settlement that was booked
        self.forget()

    def forget(self) -> None:
        """Forget all prices except the bars', as a restart does."""
        self._bar: Bar | None = None  # the newest bar that was taken into account
        self._doubled = 0  # twice the reference price, so that the middle of a quote is an integer
        self._since_ms = 0
        self._yardstick = 0.0  # usual range of a bar over the root of its minutes, doubled
        # Doubled prices between these are believed without further checks.
        self._low, self._high = 0, -1
        # By kind: the newest price, believed or not; a price that jumped and is held; and the last
        # believed price of the source whose price is held.
        self._newest: dict[type, Price] = {}
        self._held: dict[type, Quote | Mark] = {}
        self._believed: dict[type, Quote | Mark] = {}

    # ------------------------------------------------------------ questions of the feed

    @property
    def holds_quote(self) -> bool:
        """Whether the newest quote was not believed."""
        return Quote in self._held

    def doubts(self, price: Quote | Mark | Funding) -> bool:
        """Return whether *price* would not be believed alone, so other sources should go first."""
        if isinstance(price, Funding):
            return self.doubt_of_rate(price) is not None
        doubled = _doubled(price)
        self._follow_bars()
        return not self._low <= doubled <= self._high and self._jumps(doubled, price.market_ms)

    def is_evidence(self, price: Price) -> bool:
        """Return whether *price* is evidence for a held price."""
        return any(
            self._is_near(held, price.market_ms) and self._confirms(price, held)
            for held in self._held.values()
        )

    def _confirms(self, price: Price, held: Quote | Mark) -> bool:
        """Return whether *price* confirms *held*, in a way that its own source did not before."""
        sources = _source_prices(price)
        if type(price) is type(held):
            if self._agreeing(held, _source_prices(held)[1:]) is not None:
                return False
            sources = sources[1:]
        return self._agreeing(held, sources) is not None

    def repeats(self, price: Quote | Mark) -> bool:
        """Return whether *price* only repeats the held price of its source.

        It does if it comes within *agree_ms*, is near the held price, and would be held as well.
        """
        held = self._held.get(type(price))
        if held is None or not self._is_near(held, price.market_ms):
            return False
        self._follow_bars()
        doubled, at_ms = _doubled(price), price.market_ms
        return (
            abs(doubled - _doubled(held)) <= self._limit(at_ms)
            and self._jumps(doubled, at_ms)
            and not self._continues(price)
            and self._agreeing(price, self._other_prices(price)) is None
        )

    # ------------------------------------------------------------ judging

    def take(self, price: Price) -> PriceVerdict:
        """Judge *price* and remember it."""
        self._follow_bars()
        is_believed, reason = True, None
        if not isinstance(price, Trade):
            is_believed, reason = self._believes(price)
        self._remember(price, is_believed=is_believed)
        released = tuple(self._released(price))
        if released:
            other = "quote" if isinstance(released[0], Quote) else "mark"
            release = f"the {other} before it is believed on this one"
            reason = release if reason is None else f"{reason}; {release}"
        return PriceVerdict(is_believed, reason, released)

    def doubt_of_rate(self, funding: Funding) -> str | None:
        """Return why the rate of a settlement is not believed; None for a usual rate."""
        most = largest_rate(self._state.instrument)
        if abs(funding.rate) <= most:
            return None
        rate, limit = (unscaled(each, RATE_DECIMALS - 2) for each in (funding.rate, most))
        return f"not believed: a funding rate of {rate} % is beyond {limit} %"

    def _believes(self, price: Quote | Mark) -> tuple[bool, str | None]:
        """Return whether *price* is believed, and why; a believed jump becomes the reference."""
        doubled = _doubled(price)
        if self._low <= doubled <= self._high or self._continues(price):
            return True, None
        reason = None
        if self._jumps(doubled, price.market_ms):
            others = tuple(self._other_prices(price))
            agreeing = self._agreeing(price, others)
            if agreeing is None:
                return False, f"not believed: {self._jump(price)}; {self._list(others)}"
            reason = f"believed on the {self._text(agreeing)}: {self._jump(price)}"
        self._set_reference(doubled, price.market_ms)
        return True, reason

    def _last_believed(self, price: Quote | Mark) -> Quote | Mark | None:
        """Return the last believed price of the same source, if it is not too old, or None."""
        kind = type(price)
        last = self._believed.get(kind) if kind in self._held else self._newest.get(kind)
        if not isinstance(last, kind) or price.market_ms - last.market_ms > SOURCE_MEMORY_MS:
            return None
        return last

    def _continues(self, price: Quote | Mark) -> bool:
        """Return whether *price* is near the last believed price of its own source."""
        last = self._last_believed(price)
        if last is None or not self._yardstick:
            return False
        before = _doubled(last)
        least = max(self._ranges * self._yardstick, before / LEAST_SHARE)
        return abs(_doubled(price) - before) <= least

    def _remember(self, price: Price, *, is_believed: bool) -> None:
        """Remember *price* as the newest of its source, and hold it if it is not believed."""
        if not isinstance(price, Trade):
            last = self._last_believed(price)
            self._held.pop(type(price), None)
            if not is_believed:
                self._held[type(price)] = price
                if last is not None:
                    self._believed[type(price)] = last
        self._newest[type(price)] = price

    def _released(self, price: Price) -> Iterator[Quote | Mark]:
        """Yield the held prices that *price* confirms, with the time of *price*."""
        for kind in (Mark, Quote):
            if (held := self._held.get(kind)) is None or held is price:
                continue
            if not self._is_near(held, price.market_ms):
                continue  # still not believed: the source cannot continue from it
            doubled = _doubled(held)
            if self._jumps(doubled, price.market_ms):
                if self._agreeing(held, tuple(self._other_prices(held))) is None:
                    continue
                self._set_reference(doubled, price.market_ms)
            del self._held[kind]
            yield replace(held, market_ms=max(held.market_ms, price.market_ms))

    # ------------------------------------------------------------ limits

    def _follow_bars(self) -> None:
        """Make the close of a new bar the reference."""
        bar = self._state.last_bar
        if bar is self._bar or bar is None:
            return
        self._bar = bar
        usual = self._state.usual_range()
        if usual is None:
            self._yardstick = 0.0
            self._low, self._high = 0, 2**63
            return
        usual = max(usual, 2 * self._state.instrument.tick_size)
        self._yardstick = usual / sqrt(max(bar.interval_ms / MINUTE_MS, 1.0))
        self._set_reference(2 * bar.close, bar.close_time_ms)

    def _set_reference(self, doubled: int, at_ms: int) -> None:
        """Make a price at *at_ms* the reference."""
        if not self._yardstick:
            return
        self._doubled, self._since_ms = doubled, at_ms
        within = int(self._limit(at_ms))
        self._low, self._high = doubled - within, doubled + within

    def _limit(self, at_ms: int) -> float:
        """Return the largest usual distance (doubled) from the reference to a price at *at_ms*.

        It grows with the root of the time, as the range of a bar does.
        """
        minutes = max((at_ms - self._since_ms) / MINUTE_MS, 1.0)
        usual = self._ranges * self._yardstick * sqrt(minutes)
        return max(usual, self._doubled / LEAST_SHARE)

    def _jumps(self, doubled: int, at_ms: int) -> bool:
        """Return whether a price at *at_ms* is unusually far from the reference."""
        return bool(self._yardstick) and abs(doubled - self._doubled) > self._limit(at_ms)

    # ------------------------------------------------------------ other sources

    def _is_near(self, price: Price, at_ms: int) -> bool:
        return abs(price.market_ms - at_ms) <= self._agree_ms

    def _other_prices(self, price: Quote | Mark) -> Iterator[_SourcePrice]:
        """Yield the prices of other sources around the time of *price*, each of another frame."""
        mark, quote, trade = map(self._newest.get, (Mark, Quote, Trade))
        if isinstance(mark, Mark) and self._is_near(mark, price.market_ms):
            if not isinstance(price, Mark):
                yield from _source_prices(mark)
            elif mark.market_ms != price.market_ms and mark.price != price.price:
                # Index and last trade of an earlier ticker count. A ticker is no evidence for
                # itself, nor for a later one with the same mark.
                yield from _source_prices(mark)[1:]
        if isinstance(price, Mark) and quote is not None and self._is_near(quote, price.market_ms):
            yield from _source_prices(quote)
        if trade is not None and self._is_near(trade, price.market_ms):
            yield from _source_prices(trade)

    def _agreeing(self, price: Quote | Mark, others: Iterable[_SourcePrice]) -> _SourcePrice | None:
        """Return the first of *others* that jumped as *price* did, or None.

        It may have moved further, by as much again or by a quarter of the price, since sources lag
        in a crash. A price that moved still further, to 1 for instance, confirms nothing.
        """
        doubled, limit = _doubled(price), self._limit(price.market_ms)
        last = self._last_believed(price)
        bases = (self._doubled,) if last is None else (self._doubled, _doubled(last))
        for other in others:
            for base in bases:
                sign = 1 if doubled > base else -1
                jump, distance = sign * (doubled - base), sign * (other.doubled - base)
                if distance > 0 and jump - limit <= distance <= jump + max(jump, base // 4):
                    return other
        return None

    # ------------------------------------------------------------ texts

    def _jump(self, price: Quote | Mark) -> str:
        doubled, before = _doubled(price), self._doubled
        limit = self._limit(price.market_ms)
        return (
            f"{self._price(doubled)} is {percent(abs(doubled - before) / before, 1)} from "
            f"{self._price(before)}, beyond {percent(limit / before, 1)}"
        )

    def _list(self, others: tuple[_SourcePrice, ...]) -> str:
        if not others:
            return "no other source confirmed it"
        return f"the {', '.join(map(self._text, others))}"

    def _text(self, price: _SourcePrice) -> str:
        return f"{price.source} {self._price(price.doubled)}"

    def _price(self, doubled: int) -> str:
        return unscaled(doubled * 5, self._state.instrument.price_decimals + 1)


def _doubled(price: Quote | Mark) -> int:
    """Return twice the price; the price of a quote is its middle."""
    return price.bid + price.ask if isinstance(price, Quote) else 2 * price.price


def _source_prices(price: Price) -> tuple[_SourcePrice, ...]:
    """Return the prices that *price* contains; of a ticker, the mark first."""
    if isinstance(price, Quote):
        return (_SourcePrice("quote", price.bid + price.ask),)
    if isinstance(price, Trade):
        return (_SourcePrice("trade", 2 * price.price),)
    sources = (("index", price.index), ("last trade", price.last))
    others = (_SourcePrice(name, 2 * other) for name, other in sources if other is not None)
    return (_SourcePrice("mark", 2 * price.price), *others)
