"""Counters of a running daemon, for its status; ``metrics`` shows them to Prometheus."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, Protocol, TypeVar

from tracepaper.daemon.broker.account import SIDES
from tracepaper.daemon.broker.rules import MarginRules
from tracepaper.daemon.clock import Clock
from tracepaper.strategies.gates.declared import late, operator, risk_halt, warm
from tracepaper.strategies.types.decisions import (
    Account,
    Decision,
    Forecast,
    Position,
    Prediction,
    PredictionTimeout,
    Run,
    ShadowStep,
    Step,
)
from tracepaper.strategies.types.market import (
    LEVERAGE_DECIMALS,
    Bar,
    Command,
    CommandKind,
    Instrument,
    ModelChange,
)
from tracepaper.strategies.units import MONEY_DECIMALS, MONEY_SCALE, minute_text, unscaled

DECISION_BOUNDS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
WORK_BOUNDS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
FRESH_INTERVALS: Final = 3
"""A daemon is ready while its newest bar closed at most so many intervals ago."""
FRESH_S: Final = 5.0  # of the machine, where a fast clock makes that more than the intervals
_HALTING: Final = frozenset({operator.name, risk_halt.name})
BESIDE: Final = ("retraining", "parity", "notices", "shipping", "recording")
"""What may work beside a run: None in the status where it does not."""

Document = dict[str, object]
T = TypeVar("T")


class Newest(Protocol):
    """When a feed received its newest frame and quotes, and what it still waits for."""

    def frame_s(self) -> float | None:
        """Return the network time of the newest frame; None before the first."""
        ...

    def quote_ms(self, instrument: str) -> int | None:
        """Return the market time of the newest quote; None before the first."""
        ...

    def warm_at(self, instrument: str) -> int | None:
        """Return when REST has answered all that *instrument* waits for; None where it has."""
        ...


class Histogram:
    """How often something took how long, in seconds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)  # the last: longer than every bound
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total_s += seconds

    def document(self, name: str) -> Document:
        """Return count, mean and quantiles in seconds: bounds of classes, None beyond them all."""
        count = (passed := list(accumulate(self.counts)))[-1]
        quantiles: Document = {
            label: [*self.bounds, None][bisect_left(passed, share * count)] if count else None
            for label, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
        }
        mean = self.total_s / count if count else None
        return {"name": name, "count": count, "mean": mean} | quantiles


