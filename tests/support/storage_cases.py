"""Runs and steps for the storage tests: plain ones, rich ones, and Hypothesis strategies."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from builders import MINUTE, START_MS, bar, bars, instrument, quote
from hypothesis import strategies as st

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.strategies.gates.gate import gate_order
from tracepaper.strategies.time_buckets import units_of
from tracepaper.strategies.types.decisions import (
    Account,
    Action,
    Decision,
    DecisionOutcome,
    Explanation,
    Fill,
    FillModel,
    Forecast,
    GateSet,
    LedgerEntry,
    LedgerKind,
    LimitBreach,
    Liquidity,
    Order,
    OrderKind,
    OrderRole,
    OrderStatus,
    Position,
    Prediction,
    PredictionTimeout,
    Regime,
    RunRow,
    ShadowStep,
    Step,
)
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    Command,
    CommandKind,
    CommandOrigin,
    CovariateRow,
    CovariatesRead,
    Depths,
    Event,
    FrameBar,
    Funding,
    Gap,
    GapCause,
    InstrumentChange,
    Mark,
    ModelChange,
    ParityCheck,
    ParityOutcome,
    Quote,
    RunKind,
    Side,
    Source,
    Trade,
)
from tracepaper.strategies.units import MONEY_LIMIT

BTC = instrument()
ETH = instrument("ETHUSDT", Category.SPOT, price_decimals=4, quantity_decimals=0)
CROSS_GATES = GateSet(("operator", "warm", "late", "gap"), (1.0, 100.0, 60_000.0, 0.0))
MODEL_GATES = GateSet(gate_order(), tuple(0.5 + place for place in range(len(gate_order()))))
START_CASH = 10**14
ORDER_LIFE = (
    OrderStatus.NEW,
    OrderStatus.NEW,
    OrderStatus.ACCEPTED,
    OrderStatus.PARTIALLY_FILLED,
    OrderStatus.PARTIALLY_FILLED,
    OrderStatus.FILLED,
)


CONFIG = """{"account":{"cash":"1000000","margin":"none"},\
"gate":{"horizon":30},"model":{"explanation":{"method":"rollout"}}}"""
"""What of a configuration the readers of a run ask for."""


def run(run_id: str = "r-1", **changes: object) -> RunRow:
    """Return a replay of BTCUSDT and spot ETHUSDT in minutes."""
    fields: dict[str, object] = {
        "run_id": run_id,
        "kind": RunKind.REPLAY,
        "started_at_ms": START_MS,
        "parent_run_id": None,
        "period_start_ms": START_MS,
        "instruments": (BTC, ETH),
        "interval_ms": MINUTE,
        "config": CONFIG,
        "config_sha256": "ab" * 32,
        "gate_horizon": 30,
        "code_version": "0.1.0",
        "strategy": "sma_cross",
        "strategy_sha256": "",
        "model_id": "",
        "model_sha256": "",
        "mode": "step",
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "backend": "tiles",
        "warnings": ("A checkpoint of another interval.",),
    }
    return RunRow(**{**fields, **changes})  # type: ignore[arg-type]


def decided(
    number: int,
    event: Bar,
    *,
    prediction: Prediction = None,
    decision: Decision,
    position: Position,
    account: Account,
    orders: tuple[Order, ...] = (),
    fills: tuple[Fill, ...] = (),
    shadows: tuple[ShadowStep, ...] = (),
    state: bytes | None = None,
    ledger: tuple[LedgerEntry, ...] = (),
) -> Step:
    return Step(
        number,
        event,
        accepted=True,
        decision=decision,
        prediction=prediction,
        orders=orders,
        fills=fills,
        position=position,
        account=account,
        shadows=shadows,
        state=state,
        ledger=ledger,
    )


OPENED = LedgerEntry(LedgerKind.OPENED, START_CASH, START_CASH)


def moved(fill: Fill, before: Position, after: Position, cash: int) -> tuple[LedgerEntry, ...]:
    """Return what *fill*, which led from one position to another, moved; *cash* is left."""
    fee = LedgerEntry(LedgerKind.FEE, -fill.fee, cash, fill.instrument, fill.order_id)
    profit = after.realized_pnl - before.realized_pnl
    if not profit:
        return (fee,)
    left = cash + fill.fee
    return (LedgerEntry(LedgerKind.REALIZED, profit, left, fill.instrument, fill.order_id), fee)


def market_fill(order_id: str, side: Side, price: int, at_ms: int) -> Fill:
    return Fill(
        order_id,
        BTC.id,
        side,
        1_000,
        price,
        price - 5,
        price * 10**6,
        price * 550,
        0,
        Liquidity.TAKER,
        FillModel.NEXT_OPEN,
        "cross",
        at_ms,
    )


def order(order_id: str, side: Side, status: OrderStatus, at_ms: int) -> Order:
    filled = 1_000 if status is OrderStatus.FILLED else 0
    return Order(order_id, BTC.id, side, 1_000, filled, status, "cross", at_ms, at_ms)


def cross_decision(number: int, *, wants_long: bool) -> Decision:
    outcome = DecisionOutcome(
        Action.LONG if wants_long else Action.FLAT,
        "fast above slow" if wants_long else "fast below slow",
        allowed=True,
        refused_by=None,
        gate_set=CROSS_GATES,
        passed=15,
        regime=Regime.UNKNOWN,
    )
    return Decision(outcome, 1_000 if wants_long else 0, (1.0, float(number), 0.0, 0.0))


def plain_steps(count: int, *, seed: int = 1) -> list[Step]:
    """Return a moving-average replay: every bar decided, a round trip every 20 bars."""
    steps = []
    position = Position()
    cash = START_CASH
    resting: Order | None = None
    for number, event in enumerate(bars(count, seed=seed)):
        wants_long = (number // 10) % 2 == 1
        fills: tuple[Fill, ...] = ()
        orders: tuple[Order, ...] = ()
        ledger: tuple[LedgerEntry, ...] = () if number else (OPENED,)
        if resting is not None:
            fill = market_fill(resting.order_id, resting.side, event.open, event.open_time_ms)
            fills = (fill,)
            orders = (
                order(resting.order_id, resting.side, OrderStatus.FILLED, event.open_time_ms),
            )
            resting = None
            before = position
            position, cash = _filled(position, fill, cash)
            ledger = moved(fill, before, position, cash)
        if wants_long != (position.quantity > 0):
            side = Side.BUY if wants_long else Side.SELL
            resting = order(f"{number}-0", side, OrderStatus.ACCEPTED, event.close_time_ms)
            orders = (*orders, resting)
        unrealized = event.close * position.quantity * 10**3 - position.entry_notional
        position = _marked(position, unrealized)
        account = Account(
            cash, cash + unrealized, position.realized_pnl, unrealized, position.fees_paid, 0
        )
        decision = cross_decision(number, wants_long=wants_long)
        steps.append(
            decided(
                number,
                event,
                decision=decision,
                position=position,
                account=account,
                orders=orders,
                fills=fills,
                state=f"state {number}".encode() if orders else None,
                ledger=ledger,
            )
        )
    return steps


def _filled(position: Position, fill: Fill, cash: int) -> tuple[Position, int]:
    fees = position.fees_paid + fill.fee
    if fill.side is Side.BUY:
        held = Position(fill.quantity, fill.notional, position.realized_pnl, 0, fees, 0)
        return held, cash - fill.fee
    profit = fill.notional - position.entry_notional
    closed = Position(0, 0, position.realized_pnl + profit, 0, fees, 0)
    return closed, cash + profit - fill.fee


def _marked(position: Position, unrealized: int) -> Position:
    return Position(
        position.quantity,
        position.entry_notional,
        position.realized_pnl,
        unrealized,
        position.fees_paid,
        position.funding_paid,
    )


def model_explanation(number: int) -> Explanation:
    """Return an explanation of three buckets and older mass that sum to 1 in float32."""
    weights = (0.5, 0.25, 0.125)
    buckets = units_of(np.array([weights]))[0]
    entropy = _float32(0.25) + _float32(0.5)
    return Explanation(
        0.3 + number % 7 / 100, 0.9, 0.0, 0.6, 0.2, 0.125, 0.01, 1e-7, entropy, buckets
    )


def _float32(number: float) -> bytes:
    return struct.pack("<f", number)


def model_forecast(number: int) -> Forecast:
    at = number % 5 / 1000
    return Forecast(
        (10, 30),
        (at, at - 0.001),
        (0.004, 0.006),
        (0.25, 0.2),
        (0.25, 0.3),
        (0.5, 0.5),
        (0.005, 0.007),
        model_explanation(number),
    )


def model_decision(number: int, prediction: Prediction) -> Decision:
    """Return a decision over every gate, refused by ``confidence_entropy``, or by ``deadline``."""
    is_late = isinstance(prediction, PredictionTimeout)
    values = [0.1 * place + number for place in range(len(gate_order()))]
    measures: list[float | None] = list(values)
    failed = "deadline" if is_late else "confidence_entropy"
    if is_late:
        for gate in ("finite", "confidence_entropy", "collapsed", "shifted", "edge"):
            measures[list(gate_order()).index(gate)] = None
    passed = (1 << len(gate_order())) - 1 & ~(1 << list(gate_order()).index(failed))
    outcome = DecisionOutcome(
        Action.HOLD,
        failed,
        allowed=False,
        refused_by=failed,
        gate_set=MODEL_GATES,
        passed=passed,
        regime=Regime.MIXED,
    )
    note: dict[str, float | str | None] = {"rsi": 27.3, "why": 'it\'s "low"', "ratio": None}
    return Decision(outcome, 0, tuple(measures), note if number % 2 else None)


ACCOUNT = Account(START_CASH, START_CASH + 5, 0, 2, 7, -3)
OURS = Position(-2_000, -(10**15), 12, 3, 7, -3)


def other_events() -> list[Event]:
    """Return events of all kinds but the bar, and those that close and end a run."""
    at: dict[str, Any] = {"market_ms": START_MS + 1, "seen_ms": START_MS + 2}
    return [
        InstrumentChange(msgspec.structs.replace(BTC, tick_size=50), **at),
        ModelChange("m", "", "0.1", "step", "cpu", "float32", 1, ((BTC.id, 5),), **at),
        ModelChange("m", "", "0.1", "scan", "cpu", "float32", 2, (), backend="tiles", **at),
        Gap(BTC.id, START_MS, START_MS + MINUTE, GapCause.MISSED, "rest", **at),
        quote(),
        Trade(BTC.id, "trade-1", Side.SELL, 5, 6, **at),
        Mark(ETH.id, 12_345, **at, index=12_340, last=12_346),
        Funding(BTC.id, -1_000_000, **at),
        Command(CommandKind.HALT, "lunch, it's 'noon'", **at),
        Command(
            CommandKind.RESUME, "", **at, origin=CommandOrigin.PAGE, token="anna", user="Jos\u00e9"
        ),
        CovariatesRead(
            START_MS, "it's torn", (CovariateRow(ETH.id, START_MS - 1, (0.1, -2.0)),), **at
        ),
        ParityCheck(
            ParityOutcome.IDENTICAL, "it's the same", START_MS, START_MS + 1, 2, 1, 1, **at
        ),
        FrameBar(BTC.id, START_MS, 60 * MINUTE, 4, 6, 3, 5, 7, Source.REST, **at),
        Depths(BTC.id, "stopped", START_MS, 1_000, 2, 5, b"\x00books", **at),
    ]


def undecided(number: int, event: Event, *, accepted: bool = True) -> Step:
    is_first = number == 0
    return Step(
        number,
        event,
        accepted=accepted,
        decision=None,
        prediction=None,
        orders=(),
        fills=(),
        position=OURS if hasattr(event, "instrument") and not is_first else None,
        account=ACCOUNT,
        shadows=(),
        state=b"opened" if is_first else None,
        ledger=(OPENED,) if is_first else (),
    )


def explained_step(number: int, index: int) -> Step:
    """Return the decision on bar *index*: late on the third, with shadows and an order's life."""
    shadow_side = Side.SELL if index == 3 else Side.BUY
    shadow_fill = market_fill("7-1", shadow_side, 10_000, START_MS)
    shadow = ShadowStep("ungated", Position(1_000, 10**14, 0, 9, 5, 0), ACCOUNT, (shadow_fill,))
    quiet = ShadowStep("random", Position(), Account(1, 1, 0, 0, 0, 0), ())
    bought = LedgerEntry(LedgerKind.BOUGHT, -5, START_CASH - 5, ETH.id, "7-0")
    sold = LedgerEntry(LedgerKind.SOLD, 5, START_CASH, ETH.id, "7-0")
    prediction: Prediction = PredictionTimeout(1_000) if index == 2 else model_forecast(number)
    return decided(
        number,
        bar(10_000 + index, index=index, turnover=None if index % 2 else 77, late_ms=index),
        prediction=prediction,
        decision=model_decision(number, prediction),
        position=OURS,
        account=ACCOUNT,
        orders=(order("7-0", Side.SELL, ORDER_LIFE[index], START_MS),) if index else (),
        fills=(market_fill("7-0", Side.SELL, 10_000, START_MS),) if index == 3 else (),
        shadows=(shadow, quiet) if index % 2 else (quiet,),
        ledger=(bought, sold) if index == 3 else (),
    )


