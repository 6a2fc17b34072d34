"""The script of docs/retrain.md: a better model takes over, any other leaves the running one."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from learning import minutes_of
from programs import environment
from readme import DOCS, blocks, file_name

from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.candle_file import CandleFile
from tracepaper.replay.archive.series import archive_instrument
from tracepaper.storage.checkpoints import load, save

pytestmark = pytest.mark.slow

HOUR_MS = 3_600_000
DAYS = 96
"""The last 39 are untouched: fewer than 30 would prove nothing."""
RECIPE = """
[model]
kind = "glm"
[architecture]
horizons = [4, 24]
[training]
explained_bars = 500
[calibration]
horizon = 4
[split]
train_until = "2024-01-01"
validation_until = "2024-01-05"
calibration_until = "2024-01-11"
"""
CONFIG = """
[market]
symbols = ["AAAUSDT"]
interval = "60"
[strategy]
name = "attention"
[model]
checkpoint = "running"
[gate]
horizon = 4
"""


def hours() -> Candles:
    """Return hours of one volatility."""
    rng = np.random.default_rng(1)
    part = minutes_of(5e-4 * rng.standard_normal(24 * DAYS), rng)
    opened_ms = part.open_time_ms[0] + HOUR_MS * np.arange(24 * DAYS, dtype=np.int64)
    return replace(part, interval_ms=HOUR_MS, open_time_ms=opened_ms)


class Folder:
    """The service's folder: candles, recipe, configuration and script."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        part = hours()
        with CandleFile(folder / "linear_AAAUSDT_1h.csv") as file:
            file.add(archive_instrument(part), part.bars())
        page = blocks((DOCS / "retrain.md").read_text(encoding="utf-8"))
        (script,) = (block.text for block in page if file_name(block) == "retrain.sh")
        texts = {"retrain.sh": script, "recipe.toml": RECIPE, "config.toml": CONFIG}
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "models").mkdir()

    def call(self, *command: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run *command* as the unit does."""
        return subprocess.run(
            command, cwd=self.path, env=environment(extra), capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    def retrain(self, recipe: str = "recipe.toml") -> tuple[int, str]:
        """Return exit code and output of the script, which trains by *recipe*."""
        named = {"RECIPE": recipe, "CONFIG": "config.toml", "CANDLES": "linear_AAAUSDT_1h.csv"}
        done = self.call("sh", "retrain.sh", HORIZON="4", **named)
        return done.returncode, done.stdout


def test_a_better_model_takes_over_and_nothing_else_does(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    trained = folder.call(
        "tracepaper", "train", "recipe.toml", "--data", "linear_AAAUSDT_1h.csv", "--out", "first"
    )
    assert trained.returncode == 0, trained.stderr
    first = load(tmp_path / "first")
    off = {**first.tensors, "log_variance_base": first.tensors["log_variance_base"] + 2.0}
    card = {name: part for name, part in first.card.items() if name != "baselines"}
    save(tmp_path / "models" / "off", off, card)
    running = tmp_path / "running"
    running.symlink_to("models/off")

    assert folder.retrain("absent.toml") == (2, "")  # a command fails
    assert running.readlink() == Path("models/off")
    assert folder.retrain() == (0, "On 4 bars the new model is better.\n")
    assert load(running).sha256 == first.sha256
    better = running.readlink()
    (tmp_path / "equal.toml").write_text(RECIPE + "embargo_bars = 100\n", encoding="utf-8")
    assert folder.retrain("equal.toml") == (10, "On 4 bars the new model is level.\n")
    assert running.readlink() == better
