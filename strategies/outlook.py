"""``Outlook``: what a strategy sees at the close of a bar.

The rule is docs/strategies.md, U2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec import Struct

from tracepaper.strategies.account_view import AccountView
from tracepaper.strategies.book_record import BookRecord
from tracepaper.strategies.errors import StrategyFailed
from tracepaper.strategies.frames import FrameBars
from tracepaper.strategies.types import (
    Bar,
    DecisionOutcome,
    Explanation,
    Forecast,
    Instrument,
    Regime,
)

if TYPE_CHECKING:
    from tracepaper.strategies.books import Books
    from tracepaper.strategies.history import BarArrays, BarColumns


class Sight(Struct, frozen=True, gc=False):
    """What the outlooks of one instrument have in common."""

    instrument: Instrument
    price_unit: int
    volume_unit: int
    histories: Mapping[Bar, BarArrays]

    @classmethod
    def of(cls, instrument: Instrument, record: BarRecord) -> Sight:
        """Return what outlooks of *instrument* share, whose bars *record* keeps."""
        # A proxy of a mapping has no attribute that leads to it: of the record a strategy reaches
        # the history up to the bar that it is given, and nothing that could be written.
        histories: Mapping[Bar, BarArrays] = MappingProxyType(record)  # type: ignore[arg-type]
        return cls(
            instrument, 10**instrument.price_decimals, 10**instrument.volume_decimals, histories
        )


class Outlook(Struct, frozen=True, gc=False):
    """What a strategy may know when it decides, at the close of a bar.

    Prices and volume are floats in units of the market: the nearest to the exact decimals, which
    ``exact`` holds as integers.
    """

    exact: Bar
    """The closed bar in integers of 10⁻ᵏ, as the record keeps it."""
    forecast: Forecast | None
    """What the model says; None where the strategy needs none, and where none was in time."""
    regime: Regime
    """Where the model's attention lies; UNKNOWN without a model."""
    verdict: DecisionOutcome | None
    """What became of the last decision on this instrument in this run; None before the first."""
    account: AccountView | None
    """The account before anything of this close is decided; None unless ``sees_account``."""
    _sight: Sight
    _frames: Mapping[str, FrameBars] = MappingProxyType({})
    _books: BookRecord | None = None

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
        books: BookRecord | None = None,
    ) -> Outlook:
        """Return the outlook at the last of *bars*, all of which its history holds."""
        record = BarRecord(instrument, len(bars))
        for bar in bars:
            record.append(bar)
        sight = Sight.of(instrument, record)
        return cls(bars[-1], forecast, regime, verdict, account, sight, _books=books)

    @property
    def instrument(self) -> Instrument:
        """The instrument with its scales and filters, as the exchange publishes them."""
        return self._sight.instrument

    @property
    def symbol(self) -> str:
        """The instrument's symbol."""
        return self._sight.instrument.symbol

    @property
    def time(self) -> int:
        """The time at which the bar closed, UTC milliseconds."""
        return self.exact.open_time_ms + self.exact.interval_ms

    @property
    def open(self) -> float:
        """Opening price."""
        return self.exact.open / self._sight.price_unit

    @property
    def high(self) -> float:
        """Highest price."""
        return self.exact.high / self._sight.price_unit

    @property
    def low(self) -> float:
        """Lowest price."""
        return self.exact.low / self._sight.price_unit

    @property
    def close(self) -> float:
        """Closing price."""
        return self.exact.close / self._sight.price_unit

    @property
    def volume(self) -> float:
        """Volume, in base."""
        return self.exact.volume / self._sight.volume_unit

    @property
    def explanation(self) -> Explanation | None:
        """Where the model looked for its forecast."""
        return None if self.forecast is None else self.forecast.explanation

    @property
    def history(self) -> BarArrays:
        """The last ``warmup`` closed bars as read-only arrays, this one included."""
        return self._sight.histories[self.exact]

    @property
    def depth(self) -> Books | None:
        """The newest order books at the bar's close, as many as ``books`` says at most.

        None from before the last gap or start, and none later than the close. None without any.
        """
        if self._books is None:
            raise StrategyFailed(
                "now.depth was read, and the class declares no books; set books = 100, say."
            )
        return self._books.until(self.time)

    def frame(self, name: str) -> FrameBars:
        """Return the closed bars of the higher time frame *name*, one of the declared ``frames``.

        Those of its last intervals, as many as ``frames_warmup`` says: a bar appears with the bar
        that closes it, and one with a hole in it never does.
        """
        if (bars := self._frames.get(name)) is None:
            raise StrategyFailed(
                f"now.frame({name!r}) was read, and frames declares "
                f"{', '.join(map(repr, self._frames)) or 'none'}; add it there."
            )
        return bars


class BarRecord:
    """The last *length* bars of an instrument: they wait as they are until a strategy looks back.

    Then they become the columns of ``now.history``, which need numpy; nobody else imports it.
    """

    __iter__ = copy = get = items = keys = values = None  # a proxy would hand them, and this, on

    def __init__(self, instrument: Instrument, length: int) -> None:
        self._instrument = instrument
        self._length = length
        self._waiting: deque[Bar] = deque(maxlen=length)
        self._columns: BarColumns | None = None
        self.append = self._waiting.append

    def __getitem__(self, bar: Bar) -> BarArrays:
        """Return the history up to *bar*, which has to be the newest."""
        columns = self._columns
        if columns is None:
            from tracepaper.strategies.history import BarColumns

            columns = self._columns = BarColumns(self._instrument, self._length)
        if self._waiting:
            columns.extend(self._waiting)
            self._waiting.clear()
        return columns.at(bar)
