"""Loads the model that ``[model]`` names; torch is imported only when a checkpoint is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.sections import ExplanationSection
from tracepaper.daemon.config.values import MODEL_INPUTS
from tracepaper.daemon.session.combinations import reject_combination, traits_of
from tracepaper.daemon.session.covariates import (
    VECTORS,
    configured_covariates,
    covariates_name,
    recorded_covariates,
    recorded_covariates_name,
)
from tracepaper.daemon.session.user_model import failure_logger, load_model, user_model
from tracepaper.storage import checkpoints
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.book_features import BookReading, reading_of
from tracepaper.strategies.builtin import TREND, CrossAssetStrategy
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.gates.declared import learned_regime
from tracepaper.strategies.gates.evaluator import risk_thresholds, threshold_key
from tracepaper.strategies.gates.gate import GATES
from tracepaper.strategies.other_symbol import other_of
from tracepaper.strategies.types.calibration import FittedConfidence
from tracepaper.strategies.types.decisions import RunRow

if TYPE_CHECKING:
    from tracepaper.strategies.attention.methods import Rollout
    from tracepaper.strategies.covariates import CovariateSource
    from tracepaper.strategies.forecasters.order_book import OrderBookStrategy


def make_orderbook(config: Config) -> OrderBookStrategy:
    """Return the strategy of the checkpoint that ``strategy.options.checkpoint`` names.

    Raises ``ConfigInvalid`` for options, a symbol or a depth that the checkpoint does not support,
    and ``CheckpointMismatch`` if its weights and card do not match.
    """
    from tracepaper.strategies.forecasters.order_book import BookModel, OrderBookStrategy

    checkpoint, market = checkpoints.load(checkpoint_folder(config)), config.market
    model = BookModel.read(checkpoint.card, checkpoint.tensors, threads=config.model.threads)
    traded = f"{market.category}:{', '.join(market.symbols)}"
    if traded != model.instrument:
        raise ConfigInvalid(
            f"The orderbook checkpoint reads books of {model.instrument}, and the run trades "
            f"{traded}; trade {model.instrument} alone, or train on books of {traded}."
        )
    _require_books(config, BookReading(model.config.levels, model.every_ms))
    return OrderBookStrategy(model, config.strategy.options)


def checkpoint_sha256(config: Config) -> str:
    """Return the hash of the checkpoint's weights and card, which its card holds.

    Loading compares it with both, so only the same checkpoint can resume or verify a run.
    """
    card = checkpoints.read_card(checkpoint_folder(config))
    return str(card["model"].get("sha256", ""))


def checkpoint_folder(config: Config) -> Path:
    """Return the folder that ``strategy.options.checkpoint`` names, by name or path."""
    name = config.strategy.options.get("checkpoint")
    if not isinstance(name, str) or not name:
        raise ConfigInvalid(
            f"strategy.name '{config.strategy.name}' needs strategy.options.checkpoint, and it is "
            f"{shown(name)}; name the folder that `tracepaper train` wrote."
        )
    return checkpoints.locate(name)


def reject_other_strategy(config: Config, card: Mapping[str, Any]) -> None:
    """Raise ``ConfigInvalid`` if the checkpoint of *card* does not fit the configured strategy.

    A user's class may use any model, also one over several symbols.
    """
    from tracepaper.strategies.forecasters.build import known_kind

    name, kind, model_kind = config.strategy.name, str(card["model"].get("kind")), known_kind(card)
    if MODEL_INPUTS.get(name) is DataSource.CLOSES and kind != name:
        raise ConfigInvalid(
            f"strategy.name '{name}' needs a checkpoint of that kind, and model.checkpoint "
            f"{config.model.checkpoint} is of the kind {kind}; name another, or train one by "
            f"`tracepaper train --set model.kind={name}`."
        )
    serves_close = model_kind is not None and model_kind.source is DataSource.CLOSES
    if serves_close and (name == TREND or MODEL_INPUTS.get(name) is DataSource.BARS):
        raise ConfigInvalid(
            f"A {kind} checkpoint forecasts all symbols of a close together; set strategy.name to "
            f"'{kind}', which is '{name}'."
        )


def make_together(
    config: Config, forecaster: Forecaster | None, horizon_index: int
) -> CrossAssetStrategy:
    """Return the strategy that trades all symbols together with a cross-asset *forecaster*.

    Raises ``ConfigInvalid`` for another model, and for unknown options.
    """
    every: int | None = getattr(forecaster, "every", None)
    if forecaster is None or every is None:
        raise ConfigInvalid(
            f"strategy.name '{config.strategy.name}' needs a checkpoint of that kind; set "
            "model.checkpoint to one."
        )
    return CrossAssetStrategy(
        config.market.symbols,
        config.strategy.options,
        context=forecaster.context,
        every=every,
        horizon_index=horizon_index,
        has_correlations="correlations" in forecaster.measures,
    )


_KIB: Final = 1024


def load_checkpoint(config: Config, *, database: Path | None = None) -> checkpoints.Checkpoint:
    """Load the configured checkpoint, and copy it beside *database* if that is given."""
    folder = checkpoints.locate(config.model.checkpoint)
    if not checkpoints.is_checkpoint(folder):
        raise ConfigInvalid(
            f"model.checkpoint is {folder}, where there is no checkpoint; name a folder that "
            "`tracepaper train` wrote, or one that `tracepaper models` lists."
        )
    checkpoint = checkpoints.load(folder)
    if database is not None:
        checkpoints.keep(folder, database)
    return checkpoint


def card_of(config: Config, forecaster: Forecaster | None) -> Mapping[str, Any]:
    """Return the card of the configured model; that of a user's class is its *forecaster*'s."""
    if config.model.custom_class:
        card: Mapping[str, Any] = getattr(forecaster, "card", {})
        return card
    return checkpoints.read_card(checkpoints.locate(config.model.checkpoint))


NO_SIZE: Final = "every size is 0"
BY_SLOPE: Final = ("tanh", "kelly")
"""Modes whose sizes are multiples of the calibrated mean return."""


def warnings_for(config: Config, forecaster: Forecaster) -> tuple[str, ...]:
    """Return the warnings about the configured model, which a run stores."""
    warnings = []
    mode, horizon, calibration = config.sizing.mode, config.gate.horizon, forecaster.calibration
    if mode in BY_SLOPE and calibration is not None and calibration.slope.get(horizon) == 0:
        warnings.append(
            f"{NO_SIZE}, since sizing.mode {mode} multiplies the mean return by the slope of the "
            f"model's card, which is 0 at {horizon} bars; choose another mode, such as notional, "
            "or another gate.horizon (docs/decisions.md, G19)"
        )
    if config.model.custom_class:
        return tuple(warnings)
    card = card_of(config, None)
    trained, here = str(card["market"].get("interval", "")), config.market.interval
    if trained != here:
        warnings.append(
            f"the checkpoint was trained on interval {trained}, and this run's is {here}"
        )
    if config.model.measured != ExplanationSection():
        warnings.append(
            "the checkpoint's quantiles of recent mass and shift are those of the usual rollout, "
            "and this run uses another explanation"
        )
    return tuple(warnings)


def chosen_backend(config: Config) -> str:
    """Return the attention backend of the configured checkpoint.

    Raises ``ConfigInvalid`` for a configured backend that the checkpoint does not support.
    """
    from tracepaper.strategies.forecasters.build import choose_backend

    card = checkpoints.read_card(checkpoints.locate(config.model.checkpoint))
    return choose_backend(card, config.model.backend, device=_device(config))


def load_forecaster(
    config: Config, *, database: Path | None = None, mode: str = "step", live: bool = False
) -> Forecaster:
    """Return the configured model, not yet warmed up; *mode* is ``step`` or ``scan``.

    The mode ``step`` becomes ``batched`` if the bars of one close are decided together. The
    checkpoint, or a user's card, is copied beside *database*. Covariates of a *live* run are
    events.
    """
    reject_combination(traits_of(config))
    if config.model.custom_class:
        model = load_model(config, mode=mode)
        if database is not None:
            checkpoints.keep_card(model.card, model.identity, database)
        return model
    if mode == "step" and config.market.closes_together:
        mode = "batched"
    checkpoint = load_checkpoint(config, database=database)
    reject_combination(traits_of(config, checkpoint.card))
    source = configured_covariates(config, checkpoint.card, database=database, live=live)
    return _built(checkpoint, config, mode, source)


def forecaster_of_run(
    run: RunRow, config: Config, database: Path, *, into: Path | None = None
) -> Forecaster:
    """Return the model of *run*.

    A checkpoint is loaded from the copy beside *database*. A user's class is made from its present
    code, so its hash may differ. A stream uses the run's attention backend if it is available here.
    The model is copied beside *into*, if that is given. Raises ``CheckpointMismatch`` if the
    checkpoint is missing.
    """
    if config.model.custom_class:
        return load_forecaster(config, database=into, mode=run.mode)
    kept = checkpoints.find_kept(database, run.model_id)
    if into is not None:
        checkpoints.keep(kept, into)
    card, name = checkpoints.read_card(kept), recorded_covariates_name(run.libraries)
    source = recorded_covariates(database, name, card, into=into)
    return forecaster_of(kept, _with_backend(config, run.backend), mode=run.mode, covariates=source)


def _with_backend(config: Config, recorded: str) -> Config:
    """Return *config* with the *recorded* backend of a stream, "auto" if it is unavailable here."""
    from tracepaper.strategies.attention import compiled

    if recorded not in {"tiles", *compiled.NAMES}:
        return config
    backend = recorded if recorded in {"tiles", *compiled.available()} else "auto"
    model = config.model.model_copy(update={"backend": backend})
    return config.model_copy(update={"model": model})


def forecaster_of(
    folder: Path, config: Config, *, mode: str, covariates: CovariateSource | None = None
) -> Forecaster:
    """Return the model of the checkpoint in *folder*, with the run options of *config*."""
    return _built(checkpoints.load(folder), config, mode, covariates)


def computing(forecaster: Forecaster | None) -> tuple[str, str]:
    """Return torch's version and instruction set; two empty texts without a checkpoint."""
    if forecaster is None or user_model(forecaster) is not None:
        return "", ""
    from tracepaper.strategies.forecasters import build

    return build.computing()


