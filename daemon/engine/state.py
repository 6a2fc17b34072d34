"""Settings and state of the engine, how a start takes that up, and the shadow accounts.

``ungated`` follows every signal. ``random_gate`` follows as many as the judgement gates let through
on the card's calibration slice, or in the run so far, drawn by chance. ``buy_and_hold`` holds as
much as the run did so far, in the mean. ``fixed_band`` trades by ``sizing.rebalance``'s usual value
in the place of a signal's band, and ``sized_by_forecast`` holds what the model's volatility says.
``uncorrelated`` weighs by the run's rule as if no two symbols moved together.
``full_size`` and ``no_GATE`` do what the run does but for one thing: the share of a full position
that ``sizing.mode`` gives, or that gate.

The rules are docs/decisions.md, G18.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.broker.account import SIDES, BrokerSettings, Intent, part_of
from tracepaper.daemon.broker.book import AccountState, Book, Holdings
from tracepaper.daemon.engine.price_checks import AGREE_WITHIN_MS, USUAL_RANGES, Price
from tracepaper.daemon.engine.risk import RiskState
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.api.sizing import Sizer
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.gates.declared import risk_universe, warm
from tracepaper.strategies.gates.evaluator import GateEvaluator, RegimeBounds
from tracepaper.strategies.gates.gate import GateKind, gate_order, gates_left_out
from tracepaper.strategies.sessions import Calendar
from tracepaper.strategies.types.calibration import FittedConfidence, RegimeCells
from tracepaper.strategies.types.decisions import (
    Action,
    Confirmation,
    Decision,
    Fill,
    Forecast,
    LastDecision,
    Position,
    PositionSide,
    Prediction,
    Regime,
    ShadowStep,
    Step,
    StrategyDecision,
)
from tracepaper.strategies.types.market import (
    Bar,
    CorporateAction,
    Depths,
    Event,
    FrameBar,
    Gap,
    InstrumentChange,
    Mark,
    ModelChange,
    Quote,
    Trade,
)

if TYPE_CHECKING:
    from tracepaper.daemon.engine.engine import Engine
    from tracepaper.daemon.engine.instrument_state import MemberState

INTEGRITY: Final = frozenset(gate_order(GateKind.INTEGRITY))
JUDGEMENT: Final = frozenset(gate_order(GateKind.JUDGEMENT))
LIMITS: Final = frozenset(gate_order(GateKind.RISK))

UNGATED: Final = "ungated"
RANDOM_GATE: Final = "random_gate"
BUY_AND_HOLD: Final = "buy_and_hold"
FIXED_BAND: Final = "fixed_band"
SIZED_BY_FORECAST: Final = "sized_by_forecast"
FULL_SIZE: Final = "full_size"
UNCORRELATED: Final = "uncorrelated"
WITHOUT: Final = gates_left_out()
"""The gate that each shadow account ``no_GATE`` leaves out."""
SHADOWS: Final = {
    UNGATED: "the same forecasts without the judgement gates",
    RANDOM_GATE: (
        "the same forecasts, let through by chance as often as the run's gates did so far, or as "
        "the card counted on its calibration slice, where a warning of the run says so"
    ),
    BUY_AND_HOLD: "held long at the run's mean exposure so far",
    FIXED_BAND: "the same signals, traded where a target has moved by more than a quarter",
    SIZED_BY_FORECAST: "the same trend, sized by the model's volatility",
    FULL_SIZE: "the same decisions, each with a full position",
    UNCORRELATED: "weights by the same rule, as if no two symbols moved together",
    **{name: f"the same decisions without the gate {gate}" for name, gate in WITHOUT.items()},
}
"""Every shadow by its name, and what it does."""


def account_title(name: str) -> str:
    """Return the kind of account that *name* is: a shadow account, a side, or a strategy's part."""
    if name in SIDES:
        return f"{name.lower()} side"
    return f"{name} shadow" if name in SHADOWS else f"strategy {name}"


RESERVE: Final = "in reserve"
"""The row of the money that no strategy has a share of; no strategy can have its name."""


def reserve_of(equity: Decimal, accounts: Mapping[str, Decimal]) -> Decimal:
    """Return the part of *equity* that no strategy has a share of; 0 without strategies.

    *accounts* has the equity of each account beside the run's own, by its name.
    """
    parts = [money for name, money in accounts.items() if name not in {*SHADOWS, *SIDES}]
    return equity - sum(parts) if parts else Decimal(0)


