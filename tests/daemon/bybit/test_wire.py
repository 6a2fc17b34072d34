"""The reader of a connection: real frames in, typed results out, and nothing worse than refusal."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from builders import instrument
from bybit_frames import campaign_frames, examples, recorded
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.daemon.bybit.wire import (
    Ack,
    Book,
    Candles,
    Pong,
    Ticker,
    Trades,
    Unknown,
    Wire,
)
from tracepaper.strategies.errors import MessageMalformed
from tracepaper.strategies.types import Category, Quote, Side

MINUTE = 60_000
DECIMALS = {"BTCUSDT": (1, 3), "ETHUSDT": (2, 2), "SOLUSDT": (2, 1), "DOGEUSDT": (5, 0)}
SPOT = ("OPUSDC", "TUSDUSDT", "KCSUSDT", "CPOOLUSDT", "ARBUSDC", "MASAUSDT")


def linear() -> Wire:
    return Wire(
        category=Category.LINEAR,
        instruments=[
            instrument(symbol, price_decimals=price, quantity_decimals=quantity)
            for symbol, (price, quantity) in DECIMALS.items()
        ],
        interval_ms=MINUTE,
    )


def spot() -> Wire:
    return Wire(
        category=Category.SPOT,
        instruments=[
            instrument(symbol, Category.SPOT, price_decimals=6, quantity_decimals=6)
            for symbol in SPOT
        ],
        interval_ms=MINUTE,
    )


def kinds(wire: Wire, frames: list[bytes]) -> Counter[str]:
    return Counter(type(wire.receive(frame)).__name__ for frame in frames)


def test_a_recorded_linear_session_is_read_completely() -> None:
    wire = linear()
    frames = recorded("linear_2026-08-09.jsonl.gz")
    bars = []
    for frame in frames:
        received = wire.receive(frame)
        assert not isinstance(received, Unknown)
        if isinstance(received, Candles):
            bars += received.bars
    confirmed = sum(frame.count(b'"confirm":true') for frame in frames)
    assert len(bars) == confirmed == 4
    assert {bar.instrument for bar in bars} == {f"linear:{symbol}" for symbol in DECIMALS}
    assert not wire.counters


def test_a_recorded_spot_session_is_read_completely() -> None:
    wire = spot()
    frames = recorded("spot_orderbook1_2025-06-13.jsonl.gz")
    assert kinds(wire, frames) == {"Ack": 6, "Book": 139}
    assert not wire.counters


def test_old_frames_of_mixed_sessions_are_read_or_counted() -> None:
    found: Counter[str] = Counter()
    for frame in recorded("mixed_2023-2025.jsonl"):
        wire = linear()  # each frame is of a session of its own
        found += kinds(wire, [frame])
        assert not [key for key in wire.counters if key.startswith("malformed")]
    assert found["Book"] >= 1
    assert found["Ticker"] >= 1
    assert sum(found.values()) == 13


def test_every_frame_of_the_campaign_is_read_without_a_refusal() -> None:
    wires: dict[str, Wire] = {}
    for name, frame in campaign_frames():
        if "_messages_" in name:
            wires.pop(name, None)  # each frame is of a session of its own
        wire = wires.setdefault(name, spot() if name.startswith("spot") else linear())
        wire.receive(frame)
        assert not [key for key in wire.counters if key.startswith("malformed")], name


def test_documented_frames_are_read_without_a_refusal() -> None:
    expected = {"ws_ack": Ack, "ws_pong": Pong, "ws_kline": Candles | Unknown}
    for name, frame in examples("ws_").items():
        if "subscribe" in name:
            continue  # what a client sends
        received = linear().receive(frame)
        for prefix, kind in expected.items():
            assert not name.startswith(prefix) or isinstance(received, kind)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_as_malformed(frame: bytes) -> None:
    wire = linear()
    try:
        wire.receive(frame)
    except MessageMalformed:
        assert sum(count for key, count in wire.counters.items() if "malformed" in key) == 1


FRAMES = [*recorded("linear_2026-08-09.jsonl.gz"), *recorded("mixed_2023-2025.jsonl")]


@given(
    frame=st.sampled_from(FRAMES),
    at=st.floats(0, 1),
    put=st.one_of(st.binary(max_size=4), st.sampled_from([b"null", b"-", b"[]", b'"', b"1e9"])),
    cut=st.integers(0, 8),
)
def test_a_damaged_frame_is_read_or_refused_as_malformed(
    frame: bytes, at: float, put: bytes, cut: int
) -> None:
    place = int(at * len(frame))
    wire = linear()
    try:
        wire.receive(frame[:place] + put + frame[place + cut :])
    except MessageMalformed:
        assert sum(count for key, count in wire.counters.items() if "malformed" in key) == 1


def ticker(kind: str, ts: int = 5, **fields: str) -> bytes:
    data = {"symbol": "BTCUSDT", **fields}
    return json.dumps({"topic": "tickers.BTCUSDT", "type": kind, "data": data, "ts": ts}).encode()


def test_a_delta_leaves_unsent_fields_as_they_were() -> None:
    wire = linear()
    wire.receive(ticker("snapshot", markPrice="100.5", fundingRate="0.0001"))
    received = wire.receive(ticker("delta", 6, nextFundingTime="1000"))
    assert isinstance(received, Ticker)
    assert received.mark is not None
    assert (received.mark.price, received.mark.market_ms) == (1005, 6)
    assert (received.funding_rate, received.next_funding_ms) == (1_000_000, 1000)


def test_a_snapshot_forgets_what_came_before() -> None:
    wire = linear()
    wire.receive(ticker("snapshot", markPrice="100.5", fundingRate="0.0001"))
    received = wire.receive(ticker("snapshot", markPrice="101", fundingRate=""))
    assert isinstance(received, Ticker)
    assert received.funding_rate is None


def test_a_delta_before_any_snapshot_is_not_believed() -> None:
    wire = linear()
    assert isinstance(wire.receive(ticker("delta", markPrice="100.5")), Unknown)
    assert wire.counters == {"unknown.tickers": 1}


def test_a_mark_finer_than_the_tick_is_rounded() -> None:
    received = linear().receive(ticker("snapshot", markPrice="65117.44"))
    assert isinstance(received, Ticker)
    assert received.mark is not None
    assert received.mark.price == 651174


def book(kind: str, bids: Any, asks: Any, *, ts: int = 5, u: int = 9) -> bytes:
    data = {"s": "BTCUSDT", "b": bids, "a": asks, "u": u, "seq": 1}
    frame = {"topic": "orderbook.1.BTCUSDT", "ts": ts, "type": kind, "data": data, "cts": ts}
    return json.dumps(frame).encode()


def quote_of(wire: Wire, frame: bytes) -> Quote | None:
    received = wire.receive(frame)
    assert isinstance(received, Book)
    return received.quote


def test_a_snapshot_replaces_the_whole_book() -> None:
    wire = linear()
    quote_of(wire, book("snapshot", [["100.0", "1"]], [["100.5", "2"]]))
    quote = quote_of(wire, book("snapshot", [["90.0", "3"]], [["90.10", "4"]]))
    assert quote is not None
    assert (quote.bid, quote.bid_size, quote.ask, quote.ask_size) == (900, 3000, 901, 4000)


def test_deltas_insert_update_and_delete_levels_also_unknown_ones() -> None:
    wire = linear()
    quote_of(wire, book("snapshot", [["100.0", "1"]], [["100.5", "2"]]))
    quote = quote_of(wire, book("delta", [["100.1", "5"], ["7.0", "0"]], [["100.5", "0"]]))
    assert quote is None
    quote = quote_of(wire, book("delta", [], [["100.4", "1"]]))
    assert quote is not None
    assert (quote.bid, quote.ask) == (1001, 1004)


def test_update_one_is_a_snapshot_after_a_restart_of_the_service() -> None:
    wire = linear()
    quote_of(wire, book("snapshot", [["100.0", "1"]], [["100.5", "2"]]))
    quote = quote_of(wire, book("delta", [["50.0", "1"]], [["50.5", "1"]], u=1))
    assert quote is not None
    assert (quote.bid, quote.ask) == (500, 505)


def test_a_crossed_book_is_refused() -> None:
    with pytest.raises(MessageMalformed, match="not below"):
        linear().receive(book("snapshot", [["100.5", "1"]], [["100.5", "2"]]))


def test_trades_are_read_with_the_takers_side() -> None:
    trade = {"T": 4, "s": "BTCUSDT", "S": "Sell", "v": "0.001", "p": "100.5", "i": "a-b"}
    frame = {"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": 5, "data": [trade]}
    received = linear().receive(json.dumps(frame).encode())
    assert isinstance(received, Trades)
    (one,) = received.trades
    assert (one.side, one.price, one.trade_id, one.market_ms) == (Side.SELL, 1005, "a-b", 4)
    frame["data"] = [{**trade, "S": "Both"}]
    with pytest.raises(MessageMalformed, match="not Buy or Sell"):
        linear().receive(json.dumps(frame).encode())


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (b'{"success":true,"ret_msg":"pong","conn_id":"x","op":"ping"}', Pong),
        (b'{"success":true,"ret_msg":"pong","conn_id":"x","req_id":"","op":"ping"}', Pong),
        (b'{"op":"pong","args":["1672916271846"]}', Pong),
        (b'{"success":true,"ret_msg":"","conn_id":"x","req_id":"c1","op":"subscribe"}', Ack),
        (b'{"success":false,"ret_msg":"args size >10","req_id":7,"op":"subscribe"}', Ack),
        (b'{"success":true,"data":{"failTopics":[]},"type":"COMMAND_RESP"}', Ack),
    ],
)
def test_control_frames_of_every_category_are_told_apart(frame: bytes, kind: type) -> None:
    assert isinstance(linear().receive(frame), kind)


def test_an_acknowledgement_keeps_its_words() -> None:
    frame = b'{"success":false,"ret_msg":"handler not found","req_id":"c9","op":"subscribe"}'
    assert linear().receive(frame) == Ack(ok=False, request_id="c9", message="handler not found")


def test_strangers_are_counted_and_never_raise() -> None:
    wire = linear()
    for topic in ("liquidation.BTCUSDT", "kline.5.BTCUSDT", "tickers.NOSUCH", "..", "x" * 99):
        received = wire.receive(json.dumps({"topic": topic, "data": [], "ts": 1}).encode())
        assert isinstance(received, Unknown)
    assert sum(wire.counters.values()) == 5
    assert set(wire.counters) <= {"unknown.other", "unknown.kline", "unknown.tickers"}


def test_key_order_does_not_matter() -> None:
    frame = (
        b'{"type":"snapshot","ts":1786310820441,"data":[{"confirm":true,"turnover":"241712.1394",'
        b'"volume":"3.712","low":"65114.2","high":"65119.9","close":"65114.2","open":"65119.9",'
        b'"interval":"1","end":1786310819999,"start":1786310760000,"timestamp":1786310820441}],'
        b'"topic":"kline.1.BTCUSDT"}'
    )
    received = linear().receive(frame)
    assert isinstance(received, Candles)
    assert [bar.close for bar in received.bars] == [651142]
