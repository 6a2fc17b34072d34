"""A network and a row model as one checkpoint: shares and spread fitted on the calibration slice.

The rules are docs/models.md, L36, L37, L49 and L50.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from tracepaper.replay.training import card as cards
from tracepaper.replay.training import figures
from tracepaper.replay.training.array_cache import ArrayCache
from tracepaper.replay.training.card import rounded
from tracepaper.replay.training.evaluation import HorizonForecasts, answer, judged
from tracepaper.replay.training.explained import JudgedPart
from tracepaper.replay.training.figures import DailyEstimate
from tracepaper.replay.training.fit import FitOptions, Observe
from tracepaper.replay.training.fitted import save_judged, stored_baselines
from tracepaper.replay.training.material import (
    Material,
    full_id,
    reading,
)
from tracepaper.replay.training.own import NORMAL, OF_MODEL, figures_of
from tracepaper.replay.training.paired import paired_figures
from tracepaper.replay.training.pipeline import (
    ALL_MEASURES,
    Say,
    cooled,
    first_card,
    fit_network,
    gates_calibrated,
    judged_gates,
    scales_of,
    split_of,
)
from tracepaper.replay.training.recipe import Recipe, explained
from tracepaper.replay.training.rowwise import (
    RowRecipe,
    fit_rows,
    predictions,
    row_card,
    row_scales,
    spread,
)
from tracepaper.replay.training.samples import VARIANCE_FLOOR
from tracepaper.replay.training.series import IN_MEMORY, Part, iso
from tracepaper.replay.training.tails import TAILS, tail_factors
from tracepaper.storage.checkpoints import Checkpoint, dump, load
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.features.rows import schema, wider
from tracepaper.strategies.forecasters.build import (
    HALVES,
    is_ensemble,
    part_of,
    restore,
    tensors_of,
)
from tracepaper.strategies.forecasters.tabular import ENSEMBLE, ROW_KINDS, row_kind, trained_rows

SECTION: Final = "ensemble"
"""The section of a recipe that says which row model is fitted beside the network."""
NAMES: Final = ("network_half", "row_half")
"""What tables call the two halves beside the mix."""
_CREDIBLE: Final = 1.96
_KEPT: Final = ("model", "architecture", "features", "market", "training", "split", "data")
"""Sections of a half's card that stay, beside its scales: what it is, and how it is made again."""
_SCALES: Final = ("content_free", "horizon", "temperature", "slope", "spread")
"""Of a half's calibration; quantiles of gates are those of the whole."""


class Half(NamedTuple):
    """One half: a card whose forecasts are scaled, and tensors."""

    card: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    stopped: str = ""  # why its fit ended early


# --- what is chosen


@dataclass(frozen=True)
class EnsembleRecipe:
    """A network's recipe, and that of the row model beside it, which is fitted over one split."""

    network: Recipe
    rows: RowRecipe

    @classmethod
    def of(cls, document: Mapping[str, Any], *, created_ms: int) -> Self:
        """Read a recipe with ``[ensemble]``, or the card of an ensemble.

        Raises ``ConfigInvalid`` for a key or a value that it cannot have.
        """
        if "parts" in document:
            one, other = (half_as_card(document, half) for half in HALVES)
            name = {"name": document["model"].get("name", "")}
            one = {**one, "model": {**one["model"], **name}}
            return cls(Recipe.of(one), RowRecipe.of(other, created_ms=created_ms))
        chosen = dict(document[SECTION])
        network = Recipe.of({name: of for name, of in document.items() if name != SECTION})
        model = {"kind": _row_kind(chosen.pop("kind", "tree")), "name": network.name}
        features = {"schema_id": chosen.pop("schema_id", network.schema_id)}
        shared = network.document()
        rows = RowRecipe.of(
            {
                "model": model,
                "architecture": {"horizons": list(network.config.horizons)},
                "features": {**shared["features"], **features},
                "training": {"threads": network.threads, **chosen},
                "calibration": shared["calibration"],
                "split": shared.get("split", {}),
            },
            created_ms=created_ms,
        )
        return cls(network, rows)

    def wide(self, interval_ms: int) -> str:
        """Return the id of the wider schema, which a run computes, at bars of that length.

        Raises ``ConfigInvalid`` where neither half's features are a part of the other's.
        """
        both = (schema(full_id(one.schema_id, interval_ms)) for one in (self.network, self.rows))
        return wider(*both).schema_id

    @property
    def options(self) -> FitOptions:
        """How the network is fitted."""
        return self.network.options

    @property
    def threads(self) -> int:
        """Threads of PyTorch."""
        return self.network.threads

    @property
    def schema_id(self) -> str:
        """The features of the network."""
        return self.network.schema_id

    @property
    def horizons(self) -> tuple[int, ...]:
        """Bars ahead of both halves."""
        return self.network.config.horizons

    @property
    def intervals(self) -> tuple[str, ...]:
        """The model's interval, then others to learn from."""
        return self.network.intervals

    @property
    def calendar(self) -> str | None:
        """The exchange whose sessions are counted."""
        return self.network.calendar

    @property
    def baselines(self) -> tuple[str, ...]:
        """Those beside the ensemble that are fitted on request."""
        return self.network.baselines

    @property
    def split(self) -> Mapping[str, Any] | None:
        """The dates, where they are chosen."""
        return self.network.split

    def document(self) -> dict[str, Any]:
        """Return it as the sections of a file: the network's, and ``[ensemble]``."""
        own = {"kind": self.rows.kind, "schema_id": self.rows.schema_id}
        options = asdict(self.rows.options) | {"threads": self.rows.threads}
        return {**self.network.document(), SECTION: {**own, **options}}

    def text(self) -> str:
        """Return it as TOML, which ``of`` reads back."""
        return dump(self.document())


