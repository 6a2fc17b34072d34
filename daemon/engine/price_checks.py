"""Plausibility of quotes, marks and funding rates, judged across sources.

Pure: it judges by the bars, quotes, marks and trades that the engine was given, so that a record
shows again what was believed.

The rules are docs/money.md, M34 to M38.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import sqrt
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec.structs import replace

from tracepaper.daemon.broker.rules import ASSUMED_LEVERAGE
from tracepaper.strategies.types.market import (
    LEVERAGE_DECIMALS,
    Bar,
    Funding,
    Instrument,
    Mark,
    Quote,
    Trade,
)
from tracepaper.strategies.units import HOUR_MS, MINUTE_MS, RATE_DECIMALS, RATE_SCALE, unscaled

if TYPE_CHECKING:
    from tracepaper.daemon.engine.history import InstrumentState
    from tracepaper.strategies.order_book import Books, OrderBookHistory

USUAL_RANGES: Final = 30.0
"""``execution.plausible``: of 1.5 million minutes of eight perpetuals 62 went further."""
AGREE_WITHIN_MS: Final = 5_000
"""``execution.agree_within_ms``: a live book is sent again each 3 s at the latest."""
LEAST_SHARE: Final = 100
"""No jump is less than this part of the price: venues and sources differ by as much."""
OWN_MS: Final = 2 * MINUTE_MS
"""For so long a source's own last price is one that it may go on from, where others are ahead."""
LEVERAGE_UNKNOWN: Final = ASSUMED_LEVERAGE // 10
"""Of an instrument that does not say its own: the least that the exchange has of perpetuals."""

Price = Quote | Mark | Trade


def largest_rate(instrument: Instrument) -> int:
    """Return the largest funding rate (10⁻¹⁰, without sign) that is believed by itself.

    It is the initial margin at the instrument's greatest leverage. The exchange's own formula
    stays below: three quarters of what initial margin exceeds maintenance margin by.
    """
    greatest = instrument.max_leverage or LEVERAGE_UNKNOWN
    return RATE_SCALE * 10**LEVERAGE_DECIMALS // greatest


class PriceVerdict(NamedTuple):
    """What becomes of a price: whether it is believed, why, and what it lets be believed now."""

    is_believed: bool
    words: str | None = None  # None where nothing was in doubt
    released: tuple[Quote | Mark, ...] = ()


class _SourcePrice(NamedTuple):
    """What a source shows."""

    source: str
    doubled: int  # price


