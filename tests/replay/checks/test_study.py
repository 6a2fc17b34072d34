"""A column studied: noise shows nothing, an edge is found, tomorrow's value is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, rankdata, spearmanr
from study_cases import panel_candles, scrambled

from tracepaper import Action, Signal, Strategy, backtest, study
from tracepaper.daemon.cli import invoke
from tracepaper.replay.archive import Candles
from tracepaper.replay.checks.study import (
    Study,
    charts,
    forward,
    panel_of,
    quantile_of,
    ranked,
    studied,
)
from tracepaper.replay.report.honesty import LEVEL
from tracepaper.replay.run_columns import Floats
from tracepaper.strategies.api.context import BarContext
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.units import DAY_MS


@pytest.fixture(autouse=True)
def _own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPAPER_TRIALS", str(tmp_path / "trials.db"))


def last_move(history: Any) -> Floats:
    """Return the return of each bar."""
    moves: Floats = history.close / history.open - 1.0
    return moves


def next_move(history: Any) -> Floats:
    """Return tomorrow's value."""
    return np.append(history.close[1:] / history.close[:-1] - 1.0, np.nan)


def test_an_edge_is_found_and_its_decay_shown() -> None:
    result = studied(last_move, panel_candles(8, 1_500, seed=1, told=0.1))
    first, *later = result.looks
    assert first.corrected < LEVEL
    assert first.ic[0] == pytest.approx(0.1, abs=0.03)
    assert result.sentence.startswith("last_move says something about 1 bar")
    assert all(abs(each.ic[0]) < first.ic[0] for each in later)
    assert first.means[0] < min(first.means[1:4]) < max(first.means[1:4]) < first.means[4]
    assert first.turnover == pytest.approx(0.75, abs=0.05)  # of two of eight symbols
    assert first.net[0] < first.spread[0]
    assert dict(result.known)["return of the bar"] == pytest.approx(1.0)
    assert [name for name, _ in result.parts][-3:] == ["calm days", "days between", "wild days"]
    assert len(charts(result)) == 2
    assert "No lookahead was found on 3 symbols" in result.probed


def test_noise_shows_something_at_most_at_its_level() -> None:
    panels, columns, wrong = 30, 4, 0
    for seed in range(panels):
        candles = panel_candles(6, 900, seed=seed)
        found = [
            studied(scrambled(candles, seed=1_000 * seed + at), candles, horizons=(1, 8))
            for at in range(columns)
        ]
        assert found[-1].others == 2 * columns
        wrong += found[-1].best.corrected < LEVEL
    assert wrong <= binom.ppf(0.999, panels, LEVEL)


def test_every_look_at_the_same_data_makes_the_next_harder(tmp_path: Path) -> None:
    candles = panel_candles(6, 900, seed=1, told=0.08)
    first = studied(last_move, candles, horizons=(1,))
    for seed in range(5):
        studied(scrambled(candles, seed=seed), candles, horizons=(1,))
    again = studied(last_move, candles, horizons=(1,))
    assert (first.others, again.others) == (1, 6)  # the same look counts once
    assert again.best.p == first.best.p
    assert again.best.corrected == pytest.approx(6 * first.best.p)
    assert again.registry == tmp_path / "looks.db"
    assert studied(last_move, panel_candles(6, 899, seed=1), horizons=(1,)).others == 1


def test_tomorrows_value_is_refused_and_stored_values_that_hold_it_are_named() -> None:
    candles = panel_candles(6, 400, seed=1)
    with pytest.raises(DataInvalid, match=r"next_move looks ahead: it differs when later bars are"):
        study(next_move, candles)
    told = {part.symbol: next_move(SimpleNamespace(close=part.close / 10.0)) for part in candles}
    result = studied(told, candles)
    assert result.sentence.startswith("column holds what it should forecast: rank correlation +1.0")
    assert "cannot be probed" in result.probed


def test_missing_values_few_days_and_strangers_are_one_sentence() -> None:
    candles = panel_candles(6, 400, seed=1)
    half = studied(scrambled(candles, seed=2, missing=0.5), candles, horizons=(1,))
    assert half.missing == pytest.approx(0.5, abs=0.03)
    nothing = {part.symbol: np.full(len(part), np.nan) for part in candles}
    with pytest.raises(DataInvalid, match="no value with a return over 24 bars"):
        studied(nothing, candles)
    day = studied(last_move, [part[:24] for part in candles], horizons=(1,))
    assert day.sentence == "Too few days to say anything of last_move: 1."
    with pytest.raises(DataInvalid, match="A symbol is given twice"):
        studied(last_move, [candles[0], candles[0]])
    with pytest.raises(DataInvalid, match="The candles have several intervals"):
        studied(last_move, [candles[0], replace(candles[1], interval_ms=DAY_MS)])
    with pytest.raises(ConfigInvalid, match="give whole numbers of bars"):
        studied(last_move, candles, horizons=(0,))
    with pytest.raises(DataInvalid, match="0 values of BBBUSDT"):
        studied({"AAAUSDT": np.zeros(400)}, candles)


