"""What a trader's own account had of a run's decisions less than paper: tables of ``v_shortfall``.

The rules are docs/money.md, M107 to M109.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from tracepaper.replay.document.values import Figure, Table, of_row, of_view, table
from tracepaper.replay.report.metrics import mean_by_day
from tracepaper.storage.database.run_views import Row
from tracepaper.storage.record.columns import SHORTFALL_PARTS
from tracepaper.strategies.units import DAY_MS

WHOLE: Final = "shortfall"
SHOWN: Final = 8


def _price(whose: str, row: Row) -> float | None:
    """Return the mean price of the fills."""
    quantity: float = row[f"{whose}_quantity"]
    return float(row[f"{whose}_notional"]) / quantity if quantity else None


_PARTS: Final = (
    of_row("part", "", "text"),
    of_row("decisions", "decisions", "count"),
    of_row("money", "quote currency", "gain"),
    of_row("mean", "bp of the notional ± error", "gain bp"),
)
_DECISIONS: Final = (
    of_view("sequence", "decision", "step"),
    of_view("decided_ms", "at", "minute"),
    of_view("instrument", "instrument", "text"),
    of_view("side", "side", "text"),
    of_view("paper_quantity", "paper", "text", "paper_quantity_text"),
    of_view("account_quantity", "account", "text", "account_quantity_text"),
    *(
        Figure[Row](f"{whose}_price", f"{whose} at", "measure", partial(_price, whose), wide=True)
        for whose in ("paper", "account")
    ),
    of_view(WHOLE, "account less paper", "gain"),
    *(of_row(part, part, "gain", wide=True) for part in SHORTFALL_PARTS),
    of_view("cause", "cause", "text"),
)
_NOTE: Final = (
    "Money that the account made beyond paper, below zero where it fell short; the five parts add "
    "up to it. Errors count blocks of five days."
)


def shortfall_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """Yield the parts over all decisions, and the newest decisions; nothing without *rows*."""
    if not rows:
        return
    notional = np.array([row["paper_notional"] or row["account_notional"] for row in rows])
    days = np.array([row["decided_ms"] // DAY_MS for row in rows], dtype=np.int64)
    parts = []
    for part in (WHOLE, *SHORTFALL_PARTS):
        money = np.array([row[part] for row in rows])
        shares = money / notional
        parts.append(
            {
                "part": part,
                "decisions": int((money != 0).sum()),
                "money": float(money.sum()),
                "mean": mean_by_day(shares, days),
            }
        )
    title = "Shortfall of one's own fills"
    yield table("shortfall", title, _PARTS, parts, notes=(_NOTE,))
    newest = sorted(rows, key=lambda row: (row["decided_ms"], row["sequence"], row["ordinal"]))
    is_one = len({row["instrument"] for row in rows}) == 1
    figures = [
        replace(of, wide=of.wide or (is_one and of.key == "instrument")) for of in _DECISIONS
    ]
    title = "Shortfall by decision"
    yield table("shortfall_decisions", title, figures, newest, shown=SHOWN, newest=True)
