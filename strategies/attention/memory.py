"""Memory of a context, estimated before anything is allocated.

The rule is docs/attention.md, A24.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final

from .errors import AttentionInvalid

BLOCK_BARS: Final = 64
"""Windows are suggested in whole blocks."""
_ACTIVATIONS_FORWARD: Final = 8
_SCRATCH_BYTES: Final = 16 << 20
"""Tiles, and the workspace of the matrix library."""


def forward_bytes(dim: int, time: int) -> int:
    """Return the peak of a forward pass of width *dim* over *time* bars without gradients."""
    return 4 * time * dim * _ACTIVATIONS_FORWARD


def rollout_bytes(layers: int, heads: int, dim: int, time: int) -> int:
    """Return the peak of the rollout of one row: queries, keys and logsumexps, and tiles."""
    kept = (2 * dim + heads) * layers
    return 4 * time * (kept + 2 * dim + 4 * heads) + _SCRATCH_BYTES


def fitting_window(need: Callable[[int], int], most: int, *, available_bytes: int) -> int:
    """Return the longest window of at most *most* bars that fits, in whole blocks; 0 for none.

    *need* returns the bytes of a window, and must not fall as the window grows.
    """
    blocks = range(1, most // BLOCK_BARS + 1)
    fitting = bisect_right(blocks, available_bytes, key=lambda count: need(count * BLOCK_BARS))
    return BLOCK_BARS * fitting


def require_memory(need: Callable[[int], int], bars: int, *, available_bytes: int) -> None:
    """Raise ``AttentionInvalid`` where a window of *bars* cannot fit, with the longest that would.

    *need* is that of ``fitting_window``.
    """
    if (wanted := need(bars)) <= available_bytes:
        return
    fitting = fitting_window(need, bars, available_bytes=available_bytes)
    advice = f"use a window of {fitting:,} bars or fewer" if fitting else "use a smaller network"
    raise AttentionInvalid(
        f"A window of {bars:,} bars needs {wanted / 2**20:,.0f} MiB and "
        f"{available_bytes / 2**20:,.0f} MiB are free; {advice}."
    )
