"""Where a run's attention lay: over time, by regime, in winners and losers, and by head."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tracepaper.replay.report.record import Bars, Floats, Ints, RunRecord
from tracepaper.replay.report.trades import ClosedTrade
from tracepaper.storage.reader import Reader
from tracepaper.strategies.attention.blocks import cells_by_age

COLUMNS_MAX: Final = 240
"""Columns of the heatmap over time; each is the mean of the decisions in it."""


@dataclass(frozen=True)
class Heatmap:
    """The mean rollout of one instrument, by age and time; a column's cells sum to 1."""

    instrument: str
    times_ms: Ints  # the open time of each column's last decision
    weights: Floats  # [cell of 64 bars of age, column]; the last cell is everything older
    confidence: Floats  # [column]
    close: Floats  # [column] of its last bar
    heads: Floats  # [layer · head, column] the mean confidence of each head


@dataclass(frozen=True)
class Group:
    """Mean measures at the entries of some trades; ``rollout`` is by age, in cells of 64 bars."""

    name: str
    trades: int
    means: dict[str, float]
    errors: dict[str, float]  # standard errors; absent below two trades
    rollout: tuple[float, ...]


@dataclass(frozen=True)
class RunAttention:
    """What a run's explanations say, read in one pass over its answers."""

    explained: int  # decisions with an explanation
    heatmaps: tuple[Heatmap, ...]
    head_confidence: Floats  # [layer · head], the mean over all decisions, layer by layer
    rollout_by_age: dict[int, Floats]  # a wanted decision's rollout by age


