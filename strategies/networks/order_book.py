"""A factorised network over order book levels and history, with an exact attention map.

Each token is a level of a side in one book. A layer attends over the levels within each book, then
causally over time at each level, then mixes columns, so 100,000 tokens fit. Every book has a
forecast of the direction of the mid.

The rules are docs/orderbook.md, D6 to D8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor, nn

from tracepaper.strategies.attention.checks import is_finite
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import rollout
from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import Trace
from tracepaper.strategies.networks.encodings import Rope, Sizes
from tracepaper.strategies.networks.flash import Block, BlockOptions, each_block
from tracepaper.strategies.networks.grid import GridAxis, attend_by_axis
from tracepaper.strategies.networks.keys import Rule
from tracepaper.strategies.order_book import COLUMNS, LEVELS_MAX, SIDES

MOVES: Final = ("down", "flat", "up")
"""The moves of the mid to a horizon, in the order of every answer."""


@dataclass(frozen=True, slots=True)
class OrderBookConfig(keys.ReadKeys):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``window`` and ``horizons`` count books, ``levels`` those of a side.
    """

    levels: Annotated[
        int, keys.derived("Levels of a side; the files tell.", ge=1, le=LEVELS_MAX)
    ] = 50
    window: Annotated[
        int, Meta(ge=1, le=keys.WINDOW_MAX, description="Books that an answer sees.")
    ] = 256
    dim: keys.Dim = 32
    layers: keys.Layers = 2
    heads: keys.Heads = 4
    horizons: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=1_000_000)], ...],
        Meta(description="Forecast horizons, in books."),
    ] = (1, 10, 60)
    mlp_ratio: keys.MlpRatio = 2.0

    RULES: ClassVar[tuple[keys.Rule, ...]] = (
        keys.EVEN_HEADS,
        Rule(
            lambda of: of.horizons and list(of.horizons) == sorted(set(of.horizons)),
            "horizons must ascend, and list at least one",
        ),
    )

    @property
    def receptive_field(self) -> int:
        """How many books one answer depends on at most."""
        return self.window

    @property
    def tokens(self) -> int:
        """Tokens of one book."""
        return len(SIDES) * self.levels


class OrderBookAttribution(NamedTuple):
    """The forecast of the newest book of a window, and its attention."""

    probabilities: Tensor  # [horizon, move]
    weights: Tensor  # [book, side * level], oldest book first; they sum to 1
    l1_error: float


class OrderBookNetwork(nn.Module):
    """Tokens of books in, the direction of the mid out, at every book."""

    def __init__(self, config: OrderBookConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(len(COLUMNS), config.dim)
        self.place = nn.Parameter(torch.empty(config.tokens, config.dim))
        nn.init.normal_(self.place, std=0.02)
        options = BlockOptions.of(config)
        # Only the second block has an MLP: one per layer, after both attentions.
        self.over_levels = nn.ModuleList(
            Block(options._replace(mlp=""), depth) for depth in range(config.layers)
        )
        self.over_time = nn.ModuleList(Block(options, depth) for depth in range(config.layers))
        self.encoding = Rope(Sizes(config.dim, config.heads, config.window))
        self.norm = nn.LayerNorm(config.dim)
        self.direction = nn.Linear(config.dim, len(config.horizons) * len(MOVES))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [batch, book, horizon, move] of *tokens* [batch, book, token, column].

        The answer at a book depends on it and those before it alone. Raises ``AttentionInvalid``
        for tokens of another shape, or that are not finite.
        """
        return self._answer(self._run(tokens, None))

    def _run(self, tokens: Tensor, trace: Trace | None) -> Tensor:
        """Return the states [batch, book, token, dim] above the last layer."""
        self._check(tokens)
        places = self.encoding.phases(torch.arange(tokens.shape[1], device=tokens.device))
        # A learned code distinguishes levels; positions distinguish books.
        axes = (GridAxis(1, Mask.full()), GridAxis(0, Mask(), places))
        layers = zip(each_block(self.over_levels), each_block(self.over_time), strict=True)
        return attend_by_axis(layers, self.embed(tokens) + self.place, axes, trace)

    def _answer(self, x: Tensor) -> Tensor:
        """Return logits [..., horizon, move] of states [..., token, dim]."""
        pooled = self.norm(x).mean(dim=-2)
        logits: Tensor = self.direction(pooled)
        shape = (*logits.shape[:-1], len(self.config.horizons), len(MOVES))
        return logits.view(shape)

    def _check(self, tokens: Tensor) -> None:
        wanted = (self.config.tokens, len(COLUMNS))
        if tuple(tokens.shape[-2:]) != wanted or not 1 <= tokens.shape[-3] <= self.config.window:
            raise AttentionInvalid(
                f"This network takes up to {self.config.window} books of {wanted[0]} tokens by "
                f"{wanted[1]} columns, not {list(tokens.shape)}; cut the window or the levels."
            )
        if not is_finite(tokens):
            raise AttentionInvalid("A token is NaN or infinite; look for the book it is made of.")

    @torch.no_grad()
    def explain(self, tokens: Tensor) -> OrderBookAttribution:
        """Forecast the newest book of *tokens* [book, token, column] and explain it.

        The map is the rollout of docs/attention.md, A5, of the mean over the book's tokens.
        """
        trace = Trace()
        x = self._run(tokens[None], trace)[0]
        weights = x.new_zeros(x.shape[:2])
        weights[-1] = 1.0 / x.shape[1]
        attended = rollout(trace.reads, {"tokens": weights.flatten()[None, None]})
        by_token = attended.weights["tokens"][0, 0].view_as(weights)
        return OrderBookAttribution(
            self._answer(x[-1]).softmax(dim=-1), by_token, float(attended.l1_error[0, 0])
        )
