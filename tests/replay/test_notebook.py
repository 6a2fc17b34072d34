from __future__ import annotations

import sqlite3
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
import storage_cases as cases

from tracepaper import open_run
from tracepaper.replay.dataframes import kind_of
from tracepaper.replay.report import figures
from tracepaper.replay.report.report import build_report
from tracepaper.replay.run import Run
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.views import VIEWS
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

FRAMES = [view.name.removeprefix("v_") for view in VIEWS if view.name != "v_runs"]
HOLDS: dict[str, type | tuple[type, ...]] = {
    "text": str,
    "moment": str,
    "integer": int,
    "boolean": int,
    "float": (float, int),
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("notebook") / "a.db"
    cases.write_run(path, cases.rich_steps(), of=cases.run("rich"))
    cases.write_run(path, cases.plain_steps(60), of=cases.run("plain"))
    return path


def frame(run: Run[Any], name: str) -> pl.DataFrame:
    rows = getattr(run, name)
    assert isinstance(rows, pl.DataFrame)
    return rows


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("run_id", ["rich", "plain"])
def test_a_frame_has_the_rows_and_columns_of_its_view(
    database: Path, run_id: str, name: str
) -> None:
    data_frame = frame(open_run(run_id, database, exact=True), name)
    with sqlite3.connect(database) as db:
        cursor = db.execute(f"SELECT * FROM v_{name} WHERE run_id = ? ORDER BY sequence", (run_id,))
        names = [column[0].replace("_iso", "_utc") for column in cursor.description]
        rows = cursor.fetchall()
    assert data_frame.columns == names
    assert data_frame.height == len(rows)
    for place, column in enumerate(names):
        if not column.endswith("_utc"):
            assert data_frame[column].to_list() == [row[place] for row in rows]
    plain = open_run(run_id, database)
    short = frame(plain, name)
    assert short.columns == [column for column in names if not column.endswith("_text")]
    assert short.equals(data_frame.select(short.columns))
    assert plain.columns(name)["column"].to_list() == short.columns


@pytest.mark.parametrize("name", FRAMES)
def test_every_column_holds_the_kind_that_is_declared(database: Path, name: str) -> None:
    with sqlite3.connect(database) as db:
        columns = next(view.columns for view in VIEWS if view.name == f"v_{name}")
        for row in db.execute(f"SELECT * FROM v_{name}"):
            for column, value in zip(columns, row, strict=True):
                assert value is None or isinstance(value, HOLDS[kind_of(column)]), column.name


@pytest.mark.parametrize("name", FRAMES)
def test_the_schema_never_depends_on_what_is_there(database: Path, name: str) -> None:
    rich, plain = (frame(open_run(run_id, database), name) for run_id in ("rich", "plain"))
    assert rich.schema == plain.schema


def test_a_moment_is_its_milliseconds_in_utc(database: Path) -> None:
    bars = open_run("plain", database).bars
    first = bars["open_time_utc"][0]
    assert first == datetime.fromtimestamp(bars["open_time_ms"][0] / 1000, tz=UTC)


def test_sequences_bound_what_is_read(database: Path) -> None:
    run = open_run("plain", database)
    assert run.rows("decisions", first=10, last=12)["sequence"].to_list() == [10, 11, 12]
    assert run.rows("decisions", first=58)["sequence"].to_list() == [58, 59]


def test_a_run_that_is_still_written_is_read_as_far_as_it_has_come(tmp_path: Path) -> None:
    path, started = tmp_path / "live.db", cases.other_events()[1]
    steps = cases.renumbered([cases.undecided(0, started), *cases.plain_steps(12)])
    log = SqlAuditLog.open(path)
    log.begin(cases.run("live"))

    def write(count: int) -> None:
        for step in steps[:count]:
            log.append_now(step)
        log.flush()
        del steps[:count]

    write(1)
    run = open_run("live", path)
    assert "has decided no bar yet" in repr(run)
    assert run.decisions.height == 0
    with pytest.raises(DataInvalid, match="has decided no bar yet"):
        _ = run.summary
    for written, decided in ((10, 10), (2, 12)):
        write(written)
        assert run.decisions.height == run.summary["bars"] == decided
        assert run.decisions is run.decisions
        assert f"{decided} bars" in repr(run)
    log.close()


def test_pandas_frames_hold_the_same(database: Path) -> None:
    ours = open_run("rich", database, frames="pandas").decisions
    theirs = open_run("rich", database).decisions
    assert isinstance(ours, pd.DataFrame)
    assert list(ours.columns) == theirs.columns
    assert (
        ours["confidence_entropy"].dropna().tolist()
        == theirs["confidence_entropy"].drop_nulls().to_list()
    )
    assert ours["allowed"].tolist() == theirs["allowed"].to_list()
    assert ours["open_time_utc"].dt.tz is not None


@pytest.mark.parametrize(
    ("frames", "advice"),
    [("polars", r"pip install 'tracepaper\[report\]'"), ("pandas", "pip install pandas")],
)
def test_a_missing_library_names_what_to_install(
    database: Path, monkeypatch: pytest.MonkeyPatch, frames: str, advice: str
) -> None:
    monkeypatch.setitem(sys.modules, frames, None)
    with pytest.raises(ConfigInvalid, match=advice):
        open_run("last", database, frames=frames)  # type: ignore[call-overload]


def test_a_table_of_the_report_is_a_frame_of_its_figures(database: Path) -> None:
    run = open_run("plain", database)
    tables = figures.tables(build_report(database, "plain"))
    for key, table in tables.items():
        column = run.table(key)
        documents = table.documents()
        assert column.height == len(documents)
        for name in documents[0] if documents else ():
            values = [row[name] for row in documents]
            if any(isinstance(value, dict) for value in values):
                errors = [value and value["error"] for value in values]
                assert column[f"{name}_error"].to_list() == errors
                values = [value and value["value"] for value in values]
            assert column[name].to_list() == values
    assert {"end", "mean_day", "mean_day_error"} <= set(run.table().columns)
    with pytest.raises(ConfigInvalid, match="has no table nonsense; choose from accounts, "):
        run.table("nonsense")