def other_libraries(forecaster: Forecaster | None) -> Mapping[str, str]:
    """Return further code or data that forecasts depend on, by name.

    These are the libraries of a user's class, covariates, or compiled attention loops.
    """
    if forecaster is None:
        return {}
    if (model := user_model(forecaster)) is not None:
        return model.libraries
    if kept := covariates_name(forecaster):
        return {VECTORS: kept}
    if not forecaster.backend.startswith("native"):
        return {}
    from tracepaper.strategies.attention import compiled

    return {forecaster.backend: compiled.loops()[forecaster.backend].sha256}


def _built(
    checkpoint: checkpoints.Checkpoint,
    config: Config,
    mode: str,
    covariates: CovariateSource | None,
) -> Forecaster:
    from tracepaper.strategies.forecasters.build import RunOptions, build, known_kind

    reject_other_strategy(config, checkpoint.card)
    schema = config.features.custom_schema
    card_schema = checkpoint.card["features"].get("schema_id")
    if schema not in (None, card_schema):
        raise ConfigInvalid(
            f"[features] schema = '{schema}' is for a class of your own, and the checkpoint sees "
            f"{card_schema}; leave it out, or name a class with [model] class."
        )
    if (reading := reading_of(checkpoint.card)) is not None:
        _require_books(config, reading)
    _require_other(config, checkpoint.card)
    kind = known_kind(checkpoint.card)
    serves_close = kind is not None and kind.source is DataSource.CLOSES
    trained = str(checkpoint.card["market"].get("interval", ""))
    if kind is not None and serves_close and trained != config.market.interval:
        raise ConfigInvalid(
            f"The {kind.name} checkpoint was trained on interval {trained}, and market.interval "
            f"is {config.market.interval}; set it to {trained}, or name another checkpoint."
        )
    return build(
        checkpoint.card,
        checkpoint.tensors,
        RunOptions(
            device=_device(config),
            threads=config.model.threads,
            mode=mode,
            backend=config.model.backend,
            instruments=len(config.market.symbols),
            free_bytes=free_bytes(),
            method=_method(config),
            by_relevance=config.model.by_relevance,
            vectors=covariates,
            symbols=config.market.symbols,
            horizon=config.gate.horizon,
            dropout_passes=config.model.dropout_passes,
            say=failure_logger(),
        ),
    )


