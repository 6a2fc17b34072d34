"""Faults on request: armed by a control call or a seeded schedule, counted when they hit.

A fault is *scheduled* when it is armed and *fired* when it hit something: a frame, a connection
or a request. An armed fault waits until then. ``MEANING`` lists every kind with what it does and
the parameters that it takes; ``tracepaper exchange --list-faults`` prints it. ``topic`` is the
beginning of the topic or of the REST path to hit.

With ``provoke`` (the schedule sets it), the REST faults also cut the stream, since a client that
is well has no reason to ask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from tracepaper.replay.exchange.path import draws, key
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.market import DAY_MS, HOUR_MS


class FaultKind(StrEnum):
    """Every kind of fault."""

    DROP = "drop"
    DELAY = "delay"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    MALFORMED = "malformed"
    STALL = "stall"
    DISCONNECT = "disconnect"
    REFUSE = "refuse"
    RETCODE_10006 = "retcode_10006"
    HTTP_403 = "http_403"
    MISSING_CLOSE = "missing_close"
    REVISED_CLOSE = "revised_close"
    LATE_CLOSE = "late_close"
    EARLY_CONFIRM = "early_confirm"
    OFF_GRID = "off_grid"
    DOUBLE_CLOSE = "double_close"
    IMPLAUSIBLE_CLOSE = "implausible_close"
    AHEAD_CANDLE = "ahead_candle"
    AHEAD_BOOK = "ahead_book"
    AHEAD_TICKER = "ahead_ticker"
    AHEAD_TRADE = "ahead_trade"
    FOREIGN_FRAME = "foreign_frame"
    CROSSED_BOOK = "crossed_book"
    DEEP_BOOK = "deep_book"
    HTTP_STATUS = "http_status"
    RETCODE = "retcode"
    REDIRECT = "redirect"
    HANG = "hang"
    MALFORMED_BODY = "malformed_body"
    LYING_TIME = "lying_time"
    EMPTY_PAGE = "empty_page"
    SHORT_PAGE = "short_page"
    FOREIGN_PAGE = "foreign_page"
    FOREIGN_WINDOW = "foreign_window"
    OFF_GRID_PAGE = "off_grid_page"
    IMPLAUSIBLE_PAGE = "implausible_page"


MEANING: Final = {
    FaultKind.DROP: "one data frame is never sent (topic)",
    FaultKind.DELAY: "one data frame is sent ms of market time late, behind later ones (topic, ms)",
    FaultKind.DUPLICATE: "one data frame is sent twice (topic)",
    FaultKind.REORDER: "one data frame is sent after the next one (topic)",
    FaultKind.MALFORMED: "one data frame is replaced by text that is no such frame (topic)",
    FaultKind.STALL: "the connections of the moment get no data for seconds; pongs go on (seconds)",
    FaultKind.DISCONNECT: "every stream connection is cut without a closing handshake",
    FaultKind.REFUSE: "as disconnect, and the next count connections are refused (count)",
    FaultKind.RETCODE_10006: "the next count REST calls are answered with retCode 10006 (count)",
    FaultKind.HTTP_403: "the next count REST calls are answered with HTTP 403 and HTML (count)",
    FaultKind.MISSING_CLOSE: "one closed candle is never sent; REST has it (topic)",
    FaultKind.REVISED_CLOSE: "one closed candle is sent again with other values, not as in REST",
    FaultKind.LATE_CLOSE: "one closed candle is sent ms of market time late (topic, ms)",
    FaultKind.EARLY_CONFIRM: "one open candle says that it is closed, two seconds or more too soon",
    FaultKind.OFF_GRID: "one closed candle is sent with its start off the grid by ms (ms)",
    FaultKind.DOUBLE_CLOSE: "one closed candle is sent twice in one frame, with two closes",
    FaultKind.IMPLAUSIBLE_CLOSE: "one closed candle is sent with 1,000 times its close",
    FaultKind.AHEAD_CANDLE: "a closed candle dated ms ahead is sent before a candle frame (ms)",
    FaultKind.AHEAD_BOOK: "a book of twice the price dated ms ahead is sent before a book (ms)",
    FaultKind.AHEAD_TICKER: "a ticker dated ms ahead is sent before a ticker (ms)",
    FaultKind.AHEAD_TRADE: "trades dated ms ahead are sent before trades (ms)",
    FaultKind.FOREIGN_FRAME: "the data of one book, ticker or trade frame name another symbol",
    FaultKind.CROSSED_BOOK: "a book whose bid lies above its ask is sent before a book",
    FaultKind.DEEP_BOOK: "a delta of 1,500 bids is sent before a book",
    FaultKind.HTTP_STATUS: "the next count REST calls are answered by HTTP status (status, count)",
    FaultKind.RETCODE: "the next count REST calls are answered with retCode code (code, count)",
    FaultKind.REDIRECT: "one REST call is sent on, HTTP 302, to a path that there is not (topic)",
    FaultKind.HANG: "one REST call is not answered for seconds, then never (topic, seconds)",
    FaultKind.MALFORMED_BODY: "one REST body is broken: cut, null, words for numbers, no object",
    FaultKind.LYING_TIME: "the server's time is ms off in one answer, before or ahead (topic, ms)",
    FaultKind.EMPTY_PAGE: "one page of candles is empty",
    FaultKind.SHORT_PAGE: "one page of candles lacks its newer half",
    FaultKind.FOREIGN_PAGE: "one page of candles is of another symbol, at another price",
    FaultKind.FOREIGN_WINDOW: "one page of candles is of a window that was not asked for",
    FaultKind.OFF_GRID_PAGE: "one page of candles starts ms off the grid (ms)",
    FaultKind.IMPLAUSIBLE_PAGE: "one page has its newest close times 1,000",
}
"""What every kind does, with the parameters that it takes beside ``kind`` in parentheses."""
PLAIN_FRAME_KINDS: Final = (
    FaultKind.DROP,
    FaultKind.DELAY,
    FaultKind.DUPLICATE,
    FaultKind.REORDER,
    FaultKind.MALFORMED,
)
"""These hit any topic; half of the schedule's aim at candles."""
FORGED_BEFORE: Final = {
    FaultKind.AHEAD_CANDLE: "kline.",
    FaultKind.AHEAD_BOOK: "orderbook.",
    FaultKind.AHEAD_TICKER: "tickers.",
    FaultKind.AHEAD_TRADE: "publicTrade.",
    FaultKind.CROSSED_BOOK: "orderbook.",
    FaultKind.DEEP_BOOK: "orderbook.",
}
"""A forgery is sent before a true frame of these topics."""
FRAME_KINDS: Final = (*PLAIN_FRAME_KINDS, *FORGED_BEFORE, FaultKind.FOREIGN_FRAME)
PAGE_KINDS: Final = (
    FaultKind.EMPTY_PAGE,
    FaultKind.SHORT_PAGE,
    FaultKind.FOREIGN_PAGE,
    FaultKind.FOREIGN_WINDOW,
    FaultKind.OFF_GRID_PAGE,
    FaultKind.IMPLAUSIBLE_PAGE,
)
"""These bend a page of candles that is not empty."""
ANSWER_KINDS: Final = (
    FaultKind.HTTP_403,
    FaultKind.HTTP_STATUS,
    FaultKind.REDIRECT,
    FaultKind.HANG,
    FaultKind.RETCODE_10006,
    FaultKind.RETCODE,
    FaultKind.MALFORMED_BODY,
)
"""These stand in place of any REST answer."""
REST_KINDS: Final = (*ANSWER_KINDS, FaultKind.LYING_TIME, *PAGE_KINDS)
STATUSES: Final = (
    201, 202, 204, 205, 206, 300, 304, 400, 401, 402, 404, 405, 406, 408, 409, 410, 413, 414, 418,
    421, 422, 425, 426, 428, 429, 431, 451, 500, 501, 502, 503, 504, 520, 522, 530, 599,
)  # fmt: skip
"""The HTTP statuses that the schedule draws from; a call may ask for any from 200 to 599."""
RETCODES: Final = (
    -1, 1, 10000, 10001, 10002, 10003, 10004, 10005, 10006, 10007, 10008, 10009, 10010, 10014,
    10016, 10017, 10018, 10019, 10024, 10027, 10028, 10029, 110001, 131001, 170130, 2**31,
)  # fmt: skip
"""The retCodes that the schedule draws from."""
LIES_MS: Final = (HOUR_MS, -HOUR_MS, 10 * DAY_MS, -10 * DAY_MS, 2**62, -(2**62))
"""How far off the schedule lets the server's time be."""
TIME_PATH: Final = "/v5/market/time"
KLINE_PATH: Final = "/v5/market/kline"
AIMED_AT: Final[dict[FaultKind, str | tuple[str, ...]]] = {
    **FORGED_BEFORE,
    FaultKind.FOREIGN_FRAME: ("orderbook.", "tickers.", "publicTrade."),
    FaultKind.LYING_TIME: TIME_PATH,
}
"""What a kind hits where its fault names no topic."""
STATUS_MIN: Final = 200
PENDING_LIMIT: Final = 1_000
DEFAULT_MS: Final = {
    FaultKind.DELAY: 3_000,
    FaultKind.LATE_CLOSE: 8_000,
    FaultKind.OFF_GRID: 7_000,
    FaultKind.OFF_GRID_PAGE: 7_000,
    FaultKind.LYING_TIME: 3_600_000,
}
AHEAD_MS: Final = 3_600_000
AHEAD_S: Final = 3.0
"""A frame is dated ahead by an hour, and by no less than this at the speed of the exchange."""


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """One armed fault; ``ms``, ``status`` and ``code`` of 0 mean the kind's default."""

    kind: FaultKind
    topic: str = ""
    ms: int = 0
    seconds: Annotated[float, Meta(ge=0)] = 5.0
    count: Annotated[int, Meta(ge=1, le=PENDING_LIMIT)] = 1
    provoke: bool = False
    status: Annotated[int, Meta(ge=0, le=599)] = 0
    code: int = 0

    def __post_init__(self) -> None:
        """Refuse what the fields' own bounds let pass; msgspec turns it into its own error."""
        if self.ms < 0 and self.kind is not FaultKind.LYING_TIME:
            raise ValueError("ms is negative, which only lying_time may be")
        if 0 < self.status < STATUS_MIN:
            raise ValueError(f"status is below {STATUS_MIN}")

    @property
    def delay_ms(self) -> int:
        """Market milliseconds by which this fault delays or moves."""
        return self.ms or DEFAULT_MS.get(self.kind, 0)

    def ahead_ms(self, speed: float) -> int:
        """Market milliseconds by which this fault dates a frame ahead."""
        return self.ms or max(AHEAD_MS, int(AHEAD_S * 1_000 * speed))


