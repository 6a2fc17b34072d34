"""``METRICS``, every figure of a forecaster by row of ``Forecasts``, and comparisons by them.

A metric's table holds every forecaster that gives the fields it needs, and the metric's references,
simpler forecasts to compare with. Most figures are means of [row] terms; others combine sums of
terms. Blocks of days are resampled for the errors.

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
from tracepaper.replay.learning.judge.forecasts import MODEL, NORMAL, Forecasts, words
from tracepaper.replay.learning.losses import AUXILIARY_LOSSES
from tracepaper.replay.learning.splits import SYMBOL_BITS
from tracepaper.replay.learning.statistics import (
    COVERAGE,
    DailyEstimate,
    DayDifference,
    RankedBars,
    corrected,
    difference,
    figure,
    inside,
    mean,
    redrawn_blocks,
    risk_curve,
    verdict,
)
from tracepaper.replay.report import metrics
from tracepaper.replay.report.honesty import FEW_DAYS, HARS, LEVEL, PAIRED, YEARS
from tracepaper.replay.report.metrics import BLOCK_DAYS, blocks_of
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.types.decisions import SHARES

TAILS: Final = "tails"
"""``[calibration.tails]``: by horizon, a pair for each of ``SHARES`` and the errors of both.

They are the empirical quantile of (loss - mean loss) ÷ stdev over the losses of both sides, and the
mean beyond it; those of the normal distribution, without an error, where too few independent bars
or a single block of days were measured. Apart each side has half as many breaches, and its
constants last no better.
"""
SIDES: Final = {"long": -1.0, "short": 1.0}
"""The sign of the returns by which each side loses."""
BREACHES_LEAST: Final = 5
"""With fewer independent breaches expected, a tail is the normal distribution's."""
_SYMBOL: Final = 1 << SYMBOL_BITS
"""A key is the bar's number times this, plus the symbol's number."""


def value_at_risk(location: Array, scale: Array, dof: Array, share: float) -> tuple[Array, Array]:
    """Return value at risk and expected shortfall of Student t losses at the tail *share*.

    The degrees of freedom must be above 1. Source: McNeil, Frey and Embrechts, Quantitative Risk
    Management, 2005, chapter 2.
    """
    quantile = stats.t.isf(share, dof)
    shortfall = stats.t.pdf(quantile, dof) / share * (dof + quantile**2) / (dof - 1.0)
    return location + scale * quantile, location + scale * shortfall


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


def stdev_of(rows: Forecasts) -> Array:
    """Return the forecast's standard deviation: [row]."""
    _, scale, dof = (rows.value(field) for field in LAW)
    return scale * np.sqrt(dof / (dof - 2.0))


def measured_tails(rows: Forecasts, standardized: Mapping[str, Any]) -> Array:
    """Return value at risk and shortfall by a card's *standardized* tails, as ``student_tails``."""
    mean = np.multiply.outer(rows.value("mean"), list(SIDES.values()))[:, :, None, None]
    return mean + stdev_of(rows)[:, None, None, None] * np.array(standardized["losses"])


def is_normal(table: Forecasts) -> bool:
    """Return whether the forecast's law is the normal distribution."""
    return bool((table.value("dof") >= NORMAL).all())


def standardized_tails(table: Forecasts) -> dict[str, Any]:
    """Return ``[calibration.tails]``, measured on the calibration slice's forecasts.

    Empty for a Student t, which has tails of its own: out of time, measured ones in their place
    made the 1 % pinball loss of trading-15m larger at each of its horizons.
    """
    if not is_normal(table):
        return {}
    return {str(horizon): _standardized(rows, horizon) for horizon, rows in table.by_horizon()}


