"""``METRICS``: every figure of a forecaster, as terms of each row of ``Forecasts``; comparisons.

A metric needs fields of a forecaster; every forecaster that gives them stands in its table, and its
references, which are constants known in hindsight. Most are means of their terms; others combine
sums of them, which are resampled by blocks of days.

The rules are docs/models.md, L14, L45, L54 and L56.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import stdtrit
from scipy.stats import rankdata

from tracepaper.replay.document.values import Cells, Table, Value, of_row, table
from tracepaper.replay.learning import statistics
from tracepaper.replay.learning.card import rounded
from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts, words
from tracepaper.replay.learning.losses import ADDED
from tracepaper.replay.learning.splits import SYMBOL_BITS
from tracepaper.replay.learning.statistics import (
    COVERAGE,
    VARIANCE_FLOOR,
    DailyEstimate,
    DayDifference,
    RankedBars,
    corrected,
    difference,
    figure,
    inside,
    mean,
    risk_curve,
    verdict,
)
from tracepaper.replay.report import metrics
from tracepaper.replay.report.honesty import FEW_DAYS, LEVEL, PAIRED
from tracepaper.replay.report.metrics import BLOCK_DAYS
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.types.decisions import SHARES

TAILS: Final = "tails"
"""``[calibration.tails]``: by horizon and side, a pair of factors for each of ``SHARES``."""
SIDES: Final = {"long": -1.0, "short": 1.0}
"""The sign of the returns by which each side loses."""
BREACHES_LEAST: Final = 5
"""With fewer losses that share no future a value at risk is not calibrated."""
LEAST_PROBABILITY: Final = 1e-9
"""A class that came is never taken to have had less: its log loss is finite."""
_SYMBOL: Final = 1 << SYMBOL_BITS
"""A key is its bar's number times this, plus the number of its symbol."""


def value_at_risk(location: Array, scale: Array, dof: Array, share: float) -> tuple[Array, Array]:
    """Return the loss that a *share* exceeds, and the mean loss beyond it, of Student t losses.

    The degrees of freedom must be above 1. Source: McNeil, Frey and Embrechts, Quantitative Risk
    Management, 2005, chapter 2.
    """
    edge = stats.t.isf(share, dof)
    beyond = stats.t.pdf(edge, dof) / share * (dof + edge**2) / (dof - 1.0)
    return location + scale * edge, location + scale * beyond


def losses(rows: Forecasts) -> Array:
    """Return the realised loss of each side: [row, side]."""
    return np.multiply.outer(rows.labels["returns"], list(SIDES.values()))


def student_tails(rows: Forecasts) -> Array:
    """Return value at risk and shortfall of the forecast's Student t: [row, side, share, 2]."""
    mean, scale, dof = (rows.value(field) for field in LAW)
    sides = [
        [np.stack(value_at_risk(sign * mean, scale, dof, share), axis=-1) for share in SHARES]
        for sign in SIDES.values()
    ]
    return np.stack([np.stack(side, axis=1) for side in sides], axis=1)


def scaled_tails(rows: Forecasts, factors: Mapping[str, Any]) -> Array:
    """Return ``student_tails`` whose distances from the mean are multiplied by a card's factors."""
    mean = np.multiply.outer(rows.value("mean"), list(SIDES.values()))[:, :, None, None]
    return mean + np.array([factors[side] for side in SIDES]) * (student_tails(rows) - mean)


def tail_factors(table: Forecasts) -> dict[str, Any]:
    """Return ``[calibration.tails]`` of the calibration slice's forecasts."""
    return {str(horizon): _factors(rows, horizon) for horizon, rows in table.by_horizon()}


def _factors(rows: Forecasts, horizon: int) -> dict[str, list[list[float]]]:
    tails, lost, mean = student_tails(rows), losses(rows), rows.value("mean")
    factors: dict[str, list[list[float]]] = {}
    for at, (side, sign) in enumerate(SIDES.items()):
        pairs = factors[side] = [[1.0, 1.0] for _ in SHARES]
        distance = lost[:, at] - sign * mean
        for place, share in enumerate(SHARES):
            if share * len(rows) / horizon < BREACHES_LEAST:
                continue
            edge, beyond = tails[:, at, place].T - sign * mean
            # The higher of two rows leaves no more than the share beyond it.
            ratio = distance / edge
            limit = max(float(np.quantile(ratio, 1.0 - share, method="higher")), 0.0)
            if (outside := ratio > limit).any():
                shortfall = float((distance[outside] / beyond[outside]).mean())
                pairs[place] = [rounded(limit), rounded(shortfall)]
    return factors


