"""Explanations, forecasts, decisions, orders, fills and steps, in flow order.

Numbers. Prices, quantities, volume and turnover are integers of 10⁻ᵏ with k kept per
instrument (``Instrument.price_decimals`` and so on); money (cash, fees, funding, notional,
profit) is an integer of 10⁻⁸ (``MONEY_DECIMALS``). Forecasts and features are floats. Every
time is an ``int`` of UTC milliseconds of *market time*.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from struct import unpack_from
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.strategies.types.market import Bar, CloseStart, Event, Instrument, RunKind, Side

BLOCK_BARS: Final = 64
"""Bars in one absolute block of time: the unit of window hashes and of rollout buckets."""

# ---------------------------------------------------------------- what the model says


class Explanation(Struct, frozen=True, gc=False):
    """Where one decision looked.

    ``buckets`` is the rollout row summed over absolute 64-bar blocks of time, newest first, as
    little-endian float32; bucket i covers block ``open_time_ms // (64 * interval_ms) - i``.
    ``older_mass`` is everything before the oldest bucket; all of it sums to 1 within
    ``l1_error``. Of a run by relevance they are signed shares, whose sizes sum to 1. ``entropy``
    holds the confidence of each layer and head (layer-major, little-endian float32). Where the
    attention went, not why the price will move.

    A model of a user's own fills in the measures that it gives; the others are None, and empty.
    """

    confidence: float | None
    content_free: float | None
    recent_mass: float | None
    older_mass: float | None
    shift: float | None  # Jensen–Shannon distance from the last bar's row, by age
    l1_error: float | None
    entropy: bytes
    buckets: bytes


TAILS: Final = ("long", "short")
"""The positions whose losses the tails are of, in their order."""
SHARES: Final = (0.01, 0.05)
"""Of returns beyond a value at risk."""
DRAWDOWN_LEVELS: Final = (0.5, 0.9)
"""The quantiles of the drawdown, and of the run-up."""
PATH_LEVELS: Final = (0.05, 0.5, 0.95)
"""The quantiles of the return at each step of a path."""
PATH_STEPS: Final = 4
"""Steps of a path: quarters of the horizon."""
SHORTFALL_SHARE: Final = 0.025
"""Of returns whose mean loss is ``Forecast.expected_shortfall``."""
_TOWARDS_RARER: Final = math.log(SHARES[1] / SHORTFALL_SHARE) / math.log(SHARES[1] / SHARES[0])


def path_steps(horizon: int) -> tuple[int, ...]:
    """Return after how many bars each step of the path to *horizon* ends, the last one with it."""
    return tuple(-(-horizon * step // PATH_STEPS) for step in range(1, PATH_STEPS + 1))


_FIRST_HEADS: Final = 6
"""As many are always recorded."""


class HeadForecasts(Struct, frozen=True, gc=False, array_like=True):
    """What a network's auxiliary heads forecast: little-endian float32, horizon by horizon.

    Returns, losses and falls are log returns, times the factors of the card's calibration slice.
    A head that the network does not have is empty.
    """

    quantiles: bytes = b""  # [horizon, level] of the return, ascending
    allocation: bytes = b""  # [horizon], a position in [-1, 1]
    tails: bytes = b""  # [horizon, long and short, SHARES, value at risk and expected shortfall]
    drawdown: bytes = b""  # [horizon, DRAWDOWN_LEVELS], of a fall of the price
    regimes: bytes = b""  # [horizon, regime, probability and volatility to the horizon]
    path: bytes = b""  # [horizon, PATH_STEPS, PATH_LEVELS], the return to each step
    correlations: bytes = b""  # [horizon, symbol of the run], with the forecast's own symbol
    dropout_spread: bytes = b""
    """[horizon], of the mean return over passes with dropout: no head's, but said beside them."""
    runup: bytes = b""  # [horizon, DRAWDOWN_LEVELS], of a rise of the price

    def stored(self) -> tuple[bytes, ...]:
        """Return the fields that are recorded: later additions are left out where empty."""
        every = tuple(getattr(self, name) for name in self.__struct_fields__)
        used = max((at for at, field in enumerate(every, 1) if field), default=0)
        return every[: max(used, _FIRST_HEADS)]


