"""Memory of a context, estimated before anything is allocated.

The rule is docs/attention.md, A24.
"""

from __future__ import annotations

from typing import Final

from tracepaper.strategies.errors import AttentionInvalid

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


def require_memory(need: int, bars: int, *, available_bytes: int) -> None:
    """Raise ``AttentionInvalid`` where a window of *bars* that *need* so many bytes cannot fit."""
    if need > available_bytes:
        raise AttentionInvalid(
            f"A window of {bars} bars needs {need / 2**20:,.0f} MiB and "
            f"{available_bytes / 2**20:,.0f} MiB are free; use a shorter one or a smaller network."
        )