def rich_steps() -> list[Step]:
    """Return steps in which every event, answer and table occurs, on two instruments."""
    steps = [undecided(number, event) for number, event in enumerate(other_events())]
    steps += [explained_step(len(steps) + index, index) for index in range(6)]
    halted = LimitBreach("risk.drawdown", 0.21, 0.2, steps[-1].event.market_ms)
    steps[-1] = msgspec.structs.replace(steps[-1], halted=halted)
    revision = bar(10_001, index=0, source=Source.REST)
    spot = bar(123_456, index=6, instrument_id=ETH.id, source=Source.ARCHIVE)
    steps.append(undecided(len(steps), revision, accepted=False))
    steps.append(undecided(len(steps), spot))
    return steps


def write_run(
    path: Path,
    steps: list[Step],
    *,
    of: RunRow | None = None,
    end: bool = False,
    group_steps: int = 64,
) -> bytes:
    """Write *steps* as one run of the database *path*; return the chain's head."""
    log = SqlAuditLog.open(path, group_steps=group_steps)
    log.begin(of or run())
    for step in steps:
        log.append_now(step)
    log.flush()
    if end:
        log.end(START_MS + 1)
    head = log.head
    log.close()
    return head


# ---------------------------------------------------------------- Hypothesis

numbers = st.integers(-MONEY_LIMIT, MONEY_LIMIT)
counts = st.integers(0, MONEY_LIMIT)
times = st.integers(0, 4_102_444_800_000)
floats = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)
words = st.text(max_size=12)
ids = st.sampled_from((BTC.id, ETH.id))
positions = st.builds(Position, numbers, numbers, numbers, numbers, numbers, numbers)
accounts = st.builds(Account, numbers, numbers, numbers, numbers, numbers, numbers)
money = st.integers(-(10**17), 10**17)
linear_accounts = st.builds(
    lambda cash, realized, unrealized, fees: Account(
        cash, cash + unrealized, realized, unrealized, fees, 0
    ),
    money,
    money,
    money,
    money,
)
sizes = st.integers(1, 10**6)
"""Of fills: what their sums in a trade come to fits 64 bits, as it does of any account."""
fills = st.builds(
    Fill,
    words,
    ids,
    st.sampled_from(Side),
    sizes,
    sizes,
    sizes,
    money,
    money,
    st.integers(0, 1),
    st.sampled_from(Liquidity),
    st.sampled_from(FillModel),
    words,
    times,
)
orders = st.builds(
    Order,
    words,
    ids,
    st.sampled_from(Side),
    counts,
    counts,
    st.sampled_from(OrderStatus),
    words,
    times,
    times,
    st.sampled_from(OrderKind),
    st.sampled_from(OrderRole),
    st.none() | counts,
    st.none() | counts,
    st.booleans(),
    st.booleans(),
    st.none() | times,
    words,
    st.booleans(),
)
explanations = st.builds(
    Explanation,
    *[st.none() | floats] * 8,
    st.binary(max_size=16),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4).map(
        lambda weights: struct.pack(f"<{len(weights)}i", *weights)
    ),
)