class Forecast(Struct, frozen=True, gc=False):
    """What the model expects, one entry per horizon (in bars); returns are log returns.

    A column that a model of a user's own does not give is empty.
    """

    horizons: tuple[int, ...]
    mean_return: tuple[float, ...]  # raw; the card's slope calibrates it at the gate
    stdev_return: tuple[float, ...]
    p_down: tuple[float, ...]
    p_flat: tuple[float, ...]
    p_up: tuple[float, ...]
    volatility: tuple[float, ...]  # expected standard deviation of the return to the horizon
    model_id: str
    explanation: Explanation | None = None
    auxiliary: bytes = b""
    """What only some models say, little-endian. Of an ensemble mean return and volatility at each
    horizon of its row model (float32); of a network over several symbols what
    ``strategies.builtin.SymbolAnswer`` holds (float64); of others nothing."""
    heads: HeadForecasts | None = None

    def head(self, name: str, at: int) -> tuple[float, ...]:
        """Read the head *name* at the horizon in place *at*, flat; empty where there is none."""
        packed: bytes = b"" if self.heads is None else getattr(self.heads, name)
        count = len(packed) // (4 * len(self.horizons))
        return unpack_from(f"<{count}f", packed, 4 * at * count)

    def expected_shortfall(self, at: int, *, is_short: bool) -> float | None:
        """Compute the mean loss in the worst 2.5 % of cases, as a fraction of the notional.

        Between the shares that the head knows it is interpolated in the logarithm of the share,
        which is exact where losses have an exponential tail. None without the head.
        """
        tails = self.head("tails", at)[4 * is_short :][: 2 * len(SHARES)]
        if not tails:
            return None
        _, rare, _, usual = tails
        loss = usual + _TOWARDS_RARER * (rare - usual)
        return math.expm1(loss) if is_short else -math.expm1(-loss)

    def dropout_spread(self, at: int) -> float | None:
        """Read the standard deviation of the mean return over passes with dropout, a log return.

        None where the run asks for no passes.
        """
        return next(iter(self.head("dropout_spread", at)), None)

    def expected_drawdown(self, at: int, *, is_short: bool = False) -> float | None:
        """Read the median of what a position may lose on the way from its best close, a fraction.

        That is the largest fall of the price to the horizon, or for a short its largest rise. None
        without the head.
        """
        moves = self.head("runup" if is_short else "drawdown", at)
        if not moves:
            return None
        return math.expm1(moves[0]) if is_short else -math.expm1(-moves[0])

    def learned_regime(self, at: int) -> int | None:
        """Name the most probable regime, from 1, the calmest; None without the head."""
        odds = self.head("regimes", at)[::2]
        return odds.index(max(odds)) + 1 if odds else None

    def allocation(self, at: int) -> float | None:
        """Read the position in [-1, 1] that the network would hold; None without the head."""
        values = self.head("allocation", at)
        return values[0] if values else None


class PredictionTimeout(Struct, frozen=True, gc=False):
    """The forecaster did not answer within its deadline; an input, stored and replayed."""

    deadline_ms: int


Prediction = Forecast | PredictionTimeout | None


# ---------------------------------------------------------------- judgement


class Regime(StrEnum):
    """Where the attention lies: recent (MOMENTUM), distant (MEAN_REVERSION) or neither.

    The names are the literature's; they predicted no momentum in returns in our trials.
    """

    MOMENTUM = "MOMENTUM"
    MEAN_REVERSION = "MEAN_REVERSION"
    MIXED = "MIXED"
    UNKNOWN = "UNKNOWN"


