"""Calibrated confidence and regimes: fitted on the calibration slice, evaluated by day.

Two probabilities: that the sign of the mean is right, and that the error of the volatility is under
its median. Both are logistic in few inputs, shrunk by a penalty that counts labels which share no
bar, with weights that cannot fall where more of an input must not mean less. What is said of them
here is said of folds that their fit did not see, purged by the label.

The rules are docs/decisions.md, G32 to G34; docs/decisions.md, G35.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit
from scipy.stats import rankdata

from tracepaper.replay.document.values import plus_minus
from tracepaper.replay.learning.card import rounded
from tracepaper.replay.learning.judge.explained import GATE_COLUMNS, INPUT_COLUMNS
from tracepaper.replay.learning.judge.forecasts import Forecasts
from tracepaper.replay.learning.statistics import (
    COVERAGE,
    VARIANCE_FLOOR,
    DailyEstimate,
    area_gained,
    area_gained_more,
    compared,
    figure,
    holm,
)
from tracepaper.replay.report.honesty import FEW_DAYS
from tracepaper.replay.report.metrics import is_credible
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.gates.gate import is_of_attention, rises
from tracepaper.strategies.types.calibration import (
    CALIBRATED,
    CONFIDENCES,
    ENTROPY,
    MARGIN,
    REGIME_MEASURES,
    REGIMES_MOST,
    FittedConfidence,
    LinearScore,
    RegimeCells,
)
from tracepaper.strategies.units import DAY_MS

Rows = NDArray[np.bool_]
FOLDS: Final = 5
"""Stretches of time of which each is judged by a fit to the others."""
PENALTY: Final = 10.0
"""Of squared weights, in labels that share no bar: some dozens of them say nothing."""
CELLS: Final = 5
"""Equal shares of the slice, by confidence in the volatility, whose intervals are compared."""
ROWS_LEAST: Final = 200
"""With fewer rows of the calibration slice nothing is fitted."""
LEVEL: Final = 0.05
"""Of the test whether a confidence is worth anything, on each of two spans."""


def outcomes(found: Forecasts) -> Forecasts:
    """Return the explained rows whose inputs are all known, with what followed each.

    ``hit`` is 1 where the sign was right, ``loss`` the QLIKE of the volatility, and ``missed`` how
    many deviations the return lay from the mean.
    """
    known = np.ones(len(found), dtype=np.bool_)
    for values in found.values[INPUT_COLUMNS].values():
        known &= np.isfinite(values)
    rows = found.where(known)
    mean, value = rows.value("mean"), rows.labels["return"]
    ratio = np.maximum(rows.labels["realised"] / rows.value("volatility") ** 2, VARIANCE_FLOOR)
    labels = {
        "hit": (np.sign(mean) == np.sign(value)).astype(np.float64),
        "loss": ratio - np.log(ratio) - 1.0,
        "missed": np.abs(value - mean) / rows.value("stdev"),
    }
    return replace(rows, labels={**rows.labels, **labels})


def independent(rows: Forecasts) -> float:
    """Return how many labels share no bar."""
    return len(rows) / rows.horizons[0]


def is_calm(rows: Forecasts) -> Array:
    """Return 1 where the error of the volatility was at most its median."""
    loss = rows.labels["loss"]
    return (loss <= np.median(loss)).astype(np.float64)


def truth(rows: Forecasts) -> Array:
    """Return by what share of the rows the volatility's error was larger: 1 is the truest."""
    found: Array = 1.0 - rankdata(rows.labels["loss"]) / len(rows)
    return found


