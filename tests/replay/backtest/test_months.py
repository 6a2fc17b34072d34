"""Runs over candles of months: from a file of them and made of days, the same in every bit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest
import stock_files
from command_line import Cli
from exchange_client import candles as made_candles
from exchange_client import walk_rows

from tracepaper.daemon.cli import invoke
from tracepaper.replay.archive import read_candles
from tracepaper.replay.archive.series import quality
from tracepaper.replay.exchange.market import SimulatedMarket
from tracepaper.replay.report.metrics import days_in_year, days_of
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.months import MONTH_MS, month_of, month_start
from tracepaper.strategies.sessions import month_calendar
from tracepaper.strategies.types.market import Bar, Category, FrameBar
from tracepaper.strategies.units import DAY_MS, WEEK_MS

FIRST = date(2015, 12, 20)
COUNT = 2_400
"""Days from there on: 78 whole months, two of February 29."""
SMA = ["--set", "strategy.name=sma_cross", "--set", "strategy.fast=2", "--set", "strategy.slow=4"]


def first_ms() -> int:
    return round(datetime(FIRST.year, FIRST.month, FIRST.day, tzinfo=UTC).timestamp() * 1000)


def lines(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    text = ["open_time_ms,open,high,low,close,volume", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(text) + "\n")
    return path


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        (first_ms() + place * DAY_MS, *row) for place, row in enumerate(walk_rows(COUNT, seed=3))
    ]
    return lines(tmp_path_factory.mktemp("days") / "BTCUSDT_1d.csv", rows)


@pytest.fixture(scope="module")
def months(days: Path) -> Path:
    """Add up the days of each whole month, without numpy."""
    groups: dict[int, list[list[int]]] = {}
    for line in days.read_text().splitlines()[1:]:
        at, *cells = map(int, line.split(","))
        groups.setdefault(month_of(at), []).append([at, *cells])
    rows = []
    for month, held in groups.items():
        if len(held) * DAY_MS == month_start(month + 1) - month_start(month):
            columns = list(zip(*held, strict=True))
            rows.append(
                (month_start(month), held[0][1], max(columns[2]), min(columns[3]), held[-1][4],
                 sum(columns[5]))
            )  # fmt: skip
    assert len(rows) == 78
    return lines(days.parent / "BTCUSDT_1M.csv", rows)


def replayed(path: Path, data: Path, *words: str) -> None:
    assert invoke(["replay", *SMA, "--data", str(data), "--db", str(path), "--json", *words]) == 0


@pytest.fixture(scope="module")
def run(months: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("months") / "run.db"
    replayed(path, months)
    return path


# ---------------------------------------------------------------- files


def test_a_file_of_months_is_read_and_checked_by_the_calendar(months: Path, days: Path) -> None:
    read = read_candles(months)
    assert (read.interval_ms, read.missing, read.gaps) == (MONTH_MS, 0, [])
    assert read.closes_ms.tolist() == [*read.open_time_ms[1:].tolist(), read.until_ms]
    candles = read_candles(days).resampled(MONTH_MS)
    for name in ("open_time_ms", "open", "high", "low", "close", "volume", "closes_ms"):
        assert np.array_equal(getattr(read, name), getattr(candles, name)), name
    assert "2 coarse candles not whole" in candles.notes[-1]
    assert quality(read).sessions is None


def test_months_that_open_elsewhere_are_refused(tmp_path: Path) -> None:
    rows = [(month_start(at) + 8 * 3_600_000, 5, 6, 4, 5, 1) for at in range(540, 560)]
    with pytest.raises(DataInvalid, match=r"off the file's grid of months \(UTC\)"):
        read_candles(lines(tmp_path / "BTCUSDT.csv", rows))
    weeks = made_candles(walk_rows(30), interval_ms=WEEK_MS, first_ms=4 * DAY_MS)
    with pytest.raises(ConfigInvalid, match="cannot make candles of 1M"):
        weeks.resampled(MONTH_MS)
    with pytest.raises(DataInvalid, match="no whole candle of 1M"):
        made_candles(walk_rows(40), interval_ms=DAY_MS, first_ms=5 * DAY_MS).resampled(MONTH_MS)


def test_minutes_make_a_month_and_one_that_lacks_one_is_dropped() -> None:
    start = month_start(541)  # a February of 28 days
    rows = walk_rows(59 * 1_440)
    candles = made_candles(rows, first_ms=start).resampled(MONTH_MS)
    assert candles.open_time_ms.tolist() == [start, month_start(542)]
    times = [start + place * 60_000 for place in range(len(rows))]
    del rows[5], times[5]
    candles = made_candles(rows, times_ms=times).resampled(MONTH_MS)
    assert candles.open_time_ms.tolist() == [month_start(542)]


# ---------------------------------------------------------------- runs


def test_a_run_of_a_file_of_months_is_that_of_its_days(
    run: Path, days: Path, tmp_path: Path, cli: Cli
) -> None:
    replayed(tmp_path / "made.db", days, "--set", "market.interval=1mo")
    document = cli.json("parity", f"{run}#last", f"{tmp_path / 'made.db'}#last")
    assert (document["compared"], document["identical"], document["only_in_first"]) == (78, 78, 0)


def test_verify_lookahead_and_recursive_hold_over_months(
    run: Path, months: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["verify"], ["audit", "verify"]):
        assert invoke([*words, "last", "--db", str(run)]) == 0
    assert "78 of 78 decisions follow" in capsys.readouterr().out
    assert invoke(["parity", "last", "--db", str(run)]) == 0
    assert capsys.readouterr().out == "identical 1 of 1 decisions of 2022-06-01.\n"
    data = ["--data", str(months)]
    assert invoke(["lookahead", *SMA, *data, "--probes", "2"]) == 0
    assert invoke(["recursive", *SMA, *data, "--probes", "2"]) == 0


FRAMED = '''
from tracepaper import Action, Signal, Strategy


class Framed(Strategy):
    """Long while the last month closed above the one before."""

    warmup = 1
    frames = ("M",)
    frames_warmup = {"M": 2}

    def decide(self, context):
        closes = context.timeframe("M").close
        if len(closes) < 2 or closes[-1] <= closes[-2]:
            return Signal(Action.FLAT, "not above", note={"time": float(context.time)})
        return Signal(Action.LONG, "above", note={"time": float(context.time)})
'''


def test_days_see_closed_months_and_never_an_open_one(
    days: Path,
    months: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "framed_by_month.py").write_text(FRAMED)
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = ["--set", "strategy.name=framed_by_month:Framed", "--data", str(days)]
    path = tmp_path / "run.db"
    assert invoke(["replay", *mine, "--db", str(path), "--json"]) == 0
    capsys.readouterr()
    query = "SELECT open_time_ms, action, refused_by FROM v_decisions ORDER BY 1"
    assert invoke(["audit", "sql", query, "--db", str(path)]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()[1:]]
    closes = {at: close for at, *_, close, _ in _table(months)}
    for at, action, refused in rows:
        if refused:
            continue
        month = month_of(int(at) + DAY_MS)  # what closes with this day is known
        newer, two = (closes[month_start(month - back)] for back in (1, 2))
        assert action == ("LONG" if newer > two else "FLAT"), at
    assert sum(not refused for *_, refused in rows) > 2_000
    assert invoke(["verify", "last", "--db", str(path)]) == 0
    assert invoke(["lookahead", *mine, "--bars", "200", "--probes", "1"]) == 0
    capsys.readouterr()
    given = ["replay", *mine, "--frame-data", str(months), "--from", "2017-06-03", "--json"]
    assert invoke([*given, "--db", str(tmp_path / "given.db")]) == 0
    with Reader.open(tmp_path / "given.db") as reader:
        held = [step.event for step in reader.steps(reader.find("last"))]
    closes_ms = [event.market_ms for event in held if isinstance(event, FrameBar)]
    assert closes_ms == [month_start(month_of(at)) for at in closes_ms]
    assert len(closes_ms) >= 2
    bars = [event for event in held if isinstance(event, Bar)]
    assert date.fromordinal(719163 + bars[0].open_time_ms // DAY_MS) == date(2017, 3, 2)
    times = [event.market_ms for event in held if isinstance(event, Bar | FrameBar)]
    assert times == sorted(times)


def _table(path: Path) -> list[tuple[int, ...]]:
    return [tuple(map(int, line.split(","))) for line in path.read_text().splitlines()[1:]]


# ---------------------------------------------------------------- shares


def test_months_of_shares_are_those_of_the_year(tmp_path: Path) -> None:
    days = stock_files.opens("2019-01-01", "2021-12-31")
    starts = [month_start(month) for month in range(month_of(days[0]), month_of(days[-1]) + 1)]
    of_file = stock_files.write(tmp_path / "ABC.csv", starts, stock_files.in_utc)
    read = read_candles(f"ABC={of_file}", category=Category.STOCK)
    assert (read.interval_ms, read.missing, read.notes) == (MONTH_MS, 0, ())
    assert read.open_time_ms.tolist() == starts
    assert read.closes_ms.tolist() == [month_start(month_of(at) + 1) for at in starts]
    daily_path = stock_files.write(tmp_path / "DAY.csv", days, stock_files.date_alone)
    daily = read_candles(f"ABC={daily_path}", category=Category.STOCK)
    assert quality(daily).sessions == len(days)
    candles = daily.resampled(MONTH_MS)
    firsts = {month_of(at): at // DAY_MS * DAY_MS for at in reversed(days)}
    assert candles.open_time_ms.tolist() == sorted(firsts.values())
    assert candles.gaps == []


def test_a_year_has_twelve_months_and_a_month_its_days() -> None:
    months = month_calendar()
    assert days_in_year(MONTH_MS, months) == pytest.approx(12, abs=1e-9)
    closes = [month_start(541), month_start(542), month_start(543)]  # January to March
    assert days_of(closes, MONTH_MS, months) == 31 + 28 + 31
    assert days_of([closes[0], closes[2]], MONTH_MS, months) == 31 + 31


# ---------------------------------------------------------------- where months are refused


def test_where_months_cannot_be_they_are_refused_in_one_sentence(
    months: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, sentence in (
        (["run", "--set", "market.interval=M", "--db", str(tmp_path / "a.db")], "only for replays"),
        (["train", "--data", str(months), "--out", str(tmp_path / "m")], "too few to learn from"),
        (["replay", *SMA, "--set", "gate.horizon=30d", "--data", str(months), "--db",
          str(tmp_path / "b.db")], "months have no one length"),
    ):  # fmt: skip
        assert invoke(words) in {1, 2}
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert sentence in error, error
        assert not error.startswith("Traceback")
    with pytest.raises(DataInvalid, match="no interval of the exchange's data"):
        SimulatedMarket(read_candles(months), seed=1)
