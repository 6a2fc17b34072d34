"""Attention of a run: over time, by regime, by head, between symbols.

Read from what every decision noted of its exact rollout; nothing is asked again. A decision notes
its eight largest shares: what is left of it is counted as that of others.

The rule is docs/several.md, P32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from tracepaper.daemon.config.values import ASKS
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
from tracepaper.replay.report.record import RunRecord
from tracepaper.replay.report.trades import ClosedTrade
from tracepaper.replay.run_columns import Floats, Ints, NoteColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.api.strategy import SHARE_OF
from tracepaper.strategies.time_buckets import cells_by_age

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
    """Mean measures at the entries of some trades, with their standard errors over these."""

    name: str
    trades: int
    means: dict[str, Estimate]  # without an error below two trades
    rollout: tuple[float, ...] = ()  # by age, in cells of 64 bars


@dataclass(frozen=True)
class RunAttention:
    """What a run's explanations say, read in one pass over its answers."""

    explained: int  # decisions with an explanation
    heatmaps: tuple[Heatmap, ...]
    head_confidence: Floats  # [layer · head], the mean over all decisions, layer by layer
    rollout_by_age: dict[int, Floats]  # a wanted decision's rollout by age


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
    chosen = np.array(sorted(wanted), dtype=np.int64)
    column_of, spans = _columns(record)
    last = np.zeros(column_of.max() + 1, dtype=np.int64)  # [column] its last decision
    counts = np.zeros_like(last)
    sums: Floats | None = None  # [column, measure]: cells by age, then heads, then the confidence
    widths = 0, 0  # of the cells and of the heads
    ages: dict[int, Floats] = {}
    # Summed while read, as the rows of a year of minutes fill a gigabyte.
    for batch in reader.explanations(str(record.run["run_id"])):
        sequences, rollout, entropy = stacked(batch)
        at = np.searchsorted(decisions.sequence, sequences).clip(max=decisions.sequence.size - 1)
        decided = decisions.sequence[at] == sequences
        read = rollout.shape[1], entropy.shape[1]
        if not decided.any() or (sums is not None and read != widths):
            continue
        at, opened = at[decided], decisions.open_time_ms[at[decided]]
        by_age = cells_by_age(rollout[decided], opened // record.bar_times.interval_ms)
        for place in np.flatnonzero(np.isin(decisions.sequence[at], chosen)).tolist():
            # A copy, as a view of a row keeps its whole batch.
            ages[int(decisions.sequence[at[place]])] = by_age[place].copy()
        measures = np.column_stack((by_age, entropy[decided], decisions.confidence[at]))
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

    Those of one instrument hold as many explained decisions each, the last one what is left. That
    a decision is explained shows in its confidence, before any explanation is read.
    """
    decisions = record.decisions
    column_of = np.zeros(decisions.sequence.size, dtype=np.int64)
    spans: dict[str, Ints] = {}
    first = 0
    for name in record.bars:
        if (rows := decisions.places.get(name)) is not None:
            nth = np.cumsum(np.isfinite(decisions.confidence[rows]))  # counts from 1
            size = max(1, -(-int(nth[-1]) // COLUMNS_MAX))
            column_of[rows] = first + (nth - 1).clip(min=0) // size
            spans[name] = np.arange(first, column_of[rows[-1]] + 1)
            first += spans[name].size
    return column_of, spans


def stacked(
    batch: Sequence[tuple[int, bytes, float, bytes]],
) -> tuple[Ints, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return sequences, rollouts with their older mass last, and entropies, a row a decision.

    Of shares of relevance they are the sizes.
    """
    sizes = [len(buckets) + len(entropy) for _, buckets, _, entropy in batch]
    same = [row for row, size in zip(batch, sizes, strict=True) if size == sizes[0]]
    sequences, buckets, older, entropy = zip(*same, strict=True)
    rollout = np.frombuffer(b"".join(buckets), "<f4").reshape(len(same), -1)
    return (
        np.array(sequences, dtype=np.int64),
        np.abs(np.column_stack((rollout, np.array(older, dtype=np.float32)))),
        np.frombuffer(b"".join(entropy), "<f4").reshape(len(same), -1),
    )


def winners_and_losers(
    record: RunRecord, trades: Sequence[ClosedTrade], attention: RunAttention
) -> tuple[Group, ...]:
    """Return the mean measures at the entries of trades that earned, and of those that lost."""
    explained = [trade for trade in trades if trade.entry_sequence in attention.rollout_by_age]
    return tuple(
        _group(record, name, [trade for trade in explained if (trade.profit > 0) is won], attention)
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
    rows = [attention.rollout_by_age[trade.entry_sequence] for trade in trades]
    rollout = tuple(np.mean(rows, axis=0).tolist()) if rows else ()
    return Group(name, len(trades), _means(columns), rollout)


def _means(columns: Mapping[str, Floats]) -> dict[str, Estimate]:
    """Return the mean of each measure where it is finite, with its standard error."""
    finite = {name: column[np.isfinite(column)] for name, column in columns.items()}
    return {
        name: (
            float(column.mean()),
            float(column.std(ddof=1) / np.sqrt(column.size)) if column.size > 1 else None,
        )
        for name, column in finite.items()
        if column.size
    }


def entry_table(
    key: str,
    title: str,
    measure: Figure[Cells],
    groups: Sequence[Group],
    form: Form,
    notes: Sequence[str] = (),
) -> Table:
    """Hold the means of *groups* beside each other, a row a *measure* of the first of them."""
    columns = [of_row(of.name, f"{of.trades:,} {of.name}", form) for of in groups]
    rows: list[Cells] = [
        {measure.key: name.replace("_", " "), **{of.name: of.means.get(name) for of in groups}}
        for name in groups[0].means
    ]
    return table(key, title, (measure, *columns), rows, notes=notes)


QUARTERS: Final = 4
COLUMNS_SHOWN: Final = 4
"""Symbols whose columns a terminal has room for; the rest are summed."""
LEFT_OUT: Final = 5e-7
"""A share that is left below it is that of rounding."""


OWN: Final = "its own"
"""What of an entry's look is of the traded symbol itself."""


@dataclass(frozen=True)
class InfluenceReport:
    """How much of where each symbol (row) looked is of each (column), over a run's decisions.

    Rows of ``mean`` and their ``rest`` sum to 1; ``spread`` is the standard deviation over the
    decisions. ``quarters`` has as many decisions each, and NaN where a symbol decided none.
    """

    symbols: tuple[str, ...]
    decisions: tuple[int, ...]  # of each symbol
    mean: Floats  # [symbol, symbol]
    spread: Floats
    rest: Floats  # [symbol]: of symbols that decisions did not note
    quarters: Floats  # [quarter, symbol, symbol]
    quarter_from_ms: tuple[int, ...]  # when the first bar that each decided opened
    groups: tuple[Group, ...]  # winners and losers: the shares of ``OWN`` and of each symbol
    key: ClassVar = "influence"
    """Where it stands in the JSON of a report."""

    @property
    def by_others(self) -> Floats:
        """How much of where the others looked is of each symbol, the mean over them: [symbol]."""
        return _of_others(self.mean)

    def tables(self) -> tuple[Table, ...]:
        """Return the mean matrix, who is looked at, the largest shares, and those at entries."""
        tables = (_matrix(self), _led(self), _pairs(self))
        return (*tables, _entries(self)) if self.groups else tables

    def document(self) -> dict[str, Any]:
        """Return plain values: shares are fractions, rows and columns in order of ``symbols``."""
        tables = {table.key: table.documents() for table in self.tables()}
        return plain(vars(self)) | {"by_others": self.by_others.tolist(), "tables": tables}


def read_influence(record: RunRecord, trades: Sequence[ClosedTrade] = ()) -> InfluenceReport | None:
    """Return who swayed whom over the run, and at the entries of *trades*.

    None where the run is of no network over several symbols, or no decision noted where it looked.
    """
    if ASKS.get(record.config.strategy.name) is not DataSource.CLOSES:
        return None
    every = {
        of.symbol: _noted(record.notes.get(name, {})) for name, of in record.instruments.items()
    }
    if not any(every.values()):
        return None
    symbols = tuple(every)
    times = {row: _times(noted) for row, noted in every.items()}
    closes = np.unique(np.concatenate(list(times.values())))
    quarter_of = np.arange(closes.size) * QUARTERS // closes.size
    count = min(QUARTERS, closes.size)
    mean, square = (np.zeros((len(symbols), len(symbols))) for _ in range(2))
    quarters = np.full((count, *mean.shape), np.nan)
    for row, symbol in enumerate(symbols):
        decided = times[symbol].size
        each = np.bincount(quarter_of[np.searchsorted(closes, times[symbol])], minlength=QUARTERS)
        quarters[each[:count] > 0, row] = 0.0
        for of, noted in every[symbol].items():
            column = symbols.index(of)
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
        _groups(record, trades, every),
    )


def _noted(notes: Mapping[str, NoteColumns]) -> dict[str, NoteColumns]:
    """Return the shares that decisions of one symbol noted, by the symbol whose they are."""
    return {
        name.removeprefix(SHARE_OF): noted
        for name, noted in notes.items()
        if name.startswith(SHARE_OF)
    }


def _times(noted: Mapping[str, NoteColumns]) -> Ints:
    if not noted:
        return np.empty(0, dtype=np.int64)
    return np.unique(np.concatenate([of.open_time_ms for of in noted.values()]))


def _of_others(matrix: Floats) -> Floats:
    """Return the mean of each column of [.., symbol, symbol] without the diagonal."""
    count = matrix.shape[-1]
    diagonal = np.einsum("...ii->...i", matrix)
    return (np.nansum(matrix, axis=-2) - np.nan_to_num(diagonal)) / max(count - 1, 1)


def _groups(
    record: RunRecord, trades: Sequence[ClosedTrade], every: Mapping[str, Mapping[str, NoteColumns]]
) -> tuple[Group, ...]:
    """Return the shares at the entries of trades that earned and of those that lost."""
    symbols, decisions = list(every), record.decisions
    attended: dict[str, list[Floats]] = {"winners": [], "losers": []}
    for trade in trades:
        symbol = record.instruments[trade.instrument].symbol
        at = int(np.searchsorted(decisions.sequence, trade.entry_sequence))
        opened = int(decisions.open_time_ms[at])
        shares = np.zeros(len(symbols) + 1)  # the last is of the traded symbol itself
        for name, noted in every[symbol].items():
            place = int(np.searchsorted(noted.open_time_ms, opened))
            if place < noted.open_time_ms.size and noted.open_time_ms[place] == opened:
                shares[symbols.index(name)] = noted.number[place]
        if shares.any():
            shares[-1] = shares[symbols.index(symbol)]
            attended["winners" if trade.profit > 0 else "losers"].append(shares)
    names = [*symbols, OWN]
    return tuple(
        Group(name, len(rows), _means(dict(zip(names, np.array(rows).T, strict=True))))
        for name, rows in attended.items()
        if rows
    )


# ---------------------------------------------------------------- tables


def _matrix(influence: InfluenceReport) -> Table:
    """Make a row a symbol, and a column each of those that others look at most."""
    shown = sorted(np.argsort(-influence.by_others, kind="stable")[:COLUMNS_SHOWN].tolist())
    is_cut = len(influence.symbols) > COLUMNS_SHOWN
    # Where not all symbols are shown, those come first that look at others most.
    given = influence.mean.sum(axis=1) + influence.rest - np.diag(influence.mean)
    order = np.argsort(-given, kind="stable") if is_cut else np.arange(given.size)
    rows = []
    for at in order.tolist():
        values: dict[str, Value] = {"symbol": influence.symbols[at]}
        for column in shown:
            pair = (float(influence.mean[at, column]), float(influence.spread[at, column]))
            values[influence.symbols[column]] = pair
        whole = float(influence.rest[at] + influence.mean[at].sum())
        values["others"] = whole - float(influence.mean[at, shown].sum())
        rows.append(values)
    columns = [of_row("symbol", "forecast of", "text")]
    columns += [of_row(influence.symbols[at], influence.symbols[at], "share") for at in shown]
    if is_cut or influence.rest.any():
        columns.append(of_row("others", "others", "share"))
    counts = f"{min(influence.decisions):,}"
    if max(influence.decisions) > min(influence.decisions):
        counts += f" to {max(influence.decisions):,}"
    note = (
        "How much of where a forecast looked is of each symbol's bars, by the rollout that "
        f"{counts} decisions of each symbol noted; ± is the standard deviation over decisions."
    )
    left = "A decision notes its eight largest shares; what is left is of others."
    notes = (note, *([left] if influence.rest.any() else ()))
    return table("influence", "Influence between symbols", columns, rows, notes=notes)


def _quarter_columns(influence: InfluenceReport) -> list[Figure[Cells]]:
    quarters = range(1, len(influence.quarters) + 1)
    return [of_row(f"quarter_{at}", f"quarter {at}", "share") for at in quarters]


def _by_quarter(values: Floats) -> dict[str, Value]:
    finite = enumerate((None if np.isnan(of) else of for of in values.tolist()), start=1)
    return {f"quarter_{at}": value for at, value in finite}


def _led(influence: InfluenceReport) -> Table:
    """List who is looked at by the others, the most first."""
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
        of_row("own", "own look", "share"),
        of_row("others", "others' looks", "share"),
        *_quarter_columns(influence),
    ]
    note = (
        "Its share of where it looked itself, and of where the others looked, the mean over them: "
        "of the run and of each quarter of its decisions."
    )
    return table("influence_led", "Who is looked at", columns, rows, notes=(note,))


