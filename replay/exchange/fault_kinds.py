"""Every kind of fault: its name, where it acts, and its forms; their effects are pure functions.

A kind acts at a ``Stage``, which defines the arguments and the result of an effect. A new kind is
one row of ``FAULTS``, and a new form one row of a kind: the command's listing, the control calls,
the seeded schedule and the stage find it there. A seed's schedule depends on the order of the rows.
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
from tracepaper.strategies.units import HOUR_MS, INTERVALS, WEEK_MS

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
    """One armed fault; an empty ``form`` is the kind's first, and 0 the form's default."""

    kind: str
    form: str = ""
    topic: str = ""
    ms: int = 0
    seconds: Annotated[float, Meta(ge=0)] = 5.0
    count: Annotated[int, Meta(ge=1)] = 1
    provoke: bool = False
    status: Annotated[int, Meta(ge=200, le=599)] = 500
    code: int = 10_016

    def __post_init__(self) -> None:
        """Reject what the fields' bounds let pass; msgspec turns the error into its own."""
        if self.kind not in FAULTS:
            raise ValueError(f"there is no kind {self.kind!r}")
        if self.form and self.form not in FAULTS[self.kind].forms:
            raise ValueError(f"{self.kind} has no form {self.form!r}")
        if self.ms < 0 and not FAULTS[self.kind].is_signed:
            raise ValueError(f"ms is negative, which it may not be for {self.kind}")

    @property
    def strikes(self) -> Form:
        """The form in which it strikes."""
        forms = FAULTS[self.kind].forms
        return forms[self.form] if self.form else next(iter(forms.values()))

    @property
    def delay_ms(self) -> int:
        """The delay or shift of this fault in market milliseconds."""
        return self.ms or self.strikes.default_ms

    @property
    def is_provoked(self) -> bool:
        """Whether the schedule also cuts the stream.

        A client whose stream works requests only settlements over REST.
        """
        is_of_rest = FAULTS[self.kind].stage in {"answer", "body", "time", "rows"}
        return is_of_rest and self.strikes.default_topic != FUNDING_PATH


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


class Form(NamedTuple):
    """A form of a fault.

    ``meaning`` describes it, with its parameters besides ``kind`` and ``form`` in parentheses.
    ``default_topic`` is the prefix of the topics or paths that it hits by default.
    """

    meaning: str
    effect: Callable[..., Any]
    default_topic: str | tuple[str, ...] = ""
    default_ms: int = 0


class FaultKind(NamedTuple):
    """A row of ``FAULTS``: where it acts, and its forms by name."""

    stage: Stage
    forms: Mapping[str, Form]
    is_signed: bool = False  # whether ``ms`` may be negative


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


def _ticker_with_other_prices(data: Message) -> Message:
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
REDIRECTED: Final = HttpReply(302, "", location="/v5/elsewhere")
"""A redirection to a path that does not exist."""
FOREIGN_PRICE: Final = "0.5"
YEAR_MS: Final = 52 * WEEK_MS
CLOSE_COLUMN: Final = 4
HIGH_COLUMN: Final = 2


def _answer_by_status(hit: Hit) -> HttpReply:
    status = hit.fault.status
    special = {reply.status: reply for reply in (FORBIDDEN, REDIRECTED)}
    return special.get(status, HttpReply(status, "refused"))


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


