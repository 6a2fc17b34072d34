"""What each of several strategies on one account is to the engine, and all of them together.

The rules are docs/one_account.md, J8 to J18.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tracepaper.daemon.engine.history import InstrumentHistory
from tracepaper.daemon.engine.instrument_state import InstrumentState
from tracepaper.daemon.engine.state import INTEGRITY
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.sizing import NO_ACCOUNT, Sizer, Sizing, SizingAccount, SizingMode
from tracepaper.strategies.api.strategy import DeclaredState, Strategy, remembered
from tracepaper.strategies.api.timeframes import frame_bars
from tracepaper.strategies.errors import StrategyFailed
from tracepaper.strategies.types.decisions import (
    Action,
    Forecast,
)
from tracepaper.strategies.types.market import Bar, Instrument

UNCHANGED: Final = "no strategy changed its target"
NO_EQUITY: Final = "its sub-account has no equity left"
HOLD: Final = Signal(Action.HOLD, UNCHANGED)
_FOLDER: Final = re.compile(r"(?<!\S)(?:[A-Za-z]:)?(?:[/\\][^\s/\\]+)*[/\\](?=[^\s/\\]+:\d)")
_SENTENCE_MOST: Final = 300


class StrategyMember:
    """One of several strategies: whether it is asked, and what it knows of each instrument."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.set_aside = ""  # why, once it failed
        self.is_empty = False  # its sub-account has no equity
        self.closed = ""  # why it holds nothing; empty while it is asked
        self.states: dict[str, InstrumentState] = {}
        self.failed: list[StrategyMember] = []  # of all, those that did and are in no state yet

    def know(self, *, set_aside: str | None = None, is_empty: bool | None = None) -> None:
        """Learn that it was set aside, or whether its sub-account has no equity."""
        self.set_aside = self.set_aside if set_aside is None else set_aside
        self.is_empty = self.is_empty if is_empty is None else is_empty
        self.closed = self.set_aside or (NO_EQUITY if self.is_empty else "")

    def fail(self, why: str) -> None:
        """Set it aside, for good in this run; what it holds is closed by its next decision."""
        if not self.set_aside:
            same = _FOLDER.sub("", why)  # wherever it is derived again
            line = " ".join(same.split())[:_SENTENCE_MOST]
            # A lone surrogate, of a file's name say, could be stored nowhere.
            text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)
            self.know(set_aside=f"set aside: {text}")
            self.failed.append(self)


class Guarded(Strategy):
    """A strategy that is asked while its *member* is open; closed, it wants nothing."""

    def __init__(self, inner: Strategy, member: StrategyMember) -> None:
        self.inner, self._member = inner, member
        self.gates, self.warmup = inner.gates, inner.warmup
        self.sees_account, self.reads_history = inner.sees_account, inner.reads_history
        self.horizon, self.needs_forecast = inner.horizon, inner.needs_forecast
        self.frames, self.frames_warmup = inner.frames, inner.frames_warmup
        self.State = inner.State

    @property
    def state(self) -> Any:  # noqa: ANN401
        """The state that the strategy declares."""
        return self.inner.state

    @state.setter
    def state(self, given: object) -> None:
        self.inner.state = given

    @property
    def exits_freely(self) -> bool:  # type: ignore[override]
        """Whether judgement gates hold up no FLAT."""
        return bool(self._member.closed) or self.inner.exits_freely

    def observe(self, bar: Bar) -> None:
        """Show *bar* to the strategy, unless it is set aside."""
        if self._member.set_aside:
            return
        try:
            self.inner.observe(bar)
        except StrategyFailed as error:
            self._member.fail(str(error))

    def decide(self, context: BarContext) -> Signal:
        """Ask the strategy; FLAT where it is closed, or fails."""
        if not self._member.closed:
            try:
                answer = self.inner.decide(context)
            except StrategyFailed as error:
                self._member.fail(str(error))
            else:
                if isinstance(answer, Signal) and answer.position_side is None:
                    return answer
                what = "a position side" if isinstance(answer, Signal) else "a list of orders"
                self._member.fail(
                    f"it answered {what}, which several strategies on one account do not "
                    "take; let it return a Signal"
                )
        return Signal(Action.FLAT, self._member.closed)


