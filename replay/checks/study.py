"""What a column says about coming returns, over symbols and horizons.

A column is a function of past bars, a note or forecast of a recorded run, a column of a file, or
values by symbol. The rules are docs/python.md, Y23 and Y24.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.session.user_class import imported
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.columns import epoch_ms, texts_of
from tracepaper.replay.archive.read import read_candles
from tracepaper.replay.archive.tables import read_table
from tracepaper.replay.backtest.run_spec import inputs_of, names_a_run
from tracepaper.replay.checks.lookahead import function_lookahead
from tracepaper.replay.document.charts import (
    BarLayer,
    Chart,
    ChartAxis,
    ChartPanel,
    MarkLayer,
    RuleLayer,
    category_axis,
    rounded,
)
from tracepaper.replay.document.values import (
    Estimate,
    Paragraph,
    Part,
    Table,
    TitledParts,
    Value,
    documents,
    of_field,
    plus_minus,
    table,
    table_of,
)
from tracepaper.replay.learning.statistics import block_mean, chance, holm
from tracepaper.replay.report.honesty import LEVEL
from tracepaper.replay.report.metrics import BLOCK_DAYS, best_by_chance
from tracepaper.replay.run_columns import Floats, Ints, RunColumns
from tracepaper.storage.database.reader import Reader, resolve
from tracepaper.storage.sweeps import LookRegistry
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.units import DAY_MS, count_of, iso, percent

HORIZONS: Final = (1, 4, 24)
QUANTILES: Final = 5
COST_BP: Final = 5.5
"""The taker fee of a fill, in basis points."""
CHECKED: Final = 3
"""Symbols on whose candles a function is checked for lookahead."""
TOO_GOOD: Final = 0.5
"""A column whose correlation with coming returns is larger holds them, as far as anyone knows."""
_FIELDS: Final = ("open", "high", "low", "close")


class StudyPanel(NamedTuple):
    """Candles of several symbols on common times."""

    candles: Sequence[Candles]
    times_ms: Ints  # [time] opens
    close: Floats  # [time, symbol]; NaN without a bar
    volume: Floats

    @property
    def interval_ms(self) -> int:
        """The interval of the bars."""
        return self.candles[0].interval_ms

    @property
    def data_sha256(self) -> str:
        """The hash of the candles, by which looks are counted."""
        return hashlib.sha256("".join(part.sha256 for part in self.candles).encode()).hexdigest()

    def placed(self, values: Sequence[Floats]) -> Floats:
        """Return the *values* by symbol, one per candle, as [time, symbol]."""
        return _placed(self.times_ms, self.candles, values)


def _placed(times_ms: Ints, candles: Sequence[Candles], values: Sequence[Floats]) -> Floats:
    placed = np.full((times_ms.size, len(candles)), np.nan)
    for column, (part, series) in enumerate(zip(candles, values, strict=True)):
        placed[np.searchsorted(times_ms, part.open_time_ms), column] = series
    return placed


def panel_of(candles: Sequence[Candles]) -> StudyPanel:
    """Return *candles* as a panel; raise ``DataInvalid`` if nothing can be compared in it."""
    if len({part.interval_ms for part in candles}) > 1:
        raise DataInvalid("The candles have several intervals; give those of one.")
    names = [part.symbol for part in candles]
    if len(set(names)) < len(names):
        raise DataInvalid("A symbol is given twice; give each symbol's candles once.")
    times = np.unique(np.concatenate([part.open_time_ms for part in candles]))
    close = _placed(times, candles, [part.close / 10.0**part.price_decimals for part in candles])
    volume = [part.volume / 10.0**part.volume_decimals for part in candles]
    return StudyPanel(candles, times, close, _placed(times, candles, volume))


# ---------------------------------------------------------------- where a column comes from


def history_of(part: Candles) -> dict[str, Floats | Ints]:
    """Return the arrays of *part* under the names of a strategy's history."""
    arrays: dict[str, Floats | Ints] = {
        name: getattr(part, name) / 10.0**part.price_decimals for name in _FIELDS
    }
    return arrays | {
        "volume": part.volume / 10.0**part.volume_decimals,
        "time": part.open_time_ms + part.interval_ms,
    }


