"""``Strategy``, ``PortfolioStrategy``, ``Forecaster``, and a strategy's declared state.

``Forecaster`` is defined here without torch, so that the engine never imports it.

The rules are docs/protection.md, E1 to E4, and docs/several.md, P1 to P8.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec
from msgspec import Struct, inspect

from tracepaper.strategies.api.columns import BLOCK_BARS, Compute
from tracepaper.strategies.api.context import BarContext, Orders, Signal
from tracepaper.strategies.api.files import DeclaredFiles, declare_files
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed, unfit
from tracepaper.strategies.gates.declared import plausible
from tracepaper.strategies.gates.evaluator import YARDSTICK_MEMORY
from tracepaper.strategies.gates.gate import GATES, MEASURES, GateKind, gate_order
from tracepaper.strategies.types.calibration import ENTROPY, Calibration
from tracepaper.strategies.types.decisions import Action, Forecast
from tracepaper.strategies.types.market import Bar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tracepaper.strategies.api.arrays import BarArrays
    from tracepaper.strategies.covariates import CovariateSource

    Integers = npt.NDArray[np.int64]

T = TypeVar("T")
_encode: Final = msgspec.msgpack.Encoder().encode
_ADVICE: Final = "declare a msgspec Struct of numbers, texts, lists and dictionaries with defaults"
_NO_ORDER: Final = (inspect.SetType, inspect.FrozenSetType)


class StatefulStrategy(Protocol):
    """An object that may declare a state: a strategy or a portfolio strategy."""

    State: type[Struct] | None
    state: Struct


class DeclaredState:
    """Detects changes of one strategy object's declared state, and encodes it."""

    def __init__(self, strategy: StatefulStrategy, declared: type[Struct]) -> None:
        self._strategy = strategy
        self._type = declared
        self._decoder = msgspec.msgpack.Decoder(declared)
        self.encoded = b""
        self.encoded = self._encoding()

    @classmethod
    def of(cls, strategy: StatefulStrategy) -> DeclaredState | None:
        """Watch the state of *strategy*; return None if it declares none."""
        return None if strategy.State is None else cls(strategy, strategy.State)

    def changed(self) -> bool:
        """Return whether the state has changed since the last call or restore.

        Raises ``StrategyFailed`` if the state could not be restored from its encoding.
        """
        encoded = self._encoding()
        if encoded == self.encoded:
            return False
        self.encoded = encoded
        return True

    def restore(self, encoded: bytes) -> None:
        """Restore the state from a step; raise ``ConfigInvalid`` if it does not fit the class."""
        try:
            self._strategy.state = self._decoder.decode(encoded)
        except msgspec.MsgspecError as error:
            raise ConfigInvalid(
                f"The stored state does not fit {self._type.__qualname__} ({error}); open a new "
                "run, in another database."
            ) from error
        self.encoded = encoded

    def _encoding(self) -> bytes:
        state = self._strategy.state
        if type(state) is not self._type:
            raise StrategyFailed(
                f"self.state is a {type(state).__name__}; keep it a {self._type.__qualname__}."
            )
        try:
            encoded = _encode(state)
            if encoded == self.encoded:
                return encoded
            restored = self._decoder.decode(encoded)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            raise self._unstorable(str(error)) from error
        if restored != state and repr(restored) != repr(state):  # NaN != NaN
            raise self._unstorable(f"a restart would read {restored!r:.80} from {state!r:.80}")
        return encoded

    def _unstorable(self, cause: str) -> StrategyFailed:
        return StrategyFailed(
            f"{self._type.__qualname__} cannot be stored ({cause}); give its fields values of "
            "their declared types."
        )


