"""A growing file of covariates: a row is valid from its reading on, and the record has both."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from builders import bar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.covariates import CovariateReader, RunCovariates
from tracepaper.strategies.covariates import CovariateColumns, CovariateScale
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import Bar, Event

MINUTE_MS = 60_000
START_MS = 1_717_243_200_000
SCALE = CovariateScale(("mood",), (0.0,), (1.0,))


def close(number: float) -> int:
    return START_MS + round(number * MINUTE_MS)


def line(number: float, value: float) -> str:
    return f"{close(number)},{value}\n"


def closing(number: float, symbol: str = "BTC") -> Bar:
    return bar(instrument_id=f"linear:{symbol}", open_time_ms=close(number) - MINUTE_MS)


class CovariateRun:
    """A growing file, the bars whose forecasts used it, and the record of both."""

    def __init__(self, path: Path, text: str = "time,mood\n" + line(0, 0.5)) -> None:
        self.path, self.events = path, list[Event]()
        self.answers: dict[tuple[str, int], list[float]] = {}
        if text:
            self.path.write_text(text, encoding="utf-8")
        self.start()

    def start(self, since: float = 0) -> None:
        """Start, or restart from the record."""
        self.source = self.recorded()
        self.reader = CovariateReader(
            self.path, self.source, period_start_ms=0, since_ms=close(since), deadline_ms=60_000
        )
        if not self.reader.has_rows:
            self.see(self.reader.initial(load(None), close(0)))

    def see(self, event: Event) -> None:
        self.events.append(event)
        self.source.see(event)

    def add(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    async def answer(self, number: float, symbol: str = "BTC") -> list[float]:
        closed = closing(number, symbol)
        if (reading := await self.reader.read_new(closed)) is not None:
            self.see(reading)
        self.see(closed)
        columns = CovariateColumns(SCALE, self.source)
        row: list[float] = columns.newest(symbol, close(number), MINUTE_MS).tolist()
        self.answers[symbol, close(number)] = row
        return row

    def recorded(self) -> RunCovariates:
        """Return the rows that the record alone gives."""
        source = RunCovariates(SCALE.columns)
        for event in self.events:
            source.see(event)
        return source

    def is_derived(self) -> bool:
        """Return whether the record gives the same rows, also for all bars at once."""
        columns = CovariateColumns(SCALE, self.recorded())
        return all(
            np.array_equal(columns.at(symbol, np.array([at]), MINUTE_MS)[0], row, equal_nan=True)
            for (symbol, at), row in self.answers.items()
        )


@pytest.fixture
def traded(tmp_path: Path) -> CovariateRun:
    return CovariateRun(tmp_path / "news.csv")


async def test_a_row_that_is_added_counts_from_the_next_close_or_its_time(
    traded: CovariateRun,
) -> None:
    assert (await traded.answer(1))[0] == 0.5
    traded.add(line(1.5, 2.0))
    assert (await traded.answer(2))[0] == 2.0
    traded.add(line(2.0, 3.0) + line(5, 4.0))  # the forecast at the first close had no row
    assert (await traded.answer(3))[0] == 3.0
    assert (await traded.answer(3))[1] == pytest.approx(np.log(2.0) / 2)
    assert [(await traded.answer(number))[0] for number in (4, 5)] == [3.0, 4.0]
    assert traded.is_derived()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (line(0, 1.0), "repeats the one before"),
        (line(1, float("nan")), "must be finite"),
        ("2024-06-01T12:30:00,1\n", "has no zone"),
        (None, "cannot be read"),
        ("time,heat\n" + line(0, 0.5), "lacks the column 'mood'"),
        ("time,mood\n" + line(0, 0.6), "has other values at 2024-06-01T12:00:00.000+00:00"),
        (f"time,symbol,mood\n{close(0)},BTC,0.5\n", "has got or lost the column symbol"),
    ],
)
async def test_a_file_that_is_no_use_leaves_bars_without_vectors_until_it_is(
    traded: CovariateRun, text: str | None, sentence: str
) -> None:
    await traded.answer(1)
    good = traded.path.read_text(encoding="utf-8")
    if text is None:
        traded.path.unlink()
    elif text.startswith("time"):
        traded.path.write_text(text, encoding="utf-8")
    else:
        traded.add(text)
    for number in (2, 3):
        assert np.isnan(await traded.answer(number)).all()
    assert sentence in traded.recorded().fault
    before = None if text is None else traded.path.stat().st_mtime_ns
    traded.path.write_text(good + line(3.5, 3.0), encoding="utf-8")
    if before is not None:
        os.utime(traded.path, ns=(before, before))  # as with a coarse clock
    assert (await traded.answer(4))[0] == 3.0
    assert traded.is_derived()


async def test_a_restart_reads_nothing_for_a_bar_before_one_that_was_answered(
    traded: CovariateRun,
) -> None:
    await traded.answer(3)
    traded.add(line(1.5, 2.0))
    traded.start()
    assert (await traded.answer(2, "ETH"))[0] == 0.5  # a late bar of another instrument
    assert (await traded.answer(4))[0] == 2.0
    assert traded.is_derived()


async def test_a_line_that_is_being_written_waits(traded: CovariateRun) -> None:
    traded.add(line(0.5, 12.0)[:-2])
    assert (await traded.answer(1))[0] == 0.5
    traded.add("5\n")
    assert (await traded.answer(2))[0] == 5.0  # 1.5 standard deviations, and clipped


def test_a_first_start_needs_the_file_and_takes_what_its_bars_may_need(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="cannot be read"):
        CovariateRun(tmp_path / "none.csv", "")
    rows = "".join(line(number, number) for number in range(-9, 3))
    traded = CovariateRun(tmp_path / "news.csv", "time,mood\n" + rows)
    traded.events.clear()
    traded.start(since=-2.5)
    assert traded.source.rows_for("").time_ms.tolist() == [close(number) for number in range(-3, 3)]


@pytest.mark.sockets
async def test_a_reading_beyond_the_deadline_counts_at_a_later_close(
    traded: CovariateRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_read, read = threading.Event(), Path.read_bytes

    def stalled(path: Path) -> bytes:
        may_read.wait()
        return read(path)

    traded.reader._deadline_s = 0.0  # noqa: SLF001 - no wait in a test
    monkeypatch.setattr(Path, "read_bytes", stalled)
    traded.add(line(0.5, 2.0))
    assert (await traded.answer(1))[0] == 0.5
    traded.reader._deadline_s = 60.0  # noqa: SLF001
    may_read.set()
    assert (await traded.answer(2))[0] == 2.0
    assert traded.is_derived()


async def test_parquet_that_is_written_anew_grows_and_is_no_use_while_it_is_torn(
    tmp_path: Path,
) -> None:
    path = tmp_path / "news.parquet"

    def written(count: int) -> bytes:
        at = [close(number) for number in range(count)]
        mood = [float(number) for number in range(count)]
        parquet.write_table(pa.table({"time": at, "heat": [7.0] * count, "mood": mood}), path)
        return path.read_bytes()

    written(1)
    traded, answers = CovariateRun(path, ""), []
    for number in range(1, 5):
        whole = written(number)
        if number == 3:
            path.write_bytes(whole[: len(whole) // 2])
        answers.append((await traded.answer(number))[0])
    assert np.array_equal(answers, [0.0, 1.0, np.nan, 3.0], equal_nan=True)
    assert traded.is_derived()


async def test_symbols_of_one_close_are_answered_by_one_reading(tmp_path: Path) -> None:
    rows = f"time,symbol,mood\n{close(0)},BTC,1\n{close(0)},ETH,2\n"
    traded = CovariateRun(tmp_path / "news.csv", rows)
    for at in (1, 2):
        for symbol in ("BTC", "ETH", "SOL"):
            await traded.answer(at, symbol)
            # During the forecasts of the others.
            traded.add(
                f"{close(at) + len(traded.answers)},{symbol},{4 if symbol == 'BTC' else 3}\n"
            )
    answers = [row[0] for row in traded.answers.values()]
    assert np.array_equal(answers, [1.0, 2.0, np.nan, 4.0, 3.0, 3.0], equal_nan=True)
    assert traded.is_derived()


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(-3, 6)),
        st.tuples(st.just("answer"), st.integers(-1, 2)),
        st.sampled_from([("break", 0), ("restart", 0)]),
    ),
    max_size=25,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions)
def test_whatever_happens_the_record_gives_what_was_answered(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    asyncio.run(_play(CovariateRun(tmp_path_factory.mktemp("grown") / "news.csv"), steps))


async def _play(traded: CovariateRun, steps: list[tuple[str, int]]) -> None:
    now, newest, good = 1, 0.0, traded.path.read_text(encoding="utf-8")
    for place, (what, number) in enumerate(steps):
        if what == "add":
            more = "".join(line(newest + 0.25 + at / 1_000, place / 10) for at in range(70))
            newest = max(newest + 0.25, now + number / 2)
            good += more if place % 5 == 0 else line(newest, place / 10)
            newest += 0.1
            traded.path.write_text(good, encoding="utf-8")
        elif what == "break":
            traded.path.write_text("nothing\n", encoding="utf-8")
        elif what == "restart":
            traded.start()
        else:  # a bar, or a late one of another instrument
            at = max(now + number, 1)
            now = max(now, at)
            if ("BTC", close(at)) not in traded.answers:
                row = await traded.answer(at)
                assert np.isnan(row[0]) or row[1] >= 0  # an age below zero counts as zero
    assert traded.is_derived()
