"""Judge what a tracepaper log proves: one file, without tracepaper, its engine or a database.

``python judge.py PROOF… --log KEY --witness KEY`` needs the standard library and ``cryptography``.
A PROOF is a file or a folder of ``tracepaper witness``, the KEY of a public clock its certificate's
file. The formats: docs/what_the_record_proves.md; C2SP tlog-checkpoint and -cosignature, RFC 3161.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

PLAIN, COSIGNED = 1, 4  # kinds of keys: a log's, and a witness's, whose signatures have a time
SALT_BYTES = 16
LEAF = struct.Struct(">III32s")  # number of the run, first and last step, root of its entries
CLOCK = b"3161"  # in place of the id of a key: a line with the token of a public clock
SHA2: dict[int, Any] = {1: hashes.SHA256, 2: hashes.SHA384, 3: hashes.SHA512}  # by their names
MESSAGE_DIGEST = bytes.fromhex("06092a864886f70d010904")  # an attribute's name
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
unbase64 = partial(base64.b64decode, validate=True)


class Refused(Exception):
    """The evidence does not hold; the text is one sentence that says why."""


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf with *data*."""
    return hashlib.sha256(b"\0" + data).digest()


def node(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\1" + left + right).digest()


def root_of(size: int, shown: Mapping[int, bytes], path: Sequence[str]) -> bytes:
    """Return the root of *size* leaves, of which some are *shown*; raise ``Refused``.

    *path* has the hash of each largest subtree without a shown leaf, from left to right.
    """
    hidden = [unbase64(each) for each in reversed(path)]

    def root(begin: int, end: int) -> bytes:
        if begin not in shown and not any(begin <= index < end for index in shown):
            return hidden.pop()
        if end - begin == 1:
            return shown[begin]
        middle = begin + (1 << (end - begin - 1).bit_length() - 1)
        left = root(begin, middle)
        return node(left, root(middle, end))

    whole = root(0, size)
    if hidden or not 0 <= min(shown) <= max(shown) < size:
        raise Refused("The path of the proof does not fit the tree.")
    return whole


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
        signatures = [(name, unbase64(x)) for _, name, x in map(str.split, lines.splitlines())]
        return cls(origin, int(size), unbase64(root), f"{text}\n", tuple(signatures))


class NoteKey(NamedTuple):
    """A verifier's key: ``NAME+ID+BASE64`` of signed-note."""

    name: str
    public: bytes
    kind: int = PLAIN

    @property
    def id(self) -> bytes:
        """The four bytes by which a signature names this key."""
        return hashlib.sha256(
            f"{self.name}\n".encode() + bytes([self.kind]) + self.public
        ).digest()[:4]

    @classmethod
    def parse(cls, text: str) -> NoteKey:
        """Return the key that *text* writes; raise ``Refused`` if it is none of Ed25519."""
        name, number, public = [*text.split("+", 2), "", ""][:3]
        kind, *_ = material = unbase64(public) or b"\0"
        key = cls(name, material[1:], kind)
        if len(key.public) != 32 or kind not in {PLAIN, COSIGNED} or key.id.hex() != number:
            raise Refused(f"{text!r} is no key of Ed25519 or no file, or was copied wrongly.")
        return key

    def signed_at(self, note: Note) -> int | None:
        """Return the second at which this key signed *note*, 0 of a log; None if it did not."""
        public = ed25519.Ed25519PublicKey.from_public_bytes(self.public)
        for value in [value for name, value in note.signatures if name == self.name]:
            at_s, signature, message = 0, value[4:], note.text
            if self.kind == COSIGNED:
                at_s, signature = int.from_bytes(value[4:12], "big"), value[12:]
                message = f"cosignature/v1\ntime {at_s}\n{message}"
            with suppress(InvalidSignature):
                public.verify(signature, message.encode())
                return at_s
        return None


def der(data: bytes, *path: int) -> list[tuple[bytes, bytes]]:
    """Return content and whole of each DER value inside the one at *path* of *data*."""
    values = list[tuple[bytes, bytes]]()
    while data:
        head, size = 2, data[1]
        if size > 127:
            head += size - 128
            size = int.from_bytes(data[2:head], "big")
        values.append((data[head : head + size], data[: head + size]))
        data = data[head + size :]
    return der(values[path[0]][0], *path[1:]) if path else values


class Authority(NamedTuple):
    """A time-stamp authority of RFC 3161, which is asked once a day."""

    name: str
    public: Any  # of RSA or an elliptic curve

    def signed_at(self, note: Note) -> int | None:
        """Return the second of its token on *note*; None without one."""
        for token in [value[4:] for _, value in note.signatures if value[:4] == CLOCK]:
            fields = der(token, 0, 1, 0)  # of the SignedData
            stamped = der(fields[2][0], 1)[0][0]  # the TSTInfo
            _, _, (imprint, _), _, (made, _), *_ = der(stamped, 0)
            _, _, (used, _), (attributes, signed), _, (signature, _), *_ = der(fields[-1][0], 0)
            algorithm = SHA2[der(used)[0][0][-1]]()
            digest = hashlib.new(algorithm.name, stamped).digest()
            listed = MESSAGE_DIGEST + bytes([49, len(digest) + 2, 4, len(digest)]) + digest
            is_of_note = der(imprint)[1][0] == hashlib.sha256(note.text.encode()).digest()
            if not is_of_note or listed not in [content for content, _ in der(attributes)]:
                continue
            is_rsa = isinstance(self.public, rsa.RSAPublicKey)
            form = (padding.PKCS1v15(), algorithm) if is_rsa else (ec.ECDSA(algorithm),)
            with suppress(InvalidSignature):
                self.public.verify(signature, b"\x31" + signed[1:], *form)  # as a set
                at = datetime.strptime(f"{made[:14].decode()}Z", "%Y%m%d%H%M%S%z")
                return int(at.timestamp()) + (b"." in made)
        return None


def read_witness(text: str) -> NoteKey | Authority:
    """Return the witness whose key *text* is, or whose certificate it names."""
    if not Path(text).is_file():
        return NoteKey.parse(text)
    from cryptography.x509 import load_pem_x509_certificate  # a quarter of the judge's time

    certificate = load_pem_x509_certificate(Path(text).read_bytes())
    name = f"{certificate.subject.rfc4514_string()} (a public clock, asked once a day)"
    return Authority(name, certificate.public_key())


def dates(note: Note, log: NoteKey, keys: Sequence[NoteKey | Authority]) -> list[tuple[int, str]]:
    """Return when, in Unix seconds, and which of *keys* signed *note* of *log*, or refuse it."""
    if note.origin != log.name or log.signed_at(note) is None:
        raise Refused(f"The note is not signed by the log {log.name}.")
    return sorted((at_s, key.name) for key in keys if (at_s := key.signed_at(note)))


def read_proof(given: Mapping[str, Any]) -> tuple[list[Note], dict[str, Any]]:
    """Return notes and rows of the proof *given*; raise ``Refused`` if a hash does not hold."""
    rows, hashes = dict[str, Any](), dict[int, bytes]()
    for leaf in given["leaves"]:
        salt = struct.pack(f"{SALT_BYTES}s", unbase64(leaf["salt"]))  # always of this length
        entry = leaf_hash(salt + leaf["entry"].encode())
        root = root_of(leaf["entries"], {leaf["place"]: entry}, leaf["path"])
        hashes[leaf["index"]] = leaf_hash(LEAF.pack(*leaf["of"], root))
        shown, (number, first, last) = json.loads(leaf["entry"]), leaf["of"]
        is_of_leaf = shown["number"] == number and first <= shown["sequence"] <= last
        if not is_of_leaf or any(rows.get(x, shown[x]) != shown[x] for x in ("kind", "run")):
            raise Refused("The rows are of another run or step than their leaf.")
        rows |= shown
    notes = [(Note.parse(each["note"]), each["path"]) for each in given["notes"]]
    if any(root_of(note.size, hashes, path) != note.root for note, path in notes):
        raise Refused("The rows are not in the log: they, or the proof, were changed.")
    return [note for note, _ in notes], rows


def utc(at_s: float) -> str:
    """Return a time in Unix seconds as text."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def sentence(rows: Mapping[str, Any], dated: Sequence[tuple[int, str]], size: int) -> str:
    """Return what is proved of *rows* among *size* leaves by the dates *dated*, earliest first."""
    when = " and ".join(f"before {utc(at_s)} by the clock of {who}" for at_s, who in dated)
    logged = f"was in the log {when}" if dated else f"is in the log of {size} leaves"
    if not rows:
        return f"The log had {size} leaves {when or 'at a time that nobody is asked for'}."
    if rows["kind"] == "commit":
        bars = f"from {utc(rows['period'] / 1000)} to the bar of {utc(rows['bar'] / 1000)}"
        text = f"Run {rows['run']} (number {rows['number']}, {rows['sequence'] + 1} steps, {bars}) "
        equity = f"equity {rows['equity_begin'] / 10**8:,.2f} became {rows['equity'] / 10**8:,.2f}"
        return f"{text}{logged}: {equity}, digest {rows['digest']}."
    close_s, horizon = (rows["bar"] + rows["interval_ms"]) / 1000, rows["horizon"]
    end_s = close_s + (horizon or 1) * rows["interval_ms"] / 1000
    refused = "" if rows["allowed"] else f", refused by {rows['refused_by']}"
    text = f"This decision ({rows['symbol']} {rows['action']}{refused}, {utc(close_s)}) {logged}; "
    text += f"{'its forecast ends' if horizon else 'the next bar closes'} at {utc(end_s)}"
    at_s = dated[0][0] if dated else close_s
    late = ": the date is too late to prove that it was no hindsight" if at_s >= end_s else ""
    early = "; a clock is wrong, of the witness or the daemon" if at_s < close_s else ""
    return f"{text}{late}{early}."


def check_whole(leaves: Sequence[bytes], notes: Sequence[Note], shown: Sequence[int]) -> None:
    """Raise ``Refused`` if *leaves* are not those of *notes*, or a run is not *shown*."""
    due: dict[int, int | None] = dict.fromkeys(shown)  # the first step that no leaf has
    for number, first, last, _ in map(LEAF.unpack, leaves):
        if due.get(number) not in {None, first} or last < first:
            raise Refused(f"The log skips or repeats steps before step {first} of run {number}.")
        due[number] = last + 1
    for size, root in {(note.size, note.root) for note in notes if leaves}:
        if root_of(size, dict(enumerate(map(leaf_hash, leaves[:size]))), ()) != root:
            raise Refused("A note is of another history than the leaves of the folder.")
    if left := sorted({*range(min(due, default=0), max(due, default=-1) + 1)} - {*shown}):
        raise Refused(f"Runs of the log are not shown: number {', '.join(map(str, left))}.")


def judge(
    paths: Sequence[Path], log: NoteKey, witnesses: Sequence[NoteKey | Authority]
) -> list[str]:
    """Return what the files *paths* of one log prove, one sentence each; raise ``Refused``."""
    sentences, notes, shown, leaves = list[str](), list[Note](), list[int](), list[bytes]()
    files, keys = list[Path](), (log, *witnesses)
    try:
        for path in paths:
            inside = [*path.glob("*.note"), *path.glob("runs/*.json")]
            files += sorted(inside) if path.is_dir() else [path]
            data = (path / "leaves").read_bytes() if path.is_dir() else b""
            listed = [data[at : at + LEAF.size] for at in range(0, len(data), LEAF.size)]
            leaves = max(leaves, listed, key=len)  # the longest folder has what others have
            sentences += [f"`ots verify {x}` dates its note." for x in path.glob("*.ots")]
        for file in files:
            is_proof = (text := file.read_text("utf-8")).startswith("{")
            proved, rows = read_proof(json.loads(text)) if is_proof else ([Note.parse(text)], {})
            dated = sorted(date for note in proved for date in dates(note, log, witnesses))
            if dated or not witnesses:
                sentences.append(sentence(rows, dated, proved[0].size))
            elif is_proof or (file == files[-1] and not sentences):
                raise Refused("None of the given witnesses signed the note: it has no date.")
            notes, shown = notes + proved, shown + ([rows["number"]] if rows else [])
        check_whole(leaves, notes, shown)
        for note, other in combinations(notes, 2):
            if note.size == other.size and note.root != other.root:
                both = [k.name for k in keys if None not in {k.signed_at(note), k.signed_at(other)}]
                raise Refused(f"Two histories of {note.size} leaves, signed by {', '.join(both)}.")
    except (*MALFORMED, struct.error) as error:
        raise Refused(f"The evidence is malformed ({type(error).__name__}: {error}).") from None
    return sentences


def main() -> int:
    """Judge the files of the command line; return 0 if all hold, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("proofs", nargs="+", type=Path, metavar="PROOF")
    parser.add_argument("--log", required=True, metavar="KEY", help="the log's key")
    parser.add_argument("--witness", action="append", default=[], metavar="KEY")
    given = parser.parse_args()
    try:
        keys = [read_witness(text) for text in given.witness]
        answer = "\n".join(judge(given.proofs, NoteKey.parse(given.log), keys))
    except (Refused, OSError, ValueError) as refused:
        answer = f"Refused: {refused}"
    sys.stdout.write(f"{answer}\n")
    return int(answer.startswith("Refused"))


if __name__ == "__main__":
    sys.exit(main())
