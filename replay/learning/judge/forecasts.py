"""``Forecasts``: every forecaster's fields and the outcomes, as columns over rows.

A row is an asset, the open of a bar and a horizon. Returns are in units of σ √h, variances in that
unit squared. An asset may be a pair of symbols or a portfolio.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from tracepaper.replay.learning.baselines import BASELINES, Answer, BaselineQuestion, past_variances
from tracepaper.replay.learning.samples import Fields, Samples, drawdown, path, runup
from tracepaper.replay.learning.splits import SYMBOL_BITS, SYMBOL_MASK
from tracepaper.replay.report.honesty import MAJORITY
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.units import DAY_MS

Ints = NDArray[np.int64]
Columns = Mapping[str, NDArray[Any]]
"""Each column's name → [row, ..]."""
MODEL: Final = "network"
"""The judged model's name among the forecasters, whatever its kind."""
OF_MODEL: Final = "model"
"""Its name in tables, and in cards of all kinds but networks."""
SIZED: Final = ("ridge", "persistence")
"""Baselines that forecast the size of the mean, not only its sign and order."""
_STRONGER: Final[Mapping[str, tuple[str, ...]]] = {
    "score": ("mean",), "sign": ("score", "mean")
}  # fmt: skip
"""Fields that imply a field: a mean is a score, and a score has a sign."""
_UNIT_POWERS: Final = {
    "mean": 1, "score": 1, "scale": 1, "quantiles": 1, "relative": 1, "tails": 1, "variance": 2
}  # fmt: skip
"""Each field's power of the unit of the return."""
_ROW: Final = ("asset", "open_ms", "until_ms", "horizon")
"""The columns that identify a row."""
_SEED: Final = 20_170_817  # of the random baseline
NORMAL: Final = 1e6
"""Degrees of freedom at which a Student-t is a normal distribution."""


def words(name: str) -> str:
    """Return the title of a forecaster, a measure or a figure in tables."""
    return (OF_MODEL if name == MODEL else name).replace("_", " ")


