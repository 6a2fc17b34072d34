"""The tables of the report, each declared once; headline figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from tracepaper.daemon.engine.state import HELD
from tracepaper.replay.document.values import (
    Figure,
    Form,
    Table,
    estimate,
    of_field,
    of_row,
    of_view,
    table,
    table_of,
)
from tracepaper.replay.report import metrics
from tracepaper.replay.report.attention import entry_table
from tracepaper.replay.report.benchmarks import RANDOM_TIMINGS, Refusal, random_timings
from tracepaper.replay.report.book_risk import risk_tables
from tracepaper.replay.report.listed_orders import listed
from tracepaper.replay.report.metrics import DAYS_TO_ANNUALISE, Drawdown, year_days
from tracepaper.replay.report.participation import participation_table
from tracepaper.replay.report.record import RunRecord
from tracepaper.replay.report.report import (
    BUY_AND_HOLD,
    UNTIL_HALT,
    AccountReport,
    Report,
    Stretch,
    account_report,
    buy_and_hold_at_equal_exposure,
    stretches,
)
from tracepaper.replay.report.risk_heads import tables_of
from tracepaper.replay.report.trades import ClosedTrade, group_row, groups_of, markouts
from tracepaper.storage.database.run_views import Row
from tracepaper.strategies.units import count_of, percent

LAST_TRADES: Final = 8
GAPS_SHOWN: Final = 100
_MEAN_DAY: Final = Figure[AccountReport | Stretch](
    "mean_day", "a day, bp ± error", "gain bp",
    lambda row: estimate(row.performance.mean_day, row.performance.error_day),
)  # fmt: skip
_SHARPE: Final = Figure[AccountReport | Stretch](
    "sharpe", "Sharpe a year ± error", "gain ratio",
    lambda row: estimate(row.performance.sharpe, row.performance.sharpe_error),
)  # fmt: skip
ACCOUNTS: Final = (
    of_field("account", "account", "text", "name"),
    of_field("end", "end", "money"),
    of_field("return", "return", "gain percent", "performance.total_return"),
    of_field("days", "days", "days", "performance.days"),
    _MEAN_DAY,
    of_field("volatility_day", "volatility a day", "percent", "performance.volatility_day"),
    of_field("cagr", "a year", "gain percent", "performance.cagr"),
    of_field("volatility", "volatility a year", "percent", "performance.volatility"),
    _SHARPE,
    of_field(
        "probabilistic_sharpe", "chance of one above 0", "share", "performance.probabilistic_sharpe"
    ),
    of_field("sortino", "Sortino a year", "gain ratio", "performance.sortino"),
    of_field("max_drawdown", "worst drawdown", "percent", "performance.max_drawdown"),
    of_field("drawdown_bars", "longest, bars", "count", "performance.drawdown_bars"),
    of_field("calmar", "Calmar", "gain ratio", "performance.calmar"),
    of_field("exposure", "time in the market", "share", "activity.exposure"),
    of_field("mean_exposure", "mean exposure", "gain percent"),
    of_field("gross_exposure", "mean gross exposure", "percent", "activity.gross_exposure"),
    of_field("turnover", "turnover a year", "ratio", "activity.turnover"),
    of_field("trades", "closed trades", "count", "activity.trades"),
    of_field("hit_rate", "trades won", "share", "activity.hit_rate"),
    of_field("profit_factor", "profit factor", "ratio", "activity.profit_factor"),
)  # fmt: skip

STRETCHES: Final = (
    of_field("part", "part", "text", "name"),
    of_field("from_ms", "from", "minute"),
    of_field("until_ms", "until", "minute"),
    of_field("days", "days", "days", "performance.days"),
    of_field("return", "return", "gain percent", "performance.total_return"),
    _MEAN_DAY,
    _SHARPE,
    of_field("exposure", "time in the market", "share"),
    of_field("trades", "closed trades", "count"),
)  # fmt: skip

BELOW_ZERO: Final = (
    of_field("below_zero_ms", "nothing left from", "minute", "performance.below_zero_ms"),
    of_field("lowest_equity", "lowest equity", "money", "performance.lowest"),
)

MARGIN: Final = (
    of_field("margin_used", "margin used", "money", "margin.used"),
    of_field("leverage", "leverage", "ratio", "margin.leverage"),
    of_field("liquidation_price", "liquidated at", "text", "margin.liquidation"),
)

RANDOM: Final = (
    of_field("account", "account", "text", "of"),
    of_field("positions", "positions", "count"),
    of_field("timings", "random timings", "count", "count"),
    of_field("seed", "seed", "count", wide=True),
    of_field("median_end", "their median end", "money", "final_median"),
    of_field("beaten", "it beats", "share"),
)

COSTS_AND_FUNDING: Final = (
    of_field("account", "account", "text", "name"),
    of_field("gross", "gross", "gain", "costs_and_funding.gross"),
    of_field("fees_paid", "fees", "money", "costs_and_funding.fee"),
    of_field("spread", "spread", "money", "costs_and_funding.spread"),
    of_field("slippage", "slippage", "money", "costs_and_funding.slippage"),
    of_field("liquidation", "liquidation", "money", "costs_and_funding.liquidation"),
    of_field("funding_paid", "funding", "money", "costs_and_funding.funding"),
    of_field("net", "net", "gain", "costs_and_funding.net"),
)

DRAWDOWNS: Final = (
    of_field("peak_ms", "from", "minute"),
    of_field("trough_ms", "deepest", "minute"),
    of_field("recovered_ms", "made good", "minute"),
    Figure[Drawdown]("lost", "lost", "gain percent", lambda drawdown: -drawdown.depth),
)

TRADE_GROUPS: Final = (
    of_row("trades_of", "trades", "text"),
    of_row("count", "closed", "count"),
    of_row("days", "days", "count"),
    of_row("won", "won", "share"),
    of_row("mean_return", "bp each ± error", "gain bp"),
    of_row("profit", "profit", "gain"),
    of_row("median_held_ms", "held, median", "span"),
)

MAKERS: Final = (
    of_row("after", "after", "text"),
    of_row("count", "fills", "count"),
    of_row("mean", "bp ± error", "gain bp"),
    of_row("against", "against", "share"),
    of_row("mean_for", "bp where for", "gain bp"),
    of_row("mean_against", "bp where against", "gain bp"),
)

LAST: Final = (
    of_field("closed_ms", "exit", "minute"),
    of_field("side", "side", "text"),
    of_field("entry_reason", "why in", "text"),
    of_field("exit_reason", "why out", "text"),
    of_field("profit", "profit", "gain"),
    Figure[ClosedTrade]("return", "bp", "gain bp", lambda trade: trade.return_bp / 1e4),
)

REFUSALS: Final = (
    of_field("gate", "gate", "text"),
    of_field("decisions", "bars", "count"),
    of_field("signals", "signals", "count"),
    of_field("measured", "measured", "count", wide=True),
    of_field("days", "days", "count", "judged.days"),
    of_field("gross", "gross bp", "gain bp"),
    of_field("passed", "passed bp", "gain bp", wide=True),
    of_field("net", "net bp", "gain bp", wide=True),
    Figure[Refusal](
        "kept_better", "better by", "gain bp",
        lambda row: estimate(row.judged.difference, row.judged.error),
    ),
    of_field("random_low", "random gate from", "gain bp", "judged.low", wide=True),
    of_field("random_high", "to", "gain bp", "judged.high", wide=True),
    of_field("verdict", "verdict", "text"),
)  # fmt: skip

GAPS: Final = (
    of_view("instrument", "instrument", "text"),
    of_view("from_ms", "from", "minute"),
    of_view("until_ms", "until", "minute"),
    of_view("cause", "cause", "text"),
    Figure[Row]("repaired_by", "repaired by", "text", lambda row: row["repaired_by"] or "nothing"),
)


Make = Callable[[Report], Iterable[Table]]
TABLES: Final[list[Make]] = []
"""Functions that yield a report's tables, in order; each yields only tables with content."""


