"""Tiles of an attention matrix, recomputed from query, key and logsumexp and then discarded.

``A_ij = exp(scale·q_i·k_j - lse_i)`` on the pairs that the mask shows. A window's tiles cover its
band alone, so nothing here grows with time squared. Scores are kept to base 2, since PyTorch's
``exp2`` took a quarter of the time of its ``exp`` on the CPUs tried, with equal errors. The second
half says how far rounding may move a product of rows, and restates a layer where that is too far.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from tracepaper.strategies.attention.checks import Layer, largest_score
from tracepaper.strategies.attention.masks import Mask, MaskKind
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

LOG2_E: Final = math.log2(math.e)
TILE_BARS: Final = 256
"""Rows and columns of a tile: 256 KiB of float32, which stays in a core's second cache."""
TILE_BARS_MIN: Final = 32
GROUP_ENTRIES: Final = TILE_BARS * TILE_BARS
"""Heads of a short sequence are grouped up to this many entries a matrix product."""


class RowBlock(NamedTuple):
    """Some query rows and the span of keys that at least one of them sees.

    ``rows`` are the rows' own numbers where some of ``start`` … ``stop - 1`` are left out, else
    None.
    """

    start: int
    stop: int
    key_start: int
    key_stop: int
    rows: Tensor | None

    def take(self, tensor: Tensor, dim: int) -> Tensor:
        """Return this block's rows of *tensor* along *dim*: a view where none is left out."""
        if self.rows is None:
            return tensor.narrow(dim, self.start, self.stop - self.start)
        return tensor.index_select(dim, self.rows)

    def size(self) -> int:
        """Return how many rows the block holds."""
        return self.stop - self.start if self.rows is None else len(self.rows)


def tile_rows(mask: Mask) -> int:
    """Return how many rows a tile should have: fewer where a narrow window wastes the rest."""
    if mask.kind is not MaskKind.WINDOW or mask.window_bars >= TILE_BARS:
        return TILE_BARS
    return max(TILE_BARS_MIN, 1 << (mask.window_bars - 1).bit_length())


def key_span(mask: Mask, start: int, stop: int, time: int) -> tuple[int, int]:
    """Return the first key, and one past the last, that rows ``start`` … ``stop - 1`` see."""
    match mask.kind:
        case MaskKind.FULL:
            return 0, time
        case MaskKind.CAUSAL:
            return 0, stop
        case MaskKind.WINDOW:
            return max(0, start - mask.window_bars + 1), stop


def row_blocks(
    time: int, mask: Mask, *, rows_a_block: int, kept: Tensor | None = None
) -> Iterator[RowBlock]:
    """Cut the rows 0 … time - 1 into blocks; ``kept`` (boolean [time]) leaves rows out."""
    counts = None
    if kept is not None:
        padding = -time % rows_a_block
        padded = torch.nn.functional.pad(kept, (0, padding))
        counts = padded.view(-1, rows_a_block).sum(dim=1).tolist()
    for number, start in enumerate(range(0, time, rows_a_block)):
        stop = min(start + rows_a_block, time)
        if kept is None or counts is None or counts[number] == stop - start:
            yield RowBlock(start, stop, *key_span(mask, start, stop, time), None)
        elif counts[number]:
            rows = start + kept[start:stop].nonzero()[:, 0]
            first, last = int(rows[0]), int(rows[-1])
            yield RowBlock(first, last + 1, *key_span(mask, first, last + 1, time), rows)


