"""Measures what witnesses cost: a bar, a note, a proof and its judgement, in CPU time.

    PYTHONPATH=tests:tests/support python tests/benchmarks/witness.py

``bar_us`` is what the loop of the daemon spends at a stored bar; the rest of a bar is done in a
thread: ``leaf_us`` reads the rows of one commit, seals them and adds the leaf, ``note_us`` signs a
checkpoint and its proof of consistency. ``judge_s`` is a whole process of ``deploy/judge.py``.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import builders
from programs import ROOT
from witnessed import saved, witnessed

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.sections import WitnessSection
from tracepaper.daemon.session.witnessing import Witnessing
from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.witness.keys import key_text

ROUNDS = 200


def measure_witness(folder: Path, bars: int) -> dict[str, float]:
    """Return the figures over a run of *bars*, recorded in *folder*."""
    case = witnessed(folder, bars=bars)
    figures: dict[str, float] = {}

    def measured(name: str, count: int, work: Any) -> Any:
        begun = time.process_time()
        result = [work() for _ in range(1 if name == "leaf_us" else count)]
        figures[name] = (time.process_time() - begun) / count * 1e6
        return result[0]

    step = builders.step(builders.bar())
    section = WitnessSection(url=("http://w1",), keys=(key_text(case.witness),))
    companion = Witnessing(section, (), case.database, builders.run(), SystemClock())
    measured("bar_us", ROUNDS, lambda: companion.observe(step))
    log = measured("leaf_us", bars + 2, case.extend)
    case.submit(log, 1_800_000_000)
    measured("note_us", ROUNDS, lambda: log.request(len(log.tree) // 3, log.sign()))
    with closing(open_reader(case.database)) as reader:
        path = saved(folder, log.prove(reader, 1, bars // 2))
    figures["proof_bytes"] = path.stat().st_size
    keys = ["--log", key_text(case.log), "--witness", key_text(case.witness)]
    command = [sys.executable, "-I", str(ROOT / "deploy" / "judge.py"), str(path), *keys]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures["judge_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return figures


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        sys.stdout.write(json.dumps(measure_witness(Path(name), 3000), indent=1) + "\n")
