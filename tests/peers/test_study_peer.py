"""The same column and panel through alphalens-reloaded: equal to 1e-9.

Both drop a bar without a value or without the return of any horizon, rank the symbols of a time,
cut quantiles as pandas' ``qcut``, and take a time's mean off its returns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from other_backtesters import Peer
from study_cases import panel_candles, scrambled

from tracepaper.replay.checks.study import panel_of, studied

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1_800)]


def test_alphalens_finds_the_same_correlations_means_and_spreads(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPAPER_TRIALS", str(tmp_path / "trials.db"))
    candles = panel_candles(20, 600, seed=3)
    column = scrambled(candles, seed=4, missing=0.05)
    panel = panel_of(candles)
    theirs = peer(
        "alphalens",
        {
            "times_ms": panel.times_ms.tolist(),
            "symbols": [part.symbol for part in candles],
            "prices": panel.close.tolist(),
            "column": np.where(
                np.isfinite(placed := panel.placed([column[part.symbol] for part in candles])),
                placed, np.nan,
            ).tolist(),
            "horizons": [1, 4, 24],
        },
    )["horizons"]  # fmt: skip
    for ours, their in zip(studied(column, candles).looks, theirs, strict=True):
        assert ours.ic[0] == pytest.approx(their["ic"], abs=1e-9)
        assert ours.means == pytest.approx(their["means"], abs=1e-9)
        # Theirs is that of a book of 100 % gross, half long and half short; ours of 100 % each.
        assert ours.spread[0] == pytest.approx(2 * their["spread"], abs=1e-9)
