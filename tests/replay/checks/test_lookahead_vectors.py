"""``lookahead`` takes later rows of a user's vectors away: whoever looks at them is found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import user_strategies as users
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from numpy.typing import NDArray
from vector_cases import CONTEXT, sections

from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.compare import Difference
from tracepaper.replay.checks.derived import DerivedRun, derive_candles, first_moved
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import lookahead
from tracepaper.replay.checks.perturbations import (
    FutureProbe,
    corrupt_later,
    replaced_covariates,
    shift_rows,
)
from tracepaper.replay.checks.probes import Limits
from tracepaper.storage.covariates import read_covariates
from tracepaper.strategies.covariates import CovariateColumns, Ids, rows_of

MINUTE_MS = 60_000
BARS = CONTEXT + 50
PROBES = (-30, -9)


@pytest.fixture(scope="module")
def walk() -> Candles:
    return made_candles(walk_rows(BARS))


@pytest.fixture(scope="module", autouse=True)
def fresh() -> Iterator[FreshProcesses]:
    """Start the server before all tests, so that it loads torch meanwhile."""
    with FreshProcesses("tracepaper.strategies.forecasters.build") as server:
        yield server


def vectors(folder: Path, walk: Candles) -> Path:
    """Write a row in every third minute, a second after the bar before has closed."""
    rng = np.random.default_rng(2)
    rows = [f"{at + 1_000},{rng.normal()!r}" for at in walk.open_time_ms[::3].tolist()]
    path = folder / "news.csv"
    path.write_text("\n".join(["time,mood", *rows]), encoding="utf-8")
    return path


def config(folder: Path, walk: Candles, **more: Mapping[str, Any]) -> Config:
    given = {**sections(folder, vectors(folder, walk)), **more}
    return load(None, {**given, "market": {"symbols": ["BTCUSDT"]}})


def probed(config: Config, walk: Candles) -> list[Difference]:
    """Return what moved at two bars whose future is corrupted, and cut off."""
    data = MarketData([walk])
    base, differences = DerivedRun(derive_candles(config, data, "scan", 60.0)), []
    for place, cut in zip(PROBES, (False, True), strict=True):
        probe = FutureProbe(0, int(walk.open_time_ms[place]), cut)
        with probe.changed(config, data) as (other, future):
            run = DerivedRun(derive_candles(other, future, "scan", 60.0))
        moved, compared = first_moved(base, run, until_ms=probe.at_ms)
        assert compared > 0
        differences += [] if moved is None else [moved.difference]
    return differences


def test_what_a_bar_could_know_stays_as_it_was(tmp_path: Path, walk: Candles) -> None:
    assert probed(config(tmp_path, walk), walk) == []


def test_a_join_that_looks_a_row_ahead_is_found(
    tmp_path: Path, walk: Candles, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = CovariateColumns.at

    def peeking(
        self: CovariateColumns, symbol: str, closes_ms: Ids, interval_ms: int
    ) -> NDArray[np.float32]:
        return honest(self, symbol, closes_ms + 3 * MINUTE_MS, interval_ms)

    monkeypatch.setattr(CovariateColumns, "at", peeking)
    moved = probed(config(tmp_path, walk), walk)
    assert len(moved) == len(PROBES)
    assert moved[0].open_time_ms > int(walk.open_time_ms[PROBES[0] - 5])


PEEKING = {
    "top": "import sys",
    "head": "needs_forecast = True",
    "init": "self.rows = None",
    "decide": "frame = sys._getframe()\n"
    "while self.rows is None:\n"
    "    frame = frame.f_back\n"
    "    if 'replay' in frame.f_locals:\n"
    "        self.rows = frame.f_locals['replay'].forecaster.vectors.rows_for('BTCUSDT')\n"
    "later = self.rows.time_ms > bar.close_time_ms\n"
    "return by(later.any() and self.rows.values[later][0, 0] > 0)",
}


def test_a_strategy_that_finds_the_file_in_memory_is_found(tmp_path: Path, walk: Candles) -> None:
    (tmp_path / "peeking_rows.py").write_text(users.source(**PEEKING))
    with users.importable(tmp_path):
        given = config(tmp_path, walk, strategy={"name": "peeking_rows:Mine"})
        moved = probed(given, walk)
    assert moved


def test_the_whole_check_holds_and_moves_the_rows_with_the_bars(
    tmp_path: Path, walk: Candles, fresh: FreshProcesses
) -> None:
    finding = lookahead(config(tmp_path, walk), MarketData([walk]), fresh, Limits(probes=1))
    assert finding.passes, finding.differences
    assert finding.depends == []


def test_rows_are_corrupted_cut_off_or_moved_as_it_is_said(tmp_path: Path, walk: Candles) -> None:
    given = config(tmp_path, walk)
    at = int(walk.open_time_ms[9]) + 1_000  # that of the fourth row
    for cut, count in ((True, 4), (False, len(range(0, BARS, 3)))):
        with replaced_covariates(given, corrupt_later(at, cut=cut)) as other:
            assert other.model.covariates is not None
            rows = read_covariates(Path(other.model.covariates)).rows[""]
        assert len(rows) == count
        kept = read_covariates(tmp_path / "news.csv").rows[""]
        assert (rows.values[:4] == kept.values[:4]).all()
        assert (rows.values[4:] != kept.values[4 : len(rows)]).all()
        assert not Path(other.model.covariates).exists()
    rows = rows_of(np.array([5, 9]), np.ones((2, 1)))
    assert shift_rows(-2)(rows).time_ms.tolist() == [3, 7]
    assert len(corrupt_later(1, cut=True)(rows)) == 2  # of none nothing could be asked
