"""Somebody who edits a database and then recomputes every hash of the chain, as our code would."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

from tracepaper.daemon.session.models import forecaster_of
from tracepaper.replay.backtest.recorded import RecordedPredictor, open_recorded
from tracepaper.replay.checks.compare import RowCheck
from tracepaper.replay.checks.verify import Verification, verify_run
from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.chain.links import covered_until, laid_of, step_digest
from tracepaper.storage.checkpoints import kept_folder
from tracepaper.storage.database.chunks import gate_set_rows, read_chunk, run_span, select
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.schema import metadata
from tracepaper.storage.record.columns import stored_columns
from tracepaper.storage.record.decode import STEP, StoredRows
from tracepaper.storage.record.digest import Covered, gates_digest, opened_digest
from tracepaper.storage.record.rows import EVENT_TYPES, kept_rows, step_key
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.types.decisions import Action, FillModel, Liquidity, OrderStatus, Regime
from tracepaper.strategies.types.market import Category, RunKind, Side

COLUMNS = [f"{t.name}.{name}" for t in metadata.sorted_tables for name in stored_columns(t.name)]
KEYS = {f"{t.name}.{c.name}" for t in metadata.sorted_tables for c in t.columns if c.primary_key}
ENUMERATIONS = [
    [str(member.value) for member in of]
    for of in (
        Side, OrderStatus, Action, Regime, Liquidity, FillModel, RunKind, Category,
    )
] + [list(EVENT_TYPES)]  # fmt: skip
"""What may stand in a column of names."""

CUNNING = {
    "runs.config": """replace(config, '"level":"info"', '"level":"debug"')""",
    "runs.period_start_ms": "period_start_ms - 1",
    "runs.warnings": """'["all is well"]'""",
    "instruments.max_quantity": "1000000000000",
    "instruments.risk_tiers": (
        """'[{"limit":1,"maintenance":1,"max_leverage":1,"deduction":0}]'"""
    ),
    "prunes.state": "CAST(substr(state, 1, 1) || x'c3' || substr(state, 3) AS BLOB)",  # halted
    "events.content": "replace(content, 'archive', 'missed') WHERE content LIKE '%archive%'",
}
"""Edits that are chosen to pass: a column that is listed must have one."""

DIGESTS = {
    "runs.opened_digest",
    "runs.head_digest",
    "runs.previous_head",
    "steps.digest",
    "states.kept_sha256",
    "outcomes.gate_set_sha256",
    "prunes.digest",
    "prunes.kept_sha256",
}
"""What the forger recomputes, so that no edit of these is left standing."""

_NAMES = stored_columns("runs")
_OPENED_AT = _NAMES.index("opened_digest")
_SETS_AT = _NAMES.index("opened_gate_sets")


def rechain(path: Path, *, lies: bool = False) -> None:
    """Recompute every hash of every run in *path*, the links between the runs included.

    Who *lies* lets the running hash of what a prune keeps stand as it was written.
    """
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA foreign_keys = OFF")
        raw.execute("PRAGMA synchronous = OFF")
        was: dict[bytes, bytes] = {}
        for (run_key,) in raw.execute("SELECT run_key FROM runs ORDER BY run_key").fetchall():
            _rechain_run(raw, run_key, was, lies=lies)
        raw.commit()


def _rechain_run(
    raw: sqlite3.Connection, run_key: int, was: dict[bytes, bytes], *, lies: bool
) -> None:
    """Give one run new hashes; *was* maps old heads to new ones."""
    sets = gate_set_rows(raw, run_key)
    hashes = {key: gates_digest(rows) for key, rows in sets.items()}
    for key, digest in hashes.items():
        raw.execute(
            "UPDATE outcomes SET gate_set_sha256 = ? WHERE gate_set = ? AND step BETWEEN ? AND ?",
            (digest, key, *run_span(run_key)),
        )
    row = raw.execute(select("runs", "run_key = ?"), (run_key,)).fetchone()
    opened = list(row[:_OPENED_AT])
    at = _NAMES.index("previous_head")
    opened[at] = was.get(opened[at], opened[at])
    raw.execute("UPDATE runs SET previous_head = ? WHERE run_key = ?", (opened[at], run_key))
    instruments = raw.execute(select("instruments", "run_key = ?"), (run_key,)).fetchall()
    known = [line for key in sorted(sets) if key < opened[_SETS_AT] for line in sets[key]]
    head = opened_digest(tuple(opened), instruments, known)
    was[row[_OPENED_AT]] = head
    raw.execute("UPDATE runs SET opened_digest = ? WHERE run_key = ?", (head, run_key))
    head = _rechain_steps(raw, run_key, hashes, head, was, lies=lies)
    raw.execute("UPDATE runs SET head_digest = ? WHERE run_key = ?", (head, run_key))


def _rechain_steps(
    raw: sqlite3.Connection,
    run_key: int,
    hashes: dict[int, bytes],
    head: bytes,
    was: dict[bytes, bytes],
    *,
    lies: bool,
) -> bytes:
    covered, first = Covered(), step_key(run_key, 0)
    pruned = raw.execute(select("prunes", "run_key = ?"), (run_key,)).fetchone()
    if pruned is not None:
        covered, head = covered_until(raw, run_key, pruned), pruned[3]
        first = step_key(run_key, pruned[1] + 1)
        _retell_prune(raw, run_key, pruned, covered.kept)
    used = dict(raw.execute("SELECT step, gate_set FROM outcomes").fetchall())
    chunk = read_chunk(raw, first, run_span(run_key)[1])
    for row in chunk.steps:
        rows = chunk.rows(row)
        leaves = kept_rows(laid_of(rows))
        kept = rows.kept_sha256
        if lies:
            covered.follow(kept, rows.state)
        else:
            kept = covered.take(leaves, rows.state)
            rows = _with_kept(raw, rows, kept)
        outcome = row[STEP.outcome]
        if outcome is not None:
            outcome = used.get(step_key(run_key, outcome))
        gate_set = None if outcome is None else hashes.get(outcome)
        head = step_digest(head, covered, rows, gate_set)
        was[row[-1]] = head
        raw.execute("UPDATE steps SET digest = ? WHERE step = ?", (head, row[STEP.step]))
    return head


def _with_kept(raw: sqlite3.Connection, rows: StoredRows, kept: bytes | None) -> StoredRows:
    """Store *kept* beside the step, and return its *rows* as they are then."""
    step = rows.core[STEP.step]
    raw.execute("UPDATE states SET kept_sha256 = ? WHERE step = ?", (kept, step))
    if kept is not None and rows.row("states") is None:
        raw.execute("INSERT INTO states (step, kept_sha256) VALUES (?, ?)", (step, kept))
    found = raw.execute(select("states", "step = ?"), (step,)).fetchall()
    return StoredRows(rows.core, {**rows.sparse, "states": found} if found else rows.sparse)


def _retell_prune(raw: sqlite3.Connection, run_key: int, pruned: Any, kept: bytes) -> None:
    """Make the newest event of a prune say what the row in ``prunes`` says, and its hashes."""
    raw.execute("UPDATE prunes SET kept_sha256 = ? WHERE run_key = ?", (kept, run_key))
    query = "SELECT max(step) FROM events WHERE step BETWEEN ? AND ? AND kind = 'prune'"
    (step,) = raw.execute(query, run_span(run_key)).fetchone()
    (text,) = raw.execute("SELECT content FROM events WHERE step = ?", (step,)).fetchone()
    said = json.loads(text)
    said["kept_sha256"], said["digest"] = kept.hex(), pruned[3].hex()
    if pruned[5] is not None:
        said["state_sha256"] = sha256(pruned[5]).hexdigest()
    text = json.dumps(said, separators=(",", ":"))
    raw.execute("UPDATE events SET content = ? WHERE step = ?", (text, step))


def audited(path: Path, head: bytes | None = None) -> bool:
    """Return whether ``audit verify`` finds nothing."""
    with Reader.open(path) as reader:
        return audit(reader.connection, reader.find("last"), head=head).holds


def verified(path: Path, database: Path | None = None) -> Verification:
    """Return what ``verify`` finds; *database* is where the checkpoints lie."""
    with Reader.open(path) as reader:
        return verify_run(reader, database or path, reader.find("last"))


def believed(path: Path, database: Path | None = None) -> bool:
    """Return whether neither ``audit verify`` nor ``verify`` finds anything."""
    try:
        return audited(path) and verified(path, database).holds
    except TracepaperError:
        return False  # one sentence, and exit 1


def unequal(path: Path, database: Path) -> set[str]:
    """Return every column in which a derived step differs from what is stored."""
    with Reader.open(path) as reader:
        run_id = reader.find("last")
        recorded = open_recorded(reader, database, run_id)
        model = recorded.run.model_id
        prober = model and forecaster_of(kept_folder(database, model), recorded.config, mode="scan")
        predictor, check = (
            RecordedPredictor(recorded, prober or None, database),
            RowCheck(reader, reader.stored_run(run_id)),
        )
        names = set()
        for event, (rows, _) in zip(
            predictor.events(reader, run_id), reader.rows(run_id), strict=True
        ):
            step = recorded.engine.step(event, predictor.predict(event))
            names |= {name for name, *_ in check.compare(step, rows, exact=True).unequal}
    return names


def another(value: object, kind: str) -> object:
    """Return a value that is not *value*, of the type of its column."""
    match value:
        case None:
            return {"INTEGER": 7, "REAL": 0.5, "TEXT": "x", "BLOB": b"x"}[kind]
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:] if value else b"x"
        case str():
            for words in ENUMERATIONS:
                if value in words:
                    return words[words.index(value) - 1]
            # The file itself refuses what is no JSON where a column is made of it.
            return f"{value[0]} {value[1:]}" if value[:1] in ("{", "[") else value + "x"
        case float():
            return value + 1e-9 * max(abs(value), 1.0)
        case _:
            assert isinstance(value, int)
            return value + 1


def plantings(path: Path, column: str) -> Iterator[str]:
    """Yield statements that change *column* in a middle and in the last of its rows."""
    table, name = column.split(".")
    meta = metadata.tables[table]
    keys = [c.name for c in meta.primary_key.columns]
    with closing(sqlite3.connect(path)) as raw:
        rows = raw.execute(
            f"SELECT {', '.join(keys)}, {name} FROM {table} ORDER BY {', '.join(keys)}"
        )
        found = rows.fetchall()
    if column in CUNNING:
        yield f"UPDATE {table} SET {name} = {CUNNING[column]}"
    for at in sorted({len(found) // 2, len(found) - 1}) if found else ():
        *key, value = found[at]
        changed = another(value, str(meta.c[name].type))
        if column in KEYS and isinstance(value, int):
            changed = value + 2**21  # which no other row has
        elif column == "bars.source":
            changed = value - 1
        where = " AND ".join(f"{k} = {v!r}" for k, v in zip(keys, key, strict=True))
        yield f"UPDATE {table} SET {name} = {literal(changed)} WHERE {where}"


def literal(value: object) -> str:
    """Return *value* as SQL writes it."""
    match value:
        case bytes():
            return f"x'{value.hex()}'"
        case str():
            return "'" + value.replace("'", "''") + "'"
        case _:
            return repr(value)


def forged(path: Path, target: Path, *statements: str, hide: bool = True) -> Path:
    """Copy *path* to *target* with *statements* done to it, and the chain made to fit."""
    shutil.copy(path, target)
    with closing(sqlite3.connect(target)) as raw:
        raw.execute("PRAGMA foreign_keys = OFF")
        raw.execute("PRAGMA synchronous = OFF")
        for statement in statements:
            assert raw.execute(statement).rowcount > 0, statement
        raw.commit()
    if hide:
        rechain(target)
    return target
