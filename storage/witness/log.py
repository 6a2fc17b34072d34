"""The transparency log of one database: a leaf for each commit of its runs, in a folder beside it.

docs/what_the_record_proves.md has the format of a leaf; ``judge`` reads it without tracepaper.
"""

from __future__ import annotations

import base64
import hmac
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec
import numpy as np

from tracepaper.storage.covariates import write_whole
from tracepaper.storage.database.chunks import prune_point
from tracepaper.storage.witness.judge import (
    CLOCK,
    LEAF,
    PLAIN,
    SALT_BYTES,
    Note,
    leaf_hash,
    node,
)
from tracepaper.storage.witness.keys import read_key, signature_line
from tracepaper.storage.witness.leaves import DATES, LoggedCommits, append_records, split
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.units import unscaled

HASH_BYTES: Final = 32
BATCH: Final = 1000
"""Commits that are sealed at once: a stop waits for them, and a long record has many."""
_COUNTS: Final = "SELECT run_key, step_count FROM runs ORDER BY run_key"
_RUN: Final = (
    "SELECT run_key, run_id, opened_digest, period_start_ms, interval_ms, strategy, "
    "strategy_sha256, model_sha256, config_sha256 FROM runs WHERE run_key = ?"
)
_COMMITS: Final = (
    "SELECT first_sequence, last_sequence, digest FROM commits "
    "WHERE run_key = ? AND first_sequence >= ? ORDER BY first_sequence LIMIT ?"
)
_COMMIT: Final = (
    "SELECT first_sequence, last_sequence, digest FROM commits "
    "WHERE run_key = ? AND last_sequence >= ? ORDER BY first_sequence LIMIT 1"
)
_DECISIONS: Final = (
    "SELECT s.sequence, i.symbol, s.open_time_ms, o.action, o.allowed, o.refused_by, "
    "s.target_quantity, i.quantity_decimals, a.horizon, a.mean_return, a.p_down, a.p_up "
    "FROM steps s JOIN outcomes o ON o.run_key = s.run_key AND o.sequence = s.outcome "
    "AND o.book = 0 JOIN instruments i ON i.run_key = s.run_key AND i.instrument = s.instrument "
    "LEFT JOIN answers a ON a.run_key = s.run_key AND a.sequence = s.sequence "
    "WHERE s.run_key = ? AND s.sequence BETWEEN ? AND ? ORDER BY s.sequence"
)
_ACCOUNT: Final = (
    "SELECT coalesce(s.equity, h.cash + coalesce(s.account_unrealized_pnl, s.unrealized_pnl, 0)) "
    "FROM steps s JOIN holdings h ON h.run_key = s.run_key AND h.sequence = s.holding "
    "AND h.book = 0 WHERE s.run_key = ? AND s.sequence = ?"
)
_NEWEST_BAR: Final = (
    "SELECT open_time_ms FROM steps WHERE run_key = ? AND sequence BETWEEN ? AND ? "
    "AND open_time_ms IS NOT NULL AND ignored IS NULL ORDER BY sequence DESC LIMIT 1"
)
_NAMED: Final = ("strategy", "strategy_sha256", "model", "config")
"""What an opened run's entry calls the last columns of ``_RUN``."""
_FORECAST: Final = ("horizon", "mean_return", "p_down", "p_up")
"""What a decision's entry calls the last columns of ``_DECISIONS``; null without a model."""
Entry = dict[str, Any]
LeafRow = tuple[int, int, int, bytes]
Row = tuple[Any, ...]
Stored = tuple[Row, Row]


