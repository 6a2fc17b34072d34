"""Every table and chart of a judgement, for terminal, page and JSON.

An entry of ``SHOWN`` makes the tables of one holdout and may draw a chart; an entry of ``ACROSS``
makes tables of all holdouts. Estimates are pairs of value and error by day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from tracepaper.replay.document.charts import (
    Chart,
    ChartAxis,
    ChartPanel,
    ChartRole,
    LineDash,
    LineLayer,
    RuleLayer,
    rounded,
)
from tracepaper.replay.document.values import (
    Cells,
    Figure,
    Found,
    Paragraph,
    Part,
    Table,
    TitledParts,
    Value,
    documents,
    of_row,
    plus_minus,
    table,
)
from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts, words
from tracepaper.replay.learning.judge.gates import RULES, Judgement, daily_net
from tracepaper.replay.learning.judge.heads import head_tables
from tracepaper.replay.learning.judge.metrics import (
    BOOKS,
    BREACHES,
    CORRELATION,
    LOSSES,
    MEASURES,
    METRICS,
    NOTE,
    PAIRS,
    PORTFOLIOS,
    RANKS,
    RELATIVE,
    RISKS,
    TAILS,
    MetricView,
    breach_rows,
    compare,
    compared_by,
    curve_of,
    estimate,
    forecaster_table,
    interval,
    measured_tails,
    pinball,
    student_tails,
    verdict_of,
)
from tracepaper.replay.learning.statistics import (
    RISK_COVERAGES,
    DayDifference,
    RiskCurve,
    corrected,
    verdict,
)
from tracepaper.replay.report import metrics
from tracepaper.replay.report.honesty import FEW_DAYS, LEVEL
from tracepaper.strategies.types.decisions import SHARES
from tracepaper.strategies.units import iso, percent

if TYPE_CHECKING:
    from tracepaper.replay.learning.judge.judge import ModelJudgement

_HEIGHT: Final = 280
_ROLES: Final[tuple[ChartRole, ...]] = ("accent", "ink", "gain", "loss", "muted")
_DASHES: Final[tuple[LineDash, ...]] = ("solid", "dash", "dot", "dashdot")
BINS: Final = 15
BINNED_LEAST: Final = 50
"""A bin with fewer bars is left out: its share would be luck."""


def risk_coverage(curves: Mapping[tuple[str, str], RiskCurve]) -> ChartPanel | None:
    """Draw excess risk by coverage; colours are measures and dashes are risks."""
    if not curves:
        return None
    names = list(dict.fromkeys(name for _, name in curves))
    shares = [float(100 * share) for share in RISK_COVERAGES]
    lines = [
        LineLayer(
            f"{name.replace('_', ' ')}: {RISKS[risk].title}",
            shares,
            rounded(curve.excess),
            _ROLES[names.index(name) % len(_ROLES)],
            dash=_DASHES[list(RISKS).index(risk) % len(_DASHES)],
        )
        for (risk, name), curve in curves.items()
    ]
    across = ChartAxis("share of bars answered, %", unit=" %", digits=0, is_reversed=True)
    up = ChartAxis("risk minus a random gate's", has_zero=True)
    return ChartPanel([RuleLayer(0.0), *lines], across, up, _HEIGHT + 100)


def bins_of(judgement: Judgement) -> list[dict[str, float]]:
    """Return forecast and realised probability of the top direction, over all horizons."""
    rows = judgement.forecasts
    if not rows.has("probability"):
        return []
    probability = rows.value("probability")
    top, hit = probability.max(axis=1), probability.argmax(axis=1) == rows.labels["direction"]
    bins = np.minimum((top * BINS).astype(np.int64), BINS - 1)
    return [
        {
            "forecast": float(top[inside].mean()),
            "realised": float(hit[inside].mean()),
            "bars": int(inside.sum()),
        }
        for number in range(BINS)
        if (inside := bins == number).sum() >= BINNED_LEAST
    ]


def reliability(judgement: Judgement) -> ChartPanel | None:
    """Draw forecast against realised probability."""
    if not (bins := bins_of(judgement)):
        return None
    forecast, realised = ([cell[name] for cell in bins] for name in ("forecast", "realised"))
    ends = [min(*forecast, *realised), max(*forecast, *realised)]
    lines = [
        LineLayer("as forecast", ends, ends, "muted", dash="dot"),
        LineLayer("the model", forecast, realised, width=2.2),
    ]
    across, up = ChartAxis("forecast probability", digits=3), ChartAxis("realised share", digits=3)
    return ChartPanel(lines, across, up, _HEIGHT)


def has_law(rows: Forecasts) -> bool:
    """Return whether the judged model forecasts a whole distribution of the return."""
    return rows.has("mean") and rows.has("scale")


# --- tables


def _columns(first: str, judgement: Judgement) -> list[Figure[Cells]]:
    """Return the column *first*, and one for each horizon, with its number as the key."""
    return [
        of_row(first, first, "text"),
        *(of_row(str(at), f"{at} bars", "measure") for at in judgement.forecasts.horizons),
    ]


def _rows(first: str, judgement: Judgement, key: str) -> list[Cells]:
    """Return a row for each name in the figure *key*: the name as *first*, and its estimates."""
    rows: dict[str, dict[str, Value]] = {}
    for horizon in map(str, judgement.forecasts.horizons):
        section = judgement.figures.get(horizon, {})
        for name, (value, error) in section.get(key, {}).items():
            rows.setdefault(name, {first: words(name)})[horizon] = value, error
    return list(rows.values())


# --- forecasts


def _forecasts(judgement: Judgement) -> Iterable[Table]:
    """Yield a table for each figure: rows are forecasters, columns horizons."""
    columns = _columns("forecaster", judgement)
    for metric in METRICS.values():
        if not metric.is_alone and not metric.of_model:
            rows = _rows("forecaster", judgement, metric.name)
            yield table(metric.name, metric.title, columns, rows)


def _probabilities(judgement: Judgement) -> Iterable[Table]:
    """Yield accuracy, macro F1 and Brier score of the direction, with climatology's."""
    rows = _rows("figure", judgement, "direction")
    notes = [_CLIMATOLOGY] if rows else []
    columns = _columns("figure", judgement)
    yield table("direction", "Direction: down, flat, up", columns, rows, notes=notes)


