"""Join the calls of one generation: each adds rows to the sequence that its cache holds.

A cache may grow, be cut, drop what a window left behind, or have keys that are not used yet. The
keys of the sequence are put together from what each call adds, and compared with what the last one
reads; a rollout checks besides that each row's weights over them sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from .layer import Layer
from .masks import Mask, shown_table
from .reads import Read


def unpacked(x: Tensor) -> Tensor:
    """Return *x* [batch, key head, head of it, ..] of one query as [batch, head, 1, ..].

    Models with grouped heads give the heads of one key as if they were its queries. A mask for all
    heads stays as it is.
    """
    return x.flatten(1, 2)[:, :, None]


def without_unused(layer: Layer) -> Layer:
    """Return *layer* without the last keys, if it has more keys than queries and none sees them."""
    queries, keys = layer.shape[2:]
    if keys <= queries or layer.source != layer.target:
        return layer
    dense = layer.mask.dense
    if dense is None:
        low, high = layer.mask.bounds(queries, keys)
        used = int(high.masked_fill(low >= high, 0).amax())
    else:
        shown = dense if dense.dtype == torch.bool else dense > torch.finfo(dense.dtype).min / 2
        seen = shown.flatten(0, -2).any(dim=0).nonzero()
        used = int(seen[-1, 0]) + 1 if len(seen) else keys
    used = max(used, queries)
    if used == keys:
        return layer
    table = dense
    if table is None:
        table = shown_table(layer.mask, queries, keys, layer.query.device)[:, None]
    value = layer.value
    return replace(
        layer,
        key=layer.key[:, :, :used],
        value=None if value is None else value[:, :, :used],
        mask=Mask.from_dense(table[..., :used]),
    )


def is_whole(call: Sequence[Read]) -> bool:
    """Return whether *call* is a sequence from its first token on, which goes on from no other."""
    return bool(call) and call[0].shape[2] == call[0].shape[3]


def joined(calls: Sequence[Sequence[Layer]]) -> list[Layer]:
    """Return the layers of the last of *calls* over the rows of all whose sequence it goes on.

    They are those of the last call alone if its keys are not those that the others left.
    """
    last = list(calls[-1])
    parts = [last]
    for call in reversed(calls[:-1]):
        if is_whole(parts[0]) or len(call) != len(last):
            break
        parts.insert(0, list(call))
    if len(parts) == 1:
        return last
    layers = [_over_all(steps) for steps in zip(*parts, strict=True)]
    counts = {None if layer is None else layer.shape[2] for layer in layers}
    return last if None in counts or len(counts) > 1 else cast("list[Layer]", layers)


def _over_all(parts: Sequence[Layer]) -> Layer | None:
    """Return one layer over the queries of all *parts*, or None if one does not go on."""
    last = parts[-1]
    is_cross = last.source != last.target
    heads = min(part.key.shape[1] for part in parts)
    keys = [part.key[:, :: part.key.shape[1] // heads] for part in parts]
    storages = {key.untyped_storage().data_ptr() for key in keys}
    rows = _Rows(parts, keys[-1], is_cross=is_cross, is_written=len(storages) < len(keys))
    for part, key in zip(parts, keys, strict=True):
        if not rows.add(part, key):
            return None
    return rows.layer(last, keys[-1])


class _Rows:
    """The rows of a sequence, and its keys in the order of its tokens."""

    def __init__(
        self, parts: Sequence[Layer], key: Tensor, *, is_cross: bool, is_written: bool
    ) -> None:
        batch, heads = parts[0].shape[:2]
        size = sum(part.shape[2] for part in parts)
        count = key.shape[2] if is_cross else size
        self._is_cross = is_cross
        self._is_written = is_written  # the cache goes on in the tensors that it gave
        self._end = 0  # tokens so far
        self._query = parts[0].query.new_empty(batch, heads, size, parts[0].query.shape[-1])
        self._sums = parts[0].logsumexp.new_empty(batch, heads, size)
        self._key = key.new_empty(*key.shape[:2], count, key.shape[-1])
        value = parts[0].value
        self._value = None
        if value is not None:
            self._value = value.new_empty(*key.shape[:2], count, value.shape[-1])
        self._bounds = torch.zeros(2, batch, size, dtype=torch.int64)
        self._table: Tensor | None = None
        stored = [part.mask.dense for part in parts if part.mask.dense is not None]
        if stored:
            tables = max(table.shape[1] for table in stored)
            shape = (batch, tables, size, count)
            self._table = torch.full(shape, -torch.inf, device=key.device)

    def add(self, part: Layer, key: Tensor) -> bool:
        """Add the rows of *part*, whose keys are *key*; return whether it goes on from the rest."""
        queries, count = part.shape[2:]
        past, end = count - queries, self._end
        first = 0  # of the sequence's keys that this part has
        if not self._is_cross:
            if not 0 <= past <= end or (past < end and self._is_written):
                return False
            if past < end and not torch.equal(key[:, :, :past], self._key[:, :, end - past : end]):
                if not torch.equal(key[:, :, :past], self._key[:, :, :past]):
                    return False
                end = past  # what was tried is cut off
            first = end - past
        new = slice(end, end + queries)
        self._query[:, :, new] = part.query
        self._sums[:, :, new] = part.logsumexp
        given = slice(None) if self._is_cross else slice(past, None)
        self._key[:, :, given if self._is_cross else new] = key[:, :, given]
        if self._value is not None and part.value is not None:
            value = part.value[:, :: part.value.shape[1] // key.shape[1]]
            self._value[:, :, given if self._is_cross else new] = value[:, :, given]
        low, high = part.mask.bounds(queries, count)
        self._bounds[:, :, new] = torch.stack((low, high)).expand(2, len(key), -1) + first
        if self._table is not None:
            self._table[:, :, new] = -torch.inf
            self._table[:, :, new, first : first + count] = _added(part)
        self._end = new.stop
        return True

    def layer(self, last: Layer, key: Tensor) -> Layer | None:
        """Return all rows as *last* reads them; None if *key*, which it read, is not theirs."""
        end, count = self._end, key.shape[2]
        keys = slice(0, count) if self._is_cross else slice(0, end)
        if not torch.equal(self._key[:, :, keys][:, :, -count:], key):
            return None
        if self._table is None:
            mask = _mask_of_bounds(self._bounds[0, :, :end], self._bounds[1, :, :end], keys.stop)
        else:
            mask = Mask.from_dense(self._table[:, :, :end, keys])
        return replace(
            last,
            query=self._query[:, :, :end],
            key=self._key[:, :, keys],
            value=None if self._value is None else self._value[:, :, keys],
            logsumexp=self._sums[:, :, :end],
            mask=mask,
        )


def _added(part: Layer) -> Tensor:
    """Return what the mask of *part* adds to its scores, [batch, 1 or head, query, key]."""
    table = part.mask.dense
    queries, keys = part.shape[2:]
    if table is None:
        table = shown_table(part.mask, queries, keys, part.query.device)[:, None]
    if table.dtype == torch.bool:
        shown = table
        table = torch.zeros(table.shape, device=table.device).masked_fill_(~shown, -torch.inf)
    return table


def _mask_of_bounds(low: Tensor, high: Tensor, keys: int) -> Mask:
    """Return the mask of rows that see the keys from *low* to before *high*, [batch, query]."""
    at = torch.arange(low.shape[1])
    shown = low < high
    starts = low.masked_fill(~shown, keys).amin(dim=-1)
    before = int((at - low).masked_fill(~shown | (low == starts[:, None]), -1).amax())
    mask = Mask(
        before=None if before < 0 else before,
        starts=None if bool((starts == 0).all()) else starts,
    )
    if low.shape[1] == keys:
        own_low, own_high = mask.bounds(keys, keys)
        same = (own_low == low) & (own_high == high)
        if bool((same | ~shown & (own_low >= own_high)).all()):
            return mask
    key = torch.arange(keys)
    return Mask.from_dense(((key >= low[..., None]) & (key < high[..., None]))[:, None])
