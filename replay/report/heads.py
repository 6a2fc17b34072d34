"""Head analysis at one decision, and the edges of its attention.

The run's checkpoint recomputes the attention of each head from the stored bars up to the last
explained decision. The view follows BertViz (Vig, 2019, arXiv:1906.05714): decided bars above, the
bars that they attend to below, one colour per head, a stronger line for a larger share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np

from tracepaper.replay.document.values import Cells, Figure, Table, of_field, of_row, plain, table
from tracepaper.replay.report.past import open_past
from tracepaper.replay.report.record import RunRecord
from tracepaper.replay.run_columns import Floats
from tracepaper.strategies.attention.methods import PLAIN
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.forecasters.attribution import (
    DECISIONS,
    Attending,
    HeadActivity,
    Probe,
    RolloutMap,
    head_activity,
)
from tracepaper.strategies.heads import LEGEND, HeadFigures, HeadReading, Ties
from tracepaper.strategies.types.market import Bar

EDGE_CELLS: Final = 64
"""Cells of the attended bars; older cells are wider."""


@dataclass(frozen=True)
class Edges:
    """Attention of the heads at each decided bar; cells count back from the newest bar."""

    firsts: tuple[int, ...]  # [cell] age of its newest bar, in bars
    bars: int  # age of the oldest bar, plus one
    shares: Floats  # [layer, head, decision, cell], the oldest decision first; a row sums to 1


def edges_of(by_age: Floats) -> Edges:
    """Return the edges of *by_age* [layer, head, decision, age], the oldest decision first."""
    layers, heads, decisions, ages = by_age.shape
    back = np.zeros((layers, heads, decisions, ages + decisions - 1))
    for decision in range(decisions):
        later = decisions - 1 - decision  # number of later bars
        back[:, :, decision, later : later + ages] = by_age[:, :, decision]
    bars = back.shape[-1]
    firsts = np.unique(np.geomspace(1, bars + 1, EDGE_CELLS + 1).astype(np.int64))[:-1] - 1
    return Edges(tuple(firsts.tolist()), bars, np.add.reduceat(back, firsts, axis=-1))


CELLS: Final = 40
EVENTS_SHOWN: Final = 8
PLACES: Final = 3
"""Decisions of a run at which heads are classified, including the last."""
DECISIONS_BEFORE: Final = 16
"""Decisions up to each of the other places from which heads are analysed."""
AGE_EDGES: Final = (0, 16, 64, 256, 1_024, 2_048, 4_096)
"""First ages, in bars, of the groups between which the flow is summed."""
FLOW_NOTE: Final = (
    "Half of a bar's share stays with it, half passes to the bars that its layer attends to; the "
    "last level is the decision's rollout."
)


@dataclass(frozen=True)
class HeadReport:
    """The behaviour of the heads; layers from the lowest, ages in bars."""

    instrument: str
    sequence: int  # of the decision
    half: bool  # whether the heads are those of an ensemble's network
    activity: HeadActivity  # at the newest decisions
    over_run: tuple[tuple[tuple[str, ...], ...], ...]  # [layer][head][place] kind, oldest first
    maps: Floats  # [layer, head, cell of age, row] mean share per bar, oldest row first
    cell_ages: tuple[int, ...]  # the first age of each cell
    groups: tuple[str, ...]  # names of the groups of age
    edges: Edges
    open_time_ms: tuple[int, ...]  # of the newest bars, for the map and the decisions
    features: dict[str, float]  # share in the attribution of the mean return, mean over the places
    horizon: int  # bars ahead of that mean return
    note: str  # if the run stores another attribution than the flow's, which; else empty
    key: ClassVar = "heads"
    """Key in the JSON of a report."""

    @property
    def decisions(self) -> int:
        """Number of the newest decisions at which the heads are analysed."""
        return int(self.activity.by_age.shape[2])

    @property
    def window(self) -> int:
        """Number of bars that a head can attend to."""
        return int(self.activity.by_age.shape[3])

    def tables(self) -> tuple[Table, ...]:
        """Return kinds, figures and flow of the heads, then the attended features and bars."""
        return (*head_tables(self), *subject_tables(self))

    def document(self) -> dict[str, Any]:
        """Return JSON values: shares are fractions, layers from the lowest."""
        figures = {
            "instrument": self.instrument,
            "sequence": self.sequence,
            "half_of_ensemble": self.half,
            "decisions": self.decisions,
            "window": self.window,
            "cell_ages": self.cell_ages,
            "maps": self.maps,
            "rollout": self.activity.rollout,
        }
        return plain(figures) | {table.key: table.documents() for table in self.tables()}


def read_heads(record: RunRecord) -> HeadReport:
    """Analyse the heads of the run's model, at its last explained decision and before.

    Raises ``DataInvalid`` if the run has no attention model, or too few bars.
    """
    decisions = record.decisions
    explained = np.flatnonzero(np.isfinite(decisions.confidence_entropy))
    if not record.run["model_id"] or not explained.size:
        raise DataInvalid(
            f"Run {record.run['run_id']} has no attention to analyse; leave --heads out."
        )
    if record.config.model.custom_class:
        raise DataInvalid("A custom model has no heads to analyse; leave --heads out.")
    last, run_id = int(explained[-1]), str(record.run["run_id"])
    instrument, sequence = str(decisions.instrument[last]), int(decisions.sequence[last])
    past = open_past(record.database, run_id, sequence, earlier=None)
    rows = explained[decisions.instrument[explained] == instrument]
    answered = {*decisions.open_time_ms[rows].tolist()}
    return heads_of(
        past.forecaster, past.read, sequence, half=past.is_member, places=PLACES, answered=answered
    )


def heads_of(
    forecaster: Attending,
    bars: Sequence[Bar],
    sequence: int,
    *,
    half: bool,
    places: int = 1,
    answered: Collection[int] = (),
) -> HeadReport:
    """Analyse the heads at the last of *bars*, which is decision *sequence*.

    Their kinds are determined at *places* of the bars, evenly spread over those whose open times
    are in *answered*, by default over all. Raises ``DataInvalid`` for too few bars.
    """
    first = min(forecaster.context + DECISIONS_BEFORE - 1, len(bars))
    candidates = [
        end
        for end in range(first, len(bars) + 1)
        if not answered or bars[end - 1].open_time_ms in answered
    ]
    *ends, last = (
        candidates[at] for at in np.unique(np.linspace(len(candidates) - 1, 0, places).astype(int))
    )
    parts = [bars[end - first : end] for end in ends]
    parts.append(bars[max(0, last - forecaster.context - DECISIONS + 1) :])
    *_, newest = activities = [head_activity(forecaster, part, AGE_EDGES) for part in parts]
    horizon = forecaster.horizons[len(forecaster.horizons) // 2]
    shares = [
        Probe(forecaster, part, horizon=horizon).shares(activity.rollout)
        for part, activity in zip(parts, activities, strict=True)
    ]
    window = newest.by_age.shape[-1]
    edges = np.unique(np.geomspace(1, window + 1, CELLS + 1).astype(np.int64)) - 1
    cells = np.add.reduceat(newest.by_age, edges[:-1], axis=-1) / np.diff(edges)
    decisions = newest.by_age.shape[2]
    kinds = [[[head.kind.value for head in layer] for layer in each.readings]
             for each in activities]  # fmt: skip
    kept = max(newest.map.weights.shape[1], decisions)
    return HeadReport(
        instrument=bars[-1].instrument,
        sequence=sequence,
        half=half,
        activity=newest,
        over_run=tuple(tuple(zip(*layer, strict=True)) for layer in zip(*kinds, strict=True)),
        maps=cells.swapaxes(2, 3),
        cell_ages=tuple(edges[:-1].tolist()),
        groups=group_names(newest.rollout.size),
        edges=edges_of(newest.by_age),
        open_time_ms=tuple(bar.open_time_ms for bar in bars[-kept:]),
        features={name: float(np.mean([each[name] for each in shares])) for name in shares[0]},
        horizon=horizon,
        note=""
        if forecaster.streams or forecaster.method == PLAIN
        else f"The run stores its attribution by {forecaster.method.name} with other options; the "
        "flow and the map here are those of the default rollout.",
    )


def group_names(time: int) -> tuple[str, ...]:
    """Return the names of the groups of age among *time* bars."""
    firsts = [edge for edge in AGE_EDGES if edge < time]
    lasts = [*(edge - 1 for edge in firsts[1:]), time - 1]
    return tuple(f"{first}–{last}" for first, last in zip(firsts, lasts, strict=True))


# ---------------------------------------------------------------- tables


class _Head(NamedTuple):
    name: str  # layer and head
    reading: HeadReading
    figures: HeadFigures
    ties: Ties | None
    kinds: tuple[str, ...]  # over the run

    @property
    def marks(self) -> str:
        """The head's properties, and the quantities that its attention depends on."""
        tied = () if self.ties is None else self.ties.marks
        return ", ".join((*self.figures.marks, *(f"tied to {name}" for name in tied)))

    @property
    def over_run(self) -> str:
        """The head's kinds, with the number of places of the run for each."""
        counts = Counter(self.kinds).most_common()
        return ", ".join(f"{kind} {count}" for kind, count in counts)