_CLIMATOLOGY: Final = (
    "Climatology forecasts the classes' shares of the judged bars: the best constant, known in "
    "hindsight."
)


def _paired(judgement: Judgement) -> Iterable[Table]:
    """Yield a table for each loss: the model minus each baseline on the same bars."""
    for key, metric in LOSSES.items():
        title = f"{metric.title}: the model minus each baseline"
        yield forecaster_table(f"paired_{key}", title, judgement.forecasts, metric)


def _rivals(judgement: Judgement) -> Iterable[Table]:
    """Yield a table for each metric: the model minus each other model on common rows."""
    for rows in (judgement.forecasts, judgement.forecasts.held):
        if rows is not None and rows.compared:
            for key, metric in compared_by(rows).items():
                title = f"{metric.title}: the model minus each other model"
                yield forecaster_table(f"beside_{key}", title, rows, metric, others=rows.compared)


# --- uncertainty

LEVELS: Final = (0.5, 0.8, 0.9, 0.95, 0.99)


def _intervals(judgement: Judgement) -> Iterable[Table]:
    """Yield how often the return lay inside the central intervals."""
    if not has_law(judgement.forecasts):
        return
    table_rows = []
    for level in LEVELS:
        row: dict[str, Value] = {"interval": percent(level, 0)}
        for horizon, rows in judgement.forecasts.by_horizon():
            row[str(horizon)] = estimate(interval(level), MetricView(rows))
        table_rows.append(row)
    columns = _columns("interval", judgement)
    yield table("intervals", "Share of returns inside the interval", columns, table_rows)


def _quantiles(judgement: Judgement) -> Iterable[Table]:
    """Yield the pinball loss of a head of quantiles, with the Student t's and EWMA's."""
    rows = judgement.forecasts
    if rows.levels and rows.has("variance", "ewma"):
        quantiles = {f"{level:g}": pinball(level) for level in rows.levels}
        title = "Pinball loss of quantiles of the return, in basis points (less is better)"
        yield forecaster_table("pinball", title, rows, quantiles, label_column="quantile")


