"""``v_strategy_decisions``: what each of several strategies on one account decided, and earned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracepaper.storage.database.chunks import WITHIN, Span, select
from tracepaper.storage.database.view_columns import (
    INSTRUMENT,
    MEASURE,
    View,
    ViewColumn,
    at_step,
    exact,
    moment,
    of_step,
    shared_row,
)
from tracepaper.storage.record.answer_json import KeptDecision
from tracepaper.storage.record.columns import MONEY, QUANTITY
from tracepaper.storage.record.decode import FILL
from tracepaper.strategies.types.decisions import Fill, FillModel, SinceDecided, Step

if TYPE_CHECKING:
    import sqlite3

    from tracepaper.storage.record.decode import StepDecoder


_FIELDS: Final = KeptDecision.__struct_fields__


def _kept(name: str) -> str:
    """Return how a field of the stored decision is read."""
    return f"json_extract(m.decided, '$[{_FIELDS.index(name)}]')"


_MARKED: Final = "coalesce(m.account_unrealized_pnl, m.unrealized_pnl)"
# A measure that is not the account's.
_OWN: Final = f"'$[{_FIELDS.index('measures')}].\"' || g.gate || '\"'"
_GATES: Final = (
    f"(SELECT json_group_object(g.gate, json_array(CASE WHEN json_type(m.decided, {_OWN}) IS NULL "
    f"THEN {MEASURE} ELSE json_extract(m.decided, {_OWN}) END, g.threshold, "
    f"{_kept('passed')} >> g.ordinal & 1)) FROM gate_sets g "
    f"WHERE g.run_key = r.run_key AND g.gate_set = {_kept('gate_set')})"
)

V_STRATEGY_DECISIONS: Final = View(
    "v_strategy_decisions",
    "what one of several strategies on one account decided at a bar, and its sub-account then",
    (
        *of_step("s"),
        INSTRUMENT,
        *moment("open_time_ms", "s.open_time_ms", "the bar that was decided"),
        ViewColumn("strategy", "h.twin", "its name in [strategies]"),
        ViewColumn("action", _kept("action"), "`LONG`, `SHORT`, `FLAT` or `HOLD`"),
        ViewColumn(
            "allowed",
            f"{_kept('refused_by')} IS NULL",
            "1 if every gate of its own passed",
            "INTEGER",
            is_flag=True,
        ),
        ViewColumn("refused_by", _kept("refused_by"), "the first that failed; null if none"),
        *exact("target_quantity", _kept("target"), QUANTITY, "its part wanted, signed"),
        ViewColumn("reason", _kept("reason"), "the strategy's reason"),
        ViewColumn(
            "unfilled_reason",
            _kept("unfilled_reason"),
            "why its target is neither reached nor ordered; null where it is",
        ),
        ViewColumn(
            "regime",
            f"coalesce({_kept('regime')}, 'UNKNOWN')",
            "`MOMENTUM`, `MEAN_REVERSION`, `MIXED` or `UNKNOWN`",
        ),
        ViewColumn(
            "gates", _GATES, "JSON: of each gate its measure, its threshold, and 1 if it passed"
        ),
        ViewColumn("note", _kept("note"), "JSON of the numbers and texts that it noted; else null"),
        *exact("quantity", "h.quantity", QUANTITY, "its part of the position, signed"),
        *exact("realized_pnl", "h.account_realized_pnl", MONEY, "its profit of what was closed"),
        *exact("unrealized_pnl", _MARKED, MONEY, "its profit of what is open, at the mark"),
        *exact("fees_paid", "h.account_fees_paid", MONEY, "its fees"),
        *exact("funding_paid", "h.account_funding_paid", MONEY, "its funding, positive where paid"),
        *exact("equity", f"coalesce(m.equity, h.cash + {_MARKED})", MONEY, "of its sub-account"),
    ),
    "FROM runs r JOIN steps s ON s.run_key = r.run_key AND EXISTS (SELECT 1 FROM twin_steps) "
    f"AND s.open_time_ms IS NOT NULL CROSS JOIN twin_steps m ON {at_step('m')} "
    "AND m.decided IS NOT NULL "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = s.instrument "
    f"LEFT JOIN answers a ON {at_step('a')} "
    f"JOIN holdings h ON {shared_row('h', 'm.holding')} AND h.book = m.book",
)
"""Its sub-account is the row of that name in ``v_twin_equity``."""


def since_parts(
    connection: sqlite3.Connection,
    decoder: StepDecoder,
    decided: Step | None,
    instrument: str,
    span: Span,
) -> dict[str, SinceDecided]:
    """Return each strategy's answer at the step *decided*, its outcome and its fills since.

    *span* are the steps that are looked at.
    """
    if decided is None or not decided.strategies:
        return {}
    span = (span[0], decided.sequence, span[-1])
    fills: dict[str, list[Fill]] = {}
    for row in connection.execute(select("fills", f"{WITHIN} AND book > 0"), span):
        fill = decoder.fill(row)
        # What crossed at that very decision was no news to it.
        is_news = row[FILL.sequence] > decided.sequence or fill.model is FillModel.CROSSED
        if is_news and fill.instrument == instrument:
            fills.setdefault(row[FILL.twin], []).append(fill)
    return {
        decision.strategy: SinceDecided(decision.outcome, tuple(fills.get(decision.strategy, ())))
        for decision in decided.strategies
    }
