"""A run by a fitted confidence keeps what decided it, derives it again, and finds it forged."""

from __future__ import annotations

import shutil
from pathlib import Path

import explained_runs
import msgspec
import pytest
from forging import rechain, verified
from records import rows, tamper

from tracepaper.strategies.types.calibration import FittedConfidence, LinearScore, RegimeCells

HEADS = 4  # two layers of two
SIGN = LinearScore(
    ("mean_over_stdev", "entropy_0", f"entropy_{HEADS - 1}"), (0.1, 0.2, 0.2), (0.1, 0.1, 0.1),
    (0.5, 0.3, -0.2), 0.1,
)  # fmt: skip
CALM = LinearScore(("entropy_1",), (0.1,), (0.01,), (1.0,), 0.0)
FITTED = FittedConfidence(30, "calibrated", strict=False, sign=SIGN, volatility=CALM,
                          edges=(0.5,), spread=(1.25, 0.9))  # fmt: skip
CELLS = RegimeCells(("recent_mass", "confidence_entropy"), (0.5, 0.2), (0.05, 0.02),
                    ((-1.0, 0.0), (0.0, 0.0), (1.0, 0.0)), (0.5, 1.0, 2.0),
                    (0.1, 0.1, 0.1))  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quantiles = {"confidence_calibrated": [place / 100 for place in range(1, 100)]}
    return explained_runs.replayed(
        tmp_path_factory.mktemp("fitted"),
        extra="[sizing]\nby_confidence = true\n",
        quantiles=quantiles,
        confidence=msgspec.to_builtins(FITTED),
        regimes=msgspec.to_builtins(CELLS),
    )


def holds(path: Path, database: Path) -> bool:
    return verified(path, database).passes


def test_the_record_names_the_confidence_the_regime_and_the_size(run: Path) -> None:
    query = "SELECT DISTINCT gate FROM v_gates WHERE gate LIKE 'confidence%'"
    assert rows(run, query) == [("confidence_calibrated",)]
    measured = rows(
        run,
        "SELECT g.measure, d.mean_return / d.stdev_return FROM v_gates g JOIN v_decisions d "
        "USING (sequence) WHERE g.gate = 'confidence_calibrated' AND g.measure IS NOT NULL",
    )
    assert len(measured) > 50
    assert all(0 < probability < 1 for probability, _ in measured)
    cells = {cell for (cell,) in rows(run, "SELECT DISTINCT regime_cell FROM v_decisions")}
    assert cells <= {None, 1, 2, 3}
    assert cells - {None}
    sized = rows(
        run, "SELECT DISTINCT size_factor FROM v_decisions WHERE action IN ('LONG', 'SHORT')"
    )
    assert {factor for (factor,) in sized} <= {0.8, 1.0}
    assert sized
    assert rows(run, "SELECT count(*) FROM v_decisions WHERE action = 'HOLD' "
                     "AND size_factor IS NOT NULL") == [(0,)]  # fmt: skip


def test_it_is_derived_again_and_what_was_forged_is_found(run: Path, tmp_path: Path) -> None:
    assert holds(run, run)
    for column, value in (("regime_cell", "regime_cell % 3 + 1"), ("size_factor", "0.9")):
        path = tmp_path / f"{column}.db"
        shutil.copy(run, path)
        tamper(
            path,
            f"UPDATE outcomes SET {column} = {value} WHERE sequence = "
            f"(SELECT max(sequence) FROM outcomes WHERE {column} IS NOT NULL)",
        )
        rechain(path)
        assert not holds(path, run)
