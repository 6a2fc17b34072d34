"""Somebody who edits a database and then recomputes every hash of the chain, as our code would."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

from tracepaper.storage.chain import covered_until
from tracepaper.storage.decode import KEPT_AT, STATE_AT
from tracepaper.storage.digest import Covered, chain_digest, opened_digest, rows_digest
from tracepaper.storage.reader import gate_set_rows, read_chunk, run_span, select
from tracepaper.storage.rows import SPARSE_TABLES, kept_rows, step_key
from tracepaper.storage.schema import metadata

DIGESTS = {
    "runs.opened_digest",
    "runs.head_digest",
    "runs.previous_head",
    "steps.digest",
    "steps.kept_sha256",
    "outcomes.gate_set_sha256",
    "prunes.digest",
    "prunes.kept_sha256",
}
"""What the forger recomputes, so that no edit of these is left standing."""

_NAMES = [column.name for column in metadata.tables["runs"].columns if column.computed is None]
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
    hashes = {key: rows_digest(rows) for key, rows in sets.items()}
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
        step, core = row[0], list(row[:-1])
        rows = chunk.sparse.get(step, {})
        pairs = [(table, line) for table in SPARSE_TABLES for line in rows.get(table, [])]
        event = None if step in chunk.bars else chunk.events.get(step)
        leaves = kept_rows(event, pairs)
        if lies:
            covered.follow(core[KEPT_AT], core[STATE_AT])
        else:
            core[KEPT_AT] = covered.take(leaves, core[STATE_AT])
        outcome = None if core[4] is None else used.get(step_key(run_key, core[4]))
        gate_set = None if outcome is None else hashes.get(outcome)
        payload = (tuple(core), chunk.event(step), gate_set, *pairs)
        head = chain_digest(head, covered.content, payload)
        was[row[-1]] = head
        raw.execute(
            "UPDATE steps SET kept_sha256 = ?, digest = ? WHERE step = ?",
            (core[KEPT_AT], head, step),
        )
    return head


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