BOUND: Final = frozenset({FULL_SIZE, *WITHOUT})
"""Those that limits bind as they do the run."""
COUNTED: Final = frozenset({RANDOM_GATE, BUY_AND_HOLD})
"""Those that depend on what the run itself did before."""
RANDOM_SEED: Final = 1
_DRAWN: Final = 1 << 64


class ShadowBasis(Struct, frozen=True, array_like=True):
    """What the run did with one instrument, over its bars so far that were no warm-up."""

    bars: int = 0
    judged: int = 0  # bars whose inputs could be believed
    passed: int = 0  # of them those that no judgement gate refused
    exposure: float = 0.0  # sum of the position's value by the equity, without its sign

    def passes(self, instrument: str, open_time_ms: int, share: float | None = None) -> bool:
        """Return whether chance lets the signal of a bar through: a function of these alone.

        It passes with *share*, or with the run's own so far; of that the first signal passes,
        since nothing was judged before it.
        """
        if share is None and not self.judged:
            return True
        drawn = sha256(f"{RANDOM_SEED}:{instrument}:{open_time_ms}:0".encode()).digest()[:8]
        number = int.from_bytes(drawn, "big")
        if share is not None:
            return number < int(share * _DRAWN)
        return number * self.judged < self.passed * _DRAWN

    @property
    def usual_exposure(self) -> float:
        """The mean of the position's value by the equity; 0 before the first bar."""
        return self.exposure / self.bars if self.bars else 0.0


class EngineSettings(Struct, frozen=True):
    """What the engine is given once; times in milliseconds of market time."""

    broker: BrokerSettings
    interval_ms: int
    period_start_ms: int
    model: ModelTerms  # of the first model
    flat_on_refusal: bool = False
    regimes: frozenset[Regime] = frozenset()
    learned_regimes: frozenset[int] = frozenset()
    hysteresis: float = 0.1  # by which a cell is left late
    risk: dict[str, float] = {}
    flatten_on_breach: bool = False
    calendar: Calendar | None = None  # whose session bars are counted; None: every interval
    closes_outside: bool = False  # of a symbol that the universe holds no more
    usual_ranges: float = USUAL_RANGES  # beyond which a price waits for another source
    agree_within_ms: int = AGREE_WITHIN_MS


class ModelTerms(Struct, frozen=True):
    """All of the engine's settings that a model's card decides: what a promotion changes."""

    gates: dict[str, GateEvaluator]  # by instrument
    horizon_index: int
    slope: float
    bounds: RegimeBounds | None
    cells: RegimeCells | None  # the card's own regimes
    fitted: FittedConfidence | None
    passing: dict[str, float]  # of an instrument's gates, by id, as the card counted them

    @property
    def sizing_slope(self) -> float:
        """The slope by which sizes are scaled: a card's may shrink a mean and not raise it."""
        return min(self.slope, 1.0)


class MemberTerms(NamedTuple):
    """What decides for an account, or of one of several strategies on it; by instrument id."""

    name: str  # empty of the account
    share: int  # 10⁻¹⁰ of the account
    strategies: Mapping[str, Strategy]
    sizers: Mapping[str, Sizer]
    settings: EngineSettings  # of a strategy as if it traded alone, without limits


class SharesState(Struct, frozen=True, array_like=True):
    """What several strategies on one account carry besides their sub-accounts."""

    reserves: dict[str, int] = {}  # money that none of them has a share of, of each account
    failed: dict[str, str] = {}  # why, by the name of each that is set aside
    shared_out: int = -1  # the day, week or month in which shares were given anew


class EngineState(Struct, frozen=True, array_like=True):
    """All that the engine carries from step to step besides the bars it can be fed again."""

    halted: bool
    regimes: dict[str, Regime]
    risk: RiskState
    account: AccountState
    shadows: dict[str, AccountState]
    settled: dict[str, int] = {}  # market time of each instrument's newest settlement
    bases: dict[str, ShadowBasis] = {}  # of each instrument, where a shadow account depends on it
    # By instrument, "" of a portfolio, and of several strategies by name/instrument: ``State``.
    declared: dict[str, bytes] = {}
    cells: dict[str, int] = {}  # by instrument, of the card's own regimes
    chosen: tuple[str, ...] | None = None  # the universe; None before the first choice
    shares: SharesState | None = None  # of several strategies; ``shadows`` has their sub-accounts


