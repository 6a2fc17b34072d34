"""Bybit's public REST calls: paced, retried without end, silent after a ban.

Source: docs/v5/market, docs/v5/error, docs/v5/rate-limit. An error is usually HTTP 200 with
another ``retCode``; the rate-limit headers may be absent or senseless, so full jitter decides the
waits and no header does.
"""

from __future__ import annotations

import random
from typing import Final, Self, TypeVar

import aiohttp
import msgspec
from aiolimiter import AsyncLimiter
from msgspec import Struct

from tracepaper.daemon.bybit import messages
from tracepaper.daemon.bybit.candles import candle_layout, rest_bar
from tracepaper.daemon.bybit.decimals import exact, exact_signed
from tracepaper.daemon.bybit.instruments import read_instruments
from tracepaper.daemon.bybit.intervals import interval_name
from tracepaper.daemon.bybit.silence import Silence, is_loopback
from tracepaper.daemon.config_sections import Exchange
from tracepaper.daemon.ports import Clock
from tracepaper.daemon.supervisor import RestartBudget, persist
from tracepaper.strategies.errors import ConfigInvalid, FeedLost, MessageMalformed
from tracepaper.strategies.types import MONEY_DECIMALS, Bar, Category, Funding, Instrument

CANDLES_MAX: Final = 1_000
"""Candles a request; larger windows are cut by the exchange at a side nobody promises."""
SETTLEMENTS_MAX: Final = 200
PAGES_MAX: Final = 100
BODY_BYTES_MAX: Final = 32 * 1024 * 1024
RETRIED_CODES: Final = frozenset({10000, 10006, 10016, 10018})
REGION_CODES: Final = frozenset({10009, 10024})
REFUSED_CODES: Final = frozenset({10001, 10017, 10029})
BANNED_STATUS: Final = 403
BUSY_STATUS: Final = 429
NOT_FOUND_STATUS: Final = 404
OK_STATUS: Final = 200

T = TypeVar("T")


class RestSettings(Struct, frozen=True):
    """Where and how patiently to ask; the keys of ``[exchange]`` under the same names."""

    rest_url: str = "https://api.bybit.com"
    requests_per_s: float = 5.0
    request_timeout_s: float = 10.0
    ban_silence_s: float = 600.0
    backoff_max_s: float = 30.0
    final_after_ms: int = 2_000

    @classmethod
    def of(cls, exchange: Exchange) -> RestSettings:
        """Return the settings that the section ``[exchange]`` of a configuration gives."""
        return cls(**{name: getattr(exchange, name) for name in cls.__struct_fields__})


