"""``[strategy] name = "orderbook"``: a checkpoint that trades one symbol by its order books.

torch is imported here only when such a strategy is wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.session.together import checkpoint_folder
from tracepaper.strategies.errors import ConfigInvalid

if TYPE_CHECKING:
    from tracepaper.strategies.forecasters.orderbook import OrderBookStrategy


def make_orderbook(config: Config) -> OrderBookStrategy:
    """Return the strategy of the checkpoint that ``strategy.options.checkpoint`` names.

    Raises ``ConfigInvalid`` for options, a symbol or depth that it was not made for, and
    ``CheckpointMismatch`` for a folder whose weights and card do not belong together.
    """
    from tracepaper.storage.checkpoints import load
    from tracepaper.strategies.forecasters.orderbook import BookModel, OrderBookStrategy

    found, chosen, market = load(checkpoint_folder(config)), config.strategy, config.market
    model = BookModel.read(found.card, found.tensors, threads=config.model.threads)
    traded = f"{market.category}:{', '.join(market.symbols)}"
    if traded != model.instrument:
        raise ConfigInvalid(
            f"The orderbook checkpoint reads books of {model.instrument}, and the run trades "
            f"{traded}; trade that alone, or train on books of this."
        )
    levels = model.config.levels
    if market.depth < levels or market.depth_every_ms != model.every_ms:
        raise ConfigInvalid(
            f"The orderbook checkpoint reads {levels} levels each {model.every_ms:,} ms, and "
            f"[market] has depth = {market.depth} and depth_every_ms = {market.depth_every_ms}; "
            "set them so."
        )
    return OrderBookStrategy(model, chosen.options)
