"""Every kind of fault: its name, its target and its effect, a pure function.

A kind acts at a ``Stage``, which defines the arguments and the result of its effect. A new kind is
one row of ``FAULTS``: the command's listing, the control calls, the seeded schedule and the stage
find it there. A seed's schedule depends on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from tracepaper.daemon.bybit.messages import ExchangeError
from tracepaper.replay.exchange.candles import Candle
from tracepaper.strategies.months import interval_end
from tracepaper.strategies.units import DAY_MS, HOUR_MS, INTERVALS, WEEK_MS

PENDING_LIMIT: Final = 1_000
STATUS_MIN: Final = 200
TIME_PATH: Final = "/v5/market/time"
KLINE_PATH: Final = "/v5/market/kline"
FUNDING_PATH: Final = "/v5/market/funding/history"
CANDLES: Final = "kline."
BOOKS: Final = "orderbook."
TICKERS: Final = "tickers."
TRADES: Final = "publicTrade."

Message = dict[str, Any]
Row = list[str]
encode: Final = msgspec.json.encode


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """One armed fault; ``ms``, ``status`` and ``code`` of 0 mean the kind's default."""

    kind: str
    topic: str = ""
    ms: int = 0
    seconds: Annotated[float, Meta(ge=0)] = 5.0
    count: Annotated[int, Meta(ge=1, le=PENDING_LIMIT)] = 1
    provoke: bool = False
    status: Annotated[int, Meta(ge=0, le=599)] = 0
    code: int = 0

    def __post_init__(self) -> None:
        """Reject what the fields' bounds let pass; msgspec turns the error into its own."""
        if self.kind not in FAULTS:
            raise ValueError(f"there is no kind {self.kind!r}")
        if self.ms < 0 and not FAULTS[self.kind].is_signed:
            raise ValueError(f"ms is negative, which it may not be for {self.kind}")
        if 0 < self.status < STATUS_MIN:
            raise ValueError(f"status is below {STATUS_MIN}")

    @property
    def delay_ms(self) -> int:
        """The delay or shift of this fault in market milliseconds."""
        return self.ms or FAULTS[self.kind].default_ms


class Hit(NamedTuple):
    """One firing of a fault: the *turn*-th of its kind, at a market speed."""

    fault: Fault
    turn: int
    speed: float


Stage = Literal[
    "frame",  # one data frame: body -> ``FaultEffect``
    "connection",  # as soon as a client listens: the hub -> None
    "handshake",  # a new connection; it cuts the others when it is armed: -> ``HttpReply``
    "push",  # an open candle that is not near its close: element -> element
    "close",  # a candle at its close; REST stays right: ``ClosingCandle`` -> ``FaultEffect``
    "answer",  # instead of a REST answer: -> ``HttpReply`` or ``ExchangeError``
    "body",  # the bytes of an answer: body -> body
    "time",  # the server's time of an answer: time, path, result -> time and result
    "rows",  # an answer with rows, newest first: rows, result -> rows
]
"""Where a fault acts; its effect takes these arguments and then the hit -> its result."""


class FaultKind(NamedTuple):
    """A row of ``FAULTS``.

    ``meaning`` describes it, with its parameters besides ``kind`` in parentheses. ``aim`` is the
    default prefix of the topics or paths that it hits. ``dealt`` returns the schedule's parameters
    for a drawn number.
    """

    stage: Stage
    meaning: str
    effect: Callable[..., Any]
    aim: str | tuple[str, ...] = ""
    default_ms: int = 0
    dealt: Callable[[int], dict[str, Any]] = lambda _number: {}
    is_signed: bool = False

    @property
    def is_provoked(self) -> bool:
        """Whether the schedule also cuts the stream.

        A client whose stream works requests only settlements over REST.
        """
        return self.stage in {"answer", "body", "time", "rows"} and self.aim != FUNDING_PATH


class FaultEffect(NamedTuple):
    """The replacement of a frame, or of a closing frame's elements.

    ``later`` holds (milliseconds of market time, content); ``after_next`` follows the next frame.
    """

    now: tuple[Any, ...] = ()
    later: tuple[tuple[int, Any], ...] = ()
    after_next: tuple[Any, ...] = ()


