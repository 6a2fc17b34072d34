"""Layer transitions that need whole rows: max and min fusion, discarding, any row-wise weight.

A stripe is some whole rows of one batch element's matrices, [head, row, key]; it is fused into
one [row, key] and dropped. Memory is a constant (``STRIPE_ENTRIES``) beside O(N·d).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from tracepaper.strategies.attention.precision import (
    STRIPE_ENTRIES,
    check_mass,
    mass_tolerance,
    tie_slack,
)
from tracepaper.strategies.attention.tiles import (
    RowBlock,
    hide_,
    operand,
    row_blocks,
    tile_probabilities,
    visible_pairs,
)
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.strategies.attention.checks import Layer
    from tracepaper.strategies.attention.masks import Mask

RADIX_BITS = 16


class Stripe(NamedTuple):
    """Whole rows of one batch element: their exact probabilities, [head, row, key]."""

    element: int
    block: RowBlock
    entries: Tensor

    @property
    def keys(self) -> slice:
        """The keys that the columns stand for."""
        return slice(self.block.key_start, self.block.key_stop)


Fuse = Callable[[Stripe], "Tensor"]
"""Turns a stripe into its non-negative fused weights [row, key]; may overwrite the entries."""


def stripes(layer: Layer, mask: Mask, *, kept: Tensor | None = None) -> Iterator[Stripe]:
    """Rebuild the matrices of *layer* stripe by stripe, each head's row mass checked."""
    batch, heads, time, _ = layer.query.shape
    laid = operand(layer)
    tolerance = mass_tolerance(layer)
    widest = max(1, visible_pairs(time, mask) // time)
    rows_a_block = max(1, min(time, STRIPE_ENTRIES // (heads * 2 * widest)))
    for block in row_blocks(time, mask, rows_a_block=rows_a_block, kept=kept):
        for element in range(batch):
            pairs = slice(element * heads, (element + 1) * heads)
            entries = tile_probabilities(
                block.take(laid.queries[pairs], 1),
                laid.keys_by_dim[pairs, :, block.key_start : block.key_stop],
                block.take(laid.minus_logsumexp[pairs], 1),
            )
            hide_(entries, block, mask, block.key_start)
            mass = entries.sum(dim=-1)
            check_mass(mass[None], torch.ones_like(mass[:1]), tolerance)
            yield Stripe(element, block, entries)


def fuse_heads(head_fusion: str, shares: Tensor) -> Fuse:
    """Return the fusion by name: the heads' weighted mean, or their largest or smallest entry."""

    def fuse(stripe: Stripe) -> Tensor:
        if head_fusion == "max":
            return stripe.entries.amax(dim=0)
        if head_fusion == "min":
            return stripe.entries.amin(dim=0)
        heads, rows, keys = stripe.entries.shape
        return (shares @ stripe.entries.view(heads, -1)).view(rows, keys)

    return fuse


def discard_below(fuse: Fuse, thresholds: Tensor) -> Fuse:
    """Return *fuse* with what lies below the batch element's threshold set to zero."""

    def fuse_and_discard(stripe: Stripe) -> Tensor:
        fused = fuse(stripe)
        return fused.masked_fill_(fused < thresholds[stripe.element], 0.0)

    return fuse_and_discard


def discard_thresholds(layer: Layer, mask: Mask, fuse: Fuse, ratio: float) -> Tensor:
    """Return each batch element's k-th smallest fused entry, k = ratio × visible pairs.

    It is exact but for ``tie_slack``: entries that are equal but for rounding stay together.

    The bits of non-negative floats are ordered as the floats are, so a histogram of the leading
    16 bits finds the bin and further ones find the value: two passes for float32, four for
    float64, and no copy of the matrix. Pairs that the mask hides are not candidates.
    """
    batch, _, time, _ = layer.query.shape
    kind = layer.logsumexp.dtype
    as_integer = torch.int32 if kind == torch.float32 else torch.int64
    candidates = visible_pairs(time, mask)
    ranks = [int(ratio * candidates)] * batch
    prefixes = [0] * batch
    device = layer.query.device
    for shift in range(torch.finfo(kind).bits - RADIX_BITS, -1, -RADIX_BITS):
        counts = torch.zeros(batch, 1 << RADIX_BITS, dtype=torch.int64, device=device)
        computed = 0
        for stripe in stripes(layer, mask):
            bits = fuse(stripe).view(as_integer).flatten()
            computed += bits.numel() if stripe.element == 0 else 0
            inside = bits[(bits >> shift >> RADIX_BITS) == prefixes[stripe.element]]
            digits = (inside >> shift) & ((1 << RADIX_BITS) - 1)
            counts[stripe.element] += torch.bincount(digits, minlength=1 << RADIX_BITS)
        for element in range(batch):
            if prefixes[element] == 0:
                # Hidden pairs were computed as exact zeros; take them out again.
                counts[element, 0] -= computed - candidates
            before = counts[element].cumsum(0) - counts[element]
            digit = int((before <= ranks[element]).nonzero()[-1, 0])
            # An empty bin shares its start with the next one that is not.
            digit = int((counts[element, : digit + 1] > 0).nonzero()[-1, 0])
            ranks[element] -= int(before[digit])
            prefixes[element] = (prefixes[element] << RADIX_BITS) | digit
    values = torch.tensor(prefixes, dtype=as_integer, device=device)
    return values.view(kind) * (1.0 - tie_slack(layer))


def step_back(
    layer: Layer, weights: Tensor, mask: Mask, fuse: Fuse, *, residual_weight: float
) -> Tensor:
    """Return ``wᵀÃ`` with ``Ã = ρ·I + (1-ρ)·fused``, rows normalised: [batch, row, time]."""
    kept = (weights != 0).flatten(0, 1).any(dim=0)
    result = torch.zeros_like(weights)
    for stripe in stripes(layer, mask, kept=kept):
        fused, totals = _mixed(stripe, fuse, residual_weight)
        block = stripe.block
        scaled = block.take(weights[stripe.element], 1) / totals  # [row, bar]
        result[stripe.element, :, stripe.keys].addmm_(scaled, fused, alpha=1.0 - residual_weight)
        own = residual_weight * scaled
        if block.rows is None:
            result[stripe.element, :, block.start : block.stop] += own
        else:
            result[stripe.element].index_add_(1, block.rows, own)
    return result


def step_forward(
    layer: Layer, values: Tensor, mask: Mask, fuse: Fuse, *, residual_weight: float
) -> Tensor:
    """Return ``Ã·values`` for *values* [batch, time, column]: the forward form of the same step."""
    result = torch.empty_like(values)
    for stripe in stripes(layer, mask):
        fused, totals = _mixed(stripe, fuse, residual_weight)
        rows = slice(stripe.block.start, stripe.block.stop)
        known = values[stripe.element]
        mixed = (1.0 - residual_weight) * (fused @ known[stripe.keys])
        result[stripe.element, rows] = (mixed + residual_weight * known[rows]) / totals[:, None]
    return result


def _mixed(stripe: Stripe, fuse: Fuse, residual_weight: float) -> tuple[Tensor, Tensor]:
    """Return the fused stripe and each row's sum once the residual is mixed in."""
    fused = fuse(stripe)
    totals = residual_weight + (1.0 - residual_weight) * fused.sum(dim=-1)
    if not bool((totals > 0).all()):
        raise AttentionInvalid(
            "A row kept no attention at all; raise residual_weight or lower discard_ratio."
        )
    return fused, totals