def fit_score(
    rows: Forecasts, happened: Array, names: Sequence[str], *, signed: bool
) -> LinearScore:
    """Return the penalised logistic fit of *happened* (0 or 1, [row]) on the inputs *names*.

    Where *signed*, the weights of inputs that must rise with it are never below 0.
    """
    wide = np.stack([rows.values[INPUT_COLUMNS][name] for name in names], axis=1)
    center, scale = wide.mean(axis=0), wide.std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    z = np.clip((wide - center) / scale, -4.0, 4.0)

    def loss(weights: Array) -> tuple[float, Array]:
        score = z @ weights[1:] + weights[0]
        fit = independent(rows) * float((np.logaddexp(0.0, score) - happened * score).mean())
        away = independent(rows) * (expit(score) - happened) / len(happened)
        slope = np.concatenate([[away.sum()], z.T @ away + PENALTY * weights[1:]])
        return fit + 0.5 * PENALTY * float(weights[1:] @ weights[1:]), slope

    bounds = [(None, None)] + [(0.0 if signed and rises(name) else None, None) for name in names]
    start = np.zeros(len(names) + 1)
    weights = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x
    return LinearScore(
        names=tuple(names),
        center=tuple(map(rounded, center.tolist())),
        scale=tuple(map(rounded, scale.tolist())),
        weight=tuple(map(rounded, weights[1:].tolist())),
        intercept=rounded(float(weights[0])),
    )


def scored(score: LinearScore, inputs: Mapping[str, Array]) -> Array:
    """Return the probability at every row, as a run computes it."""
    columns = [inputs[name].tolist() for name in score.names]
    found = [score.probability(row) for row in zip(*columns, strict=True)]
    return np.array(found, dtype=np.float64)


def folds(rows: Forecasts) -> list[tuple[Rows, Rows]]:
    """Return (judged, fitted) of ``FOLDS`` stretches of time, across all symbols.

    What is fitted shares no moment of its label with any label that is judged.
    """
    cuts = np.quantile(rows.open_ms, np.linspace(0, 1, FOLDS + 1)[1:-1])
    fold = np.searchsorted(cuts, rows.open_ms, side="right")
    found = []
    for number in range(FOLDS):
        judged = fold == number
        if judged.any():
            first, last = rows.open_ms[judged].min(), rows.until_ms[judged].max()
            found.append((judged, (rows.until_ms < first) | (rows.open_ms > last)))
    return found


def cross_fitted(
    rows: Forecasts, happened: Array, names: Sequence[str], *, signed: bool
) -> Array | None:
    """Return the probability at every row by a fit that saw none of its fold; None without one."""
    found = np.full(len(happened), np.nan)
    for judged, known in folds(rows):
        if known.sum() < ROWS_LEAST // FOLDS:
            return None
        fit = fit_score(rows.where(known), happened[known], names, signed=signed)
        part = {name: rows.values[INPUT_COLUMNS][name][judged] for name in names}
        found[judged] = scored(fit, part)
    return found


def fit_confidence(
    found: Forecasts,
) -> tuple[FittedConfidence | None, dict[str, Any]]:
    """Return the fitted confidence of the calibration slice, and what its folds say of it.

    The chosen measure is the one whose gain is largest against its error. There is none where rows
    are too few, or the forecaster names no probabilities.
    """
    rows = outcomes(found)
    if len(rows.labels["hit"]) < ROWS_LEAST or not {"mean_over_stdev", "margin"} <= set(
        rows.values[INPUT_COLUMNS]
    ):
        return None, {}
    names = tuple(rows.values[INPUT_COLUMNS])
    bare = tuple(name for name in names if not is_of_attention(name))
    sign, calm = (
        _crossed(rows, rows.labels["hit"], names, bare),
        _crossed(rows, is_calm(rows), names, bare),
    )
    if sign is None or calm is None:
        return None, {}
    gains = _gains(rows, sign[0])
    chosen = max(gains, key=lambda name: _surprise(gains[name]))
    if _surprise(gains[chosen]) <= 0:
        chosen = ENTROPY if ENTROPY in gains else MARGIN
    volatility = fit_score(rows, is_calm(rows), names, signed=False)
    edges, spread = _widening(rows, calm[0])
    fitted = FittedConfidence(
        horizon=found.horizons[0],
        chosen=chosen,
        strict=False,
        sign=fit_score(rows, rows.labels["hit"], names, signed=True),
        volatility=volatility,
        edges=edges,
        spread=spread,
    )
    evidence = {
        "rows": len(rows.labels["hit"]),
        "independent": round(independent(rows)),
        "days": len(np.unique(rows.day)),
        "sign": {name: gain.rounded() for name, gain in gains.items()},
        "volatility": area_gained(truth(rows), calm[0], rows.day).rounded(),
        "attention_adds": {
            "sign": area_gained_more(rows.labels["hit"], *sign, rows.day).rounded(),
            "volatility": area_gained_more(truth(rows), *calm, rows.day).rounded(),
        },
    }
    return fitted, evidence


