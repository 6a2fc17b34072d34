"""The report of a run as values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.daemon.engine import state
from tracepaper.replay.report import metrics
from tracepaper.replay.report.attention import (
    Group,
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
    mean_exposure,
    random_timings,
    refusals,
    sides_of,
)
from tracepaper.replay.report.honesty import card_sentences
from tracepaper.replay.report.listed_orders import newest as newest_listed
from tracepaper.replay.report.metrics import Activity, Drawdown, Performance
from tracepaper.replay.report.record import AccountRecord, RunRecord, read_record
from tracepaper.replay.report.risk_heads import HeadOutcomes, read_head_outcomes
from tracepaper.replay.report.trades import ClosedTrade, Costs, closed_trades, costs
from tracepaper.replay.run_columns import Floats, Ints
from tracepaper.storage.checkpoints import ID_DIGITS, FittedSpan, kept_folder, read_card
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row, RunViews
from tracepaper.strategies.types.market import RetrainingEnd, RetrainOutcome
from tracepaper.strategies.units import duration

Card = dict[str, Any]
MARKS_MAX: Final = 800
"""Points of a curve that are shown; figures are taken from all of them."""
BUY_AND_HOLD: Final = "buy and hold"
BUY_AND_HOLD_AT: Final = f"{BUY_AND_HOLD} at "
"""Begins the name of buy and hold at the run's own mean exposure, which follows."""
HELD: Final = frozenset({BUY_AND_HOLD, state.BUY_AND_HOLD})
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
    """What an account's positions bind at its end, and where each is liquidated."""

    used: float
    leverage: float
    liquidation: str  # a price, or one a symbol


@dataclass(frozen=True)
class AccountReport:
    """One account's figures; ``source`` says where it comes from."""

    name: str
    source: str
    end: float
    performance: Performance
    activity: Activity | None  # None where no fills are known
    costs: Costs | None
    margin: MarginHeld | None = None  # None where nothing is held on margin
    net_exposure: float | None = None  # of both sides of hedge mode: long less short, in the mean
    bought: float | None = None  # the share of the start's money, of an account that is computed

    @property
    def mean_exposure(self) -> float | None:
        """The mean of what it held, by its equity; of a computed account what it bought."""
        return self.bought if self.activity is None else self.activity.mean_exposure

    @property
    def label(self) -> str:
        """Its name in a legend; of buy and hold with how much was held."""
        if self.name not in HELD or self.mean_exposure is None:
            return self.name
        return f"{self.name}, {self.mean_exposure * 100:.3g} % held"


@dataclass(frozen=True)
class Stretch:
    """A part of the run's time that is also judged by itself; estimates are by day."""

    name: str
    from_ms: int
    until_ms: int  # exclusive
    performance: Performance
    exposure: float | None  # share of bars with a position, of those that could be decided
    trades: int  # closed in it


@dataclass(frozen=True)
class Curve:
    """An equity curve at the report's marks, and the worst drawdown of each stretch to a mark."""

    name: str
    equity: Floats
    drawdown: Floats  # fraction of the peak, not negative


@dataclass(frozen=True)
class Report:
    """Everything that is shown of a run; money in quote currency, shares are fractions."""

    record: RunRecord
    warnings: tuple[str, ...]  # of the run
    sentences: tuple[str, ...]  # what a reader must know before believing any of it
    accounts: tuple[AccountReport, ...]  # the run's own first, buy and hold last
    marks_ms: Ints  # UTC ms of the curves' points
    curves: tuple[Curve, ...]
    random: tuple[RandomTimings, ...]
    monthly: tuple[tuple[int, int, float], ...]  # (year, month, return) of the run's own account
    drawdowns: tuple[Drawdown, ...]  # the worst of the run's own account
    rolling: tuple[Ints, Floats]  # closes, and the Sharpe ratio of the 30 days before each
    trades: dict[str, tuple[ClosedTrade, ...]]  # closed, by account
    refusals: tuple[Refusal, ...]
    regimes: dict[str, int]  # decisions
    attention: RunAttention | None
    shown: str  # the account whose trades are grouped and listed: the first that has any
    groups: tuple[Group, ...]
    listed: tuple[Row, ...]  # of ``v_orders``: the newest that the strategy sent by list
    heads: int  # of a layer of the run's model; 0 where its card is not at hand
    head_outcomes: HeadOutcomes | None  # what auxiliary heads said; None of a run without them
    stretches: tuple[Stretch, ...]  # up to a halt, and by what the model was fitted on
    shortfalls: tuple[Row, ...]  # of ``v_shortfall``: a trader's own fills beside the run's

    @property
    def own_trades(self) -> tuple[ClosedTrade, ...]:
        """The run's own closed trades."""
        return self.trades[self.record.account.name]


