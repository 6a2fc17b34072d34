"""Every kind of fault: name, target, effect; pure.

A kind belongs to the stage at which it acts (``FrameFault``, ``CloseFault``, ``AnswerFault``, ...),
which says what its effect is given and returns. A new kind is one decorated function here: the
listing of the command, the control calls, the seeded schedule and the stage find it in ``FAULTS``.
The kinds stand in the order in which the schedule deals them, so that a seed keeps its schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, NamedTuple, Protocol, TypeVar

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
CANDLES: Final = "kline."

Message = dict[str, Any]
Row = list[str]
encode: Final = msgspec.json.encode
Effect = TypeVar("Effect", bound=Callable[..., Any])


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
        """Refuse what the fields' own bounds let pass; msgspec turns it into its own error."""
        if self.kind not in FAULTS:
            raise ValueError(f"there is no kind {self.kind!r}")
        if self.ms < 0 and not FAULTS[self.kind].is_signed:
            raise ValueError(f"ms is negative, which it may not be for {self.kind}")
        if 0 < self.status < STATUS_MIN:
            raise ValueError(f"status is below {STATUS_MIN}")

    @property
    def delay_ms(self) -> int:
        """Market milliseconds by which this fault delays or moves."""
        return self.ms or FAULTS[self.kind].default_ms


class Hit(NamedTuple):
    """A fault that meets something: the *turn*-th of its kind, at a market speed."""

    fault: Fault
    turn: int
    speed: float


@dataclass(frozen=True)
class FaultKind:
    """What every kind has.

    ``meaning`` says what it does, with the parameters that it takes beside ``kind`` in
    parentheses. ``aim`` is the beginning of the topics or paths that it hits where its fault names
    none. ``dealt`` gives the schedule's parameters of a drawn number.
    """

    name: str
    meaning: str
    effect: Callable[..., Any]
    aim: str | tuple[str, ...] = ""
    default_ms: int = 0
    dealt: Callable[[int], dict[str, Any]] = lambda _number: {}
    is_signed: bool = False
    is_provoked: ClassVar[bool] = False
    """Whether the schedule cuts the stream with it: a client that is well does not ask REST."""

    @classmethod
    def declare(
        cls,
        name: str,
        meaning: str,
        **fields: Any,  # noqa: ANN401 - those of a kind
    ) -> Callable[[Effect], Effect]:
        """Add a kind of this stage to ``FAULTS`` with the decorated function as its effect."""

        def add(effect: Effect) -> Effect:
            FAULTS[name] = cls(name, meaning, effect, **fields)
            return effect

        return add


FAULTS: Final[dict[str, FaultKind]] = {}
"""Every kind by its name."""


class FrameOutcome(NamedTuple):
    """What is sent in place of a frame: now, ms of market time later, and after the next frame."""

    now: tuple[bytes, ...] = ()
    later: tuple[tuple[int, bytes], ...] = ()
    after_next: tuple[bytes, ...] = ()


class ClosingCandle(NamedTuple):
    """A candle at its close: as it is written, as integers of its market, and how to write it."""

    element: Message
    candle: Candle
    tick: int
    step: int
    write: Callable[[Candle], Message]


class CloseOutcome(NamedTuple):
    """The elements of the closing frame, and those sent ms of market time later."""

    now: tuple[Message, ...] = ()
    later: tuple[tuple[int, Message], ...] = ()


class HttpReply(NamedTuple):
    """What an HTTP call is answered with, *wait_s* machine seconds later."""

    status: int
    text: str
    content_type: str = "text/plain"
    location: str = ""
    wait_s: float = 0.0


class Clients(Protocol):
    """The stream connections that a connection fault acts on."""

    def stall(self, seconds: float) -> None:
        """Withhold data from every connection of the moment."""
        ...

    def cut_all(self) -> None:
        """Cut every connection without a closing handshake."""
        ...


class FrameFault(FaultKind):
    """Acts on one data frame: (body, hit) -> ``FrameOutcome``."""


class ConnectionFault(FaultKind):
    """Acts as soon as somebody listens: (clients, hit) -> None."""


class HandshakeFault(FaultKind):
    """Acts on a new connection, and cuts the others when it is armed: (hit) -> ``HttpReply``."""


class PushFault(FaultKind):
    """Acts on an open candle that is not near its close: (element, hit) -> element."""


class CloseFault(FaultKind):
    """Acts on a candle at its close; REST has it unharmed: (closing, hit) -> ``CloseOutcome``."""


class RestFault(FaultKind):
    """Acts on a REST call."""

    is_provoked: ClassVar[bool] = True


class AnswerFault(RestFault):
    """Stands in place of an answer: (hit) -> ``HttpReply`` or ``ExchangeError``."""


class BodyFault(RestFault):
    """Acts on the bytes of an answer: (body, hit) -> body."""


