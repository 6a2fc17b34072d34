"""The counts of a long run: never counted for the first answer, and equal to the stored rows."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from builders import present
from live_step import live_config, live_parts, quote_of
from long_replays import tiled
from page_cases import record, shown_of
from records import rows
from report_cases import build_report_of

from tracepaper.replay.archive.series import archive_instrument
from tracepaper.replay.page import rollups, runs
from tracepaper.replay.page.databases import Databases, OpenRun
from tracepaper.replay.page.server import serving
from tracepaper.replay.report.benchmarks import mean_exposures
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.types.market import Bar, Quote, Source

pytestmark = pytest.mark.sockets

PARTS = 5


class Dice(Strategy):
    """Decides at random, for several reasons."""

    warmup = 10

    def __init__(self, options: dict[str, Any]) -> None:
        self._draw = random.Random(options.get("seed", 0))

    def decide(self, _context: BarContext) -> Signal:
        """Throw the dice."""
        action = self._draw.choice([Action.LONG, Action.FLAT, Action.HOLD])
        return Signal(action, f"the dice showed {self._draw.randrange(6)}")


def spent(databases: Databases) -> int:
    """List the runs; return the number of SQLite instructions that took, in hundreds."""
    counted = [0]

    def tick() -> int:
        counted[0] += 1
        return 0

    (path,) = databases.paths
    databases.reader(path).connection.set_progress_handler(tick, 100)
    runs.runs(databases)
    return counted[0]


def test_the_first_list_of_runs_does_not_read_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollups, "SHORT_BARS", 100)
    monkeypatch.setattr(rollups, "DIRECT_BARS", 100)
    sizes = (500, 4_000)
    paths = [tmp_path / f"{size}.db" for size in sizes]
    for size, path in zip(sizes, paths, strict=True):
        record(size, path)
    added = (sizes[1] - sizes[0]) / 100
    few, many = (spent(Databases([path], builds=False)) for path in paths)
    assert many - few < added
    [row] = runs.runs(Databases([paths[1]], builds=False)).runs
    assert row.decisions is None
    # The planted case: a process that may count does read every step, and is seen to.
    few, many = (spent(Databases([path], builds=True)) for path in paths)
    assert many - few > added
    # What it counted is kept for the process that may not.
    [row] = runs.runs(Databases([paths[1]], builds=False)).runs
    assert row.decisions == sizes[1]


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_the_rows_as_a_run_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(rollups, "SHORT_BARS", 50)
    monkeypatch.setattr(rollups, "DIRECT_BARS", 200)
    monkeypatch.setattr(rollups, "AT_ONCE", 300)
    draw, database = random.Random(seed), tmp_path / "run.db"
    candles = tiled(3_000)
    bars = [msgspec.structs.replace(bar, source=Source.STREAM) for bar in candles.bars()]
    # A bar without a quote before it is refused; one with a quote after it is traded.
    stream = [each for bar in bars for each in (bar, quote_after(bar))[: draw.randint(1, 2)]]
    config = live_config(f"{__name__}:{Dice.__name__}", ["BTCUSDT"])
    edges = [0, *sorted(draw.sample(range(1, len(stream)), PARTS - 1)), len(stream)]
    with live_parts(
        config, [archive_instrument(candles)], None, database, start_ms=bars[0].open_time_ms
    ) as parts:
        asyncio.run(_append(parts, [parts.start()]))
        quick, heavy = shown_of(database, builds=False), shown_of(database)
        for first, end in pairwise(edges):
            asyncio.run(_append(parts, stream[first:end]))
            for grown in (heavy, quick, shown_of(database, builds=False)):
                grown.rollups.refresh()
                if grown is heavy:
                    grown.rollups.build()
                check(grown, database)
        check_exposure(heavy)
    run = runs.run(heavy)
    assert run.row.total_return == run.accounts[0].total_return


def quote_after(bar: Bar) -> Quote:
    """Return the quote at which the orders of *bar* are filled, a second after its close."""
    at = bar.close_time_ms + 1_000
    return msgspec.structs.replace(quote_of(bar), market_ms=at, seen_ms=at)


async def _append(parts: Any, events: list[Any]) -> None:
    await parts.audit.append(*(parts.engine.step(event, None) for event in events))


def check_exposure(of_run: OpenRun) -> None:
    """Compare the run's mean exposure, which the roll-ups add up, with the report's."""
    by_symbol = present(mean_exposures(build_report_of(of_run.database).record))
    account = runs.accounts(of_run)[0]
    assert account.mean_exposure == pytest.approx(sum(by_symbol.values()))
    assert account.mean_exposure


def check(of_run: OpenRun, database: Path) -> None:
    """Compare every count with the stored rows."""
    run = runs.run(of_run)
    query = "SELECT refused_by, sequence FROM v_decisions ORDER BY sequence"
    stored = rows(database, query)
    assert run.row.decisions == len(stored)
    refused = Counter(gate for gate, _ in stored if gate is not None)
    assert {gate.gate: gate.refused for gate in run.gates if gate.refused} == refused
    assert run.first_sequence == min((each for _, each in stored), default=None)
    assert run.last_sequence == max((each for _, each in stored), default=None)
    warmed = [each for gate, each in stored if gate != "warm"]
    assert run.warm_sequence == min(warmed, default=None)
    last = None if run.last_refusal is None else run.last_refusal.sequence
    assert last == max((each for gate, each in stored if gate is not None), default=None)


@pytest.mark.slow
async def test_a_chart_is_answered_while_a_long_run_is_verified(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    """Only the chart waits for a missing roll-up."""
    database = tmp_path / "run.db"
    record(rollups.DIRECT_BARS + 5_000, database)
    run = f"/api/v1/runs/{shown_of(database, builds=False).run_id}"
    async with (
        serving([database], host="127.0.0.1", port=0) as url,
        client.get(f"{url}{run}/verify") as verifying,
    ):
        assert b'"share"' in await verifying.content.readline()
        whole = asyncio.create_task(verifying.content.read())
        chart = asyncio.create_task(_read(client, f"{url}{run}/equity?points=500"))
        await asyncio.wait({whole, chart}, return_when=asyncio.FIRST_COMPLETED)
        assert not whole.done()
        assert len((await chart)["time_ms"]) > 100
        whole.cancel()


async def _read(client: aiohttp.ClientSession, url: str) -> Any:
    async with client.get(url) as answered:
        assert answered.status == 200
        return await answered.json()