def check_declared(name: str, declared: object) -> None:
    """Raise ``ConfigInvalid`` for a ``State`` that cannot be stored and restored."""
    if declared is None:
        return
    if not (isinstance(declared, type) and issubclass(declared, Struct)):
        raise ConfigInvalid(f"{name}.State is {declared!r:.80}; {_ADVICE}.")
    try:
        declared()
    except TypeError as error:
        raise ConfigInvalid(f"{name}.State cannot be made ({error}); {_ADVICE}.") from error
    try:
        kinds = list(_kinds(inspect.type_info(declared), set()))
        msgspec.msgpack.Decoder(declared)
    except TypeError as error:
        raise ConfigInvalid(f"{name}.State cannot be stored ({error}); {_ADVICE}.") from error
    if any(isinstance(kind, inspect.CustomType) for kind in kinds):
        raise ConfigInvalid(f"{name}.State holds what msgpack cannot encode; {_ADVICE}.")
    if any(isinstance(kind, _NO_ORDER) for kind in kinds):
        raise ConfigInvalid(f"{name}.State holds a set, which has no order; {_ADVICE}.")


def _kinds(kind: inspect.Type, visited: set[type]) -> Iterator[inspect.Type]:
    """Yield *kind* and every type nested in it."""
    yield kind
    if isinstance(kind, inspect.StructType):
        if kind.cls in visited:
            return
        visited.add(kind.cls)
        for field in kind.fields:
            yield from _kinds(field.type, visited)
    for name in ("item_type", "key_type", "value_type", "type"):
        inner = getattr(kind, name, None)
        if isinstance(inner, inspect.Type):
            yield from _kinds(inner, visited)
    for name in ("types", "item_types"):
        for inner in getattr(kind, name, ()):
            yield from _kinds(inner, visited)


SCANNED_AT_ONCE: Final = 8_192
"""Bars per scan, if a pass is cheap: a few megabytes of forecasts."""


class Forecaster(Protocol):
    """A model for one or more instruments that gets closed bars in order.

    Its forecast depends only on the last ``context`` bars of the instrument, so a forecaster warmed
    with exactly that many bars equals one that has run for a year.
    """

    model_id: str
    model_sha256: str
    context: int  # bars of one instrument that a forecast depends on, including features
    horizons: tuple[int, ...]
    calibration: Calibration | None
    mode: str  # "step": bar by bar; "batched": all of a close; "scan": many known bars together
    device: str
    dtype: str
    threads: int
    backend: str  # of the attention, chosen when it is built; a stream uses "tiles" or loops
    causal: bool  # forecasts of ``scan`` do not depend on later bars, so ``scan`` may be used
    scanned_at_once: int  # maximum number of bars per ``scan``
    measures: frozenset[str]  # of ``gates.gate.MEASURES``; gates that need others are not declared
    is_outside: bool  # True if a service answers: replays take its answers from the record
    bucket_bars: int  # bars of one bucket of an explanation: 1 if it sees at most 64, else 64

    @property
    def vectors(self) -> CovariateSource | None:
        """Its other inputs besides bars; None without any."""
        ...

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        """Forget *instrument*, then add *bars* (oldest first) in fixed-size chunks."""
        ...

    def step(self, bar: Bar) -> Forecast | None:
        """Add one bar; return its forecast, or None if fewer than ``context`` bars are known."""
        ...

    def predict_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Add one bar of each of several instruments; return their forecasts in that order.

        The same group in the same order gives bit-identical forecasts. Another group, or ``step``
        on each bar, agrees within 1e-4 of scale, since matrix products of another size round
        differently. Raises ``InvariantBroken`` for two bars of one instrument, and adds none.
        """
        ...

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Add many bars of one instrument at once; equals ``step`` on each within 1e-4.

        Raises ``InvariantBroken`` unless ``causal``.
        """
        ...


MODEL_GATES: Final = frozenset(gate_order(GateKind.INTEGRITY, GateKind.JUDGEMENT))
"""The gates of a strategy that trades forecasts; configured limits add risk gates."""
CORE_GATES: Final = frozenset(name for name in MODEL_GATES if not GATES[name].of_prediction)
"""The gates of a strategy without a model."""


