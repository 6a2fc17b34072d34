"""One decision as a document, which the page's card draws and ``explain`` prints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.replay.document.values import (
    PAIR,
    Figure,
    Form,
    Paragraph,
    Part,
    Table,
    TitledParts,
    of_field,
    of_row,
    table,
    table_of,
)
from tracepaper.replay.explain.decision import (
    Counterfactuals,
    GateMargin,
    NearestChange,
    StoredDecision,
    counterfactuals_of,
    missed_text,
    stored_decision,
    verdict_of,
)
from tracepaper.replay.explain.liquidations import capital
from tracepaper.replay.report.listed_orders import outcome
from tracepaper.replay.report.states import span_text, time_text
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row
from tracepaper.strategies.builtin import BAND, SIZE, TREND
from tracepaper.strategies.gates.declared import gap, late, plausible, stale, warm
from tracepaper.strategies.gates.gate import GATES, measured, refusal, unit_beside
from tracepaper.strategies.position_text import FLAT
from tracepaper.strategies.types.decisions import Action, OrderStatus, Regime
from tracepaper.strategies.types.market import Side
from tracepaper.strategies.units import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    iso,
    money_text,
    percent,
    without_zeros,
)

BASIS_POINTS: Final = 1e4
BLOCKS_SHOWN: Final = 12
NOT_WHY: Final = "not why the price will move"
ATTENDED: Final = f"where attention flowed; {NOT_WHY}"
ADDED: Final = f"relevance: signed shares, whose sizes sum to 1; {NOT_WHY}"
_BANDS: Final = ((0.6744897501960817, 50), (1.6448536269514722, 90))
"""Central intervals of a normal distribution: half width in standard deviations, and per cent."""
_DATA_GATES: Final = (late.name, gap.name, plausible.name, stale.name)
"""Gates that are never near their thresholds with a sound feed."""
_REASON_MAX: Final = 400
"""Characters of a strategy's reason that are shown."""


def read_decision(database: Path, run_id: str, sequence: int) -> tuple[StoredDecision, TitledParts]:
    """Read one decision of *database*; raise ``DataInvalid`` if it has none."""
    with Reader.open(database) as reader:
        columns = RunColumns(reader, run_id)
        stored = stored_decision(reader, columns, sequence)
        return stored, decision_document(columns, stored)


def decision_document(columns: RunColumns, stored: StoredDecision) -> TitledParts:
    """Return a decision's document: its reasons, what would have changed it, and its result."""
    row, sequence = stored.decision, stored.decision["sequence"]
    base = columns.instruments[row["instrument"]].base_coin
    close_ms = columns.times.close_ms(row["open_time_ms"])
    sent_ids = set(columns.rows.born_orders(sequence))
    orders = [
        _history(columns, order)
        for order_id in dict.fromkeys(
            [*sorted(sent_ids), *(row["order_id"] for row in stored.orders)]
        )
        for order in columns.views.rows("v_orders", order_id=order_id)
    ]
    sent = [history for history in orders if history.order["order_id"] in sent_ids]
    before = _held(columns, sequence)
    filled = [fill["sequence"] for history in sent for fill in history.fills]
    after = _held(columns, max(filled)) if filled else before
    counterfactuals = counterfactuals_of(stored)
    kept = _flip(stored, counterfactuals, before, base)
    parts: list[Part] = [Paragraph(each.sentence, "strong") for each in stored.liquidations]
    if reasons := f"{_reasons(stored, close_ms, before, base)} {kept}".strip():
        parts.append(Paragraph(reasons))
    if stored.position != FLAT:
        parts.append(Paragraph(f"After this close: {stored.position}."))
    parts += [Paragraph(sentence, "detail") for sentence in _details(stored, counterfactuals)]
    parts += [history.table for history in orders]
    gates = table("gates", "Gates", _GATES, counterfactuals.gates)
    parts.append(replace(gates, look="gauges", whole=True))
    if row["horizon"] is not None and row["mean_return"] is not None:
        parts.append(_forecast(row, realised(columns, row), close_ms))
    if stored.buckets or row["horizon"] is not None:
        parts.append(attention_table(stored, close_ms))
    parts += _size(row, before, after, base)
    if stored.notes:
        noted = table_of("notes", "Noted", PAIR, map(_noted, stored.notes))
        parts.append(replace(noted, look="pairs"))
    title = _title(
        stored, counterfactuals, [history.order for history in sent], (before, after), base
    )
    return TitledParts(title, tuple(parts))


