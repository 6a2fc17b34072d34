"""Runs each notebook of docs/ in a kernel of its own: `make readme` rewrites its outputs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Final

import nbformat
from nbclient import NotebookClient
from programs import ROOT
from waiting import deadline_s

NOTEBOOKS: Final = sorted((ROOT / "docs").glob("*.ipynb"))


def executed(path: Path, folder: Path) -> Any:
    """Run the notebook *path* in *folder*; return it with its new outputs."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=int(deadline_s(240)),
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
    notebook.metadata.pop("language_info", None)  # by which Python
    return notebook


if __name__ == "__main__":
    for place in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as trials:
            os.environ |= {"TRACEPAPER_TRIALS": f"{trials}/trials.db", "IPYTHONDIR": trials}
            nbformat.write(executed(place, Path(trials)), place)
