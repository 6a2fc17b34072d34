"""What only networks over several assets are judged by: ranks across the assets, and weights.

Ranks are compared close by close, weights day by day, with errors by day as of every comparison.

The rule is docs/several.md, P31.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.document.values import Cells, Table, Value, of_row, table
from tracepaper.replay.judging.beside import on_same_bars
from tracepaper.replay.judging.judgement import OWN, Rival, SpanJudgement
from tracepaper.replay.training import figures
from tracepaper.replay.training.across import (
    RELATIVE,
    AcrossAssets,
    CloseRanks,
    close_ranks,
)
from tracepaper.replay.training.evaluation import HorizonForecasts
from tracepaper.replay.training.figures import daily_sums
from tracepaper.replay.training.honesty import (
    FEW_DAYS,
    LEVEL,
)
from tracepaper.replay.training.own import OF_MODEL
from tracepaper.replay.training.paired import (
    DayDifference,
    corrected,
    difference,
    verdict,
)
from tracepaper.replay.training.panel import LEAST
from tracepaper.replay.training.series import SYMBOL_MASK
from tracepaper.replay.training.weighed import (
    NETWORK,
    Weighed,
)
from tracepaper.strategies.features.rolling import Array

FEW: Final = "too few days"
RANKS: Final = "Rank correlation across the assets, by close"
WEIGHTS: Final = "Weights, net of fees"
_BASIS_POINTS: Final = 1e4
_WEIGHTS_NOTE: Final = (
    "Basis points a day, net of the same fees; p by Student's t over days, Holm over the others. "
    f"Below {FEW_DAYS} days none is said to have beaten another."
)


def _words(name: str) -> str:
    return (OF_MODEL if name == OWN else name).replace("_", " ")


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


def _paired_ranks(ranks: Mapping[str, CloseRanks]) -> dict[str, DayDifference]:
    """Return the relative returns' rank correlation less each other's, Holm over the others."""
    own = ranks[RELATIVE]
    return corrected(
        {
            name: difference(own.value, other.value, own.days)
            for name, other in ranks.items()
            if name != RELATIVE
        }
    )


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
        against = _paired_ranks(ranks)
        for name, one in ranks.items():
            row = rows.setdefault(name, {"forecaster": _words(name)})
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


def _by_day(one: Weighed) -> tuple[NDArray[np.int64], Array]:
    """Return the days of *one*, rising, and what it made on each, in basis points."""
    days = np.unique(one.days)
    return days, daily_sums(one.net[None] * _BASIS_POINTS, one.days, days)[:, 0]


def net_difference(first: Sequence[Weighed], second: Sequence[Weighed]) -> DayDifference:
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


def weights_table(key: str, title: str, parts: Sequence[Mapping[str, Weighed]]) -> Table | None:
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
        row: dict[str, Value] = {"weights": _words(name), "net": figures.mean(made, days)}
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
            yield _beside(key, title, corrected(ranked), _RANKS_NOTE, rank_verdict)
    own = judgement.judged.across
    weighed = {
        rival.name: net_difference([own.held[NETWORK]], [rival.across.held[NETWORK]])
        for rival in judgement.beside
        if own and own.held and rival.across and rival.across.held
    }
    if weighed:
        title = f"{WEIGHTS}: the model less each other model"
        yield _beside("beside_weights", title, corrected(weighed), _WEIGHTS_NOTE, net_verdict)


_RANKS_NOTE: Final = (
    "Spearman's across the assets at each close that both answer, by relative returns where a "
    "model says them and else by its mean; p by Student's t over days, Holm over the models."
)


def rank_verdict(found: DayDifference) -> str:
    """Return the verdict of a difference of rank correlations, of which more is better."""
    return verdict(found, is_less_better=False)


def _beside(
    key: str,
    title: str,
    found: Mapping[str, DayDifference],
    note: str,
    say: Callable[[DayDifference], str],
) -> Table:
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
        ranks.append(close_ranks(mine, (said * found.unit)[rows] / mine.unit))
    return ranks[0], ranks[1]
