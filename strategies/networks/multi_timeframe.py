"""A transformer over the closed bars of several timeframes in one sequence.

Each frame's bar is one token, made of the rows that it covers: their mean, the last of them and
where its close stands in time. Frames lie on the grid of absolute time, so an hour's token
covers a clock hour, and an hour that is not over is no token yet: its bars are seen in the frames
below it. A thousand minutes near and thousands far cost some hundred tokens. The rollout over
tokens says which frame and which bar was looked at; a token's weight is shared by its rows alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Final, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import (
    AttendedPart,
    LayerAttribution,
    Network,
    Outputs,
    Trace,
)
from tracepaper.strategies.networks.encodings import check_clocks, clock_columns, clock_of
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.networks.keys import WINDOW_MAX

_TOKENS_MAX: Final = 8_192


@dataclass(frozen=True, slots=True)
class MultiscaleConfig(keys.ReadKeys):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``frames`` says how many bars make one of each timeframe, ``tokens`` how many closed ones of
    each are seen: of one-minute bars the defaults are 1, 5, 15, 60 and 240 minutes.
    """

    features: keys.Features = 78
    dim: keys.Dim = 32
    layers: keys.Layers = 3
    heads: keys.Heads = 4
    frames: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=keys.WINDOW_MAX)], ...],
        Meta(description="Bars per bar of each timeframe."),
    ] = (1, 5, 15, 60, 240)
    tokens: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=keys.WINDOW_MAX)], ...],
        Meta(description="Closed bars seen of each timeframe."),
    ] = (96, 48, 48, 48, 24)
    horizons: keys.Horizons = (5, 30, 240)
    clock: keys.Clock = ("week",)
    interval_minutes: keys.IntervalMinutes = 1
    mlp_ratio: keys.MlpRatio = 4.0
    dropout: keys.Dropout = 0.0
    allocation: keys.Allocation = False
    quantiles: keys.Quantiles = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be built, with one sentence each."""
        for broken, sentence in self._rules():
            if broken:
                raise ConfigInvalid(f"architecture.{sentence}.")
        check_clocks(self.clock)
        self.trunk()

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        """Return the rules that are its own: whether each is broken, and what to do then."""
        frames, tokens = self.frames, self.tokens
        fit = bool(frames) and len(frames) == len(tokens)
        far = self.window if fit else 0
        return (
            (
                not frames or frames[0] != 1,
                "frames must begin with 1, the bars themselves",
            ),
            (
                any(near < 1 or wide <= near or wide % near for near, wide in pairwise(frames)),
                f"frames is {list(frames)}; each must be a multiple of the one before it",
            ),
            (
                not fit,
                f"tokens must be a list of {len(frames)} numbers, one for each of frames",
            ),
            (
                sum(tokens) > _TOKENS_MAX,
                f"tokens come to {sum(tokens):,}; they must be at most {_TOKENS_MAX:,}",
            ),
            (
                far > WINDOW_MAX,
                f"frames and tokens look back on {far:,} bars; use at most {WINDOW_MAX:,}",
            ),
        )

    @property
    def window(self) -> int:
        """Rows that one answer needs: those of the frame that reaches furthest, and an open bar."""
        return max(
            wide * (count + (wide > 1))
            for wide, count in zip(self.frames, self.tokens, strict=False)
        )

    @property
    def receptive_field(self) -> int:
        """How many rows one answer depends on."""
        return self.window

    @property
    def token_features(self) -> int:
        """Columns of a token: mean and last row, the clocks at its close, and its frame."""
        return 2 * self.features + clock_columns(self.clock) + len(self.frames)

    def trunk(self) -> FlashConfig:
        """Return the transformer over the tokens, each of which sees all others."""
        return FlashConfig(
            features=self.token_features,
            dim=self.dim,
            layers=self.layers,
            heads=self.heads,
            window=sum(self.tokens),
            horizons=self.horizons,
            encoding="learned",
            interval_minutes=self.interval_minutes,
            mlp_ratio=self.mlp_ratio,
            mask="full",
            dropout=self.dropout,
            allocation=self.allocation,
            quantiles=self.quantiles,
        )


class FrameTokens(NamedTuple):
    """The tokens of one timeframe, oldest first, and the rows that they are made of."""

    rows: Tensor  # [batch, token, 2 * feature]: the mean of its rows, then the last of them
    close: Tensor  # [batch, token] int64, the position of its last row
    start: Tensor  # [batch, token] int64, its first row's place in the window
    length: Tensor  # [batch, token] int64, how many rows it has


def frame_of(x: Tensor, positions: Tensor, *, wide: int, count: int) -> FrameTokens:
    """Return the newest *count* closed bars of *wide* rows in *x* [batch, time, feature].

    *positions* int64 [batch, time] ascend, and the last one's bar has just closed. A frame's bar
    begins where the position is a multiple of *wide*; where rows are missing it has fewer, and
    without any it is no token. *time* must be at least ``wide * (count + 1)``, or *count* for
    single rows.
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
    # -1 for what is older than the tokens, their count for what is open: it never falls.
    token = (count - 1 - number[:, -1:] + number).clamp_min(-1).masked_fill(~closed, count)
    bounds = torch.searchsorted(
        token, torch.arange(count + 1, device=x.device).expand(x.shape[0], -1).contiguous()
    )
    start, end = bounds[:, :-1], bounds[:, 1:]
    place = start[:, :, None] + torch.arange(wide, device=x.device)  # [batch, token, wide]
    own = place < end[:, :, None]
    taken = x.gather(
        1, place.clamp_max(x.shape[1] - 1).flatten(1)[..., None].expand(-1, -1, x.shape[2])
    )
    taken = taken.unflatten(1, (count, wide)).masked_fill(~own[..., None], 0.0)
    length = end - start
    mean = taken.sum(dim=2) / length[..., None].clamp_min(1)
    last = (end - 1).clamp_min(0)
    newest = x.gather(1, last[..., None].expand(-1, -1, x.shape[2]))
    return FrameTokens(
        torch.cat((mean, newest), dim=-1), positions.gather(1, last), start + before, length
    )


