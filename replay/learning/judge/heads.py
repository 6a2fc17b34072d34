"""Auxiliary heads, and correlations of symbols, compared with simpler forecasts.

Each head is compared with EWMA volatility times constants of the calibration slice (filtered
historical simulation; Hull and White, 1998).

The rules are docs/models.md, L59 to L62.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from tracepaper.replay.document.values import Cells, Table, of_row, table
from tracepaper.replay.learning import statistics
from tracepaper.replay.learning.baselines import EWMA_DECAY
from tracepaper.replay.learning.card import rounded
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts, concatenated, named_asset
from tracepaper.replay.learning.judge.metrics import (
    AVERAGE_ODDS,
    BREACHES,
    CORRELATION,
    EWMA,
    HEAD_LOSSES,
    NOTE,
    PAIRS,
    MetricView,
    breach_rows,
    compare,
    estimate,
    forecaster_table,
    losses,
)
from tracepaper.replay.learning.samples import LEAST_BARS, correlated, correlations, products
from tracepaper.replay.learning.splits import Part
from tracepaper.replay.learning.statistics import DailyEstimate
from tracepaper.replay.report.honesty import FEW_DAYS
from tracepaper.replay.report.metrics import is_credible
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.outputs import Levels, levels_for, with_factors
from tracepaper.strategies.types.decisions import (
    DRAWDOWN_LEVELS,
    PATH_LEVELS,
    SHARES,
    TAILS,
    path_steps,
)
from tracepaper.strategies.units import percent

EXTREMES: Final = ("drawdown", "runup")
"""Heads that forecast quantiles of a largest move, at ``DRAWDOWN_LEVELS``."""
_INSIDE: Final = PATH_LEVELS[-1] - PATH_LEVELS[0]


def heads_of(rows: Forecasts) -> list[str]:
    """Return the heads that the judged model has."""
    return sorted(head for head in HEAD_LOSSES if rows.has(head))


# --- factors of the calibration slice


def levels_of(table: Forecasts) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return ``calibration.further`` of a card: the factors of heads and of EWMA on *table*."""
    return {
        name: {str(horizon): _factors(rows, is_ewma=name == "ewma") for horizon, rows in horizons}
        for name in ("ewma", "factors")
        if (horizons := table.by_horizon())
    }


def _factors(rows: Forecasts, *, is_ewma: bool) -> dict[str, list[float]]:
    """Return by head the factors that give it its nominal coverage.

    EWMA forecasts its volatility at every level, so its factors are the levels in that unit.
    """
    factors: dict[str, Array] = {}
    for head in heads_of(rows):
        values = rows.value(head).astype(np.float64)
        realised = rows.labels.get(head, values)
        if is_ewma:
            ewma = rows.labels["ewma"].reshape(-1, *(1,) * (values.ndim - 1))
            values = np.broadcast_to(ewma, values.shape)
        if head == "tails":
            factors[head] = _tail_factors(rows, values)
        elif head in EXTREMES:
            ratio = realised[:, None] / values
            levels = zip(ratio.T, DRAWDOWN_LEVELS, strict=True)
            factors[head] = np.array([np.quantile(ratios, level) for ratios, level in levels])
        elif head == "path" and is_ewma:
            factors[head] = np.quantile(realised / values[..., 0], PATH_LEVELS, axis=0).T
        elif head == "path":
            low, middle, high = values.transpose(2, 0, 1)
            distance = realised - middle
            widths = np.maximum(-distance / (middle - low), distance / (high - middle))
            factors[head] = np.quantile(widths, _INSIDE, axis=0)
    return {head: list(map(rounded, each.ravel().tolist())) for head, each in factors.items()}


def _tail_factors(rows: Forecasts, tails: Array) -> Array:
    """Return the factors that calibrate values at risk and shortfalls, [tail, share, 2]."""
    factors, realised = np.ones((len(TAILS), len(SHARES), 2)), losses(rows)
    for at in range(len(TAILS)):
        for place, share in enumerate(SHARES):
            at_risk, shortfall = tails[:, at, place].T
            factor = np.quantile(realised[:, at] / at_risk, 1.0 - share)
            breached = realised[:, at] >= factor * at_risk
            mean_ratio = realised[breached, at].sum() / shortfall[breached].sum()
            factors[at, place] = factor, mean_ratio
    return factors


