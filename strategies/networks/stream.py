"""The flash network over an endless stream: cached keys and values, entropies, exact rollout.

``advance`` takes one bar or a chunk of them through the network with the same lines of code. In
each layer the new queries meet the last ``window`` cached keys in tiles; a tile's probabilities
give the output, the entropy and the bucketed rollout
``R_l = ρ R_{l-1} + (1 - ρ) mean_h A_h R_{l-1}`` and are dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from tracepaper.strategies.attention.blocks import OLDER, BlockColumns, Ids, bucket_count
from tracepaper.strategies.attention.cache import TailRing, WrapRing
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.networks.encodings import alibi_key, alibi_query
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork, Projected
from tracepaper.strategies.networks.heads import Outputs
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


TILE_BARS: Final = 64
"""Queries of one tile: few enough for the tile's scores to stay in the cache."""
RESIDUAL: Final = 0.5
"""The rollout's weight ρ of the residual stream (Abnar and Zuidema, 2020)."""
_HIDDEN: Final = -1e30
"""The score of a hidden key: its share is exactly 0, and 0 times it is not NaN."""
_MASS_TOLERANCE: Final = 1e-3


class Advance(NamedTuple):
    """What the network says of the bars just taken in, on the CPU: of one stream or of each."""

    outputs: Outputs  # tensors [1, bars, …]
    confidence: Tensor  # [bars, layer, head], 1 - H / ln n
    rollout: NDArray[np.float32]  # [bars, buckets + 1]: newest block first, older last


class _Tile(NamedTuple):
    """What the queries of a tile, or of all tiles, got from their windows.

    Where several streams are abreast, each has a dimension of streams in front.
    """

    output: Tensor  # [head, tile, dim]
    figures: Tensor  # [head, tile, 4]: mass, largest score, largest share, mean score
    rollout: Tensor  # [tile, width]: mean_h A_h R


class Past(NamedTuple):
    """What came before the new bars, in one stream or in some that are abreast."""

    places: TailRing
    counts: Sequence[int]  # bars of each stream


