"""One decision, whole: its sentences, gates, forecast, attention, orders and hashes."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from tracepaper.daemon.broker.account import SIDES
from tracepaper.replay.checks.identity import decision_sha256
from tracepaper.replay.explain.decision import (
    Flips,
    GateMargin,
    StoredDecision,
    flips_of,
    margin_text,
    short,
    stand_of,
    stored_decision,
)
from tracepaper.replay.page import answers
from tracepaper.replay.page.databases import HttpRefusal, ShownRun, as_number
from tracepaper.replay.page.runs import trimmed
from tracepaper.storage.database.run_rows import WHOLE
from tracepaper.storage.database.run_views import Row
from tracepaper.strategies.builtin import BAND, SIZE, TREND
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.gates.declared import warm
from tracepaper.strategies.gates.gate import GATES, refusal
from tracepaper.strategies.types.decisions import Action, PositionSide
from tracepaper.strategies.types.market import Side

LEVELS: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
NORMAL: Final = (
    -1.6448536269514722,
    -0.6744897501960817,
    0.0,
    0.6744897501960817,
    1.6448536269514722,
)
"""The quantiles of a normal law at ``LEVELS``."""
_TEXT_MAX: Final = 400


def decision(shown: ShownRun, sequence: int) -> answers.Decision:
    """Return one decision as it is stored; raise ``HttpRefusal`` where the run has none there."""
    stored = _stored(shown, sequence)
    row, columns = stored.decision, shown.columns
    instrument = row["instrument"]
    item = columns.instruments[instrument]
    place = list(columns.instruments).index(instrument)
    (bar,) = shown.views.rows("v_bars", sequence=sequence)
    close_ms = columns.times.close_ms(row["open_time_ms"])
    paths = [
        msgspec.structs.replace(path, queue=stored.queues.get(path.order["order_id"]))
        for path in _orders(shown, sequence)
    ]
    before = _held(shown, sequence)
    filled = [fill["sequence"] for path in paths for fill in path.fills]
    after = _held(shown, max(filled)) if filled else before
    # What the target is of: in hedge mode LONG and SHORT are answers for one side (M95).
    sized = [held.of_side(row["action"]) for held in (before, after)]
    flips = flips_of(stored)
    beside = {
        newest: columns.rows.decided_at(span, instrument=place, newest=newest)
        for newest, span in ((True, (0, sequence - 1)), (False, (sequence + 1, WHOLE[1])))
    }
    return answers.Decision(
        run_id=shown.run_id,
        sequence=sequence,
        instrument=instrument,
        open_time_ms=row["open_time_ms"],
        close_time_ms=close_ms,
        close=float(bar["close"]),
        action=row["action"],
        allowed=bool(row["allowed"]),
        refused_by=row["refused_by"],
        title=_title(stored, flips, paths, (before, after), item.base_coin),
        because=_because(stored, close_ms, before, item.base_coin),
        formula=(stored.trend or "") if _trend_noted(stored) else "",
        flip=_flip(stored, flips, before, item.base_coin),
        nearest=flips.nearest,
        reason=row["reason"],
        unfilled_reason=row["unfilled_reason"],
        liquidations=[liquidation.sentence for liquidation in stored.liquidations],
        held_before_text=sized[0],
        held_after_text=sized[1],
        target_text=None
        if row["target_quantity_text"] is None
        else trimmed(row["target_quantity_text"]),
        gates=[_gate(gate) for gate in flips.gates],
        forecast=_forecast(shown, stored, float(bar["close"])),
        regime=row["regime"],
        confidence=as_number(row["confidence"]),
        looked=_looked(stored, close_ms),
        no_attribution=stored.no_attribution,
        notes={
            note["name"]: note["text"] if note["number"] is None else note["number"]
            for note in stored.notes
        },
        orders=paths,
        model_id=row["model_id"] or stored.run["model_id"] or "",
        hashes={
            "decision_sha256": decision_sha256(
                shown.reader.step(shown.run_id, sequence), item
            ).hex(),
            "digest": columns.rows.digest(sequence) or "",
        },
        previous=beside[True],
        following=beside[False],
    )


def _stored(shown: ShownRun, sequence: int) -> StoredDecision:
    first, last = shown.columns.span
    if 0 <= sequence < first:
        raise HttpRefusal(410, f"Decision {sequence} was pruned; the oldest step left is {first}.")
    if not 0 <= sequence <= last:
        raise HttpRefusal(404, f"The run has no decision {sequence}; its last step is {last}.")
    try:
        return stored_decision(shown.reader, shown.run_id, sequence)
    except DataInvalid as error:
        raise HttpRefusal(404, str(error)) from None


class ShownPosition(NamedTuple):
    """A signed position; in hedge mode that of both sides, and what each side holds."""

    text: str
    sides: tuple[str, ...]
    is_hedged: bool = False

    def of_side(self, action: str) -> str:
        """Return the quantity of the side that *action* is for; that of both where it has none."""
        if not self.is_hedged or action not in SIDES:
            return self.text
        return self.sides[list(SIDES).index(PositionSide(action))]

    @property
    def is_flat(self) -> bool:
        """Whether nothing is held."""
        return not any(map(float, self.sides))

    def words(self, base: str) -> str:
        """Say what is held: ``long 0.058 BTC``, of both sides ``long 0.1 BTC, short 0.1 BTC``."""
        return (
            ", ".join(side_of(quantity, base) for quantity in self.sides if float(quantity))
            or "flat"
        )


def _held(shown: ShownRun, sequence: int) -> ShownPosition:
    """Return the position after a step, in its event's instrument."""
    for row in shown.views.rows("v_equity", sequence=sequence):
        text = trimmed(row["quantity_text"] or "0")
        if json.loads(shown.views.run()["config"])["account"]["position_mode"] != "hedge":
            return ShownPosition(text, (text,))
        held = {
            position["side"]: trimmed(position["quantity_text"])
            for position in shown.views.rows("v_positions", sequence=sequence)
        }
        return ShownPosition(text, tuple(held.get(side, "0") for side in SIDES), is_hedged=True)
    return ShownPosition("0", ())


