"""A run in memory is read as its record is."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from scenarios import SCENARIOS

from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.report.record import read_record
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.memory_log import IN_MEMORY, MemoryLog


def read(source: Reader | MemoryLog, reader: Reader, run_id: str) -> dict[str, Any]:
    """Return all that is read of a run as arrays or for its figures, but for its row."""
    columns = RunColumns(source, run_id)
    record = asdict(read_record(reader, IN_MEMORY, run_id))
    del record["run"], record["fitted"]
    return {
        "record": record,
        "bars": {name: columns.bars(name) for name in columns.instruments},
        "accounts": columns.accounts(),
        "decisions": columns.decisions(("target_quantity", "measure_plausible")),
        "span": columns.span,
    }


@pytest.mark.parametrize(
    "name", ["exits", "spot", "a hole", "several symbols", "several strategies", "hedge mode"]
)
def test_it_is_read_as_its_record_is(name: str) -> None:
    scenario = SCENARIOS[name]
    replay = build(scenario.config(), scenario.data(), started_at_ms=0, mode=scenario.mode)
    with MemoryLog() as log, Reader.open(scenario.recorded()) as reader:
        run_id = reader.find("last")
        run_replay(replace(replay, run=structs.replace(replay.run, run_id=run_id)), log, Tally())
        log.end(1)
        np.testing.assert_equal(read(log, log.reader, run_id), read(reader, reader, run_id))
