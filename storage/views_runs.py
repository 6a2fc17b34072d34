"""Views of runs, bars, gaps and events."""

from __future__ import annotations

from typing import Final

from tracepaper.storage.expressions import iso
from tracepaper.storage.rows import SEQUENCE_BITS
from tracepaper.storage.schema import KEPT_KINDS
from tracepaper.storage.view_parts import (
    INSTRUMENT,
    PRICE,
    TURNOVER,
    VOLUME,
    Column,
    View,
    digest,
    exact,
    moment,
    of_step,
    source_name,
)

_LAST_BUT_PRUNES: Final = (
    "SELECT s.step FROM steps s WHERE s.step BETWEEN r.run_key << 28 AND "
    "(r.run_key + 1 << 28) - 1 AND NOT EXISTS (SELECT 1 FROM events p WHERE p.step = s.step "
    "AND p.kind = 'prune') ORDER BY s.step DESC LIMIT 1"
)


_ENDED_AT: Final = (
    "(SELECT json_extract(e.content, '$.ended_at_ms') FROM events e WHERE e.kind = 'end' "
    f"AND e.step = ({_LAST_BUT_PRUNES}))"
)
_DAY_MS: Final = 86_400_000

_IN_RUN: Final = (
    f"e.step BETWEEN r.run_key << {SEQUENCE_BITS} AND ((r.run_key + 1) << {SEQUENCE_BITS}) - 1"
)

V_RUNS: Final = View(
    "v_runs",
    "a run",
    (
        Column("run_id", "r.run_id", "the run"),
        Column("kind", "r.kind", "`live`, `demo` or `replay`"),
        *moment("started_at", "r.started_at_ms", "wall time of the start"),
        *moment(
            "ended_at",
            _ENDED_AT,
            "wall time of the end; null where it went on or was killed",
        ),
        Column("parent_run_id", "r.parent_run_id", "the run whose account it took over"),
        *moment(
            "period_start_ms",
            "r.period_start_ms",
            "first open time with a decision",
        ),
        Column(
            "instruments",
            "(SELECT group_concat(instrument_id) FROM (SELECT i.instrument_id FROM instruments i "
            "WHERE i.run_key = r.run_key ORDER BY i.instrument))",
            "ids, separated by commas",
        ),
        Column(
            "interval",
            f"CASE r.interval_ms WHEN {_DAY_MS} THEN 'D' WHEN {7 * _DAY_MS} THEN 'W' "
            "ELSE CAST(r.interval_ms / 60000 AS TEXT) END",
            "minutes of a bar, `D` or `W`, as Bybit writes it",
        ),
        Column("interval_ms", "r.interval_ms", "milliseconds of a bar", "INTEGER"),
        Column("strategy", "r.strategy", "the strategy's name"),
        Column(
            "strategy_sha256",
            "r.strategy_sha256",
            "SHA-256 of a user's class and what it imports from its own folder; else empty",
        ),
        Column("model_id", "r.model_id", "the model at the start; empty without one"),
        Column("model_sha256", "r.model_sha256", "SHA-256 of its weights and its card"),
        Column("config_sha256", "r.config_sha256", "SHA-256 of what decides a run"),
        Column("config", "r.config", "the whole configuration as JSON"),
        Column("code_version", "r.code_version", "version of tracepaper"),
        Column("path", "r.path", "`step` or `scan`"),
        Column("device", "r.device", "where the model ran"),
        Column("dtype", "r.dtype", "the model's number type"),
        Column("threads", "r.threads", "threads of the model", "INTEGER"),
        Column("backend", "r.backend", "what attended; empty without a model"),
        Column("torch_version", "r.torch_version", "version of torch; empty without a model"),
        Column("instruction_set", "r.instruction_set", "what torch computes with; else empty"),
        Column("libraries", "r.libraries", "JSON: versions of what else computes"),
        Column("warnings", "r.warnings", "JSON array of sentences"),
        Column(
            "opened",
            "(SELECT json_group_array(json_extract(e.content, '$.name')) FROM events e "
            f"WHERE e.kind = 'reading' AND {_IN_RUN})",
            "JSON array: files, addresses and programs that a user's class opened",
        ),
        Column("step_count", "r.step_count", "steps stored", "INTEGER"),
        digest("head_digest", "r.head_digest", "digest of the last step; keep a copy elsewhere"),
    ),
    "FROM runs r",
)

