"""What is known of the race so far, taken from what the daemon's process told; pure."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from tracepaper.replay.demonstration.told import BarTold, Begun, CommandTold, GapTold, Paced, Told
from tracepaper.strategies.gates import late
from tracepaper.strategies.market import DAY_MS

OWN: Final = ""
"""The run's own account among the equities."""
FILLS_KEPT: Final = 4


@dataclass(frozen=True)
class FillSeen:
    """One of the newest fills."""

    close_ms: int
    instrument: str
    side: str
    quantity: float
    price: float
    reason: str


@dataclass(slots=True)
class Race:
    """Every account's equity over market time, the newest fills, and what was late."""

    begun: Begun | None = None
    starts: int = 0  # how often the process began
    sequence: int = -1  # of the newest stored step that was told
    start_ms: int = 0  # close of the first decided bar
    now_ms: int = 0  # close of the newest
    prices: dict[str, list[float]] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    times_ms: list[int] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)  # equity at each of the times
    fill_counts: Counter[str] = field(default_factory=Counter)  # by account
    fills: deque[FillSeen] = field(default_factory=lambda: deque(maxlen=FILLS_KEPT))
    gaps: list[GapTold] = field(default_factory=list)
    commands: list[CommandTold] = field(default_factory=list)
    closes: int = 0  # moments at which bars closed
    decisions: int = 0
    late: int = 0  # decisions that `late` refused
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def day(self) -> int:
        """The UTC day that the newest bar closes in, as a number."""
        return max(0, self.now_ms - 1) // DAY_MS

    def change(self, account: str) -> float:
        """Return the return of *account* so far, as a fraction of the cash at the start."""
        curve, cash = self.curves.get(account), self.begun.cash if self.begun else 0.0
        return curve[-1] / cash - 1.0 if curve and cash else 0.0

    def observe(self, told: Told) -> None:
        """Take in one line of the daemon's process."""
        match told:
            case Begun():
                self.begun = told
                self.starts += 1
            case BarTold():
                self.sequence = told.sequence
                if told.is_decided:
                    self._bar(told)
            case GapTold():
                self.gaps.append(told)
            case CommandTold():
                self.sequence = told.sequence
                self.commands.append(told)
            case Paced():
                pass

    def _bar(self, told: BarTold) -> None:
        self.start_ms = self.start_ms or told.close_ms
        if told.close_ms > self.now_ms:
            self.now_ms = told.close_ms
            self.closes += 1
        self.decisions += 1
        self.late += told.refused_by == late.name
        self.refused[told.refused_by] += 1
        self.prices.setdefault(told.instrument, []).append(told.close)
        self.held[told.instrument] = told.held
        if not self.times_ms or told.close_ms > self.times_ms[-1]:
            self.times_ms.append(told.close_ms)
            for name in {**self.curves, **told.equities}:
                curve = self.curves.setdefault(name, [])
                curve.append(curve[-1] if curve else 0.0)
        for name, equity in told.equities.items():
            self.curves[name][-1] = equity
        self.fill_counts[OWN] += len(told.fills)
        self.fill_counts.update(told.twin_fills)
        for fill in told.fills:
            self.fills.append(
                FillSeen(
                    told.close_ms,
                    told.instrument,
                    fill.side,
                    fill.quantity,
                    fill.price,
                    fill.reason,
                )
            )
