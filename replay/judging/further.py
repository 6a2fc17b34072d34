"""Tables of the heads that only some networks have: tails, drawdown, regimes, path.

Each is held to what came, and its loss to that of a simpler forecast on the same bars, by day; so
are the correlations of several symbols.

The rules are docs/models.md, L59 to L62.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from tracepaper.replay.document.values import Figure, Table, Value, table
from tracepaper.replay.judging.judgement import SpanJudgement
from tracepaper.replay.judging.risk import TAILS, Breaches, TailSaid, held
from tracepaper.replay.training import figures
from tracepaper.replay.training.evaluation import HorizonForecasts
from tracepaper.replay.training.further import (
    EWMA,
    FurtherForecasts,
    coverage,
)
from tracepaper.replay.training.honesty import LEVEL
from tracepaper.replay.training.paired import (
    DayDifference,
    corrected,
    difference,
    verdict,
)
from tracepaper.replay.training.tails import value_at_risk
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.architecture import DRAWDOWN_LEVELS, PATH_LEVELS, SHARES

STUDENT_T: Final = "its own Student t"
AVERAGE_ODDS: Final = "its average odds"


def further_tables(judgement: SpanJudgement, columns: list[Figure[Breaches]]) -> Iterator[Table]:
    """Yield every table of the further heads, *columns* those of what came of values at risk."""
    every = judgement.judged.further
    if not every:
        return
    yield table(
        "tails",
        "Value at risk and expected shortfall, by the head of tails",
        columns,
        [found for one in every for found in _breaches(one)],
        notes=["Read as the table of risk, which is of the Student t."],
    )
    yield _levels(every, "drawdown", "Drawdown to the horizon: share of bars below its quantile")
    yield _levels(every, "path", "Path: share of returns at a step inside its 90 % interval")
    yield _regimes(every)
    yield from _beside(judgement)


def _breaches(one: FurtherForecasts) -> Iterator[Breaches]:
    if "tails" not in one.said:
        return
    said = one.said["tails"].astype(np.float64)
    for at, (tail, sign) in enumerate(TAILS.items()):
        for place, share in enumerate(SHARES):
            limit, expected = said[:, at, place].T
            lost = sign * one.labels["returns"]
            yield held(
                TailSaid(one.horizon, tail, share, lost, limit, expected), one.keys, one.days
            )


class _Correlation(NamedTuple):
    """How far one forecast of correlations lay from what came, and the judged one less it."""

    horizon: int
    name: str
    error: Value
    less: DayDifference | None


def correlation_tables(judgement: SpanJudgement) -> Iterator[Table]:
    """Yield what came of the correlations of all pairs, learnt or by a head, beside others."""
    every = judgement.judged.correlations
    own = every[0].own if every else ""
    less = corrected(
        {
            f"{one.horizon} {name}": difference(one.loss(one.own), one.loss(name), one.days)
            for one in every
            for name in one.said
            if name != one.own
        }
    )
    rows = [
        _Correlation(
            one.horizon,
            name,
            figures.mean(one.loss(name), one.days),
            less.get(f"{one.horizon} {name}"),
        )
        for one in every
        for name in one.said
    ]
    columns: list[Figure[_Correlation]] = [
        Figure("horizon", "bars ahead", "count", lambda row: row.horizon),
        Figure("name", "correlations", "text", lambda row: row.name),
        Figure("error", "mean squared error", "measure", lambda row: row.error),
        Figure("less", f"{own} less it", "measure", lambda row: row.less and row.less.pair),
        Figure("p", "p", "measure", lambda row: row.less and row.less.p),
        Figure("verdict", "verdict", "text", lambda row: row.less and verdict(row.less)),
    ]
    pairs = ", ".join(every[0].pairs) if every else ""
    note = (
        f"Of one-bar returns to the horizon, pairs {pairs}; p by Student's t over days, Holm over "
        "the rows."
    )
    title = "Correlations to the horizon"
    yield table("correlation", title, columns, rows, notes=[note] if rows else [])


class _Level(NamedTuple):
    """How often what came lay where one head said."""

    horizon: int
    of: str
    said: float
    came: Value


def _levels(every: Sequence[FurtherForecasts], head: str, title: str) -> Table:
    inside = PATH_LEVELS[-1] - PATH_LEVELS[0]
    rows = []
    for one in every if head in every[0].said else ():
        found = coverage(one, head)
        levels = DRAWDOWN_LEVELS if head == "drawdown" else (inside,) * len(found)
        words = "quantile" if head == "drawdown" else "bars"
        rows += [
            _Level(one.horizon, f"{key.partition('_')[2]} {words}", level, pair)
            for (key, pair), level in zip(found.items(), levels, strict=True)
        ]
    columns: list[Figure[_Level]] = [
        Figure("horizon", "bars ahead", "count", lambda row: row.horizon),
        Figure("of", "of", "text", lambda row: row.of),
        Figure("said", "said", "measure", lambda row: row.said),
        Figure("came", "came", "measure", lambda row: row.came),
    ]
    return table(head, title, columns, rows)


class _Regime(NamedTuple):
    """What came where one regime was the most probable."""

    horizon: int
    regime: int
    said: float
    share: Value
    variance: Value
    days: int


def _regimes(every: Sequence[FurtherForecasts]) -> Table:
    rows = []
    for one in every if "regimes" in every[0].said else ():
        level = np.exp(one.said["regimes"][0, 1].astype(np.float64))
        for number, share in enumerate(coverage(one, "regimes").values()):
            inside = one.regime == number
            days = one.days[inside]
            came = figures.mean(one.labels["variance"][inside], days) if inside.any() else None
            of_days = len(np.unique(days))
            said = float(level[number])
            rows.append(_Regime(one.horizon, number + 1, said, share, came, of_days))
    columns: list[Figure[_Regime]] = [
        Figure("horizon", "bars ahead", "count", lambda row: row.horizon),
        Figure("regime", "regime", "count", lambda row: row.regime),
        Figure("said", "variance in it", "measure", lambda row: row.said),
        Figure("share", "share of bars", "measure", lambda row: row.share),
        Figure("variance", "variance that came", "measure", lambda row: row.variance),
        Figure("days", "days", "count", lambda row: row.days),
    ]
    note = "A bar counts to its most probable regime; variances in units of σ² of the bar, a bar."
    return table("regimes", "Regimes of the coming variance", columns, rows, notes=[note])


def _beside(judgement: SpanJudgement) -> Iterator[Table]:
    """Yield each head's loss less that of a simpler forecast, corrected over all horizons."""
    found: dict[str, DayDifference] = {}
    named: dict[int, list[tuple[str, str, str]]] = {}
    for one in judgement.judged.further:
        for head, other, values in _others(one, judgement.horizons):
            key = f"{one.horizon} {head} {other}"
            own = one.loss(head, one.said[head])
            found[key] = difference(own, one.loss(head, values), one.days)
            named.setdefault(one.horizon, []).append((head, other, key))
    fair = corrected(found)
    columns: list[Figure[_Beside]] = [
        Figure("head", "head", "text", lambda row: row.head),
        Figure("other", "beside", "text", lambda row: row.other),
        Figure("difference", "loss less the other's", "measure", lambda row: row.less.pair),
        Figure("p", "p", "measure", lambda row: row.less.p),
        Figure("verdict", "verdict", "text", lambda row: verdict(row.less)),
    ]
    note = (
        "Tails by the joint loss of both, drawdown and path by pinball, regimes by likelihood; p "
        f"by Student's t over days, Holm over all horizons; less is better, and credible with p "
        f"below {LEVEL}. {EWMA}: its volatility times constants of the calibration slice."
    )
    for horizon, keys in named.items():
        rows = [_Beside(head, other, fair[key]) for head, other, key in keys]
        title = f"Further heads beside simpler forecasts, {horizon} bars ahead"
        yield table(f"further_{horizon}", title, columns, rows, notes=[note])


class _Beside(NamedTuple):
    """One head held to a simpler forecast."""

    head: str
    other: str
    less: DayDifference


def _others(
    one: FurtherForecasts, horizons: Sequence[HorizonForecasts]
) -> Iterator[tuple[str, str, Array]]:
    """Yield each head with what it is held against, by name, and what that says."""
    for head, values in one.scaled.items():
        if head in one.said:
            yield head, EWMA, values
    for plain in horizons:
        if (
            "tails" in one.said
            and np.array_equal(plain.keys, one.keys)
            and (plain.horizon == one.horizon)
        ):
            yield "tails", STUDENT_T, _student_t(plain)
    if "regimes" in one.said:
        yield "regimes", AVERAGE_ODDS, one.at_average_odds().astype(np.float64)


def _student_t(plain: HorizonForecasts) -> Array:
    """Return the tails of the forecast's own Student t: [row, long and short, share, 2]."""
    return np.stack(
        [
            np.stack(
                [
                    np.stack(value_at_risk(sign * plain.mean, plain.scale, plain.dof, share), -1)
                    for share in SHARES
                ],
                axis=1,
            )
            for sign in TAILS.values()
        ],
        axis=1,
    )