@dataclass(frozen=True)
class Forecasts:
    """Columns over [row]; a forecaster's field is NaN where it has no answer."""

    asset: Ints  # a symbol's checksum
    open_ms: Ints  # of the bar
    until_ms: Ints  # the open of the bar that ends the label
    horizon: Ints  # bars
    interval_ms: int
    labels: Columns
    values: Mapping[str, Columns]
    """Each forecaster's fields, the judged model's first."""
    levels: tuple[float, ...] = ()
    """The levels of the model's head of quantiles."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Names of assets, for tables."""
    compared: tuple[str, ...] = ()
    """The names in ``values`` of compared models; the others are baselines."""
    held: Forecasts | None = None
    """Daily results of the model's weights and of every rule's; None if there are no weights."""
    cache: dict[int, Forecasts] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.horizon)

    @cached_property
    def day(self) -> Ints:
        """The calendar day of each row."""
        return self.open_ms // DAY_MS

    @cached_property
    def keys(self) -> Ints:
        """A unique number of each asset's bar, as ``Segment.keys``."""
        return (self.open_ms // self.interval_ms << SYMBOL_BITS) + self.asset

    @cached_property
    def horizons(self) -> tuple[int, ...]:
        """The horizons of the rows, rising."""
        return tuple(np.unique(self.horizon).tolist())

    @property
    def unit(self) -> str:
        """The unit of horizons: bars or order books."""
        return "books" if "move" in self.labels else "bars"

    def where(self, chosen: NDArray[np.bool_] | Ints | slice) -> Forecasts:
        """Return the *chosen* rows."""
        columns: dict[str, Any] = {key: getattr(self, key)[chosen] for key in _ROW}
        return replace(
            self,
            **columns,
            labels={name: column[chosen] for name, column in self.labels.items()},
            values={
                name: {key: column[chosen] for key, column in fields.items()}
                for name, fields in self.values.items()
            },
            held=None,
        )

    def at(self, horizon: int) -> Forecasts:
        """Return the rows of one horizon."""
        if horizon not in self.cache:
            rows = np.flatnonzero(self.horizon == horizon)
            # A slice makes views instead of copies.
            is_slice = len(rows) and rows[-1] - rows[0] + 1 == len(rows)
            chosen = slice(int(rows[0]), int(rows[-1]) + 1) if is_slice else rows
            self.cache[horizon] = self.where(chosen)
        return self.cache[horizon]

    def by_horizon(self) -> list[tuple[int, Forecasts]]:
        """Return each horizon with its rows."""
        return [(horizon, self.at(horizon)) for horizon in self.horizons]

    def has(self, field: str, name: str = MODEL) -> bool:
        """Return whether a forecaster has a field, or one that implies it."""
        fields = self.values.get(name, {})
        return any(each in fields for each in (field, *_STRONGER.get(field, ())))

    def value(self, field: str, name: str = MODEL) -> NDArray[Any]:
        """Return a forecaster's field [row, ..], or the one that implies it."""
        fields = self.values[name]
        return next(fields[each] for each in (field, *_STRONGER.get(field, ())) if each in fields)

    def with_fields(self, name: str, **fields: NDArray[Any]) -> Forecasts:
        """Return a copy with more *fields* of the forecaster *name*."""
        values = {**self.values, name: {**self.values.get(name, {}), **fields}}
        return replace(self, values=values)

    def by_row(self, values: Mapping[str, float]) -> Array:
        """Return by row the value of its horizon in *values*, which a card has by text; else 1."""
        by_horizon = np.array([values.get(str(horizon), 1.0) for horizon in self.horizons])
        return by_horizon[np.searchsorted(self.horizons, self.horizon)]

    def cooled(self, temperature: Mapping[str, float]) -> Forecasts:
        """Return a copy with probabilities from the model's logits over each *temperature*."""
        if not self.has("logits"):
            return self
        cooled = self.value("logits") / self.by_row(temperature)[:, None].astype(np.float32)
        return self.with_fields(MODEL, probability=softmax(cooled.astype(np.float64), axis=-1))

    def mix(self, shares: Mapping[str, Array]) -> Array:
        """Return the geometric mean of the forecasters' variances, weighted by *shares* [row]."""
        logs = [share * np.log(self.value("variance", name)) for name, share in shares.items()]
        return np.exp(sum(logs[1:], logs[0]))

    def join(self, other: Forecasts, name: str) -> Forecasts:
        """Return a copy with the judged model of *other* as the compared model *name*.

        Its fields are converted to the units of these rows, and NaN at rows that *other* lacks.
        Raises ``InvariantBroken`` for a duplicate row.
        """
        place = self.places(other)
        both = place >= 0
        ratio = np.ones(len(self))
        if "unit" in self.labels:
            ratio[both] = other.labels["unit"][place[both]] / self.labels["unit"][both]
        fields = {}
        for key, values in other.values[MODEL].items():
            column = np.full((len(self), *values.shape[1:]), np.nan)
            column[both] = values[place[both]]
            if power := _UNIT_POWERS.get(key, 0):
                column *= (ratio**power).reshape(-1, *(1,) * (column.ndim - 1))
            fields[key] = column
        joined, held = self.with_fields(name, **fields), self.held
        if held is not None and other.held is not None:
            held = held.join(other.held, name)
        return replace(joined, compared=(*self.compared, name), held=held)

    def places(self, other: Forecasts) -> Ints:
        """Return for each row its index in *other*, -1 where *other* lacks it."""
        place = np.full(len(self), -1, dtype=np.int64)
        for horizon in self.horizons:
            rows, others = (np.flatnonzero(table.horizon == horizon) for table in (self, other))
            keys = self.keys[rows], other.keys[others]
            if any(len(np.unique(each)) < len(each) for each in keys):
                raise InvariantBroken("A row of the forecasts is a duplicate; join distinct rows.")
            _, first, second = np.intersect1d(*keys, return_indices=True)
            place[rows[first]] = others[second]
        return place


def named_asset(name: str) -> int:
    """Return the asset number of a symbol, a pair or a portfolio."""
    return crc32(name.encode())


def concatenated(parts: Sequence[Forecasts]) -> Forecasts:
    """Return the rows of *parts*, which have the same columns, in order."""
    first = parts[0]

    def joined(tables: Sequence[Columns]) -> dict[str, NDArray[Any]]:
        return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}

    columns: dict[str, Any] = {
        key: np.concatenate([getattr(part, key) for part in parts]) for key in _ROW
    }
    return replace(
        first,
        **columns,
        labels=joined([part.labels for part in parts]),
        values={name: joined([part.values[name] for part in parts]) for name in first.values},
        names={asset: name for part in parts for asset, name in part.names.items()},
        held=concatenated(held) if (held := [part.held for part in parts if part.held]) else None,
    )


