"""Background tasks of a feed: server time, missing bars, settlements and changed filters."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping
from functools import partial
from typing import Final

from msgspec import Struct, structs

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.sections import ExchangeSection
from tracepaper.daemon.feed.client import (
    LOG_EVERY_S,
    BackfillPage,
    EventQueue,
    GapCauseNotice,
    Item,
    MarketDataClient,
)
from tracepaper.daemon.feed.state import FeedState
from tracepaper.daemon.log import Logger
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import Funding, Gap, GapCause, Instrument, InstrumentChange
from tracepaper.strategies.units import DAY_MS, interval_start

# ---------------------------------------------------------------- changed filters

CLOSED: Final = "Closed"
"""The exchange's status of an instrument that no longer trades."""


def delisted(instrument: Instrument) -> Instrument:
    """Return *instrument* with the status ``CLOSED``."""
    return structs.replace(instrument, status=CLOSED)


def rescaled(fresh: Instrument, kept: Instrument) -> Instrument:
    """Return the filters of *fresh* in the decimals of *kept*, which a run never changes.

    A coarser tick is expressed in the old decimals. Raises ``ConfigInvalid`` if the new tick or
    step is finer than these.
    """
    price = kept.price_decimals - fresh.price_decimals
    quantity = kept.quantity_decimals - fresh.quantity_decimals
    if price < 0 or quantity < 0:
        raise ConfigInvalid(
            f"{kept.id} now trades in finer steps than this run keeps ({fresh.price_decimals} "
            f"price and {fresh.quantity_decimals} quantity decimals instead of "
            f"{kept.price_decimals} and {kept.quantity_decimals}); start a new run in a new "
            "database."
        )
    return structs.replace(
        fresh,
        risk_tiers=fresh.risk_tiers or kept.risk_tiers,
        price_decimals=kept.price_decimals,
        quantity_decimals=kept.quantity_decimals,
        volume_decimals=kept.volume_decimals,
        turnover_decimals=kept.turnover_decimals,
        tick_size=fresh.tick_size * 10**price,
        quantity_step=fresh.quantity_step * 10**quantity,
        min_quantity=fresh.min_quantity * 10**quantity,
        max_quantity=fresh.max_quantity * 10**quantity,
    )


# ---------------------------------------------------------------- the exchange's time

FAR_S: Final = 60.0
"""A time that differs from the expected one by more, network time, has to be confirmed."""
AGREEMENT_S: Final = 5.0
"""Two answers agree if their difference fits the time between them up to this, network time."""
SAMPLES: Final = 3
RATE_TOLERANCE: Final = 0.25
"""The share by which rates of the exchange's time differ on a slow network."""
RATE_SAMPLES: Final = 5
"""Answers that prove another rate; three steady wrong ones must not end a daemon."""
SCALE_MAX: Final = 1_000_000
"""The largest exchange.time_scale; a time that passes faster is a wrong answer."""
RESAMPLE_S: Final = 1.0
ROUND_TRIP_S_MAX: Final = 10.0
"""Assumed longest round trip of the final attempt, however long the retries before it took."""

log = Logger("bybit.feed")


class _TimeSample(Struct, frozen=True):
    """One answer, with the network times between which the server read its clock."""

    server_ms: int
    requested_s: float
    answered_s: float


