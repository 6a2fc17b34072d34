"""A recipe fitted anew on each fold before the untouched time, and judged on the fold's test.

What is chosen (recipe, score, window, ensemble) is chosen by these, so that no span is opened. Each
fold fits the model and every baseline on its own training spans alone.

The rule is docs/models.md, L44.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from tracepaper.replay.judging.across import RANKS, WEIGHTS, rank_table, weights_table
from tracepaper.replay.judging.folds import (
    COMBINATORIAL,
    Fold,
    Span,
    asked,
    paths,
    read_folds,
    with_calibration,
)
from tracepaper.replay.judging.judgement import LOSSES, OWN, Losses
from tracepaper.replay.judging.statistics import overfitting
from tracepaper.replay.report.document import Figure, Form, Table, Value, table
from tracepaper.replay.training import figures
from tracepaper.replay.training.across import AcrossAssets
from tracepaper.replay.training.aligned import AlignedMaterial
from tracepaper.replay.training.aligned_judged import forecasts_together, scales_together
from tracepaper.replay.training.aligned_pipeline import AlignedRecipe, fit_aligned
from tracepaper.replay.training.ensemble import (
    EnsembleRecipe,
    fitted_network,
    fitted_rows,
    joined_halves,
    mixed,
)
from tracepaper.replay.training.evaluation import HorizonForecasts
from tracepaper.replay.training.fitted import Fitted, unfitted
from tracepaper.replay.training.material import Material
from tracepaper.replay.training.own import OF_MODEL
from tracepaper.replay.training.paired import corrected, difference, verdict
from tracepaper.replay.training.pipeline import Say, fit_network, judge_part
from tracepaper.replay.training.recipe import Recipe
from tracepaper.replay.training.rowwise import RowRecipe, fit_rows, judge_row_part
from tracepaper.replay.training.series import Part, Parts
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.build import is_ensemble, restore
from tracepaper.strategies.forecasters.cross_asset import is_together
from tracepaper.strategies.forecasters.tabular import row_kind
from tracepaper.strategies.units import DAY_MS

REFITS_MOST: Final = 3
"""Folds of a network: each costs a training."""


@dataclass(frozen=True)
class FoldMaterial(Material):
    """What one fold learns from, stops by and is tested on."""

    fold: Fold = field(kw_only=True)

    @property
    def parts(self) -> Parts:
        """The fold's parts in place of the split's."""
        return self.fold

    @classmethod
    def of(cls, material: Material, fold: Fold, stored: Fitted | None = None) -> FoldMaterial:
        """Return *material* by *fold*; its baselines are fitted anew, unless they are *stored*.

        So is how a user's vectors are standardised: by what the fold learns from alone.
        """
        own = material.standardised(max(until for _, until in fold.train))
        known = {each.name: getattr(own, each.name) for each in fields(material)}
        return cls(**{**known, "stored": stored}, fold=fold)


@dataclass(frozen=True)
class Refits:
    """The forecasts of each fold's test, by fold and horizon; *combination* is (groups, tests).

    *across* is what a network over several assets says beside them, by fold; else it is empty.
    """

    text: str
    folds: Sequence[Fold]
    forecasts: Sequence[Sequence[HorizonForecasts]]
    combination: tuple[int, int] | None
    across: Sequence[AcrossAssets] = ()


def refit(
    card: Mapping[str, Any],
    material: Material,
    text: str,
    *,
    of_network: Material | None = None,
    say: Say,
) -> Refits:
    """Fit the recipe of *card* on the folds that *text* names, of the time before the untouched.

    *of_network* has the features of an ensemble's network, where *material* has more. Raises
    ``ConfigInvalid`` for folds that the candles, or a network, cannot have.
    """
    kind, numbers = asked(text)
    is_network = row_kind(card) is None
    if is_network:
        refuse_many(kind, numbers)
    if is_together(card):
        return _refit_together(card, material, text, say)
    embargo_ms = material.split.embargo_bars * material.interval_ms
    folds = read_folds(text, _before(material), embargo_ms=embargo_ms)
    if is_ensemble(card):
        folds = [with_calibration(fold) for fold in folds]
    found = []
    for place, fold in enumerate(folds, start=1):
        say(f"Fold {place} of {len(folds)}.")
        own = FoldMaterial.of(material, fold)
        if is_ensemble(card):
            found.append(_ensemble(card, own, of_network or material, say))
        else:
            found.append((_network if is_network else _rows)(card, own, say))
    combination = (numbers[0], numbers[1]) if kind == COMBINATORIAL else None
    return Refits(text, folds, found, combination)


def refuse_many(kind: str, numbers: Sequence[int]) -> None:
    """Raise ``ConfigInvalid`` for folds that a network is not fitted on."""
    if kind == COMBINATORIAL or numbers[0] > REFITS_MOST:
        raise ConfigInvalid(
            f"A network is fitted anew at most {REFITS_MOST} times, on folds that walk: write "
            f"--folds walk:{REFITS_MOST}. Combinatorial folds are for tree and glm."
        )


def _refit_together(card: Mapping[str, Any], material: Material, text: str, say: Say) -> Refits:
    """Fit a network over several assets on folds of the closes that all of them have."""
    aligned = AlignedMaterial.of(material, lambda _: material.split)
    for sentence in aligned.said:
        say(sentence)
    common = aligned.material
    embargo_ms = common.split.embargo_bars * common.interval_ms
    folds = read_folds(text, _before(common), embargo_ms=embargo_ms)
    forecasts, across = [], []
    for place, fold in enumerate(folds, start=1):
        say(f"Fold {place} of {len(folds)}.")
        own = replace(aligned, material=FoldMaterial.of(common, fold))
        network, fit = fit_aligned(own, AlignedRecipe.of(card), observe=lambda _: None, say=say)
        made = {**card, "architecture": network.config.listed()}
        made["calibration"] = card["calibration"] | scales_together(network, own)
        said, beside = forecasts_together(made, fit.best, own)
        forecasts.append(said)
        across.append(beside)
    return Refits(text, folds, forecasts, None, across)


def _before(material: Material) -> Span:
    """Return the time from the first bar that has features until the untouched time."""
    first = min(int(one.open_time_ms[one.first]) for one in material.segments)
    last = max(int(one.close_time_ms[-1]) for one in material.segments)
    return first, min(last, material.split.calibration_until_ms)


def _network(card: Mapping[str, Any], material: FoldMaterial, say: Say) -> list[HorizonForecasts]:
    recipe = Recipe.of(card).fitted_to(material.schema, material.interval_ms)
    with tempfile.TemporaryDirectory(prefix="tracepaper-fold-") as folder:
        fit = fit_network(
            material, recipe, Path(folder), observe=lambda _: None, say=say, resume=False
        )
    return judge_part(restore(card, fit.best), material, Part.TEST)


def _rows(card: Mapping[str, Any], material: FoldMaterial, _: Say) -> list[HorizonForecasts]:
    recipe = RowRecipe.of(card, created_ms=0)
    return judge_row_part(card, fit_rows(material, recipe)[0], material, Part.TEST)


def _ensemble(
    card: Mapping[str, Any], material: FoldMaterial, of_network: Material, say: Say
) -> list[HorizonForecasts]:
    """Fit both halves, their shares on the calibration of the fold, and return what the mix says.

    The halves stand beside it.
    """
    recipe = EnsembleRecipe.of(card, created_ms=0)
    own = material
    if of_network.schema.schema_id != material.schema.schema_id:
        own = FoldMaterial.of(of_network, material.fold, unfitted())
    with tempfile.TemporaryDirectory(prefix="tracepaper-fold-") as folder:
        network = fitted_network(
            own,
            recipe.network,
            Path(folder) / "network",
            0,
            observe=lambda _: None,
            say=say,
            resume=False,
        )
    rows = fitted_rows(material, recipe.rows, say=say)
    return mixed(*joined_halves(network, rows, material, name="", created_ms=0), material)


# --- what the folds say


def tables(found: Refits) -> list[Table]:
    """Return each loss by forecaster and horizon, and how likely a choice by it is luck."""
    made = []
    for key, (title, _, losses) in LOSSES.items():
        made.append(_pooled(found, f"folds_{key}", f"{title}, over {found.text}", losses))
        if found.combination is not None:
            made.append(_selected(found, f"overfitting_{key}", title, losses))
    if found.across:
        each = list(zip(*found.forecasts, strict=True))  # by horizon
        parts = [list(zip(every, found.across, strict=True)) for every in each]
        made.append(rank_table("folds_across", f"{RANKS}, over {found.text}", parts))
        held = [one.held for one in found.across]
        title = f"{WEIGHTS}, over {found.text}"
        made += [one for one in [weights_table("folds_weights", title, held)] if one is not None]
    return made


class _Row(dict[str, Value]):
    """A row of values by the keys of its columns."""


def _pooled(found: Refits, key: str, title: str, losses: Losses) -> Table:
    """Return a row a forecaster: its mean loss over all tests, and the model's less it."""
    rows: dict[str, _Row] = {}
    horizons = [one.horizon for one in found.forecasts[0]]
    for column, horizon in enumerate(horizons):
        every = [fold[column] for fold in found.forecasts]
        days = np.concatenate([one.days for one in every])
        by_name = _joined([losses(one) for one in every])
        against = corrected(
            {n: difference(by_name[OWN], of, days) for n, of in by_name.items() if n != OWN}
        )
        for name, loss in by_name.items():
            row = rows.setdefault(name, _Row(forecaster=_words(name)))
            row[str(horizon)] = figures.mean(loss, days)
            if name in against:
                row[f"{horizon}_verdict"] = verdict(against[name])
    columns = [Figure[_Row]("forecaster", "forecaster", "text", lambda row: row["forecaster"])]
    for horizon in horizons:
        columns.append(_column(str(horizon), f"{horizon} bars", "measure"))
        columns.append(_column(f"{horizon}_verdict", "the model is", "text"))
    note = (
        "Each fold fits the model and every baseline on its own training spans; errors by day, the "
        "verdict by Holm over the baselines."
    )
    return table(key, title, columns, rows.values(), notes=[note])