# ---------------------------------------------------------------- what was held


def decision_title(stored: StoredDecision) -> str:
    """Return the instrument and the bar of a decision."""
    decision = stored.decision
    return f"{decision['instrument']} at {iso(decision['open_time_ms'])}"


def stored_parts(
    stored: StoredDecision, titled: TitledParts, nearest: Sequence[NearestChange] = ()
) -> Iterator[Part]:
    """Yield the parts of one decision: the run's halts, *titled*, what would have traded."""
    yield from (Paragraph(state.sentence, "warning") for state in stored.states)
    decision = stored.decision
    verdict, reason = verdict_of(decision)
    yield Paragraph(
        f"{decision['instrument']} at {decision['open_time_iso']}: "
        f"{decision['action']} ({verdict}){reason and f', {reason}'}",
        "strong",
    )
    yield Paragraph(titled.title)
    yield from nearest_parts(nearest)
    yield from map(_with_gates_in_short, titled.parts)
    if not stored.has_forecast:
        yield Paragraph(stored.no_attribution or "")


def nearest_parts(nearest: Sequence[NearestChange]) -> Iterator[Paragraph]:
    """Yield one sentence for each change."""
    yield from (Paragraph(change.sentence) for change in nearest)


def _with_gates_in_short(part: Part) -> Part:
    """Return a table of gates with those that could not matter in one line; others as they are."""
    if not isinstance(part, Table) or part.look != "gauges":
        return part
    rows, passed = [], []
    for row, gate in zip(part.rows, part.records(), strict=True):
        if gate["drawn"] or not gate["passed"]:
            rows.append(row)
        else:
            passed.append(str(gate["gate"]))
    note = f"{'Also passed' if rows else 'Passed'}: {', '.join(passed)}."
    return replace(part, rows=tuple(rows), notes=(*part.notes, note) if passed else part.notes)


def _held(columns: RunColumns, sequence: int) -> str:
    """Return the position in the event's instrument after a step, a signed quantity."""
    rows = columns.views.rows("v_equity", sequence=sequence)
    return without_zeros(rows[0]["quantity_text"] or "0") if rows else "0"


def _signed(held: str, base: str) -> str:
    """Return a signed position in words: ``long 0.058 BTC``, or ``flat``."""
    if float(held) == 0:
        return "flat"
    return f"{'short' if held.startswith('-') else 'long'} {held.lstrip('-')} {base}"


# ---------------------------------------------------------------- sentences


def _title(
    stored: StoredDecision,
    counterfactuals: Counterfactuals,
    orders: list[Row],
    held: tuple[str, str],
    base: str,
) -> str:
    before, after = held
    if stored.liquidations and stored.liquidations[0].fills:
        return f"Liquidated: {'; '.join(map(_liquidated, stored.liquidations[0].fills))}"
    sent = [order for order in orders if order["status"] != OrderStatus.REJECTED]
    filled = [order for order in sent if float(order["filled"] or 0) > 0]
    if filled:
        traded = capital(_traded(filled[0], base))
        if stored.run["strategy"] == TREND:  # its reason is a direction
            return f"{traded}, from {_signed(before, base)} to {_signed(after, base)}"
        return f"{traded}: {filled[0]['reason']}"
    if (refused_by := stored.decision["refused_by"]) is not None:
        return _refused(stored, refused_by, counterfactuals)
    if sent:
        order = sent[0]
        verb = "buy" if order["side"] == Side.BUY else "sell"
        quantity = without_zeros(order["quantity_text"])
        return f"Sent to {verb} {quantity} {base}: {order['reason']}"
    return f"Kept {_signed(after, base)}" if float(after) else "Stayed flat"