def decode_state(state: bytes) -> EngineState:
    """Return the engine's state as a step stored it; raise ``InvariantBroken`` if it is none."""
    try:
        return msgspec.msgpack.decode(state, type=EngineState)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise InvariantBroken(f"the stored engine state does not decode: {error}") from error


def sides_of(state: EngineState) -> dict[PositionSide | None, AccountState]:
    """Return the accounts of both sides, where *state* is of hedge mode."""
    return {side: state.shadows[side] for side in SIDES if side in state.shadows}


def parts_of(state: EngineState) -> dict[str, AccountState]:
    """Return the states of the sides and the owners of the run's account, by name."""
    return {name: part for name, part in state.shadows.items() if not _is_shadow(name)}


def _is_shadow(name: str) -> bool:
    """Return whether *name* is of a shadow account, or of a side of it."""
    return name.partition("/")[0] in SHADOWS


class Shadows:
    """What each shadow account follows, and what of the run's own bars that depends on.

    Of several strategies each has its own: what it asks for in the shadow accounts of all.
    """

    def __init__(self, shadows: Mapping[str, Sequence[str]], passing: Mapping[str, float]) -> None:
        """Take the *shadows* by instrument, and what their card says that gates let through."""
        self.names = {name for names in shadows.values() for name in names}
        self.passing = passing
        self.bases: dict[str, ShadowBasis] = {}
        if not COUNTED.isdisjoint(self.names):
            self.bases = {key: ShadowBasis() for key in shadows}
        self._random = [key for key, names in shadows.items() if RANDOM_GATE in names]

    @property
    def random_shares(self) -> list[float]:
        """The shares of bars, as a card counted them, that ``random_gate`` lets through."""
        return [self.passing[key] for key in self._random if key in self.passing]

    @property
    def counts(self) -> bool:
        """Whether an account depends on what the run did at each bar: see :meth:`count`."""
        return bool(self.bases)

    def wish(
        self,
        name: str,
        state: MemberState,
        bar: Bar,
        prediction: Prediction,
        decision: Decision,
        account: Holdings,
    ) -> Intent | Orders | None:
        """Return the order of *account*, the shadow account *name*, at a *decision*.

        They skip the judgement gates and the limits, but for those that leave one thing out; inputs
        that could not be believed bind all.
        """
        if decision.refused_by in INTEGRITY:
            return None
        key, signal = bar.instrument, state.signal
        forecast = prediction if isinstance(prediction, Forecast) else None
        passes = name != RANDOM_GATE or self.bases[key].passes(
            key, bar.open_time_ms, self.passing.get(key)
        )
        if name == BUY_AND_HOLD:
            return state.hold(bar, account, self.bases[key].usual_exposure)
        if name in BOUND:
            gates = state.gates
            refused = gates.evaluator.first_failed(
                decision.passed, reduces=gates.inputs.reduces, without=WITHOUT.get(name)
            )
            return _bound(state, bar, forecast, account, refused, is_full=name == FULL_SIZE)
        if state.gates.inputs.is_outside:
            return _bound(state, bar, forecast, account, risk_universe.name, is_full=False)
        if isinstance(signal, Orders):
            return signal if passes else None
        assert signal is not None  # the bar was decided
        refused = None if passes else RANDOM_GATE
        return state.follow(_of_shadow(name, signal), bar, forecast, account, refused)

    def count(self, step: Step, name: str, state: MemberState) -> bool:
        """Add what *step* did to what the accounts depend on; return whether it counts.

        Of several strategies that one is meant by *name*. Bars after the warm-up alone count. A
        start does this for the steps behind the stored state.
        """
        bar, position, account = step.event, step.position, step.account
        decision: Decision | StrategyDecision | None = step.decision
        if name and decision is not None:
            (shadow,) = (shadow for shadow in step.shadows if shadow.shadow == name)
            position, account, decision = shadow.position, shadow.account, shadow.decided
        if not isinstance(bar, Bar) or decision is None or position is None:
            return False
        refused = decision.outcome.refused_by
        if refused == warm.name:
            return False  # nothing could be held yet
        before = self.bases[bar.instrument]
        value = state.value_of(bar.close, position.quantity)
        judged = refused not in INTEGRITY
        equity = account.equity
        self.bases[bar.instrument] = ShadowBasis(
            before.bars + 1,
            before.judged + judged,
            before.passed + (judged and refused not in JUDGEMENT),
            before.exposure + (value / equity if equity > 0 else 0.0),
        )
        return True

    @staticmethod
    def steps(
        accounts: Mapping[str, Holdings],
        instrument: str,
        fills: Mapping[str, tuple[Fill, ...]],
        decided_ms: int = -1,
        positions: Mapping[str | None, Position] | None = None,
    ) -> tuple[ShadowStep, ...]:
        """Return each account's part of a step; *decided_ms* is the time of the decided bar.

        The *positions* are those at the step's bar, where a later one of its close may end them.
        """
        return tuple(
            [
                ShadowStep(
                    name,
                    positions[name] if positions else account.position(instrument),
                    account.subtotal(),
                    fills.get(name, ()) if fills else (),
                    account.confirmed_ms(instrument) == decided_ms,
                )
                for name, account in accounts.items()
            ]
        )


