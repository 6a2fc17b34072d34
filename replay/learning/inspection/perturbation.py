"""Context ablation, deletion and insertion of bars, and permutation importance.

A network that takes any number of rows is given the last of them and no other: exactly what it
says after its stream was restarted so many bars before. One that takes whole windows alone has
neutral rows before them. Every share is judged on the same decisions, so differences are paired.

Bars are ranked, those that are said to matter most first. Deletion makes the first share of them
neutral and measures how far the forecast has moved; insertion starts from neutral rows, gives the
first share back, and measures how far it still is from the whole (Petsiuk, Das and Saenko, 2018).
The order that knows what matters moves it more by deletion and leaves less after insertion.

A column is cut into blocks of a 24th of a day and the blocks of one day change places, so that
most of its autocorrelation and all of the day's level stay (Breiman, 2001, for single rows). A
network sees the same permuted history at every bar. A day is 24 bars at least.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import torch

from tracepaper.replay.document.values import Table, Value, table_of_rows
from tracepaper.replay.learning.inspection.model import (
    TARGETS,
    DecidedBar,
    Ids,
    NetworkForecast,
    Rows,
    Subject,
    answer_of,
    ask,
    days_of,
    looked,
)
from tracepaper.replay.learning.predict import Fields, joined
from tracepaper.replay.learning.samples import Samples
from tracepaper.replay.learning.splits import Part, Segment
from tracepaper.replay.learning.statistics import (
    estimate,
    qlike_of,
)
from tracepaper.strategies.attention.propagation import relevance, relevance_rules
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.attribution import integrated_gradients
from tracepaper.strategies.networks.architecture import Network
from tracepaper.strategies.units import DAY_MS

PARTS: Final = (1, 2, 4, 8, 16, 32, 64)
"""Divisors of the window; one that leaves less than a bar leaves one."""


def bars_seen(network: Network) -> dict[int, int]:
    """Return how many bars are seen at each of ``PARTS``; a number of bars stands there once."""
    found: dict[int, int] = {}
    for part in PARTS:
        bars = max(network.config.receptive_field // part, 1)
        if bars not in found.values():
            found[part] = bars
    return found


def seeing(subject: Subject, network: Network, decision: DecidedBar, bars: int) -> NetworkForecast:
    """Return what is said of *decision* when *network* sees the last *bars* rows alone.

    An ensemble's row model sees its own row whatever they are.
    """
    said = _network_seeing(subject, network, decision, bars)
    if subject.mix is None:
        return said
    assert subject.trained is not None
    _, rows = subject.trained.model.answer(subject.own_rows(decision.rows(1)))
    mixed = subject.mix.log_variance(said.log_variance, rows)
    return said._replace(log_variance=mixed.astype(np.float32))


def _network_seeing(
    subject: Subject, network: Network, decision: DecidedBar, bars: int
) -> NetworkForecast:
    known = decision.rows(bars)
    if network.takes_any_length:
        return ask(network, known[None], decision.positions(bars))
    count = network.config.receptive_field
    window = np.repeat(subject.neutral[None], count, axis=0)
    window[count - bars :] = known
    return ask(network, window[None], decision.positions(count))


def context_ablation(subject: Subject, count: int) -> list[Table]:
    """Return QLIKE and sign over *count* decisions by the share of the window that is seen."""
    network = subject.need_network("--inspect context")
    decisions, seen = subject.decisions(count), bars_seen(network)
    said: dict[int, tuple[Array, Array]] = {}  # of a part: mean and variance [decision, horizon]
    for part, bars in seen.items():
        each = [seeing(subject, network, decision, bars) for decision in decisions]
        means = np.concatenate([one.mean for one in each]).astype(np.float64)
        variances = np.exp(np.concatenate([one.log_variance for one in each]).astype(np.float64))
        said[part] = means, variances
    rows = [
        row
        for column in range(len(subject.material.horizons))
        for row in _of_horizon(subject, decisions, seen, said, column)
    ]
    how = (
        "its stream restarted so many bars before the decision"
        if network.takes_any_length
        else "all earlier rows neutral, the mean of each feature over the training part"
    )
    beside = ""
    if subject.mix is not None:
        beside = " The variance is the ensemble's, whose row model sees its row as it is."
    days = len(np.unique(days_of(decisions)))
    return [
        table_of_rows(
            "ablation",
            f"Context ablation, {len(decisions)} decisions of {days} days",
            f"The network sees the last part of its window alone: {how}.{beside} Differences are"
            " from the whole window on the same decisions; a QLIKE above it and a sign below it are"
            " losses.",
            rows,
        )
    ]


def _of_horizon(
    subject: Subject,
    decisions: Sequence[DecidedBar],
    seen: dict[int, int],
    said: dict[int, tuple[Array, Array]],
    column: int,
) -> list[dict[str, Value]]:
    """Return a row for each part of the window, of the decisions labelled at one horizon."""
    weights = np.array([one.samples.weights[one.row, column] for one in decisions])
    known = np.flatnonzero(weights > 0)
    if not len(known):
        return []
    chosen = [decisions[at] for at in known.tolist()]
    days = days_of(chosen)
    labels = {
        name: np.array([one.samples.labels[name][one.row, column] for one in chosen], np.float64)
        for name in ("variance", "returns")
    }
    losses = {p: qlike_of(v[known, column], labels["variance"]) for p, (_, v) in said.items()}
    moved = labels["returns"] != 0
    hits = {
        p: (np.sign(m[known, column]) == np.sign(labels["returns"]))[moved].astype(np.float64)
        for p, (m, _) in said.items()
    }
    time = subject.material.times[column]
    return [
        {
            "horizon": time,
            "window": "whole" if part == 1 else f"1/{part}",
            "bars": bars,
            "QLIKE": estimate(losses[part], days),
            "QLIKE - whole": estimate(losses[part] - losses[1], days),
            "sign": estimate(hits[part], days[moved]),
            "sign - whole": estimate(hits[part] - hits[1], days[moved]),
        }
        for part, bars in seen.items()
    ]


SHARES: Final = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Of the window's bars, at least one; an area is the mean over these."""
DRAWS: Final = 4
"""Random orders of each decision; their mean counts as one."""
RANDOM: Final = "random"
DECIDED: Final = "decided bar"
"""The row that tells what the decided bar alone moves."""
_SEED: Final = 20_170_817
_SIDES: Final = ("deletion", "insertion")


