"""Explanations, forecasts, decisions, orders, fills and steps, in processing order.

Prices, quantities, volume and turnover are integers in units of 10⁻ᵏ, with k given by the
instrument (``Instrument.price_decimals`` etc.). Money (cash, fees, funding, notional, profit) is
an integer in units of 10⁻⁸ (``MONEY_DECIMALS``). Forecasts and features are floats. Times are
``int`` UTC milliseconds of *market time*.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from operator import attrgetter
from struct import unpack_from
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct
from msgspec.structs import astuple, replace

from tracepaper.strategies.types.calibration import MeasuredTails
from tracepaper.strategies.types.market import (
    Bar,
    BarColumns,
    CloseStart,
    Event,
    Instrument,
    RunKind,
    Side,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK_BARS: Final = 64
"""Bars per absolute block of time: the unit of window hashes and of most rollout buckets."""
WEIGHT_UNITS: Final = 1 << 24
"""Units of a weight of 1: buckets are integers, which SQL reads as they are stored."""

# ---------------------------------------------------------------- what the model says


class Explanation(Struct, frozen=True, gc=False):
    """Where the model's attention went for one decision (not why the price will move).

    ``buckets`` is the rollout row summed over absolute blocks of time, newest first, as
    little-endian int32 in ``WEIGHT_UNITS``; bucket i covers block
    ``open_time_ms // (bucket_bars * interval_ms) - i``, where ``bucket_bars`` is the run's.
    ``older_mass`` is everything before the oldest bucket. Together they sum to 1 within
    ``l1_error`` and one unit; in a run by relevance they are signed shares whose absolute values
    sum to 1. They are empty where a weight is not finite.
    ``entropy`` holds the confidence of each layer and head (layer-major, little-endian float32).

    A custom model fills in the measures that it declares; the others are None or empty.
    """

    confidence_entropy: float | None
    rollout_entropy: float | None  # of the rollout by age, as a share of the maximum
    content_free: float | None
    recent_mass: float | None
    event_focus: float | None
    older_mass: float | None
    shift: float | None  # Jensen–Shannon distance from the last bar's row, by age
    l1_error: float | None
    entropy: bytes
    buckets: bytes


TAILS: Final = ("long", "short")
"""The sides of ``HeadForecasts.tails``, in order."""
SHARES: Final = (0.01, 0.05)
"""Tail probabilities of the values at risk."""
DRAWDOWN_LEVELS: Final = (0.5, 0.9)
"""Quantile levels of the drawdown and of the run-up."""
PATH_LEVELS: Final = (0.05, 0.5, 0.95)
"""Quantile levels of the return at each step of a path."""
PATH_STEPS: Final = 4
"""Steps of a path, equal parts of the horizon."""
SHORTFALL_SHARE: Final = 0.025
"""Tail probability of ``Forecast.expected_shortfall``."""
_RARER_WEIGHT: Final = math.log(SHARES[1] / SHORTFALL_SHARE) / math.log(SHARES[1] / SHARES[0])


def path_steps(horizon: int) -> tuple[int, ...]:
    """Return the bars after which each step of a path to *horizon* ends; the last is *horizon*."""
    return tuple(-(-horizon * step // PATH_STEPS) for step in range(1, PATH_STEPS + 1))


_ALWAYS_STORED: Final = 6
"""Leading fields of ``HeadForecasts`` that are stored even if empty."""


class HeadForecasts(Struct, frozen=True, gc=False, array_like=True):
    """Forecasts of a network's auxiliary heads, as little-endian float32 arrays.

    Returns, losses and falls are log returns, scaled by the factors of the card's calibration.
    Heads that the network lacks are empty.
    """

    quantiles: bytes = b""  # [horizon, level] of the return, ascending
    allocation: bytes = b""  # [horizon], position in [-1, 1]
    tails: bytes = b""  # [horizon, TAILS, SHARES, (value at risk, expected shortfall)]
    drawdown: bytes = b""  # [horizon, DRAWDOWN_LEVELS], largest fall of the price
    regimes: bytes = b""  # [horizon, regime, (probability, volatility to the horizon)]
    path: bytes = b""  # [horizon, PATH_STEPS, PATH_LEVELS], return to each step
    correlations: bytes = b""  # [horizon, symbol of the run], with the forecast symbol
    dropout_spread: bytes = b""
    """[horizon], deviation of the mean return over dropout passes; not a head, but stored here."""
    runup: bytes = b""  # [horizon, DRAWDOWN_LEVELS], largest rise of the price

    def stored(self) -> tuple[bytes, ...]:
        """Return the fields to record, without empty ones at the end."""
        fields = tuple(getattr(self, name) for name in self.__struct_fields__)
        used = max((count for count, field in enumerate(fields, 1) if field), default=0)
        return fields[: max(used, _ALWAYS_STORED)]


class Forecast(Struct, frozen=True, gc=False):
    """A model's forecast, one entry per horizon (in bars); returns are log returns.

    Columns that a custom model does not give are empty.
    """

    horizons: tuple[int, ...]
    mean_return: tuple[float, ...]  # raw: gates apply the card's calibration slope
    stdev_return: tuple[float, ...]
    p_down: tuple[float, ...]
    p_flat: tuple[float, ...]
    p_up: tuple[float, ...]
    volatility: tuple[float, ...]  # expected standard deviation of the return to the horizon
    explanation: Explanation | None = None
    auxiliary: bytes = b""
    """Model-specific, little-endian. Ensemble: mean return and volatility per horizon of its row
    model (float32). Cross-asset network: the fields of ``strategies.builtin.SymbolAnswer``
    (float64). Other models: empty."""
    heads: HeadForecasts | None = None

    def head(self, name: str, at: int) -> tuple[float, ...]:
        """Return the values of head *name* at horizon index *at*, flat; empty without that head."""
        packed: bytes = b"" if self.heads is None else getattr(self.heads, name)
        count = len(packed) // (4 * len(self.horizons))
        return unpack_from(f"<{count}f", packed, 4 * at * count)

    def expected_shortfall(
        self, at: int, *, is_short: bool, measured: MeasuredTails | None = None
    ) -> float | None:
        """Return the mean loss in the worst 2.5 % of cases, as a fraction of the notional.

        It is that of the network's head, else by the tails that the card has *measured* at the
        horizon; None without either. It is interpolated between ``SHARES`` in the logarithm of
        the share, which is exact for an exponential tail.
        """
        if tails := self.head("tails", at)[4 * is_short :][: 2 * len(SHARES)]:
            _, at_1, _, at_5 = tails
        elif measured is None or not (self.mean_return and self.stdev_return):
            return None
        else:
            mean = self.mean_return[at] if is_short else -self.mean_return[at]
            (_, far), (_, near) = measured.losses
            at_1, at_5 = (mean + self.stdev_return[at] * each for each in (far, near))
        loss = at_5 + _RARER_WEIGHT * (at_1 - at_5)
        return math.expm1(loss) if is_short else -math.expm1(-loss)

    def dropout_spread(self, at: int) -> float | None:
        """Return the standard deviation of the mean log return over dropout passes.

        None if the run makes no dropout passes.
        """
        return next(iter(self.head("dropout_spread", at)), None)

    def expected_drawdown(self, at: int, *, is_short: bool = False) -> float | None:
        """Return the median of a position's largest interim loss from its best close, a fraction.

        For a long this is the largest fall of the price to the horizon, for a short the largest
        rise. None without the head.
        """
        moves = self.head("runup" if is_short else "drawdown", at)
        if not moves:
            return None
        return math.expm1(moves[0]) if is_short else -math.expm1(-moves[0])

    def learned_regime(self, at: int) -> int | None:
        """Return the most probable regime, from 1 (the calmest); None without the head."""
        odds = self.head("regimes", at)[::2]
        return odds.index(max(odds)) + 1 if odds else None

    def allocation(self, at: int) -> float | None:
        """Return the network's position in [-1, 1]; None without the head."""
        values = self.head("allocation", at)
        return values[0] if values else None


