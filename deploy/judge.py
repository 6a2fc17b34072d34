"""Judge what a tracepaper log proves: one file, without tracepaper, its engine or a database.

``python judge.py PROOF… --log KEY --witness KEY`` needs the standard library and ``cryptography``.
A PROOF is a file of ``tracepaper witness attest``, a cosigned note, or a folder of ``tracepaper
witness publish``. docs/what_the_record_proves.md has the written format; the formats of others
are C2SP signed-note, tlog-checkpoint and tlog-cosignature, and the hashes of RFC 6962.
"""

from __future__ import annotations

import argparse
import base64
import json
import struct
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

PLAIN, COSIGNED = 1, 4  # kinds of keys: a log's, and a witness's, whose signatures have a time
SALT_BYTES = 16
LEAF = struct.Struct(">III32s")  # number of the run, first and last step, root of its entries
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Refused(Exception):
    """The evidence does not hold; the text is one sentence that says why."""


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf with *data*."""
    return sha256(b"\0" + data).digest()


def node(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return sha256(b"\1" + left + right).digest()


def split(size: int) -> int:
    """Return the size of the left subtree of a tree of *size* leaves, two or more."""
    return 1 << (size - 1).bit_length() - 1


def root_of(size: int, shown: Mapping[int, bytes], path: Sequence[object]) -> bytes:
    """Return the root of *size* leaves, of which some are *shown*; raise ``Refused``.

    *path* has the hash of each largest subtree without a shown leaf, from left to right.
    """
    hidden = [unbase64(each) for each in reversed(path)]

    def root(begin: int, end: int) -> bytes:
        if begin not in shown and not any(begin <= index < end for index in shown):
            return hidden.pop()
        if end - begin == 1:
            return shown[begin]
        middle = begin + split(end - begin)
        left = root(begin, middle)
        return node(left, root(middle, end))

    whole = root(0, size)
    if hidden or not 0 <= min(shown) <= max(shown) < size:
        raise Refused("The path of the proof does not fit the tree.")
    return whole


class NoteKey(NamedTuple):
    """A verifier's key: ``NAME+ID+BASE64`` of signed-note."""

    name: str
    public: bytes
    kind: int = PLAIN

    @property
    def id(self) -> bytes:
        """The four bytes by which a signature names this key."""
        return sha256(f"{self.name}\n".encode() + bytes([self.kind]) + self.public).digest()[:4]

    @classmethod
    def parse(cls, text: str) -> NoteKey:
        """Return the key that *text* writes; raise ``Refused`` if it is none of Ed25519."""
        name, number, public = [*text.split("+", 2), "", ""][:3]
        kind, *_ = material = unbase64(public) or b"\0"
        key = cls(name, material[1:], kind)
        if len(key.public) != 32 or kind not in {PLAIN, COSIGNED} or key.id.hex() != number:
            raise Refused(f"{text!r} is no key of Ed25519, or was copied with a mistake.")
        return key


