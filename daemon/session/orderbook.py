"""``[strategy] name = "orderbook"``: a checkpoint that trades one symbol by its order books.

torch is imported here only when such a strategy is wanted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tracepaper.daemon.config.loading import Config
from tracepaper.strategies.errors import ConfigInvalid, shown

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


def checkpoint_sha256(config: Config) -> str:
    """Return the hash of the checkpoint's weights and card, as its card names it.

    Loading compares the name with both, so a run goes on, and is verified, by the same ones alone.
    """
    from tracepaper.storage.checkpoints import read_card

    return str(read_card(checkpoint_folder(config))["model"].get("sha256", ""))


def checkpoint_folder(config: Config) -> Path:
    """Return the folder that ``strategy.options.checkpoint`` names, by name or path."""
    from tracepaper.storage.checkpoints import locate

    given = config.strategy.options.get("checkpoint")
    if not isinstance(given, str) or not given:
        raise ConfigInvalid(
            f"strategy.name '{config.strategy.name}' needs strategy.options.checkpoint, and it is "
            f"{shown(given)}; name the folder that `tracepaper train` wrote."
        )
    return locate(given)
