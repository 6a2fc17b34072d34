"""Attention is a distribution of its own, with the same files, beside torch and NumPy alone."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path
from typing import Final

import pytest
from programs import ROOT
from wheels import InstalledWheel, built_alone, installed_alone

README: Final = (ROOT / "deploy" / "attention" / "README.md").read_text(encoding="utf-8")
MORE: Final = """
import sys
from tracepaper_attention import AttentionInvalid, compiled
print(f"{captured.rollout().weights['tokens'].sum():.3f}", len(compiled.loops()))
print(len(captured.passages({"first": range(3)}).names))
try:
    captured.rollout([9])
except AttentionInvalid as error:
    print(type(error).__mro__[1].__name__, error)
print(sorted(name for name in sys.modules if name.partition(".")[0] in {"msgspec", "tracepaper"}))
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> InstalledWheel:
    folder = tmp_path_factory.mktemp("attention")
    return installed_alone(built_alone(folder), folder, "torch", "numpy")


def files_of(wheel: Path, package: str) -> dict[str, bytes]:
    """Return the files of *package* in *wheel*, by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name.removeprefix(f"{package}/"): archive.read(name)
            for name in archive.namelist()
            if name.startswith(f"{package}/")
        }


@pytest.mark.slow
def test_both_wheels_hold_equal_files(alone: InstalledWheel, installed: InstalledWheel) -> None:
    inner = files_of(alone.wheel, "tracepaper_attention")
    assert inner == files_of(installed.wheel, "tracepaper/strategies/attention")
    assert {"native.c", "py.typed", "capturing.py"} <= inner.keys()


@pytest.mark.slow
def test_it_explains_where_nothing_else_is_installed(alone: InstalledWheel) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [str(alone.python), "-c", example + MORE],
        cwd=alone.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    named, rolled, summed, passages, refused, others = done.stdout.splitlines()
    assert named == "capture: 3 layers × 4 heads, 6 tokens, full; skipped: none"
    assert rolled.startswith("AttendedTokens: 1 rows over 6 tokens; the first attends most to ")
    assert "cat " in (alone.folder / "words.html").read_text(encoding="utf-8")
    loops = sum(name.endswith(".so") for name in files_of(alone.wheel, "tracepaper_attention"))
    assert summed == f"1.000 {loops}"
    assert passages == "2"
    assert refused == "ValueError Row 9 is out of range; the sequence holds rows 0 to 5."
    assert others == "[]"