def column_of(column: object, panel: StudyPanel) -> tuple[str, Floats, str]:
    """Return the name of *column*, its values [time, symbol], and a sentence on lookahead.

    Raises ``DataInvalid`` for a function whose values depend on later bars.
    """
    name = column if isinstance(column, str) else getattr(column, "__name__", "column")
    unproved = "Stored values cannot be probed for lookahead: they hold what their maker knew."
    if isinstance(column, Mapping):
        return name, _by_symbol(column, panel), unproved
    if isinstance(column, str):
        path, mark, inner = column.rpartition(":")
        if mark and names_a_run(path):
            return inner, _of_run(path, inner, panel), unproved
        if mark and Path(path).is_file():
            return inner, _of_file(Path(path), inner, panel), unproved
        if not mark:
            raise ConfigInvalid(
                f"The column is {column!r}; write module:function, FILE.db#RUN:NAME or FILE:NAME."
            )
        column = imported(column, key="the column")
    if not callable(column):
        raise ConfigInvalid(f"The column is {shown(column)}; give a function, or values by symbol.")
    function = partial(_called, column)
    for part in panel.candles[:CHECKED]:
        finding = function_lookahead(function, history_of(part))
        if finding.differences:
            first = finding.differences[0]
            raise DataInvalid(
                f"{name} looks ahead: {finding.cause}. On {part.symbol} {first.field} is "
                f"{first.first}, and {first.second} there; let it read earlier bars only."
            )
    symbols = count_of(min(CHECKED, len(panel.candles)), "symbol")
    values = [np.asarray(function(history_of(part)), np.float64) for part in panel.candles]
    return name, panel.placed(values), f"No lookahead was found on {symbols}."


def _called(function: Callable[[Any], Any], columns: Mapping[str, Any]) -> Floats:
    return np.asarray(function(SimpleNamespace(**columns)))


def _by_symbol(column: Mapping[Any, Any], panel: StudyPanel) -> Floats:
    values = []
    for part in panel.candles:
        series = np.asarray(column.get(part.symbol, ()), np.float64)
        if series.shape != (len(part),):
            raise DataInvalid(
                f"The column has {series.size:,} values of {part.symbol}, which has "
                f"{count_of(len(part), 'candle')}; give one per candle."
            )
        values.append(series)
    return panel.placed(values)


def _at_times(rows: Mapping[str, tuple[Ints, Floats]], name: str, panel: StudyPanel) -> Floats:
    """Return values [time, symbol] of *rows*, the times and values by symbol."""
    if not any(part.symbol in rows for part in panel.candles):
        raise DataInvalid(f"{name} has no value of any of these symbols; give others.")
    placed = np.full(panel.close.shape, np.nan)
    for at, part in enumerate(panel.candles):
        times, values = rows.get(part.symbol, (np.empty(0, np.int64), np.empty(0)))
        inside = np.isin(times, panel.times_ms)
        placed[np.searchsorted(panel.times_ms, times[inside]), at] = values[inside]
    return placed


def _of_run(place: str, name: str, panel: StudyPanel) -> Floats:
    """Return the note or the forecast *name* of the run at *place*, ``FILE.db#RUN``."""
    located = resolve(None, place)
    with Reader.open(located.path) as reader:
        columns = RunColumns(reader, located.run_id)
        rows, noted = {}, set[str]()
        is_forecast = columns.run.model_id and name in ("mean_return", "p_up", "p_down")
        decided = columns.decisions((name,)) if is_forecast else None
        for key, item in columns.instruments.items():
            if decided is not None:
                chosen = decided["instrument"] == key
                rows[item.symbol] = decided["open_time_ms"][chosen], decided[name][chosen]
                continue
            notes = columns.notes(key)
            noted |= notes.keys()
            if name in notes:
                rows[item.symbol] = notes[name].open_time_ms, notes[name].number
    if not rows:
        names = ", ".join(sorted(noted)) or "none"
        raise DataInvalid(f"Run {located.run_id} has no note {name}; it has {names}.")
    return _at_times(rows, name, panel)


def _of_file(path: Path, name: str, panel: StudyPanel) -> Floats:
    """Return the column *name* of a table with ``time`` (opens) and, for several, ``symbol``."""
    read = read_table(path)
    for wanted in ("time", name.lower()):
        if wanted not in read.columns:
            raise DataInvalid(
                f"{path} has no column {wanted}; it has {', '.join(read.written.values())}."
            )
    times = read.checked("time", lambda: epoch_ms(read.columns["time"])[0])
    texts = texts_of(read.columns[name.lower()])
    values = np.array([float(text) if text.strip() else math.nan for text in texts])
    if "symbol" not in read.columns:
        return _at_times({panel.candles[0].symbol: (times, values)}, name, panel)
    symbols = np.array(texts_of(read.columns["symbol"]))
    rows = {
        str(symbol): (times[symbols == symbol], values[symbols == symbol])
        for symbol in np.unique(symbols)
    }
    return _at_times(rows, name, panel)


