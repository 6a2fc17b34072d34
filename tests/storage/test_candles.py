"""The bar archive: what was written is read, overlaps must agree, holes are named."""

from __future__ import annotations

from pathlib import Path

import builders
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tracepaper.storage.candles import ArchiveWrite, History, HistoryWriter, finest_of
from tracepaper.storage.database.writer import open_writer
from tracepaper.strategies.errors import AuditUnwritable, ConfigInvalid, DataInvalid
from tracepaper.strategies.types.market import Bar, Source

BTC = builders.instrument()
MINUTE = builders.MINUTE


def archived(bars: list[Bar]) -> list[Bar]:
    return [
        replace(bar, market_ms=bar.close_time_ms, seen_ms=bar.close_time_ms, source=Source.ARCHIVE)
        for bar in bars
    ]


def read(path: Path, **span: int) -> list[Bar]:
    with History.open(path) as history:
        return list(history.read(BTC.id, MINUTE, **span))


def test_what_was_written_is_read_in_order(tmp_path: Path) -> None:
    bars = builders.bars(500)
    path = tmp_path / "archive.db"
    with HistoryWriter(path) as writer:
        assert writer.write(BTC, MINUTE, reversed(bars)) == ArchiveWrite(500, 0)
    assert read(path) == archived(bars)
    middle = {"from_ms": bars[100].open_time_ms, "until_ms": bars[110].open_time_ms}
    assert read(path, **middle) == archived(bars[100:110])


def test_an_overlap_that_agrees_is_known_and_not_doubled(tmp_path: Path) -> None:
    bars = builders.bars(300)
    path = tmp_path / "archive.db"
    with HistoryWriter(path) as writer:
        writer.write(BTC, MINUTE, bars[:200])
        assert writer.write(BTC, MINUTE, bars[100:]) == ArchiveWrite(100, 100)
        assert writer.write(BTC, MINUTE, [bars[0], bars[0]]) == ArchiveWrite(0, 2)
    assert read(path) == archived(bars)


@pytest.mark.parametrize("field", ["open", "high", "low", "close", "volume"])
def test_an_overlap_that_contradicts_is_refused_whole(tmp_path: Path, field: str) -> None:
    bars = builders.bars(300)
    path = tmp_path / "archive.db"
    wrong = [*bars[200:], replace(bars[150], **{field: getattr(bars[150], field) + 1})]
    with HistoryWriter(path) as writer:
        writer.write(BTC, MINUTE, bars[:200])
        with pytest.raises(DataInvalid, match=str(bars[150].open_time_ms)):
            writer.write(BTC, MINUTE, wrong)
    assert read(path) == archived(bars[:200])


def test_bars_that_contradict_each_other_are_refused_whole(tmp_path: Path) -> None:
    bars = builders.bars(3)
    path = tmp_path / "archive.db"
    with HistoryWriter(path) as writer:
        writer.write(BTC, MINUTE, bars[:1])
        with pytest.raises(DataInvalid, match=str(bars[1].open_time_ms)):
            writer.write(BTC, MINUTE, [*bars, replace(bars[1], close=bars[1].close + 1)])
    assert read(path) == archived(bars[:1])


def test_a_missing_turnover_is_taken_from_the_source_that_has_it(tmp_path: Path) -> None:
    bars = builders.bars(3)
    priced = [replace(bar, turnover=77) for bar in bars]
    path = tmp_path / "archive.db"
    with HistoryWriter(path) as writer:
        writer.write(BTC, MINUTE, bars)
        assert writer.write(BTC, MINUTE, priced) == ArchiveWrite(0, 3)
        assert writer.write(BTC, MINUTE, bars) == ArchiveWrite(0, 3)
    assert read(path) == archived(priced)