def _require_books(config: Config, reading: BookReading) -> None:
    """Raise ``ConfigInvalid`` if the run lacks the order books that a model reads."""
    market = config.market
    if market.depth < reading.levels or market.depth_every_ms != reading.every_ms:
        raise ConfigInvalid(
            f"The checkpoint reads order books of {reading.words}, and [market] has depth = "
            f"{market.depth} and depth_every_ms = {market.depth_every_ms}; set both to match, in a "
            "replay with --depth FILE."
        )


def _require_other(config: Config, card: Mapping[str, Any]) -> None:
    """Raise ``ConfigInvalid`` if the run lacks the other symbol that the model of *card* reads."""
    if not (symbol := other_of(card)):
        return
    market = config.market
    if symbol not in market.symbols:
        raise ConfigInvalid(
            f"The checkpoint reads the closed bars of {symbol}, and the run has "
            f"{' and '.join(market.symbols)} alone; add {symbol} to market.symbols, in a replay by "
            "--data."
        )
    if len(market.symbols) == 1:
        raise ConfigInvalid(
            f"The checkpoint reads the closed bars of {symbol} for another symbol, and the run has "
            "none; add one to market.symbols, in a replay by --data."
        )


def _method(config: Config) -> Rollout:
    """Return the explanation method of ``[model.explanation]``.

    Raises ``ConfigInvalid`` for invalid head weights.
    """
    from tracepaper.strategies.attention.methods import Rollout, fusion_of, head_weights

    chosen = config.model.measured
    return Rollout(
        float(chosen.residual),
        fusion_of(chosen.method, chosen.fusion),
        head_weights(chosen.head_weights) if chosen.head_weights else None,
        float(chosen.discard),
        chosen.start_layer,
        config.gate.horizon if chosen.method == "gradient" else None,
    )


