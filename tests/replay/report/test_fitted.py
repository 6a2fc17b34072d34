"""A replay over bars on which its model was fitted says so, and has separate figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import Cli
from exchange_client import FIRST_MS, walk_rows
from user_strategies import importable

import tracepaper
from tracepaper.storage.checkpoints import FittedSpan, fitted_spans
from tracepaper.strategies.units import iso

HOUR = 3_600_000
BARS = 240
MODEL = """
import tracepaper
class Mine(tracepaper.Model):
    features = None
    context = 5
    horizons = (4,)
    measures = ("mean_return",)
    trained_until = {until!r}
    def predict(self, inputs):
        return {{"mean_return": 0.01 if inputs.past.close[-1] > inputs.past.close[0] else -0.01}}
"""


def columns() -> dict[str, list[float]]:
    """Return ten days of hourly bars of a random walk, as columns of a frame."""
    names = ("open", "high", "low", "close", "volume")
    rows = walk_rows(BARS)
    values = {name: [float(row[place]) for row in rows] for place, name in enumerate(names)}
    return {"open_time": [FIRST_MS + HOUR * place for place in range(BARS)], **values}


@pytest.mark.parametrize(("trained", "inside"), [(-1, 0), (100, 100)])
def test_bars_that_a_class_was_trained_on_are_counted_and_judged_apart(
    tmp_path: Path, cli: Cli, trained: int, inside: int
) -> None:
    until = iso(FIRST_MS + HOUR * trained)
    name, path = f"fitted_{trained}".replace("-", "_"), tmp_path / "run.db"
    (tmp_path / f"{name}.py").write_text(MODEL.format(until=until))
    config: dict[str, dict[str, Any]] = {
        "model": {"class": f"{name}:Mine"},
        "gate": {"horizon": 4, "edge": 0},
    }
    with importable(tmp_path):
        data = {"BTCUSDT": columns()}
        run = tracepaper.backtest("attention", data, config=config, db=path, progress=False)
        output = repr(run)
    text = f"{inside} of {BARS} bars lie in the time that the model was fitted on"
    report = cli.json("report", "last", "--db", path)
    warnings = [warning for warning in report["warnings"] if "fitted on" in warning]
    assert (text in output) == bool(inside) == bool(warnings)
    parts = {part["part"]: part for part in report.get("stretches", ())}
    if not inside:
        assert not parts
        return
    assert text in warnings[0]
    assert set(parts) == {"training", "after training"}
    whole = report["accounts"][0]
    assert sum(part["days"] for part in parts.values()) == pytest.approx(whole["days"], abs=0.1)
    assert sum(part["trades"] for part in parts.values()) == whole["trades"] > 3
    grown = 1.0
    for part in parts.values():
        grown *= 1 + part["return"]
    assert grown == pytest.approx(1 + whole["return"])


def test_a_card_names_the_time_of_each_part_of_its_fit() -> None:
    split = {
        "train_until": "2024-06-01T00:00:00Z",
        "validation_until": "2024-09-01",
        "calibration_until": "2024-10-01T00:00:00+00:00",
    }
    files = [{"from": "2024-02-01T00:00:00Z"}, {"from": "2023-02-01T00:00:00Z"}]
    ends = [1_717_200_000_000, 1_725_148_800_000, 1_727_740_800_000]
    assert fitted_spans({"split": split, "data": {"files": files}}) == (
        FittedSpan("training", 1_675_209_600_000, ends[0]),
        FittedSpan("validation", ends[0], ends[1]),
        FittedSpan("calibration", ends[1], ends[2]),
    )
    assert fitted_spans({}) == fitted_spans({"split": {"train_until": 7}}) == ()
