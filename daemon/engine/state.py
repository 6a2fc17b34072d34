"""Settings and state of the engine, the restoring of a state, and the shadow accounts.

``ungated`` follows every signal. ``random_gate`` follows randomly drawn signals, as many as the
judgement gates let through on the card's calibration slice or in the run so far. ``held``
holds the run's mean exposure so far, with its sign. ``fixed_band`` replaces a signal's band by the
default of ``sizing.rebalance``. ``sized_by_forecast`` sizes by the model's volatility.
``uncorrelated`` weighs by the run's rule as if no two symbols were correlated. ``full_size`` and
``no_GATE`` differ from the run in one thing: they always take a full position, or ignore that gate.

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

from tracepaper.daemon.broker.account import SIDES, BrokerSettings, Intent, intent_for_side
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
    Order,
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
    Funding,
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
HELD: Final = "held"
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
    HELD: "held at the run's mean exposure so far, short where that is below zero",
    FIXED_BAND: "the same signals, traded where a target has moved by more than a quarter",
    SIZED_BY_FORECAST: "the same trend, sized by the model's volatility",
    FULL_SIZE: "the same decisions, each with a full position",
    UNCORRELATED: "weights by the same rule, as if no two symbols moved together",
    **{name: f"the same decisions without the gate {gate}" for name, gate in WITHOUT.items()},
}
"""The description of every shadow account, by its name."""


def account_title(name: str) -> str:
    """Return the title of the account *name*: a shadow account, a side, or a strategy."""
    if name in SIDES:
        return f"{name.lower()} side"
    return f"{name} shadow" if name in SHADOWS else f"strategy {name}"


RESERVE: Final = "in reserve"
"""The title of the money that belongs to no strategy; no strategy can have this name."""


def reserve_of(equity: Decimal, accounts: Mapping[str, Decimal]) -> Decimal:
    """Return the part of *equity* that belongs to no strategy; 0 without several strategies.

    *accounts* has the equity of each account except the run's, by its name.
    """
    parts = [money for name, money in accounts.items() if name not in {*SHADOWS, *SIDES}]
    return equity - sum(parts) if parts else Decimal(0)


LIMITED: Final = frozenset({FULL_SIZE, *WITHOUT})
"""Shadow accounts to which the limits apply, as to the run."""
BASED_ON_RUN: Final = frozenset({RANDOM_GATE, HELD})
"""Shadow accounts that depend on the run's earlier steps."""
RANDOM_SEED: Final = 1
_DRAWN: Final = 1 << 64


class ShadowBasis(Struct, frozen=True, array_like=True):
    """Totals of the run's bars in one instrument, without warm-up, for shadow accounts."""

    bars: int = 0
    judged: int = 0  # bars that no integrity gate refused
    passed: int = 0  # judged bars that no judgement gate refused
    exposure: float = 0.0  # sum of position value / equity, below zero where short

    def passes(self, instrument: str, open_time_ms: int, share: float | None = None) -> bool:
        """Return whether the signal of a bar passes at random, as a function of the arguments.

        It passes with the probability *share*, or with the share of the run so far. Without both,
        at the first signal, it passes.
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
        """The mean exposure; 0 before the first bar."""
        return self.exposure / self.bars if self.bars else 0.0


class EngineSettings(Struct, frozen=True):
    """The settings of an engine; times in milliseconds of market time."""

    broker: BrokerSettings
    interval_ms: int
    period_start_ms: int
    model: ModelTerms  # of the first model
    flat_on_refusal: bool = False
    regimes: frozenset[Regime] = frozenset()
    learned_regimes: frozenset[int] = frozenset()
    hysteresis: float = 0.1  # the distance beyond its bounds at which a cell is left
    risk: dict[str, float] = {}  # limits by gate
    flatten_on_breach: bool = False
    calendar: Calendar | None = None  # counts bars within its sessions; None: every interval
    closes_outside: bool = False  # whether positions in symbols that left the universe are closed
    usual_ranges: float = USUAL_RANGES  # a jump beyond this waits for another source
    agree_within_ms: int = AGREE_WITHIN_MS


class ModelTerms(Struct, frozen=True):
    """The engine's settings from a model's card, which a promotion changes."""

    gates: dict[str, GateEvaluator]  # by instrument
    horizon_index: int
    slope: float
    bounds: RegimeBounds | None
    cells: RegimeCells | None  # the card's learned regimes
    fitted: FittedConfidence | None
    passing: dict[str, float]  # by instrument: the share of bars that passed on the card's slice

    @property
    def sizing_slope(self) -> float:
        """The slope that scales sizes: a card may shrink a mean return but not raise it."""
        return min(self.slope, 1.0)


class MemberTerms(NamedTuple):
    """Strategies, sizers and settings of an account, or of one of several strategies on it."""

    name: str  # empty for the account
    share: int  # 10⁻¹⁰ of the account
    strategies: Mapping[str, Strategy]  # by instrument id
    sizers: Mapping[str, Sizer]  # by instrument id
    settings: EngineSettings  # for a member as if it traded alone, without limits


class SharesState(Struct, frozen=True, array_like=True):
    """The stored state of several strategies on one account, besides their sub-accounts."""

    reserves: dict[str, int] = {}  # money that belongs to no strategy, by account
    failed: dict[str, str] = {}  # by strategy: why it was set aside
    shared_out: int = -1  # the day, week or month in which equity was last distributed


class EngineState(Struct, frozen=True, array_like=True):
    """The whole stored state of the engine, except for the bars that a start feeds again."""

    halted: bool
    regimes: dict[str, Regime]
    risk: RiskState
    account: AccountState
    shadows: dict[str, AccountState]
    settled: dict[str, int] = {}  # market time of each instrument's newest settlement
    bases: dict[str, ShadowBasis] = {}  # by instrument, if a shadow account depends on it
    # Declared ``State`` of strategies: by instrument or, of several strategies, NAME/INSTRUMENT.
    # The instrument of a portfolio is empty.
    declared: dict[str, bytes] = {}
    cells: dict[str, int] = {}  # by instrument: its cell among the card's learned regimes
    chosen: tuple[str, ...] | None = None  # the universe; None before the first choice
    shares: SharesState | None = None  # of several strategies; ``shadows`` has their sub-accounts
    unsettled: dict[str, list[Funding]] = {}  # by instrument: settlements that wait for their bar
    first_ms: dict[str, int] = {}  # by instrument: its first bar, where the period begins later


def decode_state(state: bytes) -> EngineState:
    """Decode the engine's state from a step; raise ``InvariantBroken`` if that is impossible."""
    try:
        return msgspec.msgpack.decode(state, type=EngineState)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise InvariantBroken(f"the stored engine state does not decode: {error}") from error


