"""Views of decisions, their gates and their explanations."""

from __future__ import annotations

from typing import Final

from tracepaper.storage.rows import ANSWER_GATES, STEP_GATES
from tracepaper.storage.view_parts import (
    INSTRUMENT,
    QUANTITY,
    Column,
    View,
    digest,
    exact,
    moment,
    of_step,
    shared_row,
)
from tracepaper.strategies.types import BLOCK_BARS

# Only a step that decided names a row of ``outcomes``, so the join leaves out all others.
_DECIDED: Final = (
    "FROM runs r JOIN steps s ON s.run_key = r.run_key "
    "JOIN bars b ON b.step = s.step AND b.run_key = r.run_key "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = b.instrument "
    f"JOIN outcomes o ON o.step = {shared_row('s.outcome')} "
)

V_DECISIONS: Final = View(
    "v_decisions",
    "a decision: one for every closed bar of the run's period, refusals too",
    (
        *of_step("s"),
        INSTRUMENT,
        *moment("open_time_ms", "b.open_time_ms", "the bar that was decided"),
        Column("action", "o.action", "`LONG`, `SHORT`, `FLAT` or `HOLD`"),
        Column("allowed", "o.allowed", "1 if every gate passed", "INTEGER"),
        Column("refused_by", "o.refused_by", "the first gate that failed; null if none"),
        Column("horizon", "a.horizon", "bars; the horizon of the next six columns", "INTEGER"),
        Column("mean_return", "a.mean_return", "expected log return, as the model gave it", "REAL"),
        Column("stdev_return", "a.stdev_return", "its standard deviation", "REAL"),
        Column("p_down", "a.p_down", "probability of a fall", "REAL"),
        Column("p_flat", "a.p_flat", "probability of neither", "REAL"),
        Column("p_up", "a.p_up", "probability of a rise", "REAL"),
        Column("volatility", "a.volatility", "expected volatility of the return", "REAL"),
        Column(
            "confidence", "a.confidence", "1 less the mean normalised entropy of attention", "REAL"
        ),
        Column("content_free", "a.content_free", "what mask and encoding alone would give", "REAL"),
        Column("regime", "o.regime", "`MOMENTUM`, `MEAN_REVERSION`, `MIXED` or `UNKNOWN`"),
        Column(
            "recent_mass", "a.recent_mass", "rollout on the newest quarter of the context", "REAL"
        ),
        Column("older_mass", "a.older_mass", "rollout before the oldest bucket", "REAL"),
        Column("shift", "a.shift", "Jensen-Shannon distance from the last bar's rollout", "REAL"),
        Column("l1_error", "a.l1_error", "bound on what the weights miss of 1", "REAL"),
        *exact("target_quantity", "s.target_quantity", QUANTITY, "position wanted, signed"),
        Column("reason", "o.reason", "the strategy's reason"),
        Column(
            "unfilled_reason",
            "o.unfilled_reason",
            "why the target is neither reached nor ordered; null where it is",
        ),
        Column(
            "late_deadline_ms",
            "a.late_deadline_ms",
            "the deadline the forecaster missed",
            "INTEGER",
        ),
        Column("model_id", "coalesce(a.model_id, r.model_id)", "the model that decided"),
        digest("window_sha256", "s.window_sha256", "hash of the bars it saw"),
        digest("decision_sha256", "s.decision_sha256", "what parity compares"),
        digest("digest", "s.digest", "link of the chain"),
    ),
    _DECIDED + "LEFT JOIN answers a ON a.step = s.step",
)

_MEASURES: Final = " ".join(
    f"WHEN '{gate}' THEN {table}.measure_{gate.replace('.', '_')}"
    for table, gates in (("s", STEP_GATES), ("a", ANSWER_GATES))
    for gate in gates
)

