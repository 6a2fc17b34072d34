"""Recorded sessions are played verbatim, and the invented frames have the recorded form."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from exchange_client import MINUTE, Client, candles, serving, walk_rows

from tracepaper.replay.exchange.recorded import read_recording
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import Category

SESSION = Path(__file__).parents[3] / "replay/samples/linear_session_2026-08-09_short.jsonl.gz"
SPOT = Path(__file__).parents[2] / "data/bybit/spot_orderbook1_2025-06-13.jsonl.gz"


def received() -> list[str]:
    """Return the session's received texts in order."""
    with gzip.open(SESSION, "rt") as lines:
        entries = [json.loads(line) for line in lines]
    return [entry["data"] for entry in entries if entry["t"] == "recv"]


def recorded(topic: str) -> list[str]:
    return [text for text in received() if json.loads(text).get("topic") == topic]


@asynccontextmanager
async def playing() -> AsyncIterator[tuple[EmbeddedExchange, Client]]:
    settings = ExchangeSettings(frames=SESSION, manual=True)
    async with EmbeddedExchange(settings) as exchange, ClientSession() as session:
        yield exchange, Client(exchange, session)


async def test_frames_come_verbatim_and_in_order() -> None:
    topics = ["kline.1.BTCUSDT", "tickers.BTCUSDT", "orderbook.200.BTCUSDT", "publicTrade.ETHUSDT"]
    async with playing() as (exchange, client), client.stream() as stream:
        await stream.subscribe(*topics)
        await exchange.advance(MINUTE)
        await stream.ask("ping")
        wanted = [text for text in received() if json.loads(text).get("topic") in topics]
        assert stream.texts == wanted


async def test_a_late_client_is_sent_the_snapshot_and_every_delta_since() -> None:
    async with playing() as (exchange, client):
        await exchange.advance(10_000)
        async with client.stream() as stream:
            await stream.subscribe("tickers.BTCUSDT", "publicTrade.BTCUSDT")
            await stream.ask("ping")
            opening = list(stream.texts)
            await exchange.advance(MINUTE)
            await stream.ask("ping")
        tickers = recorded("tickers.BTCUSDT")
        assert opening == tickers[: len(opening)]
        assert [text for text in stream.texts if '"tickers' in text[:20]] == tickers
        assert len(opening) > 10


async def test_rest_knows_the_recorded_instruments_and_candles() -> None:
    async with playing() as (exchange, client):
        items = (await client.result("instruments-info", category="linear"))["list"]
        assert [item["symbol"] for item in items] == ["BTCUSDT", "ETHUSDT"]
        await exchange.advance(MINUTE)
        rows = (await client.result("kline", symbol="BTCUSDT", interval="1"))["list"]
        last = json.loads(recorded("kline.1.BTCUSDT")[-1])["data"][-1]
        assert rows[0][:5] == [
            str(last["start"]),
            last["open"],
            last["high"],
            last["low"],
            last["close"],
        ]
        assert len(rows) == 2
        assert (await client.get("time"))["time"] == exchange.clock.now_ms()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no received frame"),
        (b'{"t":"recv","ts":1}\n', "line 1"),
        (b'{"t":"connect"}\n{"t":"recv","ts":"x","data":"{\\"topic\\":\\"a\\"}"}\n', "line 2"),
        (b"nonsense", "line 1"),
        (b'{"t":"connect","addr":"/linear"}\n{"t":"connect","addr":"/spot"}\n', "linear and spot"),
    ],
)
def test_a_file_that_is_no_session_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "session.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataInvalid, match=why):
        read_recording(path)


async def test_frames_of_spot_announce_spot_and_list_the_instruments_of_their_topics() -> None:
    settings = ExchangeSettings(frames=SPOT, category=Category.SPOT, manual=True)
    async with EmbeddedExchange(settings) as exchange, ClientSession() as session:
        client = Client(exchange, session)
        document = exchange.announcement()
        assert document["categories"] == ["spot"]
        symbols = ["ARBUSDC", "CPOOLUSDT", "KCSUSDT", "MASAUSDT", "OPUSDC", "TUSDUSDT"]
        assert document["symbols"] == symbols
        listed = await client.result("instruments-info", category="spot")
        assert set(listed) == {"category", "list"}
        ticks = {item["symbol"]: item["priceFilter"]["tickSize"] for item in listed["list"]}
        assert list(ticks) == symbols
        assert (ticks["MASAUSDT"], ticks["KCSUSDT"]) == ("0.00001", "0.001")
        arb = {"category": "spot", "baseCoin": "ARB"}
        assert len((await client.result("instruments-info", **arb))["list"]) == 1
        assert (await client.result("instruments-info", category="linear"))["list"] == []
        async with client.stream("spot") as stream:
            assert (await stream.subscribe("orderbook.1.ARBUSDC"))["success"]
            await exchange.advance(MINUTE)
            frames = [text for text in (await stream.drain()) if text["topic"].endswith("ARBUSDC")]
    with gzip.open(SPOT, "rt") as lines:
        wanted = [line for line in lines if '"orderbook.1.ARBUSDC","ts"' in line]
    assert frames == [json.loads(text) for text in wanted]


def frames_of(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "session.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


BOOK = (
    '{"topic":"orderbook.1.ZZAUSDT","type":"snapshot","ts":1500,'
    '"data":{"s":"ZZAUSDT","b":[["0.5","7"]],"a":[]}}'
)


def test_a_session_is_read_out_of_a_zip_of_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "zzausdt-ob1.data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("zzausdt-ob1.data", f"{BOOK}\n")
    assert read_recording(path).symbols == ["ZZAUSDT"]


def test_a_linear_symbol_that_no_recording_knows_is_listed_from_its_prices(tmp_path: Path) -> None:
    recording = read_recording(frames_of(tmp_path, BOOK))
    (item,) = recording.instruments()
    assert (recording.category, item["symbol"]) == ("linear", "ZZAUSDT")
    assert item["priceFilter"]["tickSize"] == "0.1"


# ---------------------------------------------------------------- invented frames, recorded form


def form(value: Any) -> Any:
    """Return the keys in order and the kinds of values of a frame; lists by their first element."""
    if isinstance(value, dict):
        return [(name, form(each)) for name, each in value.items()]
    if isinstance(value, list):
        return [form(value[0])] if value else []
    return type(value).__name__


@pytest.mark.parametrize(
    ("topic", "kind"),
    [
        ("kline.1.BTCUSDT", "snapshot"),
        ("tickers.BTCUSDT", "snapshot"),
        ("orderbook.200.BTCUSDT", "snapshot"),
        ("publicTrade.BTCUSDT", "snapshot"),
    ],
)
async def test_linear_frames_have_the_recorded_keys_order_and_types(topic: str, kind: str) -> None:
    real = next(json.loads(t) for t in recorded(topic) if json.loads(t)["type"] == kind)
    async with serving(candles(walk_rows(60))) as (exchange, client), client.stream() as stream:
        await stream.subscribe(topic)
        await exchange.advance(2 * MINUTE)
        ours = next(frame for frame in await stream.drain() if frame["type"] == kind)
    assert form(ours) == form(real)
