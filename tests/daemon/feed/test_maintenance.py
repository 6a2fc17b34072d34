"""A wrong server time is requested again; a distant one is accepted if three answers agree."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from builders import instrument, quote
from bybit_server import START_MS, exchange_section
from fakes import JumpClock, ManualClock
from msgspec import structs
from structlog.testing import capture_logs

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.daemon.feed.client import EventQueue
from tracepaper.daemon.feed.funding import FundingSchedule
from tracepaper.daemon.feed.maintenance import FeedMaintenance, ServerTimeReader, rescaled
from tracepaper.daemon.feed.state import BarSequence, FeedState
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import RiskTier

YEAR_MS = 365 * 86_400_000


class TellingClient(BybitClient):
    """Answers with the true time and an error from a list, each after *under_way_s*."""

    def __init__(
        self, clock: ManualClock, errors_ms: Sequence[int], *, under_way_s: float = 0.0
    ) -> None:
        super().__init__(exchange_section(), clock=clock, rng=random.Random(1))
        self._manual = clock
        self._errors_ms = list(errors_ms)
        self._under_way_s = under_way_s

    async def server_time_ms(self) -> int:
        self._manual.advance(network_s=self._under_way_s)
        error_ms = self._errors_ms.pop(0) if self._errors_ms else 0
        return START_MS + int(self._manual.network_s() * 1_000) + error_ms


def asking(
    errors_ms: Sequence[int], *, market_ms: int = START_MS, under_way_s: float = 0.0
) -> tuple[ServerTimeReader, ManualClock]:
    clock = ManualClock(market_ms)
    return ServerTimeReader(TellingClient(clock, errors_ms, under_way_s=under_way_s), clock), clock


@pytest.mark.parametrize(
    "errors_ms", [[], [YEAR_MS], [0, YEAR_MS], [-YEAR_MS, YEAR_MS], [YEAR_MS, 2 * YEAR_MS]]
)
async def test_the_first_time_of_all_is_one_on_which_answers_agree(errors_ms: list[int]) -> None:
    time, clock = asking(errors_ms, market_ms=0)  # the machine's clock is no evidence
    assert await time.first() == START_MS + int(clock.network_s() * 1_000)


@pytest.mark.parametrize("error_ms", [64_000, -64_000, YEAR_MS, -YEAR_MS])
@pytest.mark.parametrize("times", [1, 2])
async def test_a_far_time_that_is_not_repeated_is_not_believed(error_ms: int, times: int) -> None:
    time, clock = asking([error_ms] * times)
    answer = await time.read()
    assert answer == (START_MS + times * 1_000, False)
    assert clock.slept == [1.0] * times


@pytest.mark.parametrize("error_ms", [70_000, -70_000, YEAR_MS, -YEAR_MS])
async def test_a_far_time_is_believed_when_it_is_said_three_times(error_ms: int) -> None:
    time, clock = asking([error_ms] * 9)
    assert await time.read() == (START_MS + 2_000 + error_ms, True)
    assert clock.slept == [1.0, 1.0]


async def test_answers_that_were_long_on_their_way_agree_all_the_same() -> None:
    time, _ = asking([YEAR_MS] * 9, under_way_s=9.0)
    assert (await time.read())[1]


@pytest.mark.parametrize(
    ("rate", "scale", "error"),
    [
        (
            60.0,
            1.0,
            "passes 60 s in one second, but exchange.time_scale is 1: set .* = 60, or .* --now",
        ),
        (1.0, 1_000.0, "passes 1 s in one second, but exchange.time_scale is 1000: set .* = 1\\.$"),
        (500.0, 1_000.0, ""),  # an exchange that was slowed on purpose
        (1.0, 1.0, ""),
    ],
)
async def test_a_time_scale_that_is_not_the_exchanges_is_named(
    rate: float, scale: float, error: str
) -> None:
    extra_ms = (round(1_000 * (rate - 1) * second) for second in range(1, 20))
    clock = ManualClock(START_MS - int(600_000 * scale))
    client = TellingClient(clock, [YEAR_MS + each for each in extra_ms])
    time = ServerTimeReader(client, clock, time_scale=scale)
    if not error:
        assert (await time.read())[1]
        return
    with pytest.raises(ConfigInvalid, match=error):
        await time.read()


async def each_second(time: ServerTimeReader, clock: ManualClock) -> None:
    """Set *clock* by five readings, none of which is far from the expected time."""
    for _ in range(5):
        server_ms, is_jump = await time.read()
        assert not is_jump
        clock.synchronise(server_ms)
        await clock.sleep(1.0)


@pytest.mark.parametrize(("rate", "scale"), [(60.0, 1.0), (1.0, 40.0)])
async def test_a_clock_that_is_set_each_second_hides_no_other_rate(
    rate: float, scale: float
) -> None:
    clock = ManualClock(START_MS)
    client = TellingClient(clock, [round(1_000 * (rate - 1) * second) for second in range(20)])
    with pytest.raises(ConfigInvalid, match=f"set exchange.time_scale = {rate:g}"):
        await each_second(ServerTimeReader(client, clock, time_scale=scale), clock)


def maintaining(
    state: FeedState, errors_ms: Sequence[int] = (), *, time_scale: float = 1.0
) -> tuple[FeedMaintenance, ManualClock]:
    """Return the background work of a feed of one instrument, and its clock."""
    clock = ManualClock(START_MS)
    exchange = exchange_section(ahead_ms=2_000, time_scale=time_scale)
    maintenance = FeedMaintenance(
        client=TellingClient(clock, errors_ms),
        clock=clock,
        exchange=exchange,
        states={state.instrument.id: state},
        queue=EventQueue(10),
        spawn=lambda work: work.close(),
    )
    return maintenance, clock


def quoted() -> FeedState:
    """Return an instrument whose quotes are delivered only before a bar."""
    return FeedState(
        instrument(),
        sequence=BarSequence(interval_ms=60_000, next_open_ms=START_MS),
        funding=FundingSchedule(interval_minutes=0, settled_ms=0),
    )


async def test_frames_move_the_clock_ahead_by_so_much_in_all_until_it_is_read_again() -> None:
    maintenance, clock = maintaining(quoted())
    assert maintenance.observe(START_MS + 1_500)
    assert not maintenance.observe(START_MS + 1_500 + 501)
    assert maintenance.observe(START_MS + 1_500 + 500)
    assert not maintenance.observe(START_MS + 2_001)
    assert clock.market_ms() == START_MS + 2_000
    await maintenance.synchronise()
    assert maintenance.observe(clock.market_ms() + 2_000)


async def test_a_clock_that_is_set_back_forgets_prices_dated_ahead_of_it() -> None:
    state = quoted()
    maintenance, clock = maintaining(state)
    clock.advance(market_ms=10_000)
    for market_ms in (START_MS + 2_000, START_MS + 2_001):
        state.keep(quote(at_ms=market_ms), matters=False)
        await maintenance.synchronise()
        assert clock.market_ms() == START_MS
        is_kept = market_ms <= START_MS + 2_000
        assert bool(list(state.undelivered())) is is_kept


@pytest.mark.parametrize(
    ("time_scale", "message"),
    [
        (1.0, "list fewer market.symbols"),
        (100.0, "lower it, and the --speed of tracepaper exchange"),
    ],
)
async def test_a_machine_that_reads_frames_late_says_so_and_what_to_do_once_a_minute(
    time_scale: float, message: str
) -> None:
    maintenance, clock = maintaining(quoted(), time_scale=time_scale)
    with capture_logs() as lines:
        for _ in range(130 * 20):  # 130 s of frames that are 6 s old
            clock.advance(network_s=0.05, market_ms=int(50 * time_scale))
            maintenance.observe(clock.market_ms() - int(6_000 * time_scale))
    assert [line["event"] for line in lines] == ["behind"] * 3
    assert lines[0]["reason"] == "frames are read 6 s after they were sent"
    assert message in lines[0]["advice"]
    assert "too slow for 1 symbol" in lines[0]["advice"]


async def test_what_is_overdue_is_so_in_the_time_of_the_frames() -> None:
    maintenance, clock = maintaining(quoted(), time_scale=100.0)
    clock.advance(market_ms=1_000_000)
    assert maintenance.lag.frames_ms() == clock.market_ms(), "nothing was read"
    maintenance.observe(START_MS + 800_000)
    assert maintenance.lag.frames_ms() == START_MS + 800_000
    maintenance.observe(START_MS + 700_000)
    assert maintenance.lag.frames_ms() == START_MS + 800_000, "a delayed frame says nothing"
    clock.advance(network_s=1.1)
    assert maintenance.lag.frames_ms() == clock.market_ms(), "a silent stream is asked for"
    maintenance.observe(START_MS + 900_001)
    assert maintenance.lag.frames_ms() == clock.market_ms(), "a second is no delay"


async def asked_after(frame_ms: int, polls: int) -> bool:
    """Return whether an overdue bar is requested while frames dated *frame_ms* arrive."""
    clock = JumpClock(START_MS + 200_000)
    state = quoted()
    maintenance = FeedMaintenance(
        client=TellingClient(clock, ()),
        clock=clock,
        exchange=exchange_section(),
        states={state.instrument.id: state},
        queue=EventQueue(10),
        spawn=lambda work: work.close(),
    )
    running = asyncio.create_task(maintenance.run())
    while len(clock.slept) < polls:
        maintenance.observe(frame_ms)
        await asyncio.sleep(0)
    running.cancel()
    return not state.claim_request()


@pytest.mark.parametrize(("frame_ms", "is_asked"), [(50_000, False), (66_000, True)])
async def test_a_bar_that_frames_may_still_bring_is_not_asked_for(
    frame_ms: int, *, is_asked: bool
) -> None:
    assert await asked_after(START_MS + frame_ms, polls=30) is is_asked


# ---------------------------------------------------------------- new filters


def test_a_coarser_tick_keeps_the_scales_of_the_run() -> None:
    kept = instrument(price_decimals=2, quantity_decimals=3)
    fresh = structs.replace(
        kept, price_decimals=1, tick_size=5, quantity_decimals=1, max_quantity=7, min_quantity=1
    )
    changed = rescaled(fresh, kept)
    assert (changed.price_decimals, changed.tick_size) == (2, 50)
    assert (changed.quantity_decimals, changed.max_quantity, changed.min_quantity) == (3, 700, 100)


def test_a_finer_tick_than_the_run_keeps_ends_it() -> None:
    kept = instrument(price_decimals=1)
    with pytest.raises(ConfigInvalid, match="finer steps"):
        rescaled(structs.replace(kept, price_decimals=2), kept)


def test_new_filters_keep_the_tiers_that_were_read_at_the_start() -> None:
    kept = structs.replace(instrument(), risk_tiers=(RiskTier(1_000, 50, 10_000, 0),))
    assert rescaled(instrument(), kept).risk_tiers == kept.risk_tiers