V_GATES: Final = View(
    "v_gates",
    "one gate's verdict on a decision",
    (
        *of_step("s"),
        Column(
            "ordinal", "g.ordinal", "place of the gate; the first that fails refuses", "INTEGER"
        ),
        Column("gate", "g.gate", "its name"),
        Column(
            "measure", f"CASE g.gate {_MEASURES} END", "null where it could not be computed", "REAL"
        ),
        Column("threshold", "g.threshold", "what the measure was held against", "REAL"),
        Column("passed", "o.passed >> g.ordinal & 1", "1 or 0", "INTEGER"),
    ),
    "FROM runs r JOIN steps s ON s.run_key = r.run_key AND s.outcome IS NOT NULL "
    f"JOIN outcomes o ON o.step = {shared_row('s.outcome')} "
    "JOIN gate_sets g ON g.run_key = r.run_key AND g.gate_set = o.gate_set "
    "LEFT JOIN answers a ON a.step = s.step",
)


def _byte(place: int) -> str:
    """Return byte *place* of bucket ``n`` as a number."""
    byte = f"hex(substr(a.buckets, n.key * 4 + {place + 1}, 1))"
    high, low = (f"instr('123456789ABCDEF', substr({byte}, {at}, 1))" for at in (1, 2))
    return f"({high} * 16 + {low})"


# A little-endian float32, read with integers alone: mantissa / 2^shift. Weights are not negative.
# SQLite gives <<, >>, & and | one precedence, so every pair has its parentheses.
_EXPONENT: Final = f"((({_byte(3)} & 127) << 1) | ({_byte(2)} >> 7))"
_MANTISSA: Final = f"((({_byte(2)} & 127) << 16) | ({_byte(1)} << 8) | {_byte(0)})"
_SHIFT: Final = f"(150 - max({_EXPONENT}, 1))"
_WEIGHT: Final = (
    f"({_MANTISSA} + CASE WHEN {_EXPONENT} > 0 THEN 8388608 ELSE 0 END) * 1.0 "
    f"/ (1 << min({_SHIFT}, 60)) / (1 << max(min({_SHIFT} - 60, 60), 0)) "
    f"/ (1 << max({_SHIFT} - 120, 0))"
)
# One row more than there are buckets: '00' x n becomes the JSON array '[0,0,…]'.
_PLACES: Final = (
    "json_each('[' || substr(replace(hex(zeroblob(length(a.buckets) / 4 + 1)), '00', ',0'), 2) "
    "|| ']')"
)
_BLOCK_MS: Final = f"({BLOCK_BARS} * r.interval_ms)"
_IS_BUCKET: Final = "n.key < length(a.buckets) / 4"
_FROM_MS: Final = (
    f"CASE WHEN {_IS_BUCKET} THEN (b.open_time_ms / {_BLOCK_MS} - n.key) * {_BLOCK_MS} END"
)
_UNTIL_MS: Final = (
    f"CASE WHEN {_IS_BUCKET} AND n.key = 0 THEN b.open_time_ms + r.interval_ms "
    f"ELSE (b.open_time_ms / {_BLOCK_MS} - n.key + 1) * {_BLOCK_MS} END"
)

V_EXPLANATIONS: Final = View(
    "v_explanations",
    "where a decision looked: one bucket of 64 bars of absolute time",
    (
        *of_step("s"),
        Column(
            "bucket",
            f"CASE WHEN {_IS_BUCKET} THEN CAST(n.key AS TEXT) ELSE 'older' END",
            "0 is the newest; `older` is everything before the oldest",
        ),
        *moment("from_open_time_ms", _FROM_MS, "its first open time; null for `older`"),
        *moment("until_open_time_ms", _UNTIL_MS, "the first open time after it"),
        Column(
            "weight",
            f"CASE WHEN {_IS_BUCKET} THEN {_WEIGHT} ELSE a.older_mass END",
            "share of the rollout; a decision's weights sum to 1 within `l1_error`",
            "REAL",
        ),
    ),
    "FROM runs r JOIN steps s ON s.run_key = r.run_key AND EXISTS (SELECT 1 FROM answers) "
    "JOIN answers a ON a.step = s.step AND a.buckets IS NOT NULL "
    f"JOIN bars b ON b.step = a.step JOIN {_PLACES} n",
)

DECISION_VIEWS: Final = (V_DECISIONS, V_GATES, V_EXPLANATIONS)
