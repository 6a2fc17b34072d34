"""``audit export --parquet``: by run, view and day, typed, and taken up again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import polars as pl
import pytest
import storage_cases as cases
from builders import START_MS
from msgspec.structs import replace

from tracepaper.daemon.cli import invoke
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database import exports as exporting
from tracepaper.storage.database.exports import export, views_of
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.views import VIEWS
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import OrderStatus
from tracepaper.strategies.types.market import Side

STEPS: Final = cases.plain_steps(1600)
"""Minutes of three days: the first begins at 22:14."""
DAYS: Final = ["2023-11-14", "2023-11-15", "2023-11-16"]
DIGITS: Final = "0012345678901234"
"""A run's id that a reader could take for a number."""
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
POLARS: Final[dict[str, Any]] = {"INTEGER": pl.Int64, "REAL": pl.Float64, "TEXT": pl.String}

Row = tuple[Any, ...]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database of three runs: every kind of row, three days, no bar."""
    path = tmp_path_factory.mktemp("export") / "a.db"
    cases.write_run(path, list(cases.rich_steps()), of=cases.run("rich"))
    cases.write_run(path, STEPS, of=cases.run(DIGITS))
    cases.write_run(path, [cases.undecided(0, cases.other_events()[0])], of=cases.run("empty"))
    return path


@pytest.fixture
def reader(database: Path) -> Iterator[Reader]:
    with Reader.open(database) as opened:
        yield opened


def typed(name: str, value: Any) -> Any:
    """Return what Parquet holds of a *value* of the view's column *name*."""
    if value is None:
        return None
    if name.endswith("_text"):
        return Decimal(value)
    if name.endswith("_iso"):
        return datetime.fromisoformat(value)
    return value


def rows_of(reader: Reader, view: str, run_id: str) -> list[Row]:
    """Return the rows of *view* in the types of Parquet, in an order of their own."""
    cursor = reader.connection.execute(f"SELECT * FROM {view} WHERE run_id = ?", (run_id,))
    names = [column[0] for column in cursor.description]
    return sorted((tuple(map(typed, names, row)) for row in cursor), key=repr)


def scanned(folder: Path, view: str) -> pl.DataFrame:
    """Return what polars reads of *view* in all runs of *folder*, with the day of the path."""
    return pl.scan_parquet(
        folder / "*" / view / "*" / "*.parquet", hive_partitioning=True
    ).collect()


def differences(reader: Reader, folder: Path, run_id: str) -> list[str]:
    """Name the views of which *folder* holds other rows than the database, or other types."""
    differing = []
    for view in VIEWS:
        rows = scanned(folder, view.name)
        types = {
            column.name: pl.Decimal(38, 18)
            if column.name.endswith("_text")
            else pl.Datetime("ms", "UTC")
            if column.name.endswith("_iso")
            else POLARS[column.kind]
            for column in view.columns
        }
        if rows.schema != {**types, "day": pl.Date}:
            differing.append(f"{view.name}: types")
        if sorted(rows.drop("day").rows(), key=repr) != rows_of(reader, view.name, run_id):
            differing.append(f"{view.name}: rows")
    return differing


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("run_id", "batch"), [("rich", 7), ("rich", exporting.BATCH_ROWS), (DIGITS, 100), ("empty", 7)]
)
def test_every_row_of_every_view_is_there_with_its_types(
    run_id: str, batch: int, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "BATCH_ROWS", batch)
    written = export(reader, run_id, tmp_path / "lake")
    assert differences(reader, tmp_path / "lake", run_id) == []
    assert written.rows == {v.name: len(rows_of(reader, v.name, run_id)) for v in VIEWS}
    assert written.files["new"] == len(files(tmp_path / "lake"))
    assert {path.name for path in (tmp_path / "lake" / f"run_id={run_id}").iterdir()} == {
        view.name for view in VIEWS
    }


def test_a_day_holds_the_rows_whose_time_lies_in_it(reader: Reader, tmp_path: Path) -> None:
    export(reader, DIGITS, tmp_path)
    opened = scanned(tmp_path, "v_bars").select("sequence", pl.col("open_time_ms"))
    for view in VIEWS:
        rows = scanned(tmp_path, view.name)
        if view.name in ("v_gates", "v_explanations"):
            rows, name = rows.join(opened, on="sequence"), "open_time_ms"
        else:
            name = next(name for name in exporting.DAY_OF if name in rows.columns)
        for day, at_ms in rows.select("day", name).iter_rows():
            assert (EPOCH + timedelta(milliseconds=at_ms)).date() == day
    bars = scanned(tmp_path, "v_bars").group_by("day").len().sort("day")
    assert bars.rows() == [
        (date.fromisoformat(day), rows) for day, rows in zip(DAYS, (106, 1440, 54), strict=True)
    ]


