"""Files of several symbols and intervals become one series per instrument and interval."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from learning import DAY_BARS, MINUTE_MS, START_MS, learnable, write_csv

from tracepaper.daemon.session.user_code import file_sha256
from tracepaper.replay.archive import Candles
from tracepaper.replay.learning.dataset import read_files
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

FIVE = 5 * MINUTE_MS


def written(candles: Candles, folder: Path, name: str) -> str:
    place = folder / name
    place.mkdir()
    return str(write_csv(candles, place))


def test_a_source_is_named_by_its_bytes(tmp_path: Path) -> None:
    path = write_csv(learnable(700), tmp_path)
    [source] = read_files([f"ZZZUSDT={path}"]).sources
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == file_sha256(path)
    assert (source.name, source.symbol, source.bars) == (path.name, "ZZZUSDT", 700)
    assert source.until_ms - source.from_ms == 700 * MINUTE_MS


def test_a_chosen_column_is_read_and_listed_with_its_file(tmp_path: Path) -> None:
    path = write_csv(learnable(300), tmp_path)
    text = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(text.replace(b"close", b"Settle")))
    with pytest.raises(DataInvalid, match="--columns close=NAME"):
        read_files([str(path)])
    files = read_files([str(path)], columns=("close=Settle",))
    np.testing.assert_array_equal(files.candles[MINUTE_MS][0].close, learnable(300).close)
    assert [source.columns for source in files.sources] == [("close=Settle",)]


def test_a_coarser_bar_that_lacks_a_part_is_a_hole(tmp_path: Path) -> None:
    rows = np.delete(np.arange(200), [52])  # a part of the bar that opens at minute 50
    path = written(learnable(200)[rows], tmp_path, "a")
    files = read_files([path], (MINUTE_MS, FIVE))
    [fine], [coarse] = files.candles[MINUTE_MS], files.candles[FIVE]
    assert (len(fine), len(coarse)) == (199, 39)
    assert START_MS + 10 * FIVE not in coarse.open_time_ms
    assert coarse.missing == 1
    assert int(coarse.volume[0]) == int(fine.volume[:5].sum())
    assert int(coarse.high[0]) == int(fine.high[:5].max())


def test_a_bar_that_two_files_hold_is_used_once_from_the_first(tmp_path: Path) -> None:
    first = learnable(300)
    other = learnable(300, seed=9, start=200)  # another price of the same symbol
    files = read_files([written(first, tmp_path, "a"), written(other, tmp_path, "b")])
    [joined] = files.candles[MINUTE_MS]
    assert len(joined) == 500
    assert joined.missing == 0
    np.testing.assert_array_equal(joined.close[:300], first.close)
    np.testing.assert_array_equal(joined.close[300:], other.close[100:])


def test_a_file_that_fills_a_hole_joins_what_lies_around_it(tmp_path: Path) -> None:
    whole = learnable(400)
    around = whole[np.r_[0:150, 250:400]]
    parts = [written(around, tmp_path, "a"), written(whole, tmp_path, "b")]
    [joined] = read_files(parts).candles[MINUTE_MS]
    np.testing.assert_array_equal(joined.close, whole.close)


def test_one_symbol_of_two_markets_is_learnt_once_but_never_joined(tmp_path: Path) -> None:
    linear = write_csv(learnable(300), tmp_path)
    text = write_csv(learnable(300, seed=3, start=200), tmp_path / "..").rename(
        tmp_path / "bybit_spot_AAAUSDT_1m.csv.gz"
    )
    candle = read_files([str(linear), str(text)]).candles[MINUTE_MS]
    assert [(candles.instrument, len(candles)) for candles in candle] == [
        ("linear:AAAUSDT", 300),
        ("spot:AAAUSDT", 200),
    ]


def test_several_symbols_and_intervals_are_read_together(tmp_path: Path) -> None:
    paths = [
        written(learnable(600), tmp_path, "a"),
        written(learnable(600, seed=1, symbol="BBBUSDT"), tmp_path, "b"),
    ]
    candles = read_files(paths, (FIVE, 3 * FIVE)).candles
    assert {interval: [len(bars) for bars in group] for interval, group in candles.items()} == {
        FIVE: [120, 120],
        3 * FIVE: [40, 40],
    }


def coarse_csv(folder: Path, *, price: str = "1,2,1,2", volume: str = "3") -> str:
    rows = [f"{START_MS + i * FIVE},{price},{volume}" for i in range(700)]
    path = folder / "bybit_linear_CCCUSDT_5m.csv"
    path.write_text("open_time,open,high,low,close,volume\n" + "\n".join(rows))
    return str(path)


def test_a_file_that_makes_no_bar_of_the_interval_is_refused(tmp_path: Path) -> None:
    fine = written(learnable(700), tmp_path, "a")
    with pytest.raises(DataInvalid, match="bars of 5m, which make none of 1m"):
        read_files([fine, coarse_csv(tmp_path)])
    assert len(read_files([coarse_csv(tmp_path), fine]).candles[FIVE]) == 2


def test_no_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="no bar has any volume"):
        read_files([coarse_csv(tmp_path, volume="0")])


def test_a_file_whose_symbol_cannot_be_known_is_refused(tmp_path: Path) -> None:
    path = Path(coarse_csv(tmp_path)).rename(tmp_path / "candles.csv")
    with pytest.raises(ConfigInvalid, match="does not name its symbol"):
        read_files([str(path)])
    assert read_files([f"CCCUSDT={path}"]).sources[0].symbol == "CCCUSDT"


def test_a_day_of_minutes_makes_one_bar_of_a_day(tmp_path: Path) -> None:
    path = written(learnable(DAY_BARS), tmp_path, "a")
    [day] = read_files([path], (DAY_BARS * MINUTE_MS,)).candles[DAY_BARS * MINUTE_MS]
    assert len(day) == 1
