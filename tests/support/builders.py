"""The one way to make values in tests: every argument has a plain default."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

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
    Liquidity,
    Position,
    Prediction,
    Regime,
    RunRow,
    ShadowStep,
    Step,
)
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    Event,
    Instrument,
    Quote,
    RunKind,
    Side,
    Source,
)
from tracepaper.strategies.units import MONEY_SCALE

MINUTE = 60_000
START_MS = 1_700_000_040_000  # a whole minute


_Value = TypeVar("_Value")


def present(value: _Value | None) -> _Value:
    """Return *value*, which is not None."""
    assert value is not None
    return value


def instrument(
    symbol: str = "BTCUSDT",
    category: Category = Category.LINEAR,
    *,
    price_decimals: int = 2,
    quantity_decimals: int = 3,
    tick_size: int = 10,
    quantity_step: int = 1,
    min_quantity: int = 0,
    max_quantity: int = 0,
    min_notional: int = 0,
) -> Instrument:
    """Return an instrument with the filters of BTCUSDT, but no minimums."""
    return Instrument(
        category,
        symbol,
        symbol.removesuffix("USDT"),
        "USDT",
        price_decimals,
        quantity_decimals,
        8,
        8,
        tick_size,
        quantity_step,
        min_quantity,
        max_quantity,
        min_notional,
    )


def bar(
    close: int = 10_100,
    *,
    index: int = 0,
    open_: int | None = None,
    high: int | None = None,
    low: int | None = None,
    volume: int = 5 * 10**8,
    turnover: int | None = None,
    instrument_id: str = "linear:BTCUSDT",
    interval_ms: int = MINUTE,
    open_time_ms: int | None = None,
    late_ms: int = 0,
    source: Source = Source.STREAM,
) -> Bar:
    """Return bar number *index* after the start, closing at *close*."""
    start = START_MS + index * interval_ms if open_time_ms is None else open_time_ms
    first = close if open_ is None else open_
    end = start + interval_ms
    return Bar(
        instrument_id,
        start,
        interval_ms,
        first,
        max(first, close) if high is None else high,
        min(first, close) if low is None else low,
        close,
        volume,
        turnover,
        end,
        end + late_ms,
        source,
    )


def bars(count: int, *, seed: int = 1, instrument_id: str = "linear:BTCUSDT") -> list[Bar]:
    """Return a seeded random walk of *count* bars whose open is the previous close."""
    rng = random.Random(seed)
    walk = []
    close = 1_000_000
    for index in range(count):
        open_ = close
        close = max(open_ + rng.randint(-3_000, 3_000), 1_000)
        walk.append(
            bar(
                close,
                index=index,
                open_=open_,
                high=max(open_, close) + rng.randint(0, 500),
                low=min(open_, close) - rng.randint(0, 500),
                volume=rng.randint(0, 10**10),
                instrument_id=instrument_id,
            )
        )
    return walk


def quote(
    bid: int = 10_000,
    ask: int = 10_010,
    *,
    size: int = 10**9,
    at_ms: int = START_MS,
    instrument_id: str = "linear:BTCUSDT",
) -> Quote:
    """Return a quote with plenty of size on both sides."""
    return Quote(instrument_id, bid, size, ask, size, at_ms, at_ms)


def explanation(
    *,
    confidence_entropy: float = 0.2,
    recent_mass: float = 0.6,
    shift: float | None = 0.01,
    content_free: float = 0.0,
    event_focus: float = 0.25,
) -> Explanation:
    """Return an explanation whose two buckets and older mass sum to one."""
    return Explanation(
        confidence_entropy,
        0.946,
        content_free,
        recent_mass,
        event_focus,
        0.25,
        shift,
        0.0,
        bytes.fromhex("cdcc4c3e"),
        struct.pack("<2i", 1 << 23, 1 << 22),
    )


def forecast(
    mean: float = 0.002,
    *,
    p_up: float = 0.5,
    p_down: float = 0.3,
    explained: Explanation | None = None,
) -> Forecast:
    """Return a forecast for one horizon of 30 bars."""
    return Forecast(
        (30,),
        (mean,),
        (0.004,),
        (p_down,),
        (1.0 - p_up - p_down,),
        (p_up,),
        (0.005,),
        explanation() if explained is None else explained,
    )


def decision(
    *,
    action: Action = Action.HOLD,
    target: int = 0,
    measures: Sequence[tuple[str, float | None, float, bool]] = (
        ("operator", 1.0, 1.0, True),
        ("warm", 5_000.0, 4_349.0, True),
        ("confidence_entropy", 0.21, 0.18, True),
        ("edge", 0.4, 1.0, False),
    ),
    regime: Regime = Regime.MOMENTUM,
    reason: str = "edge",
) -> Decision:
    """Return a decision over (gate, measure, threshold, passed); the first failure refuses it."""
    gates = tuple(row[0] for row in measures)
    failed = next((row[0] for row in measures if not row[3]), None)
    outcome = DecisionOutcome(
        action,
        reason,
        failed is None,
        failed,
        GateSet(gates, tuple(row[2] for row in measures)),
        sum(1 << index for index, row in enumerate(measures) if row[3]),
        regime,
    )
    return Decision(outcome, target, tuple(row[1] for row in measures))


def altered(decided: Decision, **fields: Any) -> Decision:
    """Return *decided* with other *fields*, its own or its outcome's."""
    decision_fields = {
        name: fields.pop(name) for name in Decision.__struct_fields__ if name in fields
    }
    outcome = msgspec.structs.replace(decided.outcome, **fields)
    return msgspec.structs.replace(decided, **{"outcome": outcome, **decision_fields})


def account(equity: int = 100_000, *, cash: int | None = None) -> Account:
    """Return an account in whole units of quote currency."""
    money = (equity if cash is None else cash) * MONEY_SCALE
    return Account(money, equity * MONEY_SCALE, 0, equity * MONEY_SCALE - money, 0, 0)


def step(
    event: Event,
    *,
    sequence: int = 0,
    decided: Decision | None = None,
    prediction: Prediction = None,
    fills: tuple[Fill, ...] = (),
    position: Position | None = None,
    of: Account | None = None,
    shadows: tuple[ShadowStep, ...] = (),
    accepted: bool = True,
) -> Step:
    """Return a step that an engine could have made of *event*."""
    return Step(
        sequence,
        event,
        accepted,
        decided,
        prediction,
        (),
        fills,
        Position() if position is None and isinstance(event, Bar) else position,
        account() if of is None else of,
        shadows,
        None,
    )


def fill(
    *, price: int = 10_100, quantity: int = 1_000, side: Side = Side.BUY, reason: str = "edge"
) -> Fill:
    """Return a taker's fill of one unit of BTCUSDT."""
    notional = price * quantity * 10**3
    return Fill(
        "1-0",
        "linear:BTCUSDT",
        side,
        quantity,
        price,
        price,
        notional,
        notional * 55 // 100_000,
        0,
        Liquidity.TAKER,
        FillModel.QUOTE,
        reason,
        START_MS,
    )


def run(*, kind: RunKind = RunKind.LIVE, instruments: Sequence[Instrument] = ()) -> RunRow:
    """Return a run of the attention strategy as it was opened."""
    return RunRow(
        "run-7f3a",
        kind,
        START_MS,
        None,
        START_MS,
        tuple(instruments) or (instrument(),),
        MINUTE,
        "{}",
        "00" * 32,
        "0.1.0",
        "attention",
        "",
        "a1b2c3",
        "11" * 32,
        "step",
        "cpu",
        "float32",
        1,
    )
