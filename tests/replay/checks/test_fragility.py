"""What a result rests on: noise is gone, an edge stands, a few days are named as too few."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edges import COINS, Told, Tossed, run_of, walks
from exchange_client import candles as made_candles
from scenarios import SCENARIOS
from scipy.stats import binom

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import load
from tracepaper.replay.checks.fragility import (
    Days,
    Fragility,
    Left,
    changes_of,
    fragility,
    fragility_document,
    judged,
    neighbour,
    removals,
)
from tracepaper.replay.document.charts import Chart
from tracepaper.replay.report.record import RunRecord
from tracepaper.replay.report.trades import ClosedTrade
from tracepaper.replay.run import Run
from tracepaper.strategies.units import HOUR_MS

LEVEL = 0.025
"""Of runs without an edge at most this share is not gone (docs/python.md, Y22)."""


def run_fragility(run: Run[Any]) -> Fragility:
    with run._custom_classes():  # noqa: SLF001 - the value behind the document
        return fragility(run.database, run.run_id)


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seeds", [3, 100])
def test_tossed_coins_are_gone_at_the_stated_rate(seeds: int, tmp_path: Path) -> None:
    """Without the runs again, which can only take more away."""
    others = []
    for seed in range(seeds):
        with run_of(Tossed, walks(seed), tmp_path / f"{seed}.db", seed=seed) as run:
            record, closed = run._figures.record, run._figures.closed  # noqa: SLF001
        whole, removed = removals(record, closed)
        word, sentence = judged(record, closed, whole, removed, ())
        if word != "gone":
            others.append((seed, word, sentence))
    assert len(others) <= binom.ppf(0.999, seeds, LEVEL), others


def test_a_run_of_tossed_coins_is_gone_whatever_is_run_again(tmp_path: Path) -> None:
    result = run_fragility(run_of(Tossed, [each[:720] for each in walks(5)], tmp_path / "5.db"))
    assert result.word == "gone"
    assert "is what chance makes of nothing" in result.sentence


def test_an_edge_stands_and_its_document_says_what_was_tried(tmp_path: Path) -> None:
    run = run_of(Told, walks(1, COINS[:2], drift=0.004), tmp_path / "told.db")
    result = run_fragility(run)
    assert result.word == "stands", result.sentence
    names = [left.name for left in (*result.removed, *result.reruns)]
    assert names[:4] == [
        "without the best trade",
        "without the best 5 trades",
        "without the best 10 trades",
        "without the best day",
    ]
    assert "one bar late" in names
    assert not any(left.error for left in result.reruns)
    whole = result.whole.profit or 0.0
    removed = [left.profit or 0.0 for left in result.removed]
    assert whole > removed[0] > removed[1] > removed[2] > 0
    months = [left.profit or 0.0 for left in result.parts if left.group == "month"]
    terciles = [left.profit or 0.0 for left in result.parts if left.group == "volatility"]
    assert sum(months) == pytest.approx(whole)
    assert sum(terciles) == pytest.approx(whole)
    assert any(isinstance(part, Chart) for part in fragility_document(result).parts)
    assert run.stress().document["word"] == "stands"


def test_each_way_to_lose_an_edge_is_named(tmp_path: Path) -> None:
    dear = run_of(
        Told,
        walks(1, COINS[:2], drift=0.004),
        tmp_path / "dear.db",
        execution={"taker_fee": "0.03"},
    )
    assert "is what chance makes" in run_fragility(dear).sentence
    near = run_of(
        Told,
        walks(1, COINS[:2], drift=0.004),
        tmp_path / "near.db",
        execution={"taker_fee": "0.013"},
    )
    assert run_fragility(near).word == "gone"
    assert "nothing is left costs × 2" in run_fragility(near).sentence


def test_few_days_or_trades_or_no_trade_say_so(tmp_path: Path) -> None:
    day = [each[:48] for each in walks(1, drift=0.01)]
    short = run_fragility(run_of(Told, day, tmp_path / "short.db"))
    assert short.word == "gone"
    assert short.too_few
    assert "2.0 days are too few" in short.sentence
    held = walks(1, COINS[:1])
    rising = [made_candles(
        [(100_000 + 50 * at, 100_060 + 50 * at, 99_990 + 50 * at, 100_050 + 50 * at, 90_000)
         for at in range(len(held[0]))], symbol="AAAUSDT", interval_ms=HOUR_MS)]  # fmt: skip
    once = run_fragility(run_of(Told, rising, tmp_path / "once.db", hours=24))
    assert once.word == "rests on few trades"
    assert "come of 0 closed trades" in once.sentence


def test_the_best_trades_are_taken_from_the_days_that_closed_them() -> None:
    path = SCENARIOS["crossing"].recorded()
    result = fragility(path, _run_id(path))
    assert result.word == "gone"
    (best, *_), whole = result.removed, result.whole
    assert best.profit is not None
    assert whole.profit is not None
    assert whole.mean_day is not None
    assert best.mean_day is not None
    equity, days = 100_000.0, 5
    taken = (whole.profit - best.profit) / equity / days
    assert whole.mean_day[0] - best.mean_day[0] == pytest.approx(taken, rel=0.02)


def _run_id(path: Path) -> str:
    from tracepaper.storage.database.reader import resolve

    return resolve(path, "last").run_id


def test_parameters_have_neighbours_of_their_own_kind() -> None:
    hour = 60 * 60_000
    assert [neighbour(5, factor, hour) for factor in (0.9, 1.1)] == [4, 6]
    assert neighbour(100, 1.1, hour) == 110
    assert neighbour("4h", 1.1, hour) == "300m"
    assert neighbour(["4h", "1d"], 0.9, hour) == ["180m", "1320m"]
    assert neighbour("0.4", 0.9, hour) == "0.36"
    assert neighbour("3 atr", 1.1, hour) == "3.3 atr"
    assert neighbour(True, 1.1, hour) is None
    assert neighbour("forecast", 1.1, hour) is None
    config = load(None, {"strategy": {"name": "sma_cross", "fast": 5, "slow": 20}})
    changes = {change.name: change.changes for change in changes_of(config)}
    assert changes["one bar late"] == {"execution": {"delay_bars": 1}}
    assert changes["costs × 2"]["execution"]["taker_fee"] == "0.0011"
    assert {name for name in changes if name.startswith("strategy")} == {
        "strategy.fast = 4", "strategy.fast = 6", "strategy.slow = 18", "strategy.slow = 22",
    }  # fmt: skip


def test_the_command_counts_its_runs_first_and_prints_word_and_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = SCENARIOS["crossing"].recorded()
    assert invoke(["report", f"{path}#{_run_id(path)}", "--stress", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err.startswith(f"{len(document['reruns']['rows'])} runs again from the record")
    assert document["word"] == "gone"
    assert invoke(["report", f"{path}#{_run_id(path)}", "--stress", "--jobs", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document
    page = tmp_path / "page.html"
    assert invoke(["report", f"{path}#{_run_id(path)}", "--stress", "--html", str(page)]) == 0
    assert page.stat().st_size > 100_000


def told_with(database: Path, **options: Any) -> Fragility:
    return run_fragility(
        run_of(Told, walks(1, COINS[:2], drift=0.004), database, hours=12, **options)
    )


def test_a_lucky_parameter_is_named_however_many_others_are_not(tmp_path: Path) -> None:
    lucky = told_with(tmp_path / "lucky.db", code=40, unread=7, other=8, third=9)
    assert lucky.word == "gone"
    assert lucky.sentence.endswith("nothing is left beside strategy.code.")


def test_a_neighbour_without_an_effect_and_a_seed_say_nothing(tmp_path: Path) -> None:
    result = told_with(tmp_path / "inert.db", unread=7, seed=3)
    assert result.word == "stands"
    near = {left.name: left for left in result.reruns if left.parameter}
    inert = {"strategy.unread = 6", "strategy.unread = 8"}
    assert near.keys() - inert == {"strategy.hours = 11", "strategy.hours = 13"}
    assert {name for name, left in near.items() if left.error} == inert
    assert all("No fill differs" in near[name].error for name in inert)


def test_a_result_that_stands_names_the_worst_case_that_judges_it(tmp_path: Path) -> None:
    record, closed, result = _told(tmp_path)
    hours = [Left("neighbours", name, 1.0, days, parameter="strategy.hours")
             for name, days in (("= 11", _flat(0.0030)), ("= 13", _flat(-0.0028)))]  # fmt: skip
    word, sentence = judged(record, closed, result.whole, result.removed, hours)
    assert word == "stands"
    assert sentence.endswith("at worst +1.0 bp are left, beside strategy.hours.")
    late = Left("execution", "one bar late", 1.0, _flat(-0.0001))
    word, sentence = judged(record, closed, result.whole, result.removed, [*hours, late])
    assert word == "gone"
    assert sentence.endswith("nothing is left one bar late.")


def _flat(value: float) -> Days:
    return Days(np.full(30, value), np.arange(30))


def _told(folder: Path) -> tuple[RunRecord, list[ClosedTrade], Fragility]:
    with run_of(Told, walks(1, COINS[:2], drift=0.004), folder / "told.db") as run:
        figures = run._figures  # noqa: SLF001 - as above
        return figures.record, figures.closed, run_fragility(run)