class BarOrder(NamedTuple):
    """Past bars of a window by rank, the first one first, and the targets that it is judged by.

    The decided bar is of no order: it outweighs any other, and an order is judged by the rest.
    """

    name: str
    bars: Ids
    targets: tuple[int, ...]


def ranked(scores: Array) -> Ids:
    """Return the bars from the highest score to the lowest; of equal ones the newest first."""
    count = len(scores)
    found: Ids = count - 1 - np.argsort(-scores[::-1], kind="stable")
    return found


def orders(
    subject: Subject, network: Network, decision: DecidedBar, generator: np.random.Generator
) -> list[BarOrder]:
    """Return every order of the bars before the decided one, and that bar alone."""
    count = network.config.receptive_field
    both = tuple(range(len(TARGETS)))
    past = count - 1
    found = [BarOrder("recency", np.arange(past)[::-1], both)]
    found += [BarOrder(RANDOM, generator.permutation(past), both) for _ in range(DRAWS)]
    found.append(BarOrder(DECIDED, np.array([past]), both))
    rows, positions = decision.rows(count), decision.positions(count)
    window = torch.from_numpy(rows)
    if network.has_attention:
        found.insert(0, BarOrder("rollout", ranked(looked(network, rows, positions)[:-1]), both))
    neutral = torch.from_numpy(subject.neutral)
    for at, target in enumerate(TARGETS):
        answer = answer_of(network, positions, target, subject.column)
        added = integrated_gradients(
            lambda moved, answer=answer: answer((neutral + moved)[None])[0],  # type: ignore[misc]
            window - neutral,
        )
        scores = added.sum(dim=1).abs().cpu().numpy()
        found.append(BarOrder("integrated gradients", ranked(scores[:-1]), (at,)))
        if network.has_attention:
            given = window.clone().requires_grad_()
            with relevance_rules(network):
                scores = relevance(answer(given[None])[0], given).sum(dim=1).abs().cpu().numpy()
            found.append(BarOrder("relevance", ranked(scores[:-1]), (at,)))
    return found


def curves(subject: Subject, network: Network, decision: DecidedBar, bars: Ids) -> Array:
    """Return how far the forecast moved, [side, target, share], as *bars* are taken or given."""
    count = network.config.receptive_field
    window = decision.rows(count)
    changed = np.repeat(window[None], 2 * len(SHARES), axis=0)
    for at, share in enumerate(SHARES):
        first, rest = np.split(bars, [max(round(share * len(bars)), 1)])
        changed[at, first] = subject.neutral
        changed[len(SHARES) + at, rest] = subject.neutral
    every = np.concatenate([window[None], changed])
    said = ask(network, every, decision.positions(count)).targets(subject.column)
    moved: Array = np.abs(said[:, 1:] - said[:, :1]).reshape(len(TARGETS), 2, len(SHARES))
    return moved.swapaxes(0, 1)


def perturbations(subject: Subject, count: int) -> list[Table]:
    """Return areas and curves over *count* decisions, in orders that are paired by decision."""
    network = subject.need_network("--inspect deletion")
    decisions = subject.decisions(count)
    found: dict[tuple[str, int], list[Array]] = {}  # of an order and a target
    for number, decision in enumerate(decisions):
        drawn: dict[tuple[str, int], list[Array]] = {}
        every = orders(subject, network, decision, np.random.default_rng((_SEED, number)))
        for order in every:
            moved = curves(subject, network, decision, order.bars)
            for target in order.targets:
                drawn.setdefault((order.name, target), []).append(moved[:, target])
        for key, several in drawn.items():
            found.setdefault(key, []).append(np.mean(several, axis=0))
    measured = {key: np.stack(each) for key, each in found.items()}  # [decision, side, share]
    return [_areas(subject, measured, decisions), _points(measured, decisions)]


