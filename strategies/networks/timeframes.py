"""Transformers over bars of several timeframes: in one sequence, or one that reads another.

Frames follow absolute time: an hour's token covers a clock hour. An open hour has no token; the
frames below it cover its bars. A token holds the mean of its rows, the last of them and the time of
its close. In a rollout its rows share its weight equally.

``multiscale`` puts the tokens of all frames into one sequence: thousands of minutes take some
hundred tokens. A layer of ``cross`` has three blocks: the slower timeframe's bars attend to
themselves, the bars to themselves, both causally; then each bar reads the slower bars that have
closed by its own close. The positions of both streams count bars of the run, so that a head sees
how long ago a slower bar closed. With ``other_symbol`` the slower bars are that symbol's, whose
features follow the bar's own in each row.

The rules are docs/attention.md, A34, and docs/models.md, L53.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, ClassVar, Final, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor, nn

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.attention.kernels import cross_attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask, closed_keys
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import AttendedPart, Network, Trace, heads_of
from tracepaper.strategies.networks.encodings import (
    Phases,
    clock_code,
    clock_columns,
    clock_of,
    turns,
)
from tracepaper.strategies.networks.flash import (
    AttentionConfig,
    Block,
    BlockOptions,
    Transformer,
    attend_by_block,
    each_block,
)
from tracepaper.strategies.networks.keys import LOOKS_BACK, WINDOW_MAX, Rule

_TOKENS_MAX: Final = 8_192
_BARS, _SLOWER = "bars", "slower"
"""The two streams of ``cross``."""
_Counts = tuple[Annotated[int, Meta(ge=1, le=WINDOW_MAX)], ...]


@dataclass(frozen=True, slots=True)
class MultiscaleConfig(AttentionConfig):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``frames`` is the number of bars per bar of each timeframe, ``tokens`` the number of closed bars
    seen of each. On one-minute bars the default frames are 1, 5, 15, 60 and 240 minutes.
    """

    dim: keys.Dim = 32
    layers: keys.Layers = 3
    clock: keys.Clock = ("week",)
    frames: Annotated[_Counts, Meta(description="Bars per bar of each timeframe.")] = (
        1, 5, 15, 60, 240,
    )  # fmt: skip
    tokens: Annotated[_Counts, Meta(description="Closed bars seen of each timeframe.")] = (
        96, 48, 48, 48, 24,
    )  # fmt: skip

    RULES: ClassVar[tuple[keys.Rule, ...]] = (
        keys.EVEN_HEADS,
        Rule(
            lambda of: of.frames[:1] == (1,),
            "frames must begin with 1, the bars themselves",
        ),
        Rule(
            lambda of: all(wide > near and wide % near == 0 for near, wide in pairwise(of.frames)),
            "frames is {of.frames}; each must be a multiple of the one before it",
        ),
        Rule(
            lambda of: len(of.frames) == len(of.tokens),
            "tokens must be a list of as many numbers as frames, one for each",
        ),
        Rule(lambda of: sum(of.tokens) <= _TOKENS_MAX, f"tokens sum to more than {_TOKENS_MAX:,}"),
        LOOKS_BACK,
    )

    @property
    def window(self) -> int:
        """Rows that one answer needs: those of the widest reach, with an open bar."""
        spans = zip(self.frames, self.tokens, strict=True)
        return max(wide * (count + (wide > 1)) for wide, count in spans)

    @property
    def token_features(self) -> int:
        """Columns of a token: mean and last row, the clocks at its close, and its frame."""
        return 2 * self.features + clock_columns(self.clock) + len(self.frames)


class FrameTokens(NamedTuple):
    """The tokens of one timeframe, oldest first, and the rows that they cover."""

    rows: Tensor  # [batch, token, 2 * feature]: the mean of its rows, then the last of them
    close: Tensor  # [batch, token] int64, the position of its last row
    start: Tensor  # [batch, token] int64, its first row's place in the window
    length: Tensor  # [batch, token] int64, how many rows it has


