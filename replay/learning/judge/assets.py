"""Tables of several assets: ranks across them, weights of portfolios, and correlations of pairs.

Ranks are compared close by close, weights day by day, with errors by day as of every comparison.

The rules are docs/models.md, L62; docs/several.md, P31.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from tracepaper.replay.document.values import Table, Value, of_row, table
from tracepaper.replay.learning.judge.compare import compare, forecaster_table, rival_table
from tracepaper.replay.learning.judge.correlation import CORRELATION, PAIRS, judged_pairs
from tracepaper.replay.learning.judge.forecasts import Forecasts, words
from tracepaper.replay.learning.judge.judge import SpanJudgement
from tracepaper.replay.learning.judge.metrics import (
    ACROSS,
    METRICS,
    RELATIVE,
    estimate,
    views,
)
from tracepaper.replay.learning.judge.portfolio import PORTFOLIOS
from tracepaper.replay.learning.statistics import DayDifference, verdict
from tracepaper.replay.report.honesty import FEW_DAYS, LEVEL

FEW: Final = "too few days"
RANKS: Final = "Rank correlation across the assets, by close"
WEIGHTS: Final = "Weights, net of fees"
_WEIGHTS_NOTE: Final = (
    "Basis points a day, net of the same fees; p by Student's t over days, Holm over the others. "
    f"Below {FEW_DAYS} days none is said to have beaten another."
)


# --- correlations of pairs


def correlation_tables(judgement: SpanJudgement) -> Iterator[Table]:
    """Yield the errors of the correlations of all pairs, learnt or by a head, beside others."""
    pairs = judgement.judged.pairs
    if pairs is None:
        return
    judged = judged_pairs(pairs)
    note = (
        f"Of one-bar returns to the horizon, pairs {', '.join(pairs.names.values())}; p by "
        "Student's t over days, Holm over the others."
    )
    yield forecaster_table(
        "correlation", "Mean squared error of correlations to the horizon", pairs,
        PAIRS[CORRELATION], verdict, note, model=judged, less=f"{words(judged)} less it",
        shows_p=True,
    )  # fmt: skip


# --- ranks across the assets


def rank_table(key: str, title: str, forecasts: Forecasts) -> Table:
    """Return a row a forecaster: its mean rank correlation, and what the relative returns' is."""
    note = (
        "Of expected with realised returns, Spearman's; relative is the network's head of relative "
        f"returns. Errors by day, Holm over the others, credible with p below {LEVEL}."
    )
    metric, less = METRICS["relative_rank_ic"], "relative less it"
    return forecaster_table(
        key, title, forecasts, metric, rank_verdict, note, model=RELATIVE, less=less, shows_p=True
    )


def rank_verdict(found: DayDifference) -> str:
    """Return the verdict of a difference of rank correlations, of which more is better."""
    return verdict(found, is_less_better=False)


# --- weights


def net_verdict(found: DayDifference) -> str:
    """Return the verdict of a difference of net returns; none of so few days."""
    return FEW if found.days < FEW_DAYS else verdict(found, is_less_better=False)


def weights_table(key: str, title: str, held: Forecasts) -> Table:
    """Return a row a kind of weights."""
    against = compare(held, PORTFOLIOS["net"])
    decisions = int(held.labels["decisions"].sum())
    rows = []
    for name, view in views(PORTFOLIOS["net"], held).items():
        net = estimate(PORTFOLIOS["net"], view)
        row: dict[str, Value] = {"weights": words(name), "net": net}
        if name in against:
            row |= {"less": against[name].pair, "p": against[name].p}
            row["verdict"] = net_verdict(against[name])
        row["turnover"] = float(view["turnover"].sum()) / len(held)
        row["gross"] = float(view["gross"].sum()) / decisions
        row |= {"decisions": decisions, "days": len(held)}
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
    if judgement.forecasts.gives("relative"):
        yield rank_table("across", RANKS, judgement.forecasts)
    if judgement.judged.held is not None:
        yield weights_table("weights", WEIGHTS, judgement.judged.held)


def beside_tables(judgement: SpanJudgement) -> Iterable[Table]:
    """Return the judged model less each other, where either ranks or weighs several assets."""
    for horizon, rows in judgement.forecasts.by_horizon():
        if found := less_ranked(rows):
            title = f"{RANKS}, {horizon} bars ahead: the model less each other model"
            yield rival_table(f"beside_across_{horizon}", title, found, _RANKS_NOTE, rank_verdict)
    held = judgement.judged.held
    if held is not None and held.compared:
        found = compare(held, PORTFOLIOS["net"], others=held.compared)
        title = f"{WEIGHTS}: the model less each other model"
        yield rival_table("beside_weights", title, found, _WEIGHTS_NOTE, net_verdict)


def less_ranked(rows: Forecasts) -> dict[str, DayDifference]:
    """Return how much better the model ranks the assets than each compared one, close by close.

    One is left out where neither gives relative returns, or no close has two assets of both.
    """
    others = tuple(
        name for name in rows.compared if rows.gives("relative") or rows.gives("relative", name)
    )
    return compare(rows, ACROSS, others=others)


_RANKS_NOTE: Final = (
    "Spearman's across the assets at each close that both answer, by relative returns where a "
    "model says them and else by its mean; p by Student's t over days, Holm over the models."
)