def _risk(judgement: Judgement) -> Iterable[Table]:
    """Yield the tests of value at risk and expected shortfall of both tails."""
    if not has_law(judgement.forecasts):
        return
    horizons = judgement.forecasts.by_horizon()
    note = (
        "Realised: share of losses beyond the value at risk, its error by days. Kupiec tests how "
        "often, Christoffersen whether these breaches cluster, on bars without a common future. "
        "Symbols that breach together make both p too small."
    )
    title = "Value at risk and expected shortfall"
    breaches = [row for _, rows in horizons for row in breach_rows(rows, student_tails(rows))]
    yield table("risk", title, BREACHES, breaches, notes=[note])
    standardized = judgement.card.get("calibration", {}).get(TAILS, {})
    constants = {
        horizon: pairs for horizon, _ in horizons if (pairs := standardized.get(str(horizon)))
    }
    measured = [
        row
        for horizon, rows in horizons
        if horizon in constants
        for row in breach_rows(rows, measured_tails(rows, constants[horizon]))
    ]
    if measured:
        title = f"{title}, by the tails of the calibration slice"
        notes = [note, *(_constants(horizon, pairs) for horizon, pairs in constants.items())]
        yield table("risk_calibrated", title, BREACHES, measured, notes=notes)


def _constants(horizon: int, pairs: Mapping[str, Any]) -> str:
    """Return a sentence on the constants of a card's tails at *horizon*."""
    each = (
        f"{percent(share, 0)} of losses pass {limit:.2f} {plus_minus(error, '.2f')}, their mean is "
        f"{mean:.2f} {plus_minus(mean_error, '.2f')}"
        if error
        else f"{percent(share, 0)} of losses pass {limit:.2f}, as of a normal distribution"
        for share, (limit, mean), (error, mean_error) in zip(
            SHARES, pairs["losses"], pairs["errors"], strict=True
        )
    )
    return f"At {horizon} bars, in standard deviations of the forecast: {'; '.join(each)}."


def _scores(judgement: Judgement) -> Iterable[Table]:
    """Yield the tables of books, assets, their pairs and portfolios, with other forecasters."""
    yield from _scores_of(judgement.forecasts)
    if (pairs := judgement.pairs) is not None:
        note = f"Correlations of one-bar returns, pairs {', '.join(pairs.names.values())}."
        metric, notes = PAIRS[CORRELATION], [NOTE, note]
        yield forecaster_table(CORRELATION, metric.title, pairs, metric, notes=notes)


def _scores_of(rows: Forecasts) -> Iterable[Table]:
    """Yield tables of forecasters of books, or of forecasters that rank or weight assets."""
    metrics = BOOKS if "move" in rows.labels else {}
    if rows.has(RELATIVE):
        metrics = {"across": RANKS}
    for key, metric in metrics.items():
        yield forecaster_table(key, metric.title, rows, metric)
    if (held := rows.held) is not None:
        counts = f"{int(held.labels['decisions'].sum()):,} decisions on {len(held)} days."
        weights = {metric.title: metric for metric in PORTFOLIOS.values()}
        title = "Weights, net of the same fees"
        notes = [NOTE, counts]
        yield forecaster_table("weights", title, held, weights, label_column="figure", notes=notes)


def _calibration(judgement: Judgement) -> Iterable[Table]:
    """Yield forecast and realised probability, in bins over all horizons."""
    if bins := bins_of(judgement):
        columns = [of_row(name, name, "measure") for name in ("forecast", "realised")]
        columns.append(of_row("bars", "bars", "count"))
        yield table("calibration", "Forecast and realised probability", columns, bins)


# --- confidence


def curves_of(judgement: Judgement) -> dict[tuple[str, str], RiskCurve]:
    """Return the risk–coverage curve of each risk and measure, pooled over horizons."""
    keys = ((risk, measure) for risk in RISKS for measure in MEASURES)
    curves = {key: curve_of(judgement.forecasts, *key) for key in keys}
    return {key: curve for key, curve in curves.items() if curve is not None}


def confidence_areas(judgement: Judgement) -> dict[str, dict[str, DayDifference]]:
    """Return by risk and measure the area minus a random gate's, p by Holm over the measures."""
    curves = sorted(curves_of(judgement).items(), key=lambda item: list(RISKS).index(item[0][0]))
    return {
        risk: corrected({name: curve.area for (_, name), curve in group})
        for risk, group in groupby(curves, key=lambda item: item[0][0])
    }