def _bound(
    state: MemberState,
    bar: Bar,
    forecast: Forecast | None,
    account: Holdings,
    refused: str | None,
    *,
    is_full: bool,
) -> Intent | Orders | None:
    """Return the intent or orders of a shadow account that gate *refused* binds like the run's.

    None where the gate holds it. A limit was measured on the run's own target, so it does not
    refuse *account* less exposure.
    """
    signal = state.signal
    assert signal is not None  # the bar was decided
    if (closing := state.closing(refused)) is not None:
        return closing
    intent: Intent | Orders
    if isinstance(signal, Orders):
        intent = state.allowed_of(signal, bar, account, refused)
    else:
        if refused in LIMITS:
            free = state.follow(signal, bar, forecast, account, None, is_full=is_full)
            if all(_is_less(part_of(free, book.side), book, bar) for book in account.books):
                refused = None
        intent = state.follow(signal, bar, forecast, account, refused, is_full=is_full)
    is_held = refused is not None and isinstance(intent, Intent) and intent.action is Action.HOLD
    return None if is_held else intent


def _is_less(intent: Intent | Orders | None, book: Book, bar: Bar) -> bool:
    """Return whether *intent*, of *book* or a side of it, leaves it no more than it holds."""
    if not isinstance(intent, Intent):
        return True
    held = book.held(bar.instrument)
    return abs(intent.target) <= abs(held) and intent.target * held >= 0


def _of_shadow(name: str, signal: Signal) -> Signal:
    """Return the signal of the shadow account *name*, given the run's *signal*."""
    if name == FIXED_BAND and signal.band is not None:
        return replace(signal, band=None)
    if name == SIZED_BY_FORECAST and signal.by_forecast is not None and signal.strength > 0:
        # A band follows the two thirds' power of what it is around (``NoTradeBand``).
        share = signal.by_forecast / signal.strength
        band = None if signal.band is None else signal.band * math.cbrt(share * share)
        return replace(signal, strength=signal.by_forecast, band=band)
    if name == UNCORRELATED and signal.uncorrelated is not None:
        action = Action.LONG if signal.uncorrelated else Action.FLAT
        return replace(signal, action=action, strength=signal.uncorrelated)
    return signal


