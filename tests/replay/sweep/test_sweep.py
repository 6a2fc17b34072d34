"""A sweep: its cells are replays, it goes on where it was, and it says how much is luck."""

from __future__ import annotations

import json
import math
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import present
from programs import environment, run
from user_strategies import importable
from waiting import deadline_s

from tracepaper import Action, ConfigInvalid, DataInvalid, Signal, Strategy, backtest, sweep
from tracepaper.replay.backtest.run_spec import RunSpec
from tracepaper.replay.document.charts import HeatLayer, cells_of
from tracepaper.replay.report import metrics
from tracepaper.replay.sweep.executor import InThisProcess, LocalProcesses
from tracepaper.replay.sweep.result import Sweep, heat_chart
from tracepaper.replay.sweep.space import objective_text
from tracepaper.replay.sweep.trial import overrides_of, read_request
from tracepaper.storage.sweeps import SweepFile, TrialRegistry, Trials
from tracepaper.strategies.units import DAY_MS

SPACE = {"fast": [3, 5, 9], "slow": [12, 20, 40]}
SIZED = {"sizing": {"mode": "fixed", "quantity": "0.1"}}


def here(data: Any, space: Any = SPACE, objective: Any = "return", **named: Any) -> Sweep:
    """Sweep in this process: what most tests are about is not where a run is made."""
    executor = named.pop("executor", None) or InThisProcess()
    strategy = named.pop("strategy", "sma_cross")
    return sweep(strategy, data, space, objective, config=SIZED, executor=executor, **named)


def values(swept: Sweep) -> list[tuple[Any, ...]]:
    """Return everything of the cells but how long they took."""
    return [
        (cell.key, cell.point, cell.value, cell.error, cell.figures, cell.daily, cell.config_sha256)
        for cell in swept.cells
    ]


