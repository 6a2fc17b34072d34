"""The page over a fleet, by its interface: the command's rows, a server that is away, a run pulled.

The rules are docs/fleet.md, F20 to F22; what a browser shows of it is ``test_fleet_in_browser``.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
import pytest
from fleet_cases import contents, grown, shipped
from postgres_server import Cluster
from programs import BIN, Program
from waiting import until

from tracepaper.daemon.cli import invoke
from tracepaper.replay.page import fleet as fleet_of_page
from tracepaper.replay.page.databases import Databases, FleetSource
from tracepaper.replay.page.fleet import pull_run
from tracepaper.replay.page.server import serving
from tracepaper.storage.fleet.follow import ship_once
from tracepaper.storage.fleet.ship import database_id

pytestmark = pytest.mark.sockets

PLANT: Final = "<img src=x onerror=window.planted=1>"


def ignore(_share: float, _doing: str) -> None:
    """Ignore progress."""


@pytest.fixture
def source(fleet_url: str, tmp_path: Path) -> FleetSource:
    folder = tmp_path / "pulled"
    folder.mkdir()
    return FleetSource(fleet_url, folder)


class FleetPage:
    """A page over a fleet with its client."""

    def __init__(self, client: aiohttp.ClientSession, url: str) -> None:
        self._client, self.url = client, url

    async def get(self, path: str, **query: str) -> Any:
        async with self._client.get(f"{self.url}/api/v1{path}", params=query) as response:
            return json.loads(await response.text())

    async def pull(self, run_id: str, database: str) -> dict[str, Any]:
        query = urlencode({"database_id": database, "run_id": run_id})
        async with self._client.get(f"{self.url}/api/v1/fleet/pull?{query}") as response:
            last: dict[str, Any] = json.loads((await response.text()).splitlines()[-1])
        return last


@asynccontextmanager
async def page_over(source: FleetSource) -> AsyncIterator[FleetPage]:
    async with (
        aiohttp.ClientSession() as client,
        serving([], host="127.0.0.1", port=0, fleet=source) as url,
    ):
        yield FleetPage(client, url)


def rows(document: dict[str, Any]) -> list[dict[str, str]]:
    """Return the cells of a fleet's document by column titles."""
    (table,) = (part for part in document["parts"] if part["kind"] == "table")
    titles = [column["title"] for column in table["columns"]]
    texts = ([of if isinstance(of, str) else of["text"] for of in row] for row in table["rows"])
    return [dict(zip(titles, row, strict=True)) for row in texts]


async def test_a_server_that_does_not_answer_keeps_no_other_request_waiting(
    source: FleetSource, tmp_path: Path
) -> None:
    import psycopg

    path = shipped(tmp_path, source.url)
    async with page_over(source) as page:
        assert (await page.pull("r-1", database_id(path)))["type"] == "done"
        with psycopg.connect(source.url) as blocking:
            blocking.execute("LOCK TABLE tracepaper.runs IN ACCESS EXCLUSIVE MODE")
            task = asyncio.create_task(page.get("/fleet"))
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            with psycopg.connect(source.url, autocommit=True) as looking:
                await until(lambda: looking.execute(waiting).fetchone() == (1,), poll_s=0.05)
            (run,) = (await page.get("/runs"))["runs"]
            assert (await page.get(f"/runs/{run['run_id']}"))["row"] == run
            assert not task.done()
        assert rows(await task)


async def test_a_run_that_is_opened_is_pulled_and_shown(
    source: FleetSource, tmp_path: Path
) -> None:
    path = shipped(tmp_path, source.url)
    async with page_over(source) as page:
        assert (await page.get("/runs"))["fleet"] == source.server
        unopened = await page.get("/runs/r-1")
        assert unopened == {"error": "This run is not open here: open it from Fleet."}
        done = await page.pull("r-1", database_id(path))
        assert done["result"] == {"run_id": "r-1", "database_id": database_id(path), "steps": 40}
        (file,) = source.folder.glob("*/*.db")
        assert {path.name for path in (file, file.parent)} == {"r-1.db", file.parent.name}
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert contents(file)["steps"] == contents(path)["steps"]
        run = await page.get("/runs/r-1")
        assert run["row"]["decisions"] == 40
        assert run["pulled_ms"] == file.stat().st_mtime_ns // 1_000_000
        grown(path, 60, seed=1, since=40)
        ship_once(path, source.url, needed_by="--to")
        assert (await page.get("/runs/r-1"))["row"]["decisions"] == 40
        assert (await page.pull("r-1", database_id(path)))["result"]["steps"] == 60
        assert (await page.get("/runs/r-1"))["row"]["decisions"] == 60
        assert len(list(source.folder.iterdir())) == 1


