"""Explained forecasts of known bars: every gate's measure beside what happened next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.learning.card import (
    ROUND_TRIP_COST,
    measures,
)
from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts, Ints, concatenated
from tracepaper.replay.learning.samples import Samples
from tracepaper.replay.learning.splits import SYMBOL_MASK, Segment
from tracepaper.replay.learning.statistics import (
    mean,
    table,
    top,
)
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.gates.gate import GATES, names_for, values_of
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar, Source
from tracepaper.strategies.units import DAY_MS

_SEED: Final = 20_170_817
_BASIS_POINTS: Final = 1e4
_GOLDEN: Final = 0.618034  # its multiples fill a unit evenly
_BUSY_SHARE: Final = 0.033  # a gate as loose as 33 bars in 1,000, to compare with
GATE_COLUMNS: Final = "gates"
INPUT_COLUMNS: Final = "inputs"
"""Columns of explained rows beside the model's: every gate's measure, and a confidence's inputs."""


class Judgement(NamedTuple):
    """What a model said of one part beside what happened, and what is said of it."""

    forecasts: Forecasts
    figures: dict[str, Any]  # by horizon, and those of gates
    sentences: list[str]
    explained: Forecasts | None = None  # of the bars that were explained, as ``rows_of``
    rules: Mapping[str, NDArray[np.bool_]] = {}  # of trading, over the rows of ``explained``
    calibration: Mapping[str, Any] = {}  # the card's section, with the verdict of this part
    pairs: Forecasts | None = None  # correlations of its symbols, where it has such heads
    held: Forecasts | None = None  # of a model with weights: what its and every rule's made


class AnsweredRows(NamedTuple):
    """Labelled rows of one segment, and what a forecaster said at each."""

    samples: Samples
    rows: NDArray[np.int64]
    forecasts: Sequence[Forecast | None]


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
) -> Forecasts:
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
) -> Forecasts:
    """Return what *forecaster* answers at some labelled rows, beside what happened next.

    Labels are log returns: ``return`` from this close, ``traded`` from the next bar's open, both to
    the close *horizon* bars ahead; the variance ``realised`` of the one-bar returns until then; and
    the ``place`` of the bar, further apart between segments. ``GATE_COLUMNS`` holds every gate's
    measure, ``INPUT_COLUMNS`` those of a fitted confidence, NaN where one is not known. Raises
    ``DataInvalid`` where there is no row, or a row has no answer.
    """
    parts: list[Forecasts] = []
    fitted = None if forecaster.calibration is None else forecaster.calibration.confidence
    for samples, rows, chosen in answered:
        known = [forecast for forecast in chosen if forecast is not None]
        if len(known) != len(chosen):
            raise DataInvalid("A bar with a full context has no forecast; check the checkpoint.")
        place = 0 if not parts else int(parts[-1].labels["place"][-1]) + horizon + 1
        values = {
            MODEL: _law(known, horizon),
            GATE_COLUMNS: measures(
                known,
                given=forecaster.measures,
                horizon=horizon,
                slope=slope,
                fitted=fitted if fitted is not None and fitted.horizon == horizon else None,
            ),
            INPUT_COLUMNS: _inputs(known, horizon),
        }
        labels = _outcomes(samples.segment, rows, horizon) | {"place": rows - rows[0] + place}
        opened = samples.segment.open_time_ms
        parts.append(
            Forecasts(
                samples.segment.keys[rows] & SYMBOL_MASK,
                opened[rows],
                opened[rows + horizon],
                np.full(len(rows), horizon),
                samples.segment.interval_ms,
                labels,
                values,
            )
        )
    if not parts:
        raise DataInvalid(
            f"No segment holds {forecaster.context} bars before a labelled one; give more data."
        )
    return concatenated(parts)


def _outcomes(segment: Segment, rows: Ints, horizon: int) -> dict[str, NDArray[Any]]:
    close, moves = segment.close, np.diff(np.log(segment.close), prepend=np.log(segment.close[0]))
    squares = np.cumsum(moves * moves)
    return {
        "return": np.log(close[rows + horizon] / close[rows]),
        "traded": np.log(close[rows + horizon] / segment.candles.open[rows + 1]),
        "realised": squares[rows + horizon] - squares[rows],
    }


