"""`tracepaper data samples` copies what the documentation names, and overwrites nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tracepaper.daemon.cli import invoke
from tracepaper.replay.samples import DEMO_CANDLES, bundled


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
