"""The canonical encoding and the hashes of the chain; pure.

A hash covers what is stored, so it can be recomputed from the database alone. ``-0.0`` is 0.0,
booleans are integers, and what is not finite is null.

The rules are docs/storage.md, S5 and S6.
"""

from __future__ import annotations

from hashlib import sha256
from math import isfinite
from typing import TYPE_CHECKING, Final

import msgspec

from tracepaper.storage.record.rows import laid_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracepaper.storage.record.columns import Row
    from tracepaper.storage.record.rows import LaidRow

CANONICAL_DECIMALS: Final = 18
"""Every price and quantity is hashed as an integer of 10⁻¹⁸, whatever its instrument's scale."""

HASH_BYTES: Final = 32

pack = msgspec.msgpack.Encoder().encode
_ARRAY_OF_FIVE: Final = b"\x95"
"""What stands before the encodings of its five elements."""


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
    return tuple([finite(number) for number in numbers])


# ---------------------------------------------------------------- the chain


def chain_digest(
    previous: bytes, covered: bytes, prefix: bytes, payload: Sequence[object]
) -> bytes:
    """Return ``sha256(previous + covered + prefix + msgpack(payload))``, the link after *previous*.

    The payload of a step is all values of its rows but the digest, without nulls, and *prefix* says
    of which columns they are (``rows.canonical``), and which gate set judged. *covered* is
    ``Covered.content`` after the step.
    """
    return sha256(b"".join((previous, covered, prefix, pack(payload)))).digest()


NOTHING: Final = bytes(HASH_BYTES)
"""Stands for the running hash before the first row, and for the state before the first."""


class Covered:
    """What every link covers besides its own step: all that a prune leaves of the steps before.

    ``kept`` is a running hash of the rows that a prune keeps, ``state`` the hash of the engine's
    latest state. So whoever holds a later link can tell whether what was left is what was there.
    """

    __slots__ = ("content", "kept", "state")

    def __init__(self, kept: bytes = NOTHING, state: bytes = NOTHING) -> None:
        self.kept = kept
        self.state = state
        self.content = kept + state

    def take(self, rows: Sequence[LaidRow], state: bytes | None) -> bytes | None:
        """Take in the kept *rows* and the state of a step; return ``kept`` where it changed."""
        changed = kept_digest(self.kept, rows) if rows else None
        self.follow(changed, state)
        return changed

    def follow(self, kept: bytes | None, state: bytes | None) -> None:
        """Take over what a step stored: ``kept`` and the state, each where it changed."""
        if kept is None and state is None:
            return
        if kept is not None:
            self.kept = kept
        if state is not None:
            self.state = sha256(state).digest()
        self.content = self.kept + self.state

    def copy(self) -> Covered:
        """Return an independent one that stands at the same place."""
        return Covered(self.kept, self.state)


def kept_digest(before: bytes, rows: Sequence[LaidRow]) -> bytes:
    """Return the running hash after a step of which a prune keeps *rows*."""
    content = pack([(layout.sha256, values) for layout, values in rows])
    return sha256(before + content).digest()


def _canonical(table: str, row: Row) -> tuple[bytes, Row]:
    """Return the hash of the columns that *row* fills, and their values: nulls are not hashed."""
    layout, values = laid_row(table, row)
    return layout.sha256, values


def opened_digest(run: Row, instruments: Iterable[Row], gate_sets: Iterable[Row]) -> bytes:
    """Return the chain's first link: the run as opened, its instruments and its gate sets."""
    parts = (("runs", (run,)), ("instruments", instruments), ("gate_sets", gate_sets))
    content = [[_canonical(table, row) for row in rows] for table, rows in parts]
    return sha256(pack(content)).digest()


def gates_digest(rows: Iterable[Row]) -> bytes:
    """Return the hash of the *rows* of a gate set, in their order."""
    hashed = sha256()
    for row in rows:
        hashed.update(pack(_canonical("gate_sets", row)))
    return hashed.digest()