@settings(max_examples=20, deadline=None)
@given(missing=st.sets(st.integers(0, 59), max_size=40))
def test_gaps_are_the_bars_that_are_missing(
    missing: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    bars = builders.bars(60)
    kept = [bar for at, bar in enumerate(bars) if at not in missing]
    path = tmp_path_factory.mktemp("history") / "archive.db"
    with HistoryWriter(path) as writer:
        writer.write(BTC, MINUTE, kept)
    with History.open(path) as history:
        covered, gaps = history.times(BTC.id, MINUTE), history.gaps(BTC.id, MINUTE)
    assert covered == [bar.open_time_ms for bar in kept]
    absent = [time for start, end in gaps for time in range(start, end, MINUTE)]
    inside = range(min(covered, default=0), max(covered, default=0), MINUTE)
    assert absent == [time for time in inside if time not in set(covered)]


def test_finer_data_refines_what_is_stored(tmp_path: Path) -> None:
    coarse_bars, fine_bars = builders.bars(2), builders.bars(4)[2:]
    fine = builders.instrument(price_decimals=4, tick_size=1)
    path = tmp_path / "archive.db"
    with HistoryWriter(path) as writer:
        writer.write(BTC, MINUTE, coarse_bars)
        writer.write(fine, MINUTE, fine_bars)
        writer.write(BTC, MINUTE, coarse_bars)
    with History.open(path) as history:
        stored = list(history.read(BTC.id, MINUTE))
        instrument = history.instrument(BTC.id, MINUTE)
    assert [bar.close for bar in stored] == [
        *(bar.close * 100 for bar in coarse_bars),
        *(bar.close for bar in fine_bars),
    ]
    assert (instrument.price_decimals, instrument.tick_size) == (4, 1)


def test_the_finest_of_two_instruments_keeps_the_newer_filters() -> None:
    old = builders.instrument(price_decimals=1, tick_size=5, quantity_decimals=0)
    new = builders.instrument(price_decimals=2, tick_size=10, min_quantity=3, max_quantity=9)
    finest = finest_of(old, new)
    assert finest.tick_size == 10
    assert (finest.quantity_decimals, finest.min_quantity, finest.max_quantity) == (3, 3, 9)
    assert finest_of(new, old).tick_size == 10
    assert finest_of(new, old).quantity_step == 1


def test_the_archive_says_what_it_holds(tmp_path: Path) -> None:
    eth = builders.instrument("ETHUSDT")
    path = tmp_path / "archive.db"
    with HistoryWriter(path) as writer:
        writer.write(BTC, MINUTE, builders.bars(10))
        writer.write(eth, MINUTE, builders.bars(5, instrument_id=eth.id))
    with History.open(path) as history:
        held = history.series()
    assert [(series.instrument.id, series.bars) for series in held] == [(BTC.id, 10), (eth.id, 5)]
    assert held[0].first_open_ms == builders.START_MS
    assert held[0].last_open_ms == builders.START_MS + 9 * MINUTE


def test_bars_of_another_series_are_refused(tmp_path: Path) -> None:
    with HistoryWriter(tmp_path / "archive.db") as writer:
        with pytest.raises(DataInvalid, match="linear:ETHUSDT"):
            writer.write(BTC, MINUTE, builders.bars(2, instrument_id="linear:ETHUSDT"))
        with pytest.raises(DataInvalid, match="write each series by itself"):
            writer.write(BTC, 5 * MINUTE, builders.bars(2))


def test_a_series_that_is_not_there_is_named(tmp_path: Path) -> None:
    open_writer(tmp_path / "archive.db").close()
    with History.open(tmp_path / "archive.db") as history:
        with pytest.raises(DataInvalid, match="data list"):
            list(history.read(BTC.id, MINUTE))
        assert history.series() == []


def test_numbers_that_do_not_fit_are_refused_whole(tmp_path: Path) -> None:
    huge = replace(builders.bar(), volume=2**62)
    path = tmp_path / "archive.db"
    with HistoryWriter(path) as writer:
        writer.write(BTC, MINUTE, [huge])
        finer = replace(BTC, volume_decimals=12)
        with pytest.raises(AuditUnwritable, match="nothing was written"):
            writer.write(finer, MINUTE, builders.bars(3)[1:])
    assert read(path) == archived([huge])


def test_one_process_writes_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "archive.db"
    with HistoryWriter(path), pytest.raises(ConfigInvalid, match="in use by process"):
        HistoryWriter(path)