def breach_rows(rows: Forecasts, tails: Array) -> Iterator[dict[str, Any]]:
    """Yield the tests of *tails* [row, side, share, 2] of one horizon's *rows*, a row each."""
    (horizon,) = rows.horizons
    alone = without_overlap(rows.keys, horizon)
    in_turn, lost = follows(rows.keys[alone], horizon), losses(rows)
    for at, side in enumerate(SIDES):
        for place, share in enumerate(SHARES):
            limit, expected = tails[:, at, place].T
            beyond, ratio = lost[:, at] > limit, lost[:, at] / expected
            yield {
                "horizon": horizon,
                "tail": f"of a {side} position",
                "share": share,
                "realised": statistics.mean(beyond.astype(np.float64), rows.day),
                "bars": len(alone),
                "often": metrics.kupiec(int(beyond[alone].sum()), len(alone), share),
                "apart": christoffersen(beyond[alone], in_turn),
                "shortfall": statistics.mean(ratio[beyond], rows.day[beyond])
                if beyond.any()
                else None,
            }


BREACHES: Final = (
    of_row("horizon", "bars ahead", "count"),
    of_row("tail", "value at risk", "text"),
    of_row("share", "forecast", "measure"),
    of_row("realised", "realised", "measure"),
    of_row("bars", "bars apart", "count"),
    of_row("often", "p, as often", "measure"),
    of_row("apart", "p, apart", "measure"),
    of_row("shortfall", "loss beyond ÷ forecast", "measure"),
)
"""``often`` is the p of Kupiec's test, ``apart`` of Christoffersen's, on ``bars`` that share no
future; ``shortfall`` the mean loss of breaches over what was expected, 1 where that is right."""


