"""A daemon records every frame beside its run; a fault there never stops the run."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from bybit_server import ScriptedServer, SteppedClock, exchange_section
from daemon_under_test import daemon as scripted_daemon
from depth_cases import BTC, FIRST_MS, delta, snapshot
from depth_cases import Live as ByHand
from exchange_client import Client, walk_rows
from exchange_client import candles as made_candles
from msgspec.structs import replace
from programs import run
from several_live import Live, trading
from structlog.testing import capture_logs
from waiting import until

from tracepaper.daemon.bybit.order_book import DepthRequest
from tracepaper.daemon.config.loading import load, restore
from tracepaper.daemon.http.client import ask
from tracepaper.daemon.session import background, processes
from tracepaper.replay.archive.download import record_live
from tracepaper.replay.archive.events import EventsFile, EventsWriter
from tracepaper.replay.archive.recordings import RecordingHeader
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.errors import ConfigInvalid, FeedLost
from tracepaper.strategies.types.market import Category

pytestmark = pytest.mark.sockets

SYMBOLS = ("BTCUSDT", "ETHUSDT")


@asynccontextmanager
async def venue() -> AsyncIterator[EmbeddedExchange]:
    served = tuple(made_candles(walk_rows(400), symbol=symbol) for symbol in SYMBOLS)
    settings = ExchangeSettings(candles=served, manual=True, start=200)
    async with EmbeddedExchange(settings) as exchange:
        yield exchange


def sections(folder: Path, **market: Any) -> dict[str, dict[str, Any]]:
    return {
        "exchange": {"time_scale": 1.0, "ahead_ms": 600_000, "backoff_max_s": 0.1},
        "market": {"symbols": list(SYMBOLS), "record_events": str(folder), **market},
        "strategy": {"name": "sma_cross", "fast": 3, "slow": 7},
        "model": {"checkpoint": "none"},
    }


def topics(symbol: str, depth: int = 200) -> tuple[str, str]:
    return f"orderbook.{depth}.{symbol}", f"publicTrade.{symbol}"


def listening_to(exchange: EmbeddedExchange, *names: str, times: int = 1) -> bool:
    heard = [topic for connection in exchange.hub.connections for topic in connection.topics]
    return all(heard.count(name) >= times for name in names)


async def recorded(live: Live, *names: str) -> None:
    await live.until(lambda: listening_to(live.exchange, *(names or topics("ETHUSDT"))))


def texts(path: Path) -> list[str]:
    return [line.data for line in EventsFile(path).lines() if not line.cause]


def gap_causes(path: Path) -> set[str]:
    return {gap.cause for gap in EventsFile(path).quality().gaps}


def begun_processes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the ids of the processes that begin from now on."""
    begun: list[int] = []
    popen: Any = subprocess.Popen

    def remembered(*words: Any, **options: Any) -> Any:
        process = popen(*words, **options)
        begun.append(process.pid)
        return process

    monkeypatch.setattr(subprocess, "Popen", remembered)
    return begun


# ---------------------------------------------------------------- like the command


