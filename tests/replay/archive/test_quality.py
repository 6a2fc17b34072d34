from __future__ import annotations

from pathlib import Path

import numpy as np

from tracepaper.replay.archive import read_candles, slice_candles
from tracepaper.replay.archive.series import quality

SAMPLES = Path(__file__).parents[2] / "data" / "candles"


def test_a_whole_file_has_its_span_and_no_holes() -> None:
    found = quality(read_candles(SAMPLES / "binance_um_SOLUSDT_1m_2025-05.csv.gz"))
    assert (found.instrument, found.rows, found.gaps, found.missing) == (
        "linear:SOLUSDT", 1_500, (), 0,
    )  # fmt: skip
    assert found.last_ms - found.first_ms == 1_499 * 60_000
    assert (found.price_decimals, found.volume_decimals, found.turnover_decimals) == (2, 2, None)


def test_holes_and_odd_rows_of_a_real_file_are_counted() -> None:
    found = quality(read_candles(SAMPLES / "binance_spot_BTCUSDT_1h_2017-2018.csv.gz"))
    assert found.rows == 4_400 - 43
    assert found.missing == (found.last_ms - found.first_ms) // 3_600_000 + 1 - found.rows
    assert found.missing == sum((b - a) // 3_600_000 for a, b in found.gaps)
    assert any("43 candles off the grid dropped" in note for note in found.notes)


def test_opens_are_compared_with_the_close_before_only_without_a_hole() -> None:
    part = read_candles(SAMPLES / "binance_um_BTCUSDT_1m_2025-05.csv.gz")
    share = quality(part).open_is_previous_close
    assert share is not None
    equal = sum(o == c for o, c in zip(part.open[1:].tolist(), part.close.tolist(), strict=False))
    assert share == equal / (len(part) - 1)
    assert 0.2 < share < 0.6  # another venue than Bybit
    alternate = slice_candles(part, np.arange(0, len(part), 2))
    assert quality(alternate).open_is_previous_close is None
