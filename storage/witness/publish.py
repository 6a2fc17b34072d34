"""Writes a folder that anybody can serve as files, so that others can follow and judge a log."""

from __future__ import annotations

import json
import sqlite3
import struct
from contextlib import suppress
from html import escape
from itertools import count
from pathlib import Path
from typing import Final

import numpy as np

from tracepaper.storage.covariates import write_whole
from tracepaper.storage.witness.judge import Note, leaf_hash
from tracepaper.storage.witness.keys import key_text
from tracepaper.storage.witness.log import WitnessLog, tree_of
from tracepaper.strategies.errors import DataInvalid

TILE: Final = 256
"""Hashes or entries of a full tile: C2SP tlog-tiles."""
PAGE: Final = """<!doctype html><meta charset="utf-8"><title>{origin}</title>
<h1>{origin}</h1>
<p>A log of {size} commits of paper trading, dated by {witnesses}. Its key: <code>{key}</code></p>
<p>It proves that each decision existed before a witness dated it, and that no run of this log was
left out. It does not prove that the bars were true, that the same person has no other log, or
anything about commits after the newest note.</p>
<p>Judge this folder: <code>python judge.py FOLDER --log '{key}' --witness KEY</code>, with the
witness's key from the witness. The runs: {runs}.</p>
"""


def publish(log: WitnessLog, connection: sqlite3.Connection, folder: Path) -> dict[str, int]:
    """Write the dated part of *log* to *folder*: tiles, leaves, its newest note, proofs of runs.

    Returns the number of leaves and of runs; a run whose rows were pruned has no proof. Raises
    ``DataInvalid`` if no witness has dated the log, ``OSError`` if a file cannot be written.
    """
    if not (size := log.dated):
        raise DataInvalid("No witness has dated the log yet; `tracepaper witness status` shows it.")
    leaves = log.leaves[:size]
    hashes = [*map(leaf_hash, packed := [each.tobytes() for each in leaves])]
    _write_tiles(folder / "tile/entries", [struct.pack(">H", len(each)) + each for each in packed])
    for level in count():
        _write_tiles(folder / f"tile/{level}", hashes)
        full = range(0, len(hashes) // TILE * TILE, TILE)
        if not (hashes := [tree_of(hashes[at : at + TILE]).root(0, TILE) for at in full]):
            break
    runs, proofs = np.unique(leaves["run"]).tolist(), 0
    for number in runs:
        with suppress(DataInvalid):  # pruned: the leaves stay, and the judge names the run
            proof = json.dumps(log.prove(connection, number, None))
            write_whole((proof.encode(),), folder / f"runs/{number}.json")
            proofs += 1
    notes = {"witness.note": log.cosigned(log.witnessed)} if log.witnessed else {}
    if log.stamped:
        notes["clock.note"] = log.cosigned(max(log.stamped))
    for path in log.clock_files("*", ending="ots")[-1:]:  # `ots verify` hashes the note beside it
        notes["day.note"] = log.note(int(path.name.split("+")[1]))
        write_whole((path.read_bytes(),), folder / "day.note.ots")
    signers = {name for note in notes.values() for name, _ in Note.parse(note).signatures}
    names = " and ".join(sorted(signers - {log.origin}))
    texts = {"origin": log.origin, "witnesses": names, "key": key_text(log.signer.key)}
    texts |= {"size": str(size), "runs": ", ".join(map(str, runs))}
    page = PAGE.format(**{name: escape(text) for name, text in texts.items()})
    for name, content in (
        ("leaves", leaves.tobytes()),
        ("index.html", page.encode()),
        *((name, note.encode()) for name, note in notes.items()),
        ("checkpoint", log.cosigned(size).encode()),  # the last: a follower reads it first
    ):
        write_whole((content,), folder / name)
    return {"leaves": size, "runs": proofs}


def _write_tiles(folder: Path, items: list[bytes]) -> None:
    """Write *items* by 256; a full tile that is there already never changes."""
    for number, at in enumerate(range(0, len(items), TILE)):
        part = items[at : at + TILE]
        digits, rest = f"{number % 1000:03d}", number // 1000
        while rest:
            digits, rest = f"x{rest % 1000:03d}/{digits}", rest // 1000
        path = folder / (digits if len(part) == TILE else f"{digits}.p/{len(part)}")
        if not path.exists():
            write_whole((b"".join(part),), path)
