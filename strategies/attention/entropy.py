"""Entropy of attention rows by one more flash pass, and the confidence derived from it.

``H_i = lse_i - scale·q_i·(A·K)_i``: the mean score under the attention itself, which a flash kernel
returns when the keys take the values' place. No matrix is stored.

The rules are docs/attention.md, A9 and A10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tracepaper.strategies.attention import compiled
from tracepaper.strategies.attention.checks import (
    Layer,
    check_layer,
    check_mask,
    check_rows,
    exact,
    explanation,
)
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.masks import Mask, MaskKind
from tracepaper.strategies.attention.tiles import (
    RowBlock,
    check_mass,
    hide_,
    key_span,
    mass_tolerance,
    operand,
    restate,
)
from tracepaper.strategies.attention.tiles import tile_probabilities as probabilities
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from torch import Tensor


@explanation
def row_entropy(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    mask: Mask,
    rows: Sequence[int] | Tensor | None = None,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return the entropy of each row in nats: [batch, head, time], or [batch, head, row].

    Chosen *rows* cost O(rows · N); all rows cost one flash pass, or one by *backend* where that is
    compiled (``native``), where that takes the tensors; tiles is without, auto with what there is.
    Raises ``AttentionInvalid`` on tensors or rows that do not fit, on a backend that is none or is
    not here, and when a row does not keep its mass.
    """
    check_mask(mask)
    given = check_layer(query, key, logsumexp, scale=scale)
    layer = restate(given, mask)
    time = query.shape[2]
    loops = _loops(layer, backend)
    if rows is None and loops is not None:
        mass, entropy = compiled.row_masses(layer, mask, loops)
        check_mass(mass, mass.new_ones(len(mass), time), mass_tolerance(layer))
    elif rows is None:
        kind = layer.logsumexp.dtype
        query, key = layer.query.to(kind), layer.key.to(kind)
        mean_key, own = attend(query, key, key, mask, scale=layer.scale, checked=False)
        # The rows' masses under the logsumexp given; the pass has just returned the true one.
        mass = (own - layer.logsumexp).exp()
        check_mass(mass, mass.new_ones(len(mass), time), mass_tolerance(layer))
        entropy = layer.logsumexp - layer.scale * (query * mean_key).sum(dim=-1)
    else:
        entropy = torch.stack(
            [_one_row(layer, mask, row) for row in check_rows(rows, time)], dim=-1
        )
    # Rounding may fall below 0 on a row that sees one key alone.
    return entropy.clamp_min(0.0).to(given.logsumexp.dtype)


def _loops(layer: Layer, backend: str) -> str | None:
    """Return the compiled loops that *backend* asks for and that take *layer*; None for torch."""
    if backend not in ("auto", "tiles", *compiled.NAMES):
        raise AttentionInvalid(
            f"There is no entropy backend {backend!r}; choose auto, tiles, "
            f"{', '.join(compiled.NAMES)}."
        )
    if backend in compiled.NAMES and not compiled.runs_on(backend, layer.query.device):
        raise AttentionInvalid(
            f"{backend} cannot run on {layer.query.device}; install a C compiler and then "
            "tracepaper again, or choose auto."
        )
    fastest = None if backend == "tiles" else compiled.choose(layer)
    return fastest if fastest is None or backend == "auto" else backend


@exact
def trained_entropy(
    query: Tensor, key: Tensor, logsumexp: Tensor, mask: Mask, *, scale: float | None = None
) -> Tensor:
    """Return the entropy of every row in nats for a loss, differentiable once: [batch, head, time].

    The tensors and the value are those of ``row_entropy``, which carries no gradient. A flash pass
    gives its logsumexp none. That one is ``scale·Σ_j p_ij k_j`` for the query and
    ``scale·Σ_i p_ij q_i`` for the keys, which two more passes carry: three in all, and three
    backward. Raises ``AttentionInvalid`` on tensors that do not fit.
    """
    check_mask(mask)
    layer = check_layer(query, key, logsumexp, scale=scale)
    kind, scale = layer.logsumexp.dtype, layer.scale
    query, key = query.to(kind), key.to(kind)
    mean_key = attend(query, key, key, mask, scale=scale, checked=False).output
    mean_score = scale * (query * mean_key).sum(dim=-1)
    fixed = query.detach()
    by_key = attend(fixed, key.detach(), key, mask, scale=scale, checked=False).output
    carried = scale * ((query * mean_key.detach()).sum(dim=-1) + (fixed * by_key).sum(dim=-1))
    return layer.logsumexp.detach() + (carried - carried.detach()) - mean_score


def _one_row(layer: Layer, mask: Mask, row: int) -> Tensor:
    """Return the entropy of one row from its own probabilities: [batch, head]."""
    batch, heads, time, _ = layer.query.shape
    start, stop = key_span(mask, row, row + 1, time)
    laid = operand(layer._replace(query=layer.query[:, :, row : row + 1]))
    block = RowBlock(row, row + 1, start, stop, None)
    entries = probabilities(
        laid.queries, laid.keys_by_dim[:, :, start:stop], laid.minus_logsumexp[:, row : row + 1]
    )
    entries = hide_(entries, block, mask, start).view(batch, heads, stop - start)
    mass = entries.sum(dim=-1, keepdim=True)
    check_mass(mass, mass.new_ones(batch, 1), mass_tolerance(layer))
    terms: Tensor = torch.special.entr(entries)
    return terms.sum(dim=-1)


def visible_counts(time: int, mask: Mask, rows: Sequence[int] | Tensor | None = None) -> Tensor:
    """Return how many keys each row (of all, or the chosen ones) sees: int64 [row]."""
    check_mask(mask)
    if rows is None:
        at = torch.arange(time, device="cpu")
    else:
        at = torch.tensor(list(check_rows(rows, time)), dtype=torch.int64, device="cpu")
    match mask.kind:
        case MaskKind.FULL:
            return torch.full_like(at, time)
        case MaskKind.CAUSAL:
            return at + 1
        case MaskKind.WINDOW:
            return (at + 1).clamp_max(mask.window_bars)


def row_confidence(entropy: Tensor, visible: Tensor) -> Tensor:
    """Return ``1 - H / ln n`` for entropies [..., row] of rows that see *visible* [row] keys.

    1 is all attention on one bar, 0 is spread evenly; a row that sees one key has no choice and
    therefore 0.
    """
    choices = visible.to(entropy.device, entropy.dtype).log()
    share = 1.0 - entropy / choices.clamp_min(math.log(2.0))
    return torch.where(choices > 0, share, torch.zeros_like(share)).clamp(0.0, 1.0)


@explanation
def confidence(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    logsumexps: Sequence[Tensor],
    rows: Sequence[int] | Tensor,
    mask: Mask,
) -> Tensor:
    """Return each chosen row's confidence by layer and head: [batch, layer, head, row].

    The decision's confidence is the mean over layers and heads.
    """
    counts = visible_counts(queries[0].shape[2], mask, rows)
    return torch.stack(
        [
            row_confidence(row_entropy(query, key, logsumexp, mask, rows), counts)
            for query, key, logsumexp in zip(queries, keys, logsumexps, strict=True)
        ],
        dim=1,
    )
