"""The heads that only some networks have, held to what was realised and to simpler forecasts.

Tails, drawdown, regimes and path of every labelled bar. Tails, drawdown and path are taken times
factors by which they cover what they should of the calibration slice. Beside each stands the
simplest forecast of its kind: EWMA volatility times constants of the same slice (filtered
historical simulation; Hull and White, 1998).

The rules are docs/models.md, L59 to L61.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.document.values import Figure, Table, Value, table
from tracepaper.replay.learning import statistics
from tracepaper.replay.learning.card import rounded
from tracepaper.replay.learning.judge.forecasts import Forecasts, concatenated
from tracepaper.replay.learning.judge.metrics import HEAD_LOSSES, MetricView
from tracepaper.replay.learning.judge.tails import (
    SIDE_WORDS,
    Breaches,
    Tail,
    count_breaches,
    value_at_risk,
)
from tracepaper.replay.learning.statistics import (
    DailyEstimate,
    DayDifference,
    corrected,
    difference,
    verdict,
)
from tracepaper.replay.report.honesty import FEW_DAYS, LEVEL
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

EWMA: Final = "EWMA, scaled"
STUDENT_T: Final = "its own Student t"
AVERAGE_ODDS: Final = "its average odds"
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
        "ewma": {str(horizon): _listed(_ewma(rows)) for horizon, rows in table.by_horizon()},
        "factors": {str(horizon): _listed(_factors(rows)) for horizon, rows in table.by_horizon()},
    }


def _listed(made: Mapping[str, Array]) -> dict[str, list[float]]:
    return {name: [rounded(one) for one in of.ravel().tolist()] for name, of in made.items()}


def _ewma(rows: Forecasts) -> dict[str, Array]:
    """Return by head the levels that what was realised had in units of EWMA volatility."""
    levels: dict[str, Array] = {}
    ewma, heads = rows.labels["ewma"], heads_of(rows)
    if "tails" in heads:
        even = np.broadcast_to(ewma[:, None, None, None], (len(rows), 2, len(SHARES), 2))
        levels["tails"] = _tail_factors(rows, even)
    for name in EXTREMES:
        if name in heads:
            levels[name] = np.quantile(rows.labels[name] / ewma, DRAWDOWN_LEVELS)
    if "path" in heads:
        realised = rows.labels["path"] / ewma[:, None]
        levels["path"] = np.quantile(realised, PATH_LEVELS, axis=0).T
    return levels


def _factors(rows: Forecasts) -> dict[str, Array]:
    """Return by head what it is multiplied by, so that it covers what it should."""
    factors: dict[str, Array] = {}
    heads = heads_of(rows)
    if "tails" in heads:
        factors["tails"] = _tail_factors(rows, rows.value("tails").astype(np.float64))
    for name in EXTREMES:
        if name in heads:
            ratio = rows.labels[name][:, None] / rows.value(name)
            factors[name] = np.array(
                [np.quantile(ratio[:, at], level) for at, level in enumerate(DRAWDOWN_LEVELS)]
            )
    if "path" in heads:
        low, middle, high = rows.value("path").astype(np.float64).transpose(2, 0, 1)
        away = rows.labels["path"] - middle
        beyond = np.maximum(-away / (middle - low), away / (high - middle))
        factors["path"] = np.quantile(beyond, _INSIDE, axis=0)
    return factors


def _tail_factors(rows: Forecasts, tails: Array) -> Array:
    """Return what makes values at risk and shortfalls right, [tail, share, 2]."""
    factors = np.ones((len(TAILS), len(SHARES), 2))
    for at, sign in enumerate((-1.0, 1.0)):
        lost = sign * rows.labels["returns"]
        for place, share in enumerate(SHARES):
            at_risk, shortfall = tails[:, at, place].T
            edge = np.quantile(lost / at_risk, 1.0 - share)
            beyond = lost >= edge * at_risk
            factors[at, place] = edge, lost[beyond].sum() / shortfall[beyond].sum()
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
    found: dict[str, dict[str, list[float | None]]] = {}
    for head in heads_of(rows):
        section = found[head] = {key: of.rounded() for key, of in coverage(rows, head).items()}
        for key, other in (("less_ewma", EWMA), ("less_average_odds", AVERAGE_ODDS)):
            if (less := _less(rows, head, other)) is not None:
                section[key] = statistics.mean(less, rows.day).rounded()
    return found


def _less(rows: Forecasts, head: str, other: str) -> Array | None:
    """Return the loss of *head* less that of a simpler forecast; None where it gives none."""
    simpler = _simpler(rows, head, other)
    if simpler is None:
        return None
    terms = HEAD_LOSSES[head].terms
    return terms(MetricView(rows)) - terms(
        MetricView(rows.holding(other, **{head: simpler}), other)
    )


def _simpler(rows: Forecasts, head: str, other: str) -> NDArray[Any] | None:
    """Return what a simpler forecast says in place of *head*."""
    if other == EWMA and head in rows.values.get(EWMA, {}):
        return rows.value(head, EWMA)
    if other == STUDENT_T and head == "tails":
        return _student_t(rows)
    if other == AVERAGE_ODDS and head == "regimes":
        return average_odds(rows)
    return None


def average_odds(rows: Forecasts) -> NDArray[Any]:
    """Return a forecast of regimes that gives each bar the rows' mean odds."""
    regimes = rows.value("regimes").copy()
    regimes[:, 0] = np.log(np.exp(regimes[:, 0]).mean(axis=0))
    return regimes