@pytest.fixture(scope="module")
def nine(candles: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACEPAPER_TRIALS", str(tmp_path_factory.mktemp("nine") / "trials.db"))
        return here(candles)


def test_options_of_the_space_that_the_run_does_not_use_are_named(candles: Path) -> None:
    """Candles have no depth, and the fee is in every fill."""
    unused = {"execution.latency_ms": [100, 700], "execution.fill_within_ms": (500, 504)}
    swept = here(candles, {"execution.taker_fee": [0.001, 0.0002], **unused, "fast": [3]})
    assert swept.document()["without_effect"] == list(unused)
    sentence = "execution.latency_ms and execution.fill_within_ms have no effect at the best point"
    assert sentence in " ".join(str(swept).split())
    used = here(candles, {"execution.taker_fee": [0.001, 0.0002], "exits.stop_loss": ["1%", "9%"]})
    assert used.without_effect == ()
    assert "no effect" not in str(used)


def test_a_cell_is_the_replay_of_its_point(nine: Sweep, candles: Path) -> None:
    assert [cell.point for cell in nine.cells[:2]] == [
        {"fast": 3, "slow": 12},
        {"fast": 3, "slow": 20},
    ]
    cell = nine.cells[4]
    with backtest("sma_cross", candles, params=cell.point, config=SIZED) as alone:
        assert cell.figures == alone.summary
        assert cell.value == alone.summary["return"]
        assert 0 <= (cell.figures["random_beaten"] or 0) <= 1


def test_the_best_is_made_again_whole(nine: Sweep, tmp_path: Path) -> None:
    best = present(nine.best)
    assert best.value == max(cell.value or -1 for cell in nine.cells)
    with nine.best_run() as again:
        assert again.summary == best.figures
        assert again.verify(sample=20).passes
    assert nine.command is not None
    done = subprocess.run(
        ["bash", "-c", f"{nine.command} --json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True,
        timeout=deadline_s(120),
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert document["equity"] == pytest.approx(best.figures["end"])


@pytest.mark.parametrize("executor", [LocalProcesses, ThreadPoolExecutor])
def test_another_executor_finds_what_this_process_finds(
    nine: Sweep, candles: Path, executor: Callable[[], Executor]
) -> None:
    with executor() as elsewhere:
        assert values(here(candles, executor=elsewhere)) == values(nine)


def test_a_heat_map_is_drawn_with_every_value_and_the_best(nine: Sweep) -> None:
    chart = heat_chart(nine)
    (cells,) = chart.panels[0].layers
    assert isinstance(cells, HeatLayer)
    heat = present(nine.heat())
    assert cells_of(cells) == pytest.approx(heat.values, rel=1e-5)
    assert (cells.low, cells.high) == (heat.values.min(), heat.values.max())
    texts = [text.get_text() for text in nine.plot().figure.axes[0].texts]
    best = objective_text(heat.values[heat.best], "return")
    assert [text for text in texts if "best" in text] == [f"best: {best}"]
    assert len(texts) == heat.values.size


def test_heat_and_neighbours(nine: Sweep) -> None:
    heat = present(nine.heat())
    assert (heat.columns, heat.rows) == (("3", "5", "9"), ("12", "20", "40"))
    for cell in nine.cells:
        at = [12, 20, 40].index(cell.point["slow"]), [3, 5, 9].index(cell.point["fast"])
        assert heat.values[at] == cell.value
    assert heat.values[heat.best] == np.nanmax(heat.values)
    neighbours = present(nine.neighbours)
    row, column = heat.best
    wanted = [
        heat.values[row + down, column + across]
        for down, across in ((-1, 0), (1, 0), (0, -1), (0, 1))
        if 0 <= row + down < 3 and 0 <= column + across < 3
    ]
    assert sorted(neighbours.values) == sorted(wanted)


def test_the_registry_counts_a_configuration_once_over_all_sweeps(candles: Path) -> None:
    first = here(candles, {"fast": [3, 5], "slow": [20]})
    again = here(candles, {"fast": [3, 5], "slow": [20]}, "mean_day")
    more = here(candles, {"fast": [5, 7], "slow": [20]})
    other = here(candles, {"fast": [5], "slow": [20]}, end="2025-05-26T12:00")
    elsewhere = here({"ETHUSDT": candles}, {"fast": [5], "slow": [20]})
    assert [of.trials.number for of in (first, again, more, other, elsewhere)] == [2, 2, 3, 3, 1]
    assert "3 configurations were tried" in repr(more)


def test_the_deflated_ratio_counts_every_trial(days: Path) -> None:
    earlier = here(days, {"fast": [2, 4, 8], "slow": [30, 60]}, "sharpe")
    swept = here(days, {"fast": [3, 5], "slow": [30]}, "sharpe")
    daily = np.array(present(swept.best).daily)
    assert daily.size == 40
    ratios = [np.mean(cell.daily) / np.std(cell.daily, ddof=1)
              for cell in (*earlier.cells, *swept.cells)]  # fmt: skip
    with TrialRegistry() as counted:
        trials = counted.trials(swept.request.tried)
        data = swept.request.tried
        for other, number in (
            (data._replace(until_ms=data.until_ms - 1, from_ms=data.from_ms + 1), 8),
            (data._replace(symbols=("ETHUSDT",)), 0),
            (data._replace(interval_ms=1), 0),
            (data._replace(from_ms=data.until_ms, until_ms=data.until_ms + 1), 0),
        ):
            assert counted.trials(other).number == number
    assert trials.number == 8
    assert sorted(trials.sharpe_day) == pytest.approx(sorted(ratios))
    wanted = metrics.deflated_sharpe(daily, trials=8, variance=float(np.var(ratios, ddof=1)))
    assert swept.deflated_sharpe == pytest.approx(wanted)
    above_zero = present(metrics.probabilistic_sharpe(daily))
    assert swept.deflated_sharpe is not None
    assert swept.deflated_sharpe < above_zero
    assert "(the deflated Sharpe ratio) is" in " ".join(repr(swept).split())


def test_luck_counts_trials_without_a_ratio_and_needs_two_that_have_one(days: Path) -> None:
    swept = here(days, {"fast": [3, 5], "slow": [30]}, "sharpe")
    ratios = (0.1, 0.3, -0.05)
    many = replace(swept, trials=Trials(50, ratios))
    variance = statistics.variance(ratios)
    assert many.best_by_chance == pytest.approx(metrics.best_by_chance(50, variance))
    wanted = metrics.deflated_sharpe(present(swept.best).daily, trials=50, variance=variance)
    assert many.deflated_sharpe == pytest.approx(wanted)
    assert many.document()["trials_on_these_data"] == 50
    two = replace(swept, trials=Trials(50, ratios[:2]))
    assert two.best_by_chance is not None
    assert two.deflated_sharpe is not None
    single = replace(swept, trials=Trials(50, ratios[:1]))
    assert (single.best_by_chance, single.deflated_sharpe) == (None, None)


def test_windows_choose_on_train_and_report_on_test(days: Path) -> None:
    swept = here(days, {"fast": [2, 8], "slow": [30, 60]}, windows="20d/8d")
    spans = swept.request.spans
    assert [(span.until_ms or 0) - (span.from_ms or 0) for span in spans] == [1_728_000_000] * 3
    assert [span.until_ms for span in spans[1:]] == [span.test_ms for span in spans[:-1]]
    tests = [cell for cell in swept.cells if cell.part == "test"]
    assert len(tests) == len(spans) == 3
    for test in tests:
        train = [cell for cell in swept.cells if (cell.span, cell.part) == (test.span, "train")]
        assert len(train) == 4
        best = max(train, key=lambda cell: cell.value or -1)
        assert test.point == best.point
        span = spans[test.span]
        with backtest("sma_cross", days, params=test.point, config=SIZED,
                      start=span.until_ms, end=span.test_ms) as alone:  # fmt: skip
            assert test.value == alone.summary["return"]
    text = " ".join(repr(swept).split())
    assert "Out of sample, in 3 tests after their windows" in text
    assert swept.trials.number == 4  # windows of one configuration are one trial


def test_an_embargo_lies_between_a_window_and_its_test(days: Path) -> None:
    swept = here(days, {"fast": [2, 8], "slow": [30]}, windows="20d/8d/2d")
    two_days = 2 * DAY_MS
    for span in swept.request.spans:
        assert present(span.tested_ms) - present(span.until_ms) == two_days
        assert present(span.test_ms) - present(span.tested_ms) <= 8 * DAY_MS
    test = next(cell for cell in swept.cells if cell.part == "test")
    span = swept.request.spans[0]
    with backtest("sma_cross", days, params=test.point, config=SIZED,
                  start=span.tested_ms, end=span.test_ms) as alone:  # fmt: skip
        assert test.value == alone.summary["return"]
    with pytest.raises(ConfigInvalid, match="an embargo between them, such as 90d/30d/2d"):
        here(days, windows="20d/8d/2d/1d")


def test_data_too_short_for_a_window_or_a_year_say_so(candles: Path, days: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"0\.4 days, too few for one window of 2 days"):
        here(candles, windows="2d/1d")
    with pytest.raises(ConfigInvalid, match=r"needs 30 days; the data have 0\.4: choose return"):
        here(candles, objective="sharpe")
    with pytest.raises(ConfigInvalid, match=r"needs 30 days; a window trains on 20\.0"):
        here(days, objective="sharpe", windows="20d/8d")


# ---------------------------------------------------------------- interrupted

KILLED = """
import os, signal, sys
from tracepaper import sweep
from tracepaper.replay.sweep.executor import InThisProcess

class KilledExecutor(InThisProcess):
    left = 4
    def submit(self, *given):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().submit(*given)

sweep("sma_cross", {data!r}, {space!r}, "return", config={config!r}, executor=KilledExecutor(),
      state="state.db", **{named!r})
"""


@pytest.mark.slow
def test_after_a_kill_it_goes_on_and_ends_as_if_it_had_never_stopped(
    candles: Path, tmp_path: Path
) -> None:
    named: dict[str, Any] = {"sampler": "random", "trials": 9, "seed": 5}
    space = {"fast": (2, 9), "slow": (12, 50)}
    text = KILLED.format(data=str(candles), space=space, config=SIZED, named=named)
    killed = subprocess.run(
        [sys.executable, "-c", text],
        cwd=tmp_path, env=environment({"TRACEPAPER_TRIALS": str(tmp_path / "killed.db")}),
        check=False, timeout=deadline_s(120),
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    calls: list[tuple[int, int, float | None]] = []
    on = here(candles, space, state=tmp_path / "state.db",
              progress=lambda *call: calls.append(call), **named)  # fmt: skip
    assert on.new_runs == 5
    assert calls[-1][:2] == (9, 9)
    assert values(on) == values(here(candles, space, **named))
    done = here(candles, space, state=tmp_path / "state.db", **named)
    assert done.new_runs == 0
    assert values(done) == values(on)


def test_a_file_of_another_sweep_or_of_something_else_is_refused(
    candles: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state.db"
    here(candles, {"fast": [3], "slow": [20]}, state=state)
    with pytest.raises(ConfigInvalid, match=r"state\.db holds a sweep with another space"):
        here(candles, {"fast": [4], "slow": [20]}, state=state)
    run_of = tmp_path / "run.db"
    backtest("persistence", candles, db=run_of)
    with pytest.raises(DataInvalid, match=r"run\.db is no sweep; name another file"):
        here(candles, {"fast": [3], "slow": [20]}, state=run_of)
    (tmp_path / "text.db").write_text("no database at all, but long enough to be taken for one")
    with pytest.raises(ConfigInvalid, match=r"text\.db cannot be used"):
        here(candles, {"fast": [3], "slow": [20]}, state=tmp_path / "text.db")


def test_two_processes_do_not_share_one_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracepaper.storage.sweeps.BUSY_S", 0.01)
    with SweepFile(tmp_path / "state.db", {"a": 1}) as held:
        held.store((0, "whole", 0), {"value": 1})
        with pytest.raises(ConfigInvalid, match="is in use by another sweep"):
            SweepFile(tmp_path / "state.db", {"a": 1})
    with SweepFile(tmp_path / "state.db", {"a": 1}) as again:
        assert list(again.cells()) == [((0, "whole", 0), {"value": 1})]


def test_a_registry_that_cannot_be_written_says_what_to_set(
    candles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRACEPAPER_TRIALS", str(tmp_path / "file" / "trials.db"))
    with pytest.raises(ConfigInvalid, match="registry of trials set TRACEPAPER_TRIALS"):
        here(candles, {"fast": [3], "slow": [20]})


# ---------------------------------------------------------------- what goes wrong in one cell

ODD = """
import os
from tracepaper import Action, Signal, Strategy


class Odd(Strategy):
    def __init__(self, how):
        self.how = how
        if how == "refuses":
            raise ValueError("not like that")

    def decide(self, now):
        if self.how == "raises":
            raise KeyError("lost")
        if self.how == "blocks":
            while True:
                pass
        if self.how == "exits":
            os._exit(3)
        if self.how == "nonsense":
            return "up"
        return Signal(Action.LONG if now.close > now.open else Action.FLAT, "as it went")
"""
WRONG = {
    "refuses": "not like that",
    "raises": "failed in decide with KeyError",
    "blocks": "took longer than 4 s and was stopped",
    "exits": "Its process ended",
    "nonsense": "answered 'up' in decide",
}


def test_a_cell_that_goes_wrong_says_so_and_the_others_go_on(candles: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    with importable(tmp_path):
        swept = sweep(
            import_module("odd").Odd,
            candles,
            {"how": ["fine", *WRONG, "fine too"]},
            "return",
            config=SIZED,
            jobs=2,
            limit_s=4.0,
        )
    cells = {cell.point["how"]: cell for cell in swept.cells}
    for how, sentence in WRONG.items():
        assert sentence in cells[how].error, cells[how].error
        assert cells[how].value is None
    assert cells["fine"].value == cells["fine too"].value is not None
    assert swept.best is cells["fine"]
    assert swept.trials.number == 2
    assert "7 runs, 5 of them failed" in repr(swept)
    assert "Failed: how = refuses: " in repr(swept)


def test_the_options_of_a_configured_class_are_swept_by_either_name(candles: Path) -> None:
    spec = RunSpec(candles=(str(candles),), config={"strategy": {"name": "odd:Odd"}})
    for name in ("how", "strategy.options.how"):
        work = read_request(spec, {name: ["fine"]}, "return").work
        assert overrides_of(work, {name: 0.5})["strategy"]["options"] == {"how": 0.5}
    # A point that names the strategy or its options wins.
    assert overrides_of(work, {"strategy.name": "trend"})["strategy"] == {"name": "trend"}


class TypedClass(Strategy):
    """A class of this module that is handed over as one that no other process has."""

    def __init__(self, blocks: bool) -> None:
        self.blocks = blocks

    def decide(self, context: Any) -> Signal:
        while self.blocks:
            pass
        return Signal(Action.LONG, "always")


def test_a_class_that_only_this_process_has_runs_here_under_its_limit(
    candles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TypedClass, "__module__", "__main__")
    swept = sweep(
        TypedClass, candles, {"blocks": [True, False]}, "return", config=SIZED, limit_s=2.0
    )
    assert [bool(cell.error) for cell in swept.cells] == [True, False]
    assert "took longer than 2 s" in swept.cells[0].error
    assert swept.command is None
    with pytest.warns(UserWarning, match="keeps no source"), swept.best_run() as again:
        assert again.summary["return"] == swept.cells[1].value


def objective(of: Any) -> float:
    """Return what the parametrised test is about, by the fast average."""
    fast = json.loads(of.row["config"])["strategy"]["fast"]
    if fast == 3:
        raise RuntimeError("no idea")
    odd: dict[int, Any] = {5: math.nan, 7: "good", 9: np.float64(of.trades.height), 11: True}
    return odd[fast]


def test_an_objective_that_fails_is_recorded_in_its_cell(candles: Path) -> None:
    swept = here(candles, {"fast": [3, 5, 7, 9, 11], "slow": [20]}, objective)
    assert [cell.error for cell in swept.cells if cell.point["fast"] != 3] == [
        "The objective returned nan; return a finite number.",
        "The objective returned 'good'; return a finite number.",
        "",
        "The objective returned True; return a finite number.",
    ]
    assert "objective failed as the objective with RuntimeError: no idea" in swept.cells[0].error
    assert present(swept.best).value == present(swept.best).figures["trades"]
    assert swept.trials.number == 5  # they were tried, whatever was made of them


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ({"space": {}}, "no option, so there is no point"),
        ({"objective": "luck"}, "There is no figure 'luck'; choose of end, return"),
        ({"objective": "Return [%]"}, r"There is no figure 'Return \[%\]'; choose of end, return"),
        ({"direction": "up"}, "write maximize or minimize"),
        ({"seed": 1.5}, "seed is 1.5; give a whole number"),
        ({"limit_s": 0}, "limit_s is 0; give seconds above 0"),
        ({"sampler": "cma"}, "choose grid, random, tpe"),
        ({"data": "nowhere.csv"}, "nowhere.csv"),
        ({"start": "2030-01-01"}, "have no bar"),
    ],
)
def test_wrong_usage_is_said_before_anything_runs(
    named: dict[str, Any], sentence: str, candles: Path
) -> None:
    with pytest.raises((ConfigInvalid, DataInvalid), match=sentence):
        here(**{"data": candles, **named})
    with pytest.raises(ConfigInvalid, match="jobs is 0"):
        sweep("sma_cross", candles, SPACE, "return", jobs=0)


def test_tpe_draws_where_it_was_good(candles: Path) -> None:
    named = {"sampler": "tpe", "trials": 14, "seed": 2}
    swept = here(candles, {"fast": (2, 40), "slow": [60]}, "trades", direction="minimize", **named)
    late = [cell.point["fast"] for cell in swept.cells[10:]]
    assert np.mean(late) > 20  # fewer trades where the averages are near each other's length
    again = here(candles, {"fast": (2, 40), "slow": [60]}, "trades", direction="minimize", **named)
    assert values(again) == values(swept)


# ---------------------------------------------------------------- the command


def command(folder: Path, *words: str) -> Any:
    extra = {"TRACEPAPER_TRIALS": "trials.db", **{f"TRACEPAPER_SIZING__{key.upper()}": value
             for key, value in SIZED["sizing"].items()}}  # fmt: skip
    return run(("sweep", *words), folder, extra)


def test_the_command_sweeps_and_the_same_command_goes_on(
    nine: Sweep, candles: Path, tmp_path: Path
) -> None:
    words = (str(candles), "--strategy", "sma_cross", "--space", "fast=3,5,9", "--space",
             "slow=12,20,40", "--objective", "return", "--jobs", "2",
             "--set", "execution.fill_within_ms=500")  # fmt: skip
    first = json.loads(command(tmp_path, *words, "--json").out)
    assert [cell["value"] for cell in first["cells"]] == [cell.value for cell in nine.cells]
    assert first["without_effect"] == ["execution.fill_within_ms"]
    assert (first["failed"], first["new_runs"], first["trials_on_these_data"]) == (0, 9, 9)
    again = command(tmp_path, *words, "--html", "sweep.html")
    assert "9 runs (0 new), by return" in again.out
    assert (tmp_path / "sweep.html").exists()
    assert f"Its cells are in {first['state']}" in again.out
    assert again.err == ""


def test_the_command_fails_where_every_run_does_or_nothing_is_named(
    candles: Path, tmp_path: Path
) -> None:
    failed = command(tmp_path, str(candles), "--strategy", "sma_cross", "--space", "fast=300",
                     "--objective", "return")  # fmt: skip
    assert failed.code == 1
    assert "No run succeeded" in failed.out
    wrong = command(tmp_path, str(candles), "--space", "fast=1..", "--objective", "no:where")
    assert wrong.code == 2
    assert "'no:where' cannot be imported" in wrong.err


def test_a_file_of_vectors_is_of_the_data(candles: Path, tmp_path: Path) -> None:
    file, hashes = tmp_path / "news.csv", []
    for mood in (1, 1, 2):
        file.write_text(f"time,mood\n1717243200000,{mood}\n", encoding="utf-8")
        config = {**SIZED, "model": {"covariates": str(file)}}
        space = {"sizing.quantity": ["0.1"]}
        spec = RunSpec(candles=(str(candles),), config=config)
        request = read_request(spec, space, "return", strategy="persistence")
        hashes.append(request.data_sha256)
    assert hashes[0] == hashes[1] != hashes[2]