def levelled(table: Forecasts, levels: Levels) -> Forecasts:
    """Return *table* with calibrated heads, and EWMA as a forecaster of the same fields."""
    if not (heads := heads_of(table)):
        return table
    parts = []
    for horizon, rows in table.by_horizon():
        fields = {head: rows.value(head) for head in heads}
        constants = levels_for("ewma", levels, fields, horizon)
        ewma = rows.labels["ewma"]
        scaled = {head: np.multiply.outer(ewma, each) for head, each in constants.items()}
        calibrated = rows.with_fields(MODEL, **with_factors(fields, levels, horizon))
        parts.append(calibrated.with_fields(EWMA, **scaled))
    return concatenated(parts)


# --- figures


def head_figures(table: Forecasts) -> dict[str, Any]:
    """Return the figures of every horizon for a card, each [value, error by day]."""
    return {str(horizon): _figures(rows) for horizon, rows in table.by_horizon()}


def _figures(rows: Forecasts) -> dict[str, Any]:
    sections: dict[str, dict[str, list[float | None]]] = {}
    for head in heads_of(rows):
        shares = coverage(rows, head)
        section = sections[head] = {key: share.rounded() for key, share in shares.items()}
        differences = compare(rows, HEAD_LOSSES[head])
        for key, other in (("less_ewma", EWMA), ("less_average_odds", AVERAGE_ODDS)):
            if other in differences:
                section[key] = DailyEstimate(*differences[other].pair).rounded()
    return sections


def likeliest(rows: Forecasts) -> NDArray[np.int64]:
    """Return the most probable regime of each row; 0 is the calmest."""
    return rows.value("regimes")[:, 0].argmax(axis=1)


def coverage(rows: Forecasts, head: str) -> dict[str, DailyEstimate]:
    """Return how often the outcome lay in the range that *head* forecast, by level."""
    values = rows.value(head).astype(np.float64)
    hits: dict[str, NDArray[np.bool_]] = {}
    match head:
        case "tails":
            realised = losses(rows)
            for at, tail in enumerate(TAILS):
                for place, share in enumerate(SHARES):
                    hits[f"{tail}_{100 * share:g}"] = realised[:, at] > values[:, at, place, 0]
        case "drawdown" | "runup":
            for place, level in enumerate(DRAWDOWN_LEVELS):
                hits[f"below_{100 * level:g}"] = rows.labels[head] <= values[:, place]
        case "path":
            realised = rows.labels["path"]
            for step, bars in enumerate(path_steps(rows.horizons[0])):
                low, _, high = values[:, step].T
                # Steps of a short horizon may end at the same bar and share a key.
                hits[f"inside_{bars}"] = (realised[:, step] >= low) & (realised[:, step] <= high)
        case _:
            for number in range(values.shape[-1]):
                hits[f"share_{number + 1}"] = likeliest(rows) == number
    return {key: statistics.mean(hit.astype(np.float64), rows.day) for key, hit in hits.items()}


def head_sentences(by_horizon: Mapping[str, Any], *, horizon: int, days: int) -> list[str]:
    """Return sentences about the figures of ``head_figures`` at one horizon; empty without them.

    On few *days* every verdict is "level".
    """
    if not (main := by_horizon.get(str(horizon))):
        return []
    lines = []
    if "tails" in main:
        shares = [percent(main["tails"][f"{tail}_5"][0], 1) for tail in TAILS]
        lines.append(
            f"The loss exceeded its value at risk of 5 % at {horizon} bars on {shares[0]} of"
            f" untouched bars for a long position and on {shares[1]} for a short one."
        )
    verdicts = [
        f"{name} {plain_verdict(section['less_ewma'], days)}"
        for name, section in main.items()
        if "less_ewma" in section
    ]
    if verdicts:
        lines.append(
            f"Compared with EWMA volatility times constants at {horizon} bars:"
            f" {', '.join(verdicts)} (level: within two errors by day)."
        )
    if "regimes" in main:
        phrase = _compared(main["regimes"]["less_average_odds"], days)
        lines.append(f"Its probabilities of regimes at {horizon} bars are {phrase} constant ones.")
    return lines


