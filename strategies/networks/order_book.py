"""A factorised network over order book levels and history, with an exact attention map.

Each token is a level of a side in one book. A layer attends over the levels within each book, then
over time causally at each level, then mixes columns: 2 levels x books squared products never stand
together, so 100,000 tokens fit. Every book answers which way the mid moves. Read top to bottom:
configuration, one attention, one layer, the network, its map.

The rules are docs/orderbook.md, D6 to D9. The factorised form is that of Arnab et al., 2021
(ViViT, model 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional

from tracepaper.strategies.attention.checks import is_finite
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import rollout
from tracepaper.strategies.attention.reads import MEAN, CarriedRows, Fuse, Read
from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.encodings import rotate, turns
from tracepaper.strategies.networks.keys import Rule
from tracepaper.strategies.order_book import COLUMNS, LEVELS_MAX, SIDES

MOVES: Final = ("down", "flat", "up")
"""What the mid does to a horizon, in the order of every answer."""
_TOKENS_AT_ONCE: Final = 8_192
"""Of a pass without gradients: what stands beside the state is of so many tokens."""


@dataclass(frozen=True, slots=True)
class OrderBookConfig(keys.ReadKeys):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``window`` and ``horizons`` count books, ``levels`` those of a side.
    """

    levels: Annotated[
        int,
        Meta(
            ge=1,
            le=LEVELS_MAX,
            description="Levels of a side; the files tell.",
            extra_json_schema=keys.DERIVED,
        ),
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
            "horizons must rise, and name one or more",
        ),
    )

    @property
    def tokens(self) -> int:
        """Tokens of one book."""
        return len(SIDES) * self.levels


class OrderBookAttribution(NamedTuple):
    """What the newest book of a window says, and where it looked."""

    probabilities: Tensor  # [horizon, move]
    weights: Tensor  # [book, side * level], oldest book first; they sum to 1
    l1_error: float


class _Heads(NamedTuple):
    """Projections of one attention, each [batch, head, time, dim]."""

    query: Tensor
    key: Tensor
    value: Tensor


