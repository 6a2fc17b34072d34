"""The judgement gates: their measures at explained bars, confidence, regimes, and a card's section.

Figures of a calibrated probability come from folds that its fit did not see, without labels that
overlap them. The fit's penalty is weighed against the number of labels that share no bar.

The rules are docs/decisions.md, G18 and G32 to G36.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, Final
from warnings import catch_warnings

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit

from tracepaper.daemon.config.sections import GateSection, RegimeSection
from tracepaper.replay.document.values import plus_minus, signed_estimate
from tracepaper.replay.learning.card import (
    PERCENTS,
    RECENT_MASS,
    REGIME_SHARES,
    ROUND_TRIP_COST,
    quantiles,
    rounded,
)
from tracepaper.replay.learning.judge.forecasts import (
    MODEL,
    Forecasts,
    Ints,
    SegmentFields,
    concatenated,
    segment_rows,
)
from tracepaper.replay.learning.judge.metrics import MEASURES, METRICS, RISKS, MetricView, curve_of
from tracepaper.replay.learning.samples import Samples
from tracepaper.replay.learning.splits import WHOLE, Holdout
from tracepaper.replay.learning.statistics import (
    COVERAGE,
    DailyEstimate,
    RankedBars,
    RiskCurve,
    figure,
    holm,
    mean,
    risk_curve,
    top,
)
from tracepaper.replay.report.honesty import FEW_DAYS, LEVEL
from tracepaper.replay.report.metrics import is_credible
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.gates.declared import confidence_calibrated, regime
from tracepaper.strategies.gates.evaluator import RegimeBounds, threshold_of
from tracepaper.strategies.gates.gate import (
    AUTO,
    GATES,
    MILDEST,
    GateInputs,
    ThresholdKey,
    input_names,
    input_values,
    is_from_attention,
    is_input,
    rises,
)
from tracepaper.strategies.types.calibration import (
    CALIBRATED,
    CONFIDENCES,
    ENTROPY,
    MARGIN,
    MAX_REGIMES,
    REGIME_MEASURES,
    Calibration,
    FittedConfidence,
    LinearScore,
    RegimeCells,
)
from tracepaper.strategies.types.decisions import Forecast, Regime
from tracepaper.strategies.units import DAY_MS, count_of, iso

_SEED: Final = 20_170_817
_BASIS_POINTS: Final = 1e4
_GOLDEN: Final = 0.618034  # its multiples fill a unit evenly
_BUSY_SHARE: Final = 0.033  # a gate as loose as 33 bars in 1,000, to compare with
RULES: Final = ("ungated", "largest_edges", "edge", "all_gates")
"""Trading rules, each a forecaster of explained rows. Its fields are ``chosen``, and ``net``, the
net log return where a trade opens, else NaN."""


@dataclass(frozen=True)
class Judgement:
    """A model's forecasts and outcomes on one part of the data, with figures and sentences.

    ``forecasts`` includes those of compared models.
    """

    forecasts: Forecasts
    figures: dict[str, Any]  # by horizon; "gates" holds those of the gates
    sentences: list[str]
    explained: Forecasts | None = None  # the explained bars, with ``RULES``
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """The card's ``[calibration]``, with the verdict of this part."""
    pairs: Forecasts | None = None  # correlations between symbols, if they were forecast
    holdout: Holdout = WHOLE
    symbols: tuple[str, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict)
    uses: int = 1
    """The number of recipes that were judged on the holdout, including this one."""
    missing: tuple[str, ...] = ()
    """Sentences about comparisons and counts that could not be made."""

    @property
    def days(self) -> int:
        """The number of calendar days judged."""
        return len(np.unique(self.forecasts.day))

    @property
    def from_ms(self) -> int:
        """The midnight of the first day judged."""
        return int(self.forecasts.day.min()) * DAY_MS

    @property
    def until_ms(self) -> int:
        """The midnight after the last day judged."""
        return (int(self.forecasts.day.max()) + 1) * DAY_MS

    @property
    def heading(self) -> str:
        """The holdout, its symbols and its dates."""
        return (
            f"{self.holdout.name}: {', '.join(self.symbols)}, {iso(self.from_ms)[:10]} until "
            f"{iso(self.until_ms)[:10]}, {self.days} days"
        )

    @property
    def caveats(self) -> list[str]:
        """All sentences, including how many bars the figures of gates rest on."""
        if (explained := self.explained) is None:
            return [*self.sentences, *self.missing]
        rows = self.forecasts.at(explained.horizons[0]).day
        gates, rest = (
            f"{count_of(len(days), 'bar')} on {count_of(len(np.unique(days)), 'day')}"
            for days in (explained.day, rows)
        )
        more = " evaluation.explained_bars takes more." if len(explained) < len(rows) else ""
        sentence = f"The figures of gates are of {gates} that were explained, all others of {rest}."
        return [*self.sentences, sentence + more, *self.missing]

    def compared_with(self, name: str, other: Forecasts) -> Judgement:
        """Return a copy with the forecasts of another model on the same rows."""
        return replace(self, forecasts=self.forecasts.join(other, name))


