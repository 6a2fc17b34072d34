"""The checker: sound records of every kind break no law, and a planted fault names its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from world.backtests import KINDS, recorded_backtest
from world.checker import violations


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_record_breaks_no_law(tmp_path: Path, kind: str) -> None:
    database, truth = recorded_backtest(kind, 0, tmp_path)
    assert violations(database, truth) == []
