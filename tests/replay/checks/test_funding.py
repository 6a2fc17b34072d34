"""Settlements of a run: booked once, missed by name, held to a published history."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from exchange_client import FIRST_MS, walk_rows
from exchange_client import candles as made_candles
from recordings import crossing, record

from tracepaper.daemon.cli import invoke
from tracepaper.replay.archive import FundingRates
from tracepaper.replay.checks.parity import check_funding
from tracepaper.replay.report.report import build_report
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.strategies.errors import DataInvalid

HOUR = 3_600_000
BARS = 96
DUES = [FIRST_MS + place * 4 * HOUR for place in range(1, BARS // 4 + 1)]
"""Settlements four hours apart, as WIFUSDT has them."""
MISSING = DUES[10]


def history(times: list[int], *, symbol: str = "BTCUSDT", rate: int = 1_000_000) -> FundingRates:
    rates = [rate + place for place in range(len(times))]
    return FundingRates("builder", symbol, np.array(times), np.array(rates))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose funding comes in two files: one settlement in both, one in neither."""
    path = tmp_path_factory.mktemp("funding") / "run.db"
    given = made_candles(walk_rows(BARS), interval_ms=HOUR)
    config = crossing(interval="60", sizing={"mode": "fixed", "quantity": "0.01"})
    whole = history(DUES)
    kept = whole.time_ms != MISSING
    first = FundingRates("a", "BTCUSDT", whole.time_ms[kept], whole.rate[kept])
    again = FundingRates("b", "BTCUSDT", whole.time_ms[5:6], whole.rate[5:6])
    record(path, config, [given], funding=[first, again])
    return path


def test_a_settlement_that_comes_twice_is_recorded_and_booked_once(path: Path) -> None:
    with Reader.open(path) as reader:
        views = RunViews(reader.connection, reader.find("last"))
        settled = [row["market_ms"] for row in views.rows("v_events", kind="funding")]
        booked = [row["market_ms"] for row in views.rows("v_ledger", kind="funding")]
    assert settled.count(DUES[5]) == 2
    assert booked.count(DUES[5]) == 1
    assert len(booked) == len(set(booked)) > 10


def test_a_settlement_that_never_came_is_a_gap_and_in_the_report(path: Path) -> None:
    with Reader.open(path) as reader:
        views = RunViews(reader.connection, reader.find("last"))
        gaps = views.rows("v_gaps")
    assert [(row["cause"], row["from_ms"], row["until_ms"]) for row in gaps] == [
        ("funding", MISSING, DUES[11])
    ]
    report = build_report(path, views.run_id)
    text = " ".join(report.sentences)
    assert "1 funding settlement missing, 1 with an open position" in text
    assert "Absent bars" not in text


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        (lambda whole: whole, (len(DUES) - 1, 0, 0)),
        (lambda whole: whole.with_another_rate(3), (len(DUES) - 2, 1, 0)),
        (lambda whole: whole.without(3), (len(DUES) - 2, 1, 1)),
    ],
)
def test_settlements_are_held_to_the_published_history(
    path: Path, changed: Callable[[_History], _History], counts: tuple[int, int, int]
) -> None:
    with Reader.open(path) as reader:
        check = check_funding(reader, reader.find("last"), changed(_History()).rates)
    assert not check.passes
    *differing, missing = check.differing
    assert (missing.market_ms, missing.booked) == (MISSING, None)
    unpublished = [row for row in differing if row.published is None]
    assert (check.booked, len(differing), len(unpublished)) == counts


class _History:
    """The published history, and what may be wrong with it."""

    def __init__(self) -> None:
        self.rates = history(DUES)

    def with_another_rate(self, place: int) -> _History:
        self.rates.rate[place] += 1
        return self

    def without(self, place: int) -> _History:
        times, rates = (np.delete(of, place) for of in (self.rates.time_ms, self.rates.rate))
        self.rates = FundingRates("builder", "BTCUSDT", times, rates)
        return self


@pytest.mark.parametrize(
    ("rates", "error"),
    [
        (history(DUES, symbol="WIFUSDT"), "is of linear:WIFUSDT, and run"),
        (history([1, 2]), "no settlement within the time"),
    ],
)
def test_a_history_of_something_else_is_refused(
    path: Path, rates: FundingRates, error: str
) -> None:
    with Reader.open(path) as reader, pytest.raises(DataInvalid, match=error):
        check_funding(reader, reader.find("last"), rates)


def test_the_command_says_which_settlement_differs(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{at},{(1_000_000 + place) / 1e10:.10f}" for place, at in enumerate(DUES)]
    file = tmp_path / "BTCUSDT_funding.csv"
    file.write_text("\n".join(("funding_time,funding_rate", *lines)) + "\n", encoding="utf-8")
    words = ["verify", "last", "--db", str(path), "--funding", str(file)]
    assert invoke(words) == 1
    printed = capsys.readouterr().out
    assert "23 of 24 published settlements of linear:BTCUSDT were booked" in printed
    assert ": not booked, published at" in printed
    assert invoke([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["funding"][0]["differing"][0][0] == MISSING
    del lines[10]
    file.write_text("\n".join(("funding_time,funding_rate", *lines)) + "\n", encoding="utf-8")
    assert invoke(words) == 0
    assert "23 of 23 published settlements" in capsys.readouterr().out
