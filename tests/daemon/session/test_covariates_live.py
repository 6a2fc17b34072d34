"""A daemon with covariates keeps running while its file grows, breaks and is repaired."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from bybit_server import MINUTE, START_MS, ScriptedServer
from daemon_under_test import daemon, price
from vector_cases import CONTEXT, sections

from tracepaper.daemon.session.covariates import RunCovariates
from tracepaper.daemon.session.resume import recall_lookback
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.covariates import kept_covariates
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import Decision, Step
from tracepaper.strategies.types.market import CovariatesRead


def row(minute: int, value: float) -> str:
    return f"{START_MS + minute * MINUTE - 30_000},{value}\n"


HEAD = "time,mood\n" + row(-600, 0.5)


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def rows_of(database: Path) -> list[tuple[str, float]]:
    """Return the symbol and value of each row of the newest run."""
    with Reader.open(database) as reader:
        readings = reader.of_type(reader.find("last"), CovariatesRead)
    return [(row.symbol, row.values[0]) for reading in readings for row in reading.rows]


def passes(decision: Decision, gate: str) -> bool:
    """Return whether the decision passed *gate*."""
    return bool(decision.passed >> decision.gate_set.gates.index(gate) & 1)


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
    assert [gate == "finite" for gate in refused(steps)] == [False] * 4 + [True] * 2 + [False]
    readings = [step.event for step in steps if isinstance(step.event, CovariatesRead)]
    assert [bool(reading.fault) for reading in readings] == [False, False, True, False]
    assert rows_of(database) == [("", 0.5), ("", -1.5), ("", 2.5)]
    with Reader.open(database) as reader:
        run_id = reader.find("last")
        assert verify_chain(reader.connection, run_id).passes
        assert verify_run(reader, database, run_id).differences == []
        model = SimpleNamespace(vectors=RunCovariates(("mood",)))  # during the run
        recall_lookback(model, reader, run_id, steps[-2].sequence)
        assert model.vectors.rows_for("").values.tolist() == [[0.5], [-1.5]]
    assert not kept_covariates(database).exists()


async def test_a_start_without_the_file_is_refused(tmp_path: Path) -> None:
    given = sections(tmp_path, tmp_path / "none.csv")
    async with ScriptedServer() as server:
        with pytest.raises(ConfigInvalid, match="cannot be read"):  # exit code 2
            async with daemon(server, tmp_path / "run.db", **given) as running:
                await running.close_bars(1)
    with Reader.open(tmp_path / "run.db") as reader:
        assert reader.run_ids() == []
