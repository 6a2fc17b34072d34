"""Counters of a running daemon for its status and its Prometheus metrics."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, Protocol, TypeVar

from tracepaper.daemon.broker.rules import MarginRules
from tracepaper.daemon.clock import Clock
from tracepaper.strategies.gates.declared import late, operator, risk_halt, warm
from tracepaper.strategies.position_text import stored_position_text
from tracepaper.strategies.types.decisions import (
    Account,
    Decision,
    Forecast,
    Order,
    Position,
    Prediction,
    PredictionTimeout,
    RunRow,
    Step,
)
from tracepaper.strategies.types.market import (
    GAP_WORDS,
    LEVERAGE_DECIMALS,
    Bar,
    Command,
    CommandKind,
    Gap,
    GapWord,
    Instrument,
    ModelChange,
)
from tracepaper.strategies.units import MONEY_DECIMALS, MONEY_SCALE, count_of, minute_text, unscaled
from tracepaper.strategies.without_fills import DecisionCounts

DECISION_BOUNDS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
WORK_BOUNDS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
FRESH_INTERVALS: Final = 3
"""A daemon is ready while its newest bar closed at most this many intervals ago."""
FRESH_S: Final = 5.0  # wall seconds, the limit if a fast clock makes them longer than the intervals
_HALTING: Final = frozenset({operator.name, risk_halt.name})
BESIDE: Final = ("parity", "notices")
"""Keys of background work in the status; None for work that does not run."""

Document = dict[str, object]
T = TypeVar("T")


class Newest(Protocol):
    """The times of a feed's newest frame and quotes, and of its pending warm-up."""

    def frame_s(self) -> float | None:
        """Return the network time of the newest frame; None before the first."""
        ...

    def quote_ms(self, instrument: str) -> int | None:
        """Return the market time of the newest quote; None before the first."""
        ...

    def warm_at(self, instrument: str) -> int | None:
        """Return when REST will have answered the warm-up of *instrument*; None if it has."""
        ...