class GateSet(Struct, frozen=True):
    """The gates a strategy declared, in order, with their thresholds; interned by the log."""

    gates: tuple[str, ...]  # names, as ``strategies/gates/declared.py`` declares them
    thresholds: tuple[float, ...]


class Action(StrEnum):
    """What a decision asks for."""

    LONG = "LONG"
    SHORT = "SHORT"
    FLAT = "FLAT"
    HOLD = "HOLD"
    ORDERS = "ORDERS"  # a list of orders of the strategy's own, without a target


class PositionSide(StrEnum):
    """One of the two positions that hedge mode holds of an instrument."""

    LONG = "LONG"
    SHORT = "SHORT"


class DecisionOutcome(Struct, frozen=True, gc=False):
    """What decisions that were judged alike have in common; the log stores it once.

    Bit i of ``passed`` belongs to gate i of ``gate_set``. ``unfilled_reason`` says why less was
    ordered than the target needs; the account explains it, so parity does not compare it.
    """

    action: Action
    reason: str
    allowed: bool
    refused_by: str | None  # the first gate that failed; risk.halt refuses new exposure alone
    gate_set: GateSet
    passed: int
    regime: Regime
    unfilled_reason: str | None = None
    regime_cell: int | None = None  # of the card's own regimes, from 1; None where it has none
    size_factor: float | None = None  # by confidence in the volatility; None where not asked for


class Decision(Struct, frozen=True, gc=False, omit_defaults=True):
    """What was decided at a bar's close, and why.

    ``measures[i]`` belongs to gate i of the outcome's gate set; a null measure is one that should
    exist and could not be computed. Decisions in a row that were judged alike share one outcome:
    whoever encodes them need not look at it again.
    """

    outcome: DecisionOutcome
    target_quantity: int | None  # signed, 10^-quantity_decimals; None for a list of orders
    measures: tuple[float | None, ...]
    note: dict[str, float | str | None] | None = None  # the strategy's; null: it was not finite

    @property
    def action(self) -> Action:
        """What it asks for."""
        return self.outcome.action

    @property
    def reason(self) -> str:
        """Why it asks for that."""
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
        """The gates that judged it, with their thresholds."""
        return self.outcome.gate_set

    @property
    def passed(self) -> int:
        """A mask whose bit i says that gate i passed."""
        return self.outcome.passed

    @property
    def regime(self) -> Regime:
        """Where the model's attention lay."""
        return self.outcome.regime

    @property
    def unfilled_reason(self) -> str | None:
        """Why the target is neither reached nor ordered, if so."""
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
    """How an order is to be filled."""

    MARKET = "MARKET"
    LIMIT = "LIMIT"
    STOP = "STOP"  # a market order once its trigger is touched
    STOP_LIMIT = "STOP_LIMIT"  # a limit order once its trigger is touched

    @property
    def has_price(self) -> bool:
        """Whether it is filled at a limit or better."""
        return self in {OrderKind.LIMIT, OrderKind.STOP_LIMIT}

    @property
    def has_trigger(self) -> bool:
        """Whether it waits until the market touches a price."""
        return self in {OrderKind.STOP, OrderKind.STOP_LIMIT}


class OrderRole(StrEnum):
    """What an order is for."""

    SIGNAL = "SIGNAL"
    LIST = "LIST"
    STOP = "STOP"
    TARGET = "TARGET"
    TRAILING = "TRAILING"
    UNTIL = "UNTIL"
    COMMAND = "COMMAND"
    LIQUIDATION = "LIQUIDATION"

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        names = {OrderRole.TRAILING: "trailing stop", OrderRole.UNTIL: "time limit"}
        return names.get(self, self.value.lower())


class Liquidity(StrEnum):
    """Who waited: paper market orders always take."""

    MAKER = "MAKER"
    TAKER = "TAKER"


class FillModel(StrEnum):
    """What an order was filled against."""

    QUOTE = "quote"
    BOOK = "book"
    NEXT_OPEN = "next_open"
    BAR_PATH = "bar_path"
    LIQUIDATION = "liquidation"
    CROSSED = "crossed"  # another strategy of the same account