class FreshState:
    """A descriptor that creates the declared ``State`` of an object on first read."""

    def __get__(self, strategy: StatefulStrategy | None, owner: type[StatefulStrategy]) -> object:
        """Create, set and return the state of *strategy*, an instance of *owner*."""
        if strategy is None:
            return self
        if owner.State is None:
            raise AttributeError(f"{owner.__name__} declares no State")
        strategy.state = owner.State()
        return strategy.state


SIGNALS: Final = "signals"
"""The column of a class with ``signals``."""
ANSWERS: Final[Mapping[int, Signal]] = MappingProxyType(
    {
        -1: Signal(Action.SHORT, "signal -1"),
        0: Signal(Action.FLAT, "signal 0"),
        1: Signal(Action.LONG, "signal 1"),
    }
)
"""What the numbers of ``signals`` mean where a class has no ``answers``."""


class Strategy(ABC):
    """A strategy of one instrument; the engine makes one object for each instrument.

    Its memory must depend only on the last ``warmup`` bars: a restart rebuilds it by feeding
    exactly these to :meth:`observe`. Anything else to remember belongs in ``self.state``, an
    instance of the class's ``State``, which the engine stores when it changes.

    Instead of ``decide`` a class may have ``signals(history)``: an array of whole numbers, one for
    each bar, computed as ``columns`` are. They are keys of ``answers``, by default of ``ANSWERS``.
    """

    State: type[Struct] | None = None

    gates: frozenset[str] = CORE_GATES
    warmup: int = 1  # bars known at every ``decide``: the length of ``context.history``
    sees_account: bool = False  # ``context.account`` is given: decisions then depend on fills
    reads_history: bool = True  # False spares the engine keeping bars for ``context.history``
    frames: tuple[str, ...] = ()  # higher timeframes for ``context.timeframe``: ("60", "D")
    frames_warmup: Mapping[str, int] = MappingProxyType({})  # their bars, where not ``warmup``
    books: int = 0  # of ``context.depth``, the newest: [market] depth says of how many levels
    horizon: int | None = None  # bars that a signal speaks for; None where it speaks until changed
    needs_forecast: bool = False
    exits_freely: bool = False  # judgement gates never hold up a FLAT: it is not the model's
    shadows: tuple[str, ...] = ()  # shadow accounts: "ungated" skips the judgement gates
    answers_by_column = False  # every answer follows from the column ``SIGNALS``
    files: Any = DeclaredFiles()  # names of what it reads; each object has the paths by name
    state: Any = FreshState()  # an instance of State
    columns: Compute | None = None
    """Method of a history that returns arrays by name, a row a bar, for ``context.columns``.

    Row i may depend on rows up to i alone, and on ``warmup`` rows before its block.
    """

    def __init_subclass__(cls, **given: Any) -> None:  # noqa: ANN401 - whatever a base takes
        super().__init_subclass__(**given)
        declare_files(cls)
        is_vectorised = callable(getattr(cls, "signals", None))
        if is_vectorised and cls.decide is Strategy.decide and cls.columns is None:
            cls.columns, cls.decide = coded, by_signals  # type: ignore[method-assign,assignment]

    def observe(self, bar: Bar) -> None:  # noqa: B027 - a strategy without memory needs none
        """Process a closed bar in integers; called once for every bar, including the warm-up."""

    @abstractmethod
    def decide(self, context: BarContext, /) -> Signal | Orders:
        """Return a signal or a list of orders; called after ``observe`` of the same bar."""


def coded(strategy: Any, history: BarArrays) -> Mapping[str, Any]:  # noqa: ANN401 - see above
    """Return the signals of *strategy* as a column: the ``columns`` of a class that has them."""
    return {SIGNALS: strategy.signals(history)}


def by_signals(strategy: Strategy, context: BarContext) -> Signal:
    """Answer by the newest of ``signals``: the ``decide`` of a class that has them."""
    answers: Mapping[int, Signal] = getattr(strategy, "answers", ANSWERS)
    return answers[int(context.columns.last(SIGNALS))]


