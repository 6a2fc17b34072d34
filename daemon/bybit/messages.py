"""Typed frames and bodies of Bybit v5's public streams and REST calls.

Sources: the exchange's documentation (docs/v5/websocket/public, docs/v5/market) and recorded
sessions. Numbers stay text, as sent. Unknown fields are ignored, so a new field breaks nothing.
Field names are those of the wire, in snake case. Their order is the one in which the exchange
usually sends them, which msgspec reads fastest.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Raw, Struct, field

from tracepaper.strategies.months import interval_end

Milliseconds = Annotated[int, Meta(ge=0, lt=2**62)]
"""A time; the bounds make sure that the difference of two times fits 64 bits."""

# ---------------------------------------------------------------- websocket, inbound


class FrameHead(Struct, gc=False):
    """The fields that identify a frame: ``topic`` of data, the others of answers to our requests.

    A pong has ``op`` ``"ping"`` on spot and linear and ``"pong"`` on option and private streams.
    An option acknowledgement has no ``op`` but ``type`` ``"COMMAND_RESP"``.
    """

    topic: str = ""
    type: str = ""
    op: str = ""
    success: bool | None = None
    ret_msg: str = ""
    req_id: str | int = ""


class KlineCandle(Struct, gc=False, kw_only=True):
    """One candle of a kline frame; only the topic has the symbol."""

    start: Milliseconds
    end: Milliseconds
    interval: str = ""
    open: str
    close: str
    high: str
    low: str
    volume: str
    turnover: str
    confirm: bool


class KlineFrame(Struct, gc=False):
    """``kline.{interval}.{symbol}``; at a close linear sends two candles in one frame."""

    topic: str
    data: list[KlineCandle]
    ts: Milliseconds


class TickerData(Struct, rename="camel", gc=False):
    """The used fields of a ticker; a field that a delta lacks is unchanged, not zero."""

    symbol: str
    last_price: str | None = None
    mark_price: str | None = None
    index_price: str | None = None
    next_funding_time: str | None = None


class TickerFrame(Struct, gc=False):
    """``tickers.{symbol}``: on linear a snapshot, then deltas; on spot always snapshots."""

    topic: str
    data: TickerData
    ts: Milliseconds
    type: str = "snapshot"


class BookData(Struct, gc=False):
    """Levels as texts (price, size); in a delta the size ``"0"`` deletes a level."""

    s: str
    b: list[tuple[str, str]]
    a: list[tuple[str, str]]
    u: int = 0


class BookFrame(Struct, gc=False):
    """``orderbook.{depth}.{symbol}``; depth 1 has only snapshots, repeated after 3 s of silence."""

    topic: str
    ts: Milliseconds
    type: str
    data: BookData
    cts: Milliseconds = 0


_TRADE_FIELDS: Final = {"time": "T", "symbol": "s", "side": "S"}


class TradeData(Struct, gc=False, rename=_TRADE_FIELDS):
    """One public trade: ``v`` size, ``p`` price, ``i`` id (a UUID on linear, digits on spot)."""

    time: Milliseconds
    symbol: str
    side: str
    v: str
    p: str
    i: str


class TradeFrame(Struct, gc=False):
    """``publicTrade.{symbol}``: up to 1,024 trades, oldest first."""

    topic: str
    ts: Milliseconds
    data: list[TradeData]


# ---------------------------------------------------------------- websocket, outbound


class SocketRequest(Struct, omit_defaults=True):
    """``subscribe``, ``unsubscribe`` or ``ping``; acknowledgements repeat only ``req_id``."""

    op: str
    req_id: str = ""
    args: list[str] = []


# ---------------------------------------------------------------- REST


class RestAnswer(Struct, rename="camel"):
    """The envelope of every REST body; a ``ret_code`` of 0 means success, not the HTTP status."""

    ret_code: int
    ret_msg: str = ""
    result: Raw = Raw(b"{}")
    time: int = 0


class ServerTime(Struct, rename="camel"):
    """Result of ``/v5/market/time``; both fields are digits as text."""

    time_second: str
    time_nano: str


KlineRow = tuple[str, str, str, str, str, str, str]
"""Start, open, high, low, close, volume and turnover."""


class KlinePage(Struct, rename="camel"):
    """Result of ``/v5/market/kline``, newest first; the newest row may be an open candle."""

    rows: list[KlineRow] = field(name="list")
    symbol: str = ""
    category: str = ""


class PriceFilter(Struct, rename="camel"):
    """The filter of prices."""

    tick_size: str


class LotSizeFilter(Struct, rename="camel"):
    """Quantity limits; linear and spot use different names, so all fields are optional."""

    min_order_qty: str = ""
    max_mkt_order_qty: str = ""  # linear
    qty_step: str = ""  # linear
    min_notional_value: str = ""  # linear
    base_precision: str = ""  # spot
    min_order_amt: str = ""  # spot
    max_market_order_qty: str = ""  # spot


class LeverageFilter(Struct, rename="camel"):
    """The leverage limits; spot has none."""

    max_leverage: str = ""


class InstrumentInfo(Struct, rename="camel"):
    """One entry of ``/v5/market/instruments-info``, linear or spot."""

    symbol: str
    status: str
    base_coin: str
    quote_coin: str
    price_filter: PriceFilter
    lot_size_filter: LotSizeFilter
    funding_interval: int = 0  # minutes; 0 on dated futures, absent on spot
    leverage_filter: LeverageFilter | None = None


class ListingInfo(Struct, rename="camel"):
    """The fields of an entry of ``/v5/market/instruments-info`` that a choice of symbols needs."""

    symbol: str
    status: str = ""
    quote_coin: str = ""
    contract_type: str = ""  # spot has none
    launch_time: str = ""  # spot has none


class RiskLimit(Struct, rename="camel"):
    """One tier of ``/v5/market/risk-limit``; the first one's deduction is an empty text."""

    symbol: str
    risk_limit_value: str
    maintenance_margin: str
    initial_margin: str
    max_leverage: str
    mm_deduction: str = ""