class Tree:
    """The hashes of each full aligned subtree of a log, by level; RFC 6962."""

    def __init__(self) -> None:
        self._levels = [bytearray()]

    def __len__(self) -> int:
        return len(self._levels[0]) // HASH_BYTES

    def add(self, value: bytes) -> None:
        """Add the hash of the next leaf."""
        for level in range(len(self._levels) + 1):
            if level == len(self._levels):
                self._levels.append(bytearray())
            hashes = self._levels[level]
            hashes += value
            if len(hashes) % (2 * HASH_BYTES):
                return
            value = node(bytes(hashes[-2 * HASH_BYTES : -HASH_BYTES]), bytes(hashes[-HASH_BYTES:]))

    def root(self, begin: int, end: int) -> bytes:
        """Return the root over the leaves *begin* to *end* (excluded)."""
        size = end - begin
        if size & (size - 1) == 0 and begin % size == 0:
            at = begin // size * HASH_BYTES
            return bytes(self._levels[size.bit_length() - 1][at : at + HASH_BYTES])
        middle = begin + split(size)
        return node(self.root(begin, middle), self.root(middle, end))

    def path(self, shown: Sequence[int], begin: int, end: int) -> list[bytes]:
        """Return the roots of the largest subtrees without a leaf of *shown*, left to right."""
        if not any(begin <= index < end for index in shown):
            return [self.root(begin, end)]
        if end - begin == 1:
            return []
        middle = begin + split(end - begin)
        return [*self.path(shown, begin, middle), *self.path(shown, middle, end)]

    def consistency(self, old: int, begin: int, end: int, *, is_whole: bool = True) -> list[bytes]:
        """Return the consistency proof from the first *old* leaves to all; RFC 6962, 2.1.2."""
        if old == end - begin:
            return [] if is_whole else [self.root(begin, end)]
        middle = begin + split(end - begin)
        if begin + old <= middle:
            inner = self.consistency(old, begin, middle, is_whole=is_whole)
            return [*inner, self.root(middle, end)]
        inner = self.consistency(old - middle + begin, middle, end, is_whole=False)
        return [*inner, self.root(begin, middle)]


def tree_of(hashes: Iterable[bytes]) -> Tree:
    """Return the tree of the leaf *hashes*."""
    tree = Tree()
    for each in hashes:
        tree.add(each)
    return tree