def test_one_symbol_is_compared_with_its_own_time() -> None:
    (part,) = panel_candles(1, 1_500, seed=1, told=0.15)
    result = studied(last_move, [part])
    assert not result.by_time
    moves = part.close / part.open - 1.0
    ahead = forward(panel_of([part]).close, 1)[:, 0]
    inside = slice(0, -24)  # as the longest horizon
    correlation = spearmanr(moves[inside], ahead[inside]).statistic
    assert result.looks[0].ic[0] == pytest.approx(correlation, abs=1e-12)
    assert result.looks[0].corrected < LEVEL


def test_ranks_and_quantiles_are_those_of_the_field() -> None:
    pandas = pytest.importorskip("pandas")
    draw = np.random.default_rng(1)
    values = draw.integers(0, 30, (50, 20)).astype(float)
    values[draw.random(values.shape) < 0.1] = np.nan
    smooth = np.where(np.isnan(values), np.nan, draw.normal(size=values.shape))
    for row in range(len(values)):
        kept = np.isfinite(values[row])
        assert ranked(values)[row, kept].tolist() == rankdata(values[row, kept]).tolist()
        labels = pandas.qcut(smooth[row, kept], 5, labels=False)
        assert quantile_of(smooth)[row, kept].tolist() == labels.tolist()


class Noted(Strategy):
    """Declares the studied function as a column, and notes it."""

    warmup = 5

    def columns(self, history: Any) -> dict[str, Floats]:
        return {"move": last_move(history)}

    def decide(self, now: BarContext) -> Signal:
        return Signal(Action.HOLD, "", note={"move": float(now.columns["move"][-1])})


def test_a_strategy_declares_the_same_function_and_its_notes_are_studied(tmp_path: Path) -> None:
    candles = panel_candles(2, 400, seed=1, told=0.1)
    config = {"market": {"interval": "60"}}
    with backtest(Noted, candles, config=config, db=tmp_path / "run.db", progress=False) as run:
        noted = studied(f"{tmp_path / 'run.db'}#{run.run_id}:move", candles, horizons=(1,))
    column = {
        part.symbol: np.where(np.arange(len(part)) < missing_from(noted, part), np.nan,
                              part.close / part.open - 1.0)
        for part in candles
    }  # fmt: skip
    assert noted.looks[0].ic[0] == pytest.approx(
        studied(column, candles, horizons=(1,)).looks[0].ic[0]
    )
    with pytest.raises(DataInvalid, match="no note other; it has move"):
        studied(f"{tmp_path / 'run.db'}#{run.run_id}:other", candles)


def missing_from(noted: Study, part: Candles) -> int:
    """Return the number of bars before the first note."""
    return round(noted.missing * len(part)) - 1


def test_the_command_reads_a_column_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candles = panel_candles(1, 300, seed=1)[0]
    rows = zip(candles.open_time_ms.tolist(), candles.open.tolist(), candles.high.tolist(),
               candles.low.tolist(), candles.close.tolist(), strict=True)  # fmt: skip
    path = tmp_path / "AAAUSDT_1h.csv"
    lines = [f"{time},{o},{h},{low},{c},1,{c % 7 or ''}" for time, o, h, low, c in rows]
    path.write_text("\n".join(("time,open,high,low,close,volume,mood", *lines)) + "\n")
    page = tmp_path / "page.html"
    given = ["data", "study", f"{path}:mood", "--data", f"AAAUSDT={path}", "--horizons", "1,2"]
    assert invoke([*given, "--json", "--html", str(page)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["horizon"] for row in document["horizons"]["rows"]] == [1, 2]
    assert document["symbols"] == ["AAAUSDT"]
    assert page.stat().st_size > 50_000
    assert invoke([*given[:-1], "1,x"]) == 2
    assert "write bars, such as 1,4,24" in capsys.readouterr().err
    assert invoke(["data", "study", f"{path}:none", "--data", f"AAAUSDT={path}"]) != 0
    assert "has no column none" in capsys.readouterr().err
