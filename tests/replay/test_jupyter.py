"""A real notebook, executed by a kernel of its own: each cell shows once what a terminal shows."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import nbformat
import pytest
from nbclient import NotebookClient
from waiting import deadline_s

import tracepaper
from tracepaper.replay.api import Backtest
from tracepaper.replay.samples import MONTH_CANDLES
from tracepaper.storage.database.reader import resolve

pytestmark = pytest.mark.slow

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
run = tracepaper.backtest("sma_cross", candles, params=params, end="2025-05-20", db="run.db")

{RISING}"""
TYPED: Final = """\
typed = tracepaper.backtest(Rising, candles, end="2025-05-08")
print(typed.verify().holds, class_sha256(Rising), typed)
"""
SHOWN: Final = (
    "run",
    "run.report()",
    "run.explain()",
    "tracepaper.sweep('sma_cross', candles, {'fast': [10, 20], 'slow': [50]}, 'return', jobs=1)",
    "run.trades",
)
"""Expressions, each the last line of a cell."""
QUIET: Final = ("text = run.report().text", "run.report().document['accounts']; None")
PRINTED: Final = ("print(run.report())", "print(run.explain())", "print(text)")


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
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in sources])
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
    run = Backtest(database, resolve(database, "last").run_id)
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
    holds, source_sha256, said = output.text.split(" ", 2)
    assert (holds, source_sha256) == ("True", sha256(RISING.encode()).hexdigest())
    assert said.startswith("__main__:Rising on linear:BTCUSDT, ")
    assert "no other process can import the class Rising" in said


def test_a_cell_that_shows_nothing_draws_nothing(cells: dict[str, list[Any]]) -> None:
    assert [cells[source] for source in (FIRST, *QUIET)] == [[], [], []]


def test_what_is_printed_is_one_text(cells: dict[str, list[Any]], terminal: dict[str, str]) -> None:
    for source, of in zip(PRINTED, ("run.report()", "run.explain()", "run.report()"), strict=True):
        (output,) = cells[source]
        assert (output.output_type, output.name) == ("stream", "stdout")
        assert output.text == f"{terminal[of]}\n"
        assert "linear:BTCUSDT" in output.text


def test_a_report_is_drawn_as_it_is_set(cells: dict[str, list[Any]]) -> None:
    for source in ("run.report()", "run.explain()", SHOWN[3]):
        (output,) = cells[source]
        first, *_ = output.data["text/plain"].splitlines()
        assert output.data["text/html"].startswith(f"<pre>{first}")
