"""Files of books: exact, append-only by whole blocks, and believed only where they are whole."""

from __future__ import annotations

import gzip
import json
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from depth_cases import FIRST_MS, depth, header, packed, walk, write

from tracepaper.replay.archive import recordings
from tracepaper.replay.archive.books import read_depth
from tracepaper.replay.archive.recordings import (
    MARK,
    BooksFile,
    DepthWriter,
    member,
    recording_header,
)
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.order_book import Books, from_planes, planes
from tracepaper.strategies.types.market import Depth


def rows(books: Books) -> list[tuple[int, int, bytes, bytes]]:
    """Return the books as the exchange's own pairs, absent levels left out."""
    read_rows = []
    for row in range(len(books)):
        sides = [
            packed([(int(p), int(q)) for p, q in zip(*side, strict=True) if q])
            for side in zip(books.price[row], books.size[row], strict=True)
        ]
        read_rows.append((int(books.seen_ms[row]), int(books.market_ms[row]), sides[0], sides[1]))
    return read_rows


def as_rows(depths: list[Depth]) -> list[tuple[int, int, bytes, bytes]]:
    return [(depth.seen_ms, depth.market_ms, depth.bids, depth.asks) for depth in depths]


def test_what_is_written_is_read_back_to_the_unit(tmp_path: Path) -> None:
    depths = list(walk(200))
    depths[7] = depth([(649_000, 1)], [(700_000, 2**62)], depths[7].seen_ms)  # levels are missing
    write(tmp_path / "a", depths)
    recorded = read_depth(tmp_path / "a")
    assert rows(recorded.read_all()) == as_rows(depths)
    assert (recorded.starts.tolist(), recorded.torn) == ([0], "")
    quality = BooksFile(tmp_path / "a").quality()
    assert (quality.books, quality.thin, quality.recorded_ms) == (200, 1, 200_000)
    assert (quality.first_ms, quality.last_ms) == (FIRST_MS, FIRST_MS + 199_000)


def test_it_is_a_gzip_file_whose_first_line_says_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path / "a", walk(70))
    with gzip.open(tmp_path / "a") as file:  # checks the length and the sum of every member
        line, _, _ = file.read().partition(b"\n")
    document = json.loads(line)
    assert (document["format"], document["instrument"]["symbol"], document["levels"]) == (
        "tracepaper recording",
        "BTCUSDT",
        5,
    )
    assert recording_header(tmp_path / "a") == header()


def test_a_later_session_goes_on_behind_a_gap(tmp_path: Path) -> None:
    first = list(walk(100))
    later = list(walk(50, seed=2, first_ms=FIRST_MS + 500_000))
    assert write(tmp_path / "a", first) == ""
    assert write(tmp_path / "a", later, cause="stopped") == ""
    recorded_depth = read_depth(tmp_path / "a")
    assert rows(recorded_depth.read_all()) == as_rows(first + later)
    assert [len(part) for part in recorded_depth.stretches()] == [100, 50]
    (gap,) = BooksFile(tmp_path / "a").quality().gaps
    assert (gap.from_ms, gap.until_ms, gap.cause) == (
        FIRST_MS + 99_000,
        FIRST_MS + 500_000,
        "stopped",
    )


def test_a_gap_within_a_session_begins_a_block(tmp_path: Path) -> None:
    first = list(walk(10))
    later = list(walk(5, seed=2, first_ms=FIRST_MS + 30_000))
    with DepthWriter(tmp_path / "a", header()) as writer:
        for depth in first:
            writer.add(depth, "")
        writer.add(later[0], "sequence")
        for depth in later[1:]:
            writer.add(depth, "")
    recorded_depth = read_depth(tmp_path / "a")
    assert rows(recorded_depth.read_all()) == as_rows(first + later)
    assert recorded_depth.starts.tolist() == [0, 10]
    assert [gap.cause for gap in BooksFile(tmp_path / "a").quality().gaps] == ["sequence"]


def test_a_torn_tail_costs_one_block_and_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, walk(128))  # blocks of 60: a minute each
    whole = path.read_bytes()
    last = whole.rindex(MARK)
    for cut in range(last + 1, len(whole), 7):
        path.write_bytes(whole[:cut])
        recorded_depth = read_depth(path)
        assert len(recorded_depth.read_all()) == 120
        assert recorded_depth.torn == (
            f"The last {cut - last:,} bytes of {path} are no whole block, as a recorder that was "
            "killed leaves them; they are left out."
        )
    path.write_bytes(whole[:last] + b"\0" * 50)  # a machine that lost power leaves noughts
    assert "no whole block" in read_depth(path).torn
    later = list(walk(3, first_ms=FIRST_MS + 900_000))
    assert "The last 50 bytes" in write(path, later, cause="stopped")
    assert path.read_bytes().startswith(whole[:last] + MARK)
    again = read_depth(path)
    assert (len(again.read_all()), again.torn, again.starts.tolist()) == (123, "", [0, 120])