def _compared(pair: Sequence[float | None], days: int) -> str:
    """Return "better than", "worse than" or "level with"."""
    verdict = plain_verdict(pair, days)
    return f"{verdict} {'with' if verdict == 'level' else 'than'}"


def plain_verdict(pair: Sequence[float | None], days: int) -> str:
    """Return "better", "worse", or "level": within two errors, or on few days."""
    value, error = pair
    if value is None or days < FEW_DAYS or not is_credible(value, error):
        return "level"
    return "better" if value < 0 else "worse"


# --- tables


def head_tables(forecasts: Forecasts) -> Iterator[Table]:
    """Yield every table of the auxiliary heads."""
    heads = heads_of(forecasts)
    if not heads:
        return
    horizons = [rows for _, rows in forecasts.by_horizon()]

    def cells(head: str, lines: Callable[[Forecasts], Iterable[Cells]]) -> list[Cells]:
        return [row for rows in horizons if head in heads for row in lines(rows)]

    title = "Value at risk and expected shortfall, by the head of tails"
    tails = cells("tails", lambda rows: breach_rows(rows, rows.value("tails").astype(np.float64)))
    notes = ["The table of risk has the same columns for the Student t."]
    yield table("tails", title, BREACHES, tails, notes=notes)
    for head, title in _COVERED.items():
        yield table(head, title, _COVERAGE, cells(head, partial(_covered, head)))
    title = "Regimes of the coming variance"
    yield table("regimes", title, _REGIMES, cells("regimes", _regimes), notes=[_REGIMES_NOTE])
    metrics = {head: HEAD_LOSSES[head] for head in heads}
    title = "Losses of auxiliary heads, against simpler forecasts (less is better)"
    notes = [NOTE, _LOSSES_NOTE]
    yield forecaster_table("further", title, forecasts, metrics, label_column="head", notes=notes)


_COVERED: Final = {
    "drawdown": "Drawdown to the horizon: share of bars below its quantile",
    "runup": "Run-up to the horizon: share of bars below its quantile",
    "path": "Path: share of returns at a step inside its 90 % interval",
}
_COVERAGE: Final = (
    of_row("horizon", "bars ahead", "count"),
    of_row("outcome", "outcome", "text"),
    of_row("forecast", "forecast", "measure"),
    of_row("realised", "realised", "measure"),
)
_REGIMES: Final = (
    of_row("horizon", "bars ahead", "count"),
    of_row("regime", "regime", "count"),
    of_row("forecast", "variance in it", "measure"),
    of_row("share", "share of bars", "measure"),
    of_row("variance", "realised variance", "measure"),
    of_row("days", "days", "count"),
)
_REGIMES_NOTE: Final = (
    "A bar belongs to its most probable regime; variances are per bar, in units of the bar's σ²."
)
_LOSSES_NOTE: Final = (
    "Tails: joint loss of value at risk and shortfall; drawdown, run-up, path: pinball; regimes: "
    f"log loss. {EWMA}: its volatility times constants of the calibration slice."
)


def _covered(head: str, rows: Forecasts) -> Iterator[Cells]:
    """Yield the ``coverage`` of *head* at each of its levels, a table row each."""
    shares = coverage(rows, head)
    levels = DRAWDOWN_LEVELS if head in EXTREMES else (_INSIDE,) * len(shares)
    noun = "quantile" if head in EXTREMES else "bars"
    for (key, share), level in zip(shares.items(), levels, strict=True):
        name = f"{key.partition('_')[2]} {noun}"
        yield {"horizon": rows.horizons[0], "outcome": name, "forecast": level, "realised": share}