class StreamingNetwork:
    """A flash network with a causal window, ready to be fed bar by bar or in chunks."""

    def __init__(self, network: FlashNetwork) -> None:
        if network.config.mask != "window":
            raise ConfigInvalid(
                "Only a network with a causal window can stream; set architecture.mask to window."
            )
        self.network = network.eval()
        self.config = network.config
        self._scale = self.config.head_dim**-0.5
        # Relative to a tile, key 0 is the oldest that its first query sees. So of the first keys
        # query r no longer sees those before r, and of the last it does not yet see those after.
        self.device = network.slopes.device
        square = torch.full((TILE_BARS, TILE_BARS), _HIDDEN, device=self.device)
        self._gone, self._future = square.tril(-1), square.triu(1)

    @torch.inference_mode()
    def advance(
        self, state: StreamState, rows: Tensor, positions: NDArray[np.int64], *, padded: bool
    ) -> Advance:
        """Take in *rows* [bars, features] at ascending *positions* [bars]; at most CHUNK_BARS.

        *padded* runs the fixed shape of a chunk whatever the number of bars, so that a bar's
        answer has the same bits whether or not others follow it. The answer covers the leading
        bars for whose blocks there was room: all of them, unless the data are full of holes.
        """
        blocks = positions // BLOCK_BARS
        state.expire(int(blocks[0]))
        columns = state.columns.take(blocks)
        bars = len(columns)
        filling = (CHUNK_BARS if padded else bars) - bars
        rows = pad(rows[:bars].to(self.device), (0, 0, 0, filling))
        at = positions[np.arange(bars + filling).clip(max=bars - 1)]
        places = torch.from_numpy(at).to(self.device)
        rollout = torch.zeros(bars + filling, state.columns.width, device=self.device)
        own = torch.from_numpy(columns).to(self.device)
        rollout[torch.arange(bars, device=self.device), own] = 1.0
        hidden, rollout, confidence = self._layers(state, rows, places, rollout, bars)
        state.positions.push(places[:bars])
        state.places.advance(bars)
        state.count += bars
        return Advance(
            outputs=self.network.read_out(hidden).first(bars).cpu(),
            confidence=confidence.cpu(),
            rollout=state.columns.by_age(rollout[:bars].cpu().numpy(), blocks[:bars]),
        )

    def history(self, state: StreamState) -> tuple[Ids, list[tuple[Tensor, Tensor, Tensor]]]:
        """Return the positions kept, and each layer's query, key and logsumexp over them.

        Shapes are [1, head, time, dim] and [1, head, time]; ALiBi's bias is in the extra
        dimensions. Raises ``InvariantBroken`` where the receptive field is too long to be kept.
        """
        if self.config.receptive_field > HISTORY_BARS_MAX:
            raise InvariantBroken(
                f"The receptive field of {self.config.receptive_field} bars is longer than the "
                f"{HISTORY_BARS_MAX} kept for attribution; use the buckets of the explanation."
            )
        positions = state.positions.unrolled()
        age = (positions[-1] - positions).float()
        early = self.config.window - 1
        layers = []
        for kept in state.history.unrolled().permute(1, 2, 0, 3)[:, None]:
            query, key, logsumexp = kept.split([self.config.head_dim, self.config.head_dim, 1], -1)
            if self.config.encoding == "alibi":
                query = alibi_query(query, age, self.network.slopes)
                key = alibi_key(key, age)
            logsumexp = logsumexp[..., 0]
            if state.count > len(positions) and early > 0:
                # The windows of the oldest rows kept begin before the keys kept. Nothing asks
                # for these rows, but their logsumexp has to be that of the keys that are here.
                first = (query[:, :, :early], key[:, :, :early])
                logsumexp[:, :, :early] = attend(*first, first[1], Mask.causal()).logsumexp
            layers.append((query, key, logsumexp))
        ids: Ids = positions.cpu().numpy()
        return ids, layers

    def _layers(
        self, state: StreamState, rows: Tensor, places: Tensor, rollout: Tensor, bars: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run every layer; return the last state, rollout [bars, width] and confidences."""
        state.places.write(places)
        hidden, phases = self.network.enter(rows[None], places)
        queries, keys, figures = [], [], []
        for block, layer in zip(self.network.layers(), state.layers, strict=True):
            projected = block.project(hidden, phases)
            seen = self._attend(state, layer, projected, rollout)
            hidden = block.finish(hidden, seen.output[None])
            rollout = torch.lerp(seen.rollout, rollout, RESIDUAL)
            layer.advance(bars)
            queries.append(projected.query[0])
            keys.append(projected.key[0])
            figures.append(seen.figures)
        visible = (torch.arange(bars, device=self.device) + state.count + 1).clamp(
            max=self.config.window
        )
        state.attended_pairs += self.config.layers * int(visible.sum())
        told = [torch.stack(x)[:, :, :bars] for x in (queries, keys, figures)]
        confidence, history = self._figures(told, rollout[:bars], visible)
        state.history.push(history)
        return hidden, rollout, confidence

    def _figures(
        self, told: Sequence[Tensor], rollout: Tensor, visible: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Check every row's mass; return confidences [bars, layer, head] and rows of history.

        *told* are queries, keys and figures [layer, head, bars, …], *visible* [bars] how many
        keys each bar sees. The confidence is 1 - H / ln n, 0 at n = 1.
        """
        queries, keys, measured = told
        mass, top_score, top_share, mean_score = measured.split(1, dim=-1)
        _check(mass, "attention")
        _check(rollout.sum(-1), "the rollout")
        # The largest share is exp(largest score - logsumexp), and H = logsumexp - mean score.
        logsumexp = top_score - top_share.log()
        visible = visible.clamp(max=self.config.window)
        most = visible.log().clamp(min=torch.finfo(torch.float32).tiny)
        confidence = 1.0 - (logsumexp - mean_score).squeeze(-1) / most
        confidence = (confidence.clamp(0.0, 1.0) * (visible > 1)).permute(2, 0, 1)
        return confidence, torch.cat((queries, keys, logsumexp), dim=-1).permute(2, 0, 1, 3)

    def _attend(
        self, state: StreamState, layer: LayerState, projected: Projected, rollout: Tensor
    ) -> _Tile:
        """Cache the new keys, values and rollout rows, and attend tile by tile."""
        query, key, value = (x[0] for x in projected)  # [head, bars, dim]
        layer.write(key, value, rollout)
        past = Past(state.places, [state.count])
        bars = query.shape[1]
        if bars == 1:
            return self._tile(past, layer, query, 0)
        tiles = [
            self._tile(past, layer, query[:, start : start + TILE_BARS], start)
            for start in range(0, bars, TILE_BARS)
        ]
        return _Tile(*(torch.cat(x, dim=-2) for x in zip(*tiles, strict=True)))

    def _tile(self, past: Past, layer: LayerState, query: Tensor, start: int) -> _Tile:
        """Attend with *query* [(stream,) head, tile, dim] from *start* bars into the chunk on."""
        bars = query.shape[-2]
        stop = start + bars
        begin = start - (self.config.window - 1)
        if bars == 1:
            begin = max(begin, -max(past.counts))
        scores = self._scale * query @ layer.keys.view(begin, stop).mT  # [head, tile, keys]
        if self.config.encoding == "alibi":
            places = past.places.view(begin, stop)[..., None, :]
            distance = places - places[..., start - begin :].mT  # [(stream,) tile, keys]
            # Exact below 2^24 bars.
            scores += self.network.slopes[:, None, None] * distance.float().unsqueeze(-3)
        if bars > 1:
            scores[..., :TILE_BARS] += self._gone
            scores[..., -TILE_BARS:] += self._future
        if min(past.counts) + begin < 0:
            for one, count in zip(
                scores.view(len(past.counts), -1, bars, stop - begin), past.counts, strict=True
            ):
                one[..., : max(0, -count - begin)] = _HIDDEN  # before the stream's first bar
        shares = torch.softmax(scores, dim=-1)
        top_score = scores.amax(-1, keepdim=True)
        mean_score = scores.mul_(shares).sum(-1, keepdim=True)
        figures = (shares.sum(-1, keepdim=True), top_score, shares.amax(-1, keepdim=True))
        # A mean over heads takes twice as long as their sum, divided once it is small.
        rollout = shares.sum(-3) @ layer.rollout.view(begin, stop)
        return _Tile(
            output=shares @ layer.values.view(begin, stop),
            figures=torch.cat((*figures, mean_score), dim=-1),
            rollout=rollout.mul_(1.0 / self.config.heads),
        )


def _check(mass: Tensor, name: str) -> None:
    """Raise unless every row sums to one; a NaN passes, for it is the gate's to refuse."""
    wrong = (mass - 1.0).abs() > _MASS_TOLERANCE
    if bool(wrong.any()):
        raise InvariantBroken(
            f"A row of {name} sums to {float(mass[wrong][0]):.4f} instead of 1; report this bug."
        )


class Abreast(NamedTuple):
    """Some instruments' states as one: rings with a dimension in front, and each state itself."""

    states: Sequence[StreamState]
    places: TailRing
    layers: Sequence[LayerState]

    def advance(self) -> None:
        """Count the bar just written in every state."""
        self.places.advance(1)
        rings = [self.places, *chain.from_iterable(self.layers)]
        for state in self.states:
            for ring, whole in zip(state.rings, rings, strict=True):
                ring.follow(whole)
            state.count += 1


class StateStack:
    """States whose rings lie side by side in memory, so that one pass can serve many of them."""

    def __init__(self, states: Sequence[StreamState]) -> None:
        self.states = list(states)
        self._rings = [
            TailRing.stacked(rings)
            for rings in zip(*(state.rings for state in states), strict=True)
        ]

    def abreast(self, start: int, stop: int) -> Abreast:
        """Return the states *start* … *stop* - 1 as one, moved to a common end of their rings."""
        states = self.states[start:stop]
        # Those that missed bars follow those that did not: in step with all, nothing moves.
        [(end, _)] = Counter(state.places.end for state in states).most_common(1)
        for state in states:
            if state.places.end != end:
                for ring in state.rings:
                    ring.move(end)
        places, *rest = [ring.over(ring.everything()[start:stop]) for ring in self._rings]
        for ring in (places, *rest):
            ring.follow(states[0].places)
        layers = [LayerState(*rest[at : at + 3]) for at in range(0, len(rest), 3)]
        return Abreast(states, places, layers)


class AbreastNetwork(StreamingNetwork):
    """A streaming network that also takes in one bar of each of several streams at once."""

    @torch.inference_mode()
    def advance_each(self, streams: Abreast, rows: Tensor, positions: NDArray[np.int64]) -> Advance:
        """Take in one bar of each stream: *rows* [stream, features] at *positions* [stream].

        Equal to ``advance`` of one bar on each within rounding; the answer's bars are the streams.
        """
        states, blocks = streams.states, positions // BLOCK_BARS
        columns = []
        for state, block in zip(states, blocks, strict=True):
            state.expire(int(block))
            columns += state.columns.take(block[None]).tolist()
        rows, device = rows.to(self.device), self.device
        rollout = torch.zeros(len(rows), 1, states[0].columns.width, device=device)
        own = torch.tensor(columns, device=device)
        rollout[torch.arange(len(rows), device=device), 0, own] = 1.0
        places = torch.from_numpy(positions).to(device)
        hidden, rollout, told = self._layers_abreast(streams, rows, places, rollout)
        visible = torch.tensor([state.count + 1 for state in states], device=device)
        confidence, history = self._figures(told, rollout, visible)
        streams.advance()
        for at, state in enumerate(states):
            state.history.push(history[at : at + 1])
            state.positions.push(places[at : at + 1])
            state.attended_pairs += self.config.layers * min(state.count, self.config.window)
        rollout = rollout.cpu()
        by_age = [
            state.columns.by_age(rollout[at : at + 1].numpy(), blocks[at : at + 1])
            for at, state in enumerate(states)
        ]
        outputs = self.network.read_out(hidden).cpu()
        return Advance(outputs, confidence.cpu(), np.concatenate(by_age))

    def _layers_abreast(
        self, streams: Abreast, rows: Tensor, places: Tensor, rollout: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Run every layer on a bar of each stream; return what ``_layers`` has at its end.

        That is the last state, rollout [stream, width], and queries, keys and figures
        [layer, head, stream, …].
        """
        streams.places.write(places[:, None])
        past = Past(streams.places, [state.count for state in streams.states])
        hidden, phases = self.network.enter(rows[None], places)
        queries, keys, figures = [], [], []
        for block, layer in zip(self.network.layers(), streams.layers, strict=True):
            projected = block.project(hidden, phases)
            # [1, head, stream, dim] -> [stream, head, 1, dim]
            query, key, value = (x.transpose(0, 2) for x in projected)
            layer.write(key, value, rollout)
            seen = self._tile(past, layer, query, 0)
            hidden = block.finish(hidden, seen.output.transpose(0, 2))
            rollout = torch.lerp(seen.rollout, rollout, RESIDUAL)
            layer.advance(1)
            queries.append(projected.query[0])
            keys.append(projected.key[0])
            figures.append(seen.figures[:, :, 0].transpose(0, 1))
        return hidden, rollout[:, 0], [torch.stack(x) for x in (queries, keys, figures)]
