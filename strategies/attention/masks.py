"""Which keys a query may see: full, causal, a causal window, or blocks of the past.

The rules are docs/attention.md, A2 and A33.
"""

from __future__ import annotations

import operator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from torch import Tensor


class MaskKind(StrEnum):
    """The kinds of visibility that every backend supports."""

    FULL = "full"
    CAUSAL = "causal"
    WINDOW = "window"
    BLOCKS = "blocks"


class Blocks(NamedTuple):
    """Time in blocks of ``bars``, and which of the earlier ones a block sees as a whole.

    Those are the ``last`` before it, every ``stride``-th before it (0: none) and the ``first`` of
    all. Its own block a bar sees up to itself.
    """

    bars: int
    last: int
    stride: int
    first: int

    def earlier(self, block: int) -> list[int]:
        """Return the numbers of the blocks before *block* that it sees, ascending."""
        seen = {*range(max(0, block - self.last), block), *range(min(self.first, block))}
        if self.stride:
            seen.update(range(block - self.stride, -1, -self.stride))
        return sorted(seen)

    def runs(self, block: int) -> list[slice]:
        """Return the bars of those blocks, adjacent ones as one slice."""
        seen = self.earlier(block)
        if not seen:
            return []
        cuts = [0, *(at for at, (a, b) in enumerate(pairwise(seen), 1) if b > a + 1), len(seen)]
        return [
            slice(seen[start] * self.bars, (seen[stop - 1] + 1) * self.bars)
            for start, stop in pairwise(cuts)
        ]

    def shows(self, query: Tensor, key: Tensor) -> Tensor:
        """Return whether the *query* positions see the *key* positions, int64 each, broadcast."""
        age = query // self.bars - key // self.bars
        seen = (age <= self.last) | (key // self.bars < self.first)
        if self.stride:
            seen = seen | (age % self.stride == 0)
        return seen & (key <= query)

    def shows_all(self, time: int) -> bool:
        """Return whether *time* bars see all that a causal mask shows."""
        before = -(-time // self.bars) - 1
        return self.last >= before or self.first >= before or self.stride == 1


def whole(number: object, name: str) -> int:
    """Return *number* as an integer; raise ``AttentionInvalid`` for what is no whole number.

    *name* is what the sentence calls it.
    """
    if not isinstance(number, bool):
        # A tensor of several numbers, or of floats, answers with a RuntimeError.
        with suppress(TypeError, RuntimeError):
            return operator.index(number)  # type: ignore[arg-type]  # what has no index is the case
    raise AttentionInvalid(f"{name} must be whole numbers, not {number!r}.")


_NO_BLOCKS: Final = Blocks(1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Mask:
    """A visibility rule over positions in time; never an N x N array.

    ``window`` counts the query itself: a bar sees itself and ``window - 1`` earlier ones.
    """

    kind: MaskKind
    window_bars: int = 0
    blocks: Blocks = _NO_BLOCKS

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

    @classmethod
    def sparse(cls, bars: int, *, last: int = 1, stride: int = 0, first: int = 0) -> Mask:
        """Let a query see its own block of *bars* up to itself, and some earlier blocks whole.

        These are the *last* before it, each *stride*-th before it and the *first* of all. Raises
        ``AttentionInvalid`` for a block without a bar, and numbers below 0 or not whole.
        """
        bars, last, stride, first = (
            whole(number, "Blocks' bars, last, stride and first")
            for number in (bars, last, stride, first)
        )
        if bars < 1 or min(last, stride, first) < 0:
            raise AttentionInvalid(
                f"Blocks of {bars} bars with last {last}, stride {stride} and first {first} cannot "
                "be; give at least 1 bar, and nothing below 0."
            )
        return cls(MaskKind.BLOCKS, blocks=Blocks(bars, last, stride, first))

    @property
    def is_band(self) -> bool:
        """Whether each row sees keys that lie side by side; compiled kernels know no other."""
        return self.kind is not MaskKind.BLOCKS

    def visible(self, row: int, length: int) -> int:
        """Return how many of *length* keys query *row* (from 0) sees."""
        match self.kind:
            case MaskKind.FULL:
                return length
            case MaskKind.CAUSAL:
                return row + 1
            case MaskKind.WINDOW:
                return min(row + 1, self.window_bars)
            case MaskKind.BLOCKS:
                block, own = divmod(row, self.blocks.bars)
                return own + 1 + self.blocks.bars * len(self.blocks.earlier(block))
