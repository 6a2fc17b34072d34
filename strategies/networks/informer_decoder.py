"""The decoder of the Informer: masked ProbSparse attention, then cross-attention to the encoder.

Source: Zhou et al., 2021, arXiv:2012.07436. The rules are docs/attention.md, A18 and A35.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tracepaper.strategies.attention.kernels import cross_attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.probsparse import attend_sparsely, sample_keys
from tracepaper.strategies.networks.architecture import AttendedPart, Trace

TOKENS: Final = "tokens"
"""The stream of the decoder; the encoder's is of bars."""


class LayerSizes(NamedTuple):
    """The sizes of a layer."""

    dim: int
    heads: int
    hidden: int
    factor: int
    dropout: float


class Projections(nn.Module):
    """The four linear maps of an attention layer."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.query = nn.Linear(sizes.dim, sizes.dim)
        self.key = nn.Linear(sizes.dim, sizes.dim)
        self.value = nn.Linear(sizes.dim, sizes.dim)
        self.out = nn.Linear(sizes.dim, sizes.dim)

    def split(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query of *x*, key and value of *memory*: [batch, head, time, dim] each."""
        parts = (self.query(x), self.key(memory), self.value(memory))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return query, key, value


class SparseSelfAttention(nn.Module):
    """ProbSparse self-attention in which no row sees a later one; rows in *always* attend."""

    samples: Tensor

    def __init__(self, sizes: LayerSizes, time: int, seed: int, always: Sequence[int]) -> None:
        super().__init__()
        self.projections = Projections(sizes)
        self.factor = sizes.factor
        self.always = tuple(always)
        samples = sample_keys(time, Mask(), factor=sizes.factor, seed=seed)
        self.register_buffer("samples", samples, persistent=False)

    def forward(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        """Map [batch, time, dim] to the same; add the rows that attended to *trace*."""
        query, key, value = self.projections.split(x, x)
        attended, read = attend_sparsely(
            query, key, value, Mask(), self.samples, factor=self.factor, always=self.always
        )
        if trace is not None:
            weight = self.projections.out.weight
            read = replace(read, output_weight=weight, target=TOKENS, source=TOKENS)
            trace.attend(read, attended, is_layer=False)
        return self.projections.out(attended.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Full attention of the decoder's rows over the encoder's."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.projections = Projections(sizes)
        self.dropout = sizes.dropout

    def forward(self, x: Tensor, memory: Tensor, trace: Trace | None = None) -> Tensor:
        """Map [batch, time, dim] and the encoder's [batch, row, dim] to [batch, time, dim]."""
        query, key, value = self.projections.split(x, memory)
        if trace is None:
            attended = functional.scaled_dot_product_attention(
                query, key, value, dropout_p=self.dropout if self.training else 0.0
            )
        else:
            attended, logsumexp = cross_attend(query, key, value)
            weight = self.projections.out.weight
            read = Layer(
                query, key, value, logsumexp, Mask.full(), output_weight=weight, target=TOKENS
            )
            trace.attend(read, attended, is_layer=False)
        return self.projections.out(attended.transpose(1, 2).flatten(2))


class NormedFeedForward(nn.Module):
    """Two linear layers with a GELU, and the residual's norm after it."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.rise = nn.Linear(sizes.dim, sizes.hidden)
        self.activation = nn.GELU()
        self.fall = nn.Linear(sizes.hidden, sizes.dim)
        self.norm = nn.LayerNorm(sizes.dim)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, time, dim] to the same."""
        hidden = self.dropout(self.activation(self.rise(x)))
        return self.norm(x + self.dropout(self.fall(hidden)))


class DecoderLayer(nn.Module):
    """Masked self-attention, cross-attention and a feed-forward network, each before its norm."""

    def __init__(self, sizes: LayerSizes, time: int, seed: int, always: Sequence[int]) -> None:
        super().__init__()
        self.attention = SparseSelfAttention(sizes, time, seed, always)
        self.attention_norm = nn.LayerNorm(sizes.dim)
        self.cross = CrossAttention(sizes)
        self.cross_norm = nn.LayerNorm(sizes.dim)
        self.dropout = nn.Dropout(sizes.dropout)
        self.feed_forward = NormedFeedForward(sizes)

    def forward(self, x: Tensor, memory: Tensor, trace: Trace | None = None) -> Tensor:
        """Map [batch, time, dim] and the encoder's [batch, row, dim] to [batch, time, dim]."""
        x = self.attention_norm(x + self.dropout(self.attention(x, trace)))
        x = self.cross_norm(x + self.dropout(self.cross(x, memory, trace)))
        return self.feed_forward(x)


class Decoder(nn.Module):
    """The start token and the placeholders in, the state of each placeholder out."""

    def __init__(
        self, sizes: LayerSizes, features: int, code: Tensor, *, layers: int, start: int, seed: int
    ) -> None:
        """Make *layers* over *start* rows, and a placeholder for each further row of *code*.

        *code* [row, dim] is the code of each row's position.
        """
        super().__init__()
        self.start = start
        self.embed = nn.Linear(features, sizes.dim)
        self.register_buffer("code", code, persistent=False)
        time = len(code)
        self.layers = nn.ModuleList(
            DecoderLayer(sizes, time, seed + depth, range(start, time)) for depth in range(layers)
        )
        self.norm = nn.LayerNorm(sizes.dim)

    def enter(self, x: Tensor) -> Tensor:
        """Return the first state of windows *x* [batch, window, feature]: [batch, row, dim]."""
        code = self.get_buffer("code")
        given = functional.pad(x[:, -self.start :], (0, 0, 0, len(code) - self.start))
        state: Tensor = self.embed(given) + code.to(x.dtype)
        return state

    def forward(self, state: Tensor, memory: Tensor, trace: Trace | None = None) -> Tensor:
        """Return the placeholders [batch, placeholder, dim] above the last layer.

        The first tokens are the newest bars; weight that stays at placeholders belongs to no bar.
        """
        if trace is not None:
            start, count = self.start, state.shape[1]
            ages = torch.arange(start - 1, start - 1 - count, -1, device=state.device)
            trace.places[TOKENS] = tuple(range(start, count))
            trace.ahead[TOKENS] = count - start
            trace.ages[TOKENS] = ages.clamp_min(0)
            trace.to_bars = self._to_bars
        for layer in self.layers:
            state = layer(state, memory, trace)
        return self.norm(state[:, self.start :])

    def _to_bars(self, weights: Mapping[str, Tensor]) -> tuple[Tensor, tuple[AttendedPart, ...]]:
        """Return the weights [row, token] of both streams on the window's bars: [row, bar]."""
        by_bar = weights["bars"].clone()
        by_bar[:, -self.start :] += weights[TOKENS][:, : self.start]
        return by_bar, ()
