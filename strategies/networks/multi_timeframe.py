"""A transformer over the closed bars of several timeframes in one sequence.

Each frame's bar is one token, made of the rows that it covers: their mean, the last of them and
where its close stands in time. Frames lie on the grid of absolute time, so an hour's token
covers a clock hour, and an hour that is not over is no token yet: its bars are seen in the frames
below it. A thousand minutes near and thousands far cost some hundred tokens. The rollout over
tokens says which frame and which bar was looked at; a token's weight is shared by its rows alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, ClassVar, Final, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import AttendedPart, Outputs, Trace
from tracepaper.strategies.networks.encodings import clock_columns, clock_of
from tracepaper.strategies.networks.flash import AttentionConfig, Transformer
from tracepaper.strategies.networks.keys import LOOKS_BACK, WINDOW_MAX, Rule

_TOKENS_MAX: Final = 8_192
_Counts = tuple[Annotated[int, Meta(ge=1, le=WINDOW_MAX)], ...]


@dataclass(frozen=True, slots=True)
class MultiscaleConfig(AttentionConfig):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``frames`` says how many bars make one of each timeframe, ``tokens`` how many closed ones of
    each are seen: of one-minute bars the defaults are 1, 5, 15, 60 and 240 minutes.
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
        Rule(lambda of: sum(of.tokens) <= _TOKENS_MAX, f"tokens come to more than {_TOKENS_MAX:,}"),
        LOOKS_BACK,
    )

    @property
    def window(self) -> int:
        """Rows that one answer needs: those of the frame that reaches furthest, and an open bar."""
        spans = zip(self.frames, self.tokens, strict=True)
        return max(wide * (count + (wide > 1)) for wide, count in spans)

    @property
    def token_features(self) -> int:
        """Columns of a token: mean and last row, the clocks at its close, and its frame."""
        return 2 * self.features + clock_columns(self.clock) + len(self.frames)


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
    """Return the *shares* [token] of the tokens of one window, each with the rows of its bar."""
    spans = (frame.start[0].tolist(), frame.length[0].tolist(), shares.tolist())
    return [AttendedPart(wide, *of) for of in zip(*spans, strict=True)]


def add_shares(by_bar: Tensor, frame: FrameTokens, shares: Tensor) -> None:
    """Add *shares* [row, token] to *by_bar* [row, window], a token's evenly to its bar's rows."""
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
            has_clock=False,  # a token's columns say it
        )

    def run(self, x: Tensor, positions: Tensor, trace: Trace | None) -> Tensor:
        """Return the states of the tokens; the parts are these, of the widest frame first."""
        tokens, frames = self.tokens(x, positions)
        if trace is not None:
            newest = torch.cat([(of.start + of.length)[0] for of in frames[::-1]])
            trace.ages["bars"] = self.config.window - newest
            trace.to_bars = lambda weights: self._to_bars(weights["bars"], frames)
        return super().run(tokens, torch.arange(tokens.shape[1], device=x.device), trace)

    def read_out(self, state: Tensor) -> Outputs:
        """Return the heads' outputs of the last token."""
        outputs: Outputs = self.heads(self.norm(state))
        return outputs.map(lambda part: part[:, -1:])

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
        """Return *weights* [row, token] of one window shared by its rows, and the first by token.

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