def _gate(gate: GateMargin) -> answers.GateVerdict:
    declared = GATES[gate.gate]
    return answers.GateVerdict(
        gate=gate.gate,
        words=gate.words,
        unit=gate.unit,
        measure=gate.measure,
        threshold=gate.threshold,
        at_least=declared.at_least,
        is_switch=declared.is_switch,
        passed=gate.passed,
        margin=gate.margin,
        share=gate.share,
    )


# ---------------------------------------------------------------- sentences


def side_of(held: str, base: str) -> str:
    """Return a signed position in words: ``long 0.058 BTC``, or ``flat``."""
    if float(held) == 0:
        return "flat"
    return f"{'short' if held.startswith('-') else 'long'} {held.lstrip('-')} {base}"


def _title(
    stored: StoredDecision,
    flips: Flips,
    paths: list[answers.OrderPath],
    held: tuple[ShownPosition, ShownPosition],
    base: str,
) -> str:
    before, after = held
    if stored.liquidations and stored.liquidations[0].fills:
        return f"Liquidated: {'; '.join(map(_taken, stored.liquidations[0].fills))}"
    sent = [path.order for path in paths if path.order["status"] != "REJECTED"]
    done = [order for order in sent if float(order["filled"] or 0) > 0]
    if done:
        order = done[0]
        by_side = {filled_order["position_side"]: filled_order for filled_order in reversed(done)}
        traded = ", ".join(
            _traded(filled_order, base) for filled_order in reversed(by_side.values())
        )
        traded = f"{traded[0].upper()}{traded[1:]}"
        if stored.run["strategy"] == TREND:  # its reason is a direction, and both sides have it
            return f"{traded}, from {before.words(base)} to {after.words(base)}"
        return f"{traded}: {order['reason']}"
    row = stored.decision
    if row["refused_by"] is not None:
        return _refused(row["refused_by"], flips)
    if sent:
        order = sent[0]
        verb = "buy" if order["side"] == "BUY" else "sell"
        request = f"{verb} {trimmed(order['quantity_text'])} {base}{_of_side(order)}"
        return f"Sent to {request}: {order['reason']}"
    return "Stayed flat" if after.is_flat else f"Kept {after.words(base)}"