def without_overlap(keys: NDArray[np.int64], horizon: int) -> NDArray[np.int64]:
    """Return rows of which no two of a symbol share a future bar, by symbol and time."""
    order = np.lexsort((keys // _SYMBOL, keys % _SYMBOL))
    return order[keys[order] // _SYMBOL % horizon == 0]


def follows(keys: NDArray[np.int64], horizon: int) -> NDArray[np.bool_]:
    """Return for each row but the first whether it follows the row before without a gap."""
    is_same_symbol = keys[1:] % _SYMBOL == keys[:-1] % _SYMBOL
    is_next = keys[1:] // _SYMBOL - keys[:-1] // _SYMBOL == horizon
    return is_same_symbol & is_next


def christoffersen(beyond: NDArray[np.bool_], in_turn: NDArray[np.bool_]) -> float | None:
    """Return Christoffersen's p value: of breaches that follow one another as these do by chance.

    *in_turn* says for each row but the first whether it follows the row before. None where no row
    follows a breach, or nothing was one.
    """
    before, after = beyond[:-1][in_turn], beyond[1:][in_turn]
    counts = np.array([[(a & b).sum() for b in (~after, after)] for a in (~before, before)])
    if not counts.sum(axis=1).all() or not counts[:, 1].any():
        return None
    if not counts[:, 0].any():
        return 1.0  # every row was one: none follows another more often
    return float(stats.chi2_contingency(counts, correction=False, lambda_="log-likelihood").pvalue)


# --- every metric


RELATIVE: Final = "relative"
"""The head of relative returns among the forecasters that rank the assets."""
_POINTS: Final = 1e4  # basis points of one


@dataclass(frozen=True)
class MetricView:
    """One forecaster's rows: ``view["mean"]`` is its field [row], ``view.labels`` the outcomes."""

    rows: Forecasts
    name: str = MODEL

    def __getitem__(self, field: str) -> NDArray[Any]:
        """Return a field [row, ..]."""
        return self.rows.value(field, self.name)

    def where(self, mask: NDArray[np.bool_]) -> MetricView:
        """Return it on the rows of *mask*."""
        return self if mask.all() else MetricView(self.rows.where(mask), self.name)

    @property
    def labels(self) -> Mapping[str, NDArray[Any]]:
        """What was realised, [row, ..] by name."""
        return self.rows.labels

    @property
    def points(self) -> Array:
        """The return of one unit in basis points."""
        return _POINTS * self.rows.labels["unit"]


Terms = Callable[[MetricView], Array]
Combine = Callable[[Array], Array]
Reference = Callable[[MetricView], Mapping[str, NDArray[Any]]]
"""The judged model's view → the fields of a simpler forecast; empty where there is none."""


class Metric(NamedTuple):
    """A figure of a forecaster; ``terms`` are [row], NaN where a row does not count.

    With ``combine`` they are [term, row], and it maps sums [.., term] to values [..].
    """

    name: str
    title: str
    needs: Collection[str]  # fields
    terms: Terms
    combine: Combine | None = None
    references: Mapping[str, Reference] = MappingProxyType({})
    less_is_better: bool | None = True  # None: neither is better
    least_days: int = 0
    """Days below which none is better than another."""
    of_model: Collection[str] = ()
    """Fields that the judged model must give, or the figure is not shown."""
    is_alone: bool = False
    """Whether it is of the judged model alone, beside its references."""


def by_name(*metrics: Metric) -> dict[str, Metric]:
    """Return *metrics* by their names."""
    return {metric.name: metric for metric in metrics}


def views(
    metric: Metric, rows: Forecasts, names: tuple[str, ...] | None = None
) -> dict[str, MetricView]:
    """Return each forecaster of one horizon's *rows* that gives what *metric* needs, by name.

    Without *names* they are the judged model, the baselines and the references.
    """
    if not all(rows.gives(field) for field in metric.of_model):
        return {}
    chosen = [name for name in rows.values if name not in rows.compared] if names is None else names
    if metric.is_alone:
        chosen = [name for name in chosen if name == MODEL]
    able = [name for name in chosen if all(rows.gives(field, name) for field in metric.needs)]
    every = {name: MetricView(rows, name) for name in able}
    if names is None and (every or not metric.is_alone):
        for name, reference in metric.references.items():
            if fields := reference(MetricView(rows)):
                every[name] = MetricView(rows.holding(name, **fields), name)
    return every


def estimate(metric: Metric, view: MetricView) -> DailyEstimate:
    """Return the metric of a view with its error over days."""
    terms, days = metric.terms(view), view.rows.day
    if metric.combine is not None:
        return figure(terms, days, metric.combine)
    counts = np.isfinite(terms)
    return mean(terms[counts], days[counts])


def figures(table: Forecasts, model: str = MODEL) -> dict[str, Any]:
    """Return every figure by horizon as [value, standard error], as a card holds them.

    *model* is what the judged model is called there.
    """
    return {str(horizon): _figures(rows, model) for horizon, rows in table.by_horizon()}


def _figures(rows: Forecasts, model: str) -> dict[str, Any]:
    results: dict[str, Any] = {"bars": len(rows), "days": len(np.unique(rows.day))}
    for metric in METRICS.values():
        every = views(metric, rows)
        section, _, key = metric.name.rpartition(".")
        at = results.setdefault(section, {}) if section and every else results
        if metric.is_alone:
            for name, view in every.items():
                suffix = "" if name == MODEL else f"_{name}"
                at[f"{key}{suffix}"] = estimate(metric, view).rounded()
                if suffix:
                    difference = metric.terms(every[MODEL]) - metric.terms(view)
                    at[f"{key}_less{suffix}"] = mean(difference, rows.day).rounded()
        elif every:
            at[key] = {
                model if name == MODEL else name: estimate(metric, view).rounded()
                for name, view in every.items()
            }
    return results


# --- of the return


def _hits(view: MetricView) -> Array:
    """Half a hit where no sign is given; a bar that did not move does not count."""
    return statistics.hits_of(view["sign"], view.labels["returns"])


def _pearson(sums: Array) -> Array:
    n, x, y, xx, yy, xy = sums.T
    spread = (n * xx - x * x) * (n * yy - y * y)
    return (n * xy - x * y) / np.sqrt(np.maximum(spread, 1e-300))


def _moments(first: Array, second: Array) -> Array:
    a, b = first - first.mean(), second - second.mean()
    return np.stack([np.ones_like(a), a, b, a * a, b * b, a * b])


def _explained(sums: Array) -> Array:
    return 1.0 - sums[:, 0] / sums[:, 1]


def _r_squared(view: MetricView) -> Array:
    value = view.labels["returns"]
    return np.stack([(value - view["size"]) ** 2, value * value])


def _missed(view: MetricView) -> Array:
    """Return by how many basis points the mean missed the return."""
    return view.points * view.labels["returns"] - view.points * view["mean"]


_STILL: Final[Mapping[str, Reference]] = {
    "no_move": lambda view: {"mean": np.zeros(len(view.rows))}
}

# --- of the variance


def _qlike(view: MetricView) -> Array:
    return statistics.qlike_of(view["variance"], view.labels["variance"])


def _log_variance(view: MetricView) -> Array:
    """Each about its own mean: the logarithm of a mean is biased."""
    value, forecast = (
        logs - logs.mean()
        for logs in (
            np.log(view.labels["variance"]),
            np.log(np.maximum(view["variance"], VARIANCE_FLOOR)),
        )
    )
    return np.stack([(value - forecast) ** 2, value * value])


def _volatility_error(view: MetricView) -> Array:
    moves = view.points * np.sqrt(np.maximum(view["variance"], 0.0))
    return np.abs(view.points * np.sqrt(view.labels["variance"]) - moves)


# --- of the whole law


LAW: Final = ("mean", "scale", "dof")
"""The fields of a Student t of the return."""


def interval(share: float) -> Metric:
    """Return how often the return lay in the law's central interval of that *share*."""

    def terms(view: MetricView) -> Array:
        return inside(view["mean"], view["scale"], view["dof"], view.labels["returns"], share)

    name = f"coverage_{100 * share:g}"
    return Metric(name, "", LAW, terms, is_alone=True, less_is_better=False)


# --- of the direction


_ODDS: Final = ("probability",)


def _top(view: MetricView) -> NDArray[np.int64]:
    return view["probability"].argmax(axis=1)


def _accuracy(view: MetricView) -> Array:
    return (_top(view) == view.labels["direction"]).astype(np.float64)


def _f1(view: MetricView) -> Array:
    """Take the mean over classes of the harmonic mean of precision and recall."""
    top, classes, rows = _top(view), view.labels["direction"], []
    for kind in range(view["probability"].shape[1]):
        forecast, realised = top == kind, classes == kind
        rows += [forecast & realised, forecast.astype(np.int64) + realised]
    return np.stack(rows).astype(np.float64)


def climatology(view: MetricView) -> Mapping[str, Array]:
    """Return each class's share of all rows as the probability of every row."""
    classes, kinds = view.labels["direction"], view["probability"].shape[1]
    shares = np.bincount(classes, minlength=kinds) / len(classes)
    return {"probability": np.broadcast_to(shares, (len(classes), kinds))}


def _brier(view: MetricView) -> Array:
    return statistics.brier_of(view["probability"], view.labels["direction"])


def _log_loss(view: MetricView) -> Array:
    probability, classes = view["probability"], view.labels["direction"]
    return -np.log(np.maximum(probability[np.arange(len(classes)), classes], LEAST_PROBABILITY))


def _calibration_error(view: MetricView) -> Array:
    """Take the calibration error of the top class over 15 equal bins (Guo, 2017)."""
    top, count = _top(view), statistics.ECE_BINS
    sure = view["probability"][np.arange(len(top)), top]
    hit = (top == view.labels["direction"]).astype(np.float64)
    bins = np.minimum((sure * count).astype(np.int64), count - 1)
    rows = [np.where(bins == at, hit - sure, 0.0) for at in range(count)]
    return np.stack([*rows, np.ones_like(hit)])


_CONSTANT: Final[Mapping[str, Reference]] = {"climatology": climatology}
_SCORES: Final = (
    Metric("brier", "Brier score", _ODDS, _brier, references=_CONSTANT, is_alone=True),
    Metric("log_loss", "Log loss", _ODDS, _log_loss, references=_CONSTANT, is_alone=True),
)


# --- across assets


def ranks(view: MetricView, expected: Array) -> Array:
    """Return Spearman's correlation of *expected* with realised log returns across the assets.

    *expected* are in the units of each row. It stands at one row of each close where every asset
    has one, NaN elsewhere, and is 0 where either is the same for all.
    """
    rows = view.rows
    order = np.argsort(rows.keys)
    _, counts = np.unique(rows.open_ms[order], return_counts=True)
    assets = int(counts.max())
    whole = order[np.repeat(counts == assets, counts)].reshape(-1, assets).T  # [asset, close]
    unit = view.labels["unit"]
    correlations = np.full(len(rows), np.nan)
    if assets > 1:
        correlations[whole[0]] = rank_correlations(
            (expected * unit)[whole], (view.labels["returns"] * unit)[whole]
        )
    return correlations


def rank_correlations(expected: Array, realised: Array) -> Array:
    """Return Spearman's correlation across the assets, one a close, of [asset, close].

    0 where either is the same for all.
    """
    first, second = (rankdata(values, axis=0) for values in (expected, realised))
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    spread = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    return np.divide(
        (first * second).sum(axis=0), spread, out=np.zeros(len(spread)), where=spread > 0
    )


# --- every figure


METRICS: Final = by_name(
    Metric(
        "sign_accuracy", "Sign of the return: share of correct forecasts",
        ("sign",), _hits,
    ),
    Metric(
        "ic", "Information coefficient", ("score",),
        lambda view: _moments(view["score"], view.labels["returns"]), _pearson,
    ),
    Metric(
        "rank_ic", "Rank information coefficient", ("score",),
        lambda view: _moments(rankdata(view["score"]), rankdata(view.labels["returns"])), _pearson,
    ),
    Metric(
        "r_squared", "R² of the return, against a forecast of no move", ("size",), _r_squared,
        _explained,
    ),
    Metric(
        "mae", "Mean absolute error of the return, in basis points (less is better)", ("mean",),
        lambda view: np.abs(_missed(view)), references=_STILL,
    ),
    Metric(
        "mse", "Mean squared error of the return, in squared basis points (less is better)",
        ("mean",), lambda view: _missed(view) ** 2, references=_STILL,
    ),
    Metric("qlike", "QLIKE of the volatility (less is better)", ("variance",), _qlike),
    Metric(
        "log_variance_r_squared", "R² of log variance", ("variance",), _log_variance, _explained
    ),
    Metric(
        "volatility_mae", "Mean absolute error of the volatility, in basis points (less is better)",
        ("variance",), _volatility_error,
    ),
    interval(COVERAGE),
    Metric("direction.accuracy", "", _ODDS, _accuracy, is_alone=True, less_is_better=False),
    Metric(
        "direction.f1", "", _ODDS, _f1,
        lambda sums: (2 * sums[:, ::2] / np.maximum(sums[:, 1::2], 1.0)).mean(axis=1),
        is_alone=True, less_is_better=False,
    ),
    *(metric._replace(name=f"direction.{metric.name}", title="") for metric in _SCORES),
    Metric(
        "direction.ece", "", _ODDS, _calibration_error,
        lambda sums: np.abs(sums[:, :-1]).sum(axis=1) / sums[:, -1], is_alone=True,
    ),
    Metric(
        "relative_rank_ic", "Rank correlation across the assets, by close", ("score",),
        lambda view: ranks(view, view["score"]), less_is_better=False, of_model=(RELATIVE,),
        references={RELATIVE: lambda view: {"score": view[RELATIVE]}},
    ),
)  # fmt: skip
"""Every figure by its name, in the order of a card; ``direction.brier`` stands in a section."""
RANKS: Final = METRICS["relative_rank_ic"]._replace(
    # By relative returns where the model has them, else by its mean.
    terms=lambda view: ranks(
        view, view[RELATIVE if view.rows.gives(RELATIVE, view.name) else "score"]
    ),
    references={},
    of_model=(),
)
"""How other models are held to the judged one where either ranks several assets."""
_WRONG: Final = Metric(
    "sign", "Wrong signs", ("sign",), lambda view: 1.0 - METRICS["sign_accuracy"].terms(view)
)
LOSSES: Final = by_name(METRICS["qlike"]._replace(title="QLIKE"), *_SCORES, _WRONG)
"""Losses by which forecasters are compared row by row."""


def qlike_rank(view: MetricView) -> Array:
    """Return the rank of each bar's QLIKE among all, from 0 to 1: a crash counts once."""
    loss = _qlike(view)
    order = np.argsort(np.argsort(loss, kind="stable"), kind="stable")
    return order / max(len(loss) - 1, 1)


def _margin(view: MetricView) -> Array:
    down, _, up = view["probability"].T
    return np.abs(up - down) / (up + down)


RISKS: Final = by_name(
    _WRONG._replace(title="sign wrong"),
    Metric("qlike_rank", "volatility error (rank)", ("variance",), qlike_rank),
    Metric(
        "interval_miss", "90 % interval missed", LAW,
        lambda view: 1.0 - METRICS["coverage_90"].terms(view),
    ),
)  # fmt: skip
"""Losses of a bar that is answered, by which a measure of sureness is judged."""
MEASURES: Final = by_name(
    Metric("entropy", "", ("confidence",), lambda view: view["confidence"]),
    Metric("margin", "", _ODDS, _margin),
    Metric(
        "mean_over_scale", "", ("mean", "scale"), lambda view: np.abs(view["mean"]) / view["scale"]
    ),
    Metric("predicted_calm", "", ("variance",), lambda view: -view["variance"]),
)
"""How sure a model was of each row: higher is surer, NaN where it is not known."""


def curve_of(forecasts: Forecasts, risk: str, measure: str) -> statistics.RiskCurve | None:
    """Return the judged model's risk–coverage curve, pooled over horizons; None without bars."""
    parts = [
        RankedBars(RISKS[risk].terms(view), MEASURES[measure].terms(view), rows.day)
        for _, rows in forecasts.by_horizon()
        for view in views(RISKS[risk], rows, (MODEL,)).values()
        if views(MEASURES[measure], rows, (MODEL,))
    ]
    return risk_curve(parts)


# --- of pairs, portfolios and order books

CORRELATION: Final = "correlation"
BOOK_DAYS: Final = 2 * BLOCK_DAYS
"""Days of order books below which an error is not known."""


def _move_log_loss(view: MetricView) -> Array:
    moves = view.labels["move"]
    return -view["log_probability"][np.arange(len(moves)), moves]


PAIRS: Final = by_name(
    Metric(
        CORRELATION, "Mean squared error of correlations to the horizon", (CORRELATION,),
        lambda view: (view[CORRELATION] - view.labels[CORRELATION]) ** 2,
    ),
)  # fmt: skip
"""The metrics of pairs of symbols."""
PORTFOLIOS: Final = by_name(
    Metric(
        "net", "Net of fees, bp a day", ("net",), lambda view: _POINTS * view["net"],
        less_is_better=False, least_days=FEW_DAYS,
    ),
    Metric(
        "turnover", "Turnover a day", ("turnover",), lambda view: view["turnover"],
        less_is_better=None,
    ),
    Metric(
        "gross", "Gross of a decision", ("gross",),
        lambda view: np.stack([view["gross"], view.labels["decisions"]]),
        lambda sums: sums[:, 0] / sums[:, 1], less_is_better=None,
    ),
)  # fmt: skip
"""The metrics of portfolios, whose rows are days."""
BOOKS: Final = by_name(
    Metric(
        "log_loss", "Log loss of the mid's move (less is better)", ("log_probability",),
        _move_log_loss, least_days=BOOK_DAYS,
    ),
    Metric(
        "accuracy", "Accuracy: moves of the mid named right", ("move",),
        lambda view: (view["move"] == view.labels["move"]).astype(np.float64),
        less_is_better=False, least_days=BOOK_DAYS,
    ),
)  # fmt: skip
"""The metrics of networks of order books."""


COMPARED: Final = ("qlike", "sign")
"""Losses of bars by which models are compared with other models."""


def compared_by(rows: Forecasts) -> dict[str, Metric]:
    """Return the metrics by which models are compared on *rows*, by what these are of."""
    if "move" in rows.labels:
        return BOOKS
    if "decisions" in rows.labels:
        return {"weights": PORTFOLIOS["net"]}
    metrics = {key: LOSSES[key] for key in COMPARED}
    if any(rows.gives(RELATIVE, name) for name in (MODEL, *rows.compared)):
        metrics["across"] = RANKS
    return metrics


# --- of the heads that not every network has


def head_loss(head: str) -> Terms:
    """Return the terms of the loss that *head* was trained by."""

    def terms(view: MetricView) -> Array:
        labels = {name: torch.from_numpy(of) for name, of in view.labels.items()}
        return ADDED[head].of(torch.from_numpy(view[head]).double(), labels).numpy()

    return terms


EWMA: Final = "EWMA, scaled"
STUDENT_T: Final = "its own Student t"
AVERAGE_ODDS: Final = "its average odds"


def average_odds(view: MetricView) -> Mapping[str, NDArray[Any]]:
    """Return a forecast of regimes that gives each bar the rows' mean odds."""
    regimes = view["regimes"].copy()
    regimes[:, 0] = np.log(np.exp(regimes[:, 0]).mean(axis=0))
    return {"regimes": regimes}


_SIMPLER: Final[Mapping[str, Mapping[str, Reference]]] = {
    "tails": {STUDENT_T: lambda view: {"tails": student_tails(view.rows)}},
    "regimes": {AVERAGE_ODDS: average_odds},
}
HEAD_LOSSES: Final[Mapping[str, Metric]] = {
    head: Metric(
        head,
        added.title,
        (head,),
        head_loss(head),
        references=_SIMPLER.get(head, {}),
        of_model=(head,),
    )
    for head, added in ADDED.items()
}
"""The loss of each such head, by which it is held to simpler forecasts."""


# --- of quantiles and the whole law, in basis points


def _law_of_ewma(view: MetricView) -> Mapping[str, Array]:
    """Return a normal law of no mean and the volatility of EWMA."""
    if not view.rows.gives("variance", "ewma"):
        return {}
    scale = np.sqrt(view.rows.value("variance", "ewma"))
    return {"mean": np.zeros(len(scale)), "scale": scale, "dof": np.full(len(scale), 1e8)}


QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of a Student t that are judged where no head names others."""


def _crps(view: MetricView) -> Array:
    points = view.points
    value = points * view.labels["returns"]
    return statistics.crps_of(points * view["mean"], points * view["scale"], view["dof"], value)


CRPS: Final = Metric(
    "crps", "CRPS of the return, in basis points (less is better)", LAW, _crps,
    references={"EWMA": _law_of_ewma},
)  # fmt: skip
"""The score of the whole law."""


def pinball(level: float) -> Metric:
    """Return the pinball loss of the quantile of that *level*: a head's, else that of the law.

    Source: Koenker and Bassett, 1978.
    """

    def terms(view: MetricView) -> Array:
        points, rows = view.points, view.rows
        if rows.levels and rows.gives("quantiles", view.name):
            quantile = points * view["quantiles"][:, rows.levels.index(level)]
        else:
            quantile = points * (view["mean"] + view["scale"] * stdtrit(view["dof"], level))
        missed = points * view.labels["returns"] - quantile
        return np.maximum(level * missed, (level - 1.0) * missed)

    references: dict[str, Reference] = {  # the law, where a head of quantiles stands in its place
        STUDENT_T: lambda view: {name: view[name] for name in LAW} if view.rows.levels else {},
        "EWMA": _law_of_ewma,
    }
    return Metric(f"pinball_{level:g}", f"{level:g}", LAW, terms, references=references)


def crps_at(levels: Sequence[float]) -> Metric:
    """Return twice the mean pinball loss at *levels*: the CRPS of a head that knows no others."""
    each = [pinball(level) for level in levels]

    def terms(view: MetricView) -> Array:
        return 2.0 * np.mean([metric.terms(view) for metric in each], axis=0)

    return each[0]._replace(name="crps_at", title=f"at {len(levels)} levels", terms=terms)


# --- forecasters on the rows that both answer, by day


def compare(
    rows: Forecasts,
    metric: Metric,
    model: str = MODEL,
    others: tuple[str, ...] | None = None,
    leave: tuple[str, ...] = (),
) -> dict[str, DayDifference]:
    """Return the *metric* of *model* less that of each other, by name, Holm over the others.

    Of each pair on the rows that both answer. Without *others* they are the baselines and the
    references; *leave* are names that are none. One that does not give what it needs is left out.
    """
    every = views(metric, rows, None if others is None else (model, *others))
    if model not in every or metric.less_is_better is None:
        return {}
    differences = {}
    for name, view in every.items():
        if name in (model, *leave):
            continue
        pair = _shared(metric, every[model], view)
        if pair is not None:
            differences[name] = difference(*pair)
    return corrected(differences)


def _shared(
    metric: Metric, first: MetricView, second: MetricView
) -> tuple[Array, Array, NDArray[Any]] | None:
    """Return both terms and the days, of the rows that both answer; None where there is none."""
    both = answered(metric, first) & answered(metric, second)
    if not both.any():
        return None
    first, second = (of.where(both) for of in (first, second))
    ours, other = metric.terms(first), metric.terms(second)
    counts = np.isfinite(ours) & np.isfinite(other)
    return (ours[counts], other[counts], first.rows.day[counts]) if counts.any() else None


def answered(metric: Metric, view: MetricView) -> NDArray[np.bool_]:
    """Return the rows at which the fields that *metric* needs are known."""
    finite = np.ones(len(view.rows), dtype=np.bool_)
    for field in metric.needs:
        values = view[field]
        finite &= np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    return finite


def paired_figures(table: Forecasts, leave: tuple[str, ...] = ()) -> dict[str, Any]:
    """Compare the model with every other forecaster, by horizon and loss, as a card keeps it.

    *leave* are names that are no others. Each entry is [difference, error, p], p by Holm over the
    others; less is better.
    """
    return {
        PAIRED: {
            str(horizon): {
                name: {other: difference.rounded() for other, difference in differences.items()}
                for name in ("sign", "qlike")
                if (differences := compare(rows, LOSSES[name], leave=leave))
            }
            for horizon, rows in table.by_horizon()
        }
    }


# --- tables

FEW: Final = "too few days"
NOTE: Final = (
    f"Errors by day; p by Student's t over days, Holm over the others, credible below {LEVEL}. "
    f"Fewer than {FEW_DAYS} days of weights, or {BOOK_DAYS} of books, say nothing."
)


def verdict_of(metric: Metric, difference: DayDifference) -> str:
    """Return the verdict of a difference of *metric*; none of too few days."""
    if difference.days < metric.least_days:
        return FEW
    return verdict(difference, is_less_better=metric.less_is_better is not False)


def forecaster_table(
    key: str,
    title: str,
    forecasts: Forecasts,
    metrics: Metric | Mapping[str, Metric],
    *,
    of: str = "",
    model: str = MODEL,
    others: tuple[str, ...] | None = None,
    notes: Sequence[str] = (NOTE,),
) -> Table:
    """Return a row a horizon and forecaster: its metric, what *model* has less it, p, the verdict.

    *others* are those of ``compare``; each is measured on the rows that it answers. Of several
    *metrics* their names stand in the column *of*.
    """
    rows: list[Cells] = []
    names = None if others is None else (model, *others)
    each = {"": metrics} if isinstance(metrics, Metric) else metrics
    for label, metric in each.items():
        for horizon, at in forecasts.by_horizon():
            against, every = compare(at, metric, model, others), views(metric, at, names)
            for name in sorted(every, key=model.__ne__):
                view = every[name]
                if not (usable := answered(metric, view)).any():
                    continue
                row: dict[str, Value] = {
                    of: label,
                    "forecaster": name if name in at.compared else words(name),
                    "horizon": horizon,
                    "value": estimate(metric, view.where(usable)),
                }
                if name in against:
                    difference = against[name]
                    verdict = verdict_of(metric, difference)
                    row |= {
                        "difference": difference.pair,
                        "p": difference.p,
                        "verdict": verdict,
                        "days": difference.days,
                    }
                rows.append(row)
    columns = [
        *([of_row(of, of, "text")] if of else []),
        of_row("forecaster", "forecaster", "text"),
        of_row("horizon", forecasts.unit, "count"),
        of_row("value", "value", "measure"),
        of_row("difference", f"{words(model)} minus it", "measure"),
        of_row("p", "p", "measure"),
        of_row("verdict", f"{words(model)} is", "text"),
        of_row("days", "days", "count", wide=True),
    ]
    result = table(key, title, columns, rows, notes=notes if rows else ())
    return replace(result, whole=True)