class Order(Struct, frozen=True, gc=False, omit_defaults=True):
    """An order after a step. Its id is ``sequence-ordinal`` of its birth.

    What has a default is that of a market order by signal, which stores none of it.
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
    until_ms: int | None = None  # good till that market time; None: until it is canceled
    tag: str = ""
    triggered: bool = False  # its trigger was touched
    # The book that it is of: a position's side in hedge mode, the share of one of several owners.
    position_side: PositionSide | None = None
    owner: str = ""


class Fill(Struct, frozen=True, gc=False, omit_defaults=True):
    """An execution. ``reference_price`` is the mid or the bar's open before spread and slippage."""

    order_id: str
    instrument: str
    side: Side
    quantity: int
    price: int
    reference_price: int
    notional: int  # money
    fee: int  # money, in quote currency
    fee_base: int  # 10^-quantity_decimals of base: a spot buy pays there, and then ``fee`` is 0
    liquidity: Liquidity
    model: FillModel
    reason: str
    filled_ms: int
    while_down: bool = False  # inside a bar whose quotes nobody heard
    position_side: PositionSide | None = None  # in hedge mode, the position that it is of


class Position(Struct, frozen=True, gc=False):
    """One instrument of one account. The entry notional is exact; an average price is derived."""

    quantity: int = 0
    entry_notional: int = 0  # money, same sign as quantity
    realized_pnl: int = 0
    unrealized_pnl: int = 0
    fees_paid: int = 0
    funding_paid: int = 0
    margin: int = 0  # what an isolated position binds, and can lose; 0 without margin
    long_funding: int = 0  # of the funding what the long side paid; 0 outside hedge mode


class Account(Struct, frozen=True, gc=False):
    """One account after a step: sums over all its instruments, in money."""

    cash: int
    equity: int
    realized_pnl: int
    unrealized_pnl: int
    fees_paid: int
    funding_paid: int


class LedgerKind(StrEnum):
    """Why cash moved."""

    OPENED = "opened"  # the account's first cash
    TAKEN_OVER = "taken_over"  # the cash of the run whose account it took over
    REALIZED = "realized"  # profit of what was closed, before fees
    FEE = "fee"
    LIQUIDATION_FEE = "liquidation_fee"
    FUNDING = "funding"
    BOUGHT = "bought"  # on spot, and of shares
    SOLD = "sold"  # on spot, and of shares
    DIVIDEND = "dividend"  # of shares that were held at the close before the ex-date
    CASH_IN_LIEU = "cash_in_lieu"  # for the fraction of a share that a split leaves


class LedgerEntry(Struct, frozen=True, gc=False):
    """One movement of the account's cash; all of them add up to it at every step."""

    kind: LedgerKind
    amount: int  # money, positive where cash grows
    balance: int  # cash after it
    instrument: str | None = None
    order_id: str | None = None
    position_side: PositionSide | None = None  # in hedge mode, the position that it is of


class LimitBreach(Struct, frozen=True, gc=False):
    """A limit was breached: from then on new exposure is refused until the operator's RESUME."""

    limit: str  # the gate that was breached
    measure: float  # what it measured, in its own unit
    threshold: float
    since_ms: int  # market time of the breach, of the run before where that one was taken over


class Confirmation(Struct, frozen=True, gc=False):
    """A bar confirmed an account's position for another horizon; ``shadow`` None is the run's."""

    shadow: str | None
    instrument: str
    open_time_ms: int


class SinceDecided(Struct, frozen=True, gc=False):
    """What a start must know of an instrument besides the carried state."""

    verdict: DecisionOutcome | None  # what became of its last decision; None before the first
    fills: tuple[Fill, ...]  # of the run's own account, after the step of that decision
    parts: dict[str, SinceDecided] = {}  # the same of each of several strategies, by its name