class AxisAttention(nn.Module):
    """Attention along one axis of a book, with its norm: causal over time, full over levels."""

    def __init__(self, config: OrderBookConfig, *, over_time: bool) -> None:
        super().__init__()
        self.heads = config.heads
        self.over_time = over_time
        self.mask = Mask() if over_time else Mask.full()
        self.norm = nn.LayerNorm(config.dim)
        self.project_in = nn.Linear(config.dim, 3 * config.dim)
        self.project_out = nn.Linear(config.dim, config.dim)
        # Keep the residual stream's variance independent of depth (Radford et al., 2019).
        std = config.dim**-0.5 / (2 * config.layers) ** 0.5
        nn.init.normal_(self.project_out.weight, std=std)

    def project(self, x: Tensor) -> _Heads:
        """Return queries, keys and values of *x* [batch, time, dim]."""
        mixed = self.project_in(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = mixed.permute(2, 0, 3, 1, 4)  # [3, batch, head, time, dim]
        if self.over_time:  # levels are told apart by what they are, books by when they were
            tables = turns(torch.arange(x.shape[1], device=x.device), query.shape[-1])
            query, key = rotate(query, *tables), rotate(key, *tables)
        return _Heads(query, key, value)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the addend of *x* [batch, time, dim], and the logsumexp [batch, head, time]."""
        output, logsumexp = attend(*self.project(x), self.mask, checked=False)
        added: Tensor = self.project_out(output.transpose(1, 2).flatten(2))
        return added, logsumexp


class BookLayer(nn.Module):
    """One layer: over levels, over time, and each token by itself."""

    def __init__(self, config: OrderBookConfig) -> None:
        super().__init__()
        self.levels = AxisAttention(config, over_time=False)
        self.time = AxisAttention(config, over_time=True)
        hidden = int(config.dim * config.mlp_ratio)
        self.mlp_norm = nn.LayerNorm(config.dim)
        self.rise = nn.Linear(config.dim, hidden)
        self.fall = nn.Linear(hidden, config.dim)

    def mix(self, x: Tensor) -> Tensor:
        """Return the token-wise addend of *x* [..., dim]."""
        return self.fall(functional.gelu(self.rise(self.mlp_norm(x))))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for *x* [batch, book, token, dim]."""
        batch, books = x.shape[:2]
        x = x + self.levels(x.flatten(0, 1))[0].unflatten(0, (batch, books))
        by_level = x.transpose(1, 2)  # [batch, token, book, dim]
        added = self.time(by_level.flatten(0, 1))[0].unflatten(0, by_level.shape[:2])
        x = x + added.transpose(1, 2)
        return x + self.mix(x)


@dataclass(frozen=True, eq=False)
class BookRead(Read):
    """What one attention took in and left: its queries and keys are projected anew, some at a time.

    Tokens are those of [book, level] in order. So one state an attention is kept, not three.
    """

    attention: AxisAttention
    x: Tensor  # [book, token, dim]
    logsumexp: Tensor  # [book, head, token], or [token, head, book] over time

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Batch, heads, queries and keys."""
        tokens = self.x.shape[0] * self.x.shape[1]
        return 1, self.attention.heads, tokens, tokens

    def advance(self, weights: Tensor, fuse: Fuse = MEAN) -> CarriedRows:
        """Return *weights* [1, row, token] below the attention."""
        above = weights[0].unflatten(-1, self.x.shape[:2])  # [row, book, token]
        below = torch.zeros_like(above)
        given = _along(self.attention, self.x)
        lines, out = (
            part.transpose(1, 2) if self.attention.over_time else part for part in (above, below)
        )
        for part in _parts(*given.shape[:2]):
            rows = lines[:, part].transpose(0, 1)  # [line, row, place]
            if bool(rows.any()):
                layer = self._layer(given[part], part)
                out[:, part] = layer.carry(rows, fuse).transpose(0, 1)
        return CarriedRows(weights, below.flatten(1)[None])

    def rows(self, queries: Sequence[int]) -> Tensor:
        """Raise: a token's row is not kept."""
        del queries
        raise AttentionInvalid("An order book's map is its rollout; ask that.")

    def visible(self, queries: Sequence[int] | None = None) -> Tensor:
        """Return how many tokens each query sees."""
        books, tokens = self.x.shape[:2]
        seen = torch.full((books, tokens), tokens)
        if self.attention.over_time:
            seen = torch.arange(1, books + 1)[:, None].expand(books, tokens)
        flat = seen.reshape(1, -1)
        return flat if queries is None else flat[:, list(queries)]

    def content_free(self) -> Read:
        """Raise: the map is compared with no other."""
        raise AttentionInvalid("An order book's map is compared with none; ask its rollout.")

    def _layer(self, x: Tensor, part: slice) -> Layer:
        query, key, value = self.attention.project(x)
        return Layer(query, key, value, self.logsumexp[part], self.attention.mask)


class OrderBookNetwork(nn.Module):
    """Tokens of books in, the direction of the mid out, at every book."""

    def __init__(self, config: OrderBookConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(len(COLUMNS), config.dim)
        self.place = nn.Parameter(torch.empty(config.tokens, config.dim))
        nn.init.normal_(self.place, std=0.02)
        self.layers = nn.ModuleList(BookLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        self.direction = nn.Linear(config.dim, len(config.horizons) * len(MOVES))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [batch, book, horizon, move] of *tokens* [batch, book, token, column].

        The answer at a book depends on it and those before it alone. Raises ``AttentionInvalid``
        for tokens of another shape, or that are not finite.
        """
        self._check(tokens)
        x = self.embed(tokens) + self.place
        for layer in self.layers:
            x = layer(x)
        return self._answer(x)

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
        """Forecast the newest book of *tokens* [book, token, column] and say where it looked.

        The map is the rollout of docs/attention.md, A5, of the mean over its tokens, carried down
        each attention in turn as row vectors. What is kept is one state an attention.
        """
        self._check(tokens)
        x, reads = self._pass(tokens)
        probabilities = self._answer(x[-1]).softmax(dim=-1)
        weights = x.new_zeros(x.shape[:2])
        weights[-1] = 1.0 / x.shape[1]
        found = rollout(reads, {"bars": weights.flatten()[None, None]})
        by_token = found.weights["bars"][0, 0].view_as(weights)
        return OrderBookAttribution(probabilities, by_token, float(found.l1_error[0, 0]))

    def _pass(self, tokens: Tensor) -> tuple[Tensor, list[BookRead]]:
        """Return the states [book, token, dim] of *tokens*, and the read of each attention."""
        books, count = tokens.shape[:2]
        x = tokens.new_empty(books, count, self.config.dim)
        for part in _parts(books, count):
            x[part] = self.embed(tokens[part]) + self.place
        reads: list[BookRead] = []
        for layer in self.layers:
            assert isinstance(layer, BookLayer)
            reads += [_attended(layer.levels, x), _attended(layer.time, x)]
            for part in _parts(books, count):
                x[part] += layer.mix(x[part])
        return x, reads


def _parts(count: int, width: int) -> Iterator[slice]:
    """Yield slices of *count* rows of *width* tokens that fit into one pass."""
    step = max(1, _TOKENS_AT_ONCE // width)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _along(attention: AxisAttention, x: Tensor) -> Tensor:
    """Return *x* [book, token, ...] with the axis that *attention* follows second; a view."""
    return x.transpose(0, 1) if attention.over_time else x


def _attended(attention: AxisAttention, x: Tensor) -> BookRead:
    """Add to *x*, in place, what *attention* adds; return its read."""
    taken = x.clone()
    along, given = _along(attention, x), _along(attention, taken)
    logsumexp = x.new_empty(given.shape[0], attention.heads, given.shape[1])
    for part in _parts(*given.shape[:2]):
        added, logsumexp[part] = attention(given[part])
        along[part] += added
    return BookRead(attention, taken, logsumexp)