def fault_from(request: Mapping[str, Any]) -> Fault:
    """Return the fault that *request* describes, or raise ``ConfigInvalid``."""
    try:
        return msgspec.convert(dict(request), Fault)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(
            f"This is no fault ({error}): give a kind of {', '.join(FaultKind)}, and of topic, "
            "ms, seconds, count, status, code and provoke what it needs."
        ) from None


@dataclass
class FaultTally:
    """How often a kind was armed and how often it hit, with the market times of the hits."""

    scheduled: int = 0
    fired: int = 0
    times: list[int] = field(default_factory=list)


class Faults:
    """The armed faults of one exchange, and the tally of each kind."""

    def __init__(self) -> None:
        self._armed: dict[FaultKind, list[Fault]] = {kind: [] for kind in FaultKind}
        self.tally: Final = {kind: FaultTally() for kind in FaultKind}

    def arm(self, fault: Fault) -> None:
        """Let *fault* wait for something to hit; raises ``ConfigInvalid`` when too many wait."""
        if len(self._armed[fault.kind]) + fault.count > PENDING_LIMIT:
            raise ConfigInvalid(
                f"{PENDING_LIMIT} faults {fault.kind} already wait: connect a client first."
            )
        self._armed[fault.kind].extend([fault] * fault.count)
        self.tally[fault.kind].scheduled += fault.count

    def pending(self, kind: FaultKind) -> int:
        """Return how many faults of *kind* still wait."""
        return len(self._armed[kind])

    @property
    def quiet(self) -> bool:
        """Whether no frame fault waits."""
        return not any(self._armed[kind] for kind in FRAME_KINDS)

    def take(self, kind: FaultKind, now_ms: int, topic: str = "") -> Fault | None:
        """Return the first waiting fault of *kind* that fits *topic*, counted as fired."""
        armed = self._armed[kind]
        for place, fault in enumerate(armed):
            if topic.startswith(fault.topic or AIMED_AT.get(kind, "")):
                del armed[place]
                self.tally[kind].fired += 1
                self.tally[kind].times.append(now_ms)
                return fault
        return None

    def take_first(self, kinds: Iterable[FaultKind], now_ms: int, topic: str) -> Fault | None:
        """Return the first waiting fault of *kinds* that fits *topic*, counted as fired."""
        for kind in kinds:
            if self._armed[kind] and (fault := self.take(kind, now_ms, topic)):
                return fault
        return None

    def take_frame_fault(self, now_ms: int, topic: str) -> Fault | None:
        """Return the first waiting frame fault that fits *topic*, counted as fired."""
        return self.take_first(FRAME_KINDS, now_ms, topic)

    def report(self) -> dict[str, dict[str, Any]]:
        """Return the tallies as the control call answers them."""
        return {
            kind.value: {
                "meaning": MEANING[kind],
                "scheduled": t.scheduled,
                "fired": t.fired,
                "times": list(t.times),
            }
            for kind, t in self.tally.items()
        }