KINDS: Final = (
    of_field("head", "head", "text", "name"),
    of_field("kind", "kind", "text", "reading.kind.value"),
    of_field("confidence", "confidence", "measure", "reading.confidence"),
    of_field("local_mass", "local mass", "share", "reading.local_mass"),
    Figure[_Head](
        "period_bars", "period, bars", "count", lambda head: head.reading.period_bars or None
    ),
    of_field("period_correlation", "correlation", "ratio", "reading.period_correlation"),
    of_field("event_share", "event share", "share", "reading.event_share"),
)


def _tied(name: str, title: str) -> Iterator[Figure[_Head]]:
    yield of_field(name, title, "ratio", f"ties.{name}.value", wide=True)
    yield of_field(f"{name}_p", "p", "measure", f"ties.{name}.p", wide=True)


FIGURES: Final = (
    of_field("head", "head", "text", "name"),
    of_field("over_run", "over the run", "text"),
    of_field("mean_age", "mean age", "days", "figures.mean_age", wide=True),
    of_field("half_life", "half-life", "days", "figures.half_life"),
    of_field("effective_bars", "spread as over", "days", "figures.effective_bars", wide=True),
    of_field("focus", "focus", "share", "figures.focus"),
    of_field("stability", "stability", "ratio", "figures.stability"),
    of_field("apart", "apart", "ratio", "figures.separation"),
    *_tied("volume", "with volume"),
    *_tied("volatility", "with volatility"),
    *_tied("extremes", "at extremes"),
    of_field("marks", "properties", "text"),
)