class Netted(Strategy):
    """What several strategies want together of one instrument: the account's own strategy."""

    reads_history = False

    def __init__(self, inner: Mapping[StrategyMember, Strategy]) -> None:
        """Take the strategies, each guarded by whom it belongs to."""
        self.members = list(inner)
        self.inner = {one.name: Guarded(strategy, one) for one, strategy in inner.items()}
        every = self.inner.values()
        self.warmup = min(one.warmup for one in every)  # the first that is warm trades
        self.gates = INTEGRITY.intersection(*(one.gates for one in every))
        self.needs_forecast = any(one.needs_forecast for one in every)
        self.sees_account = False
        wanted = [frame_bars(one) for one in every]
        self.frames = tuple(dict.fromkeys(name for of in wanted for name in of))
        self.frames_warmup = {
            name: max(of[name] for of in wanted if name in of) for name in self.frames
        }
        self.answer = HOLD

    @property
    def remembers(self) -> int:
        """How many of the last bars decide, of the strategy that looks back furthest."""
        return max(remembered(one) for one in self.inner.values())

    def decide(self, context: BarContext) -> Signal:  # noqa: ARG002 - each strategy saw its own
        """Return the netted decisions."""
        return self.answer


class NetSizer(Sizer):
    """Sizes the net target, and shows each strategy what the account's own state is shown."""

    def __init__(self, instrument: Instrument, remembers: int) -> None:
        super().__init__(Sizing(SizingMode.NOTIONAL, notional=1), instrument)
        self.net = 0
        self.states: list[InstrumentState] = []  # of each strategy
        self.whole: InstrumentHistory | None = None  # which they share
        self.follows_signal = True  # of HOLD, the one signal that comes again
        self._remembers = remembers

    @property
    def bars(self) -> int:
        """As many bars as any of the strategies looks back on."""
        return self._remembers

    def observe(self, bar: Bar) -> None:
        """Show *bar* to every strategy, after all that they share was shown it."""
        assert self.whole is not None
        for state in self.states:
            state.observe_part(bar, self.whole)

    def change(self, instrument: Instrument) -> None:
        """Use new filters for the net target, and for that of every strategy."""
        super().change(instrument)
        for state in self.states:
            state.change(instrument)

    def target(
        self,
        signal: Signal,  # noqa: ARG002 - it follows from the net
        bar: Bar,  # noqa: ARG002
        forecast: Forecast | None,  # noqa: ARG002
        *,
        standing: int = 0,  # noqa: ARG002
        account: SizingAccount = NO_ACCOUNT,  # noqa: ARG002
        is_full: bool = False,  # noqa: ARG002
    ) -> int:
        """Return the sum of the strategies' targets."""
        return self.net


class DeclaredStates:
    """The declared states of several strategies on one instrument, as one."""

    def __init__(self, of: Mapping[StrategyMember, DeclaredState]) -> None:
        self._of = dict(of)

    @property
    def encoded(self) -> bytes:
        """The state of each, by the strategies' names."""
        return msgspec.msgpack.encode({one.name: it.encoded for one, it in self._of.items()})

    def changed(self) -> bool:
        """Return whether any of them has changed; what cannot be stored sets its strategy aside."""
        found = False
        for member, declared in self._of.items():
            try:
                found |= not member.set_aside and declared.changed()
            except StrategyFailed as error:
                member.fail(str(error))
                found = True
        return found

    def hand_back(self, encoded: bytes) -> None:
        """Give each strategy the state that a step stored."""
        stored = msgspec.msgpack.decode(encoded, type=dict[str, bytes])
        for member, declared in self._of.items():
            if member.name in stored:
                declared.hand_back(stored[member.name])