def declared(make: Make) -> Make:
    """Register a function; its tables appear on the terminal, the page, in JSON and frames."""
    TABLES.append(make)
    return make


def tables(report: Report) -> dict[str, Table]:
    """Return the tables of *report* by their keys, in the order shown."""
    return {table.key: table for make in TABLES for table in make(report)}


@declared
def _performance(report: Report) -> Iterator[Table]:
    """Yield the tables of the accounts: results, comparison with chance, costs and funding."""
    notes = _annual(report)
    yield table(
        "accounts",
        "Accounts",
        (*ACCOUNTS, *BELOW_ZERO, *MARGIN),
        report.accounts,
        turned=True,
        notes=notes,
    )
    if report.stretches:
        yield table("stretches", "Parts of the run", STRETCHES, report.stretches, turned=True)
    if report.random:
        yield table("random_timings", "Against chance", RANDOM, report.random, notes=(_CHANCE,))
    yield _costs_and_funding([each for each in report.accounts if each.costs_and_funding])
    months = ((f"{year}-{month:02}", value) for year, month, value in report.monthly)
    forms: dict[str, Form] = {"month": "text", "return": "gain percent"}
    yield replace(table_of("months", "Months", forms, months), whole=False, newest=True)
    if report.drawdowns:
        yield table("drawdowns", "Worst drawdowns", DRAWDOWNS, report.drawdowns)