class TimeFault(RestFault):
    """Acts on the server's time of an answer: (server time, path, result, hit) -> both."""


class PageFault(RestFault):
    """Acts on a page of candles that is not empty: (rows, result, hit) -> rows, newest first."""


# ------------------------------------------------------------ frames


def _half_at_candles(number: int) -> dict[str, Any]:
    """Let half of the schedule's plain frame faults aim at candles."""
    return {"topic": CANDLES} if number % 2 else {}


@FrameFault.declare("drop", "one data frame is never sent (topic)", dealt=_half_at_candles)
def _drop(_body: bytes, _hit: Hit) -> FrameOutcome:
    return FrameOutcome()


@FrameFault.declare(
    "delay",
    "one data frame is sent ms of market time late, behind later ones (topic, ms)",
    default_ms=3_000,
    dealt=_half_at_candles,
)
def _delay(body: bytes, hit: Hit) -> FrameOutcome:
    return FrameOutcome(later=((hit.fault.delay_ms, body),))


@FrameFault.declare("duplicate", "one data frame is sent twice (topic)", dealt=_half_at_candles)
def _duplicate(body: bytes, _hit: Hit) -> FrameOutcome:
    return FrameOutcome((body, body))


@FrameFault.declare(
    "reorder", "one data frame is sent after the next one (topic)", dealt=_half_at_candles
)
def _reorder(body: bytes, _hit: Hit) -> FrameOutcome:
    return FrameOutcome(after_next=(body,))