def _confidence(judgement: Judgement) -> Iterable[Table]:
    """Yield a table for each risk: the area under risk–coverage of each measure."""
    note = (
        "Area under risk–coverage, pooled over horizons, minus that of a random gate of equal "
        f"coverage; below zero helps. p is Holm's over the measures; below {LEVEL} is credible."
    )
    for risk, areas in confidence_areas(judgement).items():
        title = f"Does it know when it is right? {RISKS[risk].title.capitalize()}"
        rows: list[Cells] = [
            {"measure": words(name), "difference": area.pair, "p": area.p, "verdict": verdict(area)}
            for name, area in areas.items()
        ]
        yield table(f"confidence_{risk}", title, _CONFIDENCE, rows, notes=[note])


_CONFIDENCE: Final = (
    of_row("measure", "measure", "text"),
    of_row("difference", "area", "measure"),
    of_row("p", "p", "measure"),
    of_row("verdict", "verdict", "text"),
)


def _gates(judgement: Judgement) -> Iterable[Table]:
    columns = [of_row("gate", "gate", "text")]
    columns += [of_row(f"{share:g}", percent(share, 0), "share") for share in figures.COVERAGES]
    rows: list[Cells] = []
    for name, section in judgement.figures.get("gates", {}).get("selective", {}).items():
        pairs = zip(section["gained"], section["error"], strict=True)
        gained = zip(figures.COVERAGES, pairs, strict=True)
        rows.append({"gate": words(name), **{f"{share:g}": pair for share, pair in gained}})
    title = "Accuracy gained on the most confident bars at the gates' horizon, in points"
    yield table("gates", title, columns, rows)


# --- all holdouts together


def _confidence_on_every(every: Sequence[Judgement]) -> Iterable[Table]:
    """Yield whether each measure of confidence is credible on every holdout."""
    if len(every) < 2:
        return
    areas = [confidence_areas(judgement) for judgement in every]
    rows: list[Cells] = []
    for name in MEASURES:
        verdicts: dict[str, Value] = {
            risk: "yes" if all(verdict(each[risk][name]) == "better" for each in areas) else "no"
            for risk in RISKS
            if all(name in each.get(risk, {}) for each in areas)
        }
        rows += [{"measure": words(name), **verdicts}] if verdicts else []
    columns = [of_row("measure", "measure", "text")]
    columns += [of_row(risk, metric.title, "text") for risk, metric in RISKS.items()]
    yield table(
        "confidence_holdouts", "Credibly better than a random gate on every holdout", columns, rows
    )


def _rivals_on_every(every: Sequence[Judgement]) -> Iterable[Table]:
    """Yield the verdict against each other model on every holdout, or "mixed"."""
    if len(every) < 2:
        return
    first, rows = every[0].forecasts, list[Cells]()
    for metric in compared_by(first).values():
        for horizon in first.horizons:
            tables = [judgement.forecasts.at(horizon) for judgement in every]
            holdouts = [compare(each, metric, others=first.compared) for each in tables]
            for name in first.compared:
                if not all(name in differences for differences in holdouts):
                    continue
                verdicts = {verdict_of(metric, differences[name]) for differences in holdouts}
                verdict = verdicts.pop() if len(verdicts) == 1 else "mixed"
                cells = {"model": name, "metric": metric.title, "verdict": verdict}
                rows.append({**cells, "horizon": horizon})
    columns = [
        of_row("model", "model", "text"),
        of_row("metric", "metric", "text"),
        of_row("horizon", first.unit, "count"),
        of_row("verdict", f"{words(MODEL)} is", "text"),
    ]
    yield table(
        "beside_holdouts", "The model against each other model on every holdout", columns, rows
    )


def _trades(every: Sequence[Judgement]) -> Iterable[Table]:
    """Yield the results of the trading rules; only with at least two holdouts."""
    traded = [judgement for judgement in every if judgement.explained is not None]
    if not traded:
        return
    title = "Trades of the gates' horizon, net of the taker's round trip and before slippage"
    if len(traded) < 2:
        note = (
            "Results of trading need a second holdout that repeats them; write --holdout A=…,B=…."
        )
        yield Table("trades", title, (), (), (note,))
        return
    yield table("trades", title, _TRADES, _trade_rows(traded), notes=[_TRADE_NOTE])


