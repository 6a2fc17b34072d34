"""Wrong usage of every command: one sentence that names the cause, and the right exit code."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

import pytest

from tracepaper.daemon.cli import invoke
from tracepaper.replay.samples import DEMO_CANDLES

WRONG: Final = [
    (["frob"], 2, "No such command"),
    (["replay"], 2, "--data"),
    (["replay", "--data", "absent.csv"], 1, "absent.csv"),
    (["replay", "--data", "absent.csv", "--mode", "jump"], 2, "scan or step"),
    (["replay", "--data", "BTCUSDT=folder.csv"], 1, "folder.csv"),
    (["replay", "--data", "words.csv"], 2, "SYMBOL=words.csv"),
    (["replay", "--data", "BTCUSDT=words.csv"], 1, "words.csv"),
    (["replay", "--data", "BTCUSDT=words.csv", "-c", "unknown.toml"], 2, "confidence"),
    (["replay", "--data", "absent.db#last"], 1, "absent.db"),
    (["replay", "--data", str(DEMO_CANDLES), "--from", "soon"], 2, "--from"),
    (["replay", "--data", str(DEMO_CANDLES), "-c", "user.toml"], 2, "nowhere"),
    (["verify", "last", "--db", "absent.db"], 1, "absent.db"),
    (["parity", "absent.db#last", "absent.db#last"], 1, "absent.db"),
    (["explain", "last:1", "--db", "words.csv"], 1, "words.csv"),
    (["explain", "last"], 1, "--db"),
    (["audit", "verify", "last", "--db", "absent.db"], 1, "absent.db"),
    (["audit", "sql", "DROP TABLE bars", "--db", "empty.db"], 1, "empty.db"),
    (["audit", "head", "--db", "words.csv"], 1, "words.csv"),
    (["status", "--db", "absent.db"], 1, "absent.db"),
    (["command", "DANCE"], 2, "DANCE"),
    (["command", "HALT", "--db", "absent.db"], 1, "absent.db"),
    (["config", "check", "-c", "absent.toml"], 2, "absent.toml"),
    (["config", "check", "-c", "unknown.toml"], 2, "confidence"),
    (["config", "check", "-c", "broken.toml"], 2, "broken.toml"),
    (["db", "backup", "copy.db", "--db", "absent.db"], 1, "absent.db"),
    (["exchange", "--data", "absent.csv"], 1, "absent.csv"),
    (["lookahead", "--data", "absent.csv"], 1, "absent.csv"),
    (["report", "last", "--db", "absent.db"], 1, "absent.db"),
    (["calibrate", "absent.csv", "--candles", str(DEMO_CANDLES)], 1, "absent.csv"),
    (["calibrate", "words.csv", "--candles", str(DEMO_CANDLES)], 1, "side (Direction)"),
    (["calibrate", "words.csv"], 2, "--candles"),
]


@pytest.mark.parametrize(("arguments", "code", "word"), WRONG, ids=lambda part: str(part)[:50])
def test_wrong_usage_is_one_sentence_that_names_the_cause(
    arguments: list[str],
    code: int,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.csv").write_text("this,is,no\ncandle,file,at all\n")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "unknown.toml").write_text("[gate]\nconfidense = 1\n")
    (tmp_path / "broken.toml").write_text("[gate\n")
    (tmp_path / "user.toml").write_text('[strategy]\nname = "nowhere:Nobody"\n')
    sqlite3.connect(tmp_path / "empty.db").close()
    assert invoke(arguments) == code
    said = capsys.readouterr()
    assert said.err.count("\n") == 1, said.err
    assert word in said.err
    assert said.err.endswith((".\n", "`.\n"))
    assert "Traceback" not in said.err + said.out
