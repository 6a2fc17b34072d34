"""Builds the compiled loops of attention in a folder of a test's own, as an installation does."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from programs import ROOT, environment

from tracepaper.strategies.attention import compiled

SOURCE: Final = ROOT / "strategies" / "attention" / "native.c"


def library_of(
    folder: Path, compiler: str | None = None, root: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Build the extensions of the checkout at *root* and bring them to *folder*.

    *compiler* is a program in the place of the C compiler that Python names.
    """
    build = folder / "build"
    where = ["--build-lib", str(build), "--build-temp", str(build / "objects")]
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *where],
        cwd=root,
        env=environment() | ({} if compiler is None else {"CC": compiler}),
        capture_output=True,
        text=True,
        check=False,
    )
    for library in build.rglob("native.*.so"):
        shutil.move(library, folder)
    shutil.copy(SOURCE, folder)
    return done


def built(folder: Path) -> Path:
    """Return *folder* with the objects in it; skip where nothing compiles them."""
    is_linux_x86 = (platform.system(), platform.machine()) == ("Linux", "x86_64")
    if not is_linux_x86 or shutil.which("gcc") is None:
        pytest.skip("nothing compiles C for this processor here")
    done = library_of(folder, "gcc")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return folder


@contextmanager
def loops_of(folder: Path) -> Iterator[tuple[str, ...]]:
    """Take the objects in *folder* for those beside the source; yield those that run here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "FOLDER", folder)
        compiled.loops.cache_clear()
        yield compiled.available()
        compiled.loops.cache_clear()
