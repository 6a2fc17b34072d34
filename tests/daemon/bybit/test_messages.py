"""Every recorded body and documented example is read completely."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from bybit_frames import CAMPAIGN, HERE, examples

from tracepaper.daemon.bybit import messages
from tracepaper.daemon.bybit.client import decode_result


class InstrumentsInfo(msgspec.Struct, rename="camel"):
    """A page of instruments, each read at once; the product reads one by one."""

    rows: list[messages.InstrumentInfo] = msgspec.field(name="list")
    category: str = ""
    next_page_cursor: str = ""


RESULTS: dict[str, type[msgspec.Struct]] = {
    "rest_time": messages.ServerTime,
    "rest_kline": messages.KlinePage,
    "rest_instruments_info": InstrumentsInfo,
    "rest_tickers": messages.Tickers,
    "rest_funding_history": messages.FundingHistory,
}
OTHER_SHAPES = ("rest_instruments_info_option",)  # no trade of ours: its filters have no notional


def kind_of(name: str) -> type[msgspec.Struct]:
    return max(
        ((prefix, kind) for prefix, kind in RESULTS.items() if name.startswith(prefix)),
        key=lambda entry: len(entry[0]),
    )[1]


def assert_kept(struct: Any, source: Any) -> None:
    """Every field that the struct declares and the source sends has the source's value."""
    fields = {info.name: info.encode_name for info in msgspec.structs.fields(struct)}
    for name, sent in fields.items():
        if sent not in source:
            continue
        value, original = getattr(struct, name), source[sent]
        if isinstance(value, msgspec.Struct):
            assert_kept(value, original)
        elif isinstance(value, list) and value and isinstance(value[0], msgspec.Struct):
            assert len(value) == len(original)
            for one, other in zip(value, original, strict=True):
                assert_kept(one, other)
        else:
            assert json.loads(msgspec.json.encode(value)) == original


@pytest.mark.skipif(not CAMPAIGN.exists(), reason="the examples of Bybit's documentation")
def test_documented_rest_examples_are_read_field_by_field() -> None:
    # The embedded exchange answers many more routes than the daemon asks.
    asked = {
        name: body
        for name, body in examples("rest_").items()
        if name.startswith(tuple(RESULTS)) and name not in OTHER_SHAPES
    }
    assert len(asked) >= len(RESULTS)
    for name, body in asked.items():
        result, server_ms = decode_result(body, name, kind_of(name))
        source = json.loads(body)
        assert server_ms == source["time"]
        assert_kept(result, source["result"])


def test_a_recorded_list_of_instruments_is_read_field_by_field() -> None:
    body = (HERE / "instruments_linear_2026-08-09.json").read_bytes()
    result, server_ms = decode_result(body, "instruments", InstrumentsInfo)
    source = json.loads(body)
    assert server_ms == source["time"]
    assert len(result.rows) == len(source["result"]["list"]) >= 10
    assert_kept(result, source["result"])


def test_requests_are_written_as_the_exchange_documents_them() -> None:
    assert messages.encode(messages.SocketRequest("ping")) == b'{"op":"ping"}'
    request = messages.SocketRequest("subscribe", "c1", ["kline.1.BTCUSDT", "publicTrade.BTCUSDT"])
    assert json.loads(messages.encode(request)) == {
        "op": "subscribe",
        "req_id": "c1",
        "args": ["kline.1.BTCUSDT", "publicTrade.BTCUSDT"],
    }
