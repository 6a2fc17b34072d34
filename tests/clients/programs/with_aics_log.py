"""Builds a log with aics-tlog and has the witness at an address cosign it twice.

Prints the origin that it made and how many cosignatures its own client verified, as JSON.
"""

from __future__ import annotations

import json
import sys

from aics_tlog import Checkpoint, MerkleTree, sign_checkpoint
from aics_witness.feeder import WitnessClient
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ORIGIN = "log.example/other"


def main() -> None:
    """Print the key of the log, wait for the witness's address and key, and submit two sizes."""
    key = Ed25519PrivateKey.generate()
    from aics_tlog import format_vkey, vkey_from_ed25519

    print(format_vkey(vkey_from_ed25519(ORIGIN, key.public_key())), flush=True)
    address, witness_key = sys.stdin.readline().split()
    tree, verified = MerkleTree(), 0
    with WitnessClient(address, witness_key) as client:
        for size in (3, 8):
            tree.extend(bytes([number]) for number in range(tree.size, size))
            note = sign_checkpoint(Checkpoint(ORIGIN, size, tree.root()), key, ORIGIN)
            lines = client.submit(note.serialise(), tree.consistency_proof)
            verified += len(lines.splitlines())
    print(json.dumps({"verified": verified}))


main()