async def test_a_daemon_keeps_what_the_command_by_hand_keeps(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    async with (
        venue() as exchange,
        ClientSession() as http,
        trading(exchange, tmp_path / "live.db", **sections(folder)) as live,
    ):
        await recorded(live, *topics("BTCUSDT"), *topics("ETHUSDT"))
        by_hand = ByHand(
            exchange,
            tmp_path / "hand.events",
            DepthRequest(Category.LINEAR, "BTCUSDT", 200, 1_000, events=True),
        )
        await until(lambda: listening_to(exchange, *topics("BTCUSDT"), times=2))
        client = Client(exchange, http)
        async with client.stream() as stream:
            await stream.subscribe(*topics("BTCUSDT"), *topics("ETHUSDT"))
            for _ in range(2):
                await live.close_bar(set(SYMBOLS))
            await stream.ask("ping")
        await by_hand.end()
        heard = [text for text in stream.texts if '"topic"' in text[:200]]
    for symbol in SYMBOLS:
        quality = EventsFile(folder / f"{symbol}.events").quality()
        assert (quality.gaps, quality.torn, quality.source) == ((), "", "loopback")
        assert quality.trades > 0
        sent = [text for text in heard if json.loads(text)["topic"] in topics(symbol)]
        # Each subscription gets its own snapshot: use the last one before time moved for both.
        kept = texts(folder / f"{symbol}.events")
        assert kept[-len(sent) + 1 :] == sent[1:]
        assert len(kept) == len(sent) > 200
    assert texts(tmp_path / "hand.events") == texts(folder / "BTCUSDT.events")
    hand, ours = (
        EventsFile(file) for file in (tmp_path / "hand.events", folder / "BTCUSDT.events")
    )
    # Each accepts dates as far ahead as its [exchange] allows.
    assert replace(hand.header, ahead_ms=ours.header.ahead_ms) == ours.header
    checked = run(["data", "check", str(folder / "BTCUSDT.events")], tmp_path)
    assert (checked.code, "changed levels" in checked.out) == (0, True)


async def test_a_lost_connection_and_a_killed_process_are_gaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "PAUSE_S", (0.01, 0.1))
    begun = begun_processes(monkeypatch)
    path = tmp_path / "BTCUSDT.events"
    async with (
        venue() as exchange,
        trading(exchange, tmp_path / "live.db", **sections(tmp_path, depth=10)) as live,
    ):
        await recorded(live, *topics("ETHUSDT", 50))
        await live.close_bar(set(SYMBOLS))
        cut = tuple(exchange.hub.connections)
        exchange.arm("disconnect")
        await exchange.advance(1_000)
        await live.until(lambda: not set(cut) & set(exchange.hub.connections))
        expected = ("orderbook.50.ETHUSDT",)  # of the daemon and of its recorder
        await live.until(
            lambda: (
                listening_to(exchange, *expected, times=2)
                and listening_to(exchange, *topics("ETHUSDT", 50), "kline.1.ETHUSDT")
            )
        )
        await live.close_bar(set(SYMBOLS))
        await live.until(lambda: gap_causes(path) == {"disconnected"})  # on the disk
        os.kill(begun[0], signal.SIGKILL)
        await live.until(lambda: len(begun) == 2 and not listening_to(exchange, *expected, times=2))
        await live.until(lambda: listening_to(exchange, *expected, times=2))
        await live.close_bar(set(SYMBOLS))
    assert gap_causes(path) == {"disconnected", "stopped"}
    assert EventsFile(path).quality().torn == ""


# ---------------------------------------------------------------- the end


async def heard_until_the_end(exchange: EmbeddedExchange, out: Path) -> list[str]:
    """Record a minute that the exchange sends at once, end at once; return what it sent."""
    request = DepthRequest(Category.LINEAR, "BTCUSDT", 200, 1_000, events=True)
    by_hand = ByHand(exchange, out, request)
    await until(lambda: listening_to(exchange, *topics("BTCUSDT")))
    async with ClientSession() as http, Client(exchange, http).stream() as stream:
        await stream.subscribe(*topics("BTCUSDT"))
        await exchange.advance(60_000)
        await by_hand.end()
        await stream.ask("ping")
        return [text for text in stream.texts if '"topic"' in text[:200]]


async def test_the_end_of_a_recording_waits_for_what_the_exchange_has_sent(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT.events"
    async with venue() as exchange:
        sent = await heard_until_the_end(exchange, path)
    assert len(sent) > 100
    assert texts(path)[1:] == sent[1:]  # each subscription has its own first snapshot


async def test_an_end_that_the_exchange_does_not_answer_says_that_the_last_frames_are_left(
    tmp_path: Path,
) -> None:
    path, clock = tmp_path / "BTCUSDT.events", SteppedClock()
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    request = DepthRequest(Category.LINEAR, "BTCUSDT", 200, 1_000, events=True)
    async with ScriptedServer() as server:
        section = exchange_section(
            rest_url=server.rest_url, stream_url=server.stream_url, data_watchdog_s=1e9
        )
        recording = asyncio.ensure_future(
            record_live(section, {path: request}, clock=clock, done=done)
        )
        await until(lambda: len(server.subscribed()) == 2)
        server.is_mute = True
        done.set_result(None)
        await clock.run(recording.done)
        with pytest.raises(FeedLost, match="before it had read the last frames"):
            await recording
    assert EventsFile(path).quality().torn == ""


async def test_a_recorder_that_is_silent_at_its_end_is_a_warning_of_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "RECORDED_S", 0.2)
    recorders = begun_processes(monkeypatch)
    with capture_logs() as lines:
        async with (
            venue() as exchange,
            trading(exchange, tmp_path / "live.db", **sections(tmp_path)) as live,
        ):
            await recorded(live)
            await live.close_bar(set(SYMBOLS))
            os.kill(recorders[0], signal.SIGSTOP)
    (line,) = [line for line in lines if line["event"] == "recording cut"]
    assert line["error"] == "the recording process did not end within 0.2 s"