def _law(forecasts: Sequence[Forecast], horizon: int) -> dict[str, Array]:
    at = forecasts[0].horizons.index(horizon)
    up = np.array([forecast.p_up[at] for forecast in forecasts])
    down = np.array([forecast.p_down[at] for forecast in forecasts])
    return {
        "mean": np.array([forecast.mean_return[at] for forecast in forecasts]),
        "stdev": np.array([forecast.stdev_return[at] for forecast in forecasts]),
        "margin": np.abs(up - down) / (up + down),
        "volatility": np.array([forecast.volatility[at] for forecast in forecasts]),
    }


def _inputs(forecasts: Sequence[Forecast], horizon: int) -> dict[str, Array]:
    at, names = forecasts[0].horizons.index(horizon), names_for(forecasts[0])
    inputs = np.array([values_of(names, one, at) for one in forecasts], dtype=np.float64)
    return {name: inputs[:, place] for place, name in enumerate(names)}


def with_confidence(table: Forecasts, found: Forecasts) -> Forecasts:
    """Return *table* with the confidence of the bars that were explained, NaN of all others."""
    if "confidence" not in found.values[GATE_COLUMNS]:
        return table
    order = np.argsort(found.keys)
    place = np.minimum(np.searchsorted(found.keys[order], table.keys), len(order) - 1)
    at = order[place]
    confidence = np.where(
        found.keys[at] == table.keys, found.value("confidence", GATE_COLUMNS)[at], np.nan
    )
    return table.holding(MODEL, confidence=confidence)


def selective(found: Forecasts) -> dict[str, Any]:
    """Return the accuracy gained by each gate's measure at equal coverage, and their areas."""
    hit = (np.sign(found.value("mean")) == np.sign(found.labels["return"])).astype(np.float64)
    entropy = found.values[GATE_COLUMNS].get("confidence")
    return table(
        hit,
        {
            **({} if entropy is None else {"entropy_confidence": entropy}),
            "margin": found.value("margin"),
            "mean_over_stdev": np.abs(found.value("mean")) / found.value("stdev"),
            "predicted_calm": -found.value("volatility"),
            "random": np.random.default_rng(_SEED).random(len(hit)),
        },
        found.day,
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


def traded(found: Forecasts, thresholds: Mapping[str, float]) -> dict[str, Any]:
    """Return what gates would have let through, and its net result in basis points a trade.

    A trade opens at the next bar's open, is held to the horizon, pays the taker's round trip and
    no slippage; no two overlap. *thresholds* are by measure, bounds on the side of their gates.
    """
    rules = passing(found, thresholds)
    return {"bars": len(found)} | {name: _result(found, rows) for name, rows in rules.items()}


def passing(found: Forecasts, thresholds: Mapping[str, float]) -> dict[str, NDArray[np.bool_]]:
    """Return [row] for each rule of trading: none, the largest edges, edge, and all gates."""
    upper = {gate.calibrated_as for gate in GATES.values() if not gate.at_least}
    passed = np.ones(len(found), dtype=np.bool_)
    for name, threshold in thresholds.items():
        measure = found.values[GATE_COLUMNS][name]
        passed &= measure <= threshold if name in upper else measure >= threshold
    edge = found.values[GATE_COLUMNS]["edge"] >= 1.0
    return {
        "ungated": np.ones_like(edge),
        "largest_edges": top(found.values[GATE_COLUMNS]["edge"], _BUSY_SHARE),
        "edge": edge,
        "all_gates": passed & edge,
    }


def daily_net(found: Forecasts, chosen: NDArray[np.bool_]) -> Array:
    """Return the net log return of each day that was judged, 0 where none of *chosen* traded."""
    opened = separate(chosen, found.labels["place"], found.horizons[0])
    names, day = np.unique(found.day, return_inverse=True)
    earned = np.bincount(day[opened], _net(found)[opened], len(names))
    return earned.astype(np.float64)


def _net(found: Forecasts) -> Array:
    """Return what a trade at each row makes, after the round trip."""
    net: Array = np.sign(found.value("mean")) * found.labels["traded"] - ROUND_TRIP_COST
    return net


def _result(found: Forecasts, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """Return how many bars passed, the separate trades and days of them, and their net result."""
    opened = separate(chosen, found.labels["place"], found.horizons[0])
    net = _net(found)[opened] * _BASIS_POINTS
    days = found.day[opened]
    result: dict[str, Any] = {
        "bars_per_1000": round(1000 * float(chosen.mean()), 3),
        "trades": int(opened.sum()),
        "days": len(np.unique(days)),
    }
    if len(net):
        result["net_bp"] = mean(net, days).rounded(3)
    return result
