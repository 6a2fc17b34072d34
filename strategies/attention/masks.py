"""Which keys a query may see: full, causal or a causal window.

The rule is docs/attention.md, A2.
"""

from __future__ import annotations

import operator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from tracepaper.strategies.errors import AttentionInvalid


class MaskKind(StrEnum):
    """The kinds of visibility that every backend supports."""

    FULL = "full"
    CAUSAL = "causal"
    WINDOW = "window"


def whole(number: object, name: str) -> int:
    """Return *number* as an integer; raise ``AttentionInvalid`` for what is no whole number.

    *name* is what the sentence calls it.
    """
    if not isinstance(number, bool):
        # A tensor of several numbers, or of floats, answers with a RuntimeError.
        with suppress(TypeError, RuntimeError):
            return operator.index(number)  # type: ignore[arg-type]  # what has no index is the case
    raise AttentionInvalid(f"{name} must be whole numbers, not {number!r}.")


@dataclass(frozen=True, slots=True)
class Mask:
    """A visibility rule over positions in time; never an N x N array.

    ``window`` counts the query itself: a bar sees itself and ``window - 1`` earlier ones.
    """

    kind: MaskKind
    window_bars: int = 0

    @classmethod
    def full(cls) -> Mask:
        """Let every query see every key."""
        return cls(MaskKind.FULL)

    @classmethod
    def causal(cls) -> Mask:
        """Let a query see itself and everything before it."""
        return cls(MaskKind.CAUSAL)

    @classmethod
    def window(cls, bars: int) -> Mask:
        """Let a query see itself and the ``bars - 1`` keys before it.

        Raises ``AttentionInvalid`` unless *bars* is a whole number of at least 1.
        """
        bars = whole(bars, "A window's bars")
        if bars < 1:
            raise AttentionInvalid(f"A window must hold at least 1 bar, not {bars}; widen it.")
        return cls(MaskKind.WINDOW, bars)

    def visible(self, row: int, length: int) -> int:
        """Return how many of *length* keys query *row* (from 0) sees."""
        match self.kind:
            case MaskKind.FULL:
                return length
            case MaskKind.CAUSAL:
                return row + 1
            case MaskKind.WINDOW:
                return min(row + 1, self.window_bars)