def recipe_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was read as a recipe: the card of an ensemble as what was chosen for it."""
    if "parts" not in document:
        return dict(document)
    return EnsembleRecipe.of(document, created_ms=0).document()


def half_as_card(card: Mapping[str, Any], half: str) -> dict[str, Any]:
    """Return the part of an ensemble's card as a recipe: a card with its results."""
    part = card["parts"][half]
    return {**part, "model": {"weights_sha256": "", **part["model"]}}


def _row_kind(name: object) -> str:
    if name not in ROW_KINDS:
        raise ConfigInvalid(
            f"An ensemble is a network with one of {', '.join(ROW_KINDS)}, not with {name!r}; "
            "choose one of these, or a folder with such a checkpoint."
        )
    return str(name)


def is_recipe(document: Mapping[str, Any]) -> bool:
    """Return whether *document* is of an ensemble: its recipe, or its card."""
    return SECTION in document


# --- from halves to a checkpoint


def train_ensemble(
    material: Material,
    of_network: Material,
    recipe: EnsembleRecipe,
    folder: Path,
    *,
    created_ms: int,
    observe: Observe,
    say: Say,
    resume: bool,
) -> Checkpoint:
    """Fit both halves, combine, judge and write them into *folder*; return the checkpoint.

    *material* is of the wider features, *of_network* of the network's. The state of an unfinished
    fit of the network lies in ``<folder>.training``.
    """
    network = fitted_network(
        of_network, recipe.network, folder, created_ms, observe=observe, say=say, resume=resume
    )
    rows = fitted_rows(material, recipe.rows, say=say)
    return combine(
        network, rows, material, folder,
        created_ms=created_ms, name=recipe.network.name or folder.name, say=say,
        bars=recipe.network.explained_bars,
    )  # fmt: skip


def fitted_network(
    material: Material,
    recipe: Recipe,
    folder: Path,
    created_ms: int,
    *,
    observe: Observe,
    say: Say,
    resume: bool,
) -> Half:
    """Fit the network, and its scales on the calibration slice."""
    recipe = recipe.fitted_to(material.schema, material.interval_ms)
    state = folder.with_name(folder.name + ".training")
    fit = fit_network(material, recipe, state, observe=observe, say=say, resume=resume)
    card = first_card(material, recipe, fit.progress, name=recipe.name, at=created_ms)
    section = scales_of(card, restore(card, fit.best), material)
    return Half({**card, "calibration": section}, fit.best, fit.progress.stopped)


def fitted_rows(material: Material, recipe: RowRecipe, *, say: Say) -> Half:
    """Fit the row model, and its scales on the calibration slice."""
    say(f"Fitting the {recipe.kind}.")
    tensors, options = fit_rows(material, recipe)
    card = row_card(material, recipe, options)
    return Half({**card, "calibration": row_scales(card, tensors, material)}, tensors)