async def test_what_cannot_be_opened_is_one_sentence_and_leaves_no_file(
    source: FleetSource, tmp_path: Path
) -> None:
    path = shipped(tmp_path, source.url)
    (given_up := source.folder / "run-given-up").mkdir()
    async with page_over(source) as page:
        for run, database in (("r-9", database_id(path)), ("r-1", "zz"), ("../../x", "zz")):
            failed = await page.pull(run, database)
            assert (failed["type"], failed["error"].count("\n")) == ("failed", 0)
            assert "`tracepaper fleet URL --json` lists what it has" in failed["error"]
            assert str(source.folder) not in failed["error"]
        for missing in ({}, {"run_id": "r-1"}, {"database_id": "x"}):
            assert "A parameter is wrong" in (await page.get("/fleet/pull", **missing))["error"]
        empty = await page.get("/fleet/pull", run_id="", database_id="")
        assert "A parameter is wrong" in empty["error"]
        async with aiohttp.ClientSession() as client, client.post(f"{page.url}/api/v1/fleet") as no:
            assert no.status == 405
        assert not list(source.folder.glob("*/*.db"))
        assert not given_up.exists()


def test_two_databases_that_hold_one_run_are_shown_one_after_the_other(
    source: FleetSource, tmp_path: Path
) -> None:
    path = shipped(tmp_path, source.url)
    other = tmp_path / "copy.db"
    shutil.copy(path, other)
    grown(other, 50, seed=1, since=40)
    invoke(["db", "ship", "--once", "--new-id", "--to", source.url, "--db", str(other)])
    databases = Databases([], fleet=source)
    for file, steps in ((path, 40), (other, 50), (path, 40)):
        assert pull_run(databases, database_id(file), "r-1", ignore).steps == steps
        run = databases.find("r-1")
        assert len(run.views.rows("v_decisions")) == steps
        assert len(databases.paths) == 1


def test_a_file_is_named_by_its_run_and_by_nothing_that_is_a_path(
    source: FleetSource, postgres: Cluster, tmp_path: Path
) -> None:
    path = shipped(tmp_path, source.url)
    hostile = "../../../tmp/x\n<b>"
    postgres.sql(source.url, f"UPDATE runs SET run_id = '{hostile}'")
    databases = Databases([], fleet=source)
    assert pull_run(databases, database_id(path), hostile, ignore).run_id == hostile
    (file,) = databases.paths
    assert file.parent.parent == source.folder
    assert file.stem.isalnum()
    assert databases.find(hostile).run_id == hostile


def test_the_oldest_files_and_those_of_a_pull_that_was_given_up_are_removed(
    source: FleetSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_of_page, "KEPT", 2)
    path = shipped(tmp_path, source.url)
    databases = Databases([], fleet=source)
    (source.folder / "run-given-up").mkdir()
    (source.folder / "run-given-up" / "r-1.db.partial").write_bytes(b"half")
    for place in range(3):
        (source.folder / f"run-{place}").mkdir()
        copy = source.folder / f"run-{place}" / f"old-{place}.db"
        shutil.copy(path, copy)
        os.utime(copy, (place, place))
    held = databases.reader(databases.paths[-1])
    pull_run(databases, database_id(path), "r-1", ignore)
    assert [path.name for path in databases.paths] == ["r-1.db", "old-2.db"]
    assert {path.parent for path in databases.paths} == set(source.folder.iterdir())
    with pytest.raises(Exception, match="closed"):
        held.run_ids()


# ---------------------------------------------------------------- the command


@pytest.fixture
def served(fleet_url: str, tmp_path: Path) -> Iterator[tuple[Program, Path]]:
    """Start ``tracepaper ui --fleet`` with a separate folder for temporary files."""
    shipped(tmp_path, fleet_url)
    (temporary := tmp_path / "temporary").mkdir()
    command = [str(BIN / "tracepaper"), "ui", "--fleet", fleet_url]
    program = Program(command, tmp_path, name="ui", extra={"TMPDIR": str(temporary)})
    try:
        program.wait_until(lambda: "The page is " in program.out)
        yield program, temporary
    finally:
        program.kill()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGHUP])
async def test_files_of_a_page_are_its_owner_s_and_gone_at_its_end(
    served: tuple[Program, Path], tmp_path: Path, by: signal.Signals
) -> None:
    program, temporary = served
    url = program.out.split("The page is ", 1)[1].split("/ ", 1)[0]
    async with aiohttp.ClientSession() as client:
        done = await FleetPage(client, url).pull("r-1", database_id(tmp_path / "a.db"))
    assert done["type"] == "done"
    (folder,) = temporary.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.glob("*/r-1.db"))) == 1
    assert program.stop(by).code == 0
    assert list(temporary.iterdir()) == []