class ForecastColumns(NamedTuple):
    """Forecasts of one model as arrays; they have every column, an explanation, and no heads."""

    forecasts: Sequence[Forecast]
    numbers: NDArray[np.float64]  # [forecast, column, horizon]
    figures: NDArray[np.float64]  # [forecast, number of its explanation]
    rows: Mapping[int, int]
    """The row of each forecast whose numbers are all finite and in range, by the object's id."""


class PredictionTimeout(Struct, frozen=True, gc=False):
    """The forecaster missed its deadline; stored as an input, so that a replay repeats it."""

    deadline_ms: int


Prediction = Forecast | PredictionTimeout | None


# ---------------------------------------------------------------- judgement


class Regime(StrEnum):
    """Where the attention lies: on recent (MOMENTUM) or distant bars (MEAN_REVERSION), or neither.

    The names come from the literature; in our trials they did not predict momentum in returns.
    """

    MOMENTUM = "MOMENTUM"
    MEAN_REVERSION = "MEAN_REVERSION"
    MIXED = "MIXED"
    UNKNOWN = "UNKNOWN"


class GateSet(Struct, frozen=True):
    """The gates that a strategy declared, in order, with their thresholds; the log interns it."""

    gates: tuple[str, ...]  # names, as ``strategies/gates/declared.py`` declares them
    thresholds: tuple[float, ...]