def spread_rows(
    samples: Samples, horizon: int, context: int, count: int
) -> list[NDArray[np.int64]]:
    """Return up to *count* rows with a label at *horizon* and *context* bars, spread evenly.

    The result is one stretch [row] per UTC day, in order: each stretch costs the bars that warm the
    model. If *count* covers all rows, they are one stretch. Without rows the result is empty.
    """
    labelled = np.flatnonzero(samples.weights[:, samples.horizons.index(horizon)] > 0)
    labelled = labelled[labelled >= context - 1]
    if len(labelled) <= count:
        return [labelled] if len(labelled) else []
    days = min(len(np.unique(samples.segment.open_time_ms[labelled] // DAY_MS)), count)
    sizes = np.diff(np.linspace(0, count, days + 1).astype(np.int64)).tolist()
    stretches = []
    for nth, (rows, size) in enumerate(zip(np.array_split(labelled, days), sizes, strict=True)):
        # The stretches start at different offsets, so that no hour of the day is preferred.
        begin = int(nth * _GOLDEN % 1.0 * (len(rows) - size + 1))
        stretches.append(rows[begin : begin + size])
    return stretches


def explained_rows(
    forecaster: Forecaster,
    groups: Sequence[Sequence[Samples]],
    *,
    horizon: int,
    slope: float,
    bars: int,
) -> Forecasts:
    """Return the forecasts of *forecaster* at up to *bars* labelled rows, with their outcomes.

    A group holds the samples of one segment, or of all symbols in one stretch of common closes. All
    groups share the *bars* equally. ``spread_rows`` picks the rows of each, after the bars that
    warm the model; a group that is too short is left out.

    Two labels are added: ``traded``, the log return from the next bar's open, and ``place``, the
    bar's number, with a gap between segments. Added fields are every gate's measure and, where
    probabilities are forecast, the inputs of a fitted confidence; NaN where one is unknown. Raises
    ``DataInvalid`` where there is no row, or a row has no forecast.
    """
    share = max(bars // len(groups[0]) // len(groups), 1)
    parts: list[Forecasts] = []
    for assets in groups:
        stretches = spread_rows(assets[0], horizon, forecaster.context, share)
        if not stretches:
            continue
        rows = np.concatenate(stretches)
        each = [_as_run(forecaster, assets, stretch) for stretch in stretches]
        for samples, by_stretch in zip(assets, zip(*each, strict=True), strict=True):
            place = 0 if not parts else int(parts[-1].labels["place"][-1]) + horizon + 1
            answers = list(chain.from_iterable(by_stretch))
            parts.append(_with_outcomes(forecaster, samples, rows, answers, horizon, slope, place))
    if not parts:
        raise DataInvalid(
            f"No segment has {forecaster.context} bars before a labelled bar; give more data."
        )
    return concatenated(parts)


def _as_run(
    forecaster: Forecaster, assets: Sequence[Samples], rows: Ints
) -> list[list[Forecast | None]]:
    """Return a run's forecasts at *rows* of each asset, warmed with the bars before them."""
    before, first, stop = forecaster.context - 1, int(rows[0]), int(rows[-1]) + 1
    window = slice(first - before, stop)
    series = [samples.segment.candles[window].bars() for samples in assets]
    for bars in series:
        forecaster.warm(bars[0].instrument, bars[:before])
    if len(series) > 1:
        closes = zip(*(bars[before:] for bars in series), strict=True)
        by_asset = zip(*map(forecaster.predict_many, closes), strict=True)
        return [[answers[row - first] for row in rows.tolist()] for answers in by_asset]
    scan = forecaster.scan if forecaster.causal else partial(map, forecaster.step)
    answers = list(scan(series[0][before:]))
    return [[answers[row - first] for row in rows.tolist()]]


def _with_outcomes(
    forecaster: Forecaster,
    samples: Samples,
    rows: Ints,
    answers: Sequence[Forecast | None],
    horizon: int,
    slope: float,
    place: int,
) -> Forecasts:
    """Return the *answers* at *rows* of one segment with their outcomes, as ``explained_rows``."""
    forecasts = [forecast for forecast in answers if forecast is not None]
    if len(forecasts) != len(answers):
        raise DataInvalid("A bar with a full context has no forecast; check the checkpoint.")
    fitted = None if forecaster.calibration is None else forecaster.calibration.confidence
    fields = measures(
        forecasts,
        available=forecaster.measures,
        horizon=horizon,
        slope=slope,
        fitted=fitted if fitted is not None and fitted.horizon == horizon else None,
    )
    answered = SegmentFields.of_run(samples, rows, forecasts, forecaster.measures)
    table = segment_rows(answered, {}, samples.horizons.index(horizon), horizon)
    candles = samples.segment.candles
    traded = np.log(candles.close[rows + horizon] / candles.open[rows + 1])
    labels = {**table.labels, "traded": traded, "place": rows - rows[0] + place}
    return replace(table, labels=labels).with_fields(MODEL, **fields)


def measures(
    forecasts: Sequence[Forecast],
    *,
    available: Collection[str],
    horizon: int,
    slope: float,
    fitted: FittedConfidence | None = None,
) -> dict[str, Array]:
    """Return the inputs of a confidence and the measures of calibrated gates and regime, by name.

    *available* names the forecaster's measures; a gate whose measures are missing is left out.
    ``edge`` assumes ``ROUND_TRIP_COST``. Without *fitted*, its gate has no measure.
    """
    gates = [
        gate
        for gate in GATES.values()
        if gate.calibrated_as
        and gate.needs <= set(available)
        and (fitted is not None or gate.chosen_by != CALIBRATED)
    ]
    at, first = forecasts[0].horizons.index(horizon), forecasts[0]
    names = input_names(first) if first.p_up else ()
    regime_shares = [name for name in REGIME_SHARES if name in available]
    rows = []
    for forecast in forecasts:
        inputs = GateInputs(
            forecast=forecast,
            explanation=forecast.explanation,
            horizon_index=at,
            slope=slope,
            fitted=fitted,
            round_trip_cost=ROUND_TRIP_COST,
        )
        shares = [getattr(forecast.explanation, name) for name in regime_shares]
        values = input_values(names, forecast, at)
        rows.append([*values, *(gate.measure(inputs) for gate in gates), *shares])
    columns = np.array(rows, dtype=np.float64).T
    fields = (*names, *(gate.calibrated_as for gate in gates), *regime_shares)
    return dict(zip(fields, columns, strict=True))  # two columns of one name are equal


def inputs_of(explained: Forecasts) -> dict[str, Array]:
    """Return the inputs of a confidence, in order; those of heads are last."""
    fields = explained.values[MODEL]
    return {name: values for name, values in fields.items() if is_input(name)}


def gate_measures(explained: Forecasts) -> dict[str, Array]:
    """Return the measures of every calibrated gate and of the regime, by the card's names."""
    names = [*(gate.calibrated_as for gate in GATES.values()), *REGIME_SHARES]
    return {name: explained.value(name) for name in names if explained.has(name)}


def selective_gains(rows: Forecasts) -> dict[str, Any]:
    """Return the accuracy gained by each measure of sureness at equal coverage, and its area."""
    if rows.has("probability") and not rows.has("sign"):
        down, _, up = rows.value("probability").T
        rows = rows.with_fields(MODEL, sign=up - down)
    if rows.has("mean") and not rows.has("scale"):  # then a larger mean is surer
        rows = rows.with_fields(MODEL, scale=np.ones(len(rows)))
    curves = {name: curve_of(rows, "sign", name) for name in MEASURES}
    return {name: curve.gained() for name, curve in curves.items() if curve is not None}


def opened_trades(
    chosen: NDArray[np.bool_], place: NDArray[np.int64], horizon: int
) -> NDArray[np.bool_]:
    """Return the chosen rows that open a trade: none within *horizon* bars of the trade before."""
    opened = np.zeros(len(chosen), dtype=np.bool_)
    free = -1
    for row in np.flatnonzero(chosen).tolist():
        if place[row] >= free:
            opened[row] = True
            free = int(place[row]) + horizon
    return opened


def trade_results(explained: Forecasts) -> dict[str, Any]:
    """Return for each trading rule its trades and their mean net result in basis points."""
    results: dict[str, Any] = {"bars": len(explained)}
    for rule in RULES:
        opened = np.isfinite(explained.value("net", rule))
        net, days = explained.value("net", rule)[opened] * _BASIS_POINTS, explained.day[opened]
        results[rule] = {
            "bars_per_1000": round(1000 * float(explained.value("chosen", rule).mean()), 3),
            "trades": len(net),
            "days": len(np.unique(days)),
        }
        if len(net):
            results[rule]["net_bp"] = mean(net, days).rounded(3)
    return results


def with_rules(explained: Forecasts, thresholds: Mapping[str, float]) -> Forecasts:
    """Return the rows with the fields of ``RULES``; ``all_gates`` uses *thresholds*, by gate.

    A trade opens at the next bar's open, is held to the horizon, pays the taker's round trip and
    no slippage. Trades do not overlap.
    """
    net = np.sign(explained.value("mean")) * explained.labels["traded"] - ROUND_TRIP_COST
    is_edge = explained.value("edge") >= 1.0
    largest = top(explained.value("edge"), _BUSY_SHARE)
    gated = is_edge & passing(explained, thresholds)
    with_all = explained
    for rule, chosen in zip(RULES, (np.ones_like(is_edge), largest, is_edge, gated), strict=True):
        opened = opened_trades(chosen, explained.labels["place"], explained.horizons[0])
        with_all = with_all.with_fields(rule, chosen=chosen, net=np.where(opened, net, np.nan))
    return with_all


def passing(explained: Forecasts, thresholds: Mapping[str, float]) -> NDArray[np.bool_]:
    """Return whether each row passes every gate of *thresholds*."""
    passed = np.ones(len(explained), dtype=np.bool_)
    for name, threshold in thresholds.items():
        values = explained.value(GATES[name].calibrated_as)
        passed &= values >= threshold if GATES[name].at_least else values <= threshold
    return passed


def daily_net(explained: Forecasts, rule: str) -> Array:
    """Return the net log return of each judged day, 0 where *rule* opened no trade."""
    days, day = np.unique(explained.day, return_inverse=True)
    net = np.nan_to_num(explained.value("net", rule))
    return np.bincount(day, net, len(days)).astype(np.float64)


# --- calibrated confidence and regimes


Rows = NDArray[np.bool_]
FOLDS: Final = 5
"""Stretches of time; a fit to the others judges each."""
PENALTY: Final = 10.0
"""Weight of squared coefficients, in independent labels, so that a few dozen labels fit little."""
CONFIDENCE_CELLS: Final = 5
"""Equal shares of the slice by confidence in the volatility; each has its own interval width."""
ROWS_LEAST: Final = 200
"""With fewer rows in the calibration slice nothing is fitted."""


def outcomes(explained: Forecasts) -> Forecasts:
    """Return the explained rows with a price move and all inputs, and three more labels.

    ``hit`` and ``loss`` are the sign accuracy and the QLIKE of ``METRICS``. ``missed`` is the
    distance of the return from the mean in forecast deviations.
    """
    hit = METRICS["sign_accuracy"].terms(MetricView(explained))
    finite = np.isfinite(hit)
    for values in inputs_of(explained).values():
        finite &= np.isfinite(values)
    rows = explained.where(finite)
    labels = {
        "hit": hit[finite],
        "loss": METRICS["qlike"].terms(MetricView(rows)),
        "missed": np.abs(rows.labels["returns"] - rows.value("mean")) / rows.value("scale"),
    }
    return replace(rows, labels={**rows.labels, **labels})


def independent_labels(rows: Forecasts) -> float:
    """Return the number of labels that share no bar."""
    return len(rows) / rows.horizons[0]


def gain_curve(rows: Forecasts, risk: str, sure: Array, rival: Array | None = None) -> RiskCurve:
    """Return the risk curve of *rows* ranked by *sure*, minus the curve ranked by *rival*."""
    costs = RISKS[risk].terms(MetricView(rows))
    measures = [measure for measure in (sure, rival) if measure is not None]
    curve = risk_curve(*([RankedBars(costs, measure, rows.day)] for measure in measures))
    assert curve is not None, "there are rows, and risk and measure are known at all of them"
    return curve


def standardised(inputs: Array) -> tuple[Array, tuple[float, ...], tuple[float, ...]]:
    """Return [row, input] as z scores within ±4, and the mean and deviation of each input."""
    center, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    z = np.clip((inputs - center) / scale, -4.0, 4.0)
    return z, tuple(map(rounded, center.tolist())), tuple(map(rounded, scale.tolist()))


def fit_score(
    rows: Forecasts, happened: Array, names: Sequence[str], *, signed: bool
) -> LinearScore:
    """Return the penalised logistic fit of *happened* (0 or 1, [row]) on the inputs *names*.

    If *signed*, inputs that must raise the probability get no negative weight.
    """
    z, center, scale = standardised(np.stack([rows.value(name) for name in names], axis=1))
    count = independent_labels(rows)

    def loss(weights: Array) -> tuple[float, Array]:
        score = z @ weights[1:] + weights[0]
        fit = count * float((np.logaddexp(0.0, score) - happened * score).mean())
        residual = count * (expit(score) - happened) / len(happened)
        slope = np.concatenate([[residual.sum()], z.T @ residual + PENALTY * weights[1:]])
        return fit + 0.5 * PENALTY * float(weights[1:] @ weights[1:]), slope

    bounds = [(None, None)] + [(0.0 if signed and rises(name) else None, None) for name in names]
    start = np.zeros(len(names) + 1)
    weights = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x
    return LinearScore(
        names=tuple(names),
        center=center,
        scale=scale,
        weight=tuple(map(rounded, weights[1:].tolist())),
        intercept=rounded(float(weights[0])),
    )


def probabilities_by(score: LinearScore, rows: Forecasts) -> Array:
    """Return the probability at every row, computed as in a run."""
    columns = [rows.value(name).tolist() for name in score.names]
    probabilities = [score.probability(row) for row in zip(*columns, strict=True)]
    return np.array(probabilities, dtype=np.float64)


def folds(rows: Forecasts) -> list[tuple[Rows, Rows]]:
    """Return the masks (judged, fitted) of each of ``FOLDS`` stretches of time, all symbols alike.

    No fitted label overlaps a judged one in time.
    """
    cuts = np.quantile(rows.open_ms, np.linspace(0, 1, FOLDS + 1)[1:-1])
    fold = np.searchsorted(cuts, rows.open_ms, side="right")
    parts = []
    for number in range(FOLDS):
        judged = fold == number
        if judged.any():
            first, last = rows.open_ms[judged].min(), rows.until_ms[judged].max()
            parts.append((judged, (rows.until_ms < first) | (rows.open_ms > last)))
    return parts


def cross_fitted(
    rows: Forecasts,
    parts: Sequence[tuple[Rows, Rows]],
    happened: Array,
    names: Sequence[str],
    *,
    signed: bool,
) -> Array:
    """Return the probability at every row by a fit without the row's fold, one of *parts*."""
    probabilities = np.full(len(happened), np.nan)
    for judged, fitted in parts:
        fit = fit_score(rows.where(fitted), happened[fitted], names, signed=signed)
        probabilities[judged] = probabilities_by(fit, rows.where(judged))
    return probabilities


def fit_confidence(explained: Forecasts) -> tuple[FittedConfidence | None, dict[str, Any]]:
    """Return the fitted confidence of the calibration slice, and the evidence of its folds.

    The chosen measure has the largest ratio of gain to standard error. The confidence is None where
    rows are too few or the forecaster gives no probabilities.
    """
    rows = outcomes(explained)
    names = tuple(inputs_of(rows))
    if len(rows) < ROWS_LEAST or not {"mean_over_stdev", "margin"} <= set(names):
        return None, {}
    parts, hit, loss = folds(rows), rows.labels["hit"], rows.labels["loss"]
    calm = (loss <= np.median(loss)).astype(np.float64)  # the error of the volatility was small
    if any(fitted.sum() < ROWS_LEAST // FOLDS for _, fitted in parts):
        return None, {}
    # All inputs, then those without attention.
    both = names, tuple(name for name in names if not is_from_attention(name))
    of_sign = [cross_fitted(rows, parts, hit, inputs, signed=True) for inputs in both]
    of_calm = [cross_fitted(rows, parts, calm, inputs, signed=False) for inputs in both]
    gains = _gains(rows, of_sign[0])
    chosen = max(gains, key=lambda name: _gain_over_error(gains[name].gain))
    if _gain_over_error(gains[chosen].gain) <= 0:
        chosen = ENTROPY if ENTROPY in gains else MARGIN
    edges, spread = _widening(rows, of_calm[0])
    fitted = FittedConfidence(
        horizon=explained.horizons[0],
        chosen=chosen,
        strict=False,
        sign=fit_score(rows, hit, names, signed=True),
        volatility=fit_score(rows, calm, names, signed=False),
        edges=edges,
        spread=spread,
    )
    evidence = {
        "rows": len(rows),
        "independent": round(independent_labels(rows)),
        **_gain_figures(rows, gains, of_calm[0]),
        "attention_adds": {
            "sign": gain_curve(rows, "sign", *of_sign).gain.rounded(),
            "volatility": gain_curve(rows, "qlike_rank", *of_calm).gain.rounded(),
        },
    }
    return fitted, evidence


def _gains(rows: Forecasts, calibrated: Array) -> dict[str, RiskCurve]:
    """Return each confidence's gain in accuracy over chance, averaged over coverages."""
    measures = {CALIBRATED: calibrated, MARGIN: rows.value("margin")}
    if rows.has("confidence_entropy"):
        measures[ENTROPY] = rows.value("confidence_entropy")
    names = [name for name in CONFIDENCES if name in measures]
    return {name: gain_curve(rows, "sign", measures[name]) for name in names}


def _widening(rows: Forecasts, sure: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return edges of cells of confidence, and the factor that widens the intervals in each.

    The widened intervals cover the same share of returns in every cell. Factors never rise with
    confidence.
    """
    edges = np.quantile(sure, np.linspace(0, 1, CONFIDENCE_CELLS + 1)[1:-1])
    edges = np.array([rounded(float(edge)) for edge in edges])
    cell = np.searchsorted(edges, sure, side="right")
    overall = float(np.quantile(rows.labels["missed"], COVERAGE))
    counts = np.bincount(cell, minlength=CONFIDENCE_CELLS)
    factors = [
        float(np.quantile(rows.labels["missed"][cell == number], COVERAGE)) / overall
        if counts[number] and overall > 0
        else 1.0
        for number in range(CONFIDENCE_CELLS)
    ]
    falling = isotonic_regression(factors, weights=np.maximum(counts, 1), increasing=False).x
    return tuple(edges.tolist()), tuple(rounded(max(float(factor), 1e-3)) for factor in falling)


def judge_holdouts(
    explained: Forecasts, fitted: FittedConfidence, second_holdout_ms: int | None = None
) -> tuple[bool, dict[str, Any]]:
    """Return whether the chosen confidence deserves a strict threshold, and the evidence.

    The untouched rows are split into two holdouts. The second begins on the UTC day of
    *second_holdout_ms*, by default after half of the days. A strict threshold needs enough days and
    a credible gain over a random gate of equal coverage on both, after Holm over the candidates.
    """
    rows = outcomes(explained)
    days = np.unique(rows.day)
    if len(days) < 2:
        return False, {}
    middle = days[len(days) // 2] if second_holdout_ms is None else second_holdout_ms // DAY_MS
    if not days[0] < middle <= days[-1]:
        return False, {}  # one holdout has no days, so nothing is repeated
    parts = (rows.where(rows.day < middle), rows.where(rows.day >= middle))
    holdouts = [_holdout_evidence(part, fitted) for part in parts]
    is_credible = all(holdout["holm"][fitted.chosen] < LEVEL for holdout in holdouts)
    return is_credible and len(days) >= FEW_DAYS, {"holdouts": holdouts}


def _holdout_evidence(rows: Forecasts, fitted: FittedConfidence) -> dict[str, Any]:
    gains = _gains(rows, probabilities_by(fitted.sign, rows))
    evidence = _gain_figures(rows, gains, probabilities_by(fitted.volatility, rows))
    # One-sided p: the probability of an area this low without any gain.
    areas = [gain.area for gain in gains.values()]
    chances = [area.p / 2 if area.value < 0 else 1.0 - area.p / 2 for area in areas]
    corrected = {name: round(p, 6) for name, p in zip(gains, holm(chances), strict=True)}
    return {**evidence, "holm": corrected}


def _gain_figures(rows: Forecasts, gains: Mapping[str, RiskCurve], calm: Array) -> dict[str, Any]:
    """Return the gains of the confidences, and of *calm*, the confidence in the volatility."""
    return {
        "days": len(np.unique(rows.day)),
        "sign": {name: curve.gain.rounded() for name, curve in gains.items()},
        "volatility": gain_curve(rows, "qlike_rank", calm).gain.rounded(),
    }


def confidence_sentence(fitted: FittedConfidence, evidence: Mapping[str, Any]) -> str:
    """Return one sentence about the confidence's gain and the default that follows from it."""
    measure = _CONFIDENCE_WORDS[fitted.chosen]
    holdouts = evidence.get("holdouts", ())
    gained = " and ".join(
        signed_estimate(gain, error, ".1f", 100)
        for gain, error in (holdout["sign"][fitted.chosen] for holdout in holdouts)
    )
    points = f" ({gained} points of accuracy, mean over coverages)" if gained else ""
    if fitted.strict:
        return (
            f"Selecting bars by {measure} raised sign accuracy above that of random bars on both"
            f" holdouts{points}, so gate.confidence is strict by default (q0.5)."
        )
    text = (
        f"Selecting bars by {measure} did not credibly raise sign accuracy above that of random"
        f" bars on both holdouts{points}, so gate.confidence refuses almost nothing by default"
        " (q0.01)"
    )
    ranks = (holdout["volatility"] for holdout in holdouts)
    if holdouts and all(value > 0 and is_credible(value, error) for value, error in ranks):
        return f"{text}; it does rank the volatility's errors, which sizing.by_confidence uses."
    return f"{text}."


def attention_sentence(evidence: Mapping[str, Any]) -> str:
    """Return one sentence about the gain of attention's inputs, from ``fit_confidence``."""
    (sign, sign_error), (calm, calm_error) = (
        evidence["attention_adds"][name] for name in ("sign", "volatility")
    )
    return (
        "On the calibration slice, the measures of attention added"
        f" {signed_estimate(sign, sign_error, '.1f', 100)} points of sign accuracy to what"
        " mean and margin give, and"
        f" {signed_estimate(calm, calm_error, '.1f', 100)} points to the ranking of the"
        " volatility's errors."
    )


_CONFIDENCE_WORDS: Final = {
    ENTROPY: "entropy of attention",
    CALIBRATED: "the fitted probability",
    MARGIN: "the margin between the directions",
}


def _gain_over_error(gain: DailyEstimate) -> float:
    if gain.error is None:  # too few days, so no candidate has an error
        return gain.value
    return gain.value / gain.error if gain.error > 0 else 0.0


REGIME_COUNT: Final = 5
"""Cells to fit; at most ``REGIMES_MOST``."""
_ROUNDS: Final = 100
_ROWS_PER_CELL: Final = 40


def fit_cells(explained: Forecasts, count: int = REGIME_COUNT) -> RegimeCells | None:
    """Return *count* cells by k-means++ (Arthur, 2007) on standardised measures of attention.

    Cells are ordered by realised over forecast variance. None where rows or days are too few, or
    attention gives no such measures.
    """
    if not 2 <= count <= MAX_REGIMES or not all(map(explained.has, REGIME_MEASURES)):
        return None
    measures = np.stack([explained.value(name) for name in REGIME_MEASURES], axis=1)
    usable = np.isfinite(measures.sum(axis=1))
    measures, rows = measures[usable], explained.where(usable)
    if len(rows) < _ROWS_PER_CELL * count:
        return None
    points, center, scale = standardised(measures)
    with catch_warnings(action="ignore"):  # about an empty cell, which is rejected below
        centroids, cell = kmeans2(points, count, iter=_ROUNDS, minit="++", rng=_SEED)
    if len(np.unique(cell)) < count:
        return None
    ratios = [_ratio(rows.where(cell == number)) for number in range(count)]
    errors = [ratio.error for ratio in ratios if ratio.error is not None]
    if len(errors) < count:
        return None
    order = sorted(range(count), key=lambda number: ratios[number].value)
    return RegimeCells(
        names=REGIME_MEASURES,
        center=center,
        scale=scale,
        cells=tuple(tuple(map(rounded, centroids[number].tolist())) for number in order),
        ratio=tuple(rounded(ratios[number].value) for number in order),
        error=tuple(rounded(errors[number]) for number in order),
    )


def judge_cells(explained: Forecasts, cells: RegimeCells, hysteresis: float) -> dict[str, Any]:
    """Return for each cell its share of the rows *explained*, its days and its variance ratio."""
    path: list[int] = []
    current: int | None = None
    measures = np.stack([explained.value(name) for name in cells.names], axis=1)
    for row in measures.tolist():
        values = [None if np.isnan(value) else value for value in row]
        current = cells.next_cell(current, values, hysteresis)
        path.append(current or 0)
    cell = np.array(path)
    figures = {}
    for number in range(1, len(cells.cells) + 1):
        rows = explained.where(cell == number)
        figures[str(number)] = {
            "share": round(len(rows) / len(cell), 5),
            "days": len(np.unique(rows.day)),
            "variance_ratio": _ratio(rows).rounded() if len(rows) else [],
        }
    return figures


def regime_sentence(figures: Mapping[str, Any]) -> str:
    """Return one sentence about the first and the last cell of ``judge_cells``."""
    parts = [
        f"{ratio[0]:.2f} ({plus_minus(ratio[1], '.2f', unit=' by days')}) in regime {number}"
        for number in (min(figures, key=int), max(figures, key=int))
        if (ratio := figures[number]["variance_ratio"])
    ]
    if not parts:
        return "No untouched bar was in any of the card's own regimes."
    return f"Realised ÷ forecast variance by the card's own regimes: {', '.join(parts)}."


def _ratio(rows: Forecasts) -> DailyEstimate:
    """Return the mean of realised over forecast variance of *rows*, with its error."""
    ratios = rows.labels["variance"] / rows.value("variance")
    # A mean of ratios: in a ratio of sums a few violent days would decide.
    terms = np.stack([ratios, np.ones_like(ratios)])
    return figure(terms, rows.day, lambda s: s[:, 0] / np.maximum(s[:, 1], 1.0))


# --- the card


HYSTERESIS: Final = float(RegimeSection().hysteresis)


def gates_section(explained: Forecasts, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``[calibration]`` with what gates need: quantiles, confidence, regimes, coverage.

    *explained* holds the forecasts of the calibration slice, made as in a run.
    """
    measures = gate_measures(explained)
    percentiles = {name: list(quantiles(values)) for name, values in measures.items()}
    section = {
        **section,
        "bars": len(explained),
        "round_trip_cost": ROUND_TRIP_COST,
        "percents": [PERCENTS[0], PERCENTS[-1]],
        "quantiles": percentiles,
    }
    fitted, evidence = fit_confidence(explained)
    if fitted is not None:
        name = confidence_calibrated.calibrated_as
        explained = explained.with_fields(MODEL, **{name: probabilities_by(fitted.sign, explained)})
        percentiles[name] = list(quantiles(explained.value(name)))
        section |= {"confidence": msgspec.to_builtins(fitted), "cross_fitted": evidence}
    if (cells := fit_cells(explained)) is not None:
        section["regimes"] = msgspec.to_builtins(cells)
    return {**section, "coverage": coverage(explained, section)}


def judged_gates(
    table: Forecasts,
    explained: Forecasts,
    section: Mapping[str, Any],
    second_holdout_ms: int | None,
) -> Judgement:
    """Return the judgement of the gates by ``[calibration]`` on untouched rows *explained*.

    *explained* are rows of *table*. Figures and sentences are about gates alone.
    """
    section, figures, sentences = judged_section(
        explained, section, second_holdout_ms=second_holdout_ms
    )
    explained = with_rules(explained, default_thresholds(section))
    gains, trades = selective_gains(explained), trade_results(explained)
    figures = {"selective": gains, "traded": trades, **figures}
    place = table.places(explained)
    for name in filter(explained.has, ("confidence_entropy", *REGIME_SHARES)):  # NaN elsewhere
        values = np.where(place >= 0, explained.value(name)[place], np.nan)
        table = table.with_fields(MODEL, **{name: values})
    return Judgement(table, figures, sentences, explained, section)


def judged_section(
    explained: Forecasts, section: Mapping[str, Any], *, second_holdout_ms: int | None = None
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return ``[calibration]`` with its verdict, the figures of *explained*, and sentences.

    *explained* are untouched rows; only the verdict on the confidence changes the section.
    """
    judged, figures, sentences = dict(section), {}, []
    if "confidence" in section:
        fitted = msgspec.convert(section["confidence"], FittedConfidence)
        strict, evidence = judge_holdouts(explained, fitted, second_holdout_ms)
        fitted = msgspec.structs.replace(fitted, strict=strict)
        judged["confidence"] = msgspec.to_builtins(fitted)
        figures["confidence"] = evidence
        sentences.append(confidence_sentence(fitted, evidence))
        sentences.append(attention_sentence(section["cross_fitted"]))
    if "regimes" in section:
        cells = msgspec.convert(section["regimes"], RegimeCells)
        figures["regimes"] = judge_cells(explained, cells, HYSTERESIS)
        sentences.append(regime_sentence(figures["regimes"]))
    return judged, figures, sentences


def default_thresholds(
    section: Mapping[str, Any], *, strict: bool | None = None
) -> dict[str, float]:
    """Return the default thresholds of the calibrated gates, by gate.

    Of the confidences only the chosen one has a threshold; *strict* defaults to the verdict in
    *section*. Regimes are left out: by default none is refused.
    """
    fitted, thresholds = section.get("confidence"), {}
    chosen = ENTROPY if fitted is None else fitted["chosen"]
    strict = (fitted is not None and bool(fitted["strict"])) if strict is None else strict
    for gate in GATES.values():
        key = gate.threshold
        if gate.calibrated_as not in section["quantiles"] or gate.chosen_by not in ("", chosen):
            continue
        assert isinstance(key, ThresholdKey)
        text = str(key.default)
        if text == AUTO:
            text = key.strict if strict else MILDEST
        thresholds[gate.name] = _quantile(text, gate.calibrated_as, section)
    return thresholds


def _quantile(text: str, name: str, section: Mapping[str, Any]) -> float:
    calibration = Calibration({name: tuple(section["quantiles"][name])}, {}, 0.0)
    return threshold_of(text, name, calibration, key=name)


def coverage(explained: Forecasts, section: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the share of rows that pass every judgement gate, with strict and mildest confidence.

    A model with recent mass must also be in a default regime. Empty where recent mass is constant:
    a run with default thresholds rejects that.
    """
    shares: list[dict[str, Any]] = []
    inside = _in_default_regimes(explained, section) if explained.has(RECENT_MASS) else None
    if explained.has(RECENT_MASS) and inside is None:
        return shares
    for strict in (True, False):
        thresholds = default_thresholds(section, strict=strict)
        passed = passing(explained, thresholds)
        if inside is not None:
            passed &= inside
            thresholds[regime.name] = 1.0
        share, regimes = rounded(float(passed.mean())), list(GateSection().regimes)
        counted = {"share": share, "thresholds": thresholds, "regimes": regimes}
        shares += [counted] if counted not in shares else []
    return shares


def _in_default_regimes(
    explained: Forecasts, section: Mapping[str, Any]
) -> NDArray[np.bool_] | None:
    """Return whether each row is in a default ``gate.regimes``; None if recent mass is constant."""
    rules = RegimeSection()
    low = _quantile(str(rules.mean_reversion), RECENT_MASS, section)
    high = _quantile(str(rules.momentum), RECENT_MASS, section)
    if low >= high:
        return None
    bounds = RegimeBounds.between(mean_reversion=low, momentum=high, hysteresis=HYSTERESIS)
    allowed, current, before = GateSection().regimes, Regime.UNKNOWN, None
    inside = np.zeros(len(explained), dtype=np.bool_)
    places, masses = explained.labels["place"].tolist(), explained.value(RECENT_MASS).tolist()
    for row, (place, mass) in enumerate(zip(places, masses, strict=True)):
        if before is not None and place != before + 1:
            current = Regime.UNKNOWN
        current, before = bounds.next_regime(current, mass), place
        inside[row] = current.value in allowed
    return inside
