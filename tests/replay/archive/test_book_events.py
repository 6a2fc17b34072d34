"""Recorded events: every frame as it came, gaps marked, nothing of a lost book kept."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from depth_cases import (
    AGAIN,
    BTC,
    FAULTS,
    FIRST_MS,
    GAPS,
    SESSION,
    Live,
    delta,
    recording,
    snapshot,
)
from exchange_client import candles, serving, walk_rows
from msgspec import structs
from programs import run
from waiting import until

from tracepaper.daemon.bybit.order_book import DepthRequest, EventReader
from tracepaper.replay.archive import recordings as module
from tracepaper.replay.archive.events import (
    EventsFile,
    EventsWriter,
)
from tracepaper.replay.archive.recordings import RecordingHeader, member
from tracepaper.replay.exchange.recorded import read_recording
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.market import Category

TOPICS = ("orderbook.50.BTCUSDT", "publicTrade.BTCUSDT")
HEADER = RecordingHeader(instrument=BTC, topics=TOPICS, source="frames", ahead_ms=600_000)
REQUEST = DepthRequest(Category.LINEAR, "BTCUSDT", 50, 1_000, events=True)


def trade(ts: int, price: str = "100.0") -> bytes:
    row = {"T": FIRST_MS + ts, "s": "BTCUSDT", "S": "Buy", "v": "0.1", "p": price, "i": f"id{ts}"}
    body = {"topic": TOPICS[1], "type": "snapshot", "ts": FIRST_MS + ts, "data": [row]}
    return json.dumps(body).encode()


def recorder_of(
    writer: EventsWriter, now: list[float], accepts: Callable[[int], bool]
) -> EventReader:
    def write(frame: bytes, _read: object, cause: str) -> None:
        writer.add(now[0], frame, cause)

    return EventReader(BTC, TOPICS, write, accepts=accepts)


def recorded(path: Path, frames: list[bytes]) -> list[tuple[str, bytes]]:
    """Record *frames*, each received 5 ms after its date; return the lines of the file."""
    with EventsWriter(path, HEADER) as writer:
        now = [0.0]
        taker = recorder_of(writer, now, lambda ms: ms <= now[0] + 1_000)
        for frame in frames:
            now[0] = max(now[0], json.loads(frame)["ts"] + 5) if frame[:1] == b"{" else now[0]
            taker.receive(frame)
    return [(line.cause, line.data.encode()) for line in EventsFile(path).lines()]


def session(*topics: str) -> list[str]:
    with gzip.open(SESSION, "rt") as file:
        entries = [json.loads(line) for line in file]
    frames = [entry["data"] for entry in entries if entry["t"] == "recv"]
    return [frame for frame in frames if json.loads(frame).get("topic") in topics]


# ---------------------------------------------------------------- what is kept


def test_a_session_is_kept_frame_by_frame_as_it_came(tmp_path: Path) -> None:
    words = ["data", "record", "BTCUSDT", "--events", "--from", str(SESSION), "--out", "a.events"]
    recording = run([*words, "--json"], tmp_path)
    assert recording.code == 0, recording.err
    sent = session("orderbook.200.BTCUSDT", "publicTrade.BTCUSDT")
    file = EventsFile(tmp_path / "a.events")
    assert [line.data for line in file.lines()] == sent
    totals = json.loads(recording.out)
    changes = [json.loads(frame)["data"] for frame in sent]
    books = [change for change in changes if isinstance(change, dict)]
    assert totals["changes"] == sum(len(book["b"]) + len(book["a"]) for book in books) > 500
    assert (
        totals["trades"] == sum(len(change) for change in changes if isinstance(change, list)) > 0
    )
    assert totals["frames"] == len(sent)
    assert totals["bytes_each"] == totals["bytes"] / (totals["changes"] + totals["trades"])
    again = run(words, tmp_path)
    assert (again.code, again.out) == (1, "")
    assert "and the next is of" in again.err


def test_samples_of_the_events_are_those_of_the_session(tmp_path: Path) -> None:
    record = ["data", "record", "BTCUSDT"]
    run([*record, "--events", "--from", str(SESSION), "--out", "a.events"], tmp_path)
    for source, out in ((str(SESSION), "a.depth"), ("a.events", "b.depth")):
        sampled = ["--from", source, "--every", "50", "--out", out]
        assert run([*record, *sampled], tmp_path).code == 0
    assert (tmp_path / "a.depth").read_bytes() == (tmp_path / "b.depth").read_bytes()


# ---------------------------------------------------------------- gaps

EVENT_GAPS = {name: gap for name, gap in GAPS.items() if gap[1] in {"sequence", "refused"}}


@pytest.mark.parametrize("name", EVENT_GAPS)
def test_a_gap_is_marked_and_no_frame_is_kept_before_a_snapshot(tmp_path: Path, name: str) -> None:
    after, cause = EVENT_GAPS[name]
    begun = [snapshot(0, 6), trade(50), delta(110, 7)]
    if b"snapshot" in after[0] or json.loads(after[0])["data"]["u"] == 1:
        lines = recorded(tmp_path / "a", [*begun, *after])
        assert lines == [
            *(("", frame) for frame in begun),
            (cause, b""),
            *(("", frame) for frame in after),
        ]
        return
    lines = recorded(tmp_path / "a", [*begun, after[0], delta(260, 90), trade(300), *AGAIN])
    assert [(why, body) for why, body in lines if why] == [(cause, b"")]
    kept = [body for why, body in lines if not why]
    assert kept == [*begun, trade(300), *AGAIN]
    (gap,) = EventsFile(tmp_path / "a").quality().gaps
    assert (gap.from_ms - FIRST_MS, gap.until_ms - FIRST_MS, gap.cause) == (115, 425, cause)


@pytest.mark.parametrize(
    "bad",
    [
        trade(200).replace(b'"Buy"', b'"Hold"'),
        trade(200, "1e5"),
        trade(200).replace(b'"s": "BTC', b'"s": "ETH'),
        trade(9_999_999),
        b"[" * 100_000,
        b"\xff",
    ],
    ids=["side", "price", "symbol", "ahead", "deep", "bytes"],
)
def test_a_lost_trade_is_a_gap_of_the_book_too(tmp_path: Path, bad: bytes) -> None:
    with EventsWriter(tmp_path / "a", HEADER) as writer:
        at = [FIRST_MS + 5.0]
        taker = recorder_of(writer, at, lambda ms: ms < at[0] + 1_000)
        taker.receive(snapshot(0, 7))
        at[0] += 200
        assert taker.receive(bad) is None
        assert taker.pop_stale_topics() == {TOPICS[0]}
        assert taker.pop_stale_topics() == set()
        taker.receive(delta(250, 8))
        at[0] += 300
        taker.receive(snapshot(400, 30))
    lines = [(line.cause, line.data.encode()) for line in EventsFile(tmp_path / "a").lines()]
    assert lines == [("", snapshot(0, 7)), ("refused", b""), ("", snapshot(400, 30))]


def test_other_topics_and_answers_are_left_out(tmp_path: Path) -> None:
    others = [b'{"success":true,"op":"subscribe"}', b'{"op":"pong"}', b'{"topic":"news","ts":1}']
    with EventsWriter(tmp_path / "a", HEADER) as writer:
        taker = recorder_of(writer, [1e12], lambda _: True)
        for frame in (*others, snapshot(0, 7), *others):
            taker.receive(frame)
    assert [line.data.encode() for line in EventsFile(tmp_path / "a").lines()] == [snapshot(0, 7)]


# ---------------------------------------------------------------- files


def test_a_torn_tail_is_cut_off_and_what_goes_on_begins_behind_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "a"
    first = [snapshot(0, 7), delta(100, 8)]
    recorded(path, first)
    whole = path.read_bytes()
    later = [snapshot(5_000, 20), trade(5_100)]
    recorded(path, later)
    longer = path.read_bytes()
    for size in range(len(whole) + 1, len(longer)):
        path.write_bytes(longer[:size])
        quality = EventsFile(path).quality()
        assert (quality.frames, quality.torn[:9]) == (2, "The last ")
        assert len(read_recording(path).frames(*TOPICS)) == 2
    lines = recorded(path, later)
    assert [why for why, _ in lines] == ["", "", "stopped", "", ""]
    assert path.read_bytes() == longer
    assert [gap.cause for gap in EventsFile(path).quality().gaps] == ["stopped"]


def test_a_long_file_goes_on_from_its_last_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    for start in range(0, 60_000, 5_000):
        recorded(path, [snapshot(start, 7), delta(start + 100, 8)])
    whole = path.read_bytes()
    block = len(whole) // 12
    recorded(path, [snapshot(90_000, 7)])
    longer = path.read_bytes()
    for newest in range(3 * block, len(whole), 37):
        monkeypatch.setattr(module, "NEWEST_BYTES", newest)
        path.write_bytes(longer[:-3])
        with EventsWriter(path, HEADER) as writer:
            assert "are no whole block" in writer.says
            assert writer.last_ms == FIRST_MS + 55_105
        assert path.read_bytes() == whole
    with EventsWriter(path, HEADER) as writer, pytest.raises(DataInvalid, match="give another"):
        writer.add(FIRST_MS + 55_105, snapshot(55_100, 9))


FORGED: dict[str, tuple[list[bytes], str]] = {
    "a frame taken out": ([snapshot(0, 7), delta(200, 9)], "9 of .* does not follow 7"),
    "a snapshot without a gap": ([snapshot(0, 7), snapshot(200, 99)], "does not follow"),
    "a crossed book": (
        [snapshot(0, 7), delta(100, 8, [["100.2", "1"]])],
        "bid of linear:BTCUSDT is not below its best ask",
    ),
    "a trade of the future": ([snapshot(0, 7), trade(3_001)], "it is dated 2,001 ms after"),
    "a topic that is not the file's": ([b'{"topic":"tickers.ETHUSDT","ts":1}'], "of no topic"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_file_is_refused_by_its_check(tmp_path: Path, name: str) -> None:
    frames, why = FORGED[name]
    path = tmp_path / "a"
    with EventsWriter(path, structs.replace(HEADER, ahead_ms=2_000)) as writer:
        for place, frame in enumerate(frames):
            writer.add(FIRST_MS + 1_000 * place, frame)
    with pytest.raises(DataInvalid, match=f"no recorder keeps: .*{why}"):
        EventsFile(path).quality()


@pytest.mark.parametrize("ahead_ms", [2_000, 600_000])
def test_a_file_is_read_by_the_limit_of_dates_that_it_was_recorded_by(
    tmp_path: Path, ahead_ms: int
) -> None:
    header = structs.replace(HEADER, ahead_ms=ahead_ms)
    for past_ms in (0, 1):
        path = tmp_path / f"{past_ms}"
        with EventsWriter(path, header) as writer:
            writer.add(FIRST_MS, snapshot(0, 7))
            writer.add(FIRST_MS + 500, delta(500 + ahead_ms + past_ms, 8))
        file = EventsFile(path)
        reads: list[Callable[[], Iterator[object]]]
        reads = [file.received, partial(file.standing, [FIRST_MS + 500])]
        for read in reads:
            if past_ms:
                with pytest.raises(DataInvalid, match=f"it is dated {ahead_ms + 1:,} ms after"):
                    list(read())
            else:
                assert list(read())
    before = structs.replace(header, ahead_ms=ahead_ms + 1)
    with pytest.raises(ConfigInvalid, match=r"exchange\.ahead_ms is .* lower it or give another"):
        EventsWriter(path, before)


@pytest.mark.parametrize("text", [b'{"t":"recv"}', b"[" * 100_000])
def test_lines_that_no_recorder_writes_are_named_by_their_block(
    tmp_path: Path, text: bytes
) -> None:
    path = tmp_path / "a"
    with EventsWriter(path, HEADER):
        pass
    path.write_bytes(path.read_bytes() + member(text))
    with pytest.raises(DataInvalid, match="holds no line of a session"):
        list(EventsFile(path).lines())


def test_a_file_has_one_symbol_one_depth_and_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with EventsWriter(path, HEADER), pytest.raises(ConfigInvalid, match="recorded to already"):
        EventsWriter(path, HEADER)
    other = structs.replace(HEADER, topics=("orderbook.200.BTCUSDT",))
    with pytest.raises(ConfigInvalid, match=r"holds orderbook\.50.* not orderbook\.200.*--out"):
        EventsWriter(path, other)
    for content in (
        b"",
        b"\x1f\x8b",
        member(b"{}"),
        member(b'{"version":2}'),
    ):
        path.write_bytes(content)
        with pytest.raises(DataInvalid, match="a"):
            EventsFile(path)


# ---------------------------------------------------------------- live


async def test_live_events_are_the_frames_of_another_client(tmp_path: Path) -> None:
    async with serving(candles(walk_rows(40)), start=3) as (exchange, client):
        live = Live(exchange, tmp_path / "a", REQUEST)
        await live.listening()
        async with client.stream() as stream:
            await stream.subscribe(*TOPICS)
            for _ in range(90):
                await exchange.advance(1_000)
            await stream.ask("ping")
        await live.end()
    heard = [text for text in stream.texts if json.loads(text).get("topic") in TOPICS]
    kept = [line.data for line in EventsFile(tmp_path / "a").lines()]
    assert kept == heard
    quality = EventsFile(tmp_path / "a").quality()
    assert (quality.gaps, quality.source, quality.trades > 0) == ((), "loopback", True)


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_goes_wrong_is_a_gap_after_which_books_are_right(
    tmp_path: Path, fault: str
) -> None:
    kind, _, form = fault.partition(" ")

    async def work(live: Live) -> None:
        await live.exchange.advance(20_000)
        topic = {} if kind == "wrong_frame" else {"topic": TOPICS[0]}
        live.exchange.arm(kind, form=form, **topic)
        for _ in range(40):
            await live.exchange.advance(1_000)
            # In all less than a subscription is given: a busy machine answers it in many turns.
            live.clock.advance(network_s=0.2)
            for _ in range(20):
                await asyncio.sleep(0)

    await recording(tmp_path / "a", work, request=REQUEST)
    quality = EventsFile(tmp_path / "a").quality()  # it checks every frame after the gap as well
    assert FAULTS[fault] in {gap.cause for gap in quality.gaps}
    assert quality.frames > 100


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
    (gap,) = EventsFile(tmp_path / "a").quality().gaps
    assert gap.cause == "disconnected"
