"""Runs are found by id, prefix, ``last`` and FILE#RUN, and read back by sequence."""

from __future__ import annotations

from pathlib import Path

import pytest
import storage_cases as cases
from records import tamper

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.chunks import RunLocation
from tracepaper.storage.database.queries import ask
from tracepaper.storage.database.reader import Reader, resolve
from tracepaper.storage.database.views import FILE_SCHEMA
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar

RICH = cases.rich_steps()
EXPLAINED = next(step.sequence for step in RICH if isinstance(step.prediction, Forecast))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reader") / "a.db"
    cases.write_run(path, RICH, of=cases.run("abc-1"))
    cases.write_run(path, cases.plain_steps(30), of=cases.run("abd-2"))
    cases.write_run(path, cases.plain_steps(40), of=cases.run("abd"))
    return path


@pytest.mark.parametrize(
    ("spec", "run_id"),
    [("abc-1", "abc-1"), ("abc", "abc-1"), ("abd", "abd"), ("abd-", "abd-2"), ("last", "abd")],
)
def test_a_run_is_found_by_what_names_it(path: Path, spec: str, run_id: str) -> None:
    assert resolve(path, spec) == RunLocation(path, run_id)
    assert resolve(None, f"{path}#{spec}") == RunLocation(path, run_id)
    assert resolve(Path("elsewhere.db"), f"{path}#{spec}") == RunLocation(path, run_id)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("ab", "could be abc-1 or abd-2; write more of it"),
        ("x", "no run x; the last one is abd"),
        ("missing.db#last", "no database missing.db"),
    ],
)
def test_what_names_no_run_is_refused(path: Path, spec: str, sentence: str) -> None:
    with pytest.raises(DataInvalid, match=sentence):
        resolve(path, spec)


def test_an_empty_database_says_what_makes_a_run(tmp_path: Path) -> None:
    SqlAuditLog.open(tmp_path / "a.db").close()
    with pytest.raises(DataInvalid, match="`tracepaper run` or `replay` makes one"):
        resolve(tmp_path / "a.db", "last")


def test_events_come_as_the_engine_was_given_them(path: Path) -> None:
    with Reader.open(path) as reader:
        events = list(reader.events("abc-1"))
        rest = list(reader.events("abc-1", after=4))
    expected = [(step.sequence, step.accepted, step.event, step.prediction) for step in RICH]
    assert events == expected
    assert rest == expected[5:]


def test_bars_are_the_accepted_ones_that_a_step_could_see(path: Path) -> None:
    accepted = [
        step
        for step in RICH
        if isinstance(step.event, Bar) and step.accepted and step.event.instrument == cases.BTC.id
    ]
    with Reader.open(path) as reader:
        for last in range(len(RICH)):
            events = [step.event for step in accepted if step.sequence <= last]
            assert reader.bars("abc-1", cases.BTC.id, 2, until=last) == events[-2:]
            assert reader.bars("abc-1", cases.BTC.id, 99, until=last) == events
        assert reader.bars("abc-1", cases.BTC.id) == events
        with pytest.raises(DataInvalid, match="no instrument linear:DOGEUSDT"):
            reader.bars("abc-1", "linear:DOGEUSDT", 2, until=3)


def test_one_step_is_read_by_its_sequence(path: Path) -> None:
    with Reader.open(path) as reader:
        assert reader.step("abc-1", 11) == RICH[11]
        with pytest.raises(DataInvalid, match="no step 99"):
            reader.step("abc-1", 99)


def test_a_run_is_read_as_it_was_opened(path: Path) -> None:
    with Reader.open(path) as reader:
        assert reader.run("abc-1") == cases.run("abc-1")
        with pytest.raises(DataInvalid, match="no run nothing"):
            reader.run("nothing")


def test_a_reader_follows_a_run_that_goes_on(tmp_path: Path) -> None:
    steps = cases.plain_steps(30)
    log = SqlAuditLog.open(tmp_path / "a.db", group_steps=1)
    log.begin(cases.run())
    with Reader.open(tmp_path / "a.db") as reader:
        for step in steps:
            log.append_now(step)
            (newest,) = reader.steps("r-1", after=step.sequence - 1)
            assert newest == step
    log.close()


# ---------------------------------------------------------------- questions


@pytest.mark.parametrize(
    "question",
    [
        "SELECT count(*) FROM v_decisions",
        f"SELECT weight FROM v_explanations WHERE sequence = {EXPLAINED}",
        "SELECT * FROM v_orders",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5) SELECT * FROM n",
        "SELECT value FROM json_each('[1,2]')",
        "SELECT printf('%.2f', avg(equity)) FROM v_equity",
    ],
)
def test_a_question_is_answered(path: Path, question: str) -> None:
    with Reader.open(path) as reader:
        assert ask(reader.connection, question).rows


@pytest.mark.parametrize(
    "question",
    [
        "DELETE FROM runs",
        "CREATE TEMP TABLE x (y)",
        "ATTACH 'other.db' AS other",
        "PRAGMA journal_mode = DELETE",
        "VACUUM INTO 'other.db'",
        "SELECT 1; DELETE FROM runs",
        "SELECT load_extension('x')",
        "SELEC 1",
        "",
        "-- nothing",
    ],
)
def test_anything_but_a_question_is_refused(path: Path, question: str, here: Path) -> None:
    before = path.read_bytes()
    with Reader.open(path) as reader, pytest.raises(ConfigInvalid, match="SELECT"):
        ask(reader.connection, question)
    assert path.read_bytes() == before
    assert list(here.iterdir()) == []


def test_the_connection_is_free_again_after_a_question(path: Path) -> None:
    with Reader.open(path) as reader:
        with pytest.raises(ConfigInvalid):
            ask(reader.connection, "PRAGMA user_version")
        assert reader.connection.execute("PRAGMA user_version").fetchone() == (FILE_SCHEMA,)


def test_blobs_are_documents_in_hexadecimal(path: Path) -> None:
    with Reader.open(path) as reader:
        answered = ask(reader.connection, "SELECT x'00ff' AS a, NULL AS b, 1.5 AS c")
    assert answered.documents() == [{"a": "00ff", "b": None, "c": 1.5}]


# ---------------------------------------------------------------- what a run plainly lacks


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE runs SET step_count = step_count + 1",
        "UPDATE runs SET step_count = 0",
        "UPDATE runs SET head_digest = zeroblob(32)",
        "DELETE FROM steps WHERE sequence = 20",
        "DELETE FROM steps WHERE sequence = (SELECT max(sequence) FROM steps)",
        "DELETE FROM steps",
    ],
)
def test_a_run_whose_steps_do_not_fit_its_row_is_said_to_be_damaged(
    tmp_path: Path, statement: str
) -> None:
    path = tmp_path / "a.db"
    cases.write_run(path, cases.plain_steps(40))
    with Reader.open(path) as reader:
        assert reader.damage("r-1") == ""
        tamper(path, statement)
        assert "run `tracepaper audit verify`" in reader.damage("r-1")


def test_the_last_decision_is_found_behind_what_decided_nothing(tmp_path: Path) -> None:
    steps = cases.plain_steps(30)
    mark = cases.other_events()[6]
    cases.write_run(tmp_path / "a.db", steps + [cases.undecided(30 + at, mark) for at in range(40)])
    with Reader.open(tmp_path / "a.db") as reader:
        since = reader.since_decided(reader.run_ids()[0])
        decision = steps[-1].decision
        assert decision is not None
        assert since[cases.BTC.id].verdict == decision.outcome
        assert since[cases.ETH.id].verdict is None
