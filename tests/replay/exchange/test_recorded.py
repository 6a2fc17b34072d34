"""Recorded sessions are read, and the invented frames have the recorded form."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from exchange_client import MINUTE, candles, serving, walk_rows

from tracepaper.replay.exchange.recorded import read_recording
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.market import Category

SESSION = Path(__file__).parents[3] / "replay/samples/linear_session_2026-08-09_short.jsonl.gz"
SPOT = Path(__file__).parents[2] / "data/bybit/spot_orderbook1_2025-06-13.jsonl.gz"


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


def test_symbols_that_no_recording_knows_are_listed_from_their_prices(tmp_path: Path) -> None:
    spot = read_recording(SPOT, Category.SPOT)
    symbols = ["ARBUSDC", "CPOOLUSDT", "KCSUSDT", "MASAUSDT", "OPUSDC", "TUSDUSDT"]
    listed = [spot.instrument(symbol) for symbol in symbols]
    assert [item["symbol"] for item in listed] == symbols
    ticks = {item["symbol"]: item["priceFilter"]["tickSize"] for item in listed}
    assert (ticks["MASAUSDT"], ticks["KCSUSDT"]) == ("0.00001", "0.001")
    linear = read_recording(frames_of(tmp_path, BOOK))
    assert linear.category == "linear"
    assert linear.instrument("ZZAUSDT")["priceFilter"]["tickSize"] == "0.1"


def test_the_shallowest_book_that_is_deep_enough_is_chosen(tmp_path: Path) -> None:
    recording = read_recording(frames_of(tmp_path, BOOK, BOOK.replace("book.1.", "book.50.")))
    assert recording.book_topic("ZZAUSDT", 1) == "orderbook.1.ZZAUSDT"
    assert recording.book_topic("ZZAUSDT", 2) == "orderbook.50.ZZAUSDT"
    with pytest.raises(ConfigInvalid, match="holds 50 levels of ZZAUSDT; give --depth 50 or less"):
        recording.book_topic("ZZAUSDT", 51)
    with pytest.raises(DataInvalid, match="holds no order book of BTCUSDT, only of ZZAUSDT"):
        recording.book_topic("BTCUSDT", 1)


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
    assert read_recording(path).book_topic("ZZAUSDT", 1) == "orderbook.1.ZZAUSDT"


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
    with gzip.open(SESSION, "rt") as lines:
        entries = [entry for entry in map(json.loads, lines) if entry["t"] == "recv"]
    sent = [frame for frame in (json.loads(entry["data"]) for entry in entries) if "topic" in frame]
    real = next(frame for frame in sent if (frame["topic"], frame["type"]) == (topic, kind))
    async with serving(candles(walk_rows(60))) as (exchange, client), client.stream() as stream:
        await stream.subscribe(topic)
        await exchange.advance(2 * MINUTE)
        ours = next(frame for frame in await stream.drain() if frame["type"] == kind)
    assert form(ours) == form(real)