class Histogram:
    """A histogram of durations in seconds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)  # the last counts those above every bound
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total_s += seconds

    def document(self, name: str) -> Document:
        """Return count, mean and quantiles in seconds; a quantile is a bound, or None above all."""
        count = (passed := list(accumulate(self.counts)))[-1]
        quantiles: Document = {
            label: [*self.bounds, None][bisect_left(passed, share * count)] if count else None
            for label, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
        }
        mean = self.total_s / count if count else None
        return {"name": name, "count": count, "mean": mean} | quantiles


class Monitor:
    """Observes the steps of one run and provides ``/status`` and ``/metrics``.

    *counters* are the feed's (reconnections, repairs, malformed frames). *newest* has the times of
    the feed's newest frame and quotes. *halted_by* is the gate that allows no new exposure until
    RESUME, if any. *obstacles* returns further reasons why the daemon cannot decide. *margin* has
    the rules of each instrument on margin. ``companions`` has a function per key of background
    work that returns its status. ``warm_at`` returns when an instrument will have enough bars,
    ``resting_orders`` the orders that rest in it, ``copied_s`` the time of the last backup,
    ``outage`` which host does not answer.
    """

    def __init__(
        self,
        *,
        run: RunRow,
        clock: Clock,
        counters: Mapping[str, int] | None = None,
        newest: Newest | None = None,
        obstacles: Callable[[], Sequence[str]] = tuple,
        halted_by: str = "",
        margin: Mapping[str, MarginRules] | None = None,
    ) -> None:
        self.run = run
        self.counters: Mapping[str, int] = counters if counters is not None else {}
        self.last: Step | None = None
        self.shadows: dict[str, Account] = {}  # the newest state of each shadow account
        self.events: Counter[str] = Counter()
        self.actions: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.fills = 0
        self.decided = DecisionCounts()
        self.revisions = 0
        self.not_in_time: Counter[GapWord] = Counter()  # bars
        self.halted_by = halted_by
        self.bars: dict[str, Step] = {}
        self.held: dict[str, Step] = {}  # by instrument, the newest step with a position
        self.decision_s = Histogram(DECISION_BOUNDS_S)
        self.model_s = Histogram(WORK_BOUNDS_S)
        self.commit_s = Histogram(WORK_BOUNDS_S)
        self._committed_s: float | None = None
        self._clock = clock
        self._since_ms = clock.market_ms()
        self._newest = newest  # None before anything was received
        self._obstacles = obstacles
        self.warm_at: Callable[[str], int | None] = lambda _instrument: None
        self.warming: Callable[[str], str] = lambda _instrument: ""
        self.resting_orders: Callable[[str], Sequence[Order]] = lambda _instrument: ()
        self.copied_s: Callable[[], float | None] = lambda: None
        self.outage: Callable[[], str | None] = lambda: None
        self._margin = margin or {}
        self.model_id = run.model_id
        self.companions: dict[str, Callable[[], Mapping[str, Any]]] = {}
        self._instruments = {instrument.id: instrument for instrument in run.instruments}

    def observe(self, step: Step) -> None:
        """Count one stored step."""
        self.last = step
        self.shadows.update((shadow.shadow, shadow.account) for shadow in step.shadows)
        self._committed_s = self._clock.network_s()
        self.events[type(step.event).__name__] += 1
        self.fills += len(step.fills)
        match step.event:
            case Gap() as gap if word := gap.word(self.run.interval_ms):
                bars = (gap.until_ms - gap.from_ms) // self.run.interval_ms
                self.not_in_time[word] += max(1, bars)
            case ModelChange(model_id=model_id):
                self.model_id = model_id
            case Bar(instrument=instrument):
                if step.accepted:
                    self.bars[instrument] = step
                    # A late bar does not measure how fast the daemon decides.
                    if step.decision is not None and step.decision.refused_by != late.name:
                        self.decision_s.add(self._age_s(step.event.close_time_ms))
                else:
                    self.revisions += 1
        if (decision := step.decision) is not None:
            self.actions[decision.action.value] += 1
            if decision.refused_by is not None:
                self.refusals[decision.refused_by] += 1
            self.decided.add(
                decision.action,
                decision.refused_by,
                decision.reason,
                decision.unfilled_reason,
                open_ms=step.event.market_ms,
            )
        self.decided.add_orders(step.orders)
        self.halted_by = self._halting(step)
        # Between bars, quotes fill orders and marks change the value of positions.
        if step.position is not None and (name := getattr(step.event, "instrument", "")):
            self.held[name] = step

    def _halting(self, step: Step) -> str:
        """Return the gate that forbids new exposure after *step*; empty if none does."""
        if isinstance(step.event, Command):
            return "" if step.event.kind is CommandKind.RESUME else operator.name
        if not self.halted_by and step.halted is not None:
            return step.halted.limit
        refused_by = None if step.decision is None else step.decision.refused_by
        return self.halted_by or (str(refused_by) if refused_by in _HALTING else "")

    def timed(
        self,
        work: Callable[..., Awaitable[T]],
        took_s: Histogram,
        counts: Callable[[T], bool] = lambda _result: True,
    ) -> Callable[..., Awaitable[T]]:
        """Return *work* with each call timed whose result *counts*."""

        async def call(*arguments: object) -> T:
            started_s = self._clock.network_s()
            result = await work(*arguments)
            if counts(result):
                took_s.add(self._clock.network_s() - started_s)
            return result

        return call

    # ------------------------------------------------------------ ages

    def bar_age_s(self, instrument: str) -> float | None:
        """Return the market time since the newest bar of *instrument* closed."""
        bar = step.event if (step := self.bars.get(instrument)) is not None else None
        return self._age_s(bar.close_time_ms) if isinstance(bar, Bar) else None

    def quote_age_s(self, instrument: str) -> float | None:
        """Return the age, in market time, of the newest quote of *instrument*."""
        quote_ms = None if self._newest is None else self._newest.quote_ms(instrument)
        return None if quote_ms is None else self._age_s(quote_ms)

    def frame_age_s(self) -> float | None:
        """Return the network time since the newest frame."""
        frame_s = None if self._newest is None else self._newest.frame_s()
        return None if frame_s is None else self._clock.network_s() - frame_s

    def commit_age_s(self) -> float | None:
        """Return the network time since the newest step was stored."""
        committed_s = self._committed_s
        return None if committed_s is None else self._clock.network_s() - committed_s

    def _age_s(self, market_ms: int) -> float:
        return max(0, self._clock.market_ms() - market_ms) / 1000

    @property
    def is_obstructed(self) -> bool:
        """Whether a reason other than missing market data prevents decisions."""
        return bool(self._obstacles())

    # ------------------------------------------------------------ documents

    def not_ready(self) -> Sequence[str]:
        """Return the reasons why the daemon cannot decide now; empty if it can."""
        reasons = list(self._obstacles())
        fresh_s = max(FRESH_INTERVALS * self.run.interval_ms, self._clock.scaled_ms(FRESH_S)) / 1000
        for instrument in self._instruments:
            age_s = self.bar_age_s(instrument)
            turn_ms = None if self._newest is None else self._newest.warm_at(instrument)
            if turn_ms is not None:
                reasons.append(f"{instrument} is warming up until {minute_text(turn_ms)}")
            elif age_s is None:
                reasons.append(f"{instrument} has no bar yet")
            elif age_s > fresh_s:
                reasons.append(f"the newest bar of {instrument} closed {int(age_s)} s ago")
            elif (
                decision := self.bars[instrument].decision
            ) is None or decision.refused_by == warm.name:
                at_ms = self.warm_at(instrument)
                until = "" if at_ms is None else f" until {minute_text(at_ms)}"
                holds = f"; it has {held}" if (held := self.warming(instrument)) else ""
                reasons.append(f"{instrument} is warming up{until}{holds}")
        return reasons

    def summary(self) -> Document:
        """Return the run and its accounts as plain values; money as exact text."""
        run, last = self.run, self.last
        decisions = self.actions.total()  # one for each bar but revised ones and those of a warm-up
        return {
            "state": "halted" if self.halted_by else "running",
            "halted_by": self.halted_by or None,
            "run_id": run.run_id,
            "kind": run.kind.value,
            "strategy": run.strategy,
            "model_id": self.model_id,
            "sequence": last.sequence if last is not None else None,
            "decisions": decisions,
            "warmup_bars": self.events["Bar"] - self.revisions - decisions,
            "fills": self.fills,
            "account": self._account_document(last) if last is not None else None,
            "shadows": {name: account_document(account) for name, account in self.shadows.items()},
        }

    def status(self) -> Document:
        """Return the whole state as plain values; money, prices and quantities as exact text."""
        run, reasons = self.run, self.not_ready()
        return {
            **self.summary(),
            "ready": not reasons,
            "not_ready": list(reasons),
            "outage": self.outage(),
            "pid": os.getpid(),
            "code_version": run.code_version,
            "started_ms": run.started_at_ms,
            "since_ms": self._since_ms,  # of everything that is counted
            "market_ms": self._clock.market_ms(),
            **dict.fromkeys(BESIDE),
            **{name: status() for name, status in self.companions.items()},
            "actions": dict(self.actions),
            "refusals": dict(self.refusals),
            "without_fills": None if self.fills else self.decided.why_no_fill() or None,
            "revisions": self.revisions,
            "not_in_time": {word: self.not_in_time[word] for word in GAP_WORDS},
            "instruments": {name: self.instrument(name) for name in self.bars},
            "counters": dict(self.counters),
            "feeds": [
                {
                    "instrument": key,
                    "bar_s": self.bar_age_s(key),
                    "quote_s": self.quote_age_s(key),
                    "warm_at_ms": self.warm_at(key),
                    "warming": self.warming(key) or None,
                }
                for key in self._instruments
            ],
            "frame_s": self.frame_age_s(),
            "commit_s": self.commit_age_s(),
            "latencies": [
                self.decision_s.document("decision"),
                self.model_s.document("model"),
                self.commit_s.document("commit"),
            ],
        }

    def _account_document(self, last: Step) -> Document:
        """Return the run's account; on margin, with the margin of all positions."""
        document = account_document(last.account)
        held = [(key, step.position) for key, step in self.held.items() if step.position]
        values = [each.entry_notional + each.unrealized_pnl for _, each in held]
        document["net_exposure"] = unscaled(sum(values), MONEY_DECIMALS)
        document["gross_exposure"] = unscaled(sum(map(abs, values)), MONEY_DECIMALS)
        if self._margin:
            positions = [
                (rules, position)
                for key, position in held
                if (rules := self._margin.get(key)) is not None
            ]
            used = sum(rules.used_by(position) for rules, position in positions)
            document["margin_used"] = unscaled(used, MONEY_DECIMALS)
            if any(rules.is_cross for rules in self._margin.values()):
                needed = sum(rules.needed_by(position) for rules, position in positions)
                equity = last.account.equity
                document["maintenance_ratio"] = needed / equity if equity > 0 else None
        return document

    def instrument(self, name: str) -> Document:
        """Return the last bar of the instrument *name*, its decision and its position."""
        item = self._instruments[name]
        document = bar_document(self.bars[name], item, self.run.gate_horizon)
        if (held := self.held.get(name)) is None or held.position is None:
            return document
        document |= self._position(held.position, item)
        orders = self.resting_orders(item.id)
        document["position"] = stored_position_text(item, held.position, orders)
        return document

    def _position(self, position: Position, item: Instrument) -> Document:
        """Return *position*; on margin, with its margin."""
        document: Document = {
            "quantity": unscaled(position.quantity, item.quantity_decimals),
            "unrealized_pnl": unscaled(position.unrealized_pnl, MONEY_DECIMALS),
            "realized_pnl": unscaled(position.realized_pnl, MONEY_DECIMALS),
        }
        if position.quantity:
            size = abs(position.quantity) / 10**item.quantity_decimals
            average = abs(position.entry_notional) / MONEY_SCALE / size
            document["entry_price"] = f"{average:.{item.price_decimals}f}"
        rules = self._margin.get(item.id)
        if rules is not None and (used := rules.use_of(position)) is not None:
            document |= {
                "margin": unscaled(used.margin, MONEY_DECIMALS),
                "leverage": unscaled(used.leverage, LEVERAGE_DECIMALS),
                "liquidation_price": unscaled(used.liquidation, item.price_decimals),
            }
        return document


