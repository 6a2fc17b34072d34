"""The broker takes the steps of the one before accounts were books, and a fault of it is seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from lockstep import Lockstep

from tracepaper.daemon.broker import matching
from tracepaper.daemon.broker.apportion import apportion

HEDGED, SEVERAL = 5, 9
EVENTS = 120


def test_every_step_is_equal_but_for_the_names_of_orders() -> None:
    reached: Counter[str] = Counter()
    for seed in (HEDGED, SEVERAL):
        reached += Lockstep(seed, most=EVENTS).counted
    assert {"fills", "restarts", "crossed", "liquidation"} <= reached.keys()


def test_a_fill_that_is_apportioned_otherwise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards(total: int, weights: Sequence[int]) -> list[int]:
        return apportion(total, weights[::-1])[::-1]

    monkeypatch.setattr(matching, "apportion", backwards)
    with pytest.raises(AssertionError):
        Lockstep(SEVERAL, most=EVENTS)