class Monitor:
    """Watches the steps of one run; ``status`` and ``/metrics`` are read from it.

    *counters* are the feed's own (reconnections, repairs, malformed frames), read at each request.
    *newest* has the times of the feed's newest frame and quotes; *halted_by* is the gate that
    allows no new exposure until RESUME, if any; *obstacles* returns other reasons why the daemon
    cannot decide; *margin* has the rules of each instrument that trades on margin. ``companions``
    has what works beside the run, by its key in the status, and returns how it stands; ``warm_at``
    returns when an instrument will have enough bars, ``copied_s`` when it was backed up last.
    """

    def __init__(
        self,
        *,
        run: Run,
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
        self.shadows: dict[str, Account] = {}  # beside the run's own, the newest
        self.events: Counter[str] = Counter()
        self.actions: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.fills = 0
        self.revisions = 0
        self.halted_by = halted_by
        self.bars: dict[str, Step] = {}
        self.held: dict[str, Step] = {}  # by instrument the newest step that says what is held
        self.decision_s = Histogram(DECISION_BOUNDS_S)
        self.model_s = Histogram(WORK_BOUNDS_S)
        self.commit_s = Histogram(WORK_BOUNDS_S)
        self._committed_s: float | None = None
        self._clock = clock
        self._newest = newest  # None before anything was received
        self._obstacles = obstacles
        self.warm_at: Callable[[str], int | None] = lambda _instrument: None
        self.copied_s: Callable[[], float | None] = lambda: None
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
            case ModelChange(model_id=model_id):
                self.model_id = model_id
            case Bar(instrument=instrument):
                if step.accepted:
                    self.bars[instrument] = step
                    # A late bar says nothing about how fast the daemon decides.
                    if step.decision is not None and step.decision.refused_by != late.name:
                        self.decision_s.add(self._age_s(step.event.close_time_ms))
                else:
                    self.revisions += 1
        if (decision := step.decision) is not None:
            self.actions[decision.action.value] += 1
            if decision.refused_by is not None:
                self.refusals[decision.refused_by] += 1
        self.halted_by = self._halting(step)
        # Quotes fill, and marks move what is held, between bars.
        if step.position is not None and (name := getattr(step.event, "instrument", "")):
            self.held[name] = step

    def _halting(self, step: Step) -> str:
        """Return the gate that allows no new exposure after *step*; empty where none does."""
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
        """Return *work*, of which each call is timed whose result *counts*."""

        async def call(*given: object) -> T:
            begun_s = self._clock.network_s()
            result = await work(*given)
            if counts(result):
                took_s.add(self._clock.network_s() - begun_s)
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
        """Whether another reason than the market keeps the daemon from deciding."""
        return bool(self._obstacles())

    # ------------------------------------------------------------ documents

    def not_ready(self) -> Sequence[str]:
        """Return the reasons why the daemon cannot decide now; none where it can."""
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
                reasons.append(f"{instrument} is warming up{until}")
        return reasons

    def summary(self) -> Document:
        """Return the run and its accounts as plain values; money as exact text."""
        run, last = self.run, self.last
        return {
            "state": "halted" if self.halted_by else "running",
            "halted_by": self.halted_by or None,
            "run_id": run.run_id,
            "kind": run.kind.value,
            "strategy": run.strategy,
            "model_id": self.model_id,
            "sequence": last.sequence if last is not None else None,
            "bars": self.events["Bar"],
            "decisions": self.actions.total(),
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
            "pid": os.getpid(),
            "code_version": run.code_version,
            "started_at_ms": run.started_at_ms,
            "market_ms": self._clock.market_ms(),
            **dict.fromkeys(BESIDE),
            **{name: status() for name, status in self.companions.items()},
            "actions": dict(self.actions),
            "refusals": dict(self.refusals),
            "revisions": self.revisions,
            "instruments": {name: self.instrument(name) for name in self.bars},
            "counters": dict(self.counters),
            "feeds": [
                {"instrument": key, "bar_s": self.bar_age_s(key), "quote_s": self.quote_age_s(key)}
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
        """Return the run's own account; on margin also the margin of all positions."""
        document = account_document(last.account)
        if self._margin:
            positions = [
                (rules, position)
                for key, step in self.held.items()
                if (rules := self._margin.get(key)) is not None
                for position in _positions_of(step)
            ]
            used = sum(rules.used_by(position) for rules, position in positions)
            document["margin_used"] = unscaled(used, MONEY_DECIMALS)
            if any(rules.is_cross for rules in self._margin.values()):
                needed = sum(rules.needed_by(position) for rules, position in positions)
                equity = last.account.equity
                document["maintenance_ratio"] = needed / equity if equity > 0 else None
        return document

    def instrument(self, name: str) -> Document:
        """Return the last bar of the instrument *name*, what was decided on it, and what is held.

        In hedge mode that is held on each of its ``sides`` too.
        """
        item = self._instruments[name]
        document = bar_document(self.bars[name], item, self.run.gate_horizon)
        if (held := self.held.get(name)) is None or held.position is None:
            return document
        sides = {
            shadow.shadow.lower(): self._position(shadow.position, item)
            for shadow in _sides_of(held)
        }
        document |= self._position(held.position, item, is_net=bool(sides))
        return document | ({"sides": sides} if sides else {})

    def _position(self, position: Position, item: Instrument, *, is_net: bool = False) -> Document:
        """Return *position*; on margin also what it binds, unless it *is_net* of two sides."""
        document: Document = {
            "quantity": unscaled(position.quantity, item.quantity_decimals),
            "unrealized_pnl": unscaled(position.unrealized_pnl, MONEY_DECIMALS),
            "realized_pnl": unscaled(position.realized_pnl, MONEY_DECIMALS),
        }
        if position.quantity:
            size = abs(position.quantity) / 10**item.quantity_decimals
            average = abs(position.entry_notional) / MONEY_SCALE / size
            document["entry_price"] = f"{average:.{item.price_decimals}f}"
        rules = None if is_net else self._margin.get(item.id)
        if rules is not None and (used := rules.use_of(position)) is not None:
            document |= {
                "margin": unscaled(used.margin, MONEY_DECIMALS),
                "leverage": unscaled(used.leverage, LEVERAGE_DECIMALS),
                "liquidation_price": unscaled(used.liquidation, item.price_decimals),
            }
        return document


def _sides_of(step: Step) -> Sequence[ShadowStep]:
    """Return both sides of the account at *step*, in hedge mode; else none."""
    return [shadow for shadow in step.shadows if shadow.shadow in SIDES]


def _positions_of(step: Step) -> list[Position]:
    """Return the positions in the instrument of *step*: one, or both sides."""
    net = [] if step.position is None else [step.position]
    return [side.position for side in _sides_of(step)] or net


def account_document(account: Account) -> Document:
    """Return the sums of *account* as exact text."""
    return {
        name: unscaled(getattr(account, name), MONEY_DECIMALS) for name in account.__struct_fields__
    }


def bar_document(step: Step, instrument: Instrument, horizon: int | None) -> Document:
    """Return the last bar of *instrument*, its forecast, and what was decided on it."""
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
    """Return the forecast at *horizon*, else at the first, and the bars that it attended to.

    Of a forecast that came too late that is the deadline; None where there is none.
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
                document["confidence"] = explanation.confidence
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
