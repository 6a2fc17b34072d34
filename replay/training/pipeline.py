"""From candle files to a checkpoint: load, split, fit, calibrate, judge, and write the card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.replay.training import card as cards
from tracepaper.replay.training.card import (
    PERCENTS,
    ROUND_TRIP_COST,
    quantiles,
    slope,
    temperature,
)
from tracepaper.replay.training.correlation import (
    correlation_figures,
    correlation_sentences,
    correlations_of,
    learn_correlations,
)
from tracepaper.replay.training.evaluation import (
    HorizonForecasts,
    answer,
    judged,
    report,
)
from tracepaper.replay.training.explained import (
    ExplainedRows,
    JudgedPart,
    explain,
    passing,
    selective,
    traded,
)
from tracepaper.replay.training.fit import HeadsFit, Observe, Progress
from tracepaper.replay.training.fitted import FILE_NAME, save_judged
from tracepaper.replay.training.further import (
    further_figures,
    further_of,
    further_sentences,
    levels_of,
)
from tracepaper.replay.training.judgement import (
    default_thresholds,
    judged_section,
    judgement_section,
)
from tracepaper.replay.training.material import Material
from tracepaper.replay.training.paired import paired_figures
from tracepaper.replay.training.recipe import Recipe, command, explained, listed
from tracepaper.replay.training.series import Part, Split, date_ms
from tracepaper.replay.training.tails import TAILS, tail_factors
from tracepaper.replay.training.windows import windowed_rows
from tracepaper.storage.checkpoints import Checkpoint, save
from tracepaper.storage.checkpoints import load as load_checkpoint
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid, shown
from tracepaper.strategies.forecasters.build import build, restore
from tracepaper.strategies.networks.architecture import Network


def second_span(section: Mapping[str, Any]) -> int | None:
    """Return where the second span of untouched time begins; None where ``[split]`` is silent."""
    return date_ms(str(section["second_span"])) if "second_span" in section else None


def split_of(card: Mapping[str, Any]) -> Split:
    """Return the split that a card names; raise ``CheckpointMismatch`` where it names none."""
    try:
        section = card["split"]
        return Split(
            train_until_ms=date_ms(section["train_until"]),
            validation_until_ms=date_ms(section["validation_until"]),
            calibration_until_ms=date_ms(section["calibration_until"]),
            embargo_bars=int(section["embargo_bars"]),
            second_span_ms=second_span(section),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointMismatch(
            f"The model's card does not say its split ({shown(error)}); judge a checkpoint that "
            "does."
        ) from None


Say = Callable[[str], None]


def train(
    material: Material,
    recipe: Recipe,
    folder: Path,
    *,
    created_ms: int,
    observe: Observe,
    say: Say,
    resume: bool,
) -> Checkpoint:
    """Fit, calibrate, judge and write a checkpoint into *folder*; return it.

    The state of an unfinished fit lies beside it, in ``<folder>.training``.
    """
    recipe = recipe.fitted_to(material.schema, material.segments[0].interval_ms)
    for part in (Part.CALIBRATION, Part.TEST):  # before minutes of fitting
        field = recipe.config.receptive_field
        if not any(len(windowed_rows(samples, field)) for samples in material.samples(part)):
            raise no_context(part, field)
    state = folder.with_name(folder.name + ".training")
    fit = fit_network(material, recipe, state, observe=observe, say=say, resume=resume)
    return finish(material, recipe, fit.best, folder, fit.progress, created_ms=created_ms, say=say)


def fit_network(
    material: Material, recipe: Recipe, folder: Path, *, observe: Observe, say: Say, resume: bool
) -> HeadsFit:
    """Fit the network of *recipe*, whose state lies in *folder*."""
    config = recipe.config
    torch.manual_seed(recipe.options.seed)
    network = recipe.kind.make(config).to(_device(recipe.device))
    material = replace(material, heads=network.further_heads)
    if not resume:
        say(
            f"{recipe.kind.name}: {sum(p.numel() for p in network.parameters()):,} weights; an"
            f" answer depends on {config.receptive_field:,} rows of features."
        )
    fit = HeadsFit(
        network,
        material.samples(Part.TRAIN),
        material.samples(Part.VALIDATION),
        recipe.options,
        folder=folder,
        about=_about(material, recipe),
        levels=getattr(config, "quantiles", ()),
    )
    if resume and fit.resume():
        say(f"Taking up the fit at step {fit.progress.step}.")
    fit.run(observe)
    if fit.progress.stopped:
        say(fit.progress.stopped)
    return fit


def _about(material: Material, recipe: Recipe) -> dict[str, Any]:
    """Return what a fit is of, beside its options: the network, the candles and their split."""
    return {
        "network": {"kind": recipe.kind.name, **listed(recipe.config)},
        "candles": [source.sha256 for source in material.sources],
        "split": cards.parts_section(material.split),
        "features": recipe.schema_id,
        **({} if material.vectors is None else {"vectors": material.vectors.file.sha256}),
    }


def finish(
    material: Material,
    recipe: Recipe,
    weights: Mapping[str, Tensor],
    folder: Path,
    progress: Progress,
    *,
    created_ms: int,
    say: Say,
) -> Checkpoint:
    """Calibrate and judge *weights* and write them with their card into *folder*."""
    say("Calibrating.")
    card = first_card(material, recipe, progress, name=recipe.name or folder.name, at=created_ms)
    bars = recipe.bars_explained(restore(card, weights))
    card = calibrated(card, weights, material, bars=bars)
    say("Judging on untouched time.")
    card = cards.with_stop(evaluated(card, weights, material, bars=bars), progress)
    return save_judged(folder, weights, card, material.fitted)


def compare_seeds(folders: Sequence[Path]) -> list[Checkpoint]:
    """Write into the card of each checkpoint what the others, of other seeds, reached."""
    found = [load_checkpoint(folder) for folder in folders]
    every = [checkpoint.card for checkpoint in found]
    section = cards.seeds_section(every)
    sentences = cards.seeds_sentence(every, horizon=int(every[0]["calibration"]["horizon"]))
    return [
        save(
            folder,
            checkpoint.tensors,
            checkpoint.card
            | {
                "honesty": {"sentences": [*checkpoint.card["honesty"]["sentences"], sentences]},
                "seeds": section,
            },
            beside={FILE_NAME: (folder / FILE_NAME).read_bytes()},
        )
        for folder, checkpoint in zip(folders, found, strict=True)
    ]


def first_card(
    material: Material, recipe: Recipe, progress: Progress, *, name: str, at: int
) -> dict[str, Any]:
    """Return the card of an uncalibrated model, made *at* UTC milliseconds."""
    minutes = material.segments[0].interval_ms // 60_000
    bars = sum(int(s.weights.any(axis=1).sum()) for s in material.samples(Part.TRAIN))
    vectors = material.vectors
    return {
        "model": cards.model_section(recipe.kind.name, name, at),
        "architecture": listed(recipe.config),
        "features": cards.features_section(material.schema, material.vectors) | material.read_as,
        "market": cards.market_section(interval_name(minutes), material.sources, material.times),
        "training": cards.training_section(recipe, progress, bars=bars)
        | {"command": command(material.sources, vectors and vectors.file.path.name)},
        "calibration": {
            "content_free": recipe.kind.make(recipe.config).content_free(),
            "horizon": recipe.horizon,
        },
        "split": cards.split_section(material.split),
        "data": cards.data_section(material.sources),
        "versions": cards.versions_section(),
    }


def calibrated(
    card: Mapping[str, Any], weights: Mapping[str, Tensor], material: Material, *, bars: int
) -> dict[str, Any]:
    """Return *card* with temperature, slopes and quantiles of the calibration slice."""
    card = {**card, "calibration": scales_of(card, restore(card, weights), material)}
    return {**card, "calibration": gates_calibrated(card, weights, material, bars=bars)}


def scales_of(card: Mapping[str, Any], network: Network, material: Material) -> dict[str, Any]:
    """Return ``[calibration]`` of *card* with temperature and slopes of the calibration slice."""
    found = judge_part(network, material, Part.CALIBRATION)
    further = further_of(network, material, Part.CALIBRATION)
    return {
        **card["calibration"],
        "temperature": {str(j.horizon): temperature(j.logits, j.classes) for j in found},
        "slope": {str(j.horizon): slope(j.mean, j.value) for j in found},
        TAILS: tail_factors(found),
        **({"further": levels_of(further)} if further else {}),
        **({"correlation": learnt} if further and (learnt := learn_correlations(material)) else {}),
    }


def gates_calibrated(
    card: Mapping[str, Any], weights: Mapping[str, Tensor], material: Material, *, bars: int
) -> dict[str, Any]:
    """Return ``[calibration]`` of *card* with what gates need: quantiles, confidence, regimes.

    Of what the forecaster of *card* says of the calibration slice, explained bar by bar.
    """
    section = dict(card["calibration"])
    horizon = int(section["horizon"])
    seen = explain(
        built(card, weights, material),
        material.samples(Part.CALIBRATION),
        horizon=horizon,
        slope=section["slope"][str(horizon)],
        bars=bars,
    )
    section |= {
        "bars": len(seen.value),
        "round_trip_cost": ROUND_TRIP_COST,
        "percents": [PERCENTS[0], PERCENTS[-1]],
        "quantiles": {name: list(quantiles(values)) for name, values in seen.measures.items()},
    }
    return section | judgement_section(seen, section["quantiles"])


def evaluated(
    card: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    material: Material,
    *,
    bars: int | None = None,
) -> dict[str, Any]:
    """Return *card* with the figures of the test part and the sentences that follow from them.

    *bars* of it are explained; by default as many as can be in minutes.
    """
    found = judge(card, weights, material, bars=bars)
    return {
        **card,
        "calibration": found.calibration,
        "honesty": {"sentences": found.sentences},
        "figures": found.figures,
    }


def judge(
    card: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    material: Material,
    *,
    bars: int | None = None,
) -> JudgedPart:
    """Return what the network said of the test part, calibrated by its card, and its figures."""
    section = card["calibration"]
    network = restore(card, weights)
    found = judge_part(network, material, Part.TEST)
    figures = {
        str(j.horizon): report(
            j,
            temperature=section["temperature"][str(j.horizon)],
            slope=section["slope"][str(j.horizon)],
        )
        for j in found
    }
    figures |= paired_figures(found, ALL_MEASURES)
    gates = judged_gates(card, weights, material, bars=explained(network) if bars is None else bars)
    horizon = int(section["horizon"])
    further = further_of(network, material, Part.TEST, section.get("further"))
    of_further = further_figures(further)
    correlations = correlations_of(material, Part.TEST, section.get("correlation", {}))
    of_pairs = correlation_figures(correlations)
    return JudgedPart(
        [cooled(one, section["temperature"][str(one.horizon)]) for one in found],
        ALL_MEASURES,
        {
            **figures,
            **({"further": of_further} if further else {}),
            **({"correlation": of_pairs} if correlations else {}),
            "gates": gates.figures,
        },
        [
            *cards.sentences(figures, gates.figures, horizon=horizon),
            *further_sentences(of_further, horizon=horizon),
            *correlation_sentences(correlations, horizon=horizon),
            *gates.sentences,
        ],
        gates.explained,
        gates.rules,
        gates.calibration,
        further,
        correlations,
    )


class JudgedGates(NamedTuple):
    """What the gates of a model would have done on untouched time, as in ``JudgedPart``."""

    explained: ExplainedRows
    rules: Mapping[str, NDArray[np.bool_]]
    calibration: dict[str, Any]
    figures: dict[str, Any]
    sentences: list[str]


def judged_gates(
    card: Mapping[str, Any], weights: Mapping[str, Tensor], material: Material, *, bars: int
) -> JudgedGates:
    """Return what the gates by *card* make of the test part, of which *bars* are explained."""
    horizon = int(card["calibration"]["horizon"])
    seen = explain(
        built(card, weights, material),
        material.samples(Part.TEST),
        horizon=horizon,
        slope=card["calibration"]["slope"][str(horizon)],
        bars=bars,
    )
    section, found, said = judged_section(
        seen, card["calibration"], second_span_ms=material.split.second_span_ms
    )
    thresholds = default_thresholds(section)
    every = {"selective": selective(seen), "traded": traded(seen, thresholds), **found}
    return JudgedGates(seen, passing(seen, thresholds), section, every, said)


ALL_MEASURES: Final = frozenset({"mean_return", "stdev_return", "volatility", "probabilities"})
"""What every network gives."""


def cooled(found: HorizonForecasts, temperature: float) -> HorizonForecasts:
    """Return *found* with logits whose softmax is calibrated."""
    return replace(found, logits=(found.logits / temperature).astype(np.float32))


def built(card: Mapping[str, Any], weights: Mapping[str, Tensor], material: Material) -> Forecaster:
    """Return the forecaster of *card*, which sees the vectors of *material* where it takes some."""
    joined = material.schema.covariates
    source = None if joined is None else joined.source
    return build(card, weights, threads=torch.get_num_threads(), vectors=source)


def judge_part(network: Network, material: Material, part: Part) -> list[HorizonForecasts]:
    """Return the network's and the baselines' forecasts of *part*, for each horizon."""
    answered = answer(network, material.samples(part))
    if not answered:
        raise no_context(part, network.config.receptive_field)
    return judged(answered, material.baselines, material.horizons)


def no_context(part: Part, rows: int) -> ConfigInvalid:
    """Return what is said of a *part* without a bar that has the *rows* an answer depends on."""
    return ConfigInvalid(
        f"The {part.value} part has no bar with {rows:,} bars before it, on which an answer "
        "depends; narrow the window by --window, move the split's dates or give more candles."
    )


def use_threads(count: int) -> None:
    """Let PyTorch compute with *count* threads; results repeat only for the same number."""
    torch.set_num_threads(count)


def _device(name: str) -> torch.device:
    """Return the device of that name; raise ``ConfigInvalid`` where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigInvalid("No CUDA device was found; train with --device cpu.")
    if name not in ("cpu", "cuda"):
        raise ConfigInvalid(f"--device is {name!r}; choose cpu or cuda.")
    return torch.device(name)


def interval_name(minutes: int) -> str:
    """Return the exchange's name of an interval: minutes, or D and W."""
    return {1440: "D", 10_080: "W"}.get(minutes, str(minutes))
