"""No stored bytes end a command in a traceback: exchanged pages, values of no type of ours."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import explained_runs
import pytest
from command_line import Cli
from records import tamper

from tracepaper.daemon.cli import invoke
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.remedies import unusable

LAST = explained_runs.CONTEXT + 15


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    return explained_runs.replayed(folder, bars=explained_runs.CONTEXT + 20)


def exchanged(raw: sqlite3.Connection, text: str, other: str) -> None:
    """Let two tables have each other's pages."""
    pages = dict(raw.execute("SELECT name, rootpage FROM sqlite_schema").fetchall())
    raw.execute("PRAGMA writable_schema = ON")
    for name, page in ((text, pages[other]), (other, pages[text])):
        raw.execute("UPDATE sqlite_schema SET rootpage = ? WHERE name = ?", (page, name))


def mistyped(raw: sqlite3.Connection, column: str, value: object) -> None:
    """Write *value* past what the schema says of ``table.column``."""
    table, _, name = column.partition(".")
    query = "SELECT sql FROM sqlite_schema WHERE name = ?"
    (table_sql,) = raw.execute(query, (table,)).fetchone()
    loose = re.sub(r"\bSTRICT\b,?", "", table_sql).replace("NOT NULL", "").rstrip().rstrip(",")
    (version,) = raw.execute("PRAGMA schema_version").fetchone()
    raw.execute("PRAGMA writable_schema = ON")
    raw.execute("PRAGMA ignore_check_constraints = ON")
    for number, sql in enumerate((loose, table_sql), start=1):
        raw.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (sql, table))
        raw.commit()
        raw.execute(f"PRAGMA schema_version = {version + number}")
        if sql == loose:
            raw.execute(f"UPDATE {table} SET {name} = ?", (value,))


DAMAGE: dict[str, tuple[str, object]] = {
    "steps for events": ("steps", "events"),
    "steps for answers": ("steps", "answers"),
    "outcomes for holdings": ("outcomes", "holdings"),
    "a count that is text": ("runs.step_count", "[{"),
    "a tick that is text": ("instruments.tick_size", "{}"),
    "a measure that is text": ("answers.measure_edge", "[]"),
    "an event that ends early": ("events.content", "[{"),
    "a quantity that is text": ("fills.quantity", "{}"),
}


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was said on stderr beside warnings."""
    lines = capsys.readouterr().err.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("Warning: "))


@pytest.mark.parametrize("what", list(DAMAGE))
def test_damage_ends_in_a_sentence_that_names_the_check(
    sound: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, kept = tmp_path / "bad.db", sound.with_name(f"{sound.name}.checkpoints")
    shutil.copy(sound, path)
    shutil.copytree(kept, path.with_name(f"{path.name}.checkpoints"))
    where, value = DAMAGE[what]
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA foreign_keys = OFF")
        if "." in where:
            mistyped(raw, where, value)
        else:
            exchanged(raw, where, str(value))
        raw.commit()
    for words in (
        ["verify", "last", "--db", str(path)],
        ["explain", f"last:{LAST}", "--db", str(path)],
        ["report", "--db", str(path)],
        ["parity", f"{path}#last", f"{sound}#last"],
        ["replay", "--data", f"{path}#last", "--db", str(tmp_path / "new.db")],
    ):
        code = invoke(words)
        sentence = printed(capsys)
        if sentence:
            assert (code, sentence.count("\n")) == (1, 1)
        if sentence and words[0] == "verify":
            assert "audit verify" in sentence or "restore a backup" in sentence
    assert invoke(["audit", "verify", "--db", str(path)]) == 1
    assert printed(capsys) == ""


@pytest.mark.parametrize("lost", ["the folder", "weights.safetensors", "card.toml"])
def test_a_checkpoint_that_is_not_kept_any_more_is_to_be_restored(
    tmp_path: Path, sound: Path, lost: str, cli: Cli
) -> None:
    copied = tmp_path / sound.name
    shutil.copy(sound, copied)
    kept = sound.with_name(f"{sound.name}.checkpoints")
    if lost != "the folder":
        folder = shutil.copytree(kept, copied.with_name(f"{copied.name}.checkpoints"))
        next(folder.rglob(lost)).unlink()
    with Reader.open(copied) as reader:
        model_id = reader.run(reader.find("last")).model_id
    (name,) = (folder.name for folder in kept.iterdir())
    assert name == model_id
    sentence = f"restore the folder {copied}.checkpoints/{name} beside the database."
    last = LAST
    for words in (
        ["verify", "last", "--db", str(copied)],
        ["explain", f"last:{last}", "--full", "--db", str(copied)],
        ["replay", "--data", f"{copied}#last", "--db", str(tmp_path / "new.db")],
    ):
        assert sentence in cli.err(*words, code=1)
    assert not list(tmp_path.glob("new.db*"))


def test_a_replay_that_is_refused_leaves_nothing_behind(
    tmp_path: Path, sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither beside a new database nor beside one that holds other runs."""
    SqlAuditLog.open(tmp_path / "old.db").close()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    config = sound.parent / "config.toml"
    data = next(path for path in sound.parent.iterdir() if ".csv" in path.name)
    for name, options in (
        ("new.db", ["--from", "2090-01-01"]),
        ("old.db", ["--from", "2090-01-01"]),
        ("folder", []),
    ):
        words = ["replay", str(data), "-c", str(config), "--db", str(tmp_path / name), *options]
        assert invoke(words) == (2 if name == "folder" else 1)
        assert sorted(tmp_path.rglob("*")) == before
    assert "is a folder; name a file" in capsys.readouterr().err


def test_only_stored_bytes_are_called_damaged(tmp_path: Path) -> None:
    garbage, held = tmp_path / "garbage.db", tmp_path / "held.db"
    garbage.write_bytes(b"no database " * 400)
    with closing(sqlite3.connect(held)) as first:
        first.execute("CREATE TABLE t (a)")
        first.execute("BEGIN EXCLUSIVE")
        causes: dict[str, tuple[str, str]] = {
            "garbage": (f"{garbage.as_uri()}?mode=ro", "SELECT * FROM sqlite_schema"),
            "gone": (f"{(tmp_path / 'none' / 'x.db').as_uri()}?mode=ro", "SELECT 1"),
            "held": (f"{held.as_uri()}?mode=rw", "BEGIN EXCLUSIVE"),
            "read only": (f"{held.as_uri()}?mode=ro", "CREATE TABLE u (a)"),
            "another schema": ("file::memory:", "SELECT * FROM runs"),
        }
        called = {}
        for cause, (uri, query) in causes.items():
            with pytest.raises(sqlite3.Error) as error:
                sqlite3.connect(uri, uri=True, timeout=0).execute(query)
            called[cause] = "restore a backup" in unusable("it", error.value)
    assert [cause for cause, is_damage in called.items() if is_damage] == ["garbage"]


def test_a_fault_of_ours_is_not_laid_on_the_record(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_given: object, **_named: object) -> None:
        raise TypeError("ours")

    monkeypatch.setattr("tracepaper.replay.report.report.build_report", fails)
    assert invoke(["report", "--db", str(sound)]) == 1
    assert "restore a backup" not in (sentence := printed(capsys)), sentence
    assert "TypeError: ours" in sentence
    changed = tmp_path / "changed.db"
    shutil.copy(sound, changed)
    tamper(changed, "UPDATE steps SET close = close + 1 WHERE close IS NOT NULL")
    assert invoke(["report", "--db", str(changed)]) == 1
    assert "restore a backup" in printed(capsys)