def combine(
    network: Half,
    rows: Half,
    material: Material,
    folder: Path,
    *,
    created_ms: int,
    name: str,
    say: Say,
    bars: int | None = None,
) -> Checkpoint:
    """Write the ensemble of two halves into *folder*, judged on *material*; return it.

    *material* is of the wider of their features; *bars* are explained, for the gates. Raises
    ``ConfigInvalid`` for halves of other candles, dates or horizons.
    """
    wide = require_pair(network.card, rows.card)
    if material.schema.schema_id != wide:
        raise ConfigInvalid(f"The candles were read as {material.schema.schema_id}; read {wide}.")
    say("Combining the halves.")
    card, tensors = joined_halves(network, rows, material, name=name, created_ms=created_ms)
    section = gates_calibrated(card, tensors, material, bars=_bars(card, tensors, bars))
    say("Judging on untouched time.")
    card = evaluated_ensemble({**card, "calibration": section}, tensors, material, bars=bars)
    if network.stopped:
        sentences = [*card["honesty"]["sentences"], network.stopped]
        card = {**card, "honesty": {"sentences": sentences}}
    return save_judged(folder, tensors, card, material.fitted)


def joined_halves(
    network: Half, rows: Half, material: Material, *, name: str, created_ms: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return card and tensors of both halves together, shares and spread fitted, gates not yet."""
    tensors = {
        f"{half}.{key}": tensor
        for half, own in zip(HALVES, (network, rows), strict=True)
        for key, tensor in own.tensors.items()
    }
    card = _first_card(network, rows, material, name, created_ms)
    return _shared(card, tensors, material), tensors


def read_halves(
    network: Path, rows: Path, paths: Sequence[str], arrays: ArrayCache = IN_MEMORY
) -> tuple[Half, Half, Material]:
    """Return the checkpoints in two folders, and what ``combine`` judges them on.

    *paths* are their candles. Baselines are those beside the half that has all features.
    """
    found = [(place, load(place)) for place in (network, rows)]
    one, other = (Half(made.card, made.tensors) for _, made in found)
    wide = require_pair(one.card, other.card)
    kept = [stored_baselines(at, made.card) for at, made in found if wide == _schema_of(made.card)]
    material = Material.read(
        paths,
        lambda _: split_of(one.card),
        tuple(one.card["architecture"]["horizons"]),
        wide,
        arrays=arrays,
        stored=kept[0],
        **reading(one.card["features"]),
    )
    return one, other, material


def _schema_of(card: Mapping[str, Any]) -> str:
    return str(card["features"]["schema_id"])


def require_pair(network: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    """Return the id of the wider of the features of two cards that belong together.

    Raises ``CheckpointMismatch`` unless the first is a network's and the second a row model's, and
    ``ConfigInvalid`` where they learnt from other candles or dates, or speak of other horizons.
    """
    kinds = [is_ensemble(card) or row_kind(card) is not None for card in (network, rows)]
    if kinds != [False, True] or is_ensemble(rows):
        raise CheckpointMismatch(
            "An ensemble is a network and a tree or a glm; combine two such checkpoints."
        )
    for words, of in (
        ("[split]", lambda card: card.get("split")),
        ("the candles of [data]", lambda card: {f["sha256"] for f in card["data"]["files"]}),
        ("architecture.horizons", lambda card: list(card["architecture"]["horizons"])),
    ):
        if of(network) != of(rows):
            raise ConfigInvalid(
                f"The halves differ in {words} of their cards; train both on the same candles, "
                "dates and horizons."
            )
    both = (schema(_schema_of(card)) for card in (network, rows))
    return wider(*both).schema_id


class NetworkShare(NamedTuple):
    """The network's share of the log variance, and the mix's QLIKE less that of the better half."""

    share: float
    gain: DailyEstimate  # below zero: the mix is better


def network_share(
    network: Array, rows: Array, realised: Array, days: NDArray[np.int64]
) -> NetworkShare:
    """Return the share w at which exp(w · *network* + (1 − w) · *rows*) has the least QLIKE.

    All are [row]: log variances, what was realised, and the day of each row. QLIKE of v is
    v e^-s + s up to constants, convex in the log variance s and so in w: there is one minimum.
    """
    value = np.maximum(realised, VARIANCE_FLOOR)

    def each(share: float) -> Array:
        score: Array = share * network + (1.0 - share) * rows
        return value * np.exp(-score) + score

    found = minimize_scalar(
        lambda share: float(each(share).mean()), bounds=(0.0, 1.0), method="bounded"
    )
    candidates = (0.0, 1.0, float(found.x))  # the search never reaches the bounds themselves
    share = min(candidates, key=lambda one: float(each(one).mean()))
    better = min((each(0.0), each(1.0)), key=lambda losses: float(losses.mean()))
    return NetworkShare(share, figures.mean(each(share) - better, days))


def _bars(card: Mapping[str, Any], tensors: Mapping[str, Tensor], bars: int | None) -> int:
    """Return how many bars are explained: *bars*, or as many as the network can in minutes."""
    if bars is not None:
        return bars
    return explained(restore(part_of(card, HALVES[0]), tensors_of(tensors, HALVES[0])))


def _first_card(
    network: Half, rows: Half, material: Material, name: str, at: int
) -> dict[str, Any]:
    """Return the card of an ensemble without shares, whose halves' cards stand in ``[parts]``."""
    parts = {}
    for half, made in zip(HALVES, (network, rows), strict=True):
        scales = made.card["calibration"]
        kept = {section: made.card[section] for section in _KEPT}
        kept["model"] = {key: kept["model"].get(key, "") for key in ("kind", "name")}
        kept["calibration"] = {key: scales[key] for key in _SCALES if key in scales}
        parts[half] = kept
    of_network = parts[HALVES[0]]
    return {
        "model": {"kind": ENSEMBLE, "name": name, "created": iso(at), "notice": cards.NOTICE},
        "architecture": of_network["architecture"],
        "features": cards.features_section(material.schema) | material.read_as,
        "market": of_network["market"],
        "training": {
            "seed": of_network["training"]["seed"],
            "threads": of_network["training"]["threads"],
            "command": of_network["training"]["command"],
        },
        "calibration": of_network["calibration"],
        "split": of_network["split"],
        "data": of_network["data"],
        "versions": cards.versions_section(),
        "parts": parts,
    }


def _shared(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], material: Material
) -> dict[str, Any]:
    """Return *card* with the shares and the spread that the calibration slice asks for."""
    shares, gains, spreads, mixes = {}, {}, {}, []
    for one in judge_halves(card, tensors, material, Part.CALIBRATION):
        log_network, log_rows = (np.log(one.variances[half]) for half in NAMES)
        found = network_share(log_network, log_rows, one.variance, one.days)
        key = str(one.horizon)
        shares[key] = rounded(found.share)
        gains[key] = [round(part, 5) for part in found.gain]
        spreads[key] = spread(_mixed(one, shares[key], 1.0))
        mixes.append(_mixed(one, shares[key], spreads[key]))
    return {
        **card,
        SECTION: {"network_share": shares, "gain": gains},
        "calibration": {**card["calibration"], "spread": spreads, TAILS: tail_factors(mixes)},
    }