class ServerTimeReader:
    """Reads the exchange's time so that a single wrong answer has no effect.

    Tolerances are network time; *time_scale* converts them to market time. If the exchange's time
    passes steadily, but not at this scale, ``ConfigInvalid`` is raised.
    """

    def __init__(
        self,
        client: MarketDataClient,
        clock: Clock,
        *,
        time_scale: float = 1.0,
    ) -> None:
        self._client = client
        self._clock = clock
        self._scale_ms = 1_000 * time_scale
        self._expected: deque[_TimeSample] = deque(maxlen=RATE_SAMPLES)

    async def first(self) -> int:
        """Return the time when none is expected yet: two consecutive answers must agree."""
        sample = await self._ask()
        again = await self._ask()
        if not self._agree(sample, again):
            return (await self._confirmed(again))[0]
        return again.server_ms

    async def read(self) -> tuple[int, bool]:
        """Return the time, and whether it jumped, which three answers have to confirm."""
        sample = await self._ask()
        if self._is_near(sample):
            self._expect(sample)
            return sample.server_ms, False
        self._expected.clear()
        return await self._confirmed(sample)

    async def _confirmed(self, sample: _TimeSample) -> tuple[int, bool]:
        """Return the time on which three consecutive answers agree, or the first expected one."""
        agreeing, samples = 1, [sample]
        log.warning(
            "server time doubted",
            server_ms=sample.server_ms,
            expected_ms=self._clock.market_ms(),
        )
        while agreeing < SAMPLES:
            await self._client.cooldown.pause("server time", RESAMPLE_S)
            again = await self._ask()
            if self._is_near(again):
                return again.server_ms, False
            agreeing = agreeing + 1 if self._agree(sample, again) else 1
            sample = again
            samples.append(again)
            self._require_scale(samples[-RATE_SAMPLES:])
        return sample.server_ms, True

    async def _ask(self) -> _TimeSample:
        requested_s = self._clock.network_s()
        server_ms = await self._client.server_time_ms()
        answered_s = self._clock.network_s()
        return _TimeSample(server_ms, max(requested_s, answered_s - ROUND_TRIP_S_MAX), answered_s)

    def _expect(self, sample: _TimeSample) -> None:
        """Keep *sample*; raise ``ConfigInvalid`` if the last show another time scale.

        A clock that is set anew each second is never far from a time that passes faster.
        """
        kept = self._expected
        if not kept or sample.answered_s - kept[-1].answered_s >= RESAMPLE_S:
            kept.append(sample)
            self._require_scale(kept)

    def _require_scale(self, samples: Collection[_TimeSample]) -> None:
        """Raise ``ConfigInvalid`` if *samples* show that the time scale is not the exchange's.

        Only a faster or a real exchange is recognised: the embedded one may be slowed on purpose.
        """
        if len(samples) < SAMPLES:
            return
        scale = self._scale_ms / 1_000
        rates = [
            (later.server_ms - earlier.server_ms) / 1_000 / (later.answered_s - earlier.answered_s)
            for earlier, later in itertools.pairwise(samples)
        ]
        low, high = min(rates), max(rates)
        is_steady = 0 < high < (1 + RATE_TOLERANCE) * low and high <= SCALE_MAX
        is_real = abs(low - 1) < RATE_TOLERANCE < scale - 1 and len(samples) >= SAMPLES
        is_faster = low > (1 + RATE_TOLERANCE) * scale and len(samples) == RATE_SAMPLES
        if is_steady and (is_real or is_faster):
            rate = f"{(low + high) / 2:.3g}"
            # Only the embedded exchange outruns the wall clock.
            other = ", or start `tracepaper exchange` with --now, without --speed"
            raise ConfigInvalid(
                f"The exchange's time passes {rate} s in one second, but exchange.time_scale is "
                f"{scale:g}: set exchange.time_scale = {rate}{other if is_faster else ''}."
            )

    def _is_near(self, sample: _TimeSample) -> bool:
        return abs(sample.server_ms - self._clock.market_ms()) <= FAR_S * self._scale_ms

    def _agree(self, sample: _TimeSample, again: _TimeSample) -> bool:
        """Return whether the time between two answers fits the difference of their times."""
        passed_s = (again.server_ms - sample.server_ms) / self._scale_ms
        shortest_s = again.requested_s - sample.answered_s
        longest_s = again.answered_s - sample.requested_s
        return shortest_s - AGREEMENT_S <= passed_s <= longest_s + AGREEMENT_S


LAG_MS: Final = 5_000
"""A frame this far from our market time, either way, triggers a reading of the clock."""
LAG_RESYNC_S: Final = 1.0
RESYNC_S: Final = 30.0
"""Network time between two readings of the exchange's clock."""
POLL_S: Final = 0.1
FILTERS_MS: Final = DAY_MS
"""Market time between two readings of an instrument's filters."""
SILENT_BARS: Final = 3
"""After this many missing bars an instrument may be halted, so its filters are read."""
FILTERS_AGAIN_S: Final = 60.0
"""Network time between two such readings."""


