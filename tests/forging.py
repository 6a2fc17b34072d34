"""Somebody who edits a database and then recomputes every hash of the chain, as our code would."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

from tracepaper.storage.chain import covered_until, laid_of, step_digest
from tracepaper.storage.columns import stored_columns
from tracepaper.storage.decode import STEP, StoredRows
from tracepaper.storage.digest import Covered, gates_digest, opened_digest
from tracepaper.storage.reader import gate_set_rows, read_chunk, run_span, select
from tracepaper.storage.rows import kept_rows, step_key

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