def _pairs(influence: InfluenceReport) -> Table:
    """List the largest shares of one symbol in where another looked."""
    pairs = influence.mean.copy()
    np.fill_diagonal(pairs, -1.0)
    order = np.argsort(-pairs, axis=None, kind="stable")[: pairs.size - len(pairs)]
    rows = []
    for place in order[:PAIRS_KEPT].tolist():
        at, of = divmod(place, len(pairs))
        rows.append(
            {
                "forecast": influence.symbols[at],
                "bars": influence.symbols[of],
                "share": (float(influence.mean[at, of]), float(influence.spread[at, of])),
                **_by_quarter(influence.quarters[:, at, of]),
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
"""Of the pairs, as many rows as the document lists by themselves; it has the whole matrix too."""


def _entries(influence: InfluenceReport) -> Table:
    """Compare where the entries of winners and of losers looked, the largest share first."""
    groups = influence.groups
    most = sorted(
        groups[0].means,
        key=lambda name: (name != OWN, -max(group.means[name][0] for group in groups)),
    )
    ranked = [replace(group, means={name: group.means[name] for name in most}) for group in groups]
    note = "Shares of where the decisions that opened trades looked; errors over the trades."
    bars = of_row("bars", "bars of", "text")
    return entry_table(
        "influence_entries", "Influence at the entries", bars, ranked, "share", [note]
    )
