"""A record whose log a witness dates, in files of a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from learning import minutes_of
from recordings import crossing, record

from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.witness.cosigner import Cosigner, CosignerAnswer
from tracepaper.storage.witness.judge import COSIGNED, PLAIN, NoteKey
from tracepaper.storage.witness.keys import make_key, read_key
from tracepaper.storage.witness.leaves import witness_folder
from tracepaper.storage.witness.log import WitnessLog

ORIGIN = "example.com/alice/btc"
WITNESS = "witness.example/w1"
BARS = 60
NOW_S = 1_700_006_500


class Witnessed(NamedTuple):
    """A record of runs; its log and its witness have keys."""

    database: Path
    log: NoteKey
    witness: NoteKey
    cosigner: Cosigner
    runs: list[str]

    def extend(self) -> WitnessLog:
        """Add what the record has more, and return the log."""
        log = WitnessLog(self.database)
        reader = open_reader(self.database)
        try:
            while log.extend(reader):
                pass
        finally:
            reader.close()
        return log

    def submit(self, log: WitnessLog, now_s: int, old: int | None = None) -> CosignerAnswer:
        """Sign all of *log*, have it cosigned at *now_s* as behind *old* leaves; keep the note."""
        note = log.sign()
        body = log.request(log.dated if old is None else old, note)
        answer = self.cosigner.add_checkpoint(body, now_s)
        if answer.status == 200:
            log.keep(note + answer.text)
        return answer


def record_run(database: Path, number: int, *, bars: int = BARS) -> str:
    """Record a replay of *bars* with a commit for each step; return its id."""
    rng = np.random.default_rng(number)
    candles = minutes_of(rng.normal(0, 1e-3, bars), rng, symbol="BTCUSDT")
    return record(database, crossing(), [candles], group_steps=1)


def witnessed(folder: Path, *, runs: int = 1, bars: int = BARS) -> Witnessed:
    """Record *runs* replays of *bars*, each dated as it ends, if several; make the keys."""
    database = folder / "run.db"
    log = make_key(witness_folder(database) / "key", ORIGIN, PLAIN)
    witness = make_key(folder / "w1", WITNESS, COSIGNED)
    cosigner = Cosigner(read_key(folder / "w1", COSIGNED), {ORIGIN: log}, folder / "w1.state")
    case = Witnessed(database, log, witness, cosigner, [])
    for number in range(runs):
        case.runs.append(record_run(database, number, bars=bars))
        if runs > 1:
            assert case.submit(case.extend(), NOW_S + number).status == 200
    return case


def saved(folder: Path, proof: dict[str, Any], change: Callable[[Any], object] = id) -> Path:
    """Write *proof* after *change* to a new file of *folder*."""
    copy = json.loads(json.dumps(proof))
    change(copy)
    path = folder / f"proof{len([*folder.glob('proof*.json')])}.json"
    path.write_text(json.dumps(copy), "utf-8")
    return path
