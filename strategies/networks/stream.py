"""The flash network over endless streams: cached keys and values, entropy, exact rollout.

Read top to bottom: the state of streams, then the network that takes in their bars. The first axis
of all tensors is the stream. One pass takes in a chunk of one stream, one bar of each of several,
or anything between. To all layers but attention these are independent rows; attention runs over
streams that are adjacent in memory, so that nothing is copied to join them. In each layer the new
queries meet the last ``window`` cached keys in tiles; a tile's probabilities give the output, the
entropy and the bucketed rollout ``R_l = ρ R_{l-1} + (1 - ρ) mean_h A_h R_{l-1}``, and are dropped.

The rules are docs/attention.md, A14 and A15.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from tracepaper.strategies.attention import compiled as native
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import PLAIN, Rollout
from tracepaper.strategies.attention.streaming import TailRing, TailRings, WrapRing
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.networks.architecture import Outputs
from tracepaper.strategies.networks.encodings import ENCODINGS
from tracepaper.strategies.networks.flash import TILES, FlashConfig, FlashNetwork
from tracepaper.strategies.networks.stream_fusion import StreamFusion
from tracepaper.strategies.time_buckets import (
    OLDER,
    BlockColumns,
    Ids,
    bucket_bars,
    bucket_count,
    rows_by_age,
)
from tracepaper.strategies.types.decisions import BLOCK_BARS

TILE_BARS: Final = 64
"""Queries of one tile: few enough for the tile's scores to stay in the cache."""
_Module = TypeVar("_Module", bound=nn.Module)
_HIDDEN: Final = -1e30
"""The score of a hidden key: its share is exactly 0, and 0 times the score is not NaN."""
_MASS_TOLERANCE: Final = 1e-3
CHUNK_BARS: Final = 512
"""Bars of one pass over known bars; a shorter stretch is padded to it."""
HISTORY_BARS_MAX: Final = 65_536
"""Bars of queries and keys kept for attribution at full resolution."""


