"""The canonical encoding of rows, and the digest of a commit; pure.

A row is hashed as it is stored, in column order and without the nulls at its end, so that the
digest can be recomputed from the database alone. ``-0.0`` becomes 0.0, booleans become integers,
and numbers that are not finite become null.

docs/storage.md, S5, has the rule.
"""

from __future__ import annotations

from hashlib import sha256
from math import isfinite
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from tracepaper.storage.record.columns import place
from tracepaper.storage.record.rows import CHAINED_TABLES, SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tracepaper.storage.record.columns import Row

pack = msgspec.msgpack.Encoder().encode
_json = msgspec.json.Encoder().encode
SEQUENCE_AT: Final = {table: place(table, "sequence") for table in CHAINED_TABLES}
"""The index of the step's sequence in a row of each table."""
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


class Commit(NamedTuple):
    """The rows that one transaction adds to a run, with their link of the chain."""

    first: int  # sequence of its first step
    last: int
    digest: bytes  # the head of the chain after this commit
    contents: str  # JSON: per table the number of rows and the first digits of their hash
    rows: Mapping[str, Sequence[Row]]  # by table


def sealed(before: bytes, first: int, last: int, rows: Mapping[str, Sequence[Row]]) -> Commit:
    """Return the commit of *rows*, of the steps *first* to *last*, behind the digest *before*."""
    tables = [
        (table, len(of_table), sha256(pack(_all_trimmed(of_table))).digest())
        for table in CHAINED_TABLES
        if (of_table := rows.get(table))
    ]
    digest = sha256(before + pack((SCHEMA, first, last, tables))).digest()
    shortened = {
        table: (count, rows_hash.hex()[:_HASH_DIGITS]) for table, count, rows_hash in tables
    }
    return Commit(first, last, digest, _json(shortened).decode(), rows)


def opened_digest(run: Row, instruments: Iterable[Row], gate_sets: Iterable[Row]) -> bytes:
    """Return the chain's first link: the run as opened, its instruments and its gate sets."""
    content = [[trimmed(row) for row in rows] for rows in ((run,), instruments, gate_sets)]
    return sha256(pack((SCHEMA, content))).digest()