ANSWERS: Final = 2
"""An instrument that is missing from this many consecutive answers is delisted."""

# ---------------------------------------------------------------- a machine that is too slow

READ_LATE_S: Final = 1.0
"""Frames older than this, network time, have waited to be read; a bar may wait behind them."""
BEHIND_S: Final = 5.0
"""A warning is logged if all frames during this network time are older than this."""
BEHIND_FRAMES: Final = 100
"""Least frames for a warning: after a silence a single frame may be delayed."""


class StreamLag:
    """Measures how late frames are read, and warns if this machine is too slow."""

    def __init__(self, clock: Clock, exchange: ExchangeSection, symbols: int) -> None:
        self._clock = clock
        self._scale_ms = 1_000 * exchange.time_scale
        count = f"{symbols} symbol{'s' if symbols > 1 else ''}"
        remedy = (
            f"{count} at exchange.time_scale {exchange.time_scale:g}: lower it, and the --speed of "
            "tracepaper exchange with it"
            if exchange.time_scale > 1
            else f"{count}: list fewer market.symbols, or leave it more of the processor"
        )
        self._advice = f"this machine is too slow for {remedy}; until then bars are decided late"
        self._sent_ms = 0  # the newest date of a frame
        self._read_s = float("-inf")
        self._timely_s = clock.network_s()
        self._late_frames = 0
        self._warned_s = float("-inf")

    def read(self, server_ms: int, market_ms: int) -> None:
        """Take in *server_ms*, the date of a frame that is read at *market_ms*."""
        self._sent_ms = max(self._sent_ms, server_ms)
        self._read_s = self._clock.network_s()
        late_s = (market_ms - server_ms) / self._scale_ms
        if late_s <= BEHIND_S:
            self._timely_s, self._late_frames = self._read_s, 0
            return
        self._late_frames += 1
        if self._late_frames >= BEHIND_FRAMES and self._read_s - self._timely_s >= BEHIND_S:
            self.warn(f"frames are read {late_s:.0f} s after they were sent")

    def frames_ms(self) -> int:
        """Return the market time up to which frames are read; the present if none wait."""
        now_ms = self._clock.market_ms()
        is_silent = self._clock.network_s() - self._read_s > READ_LATE_S
        if is_silent or not self._sent_ms or now_ms - self._sent_ms <= READ_LATE_S * self._scale_ms:
            return now_ms
        return self._sent_ms

    def warn(self, reason: str) -> None:
        """Log that the machine is too slow, at most once a minute; *reason* is the symptom."""
        now_s = self._clock.network_s()
        if now_s - self._warned_s >= LOG_EVERY_S:
            self._warned_s = now_s
            log.warning("behind", reason=reason, advice=self._advice)


