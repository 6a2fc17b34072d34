"""``audit export --csv``: every view of a run in a file of its own, whole or not there."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import storage_cases as cases
from builders import altered, present
from command_line import Cli
from msgspec.structs import replace

from tracepaper.storage.database.exports import chosen, export
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.views import VIEWS
from tracepaper.strategies.errors import ConfigInvalid

POLARS: dict[str, Any] = {"INTEGER": pl.Int64, "REAL": pl.Float64, "TEXT": pl.String}
ODD = 'a "quoted", divided\nand long reason'


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database of two runs, one with every kind of row and with odd texts."""
    path = tmp_path_factory.mktemp("export") / "a.db"
    steps = list(cases.rich_steps())
    decided = [place for place, step in enumerate(steps) if step.decision is not None]
    for place, reason in zip(decided, (ODD, ""), strict=False):
        decision = present(steps[place].decision)
        steps[place] = replace(steps[place], decision=altered(decision, reason=reason))
    cases.write_run(path, steps, of=cases.run("rich"))
    cases.write_run(path, cases.plain_steps(60), of=cases.run("plain"))
    return path


@pytest.fixture
def reader(database: Path) -> Iterator[Reader]:
    with Reader.open(database) as opened:
        yield opened


def rows_of(reader: Reader, view: str, run_id: str) -> list[tuple[Any, ...]]:
    order = "" if view == "v_runs" else "ORDER BY sequence"
    question = f"SELECT * FROM {view} WHERE run_id = ? {order}"
    return reader.connection.execute(question, (run_id,)).fetchall()


@pytest.mark.parametrize("run_id", ["rich", "plain"])
def test_csv_holds_the_rows_of_every_view_nulls_and_texts_as_they_are(
    run_id: str, reader: Reader, tmp_path: Path
) -> None:
    counts = export(reader, run_id, tmp_path / "out", "csv").rows
    for view in VIEWS:
        types = {column.name: POLARS[column.kind] for column in view.columns}
        rows = pl.read_csv(tmp_path / "out" / f"{view.name}.csv", schema=types).rows()
        assert rows == rows_of(reader, view.name, run_id)
        assert counts[view.name] == len(rows)
    reasons = {row[0] for row in reader.connection.execute("SELECT reason FROM v_decisions")}
    assert {ODD, ""} <= reasons


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=1+2", "'=1+2"),
        ("+up", "'+up"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("-12.50", "-12.50"),  # an exact number, which is no formula
        ("+3", "+3"),
        ("up = down", "up = down"),
    ],
)
def test_no_text_of_a_csv_is_a_formula(tmp_path: Path, text: str, written: str) -> None:
    path = tmp_path / "a.db"
    step = cases.plain_steps(1)[0]
    assert step.decision is not None
    step = replace(step, decision=altered(step.decision, reason=text))
    cases.write_run(path, [step], of=cases.run("one"))
    with Reader.open(path) as reader:
        export(reader, "one", tmp_path / "out", "csv", chosen("v_decisions"))
    with (tmp_path / "out" / "v_decisions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["reason"] == written


def test_an_export_that_is_killed_leaves_no_folder_of_its_name(
    database: Path, tmp_path: Path
) -> None:
    program = (
        "import os, pathlib, sys\n"
        "from tracepaper.storage.database.exports import export\n"
        "from tracepaper.storage.database.reader import Reader\n"
        "reader = Reader.open(pathlib.Path(sys.argv[1]))\n"
        "export(reader, 'plain', pathlib.Path(sys.argv[2]), 'csv',\n"
        "       progress=lambda view, rows: view == 'v_gates' and os.kill(os.getpid(), 9))\n"
    )
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", program, database, out], check=False)
    assert done.returncode == -9
    assert not out.exists()
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    with Reader.open(database) as reader:
        export(reader, "plain", out, "csv")
    assert (out / "v_gates.csv").is_file()


def test_a_folder_with_something_in_it_is_refused(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ConfigInvalid, match="is there already and not empty; name another"):
            export(reader, "plain", target, "csv")
    (tmp_path / "empty").mkdir()
    export(reader, "plain", tmp_path / "empty", "csv", chosen("v_runs"))
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["v_runs.csv"]
    with pytest.raises(ConfigInvalid, match="cannot be written"):
        export(reader, "plain", tmp_path / "mine.txt" / "out", "csv")


def test_the_command_writes_chosen_views_and_refuses_the_rest_in_one_sentence(
    database: Path, tmp_path: Path, cli: Cli
) -> None:
    line = ["audit", "export", "plain", "--db", str(database)]
    out = str(tmp_path / "out")
    assert cli.out(*line, "--csv", out, "--views", "v_fills, v_decisions").splitlines() == [
        "v_fills\t5",
        "v_decisions\t60",
    ]
    assert "name another folder" in cli.err(*line, "--csv", out, code=2)
    assert "--parquet DIR, or --csv DIR" in cli.err(*line, code=2)
    assert cli(*line, "--csv", out, "--parquet", out).code == 2
    assert "There is no view v_fill" in cli.err(
        *line, "--csv", tmp_path / "b", "--views", "v_fill", code=2
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
