"""On any bytes under any name the importers raise nothing but their own errors."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather, parquet

from tracepaper.replay.archive import read_candles, read_funding
from tracepaper.replay.archive.tables import SUFFIXES
from tracepaper.strategies.errors import TracepaperError

T0 = 1_735_689_600_000
ROWS = [[T0 + 60_000 * i, 10.5, 12.0, 9.25, 11.5, float(i)] for i in range(12)]
NAMES = ["time", "open", "high", "low", "close", "volume"]
TEXT = "\n".join([",".join(NAMES), *(",".join(map(str, row)) for row in ROWS)]).encode()


def arrow(write_feather: bool) -> bytes:
    columns = dict(zip(NAMES, map(list, zip(*ROWS, strict=True)), strict=True))
    buffer = io.BytesIO()
    if write_feather:
        feather.write_feather(pa.table(columns), buffer, compression="uncompressed")
    else:
        parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("BTCUSDT.csv", TEXT)
    return buffer.getvalue()


FILES = {
    ".csv": TEXT,
    ".csv.gz": gzip.compress(TEXT, mtime=0),
    ".zip": zipped(),
    ".parquet": arrow(write_feather=False),
    ".feather": arrow(write_feather=True),
}


def survive(name: str, content: bytes) -> None:
    """Read the bytes both ways; any error but our own ends the test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"BTCUSDT{name}"
        path.write_bytes(content)
        for read in (read_candles, read_funding):
            try:
                rows, words = len(read(path)), ""
            except TracepaperError as error:
                rows, words = 0, str(error)
            assert (rows > 0) != bool(words)
            assert "\n" not in words


def test_the_unharmed_files_are_read() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in FILES.items():
            path = Path(folder) / f"BTCUSDT{name}"
            path.write_bytes(content)
            assert len(read_candles(path)) == len(ROWS)


STARTS = [
    *((suffix, b"") for suffix in (*SUFFIXES, ".json")),
    (".parquet", b"PAR1"),
    (".arrow", b"ARROW1"),
]
TEXTS = [b"", b"\n", TEXT, TEXT[:-9], b"one two three\n", b"{}\n[1, 2]\n"]


@given(st.sampled_from(STARTS), st.sampled_from(TEXTS) | st.binary(max_size=300))
@settings(deadline=None)
def test_the_reader_of_every_format_refuses_what_it_cannot_read_in_our_own_words(
    start: tuple[str, bytes], content: bytes
) -> None:
    survive(start[0], start[1] + content)


@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 400),
)
@settings(deadline=None, max_examples=300)
def test_harmed_files_are_read_or_refused_in_our_own_words(
    name: str, changes: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(FILES[name])
    for place, value in changes:
        content[place % len(content)] = value
    survive(name, bytes(content[: len(content) - cut % len(content)]))


cells = st.sampled_from(
    ["", "0", "-0", "1e5", "1e-9", "nan", '"', "'", "\t", "9" * 19, "1735689600000", "2025-01-01",
     "00:00", "é", " ", "#", "1,5", "0x10", "1_000", "٣", "x" * 300]
)  # fmt: skip


@given(
    st.lists(st.lists(cells, min_size=1, max_size=8), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from([",", ";", "\t"]),
)
@settings(deadline=None, max_examples=300)
def test_odd_cells_are_refused_in_our_own_words(
    rows: list[list[str]], header: bool, delimiter: str
) -> None:
    lines = [delimiter.join(NAMES)] if header else []
    lines += [delimiter.join(row) for row in rows]
    survive(".csv", "\n".join(lines).encode())
    survive(".json", json.dumps(rows).encode())