class Note(NamedTuple):
    """A signed note whose text is a checkpoint: origin, size and root of a log."""

    origin: str
    size: int
    root: bytes
    text: str
    signatures: tuple[tuple[str, bytes], ...]  # name; id of the key, and what it signed

    @classmethod
    def parse(cls, note: str) -> Note:
        """Return the checkpoint of *note*; raise ``ValueError`` if it is none."""
        text, _, lines = note.rpartition("\n\n")
        origin, size, root, *_ = text.split("\n")
        signatures = [line.split(" ") for line in lines.splitlines()]
        named = tuple((name, unbase64(value)) for _, name, value in signatures)
        return cls(origin, int(size), unbase64(root), f"{text}\n", named)

    def signed_at(self, key: NoteKey) -> int | None:
        """Return the second at which *key* signed, 0 of a log; None if it did not."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        for value in [value for name, value in self.signatures if name == key.name]:
            at_s, signature, message = 0, value[4:], self.text
            if key.kind == COSIGNED:
                at_s, signature = int.from_bytes(value[4:12], "big"), value[12:]
                message = f"cosignature/v1\ntime {at_s}\n{message}"
            try:
                Ed25519PublicKey.from_public_bytes(key.public).verify(signature, message.encode())
            except InvalidSignature:
                continue
            return at_s
        return None

    def dates(self, log: NoteKey, witnesses: Sequence[NoteKey]) -> list[tuple[int, str]]:
        """Return the second before which each of *witnesses* that signed saw the log, and its name.

        Raises ``Refused`` if the log did not sign.
        """
        if self.origin != log.name or self.signed_at(log) is None:
            raise Refused(f"The note is not signed by the log {log.name}.")
        return sorted((at_s, key.name) for key in witnesses if (at_s := self.signed_at(key)))


def unbase64(text: object) -> bytes:
    """Return the bytes that *text* writes; raise ``ValueError`` if it is no base64."""
    return base64.b64decode(str(text), validate=True)


def entry_hash(salt: bytes, text: str) -> bytes:
    """Return the hash of an entry of a leaf; nobody guesses its text without the *salt*."""
    if len(salt) != SALT_BYTES:
        raise Refused(f"A salt has {SALT_BYTES} bytes.")
    return leaf_hash(salt + text.encode())


def read_proof(given: Mapping[str, Any]) -> tuple[list[Note], dict[str, Any]]:
    """Return notes and rows of the proof *given*; raise ``Refused`` if a hash does not hold."""
    rows, hashes = dict[str, Any](), dict[int, bytes]()
    for leaf in given["leaves"]:
        entry = entry_hash(unbase64(leaf["salt"]), leaf["entry"])
        root = root_of(leaf["entries"], {leaf["place"]: entry}, leaf["path"])
        hashes[leaf["index"]] = leaf_hash(LEAF.pack(*leaf["of"], root))
        shown, (number, first, last) = json.loads(leaf["entry"]), leaf["of"]
        if shown["number"] != number or not first <= shown["sequence"] <= last:
            raise Refused("The rows are of another run or step than their leaf.")
        if any(rows.get(name, shown[name]) != shown[name] for name in ("kind", "run", "number")):
            raise Refused("The first and the last row are of different runs.")
        rows |= shown
    notes = [Note.parse(each["note"]) for each in given["notes"]]
    for note, each in zip(notes, given["notes"], strict=True):
        if root_of(note.size, hashes, each["path"]) != note.root:
            raise Refused("The rows are not in the log: they, or the proof, were changed.")
    return notes, rows


def utc(at_s: float) -> str:
    """Return a time in Unix seconds as text."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def before(dates: Sequence[tuple[int, str]]) -> str:
    """Return *dates* as text; raise ``Refused`` if there is none."""
    if not dates:
        raise Refused("None of the given witnesses signed the note: it has no date.")
    return " and ".join(f"before {utc(at_s)} by the clock of {who}" for at_s, who in dates)


def sentence(rows: Mapping[str, Any], dates: Sequence[tuple[int, str]]) -> str:
    """Return what is proved of *rows* if their log had the *dates*, the earliest first."""
    logged = f"was in the log {before(dates)}"
    if rows["kind"] == "commit":
        begin, end = rows["equity_begin"] / 10**8, rows["equity"] / 10**8
        bars = f"from {utc(rows['period'] / 1000)} to the bar of {utc(rows['bar'] / 1000)}"
        text = f"Run {rows['run']} (number {rows['number']}, {rows['sequence'] + 1} steps, {bars}) "
        text += f"{logged}: equity {begin:,.2f} became {end:,.2f}, "
        return f"{text}digest {rows['digest']}."
    close_s, horizon = (rows["bar"] + rows["interval_ms"]) / 1000, rows["horizon"]
    end_s = close_s + (horizon or 1) * rows["interval_ms"] / 1000
    refused = "" if rows["allowed"] else f", refused by {rows['refused_by']}"
    text = f"This decision ({rows['symbol']} {rows['action']}{refused}, {utc(close_s)}) {logged}; "
    text += f"{'its forecast ends' if horizon else 'the next bar closes'} at {utc(end_s)}"
    if dates[0][0] >= end_s:
        return f"{text}: the date is too late to prove that it was no hindsight."
    if dates[0][0] < close_s:
        return f"{text}; a clock is wrong, of the witness or the daemon."
    return f"{text}."


