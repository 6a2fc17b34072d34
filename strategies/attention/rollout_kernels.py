"""One layer's rollout step without its matrix A: the product ``w ← wᵀA``.

``(wᵀA)_j = Σ_i w_i exp(scale·q_i·k_j - lse_i)``. Every backend returns the heads' weighted mean and
each head's mass, which must be the mass that went in. Max and min fusion, discarding and row-wise
weights need whole rows: a *stripe* is some whole rows of one batch element's matrices,
[head, row, key]; it is fused into one [row, key] and dropped. Memory is a constant
(``STRIPE_ENTRIES``) beside O(N·d).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from tracepaper.strategies.attention import compiled, triton_rollout
from tracepaper.strategies.attention.masks import Mask, MaskKind
from tracepaper.strategies.attention.tiles import (
    FADE,
    GROUP_ENTRIES,
    STRIPE_ENTRIES,
    TILE_BARS,
    Operand,
    RowBlock,
    check_mass,
    hide_,
    is_whole,
    key_tiles,
    mass_tolerance,
    operand,
    row_blocks,
    tile_probabilities,
    tile_rows,
    visible_pairs,
)
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.strategies.attention.checks import Layer

ROWS_A_HEAD_MAX: Final = 8
"""Up to here a product a head is cheaper than fusing the heads of each tile first."""


class Product(NamedTuple):
    """``fused`` is the heads' weighted mean [batch, row, time], ``mass`` [batch, head, row]."""

    fused: Tensor
    mass: Tensor


Push = Callable[["Layer", "Tensor", "Mask", "Tensor", "Tensor | None"], Product]
"""``(layer, weights, mask, shares, kept) -> product``, see ``push``."""


class RolloutBackend(NamedTuple):
    """One way to carry rows down a layer, known by its name wherever it is chosen or refused."""

    name: str
    push: Push
    runs_on: Callable[[torch.device], bool] = lambda _: True
    refusal: str = "choose auto"  # what to do where it cannot run


BACKENDS: Final[dict[str, RolloutBackend]] = {}
"""Every way by its name."""


def register(backend: RolloutBackend) -> RolloutBackend:
    """Make *backend* known; raise ``AttentionInvalid`` for a name that is taken."""
    if backend.name in BACKENDS:
        raise AttentionInvalid(f"There is a rollout backend {backend.name!r} already.")
    BACKENDS[backend.name] = backend
    return backend


def choose(layer: Layer) -> str:
    """Return the backend that ``auto`` stands for with *layer*'s device, type and head dim."""
    if layer.query.device.type == "cuda":
        runs = triton_rollout.is_available() and triton_rollout.takes(layer)
        return "triton" if runs else "tiles"
    return compiled.choose(layer) or "tiles"


def check_backend(backend: str, device: torch.device) -> str:
    """Return *backend*; raise ``AttentionInvalid`` for one that is not or cannot run.

    ``auto`` stays: each layer chooses, for a layer whose scores outgrow float32 is restated.
    """
    if backend == "auto":
        return backend
    if backend not in BACKENDS:
        raise AttentionInvalid(
            f"There is no rollout backend {backend!r}; choose auto, {', '.join(BACKENDS)}."
        )
    if not BACKENDS[backend].runs_on(device):
        raise AttentionInvalid(
            f"The {backend} rollout kernel cannot run on {device}; {BACKENDS[backend].refusal}."
        )
    return backend


def push(
    layer: Layer,
    weights: Tensor,
    mask: Mask,
    *,
    shares: Tensor,
    backend: str,
    kept: Tensor | None = None,
) -> Product:
    """Carry row weights one layer down: ``Σ_h shares_h · wᵀA_h``.

    ``weights`` is [batch, row, time], ``shares`` [head]; ``kept`` (boolean [time]) names the only
    positions where a weight is not zero.
    """
    name = choose(layer) if backend == "auto" else backend
    if backend == "auto" and name == "triton":
        # What a device cannot hold is known when its kernel is asked.
        with suppress(AttentionInvalid):
            return BACKENDS[name].push(layer, weights, mask, shares, kept)
        name = "tiles"
    return BACKENDS[name].push(layer, weights, mask, shares, kept)


