"""Attention of a run: over time, by regime, by head, between symbols.

It is read from the exact rollout that every decision noted; no model is asked again. A decision
over several symbols notes its eight largest shares; the rest counts as "others".

The rule is docs/several.md, P32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from tracepaper.daemon.config.values import MODEL_INPUTS
from tracepaper.replay.document.values import (
    Cells,
    Estimate,
    Figure,
    Form,
    Table,
    Value,
    of_row,
    plain,
    table,
)
from tracepaper.replay.report.metrics import mean_by_day
from tracepaper.replay.report.record import RunRecord
from tracepaper.replay.report.trades import ClosedTrade
from tracepaper.replay.run_columns import Floats, Ints, NoteColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.api.strategy import SHARE_OF
from tracepaper.strategies.time_buckets import cells_by_age, weights_of
from tracepaper.strategies.units import DAY_MS

COLUMNS_MAX: Final = 240
"""Columns of the heatmap over time; each is the mean of its decisions."""


@dataclass(frozen=True)
class Heatmap:
    """The mean rollout of one instrument by age and time; each column sums to 1."""

    instrument: str
    times_ms: Ints  # the open time of each column's last decision
    weights: Floats  # [cell of age, column]; the last cell is everything older
    confidence_entropy: Floats  # [column]
    close: Floats  # [column] at its last bar
    heads: Floats  # [layer · head, column] mean confidence of each head


@dataclass(frozen=True)
class EntryGroup:
    """Means of measures at the entries of a group of trades, with errors by day of entry."""

    name: str
    trades: int
    means: dict[str, Estimate]  # without an error for too few days
    rollout: tuple[float, ...] = ()  # by age, in cells of ``bucket_bars``


@dataclass(frozen=True)
class RunAttention:
    """The attention of a run, read in one pass over its explanations."""

    explained: int  # decisions with an explanation
    heatmaps: tuple[Heatmap, ...]
    head_confidence: Floats  # [layer · head], mean over all decisions, layer by layer
    rollout_by_age: dict[int, Floats]  # by sequence, of the requested decisions


def read_attention(
    reader: Reader, record: RunRecord, sequences_kept: Collection[int]
) -> RunAttention | None:
    """Return the run's attention; None if no decision has an explanation.

    The rollouts of the decisions *sequences_kept* are kept separately. If the model was replaced by
    one of another size, only the decisions of the first size are read.
    """
    if not record.run["model_id"]:
        return None
    decisions = record.decisions
    chosen = np.array(sorted(sequences_kept), dtype=np.int64)
    column_of, spans = _columns(record)
    last = np.zeros(column_of.max() + 1, dtype=np.int64)  # [column] index of its last decision
    counts = np.zeros_like(last)
    sums: Floats | None = None  # [column, measure]: cells by age, heads, confidence
    widths = 0, 0  # numbers of cells and of heads
    ages: dict[int, Floats] = {}
    # Sum while reading: the rows of a year of minutes would take a gigabyte.
    for batch in reader.explanations(str(record.run["run_id"])):
        sequences, rollout, entropy = stacked(batch)
        at = np.searchsorted(decisions.sequence, sequences).clip(max=decisions.sequence.size - 1)
        decided = decisions.sequence[at] == sequences
        read = rollout.shape[1], entropy.shape[1]
        if not decided.any() or (sums is not None and read != widths):
            continue
        at, opened = at[decided], decisions.open_time_ms[at[decided]]
        positions = opened // record.bar_times.interval_ms
        by_age = cells_by_age(rollout[decided], positions, record.run["bucket_bars"])
        for place in np.flatnonzero(np.isin(decisions.sequence[at], chosen)).tolist():
            # Copy, because a view of one row would keep the whole batch in memory.
            ages[int(decisions.sequence[at[place]])] = by_age[place].copy()
        measures = np.column_stack((by_age, entropy[decided], decisions.confidence_entropy[at]))
        if sums is None:
            widths, sums = read, np.zeros((last.size, measures.shape[1]))
        np.add.at(sums, column_of[at], measures)
        np.maximum.at(last, column_of[at], at)
        counts += np.bincount(column_of[at], minlength=last.size)
    if sums is None:
        return None
    maps = []
    for name, span in spans.items():
        columns = span[counts[span] > 0]
        if columns.size:
            means, bars = (sums[columns] / counts[columns, None]).T, record.bars[name]
            at = np.searchsorted(bars.sequence, decisions.sequence[last[columns]])
            weights, heads, confidence = np.split(means, (widths[0], -1))
            opens, closes = bars.open_time_ms[at], bars.close[at]
            maps.append(Heatmap(name, opens, weights, confidence[0], closes, heads))
    explained = int(counts.sum())
    by_head = sums[:, widths[0] : -1].sum(axis=0) / explained
    return RunAttention(explained, tuple(maps), by_head, ages)


def _columns(record: RunRecord) -> tuple[Ints, dict[str, Ints]]:
    """Return the column of every decision, and the columns of each instrument.

    Each column of an instrument has equally many explained decisions, the last has the rest.
    Explained decisions are those with a finite confidence.
    """
    decisions = record.decisions
    column_of = np.zeros(decisions.sequence.size, dtype=np.int64)
    spans: dict[str, Ints] = {}
    first = 0
    for name in record.bars:
        if (rows := decisions.places.get(name)) is not None:
            nth = np.cumsum(np.isfinite(decisions.confidence_entropy[rows]))  # counts from 1
            size = max(1, -(-int(nth[-1]) // COLUMNS_MAX))
            column_of[rows] = first + (nth - 1).clip(min=0) // size
            spans[name] = np.arange(first, int(column_of[rows[-1]]) + 1)
            first += spans[name].size
    return column_of, spans


def stacked(
    batch: Sequence[tuple[int, bytes, float, bytes]],
) -> tuple[Ints, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return sequences, rollouts with the older mass last, and entropies, one row per decision.

    Shares of relevance become absolute values.
    """
    sizes = [len(buckets) + len(entropy) for _, buckets, _, entropy in batch]
    same = [row for row, size in zip(batch, sizes, strict=True) if size == sizes[0]]
    sequences, buckets, older, entropy = zip(*same, strict=True)
    rollout = weights_of(b"".join(buckets)).reshape(len(same), -1)
    return (
        np.array(sequences, dtype=np.int64),
        np.abs(np.column_stack((rollout, older)), dtype=np.float32),
        np.frombuffer(b"".join(entropy), "<f4").reshape(len(same), -1),
    )


