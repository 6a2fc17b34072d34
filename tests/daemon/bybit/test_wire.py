"""The reader of a connection turns frames into typed results or rejects them, and never fails."""

from __future__ import annotations

import json
import struct
from collections import Counter
from typing import Any

import pytest
from builders import instrument, present
from bybit_frames import recorded
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.daemon.bybit.wire import (
    Ack,
    BestQuotes,
    ClosedCandles,
    Pong,
    RefusedFrame,
    Ticker,
    Trades,
    UnreadFrame,
    Wire,
)
from tracepaper.strategies.errors import MessageMalformed
from tracepaper.strategies.types.market import Category, Quote, Side

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
        assert not isinstance(received, UnreadFrame)
        if isinstance(received, ClosedCandles):
            bars += received.bars
    confirmed = sum(frame.count(b'"confirm":true') for frame in frames)
    assert len(bars) == confirmed == 4
    assert {bar.instrument for bar in bars} == {f"linear:{symbol}" for symbol in DECIMALS}
    assert not wire.counters


def test_a_recorded_spot_session_is_read_completely() -> None:
    wire = spot()
    frames = recorded("spot_orderbook1_2025-06-13.jsonl.gz")
    assert kinds(wire, frames) == {"Ack": 6, "BestQuotes": 139}
    assert not wire.counters


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
        counts = {key: count for key, count in wire.counters.items() if "ahead" not in key}
        assert sum(count for key, count in counts.items() if "early" not in key) == 1


def ticker(kind: str, ts: int = 5, **fields: str) -> bytes:
    data = {"symbol": "BTCUSDT", **fields}
    return json.dumps({"topic": "tickers.BTCUSDT", "type": kind, "data": data, "ts": ts}).encode()


def test_a_delta_leaves_unsent_fields_as_they_were() -> None:
    wire = linear()
    wire.receive(ticker("snapshot", markPrice="100.5", indexPrice="99.5"))
    received = wire.receive(ticker("delta", 6, nextFundingTime="1000"))
    assert isinstance(received, Ticker)
    assert (present(received.mark).price, present(received.mark).market_ms) == (1005, 6)
    assert (present(received.mark).index, received.next_funding_ms) == (995, 1000)


def test_a_snapshot_forgets_what_came_before() -> None:
    wire = linear()
    wire.receive(ticker("snapshot", markPrice="100.5", indexPrice="99.5"))
    received = wire.receive(ticker("snapshot", markPrice="101", indexPrice=""))
    assert isinstance(received, Ticker)
    assert present(received.mark).index is None


def book(kind: str, bids: Any, asks: Any, *, ts: int = 5, u: int = 9) -> bytes:
    data = {"s": "BTCUSDT", "b": bids, "a": asks, "u": u, "seq": 1}
    frame = {"topic": "orderbook.1.BTCUSDT", "ts": ts, "type": kind, "data": data, "cts": ts}
    return json.dumps(frame).encode()


def quote_of(wire: Wire, frame: bytes) -> Quote | None:
    received = wire.receive(frame)
    assert isinstance(received, BestQuotes)
    return received.quote


def test_a_snapshot_replaces_the_whole_book() -> None:
    wire = linear()
    quote_of(wire, book("snapshot", [["100.0", "1"]], [["100.5", "2"]]))
    quote = present(quote_of(wire, book("snapshot", [["90.0", "3"]], [["90.10", "4"]])))
    assert (quote.bid, quote.bid_size, quote.ask, quote.ask_size) == (900, 3000, 901, 4000)


def test_deltas_insert_update_and_delete_levels_also_unknown_ones() -> None:
    wire = linear()
    quote_of(wire, book("snapshot", [["100.0", "1"]], [["100.5", "2"]]))
    quote = quote_of(wire, book("delta", [["100.1", "5"], ["7.0", "0"]], [["100.5", "0"]]))
    assert quote is None
    quote = present(quote_of(wire, book("delta", [], [["100.4", "1"]])))
    assert (quote.bid, quote.ask) == (1001, 1004)


