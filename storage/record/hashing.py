"""The canonical encoding of rows, and the digest of a commit; pure.

A row is hashed as it is stored, in the order of its columns, without the nulls at its end: so it
can be recomputed from the database alone. ``-0.0`` is 0.0, booleans are integers, and what is not
finite is null.

The rules are docs/storage.md, S5 and S6.
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
"""Stands for the running hash before the first row, and for the state before the first."""

pack = msgspec.msgpack.Encoder().encode
_json = msgspec.json.Encoder().encode
SEQUENCE_AT: Final = {table: place(table, "sequence") for table in CHAINED_TABLES}
"""Where the sequence of its step stands in a row of each table."""
_KIND_AT: Final = place("events", "kind")
_STATE_AT: Final = place("states", "state")
_IS_KEPT: Final = frozenset(KEPT_EVENTS).__contains__
_NAMED_DIGITS: Final = 12
"""Hexadecimal digits by which a commit names the hash of each of its tables."""


def finite(number: float | None) -> float | None:
    """Return *number* as it is stored and hashed: a float, -0.0 as 0.0, null if not finite."""
    if number is None or not isfinite(number):
        return None
    return number + 0.0


def all_finite(numbers: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return each of *numbers* as ``finite`` does."""
    try:
        # The usual case, without a test a number: a sum is finite only if every term is.
        added = tuple([number + 0.0 for number in numbers])  # type: ignore[operator]
        if isfinite(sum(added)):
            return added
    except TypeError:  # one of them is null
        pass
    # What is not finite, less itself, is NaN, which is true.
    return tuple(
        [None if number is None or number - number else number + 0.0 for number in numbers]
    )


def trimmed(row: Row) -> Row:
    """Return *row* without the nulls at its end."""
    if row[-1] is not None:  # as most are
        return row
    end = len(row) - 1
    while row[end - 1] is None:
        end -= 1
    return row[:end]


def _all_trimmed(rows: Sequence[Row]) -> list[Row]:
    return [row if row[-1] is not None else trimmed(row) for row in rows]  # without most calls


class ChainHead(NamedTuple):
    """Where a chain stands: its newest digest, and what that covers besides its own commit.

    ``kept`` is a running hash of the rows that a prune keeps, ``state`` the hash of the engine's
    newest state. So whoever holds a later digest can tell whether what a prune left is what was
    there.
    """

    digest: bytes
    kept: bytes = NOTHING
    state: bytes = NOTHING


class Commit(NamedTuple):
    """What one transaction adds to a run, with its link of the chain."""

    first: int  # sequence of its first step
    last: int
    head: ChainHead  # after it
    contents: str  # JSON: of each table the number of rows and the first digits of their hash
    rows: Mapping[str, Sequence[Row]]  # by table


def kept_after(kept: bytes, rows: Mapping[str, Sequence[Row]]) -> bytes:
    """Return the running hash behind *rows*, of which a prune keeps some.

    It goes step by step, so that it can be computed again when the commits are gone.
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
    """Return the commit of *rows*, which are those of the steps *first* to *last*."""
    parts = [
        (table, len(of_table), sha256(pack(_all_trimmed(of_table))).digest())
        for table in CHAINED_TABLES
        if (of_table := rows.get(table))
    ]
    kept = kept_after(before.kept, rows)
    state = before.state
    if states := rows.get("states"):
        state = sha256(states[-1][_STATE_AT]).digest()  # type: ignore[arg-type]
    # The state is the one before it: so the first digest behind a prune covers what that kept.
    content = pack((SCHEMA, first, last, parts))
    digest = sha256(b"".join((before.digest, kept, before.state, content))).digest()
    named = {table: (count, whole.hex()[:_NAMED_DIGITS]) for table, count, whole in parts}
    contents = _json(named).decode()
    return Commit(first, last, ChainHead(digest, kept, state), contents, rows)


def opened_digest(run: Row, instruments: Iterable[Row], gate_sets: Iterable[Row]) -> bytes:
    """Return the chain's first link: the run as opened, its instruments and its gate sets."""
    content = [[trimmed(row) for row in rows] for rows in ((run,), instruments, gate_sets)]
    return sha256(pack((SCHEMA, content))).digest()