class WitnessLog(LoggedCommits):
    """The log of *database*: leaves are added, never changed; one process may use it at a time.

    Raises ``ConfigInvalid`` if it has no key, or others may read the key.
    """

    def __init__(self, database: Path) -> None:
        super().__init__(database)
        self.signer = read_key(self.folder / "key", PLAIN)
        self.origin = self.signer.key.name

    @cached_property
    def tree(self) -> Tree:
        """The tree of all leaves."""
        return tree_of(map(leaf_hash, self._packed))

    @property
    def _packed(self) -> list[bytes]:
        data = self.leaves.tobytes()
        return [data[at : at + LEAF.size] for at in range(0, len(data), LEAF.size)]

    @cached_property
    def due(self) -> dict[int, int]:
        """The first step that no leaf has, by the number of a run."""
        return dict(
            zip(self.leaves["run"].tolist(), (self.leaves["last"] + 1).tolist(), strict=True)
        )

    # ------------------------------------------------------------ leaves

    def extend(self, connection: sqlite3.Connection) -> int:
        """Add leaves for the next commits, at most ``BATCH``; return how many, 0 at the end."""
        for number, count in connection.execute(_COUNTS).fetchall():
            if self.due.get(number, 0) == count:
                continue
            run = connection.execute(_RUN, (number,)).fetchone()
            query = number, self.due.get(number, 0), BATCH
            if commits := connection.execute(_COMMITS, query).fetchall():
                self.append([self._leaf(connection, run, commit) for commit in commits])
                return len(commits)
        return 0

    def _leaf(self, connection: sqlite3.Connection, run: Row, commit: Row) -> LeafRow:
        hashes = self._hashes(run[0], commit[0], self.entries(connection, run, commit))
        return run[0], commit[0], commit[1], tree_of(hashes).root(0, len(hashes))

    def append(self, added: Sequence[LeafRow]) -> None:
        """Add the leaves *added*, and bring them to the disk before anything is signed."""
        packed = [LEAF.pack(*leaf) for leaf in added]
        for (number, _, last, _), data in zip(added, packed, strict=True):
            self.tree.add(leaf_hash(data))
            self.due[number] = last + 1
        append_records(self.folder / "leaves", b"".join(packed), LEAF.size)
        vars(self).pop("leaves", None)

    def check_record(self, connection: sqlite3.Connection) -> None:
        """End the log unless the record holds its newest commit of each run, or pruned it.

        Raises ``DataInvalid`` if it ends now, or has ended. A log is never signed over: what it
        dated was lost.
        """
        for number, due in () if self.ended else self.due.items():
            pruned = prune_point(connection, number)
            if pruned is not None and due <= pruned.until_sequence + 1:
                continue
            stored = self.stored(connection, number, due - 1)
            leaf = self.leaves[self.find(number, np.array([due - 1]))].tobytes()
            if stored is None or LEAF.pack(*self._leaf(connection, *stored)) != leaf:
                text = (
                    f"The log {self.origin} has ended: the record lacks the commit of run {number} "
                    f"up to step {due - 1}, which the log holds: an older copy of the database was "
                    f"put back, or it was changed. Its notes stay valid; move {self.folder} away "
                    "and begin another: `tracepaper witness key --origin NEW_NAME`."
                )
                write_whole((text.encode(),), self.folder / "ended")
        if self.ended:
            raise DataInvalid(self.ended)

    @property
    def ended(self) -> str:
        """The sentence that says why the log has ended; empty if it has not."""
        return self._text("ended")

    @property
    def signed(self) -> str:
        """The newest signed note; empty before the first."""
        return self._text("checkpoint")

    def _text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text("utf-8") if path.exists() else ""

    def stored(self, connection: sqlite3.Connection, number: int, step: int) -> Stored | None:
        """Return the rows of run *number* and of its commit with *step*; None if one is absent."""
        run = connection.execute(_RUN, (number,)).fetchone()
        commit = connection.execute(_COMMIT, (number, step)).fetchone()
        return None if run is None or commit is None or commit[0] > step else (run, commit)

    def entries(self, connection: sqlite3.Connection, run: Row, commit: Row) -> list[Entry]:
        """Return what a leaf holds: its commit, then each decision, in the order of the format."""
        (number, run_id, opened, period_ms, interval_ms, *named) = run
        first, last, digest = commit
        of_run = {"run": run_id, "number": number}
        bar = connection.execute(_NEWEST_BAR, (number, 0, last)).fetchone()
        (equity,) = connection.execute(_ACCOUNT, (number, last)).fetchone()
        entry: Entry = {"kind": "commit", **of_run, "sequence": last, "digest": digest.hex()}
        entry |= {"bar": None if bar is None else bar[0], "equity": equity}
        if first == 0:
            (begin,) = connection.execute(_ACCOUNT, (number, 0)).fetchone()
            entry |= {"opened": opened.hex(), "period": period_ms, "equity_begin": begin}
            entry |= dict(zip(_NAMED, named, strict=True))
        entries = [entry]
        for row in connection.execute(_DECISIONS, (number, first, last)):
            sequence, symbol, bar_ms, action, allowed, refused_by, target, decimals, *forecast = row
            decision: Entry = {"kind": "decision", **of_run, "sequence": sequence, "symbol": symbol}
            decision |= {"bar": bar_ms, "interval_ms": interval_ms, "action": action}
            decision |= {"allowed": allowed, "refused_by": refused_by}
            decision["target"] = None if target is None else unscaled(target, decimals)
            decision |= dict(zip(_FORECAST, forecast, strict=True))
            entries.append(decision)
        return entries

    def _salt(self, number: int, first: int, place: int) -> bytes:
        name = f"{number} {first} {place}".encode()
        return hmac.digest(self.signer.seal, name, "sha256")[:SALT_BYTES]

    def _hashes(self, number: int, first: int, entries: Sequence[Entry]) -> list[bytes]:
        return [
            leaf_hash(self._salt(number, first, place) + entry_text(entry).encode())
            for place, entry in enumerate(entries)
        ]

    # ------------------------------------------------------------ notes

    def sign(self) -> str:
        """Sign a checkpoint of all leaves and keep it; return the note."""
        note = self.note(len(self.tree))
        write_whole((note.encode(),), self.folder / "checkpoint")
        return note

    def note(self, size: int) -> str:
        """Return the signed checkpoint of the first *size* leaves; always the same text."""
        text = f"{self.origin}\n{size}\n{_base64(self.tree.root(0, size))}\n"
        return f"{text}\n{self.signer.line(text)}"

    def request(self, old: int, note: str) -> str:
        """Return the body of ``add-checkpoint`` for *note*, if a witness knows *old* leaves."""
        size = Note.parse(note).size
        proof = self.tree.consistency(old, 0, size) if 0 < old < size else []
        return "".join([f"old {old}\n", *(f"{_base64(each)}\n" for each in proof), "\n", note])

    def keep(self, note: str) -> None:
        """Keep the dates of the cosigned *note*; its cosignatures were checked."""
        _, size, _, _, (_, *cosignatures) = Note.parse(note)
        for name, value in cosignatures:
            path = self.folder / "dates" / quote(f"{name}+{value[:4].hex()}", safe="")
            append_records(path, size.to_bytes(4, "big") + value[4:], DATES.itemsize)
        vars(self).pop("dates", None)

    def cosigned(self, size: int) -> str:
        """Return the note of the first *size* leaves with each cosignature and token on it."""
        note = self.note(size)
        for key, each in self.dates.items():
            name, _, number = key.rpartition("+")
            for row in each[each["size"] == size][:1]:
                note += signature_line(name, bytes.fromhex(number) + row.tobytes()[4:])
        for path in self.stamped.get(size, ()):
            if path.suffix == ".tsr":
                note += signature_line(unquote(path.stem.split("+")[2]), CLOCK + path.read_bytes())
        return note

    def clock_files(self, clock: str, day: str = "*", ending: str = "*") -> list[Path]:
        """Return the files of the *clock*, an address, from the oldest on."""
        name = f"{day}+*+{quote(clock, safe='*')}.{ending}"
        return sorted((self.folder / "clocks").glob(name))

    def keep_token(self, day: str, note: str, clock: str, ending: str, token: bytes) -> None:
        """Keep the *token* of the *clock* on *note*, which was asked for on *day*."""
        name = f"{day}+{Note.parse(note).size}+{quote(clock, safe='')}.{ending}"
        write_whole((token,), self.folder / "clocks" / name)
        vars(self).pop("stamped", None)

    # ------------------------------------------------------------ proofs

    def prove(self, connection: sqlite3.Connection, number: int, step: int | None) -> Entry:
        """Return the proof of the decision at *step*, or of the run until its newest dated commit.

        Raises ``DataInvalid`` if nothing dates them, their rows were pruned or differ from what
        was logged, or there is no such decision.
        """
        indices = self.find(number, np.array([0 if step is None else step])).tolist()
        if step is None:
            indices += np.flatnonzero(self.leaves["run"][: self.dated] == number)[-1:].tolist()
        if not 0 <= indices[0] < self.dated:
            what = "the run" if step is None else f"step {step} of the run"
            raise DataInvalid(
                f"No witness has dated {what} yet; `tracepaper witness status` shows why."
            )
        shown = {index: self._shown(connection, index, step) for index in indices}
        of_witness = [size for _, size, _ in self.first_dates(max(shown))][:1]
        of_clock = sorted(size for size in self.stamped if size > max(shown))[:1]
        notes = [
            {
                "note": self.cosigned(size),
                "path": [*map(_base64, self.tree.path([*shown], 0, size))],
            }
            for size in dict.fromkeys(of_witness + of_clock)
        ]
        return {"leaves": [*shown.values()], "notes": notes}

    def _shown(self, connection: sqlite3.Connection, index: int, step: int | None) -> Entry:
        """Return what a proof shows of leaf *index*: its commit, or the decision at *step*."""
        number, first, last, root = LEAF.unpack(self.leaves[index].tobytes())
        if (stored := self.stored(connection, number, last)) is None:
            raise DataInvalid(f"The rows of step {last} were pruned; only their leaf is left.")
        entries = self.entries(connection, *stored)
        tree = tree_of(self._hashes(number, first, entries))
        if tree.root(0, len(tree)) != root:
            raise DataInvalid(f"The rows of step {last} were changed since they were logged.")
        places = {each["sequence"]: place for place, each in enumerate(entries) if place}
        place = 0 if step is None else places.get(step)
        if place is None:
            raise DataInvalid(f"Step {step} has no decision; v_decisions lists those that do.")
        return {
            "index": index,
            "of": [number, first, last],
            "entries": len(entries),
            "place": place,
            "salt": _base64(self._salt(number, first, place)),
            "entry": entry_text(entries[place]),
            "path": [*map(_base64, tree.path([place], 0, len(tree)))],
        }


def entry_text(entry: Mapping[str, Any]) -> str:
    """Return the text of an entry as it is hashed: JSON without spaces, keys in this order."""
    return msgspec.json.encode(entry).decode()


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
