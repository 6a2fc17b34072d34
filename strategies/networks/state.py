"""What a stream of bars leaves behind in the network: finite, and all that its answer needs."""

from __future__ import annotations

from itertools import chain
from typing import Final, NamedTuple

import torch
from torch import Tensor

from tracepaper.strategies.attention.blocks import OLDER, BlockColumns, bucket_count
from tracepaper.strategies.attention.cache import TailRing, WrapRing
from tracepaper.strategies.networks.config import FlashConfig
from tracepaper.strategies.networks.flash import FlashNetwork
from tracepaper.strategies.types import BLOCK_BARS

CHUNK_BARS: Final = 512
"""Bars of one pass over known bars; a shorter stretch is padded to it."""
HISTORY_BARS_MAX: Final = 65_536
"""Bars of queries and keys kept for attribution at full resolution."""


def _slack(window: int) -> int:
    """Return the rows between two moves of a ring: at least a chunk, else half a window."""
    return max(CHUNK_BARS, window // 2)


def stream_bytes(config: FlashConfig, *, instruments: int = 1) -> int:
    """Return the peak memory of streams of *instruments* whose rings are full, weights apart.

    It never falls as the window grows: a field too long for its history counts as the longest
    that has one.
    """
    window, dim = config.window, config.dim
    width = _columns(config).width
    rows = window - 1 + _slack(window)
    history = min(config.receptive_field, HISTORY_BARS_MAX)
    kept = config.layers * (rows * (2 * dim + width) + history * (2 * dim + config.heads))
    places = 2 * (rows + history)  # of eight bytes each
    scores = 3 * config.heads * BLOCK_BARS * (window + BLOCK_BARS)  # of one tile
    moved = window * max(dim, width)  # a ring on its way to the front of its buffer
    chunk = CHUNK_BARS * (3 * width + (3 * config.layers + 12) * dim)
    return 4 * (instruments * (kept + places) + scores + moved + chunk)


def _columns(config: FlashConfig) -> BlockColumns:
    return BlockColumns(
        buckets=bucket_count(config.receptive_field), spare=CHUNK_BARS // BLOCK_BARS + 1
    )


class LayerState(NamedTuple):
    """What one layer keeps of the past: three rings that move on together."""

    keys: TailRing
    values: TailRing
    rollout: TailRing

    @classmethod
    def empty(cls, config: FlashConfig, width: int, device: torch.device) -> LayerState:
        """Return the state before the first bar, for rollout rows of *width* columns."""
        kept, slack = config.window - 1, _slack(config.window)
        shape = (config.heads, config.head_dim)
        return cls(
            TailRing(kept=kept, slack=slack, shape=shape, dim=1, device=device),
            TailRing(kept=kept, slack=slack, shape=shape, dim=1, device=device),
            TailRing(kept=kept, slack=slack, shape=(width,), dim=0, device=device),
        )

    def write(self, key: Tensor, value: Tensor, rollout: Tensor) -> None:
        """Put new rows behind the newest; ``advance`` counts them."""
        self.keys.write(key)
        self.values.write(value)
        self.rollout.write(rollout)

    def advance(self, bars: int) -> None:
        """Count the first *bars* of the rows just written."""
        for ring in self:
            ring.advance(bars)

    def fold(self, columns: list[int]) -> None:
        """Add expired rollout *columns* to the older mass and empty them."""
        rows = self.rollout.everything()
        rows[:, OLDER] += rows[:, columns].sum(dim=1)
        rows[:, columns] = 0.0


class StreamState:
    """One instrument's memory: finite, and all that the next answer depends on."""

    def __init__(self, network: FlashNetwork) -> None:
        config = network.config
        self.columns = _columns(config)
        width = self.columns.width
        device = network.slopes.device
        self.layers = [LayerState.empty(config, width, device) for _ in range(config.layers)]
        kept, slack = config.window - 1, _slack(config.window)
        whole = torch.int64
        self.places = TailRing(kept=kept, slack=slack, shape=(), dim=0, dtype=whole, device=device)
        fits = config.receptive_field <= HISTORY_BARS_MAX
        capacity = config.receptive_field if fits else 1
        # Of each bar, layer and head: query, key and logsumexp.
        shape = (config.layers, config.heads, 2 * config.head_dim + 1)
        self.history = WrapRing(capacity=capacity, shape=shape, dtype=torch.float32, device=device)
        self.positions = WrapRing(capacity=capacity, shape=(), dtype=whole, device=device)
        self.count = 0  # bars taken in since the last clear
        self.attended_pairs = 0  # pairs of query and visible key, over all layers, ever

    @property
    def rings(self) -> list[TailRing]:
        """The rings that a step reads and writes, the places first; all stand at one end."""
        return [self.places, *chain.from_iterable(self.layers)]

    def expire(self, block: int) -> None:
        """Fold what a bar in *block* no longer names into the older mass."""
        if gone := self.columns.expired(block):
            for layer in self.layers:
                layer.fold(gone)

    def clear(self) -> None:
        """Forget the stream; the count of pairs goes on."""
        for ring in self.rings:
            ring.clear()
        for kept in (self.history, self.positions, self.columns):
            kept.clear()
        self.count = 0