def build_report(
    database: Path, run_id: str, *, progress: Callable[[str], None] = lambda _text: None
) -> Report:
    """Return the report of *run_id*, from the views and the reader alone.

    *progress* is told what is done next. Raises ``DataInvalid`` where the run does not exist or
    has decided nothing.
    """
    progress("reading the run")
    with Reader.open(database) as reader:
        record = read_record(reader, database, run_id)
        ledgers = (record.account, *record.shadows)
        closed = {of.name: tuple(closed_trades(of)) for of in ledgers}
        wanted = {trade.entry_sequence for of in closed.values() for trade in of}
        progress("reading where attention lay")
        attention = read_attention(reader, record, wanted)
        grouped = next((name for name, of in closed.items() if of), record.account.name)
        views = RunViews(reader.connection, run_id)
        listed, shortfalls = newest_listed(views), tuple(views.rows("v_shortfall"))
        retrained = reader.of_type(run_id, RetrainingEnd)
        card = _card(record)
        outcomes = read_head_outcomes(reader, record, card)
    progress("drawing random timings")
    times, marks = _times(record), _marks(record)
    held = held_alike(record)
    names, counts = np.unique(record.decisions.regime, return_counts=True)
    equity, divided = record.account.equity, record.holds_over_split(record.account)
    return Report(
        record=record,
        warnings=tuple(f"Warning: {text}." for text in json.loads(record.run["warnings"] or "[]")),
        sentences=(*_sentences(record, card), *_retrained_sentences(retrained)),
        accounts=(
            *(account_report(record, of, closed[of.name]) for of in ledgers),
            *(_held_account(record, of) for of in held),
        ),
        marks_ms=times[marks],
        curves=(
            *(_curve(of.name, of.equity, marks) for of in ledgers),
            *(_curve(of.name, of.equity, marks) for of in held),
        ),
        random=tuple(
            timings for of in ledgers if (timings := random_timings(record, of, marks)) is not None
        ),
        # Midnight belongs to the day before: every close lies in the bar that it ends.
        monthly=()
        if divided
        else tuple(metrics.monthly_returns(np.append(times[:1], times[1:] - 1), equity)),
        drawdowns=() if divided else tuple(metrics.worst_drawdowns(times, equity)),
        rolling=metrics.rolling_sharpe(
            record.times_ms[:0] if divided else record.times_ms,
            equity[:1] if divided else equity,
            record.bar_times.interval_ms,
            record.bar_times.calendar,
            record.risk_free,
        ),
        trades=closed,
        refusals=tuple(refusals(record)),
        regimes=dict(zip(names.tolist(), counts.tolist(), strict=True)),
        attention=attention,
        shown=grouped,
        groups=winners_and_losers(record, closed[grouped], attention) if attention else (),
        listed=listed,
        heads=int(card.get("architecture", {}).get("heads", 0)),
        head_outcomes=outcomes,
        stretches=stretches(record, closed[record.account.name]),
        shortfalls=shortfalls,
    )


UNTIL_HALT: Final = "until the halt"


