"""Each thing that is wrong with a file is one sentence with file and line."""

from __future__ import annotations

import gzip
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from remedies import written_anew

from tracepaper.replay.archive import merge_candles, read_candles, read_funding
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, TracepaperError

HEADER = "open_time,open,high,low,close,volume"
T0 = 1_735_689_600_000


def row(index: int, rest: str) -> str:
    return f"{T0 + 60_000 * index},{rest}"


GOOD = [row(at, f"10,12,9,11.5,{at}") for at in range(6)]


def file(folder: Path, lines: list[str], name: str = "BTCUSDT.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def refusal(path: Path | str) -> str:
    with pytest.raises(TracepaperError) as caught:
        read_candles(path)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


BAD_ROWS = {
    "10,12,9,x,1": "close",
    "10,9,12,10,1": "high",
    "8,12,9,10,1": "open",
    "-10,12,-11,10,1": "open",
    "10,12,9,10,-1": "volume",
    "10,inf,9,10,1": "high",
    "10,12,9,10,": "volume",
    "10,12,9,10": "columns",
    '10,12,9,"10,5",1': "close",
}


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_bad_cell_is_named_by_file_and_line(tmp_path: Path, bad: str) -> None:
    path = file(tmp_path, [HEADER, *GOOD[:2], row(2, bad), *GOOD[3:]])
    sentence = refusal(path)
    assert sentence.startswith(f"{path}: line 4")
    assert BAD_ROWS[bad] in sentence
    assert "correct or remove the row" in sentence
    assert "--columns" not in sentence


def repeated(rest: str, header: str = HEADER) -> list[str]:
    return [header, *(row(at, rest) for at in range(6))]


REFUSED: dict[str, tuple[list[str], str]] = {
    "a bad time": ([HEADER, *GOOD[:2], "noon,10,12,9,11,1", *GOOD[3:]], "line 4: the open time"),
    "behind a comment and blank lines, which count": (
        ["# from a store", "", HEADER, GOOD[0], "", row(1, "10,12,9,x,1")],
        "line 6: close",
    ),
    "an unknown layout": ([f"{T0},1,2,3"], "4 columns without names"),
    "two columns of one name": ([HEADER.replace("low", "high"), *GOOD], "two columns high"),
    "repetitions that contradict": (
        [HEADER, *GOOD[:3], row(2, "10,12,9,11,2"), *GOOD[3:]],
        "line 5: contradicts line 4, which has the same open time 2025-01-01T00:02:00Z",
    ),
    "disorder": (
        [HEADER, GOOD[0], GOOD[2], GOOD[1], *GOOD[3:]],
        "line 4: the time goes back from 2025-01-01T00:02:00Z to 2025-01-01T00:01:00Z",
    ),
    "many rows off the grid": (
        [HEADER, *GOOD[:4], f"{T0 + 250_000},10,12,9,11,1"],
        "like 1 of 5 rows",
    ),
    "a column of words": (
        [HEADER, *(f"bar {at},10,12,9,11,1" for at in range(6))],
        "--columns open_time=NAME",
    ),
    "a column of other words": (repeated("10,12,9,x,1"), "--columns close=NAME"),
    "a cell that is too wide": ([f"{HEADER},symbol", *(f"{good},7" for good in GOOD[:5]), "1"], ""),
    "wide rows": ([HEADER, *(f"{good},7" for good in GOOD)], "rows of 7 columns below 6 names"),
    "wide quoted rows": ([HEADER, *(f'{good},"7"' for good in GOOD)], "rows of 7 columns"),
    "nothing": ([""], "is empty"),
    "a header alone": ([HEADER], "no rows"),
    "a comment alone": (["# nothing"], "is empty"),
    "several tickers of yfinance": (
        ["Price,Close,Close,High,High", "Ticker,A,B,A,B", "Date,,,,", "2025-01-01,1,2,1,2"],
        "",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_candles_is_refused(tmp_path: Path, what: str) -> None:
    lines, words = REFUSED[what]
    sentence = refusal(file(tmp_path, lines))
    assert any(word in sentence for word in words.split("|"))
    assert "--columns" not in sentence or "correct or remove the row" not in sentence


def test_equal_repetitions_are_dropped_and_said(tmp_path: Path) -> None:
    candles = read_candles(file(tmp_path, [HEADER, *GOOD[:3], GOOD[2], *GOOD[3:]]))
    assert (len(candles), candles.notes) == (6, ("1 equal repetitions dropped",))


def test_a_file_that_is_newest_first_is_turned_and_said(tmp_path: Path) -> None:
    turned = read_candles(file(tmp_path, [HEADER, *reversed(GOOD)]))
    assert turned.volume.tolist() == [0, 1, 2, 3, 4, 5]
    assert turned.notes == ("rows are newest first, turned",)


def test_a_few_rows_off_the_grid_are_dropped_and_said(tmp_path: Path) -> None:
    rows = [row(at, "10,12,9,11,1") for at in range(300)]
    rows[150] = f"{T0 + 60_000 * 150 + 28_000},10,12,9,11,1"
    candles = read_candles(file(tmp_path, [HEADER, *rows]))
    assert candles.gaps == [(T0 + 60_000 * 150, T0 + 60_000 * 151)]
    assert "1 candle off the grid dropped, the first at" in candles.notes[0]
    assert "line 152" in candles.notes[0]


PLAIN = ("\n".join([HEADER, *GOOD]) + "\n").encode()
CONTENTS = {
    "BTCUSDT_a.csv.gz": PLAIN,
    "BTCUSDT_b.csv": gzip.compress(PLAIN),
    "BTCUSDT_c.zip": gzip.compress(PLAIN),
    "BTCUSDT_d.parquet": PLAIN,
    "BTCUSDT_e.feather": b"PAR1" + PLAIN,
    "BTCUSDT_f.csv": b"\x28\xb5\x2f\xfd" + PLAIN,
    "BTCUSDT_g.xls": PLAIN,
    "BTCUSDT_h.csv.gz": gzip.compress(PLAIN)[:-12],
    "BTCUSDT_i.zip": b"PK\x03\x04" + b"x" * 40,
    "BTCUSDT_j.parquet": b"PAR1" + b"x" * 40,
    "BTCUSDT_k.csv": b"open_time,\0\0",
    "BTCUSDT_l.csv": b"open_time,\xe9\xff,b\n1,2,3\n",
    "BTCUSDT_m.csv": b"\n<!DOCTYPE html><title>404</title>",
    "BTCUSDT_n.csv.gz": gzip.compress(b"<html>"),
    "BTCUSDT_o.csv": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
    "BTCUSDT_p.csv": b'{"code": -1121}',
    "BTCUSDT_q.json": b'{"a": 1}',
    "BTCUSDT_r.json": b"[1, 2]",
    "BTCUSDT_s.json": b"[]",
    "BTCUSDT_t.json": json.dumps([[T0, 1, 2, 1, 2, 3], [T0, 1]]).encode(),
    "BTCUSDT_u.json": json.dumps([[T0, 1, 2, 1, None, 3]]).encode(),
    "BTCUSDT_v.json": b"[[1,",
    "BTCUSDT_w.json": b"[" * 100_000,
    "BTCUSDT_y.dat": PLAIN,
    "BTCUSDT_z.csv": b'open_time,open\n"' + b"1" * 200_000 + b'",1\n',
    "BTCUSDT_x.json": json.dumps({"a": [[T0, 1, 2, 1, 2, 3]], "b": [[T0, 1, 2, 1, 2, 3]]}).encode(),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_content_that_is_not_as_named_is_refused_by_the_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(CONTENTS[name])
    assert refusal(path).startswith(str(path))


RECORD = dict(zip(HEADER.split(","), (T0, 10, 12, 9, 11, 1), strict=True))
COLUMNS = {name: [value, value] for name, value in RECORD.items()} | {
    "open_time": [T0, T0 + 60_000]
}
FRAMES = {
    "rows of different lengths": ([[T0, 1, 1, 1, 1, 1], [T0, 1, 1, 1, 1]], "different columns"),
    "rows of different names": ([RECORD, {**RECORD, "v": 1}], "different columns"),
    "rows and records": ([RECORD, [T0, 1, 1, 1, 1, 1]], "different columns"),
    "records of other names": ([RECORD, {**dict.fromkeys("abcde"), "close": 1}], "different col"),
    "columns of different lengths": ({**COLUMNS, "low": [9]}, "different lengths"),
    "no rows": ({name: [] for name in COLUMNS}, "is empty"),
    "a time that is missing": (
        {**COLUMNS, "open_time": np.array([T0, "NaT"], "datetime64[ms]")},
        "row 2: the open time is empty",
    ),
    "a number that is too large": (
        {**COLUMNS, "volume": [1.0, 1e30]},
        "row 2: volume has more dig",
    ),
    "three dimensions": ({"BTCUSDT": np.zeros((2, 6, 2))}, "data is .*give a path, a frame"),
    "one column": ({"BTCUSDT": np.zeros(6)}, "data is .*give a path, a frame"),
    "nothing": ({"BTCUSDT": None}, "data is None; give a path, a frame"),
}


@pytest.mark.parametrize("what", FRAMES)
def test_data_in_memory_that_are_no_candles_are_refused(what: str) -> None:
    given, words = FRAMES[what]
    with pytest.raises(TracepaperError, match=words):
        read_candles(given, unnamed="BTCUSDT")


def test_a_zip_of_two_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", "x")
        archive.writestr("b.csv", "x")
    assert "holds 2 data files" in refusal(path)


def test_a_path_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "BTCUSDT.csv")
    assert "is no file" in refusal(tmp_path)
    assert "is no file" in refusal(Path("/dev/zero"))


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "BTCUSDT.parquet"
    path.write_bytes(b"PAR1xxxx")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigInvalid, match=r"BTCUSDT.parquet needs pyarrow: .*tracepaper\[data\]"):
        read_candles(path)


def test_overlapping_files_are_merged_once(tmp_path: Path) -> None:
    """Public reports: freqtrade#9751, #2892 and #7407, jesse#535, trading-strategy#179."""
    first = file(tmp_path, [HEADER, *GOOD[:4]], "BTCUSDT_a.csv")
    second = file(tmp_path, [HEADER, *(r + ".000" for r in GOOD[2:])], "BTCUSDT_b.csv")
    (candles,) = merge_candles([read_candles(second), read_candles(first)])
    assert candles.volume.tolist() == [0, 1, 2, 3, 4, 5]
    assert candles.gaps == []
    assert f"2 candles of {first} were already in {second}" in candles.notes


def test_contradicting_files_are_refused_with_both_names(tmp_path: Path) -> None:
    first = file(tmp_path, [HEADER, *GOOD[:4]], "BTCUSDT_a.csv")
    second = file(tmp_path, [HEADER, row(3, "10,12,9,11,3"), *GOOD[4:]], "BTCUSDT_b.csv")
    with pytest.raises(DataInvalid, match="contradict each other in close") as caught:
        merge_candles([read_candles(first), read_candles(second)])
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)
    assert "2025-01-01T00:03:00Z" in str(caught.value)


def test_files_of_two_intervals_of_one_symbol_are_refused(tmp_path: Path) -> None:
    first = file(tmp_path, [HEADER, *GOOD], "BTCUSDT_a.csv")
    second = file(tmp_path, [HEADER, *GOOD[::2]], "BTCUSDT_b.csv")
    with pytest.raises(DataInvalid, match="give files of one interval"):
        merge_candles([read_candles(first), read_candles(second)])


def test_funding_files_are_read_exactly_and_checked(tmp_path: Path) -> None:
    path = file(tmp_path, ["open_time,funding_rate", f"{T0},6.818e-05"], "BTCUSDT.csv")
    rates = read_funding(path)
    assert rates.rate.tolist() == [681_800]
    assert rates.instrument == "linear:BTCUSDT"
    twice = file(tmp_path, ["time,rate", f"{T0},0.0001", f"{T0},0.0002"], "BTCUSDT_b.csv")
    with pytest.raises(DataInvalid, match="line 3: contradicts another"):
        read_funding(twice)
    percent = file(tmp_path, ["time,rate", f"{T0},1.5"], "BTCUSDT_c.csv")
    with pytest.raises(DataInvalid, match="has funding rates of percent"):
        read_funding(percent)
    most = file(tmp_path, ["time,rate", *(f"{T0 + at},1.5" for at in range(3))], "BTCUSDT_e.csv")
    with pytest.raises(DataInvalid, match="has funding rates of percent"):
        read_funding(most)
    small = file(tmp_path, ["time,rate", *(f"{T0 + at},0.01" for at in range(3))], "BTCUSDT_d.csv")
    with pytest.raises(DataInvalid, match="has funding rates of percent"):
        read_funding(small)
    compact = file(
        tmp_path, ["20250101 00:00:00,0.0001", "20250101 08:00:00,-0.0002"], "BTCUSDT.csv"
    )
    with pytest.raises(DataInvalid, match="line 1: the time is not a time") as refused:
        read_funding(compact)
    assert read_funding(written_anew(str(refused.value))).rate.tolist() == [
        1_000_000,
        -2_000_000,
    ]


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("symbol,fundingTime,fundingRate,markPrice", "BTCUSDT,{0},0.0001,42000"),
        ("fundingRate,fundingTime,instId,instType,realizedRate", "9,{0},BTC-USDT-SWAP,SWAP,0.0001"),
    ],
)
def test_funding_is_read_as_binance_and_okx_name_it(header: str, line: str, tmp_path: Path) -> None:
    rates = read_funding(file(tmp_path, [header, line.format(T0)], "rates.csv"))
    assert (rates.symbol, rates.time_ms.tolist(), rates.rate.tolist()) == (
        "BTCUSDT",
        [T0],
        [1_000_000],
    )
