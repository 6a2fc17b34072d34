"""Exact rollout of every row at once, its columns summed into buckets of time.

``R_l = ρ·R_{l-1} + (1-ρ)·mean_h A_l,h·R_{l-1}`` runs upwards: O(N·G) memory for G buckets, and a
bucket that no row of a tile can have reached yet is not touched. Under a window a row reaches
``layers·(window - 1)`` bars back, so it needs no more columns than that span has buckets: they
are used in turn, as a ring, and memory is linear in time.

The rule is docs/attention.md, A11.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from tracepaper.strategies.attention import native
from tracepaper.strategies.attention.checks import Layer, check_layers, check_mask, check_start
from tracepaper.strategies.attention.masks import Mask, MaskKind
from tracepaper.strategies.attention.products import step_forward
from tracepaper.strategies.attention.rollout import (
    Rollout,
    RolloutOptions,
    check_options,
    finish,
    transition,
)
from tracepaper.strategies.attention.tiles import (
    TILE_BARS,
    check_mass,
    hide_,
    is_whole,
    key_tiles,
    mass_tolerance,
    operand,
    restate,
    row_blocks,
    tile_probabilities,
    tile_rows,
)
from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.types import BLOCK_BARS

if TYPE_CHECKING:
    from torch import Tensor


DEFAULT_OPTIONS: Final = RolloutOptions()


def rollout_buckets(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    logsumexps: Sequence[Tensor],
    mask: Mask,
    options: RolloutOptions = DEFAULT_OPTIONS,
    *,
    bucket_bars: int = BLOCK_BARS,
    first_bucket_bars: int | None = None,
    backend: str = "auto",
) -> Rollout:
    """Return every row's rollout by bucket: weights [batch, time, bucket], oldest bucket first.

    The tensors are those of ``rollout_rows``. ``first_bucket_bars`` is the length of the oldest
    bucket where the sequence starts inside one, so that buckets can follow absolute time. With
    *backend* tiles torch computes alone, with auto compiled loops do where they are built. Raises
    ``AttentionInvalid`` on what does not fit and when a head does not keep its mass.
    """
    check_mask(mask)
    layers = check_layers(queries, keys, logsumexps, scale=options.scale)
    first = bucket_bars if first_bucket_bars is None else first_bucket_bars
    made = _rolled(layers, mask, options, bucket_bars=bucket_bars, first=first, backend=backend)
    ring, buckets = made.values.shape[2], int(made.bucket[-1]) + 1
    if ring == buckets:
        return finish(made.values, normalise=True)
    weights = made.values.new_zeros(*made.values.shape[:2], buckets)
    place = _places(made.bucket, ring)
    seen = (place >= 0).expand_as(made.values)
    weights.scatter_add_(
        2, place.clamp_min(0).expand_as(made.values), made.values.masked_fill(~seen, 0.0)
    )
    return finish(weights, normalise=True)


def rollout_by_age(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    logsumexps: Sequence[Tensor],
    mask: Mask,
    options: RolloutOptions = DEFAULT_OPTIONS,
    *,
    bucket_bars: int = BLOCK_BARS,
    first_bucket_bars: int | None = None,
    backend: str = "auto",
) -> Rollout:
    """Return every row's rollout by age: weights [batch, time, age], the newest bucket first.

    Age 0 is the bucket that holds the row itself. Under a window there are only as many ages as
    a row can reach, so memory is linear in time where ``rollout_buckets`` returns a square. The
    arguments and errors are those of ``rollout_buckets``; a full mask, under which a row sees the
    future, is refused.
    """
    check_mask(mask)
    if mask.kind is MaskKind.FULL:
        raise AttentionInvalid(
            "A full mask looks both ways, so its rows have no age; use rollout_buckets."
        )
    layers = check_layers(queries, keys, logsumexps, scale=options.scale)
    first = bucket_bars if first_bucket_bars is None else first_bucket_bars
    made = _rolled(layers, mask, options, bucket_bars=bucket_bars, first=first, backend=backend)
    ring = made.values.shape[2]
    ages = torch.arange(ring, device=made.bucket.device)
    place = made.bucket[:, None] - ages  # [time, age]
    weights = made.values.gather(2, (place % ring).expand_as(made.values))
    return finish(weights.masked_fill_(place < 0, 0.0), normalise=True)


class _Rolled(NamedTuple):
    """Every row's rollout in a ring of buckets: bucket b is in column ``b % ring``."""

    values: Tensor  # [batch, time, ring]
    bucket: Tensor  # [time] int64: the bucket that holds each bar


