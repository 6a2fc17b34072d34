"""``audit export --to``: the views as tables of another database, exact, whole or not at all."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
import storage_cases as cases
from builders import START_MS, bar
from command_line import Cli
from msgspec.structs import replace
from postgres_server import Cluster
from scenarios import SCENARIOS
from sqlalchemy import URL, column, create_engine, inspect, make_url, select, table
from sqlalchemy.pool import NullPool

from tracepaper.daemon.config.secrets import CREDENTIALS
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.checks import StoredCheck, store_check
from tracepaper.storage.database import copies
from tracepaper.storage.database.copies import copy_run
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.view_columns import View
from tracepaper.storage.database.views import VIEWS
from tracepaper.strategies.errors import AuditUnwritable, ConfigInvalid
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import ParityCheck, ParityOutcome

Rows = dict[str, list[tuple[Any, ...]]]
Progress = Callable[[str, int], None]

RICH: Final = cases.rich_steps()
PLAIN: Final = [
    replace(step, sequence=len(RICH) + number) for number, step in enumerate(cases.plain_steps(45))
]
"""What follows: two round trips, and an order that no bar has filled yet."""
GROWING: Final = {view.name for view in VIEWS if view.grows}


def rows_of(reader: Reader, run_id: str) -> Rows:
    """Return the rows of each view of the run, by key."""
    rows = {}
    for view in VIEWS:
        order = ", ".join(("run_id", *view.key))
        query = f"SELECT * FROM {view.name} WHERE run_id = ? ORDER BY {order}"
        rows[view.name] = reader.connection.execute(query, (run_id,)).fetchall()
    return rows


def stored(path: Path) -> Rows:
    """Return the rows of each view of all runs of the record, run by run."""
    with Reader.open(path) as reader:
        by_run = [rows_of(reader, run_id) for run_id in sorted(reader.run_ids())]
    return {view.name: [row for rows in by_run for row in rows[view.name]] for view in VIEWS}


def as_text(value: Any) -> Any:
    return f"{value:f}" if isinstance(value, Decimal) else value


def held(url: URL) -> Rows:
    """Return the rows of each table at *url*, by key, with an exact number as its text."""
    engine = create_engine(url, poolclass=NullPool)
    rows = {}
    with engine.connect() as connection:
        names = inspect(connection).get_table_names()
        for view in VIEWS:
            if view.name not in names:
                continue
            of = table(view.name, *(column(each.name) for each in view.columns))
            places = [list(of.c.keys()).index(name) for name in ("run_id", *view.key)]
            found = [tuple(map(as_text, row)) for row in connection.execute(select(of))]
            found.sort(key=lambda row, places=places: [row[place] for place in places])  # type: ignore[misc]
            rows[view.name] = found
    return rows


def export(path: Path, url: URL, progress: Progress = lambda *_: None) -> dict[str, int]:
    """Export the newest run of the record."""
    with Reader.open(path) as reader:
        return copy_run(reader, reader.find("last"), url, progress=progress)


def go_on(path: Path, steps: Sequence[Step]) -> None:
    """Append *steps* to the run of the record, a commit each."""
    log = SqlAuditLog.open(path, group_steps=1)
    log.resume("r-1")
    for step in steps:
        log.append_now(step)
    log.close()


def checked(path: Path, at_ms: int) -> None:
    """Store a check of the run as it is now."""
    check = ParityCheck(ParityOutcome.IDENTICAL, "", 0, at_ms, 1, 1, 0, market_ms=0, seen_ms=0)
    with Reader.open(path) as reader:
        run = reader.stored_run("r-1")
    assert store_check(path, run, StoredCheck("verify", at_ms, check)) == ""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """Return the address of a database without tables."""
    if request.param == "sqlite":
        return make_url(f"sqlite:///{tmp_path / 'copy.sqlite'}")
    return make_url(request.getfixturevalue("postgres_url"))


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a record in which every event, answer and table occurs."""
    path = tmp_path_factory.mktemp("rich") / "a.db"
    cases.write_run(path, RICH)
    checked(path, START_MS)
    return path


@pytest.fixture
def path(rich: Path, tmp_path: Path) -> Path:
    """Return a copy of that record, which a test may continue."""
    return Path(shutil.copy(rich, tmp_path / "a.db"))


