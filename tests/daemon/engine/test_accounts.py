"""Accounts keep their laws through random histories, and a restart carries the same."""

from __future__ import annotations

from collections import Counter

from histories import History

HISTORIES = ((5, ""), (9, ""), (3, "book"), (2, "universe"))
EVENTS = 120


def test_accounts_keep_their_laws_at_every_step_of_random_histories() -> None:
    reached: Counter[str] = Counter()
    for seed, kind in HISTORIES:
        reached += History(seed, kind, most=EVENTS).counted
    assert {"fills", "restarts", "crossed", "liquidation"} <= reached.keys()