def _by_head(product: Tensor, shares: Tensor) -> Product:
    """Return each head's product [batch, head, row, time] fused, with its mass."""
    fused = torch.einsum("h,bhmt->bmt", shares, product)
    return Product(fused, product.sum(dim=-1))


def _push_tiles(
    layer: Layer, weights: Tensor, mask: Mask, shares: Tensor, kept: Tensor | None
) -> Product:
    """Push by tiles: a product a head for few rows, fused heads for many."""
    if weights.shape[1] > ROWS_A_HEAD_MAX:
        return _push_fused(layer, weights, mask, shares=shares, kept=kept)
    return _by_head(_push_heads(layer, weights, mask, kept=kept), shares)


def _push_triton(
    layer: Layer, weights: Tensor, mask: Mask, shares: Tensor, kept: Tensor | None
) -> Product:
    return _by_head(triton_rollout.push_rows(layer, weights, mask, kept=kept), shares)


def _push_native(name: str) -> Push:
    """Return the push by the compiled loops *name*; tiles do what they do not take."""

    def loops(
        layer: Layer, weights: Tensor, mask: Mask, shares: Tensor, kept: Tensor | None
    ) -> Product:
        if weights.shape[1] > ROWS_A_HEAD_MAX or compiled.choose(layer) is None:
            return BACKENDS["tiles"].push(layer, weights, mask, shares, kept)
        return _by_head(compiled.push_rows(layer, weights, mask, name), shares)

    return loops


register(RolloutBackend("tiles", _push_tiles))
register(
    RolloutBackend(
        "triton",
        _push_triton,
        runs_on=triton_rollout.runs_on,
        refusal="install triton and use CUDA, or choose auto",
    )
)
for own in compiled.NAMES:
    register(
        RolloutBackend(
            own,
            _push_native(own),
            runs_on=partial(compiled.runs_on, own),
            refusal="install a C compiler and then tracepaper again, or choose auto",
        )
    )


