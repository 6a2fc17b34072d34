"""The numbered rules of a run: each change, and the columns that it can move.

A run stores the number of changes that it was made by. ``verify`` of an older run names the
changes since, holds every other column bit for bit, and counts the steps in which these moved.

The rules are docs/identity.md, I18.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from tracepaper.storage.record.columns import HEAD_COLUMNS
from tracepaper.strategies.types.market import Category

ACCOUNT: Final = frozenset(
    {
        "orders",
        "fills",
        "ledger",
        "holdings",
        "states",
        "twin_steps",
        "twin_fills",
        "steps.unrealized_pnl",
        "steps.account_unrealized_pnl",
        # A signal that holds keeps the standing target, which an exit sets to 0.
        "steps.target_quantity",
        "steps.decision_sha256",
        "outcomes.unfilled_reason",
    }
)
"""Tables and columns that follow from fills: what a change of orders, fills or margin can move."""
DECIDED_BY_ACCOUNT: Final = frozenset(
    {
        "outcomes.action",
        "outcomes.reason",
        "outcomes.allowed",
        "outcomes.refused_by",
        "outcomes.passed",
        "outcomes.size_factor",
    }
)
"""Columns of a decision that follow from the account too, where a limit of risk or a horizon is
counted from what was held, or the strategy sees its account."""
NOTED_BY_ACCOUNT: Final = frozenset({"answers", "answers.note"})
"""What a strategy that sees its account notes beside."""

LOOKED: Final = frozenset(
    {
        "answers.recent_mass",
        "answers.older_mass",
        "answers.shift",
        "answers.l1_error",
        "answers.buckets",
        "answers.measure_confidence",
        "answers.measure_confidence_calibrated",
        "answers.measure_confidence_margin",
        "answers.measure_shifted",
        "answers.measure_regime",
        "outcomes.regime",
    }
)
"""Columns that follow from where a model looked."""


class RuleChange(NamedTuple):
    """One change of the rules; its number is its place in ``CHANGES``, counted from 1."""

    rule: str  # its number in docs/, such as "E13"
    sentence: str  # what holds since, in one sentence without its full stop
    moves: frozenset[str] = ACCOUNT  # tables, and columns as ``table.column``
    category: Category | None = None  # the only one that it concerns; None for every run
    discards: bool = False  # whether it concerns only runs whose explanation discards
    of_books: bool = False  # concerns only runs whose strategy looks at order books
    of_heads: bool = False  # concerns only runs whose network has auxiliary heads


CHANGES: Final[tuple[RuleChange, ...]] = (
    RuleChange(
        "B4",
        "a limit that had rested is filled at its own price where a gap passes it, and a target "
        "rests from when it is set or moved where the market has not reached it",
    ),
    RuleChange(
        "E10", "a level that would stand beyond the close is refused for a position that is held"
    ),
    RuleChange(
        "E11", "what a signal asked for stands as long as its target, also where it was refused"
    ),
    RuleChange(
        "E13",
        "a trailing stop starts where it is set, and neither further fills of its entry nor a "
        "repeated signal move it back or widen it",
    ),
    RuleChange("E14", "protection ends when the exit is filled, and not when it is asked for"),
    RuleChange(
        "G18",
        "the twin buy_and_hold counts the run's exposure from the first bar that is no warm-up",
        frozenset({"states", "twin_steps", "twin_fills"}),
    ),
    RuleChange(
        "K13",
        "a split is suspected only where the bar's close confirms its open",
        ACCOUNT | DECIDED_BY_ACCOUNT | {"steps.measure_plausible"},
        Category.STOCK,
    ),
    RuleChange(
        "T21", "bars before a run's period fill and liquidate nothing of an account taken over"
    ),
    RuleChange(
        "E8",
        "what closes a position at its time grows with what its entry still fills, goes where a "
        "signal names a later time, and an entry whose time is over is stored as given up",
    ),
    RuleChange(
        "M34",
        "a quote, mark price or funding rate that jumps waits until another source shows it",
        ACCOUNT | {"events.belief", "steps.shape"},
    ),
    RuleChange(
        "A21",
        "entries just below the threshold of discarding fade out",
        ACCOUNT | DECIDED_BY_ACCOUNT | LOOKED,
        discards=True,
    ),
    RuleChange(
        "D14",
        "a strategy sees no order book up to one that lies beyond the bar of its time",
        ACCOUNT
        | {"outcomes", "answers", "events.belief"}
        | {"steps.shape", "steps.outcome", "steps.window_sha256"},
        of_books=True,
    ),
    RuleChange(
        "M31",
        "what a fill or a settlement after the newest mark price brought past that price is "
        "liquidated at the bar's close",
    ),
    RuleChange(
        "M31", "a fill moves the liquidation price for what is left of its bar's path or its quote"
    ),
    RuleChange(
        "L59",
        "what auxiliary heads say is stored with the forecast, at the gates' horizon in columns",
        frozenset(f"answers.{name}" for name in HEAD_COLUMNS),
        of_heads=True,
    ),
)
"""Every change since runs store a number, oldest first: entries are only ever added."""


def changes_since(
    number: int,
    categories: Collection[Category],
    *,
    discards: bool,
    sees_books: bool,
    has_heads: bool,
) -> tuple[RuleChange, ...]:
    """List the changes that a run of *categories*, made by *number* of them, does not know.

    *discards* is whether its explanation drops the smallest entries of attention, *sees_books*
    whether its strategy looks at order books, *has_heads* whether its network has auxiliary heads.
    """
    return tuple(
        change
        for change in CHANGES[number:]
        if (change.category is None or change.category in categories)
        and (discards or not change.discards)
        and (sees_books or not change.of_books)
        and (has_heads or not change.of_heads)
    )