def _traded(order: Row, base: str) -> str:
    verb = "bought" if order["side"] == Side.BUY else "sold"
    return f"{verb} {without_zeros(order['filled_text'])} {base}"


def _liquidated(fill: Row) -> str:
    side = "long" if fill["side"] == Side.SELL else "short"
    symbol = fill["instrument"].partition(":")[2]
    return f"{side} {without_zeros(fill['quantity_text'])} {symbol} at {fill['price_text']}"


def _refused(stored: StoredDecision, name: str, counterfactuals: Counterfactuals) -> str:
    gate = next(flip for flip in counterfactuals.gates if flip.gate == name)
    if name == warm.name and gate.measure is not None:
        bars = f"{gate.measure:,.0f} of {gate.threshold:,.0f} bars"
        return f"Warming up: {bars if stored.warming is None else stored.warming.warming}"
    return ", ".join(filter(None, (f"Refused by {name}", missed_text(name, gate.margin))))


def _trend_noted(stored: StoredDecision) -> dict[str, Any]:
    """Return the numbers that the strategy trend noted; empty if it did not decide here."""
    if stored.run["strategy"] != TREND:
        return {}
    noted = {note["name"]: note["number"] for note in stored.notes}
    return noted if TREND in noted else {}


def _trend_words(stored: StoredDecision, noted: dict[str, Any], held: str, base: str) -> str:
    """Return what the strategy trend wanted, what was held, and the rule that applied."""
    row, trend, size = stored.decision, noted[TREND], abs(noted[SIZE])
    if trend == 0:
        wants = "There is no trend to follow, so it wants nothing held"
    else:
        direction = "up" if trend > 0 else "down"
        wants = f"The trend is {direction}: it wants {percent(size, 0)} of a full position"
        if size < abs(trend):
            wants += f", not {percent(abs(trend), 0)}, since the market moves more than the target"
    text = f"{wants}; {_signed(held, base) if float(held) else 'nothing'} was held"
    if row["refused_by"] is not None or row["target_quantity_text"] is None:
        return f"{text}."
    target, band = without_zeros(row["target_quantity_text"]), noted.get(BAND)
    share = "" if band is None or trend == 0 else f"{percent(band, 0)} of a full position"
    if float(target) == float(held):
        return f"{text}{share and f', within its band of {share}'}, so nothing is traded."
    if not share:
        return f"{text}. The new target is {_signed(target, base)}."
    return (
        f"{text}, outside its band of {share}. The new target, at the band's edge, is "
        f"{_signed(target, base)}."
    )


