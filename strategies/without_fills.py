"""Why a run has filled nothing: never asked, refused, or unfilled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from tracepaper.strategies.gates.declared import warm
from tracepaper.strategies.types.decisions import Action, Order, OrderStatus
from tracepaper.strategies.units import count_of, minute_text

_NEVER_WARM: Final = (
    "No bar left the warm-up{}: give earlier candles, or let the strategy and its model look back "
    "on fewer."
)
ASKING: Final = frozenset({Action.LONG, Action.SHORT, Action.ORDERS})
"""Actions that ask for a position, or for orders of their own."""


class DecisionCounts:
    """Counts of a run's decisions by what became of them."""

    def __init__(self) -> None:
        self.bars = 0
        self.asked: Counter[str] = Counter()  # reasons of allowed decisions that asked for any
        self.refused: Counter[str] = Counter()  # by gate
        self.unfilled: Counter[str] = Counter()  # by reason
        self.idle: Counter[str] = Counter()  # reasons of allowed decisions that asked for none
        self.rejected: Counter[str] = Counter()  # orders, by reason
        self._first_ms: dict[str, int] = {}  # the open time of the first bar by unfilled reason

    def add(
        self,
        action: str,
        refused_by: str | None,
        reason: str,
        unfilled_reason: str | None,
        *,
        open_ms: int = 0,
        bars: int = 1,
    ) -> None:
        """Count *bars* decisions of one outcome, the first at the bar that opened at *open_ms*."""
        self.bars += bars
        if unfilled_reason:
            self.unfilled[unfilled_reason] += bars
            first_ms = self._first_ms.setdefault(unfilled_reason, open_ms)
            self._first_ms[unfilled_reason] = min(first_ms, open_ms)
        if refused_by:
            self.refused[refused_by] += bars
        elif action in ASKING:
            self.asked[reason] += bars
        else:
            self.idle[reason] += bars

    def add_orders(self, orders: Iterable[Order]) -> None:
        """Count the rejected ones of *orders*, those of a step."""
        self.rejected.update(
            order.reason for order in orders if order.status is OrderStatus.REJECTED
        )

    def why_no_fill(self, *, known: str = "") -> str:
        """Return up to three sentences on why nothing filled; nothing if no bar was decided.

        *known* says how many bars of how many the warm-up had, ``148 of 50,000``.
        """
        warmup = self.refused[warm.name]
        judged = self.bars - warmup
        if not judged:
            return _NEVER_WARM.format(f", which had {known} bars" * bool(known)) * bool(warmup)
        refused = self.refused.copy()
        del refused[warm.name]
        if self.asked:
            bars = count_of(self.asked.total(), "bar")
            cause = self._most_unfilled()
            return f"The strategy asked for a position on {bars}, and nothing filled{cause}."
        if refused.total() == judged:
            after = " after the warm-up" * bool(warmup)
            bars = f"all {judged:,} bars" if judged > 1 else "the only bar"
            return f"Gates refused {bars}{after}, {_most(refused)}."
        bars, refusals = f"{judged:,} of {self.bars:,} bars", ""
        if refused:
            bars = f"the {count_of(self.idle.total(), 'bar')} that no gate refused"
            refusals = f" Gates refused {refused.total():,}, {_most(refused)}."
        return f"The strategy asked for no position on {bars}.{most_given(self.idle)}{refusals}"

    def _most_unfilled(self) -> str:
        """Return the most frequent cause, with its number."""
        if self.unfilled:
            reason, count = self.unfilled.most_common(1)[0]
            first = minute_text(self._first_ms[reason])
            return f". Most often: {reason} ({count:,}, first at {first})"
        if self.rejected:
            reason, count = self.rejected.most_common(1)[0]
            return f". The exchange's rules rejected its orders, most often: {reason} ({count:,})"
        return ": no later bar or quote reached its orders"


def most_given(reasons: Counter[str]) -> str:
    """Return a sentence, after a space, with the most frequent of a strategy's *reasons*."""
    reason, count = reasons.most_common(1)[0]
    return f" Its reason on {count:,}: {reason}." * bool(reason)


def _most(counts: Counter[str]) -> str:
    name, count = counts.most_common(1)[0]
    return f"most by {name} ({count:,})"
