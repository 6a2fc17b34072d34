"""The canonical encoding of a commit, byte by byte as documented."""

from __future__ import annotations

from hashlib import sha256

from tracepaper.storage.record.columns import SCHEMA, Row
from tracepaper.storage.record.hashing import ChainHead, pack, sealed


def test_a_commit_is_the_hash_of_the_one_before_and_of_its_rows() -> None:
    before = ChainHead(*(sha256(text).digest() for text in (b"before", b"kept", b"older")))
    steps: list[Row] = [(7, 1, None, 2.5, None), (8, 1, 3)]
    rows: dict[str, list[Row]] = {
        "steps": steps,
        "fills": [(8, 0, "7-0", None)],
        "states": [(8, None, b"state")],
    }
    commit = sealed(before, 7, 8, rows)
    parts = [
        ("steps", 2, sha256(pack([(7, 1, None, 2.5), (8, 1, 3)])).digest()),
        ("states", 1, sha256(pack([(8, None, b"state")])).digest()),
        ("fills", 1, sha256(pack([(8, 0, "7-0")])).digest()),
    ]
    kept = sha256(before.kept + pack([("fills", (8, 0, "7-0"))])).digest()
    state = sha256(b"state").digest()
    whole = before.digest + kept + before.state + pack((SCHEMA, 7, 8, parts))
    assert commit.head == (sha256(whole).digest(), kept, state)
