"""Judge what a tracepaper log proves: one file, without tracepaper, its engine or a database.

``python judge.py PROOF… --log KEY --witness KEY`` needs the standard library and ``cryptography``.
A PROOF is a file of ``tracepaper witness attest``, a cosigned note, or a folder of ``tracepaper
witness publish``. docs/what_the_record_proves.md has the written format; the formats of others
are C2SP signed-note, tlog-checkpoint and tlog-cosignature, and the hashes of RFC 6962.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

PLAIN, COSIGNED = 1, 4  # kinds of keys: a log's, and a witness's, whose signatures have a time
SALT_BYTES = 16
LEAF = struct.Struct(">III32s")  # number of the run, first and last step, root of its entries
MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


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


def root_of(begin: int, end: int, shown: Mapping[int, bytes], path: Iterator[bytes]) -> bytes:
    """Return the root over the leaves *begin* to *end* (excluded), of which some are *shown*.

    *path* has the hash of each largest subtree without a shown leaf, from left to right.
    """
    if not any(begin <= index < end for index in shown):
        if (hidden := next(path, None)) is None:
            raise Refused("The proof lacks a hash of its path.")
        return hidden
    if end - begin == 1:
        return shown[begin]
    middle = begin + split(end - begin)
    left = root_of(begin, middle, shown, path)
    return node(left, root_of(middle, end, shown, path))


def proved_root(size: int, shown: Mapping[int, bytes], path: Sequence[object]) -> bytes:
    """Return the root of *size* leaves; raise ``Refused`` unless *path* fits the *shown* ones."""
    rest = iter([*map(unbase64, path)])
    root = root_of(0, size, shown, rest)
    if next(rest, None) is not None or not 0 <= min(shown) <= max(shown) < size:
        raise Refused("The path of the proof does not fit the tree.")
    return root


def roots(hashes: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the root after each of the leaf *hashes*."""
    full = list[tuple[int, bytes]]()  # size and root of each full subtree, from left to right
    for value in hashes:
        full.append((1, value))
        while len(full) > 1 and full[-1][0] == full[-2][0]:
            size, right = full.pop()
            full[-1] = 2 * size, node(full[-1][1], right)
        root = full[-1][1]
        for _, left in reversed(full[:-1]):
            root = node(left, root)
        yield root


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
        name, _, rest = text.partition("+")
        number, _, public = rest.partition("+")
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
        """Return the checkpoint of *note*; raise ``Refused`` if it is none."""
        text, blank, lines = note.rpartition("\n\n")
        origin, size, root, *_ = (*text.split("\n"), "", "")
        parts = [line.split(" ") for line in lines.splitlines()]
        is_size = size.isdecimal() and str(int(size)) == size
        is_signed = bool(parts) and all(len(part) == 3 and part[0] == "—" for part in parts)
        if not (blank and origin and is_size and is_signed and len(unbase64(root)) == 32):
            raise Refused("The note is no signed checkpoint of a log.")
        signatures = tuple((name, unbase64(value)) for _, name, value in parts)
        return cls(origin, int(size), unbase64(root), f"{text}\n", signatures)

    def signed_at(self, key: NoteKey) -> int | None:
        """Return the second at which *key* signed, 0 of a log, None if not; raise ``Refused``."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        for name, value in self.signatures:
            if (name, value[:4]) != (key.name, key.id):
                continue
            at_s, signature, message = 0, value[4:], self.text
            if key.kind == COSIGNED:
                at_s, signature = int.from_bytes(value[4:12], "big"), value[12:]
                message = f"cosignature/v1\ntime {at_s}\n{message}"
            try:
                Ed25519PublicKey.from_public_bytes(key.public).verify(signature, message.encode())
            except InvalidSignature:
                raise Refused(f"The signature of {name} is false.") from None
            return at_s
        return None

    def dated(self, log: NoteKey, witnesses: Sequence[NoteKey], quorum: int = 1) -> tuple[int, str]:
        """Return the second before which *quorum* of *witnesses* saw the log, and their names.

        Raises ``Refused`` if the log or too few of the witnesses signed.
        """
        if self.origin != log.name or self.signed_at(log) is None:
            raise Refused(f"The note is not signed by the log {log.name}.")
        signed = sorted((at_s, key.name) for key in witnesses if (at_s := self.signed_at(key)))
        if not 0 < quorum <= len({name for _, name in signed}):
            raise Refused(f"{len(signed)} of {quorum} witnesses signed the note: it has no date.")
        return signed[quorum - 1][0], " and ".join(name for _, name in signed[:quorum])


def unbase64(text: object) -> bytes:
    """Return the bytes that *text* writes; raise ``Refused`` if it is no base64."""
    try:
        return base64.b64decode(str(text), validate=True)
    except binascii.Error:
        raise Refused("The proof has a value that is no base64.") from None


def entry_hash(salt: bytes, text: str) -> bytes:
    """Return the hash of an entry of a leaf; nobody guesses its text without the *salt*."""
    if len(salt) != SALT_BYTES:
        raise Refused(f"A salt has {SALT_BYTES} bytes.")
    return leaf_hash(salt + text.encode())


def read_proof(given: Mapping[str, Any]) -> tuple[Note, dict[str, Any]]:
    """Return note and rows of the proof *given*; raise ``Refused`` if a hash does not hold."""
    note, rows, hashes = Note.parse(given["note"]), dict[str, Any](), dict[int, bytes]()
    for leaf in given["leaves"]:
        entry = entry_hash(unbase64(leaf["salt"]), leaf["entry"])
        root = proved_root(leaf["entries"], {leaf["place"]: entry}, leaf["path"])
        hashes[leaf["index"]] = leaf_hash(LEAF.pack(*leaf["of"], root))
        shown, (number, first, last) = json.loads(leaf["entry"]), leaf["of"]
        if shown["number"] != number or not first <= shown["sequence"] <= last:
            raise Refused("The rows are of another run or step than their leaf.")
        if any(rows.get(name, shown[name]) != shown[name] for name in ("kind", "run", "number")):
            raise Refused("The first and the last row are of different runs.")
        rows |= shown
    if proved_root(note.size, hashes, given["path"]) != note.root:
        raise Refused("The rows are not in the log: they, or the proof, were changed.")
    if rows["kind"] == "commit" and "opened" not in rows:
        raise Refused("The proof does not show the commit that opened the run.")
    for name, value in given["says"].items():
        if name not in rows or rows[name] != value:
            raise Refused(f"The proof says {name} {value!r}, and its rows say {rows.get(name)!r}.")
    return note, rows


def utc(at_ms: float) -> str:
    """Return a time in Unix milliseconds as text."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def sentence(rows: Mapping[str, Any], at_s: int, who: str) -> str:
    """Return what is proved of *rows* if the witnesses *who* saw their note at second *at_s*."""
    before = f"was in the log before {utc(at_s * 1000)} by the clock of {who}"
    if rows["kind"] == "commit":
        begin, end = rows["equity_begin"] / 10**8, rows["equity"] / 10**8
        bars = f"from {utc(rows['period'])} to the bar of {utc(rows['bar'])}"
        text = f"Run {rows['run']} (number {rows['number']}, {rows['sequence'] + 1} steps, {bars}) "
        text += f"{before}: equity {begin:,.2f} became {end:,.2f}, "
        return f"{text}digest {rows['digest']}."
    close_ms, horizon = rows["bar"] + rows["interval_ms"], rows["horizon"]
    end_ms = close_ms + (horizon or 1) * rows["interval_ms"]
    refused = "" if rows["allowed"] else f", refused by {rows['refused_by']}"
    text = f"This decision ({rows['symbol']} {rows['action']}{refused}, {utc(close_ms)}) {before}; "
    text += f"its {'forecast ends' if horizon else 'next bar closes'} at {utc(end_ms)}"
    if at_s * 1000 >= end_ms:
        return f"{text}: the date is too late to prove that it was no hindsight."
    is_early = at_s * 1000 < close_ms
    return f"{text}{'; the witness or the daemon has a wrong clock' if is_early else ''}."


