"""Tables of auxiliary heads, and of networks over several assets.

Each is held to what came, and its loss to that of a simpler forecast on the same bars, by day; so
are the correlations of several symbols.

Ranks are compared close by close, weights day by day, with errors by day as of every comparison.

The rules are docs/models.md, L59 to L62; docs/several.md, P31.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.document.values import Cells, Figure, Table, Value, of_row, table
from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.evaluation.auxiliary_heads import (
    EWMA,
    EXTREMES,
    AuxiliaryForecasts,
    coverage,
)
from tracepaper.replay.learning.evaluation.cross_section import (
    NETWORK,
    RELATIVE,
    AcrossAssets,
    CloseRanks,
    PortfolioReturns,
    close_ranks,
)
from tracepaper.replay.learning.evaluation.evaluate import Rival, SpanJudgement, on_same_bars, words
from tracepaper.replay.learning.evaluation.forecasts import HorizonForecasts
from tracepaper.replay.learning.evaluation.tails import (
    SIDE_WORDS,
    Breaches,
    RiskForecast,
    count_breaches,
    value_at_risk,
)
from tracepaper.replay.learning.panel import LEAST
from tracepaper.replay.learning.splits import SYMBOL_MASK
from tracepaper.replay.learning.statistics import (
    DayDifference,
    corrected,
    difference,
    less_others,
    verdict,
)
from tracepaper.replay.report.honesty import FEW_DAYS, LEVEL
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.types.decisions import DRAWDOWN_LEVELS, PATH_LEVELS, SHARES

STUDENT_T: Final = "its own Student t"
AVERAGE_ODDS: Final = "its average odds"


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


def further_tables(judgement: SpanJudgement) -> Iterator[Table]:
    """Yield every table of the heads that only some networks have."""
    every = judgement.judged.further
    if not every:
        return
    yield table(
        "tails",
        "Value at risk and expected shortfall, by the head of tails",
        BREACH_FIGURES,
        [found for one in every for found in _breaches(one)],
        notes=["Read as the table of risk, which is of the Student t."],
    )
    yield _levels(every, "drawdown", "Drawdown to the horizon: share of bars below its quantile")
    yield _levels(every, "runup", "Run-up to the horizon: share of bars below its quantile")
    yield _levels(every, "path", "Path: share of returns at a step inside its 90 % interval")
    yield _regimes(every)
    yield from _beside(judgement)


def _breaches(one: AuxiliaryForecasts) -> Iterator[Breaches]:
    if "tails" not in one.said:
        return
    said = one.said["tails"].astype(np.float64)
    for at, (tail, sign) in enumerate(SIDE_WORDS.items()):
        for place, share in enumerate(SHARES):
            limit, expected = said[:, at, place].T
            lost = sign * one.labels["returns"]
            yield count_breaches(
                RiskForecast(one.horizon, tail, share, lost, limit, expected), one.keys, one.days
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


def _levels(every: Sequence[AuxiliaryForecasts], head: str, title: str) -> Table:
    inside = PATH_LEVELS[-1] - PATH_LEVELS[0]
    rows = []
    for one in every if head in every[0].said else ():
        found = coverage(one, head)
        levels = DRAWDOWN_LEVELS if head in EXTREMES else (inside,) * len(found)
        words = "quantile" if head in EXTREMES else "bars"
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


def _regimes(every: Sequence[AuxiliaryForecasts]) -> Table:
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
        "Tails by the joint loss of both, drawdown, run-up and path by pinball, regimes by "
        "likelihood; p by Student's t over days, Holm over all horizons; less is better, and "
        f"credible with p below {LEVEL}. {EWMA}: its volatility times constants of the "
        "calibration slice."
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
    one: AuxiliaryForecasts, horizons: Sequence[HorizonForecasts]
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
            for sign in SIDE_WORDS.values()
        ],
        axis=1,
    )


FEW: Final = "too few days"
RANKS: Final = "Rank correlation across the assets, by close"
WEIGHTS: Final = "Weights, net of fees"
_BASIS_POINTS: Final = 1e4
_WEIGHTS_NOTE: Final = (
    "Basis points a day, net of the same fees; p by Student's t over days, Holm over the others. "
    f"Below {FEW_DAYS} days none is said to have beaten another."
)


# --- ranks across the assets


def _ranks(parts: Sequence[tuple[HorizonForecasts, AcrossAssets]]) -> dict[str, CloseRanks]:
    """Return the rank correlations of every forecaster, pooled over *parts*."""
    found: dict[str, list[CloseRanks]] = {}
    for one, across in parts:
        for name, expected in across.expected(one).items():
            found.setdefault(name, []).append(close_ranks(one, expected))
    return {
        name: CloseRanks(*(np.concatenate(of) for of in zip(*every, strict=True)))
        for name, every in found.items()
    }


def rank_table(
    key: str, title: str, parts: Sequence[Sequence[tuple[HorizonForecasts, AcrossAssets]]]
) -> Table:
    """Return a row a forecaster: its mean rank correlation, and what the relative returns' is.

    *parts* are by horizon, then by fold or span.
    """
    rows: dict[str, dict[str, Value]] = {}
    columns = [of_row("forecaster", "forecaster", "text")]
    for of_horizon in parts:
        horizon = of_horizon[0][0].horizon
        ranks = _ranks(of_horizon)
        values = {name: one.value for name, one in ranks.items()}
        against = less_others(values, ranks[RELATIVE].days, RELATIVE)
        for name, one in ranks.items():
            row = rows.setdefault(name, {"forecaster": words(name)})
            row[str(horizon)] = figures.mean(one.value, one.days)
            if name in against:
                row[f"{horizon}_less"] = against[name].pair
                row[f"{horizon}_p"] = against[name].p
                row[f"{horizon}_verdict"] = rank_verdict(against[name])
        columns += [
            of_row(str(horizon), f"{horizon} bars", "measure"),
            of_row(f"{horizon}_less", "relative less it", "measure"),
            of_row(f"{horizon}_p", "p", "measure", wide=True),
            of_row(f"{horizon}_verdict", "relative is", "text"),
        ]
    note = (
        "Of expected with realised returns, Spearman's; relative is the network's head of relative "
        f"returns. Errors by day, Holm over the others, credible with p below {LEVEL}."
    )
    return table(key, title, columns, rows.values(), notes=[note])


# --- weights


def _by_day(one: PortfolioReturns) -> tuple[NDArray[np.int64], Array]:
    """Return the days of *one*, rising, and what it made on each, in basis points."""
    days, day = np.unique(one.days, return_inverse=True)
    return days, np.bincount(day, one.net * _BASIS_POINTS).astype(np.float64)


def net_difference(
    first: Sequence[PortfolioReturns], second: Sequence[PortfolioReturns]
) -> DayDifference:
    """Return what *first* made a day more than *second*, on the days of both, in basis points."""
    more, less, every = [], [], []
    for one, other in zip(first, second, strict=True):
        (days, made), (others, beside) = _by_day(one), _by_day(other)
        shared, at, place = np.intersect1d(days, others, return_indices=True)
        more.append(made[at])
        less.append(beside[place])
        every.append(shared)
    return difference(np.concatenate(more), np.concatenate(less), np.concatenate(every))


def net_verdict(found: DayDifference) -> str:
    """Return the verdict of a difference of net returns; none of so few days."""
    return FEW if found.days < FEW_DAYS else verdict(found, is_less_better=False)


def weights_table(
    key: str, title: str, parts: Sequence[Mapping[str, PortfolioReturns]]
) -> Table | None:
    """Return a row a kind of weights, pooled over *parts*; None where nothing was held."""
    parts = [part for part in parts if part]
    if not parts:
        return None
    names = [name for name in parts[0] if all(name in part for part in parts)]
    own = [part[NETWORK] for part in parts]
    against = corrected(
        {
            name: net_difference(own, [part[name] for part in parts])
            for name in names
            if name != NETWORK
        }
    )
    rows = []
    for name in names:
        every = [part[name] for part in parts]
        days, made = (np.concatenate(of) for of in zip(*map(_by_day, every), strict=True))
        row: dict[str, Value] = {"weights": words(name), "net": figures.mean(made, days)}
        if name in against:
            row |= {"less": against[name].pair, "p": against[name].p}
            row["verdict"] = net_verdict(against[name])
        turnover = sum(float(one.turnover.sum()) for one in every)
        row["turnover"] = turnover / len(days)
        row["gross"] = float(np.concatenate([one.gross for one in every]).mean())
        row |= {"decisions": sum(len(one.net) for one in every), "days": len(days)}
        rows.append(row)
    columns = [
        of_row("weights", "weights", "text"),
        of_row("net", "net, bp a day", "measure"),
        of_row("less", "model less it", "measure"),
        of_row("p", "p", "measure"),
        of_row("verdict", "the model is", "text"),
        of_row("turnover", "turnover a day", "ratio"),
        of_row("gross", "gross", "ratio"),
        of_row("decisions", "decisions", "count", wide=True),
        of_row("days", "days", "count"),
    ]
    return table(key, title, columns, rows, notes=[_WEIGHTS_NOTE])


# --- of a span


def tables_of_span(judgement: SpanJudgement) -> Iterable[Table]:
    """Return the tables of a network over several assets; none of another model."""
    across = judgement.judged.across
    if across is None:
        return
    yield rank_table("across", RANKS, [[(one, across)] for one in judgement.horizons])
    if (made := weights_table("weights", WEIGHTS, [across.held])) is not None:
        yield made


def beside_tables(judgement: SpanJudgement) -> Iterable[Table]:
    """Return the judged model less each other, where either ranks or weighs several assets."""
    for one in judgement.horizons:
        ranked = {
            rival.name: found
            for rival in judgement.beside
            if (found := _less_ranked(judgement, rival, one)) is not None
        }
        if ranked:
            title = f"{RANKS}, {one.horizon} bars ahead: the model less each other model"
            key = f"beside_across_{one.horizon}"
            yield rival_table(key, title, corrected(ranked), _RANKS_NOTE, rank_verdict)
    own = judgement.judged.across
    weighed = {
        rival.name: net_difference([own.held[NETWORK]], [rival.across.held[NETWORK]])
        for rival in judgement.beside
        if own and own.held and rival.across and rival.across.held
    }
    if weighed:
        title = f"{WEIGHTS}: the model less each other model"
        yield rival_table("beside_weights", title, corrected(weighed), _WEIGHTS_NOTE, net_verdict)


_RANKS_NOTE: Final = (
    "Spearman's across the assets at each close that both answer, by relative returns where a "
    "model says them and else by its mean; p by Student's t over days, Holm over the models."
)


def rank_verdict(found: DayDifference) -> str:
    """Return the verdict of a difference of rank correlations, of which more is better."""
    return verdict(found, is_less_better=False)


def rival_table(
    key: str,
    title: str,
    found: Mapping[str, DayDifference],
    note: str,
    say: Callable[[DayDifference], str],
) -> Table:
    """Return a row a model: what the judged one's loss or gain is less its own, and the verdict."""
    rows: list[Cells] = [
        {
            "model": name,
            "difference": one.pair,
            "p": one.p,
            "verdict": say(one),
            "days": one.days,
        }
        for name, one in found.items()
    ]
    columns = [
        of_row("model", "model", "text"),
        of_row("difference", "model less the other", "measure"),
        of_row("p", "p", "measure"),
        of_row("verdict", "verdict", "text"),
        of_row("days", "days", "count"),
    ]
    return table(key, title, columns, rows, notes=[note])