def _push_heads(layer: Layer, weights: Tensor, mask: Mask, *, kept: Tensor | None) -> Tensor:
    """Return each head's product [batch, head, row, time], a tile at a time."""
    batch, heads, time, _ = layer.query.shape
    laid = operand(layer)
    by_pair = weights.repeat_interleave(heads, dim=0)  # [batch * head, row, time]
    result = torch.zeros_like(by_pair)
    for block in row_blocks(time, mask, rows_a_block=tile_rows(mask), kept=kept):
        rows = Operand(
            block.take(laid.queries, 1), laid.keys_by_dim, block.take(laid.minus_logsumexp, 1)
        )
        block_weights = block.take(by_pair, 2)
        for start, stop in key_tiles(block, TILE_BARS):
            whole = is_whole(block, mask, start, stop)
            group = max(1, GROUP_ENTRIES // (block.size() * (stop - start)))
            for first in range(0, len(by_pair), group):
                pairs = slice(first, first + group)
                entries = tile_probabilities(
                    rows.queries[pairs],
                    rows.keys_by_dim[pairs, :, start:stop],
                    rows.minus_logsumexp[pairs],
                )
                if not whole:
                    hide_(entries, block, mask, start)
                result[pairs, :, start:stop] += torch.bmm(block_weights[pairs], entries)
    return result.view(batch, heads, -1, time)


def _push_fused(
    layer: Layer, weights: Tensor, mask: Mask, *, shares: Tensor, kept: Tensor | None
) -> Product:
    """Fuse the heads of each tile, then multiply once: many rows share the exponentials."""
    batch, heads, time, _ = layer.query.shape
    laid = operand(layer)
    fused = torch.zeros_like(weights)
    mass = weights.new_zeros(batch, heads, weights.shape[1])
    for block in row_blocks(time, mask, rows_a_block=tile_rows(mask), kept=kept):
        for element in range(batch):
            pairs = slice(element * heads, (element + 1) * heads)
            queries = block.take(laid.queries[pairs], 1)
            minus_logsumexp = block.take(laid.minus_logsumexp[pairs], 1)
            block_weights = block.take(weights[element], 1)  # [row, bar]
            row_sums = queries.new_zeros(heads, block.size())
            for start, stop in key_tiles(block, TILE_BARS):
                keys = laid.keys_by_dim[pairs, :, start:stop]
                entries = tile_probabilities(queries, keys, minus_logsumexp)
                if not is_whole(block, mask, start, stop):
                    hide_(entries, block, mask, start)
                row_sums += entries.sum(dim=-1)
                mean = (shares @ entries.view(heads, -1)).view(block.size(), stop - start)
                fused[element, :, start:stop].addmm_(block_weights, mean)
            mass[element].addmm_(row_sums, block_weights.T)
    return Product(fused, mass)


# --- transitions that need whole rows

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
    if mask.kind is MaskKind.WINDOW:
        # So many rows see as many keys more than one does.
        rows_a_block = min(rows_a_block, max(1, math.isqrt(STRIPE_ENTRIES // (heads * 2))))
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


def discard_below(fuse: Fuse, thresholds: Tensor, *, slack: float) -> Fuse:
    """Return *fuse* without the entries below the batch element's threshold.

    Those within a relative *slack* of it stay, for rounding may have parted them from it, and
    those next below fade out: at a sharp edge a last digit would keep or drop a whole entry.
    """

    def fuse_and_discard(stripe: Stripe) -> Tensor:
        fused, threshold = fuse(stripe), thresholds[stripe.element]
        fused.masked_fill_(fused < threshold * (1.0 - slack - FADE * slack), 0.0)
        fading = (fused < threshold * (1.0 - slack)) & (fused > 0.0)
        below = 1.0 - fused[fading] / threshold
        fused[fading] *= (1.0 - (below - slack) / (FADE * slack)).clamp_(0.0, 1.0)
        return fused

    return fuse_and_discard


def discard_thresholds(layer: Layer, mask: Mask, fuse: Fuse, ratio: float) -> Tensor:
    """Return each batch element's k-th smallest fused entry, k = ratio × visible pairs.

    The bits of non-negative floats are ordered as the floats are, so a histogram of the leading
    16 bits finds the bin and further ones find the value: two passes for float32, four for
    float64, and no copy of the matrix. Pairs that the mask hides are not candidates.
    """
    batch, _, time, _ = layer.query.shape
    candidates = visible_pairs(time, mask)
    return smallest_kept(
        lambda: stripes(layer, mask),
        fuse,
        ratio,
        candidates=candidates,
        like=layer.logsumexp.new_empty(batch),
    )


def smallest_kept(
    parts: Callable[[], Iterable[Stripe]],
    fuse: Fuse,
    ratio: float,
    *,
    candidates: int,
    like: Tensor,
) -> Tensor:
    """Return the k-th smallest fused entry of each batch element, k = ratio × *candidates*.

    *parts* yields all stripes anew at each call; *like* [batch] says type and device. Entries
    beyond the candidates have to be exact zeros.
    """
    batch, kind, device = len(like), like.dtype, like.device
    as_integer = torch.int32 if kind == torch.float32 else torch.int64
    ranks = [int(ratio * candidates)] * batch
    prefixes = [0] * batch
    for shift in range(torch.finfo(kind).bits - RADIX_BITS, -1, -RADIX_BITS):
        counts = torch.zeros(batch, 1 << RADIX_BITS, dtype=torch.int64, device=device)
        computed = 0
        for stripe in parts():
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
    return values.view(kind)


def step_back(
    layer: Layer, weights: Tensor, mask: Mask, fuse: Fuse, *, residual_weight: float
) -> Tensor:
    """Return ``wᵀÃ`` with ``Ã = ρ·I + (1-ρ)·fused``, rows normalised: [batch, row, time]."""
    kept = rows_with_weight(weights)
    return mix_back(stripes(layer, mask, kept=kept), weights, fuse, residual_weight=residual_weight)


def rows_with_weight(weights: Tensor) -> Tensor:
    """Return the boolean [time] of bars that any of *weights* [batch, row, time] asks for."""
    return (weights != 0).flatten(0, 1).any(dim=0)


def mix_back(
    parts: Iterable[Stripe], weights: Tensor, fuse: Fuse, *, residual_weight: float
) -> Tensor:
    """Return ``wᵀÃ`` as ``step_back`` does, of the stripes that hold all rows with a weight."""
    result = torch.zeros_like(weights)
    for stripe in parts:
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
