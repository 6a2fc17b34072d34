"""``Forecaster`` and ``Strategy``: what answers a bar with a forecast, and what trades it.

A user replaces ``Strategy``. ``Forecaster`` is defined here, without torch, so that the engine's
side never imports it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol

from msgspec import Struct

from tracepaper.strategies.declared_state import Declaring
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.fitted import ENTROPY
from tracepaper.strategies.gate_evaluator import YARDSTICK_BARS
from tracepaper.strategies.gates import GATES, MEASURES, GateKind, gate_order, plausible
from tracepaper.strategies.outlook import Outlook
from tracepaper.strategies.signals import Orders, Signal
from tracepaper.strategies.types import Action, Bar, Calibration, Forecast

SCANNED_AT_ONCE: Final = 8_192
"""Known bars of one scan, where a pass costs little: a few megabytes of forecasts."""


class Forecaster(Protocol):
    """A model of one or more instruments, fed closed bars in order.

    Its answer to a bar depends on the last ``context`` bars of that instrument alone, so a
    forecaster warmed with exactly that many bars equals one that has run for a year.
    """

    model_id: str
    model_sha256: str
    context: int  # bars of one instrument that its answer depends on, features included
    horizons: tuple[int, ...]
    calibration: Calibration | None
    mode: str  # "step": bar by bar; "batched": those of a close; "scan": known bars together
    device: str
    dtype: str
    threads: int
    backend: str  # what attends, chosen once when it was built: a stream by "tiles" or loops
    causal: bool  # no later bar moves an answer that ``scan`` gives: it may serve
    scanned_at_once: int  # known bars that one ``scan`` is handed at most
    measures: frozenset[str]  # of ``gates.MEASURES``: what it gives; other gates are not declared
    is_outside: bool  # True where a service answers, which cannot be asked again: see the record

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        """Forget *instrument*, then take in *bars* (oldest first) in fixed-size chunks."""
        ...

    def step(self, bar: Bar) -> Forecast | None:
        """Take in one bar; return its forecast, or None while fewer than ``context`` are known."""
        ...

    def predict_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in one bar of each of several instruments; return their forecasts in that order.

        What it returns follows from the group's members and their order, and from nothing else:
        a group is repeated bit for bit by the same group. Another group, or ``step`` on each,
        agrees within 1e-4 of scale, since matrix products of another size round in another
        order. Raises ``InvariantBroken`` for two bars of one instrument, and then takes in none.
        """
        ...

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in many known bars of one instrument at once; equal to ``step`` on each within 1e-4.

        Only where ``causal``; raises ``InvariantBroken`` elsewhere.
        """
        ...


MODEL_GATES: Final = frozenset(gate_order(GateKind.INTEGRITY, GateKind.JUDGEMENT))
"""The gates of a strategy that trades forecasts; risk gates are declared by their limits."""
CORE_GATES: Final = frozenset(name for name in MODEL_GATES if not GATES[name].of_prediction)
"""The gates of a strategy without a model."""


class FreshState:
    """Gives an object the ``State`` that its class declares, as that begins, when it is read."""

    def __get__(self, made: Declaring | None, of: type[Declaring]) -> object:
        """Return the state of *made*, whose class is *of*: a new one, which it then has."""
        if made is None:
            return self
        if of.State is None:
            raise AttributeError(f"{of.__name__} declares no State")
        made.state = of.State()
        return made.state


class Strategy(ABC):
    """One instrument's strategy; the engine makes one object an instrument.

    What it keeps must depend on the last ``warmup`` bars alone: after a restart it is rebuilt by
    feeding it exactly those through :meth:`observe`. Whatever else it has to remember belongs into
    ``self.state``, an instance of the class's ``State``, which the engine stores where it changed.
    """

    State: type[Struct] | None = None

    gates: frozenset[str] = CORE_GATES
    warmup: int = 1  # bars that are known wherever ``decide`` is asked; those of ``now.history``
    sees_account: bool = False  # ``now.account`` is given: decisions then depend on fills
    reads_history: bool = True  # False spares the engine keeping bars for ``now.history``
    frames: tuple[str, ...] = ()  # higher time frames for ``now.frame``: ("60", "D")
    frames_warmup: Mapping[str, int] = MappingProxyType({})  # their bars, where not ``warmup``
    books: int = 0  # of ``now.depth``, the newest: [market] depth says of how many levels
    horizon: int | None = None  # bars that a signal speaks for; None where it speaks until changed
    needs_forecast: bool = False
    exits_freely: bool = False  # judgement gates never hold up a FLAT: it is not the model's
    twins: tuple[str, ...] = ()  # shadow accounts: "ungated" skips the judgement gates
    state: Any = FreshState()  # an instance of State

    def observe(self, bar: Bar) -> None:  # noqa: B027 - a strategy without memory needs none
        """Take in a closed bar in integers; called once for every bar, warm-up included."""

    @abstractmethod
    def decide(self, now: Outlook) -> Signal | Orders:
        """Return what to hold, or what to order; called after ``observe`` of the same bar."""


class SmaCross(Strategy):
    """Fast moving average of closes above the slow one: long; else flat or short.

    The two averages are compared as exact integer sums, strictly.
    """

    reads_history = False

    def __init__(self, *, fast: int, slow: int, long_only: bool) -> None:
        if not 1 <= fast < slow:
            raise ConfigInvalid(
                f"strategy.fast ({fast}) must be at least 1 and under strategy.slow ({slow})."
            )
        self.warmup = slow
        self._fast, self._slow = fast, slow
        self._closes: deque[int] = deque(maxlen=slow)
        self._fast_sum = self._slow_sum = 0
        self._long = Signal(Action.LONG, "fast average above slow")
        below = Action.FLAT if long_only else Action.SHORT
        self._other = Signal(below, "fast average not above slow")
        self._early = Signal(Action.HOLD, "fewer closes than the slow average needs")

    def observe(self, bar: Bar) -> None:
        """Move both sums on by one close."""
        closes = self._closes
        close = bar.close
        if len(closes) >= self._fast:
            self._fast_sum -= closes[-self._fast]
        if len(closes) == self._slow:
            self._slow_sum -= closes[0]
        closes.append(close)
        self._fast_sum += close
        self._slow_sum += close

    def decide(self, now: Outlook) -> Signal:  # noqa: ARG002 - the sums hold the bar already
        """Compare fast_sum / fast with slow_sum / slow without dividing."""
        if len(self._closes) < self._slow:
            return self._early
        above = self._fast_sum * self._slow > self._slow_sum * self._fast
        return self._long if above else self._other


class Persistence(Strategy):
    """The last bar's direction goes on: the baseline that any forecast must beat."""

    warmup = 2
    reads_history = False

    def __init__(self) -> None:
        self._last: int | None = None
        self._change = 0

    def observe(self, bar: Bar) -> None:
        """Remember the last close-to-close change."""
        self._change = 0 if self._last is None else bar.close - self._last
        self._last = bar.close

    def decide(self, now: Outlook) -> Signal:  # noqa: ARG002 - the change holds the bar already
        """Follow the sign of the last change."""
        if self._change > 0:
            return Signal(Action.LONG, "the last bar rose")
        if self._change < 0:
            return Signal(Action.SHORT, "the last bar fell")
        return Signal(Action.HOLD, "the last bar did not move")


