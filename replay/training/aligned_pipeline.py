"""From candles of several symbols to a checkpoint that answers for all of a close: fit and judge.

The card is that of any network. Figures of each horizon are over all assets, beside the baselines
of each; to them come the rank correlation across the assets, close by close, and what the weights
made. The rules are docs/several.md, P23 to P29.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from tracepaper.replay.training import card as cards
from tracepaper.replay.training import figures
from tracepaper.replay.training.aligned import (
    AlignedMaterial,
    CrossPredictions,
    Ids,
    Labelled,
    predicted,
)
from tracepaper.replay.training.aligned_fit import AlignedFit
from tracepaper.replay.training.card import NOTICE, slope, temperature
from tracepaper.replay.training.evaluation import HorizonForecasts, judged, report
from tracepaper.replay.training.findings import Cell, Finding
from tracepaper.replay.training.fit import FitOptions, Observe, Progress
from tracepaper.replay.training.fitted import save_judged
from tracepaper.replay.training.pipeline import Say, interval_name
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
from tracepaper.replay.training.weighed import (
    NETWORK,
    WeightsAt,
    weighed_figures,
    weighings,
)
from tracepaper.replay.training.weighed import sentences as weighed_sentences
from tracepaper.storage.checkpoints import Checkpoint, dump
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features_rolling import Array
from tracepaper.strategies.forecasters.together import TogetherModel
from tracepaper.strategies.market import MINUTE_MS
from tracepaper.strategies.networks.crossasset import (
    JOINT,
    CrossAssetConfig,
    CrossAssetNetwork,
)

JOINT_ROWS: Final = 4_000
"""Closes of a part that joint attention is judged on: each costs a pass over its window."""
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
        )

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
    fit = AlignedFit(
        network,
        material.labelled(Part.TRAIN),
        material.labelled(Part.VALIDATION),
        recipe.options,
    )
    fit.run(observe)
    network.load_state_dict(fit.best)
    card = _card(material, replace(recipe, config=config), fit.progress, folder, at=created_ms)
    say("Calibrating.")
    card = {**card, "calibration": card["calibration"] | _scales(network, material)}
    say("Judging on untouched time.")
    card = evaluated_together(card, fit.best, material)
    return save_judged(folder, fit.best, card, own.fitted)


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


# ---------------------------------------------------------------- judged


class _Answered(NamedTuple):
    """What a network said of one stretch of a part."""

    labelled: Labelled
    said: CrossPredictions


def _answered(network: CrossAssetNetwork, material: AlignedMaterial, part: Part) -> list[_Answered]:
    """Return the answers at every labelled close of *part* with a whole field before it."""
    found = []
    for one in material.labelled(part):
        rows = one.whole_rows(network.config.receptive_field)
        if network.config.attention == JOINT:
            rows = rows[:: -(-len(rows) // JOINT_ROWS)] if len(rows) else rows
        if len(rows):
            found.append(_Answered(one, predicted(network, one.stretch, rows)))
    if not found:
        raise ConfigInvalid(
            f"The {part.value} part has no close with {network.config.receptive_field} bars before "
            "it; move the split's dates or narrow the window."
        )
    return found


def _judged(answered: Sequence[_Answered], material: AlignedMaterial) -> list[HorizonForecasts]:
    """Put forecasts, baselines and labels of every asset side by side, asset after asset."""
    pairs = [
        (samples, one.said.rows, said)
        for one in answered
        for samples, said in zip(one.labelled.samples, one.said.each, strict=True)
    ]
    return judged(pairs, material.material.baselines, material.horizons)


def _scales(network: CrossAssetNetwork, material: AlignedMaterial) -> dict[str, Any]:
    """Return temperature and slopes of the calibration slice, by horizon."""
    answered = _answered(network, material, Part.CALIBRATION)
    found = _judged(answered, material)
    relative = {}
    for at, horizon in enumerate(material.horizons):
        pairs = [
            (one.said.relative[..., at], one.labelled.relative[:, one.said.rows, at])
            for one in answered
        ]
        forecast, value = (np.concatenate([p[i].ravel() for p in pairs]) for i in (0, 1))
        known = np.isfinite(value)
        relative[str(horizon)] = slope(
            forecast[known].astype(np.float64), value[known].astype(np.float64)
        )
    return {
        "temperature": {str(one.horizon): temperature(one.logits, one.classes) for one in found},
        "slope": {str(one.horizon): slope(one.mean, one.value) for one in found},
        "relative_slope": relative,
    }


def evaluated_together(
    card: Mapping[str, Any], weights: Mapping[str, Tensor], material: AlignedMaterial
) -> dict[str, Any]:
    """Return *card* with the figures of the test part and the sentences that follow from them."""
    model, section = TogetherModel.read(card, weights), card["calibration"]
    answered = _answered(model.network, material, Part.TEST)
    found: dict[str, Any] = {}
    for at, one in enumerate(_judged(answered, material)):
        name = str(one.horizon)
        own = report(one, temperature=section["temperature"][name], slope=section["slope"][name])
        found[name] = {**own, "relative_rank_ic": _across(one, answered, at)}
    every = model.config.every
    decisions = weighings(
        material.labelled(Part.TEST), every=every, field=model.config.receptive_field
    )
    said = []
    if decisions:
        found["weights"] = weighed_figures(decisions, _weights_of(model))
        said = weighed_sentences(found["weights"])
    told = [NOTICE, *_sentences(found, horizon=model.horizon), *said]
    return {**card, "figures": found, "honesty": {"sentences": told}}


def _weights_of(model: TogetherModel) -> WeightsAt:
    """Return what weighs as the strategy of *model* does."""

    def found(one: Labelled, rows: Ids) -> Array:
        said = predicted(model.network, one.stretch, rows)
        allocation = None if said.allocation is None else torch.from_numpy(said.allocation)
        return model.weights(torch.from_numpy(said.relative), allocation)

    return found


def _across(
    found: HorizonForecasts, answered: Sequence[_Answered], at: int
) -> dict[str, list[float]]:
    """Return the mean over closes of the rank correlation across the assets, by forecast.

    Of expected with realised log returns; ``relative`` is the network's head for it, every other
    name is a mean of the tables above. Errors are by day.
    """
    expected: dict[str, list[Array]] = {name: [] for name in ("relative", *found.means)}
    realised, days, start = [], [], 0
    for one in answered:
        rows, assets = one.said.rows, len(one.labelled.samples)
        used = one.labelled.samples[0].weights[rows, at] > 0
        count = int(used.sum())
        span = slice(start, start + assets * count)
        start += assets * count
        unit = found.unit[span].reshape(assets, count)
        realised.append(found.value[span].reshape(assets, count) * unit)
        days.append(found.days[span][:count])
        expected["relative"].append(one.said.relative[:, used, at] * unit)
        for name, mean in found.means.items():
            expected[name].append(mean[span].reshape(assets, count) * unit)
    made, of_days = np.concatenate(realised, axis=1), np.concatenate(days)
    return {
        name: _pair(rank_correlations(np.concatenate(parts, axis=1), made), of_days)
        for name, parts in expected.items()
    }


def rank_correlations(expected: Array, realised: Array) -> Array:
    """Return Spearman's correlation across the assets, one a close, of [asset, close].

    0 where either is the same for all.
    """
    first, second = (rankdata(values, axis=0) for values in (expected, realised))
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    spread = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    found: Array = np.divide(
        (first * second).sum(axis=0), spread, out=np.zeros(len(spread)), where=spread > 0
    )
    return found


def _pair(values: Array, days: NDArray[np.int64]) -> list[float]:
    found = figures.mean(values, days)
    return [round(found.value, 5), round(found.error, 5)]


def _sentences(found: Mapping[str, Any], *, horizon: int) -> list[str]:
    """Return what an honest reader must know of the forecasts at the gates' horizon."""
    main = found[str(horizon)]
    accuracy, error = main["sign_accuracy"][NETWORK]
    rank, noise = main["relative_rank_ic"]["relative"]
    word = "above" if rank > 2.0 * noise > 0.0 else "not above"
    return [
        (
            f"At {horizon} bars it named the sign of the return in {100 * accuracy:.1f} % of "
            f"untouched bars (± {100 * error:.1f} by days); half is chance."
        ),
        *cards.volatility_sentence(main["qlike"], NETWORK, horizon),
        (
            f"Across the assets its relative returns have a rank correlation of {rank:+.3f} (± "
            f"{noise:.3f} over {main['days']} days) with what came: {word} chance."
        ),
    ]