_TRADE_NOTE: Final = (
    "Ungated is the expected result of a random gate. Repeated: the same sign, and credible on "
    f"{FEW_DAYS} days or more, on every holdout. Sharpe probabilities are of daily results, not "
    "annualised, from thirty days on. Trials: the rules times the recipes that used the holdout."
)


_TRADES: Final = (
    of_row("rule", "rule", "text"),
    of_row("holdout", "holdout", "text"),
    of_row("days_judged", "days judged", "count", wide=True),
    of_row("bars_per_1000", "of 1,000 bars", "days"),
    of_row("trades", "trades", "count"),
    of_row("days", "days", "count"),
    of_row("net", "bp a trade", "gain bp"),
    of_row("probabilistic_sharpe", "Sharpe > 0", "measure"),
    of_row("deflated_sharpe", "deflated", "measure"),
    of_row("trials", "trials", "count", wide=True),
    of_row("repeated", "repeated", "text"),
)


def _trade_rows(traded: Sequence[Judgement]) -> Iterator[Cells]:
    """Yield the result of each trading rule on each holdout."""
    for rule in RULES:
        results = [judgement.figures["gates"]["traded"][rule] for judgement in traded]
        repeated = _repeated(results)
        for judgement, each in zip(traded, results, strict=True):
            assert judgement.explained is not None
            nets = {name: daily_net(judgement.explained, name) for name in RULES}
            sharpes = (metrics.sharpe(net, 1.0) for net in nets.values())
            ratios = [ratio for ratio in sharpes if ratio is not None]  # of the rules that traded
            variance = float(np.var(ratios, ddof=1)) if len(ratios) > 1 else 0.0
            daily, trials = nets[rule], len(RULES) * judgement.uses
            row: dict[str, Value] = {
                "rule": words(rule),
                "holdout": judgement.holdout.name,
                "days_judged": judgement.days,
                **{key: each[key] for key in ("bars_per_1000", "trades", "days")},
                "trials": trials,
                "repeated": repeated,
            }
            if "net_bp" in each:
                value, error = each["net_bp"]
                row["net"] = value / 1e4, None if error is None else error / 1e4
            if len(daily) >= metrics.DAYS_TO_ANNUALISE:
                row["probabilistic_sharpe"] = metrics.probabilistic_sharpe(daily)
                row["deflated_sharpe"] = metrics.deflated_sharpe(
                    daily, trials=trials, variance=variance
                )
            yield row


def _repeated(traded: Sequence[Mapping[str, Any]]) -> str:
    """Return whether a result is credible, of one sign, and on enough days on every holdout."""
    net = [each["net_bp"] for each in traded if "net_bp" in each]
    if len(net) < len(traded):
        return "not traded on every holdout"
    is_credible = all(metrics.is_credible(value, error) for value, error in net)
    if not is_credible or len({np.sign(value) for value, _ in net}) > 1:
        return "no"
    return "yes" if min(each["days"] for each in traded) >= FEW_DAYS else "too few days"


def _holdouts(every: Sequence[Judgement]) -> Iterable[Table]:
    """Yield the dates, rows, symbols and uses of each holdout."""
    unit = every[0].forecasts.unit
    columns: list[Figure[Judgement]] = [
        Figure("holdout", "holdout", "text", lambda judgement: judgement.holdout.name),
        Figure("from", "from", "text", lambda judgement: iso(judgement.from_ms)[:10]),
        Figure("until", "until", "text", lambda judgement: iso(judgement.until_ms)[:10]),
        Figure("days", "days", "count", lambda judgement: judgement.days),
        Figure(unit, unit, "count", lambda judgement: len(judgement.forecasts.by_horizon()[0][1])),
        Figure(
            "symbols", "symbols", "text", lambda judgement: ", ".join(judgement.symbols), wide=True
        ),
        Figure("uses", "used by", "count", lambda judgement: judgement.uses),
    ]
    note = "Used by: how many recipes were judged on the holdout."
    yield table("holdouts", "What was judged", columns, every, notes=[note])


# --- all of them


class HoldoutFigure(NamedTuple):
    """Tables of a holdout, and maybe a chart with its caption."""

    tables: Callable[[Judgement], Iterable[Table]]
    chart: Callable[[Judgement], ChartPanel | None] | None = None
    caption: str = ""


