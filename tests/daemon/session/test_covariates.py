"""A file of covariates that grows: a row counts from when it was read, and the record says so."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from builders import bar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tracepaper.daemon.session.covariates import (
    GrowingCovariates,
    find_journal,
    keep_journal,
    open_journal,
    require_known,
)
from tracepaper.strategies.covariates import CovariateColumns, CovariateScale
from tracepaper.strategies.errors import CheckpointMismatch, DataInvalid

MINUTE_MS = 60_000
START_MS = 1_717_243_200_000
NAME = "live-test"
COLUMNS = ("mood",)
SCALE = CovariateScale(COLUMNS, (0.0,), (1.0,))


def close(number: float) -> int:
    return START_MS + round(number * MINUTE_MS)


def line(number: float, value: float) -> str:
    return f"{close(number)},{value}\n"


class Traded:
    """A growing file, and the bars that were answered by it."""

    def __init__(self, folder: Path) -> None:
        self.path, self.database = folder / "news.csv", folder / "run.db"
        self.path.write_text("time,mood\n" + line(0, 0.5), encoding="utf-8")
        self.said: dict[int, list[float]] = {}
        self.start()

    def start(self) -> None:
        """Begin, or begin again as after a restart, warmed with the bars that were answered."""
        journal = open_journal(self.database, NAME, COLUMNS)
        self.source = GrowingCovariates(self.path, journal)
        self.joined = CovariateColumns(SCALE, self.source)
        if self.said:
            self.joined.at("", np.array(list(self.said)), MINUTE_MS)

    def add(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def answer(self, number: float) -> list[float]:
        row: list[float] = self.joined.newest("", close(number), MINUTE_MS).tolist()
        self.said[close(number)] = row
        return row

    def derived(self) -> dict[int, list[float]]:
        """Return the same rows from what was kept alone."""
        kept = CovariateColumns(SCALE, find_journal(self.database, NAME, COLUMNS))
        rows = kept.at("", np.array(list(self.said)), MINUTE_MS).tolist()
        return dict(zip(self.said, rows, strict=True))


@pytest.fixture
def traded(tmp_path: Path) -> Traded:
    return Traded(tmp_path)


def same(one: dict[int, list[float]], two: dict[int, list[float]]) -> bool:
    return one.keys() == two.keys() and all(
        np.array_equal(one[key], two[key], equal_nan=True) for key in one
    )


def test_a_row_that_is_added_counts_from_the_next_close(traded: Traded) -> None:
    assert traded.answer(1)[0] == 0.5
    traded.add(line(1.5, 2.0))
    assert traded.answer(2)[0] == 2.0
    traded.add(line(2.0, 3.0))  # whose own close was answered without it
    assert traded.answer(3)[0] == 3.0
    assert traded.answer(3)[1] == pytest.approx(np.log(2.0) / 2)
    assert same(traded.said, traded.derived())
    assert traded.derived()[close(2)][0] == 2.0


def test_a_row_of_a_later_time_waits_for_it(traded: Traded) -> None:
    traded.add(line(5, 4.0))
    assert [traded.answer(number)[0] for number in (1, 4, 5)] == [0.5, 0.5, 4.0]
    assert same(traded.said, traded.derived())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (line(0, 1.0), "the one before has too"),
        (line(1, float("nan")), "must be finite"),
        ("2024-06-01T12:30:00,1\n", "has no zone"),
        (None, "cannot be read"),
        ("time,heat\n" + line(0, 0.5), "lacks the column 'mood'"),
        ("time,mood\n" + line(0, 0.6), "has other values at 2024-06-01T12:00:00.000+00:00"),
    ],
)
def test_a_file_that_is_no_use_leaves_bars_without_vectors_until_it_is(
    traded: Traded, text: str | None, sentence: str
) -> None:
    traded.answer(1)
    good = traded.path.read_text(encoding="utf-8")
    if text is None:
        traded.path.unlink()
    elif text.startswith("time"):
        traded.path.write_text(text, encoding="utf-8")
    else:
        traded.add(text)
    assert np.isnan(traded.answer(2)).all()
    assert np.isnan(traded.answer(3)).all()
    kept = find_journal(traded.database, NAME, COLUMNS)
    assert sentence in kept.fault
    traded.path.write_text(good + line(3.5, 3.0), encoding="utf-8")
    assert traded.answer(4)[0] == 3.0
    assert same(traded.said, traded.derived())


def test_after_a_restart_nothing_is_read_for_a_bar_before_one_that_was_answered(
    traded: Traded,
) -> None:
    traded.answer(3)
    traded.add(line(1.5, 2.0))
    traded.start()
    assert traded.answer(2)[0] == 0.5  # of another instrument, which came late
    assert traded.answer(4)[0] == 2.0
    assert same(traded.said, traded.derived())


def test_a_line_that_is_being_written_waits(traded: Traded) -> None:
    traded.add(line(0.5, 12.0)[:-2])
    assert traded.answer(1)[0] == 0.5
    traded.add("5\n")
    assert traded.answer(2)[0] == 5.0  # 1.5 times the standard, and clipped


def test_a_start_without_file_and_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="cannot be read"):
        GrowingCovariates(tmp_path / "none.csv", open_journal(tmp_path / "r.db", NAME, COLUMNS))


def test_a_journal_that_was_cut_in_a_line_goes_on(traded: Traded) -> None:
    traded.answer(1)
    path = find_journal(traded.database, NAME, COLUMNS).path
    with path.open("ab") as file:
        file.write(b'{"from":17172')
    traded.start()
    traded.add(line(1.5, 2.0))
    assert traded.answer(2)[0] == 2.0
    assert same(traded.said, traded.derived())


def test_the_run_says_how_far_vectors_were_known_and_a_changed_line_is_found(
    traded: Traded,
) -> None:
    at = bar()
    first = traded.source.newly(at)
    assert traded.source.newly(at) is None
    traded.add(line(0.5, 2.0))
    traded.answer(1)
    readings = [first, traded.source.newly(at)]
    assert None not in readings
    kept = find_journal(traded.database, NAME, COLUMNS)
    for reading in readings:
        require_known(kept, reading, "run")
    whole = kept.path.read_bytes()
    for changed in (whole.replace(b"2.0", b"2.5"), whole[: whole.rfind(b"{")]):
        kept.path.write_bytes(changed)
        found = find_journal(traded.database, NAME, COLUMNS)
        require_known(found, readings[0], "run")
        with pytest.raises(CheckpointMismatch, match="lines of covariates that run run knew"):
            require_known(found, readings[1], "run")
    kept.path.write_bytes(whole.replace(b"mood", b"heat"))
    with pytest.raises(CheckpointMismatch, match="was changed"):
        find_journal(traded.database, NAME, COLUMNS)
    kept.path.unlink()
    with pytest.raises(CheckpointMismatch, match="are not kept any more"):
        find_journal(traded.database, NAME, COLUMNS)


def test_a_file_that_mends_unseen_is_read_as_long_as_it_was_no_use(traded: Traded) -> None:
    good = traded.path.read_bytes() + line(1, 2.0).encode()
    traded.path.write_bytes(good.replace(b"2.0", b"nan"))
    before = traded.path.stat().st_mtime_ns
    assert np.isnan(traded.answer(1)).all()
    traded.path.write_bytes(good)
    os.utime(traded.path, ns=(before, before))  # as by a clock that is coarse
    assert traded.answer(2)[0] == 2.0
    assert same(traded.said, traded.derived())


def test_a_file_that_gets_a_column_of_symbols_is_no_use(traded: Traded) -> None:
    traded.path.write_text(f"time,symbol,mood\n{close(0)},BTC,0.5\n", encoding="utf-8")
    assert np.isnan(traded.answer(1)).all()
    kept = find_journal(traded.database, NAME, COLUMNS)
    assert "has got or lost the column symbol" in kept.fault


def test_where_nothing_can_be_stored_bars_are_answered_by_what_was(
    traded: Traded, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = find_journal(traded.database, NAME, COLUMNS).path
    stored = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        traded.add(line(0.5, 2.0))
        assert traded.answer(1)[0] == 0.5
        assert path.read_bytes() == stored
    assert traded.answer(2)[0] == 2.0
    assert same(traded.said, traded.derived())


def test_parquet_that_is_written_anew_grows_and_is_no_use_while_it_is_torn(
    tmp_path: Path,
) -> None:
    path, database = tmp_path / "news.parquet", tmp_path / "run.db"
    columns = ("heat", "mood")

    def written(count: int) -> bytes:
        at = [close(number) for number in range(count)]
        own = {"mood": [float(number) for number in range(count)], "heat": [7.0] * count}
        parquet.write_table(pa.table({"time": at, **own}), path)
        return path.read_bytes()

    written(1)
    source = GrowingCovariates(path, open_journal(database, NAME, columns))
    joined = CovariateColumns(CovariateScale(columns, (0.0, 0.0), (1.0, 1.0)), source)
    said = []
    for number in range(1, 5):
        whole = written(number)
        if number == 3:
            path.write_bytes(whole[: len(whole) // 2])
        said.append(joined.newest("BTC", close(number), MINUTE_MS)[1])
    assert np.array_equal(said, [0.0, 1.0, np.nan, 3.0], equal_nan=True)
    kept = CovariateColumns(joined.scale, find_journal(database, NAME, columns))
    derived = kept.at("BTC", np.array([close(number) for number in range(1, 5)]), MINUTE_MS)
    assert np.array_equal(derived[:, 1], said, equal_nan=True)


def test_symbols_of_one_close_are_answered_by_one_reading(tmp_path: Path) -> None:
    path, database = tmp_path / "news.csv", tmp_path / "run.db"
    path.write_text(f"time,symbol,mood\n{close(0)},BTC,1\n{close(0)},ETH,2\n", encoding="utf-8")
    source = GrowingCovariates(path, open_journal(database, NAME, COLUMNS))
    joined = CovariateColumns(SCALE, source)
    closes = np.array([close(1), close(2)])
    said: dict[str, list[float]] = {"BTC": [], "ETH": [], "SOL": []}
    for at in closes.tolist():
        for symbol, answers in said.items():
            answers.append(float(joined.newest(symbol, at, MINUTE_MS)[0]))
            with path.open("a", encoding="utf-8") as file:  # while the others are answered
                file.write(f"{at + len(answers)},{symbol},{4 if symbol == 'BTC' else 3}\n")
    assert said["BTC"] == [1.0, 4.0]
    assert said["ETH"] == [2.0, 3.0]
    assert np.isnan(said["SOL"][0])  # whose row came after the reading of its close
    assert said["SOL"][1] == 3.0
    kept = CovariateColumns(SCALE, find_journal(database, NAME, COLUMNS))
    for symbol, answers in said.items():
        derived = kept.at(symbol, closes, MINUTE_MS)[:, 0]
        assert np.array_equal(derived, answers, equal_nan=True)


def test_many_rows_are_known_as_they_were_read(traded: Traded) -> None:
    traded.add("".join(line(number / 100, number / 100) for number in range(1, 300)))
    for number in (0.4, 0.9, 1.6, 2.5, 3):
        assert traded.answer(number)[0] == pytest.approx(min(number, 2.99))
    rows = traded.source.known("")
    assert rows.time_ms[1:].tolist() == [close(number / 100) for number in range(1, 300)]
    assert rows.from_ms.tolist() == [close(0), *(max(at, close(0.4)) for at in rows.time_ms[1:])]
    assert same(traded.said, traded.derived())


def test_a_journal_is_kept_beside_another_database_and_grows_there(
    traded: Traded, tmp_path: Path
) -> None:
    other = tmp_path / "other.db"
    first = find_journal(traded.database, NAME, COLUMNS)
    keep_journal(first, other)
    assert find_journal(other, NAME, COLUMNS).head == first.head
    traded.add(line(0.5, 2.0))
    traded.answer(1)
    second = find_journal(traded.database, NAME, COLUMNS)
    for _ in range(2):
        keep_journal(second, other)
        assert find_journal(other, NAME, COLUMNS).head == second.head != first.head
    kept = find_journal(other, NAME, COLUMNS).path
    kept.write_bytes(kept.read_bytes().replace(b"2.0", b"2.5"))
    with pytest.raises(CheckpointMismatch, match="holds other covariates than those of the run"):
        keep_journal(second, other)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(-3, 6)),
        st.tuples(st.just("answer"), st.integers(-1, 2)),
        st.sampled_from([("break", 0), ("restart", 0)]),
    ),
    max_size=25,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions)
def test_whatever_happens_the_record_gives_what_was_answered(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    traded = Traded(tmp_path_factory.mktemp("grown"))
    now, newest, good = 1, 0.0, traded.path.read_text(encoding="utf-8")
    for place, (what, number) in enumerate(steps):
        if what == "add":
            newest = max(newest + 0.25, now + number / 2)
            good += line(newest, place / 10)
            traded.path.write_text(good, encoding="utf-8")
        elif what == "break":
            traded.path.write_text("nothing\n", encoding="utf-8")
        elif what == "restart":
            traded.start()
        else:  # a bar, or one of another instrument that comes late
            at = max(now + number, 1)
            now = max(now, at)
            if close(at) not in traded.said:
                row = traded.answer(at)
                assert np.isnan(row[0]) or row[1] >= 0  # never older than no time at all
    if traded.said:
        assert same(traded.said, traded.derived())


def test_lines_are_plain_json(traded: Traded) -> None:
    lines = find_journal(traded.database, NAME, COLUMNS).path.read_text(encoding="utf-8")
    assert [json.loads(one) for one in lines.splitlines()] == [
        {"columns": ["mood"]},
        {"from": close(0), "time": close(0), "symbol": "", "values": [0.5]},
    ]