def _slack(window: int) -> int:
    """Return the rows between two moves of a ring: at least a chunk, else half a window."""
    return max(CHUNK_BARS, window // 2)


def stream_backends(config: FlashConfig, device: str) -> tuple[str, ...]:
    """Return the backends of a stream of *config* on *device*, the fastest first."""
    compiled = device == "cpu" and not ENCODINGS[config.encoding].has_bias
    return (*(native.available() if compiled else ()), TILES)


def stream_bytes(config: FlashConfig, *, instruments: int = 1, by_norm: bool = False) -> int:
    """Return the peak memory of streams of *instruments* whose rings are full, weights apart.

    With *by_norm* the norms of values are kept for the explanation.
    """
    window, dim = config.window, config.dim
    norms = config.heads if by_norm else 0
    width = _columns(config).width
    rows = window - 1 + _slack(window)
    history = min(config.receptive_field, HISTORY_BARS_MAX)
    kept = config.layers * (
        rows * (2 * dim + width + norms) + history * (2 * dim + config.heads + norms)
    )
    places = 2 * (rows + history)  # of eight bytes each
    scores = 3 * config.heads * BLOCK_BARS * (window + BLOCK_BARS)  # of one tile
    copy = window * max(dim, width)  # of a ring that moves to the front of its buffer
    chunk = CHUNK_BARS * (3 * width + (3 * config.layers + 12) * dim)
    return 4 * (instruments * (kept + places) + scores + copy + chunk)


def _columns(config: FlashConfig) -> BlockColumns:
    field = config.receptive_field
    return BlockColumns(buckets=bucket_count(field), spare=CHUNK_BARS // bucket_bars(field) + 1)


class LayerState(NamedTuple):
    """The past of one layer: rings with common ends."""

    keys: TailRing  # [stream, head, time, dim]
    values: TailRing
    rollout: TailRing  # [stream, time, width]
    lengths: TailRing | None  # [stream, head, time], for an explanation by norms


class LayerBuffers(NamedTuple):
    """One layer's buffers over some adjacent streams; a pair is one head of one stream."""

    keys: Tensor  # [pair, time, dim]
    values: Tensor  # [pair, time, dim]
    rollout: Tensor  # [stream, time, width]
    lengths: Tensor | None  # [stream, head, time]


class StreamSpan(NamedTuple):
    """Streams that are adjacent in memory and in the group, moved to a common end."""

    streams: slice  # in the state
    group: slice  # among those of the pass
    end: int  # where the new rows begin in the buffers
    counts: Sequence[int]  # bars of each stream before this pass


class StreamState:
    """The state of streams: finite, and all that their next answers depend on."""

    def __init__(self, network: FlashNetwork, streams: int = 1, *, by_norm: bool = False) -> None:
        """Make room for *streams*; keep the norms of values if the explanation is *by_norm*."""
        config = network.config
        self.by_norm = by_norm
        self._config = config
        self._device = network.device
        self.width = _columns(config).width
        self.rings = TailRings(
            kept=config.window - 1, slack=_slack(config.window), device=self._device, streams=0
        )
        self.places = self.rings.ring((), dim=0, dtype=torch.int64)
        shape = (config.heads, config.head_dim)
        self.layers = [
            LayerState(
                keys=self.rings.ring(shape, dim=1),
                values=self.rings.ring(shape, dim=1),
                rollout=self.rings.ring((self.width,), dim=0),
                lengths=self.rings.ring((config.heads,), dim=1) if by_norm else None,
            )
            for _ in range(config.layers)
        ]
        self.columns: list[BlockColumns] = []
        self.history: list[WrapRing] = []
        """Of each bar, layer and head: query, key and logsumexp, and the value's norm if kept."""
        self.positions: list[WrapRing] = []
        self.counts: list[int] = []  # bars taken in since the last clear
        self.attended_pairs = 0  # pairs of query and visible key ever, over all layers and streams
        self._views: dict[tuple[int, int], list[LayerBuffers]] = {}
        self.extend(streams)

    def extend(self, streams: int) -> None:
        """Make room for this many further *streams*: one copy of the rings of all."""
        config = self._config
        fits = config.receptive_field <= HISTORY_BARS_MAX
        capacity = config.receptive_field if fits else 1
        shape = (config.layers, config.heads, 2 * config.head_dim + 1 + self.by_norm)
        self.rings.extend(streams)
        for _ in range(streams):
            self.columns.append(_columns(config))
            self.history.append(
                WrapRing(capacity=capacity, shape=shape, dtype=torch.float32, device=self._device)
            )
            self.positions.append(
                WrapRing(capacity=capacity, shape=(), dtype=torch.int64, device=self._device)
            )
            self.counts.append(0)
        self._views.clear()

    def clear(self, stream: int = 0) -> None:
        """Forget *stream*, but not the count of pairs."""
        self.rings.clear(stream)
        for kept in (self.history[stream], self.positions[stream], self.columns[stream]):
            kept.clear()
        self.counts[stream] = 0

    def take(self, stream: int, blocks: Ids) -> Ids:
        """Return the rollout's columns of the leading *blocks* for which there is room.

        First the mass of blocks that are out of reach of the first of them joins the older mass.
        """
        columns = self.columns[stream]
        if expired := columns.expired(int(blocks[0])):
            for layer in self.layers:
                rows = layer.rollout.rows[stream]  # [time, width]
                rows[:, OLDER] += rows[:, expired].sum(dim=1)
                rows[:, expired] = 0.0
        return columns.take(blocks)

    def runs(self, streams: Sequence[int], count: int) -> list[StreamSpan]:
        """Return *streams* in their order as runs, each with room for *count* rows."""
        runs, first = [], 0
        for at in range(1, len(streams) + 1):
            if at == len(streams) or streams[at] != streams[at - 1] + 1:
                adjacent = slice(streams[first], streams[at - 1] + 1)
                end = self.rings.settle(adjacent, count)
                runs.append(StreamSpan(adjacent, slice(first, at), end, self.counts[adjacent]))
                first = at
        return runs

    def buffers(self, streams: slice) -> list[LayerBuffers]:
        """Return each layer's buffers over adjacent *streams*, as views."""
        buffers = self._views.get((streams.start, streams.stop))
        if buffers is None:
            buffers = [
                LayerBuffers(
                    layer.keys.rows[streams].flatten(0, 1),
                    layer.values.rows[streams].flatten(0, 1),
                    layer.rollout.rows[streams],
                    None if layer.lengths is None else layer.lengths.rows[streams],
                )
                for layer in self.layers
            ]
            self._views[streams.start, streams.stop] = buffers
        return buffers

    def advance(self, stream: int, places: Tensor, history: Tensor) -> None:
        """Count the bars just written to *stream*, at *places* [bars], and keep their history."""
        self.history[stream].push(history)
        self.positions[stream].push(places)
        self.rings.advance(stream, len(places))
        self.counts[stream] += len(places)


class Advance(NamedTuple):
    """The network's answers for the bars just taken in, on the CPU."""

    outputs: Outputs  # tensors [stream, bars, …]
    confidence: Tensor  # [stream, bars, layer, head], 1 - H / ln n
    rollout: NDArray[np.float32]  # [stream, bars, buckets + 1]: newest block first, older last


class StreamReads(NamedTuple):
    """The attention of every layer, for figures and history."""

    queries: Tensor  # [layer, pair, time, dim]
    keys: Tensor  # [layer, pair, time, dim]
    figures: Tensor  # [layer, pair, time, 4]
    lengths: Tensor | None = None  # [layer, stream, head, time]


class StreamingNetwork:
    """A flash network with a causal window that takes bars one by one or in chunks.

    It attends by *backend*: tiles of torch, or compiled loops of ``stream_backends``. Every bar is
    explained by *method*, which must be plain for compiled loops.
    """

    def __init__(
        self, network: FlashNetwork, method: Rollout = PLAIN, *, backend: str = TILES
    ) -> None:
        """Raise ``ConfigInvalid`` for a network that cannot stream, or a method that it lacks."""
        if network.config.mask != "window":
            raise ConfigInvalid(
                "Only a network with a causal window can stream; set architecture.mask to window."
            )
        self.network = called_directly(network.eval())
        self.config = network.config
        self.backend = backend
        self.fusion = StreamFusion(
            method, layers=self.config.layers, heads=self.config.heads, device=network.device
        )
        self._scale = self.config.head_dim**-0.5
        # Key 0 of a tile is the oldest that its first query sees. So query r no longer sees the
        # keys before r of the first square, and does not yet see those after r of the last.
        self.device = network.device
        square = torch.full((TILE_BARS, TILE_BARS), _HIDDEN, device=self.device)
        self._gone, self._future = square.tril(-1), square.triu(1)

    @torch.inference_mode()
    def advance(
        self,
        state: StreamState,
        rows: Tensor,
        positions: NDArray[np.int64],
        *,
        streams: Sequence[int] = (0,),
        padded: bool = False,
    ) -> Advance:
        """Take in *rows* [stream, bars, features] at ascending *positions* [stream, bars].

        *streams* are their places in *state*; each may have up to CHUNK_BARS bars. The outputs of
        a stream depend on its own bars. Their last bits also depend on which streams are in the
        pass, and in which order, since matrix products of another size round in another order.
        *padded* runs the fixed shape of a chunk whatever the number of bars, so that later bars
        change no bit of an answer. The answer covers the leading bars for whose blocks there was
        room in every stream: all of them, unless the data have many gaps.
        """
        blocks = positions // bucket_bars(self.config.receptive_field)
        columns = [state.take(stream, row) for stream, row in zip(streams, blocks, strict=True)]
        bars = min(map(len, columns))
        time = CHUNK_BARS if padded else bars
        rows, at = rows[:, :bars].to(self.device), positions[:, :bars]
        if time > bars:
            rows = pad(rows, (0, 0, 0, time - bars))
            at = at[:, np.arange(time).clip(max=bars - 1)]
        places = torch.from_numpy(at).to(self.device)
        rollout = torch.zeros(len(streams), time, state.width, device=self.device)
        cells = torch.from_numpy(np.stack([each[:bars] for each in columns])).to(self.device)
        rollout[:, :bars].scatter_(2, cells[..., None], 1.0)
        runs = state.runs(streams, time)
        hidden, rollout, attended = self._layers(state, runs, rows, places, rollout)
        before = np.array([state.counts[stream] for stream in streams])[:, None]
        visible = np.minimum(before + np.arange(1, bars + 1), self.config.window)  # [stream, bars]
        reach = torch.from_numpy(visible).to(self.device)
        confidence, history = self._figures(attended, rollout[:, :bars], reach)
        for index, stream in enumerate(streams):
            state.advance(stream, places[index, :bars], history[index])
        state.attended_pairs += self.config.layers * int(visible.sum())
        outputs = self.network.read_out(hidden)  # [1, stream * time, …]
        aged = rollout[:, :bars].cpu().numpy()
        return Advance(
            outputs=outputs.by_stream(len(streams)).first(bars).cpu(),
            confidence=confidence.cpu(),
            rollout=rows_by_age(
                aged, blocks[:, :bars], [state.columns[stream] for stream in streams]
            ),
        )

    def history(self, state: StreamState, stream: int = 0) -> tuple[Ids, list[Layer]]:
        """Return the positions kept, and each layer over them; ALiBi's bias is in extra dimensions.

        Raises ``InvariantBroken`` where the receptive field is too long to be kept.
        """
        if self.config.receptive_field > HISTORY_BARS_MAX:
            raise InvariantBroken(
                f"The receptive field of {self.config.receptive_field} bars is longer than the "
                f"{HISTORY_BARS_MAX} kept for attribution; use the buckets of the explanation."
            )
        positions = state.positions[stream].unrolled()
        age = (positions[-1] - positions).float()
        early, mask = self.config.window - 1, Mask.window(self.config.window)
        layers = []
        dim = self.config.head_dim
        for depth, kept in enumerate(state.history[stream].unrolled().permute(1, 2, 0, 3)[:, None]):
            query, key, logsumexp = kept[..., : 2 * dim + 1].split([dim, dim, 1], -1)
            query, key, _ = self.network.encoding.widen(query, key, key, age)
            logsumexp = logsumexp[..., 0]
            if state.counts[stream] > len(positions) and early > 0:
                # The windows of the oldest kept rows begin before the kept keys. The rollout does
                # not use these rows, but their logsumexp has to match the kept keys.
                first = (query[:, :, :early], key[:, :, :early])
                logsumexp[:, :, :early] = attend(*first, first[1], Mask()).logsumexp
            norms = kept[..., -1] if self.fusion.by_norm else None
            layers.append(
                Layer(query, key, None, logsumexp, mask, norms=norms, layer=depth, step=depth)
            )
        ids: Ids = positions.cpu().numpy()
        return ids, layers

    def _layers(
        self,
        state: StreamState,
        runs: Sequence[StreamSpan],
        rows: Tensor,
        places: Tensor,
        rollout: Tensor,
    ) -> tuple[Tensor, Tensor, StreamReads]:
        """Run every layer; return the last state [1, stream * time, dim], rollout and traces."""
        streams = len(rows)
        for run in runs:
            state.places.rows[run.streams, run.end : run.end + rows.shape[1]] = places[run.group]
        hidden, phases = self.network.enter(rows.flatten(0, 1)[None], places.flatten())
        buffers = [state.buffers(run.streams) for run in runs]
        heads, alone = self.config.heads, len(runs) == 1
        queries, keys, figures, norms = [], [], [], []
        for depth, block in enumerate(self.network.layers()):
            query, key, value = (_by_pair(x, streams) for x in block.project(hidden, phases))
            lengths = None
            if self.fusion.by_norm:
                lengths = self.fusion.lengths(block, value.unflatten(0, (streams, -1)))
                norms.append(lengths)
            parts = []
            for run, kept in zip(runs, buffers, strict=True):
                past, part_query = kept[depth], query
                new = native.StreamRows(key, value, rollout)
                if not alone:
                    pairs = slice(run.group.start * heads, run.group.stop * heads)
                    part_query = query[pairs]
                    new = native.StreamRows(key[pairs], value[pairs], rollout[run.group])
                if self.backend != TILES:
                    rings = native.StreamRows(past.keys, past.values, past.rollout)
                    scanned = native.scan_rows(
                        part_query,
                        new,
                        rings,
                        end=run.end,
                        counts=run.counts,
                        window=self.config.window,
                        scale=self._scale,
                        name=self.backend,
                    )
                    parts.append(scanned)
                    continue
                stop = run.end + query.shape[1]
                past.keys[:, run.end : stop] = new.keys
                past.values[:, run.end : stop] = new.values
                past.rollout[:, run.end : stop] = new.rollout
                if lengths is not None and past.lengths is not None:
                    past.lengths[:, :, run.end : stop] = lengths[run.group]
                parts.append(self._attend(state, run, past, part_query, depth, alone=streams == 1))
            tile = _joined(parts, 0)
            hidden = block.finish(hidden, _by_head(tile.output, streams))
            rollout = self.fusion.join(depth, tile.rollout, rollout)
            queries.append(query)
            keys.append(key)
            figures.append(tile.figures)
        attended = StreamReads(
            torch.stack(queries),
            torch.stack(keys),
            torch.stack(figures),
            torch.stack(norms) if norms else None,
        )
        return hidden, rollout, attended

    def _figures(
        self, attended: StreamReads, rollout: Tensor, visible: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Check every row's mass; return confidences [stream, bars, layer, head] and history.

        *visible* [stream, bars] is how many keys each bar sees. The confidence is 1 - H / ln n,
        0 at n = 1. The history is [stream, bars, layer, head, 2 dim + 1], and the norms if kept.
        """
        streams, bars = visible.shape
        queries, keys, measured = (x[:, :, :bars] for x in attended[:3])
        mass, top_score, top_share, mean_score = measured.split(1, dim=-1)
        _check(mass, "attention")
        _check(rollout.sum(-1), "the rollout")
        # The largest share is exp(largest score - logsumexp), and H = logsumexp - mean score.
        logsumexp = top_score - top_share.log()
        most = visible.log().clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        entropy = (logsumexp - mean_score).squeeze(-1).unflatten(1, (streams, -1))
        confidence = (1.0 - entropy / most).clamp(0.0, 1.0) * (visible > 1)[:, None]
        # [layer, stream, head, bars] -> [stream, bars, layer, head]
        confidence = confidence.permute(1, 3, 0, 2)
        history = torch.cat((queries, keys, logsumexp), dim=-1).unflatten(1, (streams, -1))
        if attended.lengths is not None:
            history = torch.cat((history, attended.lengths[:, :, :, :bars, None]), dim=-1)
        return confidence, history.permute(1, 3, 0, 2, 4)

    def _attend(
        self,
        state: StreamState,
        run: StreamSpan,
        past: LayerBuffers,
        query: Tensor,
        depth: int,
        *,
        alone: bool,
    ) -> native.WindowRows:
        """Attend with the new queries [pair, time, dim] of a run, tile by tile."""
        places = state.places.rows[run.streams]
        # A single bar of a single stream need not read rows before the stream's first.
        shortest = max(run.counts) if alone and query.shape[1] == 1 else self.config.window
        parts = []
        for start in range(0, query.shape[1], TILE_BARS):
            begin = max(start - (self.config.window - 1), -shortest)
            tile = query[:, start : start + TILE_BARS]
            parts.append(self._tile(run, past, places, tile, start, begin, depth))
        return _joined(parts, 1)

    def _tile(
        self,
        run: StreamSpan,
        past: LayerBuffers,
        places: Tensor,
        query: Tensor,
        start: int,
        begin: int,
        depth: int,
    ) -> native.WindowRows:
        """Attend with *query* [pair, tile, dim], *start* bars behind the run's end.

        The keys begin at *begin*, counted from the same end.
        """
        bars = query.shape[1]
        kept = slice(run.end + begin, run.end + start + bars)
        scores = self._scale * query @ past.keys[:, kept].mT  # [pair, tile, keys]
        streams = scores.unflatten(0, (len(run.counts), -1))  # [stream, head, tile, keys]
        if self.network.encoding.has_bias:
            place = places[:, kept]
            distance = place[:, None] - place[:, start - begin :, None]  # [stream, tile, keys]
            streams += self.network.encoding.bias(distance)
        if bars > 1:
            scores[..., :TILE_BARS] += self._gone
            scores[..., -TILE_BARS:] += self._future
        if min(run.counts) + begin < 0:
            for stream, count in zip(streams, run.counts, strict=True):
                stream[..., : max(0, -count - begin)] = _HIDDEN  # before the stream's first bar
        shares = torch.softmax(scores, dim=-1)
        top_score = scores.amax(-1, keepdim=True)
        mean_score = scores.mul_(shares).sum(-1, keepdim=True)
        figures = (shares.sum(-1, keepdim=True), top_score, shares.amax(-1, keepdim=True))
        rollout = self.fusion.of_tile(
            depth,
            shares.unflatten(0, (len(run.counts), -1)),
            past.rollout[:, kept],
            None if past.lengths is None else past.lengths[:, :, kept],
        )
        return native.WindowRows(
            output=shares @ past.values[:, kept],
            figures=torch.cat((*figures, mean_score), dim=-1),
            rollout=rollout,
        )


def called_directly(module: _Module) -> _Module:
    """Return a copy of *module* that shares its weights and runs no hooks.

    Each of its parts is called by ``forward``, and finds weights and parts as plain attributes:
    ``nn.Module`` looks both up in Python, which is a fifteenth of a live step.
    """
    kind, held = type(module), vars(module)
    called = cast("type[_Module]", type(kind.__name__, (kind,), {"__call__": kind.forward}))
    direct = object.__new__(called)
    parts = {
        name: None if part is None else called_directly(part)
        for name, part in held["_modules"].items()
    }
    vars(direct).update(held | held["_parameters"] | held["_buffers"] | parts, _modules=parts)
    return direct


def _by_pair(x: Tensor, streams: int) -> Tensor:
    """Return [1, head, stream * time, dim] as [stream * head, time, dim]: a view of one stream."""
    if streams == 1:
        return x[0]
    by_stream: Tensor = x[0].unflatten(1, (streams, -1))
    return by_stream.transpose(0, 1).flatten(0, 1)


def _by_head(x: Tensor, streams: int) -> Tensor:
    """Return [stream * head, time, dim] as [1, head, stream * time, dim]: undo ``_by_pair``."""
    if streams == 1:
        return x[None]
    by_stream: Tensor = x.unflatten(0, (streams, -1))
    return by_stream.transpose(0, 1).flatten(1, 2)[None]


def _joined(parts: Sequence[native.WindowRows], dim: int) -> native.WindowRows:
    """Return tiles one after another: along the streams (0) or along time (1)."""
    if len(parts) == 1:
        return parts[0]
    return native.WindowRows(*(torch.cat(x, dim=dim) for x in zip(*parts, strict=True)))


def _check(mass: Tensor, name: str) -> None:
    """Raise ``InvariantBroken`` unless every row sums to 1 or is NaN, which a gate refuses."""
    error = (mass - 1.0).abs_()
    if float(error.max()) <= _MASS_TOLERANCE:  # false if one is NaN, which could hide others
        return
    wrong = error > _MASS_TOLERANCE
    if bool(wrong.any()):
        raise InvariantBroken(
            f"A row of {name} sums to {float(mass[wrong][0]):.4f} instead of 1; report this bug."
        )