@st.composite
def forecasts(draw: st.DrawFn) -> Forecast:
    horizons = draw(st.lists(st.integers(1, 500), min_size=1, max_size=4, unique=True))
    given = st.lists(floats, min_size=len(horizons), max_size=len(horizons)).map(tuple)
    column = given | st.just(())  # what a model of a user's own does not give
    return Forecast(
        tuple(horizons),
        draw(column),
        draw(column),
        draw(column),
        draw(column),
        draw(column),
        draw(column),
        draw(st.none() | explanations),
    )


notes = st.none() | st.dictionaries(words, floats | words | st.none(), max_size=16)


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    gates = tuple(draw(st.lists(st.sampled_from(gate_order()), min_size=1, unique=True)))
    thresholds = tuple(draw(floats) for _ in gates)
    outcome = DecisionOutcome(
        draw(st.sampled_from(Action)),
        draw(words),
        draw(st.booleans()),
        draw(st.none() | st.sampled_from(gate_order())),
        GateSet(gates, thresholds),
        draw(st.integers(0, (1 << len(gates)) - 1)),
        draw(st.sampled_from(Regime)),
    )
    measures = tuple(draw(st.none() | floats) for _ in gates)
    return Decision(outcome, draw(st.none() | numbers), measures, draw(notes))


