"""Attention over an endless stream with a causal window: ring buffers, one query a layer.

The streams of docs/attention.md, A14, for the queries, keys and values of any model: a step costs
O(W·dim) per layer. The rollout of the newest step needs no further pass: queries, keys and
logsumexps are kept.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from .checks import check_axes, explanation, require_finite
from .errors import AttentionInvalid
from .kernels import Attention, attend
from .layer import Layer
from .masks import Mask
from .methods import PLAIN, AttendedTokens, Rollout, rollout


class TailRing:
    """One buffer of ``TailRings``: [stream, …] with time among the further dimensions."""

    def __init__(self, rows: Tensor, dim: int) -> None:
        self.rows = rows
        self.dim = dim  # of time, counted from the last dimension

    def move(self, stream: int, count: int, *, start: int, to: int) -> None:
        """Copy *count* rows of one stream from *start* to *to*; the ranges may overlap."""
        rows = self.rows[stream]
        rows.narrow(self.dim, to, count).copy_(rows.narrow(self.dim, start, count).clone())


class TailRings:
    """The newest rows of several streams in several buffers, each stream contiguous in time.

    A stream ends at the same place in all buffers. Rows are written after the newest; if no room
    is left, the *kept* newest move to the front. With a *slack* of rows between two moves a row
    costs one write and, on average, ``kept / slack`` copies; reading copies nothing. Before its
    first row a stream has *kept* rows of zeros, so that a view of fixed
    shape exists from the start.
    """

    def __init__(
        self, *, kept: int, slack: int, streams: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        self.ends = [kept] * streams
        """Where in the buffers the newest counted row of each stream ends."""
        self._kept = kept
        self._length = kept + slack
        self._device = device
        self._rings: list[TailRing] = []

    def ring(
        self, shape: tuple[int, ...], *, dim: int, dtype: torch.dtype = torch.float32
    ) -> TailRing:
        """Return a further buffer [stream, *shape], time inserted at *dim* of *shape*."""
        full = (len(self.ends), *shape[:dim], self._length, *shape[dim:])
        rows = torch.zeros(full, dtype=dtype, device=self._device)
        self._rings.append(TailRing(rows, dim - len(shape) - 1))
        return self._rings[-1]

    def extend(self, streams: int) -> None:
        """Make room for so many further *streams*: one copy of all rows."""
        for ring in self._rings:
            more = ring.rows.new_zeros(streams, *ring.rows.shape[1:])
            ring.rows = torch.cat((ring.rows, more))
        self.ends += [self._kept] * streams

    def settle(self, streams: slice, count: int) -> int:
        """Move adjacent *streams* to one end with room for *count* rows after it; return it.

        Streams that missed rows move to the most common end; if all are in step, nothing moves.
        """
        ends = self.ends[streams]
        end = ends[0]
        if ends.count(end) < len(ends):
            [(end, _)] = Counter(ends).most_common(1)
        if end + count > self._length:
            end = self._kept
        for stream, stream_end in enumerate(ends, streams.start):
            if stream_end != end:
                for ring in self._rings:
                    ring.move(
                        stream, self._kept, start=stream_end - self._kept, to=end - self._kept
                    )
                self.ends[stream] = end
        return end

    def advance(self, stream: int, count: int) -> None:
        """Count the first *count* of the rows just written; those after them are padding."""
        self.ends[stream] += count

    def clear(self, stream: int) -> None:
        """Forget every row of *stream*."""
        for ring in self._rings:
            ring.rows[stream].zero_()
        self.ends[stream] = self._kept


class WrapRing:
    """A ring of the newest *capacity* rows, put into order only when it is read.

    It is for history that every bar writes and few read: no rows are moved.
    """

    def __init__(
        self,
        *,
        capacity: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.rows = torch.zeros((capacity, *shape), dtype=dtype, device=device)
        self._written = 0

    def __len__(self) -> int:
        """Return how many rows it holds."""
        return min(self._written, self.rows.shape[0])

    def push(self, rows: Tensor) -> None:
        """Append *rows* [count, …]; the oldest leave."""
        capacity = self.rows.shape[0]
        # Rows that later ones of the same push would overwrite are counted, not written.
        self._written += max(0, len(rows) - capacity)
        rows = rows[-capacity:]
        slot = self._written % capacity
        first = min(len(rows), capacity - slot)
        self.rows[slot : slot + first] = rows[:first]
        if first < len(rows):
            self.rows[: len(rows) - first] = rows[first:]
        self._written += len(rows)

    def unrolled(self) -> Tensor:
        """Return a copy of the rows held, oldest first."""
        capacity = self.rows.shape[0]
        if self._written <= capacity:
            return self.rows[: self._written].clone()
        slot = self._written % capacity
        return torch.cat((self.rows[slot:], self.rows[:slot]))

    def clear(self) -> None:
        """Forget every row."""
        self._written = 0


class Stream:
    """Layers of attention over the last *window* steps, including the newest; one step at a time.

    In each step call the layers in order, the lowest first, because a layer's query depends on the
    layer below. It keeps the keys and values of a window, and for the rollout the queries, keys and
    logsumexps of the receptive field, ``layers · (window - 1) + 1`` steps. Half-precision inputs
    have float32 scores and logsumexps, so that rows sum to 1.
    """

    def __init__(
        self,
        window: int,
        *,
        layers: int = 1,
        batch: int = 1,
        heads: int,
        dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make room."""
        self.mask = Mask.window(window)
        self.steps = 0
        """Steps that every layer has taken."""
        self._layers = layers
        self._shape = (batch, heads, dim)
        self._dtype, self._working = dtype, torch.promote_types(dtype, torch.float32)
        self._next = 0  # the layer to call next
        self._end = 0
        self._rings = TailRings(kept=window - 1, slack=max(64, window // 2), device=device)
        shape = self._shape
        self._keys = [self._rings.ring(shape, dim=2, dtype=dtype) for _ in range(layers)]
        self._values = [self._rings.ring(shape, dim=2, dtype=dtype) for _ in range(layers)]
        self._history = [
            tuple(
                WrapRing(capacity=layers * (window - 1) + 1, shape=kept, dtype=kind, device=device)
                for kept, kind in (
                    ((batch, heads, 2 * dim), dtype),  # query and key
                    ((batch, heads), self._working),  # logsumexp
                )
            )
            for _ in range(layers)
        ]

    @explanation
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Attention:
        """Attend from the step's query in *layer*: output [batch, head, dim], and its logsumexp.

        *query*, *key* and *value* are those of the step, [batch, head, dim]; the scale is ``dim **
        -0.5``. The output is of the stream's type, the logsumexp at least float32. Raises
        ``AttentionInvalid`` for a wrong shape or type, a layer out of order and numbers that are
        not finite.
        """
        if layer != self._next:
            raise AttentionInvalid(
                f"Layer {layer} was called, but layer {self._next} is next; keep the order."
            )
        given = {"query": query, "key": key, "value": value}
        kept = {"stream": (self._keys[0].rows[0], "batch head kept dim")}
        check_axes(kept | {name: (tensor, "batch head dim") for name, tensor in given.items()})
        for name, tensor in given.items():
            require_finite(tensor, f"The projection of the {name}")
        if layer == 0:
            self._end = self._rings.settle(slice(0, 1), 1)
        end = self._end
        first = end + 1 - min(self.steps + 1, self.mask.window_bars)
        keys, values = self._keys[layer].rows[0], self._values[layer].rows[0]
        keys[:, :, end], values[:, :, end] = key, value
        shown = keys[:, :, first : end + 1].to(self._working)
        scores = (shown @ query[..., None].to(self._working))[..., 0] * query.shape[-1] ** -0.5
        total = scores.logsumexp(dim=-1)
        shares = (scores - total[..., None]).exp()
        read = values[:, :, first : end + 1].to(self._working)
        output = (shares[:, :, None] @ read)[:, :, 0].to(self._dtype)
        pairs, sums = self._history[layer]
        pairs.push(torch.cat((query, key), dim=-1)[None])
        sums.push(total[None])
        self._next = (layer + 1) % self._layers
        if self._next == 0:
            self._rings.advance(0, 1)
            self.steps += 1
        return Attention(output, total)

    def rollout(self, method: Rollout = PLAIN) -> AttendedTokens:
        """Return the rollout of the newest step: "tokens" [batch, 1, step].

        It covers the receptive field, the oldest step first. Raises ``AttentionInvalid`` between
        the layers of a step, before the first step, and like ``rollout``.
        """
        if self._next or not self.steps:
            raise AttentionInvalid(
                f"Step {self.steps + 1} has run {self._next} of {self._layers} layers; run all, "
                "then explain it."
            )
        layers = [self._kept(history) for history in self._history]
        return rollout(layers, [layers[0].shape[2] - 1], method)

    def _kept(self, history: tuple[WrapRing, ...]) -> Layer:
        """Return one layer over the steps kept."""
        pairs, sums = history
        kept, total = pairs.unrolled().permute(1, 2, 0, 3), sums.unrolled().permute(1, 2, 0)
        dim, early = self._shape[2], self.mask.window_bars - 1
        query, key = kept[..., :dim], kept[..., dim:]
        if self.steps > kept.shape[2] and early > 0:
            # The windows of the oldest kept steps began before the kept keys. The rollout does not
            # use these rows, but their logsumexp has to match the kept keys.
            first = [x[:, :, :early].to(self._working) for x in (query, key)]
            total = total.clone()
            total[:, :, :early] = attend(first[0], first[1], first[1], Mask()).logsumexp
        return Layer(query, key, None, total, self.mask)