def _sides(name: str) -> Sequence[str]:
    """Return the curves of an order; what one bar alone gives is no insertion of a share."""
    return _SIDES[:1] if name == DECIDED else _SIDES


def _areas(
    subject: Subject, measured: dict[tuple[str, int], Array], decisions: Sequence[DecidedBar]
) -> Table:
    """Return the areas of every order, beside their differences from random and recency."""
    days = days_of(decisions)
    count = len(np.unique(days))
    areas = {key: moved.mean(axis=2) for key, moved in measured.items()}  # [decision, side]
    rows: list[dict[str, Value]] = []
    for (name, target), area in sorted(areas.items(), key=lambda one: one[0][1]):
        row: dict[str, Value] = {"of": TARGETS[target], "order": name}
        for side, word in enumerate(_SIDES):
            has_side = word in _sides(name)
            row[word] = estimate(area[:, side], days) if has_side else None
            for other in (RANDOM, "recency"):
                gap = area[:, side] - areas[other, target][:, side]
                is_rival = name != DECIDED
                row[f"{word} - {other}"] = estimate(gap, days) if is_rival else None
        rows.append(row)
    return table_of_rows(
        "explanations",
        f"Deletion and insertion of bars{subject.of_network}, {len(decisions)} decisions of "
        f"{count} days",
        f"{_against_recency(areas, days)} A neutral row is the mean of each feature over the"
        " training part. Areas are means over"
        f" 1/64 to 1/2 of the past bars; the decided bar stays, and is a row of its own. Random is"
        f" the mean of {DRAWS} draws. An order that finds"
        " what matters has more deletion than random, and less insertion.",
        rows,
    )


def _against_recency(areas: Mapping[tuple[str, int], Array], days: Ids) -> str:
    """Say which orders find what matters better than the age of a bar: by two standard errors."""
    better = []
    for (name, target), area in areas.items():
        if name in {RANDOM, "recency", DECIDED}:
            continue
        value, error = estimate(area[:, 0] - areas["recency", target][:, 0], days)
        left, other = estimate(area[:, 1] - areas["recency", target][:, 1], days)
        if error is not None and other is not None and value > 2 * error and left < -2 * other:
            better.append(f"{name} (of the {TARGETS[target]})")
    if not better:
        return "No order beats recency by both deletion and insertion."
    return f"Better than recency by deletion and insertion: {', '.join(sorted(better))}."


def _points(measured: dict[tuple[str, int], Array], decisions: Sequence[DecidedBar]) -> Table:
    """Return the curves, a row an order, side and target."""
    days = days_of(decisions)
    rows: list[dict[str, Value]] = []
    for (name, target), moved in sorted(measured.items(), key=lambda one: one[0][1]):
        for side, word in enumerate(_sides(name)):
            cells = {
                f"1/{round(1 / share)}": estimate(moved[:, side, at], days)
                for at, share in enumerate(SHARES)
            }
            rows.append({"of": TARGETS[target], "order": name, "curve": word, **cells})
    return table_of_rows(
        "explanation_curves",
        "How far the forecast moved, by the share of bars taken (deletion) or given (insertion)",
        "Absolute changes of the log variance, and of the mean in units of σ √h.",
        rows,
    )


BLOCKS_A_DAY: Final = 24
PERMUTATIONS: Final = 2
"""Permutations of each column; a bar's loss is their mean."""
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
            f"Blocks of a 24th of a day change places within it, {PERMUTATIONS} draws; how much "
            f"QLIKE rises and the share of right signs falls: above 0 the feature is used.{left}",
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
        for draw in range(PERMUTATIONS):
            order = permutation(segment, np.random.default_rng((_SEED, number, draw)))
            values: Rows = segment.values.copy()
            values[:, columns] = segment.values[order][:, columns]
            found.append(replace(segment, values=values))
        yield found


class _Judge:
    """The labels of some bars and what was said of them unchanged."""

    def __init__(
        self, subject: Subject, asked: Sequence[tuple[Samples, Ids]], whole: Fields
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

    def row(self, drawn: Sequence[Fields]) -> dict[str, Value]:
        """Return the losses that *drawn* add, at each horizon."""
        found: dict[str, Value] = {}
        for column, time in enumerate(self._times):
            known = self._weights[:, column] > 0
            days = self._days[known]
            value = self._labels["returns"][known, column]
            added = [self._qlike(one, column) - self._qlike(self._whole, column) for one in drawn]
            found[f"QLIKE {time}"] = estimate(np.mean(added, axis=0), days)
            hit = np.sign(self._whole["mean"][known, column]) == np.sign(value)
            kept = [np.sign(one["mean"][known, column]) == np.sign(value) for one in drawn]
            lost = hit - np.mean(kept, axis=0)
            found[f"sign {time}"] = estimate(lost[value != 0], days[value != 0])
        return found

    def _qlike(self, fields: Fields, column: int) -> Array:
        known = self._weights[:, column] > 0
        forecast = fields["variance"][known, column].astype(np.float64)
        return qlike_of(forecast, self._labels["variance"][known, column])