class PriceBelief:
    """What is believed of the prices of one instrument.

    The last believed price is the newest bar's close, or a price since then that jumped and was
    believed; a source that lags may also go on from its own last one. A price that jumps waits for
    another source: mark, index, last trade, quote or trade, of another frame and no more than
    *agree_ms* apart.
    """

    def __init__(self, state: InstrumentState, *, ranges: float, agree_ms: int) -> None:
        self._state = state
        self._ranges = ranges
        self._agree_ms = agree_ms
        self.settled_ms = -1  # the newest settlement that was booked
        self.forget()

    def forget(self) -> None:
        """Forget all prices but the bars', as a restarted process does."""
        self._bar: Bar | None = None  # whose close was believed last
        self._doubled = 0  # the last believed price, doubled, as the middle of a quote is
        self._since_ms = 0
        self._yardstick = 0.0  # usual range of a bar over the root of its minutes, doubled
        # Prices between these are believed without a look at anything else.
        self._low, self._high = 0, -1
        # By kind: the newest, believed or not; what jumped and waits for another source; and what
        # was believed last of the source that waits.
        self._newest: dict[type, Price] = {}
        self._held: dict[type, Quote | Mark] = {}
        self._believed: dict[type, Quote | Mark] = {}
        self._announced: Mark | None = None  # the newest whose ticker announced an absurd rate

    # ------------------------------------------------------------ what the feed asks

    @property
    def holds_quote(self) -> bool:
        """Whether the newest quote was not believed."""
        return Quote in self._held

    def doubts(self, price: Quote | Mark | Funding) -> bool:
        """Return whether *price* would not be believed by itself: others should be shown first."""
        if isinstance(price, Funding):
            return not self.belief_in_rate(price)[0]
        doubled = _doubled(price)
        self._look_at_bars()
        return not self._low <= doubled <= self._high and self._jumps(doubled, price.market_ms)

    def is_evidence(self, price: Price) -> bool:
        """Return whether *price* is evidence for one that was not believed.

        A ticker that announces an absurd rate is some too, for a settlement of the next hour.
        """
        if isinstance(price, Mark) and self._announces(price):
            return True
        return any(
            self._near(held, price.market_ms) and self._adds(price, held)
            for held in self._held.values()
        )

    def _adds(self, price: Price, held: Quote | Mark) -> bool:
        """Return whether *price* shows what *held* did, and its own source did not already."""
        shown = _shown(price)
        if type(price) is type(held):
            if self._agreeing(held, _shown(held)[1:]) is not None:
                return False
            shown = shown[1:]
        return self._agreeing(held, shown) is not None

    def repeats(self, price: Quote | Mark) -> bool:
        """Return whether *price* only says again what its source said and was not believed.

        It comes no more than *agree_ms* later, and would not be believed either.
        """
        held = self._held.get(type(price))
        if held is None or not self._near(held, price.market_ms):
            return False
        self._look_at_bars()
        doubled, at_ms = _doubled(price), price.market_ms
        return (
            abs(doubled - _doubled(held)) <= self._limit(at_ms)
            and self._jumps(doubled, at_ms)
            and not self._goes_on(price)
            and self._agreeing(price, self._others(price)) is None
        )

    def _announces(self, mark: Mark) -> bool:
        """Return whether *mark* announces an absurd rate that is not known, or not as of late."""
        announced, rate = self._announced, mark.funding_rate
        if rate is None or announced is None:
            return rate is not None
        before = announced.funding_rate
        assert before is not None
        is_other = 2 * abs(rate - before) > largest_rate(self._state.instrument)
        return is_other or mark.market_ms - announced.market_ms >= HOUR_MS // 2

    # ------------------------------------------------------------ what the engine does

    def take(self, price: Price) -> PriceVerdict:
        """Take in *price*; return whether it is believed."""
        self._look_at_bars()
        is_believed, words = True, None
        if not isinstance(price, Trade):
            is_believed, words = self._believes(price)
        self._keep(price, is_believed=is_believed)
        released = tuple(self._released(price))
        if released:
            other = "quote" if isinstance(released[0], Quote) else "mark"
            now = f"the {other} before it is believed on this one"
            words = now if words is None else f"{words}; {now}"
        return PriceVerdict(is_believed, words, released)

    def belief_in_rate(self, funding: Funding) -> tuple[bool, str | None]:
        """Return whether the rate of a settlement is believed, and why; None where it is usual."""
        most = largest_rate(self._state.instrument)
        if abs(funding.rate) <= most:
            return True, None
        rate = _percent_of_rate(funding.rate)
        words = f"a funding rate of {rate} is beyond {_percent_of_rate(most)}"
        mark = self._announced
        if mark is not None and abs(mark.market_ms - funding.market_ms) <= HOUR_MS:
            announced = mark.funding_rate
            assert announced is not None
            if abs(announced - funding.rate) <= most:
                return True, f"believed on the ticker's {_percent_of_rate(announced)}: {words}"
            words += f", and the ticker announced {_percent_of_rate(announced)}"
        return False, f"not believed: {words}"

    def doubt_of(self, books: Books) -> str | None:
        """Say of *books* that some lie where no usual price does; None where none does.

        Their bar, which comes after them, decides whether they are believed.
        """
        self._look_at_bars()
        bar = self._bar
        if bar is None or not self._yardstick:
            return None
        limit = self._limit(int(books.seen_ms[-1]))
        low, high = sorted((2 * bar.close, self._doubled))
        mids = books.doubled_mid
        far = mids[(mids < low - limit) | (mids > high + limit)].tolist()
        if not far:
            return None
        base = min((low, high), key=lambda bound: abs(bound - far[-1]))
        return (
            f"not believed unless their bar goes there: {len(far)} of {len(mids)} order books, the "
            f"last at {self._distance(far[-1], base, limit)}"
        )

    def hide_false(self, record: OrderBookHistory, bar: Bar, before: Bar | None) -> None:
        """Hide of *record* what stands up to the last book that *bar* shows to be false.

        *bar* is the newest and *before* the one before it: between its low, its high and that
        close stands every book of its time, give or take what is usual in a minute.
        """
        self._look_at_bars()
        books = record.until(bar.close_time_ms)
        if books is None or not self._yardstick:
            return
        from_ms = bar.open_time_ms if before is None else before.close_time_ms
        last = bar.open if before is None else before.close
        limit = self._limit(bar.close_time_ms)
        mids = books.doubled_mid
        is_far = (mids < 2 * min(bar.low, last) - limit) | (mids > 2 * max(bar.high, last) + limit)
        false_ms = books.seen_ms[is_far & (books.seen_ms > from_ms)].tolist()
        if false_ms:
            record.hide(false_ms[-1])

    def _believes(self, price: Quote | Mark) -> tuple[bool, str | None]:
        """Return whether *price* is believed, and on what; the believed price follows a jump."""
        doubled = _doubled(price)
        if self._low <= doubled <= self._high or self._goes_on(price):
            return True, None
        words = None
        if self._jumps(doubled, price.market_ms):
            others = tuple(self._others(price))
            agreeing = self._agreeing(price, others)
            if agreeing is None:
                return False, f"not believed: {self._jump(price)}; {self._list(others)}"
            words = f"believed on the {self._text(agreeing)}: {self._jump(price)}"
        self._move(doubled, price.market_ms)
        return True, words

    def _own_before(self, price: Quote | Mark) -> Quote | Mark | None:
        """Return the last believed price of the same source, if it is not old."""
        kind = type(price)
        last = self._believed.get(kind) if kind in self._held else self._newest.get(kind)
        if not isinstance(last, kind) or price.market_ms - last.market_ms > OWN_MS:
            return None
        return last

    def _goes_on(self, price: Quote | Mark) -> bool:
        """Return whether *price* is near the last believed one of its own source."""
        last = self._own_before(price)
        if last is None or not self._yardstick:
            return False
        before = _doubled(last)
        least = max(self._ranges * self._yardstick, before / LEAST_SHARE)
        return abs(_doubled(price) - before) <= least

    def _keep(self, price: Price, *, is_believed: bool) -> None:
        """Remember *price* as the newest of its source."""
        if not isinstance(price, Trade):
            last = self._own_before(price)
            self._held.pop(type(price), None)
            if not is_believed:
                self._held[type(price)] = price
                if last is not None:
                    self._believed[type(price)] = last
        if isinstance(price, Mark) and price.funding_rate is not None:
            self._announced = price
        self._newest[type(price)] = price

    def _released(self, price: Price) -> Iterator[Quote | Mark]:
        """Yield what waited and is believed now, dated as *price*."""
        for kind in (Mark, Quote):
            if (held := self._held.get(kind)) is None or held is price:
                continue
            if not self._near(held, price.market_ms):
                continue  # still not believed: the next of its source may not go on from it
            doubled = _doubled(held)
            if self._jumps(doubled, price.market_ms):
                if self._agreeing(held, tuple(self._others(held))) is None:
                    continue
                self._move(doubled, price.market_ms)
            del self._held[kind]
            yield replace(held, market_ms=max(held.market_ms, price.market_ms))

    # ------------------------------------------------------------ how far is far

    def _look_at_bars(self) -> None:
        """Believe the close of a bar that has come since."""
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
        self._move(2 * bar.close, bar.close_time_ms)

    def _move(self, doubled: int, at_ms: int) -> None:
        """Believe a price at *at_ms* from now on."""
        if not self._yardstick:
            return
        self._doubled, self._since_ms = doubled, at_ms
        within = int(self._limit(at_ms))
        self._low, self._high = doubled - within, doubled + within

    def _limit(self, at_ms: int) -> float:
        """Return how far, doubled, a price may lie from the last believed one at *at_ms*.

        What is usual grows with the root of the time, as the range of a bar does.
        """
        minutes = max((at_ms - self._since_ms) / MINUTE_MS, 1.0)
        usual = self._ranges * self._yardstick * sqrt(minutes)
        return max(usual, self._doubled / LEAST_SHARE)

    def _jumps(self, doubled: int, at_ms: int) -> bool:
        """Return whether a price at *at_ms* lies further from the last believed than is usual."""
        return bool(self._yardstick) and abs(doubled - self._doubled) > self._limit(at_ms)

    # ------------------------------------------------------------ other sources

    def _near(self, price: Price, at_ms: int) -> bool:
        return abs(price.market_ms - at_ms) <= self._agree_ms

    def _others(self, price: Quote | Mark) -> Iterator[_SourcePrice]:
        """Yield what the other sources show about the time of *price*, each of another frame."""
        mark, quote, trade = map(self._newest.get, (Mark, Quote, Trade))
        if isinstance(mark, Mark) and self._near(mark, price.market_ms):
            if not isinstance(price, Mark):
                yield from _shown(mark)
            elif mark.market_ms != price.market_ms and mark.price != price.price:
                # Of an earlier ticker all but its mark counts. No ticker speaks for itself, nor for
                # a later one that has left its mark as it was.
                yield from _shown(mark)[1:]
        if isinstance(price, Mark) and quote is not None and self._near(quote, price.market_ms):
            yield from _shown(quote)
        if trade is not None and self._near(trade, price.market_ms):
            yield from _shown(trade)

    def _agreeing(self, price: Quote | Mark, others: Iterable[_SourcePrice]) -> _SourcePrice | None:
        """Return the first of *others* that jumped as *price* did; None where none has.

        It may have gone further, by as much again or a quarter of the price: sources lag in a
        crash, and one that says 1 speaks for nothing.
        """
        doubled, limit = _doubled(price), self._limit(price.market_ms)
        last = self._own_before(price)
        bases = (self._doubled,) if last is None else (self._doubled, _doubled(last))
        for other in others:
            for before in bases:
                sign = 1 if doubled > before else -1
                jump, moved = sign * (doubled - before), sign * (other.doubled - before)
                if moved > 0 and jump - limit <= moved <= jump + max(jump, before // 4):
                    return other
        return None

    # ------------------------------------------------------------ words

    def _jump(self, price: Quote | Mark) -> str:
        return self._distance(_doubled(price), self._doubled, self._limit(price.market_ms))

    def _distance(self, doubled: int, before: int, limit: float) -> str:
        return (
            f"{self._price(doubled)} is {100 * abs(doubled - before) / before:.1f} % from "
            f"{self._price(before)}, beyond {100 * limit / before:.1f} %"
        )

    def _list(self, others: tuple[_SourcePrice, ...]) -> str:
        if not others:
            return "no other source spoke"
        return f"the {', '.join(map(self._text, others))}"

    def _text(self, shown: _SourcePrice) -> str:
        return f"{shown.source} {self._price(shown.doubled)}"

    def _price(self, doubled: int) -> str:
        return unscaled(doubled * 5, self._state.instrument.price_decimals + 1)


def _doubled(price: Quote | Mark) -> int:
    """Return twice the price: of a quote that of its middle."""
    return price.bid + price.ask if isinstance(price, Quote) else 2 * price.price


def _shown(price: Price) -> tuple[_SourcePrice, ...]:
    """Return the value of *price*; of a ticker its mark first."""
    if isinstance(price, Quote):
        return (_SourcePrice("quote", price.bid + price.ask),)
    if isinstance(price, Trade):
        return (_SourcePrice("trade", 2 * price.price),)
    sources = (("index", price.index), ("last trade", price.last))
    others = (_SourcePrice(name, 2 * other) for name, other in sources if other is not None)
    return (_SourcePrice("mark", 2 * price.price), *others)


def _percent_of_rate(rate: int) -> str:
    return f"{unscaled(rate, RATE_DECIMALS - 2)} %"
