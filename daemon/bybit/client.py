"""``BybitClient``: Bybit's market data in the form of the feed's protocols.

REST calls are rate-limited, retried, and pause after a ban.

Source: docs/v5/market, docs/v5/error, docs/v5/rate-limit. An error usually has HTTP status 200 and
a ``retCode`` other than 0. The rate-limit headers may be absent or wrong, so waits are full jitter.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Final, Self, TypeVar

import aiohttp
import msgspec
from aiolimiter import AsyncLimiter

from tracepaper.daemon.bybit import messages
from tracepaper.daemon.bybit.instruments import (
    candle_reader,
    exact,
    exact_signed,
    interval_name,
    read_instruments,
    read_listings,
    read_tickers,
    risk_tier,
)
from tracepaper.daemon.bybit.websocket import CategoryStream, connections, stream_url
from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.sections import ExchangeSection
from tracepaper.daemon.feed.client import (
    Cooldown,
    MarketDataListener,
    RestartBudget,
    StreamRequest,
    TradedSymbol,
    host_of,
    is_loopback,
)
from tracepaper.strategies.errors import (
    ConfigInvalid,
    FeedLost,
    FrameImpossible,
    InvariantBroken,
    MessageMalformed,
)
from tracepaper.strategies.types.market import Bar, Category, Funding, Instrument, RiskTier, Source
from tracepaper.strategies.units import RATE_DECIMALS

# ---------------------------------------------------------------- bodies
#
# An answer is accepted if it has the category and symbol of the request, times within the requested
# range and a server time between 2010 and 2100. Otherwise it is ``MessageMalformed`` and requested
# again.

REGION_CODES: Final = frozenset({10009, 10024})
REFUSED_CODES: Final = frozenset({10001, 10017, 10029})
SERVER_MS_MIN: Final = 1_262_304_000_000
"""2010-01-01: a server time before it is wrong,"""
SERVER_MS_MAX: Final = 4_102_444_800_000
"""and so is one after 2100-01-01."""
RATE_LIMIT: Final = 10**RATE_DECIMALS
"""A funding rate of 100 %, far above every real one."""

T = TypeVar("T")


def decode_result(body: bytes, path: str, result: type[T]) -> tuple[T, int]:
    """Return the typed result of a REST *body* and the server's time, UTC milliseconds.

    Raises ``FeedLost`` for temporary and unknown error codes, ``ConfigInvalid`` for those of a
    wrong configuration, and ``MessageMalformed`` for a body that is not as documented.
    """
    try:
        answer = messages.decode_answer(body)
        code = answer.ret_code
        if code == 0 and SERVER_MS_MIN <= answer.time < SERVER_MS_MAX:
            return msgspec.json.decode(answer.result, type=result), answer.time
    except (ValueError, RecursionError) as error:
        raise _undocumented(path, error) from error
    if code == 0:
        raise MessageMalformed(
            f"The answer of {path} says that its server's time is {answer.time}, which is not "
            "between 2010 and 2100; check exchange.rest_url."
        )
    refusal = f"Bybit answered {path} with retCode {code} ({answer.ret_msg[:120]})"
    if code in REGION_CODES:
        raise ConfigInvalid(
            f"{refusal}: it does not serve this region; set exchange.rest_url and "
            "exchange.stream_url to your regional host."
        )
    if code in REFUSED_CODES:
        raise ConfigInvalid(
            f"{refusal}; correct market.symbols, market.category or market.interval."
        )
    # Temporary and unknown codes: a daemon that runs for months waits and asks again.
    raise FeedLost(f"{refusal}; see the exchange's status page if this lasts.")


def read_klines(
    page: messages.KlinePage,
    instrument: Instrument,
    interval_ms: int,
    *,
    first_ms: int,
    last_ms: int,
) -> tuple[list[Bar], int]:
    """Return the bars of *page* in [*first_ms*, *last_ms*], and how many rows were unreadable.

    The exchange may add the candle that contains *first_ms*, which is skipped. Raises
    ``MessageMalformed`` for a page of another category, symbol, grid, time or order.
    """
    _check_subject("candles", instrument, page.category, page.symbol)
    read = candle_reader(instrument, interval_ms)
    bars: list[Bar] = []
    unreadable = 0
    newer_ms = last_ms + interval_ms
    for row in page.rows:
        open_ms = exact(row[0], 0)
        if not first_ms - interval_ms < open_ms <= last_ms:
            raise _unrelated(f"a candle at {open_ms}, where {first_ms} to {last_ms} was asked")
        if open_ms >= newer_ms:
            raise _unrelated(f"candles of {instrument.id} that are not newest first")
        newer_ms = open_ms
        try:
            candle = messages.closed_candle(row, open_ms, interval_ms)
            bar = read(candle, candle.end + 1, Source.REST)
        except FrameImpossible as error:
            if error.kind == "off_grid":
                raise _unrelated(str(error)) from error
            unreadable += open_ms >= first_ms
        except MessageMalformed:
            unreadable += open_ms >= first_ms
        else:
            if open_ms >= first_ms:
                bars.append(bar)
    return bars, unreadable


def read_instruments_page(
    raw: msgspec.Raw, category: Category, symbol: str
) -> tuple[list[Instrument], str]:
    """Return the instruments of a page, only *symbol* if given, and the next page's cursor."""
    instruments, page = read_instruments(bytes(raw), category)
    if page.category != category.value:
        raise _unrelated(f"instruments of {page.category!r}, where {category.value} was asked")
    if symbol:
        if any(instrument.symbol != symbol for instrument in instruments):
            raise _unrelated(f"{instruments[0].id}, where {category.value}:{symbol} was asked")
        if page.rows and not instruments:
            raise _unrelated(f"filters of {symbol} that cannot be read")
    return instruments, page.next_page_cursor