class AttentionStrategy(Strategy):
    """Trade the model's forecast at the gate's horizon; the gates decide whether to believe it."""

    gates = MODEL_GATES
    needs_forecast = True
    reads_history = False
    twins = ("ungated",)

    def __init__(
        self,
        *,
        context: int,
        horizon: int,
        horizon_index: int,
        measures: Collection[str] = MEASURES,
    ) -> None:
        if not {"mean_return", "probabilities"} & set(measures):
            raise ConfigInvalid(
                "strategy.name 'attention' needs mean_return or probabilities of the model; let "
                "its class give and declare one of them."
            )
        self.warmup = context
        self.horizon = horizon
        self._index = horizon_index
        self._has_mean = "mean_return" in measures
        self._has_lean = "probabilities" in measures

    def decide(self, now: Outlook) -> Signal:
        """Go with the sign on which the mean return and the class probabilities agree.

        Of a model that gives only one of them, with the sign of that.
        """
        if (forecast := now.forecast) is None:
            return Signal(Action.HOLD, "no forecast")
        index = self._index
        lean = forecast.p_up[index] - forecast.p_down[index] if self._has_lean else None
        mean = forecast.mean_return[index] if self._has_mean else lean
        assert mean is not None  # one of the two is given
        lean = mean if lean is None else lean
        if mean > 0 and lean > 0:
            return Signal(Action.LONG, "forecast up")
        if mean < 0 and lean < 0:
            return Signal(Action.SHORT, "forecast down")
        return Signal(Action.HOLD, "mean return and direction disagree")


def declared_gates(
    strategy: Strategy,
    *,
    by_quotes: bool,
    risk: Mapping[str, float],
    measures: frozenset[str] = MEASURES,
    confidence_by: str = ENTROPY,
) -> set[str]:
    """Return the gates that have rows: the strategy's own and every configured risk limit.

    Gates of *measures* that the model does not give are not declared. Who names one of the
    confidences has the one that *confidence_by* chooses.
    """
    gates = set(strategy.gates) | set(risk)
    if any(GATES[name].chosen_by for name in gates):
        gates = {name for name in gates if not GATES[name].chosen_by}
        gates |= {name for name, one in GATES.items() if one.chosen_by == confidence_by}
    return {
        name
        for name in gates
        if (by_quotes or not GATES[name].of_quotes) and GATES[name].needs <= measures
    }


def remembered(strategy: Strategy) -> int:
    """Return how many of the last bars decide: the strategy's own, or the yardstick of a gate."""
    if plausible.name in strategy.gates:
        return max(strategy.warmup, YARDSTICK_BARS)
    return strategy.warmup
