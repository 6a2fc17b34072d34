"""Value at risk beside that of empyrical-reloaded, on the same returns."""

from __future__ import annotations

import numpy as np
import pytest
from other_backtesters import CANDLES, Peer

from tracepaper.replay.archive import read_candles
from tracepaper.replay.report.book_risk import LEVELS, tails_of

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1_800)]


@pytest.mark.parametrize("size", [80, 81, 250, 1_000])
def test_the_value_at_risk_equals_empyricals_at_its_level(peer: Peer, size: int) -> None:
    close = read_candles(CANDLES).close[: size + 1].astype(np.float64)
    returns = close[1:] / close[:-1] - 1
    # Ours is exceeded as often as stated; theirs, at the same level, more often (docs/risk.md, H3).
    equal = [max((size + 1) * level - 1, 0) / (size - 1) for level in LEVELS]
    asked = {"returns": returns.tolist(), "levels": LEVELS, "at": equal}
    theirs = peer("empyrical", asked)["figures"]
    ours = {tail.level: tail for tail in tails_of(returns, np.arange(size), 1.0)
            if tail.method == "history"}  # fmt: skip
    for level, (value_at_risk, _) in zip(LEVELS, theirs, strict=True):
        assert -ours[level].value_at_risk[0] == pytest.approx(value_at_risk, rel=1e-9)