def _crossed(
    rows: Forecasts, happened: Array, names: Sequence[str], bare: Sequence[str]
) -> tuple[Array, Array] | None:
    """Return the cross-fitted probability of all inputs, and of those without attention."""
    signed = happened is rows.labels["hit"]
    every = cross_fitted(rows, happened, names, signed=signed)
    less = cross_fitted(rows, happened, bare, signed=signed)
    return None if every is None or less is None else (every, less)


def _gains(rows: Forecasts, calibrated: Array) -> dict[str, DailyEstimate]:
    """Return what each confidence gains in accuracy over chance, averaged over coverages."""
    measured = {
        ENTROPY: rows.values[GATE_COLUMNS].get("confidence"),
        CALIBRATED: calibrated,
        MARGIN: rows.values[INPUT_COLUMNS]["margin"],
    }
    return {
        name: area_gained(rows.labels["hit"], values, rows.day)
        for name in CONFIDENCES
        if (values := measured[name]) is not None
    }


def _widening(rows: Forecasts, sure: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return edges of cells of confidence, and by how much intervals must be widened in each.

    Measured by the same share of the returns in every cell; it never grows with confidence.
    """
    edges = np.quantile(sure, np.linspace(0, 1, CELLS + 1)[1:-1])
    edges = np.array([rounded(float(edge)) for edge in edges])
    cell = np.searchsorted(edges, sure, side="right")
    usual = float(np.quantile(rows.labels["missed"], COVERAGE))
    counts = np.bincount(cell, minlength=CELLS)
    wide = [
        float(np.quantile(rows.labels["missed"][cell == one], COVERAGE)) / usual
        if counts[one] and usual > 0
        else 1.0
        for one in range(CELLS)
    ]
    falling = isotonic_regression(wide, weights=np.maximum(counts, 1), increasing=False).x
    return tuple(edges.tolist()), tuple(rounded(max(float(one), 1e-3)) for one in falling)


def judge_spans(
    found: Forecasts, fitted: FittedConfidence, second_span_ms: int | None = None
) -> tuple[bool, dict[str, Any]]:
    """Return whether the chosen confidence has earned a strict threshold, and what shows it.

    The untouched rows are two spans, of which the second begins on the UTC day of *second_span_ms*,
    or at half of their days. A gain over a random gate of equal coverage must be credible in both,
    corrected by Holm over the candidates, and no few days earn it.
    """
    rows = outcomes(found)
    days = np.unique(rows.day)
    if len(days) < 2:
        return False, {}
    middle = days[len(days) // 2] if second_span_ms is None else second_span_ms // DAY_MS
    if not days[0] < middle <= days[-1]:
        return False, {}  # all of them in one span: nothing is repeated
    parts = (rows.where(rows.day < middle), rows.where(rows.day >= middle))
    spans = [_span(part, fitted) for part in parts]
    is_credible = all(span["holm"][fitted.chosen] < LEVEL for span in spans)
    return is_credible and len(days) >= FEW_DAYS, {"spans": spans}


def _span(rows: Forecasts, fitted: FittedConfidence) -> dict[str, Any]:
    gains = _gains(rows, scored(fitted.sign, rows.values[INPUT_COLUMNS]))
    calm = scored(fitted.volatility, rows.values[INPUT_COLUMNS])
    days = len(np.unique(rows.day))
    chances = [_by_luck(gain, days) for gain in gains.values()]
    return {
        "days": days,
        "sign": {name: gain.rounded() for name, gain in gains.items()},
        # How probable such a gain is where there is none.
        "holm": {name: round(p, 6) for name, p in zip(gains, holm(chances), strict=True)},
        "volatility": area_gained(truth(rows), calm, rows.day).rounded(),
    }


def sentence(fitted: FittedConfidence, evidence: Mapping[str, Any]) -> str:
    """Say in one sentence what the confidence is worth, and what follows from it."""
    said = _LIST[fitted.chosen]
    spans = evidence.get("spans", ())
    gained = " and ".join(
        f"{100 * gain:+.1f} {plus_minus(error, '.1f', 100)}"
        for gain, error in (span["sign"][fitted.chosen] for span in spans)
    )
    points = f" ({gained} points of accuracy, mean over coverages)" if gained else ""
    if fitted.strict:
        return (
            f"Confidence by {said} chose surer signs than chance on both untouched spans{points},"
            " so gate.confidence is strict by default (q0.5)."
        )
    text = (
        f"Confidence by {said} did not credibly choose surer signs than chance on both untouched"
        f" spans{points}, so gate.confidence refuses next to nothing by default (q0.01)"
    )
    if spans and all(
        value > 0 and is_credible(value, error) for value, error in (s["volatility"] for s in spans)
    ):
        return (
            f"{text}; it does rank the errors of its volatility, which sizing.by_confidence uses."
        )
    return f"{text}."


def ablation(evidence: Mapping[str, Any]) -> str:
    """Say in one sentence what attention adds to the other inputs, as ``fit_confidence`` found."""
    (sign, sign_error), (calm, calm_error) = (
        evidence["attention_adds"][name] for name in ("sign", "volatility")
    )
    return (
        "Beyond mean and margin, on the calibration slice, attention added"
        f" {100 * sign:+.1f} {plus_minus(sign_error, '.1f', 100)} points to signs that are right,"
        f" and {100 * calm:+.1f} {plus_minus(calm_error, '.1f', 100)} to the rank of the"
        " volatility's errors."
    )


_LIST: Final = {
    ENTROPY: "entropy of attention",
    CALIBRATED: "the fitted probability",
    MARGIN: "the margin of the directions",
}


def _by_luck(gain: DailyEstimate, days: int) -> float:
    """Return how likely chance alone gains so much or more."""
    p = compared(gain, days).p
    return p / 2 if gain.value > 0 else 1.0 - p / 2


def _surprise(gain: DailyEstimate) -> float:
    if gain.error is None:  # of one block of days, as that of every candidate then is
        return gain.value
    return gain.value / gain.error if gain.error > 0 else 0.0


COUNT: Final = 5
"""Cells that are looked for, of at most ``REGIMES_MOST``."""
_SEED: Final = 20_170_817
_ROUNDS: Final = 100
_ROWS_A_CELL: Final = 40
_FARTHEST: Final = 4.0


def fit_cells(found: Forecasts, count: int = COUNT) -> RegimeCells | None:
    """Return *count* cells by k-means (Lloyd, 1982) on standardised measures of attention.

    They are ordered by realised over forecast variance. None where rows or days are too few, or
    attention gives no such measures.
    """
    if not 2 <= count <= REGIMES_MOST or not set(REGIME_MEASURES) <= set(
        found.values[GATE_COLUMNS]
    ):
        return None
    rows = np.stack([found.values[GATE_COLUMNS][name] for name in REGIME_MEASURES], axis=1)
    known: NDArray[np.bool_] = np.isfinite(rows.sum(axis=1))
    if known.sum() < _ROWS_A_CELL * count:
        return None
    center, scale = rows[known].mean(axis=0), rows[known].std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    places = np.clip((rows[known] - center) / scale, -_FARTHEST, _FARTHEST)
    middles = _middles(places, count)
    cell = _nearest(places, middles)
    if len(np.unique(cell)) < count:
        return None
    ratios = [_ratio(found, known, cell == one) for one in range(count)]
    errors = [ratio.error for ratio in ratios if ratio.error is not None]
    if len(errors) < count:
        return None
    order = sorted(range(count), key=lambda one: ratios[one].value)
    return RegimeCells(
        names=REGIME_MEASURES,
        center=tuple(map(rounded, center.tolist())),
        scale=tuple(map(rounded, scale.tolist())),
        cells=tuple(tuple(map(rounded, middles[one].tolist())) for one in order),
        ratio=tuple(rounded(ratios[one].value) for one in order),
        error=tuple(rounded(errors[one]) for one in order),
    )


def judge_cells(found: Forecasts, cells: RegimeCells, hysteresis: float) -> dict[str, Any]:
    """Return for each cell its share of the rows of *found*, and what followed there, by day."""
    columns = [
        [None if np.isnan(value) else value for value in found.values[GATE_COLUMNS][name].tolist()]
        for name in cells.names
    ]
    at: list[int] = []
    now: int | None = None
    for row in zip(*columns, strict=True):
        now = cells.next_cell(now, row, hysteresis)
        at.append(now or 0)
    cell, every = np.array(at), np.ones(len(at), dtype=np.bool_)
    inside = {one: cell == one for one in range(1, len(cells.cells) + 1)}
    return {
        str(one): {
            "share": round(float(rows.mean()), 5),
            "days": len(np.unique(found.day[rows])),
            "variance_ratio": _ratio(found, every, rows).rounded() if rows.any() else [],
        }
        for one, rows in inside.items()
    }


def regime_sentence(figures: Mapping[str, Any]) -> str:
    """Say in one sentence what followed in the first and the last cell of ``judge_cells``."""
    said = [
        f"{ratio[0]:.2f} ({plus_minus(ratio[1], '.2f')} by days) in regime {one}"
        for one in (min(figures, key=int), max(figures, key=int))
        if (ratio := figures[one]["variance_ratio"])
    ]
    if not said:
        return "In no regime of the card's own was an untouched bar."
    return f"Realised variance was so many times what was forecast: {', '.join(said)} of the card."


def _middles(places: Array, count: int) -> Array:
    """Return the centres [cell, measure]: drawn far apart (k-means++), then Lloyd's rounds."""
    drawn = np.random.default_rng(_SEED)
    chosen = [places[int(drawn.integers(len(places)))]]
    while len(chosen) < count:
        away = np.min([((places - one) ** 2).sum(axis=1) for one in chosen], axis=0)
        total = float(away.sum())
        if total <= 0:
            break
        chosen.append(places[int(drawn.choice(len(places), p=away / total))])
    middles = np.stack(chosen)
    for _ in range(_ROUNDS):
        cell = _nearest(places, middles)
        moved = np.stack(
            [
                places[cell == one].mean(axis=0) if (cell == one).any() else middles[one]
                for one in range(len(middles))
            ]
        )
        if np.array_equal(moved, middles):
            break
        middles = moved
    return middles


def _nearest(places: Array, middles: Array) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.stack(
        [((places - one) ** 2).sum(axis=1) for one in middles]
    ).argmin(axis=0)
    return found


def _ratio(found: Forecasts, known: NDArray[np.bool_], rows: NDArray[np.bool_]) -> DailyEstimate:
    """Return realised over forecast variance of the *rows* of those *known*, with its error."""
    realised, forecast = (
        found.labels["realised"][known][rows],
        found.value("volatility")[known][rows] ** 2,
    )
    # Each bar counts alike: a few violent days would decide a ratio of sums.
    terms = np.stack([realised / forecast, np.ones_like(realised)])
    return figure(terms, found.day[known][rows], lambda s: s[:, 0] / np.maximum(s[:, 1], 1.0))