def _traded(order: Row, base: str) -> str:
    verb = "bought" if order["side"] == Side.BUY else "sold"
    return f"{verb} {trimmed(order['filled_text'])} {base}{_of_side(order)}"


def _of_side(order: Row) -> str:
    side = order["position_side"]
    return "" if side is None else f" of the {side.lower()} side"


def _taken(fill: Row) -> str:
    side = "long" if fill["side"] == Side.SELL else "short"
    symbol = fill["instrument"].partition(":")[2]
    return f"{side} {trimmed(fill['quantity_text'])} {symbol} at {fill['price_text']}"


def _refused(name: str, flips: Flips) -> str:
    gate = next(flip for flip in flips.gates if flip.gate == name)
    if name == warm.name and gate.measure is not None:
        return f"Warming up: {gate.measure:,.0f} of {gate.threshold:,.0f} bars"
    if gate.margin is None or GATES[name].is_switch:
        return f"Refused by {short(name)}"
    way = "short by" if GATES[name].at_least else "over by"
    return f"Refused by {short(name)}, {way} {margin_text(name, gate.margin)}"


def _share(fraction: float) -> str:
    return f"{100 * fraction:.0f}\u202f%"


def _trend_noted(stored: StoredDecision) -> dict[str, Any]:
    """Return the numbers that the strategy trend noted where it decided; empty elsewhere."""
    if stored.run["strategy"] != TREND:
        return {}
    noted = {note["name"]: note["number"] for note in stored.notes}
    return noted if TREND in noted else {}


def _trend_words(
    stored: StoredDecision, noted: dict[str, Any], held: ShownPosition, base: str
) -> str:
    """Say what the strategy trend wanted, beside what was held, and which rule moved it."""
    row, trend, size = stored.decision, noted[TREND], abs(noted[SIZE])
    if trend == 0:
        wants = "There is no trend to follow, so it wants nothing held"
    else:
        way = "up" if trend > 0 else "down"
        wants = f"The trend is {way}: it wants {_share(size)} of a full position"
        if size < abs(trend):
            wants += f", not {_share(abs(trend))}, since the market moves more than the target"
    now = f"{wants}; {'nothing' if held.is_flat else held.words(base)} was held"
    if row["refused_by"] is not None or row["target_quantity_text"] is None:
        return f"{now}."
    target, band = trimmed(row["target_quantity_text"]), noted.get(BAND)
    share = "" if band is None or trend == 0 else f"{_share(band)} of a full position"
    if float(target) == float(held.of_side(row["action"])):
        return f"{now}{share and f', within its band of {share}'}, so nothing is traded."
    if not share:
        return f"{now}. The new target is {side_of(target, base)}."
    return (
        f"{now}, outside its band of {share}. The new target, at the band's edge, is "
        f"{side_of(target, base)}."
    )