def test_update_one_is_a_snapshot_after_a_restart_of_the_service() -> None:
    wire = linear()
    quote_of(wire, book("snapshot", [["100.0", "1"]], [["100.5", "2"]]))
    quote = present(quote_of(wire, book("delta", [["50.0", "1"]], [["50.5", "1"]], u=1)))
    assert (quote.bid, quote.ask) == (500, 505)


def test_trades_are_read_with_the_takers_side() -> None:
    trade = {"T": 4, "s": "BTCUSDT", "S": "Sell", "v": "0.001", "p": "100.5", "i": "a-b"}
    frame = {"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": 5, "data": [trade]}
    received = linear().receive(json.dumps(frame).encode())
    assert isinstance(received, Trades)
    (taker,) = received.trades
    assert (taker.side, taker.price, taker.trade_id, taker.market_ms) == (Side.SELL, 1005, "a-b", 4)
    frame["data"] = [{**trade, "S": "Both"}]
    with pytest.raises(MessageMalformed, match="not Buy or Sell"):
        linear().receive(json.dumps(frame).encode())


# ---------------------------------------------------------------- frames that cannot be true

NOW = 1_786_310_820_441
OPEN = 1_786_310_760_000


def closed(**changes: Any) -> dict[str, Any]:
    """Return the closed candle of the minute before ``NOW``."""
    prices = dict.fromkeys(("open", "close", "high", "low", "turnover"), "5")
    times = {"start": OPEN, "end": OPEN + MINUTE - 1, "timestamp": NOW}
    return times | prices | {"interval": "1", "volume": "1", "confirm": True} | changes


def moved(by_ms: int, **changes: Any) -> dict[str, Any]:
    return closed(start=OPEN + by_ms, end=OPEN + by_ms + MINUTE - 1, **changes)


def klines(*candles: dict[str, Any], ts: int = NOW, topic: str = "kline.1.BTCUSDT") -> bytes:
    return json.dumps({"topic": topic, "data": candles, "ts": ts, "type": "snapshot"}).encode()


def trades(ts: int = NOW, **changes: Any) -> bytes:
    row = {"T": ts, "s": "BTCUSDT", "S": "Buy", "v": "1", "p": "5", "i": "a", **changes}
    frame = {"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": ts, "data": [row]}
    return json.dumps(frame).encode()


def believing(latest_ms: int = NOW + 2_000) -> tuple[Wire, list[int], list[tuple[str, str]]]:
    """Return a wire that accepts dates up to *latest_ms*, with its dates and rejections."""
    times: list[int] = []
    refusals: list[tuple[str, str]] = []

    def observe(server_ms: int) -> bool:
        if server_ms > latest_ms:
            return False
        times.append(server_ms)
        return True

    wire = Wire(
        category=Category.LINEAR,
        instruments=[instrument(price_decimals=1, quantity_decimals=3)],
        interval_ms=MINUTE,
        observe=observe,
        refused=lambda kind, sentence: refusals.append((kind, sentence)),
    )
    return wire, times, refusals


