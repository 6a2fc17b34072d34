"""The report of a run as values."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.daemon.engine import state
from tracepaper.daemon.session.account_chain import AccountRun
from tracepaper.replay.report import metrics
from tracepaper.replay.report.account import read_account
from tracepaper.replay.report.attention import (
    EntryGroup,
    RunAttention,
    read_attention,
    winners_and_losers,
)
from tracepaper.replay.report.benchmarks import (
    BOUGHT,
    RandomTimings,
    Refusal,
    buy_and_hold,
    exposures,
    gross_exposure,
    held_source,
    mean_exposures,
    random_timings,
    refusals,
)
from tracepaper.replay.report.book_risk import BookRisk, read_book_risk
from tracepaper.replay.report.honesty import card_sentences
from tracepaper.replay.report.listed_orders import newest as newest_listed
from tracepaper.replay.report.metrics import Activity, Drawdown, Performance
from tracepaper.replay.report.participation import (
    Participation,
    Shares,
    fill_shares,
    participations,
)
from tracepaper.replay.report.record import AccountRecord, RunRecord, read_record
from tracepaper.replay.report.risk_heads import HeadOutcomes, read_head_outcomes
from tracepaper.replay.report.timeline import STEPS_MOST, Timeline, read_timeline
from tracepaper.replay.report.trades import ClosedTrade, CostsAndFunding, closed_trades, costs_of
from tracepaper.replay.run_columns import Floats, Ints, RunColumns
from tracepaper.storage.checkpoints import FittedSpan, kept_folder, read_card
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row, RunViews
from tracepaper.strategies.units import count_of, duration, iso, number, percent

Card = dict[str, Any]
MARKS_MAX: Final = 800
"""Points of a drawn curve; figures use all points."""
BUY_AND_HOLD: Final = "buy and hold"
HELD_AT_EXPOSURE: Final = f"{BUY_AND_HOLD} at its own exposure"
"""The name of what holds the run's mean exposure in each symbol."""
HELD: Final = frozenset({BUY_AND_HOLD, HELD_AT_EXPOSURE, state.HELD})
REGIMES_SENTENCE: Final = (
    "The names of the regimes are the literature's: MOMENTUM is attention on recent bars and "
    "MEAN_REVERSION on distant ones; in trials they predicted no momentum in returns."
)
OPENS_SENTENCE: Final = (
    "The candles are archived ones. Where they are Binance's, as the bundled ones are, an open "
    "equals the close before in a third to a half of bars; on Bybit it always does."
)
ROLLOUT_SENTENCE: Final = "Rollout says where attention flowed, not why the price moved."
PAPER_SENTENCE: Final = "Paper trading only: nothing here shows that money can be earned."


@dataclass(frozen=True)
class MarginHeld:
    """The margin of an account's positions at its end, and their liquidation prices."""

    used: float
    leverage: float
    liquidation: str  # a price, or one per symbol


@dataclass(frozen=True)
class AccountReport:
    """One account's figures; ``source`` names their origin."""

    name: str
    source: str
    end: float
    performance: Performance
    activity: Activity | None  # None for a computed benchmark
    costs_and_funding: CostsAndFunding | None
    margin: MarginHeld | None = None  # None without a position on margin
    bought: float | None = None  # of a computed benchmark, the share of the initial money

    @property
    def mean_exposure(self) -> float | None:
        """The mean position by equity, with its sign; of a benchmark the share that it holds."""
        return self.bought if self.activity is None else self.activity.mean_exposure

    @property
    def label(self) -> str:
        """The name in a legend; for buy and hold with its exposure."""
        if self.name not in HELD or self.mean_exposure is None:
            return self.name
        return f"{self.name}, {number(self.mean_exposure * 100, digits=3)} % held"


@dataclass(frozen=True)
class Stretch:
    """A part of the run's time with separate figures; estimates are by day."""

    name: str
    from_ms: int
    until_ms: int  # exclusive
    performance: Performance
    exposure: float | None  # share of bars with a position, of those that could be decided
    trades: int  # closed in it


@dataclass(frozen=True)
class Curve:
    """An equity curve at the report's marks, and the worst drawdown since the previous mark."""

    name: str
    equity: Floats
    drawdown: Floats  # fraction of the peak, not negative