def frame_of(x: Tensor, positions: Tensor, *, wide: int, count: int) -> FrameTokens:
    """Return the newest *count* closed bars of *wide* rows in *x* [batch, time, feature].

    *positions* int64 [batch, time] ascend, and the last bar has just closed. A frame's bar begins
    at a multiple of *wide*. If rows are missing it has fewer, and without any it is no token.
    *time* must be at least ``wide * (count + 1)``, or *count* for single rows.
    """
    time = x.shape[1]
    if wide == 1:
        rows, start = x[:, -count:], torch.arange(time - count, time, device=x.device)
        start = start.expand(x.shape[0], count)
        return FrameTokens(
            torch.cat((rows, rows), dim=-1), positions[:, -count:], start, torch.ones_like(start)
        )
    before = time - wide * (count + 1)  # rows that none of the newest tokens can have
    x, positions = x[:, before:], positions[:, before:]
    bar = positions // wide
    closed = bar < (positions[:, -1:] + 1) // wide
    begins = torch.ones_like(closed)
    begins[:, 1:] = bar[:, 1:] != bar[:, :-1]
    number = (begins & closed).cumsum(dim=1)
    # -1 for rows older than the tokens, their count for open rows: the numbers never fall.
    token = (count - 1 - number[:, -1:] + number).clamp_min(-1).masked_fill(~closed, count)
    bounds = torch.searchsorted(
        token, torch.arange(count + 1, device=x.device).expand(x.shape[0], -1).contiguous()
    )
    start, end = bounds[:, :-1], bounds[:, 1:]
    place = start[:, :, None] + torch.arange(wide, device=x.device)  # [batch, token, wide]
    inside = place < end[:, :, None]
    taken = x.gather(
        1, place.clamp_max(x.shape[1] - 1).flatten(1)[..., None].expand(-1, -1, x.shape[2])
    )
    taken = taken.unflatten(1, (count, wide)).masked_fill(~inside[..., None], 0.0)
    length = end - start
    mean = taken.sum(dim=2) / length[..., None].clamp_min(1)
    last = (end - 1).clamp_min(0)
    newest = x.gather(1, last[..., None].expand(-1, -1, x.shape[2]))
    return FrameTokens(
        torch.cat((mean, newest), dim=-1), positions.gather(1, last), start + before, length
    )


def frame_parts(wide: int, frame: FrameTokens, shares: Tensor) -> list[AttendedPart]:
    """Return the *shares* [token] of the tokens of one window, each with its rows."""
    spans = (frame.start[0].tolist(), frame.length[0].tolist(), shares.tolist())
    return [AttendedPart(wide, *of) for of in zip(*spans, strict=True)]


def add_shares(by_bar: Tensor, frame: FrameTokens, shares: Tensor) -> None:
    """Add *shares* [row, token] to *by_bar* [row, window], each token's evenly to its rows."""
    first, length = frame.start[0].tolist(), frame.length[0].tolist()
    spread = (shares / frame.length[0]).unbind(1)
    for start, rows, each in zip(first, length, spread, strict=True):
        by_bar[:, start : start + rows] += each[:, None]


class MultiscaleNetwork(Transformer):
    """A window of feature rows in, the forecast of its last bar out."""

    config: MultiscaleConfig
    rows_a_pass: ClassVar[int | None] = 65_536

    def __init__(self, config: MultiscaleConfig) -> None:
        super().__init__(
            config,
            Mask.full(),
            encoding="learned",
            columns=config.token_features,
            length=sum(config.tokens),
            has_clock=False,  # the tokens have columns for it
        )

    def run(self, x: Tensor, positions: Tensor, trace: Trace | None) -> Tensor:
        """Return the states of the tokens, which are the explained parts, widest frame first."""
        tokens, frames = self.tokens(x, positions)
        if trace is not None:
            newest = torch.cat([(of.start + of.length)[0] for of in frames[::-1]])
            trace.ages["tokens"] = self.config.window - newest
            trace.to_bars = lambda weights: self._to_bars(weights["tokens"], frames)
        return super().run(tokens, torch.arange(tokens.shape[1], device=x.device), trace)

    def tokens(self, x: Tensor, positions: Tensor) -> tuple[Tensor, list[FrameTokens]]:
        """Return the tokens [batch, token, column] of windows *x*, widest frame first, and frames.

        The last token is the decided bar. Frames stand in the order of ``config.frames``.
        """
        self._require_window(x)
        positions = positions.expand(x.shape[:2])
        frames = [
            frame_of(x, positions, wide=wide, count=count)
            for wide, count in zip(self.config.frames, self.config.tokens, strict=True)
        ]
        kinds = torch.eye(len(frames), dtype=x.dtype, device=x.device)
        clock = partial(clock_of, self.config.clock, interval_minutes=self.config.interval_minutes)
        columns = [
            torch.cat(
                (
                    frame.rows,
                    clock(positions=frame.close).to(x.dtype),
                    kind.expand(*frame.close.shape, -1),
                ),
                dim=-1,
            )
            for frame, kind in zip(frames, kinds, strict=True)
        ]
        return torch.cat(columns[::-1], dim=1), frames

    def _to_bars(
        self, weights: Tensor, frames: Sequence[FrameTokens]
    ) -> tuple[Tensor, tuple[AttendedPart, ...]]:
        """Return *weights* [row, token] of one window on its rows, and the first row's by token.

        Tokens and *frames* are those of ``tokens``.
        """
        by_bar = weights.new_zeros(len(weights), self.config.window)
        parts: list[AttendedPart] = []
        each = weights.split(self.config.tokens[::-1], dim=1)
        for wide, frame, shares in zip(self.config.frames[::-1], frames[::-1], each, strict=True):
            parts += frame_parts(wide, frame, shares[0])
            add_shares(by_bar, frame, shares)
        return by_bar, tuple(parts)


