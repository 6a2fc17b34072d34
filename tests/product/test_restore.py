"""Backup and restore as docs/upgrade.md has them: a machine is lost, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import explained_runs
import pytest

from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage import checkpoints
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.maintenance import backup
from tracepaper.strategies.errors import CheckpointMismatch

PAGE = Path(__file__).parents[2] / "docs" / "upgrade.md"
PROGRAM = Path(sys.executable).with_name("tracepaper")
MACHINE = """set -e
sudo() { if test "$1" = chown; then return; elif test "$1" = systemctl; then echo "$3 $2"; else "$@"; fi; }
tp() { env TRACEPAPER_STORAGE__URL=sqlite:////var/lib/tracepaper/tracepaper.db /opt/tracepaper/bin/tracepaper "$@"; }
"""  # noqa: E501 - lines of a shell


def section(title: str) -> str:
    """Return the commands of a section of the page that are the operator's."""
    text = PAGE.read_text(encoding="utf-8")
    begun = text.index(f"## {title}\n")
    match = re.search(r"```bash\n(.*?)```", text[begun : text.index("\n## ", begun + 1)], re.DOTALL)
    assert match is not None
    return match[1]


def night() -> str:
    """Return what the line of cron runs, as cron hands it to the shell."""
    (line,) = [line for line in section("Back up").splitlines() if not line.startswith("#")]
    *_, words = line.split(maxsplit=6)
    return words.replace("\\%", "%")


def shell(script: str, folder: Path) -> str:
    """Run *script* on the machine that *folder* is; return what it printed."""
    for place, there in (
        ("/var/lib/tracepaper", folder / "lib"),
        ("/var/backups/tracepaper", folder / "backups"),
        ("/opt/tracepaper/bin/tracepaper", PROGRAM),
    ):
        script = script.replace(place, str(there))
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_the_night_copied_is_restored_and_verified(tmp_path: Path) -> None:
    lib, backups = tmp_path / "lib", tmp_path / "backups"
    for folder in (lib, backups, tmp_path / "made"):
        folder.mkdir()
    path = explained_runs.replayed(tmp_path / "made")
    shutil.move(path, lib / "tracepaper.db")
    shutil.move(checkpoints.kept_checkpoints(path), lib / "tracepaper.db.checkpoints")
    shutil.rmtree(tmp_path / "made")
    # The file system orders a copy and its folder as it likes: of many, some come either way.
    old = [f"1-old-{number}" for number in range(20)]
    for name in (*old, "1-new"):
        (backups / f"{name}.db.checkpoints").mkdir()
        (backups / f"{name}.db").write_text("an earlier copy")
    for name in old:
        os.utime(backups / f"{name}.db", (0, 0))
    (copied, note) = shell(night(), tmp_path).splitlines()
    assert copied.startswith("Copied ")
    assert note.endswith(".db.checkpoints belongs to the copy: keep both together.")
    assert {path.name for path in backups.glob("1-*")} == {"1-new.db", "1-new.db.checkpoints"}
    shutil.rmtree(lib)  # the machine is lost
    lib.mkdir()
    for name in ("tracepaper.db", "tracepaper.db-wal", "tracepaper.db.checkpoints"):
        (lib / name).write_text("what is left of it")
    for turn in (1, 2):  # and once more, over what was restored
        text = shell(MACHINE + section("Restore"), tmp_path)
        assert text.startswith("tracepaper stop")
        assert "The chain of run" in text
        assert re.search(r"(\d+) of \1 decisions follow from the record", text)
        assert text.endswith("tracepaper start\n")
        assert len(list(lib.glob("broken-*"))) == turn
    assert {len(list(folder.iterdir())) for folder in lib.glob("broken-*")} >= {3}


def test_a_copy_has_the_models_of_its_runs_and_nothing_half_written(tmp_path: Path) -> None:
    path = explained_runs.replayed(tmp_path)
    kept = checkpoints.kept_checkpoints(path)
    (kept / ".small-abc").mkdir()
    (kept / ".small-abc" / "weights.safetensors").write_bytes(b"half")
    vectors = path.with_name(path.name + ".vectors")
    vectors.mkdir()
    (vectors / "abc.csv").write_text("time,x\n")
    copy = tmp_path / "copies" / "copy.db"
    copy.parent.mkdir()
    names = [file.relative_to(copy.parent) for file in backup(path, copy)]
    model = next(path.name for path in kept.iterdir() if not path.name.startswith("."))
    assert names == [
        Path("copy.db.checkpoints") / model / "card.toml",
        Path("copy.db.checkpoints") / model / "weights.safetensors",
        Path("copy.db.vectors") / "abc.csv",
    ]
    for folder in (path.parent / "small", kept):
        shutil.rmtree(folder)
    with Reader.open(copy) as reader:
        assert verify_run(reader, copy, reader.find("last"), sample=5).passes
    with Reader.open(path) as reader, pytest.raises(CheckpointMismatch, match="not kept any more"):
        verify_run(reader, path, reader.find("last"), sample=5)


def test_a_checkpoint_that_is_gone_is_a_bundled_one_of_the_same_id(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    for name, folder in checkpoints.bundled().items():
        model_id = checkpoints.read_card(folder)["model"]["id"]
        assert checkpoints.find_kept(database, model_id) == folder, name
    kept = checkpoints.keep(checkpoints.DEFAULT_CHECKPOINT, database)
    assert checkpoints.find_kept(database, kept.name) == kept
    (kept / checkpoints.WEIGHTS_NAME).unlink()
    assert checkpoints.find_kept(database, kept.name) == checkpoints.DEFAULT_CHECKPOINT
    with pytest.raises(CheckpointMismatch, match="restore the folder"):
        checkpoints.find_kept(database, "000000000000")
    with pytest.raises(CheckpointMismatch, match="restore the folder"):
        checkpoints.find_kept(database, "")