def _reasons(stored: StoredDecision, close_ms: int, held: str, base: str) -> str:
    row, parts = stored.decision, [stored.halt]
    noted = _trend_noted(stored)
    if stored.run["strategy"] == TREND:
        if noted:
            parts.append(_trend_words(stored, noted, held, base))
        elif row["refused_by"] != warm.name:
            following = datetime.fromtimestamp((close_ms // HOUR_MS + 1) * 3600, tz=UTC)
            parts.append(f"The trend next decides at {following:%H:%M} UTC.")
    elif row["reason"] and row["reason"] != refusal(row["refused_by"] or ""):
        parts.append(f"{capital(row['reason'][:_REASON_MAX]).rstrip('.')}.")
    if row["unfilled_reason"] and not noted:
        parts.append(f"The target was not ordered in full: {row['unfilled_reason'].rstrip('.')}.")
    return " ".join(part for part in parts if part)


def _flip(stored: StoredDecision, counterfactuals: Counterfactuals, held: str, base: str) -> str:
    """Return what would have flipped the verdict, and the position that a refusal kept."""
    kept = _signed(held, base)
    if counterfactuals.allowed or kept == "flat" or stored.decision["action"] == Action.FLAT:
        return counterfactuals.sentence
    return f"{counterfactuals.sentence} {capital(kept)} was kept.".lstrip()


def _details(stored: StoredDecision, counterfactuals: Counterfactuals) -> Iterator[str]:
    """Yield the numbers behind the decision, one sentence each."""
    if stored.trend is not None:
        yield stored.trend
    elif (side := counterfactuals.side) is not None:
        pointed = {
            "LONG": "The forecast pointed up",
            "SHORT": "The forecast pointed down",
        }.get(side.side, "The mean and the classes of the forecast disagreed")
        yield (
            f"{pointed}: the mean is {side.mean_return * BASIS_POINTS:+.2f} bp from zero "
            f"({percent(abs(side.mean_over_stdev), 1)} of its standard deviation), and P(up) − "
            f"P(down) is {side.lean:+.3f}; both must change sign to turn it."
        )
    also_forecast = _also_forecast(stored.decision)
    worth = stored.entropy_worth, stored.reweighting, stored.attended_sentence
    yield from filter(None, (also_forecast, *worth))


def _also_forecast(decision: Mapping[str, Any]) -> str:
    """Return the model's other forecasts at the gates' horizon; empty if it gives none."""
    if decision["horizon"] is None:
        return ""
    parts = []
    if (regime := decision["regime"]) != Regime.UNKNOWN:  # a model without attention has none
        parts.append(f"the regime is {regime}")
    if (learned := decision["learned_regime"]) is not None:
        parts.append(f"the network's regime is {learned}")
    if (cell := decision["regime_cell"]) is not None:
        parts.append(f"the model card's regime is {cell}")
    if (loss := decision["expected_shortfall_long"]) is not None:
        parts.append(
            f"in the worst 2.5 % of cases a long loses {_bp(loss)} bp and a short "
            f"{_bp(decision['expected_shortfall_short'])} bp on average"
        )
    if (fall := decision["expected_drawdown"]) is not None:
        parts.append(f"a fall of {_bp(fall)} bp on the way is as likely as not")
    if (allocation := decision["learned_allocation"]) is not None:
        parts.append(f"the network itself would hold {allocation:+.3f}")
    if (factor := decision["size_factor"]) is not None:
        parts.append(f"sized {factor:.3f} by confidence in its volatility")
    return capital(f"{'; '.join(parts)}.") if parts else ""


def _bp(value: float) -> str:
    return f"{BASIS_POINTS * value:,.1f}"


# ---------------------------------------------------------------- gates, forecast, attention


def _is_drawn(gate: GateMargin) -> bool:
    """Whether a gauge of the gate tells the reader anything."""
    declared = GATES[gate.gate]
    has_margin = not (declared.is_capped or gate.gate in _DATA_GATES)
    return not declared.is_switch and (has_margin or not gate.passed)


_GATES: Final = (
    of_field("gate", "gate", "text"),
    Figure[GateMargin](
        "measure", "measure", "exact", lambda gate: measured(gate.gate, gate.measure)
    ),
    Figure[GateMargin](
        "threshold", "threshold", "exact", lambda gate: measured(gate.gate, gate.threshold)
    ),
    Figure[GateMargin](
        "margin", "margin", "exact", lambda gate: measured(gate.gate, gate.margin, signed=True)
    ),
    Figure[GateMargin](
        "share", "share", "share", lambda gate: gate.share if gate.is_gradual else None
    ),
    Figure[GateMargin]("unit", "unit", "text", lambda gate: unit_beside(gate.gate)),
    of_field("passed", "", "mark"),
    of_field("meaning", "what it measures", "text", wide=True),
    Figure[GateMargin](
        "bound", "", "text", lambda gate: "≥" if GATES[gate.gate].at_least else "≤", wide=True
    ),
    Figure[GateMargin]("drawn", "", "mark", _is_drawn, wide=True),
)
_SHARE: Final[Mapping[str, Form]] = {"name": "text", "share": "exact", "bar": "bar"}
_MOMENT: Final[Mapping[str, Form]] = {"time": "second", "event": "text"}


class ForecastOutcome(NamedTuple):
    """When the forecast bar closes, and the realised log return; None before that."""

    comes_ms: int
    realised: float | None


def realised(columns: RunColumns, decision: Row) -> ForecastOutcome:
    """Return the outcome of a decision's forecast at the gates' horizon."""
    opened_ms = np.array([decision["open_time_ms"]])
    target_ms = int(columns.times.opens_later(opened_ms, decision["horizon"])[0])
    change = None
    if (target := columns.sequence_at(decision["instrument"], target_ms)) is not None:
        closes = [
            columns.views.rows("v_bars", sequence=sequence)[0]["close"]
            for sequence in (decision["sequence"], target)
        ]
        change = math.log(float(closes[1]) / float(closes[0]))
    return ForecastOutcome(columns.times.close_ms(target_ms), change)


def _forecast(row: Row, outcome: ForecastOutcome, close_ms: int) -> Table:
    mean, stdev = row["mean_return"], row["stdev_return"]
    stated = f"{mean * BASIS_POINTS:+,.1f}"
    stated += " bp" if stdev is None else f" ± {_bp(stdev)} bp"
    outcome_text = f"comes at {_clock(outcome.comes_ms, close_ms)}"
    if outcome.realised is not None:
        inside = ""
        if stdev is not None:
            away = abs(outcome.realised - mean) / stdev if stdev else math.inf
            within = [share for width, share in _BANDS if away <= width]
            inside = (
                f", inside the {within[0]} % interval" if within else ", outside the 90 % interval"
            )
        outcome_text = f"realised {outcome.realised * BASIS_POINTS:+,.1f} bp{inside}"
    shares = [(name, row[f"p_{name}"]) for name in ("down", "flat", "up")]
    rows = [(name, percent(share, 0), share) for name, share in shares if share is not None]
    title = f"Forecast, {row['horizon']} bars"
    return replace(table_of("forecast", title, _SHARE, rows, (stated, outcome_text)), look="stack")


def attention_table(stored: StoredDecision, close_ms: int) -> Table:
    """Return the blocks of bars by their share of the attention, or why there are none.

    Shares of relevance are signed.
    """
    heaviest = sorted(stored.buckets, key=lambda row: -abs(row["weight"]))
    sizes = [abs(row["weight"]) for row in heaviest if row["bucket"] != "older"]
    most = max(sizes, default=0.0) or 1.0
    figures = (
        Figure[Row](
            "from", "from", "minute",
            lambda row: "older" if row["from_open_time_ms"] is None else row["from_open_time_ms"],
        ),
        of_row("weight", "weight", "measure"),
        Figure[Row](
            "bar", "", "bar",
            # "older" is not one block, so it gets no bar.
            lambda row: None if row["bucket"] == "older" else abs(row["weight"]) / most,
        ),
    )  # fmt: skip
    notes = (
        [stored.no_attribution]
        if stored.no_attribution
        else list(_attention_notes(stored, close_ms))
    )
    title, aside = "Where it looked", NOT_WHY
    if stored.is_relevance:
        title, aside = "What moved its mean", f"relevance; {NOT_WHY}"
    blocks = table("looked", title, figures, heaviest, notes=notes, shown=BLOCKS_SHOWN)
    return replace(blocks, look="columns", aside=aside)


def _attention_notes(stored: StoredDecision, close_ms: int) -> Iterator[str]:
    total = 0.0
    for bucket in stored.buckets:
        total += abs(bucket["weight"])
        if total >= 0.5:
            if (start := bucket["from_open_time_ms"]) is not None:
                yield f"half of it in the last {span_text(close_ms - start)}"
            break
    entropies = stored.decision["rollout_entropy"], 1.0 - stored.decision["confidence_entropy"]
    of_rollout, of_heads = (percent(share, 1) for share in entropies)
    yield f"entropy by age {of_rollout} of the maximum; {of_heads} in the heads on average"
    if (share := stored.content_share) is not None:
        yield (
            f"The rollout differs from that of uniform attention by {percent(share, 1)}; the rest "
            "is the profile of a network that attends to all bars equally."
        )


def _size(row: Row, held: str, held_after: str, base: str) -> Iterator[Part]:
    """Yield the target, if the position does not have it."""
    target, unfilled = row["target_quantity_text"], row["unfilled_reason"]
    target_text = None if target is None else without_zeros(target)
    if (target_text is None or target_text == held_after) and not unfilled:
        return
    pairs = [("held", held)] + ([] if target_text is None else [("asked", f"{target_text} {base}")])
    notes = [f"No order: {unfilled}."] if unfilled else []
    yield replace(table_of("size", "Size", PAIR, pairs, notes), look="pairs")


def _noted(row: Row) -> tuple[str, str]:
    text = row["text"]
    if text is None:
        text = "no finite number" if row["number"] is None else f"{row['number']:,.6g}"
    return row["name"], text


def _clock(time_ms: int, reference_ms: int) -> str:
    """Return a time, with its day unless that is the day of *reference_ms*."""
    text = time_text(time_ms)
    return text.partition(" ")[2] if time_ms // DAY_MS == reference_ms // DAY_MS else text


# ---------------------------------------------------------------- orders


class OrderHistory(NamedTuple):
    """An order, its fills and the table of its events."""

    order: Row  # of ``v_orders``
    fills: list[Row]  # of ``v_fills``
    table: Table


def _history(columns: RunColumns, order: Row) -> OrderHistory:
    """Return *order* with its fills and ledger lines in time, a step's fills before its ledger.

    An order's ``created_ms`` is when the engine saw its bar. A fill's ``filled_ms`` is the time of
    its price, such as the open of a bar that closed later. To have one clock, the time of a fill
    here is when the engine saw the event that filled it.
    """
    views, order_id = columns.views, order["order_id"]
    fills = views.rows("v_fills", order_id=order_id)
    steps = sorted({fill["sequence"] for fill in fills})
    events = views.rows("v_events", sequence=steps) if steps else []
    seen_ms = {row["sequence"]: row["seen_ms"] for row in events}
    booked = views.rows("v_ledger", sequence=steps) if steps else []
    moments: list[tuple[int | None, str]] = [(order["created_ms"], _sent(order))]
    for step in steps:
        texts = [_filled(fill, seen_ms.get(step)) for fill in fills if fill["sequence"] == step]
        texts += [
            f"{row['kind'].replace('_', ' ')} {money_text(row['amount'], signed=True)}, "
            f"balance {money_text(row['balance'])}"
            for row in booked
            if row["sequence"] == step and row["order_id"] in (order_id, None)
        ]
        moments += [(seen_ms.get(step), text) for text in texts]
    if order["status"] in (OrderStatus.CANCELED, OrderStatus.REJECTED):
        moments.append((order["until_ms"], outcome(order)))
    timeline = table_of("order", f"Order {order_id}", _MOMENT, moments)
    status = order["status"].lower().replace("_", " ")
    return OrderHistory(order, fills, replace(timeline, look="timeline", aside=status))


def _sent(order: Row) -> str:
    price = order["limit_price_text"] or order["trigger_price_text"]
    text = f"{'buy' if order['side'] == Side.BUY else 'sell'} "
    text += f"{without_zeros(order['quantity_text'])} {order['kind'].lower()}"
    text += f" at {price}" if price else ""
    return text + (f", {order['role'].lower()}" if order["role"] not in ("SIGNAL", "") else "")


def _filled(fill: Row, seen_ms: int | None) -> str:
    """Return a fill in words, with the time of its price if that was another minute."""
    filled_ms = fill["filled_ms"]
    price = ""
    if seen_ms is not None and seen_ms // MINUTE_MS != filled_ms // MINUTE_MS:
        price = f", the price of {_clock(filled_ms, seen_ms)}"
    liquidity = f" ({fill['liquidity'].lower()})" if fill["liquidity"] else ""
    return (
        f"filled {without_zeros(fill['quantity_text'])} at {Decimal(fill['price_text']):,}{price}, "
        f"fee {money_text(fill['fee'])}{liquidity}"
    )
