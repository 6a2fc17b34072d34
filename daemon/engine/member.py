"""``Member``: one of several strategies on an account, and how the account nets them.

The rules are docs/one_account.md, J8 to J18.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from tracepaper.daemon.broker.account import Holdings
from tracepaper.daemon.engine.history import InstrumentState
from tracepaper.daemon.engine.instrument_state import MemberState, MemberStatus
from tracepaper.daemon.engine.risk import RiskWatch
from tracepaper.daemon.engine.settings import INTEGRITY, MemberTerms
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.sizing import Sizer, Sizing, SizingMode
from tracepaper.strategies.api.strategy import (
    NOT_NAMED,
    DeclaredState,
    PortfolioMember,
    PortfolioStrategy,
    Strategy,
    portfolio_of,
)
from tracepaper.strategies.api.timeframes import frame_bars
from tracepaper.strategies.errors import StrategyFailed
from tracepaper.strategies.types.decisions import (
    Action,
    Decision,
    PositionSide,
    StrategyDecision,
)
from tracepaper.strategies.types.market import Instrument
from tracepaper.strategies.units import DAY_MS

NEVER: Final = "never"
UNCHANGED: Final = Signal(Action.HOLD, "no strategy changed its target")


class Member(MemberStatus):
    """One of several strategies: whether it is still active, and its state for each instrument."""

    def __init__(
        self, terms: MemberTerms, markets: Mapping[str, InstrumentState], place: int
    ) -> None:
        """Decide on *markets* by *terms*; *place* is that of its lookback, after the account's."""
        super().__init__()
        self.name = terms.name
        self.account: Holdings  # its sub-account
        self.decided: dict[str, StrategyDecision] = {}  # by instrument, as in its newest step
        risk = RiskWatch({})
        self.states = {
            key: MemberState(market, terms, risk, self, place) for key, market in markets.items()
        }

    def has_declared(self, instrument: str) -> bool:
        """Return whether its declared state changed; set it aside if that cannot be stored."""
        declared = self.states[instrument].declared
        if declared is None or self.failed:
            return False
        try:
            return declared.changed()
        except StrategyFailed as error:
            self.fail(str(error))
            return True

    def stored_decision(self, key: str, decision: Decision, net: Decision) -> StrategyDecision:
        """Return *decision* as the step stores it: without the measures of the *net* decision.

        An unchanged decision is the same object as before, so that it is not stored again.
        """
        outcome, last = decision.outcome, self.decided.get(key)
        measures: tuple[tuple[str, float | None], ...] = ()
        gates, net_gates = outcome.gate_set.gates, net.outcome.gate_set.gates
        if decision.measures != net.measures or gates != net_gates:
            net_measures = dict(zip(net_gates, net.measures, strict=True))
            measures = tuple(
                (gate, measure)
                for gate, measure in zip(gates, decision.measures, strict=True)
                if gate not in net_measures or net_measures[gate] != measure
            )
        if (
            last is None
            or last.outcome is not outcome
            or last.target_quantity != decision.target_quantity
            or last.measures != measures
            or not (last.note is decision.note is None)
        ):
            last = self.decided[key] = StrategyDecision(
                self.name,
                outcome,
                decision.target_quantity,
                measures,
                decision.note,
            )
        return last


class Portfolio(NamedTuple):
    """A strategy that decides on all instruments of a close at once, for an account or *member*."""

    strategy: PortfolioStrategy
    declared: DeclaredState | None
    states: Mapping[str, MemberState]
    member: Member | None

    @classmethod
    def of(cls, states: Mapping[str, MemberState], member: Member | None) -> Portfolio | None:
        """Return the portfolio strategy of *states*; None if each instrument has its own."""
        strategy = portfolio_of(state.strategy for state in states.values())
        if strategy is None:
            return None
        return cls(strategy, DeclaredState.of(strategy), states, member)

    @property
    def name(self) -> str:
        """The key of its declared state, which no instrument has."""
        return "" if self.member is None else f"{self.member.name}/"

    def ask(self, pending: Mapping[str, tuple[MemberState, BarContext]]) -> bool:
        """Let the strategy decide on all *pending* symbols; return whether its state changed.

        A member that fails is set aside.
        """
        if self.member is not None and self.member.failed:
            return False
        contexts = {symbol: context for symbol, (_, context) in pending.items()}
        try:
            answers = self.strategy.decide(contexts) if contexts else {}
            for symbol, (state, _) in pending.items():
                assert isinstance(state.strategy, PortfolioMember)
                state.strategy.answer = answers.get(symbol, NOT_NAMED)
            return self.declared is not None and self.declared.changed()
        except StrategyFailed as error:
            if self.member is None:
                raise
            self.member.fail(str(error))
            return True


class NetStrategy(Strategy):
    """The account's strategy for one instrument: the net of several strategies."""

    reads_history = False
    signal = UNCHANGED
    """The :func:`net_signal` of all strategies for the bar that is being decided."""

    def __init__(self, members: Mapping[str, Strategy], shadows: tuple[str, ...] = ()) -> None:
        """Net the strategies of *members*, by name, with the shadow accounts *shadows*."""
        self.members, self.shadows = dict(members), shadows
        every = self.members.values()
        self.warmup = min(strategy.warmup for strategy in every)  # the first warm one trades
        self.gates = INTEGRITY.intersection(*(strategy.gates for strategy in every))
        self.books = max(strategy.books for strategy in every)
        self.needs_forecast = any(strategy.needs_forecast for strategy in every)
        wanted = [frame_bars(strategy) for strategy in every]
        self.frames = tuple(dict.fromkeys(name for counts in wanted for name in counts))
        self.frames_warmup = {
            name: max(counts[name] for counts in wanted if name in counts) for name in self.frames
        }

    def decide(self, context: BarContext) -> Signal:  # noqa: ARG002
        """Return :attr:`signal`: the engine has asked each strategy separately."""
        return self.signal


def net_signal(targets: Mapping[PositionSide | None, int], reasons: Sequence[str]) -> Signal:
    """Return the signal of the net *targets*; UNCHANGED if no strategy gave one of *reasons*.

    In hedge mode it has the direction of the larger side.
    """
    if not reasons:
        return UNCHANGED
    action = Action.LONG if sum(targets.values()) >= 0 else Action.SHORT
    if not any(targets.values()):
        action = Action.FLAT
    return Signal(action, "; ".join(reasons))


def unit_sizer(instrument: Instrument) -> Sizer:
    """Return a sizer of one quantity step, for an account whose strategies size their own parts."""
    return Sizer(Sizing(SizingMode.FIXED, quantity=instrument.quantity_step), instrument)


def period_of(reset: str, at_ms: int) -> int:
    """Return the number of the UTC day, week (from Monday) or month that contains *at_ms*."""
    day = at_ms // DAY_MS
    if reset == "day":
        return day
    if reset == "week":
        return (day + 3) // 7  # 1970 began on a Thursday
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return moment.year * 12 + moment.month