def stretches(record: RunRecord, closed: Sequence[ClosedTrade]) -> tuple[Stretch, ...]:
    """Return the parts of the run's time that are judged by themselves too, *closed* its trades.

    A halted run earns nothing, which thins every mean: what it did before is told apart.
    """
    parts: list[tuple[str, int, int]] = []
    first_ms, last_ms = int(_times(record)[0]), int(record.times_ms[-1])
    if halts := [lasting.since_ms for lasting in record.states if lasting.is_halt]:
        parts.append((UNTIL_HALT, first_ms, min(halts)))
    parts += _fitted_parts(record.fitted, first_ms, last_ms)
    if not parts:
        return ()
    exposed, every = exposures(record, record.account)[1], list[Stretch]()
    for name, since, until in parts:
        if since >= until:
            continue
        # The bars that close after the one and not after the other.
        first, end = np.searchsorted(record.times_ms, (since, until), side="right").tolist()
        held = exposed[max(first, record.decidable_from) : end]
        exposure = float(np.mean(held != 0)) if held.size else None
        count = sum(since < trade.closed_ms <= until for trade in closed)
        figures = _figures(record, record.account, first, end)
        every.append(Stretch(name, since, until, figures, exposure, count))
    return tuple(every)


def _fitted_parts(
    fitted: Sequence[FittedSpan], first_ms: int, last_ms: int
) -> list[tuple[str, int, int]]:
    """Cut the run's time where its model's fit begins and ends; not where no bar lies in it."""
    if not any((of.from_ms or first_ms) < last_ms and first_ms < of.until_ms for of in fitted):
        return []
    begin = fitted[0].from_ms
    parts = [(of.name, of.from_ms or first_ms, of.until_ms) for of in fitted]
    parts.append((f"after {fitted[-1].name}", fitted[-1].until_ms, last_ms))
    if begin is not None:
        parts.insert(0, ("before training", first_ms, begin))
    return [(name, max(since, first_ms), min(until, last_ms)) for name, since, until in parts]


def _figures(
    record: RunRecord, ledger: AccountRecord, first: int = 0, end: int | None = None
) -> Performance:
    """Return the figures of *ledger* at the record's times from *first* until *end*."""
    equity = ledger.equity[first : None if end is None else end + 1]
    figures = _performance(record, record.times_ms[first:end], equity)
    return metrics.unknown(figures) if record.holds_over_split(ledger) else figures


def _performance(record: RunRecord, times_ms: Ints, equity: Floats) -> Performance:
    at = record.bar_times
    return metrics.performance(
        times_ms, equity, at.interval_ms, at.calendar, risk_free=record.risk_free
    )


def _times(record: RunRecord) -> Ints:
    """Return the times of the equity curve: the first open, then every close."""
    return np.concatenate((record.times_ms[:1] - record.bar_times.interval_ms, record.times_ms))


def _marks(record: RunRecord) -> Ints:
    """Return the places in an equity curve that are shown: evenly, ends included."""
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
    net, gross = (of[record.decidable_from :] for of in exposures(record, ledger))
    figures = _figures(record, ledger)
    return AccountReport(
        name=ledger.name,
        source="stored"
        if is_own
        else f"stored: {state.SHADOWS.get(ledger.name, 'a shadow account')}",
        end=float(ledger.equity[-1]),
        performance=figures,
        activity=metrics.activity(
            exposures=gross,
            notionals=[fill["notional"] for fill in ledger.fills],
            equity=ledger.equity,
            profits=[trade.profit for trade in closed],
            days=figures.days,
            year_days=metrics.year_days(record.bar_times.calendar),
        ),
        costs=costs(ledger, record.terms),
        margin=_margin(record) if is_own else None,
        # Only in hedge mode the long side less the short one is another.
        net_exposure=metrics.finite_mean(net) if len(sides_of(record, ledger)) > 1 else None,
    )


