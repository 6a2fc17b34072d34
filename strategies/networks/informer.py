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
from typing import Annotated, Final, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.attention.checks import check_share, check_start
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.probsparse import (
    STRIDE,
    TAPS,
    Multiplications,
    SparseRows,
    Stage,
    Taps,
    attend_rows,
    attend_sparsely,
    carry_stage,
    convolution_taps,
    convolve,
    decided_confidence,
    decided_rows,
    multiplications,
    pooling_taps,
    push_taps,
    rollout_stages,
    sample_keys,
)
from tracepaper.strategies.attention.rollout import Rollout
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import (
    ExplainedOutputs,
    Heads,
    LayerAttribution,
    Network,
    Outputs,
    WatchedBlocks,
)
from tracepaper.strategies.networks.encodings import check_clocks, clock_code, sinusoidal_table
from tracepaper.strategies.networks.informer_decoder import (
    Decoder,
    DecoderReads,
    LayerSizes,
    beside_decoder,
    carry_decoder,
    decoder_confidence,
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


class Traced(NamedTuple):
    """A window's forecast, and the stages that its rollout is made of, in forward order."""

    outputs: Outputs
    stages: list[Stage]


class Decoded(NamedTuple):
    """The same, and what each layer of the decoder attended with, the first layer first."""

    outputs: Outputs
    stages: list[Stage]
    decoder: list[DecoderReads]  # empty without one


class Distilling(nn.Module):
    """Convolution of three taps, norm, ELU and max-pooling: half as many positions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(dim, dim, TAPS)  # holds the weights, as it starts them
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, stages: list[Stage] | None = None) -> Tensor:
        """Map [batch, time, dim] to [batch, (time + 1) // 2, dim]; add its maps to *stages*."""
        # A product a tap instead of the convolution: its terms are what explains it.
        bias = self.convolution.bias
        assert bias is not None
        mixed, products = convolve(x, self.convolution.weight, bias)
        active = functional.elu(self.norm(mixed)).transpose(1, 2)  # [batch, dim, time]
        pooled, chosen = functional.max_pool1d_with_indices(
            active, [TAPS], stride=[STRIDE], padding=[1], return_indices=True
        )
        if stages is not None:
            stages.append(convolution_taps(products))
            stages.append(pooling_taps(chosen, x.shape[1]))
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

    def forward(self, x: Tensor, samples: Tensor, stages: list[Stage] | None = None) -> Tensor:
        """Map [batch, time, dim] to the same; the last row always attends."""
        query, key, value = self._project(x)
        attended = attend_sparsely(
            query, key, value, Mask.full(), samples, factor=self.factor, always=[x.shape[1] - 1]
        )
        if stages is not None:
            stages.append(attended.rows)
        return self._finish(x, attended.output)

    def decide(self, x: Tensor, stages: list[Stage] | None = None) -> Tensor:
        """Return the last row of ``forward``, [batch, 1, dim]: the only one that is read out.

        That row always attends, so no query has to be ranked.
        """
        query, key, value = self._project(x)
        attended = attend_rows(query, key, value, [x.shape[1] - 1])
        if stages is not None:
            stages.append(attended.rows)
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

    def trace(self, x: Tensor, positions: Tensor | None = None) -> Traced:
        """Forecast as ``forward`` does, and return the stages for ``rollout_stages``."""
        outputs, stages, _ = self.trace_decoder(x, positions)
        return Traced(outputs, stages)

    def trace_decoder(self, x: Tensor, positions: Tensor | None = None) -> Decoded:
        """Forecast as ``forward`` does, and return the stages and reads for ``rollout``."""
        stages: list[Stage] = []
        decoder: list[DecoderReads] = []
        outputs = self._read_out(self._run(x, positions, stages, decoder))
        return Decoded(outputs, stages, decoder)

    def look(self, x: Tensor, positions: Tensor, *, half: bool = False) -> ExplainedOutputs:
        """Forecast one window *x* [1, window, features] and explain its last bar.

        It always runs in float32, whatever *half* asks for.
        """
        del half
        outputs, stages, decoder = self.trace_decoder(x, positions)
        attended = [stage for stage in stages if isinstance(stage, SparseRows)]
        sure = [decided_confidence(rows, rows.weights.shape[-1] - 1)[0] for rows in attended]
        if decoder:
            sure += decoder_confidence(decoder, self.config.start_token)
            return ExplainedOutputs(outputs, self.rollout(stages, decoder), torch.stack(sure))
        top = attended[-1].weights.shape[-1] - 1
        return ExplainedOutputs(outputs, rollout_stages(stages, [top]), torch.stack(sure))

    def rollout(
        self,
        stages: Sequence[Stage],
        decoder: Sequence[DecoderReads],
        *,
        residual_weight: float = 0.5,
        start_layer: int = 0,
    ) -> Rollout:
        """Return where the placeholders of one window looked, evenly taken: [1, 1, window].

        *start_layer* leaves out layers of attention of the encoder.
        """
        check_share(residual_weight, "residual_weight")
        layer = check_start(start_layer, self.config.layers)
        written = carry_decoder(decoder, self.config.start_token, residual_weight=residual_weight)
        weights, number = written.memory, self.config.layers
        for stage in reversed(stages):
            number -= isinstance(stage, SparseRows)
            if isinstance(stage, Taps) or number >= layer:
                weights = carry_stage(stage, weights, residual_weight=residual_weight)
        weights[..., -self.config.start_token :] += written.tokens
        return Rollout(weights, weights.new_zeros(1, 1))

    def attribution_by_layer(
        self, x: Tensor, positions: Tensor, *, half: bool = False
    ) -> list[LayerAttribution]:
        """Attribute one window layer by layer, each with the distilling below it.

        A head of a distilled layer looks at positions; they are carried to the bars on which
        they rest (docs/attention.md, A20).
        """
        del half
        seen = self.trace_decoder(x, positions)
        found: list[LayerAttribution] = []
        own: list[Stage] = []  # of the layer that comes next
        below: list[Taps] = []
        for stage in seen.stages:
            own.append(stage)
            if isinstance(stage, Taps):
                below.append(stage)
                continue
            rows = decided_rows(stage, stage.weights.shape[-1] - 1)  # [1, head, position]
            for taps in reversed(below):
                rows = push_taps(taps, rows)
            found.append(
                LayerAttribution(rows[0], _ages(stage, self.config.window), partial(_carry, own))
            )
            own = []
        if seen.decoder:
            start, window = self.config.start_token, self.config.window
            return beside_decoder(found, below, seen.decoder, start=start, window=window)
        return found

    def multiplications(self) -> Multiplications | None:
        """Sum those of its layers; of the last one, the decided bar's alone, densely too.

        None with a decoder, which also attends densely.
        """
        if self.decoder is not None:
            return None
        *below, last = self.config.lengths
        counts = (multiplications(time, factor=self.config.factor) for time in below)
        return sum(counts, Multiplications(2 * last, 2 * last, 2 * last))

    def watched_blocks(self) -> WatchedBlocks | None:
        """Return its blocks; None with a decoder, whose queries have projections of their own."""
        if self.decoder is not None:
            return None
        return WatchedBlocks(tuple(self.blocks), self.config.heads)

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

    def _run(
        self,
        x: Tensor,
        positions: Tensor | None,
        stages: list[Stage] | None,
        decoder: list[DecoderReads] | None = None,
    ) -> Tensor:
        state = self._enter(x, positions)
        for depth in range(self.config.layers):
            state = self._layer(depth, state, stages)
        return state if self.decoder is None else self._decode(x, positions, state, decoder)

    def _decode(
        self,
        x: Tensor,
        positions: Tensor | None,
        state: Tensor,
        kept: list[DecoderReads] | None,
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

    def _layer(self, depth: int, state: Tensor, stages: list[Stage] | None) -> Tensor:
        """Run block *depth*, and halve time before it unless it is the first.

        Of the last block only the decided bar is computed, where no decoder reads the others.
        """
        if depth and self.config.distil:
            state = self.distillings[depth - 1](state, stages)
        block = self.blocks[depth]
        assert isinstance(block, SparseBlock)
        if depth == self.config.layers - 1 and self.decoder is None:
            return block.decide(state, stages)
        return block(state, self.get_buffer(_SAMPLED.format(depth=depth)), stages)

    def _read_out(self, state: Tensor) -> Outputs:
        if self.decoder is None:
            return self.heads(self.norm(state[:, -1:]))
        each: Outputs = self.heads(state)  # [batch, horizon, 1, ...]
        return each.map(lambda part: part.transpose(1, 2))


def _ages(rows: SparseRows, window: int) -> Tensor:
    """Return how old the newest bar is that each position of a layer stands for."""
    count = rows.weights.shape[-1]
    return torch.arange(count - 1, -1, -1, device=rows.weights.device) * window // count


def _carry(stages: Sequence[Stage], weights: Tensor) -> Tensor:
    """Return row weights [row, position] above *stages* as those below them."""
    carried = weights[None]
    for stage in reversed(stages):
        carried = carry_stage(stage, carried)
    return carried[0]


register(
    ModelKind(
        "informer",
        "ProbSparse attention and distilling over one window",
        read=InformerConfig.read,
        make=InformerNetwork,
        backend=lambda _: "probsparse",
    )
)
