"""Websocket connections to public streams, reconnected for ever.

Source: docs/v5/websocket. The heartbeat is a JSON text frame every ``ping_s``. A stream counts as
alive while it sends data; pongs do not count. Acknowledgements name no topics, so each request has
its own ``req_id``. After a reconnect all topics are subscribed again.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

from msgspec import Struct, structs
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
from websockets.uri import parse_uri

from tracepaper.daemon.bybit.instruments import interval_name
from tracepaper.daemon.bybit.messages import SocketRequest, encode, topic_of
from tracepaper.daemon.bybit.order_book import DepthRequest, DepthSampler
from tracepaper.daemon.bybit.wire import (
    Ack,
    BestQuotes,
    ClosedCandles,
    Pong,
    Received,
    RefusedFrame,
    Ticker,
    Trades,
    UnreadFrame,
    Wire,
)
from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.sections import ExchangeSection
from tracepaper.daemon.feed.client import (
    Cooldown,
    MarketDataListener,
    OrderBookSample,
    StreamRequest,
    first_cause,
    host_of,
    is_loopback,
)
from tracepaper.daemon.log import Logger
from tracepaper.strategies.errors import (
    ConfigInvalid,
    FeedLost,
    FeedStale,
    MessageMalformed,
    Recoverable,
)
from tracepaper.strategies.types.market import Category, GapCause, Instrument

TOPICS_PER_REQUEST: Final = 10
"""The limit of spot; other categories accept more."""
SYMBOLS_PER_CONNECTION: Final = 50
"""Most symbols that a lost connection affects; far below the exchange's 1,000 connections, and
their topics below its 21,000 characters of a connection."""
CLOSE_TIMEOUT_S: Final = 1.0
FORBIDDEN_STATUS: Final = 403
FRAME_BYTES_MAX: Final = 4 * 1024 * 1024
RESUBSCRIBE_FIRST_S: Final = 1.0
ANSWER_WAITS_MAX: Final = 60
"""Most waits of `connect_timeout_s` for one answer while older frames are still being read."""

log = Logger("bybit.stream")


def stream_url(exchange: ExchangeSection, category: Category) -> str:
    """Return the address of the public stream of *category*."""
    return f"{exchange.stream_url.rstrip('/')}/v5/public/{category.value}"


class StreamCallbacks(Struct, frozen=True):
    """The functions of its owner that a stream calls.

    ``receive`` reads a frame and returns None for a malformed one, which it counts. ``connected``
    is called for each new connection before its first frame, ``lost`` when a connection is lost.
    """

    receive: Callable[[bytes], Received | None]
    connected: Callable[[], None]
    lost: Callable[[Recoverable], None]


class PublicStream:
    """Connects, subscribes *topics* and passes frames to *handler* until ``run`` is cancelled.

    ``answered`` is set once every topic was acknowledged or refused.
    """

    def __init__(
        self,
        *,
        category: Category,
        topics: Sequence[str],
        exchange: ExchangeSection,
        handler: StreamCallbacks,
        clock: Clock,
        rng: random.Random,
        cooldown: Cooldown,
    ) -> None:
        self.answered = asyncio.Event()
        self.is_open = False
        self.refused: set[str] = set()
        self._url = stream_url(exchange, category)
        self._category = category
        self._name = f"stream {category.value}"
        self._topics = tuple(topics)
        self._exchange = exchange
        self._handler = handler
        self._clock = clock
        self._rng = rng
        self._cooldown = cooldown
        self._requests = 0
        self._connection: ClientConnection | None = None
        self._stale_topics: set[str] = set()
        self._has_stale_topics = asyncio.Event()
        self._acks: dict[str, asyncio.Future[Ack]] = {}
        self._data_s = 0.0
        self._sent_ms = 0  # the newest date of this connection's frames
        self.frame_s: float | None = None  # network time of the newest frame of any kind

    async def run(self) -> None:
        """Listen until cancelled; raise ``ConfigInvalid`` if no retry can succeed."""
        await self._cooldown.retry(
            self._session,
            rng=self._rng,
            name=self._name,
            host=host_of(self._url),
            ceiling_s=self._exchange.backoff_max_s,
        )

    def resubscribe(self, topics: Iterable[str]) -> None:
        """Subscribe *topics* again: that makes the exchange send their snapshots."""
        self._stale_topics.update(topics)
        self._has_stale_topics.set()

    async def unsubscribe(self) -> None:
        """Unsubscribe every topic of an open connection; return once all earlier frames are read.

        Raises ``FeedLost`` if the exchange does not answer.
        """
        if self._connection is not None:
            for batch in self._batches():
                await self._ask(self._connection, batch, operation="unsubscribe")

    def _batches(self) -> Iterator[tuple[str, ...]]:
        """Yield the topics of each request."""
        for first in range(0, len(self._topics), TOPICS_PER_REQUEST):
            yield self._topics[first : first + TOPICS_PER_REQUEST]

    def note_date(self, server_ms: int) -> None:
        """Note the accepted date of a frame, market time."""
        self._sent_ms = max(server_ms, self._sent_ms)

    async def _session(self) -> None:
        """Run one connection to its end; always raises."""
        connection = await self._connect()
        self._stale_topics.clear()
        self._sent_ms = 0
        self._connection = connection
        self.is_open = True
        self._data_s = self._clock.network_s()
        self._handler.connected()
        self._cooldown.succeeded(self._name)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(connection))
                group.create_task(self._heartbeat(connection))
                group.create_task(self._watch())
                group.create_task(self._subscribe(connection))
                group.create_task(self._resubscribe_stale(connection))
        except BaseExceptionGroup as failures:
            cause = first_cause(failures)
            if isinstance(cause, Recoverable):
                self._handler.lost(cause)
            raise cause from None
        finally:
            self._connection = None
            self.is_open = False
            self._acks.clear()
            try:
                await connection.close()
            finally:  # a stop in between does not wait for the server's close
                connection.transport.abort()

    async def _connect(self) -> ClientConnection:
        """Return an open connection, or raise ``FeedLost``; HTTP status 403 starts a cooldown."""
        await self._cooldown.wait()
        exchange = self._exchange
        try:
            parse_uri(self._url)
        except (InvalidURI, ValueError) as error:
            raise ConfigInvalid(
                f"{self._url} is no websocket address; correct exchange.stream_url."
            ) from error
        try:
            return await connect(
                self._url,
                compression=None,
                max_size=FRAME_BYTES_MAX,
                open_timeout=exchange.connect_timeout_s,
                close_timeout=CLOSE_TIMEOUT_S,
                ping_interval=None,  # Bybit's heartbeat is a JSON frame of our own
                proxy=None if is_loopback(self._url) else True,
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status == FORBIDDEN_STATUS:
                self._cooldown.start(exchange.ban_cooldown_s, "HTTP 403 on the stream")
            raise FeedLost(
                f"Bybit refused the {self._category.value} stream with HTTP {status}; check "
                "exchange.stream_url if this lasts."
            ) from error
        except (OSError, TimeoutError, ValueError, WebSocketException) as error:
            # ValueError and InvalidURI: the server redirected to an invalid address.
            raise FeedLost(
                f"The {self._category.value} stream could not be opened "
                f"({type(error).__name__}: {error}); check the network and exchange.stream_url if "
                "this lasts."
            ) from error

    async def _read(self, connection: ClientConnection) -> None:
        while True:
            try:
                frame = await connection.recv(decode=False)
            except WebSocketException as error:
                raise FeedLost(
                    f"The {self._category.value} stream ended ({error}); connecting again."
                ) from error
            self.frame_s = self._clock.network_s()
            received = self._handler.receive(bytes(frame))
            if isinstance(received, Ack):
                future = self._acks.pop(received.request_id, None)
                if future is not None and not future.done():
                    future.set_result(received)
            elif received is not None and not isinstance(received, Pong | UnreadFrame):
                self._data_s = self._clock.network_s()

    async def _heartbeat(self, connection: ClientConnection) -> None:
        while True:
            await self._clock.sleep(self._exchange.ping_s)
            await self._send(connection, SocketRequest("ping"))

    async def _send(self, connection: ClientConnection, request: SocketRequest) -> None:
        try:
            async with asyncio.timeout(self._exchange.connect_timeout_s):
                await connection.send(encode(request), text=True)
        except (WebSocketException, TimeoutError) as error:
            raise FeedLost(
                f"The {self._category.value} stream takes no more requests ({error}); connecting "
                "again."
            ) from error

    async def _watch(self) -> None:
        """Raise ``FeedStale`` once no data has arrived for ``data_watchdog_s``."""
        limit_s = self._exchange.data_watchdog_s
        while (left_s := self._data_s + limit_s - self._clock.network_s()) > 0:
            await self._clock.sleep(left_s)
        raise FeedStale(
            f"The {self._category.value} stream sent no data for {limit_s:g} s; connecting again. "
            "If the market is that quiet, raise exchange.data_watchdog_s."
        )

    async def _subscribe(self, connection: ClientConnection) -> None:
        """Subscribe every topic; retry refused ones for ever."""
        self.refused.clear()
        batches = deque(self._batches())
        while batches:
            batch = batches.popleft()
            refusal = await self._ask(connection, batch)
            if refusal is None:
                continue
            topic, *others = batch
            if others:
                # One invalid topic may have caused the refusal of the others: request each alone.
                batches.extend((topic,) for topic in batch)
                continue
            self.refused.add(topic)
            log.error(
                "refused",
                topic=topic,
                reason=refusal,
                advice="correct market.symbols; until then the topic is requested again",
            )
        self.answered.set()
        wait_s = RESUBSCRIBE_FIRST_S
        while self.refused:
            wait_s = min(2 * wait_s, self._exchange.backoff_max_s)
            await self._clock.sleep(self._rng.uniform(0, wait_s))
            for topic in sorted(self.refused):
                if await self._ask(connection, (topic,)) is None:
                    self.refused.discard(topic)

    async def _resubscribe_stale(self, connection: ClientConnection) -> None:
        """Resubscribe stale topics, after a pause that doubles while topics go stale again."""
        wait_s = RESUBSCRIBE_FIRST_S
        while True:
            await self._has_stale_topics.wait()
            self._has_stale_topics.clear()
            topics = sorted(self._stale_topics.intersection(self._topics))
            self._stale_topics.clear()
            for topic in topics:
                await self._ask(connection, (topic,), operation="unsubscribe")
                if await self._ask(connection, (topic,)) is not None:
                    self.resubscribe((topic,))
            await self._clock.sleep(wait_s)
            again = self._has_stale_topics.is_set()
            wait_s = min(2 * wait_s, self._exchange.backoff_max_s) if again else RESUBSCRIBE_FIRST_S

    async def _ask(
        self, connection: ClientConnection, topics: tuple[str, ...], operation: str = "subscribe"
    ) -> str | None:
        """Subscribe or unsubscribe *topics*; return None, or the exchange's reason for a refusal.

        The answer arrives after all frames that were sent before it. So the wait is extended while
        older frames are being read: a slow machine would otherwise reconnect again and again.
        """
        self._requests += 1
        request_id = f"{self._category.value}-{self._requests}"
        future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        self._acks[request_id] = future
        limit_s = self._exchange.connect_timeout_s
        due_ms = self._clock.market_ms() + self._clock.scaled_ms(limit_s)
        await self._send(connection, SocketRequest(operation, request_id, list(topics)))
        for _ in range(ANSWER_WAITS_MAX):
            began_s = self._clock.network_s()
            timer = asyncio.ensure_future(self._clock.sleep(limit_s))
            try:
                await asyncio.wait((future, timer), return_when=asyncio.FIRST_COMPLETED)
            finally:
                timer.cancel()
            is_read = self.frame_s is not None and self.frame_s > began_s
            if future.done() or not is_read or self._sent_ms >= due_ms:
                break
        if not future.done():
            raise FeedLost(
                f"The {self._category.value} stream did not answer a subscription within "
                f"{limit_s:g} s; connecting again."
            )
        ack = future.result()
        if ack.ok or "already subscribed" in ack.message.lower():
            return None
        return ack.message or "no reason given"


# ---------------------------------------------------------------- one category


BEST: Final = "orderbook.1."
"""The prefix of the topics of best bid and ask, which every feed subscribes."""
TRADES: Final = "publicTrade."
"""The prefix of the topics of trades."""


def connections(category: Category, request: StreamRequest) -> list[StreamRequest]:
    """Divide the instruments of *category* in *request* into one request for each connection.

    A connection takes at most ``SYMBOLS_PER_CONNECTION``. The parts are as equal as possible.
    """
    items = [item for item in request.instruments if item.category is category]
    count = -(-len(items) // SYMBOLS_PER_CONNECTION)
    cuts = [len(items) * number // count for number in range(count + 1)]
    return [
        structs.replace(request, instruments=tuple(items[first:last]))
        for first, last in pairwise(cuts)
    ]


def topics_of(item: Instrument, request: StreamRequest) -> list[str]:
    """Return the topics of *item* for *request*, each once, candles first.

    Spot has no mark and no funding, so it needs no ticker. It needs trades, which confirm a quote
    that jumps.
    """
    category, symbol = item.category, item.symbol
    topics = [f"kline.{interval_name(request.interval_ms)}.{symbol}", f"{BEST}{symbol}"]
    if category is Category.LINEAR:
        topics.append(f"tickers.{symbol}")
    if request.trades or category is Category.SPOT:
        topics.append(f"{TRADES}{symbol}")
    if request.depth:
        depth = DepthRequest(item.category, item.symbol, request.depth, request.depth_every_ms)
        topics.append(depth.topic)
    return list(dict.fromkeys(topics))


class CategoryStream(PublicStream):
    """A connection that reads its frames with a ``Wire`` and passes their data to *listener*."""

    def __init__(
        self,
        category: Category,
        request: StreamRequest,
        listener: MarketDataListener,
        *,
        exchange: ExchangeSection,
        clock: Clock,
        rng: random.Random,
        cooldown: Cooldown,
        counters: Counter[str],
    ) -> None:
        self._instruments = request.instruments
        super().__init__(
            category=category,
            topics=[topic for item in self._instruments for topic in topics_of(item, request)],
            exchange=exchange,
            handler=StreamCallbacks(self._receive, self._connected, self._lost),
            clock=clock,
            rng=rng,
            cooldown=cooldown,
        )
        self._request = request
        self._ids = frozenset(instrument.id for instrument in self._instruments)
        self._listener = listener
        self._counters = counters
        self._logged: set[str] = set()
        self._wire = self._new_wire()
        samplers = map(self._sampler, self._instruments if request.depth else ())
        self._samplers = {sampler.topic: sampler for sampler in samplers}

    async def subscribed(self, within_s: float) -> bool:
        """Wait until every topic is acknowledged or refused; return False after *within_s*."""
        try:
            async with asyncio.timeout(within_s):
                await self.answered.wait()
        except TimeoutError:
            return False
        return True

    def is_connected(self, instrument: str) -> bool:
        """Return whether this is a connection of *instrument* and it is open."""
        return self.is_open and instrument in self._ids

    def _sampler(self, instrument: Instrument) -> DepthSampler:
        request = self._request
        return DepthSampler(
            instrument,
            DepthRequest(self._category, instrument.symbol, request.depth, request.depth_every_ms),
            lambda depth, cause: self._listener.on_data(OrderBookSample(depth, cause)),
            accepts=self._listener.on_server_time,
            counters=self._counters,
            refused=self._refused,
        )

    def _new_wire(self) -> Wire:
        """Return a new reader without state: a new connection begins with snapshots."""
        return Wire(
            category=self._category,
            instruments=self._instruments,
            interval_ms=self._request.interval_ms,
            counters=self._counters,
            observe=self._accepts_date,
            refused=self._refused,
        )

    def _accepts_date(self, server_ms: int) -> bool:
        """Return whether the feed accepts the date of a frame; note an accepted one."""
        if is_accepted := self._listener.on_server_time(server_ms):
            self.note_date(server_ms)
        return is_accepted

    def _connected(self) -> None:
        self._wire = self._new_wire()
        self._counters["connects"] += 1
        log.info("connected", category=self._category.value)

    def _lost(self, cause: Recoverable) -> None:
        is_stale = isinstance(cause, FeedStale)
        self._counters["stale" if is_stale else "disconnects"] += 1
        reason = "stale" if is_stale else "disconnected"
        for sampler in self._samplers.values():
            sampler.lost(reason)
        self._listener.on_lost(
            self._instruments, GapCause.STALE if is_stale else GapCause.DISCONNECTED
        )

    def _receive(self, frame: bytes) -> Received | None:
        """Read one frame and pass its data to the listener; return None if it was rejected."""
        topic = topic_of(frame) if self._samplers else ""
        received: Received | None
        if (sampler := self._samplers.get(topic)) is not None:
            received = sampler.receive(frame)
            if stale := sampler.pop_stale_topics():
                self.resubscribe(stale)
            if not topic.startswith(BEST):
                self._counters["frames"] += received is not None
                return received  # best quotes go to the listener too
        try:
            received = self._wire.receive(frame)
        except MessageMalformed:
            received = None
        if self._wire.stale_topics:
            self.resubscribe(self._wire.pop_stale_topics())
        if received is None or isinstance(received, RefusedFrame):
            return None
        self._counters["frames"] += 1
        self._pass_on(received)
        return received

    def _pass_on(self, received: Received) -> None:
        listener = self._listener
        match received:
            case ClosedCandles():
                for bar in received.bars:
                    listener.on_data(bar)
            case BestQuotes():
                if received.quote is not None:
                    listener.on_data(received.quote)
            case Ticker():
                if received.mark is not None:
                    listener.on_data(received.mark)
                if received.next_funding_ms is not None:
                    listener.on_funding_time(received.instrument, received.next_funding_ms)
            case Trades():
                self._counters["trades"] += len(received.trades)
                if received.trades:
                    listener.on_data(received.trades[-1])
            case _:
                pass  # acknowledgements, pongs and unknown frames have no market data

    def _refused(self, kind: str, sentence: str) -> None:
        """Log the first rejection of each kind; the counters have all."""
        if kind.startswith("ahead."):
            self._listener.on_future_date()
        if kind not in self._logged:
            self._logged.add(kind)
            log.warning("refused", kind=kind, category=self._category.value, reason=sentence)
