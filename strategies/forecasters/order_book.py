"""The strategy that trades a network over order books.

The network runs once per bar, over the newest books at its close. Its probabilities and the shares
of its attention are notes on the decision. The rules are docs/orderbook.md, D16 to D18.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
import torch
from msgspec import Meta, Struct
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.model import DataSource, ModelKind, register
from tracepaper.strategies.api.strategy import Strategy, read_options
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.forecasters.build import filled, known_kind
from tracepaper.strategies.gates.card import section_of
from tracepaper.strategies.networks.order_book import (
    MOVES,
    OrderBookAttribution,
    OrderBookConfig,
    OrderBookNetwork,
)
from tracepaper.strategies.order_book import KIND, SIDES, Books, tokens_of
from tracepaper.strategies.types.decisions import Action

STALE_BOOKS: Final = 2
"""By default a newest book that is older than this many steps of the grid is stale."""
_FLAT: Final = MOVES.index("flat")
_UP: Final = MOVES.index("up")


@dataclass(frozen=True)
class BookModel:
    """A checkpoint of order books: its market and its network."""

    network: OrderBookNetwork
    instrument: str
    every_ms: int

    @classmethod
    def read(
        cls, card: Mapping[str, Any], tensors: Mapping[str, Tensor], *, threads: int | None = None
    ) -> BookModel:
        """Build from a card and its tensors, checked; set PyTorch's *threads* where given.

        Raises ``ConfigInvalid`` for another kind or an architecture that cannot be built,
        ``CheckpointMismatch`` for tensors that are not its weights.
        """
        kind = known_kind(card)
        if kind is None or kind.source is not DataSource.ORDER_BOOKS:
            named = section_of(card, "model").get("kind")
            raise ConfigInvalid(
                f"The checkpoint is of the kind {shown(named)}, not {KIND}; name one that "
                f"`tracepaper train --set model.kind={KIND}` wrote."
            )
        config = OrderBookConfig.read(section_of(card, "architecture"))
        market = section_of(card, "market")
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(
            filled(lambda: OrderBookNetwork(config), tensors).eval(),
            f"{market['category']}:{market['symbols'][0]}",
            int(market["every_ms"]),
        )

    @property
    def config(self) -> OrderBookConfig:
        """The architecture."""
        return self.network.config

    def attribution(self, books: Books) -> OrderBookAttribution:
        """Return the network's output at the newest of *books*, and its attribution."""
        return self.network.explain(torch.from_numpy(tokens_of(books)))


class OrderBookOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """``strategy.options`` of a network of order books."""

    checkpoint: str = ""
    horizon: int | None = None
    stale_ms: Annotated[int, Meta(ge=0)] | None = None


class OrderBookStrategy(Strategy):
    """Trade the most probable move of the mid to ``horizon``; hold if the books are unusable.

    ``horizon`` counts books and is one of the network's, by default the longest. ``stale_ms`` is
    the oldest age of the newest book at the close.
    """

    reads_history = False

    def __init__(self, model: BookModel, options: Mapping[str, object]) -> None:
        chosen = read_options(OrderBookOptions, options)
        config = self.config = model.config
        self.model = model
        self.books = config.window
        horizon = config.horizons[-1] if chosen.horizon is None else chosen.horizon
        if horizon not in config.horizons:
            raise ConfigInvalid(
                f"strategy.options.horizon is {horizon}; the network knows "
                f"{', '.join(map(str, config.horizons))} books."
            )
        self.at = config.horizons.index(horizon)
        steps_ms = STALE_BOOKS * model.every_ms
        self._stale_ms = steps_ms if chosen.stale_ms is None else chosen.stale_ms

    def decide(self, context: BarContext) -> Signal:
        """Answer at the close of a bar by the newest books then."""
        books = self.usable(context.depth, context.time)
        if isinstance(books, str):
            return Signal(Action.HOLD, books)
        attribution = self.model.attribution(books)
        odds = attribution.probabilities[self.at].double().tolist()
        move = max(range(len(MOVES)), key=odds.__getitem__)
        note = {f"p_{name}": probability for name, probability in zip(MOVES, odds, strict=True)}
        note |= shares_of(attribution, self.config.levels)
        if move == _FLAT:
            return Signal(Action.HOLD, "the mid is expected to stay", note=note)
        if move == _UP:
            return Signal(Action.LONG, "the mid is expected to rise", note=note)
        return Signal(Action.SHORT, "the mid is expected to fall", note=note)

    def usable(self, books: Books | None, close_ms: int) -> Books | str:
        """Return the window of *books* for the answer at *close_ms*, or why there is none."""
        window, levels = self.config.window, self.config.levels
        if books is None:
            return "no order book since the last gap or start"
        if close_ms - int(books.seen_ms[-1]) > self._stale_ms:
            return f"the newest order book is older than {self._stale_ms:,} ms"
        if len(books) < window:
            return f"fewer order books since the last gap than the {window:,} that are looked at"
        newest = books.part(len(books) - window, len(books)).shallower(levels)
        if newest.levels < levels or not bool((newest.size[-1] > 0).all()):
            return f"a side of the newest order book has fewer than {levels:,} levels"
        return newest


def shares_of(attribution: OrderBookAttribution, levels: int) -> dict[str, float]:
    """Return the shares of an answer's attention on parts of the books; the first two sum to 1.

    They are the two sides. ``looked_touch`` is the best level of both sides, ``looked_newest`` the
    newest book and ``looked_late`` the newer half of the books.
    """
    weights: NDArray[np.float64] = attribution.weights.double().numpy()
    by_side = weights.reshape(len(weights), len(SIDES), levels)
    shares = {f"looked_{side}": float(by_side[:, place].sum()) for place, side in enumerate(SIDES)}
    return shares | {
        "looked_touch": float(by_side[:, :, 0].sum()),
        "looked_newest": float(by_side[-1].sum()),
        "looked_late": float(by_side[len(by_side) // 2 :].sum()),
    }


ORDER_BOOK: Final = register(
    ModelKind(
        KIND,
        "levels of an order book and their history, from files of `data record`",
        DataSource.ORDER_BOOKS,
        refusal="A network of order books reads files of `tracepaper data record`, not bars; use "
        "`tracepaper explain --depth FILE --checkpoint FOLDER`.",
    )
)
"""The kind that answers over order books."""
