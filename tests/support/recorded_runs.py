"""The runs of older versions under ``tests/data/runs``, unpacked for a test."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from own_strategies import importable

from tracepaper.replay.checks.verify import Verification, verify_run
from tracepaper.storage.database.reader import Reader

FOLDER = Path(__file__).parents[1] / "data" / "runs"
NAMES = tuple(sorted(path.name.removesuffix(".db.gz") for path in FOLDER.glob("*.db.gz")))


@contextmanager
def unpacked(name: str, folder: Path) -> Iterator[Path]:
    """Write the database *name* to *folder*, and let its models and strategies be found."""
    path = folder / f"{name}.db"
    path.write_bytes(gzip.decompress((FOLDER / f"{name}.db.gz").read_bytes()))
    shutil.copytree(FOLDER / "checkpoints", folder / f"{name}.db.checkpoints")
    with importable(FOLDER):
        yield path


def verified(path: Path) -> Verification:
    with Reader.open(path) as reader:
        return verify_run(reader, path, reader.find("last"))
