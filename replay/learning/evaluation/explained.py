"""Explained forecasts of known bars: every gate's measure beside what happened next."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.learning.card import (
    ROUND_TRIP_COST,
    measures,
)
from tracepaper.replay.learning.evaluation.auxiliary_heads import AuxiliaryForecasts
from tracepaper.replay.learning.evaluation.correlation import CorrelationForecasts
from tracepaper.replay.learning.evaluation.cross_section import AcrossAssets
from tracepaper.replay.learning.evaluation.forecasts import HorizonForecasts
from tracepaper.replay.learning.samples import Samples
from tracepaper.replay.learning.splits import Segment
from tracepaper.replay.learning.statistics import (
    mean,
    table,
    top,
)
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.gates.gate import GATES, names_for, values_of
from tracepaper.strategies.types.calibration import FittedConfidence
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar, Source
from tracepaper.strategies.units import DAY_MS

_SEED: Final = 20_170_817
_BASIS_POINTS: Final = 1e4
_GOLDEN: Final = 0.618034  # its multiples fill a unit evenly
_BUSY_SHARE: Final = 0.033  # a gate as loose as 33 bars in 1,000, to compare with
_FIXED: Final = ("value", "traded", "mean", "stdev", "margin", "volatility", "realised")
_INPUT: Final = "input."


class JudgedPart(NamedTuple):
    """What a model said of one part beside what happened, and what is said of it."""

    forecasts: list[HorizonForecasts]
    given: frozenset[str]  # the measures of the model
    figures: dict[str, Any]  # by horizon, and those of gates
    sentences: list[str]
    explained: ExplainedRows | None = None
    rules: Mapping[str, NDArray[np.bool_]] = {}  # of trading, over the rows of ``explained``
    calibration: Mapping[str, Any] = {}  # the card's section, with the verdict of this part
    further: Sequence[AuxiliaryForecasts] = ()  # of the heads that not every network has
    correlations: Sequence[CorrelationForecasts] = ()  # of its symbols, where it has such heads
    across: AcrossAssets | None = None  # of a network that answers for all symbols of a close


class AnsweredRows(NamedTuple):
    """Labelled rows of one segment, and what a forecaster said at each."""

    samples: Samples
    rows: NDArray[np.int64]
    forecasts: Sequence[Forecast | None]


@dataclass(frozen=True)
class ExplainedRows:
    """Rows [row] of one horizon: forecast, measures by name, and what followed.

    ``value`` is the log return from this close, ``traded`` that from the next bar's open, both to
    the close *horizon* bars ahead; ``place`` numbers the bars, further apart between segments.
    ``keys`` are those of ``Segment.keys``.
    """

    horizon: int
    keys: NDArray[np.int64]
    days: NDArray[np.int64]
    place: NDArray[np.int64]
    value: Array
    traded: Array
    mean: Array
    stdev: Array
    margin: Array
    volatility: Array
    measures: Mapping[str, Array]
    opened_ms: NDArray[np.int64]  # of the bar
    until_ms: NDArray[np.int64]  # the open of the bar that ends its label
    realised: Array  # variance of the one-bar returns to the horizon, summed
    inputs: Mapping[str, Array]  # of a fitted confidence; NaN where one is not known


def bars_of(segment: Segment, start: int, stop: int) -> list[Bar]:
    """Return rows *start* until *stop* of a segment as bars."""
    part = segment.candles
    columns = (
        part.open_time_ms,
        part.closes_ms,
        part.open,
        part.high,
        part.low,
        part.close,
        part.volume,
    )
    rows = zip(*(column[start:stop].tolist() for column in columns), strict=True)
    return [
        Bar(
            instrument=part.instrument,
            open_time_ms=opened,
            interval_ms=part.interval_ms,
            open=first,
            high=high,
            low=low,
            close=close,
            volume=volume,
            turnover=None,
            market_ms=closed,
            seen_ms=closed,
            source=Source.ARCHIVE,
        )
        for opened, closed, first, high, low, close, volume in rows
    ]


def explain(
    forecaster: Forecaster,
    part: Sequence[Samples],
    *,
    horizon: int,
    slope: float,
    bars: int,
) -> ExplainedRows:
    """Forecast and explain the ``answered_rows`` of *part*.

    Raises ``DataInvalid`` where no segment is long enough.
    """
    found = answered_rows(forecaster, part, horizon=horizon, bars=bars)
    return rows_of(forecaster, found, horizon=horizon, slope=slope)


def answered_rows(
    forecaster: Forecaster, part: Sequence[Samples], *, horizon: int, bars: int
) -> list[AnsweredRows]:
    """Return the forecasts of up to *bars* labelled rows of *part*, shared equally by segments.

    Of each segment they are those of ``spread_rows``, after the bars that warm the model. A
    segment that is too short is left out.
    """
    share = max(bars // len(part), 1)
    scan = forecaster.scan if forecaster.causal else partial(map, forecaster.step)
    found: list[AnsweredRows] = []
    for samples in part:
        answers: list[Forecast | None] = []
        stretches = spread_rows(samples, horizon, forecaster.context, share)
        for rows in stretches:
            first, stop = int(rows[0]), int(rows[-1]) + 1
            begin = first - forecaster.context + 1
            known = bars_of(samples.segment, begin, stop)
            forecaster.warm(samples.segment.candles.instrument, known[: first - begin])
            every = list(scan(known[first - begin :]))
            answers += [every[row - first] for row in rows.tolist()]
        if stretches:
            found.append(AnsweredRows(samples, np.concatenate(stretches), answers))
    return found


def spread_rows(
    samples: Samples, horizon: int, context: int, count: int
) -> list[NDArray[np.int64]]:
    """Return up to *count* rows with a label at *horizon* and *context* bars, spread evenly.

    They are stretches [row] in order, as many as the rows have UTC days: each stretch costs the
    bars that warm the model. Where all rows are taken they are one stretch; empty without any row.
    """
    labelled = np.flatnonzero(samples.weights[:, samples.horizons.index(horizon)] > 0)
    labelled = labelled[labelled >= context - 1]
    if len(labelled) <= count:
        return [labelled] if len(labelled) else []
    days = min(len(np.unique(samples.segment.open_time_ms[labelled] // DAY_MS)), count)
    sizes = np.diff(np.linspace(0, count, days + 1).astype(np.int64)).tolist()
    stretches = []
    for nth, (part, size) in enumerate(zip(np.array_split(labelled, days), sizes, strict=True)):
        # Each begins at another place of its part, so that no hour of the day is preferred.
        begin = int(nth * _GOLDEN % 1.0 * (len(part) - size + 1))
        stretches.append(part[begin : begin + size])
    return stretches


def rows_of(
    forecaster: Forecaster, answered: Sequence[AnsweredRows], *, horizon: int, slope: float
) -> ExplainedRows:
    """Return what *forecaster* said of some labelled rows beside what happened next.

    Raises ``DataInvalid`` where there is no row, or a row has no answer.
    """
    rows: list[dict[str, NDArray[Any]]] = []
    fitted = None if forecaster.calibration is None else forecaster.calibration.confidence
    for samples, labelled, chosen in answered:
        known = [forecast for forecast in chosen if forecast is not None]
        if len(known) != len(chosen):
            raise DataInvalid("A bar with a full context has no forecast; check the checkpoint.")
        columns = _row_columns(
            samples.segment, labelled, known, forecaster.measures, horizon=horizon, slope=slope,
            fitted=fitted if fitted is not None and fitted.horizon == horizon else None,
        )  # fmt: skip
        apart = rows[-1]["place"][-1] + horizon + 1 if rows else 0.0
        keys = samples.segment.keys[labelled]
        rows.append(columns | {"keys": keys, "place": labelled - labelled[0] + apart})
    if not rows:
        raise DataInvalid(
            f"No segment holds {forecaster.context} bars before a labelled one; give more data."
        )
    merged = {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
    whole = ("days", "place", "opened_ms", "until_ms")
    days, place, opened_ms, until_ms = (merged.pop(name).astype(np.int64) for name in whole)
    keys = merged.pop("keys")
    fixed = {name: merged.pop(name) for name in _FIXED}
    names = [name for name in merged if name.startswith(_INPUT)]
    return ExplainedRows(
        horizon=horizon,
        keys=keys,
        days=days,
        place=place,
        opened_ms=opened_ms,
        until_ms=until_ms,
        inputs={name.removeprefix(_INPUT): merged.pop(name) for name in names},
        measures=merged,
        **fixed,
    )


def _row_columns(
    segment: Segment,
    rows: NDArray[np.int64],
    forecasts: Sequence[Forecast],
    given: Collection[str],
    *,
    horizon: int,
    slope: float,
    fitted: FittedConfidence | None,
) -> dict[str, Array]:
    at = forecasts[0].horizons.index(horizon)
    up = np.array([forecast.p_up[at] for forecast in forecasts])
    down = np.array([forecast.p_down[at] for forecast in forecasts])
    names = names_for(forecasts[0])
    seen = np.array([values_of(names, one, at) for one in forecasts], dtype=np.float64)
    moves = np.diff(np.log(segment.close), prepend=np.log(segment.close[0]))
    squares = np.cumsum(moves * moves)
    return {
        "opened_ms": segment.open_time_ms[rows].astype(np.float64),
        "until_ms": segment.open_time_ms[rows + horizon].astype(np.float64),
        "realised": squares[rows + horizon] - squares[rows],
        **{f"{_INPUT}{name}": seen[:, place] for place, name in enumerate(names)},
        "days": (segment.open_time_ms[rows] // DAY_MS).astype(np.float64),
        "value": np.log(segment.close[rows + horizon] / segment.close[rows]),
        "traded": np.log(segment.close[rows + horizon] / segment.candles.open[rows + 1]),
        "mean": np.array([forecast.mean_return[at] for forecast in forecasts]),
        "stdev": np.array([forecast.stdev_return[at] for forecast in forecasts]),
        "margin": np.abs(up - down) / (up + down),
        "volatility": np.array([forecast.volatility[at] for forecast in forecasts]),
        **measures(forecasts, given=given, horizon=horizon, slope=slope, fitted=fitted),
    }


def selective(found: ExplainedRows) -> dict[str, Any]:
    """Return the accuracy gained by each gate's measure at equal coverage, and their areas."""
    hit = (np.sign(found.mean) == np.sign(found.value)).astype(np.float64)
    entropy = found.measures.get("confidence")
    return table(
        hit,
        {
            **({} if entropy is None else {"entropy_confidence": entropy}),
            "margin": found.margin,
            "mean_over_stdev": np.abs(found.mean) / found.stdev,
            "predicted_calm": -found.volatility,
            "random": np.random.default_rng(_SEED).random(len(hit)),
        },
        found.days,
    )


