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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, NamedTuple

from msgspec import Meta
from torch import Tensor, nn

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.attention.kernels import cross_attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask, closed_keys
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import AttendedPart, Network, Trace, heads_of
from tracepaper.strategies.networks.encodings import Phases, clock_code, turns
from tracepaper.strategies.networks.flash import (
    AttentionConfig,
    Block,
    BlockOptions,
    attend_by_block,
    each_block,
)
from tracepaper.strategies.networks.keys import LOOKS_BACK, WINDOW_MAX, Rule
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
class CrossConfig(AttentionConfig):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    Of one-minute bars the defaults are 96 minutes and the last 64 quarters of an hour.
    """

    dim: keys.Dim = 32
    layers: keys.Layers = 2
    clock: keys.Clock = ("week",)
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
    other_symbol: Annotated[
        str,
        Meta(description="A symbol whose closed bars are asked in place of the own slower ones."),
    ] = ""

    RULES: ClassVar[tuple[keys.Rule, ...]] = (
        keys.EVEN_HEADS,
        Rule(
            lambda of: of.frame > 1 or of.other_symbol,
            "frame is {of.frame}; it must be at least 2",
        ),
        LOOKS_BACK,
        Rule(
            lambda of: not (of.other_symbol and of.features % 2),
            "features is {of.features}; half of them are other_symbol's, so it must be even",
        ),
    )

    @property
    def window(self) -> int:
        """Rows that one answer needs: its bars, or the slower ones and one that is open."""
        return max(self.bars, self.frame * (self.tokens + (self.frame > 1)))

    @property
    def columns(self) -> tuple[slice, slice]:
        """The columns of a row that are a bar's own, and those of the slower or other bars."""
        bar = slice(self.features // 2 if self.other_symbol else self.features)
        return bar, slice(bar.stop, None) if self.other_symbol else bar


class _Stream(NamedTuple):
    """The tokens of one timeframe."""

    state: Tensor  # [batch, token, dim]
    phases: Phases


class CrossNetwork(Network):
    """A window of feature rows in, the forecast of its last bar out."""

    config: CrossConfig
    rows_a_pass: ClassVar[int | None] = 65_536

    def __init__(self, config: CrossConfig) -> None:
        super().__init__(config)
        self.backend = "auto"  # of ``attend``
        options, wide = BlockOptions.of(config), config.columns[0].stop
        self.embed = nn.Linear(wide, config.dim)
        self.embed_slower = nn.Linear(2 * wide, config.dim)
        self.clock = clock_code(config.dim, config.interval_minutes, config.clock)
        # Of a layer: within the slower timeframe, within the bars, and from these to those.
        self.layers = nn.ModuleList(
            nn.ModuleList(Block(options, depth) for _ in range(3)) for depth in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.heads = heads_of(config)

    def attend_by(self, backend: str) -> bool:
        """Attend within a timeframe by the kernel *backend*."""
        self.backend = backend
        return True

    def run(self, x: Tensor, positions: Tensor, trace: Trace | None) -> Tensor:
        """Return the states of the bars.

        A layer has three reads: within each timeframe, then across. The parts are the slower bars,
        then the bars themselves, and two rows of confidence a layer are the bar's attention to the
        bars, and its read of the slower timeframe.
        """
        (bars, near), (slower, far), visible, frame = self.enter(x, positions)
        if trace is not None:
            trace.ages[_SLOWER] = self.config.window - (frame.start + frame.length)[0]
            trace.to_bars = lambda weights: self._to_bars(weights, frame)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            within_slower, within_bars, read = each_block(layer)
            slower = self._within(within_slower, _Stream(slower, far), trace, _SLOWER)
            bars = self._within(within_bars, _Stream(bars, near), trace, _BARS)
            # One block's queries are of the bars, its keys and values of the slower timeframe.
            query = read.project(bars, near).query
            _, key, value = read.project(slower, far)
            attended, logsumexp = cross_attend(query, key, value, visible)
            if trace is not None:
                crossed = Layer(
                    query, key, value, logsumexp, Mask(causal=False, seen=visible),
                    output_weight=read.project_out.weight, target=_BARS, source=_SLOWER,
                )  # fmt: skip
                trace.attend(crossed, attended, is_layer=False)
            bars = read.finish(bars, attended)
        return bars

    def _within(self, block: Block, given: _Stream, trace: Trace | None, stream: str) -> Tensor:
        """Return the state of one stream after it attended to itself, looking back only."""
        state, phases = given
        is_first = stream == _SLOWER
        attended = attend_by_block(
            block, block.project(state, phases), Mask(), trace, backend=self.backend,
            stream=stream, is_layer=is_first, decides=not is_first,
        )  # fmt: skip
        return block.finish(state, attended)

    def enter(self, x: Tensor, positions: Tensor) -> tuple[_Stream, _Stream, Tensor, FrameTokens]:
        """Return both streams of windows *x*, the bars first, and the slower timeframe's bars.

        Between them how many of these have closed by each bar's close: [batch, bar] int64.
        """
        config = self.config
        self._require_window(x)
        positions = positions.expand(x.shape[:2])
        near, far = config.columns
        frame = frame_of(x[..., far], positions, wide=config.frame, count=config.tokens)
        # A bar that lacks its last rows is over all the same, and no sooner.
        closes = (frame.close // config.frame + 1) * config.frame - 1
        places = positions[:, -config.bars :]
        bars, slower = self.embed(x[:, -config.bars :, near]), self.embed_slower(frame.rows)
        if self.clock is not None:
            bars, slower = bars + self.clock(places), slower + self.clock(closes)
        streams = _Stream(bars, self._phases(places)), _Stream(slower, self._phases(closes))
        return *streams, closed_keys(places, closes), frame

    def _phases(self, positions: Tensor) -> Phases:
        """Return the tables that rotate the rows at *positions* [batch, time]."""
        cosine, sine = turns(positions, self.config.head_dim)
        return Phases(cosine[:, :, None, None], sine[:, :, None, None], None)

    def _to_bars(
        self, weights: Mapping[str, Tensor], frame: FrameTokens
    ) -> tuple[Tensor, tuple[AttendedPart, ...]]:
        """Return the *weights* of one window on its rows, and by part."""
        slower, bars = weights[_SLOWER], weights[_BARS]
        by_bar = bars.new_zeros(len(bars), self.config.window)
        by_bar[:, -self.config.bars :] = bars
        add_shares(by_bar, frame, slower)
        first = self.config.window - self.config.bars
        parts = [
            part._replace(symbol=self.config.other_symbol)
            for part in frame_parts(self.config.frame, frame, slower[0])
        ]
        parts += [
            AttendedPart(1, first + at, 1, share) for at, share in enumerate(bars[0].tolist())
        ]
        return by_bar, tuple(parts)


register(
    ModelKind(
        "cross",
        "a transformer over the newest bars that reads a slower timeframe or another symbol",
        read=CrossConfig.read,
        make=CrossNetwork,
        backend=lambda _: None,
    )
)