def _because(stored: StoredDecision, close_ms: int, held: ShownPosition, base: str) -> str:
    row, parts = stored.decision, [stored.halt]
    if stored.run["strategy"] == TREND:
        if noted := _trend_noted(stored):
            parts.append(_trend_words(stored, noted, held, base))
        elif row["refused_by"] != warm.name:
            hour_ms = 3_600_000
            following = datetime.fromtimestamp((close_ms // hour_ms + 1) * 3600, tz=UTC)
            parts.append(f"The trend is asked again at {following:%H:%M} UTC.")
    elif row["reason"] and row["reason"] != refusal(row["refused_by"] or ""):
        text = row["reason"][:_TEXT_MAX]
        parts.append(f"{text[:1].upper()}{text[1:].rstrip('.')}.")
    if row["unfilled_reason"] and not _trend_noted(stored):
        parts.append(f"The target was not ordered in full: {row['unfilled_reason'].rstrip('.')}.")
    parts += [_part_words(strategy, base) for strategy in stored.strategies]
    return " ".join(part for part in parts if part)


def _part_words(strategy: Row, base: str) -> str:
    """Say what one of several strategies wants of the position, and what it holds of it."""
    wants, holds = (
        side_of(trimmed(strategy[f"{name}_text"]), base) if strategy[name] else "nothing"
        for name in ("target_quantity", "quantity")
    )
    parts = f"wants and holds {wants}" if wants == holds else f"wants {wants} and holds {holds}"
    return (
        f"{strategy['strategy']} {parts}: {strategy['reason'].rstrip('.')} ({stand_of(strategy)})."
    )


def _flip(stored: StoredDecision, flips: Flips, held: ShownPosition, base: str) -> str:
    """Say what would have flipped it, and what a refusal left as it was."""
    kept = held.words(base)
    if flips.allowed or kept == "flat" or stored.decision["action"] == Action.FLAT:
        return flips.sentence
    return f"{flips.sentence} {kept[:1].upper()}{kept[1:]} was kept.".lstrip()


# ---------------------------------------------------------------- forecast, attention, orders


def _forecast(shown: ShownRun, stored: StoredDecision, close: float) -> answers.Forecast | None:
    row, columns = stored.decision, shown.columns
    if row["horizon"] is None or row["mean_return"] is None:
        return None
    mean, stdev = float(row["mean_return"]), as_number(row["stdev_return"])
    opened_ms = np.array([row["open_time_ms"]])
    target_ms = int(columns.times.opens_later(opened_ms, row["horizon"])[0])
    outcome = None
    if (target := columns.sequence_at(row["instrument"], target_ms)) is not None:
        (bar,) = shown.views.rows("v_bars", sequence=target)
        outcome = math.log(bar["close"] / close)
    quantiles = []
    if stdev is not None:
        quantiles = [(level, mean + z * stdev) for level, z in zip(LEVELS, NORMAL, strict=True)]
    return answers.Forecast(
        horizon=row["horizon"],
        mean_return=mean,
        stdev_return=stdev,
        p_down=as_number(row["p_down"]),
        p_flat=as_number(row["p_flat"]),
        p_up=as_number(row["p_up"]),
        quantiles=quantiles,
        comes_ms=columns.times.close_ms(target_ms),
        came=outcome,
    )


def _looked(stored: StoredDecision, close_ms: int) -> answers.AttendedBlocks | None:
    if not stored.buckets:
        return None
    within, total = None, 0.0
    for bucket in stored.buckets:
        total += abs(bucket["weight"])
        if total >= 0.5:
            start = bucket["from_open_time_ms"]
            within = None if start is None else close_ms - start
            break
    return answers.AttendedBlocks(
        method=stored.explained["method"],
        buckets=[
            answers.Bucket(block["from_open_time_ms"], block["until_open_time_ms"], block["weight"])
            for block in stored.buckets
        ],
        half_within_ms=within,
        error=float(stored.decision["l1_error"] or 0.0),
        content_share=stored.content_share,
    )


def _orders(shown: ShownRun, sequence: int) -> list[answers.OrderPath]:
    """Return the orders that were born at *sequence*, each with its fills and their ledger.

    An order's ``created_ms`` is when the engine saw its bar, and a fill's ``filled_ms`` the time of
    its price: the open of a bar that closed later. So that all stand on one clock, fills and
    ledger have ``seen_ms``, when the engine saw the event that filled.
    """
    paths = []
    for order_id in shown.columns.rows.born_orders(sequence):
        fills = shown.views.rows("v_fills", order_id=order_id)
        steps = sorted({fill["sequence"] for fill in fills})
        events = shown.views.rows("v_events", sequence=steps) if steps else []
        seen_ms = {row["sequence"]: row["seen_ms"] for row in events}
        ledger = [
            row
            for row in (shown.views.rows("v_ledger", sequence=steps) if steps else ())
            if row["order_id"] in (order_id, None)
        ]
        paths += [
            answers.OrderPath(
                _clean(order),
                [_clean(row) | {"seen_ms": seen_ms.get(row["sequence"])} for row in fills],
                [_clean(row) | {"seen_ms": seen_ms.get(row["sequence"])} for row in ledger],
            )
            for order in shown.views.rows("v_orders", order_id=order_id)
        ]
    return paths


def _clean(row: Row) -> dict[str, Any]:
    """Return *row* with numbers that are not finite as null."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in row.items()
    }