def _student_t(rows: Forecasts) -> Array:
    """Return the tails of the forecast's own Student t: [row, long and short, share, 2]."""
    mean, scale, dof = (rows.value(field) for field in ("mean", "scale", "dof"))
    sides = [
        np.stack(
            [np.stack(value_at_risk(sign * mean, scale, dof, share), -1) for share in SHARES],
            axis=1,
        )
        for sign in SIDE_WORDS.values()
    ]
    return np.stack(sides, axis=1)


def likeliest(rows: Forecasts) -> NDArray[np.int64]:
    """Return the most probable regime of each row, from 0, the calmest."""
    found: NDArray[np.int64] = rows.value("regimes")[:, 0].argmax(axis=1)
    return found


def coverage(rows: Forecasts, head: str) -> dict[str, DailyEstimate]:
    """Return how often what was realised lay where *head* said, by its levels."""
    values = rows.value(head).astype(np.float64)
    hits: dict[str, NDArray[np.bool_]] = {}
    match head:
        case "tails":
            returns = rows.labels["returns"]
            lost = np.stack((-returns, returns), axis=1)
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


def head_sentences(found: Mapping[str, Any], *, horizon: int, days: int) -> list[str]:
    """Say what the figures of ``head_figures`` come to at one horizon; nothing of none.

    On few *days* every head is level with the others.
    """
    if not (main := found.get(str(horizon))):
        return []
    lines = []
    if "tails" in main:
        shares = [f"{100 * main['tails'][f'{tail}_5'][0]:.1f} %" for tail in TAILS]
        lines.append(
            f"Its value at risk of 5 % at {horizon} bars was passed by {shares[0]} of untouched"
            f" bars for a long and {shares[1]} for a short position."
        )
    words = [
        f"{name} {plain_verdict(section['less_ewma'], days)}"
        for name, section in main.items()
        if "less_ewma" in section
    ]
    if words:
        lines.append(
            f"Beside EWMA volatility times constants, at {horizon} bars: {', '.join(words)} (better"
            " or worse by more than two errors by day, or level)."
        )
    if "regimes" in main:
        word = plain_verdict(main["regimes"]["less_average_odds"], days)
        lines.append(f"Its odds of regimes are {word} beside their average at {horizon} bars.")
    return lines


def plain_verdict(pair: Sequence[float | None], days: int) -> str:
    """Return whether a difference is better, worse, or level: within two errors or on few days."""
    value, error = pair
    if value is None or days < FEW_DAYS or not is_credible(value, error):
        return "level"
    return "better" if value < 0 else "worse"


# --- tables


BREACH_FIGURES: Final[Sequence[Figure[Breaches]]] = (
    Figure("horizon", "bars ahead", "count", lambda one: one.horizon),
    Figure("tail", "value at risk", "text", lambda one: one.tail),
    Figure("share", "said", "measure", lambda one: one.share),
    Figure("came", "came", "measure", lambda one: one.came),
    Figure("bars", "bars apart", "count", lambda one: one.bars),
    Figure("often", "p, as often", "measure", lambda one: one.often),
    Figure("apart", "p, apart", "measure", lambda one: one.apart),
    Figure("shortfall", "loss beyond ÷ said", "measure", lambda one: one.shortfall),
)


def head_tables(forecasts: Forecasts) -> Iterator[Table]:
    """Yield every table of the heads that only some networks have."""
    heads = heads_of(forecasts)
    if not heads:
        return
    every = [rows for _, rows in forecasts.by_horizon()]
    yield table(
        "tails",
        "Value at risk and expected shortfall, by the head of tails",
        BREACH_FIGURES,
        [breaches for rows in every if "tails" in heads for breaches in _breaches(rows)],
        notes=["Read as the table of risk, which is of the Student t."],
    )
    yield _levels(every, "drawdown", "Drawdown to the horizon: share of bars below its quantile")
    yield _levels(every, "runup", "Run-up to the horizon: share of bars below its quantile")
    yield _levels(every, "path", "Path: share of returns at a step inside its 90 % interval")
    yield _regimes(every)
    yield from _compared(every)