def read_settlements(
    page: messages.FundingHistory, instrument: Instrument, *, start_ms: int, end_ms: int
) -> list[Funding]:
    """Return the settlements of *page*, in its order.

    Raises ``MessageMalformed`` for another category, symbol or time, and for an impossible rate:
    if such a row were skipped, nobody would notice that a payment is missing.
    """
    settlements = []
    for row in page.rows:
        _check_subject("settlements", instrument, page.category, row.symbol)
        settled_ms = exact(row.funding_rate_timestamp, 0)
        rate = exact_signed(row.funding_rate, RATE_DECIMALS)
        if not start_ms <= settled_ms <= end_ms:
            raise _unrelated(
                f"a settlement at {settled_ms}, where {start_ms} to {end_ms} was asked"
            )
        if abs(rate) > RATE_LIMIT:
            raise _unrelated(f"a funding rate of {row.funding_rate}")
        settlements.append(Funding(instrument.id, rate, settled_ms, settled_ms))
    return settlements


def _subject(instrument: Instrument) -> dict[str, str]:
    return {"category": instrument.category.value, "symbol": instrument.symbol}


def _check_subject(noun: str, instrument: Instrument, category: str, symbol: str) -> None:
    if (category, symbol) != (instrument.category.value, instrument.symbol):
        raise _unrelated(f"{noun} of {category}:{symbol}, where {instrument.id} was asked")


def _unrelated(content: str) -> MessageMalformed:
    return MessageMalformed(
        f"Bybit answered with {content}; check exchange.rest_url if this lasts."
    )


def _undocumented(path: str, error: Exception) -> MessageMalformed:
    return MessageMalformed(
        f"The answer of {path} is not what Bybit documents ({error}); check "
        "exchange.rest_url if this lasts."
    )


CANDLES_MAX: Final = 1_000
"""Candles of a request; the exchange cuts larger windows, at an undocumented end."""
SETTLEMENTS_MAX: Final = 200
PAGES_MAX: Final = 100
BODY_BYTES_MAX: Final = 32 * 1024 * 1024
BANNED_STATUS: Final = 403
BUSY_STATUS: Final = 429
OK_STATUS: Final = 200

R = TypeVar("R")