V_BARS: Final = View(
    "v_bars",
    "a bar as the engine saw it",
    (
        *of_step("s"),
        INSTRUMENT,
        *moment("open_time_ms", "b.open_time_ms", "first millisecond of the bar"),
        *exact("open", "b.open", PRICE, "first price"),
        *exact("high", "b.high", PRICE, "highest price"),
        *exact("low", "b.low", PRICE, "lowest price"),
        *exact("close", "b.close", PRICE, "last price"),
        *exact("volume", "b.volume", VOLUME, "volume in base"),
        *exact("turnover", "b.turnover", TURNOVER, "volume in quote; null where not known"),
        Column("source", source_name("b.source"), "`stream`, `rest` or `archive`"),
        *moment(
            "market_ms",
            "b.open_time_ms + r.interval_ms + b.market_delay_ms",
            "market time at which it was final",
        ),
        *moment(
            "seen_ms",
            "b.open_time_ms + r.interval_ms + b.market_delay_ms + b.seen_delay_ms",
            "market time at which the engine saw it",
        ),
        Column("accepted", "s.shape & 1", "0 for a revision, which changed nothing", "INTEGER"),
    ),
    "FROM runs r JOIN steps s ON s.run_key = r.run_key JOIN bars b ON b.step = s.step "
    "AND b.run_key = r.run_key "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = b.instrument",
)

V_GAPS: Final = View(
    "v_gaps",
    "a hole in the data, and its repair",
    (
        *of_step("e"),
        INSTRUMENT,
        *moment("from_ms", "json_extract(e.content, '$.from_ms')", "first missing open time"),
        *moment("until_ms", "json_extract(e.content, '$.until_ms')", "first open time after it"),
        Column(
            "cause",
            "json_extract(e.content, '$.cause')",
            "`disconnected`, `missed`, `down`, `overflow`, `archive`, `stale`, `jumped` or "
            "`implausible`",
        ),
        Column(
            "repaired_by",
            "json_extract(e.content, '$.repaired_by')",
            "`rest` where the bars follow; empty where they never will; `clock` where market time "
            "itself was set from one of the two times to the other",
        ),
        *moment("market_ms", "e.market_ms", "market time at which it was found"),
    ),
    f"FROM runs r JOIN events e ON e.run_key = r.run_key AND e.{KEPT_KINDS} AND e.kind = 'gap' "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = e.instrument",
)

_BAR_CONTENT: Final = (
    "json_object('open_time_ms', b.open_time_ms, 'open', b.open, 'high', b.high, 'low', b.low, "
    "'close', b.close, 'volume', b.volume, 'turnover', b.turnover, "
    f"'source', {source_name('b.source')})"
)

_BAR_MARKET_MS: Final = "b.open_time_ms + r.interval_ms + b.market_delay_ms"
_MARKET_MS: Final = f"CAST(coalesce(e.market_ms, {_BAR_MARKET_MS}) AS INTEGER)"
_SEEN_MS: Final = f"CAST(coalesce(e.seen_ms, {_BAR_MARKET_MS} + b.seen_delay_ms) AS INTEGER)"
# The casts give both halves the same affinity, without which SQLite sorts the union.
_OF_STEPS: Final = ", ".join(
    (
        "r.run_id",
        "s.sequence",
        "CAST(coalesce(e.kind, 'bar') AS TEXT)",
        "i.instrument_id",
        _MARKET_MS,
        f"CAST({iso(_MARKET_MS)} AS TEXT)",
        _SEEN_MS,
        f"CAST({iso(_SEEN_MS)} AS TEXT)",
        f"CAST(coalesce(e.content, {_BAR_CONTENT}) AS TEXT)",
    )
)

V_EVENTS: Final = View(
    "v_events",
    "an event that the engine consumed",
    (
        *of_step("e"),
        Column(
            "kind",
            "e.kind",
            "`bar`, `quote`, `trade`, `mark`, `funding`, `instrument_change`, `model_change`, "
            "`gap`, `command`, `timer`, `end`, `prune` or `reading`",
        ),
        Column("instrument", "i.instrument_id", "`category:SYMBOL`; null where it has none"),
        *moment("market_ms", "e.market_ms", "market time of the event"),
        *moment("seen_ms", "e.seen_ms", "market time at which the engine saw it"),
        Column("content", "e.content", "JSON of its other fields, numbers as they are stored"),
    ),
    # What a prune has kept has no step any more; all else is found by its step.
    f"FROM runs r JOIN events e ON e.run_key = r.run_key AND e.{KEPT_KINDS} "
    "AND NOT EXISTS (SELECT 1 FROM steps s WHERE s.step = e.step) "
    "LEFT JOIN instruments i ON i.run_key = r.run_key AND i.instrument = e.instrument",
    f" UNION ALL SELECT {_OF_STEPS} FROM runs r JOIN steps s ON s.run_key = r.run_key "
    "LEFT JOIN bars b ON b.step = s.step LEFT JOIN events e ON e.step = s.step "
    "LEFT JOIN instruments i "
    "ON i.run_key = r.run_key AND i.instrument = coalesce(b.instrument, e.instrument)",
)

RUN_VIEWS: Final = (V_RUNS, V_BARS, V_GAPS, V_EVENTS)
