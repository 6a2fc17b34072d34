"""Heads that only some networks have, and correlations of symbols, beside simpler forecasts.

Beside each head stands EWMA volatility times constants of the calibration slice (filtered
historical simulation; Hull and White, 1998). What is learnt of correlations is ``a·mean + b·EWMA``
with a and b at least 0 and at most 1 together: with one minus both times the identity that is a
correlation matrix, as all three are.

The rules are docs/models.md, L59 to L62.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.signal import lfilter

from tracepaper.replay.document.values import Cells, Table, of_row, table
from tracepaper.replay.learning import statistics
from tracepaper.replay.learning.baselines import EWMA_DECAY
from tracepaper.replay.learning.card import rounded
from tracepaper.replay.learning.dataset import Dataset, close_by_close
from tracepaper.replay.learning.judge.forecasts import (
    MODEL,
    Forecasts,
    concatenated,
    named_asset,
)
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
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.outputs import Levels, levels_for, with_factors
from tracepaper.strategies.types.decisions import (
    DRAWDOWN_LEVELS,
    PATH_LEVELS,
    SHARES,
    TAILS,
    path_steps,
)

EXTREMES: Final = ("drawdown", "runup")
"""Heads whose quantiles are those of a largest move, at ``DRAWDOWN_LEVELS``."""
_INSIDE: Final = PATH_LEVELS[-1] - PATH_LEVELS[0]


def heads_of(rows: Forecasts) -> list[str]:
    """Return the heads that the judged model has."""
    return sorted(head for head in HEAD_LOSSES if rows.gives(head))


# --- what the calibration slice gives


def levels_of(table: Forecasts) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return ``calibration.further`` of a card: what heads and EWMA need to cover *table*."""
    return {
        name: {str(horizon): _factors(rows, is_ewma=name == "ewma") for horizon, rows in each}
        for name in ("ewma", "factors")
        if (each := table.by_horizon())
    }


