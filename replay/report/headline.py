"""A run's own account in one flat dictionary: what a notebook shows and a sweep compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from tracepaper.replay.report import metrics
from tracepaper.replay.report.accounts import RANDOM_TWINS, random_twins
from tracepaper.replay.report.document import BUY_AND_HOLD, account_report, held_alike
from tracepaper.replay.report.figures import ACCOUNTS
from tracepaper.replay.report.record import RunRecord
from tracepaper.replay.report.trades import ClosedTrade

Headline = dict[str, float | int | None]

_LAST: Final = np.zeros(1, dtype=np.int64)


def headline(record: RunRecord, closed: Sequence[ClosedTrade]) -> Headline:
    """Return the figures of *record*'s own account; *closed* are its closed trades.

    They have the keys of ``tracepaper report --json``; an estimate ``x`` has its standard error by
    day beside it as ``x_error``. To them come ``bars``; ``held_return``, of buying and holding the
    run's own mean exposure (where the run has the twin ``buy_and_hold``, what that one did);
    ``buy_and_hold_return``, of all the money; and ``random_beaten``, the share of ``random_twins``
    that ended with less (docs/python.md, Y7). What a run is too short for, or did not do, is None.
    """
    account = account_report(record, record.account, closed)
    found: Headline = {"bars": account.performance.bars}
    for figure in ACCOUNTS[1:]:  # the first is the account's name
        value = figure.of(account)
        if isinstance(value, tuple):
            found[figure.key], found[f"{figure.key}_error"] = value
        else:
            assert not isinstance(value, str)
            found[figure.key] = value
            if figure.key in ("mean_day", "sharpe"):
                found[f"{figure.key}_error"] = None
    held = {name: metrics.total_return(equity) for name, _, equity, _ in held_alike(record)}
    found["buy_and_hold_return"] = held.pop(BUY_AND_HOLD)
    twin = record.held_twin
    found["held_return"] = (
        next(iter(held.values()), None) if twin is None else metrics.total_return(twin.equity)
    )
    drawn = random_twins(record, record.account, _LAST) if record.every_bar else None
    found["random_twins"] = RANDOM_TWINS if drawn else 0
    found["random_beaten"] = drawn.beaten if drawn else None
    return found