def account_document(account: Account) -> Document:
    """Return the amounts of *account* as exact text."""
    return {
        name: unscaled(getattr(account, name), MONEY_DECIMALS) for name in account.__struct_fields__
    }


def bar_document(step: Step, instrument: Instrument, horizon: int | None) -> Document:
    """Return the last bar of *instrument*, its forecast and its decision."""
    bar = step.event
    assert isinstance(bar, Bar)
    document: Document = {
        "instrument": bar.instrument,
        "open_time_ms": bar.open_time_ms,
        "close_time_ms": bar.close_time_ms,
        "close": unscaled(bar.close, instrument.price_decimals),
        "source": bar.source.value,
        "base_coin": instrument.base_coin,
        "price_decimals": instrument.price_decimals,
        "forecast": forecast_document(step.prediction, horizon),
    }
    if (decision := step.decision) is not None:
        document |= {
            "action": decision.action.value,
            "allowed": decision.allowed,
            "refused_by": decision.refused_by,
            "unfilled": decision.unfilled_reason,
            "reason": decision.reason,
            "regime": decision.regime.value,
            "gates": gate_documents(decision),
        }
    return document


def forecast_document(prediction: Prediction, horizon: int | None) -> Document | None:
    """Return the forecast at *horizon*, else at the first horizon, and its attention.

    For a forecast that came too late, return its deadline; None if there is none.
    """
    match prediction:
        case PredictionTimeout(deadline_ms=deadline_ms):
            return {"deadline_ms": deadline_ms}
        case Forecast(horizons=horizons, explanation=explanation):
            at = horizons.index(horizon) if horizon in horizons else 0
            document: Document = {"horizon": horizons[at]}
            for name in ("mean_return", "stdev_return", "p_down", "p_flat", "p_up"):
                if column := getattr(prediction, name):
                    document[name] = column[at]
            if explanation is not None:
                document["confidence_entropy"] = explanation.confidence_entropy
                document["recent_mass"] = explanation.recent_mass
            return document
        case _:
            return None


def gate_documents(decision: Decision) -> list[Document]:
    """Return each declared gate with its measure, threshold and verdict."""
    gates = zip(
        decision.gate_set.gates, decision.measures, decision.gate_set.thresholds, strict=True
    )
    return [
        {
            "gate": gate,
            "measure": measure,
            "threshold": threshold,
            "passed": bool(decision.passed >> index & 1),
        }
        for index, (gate, measure, threshold) in enumerate(gates)
    ]


def counts_text(status: Mapping[str, Any]) -> str:
    """Return what a daemon did since its start: bars that it decided, bars before them, fills."""
    warmup = count_of(status["warmup_bars"], "warm-up bar")
    fills = count_of(status["fills"], "fill")
    return f"{count_of(status['decisions'], 'bar')} decided, {warmup}, {fills}"