class StrategyDecision(Struct, frozen=True, gc=False):
    """What one of several strategies on one account decided at a bar's close.

    ``measures`` are those of its gates that the account's own decision lacks or has otherwise.
    """

    strategy: str  # its name in [strategies]
    outcome: DecisionOutcome
    target_quantity: int | None  # signed, of its part
    measures: tuple[tuple[str, float | None], ...] = ()
    note: dict[str, float | str | None] | None = None


class ShadowStep(Struct, frozen=True, gc=False):
    """A shadow account after a step, or the sub-account of one of several strategies."""

    shadow: str
    position: Position
    account: Account
    fills: tuple[Fill, ...]
    confirmed: bool = False  # the step's bar confirmed its position for another horizon
    decided: StrategyDecision | None = None  # by the strategy of a sub-account


class Step(Struct, frozen=True, gc=False):
    """Everything that one event caused; the unit of audit.

    The chain's ``digest`` is added by the log when it stores the step.
    """

    sequence: int
    event: Event
    accepted: bool  # False for a revision of a bar, or a settlement twice: evidence, no change
    decision: Decision | None
    prediction: Prediction
    orders: tuple[Order, ...]  # orders born or changed in this step, as they stand after it
    fills: tuple[Fill, ...]
    position: Position | None  # of the event's instrument; None where the event has none
    account: Account
    shadows: tuple[ShadowStep, ...]
    state: bytes | None  # the engine's carried state (msgpack), None when unchanged
    ledger: tuple[LedgerEntry, ...] = ()  # what moved the account's cash since the step before
    belief: str | None = None  # on what a price that jumped was believed, or why it was not
    halted: LimitBreach | None = None  # a limit was breached here, or stood so when the run began

    @property
    def strategies(self) -> tuple[StrategyDecision, ...]:
        """What each of several strategies decided, by name; empty where one alone decides."""
        return tuple([shadow.decided for shadow in self.shadows if shadow.decided is not None])


class Repeat(Struct, frozen=True, gc=False):
    """What each bar of one instrument repeats in a stretch, but for what it measures itself."""

    decision: Decision
    plausible_at: int | None  # the place of ``plausible`` among the measures; None: not declared
    position: Position  # before the first step
    notes: dict[int, dict[str, float | str | None]]  # of bars that have one, by open time
    shadows: tuple[ShadowStep, ...] = ()  # of several strategies, before the first step

    def decision_at(self, bar: Bar, plausible: float) -> Decision:
        """Return the decision at *bar*, which is so *plausible*."""
        measures = self.decision.measures
        if (at := self.plausible_at) is not None:
            measures = (*measures[:at], plausible, *measures[at + 1 :])
        return replace(self.decision, measures=measures, note=self.notes.get(bar.open_time_ms))


class BookMarks(Struct, frozen=True, gc=False):
    """What an account, or the sub-account of a strategy, is worth in a stretch; in money.

    ``unrealized`` holds one number a bar, in the order of the steps; ``account_unrealized`` holds
    one a unit, which all bars of a close share.
    """

    account: Account  # before the first step
    unrealized: Sequence[int]  # of the position in the bar's instrument
    account_unrealized: Sequence[int]  # of the account after the unit

    @property
    def worth(self) -> int:
        """The equity without the profit of what is held."""
        return self.account.equity - self.account.unrealized_pnl

    def account_at(self, unit: int) -> Account:
        """Return the account after a *unit*; before the first one it is as it was."""
        if unit < 0:
            return self.account
        profit = self.account_unrealized[unit]
        return replace(self.account, equity=self.worth + profit, unrealized_pnl=profit)


