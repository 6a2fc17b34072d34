"""Writes a folder that anybody can serve as files, so that others can follow and judge a log."""

from __future__ import annotations

import json
import sqlite3
import struct
from html import escape
from pathlib import Path
from typing import Final

from tracepaper.storage.covariates import write_whole
from tracepaper.storage.witness.judge import LEAF, Note, leaf_hash
from tracepaper.storage.witness.keys import key_text
from tracepaper.storage.witness.log import WitnessLog
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
    """Write the dated part of *log* to *folder*: tiles, leaves, notes, and a proof of each run.

    Returns the number of leaves, notes and runs; a run whose rows were pruned has no proof. Raises
    ``DataInvalid`` if no witness has dated the log, ``OSError`` if a file cannot be written.
    """
    if not log.notes:
        raise DataInvalid("No witness has dated the log yet; `tracepaper witness status` shows it.")
    size, newest = log.notes[-1]
    leaves = [leaf for leaf, _ in zip(log.leaves(), range(size), strict=False)]
    data = [LEAF.pack(*leaf) for leaf in leaves]
    _write_tiles(
        folder / "tile" / "entries", [struct.pack(">H", len(each)) + each for each in data]
    )
    level, hashes = 0, [leaf_hash(each) for each in data]
    while hashes:
        _write_tiles(folder / "tile" / str(level), hashes)
        full = [at * TILE for at in range(len(hashes) // TILE)]
        width = TILE ** (level + 1)
        hashes = [log.tree.root(at // TILE * width, (at // TILE + 1) * width) for at in full]
        level += 1
    proofs = 0
    last_of = {number: last for number, _, last, _ in leaves}
    for number, last in last_of.items():
        try:
            proof = log.prove(connection, number, 0, last, kind="commit")
        except DataInvalid:  # pruned: the leaves stay, and the judge names the run
            continue
        write_whole((json.dumps(proof).encode(),), folder / "runs" / f"{number}.json")
        proofs += 1
    lines = "".join(json.dumps(note, ensure_ascii=False) + "\n" for _, note in log.notes)
    names = " and ".join(name for name, _ in Note.parse(newest).signatures[1:])
    texts = {"origin": log.origin, "witnesses": names, "key": key_text(log.signer.key)}
    runs = ", ".join(map(str, last_of))
    page = PAGE.format(size=size, runs=runs, **{k: escape(v) for k, v in texts.items()})
    for name, content in (
        ("leaves", b"".join(data)),
        ("notes", lines.encode()),
        ("index.html", page.encode()),
        ("checkpoint", newest.encode()),  # the last: a follower reads it first
    ):
        write_whole((content,), folder / name)
    return {"leaves": size, "notes": len(log.notes), "runs": proofs}


def _write_tiles(folder: Path, items: list[bytes]) -> None:
    """Write *items* by 256; a full tile that is there already never changes."""
    for number in range((len(items) + TILE - 1) // TILE):
        part = items[number * TILE : (number + 1) * TILE]
        digits, rest = f"{number % 1000:03d}", number // 1000
        while rest:
            digits, rest = f"x{rest % 1000:03d}/{digits}", rest // 1000
        path = folder / (digits if len(part) == TILE else f"{digits}.p/{len(part)}")
        if not path.exists():
            write_whole((b"".join(part),), path)
