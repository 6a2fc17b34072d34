"""From candles of several symbols to a checkpoint that answers for all of a close.

The card is that of any network. The rules are docs/several.md, P23 to P29.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import torch

from tracepaper.replay.training import card as cards
from tracepaper.replay.training.aligned import AlignedMaterial
from tracepaper.replay.training.aligned_fit import CrossSection
from tracepaper.replay.training.aligned_gates import gates_calibrated
from tracepaper.replay.training.aligned_judged import evaluated_together, scales_together
from tracepaper.replay.training.correlation import learn_correlations
from tracepaper.replay.training.fit import Fit, FitOptions, Observe, Progress, policy_of
from tracepaper.replay.training.fitted import save_judged
from tracepaper.replay.training.pipeline import Say, interval_name, no_context
from tracepaper.replay.training.recipe import (
    DROPOUT,
    SCHEMA,
    THREADS,
    chosen_of,
    command,
    features_of,
    middle,
    own_training,
    requested_baselines,
    typed,
    whole,
    with_baselines,
)
from tracepaper.replay.training.series import Part
from tracepaper.storage.checkpoints import Checkpoint, dump
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.cross_asset import CrossAssetConfig, CrossAssetNetwork
from tracepaper.strategies.units import MINUTE_MS

_UNKNOWN: Final = ("?",)
"""Stands for the symbols in a recipe: the candles name them."""


@dataclass(frozen=True)
class AlignedRecipe:
    """What a network over several assets is trained by; the candles say of which symbols."""

    kind: str
    config: CrossAssetConfig
    options: FitOptions
    horizon: int
    name: str = ""
    schema_id: str = SCHEMA
    intervals: tuple[str, ...] = ()
    threads: int = THREADS
    split: Mapping[str, Any] | None = None
    baselines: tuple[str, ...] = ()
    calendar: None = None
    explained_bars: int | None = None  # of all symbols, in each part; None: as many as in minutes

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Read a recipe or a card; raise ``ConfigInvalid`` for a key or a value it cannot have."""
        chosen = chosen_of(document, FitOptions)
        own, section = own_training(chosen["training"]), dict(chosen["architecture"])
        kind = str(chosen["model"]["kind"])
        if chosen["features"].get("calendar") or own.get("device", "cpu") != "cpu":
            raise ConfigInvalid(
                f"A {kind} network is trained on crypto's candles, by the processor; take "
                "--calendar and --device out."
            )
        horizons = section.get("horizons", CrossAssetConfig(symbols=_UNKNOWN).horizons)
        horizon = chosen["calibration"].get("horizon", section.get("every", middle(horizons)))
        section = {
            "every": horizon,
            "dropout": DROPOUT,
            **section,
            "allocation": kind == "portfolio",
        }
        section["symbols"] = _UNKNOWN
        config = CrossAssetConfig.read(section)
        if horizon not in config.horizons:
            raise ConfigInvalid(
                f"The gates' horizon of {horizon} bars is none of the network's"
                f" {list(config.horizons)}; choose one of these."
            )
        return cls(
            kind,
            config,
            typed(FitOptions, {"length": 512, "batch": 4, **chosen["training"]}),
            whole("calibration.horizon", horizon),
            name=str(chosen["model"].get("name", "")),
            schema_id=str(chosen["features"].get("schema_id", SCHEMA)),
            intervals=tuple(chosen["features"].get("intervals", ())),
            threads=whole("training.threads", own.get("threads", THREADS)),
            split=chosen["split"] or None,
            baselines=requested_baselines(own),
            explained_bars=own.get("explained_bars"),
        )

    @property
    def explained(self) -> dict[str, int]:
        """The key of how many bars are explained, where it was chosen."""
        return {} if self.explained_bars is None else {"explained_bars": self.explained_bars}

    def text(self) -> str:
        """Return it as TOML, which ``read_recipe`` reads back to an equal recipe."""
        return dump(self.document())

    def document(self) -> dict[str, Any]:
        """Return it as the sections of a file, every key with its value."""
        architecture = self.config.listed()
        del architecture["symbols"], architecture["allocation"]
        found: dict[str, Any] = {
            "model": {"kind": self.kind, "name": self.name},
            "architecture": architecture,
            "features": features_of(self.schema_id, self.intervals, None),
            "training": asdict(self.options)
            | {"threads": self.threads}
            | self.explained
            | with_baselines(self.baselines),
            "calibration": {"horizon": self.horizon},
        }
        return found if self.split is None else {**found, "split": dict(self.split)}


