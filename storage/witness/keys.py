"""Private keys of a log and of a witness, one file each, in the format of Go's ``note``."""

from __future__ import annotations

import base64
import os
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

    def line(self, text: str, at_s: int = 0) -> str:
        """Return the signature line on *text*; that of a witness's key has the time *at_s*."""
        signature = b""
        if self.key.kind == COSIGNED:
            signature = at_s.to_bytes(8, "big")
            text = f"cosignature/v1\ntime {at_s}\n{text}"
        signature += self.private.sign(text.encode())
        return f"— {self.key.name} {base64.b64encode(self.key.id + signature).decode()}\n"


def key_text(key: NoteKey) -> str:
    """Return *key* as it is published."""
    public = base64.b64encode(bytes([key.kind]) + key.public).decode()
    return f"{key.name}+{key.id.hex()}+{public}"


def write_secret(path: Path, text: str) -> None:
    """Write *text* to the new file *path*, which only its owner may read.

    Raises ``ConfigInvalid`` if there is one: a key that is replaced cannot be had back.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigInvalid(f"{path} exists already, and a key is never replaced.") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(descriptor)


def read_secret(path: Path) -> str:
    """Return the text of *path*; raise ``ConfigInvalid`` if others may read it, or it is absent."""
    try:
        mode = path.stat().st_mode
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(
            f"The key {path} cannot be read ({error}); `tracepaper witness key` makes one."
        ) from None
    if mode & 0o077:
        raise ConfigInvalid(
            f"Others may read the key {path} (mode {mode & 0o777:o}): chmod 600 it if nobody did, "
            "else make another key under another name."
        )
    return text


def make_key(path: Path, name: str, kind: int) -> NoteKey:
    """Write a new private key called *name* to *path*; return its public key.

    Raises ``ConfigInvalid`` if *path* exists, or *name* is none that a signed note may have.
    """
    if not name or "+" in name or any(character.isspace() for character in name):
        raise ConfigInvalid(f"A key needs a name without spaces and +, as a URL has: {name!r}.")
    private = Ed25519PrivateKey.generate()
    key = NoteKey(name, private.public_key().public_bytes_raw(), kind)
    secret = base64.b64encode(bytes([kind]) + private.private_bytes_raw()).decode()
    write_secret(path, f"{PREFIX}{name}+{key.id.hex()}+{secret}")
    return key


def read_key(path: Path, kind: int) -> Signer:
    """Return the private key of *kind* in *path*; raise ``ConfigInvalid`` if there is none."""
    name, _, rest = read_secret(path).removeprefix(PREFIX).partition("+")
    number, _, secret = rest.partition("+")
    try:
        material = unbase64(secret)
        private = Ed25519PrivateKey.from_private_bytes(material[1:])
    except (Refused, ValueError):
        raise ConfigInvalid(f"{path} holds no private key; restore it from a copy.") from None
    key = NoteKey(name, private.public_key().public_bytes_raw(), material[0])
    if key.id.hex() != number or key.kind != kind:
        whose = "log" if kind == PLAIN else "witness"
        raise ConfigInvalid(f"{path} holds no key of a {whose}; `tracepaper witness key` makes it.")
    return Signer(key, private)


def parse_key(text: str, named_by: str) -> NoteKey:
    """Return the public key that *text* writes; ``ConfigInvalid`` names *named_by*."""
    try:
        return NoteKey.parse(text)
    except Refused as refused:
        raise ConfigInvalid(f"{named_by}: {refused}") from None
