"""Importance of bars and of features over a run, as tables with one row per span of time.

That of bars is read from the rollouts that decisions stored. For that of features the model is
asked again at some decisions of each span. The rule is docs/models.md, L69.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tracepaper.replay.document.values import Cells, Estimate, Table, Value, of_row, table
from tracepaper.replay.explain.attribution import by_feature, past_of_row_model
from tracepaper.replay.report.attention import stacked
from tracepaper.replay.report.past import open_any, open_past
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.forecasters.attribution import Probe
from tracepaper.strategies.time_buckets import cells_by_age
from tracepaper.strategies.units import DAY_MS

Floats = npt.NDArray[np.float64]
SAMPLES_MAX: Final = 100
SHOWN: Final = 4
"""Features that a terminal shows; JSON and frames have all."""
_UNITS: Final = {"m": 60_000, "h": 3_600_000, "d": DAY_MS}


@dataclass(frozen=True)
class RunImportance:
    """Importance over a run: of bars by age, and of features if samples were requested."""

    series: tuple[Table, ...]

    def document(self) -> dict[str, Any]:
        """Return the rows of each table by its key, with values not rounded."""
        return {f"importance_{each.key}": each.documents() for each in self.series}

    def of(self, key: str) -> Table:
        """Return the table ``bars`` or ``features``; raise ``DataInvalid`` if there is none."""
        for each in self.series:
            if each.key == key:
                return each
        raise DataInvalid(f"The run has no importance of {key}; ask for features with samples.")


def read_importance(
    database: Path,
    run_id: str,
    every: str,
    *,
    samples: int = 0,
    progress: Callable[[str], object] = lambda _doing: None,
) -> RunImportance:
    """Return the importance of bars per span, and that of features at *samples* decisions of each.

    *every* is the length of a span: a time such as ``1d`` or ``4h``, or a number of bars. Raises
    ``ConfigInvalid`` for another text, and ``DataInvalid`` if the run has no importance to show.
    """
    if not 0 <= samples <= SAMPLES_MAX:
        raise ConfigInvalid(f"samples is {samples}; give 0 to {SAMPLES_MAX} decisions per span.")
    with Reader.open(database) as reader:
        views = RunViews(reader.connection, run_id)
        with views.snapshot():
            run = views.run()
            interval_ms = int(run["interval_ms"])
            span_ms = _span_ms(every, interval_ms)
            columns = RunColumns(reader, run_id).decisions(("mean_return",))
            spans = columns["open_time_ms"] // span_ms * span_ms
            bars = _of_bars(reader, run_id, columns, spans, interval_ms, run["bucket_bars"])
    tables = [] if bars is None else [bars]
    if samples:
        tables.append(_of_features(database, run_id, columns, spans, samples, progress))
    if not tables:
        raise DataInvalid(
            f"No decision of run {run_id} stored where its model looked; give --samples to ask a "
            "model what its features added, or choose a run of an attention model."
        )
    return RunImportance(tuple(tables))


def _span_ms(every: str, interval_ms: int) -> int:
    parsed = re.fullmatch(r"([1-9][0-9]{0,5})([mhd]?)", every)
    if parsed is None:
        raise ConfigInvalid(
            f"'{every:.40}' is not a span; give a time such as 1d or 4h, or bars such as 500."
        )
    span_ms = int(parsed[1]) * _UNITS.get(parsed[2], interval_ms)
    if span_ms % interval_ms:
        raise ConfigInvalid(
            f"A span of {every} is not a multiple of the run's bar interval; give one that is."
        )
    return span_ms


def _of_bars(
    reader: Reader,
    run_id: str,
    columns: dict[str, Any],
    spans: npt.NDArray[np.int64],
    interval_ms: int,
    bucket_bars: int,
) -> Table | None:
    """Return the mean rollout by groups of age; None if none was stored."""
    names, symbol = np.unique(columns["instrument"], return_inverse=True)
    starts, span = np.unique(spans, return_inverse=True)
    owners, size = symbol * starts.size + span, names.size * starts.size
    counts = np.zeros(size)
    powers: dict[str, Floats] = {}  # per age group: [count, sum, sum of squares][owner]
    for batch in reader.explanations(run_id):
        # Models of a run may differ in lookback and heads.
        for _, rows_of_model in groupby(batch, key=lambda row: (len(row[1]), len(row[3]))):
            sequences, rollout, _ = stacked(list(rows_of_model))
            decided = np.isin(sequences, columns["sequence"])
            at = np.searchsorted(columns["sequence"], sequences[decided])
            row_owners = owners[at]
            counts += np.bincount(row_owners, minlength=size)
            cells = cells_by_age(
                rollout[decided], columns["open_time_ms"][at] // interval_ms, bucket_bars
            )
            for name, shares in by_age(cells, bucket_bars):
                of_age = powers.setdefault(name, np.zeros((3, size)))
                for power in range(3):
                    of_age[power] += np.bincount(row_owners, shares**power, minlength=size)
    rows = [
        _row(
            (str(names[owner // starts.size]), int(starts[owner % starts.size])),
            int(counts[owner]),
            {
                name: _spread(of_age[1:, owner], int(counts[owner]))
                for name, of_age in powers.items()
                if of_age[0, owner]
            },
        )
        for owner in np.flatnonzero(counts).tolist()
    ]
    if not rows:
        return None
    figures = [of_row(name, _aged(name), "share") for name in sorted(powers, key=_age)]
    return table(
        "bars",
        "Importance of bars by age, over time",
        (*_FIXED, *figures),
        rows,
        notes=(_BARS_NOTE,),
    )


_FIXED: Final = (
    of_row("instrument", "symbol", "text"),
    of_row("from_ms", "from", "minute"),
    of_row("decisions", "decisions", "count"),
)
OLDER: Final = "older"
_BARS_NOTE: Final = (
    "The share of the rollout on bars of each age, in bars before the decided one, which is among "
    "the youngest; ± is the standard deviation over the span's decisions."
)
_FEATURES_NOTE: Final = (
    "Each feature's share of the sizes of {}, at decisions spread evenly over the span; ± is "
    "their standard deviation. JSON and the frame hold all features."
)


def by_age(cells: Floats, bars: int) -> Iterator[tuple[str, Floats]]:
    """Yield (name, shares [decision]) of groups of cells of *bars*, each 4 times as far back."""
    last = cells.shape[1] - 1
    start, end = 0, 1
    while start < last:
        reach = min(end, last)
        yield f"age_{start * bars}", cells[:, start:reach].sum(axis=1)
        start, end = reach, 4 * end
    yield OLDER, cells[:, last]


def _age(name: str) -> float:
    return float("inf") if name == OLDER else float(name.removeprefix("age_"))


def _aged(name: str) -> str:
    return OLDER if name == OLDER else f"from {int(_age(name)):,}"


def _spread(power: Floats, count: int) -> Estimate:
    """Return the mean and standard deviation of *count* values, from the sums of their powers."""
    mean = float(power[0]) / count
    return mean, max(float(power[1]) / count - mean**2, 0.0) ** 0.5 if count > 1 else None


def _row(owner: tuple[str, int], count: int, values: dict[str, Estimate]) -> Cells:
    row: dict[str, Value] = {"instrument": owner[0], "from_ms": owner[1], "decisions": count}
    return row | values


def _of_features(
    database: Path,
    run_id: str,
    columns: dict[str, Any],
    spans: npt.NDArray[np.int64],
    samples: int,
    progress: Callable[[str], object],
) -> Table:
    """Return each feature's share of all contributions, at *samples* decisions of each span."""
    answered = np.isfinite(columns["mean_return"])
    if not answered.any():
        raise DataInvalid(f"No decision of run {run_id} has a forecast to take apart.")
    rows: list[Cells] = []
    total: dict[str, float] = {}
    divided = ""
    for instrument in dict.fromkeys(columns["instrument"][answered].tolist()):
        of_symbol = answered & (columns["instrument"] == instrument)
        for span in np.unique(spans[of_symbol]).tolist():
            sequences = columns["sequence"][of_symbol & (spans == span)]
            # Evenly over the span: the middles of equal parts.
            count = min(samples, len(sequences))
            chosen = sequences[((np.arange(count) + 0.5) * len(sequences) / count).astype(int)]
            shares: dict[str, list[float]] = {}
            for sequence in chosen.tolist():
                progress(f"asking the model again at decision {sequence:,}")
                divided, added = _contributions(database, run_id, sequence)
                total_size = sum(map(abs, added.values())) or 1.0
                for name, value in added.items():
                    shares.setdefault(name, []).append(abs(value) / total_size)
            values = {
                name: _spread(np.array([sum(every), np.square(every).sum()]), count)
                for name, every in shares.items()
            }
            for name, (mean, _) in values.items():
                total[name] = total.get(name, 0.0) + mean
            rows.append(_row((instrument, span), count, values))
    names = sorted(total, key=lambda name: -total[name])
    figures = [of_row(name, name, "share", wide=at >= SHOWN) for at, name in enumerate(names)]
    return table(
        "features",
        "Importance of features, over time",
        (*_FIXED, *figures),
        rows,
        notes=(_FEATURES_NOTE.format(divided),),
    )


def _contributions(database: Path, run_id: str, sequence: int) -> tuple[str, dict[str, float]]:
    """Return the name of the quantity that is attributed, and each feature's contribution to it."""
    past = open_any(database, run_id, sequence)
    if (rows := past_of_row_model(past)) is not None:
        features = by_feature(rows).features
        words = "what they added to the log volatility of the tree or linear model"
        return words, {feature.feature: float(np.log(feature.volatility)) for feature in features}
    opened = open_past(database, run_id, sequence)
    horizon = opened.forecast.horizons[opened.horizon_index]
    probe = Probe(opened.forecaster, opened.bars, horizon=horizon)
    added = probe.contributions().mean_return.sum(axis=0)
    words = "what they added to the network's mean return (integrated gradients)"
    return words, dict(zip(probe.names, added.tolist(), strict=True))
