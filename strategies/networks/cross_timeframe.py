"""A transformer over the newest bars that reads closed bars of a slower timeframe or other symbol.

A layer has three blocks: the slower timeframe's bars attend to themselves, the bars to themselves,
both looking back only; then each bar reads the slower bars that have closed by its own close. Both
timeframes lie on the grid of absolute time and are rotated by the same clock, a bar of the run, so
that a head sees how long ago a slower bar closed. The rollout runs through all three blocks: the
weight of a slower bar is shared by the bars that make it. With ``other_symbol`` the slower bars are
that symbol's, whose features stand in each row after the bar's own.

The rules are docs/attention.md, A34, and docs/models.md, L53.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor, nn

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.attention.kernels import attend, cross_attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask, closed_keys
from tracepaper.strategies.attention.methods import carry_down
from tracepaper.strategies.attention.reads import Read
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import (
    AttendedPart,
    Heads,
    LayerAttribution,
    Network,
    Outputs,
    Trace,
    last_bar,
)
from tracepaper.strategies.networks.encodings import Phases, clock_code, turns
from tracepaper.strategies.networks.flash import Block, FlashConfig
from tracepaper.strategies.networks.keys import WINDOW_MAX
from tracepaper.strategies.networks.multi_timeframe import (
    FrameTokens,
    add_shares,
    frame_of,
    frame_parts,
)

_TOKENS_MAX: Final = 8_192
_BARS, _SLOWER = "bars", "slower"
"""The two streams."""


@dataclass(frozen=True, slots=True)
class CrossConfig(keys.ReadKeys):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    Of one-minute bars the defaults are 96 minutes and the last 64 quarters of an hour.
    """

    features: keys.Features = 78
    dim: keys.Dim = 32
    layers: keys.Layers = 2
    heads: keys.Heads = 4
    bars: Annotated[
        int, Meta(ge=1, le=_TOKENS_MAX, description="Bars seen of the run's timeframe.")
    ] = 96
    frame: Annotated[
        int,
        Meta(
            ge=1,
            le=WINDOW_MAX,
            description="Bars per bar of the slower timeframe; 1 for another symbol's own bars.",
        ),
    ] = 15
    tokens: Annotated[
        int, Meta(ge=1, le=_TOKENS_MAX, description="Closed bars seen of the slower timeframe.")
    ] = 64
    horizons: keys.Horizons = (5, 30, 240)
    clock: keys.Clock = ("week",)
    interval_minutes: keys.IntervalMinutes = 1
    mlp_ratio: keys.MlpRatio = 4.0
    dropout: keys.Dropout = 0.0
    allocation: keys.Allocation = False
    quantiles: keys.Quantiles = ()
    other_symbol: Annotated[
        str,
        Meta(
            description="A symbol whose closed bars are asked in place of the own slower ones.",
        ),
    ] = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be built, with one sentence each."""
        least_frame = 1 if self.other_symbol else 2
        for name, least in (("bars", 1), ("frame", least_frame), ("tokens", 1)):
            if (value := getattr(self, name)) < least:
                raise ConfigInvalid(f"architecture.{name} is {value}; it must be at least {least}.")
        if self.window > WINDOW_MAX:
            raise ConfigInvalid(
                f"architecture.frame and tokens look back on {self.window:,} bars; use at most "
                f"{WINDOW_MAX:,}."
            )
        if self.other_symbol and self.features % 2:
            raise ConfigInvalid(
                f"architecture.features is {self.features}; with other_symbol half of them are the "
                "other symbol's, so it must be even."
            )
        self.trunk()

    @property
    def window(self) -> int:
        """Rows that one answer needs: its bars, or the slower ones and one that is open."""
        return max(self.bars, self.frame * (self.tokens + (self.frame > 1)))

    @property
    def columns(self) -> tuple[slice, slice]:
        """The columns of a row that are a bar's own, and those of the slower or other bars."""
        own = slice(self.features // 2 if self.other_symbol else self.features)
        return own, slice(own.stop, None) if self.other_symbol else own

    @property
    def receptive_field(self) -> int:
        """How many rows one answer depends on, at most."""
        return self.window

    def trunk(self) -> FlashConfig:
        """Return what a block is made by; raise ``ConfigInvalid`` where none can be."""
        return FlashConfig(
            features=self.features,
            dim=self.dim,
            layers=self.layers,
            heads=self.heads,
            window=self.bars,
            horizons=self.horizons,
            clock=self.clock,
            interval_minutes=self.interval_minutes,
            mlp_ratio=self.mlp_ratio,
            mask="causal",
            dropout=self.dropout,
            allocation=self.allocation,
            quantiles=self.quantiles,
        )


class _Streams(NamedTuple):
    """The states of both timeframes, and what all layers share."""

    bars: Tensor  # [batch, bar, dim]
    slower: Tensor  # [batch, token, dim]
    phases: tuple[Phases, Phases]  # of the bars, and of the slower ones
    seen: Tensor  # [batch, bar] int64: slower bars that have closed by the bar's close


class _Read(NamedTuple):
    """A read of one layer, and the A·V that it gave."""

    read: Layer
    attended: Tensor  # [batch, head, query, dim]


class CrossLayer(nn.Module):
    """A block of each timeframe, and one by which the bars read the slower timeframe."""

    def __init__(self, config: FlashConfig, depth: int) -> None:
        super().__init__()
        self.slower = Block(config, depth)
        self.bars = Block(config, depth)
        self.read = Block(config, depth)

    def forward(self, given: _Streams, backend: str, kept: list[_Read] | None = None) -> _Streams:
        """Return *given* with the states above this layer; add its three reads to *kept*."""
        near, far = given.phases
        slower = self._within(self.slower, _SLOWER, given.slower, far, backend, kept)
        bars = self._within(self.bars, _BARS, given.bars, near, backend, kept)
        # One block's queries are of the bars, its keys and values of the slower timeframe.
        query = self.read.project(bars, near).query
        _, key, value = self.read.project(slower, far)
        attended, logsumexp = cross_attend(query, key, value, given.seen)
        if kept is not None:
            depth = len(kept) // 3
            read = Layer(
                query, key, value, logsumexp, Mask(causal=False, seen=given.seen),
                output_weight=self.read.project_out.weight,
                target=_BARS, source=_SLOWER, step=2 * depth + 1, layer=depth,
            )  # fmt: skip
            kept.append(_Read(read, attended))
        return given._replace(bars=self.read.finish(bars, attended), slower=slower)

    @staticmethod
    def _within(
        block: Block,
        stream: str,
        state: Tensor,
        phases: Phases,
        backend: str,
        kept: list[_Read] | None,
    ) -> Tensor:
        """Return the *state* of one stream after it attended to itself, looking back only."""
        query, key, value = block.project(state, phases)
        attended, logsumexp = attend(query, key, value, Mask(), backend=backend, checked=False)
        if kept is not None:
            depth = len(kept) // 3
            read = Layer(
                query, key, value, logsumexp, output_weight=block.project_out.weight,
                target=stream, source=stream, step=2 * depth, layer=depth,
            )  # fmt: skip
            kept.append(_Read(read, attended))
        return block.finish(state, attended)


class CrossNetwork(Network):
    """A window of feature rows in, the forecast of its last bar out."""

    config: CrossConfig
    rows_a_pass = 65_536

    def __init__(self, config: CrossConfig) -> None:
        super().__init__()
        # Set here alone, so that a narrower type than the base's is safe.
        self.config = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.backend = "auto"  # of ``attend``
        trunk = config.trunk()
        wide = config.columns[0].stop
        self.embed = nn.Linear(wide, config.dim)
        self.embed_slower = nn.Linear(2 * wide, config.dim)
        self.clock = clock_code(config.dim, config.interval_minutes, config.clock)
        self.layers = nn.ModuleList(CrossLayer(trunk, depth) for depth in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        self.heads = Heads(
            config.dim, len(config.horizons), len(config.quantiles), allocation=config.allocation
        )

    def attend_by(self, backend: str) -> bool:
        """Attend within a timeframe by the kernel *backend*."""
        self.backend = backend
        return True

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Outputs:
        """Forecast the last bar of each window *x* [batch, window, features]: [batch, 1, ...].

        *positions* [.., window] are absolute bar numbers, on whose grid the slower timeframe lies.
        Raises ``AttentionInvalid`` on a window of another length.
        """
        state, _ = self.enter(x, positions)
        for layer in self.layers:
            state = layer(state, self.backend)
        return self._read_out(state)

    def trace(self, x: Tensor, positions: Tensor | None = None) -> Trace:
        """Forecast as ``forward`` does, and return what explains it.

        Three reads a layer: within each timeframe, then across. The parts are the slower bars,
        then the bars themselves, and two rows of confidence a layer are the bar's attention to the
        bars, and its read of the slower timeframe.
        """
        kept: list[_Read] = []
        state, frame = self.enter(x, positions)
        for layer in self.layers:
            state = layer(state, self.backend, kept)
        reads = [one.read for one in kept]
        start = last_bar(reads[0].logsumexp, self.config.bars)
        start[_SLOWER] = start[_BARS].new_zeros(len(x), 1, self.config.tokens)
        last = (self.config.bars - 1,)
        return Trace(
            self._read_out(state),
            [*reads],
            start,
            [one.attended for one in kept],
            lambda weights: self._to_bars(weights, frame),
            [(read, last) for read in reads if read.target == _BARS],
        )

    def enter(self, x: Tensor, positions: Tensor | None) -> tuple[_Streams, FrameTokens]:
        """Return the first states of windows *x*, and the bars of the slower timeframe."""
        config = self.config
        if x.shape[1] != config.window:
            raise AttentionInvalid(
                f"This network takes windows of {config.window} bars, not {x.shape[1]}; cut or "
                "warm the window."
            )
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        positions = positions.expand(x.shape[:2])
        near, far = config.columns
        frame = frame_of(x[..., far], positions, wide=config.frame, count=config.tokens)
        # A bar that lacks its last rows is over all the same, and no sooner.
        closes = (frame.close // config.frame + 1) * config.frame - 1
        places = positions[:, -config.bars :]
        bars, slower = self.embed(x[:, -config.bars :, near]), self.embed_slower(frame.rows)
        if self.clock is not None:
            bars, slower = bars + self.clock(places), slower + self.clock(closes)
        phases = (self._phases(places), self._phases(closes))
        return _Streams(bars, slower, phases, closed_keys(places, closes)), frame

    def _phases(self, positions: Tensor) -> Phases:
        """Return the tables that rotate the rows at *positions* [batch, time]."""
        cosine, sine = turns(positions, self.config.dim // self.config.heads)
        return Phases(cosine[:, :, None, None], sine[:, :, None, None], None)

    def _read_out(self, state: _Streams) -> Outputs:
        return self.heads(self.norm(state.bars[:, -1:]))

    def _to_bars(
        self, weights: Mapping[str, Tensor], frame: FrameTokens
    ) -> tuple[Tensor, tuple[AttendedPart, ...]]:
        """Return the *weights* of one window on its rows, and by part."""
        slower, bars = weights[_SLOWER], weights[_BARS]
        first = self.config.window - self.config.bars
        parts = [
            part._replace(symbol=self.config.other_symbol)
            for part in frame_parts(self.config.frame, frame, slower[0])
        ]
        parts += [
            AttendedPart(1, first + at, 1, share) for at, share in enumerate(bars[0].tolist())
        ]
        return self._by_bar(torch.cat((slower, bars), dim=1), frame), tuple(parts)

    def _by_bar(self, weights: Tensor, frame: FrameTokens) -> Tensor:
        """Return *weights* [row, token + bar] on the window's rows: [row, window]."""
        slower, bars = weights.split((self.config.tokens, self.config.bars), dim=1)
        by_bar = weights.new_zeros(len(weights), self.config.window)
        by_bar[:, -self.config.bars :] = bars
        add_shares(by_bar, frame, slower)
        return by_bar

    def attribution_by_layer(
        self, x: Tensor, positions: Tensor, *, half: bool = False
    ) -> list[LayerAttribution]:
        """Attribute a window step by step, two a layer: within both timeframes, then across."""
        frame = self.enter(x, positions)[1]
        with self._halved(x, half):
            seen = self.trace(x, positions)
        tokens, bars = self.config.tokens, self.config.bars
        newest = torch.arange(bars - 1, -1, -1, device=x.device)
        age = torch.cat((self.config.window - (frame.start + frame.length)[0], newest))
        steps = [seen.reads[at : at + count] for at, count in self._steps(len(seen.reads))]

        def carried(step: Sequence[Read], weights: Tensor) -> Tensor:
            slower, own = weights[None].split((tokens, bars), dim=2)
            below = carry_down(step, {_SLOWER: slower, _BARS: own})
            return torch.cat((below[_SLOWER], below[_BARS]), dim=2)[0]

        found = []
        for number, (step, (read, at)) in enumerate(zip(steps, seen.decided, strict=True)):
            rows = read.rows(at)[0, :, 0]  # [head, key]
            kept = rows.new_zeros(len(rows), tokens + bars)
            kept[:, slice(tokens) if read.source == _SLOWER else slice(tokens, None)] = rows

            def carry(
                weights: Tensor, step: Sequence[Read] = step, *, lowest: bool = number == 0
            ) -> Tensor:
                below = carried(step, weights)
                return self._by_bar(below, frame) if lowest else below

            found.append(LayerAttribution(self._by_bar(kept, frame), age, carry))
        return found

    @staticmethod
    def _steps(reads: int) -> list[tuple[int, int]]:
        """Return where the reads of each step begin, and how many they are: two, then one."""
        return [(at + skip, count) for at in range(0, reads, 3) for skip, count in ((0, 2), (2, 1))]

    def named_states(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each stage's name and output for windows *x*, first to last."""
        state, _ = self.enter(x, None)
        yield "embed", state.bars
        yield "embed_slower", state.slower
        for depth, layer in enumerate(self.layers):
            state = layer(state, self.backend)
            yield f"layers.{depth}.slower", state.slower
            yield f"layers.{depth}.bars", state.bars
        for name, output in self._read_out(state)._asdict().items():
            if output is not None:
                yield f"heads.{name}", output


register(
    ModelKind(
        "cross",
        "a transformer over the newest bars that reads a slower timeframe or another symbol",
        read=CrossConfig.read,
        make=CrossNetwork,
        backend=lambda _: None,
    )
)