def sides_of(state: EngineState) -> dict[PositionSide | None, AccountState]:
    """Return the accounts of both sides; empty if *state* is in one-way mode."""
    return {side: state.shadows[side] for side in SIDES if side in state.shadows}


def parts_of(state: EngineState) -> dict[str, AccountState]:
    """Return the states of the sides and the owners of the run's account, by name."""
    return {name: part for name, part in state.shadows.items() if not _is_shadow(name)}


def resting_orders(state: EngineState) -> list[Order]:
    """Return the orders that rest in the books of the run's account, its sides and its owners."""
    return [
        order
        for account in (state.account, *parts_of(state).values())
        for book in account.books.values()
        for order in (book.orders.order, *book.orders.others)
        if order is not None
    ]


def _is_shadow(name: str) -> bool:
    """Return whether *name* is a shadow account, or a book of one."""
    return name.partition("/")[0] in SHADOWS


class Shadows:
    """Computes the intents of shadow accounts, and counts the run's bars on which they depend.

    Each of several strategies has one of these, for its shares in all shadow accounts.
    """

    def __init__(self, shadows: Mapping[str, Sequence[str]], passing: Mapping[str, float]) -> None:
        """Take the names of *shadows*, and the card's share of *passing* bars, by instrument."""
        self.names = {name for names in shadows.values() for name in names}
        self.passing = passing
        self.bases: dict[str, ShadowBasis] = {}
        if not BASED_ON_RUN.isdisjoint(self.names):
            self.bases = {key: ShadowBasis() for key in shadows}
        self._random = [key for key, names in shadows.items() if RANDOM_GATE in names]

    @property
    def random_shares(self) -> list[float]:
        """The card's shares of passing bars by which ``random_gate`` draws."""
        return [self.passing[key] for key in self._random if key in self.passing]

    @property
    def counts(self) -> bool:
        """Whether a shadow account depends on the run's bars: see :meth:`count`."""
        return bool(self.bases)

    def intent(
        self,
        name: str,
        state: MemberState,
        bar: Bar,
        prediction: Prediction,
        decision: Decision,
        account: Holdings,
    ) -> Intent | Orders | None:
        """Return the intent of *account*, the shadow account *name*, at a *decision*.

        Integrity gates apply to all. Judgement gates and limits apply only to the accounts that
        differ from the run in one thing.
        """
        if decision.refused_by in INTEGRITY:
            return None
        key, signal = bar.instrument, state.signal
        forecast = prediction if isinstance(prediction, Forecast) else None
        passes = name != RANDOM_GATE or self.bases[key].passes(
            key, bar.open_time_ms, self.passing.get(key)
        )
        if name == HELD:
            return state.hold(bar, account, self.bases[key].usual_exposure)
        if name in LIMITED:
            gates = state.gates
            refused = gates.evaluator.first_failed(
                decision.passed, reduces=gates.inputs.reduces, without=WITHOUT.get(name)
            )
            return _limited_intent(
                state, bar, forecast, account, refused, is_full=name == FULL_SIZE
            )
        if state.gates.inputs.is_outside:
            return _limited_intent(state, bar, forecast, account, risk_universe.name, is_full=False)
        if isinstance(signal, Orders):
            return signal if passes else None
        assert signal is not None  # the bar was decided
        refused = None if passes else RANDOM_GATE
        return state.follow(shadow_signal(name, signal), bar, forecast, account, refused)

    def count(self, step: Step, name: str, state: MemberState) -> bool:
        """Add the bar of *step* to the totals; return whether it counts.

        *name* is one of several strategies, or empty. Only bars after the warm-up count. A start
        calls this for the steps after the stored state.
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
            return False  # no position was possible yet
        before = self.bases[bar.instrument]
        size = state.value_of(bar.close, position.quantity)
        value = size if position.quantity > 0 else -size
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
        """Return the part of each of *accounts* in a step; *decided_ms* is the decided bar's time.

        *positions* are given if a later bar of the same close may already have changed them.
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