class Action(StrEnum):
    """The action of a decision."""

    LONG = "LONG"
    SHORT = "SHORT"
    FLAT = "FLAT"
    HOLD = "HOLD"
    ORDERS = "ORDERS"  # the strategy's list of orders, without a target


class DecisionOutcome(Struct, frozen=True, gc=False):
    """The part of a decision that consecutive decisions often share; the log stores it once.

    Bit i of ``passed`` belongs to gate i of ``gate_set``. ``unfilled_reason`` explains why less was
    ordered than the target needs; it depends on the account, so parity does not compare it.
    """

    action: Action
    reason: str
    allowed: bool
    refused_by: str | None  # the first gate that failed; risk.halt refuses only new exposure
    gate_set: GateSet
    passed: int
    regime: Regime
    unfilled_reason: str | None = None
    regime_cell: int | None = None  # of the card's ``RegimeCells``, from 1; None without them
    size_factor: float | None = None  # by confidence in the volatility; None if not configured


class Decision(Struct, frozen=True, gc=False, omit_defaults=True):
    """The decision at a bar's close, and its reasons.

    ``measures[i]`` belongs to gate i of the outcome's gate set; None means that the measure could
    not be computed. Consecutive decisions with equal outcomes share one ``DecisionOutcome`` object,
    so an encoder can reuse its encoding.
    """

    outcome: DecisionOutcome
    target_quantity: int | None  # signed, in 10^-quantity_decimals; None for a list of orders
    measures: tuple[float | None, ...]
    note: dict[str, float | str | None] | None = None  # the strategy's; None: a non-finite number

    @property
    def action(self) -> Action:
        """The action decided."""
        return self.outcome.action

    @property
    def reason(self) -> str:
        """The strategy's reason, or the refusal."""
        return self.outcome.reason

    @property
    def allowed(self) -> bool:
        """Whether every gate passed."""
        return self.outcome.allowed

    @property
    def refused_by(self) -> str | None:
        """The name of the first gate that failed."""
        return self.outcome.refused_by

    @property
    def gate_set(self) -> GateSet:
        """The gates that judged the decision, with their thresholds."""
        return self.outcome.gate_set

    @property
    def passed(self) -> int:
        """A mask; bit i is set if gate i passed."""
        return self.outcome.passed

    @property
    def regime(self) -> Regime:
        """Where the model's attention lay."""
        return self.outcome.regime

    @property
    def unfilled_reason(self) -> str | None:
        """Why less was ordered than the target needs, if so."""
        return self.outcome.unfilled_reason


# ---------------------------------------------------------------- orders and money


class OrderStatus(StrEnum):
    """The life of an order; the transitions are in ``daemon/broker/orders.py``."""

    NEW = "NEW"
    ACCEPTED = "ACCEPTED"
    PARTIALLY_FILLED = "PARTIALLY_FILLED"
    FILLED = "FILLED"
    CANCELED = "CANCELED"
    REJECTED = "REJECTED"


class OrderKind(StrEnum):
    """The type of an order."""

    MARKET = "MARKET"
    LIMIT = "LIMIT"
    STOP = "STOP"  # a market order once its trigger is touched
    STOP_LIMIT = "STOP_LIMIT"  # a limit order once its trigger is touched

    @classmethod
    def of(cls, price: float | None, trigger: float | None) -> OrderKind:
        """Return the kind of an order with the limit *price* and the stop price *trigger*."""
        if trigger is not None:
            return cls.STOP if price is None else cls.STOP_LIMIT
        return cls.MARKET if price is None else cls.LIMIT