def runs_of(leaves: Sequence[bytes]) -> dict[int, int]:
    """Return the steps of each run in *leaves*, by number; raise ``Refused`` if some lack."""
    due = dict[int, int]()
    for number, first, last, _ in map(LEAF.unpack, leaves):
        if due.setdefault(number, first) != first or last < first:
            raise Refused(f"The log skips or repeats steps before step {first} of run {number}.")
        due[number] = last + 1
    return due


def judge(paths: Sequence[Path], log: NoteKey, witnesses: Sequence[NoteKey]) -> list[str]:
    """Return what the files *paths* of one log prove, one sentence each; raise ``Refused``.

    Several files also show whether the log has two histories, and runs that none of them shows.
    """
    sentences, notes, shown, leaves = list[str](), list[Note](), list[int](), list[bytes]()
    try:
        for path in paths:
            files = [path]
            if path.is_dir():
                data = (path / "leaves").read_bytes()
                listed = [data[at : at + LEAF.size] for at in range(0, len(data), LEAF.size)]
                leaves = max(leaves, listed, key=len)  # the longest folder has what others have
                files = [path / "checkpoint", *sorted(path.glob("runs/*.json"))]
            for text in [file.read_text("utf-8") for file in files]:
                if not text.startswith("{"):
                    notes.append(Note.parse(text))
                    continue
                dated, rows = read_proof(json.loads(text))
                dates = sorted(date for note in dated for date in note.dates(log, witnesses))
                sentences.append(sentence(rows, dates))
                shown.append(rows["number"])
                notes += dated
        numbers, seen = {*shown, *runs_of(leaves)}, dict[int, Note]()
        for note in notes:
            of_note = dict(enumerate(map(leaf_hash, leaves[: note.size])))
            if leaves and root_of(note.size, of_note, ()) != note.root:
                raise Refused("A note is of another history than the leaves of the folder.")
            if (other := seen.setdefault(note.size, note)).root != note.root:
                keys = [k for k in (log, *witnesses) if note.signed_at(k) is not None]
                both = [k.name for k in keys if other.signed_at(k) is not None]
                raise Refused(f"Two histories of {note.size} leaves, signed by {', '.join(both)}.")
        newest = seen[max(seen)]
        last = f"The log had {newest.size} leaves {before(newest.dates(log, witnesses))}."
    except (*MALFORMED, struct.error) as error:
        raise Refused(f"The evidence is malformed ({type(error).__name__}: {error}).") from None
    if left := sorted({*range(min(numbers, default=0), max(numbers, default=-1) + 1)} - {*shown}):
        raise Refused(f"Runs of the log are not shown: number {', '.join(map(str, left))}.")
    return [*sentences, last]


def main() -> int:
    """Judge the files of the command line; return 0 if all hold, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("proofs", nargs="+", type=Path, metavar="PROOF")
    parser.add_argument("--log", required=True, metavar="KEY", help="the log's key")
    parser.add_argument("--witness", action="append", default=[], metavar="KEY")
    given = parser.parse_args()
    try:
        log, *witnesses = map(NoteKey.parse, (given.log, *given.witness))
        answer = "\n".join(judge(given.proofs, log, witnesses))
    except (Refused, OSError) as refused:
        answer = f"Refused: {refused}"
    sys.stdout.write(f"{answer}\n")
    return int(answer.startswith("Refused"))


if __name__ == "__main__":
    sys.exit(main())
