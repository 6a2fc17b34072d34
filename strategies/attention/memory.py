"""Memory of a context, estimated before anything is allocated.

The rule is docs/attention.md, A24.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

CONTEXT_STEP: Final = 64
"""Contexts are suggested in whole blocks."""
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


def require_memory(
    need: Callable[[int], int], time: int, *, available_bytes: int, name: str = "context"
) -> None:
    """Raise ``AttentionInvalid`` where *time* bars cannot fit, with the longest that would.

    *need* returns the bytes of a context and must not fall as it grows; *name* is its name in the
    message.
    """
    wanted = need(time)
    if wanted <= available_bytes:
        return
    low, high = 0, time // CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        if need(middle * CONTEXT_STEP) <= available_bytes:
            low = middle
        else:
            high = middle - 1
    advice = f"use at most {low * CONTEXT_STEP} bars" if low else "use a smaller network"
    raise AttentionInvalid(
        f"A {name} of {time} bars needs {wanted / 2**20:,.0f} MiB and "
        f"{available_bytes / 2**20:,.0f} MiB are free; {advice}."
    )