def test_a_long_file_goes_on_from_its_last_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write(path, walk(600))  # ten blocks
    whole = path.read_bytes()
    write(path, walk(1, first_ms=FIRST_MS + 900_000))
    longer = path.read_bytes()
    for newest in range(3 * len(whole) // 10, len(whole), 997):
        monkeypatch.setattr(recordings, "NEWEST_BYTES", newest)
        path.write_bytes(longer[:-3])
        with DepthWriter(path, header()) as writer:
            assert "are no whole block" in writer.says
            assert writer.last_ms == FIRST_MS + 599_000
        assert path.read_bytes() == whole


def test_a_block_that_finds_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = DepthWriter(path, header())
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as refused, writer:
            writer.add(next(walk(1)), "stopped")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (path.stat().st_size, refused.value.filename) == (size, str(path))


def test_a_file_has_one_writer_and_a_header_of_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with (
        DepthWriter(path, header()),
        pytest.raises(ConfigInvalid, match="recorded to already"),
    ):
        DepthWriter(path, header())
    for content in (b"", b"\x1f\x8b", member(b"{}"), member(b'{"version":2}')):
        path.write_bytes(content)
        with pytest.raises(DataInvalid, match=str(path)):
            BooksFile(path)


def test_no_byte_can_be_changed_unseen(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, walk(130))
    whole = path.read_bytes()
    written = rows(read_depth(path).read_all())
    last, rng = whole.rindex(MARK), random.Random(5)
    places = [*range(60), *rng.sample(range(60, len(whole)), 240)]
    for place in places:
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ rng.randint(1, 255)]) + whole[place + 1 :]
        )
        try:
            recorded_depth = read_depth(path)
        except DataInvalid:
            continue
        assert place >= last, place
        assert recorded_depth.torn
        assert rows(recorded_depth.read_all()) == written[:120]


def test_a_damaged_middle_is_refused_and_never_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, walk(200))
    whole = path.read_bytes()
    place = whole.index(MARK, 1) + 40
    path.write_bytes(whole[:place] + b"\xff\xff" + whole[place + 2 :])
    damaged = path.read_bytes()
    with pytest.raises(DataInvalid, match="is damaged between its bytes"):
        read_depth(path)
    write(path, walk(1, first_ms=FIRST_MS + 900_000))
    assert path.read_bytes().startswith(damaged)


def test_books_are_appended_in_time_alone(tmp_path: Path) -> None:
    write(tmp_path / "a", walk(5))
    with pytest.raises(
        DataInvalid, match="is recorded until 2025-01-01T00:00:04Z and the next is of"
    ):
        write(tmp_path / "a", walk(1, first_ms=FIRST_MS + 4_000))


@pytest.mark.parametrize(
    "other",
    [header(levels=6), header(every_ms=500), header(of="linear:ETHUSDT"),
     header(source="frames")],
)  # fmt: skip
def test_a_file_of_other_books_is_not_gone_on_with(tmp_path: Path, other: Any) -> None:
    write(tmp_path / "a", walk(5))
    with pytest.raises(
        ConfigInvalid, match=r"holds linear:BTCUSDT, 5 levels .* give another --out"
    ):
        DepthWriter(tmp_path / "a", other)


def test_a_header_alone_holds_no_books_yet(tmp_path: Path) -> None:
    write(tmp_path / "a", [])
    assert BooksFile(tmp_path / "a").quality().books == 0
    with pytest.raises(DataInvalid, match="holds no books yet"):
        read_depth(tmp_path / "a")


GOOD = ([(100, 5), (99, 1)], [(101, 2), (105, 3)])
IMPOSSIBLE = {
    "a crossed book": ([(101, 5)], [(101, 2)]),
    "an empty side": ([], [(101, 2)]),
    "an empty touch": ([(100, 0), (99, 1)], [(101, 2)]),
    "a hole": ([(100, 1), (99, 0), (98, 4)], [(101, 2)]),
    "no order": ([(100, 1), (100, 2)], [(101, 2)]),
    "asks that fall": ([(100, 1)], [(103, 2), (102, 2)]),
    "a negative size": ([(100, 1), (99, -1)], [(101, 2)]),
    "a price of nought": ([(100, 1), (0, 3)], [(101, 2)]),
    "of a later frame": GOOD,
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_book_that_no_exchange_shows_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "good", [depth(*GOOD, FIRST_MS)])
    assert len(read_depth(tmp_path / "good").read_all()) == 1
    age_ms = -1 if name == "of a later frame" else 3
    write(tmp_path / "bad", [depth(*IMPOSSIBLE[name], FIRST_MS, age_ms=age_ms)])
    with pytest.raises(DataInvalid, match="an impossible book, which no recording writes"):
        read_depth(tmp_path / "bad")


def test_what_is_held_does_not_depend_on_how_it_is_cut() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(-(2**62), 2**62, (3, 2, 4))
    packed = planes(numbers)
    assert (from_planes(packed, (3, 2, 4), "here") == numbers).all()
    with pytest.raises(DataInvalid, match="other numbers than it says"):
        from_planes(packed[:-8], (3, 2, 4), "here")
