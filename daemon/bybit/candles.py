"""Candles of the stream and of REST to ``Bar``: exact, checked, and as fast as Python goes.

The hot path turns six number texts into integers with one call of a C parser. It pads each text
to the decimals that the instrument's filters promise, takes the six dots out, and reads the rest
as one JSON list of integers. JSON allows neither ``+``, ``_``, ``NaN`` nor leading zeros in it,
so whatever it cannot read goes to ``exact``, which decides with full strictness. (Blanks around
a number, which the exchange never sends, are the one thing it lets pass; they change no value.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, cast

import msgspec
from msgspec import DecodeError, Meta, Struct

from tracepaper.daemon.bybit.instruments import exact, floor_open_ms, interval_name
from tracepaper.daemon.bybit.messages import KlineCandle, KlineFrame
from tracepaper.strategies.errors import FrameImpossible, MessageMalformed
from tracepaper.strategies.types import MONEY_LIMIT, Bar, Instrument, Source

_Numbers = tuple[int, int, int, int, int, int]
_ZEROS: Final = tuple("0" * count for count in range(41))
_STREAM: Final = Source.STREAM
_ROLL: Final = 2  # candles in a frame of the roll: the closed and the new one
EARLY_MS: Final = 1_000
"""A closing frame may be dated this long before the close; an earlier one closes nothing."""


class CandleLayout(Struct, frozen=True):
    """What reading one instrument's candles needs, worked out once.

    ``hot`` is unpacked once a candle: instrument, interval_ms and its name, where the grid of
    starts lies, a candle's ``end`` less its ``start``, the index of the decimal point from the
    text's end (-2 for one decimal) of prices, volume and turnover where the text has all decimals
    that tick and step allow, the zeros that bring volume and turnover to the decimals that are
    kept, and the reader of the six integers, which also sees to it that prices are positive and
    all fit 64 bits.
    """

    hot: tuple[str, int, str, int, int, int, int, int, str, str, Callable[[str], _Numbers]]
    price_decimals: int
    volume_decimals: int
    turnover_decimals: int

    @property
    def instrument(self) -> str:
        """The instrument's id."""
        return self.hot[0]

    @property
    def interval_ms(self) -> int:
        """Length of a candle."""
        return self.hot[1]

    def is_on_grid(self, start_ms: int) -> bool:
        """Return whether a candle of this interval may start at *start_ms*."""
        return start_ms % self.interval_ms == self.hot[3]


def candle_layout(instrument: Instrument, interval_ms: int) -> CandleLayout:
    """Return the layout of *instrument*'s candles of *interval_ms*."""
    volume = min(instrument.quantity_decimals, instrument.volume_decimals)
    turnover = min(
        instrument.price_decimals + instrument.quantity_decimals, instrument.turnover_decimals
    )
    price = Annotated[int, Meta(ge=1, le=MONEY_LIMIT)]
    amount = Annotated[int, Meta(ge=0, le=MONEY_LIMIT)]
    numbers = msgspec.json.Decoder(tuple[price, price, price, price, amount, amount])
    return CandleLayout(
        hot=(
            instrument.id,
            interval_ms,
            interval_name(interval_ms),
            floor_open_ms(interval_ms, interval_ms) % interval_ms,
            interval_ms - 1,
            -1 - instrument.price_decimals,
            -1 - volume,
            -1 - turnover,
            _ZEROS[instrument.volume_decimals - volume],
            _ZEROS[instrument.turnover_decimals - turnover],
            cast("Callable[[str], _Numbers]", numbers.decode),
        ),
        price_decimals=instrument.price_decimals,
        volume_decimals=instrument.volume_decimals,
        turnover_decimals=instrument.turnover_decimals,
    )