class ClosingCandle(NamedTuple):
    """A candle at its close: its stream element, its integers, and the function that writes it."""

    element: Message
    candle: Candle
    tick: int
    step: int
    write: Callable[[Candle], Message]

    def changed(self, **fields: str | int) -> FaultEffect:
        """Return the effect that sends the element with *fields* replaced."""
        return FaultEffect((self.element | fields,))


class HttpReply(NamedTuple):
    """The answer to an HTTP call, sent *wait_s* machine seconds later."""

    status: int
    text: str
    content_type: str = "text/plain"
    location: str = ""
    wait_s: float = 0.0


# ------------------------------------------------------------ frames

OTHER_SYMBOL: Final = "OTHERUSDT"
PRICES: Final = ("open", "close", "high", "low", "p", "turnover", "markPrice", "lastPrice")
DEEP_LEVELS: Final = 1_500
AHEAD_MS: Final = HOUR_MS
AHEAD_S: Final = 3.0
"""A frame is dated ahead by an hour, and by at least this many machine seconds."""
ANNOUNCED_RATE: Final = "-0.4"
ABSURD_RATE: Final = "0.25"
"""The two rates differ, since a client rightly believes two sources that agree."""
FALSE_MARK: Final = Decimal("1.26")
FALSE_BOOK: Final = Decimal("0.67")
TICKER_PRICES: Final = ("markPrice", "indexPrice", "lastPrice", "ask1Price", "bid1Price")


def _half_at_candles(number: int) -> dict[str, Any]:
    """Aim half of the schedule's plain frame faults at candles."""
    return {"topic": CANDLES} if number % 2 else {}