@FrameFault.declare(
    "malformed",
    "one data frame is replaced by text that is no such frame (topic)",
    dealt=_half_at_candles,
)
def _malformed(body: bytes, hit: Hit) -> FrameOutcome:
    """Break the frame in one of four ways, each in its turn."""
    topic = encode({"topic": msgspec.json.decode(body).get("topic")})
    broken = (
        body[: len(body) // 2],  # cut short
        topic[:-1] + b',"data":null}',  # no data where a list or an object belongs
        body.replace(b'":"', b'":"x'),  # words where numbers belong
        b"[]",  # JSON, but no object
    )
    return FrameOutcome((broken[hit.turn % len(broken)],))


# ------------------------------------------------------------ connections


@ConnectionFault.declare(
    "stall", "the connections of the moment get no data for seconds; pongs go on (seconds)"
)
def _stall(clients: Clients, hit: Hit) -> None:
    clients.stall(hit.fault.seconds)


@ConnectionFault.declare("disconnect", "every stream connection is cut without a closing handshake")
def _disconnect(clients: Clients, _hit: Hit) -> None:
    clients.cut_all()


@HandshakeFault.declare(
    "refuse", "as disconnect, and the next count connections are refused (count)"
)
def _refuse(_hit: Hit) -> HttpReply:
    return HttpReply(503, "refused")


# ------------------------------------------------------------ REST answers: limits

TOO_MANY_VISITS: Final = ExchangeError(10006, "Too many visits. Exceeded the API Rate Limit.")
FORBIDDEN: Final = HttpReply(
    403,
    """<!DOCTYPE html>
<html><head><title>403 Forbidden</title></head>
<body><h1>403 Forbidden</h1><p>access too frequent</p></body></html>
""",
    "text/html",
)
"""The ban, which comes from the network in front of the exchange, as HTML."""


@AnswerFault.declare(
    "retcode_10006", "the next count REST calls are answered with retCode 10006 (count)"
)
def _too_many_visits(_hit: Hit) -> ExchangeError:
    return TOO_MANY_VISITS


@AnswerFault.declare(
    "http_403", "the next count REST calls are answered with HTTP 403 and HTML (count)"
)
def _forbidden(_hit: Hit) -> HttpReply:
    return FORBIDDEN


# ------------------------------------------------------------ candles

REVISION_DELAY_MS: Final = 700
FACTOR: Final = 1_000
"""How many times the true one an implausible close of the stream is."""
PAGE_FACTOR: Final = 1_001
"""The same of REST: two ways that say the same by chance would be believed, as they should be."""


@CloseFault.declare("missing_close", "one closed candle is never sent; REST has it (topic)")
def _missing_close(_closing: ClosingCandle, _hit: Hit) -> CloseOutcome:
    return CloseOutcome()


@CloseFault.declare(
    "revised_close", "one closed candle is sent again with other values, not as in REST"
)
def _revised_close(closing: ClosingCandle, _hit: Hit) -> CloseOutcome:
    """Send it again with another close and more volume, inside its own range."""
    candle, tick = closing.candle, closing.tick
    close = candle.close + tick if candle.close + tick <= candle.high else candle.close - tick
    revised = candle._replace(
        close=close, low=min(candle.low, close), volume=candle.volume + closing.step
    )
    return CloseOutcome((closing.element,), ((REVISION_DELAY_MS, closing.write(revised)),))


@CloseFault.declare(
    "late_close",
    "one closed candle is sent ms of market time late (topic, ms)",
    default_ms=8_000,
)
def _late_close(closing: ClosingCandle, hit: Hit) -> CloseOutcome:
    return CloseOutcome(later=((hit.fault.delay_ms, closing.element),))


@PushFault.declare(
    "early_confirm", "one open candle says that it is closed, two seconds or more too soon"
)
def _early_confirm(element: Message, _hit: Hit) -> Message:
    return element | {"confirm": True}


@CloseFault.declare(
    "off_grid",
    "one closed candle is sent with its start off the grid by ms (ms)",
    default_ms=7_000,
)
def _off_grid(closing: ClosingCandle, hit: Hit) -> CloseOutcome:
    closed, by_ms = closing.element, hit.fault.delay_ms
    return CloseOutcome((closed | {name: closed[name] + by_ms for name in ("start", "end")},))


@CloseFault.declare("double_close", "one closed candle is sent twice in one frame, with two closes")
def _double_close(closing: ClosingCandle, _hit: Hit) -> CloseOutcome:
    closed = closing.element
    return CloseOutcome((closed | {"close": closed["low"], "open": closed["high"]}, closed))


@CloseFault.declare("implausible_close", "one closed candle is sent with 1,000 times its close")
def _implausible_close(closing: ClosingCandle, _hit: Hit) -> CloseOutcome:
    price = times(closing.element["close"], FACTOR)
    return CloseOutcome((closing.element | {"close": price, "high": price},))


def times(text: str, factor: int) -> str:
    """Return the decimal *text* times *factor*, exactly, with as many decimals."""
    whole, dot, decimals = text.partition(".")
    if not dot:
        return str(int(whole) * factor)
    places = len(decimals)
    digits = str(int(whole + decimals) * factor).rjust(places + 1, "0")
    return f"{digits[:-places]}.{digits[-places:]}"


# ------------------------------------------------------------ frames that cannot be true

STRANGER: Final = "OTHERUSDT"
PRICES: Final = ("open", "close", "high", "low", "p", "turnover", "markPrice", "lastPrice")
DEEP_LEVELS: Final = 1_500
AHEAD_MS: Final = HOUR_MS
AHEAD_S: Final = 3.0
"""A frame is dated ahead by an hour, and by no less than this at the speed of the exchange."""


# Decorators are applied from below: the first to be dealt stands last.
@FrameFault.declare(
    "ahead_trade", "trades dated ms ahead are sent before trades (ms)", aim="publicTrade."
)
@FrameFault.declare(
    "ahead_ticker", "a ticker dated ms ahead is sent before a ticker (ms)", aim="tickers."
)
@FrameFault.declare(
    "ahead_book",
    "a book of twice the price dated ms ahead is sent before a book (ms)",
    aim="orderbook.",
)
@FrameFault.declare(
    "ahead_candle", "a closed candle dated ms ahead is sent before a candle frame (ms)", aim=CANDLES
)
def _date_ahead(body: bytes, hit: Hit) -> FrameOutcome:
    """Send before the frame one of twice its prices and all its dates ahead, candles closed."""
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
    return FrameOutcome((encode(frame), body))


def _items(frame: Message) -> list[Message]:
    data = frame["data"]
    return data if isinstance(data, list) else [data]


@FrameFault.declare(
    "foreign_frame",
    "the data of one book, ticker or trade frame name another symbol",
    aim=("orderbook.", "tickers.", "publicTrade."),
)
def _foreign_frame(body: bytes, _hit: Hit) -> FrameOutcome:
    frame: Message = msgspec.json.decode(body)
    for item in _items(frame):
        for name in ("s", "symbol"):
            if name in item:
                item[name] = STRANGER
    return FrameOutcome((encode(frame),))


@FrameFault.declare(
    "crossed_book", "a book whose bid lies above its ask is sent before a book", aim="orderbook."
)
def _crossed_book(body: bytes, _hit: Hit) -> FrameOutcome:
    """Send before the frame a whole book with its sides swapped."""
    frame: Message = msgspec.json.decode(body)
    data = frame["data"]
    data["b"], data["a"] = (data["a"] or [["2", "1"]]), (data["b"] or [["1", "1"]])
    return FrameOutcome((encode(frame | {"type": "snapshot"}), body))


@FrameFault.declare("deep_book", "a delta of 1,500 bids is sent before a book", aim="orderbook.")
def _deep_book(body: bytes, _hit: Hit) -> FrameOutcome:
    """Send before the frame a delta of more bids than any book has."""
    frame: Message = msgspec.json.decode(body)
    bids = [[str(price), "1"] for price in range(1, DEEP_LEVELS + 1)]
    data = frame["data"] | {"b": bids, "a": []}
    return FrameOutcome((encode(frame | {"data": data, "type": "delta"}), body))


# ------------------------------------------------------------ REST answers

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
"""How far off the schedule lets the server's time be."""


@AnswerFault.declare(
    "http_status",
    "the next count REST calls are answered by HTTP status (status, count)",
    dealt=lambda number: {"status": STATUSES[number % len(STATUSES)]},
)
def _http_status(hit: Hit) -> HttpReply:
    return HttpReply(hit.fault.status or DEFAULT_STATUS, "refused")


@AnswerFault.declare(
    "retcode",
    "the next count REST calls are answered with retCode code (code, count)",
    dealt=lambda number: {"code": RETCODES[number % len(RETCODES)]},
)
def _retcode(hit: Hit) -> ExchangeError:
    return ExchangeError(hit.fault.code or DEFAULT_CODE, "as the fault asks")


@AnswerFault.declare(
    "redirect", "one REST call is sent on, HTTP 302, to a path that there is not (topic)"
)
def _redirect(_hit: Hit) -> HttpReply:
    return HttpReply(302, "", location="/v5/elsewhere")


@AnswerFault.declare(
    "hang", "one REST call is not answered for seconds, then never (topic, seconds)"
)
def _hang(hit: Hit) -> HttpReply:
    return HttpReply(504, "too late", wait_s=hit.fault.seconds)


@BodyFault.declare(
    "malformed_body", "one REST body is broken: cut, null, words for numbers, no object"
)
def _malformed_body(body: bytes, hit: Hit) -> bytes:
    """Break the body in one of five ways, each in its turn."""
    whole = msgspec.json.decode(body)
    broken = (
        body[: len(body) // 2],
        encode({**whole, "result": None}),
        encode({**whole, "retCode": "OK"}),
        b"<html><body>Bad gateway</body></html>",
        b"",
    )
    return broken[hit.turn % len(broken)]


def _dealt_lie(number: int) -> dict[str, Any]:
    """Draw how far off the time is; half of the lies stand on a page of candles."""
    path = KLINE_PATH if number % 2 else ""
    return {"ms": LIES_MS[number // 2 % len(LIES_MS)], "topic": path}


@TimeFault.declare(
    "lying_time",
    "the server's time is ms off in one answer, before or ahead (topic, ms)",
    aim=TIME_PATH,
    default_ms=HOUR_MS,
    dealt=_dealt_lie,
    is_signed=True,
)
def _lying_time(server_ms: int, path: str, result: Message, hit: Hit) -> tuple[int, Message]:
    lie_ms = server_ms + hit.fault.delay_ms
    if path == TIME_PATH:
        result = {"timeSecond": str(lie_ms // 1_000), "timeNano": str(lie_ms * 1_000_000)}
    return lie_ms, result


# ------------------------------------------------------------ pages of candles

FOREIGN_PRICE: Final = "0.5"
YEAR_MS: Final = 52 * WEEK_MS
CLOSE_COLUMN: Final = 4
HIGH_COLUMN: Final = 2


@PageFault.declare("empty_page", "one page of candles is empty")
def _empty_page(_rows: list[Row], _result: Message, _hit: Hit) -> list[Row]:
    return []


@PageFault.declare("short_page", "one page of candles lacks its newer half")
def _short_page(rows: list[Row], _result: Message, _hit: Hit) -> list[Row]:
    return rows[(len(rows) + 1) // 2 :]


@PageFault.declare("foreign_page", "one page of candles is of another symbol, at another price")
def _foreign_page(rows: list[Row], result: Message, _hit: Hit) -> list[Row]:
    result["symbol"] = STRANGER
    return [[row[0], *(FOREIGN_PRICE for _ in row[1:5]), *row[5:]] for row in rows]


@PageFault.declare("foreign_window", "one page of candles is of a window that was not asked for")
def _foreign_window(rows: list[Row], _result: Message, _hit: Hit) -> list[Row]:
    return [[str(int(row[0]) - YEAR_MS), *row[1:]] for row in rows]


@PageFault.declare(
    "off_grid_page", "one page of candles starts ms off the grid (ms)", default_ms=7_000
)
def _off_grid_page(rows: list[Row], _result: Message, hit: Hit) -> list[Row]:
    return [[str(int(row[0]) + hit.fault.delay_ms), *row[1:]] for row in rows]


@PageFault.declare("implausible_page", "one page has its newest close times 1,001")
def _implausible_page(rows: list[Row], _result: Message, _hit: Hit) -> list[Row]:
    newest = list(rows[0])
    newest[CLOSE_COLUMN] = newest[HIGH_COLUMN] = times(newest[CLOSE_COLUMN], PAGE_FACTOR)
    return [newest, *rows[1:]]