class RiskLimits(Struct, rename="camel"):
    """Result of ``/v5/market/risk-limit``."""

    rows: list[RiskLimit] = field(name="list")
    category: str = ""


class TickerInfo(Struct, rename="camel"):
    """One entry of ``/v5/market/tickers``; an empty text means no value."""

    symbol: str
    last_price: str = ""
    turnover: str = field(default="", name="turnover24h")
    high: str = field(default="", name="highPrice24h")
    low: str = field(default="", name="lowPrice24h")


class TickerPage(Struct):
    """Result of ``/v5/market/tickers``; rows stay raw, so that malformed ones can be skipped."""

    rows: list[Raw] = field(name="list")
    category: str = ""


class FundingRate(Struct, rename="camel"):
    """One settlement of ``/v5/market/funding/history``."""

    symbol: str
    funding_rate: str
    funding_rate_timestamp: str


class FundingHistory(Struct, rename="camel"):
    """Result of ``/v5/market/funding/history``, in no guaranteed order."""

    rows: list[FundingRate] = field(name="list")
    category: str = ""


def closed_candle(row: KlineRow, open_ms: int, interval_ms: int) -> KlineCandle:
    """Return a row of ``/v5/market/kline``, which opens at *open_ms*, as a candle of the stream."""
    _, open_, high, low, close, volume, turnover = row
    return KlineCandle(
        start=open_ms,
        end=interval_end(open_ms, interval_ms) - 1,
        open=open_,
        close=close,
        high=high,
        low=low,
        volume=volume,
        turnover=turnover,
        confirm=True,
    )


encode: Final = msgspec.json.Encoder().encode
decode_head: Final = msgspec.json.Decoder(FrameHead).decode
decode_kline: Final = msgspec.json.Decoder(KlineFrame).decode
decode_ticker: Final = msgspec.json.Decoder(TickerFrame).decode
decode_book: Final = msgspec.json.Decoder(BookFrame).decode
decode_trades: Final = msgspec.json.Decoder(TradeFrame).decode
decode_answer: Final = msgspec.json.Decoder(RestAnswer).decode


def topic_of(frame: bytes) -> str:
    """Return the topic of *frame*; empty if it has none or is malformed."""
    try:
        return decode_head(frame).topic
    except (ValueError, RecursionError):
        return ""


class ExchangeError(NamedTuple):
    """An error that the exchange answers with."""

    code: int
    message: str
