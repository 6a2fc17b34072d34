"""``[strategy] name = "crossasset"`` or ``"portfolio"``: a checkpoint that trades all symbols.

It is the run's model, named by ``[model] checkpoint``. torch is imported here only when such a
strategy is wanted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.sections import BUILT_IN, TOGETHER, ExplanationSection
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.strategy import Forecaster
from tracepaper.strategies.together import TogetherStrategy

if TYPE_CHECKING:
    from tracepaper.storage.checkpoints import Checkpoint
    from tracepaper.strategies.forecasters.together import TogetherForecaster


def refuse_other_strategy(config: Config, kind: str) -> None:
    """Raise ``ConfigInvalid`` where a checkpoint of *kind* cannot serve the configured strategy.

    A user's own class may ask any model, one over several symbols too.
    """
    name = config.strategy.name
    if name in TOGETHER and kind != name:
        raise ConfigInvalid(
            f"strategy.name '{name}' needs a checkpoint of that kind, and model.checkpoint "
            f"{config.model.checkpoint} is of the kind {kind}; name another, or train one by "
            f"`tracepaper train --network {name}`."
        )
    if kind in TOGETHER and name in BUILT_IN and name != kind:
        raise ConfigInvalid(
            f"A {kind} checkpoint answers for all symbols of a close; set strategy.name to "
            f"'{kind}', which is '{name}'."
        )


def together_forecaster(config: Config, found: Checkpoint) -> TogetherForecaster:
    """Return the model of a checkpoint over several symbols, for those of the run.

    Raises ``ConfigInvalid`` for symbols or an interval that it was not made for, and for what no
    such model has, ``CheckpointMismatch`` for weights and a card that do not belong together.
    """
    from tracepaper.strategies.forecasters.together import TogetherForecaster, TogetherModel

    model, chosen = TogetherModel.read(found.card, found.tensors), config.model
    if config.market.calendar is not None:
        raise ConfigInvalid(
            f"A {model.kind} checkpoint counts every interval of the clock; take market.calendar "
            "out."
        )
    trained = str(found.card["market"].get("interval", ""))
    if trained != config.market.interval:
        raise ConfigInvalid(
            f"The {model.kind} checkpoint was trained on interval {trained}, and market.interval "
            f"is {config.market.interval}; make them one."
        )
    for key, given, usual in (
        ("backend", chosen.backend, "auto"),
        ("device", chosen.device.replace("cpu", "auto"), "auto"),
        ("explanation", chosen.explanation, ExplanationSection()),
    ):
        if given != usual:
            raise ConfigInvalid(
                f"A {model.kind} checkpoint runs on the processor and is explained by the usual "
                f"rollout; take model.{key} out."
            )
    if config.gate.horizon in model.config.horizons:  # another is refused with the gates
        model = replace(model, horizon=config.gate.horizon)
    return TogetherForecaster(model, config.market.symbols, threads=chosen.threads)


def make_together(
    config: Config, forecaster: Forecaster | None, horizon_index: int
) -> TogetherStrategy:
    """Return the strategy that trades all symbols by *forecaster*, which answers for all of them.

    Raises ``ConfigInvalid`` for options that it does not have.
    """
    from tracepaper.strategies.forecasters.together import TogetherForecaster

    if not isinstance(forecaster, TogetherForecaster):
        raise ConfigInvalid(
            f"strategy.name '{config.strategy.name}' needs a checkpoint of that kind; name it by "
            "model.checkpoint."
        )
    return TogetherStrategy(
        config.market.symbols,
        config.strategy.options,
        context=forecaster.context,
        every=forecaster.every,
        horizon_index=horizon_index,
    )