# ---------------------------------------------------------------- what grows, and what is replaced


def moments(name: str, path: Path) -> Iterator[Rows]:
    """Write a run, and yield the rows of its views again and again."""
    if name == "made":
        run, steps = cases.run(), [*RICH, *PLAIN]
        steps += [replace(step, sequence=len(steps) + at) for at, step in enumerate(RICH)]
    else:
        with Reader.open(SCENARIOS[name].recorded()) as reader:
            run = reader.run(reader.find("last"))
            steps = list(reader.steps(run.run_id))
    every = 7 if name == "made" else len(steps) // 3
    log = SqlAuditLog.open(path, group_steps=1)
    log.begin(run)
    with Reader.open(path) as reader:
        for step in steps:
            log.append_now(step)
            if step.sequence % every == every - 1:
                yield rows_of(reader, run.run_id)
        log.end(START_MS)
        yield rows_of(reader, run.run_id)
    log.close()


def comes_before(view: View, new: set[tuple[Any, ...]], rows: list[tuple[Any, ...]]) -> bool:
    """Return whether a *new* row belongs to no later step than the last of *rows*."""
    names = [column.name for column in view.columns]
    if "sequence" not in names:
        return False
    at = names.index("sequence")
    return bool(rows and new) and min(row[at] for row in new) <= max(row[at] for row in rows)


def test_a_view_grows_unless_something_later_changes_its_rows(tmp_path: Path) -> None:
    """A view in the wrong class would be copied wrongly, or written anew by each export."""
    grown, changed = set(), set()

    def compare(before: Rows, after: Rows) -> None:
        for view in VIEWS:
            rows, later = before[view.name], after[view.name]
            new = set(later) - set(rows)
            if not set(rows) <= set(later) or comes_before(view, new, rows):
                changed.add(view.name)
            elif rows and new:
                grown.add(view.name)

    for name in ("made", "crossing"):
        for before, after in pairwise(moments(name, tmp_path / f"{name}.db")):
            compare(before, after)
    path = tmp_path / "checked.db"
    cases.write_run(path, RICH)
    checked(path, START_MS)
    before = stored(path)
    go_on(path, PLAIN[:1])  # what was checked is no longer the whole run
    compare(before, stored(path))
    assert changed == {view.name for view in VIEWS} - GROWING
    assert grown >= GROWING


# ---------------------------------------------------------------- every row, once


def test_every_row_is_there_exactly(path: Path, url: URL) -> None:
    """Two runs, of which the newer has numbers of 64 bits."""
    go_on(path, PLAIN)
    most = 2**63 - 1
    fine = replace(cases.BTC, price_decimals=0, volume_decimals=18)
    step = cases.undecided(0, replace(bar(index=0), high=most, volume=most))
    export(path, url)
    cases.write_run(path, [step], of=cases.run("fine", instruments=(fine,)))
    written = export(path, url)
    rows = stored(path)
    assert held(url) == rows
    (bar_row,) = (row for row in rows["v_bars"] if row[0] == "fine")
    assert {"9223372036854775807", "9.223372036854775807"} <= set(bar_row)
    own = {name: sum(row[0] == "fine" for row in of_view) for name, of_view in rows.items()}
    assert written == own


@pytest.mark.postgres
def test_exact_numbers_are_numeric_in_postgresql(
    rich: Path, postgres: Cluster, postgres_url: str
) -> None:
    export(rich, make_url(postgres_url))
    types = postgres.sql(
        postgres_url,
        r"SELECT DISTINCT data_type FROM information_schema.columns "
        r"WHERE table_name LIKE 'v\_%' AND column_name LIKE '%\_text'",
    )
    assert types == [("numeric",)]
    sums = "SELECT sum(amount_text) = max(balance_text) FROM v_ledger WHERE kind = 'opened'"
    assert postgres.sql(postgres_url, sums) == [(True,)]


