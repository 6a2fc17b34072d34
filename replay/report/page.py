"""The report as one HTML page that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tracepaper.replay.document.page import (
    Charts,
    Markup,
    element,
    figures,
    html_table,
    joined,
    whole_page,
    write_text,
)
from tracepaper.replay.document.values import Form, Table, Value, tone, written
from tracepaper.replay.report.attention import InfluenceReport
from tracepaper.replay.report.attention_charts import (
    SHOWN_SHARE,
    confidence_chart,
    groups_chart,
    head_confidence_chart,
    heads_over_time_chart,
    rollout_chart,
)
from tracepaper.replay.report.charts import (
    caption,
    equity_chart,
    price_chart,
    refusal_chart,
    rolling_chart,
    trades_chart,
)
from tracepaper.replay.report.figures import tables
from tracepaper.replay.report.report import BUY_AND_HOLD, AccountReport, Report
from tracepaper.replay.report.terminal import counted, span
from tracepaper.replay.report.trade_pictures import trades
from tracepaper.strategies.units import MINUTE_MS

if TYPE_CHECKING:
    from tracepaper.replay.report.heads import HeadReport

INSTRUMENTS_MAX: Final = 4


def write_page(
    report: Report, path: Path, analysis: HeadReport | InfluenceReport | None = None
) -> None:
    """Write the page, with the *analysis* of heads or of influence where one is given.

    Raises ``ConfigInvalid`` where plotly is missing or *path* cannot be written.
    """
    write_text(page_of(report, analysis), path)


def page_of(report: Report, analysis: HeadReport | InfluenceReport | None = None) -> str:
    """Return the whole page as text; raise ``ConfigInvalid`` where plotly is missing."""
    made = tables(report)
    charts = Charts()
    content = _money(report, charts, made)
    if report.attention:
        content += _attention(report, charts, made)
    if isinstance(analysis, InfluenceReport):
        content.append(_influence_section(analysis, charts))
    elif analysis is not None:
        content.append(_head_section(analysis, charts))
    content += [
        _section("Trades", "trades", trades(report)),
        _section("Gaps in the data", "gaps", _table(made, "gaps", "The data have no gap.")),
    ]
    for drawn in ("months", "last_trades"):  # a calendar, and every trade with its explanation
        made.pop(drawn, None)
    if made:
        content.append(_section("Others", "others", charts.parts(made.values())))
    content.append(identity(report))
    sections = ["Money", "Trading", "Refusals"]
    sections += ["Attention", "Confidence"] if report.attention else []
    links = [element("a", name, href=f"#{name.lower()}") for name in (*sections, "Trades", "Gaps")]
    top = joined([heading(report), element("nav", *links)])
    return whole_page(f"run {report.record.run['run_id']}", top, content, charts)


def _section(title: str, name: str, *content: object) -> Markup:
    return element("section", element("h2", title, id=name), *content)


def _table(made: dict[str, Table], key: str, otherwise: str = "") -> Markup:
    """Take a table out of *made* and return it; *otherwise* where the report has none."""
    if (shown := made.pop(key, None)) is None:
        return element("p", otherwise, class_="note") if otherwise else Markup("")
    return figures(shown)


def _titled(made: dict[str, Table], key: str) -> Markup:
    """Take a table out of *made*; return it under its own title, or nothing."""
    return (
        joined([element("h3", made[key].title), _table(made, key)]) if key in made else Markup("")
    )


def _money(report: Report, charts: Charts, made: dict[str, Table]) -> list[Markup]:
    shown = list(report.record.bars)[:INSTRUMENTS_MAX]
    return [
        _section(
            "Money",
            "money",
            charts.put(
                equity_chart(report),
                "Return since the start, share lost from the peak, and the position held."
                if report.record.every_bar
                else "Return since the start, at the ends of days.",
            ),
            _table(made, "accounts"),
            element("p", "; ".join(f"{of.name}: {of.source}" for of in report.accounts) + ".",
                    class_="note"),
            _titled(made, "random_twins"),
            charts.put(rolling_chart(report), "The Sharpe ratio of the thirty days before."),
            element("h3", "Months"),
            months(report),
            _titled(made, "drawdowns"),
            _titled(made, "costs"),
        ),
        _section(
            "Trading",
            "trading",
            *(charts.put(price_chart(report, name), caption(report, name)) for name in shown),
            _titled(made, "trade_groups"),
            charts.put(trades_chart(report), "How returns and times in the market are spread."),
            _titled(made, "trade_returns"),
            _titled(made, "holding_times"),
        ),
        _section(
            "Refusals",
            "refusals",
            element("p", "What the gates refused, held against what they let pass."),
            charts.put(
                refusal_chart(report),
                "Right of zero the gate kept the better signals; of the allowed, the refused were "
                "better. Within the pale bar is what a random gate makes.",
            ),
            _table(made, "refusals", "Refusals need every bar; this run kept only some."),
            _titled(made, "unfilled"),
        ),
    ]  # fmt: skip


def _attention(report: Report, charts: Charts, made: dict[str, Table]) -> list[Markup]:
    assert report.attention is not None
    maps = report.attention.heatmaps
    left_out = len(maps) - INSTRUMENTS_MAX
    return [
        _section(
            "Attention",
            "attention",
            element("p", "Where the attention of every decision flowed, by the age of the bars. "
                    "The ribbon is the regime: full colour where attention lay on recent bars "
                    "(MOMENTUM), pale between, grey where on distant ones (MEAN_REVERSION)."),
            *(
                charts.put(
                    rollout_chart(report, heatmap),
                    f"{heatmap.instrument}: close, regime, rollout by age as a multiple of "
                    f"that age's mean over the run (the ages that hold {SHOWN_SHARE:.1%} of it), "
                    "confidence.",
                )
                for heatmap in maps[:INSTRUMENTS_MAX]
            ),
            element("p", f"{left_out} more instruments are not drawn.", class_="note")
            if left_out > 0
            else "",
        ),
        _section(
            "Confidence",
            "confidence",
            charts.put(confidence_chart(report), "Decisions by confidence; pale is refused."),
            element("h3", "Winners and losers"),
            charts.put(groups_chart(report), "Mean rollout at the entries, by age."),
            _table(made, "entries", "There are not both winners and losers to compare."),
            charts.put(
                head_confidence_chart(report, report.heads),
                "Mean confidence of every layer and head over the run.",
            ),
            *(
                charts.put(
                    heads_over_time_chart(heatmap, report.heads),
                    f"{heatmap.instrument}: how the confidence of each head moved over the run.",
                )
                for heatmap in maps[:INSTRUMENTS_MAX]
            ),
        ),
    ]  # fmt: skip


def _head_section(found: HeadReport, charts: Charts) -> Markup:
    kinds, looks, flow, *subjects = found.tables()
    return _section(
        kinds.title,
        "heads",
        figures(kinds),
        charts.parts((looks, *subjects)),
        head_pictures(found, charts, flow.title),
    )


def _influence_section(found: InfluenceReport, charts: Charts) -> Markup:
    from tracepaper.replay.report.attention_charts import influence_chart, influence_quarters_chart

    matrix, *others = found.tables()
    return _section(
        matrix.title,
        "influence",
        charts.put(
            influence_chart(found),
            "Whose forecast downwards, whose bars to the right; the mean share of the look. The "
            "scale ends at the largest share of another symbol.",
        ),
        figures(matrix),
        charts.put(
            influence_quarters_chart(found),
            "The same in each quarter of the run's decisions, by one scale.",
        ),
        charts.parts(others),
    )


def head_pictures(found: HeadReport, charts: Charts, flow: str) -> Markup:
    """Return the pictures of heads: by age, edges, the *flow* down the layers, and the map."""
    from tracepaper.replay.report.attention_charts import (
        age_map_chart,
        flow_picture,
        heads_chart,
        layers_chart,
        position_map_chart,
    )
    from tracepaper.replay.report.heads import FLOW_NOTE, edges_view

    times = found.open_time_ms
    mapped = times[-found.map.weights.shape[1] :]
    return joined(
        [
            element("h3", "Each head by age"),
            charts.put(
                heads_chart(found),
                "A panel a head: age in bars downwards (logarithmic), decisions to the right, "
                "fuller colour is a greater share a bar (logarithmic).",
            ),
            element("h3", "Layer by layer, from the decision"),
            charts.put(
                layers_chart(found),
                "Where each head of each layer looked from the decided bar, by age in bars "
                "(logarithmic): the share of its attention in each cell.",
            ),
            element("h3", "One bar's edges"),
            edges_view(found.edges, times[-found.decisions :]),
            element("h3", flow),
            flow_picture(found),
            element("p", FLOW_NOTE, class_="note"),
            element("h3", "Rollout of every bar, by position"),
            charts.put(
                position_map_chart(found.map, mapped),
                f"{len(found.map.ages):,} bars of the window: a row is where that bar's own "
                "decision looked, exactly; the newest is below.",
            ),
            element("h3", "Rollout of every bar, by age"),
            charts.put(
                age_map_chart(found.map, mapped),
                "The same rows over the age of the bars. What lies before the window is left out.",
            ),
        ]
    )


# ---------------------------------------------------------------- the run and its money

MONTHS: Final = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip


def heading(report: Report) -> Markup:
    """Return title, span, the figures that matter first, and what to know before believing."""
    record = report.record
    tiles = element("div", *(_tile(*of) for of in _tiles(report)), class_="tiles")
    return joined(
        [
            element("h1", f"{record.run['strategy']} on {record.run['instruments']}"),
            element(
                "p",
                f"Run {record.run['run_id']}, {record.run['kind']}, bars of "
                f"{record.interval_ms // MINUTE_MS:,} min, {span(report)}, {counted(report)}.",
                class_="lead",
            ),
            tiles,
            *(element("p", said, class_="warning") for said in report.warnings),
            _sentences(report),
        ]
    )


def _held_as_so_far(of: AccountReport) -> str:
    share = of.mean_exposure
    return "held as so far" + ("" if share is None else f" ({written(share, 'percent')})")


def _tiles(report: Report) -> list[tuple[str, Value, Form]]:
    """List the figures that matter first: name, value, form."""
    own = report.accounts[0]
    figures, done, spent = own.performance, own.activity, own.costs
    twin = report.record.held_twin
    alike = "held at" if twin is None else twin.name
    held = [of for of in report.accounts if of.name.startswith(alike)]
    found: list[tuple[str, Value, Form]] = [
        ("return", figures.total_return, "gain percent"),
        *(
            (
                f"buy and hold, {_held_as_so_far(of) if twin else of.name}",
                of.performance.total_return,
                "gain percent",
            )
            for of in held
        ),
    ]
    whole = report.accounts[-1]
    assert whole.name == BUY_AND_HOLD
    found += [
        ("buy and hold in full", whole.performance.total_return, "gain percent"),
        (f"bp a day, over {figures.days:,.1f} days", _day(figures.mean_day, figures.error_day),
         "gain bp"),
        ("Sharpe a year", _day(figures.sharpe, figures.sharpe_error), "gain ratio"),
        ("worst drawdown", figures.max_drawdown, "percent"),
        ("closed trades", done.trades if done else None, "count"),
        ("paid in costs", spent.gross - spent.net if spent else None, "money"),
    ]  # fmt: skip
    if not held:
        found.append(("time in the market", done.exposure if done else None, "share"))
    return found


def _day(value: float | None, error: float | None) -> Value:
    return None if value is None else (value, error)


def _tile(name: str, value: Value, form: Form) -> Markup:
    return element(
        "div",
        element("b", written(value, form), class_=tone(value, form)),
        element("span", name),
        class_="tile",
    )


def _sentences(report: Report) -> Markup:
    """Fold the caveats under the first of them."""
    first, *others = report.sentences
    return element(
        "details",
        element("summary", f"{first} {len(others)} more to know before believing any of it."),
        *(element("p", said) for said in others),
        class_="sentences",
    )


def months(report: Report) -> Markup:
    """Return the monthly returns, a year a row, tinted by their size."""
    years = sorted({year for year, *_ in report.monthly})
    earned = {(year, month): value for year, month, value in report.monthly}
    most = max((abs(value) for value in earned.values()), default=0.0) or 1.0
    rows = []
    for year in years:
        own = [earned.get((year, month)) for month in range(1, 13)]
        whole = float(np.prod([1.0 + value for value in own if value is not None]) - 1.0)
        rows.append([str(year), *(_tinted(value, most) for value in own), f"{whole:+.2%}"])
    return html_table(("", *MONTHS, "year"), rows)


def _tinted(value: float | None, most: float) -> Markup:
    if value is None:
        return element("td", "")
    strength = round(45 * abs(value) / most)
    base = "var(--gain)" if value > 0 else "var(--loss)"
    return element(
        "td",
        f"{value:+.2%}",
        class_="tint",
        style=f"background: color-mix(in srgb, {base} {strength}%, transparent)",
    )


def identity(report: Report) -> Markup:
    """Return the run's identity, and how to check it."""
    run = report.record.run
    rows = [
        (name.replace("_", " "), run[name])
        for name in ("run_id", "code_version", "model_id", "config_sha256", "head_digest", "mode")
        if run[name]
    ]
    return element(
        "footer",
        element("p", "Every figure follows from the run's record; check it with ",
                element("code", f"tracepaper verify {run['run_id']}"), ".", class_="note"),
        element("dl", *(element("dt", name) + element("dd", value) for name, value in rows)),
    )  # fmt: skip
