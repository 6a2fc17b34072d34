"""Informer: ProbSparse attention and distilling over the window that ends at the decided bar.

Source: Zhou et al., 2021, arXiv:2012.07436. The rules are docs/attention.md, A18 to A20 and A35.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Final

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.probsparse import (
    STRIDE,
    TAPS,
    attend_rows,
    attend_sparsely,
    convolution_taps,
    convolve,
    pooling_taps,
    queries_attending,
    sample_keys,
)
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import (
    AttendedPart,
    Network,
    Outputs,
    Trace,
    heads_of,
)
from tracepaper.strategies.networks.encodings import Phases, clock_code, sinusoidal_table
from tracepaper.strategies.networks.flash import AttentionConfig, Block, BlockOptions
from tracepaper.strategies.networks.keys import Rule

_SAMPLED: Final = "keys_{depth}"
_DECODER: Final = "decoder"
"""The stream of the decoder; the encoder's is of bars."""


@dataclass(frozen=True, slots=True)
class InformerConfig(AttentionConfig):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``seed`` draws the keys that queries sample, so it is part of the learned function.
    """

    layers: keys.Layers = 3
    window: keys.Window = 512
    factor: Annotated[
        int, Meta(ge=1, le=20, description="Sampling factor of queries and keys.")
    ] = 5
    distil: Annotated[bool, Meta(description="Halve the sequence between layers.")] = True
    seed: keys.DrawSeed = 0
    decoder_layers: Annotated[
        int, Meta(ge=0, le=64, description="Layers of the decoder; 0: the encoder answers.")
    ] = 0
    start_token: Annotated[
        int, Meta(ge=0, le=keys.WINDOW_MAX, description="Last bars that the decoder is given.")
    ] = 0

    RULES: ClassVar[tuple[keys.Rule, ...]] = (
        Rule(
            lambda of: not (of.dim % of.heads or of.dim % 2),
            "dim is {of.dim} for {of.heads} heads; make it even and a multiple of the heads",
        ),
        Rule(
            lambda of: not of.decoder_layers or 1 <= of.start_token <= of.window,
            "start_token is {of.start_token}; give the decoder 1 to {of.window} bars of the window",
        ),
        Rule(
            lambda of: of.decoder_layers or not of.start_token,
            "start_token is {of.start_token} without a decoder; set decoder_layers too",
        ),
    )

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence where ProbSparse attention computes over two fifths of the rows."""
        active = queries_attending(self.window, self.factor)
        note = (
            f"{active} of {self.window} queries attend, so ProbSparse saves little: lower factor "
            f"({self.factor}), lengthen window, or choose the kind flash."
        )
        return (note,) if 5 * active > 2 * self.window else ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many positions each layer sees: halved between layers with ``distil``."""
        lengths = [self.window]
        for _ in range(self.layers - 1):
            lengths.append((lengths[-1] + 1) // STRIDE if self.distil else lengths[-1])
        return tuple(lengths)


class DistillingLayer(nn.Module):
    """Convolution of three taps, norm, ELU and max-pooling: half as many positions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(dim, dim, TAPS)  # only holds and initialises the weights
        self.norm = nn.LayerNorm(dim)
        self.activation = nn.ELU()

    def forward(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        """Map [batch, time, dim] to [batch, (time + 1) // 2, dim]; add its maps to *trace*."""
        # One product per tap instead of the convolution: the explanation needs its terms.
        bias = self.convolution.bias
        assert bias is not None
        mixed, products = convolve(x, self.convolution.weight, bias)
        active = self.activation(self.norm(mixed)).transpose(1, 2)  # [batch, dim, time]
        pooled, chosen = functional.max_pool1d_with_indices(
            active, [TAPS], stride=[STRIDE], padding=[1], return_indices=True
        )
        if trace is not None:
            trace.map(convolution_taps(products))
            trace.map(pooling_taps(chosen, x.shape[1]))
        return pooled.transpose(1, 2)


class SparseBlock(nn.Module):
    """One pre-norm layer of ProbSparse attention and a GELU network, each with its residual."""

    def __init__(self, config: InformerConfig) -> None:
        super().__init__()
        hidden = max(1, round(config.dim * config.mlp_ratio))
        self.heads = config.heads
        self.factor = config.factor
        self.attention_norm = nn.LayerNorm(config.dim)
        self.project_in = nn.Linear(config.dim, 3 * config.dim)
        self.project_out = nn.Linear(config.dim, config.dim)
        self.mlp_norm = nn.LayerNorm(config.dim)
        self.rise = nn.Linear(config.dim, hidden)
        self.activation = nn.GELU()
        self.fall = nn.Linear(hidden, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, samples: Tensor | None, trace: Trace | None = None) -> Tensor:
        """Map [batch, time, dim] to the same; the last row always attends.

        Without *samples* no query is ranked, and the last row alone is returned: [batch, 1, dim].
        """
        mixed = self.project_in(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        # [batch, time, 3, head, dim] -> [3, batch, head, time, dim], one copy for all products
        query, key, value = mixed.permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        last = [x.shape[1] - 1]
        if samples is None:
            (attended, read), x = attend_rows(query, key, value, last), x[:, -1:]
        else:
            attended, read = attend_sparsely(
                query, key, value, Mask.full(), samples, factor=self.factor, always=last
            )
        if trace is not None:
            trace.attend(replace(read, output_weight=self.project_out.weight), attended)
        joined = attended.transpose(1, 2).flatten(2)  # [batch, time, head * dim]
        x = x + self.dropout(self.project_out(joined))
        hidden = self.activation(self.rise(self.mlp_norm(x)))
        return x + self.dropout(self.fall(hidden))


class DecoderLayer(nn.Module):
    """Masked ProbSparse attention among the tokens, then full attention over the encoder.

    Both are post-norm blocks, and the second has the feed-forward network.
    """

    samples: Tensor

    def __init__(self, config: InformerConfig, depth: int, always: range) -> None:
        """Let the rows in *always* attend; they are the last ones."""
        super().__init__()
        options = BlockOptions.of(config)._replace(norm="post", layers=config.decoder_layers)
        self.within = Block(options._replace(mlp=""), depth)
        self.across = Block(options, depth)
        self.factor, self.always = config.factor, always
        seed = config.seed + config.layers + depth
        samples = sample_keys(always.stop, Mask(), factor=config.factor, seed=seed)
        self.register_buffer("samples", samples, persistent=False)

    def forward(self, x: Tensor, memory: Tensor, trace: Trace | None = None) -> Tensor:
        """Map [batch, time, dim] and the encoder's [batch, row, dim] to [batch, time, dim]."""
        query, key, value = self.within.project(x, Phases())
        attended, sparse = attend_sparsely(
            query, key, value, Mask(), self.samples, factor=self.factor, always=self.always
        )
        if trace is not None:
            weight = self.within.project_out.weight
            sparse = replace(sparse, output_weight=weight, target=_DECODER, source=_DECODER)
            trace.attend(sparse, attended, is_layer=False)
        x = self.within.finish(x, attended)
        query = self.across.project(x, Phases()).query
        _, key, value = self.across.project(memory, Phases())
        attended, logsumexp = attend(query, key, value, Mask.full(), checked=False)
        if trace is not None:
            weight = self.across.project_out.weight
            read = Layer(
                query, key, value, logsumexp, Mask.full(), output_weight=weight, target=_DECODER
            )
            trace.attend(read, attended, is_layer=False)
        return self.across.finish(x, attended)


class Decoder(nn.Module):
    """The last bars and a placeholder per horizon in, the state of each placeholder out."""

    code: Tensor

    def __init__(self, config: InformerConfig) -> None:
        super().__init__()
        self.start = config.start_token
        last = config.window - 1
        rows = [*range(config.window - self.start, config.window)]
        rows += [last + bars for bars in config.horizons]
        self.embed = nn.Linear(config.features, config.dim)
        code = _code(torch.tensor(rows), config.dim, rows[-1] + 1)
        self.register_buffer("code", code, persistent=False)
        self.layers = nn.ModuleList(
            DecoderLayer(config, depth, range(self.start, len(rows)))
            for depth in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(config.dim)

    def enter(self, x: Tensor) -> Tensor:
        """Return the first state of windows *x* [batch, window, feature]: [batch, row, dim]."""
        placeholders = len(self.code) - self.start
        given = functional.pad(x[:, -self.start :], (0, 0, 0, placeholders))
        state: Tensor = self.embed(given) + self.code.to(x.dtype)
        return state

    def forward(self, state: Tensor, memory: Tensor, trace: Trace | None = None) -> Tensor:
        """Return the placeholders [batch, placeholder, dim] above the last layer.

        The first tokens are the newest bars; weight that stays at placeholders belongs to no bar.
        """
        if trace is not None:
            start, count = self.start, state.shape[1]
            ages = torch.arange(start - 1, start - 1 - count, -1, device=state.device)
            trace.places[_DECODER] = tuple(range(start, count))
            trace.ahead[_DECODER] = count - start
            trace.ages[_DECODER] = ages.clamp_min(0)
            trace.to_bars = self._to_bars
        for layer in self.layers:
            state = layer(state, memory, trace)
        return self.norm(state[:, self.start :])

    def _to_bars(self, weights: Mapping[str, Tensor]) -> tuple[Tensor, tuple[AttendedPart, ...]]:
        """Return the weights [row, token] of both streams on the window's bars: [row, bar]."""
        by_bar = weights["tokens"].clone()
        by_bar[:, -self.start :] += weights[_DECODER][:, : self.start]
        return by_bar, ()


class InformerNetwork(Network):
    """A window of feature rows in, the forecast of its last bar out."""

    config: InformerConfig
    in_float32: ClassVar[bool] = True
    rows_a_pass: ClassVar[int | None] = 4_096

    def __init__(self, config: InformerConfig) -> None:
        super().__init__(config)
        self.embed = nn.Linear(config.features, config.dim)
        self.clock = clock_code(config.dim, config.interval_minutes, config.clock)
        self.blocks = nn.ModuleList(SparseBlock(config) for _ in range(config.layers))
        halvings = config.layers - 1 if config.distil else 0
        self.distillings = nn.ModuleList(DistillingLayer(config.dim) for _ in range(halvings))
        # A decoder reads all rows of the last layer; without one only the decided bar is read.
        ranked = config.lengths if config.decoder_layers else config.lengths[:-1]
        for depth, time in enumerate(ranked):
            drawn = sample_keys(time, Mask.full(), factor=config.factor, seed=config.seed + depth)
            self.register_buffer(_SAMPLED.format(depth=depth), drawn, persistent=False)
        place = _code(torch.arange(config.window, device="cpu"), config.dim, config.window)
        self.register_buffer("place", place, persistent=False)
        self.norm = nn.LayerNorm(config.dim)
        self.decoder = Decoder(config) if config.decoder_layers else None
        self.heads = heads_of(config, horizons=1 if config.decoder_layers else None)

    def run(self, x: Tensor, positions: Tensor, trace: Trace | None) -> Tensor:
        """Return the states above the last layer, or of the decoder's placeholders.

        Distilling halves time before each layer but the first. Without a decoder the last block
        computes only the decided bar.
        """
        self._require_window(x)
        state = self._timed(self.embed(x) + self.get_buffer("place").to(x.dtype), positions)
        for depth, block in enumerate(self.blocks):
            if depth and self.config.distil:
                state = self.distillings[depth - 1](state, trace)
            is_last = depth == self.config.layers - 1 and self.decoder is None
            samples = None if is_last else self.get_buffer(_SAMPLED.format(depth=depth))
            state = block(state, samples, trace)
        if self.decoder is None:
            return state
        ahead = torch.tensor(self.config.horizons, device=positions.device)
        start = positions[..., -self.config.start_token :]
        places = torch.cat((start, positions[..., -1:] + ahead), dim=-1)
        tokens = self._timed(self.decoder.enter(x), places)
        return self.decoder(tokens, self.norm(state), trace)

    def _timed(self, state: Tensor, positions: Tensor) -> Tensor:
        """Return *state* with the code of the clocks at *positions*."""
        return state if self.clock is None else state + self.clock(positions)

    def read_out(self, state: Tensor) -> Outputs:
        """Return the heads' outputs of the last row, or of each horizon at its placeholder."""
        if self.decoder is None:
            return super().read_out(state)
        outputs: Outputs = self.heads(state)  # [batch, horizon, 1, ...]
        return outputs.map(lambda part: part.transpose(1, 2))


def _code(places: Tensor, dim: int, period: int) -> Tensor:
    """Return the code of *places*; on the device meta, only its shape.

    Arithmetic on meta tensors imports PyTorch's compiler, which takes seconds.
    """
    if places.is_meta:
        return torch.empty(len(places), dim)
    return sinusoidal_table(places, dim, period)


register(
    ModelKind(
        "informer",
        "ProbSparse attention and distilling over one window",
        read=InformerConfig.read,
        make=InformerNetwork,
        backend=lambda _: "probsparse",
    )
)
