"""``Member``: one of several strategies on an account, and what the account decides of them all.

The rules are docs/one_account.md, J8 to J18.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from tracepaper.daemon.broker.book import Holdings
from tracepaper.daemon.engine.history import InstrumentState
from tracepaper.daemon.engine.instrument_state import MemberState
from tracepaper.daemon.engine.risk import RiskWatch
from tracepaper.daemon.engine.state import INTEGRITY, MemberTerms
from tracepaper.strategies.api.context import BarContext, Orders, Signal
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
from tracepaper.strategies.types.market import Bar, Instrument
from tracepaper.strategies.units import DAY_MS

NEVER: Final = "never"
NO_EQUITY: Final = "its sub-account has no equity left"
UNCHANGED: Final = Signal(Action.HOLD, "no strategy changed its target")
_FOLDER: Final = re.compile(r"(?<!\S)(?:[A-Za-z]:)?(?:[/\\][^\s/\\]+)*[/\\](?=[^\s/\\]+:\d)")
_SENTENCE_MOST: Final = 300


class Member:
    """One of several strategies: whether it is asked, and its state of each instrument."""

    def __init__(self, terms: MemberTerms, markets: Mapping[str, InstrumentState]) -> None:
        self.name = terms.name
        self.failed = ""  # why, once it failed
        self.is_empty = False  # its sub-account has no equity
        self.closed = ""  # why it holds nothing; empty while it is asked
        self.account: Holdings  # its sub-account
        self.decided: dict[str, StrategyDecision] = {}  # as the newest steps hold it
        risk = RiskWatch({})
        self.states = {
            key: MemberState(market, terms, risk, self) for key, market in markets.items()
        }

    def know(self, *, failed: str | None = None, is_empty: bool | None = None) -> None:
        """Learn that it failed before, or whether its sub-account has no equity."""
        self.failed = self.failed if failed is None else failed
        self.is_empty = self.is_empty if is_empty is None else is_empty
        self.closed = self.failed or (NO_EQUITY if self.is_empty else "")

    def fail(self, why: str) -> None:
        """Set it aside, for good in this run; what it holds is closed by its next decision."""
        if not self.failed:
            same = _FOLDER.sub("", why)  # wherever it is derived again
            line = " ".join(same.split())[:_SENTENCE_MOST]
            # A lone surrogate, of a file's name say, could be stored nowhere.
            text = "".join(
                character if character.isprintable() else repr(character)[1:-1]
                for character in line
            )
            self.know(failed=f"set aside: {text}")

    def observe(self, state: MemberState, bar: Bar) -> None:
        """Show *bar* to its strategy in *state*; one that fails is set aside."""
        try:
            state.observe(bar)
        except StrategyFailed as error:
            self.fail(str(error))

    def ask(self, state: MemberState, context: BarContext) -> Signal | Orders:
        """Return the answer of its strategy in *state*; FLAT where it is closed, or fails."""
        if not self.closed:
            try:
                return state.as_allowed(state.strategy.decide(context))
            except StrategyFailed as error:
                self.fail(str(error))
        return Signal(Action.FLAT, self.closed)

    def has_declared(self, instrument: str) -> bool:
        """Return whether its declared state changed; what cannot be stored sets it aside."""
        declared = self.states[instrument].declared
        if declared is None or self.failed:
            return False
        try:
            return declared.changed()
        except StrategyFailed as error:
            self.fail(str(error))
            return True

    def keep(self, key: str, decision: Decision, net: Decision) -> StrategyDecision:
        """Return *decision* beside the *net* one of the account, as the step holds it.

        What is as it was is the same object: nothing of it is stored anew.
        """
        outcome, last = decision.outcome, self.decided.get(key)
        measures: tuple[tuple[str, float | None], ...] = ()
        gates, of_net = outcome.gate_set.gates, net.outcome.gate_set.gates
        if decision.measures != net.measures or gates != of_net:
            of_account = dict(zip(of_net, net.measures, strict=True))
            measures = tuple(
                (gate, measure)
                for gate, measure in zip(gates, decision.measures, strict=True)
                if gate not in of_account or of_account[gate] != measure
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
    """A strategy that decides for all instruments of a close: of an account, or a *member*'s."""

    strategy: PortfolioStrategy
    declared: DeclaredState | None
    states: Mapping[str, MemberState]
    member: Member | None

    @classmethod
    def of(cls, states: Mapping[str, MemberState], member: Member | None) -> Portfolio | None:
        """Return that of whom *states* are; None where each instrument is decided by itself."""
        strategy = portfolio_of(state.strategy for state in states.values())
        if strategy is None:
            return None
        return cls(strategy, DeclaredState.of(strategy), states, member)

    @property
    def name(self) -> str:
        """What the state that it declares is carried by: no instrument has that name."""
        return "" if self.member is None else f"{self.member.name}/"

    def ask(self, pending: Mapping[str, tuple[MemberState, BarContext]]) -> bool:
        """Ask about all that is *pending*, by symbol; return whether what it declares changed.

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
    """What several strategies want together of one instrument: the account's strategy."""

    reads_history = False
    signal = UNCHANGED
    """Of the bar that is decided: what :func:`net_signal` makes of those of all."""

    def __init__(self, members: Mapping[str, Strategy], shadows: tuple[str, ...] = ()) -> None:
        """Net the strategies of *members*, by name, which have the shadow accounts *shadows*."""
        self.members, self.shadows = dict(members), shadows
        every = self.members.values()
        self.warmup = min(strategy.warmup for strategy in every)  # the first that is warm trades
        self.gates = INTEGRITY.intersection(*(strategy.gates for strategy in every))
        self.books = max(strategy.books for strategy in every)
        self.needs_forecast = any(strategy.needs_forecast for strategy in every)
        wanted = [frame_bars(strategy) for strategy in every]
        self.frames = tuple(dict.fromkeys(name for of in wanted for name in of))
        self.frames_warmup = {
            name: max(of[name] for of in wanted if name in of) for name in self.frames
        }

    def decide(self, context: BarContext) -> Signal:  # noqa: ARG002
        """Return it: each strategy was asked by itself."""
        return self.signal


def net_signal(targets: Mapping[PositionSide | None, int], reasons: Sequence[str]) -> Signal:
    """Return the signal of net *targets*, which *reasons* explain; none of them changes none.

    Of two sides it names the larger one.
    """
    if not reasons:
        return UNCHANGED
    action = Action.LONG if sum(targets.values()) >= 0 else Action.SHORT
    if not any(targets.values()):
        action = Action.FLAT
    return Signal(action, "; ".join(reasons))


def one_step(instrument: Instrument) -> Sizer:
    """Return a sizer that follows a signal alone, for an account that nets those of others."""
    return Sizer(Sizing(SizingMode.FIXED, quantity=instrument.quantity_step), instrument)


def period_of(reset: str, at_ms: int) -> int:
    """Return the number of the day, of the week (from Monday) or of the month of a time in UTC."""
    day = at_ms // DAY_MS
    if reset == "day":
        return day
    if reset == "week":
        return (day + 3) // 7  # 1970 began on a Thursday
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return moment.year * 12 + moment.month
