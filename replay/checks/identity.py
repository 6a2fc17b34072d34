"""The identity of a decision: equal wherever the same inputs were judged the same way; pure.

Prices and quantities are exact decimal texts, whatever the scale of their instrument, and a float
that is not finite is null. It leaves out what depends on time or the account: the gates of timing
and risk and hence which gate refused; ids, sequence, reason, regime, source and times of receipt.

The rules are docs/identity.md, I2 and I3.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from tracepaper.storage.record.hashing import all_finite, finite
from tracepaper.strategies.gates.gate import GATES, GateKind
from tracepaper.strategies.types.decisions import (
    DecisionOutcome,
    Forecast,
    Prediction,
    PredictionTimeout,
    Step,
)
from tracepaper.strategies.types.market import Bar, Instrument
from tracepaper.strategies.units import unscaled

_Measures = tuple[tuple[str, float, float | None], ...]
"""For each gate that counts: its name, its threshold and its measure."""


class GateOutcome(NamedTuple):
    """The outcome of gates and strategy at a bar."""

    action: str
    target: str | None  # null where orders are listed
    gates: _Measures
    passed: tuple[bool, ...]  # of each of these gates


class DecisionIdentity(NamedTuple):
    """All values that equal decisions on an instrument share."""

    bar: tuple[str, ...]  # open time and OHLCV
    forecast: object
    verdict: GateOutcome
    orders: tuple[object, ...]  # the orders that a decision by list created


def decision_identity(step: Step, instrument: Instrument) -> DecisionIdentity:
    """Return the identity of the decision of *step*, on a bar of *instrument*."""
    decision, bar = step.decision, step.event
    assert decision is not None
    assert isinstance(bar, Bar)
    quantity = instrument.quantity_decimals
    prices = (bar.open, bar.high, bar.low, bar.close)
    outcome, target = decision.outcome, decision.target_quantity
    measures = dict(zip(outcome.gate_set.gates, decision.measures, strict=True))
    return DecisionIdentity(
        (
            str(bar.open_time_ms),
            *(unscaled(price, instrument.price_decimals) for price in prices),
            unscaled(bar.volume, instrument.volume_decimals),
        ),
        _forecast(step.prediction),
        _verdict(outcome, target, measures, quantity),
        () if target is not None else _created_orders(step, instrument),
    )


def _verdict(
    outcome: DecisionOutcome,
    target: int | None,
    measures: dict[str, float | None],
    decimals: int,
) -> GateOutcome:
    gates, thresholds = outcome.gate_set.gates, outcome.gate_set.thresholds
    places = [place for place, name in enumerate(gates) if counts(name)]
    return GateOutcome(
        outcome.action.value,
        None if target is None else unscaled(target, decimals),
        tuple([(gates[at], thresholds[at], finite(measures[gates[at]])) for at in places]),
        tuple([bool(outcome.passed >> at & 1) for at in places]),
    )


def counts(gate: str) -> bool:
    """Return whether a gate is part of a decision's identity: it is neither of timing nor risk."""
    return not GATES[gate].is_timing and GATES[gate].kind is not GateKind.RISK


def _forecast(prediction: Prediction) -> object:
    """Return the values of *prediction*, without the model's id and without a deadline."""
    match prediction:
        case None:
            return None
        case PredictionTimeout():
            return "late"
        case Forecast(explanation=explanation):
            columns = (
                prediction.mean_return, prediction.stdev_return, prediction.p_down,
                prediction.p_flat, prediction.p_up, prediction.volatility,
            )  # fmt: skip
            explained = (
                None
                if explanation is None
                else tuple(
                    [
                        value if isinstance(value, bytes) else finite(value)
                        for value in msgspec.structs.astuple(explanation)
                    ]
                )
            )
            return (prediction.horizons, *(all_finite(column) for column in columns), explained)


def _created_orders(step: Step, instrument: Instrument) -> tuple[object, ...]:
    """Return the terms of the orders that *step* created, without id and reason."""
    prefix = f"{step.sequence}-"
    return tuple(
        [
            (
                order.kind, order.role, order.side,
                unscaled(order.quantity, instrument.quantity_decimals),
                *(
                    None if at is None else unscaled(at, instrument.price_decimals)
                    for at in (order.price, order.trigger)
                ),
                order.post_only, order.reduce_only, order.until_ms, order.tag,
            )
            for order in step.orders
            if order.order_id.startswith(prefix)
        ]
    )  # fmt: skip