FEATURES: Final = (
    of_row("feature", "feature", "text"),
    of_row("share", "share", "share"),
    of_row("bar", "", "bar"),
)
EVENTS: Final = (
    of_row("open_time_ms", "bar", "minute"),
    of_row("times_even", "times even", "ratio"),
    of_row("decisions", "decisions", "count"),
)


def event_bars(rollout_map: RolloutMap, open_time_ms: Sequence[int]) -> list[Cells]:
    """Return the bars with the most attention from rows for which they were no longer recent.

    Recent is the newest quarter of the map. ``times_even`` is a bar's mean weight divided by the
    mean weight that the same rows give to all bars that are not recent; ``decisions`` counts these
    rows.
    """
    bars = rollout_map.weights.shape[1]
    age = (bars - 1 - rollout_map.ages)[:, None] - np.arange(bars)
    distant = age >= max(1, bars // 4)
    even = np.where(distant, rollout_map.weights, 0.0).sum(axis=1) / np.maximum(
        distant.sum(axis=1), 1
    )
    relative = np.divide(rollout_map.weights, even[:, None], where=even[:, None] > 0,
                         out=np.zeros_like(rollout_map.weights))  # fmt: skip
    counts = distant.sum(axis=0)
    mean = np.where(distant, relative, 0.0).sum(axis=0) / np.maximum(counts, 1)
    eligible = np.flatnonzero(counts >= max(2, len(rollout_map.ages) // 20))
    order = eligible[np.argsort(-mean[eligible], kind="stable")][:EVENTS_SHOWN]
    times = open_time_ms[-bars:]
    return [
        {"open_time_ms": times[at], "times_even": float(mean[at]), "decisions": int(counts[at])}
        for at in order.tolist()
    ]


def subject_tables(heads: HeadReport) -> tuple[Table, Table]:
    """Return the tables of features that move the mean, and of the most attended bars."""
    ranked = sorted(heads.features.items(), key=lambda item: -item[1])
    note = (
        f"Shares of |value × gradient| of the mean return to {heads.horizon} bars, bars weighted "
        "by the rollout, at the places where heads are analysed."
    )
    rows: list[Cells] = [{"feature": name, "share": share, "bar": share} for name, share in ranked]
    title = "Features that move the mean return"
    features = table("feature_shares", title, FEATURES, rows, notes=(note,))
    events = table(
        "event_bars", "Bars that many decisions looked at", EVENTS,
        event_bars(heads.activity.map, heads.open_time_ms),
        notes=("Of the map's bars older than its newest quarter; 1 is even attention.",),
    )  # fmt: skip
    return features, events


def head_tables(heads: HeadReport) -> tuple[Table, Table, Table]:
    """Return the tables of each head's kind, of its figures, and of the flow through the layers."""
    activity = heads.activity
    layers = zip(activity.readings, activity.figures, activity.ties, heads.over_run, strict=True)
    rows = [
        _Head(f"{layer}.{head}", *parts)
        for layer, columns in enumerate(layers, start=1)
        for head, parts in enumerate(zip(*columns, strict=True), start=1)
    ]
    whose = "the network of the run's ensemble" if heads.half else "the run's model"
    note = (
        f"Recomputed by {whose} at decision {heads.sequence:,}, over its last {heads.decisions} "
        "bars."
    )
    notes = (note, *([heads.note] if heads.note else ()))
    kinds = table("head_kinds", "Heads", KINDS, rows, notes=notes, shown=len(rows))
    by_head = table(
        "head_figures", "Range, focus and stability of heads", FIGURES, rows, notes=(LEGEND,),
        shown=len(rows),
    )  # fmt: skip
    held: list[Cells] = [
        {"level": name, **dict(zip(heads.groups, shares.tolist(), strict=True))}
        for name, shares in zip(levels(heads), held_by_level(heads), strict=True)
    ]
    columns = [of_row(name, name, "share") for name in heads.groups]
    figures = [of_row("level", "bars old", "text"), *columns]
    title = "How the decision's attention flows down, by the age of the bars"
    return kinds, by_head, table("flow", title, figures, held, notes=(FLOW_NOTE,))


def levels(heads: HeadReport) -> list[str]:
    """Return the names of the flow's levels, from the decision down."""
    return [
        "the decision",
        *(f"below layer {at}" for at in range(len(heads.activity.flow), 1, -1)),
        "bars",
    ]


def held_by_level(heads: HeadReport) -> list[Floats]:
    """Return the share of each group of age at each level; a level sums to 1."""
    return [np.eye(len(heads.groups))[0], *(layer.sum(axis=0) for layer in heads.activity.flow)]