def train_aligned(
    material: AlignedMaterial,
    recipe: AlignedRecipe,
    folder: Path,
    *,
    created_ms: int,
    observe: Observe,
    say: Say,
) -> Checkpoint:
    """Fit, calibrate, judge and write a checkpoint into *folder*; return it.

    Raises ``ConfigInvalid`` or ``DataInvalid`` for candles that are too few.
    """
    for sentence in material.said:
        say(sentence)
    for part in (Part.CALIBRATION, Part.TEST):  # before minutes of fitting
        field = recipe.config.receptive_field
        if not any(len(one.whole_rows(field)) for one in material.labelled(part)):
            raise no_context(part, field)
    network, fit = fit_aligned(material, recipe, observe=observe, say=say)
    config = network.config
    card = _card(material, replace(recipe, config=config), fit.progress, folder, at=created_ms)
    say("Calibrating.")
    card = {**card, "calibration": card["calibration"] | scales_together(network, material)}
    if config.factors:
        card["calibration"]["correlation"] = learn_correlations(material.material)
    card = {**card, "calibration": gates_calibrated(card, fit.best, material)}
    say("Judging on untouched time.")
    card = cards.with_stop(evaluated_together(card, fit.best, material), fit.progress)
    return save_judged(folder, fit.best, card, material.material.fitted)


def fit_aligned(
    material: AlignedMaterial, recipe: AlignedRecipe, *, observe: Observe, say: Say
) -> tuple[CrossAssetNetwork, Fit]:
    """Fit the network of *recipe* to *material*; the network holds its best weights."""
    own = material.material
    config = replace(
        recipe.config,
        symbols=material.symbols,
        features=len(own.schema.names),
        interval_minutes=own.interval_ms // MINUTE_MS,
    )
    torch.manual_seed(recipe.options.seed)
    network = CrossAssetNetwork(config)
    weights = sum(parameter.numel() for parameter in network.parameters())
    say(
        f"{recipe.kind}: {weights:,} weights; an answer depends on {config.receptive_field:,} rows "
        f"of features of each of {len(config.symbols)} symbols."
    )
    learnt = CrossSection(
        network,
        material.labelled(Part.TRAIN),
        material.labelled(Part.VALIDATION),
        recipe.options,
    )
    policy = policy_of(network, recipe.options)
    fit = Fit(learnt, policy._replace(accumulate=1, patience=recipe.options.patience))
    fit.run(observe)
    if fit.progress.stopped:
        say(fit.progress.stopped)
    network.load_state_dict(fit.best)
    return network, fit


def _card(
    material: AlignedMaterial, recipe: AlignedRecipe, progress: Progress, folder: Path, *, at: int
) -> dict[str, Any]:
    """Return the card of an uncalibrated model, made *at* UTC milliseconds."""
    own = material.material
    bars = sum(len(one.rows) for one in material.labelled(Part.TRAIN))
    training = asdict(recipe.options) | {"threads": recipe.threads}
    return {
        "model": cards.model_section(recipe.kind, recipe.name or folder.name, at),
        "architecture": recipe.config.listed(),
        "features": cards.features_section(own.schema) | own.read_as,
        "market": cards.market_section(
            interval_name(own.interval_ms // MINUTE_MS), own.sources, own.times
        ),
        "training": {
            **training,
            **recipe.explained,
            **with_baselines(recipe.baselines),
            "best_step": progress.best_step,
            "last_step": progress.step,
            "bars": bars * len(material.symbols),
            "closes": bars,
            "not_used": list(material.said),
            "command": command(own.sources),
        },
        "calibration": {"horizon": recipe.horizon},
        "split": cards.split_section(own.split),
        "data": cards.data_section(own.sources),
        "versions": cards.versions_section(),
    }
