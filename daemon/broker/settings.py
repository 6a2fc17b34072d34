"""The settings of a broker: accounts, costs, latency and fills.

The rules are docs/money.md, M6 to M21.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from math import log
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.broker.exit_plans import Exits
from tracepaper.strategies.months import interval_end
from tracepaper.strategies.sessions import Calendar
from tracepaper.strategies.types.decisions import FillModel

FILL_WITHIN_MS: Final = 10_000


class Latency(Struct, frozen=True):
    """The time from a decision to the exchange: bars, then a constant plus exponential jitter.

    The jitter is a function of (seed, instrument, open time of the deciding bar, ordinal). The
    ordinal counts the orders that a step creates for the instrument in one account. Bars are
    counted by the instrument's calendar, if it has one.
    """

    fixed_ms: int
    mean_jitter_ms: int = 0
    seed: int = 0
    bars: int = 0
    interval_ms: int = 0
    calendars: Mapping[str, Calendar] = {}  # by instrument id

    def eligible_ms(self, at_ms: int, instrument: str, opened_ms: int, ordinal: int) -> int:
        """Return when an order reaches the exchange that the bar of *opened_ms* sent at *at_ms*.

        With bars, it is at the earliest the open of the bar so many bars after the next one.
        """
        if self.bars:
            at_ms = max(at_ms, self._open_after(opened_ms, self.calendars.get(instrument)))
        return at_ms + self.of(instrument, opened_ms, ordinal)

    def _open_after(self, opened_ms: int, calendar: Calendar | None) -> int:
        if calendar is not None:
            return calendar.open_at(calendar.place(opened_ms) + 1 + self.bars)
        for _ in range(1 + self.bars):
            opened_ms = interval_end(opened_ms, self.interval_ms)
        return opened_ms

    def of(self, instrument: str, opened_ms: int, ordinal: int) -> int:
        """Return the latency of one order."""
        if not self.mean_jitter_ms:
            return self.fixed_ms
        identity = f"{self.seed}|{instrument}|{opened_ms}|{ordinal}".encode()
        share = int.from_bytes(sha256(identity).digest()[:6], "big") / 2**48
        return self.fixed_ms + int(-log(1.0 - share) * self.mean_jitter_ms)


class BrokerSettings(Struct, frozen=True):
    """Settings of accounts, costs and fills; money in 10⁻⁸, times in milliseconds."""

    execution: FillModel
    costs: ExecutionCosts
    cash: int
    latency: Latency
    fill_within_ms: int = FILL_WITHIN_MS
    costs_of: Mapping[str, ExecutionCosts] = {}  # by instrument id, where costs differ
    leverage: int | None = None  # of linear positions, in 10⁻²; None: no margin
    is_cross: bool = False  # whether one balance is the margin of all linear positions
    exits: Exits | None = None  # for every position that a signal enters

    def costs_for(self, instrument: str) -> ExecutionCosts:
        """Return the costs of trading *instrument*: those set for it, or the default."""
        return self.costs_of.get(instrument, self.costs)

    @property
    def of_fills(self) -> BrokerSettings:
        """These settings without what only dates orders: the milliseconds, if bars fill them."""
        if self.execution is not FillModel.NEXT_OPEN:
            return self
        return replace(self, latency=replace(self.latency, fixed_ms=0, mean_jitter_ms=0, seed=0))