def frame_parts(wide: int, frame: FrameTokens, shares: Tensor) -> list[AttendedPart]:
    """Return the *shares* [token] of the tokens of one window, each with the rows of its bar."""
    spans = (frame.start[0].tolist(), frame.length[0].tolist(), shares.tolist())
    return [AttendedPart(wide, *of) for of in zip(*spans, strict=True)]


def add_shares(by_bar: Tensor, frame: FrameTokens, shares: Tensor) -> None:
    """Add *shares* [row, token] to *by_bar* [row, window], a token's evenly to its bar's rows."""
    first, length = frame.start[0].tolist(), frame.length[0].tolist()
    spread = (shares / frame.length[0]).unbind(1)
    for start, rows, each in zip(first, length, spread, strict=True):
        by_bar[:, start : start + rows] += each[:, None]


class MultiscaleNetwork(Network):
    """A window of feature rows in, the forecast of its last bar out."""

    config: MultiscaleConfig
    rows_a_pass = 65_536

    def __init__(self, config: MultiscaleConfig) -> None:
        super().__init__()
        # Set here alone, so that a narrower type than the base's is safe.
        self.config = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.trunk = FlashNetwork(config.trunk())

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Outputs:
        """Forecast the last bar of each window *x* [batch, window, features]: [batch, 1, ...].

        *positions* [.., window] are absolute bar numbers, on whose grid frames lie. Raises
        ``AttentionInvalid`` on a window of another length.
        """
        tokens, _ = self.tokens(x, positions)
        outputs: Outputs = self.trunk(tokens)
        return outputs.map(lambda part: part[:, -1:])

    def tokens(self, x: Tensor, positions: Tensor | None) -> tuple[Tensor, list[FrameTokens]]:
        """Return the tokens [batch, token, column] of windows *x*, widest frame first, and frames.

        The last token is the decided bar. Frames stand in the order of ``config.frames``.
        """
        if x.shape[1] != self.config.window:
            raise AttentionInvalid(
                f"This network takes windows of {self.config.window} bars, not {x.shape[1]}; cut "
                "or warm the window."
            )
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        positions = positions.expand(x.shape[:2])
        frames = [
            frame_of(x, positions, wide=wide, count=count)
            for wide, count in zip(self.config.frames, self.config.tokens, strict=True)
        ]
        kinds = torch.eye(len(frames), dtype=x.dtype, device=x.device)
        columns = [
            torch.cat(
                (
                    frame.rows,
                    clock_of(self.config.clock, frame.close, self.config.interval_minutes).to(
                        x.dtype
                    ),
                    kind.expand(*frame.close.shape, -1),
                ),
                dim=-1,
            )
            for frame, kind in zip(frames, kinds, strict=True)
        ]
        return torch.cat(columns[::-1], dim=1), frames

    def trace(self, x: Tensor, positions: Tensor | None = None) -> Trace:
        """Forecast as ``forward`` does, and return what explains it.

        The parts name each token by its timeframe, widest frame first.
        """
        tokens, frames = self.tokens(x, positions)
        seen = self.trunk.trace(tokens, torch.arange(tokens.shape[1], device=x.device))
        return seen._replace(to_bars=lambda weights: self._to_bars(weights["bars"], frames))

    def _to_bars(
        self, weights: Tensor, frames: list[FrameTokens]
    ) -> tuple[Tensor, tuple[AttendedPart, ...]]:
        """Return *weights* [row, token] of one window shared by its rows, and the first by token.

        Tokens and *frames* are those of ``tokens``.
        """
        parts: list[AttendedPart] = []
        own = weights[0].split(self.config.tokens[::-1])
        for wide, frame, shares in zip(self.config.frames[::-1], frames[::-1], own, strict=True):
            parts += frame_parts(wide, frame, shares)
        return self._by_bar(weights, frames), tuple(parts)

    def attribution_by_layer(
        self, x: Tensor, positions: Tensor, *, half: bool = False
    ) -> list[LayerAttribution]:
        """Attribute layer by layer; a token's weight goes to the rows that it is made of."""
        tokens, frames = self.tokens(x, positions)
        places = torch.arange(tokens.shape[1], device=x.device)
        lowest, *others = self.trunk.attribution_by_layer(tokens, places, half=half)
        newest = torch.cat([(of.start + of.length)[0] for of in frames[::-1]])
        age = self.config.window - newest
        carry = lowest.carry
        return [
            LayerAttribution(
                self._by_bar(lowest.rows, frames),
                age,
                lambda weights: self._by_bar(carry(weights), frames),
            ),
            *(LayerAttribution(self._by_bar(of.rows, frames), age, of.carry) for of in others),
        ]

    def _by_bar(self, weights: Tensor, frames: list[FrameTokens]) -> Tensor:
        """Return *weights* [row, token] shared evenly by the rows of each token: [row, window]."""
        by_bar = weights.new_zeros(len(weights), self.config.window)
        own = weights.split(self.config.tokens[::-1], dim=1)
        for frame, shares in zip(frames[::-1], own, strict=True):
            add_shares(by_bar, frame, shares)
        return by_bar

    def named_states(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each stage's name and output for windows *x*, first to last."""
        yield from self.trunk.named_states(self.tokens(x, None)[0])

    def content_free(self) -> float:
        """Return the confidence without content: 0, for every token is alike."""
        return self.trunk.content_free()


register(
    ModelKind(
        "multiscale",
        "closed bars of several timeframes, each a token, in full attention",
        read=MultiscaleConfig.read,
        make=MultiscaleNetwork,
        backend=lambda _: None,
    )
)
