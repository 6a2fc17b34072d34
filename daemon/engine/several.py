"""``SeveralEngine``: several strategies on one account, netted into one decision a bar.

Each strategy has its own gates and sizes, and decides on each instrument as if its sub-account were
the account. What they want together is the decision of the account's own gates and limits.

The rules are docs/one_account.md, J8 to J18.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, cast

import msgspec
from msgspec.structs import replace

from tracepaper.daemon.broker.account import Intent, Ownership
from tracepaper.daemon.broker.book import Book
from tracepaper.daemon.broker.broker import NOTHING_FILLED, Filled, Save
from tracepaper.daemon.broker.router import Proposal
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.instrument_state import InstrumentState, checked
from tracepaper.daemon.engine.state import Decided, EngineSettings, EngineState, PartsState
from tracepaper.daemon.engine.strategy_members import (
    HOLD,
    DeclaredStates,
    NetSizer,
    Netted,
    StrategyMember,
)
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.api.sizing import Sizer
from tracepaper.strategies.api.strategy import DeclaredState, Strategy
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.gates.evaluator import GateEvaluator
from tracepaper.strategies.types.decisions import (
    Action,
    Decision,
    FillModel,
    GateSet,
    Prediction,
    SinceDecided,
    Step,
    StrategyDecision,
    TwinStep,
)
from tracepaper.strategies.types.market import Bar, Closed, Event, Instrument
from tracepaper.strategies.units import DAY_MS, divide_half_even

NEVER: Final = "never"


class _Asked:
    """One strategy on one instrument: what is asked of it at each bar, and what it decided last."""

    __slots__ = (
        "account", "decided", "decision", "intent", "member", "name", "part", "state"
    )  # fmt: skip

    def __init__(self, member: StrategyMember, state: InstrumentState, part: Book) -> None:
        self.member, self.name, self.state, self.part = member, member.name, state, part
        self.account = part.balance()  # at the bar in hand
        self.decision: Decision | None = None
        self.intent: Intent | None = None
        self.decided: StrategyDecision | None = None  # as the newest step keeps it

    def keep(self, decision: Decision, own: Decision, places: Mapping[GateSet, int]) -> None:
        """Take what was decided, beside the account's *own* decision, for the step.

        What is as it was is the same object: nothing of it is stored anew.
        """
        outcome, last = decision.outcome, self.decided
        measures: tuple[tuple[str, float | None], ...] = ()
        gates = outcome.gate_set.gates
        if decision.measures != own.measures or gates != own.outcome.gate_set.gates:
            measures = _others(decision, own)
        if (
            last is not None
            and last.outcome is outcome
            and last.target_quantity == decision.target_quantity
            and last.measures == measures
            and last.note is decision.note is None
        ):
            return
        self.decided = StrategyDecision(
            self.name,
            outcome,
            decision.target_quantity,
            places[outcome.gate_set],
            measures,
            decision.note,
        )


def _others(decision: Decision, own: Decision) -> tuple[tuple[str, float | None], ...]:
    """Return the measures of *decision* that its account's *own* lacks, or has otherwise."""
    known = dict(zip(own.outcome.gate_set.gates, own.measures, strict=True))
    return tuple(
        [
            (gate, measure)
            for gate, measure in zip(
                decision.outcome.gate_set.gates, decision.measures, strict=True
            )
            if gate not in known or known[gate] != measure
        ]
    )


class _Quiet(NamedTuple):
    """What a bar asked for at which every part stood where it was to stand.

    Until a step trades or changes anything, a bar that asks for the same has the same outcome.
    """

    intents: list[Intent | None]  # the objects themselves: a repeated decision asks for the same
    confirmed: list[bool]  # whether the position of each was, for another horizon
    enters: bool  # whether any asks for one