def _costs_and_funding(accounts: Sequence[AccountReport]) -> Table:
    """Return the table from gross to net; a terminal shows liquidations only if there were any."""
    paid = [each.costs_and_funding for each in accounts if each.costs_and_funding]
    is_liquidated = any(each.liquidation for each in paid)
    figures = tuple(
        replace(figure, wide=not is_liquidated) if figure.key == "liquidation" else figure
        for figure in COSTS_AND_FUNDING
    )
    notes = [_COSTS_NOTE, *([_LIQUIDATIONS_NOTE] if is_liquidated else [])]
    if assumed := dict.fromkeys(name for each in paid for name in each.assumed):
        keys = " and ".join(f"execution.{name}_bp" for name in assumed)
        notes.append(f"{keys} of 0 is assumed, for candles show none: set it.")
    title = "Costs and funding (quote currency)"
    return table("costs_and_funding", title, figures, accounts, notes=tuple(notes))


@declared
def _closed(report: Report) -> Iterator[Table]:
    """Yield the tables of closed trades: by side and exit, quantiles, markouts, the last ones."""
    if closed := report.trades[report.shown]:
        whose = "" if report.shown == report.record.account.name else f" of {report.shown}"
        title = f"Closed trades{whose}: by side, and by why they were left"
        notes = (_TRADES_NOTE,)
        groups = groups_of(closed)
        rows = [group_row(name, trades) for name, trades in groups.items()]
        yield table("trade_groups", title, TRADE_GROUPS, rows, notes=notes)
    if rows := markouts(report.record):
        title = "After fills as maker: the close against their price"
        yield table("makers", title, MAKERS, rows, notes=(_MAKERS_NOTE,))
    if trades := report.own_trades:
        last = trades[-LAST_TRADES:]
        title = f"Closed trades (the last {len(last)} of {len(trades):,})"
        yield table("last_trades", title, LAST, last)


@declared
def _decided(report: Report) -> Iterator[Table]:
    """Yield the tables of decisions: refusals, unfilled targets, regimes, entries."""
    yield from refusal_tables(report.record, report.refusals)
    if report.attention is not None:
        total = sum(report.regimes.values())
        rows = [(name, count, count / total) for name, count in report.regimes.items()]
        forms: dict[str, Form] = {"regime": "text", "bars": "count", "share": "share"}
        yield table_of("regimes", "Regimes (where attention lay)", forms, rows)
    if (groups := report.groups) and all(group.trades for group in groups):
        title = f"Means at the entries of {report.shown}"
        measure = of_row("measure", "measure", "text")
        yield entry_table("entries", title, measure, groups, "measure")


@declared
def _heads(report: Report) -> Iterator[Table]:
    """Yield the tables of the auxiliary heads' forecasts and their outcomes."""
    yield from tables_of(report.head_outcomes)


@declared
def _listed(report: Report) -> Iterator[Table]:
    if report.listed:
        title = "Orders by list, and what became of each"
        yield listed(report.listed, title=title, shown=LAST_TRADES)


@declared
def _book(report: Report) -> Iterator[Table]:
    """Yield the risk of the positions at the end, if the days are enough to speak of tails."""
    if report.book.tails:
        yield from risk_tables(report.book).values()


@declared
def _participation(report: Report) -> Iterator[Table]:
    """Yield how large the fills were, if impact is paid or one was large."""
    rows = report.participation
    if rows and (report.record.terms.impact or rows[0].large):
        yield participation_table(rows)


@declared
def _gaps(report: Report) -> Iterator[Table]:
    if report.record.gaps:
        yield table("gaps", "Gaps in the data", GAPS, report.record.gaps, shown=GAPS_SHOWN)


def refusal_tables(record: RunRecord, refused: Sequence[Refusal]) -> Iterator[Table]:
    """Yield the table of what each gate *refused*, and that of unfilled targets by reason."""
    if refused:
        title = f"Refused by gate, and what the signals made in {record.config.gate.horizon} bars"
        yield table("refusals", title, REFUSALS, refused, notes=(_refusal_note(record),))
    reasons = Counter(record.decisions.unfilled.tolist())
    del reasons[""]
    if reasons:
        title = "Unfilled (every gate passed, but no order was possible)"
        forms: dict[str, Form] = {"reason": "text", "bars": "count"}
        yield table_of("unfilled", title, forms, reasons.most_common())