def winners_and_losers(
    record: RunRecord, trades: Sequence[ClosedTrade], attention: RunAttention
) -> tuple[EntryGroup, ...]:
    """Return the mean measures at the entries of winning trades, and of losing ones."""
    explained = [trade for trade in trades if trade.entry_sequence in attention.rollout_by_age]
    return tuple(
        _group(record, name, [trade for trade in explained if (trade.profit > 0) is won], attention)
        for name, won in (("winners", True), ("losers", False))
    )


def _group(
    record: RunRecord, name: str, trades: Sequence[ClosedTrade], attention: RunAttention
) -> EntryGroup:
    decisions = record.decisions
    entries = [trade.entry_sequence for trade in trades if trade.entry_sequence is not None]
    at = np.searchsorted(decisions.sequence, entries)
    columns = {
        "confidence_entropy": decisions.confidence_entropy[at],
        "entropy": 1.0 - decisions.confidence_entropy[at],
        "recent_mass": decisions.recent_mass[at],
        "older_mass": decisions.older_mass[at],
        "shift": decisions.shift[at],
    }
    rows = [attention.rollout_by_age[sequence] for sequence in entries]
    rollout = tuple(np.mean(rows, axis=0).tolist()) if rows else ()
    return EntryGroup(name, len(trades), _means(columns, decisions.open_time_ms[at]), rollout)


