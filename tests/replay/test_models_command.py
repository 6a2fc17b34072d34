"""``models`` and ``evaluate`` on cards that hold anything: their facts, or one sentence."""

from __future__ import annotations

import tomllib
from pathlib import Path

import models
import pytest

from tracepaper.daemon.cli import invoke
from tracepaper.storage.checkpoints import CARD_NAME, dump, save

ABSURD = ("nan", "-1", '"x"', "[]", "{}", "999999999999", "true")


def checkpoint(folder: Path) -> Path:
    card = {**models.card(temperature=1.0), "honesty": {"sentences": ["It is small."]}}
    card["split"] = {
        "train_until": "2025-01-01",
        "validation_until": "2025-02-01",
        "calibration_until": "2025-03-01",
        "embargo_bars": 10,
    }
    save(folder, models.network().state_dict(), card)
    return folder


def lines(folder: Path) -> list[str]:
    return (folder / CARD_NAME).read_text().splitlines()


def test_models_lists_a_checkpoint_with_its_facts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "a")
    assert invoke(["models", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "flash: 3 layers, window 50; context 148 bars; horizons 5, 30, 240" in out
    assert str(folder) in out


def test_a_folder_without_a_checkpoint_is_said_with_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["models", str(tmp_path / "nowhere")]) == 1
    assert "No checkpoint lies there" in capsys.readouterr().err


@pytest.mark.parametrize("value", ABSURD)
def test_no_card_gives_a_traceback(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "a")
    whole = lines(folder)
    candles = tmp_path / "BTCUSDT.csv"
    candles.write_text("open_time,open,high,low,close,volume\n0,1,1,1,1,1\n60000,1,1,1,1,1\n")
    for place, line in enumerate(whole):
        key, separator, _ = line.partition(" = ")
        if not separator:
            continue
        text = "\n".join([*whole[:place], f"{key} = {value}", *whole[place + 1 :]])
        (folder / CARD_NAME).write_text(text)
        tomllib.loads(text)
        for words in (["models", str(folder)], ["evaluate", str(folder), "--data", str(candles)]):
            code = invoke(words)
            said = capsys.readouterr()
            assert code in (0, 1, 2)
            assert said.err.count("\n") <= 1, (line, said.err[:300])
            assert "Traceback" not in said.err


def test_dump_keeps_what_a_card_said(tmp_path: Path) -> None:
    card = tomllib.loads((checkpoint(tmp_path / "a") / CARD_NAME).read_text())
    assert tomllib.loads(dump(card)) == card
