"""Recipes refitted on folds of candles or order books, and the effect of changes to a recipe.

The rules are docs/models.md, L44 and L55.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from tracepaper.replay.document.values import (
    Found,
    Table,
    TitledParts,
    Value,
    documents,
    of_row,
    table,
)
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fit import threads_used, use_threads
from tracepaper.replay.learning.fitted import (
    DataRequest,
    Each,
    FitRun,
    Say,
    one_by_one,
    read_dataset,
)
from tracepaper.replay.learning.judge.forecasts import Forecasts, concatenated
from tracepaper.replay.learning.judge.metrics import (
    COMPARED,
    LOSSES,
    NOTE,
    Metric,
    compared_by,
    forecaster_table,
    views,
)
from tracepaper.replay.learning.judge.tables import scores_of
from tracepaper.replay.learning.recipe import (
    ARCHITECTURE,
    KeyValue,
    kind_of,
    member_as_card,
    recipe_of,
)
from tracepaper.replay.learning.splits import (
    COMBINATORIAL,
    Fold,
    Part,
    folds_named,
    paths,
    read_folds,
    with_calibration,
)
from tracepaper.replay.learning.statistics import overfitting
from tracepaper.storage.checkpoints import Checkpoint
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.build import MEMBERS
from tracepaper.strategies.units import DAY_MS

REFITS_MOST: Final = 3
"""The most folds of a network, which must be walk-forward: each costs a training."""


@dataclass(frozen=True)
class Refits:
    """The forecasts of each fold's test; *combination* is (groups, tests), or None."""

    text: str
    folds: Sequence[Fold]
    tests: Sequence[Forecasts]
    combination: tuple[int, int] | None

    @property
    def pooled(self) -> Forecasts:
        """The rows of all tests."""
        return concatenated(self.tests)

    def joined(self, others: Mapping[str, Refits]) -> Refits:
        """Return a copy with the forecasts of *others* on the same folds as compared models."""
        tests = list(self.tests)
        for name, other in others.items():
            tests = [test.join(rival, name) for test, rival in zip(tests, other.tests, strict=True)]
        return replace(self, tests=tests)


@dataclass(frozen=True)
class _FoldFit:
    """Fits the recipe of *card* on one of *count* folds of *data*, and forecasts its test."""

    card: Mapping[str, Any]
    data: Dataset
    count: int
    threads: int

    def __call__(self, unit: tuple[int, Fold], say: Say) -> Forecasts:
        """Fit the model on a numbered fold and forecast the fold's test."""
        place, fold = unit
        use_threads(self.threads)
        say(f"Fold {place} of {self.count}.")
        data = self.data.folded(fold)
        with tempfile.TemporaryDirectory(prefix="tracepaper-fold-") as folder:
            recipe = recipe_of(self.card)
            model = recipe.kind.fit(data, recipe, FitRun(Path(folder), say=say)).for_fold(data)
        return model.answers(data, Part.TEST)


def refit(
    card: Mapping[str, Any],
    data: Dataset,
    text: str,
    *,
    say: Say,
    each: Each = one_by_one,
) -> Refits:
    """Fit the recipe of *card* on the folds *text* of the data before the untouched part.

    *each* runs the fits. Raises ``ConfigInvalid`` for folds that the data or the kind of model do
    not allow.
    """
    scheme, numbers = folds_named(text)
    kind = kind_of(card)
    if kind.walks_only and (scheme == COMBINATORIAL or numbers[0] > REFITS_MOST):
        raise ConfigInvalid(
            f"A network is fitted on at most {REFITS_MOST} walk-forward folds: write "
            f"--folds walk:{REFITS_MOST}. Combinatorial folds are for tree and glm."
        )
    for sentence in data.notes:
        say(sentence)
    folds = read_folds(text, data.before(), embargo_ms=data.embargo_ms)
    if kind.holds_out_calibration:
        folds = [with_calibration(fold) for fold in folds]
    fit = _FoldFit(card, data, len(folds), threads_used())
    forecasts = each(fit, list(enumerate(folds, start=1)), say)
    combination = (numbers[0], numbers[1]) if scheme == COMBINATORIAL else None
    return Refits(text, folds, forecasts, combination)


# --- tables of the folds


def tables(refits: Refits) -> list[Table]:
    """Return the tables of each metric, and of the probability that choosing by it overfits."""
    rows, findings, suffix = refits.pooled, [], f", over {refits.text}"
    for key in COMPARED if rows.unit == "bars" else ():
        metric = LOSSES[key]
        title, notes = f"{metric.title}{suffix}", [_FIT_NOTE, NOTE]
        findings.append(forecaster_table(f"folds_{key}", title, rows, metric, notes=notes))
        if refits.combination is not None:
            findings.append(_selected(refits, f"overfitting_{key}", metric))
    return [*findings, *scores_of(rows, "folds_", suffix)]


_FIT_NOTE: Final = "Each fold fits the model and every baseline on its own training spans."