class Restart:
    """Makes an engine stand where a record left it: what is stored, then the bars fed again.

    None of it is a step.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def restore(
        self,
        state: EngineState,
        *,
        next_sequence: int,
        confirmed: Iterable[Confirmation] = (),
        since: Mapping[str, LastDecision] = {},
        taken_over: bool = False,
    ) -> None:
        """Take over the state of a run's last step; the bars come by :meth:`recall`.

        *confirmed* are the positions that were confirmed after that state was stored, oldest
        first. *since* is what became of each instrument's last decision in this run.
        *taken_over* says that it is another run's: the first step then stores it anew. Raises
        ``ConfigInvalid`` where a strategy declares another kind of state now.
        """
        engine = self._engine
        engine.halted = state.halted
        for key, market in engine.markets.items():
            market.belief.settled_ms = state.settled.get(key, -1)
            market.regimes.regime = state.regimes.get(key, Regime.UNKNOWN)
            market.regimes.cell = state.cells.get(key)
        if taken_over:
            engine.risk.take_over(state.risk)
        else:
            engine.risk.state = state.risk
        fills = {key: decided.fills for key, decided in since.items()}
        shadows = {name: of for name, of in state.shadows.items() if _is_shadow(name)}
        engine.broker.restore(
            state.account,
            parts_of(state),
            shadows,
            confirmed=confirmed,
            fills=fills,
            taken_over=taken_over,
        )
        if state.chosen is not None:
            engine.risk.choose(state.chosen)
        # Pyright reads this module by two names, and takes their structs for different ones.
        bases: dict[str, Any] = {} if taken_over else state.bases
        for name, basis in bases.items():
            member, _, key = name.rpartition("/")
            counting = engine.shadows.get(member)
            if counting is not None and counting.counts:
                counting.bases[key] = basis
        for key, encoded in state.declared.items():
            if key in engine.declared:
                engine.declared[key].restore(encoded)
        for key, decided in since.items():
            engine.states[key].outcomes.restored = decided.verdict
        engine.begin(next_sequence)
        if engine.members:
            self._restore_members(state, since)

    def _restore_members(self, state: EngineState, since: Mapping[str, LastDecision]) -> None:
        """Restore several strategies; raise ``InvariantBroken`` where shares do not add up."""
        engine = self._engine
        account: Any = engine.broker.account
        stored: Any = state.shares
        if stored is not None and parts_of(state).keys() == account.parts.keys():
            engine.shared_out = stored.shared_out
            engine.broker.restore_reserves(stored.reserves)
            for member in engine.members:
                member.know(failed=stored.failed.get(member.name, ""))
            engine.failures_stored = len(stored.failed)
        for key, before in since.items():
            for member in engine.members:
                if (of_member := before.parts.get(member.name)) is not None:
                    member.states[key].outcomes.restored = of_member.verdict
                    if key in member.account.fills:
                        member.account.fills[key] = list(of_member.fills)
        for key in engine.states:
            for line in account.lines_of(key):
                held = sum(share.held for share in line.shares)
                if held != line.held:
                    raise InvariantBroken(
                        f"the strategies' parts of {key} add up to {held}, and the account holds "
                        f"{line.held}; run `tracepaper audit verify` and restore a backup"
                    )

    def recall(self, bar: Bar) -> None:
        """Observe a bar that the run already holds: it causes nothing."""
        self._engine.recall(bar)
        self._engine.broker.follow((bar,))

    def recall_frame(self, event: FrameBar | Depths) -> None:
        """Take in a candle of a higher timeframe, or order books, that the run already holds."""
        self._engine.markets[event.instrument].take(event)

    def recall_range(self, bar: Bar) -> None:
        """Take in a bar before those of :meth:`recall`: the range of a day reaches further back."""
        self._engine.markets[bar.instrument].day_range.push(bar)

    def repeat(self, event: Event) -> None:
        """Take in an *event* whose step is known: it causes nothing.

        So the run-in of a derivation that begins in the midst of a run, after :meth:`restore`. Of
        the model's changes only starts are events here: the terms are those of its newest.
        """
        engine = self._engine
        match event:
            case Bar():
                last = engine.markets[event.instrument].last_bar
                if last is None or event.open_time_ms > last.open_time_ms:
                    engine.recall(event)
                    engine.broker.warm_up(event)
            case Quote() | Mark() | Trade():
                self._repeat_price(event)
            case FrameBar() | Depths():
                self.recall_frame(event)
            case Gap():
                engine.broker.on_gap(event)
            case ModelChange():
                engine.forget_passing()
            case InstrumentChange():
                engine.mark_at_closes()
            case CorporateAction() if event.is_split:
                engine.markets[event.instrument].adjust(event)
                engine.broker.adjust(event)
            case _:
                pass

    def _repeat_price(self, price: Price) -> None:
        """Know a quote, believed or not, and value what is held by mark prices that are."""
        engine, market = self._engine, self._engine.markets[price.instrument]
        taken = market.belief.take(price)
        for tick in (price, *taken.released):
            if isinstance(tick, Quote):
                market.quote = tick
            elif isinstance(tick, Mark) and (tick is not price or taken.is_believed):
                engine.broker.mark(tick)
