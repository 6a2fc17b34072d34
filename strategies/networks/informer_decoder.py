"""The decoder of the Informer: masked ProbSparse attention, then cross-attention to the encoder.

It is given the last bars of the window, the start token, and one placeholder a horizon, which holds
nothing but its place in time, and answers every horizon in one pass, each at its placeholder. The
published network of ``tracepaper bench ett`` is made of the same layers, with the conventions of
the published code (``PublishedSums``), which leave no row-stochastic matrix to explain. Source:
Zhou et al., 2021, arXiv:2012.07436.

The rules are docs/attention.md, A18 and A35.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tracepaper.strategies.attention.kernels import cross_attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import carry_down
from tracepaper.strategies.attention.probsparse import (
    MapRead,
    SparseRead,
    Taps,
    attend_sparsely,
    push_taps,
    sample_keys,
)
from tracepaper.strategies.attention.reads import Read
from tracepaper.strategies.networks.architecture import LayerAttribution

TOKENS: Final = "tokens"
"""The stream of the decoder; the encoder's is of bars."""


class Kept:
    """What explains a pass: reads, the lowest first, and each attention's A·V."""

    def __init__(self) -> None:
        self.reads: list[Read] = []
        self.attended: list[Tensor] = []
        self._layer = -1

    def attend(self, read: Read, attended: Tensor, *, is_layer: bool = True) -> None:
        """Keep an attention; one that is no layer of its own belongs to the last one."""
        self._layer += is_layer
        self.reads.append(replace(read, step=len(self.reads), layer=self._layer))
        self.attended.append(attended)

    def map(self, taps: Taps) -> None:
        """Keep a map of time."""
        self.reads.append(MapRead(taps, step=len(self.reads)))


class PublishedSums(NamedTuple):
    """The published code's conventions: its score is ``max − Σ ÷ N``, lazy masked rows are sums.

    ``mix`` joins the heads of masked attention its way: heads and time are read in each other's
    place.
    """

    mix: bool


class LayerSizes(NamedTuple):
    """What layers are made by; without *published* a lazy row is a true average (A18)."""

    dim: int
    heads: int
    hidden: int
    factor: int
    dropout: float
    published: PublishedSums | None = None