def _selected(found: Refits, key: str, title: str, losses: Losses) -> Table:
    """Return for each horizon the probability that the best forecaster is so by luck, by path."""
    assert found.combination is not None
    rows = []
    routes = paths(*found.combination)
    for column, one in enumerate(found.forecasts[0]):
        values = [overfitting(_scores(found, route, column, losses)) for route in routes]
        known = [value for value in values if value is not None]
        row = _Row(horizon=str(one.horizon), paths=len(routes))
        if known:
            row |= {"mean": float(np.mean(known)), "most": max(known)}
        rows.append(row)
    columns = [
        _column("horizon", "bars ahead", "text"),
        _column("paths", "paths", "count"),
        _column("mean", "probability", "measure"),
        _column("most", "highest of a path", "measure"),
    ]
    note = (
        "How often the forecaster that is best on half of the groups is in the worse half on the "
        "others; a half is what chance makes. At least four groups."
    )
    return table(
        key, f"{title}: is the best forecaster chosen by luck?", columns, rows, notes=[note]
    )


def _scores(found: Refits, route: Sequence[int], column: int, losses: Losses) -> Array:
    """Return [group, forecaster]: the mean loss on each group by the fold that the path takes."""
    scores = []
    for group, place in enumerate(route):
        fold, one = found.folds[place], found.forecasts[place][column]
        chosen = _span_of(found, group, fold)
        inside = (one.days >= chosen[0]) & (one.days < chosen[1])
        if not inside.any():
            raise ConfigInvalid("A group of the folds has no bar; give fewer groups.")
        scores.append([float(loss[inside].mean()) for loss in losses(one).values()])
    return np.array(scores)


def _span_of(found: Refits, group: int, fold: Fold) -> tuple[int, int]:
    """Return the days from and until of a *group*, which is one test of *fold*."""
    every = sorted({span for each in found.folds for span in each.test})
    start, stop = every[group]
    assert (start, stop) in fold.test
    return start // DAY_MS, stop // DAY_MS


def _joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _words(name: str) -> str:
    return (OF_MODEL if name == OWN else name).replace("_", " ")


def _column(key: str, title: str, form: Form) -> Figure[_Row]:
    return Figure(key, title, form, lambda row: row.get(key))