_CHANCE: Final = (
    "A random timing holds the same positions, each with its side, sizes and length, at random "
    "times on the same bars and at the same costs; a fill as maker keeps its distance from the "
    "close of its bar. What an account earned beyond them is timing."
)
_COSTS_NOTE: Final = (
    "Positive where paid. Spread and slippage are each fill's distance from the bar's open or the "
    "middle of the quote, whole ticks included; gross is the profit at those prices."
)
_LIQUIDATIONS_NOTE: Final = (
    "Liquidation is what positions lost between the price that called and the one at which the "
    "exchange closed them; its fee is in the fees."
)
_TRADES_NOTE: Final = "After fees, before funding; the error counts the days on which they ended."


_MAKERS_NOTE: Final = (
    "Positive where the price went on for who had waited. Below zero after one bar is adverse "
    "selection: orders were filled because the market was about to go through them."
)


def _annual(report: Report) -> tuple[str, ...]:
    """Return notes on the days, years and errors of the figures."""
    record, performance = report.record, report.accounts[0].performance
    bars, year = count_of(performance.bars, "bar"), year_days(record.bar_times.calendar)
    days = (
        f"This run has {bars} on {performance.days:,.1f} days. Errors (±) take blocks of at least "
        "five days as independent, and few days have none; chance makes a mean of more than two "
        f"errors in one of twenty runs. Under {DAYS_TO_ANNUALISE} days nothing is annualised (–); "
        f"a year has {year:.0f} days or sessions, and a risk-free rate of "
        f"{percent(record.risk_free)}. A bar longer than a day spreads its return over its days."
    )
    exposure = (
        "Exposure counts the bars from the first that was no warm-up; buy and hold begins there "
        f"too, with all the money, and {HELD} with as much as the run held so far in the mean. A "
        "short position counts below zero, except in gross exposure. Once nothing is left of an "
        "account its returns mean nothing (–)."
    )
    return days, exposure


def _refusal_note(record: RunRecord) -> str:
    return (
        f"Gross, for a round trip costs every signal {2e4 * record.cost_rate:.1f} bp, refused or "
        "not. A refusal stores no signal: its side is the forecast's, and without one nothing is "
        "measured (–). “Passed better by” compares with what the gate saw and let pass, ± one "
        "error by day. It saved or cost only where that is clear at 95 % and more than a random "
        "gate of equal coverage makes; chance makes one of forty seem to save."
    )


Headline = dict[str, float | int | None]

_LAST: Final = np.zeros(1, dtype=np.int64)


def headline(record: RunRecord, closed: Sequence[ClosedTrade]) -> Headline:
    """Return the figures of the run's account; *closed* are its closed trades.

    The keys are those of ``tracepaper report --json``; an estimate ``x`` has its error by
    day as ``x_error``. Further keys are ``bars``; ``held_return``, that of buy and hold at the
    run's mean exposure (or of the shadow account ``held``, if the run has it);
    ``buy_and_hold_return``, with all the money; and ``random_beaten``, the share of
    ``random_timings`` that ended with less (docs/python.md, Y7). A figure is None if the run is too
    short for it or has nothing to measure.
    """
    account = account_report(record, record.account, closed)
    values: Headline = {"bars": account.performance.bars}
    for figure in (*ACCOUNTS[1:], *BELOW_ZERO):  # the first is the account's name
        value = figure.read(account)
        if isinstance(value, tuple):
            values[figure.key], values[f"{figure.key}_error"] = value
        else:
            assert not isinstance(value, str)
            values[figure.key] = value
            if figure.key in ("mean_day", "sharpe"):
                values[f"{figure.key}_error"] = None
    held = {
        name: metrics.total_return(equity)
        for name, _, equity, _ in buy_and_hold_at_equal_exposure(record)
    }
    values["buy_and_hold_return"] = held.pop(BUY_AND_HOLD)
    shadow = record.held_shadow
    values["held_return"] = (
        next(iter(held.values()), None) if shadow is None else metrics.total_return(shadow.equity)
    )
    timings = random_timings(record, record.account, _LAST)
    values["random_timings"] = RANDOM_TIMINGS if timings else 0
    values["random_beaten"] = timings.beaten if timings else None
    halted = next((part for part in stretches(record, closed) if part.name == UNTIL_HALT), None)
    figures = None if halted is None else halted.performance
    values["halted_ms"] = None if halted is None else halted.until_ms
    for key, name in (("mean_day", "error_day"), ("sharpe", "sharpe_error")):
        values[f"{key}_until_halt"] = getattr(figures, key, None)
        values[f"{key}_until_halt_error"] = getattr(figures, name, None)
    values["exposure_until_halt"] = None if halted is None else halted.exposure
    return values