class QuietStretch(Struct, frozen=True, gc=False):
    """Steps in a row that change nothing but prices: each bar repeats the newest decision.

    Each unit has a bar of every instrument, in the order of ``repeats``, and is a close of them
    where there are ``closes``.
    """

    first: int  # sequence of the first step
    bars: Sequence[Bar]
    closes: Sequence[CloseStart]  # the event of each unit; empty of bars by themselves
    plausible: Sequence[float]  # of each bar
    repeats: Mapping[str, Repeat]  # by instrument
    marks: BookMarks  # of the account
    shadows: Sequence[BookMarks]  # of several strategies, in the order of ``Repeat.shadows``

    @property
    def units(self) -> int:
        """How many bars by themselves, or closes, it has."""
        return len(self.bars) // len(self.repeats)

    @property
    def width(self) -> int:
        """How many steps a unit has."""
        return len(self.repeats) + bool(self.closes)

    @property
    def next_sequence(self) -> int:
        """The sequence of the step after the last."""
        return self.first + len(self.bars) + len(self.closes)

    @property
    def last(self) -> tuple[Event, Account]:
        """The event of the last step, and the account after it."""
        return self.bars[-1], self.marks.account_at(self.units - 1)

    def steps(self, unit: int) -> Iterator[Step]:
        """Yield the steps of a *unit*, which are counted from 0 on."""
        count = len(self.repeats)
        sequence = self.first + unit * self.width
        if self.closes:  # none of its bars has valued the account yet
            yield quiet_step(sequence, self.closes[unit], self.marks.account_at(unit - 1))
            sequence += 1
        account = self.marks.account_at(unit)
        accounts = [marks.account_at(unit) for marks in self.shadows]
        for at in range(unit * count, (unit + 1) * count):
            repeat = self.repeats[self.bars[at].instrument]
            decision = repeat.decision_at(self.bars[at], self.plausible[at])
            position = replace(repeat.position, unrealized_pnl=self.marks.unrealized[at])
            shadows = tuple(
                replace(
                    shadow,
                    position=replace(shadow.position, unrealized_pnl=marks.unrealized[at]),
                    account=of_shadow,
                )
                for shadow, marks, of_shadow in zip(
                    repeat.shadows, self.shadows, accounts, strict=True
                )
            )
            yield quiet_step(sequence, self.bars[at], account, decision, position, shadows)
            sequence += 1


def quiet_step(
    sequence: int,
    event: Event,
    account: Account,
    decision: Decision | None = None,
    position: Position | None = None,
    shadows: tuple[ShadowStep, ...] = (),
) -> Step:
    """Return the step of an *event* that trades nothing and changes no state."""
    return Step(
        sequence, event, accepted=True, decision=decision, prediction=None, orders=(), fills=(),
        position=position, account=account, shadows=shadows, state=None,
    )  # fmt: skip


class Run(Struct, frozen=True):
    """A run as it was opened: everything that never changes while it goes on."""

    run_id: str
    kind: RunKind
    started_at_ms: int  # wall time
    parent_run_id: str | None
    period_start_ms: int  # market time: bars that open earlier are warm-up and have no decision
    instruments: tuple[Instrument, ...]
    interval_ms: int
    config: str  # canonical JSON of the whole configuration
    config_sha256: str
    code_version: str
    strategy: str
    strategy_sha256: str  # of a user's class and what it imports from its own folder; else ""
    model_id: str  # "" without a model
    model_sha256: str
    mode: str  # "step", "batched" or "scan"
    device: str
    dtype: str
    threads: int
    backend: str = ""  # what attends: "tiles" for a stream; "" without a model
    warnings: tuple[str, ...] = ()
    torch_version: str = ""  # "" without a model, as the next
    instruction_set: str = ""
    libraries: str = ""  # JSON: the version of everything else that computes
    gate_horizon: int | None = None  # bars; of a forecast's horizons the one that gates judge by
    calendar: str | None = None  # whose sessions are traded; None where every interval is
    calendar_version: str | None = None  # of what computed the sessions, once
    calendar_sha256: str | None = None  # of the sessions
    sessions: bytes | None = None  # the sessions themselves: see ``strategies/sessions.py``
    sees_account: bool = False  # its decisions depend on its fills
