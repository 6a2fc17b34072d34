"""The pair at scale: two symbols, one strategy, opposite positions opened at the same close."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pair_cases import cointegrated, configured
from programs import ROOT
from recordings import record
from records import check_record, rows

from tracepaper.replay.archive import read_candles, slice_candles

pytestmark = pytest.mark.slow

CLOSES = 15_000


OPENED = (
    "SELECT d.open_time_ms, group_concat(o.side, ' ') FROM v_orders o "
    "JOIN v_decisions d ON d.run_id = o.run_id AND d.sequence = o.decision_sequence "
    "WHERE d.action IN ('LONG', 'SHORT') AND o.status = 'FILLED' GROUP BY 1"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pair") / "pair.db"
    record(path, configured(), cointegrated(CLOSES))
    return path


@pytest.mark.long
def test_a_pair_trades_thirty_thousand_bars_and_verify_says_yes(whole: Path) -> None:
    assert check_record(whole) == 2 * CLOSES
    sides = [sides.split() for _, sides in rows(whole, OPENED)]
    assert len(sides) > 100  # one leg at a time would show a single side
    assert all(sorted(both) == ["BUY", "SELL"] for both in sides)


def test_a_pair_of_real_candles_trades_and_verify_says_yes(tmp_path: Path) -> None:
    folder = ROOT / "tests" / "data" / "candles"
    data = [
        slice_candles(read_candles(str(path)), slice(0, 2_000))
        for path in sorted(folder.glob("binance_um_*_1m_2025-05.csv.gz"))
    ]
    symbols = [part.symbol for part in data]
    assert symbols == ["BTCUSDT", "SOLUSDT"]
    path = tmp_path / "real.db"
    record(path, configured(symbols), data)
    assert check_record(path) == sum(map(len, data))
    opened = rows(path, OPENED)
    assert len(opened) > 5
    assert all(sorted(sides.split()) == ["BUY", "SELL"] for _, sides in opened)


def test_a_hole_in_one_leg_holds_both_and_the_rest_is_traded(tmp_path: Path) -> None:
    first, second = cointegrated(600)
    kept = np.delete(np.arange(600), slice(300, 330))
    path = tmp_path / "hole.db"
    record(path, configured(), [first, slice_candles(second, kept)])
    check_record(path)
    start = int(first.open_time_ms[300])
    inside = f"open_time_ms >= {start} AND open_time_ms < {start + 30 * 60_000}"
    actions = rows(path, f"SELECT DISTINCT action FROM v_decisions WHERE {inside}")
    assert actions == [("HOLD",)]
    assert rows(path, f"SELECT count(*) FROM v_decisions WHERE NOT ({inside})")[0][0] == 1_140


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"enter": 0.5, "leave": 2.0}, "leave 2 must be under enter 0.5"),
        ({"window": 0}, "Pair.warmup is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: dict[str, float], words: str, tmp_path: Path
) -> None:
    from tracepaper.strategies.errors import ConfigInvalid

    config = configured(strategy={"options": options})
    with pytest.raises(ConfigInvalid, match=words):
        record(tmp_path / "a.db", config, cointegrated(10))