def _wrong_time(server_ms: int, path: str, result: Message, hit: Hit) -> tuple[int, Message]:
    wrong_ms = server_ms + hit.fault.delay_ms
    if path == TIME_PATH:
        result = {"timeSecond": str(wrong_ms // 1_000), "timeNano": str(wrong_ms * 1_000_000)}
    return wrong_ms, result


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
    "delivery": FaultKind(
        "frame",
        {
            "drop": Form("one data frame is never sent (topic)", lambda _body, _hit: FaultEffect()),
            "delay": Form(
                "one data frame is sent late by ms of market time, after newer ones (topic, ms)",
                lambda body, hit: FaultEffect(later=((hit.fault.delay_ms, body),)),
                default_ms=3_000,
            ),
            "duplicate": Form(
                "one data frame is sent twice (topic)",
                lambda body, _hit: FaultEffect((body, body)),
            ),
            "reorder": Form(
                "one data frame is sent after the next one (topic)",
                lambda body, _hit: FaultEffect(after_next=(body,)),
            ),
        },
    ),
    "malformed": FaultKind(
        "frame",
        {"": Form("one data frame is replaced by malformed text (topic)", _malformed)},
    ),
    "stall": FaultKind(
        "connection",
        {
            "": Form(
                "the open connections get no data for the given seconds; pongs go on (seconds)",
                lambda hub, hit: hub.stall(hit.fault.seconds),
            )
        },
    ),
    "disconnect": FaultKind(
        "connection",
        {
            "": Form(
                "every stream connection is cut without a closing handshake",
                lambda hub, _hit: hub.cut_all(),
            )
        },
    ),
    "refuse": FaultKind(
        "handshake",
        {
            "": Form(
                "like disconnect, and the next count connections are refused (count)",
                lambda _hit: HttpReply(503, "refused"),
            )
        },
    ),
    "early_confirm": FaultKind(
        "push",
        {
            "": Form(
                "one open candle is marked closed, at least two seconds too soon",
                lambda element, _hit: element | {"confirm": True},
            )
        },
    ),
    "wrong_close": FaultKind(
        "close",
        {
            "missing": Form(
                "one closed candle is never sent; REST has it (topic)",
                lambda _closing, _hit: FaultEffect(),
            ),
            "revised": Form(
                "one closed candle is sent again with values that differ from REST", _revised_close
            ),
            "late": Form(
                "one closed candle is sent late by ms of market time (topic, ms)",
                lambda closing, hit: FaultEffect(later=((hit.fault.delay_ms, closing.element),)),
                default_ms=8_000,
            ),
            "off_grid": Form(
                "one closed candle is sent with a start that is off the grid by ms (ms)",
                _off_grid,
                default_ms=7_000,
            ),
            "double": Form(
                "one closed candle is sent twice in one frame, with different closes",
                _double_close,
            ),
            "implausible": Form(
                "one closed candle is sent with its close times 1,000", _implausible_close
            ),
            "hollow": Form(
                "one closed candle is sent with a price range and no volume", _hollow_close
            ),
            "turnover": Form(
                "one closed candle is sent with at least 1,000 times its turnover",
                _absurd_turnover,
            ),
        },
    ),
    "ahead": FaultKind(
        "frame",
        {
            "": Form(
                "a copy with twice the price, dated ms ahead, is sent before a frame (topic, ms)",
                _date_ahead,
                CANDLES,
            )
        },
    ),
    "wrong_frame": FaultKind(
        "frame",
        {
            "foreign": Form(
                "the data in one book, ticker or trade frame name another symbol",
                _foreign_frame,
                (BOOKS, TICKERS, TRADES),
            ),
            "crossed": Form(
                "a book whose bid lies above its ask is sent before a book",
                _before(_swapped_book, "snapshot"),
                BOOKS,
            ),
            "deep": Form(
                "a delta of 1,500 bids is sent before a book", _before(_deep_book, "delta"), BOOKS
            ),
            "low": Form(
                "one book of depth 1 is a third too low", _in_data(_lower_book), "orderbook.1."
            ),
            "mark": Form(
                "the mark price of one ticker is 26 % too high",
                _in_data(lambda data: {"markPrice": _moved(_mark_of(data), FALSE_MARK)}),
                TICKERS,
            ),
            "mark_of_one": Form(
                "the mark price of one ticker is 1",
                _in_data(lambda _data: {"markPrice": "1"}),
                TICKERS,
            ),
            "ticker": Form(
                "all prices of one ticker, also its mark, are 26 % too high",
                _in_data(_ticker_with_other_prices),
                TICKERS,
            ),
            "rate": Form(
                "the funding rate in one ticker is -40 %",
                _in_data(lambda _data: {"fundingRate": ANNOUNCED_RATE}),
                TICKERS,
            ),
        },
    ),
    "http_status": FaultKind(
        "answer",
        {
            "": Form(
                "the next count REST calls are answered by HTTP status; 302 leads nowhere, and 403 "
                "is the ban (status, count)",
                _answer_by_status,
            )
        },
    ),
    "retcode": FaultKind(
        "answer",
        {
            "": Form(
                "the next count REST calls are answered with retCode code (code, count)",
                lambda hit: ExchangeError(hit.fault.code, "as the fault asks"),
            )
        },
    ),
    "hang": FaultKind(
        "answer",
        {
            "": Form(
                "one REST call hangs for the given seconds and is never answered (topic, seconds)",
                lambda hit: HttpReply(504, "too late", wait_s=hit.fault.seconds),
            )
        },
    ),
    "malformed_body": FaultKind(
        "body",
        {
            "": Form(
                "one REST body is broken: cut off, null, text for numbers, or not an object",
                _malformed_body,
            )
        },
    ),
    "wrong_time": FaultKind(
        "time",
        {
            "": Form(
                "the server's time in one answer is wrong by ms, past or future (topic, ms)",
                _wrong_time,
                TIME_PATH,
                HOUR_MS,
            )
        },
        is_signed=True,
    ),
    "wrong_page": FaultKind(
        "rows",
        {
            "empty": Form(
                "one page of candles is empty", lambda _rows, _result, _hit: [], KLINE_PATH
            ),
            "short": Form(
                "one page of candles lacks its newer half",
                lambda rows, _result, _hit: rows[(len(rows) + 1) // 2 :],
                KLINE_PATH,
            ),
            "foreign": Form(
                "one page of candles is of another symbol, at other prices",
                _foreign_page,
                KLINE_PATH,
            ),
            "window": Form(
                "one page of candles is of a time range that was not requested",
                lambda rows, _result, _hit: _later(rows, -YEAR_MS),
                KLINE_PATH,
            ),
            "off_grid": Form(
                "one page of candles is off the grid by ms (ms)",
                lambda rows, _result, hit: _later(rows, hit.fault.delay_ms),
                KLINE_PATH,
                7_000,
            ),
            "implausible": Form(
                "one page of candles has its newest close times 1,001",
                _implausible_page,
                KLINE_PATH,
            ),
            "settlement": Form(
                "the newest settlement in one answer has a rate of 25 %",
                lambda rows, _result, _hit: [rows[0] | {"fundingRate": ABSURD_RATE}, *rows[1:]],
                FUNDING_PATH,
            ),
        },
    ),
}
"""Every kind by its name."""