def _less_ranked(
    judgement: SpanJudgement, rival: Rival, own: HorizonForecasts
) -> DayDifference | None:
    """Return how much better the model ranks the assets than *rival*, close by close.

    None where neither says relative returns, or where no close has two assets of both.
    """
    other, across = rival.forecasts.get(own.horizon), judgement.judged.across
    if other is None or (across is None and rival.across is None):
        return None
    pair = ranks_of_both((own, across), (other, rival.across))
    return None if pair is None else difference(pair[0].value, pair[1].value, pair[0].days)


def ranks_of_both(
    one: tuple[HorizonForecasts, AcrossAssets | None],
    other: tuple[HorizonForecasts, AcrossAssets | None],
) -> tuple[CloseRanks, CloseRanks] | None:
    """Return how both rank the assets at the closes of both, by the labels of the first.

    By relative returns where a model says them, else by its mean. None where they share no close of
    at least two assets.
    """
    mine, _ = on_same_bars(one[0], other[0])
    if len(np.unique(mine.keys & SYMBOL_MASK)) < LEAST:
        return None
    ranks = []
    for found, across in (one, other):
        said = found.mean if across is None else across.relative[found.horizon]
        order = np.argsort(found.keys)
        rows = order[np.searchsorted(found.keys, mine.keys, sorter=order)]
        ranks.append(close_ranks(mine, said[rows]))
    return ranks[0], ranks[1]
