"""The canonical encoding of rows, and the digest of a commit; pure.

A row is hashed as it is stored, in column order and without the nulls at its end, so that the
digest can be recomputed from the database alone. ``-0.0`` becomes 0.0, booleans become integers,
and numbers that are not finite become null.

docs/storage.md, S5 and S6, has the rules.
"""

from __future__ import annotations

from hashlib import sha256
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from tracepaper.storage.record.columns import place
from tracepaper.storage.record.rows import CHAINED_TABLES, KEPT_EVENTS, KEPT_TABLES, SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tracepaper.storage.record.columns import Row

HASH_BYTES: Final = 32
NOTHING: Final = bytes(HASH_BYTES)
"""The running hash before the first row, and the hash of the state before the first state."""

pack = msgspec.msgpack.Encoder().encode
_json = msgspec.json.Encoder().encode
SEQUENCE_AT: Final = {table: place(table, "sequence") for table in CHAINED_TABLES}
"""The index of the step's sequence in a row of each table."""
_KIND_AT: Final = place("events", "kind")
_STATE_AT: Final = place("states", "state")
_IS_KEPT: Final = frozenset(KEPT_EVENTS).__contains__
_HASH_DIGITS: Final = 12
"""Hexadecimal digits of each table's hash that a commit lists in ``contents``."""


def finite(number: float | None) -> float | None:
    """Return *number* as it is stored and hashed: -0.0 as 0.0, and None if it is not finite."""
    if number is None or not isfinite(number):
        return None
    return number + 0.0


def all_finite(numbers: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return ``finite`` of each of *numbers*."""
    try:
        # The sum is finite only if every term is, so that most calls need one test.
        added = tuple([number + 0.0 for number in numbers])  # type: ignore[operator]
        if isfinite(sum(added)):
            return added
    except TypeError:  # one of them is null
        pass
    # ``number - number`` is NaN, which is true, unless the number is finite.
    return tuple(
        [None if number is None or number - number else number + 0.0 for number in numbers]
    )


def trimmed(row: Row) -> Row:
    """Return *row* without the nulls at its end."""
    if row[-1] is not None:
        return row
    end = len(row) - 1
    while row[end - 1] is None:
        end -= 1
    return row[:end]


def _all_trimmed(rows: Sequence[Row]) -> list[Row]:
    return [row if row[-1] is not None else trimmed(row) for row in rows]  # avoids most calls


class ChainHead(NamedTuple):
    """The newest digest of a chain, and the two hashes that it covers besides its own commit.

    ``kept`` is a running hash of the rows that a prune keeps, ``state`` the hash of the engine's
    newest state. With them a later digest proves that a prune changed none of the rows it kept.
    """

    digest: bytes
    kept: bytes = NOTHING
    state: bytes = NOTHING


class Commit(NamedTuple):
    """The rows that one transaction adds to a run, with their link of the chain."""

    first: int  # sequence of its first step
    last: int
    head: ChainHead  # after this commit
    contents: str  # JSON: per table the number of rows and the first digits of their hash
    rows: Mapping[str, Sequence[Row]]  # by table


def kept_after(kept: bytes, rows: Mapping[str, Sequence[Row]]) -> bytes:
    """Return the running hash *kept*, continued over those of *rows* that a prune keeps.

    It is computed step by step, so that it can be recomputed after the commits were dropped.
    """
    steps: dict[Any, list[tuple[str, Row]]] = {}
    for table in KEPT_TABLES:
        if table not in rows:
            continue
        at = SEQUENCE_AT[table]
        for row in rows[table]:
            if table != "events" or _IS_KEPT(row[_KIND_AT]):
                steps.setdefault(row[at], []).append((table, trimmed(row)))
    for step in sorted(steps):
        kept = sha256(kept + pack(steps[step])).digest()
    return kept


def sealed(before: ChainHead, first: int, last: int, rows: Mapping[str, Sequence[Row]]) -> Commit:
    """Return the commit of *rows*, the rows of the steps *first* to *last*."""
    tables = [
        (table, len(of_table), sha256(pack(_all_trimmed(of_table))).digest())
        for table in CHAINED_TABLES
        if (of_table := rows.get(table))
    ]
    kept = kept_after(before.kept, rows)
    state = before.state
    if states := rows.get("states"):
        state = sha256(states[-1][_STATE_AT]).digest()  # type: ignore[arg-type]
    # The digest covers the state before the commit: so the first digest after a prune covers the
    # state that the prune kept.
    content = pack((SCHEMA, first, last, tables))
    digest = sha256(b"".join((before.digest, kept, before.state, content))).digest()
    shortened = {
        table: (count, rows_hash.hex()[:_HASH_DIGITS]) for table, count, rows_hash in tables
    }
    return Commit(first, last, ChainHead(digest, kept, state), _json(shortened).decode(), rows)


def opened_digest(run: Row, instruments: Iterable[Row], gate_sets: Iterable[Row]) -> bytes:
    """Return the chain's first link: the run as opened, its instruments and its gate sets."""
    content = [[trimmed(row) for row in rows] for rows in ((run,), instruments, gate_sets)]
    return sha256(pack((SCHEMA, content))).digest()
