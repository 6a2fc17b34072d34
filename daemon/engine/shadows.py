"""The intents of shadow accounts at a decision of the run.

The rules are docs/decisions.md, G18.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from tracepaper.daemon.broker.account import Intent, PaperAccount
from tracepaper.daemon.engine.decider import Decider
from tracepaper.daemon.engine.settings import INTEGRITY, JUDGEMENT, LIMITS
from tracepaper.daemon.engine.state import (
    BASED_ON_RUN,
    FIXED_BAND,
    FULL_SIZE,
    HELD,
    LIMITED,
    RANDOM_GATE,
    SIZED_BY_FORECAST,
    UNCORRELATED,
    WITHOUT,
    ShadowBasis,
)
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.gates.declared import warm
from tracepaper.strategies.types.decisions import (
    Action,
    Decision,
    Fill,
    Forecast,
    Position,
    Prediction,
    ShadowStep,
    Step,
)
from tracepaper.strategies.types.market import Bar


class Shadows:
    """Computes the intents of shadow accounts, and counts the run's bars on which they depend."""

    def __init__(self, shadows: Mapping[str, Sequence[str]], passing: Mapping[str, float]) -> None:
        """Take the names of *shadows*, and the card's share of *passing* bars, by instrument."""
        self.names = {name for names in shadows.values() for name in names}
        self.passing = passing
        self.counts = not BASED_ON_RUN.isdisjoint(self.names)
        """Whether a shadow account depends on the run's bars: see :meth:`count`."""
        self.bases = {key: ShadowBasis() for key in shadows} if self.counts else {}
        self._random = [key for key, names in shadows.items() if RANDOM_GATE in names]

    @property
    def random_shares(self) -> list[float]:
        """The card's shares of passing bars by which ``random_gate`` draws."""
        return [self.passing[key] for key in self._random if key in self.passing]

    def intent(
        self,
        name: str,
        decider: Decider,
        bar: Bar,
        prediction: Prediction,
        decision: Decision,
        account: PaperAccount,
    ) -> Intent | Orders | None:
        """Return the intent of *account*, the shadow account *name*, at a *decision*.

        The run does not stand still at *decision*. Judgement gates and limits apply only to the
        accounts that differ from the run in one thing.
        """
        refused_by = decision.refused_by
        if name == HELD and refused_by in INTEGRITY:
            return None
        key, signal = bar.instrument, decider.signal
        forecast = prediction if isinstance(prediction, Forecast) else None
        passes = name != RANDOM_GATE or self.bases[key].passes(
            key, bar.open_time_ms, self.passing.get(key)
        )
        if name == HELD:
            return decider.hold(bar, account, self.bases[key].usual_exposure)
        if name in LIMITED:
            refused = decider.evaluator.first_failed(
                decision.passed, reduces=decider.inputs.reduces, without=WITHOUT.get(name)
            )
            return _limited_intent(
                decider, bar, forecast, account, refused, is_full=name == FULL_SIZE
            )
        if isinstance(signal, Orders):
            if refused_by in INTEGRITY:
                return decider.reducing_part(signal, bar, account, refused_by)
            return signal if passes else None
        assert signal is not None  # the bar was decided
        refused = None if passes else RANDOM_GATE
        return decider.follow(shadow_signal(name, signal), bar, forecast, account, refused)

    def count(self, step: Step, decider: Decider) -> bool:
        """Add the bar of *step* to the totals; return whether it counts.

        Only bars after the warm-up count. A start calls this for the steps after the stored state.
        """
        bar, position, decision = step.event, step.position, step.decision
        if not isinstance(bar, Bar) or decision is None or position is None:
            return False
        refused = decision.outcome.refused_by
        if refused == warm.name:
            return False  # no position was possible yet
        before = self.bases[bar.instrument]
        size = decider.value_of(bar.close, position.quantity)
        value = size if position.quantity > 0 else -size
        judged = refused not in INTEGRITY
        equity = step.account.equity
        self.bases[bar.instrument] = ShadowBasis(
            before.bars + 1,
            before.judged + judged,
            before.passed + (judged and refused not in JUDGEMENT),
            before.exposure + (value / equity if equity > 0 else 0.0),
        )
        return True

    @staticmethod
    def steps(
        accounts: Mapping[str, PaperAccount],
        instrument: str,
        fills: Mapping[str, tuple[Fill, ...]],
        decided_ms: int = -1,
        positions: Mapping[str | None, Position] | None = None,
    ) -> tuple[ShadowStep, ...]:
        """Return the part of each of *accounts* in a step; *decided_ms* is the decided bar's time.

        *positions* are given if a later bar of the same close may already have changed them.
        """
        return tuple(
            [
                ShadowStep(
                    name,
                    positions[name] if positions else account.lines[instrument].position,
                    account.balance(),
                    fills.get(name, ()) if fills else (),
                    account.lines[instrument].confirmed_ms == decided_ms,
                )
                for name, account in accounts.items()
            ]
        )


def _limited_intent(
    decider: Decider,
    bar: Bar,
    forecast: Forecast | None,
    account: PaperAccount,
    refused: str | None,
    *,
    is_full: bool,
) -> Intent | Orders | None:
    """Return the intent or orders of a shadow account to which the gate *refused* applies.

    None if the gate refuses. Limits were measured on the run's target, so a limit does not refuse
    what leaves *account* less exposure.
    """
    signal = decider.signal
    assert signal is not None  # the bar was decided
    if (closing := decider.closing(refused)) is not None:
        return closing
    intent: Intent | Orders
    if isinstance(signal, Orders):
        intent = decider.reducing_part(signal, bar, account, refused)
    else:
        if refused in LIMITS:
            ungated = decider.follow(signal, bar, forecast, account, None, is_full=is_full)
            held = account.lines[bar.instrument].held
            if abs(ungated.target) <= abs(held) and ungated.target * held >= 0:
                refused = None
        intent = decider.follow(signal, bar, forecast, account, refused, is_full=is_full)
    is_held = refused is not None and isinstance(intent, Intent) and intent.action is Action.HOLD
    return None if is_held else intent


def shadow_signal(name: str, signal: Signal) -> Signal:
    """Return the signal of the shadow account *name* for the run's *signal*."""
    if name == FIXED_BAND and signal.band is not None:
        return replace(signal, band=None)
    if name == SIZED_BY_FORECAST and signal.by_forecast is not None and signal.strength > 0:
        # The band scales with the target to the power of two thirds (``NoTradeBand``).
        share = signal.by_forecast / signal.strength
        band = None if signal.band is None else signal.band * math.cbrt(share * share)
        return replace(signal, strength=signal.by_forecast, band=band)
    if name == UNCORRELATED and signal.uncorrelated is not None:
        action = Action.LONG if signal.uncorrelated else Action.FLAT
        return replace(signal, action=action, strength=signal.uncorrelated)
    return signal