def _standardized(rows: Forecasts, horizon: int) -> dict[str, list[list[float]]]:
    signs = np.array(list(SIDES.values()))
    mean = np.multiply.outer(rows.value("mean"), signs)
    distance = (losses(rows) - mean) / stdev_of(rows)[:, None]
    # Symbols move together, so bars of one time count once; so do both sides of a bar.
    independent = len(np.unique(rows.keys // _SYMBOL)) / horizon
    constants: dict[str, list[list[float]]] = {"losses": [], "errors": []}
    for share in SHARES:
        at_risk = float(stats.norm.isf(share))
        values, errors = [at_risk, float(stats.norm.pdf(at_risk)) / share], [0.0, 0.0]
        if share * independent >= BREACHES_LEAST and blocks_of(rows.day).max() > 0:
            values, errors = _tail(distance, rows.day, share)
        constants["losses"].append([rounded(each) for each in values])
        constants["errors"].append([rounded(each) for each in errors])
    return constants


def _tail(
    distance: Array, days: NDArray[np.int64], share: float
) -> tuple[list[float], list[float]]:
    """Return [the loss that *share* of *distance* [row, side] exceeds, the mean beyond it].

    Their errors follow, from bootstraps of the blocks of *days* [row].
    """
    block = np.repeat(blocks_of(days), distance.shape[1])
    order = np.argsort(-distance, axis=None)
    sorted_losses = distance.ravel()[order]
    drawn = redrawn_blocks(int(block.max()) + 1)
    values = []
    for counts in (np.ones_like(drawn[0]), *drawn):
        weights = counts[block[order]]
        # No more than the share may exceed the limit.
        beyond = np.searchsorted(np.cumsum(weights), share * weights.sum(), side="right")
        limit = max(float(sorted_losses[min(beyond, len(sorted_losses) - 1)]), 0.0)
        breached = sorted_losses > limit
        total = weights[breached].sum()
        mean = float(weights[breached] @ sorted_losses[breached] / total) if total else limit
        values.append((limit, mean))
    count = drawn.shape[1]
    widening = (count / (count - 1)) ** 0.5  # as in ``resampled``
    return list(values[0]), (np.std(values[1:], axis=0) * widening).tolist()


def breach_rows(rows: Forecasts, tails: Array) -> Iterator[dict[str, Any]]:
    """Yield the tests of *tails* [row, side, share, 2] on one horizon, a table row each."""
    (horizon,) = rows.horizons
    independent = without_overlap(rows.keys, horizon)
    adjacent, realised = follows(rows.keys[independent], horizon), losses(rows)
    for at, side in enumerate(SIDES):
        for place, share in enumerate(SHARES):
            limit, expected = tails[:, at, place].T
            breached, ratio = realised[:, at] > limit, realised[:, at] / expected
            tested = breached[independent]
            yield {
                "horizon": horizon,
                "tail": f"of a {side} position",
                "share": share,
                "realised": statistics.mean(breached.astype(np.float64), rows.day),
                "bars": len(independent),
                "kupiec_p": metrics.kupiec(int(tested.sum()), len(tested), share),
                "christoffersen_p": christoffersen(tested, adjacent),
                "shortfall": statistics.mean(ratio[breached], rows.day[breached])
                if breached.any()
                else None,
            }


BREACHES: Final = (
    of_row("horizon", "bars ahead", "count"),
    of_row("tail", "value at risk", "text"),
    of_row("share", "forecast", "measure"),
    of_row("realised", "realised", "measure"),
    of_row("bars", "independent bars", "count"),
    of_row("kupiec_p", "p, Kupiec", "measure"),
    of_row("christoffersen_p", "p, Christoffersen", "measure"),
    of_row("shortfall", "loss of breaches ÷ forecast", "measure"),
)
"""The tests are on ``bars`` with no future in common. ``shortfall`` is the mean of a breach's loss
over the expected shortfall; 1 is right."""


def without_overlap(keys: NDArray[np.int64], horizon: int) -> NDArray[np.int64]:
    """Return rows by symbol and time; no two of a symbol share a future bar."""
    order = np.lexsort((keys // _SYMBOL, keys % _SYMBOL))
    return order[keys[order] // _SYMBOL % horizon == 0]


def follows(keys: NDArray[np.int64], horizon: int) -> NDArray[np.bool_]:
    """Return for each row but the first whether it follows the row before without a gap."""
    is_same_symbol = keys[1:] % _SYMBOL == keys[:-1] % _SYMBOL
    is_next = keys[1:] // _SYMBOL - keys[:-1] // _SYMBOL == horizon
    return is_same_symbol & is_next


def christoffersen(breached: NDArray[np.bool_], adjacent: NDArray[np.bool_]) -> float | None:
    """Return the p value of Christoffersen's test that breaches are independent over time.

    *adjacent* holds for each row but the first whether it follows the row before. None where no row
    follows a breach, or nothing is a breach.
    """
    before, after = breached[:-1][adjacent], breached[1:][adjacent]
    counts = np.array([[(a & b).sum() for b in (~after, after)] for a in (~before, before)])
    if not counts.sum(axis=1).all() or not counts[:, 1].any():
        return None
    if not counts[:, 0].any():
        return 1.0  # every row is a breach, so breaches do not cluster
    given = stats.chi2_contingency(counts, correction=False, lambda_="log-likelihood")
    return float(given.pvalue)  # pyright: ignore[reportAttributeAccessIssue] - SciPy has no types


# --- every metric


RELATIVE: Final = "relative"
"""The name of the head of relative returns, as a field and as a forecaster of ranks."""
_POINTS: Final = 1e4  # basis points per one


@dataclass(frozen=True)
class MetricView:
    """One forecaster's rows: ``view["mean"]`` is its field [row], ``view.labels`` the outcomes."""

    rows: Forecasts
    name: str = MODEL

    def __getitem__(self, field: str) -> NDArray[Any]:
        """Return a field [row, ..]."""
        return self.rows.value(field, self.name)

    def where(self, mask: NDArray[np.bool_]) -> MetricView:
        """Return a view of the rows where *mask* is true."""
        return self if mask.all() else MetricView(self.rows.where(mask), self.name)

    @property
    def labels(self) -> Mapping[str, NDArray[Any]]:
        """The outcomes, [row, ..] by name."""
        return self.rows.labels

    @property
    def points(self) -> Array:
        """The unit of each row's return in basis points."""
        return _POINTS * self.rows.labels["unit"]


Terms = Callable[[MetricView], Array]
Combine = Callable[[Array], Array]
Reference = Callable[[MetricView], Mapping[str, NDArray[Any]]]
"""The judged model's view → the fields of a simpler forecast; empty where there is none."""


class Metric(NamedTuple):
    """A figure of a forecaster. ``terms`` are [row]; NaN leaves a row out, and the mean is taken.

    With ``combine``, terms are [term, row], and ``combine`` maps sums [.., term] to values [..].
    """

    name: str
    title: str
    needs: Collection[str]  # fields
    terms: Terms
    combine: Combine | None = None
    references: Mapping[str, Reference] = MappingProxyType({})
    less_is_better: bool | None = True  # None: neither is better
    least_days: int = 0
    """With fewer days there is no verdict."""
    of_model: Collection[str] = ()
    """Fields that the judged model must give; otherwise the figure is left out."""
    is_alone: bool = False
    """Whether only the judged model and the references have it."""


def named(*metrics: Metric) -> dict[str, Metric]:
    """Return *metrics* by their names."""
    return {metric.name: metric for metric in metrics}


def views(
    metric: Metric, rows: Forecasts, names: tuple[str, ...] | None = None
) -> dict[str, MetricView]:
    """Return by name the forecasters of one horizon's *rows* that give what *metric* needs.

    By default they are the judged model, the baselines and the references.
    """
    if not all(rows.has(field) for field in metric.of_model):
        return {}
    chosen = [name for name in rows.values if name not in rows.compared] if names is None else names
    if metric.is_alone:
        chosen = [name for name in chosen if name == MODEL]
    able = [name for name in chosen if all(rows.has(field, name) for field in metric.needs)]
    by_name = {name: MetricView(rows, name) for name in able}
    if names is None and (by_name or not metric.is_alone):
        for name, reference in metric.references.items():
            if fields := reference(MetricView(rows)):
                by_name[name] = MetricView(rows.with_fields(name, **fields), name)
    return by_name


def estimate(metric: Metric, view: MetricView) -> DailyEstimate:
    """Return the value of *metric* for *view*, with its error over days."""
    terms, days = metric.terms(view), view.rows.day
    if metric.combine is not None:
        return figure(terms, days, metric.combine)
    counts = np.isfinite(terms)
    return mean(terms[counts], days[counts])


def figures(table: Forecasts, model: str = MODEL) -> dict[str, Any]:
    """Return every figure by horizon as [value, error], for a card.

    *model* is the card's name of the judged model.
    """
    return {str(horizon): _figures(rows, model) for horizon, rows in table.by_horizon()}


def _figures(rows: Forecasts, model: str) -> dict[str, Any]:
    results: dict[str, Any] = {"bars": len(rows), "days": len(np.unique(rows.day))}
    for metric in METRICS.values():
        forecasters = views(metric, rows)
        section, _, key = metric.name.rpartition(".")
        target = results.setdefault(section, {}) if section and forecasters else results
        if metric.is_alone:
            for name, view in forecasters.items():
                suffix = "" if name == MODEL else f"_{name}"
                target[f"{key}{suffix}"] = estimate(metric, view).rounded()
                if suffix and metric.combine is None:
                    difference = metric.terms(forecasters[MODEL]) - metric.terms(view)
                    target[f"{key}_less{suffix}"] = mean(difference, rows.day).rounded()
        elif forecasters:
            target[key] = {
                model if name == MODEL else name: estimate(metric, view).rounded()
                for name, view in forecasters.items()
            }
    return results


# --- the return


def _pearson(sums: Array) -> Array:
    n, x, y, xx, yy, xy = sums.T
    spread = (n * xx - x * x) * (n * yy - y * y)
    return (n * xy - x * y) / np.sqrt(np.maximum(spread, 1e-300))


def _moments(first: Array, second: Array) -> Array:
    a, b = first - first.mean(), second - second.mean()
    return np.stack([np.ones_like(a), a, b, a * a, b * b, a * b])


def _missed(view: MetricView) -> Array:
    """Return the return minus its forecast mean, in basis points."""
    return view.points * (view.labels["returns"] - view["mean"])


_STILL: Final[Mapping[str, Reference]] = {
    "no_move": lambda view: {"mean": np.zeros(len(view.rows))}
}

# --- the variance


def _qlike(view: MetricView) -> Array:
    return statistics.qlike_of(view["variance"], view.labels["variance"])


# --- the distribution


LAW: Final = ("mean", "scale", "dof")
"""The fields of a Student t of the return."""


def interval(share: float) -> Metric:
    """Return the metric of how often the return lies in the central interval of *share*."""

    def terms(view: MetricView) -> Array:
        return inside(view["mean"], view["scale"], view["dof"], view.labels["returns"], share)

    name = f"coverage_{100 * share:g}"
    return Metric(name, "", LAW, terms, is_alone=True, less_is_better=False)


# --- the direction


_ODDS: Final = ("probability",)


def climatology(view: MetricView) -> Mapping[str, Array]:
    """Return a constant forecast: each class's share of all rows as its probability."""
    classes, kinds = view.labels["direction"], view["probability"].shape[1]
    shares = np.bincount(classes, minlength=kinds) / len(classes)
    return {"probability": np.broadcast_to(shares, (len(classes), kinds))}


def _accuracy(view: MetricView) -> Array:
    return (view["probability"].argmax(axis=1) == view.labels["direction"]).astype(np.float64)


def _f1(view: MetricView) -> Array:
    """Return the terms of macro F1: by class, hits, then forecasts plus occurrences."""
    probability, realised = view["probability"], view.labels["direction"][:, None]
    classes = np.arange(probability.shape[1])
    forecast, occurred = probability.argmax(axis=1)[:, None] == classes, realised == classes
    return np.hstack([forecast & occurred, forecast.astype(np.int64) + occurred]).T.astype(float)


def _macro_f1(sums: Array) -> Array:
    hits, counts = np.split(sums, 2, axis=-1)
    return (2.0 * hits / np.maximum(counts, 1.0)).mean(axis=-1)


def _brier(view: MetricView) -> Array:
    return statistics.brier_of(view["probability"], view.labels["direction"])


_CONSTANT: Final[Mapping[str, Reference]] = {"climatology": climatology}
_BRIER: Final = Metric("brier", "Brier score", _ODDS, _brier, references=_CONSTANT, is_alone=True)


# --- across assets


def ranks(view: MetricView, expected: Array) -> Array:
    """Return by row Spearman's correlation of *expected* and realised log returns across assets.

    *expected* is in the unit of each row. A close with every asset has its value at one row; all
    other rows are NaN. The value is 0 where either side is the same for all assets.
    """
    rows = view.rows
    order = np.argsort(rows.keys)
    _, counts = np.unique(rows.open_ms[order], return_counts=True)
    assets = int(counts.max())
    complete = order[np.repeat(counts == assets, counts)].reshape(-1, assets).T  # [asset, close]
    unit = view.labels["unit"]
    correlations = np.full(len(rows), np.nan)
    if assets > 1:
        correlations[complete[0]] = rank_correlations(
            (expected * unit)[complete], (view.labels["returns"] * unit)[complete]
        )
    return correlations


def rank_correlations(expected: Array, realised: Array) -> Array:
    """Return Spearman's correlation across assets for each close of [asset, close].

    It is 0 where either side is the same for all assets.
    """
    first, second = (rankdata(values, axis=0) for values in (expected, realised))
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    spread = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    return np.divide(
        (first * second).sum(axis=0), spread, out=np.zeros(len(spread)), where=spread > 0
    )


# --- every figure


METRICS: Final = named(
    Metric(
        "sign_accuracy", "Signs predicted right, against always predicting the more frequent sign",
        ("sign",), lambda view: statistics.hits_of(view["sign"], view.labels["returns"]),
    ),
    Metric(
        "ic", "Information coefficient", ("score",),
        lambda view: _moments(view["score"], view.labels["returns"]), _pearson,
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
    interval(COVERAGE),
    Metric(
        "direction.accuracy", "", _ODDS, _accuracy, references=_CONSTANT, is_alone=True,
        less_is_better=False,
    ),
    Metric(
        "direction.macro_f1", "", _ODDS, _f1, _macro_f1, references=_CONSTANT, is_alone=True,
        less_is_better=False,
    ),
    _BRIER._replace(name="direction.brier", title=""),
    Metric(
        "relative_rank_ic", "Rank correlation across the assets, by close", ("score",),
        lambda view: ranks(view, view["score"]), less_is_better=False, of_model=(RELATIVE,),
        references={RELATIVE: lambda view: {"score": view[RELATIVE]}},
    ),
)  # fmt: skip
"""Every figure by name, in the order of a card; a dot separates the card's section and key."""
RANKS: Final = METRICS["relative_rank_ic"]._replace(
    # Relative returns where the model forecasts them, else its mean.
    terms=lambda view: ranks(
        view, view[RELATIVE if view.rows.has(RELATIVE, view.name) else "score"]
    ),
    references={},
    of_model=(),
)
"""The metric that compares models where one of them ranks several assets."""
_WRONG: Final = Metric(
    "sign",
    "Signs predicted wrong",
    ("sign",),
    lambda view: 1.0 - METRICS["sign_accuracy"].terms(view),
)
LOSSES: Final = named(METRICS["qlike"]._replace(title="QLIKE"), _BRIER, _WRONG)
"""The losses that compare forecasters row by row."""


def qlike_rank(view: MetricView) -> Array:
    """Return the rank of each bar's QLIKE from 0 to 1, so that no single crash dominates."""
    loss = _qlike(view)
    order = np.argsort(np.argsort(loss, kind="stable"), kind="stable")
    return order / max(len(loss) - 1, 1)


def _margin(view: MetricView) -> Array:
    down, _, up = view["probability"].T
    return np.abs(up - down) / (up + down)


RISKS: Final = named(
    _WRONG._replace(title="sign wrong"),
    Metric("qlike_rank", "volatility error (rank)", ("variance",), qlike_rank),
)  # fmt: skip
"""The cost of answering a bar, which a good measure of sureness ranks."""
MEASURES: Final = named(
    Metric("entropy", "", ("confidence_entropy",), lambda view: view["confidence_entropy"]),
    Metric("margin", "", _ODDS, _margin),
    Metric(
        "mean_over_scale", "", ("mean", "scale"), lambda view: np.abs(view["mean"]) / view["scale"]
    ),
    Metric("recent_mass", "", ("recent_mass",), lambda view: view["recent_mass"]),
    Metric("event_focus", "", ("event_focus",), lambda view: view["event_focus"]),
)
"""Measures of how sure a model is of each row: higher is surer, NaN is unknown."""


def curve_of(forecasts: Forecasts, risk: str, measure: str) -> statistics.RiskCurve | None:
    """Return the judged model's risk–coverage curve, pooled over horizons; None without bars."""
    parts = [
        RankedBars(RISKS[risk].terms(view), MEASURES[measure].terms(view), rows.day)
        for _, rows in forecasts.by_horizon()
        for view in views(RISKS[risk], rows, (MODEL,)).values()
        if views(MEASURES[measure], rows, (MODEL,))
    ]
    return risk_curve(parts)


# --- pairs, portfolios and order books

CORRELATION: Final = "correlation"
BOOK_DAYS: Final = 2 * BLOCK_DAYS
"""With fewer days of order books there is no verdict."""


def _move_log_loss(view: MetricView) -> Array:
    moves = view.labels["move"]
    return -view["log_probability"][np.arange(len(moves)), moves]


PAIRS: Final = named(
    Metric(
        CORRELATION, "Mean squared error of correlations to the horizon", (CORRELATION,),
        lambda view: (view[CORRELATION] - view.labels[CORRELATION]) ** 2,
    ),
)  # fmt: skip
"""The metrics of pairs of symbols."""
PORTFOLIOS: Final = named(
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
BOOKS: Final = named(
    Metric(
        "log_loss", "Log loss of the mid's move (less is better)", ("log_probability",),
        _move_log_loss, least_days=BOOK_DAYS,
    ),
    Metric(
        "accuracy", "Accuracy: moves of the mid predicted right", ("move",),
        lambda view: (view["move"] == view.labels["move"]).astype(np.float64),
        less_is_better=False, least_days=BOOK_DAYS,
    ),
)  # fmt: skip
"""The metrics of networks of order books."""


COMPARED: Final = ("qlike", "sign")
"""The losses that compare models with other models on bars."""


def compared_by(rows: Forecasts) -> dict[str, Metric]:
    """Return the metrics that compare models on *rows*, which are bars, books or portfolios."""
    if "move" in rows.labels:
        return BOOKS
    if "decisions" in rows.labels:
        return {"weights": PORTFOLIOS["net"]}
    metrics = {key: LOSSES[key] for key in COMPARED}
    if any(rows.has(RELATIVE, name) for name in (MODEL, *rows.compared)):
        metrics["across"] = RANKS
    return metrics


# --- auxiliary heads


def head_loss(head: str) -> Terms:
    """Return the terms of the training loss of *head*."""

    def terms(view: MetricView) -> Array:
        labels = {name: torch.from_numpy(column) for name, column in view.labels.items()}
        output = torch.from_numpy(view[head]).double()
        return AUXILIARY_LOSSES[head].function(output, labels).numpy()

    return terms


EWMA: Final = "EWMA, scaled"
STUDENT_T: Final = "its own Student t"
AVERAGE_ODDS: Final = "its average odds"


def average_odds(view: MetricView) -> Mapping[str, NDArray[Any]]:
    """Return a constant forecast of regimes: the mean probabilities of all rows."""
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
    for head, added in AUXILIARY_LOSSES.items()
}
"""The loss of each auxiliary head, which compares it with simpler forecasts."""


# --- a head of quantiles


def _law_of_ewma(view: MetricView) -> Mapping[str, Array]:
    """Return a normal distribution with mean 0 and the volatility of EWMA."""
    if not view.rows.has("variance", "ewma"):
        return {}
    scale = np.sqrt(view.rows.value("variance", "ewma"))
    return {"mean": np.zeros(len(scale)), "scale": scale, "dof": np.full(len(scale), 1e8)}


def pinball(level: float) -> Metric:
    """Return the pinball loss of the head's quantile at *level*, in basis points.

    Source: Koenker and Bassett, 1978.
    """

    def terms(view: MetricView) -> Array:
        points, rows = view.points, view.rows
        if rows.has("quantiles", view.name):
            quantile = points * view["quantiles"][:, rows.levels.index(level)]
        else:
            quantile = points * (view["mean"] + view["scale"] * stdtrit(view["dof"], level))
        missed = points * view.labels["returns"] - quantile
        return np.maximum(level * missed, (level - 1.0) * missed)

    references: dict[str, Reference] = {
        STUDENT_T: lambda view: {name: view[name] for name in LAW},
        "EWMA": _law_of_ewma,
    }
    return Metric(f"pinball_{level:g}", f"{level:g}", LAW, terms, references=references)


# --- comparisons on common rows, by day


def compare(
    rows: Forecasts,
    metric: Metric,
    others: tuple[str, ...] | None = None,
    leave: tuple[str, ...] = (),
) -> dict[str, DayDifference]:
    """Return *metric* of the model minus that of each other, by name; p by Holm over the others.

    Each pair is compared on the rows that both answer. *others* defaults to the baselines and the
    references, without those in *leave*. Forecasters without the needed fields are left out.
    """
    forecasters = views(metric, rows, None if others is None else (MODEL, *others))
    if MODEL not in forecasters or metric.less_is_better is None:
        return {}
    differences = {}
    for name, view in forecasters.items():
        if name in (MODEL, *leave):
            continue
        pair = _common_terms(metric, forecasters[MODEL], view)
        if pair is not None:
            differences[name] = difference(*pair)
    return corrected(differences)


def _common_terms(
    metric: Metric, first: MetricView, second: MetricView
) -> tuple[Array, Array, NDArray[Any]] | None:
    """Return both terms and the days of the rows that both answer; None without such a row."""
    both = answered(metric, first) & answered(metric, second)
    if not both.any():
        return None
    first, second = first.where(both), second.where(both)
    terms, other_terms = metric.terms(first), metric.terms(second)
    counts = np.isfinite(terms) & np.isfinite(other_terms)
    return (terms[counts], other_terms[counts], first.rows.day[counts]) if counts.any() else None


def answered(metric: Metric, view: MetricView) -> NDArray[np.bool_]:
    """Return whether each row has all fields that *metric* needs."""
    finite = np.ones(len(view.rows), dtype=np.bool_)
    for field in metric.needs:
        values = view[field]
        finite &= np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    return finite


def paired_figures(table: Forecasts, leave: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the model compared with every forecaster but *leave*, by horizon and loss, for a card.

    Each entry is [difference, error, p], p by Holm over the others; less is better. ``YEARS`` has
    the QLIKE of each calendar year beside that of the best HAR, p by Holm over the years.
    """
    horizons = table.by_horizon()
    return {
        PAIRED: {
            str(horizon): {
                name: {other: difference.rounded() for other, difference in differences.items()}
                for name in ("sign", "qlike")
                if (differences := compare(rows, LOSSES[name], leave=leave))
            }
            for horizon, rows in horizons
        },
        YEARS: {str(horizon): years for horizon, rows in horizons if (years := _by_year(rows))},
    }


def _by_year(rows: Forecasts) -> dict[str, Any]:
    """Return the best HAR of *rows* and, by year, [difference, error, p, days] of the QLIKE."""
    qlike = LOSSES["qlike"]
    forecasters = views(qlike, rows, (MODEL, *HARS))
    means = {
        name: qlike.terms(view)[answered(qlike, view)].mean()
        for name, view in forecasters.items()
        if name in HARS and answered(qlike, view).any()
    }
    if not means or MODEL not in forecasters:
        return {}
    rival = min(means, key=means.__getitem__)
    year_of = (rows.day * np.timedelta64(1, "D") + np.datetime64(0, "D")).astype("M8[Y]")
    by_year = {}
    for year in np.unique(year_of):
        chosen = rows.where(year_of == year)
        pair = _common_terms(qlike, *(MetricView(chosen, name) for name in (MODEL, rival)))
        if pair is not None:
            by_year[str(year)] = difference(*pair)
    return {"rival": rival} | {
        year: [*each.rounded(), each.days] for year, each in corrected(by_year).items()
    }


# --- tables

FEW: Final = "too few days"
NOTE: Final = (
    f"Errors by day; p by Student's t over days, Holm over the others, credible below {LEVEL}. "
    f"Fewer than {FEW_DAYS} days of weights, or {BOOK_DAYS} of books, say nothing."
)


def verdict_of(metric: Metric, difference: DayDifference) -> str:
    """Return the verdict on a difference of *metric*, or ``FEW`` if there are too few days."""
    if difference.days < metric.least_days:
        return FEW
    return verdict(difference, is_less_better=metric.less_is_better is not False)


def forecaster_table(
    key: str,
    title: str,
    forecasts: Forecasts,
    metrics: Metric | Mapping[str, Metric],
    *,
    label_column: str = "",
    others: tuple[str, ...] | None = None,
    notes: Sequence[str] = (NOTE,),
) -> Table:
    """Return the table of *metrics*: a row for each horizon and forecaster.

    A row has the forecaster's value on the rows that it answers, and the model's difference to it
    with p and verdict. *others* are those of ``compare``. With several metrics, *label_column*
    names the column of their titles.
    """
    rows: list[Cells] = []
    names = None if others is None else (MODEL, *others)
    by_label = {"": metrics} if isinstance(metrics, Metric) else metrics
    for label, metric in by_label.items():
        for horizon, at in forecasts.by_horizon():
            differences = compare(at, metric, others)
            forecasters = views(metric, at, names)
            for name in sorted(forecasters, key=MODEL.__ne__):
                view = forecasters[name]
                if not (usable := answered(metric, view)).any():
                    continue
                row: dict[str, Value] = {
                    label_column: label,
                    "forecaster": name if name in at.compared else words(name),
                    "horizon": horizon,
                    "value": estimate(metric, view.where(usable)),
                }
                if name in differences:
                    difference = differences[name]
                    verdict = verdict_of(metric, difference)
                    row |= {
                        "difference": difference.pair,
                        "p": difference.p,
                        "verdict": verdict,
                        "days": difference.days,
                    }
                rows.append(row)
    columns = [
        *([of_row(label_column, label_column, "text")] if label_column else []),
        of_row("forecaster", "forecaster", "text"),
        of_row("horizon", forecasts.unit, "count"),
        of_row("value", "value", "measure"),
        of_row("difference", "difference", "measure"),
        of_row("p", "p", "measure"),
        of_row("verdict", f"{words(MODEL)} is", "text"),
        of_row("days", "days", "count", wide=True),
    ]
    result = table(key, title, columns, rows, notes=notes if rows else ())
    return replace(result, whole=True)
