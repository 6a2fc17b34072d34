"""Tiles of attention matrices, recomputed from query, key and logsumexp and then discarded.

``A_ij = exp(score_ij - lse_i)`` on the pairs that the mask shows. ``Operand.scores`` is the one
iterator over tiles: queries that share a key head are stacked in one product, rows without weight
are left out, and tiles that the mask hides are not computed, so that under a window the cost is
linear in time. Everything else is a reduction over its tiles. Scores are to base 2, since PyTorch's
``exp2`` takes about half the time of its ``exp``, with equal errors.

The rules are docs/attention.md, A4 to A9.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch

from .errors import AttentionInvalid
from .masks import Mask

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

LOG2_E: Final = math.log2(math.e)
TILE: Final = {"cpu": 512, "cuda": 4_096}
"""Stacked rows and keys of a tile: 1 MiB of float32 stays in a core's L2 cache; a GPU, which takes
as long to start a product as to compute a small one, needs larger ones."""
ROWS_MIN: Final = 32
_HIDDEN_KEPT: Final = 8  # cached masks of tiles
ROWS_A_HEAD_MAX: Final = 8
"""Up to here one product per head is cheaper than fusing the heads of each tile first."""
LEAST: Final = -1e4
"""Replaces -inf, to base 2, where a logarithm is multiplied: its exponential is 0 as well."""


class Entries(NamedTuple):
    """A tile of some heads, rows and keys: scores to base 2, or probabilities."""

    batch: slice
    heads: slice
    rows: slice | Tensor  # which queries
    at: slice  # their places among the requested rows
    keys: slice
    values: Tensor  # [batch, head, row, key]; overwritten by the next tile


class Operand:
    """A layer in its working type, ready for tiles: grouped heads, cap and mask.

    ``query`` is [batch, head, query, dim], ``key`` [batch, key head, key, dim] and ``logsumexp``
    [batch, head, query] in natural logarithms, -inf for a query that sees nothing.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        logsumexp: Tensor,
        mask: Mask,
        *,
        scale: float,
        softcap: float | None = None,
    ) -> None:
        self.query, self.key, self.logsumexp, self.mask = query, key, logsumexp, mask
        self.scale, self.softcap = scale, softcap
        self.kind = logsumexp.dtype
        self.batch, self.heads, self.queries, self.dim = query.shape
        self.key_heads, self.keys = key.shape[1:3]
        self.group = self.heads // self.key_heads
        self.device = query.device
        self._side = TILE.get(self.device.type, TILE["cuda"])
        pairs = self.batch * self.key_heads
        self._query = query.reshape(pairs, self.group, self.queries, self.dim)
        self._key = key.to(self.kind).reshape(pairs, self.keys, self.dim)
        blind = torch.isneginf(logsumexp)
        self.minus = (logsumexp * -LOG2_E).masked_fill(blind, 0.0)
        low, high = mask.bounds(self.queries, self.keys)
        self._bounds = np.stack((low.numpy(), high.numpy()))  # [ends, batch or 1, query]
        self._hidden: dict[tuple[int | bytes, ...], Tensor] = {}
        self._dense = mask.dense
        if self._dense is not None:
            while self._dense.ndim < query.ndim:
                self._dense = self._dense[None]

    # --- tiles

    def scores(self, rows: Tensor | None = None, *, whole: bool = False) -> Iterator[Entries]:
        """Yield the scores of *rows* (int64, None for all) tile by tile, hidden pairs at -inf.

        With *whole* a tile has all heads of its sequences. *rows* on the CPU avoid a
        synchronisation.
        """
        count = self.queries if rows is None else len(rows)
        if count == 0:
            return
        places = np.arange(count) if rows is None else rows.cpu().numpy()
        factor = self.scale * LOG2_E
        rows_at_once, keys_at_once, pairs_at_once = self._sizes(count, whole=whole)
        buffer = self._key.new_empty(pairs_at_once * self.group * rows_at_once * keys_at_once)
        for pairs, batch, heads in self._pairs(pairs_at_once):
            bounds = self._bounds if self._bounds.shape[1] == 1 else self._bounds[:, batch]
            for at in _cuts(0, count, rows_at_once):
                place = places[at]
                chosen: slice | Tensor = at if rows is None else rows[at]
                if rows is not None and bool((np.diff(place) == 1).all()):
                    chosen = slice(int(place[0]), int(place[-1]) + 1)  # a view instead of a copy
                query = self._query[pairs, :, chosen].to(self.kind) * factor
                query = query.reshape(len(query), -1, self.dim)
                shown = bounds[:, :, place]  # [ends, batch or 1, row]
                low, high = shown
                begins, ends = int(low.max()), int(high.min())  # between them nothing is hidden
                for keys in _cuts(int(low.min()), int(high.max()), keys_at_once):
                    shape = (len(query), query.shape[1], keys.stop - keys.start)
                    scores = torch.bmm(
                        query,
                        self._key[pairs, keys].mT,
                        out=buffer[: math.prod(shape)].view(shape),
                    )
                    scores = scores.view(batch.stop - batch.start, -1, at.stop - at.start, shape[2])
                    if self.softcap is not None:
                        cap = self.softcap * LOG2_E
                        scores.div_(cap).tanh_().mul_(cap)
                    if begins > keys.start or ends < keys.stop:
                        scores.add_(self._added(shown - keys.start, shape[2]))
                    if self._dense is not None:
                        self._add_dense_(self._dense, scores, batch, heads, chosen, keys)
                    yield Entries(batch, heads, chosen, at, keys, scores)

    def entries(
        self, rows: Tensor | None = None, *, minus: Tensor | None = None, whole: bool = False
    ) -> Iterator[Entries]:
        """Yield the probabilities of *rows*; *minus* [batch, head, query] is ``-lse·log2 e``."""
        minus = self.minus if minus is None else minus
        for tile in self.scores(rows, whole=whole):
            offset = minus[tile.batch, tile.heads, tile.rows, None]
            tile.values.add_(offset).exp2_()
            yield tile

    def _sizes(self, count: int, *, whole: bool) -> tuple[int, int, int]:
        """Return how many rows, keys and pairs a tile takes."""
        mask, side, most = self.mask, self._side, self._side**2
        keys = min(self.keys, side)
        rows = max(1, most // (self.heads * keys)) if whole else max(ROWS_MIN, side // self.group)
        if mask.before is not None and (mask.causal or mask.after is not None):
            reach = mask.before + 1 + (0 if mask.causal else mask.after or 0)
            if reach < side:
                rows = min(rows, max(ROWS_MIN, 1 << (reach - 1).bit_length()))
        rows = min(rows, count)
        keys = min(self.keys, max(side, most // (rows * self.heads)))
        pairs = max(1, most // (self.group * rows * keys))
        if whole or pairs >= self.key_heads:
            pairs = max(1, pairs // self.key_heads) * self.key_heads
        return rows, keys, min(pairs, self.batch * self.key_heads)

    def _pairs(self, at_once: int) -> Iterator[tuple[slice, slice, slice]]:
        """Yield pairs of sequence and key head, whole sequences or some heads of one."""
        heads = self.key_heads
        for pairs in _cuts(0, self.batch * heads, max(at_once, 1)) if at_once >= heads else ():
            batch = slice(pairs.start // heads, pairs.stop // heads)
            yield pairs, batch, slice(0, self.heads)
        for element in range(self.batch) if at_once < heads else ():
            for part in _cuts(0, heads, at_once):
                first = element * heads
                yield (
                    slice(first + part.start, first + part.stop),
                    slice(element, element + 1),
                    slice(part.start * self.group, part.stop * self.group),
                )

    def _added(self, shown: NDArray[np.int64], width: int) -> Tensor:
        """Return 0 for the keys of *width* within *shown*, else -inf: [batch or 1, 1, row, key].

        Tiles on one diagonal share the result.
        """
        shown = shown.clip(0, width)
        name = (width, *shown.shape, shown.tobytes())
        if name not in self._hidden:
            if len(self._hidden) >= _HIDDEN_KEPT:
                self._hidden.clear()
            low, high = torch.from_numpy(shown).to(self.device)[:, :, None, :, None]
            key = torch.arange(width, device=self.device)
            hidden = (key < low) | (key >= high)
            zeros = torch.zeros(hidden.shape, dtype=self.kind, device=self.device)
            self._hidden[name] = zeros.masked_fill_(hidden, -torch.inf)
        return self._hidden[name]

    def _add_dense_(
        self,
        table: Tensor,
        scores: Tensor,
        batch: slice,
        heads: slice,
        rows: slice | Tensor,
        keys: slice,
    ) -> None:
        """Add the stored mask *table* to *scores*, -inf where it is False."""
        table = table[batch] if len(table) > 1 else table
        table = table[:, heads] if table.shape[1] > 1 else table
        table = table[:, :, rows] if table.shape[2] > 1 else table
        table = table[..., keys] if table.shape[3] > 1 else table
        if table.dtype == torch.bool:
            scores.masked_fill_(~table, -torch.inf)
        else:
            scores.add_(table.to(self.kind) * LOG2_E)

    # --- what the mask shows

    def visible(self, rows: Sequence[int] | None = None) -> Tensor:
        """Return how many keys each of *rows* sees by each head: int64 [batch, head, row].

        Without a dense mask they are on the CPU, and no GPU is synchronised.
        """
        at = torch.tensor(list(range(self.queries) if rows is None else rows), device="cpu")
        shape = (self.batch, self.heads, len(at))
        if self._dense is None:
            return self.mask.visible(self.queries, self.keys)[:, None, at].expand(shape)
        counts = torch.zeros(shape, dtype=torch.int64, device=self.device)
        for tile in self.scores(at):
            counts[tile.batch, tile.heads, tile.at] += (~torch.isneginf(tile.values)).sum(-1)
        return counts

    def visible_pairs(self) -> Tensor:
        """Return how many pairs of query and key any head sees: int64 [batch]."""
        if self._dense is None:
            return self.visible()[:, 0].sum(dim=-1)
        counts = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
        for tile in self.scores(whole=True):
            counts[tile.batch] += (~torch.isneginf(tile.values)).any(dim=1).sum(dim=(1, 2))
        return counts

    # --- reductions

    def natural_logsumexp(self) -> Tensor:
        """Return the logsumexp of the scores, [batch, head, query]; -inf where nothing is seen."""
        logsumexp = torch.full_like(self.logsumexp, -torch.inf)
        for tile in self.scores():
            largest = tile.values.amax(dim=-1).clamp_min_(-1e30)
            sums = tile.values.sub_(largest[..., None]).exp2_().sum(dim=-1)
            part = logsumexp[tile.batch, tile.heads, tile.at]
            part.copy_(torch.logaddexp2(part, largest + sums.log2()))
        return logsumexp / LOG2_E

    def carry_heads(self, weights: Tensor, rows: Tensor | None) -> Tensor:
        """Return each head's ``wᵀA`` [batch, head, row, key] of *weights* [batch, row, query].

        Only *rows* have any weight.
        """
        batch, count = weights.shape[:2]
        result = weights.new_zeros(batch, self.heads, count, self.keys)
        if count == 1 and bool((weights >= 0).all()):
            # With the weight in the logarithm, one exponential and one sum are left.
            minus = self.minus + weights[:, :1].log2()
            minus = minus.masked_fill(weights[:, :1] == 0, -torch.inf)
            for tile in self.entries(rows, minus=minus):
                result[tile.batch, tile.heads, 0, tile.keys] += tile.values.sum(dim=2)
            return result
        minus = self.minus.masked_fill((weights == 0).all(dim=1)[:, None], -torch.inf)
        used = weights if rows is None else weights[:, :, rows]
        for tile in self.entries(rows, minus=minus):
            part = used[tile.batch, None, :, tile.at]
            result[tile.batch, tile.heads, :, tile.keys] += part @ tile.values
        return result

    def carry_fused(
        self, weights: Tensor, rows: Tensor | None, shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return ``Σ_h shares_h wᵀA_h`` [batch, row, key], and each head's mass.

        The heads of each tile are fused first: many rows share the exponentials.
        """
        batch, count = weights.shape[:2]
        fused = weights.new_zeros(batch, count, self.keys)
        mass = weights.new_zeros(batch, self.heads, count)
        minus = self.minus.masked_fill((weights == 0).all(dim=1)[:, None], -torch.inf)
        used = weights if rows is None else weights[:, :, rows]
        for tile in self.entries(rows, minus=minus, whole=True):
            part = used[tile.batch, :, tile.at]  # [batch, row, query]
            sums = tile.values.sum(dim=-1)  # [batch, head, query]
            mass[tile.batch] += sums @ part.mT
            fused[tile.batch, :, tile.keys] += part @ fuse_mean(tile.values, shares)
        return fused, mass

    def mass_and_entropy(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the keys' mass and entropy in nats of *rows*, [batch, head, row] each."""
        count = self.queries if rows is None else len(rows)
        mass, entropy = self.minus.new_zeros(2, self.batch, self.heads, count).unbind()
        for tile in self.scores(rows):
            offset = self.minus[tile.batch, tile.heads, tile.rows, None]
            logs = tile.values.add_(offset).clamp_min_(LEAST)
            shares = logs.exp2()
            mass[tile.batch, tile.heads, tile.at] += shares.sum(dim=-1)
            entropy[tile.batch, tile.heads, tile.at] -= shares.mul_(logs).sum(dim=-1)
        return mass, entropy / LOG2_E

    def rows(self, queries: Tensor) -> Tensor:
        """Return the probabilities of *queries*: [batch, head, row, key]."""
        weights = self.minus.new_zeros(self.batch, self.heads, len(queries), self.keys)
        for tile in self.entries(queries):
            weights[tile.batch, tile.heads, tile.at, tile.keys] = tile.values
        return weights


def fuse_mean(values: Tensor, shares: Tensor) -> Tensor:
    """Return the heads' weighted mean [batch, row, key] of *values* [batch, head, row, key]."""
    heads, rows, keys = values.shape[1:]
    return (shares @ values.reshape(-1, heads, rows * keys)).view(-1, rows, keys)


def _cuts(start: int, stop: int, size: int) -> Iterator[slice]:
    """Yield slices from *start* to *stop* cut at multiples of *size*: tiles lie on a fixed grid."""
    while start < stop:
        end = min((start // size + 1) * size, stop)
        yield slice(start, end)
        start = end


# --- fusions whose rows do not sum to 1

RADIX_BITS: Final = 16
FADE: Final = 64.0
"""Slacks over which entries fade out below a threshold: rounding then moves them by about 1 %."""

Parts = Callable[["Tensor | None"], Iterable[Entries]]
"""The probabilities of some rows, all heads of a sequence in each part."""
FuseTile = Callable[[Entries], "Tensor"]
"""Turns a part into non-negative weights [batch, row, key]; may overwrite the probabilities."""


def discard_below(fuse: FuseTile, thresholds: Tensor, *, slack: float) -> FuseTile:
    """Return *fuse* without the entries below the threshold of their sequence.

    Entries within a relative *slack* of it stay, since rounding may have moved them. Those just
    below fade out: at a sharp edge a last digit would keep or drop a whole entry.
    """

    def fuse_and_discard(tile: Entries) -> Tensor:
        fused, threshold = fuse(tile), thresholds[tile.batch, None, None]
        below = 1.0 - fused / threshold.clamp_min(torch.finfo(fused.dtype).tiny)
        kept = (1.0 - (below - slack) / (FADE * slack)).clamp_(0.0, 1.0)
        return torch.where(fused < threshold * (1.0 - slack), fused * kept, fused)

    return fuse_and_discard


def smallest_kept(
    parts: Parts, fuse: FuseTile, ratio: float, *, candidates: Sequence[int], like: Tensor
) -> Tensor:
    """Return the k-th smallest fused entry of each sequence, k = ratio × its *candidates*.

    The bits of non-negative floats are ordered as the floats are, so a histogram of the leading
    16 bits gives the bin and further ones give the value: two passes for float32, four for
    float64, and no copy of the matrix. *like* [batch] sets type and device. Entries that are no
    candidates have to be exact zeros.
    """
    batch, kind, device = len(like), like.dtype, like.device
    as_integer = torch.int32 if kind == torch.float32 else torch.int64
    ranks = [int(ratio * count) for count in candidates]
    prefixes = [0] * batch
    first = torch.finfo(kind).bits - RADIX_BITS
    for shift in range(first, -1, -RADIX_BITS):
        counts = torch.zeros(batch, 1 << RADIX_BITS, dtype=torch.int64, device=device)
        computed = [0] * batch
        for tile in parts(None):
            fused = fuse(tile).contiguous()
            for element, entries in enumerate(fused, tile.batch.start):
                bits = entries.view(as_integer).flatten()
                computed[element] += bits.numel()
                inside = bits  # all have the empty prefix of the first pass; a copy takes its time
                if shift < first:
                    inside = bits[(bits >> shift >> RADIX_BITS) == prefixes[element]]
                digits = (inside >> shift) & ((1 << RADIX_BITS) - 1)
                counts[element] += torch.bincount(digits, minlength=1 << RADIX_BITS)
        for element in range(batch):
            if prefixes[element] == 0:
                # Hidden pairs were computed as exact zeros; take them out again.
                counts[element, 0] -= computed[element] - candidates[element]
            before = counts[element].cumsum(0) - counts[element]
            digit = int((before <= ranks[element]).nonzero()[-1, 0])
            # An empty bin has the start of the next bin with entries.
            digit = int((counts[element, : digit + 1] > 0).nonzero()[-1, 0])
            ranks[element] -= int(before[digit])
            prefixes[element] = (prefixes[element] << RADIX_BITS) | digit
    return torch.tensor(prefixes, dtype=as_integer, device=device).view(kind)


def carry_by(
    parts: Parts,
    fuse: FuseTile,
    weights: Tensor,
    rows: Tensor | None,
    keys: int,
    divisor: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return ``w`` times the fused rows, each over its divisor: [batch, row, key]; and their sums.

    *weights* are [batch, row, query]; the *divisor* follows from the sums of rows, [batch, query],
    which are 0 where a query has no weight. A row's tiles are fused once and held together, because
    its sum is complete only after the last of them.
    """
    result = weights.new_zeros(*weights.shape[:2], keys)
    sums = torch.zeros_like(weights[:, 0])
    for _, tiles in itertools.groupby(
        parts(rows), lambda tile: (tile.batch.start, tile.batch.stop, tile.at.start)
    ):
        fused = [(tile, fuse(tile)) for tile in tiles]
        first = fused[0][0]
        total = torch.stack([values.sum(dim=-1) for _, values in fused]).sum(dim=0)
        sums[first.batch, first.rows] = total
        used = weights[first.batch, :, first.rows] / divisor(total)[:, None]
        for tile, values in fused:
            result[tile.batch, :, tile.keys] += used @ values
    return result, sums


# --- precision

ROUNDING_MAX: Final = 1e-4
"""Beyond this rounding error of one score, float32 is too coarse for ``score - logsumexp``."""
SLACK: Final = 64.0
FLOOR: Final = 8.0


def mass_tolerance(kind: torch.dtype, largest: float) -> float:
    """Return how far from 1 rounding may move a row's mass, for scores up to *largest*."""
    return SLACK * float(torch.finfo(kind).eps) * (FLOOR + largest)


def tie_slack(largest: float) -> float:
    """Return the relative difference of two entries that float32 rounding can explain.

    It is the same in float64, so that discarding drops the same entries in every type.
    """
    return 4.0 * torch.finfo(torch.float32).eps * (FLOOR + largest)


class _MassCheck(NamedTuple):
    mass: Tensor
    tolerance: float
    wanted: Tensor


_WAITING: Final[ContextVar[list[_MassCheck] | None]] = ContextVar(
    "masses of a device", default=None
)


def is_explaining() -> bool:
    """Return whether an outer call checks the masses at its end."""
    return _WAITING.get() is not None


@contextmanager
def masses_checked_together() -> Iterator[None]:
    """Check the masses on a GPU at the end of the block: one synchronisation for all layers."""
    waiting: list[_MassCheck] = []
    token = _WAITING.set(waiting)
    try:
        yield
    finally:
        _WAITING.reset(token)
    if not waiting:
        return
    parts = [part for check in waiting for part in (check.mass, check.wanted)]
    numbers = torch.cat([part.reshape(-1) for part in parts]).cpu()
    on_cpu = [
        flat.view(part.shape).to(part.dtype)
        for part, flat in zip(parts, numbers.split([x.numel() for x in parts]), strict=True)
    ]
    for check, mass, wanted in zip(waiting, on_cpu[::2], on_cpu[1::2], strict=True):
        check_mass(mass, check.tolerance, wanted)


def check_mass(mass: Tensor, tolerance: float, wanted: Tensor | None = None) -> None:
    """Raise ``AttentionInvalid`` unless every head kept its mass.

    *mass* [batch, head, row] are the sums of the product; *wanted* [batch, 1 or head, row] is the
    mass before, None for 1. Within ``masses_checked_together`` that of a GPU is checked at its end.
    """
    mass = mass.detach()
    wanted = mass.new_ones(1) if wanted is None else wanted
    waiting = _WAITING.get()
    if waiting is not None and mass.device.type == "cuda":
        waiting.append(_MassCheck(mass, tolerance, wanted))
        return
    lost = (mass - wanted).abs() - tolerance * wanted.abs()
    # Written so that a NaN fails as well.
    if not bool((lost <= torch.finfo(mass.dtype).tiny).all()):
        lost = lost.nan_to_num(nan=torch.inf)
        head = int(lost.amax(dim=(0, 2)).argmax())
        worst = float((mass - wanted)[:, head].abs().nan_to_num(torch.inf).amax())
        raise AttentionInvalid(
            f"Head {head} did not keep its attention mass (off by {worst:.3g}); give the "
            "logsumexp of the same query, key, mask, scale, cap and sinks, in natural logarithms."
        )