class OrderRole(StrEnum):
    """The purpose of an order."""

    SIGNAL = "SIGNAL"
    LIST = "LIST"
    STOP = "STOP"
    TARGET = "TARGET"
    TRAILING = "TRAILING"
    UNTIL = "UNTIL"
    COMMAND = "COMMAND"
    LIQUIDATION = "LIQUIDATION"

    @property
    def label(self) -> str:
        """The role's name for use in a sentence."""
        names = {OrderRole.TRAILING: "trailing stop", OrderRole.UNTIL: "time limit"}
        return names.get(self, self.value.lower())


class Liquidity(StrEnum):
    """Whether a fill made or took liquidity; market orders always take."""

    MAKER = "MAKER"
    TAKER = "TAKER"


class FillModel(StrEnum):
    """The source of a fill's price."""

    QUOTE = "quote"
    NEXT_OPEN = "next_open"
    BAR_PATH = "bar_path"
    LIQUIDATION = "liquidation"


class Order(Struct, frozen=True, gc=False, omit_defaults=True):
    """An order after a step. Its id is ``sequence-ordinal`` of the step that created it.

    A run that takes over an order puts ``0-`` before its id.

    The defaults are those of a market order by signal, so such an order stores none of them.
    """

    order_id: str
    instrument: str
    side: Side
    quantity: int
    filled: int
    status: OrderStatus
    reason: str
    created_ms: int
    eligible_ms: int  # market time from which a quote may fill it
    kind: OrderKind = OrderKind.MARKET
    role: OrderRole = OrderRole.SIGNAL
    price: int | None = None  # of LIMIT and STOP_LIMIT
    trigger: int | None = None  # of STOP and STOP_LIMIT
    post_only: bool = False
    reduce_only: bool = False
    until_ms: int | None = None  # market time at which it expires; None: never
    tag: str = ""
    triggered: bool = False


class Fill(Struct, frozen=True, gc=False, omit_defaults=True):
    """An execution. ``reference_price``: the mid or the bar's open, before spread and slippage."""

    order_id: str
    instrument: str
    side: Side
    quantity: int
    price: int
    reference_price: int
    notional: int  # money
    fee: int  # money, in quote currency
    fee_base: int  # 10^-quantity_decimals of base: the fee of a spot buy, whose ``fee`` is 0
    liquidity: Liquidity
    model: FillModel
    reason: str
    filled_ms: int
    while_down: bool = False  # inside a bar during which no quotes were received


class Position(Struct, frozen=True, gc=False):
    """The position of one account in one instrument. Average prices derive from the notional."""

    quantity: int = 0
    entry_notional: int = 0  # money, same sign as quantity
    realized_pnl: int = 0
    unrealized_pnl: int = 0
    fees_paid: int = 0
    funding_paid: int = 0
    margin: int = 0  # of an isolated position, the most it can lose; 0 without margin


class Account(Struct, frozen=True, gc=False):
    """An account after a step: sums over all its instruments, in money."""

    cash: int
    equity: int
    realized_pnl: int
    unrealized_pnl: int
    fees_paid: int
    funding_paid: int


class LedgerKind(StrEnum):
    """The reason of a cash movement."""

    OPENED = "opened"  # initial cash
    TAKEN_OVER = "taken_over"  # cash of the run whose account this run continues
    REALIZED = "realized"  # profit of a closed quantity, before fees
    FEE = "fee"
    LIQUIDATION_FEE = "liquidation_fee"
    FUNDING = "funding"
    BOUGHT = "bought"  # spot and stocks
    SOLD = "sold"  # spot and stocks


class LedgerEntry(Struct, frozen=True, gc=False):
    """One movement of the account's cash; after every step the movements sum to the cash."""

    kind: LedgerKind
    amount: int  # money, positive if cash grows
    balance: int  # cash after this movement
    instrument: str | None = None
    order_id: str | None = None


class LimitBreach(Struct, frozen=True, gc=False):
    """A breached limit: new exposure is refused until the operator's RESUME."""

    limit: str  # the gate
    measure: float  # in the gate's unit
    threshold: float
    since_ms: int  # market time of the breach, which may lie in the run that this one continues


class Confirmation(Struct, frozen=True, gc=False):
    """A bar extended an account's position by a horizon; ``shadow`` None is the run's account."""

    shadow: str | None
    instrument: str
    open_time_ms: int


class LastDecision(Struct, frozen=True, gc=False):
    """An instrument's last decision outcome and later fills, which a restart needs."""

    verdict: DecisionOutcome | None  # of the last decision; None before the first
    fills: tuple[Fill, ...]  # of the run's account, after the step of that decision


