"""``[strategy] name = "crossasset"`` or ``"portfolio"``: a checkpoint that trades all symbols.

torch is imported here only when such a strategy is wanted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tracepaper.daemon.config.loading import Config
from tracepaper.strategies.errors import ConfigInvalid, shown

if TYPE_CHECKING:
    from tracepaper.strategies.forecasters.together import TogetherStrategy


def make_together(config: Config) -> TogetherStrategy:
    """Return the strategy of the checkpoint that ``strategy.options.checkpoint`` names.

    Raises ``ConfigInvalid`` for options, symbols or an interval that it was not made for, and
    ``CheckpointMismatch`` for a folder whose weights and card do not belong together.
    """
    from tracepaper.storage.checkpoints import load
    from tracepaper.strategies.forecasters.together import TogetherModel, TogetherStrategy

    found, chosen = load(checkpoint_folder(config)), config.strategy
    model = TogetherModel.read(found.card, found.tensors, threads=config.model.threads)
    if model.kind != chosen.name:
        raise ConfigInvalid(
            f"strategy.name is '{chosen.name}', and the checkpoint is of the kind {model.kind}; "
            f"set it to {model.kind}."
        )
    if config.market.calendar is not None:
        raise ConfigInvalid(
            f"{chosen.name} counts every interval of the clock; take market.calendar out."
        )
    if model.interval != config.market.interval:
        raise ConfigInvalid(
            f"The {chosen.name} checkpoint was trained on interval {model.interval}, and "
            f"market.interval is {config.market.interval}; make them one."
        )
    return TogetherStrategy(model, config.market.symbols, chosen.options)


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