# ------------------------------------------------------------ schedule

CANDLES: Final = "kline."


@dataclass(frozen=True)
class TimedFault:
    """A fault and the machine seconds to wait before it, counted from the one before."""

    wait_s: float
    fault: Fault


@dataclass(frozen=True)
class FaultPlan:
    """What to arm and when, counted from the first subscription.

    The seeded schedule deals all *kinds* in a shuffled round, then again, so each comes once a
    round; gaps are half to one and a half times *every_s*. Whoever runs it waits for a client,
    and for each fault to hit before the next, so that every kind fires while a client runs.
    """

    listed: tuple[TimedFault, ...] = ()
    seed: int = 0
    every_s: float = 0.0
    kinds: tuple[FaultKind, ...] = tuple(FaultKind)

    def scheduled(self) -> Iterator[TimedFault]:
        """Yield the seeded schedule, without end; nothing where ``every_s`` is 0."""
        turn = 0
        while self.every_s > 0 and self.kinds:
            numbers = draws(key("faults", self.seed, turn), 2 * len(self.kinds))
            order = sorted(zip(numbers, self.kinds, strict=False))
            for (_, kind), number in zip(order, numbers[len(self.kinds) :], strict=True):
                yield TimedFault(self.every_s * (0.5 + number / 2**32), _dealt(kind, number))
            turn += 1


