"""A real notebook, executed by a kernel of its own: each cell shows once what a terminal shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import nbformat
import pytest
from docs_notebook import NOTEBOOKS, executed
from nbclient import NotebookClient
from waiting import deadline_s

import tracepaper
from tracepaper.replay.run import Run
from tracepaper.replay.samples import MONTH_CANDLES
from tracepaper.storage.database.reader import resolve

RISING: Final = """\
class Rising(Strategy):
    warmup = 2

    def decide(self, now):
        close = now.history.close
        return Signal(Action.LONG if close[-1] > close[-2] else Action.FLAT, "the last bar")
"""
FIRST: Final = f"""\
import tracepaper
from tracepaper import Action, Signal, Strategy
from tracepaper.daemon.session.user_code import class_sha256

candles = {str(MONTH_CANDLES[0])!r}
params = {{"fast": 20, "slow": 100}}
given = {{"end": "2025-05-20", "db": "run.db", "progress": False}}
run = tracepaper.backtest("sma_cross", candles, params=params, **given)

{RISING}"""
TYPED: Final = """\
typed = tracepaper.backtest(Rising, candles, end="2025-05-08", progress=False)
print(typed.verify().passes, class_sha256(Rising), typed)
"""
SHOWN: Final = (
    "run",
    "run.report()",
    "run.explain()",
    """tracepaper.sweep('sma_cross', candles, {'fast': [10, 20], 'slow': [50]}, 'return',
    jobs=1, progress=False)""",
    "run.trades",
)
"""Expressions, each the last line of a cell."""
QUIET: Final = ("text = run.report().text", "run.report().document['accounts']; None")
PRINTED: Final = ("print(run.report())", "print(run.explain())", "print(text)")


DRAWN: Final = {
    "attention": ["figure, axes = plt.subplots", "figure, rows = plt.subplots"],
    "notebook": ["run.plot"],
    "training": [],
}
"""How the cells with a picture begin, by notebook."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the notebook lies, with the registry of trials that it counts in."""
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACEPAPER_TRIALS", str(folder / "trials.db"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        yield folder


@pytest.fixture(scope="module")
def cells(folder: Path) -> dict[str, list[Any]]:
    """Return the outputs of each cell by its source, as Jupyter would draw them."""
    sources = (FIRST, TYPED, *SHOWN, *QUIET, *PRINTED)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in sources])
    place = {"metadata": {"path": str(folder)}}
    # A busy kernel sends what is printed in parts.
    client = NotebookClient(
        notebook, timeout=int(deadline_s(240)), resources=place, coalesce_streams=True
    )
    return {cell.source: cell.outputs for cell in client.execute().cells}


@pytest.fixture(scope="module")
def terminal(folder: Path, cells: dict[str, list[Any]]) -> dict[str, str]:
    """Return what the same expressions give in a process without a notebook."""
    assert cells
    database = folder / "run.db"
    run: Run[Any] = Run(database, resolve(database, "last").run_id)
    names = {"run": run, "tracepaper": tracepaper, "candles": str(MONTH_CANDLES[0])}
    return {source: repr(eval(source, names)) for source in SHOWN}


@pytest.mark.parametrize("source", SHOWN)
def test_a_cell_shows_once_what_a_terminal_prints(
    source: str, cells: dict[str, list[Any]], terminal: dict[str, str]
) -> None:
    (output,) = cells[source]
    assert output.output_type == "execute_result"
    assert output.data["text/plain"] == terminal[source]


def test_a_class_typed_in_a_cell_is_run_and_verified(cells: dict[str, list[Any]]) -> None:
    (output,) = cells[TYPED]  # and no warning: its source is known
    assert output.name == "stdout"
    holds, source_sha256, part = output.text.split(" ", 2)
    assert (holds, source_sha256) == ("True", sha256(RISING.encode()).hexdigest())
    assert part.startswith("__main__:Rising on linear:BTCUSDT, ")
    assert "no other process can import the class Rising" in part


def test_a_report_is_drawn_as_it_is_set(cells: dict[str, list[Any]]) -> None:
    for source in ("run.report()", "run.explain()", SHOWN[3]):
        (output,) = cells[source]
        first, *_ = output.data["text/plain"].splitlines()
        assert output.data["text/html"].startswith(f"<pre>{first}")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_of_the_docs_shows_what_is_stored_in_it(path: Path, folder: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    again = executed(path, folder)
    assert len(stored.cells) == len(again.cells)
    for cell, other in zip(stored.cells, again.cells, strict=True):
        assert cell.source == other.source
        assert texts(cell) == texts(other), cell.source
    pictures = [cell.source for cell in again.cells if "image/png" in str(cell.get("outputs"))]
    assert [source.split("(")[0].split("\n")[-1] for source in pictures] == DRAWN[path.stem]


def texts(cell: Any) -> list[Any]:
    """Return all that a cell shows; of a picture only that it is one."""
    outputs = []
    for output in cell.get("outputs", []):
        data = dict(output.get("data", {}), text=output.get("text"))
        if "image/png" in data:
            data["text/plain"] = re.sub("[0-9a-f]{16}", "RUN", data["text/plain"])
            data["image/png"] = data["image/png"][:8]
        if "image/png" in data.get("text/html", ""):
            data["text/html"] = data["text/html"].partition("base64,")[0]
        outputs.append((output.output_type, data))
    return outputs


BAR: Final = """\
run = tracepaper.backtest("sma_cross", candles, params=params, end="2025-05-20", progress=True)
"""


def test_a_bar_fills_and_leaves_one_line(folder: Path) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(FIRST), nbformat.v4.new_code_cell(BAR)]
    )
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=int(deadline_s(240)), resources=resources)
    _, cell = client.execute().cells
    (output,) = cell.outputs
    assert output.output_type == "display_data"
    assert re.fullmatch(r"bars: [\d,]+ in [\d.]+ s", output.data["text/plain"])
    assert output.data["text/html"].startswith("<progress")
