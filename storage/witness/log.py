"""The transparency log of one database: a leaf for each commit of its runs, in a folder beside it.

docs/what_the_record_proves.md has the format of a leaf; ``judge`` reads it without tracepaper.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from tracepaper.storage.covariates import write_whole
from tracepaper.storage.database.chunks import prune_point
from tracepaper.storage.witness.judge import (
    LEAF,
    PLAIN,
    SALT_BYTES,
    Note,
    NoteKey,
    entry_hash,
    leaf_hash,
    node,
    split,
)
from tracepaper.storage.witness.keys import make_key, read_key, read_secret, write_secret
from tracepaper.storage.witness.leaves import LeafRow, LoggedCommits, size_of, witness_folder
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.units import unscaled

HASH_BYTES: Final = 32
BATCH: Final = 1000
"""Commits that are sealed at once: a stop waits for them, and a long record has many."""
_TAIL_BYTES: Final = 65_536
"""More than a note is long."""
_COUNTS: Final = "SELECT run_key, step_count FROM runs ORDER BY run_key"
_RUN: Final = (
    "SELECT run_key, run_id, opened_digest, period_start_ms, interval_ms, gate_horizon, strategy, "
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
Entry = dict[str, Any]
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
        if (size := end - begin) == 0:
            return sha256(b"").digest()
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
        self._seal = bytes.fromhex(read_secret(self.folder / "seal"))
        self.origin = self.signer.key.name
        self.tree = tree_of(leaf_hash(LEAF.pack(*leaf)) for leaf in self.leaves())
        self._due = {number: last + 1 for number, _, last, _ in self.leaves()}

    @classmethod
    def create(cls, database: Path, origin: str) -> NoteKey:
        """Make the key of a new log called *origin*; what an ended log left is moved aside.

        Raises ``ConfigInvalid`` if a log that has not ended is there, or had this name.
        """
        folder = witness_folder(database)
        if (folder / "ended").exists():
            ended = read_key(folder / "key", PLAIN).key.name
            if ended == origin:
                raise ConfigInvalid(f"The log {origin} has ended; give the next one another name.")
            name = f"{folder.name}.{sha256(ended.encode()).hexdigest()[:8]}"
            folder.rename(folder.with_name(name))
        key = make_key(folder / "key", origin, PLAIN)
        write_secret(folder / "seal", os.urandom(HASH_BYTES).hex())
        return key

    # ------------------------------------------------------------ leaves

    def extend(self, connection: sqlite3.Connection) -> int:
        """Add leaves for the next commits, at most ``BATCH``; return how many, 0 at the end.

        Raises ``DataInvalid`` if the log has ended, or ends now because the record is not the one
        that it logged.
        """
        self.check_open()
        for number, count in connection.execute(_COUNTS).fetchall():
            if self._due.get(number, 0) == count:
                continue
            run = connection.execute(_RUN, (number,)).fetchone()
            query = number, self._due.get(number, 0), BATCH
            if commits := connection.execute(_COMMITS, query).fetchall():
                self.append([self._leaf(connection, run, commit) for commit in commits])
                return len(commits)
        return 0

    def _leaf(self, connection: sqlite3.Connection, run: Row, commit: Row) -> LeafRow:
        hashes = self._hashes(run[0], commit[0], self.entries(connection, run, commit))
        return run[0], commit[0], commit[1], tree_of(hashes).root(0, len(hashes))

    def append(self, added: Sequence[LeafRow]) -> None:
        """Add the leaves *added*, and bring them to the disk before anything is signed."""
        data = b"".join(LEAF.pack(*leaf) for leaf in added)
        with (self.folder / "leaves").open("r+b" if self._data else "wb") as file:
            file.seek(len(self._data))  # a killed process may have left a part of a leaf
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self._data += data
        for leaf in added:
            self.tree.add(leaf_hash(LEAF.pack(*leaf)))
            self._due[leaf[0]] = leaf[2] + 1

    def check_record(self, connection: sqlite3.Connection) -> None:
        """End the log unless the record holds its newest commit of each run, or pruned it.

        Raises ``DataInvalid`` then. A log is never signed over: what it dated was lost.
        """
        self.check_open()
        for leaf in {each[0]: each for each in self.leaves()}.values():
            number, _, last, _ = leaf
            pruned = prune_point(connection, number)
            if pruned is not None and last <= pruned.until_sequence:
                continue
            stored = self.stored(connection, number, last)
            if stored is None or self._leaf(connection, *stored) != leaf:
                raise self.end(
                    f"the record lacks the commit of run {number} up to step {last}, which the log "
                    "holds: an older copy of the database was put back, or it was changed"
                )

    def check_open(self) -> None:
        """Raise ``DataInvalid`` if the log has ended."""
        if self.ended:
            raise DataInvalid(self.ended)

    @property
    def ended(self) -> str:
        """The sentence that says why the log has ended; empty if it has not."""
        return self._read("ended").decode()

    def end(self, reason: str) -> DataInvalid:
        """End the log for good; return the error that says why."""
        text = (
            f"The log {self.origin} has ended: {reason}. Its notes stay valid; begin another: "
            "`tracepaper witness key --origin NAME`, with NAME in [witness] origin."
        )
        write_whole((text.encode(),), self.folder / "ended")
        return DataInvalid(text)

    def stored(self, connection: sqlite3.Connection, number: int, step: int) -> Stored | None:
        """Return the rows of run *number* and of its commit with *step*; None if one is absent."""
        run = connection.execute(_RUN, (number,)).fetchone()
        commit = connection.execute(_COMMIT, (number, step)).fetchone()
        return None if run is None or commit is None or commit[0] > step else (run, commit)

    def entries(self, connection: sqlite3.Connection, run: Row, commit: Row) -> list[Entry]:
        """Return what a leaf holds: its commit, then each decision, in the order of the format."""
        (number, run_id, opened, period_ms, interval_ms, horizon, *named) = run
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
            decision["horizon"] = horizon if forecast[0] is None else forecast[0]
            decision |= dict(zip(("mean_return", "p_down", "p_up"), forecast[1:], strict=True))
            entries.append(decision)
        return entries

    def _salt(self, number: int, first: int, place: int) -> bytes:
        name = f"{number} {first} {place}".encode()
        return hmac.digest(self._seal, name, "sha256")[:SALT_BYTES]

    def _hashes(self, number: int, first: int, entries: Sequence[Entry]) -> list[bytes]:
        return [
            entry_hash(self._salt(number, first, place), entry_text(entry))
            for place, entry in enumerate(entries)
        ]

    # ------------------------------------------------------------ notes

    @property
    def signed(self) -> str:
        """The newest signed note, with its cosignatures; empty before the first."""
        return self._read("checkpoint").decode()

    def sign(self) -> str:
        """Sign a checkpoint of all leaves and keep it; return the note."""
        root = self.tree.root(0, len(self.tree))
        text = f"{self.origin}\n{len(self.tree)}\n{_base64(root)}\n"
        note = f"{text}\n{self.signer.line(text)}"
        self._replace(note)
        return note

    def _replace(self, note: str) -> None:
        """Keep *note* as the newest; a killed process leaves the old one or the new one."""
        new = self.folder / "checkpoint.new"
        new.write_text(note, "utf-8")
        new.replace(self.folder / "checkpoint")

    @staticmethod
    def unsigned(note: str) -> str:
        """Return *note* without cosignatures: its text and the first signature, the log's own."""
        text, blank, lines = note.rpartition("\n\n")
        return text + blank + "".join(lines.splitlines(keepends=True)[:1])

    def request(self, old: int, note: str) -> str:
        """Return the body of ``add-checkpoint`` for *note*, if a witness knows *old* leaves."""
        size = size_of(note)
        proof = self.tree.consistency(old, 0, size) if 0 < old < size else []
        return "".join([f"old {old}\n", *(f"{_base64(each)}\n" for each in proof), "\n", note])

    def keep(self, note: str, cosignatures: str) -> None:
        """Keep *note* with the *cosignatures* of witnesses, which were checked."""
        with (self.folder / "notes").open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - _TAIL_BYTES))
            tail = file.read()
            file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)  # of a line that lost power tore
            file.write(json.dumps(note + cosignatures, ensure_ascii=False).encode() + b"\n")
        self._replace(note + cosignatures)

    # ------------------------------------------------------------ proofs

    def prove(self, connection: sqlite3.Connection, number: int, *steps: int, kind: str) -> Entry:
        """Return the proof of the ``decision`` at a step, or of the ``commit`` of each of *steps*.

        Raises ``DataInvalid`` if no cosigned note covers them, their rows were pruned or differ
        from what was logged, or there is no such decision.
        """
        shown, rows = dict[int, Entry](), Entry()
        for step, index in zip(steps, self.find(number, np.array(steps)).tolist(), strict=True):
            if index < 0 or self.covering(index) is None:
                raise DataInvalid(f"No witness has dated step {step} of the run yet.")
            if (stored := self.stored(connection, number, step)) is None:
                raise DataInvalid(f"The rows of step {step} were pruned; only their leaf is left.")
            _, first, last, root = LEAF.unpack_from(self._data, index * LEAF.size)
            entries = self.entries(connection, *stored)
            tree = tree_of(self._hashes(number, first, entries))
            if tree.root(0, len(tree)) != root:
                raise DataInvalid(f"The rows of step {step} were changed since they were logged.")
            at_step = {each["sequence"]: place for place, each in enumerate(entries) if place}
            place = 0 if kind == "commit" else at_step.get(step, -1)
            if place < 0:
                raise DataInvalid(f"Step {step} has no decision; v_decisions lists those that do.")
            rows |= entries[place]
            shown[index] = {
                "index": index,
                "of": [number, first, last],
                "entries": len(entries),
                "place": place,
                "salt": _base64(self._salt(number, first, place)),
                "entry": entry_text(entries[place]),
                "path": [*map(_base64, tree.path([place], 0, len(tree)))],
            }
        note = self.covering(max(shown)) or ""
        path = self.tree.path([*shown], 0, Note.parse(note).size)
        says = ("run", "sequence", "action" if kind == "decision" else "equity")
        return {
            "says": {name: rows[name] for name in says},
            "leaves": [*shown.values()],
            "path": [*map(_base64, path)],
            "note": note,
        }


def entry_text(entry: Mapping[str, Any]) -> str:
    """Return the text of an entry as it is hashed: JSON without spaces, keys in this order."""
    return msgspec.json.encode(entry).decode()


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