def observes(strategy: Strategy) -> bool:
    """Return whether *strategy*, or the user's class that it guards, processes bars itself."""
    decider: Strategy = getattr(strategy, "guarded", strategy)
    return type(decider).observe is not Strategy.observe


class SmaCross(Strategy):
    """Long if the fast moving average of closes is above the slow one; else flat or short.

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
        """Add the close to both sums."""
        closes = self._closes
        close = bar.close
        if len(closes) >= self._fast:
            self._fast_sum -= closes[-self._fast]
        if len(closes) == self._slow:
            self._slow_sum -= closes[0]
        closes.append(close)
        self._fast_sum += close
        self._slow_sum += close

    def decide(self, context: BarContext) -> Signal:  # noqa: ARG002 - the sums include the bar
        """Compare fast_sum / fast with slow_sum / slow without dividing."""
        if len(self._closes) < self._slow:
            return self._early
        above = self._fast_sum * self._slow > self._slow_sum * self._fast
        return self._long if above else self._other


class Persistence(Strategy):
    """Bet that the last bar's direction persists: the baseline that a forecast must beat."""

    warmup = 2
    reads_history = False

    def __init__(self) -> None:
        self._last: int | None = None
        self._change = 0

    def observe(self, bar: Bar) -> None:
        """Store the last close-to-close change."""
        self._change = 0 if self._last is None else bar.close - self._last
        self._last = bar.close

    def decide(self, context: BarContext) -> Signal:  # noqa: ARG002 - the change includes the bar
        """Follow the sign of the last change."""
        if self._change > 0:
            return Signal(Action.LONG, "the last bar rose")
        if self._change < 0:
            return Signal(Action.SHORT, "the last bar fell")
        return Signal(Action.HOLD, "the last bar did not move")


_NO_SIGN: Final = Signal(Action.HOLD, "mean return and direction disagree")


class AttentionStrategy(Strategy):
    """Trade the model's forecast at the gates' horizon, if the gates allow it."""

    gates = MODEL_GATES
    needs_forecast = True
    reads_history = False
    shadows = ("ungated",)

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

    def decide(self, context: BarContext) -> Signal:
        """Trade the sign on which the mean return and the class probabilities agree.

        For a model that gives only one of them, trade its sign.
        """
        if (forecast := context.forecast) is None:
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
        return _NO_SIGN


def declared_gates(
    strategy: Strategy,
    *,
    by_quotes: bool,
    risk: Mapping[str, float],
    measures: frozenset[str] = MEASURES,
    confidence_by: str = ENTROPY,
) -> set[str]:
    """Return the declared gates: the strategy's own and those of the limits in *risk*.

    Gates that need a measure that is not in *measures* are left out. A strategy that names any
    confidence gate gets the one that *confidence_by* chooses.
    """
    gates = set(strategy.gates) | set(risk)
    if any(GATES[name].chosen_by for name in gates):
        gates = {name for name in gates if not GATES[name].chosen_by}
        gates |= {name for name, gate in GATES.items() if gate.chosen_by == confidence_by}
    return {
        name
        for name in gates
        if (by_quotes or not GATES[name].of_quotes) and GATES[name].needs <= measures
    }


def decision_bars(strategy: Strategy) -> int:
    """Return the number of recent bars that a decision depends on, including its gates."""
    bars = strategy.warmup + (BLOCK_BARS if strategy.columns is not None else 0)
    return max(bars, YARDSTICK_MEMORY) if plausible.name in strategy.gates else bars


NOT_NAMED: Final = Signal(Action.HOLD, "not named by the portfolio")
"""The signal of a symbol that the portfolio leaves out."""

SHARE_OF: Final = "from_"
"""Prefix of the notes with each symbol's share of a decision's attention."""
MOVES_WITH: Final = "moves_with_"
"""Prefix of the notes with each symbol's correlation with the decided one."""