def _malformed(body: bytes, hit: Hit) -> FaultEffect:
    """Break the frame in one of four ways, in turn."""
    topic = encode({"topic": msgspec.json.decode(body).get("topic")})
    broken = (
        body[: len(body) // 2],  # cut short
        topic[:-1] + b',"data":null}',  # no data where a list or an object belongs
        body.replace(b'":"', b'":"x'),  # words where numbers belong
        b"[]",  # JSON, but no object
    )
    return FaultEffect((broken[hit.turn % len(broken)],))


def times(text: str, factor: int) -> str:
    """Return the decimal *text* times *factor*, exactly, with as many decimals."""
    return f"{Decimal(text) * factor:f}"


def _moved(text: str, factor: Decimal) -> str:
    """Return the price *text* times *factor*, with one decimal less: texts are finer than ticks."""
    price = Decimal(text)
    coarser = price.scaleb(1) if price.as_tuple().exponent else price
    return f"{(price * factor).quantize(coarser):f}"


def _date_ahead(body: bytes, hit: Hit) -> FaultEffect:
    """Send first a copy of the frame with doubled prices, later dates and closed candles."""
    ahead_ms = hit.fault.ms or max(AHEAD_MS, int(AHEAD_S * 1_000 * hit.speed))
    frame: Message = msgspec.json.decode(body)
    frame["ts"] += ahead_ms
    if "cts" in frame:
        frame["cts"] += ahead_ms
    for item in _items(frame):
        if "start" in item:
            length_ms = item["end"] + 1 - item["start"]
            item["start"] += ahead_ms - ahead_ms % length_ms
            item["end"] = interval_end(item["start"], INTERVALS[item["interval"]]) - 1
            item["confirm"] = True
            frame["ts"] = max(frame["ts"], item["end"] + 1)
        if "T" in item:
            item["T"] += ahead_ms
        for name in PRICES:
            if item.get(name):
                item[name] = times(item[name], 2)
        for side in ("b", "a"):
            if side in item:
                item[side] = [[times(price, 2), size] for price, size in item[side]]
    return FaultEffect((encode(frame), body))


def _items(frame: Message) -> list[Message]:
    data = frame["data"]
    return data if isinstance(data, list) else [data]


def _foreign_frame(body: bytes, _hit: Hit) -> FaultEffect:
    frame: Message = msgspec.json.decode(body)
    for item in _items(frame):
        item |= {name: OTHER_SYMBOL for name in ("s", "symbol") if name in item}
    return FaultEffect((encode(frame),))


def _with_data(body: bytes, changed: Callable[[Message], Message], **head: str) -> bytes:
    """Return the frame *body* with *changed* applied to its data and *head* to its head."""
    frame: Message = msgspec.json.decode(body)
    return encode(frame | {"data": frame["data"] | changed(frame["data"])} | head)


def _swapped_book(data: Message) -> Message:
    """Return a book with its sides swapped."""
    return {"b": data["a"] or [["2", "1"]], "a": data["b"] or [["1", "1"]]}


def _deep_book(_data: Message) -> Message:
    """Return more bids than any book has."""
    return {"b": [[str(price), "1"] for price in range(1, DEEP_LEVELS + 1)], "a": []}


def _lower_book(data: Message) -> Message:
    return {
        side: [[_moved(price, FALSE_BOOK), size] for price, size in data[side]]
        for side in ("b", "a")
    }


def _mark_of(data: Message) -> str:
    """Return the mark price of a ticker, or one of its other prices where a delta lacks it."""
    return next((data[name] for name in TICKER_PRICES if data.get(name)), "1000000")


def _dearer_ticker(data: Message) -> Message:
    prices = {"markPrice": _mark_of(data)}
    prices |= {name: data[name] for name in TICKER_PRICES if data.get(name)}
    return {name: _moved(price, FALSE_MARK) for name, price in prices.items()}


def _in_data(changed: Callable[[Message], Message]) -> Callable[[bytes, Hit], FaultEffect]:
    """Return an effect that replaces a frame by itself with *changed* data."""
    return lambda body, _hit: FaultEffect((_with_data(body, changed),))


def _before(
    changed: Callable[[Message], Message], kind: str
) -> Callable[[bytes, Hit], FaultEffect]:
    """Return an effect that sends, before a frame, one of *kind* with *changed* data."""
    return lambda body, _hit: FaultEffect((_with_data(body, changed, type=kind), body))


# ------------------------------------------------------------ candles at their close

REVISION_DELAY_MS: Final = 700
FACTOR: Final = 1_000
"""An implausible close in the stream is the true one times this."""
PAGE_FACTOR: Final = 1_001
"""The factor over REST: another one, since a client rightly believes two sources that agree."""


def _revised_close(closing: ClosingCandle, _hit: Hit) -> FaultEffect:
    """Send the candle, and later again with another close and more volume."""
    candle, tick = closing.candle, closing.tick
    close = candle.close + tick if candle.close + tick <= candle.high else candle.close - tick
    revised = candle._replace(
        close=close, low=min(candle.low, close), volume=candle.volume + closing.step
    )
    return FaultEffect((closing.element,), ((REVISION_DELAY_MS, closing.write(revised)),))


def _off_grid(closing: ClosingCandle, hit: Hit) -> FaultEffect:
    by_ms = hit.fault.delay_ms
    return closing.changed(**{name: closing.element[name] + by_ms for name in ("start", "end")})


def _double_close(closing: ClosingCandle, _hit: Hit) -> FaultEffect:
    closed = closing.element
    return FaultEffect((closed | {"close": closed["low"], "open": closed["high"]}, closed))


def _implausible_close(closing: ClosingCandle, _hit: Hit) -> FaultEffect:
    price = times(closing.element["close"], FACTOR)
    return closing.changed(close=price, high=price)


def _hollow_close(closing: ClosingCandle, _hit: Hit) -> FaultEffect:
    candle = closing.candle
    hollow = candle._replace(high=candle.high + closing.tick, volume=0, turnover=0)
    return FaultEffect((closing.write(hollow),))


def _absurd_turnover(closing: ClosingCandle, _hit: Hit) -> FaultEffect:
    whole = int(Decimal(closing.element["turnover"])) + 1
    return closing.changed(turnover=str(FACTOR * whole))


# ------------------------------------------------------------ REST answers

FORBIDDEN: Final = HttpReply(
    403,
    """<!DOCTYPE html>
<html><head><title>403 Forbidden</title></head>
<body><h1>403 Forbidden</h1><p>access too frequent</p></body></html>
""",
    "text/html",
)
"""The ban, which the network in front of the exchange answers as HTML."""
TOO_MANY_VISITS: Final = ExchangeError(10006, "Too many visits. Exceeded the API Rate Limit.")
DEFAULT_STATUS: Final = 500
DEFAULT_CODE: Final = 10016
STATUSES: Final = (
    *(201, 202, 204, 205, 206, 300, 304),
    *(400, 401, 402, 404, 405, 406, 408, 409, 410, 413, 414, 418),
    *(421, 422, 425, 426, 428, 429, 431, 451),
    *(500, 501, 502, 503, 504, 520, 522, 530, 599),
)
"""The HTTP statuses that the schedule draws from; a call may ask for any from 200 to 599."""
RETCODES: Final = (
    *(-1, 1, 10000, 10001, 10002, 10003, 10004, 10005, 10006, 10007, 10008, 10009, 10010, 10014),
    *(10016, 10017, 10018, 10019, 10024, 10027, 10028, 10029, 110001, 131001, 170130, 2**31),
)
"""The retCodes that the schedule draws from."""
LIES_MS: Final = (HOUR_MS, -HOUR_MS, 10 * DAY_MS, -10 * DAY_MS, 2**62, -(2**62))
"""The errors of the server's time that the schedule draws from."""


FOREIGN_PRICE: Final = "0.5"
YEAR_MS: Final = 52 * WEEK_MS
CLOSE_COLUMN: Final = 4
HIGH_COLUMN: Final = 2


def _malformed_body(body: bytes, hit: Hit) -> bytes:
    """Break the body in one of five ways, in turn."""
    answer = msgspec.json.decode(body)
    broken = (
        body[: len(body) // 2],
        encode({**answer, "result": None}),
        encode({**answer, "retCode": "OK"}),
        b"<html><body>Bad gateway</body></html>",
        b"",
    )
    return broken[hit.turn % len(broken)]


def _dealt_lie(number: int) -> dict[str, Any]:
    """Draw the error of the time; half of the errors are on a page of candles."""
    path = KLINE_PATH if number % 2 else ""
    return {"ms": LIES_MS[number // 2 % len(LIES_MS)], "topic": path}


def _lying_time(server_ms: int, path: str, result: Message, hit: Hit) -> tuple[int, Message]:
    lie_ms = server_ms + hit.fault.delay_ms
    if path == TIME_PATH:
        result = {"timeSecond": str(lie_ms // 1_000), "timeNano": str(lie_ms * 1_000_000)}
    return lie_ms, result


def _foreign_page(rows: list[Row], result: Message, _hit: Hit) -> list[Row]:
    result["symbol"] = OTHER_SYMBOL
    return [[row[0], *(FOREIGN_PRICE for _ in row[1:5]), *row[5:]] for row in rows]


def _later(rows: list[Row], by_ms: int) -> list[Row]:
    return [[str(int(row[0]) + by_ms), *row[1:]] for row in rows]


def _implausible_page(rows: list[Row], _result: Message, _hit: Hit) -> list[Row]:
    newest = list(rows[0])
    newest[CLOSE_COLUMN] = newest[HIGH_COLUMN] = times(newest[CLOSE_COLUMN], PAGE_FACTOR)
    return [newest, *rows[1:]]


# ------------------------------------------------------------ the table

FAULTS: Final[Mapping[str, FaultKind]] = {
    "drop": FaultKind(
        "frame",
        "one data frame is never sent (topic)",
        lambda _body, _hit: FaultEffect(),
        dealt=_half_at_candles,
    ),
    "delay": FaultKind(
        "frame",
        "one data frame is sent late by ms of market time, after newer ones (topic, ms)",
        lambda body, hit: FaultEffect(later=((hit.fault.delay_ms, body),)),
        default_ms=3_000,
        dealt=_half_at_candles,
    ),
    "duplicate": FaultKind(
        "frame",
        "one data frame is sent twice (topic)",
        lambda body, _hit: FaultEffect((body, body)),
        dealt=_half_at_candles,
    ),
    "reorder": FaultKind(
        "frame",
        "one data frame is sent after the next one (topic)",
        lambda body, _hit: FaultEffect(after_next=(body,)),
        dealt=_half_at_candles,
    ),
    "malformed": FaultKind(
        "frame",
        "one data frame is replaced by malformed text (topic)",
        _malformed,
        dealt=_half_at_candles,
    ),
    "stall": FaultKind(
        "connection",
        "the open connections get no data for the given seconds; pongs go on (seconds)",
        lambda hub, hit: hub.stall(hit.fault.seconds),
    ),
    "disconnect": FaultKind(
        "connection",
        "every stream connection is cut without a closing handshake",
        lambda hub, _hit: hub.cut_all(),
    ),
    "refuse": FaultKind(
        "handshake",
        "like disconnect, and the next count connections are refused (count)",
        lambda _hit: HttpReply(503, "refused"),
    ),
    "retcode_10006": FaultKind(
        "answer",
        "the next count REST calls are answered with retCode 10006 (count)",
        lambda _hit: TOO_MANY_VISITS,
    ),
    "http_403": FaultKind(
        "answer",
        "the next count REST calls are answered with HTTP 403 and HTML (count)",
        lambda _hit: FORBIDDEN,
    ),
    "missing_close": FaultKind(
        "close",
        "one closed candle is never sent; REST has it (topic)",
        lambda _closing, _hit: FaultEffect(),
    ),
    "revised_close": FaultKind(
        "close", "one closed candle is sent again with values that differ from REST", _revised_close
    ),
    "late_close": FaultKind(
        "close",
        "one closed candle is sent late by ms of market time (topic, ms)",
        lambda closing, hit: FaultEffect(later=((hit.fault.delay_ms, closing.element),)),
        default_ms=8_000,
    ),
    "early_confirm": FaultKind(
        "push",
        "one open candle is marked closed, at least two seconds too soon",
        lambda element, _hit: element | {"confirm": True},
    ),
    "off_grid": FaultKind(
        "close",
        "one closed candle is sent with a start that is off the grid by ms (ms)",
        _off_grid,
        default_ms=7_000,
    ),
    "double_close": FaultKind(
        "close",
        "one closed candle is sent twice in one frame, with different closes",
        _double_close,
    ),
    "implausible_close": FaultKind(
        "close", "one closed candle is sent with its close times 1,000", _implausible_close
    ),
    "ahead_candle": FaultKind(
        "frame",
        "a closed candle that is dated ms ahead is sent before a candle frame (ms)",
        _date_ahead,
        aim=CANDLES,
    ),
    "ahead_book": FaultKind(
        "frame",
        "a book with twice the price, dated ms ahead, is sent before a book (ms)",
        _date_ahead,
        aim=BOOKS,
    ),
    "ahead_ticker": FaultKind(
        "frame",
        "a ticker that is dated ms ahead is sent before a ticker (ms)",
        _date_ahead,
        aim=TICKERS,
    ),
    "ahead_trade": FaultKind(
        "frame",
        "trades that are dated ms ahead are sent before trades (ms)",
        _date_ahead,
        aim=TRADES,
    ),
    "foreign_frame": FaultKind(
        "frame",
        "the data in one book, ticker or trade frame name another symbol",
        _foreign_frame,
        aim=(BOOKS, TICKERS, TRADES),
    ),
    "crossed_book": FaultKind(
        "frame",
        "a book whose bid lies above its ask is sent before a book",
        _before(_swapped_book, "snapshot"),
        aim=BOOKS,
    ),
    "deep_book": FaultKind(
        "frame",
        "a delta of 1,500 bids is sent before a book",
        _before(_deep_book, "delta"),
        aim=BOOKS,
    ),
    "http_status": FaultKind(
        "answer",
        "the next count REST calls are answered by HTTP status (status, count)",
        lambda hit: HttpReply(hit.fault.status or DEFAULT_STATUS, "refused"),
        dealt=lambda number: {"status": STATUSES[number % len(STATUSES)]},
    ),
    "retcode": FaultKind(
        "answer",
        "the next count REST calls are answered with retCode code (code, count)",
        lambda hit: ExchangeError(hit.fault.code or DEFAULT_CODE, "as the fault asks"),
        dealt=lambda number: {"code": RETCODES[number % len(RETCODES)]},
    ),
    "redirect": FaultKind(
        "answer",
        "one REST call is redirected (HTTP 302) to a path that does not exist (topic)",
        lambda _hit: HttpReply(302, "", location="/v5/elsewhere"),
    ),
    "hang": FaultKind(
        "answer",
        "one REST call hangs for the given seconds and is never answered (topic, seconds)",
        lambda hit: HttpReply(504, "too late", wait_s=hit.fault.seconds),
    ),
    "malformed_body": FaultKind(
        "body",
        "one REST body is broken: cut off, null, text for numbers, or not an object",
        _malformed_body,
    ),
    "lying_time": FaultKind(
        "time",
        "the server's time in one answer is wrong by ms, past or future (topic, ms)",
        _lying_time,
        aim=TIME_PATH,
        default_ms=HOUR_MS,
        dealt=_dealt_lie,
        is_signed=True,
    ),
    "empty_page": FaultKind(
        "rows", "one page of candles is empty", lambda _rows, _result, _hit: [], aim=KLINE_PATH
    ),
    "short_page": FaultKind(
        "rows",
        "one page of candles lacks its newer half",
        lambda rows, _result, _hit: rows[(len(rows) + 1) // 2 :],
        aim=KLINE_PATH,
    ),
    "foreign_page": FaultKind(
        "rows",
        "one page of candles is of another symbol, at other prices",
        _foreign_page,
        aim=KLINE_PATH,
    ),
    "foreign_window": FaultKind(
        "rows",
        "one page of candles is of a time range that was not requested",
        lambda rows, _result, _hit: _later(rows, -YEAR_MS),
        aim=KLINE_PATH,
    ),
    "off_grid_page": FaultKind(
        "rows",
        "one page of candles is off the grid by ms (ms)",
        lambda rows, _result, hit: _later(rows, hit.fault.delay_ms),
        aim=KLINE_PATH,
        default_ms=7_000,
    ),
    "implausible_page": FaultKind(
        "rows",
        "one page of candles has its newest close times 1,001",
        _implausible_page,
        aim=KLINE_PATH,
    ),
    "false_mark": FaultKind(
        "frame",
        "the mark price of one ticker is 26 % too high",
        _in_data(lambda data: {"markPrice": _moved(_mark_of(data), FALSE_MARK)}),
        aim=TICKERS,
    ),
    "mark_of_one": FaultKind(
        "frame",
        "the mark price of one ticker is 1",
        _in_data(lambda _data: {"markPrice": "1"}),
        aim=TICKERS,
    ),
    "false_ticker": FaultKind(
        "frame",
        "all prices of one ticker, also its mark, are 26 % too high",
        _in_data(_dearer_ticker),
        aim=TICKERS,
    ),
    "absurd_rate": FaultKind(
        "frame",
        "the funding rate in one ticker is -40 %",
        _in_data(lambda _data: {"fundingRate": ANNOUNCED_RATE}),
        aim=TICKERS,
    ),
    "false_book": FaultKind(
        "frame",
        "one book of depth 1 is a third too low",
        _in_data(_lower_book),
        aim="orderbook.1.",
    ),
    "absurd_settlement": FaultKind(
        "rows",
        "the newest settlement in one answer has a rate of 25 %",
        lambda rows, _result, _hit: [rows[0] | {"fundingRate": ABSURD_RATE}, *rows[1:]],
        aim=FUNDING_PATH,
    ),
    "hollow_close": FaultKind(
        "close", "one closed candle is sent with a price range and no volume", _hollow_close
    ),
    "absurd_turnover": FaultKind(
        "close",
        "one closed candle is sent with at least 1,000 times its turnover",
        _absurd_turnover,
    ),
}
"""Every kind by its name."""
