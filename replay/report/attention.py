"""Where a run's attention lay: over time, by regime, in winners and losers, and by head."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tracepaper.replay.report.record import Floats, Ints, RunRecord
from tracepaper.replay.report.trades import Trade
from tracepaper.storage.reader import Reader
from tracepaper.strategies.forecasters.measures import by_age
from tracepaper.strategies.types import Bar, Forecast

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


@dataclass(frozen=True)
class Group:
    """Mean measures at the entries of some trades; ``rollout`` is by age, in cells of 64 bars."""

    name: str
    trades: int
    means: dict[str, float]
    errors: dict[str, float]  # standard errors; absent below two trades
    rollout: tuple[float, ...]


@dataclass(frozen=True)
class Attention:
    """What a run's explanations say, read in one pass over its answers."""

    explained: int  # decisions with an explanation
    heatmaps: tuple[Heatmap, ...]
    head_confidence: Floats  # [layer · head], the mean over all decisions, layer by layer
    aged: dict[int, Floats]  # a wanted decision's rollout by age


class _Columns:
    """Sums of one instrument's rollout over the columns of its heatmap."""

    def __init__(self, instrument: str, decisions: int) -> None:
        self.instrument = instrument
        self.stride = max(1, -(-decisions // COLUMNS_MAX))
        self._rows: list[tuple[npt.NDArray[np.float32], int, float, Bar]] = []
        self._made: list[tuple[Floats, float, Bar]] = []

    def add(self, rollout: npt.NDArray[np.float32], confidence: float, bar: Bar) -> None:
        """Take in one decision; a full column is reduced to its mean."""
        self._rows.append((rollout, bar.open_time_ms // bar.interval_ms, confidence, bar))
        if len(self._rows) == self.stride:
            self._reduce()

    @property
    def filled(self) -> bool:
        """Whether a decision came in."""
        return bool(self._rows or self._made)

    def heatmap(self, price_decimals: int) -> Heatmap:
        """Return the columns; what is left makes one more, shorter column."""
        if self._rows:
            self._reduce()
        return Heatmap(
            self.instrument,
            np.array([bar.open_time_ms for *_, bar in self._made], dtype=np.int64),
            np.array([row for row, *_ in self._made]).T,
            np.array([confidence for _, confidence, _ in self._made]),
            np.array([bar.close for *_, bar in self._made]) / 10.0**price_decimals,
        )

    def _reduce(self) -> None:
        rollouts, positions, confidences, bars = zip(*self._rows, strict=True)
        aged = by_age(np.array(rollouts), np.array(positions))
        self._made.append((aged.mean(axis=0), float(np.mean(confidences)), bars[-1]))
        self._rows = []


def read_attention(reader: Reader, record: RunRecord, wanted: Collection[int]) -> Attention | None:
    """Go over the run's answers once; None where no decision has an explanation.

    *wanted* are the sequences whose own rollout is kept.
    """
    if not record.run["model_id"]:
        return None
    explained = np.isfinite(record.decisions.confidence)
    columns = {
        name: _Columns(name, int(np.count_nonzero(record.decisions.instrument[explained] == name)))
        for name in record.bars
    }
    total: Floats | None = None
    count = 0
    aged: dict[int, Floats] = {}
    for sequence, _, event, answer in reader.events(str(record.run["run_id"])):
        if not isinstance(event, Bar) or not isinstance(answer, Forecast):
            continue
        if (told := answer.explanation) is None or not told.buckets:
            continue
        rollout = np.append(np.frombuffer(told.buckets, "<f4"), np.float32(told.older_mass))
        if event.instrument in columns:
            columns[event.instrument].add(rollout, told.confidence, event)
        entropy = np.frombuffer(told.entropy, "<f4").astype(np.float64)
        total = entropy if total is None else total + entropy
        count += 1
        if sequence in wanted:
            position = np.array([event.open_time_ms // event.interval_ms])
            aged[sequence] = by_age(rollout[None], position)[0]
    if total is None:
        return None
    maps = [
        made.heatmap(record.instruments[name].price_decimals)
        for name, made in columns.items()
        if made.filled
    ]
    return Attention(count, tuple(maps), total / count, aged)


def winners_and_losers(
    record: RunRecord, trades: Sequence[Trade], attention: Attention
) -> tuple[Group, ...]:
    """Return the mean measures at the entries of trades that earned, and of those that lost."""
    known = [trade for trade in trades if trade.entry_sequence in attention.aged]
    return tuple(
        _group(record, name, [trade for trade in known if (trade.profit > 0) is won], attention)
        for name, won in (("winners", True), ("losers", False))
    )


def _group(record: RunRecord, name: str, trades: Sequence[Trade], attention: Attention) -> Group:
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
    rows = [attention.aged[trade.entry_sequence] for trade in trades]
    rollout = tuple(np.mean(rows, axis=0).tolist()) if rows else ()
    return Group(name, len(trades), means, errors, rollout)
