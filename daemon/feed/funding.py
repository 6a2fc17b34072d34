"""The schedule of an instrument's funding settlements: which are due, delivered or doubted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Final

from tracepaper.strategies.types.market import Funding, Gap, GapCause
from tracepaper.strategies.units import MINUTE_MS

DOUBTED_RATES: Final = 16
"""Remembered settlements with a doubtful rate, so that each is delivered only once."""


class FundingSchedule:
    """Delivers each settlement of an instrument once, also after a restart.

    Settlements fall on multiples of the instrument's interval (00, 08 and 16 UTC for eight hours).
    One that the ticker announces at another time is expected as well.
    """

    def __init__(self, *, interval_minutes: int, settled_ms: int) -> None:
        self._interval_ms = interval_minutes * MINUTE_MS
        self._announced_ms = 0
        self._requested_ms = settled_ms
        self._doubted: deque[tuple[int, int]] = deque(maxlen=DOUBTED_RATES)  # time and rate
        self.settled_ms = settled_ms  # the newest that need not be requested again
        self.queued_ms: set[int] = set()  # times of those that wait in the feed's queue

    def announce(self, next_ms: int) -> None:
        """Take in the ticker's ``nextFundingTime``."""
        if self._announced_ms <= self.settled_ms:
            self._announced_ms = next_ms

    def is_overdue(self, market_ms: int) -> bool:
        """Return whether a settlement is due by *market_ms* and not delivered."""
        return self._due_ms(self.settled_ms) <= market_ms

    def is_due_by(self, close_ms: int) -> bool:
        """Return whether a settlement is due by *close_ms* and was never requested."""
        return self._due_ms(self._requested_ms) <= close_ms

    def _due_ms(self, after_ms: float) -> float:
        """Return the time of the first settlement after *after_ms*; infinity without funding."""
        if not self._interval_ms:
            return float("inf")
        grid_ms = (after_ms // self._interval_ms + 1) * self._interval_ms
        return min(grid_ms, self._announced_ms) if self._announced_ms > after_ms else grid_ms

    def note_request(self, until_ms: int) -> None:
        """Note that all settlements up to *until_ms* were requested once."""
        self._requested_ms = max(self._requested_ms, until_ms)

    def change(self, interval_minutes: int) -> None:
        """Use the exchange's new interval from the next settlement on."""
        self._interval_ms = interval_minutes * MINUTE_MS

    def settle(
        self,
        settlements: Iterable[Funding],
        doubts: Callable[[Funding], bool] = lambda _funding: False,
    ) -> list[Funding | Gap]:
        """Return the new ones of *settlements* (oldest first), and count them as delivered.

        A settlement whose rate is doubted (*doubts*) is returned once, and stays due. Before a
        settlement there is a ``Gap`` for each earlier one that was due: the exchange publishes
        settlements in order, so those will never arrive.
        """
        new: list[Funding | Gap] = []
        for settlement in settlements:
            if settlement.market_ms <= self.settled_ms:
                continue
            if doubts(settlement):
                if (key := (settlement.market_ms, settlement.rate)) not in self._doubted:
                    self._doubted.append(key)
                    new.append(settlement)
                continue
            new += self._missed(settlement)
            new.append(settlement)
            self.settled_ms = settlement.market_ms
        self.note_request(self.settled_ms)
        return new

    def _missed(self, settlement: Funding) -> list[Gap]:
        """Return a gap for each missing settlement that was due before this one.

        None is missing if the ticker announced this one as the next: the interval became longer.
        """
        at_ms = settlement.market_ms
        dues = []
        due_ms = self._due_ms(self.settled_ms)
        while due_ms < at_ms and self._announced_ms != at_ms:
            dues.append(int(due_ms))
            due_ms = self._due_ms(due_ms)
        return [
            Gap(settlement.instrument, due, until, GapCause.FUNDING, "", at_ms, at_ms)
            for due, until in pairwise([*dues, at_ms])
        ]
