"""The canonical encoding of the chain's links."""

from __future__ import annotations

from hashlib import sha256

from tracepaper.storage.record.digest import chain_digest


def test_a_link_is_the_hash_of_the_one_before_and_the_rows() -> None:
    """The bytes as documented: SHA-256 over the previous digest and MessagePack."""
    rows = bytes([0x92, 0x93, 1, 0xA1, ord("x"), 0xC0, 0xC4, 1, 7])
    by_hand = sha256(b"before" + b"covered" + b"prefix" + rows)
    payload = ((1, "x", None), b"\x07")
    assert chain_digest(b"before", b"covered", b"prefix", payload) == by_hand.digest()