def separate(
    chosen: NDArray[np.bool_], place: NDArray[np.int64], horizon: int
) -> NDArray[np.bool_]:
    """Return the chosen rows that open a trade: those after the last trade's *horizon* bars."""
    opened = np.zeros(len(chosen), dtype=np.bool_)
    free = -1
    for row in np.flatnonzero(chosen).tolist():
        if place[row] >= free:
            opened[row] = True
            free = int(place[row]) + horizon
    return opened


def traded(found: ExplainedRows, thresholds: Mapping[str, float]) -> dict[str, Any]:
    """Return what gates would have let through, and its net result in basis points a trade.

    A trade opens at the next bar's open, is held to the horizon, pays the taker's round trip and
    no slippage; no two overlap. *thresholds* are by measure, bounds on the side of their gates.
    """
    rules = passing(found, thresholds)
    return {"bars": len(found.value)} | {name: _result(found, rows) for name, rows in rules.items()}


def passing(found: ExplainedRows, thresholds: Mapping[str, float]) -> dict[str, NDArray[np.bool_]]:
    """Return [row] for each rule of trading: none, the largest edges, edge, and all gates."""
    upper = {gate.calibrated_as for gate in GATES.values() if not gate.at_least}
    passed = np.ones(len(found.value), dtype=np.bool_)
    for name, threshold in thresholds.items():
        measure = found.measures[name]
        passed &= measure <= threshold if name in upper else measure >= threshold
    edge = found.measures["edge"] >= 1.0
    return {
        "ungated": np.ones_like(edge),
        "largest_edges": top(found.measures["edge"], _BUSY_SHARE),
        "edge": edge,
        "all_gates": passed & edge,
    }


def daily_net(found: ExplainedRows, chosen: NDArray[np.bool_]) -> Array:
    """Return the net log return of each day that was judged, 0 where none of *chosen* traded."""
    opened = separate(chosen, found.place, found.horizon)
    names, day = np.unique(found.days, return_inverse=True)
    earned = np.bincount(day[opened], _net(found)[opened], len(names))
    return earned.astype(np.float64)


def _net(found: ExplainedRows) -> Array:
    """Return what a trade at each row makes, after the round trip."""
    net: Array = np.sign(found.mean) * found.traded - ROUND_TRIP_COST
    return net


def _result(found: ExplainedRows, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """Return how many bars passed, the separate trades and days of them, and their net result."""
    opened = separate(chosen, found.place, found.horizon)
    net = _net(found)[opened] * _BASIS_POINTS
    days = found.days[opened]
    result: dict[str, Any] = {
        "bars_per_1000": round(1000 * float(chosen.mean()), 3),
        "trades": int(opened.sum()),
        "days": len(np.unique(days)),
    }
    if len(net):
        result["net_bp"] = mean(net, days).rounded(3)
    return result