class PortfolioStrategy(ABC):
    """A strategy for all instruments of a run; derive your class from it.

    Its memory must depend only on the last ``warmup`` bars of each instrument, in whatever order
    the bars of one time come: a restart feeds it exactly these. Anything else to remember belongs
    in ``self.state``, an instance of the class's ``State``.
    """

    State: type[Struct] | None = None

    gates: frozenset[str] = CORE_GATES
    warmup: int = 1  # bars of each instrument that are known wherever it is asked about it
    sees_account: bool = False  # ``account`` is given: decisions then depend on fills
    reads_history: bool = True  # False spares the engine keeping bars for ``history``
    frames: tuple[str, ...] = ()  # higher timeframes of each instrument, for ``frame``
    frames_warmup: Mapping[str, int] = MappingProxyType({})  # their bars, where not ``warmup``
    books: int = 0  # of each ``context.depth``, the newest
    horizon: int | None = None  # bars that a signal speaks for; None where it speaks until changed
    needs_forecast: bool = False
    exits_freely: bool = False  # judgement gates never hold up a FLAT: it is not the model's
    shadows: tuple[str, ...] = ()  # shadow accounts: "ungated" skips the judgement gates
    files: Any = DeclaredFiles()  # names of what it reads; each object has the paths by name
    symbols: tuple[str, ...] = ()  # the run's, in their order; set before the first bar
    state: Any = FreshState()  # an instance of State

    def __init_subclass__(cls, **given: Any) -> None:  # noqa: ANN401 - whatever a base takes
        super().__init_subclass__(**given)
        declare_files(cls)

    def observe(self, bar: Bar) -> None:  # noqa: B027 - a strategy without memory needs none
        """Process a closed bar of any instrument; called once for every bar, also the warm-up."""

    @abstractmethod
    def decide(self, contexts: Mapping[str, BarContext], /) -> Mapping[str, Signal | Orders]:
        """Return a signal or a list of orders by symbol; a symbol that is left out holds.

        Called once per close, after ``observe`` of all its bars and before its first decision.
        *contexts* holds the symbols whose bars came together and that are warm, in the order of the
        run; a late bar comes alone. A signal for any other symbol is ignored.
        """


class PortfolioMember(Strategy):
    """One instrument of a portfolio strategy, gated, sized and recorded separately."""

    def __init__(self, portfolio: PortfolioStrategy) -> None:
        self.portfolio = portfolio
        self.gates = portfolio.gates
        self.warmup = portfolio.warmup
        self.sees_account = portfolio.sees_account
        self.reads_history = portfolio.reads_history
        self.frames = portfolio.frames
        self.frames_warmup = portfolio.frames_warmup
        self.books = portfolio.books
        self.horizon = portfolio.horizon
        self.needs_forecast = portfolio.needs_forecast
        self.exits_freely = portfolio.exits_freely
        self.shadows = portfolio.shadows
        self.answer: Signal | Orders = NOT_NAMED

    def observe(self, bar: Bar) -> None:
        """Pass *bar* to the portfolio."""
        self.portfolio.observe(bar)

    def decide(self, context: BarContext) -> Signal | Orders:  # noqa: ARG002 - the portfolio saw it
        """Return the portfolio's last answer for this instrument."""
        return self.answer


def portfolio_of(strategies: Iterable[Strategy]) -> PortfolioStrategy | None:
    """Return the portfolio strategy of *strategies*; None if they are not its members."""
    for strategy in strategies:
        if isinstance(strategy, PortfolioMember):
            return strategy.portfolio
    return None


def read_options(made_of: type[T], options: Mapping[str, object]) -> T:
    """Return ``strategy.options`` as *made_of*; raise ``ConfigInvalid`` unless they fit it."""
    try:
        return msgspec.convert(options, made_of)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(f"strategy.options: {unfit(error, made_of)}.") from None
