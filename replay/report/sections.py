"""The parts of the page on money and on the run itself, each a function of the report."""

from __future__ import annotations

from typing import Final

import numpy as np

from tracepaper.replay.report.document import BUY_AND_HOLD, Report
from tracepaper.replay.report.html import Markup, element, joined, table
from tracepaper.replay.report.tables import Form, Value, tone, written
from tracepaper.replay.report.terminal import counted, span

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
                f"{record.interval_ms // 60_000:,} min, {span(report)}, {counted(report)}.",
                class_="lead",
            ),
            tiles,
            *(element("p", said, class_="warning") for said in report.warnings),
            _sentences(report),
        ]
    )


def _tiles(report: Report) -> list[tuple[str, Value, Form]]:
    """Return the figures that matter first: name, value, form."""
    own = report.accounts[0]
    figures, done, spent = own.performance, own.activity, own.costs
    held = [of for of in report.accounts if of.name.startswith("held at")]
    found: list[tuple[str, Value, Form]] = [
        ("return", figures.total_return, "gain percent"),
        *((f"buy and hold, {of.name}", of.performance.total_return, "gain percent") for of in held),
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
    """Return what to know before believing any of it, folded under its first sentence."""
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
    return table(("", *MONTHS, "year"), rows)


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
    """Return what the run was made of, and how to check it."""
    run = report.record.run
    rows = [
        (name.replace("_", " "), run[name])
        for name in ("run_id", "code_version", "model_id", "config_sha256", "head_digest", "path")
        if run[name]
    ]
    return element(
        "footer",
        element("p", "Every figure follows from the run's record; check it with ",
                element("code", f"tracepaper verify {run['run_id']}"), ".", class_="note"),
        element("dl", *(element("dt", name) + element("dd", value) for name, value in rows)),
    )  # fmt: skip
