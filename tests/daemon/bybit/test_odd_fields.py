"""Any other form of any field of a frame is read or rejected, and never ends the stream."""

from __future__ import annotations

from contextlib import suppress
from itertools import product

import pytest
from builders import instrument
from bybit_server import MINUTE, START_MS, book, kline, ticker
from hypothesis import given
from hypothesis import strategies as st
from odd_values import FORMS, odd, places, put, unstorable

from tracepaper.daemon.bybit.wire import ClosedCandles, Wire
from tracepaper.strategies.errors import MessageMalformed
from tracepaper.strategies.types.market import Category

BITCOIN = instrument(price_decimals=1, tick_size=1)
HOUR = 3_600_000
NOW_MS = START_MS + HOUR

FRAMES = {
    "kline": kline(START_MS),
    "book": book(NOW_MS),
    "ticker": ticker(NOW_MS, next_funding_ms=NOW_MS + HOUR),
    "trades": {
        "topic": "publicTrade.BTCUSDT",
        "type": "snapshot",
        "ts": NOW_MS,
        "data": [{"T": NOW_MS, "s": "BTCUSDT", "S": "Buy", "v": "1", "p": "100.5", "i": "a"}],
    },
    "acknowledgement": {"success": True, "ret_msg": "", "req_id": "linear-1", "op": "subscribe"},
}


@pytest.mark.parametrize("name", FRAMES)
def test_any_value_of_a_frame_in_any_form_is_read_or_refused(name: str) -> None:
    for at, form in product(places(FRAMES[name]), FORMS):
        frame = put(FRAMES[name], at, form)
        wire = Wire(category=Category.LINEAR, instruments=[BITCOIN], interval_ms=MINUTE)
        try:
            received = wire.receive(frame)
        except MessageMalformed:
            assert sum(wire.counters.values()) == 1
        else:
            assert not unstorable(received), frame


@given(data=st.data())
def test_a_connection_reads_on_whatever_forms_its_frames_have(data: st.DataObject) -> None:
    wire = Wire(
        category=Category.LINEAR,
        instruments=[BITCOIN],
        interval_ms=MINUTE,
        observe=lambda server_ms: server_ms <= NOW_MS,
    )
    for frame in data.draw(st.lists(st.one_of(*map(odd, FRAMES.values())), max_size=20)):
        with suppress(MessageMalformed):
            assert not unstorable(wire.receive(frame)), frame
    received = wire.receive(put(FRAMES["kline"], ("type",), '"snapshot"'))
    assert isinstance(received, ClosedCandles)
    assert len(received.bars) == 1
