"""Each thing that is wrong with a file is one sentence with file and line."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from tracepaper.replay.archive import merge_candles, read_candles, read_funding
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

HEADER = "open_time,open,high,low,close,volume"
T0 = 1_735_689_600_000
GOOD = [f"{T0 + 60_000 * i},10,12,9,11.5,{i}" for i in range(6)]


def file(folder: Path, lines: list[str], name: str = "BTCUSDT.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def row(index: int, rest: str) -> str:
    return f"{T0 + 60_000 * index},{rest}"


def refusal(path: Path | str, **options: object) -> str:
    with pytest.raises(DataInvalid) as caught:
        read_candles(path, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ("10,12,9,x,1", "line 4: close is not a number but 'x'; correct or remove the row."),
        ("10,9,12,10,1", "line 4: high is below low; correct or remove the row."),
        ("8,12,9,10,1", "line 4: open is outside the range from low to high;"),
        ("-10,12,-11,10,1", "line 4: open is not above zero;"),
        ("10,12,9,10,-1", "line 4: volume is negative;"),
        ("10,inf,9,10,1", "line 4: high is not finite but 'inf';"),
        ("10,12,9,10,", "line 4: volume is empty;"),
        ("10,12,9,10", "line 4 has 5 columns where the first has 6;"),
        ('10,12,9,"10,5",1', "line 4: close is not a number but '10,5';"),
    ],
)
def test_a_bad_cell_is_named_by_file_and_line(tmp_path: Path, bad: str, what: str) -> None:
    path = file(tmp_path, [HEADER, *GOOD[:2], row(2, bad), *GOOD[3:]])
    text = refusal(path)
    assert text.startswith(f"{path}: ")
    assert what in text


REFUSED: dict[str, tuple[list[str], str]] = {
    "a bad time": (
        [HEADER, *GOOD[:2], "noon,10,12,9,11,1", *GOOD[3:]],
        "line 4: the open time is not a number but 'noon'",
    ),
    "behind a comment and blank lines, which count": (
        ["# from a store", "", HEADER, GOOD[0], "", row(1, "10,12,9,x,1")],
        "line 6: close is not a number",
    ),
    "trades": (
        [f"335829145{at},10,0.5,500,501,{T0},True" for at in range(6)],
        "holds trades and no candles",
    ),
    "an unknown layout": ([f"{T0},1,2,3"], "has no header and 4 columns"),
    "two columns of one name": (
        [HEADER.replace("low", "high"), *GOOD],
        "has two columns high",
    ),
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
        "off the file's grid of 60 s, like 1 of 5 rows",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_candles_is_refused(tmp_path: Path, what: str) -> None:
    lines, words = REFUSED[what]
    assert words in refusal(file(tmp_path, lines))


MOSTLY_WRONG: dict[str, tuple[list[str], str]] = {
    "times": (
        [HEADER, *(f"bar {at},10,12,9,11,1" for at in range(6))],
        "and so in most rows: name another column by --columns open_time=NAME",
    ),
    "numbers": (
        [HEADER, *(row(at, "10,12,9,x,1") for at in range(6))],
        "name another column by --columns close=NAME",
    ),
    "volumes": (
        [HEADER, *(row(at, "10,12,9,11,few") for at in range(6))],
        "name another column by --columns volume=NAME",
    ),
    "candles": (
        [HEADER, *(row(at, "5,12,9,20,1") for at in range(6))],
        "and so in most rows, so the columns have another order: name them by --columns",
    ),
    "widths": (
        [HEADER, *(f"{good},7" for good in GOOD)],
        "and so have most rows: name as many in the header",
    ),
    "quoted widths": (
        [HEADER, *(f'{good},"7"' for good in GOOD)],
        "and so have most rows: name as many in the header",
    ),
    "ambiguous dates": (
        [HEADER, *(f"0{at}/01/2024,10,12,9,11,1" for at in range(1, 7))],
        "day and month cannot be told apart: write it as 2025-01-31.",
    ),
}


@pytest.mark.parametrize("what", MOSTLY_WRONG)
def test_where_most_rows_are_wrong_the_file_is(what: str, tmp_path: Path) -> None:
    lines, remedy = MOSTLY_WRONG[what]
    sentence = refusal(file(tmp_path, lines))
    assert remedy in sentence
    assert "remove the row" not in sentence


def test_equal_repetitions_are_dropped_and_said(tmp_path: Path) -> None:
    path = file(tmp_path, [HEADER, *GOOD[:3], GOOD[2], *GOOD[3:]])
    candles = read_candles(path)
    assert len(candles) == 6
    assert candles.notes == ("1 equal repetitions dropped",)


def test_a_file_that_is_newest_first_is_turned_and_said(tmp_path: Path) -> None:
    turned = read_candles(file(tmp_path, [HEADER, *reversed(GOOD)]))
    assert turned.open_time_ms.tolist() == [T0 + 60_000 * i for i in range(6)]
    assert turned.volume.tolist() == [0, 1, 2, 3, 4, 5]
    assert turned.notes == ("rows are newest first, turned",)


def test_a_few_rows_off_the_grid_are_dropped_and_said(tmp_path: Path) -> None:
    rows = [row(i, "10,12,9,11,1") for i in range(300)]
    rows[150] = f"{T0 + 60_000 * 150 + 28_000},10,12,9,11,1"
    path = file(tmp_path, [HEADER, *rows])
    candles = read_candles(path)
    assert len(candles) == 299
    assert candles.gaps == [(T0 + 60_000 * 150, T0 + 60_000 * 151)]
    assert "1 candle off the grid dropped" in candles.notes[0]
    assert "line 152" in candles.notes[0]


def test_one_candle_needs_an_interval_in_its_name(tmp_path: Path) -> None:
    assert "holds one candle" in refusal(file(tmp_path, [HEADER, GOOD[0]]))
    named = file(tmp_path, [HEADER, GOOD[0]], "BTCUSDT_5m.csv")
    assert read_candles(named).interval_ms == 300_000


def test_an_empty_volume_column_counts_as_zero_and_is_said(tmp_path: Path) -> None:
    path = file(tmp_path, [HEADER, *(row(i, "10,12,9,11,") for i in range(3))])
    candles = read_candles(path)
    assert candles.volume.tolist() == [0, 0, 0]
    assert candles.notes == ("volume is empty throughout, taken as zero",)


@pytest.mark.parametrize("content", ["", "\n\n", HEADER + "\n", "# nothing\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "BTCUSDT.csv"
    path.write_text(content)
    assert "give one with rows" in refusal(path)


def test_a_name_that_lies_about_compression_is_refused(tmp_path: Path) -> None:
    plain = ("\n".join([HEADER, *GOOD]) + "\n").encode()
    cases = {
        "BTCUSDT_a.csv.gz": (plain, "is not gz although its name says so"),
        "BTCUSDT_b.csv": (gzip.compress(plain), "is gzip by its first bytes and .csv by its name"),
        "BTCUSDT_c.zip": (gzip.compress(plain), "is gzip by its first bytes and .zip by its name"),
        "BTCUSDT_d.parquet": (plain, "is not parquet although its name says so"),
        "BTCUSDT_e.feather": (b"PAR1" + plain, "is Parquet by its first bytes"),
        "BTCUSDT_f.csv": (b"\x28\xb5\x2f\xfd" + plain, "is compressed with Zstandard"),
        "BTCUSDT_g.xls": (plain, "has a name of no known kind"),
        "BTCUSDT_h.csv.gz": (gzip.compress(plain)[:-12], "is damaged, cut short"),
        "BTCUSDT_i.zip": (b"PK\x03\x04" + b"x" * 40, "is damaged, cut short or locked"),
        "BTCUSDT_j.parquet": (b"PAR1" + b"x" * 40, "is damaged"),
        "BTCUSDT_k.csv": (b"open_time,\0\0", "is not text although its name says so"),
        "BTCUSDT_l.csv": (b"open_time,\xe9\xff,b\n1,2,3\n", "is not UTF-8 text"),
        "BTCUSDT_m.csv": (b"\n<!DOCTYPE html><title>404</title>", "is a web page or XML"),
        "BTCUSDT_r.csv.gz": (gzip.compress(b"<html>"), "is a web page or XML"),
        "BTCUSDT_n.csv.gz": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "BTCUSDT_o.xlsx": (b"PK\x03\x04" + b"\0" * 26 + b"xl/", "save its sheet as CSV"),
        "BTCUSDT_p.csv": (b'{"code": -1121}', "rename it to end in .json"),
    }
    for name, (content, what) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert what in refusal(path), name


def test_a_zip_of_two_files_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.csv", "x")
        archive.writestr("b.csv", "x")
    path = tmp_path / "BTCUSDT.zip"
    path.write_bytes(buffer.getvalue())
    assert "holds 2 data files where one is wanted" in refusal(path)


def test_a_path_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "BTCUSDT.csv")
    assert "is a folder" in refusal(tmp_path)
    assert "is a device" in refusal(Path("/dev/zero"))


def test_json_of_another_shape_is_refused(tmp_path: Path) -> None:
    cases: dict[str, tuple[object, str]] = {
        "a": ({"a": 1}, "is JSON of an unknown shape"),
        "b": ([1, 2], "is JSON of an unknown shape"),
        "c": ([], "is empty"),
        "d": ([[T0, 1, 2, 1, 2, 3], [T0, 1]], "row 2 has 2 columns where the first has 6"),
        "e": ([[T0, 1, 2, 1, None, 3]], "row 1: close is empty"),
    }
    for name, (document, what) in cases.items():
        path = tmp_path / f"BTCUSDT_{name}.json"
        path.write_text(json.dumps(document))
        assert what in refusal(path)
    broken = tmp_path / "BTCUSDT_f.json"
    broken.write_text("[[1,")
    assert "is not JSON" in refusal(broken)
    broken.write_text("[" * 100_000)
    assert "is not JSON" in refusal(broken)


def test_a_file_without_a_symbol_asks_for_one(tmp_path: Path) -> None:
    path = file(tmp_path, [HEADER, *GOOD], "prices.csv")
    with pytest.raises(ConfigInvalid, match=f"write SYMBOL={path}"):
        read_candles(path)


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "BTCUSDT.parquet"
    path.write_bytes(b"PAR1xxxx")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigInvalid, match=r"BTCUSDT.parquet needs pyarrow: .*tracepaper\[data\]"):
        read_candles(path)


def test_overlapping_files_are_merged_once(tmp_path: Path) -> None:
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
    with pytest.raises(DataInvalid, match="line 3: contradicts another rate of its time"):
        read_funding(twice)
    percent = file(tmp_path, ["time,rate", f"{T0},1.5"], "BTCUSDT_c.csv")
    with pytest.raises(DataInvalid, match="line 2: funding_rate is 100 % or more"):
        read_funding(percent)
    most = file(tmp_path, ["time,rate", *(f"{T0 + at},1.5" for at in range(3))], "BTCUSDT_e.csv")
    with pytest.raises(DataInvalid, match="has funding rates of percent"):
        read_funding(most)
    small = file(tmp_path, ["time,rate", *(f"{T0 + at},0.01" for at in range(3))], "BTCUSDT_d.csv")
    with pytest.raises(DataInvalid, match="has funding rates of percent"):
        read_funding(small)


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


ENDLESS = ("\n".join([HEADER, *GOOD]) + "\n" + "1" * (3 << 20)).encode()


@pytest.mark.parametrize("name", ["BTCUSDT.csv", "BTCUSDT.csv.gz", "BTCUSDT.zip"])
def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(ENDLESS, 1))
    elif name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("BTCUSDT.csv", ENDLESS)
    else:
        path.write_bytes(ENDLESS)
        os.truncate(path, 1 << 40)  # a terabyte that takes no room on the disk
    assert "has a line of more than 1 MiB" in refusal(path)


def test_a_gzip_that_unpacks_without_end_takes_a_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT.json.gz"
    path.write_bytes(gzip.compress(b" " * (1 << 24), 1) * 12)  # members: 192 MiB
    tracemalloc.start()
    try:
        assert "unpacks to more than is read" in refusal(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 300 << 20