def judge_halves(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], material: Material, part: Part
) -> list[HorizonForecasts]:
    """Return the network's forecasts of *part* beside the row model's and the baselines'.

    The halves' variances stand there by ``NAMES``.
    """
    own = {half: (part_of(card, half), tensors_of(tensors, half)) for half in HALVES}
    network = restore(*own[HALVES[0]])
    kind = row_kind(own[HALVES[1]][0])
    assert kind is not None, "an ensemble has a row model"
    rows = trained_rows(*own[HALVES[1]], kind)
    answered = answer(network, material.samples(part))
    if not answered:
        raise ConfigInvalid(
            f"The {part.value} part has no bar with {network.config.receptive_field} bars before "
            "it; move the split's dates or give longer candles."
        )
    columns = len(rows.schema.names)
    said = [
        predictions(rows.model, samples.segment.values[at, :columns]).variance
        for samples, at, _ in answered
    ]
    variances = np.concatenate(said).astype(np.float64)
    weights = np.concatenate([samples.weights[at] for samples, at, _ in answered])
    found = judged(answered, material.baselines, material.horizons)
    return [
        replace(
            one,
            variances={
                NAMES[0]: one.variances["network"],
                NAMES[1]: variances[weights[:, column] > 0, column],
                **{name: of for name, of in one.variances.items() if name != "network"},
            },
        )
        for column, one in enumerate(found)
    ]


