"""Recipes fitted anew on folds, of candles and of order books, and what changes are worth.

The rules are docs/models.md, L44 and L55.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from rich.console import Console

from tracepaper.replay.document.values import Table, Value, of_row, table
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
"""Folds of a network, which walk: each costs a training."""


@dataclass(frozen=True)
class Refits:
    """The forecasts of each fold's test; *combination* is (groups, tests)."""

    text: str
    folds: Sequence[Fold]
    tests: Sequence[Forecasts]
    combination: tuple[int, int] | None

    @property
    def pooled(self) -> Forecasts:
        """The rows of all tests."""
        return concatenated(self.tests)

    def joined(self, others: Mapping[str, Refits]) -> Refits:
        """Return it with the forecasts of *others* on the same folds as compared models."""
        tests = list(self.tests)
        for name, other in others.items():
            tests = [test.join(rival, name) for test, rival in zip(tests, other.tests, strict=True)]
        return replace(self, tests=tests)


@dataclass(frozen=True)
class _FoldFit:
    """Fits the recipe of *card* on one of *count* folds of *data*, and asks it about its test."""

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
    """Fit the recipe of *card* on the folds that *text* names, of the time before the untouched.

    *each* is where the folds are fitted. Raises ``ConfigInvalid`` for folds that the data, or a
    network, cannot have.
    """
    kind, numbers = folds_named(text)
    of_card = kind_of(card)
    if of_card.walks_only and (kind == COMBINATORIAL or numbers[0] > REFITS_MOST):
        raise ConfigInvalid(
            f"A network is fitted anew at most {REFITS_MOST} times, on folds that walk: write "
            f"--folds walk:{REFITS_MOST}. Combinatorial folds are for tree and glm."
        )
    for sentence in data.notes:
        say(sentence)
    folds = read_folds(text, data.before(), embargo_ms=data.embargo_ms)
    if of_card.holds_out_calibration:
        folds = [with_calibration(fold) for fold in folds]
    fit = _FoldFit(card, data, len(folds), threads_used())
    forecasts = each(fit, list(enumerate(folds, start=1)), say)
    combination = (numbers[0], numbers[1]) if kind == COMBINATORIAL else None
    return Refits(text, folds, forecasts, combination)


# --- what the folds say


def tables(refits: Refits) -> list[Table]:
    """Return each metric by forecaster and horizon, and how likely a choice by it is luck."""
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
    """Return for each horizon the probability that the best forecaster is so by luck, by path."""
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
        of_row("most", "highest of a path", "measure"),
    ]
    note = (
        "How often the forecaster that is best on half of the groups is in the worse half on the "
        "others; a half is what chance makes. At least four groups."
    )
    title = f"{metric.title}: is the best forecaster chosen by luck?"
    return table(key, title, columns, rows, notes=[note])


def _scores(refits: Refits, route: Sequence[int], horizon: int, metric: Metric) -> Array:
    """Return [group, forecaster]: the mean loss on each group by the fold that the path takes."""
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
"""Keys that follow from the candles and the judgement, so that no fold is fitted by another."""


def ablated(card: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return *card* with the key of *text*, ``KEY=VALUE``, changed; an ensemble's in its network.

    A key without a section is of the network's architecture. Raises ``ConfigInvalid`` for a key or
    value that the recipe cannot have, one that the folds keep, and one that changes nothing.
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
            f"--ablate {text} is no change that folds are fitted by: they keep {name} as it is; "
            "change another key."
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
        raise ConfigInvalid(f"--ablate {text} changes nothing; {section}.{key} is so already.")
    if member is card:
        return other
    return {**card, "parts": {**card["parts"], MEMBERS[0]: other}}


def ablation_tables(refits: Refits, others: Mapping[str, Refits]) -> list[Table]:
    """Return for each metric what the recipe has less each change of *others*, by horizon.

    Each change is fitted anew on the same folds with the same seed.
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


class FoldTables(NamedTuple):
    """What folds say of the recipe of a checkpoint."""

    model_id: str
    recipe: str  # its hash
    text: str  # which folds
    tables: Sequence[Table]


def folds_of(
    checkpoint: Checkpoint, request: DataRequest, text: str, changes: Sequence[str], each: Each
) -> FoldTables:
    """Fit the recipe of a checkpoint anew on folds, and that with each of *changes* in turn."""
    card: Mapping[str, Any] = checkpoint.card
    # First, for they refuse what cannot be had before minutes have passed.
    recipe = recipe_of(card)
    recipe.check("--folds")
    cards = {change: ablated(card, change) for change in changes}
    material = read_dataset(recipe, request, card)
    if untrained := material.untrained():
        raise ConfigInvalid(untrained[0])
    for other in cards.values():
        recipe.kind.suits(recipe_of(other), material)
    say = Console(stderr=True).print
    unchanged, others = refit(card, material, text, say=say, each=each), dict[str, Refits]()
    for change, other in cards.items():
        say(f"With {change}.")
        others[change] = refit(other, material, text, say=say, each=each)
    findings = tables(unchanged) + (ablation_tables(unchanged, others) if others else [])
    return FoldTables(checkpoint.id, recipe.hash, text, findings)