class ShadowStep(Struct, frozen=True, gc=False):
    """A shadow account after a step."""

    shadow: str
    position: Position
    account: Account
    fills: tuple[Fill, ...]
    confirmed: bool = False  # the step's bar extended the position by a horizon


class Step(Struct, frozen=True, gc=False):
    """All effects of one event: the unit of audit.

    The log adds the hash chain's ``digest`` when it stores the step.
    """

    sequence: int
    event: Event
    accepted: bool  # False for a revised bar or a repeated settlement: recorded, without effect
    decision: Decision | None
    prediction: Prediction
    orders: tuple[Order, ...]  # orders created or changed in this step, as of its end
    fills: tuple[Fill, ...]
    position: Position | None  # in the event's instrument; None if the event has none
    account: Account
    shadows: tuple[ShadowStep, ...]
    state: bytes | None  # the engine's carried state (msgpack); None if unchanged
    ledger: tuple[LedgerEntry, ...] = ()  # cash movements since the previous step
    price_verdict: str | None = None  # why a price that jumped was believed, or not
    halted: LimitBreach | None = None  # breached in this step, or already when the run began


class Repeat(Struct, frozen=True, gc=False):
    """The decision and position that every bar of one instrument repeats in a quiet stretch."""

    decision: Decision
    plausible_at: int | None  # index of ``plausible`` in the measures; None: not declared
    position: Position  # before the first step
    notes: dict[int, dict[str, float | str | None]]  # by open time of the bars that have one

    def decision_at(self, bar: Bar, plausible: float) -> Decision:
        """Return the decision at *bar*, whose ``plausible`` gate measures *plausible*."""
        measures = self.decision.measures
        if (at := self.plausible_at) is not None:
            measures = (*measures[:at], plausible, *measures[at + 1 :])
        return replace(self.decision, measures=measures, note=self.notes.get(bar.open_time_ms))


class Answer(Struct, frozen=True, gc=False):
    """A forecast and the decision on it at a bar of a quiet stretch."""

    prediction: Prediction
    decision: Decision
    confirmed: tuple[bool, ...]  # by shadow account: the bar extended its position by a horizon


class AccountMarks(Struct, frozen=True, gc=False):
    """The unrealised profits of an account during a quiet stretch; in money.

    ``unrealized`` has one number per bar, in the order of the steps. ``account_unrealized`` has one
    per unit, since all bars of a close share it.
    """

    account: Account  # before the first step, or after the fills of the first unit
    unrealized: Sequence[int]  # [bar], of the position in the bar's instrument
    account_unrealized: Sequence[int]  # [unit], of the account after it

    @property
    def worth(self) -> int:
        """Equity without unrealised profit."""
        return self.account.equity - self.account.unrealized_pnl

    def account_at(self, unit: int) -> Account:
        """Return the account after *unit*; a negative one is before the first."""
        if unit < 0:
            return self.account
        profit = self.account_unrealized[unit]
        return replace(self.account, equity=self.worth + profit, unrealized_pnl=profit)


class ShadowSpan(Struct, frozen=True, gc=False):
    """The shadow accounts from one of their fills in a quiet stretch to the next."""

    first: int  # the unit with which it begins
    steps: Mapping[str, tuple[ShadowStep, ...]]  # by instrument: after the fills of that unit
    marks: Sequence[AccountMarks]  # by account, over the units of the span