# ---------------------------------------------------------------- shown

_SHOWN: Final[Mapping[str, str]] = {
    "qlike": "Volatility, QLIKE",
    "sign_accuracy": "Sign of the return, share named",
    "ic": "Return, correlation",
    "relative_rank_ic": "Across the assets, rank correlation by close",
}


def findings_of(card: Mapping[str, Any]) -> list[Finding]:
    """Return the figures of a card as tables: one a figure, a row a forecast."""
    found, horizons = card["figures"], [str(one) for one in card["architecture"]["horizons"]]
    days = found[horizons[0]]["days"]
    note = f"{days} untouched days; errors by day"
    tables = []
    for figure, title in _SHOWN.items():
        rows: list[dict[str, Cell]] = [
            {"of": name, **{f"{one} bars": found[one][figure][name] for one in horizons}}
            for name in found[horizons[0]][figure]
        ]
        tables.append(Finding(figure, title, note, rows))
    if "weights" in found:
        tables.append(_weights_table(found["weights"]))
    return tables


def _weights_table(found: Mapping[str, Any]) -> Finding:
    against = found["against_bp_a_day"]
    rows: list[dict[str, Cell]] = [
        {
            "weights": name,
            "net, bp a day": net,
            "network less it": against.get(name, ""),
            "turnover a day": found["turnover_a_day"][name],
            "gross": found["gross"][name],
        }
        for name, net in found["net_bp_a_day"].items()
    ]
    note = (
        f"{found['decisions']} decisions on {found['days']} untouched days, "
        f"{1e4 * found['fee']:.1f} basis points of what is traded; errors by day"
    )
    return Finding("weights", "Weights, net of fees", note, rows)
