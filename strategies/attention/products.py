"""One layer's backward product ``w ← wᵀA`` by each backend, without the matrix A.

``(wᵀA)_j = Σ_i w_i exp(scale·q_i·k_j - lse_i)``. Every backend returns the heads' weighted mean and
each head's mass, which must be the mass that went in.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from tracepaper.strategies.attention import reference, triton_rollout
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.masks import MaskKind
from tracepaper.strategies.attention.tiles import (
    GROUP_ENTRIES,
    TILE_BARS,
    Operand,
    RowBlock,
    hide_,
    is_whole,
    key_tiles,
    operand,
    row_blocks,
    tile_probabilities,
    tile_rows,
)
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tracepaper.strategies.attention.checks import Layer
    from tracepaper.strategies.attention.masks import Mask

BACKENDS: Final = ("tiles", "compiled", "flash", "triton", "reference")
"""Plain tiles; the same through torch.compile; the lse trick; the CUDA kernel; the oracle."""
ROWS_A_HEAD_MAX: Final = 8
"""Up to here a product a head is cheaper than fusing the heads of each tile first."""


class Product(NamedTuple):
    """``fused`` is the heads' weighted mean [batch, row, time], ``mass`` [batch, head, row]."""

    fused: Tensor
    mass: Tensor


def choose(layer: Layer) -> str:
    """Return the backend that ``auto`` stands for with *layer*'s device, type and head dim."""
    is_cuda = layer.query.device.type == "cuda"
    runs = is_cuda and triton_rollout.is_available() and triton_rollout.takes(layer)
    return "triton" if runs else "tiles"


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
    if backend == "triton" and not triton_rollout.runs_on(device):
        raise AttentionInvalid(
            f"The triton rollout kernel cannot run on {device}; install triton and use CUDA, or "
            "choose auto."
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
    if backend == "auto":
        backend = choose(layer)
    match backend:
        case "tiles" | "compiled":
            if weights.shape[1] > ROWS_A_HEAD_MAX:
                return _push_fused(layer, weights, mask, shares=shares, kept=kept)
            product = _push_heads(layer, weights, mask, backend=backend, kept=kept)
        case "flash":
            product = _push_swapped(layer, weights, mask)
        case "triton":
            product = triton_rollout.push_rows(layer, weights, mask, kept=kept)
        case _:
            query, key = layer.query.to(weights.dtype), layer.key.to(weights.dtype)
            matrix = reference.attention_matrix(query, key, mask, scale=layer.scale)
            product = weights[:, None] @ matrix
    fused = torch.einsum("h,bhmt->bmt", shares, product)
    return Product(fused, product.sum(dim=-1))


def _push_heads(
    layer: Layer, weights: Tensor, mask: Mask, *, backend: str, kept: Tensor | None
) -> Tensor:
    """Return each head's product [batch, head, row, time], a tile at a time."""
    batch, heads, time, _ = layer.query.shape
    laid = operand(layer)
    by_pair = weights.repeat_interleave(heads, dim=0)  # [batch * head, row, time]
    result = torch.zeros_like(by_pair)
    tile = _compiled_tile() if backend == "compiled" and weights.shape[1] == 1 else _tile
    for block in row_blocks(time, mask, rows_a_block=tile_rows(mask), kept=kept):
        rows = Operand(
            block.take(laid.queries, 1), laid.keys_by_dim, block.take(laid.minus_logsumexp, 1)
        )
        block_weights = block.take(by_pair, 2)
        for start, stop in key_tiles(block, TILE_BARS):
            # An uneven tile would be compiled anew, so only the common shape is.
            common = stop - start == TILE_BARS and block.size() == tile_rows(mask)
            whole = is_whole(block, mask, start, stop)
            product = tile if whole and common else _hiding_tile(block, mask, start)
            group = max(1, GROUP_ENTRIES // (block.size() * (stop - start)))
            for first in range(0, len(by_pair), group):
                pairs = slice(first, first + group)
                result[pairs, :, start:stop] += product(
                    rows.queries[pairs],
                    rows.keys_by_dim[pairs, :, start:stop],
                    rows.minus_logsumexp[pairs],
                    block_weights[pairs],
                )
    return result.view(batch, heads, -1, time)


def _tile(queries: Tensor, keys_by_dim: Tensor, minus_logsumexp: Tensor, weights: Tensor) -> Tensor:
    """Return one tile's share of the product: [pair, row, key]."""
    return torch.bmm(weights, tile_probabilities(queries, keys_by_dim, minus_logsumexp))


def _hiding_tile(
    block: RowBlock, mask: Mask, key_start: int
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def tile(queries: Tensor, keys: Tensor, minus_logsumexp: Tensor, weights: Tensor) -> Tensor:
        entries = tile_probabilities(queries, keys, minus_logsumexp)
        return torch.bmm(weights, hide_(entries, block, mask, key_start))

    return tile


@cache
def _compiled_tile() -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the tile of one row with exp, weight and sum in one loop; compiled at first use."""

    def tile(queries: Tensor, keys: Tensor, minus_logsumexp: Tensor, weights: Tensor) -> Tensor:
        entries = (torch.bmm(queries, keys) + minus_logsumexp).exp2()
        return (entries * weights.transpose(1, 2)).sum(dim=1, keepdim=True)

    return torch.compile(tile, dynamic=False)


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


def _push_swapped(layer: Layer, weights: Tensor, mask: Mask) -> Tensor:
    """Read the product off a flash kernel's logsumexp, with query and key in each other's place.

    ``(wᵀA)_j = exp(LSE_i(scale·k_j·q_i + ln w_i - lse_i))``: the bias is one more head dimension,
    and time runs backwards so that a causal kernel sees the rows that saw the key.
    """
    tiny = torch.finfo(weights.dtype).tiny
    # Kernels of a device want a dim that is a multiple of 8; zeros add nothing to a product.
    spare = -(layer.key.shape[3] + 1) % 8 if layer.key.is_cuda else 0
    keys = torch.nn.functional.pad(layer.key.to(weights.dtype), (0, 1), value=1.0)
    keys = torch.nn.functional.pad(keys, (0, spare))
    columns = []
    for row in weights.unbind(dim=1):
        bias = row.clamp_min(tiny).log()[:, None] - layer.logsumexp  # [batch, head, time]
        queries = torch.cat([layer.query.to(bias.dtype), bias[..., None] / layer.scale], dim=-1)
        queries = torch.nn.functional.pad(queries, (0, spare))
        swapped = (keys, queries, queries)
        if mask.kind is not MaskKind.FULL:
            swapped = (keys.flip(2), queries.flip(2), queries.flip(2))
        logsumexp = attend(*swapped, mask, scale=layer.scale).logsumexp
        if mask.kind is not MaskKind.FULL:
            logsumexp = logsumexp.flip(2)
        columns.append(logsumexp.exp())
    return torch.stack(columns, dim=2)  # [batch, head, row, time]