# ---------------------------------------------------------------- ranks


def ranked(values: Floats) -> Floats:
    """Return the ranks of *values* [group, member] in each group, ties averaged; NaN stays."""
    from scipy.stats import rankdata  # takes half a second to import

    missing = np.isnan(values)  # as the largest, they move no other rank
    ranks: Floats = rankdata(np.where(missing, np.inf, values), axis=1)
    return np.where(missing, np.nan, ranks)


def standardized(values: Floats) -> Floats:
    """Return *values* [group, member] less their group's mean, by its standard deviation.

    NaN where a group does not vary.
    """
    count = np.isfinite(values).sum(axis=1, keepdims=True)
    total = np.nansum(values, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = values - total / count
        spread = np.sqrt(np.nansum(centred**2, axis=1, keepdims=True) / count)
        scaled: Floats = np.where(spread > 0, centred / spread, np.nan)
    return scaled


def quantile_of(values: Floats) -> Floats:
    """Return the quantile from 0 of *values* [group, member] within each group; NaN stays.

    A value on an edge is of the lower quantile, as pandas' ``qcut`` has it.
    """
    rows = np.sort(values, axis=1)
    last = np.isfinite(rows).sum(axis=1) - 1
    label = np.zeros(values.shape)
    at = np.arange(len(rows))
    for share in np.linspace(0.0, 1.0, QUANTILES + 1)[1:-1]:
        place = share * np.maximum(last, 0)
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, np.maximum(last, 0))
        edge = rows[at, low] + (rows[at, high] - rows[at, low]) * (place - low)
        label += values > edge[:, None]
    label[np.isnan(values)] = np.nan
    return label


# ---------------------------------------------------------------- one horizon


@dataclass(frozen=True)
class Look:
    """What the column says about the returns over one horizon; returns are fractions."""

    horizon: int  # bars
    ic: Estimate  # mean rank correlation
    p: float  # of one look
    corrected: float  # of all looks at these data (Holm)
    errors: float | None  # distance of the correlation from zero, in standard errors
    spread: Estimate  # of the best less the worst quantile
    net: Estimate  # after the costs of its turnover
    turnover: float | None  # share of a quantile that is new after the horizon
    means: tuple[float, ...]  # by quantile, less the mean of all
    days: int
    series: Floats  # [time] correlations

    @property
    def label(self) -> str:
        """The horizon as text."""
        return count_of(self.horizon, "bar")


class Groups(NamedTuple):
    """How values are compared: the symbols of a time, or the times of a symbol."""

    by_time: bool

    def of(self, values: Floats) -> Floats:
        """Return *values* [time, symbol] as [group, member]."""
        return values if self.by_time else values.T

    def series(self, values: Floats) -> Floats:
        """Return the mean of *values* [group, member] at each time; NaN where there is none."""
        axis = 1 if self.by_time else 0
        count = np.isfinite(values).sum(axis=axis)
        with np.errstate(invalid="ignore"):
            means: Floats = np.where(count > 0, np.nansum(values, axis=axis) / count, np.nan)
        return means


def forward(close: Floats, bars: int) -> Floats:
    """Return the simple return of each close [time, symbol] over the coming *bars*; else NaN."""
    ahead = np.full(close.shape, np.nan)
    if bars < len(close):
        ahead[:-bars] = close[bars:] / close[:-bars] - 1.0
    return ahead