class BybitClient:
    """The ``MarketDataClient`` of Bybit: one session of REST calls, and streams.

    An async context manager. Streams and REST share cooldown, counters and jitter.

    Recoverable errors are retried for ever, unless a *budget* limits them; then ``FeedLost`` or
    ``MessageMalformed`` is raised. A wrong symbol, category or address raises ``ConfigInvalid``.
    From the first good answer on a refusal of the address, and once *is_proven* every such answer,
    is a fault of the network and is retried like other errors.

    ``counters`` has the numbers of requests and of unreadable rows.

    *latest_ms* returns the latest possible market time of an answer: a server whose date is ahead
    must not make an open candle final.
    """

    candles_max: int = CANDLES_MAX

    def __init__(
        self,
        exchange: ExchangeSection,
        *,
        clock: Clock,
        rng: random.Random,
        cooldown: Cooldown | None = None,
        budget: RestartBudget | None = None,
        is_proven: bool = False,
        latest_ms: Callable[[], int] | None = None,
    ) -> None:
        self._exchange = exchange
        self._clock = clock
        self._rng = rng
        self.cooldown = cooldown or Cooldown(clock=clock)
        self._is_proven = is_proven  # category and symbols are right
        self._has_answered = is_proven  # the address is right
        self._latest_ms = latest_ms
        self._budget = budget
        self._session: aiohttp.ClientSession | None = None
        rate = exchange.requests_per_s
        # A bucket that holds less than one call would never allow one.
        self._limiter = AsyncLimiter(rate, 1.0) if rate >= 1 else AsyncLimiter(1.0, 1.0 / rate)
        self.counters: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        # Where aiodns is installed, it is the default, and its thread outlives the session.
        connector = aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver())
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._exchange.request_timeout_s),
            trust_env=not is_loopback(self._exchange.rest_url),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    def prove(self) -> None:
        """Note that category and symbols are right: later failures are the network's."""
        self._is_proven = True

    async def server_time_ms(self) -> int:
        """Return the exchange's time, UTC milliseconds, between 2010 and 2100."""
        return await self._get(
            "/v5/market/time", {}, messages.ServerTime, lambda _, server_ms: server_ms
        )

    async def candles(
        self, instrument: Instrument, interval_ms: int, start_ms: int, end_ms: int
    ) -> list[Bar]:
        """Return the final bars that open in [*start_ms*, *end_ms*], oldest first, each once.

        A candle is final when the answer's server time is ``final_after_ms`` after its close.
        Unreadable rows are counted and skipped, so a missing bar may exist; the feed requests it
        again. Windows after the server's time are not requested. ``seen_ms`` is the bar's close;
        the feed sets it on delivery.
        """
        name = interval_name(interval_ms)
        bars: list[Bar] = []
        for first_ms in range(start_ms, end_ms + 1, CANDLES_MAX * interval_ms):
            last_ms = min(end_ms, first_ms + (CANDLES_MAX - 1) * interval_ms)

            def read(
                page: messages.KlinePage,
                server_ms: int,
                first_ms: int = first_ms,
                last: int = last_ms,
            ) -> tuple[list[Bar], int, int]:
                return *read_klines(
                    page, instrument, interval_ms, first_ms=first_ms, last_ms=last
                ), server_ms

            page_bars, unreadable, server_ms = await self._get(
                "/v5/market/kline",
                {
                    **_subject(instrument),
                    "interval": name,
                    "start": str(first_ms),
                    "end": str(last_ms),
                    "limit": str(CANDLES_MAX),
                },
                messages.KlinePage,
                read,
            )
            self.counters["malformed_rows"] += unreadable
            if self._latest_ms is not None:
                server_ms = min(server_ms, self._latest_ms())
            final_ms = server_ms - self._exchange.final_after_ms
            bars += (bar for bar in reversed(page_bars) if bar.close_time_ms <= final_ms)
            if last_ms + 2 * interval_ms > final_ms:
                break
        return bars

    async def instruments(self, category: Category, symbol: str = "") -> list[Instrument]:
        """Return the tradable instruments of *category*, or only the one called *symbol*."""
        return await self._listing(
            category, symbol, lambda raw: read_instruments_page(raw, category, symbol)
        )

    async def instrument(self, category: Category, symbol: str) -> Instrument:
        """Return one instrument; if it is not listed, raise, or once proven wait until it is."""

        def read(raw: msgspec.Raw) -> tuple[list[Instrument], str]:
            instruments, _cursor = read_instruments_page(raw, category, symbol)
            if not instruments:
                raise ConfigInvalid(
                    f"Bybit trades no {category.value} instrument {symbol}; correct "
                    "market.symbols or market.category."
                )
            return instruments, ""

        return (await self._listing(category, symbol, read))[0]

    async def _listing(
        self, category: Category, symbol: str, read: Callable[[msgspec.Raw], tuple[list[R], str]]
    ) -> list[R]:
        """Return the entries that *read* finds on all pages of the instruments of *category*.

        They are limited to *symbol*, if it is given. *read* also returns the next page's cursor,
        empty on the last page.
        """
        entries: list[R] = []
        cursors: set[str] = set()
        cursor = ""
        while cursor not in cursors and len(cursors) < PAGES_MAX:
            cursors.add(cursor)
            query = {"category": category.value, "limit": str(CANDLES_MAX)}
            query |= {"symbol": symbol} if symbol else {}
            query |= {"cursor": cursor} if cursor else {}
            page, cursor = await self._get(
                "/v5/market/instruments-info", query, msgspec.Raw, lambda raw, _: read(raw)
            )
            entries += page
            if not cursor:
                break
        return entries

    async def risk_tiers(self, instrument: Instrument) -> tuple[RiskTier, ...]:
        """Return the risk tiers of *instrument*, smallest first; empty if it has none."""

        def read(page: messages.RiskLimits, _: int) -> tuple[RiskTier, ...]:
            for row in page.rows:
                _check_subject("risk tiers", instrument, page.category, row.symbol)
            return tuple(sorted(map(risk_tier, page.rows), key=attrgetter("limit")))

        query = _subject(instrument)
        return await self._get("/v5/market/risk-limit", query, messages.RiskLimits, read)

    async def funding(self, instrument: Instrument, start_ms: int, end_ms: int) -> list[Funding]:
        """Return the settlements in [*start_ms*, *end_ms*], oldest first, each once."""
        settlements: dict[int, Funding] = {}
        until_ms = end_ms
        for _ in range(PAGES_MAX):

            def read(
                page: messages.FundingHistory, _: int, until_ms: int = until_ms
            ) -> list[Funding]:
                return read_settlements(page, instrument, start_ms=start_ms, end_ms=until_ms)

            page = await self._get(
                "/v5/market/funding/history",
                {
                    **_subject(instrument),
                    "startTime": str(start_ms),
                    "endTime": str(until_ms),
                    "limit": str(SETTLEMENTS_MAX),
                },
                messages.FundingHistory,
                read,
            )
            settlements |= {settlement.market_ms: settlement for settlement in page}
            if len(page) < SETTLEMENTS_MAX or (until_ms := min(settlements) - 1) < start_ms:
                break
        return [settlements[settled_ms] for settled_ms in sorted(settlements)]

    async def listed(self, category: Category) -> list[TradedSymbol]:
        """Return the symbols of *category* that trade, each with its last day.

        Malformed entries are skipped. This takes one request for all tickers, and one for each
        thousand instruments.
        """

        def read(raw: msgspec.Raw) -> tuple[list[messages.ListingInfo], str]:
            entries, page = read_listings(bytes(raw))
            return entries, page.next_page_cursor

        listings = {entry.symbol: entry for entry in await self._listing(category, "", read)}

        def days(page: messages.TickerPage, _: int) -> list[TradedSymbol]:
            if page.category != category.value:
                raise _unrelated(f"tickers of {page.category!r}, where {category.value} was asked")
            return read_tickers(page, listings)

        return await self._get(
            "/v5/market/tickers", {"category": category.value}, messages.TickerPage, days
        )

    def stream_url(self, category: Category) -> str:
        """Return the address of the public stream of *category*."""
        return stream_url(self._exchange, category)

    def streams(
        self, request: StreamRequest, listener: MarketDataListener
    ) -> Sequence[CategoryStream]:
        """Return the connections of the instruments, by category, not yet open."""
        return [
            CategoryStream(
                category,
                share,
                listener,
                exchange=self._exchange,
                clock=self._clock,
                rng=self._rng,
                cooldown=self.cooldown,
                counters=self.counters,
            )
            for category in dict.fromkeys(item.category for item in request.instruments)
            for share in connections(category, request)
        ]

    async def _get(
        self, path: str, query: dict[str, str], result: type[T], read: Callable[[T, int], R]
    ) -> R:
        """GET *path* and return ``read(result, server_ms)``.

        Errors of the request and of *read* are retried as the class describes.
        """
        if self._session is None:
            raise InvariantBroken("The REST session is not open; use it as a context manager.")
        session = self._session

        async def attempt() -> R:
            is_proven = self._has_answered
            try:
                body = await self._body(session, path, query)
                is_proven = self._is_proven
                try:
                    value, server_ms = decode_result(body, path, result)
                    self._has_answered = True
                    return read(value, server_ms)
                except (ValueError, RecursionError) as error:
                    # A field that a reader does not check must not end the daemon.
                    raise _undocumented(path, error) from error
            except ConfigInvalid as error:
                if not is_proven:
                    raise
                raise FeedLost(f"{error} (It worked before, so it is retried.)") from error

        return await self.cooldown.retry(
            attempt,
            rng=self._rng,
            name=path,
            host=host_of(self._exchange.rest_url),
            ceiling_s=self._exchange.backoff_max_s,
            budget=self._budget,
        )

    async def _body(
        self, session: aiohttp.ClientSession, path: str, query: dict[str, str]
    ) -> bytes:
        """Return the body of one GET; raise ``FeedLost`` or ``ConfigInvalid`` by its status."""
        await self._limiter.acquire()
        await self.cooldown.wait()
        self.counters["requests"] += 1
        try:
            address = self._exchange.rest_url + path
            # Never follow a redirect to an address that is not configured.
            async with session.get(address, params=query, allow_redirects=False) as response:
                status = response.status
                # Other bodies may be web pages, so only the status is used.
                body = await _bounded(response) if status == OK_STATUS else b""
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise FeedLost(
                f"GET {path} failed ({type(error).__name__}: {error}); check the network "
                "and exchange.rest_url if this lasts."
            ) from error
        except ValueError as error:
            raise ConfigInvalid(
                f"{self._exchange.rest_url} is no valid address; correct exchange.rest_url."
            ) from error
        if status == BANNED_STATUS:
            self.cooldown.start(self._exchange.ban_cooldown_s, f"HTTP 403 on {path}")
            raise FeedLost(
                f"Bybit refused GET {path} with HTTP 403 (too many requests, or an address it "
                "does not serve); wait some minutes, and look for other programs on this address."
            )
        if status == BUSY_STATUS or status >= 500:  # errors of the server
            raise FeedLost(
                f"Bybit answered GET {path} with HTTP {status}; see the exchange's status page if "
                "this lasts."
            )
        if status != OK_STATUS:
            raise ConfigInvalid(
                f"Bybit answered GET {path} with HTTP {status}; correct exchange.rest_url."
            )
        return body


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of *response*; raise ``FeedLost`` beyond ``BODY_BYTES_MAX``."""
    parts = []
    size = 0
    async for part in response.content.iter_chunked(1 << 16):
        parts.append(part)
        size += len(part)
        if size > BODY_BYTES_MAX:
            raise FeedLost(
                f"{response.url.path} answered more than {BODY_BYTES_MAX} bytes; check "
                "exchange.rest_url if this lasts."
            )
    return b"".join(parts)
