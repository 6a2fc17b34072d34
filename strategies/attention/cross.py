"""Cross-attention: queries of one stream, keys and values of another, and its explanation.

Streams have lengths and clocks of their own, so what a query may see of another stream is a number
of leading keys, ``seen``: those that have closed by the query's own close. Each head's matrix
[query, key] is row-stochastic, so a rollout goes through layers that cross streams as through any:
``w_into`` keeps its share ρ, and ``(1-ρ)·w_intoᵀA`` moves to the stream that was read. A decision's
row is then one row over all streams, which sums to 1. No matrix is stored.

The rule is docs/attention.md, A32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from tracepaper.strategies.attention.backends import Chunked
from tracepaper.strategies.attention.checks import (
    Layer,
    check_products,
    check_rows,
    check_share,
    check_tensors,
)
from tracepaper.strategies.attention.entropy import row_confidence
from tracepaper.strategies.attention.kernels import (
    Attention,
    attend,
    check_inputs,
    refuse_overflow,
    square_attention,
)
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.products import rows_with_weight
from tracepaper.strategies.attention.scores import (
    Scores,
    carry_rows,
    check_seen,
    score_entries,
    score_entropy,
)
from tracepaper.strategies.attention.tiles import check_mass, mass_tolerance
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from torch import Tensor


class StreamRead(NamedTuple):
    """One layer by which the tokens of a stream read those of a stream, which may be the same."""

    into: int  # the number of the stream that asks
    of: int  # the number of the stream that is read
    query: Tensor  # [batch, head, query, dim]
    key: Tensor  # [batch, head, key, dim]
    logsumexp: Tensor  # [batch, head, query], natural
    scores: Scores = Scores(causal=False)
    value: Tensor | None = None  # [batch, head, key, dim]
    gradient: Tensor | None = None  # [batch, head, query, dim], of what was read
    """With the value, entries are weighed by it: ``mean_h (∇A ⊙ A)⁺``, rows normalised (A22)."""


def closed_keys(query_closes: Tensor, key_closes: Tensor) -> Tensor:
    """Return how many keys have closed by each query's close: int64, for ``seen``.

    Both are int64 times of one clock (milliseconds, say), [.., query] and [.., key], the keys'
    ascending. A key that closes with the query counts. Raises ``AttentionInvalid``.
    """
    if query_closes.is_floating_point() or key_closes.is_floating_point():
        raise AttentionInvalid("Times are whole numbers; give milliseconds as int64.")
    if bool((key_closes.diff(dim=-1) < 0).any()):
        raise AttentionInvalid("The keys' times do not ascend; sort the stream by its closes.")
    return torch.searchsorted(key_closes.contiguous(), query_closes.contiguous(), right=True)


def cross_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor | None = None,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Attention:
    """Return what *query* [batch, head, query, dim] reads of another stream, and its logsumexp.

    *key* and *value* are [batch, head, key, dim], of any length; *seen* [query] or [batch, query]
    says how many leading keys each query sees, None shows all. A query that sees none reads 0, its
    logsumexp is -inf. Differentiable; all keys go by *backend*, some by blocks of queries in
    memory that does not grow with query · key. Raises ``AttentionInvalid`` as ``attend`` does.
    """
    if seen is None:
        return attend(query, key, value, Mask.full(), scale=scale, backend=backend)
    check_inputs(query, key, value, Mask.full())
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    largest = check_products(query, key, factor, value=value)[2]
    own = _checked_seen(seen, query, key)
    causal = False
    made = Attention(*square_attention(query, key, value, Chunked(own), causal, factor))
    return refuse_overflow(made, largest, key.shape[2])


def cross_confidence(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    rows: Sequence[int],
    seen: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Return ``1 - H / ln n`` of chosen *rows* over the n keys that they see: [batch, head, row].

    Tensors are those of ``cross_attend``; a row that sees one key, or none, has 0. Raises
    ``AttentionInvalid``.
    """
    check_tensors(query=query, key=key, logsumexp=logsumexp)
    chosen = check_rows(rows, query.shape[2])
    counts = torch.full_like(query[:, 0, :, 0], key.shape[2], dtype=torch.int64)
    if seen is not None:
        counts = _checked_seen(seen, query, key).expand_as(counts)
    counts = counts[:, chosen]  # [batch, row]
    scores = Scores(causal=False, scale=scale, seen=counts)
    entropy = score_entropy(query[:, :, chosen], key, logsumexp[:, :, chosen], scores)
    return row_confidence(entropy, counts[:, None].clamp_min(1))