any_bars = st.builds(
    Bar,
    ids,
    times,
    st.just(MINUTE),
    counts,
    counts,
    counts,
    counts,
    counts,
    st.none() | counts,
    times,
    times,
    st.sampled_from(Source),
)
any_events: st.SearchStrategy[Event] = st.one_of(
    any_bars,
    st.builds(Quote, ids, counts, counts, counts, counts, times, times),
    st.builds(
        Depths, ids, words, times, counts, counts, counts, st.binary(max_size=32), times, times
    ),
    st.builds(Trade, ids, words, st.sampled_from(Side), counts, counts, times, times),
    st.builds(Mark, ids, counts, times, times),
    st.builds(Funding, ids, numbers, times, times),
    st.builds(InstrumentChange, st.sampled_from((BTC, ETH)), times, times),
    st.builds(
        ModelChange,
        words,
        words,
        words,
        words,
        words,
        words,
        st.integers(1, 64),
        st.lists(st.tuples(ids, times)).map(tuple),
        times,
        times,
    ),
    st.builds(Gap, ids, times, times, st.sampled_from(GapCause), words, times, times),
    st.builds(Command, st.sampled_from(CommandKind), words, times, times),
)


shadows = st.builds(  # the run's own account has no name
    ShadowStep, words.filter(bool), positions, accounts | linear_accounts,
    st.lists(fills, max_size=2).map(tuple)
)  # fmt: skip
steps = st.builds(
    Step,
    sequence=st.just(0),
    event=any_events,
    accepted=st.booleans(),
    decision=st.none() | decisions(),
    prediction=st.none() | st.builds(PredictionTimeout, st.integers(0, 10**6)) | forecasts(),
    orders=st.lists(orders, max_size=2).map(tuple),
    fills=st.lists(fills, max_size=2).map(tuple),
    position=st.none() | positions,
    account=accounts | linear_accounts,
    shadows=st.lists(shadows, max_size=2).map(tuple),
    state=st.none() | st.binary(max_size=8),
    ledger=st.lists(
        st.builds(
            LedgerEntry,
            st.sampled_from(LedgerKind),
            money,
            numbers,
            st.none() | ids,
            st.none() | words,
        ),
        max_size=2,
    ).map(tuple),
)


def renumbered(drawn: list[Step]) -> list[Step]:
    """Return *drawn* numbered from 0."""
    from msgspec.structs import replace

    return [replace(step, sequence=number) for number, step in enumerate(drawn)]