def read_folder(folder: Path) -> tuple[list[int], list[Note], list[Mapping[str, Any]]]:
    """Return runs' numbers, notes and proofs of a published *folder*; raise ``Refused``."""
    lines = (folder / "notes").read_text("utf-8").splitlines()
    notes = [Note.parse(json.loads(line)) for line in lines]
    leaves = [*LEAF.iter_unpack((folder / "leaves").read_bytes())]
    at_size = dict(enumerate(roots(leaf_hash(LEAF.pack(*leaf)) for leaf in leaves), start=1))
    if not notes or any(at_size.get(note.size) != note.root for note in notes):
        raise Refused("A note of the folder is of another history than its leaves.")
    due = dict[int, int]()
    for number, first, last, _ in leaves:
        is_next = number in due or number == max(due, default=number - 1) + 1
        if not is_next or due.setdefault(number, first) != first or last < first:
            raise Refused(f"The log skips or repeats steps before step {first} of run {number}.")
        due[number] = last + 1
    proofs = sorted((folder / "runs").glob("*.json"))
    return [*due], notes, [json.loads(path.read_text("utf-8")) for path in proofs]


def judge(
    paths: Sequence[Path], log: NoteKey, witnesses: Sequence[NoteKey], quorum: int = 1
) -> list[str]:
    """Return what the files *paths* of one log prove, one sentence each; raise ``Refused``.

    Several files also show whether the log has two histories, and runs that none of them shows.
    """
    sentences, notes, numbers, shown = list[str](), list[Note](), list[int](), list[int]()
    try:
        for path in paths:
            proofs = list[Mapping[str, Any]]()
            if path.is_dir():
                listed, of_folder, proofs = read_folder(path)
                numbers, notes = [*numbers, *listed], [*notes, *of_folder]
            elif (text := path.read_text("utf-8")).startswith("{"):
                proofs = [json.loads(text)]
            else:
                notes.append(Note.parse(text))
            for note, rows in map(read_proof, proofs):
                notes.append(note)
                shown.append(rows["number"])
                sentences.append(sentence(rows, *note.dated(log, witnesses, quorum)))
        seen, keys = dict[int, Note](), (log, *witnesses)
        for note in notes:
            if (other := seen.setdefault(note.size, note)).root != note.root:
                both = [k.name for k in keys if None not in {note.signed_at(k), other.signed_at(k)}]
                raise Refused(f"Two histories of {note.size} leaves, signed by {', '.join(both)}.")
        at_s, who = (newest := seen[max(seen)]).dated(log, witnesses, quorum)
    except (*MALFORMED, struct.error) as error:
        raise Refused(f"The evidence is malformed ({type(error).__name__}: {error}).") from None
    numbers += range(min(shown, default=0), max(shown, default=-1) + 1)
    if left := sorted({*numbers} - {*shown}):
        raise Refused(f"Runs of the log are not shown: number {', '.join(map(str, left))}.")
    return [*sentences, f"The log had {newest.size} leaves before {utc(at_s * 1000)}: {who}."]


def main() -> int:
    """Judge the files of the command line; return 0 if all hold, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("proofs", nargs="+", type=Path, metavar="PROOF")
    parser.add_argument("--log", required=True, metavar="KEY", help="the log's key")
    parser.add_argument("--witness", action="append", default=[], metavar="KEY")
    parser.add_argument("--quorum", type=int, default=1, metavar="N", help="witnesses that signed")
    given = parser.parse_args()
    try:
        log, *witnesses = map(NoteKey.parse, (given.log, *given.witness))
        answer = "\n".join(judge(given.proofs, log, witnesses, given.quorum))
    except (Refused, OSError) as refused:
        answer = f"Refused: {refused}"
    sys.stdout.write(f"{answer}\n")
    return int(answer.startswith("Refused"))


if __name__ == "__main__":
    sys.exit(main())
