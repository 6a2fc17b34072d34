"""``Forecasts``: what every forecaster says beside what was realised, as columns over rows.

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
"""The judged model among the forecasters, whatever its kind."""
OF_MODEL: Final = "model"
"""What tables, and cards of all but networks, call it."""
SIZED: Final = ("ridge", "persistence")
"""Baselines of the mean whose size means something, not its sign and order alone."""
_WEAKER: Final[Mapping[str, tuple[str, ...]]] = {
    "size": ("mean",), "score": ("mean",), "sign": ("score", "mean")
}  # fmt: skip
"""What a field follows from: a sign from a score, which is a mean of any size; a size alone is of a
forecaster whose sign and order another one has already."""
_UNITS: Final = {
    "mean": 1, "score": 1, "scale": 1, "quantiles": 1, "relative": 1, "tails": 1, "variance": 2
}  # fmt: skip
"""The power of the unit of the return that each field is in."""
_ROW: Final = ("asset", "open_ms", "until_ms", "horizon")
"""The columns that say which row it is."""
_SEED: Final = 20_170_817  # of the random baseline
NORMAL: Final = 1e6
"""Degrees of freedom at which a Student-t is a normal distribution."""


def words(name: str) -> str:
    """Return the title of a forecaster, a measure or a figure in tables."""
    return (OF_MODEL if name == MODEL else name).replace("_", " ")


@dataclass(frozen=True)
class Forecasts:
    """Columns over [row]; a field of a forecaster is NaN where it did not answer."""

    asset: Ints  # a symbol's checksum
    open_ms: Ints  # of the bar
    until_ms: Ints  # the open of the bar that ends the label
    horizon: Ints  # bars
    interval_ms: int
    labels: Columns
    values: Mapping[str, Columns]
    """Each forecaster's fields, the judged model's first."""
    levels: tuple[float, ...] = ()
    """Of the quantiles that the model's head names."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Of assets, where tables name them."""
    compared: tuple[str, ...] = ()
    """Names of ``values`` that are other models on the same rows, and no baselines."""
    held: Forecasts | None = None
    """What a model's weights and every rule's made, a row a day; None of one without weights."""
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
        """Each bar's own number, as ``Segment.keys``."""
        return (self.open_ms // self.interval_ms << SYMBOL_BITS) + self.asset

    @cached_property
    def horizons(self) -> tuple[int, ...]:
        """The horizons of the rows, rising."""
        return tuple(np.unique(self.horizon).tolist())

    @property
    def unit(self) -> str:
        """What horizons count: bars, or order books."""
        return "books" if "move" in self.labels else "bars"

    def where(self, chosen: NDArray[np.bool_] | Ints | slice) -> Forecasts:
        """Return the *chosen* rows."""
        columns: dict[str, Any] = {key: getattr(self, key)[chosen] for key in _ROW}
        return replace(
            self,
            **columns,
            labels={name: of[chosen] for name, of in self.labels.items()},
            values={
                name: {key: of[chosen] for key, of in fields.items()}
                for name, fields in self.values.items()
            },
            held=None,
        )

    def at(self, horizon: int) -> Forecasts:
        """Return the rows of one horizon."""
        if horizon not in self.cache:
            rows = np.flatnonzero(self.horizon == horizon)
            is_one = len(rows) and rows[-1] - rows[0] + 1 == len(rows)  # a view costs nothing
            chosen = slice(int(rows[0]), int(rows[-1]) + 1) if is_one else rows
            self.cache[horizon] = self.where(chosen)
        return self.cache[horizon]

    def by_horizon(self) -> list[tuple[int, Forecasts]]:
        """Return each horizon with its rows."""
        return [(horizon, self.at(horizon)) for horizon in self.horizons]

    def gives(self, field: str, name: str = MODEL) -> bool:
        """Return whether a forecaster has a field, or one that it follows from."""
        fields = self.values.get(name, {})
        return any(each in fields for each in (field, *_WEAKER.get(field, ())))

    def value(self, field: str, name: str = MODEL) -> NDArray[Any]:
        """Return a forecaster's field: [row, ..]."""
        fields = self.values[name]
        return next(fields[each] for each in (field, *_WEAKER.get(field, ())) if each in fields)

    def holding(self, name: str, **fields: NDArray[Any]) -> Forecasts:
        """Return it with more *fields* of the forecaster *name*."""
        values = {**self.values, name: {**self.values.get(name, {}), **fields}}
        return replace(self, values=values)

    def by_row(self, values: Mapping[str, float]) -> Array:
        """Return the number of each row's horizon, of *values* as a card has them; else 1."""
        each = np.array([values.get(str(horizon), 1.0) for horizon in self.horizons])
        return each[np.searchsorted(self.horizons, self.horizon)]

    def cooled(self, temperature: Mapping[str, float]) -> Forecasts:
        """Return it with the model's probabilities of its logits, calibrated by horizon."""
        if not self.gives("logits"):
            return self
        cooled = self.value("logits") / self.by_row(temperature)[:, None].astype(np.float32)
        return self.holding(MODEL, probability=softmax(cooled.astype(np.float64), axis=-1))

    def mix(self, shares: Mapping[str, Array]) -> Array:
        """Return the variance of a mix: of log variances by *shares* [row] of forecasters."""
        logs = [share * np.log(self.value("variance", name)) for name, share in shares.items()]
        return np.exp(sum(logs[1:], logs[0]))

    def join(self, other: Forecasts, name: str) -> Forecasts:
        """Return it with the judged model of *other* as the compared model *name*.

        Its fields are in the units of these rows, and NaN at those that it has not. Raises
        ``InvariantBroken`` where a row is there twice.
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
            if power := _UNITS.get(key, 0):
                column *= (ratio**power).reshape(-1, *(1,) * (column.ndim - 1))
            fields[key] = column
        whole, held = self.holding(name, **fields), self.held
        if held is not None and other.held is not None:
            held = held.join(other.held, name)
        return replace(whole, compared=(*self.compared, name), held=held)

    def places(self, other: Forecasts) -> Ints:
        """Return the place of each row among those of *other*, -1 where it is not there."""
        place = np.full(len(self), -1, dtype=np.int64)
        for horizon in self.horizons:
            mine, theirs = (np.flatnonzero(of.horizon == horizon) for of in (self, other))
            keys = self.keys[mine], other.keys[theirs]
            if any(len(np.unique(of)) < len(of) for of in keys):
                raise InvariantBroken("A row of the forecasts is there twice; join distinct rows.")
            _, at, there = np.intersect1d(*keys, return_indices=True)
            place[mine[at]] = theirs[there]
        return place


def named_asset(name: str) -> int:
    """Return the number of a symbol, a pair or a portfolio among the assets."""
    return crc32(name.encode())


def concatenated(parts: Sequence[Forecasts]) -> Forecasts:
    """Return *parts*, which have the same columns, one after another."""
    first = parts[0]

    def whole(columns: Sequence[Columns]) -> dict[str, NDArray[Any]]:
        return {name: np.concatenate([of[name] for of in columns]) for name in columns[0]}

    columns: dict[str, Any] = {
        key: np.concatenate([getattr(part, key) for part in parts]) for key in _ROW
    }
    return replace(
        first,
        **columns,
        labels=whole([part.labels for part in parts]),
        values={name: whole([part.values[name] for part in parts]) for name in first.values},
        names={asset: name for part in parts for asset, name in part.names.items()},
        held=concatenated(held) if (held := [of.held for of in parts if of.held]) else None,
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
            nothing = (np.nan,) * len(forecasts[0].horizons)
            every = [getattr(forecast, name) or nothing for forecast in forecasts]
            return np.array(every, dtype=np.float64)[:, at]

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
        each = [np.isfinite(of.reshape(len(self.rows), -1)) for of in self.fields.values()]
        chosen = np.logical_and.reduce([of.all(axis=1) for of in each])
        fields = {name: of[chosen] for name, of in self.fields.items()}
        return SegmentFields(self.samples, self.rows[chosen], fields)


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
        whole = concatenated([segment_rows(of, baselines, column, horizon) for of in answers])
        value = whole.labels["returns"]
        rises = np.count_nonzero(value > 0) >= np.count_nonzero(value < 0)
        whole = whole.holding("random", score=generator.normal(size=len(whole)))
        parts.append(whole.holding(MAJORITY, sign=np.full(len(whole), 1.0 if rises else -1.0)))
    return replace(concatenated(parts), levels=tuple(levels))


def segment_rows(
    answers: SegmentFields, baselines: Mapping[str, Answer], column: int, horizon: int
) -> Forecasts:
    """Return the rows of *answers* that are labelled at the *horizon* in place *column*."""
    samples, rows, fields = answers
    segment, used = samples.segment, samples.weights[rows, column] > 0
    past = past_variances(segment)
    values: dict[str, dict[str, NDArray[Any]]] = {
        MODEL: {name: _as_column(of[used, column], name) for name, of in fields.items()}
    }
    for name, answer in baselines.items():
        is_score = BASELINES[name].of == "mean" and name not in SIZED
        question = BaselineQuestion(segment, rows, past[:, rows], horizon, column)
        values[name] = {"score" if is_score else BASELINES[name].of: answer(question)[used]}
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
_KEPT_SMALL: Final = ("logits", "tails", "drawdown", "runup", "regimes", "path")


def _as_column(values: NDArray[np.float32], name: str) -> NDArray[Any]:
    """Return *values*; what figures are computed from is float64."""
    return values if name in _KEPT_SMALL else values.astype(np.float64)
