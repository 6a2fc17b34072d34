"""The numbers of a candle, of the stream or of REST, to a ``Bar``: exact, checked, and fast.

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
from msgspec import DecodeError, Meta

from tracepaper.daemon.bybit.instruments import exact, interval_name
from tracepaper.daemon.bybit.messages import KlineCandle
from tracepaper.strategies.errors import FrameImpossible
from tracepaper.strategies.market import interval_start
from tracepaper.strategies.types import MONEY_LIMIT, Bar, Instrument, Source

_STREAM: Final = Source.STREAM
TURNOVER_SLACK: Final = 1
"""Units of the quote currency, besides a thousandth, that turnover may be off: it is rounded."""
_ZEROS: Final = tuple("0" * count for count in range(41))
_SHOWN: Final = 40  # characters of a number that an error repeats
_Amount = Annotated[int, Meta(ge=0, le=MONEY_LIMIT)]
_parse: Final = msgspec.json.Decoder(
    tuple[_Amount, _Amount, _Amount, _Amount, _Amount, _Amount]
).decode


ReadCandle = Callable[[KlineCandle, int, Source], Bar]
"""A candle, the market time at which it was seen, and its source, to a bar."""


def candle_reader(instrument: Instrument, interval_ms: int) -> ReadCandle:
    """Return the function that reads candles of *instrument* and of *interval_ms*.

    It parses the six numbers, then checks the candle. It raises ``MessageMalformed`` where a text
    is no exact number, ``FrameImpossible`` where the candle contradicts itself, lies off its
    interval's grid, or is of the stream and its volume cannot have made its range or turnover.
    """
    name, interval = instrument.id, interval_name(interval_ms)
    grid_ms, last_ms = interval_start(interval_ms, interval_ms) % interval_ms, interval_ms - 1
    price_decimals = instrument.price_decimals
    volume_decimals, turnover_decimals = instrument.volume_decimals, instrument.turnover_decimals
    # The decimals that a text has where the exchange leaves no zeros out, and the zeros that bring
    # it from there to the decimals that are kept.
    volume_sent = min(instrument.quantity_decimals, volume_decimals)
    turnover_sent = min(price_decimals + instrument.quantity_decimals, turnover_decimals)
    volume_zeros = _ZEROS[volume_decimals - volume_sent]
    turnover_zeros = _ZEROS[turnover_decimals - turnover_sent]
    # What brings turnover to the decimals of price times volume, and how far it may be off there.
    product_decimals = price_decimals + volume_decimals
    unit = 10 ** max(product_decimals - turnover_decimals, 0)
    over = 10 ** max(turnover_decimals - product_decimals, 0)
    slack = 1_000 * TURNOVER_SLACK * 10 ** max(product_decimals, turnover_decimals)
    # Where the decimal point of such a text stands, counted from its end.
    dot, volume_dot, turnover_dot = -1 - price_decimals, -1 - volume_sent, -1 - turnover_sent

    def read(candle: KlineCandle, market_ms: int, source: Source) -> Bar:
        o, h, lo, c = candle.open, candle.high, candle.low, candle.close
        v, t = candle.volume, candle.turnover
        try:
            # Six dots go; a seventh stays, so that a text with two of them is refused.
            row = (
                f"[{o if o[dot] == '.' else _padded(o, dot)},"
                f"{h if h[dot] == '.' else _padded(h, dot)},"
                f"{lo if lo[dot] == '.' else _padded(lo, dot)},"
                f"{c if c[dot] == '.' else _padded(c, dot)},"
                f"{v if v[volume_dot] == '.' else _padded(v, volume_dot)}{volume_zeros},"
                f"{t if t[turnover_dot] == '.' else _padded(t, turnover_dot)}{turnover_zeros}]"
            )
            open_, high, low, close, volume, turnover = _parse(row.replace(".", "", 6))
        except (DecodeError, IndexError):  # cheap coins, and everything unusual
            open_, high, low, close = (exact(text, price_decimals) for text in (o, h, lo, c))
            volume, turnover = exact(v, volume_decimals), exact(t, turnover_decimals)
        start, end = candle.start, candle.end
        if not (
            0 < low <= open_ <= high
            and low <= close <= high
            and start % interval_ms == grid_ms
            and end - start == last_ms
            and (candle.interval == interval or not candle.interval)
        ):
            raise _impossible(candle, name, is_on_grid=start % interval_ms == grid_ms)
        if source is _STREAM:  # of what REST says itself, nobody is left to ask
            traded, spent = volume * over, 1_000 * turnover * unit
            if not (999 * low * traded - slack <= spent <= 1_001 * high * traded + slack) or (
                not volume and high != low
            ):
                raise _untraded(candle, name)
        return Bar(
            name,
            start,
            interval_ms,
            open_,
            high,
            low,
            close,
            volume,
            turnover,
            market_ms,
            market_ms,
            source,
        )

    return read


def _impossible(candle: KlineCandle, name: str, *, is_on_grid: bool) -> FrameImpossible:
    """Return what refuses *candle* of the instrument called *name*."""
    if not is_on_grid:
        return FrameImpossible(
            "off_grid",
            f"A candle of {name} at {candle.start} does not start on the grid of its interval; it "
            "was dropped and leaves a hole.",
        )
    return FrameImpossible(
        "contradictory",
        f"The candle of {name} at {candle.start} contradicts itself (high {candle.high[:_SHOWN]}, "
        f"low {candle.low[:_SHOWN]}, open {candle.open[:_SHOWN]}, close {candle.close[:_SHOWN]}, "
        f"end {candle.end}, interval {candle.interval[:8]!r}); it was dropped and leaves a hole.",
    )


def _untraded(candle: KlineCandle, name: str) -> FrameImpossible:
    """Return what refuses *candle*, whose volume made neither its range nor its turnover."""
    return FrameImpossible(
        "untraded",
        f"The candle of {name} at {candle.start} cannot have been traded (volume "
        f"{candle.volume[:_SHOWN]}, turnover {candle.turnover[:_SHOWN]}, high "
        f"{candle.high[:_SHOWN]}, low {candle.low[:_SHOWN]}); it was dropped and leaves a hole.",
    )


def _padded(text: str, dot: int) -> str:
    """Return *text* with its dot at index *dot* from the end; the exchange leaves zeros out.

    Raises ``IndexError`` if there are more decimals than that.
    """
    if dot < -1 and text[dot + 1] == ".":  # one zero is left out, the usual case
        return text + "0"
    at = text.find(".")
    if at < 0:
        return f"{text}.{_ZEROS[-1 - dot]}"
    if (missing := at - len(text) - dot) < 0:
        raise IndexError
    return text + _ZEROS[missing]