class _Columns:
    """Sums of one instrument's rollout by age over the columns of its heatmap."""

    def __init__(self, decisions: int) -> None:
        self._stride = max(1, -(-decisions // COLUMNS_MAX))
        self._seen = 0
        self._sums: Floats | None = None

    def add(self, rollout: Floats) -> None:
        """Take in the next decisions: [decision, cell]."""
        if self._sums is None:
            self._sums = np.zeros((COLUMNS_MAX, rollout.shape[1]))
        places = (self._seen + np.arange(len(rollout))) // self._stride
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        self._sums[places[starts]] += np.add.reduceat(rollout, starts)
        self._seen += len(rollout)

    def means(self) -> Floats:
        """Return each column's mean, [cell, column]."""
        assert self._sums is not None
        starts, counts = self._spans()
        means: Floats = (self._sums[: starts.size] / counts[:, None]).T
        return means

    def heatmap(
        self, instrument: str, confidence: Floats, bars: Bars, rows: Ints, heads: Floats
    ) -> Heatmap:
        """Return the columns; what is left makes one more, shorter column.

        *confidence* is each decision's, *rows* their places in *bars* and *heads* the columns of
        each head.
        """
        starts, counts = self._spans()
        last = rows[starts + counts - 1]
        return Heatmap(
            instrument,
            bars.open_time_ms[last],
            self.means(),
            np.add.reduceat(confidence, starts) / counts,
            bars.close[last],
            heads,
        )

    def _spans(self) -> tuple[Ints, Ints]:
        """Return where each column starts among the decisions, and how many it has."""
        starts = np.arange(0, self._seen, self._stride)
        return starts, np.diff(np.append(starts, self._seen))


def read_attention(
    reader: Reader, record: RunRecord, wanted: Collection[int]
) -> RunAttention | None:
    """Go over the run's answers once; None where no decision has an explanation.

    *wanted* are the sequences whose own rollout is kept. Where the model was changed for one of
    another size, the decisions of the first size are shown.
    """
    if not record.run["model_id"]:
        return None
    decisions = record.decisions
    explained = np.isfinite(decisions.confidence)
    chosen = np.array(sorted(wanted), dtype=np.int64)
    taken: dict[str, list[Ints]] = {name: [] for name in record.bars}
    columns: dict[str, _Columns] = {}
    by_head: dict[str, _Columns] = {}
    total: Floats | None = None
    count = 0
    ages: dict[int, Floats] = {}
    for batch in reader.explanations(str(record.run["run_id"])):
        sequences, rollout, entropy = _stacked(batch)
        at = np.searchsorted(decisions.sequence, sequences).clip(max=decisions.sequence.size - 1)
        known = decisions.sequence[at] == sequences
        if not known.any() or (total is not None and entropy.shape[1] != total.size):
            continue
        sequences, rollout, at = sequences[known], rollout[known], at[known]
        heads = entropy[known].astype(np.float64)
        total = heads.sum(axis=0) if total is None else total + heads.sum(axis=0)
        count += len(sequences)
        opened = decisions.open_time_ms[at]
        cells = cells_by_age(rollout, opened // record.interval_ms)
        for place in np.flatnonzero(np.isin(sequences, chosen)).tolist():
            ages[int(sequences[place])] = cells[place]
        for name in record.bars:
            own = decisions.instrument[at] == name
            if own.any():
                every = int(np.count_nonzero(explained[decisions.places[name]]))
                columns.setdefault(name, _Columns(every)).add(cells[own])
                by_head.setdefault(name, _Columns(every)).add(heads[own])
                taken[name].append(at[own])
    if total is None:
        return None
    maps = []
    for name, made in columns.items():
        at = np.concatenate(taken[name])
        bars = record.bars[name]
        rows = np.searchsorted(bars.sequence, decisions.sequence[at])
        of_heads = by_head[name].means()
        maps.append(made.heatmap(name, decisions.confidence[at], bars, rows, of_heads))
    return RunAttention(count, tuple(maps), total / count, ages)


def _stacked(
    batch: Sequence[tuple[int, bytes, float, bytes]],
) -> tuple[Ints, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return sequences, rollouts with their older mass last, and entropies, a row a decision."""
    sizes = [len(buckets) + len(entropy) for _, buckets, _, entropy in batch]
    same = [row for row, size in zip(batch, sizes, strict=True) if size == sizes[0]]
    sequences, buckets, older, entropy = zip(*same, strict=True)
    rollout = np.frombuffer(b"".join(buckets), "<f4").reshape(len(same), -1)
    return (
        np.array(sequences, dtype=np.int64),
        np.column_stack((rollout, np.array(older, dtype=np.float32))),
        np.frombuffer(b"".join(entropy), "<f4").reshape(len(same), -1),
    )


def winners_and_losers(
    record: RunRecord, trades: Sequence[ClosedTrade], attention: RunAttention
) -> tuple[Group, ...]:
    """Return the mean measures at the entries of trades that earned, and of those that lost."""
    known = [trade for trade in trades if trade.entry_sequence in attention.rollout_by_age]
    return tuple(
        _group(record, name, [trade for trade in known if (trade.profit > 0) is won], attention)
        for name, won in (("winners", True), ("losers", False))
    )


def _group(
    record: RunRecord, name: str, trades: Sequence[ClosedTrade], attention: RunAttention
) -> Group:
    decisions = record.decisions
    at = np.searchsorted(decisions.sequence, [trade.entry_sequence for trade in trades])
    columns = {
        "confidence": decisions.confidence[at],
        "entropy": 1.0 - decisions.confidence[at],
        "recent_mass": decisions.recent_mass[at],
        "older_mass": decisions.older_mass[at],
        "shift": decisions.shift[at],
    }
    means, errors = {}, {}
    for measure, column in columns.items():
        finite = column[np.isfinite(column)]
        if finite.size:
            means[measure] = float(finite.mean())
        if finite.size > 1:
            errors[measure] = float(finite.std(ddof=1) / np.sqrt(finite.size))
    rows = [attention.rollout_by_age[trade.entry_sequence] for trade in trades]
    rollout = tuple(np.mean(rows, axis=0).tolist()) if rows else ()
    return Group(name, len(trades), means, errors, rollout)
