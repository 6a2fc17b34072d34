"""Books out of frames: the levels of a plain dictionary, gaps marked and never bridged."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bybit_server import ScriptedServer, SteppedClock, exchange_section
from depth_cases import (
    BTC,
    FAULTS,
    FIRST_MS,
    GAPS,
    REQUEST,
    SESSION,
    Live,
    delta,
    packed,
    plain_books,
    recorder,
    recording,
    snapshot,
)
from exchange_client import candles, serving, walk_rows
from waiting import deadline, until

from tracepaper.daemon.bybit.order_book import DepthRequest, DepthSampler
from tracepaper.replay.archive.books import read_depth
from tracepaper.replay.archive.download import record_live
from tracepaper.replay.archive.recordings import BooksFile
from tracepaper.strategies.errors import ConfigInvalid, FeedLost
from tracepaper.strategies.order_book import books_of, check_books
from tracepaper.strategies.types.market import Category, Depth

Depths = list[tuple[Depth, str]]


def sampled(frames: list[bytes], request: DepthRequest = REQUEST, **keys: Any) -> Depths:
    sink: Depths = []
    sampler = DepthSampler(BTC, request, lambda book, cause: sink.append((book, cause)), **keys)
    for frame in frames:
        sampler.receive(frame)
    return sink


def recorded() -> list[dict[str, Any]]:
    with gzip.open(SESSION, "rt") as file:
        entries = [json.loads(line) for line in file]
    frames = [json.loads(entry["data"]) for entry in entries if entry["t"] == "recv"]
    return [frame for frame in frames if frame.get("topic") == "orderbook.200.BTCUSDT"]


def levels(depths: Depths) -> dict[int, tuple[bytes, bytes]]:
    return {depth.seen_ms: (depth.bids, depth.asks) for depth, _ in depths}


def plainly(
    frames: list[dict[str, Any]], count: int, every_ms: int
) -> dict[int, tuple[bytes, bytes]]:
    books = plain_books(frames, count, every_ms)
    return {at_ms: (packed(bids), packed(asks)) for at_ms, (bids, asks) in books.items()}


@pytest.mark.parametrize(("count", "every_ms"), [(50, 100), (7, 30), (200, 250)])
def test_the_levels_of_recorded_frames_are_those_of_a_dictionary(count: int, every_ms: int) -> None:
    frames = recorded()
    assert len(frames) == 25
    request = DepthRequest(Category.LINEAR, "BTCUSDT", count, every_ms)
    depths = sampled(
        [json.dumps(frame).encode() for frame in frames], request, topic=frames[0]["topic"]
    )
    assert len(depths) > 8
    assert levels(depths) == plainly(frames, count, every_ms)
    assert [cause for _, cause in depths] == ["stopped"] + [""] * (len(depths) - 1)


def causes(frames: list[bytes]) -> list[tuple[int, str]]:
    """Return when books begin after a gap, and why."""
    return [(depth.seen_ms - FIRST_MS, cause) for depth, cause in sampled(frames) if cause]


def test_the_book_of_a_time_is_made_of_the_frames_until_then() -> None:
    depths = sampled(
        [
            snapshot(0, 7),
            delta(100, 8, [["100.0", "5"]]),
            delta(101, 9, [["100.0", "6"]]),
            delta(301, 10),
        ]
    )
    best = [
        (book.seen_ms - FIRST_MS, book.market_ms - FIRST_MS, book.bids[8:16]) for book, _ in depths
    ]
    size = {n: n.to_bytes(8, "little") for n in (1_000, 5_000, 6_000)}
    assert best == [
        (0, 0, size[1_000]),
        (100, 100, size[5_000]),
        (200, 101, size[6_000]),
        (300, 101, size[6_000]),
    ]


@pytest.mark.parametrize("name", GAPS)
def test_a_gap_is_marked_with_its_cause_and_never_bridged(name: str) -> None:
    after, cause = GAPS[name]
    begun = [snapshot(0, 6), delta(110, 7)]
    depths = sampled([*begun, *after])
    gaps = causes([*begun, *after])
    assert [why for _, why in gaps] == ["stopped", cause]
    resumed = gaps[1][0]
    times = [depth.seen_ms - FIRST_MS for depth, _ in depths]
    assert times == sorted(set(times))
    inside = json.loads(after[0])["ts"] - FIRST_MS
    assert not any(max(110, inside) < at_ms < resumed for at_ms in times)
    assert times[-1] == json.loads(after[-1])["ts"] - FIRST_MS - 100
    check_books(books_of([book for book, _ in depths], 50), name)


def test_a_frame_dated_ahead_is_a_gap() -> None:
    frames = [snapshot(0, 7), delta(250, 8), delta(10**9, 9), snapshot(300, 20), delta(700, 21)]
    depths = sampled(frames, accepts=lambda ms: ms < FIRST_MS + 10_000)
    assert [(depth.seen_ms - FIRST_MS, why) for depth, why in depths if why] == [
        (0, "stopped"),
        (300, "refused"),
    ]


def test_mutated_frames_raise_nothing_and_leave_possible_books() -> None:
    rng = random.Random(11)
    sent = [snapshot(0, 2)]
    for step in range(1, 60):
        price = f"{100 - rng.randint(1, 30) / 10:.1f}"
        sent.append(delta(step * 70, step + 2, [[price, str(rng.randint(0, 5))]]))
        if step % 10 == 0:
            sent[-1] = snapshot(step * 70, step + 2)
    assert causes(sent) == [(0, "stopped")]
    broken = 0
    for _ in range(200):
        mutated = [bytearray(frame) for frame in sent]
        for _ in range(rng.randint(1, 4)):
            frame = rng.choice(mutated)
            at = rng.randrange(len(frame))
            frame[at : at + rng.randint(0, 2)] = bytes(
                rng.choices(b'0123456789",[]{}.-eN\xff', k=1)
            )
        depths = sampled([bytes(frame) for frame in mutated])
        if not depths:
            continue
        check_books(books_of([book for book, _ in depths], 50), "mutated")
        steps = np.diff([depth.seen_ms for depth, _ in depths])
        marked = np.array([bool(cause) for _, cause in depths[1:]])
        assert (steps > 0).all()
        assert marked[steps != 100].all()
        broken += int(marked.sum())
    assert broken > 100


# ---------------------------------------------------------------- live


async def test_live_books_are_those_of_another_client(tmp_path: Path) -> None:
    async def work(live: Live) -> None:
        for _ in range(90):
            await live.exchange.advance(1_000)

    frames = await recording(tmp_path / "a", work)
    depth = read_depth(tmp_path / "a")
    plain = plainly(frames, 50, 100)
    assert len(plain) > 300
    books = depth.read_all()
    for row in range(len(books)):
        sides = zip(books.price[row], books.size[row], strict=True)
        kept = tuple(
            packed([(int(p), int(q)) for p, q in zip(*side, strict=True) if q]) for side in sides
        )
        assert kept == plain.get(int(books.seen_ms[row]), kept)
    assert set(plain) <= set(books.seen_ms.tolist())
    quality = BooksFile(tmp_path / "a").quality()
    assert (quality.gaps, quality.source, quality.instrument) == ((), "loopback", "linear:BTCUSDT")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"levels": 0}, "--depth is 0"),
        ({"levels": 1_001}, "--depth is 1001"),
        ({"every_ms": 9}, "--every is 9"),
    ],
)
def test_what_no_file_holds_is_refused(change: dict[str, int], sentence: str) -> None:
    plain: dict[str, Any] = {
        "category": Category.LINEAR,
        "symbol": "BTCUSDT",
        "levels": 5,
        "every_ms": 100,
    }
    with pytest.raises(ConfigInvalid, match=sentence):
        DepthRequest(**{**plain, **change})


@pytest.mark.sockets
async def test_a_stop_ends_in_order_and_what_goes_on_begins_behind_a_gap(tmp_path: Path) -> None:
    out = tmp_path / "a.depth"
    async with serving(candles(walk_rows(60)), start=3) as (exchange, client):
        before = DepthRequest(Category.LINEAR, "BTCUSDT", 20, 100)
        live = Live(exchange, out, before)
        await live.listening()
        await exchange.advance(30_000)
        await live.end()
        await until(lambda: not exchange.hub.connections)
        size = out.stat().st_size
        await exchange.advance(2_000)  # else the next snapshot would be of the last recorded second
        program = recorder(exchange, out)
        try:
            await until(lambda: any(connection.topics for connection in exchange.hub.connections))
            async with client.stream() as stream:
                await stream.subscribe("orderbook.50.BTCUSDT")
                for _ in range(30):
                    await exchange.advance(1_000)
                heard = [message["ts"] for message in await stream.drain() if "topic" in message]
            await until(lambda: out.stat().st_size > size)
        finally:
            program.process.send_signal(signal.SIGHUP)
            ended = await asyncio.to_thread(program.end)
    assert ended.code == 0, ended.err
    assert "1 gaps: " in ended.out
    quality_of_file = BooksFile(out).quality()
    assert [gap.cause for gap in quality_of_file.gaps] == ["stopped"]
    assert heard[0] < (quality_of_file.last_ms or 0) < heard[-1]


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_goes_wrong_is_a_gap_after_which_books_are_right(
    tmp_path: Path, fault: str
) -> None:
    kind, _, form = fault.partition(" ")
    path = tmp_path / "a"

    async def work(live: Live) -> None:
        await live.exchange.advance(20_000)
        topic = {} if kind == "wrong_frame" else {"topic": "orderbook.50.BTCUSDT"}
        live.exchange.arm(kind, form=form, **topic)
        async with deadline():
            while not BooksFile(path).quality().gaps:
                await live.exchange.advance(1_000)
                await asyncio.sleep(0.001)  # a new snapshot is on its way

    await recording(path, work)
    quality = BooksFile(path).quality()  # it checks the books after the gap as well
    assert FAULTS[fault] in {gap.cause for gap in quality.gaps}


@pytest.mark.sockets
async def test_a_lost_connection_is_a_gap(tmp_path: Path) -> None:
    async with serving(candles(walk_rows(40)), start=3) as (exchange, _):
        live = Live(exchange, tmp_path / "a", REQUEST)
        await live.listening()
        await exchange.advance(20_000)
        exchange.arm("disconnect")
        await exchange.advance(1_000)
        await until(lambda: not exchange.hub.connections)
        await live.listening(again=True)
        for _ in range(20):
            await exchange.advance(1_000)
        await live.end()
    (gap,) = BooksFile(tmp_path / "a").quality().gaps
    assert gap.cause == "disconnected"


@pytest.mark.sockets
async def test_the_end_of_a_recording_waits_for_what_the_exchange_has_sent(tmp_path: Path) -> None:
    """A minute of frames is sent at once, and the recording is ended at once."""
    async with serving(candles(walk_rows(400)), start=200) as (exchange, client):
        live = Live(exchange, tmp_path / "a", REQUEST)
        await live.listening()
        async with client.stream() as stream:
            await stream.subscribe("orderbook.50.BTCUSDT")
            await exchange.advance(60_000)
            await live.end()
            sent = [frame["ts"] for frame in await stream.drain() if "topic" in frame]
    assert len(sent) > 100
    last_ms = BooksFile(tmp_path / "a").quality().last_ms
    assert last_ms is not None
    assert 0 < sent[-1] - last_ms <= REQUEST.every_ms


@pytest.mark.sockets
async def test_an_end_that_the_exchange_does_not_answer_says_that_the_last_frames_are_left(
    tmp_path: Path,
) -> None:
    path, clock = tmp_path / "a", SteppedClock()
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with ScriptedServer() as server:
        section = exchange_section(
            rest_url=server.rest_url, stream_url=server.stream_url, data_watchdog_s=1e9
        )
        recorded_live = asyncio.ensure_future(
            record_live(section, REQUEST, path, clock=clock, done=done)
        )
        await until(lambda: len(server.subscribed()) == 1)
        server.is_mute = True
        done.set_result(None)
        await clock.run(recorded_live.done)
        with pytest.raises(FeedLost, match="before it had read the last frames"):
            await recorded_live
    assert BooksFile(path).quality().torn == ""