def _factors(rows: Forecasts, *, is_ewma: bool) -> dict[str, list[float]]:
    """Return by head what it is multiplied by, so that it covers what it should.

    EWMA volatility says itself at every level, so that its factors are levels in units of it.
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
            factors[head] = np.array([np.quantile(of_level, level) for of_level, level in levels])
        elif head == "path" and is_ewma:
            factors[head] = np.quantile(realised / values[..., 0], PATH_LEVELS, axis=0).T
        elif head == "path":
            low, middle, high = values.transpose(2, 0, 1)
            away = realised - middle
            beyond = np.maximum(-away / (middle - low), away / (high - middle))
            factors[head] = np.quantile(beyond, _INSIDE, axis=0)
    return {
        head: [rounded(factor) for factor in of.ravel().tolist()] for head, of in factors.items()
    }


def _tail_factors(rows: Forecasts, tails: Array) -> Array:
    """Return the factors that make values at risk and shortfalls right, [tail, share, 2]."""
    factors, lost = np.ones((len(TAILS), len(SHARES), 2)), losses(rows)
    for at in range(len(TAILS)):
        for place, share in enumerate(SHARES):
            at_risk, shortfall = tails[:, at, place].T
            edge = np.quantile(lost[:, at] / at_risk, 1.0 - share)
            beyond = lost[:, at] >= edge * at_risk
            factors[at, place] = edge, lost[beyond, at].sum() / shortfall[beyond].sum()
    return factors


def levelled(table: Forecasts, levels: Levels) -> Forecasts:
    """Return *table* with heads times the factors of the calibration slice, and EWMA beside them.

    Raises ``CheckpointMismatch`` for levels that do not fit the heads.
    """
    if not (heads := heads_of(table)):
        return table
    parts = []
    for horizon, rows in table.by_horizon():
        fields = {head: rows.value(head) for head in heads}
        usual = levels_for("ewma", levels, fields, horizon)
        scaled = {head: np.multiply.outer(rows.labels["ewma"], of) for head, of in usual.items()}
        parts.append(rows.holding("network", **with_factors(fields, levels, horizon)))
        parts[-1] = parts[-1].holding(EWMA, **scaled)
    return concatenated(parts)


# --- figures


def head_figures(table: Forecasts) -> dict[str, Any]:
    """Return the figures of every horizon for a card, each [value, standard error by day]."""
    return {str(horizon): _figures(rows) for horizon, rows in table.by_horizon()}


def _figures(rows: Forecasts) -> dict[str, Any]:
    sections: dict[str, dict[str, list[float | None]]] = {}
    for head in heads_of(rows):
        section = sections[head] = {key: of.rounded() for key, of in coverage(rows, head).items()}
        difference = compare(rows, HEAD_LOSSES[head])
        for key, other in (("less_ewma", EWMA), ("less_average_odds", AVERAGE_ODDS)):
            if other in difference:
                section[key] = DailyEstimate(*difference[other].pair).rounded()
    return sections


def likeliest(rows: Forecasts) -> NDArray[np.int64]:
    """Return the most probable regime of each row, from 0, the calmest."""
    return rows.value("regimes")[:, 0].argmax(axis=1)


def coverage(rows: Forecasts, head: str) -> dict[str, DailyEstimate]:
    """Return how often what was realised lay where *head* said, by its levels."""
    values = rows.value(head).astype(np.float64)
    hits: dict[str, NDArray[np.bool_]] = {}
    match head:
        case "tails":
            lost = losses(rows)
            for at, tail in enumerate(TAILS):
                for place, share in enumerate(SHARES):
                    hits[f"{tail}_{100 * share:g}"] = lost[:, at] > values[:, at, place, 0]
        case "drawdown" | "runup":
            for place, level in enumerate(DRAWDOWN_LEVELS):
                hits[f"below_{100 * level:g}"] = rows.labels[head] <= values[:, place]
        case "path":
            realised = rows.labels["path"]
            for step, bars in enumerate(path_steps(rows.horizons[0])):
                low, _, high = values[:, step].T
                # Steps of a horizon of few bars may end together.
                hits[f"inside_{bars}"] = (realised[:, step] >= low) & (realised[:, step] <= high)
        case _:
            for number in range(values.shape[-1]):
                hits[f"share_{number + 1}"] = likeliest(rows) == number
    return {key: statistics.mean(hit.astype(np.float64), rows.day) for key, hit in hits.items()}


def head_sentences(by_horizon: Mapping[str, Any], *, horizon: int, days: int) -> list[str]:
    """Say what the figures of ``head_figures`` come to at one horizon; nothing of none.

    On few *days* every head is level with the others.
    """
    if not (main := by_horizon.get(str(horizon))):
        return []
    lines = []
    if "tails" in main:
        shares = [f"{100 * main['tails'][f'{tail}_5'][0]:.1f} %" for tail in TAILS]
        lines.append(
            f"The loss exceeded its value at risk of 5 % at {horizon} bars on {shares[0]} of"
            f" untouched bars for a long position and on {shares[1]} for a short one."
        )
    words = [
        f"{name} {plain_verdict(section['less_ewma'], days)}"
        for name, section in main.items()
        if "less_ewma" in section
    ]
    if words:
        lines.append(
            f"Compared with EWMA volatility times constants at {horizon} bars: {', '.join(words)}"
            " (level: within two standard errors by day)."
        )
    if "regimes" in main:
        word = _compared(main["regimes"]["less_average_odds"], days)
        lines.append(f"Its probabilities of regimes at {horizon} bars are {word} constant ones.")
    return lines


def _compared(pair: Sequence[float | None], days: int) -> str:
    """Return the verdict with the word that follows it before what it is compared with."""
    verdict = plain_verdict(pair, days)
    return f"{verdict} {'with' if verdict == 'level' else 'than'}"


def plain_verdict(pair: Sequence[float | None], days: int) -> str:
    """Return whether a difference is better, worse, or level: within two errors or on few days."""
    value, error = pair
    if value is None or days < FEW_DAYS or not is_credible(value, error):
        return "level"
    return "better" if value < 0 else "worse"


# --- tables


def head_tables(forecasts: Forecasts) -> Iterator[Table]:
    """Yield every table of the heads that only some networks have."""
    heads = heads_of(forecasts)
    if not heads:
        return
    every = [rows for _, rows in forecasts.by_horizon()]

    def of(head: str, lines: Callable[[Forecasts], Iterable[Cells]]) -> list[Cells]:
        return [row for rows in every if head in heads for row in lines(rows)]

    title = "Value at risk and expected shortfall, by the head of tails"
    tails = of("tails", lambda rows: breach_rows(rows, rows.value("tails").astype(np.float64)))
    notes = ["Read as the table of risk, which is of the Student t."]
    yield table("tails", title, BREACHES, tails, notes=notes)
    for head, title in _COVERED.items():
        yield table(head, title, _COVERAGE, of(head, partial(_covered, head)))
    title = "Regimes of the coming variance"
    yield table("regimes", title, _REGIMES, of("regimes", _regimes), notes=[_REGIMES_NOTE])
    metrics = {head: HEAD_LOSSES[head] for head in heads}
    title = "Losses of auxiliary heads, against simpler forecasts (less is better)"
    notes = [NOTE, _LOSSES_NOTE]
    yield forecaster_table("further", title, forecasts, metrics, of="head", notes=notes)


_COVERED: Final = {
    "drawdown": "Drawdown to the horizon: share of bars below its quantile",
    "runup": "Run-up to the horizon: share of bars below its quantile",
    "path": "Path: share of returns at a step inside its 90 % interval",
}
_COVERAGE: Final = (
    of_row("horizon", "bars ahead", "count"),
    of_row("of", "of", "text"),
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
    "A bar counts to its most probable regime; variances in units of σ² of the bar, a bar."
)
_LOSSES_NOTE: Final = (
    "Tails by the joint loss of both, drawdown, run-up and path by pinball, regimes by likelihood. "
    f"{EWMA}: its volatility times constants of the calibration slice."
)


def _covered(head: str, rows: Forecasts) -> Iterator[Cells]:
    """Yield how often what was realised lay where *head* said, at each of its levels."""
    shares = coverage(rows, head)
    levels = DRAWDOWN_LEVELS if head in EXTREMES else (_INSIDE,) * len(shares)
    of = "quantile" if head in EXTREMES else "bars"
    for (key, share), level in zip(shares.items(), levels, strict=True):
        name = f"{key.partition('_')[2]} {of}"
        yield {"horizon": rows.horizons[0], "of": name, "forecast": level, "realised": share}


def _regimes(rows: Forecasts) -> Iterator[Cells]:
    """Yield what was realised where each regime was the most probable."""
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


LEARNT: Final = "learnt"
OTHERS: Final = ("EWMA", "mean of the training part")
"""What the learnt correlations are made of, and held against."""
_OF: Final = {LEARNT: "learnt of EWMA and the training part", MODEL: "the network's own"}
_BESIDE: Final = {OTHERS[0]: "EWMA's", OTHERS[1]: "the training part's mean", LEARNT: "their blend"}


def learn_correlations(material: Dataset) -> dict[str, dict[str, Any]]:
    """Return ``calibration.correlation`` of a card, learnt of the training part, by horizon.

    Empty of a single symbol, and of symbols without enough bars in common.
    """
    table, by_horizon = _pairs(material, Part.TRAIN), {}
    for horizon, rows in [] if table is None else table.by_horizon():
        realised = rows.labels[CORRELATION]
        mean = {asset: float(realised[rows.asset == asset].mean()) for asset in rows.names}
        usual = np.array([mean[asset] for asset in rows.asset.tolist()])
        sides = np.stack([usual, rows.value(CORRELATION, OTHERS[0])], axis=1)
        weights = _weights(sides, realised)
        by_horizon[str(horizon)] = {
            "pairs": list(rows.names.values()),
            "mean": [rounded(value) for value in mean.values()],
            "mean_weight": rounded(weights[0]),
            "ewma_weight": rounded(weights[1]),
        }
    return by_horizon


def _weights(sides: Array, realised: Array) -> tuple[float, float]:
    """Return the weights of least squares of *sides* [row, 2], at least 0, at most 1 together."""
    first, second = nnls(sides, realised)[0].tolist()
    if first + second <= 1.0:
        return first, second
    along = sides[:, 1] - sides[:, 0]
    share = float(along @ (realised - sides[:, 0]) / max(float(along @ along), 1e-300))
    share = min(max(share, 0.0), 1.0)
    return 1.0 - share, share


def correlations_of(
    material: Dataset, part: Part, learnt: Mapping[str, Mapping[str, Any]]
) -> Forecasts | None:
    """Return the correlations of *part* by *learnt*, of a card, beside what was realised.

    Each row is a pair, of those that the card knows and the candles hold; None where there is none.
    Raises ``CheckpointMismatch`` for what cannot be read.
    """
    table, parts = _pairs(material, part) if learnt else None, []
    for horizon, every in [] if table is None else table.by_horizon():
        if (section := learnt.get(str(horizon))) is None:
            continue
        mean, mean_weight, ewma_weight = _read(section)
        names = {asset: pair for asset, pair in every.names.items() if pair in mean}
        rows = replace(every.where(np.isin(every.asset, list(names))), names=names)
        ewma = rows.value(CORRELATION, OTHERS[0])
        usual = np.array([mean[names[asset]] for asset in rows.asset.tolist()])
        forecast = {LEARNT: mean_weight * usual + ewma_weight * ewma, OTHERS[0]: ewma}
        forecast[OTHERS[1]] = usual
        values = {name: {CORRELATION: of} for name, of in forecast.items()}
        parts += [replace(rows, values=values)] if len(rows) else []
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
        {name: {CORRELATION: of} for name, of in correlations.items()},
        names={asset: pair},
    )


def with_head(table: Forecasts, head: Forecasts) -> Forecasts | None:
    """Return the rows of *table* at which a network's *head* answers too, with its correlations.

    None where there is no such row.
    """
    place = table.places(head)
    both = place >= 0
    if not both.any():
        return None
    correlation = head.value(CORRELATION)[place[both]]
    return table.where(both).holding(MODEL, **{CORRELATION: correlation})


def _read(section: Mapping[str, Any]) -> tuple[dict[str, float], float, float]:
    try:
        mean = dict(zip(section["pairs"], map(float, section["mean"]), strict=True))
        return mean, float(section["mean_weight"]), float(section["ewma_weight"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointMismatch(
            f"The card's calibration.correlation cannot be read ({shown(error)}); train it again."
        ) from None


def correlation_figures(table: Forecasts) -> dict[str, Any]:
    """Return the figures of every horizon for a card, each [value, standard error by day]."""
    return {
        str(horizon): {
            name.replace(" ", "_").lower(): estimate(
                PAIRS[CORRELATION], MetricView(rows, name)
            ).rounded()
            for name in rows.values
        }
        for horizon, rows in table.by_horizon()
    }


def correlation_sentences(table: Forecasts, *, horizon: int) -> list[str]:
    """Say how the judged correlations stand beside others at one horizon; nothing of none."""
    if horizon not in table.horizons:
        return []
    rows = table.at(horizon)
    judged = MODEL if MODEL in rows.values else LEARNT
    differences = compare(rows, PAIRS[CORRELATION], judged)
    return [
        f"Correlations to {horizon} bars, {_OF[judged]}, are "
        f"{_compared(differences[name].pair, differences[name].days)} {words} "
        f"({len(rows.names)} pairs)."
        for name, words in _BESIDE.items()
        if name == OTHERS[0] or judged == MODEL
    ]


def _pairs(material: Dataset, part: Part) -> Forecasts | None:
    """Return EWMA's correlations at the labelled closes of *part*, beside the realised.

    None of fewer than two symbols, and where no close that all have knows any at all horizons.
    """
    if len({segment.candles.symbol for segment in material.segments}) < 2:
        return None
    try:
        is_together = bool(material.panel_symbols)
        data = material if is_together else close_by_close(material, lambda _: material.split)
        closes = data.samples(part)
    except (ConfigInvalid, DataInvalid):
        return None
    parts = []
    for column, horizon in enumerate(material.horizons):
        for of in closes if horizon >= LEAST_BARS else ():
            panel, rows = of.panel, np.flatnonzero(of.weights[:, column] > 0)
            # From zero at the start of the panel: ratios of it count.
            smooth = {
                pair: lfilter([1.0 - EWMA_DECAY], [1.0, -EWMA_DECAY], product)[rows]
                for pair, product in products(panel.price).items()
            }
            realised, ewma = correlations(panel.price, horizon)[:, rows], correlated(smooth)
            usable = np.isfinite(realised).all(axis=0) & np.isfinite(ewma).all(axis=0)
            opened = panel.segments[0].open_time_ms[rows][usable]
            names = [" ".join(sorted(pair)) for pair in combinations(panel.symbols, 2)]
            for place in np.argsort(names).tolist() if usable.any() else ():
                of_pair = {OTHERS[0]: ewma[place, usable]}
                cells = names[place], opened, horizon, material.interval_ms, of_pair
                parts.append(pair_rows(*cells, realised[place, usable]))
    return concatenated(parts) if parts else None
