"""Networks for published tables: the published Informer and direct multi-step networks.

Read top to bottom: configuration, embedding, attention, encoder, decoder, the network. It is here
to be held against published tables (``run_ett.py``), beside ``informer``, which differs
in what docs/attention.md, A18 says. One habit of the published code is left out: the sampled keys
are drawn from the configuration's seed, never anew, so that one input has one answer.
Source: Zhou et al., 2021, arXiv:2012.07436, and the code that the paper came with.

Each reads a window of several series and answers the next ``horizon`` rows of all of them; every
series goes through the same weights on its own (Nie et al., 2023, PatchTST). A window is centred
and scaled by its own mean and spread first, and the answer brought back (Kim et al., 2022, RevIN,
without learned scales). No linear map leads from the window past the network to the answer; the
trunk's residual stream reaches the head as it is, for a last norm would hide how large a patch is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.probsparse import (
    STRIDE,
    TAPS,
    attend_sparsely,
    sample_keys,
)
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.networks.architecture import Trace
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.networks.informer_decoder import (
    CrossAttention,
    DecoderLayer,
    LayerSizes,
    NormedFeedForward,
    SparseSelfAttention,
)

MARKS: Final = 4
"""Features of time beside each row: hour, day of week, of month and of year, -0.5 to 0.5."""
_BASE: Final = 10_000.0
_POSITIVE: Final = ("variables", "window", "horizon", "dim", "heads", "hidden", "factor")


@dataclass(frozen=True, slots=True)
class PublishedInformerConfig:
    """The architecture: *window* rows in, *horizon* rows out, of *variables* each.

    ``encoders`` lists the layers of each stacked encoder: the first reads the whole window, the
    next ones its last half, quarter and so on. ``start`` rows of the window's end are the
    decoder's start token. ``mix`` joins the heads of the decoder's self-attention the way the
    published code does by default: heads and time are read in each other's place.
    """

    variables: int = 7
    window: int = 48
    horizon: int = 24
    start: int = 48
    dim: int = 512
    heads: int = 8
    hidden: int = 2048
    encoders: tuple[int, ...] = (2,)
    decoder_layers: int = 1
    factor: int = 5
    dropout: float = 0.05
    distil: bool = True
    mix: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be built, with one sentence each."""
        for name in _POSITIVE:
            if (value := getattr(self, name)) < 1:
                raise ConfigInvalid(f"{name} is {value}; it must be at least 1.")
        rules = (
            (not self.encoders or min(self.encoders) < 1, "encoders must list layers of 1 or more"),
            (self.decoder_layers < 1, "decoder_layers must be at least 1"),
            (not 0 <= self.start <= self.window, "start must lie between 0 and the window"),
            (self.dim % self.heads != 0 or self.dim % 2 != 0, "dim must be even, a share a head"),
            (not 0.0 <= self.dropout < 1.0, "dropout must be at least 0 and below 1"),
            (2 ** len(self.encoders) > 2 * self.window, "window is too short for the encoders"),
        )
        for broken, sentence in rules:
            if broken:
                raise ConfigInvalid(f"{sentence}.")

    @property
    def sizes(self) -> LayerSizes:
        """What its layers are made by."""
        return LayerSizes(self.dim, self.heads, self.hidden, self.factor, self.dropout)

    def lengths(self, encoder: int) -> tuple[int, ...]:
        """Return how many rows each layer of the stacked *encoder* sees."""
        lengths = [self.window >> encoder]
        for _ in range(self.encoders[encoder] - 1):
            lengths.append((lengths[-1] - 1) // STRIDE + 1 if self.distil else lengths[-1])
        return tuple(lengths)


def alternating_code(time: int, dim: int) -> Tensor:
    """Return the code of place [time, dim], float64: sines and cosines alternate."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    angles = torch.arange(time, dtype=torch.float64)[:, None] * _BASE**-exponents
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


class Embedding(nn.Module):
    """A circular convolution of the values, a sinusoidal code of place, a linear map of time."""

    code: Tensor

    def __init__(self, config: PublishedInformerConfig, time: int) -> None:
        super().__init__()
        self.value = nn.Conv1d(
            config.variables, config.dim, TAPS, padding=1, padding_mode="circular"
        )
        nn.init.kaiming_normal_(self.value.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.mark = nn.Linear(MARKS, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("code", alternating_code(time, config.dim), persistent=False)

    def forward(self, x: Tensor, marks: Tensor) -> Tensor:
        """Map [batch, time, variable] and marks [batch, time, MARKS] to [batch, time, dim]."""
        value = self.value(x.transpose(1, 2)).transpose(1, 2)
        return self.dropout(value + self.code.to(x.dtype) + self.mark(marks))


class PublishedAttention(SparseSelfAttention):
    """Its score is ``max - Σ ÷ N``, masked queries too sample from all keys, and lazy ones sum up.

    *mix* joins the heads of masked attention the published way: heads and time are read in each
    other's place. No row-stochastic matrix is left to explain.
    """

    def __init__(
        self, sizes: LayerSizes, time: int, seed: int, *, masked: bool = False, mix: bool = False
    ) -> None:
        super().__init__(sizes, time, seed, masked=masked)
        self.mix = mix
        self.samples = sample_keys(time, Mask.full(), factor=sizes.factor, seed=seed)

    def forward(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        """Map [batch, time, dim] to the same."""
        del trace
        query, key, value = self.projections.split(x, x)
        attended, rows = attend_sparsely(
            query, key, value, self.mask, self.samples, factor=self.factor, score="published"
        )
        is_masked = self.mask != Mask.full()
        if is_masked:
            at = rows.active[..., None].expand(-1, -1, -1, value.shape[3])
            attended = value.cumsum(dim=2).scatter(2, at, attended.gather(2, at))
        if not (is_masked and self.mix):
            attended = attended.transpose(1, 2)  # [batch, time, head, dim]
        return self.projections.out(attended.reshape(x.shape))


class PublishedDecoderLayer(DecoderLayer):
    """A layer of the decoder with such attention."""

    def __init__(self, config: PublishedInformerConfig, time: int, seed: int) -> None:
        nn.Module.__init__(self)
        sizes = config.sizes
        self.attention = PublishedAttention(sizes, time, seed, masked=True, mix=config.mix)
        self.attention_norm = nn.LayerNorm(sizes.dim)
        self.cross = CrossAttention(sizes)
        self.cross_norm = nn.LayerNorm(sizes.dim)
        self.dropout = nn.Dropout(sizes.dropout)
        self.feed_forward = NormedFeedForward(sizes)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each followed by its norm."""

    def __init__(self, config: PublishedInformerConfig, time: int, seed: int) -> None:
        super().__init__()
        sizes = config.sizes
        self.attention = PublishedAttention(sizes, time, seed)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.feed_forward = NormedFeedForward(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, time, dim] to the same."""
        x = self.norm(x + self.dropout(self.attention(x)))
        return self.feed_forward(x)


class ConvolutionDistilling(nn.Module):
    """A circular convolution of three taps, batch norm, ELU, and max-pooling: half the rows."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(dim, dim, TAPS, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, time, dim] to [batch, (time - 1) // 2 + 1, dim]."""
        active = functional.elu(self.norm(self.convolution(x.transpose(1, 2))))
        return functional.max_pool1d(active, TAPS, STRIDE, 1).transpose(1, 2)


class Encoder(nn.Module):
    """One of the stacked encoders: layers with distilling between them, and a norm."""

    def __init__(self, config: PublishedInformerConfig, number: int) -> None:
        super().__init__()
        lengths = config.lengths(number)
        first = config.seed + sum(config.encoders[:number])
        self.time = lengths[0]
        self.layers = nn.ModuleList(
            EncoderLayer(config, time, first + depth) for depth, time in enumerate(lengths)
        )
        halvings = len(lengths) - 1 if config.distil else 0
        self.distillings = nn.ModuleList(ConvolutionDistilling(config.dim) for _ in range(halvings))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map the last ``time`` rows of [batch, window, dim] to [batch, rows left, dim]."""
        x = x[:, -self.time :]
        for depth, layer in enumerate(self.layers):
            if depth and self.distillings:
                x = self.distillings[depth - 1](x)
            x = layer(x)
        return self.norm(x)


class PublishedInformer(nn.Module):
    """A window of rows in, the next ``horizon`` rows out, in one pass."""

    def __init__(self, config: PublishedInformerConfig) -> None:
        super().__init__()
        self.config = config
        written = config.start + config.horizon
        self.embed = Embedding(config, config.window)
        self.embed_written = Embedding(config, written)
        self.encoders = nn.ModuleList(
            Encoder(config, number) for number in range(len(config.encoders))
        )
        first = config.seed + sum(config.encoders)
        self.decoder = nn.ModuleList(
            PublishedDecoderLayer(config, written, first + depth)
            for depth in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.project = nn.Linear(config.dim, config.variables)

    def forward(self, x: Tensor, marks: Tensor) -> Tensor:
        """Forecast [batch, horizon, variable] after the window *x* [batch, window, variable].

        *marks* [batch, window + horizon, MARKS] are of the window's rows and of those asked for.
        Raises ``AttentionInvalid`` on other lengths.
        """
        config = self.config
        if x.shape[1] != config.window or marks.shape[1] != config.window + config.horizon:
            raise AttentionInvalid(
                f"This network takes {config.window} rows and marks of {config.horizon} more, not "
                f"{x.shape[1]} and {marks.shape[1] - x.shape[1]}; cut the window."
            )
        state = self.embed(x, marks[:, : config.window])
        memory = torch.cat([encoder(state) for encoder in self.encoders], dim=1)
        # The start token, and nothing where the forecast will stand.
        begun = config.window - config.start
        given = functional.pad(x[:, begun:], (0, 0, 0, config.horizon))
        written = self.embed_written(given, marks[:, begun:])
        for layer in self.decoder:
            written = layer(written, memory)
        return self.project(self.norm(written))[:, -config.horizon :]


_MLP_RATIO: Final = 2.0
_SPREAD_LEAST: Final = 1e-5
"""Added to a window's variance, so that one that does not move stays what it is."""


@dataclass(frozen=True, slots=True)
class DirectConfig:
    """What is common: rows read, rows answered, and the width and depth of the network.

    ``patch`` rows make one token of the trunk.
    """

    window: int = 336
    horizon: int = 24
    patch: int = 24
    dim: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.4
    head_dropout: float = 0.4
    mask: str = "full"

    def __post_init__(self) -> None:
        """Refuse what cannot be built, with one sentence each."""
        for name in ("window", "horizon", "patch", "dim", "layers", "heads"):
            if (value := getattr(self, name)) < 1:
                raise ConfigInvalid(f"{name} is {value}; it must be at least 1.")
        if self.window % self.patch:
            raise ConfigInvalid(f"window must be a multiple of patch, not {self.window}.")

    @property
    def tokens(self) -> int:
        """Patches of a window."""
        return self.window // self.patch


class Direct(nn.Module):
    """A window of series in, the next rows of each out; what a network says of patches between."""

    def __init__(self, config: DirectConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor, marks: Tensor) -> Tensor:
        """Forecast [batch, horizon, variable] after *x* [batch, window, variable].

        *marks* of time are not looked at. Each variable is a series of its own.
        """
        del marks
        series = x.transpose(1, 2)  # [batch, variable, window]
        centre = series.mean(dim=-1, keepdim=True)
        spread = (series.var(dim=-1, keepdim=True, correction=0) + _SPREAD_LEAST).sqrt()
        patches = ((series - centre) / spread).flatten(0, 1).unflatten(-1, (-1, self.config.patch))
        # [batch * variable, horizon] -> [batch, variable, horizon]
        answer = self.answer(patches).unflatten(0, series.shape[:2])
        return (answer * spread + centre).transpose(1, 2)

    def answer(self, patches: Tensor) -> Tensor:
        """Map [series, token, patch] to [series, horizon]."""
        raise NotImplementedError


class DirectFlash(Direct):
    """The default network's trunk over the patches, and a linear head on all of its states."""

    def __init__(self, config: DirectConfig) -> None:
        super().__init__(config)
        trunk = FlashConfig(
            features=config.patch,
            dim=config.dim,
            layers=config.layers,
            heads=config.heads,
            window=config.tokens,
            encoding="learned",
            mask=config.mask,
            mlp_ratio=_MLP_RATIO,
            dropout=config.dropout,
        )
        self.trunk = FlashNetwork(trunk)
        del self.trunk.heads  # they are for returns
        self.dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(config.tokens * config.dim, config.horizon)

    def answer(self, patches: Tensor) -> Tensor:
        """Map [series, token, patch] to [series, horizon]."""
        return self.head(self.dropout(self.trunk.states(patches).flatten(1)))