class SeveralEngine(Engine):
    """The engine of a run in which several strategies share the account."""

    def __init__(
        self,
        instruments: Sequence[Instrument],
        nets: Mapping[str, Strategy],
        _sizers: Mapping[str, Sizer],
        gates: Mapping[str, GateEvaluator],
        settings: EngineSettings,
        *,
        engines: Mapping[str, Engine],
        shares: Mapping[str, int],
        reset: str = NEVER,
    ) -> None:
        """Take what the account is judged by, and the engine that each strategy would have alone.

        *shares* are 10⁻¹⁰ of the account, by the strategies' names.
        """
        self._nets = {key: net for key, net in nets.items() if isinstance(net, Netted)}
        self._net_sizers = {
            item.id: NetSizer(item, self._nets[item.id].remembers) for item in instruments
        }
        self.members: list[StrategyMember] = []
        every = [
            (name, key, state.strategy)
            for name, alone in engines.items()
            for key, state in alone.states.items()
        ]
        super().__init__(
            instruments,
            nets,
            self._net_sizers,
            gates,
            settings,
            owners={
                name: Ownership(
                    alone.broker.settings,
                    shares[name],
                    [key for of, key, one in every if of == name and one.sees_account],
                )
                for name, alone in engines.items()
            },
            confirms=[key for _, key, one in every if one.horizon is not None],
        )
        self._by_quotes = settings.broker.execution is FillModel.QUOTE
        self._reset, self._shared_out = reset, -1
        self._quiet: dict[str, _Quiet] = {}
        self._failed: list[StrategyMember] = []
        self.members = next(iter(self._nets.values())).members
        declared: dict[str, dict[StrategyMember, DeclaredState]] = {
            item.id: {} for item in instruments
        }
        for member in self.members:
            member.failed = self._failed
            alone = engines[member.name]
            for key, state in alone.states.items():
                member.states[key] = state
                if key in alone.declared:
                    declared[key][member] = alone.declared[key]
                state.history.share(self.states[key].history)
                if state.strategy.needs_forecast:
                    self.states[key].regimes = state.regimes  # of one model, with one card
                self._net_sizers[key].states.append(state)
                self._net_sizers[key].whole = self.states[key].history
        for key, of in declared.items():
            for state in self._net_sizers[key].states:
                state.regimes = self.states[key].regimes
            if of:
                one = cast("DeclaredState", DeclaredStates(of))
                self.declared[key] = self.states[key].declared = one
        self.sees_account = True  # a strategy without equity is closed
        self._places = {one: place for place, one in enumerate(self.gate_sets)}
        self._asked = {
            key: [
                _Asked(one, one.states[key], self.broker.own.owners[one.name])
                for one in self.members
            ]
            for key in self.states
        }

    # ------------------------------------------------------------ what others ask

    @property
    def gate_sets(self) -> tuple[GateSet, ...]:
        """The gate sets of the account and of all strategies, without repeats."""
        own = [
            state.gates.evaluator.gate_set
            for member in self.members
            for state in member.states.values()
        ]
        return tuple(dict.fromkeys((*super().gate_sets, *own)))

    @property
    def since_decided(self) -> dict[str, SinceDecided]:
        """What became of the last decision on each instrument, of each strategy too."""
        return {
            key: replace(
                known,
                parts={
                    member.name: SinceDecided(
                        member.states[key].outcomes.verdict,
                        tuple(self.broker.own.owners[member.name].fills.get(key, ())),
                    )
                    for member in self.members
                },
            )
            for key, known in super().since_decided.items()
        }

    # ------------------------------------------------------------ a bar, from top to bottom

    def step(self, event: Event, prediction: Prediction) -> Step:
        """Return all that *event* caused; but for a decided bar, it may change what was quiet."""
        if type(event) is not Bar and type(event) is not Closed:
            self._quiet.clear()
        return super().step(event, prediction)

    def _decide(
        self,
        bar: Bar,
        filled: Filled | None,
        prediction: Prediction,
        at_ms: int,
        *,
        saves: bool = True,
    ) -> Step:
        """Return the step of *bar*: every strategy's decision first, then that of the account."""
        if filled is None or bar.open_time_ms < self._period_start_ms:
            self._quiet.clear()
            return super()._decide(bar, filled, prediction, at_ms, saves=saves)
        self._share_out_if_due(bar)
        key = bar.instrument
        state, is_finite = self.states[key], None
        said, regimes = prediction, state.regimes
        if prediction is not None:
            said, is_finite = checked(prediction)
        regime, cell = regimes.regime, regimes.cell
        is_running, quote = not self.halted, state.quote
        asked, quiet = self._asked[key], self._quiet.get(key)
        is_quiet = quiet is not None and filled is NOTHING_FILLED
        for place, one in enumerate(asked):
            decides, part = one.state, one.part
            account = one.account = part.balance()
            if (account.equity <= 0) is not one.member.is_empty:
                one.member.know(is_empty=account.equity <= 0)
            decides.quote = quote
            one.decision = decides.decide(
                bar, said, part, is_running=is_running, is_finite=is_finite
            )
            intent = decides.intent
            if is_quiet:
                assert quiet is not None
                is_quiet = intent is quiet.intents[place]
            assert not isinstance(intent, Orders)
            one.intent = intent
        if self._failed or regimes.regime is not regime or regimes.cell != cell:
            self._failed.clear()
            self.save = Save.NOW
        if (
            is_quiet
            and quiet is not None
            and (repeated := state.repeated(bar, is_running=is_running)) is not None
        ):
            return self._repeat(bar, repeated, prediction, quiet, saves=saves)
        self._net(bar, at_ms)
        return super()._decide(bar, filled, prediction, at_ms, saves=saves)

    def _repeat(
        self, bar: Bar, net: Decision, prediction: Prediction, quiet: _Quiet, *, saves: bool
    ) -> Step:
        """Return the step of *bar*, whose *net* decision and all behind it are those of before."""
        key = bar.instrument
        asked = self._asked[key]
        for one in asked:
            decision, last = one.decision, one.decided
            assert decision is not None
            assert last is not None
            if (  # as at most bars
                decision.outcome is not last.outcome
                or decision.measures != net.measures
                or last.measures
                or decision.note is not None
                or decision.target_quantity != last.target_quantity
            ):
                one.keep(decision, net, self._places)
        if quiet.enters:
            self.save = self.save or Save.LATER
        own = self.states[key].settle(net, prediction, None)
        twins = tuple(
            [
                TwinStep(one.name, one.part.position(key), one.account, (), confirmed, one.decided)
                for one, confirmed in zip(asked, quiet.confirmed, strict=True)
            ]
        )
        return self._finish(bar, key, NOTHING_FILLED, own, twins, saves=saves)

    def _net(self, bar: Bar, at_ms: int) -> None:
        """Net what the strategies said of *bar*, and propose that to the broker."""
        key, broker = bar.instrument, self.broker
        price = self._crossing_price(bar, self.states[key])
        intents: dict[str, Intent] = {}
        reasons = []
        net = 0
        for one in self._asked[key]:
            signal, intent = one.state.signal, one.intent
            if isinstance(signal, Signal):
                broker.hear(one.name, key, signal)
            target = before = one.part.target(key)
            if intent is not None:
                intents[one.name] = intent
                if broker.refusal_of(one.name, intent, bar, at_ms) is None:
                    target = intent.target
            if target != before:
                assert one.decision is not None
                reasons.append(f"{one.name}: {one.decision.reason}")
            net += target
        self._nets[key].answer = _answer(net, reasons)
        self._net_sizers[key].net = net
        broker.router.propose(Proposal(intents, net, price))

    def _crossing_price(self, bar: Bar, state: InstrumentState) -> int:
        """Return the mid of the newest quote where quotes fill orders, else the close of *bar*."""
        quote = state.quote
        if not self._by_quotes or quote is None:
            return bar.close
        return divide_half_even(quote.bid + quote.ask, 2)

    def _share_out_if_due(self, bar: Bar) -> None:
        """Give shares anew at the first close of each day, week or month."""
        if self._reset == NEVER:
            return
        period = _period(self._reset, bar.close_time_ms)
        if period > self._shared_out:
            if self._shared_out >= 0:
                self.broker.share_out()
                self._quiet.clear()
            self._shared_out = period
            self.save = Save.NOW

    # ------------------------------------------------------------ the record

    def _conclude(
        self,
        bar: Bar,
        filled: Filled,
        decided: Decided,
        confirmed: Sequence[str],  # noqa: ARG002 - of shadow accounts, which there are none of
        *,
        saves: bool,
    ) -> Step:
        """Return the step of *bar*, with what each strategy decided."""
        key, broker = bar.instrument, self.broker
        asked, decision, sent = self._asked[key], decided.decision, decided.orders
        assert decision is not None
        if decision.refused_by is not None:  # what a command left opposing crosses still
            price = self._crossing_price(bar, self.states[key])
            sent += broker.cross(key, price, sequence=self.sequence, at_ms=bar.market_ms)
        shadows, crossed = filled.shadows, broker.router.take_crossed()
        twins, confirms = [], []
        for one in asked:
            one.keep(self._settled(one, decision), decision, self._places)
            to, intent = broker.router.sent.get(one.name), one.intent
            confirms.append(
                intent is not None and intent.is_entry and to is not None and to.refusal is None
            )
            fills = (*shadows.get(one.name, ()), *crossed.get(one.name, ()))
            twins.append(
                TwinStep(
                    one.name,
                    one.part.position(key),
                    one.part.balance(),
                    fills,
                    confirms[-1],
                    one.decided,
                )
            )
        if filled is not NOTHING_FILLED or sent:
            self._quiet.clear()
        elif broker.router.is_reached:
            enters = any(one.intent is not None and one.intent.is_entry for one in asked)
            intents = [one.intent for one in asked]
            self._quiet[key] = _Quiet(intents, confirms, enters)
        else:
            self._quiet.pop(key, None)
        decided = replace(decided, orders=sent)
        return self._finish(bar, key, filled, decided, tuple(twins), saves=saves)

    def _settled(self, one: _Asked, net: Decision) -> Decision:
        """Return the decision of *one* strategy, with why its target is not asked for."""
        decision, sent = one.decision, self.broker.router.sent.get(one.name)
        assert decision is not None
        if sent is not None:
            return one.state.unfilled(decision, sent.refusal)
        if one.intent is not None and net.refused_by is not None:
            why = f"the account's gate {net.refused_by} refused what was netted"
            return one.state.unfilled(decision, why)
        return decision

    @property
    def set_aside(self) -> dict[str, str]:
        """Of the strategies those that failed, and why."""
        return {one.name: one.set_aside for one in self.members if one.set_aside}

    def state(self) -> EngineState:
        """Return the state that must survive a restart."""
        parts = PartsState(self.broker.own.reserve, self.set_aside, self._shared_out)
        return replace(super().state(), parts=parts)

    def _encoded_state(self) -> bytes:
        """Return the encoding of :meth:`state`."""
        return msgspec.msgpack.encode(self.state())

    def take_up(self, state: EngineState, since: Mapping[str, SinceDecided]) -> None:
        """Take up what a restart brings; raise ``InvariantBroken`` where parts do not add up."""
        own = self.broker.own
        stored: Any = state.parts
        if stored is not None and state.twins.keys() == own.owners.keys():
            own.reserve, self._shared_out = stored.reserve, stored.shared_out
            for member in self.members:
                member.know(set_aside=stored.set_aside.get(member.name, ""))
        for key, known in since.items():
            for member in self.members:
                if (its := known.parts.get(member.name)) is not None:
                    member.states[key].outcomes.restored = its.verdict
                    fills = own.owners[member.name].fills
                    if key in fills:
                        fills[key] = list(its.fills)
        for key in self.states:
            parts = sum(part.held(key) for part in own.owners.values())
            if parts != own.held(key):
                raise InvariantBroken(
                    f"the strategies' parts of {key} add up to {parts}, and the account holds "
                    f"{own.held(key)}; run `tracepaper audit verify` and restore a backup"
                )


def _answer(net: int, reasons: Sequence[str]) -> Signal:
    """Return the signal of the *net* target, which *reasons* explain; none of them changes none."""
    if not reasons:
        return HOLD
    action = Action.FLAT if not net else Action.LONG if net > 0 else Action.SHORT
    return Signal(action, "; ".join(reasons))


def _period(reset: str, at_ms: int) -> int:
    """Return the number of the day, of the week (from Monday) or of the month of a time in UTC."""
    day = at_ms // DAY_MS
    if reset == "day":
        return day
    if reset == "week":
        return (day + 3) // 7  # 1970 began on a Thursday
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return moment.year * 12 + moment.month