class FeedMaintenance:
    """Background work of a feed: reads the exchange's time, and sends the requests to REST."""

    def __init__(
        self,
        *,
        client: MarketDataClient,
        clock: Clock,
        exchange: ExchangeSection,
        states: Mapping[str, FeedState],
        queue: EventQueue[Item],
        spawn: Callable[[Coroutine[None, None, None]], None],
        doubts: Callable[[Funding], bool] = lambda _rate: False,
    ) -> None:
        self._is_live = False
        self._doubts = doubts
        self._spawn = spawn
        self._time = ServerTimeReader(client, clock, time_scale=exchange.time_scale)
        self._client = client
        self._clock = clock
        self._exchange = exchange
        self._states = states
        self._queue = queue
        self._counters = client.counters
        self._running: set[str] = set()  # names of requests without an answer yet
        self._filters_read: dict[str, tuple[int, float]] = {}  # when, in market and network time
        self._is_resync_requested = False
        self._synchronised_s = 0.0
        self._ahead_ms = exchange.ahead_ms * exchange.time_scale
        self._frame_lead_ms = 0.0  # how far frames have moved the clock since it was read
        self.lag = StreamLag(clock, exchange, len(states))
        self.waiting: set[str] = set()  # instruments that are warmed up in a later turn

    async def run(self) -> None:
        """Send each request when it is due, once the feed has caught up; never return.

        Requests are independent: one without an answer delays no other.
        """
        self._is_live = True
        now_read = self._clock.market_ms(), self._clock.network_s()
        self._filters_read = dict.fromkeys(self._states, now_read)
        while True:
            await self._clock.sleep(POLL_S)
            now_ms, now_s = self._clock.market_ms(), self._clock.network_s()
            # By the present time a machine that reads frames late would request every bar in them.
            frames_ms, grace_ms = self.lag.frames_ms(), self._exchange.grace_ms
            resync_s = LAG_RESYNC_S if self._is_resync_requested else RESYNC_S
            if now_s - self._synchronised_s >= resync_s:
                self._start("time", self.synchronise)
            for key, state in self._states.items():
                if state.is_overdue(market_ms=frames_ms, network_s=now_s, grace_ms=grace_ms):
                    self.request_bars(state)
                settlements, filters = f"settlements of {key}", f"filters of {key}"
                if settlements not in self._running and state.is_settlement_due(
                    market_ms=now_ms, network_s=now_s
                ):
                    self._start(settlements, partial(self._settle, state, now_ms))
                if filters not in self._running and self._are_filters_due(key, now_ms, now_s):
                    self._start(filters, partial(self._read_filters, state))

    def _start(self, name: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do *work* in the background, unless work called *name* is running."""

        async def run() -> None:
            try:
                await work()
            finally:
                self._running.discard(name)

        if name not in self._running:
            self._running.add(name)
            self._spawn(run())

    def observe(self, server_ms: int) -> bool:
        """Take in the date of a frame; return False if it is too far ahead to be true.

        A wrong frame would otherwise request every bar until its date and drop every quote before
        it. Between two readings of the exchange's time, frames may move the clock by ``ahead_ms``
        in total, so many small errors have no more effect than one. A large difference triggers a
        reading.
        """
        ahead_ms = server_ms - (market_ms := self._clock.market_ms())
        if abs(ahead_ms) > LAG_MS:
            self.request_resync()
        if ahead_ms > 0 and self._frame_lead_ms + ahead_ms > self._ahead_ms:
            return False
        self.lag.read(server_ms, market_ms)
        if ahead_ms <= 0:
            return True
        self._frame_lead_ms += ahead_ms
        self._clock.observe(server_ms)
        return True

    def request_resync(self) -> None:
        """Have the exchange's clock read soon."""
        self._is_resync_requested = True

    async def settlements(self, state: FeedState, until_ms: int) -> list[Funding | Gap]:
        """Fetch the new settlements up to *until_ms*; return them, and gaps for missing ones.

        They then count as delivered.
        """
        answer = await self._client.funding(
            state.instrument, state.funding.settled_ms + 1, until_ms
        )
        now_ms = self._clock.market_ms()
        new = state.funding.settle(answer, self._doubts)
        missing_ms = [event.from_ms for event in new if isinstance(event, Gap)]
        if missing_ms:
            self._counters["settlements_missed"] += len(missing_ms)
            log.warning("settlements missed", instrument=state.instrument.id, due_ms=missing_ms)
        return [structs.replace(event, seen_ms=now_ms) for event in new]

    async def synchronise(self) -> None:
        """Read the exchange's clock."""
        self._is_resync_requested = False
        requested_s = self._clock.network_s()
        expected_ms = self._clock.market_ms()
        server_ms, is_jump = await self._time.read()
        self._synchronised_s = self._clock.network_s()
        round_trip_s = min(self._synchronised_s - requested_s, ROUND_TRIP_S_MAX)
        late_ms = round_trip_s * 1_000 * self._exchange.time_scale
        # A clock that is ahead by less than the round trip does not contradict the answer.
        if not 0 < self._clock.market_ms() - server_ms <= late_ms:
            self._clock.synchronise(server_ms)
        self._frame_lead_ms = -late_ms
        for state in self._states.values():
            state.drop_ahead(self._clock.market_ms() + self._ahead_ms)
        self._counters["resyncs"] += 1
        if is_jump and self._is_live:
            self._counters["jumps"] += 1
            log.warning("market time jumped", from_ms=expected_ms, until_ms=server_ms)
            first_ms, last_ms = sorted((expected_ms, server_ms))
            for key in self._states:
                gap = Gap(key, first_ms, last_ms, GapCause.JUMPED, "clock", server_ms, server_ms)
                self._queue.put_nowait(gap)
                # The cause of the instrument's next hole.
                self._queue.put_nowait(GapCauseNotice(key, GapCause.JUMPED))

    def request_bars(self, state: FeedState) -> None:
        """Request the missing bars in the background; the answer goes to the queue.

        Each instrument has one request at a time, whose retries do not delay other instruments.
        """
        if state.claim_request():
            self._spawn(self._request(state))

    async def _request(self, state: FeedState) -> None:
        sequence = state.sequence
        until_ms = interval_start(self._clock.market_ms(), sequence.interval_ms)
        bars = await self._client.candles(
            state.instrument,
            sequence.interval_ms,
            sequence.next_open_ms,
            max(until_ms, sequence.next_close_ms) - 1,
        )
        self._queue.put_nowait(
            BackfillPage(state.instrument.id, tuple(bars), self._clock.network_s())
        )

    async def _settle(self, state: FeedState, until_ms: int) -> None:
        """Fetch and queue the settlements until *until_ms*."""
        for settled in await self.settlements(state, until_ms):
            self.queue_settlement(state, settled)

    def queue_settlement(self, state: FeedState, settled: Funding | Gap) -> None:
        """Queue *settled*; until it is delivered, later settlements have to follow it there."""
        if isinstance(settled, Funding):
            state.funding.queued_ms.add(settled.market_ms)
        self._queue.put_nowait(settled)

    async def _filters(self, instrument: Instrument) -> list[Instrument]:
        """Return the instrument with its current filters; delisted if the exchange lists none."""
        for _ in range(ANSWERS):
            if current := await self._client.instruments(instrument.category, instrument.symbol):
                return current
            await self._client.cooldown.pause("filters", self._exchange.certain_s)
        return [delisted(instrument)]

    def _are_filters_due(self, key: str, now_ms: int, now_s: float) -> bool:
        """Return whether to read the filters of *key* now: once a day of market time.

        They are read more often while bars are missing without a known reason, since the exchange
        may have closed the instrument.
        """
        sequence = self._states[key].sequence
        read_ms, read_s = self._filters_read[key]
        read_ms = min(read_ms, now_ms)
        is_silent = now_ms - sequence.next_close_ms > SILENT_BARS * sequence.interval_ms
        is_silent &= key not in self.waiting
        is_due = now_ms - read_ms >= FILTERS_MS
        is_due |= is_silent and now_s - read_s >= FILTERS_AGAIN_S
        self._filters_read[key] = (now_ms, now_s) if is_due else (read_ms, read_s)
        return is_due

    async def _read_filters(self, state: FeedState) -> None:
        """Read the filters of an instrument; queue an event if they changed."""
        before = state.instrument
        for fresh in await self._filters(before):
            try:
                changed = rescaled(fresh, before)
            except ConfigInvalid as error:
                # Prices in finer steps are rejected on arrival, so no decision uses them.
                self._counters["filters_refused"] += 1
                log.warning("filters kept", error=str(error))
                continue
            if changed == before:
                continue
            if changed.status != before.status:
                log.warning(
                    "instrument status",
                    instrument=before.id,
                    was=before.status,
                    now=changed.status,
                    advice="its orders wait; other symbols continue",
                )
            state.change_filters(changed)
            now_ms = self._clock.market_ms()
            self._queue.put_nowait(InstrumentChange(changed, now_ms, now_ms))
