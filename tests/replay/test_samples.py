"""`tracepaper data samples` copies what the documentation names, and overwrites nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from programs import ROOT

import tracepaper
from tracepaper.daemon.cli import invoke
from tracepaper.replay.samples import DEMO_CANDLES, bundled
from tracepaper.strategies.errors import DataInvalid


def test_every_file_is_copied_with_its_source_and_again_without_complaint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert invoke(["data", "samples"]) == 0
        assert capsys.readouterr().out == (
            f"samples holds {len(bundled())} files; samples/SOURCES.md says whose they are.\n"
        )
    copy = tmp_path / "samples" / DEMO_CANDLES.name
    assert copy.read_bytes() == DEMO_CANDLES.read_bytes()
    assert (tmp_path / "samples" / "SOURCES.md").is_file()


def test_a_file_that_is_another_is_kept_and_nothing_is_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "grid.toml"
    mine.write_text("mine", encoding="utf-8")
    assert invoke(["data", "samples", str(tmp_path)]) == 1
    assert f"{mine} is not the bundled file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["grid.toml"]
    assert invoke(["data", "samples", str(tmp_path / "new"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(told["files"])


def test_whatever_the_pages_name_below_samples_is_bundled() -> None:
    names = {path.name for path in bundled()}
    pages = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    found = {
        name
        for page in pages
        for name in re.findall(r"(?<![\w/])samples/([\w.-]+\w)", page.read_text(encoding="utf-8"))
    }
    assert found > {DEMO_CANDLES.name, "allocation.toml", "vectors.csv"}
    assert found - names == set()


def test_candles_for_a_first_backtest_are_named_by_symbol_and_interval() -> None:
    assert tracepaper.samples("BTCUSDT") == DEMO_CANDLES
    assert tracepaper.samples("SOLUSDT", "15m").exists()
    with pytest.raises(DataInvalid, match="no candles of SOLUSDT 1m; choose of BTCUSDT 1m, "):
        tracepaper.samples("SOLUSDT")
