"""How far rounding may move a product of attention rows, and what is done where it is too far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from tracepaper.strategies.attention.checks import Layer
from tracepaper.strategies.attention.tiles import LOG2_E, hidden_pairs, operand, row_blocks
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.strategies.attention.masks import Mask

ROUNDING_MAX: Final = 1e-4
"""Beyond this rounding error of one score, float32 cannot carry ``score - logsumexp``."""
STRIPE_ENTRIES: Final = 1 << 22
"""Matrix entries held at once where whole rows are needed: 16 MiB of float32."""
_SLACK: Final = 64.0
_FLOOR: Final = 8.0


def magnitude(layer: Layer) -> float:
    """Return the largest |score| that the layer's norms allow (Cauchy and Schwarz)."""
    kind = layer.logsumexp.dtype
    query = torch.linalg.vector_norm(layer.query, dim=-1, dtype=kind).amax()
    key = torch.linalg.vector_norm(layer.key, dim=-1, dtype=kind).amax()
    return abs(layer.scale) * float(query) * float(key)


def mass_tolerance(layer: Layer) -> float:
    """Return how far from 1 rounding alone may move a row's mass in this layer's type."""
    eps: float = torch.finfo(layer.logsumexp.dtype).eps
    return _SLACK * eps * (_FLOOR + magnitude(layer))


_TIE_LEAST: Final = 5e-13
"""Sums over heads and keys round more often than one product does; float64 has digits to spare."""


def tie_slack(layer: Layer) -> float:
    """Return the relative difference of two entries that rounding alone may have made."""
    return max(mass_tolerance(layer) / _SLACK * 4.0, _TIE_LEAST)


def restate(layer: Layer, mask: Mask) -> Layer:
    """Return *layer*, in float64 with its own logsumexp where its scores outgrow float32.

    Scores of some hundreds lose the digits that tell ``exp(score - logsumexp)`` from noise when
    two kernels sum them in different orders. The given logsumexp is still compared with the true
    one: raise ``AttentionInvalid`` where rounding cannot explain the difference.
    """
    eps: float = torch.finfo(layer.logsumexp.dtype).eps
    size = magnitude(layer)
    if layer.logsumexp.dtype == torch.float64 or eps * size <= ROUNDING_MAX:
        return layer
    exact = Layer(layer.query.double(), layer.key.double(), layer.logsumexp.double(), layer.scale)
    own = own_logsumexp(exact, mask)
    if float((own - exact.logsumexp).abs().amax()) > _SLACK * eps * (_FLOOR + size):
        raise AttentionInvalid(
            "The logsumexp is not that of this query, key, mask and scale; give the kernel's own, "
            "in natural logarithms."
        )
    return exact._replace(logsumexp=own)


def own_logsumexp(layer: Layer, mask: Mask) -> Tensor:
    """Return the natural logsumexp of every row, some whole rows at a time: [batch, head, time]."""
    time = layer.query.shape[2]
    queries, keys_by_dim, _ = operand(layer)
    result = torch.empty_like(layer.logsumexp).flatten(0, 1)  # [pair, time]
    rows_a_block = max(1, STRIPE_ENTRIES // (time * len(queries)))
    for block in row_blocks(time, mask, rows_a_block=rows_a_block):
        span = slice(block.key_start, block.key_stop)
        scores = queries[:, block.start : block.stop] @ keys_by_dim[:, :, span] / LOG2_E
        hidden = hidden_pairs(block, mask, span.start, span.stop, device=scores.device)
        if hidden is not None:
            scores.masked_fill_(hidden, -torch.inf)
        result[:, block.start : block.stop] = scores.logsumexp(dim=-1)
    return result.view_as(layer.logsumexp)


def check_mass(mass: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Raise ``AttentionInvalid`` unless every head kept its mass.

    ``mass`` is [batch, head, row], the raw product's sums; ``wanted`` [batch, row] what went in.
    """
    lost = (mass - wanted[:, None]).abs() - tolerance * wanted[:, None]
    # Written so that a NaN fails as well.
    if not bool((lost <= torch.finfo(mass.dtype).tiny).all()):
        head = int(lost.nan_to_num(nan=torch.inf).amax(dim=(0, 2)).argmax())
        worst = float((mass - wanted[:, None])[:, head].abs().nan_to_num(torch.inf).amax())
        raise AttentionInvalid(
            f"Head {head} did not keep its attention mass (off by {worst:.3g}); give the "
            "logsumexp of the same query, key, mask and scale, in natural logarithms."
        )