def _selected(refits: Refits, key: str, metric: Metric) -> Table:
    """Return for each horizon the probability over paths that the best forecaster is luck."""
    assert refits.combination is not None
    rows = []
    routes = paths(*refits.combination)
    for horizon in refits.tests[0].horizons:
        values = [overfitting(_scores(refits, route, horizon, metric)) for route in routes]
        probabilities = [value for value in values if value is not None]
        row: dict[str, Value] = {"horizon": str(horizon), "paths": len(routes)}
        if probabilities:
            row |= {"mean": float(np.mean(probabilities)), "most": max(probabilities)}
        rows.append(row)
    columns = [
        of_row("horizon", "bars ahead", "text"),
        of_row("paths", "paths", "count"),
        of_row("mean", "probability", "measure"),
        of_row("most", "highest path", "measure"),
    ]
    note = (
        "How often the best forecaster on half of the groups is in the worse half on the other "
        "groups; chance makes 0.5. It needs at least four groups."
    )
    title = f"{metric.title}: is the best forecaster chosen by luck?"
    return table(key, title, columns, rows, notes=[note])


def _scores(refits: Refits, route: Sequence[int], horizon: int, metric: Metric) -> Array:
    """Return [group, forecaster]: the mean loss on each group, from the fold on the path."""
    scores, spans = [], sorted({span for each in refits.folds for span in each.test})
    for group, place in enumerate(route):
        fold, rows = refits.folds[place], refits.tests[place].at(horizon)
        assert spans[group] in fold.test
        start, stop = (time // DAY_MS for time in spans[group])
        inside = (rows.day >= start) & (rows.day < stop)
        if not inside.any():
            raise ConfigInvalid("A group of the folds has no bar; give fewer groups.")
        losses = (metric.terms(view) for view in views(metric, rows).values())
        scores.append([float(np.nanmean(loss[inside])) for loss in losses])
    return np.array(scores)


_SECTIONS: Final = (ARCHITECTURE, "training")
_KEPT: Final = frozenset(
    {
        "architecture.features",
        "architecture.horizons",
        "architecture.interval_minutes",
        "training.explained_bars",
        "training.threads",
    }
)
"""Keys that the candles or the judgement fix; folds cannot change them."""


def ablated(card: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return *card* with the change ``KEY=VALUE`` of *text*; in an ensemble, to its network.

    A key without a section is of the network's architecture. Raises ``ConfigInvalid`` for an
    unknown key or value, for a key that folds keep, and for a change without effect.
    """
    change = KeyValue.read("--ablate", text)
    section, key = change.section, change.key
    if section not in _SECTIONS:
        raise ConfigInvalid(
            f"--ablate {text} is no change; write one such as encoding=alibi, clock=week,funding "
            "or training.steps=500."
        )
    if (name := f"{section}.{key}") in _KEPT:
        raise ConfigInvalid(
            f"--ablate {text} is no change that folds can make: they keep {name}; change another "
            "key."
        )
    member = member_as_card(card, MEMBERS[0]) if "parts" in card else card
    kind = kind_of(member, is_member=True)
    value = change.typed(kind.sections, f"a recipe of the kind {kind.name}", derived=True)
    before = recipe_of(member).document()[section].get(key)
    other = {**member, section: {**member[section], key: value}}
    now = recipe_of(other).document()[section].get(key)
    if now is None:
        raise ConfigInvalid(f"--ablate {text}: {section}.{key} is no key of the recipe.")
    if now == before:
        raise ConfigInvalid(f"--ablate {text} changes nothing; write another value.")
    if member is card:
        return other
    return {**card, "parts": {**card["parts"], MEMBERS[0]: other}}


def ablation_tables(refits: Refits, others: Mapping[str, Refits]) -> list[Table]:
    """Return a table for each metric: the recipe minus each change of *others*, by horizon.

    All are fitted on the same folds with the same seed.
    """
    joined = refits.joined(others).pooled
    return [
        forecaster_table(
            f"instead_{key}",
            f"{metric.title}: the recipe minus each change, {refits.text}",
            rows,
            metric,
            others=tuple(others),
        )
        for rows in (joined, joined.held)
        if rows is not None
        for key, metric in compared_by(rows).items()
    ]


def folds_of(
    checkpoint: Checkpoint,
    request: DataRequest,
    text: str,
    changes: Sequence[str],
    each: Each,
    say: Say,
) -> Found:
    """Refit the recipe of a checkpoint on folds, then the recipe with each of *changes*."""
    card: Mapping[str, Any] = checkpoint.card
    # The checks come first, before minutes of fitting.
    recipe = recipe_of(card)
    recipe.check("--folds")
    cards = {change: ablated(card, change) for change in changes}
    material = read_dataset(recipe, request, card)
    if untrained := material.untrained():
        raise ConfigInvalid(untrained[0])
    for other in cards.values():
        recipe.kind.suits(recipe_of(other), material)
    unchanged, others = refit(card, material, text, say=say, each=each), dict[str, Refits]()
    for change, other in cards.items():
        say(f"With {change}.")
        others[change] = refit(other, material, text, say=say, each=each)
    findings = tables(unchanged) + (ablation_tables(unchanged, others) if others else [])
    document = {"id": checkpoint.id, "recipe": recipe.hash, "folds": text}
    return Found(
        findings,
        {**document, "tables": documents(findings)},
        findings,
        lambda: TitledParts(f"Folds of {checkpoint.id}", tuple(findings)),
    )
