"""A daemon that trades by vectors of the user: the file grows, breaks and mends, and it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models
import pytest
from bybit_server import MINUTE, START_MS, ScriptedServer
from daemon_under_test import daemon, price

from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage import checkpoints
from tracepaper.storage.chain import verify_chain
from tracepaper.storage.reader import Reader
from tracepaper.storage.vectors import kept_vectors
from tracepaper.strategies.errors import CheckpointMismatch, DataInvalid
from tracepaper.strategies.features import schema
from tracepaper.strategies.networks.trading import TradingConfig, by_names
from tracepaper.strategies.types import Reading, Step

NAMES = (*schema("v1").names, "vector_mood", "vector_age")
CONTEXT = 512 + 8


def checkpoint(folder: Path) -> Path:
    """Write a small network of vectors, with weights that were never trained; return its folder."""
    given = by_names({}, NAMES)
    config = TradingConfig(
        features=len(NAMES),
        dim=8,
        layers=2,
        heads=2,
        window=9,
        modalities=tuple(given["modalities"]),
        columns=tuple(given["columns"]),
        horizons=(5, 30),
    )
    card = models.card(config, temperature=1.0, content_free=0.0)
    card["features"]["vectors"] = {"columns": ["mood"], "centre": [0.0], "scale": [1.0]}
    card["model"] = {"kind": "trading", "name": "small"}
    checkpoints.save(folder / "small", models.weights(config), card)
    return folder / "small"


def sections(folder: Path, file: Path) -> dict[str, Mapping[str, Any]]:
    return {
        "strategy": {"name": "attention"},
        "model": {
            "checkpoint": str(checkpoint(folder)),
            "vectors": str(file),
            "threads": 1,
            "deadline_ms": 60_000,
        },
        "regime": {"momentum": "0.6", "mean_reversion": "0.3"},
        "gate": {"horizon": 30, "direction": "0.3", "edge": "0", "confidence": "0",
                 "collapse": "0", "shift": "1"},
    }  # fmt: skip


def row(minute: int, value: float) -> str:
    return f"{START_MS + minute * MINUTE - 30_000},{value}\n"


HEAD = "time,mood\n" + row(-600, 0.5)


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def changed(database: Path) -> None:
    """Change one number of what was known."""
    (kept,) = kept_vectors(database).iterdir()
    kept.write_bytes(kept.read_bytes().replace(b"-1.5", b"-1.4"))


def refused(steps: list[Step]) -> list[str | None]:
    return [step.decision.refused_by for step in steps if step.decision]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "news.csv"
    write(path, HEAD)
    return path


async def test_it_reads_on_holds_while_the_file_is_no_use_and_verifies(
    tmp_path: Path, file: Path
) -> None:
    database, given = tmp_path / "run.db", sections(tmp_path, file)
    async with ScriptedServer() as server:
        for minute in range(-CONTEXT - 10, 0):
            server.add_candle(START_MS + minute * MINUTE, price(minute))
        async with daemon(server, database, **given) as running:
            await running.close_bars(2)
            good = HEAD + row(3, -1.5)
            write(file, good)
            await running.close_bars(2)
            write(file, good + "2024-06-01T12:00:00,1\n")
            await running.close_bars(2)
            write(file, good)
            await running.close_bars(1)
            before, steps = running.minute, list(running.steps)
        write(file, good + row(before + 1, 2.5))
        async with daemon(server, database, **given) as running:
            running.minute = before
            await running.until(lambda: server.sockets and server.subscribed())
            running.pass_bars(2)
            await running.until(lambda: running.decided() >= 1)
    assert [one == "finite" for one in refused(steps)] == [False] * 4 + [True] * 2 + [False]
    readings = [step.event for step in steps if isinstance(step.event, Reading)]
    assert [one.what for one in readings] == ["vectors"] * 4
    with Reader.open(database) as reader:
        run_id = reader.find("last")
        assert verify_chain(reader.connection, run_id).holds
        assert verify_run(reader, database, run_id).differences == []
        changed(database)
        with pytest.raises(CheckpointMismatch, match="lines of vectors that run"):
            verify_run(reader, database, run_id)


async def test_a_start_without_the_file_is_refused(tmp_path: Path) -> None:
    given = sections(tmp_path, tmp_path / "none.csv")
    async with ScriptedServer() as server:
        with pytest.raises(DataInvalid, match="cannot be read"):
            async with daemon(server, tmp_path / "run.db", **given) as running:
                await running.close_bars(1)