SHOWN: Final = (
    HoldoutFigure(_forecasts),
    HoldoutFigure(_probabilities),
    HoldoutFigure(_paired),
    HoldoutFigure(_rivals),
    HoldoutFigure(_intervals),
    HoldoutFigure(_quantiles),
    HoldoutFigure(_risk),
    HoldoutFigure(lambda judgement: head_tables(judgement.forecasts)),
    HoldoutFigure(_scores),
    HoldoutFigure(
        _calibration,
        reliability,
        "How often a forecast direction came true, by its probability; on the line both are equal.",
    ),
    HoldoutFigure(
        _confidence,
        lambda judgement: risk_coverage(curves_of(judgement)),
        "Risk of the most confident bars by the share answered, minus that of a random gate of "
        "equal coverage; pooled over horizons. Below zero the measure helps.",
    ),
    HoldoutFigure(_gates),
)
"""The tables and charts of each holdout, in order."""
ACROSS: Final = (_confidence_on_every, _rivals_on_every, _trades, _holdouts)
"""The tables of all holdouts together, in order."""


def tables_of(judgement: Judgement) -> list[Table]:
    """Return every table of one holdout that has rows or notes."""
    return _present(each for entry in SHOWN for each in entry.tables(judgement))


def tables_across(every: Sequence[Judgement]) -> list[Table]:
    """Return every table of all holdouts together that has rows or notes."""
    return _present(each for tables in ACROSS for each in tables(every))


def _present(tables: Iterable[Table]) -> list[Table]:
    return [each for each in tables if each.rows or each.notes]


# --- a judgement for a terminal, as JSON, and as a document of the page


def found_of(judged: ModelJudgement) -> Found:
    """Return the tables and caveats of each holdout, the tables of all, and the inspections.

    In the document estimates are ``{"value", "error"}``, top-level ``figures`` and ``sentences``
    are the first holdout's, and a table is a list of rows under its key. In ``tables`` those of the
    holdouts are one, with a column ``holdout``.
    """
    every, parts, holdouts = judged.every, list[Part](), list[dict[str, Any]]()
    pooled: dict[str, Table] = {}
    for judgement in every:
        name, tables = judgement.holdout.name, tables_of(judgement)
        sentences = [Paragraph(f"• {sentence}") for sentence in judgement.caveats]
        parts += [Paragraph(judgement.heading, "heading"), *tables, *sentences]
        for each in tables:
            figures = (of_row("holdout", "holdout", "text"), *each.figures)
            before = pooled.get(each.key, replace(each, figures=figures, rows=()))
            rows = ((name, *row) for row in each.rows)
            pooled[each.key] = replace(before, rows=(*before.rows, *rows))
        holdouts.append(
            {
                "name": name,
                "from_ms": judgement.from_ms,
                "until_ms": judgement.until_ms,
                "days": judgement.days,
                "symbols": list(judgement.symbols),
                "uses": judgement.uses,
                "figures": judgement.figures,
                "sentences": judgement.caveats,
                "tables": documents(tables),
            }
        )
    across = tables_across(every)
    document = {
        "id": judged.model_id,
        "recipe": judged.recipe,
        "figures": every[0].figures,
        "sentences": every[0].caveats,
        "holdouts": holdouts,
        "tables": documents(across),
        "findings": [
            {
                "name": table.key, "title": table.title, "note": "".join(table.notes),
                "rows": table.records(),
            }
            for table in judged.findings
        ],
        "beside": [{"name": name, "id": other} for name, other in judged.compared],
    }  # fmt: skip
    last = (*across, *judged.findings)
    return Found(
        (*parts, *last),
        document,
        (*pooled.values(), *last),
        lambda: judgement_document(judged.model_id, every),
    )


def judgement_document(model_id: str, every: Sequence[Judgement]) -> TitledParts:
    """Return the judgement of all holdouts as a document."""
    parts: list[Part] = [Paragraph("All holdouts", "heading"), *tables_across(every)]
    for judgement in every:
        parts.append(Paragraph(judgement.heading, "heading"))
        parts += [Paragraph(sentence, "item") for sentence in judgement.caveats]
        for entry in SHOWN:
            parts += _present(entry.tables(judgement))
            if entry.chart is not None and (panel := entry.chart(judgement)) is not None:
                parts.append(Chart("", entry.caption, [panel]))
    return TitledParts(f"Judgement of {model_id}", tuple(parts))