def test_an_order_that_ends_another_day_lies_in_the_day_it_was_made(tmp_path: Path) -> None:
    day_ms = 86_400_000
    closed = [("c", 0), ("b", day_ms), ("a", 0)]  # as they ended, bar by bar
    steps = [
        replace(
            step, orders=(cases.order(name, Side.BUY, OrderStatus.FILLED, START_MS + later_ms),)
        )
        for step, (name, later_ms) in zip(STEPS, closed, strict=False)
    ]
    cases.write_run(tmp_path / "a.db", steps)
    with Reader.open(tmp_path / "a.db") as reader:
        export(reader, "r-1", tmp_path / "lake")
        assert differences(reader, tmp_path / "lake", "r-1") == []
    orders = scanned(tmp_path / "lake", "v_orders").sort("order_id")
    assert orders["day"].cast(str).to_list() == [DAYS[0], DAYS[1], DAYS[0]]


def test_a_run_that_is_written_is_exported_as_of_one_moment_and_then_taken_up(
    tmp_path: Path,
) -> None:
    path, folder = tmp_path / "a.db", tmp_path / "lake"
    log = SqlAuditLog.open(path, group_steps=64)
    log.begin(cases.run("live"))
    for step in STEPS[:1000]:
        log.append_now(step)
    log.flush()

    def goes_on(view: str, _rows: int) -> None:
        if view == "v_runs":
            for step in STEPS[1000:]:
                log.append_now(step)
            log.flush()

    with Reader.open(path) as reader:
        first = export(reader, "live", folder, progress=goes_on)
        assert differences(reader, folder, "live") != []
        assert first.rows["v_bars"] == first.rows["v_decisions"] == first.rows["v_equity"] == 1000
        before = files(folder)
        again = export(reader, "live", folder)
        assert differences(reader, folder, "live") == []
        assert again.rows["v_bars"] == 1600
        third = export(reader, "live", folder)
    log.close()
    after = files(folder)
    assert again.files == {
        "new": len(after.keys() - before.keys()),
        "replaced": sum(after[name] != content for name, content in before.items()),
        "unchanged": sum(after[name] == content for name, content in before.items()),
    }
    assert again.files["new"] > 3
    assert again.files["replaced"] > 3
    assert again.files["unchanged"] > 3
    assert third.files == {"new": 0, "replaced": 0, "unchanged": len(after)}
    assert files(folder) == after


def test_a_damaged_file_of_an_earlier_export_is_replaced(reader: Reader, tmp_path: Path) -> None:
    export(reader, "rich", tmp_path)
    path = next(tmp_path.rglob("v_bars/*/rows.parquet"))
    path.write_bytes(path.read_bytes()[:-40])
    assert export(reader, "rich", tmp_path).files["replaced"] == 1
    assert differences(reader, tmp_path, "rich") == []


def test_a_number_that_does_not_fit_is_named(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for digits in ((3, 3), (38, 1)):  # before the point, and after it
        monkeypatch.setattr(exporting, "DECIMAL", digits)
        with pytest.raises(DataInvalid, match=r"v_bars.open_text holds .* decimal128.*audit sql"):
            export(reader, "rich", tmp_path / "lake", views_of("v_bars"))
        assert files(tmp_path / "lake") == {}


def test_a_run_cannot_name_a_folder_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    cases.write_run(path, STEPS[:3], of=cases.run("/../../out"))
    with Reader.open(path) as reader:
        export(reader, "/../../out", tmp_path / "lake" / "here", views_of("v_bars"))
    (written,) = tmp_path.glob("lake/**/*.parquet")
    assert written.relative_to(tmp_path / "lake" / "here").parts[:2] == (
        "run_id=%2F..%2F..%2Fout",
        "v_bars",
    )
    assert len(list((tmp_path / "lake" / "here").iterdir())) == 1


def test_the_command_says_what_became_of_each_file(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["audit", "export", "rich", "--db", str(database), "--parquet", str(tmp_path / "lake")]
    assert invoke([*line, "--views", "v_fills,v_runs"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "v_fills\t1",
        "v_runs\t1",
        "files\t2 new, 0 replaced, 0 unchanged",
    ]
    assert invoke([*line, "--views", "v_fills", "--json"]) == 0
    assert '"unchanged": 1' in capsys.readouterr().out
    assert invoke([*line[:2], "nowhere", *line[3:]]) != 0
    assert "nowhere" in capsys.readouterr().err