def stream_rollout(
    steps: Sequence[Sequence[StreamRead]],
    lengths: Sequence[int],
    rows: Sequence[int],
    *,
    stream: int = 0,
    residual_weight: float = 0.5,
) -> list[Tensor]:
    """Return where *rows* of *stream* looked: a tensor [batch, row, time] for each stream.

    Together they sum to 1. *steps* are the layers, the first one first; the reads of one step all
    see the streams as the step found them, and those into one stream share ``1 - ρ`` equally.
    *lengths* are the streams' own. What sees nothing keeps itself. Exact; heads are fused by their
    mean. Raises ``AttentionInvalid`` for reads that do not fit and when a head does not keep its
    mass.
    """
    check_share(residual_weight, "residual_weight")
    _check_steps(steps, lengths)
    if not 0 <= stream < len(lengths):
        raise AttentionInvalid(f"There is no stream {stream}; choose 0 to {len(lengths) - 1}.")
    chosen = check_rows(rows, lengths[stream])
    like = steps[0][0].logsumexp
    held = [like.new_zeros(len(like), len(chosen), length) for length in lengths]
    held[stream][:, range(len(chosen)), chosen] = 1.0
    for step in reversed(steps):
        asking = {read.into for read in step}
        below = [
            residual_weight * own if number in asking else own for number, own in enumerate(held)
        ]
        for read in step:
            share = (1.0 - residual_weight) / sum(one.into == read.into for one in step)
            moved, kept = _moved(read, held[read.into])
            below[read.of] = below[read.of] + share * moved
            below[read.into] = below[read.into] + share * kept
        held = below
    total = torch.stack([own.sum(dim=-1) for own in held]).sum(dim=0)[..., None]
    return [own / total for own in held]


def _moved(read: StreamRead, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``mean_h wᵀA`` [batch, row, key], and the weights of queries that see nothing."""
    blind = torch.isneginf(read.logsumexp[:, 0])[:, None]  # [batch, 1, query]
    kept = weights * blind
    used = weights.masked_fill(blind, 0.0)
    rows = rows_with_weight(used)
    if not bool(rows.any()):
        return used.new_zeros(*used.shape[:2], read.key.shape[2]), kept
    if not read.scores.causal and read.scores.window is None and not bool(rows.all()):
        places = rows.nonzero()[:, 0]
        moved, own = _moved_by_heads(_rows_of(read, places), used[:, :, places])
        return moved, kept.index_add(2, places, own)
    moved, own = _moved_by_heads(read, used)
    return moved, kept + own


def _rows_of(read: StreamRead, places: Tensor) -> StreamRead:
    """Return *read* of the queries at *places* alone, which see what they see by themselves."""
    seen, gradient = read.scores.seen, read.gradient
    return read._replace(
        query=read.query[:, :, places],
        logsumexp=read.logsumexp[:, :, places],
        scores=replace(read.scores, seen=None if seen is None else seen[..., places]),
        gradient=None if gradient is None else gradient[:, :, places],
    )


def _moved_by_heads(read: StreamRead, used: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``mean_h wᵀA`` [batch, row, key], each head's mass checked, and what was kept."""
    if read.gradient is not None:
        return _moved_by_gradient(read, used)
    product = carry_rows(read.query, read.key, read.logsumexp, used, read.scores)
    if read.scores.sinks is None:
        factor = read.query.shape[-1] ** -0.5 if read.scores.scale is None else read.scores.scale
        logsumexp = read.logsumexp.to(product.dtype)
        tolerance = mass_tolerance(Layer(read.query, read.key, logsumexp, factor))
        check_mass(product.sum(dim=-1), used.sum(dim=-1).to(product.dtype), tolerance)
    return product.mean(dim=1).to(used.dtype), torch.zeros_like(used)


def _moved_by_gradient(read: StreamRead, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``wᵀ`` times ``mean_h (∇A ⊙ A)⁺`` with its rows normalised, and rows without any."""
    if read.value is None or read.gradient is None:
        raise AttentionInvalid("A read that is weighed by its gradient needs its value as well.")
    moved = weights.new_zeros(*weights.shape[:2], read.key.shape[2])
    kept = torch.zeros_like(weights)
    for part, entries in score_entries(read.query, read.key, read.logsumexp, read.scores):
        slopes = read.gradient[:, :, part.rows].to(entries.dtype) @ read.value.to(entries.dtype).mT
        fused = (entries * slopes).clamp_min(0.0).mean(dim=1)  # [batch, row, key]
        total = fused.sum(dim=-1)
        own = weights[:, :, part.rows]
        kept[:, :, part.rows] = own * (total == 0)[:, None]
        scaled = own / total.clamp_min(torch.finfo(total.dtype).tiny)[:, None]
        moved += (scaled @ fused).to(moved.dtype)
    return moved, kept


def _checked_seen(seen: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return *seen* as [batch or 1, query]; raise where it is not whole numbers of keys."""
    check_seen(seen, query)
    if not bool(((seen >= 0) & (seen <= key.shape[2])).all()):
        raise AttentionInvalid(
            f"seen must be from 0 to {key.shape[2]}, the keys that there are; count them anew."
        )
    return seen.to(query.device).view(-1, query.shape[2])


def _check_steps(steps: Sequence[Sequence[StreamRead]], lengths: Sequence[int]) -> None:
    if not steps or not all(steps):
        raise AttentionInvalid("There is no layer to roll out; give every step at least one read.")
    for number, read in ((number, read) for number, step in enumerate(steps) for read in step):
        check_seen(read.scores.seen, read.query)
        for name, stream, tensor in (
            ("asks", read.into, read.query),
            ("is read", read.of, read.key),
        ):
            if not 0 <= stream < len(lengths) or tensor.shape[2] != lengths[stream]:
                known = lengths[stream] if 0 <= stream < len(lengths) else "no"
                raise AttentionInvalid(
                    f"In step {number} stream {stream} {name} with {tensor.shape[2]} tokens and "
                    f"has {known}; give each read the whole of its streams."
                )
