"""The dense oracle: every attention matrix stored, in plain formulas; for small N only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tracepaper.strategies.attention.masks import Mask, MaskKind
from tracepaper.strategies.attention.probsparse import SparseRead, visible_counts
from tracepaper.strategies.attention.tiles import FADE

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.strategies.attention.layer import Layer


def visible(time: int, mask: Mask, *, device: torch.device | None = None) -> Tensor:
    """Return the boolean [time, time] table of what each query sees by age."""
    return shown_by(mask, 1, time, time).to(device)[0]


def shown_by(mask: Mask, batch: int, queries: int, keys: int) -> Tensor:
    """Return the boolean [batch, query, key] of what age, padding and ``leading_keys`` show."""
    shown = torch.ones(batch, queries, keys, dtype=torch.bool)
    for element in range(batch):
        first = keys - queries if mask.first is None else mask.first
        first = int(first[element] if isinstance(first, Sequence) else first)
        key, place = torch.arange(keys), first + torch.arange(queries)[:, None]
        shown[element] &= (key <= place) | (not mask.causal)
        if mask.before is not None:
            shown[element] &= place - key <= mask.before
        if mask.after is not None:
            shown[element] &= key - place <= mask.after
        if mask.starts is not None:
            shown[element] &= key >= int(mask.starts[element])
        if mask.stops is not None:
            shown[element] &= key < int(mask.stops[element])
        if mask.leading_keys is not None:
            counts = mask.leading_keys.cpu().reshape(-1, queries).expand(batch, -1)
            shown[element] &= key < counts[element, :, None]
    return shown


def layer_matrix(layer: Layer) -> tuple[Tensor, Tensor]:
    """Return the matrix of any *layer* [batch, head, query, key] and its logsumexp, in float64."""
    batch, heads, queries, keys = layer.shape
    key = layer.key.double().repeat_interleave(heads // layer.key.shape[1], dim=1)
    scores = layer.factor * layer.query.double() @ key.mT
    if layer.softcap is not None:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    shown = shown_by(layer.mask, batch, queries, keys).to(scores.device)
    scores = scores.masked_fill(~shown[:, None], -torch.inf)
    dense = layer.mask.dense
    if dense is not None and dense.dtype == torch.bool:
        scores = scores.masked_fill(~dense, -torch.inf)
    elif dense is not None:
        scores = scores + dense.double()
    sums = scores.logsumexp(dim=-1)
    if layer.sinks is not None:
        sums = torch.logaddexp(sums, layer.sinks.double()[:, None])
    return (scores - sums.masked_fill(torch.isneginf(sums), 0.0)[..., None]).exp(), sums


def attention_matrix(
    query: Tensor, key: Tensor, mask: Mask, *, scale: float | None = None
) -> Tensor:
    """Return softmax(scale·q·kᵀ) over the visible keys: [batch, head, time, time]."""
    time = query.shape[-2]
    if scale is None:
        scale = float(query.shape[-1] ** -0.5)
    scores = (query @ key.transpose(-1, -2)) * scale  # [batch, head, time, time]
    return scores.masked_fill(~visible(time, mask, device=query.device), -torch.inf).softmax(-1)


def logsumexp(query: Tensor, key: Tensor, mask: Mask, *, scale: float | None = None) -> Tensor:
    """Return the natural logarithm of each row's normaliser: [batch, head, time]."""
    if scale is None:
        scale = float(query.shape[-1] ** -0.5)
    scores = (query @ key.transpose(-1, -2)) * scale
    hidden = ~visible(query.shape[-2], mask, device=query.device)
    return scores.masked_fill(hidden, -torch.inf).logsumexp(-1)


def fuse(matrix: Tensor, fusion: str, shares: Tensor | None = None) -> Tensor:
    """Return [batch, time, time]: the heads' weighted mean, or their largest or smallest entry."""
    if fusion == "max":
        return matrix.amax(dim=1)
    if fusion == "min":
        return matrix.amin(dim=1)
    if shares is None:
        return matrix.mean(dim=1)
    return torch.einsum("h,bhij->bij", shares, matrix)


def discard(fused: Tensor, mask: Mask | Tensor, ratio: float, *, slack: float) -> Tensor:
    """Return *fused* without the lowest ``ratio`` of the entries that *mask* or a table shows.

    Entries within a relative *slack* of the last one to go stay, so that ties stay together, and
    over ``FADE`` slacks more they fade out.
    """
    if ratio == 0.0:
        return fused
    shown = mask
    if isinstance(shown, Mask):
        shown = visible(fused.shape[-1], shown, device=fused.device)
    kept = []
    for matrix in fused:
        ordered = matrix[shown].sort().values
        edge = ordered[int(ratio * ordered.numel())]
        lowest = edge * (1.0 - (1.0 + FADE) * slack)
        share = ((matrix - lowest) / (edge * FADE * slack)).clamp(0.0, 1.0)
        kept.append(torch.where(matrix < edge, matrix * share, matrix))
    return torch.stack(kept)


def rollout(
    matrices: Sequence[Tensor],
    mask: Mask,
    *,
    fusion: str = "mean",
    shares: Tensor | None = None,
    discard_ratio: float = 0.0,
    slacks: Sequence[float] | None = None,
    residual_weight: float = 0.5,
) -> Tensor:
    """Return the whole rollout R = Ã_L ··· Ã_1, [batch, time, time] (Abnar and Zuidema, 2020).

    ``Ã = ρ·I + (1-ρ)·fuse(A)`` with its rows normalised; *matrices* from the first layer up,
    *slacks* theirs of what is discarded.
    """
    product: Tensor | None = None
    for number, matrix in enumerate(matrices):
        layer_shares = None if shares is None else shares[number]
        slack = 0.0 if slacks is None else slacks[number]
        fused = discard(fuse(matrix, fusion, layer_shares), mask, discard_ratio, slack=slack)
        identity = torch.eye(fused.shape[-1], dtype=fused.dtype, device=fused.device)
        mixed = residual_weight * identity + (1.0 - residual_weight) * fused
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        product = mixed if product is None else mixed @ product
    assert product is not None
    return product / product.sum(dim=-1, keepdim=True)


def entropy(matrix: Tensor) -> Tensor:
    """Return -Σ a·ln a of each row, in nats: [batch, head, time]."""
    terms: Tensor = torch.special.entr(matrix)
    return terms.sum(dim=-1)


def dense_rows(rows: SparseRead) -> Tensor:
    """Return the whole matrix of ProbSparse attention: [batch, head, time, time]."""
    batch, heads, _, time = rows.weights.shape
    lazy = (1.0 / visible_counts(time, rows.mask).to(rows.weights))[:, None].expand(time, time)
    if rows.mask.kind is MaskKind.CAUSAL:
        lazy = lazy.tril()
    at = rows.active[..., None].expand(-1, -1, -1, time)
    return lazy.expand(batch, heads, time, time).scatter(2, at, rows.weights)