@dataclass(frozen=True)
class Report:
    """All contents of a report; money in quote currency, shares are fractions."""

    record: RunRecord
    warnings: tuple[str, ...]  # of the run
    sentences: tuple[str, ...]  # caveats
    accounts: tuple[AccountReport, ...]  # the run's first, buy and hold last
    marks_ms: Ints  # UTC ms of the curves' points
    curves: tuple[Curve, ...]
    random: tuple[RandomTimings, ...]
    monthly: tuple[tuple[int, int, float], ...]  # (year, month, return) of the run's account
    drawdowns: tuple[Drawdown, ...]  # the worst of the run's account
    rolling: tuple[Ints, Floats]  # closes, and the Sharpe ratio of the 30 days up to each
    trades: dict[str, tuple[ClosedTrade, ...]]  # closed, by account
    refusals: tuple[Refusal, ...]
    regimes: dict[str, int]  # decisions
    attention: RunAttention | None
    shown: str  # the first account with trades: those that are grouped and listed
    groups: tuple[EntryGroup, ...]
    listed: tuple[Row, ...]  # of ``v_orders``: the newest orders by list
    heads: int  # per layer of the run's model; 0 without its card
    head_outcomes: HeadOutcomes | None  # None without auxiliary heads
    stretches: tuple[Stretch, ...]  # until a halt, and by the periods of the model's fit
    timeline: Timeline  # the notices that its events would send
    book: BookRisk  # of the positions at its end
    participation: tuple[Participation, ...]  # of the fills in the volume of their candles

    @property
    def own_trades(self) -> tuple[ClosedTrade, ...]:
        """The closed trades of the run's account."""
        return self.trades[self.record.account.name]