def test_a_repeated_export_adds_only_what_is_new(path: Path, url: URL) -> None:
    export(path, url)
    before = held(url)
    again = export(path, url)
    assert {view for view, rows in again.items() if rows} == {"v_runs", "v_orders", "v_checks"}
    assert held(url) == before
    for steps in (PLAIN[:15], PLAIN[15:]):
        go_on(path, steps)
        written = export(path, url)
        assert written["v_bars"] == len(steps)
    assert held(url) == stored(path)


def test_an_export_shows_one_moment_of_a_run_that_is_written(path: Path, url: URL) -> None:
    before = stored(path)
    export(path, url, after(1, lambda: go_on(path, PLAIN)))
    assert held(url) == before
    export(path, url)
    assert held(url) == stored(path)


def test_views_are_named_and_the_run_comes_with_them(path: Path, tmp_path: Path, cli: Cli) -> None:
    words = ("audit", "export", "r-1", "--db", path, "--to", f"sqlite:///{tmp_path}/b.sqlite")
    named = ("--views", "v_fills,v_ledger")
    assert cli.out(*words, *named) == "v_runs\t1\nv_fills\t1\nv_ledger\t3\n5 rows written.\n"
    go_on(path, PLAIN)
    assert cli.json(*words, *named)["rows"]["v_fills"] == 4
    copied = held(make_url(words[-1]))
    rows = stored(path)
    assert copied == {name: rows[name] for name in ("v_runs", "v_fills", "v_ledger")}
    cli.out(*words)
    assert held(make_url(words[-1])) == rows


# ---------------------------------------------------------------- whole or not at all


class Stopped(Exception):
    """Ends an export from within."""