def _margin(record: RunRecord) -> MarginHeld | None:
    """Sum the margin of the run's own positions at its end."""
    if not (held := record.margins):
        return None
    is_hedged = record.config.account.position_mode == "hedge"
    prices = [
        (
            record.instruments[row["instrument"]].symbol
            + (f" {row['side'].lower()}" if is_hedged else ""),
            row["liquidation_price_text"],
        )
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
    """A benchmark that buys a share of the start's money and holds it."""

    name: str
    source: str
    equity: Floats
    share: float


def held_alike(record: RunRecord) -> list[HoldBenchmark]:
    """Return buy and hold at the run's own exposure, and with all the money.

    A shadow account that holds the run's exposure so far stands for the first.
    """
    held = []
    if record.held_shadow is None:
        share = mean_exposure(record)
        if np.isfinite(share) and share > 0:
            source = f"computed: the run's mean exposure, {share:.2%} of the start, {BOUGHT}"
            held.append(
                HoldBenchmark(
                    f"{BUY_AND_HOLD_AT}{share:.2%}", source, buy_and_hold(record, share), share
                )
            )
    source = f"computed: all the money, {BOUGHT}"
    return [*held, HoldBenchmark(BUY_AND_HOLD, source, buy_and_hold(record), 1.0)]


def _held_account(record: RunRecord, held: HoldBenchmark) -> AccountReport:
    return AccountReport(
        name=held.name,
        source=held.source,
        end=float(held.equity[-1]),
        bought=held.share,
        performance=_performance(record, record.times_ms, held.equity),
        activity=None,
        costs=None,
    )


def _sentences(record: RunRecord, card: Card) -> tuple[str, ...]:
    """List the caveats of this report and of the model's card."""
    sentences = [PAPER_SENTENCE]
    if record.gaps:
        lost = sum(
            int(record.bar_times.bars_between(np.array(row["from_ms"]), np.array(row["until_ms"])))
            for row in record.gaps
            if not row["repaired_by"]
        )
        longest = max(row["until_ms"] - row["from_ms"] for row in record.gaps)
        sentences.append(
            f"Gaps in the data: {len(record.gaps):,}, the longest of {duration(longest)}. Bars "
            f"that never came: {lost:,}; annual figures do not count them."
        )
    if record.missing:
        ledger = record.account
        held = sum(ledger.holds(row["instrument"], row["from_ms"]) for row in record.missing)
        sentences.append(
            f"{len(record.missing):,} settlements of funding never came, {held:,} of them while a "
            "position was held: what they would have moved is in no account."
        )
    if record.settled_twice:
        sentences.append(f"{record.settled_twice:,} settlements came twice and were booked once.")
    if record.splits:
        symbols = ", ".join(record.instruments[name].symbol for name in record.splits)
        sentences.append(
            f"Over the split of {symbols} that was not adjusted, an account that held it has no "
            "returns (–) and its trade is left out; buy and hold is computed as if adjusted, and "
            "random timings are not drawn."
        )
    if record.run["ended_at"] is None:
        sentences.append("The run has not ended; this is how it stood when the report was made.")
    if record.run["kind"] != "live":
        sentences.append(OPENS_SENTENCE)
    if record.run["model_id"] and not record.config.model.custom_class:
        of_card = card_sentences(card) or [card["model"].get("notice", "")] if card else []
        sentences += [f"The model's card: {text}" for text in of_card if text]
        if not card:
            sentences.append(
                "The checkpoint is no longer beside the database, so its card says nothing here."
            )
        sentences += [REGIMES_SENTENCE, ROLLOUT_SENTENCE]
    return tuple(sentences)


def _retrained_sentences(events: Sequence[RetrainingEnd]) -> Iterator[str]:
    """Say whether the model was replaced, and whose the decisions are."""
    if not events:
        return
    counts = Counter(event.outcome.value for event in events)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    yield f"The model was retrained in service: {outcomes}. Each is an event of the kind retrained."
    for event in events:
        if event.takes_over:
            at = datetime.fromtimestamp(event.market_ms / 1000, UTC)
            how = "promoted by" if event.outcome is RetrainOutcome.PROMOTED else "after"
            yield (
                f"From {at:%Y-%m-%d %H:%M} UTC on model {event.candidate_sha256[:ID_DIGITS]} "
                f"decides, {how} {event.reason}. The card is the first model's, the "
                "thresholds are the last's."
            )


def _card(record: RunRecord) -> Card:
    """Return the card of the run's model; empty without a model, or where it is not kept."""
    if not record.run["model_id"]:
        return {}
    folder = kept_folder(record.database, str(record.run["model_id"]))
    return read_card(folder) if folder.is_dir() else {}