def look(
    values: Floats, ahead: Floats, panel: StudyPanel, horizon: int, groups: Groups, cost: float
) -> Look:
    """Return the look at *values* against the returns *ahead*, both [time, symbol] and masked."""
    column, returns = groups.of(values), groups.of(ahead)
    series = groups.series(standardized(ranked(column)) * standardized(ranked(returns)))
    label = quantile_of(column)
    with np.errstate(invalid="ignore"):
        excess = returns - np.nansum(returns, axis=1, keepdims=True) / np.isfinite(returns).sum(
            axis=1, keepdims=True
        )
    members = [np.where(np.isnan(label), np.nan, label == at) for at in range(QUANTILES)]
    weights = [each / _mean(each)[:, None] for each in members]  # of mean 1 in each group
    spread = groups.series(returns * (weights[-1] - weights[0]))
    ends = members[-1], members[0]
    turnover = _turnover([groups.of(each) for each in ends], horizon)
    days, mean = _days(panel, horizon), partial(_estimated, panel, horizon)
    ic, apart = mean(series), mean(spread)
    net = apart if turnover is None else (apart[0] - 4 * cost * turnover, apart[1])
    kept = np.isfinite(series)
    blocks = block_mean(series[kept], days[kept])
    count = len(np.unique(days[kept]))
    p = chance(blocks.value, blocks.standard_error, count)
    errors = blocks.value / blocks.standard_error if blocks.standard_error else None
    means = tuple(float(np.nanmean(groups.series(excess * each))) for each in weights)
    return Look(
        horizon, ic, p, p, errors, apart, net, turnover, means,
        len(np.unique(panel.times_ms[kept] // DAY_MS)), series,
    )  # fmt: skip


def _mean(values: Floats) -> Floats:
    count = np.isfinite(values).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = np.nansum(values, axis=1) / count
    return np.where(means > 0, means, np.nan)


def _turnover(ends: Sequence[Floats], horizon: int) -> float | None:
    """Return the share of each end's members [time, symbol] that were not there before."""
    shares = []
    for each in ends:
        now, before = each[horizon:] == 1.0, each[:-horizon] == 1.0
        comparable = np.isfinite(each[:-horizon])
        if total := int((now & comparable).sum()):
            shares.append(float((now & comparable & ~before).sum()) / total)
    return float(np.mean(shares)) if shares else None


def _days(panel: StudyPanel, horizon: int) -> Ints:
    """Return the day of each time, in units of which a block holds at least two horizons."""
    days = panel.times_ms // DAY_MS
    length = max(BLOCK_DAYS, math.ceil(2 * horizon * panel.interval_ms / DAY_MS))
    scaled: Ints = days * BLOCK_DAYS // length
    return scaled


def _estimated(panel: StudyPanel, horizon: int, series: Floats) -> Estimate:
    kept = np.isfinite(series)
    value, error = block_mean(series[kept], _days(panel, horizon)[kept]).daily
    return value, error


# ---------------------------------------------------------------- the study


@dataclass(frozen=True)
class Study:
    """The looks at one column, and how stable they are."""

    name: str
    symbols: tuple[str, ...]
    from_ms: int
    until_ms: int
    by_time: bool  # symbols are compared at a time; else the times of each symbol
    missing: float  # share of the bars without a value
    probed: str  # the sentence on lookahead
    looks: tuple[Look, ...]
    others: int  # looks at these data, with these
    registry: Path
    parts: tuple[tuple[str, tuple[Estimate, ...]], ...]  # of the time, by horizon
    known: tuple[tuple[str, float], ...]  # rank correlations with known columns

    @property
    def best(self) -> Look:
        """The look that chance explains least."""
        return min(self.looks, key=lambda each: (each.corrected, each.p, -abs(each.ic[0])))

    @property
    def sentence(self) -> str:
        """What was found."""
        best = self.best
        value = f"rank correlation {best.ic[0]:+.4f} {plus_minus(best.ic[1], '.4f')}"
        after = f"p {best.corrected:.2g} after {count_of(self.others, 'look')} at these data"
        if abs(best.ic[0]) > TOO_GOOD:
            return f"{self.name} holds what it should forecast: {value} over {best.label}."
        if best.ic[1] is None:
            return f"Too few days to say anything of {self.name}: {best.days:,}."
        if best.corrected < LEVEL:
            return f"{self.name} says something about {best.label}: {value}, {after}."
        return f"Nothing is shown of {self.name}: at best {value} over {best.label}, {after}."

    def document(self) -> dict[str, Any]:
        """Return the study as plain values."""
        names = ("name", "sentence", "symbols", "from_ms", "until_ms", "by_time", "missing",
                 "probed", "others")  # fmt: skip
        return {name: getattr(self, name) for name in names} | documents(tables(self))


def studied(
    column: object,
    data: object,
    *,
    horizons: Sequence[int] = HORIZONS,
    cost_bp: float = COST_BP,
    columns: Sequence[str] = (),
) -> Study:
    """Return what *column* says about coming returns on *data*; every call is counted.

    The arguments and errors are those of ``tracepaper.study``.
    """
    if not horizons or any(type(bars) is not int or bars < 1 for bars in horizons):
        raise ConfigInvalid(f"The horizons are {shown(horizons)}; give whole numbers of bars.")
    panel = panel_of([read_candles(each, columns=columns) for each in inputs_of(data, "data")])
    name, values, probed = column_of(column, panel)
    values = np.where(np.isfinite(values), values, np.nan)
    has_bar = np.isfinite(panel.close)
    ahead = {bars: forward(panel.close, bars) for bars in sorted(set(horizons))}
    usable = np.isfinite(values) & np.logical_and.reduce([np.isfinite(a) for a in ahead.values()])
    if not usable.any():
        raise DataInvalid(
            f"{name} has no value with a return over {max(horizons)} bars after it; give more "
            "candles, or other values."
        )
    values = np.where(usable, values, np.nan)
    groups = Groups(by_time=float(usable.sum(axis=1).max()) >= QUANTILES)
    looks = [
        look(values, np.where(usable, each, np.nan), panel, bars, groups, cost_bp / 1e4)
        for bars, each in ahead.items()
    ]
    digest = hashlib.sha256(values.tobytes()).hexdigest()
    with LookRegistry() as registry:
        counted = registry.count(
            panel.data_sha256, digest, {each.horizon: each.p for each in looks},
            name=name, at_ms=SystemClock().wall_ms(),
        )  # fmt: skip
        path = registry.path
    corrected = dict(zip(counted, holm(list(counted.values())), strict=True))
    looks = [replace(each, corrected=corrected[digest, each.horizon]) for each in looks]
    return Study(
        name, tuple(part.symbol for part in panel.candles), int(panel.times_ms[0]),
        int(panel.times_ms[-1]) + panel.interval_ms, groups.by_time,
        1.0 - float(usable[has_bar].mean()),
        probed, tuple(looks), len(counted), path, tuple(_parts(looks, panel)),
        tuple(_known(values, panel, groups)),
    )  # fmt: skip


def _parts(looks: Sequence[Look], panel: StudyPanel) -> Iterator[tuple[str, tuple[Estimate, ...]]]:
    """Yield the correlations by month and by tercile of the days' volatility.

    Purged: a return that reaches into the next month is of neither. The embargo leaves out as
    many bars of the longest horizon at the begin of each month.
    """
    times = panel.times_ms.astype("datetime64[ms]")
    months = times.astype("datetime64[M]")
    longest_ms = max(each.horizon for each in looks) * panel.interval_ms
    begins = months.astype("datetime64[ms]").astype(np.int64)
    is_late = panel.times_ms - begins >= longest_ms
    for month in np.unique(months):
        inside = is_late & (months == month)
        ends = [
            inside & ((times + np.timedelta64(each.horizon * panel.interval_ms, "ms"))
                      .astype("datetime64[M]") == month)
            for each in looks
        ]  # fmt: skip
        yield (
            str(month),
            tuple(
                _estimated(panel, each.horizon, np.where(kept, each.series, np.nan))
                for each, kept in zip(looks, ends, strict=True)
            ),
        )
    moves = forward(panel.close, 1)
    days, at = np.unique(panel.times_ms // DAY_MS, return_inverse=True)
    squares = np.bincount(at, np.nan_to_num(moves**2).mean(axis=1), days.size)
    if days.size >= 3:
        tercile = np.searchsorted(np.quantile(squares, (1 / 3, 2 / 3)), squares, side="left")[at]
        for place, name in enumerate(("calm days", "days between", "wild days")):
            yield (
                name,
                tuple(
                    _estimated(panel, each.horizon, np.where(tercile == place, each.series, np.nan))
                    for each in looks
                ),
            )


def _known(values: Floats, panel: StudyPanel, groups: Groups) -> Iterator[tuple[str, float]]:
    """Yield the mean rank correlation with each known column."""
    close = panel.close
    moves = np.full(close.shape, np.nan)
    moves[1:] = close[1:] / close[:-1] - 1.0
    month = 24
    past = np.full(close.shape, np.nan)
    past[month:] = close[month:] / close[:-month] - 1.0
    columns = {
        "return of the bar": moves,
        f"return of {month} bars": past,
        f"volatility of {month} bars": _rolling(np.abs(moves), month),
        f"volume of {month} bars": _rolling(panel.volume, month),
    }
    for name, other in columns.items():
        both = np.isfinite(values) & np.isfinite(other)
        pair = [groups.of(np.where(both, each, np.nan)) for each in (values, other)]
        series = groups.series(standardized(ranked(pair[0])) * standardized(ranked(pair[1])))
        if np.isfinite(series).any():
            yield name, float(np.nanmean(series))


def _rolling(values: Floats, bars: int) -> Floats:
    sums = np.cumsum(np.nan_to_num(values), axis=0)
    means = np.full(values.shape, np.nan)
    means[bars:] = (sums[bars:] - sums[:-bars]) / bars
    return means


# ---------------------------------------------------------------- the document

_LOOKS: Final = (
    of_field("horizon", "bars", "count"),
    of_field("ic", "IC ± error", "signed"),
    of_field("p", "p", "measure"),
    of_field("corrected", "p, Holm", "measure"),
    of_field("spread", "spread, bp", "gain bp"),
    of_field("net", "after costs", "gain bp"),
    of_field("turnover", "turnover", "share"),
)


def tables(result: Study) -> tuple[Table, ...]:
    """Return the tables: horizons, quantiles, stability, known columns."""
    names = [each.label for each in result.looks]
    quantiles: list[tuple[Value, ...]] = [
        (str(at + 1), *(each.means[at] for each in result.looks)) for at in range(QUANTILES)
    ]
    parts: list[tuple[Value, ...]] = [(name, *values) for name, values in result.parts]
    return (
        table("horizons", "By horizon", _LOOKS, result.looks),
        table_of("quantiles", "Return by quantile, less the mean of all, bp",
                 {"quantile": "text", **dict.fromkeys(names, "gain bp")}, quantiles),
        table_of("parts", "Correlation by month and by volatility",
                 {"part": "text", **dict.fromkeys(names, "signed")}, parts),
        table_of("known", "Rank correlation with known columns",
                 {"column": "text", "correlation": "signed"}, result.known),
    )  # fmt: skip


def charts(result: Study) -> tuple[Chart, Chart]:
    """Draw the decay of the correlation with the horizon, and the returns by quantile."""
    names, places = [each.label for each in result.looks], list(range(len(result.looks)))
    marks = MarkLayer(
        "correlation, 95 %",
        rounded([each.ic[0] for each in result.looks]),
        places,
        roles=["gain" if each.corrected < LEVEL else "muted" for each in result.looks],
        errors=rounded([2 * (each.ic[1] or math.nan) for each in result.looks]),
    )
    decay = ChartPanel(
        [marks, RuleLayer(0.0, "x")], ChartAxis("rank correlation", has_zero=True),
        category_axis(names, is_reversed=True), 60 + 34 * len(names),
    )  # fmt: skip
    best = result.best
    bars = BarLayer(f"over {best.label}", list(range(QUANTILES)),
                    rounded([1e4 * mean for mean in best.means]))  # fmt: skip
    panel = ChartPanel(
        [bars, RuleLayer(0.0)], category_axis([str(at + 1) for at in range(QUANTILES)], "quantile"),
        ChartAxis("bp", unit=" bp", digits=1, has_zero=True),
    )  # fmt: skip
    return (
        Chart("Decay", "Coloured where chance does not explain it.", [decay]),
        Chart("Quantiles", f"Mean return over {best.label} by quantile of the column, less that of "
              "all.", [panel]),
    )  # fmt: skip


def study_document(result: Study) -> TitledParts:
    """Return the study as a document, which begins with what was found."""
    compared = "symbols compared at each time" if result.by_time else "each symbol over its time"
    luckiest = best_by_chance(result.others, 1.0)
    best = result.best.errors
    luck = (
        f"{count_of(result.others, 'look')} at these data (counted in {result.registry.name}); "
        f"the best of so many without skill is expected at {luckiest:.1f} standard errors"
        f"{'' if best is None else f', this one is at {best:+.1f}'}."
    )
    parts: tuple[Part, ...] = (
        Paragraph(result.sentence, "lead"),
        Paragraph(
            f"{count_of(len(result.symbols), 'symbol')}, {compared}, {iso(result.from_ms)} to "
            f"{iso(result.until_ms)}; {percent(result.missing, 1)} of the bars have no value or no "
            "return after them."
        ),
        Paragraph(result.probed),
        Paragraph(luck),
        *charts(result),
        *(each for each in tables(result) if each.rows),
    )
    return TitledParts(f"study of {result.name}", parts)
