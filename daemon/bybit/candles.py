"""Candles of the stream and of REST to ``Bar``: exact, checked, and as fast as Python goes.

The hot path turns six number texts into integers with one call of a C parser. It pads each text
to the decimals that the instrument's filters promise, takes the six dots out, and reads the rest
as one JSON list of integers. JSON allows neither ``+``, ``_``, ``NaN`` nor leading zeros in it,
so whatever it cannot read goes to ``exact``, which decides with full strictness. (Blanks around
a number, which the exchange never sends, are the one thing it lets pass; they change no value.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final

import msgspec
from msgspec import DecodeError, Meta, Struct

from tracepaper.daemon.bybit.decimals import POWERS, exact
from tracepaper.daemon.bybit.messages import Candle, KlineFrame
from tracepaper.strategies.errors import MessageMalformed
from tracepaper.strategies.types import MONEY_LIMIT, Bar, Instrument, Source

_Numbers = tuple[int, int, int, int, int, int]
_ZEROS: Final = tuple("0" * count for count in range(41))
_STREAM: Final = Source.STREAM


class CandleLayout(Struct, frozen=True):
    """What reading one instrument's candles needs, worked out once.

    ``hot`` is unpacked once a frame: instrument, interval_ms, a candle's ``end`` less its
    ``start``, the index of the decimal point from the text's end (-2 for one decimal) of prices,
    volume and turnover where the text has all decimals that tick and step allow, the units that
    scale volume and turnover to the decimals that are kept, and the reader of the six integers,
    which also keeps them within 64 bits.
    """

    hot: tuple[str, int, int, int, int, int, int, int, Callable[[str], _Numbers]]
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


def candle_layout(instrument: Instrument, interval_ms: int) -> CandleLayout:
    """Return the layout of *instrument*'s candles of *interval_ms*."""
    volume = min(instrument.quantity_decimals, instrument.volume_decimals)
    turnover = min(
        instrument.price_decimals + instrument.quantity_decimals, instrument.turnover_decimals
    )
    unit = POWERS[instrument.volume_decimals - volume]
    turnover_unit = POWERS[instrument.turnover_decimals - turnover]
    price = Annotated[int, Meta(ge=1, le=MONEY_LIMIT)]
    volume_range = Annotated[int, Meta(ge=0, le=MONEY_LIMIT // unit)]
    turnover_range = Annotated[int, Meta(ge=0, le=MONEY_LIMIT // turnover_unit)]
    return CandleLayout(
        hot=(
            instrument.id,
            interval_ms,
            interval_ms - 1,
            -1 - instrument.price_decimals,
            -1 - volume,
            -1 - turnover,
            unit,
            turnover_unit,
            msgspec.json.Decoder(
                tuple[price, price, price, price, volume_range, turnover_range]
            ).decode,
        ),
        price_decimals=instrument.price_decimals,
        volume_decimals=instrument.volume_decimals,
        turnover_decimals=instrument.turnover_decimals,
    )


def stream_bars(frame: KlineFrame, layout: CandleLayout, seen_ms: int) -> list[Bar]:
    """Return the closed candles of *frame* as bars, oldest first; see ``Bar`` for units.

    Raises ``MessageMalformed`` where a number is not exact or a candle contradicts itself.
    """
    bars: list[Bar] = []
    for candle in frame.data:
        # The exchange repeats the open candle until it closes; only the confirmed one is a fact.
        if candle.confirm:
            bars.append(_stream_bar(candle, layout, frame.ts, seen_ms))  # noqa: PERF401
    return bars


def _stream_bar(candle: Candle, layout: CandleLayout, server_ms: int, seen_ms: int) -> Bar:
    """Return one confirmed *candle*; written flat, since this is the hot path of ingestion."""
    instrument, interval_ms, last_ms, dot, volume_dot, turnover_dot, unit, turnover_unit, read = (
        layout.hot
    )
    first, top, bottom, final = candle.open, candle.high, candle.low, candle.close
    base, quote = candle.volume, candle.turnover
    try:
        # The exchange leaves trailing zeros out.
        if first[dot] != ".":
            first = _padded(first, dot)
        if top[dot] != ".":
            top = _padded(top, dot)
        if bottom[dot] != ".":
            bottom = _padded(bottom, dot)
        if final[dot] != ".":
            final = _padded(final, dot)
        if base[volume_dot] != ".":
            base = _padded(base, volume_dot)
        if quote[turnover_dot] != ".":
            quote = _padded(quote, turnover_dot)
        # Six dots go; a seventh stays in, so that a text with two of them is refused.
        row = f"[{first},{top},{bottom},{final},{base},{quote}]".replace(".", "", 6)
        open_, high, low, close, volume, turnover = read(row)
        volume *= unit
        turnover *= turnover_unit
    except (DecodeError, IndexError):
        open_, high, low, close, volume, turnover = _careful(candle, layout)
    start = candle.start
    if not (
        0 < low <= open_ <= high
        and low <= close <= high
        and start < server_ms
        and candle.end - start == last_ms
    ):
        raise MessageMalformed(_contradiction(candle, layout))
    # Positional: keywords cost a tenth of the whole step.
    return Bar(
        instrument, start, interval_ms, open_, high, low, close, volume, turnover,
        server_ms, seen_ms, _STREAM,
    )  # fmt: skip


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


def _careful(candle: Candle, layout: CandleLayout) -> tuple[int, int, int, int, int, int]:
    """Read the six numbers one by one; the path of cheap coins and of everything unusual."""
    decimals = layout.price_decimals
    return (
        exact(candle.open, decimals),
        exact(candle.high, decimals),
        exact(candle.low, decimals),
        exact(candle.close, decimals),
        exact(candle.volume, layout.volume_decimals),
        exact(candle.turnover, layout.turnover_decimals),
    )


def _contradiction(candle: Candle, layout: CandleLayout) -> str:
    """Return the sentence that refuses *candle*."""
    return (
        f"The candle of {layout.instrument} at {candle.start} contradicts itself (high "
        f"{candle.high}, low {candle.low}, open {candle.open}, close {candle.close}, end "
        f"{candle.end}); it was dropped, REST fills its place."
    )


def rest_bar(row: tuple[str, str, str, str, str, str, str], layout: CandleLayout) -> Bar:
    """Return one row of ``/v5/market/kline`` as a bar whose times are its own close.

    Raises ``MessageMalformed`` where a number is not exact or the row contradicts itself.
    """
    decimals = layout.price_decimals
    start = exact(row[0], 0)
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