def _limited_intent(
    state: MemberState,
    bar: Bar,
    forecast: Forecast | None,
    account: Holdings,
    refused: str | None,
    *,
    is_full: bool,
) -> Intent | Orders | None:
    """Return the intent or orders of a shadow account to which the gate *refused* applies.

    None if the gate refuses. Limits were measured on the run's target, so a limit does not refuse
    what leaves *account* less exposure.
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
            ungated = state.follow(signal, bar, forecast, account, None, is_full=is_full)
            if all(
                _only_reduces(intent_for_side(ungated, book.side), book, bar)
                for book in account.books
            ):
                refused = None
        intent = state.follow(signal, bar, forecast, account, refused, is_full=is_full)
    is_held = refused is not None and isinstance(intent, Intent) and intent.action is Action.HOLD
    return None if is_held else intent


def _only_reduces(intent: Intent | Orders | None, book: Book, bar: Bar) -> bool:
    """Return whether *intent* does not increase the position of *book*."""
    if not isinstance(intent, Intent):
        return True
    held = book.held(bar.instrument)
    return abs(intent.target) <= abs(held) and intent.target * held >= 0


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


class Restart:
    """Restores an engine from a record: first the stored state, then the bars fed again.

    None of this creates a step.
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
        """Restore the state of a run's last step; the bars follow by :meth:`recall`.

        *confirmed* are the confirmations after that state was stored, oldest first. *since* has the
        outcome of each instrument's last decision in this run. *taken_over* means that the state
        is another run's; the first step then stores it anew. Raises ``ConfigInvalid`` if a strategy
        now declares another kind of state.
        """
        engine = self._engine
        engine.halted = state.halted
        for key, market in engine.markets.items():
            market.belief.settled_ms = state.settled.get(key, -1)
            market.regimes.regime = state.regimes.get(key, Regime.UNKNOWN)
            market.regimes.cell = state.cells.get(key)
            market.first_ms = state.first_ms.get(key, market.first_ms)
        if taken_over:
            engine.risk.take_over(state.risk)
        else:
            engine.risk.state = state.risk
        fills = {key: decided.fills for key, decided in since.items()}
        shadows = {name: account for name, account in state.shadows.items() if _is_shadow(name)}
        engine.broker.restore(
            state.account,
            parts_of(state),
            shadows,
            confirmed=confirmed,
            fills=fills,
            taken_over=taken_over,
        )
        waiting: dict[str, Any] = state.unsettled
        engine.broker.unsettled = {
            key: list(waiting[key]) for key in engine.markets if key in waiting
        }
        if state.chosen is not None:
            engine.risk.choose(state.chosen)
        # Pyright sees this module under two names, and takes their structs for different types.
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
        """Restore several strategies; raise ``InvariantBroken`` if shares do not add up."""
        engine = self._engine
        account: Any = engine.broker.account
        stored: Any = state.shares
        if stored is not None and parts_of(state).keys() == account.stored_books.keys():
            engine.shared_out = stored.shared_out
            engine.broker.restore_reserves(stored.reserves)
            for member in engine.members:
                member.set_status(failed=stored.failed.get(member.name, ""))
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
                        f"the strategies' shares of {key} add up to {held}, but the account holds "
                        f"{line.held}; run `tracepaper audit verify` and restore a backup"
                    )

    def recall(self, bar: Bar) -> None:
        """Observe a bar of an earlier step, without effects."""
        self._engine.recall(bar)
        self._engine.broker.follow((bar,))

    def recall_frame(self, event: FrameBar | Depths) -> None:
        """Add a candle of a higher timeframe, or order books, of an earlier step."""
        self._engine.markets[event.instrument].take(event)

    def recall_range(self, bar: Bar) -> None:
        """Add a bar before those of :meth:`recall`, for the mean range of a day."""
        self._engine.markets[bar.instrument].day_range.push(bar)

    def repeat(self, event: Event) -> None:
        """Apply an *event* of an earlier step to what is observed, without fills or decisions.

        After :meth:`restore`, the re-derivation of a run from its middle feeds its first events
        this way. The engine already has the terms of the newest model, so a model change only
        does what a start does.
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
        """Remember a quote, believed or not, and value positions at believed mark prices."""
        engine, market = self._engine, self._engine.markets[price.instrument]
        verdict = market.belief.take(price)
        for tick in (price, *verdict.released):
            if isinstance(tick, Quote):
                market.quote = tick
            elif isinstance(tick, Mark) and (tick is not price or verdict.is_believed):
                engine.broker.mark(tick)
