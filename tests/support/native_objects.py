"""Builds the compiled loops of attention in a folder of a test's own, by ``make native``."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from programs import ROOT

from tracepaper.strategies.attention import compiled

SOURCE: Final = ROOT / "strategies" / "attention" / "native.c"


def made(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``make native`` on a copy of the source in *folder*."""
    shutil.copy(SOURCE, folder)
    command = ["make", "-s", "-C", str(ROOT), "native", f"NATIVE={folder}", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def built(folder: Path, *options: str) -> Path:
    """Return *folder* with the objects in it; skip where nothing compiles them."""
    is_linux_x86 = (platform.system(), platform.machine()) == ("Linux", "x86_64")
    if not is_linux_x86 or shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("nothing compiles C for this processor here")
    done = made(folder, *options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return folder


@contextmanager
def loops_of(folder: Path) -> Iterator[tuple[str, ...]]:
    """Take the objects in *folder* for those beside the source; yield those that run here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "FOLDER", folder)
        compiled.found.cache_clear()
        yield compiled.available()
        compiled.found.cache_clear()
