from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tracepaper.replay.archive import Candles, read_candles
from tracepaper.replay.archive.candle_file import CandleFile, file_name, lines_of
from tracepaper.replay.archive.download import FetchRequest, runs, wanted_times
from tracepaper.replay.archive.series import archive_instrument, quality
from tracepaper.strategies.errors import ConfigInvalid

SAMPLES = Path(__file__).parents[2] / "data" / "candles"
MINUTE = 60_000


def minutes(rows: Sequence[int] | slice = slice(None), symbol: str = "BTC") -> Candles:
    part = read_candles(SAMPLES / f"binance_um_{symbol}USDT_1m_2025-05.csv.gz")
    return part[rows if isinstance(rows, slice) else np.array(rows)]


def filled(path: Path, part: Candles, *pages: Sequence[int] | slice) -> None:
    with CandleFile(path) as file:
        for page in pages:
            file.add(archive_instrument(part), part[np.r_[page]].bars())


@pytest.mark.parametrize("name", ["um_BTCUSDT_1m_2025-05", "um_BTCUSDT_1h_2019"])
def test_candles_that_are_added_in_any_order_read_back_equal(tmp_path: Path, name: str) -> None:
    part = read_candles(SAMPLES / f"binance_{name}.csv.gz")
    instrument = archive_instrument(part)
    path, scaled = tmp_path / file_name(instrument, part.interval_ms), part.aligned(instrument)
    filled(path, scaled, slice(20, 50))
    filled(path, scaled, slice(50, len(part)), slice(0, 10), slice(10, 20))
    assert read_candles(path).instrument == part.instrument
    assert read_candles(path).aligned(instrument).bars() == scaled.bars()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_a_killed_fetch_added_is_taken_up_but_a_torn_line(tmp_path: Path) -> None:
    path, part = (
        tmp_path / "linear_BTCUSDT_1m.csv",
        minutes().aligned(archive_instrument(minutes())),
    )
    filled(path, part, slice(0, 10))
    lines = lines_of(archive_instrument(part), part[10:13].bars())
    path.with_name(path.name + ".part").write_text("".join(lines)[:-3])
    with CandleFile(path) as file:
        assert file.times.tolist() == part.open_time_ms[:12].tolist()
        with pytest.raises(ConfigInvalid, match="is being fetched by another process"):
            CandleFile(path)
    other = tmp_path / "BTCUSDT_1m.csv"
    other.write_text("time,open,high,low,close,volume\n")
    with pytest.raises(ConfigInvalid, match="is no file of `tracepaper data fetch`"):
        CandleFile(other)


def test_a_fetch_wants_what_its_file_lacks() -> None:
    part = minutes([*range(10, 20), *range(30, 40)])
    first = int(minutes(slice(0, 1)).open_time_ms[0])
    until = first + 50 * MINUTE

    def wanted(from_ms: int | None, stored: Candles | None = part) -> list[tuple[int, int]]:
        order = FetchRequest(Path(), part.category, (part.symbol,), MINUTE, from_ms, until)
        held = np.empty(0, dtype=np.int64) if stored is None else stored.open_time_ms
        times = wanted_times(order, held, archive_instrument(part))
        return [((a - first) // MINUTE, (b - first) // MINUTE) for a, b in runs(times, MINUTE)]

    assert wanted(first, None) == [(0, 50)]
    with pytest.raises(ConfigInvalid, match="say with --from where to start"):
        wanted(None, None)
    assert wanted(first) == [(0, 10), (20, 30), (40, 50)]
    assert wanted(None) == [(20, 30), (40, 50)]
    until += 59_999  # only candles that lie wholly inside are wanted
    assert wanted(first + 44 * MINUTE + 1) == [(45, 50)]
    until = first + 30_000
    with pytest.raises(ConfigInvalid, match="No candle closed"):
        wanted(first)


def test_a_whole_file_has_its_span_and_no_holes() -> None:
    file = quality(read_candles(SAMPLES / "binance_um_SOLUSDT_1m_2025-05.csv.gz"))
    assert (file.instrument, file.rows, file.gaps, file.missing) == (
        "linear:SOLUSDT", 1_500, (), 0,
    )  # fmt: skip
    assert file.last_ms - file.first_ms == 1_499 * 60_000
    assert (file.price_decimals, file.volume_decimals, file.turnover_decimals) == (2, 2, None)


def test_holes_and_odd_rows_of_a_real_file_are_counted() -> None:
    file = quality(read_candles(SAMPLES / "binance_spot_BTCUSDT_1h_2017-2018.csv.gz"))
    assert file.rows == 4_400 - 43
    assert file.missing == (file.last_ms - file.first_ms) // 3_600_000 + 1 - file.rows
    assert file.missing == sum((b - a) // 3_600_000 for a, b in file.gaps)
    assert any("43 candles off the grid dropped" in note for note in file.notes)


def test_opens_are_compared_with_the_close_before_only_without_a_hole() -> None:
    part = read_candles(SAMPLES / "binance_um_BTCUSDT_1m_2025-05.csv.gz")
    share = quality(part).open_is_previous_close
    assert share is not None
    equal = sum(o == c for o, c in zip(part.open[1:].tolist(), part.close.tolist(), strict=False))
    assert share == equal / (len(part) - 1)
    assert 0.2 < share < 0.6  # another venue than Bybit
    alternate = part[np.arange(0, len(part), 2)]
    assert quality(alternate).open_is_previous_close is None