def _breaches(rows: Forecasts) -> Iterator[Breaches]:
    tails = rows.value("tails").astype(np.float64)
    for at, (words, sign) in enumerate(SIDE_WORDS.items()):
        for place, share in enumerate(SHARES):
            limit, expected = tails[:, at, place].T
            lost = sign * rows.labels["returns"]
            yield count_breaches(
                rows, words, share, Tail(lost, np.zeros_like(lost), limit, expected)
            )


class _Level(NamedTuple):
    """How often what was realised lay where one head said."""

    horizon: int
    of: str
    level: float
    share: Value


def _levels(every: Sequence[Forecasts], head: str, title: str) -> Table:
    lines = []
    for rows in every if every[0].gives(head) else ():
        shares = coverage(rows, head)
        levels = DRAWDOWN_LEVELS if head in EXTREMES else (_INSIDE,) * len(shares)
        words = "quantile" if head in EXTREMES else "bars"
        lines += [
            _Level(rows.horizons[0], f"{key.partition('_')[2]} {words}", level, share)
            for (key, share), level in zip(shares.items(), levels, strict=True)
        ]
    columns: list[Figure[_Level]] = [
        Figure("horizon", "bars ahead", "count", lambda row: row.horizon),
        Figure("of", "of", "text", lambda row: row.of),
        Figure("said", "said", "measure", lambda row: row.level),
        Figure("came", "came", "measure", lambda row: row.share),
    ]
    return table(head, title, columns, lines)


class _Regime(NamedTuple):
    """What was realised where one regime was the most probable."""

    horizon: int
    regime: int
    level: float
    share: Value
    variance: Value
    days: int


def _regimes(every: Sequence[Forecasts]) -> Table:
    lines = []
    for rows in every if every[0].gives("regimes") else ():
        levels = np.exp(rows.value("regimes")[0, 1].astype(np.float64))
        for number, share in enumerate(coverage(rows, "regimes").values()):
            inside = likeliest(rows) == number
            days = rows.day[inside]
            variance = rows.labels["variance"][inside]
            realised = statistics.mean(variance, days) if inside.any() else None
            counted = len(np.unique(days))
            level = float(levels[number])
            lines.append(_Regime(rows.horizons[0], number + 1, level, share, realised, counted))
    columns: list[Figure[_Regime]] = [
        Figure("horizon", "bars ahead", "count", lambda row: row.horizon),
        Figure("regime", "regime", "count", lambda row: row.regime),
        Figure("said", "variance in it", "measure", lambda row: row.level),
        Figure("share", "share of bars", "measure", lambda row: row.share),
        Figure("variance", "variance that came", "measure", lambda row: row.variance),
        Figure("days", "days", "count", lambda row: row.days),
    ]
    note = "A bar counts to its most probable regime; variances in units of σ² of the bar, a bar."
    return table("regimes", "Regimes of the coming variance", columns, lines, notes=[note])


class _HeadComparison(NamedTuple):
    """One head held to a simpler forecast."""

    horizon: int
    head: str
    other: str


def _compared(every: Sequence[Forecasts]) -> Iterator[Table]:
    """Yield each head's loss less that of a simpler forecast, corrected over all horizons."""
    differences: dict[_HeadComparison, DayDifference] = {}
    for rows in every:
        for head in heads_of(rows):
            for other in (EWMA, STUDENT_T, AVERAGE_ODDS):
                if (less := _less(rows, head, other)) is not None:
                    key = _HeadComparison(rows.horizons[0], head, other)
                    differences[key] = difference(less, np.zeros_like(less), rows.day)
    fair = corrected(differences)
    columns: list[Figure[_HeadComparison]] = [
        Figure("head", "head", "text", lambda row: row.head),
        Figure("other", "beside", "text", lambda row: row.other),
        Figure("difference", "loss less the other's", "measure", lambda row: fair[row].pair),
        Figure("p", "p", "measure", lambda row: fair[row].p),
        Figure("verdict", "verdict", "text", lambda row: verdict(fair[row])),
    ]
    note = (
        "Tails by the joint loss of both, drawdown, run-up and path by pinball, regimes by "
        "likelihood; p by Student's t over days, Holm over all horizons; less is better, and "
        f"credible with p below {LEVEL}. {EWMA}: its volatility times constants of the "
        "calibration slice."
    )
    for horizon in dict.fromkeys(key.horizon for key in fair):
        lines = [key for key in fair if key.horizon == horizon]
        title = f"Further heads beside simpler forecasts, {horizon} bars ahead"
        yield table(f"further_{horizon}", title, columns, lines, notes=[note])