class QuietStretch(Struct, frozen=True, gc=False):
    """Consecutive steps in which the run's account changes only by prices.

    Each bar repeats the last decision. In a run with a model each bar has its own decision, which
    keeps positions and targets of the run, and shadow accounts may trade. Each unit has one bar per
    instrument, in the order of ``repeats``, preceded by its ``CloseStart`` if there are ``closes``.
    """

    first: int  # sequence of the first step
    bars: Sequence[Bar]
    closes: Sequence[CloseStart]  # one per unit; empty if bars are processed one by one
    plausible: Sequence[float]  # [bar], the measure of the gate ``plausible``
    repeats: Mapping[str, Repeat]  # by instrument
    marks: AccountMarks  # of the account
    shadows: Sequence[ShadowSpan]  # of the other accounts; the first begins with unit 0
    answers: Sequence[Answer] = ()  # [bar], in a run with a model
    states: Mapping[int, bytes] = {}  # by unit, as its last step stores it
    # By instrument: all bars of the replay, if they are known, and the index of the first of these.
    columns: Sequence[tuple[BarColumns, int]] = ()
    forecasts: Mapping[str, ForecastColumns] = {}  # by instrument, if answers may be rows of them

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.bars) // len(self.repeats)

    @property
    def width(self) -> int:
        """Number of steps per unit."""
        return len(self.repeats) + bool(self.closes)

    @property
    def next_sequence(self) -> int:
        """The sequence of the step after this stretch."""
        return self.first + len(self.bars) + len(self.closes)

    @property
    def last(self) -> tuple[Event, Account]:
        """The event of the last step, and the account after it."""
        return self.bars[-1], self.marks.account_at(self.units - 1)

    def steps(self, unit: int) -> Iterator[Step]:
        """Yield the steps of *unit*, counted from 0."""
        count = len(self.repeats)
        sequence = self.first + unit * self.width
        if self.closes:  # the account is not valued before the bars
            yield quiet_step(sequence, self.closes[unit], self.marks.account_at(unit - 1))
            sequence += 1
        account, last = self.marks.account_at(unit), (unit + 1) * count - 1
        for at in range(unit * count, last + 1):
            repeat = self.repeats[self.bars[at].instrument]
            decision, prediction = repeat.decision_at(self.bars[at], self.plausible[at]), None
            if self.answers:
                prediction, decision, _ = astuple(self.answers[at])
            position = replace(repeat.position, unrealized_pnl=self.marks.unrealized[at])
            shadows = self.shadow_steps(at)
            step = quiet_step(sequence, self.bars[at], account, decision, position, shadows)
            state = self.states.get(unit) if at == last else None
            yield replace(step, prediction=prediction, state=state)
            sequence += 1

    def shadow_steps(self, at: int) -> tuple[ShadowStep, ...]:
        """Return the other accounts at the bar *at*."""
        if not self.shadows:
            return ()
        count = len(self.repeats)
        unit = at // count
        place = bisect_right(self.shadows, unit, key=attrgetter("first")) - 1
        span = self.shadows[place]
        before = span.steps[self.bars[at].instrument]
        return tuple(
            replace(
                shadow,
                position=replace(
                    shadow.position, unrealized_pnl=marks.unrealized[at - span.first * count]
                ),
                account=marks.account_at(unit - span.first),
                fills=shadow.fills if unit == span.first else (),
                confirmed=is_confirmed,
            )
            for shadow, marks, is_confirmed in zip(
                before, span.marks, self.answers[at].confirmed, strict=True
            )
        )


def quiet_step(
    sequence: int,
    event: Event,
    account: Account,
    decision: Decision | None = None,
    position: Position | None = None,
    shadows: tuple[ShadowStep, ...] = (),
) -> Step:
    """Return the step of an *event* without trades or a change of state."""
    return Step(
        sequence, event, accepted=True, decision=decision, prediction=None, orders=(), fills=(),
        position=position, account=account, shadows=shadows, state=None,
    )  # fmt: skip


class RunRow(Struct, frozen=True):
    """A run's constant properties, fixed when it is opened."""

    run_id: str
    kind: RunKind
    started_at_ms: int  # wall time
    parent_run_id: str | None
    period_start_ms: int  # market time: bars that open earlier warm up (docs/time.md, T21)
    instruments: tuple[Instrument, ...]
    interval_ms: int
    config: str  # canonical JSON of the whole configuration
    config_sha256: str
    code_version: str
    strategy: str
    strategy_sha256: str  # of a user's class and its imports from its own folder; else ""
    model_id: str  # "" without a model
    model_sha256: str
    mode: str  # "step", "batched" or "scan"
    device: str
    dtype: str
    threads: int
    backend: str = ""  # of the attention: "tiles" for a stream; "" without a model
    warnings: tuple[str, ...] = ()
    torch_version: str = ""  # "" without a model
    instruction_set: str = ""  # "" without a model
    libraries: str = ""  # JSON: versions of the other libraries that compute
    gate_horizon: int | None = None  # bars; the forecast's horizon that gates judge
    bucket_bars: int = BLOCK_BARS  # of an explanation's buckets
    sessions: bytes | None = None  # of shares; see ``strategies/sessions.py``
    sees_account: bool = False  # decisions depend on fills
    account: str | None = None  # JSON: what the run before handed to this one