class DecoderReads(NamedTuple):
    """What one layer of a decoder attended with."""

    own: SparseRead  # of the decoder's tokens among themselves
    read: Layer  # of these over the encoder's


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
    """ProbSparse self-attention; masked, no row sees a later one.

    The rows in *always* attend whatever their spread, where the conventions are not the published
    ones.
    """

    samples: Tensor

    def __init__(
        self,
        sizes: LayerSizes,
        time: int,
        seed: int,
        *,
        masked: bool = False,
        always: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.projections = Projections(sizes)
        self.factor = sizes.factor
        self.published = sizes.published
        self.mask = Mask() if masked else Mask.full()
        self.always = tuple(always)
        # As published, masked queries too sample from all keys: only their softmax is masked.
        drawn = Mask.full() if sizes.published else self.mask
        samples = sample_keys(time, drawn, factor=sizes.factor, seed=seed)
        self.register_buffer("samples", samples, persistent=False)

    def forward(self, x: Tensor, kept: Kept | None = None) -> Tensor:
        """Map [batch, time, dim] to the same; add the rows that attended to *kept*."""
        query, key, value = self.projections.split(x, x)
        attended, rows = attend_sparsely(
            query,
            key,
            value,
            self.mask,
            self.samples,
            factor=self.factor,
            always=self.always,
            score="published" if self.published else "sample_mean",
        )
        if kept is not None:
            weight = self.projections.out.weight
            read = SparseRead(rows, value=value, output_weight=weight, target=TOKENS, source=TOKENS)
            kept.attend(read, attended, is_layer=False)
        is_mixed = False
        if self.published and self.mask != Mask.full():
            at = rows.active[..., None].expand(-1, -1, -1, value.shape[3])
            attended = value.cumsum(dim=2).scatter(2, at, attended.gather(2, at))
            is_mixed = self.published.mix
        if not is_mixed:
            attended = attended.transpose(1, 2)  # [batch, time, head, dim]
        # Mixed: [batch, head, time, dim], read as if it were [batch, time, head, dim]
        return self.projections.out(attended.reshape(x.shape))


class CrossAttention(nn.Module):
    """Full attention of the decoder's rows over the encoder's."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.projections = Projections(sizes)
        self.dropout = sizes.dropout

    def forward(self, x: Tensor, memory: Tensor, kept: Kept | None = None) -> Tensor:
        """Map [batch, time, dim] and the encoder's [batch, row, dim] to [batch, time, dim]."""
        query, key, value = self.projections.split(x, memory)
        if kept is None:
            attended = functional.scaled_dot_product_attention(
                query, key, value, dropout_p=self.dropout if self.training else 0.0
            )
        else:
            attended, logsumexp = cross_attend(query, key, value)
            weight = self.projections.out.weight
            read = Layer(
                query, key, value, logsumexp, Mask.full(), output_weight=weight, target=TOKENS
            )
            kept.attend(read, attended, is_layer=False)
        return self.projections.out(attended.transpose(1, 2).flatten(2))


class NormedFeedForward(nn.Module):
    """Two linear layers with a GELU, and the residual's norm after it."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.rise = nn.Linear(sizes.dim, sizes.hidden)
        self.fall = nn.Linear(sizes.hidden, sizes.dim)
        self.norm = nn.LayerNorm(sizes.dim)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, time, dim] to the same."""
        hidden = self.dropout(functional.gelu(self.rise(x)))
        return self.norm(x + self.dropout(self.fall(hidden)))


class DecoderLayer(nn.Module):
    """Masked self-attention, cross attention and a feed-forward part, each before its norm."""

    def __init__(
        self, sizes: LayerSizes, time: int, seed: int, *, always: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.attention = SparseSelfAttention(sizes, time, seed, masked=True, always=always)
        self.attention_norm = nn.LayerNorm(sizes.dim)
        self.cross = CrossAttention(sizes)
        self.cross_norm = nn.LayerNorm(sizes.dim)
        self.dropout = nn.Dropout(sizes.dropout)
        self.feed_forward = NormedFeedForward(sizes)

    def forward(self, x: Tensor, memory: Tensor, kept: Kept | None = None) -> Tensor:
        """Map [batch, time, dim] and the encoder's [batch, row, dim] to [batch, time, dim]."""
        x = self.attention_norm(x + self.dropout(self.attention(x, kept)))
        x = self.cross_norm(x + self.dropout(self.cross(x, memory, kept)))
        return self.feed_forward(x)


class Decoder(nn.Module):
    """The start token and the placeholders in, the state of each placeholder out."""

    def __init__(
        self, sizes: LayerSizes, features: int, code: Tensor, *, layers: int, start: int, seed: int
    ) -> None:
        """Make *layers* over *start* rows, and a placeholder for each further row of *code*.

        *code* [row, dim] says where each row stands in time.
        """
        super().__init__()
        self.start = start
        self.embed = nn.Linear(features, sizes.dim)
        self.register_buffer("code", code, persistent=False)
        time = len(code)
        self.layers = nn.ModuleList(
            DecoderLayer(sizes, time, seed + depth, always=range(start, time))
            for depth in range(layers)
        )
        self.norm = nn.LayerNorm(sizes.dim)

    def enter(self, x: Tensor) -> Tensor:
        """Return the first state of windows *x* [batch, window, feature]: [batch, row, dim]."""
        code = self.get_buffer("code")
        given = functional.pad(x[:, -self.start :], (0, 0, 0, len(code) - self.start))
        state: Tensor = self.embed(given) + code.to(x.dtype)
        return state

    def forward(self, state: Tensor, memory: Tensor, kept: Kept | None = None) -> Tensor:
        """Return the placeholders [batch, placeholder, dim] above the last layer."""
        for layer in self.layers:
            state = layer(state, memory, kept)
        return self.norm(state[:, self.start :])


class TokenWeights(NamedTuple):
    """Row weights [batch, row, token] on the decoder's tokens and on the encoder's."""

    tokens: Tensor
    memory: Tensor


def carry_own(reads: DecoderReads, above: TokenWeights) -> TokenWeights:
    """Return the weights *above* a layer's self-attention as those below it."""
    return above._replace(tokens=carry_down([reads.own], {TOKENS: above.tokens})[TOKENS])


def carry_read(reads: DecoderReads, above: TokenWeights) -> TokenWeights:
    """Return the weights *above* a layer's cross-attention as those below it."""
    below = carry_down([reads.read], {TOKENS: above.tokens, "bars": above.memory})
    return TokenWeights(below[TOKENS], below["bars"])


def bars_of(weights: Mapping[str, Tensor], start: int) -> Tensor:
    """Return the weights [row, token] of bars and of the decoder's tokens on bars: [row, bar].

    The first *start* tokens are the newest bars. What stays at placeholders rests on no bar: it is
    left out, and the others are scaled to sum to 1.
    """
    by_bar = weights["bars"].clone()
    by_bar[:, -start:] += weights[TOKENS][:, :start]
    return by_bar / by_bar.sum(dim=-1, keepdim=True)


def beside_decoder(
    encoder: Sequence[LayerAttribution],
    maps: Sequence[Taps],
    layers: Sequence[DecoderReads],
    *,
    start: int,
    window: int,
) -> list[LayerAttribution]:
    """Return the layers of the *encoder*, then two of each of the decoder's *layers*.

    What a layer gives are the encoder's positions, then the bars of the start token, then the
    placeholders; above the last layer one position, the decision, stands for these. Of what a
    token holds only what ends at bars is carried: each step is weighed by the share of every token
    that does, so that the decision, carried down all steps, becomes its rollout. *maps* are those
    of distilling, lowest first.
    """
    count, memory = layers[0].read.query.shape[2], layers[0].read.key.shape[2]
    like = layers[0].read.logsumexp
    bars = torch.arange(start - 1, -1, -1, device=like.device)  # their ages
    ahead = bars.new_zeros(count - start)
    found = []
    for number, layer in enumerate(encoder):

        def carry(
            weights: Tensor, layer: LayerAttribution = layer, *, lowest: bool = number == 0
        ) -> Tensor:
            own, written = weights[:, : len(layer.age)], weights[:, len(layer.age) :]
            below = layer.carry(own)
            if not lowest:
                return torch.cat((below, written), dim=1)
            below[:, -start:] += written[:, :start]
            return below

        age = torch.cat((layer.age, bars, ahead))
        found.append(layer._replace(age=age, carry=carry))
    ends = like.new_zeros(count)  # the share of each token below that ends at bars
    ends[:start] = 1.0
    every = torch.eye(count, dtype=like.dtype, device=like.device)[None]
    age = found[-1].age
    for depth, reads in enumerate(layers):
        for step, heads in ((carry_own, _own_rows), (carry_read, _read_rows)):
            whole = step(reads, TokenWeights(every, every.new_zeros(1, count, memory)))
            above = (whole.tokens[0] @ ends) + whole.memory[0].sum(dim=-1)
            is_top = depth == len(layers) - 1 and step is carry_read

            def carry_layer(
                weights: Tensor,
                step: Step = step,
                reads: DecoderReads = reads,
                above: Tensor = above,
                ends: Tensor = ends,
                *,
                is_top: bool = is_top,
            ) -> Tensor:
                held, written = weights[:, :memory], weights[:, memory:]
                if is_top:
                    spread = above[start:] / above[start:].sum()
                    written = torch.cat((written[:, :-1], written[:, -1:] * spread), dim=1)
                scaled = written / above.clamp_min(torch.finfo(above.dtype).tiny)
                below = step(reads, TokenWeights(scaled[None], torch.zeros_like(held)[None]))
                return torch.cat((held + below.memory[0], below.tokens[0] * ends), dim=1)

            rows = heads(reads, maps, start, window)
            at = torch.cat((age[: memory + start], ahead[:1])) if is_top else age
            found.append(LayerAttribution(rows, at, carry_layer))
            ends = above
    return found


Step = Callable[[DecoderReads, TokenWeights], TokenWeights]


def _own_rows(reads: DecoderReads, maps: Sequence[Taps], start: int, window: int) -> Tensor:
    """Return where each head of the placeholders looked among the start token's bars: [head, bar].

    What it gave placeholders is left out, and the rest scaled to sum to 1.
    """
    del maps
    places = range(start, reads.read.query.shape[2])
    rows = reads.own.rows(places)[0].mean(dim=1)
    found = rows.new_zeros(len(rows), window)
    found[:, -start:] = rows[:, :start]
    return found / found.sum(dim=1, keepdim=True)


def _read_rows(reads: DecoderReads, maps: Sequence[Taps], start: int, window: int) -> Tensor:
    """Return where each head of the placeholders looked in the encoder, carried to its bars."""
    del window
    read = reads.read
    rows = read.rows(range(start, read.query.shape[2])).mean(dim=2)
    for taps in reversed(maps):
        rows = push_taps(taps, rows)
    return rows[0]