def _means(columns: Mapping[str, Floats], opens_ms: Ints) -> dict[str, Estimate]:
    """Return the mean of the finite values of each measure, with its error by day of entry."""
    means = {}
    for name, column in columns.items():
        finite = np.isfinite(column)
        mean = mean_by_day(column[finite], opens_ms[finite] // DAY_MS)
        if mean is not None:
            means[name] = mean
    return means


def entry_table(
    key: str,
    title: str,
    measure: Figure[Cells],
    groups: Sequence[EntryGroup],
    form: Form,
    notes: Sequence[str] = (),
) -> Table:
    """Return a table with a column for the means of each group, and a row for each measure."""
    columns = [
        of_row(group.name, f"{group.trades:,} {group.name} ± error", form) for group in groups
    ]
    rows: list[Cells] = [
        {
            measure.key: name.replace("_", " "),
            **{group.name: group.means.get(name) for group in groups},
        }
        for name in groups[0].means
    ]
    return table(key, title, (measure, *columns), rows, notes=notes)


QUARTERS: Final = 4
COLUMNS_SHOWN: Final = 4
"""Symbols with a column on a terminal; the others are summed."""
LEFT_OUT: Final = 5e-7
"""A smaller rest of the shares is a rounding error."""

OWN: Final = "its own"
"""Name of the attention of an entry to the traded symbol itself."""


@dataclass(frozen=True)
class InfluenceReport:
    """Attention of the forecasts of each symbol (row) to the bars of each symbol (column).

    A row of ``mean`` plus its ``rest`` is 1; ``spread`` is the standard deviation over decisions.
    ``quarters`` have equally many closes; the row of a symbol without a decision is NaN.
    """

    symbols: tuple[str, ...]
    decisions: tuple[int, ...]  # of each symbol
    mean: Floats  # [symbol, symbol]
    spread: Floats
    rest: Floats  # [symbol]: attention to symbols that decisions did not note
    quarters: Floats  # [quarter, symbol, symbol]
    quarter_from_ms: tuple[int, ...]  # open time of the first decided bar of each
    groups: tuple[EntryGroup, ...]  # winners and losers, with the shares of ``OWN`` and each symbol
    key: ClassVar = "influence"
    """Key in the JSON of a report."""

    @property
    def by_others(self) -> Floats:
        """Mean attention of the other symbols to each symbol: [symbol]."""
        return _of_others(self.mean)

    def tables(self) -> tuple[Table, ...]:
        """Return the mean matrix, the most attended symbols, the largest shares and the entries."""
        tables = (_matrix(self), _attended(self), _pairs(self))
        return (*tables, _entries(self)) if self.groups else tables

    def document(self) -> dict[str, Any]:
        """Return JSON values: shares are fractions, rows and columns are in ``symbols``' order."""
        tables = {table.key: table.documents() for table in self.tables()}
        return plain(vars(self)) | {"by_others": self.by_others.tolist(), "tables": tables}


def read_influence(record: RunRecord, trades: Sequence[ClosedTrade] = ()) -> InfluenceReport | None:
    """Return the attention between symbols over the run, and at the entries of *trades*.

    None if the strategy has no network over several symbols, or no decision noted its attention.
    """
    if MODEL_INPUTS.get(record.config.strategy.name) is not DataSource.CLOSES:
        return None
    by_symbol = {
        item.symbol: _noted(record.notes.get(name, {})) for name, item in record.instruments.items()
    }
    if not any(by_symbol.values()):
        return None
    symbols = tuple(by_symbol)
    times = {row: _times(noted) for row, noted in by_symbol.items()}
    closes = np.unique(np.concatenate(list(times.values())))
    quarter_of = np.arange(closes.size) * QUARTERS // closes.size
    count = min(QUARTERS, closes.size)
    mean, square = (np.zeros((len(symbols), len(symbols))) for _ in range(2))
    quarters = np.full((count, *mean.shape), np.nan)
    for row, symbol in enumerate(symbols):
        decided = times[symbol].size
        each = np.bincount(quarter_of[np.searchsorted(closes, times[symbol])], minlength=QUARTERS)
        quarters[each[:count] > 0, row] = 0.0
        for attended, noted in by_symbol[symbol].items():
            column = symbols.index(attended)
            mean[row, column] = noted.number.sum() / decided
            square[row, column] = (noted.number**2).sum() / decided
            place = quarter_of[np.searchsorted(closes, noted.open_time_ms)]
            sums = np.bincount(place, noted.number, minlength=QUARTERS)
            has_decisions = each > 0
            quarters[has_decisions[:count], row, column] = sums[has_decisions] / each[has_decisions]
    rest = np.array([times[s].size > 0 for s in symbols]) - mean.sum(axis=1)
    firsts = closes[np.searchsorted(quarter_of, np.arange(count))]
    return InfluenceReport(
        symbols,
        tuple(times[symbol].size for symbol in symbols),
        mean,
        np.sqrt(np.maximum(square - mean**2, 0.0)),
        np.where(rest > LEFT_OUT, rest, 0.0),
        quarters,
        tuple(firsts.tolist()),
        _groups(record, trades, by_symbol),
    )


def _noted(notes: Mapping[str, NoteColumns]) -> dict[str, NoteColumns]:
    """Return the shares that decisions of one symbol noted, by attended symbol."""
    return {
        name.removeprefix(SHARE_OF): noted
        for name, noted in notes.items()
        if name.startswith(SHARE_OF)
    }


def _times(noted: Mapping[str, NoteColumns]) -> Ints:
    if not noted:
        return np.empty(0, dtype=np.int64)
    return np.unique(np.concatenate([column.open_time_ms for column in noted.values()]))


def _of_others(matrix: Floats) -> Floats:
    """Return the mean of each column of [.., symbol, symbol] without the diagonal."""
    count = matrix.shape[-1]
    diagonal = np.einsum("...ii->...i", matrix)
    return (np.nansum(matrix, axis=-2) - np.nan_to_num(diagonal)) / max(count - 1, 1)


def _groups(
    record: RunRecord,
    trades: Sequence[ClosedTrade],
    by_symbol: Mapping[str, Mapping[str, NoteColumns]],
) -> tuple[EntryGroup, ...]:
    """Return the shares at the entries of winning and of losing trades."""
    symbols, decisions = list(by_symbol), record.decisions
    attended: dict[str, list[Floats]] = {"winners": [], "losers": []}
    entered: dict[str, list[int]] = {"winners": [], "losers": []}
    for trade in trades:
        if trade.entry_sequence is None:
            continue
        symbol = record.instruments[trade.instrument].symbol
        at = int(np.searchsorted(decisions.sequence, trade.entry_sequence))
        opened = int(decisions.open_time_ms[at])
        shares = np.zeros(len(symbols) + 1)  # the last is that of the traded symbol
        for name, noted in by_symbol[symbol].items():
            place = int(np.searchsorted(noted.open_time_ms, opened))
            if place < noted.open_time_ms.size and noted.open_time_ms[place] == opened:
                shares[symbols.index(name)] = noted.number[place]
        if shares.any():
            shares[-1] = shares[symbols.index(symbol)]
            group = "winners" if trade.profit > 0 else "losers"
            attended[group].append(shares)
            entered[group].append(opened)
    names = [*symbols, OWN]
    return tuple(
        EntryGroup(
            name,
            len(rows),
            _means(dict(zip(names, np.array(rows).T, strict=True)), np.array(entered[name])),
        )
        for name, rows in attended.items()
        if rows
    )


# ---------------------------------------------------------------- tables


def _matrix(influence: InfluenceReport) -> Table:
    """Return a table with a row per symbol, and columns for the symbols that others attend to."""
    shown = sorted(np.argsort(-influence.by_others, kind="stable")[:COLUMNS_SHOWN].tolist())
    is_cut = len(influence.symbols) > COLUMNS_SHOWN
    # If columns are left out, sort rows by their attention to others.
    to_others = influence.mean.sum(axis=1) + influence.rest - np.diag(influence.mean)
    order = np.argsort(-to_others, kind="stable") if is_cut else np.arange(to_others.size)
    rows = []
    for at in order.tolist():
        values: dict[str, Value] = {"symbol": influence.symbols[at]}
        for column in shown:
            pair = (float(influence.mean[at, column]), float(influence.spread[at, column]))
            values[influence.symbols[column]] = pair
        total = float(influence.rest[at] + influence.mean[at].sum())
        values["others"] = total - float(influence.mean[at, shown].sum())
        rows.append(values)
    columns = [of_row("symbol", "forecast of", "text")]
    columns += [of_row(influence.symbols[at], influence.symbols[at], "share") for at in shown]
    if is_cut or influence.rest.any():
        columns.append(of_row("others", "others", "share"))
    counts = f"{min(influence.decisions):,}"
    if max(influence.decisions) > min(influence.decisions):
        counts += f" to {max(influence.decisions):,}"
    note = (
        "Attention of a forecast to the bars of each symbol, by the rollout that "
        f"{counts} decisions of each symbol noted; ± is the standard deviation over decisions."
    )
    rest_note = 'A decision notes its eight largest shares; the rest counts as "others".'
    notes = (note, *([rest_note] if influence.rest.any() else ()))
    return table("influence", "Influence between symbols", columns, rows, notes=notes)


def _quarter_columns(influence: InfluenceReport) -> list[Figure[Cells]]:
    quarters = range(1, len(influence.quarters) + 1)
    return [of_row(f"quarter_{at}", f"quarter {at}", "share") for at in quarters]


def _by_quarter(values: Floats) -> dict[str, Value]:
    finite = enumerate((None if np.isnan(each) else each for each in values.tolist()), start=1)
    return {f"quarter_{at}": value for at, value in finite}


def _attended(influence: InfluenceReport) -> Table:
    """Return the table of symbols by the attention of the others, the largest first."""
    others, over = influence.by_others, _of_others(influence.quarters)
    rows = [
        {
            "symbol": influence.symbols[at],
            "own": float(influence.mean[at, at]),
            "others": float(others[at]),
            **_by_quarter(over[:, at]),
        }
        for at in np.argsort(-others, kind="stable").tolist()
    ]
    columns = [
        of_row("symbol", "bars of", "text"),
        of_row("own", "own attention", "share"),
        of_row("others", "others' attention", "share"),
        *_quarter_columns(influence),
    ]
    note = (
        "The symbol's share in its own attention, and its mean share in that of the others: over "
        "the run and in each quarter of its decisions."
    )
    return table("influence_led", "Most attended symbols", columns, rows, notes=(note,))


def _pairs(influence: InfluenceReport) -> Table:
    """Return the table of the largest shares of one symbol in the attention of another."""
    pairs = influence.mean.copy()
    np.fill_diagonal(pairs, -1.0)
    order = np.argsort(-pairs, axis=None, kind="stable")[: pairs.size - len(pairs)]
    rows = []
    for place in order[:PAIRS_KEPT].tolist():
        row, column = divmod(place, len(pairs))
        mean, spread = influence.mean[row, column], influence.spread[row, column]
        rows.append(
            {
                "forecast": influence.symbols[row],
                "bars": influence.symbols[column],
                "share": (float(mean), float(spread)),
                **_by_quarter(influence.quarters[:, row, column]),
            }
        )
    columns = [
        of_row("forecast", "forecast of", "text"),
        of_row("bars", "bars of", "text"),
        of_row("share", "share", "share"),
        *_quarter_columns(influence),
    ]
    note = "Over the run, and in each quarter of its decisions."
    return table("influence_pairs", "The largest influences", columns, rows, notes=(note,))


PAIRS_KEPT: Final = 100
"""Pairs in the table; the document has the full matrix too."""


def _entries(influence: InfluenceReport) -> Table:
    """Return the table of attention at the entries of winners and losers, largest first."""
    groups = influence.groups
    most = sorted(
        groups[0].means,
        key=lambda name: (name != OWN, -max(group.means[name][0] for group in groups)),
    )
    ranked = [replace(group, means={name: group.means[name] for name in most}) for group in groups]
    note = "Shares in the attention of the decisions that opened trades; errors over the trades."
    bars = of_row("bars", "bars of", "text")
    return entry_table(
        "influence_entries", "Influence at the entries", bars, ranked, "share", [note]
    )
