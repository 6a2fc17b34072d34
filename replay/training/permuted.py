"""Permutation of features: what is lost when a column no longer fits the bars it stands at.

A column is cut into blocks of a 24th of a day and the blocks of one day change places, so that
most of its autocorrelation and all of the day's level stay (Breiman, 2001, for single rows). A
network sees the same permuted history at every bar. A day is 24 bars at least.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

import numpy as np

from tracepaper.replay.document.values import Table, Value, table_of_rows
from tracepaper.replay.training.evaluation import (
    Predictions,
    joined,
)
from tracepaper.replay.training.figures import estimate, qlike_of
from tracepaper.replay.training.samples import Samples
from tracepaper.replay.training.series import (
    Part,
    Segment,
)
from tracepaper.replay.training.subject import (
    Ids,
    Rows,
    Subject,
)
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.units import DAY_MS

BLOCKS_A_DAY: Final = 24
DRAWS: Final = 2
"""Permutations of each column; a bar's loss is their mean."""
_SEED: Final = 20_170_817
_ENDING: Final = re.compile(r"(_(\d+[mhd]?|z|level|sin|cos))+$")


def families(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the columns that are one measure over several windows, by its name.

    ``return_1`` and ``return_4h`` are ``return``; ``hour_sin`` and ``hour_cos`` are ``hour``.
    """
    found: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        found.setdefault(_ENDING.sub("", name), []).append(column)
    return {name: columns for name, columns in found.items() if len(columns) > 1}


def permutation(segment: Segment, generator: np.random.Generator) -> Ids:
    """Return which row's features each row is given: blocks change places within a day."""
    span_ms = max(DAY_MS, BLOCKS_A_DAY * segment.interval_ms)
    block = segment.open_time_ms // (span_ms // BLOCKS_A_DAY)
    edges = [*np.flatnonzero(np.diff(block, prepend=block[0] - 1)).tolist(), len(block)]
    by_day: dict[int, list[Ids]] = {}
    for start, stop in pairwise(edges):
        by_day.setdefault(int(segment.open_time_ms[start]) // span_ms, []).append(
            np.arange(start, stop)
        )
    found = np.arange(len(segment))
    # Rows without features stay where they are, so that none is carried into a later row.
    for blocks in by_day.values():
        usable = [rows for rows in blocks if rows[0] >= segment.first]
        if usable:
            order = generator.permutation(len(usable)).tolist()
            found[np.concatenate(usable)] = np.concatenate([usable[at] for at in order])
    return found


def feature_permutation(subject: Subject, at_most: int) -> list[Table]:
    """Return what each column and each family is worth, on up to *at_most* bars of the test."""
    asked = subject.labelled(Part.TEST, at_most)
    whole = joined([subject.predict(samples.segment, rows) for samples, rows in asked])
    names = subject.material.schema.names
    single = {name: [column] for column, name in enumerate(names)}
    several = {f"all of {name}": of for name, of in families(names).items()}
    judge = _Judge(subject, asked, whole)
    rows: list[dict[str, Value]] = []
    alike: list[str] = []
    for name, columns in {**single, **several}.items():
        changed = list(_changed(asked, columns))
        if all(
            np.array_equal(new.values, samples.segment.values, equal_nan=True)
            for (samples, _), segments in zip(asked, changed, strict=True)
            for new in segments
        ):
            alike.append(name)
            continue
        drawn = [
            joined([subject.predict(new, own) for (_, own), new in zip(asked, one, strict=True)])
            for one in zip(*changed, strict=True)
        ]
        rows.append({"feature": name, **judge.row(drawn)})
    main = f"QLIKE {subject.material.times[subject.column]}"
    rows.sort(key=lambda row: -_value(row[main]))
    left = f" Left out, for they do not vary within a day: {', '.join(alike)}." if alike else ""
    return [
        table_of_rows(
            "permutation",
            f"Permutation of features, {judge.bars:,} bars of {judge.days} days",
            f"Blocks of a 24th of a day change places within it, {DRAWS} draws; how much QLIKE"
            f" rises and the share of right signs falls: above 0 the feature is used.{left}",
            rows,
        )
    ]


def _value(cell: Value) -> float:
    assert isinstance(cell, tuple)
    return cell[0]


def _changed(
    asked: Sequence[tuple[Samples, Ids]], columns: Sequence[int]
) -> Iterator[list[Segment]]:
    """Yield, for each of *asked*, its segment with *columns* permuted together, a draw each."""
    for number, (samples, _) in enumerate(asked):
        segment, found = samples.segment, []
        for draw in range(DRAWS):
            order = permutation(segment, np.random.default_rng((_SEED, number, draw)))
            values: Rows = segment.values.copy()
            values[:, columns] = segment.values[order][:, columns]
            found.append(replace(segment, values=values))
        yield found


class _Judge:
    """The labels of some bars and what was said of them unchanged."""

    def __init__(
        self, subject: Subject, asked: Sequence[tuple[Samples, Ids]], whole: Predictions
    ) -> None:
        self._times = subject.material.times
        self._weights = np.concatenate([s.weights[rows] for s, rows in asked])
        self._labels = {
            name: np.concatenate([s.labels[name][rows] for s, rows in asked]).astype(np.float64)
            for name in ("variance", "returns")
        }
        self._days = np.concatenate([s.segment.open_time_ms[rows] // DAY_MS for s, rows in asked])
        self._whole = whole
        self.bars, self.days = len(self._days), len(np.unique(self._days))

    def row(self, drawn: Sequence[Predictions]) -> dict[str, Value]:
        """Return the losses that *drawn* add, at each horizon."""
        found: dict[str, Value] = {}
        for column, time in enumerate(self._times):
            known = self._weights[:, column] > 0
            days = self._days[known]
            value = self._labels["returns"][known, column]
            added = [self._qlike(one, column) - self._qlike(self._whole, column) for one in drawn]
            found[f"QLIKE {time}"] = estimate(np.mean(added, axis=0), days)
            hit = np.sign(self._whole.mean[known, column]) == np.sign(value)
            kept = [np.sign(one.mean[known, column]) == np.sign(value) for one in drawn]
            lost = hit - np.mean(kept, axis=0)
            found[f"sign {time}"] = estimate(lost[value != 0], days[value != 0])
        return found

    def _qlike(self, said: Predictions, column: int) -> Array:
        known = self._weights[:, column] > 0
        forecast = said.variance[known, column].astype(np.float64)
        return qlike_of(forecast, self._labels["variance"][known, column])
