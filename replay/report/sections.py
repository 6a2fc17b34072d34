"""The parts of the page on money and on the run itself, each a function of the report."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import numpy as np

from tracepaper.replay.importers.times import iso
from tracepaper.replay.report.document import Account, Report
from tracepaper.replay.report.html import Markup, element, joined, table
from tracepaper.replay.report.terminal import number, share

MONTHS: Final = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip
GAPS_SHOWN: Final = 100


def heading(report: Report) -> Markup:
    """Return title, span, the figures that matter first, and what to know before believing."""
    record, own = report.record, report.accounts[0]
    held = report.accounts[-1].performance
    span = f"{iso(int(record.decisions.open_time_ms.min()))} to {iso(int(record.times_ms[-1]))}"
    done, spent = own.activity, own.costs
    allowed = int(record.decisions.allowed.sum())
    tiles = [
        ("return", f"{own.performance.total_return:+.2%}"),
        ("buy and hold", f"{held.total_return:+.2%}"),
        ("max drawdown", f"{own.performance.max_drawdown:.2%}"),
        ("Sharpe, a year", number(own.performance.sharpe)),
        ("time in the market", share(done.exposure if done else None)),
        ("closed trades", f"{done.trades:,}" if done else "–"),
        ("paid in costs", f"{spent.gross - spent.net:,.2f}" if spent else "–"),
        (f"allowed of {record.decisions.sequence.size:,} bars", f"{allowed:,}"),
    ]  # fmt: skip
    return joined(
        [
            element("h1", f"{record.run['strategy']} on {record.run['instruments']}"),
            element(
                "p",
                f"Run {record.run['run_id']}, {record.run['kind']}, bars of "
                f"{record.interval_ms // 60_000:,} min, {span}.",
                class_="lead",
            ),
            element(
                "div",
                *(
                    element(
                        "div", element("b", value), element("span", name),
                        class_="tile" if place else "tile first",
                    )
                    for place, (name, value) in enumerate(tiles)
                ),
                class_="tiles",
            ),
            element(
                "div",
                *(
                    element("p", said, class_="warning" if said.startswith("Warning") else "")
                    for said in report.sentences
                ),
                class_="sentences",
            ),
        ]
    )  # fmt: skip


def accounts(report: Report) -> Markup:
    """Return the figures of every account, and where each comes from."""
    head = (
        "account", "end", "return", "a year", "volatility", "Sharpe", "Sortino", "drawdown",
        "Calmar", "exposure", "turnover", "trades", "hit rate", "profit factor",
    )  # fmt: skip
    rows = [_account_row(of, own=place == 0) for place, of in enumerate(report.accounts)]
    sources = "; ".join(f"{of.name}: {of.source}" for of in report.accounts)
    chance = [
        f"Of {of.count} random twins of {of.of} — the same {of.positions:,} positions, each with "
        f"its side, sizes and length, at random times on the same bars and at the same costs "
        f"(computed for this report, seed {of.seed}) — it beats {of.beaten:.0%}; their median "
        f"ends at {of.final_median:,.2f}."
        for of in report.random
    ] or ["Without positions there is no random twin."]
    return joined(
        [
            table(head, rows),
            *(element("p", said) for said in chance),
            element("p", f"{sources}. {report.annualisation}", class_="note"),
        ]
    )


def _account_row(of: Account, *, own: bool) -> list[object]:
    figures, done = of.performance, of.activity
    name: object = of.name
    if own:
        name = element("b", of.name, class_="mark")
    return [
        name, f"{of.end:,.2f}", f"{figures.total_return:+.2%}", _percent(figures.cagr),
        share(figures.volatility), number(figures.sharpe), number(figures.sortino),
        f"{figures.max_drawdown:.2%}", number(figures.calmar),
        share(done.exposure) if done else "–", number(done.turnover) if done else "–",
        f"{done.trades:,}" if done else "–", share(done.hit_rate) if done else "–",
        number(done.profit_factor) if done else "–",
    ]  # fmt: skip


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+,.1%}"


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
    base = "var(--accent)" if value > 0 else "var(--muted)"
    return element(
        "td",
        f"{value:+.2%}",
        class_="tint",
        style=f"background: color-mix(in srgb, {base} {strength}%, transparent)",
    )


def costs(report: Report) -> Markup:
    """Return what trading cost, split; gross is what would have been earned without costs."""
    names = ("gross", "fee", "spread", "slippage", "funding", "net")
    rows = [
        [of.name, *(f"{asdict(of.costs)[name]:,.2f}" for name in names)]
        for of in report.accounts
        if of.costs is not None
    ]
    note = (
        "Quote currency, positive where paid. Spread and slippage are each fill's distance from "
        "the bar's open or the middle of the quote, whole ticks included; gross is the profit at "
        "those reference prices, marked at the last close."
    )
    return joined([table(("account", *names), rows), element("p", note, class_="note")])


def gaps(report: Report) -> Markup:
    """Return the holes in the data."""
    found = report.record.gaps
    if not found:
        return element("p", "The data have no gap.", class_="note")
    rows = [
        [gap["instrument"], gap["from_iso"], gap["until_iso"], gap["cause"],
         gap["repaired_by"] or "nothing"]
        for gap in found[:GAPS_SHOWN]
    ]  # fmt: skip
    more = len(found) - GAPS_SHOWN
    return joined(
        [
            table(("instrument", "from", "until", "cause", "repaired by"), rows),
            element("p", f"and {more:,} more.", class_="note") if more > 0 else "",
        ]
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
