"""Every recorded body and documented example is read completely."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from bybit_frames import HERE

from tracepaper.daemon.bybit import messages
from tracepaper.daemon.bybit.client import decode_result


class InstrumentsInfo(msgspec.Struct, rename="camel"):
    """A page of instruments, each read at once; the product reads one by one."""

    rows: list[messages.InstrumentInfo] = msgspec.field(name="list")
    category: str = ""
    next_page_cursor: str = ""


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


def test_a_recorded_list_of_instruments_is_read_field_by_field() -> None:
    body = (HERE / "instruments_linear_2026-08-09.json").read_bytes()
    result, server_ms = decode_result(body, "instruments", InstrumentsInfo)
    source = json.loads(body)
    assert server_ms == source["time"]
    assert len(result.rows) == len(source["result"]["list"]) >= 10
    assert_kept(result, source["result"])