class SegmentFields(NamedTuple):
    """A model's fields at some rows of one segment."""

    samples: Samples
    rows: Ints
    fields: Fields

    @classmethod
    def of_run(
        cls,
        samples: Samples,
        rows: Ints,
        forecasts: Sequence[Forecast],
        measures: Collection[str],
    ) -> SegmentFields:
        """Return the *measures* of a run's *forecasts* at *rows*, in units of σ √h."""
        at = [forecasts[0].horizons.index(horizon) for horizon in samples.horizons]
        root = samples.segment.sigma[rows][:, None] * np.sqrt(samples.horizons)

        def column(name: str) -> Array:
            missing = (np.nan,) * len(forecasts[0].horizons)
            values = [getattr(forecast, name) or missing for forecast in forecasts]
            return np.array(values, dtype=np.float64)[:, at]

        fields: dict[str, Any] = {}
        if "mean_return" in measures:
            fields["mean"] = column("mean_return") / root
        if "stdev_return" in measures:
            fields["scale"] = column("stdev_return") / root
            fields["dof"] = np.full(root.shape, NORMAL)
        if "volatility" in measures:
            volatility = column("volatility")
            fields["variance"] = (np.where(volatility > 0, volatility, np.nan) / root) ** 2
        if "probabilities" in measures:
            shares = [column(name) for name in ("p_down", "p_flat", "p_up")]
            fields["probability"] = np.stack(shares, axis=-1)
        return cls(samples, rows, fields)

    def finite(self) -> SegmentFields:
        """Return the rows at which every field is finite."""
        fields = self.fields.items()
        finite = [np.isfinite(values.reshape(len(self.rows), -1)) for _, values in fields]
        chosen = np.logical_and.reduce([each.all(axis=1) for each in finite])
        kept = {name: values[chosen] for name, values in fields}
        return SegmentFields(self.samples, self.rows[chosen], kept)


def forecasts_of(
    answers: Sequence[SegmentFields],
    baselines: Mapping[str, Answer],
    horizons: Sequence[int],
    levels: Sequence[float] = (),
) -> Forecasts:
    """Return the labelled rows of *answers* with their labels, the model and every baseline.

    *levels* are those of a head of quantiles.
    """
    generator = np.random.default_rng(_SEED)
    parts = []
    for column, horizon in enumerate(horizons):
        rows = concatenated([segment_rows(each, baselines, column, horizon) for each in answers])
        value = rows.labels["returns"]
        rises = np.count_nonzero(value > 0) >= np.count_nonzero(value < 0)
        rows = rows.with_fields("random", score=generator.normal(size=len(rows)))
        parts.append(rows.with_fields(MAJORITY, sign=np.full(len(rows), 1.0 if rises else -1.0)))
    return replace(concatenated(parts), levels=tuple(levels))


def segment_rows(
    answers: SegmentFields, baselines: Mapping[str, Answer], column: int, horizon: int
) -> Forecasts:
    """Return the rows of *answers* with a label at *horizon*, the horizon number *column*."""
    samples, rows, fields = answers
    segment, used = samples.segment, samples.weights[rows, column] > 0
    past = past_variances(segment)
    values: dict[str, dict[str, NDArray[Any]]] = {
        MODEL: {name: _as_column(field[used, column], name) for name, field in fields.items()}
    }
    for name, answer in baselines.items():
        is_score = BASELINES[name].measure == "mean" and name not in SIZED
        question = BaselineQuestion(segment, rows, past[:, rows], horizon, column)
        values[name] = {"score" if is_score else BASELINES[name].measure: answer(question)[used]}
    chosen = rows[used]
    labels: dict[str, NDArray[Any]] = {
        "returns": samples.labels["returns"][0, chosen, column].astype(np.float64),
        "direction": samples.labels["direction"][0, chosen, column].astype(np.int64),
        "variance": samples.labels["variance"][0, chosen, column].astype(np.float64),
        "unit": segment.sigma[chosen] * np.sqrt(horizon),
    }
    if set(fields) & {"tails", *_HEAD_LABELS}:
        labels["ewma"] = np.sqrt(past[-1][chosen])
        for name, label in _HEAD_LABELS.items():
            if name in fields:
                labels[name] = label(segment.close, segment.sigma, horizon)[chosen].astype(
                    np.float64
                )
    opened = segment.open_time_ms
    return Forecasts(
        segment.keys[chosen] & SYMBOL_MASK,
        opened[chosen],
        opened[chosen + horizon],
        np.full(len(chosen), horizon),
        segment.interval_ms,
        labels,
        values,
    )


_HEAD_LABELS: Final = {"drawdown": drawdown, "runup": runup, "path": path}
_KEPT_FLOAT32: Final = ("logits", "tails", "drawdown", "runup", "regimes", "path")


def _as_column(values: NDArray[np.float32], name: str) -> NDArray[Any]:
    """Return *values* as float64 for figures, except wide heads, which stay float32."""
    return values if name in _KEPT_FLOAT32 else values.astype(np.float64)
