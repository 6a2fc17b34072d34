"""Informer: ProbSparse attention and distilling over the window that ends at the decided bar.

Read top to bottom: configuration, distilling, a block, the network. Each block attends with the
queries that choose most; between blocks time is halved by convolution and max-pooling. It is a
window network: ranking the queries looks at the whole window, so it never takes a batched pass.
With ``decoder_layers`` it has the published decoder as well, and answers each horizon at a
placeholder of its own. Source: Zhou et al., 2021, arXiv:2012.07436.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, Final

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import carry_down
from tracepaper.strategies.attention.probsparse import (
    STRIDE,
    TAPS,
    MapRead,
    Multiplications,
    SparseRead,
    Taps,
    attend_rows,
    attend_sparsely,
    convolution_taps,
    convolve,
    multiplications,
    pooling_taps,
    push_taps,
    sample_keys,
)
from tracepaper.strategies.attention.reads import Read
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import (
    Heads,
    LayerAttribution,
    Network,
    Outputs,
    Trace,
    last_bar,
    plain_bars,
)
from tracepaper.strategies.networks.encodings import check_clocks, clock_code, sinusoidal_table
from tracepaper.strategies.networks.informer_decoder import (
    TOKENS,
    Decoder,
    DecoderReads,
    Kept,
    LayerSizes,
    bars_of,
    beside_decoder,
)

_POSITIVE: Final = ("features", "dim", "layers", "heads", "window", "factor", "interval_minutes")
_SAMPLED: Final = "keys_{depth}"


@dataclass(frozen=True, slots=True)
class InformerConfig(keys.WindowKeys):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``seed`` draws the keys that queries sample: it belongs to the function that was learned.
    """

    features: keys.Features = 78
    dim: keys.Dim = 64
    layers: keys.Layers = 3
    heads: keys.Heads = 4
    window: keys.Window = 512
    horizons: keys.Horizons = (5, 30, 240)
    factor: Annotated[
        int, Meta(ge=1, le=20, description="Sampling factor of queries and keys.")
    ] = 5
    distil: Annotated[bool, Meta(description="Halve the sequence between layers.")] = True
    clock: keys.Clock = ()
    interval_minutes: keys.IntervalMinutes = 1
    mlp_ratio: keys.MlpRatio = 4.0
    dropout: keys.Dropout = 0.0
    allocation: keys.Allocation = False
    quantiles: keys.Quantiles = ()
    seed: keys.DrawSeed = 0
    decoder_layers: Annotated[
        int,
        Meta(
            ge=0,
            le=64,
            description="Layers of the decoder; 0: the encoder answers.",
        ),
    ] = 0
    start_token: Annotated[
        int,
        Meta(
            ge=0,
            le=keys.WINDOW_MAX,
            description="Last bars that the decoder is given.",
        ),
    ] = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be built, with one sentence each."""
        for name in _POSITIVE:
            if (value := getattr(self, name)) < 1:
                raise ConfigInvalid(f"architecture.{name} is {value}; it must be at least 1.")
        if any(a >= b for a, b in pairwise((0.0, *self.quantiles, 1.0))):
            raise ConfigInvalid("architecture.quantiles must ascend between 0 and 1.")
        if self.dim % self.heads or self.dim % 2:
            raise ConfigInvalid(
                f"architecture.dim is {self.dim} for {self.heads} heads; make it even and a "
                "multiple of the heads."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigInvalid(
                f"architecture.dropout is {self.dropout}; it must be at least 0 and below 1."
            )
        if not self.horizons or min(self.horizons) < 1:
            raise ConfigInvalid("architecture.horizons must list at least one number of bars.")
        if self.decoder_layers and not 1 <= self.start_token <= self.window:
            raise ConfigInvalid(
                f"architecture.start_token is {self.start_token}; give the decoder 1 to "
                f"{self.window} bars, the last of the window."
            )
        if self.start_token and self.decoder_layers < 1:
            raise ConfigInvalid(
                f"architecture.start_token is {self.start_token} without a decoder; set "
                "decoder_layers, or leave it out."
            )
        check_clocks(self.clock)

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many positions each layer sees: halved between layers where it distils."""
        lengths = [self.window]
        for _ in range(self.layers - 1):
            lengths.append((lengths[-1] + 1) // STRIDE if self.distil else lengths[-1])
        return tuple(lengths)


class Distilling(nn.Module):
    """Convolution of three taps, norm, ELU and max-pooling: half as many positions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(dim, dim, TAPS)  # holds the weights, as it starts them
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, kept: Kept | None = None) -> Tensor:
        """Map [batch, time, dim] to [batch, (time + 1) // 2, dim]; add its maps to *kept*."""
        # A product a tap instead of the convolution: its terms are what explains it.
        bias = self.convolution.bias
        assert bias is not None
        mixed, products = convolve(x, self.convolution.weight, bias)
        active = functional.elu(self.norm(mixed)).transpose(1, 2)  # [batch, dim, time]
        pooled, chosen = functional.max_pool1d_with_indices(
            active, [TAPS], stride=[STRIDE], padding=[1], return_indices=True
        )
        if kept is not None:
            kept.map(convolution_taps(products))
            kept.map(pooling_taps(chosen, x.shape[1]))
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
        self.fall = nn.Linear(hidden, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, samples: Tensor, kept: Kept | None = None) -> Tensor:
        """Map [batch, time, dim] to the same; the last row always attends."""
        query, key, value = self._project(x)
        attended = attend_sparsely(
            query, key, value, Mask.full(), samples, factor=self.factor, always=[x.shape[1] - 1]
        )
        if kept is not None:
            weight = self.project_out.weight
            read = SparseRead(attended.rows, value=value, output_weight=weight)
            kept.attend(read, attended.output)
        return self._finish(x, attended.output)

    def decide(self, x: Tensor, kept: Kept | None = None) -> Tensor:
        """Return the last row of ``forward``, [batch, 1, dim]: the only one that is read out.

        That row always attends, so no query has to be ranked.
        """
        query, key, value = self._project(x)
        attended = attend_rows(query, key, value, [x.shape[1] - 1])
        if kept is not None:
            weight = self.project_out.weight
            read = SparseRead(attended.rows, value=value, output_weight=weight)
            kept.attend(read, attended.output)
        return self._finish(x[:, -1:], attended.output)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [batch, head, time, dim]."""
        mixed = self.project_in(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        # [batch, time, 3, head, dim] -> [3, batch, head, time, dim], copied once for all products
        query, key, value = mixed.permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        return query, key, value

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output for rows *x* and *attended* [batch, head, time, dim]."""
        joined = attended.transpose(1, 2).flatten(2)  # [batch, time, head * dim]
        x = x + self.dropout(self.project_out(joined))
        hidden = functional.gelu(self.rise(self.mlp_norm(x)))
        return x + self.dropout(self.fall(hidden))


class InformerNetwork(Network):
    """A window of feature rows in, the forecast of its last bar out."""

    config: InformerConfig
    in_float32 = True
    rows_a_pass = 4_096

    def __init__(self, config: InformerConfig) -> None:
        super().__init__()
        # Set here alone, so that a narrower type than the base's is safe.
        self.config = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.embed = nn.Linear(config.features, config.dim)
        self.clock = clock_code(config.dim, config.interval_minutes, config.clock)
        self.blocks = nn.ModuleList(SparseBlock(config) for _ in range(config.layers))
        halvings = config.layers - 1 if config.distil else 0
        self.distillings = nn.ModuleList(Distilling(config.dim) for _ in range(halvings))
        # Of the last layer all rows are read by a decoder, and the decided bar's alone without.
        ranked = config.lengths if config.decoder_layers else config.lengths[:-1]
        for depth, time in enumerate(ranked):
            keys = sample_keys(time, Mask.full(), factor=config.factor, seed=config.seed + depth)
            self.register_buffer(_SAMPLED.format(depth=depth), keys, persistent=False)
        place = torch.empty(config.window, config.dim)
        # Where shapes alone are asked for, arithmetic would import PyTorch's compiler: seconds.
        if not place.is_meta:
            place = sinusoidal_table(torch.arange(config.window), config.dim, config.window)
        self.register_buffer("place", place, persistent=False)
        self.norm = nn.LayerNorm(config.dim)
        self.decoder = self._decoder() if config.decoder_layers else None
        answered = 1 if config.decoder_layers else len(config.horizons)  # at each row that is read
        self.heads = Heads(
            config.dim, answered, len(config.quantiles), allocation=config.allocation
        )

    def _decoder(self) -> Decoder:
        """Return the decoder of the last bars of the window and a placeholder a horizon."""
        config = self.config
        first, last = config.window - config.start_token, config.window - 1
        rows = [*range(first, config.window), *(last + bars for bars in config.horizons)]
        code = torch.empty(len(rows), config.dim)
        if not code.is_meta:
            code = sinusoidal_table(torch.tensor(rows), config.dim, rows[-1] + 1)
        hidden = max(1, round(config.dim * config.mlp_ratio))
        return Decoder(
            LayerSizes(config.dim, config.heads, hidden, config.factor, config.dropout),
            config.features,
            code,
            layers=config.decoder_layers,
            start=config.start_token,
            seed=config.seed + config.layers,
        )

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Outputs:
        """Forecast the last bar of each window *x* [batch, window, features]: [batch, 1, ...].

        *positions* [.., window] are absolute bar numbers, for what clocks say. Raises
        ``AttentionInvalid`` on a window of another length.
        """
        return self._read_out(self._run(x, positions, None))

    def trace(self, x: Tensor, positions: Tensor | None = None) -> Trace:
        """Forecast as ``forward`` does, and return what explains it."""
        kept = Kept()
        outputs = self._read_out(self._run(x, positions, kept))
        if self.decoder is None:
            attending = [read for read in kept.reads if read.residual]
            top = attending[-1].shape[2]
            tops = [(read, (read.shape[2] - 1,)) for read in attending]
            wide = torch.promote_types(x.dtype, torch.float32)
            start = last_bar(x[:, 0].to(wide), top)
            return Trace(outputs, kept.reads, start, kept.attended, plain_bars, [*tops])
        first, count = self.config.start_token, len(self.decoder.get_buffer("code"))
        kind = torch.promote_types(x.dtype, torch.float32)
        tokens = torch.zeros(len(x), 1, count, dtype=kind, device=x.device)
        tokens[..., first:] = 1.0 / (count - first)
        memory = kept.reads[-1].shape[3]
        start = {TOKENS: tokens, "bars": tokens.new_zeros(len(x), 1, memory)}
        places = tuple(range(first, count))
        decided: list[tuple[Read, tuple[int, ...]]] = [
            (read, places if read.target == TOKENS else (read.shape[2] - 1,))
            for read in kept.reads
            if read.residual
        ]
        return Trace(
            outputs, kept.reads, start, kept.attended, lambda of: (bars_of(of, first), ()), decided
        )

    def attribution_by_layer(
        self, x: Tensor, positions: Tensor, *, half: bool = False
    ) -> list[LayerAttribution]:
        """Attribute one window layer by layer, each with the distilling below it.

        A head of a distilled layer looks at positions; they are carried to the bars on which
        they rest (docs/attention.md, A20).
        """
        del half
        reads = self.trace(x, positions).reads
        found: list[LayerAttribution] = []
        own: list[Read] = []  # of the layer that comes next
        below: list[Taps] = []
        for read in reads:
            if read.target == TOKENS:
                break
            own.append(read)
            if isinstance(read, MapRead):
                below.append(read.taps)
                continue
            rows = read.rows([read.shape[2] - 1])[:, :, 0]  # [1, head, position]
            for taps in reversed(below):
                rows = push_taps(taps, rows)
            age = _ages(read.shape[3], self.config.window, x.device)
            found.append(LayerAttribution(rows[0], age, partial(_carry, own)))
            own = []
        if self.decoder is None:
            return found
        pairs = list(filter(lambda read: read.target == TOKENS, reads))
        layers = [DecoderReads(*pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)]  # type: ignore[arg-type]
        return beside_decoder(
            found, below, layers, start=self.config.start_token, window=self.config.window
        )

    def multiplications(self) -> Multiplications | None:
        """Sum those of its layers; of the last one, the decided bar's alone, densely too.

        None with a decoder, which also attends densely.
        """
        if self.decoder is not None:
            return None
        *below, last = self.config.lengths
        counts = (multiplications(time, factor=self.config.factor) for time in below)
        return sum(counts, Multiplications(2 * last, 2 * last, 2 * last))

    def named_states(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each stage's name and output for a window *x*, first to last."""
        state = self._enter(x, None)
        yield "embed", state
        for depth in range(self.config.layers):
            state = self._layer(depth, state, None)
            yield f"blocks.{depth}", state
        if self.decoder is not None:
            state = self._decode(x, None, state, None)
            yield "decoder", state
        for name, output in self._read_out(state)._asdict().items():
            if output is not None:
                yield f"heads.{name}", output

    def _run(self, x: Tensor, positions: Tensor | None, kept: Kept | None) -> Tensor:
        state = self._enter(x, positions)
        for depth in range(self.config.layers):
            state = self._layer(depth, state, kept)
        return state if self.decoder is None else self._decode(x, positions, state, kept)

    def _decode(
        self,
        x: Tensor,
        positions: Tensor | None,
        state: Tensor,
        kept: Kept | None,
    ) -> Tensor:
        """Return the placeholders [batch, horizon, dim] that read the encoder's last *state*."""
        assert self.decoder is not None
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        ahead = torch.tensor(self.config.horizons, device=positions.device)
        given = positions[..., -self.config.start_token :]
        written = torch.cat((given, positions[..., -1:] + ahead), dim=-1)
        memory = self.norm(state)
        return self.decoder(self._timed(self.decoder.enter(x), written), memory, kept)

    def _enter(self, x: Tensor, positions: Tensor | None) -> Tensor:
        if x.shape[1] != self.config.window:
            raise AttentionInvalid(
                f"This network takes windows of {self.config.window} bars, not {x.shape[1]}; cut "
                "or warm the window."
            )
        state: Tensor = self.embed(x) + self.get_buffer("place").to(x.dtype)
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        return self._timed(state, positions)

    def _timed(self, state: Tensor, positions: Tensor) -> Tensor:
        """Return *state* with what the clocks say at *positions*."""
        return state if self.clock is None else state + self.clock(positions)

    def _layer(self, depth: int, state: Tensor, kept: Kept | None) -> Tensor:
        """Run block *depth*, and halve time before it unless it is the first.

        Of the last block only the decided bar is computed, where no decoder reads the others.
        """
        if depth and self.config.distil:
            state = self.distillings[depth - 1](state, kept)
        block = self.blocks[depth]
        assert isinstance(block, SparseBlock)
        if depth == self.config.layers - 1 and self.decoder is None:
            return block.decide(state, kept)
        return block(state, self.get_buffer(_SAMPLED.format(depth=depth)), kept)

    def _read_out(self, state: Tensor) -> Outputs:
        if self.decoder is None:
            return self.heads(self.norm(state[:, -1:]))
        each: Outputs = self.heads(state)  # [batch, horizon, 1, ...]
        return each.map(lambda part: part.transpose(1, 2))


def _ages(count: int, window: int, device: torch.device) -> Tensor:
    """Return how old the newest bar is that each position of a layer stands for."""
    return torch.arange(count - 1, -1, -1, device=device) * window // count


def _carry(reads: Sequence[Read], weights: Tensor) -> Tensor:
    """Return row weights [row, position] above *reads* as those below them."""
    return carry_down(reads, {"bars": weights[None]})["bars"][0]


register(
    ModelKind(
        "informer",
        "ProbSparse attention and distilling over one window",
        read=InformerConfig.read,
        make=InformerNetwork,
        backend=lambda _: "probsparse",
    )
)