def after(calls: int, act: Callable[[], object]) -> Progress:
    """Return what acts once an export has reported so often."""
    left = calls

    def progress(_view: str, _rows: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            act()

    return progress


def stop() -> None:
    raise Stopped


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an export report every seven rows."""
    monkeypatch.setattr(copies, "BATCH_ROWS", 7)


@pytest.mark.usefixtures("batches")
def test_an_interrupted_export_changes_nothing_and_a_repeated_one_ends_equal(
    path: Path, url: URL
) -> None:
    calls = 0

    def count(_view: str, _rows: int) -> None:
        nonlocal calls
        calls += 1

    before = held(url)
    for steps, moments_of_it in ((PLAIN[:10], (1, 30)), (PLAIN[10:], (9,))):
        go_on(path, steps)
        for at in moments_of_it:
            with pytest.raises(Stopped):
                export(path, url, after(at, stop))
            assert held(url) == before
        calls = 0
        export(path, url, count)
        assert calls > 30
        before = held(url)
        assert before == stored(path)


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("calls", [1, 40])
def test_a_killed_export_changes_nothing_and_a_repeated_one_ends_equal(
    path: Path, url: URL, calls: int
) -> None:
    export(path, url)
    before = held(url)
    go_on(path, PLAIN)
    if (child := os.fork()) == 0:
        try:
            export(path, url, after(calls, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert held(url) == before
    export(path, url)
    assert held(url) == stored(path)


@pytest.mark.postgres
@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize(
    ("share", "holds"), [(0.5, "what it held before"), (1.0, "all of it or nothing")]
)
def test_a_server_that_breaks_off_is_said_and_a_repeated_export_ends_equal(
    path: Path, tmp_path: Path, postgres: Cluster, postgres_url: str, share: float, holds: str
) -> None:
    """The server ends the connection in the middle, and before the commit."""
    url, calls = make_url(postgres_url), list[str]()
    export(path, make_url(f"sqlite:///{tmp_path}/b.sqlite"), lambda view, _: calls.append(view))
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
    ends = f"{others}'{url.database}' AND pid <> pg_backend_pid()"
    said = rf"did not take the export \(.*terminat.*\) and holds {holds}: mend what it names"
    with pytest.raises(AuditUnwritable, match=said):
        export(path, url, after(int(share * len(calls)), lambda: postgres.sql(postgres_url, ends)))
    assert held(url) == {}
    export(path, url)
    assert held(url) == stored(path)


# ---------------------------------------------------------------- refusals


FOREIGN: Final = {
    "other columns": "CREATE TABLE v_bars (run_id text PRIMARY KEY, price text)",
    "a view": "CREATE VIEW v_runs AS SELECT 1 AS run_id",
    "another key": "CREATE TABLE v_commits (run_id text, sequence bigint, last_sequence bigint, "
    "market_ms bigint, market_iso text, digest text, PRIMARY KEY (digest))",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_things_of_these_names_are_refused_and_stay(path: Path, url: URL, name: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(FOREIGN[name])
    with pytest.raises(ConfigInvalid, match=r"has another v_\w+ than this version exports: name"):
        export(path, url)
    with engine.connect() as connection:
        inspector = inspect(connection)
        assert len(inspector.get_table_names()) + len(inspector.get_view_names()) == 1


def test_a_record_is_no_database_to_export_to(path: Path, cli: Cli) -> None:
    content = path.read_bytes()
    words = ("audit", "export", "last", "--db", path, "--to", f"sqlite:///{path}")
    assert "has another v_runs than this version exports" in cli.err(*words, code=2)
    assert path.read_bytes() == content


@pytest.mark.parametrize("other", ["went another way", "is an older copy"])
def test_a_record_that_lacks_exported_steps_is_refused(
    path: Path, tmp_path: Path, url: URL, other: str
) -> None:
    older = Path(shutil.copy(path, tmp_path / "older.db"))
    go_on(path, PLAIN[:30])
    export(path, url)
    before = held(url)
    if other == "went another way":
        go_on(older, [replace(step, account=cases.ACCOUNT) for step in PLAIN])
    with pytest.raises(ConfigInvalid, match="holds steps of run r-1 that this record does not"):
        export(older, url)
    assert held(url) == before
    go_on(path, PLAIN[30:])
    export(path, url)
    assert held(url) == stored(path)


@pytest.mark.postgres
def test_a_full_server_is_said_in_a_sentence_and_holds_what_it_held(
    path: Path, postgres: Cluster, postgres_url: str, cli: Cli
) -> None:
    url = make_url(postgres_url)
    export(path, url)
    before = held(url)
    go_on(path, PLAIN)
    postgres.sql(
        postgres_url,
        "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
        "'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$",
        "CREATE TRIGGER fills BEFORE INSERT ON v_equity EXECUTE FUNCTION fill()",
    )
    assert cli.err("audit", "export", "last", "--db", path, "--to", postgres_url, code=1) == (
        f"postgresql://owner@127.0.0.1:{url.port}/{url.database} did not take the export (could "
        "not extend file: No space left on device) and holds what it held before: mend what it "
        "names, and repeat the export.\n"
    )
    assert held(url) == before
    postgres.sql(postgres_url, "DROP TRIGGER fills ON v_equity")
    export(path, url)
    assert held(url) == stored(path)


def test_a_full_disk_is_said_and_the_file_holds_what_it_held(path: Path, tmp_path: Path) -> None:
    url = make_url(f"sqlite:///{tmp_path / 'copy.sqlite'}")
    export(path, url)
    before, limits = held(url), resource.getrlimit(resource.RLIMIT_FSIZE)
    go_on(path, PLAIN)
    size = (tmp_path / "copy.sqlite").stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        with pytest.raises(AuditUnwritable, match=r"did not take the export .*it held before"):
            export(path, url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert held(url) == before
    export(path, url)
    assert held(url) == stored(path)


@pytest.mark.postgres
def test_a_text_that_a_database_cannot_hold_names_the_way_out(
    tmp_path: Path, postgres_url: str
) -> None:
    path, url = tmp_path / "a.db", make_url(postgres_url)
    cases.write_run(path, RICH, of=cases.run(warnings=(), strategy="a\0b"))
    with pytest.raises(AuditUnwritable, match=r"NUL.*: leave out the view with that value by"):
        export(path, url)
    assert held(url) == {}


@pytest.mark.postgres
def test_two_exports_of_a_run_at_once_leave_one_of_them(
    path: Path, postgres: Cluster, postgres_url: str
) -> None:
    url = make_url(postgres_url)
    export(path, url)
    go_on(path, PLAIN)
    errors: list[Exception] = []

    def another() -> None:
        try:
            export(path, url)
        except AuditUnwritable as error:
            errors.append(error)

    thread = threading.Thread(target=another)
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"

    def begin() -> None:
        thread.start()
        assert any(postgres.sql(postgres_url, waits) for _ in range(10_000))

    export(path, url, after(1, begin))
    thread.join()
    assert len(errors) == 1
    assert "wait for the end of another export of this run" in str(errors[0])
    assert held(url) == stored(path)


# ---------------------------------------------------------------- the address


@pytest.mark.postgres
def test_a_password_is_referred_to_and_never_shown(
    path: Path,
    tmp_path: Path,
    postgres: Cluster,
    postgres_url: str,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret, database = "it's p@ss:wörd/", postgres_url.rpartition("/")[2]
    literal = secret.replace("'", "''")
    postgres.sql(
        postgres_url,
        f"CREATE ROLE {database}_writer LOGIN PASSWORD '{literal}'",
        f"GRANT CREATE, USAGE ON SCHEMA public TO {database}_writer",
    )
    (tmp_path / "db").write_text(f"{secret}\n", encoding="utf-8")
    monkeypatch.setenv(CREDENTIALS, str(tmp_path))
    monkeypatch.setenv("DB_PASSWORD", secret)
    monkeypatch.setenv("WRONG", f"{secret}?")

    def words(password: str) -> tuple[object, ...]:
        address = f"postgresql://{database}_writer:{password}@127.0.0.1:{postgres.port}/{database}"
        return ("audit", "export", "last", "--db", path, "--to", address)

    assert cli.out(*words("credential:db")).endswith("rows written.\n")
    assert cli.out(*words("env:DB_PASSWORD")).endswith("rows written.\n")
    said = cli.err(*words("env:WRONG"), code=1)
    assert f"_writer@127.0.0.1:{postgres.port}/{database} did not take the export (" in said
    assert said.endswith("correct the address, the user or the password, or start the server.\n")
    assert "p@ss" not in said
    postgres.sql(
        postgres_url,
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
        f"'{literal} is known'; END $$",
        "CREATE TRIGGER tells BEFORE INSERT ON v_runs EXECUTE FUNCTION tell()",
    )
    assert "did not take the export (… is known)" in cli.err(*words("credential:db"), code=1)
    said = cli.err(*words("p%40ss"), code=2)
    assert "write env:NAME" in said
    assert "ss" not in said.replace("password", "").replace("process", "")


@pytest.mark.parametrize(
    ("to", "code", "said"),
    [
        ("postgresql://u@127.0.0.1:1/d", 1, "did not take the export (connection failed"),
        ("postgresql://h/d?password=secret", 2, "--to holds a password"),
        ("postgresql://u:env:NOT_SET@h/d", 2, "env:NOT_SET names an environment variable that"),
        ("postgres://h/d", 2, "--to knows no database postgres: write postgresql"),
        ("db.lan", 2, "--to takes an address such as postgresql://"),
        ("postgresql://h:port/d", 2, "--to takes an address such as postgresql://"),
        ("sqlite:///b.sqlite?timeout=soon", 1, "b.sqlite did not take the export (could not conv"),
        ("sqlite://", 2, "--to names no file; write sqlite:///FILE."),
        ("sqlite:////nowhere/copy.sqlite", 1, "did not take the export (unable to open database"),
        ("mysql+nothing://h/d", 2, "--to knows no database mysql+nothing"),
        ("oracle+cx_oracle://h/d", 2, "--to oracle+cx_oracle needs cx_oracle: install it with pip"),
    ],
)
@pytest.mark.usefixtures("here")
def test_an_address_that_does_not_serve_is_said_in_a_sentence(
    rich: Path, cli: Cli, to: str, code: int, said: str
) -> None:
    sentence = cli.err("audit", "export", "last", "--db", rich, "--to", to, code=code)
    assert said in sentence
    assert sentence.count("\n") == 1
    assert "secret" not in sentence


@pytest.mark.parametrize("options", [(), ("--parquet", "lake", "--to", "sqlite:///b.sqlite")])
@pytest.mark.usefixtures("here")
def test_one_place_is_named(options: tuple[str, ...], rich: Path, cli: Cli) -> None:
    said = cli.err("audit", "export", "last", "--db", rich, *options, code=2)
    assert said == "Give one of --parquet DIR and --to URL.\n"
    assert not list(Path().iterdir())