def _device(config: Config) -> str:
    return "cpu" if config.model.device == "auto" else config.model.device


def free_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this process could still get; None if unknown.

    Linux has them in ``MemAvailable`` of ``/proc/meminfo`` and, in a container, in the limit of the
    control group (version 2). Memory that can be freed at once, such as cached files, is counted.
    """
    available = _number(root / "proc/meminfo", "MemAvailable:")
    free = [] if available is None else [available * _KIB]
    group = root / "sys/fs/cgroup"
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is not None and used is not None:
        free.append(max(0, limit - used + (_number(group / "memory.stat", "inactive_file") or 0)))
    return min(free, default=None)


def _number(path: Path, name: str = "") -> int | None:
    """Return the number after *name* in the file *path*; None without that file or number."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    matched = re.search(rf"^{re.escape(name)}\s*(\d+)", text, re.MULTILINE)
    return None if matched is None else int(matched[1])


def measures_of(config: Config, forecaster: Forecaster) -> frozenset[str]:
    """Return what gates and sizes may use of a model: its outputs, and tails that its card has."""
    calibration = forecaster.calibration
    has_tails = calibration is not None and config.gate.horizon in calibration.tails
    return forecaster.measures | ({"tails"} if has_tails else set())


def reject_limits(config: Config, forecaster: Forecaster | None) -> None:
    """Raise ``ConfigInvalid`` for a size or limit that needs outputs the model does not have."""
    measures = frozenset[str]() if forecaster is None else measures_of(config, forecaster)
    required = {
        threshold_key(GATES[name]): GATES[name].needs
        for name in risk_thresholds(config.model_dump())
    }
    if config.gate.learned_regimes:
        required["gate.learned_regimes"] = learned_regime.needs
    mode, by_forecast = config.sizing.mode, config.sizing.volatility == "forecast"
    required[f"sizing.mode '{mode}'"] = SIZED_BY.get(mode, frozenset())
    if mode == "volatility" and by_forecast:
        required["sizing.volatility 'forecast'"] = frozenset({"volatility"})
    for key, needs in required.items():
        if missing := sorted(needs - measures):
            raise ConfigInvalid(
                f"{key} needs {' and '.join(missing)} of the model, which {config.strategy.name} "
                "is not given; take a checkpoint that gives it, or change the key."
            )


SIZED_BY: Final = {
    "expected_shortfall": frozenset({"tails"}),
    "network_allocation": frozenset({"allocation"}),
    "tanh": frozenset({"mean_return", "stdev_return"}),
    "kelly": frozenset({"mean_return", "stdev_return"}),
}
"""The outputs of a model that each ``sizing.mode`` needs."""


def reject_by_confidence(config: Config, fitted: FittedConfidence | None) -> None:
    """Raise ``ConfigInvalid`` if sizes need a confidence and the model's card has none *fitted*."""
    if config.sizing.by_confidence and fitted is None:
        raise ConfigInvalid(
            "sizing.by_confidence needs a model whose card has a fitted confidence at gate.horizon "
            f"{config.gate.horizon}; train it again, or remove the key."
        )