def _dealt(kind: FaultKind, number: int) -> Fault:
    """Return the schedule's fault of *kind*, *number* choosing its status, code, lie or aim.

    Half of the plain frame faults aim at candles, half of the lies stand on a page of them.
    """
    aim = ""
    if number % 2:
        aim = CANDLES if kind in PLAIN_FRAME_KINDS else aim
        aim = KLINE_PATH if kind is FaultKind.LYING_TIME else aim
    return Fault(
        kind,
        topic=aim,
        ms=LIES_MS[number // 2 % len(LIES_MS)] if kind is FaultKind.LYING_TIME else 0,
        provoke=kind in REST_KINDS,
        status=STATUSES[number % len(STATUSES)] if kind is FaultKind.HTTP_STATUS else 0,
        code=RETCODES[number % len(RETCODES)] if kind is FaultKind.RETCODE else 0,
    )


class ListedFault(Fault, frozen=True, forbid_unknown_fields=True):
    """A fault of a faults file, ``after_s`` machine seconds after the first subscription."""

    after_s: Annotated[float, Meta(ge=0)] = 0.0

    def fault(self) -> Fault:
        """Return the fault without its time."""
        return Fault(**{name: getattr(self, name) for name in Fault.__struct_fields__})


class PlanFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of a faults file."""

    seed: int = 0
    every_s: Annotated[float, Meta(ge=0)] = 0.0
    kinds: tuple[FaultKind, ...] = tuple(FaultKind)
    faults: tuple[ListedFault, ...] = ()


def plan_from(request: Mapping[str, Any]) -> FaultPlan:
    """Return the plan of a faults file's content, or raise ``ConfigInvalid``."""
    try:
        file = msgspec.convert(dict(request), PlanFile)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(
            f"The faults file is wrong ({error}): give seed, every_s, kinds and a list faults."
        ) from None
    listed = sorted(file.faults, key=lambda each: each.after_s)
    moments = [0.0, *(each.after_s for each in listed)]
    return FaultPlan(
        listed=tuple(
            TimedFault(later - earlier, each.fault())
            for (earlier, later), each in zip(pairwise(moments), listed, strict=True)
        ),
        seed=file.seed,
        every_s=file.every_s,
        kinds=file.kinds,
    )


def read_plan(path: Path | None) -> FaultPlan:
    """Return the plan of a TOML or JSON file, or raise ``ConfigInvalid``; without one, none."""
    if path is None:
        return FaultPlan()
    decode = msgspec.json.decode if path.suffix == ".json" else msgspec.toml.decode
    try:
        return plan_from(decode(path.read_bytes(), type=dict[str, Any]))
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigInvalid(f"{path} is no faults file ({error}): give TOML or .json.") from None
