"""The shadow accounts of a run along the bars of a stretch, in which they trade.

The run's account keeps its positions and targets there, so that only its shadow accounts send
orders and fill them: by the same calls of the broker as in a step, and in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tracepaper.daemon.broker.account import ENTRIES, Intent
from tracepaper.daemon.broker.broker import Broker, Save
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.engine.decider import Decider
from tracepaper.daemon.engine.shadows import Shadows
from tracepaper.daemon.engine.state import FOLLOWING
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.types.decisions import Answer, Decision, Fill, Prediction, ShadowStep
from tracepaper.strategies.types.market import Bar

JudgedBar = tuple[Bar, Decision, Prediction]
"""A bar of a unit, its decision, and the usable forecast."""

# Looking up a member of an enum class is slow (Python 3.11).
_NO, _NOW = Save.NO, Save.NOW


class _Followers:
    """The lines of all shadow accounts in one instrument, and how they follow its decisions."""

    def __init__(self, key: str, decider: Decider, broker: Broker) -> None:
        self.decider, names = decider, decider.strategy.shadows
        self.lines = [account.lines[key] for account in broker.shadows.values()]
        self.accounts = [
            (name, account, account.lines[key])
            for name, account in broker.shadows.items()
            if name in names
        ]
        self.by_signal = decider.is_sized_by_signal and FOLLOWING.issuperset(names)
        self.followed: Signal | Orders | None = None
        """A signal by which all of them keep an entry until one of them trades."""


class ShadowCourse:
    """Takes the units of a stretch for the shadow accounts, and keeps what the record needs."""

    def __init__(
        self,
        broker: Broker,
        shadows: Shadows,
        deciders: Mapping[str, Decider],
        encoded_state: Callable[[], bytes | None],
    ) -> None:
        """Follow *deciders*; *encoded_state* gives the state that a step stores."""
        self._broker, self._shadows, self._encoded_state = broker, shadows, encoded_state
        self._followers = [_Followers(key, decider, broker) for key, decider in deciders.items()]
        self._keys = tuple(deciders)
        self.spans = {0: self._steps({})}
        """By the unit with which a span begins: the accounts after the fills of that unit."""
        self.states: dict[int, bytes] = {}  # by unit
        self.answers: list[Answer] = []
        self._shown = 0  # bars of the stretch that the broker has seen
        self._waits = broker.shadows_wait

    def take(
        self, before: Sequence[Bar], judged: Sequence[JudgedBar], sequence: int, closed_ms: int
    ) -> bool:
        """Take the next unit, after the bars *before*; its first bar has the step *sequence*.

        Orders are sent at *closed_ms* at the earliest. Returns whether the next unit may belong to
        the stretch too.
        """
        broker, is_met = self._broker, self._waits
        if is_met:
            self._show(before)
            for place, (bar, _, _) in enumerate(judged):
                broker.step.number = sequence + place
                broker.meet(bar)
        for place, (followers, (bar, decision, prediction)) in enumerate(
            zip(self._followers, judged, strict=True)
        ):
            if followers.decider.stands_still(decision.refused_by):
                pass
            elif followers.decider.signal == followers.followed:
                for line in followers.lines:
                    broker.confirm(line, bar)
            else:
                for name, intent in self._changes(followers, bar, decision, prediction):
                    if not is_met:  # marks at which the orders are judged
                        self._show(before)
                        for other, _, _ in judged:
                            broker.meet(other)
                        is_met = True
                    broker.step.number = sequence + place
                    at_ms = max(bar.market_ms, closed_ms)
                    broker.route(intent, bar, at_ms, shadow=name)
            opened_ms = bar.open_time_ms
            confirmed = tuple([line.confirmed_ms == opened_ms for line in followers.lines])
            self.answers.append(Answer(prediction, decision, confirmed))
        return not is_met or self._keep(len(before) // len(self._followers))

    def _changes(
        self, followers: _Followers, bar: Bar, decision: Decision, prediction: Prediction
    ) -> list[tuple[str, Intent | Orders]]:
        """Return the intents that may change a shadow account; confirm the entries of others."""
        changes, entered = [], 0
        for name, account, line in followers.accounts:
            intent = self._shadows.intent(
                name, followers.decider, bar, prediction, decision, account
            )
            if intent is None:
                continue
            if line.rests or line.target != line.held or not is_kept(intent, line):
                changes.append((name, intent))
            elif enters(intent):
                self._broker.confirm(line, bar)
                entered += 1
        is_memorable = followers.by_signal and entered == len(followers.lines)
        followers.followed = followers.decider.signal if is_memorable else None
        return changes

    def _keep(self, unit: int) -> bool:
        """Keep what changed in *unit*; return whether the broker is still quiet."""
        broker = self._broker
        fills = broker.take().shadow_fills
        if broker.save is not _NOW:
            return True
        if fills:
            self.spans[unit] = self._steps(fills)
        if (state := self._encoded_state()) is not None:
            self.states[unit] = state
        broker.save = _NO
        self._waits = broker.shadows_wait
        return broker.is_quiet()

    def _steps(self, fills: Mapping[str, Sequence[Fill]]) -> dict[str, tuple[ShadowStep, ...]]:
        """Return the shadow accounts by instrument, with those of *fills* that are in it."""
        accounts = self._broker.shadows.items()
        return {
            key: tuple(
                ShadowStep(
                    name,
                    account.lines[key].position,
                    account.balance(),
                    tuple([fill for fill in fills.get(name, ()) if fill.instrument == key]),
                )
                for name, account in accounts
            )
            for key in self._keys
        }

    def _show(self, before: Sequence[Bar]) -> None:
        """Value the shadow accounts by the bars *before* that the broker has not seen."""
        count = len(self._keys)
        for place in range(count):
            if bars := before[self._shown + place :: count]:
                self._broker.follow(bars, shadows_only=True)
        self._shown = len(before)

    def follow(self, bars: Sequence[Bar]) -> None:
        """Value all accounts by the *bars* of the stretch."""
        for place in range(len(self._keys)):
            self._broker.follow(bars[self._shown + place :: len(self._keys)])


def enters(intent: Intent | Orders | None) -> bool:
    """Return whether *intent* enters a position, or repeats the entry."""
    return isinstance(intent, Intent) and intent.action in ENTRIES


def is_kept(intent: Intent | Orders | None, line: Line) -> bool:
    """Return whether *intent* keeps the target of *line*, which is reached, and its exit orders."""
    if not isinstance(intent, Intent):
        return intent is None
    is_empty = intent.target == 0 and intent.action in ENTRIES  # its decision names the reason
    is_more = intent.refusal is not None or intent.is_protected or intent.ends_lists
    return intent.target == line.target and not (is_empty or is_more)
