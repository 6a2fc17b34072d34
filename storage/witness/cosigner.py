"""``Cosigner``: a witness for other people's logs, by C2SP tlog-witness.

It keeps one size and one root for each log, and signs only what extends them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from tracepaper.storage.covariates import write_whole
from tracepaper.storage.witness.judge import (
    MALFORMED,
    Note,
    NoteKey,
    Refused,
    node,
    unbase64,
)
from tracepaper.storage.witness.keys import Signer
from tracepaper.storage.witness.leaves import split

PROOF_MOST: Final = 63
"""Most hashes of a consistency proof."""


class CosignerAnswer(NamedTuple):
    """The answer to a request: an HTTP status and a text."""

    status: int
    text: str


class RequestDeclined(Exception):
    """The answer to a request that is not signed: its argument."""


def consistent(
    old: int, old_root: bytes, size: int, proof: Sequence[bytes], *, is_whole: bool = True
) -> tuple[bytes, bytes]:
    """Return the roots of the first *old* of *size* leaves and of all, to which *proof* leads.

    RFC 6962, 2.1.2. Raises ``ValueError`` if its length is wrong.
    """
    if old == size:
        (root,) = (old_root, *proof) if is_whole else proof
        return root, root
    half, (*inner, last) = split(size), proof
    if old <= half:
        before, after = consistent(old, old_root, half, inner, is_whole=is_whole)
        return before, node(after, last)
    before, after = consistent(old - half, old_root, size - half, inner, is_whole=False)
    return node(last, before), node(last, after)


class Cosigner:
    """Cosigns checkpoints of *logs*, keys by origin; *state* is the file of what it signed."""

    def __init__(self, signer: Signer, logs: Mapping[str, NoteKey], state: Path) -> None:
        self._signer, self._logs, self._state = signer, logs, state
        self._signed: dict[str, tuple[int, str]] = {}  # size and root of the newest, by origin
        if state.exists():
            self._signed = json.loads(state.read_text("ascii"))

    def add_checkpoint(self, body: str, now_s: int) -> CosignerAnswer:
        """Return the answer to ``add-checkpoint`` at second *now_s*; what it signs is stored first.

        Raises ``OSError`` if it cannot be stored; then nothing was signed.
        """
        try:
            note = self._accepted(body)
        except RequestDeclined as declined:
            return CosignerAnswer(*declined.args)
        self._signed[note.origin] = note.size, base64.b64encode(note.root).decode()
        write_whole((json.dumps(self._signed).encode(),), self._state)
        return CosignerAnswer(200, self._signer.line(note.text, now_s))

    def _accepted(self, body: str) -> Note:
        head, _, signed = body.partition("\n\n")
        first, *lines = head.split("\n")
        try:
            note, proof = Note.parse(signed), [*map(unbase64, lines)]
            old = int(first.removeprefix("old "))
        except (Refused, *MALFORMED) as error:
            raise RequestDeclined(400, "malformed\n") from error
        is_plain = signed.startswith(f"{note.origin}\n{note.size}\n") and len(note.root) == 32
        is_old = first == f"old {old}" and 0 <= old <= note.size
        if not (note.origin and is_plain and is_old and len(proof) <= PROOF_MOST):
            raise RequestDeclined(400, "malformed\n")
        if (key := self._logs.get(note.origin)) is None:
            raise RequestDeclined(404, "unknown log\n")
        if key.signed_at(note) is None:
            raise RequestDeclined(403, "not signed by the log\n")
        size, text = self._signed.get(note.origin, (0, ""))
        root = unbase64(text)
        if old != size or (size == note.size and root != note.root):
            raise RequestDeclined(409, f"{size}\n")
        with suppress(ValueError):
            if not size or consistent(size, root, note.size, proof) == (root, note.root):
                return note
        raise RequestDeclined(422, "inconsistent\n")
