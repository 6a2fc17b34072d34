from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tracepaper.replay.archive import Candles, read_candles, slice_candles
from tracepaper.replay.archive.download import FetchRequest, runs, wanted_times
from tracepaper.replay.archive.series import archive_instrument, held, import_candles, quality
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

SAMPLES = Path(__file__).parents[2] / "data" / "candles"
MINUTE = 60_000


def minutes(rows: Sequence[int] | slice = slice(None), symbol: str = "BTC") -> Candles:
    part = read_candles(SAMPLES / f"binance_um_{symbol}USDT_1m_2025-05.csv.gz")
    return slice_candles(part, rows if isinstance(rows, slice) else np.array(rows))


def columns(candles: Candles) -> list[object]:
    names = ("open_time_ms", "open", "high", "low", "close", "volume")
    values = [getattr(candles, name).tolist() for name in names]
    turnover = None if candles.turnover is None else candles.turnover.tolist()
    return [candles.instrument, candles.interval_ms, values, turnover]


def test_what_is_imported_reads_back_equal(tmp_path: Path) -> None:
    for part in (minutes(), read_candles(SAMPLES / "binance_um_BTCUSDT_1h_2019.csv.gz")):
        archive = tmp_path / f"{part.interval_ms}.db"
        import_candles(archive, [part])
        back = read_candles(archive)
        scaled = part.rescaled(
            price_decimals=back.price_decimals,
            volume_decimals=back.volume_decimals,
            turnover_decimals=back.turnover_decimals,
        )
        assert columns(back) == columns(scaled)


def test_importing_again_adds_nothing_and_overlap_adds_what_is_new(tmp_path: Path) -> None:
    archive = tmp_path / "candles.db"
    (first,) = import_candles(archive, [minutes(slice(0, 200))])
    assert (first.added, first.existing, first.gaps) == (200, 0, 0)
    (again,) = import_candles(archive, [minutes(slice(0, 200))])
    assert (again.added, again.existing) == (0, 200)
    (more,) = import_candles(archive, [minutes(slice(150, 260))])
    assert (more.added, more.existing) == (60, 50)
    (series,) = held(archive)
    assert (series.instrument, series.bars, series.gaps) == ("linear:BTCUSDT", 260, ())


def test_a_contradiction_leaves_the_archive_as_it_was(tmp_path: Path) -> None:
    archive = tmp_path / "candles.db"
    import_candles(archive, [minutes(slice(0, 100))])
    wrong = minutes(slice(50, 150))
    wrong.close[10] += 1
    wrong.high[10] += 1
    with pytest.raises(DataInvalid, match="contradict each other in high") as caught:
        import_candles(archive, [minutes(slice(0, 400), "SOL"), wrong])
    assert str(archive) in str(caught.value)
    assert wrong.path in str(caught.value)
    assert [(row.instrument, row.bars) for row in held(archive)] == [("linear:BTCUSDT", 100)]


def test_several_series_are_listed_and_chosen_by_symbol(tmp_path: Path) -> None:
    archive = tmp_path / "candles.db"
    import_candles(archive, [minutes(), minutes(symbol="SOL")])
    assert [candles.instrument for candles in held(archive)] == ["linear:BTCUSDT", "linear:SOLUSDT"]
    assert read_candles(f"SOLUSDT={archive}").instrument == "linear:SOLUSDT"
    assert read_candles(archive, symbol="BTCUSDT").instrument == "linear:BTCUSDT"
    with pytest.raises(ConfigInvalid, match="holds linear:BTCUSDT of 60 s, linear:SOLUSDT of 60 s"):
        read_candles(archive)
    with pytest.raises(DataInvalid, match="holds no XRPUSDT"):
        read_candles(archive, symbol="XRPUSDT")


def test_a_fetch_wants_what_the_archive_lacks(tmp_path: Path) -> None:
    archive = tmp_path / "candles.db"
    part = minutes([*range(10, 20), *range(30, 40)])
    first = int(minutes(slice(0, 1)).open_time_ms[0])
    instrument = archive_instrument(part)
    until = first + 50 * MINUTE

    def wanted(from_ms: int | None) -> list[tuple[int, int]]:
        order = FetchRequest(archive, part.category, (part.symbol,), MINUTE, from_ms, until)
        times = wanted_times(order, instrument)
        return [((a - first) // MINUTE, (b - first) // MINUTE) for a, b in runs(times, MINUTE)]

    assert wanted(first) == [(0, 50)]
    with pytest.raises(ConfigInvalid, match="say with --from where to start"):
        wanted(None)
    import_candles(archive, [part])
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
    alternate = slice_candles(part, np.arange(0, len(part), 2))
    assert quality(alternate).open_is_previous_close is None