class Rest:
    """One session of REST calls; an async context manager.

    Every method retries recoverable errors without end, unless a *budget* says when to give up
    and raise ``FeedLost`` or ``MessageMalformed``; ``ConfigInvalid`` is what no retry can mend.
    """

    def __init__(
        self,
        settings: RestSettings,
        *,
        clock: Clock,
        rng: random.Random,
        silence: Silence | None = None,
        budget: RestartBudget | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self.silence = silence or Silence(clock=clock)
        self._budget = budget
        self._session: aiohttp.ClientSession | None = None
        rate = settings.requests_per_s
        self._limiter = AsyncLimiter(rate, 1.0) if rate >= 1 else AsyncLimiter(1.0, 1.0 / rate)
        self.requests = 0
        self.malformed_rows = 0

    @property
    def silent_until_s(self) -> float:
        """Network time until which nothing is sent, after a ban; 0 without one."""
        return self.silence.until_s

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._settings.request_timeout_s),
            trust_env=not is_loopback(self._settings.rest_url),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def server_time_ms(self) -> int:
        """Return the exchange's time, UTC milliseconds."""
        _, server_ms = await self._get("/v5/market/time", {}, messages.ServerTime)
        return server_ms

    async def klines(
        self, instrument: Instrument, interval_ms: int, start_ms: int, end_ms: int
    ) -> list[Bar]:
        """Return the final bars that open in [*start_ms*, *end_ms*], oldest first, each once.

        A candle is final when the answer's server time is ``final_after_ms`` after its close.
        Rows outside the window and rows that cannot be read (counted) are left out, so what is
        missing may not exist. ``seen_ms`` is the bar's close; the feed sets it on handing on.
        """
        name = interval_name(interval_ms)
        layout = candle_layout(instrument, interval_ms)
        bars: dict[int, Bar] = {}
        for first_ms in range(start_ms, end_ms + 1, CANDLES_MAX * interval_ms):
            last_ms = min(end_ms, first_ms + (CANDLES_MAX - 1) * interval_ms)
            result, server_ms = await self._get(
                "/v5/market/kline",
                {
                    "category": instrument.category.value,
                    "symbol": instrument.symbol,
                    "interval": name,
                    "start": str(first_ms),
                    "end": str(last_ms),
                    "limit": str(CANDLES_MAX),
                },
                messages.Klines,
            )
            final_ms = server_ms - self._settings.final_after_ms
            for row in result.rows:
                try:
                    bar = rest_bar(row, layout)
                except MessageMalformed:
                    self.malformed_rows += 1
                    continue
                if first_ms <= bar.open_time_ms <= last_ms and bar.close_time_ms <= final_ms:
                    bars[bar.open_time_ms] = bar
        return [bars[open_ms] for open_ms in sorted(bars)]

    async def instruments(self, category: Category, symbol: str = "") -> list[Instrument]:
        """Return *category*'s tradable instruments, or the one called *symbol* (else none)."""
        found: list[Instrument] = []
        asked: set[str] = set()
        cursor = ""
        while cursor not in asked and len(asked) < PAGES_MAX:
            asked.add(cursor)
            query = {"category": category.value, "limit": str(CANDLES_MAX)}
            if symbol:
                query["symbol"] = symbol
            if cursor:
                query["cursor"] = cursor
            raw, _ = await self._get("/v5/market/instruments-info", query, msgspec.Raw)
            page, cursor = read_instruments(bytes(raw), category)
            found += page
            if not cursor:
                break
        return [one for one in found if symbol in ("", one.symbol)]

    async def instrument(self, category: Category, symbol: str) -> Instrument:
        """Return one instrument; raises ``ConfigInvalid`` where the exchange trades none."""
        if not (found := await self.instruments(category, symbol)):
            raise ConfigInvalid(
                f"Bybit trades no {category.value} instrument {symbol}; correct market.symbols or "
                "market.category."
            )
        return found[0]

    async def funding_history(
        self, instrument: Instrument, start_ms: int, end_ms: int
    ) -> list[Funding]:
        """Return the settlements in [*start_ms*, *end_ms*], oldest first, each once."""
        found: dict[int, Funding] = {}
        until_ms = end_ms
        for _ in range(PAGES_MAX):
            result, _ = await self._get(
                "/v5/market/funding/history",
                {
                    "category": instrument.category.value,
                    "symbol": instrument.symbol,
                    "startTime": str(start_ms),
                    "endTime": str(until_ms),
                    "limit": str(SETTLEMENTS_MAX),
                },
                messages.FundingHistory,
            )
            before = len(found)
            for item in result.rows:
                try:
                    settled_ms = exact(item.funding_rate_timestamp, 0)
                    rate = exact_signed(item.funding_rate, MONEY_DECIMALS)
                except MessageMalformed:
                    self.malformed_rows += 1
                    continue
                if start_ms <= settled_ms <= end_ms:
                    found[settled_ms] = Funding(instrument.id, rate, settled_ms, settled_ms)
            if len(result.rows) < SETTLEMENTS_MAX or len(found) == before:
                break
            until_ms = min(found) - 1
        return [found[settled_ms] for settled_ms in sorted(found)]

    async def tickers(self, category: Category, symbol: str) -> messages.TickerInfo:
        """Return the ticker of *symbol*; raises ``ConfigInvalid`` where there is none."""
        result, _ = await self._get(
            "/v5/market/tickers",
            {"category": category.value, "symbol": symbol},
            messages.Tickers,
        )
        for ticker in result.rows:
            if ticker.symbol == symbol:
                return ticker
        raise ConfigInvalid(
            f"Bybit has no {category.value} ticker of {symbol}; correct market.symbols."
        )

    async def _get(self, path: str, query: dict[str, str], result: type[T]) -> tuple[T, int]:
        """Return the decoded result of a GET and the server's time; retries as the class says."""

        async def attempt() -> tuple[T, int]:
            return decode_result(await self._body(path, query), path, result)

        return await persist(
            attempt,
            clock=self._clock,
            rng=self._rng,
            name=path,
            ceiling_s=self._settings.backoff_max_s,
            waiting=self.silence.waiting,
            budget=self._budget,
        )

    async def _body(self, path: str, query: dict[str, str]) -> bytes:
        """Return the body of one GET; raises ``FeedLost`` or ``ConfigInvalid`` by its status."""
        if self._session is None:
            raise ConfigInvalid("The REST session is not open; use it as an async context manager.")
        await self._limiter.acquire()
        await self.silence.over()
        self.requests += 1
        try:
            async with self._session.get(self._settings.rest_url + path, params=query) as response:
                status = response.status
                # A 403's body may be a web page: the status speaks first.
                body = await _bounded(response) if status == OK_STATUS else b""
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise FeedLost(
                f"GET {path} failed ({type(error).__name__}: {error}); trying again, check the "
                "network and exchange.rest_url if this lasts."
            ) from error
        except ValueError as error:
            raise ConfigInvalid(
                f"{self._settings.rest_url} is no address to ask; correct exchange.rest_url."
            ) from error
        if status == BANNED_STATUS:
            self.silence.declare(self._settings.ban_silence_s, f"HTTP 403 on {path}")
            raise FeedLost(
                f"Bybit refused GET {path} with HTTP 403 (too many requests, or an address it "
                f"does not serve); silent for {self._settings.ban_silence_s:g} s, then again."
            )
        if status == BUSY_STATUS or status >= 500:  # noqa: PLR2004  (HTTP's own boundary)
            raise FeedLost(f"Bybit answered GET {path} with HTTP {status}; trying again.")
        if status != OK_STATUS:
            raise ConfigInvalid(
                f"Bybit answered GET {path} with HTTP {status}; correct exchange.rest_url."
            )
        return body


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of *response*; raises ``FeedLost`` where it is absurdly large."""
    parts = []
    size = 0
    async for part in response.content.iter_chunked(1 << 16):
        parts.append(part)
        size += len(part)
        if size > BODY_BYTES_MAX:
            raise FeedLost(
                f"{response.url.path} answered more than {BODY_BYTES_MAX} bytes; trying again, "
                "check exchange.rest_url if this lasts."
            )
    return b"".join(parts)


def decode_result(body: bytes, path: str, result: type[T]) -> tuple[T, int]:
    """Return the typed result of a REST *body* and the server's time, UTC milliseconds.

    Raises ``FeedLost`` for codes that pass, ``ConfigInvalid`` for those that do not, and
    ``MessageMalformed`` for what is not documented.
    """
    try:
        answer = messages.decode_answer(body)
        code = answer.ret_code
        if code == 0 and answer.time > 0:
            return msgspec.json.decode(answer.result, type=result), answer.time
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageMalformed(
            f"The answer of {path} is not what Bybit documents ({error}); trying again, check "
            "exchange.rest_url if this lasts."
        ) from error
    if code == 0:
        raise MessageMalformed(f"The answer of {path} carries no server time; trying again.")
    what = f"Bybit answered {path} with retCode {code} ({answer.ret_msg[:120]})"
    if code in REGION_CODES:
        raise ConfigInvalid(
            f"{what}: it does not serve this region; set exchange.rest_url and "
            "exchange.stream_url to your regional host."
        )
    if code in REFUSED_CODES:
        raise ConfigInvalid(f"{what}; correct market.symbols, market.category or market.interval.")
    # Codes that pass, and codes unknown to us: a daemon that runs for months waits and asks again.
    raise FeedLost(f"{what}; trying again.")