def mixed(
    card: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    material: Material,
    part: Part = Part.TEST,
) -> list[HorizonForecasts]:
    """Return what the mix says of *part*, beside its halves and the baselines."""
    section, shares = card["calibration"], card[SECTION]["network_share"]
    found = []
    for one in judge_halves(card, tensors, material, part):
        key = str(one.horizon)
        mix = _mixed(one, shares[key], section["spread"][key])
        found.append(cooled(mix, section["temperature"][key]))
    return found


def _mixed(one: HorizonForecasts, share: float, wide: float) -> HorizonForecasts:
    """Return the ensemble's forecasts of the halves *one*; *wide* is its spread."""
    network, rows = (np.log(one.variances[half]) for half in NAMES)
    variance = np.exp(share * network + (1.0 - share) * rows)
    return replace(
        one,
        scale=np.sqrt(variance) * wide,
        dof=np.full(len(variance), NORMAL),
        variances={"network": variance, **one.variances},
    )


# --- the judgement


def evaluated_ensemble(
    card: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    material: Material,
    *,
    bars: int | None = None,
) -> dict[str, Any]:
    """Return *card* with the figures of the test part, each half's volatility among them."""
    found = judge_ensemble(card, tensors, material, bars=bars)
    return {
        **card,
        "calibration": found.calibration,
        "honesty": {"sentences": found.sentences},
        "figures": found.figures,
    }


def judge_ensemble(
    card: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    material: Material,
    *,
    bars: int | None = None,
) -> JudgedPart:
    """Return what the mix said of the test part, and its figures; *bars* are explained."""
    section, found = card["calibration"], mixed(card, tensors, material)
    told: dict[str, Any] = {}
    for one in found:
        told[str(one.horizon)] = figures_of(one, ALL_MEASURES) | {"qlike_gain": _gains(one)}
    told |= paired_figures(found, ALL_MEASURES, NAMES)
    gates = judged_gates(card, tensors, material, bars=_bars(card, tensors, bars))
    horizon = int(section["horizon"])
    sentences = cards.sentences(told, gates.figures, horizon=horizon, own=OF_MODEL)
    sentences.append(_halves_sentence(card, told[str(horizon)]["qlike_gain"], horizon))
    return JudgedPart(
        found,
        ALL_MEASURES,
        {**told, "gates": gates.figures},
        [*sentences, *gates.sentences],
        gates.explained,
        gates.rules,
        gates.calibration,
    )


def _gains(one: HorizonForecasts) -> dict[str, list[float]]:
    """Return the mix's QLIKE less that of each half on the same bars, with errors by day."""
    own = figures.qlike_of(one.variances["network"], one.variance)
    found = {}
    for half in NAMES:
        other = figures.qlike_of(one.variances[half], one.variance)
        found[half] = [round(part, 5) for part in figures.mean(own - other, one.days)]
    return found


def _halves_sentence(
    card: Mapping[str, Any], gains: Mapping[str, Sequence[float]], horizon: int
) -> str:
    """Say what share each half has, and whether the mix is credibly better than both."""
    share = card[SECTION]["network_share"][str(horizon)]
    kind = card["parts"][HALVES[1]]["model"]["kind"]
    words = {NAMES[0]: "the network", NAMES[1]: f"the {kind}"}
    said = " and ".join(
        f"{gains[half][0]:+.4f} (± {gains[half][1]:.4f} by days) from {words[half]} alone"
        for half in NAMES
    )
    rivals = [half for half in NAMES if not gains[half][0] < -_CREDIBLE * gains[half][1] < 0]
    verdict = "credibly better than both halves."
    if rivals:
        names = " or ".join(words[half] for half in rivals)
        verdict = f"not credibly better than {names} alone, which may be used in its place."
    return (
        f"At {horizon} bars the network has a share of {share:.2f} in the log variance, the {kind} "
        f"the rest; on untouched bars this changed QLIKE by {said}: {verdict}"
    )
