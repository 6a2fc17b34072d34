"""``evaluate module:Class``: a model with foresight beats its opposite, on later bars."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli
from user_strategies import importable

from tracepaper.daemon.cli import invoke

BARS = 3_000
START_MS = 1_748_217_600_000  # a midnight

ORACLE = """
from tracepaper.strategies.api.model import Model

class Mine(Model):
    measures = {measures}
    {more}
    def predict(self, seen):
        # Half a wave ahead the price stands on the other side of its mean.
        mean = {sign} 2.0 * (seen.past.close[-1] - 100.0) / 100.0
        return {answer}
"""
MEAN = {"measures": '("mean_return",)', "answer": '{"mean_return": -mean}', "sign": "", "more": ""}


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return candles of one wave per hour, so that returns over thirty bars are reversed."""
    path = tmp_path_factory.mktemp("waves") / "WAVEUSDT_1m.csv"
    lines = ["open_time,open,high,low,close,volume"]
    before = 100.0
    for bar in range(BARS):
        close = round(100 + math.sin(2 * math.pi * bar / 60 + 0.1), 3)
        high, low = max(before, close) + 0.01, min(before, close) - 0.01
        lines.append(
            f"{START_MS + 60_000 * bar},{before},{high:.3f},{low:.3f},{close},{5 + bar % 3}"
        )
        before = close
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def judged(folder: Path, data: Path, cli: Cli, name: str, **parts: str) -> Any:
    """Write a model, evaluate it, and return the output as JSON."""
    (folder / f"{name}.py").write_text(ORACLE.format(**{**MEAN, **parts}), encoding="utf-8")
    with importable(folder):
        return cli.json("evaluate", f"{name}:Mine", "--data", data)


def test_one_that_knows_is_told_from_its_opposite(tmp_path: Path, waves: Path, cli: Cli) -> None:
    knows = judged(tmp_path, waves, cli, "oracle_knows")["figures"]["30"]
    errs = judged(tmp_path, waves, cli, "oracle_errs", sign="-")["figures"]["30"]
    assert knows["sign_accuracy"]["model"][0] > 0.95
    assert errs["sign_accuracy"]["model"][0] < 0.05
    assert knows["ic"]["model"][0] == pytest.approx(-errs["ic"]["model"][0], abs=1e-4)
    assert "model" not in knows["qlike"]  # it gives no volatility
    assert "har" in knows["qlike"]
    assert not {"coverage_90", "direction"} & set(knows)


def test_probabilities_alone_are_judged_as_such(tmp_path: Path, waves: Path, cli: Cli) -> None:
    answer = '{"p_up": 0.9 if mean < 0 else 0.1}'
    report = judged(tmp_path, waves, cli, "oracle_p", measures='("probabilities",)', answer=answer)
    figures = report["figures"]["30"]
    assert figures["direction"]["accuracy"][0] > 0.7  # some of the bars move hardly, and are flat
    assert figures["direction"]["brier_less_climatology"][0] < -0.1, figures["direction"]
    assert "model" not in figures["sign_accuracy"]
    assert list(report["figures"]["gates"]["selective"]) == ["margin"]


def test_it_is_judged_after_it_was_trained_and_says_so(
    tmp_path: Path, waves: Path, cli: Cli
) -> None:
    until = 'trained_until = "2025-05-27T12:00"'
    document = judged(tmp_path, waves, cli, "oracle_dated", more=until)
    after = BARS - 36 * 60
    assert document["figures"]["30"]["bars"] == after - 30 - 30  # embargo, and the last horizon
    assert document["sentences"][0].startswith("Judged on the bars after 2025-05-27T12:00:00Z")
    assert any("no attention" in sentence for sentence in document["sentences"])
    undated = judged(tmp_path, waves, cli, "oracle_undated")
    assert "does not say until when it was trained" in undated["sentences"][0]


def test_a_model_trained_on_all_of_it_has_nothing_to_be_judged_on(
    tmp_path: Path, waves: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ORACLE.format(**{**MEAN, "more": 'trained_until = "2026-01-01"'})
    (tmp_path / "oracle_late.py").write_text(text, encoding="utf-8")
    with importable(tmp_path):
        assert invoke(["evaluate", "oracle_late:Mine", "--data", str(waves)]) != 0
    assert "no bar of the span untouched whose outcome is known" in capsys.readouterr().err


def test_features_of_another_interval_than_the_candles_are_refused(
    tmp_path: Path, waves: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ORACLE.format(**{**MEAN, "more": 'features = "v2"'})
    (tmp_path / "oracle_wide.py").write_text(text, encoding="utf-8")
    words = ["evaluate", "oracle_wide:Mine", "--data", str(waves), "--set", "market.interval=5m"]
    with importable(tmp_path):
        assert invoke(words) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert (
        "sees features v2-5m, and the candles are bars of 1m; write --set market.interval=1m"
        in error
    )