def key_tiles(block: RowBlock, keys_a_tile: int) -> Iterator[tuple[int, int]]:
    """Cut a block's keys at multiples of ``keys_a_tile``, so that tiles meet on a fixed grid."""
    start = block.key_start
    while start < block.key_stop:
        stop = min((start // keys_a_tile + 1) * keys_a_tile, block.key_stop)
        yield start, stop
        start = stop


def is_whole(block: RowBlock, mask: Mask, key_start: int, key_stop: int) -> bool:
    """Return whether every row of the block sees every key from ``key_start`` on."""
    if mask.kind is MaskKind.FULL:
        return True
    if key_stop - 1 > block.start:
        return False
    return mask.kind is MaskKind.CAUSAL or key_start > block.stop - 1 - mask.window_bars


def hidden_pairs(
    block: RowBlock, mask: Mask, key_start: int, key_stop: int, *, device: torch.device
) -> Tensor | None:
    """Return the boolean [row, key] table of what the mask hides, None where it hides nothing."""
    if is_whole(block, mask, key_start, key_stop):
        return None
    rows = block.rows
    if rows is None:
        rows = torch.arange(block.start, block.stop, device=device)
    keys = torch.arange(key_start, key_stop, device=device)
    distance = rows[:, None] - keys
    hidden = distance < 0
    if mask.kind is MaskKind.WINDOW:
        hidden |= distance >= mask.window_bars
    return hidden


def hide_(tile: Tensor, block: RowBlock, mask: Mask, key_start: int) -> Tensor:
    """Zero the pairs of *tile* [..., row, key] that the mask hides, in place."""
    if block.rows is None and mask.kind in (MaskKind.CAUSAL, MaskKind.WINDOW):
        # The two triangles are cheaper than a table, and drop infinities as well.
        offset = block.start - key_start
        tile.tril_(offset)
        if mask.kind is MaskKind.WINDOW:
            tile.triu_(offset - mask.window_bars + 1)
        return tile
    key_stop = key_start + tile.shape[-1]
    hidden = hidden_pairs(block, mask, key_start, key_stop, device=tile.device)
    return tile if hidden is None else tile.masked_fill_(hidden, 0.0)


def tile_probabilities(queries: Tensor, keys_by_dim: Tensor, minus_logsumexp: Tensor) -> Tensor:
    """Return exp2(q·kᵀ - lse) of one tile, unmasked: [pair, row, key].

    The arguments are parts of an ``Operand``: queries [pair, row, dim], keys [pair, dim, key] and
    logsumexp [pair, row, 1]; a pair is one head of one batch element.
    """
    return torch.baddbmm(minus_logsumexp, queries, keys_by_dim).exp2_()


def visible_pairs(time: int, mask: Mask) -> int:
    """Return how many (query, key) pairs the mask shows in *time* bars."""
    if mask.kind is MaskKind.FULL:
        return time * time
    window = time if mask.kind is MaskKind.CAUSAL else min(mask.window_bars, time)
    return window * (window + 1) // 2 + (time - window) * window


class Operand(NamedTuple):
    """A layer laid out for tiles, to base 2: one pair for each head of each batch element."""

    queries: Tensor  # [pair, time, dim], times scale · log2 e
    keys_by_dim: Tensor  # [pair, dim, time]
    minus_logsumexp: Tensor  # [pair, time, 1], times log2 e


def operand(layer: Layer) -> Operand:
    """Return *layer* laid out for tiles, in its working type; only the scaled query is a copy."""
    kind = layer.logsumexp.dtype
    factor = layer.scale * LOG2_E
    queries = (layer.query.to(kind) * factor).flatten(0, 1)  # [batch * head, time, dim]
    keys_by_dim = layer.key.to(kind).flatten(0, 1).transpose(1, 2)  # [batch * head, dim, time]
    minus_logsumexp = (layer.logsumexp * -LOG2_E).flatten(0, 1)[..., None]
    return Operand(queries, keys_by_dim, minus_logsumexp)


# --- precision

ROUNDING_MAX: Final = 1e-4
"""Beyond this rounding error of one score, float32 cannot carry ``score - logsumexp``."""
STRIPE_ENTRIES: Final = 1 << 22
"""Matrix entries held at once where whole rows are needed: 16 MiB of float32."""
FADE: Final = 64.0
"""Slacks over which entries fade out below a threshold: a rounding moves a hundredth of one."""
_SLACK: Final = 64.0
_FLOOR: Final = 8.0


def mass_tolerance(layer: Layer) -> float:
    """Return how far from 1 rounding alone may move a row's mass in this layer's type."""
    eps: float = torch.finfo(layer.logsumexp.dtype).eps
    return _SLACK * eps * (_FLOOR + largest_score(layer))


def tie_slack(layer: Layer) -> float:
    """Return the relative difference of two entries that rounding to float32 may have made.

    In float64 as well: what float32 cannot tell apart is a tie in every type, or discarding would
    drop other entries in each.
    """
    return 4.0 * torch.finfo(torch.float32).eps * (_FLOOR + largest_score(layer))


def restate(layer: Layer, mask: Mask) -> Layer:
    """Return *layer*, in float64 with its own logsumexp where its scores outgrow float32.

    Scores of some hundreds lose the digits that tell ``exp(score - logsumexp)`` from noise when
    two kernels sum them in different orders. The given logsumexp is still compared with the true
    one: raise ``AttentionInvalid`` where rounding cannot explain the difference.
    """
    eps: float = torch.finfo(layer.logsumexp.dtype).eps
    size = largest_score(layer)
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
        # The operand is laid out to base 2; a logsumexp is natural everywhere.
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
