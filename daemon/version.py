"""The version of tracepaper with its commit; ``setup.py`` reads the commit by this file too."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
_DIGITS: Final = 9


def version(root: Path = ROOT) -> str:
    """Return the version with its commit: ``0.1.0+g1a2b3c4d5``.

    In a checkout it is the commit that is checked out, in an installed wheel the one that the wheel
    was built of.
    """
    installed = metadata.version("tracepaper")
    commit = commit_of(root)
    return f"{installed.partition('+')[0]}+g{commit}" if commit else installed


def commit_of(root: Path) -> str:
    """Return the first digits of the commit that *root* has checked out; empty if it is none."""
    folder = root / ".git"
    try:
        if folder.is_file():  # of a second worktree
            folder = root / folder.read_text("utf-8").removeprefix("gitdir:").strip()
        head = (folder / "HEAD").read_text("utf-8").strip()
        name = head.removeprefix("ref: ")
        return (head if name == head else _reference(folder, name))[:_DIGITS]
    except (OSError, UnicodeDecodeError):
        return ""


def _reference(folder: Path, name: str) -> str:
    """Return the commit of the branch *name*, which a file of its own holds or the packed list."""
    shared = folder / "commondir"
    common = folder / shared.read_text("utf-8").strip() if shared.is_file() else folder
    if (common / name).is_file():
        return (common / name).read_text("utf-8").strip()
    packed = (common / "packed-refs").read_text("utf-8").splitlines()
    return next((line.split(" ")[0] for line in packed if line.endswith(f" {name}")), "")