register(
    ModelKind(
        "multiscale",
        "closed bars of several timeframes, each a token, in full attention",
        read=MultiscaleConfig.read,
        make=MultiscaleNetwork,
        backend=lambda _: None,
    )
)


# --- a timeframe that reads a slower one, or another symbol


@dataclass(frozen=True, slots=True)
class CrossConfig(AttentionConfig):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    On one-minute bars the defaults are 96 minutes and 64 bars of 15 minutes.
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
        """Rows that one answer needs: its bars, or the slower ones and an open one."""
        return max(self.bars, self.frame * (self.tokens + (self.frame > 1)))

    @property
    def columns(self) -> tuple[slice, slice]:
        """The columns of a row for its own bar, and those for the slower or other bars."""
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
        # Per layer: within the slower timeframe, within the bars, and from bars to slower ones.
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

        A layer has three reads: within each timeframe, then across. The explained parts are the
        slower bars, then the bars. A layer has two rows of confidence: the bar's attention to the
        bars, and to the slower timeframe.
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
            # This block takes its queries from the bars, its keys and values from the slower ones.
            query = read.project(bars, near).query
            _, key, value = read.project(slower, far)
            attended, logsumexp = cross_attend(query, key, value, visible)
            if trace is not None:
                crossed = Layer(
                    query, key, value, logsumexp, Mask(causal=False, leading_keys=visible),
                    output_weight=read.project_out.weight, target=_BARS, source=_SLOWER,
                )  # fmt: skip
                trace.attend(crossed, attended, is_layer=False)
            bars = read.finish(bars, attended)
        return bars

    def _within(self, block: Block, given: _Stream, trace: Trace | None, stream: str) -> Tensor:
        """Return the state of one stream after causal attention to itself."""
        state, phases = given
        is_first = stream == _SLOWER
        attended = attend_by_block(
            block, block.project(state, phases), Mask(), trace, backend=self.backend,
            stream=stream, is_layer=is_first, decides=not is_first,
        )  # fmt: skip
        return block.finish(state, attended)

    def enter(self, x: Tensor, positions: Tensor) -> tuple[_Stream, _Stream, Tensor, FrameTokens]:
        """Return the streams of bars and of slower bars, the visible counts, and the slower tokens.

        The counts [batch, bar] int64 are the slower bars that have closed by each bar's close.
        """
        config = self.config
        self._require_window(x)
        positions = positions.expand(x.shape[:2])
        near, far = config.columns
        frame = frame_of(x[..., far], positions, wide=config.frame, count=config.tokens)
        # A bar that lacks its last rows still closes on the grid of its frame.
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
        return Phases(cosine[:, :, None, None], sine[:, :, None, None])

    def _to_bars(
        self, weights: Mapping[str, Tensor], frame: FrameTokens
    ) -> tuple[Tensor, tuple[AttendedPart, ...]]:
        """Return the *weights* of one window on its rows, and the first row's by part."""
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
