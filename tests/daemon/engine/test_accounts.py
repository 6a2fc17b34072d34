"""Accounts keep their laws through random histories, restarts and the stored record."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from histories import History, RecordedHistory

HISTORIES = ((10, "one"), (1, "focused"))
EVENTS = 120


def test_accounts_keep_their_laws_at_every_step_of_random_histories() -> None:
    reached: Counter[str] = Counter()
    for seed, kind in HISTORIES:
        reached += History(seed, kind, most=EVENTS).counted
    assert {"fills", "restarts", "liquidation", "settled inside a bar"} <= {*+reached}


@pytest.mark.parametrize(
    ("seed", "kind"),
    [(1, "one"), (2, "focused"), (2, "spot")],
)
def test_what_is_stored_of_a_random_history_holds_and_restarts_go_on_with_it(
    seed: int, kind: str, tmp_path: Path
) -> None:
    counted = RecordedHistory(seed, tmp_path / "run.db", kind, most=EVENTS).counted
    assert counted["restarts"]
    assert min(counted["fills"], counted["derived"]) > 10
