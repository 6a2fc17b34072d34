"""Files of vectors that grow: what was added is read alone, what was rewritten is read whole."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tracepaper.storage.covariates import GrowingFile
from tracepaper.strategies.errors import DataInvalid

NOON_MS = 1_717_243_200_000
HEAD = "time,symbol,mood,heat\n"


def line(minute: int, symbol: str = "BTCUSDT", mood: object = 0.5) -> str:
    return f"{NOON_MS + 60_000 * minute},{symbol},{mood},1\n"


@pytest.fixture
def grown(tmp_path: Path) -> GrowingFile:
    """Return a file of two rows that were taken in."""
    path = tmp_path / "news.csv"
    path.write_text(HEAD + line(1) + line(2), encoding="utf-8")
    growing_file = GrowingFile(path)
    assert growing_file.has_changed()
    first = growing_file.read()
    assert first.is_whole
    growing_file.accept(first)
    assert not growing_file.has_changed()
    return growing_file


def add(file: GrowingFile, text: str) -> None:
    with file.path.open("a", encoding="utf-8") as lines:
        lines.write(text)


def times(file: GrowingFile) -> dict[str, list[int]]:
    """Return the minutes of what is read by symbol."""
    rows = file.read().file.rows
    return {key: ((row.time_ms - NOON_MS) // 60_000).tolist() for key, row in rows.items()}


def test_of_lines_those_are_read_that_were_added(grown: GrowingFile) -> None:
    assert times(grown) == {}
    add(grown, line(3) + line(2, "ETHUSDT") + line(4)[:-3])
    assert grown.has_changed()
    growth = grown.read()
    assert not growth.is_whole
    assert times(grown) == {"BTCUSDT": [3], "ETHUSDT": [2]}  # still, for it was not taken
    grown.accept(growth)
    add(grown, line(4)[-3:])
    assert times(grown) == {"BTCUSDT": [4]}
    assert growth.file.rows["BTCUSDT"].values.tolist() == [[0.5, 1.0]]


def test_all_is_read_where_a_line_before_is_another(grown: GrowingFile) -> None:
    text = grown.path.read_text(encoding="utf-8").replace("0.5", "0.6", 1)
    grown.path.write_text(text + line(3), encoding="utf-8")
    assert grown.read().is_whole
    assert times(grown) == {"BTCUSDT": [1, 2, 3]}
    grown.path.write_text(HEAD + line(2) + line(5), encoding="utf-8")  # an older row is taken out
    assert times(grown) == {"BTCUSDT": [2, 5]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (line(2), "row 3: .* of BTCUSDT repeats the one before"),
        (line(3) + line(4, mood="high"), "row 4: mood is 'high', which is no number"),
        (line(3) + f"{NOON_MS},BTCUSDT,1\n", "line 5: 3 fields where the first line has 4"),
    ],
)
def test_what_was_added_is_refused_by_its_place_in_the_file(
    grown: GrowingFile, text: str, sentence: str
) -> None:
    good = grown.path.read_text(encoding="utf-8")
    add(grown, text)
    for _ in range(2):
        with pytest.raises(DataInvalid, match=sentence):
            grown.read()
    grown.path.write_text(good + line(3), encoding="utf-8")
    assert times(grown) == {"BTCUSDT": [3]}


@pytest.mark.parametrize("left", ["", "time,symbol", HEAD])
def test_one_that_is_cut_off_has_no_rows(grown: GrowingFile, left: str) -> None:
    grown.path.write_text(left, encoding="utf-8")
    with pytest.raises(DataInvalid, match="has no rows"):
        grown.read()


def test_one_that_is_replaced_at_the_same_time_and_size_is_another(grown: GrowingFile) -> None:
    other = grown.path.with_name("other.csv")
    other.write_bytes(grown.path.read_bytes())
    changed_ns = grown.path.stat().st_mtime_ns
    os.utime(other, ns=(changed_ns, changed_ns))
    other.replace(grown.path)
    assert grown.has_changed()
    grown.path.unlink()
    assert grown.has_changed()


def test_parquet_is_read_whole_and_wherever_it_is_torn_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "news.parquet"
    for count in (2, 3):
        at = [NOON_MS + 60_000 * minute for minute in range(count)]
        parquet.write_table(pa.table({"time": at, "mood": [0.5] * count}), path)
        file = GrowingFile(path)
        growth = file.read()
        file.accept(growth)
        assert growth.is_whole
        assert len(growth.file.rows[""]) == count
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        for rest in (b"", b"\0" * (len(whole) - size)):  # cut off, or made long enough first
            path.write_bytes(whole[:size] + rest)
            with pytest.raises(DataInvalid):
                file.read()
