"""The twins: shadow accounts beside the run's own, and what they depend on.

``ungated`` follows every signal. ``random_gate`` follows as many as the judgement gates let through
on the card's calibration slice, or in the run so far, drawn by chance. ``buy_and_hold`` holds as
much as the run did so far, in the mean.

The rules are docs/decisions.md, G18.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from msgspec import Struct

UNGATED: Final = "ungated"
RANDOM_GATE: Final = "random_gate"
BUY_AND_HOLD: Final = "buy_and_hold"
TWINS: Final = {
    UNGATED: "the same forecasts without the judgement gates",
    RANDOM_GATE: (
        "the same forecasts, let through by chance as often as the run's gates did so far, or as "
        "the card counted on its calibration slice, where a warning of the run says so"
    ),
    BUY_AND_HOLD: "held long at the run's mean exposure so far",
}
"""Every twin by its name, and what it does."""
COUNTED: Final = frozenset({RANDOM_GATE, BUY_AND_HOLD})
"""Those that depend on what the run itself did before."""
RANDOM_SEED: Final = 1
_DRAWN: Final = 1 << 64


class TwinBasis(Struct, frozen=True, array_like=True):
    """What the run did with one instrument, over its bars so far that were no warm-up."""

    bars: int = 0
    judged: int = 0  # bars whose inputs could be believed
    passed: int = 0  # of them those that no judgement gate refused
    exposure: float = 0.0  # sum of the position's value by the equity, without its sign

    def passes(self, instrument: str, open_time_ms: int, share: float | None = None) -> bool:
        """Return whether chance lets the signal of a bar through: a function of these alone.

        It passes with *share*, or with the run's own so far; of that the first signal passes,
        since nothing was judged before it.
        """
        if share is None and not self.judged:
            return True
        drawn = sha256(f"{RANDOM_SEED}:{instrument}:{open_time_ms}:0".encode()).digest()[:8]
        number = int.from_bytes(drawn, "big")
        if share is not None:
            return number < int(share * _DRAWN)
        return number * self.judged < self.passed * _DRAWN

    @property
    def usual_exposure(self) -> float:
        """The mean of the position's value by the equity; 0 before the first bar."""
        return self.exposure / self.bars if self.bars else 0.0
