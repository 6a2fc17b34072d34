"""A new kind of file or a new maker's layout is one entry, and is known everywhere at once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tracepaper.replay.archive import layouts, read_candles
from tracepaper.replay.archive.formats import FORMATS, Format, table_of_rows
from tracepaper.replay.archive.layouts import RawTable, Rows, TableHead
from tracepaper.strategies.errors import DataInvalid

T0 = 1_735_689_600_000
NAMES = ["open_time", "open", "high", "low", "close", "volume"]


def ledger_lines(path: Path, raw: bytes) -> RawTable:
    """Read ``time: open high low close volume``, one candle a line."""
    rows = [line.replace(":", " ").split() for line in raw.decode().splitlines()[1:]]
    return table_of_rows(path, rows, NAMES)


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> str:
    """Add a format by its one entry; return what a file of it holds."""
    entry = Format("Ledger", (".ledger",), ledger_lines, (b"LEDGER",))
    monkeypatch.setitem(FORMATS, "ledger", entry)
    rows = [f"{T0 + 60_000 * place}: 10 12.5 9 11 {place}" for place in range(5)]
    return "\n".join(["LEDGER 1", *rows])


def test_a_new_format_is_read_by_its_name_also_packed(tmp_path: Path, ledger: str) -> None:
    plain, packed = tmp_path / "BTCUSDT_1m.ledger", tmp_path / "BTCUSDT_1m.ledger.gz"
    plain.write_text(ledger)
    packed.write_bytes(gzip.compress(ledger.encode()))
    for path in (plain, packed):
        candles = read_candles(path)
        assert candles.open_time_ms.tolist() == [T0 + 60_000 * place for place in range(5)]
        assert candles.high.tolist() == [125] * 5
        assert candles.volume.tolist() == [0, 1, 2, 3, 4]


def test_what_is_refused_names_a_new_format(tmp_path: Path, ledger: str) -> None:
    path = tmp_path / "BTCUSDT.xls"
    path.write_text("1,2,3")
    with pytest.raises(DataInvalid, match=r"no known kind: rename it to one of .*csv.*, ledger "):
        read_candles(path)
    path.write_text(ledger)
    with pytest.raises(DataInvalid, match=r"is Ledger by its first bytes and \.xls by its name"):
        read_candles(path)
    path = tmp_path / "BTCUSDT.ledger"
    path.write_text("something else")
    with pytest.raises(DataInvalid, match="is not ledger although its name says so"):
        read_candles(path)


def kraken_head(rows: Rows) -> TableHead | None:
    """Name eight columns, the sixth of which is an average price."""
    return TableHead([*NAMES[:5], "vwap", "volume", "count"]) if len(rows[0]) == 8 else None


def test_a_new_makers_layout_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "BTCUSD_1m.csv"
    rows = [f"{T0 // 1000 + 60 * place},10,12,9,11,10.5,{place},7" for place in range(4)]
    path.write_text("\n".join(rows) + "\n")
    with pytest.raises(DataInvalid, match="has no header and 8 columns"):
        read_candles(path)
    monkeypatch.setattr(layouts, "HEADS", (*layouts.HEADS, kraken_head))
    candles = read_candles(path)
    assert candles.close.tolist() == [11] * 4
    assert candles.volume.tolist() == [0, 1, 2, 3]
    path = tmp_path / "BTCUSD_1m.json"
    path.write_text(json.dumps([[T0 + 60_000, 10, 12, 9, 11, 10.5, 3, 7]]))
    assert read_candles(path).volume.tolist() == [3]