def stream_bars(
    frame: KlineFrame, layout: CandleLayout, early: Callable[[KlineCandle, int], None] | None = None
) -> list[Bar]:
    """Return the closed candles of *frame* as bars, oldest first; see ``Bar`` for units.

    ``seen_ms`` is the frame's time until the feed hands the bar on. A candle that says it is
    closed before its close is an open one; *early* hears of it and of the frame's time. Raises
    ``MessageMalformed`` where a number is not exact, ``FrameImpossible`` where a candle contradicts
    itself, lies off the grid or stands beside another of its time. Written flat: the hot path.
    """
    bars: list[Bar] = []
    candles = frame.data
    if len(candles) > 1 and (len(candles) > _ROLL or candles[0].start == candles[1].start):
        _refuse_doubles(candles, layout)
    for candle in candles:
        # The exchange repeats the open candle until it closes; only the confirmed one is a fact.
        if not candle.confirm:
            continue
        (
            instrument, interval_ms, name, phase_ms, last_ms, dot, volume_dot, turnover_dot, zeros,
            more, read,
        ) = layout.hot  # fmt: skip
        o, h, l, c, v, t = (  # noqa: E741
            candle.open, candle.high, candle.low, candle.close, candle.volume, candle.turnover,
        )  # fmt: skip
        try:
            # The exchange leaves trailing zeros out. Six dots go; a seventh stays, so that a text
            # with two of them is refused.
            row = (
                f"[{o if o[dot] == '.' else _padded(o, dot)},"
                f"{h if h[dot] == '.' else _padded(h, dot)},"
                f"{l if l[dot] == '.' else _padded(l, dot)},"
                f"{c if c[dot] == '.' else _padded(c, dot)},"
                f"{v if v[volume_dot] == '.' else _padded(v, volume_dot)}{zeros},"
                f"{t if t[turnover_dot] == '.' else _padded(t, turnover_dot)}{more}]"
            )
            open_, high, low, close, volume, turnover = read(row.replace(".", "", 6))
        except (DecodeError, IndexError):
            open_, high, low, close, volume, turnover = _careful(candle, layout)
        start, end, server_ms = candle.start, candle.end, frame.ts
        if not (
            low <= open_ <= high
            and low <= close <= high
            and end - start == last_ms
            and start % interval_ms == phase_ms
            and (candle.interval == name or not candle.interval)
        ):
            raise _impossible(candle, layout)
        if end - EARLY_MS >= server_ms:
            if early is not None:
                early(candle, server_ms)
            continue
        bars.append(
            # Positional: keywords cost a tenth of the whole step.
            Bar(
                instrument,
                start,
                interval_ms,
                open_,
                high,
                low,
                close,
                volume,
                turnover,
                server_ms,
                server_ms,
                _STREAM,
            )
        )
    return bars


def _padded(text: str, dot: int) -> str:
    """Return *text* with its dot at index *dot* from the end; the exchange sends no zeros there.

    Raises ``IndexError`` if there are more decimals than that.
    """
    at = text.find(".")
    if at < 0:
        return f"{text}.{_ZEROS[-1 - dot]}"
    if (missing := at - len(text) - dot) < 0:
        raise IndexError
    return text + _ZEROS[missing]


def _careful(candle: KlineCandle, layout: CandleLayout) -> tuple[int, int, int, int, int, int]:
    """Read the six numbers one by one; the path of cheap coins and of everything unusual."""
    decimals = layout.price_decimals
    low = exact(candle.low, decimals)
    if low < 1:
        raise _impossible(candle, layout)
    return (
        exact(candle.open, decimals),
        exact(candle.high, decimals),
        low,
        exact(candle.close, decimals),
        exact(candle.volume, layout.volume_decimals),
        exact(candle.turnover, layout.turnover_decimals),
    )


def _refuse_doubles(candles: list[KlineCandle], layout: CandleLayout) -> None:
    """Refuse a frame that says two things of one candle: which of them holds, REST knows."""
    first: dict[int, KlineCandle] = {}
    for candle in candles:
        if first.setdefault(candle.start, candle) != candle:
            raise FrameImpossible(
                "double",
                f"One frame holds two candles of {layout.instrument} at {candle.start} that "
                "differ; it was dropped, REST fills the place.",
            )


def _impossible(candle: KlineCandle, layout: CandleLayout) -> FrameImpossible:
    """Return what refuses *candle*."""
    if not layout.is_on_grid(candle.start):
        return FrameImpossible(
            "off_grid",
            f"The candle of {layout.instrument} at {candle.start} does not start on the grid of "
            f"its interval of {layout.interval_ms} ms; it was dropped, REST fills its place.",
        )
    return FrameImpossible(
        "contradictory",
        f"The candle of {layout.instrument} at {candle.start} contradicts itself (high "
        f"{candle.high[:40]}, low {candle.low[:40]}, open {candle.open[:40]}, close "
        f"{candle.close[:40]}, end {candle.end}, interval {candle.interval[:8]!r}); it was "
        "dropped, REST fills its place.",
    )


def rest_bar(row: tuple[str, str, str, str, str, str, str], layout: CandleLayout) -> Bar:
    """Return one row of ``/v5/market/kline`` as a bar whose times are its own close.

    Raises ``MessageMalformed`` where a number is not exact or the row contradicts itself.
    """
    decimals = layout.price_decimals
    start = exact(row[0], 0)
    if not layout.is_on_grid(start):
        raise FrameImpossible(
            "off_grid",
            f"A candle of {layout.instrument} starts at {start}, off the grid of its interval of "
            f"{layout.interval_ms} ms; it was left out as a hole.",
        )
    open_, high, low, close = (exact(text, decimals) for text in row[1:5])
    if not (0 < low <= open_ <= high and low <= close <= high):
        raise MessageMalformed(
            f"The candle of {layout.instrument} at {start} contradicts itself (high {row[2]}, "
            f"low {row[3]}, open {row[1]}, close {row[4]}); it was left out as a hole."
        )
    return Bar(
        instrument=layout.instrument,
        open_time_ms=start,
        interval_ms=layout.interval_ms,
        open=open_,
        high=high,
        low=low,
        close=close,
        volume=exact(row[5], layout.volume_decimals),
        turnover=exact(row[6], layout.turnover_decimals),
        market_ms=start + layout.interval_ms,
        seen_ms=start + layout.interval_ms,
        source=Source.REST,
    )