def _rolled(
    layers: Sequence[Layer],
    mask: Mask,
    options: RolloutOptions,
    *,
    bucket_bars: int,
    first: int,
    backend: str,
) -> _Rolled:
    """Carry every row up through the layers; the oldest bucket holds *first* bars."""
    shares = check_options(layers, options)
    if bucket_bars < 1 or not 1 <= first <= bucket_bars:
        raise AttentionInvalid(
            f"Buckets of {bucket_bars} bars, the first of {first}, cannot be; give at least 1 bar "
            "and a first bucket that is no longer than the others."
        )
    batch, _, time, _ = layers[0].query.shape
    lead = bucket_bars - first
    bucket = (torch.arange(time, device=layers[0].query.device) + lead) // bucket_bars
    used = range(check_start(options.start_layer, len(layers)), len(layers))
    ring = int(bucket[-1]) + 1
    if mask.kind is MaskKind.WINDOW:
        # So many consecutive bars touch one bucket more than they fill.
        ring = min(ring, -(-len(used) * (mask.window_bars - 1) // bucket_bars) + 2)
    is_whole_ring = ring == int(bucket[-1]) + 1
    values = layers[0].logsumexp.new_zeros(batch, time, ring)
    values.scatter_(2, (bucket % ring)[:, None].expand(batch, -1, 1), 1.0)
    for depth, number in enumerate(used):
        layer = restate(layers[number], mask)
        known = values.to(layer.logsumexp.dtype)
        if options.head_fusion == "mean" and options.discard_ratio == 0.0:
            reach = _reach(mask, depth, time) if is_whole_ring else None
            values = _mean_step(
                layer,
                known,
                mask,
                shares=shares[number],
                residual_weight=options.residual_weight,
                bars=(bucket_bars, lead, reach),
                backend=backend,
            )
        else:
            fuse = transition(
                layer, mask, shares[number], options.head_fusion, options.discard_ratio
            )
            values = step_forward(layer, known, mask, fuse, residual_weight=options.residual_weight)
    return _Rolled(values.to(layers[0].logsumexp.dtype), bucket)


def _places(bucket: Tensor, ring: int) -> Tensor:
    """Return the bucket in each column of a row's ring [time, ring]; below 0 where there is none.

    A row's columns hold its own bucket and the ``ring - 1`` before it.
    """
    column = torch.arange(ring, device=bucket.device)
    return bucket[:, None] - (bucket[:, None] - column) % ring


def _reach(mask: Mask, depth: int, time: int) -> int | None:
    """Return how many bars back a row can have looked after *depth* layers, None for any way."""
    match mask.kind:
        case MaskKind.FULL:
            return None if depth else 0
        case MaskKind.CAUSAL | MaskKind.BLOCKS:
            return time if depth else 0
        case MaskKind.WINDOW:
            return depth * (mask.window_bars - 1)


def _mean_step(
    layer: Layer,
    values: Tensor,
    mask: Mask,
    *,
    shares: Tensor,
    residual_weight: float,
    bars: tuple[int, int, int | None],
    backend: str,
) -> Tensor:
    """Return ``ρ·R + (1-ρ)·Σ_h shares_h A_h·R``, a tile of all heads at a time."""
    batch, heads, time, _ = layer.query.shape
    shares = (1.0 - residual_weight) * shares.to(values.dtype)
    tolerance = mass_tolerance(layer)
    if (loops := native.choose(layer, mask) if backend == "auto" else None) is not None:
        made, masses = native.bucket_rows(layer, values, mask, shares, residual_weight, loops)
        check_mass(masses, masses.new_ones(batch, time), tolerance)
        return made
    laid = operand(layer)
    result = residual_weight * values
    for block in row_blocks(time, mask, rows_a_block=tile_rows(mask)):
        rows = slice(block.start, block.stop)
        for element in range(batch):
            pairs = slice(element * heads, (element + 1) * heads)
            mass = values.new_zeros(heads, block.size())
            for start, stop in key_tiles(block, mask, TILE_BARS):
                entries = tile_probabilities(
                    laid.queries[pairs, rows],
                    laid.keys_by_dim[pairs, :, start:stop],
                    laid.minus_logsumexp[pairs, rows],
                )
                if not is_whole(block, mask, start, stop):
                    hide_(entries, block, mask, start)
                mass += entries.sum(dim=-1)
                mean = (shares @ entries.view(heads, -1)).view(block.size(), stop - start)
                columns = _columns(start, stop, bars)
                result[element, rows, columns].addmm_(mean, values[element, start:stop, columns])
            check_mass(mass[None], torch.ones_like(mass[:1]), tolerance)
    return result


def _columns(start: int, stop: int, bars: tuple[int, int, int | None]) -> slice:
    """Return the buckets in which the keys ``start`` … ``stop - 1`` can have any mass."""
    bucket_bars, lead, reach = bars
    if reach is None:
        return slice(None)
    return slice(
        (max(0, start - reach) + lead) // bucket_bars, (stop - 1 + lead) // bucket_bars + 1
    )