HOUR = 3_600_000
BAD_LEVELS = [[str(price), "1"] for price in range(1, 1_002)]
IMPOSSIBLE = {
    "a closed candle off its grid": ("off_grid.kline", klines(moved(7_000), ts=NOW + 7_000)),
    "one a millisecond off": ("off_grid.kline", klines(moved(-1))),
    "one of another length": ("contradictory.kline", klines(closed(end=OPEN + 5 * MINUTE - 1))),
    "one of another interval": ("contradictory.kline", klines(closed(interval="5"))),
    "one whose low is above its high": ("contradictory.kline", klines(closed(low="6"))),
    "two closes of one start": ("double.kline", klines(closed(), closed(high="6", close="6"))),
    "closed and open at once": ("double.kline", klines(closed(), closed(confirm=False))),
    "a book of another symbol": (
        "foreign.orderbook",
        book("snapshot", [["1.0", "1"]], [["2.0", "1"]]).replace(b'"s": "BTC', b'"s": "ETH'),
    ),
    "a ticker of another symbol": ("foreign.tickers", ticker("snapshot", symbol="ETHUSDT")),
    "a trade of another symbol": ("foreign.publicTrade", trades(s="ETHUSDT")),
    "a crossed book": ("crossed.orderbook", book("snapshot", [["2.0", "1"]], [["1.0", "1"]])),
    "bids without end": ("deep.orderbook", book("snapshot", BAD_LEVELS, [["2.0", "1"]])),
    "asks without end": ("deep.orderbook", book("snapshot", [["2.0", "1"]], BAD_LEVELS)),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_frame_that_cannot_be_true_is_refused_counted_and_told(name: str) -> None:
    fault, frame = IMPOSSIBLE[name]
    wire, _, refusals = believing()
    with pytest.raises(MessageMalformed):
        wire.receive(frame)
    assert wire.counters == {fault: 1}
    ((kind, sentence),) = refusals
    assert kind == fault
    assert sentence.endswith(".")


AHEAD = {
    "kline": klines(moved(HOUR), ts=NOW + HOUR),
    "orderbook": book("snapshot", [["1.0", "1"]], [["2.0", "1"]], ts=NOW + 50 * MINUTE),
    "tickers": ticker("snapshot", NOW + 50 * MINUTE, markPrice="5"),
    "publicTrade": trades(NOW + 50 * MINUTE),
}


@pytest.mark.parametrize("kind", AHEAD)
def test_a_frame_dated_ahead_is_refused_whole_whatever_its_kind(kind: str) -> None:
    wire, times, refusals = believing()
    assert wire.receive(AHEAD[kind]) == RefusedFrame()
    assert wire.counters == {f"ahead.{kind}": 1}
    assert not times
    assert [what for what, _ in refusals] == [f"ahead.{kind}"]


def test_what_a_frame_holds_may_not_be_dated_ahead_of_it_either() -> None:
    wire, times, _ = believing()
    assert wire.receive(trades(T=NOW + HOUR)) == RefusedFrame()
    forged = json.loads(book("snapshot", [["1.0", "1"]], [["2.0", "1"]], ts=NOW))
    assert wire.receive(json.dumps({**forged, "cts": NOW + HOUR}).encode()) == RefusedFrame()
    assert not times
    received = wire.receive(klines(moved(HOUR)))  # its frame is dated now
    assert received == ClosedCandles([])
    assert wire.counters == {"ahead.publicTrade": 1, "ahead.orderbook": 1, "ahead.kline": 1}


def test_a_ticker_dated_ahead_changes_nothing_that_later_ones_build_on() -> None:
    wire, _, _ = believing()
    wire.receive(ticker("snapshot", NOW, markPrice="5", indexPrice="6"))
    wire.receive(ticker("snapshot", NOW + HOUR, markPrice="9", indexPrice="5"))
    received = wire.receive(ticker("delta", NOW + 1, lastPrice="5"))
    assert isinstance(received, Ticker)
    assert (present(received.mark).price, present(received.mark).index) == (50, 60)


def test_a_funding_time_more_than_a_day_ahead_is_not_announced() -> None:
    wire, _, refusals = believing()
    for ahead_ms, is_known in ((8 * HOUR, True), (24 * HOUR, True), (24 * HOUR + 1, False)):
        received = wire.receive(ticker("snapshot", NOW, nextFundingTime=str(NOW + ahead_ms)))
        assert isinstance(received, Ticker)
        assert (received.next_funding_ms is not None) == is_known
    assert [kind for kind, _ in refusals] == ["ahead.funding"]


@pytest.mark.parametrize(
    ("early_ms", "is_closed"), [(28_000, False), (1_001, False), (1_000, True)]
)
def test_a_candle_closes_no_more_than_a_second_before_its_close(
    early_ms: int, *, is_closed: bool
) -> None:
    wire, times, _ = believing()
    ts = OPEN + MINUTE - early_ms
    received = wire.receive(klines(closed(), ts=ts))
    assert isinstance(received, ClosedCandles)
    assert bool(received.bars) == is_closed
    assert times == [ts]
    assert wire.counters == ({} if is_closed else {"early.kline": 1})


def test_an_early_candle_does_not_cost_the_closed_one_beside_it() -> None:
    wire, _, _ = believing()
    received = wire.receive(klines(closed(), moved(MINUTE)))
    assert isinstance(received, ClosedCandles)
    assert [bar.open_time_ms for bar in received.bars] == [OPEN]
    assert wire.counters == {"early.kline": 1}


@pytest.mark.parametrize(
    ("candles", "opens"),
    [
        ((closed(confirm=False),), []),
        ((closed(), moved(MINUTE, confirm=False)), [OPEN]),  # both candles of a close
    ],
)
def test_only_closed_candles_become_bars(
    candles: tuple[dict[str, Any], ...], opens: list[int]
) -> None:
    wire, _, _ = believing()
    received = wire.receive(klines(*candles))
    assert isinstance(received, ClosedCandles)
    assert [bar.open_time_ms for bar in received.bars] == opens
    assert not wire.counters


def levels_held(wire: Wire) -> int:
    return sum(len(book.bids) + len(book.asks) for book in wire._books.values())  # noqa: SLF001


def test_a_book_never_holds_more_than_its_bound_and_asks_for_a_snapshot() -> None:
    wire, _, _ = believing()
    topic = "orderbook.1.BTCUSDT"
    wire.receive(book("snapshot", [["1.0", "1"]], [["90000.0", "1"]]))
    for first in range(2, 40_000, 1_000):  # deltas that grow the book slowly
        bids = [[str(price), "1"] for price in range(first, first + 999)]
        try:
            wire.receive(book("delta", bids, []))
        except MessageMalformed:
            assert topic in wire.stale_topics
        assert levels_held(wire) <= 2_000
    assert wire.counters["deep.orderbook"] == 1
    assert wire.counters["unknown.orderbook"] == 38
    received = wire.receive(book("snapshot", [["1.0", "1"]], [["2.0", "1"]]))
    assert isinstance(received, BestQuotes)
    assert received.quote is not None
    assert not wire.stale_topics


def test_a_refused_delta_leaves_no_half_of_itself_and_drops_the_book() -> None:
    wire, _, _ = believing()
    for bad in ([["1.1", "1"], ["1.2", "x"]], [["1.1", "1"], ["1.25", "1"]], [["3.0", "1"]]):
        wire.receive(book("snapshot", [["1.0", "1"]], [["2.0", "1"]]))
        with pytest.raises(MessageMalformed):
            wire.receive(book("delta", bad, []))
        assert levels_held(wire) == 0
        assert wire.stale_topics == {"orderbook.1.BTCUSDT"}
        assert isinstance(wire.receive(book("delta", [["1.0", "1"]], [])), UnreadFrame)


def test_a_refused_ticker_drops_what_its_deltas_would_build_on() -> None:
    wire, _, _ = believing()
    wire.receive(ticker("snapshot", markPrice="100.5"))
    with pytest.raises(MessageMalformed):
        wire.receive(ticker("delta", markPrice="x"))
    assert wire.stale_topics == {"tickers.BTCUSDT"}
    assert isinstance(wire.receive(ticker("delta", nextFundingTime="1000")), UnreadFrame)


@pytest.mark.parametrize("kind", ["snapshot", "delta"])
def test_of_frames_dated_ahead_a_delta_alone_drops_the_book(kind: str) -> None:
    wire, _, _ = believing()
    topic = "orderbook.1.BTCUSDT"
    quote_of(wire, book("snapshot", [["1.0", "1"]], [["2.0", "1"]]))
    ahead = wire.receive(book(kind, [["1.1", "1"]], [["2.1", "1"]], ts=NOW + 2_001))
    assert isinstance(ahead, RefusedFrame)
    is_dropped = kind == "delta"
    assert (wire.last_update(topic) is not None, wire.stale_topics) == (
        not is_dropped,
        {topic} if is_dropped else set(),
    )


def test_a_delta_without_its_snapshot_has_one_asked_for() -> None:
    wire, _, refusals = believing()
    assert isinstance(wire.receive(book("delta", [["1.0", "1"]], [])), UnreadFrame)
    assert isinstance(wire.receive(ticker("delta", markPrice="5")), UnreadFrame)
    assert wire.stale_topics == {"orderbook.1.BTCUSDT", "tickers.BTCUSDT"}
    assert [kind for kind, _ in refusals] == ["unknown.orderbook", "unknown.tickers"]


def test_two_depths_of_one_symbol_are_two_books() -> None:
    wire, _, _ = believing()
    deep = book("snapshot", [["1.0", "1"]], [["9.0", "1"]]).replace(b"book.1.", b"book.50.")
    quote_of(wire, book("snapshot", [["4.0", "1"]], [["5.0", "1"]]))
    quote_of(wire, deep)
    quote = present(quote_of(wire, book("delta", [["4.5", "1"]], [])))
    assert (quote.bid, quote.ask) == (45, 50)


def deep(kind: str, u: int, bids: Any = (), asks: Any = ()) -> bytes:
    return book(kind, bids, asks, u=u).replace(b"book.1.", b"book.50.")


def test_a_frame_of_a_deep_book_that_does_not_follow_drops_it() -> None:
    topic = "orderbook.50.BTCUSDT"
    for skipped in (9, 10, 12):
        wire, _, refusals = believing()
        quote_of(wire, deep("snapshot", 10, [["1.0", "1"]], [["2.0", "1"]]))
        with pytest.raises(MessageMalformed, match=f"Frame {skipped} of .* does not follow 10; "):
            wire.receive(deep("delta", skipped, [["1.2", "1"]]))
        assert [kind for kind, _ in refusals] == ["skipped.orderbook"]
        assert wire.stale_topics == {topic}
        assert wire.last_update(topic) is None
        assert isinstance(wire.receive(deep("delta", skipped + 1, [["1.2", "1"]])), UnreadFrame)
        quote_of(wire, deep("snapshot", 40, [["1.0", "1"]], [["2.0", "1"]]))
        quote_of(wire, deep("delta", 41, [["1.1", "1"]]))
        assert wire.last_update(topic) is not None


def test_a_book_of_so_many_levels_stands_from_the_touch_outwards() -> None:
    wire, _, _ = believing()
    topic = "orderbook.50.BTCUSDT"
    assert wire.depth(topic, 2, 7) is None
    bids = [["1.0", "1"], ["1.2", "3"], ["1.1", "2"]]
    quote_of(wire, deep("snapshot", 10, bids, [["2.0", "4"]]))
    depth = present(wire.depth(topic, 2, 7))
    assert (depth.instrument, depth.market_ms, depth.seen_ms) == ("linear:BTCUSDT", 5, 7)
    assert list(struct.iter_unpack("<qq", depth.bids)) == [(12, 3_000), (11, 2_000)]
    assert list(struct.iter_unpack("<qq", depth.asks)) == [(20, 4_000)]
    quote_of(wire, deep("delta", 11, [], [["2.0", "0"]]))
    assert wire.depth(topic, 2, 7) is None
    assert wire.last_update(topic) is not None


def test_topics_that_nobody_knows_make_no_state() -> None:
    wire, _, _ = believing()
    for name in ("orderbook.7.BTCUSDT", "orderbook.x.y.BTCUSDT", "tickers.a.BTCUSDT"):
        frame = book("delta", [["1.0", "1"]], []).replace(b"orderbook.1.BTCUSDT", name.encode())
        assert isinstance(wire.receive(frame), UnreadFrame)
    assert levels_held(wire) == 0
    assert not wire.stale_topics


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


def test_strangers_are_counted_and_never_raise() -> None:
    wire = linear()
    for topic in ("liquidation.BTCUSDT", "kline.5.BTCUSDT", "tickers.NOSUCH", "..", "x" * 99):
        received = wire.receive(json.dumps({"topic": topic, "data": [], "ts": 1}).encode())
        assert isinstance(received, UnreadFrame)
    assert sum(wire.counters.values()) == 5
    assert set(wire.counters) <= {"unknown.other", "unknown.kline", "unknown.tickers"}