# ---------------------------------------------------------------- full disk


async def test_a_full_disk_ends_no_run_and_tears_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("bash", "-c", 'ulimit -f 100; exec "$@"', "-", *processes.RECORD)
    monkeypatch.setattr(processes, "RECORD", small)
    async with (
        venue() as exchange,
        trading(exchange, tmp_path / "live.db", **sections(tmp_path)) as live,
    ):
        await recorded(live)
        status: dict[str, Any] = {"recording": {"error": ""}}
        while not status["recording"]["error"]:
            await live.close_bar(set(SYMBOLS))
            status = await asyncio.to_thread(ask, tmp_path / "live.db", "/status")
        await live.close_bar(set(SYMBOLS))  # and the run goes on
        assert "record" not in str(status["not_ready"])
    assert "(File too large)" in status["recording"]["error"]
    assert status["recording"]["faults"] >= 1
    for symbol in SYMBOLS:
        path = tmp_path / f"{symbol}.events"
        assert path.stat().st_size <= 100 * 1024
        assert (EventsFile(path).quality().torn, EventsFile(path).quality().frames > 0) == (
            "",
            True,
        )


def test_a_member_that_finds_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a"
    header = RecordingHeader(instrument=BTC, source="frames", topics=("orderbook.50.BTCUSDT",))
    with EventsWriter(path, header) as writer:
        size = path.stat().st_size
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, before[1]))
        try:
            with pytest.raises(OSError, match="File too large") as refused:
                writer.append(os.urandom(4_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (path.stat().st_size, refused.value.filename) == (size, str(path))


async def test_a_folder_that_takes_no_file_is_one_sentence_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path("/proc/1/nothing")):
        async with ScriptedServer() as server:
            with pytest.raises(ConfigInvalid, match=r"record_events: .*choose another place"):
                async with scripted_daemon(
                    server, tmp_path / "run.db", market={"record_events": str(folder)}
                ) as running:
                    await running.task
            assert not server.sockets


# ---------------------------------------------------------------- configuration and command


def test_recorded_events_decide_nothing() -> None:
    kept = load({"market": {"record_events": "events"}})
    assert kept.sha256() == load({}).sha256()
    assert kept.settings()["market"]["record_events"] == "events"
    again = restore(kept.canonical_json())
    assert again.market.record_events == Path("events")
    assert again.sha256() == kept.sha256()


def test_the_folder_is_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[market]\nrecord_events = "events"\n')
    assert processes.folder_of(load(tmp_path / "run.toml")) == tmp_path / "events"
    assert processes.folder_of(load({})) is None


def test_several_symbols_of_a_session_are_a_file_each(tmp_path: Path) -> None:
    with (tmp_path / "frames.jsonl").open("w") as session:
        for number, frame in enumerate((snapshot(0, 7), delta(100, 8), delta(200, 9))):
            for symbol in SYMBOLS:
                data = frame.replace(b"BTCUSDT", symbol.encode()).decode()
                at_s = FIRST_MS / 1000 + number
                session.write(json.dumps({"t": "recv", "conn": "1", "ts": at_s, "data": data}))
                session.write("\n")
    words = ["data", "record", *SYMBOLS, "--from", "frames.jsonl", "--out", "kept"]
    recording = run([*words, "--events", "--json"], tmp_path)
    assert recording.code == 0, recording.err
    assert [(row["instrument"], row["frames"]) for row in json.loads(recording.out)] == [
        (f"linear:{symbol}", 3) for symbol in SYMBOLS
    ]
    command = ["data", "record", "ETHUSDT", "--events", *words[4:6], "--out", "one.events"]
    assert run(command, tmp_path).code == 0
    assert (tmp_path / "kept/ETHUSDT.events").read_bytes() == (tmp_path / "one.events").read_bytes()
    refused = run(words, tmp_path)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "are for --events" in refused.err
