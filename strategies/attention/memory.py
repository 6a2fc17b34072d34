"""Memory estimates: what a context needs, checked before anything is allocated.

The rule is docs/attention.md, A24.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tracepaper.strategies.attention.masks import Mask, MaskKind
from tracepaper.strategies.attention.tiles import TILE
from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.types.decisions import BLOCK_BARS

if TYPE_CHECKING:
    from collections.abc import Callable

CONTEXT_STEP: Final = 64
"""Contexts are suggested in whole blocks."""
_ACTIVATIONS_TRAINING: Final = 16
"""Tensors of [time, dim] that a block keeps for its gradient: projections, norms, MLP."""
_ACTIVATIONS_FORWARD: Final = 8
_SCRATCH_BYTES: Final = 16 << 20
"""Tiles, and what the matrix library sets aside for itself."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes on which memory depends; ``bytes_a_number`` is 4 for float32."""

    layers: int
    heads: int
    dim: int
    batch: int = 1
    bytes_a_number: int = 4


def forward_bytes(shape: Shape, time: int) -> int:
    """Return the peak of a forward pass over *time* bars without gradients."""
    return shape.batch * time * shape.dim * _ACTIVATIONS_FORWARD * shape.bytes_a_number


def training_bytes(shape: Shape, time: int, *, checkpointing: bool = False) -> int:
    """Return the peak of forward and backward; checkpointing keeps one tensor a layer."""
    a_layer = shape.batch * time * (shape.dim * _ACTIVATIONS_TRAINING + shape.heads)
    if checkpointing:
        a_layer = a_layer // shape.layers + shape.batch * time * shape.dim
    return a_layer * shape.layers * shape.bytes_a_number


def rollout_bytes(shape: Shape, time: int, *, rows: int = 1, whole_rows: bool = False) -> int:
    """Return the peak of ``rollout``: queries, keys and logsumexp of all layers, and tiles.

    ``whole_rows`` is for max and min fusion, discarding and weighted rollouts: what a tile of all
    heads is fused into.
    """
    kept = shape.batch * time * (2 * shape.dim + shape.heads) * shape.layers
    laid_out = shape.batch * time * (2 * shape.dim + 4 * shape.heads * rows)
    stripes = 3 * min(TILE["cpu"] ** 2, shape.heads * time * time) if whole_rows else 0
    return (kept + laid_out + stripes) * shape.bytes_a_number + _SCRATCH_BYTES


def bucket_bytes(shape: Shape, time: int, mask: Mask | None = None) -> int:
    """Return the peak of ``rollout_buckets``: every row over all buckets, twice.

    With a window as *mask*, that of ``rollout_by_age``: over the buckets that a row can reach.
    """
    buckets = -(-time // BLOCK_BARS)
    if mask is not None and mask.kind is MaskKind.WINDOW:
        reach = shape.layers * (mask.window_bars - 1)
        buckets = min(buckets, -(-reach // BLOCK_BARS) + 2)
    return rollout_bytes(shape, time) + 2 * shape.batch * time * buckets * shape.bytes_a_number


def ring_bytes(shape: Shape, mask: Mask, *, instruments: int = 1) -> int:
    """Return the streaming state: keys, values and bucketed rows of one window a layer."""
    if mask.kind is not MaskKind.WINDOW:
        raise AttentionInvalid("Only a causal window streams; give Mask.window(bars).")
    buckets = -(-(shape.layers * mask.window_bars) // BLOCK_BARS) + 1
    a_bar = shape.layers * (2 * shape.dim + buckets)
    return instruments * mask.window_bars * a_bar * shape.bytes_a_number


def longest(need: Callable[[int], int], *, available_bytes: int, at_most: int) -> int:
    """Return the longest context up to *at_most* bars, in whole blocks, that fits; 0 for none."""
    low, high = 0, at_most // CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        if need(middle * CONTEXT_STEP) <= available_bytes:
            low = middle
        else:
            high = middle - 1
    return low * CONTEXT_STEP


def require_memory(
    need: Callable[[int], int], time: int, *, available_bytes: int, name: str = "context"
) -> int:
    """Return the bytes that *time* bars need; raise ``AttentionInvalid`` if they cannot fit.

    *need* tells the bytes of a context and must not fall as it grows. The sentence names the
    longest context that would fit; *name* is what it calls it.
    """
    wanted = need(time)
    if wanted <= available_bytes:
        return wanted
    fitting = longest(need, available_bytes=available_bytes, at_most=time)
    advice = f"use at most {fitting} bars" if fitting else "use a smaller network"
    raise AttentionInvalid(
        f"A {name} of {time} bars needs {wanted / 2**20:,.0f} MiB and "
        f"{available_bytes / 2**20:,.0f} MiB are free; {advice}."
    )
