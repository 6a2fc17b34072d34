"""Private keys of a log and of a witness, one file each, in the format of Go's ``note``."""

from __future__ import annotations

import base64
import os
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tracepaper.storage.witness.judge import COSIGNED, PLAIN, NoteKey, Refused, unbase64
from tracepaper.strategies.errors import ConfigInvalid

PREFIX = "PRIVATE+KEY+"


class Signer(NamedTuple):
    """A private key with its public one."""

    key: NoteKey
    private: Ed25519PrivateKey

    @property
    def seal(self) -> bytes:
        """The secret from which the salts of a log's entries follow."""
        return sha256(b"seal" + self.private.private_bytes_raw()).digest()

    def line(self, text: str, at_s: int = 0) -> str:
        """Return the signature line on *text*; that of a witness's key has the time *at_s*."""
        signature = b""
        if self.key.kind == COSIGNED:
            signature = at_s.to_bytes(8, "big")
            text = f"cosignature/v1\ntime {at_s}\n{text}"
        return signature_line(
            self.key.name, self.key.id + signature + self.private.sign(text.encode())
        )


def signature_line(name: str, value: bytes) -> str:
    """Return the line of a note by which *name* signs: *value* is the key's id and a signature."""
    return f"— {name} {base64.b64encode(value).decode()}\n"


def key_text(key: NoteKey) -> str:
    """Return *key* as it is published."""
    public = base64.b64encode(bytes([key.kind]) + key.public).decode()
    return f"{key.name}+{key.id.hex()}+{public}"


def make_key(path: Path, name: str, kind: int) -> NoteKey:
    """Write a new private key called *name* to *path*, for its owner alone; return its public key.

    Raises ``ConfigInvalid`` if *path* exists, or *name* is none that a signed note may have.
    """
    if not name or "+" in name or any(character.isspace() for character in name):
        raise ConfigInvalid(f"A key needs a name without spaces and +, as a URL has: {name!r}.")
    private = Ed25519PrivateKey.generate()
    key = NoteKey(name, private.public_key().public_bytes_raw(), kind)
    secret = base64.b64encode(bytes([kind]) + private.private_bytes_raw()).decode()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigInvalid(f"{path} exists already, and a key is never replaced.") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{PREFIX}{name}+{key.id.hex()}+{secret}\n")
        file.flush()
        os.fsync(descriptor)
    return key


def read_key(path: Path, kind: int) -> Signer:
    """Return the private key of *kind* in *path*.

    Raises ``ConfigInvalid`` if there is none, or others may read it.
    """
    try:
        mode = path.stat().st_mode & 0o777
        name, number, secret = path.read_text("ascii").removeprefix(PREFIX).strip().split("+", 2)
        private = Ed25519PrivateKey.from_private_bytes(unbase64(secret)[1:])
    except (OSError, ValueError, Refused) as error:
        raise ConfigInvalid(
            f"The key {path} cannot be read ({error}); `tracepaper witness key` makes one."
        ) from None
    if mode & 0o077:
        raise ConfigInvalid(
            f"Others may read the key {path} (mode {mode:o}): chmod 600 it if nobody did, else "
            "make another key under another name."
        )
    key = NoteKey(name, private.public_key().public_bytes_raw(), kind)
    if key.id.hex() != number:
        whose = "log" if kind == PLAIN else "witness"
        raise ConfigInvalid(f"{path} holds no key of a {whose}; `tracepaper witness key` makes it.")
    return Signer(key, private)


def parse_key(text: str, named_by: str) -> NoteKey:
    """Return the public key that *text* writes; ``ConfigInvalid`` names *named_by*."""
    try:
        return NoteKey.parse(text)
    except Refused as refused:
        raise ConfigInvalid(f"{named_by}: {refused}") from None