def build_report(
    database: Path,
    run_id: str,
    *,
    account: Sequence[AccountRun] = (),
    progress: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Return the report of *run_id*, from the views and the reader alone.

    With the runs of an *account*, of which *run_id* is the newest, it is theirs: what the model saw
    and what rests is the newest run's. *progress* is called with the name of each stage. Raises
    ``DataInvalid`` if the run does not exist or has no decision.
    """
    progress("reading the run")
    record = read_account(account) if account else _read(database, run_id)
    newest, ledgers = record.newest, (record.account, *record.shadows)
    closed = {ledger.name: tuple(closed_trades(ledger, run_id)) for ledger in ledgers}
    decided = {trade.entry_sequence for trades in closed.values() for trade in trades}
    entries = {sequence for sequence in decided if sequence is not None}
    grouped = next((name for name, trades in closed.items() if trades), record.account.name)
    shares, timelines = list[Shares](), list[Timeline]()
    for part in reversed(record.parts or (record,)):
        with Reader.open(part.database) as reader:
            columns = RunColumns(reader, str(part.run["run_id"]))
            shares.insert(0, fill_shares(columns, part.account.fills))
            most = STEPS_MOST - sum(len(each.events) for each in timelines)
            timelines.insert(0, read_timeline(reader, part, max(most, 0)))
    progress("reading the attention")
    card = _card(newest)
    with Reader.open(newest.database) as reader:
        attention = read_attention(reader, newest, entries)
        book = read_book_risk(RunColumns(reader, run_id))
        listed = newest_listed(RunViews(reader.connection, run_id))
        outcomes = read_head_outcomes(reader, newest, card)
    progress("drawing random timings")
    times, marks = _times(record), _marks(record)
    held = buy_and_hold_at_equal_exposure(record)
    names, counts = np.unique(record.decisions.regime, return_counts=True)
    equity = record.account.equity
    return Report(
        record=record,
        warnings=tuple(f"Warning: {text}." for text in json.loads(record.run["warnings"] or "[]")),
        sentences=_sentences(record, card),
        accounts=(
            *(account_report(record, ledger, closed[ledger.name]) for ledger in ledgers),
            *(_held_account(record, benchmark) for benchmark in held),
        ),
        marks_ms=times[marks],
        curves=(
            *(_curve(ledger.name, ledger.equity, marks) for ledger in ledgers),
            *(_curve(benchmark.name, benchmark.equity, marks) for benchmark in held),
        ),
        random=tuple(
            timings
            for ledger in ledgers
            if (timings := random_timings(record, ledger, marks)) is not None
        ),
        # Subtract 1 ms: a close belongs to its bar, so midnight belongs to the previous month.
        monthly=tuple(metrics.monthly_returns(np.append(times[:1], times[1:] - 1), equity)),
        drawdowns=tuple(metrics.worst_drawdowns(times, equity)),
        rolling=metrics.rolling_sharpe(
            record.times_ms,
            equity,
            record.bar_times.interval_ms,
            record.bar_times.calendar,
            record.risk_free,
        ),
        trades=closed,
        refusals=tuple(refusals(record)),
        regimes=dict(zip(names.tolist(), counts.tolist(), strict=True)),
        attention=attention,
        shown=grouped,
        groups=winners_and_losers(newest, _own(closed[grouped]), attention) if attention else (),
        listed=listed,
        heads=int(card.get("architecture", {}).get("heads", 0)),
        head_outcomes=outcomes,
        stretches=stretches(record, closed[record.account.name]),
        timeline=Timeline(
            tuple(event for each in timelines for event in each.events),
            sum(each.left_out for each in timelines),
        ),
        book=book,
        participation=participations(shares),
    )


def _read(database: Path, run_id: str) -> RunRecord:
    with Reader.open(database) as reader:
        return read_record(reader, database, run_id)


def _own(closed: Sequence[ClosedTrade]) -> list[ClosedTrade]:
    """Return the trades of *closed* that the newest run decided."""
    return [trade for trade in closed if trade.entry_sequence is not None]


UNTIL_HALT: Final = "until the halt"


def stretches(record: RunRecord, closed: Sequence[ClosedTrade]) -> tuple[Stretch, ...]:
    """Return the parts of the run's time with separate figures; *closed* are the run's trades.

    A halted run earns nothing, which lowers every mean, so the time before a halt is one part.
    """
    parts: list[tuple[str, int, int]] = []
    first_ms, last_ms = int(_times(record)[0]), int(record.times_ms[-1])
    if halts := [lasting.since_ms for lasting in record.states if lasting.is_halt]:
        parts.append((UNTIL_HALT, first_ms, min(halts)))
    parts += _fitted_parts(record.fitted, first_ms, last_ms)
    if not parts:
        return ()
    exposed, separate = gross_exposure(record, record.account), list[Stretch]()
    for name, since, until in parts:
        if since >= until:
            continue
        # Bars that close after since, and not after until.
        first, end = np.searchsorted(record.times_ms, (since, until), side="right").tolist()
        held = exposed[max(first, record.decidable_from) : end]
        exposure = float(np.mean(held != 0)) if held.size else None
        count = sum(since < trade.closed_ms <= until for trade in closed)
        figures = _figures(record, record.account, first, end)
        separate.append(Stretch(name, since, until, figures, exposure, count))
    return tuple(separate)


def _fitted_parts(
    fitted: Sequence[FittedSpan], first_ms: int, last_ms: int
) -> list[tuple[str, int, int]]:
    """Return the run's time, cut by the periods of its model's fit; empty without overlap."""
    if not any((fit.from_ms or first_ms) < last_ms and first_ms < fit.until_ms for fit in fitted):
        return []
    begin = fitted[0].from_ms
    parts = [(fit.name, fit.from_ms or first_ms, fit.until_ms) for fit in fitted]
    parts.append((f"after {fitted[-1].name}", fitted[-1].until_ms, last_ms))
    if begin is not None:
        parts.insert(0, ("before training", first_ms, begin))
    return [(name, max(since, first_ms), min(until, last_ms)) for name, since, until in parts]


def _figures(
    record: RunRecord, ledger: AccountRecord, first: int = 0, end: int | None = None
) -> Performance:
    """Return the figures of *ledger* at the record's times from *first* until *end*."""
    equity = ledger.equity[first : None if end is None else end + 1]
    return _performance(record, record.times_ms[first:end], equity)


def _performance(record: RunRecord, times_ms: Ints, equity: Floats) -> Performance:
    bars = record.bar_times
    return metrics.performance(
        times_ms, equity, bars.interval_ms, bars.calendar, risk_free=record.risk_free
    )


def _times(record: RunRecord) -> Ints:
    """Return the times of the equity curve: the first open, then every close."""
    return np.concatenate((record.times_ms[:1] - record.bar_times.interval_ms, record.times_ms))


def _marks(record: RunRecord) -> Ints:
    """Return the indices of the points of an equity curve that are drawn: even, with both ends."""
    size = record.times_ms.size + 1
    return np.unique(np.linspace(0, size - 1, min(size, MARKS_MAX)).round().astype(np.int64))


def _curve(name: str, equity: Floats, marks: Ints) -> Curve:
    worst = np.maximum.reduceat(metrics.drawdowns(equity), np.concatenate(([0], marks[:-1] + 1)))
    return Curve(name, equity[marks], worst)


def account_report(
    record: RunRecord, ledger: AccountRecord, closed: Sequence[ClosedTrade]
) -> AccountReport:
    """Return the figures of an account that the run stored."""
    is_own = ledger is record.account
    net = sum(exposures(record, ledger).values(), np.zeros(record.times_ms.size))
    gross = gross_exposure(record, ledger)
    figures = _figures(record, ledger)
    return AccountReport(
        name=ledger.name,
        source="stored" if is_own else f"stored: {state.SHADOWS[ledger.name]}",
        end=float(ledger.equity[-1]),
        performance=figures,
        activity=metrics.activity(
            exposures=net[record.decidable_from :],
            gross_exposures=gross[record.decidable_from :],
            notionals=[fill["notional"] for fill in ledger.fills],
            equity=ledger.equity,
            profits=[trade.profit for trade in closed],
            days=figures.days,
            year_days=metrics.year_days(record.bar_times.calendar),
        ),
        costs_and_funding=costs_of(record, ledger),
        margin=_margin(record) if is_own else None,
    )


def _margin(record: RunRecord) -> MarginHeld | None:
    """Return the margin of the run's positions at its end."""
    if not (held := record.margins):
        return None
    prices = [
        (record.instruments[row["instrument"]].symbol, row["liquidation_price_text"])
        for row in held
    ]
    return MarginHeld(
        used=sum(row["margin"] for row in held),
        leverage=float(record.config.account.leverage),
        liquidation=prices[0][1]
        if len(prices) == 1
        else ", ".join(f"{name} {price}" for name, price in prices),
    )


class HoldBenchmark(NamedTuple):
    """A benchmark that buys for a share of the initial money, or sells short, and holds."""

    name: str
    source: str
    equity: Floats
    share: float  # of all symbols, with their signs


def buy_and_hold_at_equal_exposure(record: RunRecord) -> list[HoldBenchmark]:
    """Return buy and hold at the run's mean exposure in each symbol, and with all the money.

    The first is left out if a shadow account holds the run's exposure so far, or if at some close
    nothing of its money was left: it could not have held on.
    """
    held = _held_at_exposure(record)
    with_it = [] if held is None or (held.equity <= 0).any() else [held]
    source = f"computed: all the money, {BOUGHT}"
    return [*with_it, HoldBenchmark(BUY_AND_HOLD, source, buy_and_hold(record), 1.0)]


def _held_at_exposure(record: RunRecord) -> HoldBenchmark | None:
    """Return buy and hold at the run's mean exposure; None if it held nothing or has a shadow."""
    shares = None if record.held_shadow is not None else mean_exposures(record)
    if not shares or not any(shares.values()):
        return None
    symbols = {record.instruments[name].symbol: each for name, each in shares.items()}
    equity = buy_and_hold(record, shares)
    return HoldBenchmark(HELD_AT_EXPOSURE, held_source(symbols), equity, sum(shares.values()))


def ruined_benchmark(record: RunRecord) -> str:
    """Return that buy and hold at the run's exposure lost all its money; empty if it did not."""
    held = _held_at_exposure(record)
    if held is None or not (ruined := np.flatnonzero(held.equity <= 0)).size:
        return ""
    at_ms = int(record.times_ms[ruined[0] - 1])
    return (
        f"Buy and hold at its own exposure, {percent(held.share, 0)} of the start, had nothing "
        f"left at {iso(at_ms)}, so it is no benchmark."
    )


def _held_account(record: RunRecord, held: HoldBenchmark) -> AccountReport:
    return AccountReport(
        name=held.name,
        source=held.source,
        end=float(held.equity[-1]),
        bought=held.share,
        performance=_performance(record, record.times_ms, held.equity),
        activity=None,
        costs_and_funding=None,
    )


def _sentences(record: RunRecord, card: Card) -> tuple[str, ...]:
    """Return the caveats of this report and of the model's card."""
    sentences = [PAPER_SENTENCE]
    if record.gaps:
        lost = sum(
            int(record.bar_times.bars_between(np.array(row["from_ms"]), np.array(row["until_ms"])))
            for row in record.gaps
            if not row["repaired_by"]
        )
        longest = max(row["until_ms"] - row["from_ms"] for row in record.gaps)
        sentences.append(
            f"Gaps in the data: {len(record.gaps):,}, the longest of {duration(longest)}. Absent "
            f"bars: {lost:,}; annual figures do not count them."
        )
    if record.missing:
        ledger = record.account
        held = sum(ledger.holds(row["instrument"], row["from_ms"]) for row in record.missing)
        sentences.append(
            f"{count_of(len(record.missing), 'funding settlement')} missing, {held:,} with an open "
            "position; their amounts are in no account."
        )
    if ruined := ruined_benchmark(record):
        sentences.append(ruined)
    if record.run["ended_ms"] is None:
        sentences.append("The run has not ended; the figures are those at the time of this report.")
    if record.run["kind"] != "live":
        sentences.append(OPENS_SENTENCE)
    if record.run["model_id"] and not record.config.model.custom_class:
        caveats = card_sentences(card) or [card["model"].get("notice", "")] if card else []
        sentences += [f"The model's card: {text}" for text in caveats if text]
        if not card:
            sentences.append(
                "The checkpoint is no longer beside the database, so the caveats of its card are "
                "missing."
            )
        sentences += [REGIMES_SENTENCE, ROLLOUT_SENTENCE]
    return tuple(sentences)


def _card(record: RunRecord) -> Card:
    """Return the card of the run's model; empty without a model or if it was not kept."""
    if not record.run["model_id"]:
        return {}
    folder = kept_folder(record.database, str(record.run["model_id"]))
    return read_card(folder) if folder.is_dir() else {}
