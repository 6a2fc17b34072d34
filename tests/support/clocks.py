"""Public clocks on loopback: an RFC 3161 authority by ``openssl ts``, and a calendar."""

from __future__ import annotations

import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Final

CALENDAR_BLOCK: Final = 900_000
CONFIG: Final = """
[req]
distinguished_name = name
prompt = no
x509_extensions = stamping
[name]
CN = tsa.example
[stamping]
extendedKeyUsage = critical, timeStamping
[tsa]
serial = {folder}/serial
crypto_device = builtin
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256
ess_cert_id_alg = sha256
"""


class Authority:
    """A time-stamp authority with a key of its own in *folder*."""

    def __init__(self, folder: Path, kind: str = "rsa:2048") -> None:
        self._folder = folder
        folder.mkdir()
        self.certificate = folder / "tsa.pem"
        (folder / "config").write_text(CONFIG.format(folder=folder), "utf-8")
        (folder / "serial").write_text("01\n", "ascii")
        key = ("-newkey", *kind.split(), "-keyout", "tsa.key")
        self._run("req", "-x509", "-nodes", *key, "-out", "tsa.pem")

    def _run(self, *command: str, given: bytes = b"") -> bytes:
        whole = ["openssl", command[0], "-config", "config", *command[1:]]
        done = subprocess.run(
            whole, cwd=self._folder, input=given, capture_output=True, check=True, timeout=60
        )
        return done.stdout

    def answer(self, query: bytes) -> bytes:
        """Return the answer to the timestamp *query*."""
        (self._folder / "query").write_bytes(query)
        signer = ("-section", "tsa", "-signer", "tsa.pem", "-inkey", "tsa.key")
        return self._run("ts", "-reply", "-queryfile", "query", *signer)

    def query(self, text: str) -> bytes:
        """Return the query for a token on *text*."""
        return self._run("ts", "-query", "-digest", sha256(text.encode()).hexdigest(), "-sha256")

    def token(self, text: str) -> bytes:
        """Return a token on *text*."""
        (self._folder / "reply").write_bytes(self.answer(self.query(text)))
        return self._run("ts", "-reply", "-in", "reply", "-token_out")


class Calendar:
    """An OpenTimestamps calendar, which has each hash in a block once *is_mined*."""

    def __init__(self) -> None:
        self.is_mined = False
        self.roots = dict[bytes, bytes]()  # of the block, by what waits for it

    def digest(self, url: str, digest: bytes) -> bytes:
        """Return the answer to ``POST /digest``."""
        from opentimestamps.core.notary import PendingAttestation
        from opentimestamps.core.op import OpAppend, OpSHA256
        from opentimestamps.core.timestamp import Timestamp

        stamp = Timestamp(digest)
        waiting = stamp.ops.add(OpAppend(b"nonce")).ops.add(OpSHA256())
        waiting.attestations.add(PendingAttestation(url))
        self.roots.setdefault(waiting.msg, b"")
        return packed(stamp)

    def timestamp(self, message: bytes) -> bytes:
        """Return the answer to ``GET /timestamp/HEX``; empty before the block."""
        from opentimestamps.core.notary import BitcoinBlockHeaderAttestation
        from opentimestamps.core.op import OpPrepend, OpSHA256
        from opentimestamps.core.timestamp import Timestamp

        if not self.is_mined or message not in self.roots:
            return b""
        stamp = Timestamp(message)
        root = stamp.ops.add(OpPrepend(b"sibling")).ops.add(OpSHA256())
        root.attestations.add(BitcoinBlockHeaderAttestation(CALENDAR_BLOCK))
        self.roots[message] = root.msg
        return packed(stamp)


def packed(stamp: object) -> bytes:
    """Return *stamp* as it is sent."""
    from opentimestamps.core.serialize import BytesSerializationContext

    context = BytesSerializationContext()
    stamp.serialize(context)  # type: ignore[attr-defined]
    content: bytes = context.getbytes()
    return content
