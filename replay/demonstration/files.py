"""The files of one show: named once, and cleaned up or named to the viewer at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tracepaper.replay.archive.times import iso
from tracepaper.strategies.errors import DataInvalid

NAMES_MAX: Final = 100
"""Shows that may begin in one folder within one second."""


@dataclass(frozen=True)
class ShowFiles:
    """Where the show writes: the record, its configuration, the daemon's log, a changed copy."""

    database: Path

    @property
    def config(self) -> Path:
        """The configuration that the run can be repeated with."""
        return self.database.with_suffix(".toml")

    @property
    def log(self) -> Path:
        """The log lines of the daemon's processes."""
        return self.database.with_suffix(".log")

    @property
    def changed(self) -> Path:
        """The copy in which one value is changed; it is removed once the check has found it."""
        return self.database.with_name(f"{self.database.stem}-changed.db")

    def drop_changed(self) -> None:
        """Remove the changed copy, and what SQLite leaves beside it."""
        for end in ("", "-wal", "-shm"):
            self.changed.with_name(self.changed.name + end).unlink(missing_ok=True)

    def claim(self) -> None:
        """Make the configuration's file; raise ``DataInvalid`` where one of the files exists."""
        for path in (self.database, self.config, self.changed):
            if path.exists():
                raise DataInvalid(f"{path} exists already; give another --db, or remove it.")
        try:
            self.config.touch(exist_ok=False)
        except OSError as error:
            raise DataInvalid(
                f"{self.config} cannot be written ({error.strerror}); go to a folder of yours, or "
                "give --db."
            ) from None


def claimed(database: Path | None, *, wall_ms: int) -> ShowFiles:
    """Return the files of a new show: *database* and what lies beside it, or new names."""
    if database is not None:
        files = ShowFiles(database)
        files.claim()
        return files
    stamp = iso(wall_ms)[:19].replace(":", "").replace("-", "").replace("T", "-")
    for number in range(1, NAMES_MAX):
        files = ShowFiles(Path(f"demo-{stamp}{'' if number == 1 else f'-{number}'}.db"))
        if not files.config.exists():
            files.claim()
            return files
    raise DataInvalid(f"{NAMES_MAX} demos began in this second; wait a moment.")