def _regimes(rows: Forecasts) -> Iterator[Cells]:
    """Yield the realised variance where each regime was the most probable."""
    levels = np.exp(rows.value("regimes")[0, 1].astype(np.float64)).tolist()
    for number, share in enumerate(coverage(rows, "regimes").values()):
        inside = rows.where(likeliest(rows) == number)
        yield {
            "horizon": rows.horizons[0],
            "regime": number + 1,
            "forecast": levels[number],
            "share": share,
            "variance": statistics.mean(inside.labels["variance"], inside.day)
            if len(inside)
            else None,
            "days": len(np.unique(inside.day)),
        }


# --- correlations of several symbols


EWMA_NAME: Final = "EWMA"


def ewma_correlations(data: Dataset, part: Part) -> Forecasts | None:
    """Return EWMA's and the realised correlations at the labelled common closes of *part*.

    None without a close that has both.
    """
    parts = []
    for column, horizon in enumerate(data.horizons):
        for samples in data.samples(part) if horizon >= LEAST_BARS else ():
            panel, rows = samples.panel, np.flatnonzero(samples.weights[:, column] > 0)
            # Averages start at zero; the bias cancels in the ratios that correlations are.
            averages = {
                pair: lfilter([1.0 - EWMA_DECAY], [1.0, -EWMA_DECAY], product)[rows]
                for pair, product in products(panel.price).items()
            }
            realised, ewma = correlations(panel.price, horizon)[:, rows], correlated(averages)
            usable = np.isfinite(realised).all(axis=0) & np.isfinite(ewma).all(axis=0)
            opened = panel.segments[0].open_time_ms[rows][usable]
            names = [" ".join(sorted(pair)) for pair in combinations(panel.symbols, 2)]
            for place in np.argsort(names).tolist() if usable.any() else ():
                forecast = {EWMA_NAME: ewma[place, usable]}
                cells = names[place], opened, horizon, data.interval_ms, forecast
                parts.append(pair_rows(*cells, realised[place, usable]))
    return concatenated(parts) if parts else None


def pair_rows(
    pair: str,
    open_time_ms: NDArray[np.int64],
    horizon: int,
    interval_ms: int,
    correlations: Mapping[str, Array],
    realised: Array | None = None,
) -> Forecasts:
    """Return the rows of one pair of symbols: *correlations* [row] by forecaster."""
    count, asset = len(open_time_ms), named_asset(pair)
    return Forecasts(
        np.full(count, asset),
        open_time_ms,
        open_time_ms + horizon * interval_ms,
        np.full(count, horizon),
        interval_ms,
        {} if realised is None else {CORRELATION: realised},
        {name: {CORRELATION: values} for name, values in correlations.items()},
        names={asset: pair},
    )


def with_head(table: Forecasts, head: Forecasts) -> Forecasts | None:
    """Return the rows that *table* and *head* share, with the head's correlations; None if none."""
    place = table.places(head)
    shared = place >= 0
    if not shared.any():
        return None
    correlation = head.value(CORRELATION)[place[shared]]
    return table.where(shared).with_fields(MODEL, **{CORRELATION: correlation})


def correlation_figures(table: Forecasts) -> dict[str, Any]:
    """Return the figures of every horizon for a card, each [value, error by day]."""
    return {
        str(horizon): {
            name.lower(): estimate(PAIRS[CORRELATION], MetricView(rows, name)).rounded()
            for name in rows.values
        }
        for horizon, rows in table.by_horizon()
    }


def correlation_sentences(table: Forecasts, *, horizon: int) -> list[str]:
    """Return a sentence that compares the correlations at *horizon*; empty without it."""
    if horizon not in table.horizons:
        return []
    rows = table.at(horizon)
    difference = compare(rows, PAIRS[CORRELATION])[EWMA_NAME]
    verdict = _compared(difference.pair, difference.days)
    pairs = f"({len(rows.names)} pairs)"
    return [f"Correlations to {horizon} bars, the network's own, are {verdict} EWMA's {pairs}."]
