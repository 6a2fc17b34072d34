"""A program that declares two gates and nothing else, and then calls the product's commands.

Gates must be declared before configuration and storage are imported, so it runs as a process.
"""

# ruff: noqa: E402 - the imports below are the point

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

from tracepaper.strategies.gates.gate import GateInputs, GateKind, ThresholdForm, ThresholdKey, gate


@gate(
    GateKind.INTEGRITY,
    "usual half ranges",
    at_most=ThresholdKey(
        "calm_halves", ThresholdForm.NUMBER, "At most so many halves.", default="3"
    ),
)
def calm(seen: GateInputs) -> float | None:
    """Distance of the close from the last one, in halves of the usual range."""
    return 2 * seen.plausible


@gate(
    GateKind.JUDGEMENT,
    "of certainty",
    at_least=ThresholdKey(
        "certain", ThresholdForm.QUANTILE, "At least so much certainty.", default="0.4"
    ),
    of_prediction=True,
)
def certain(seen: GateInputs) -> float | None:
    """Probability of the likeliest class."""
    if (forecast := seen.forecast) is None:
        return None
    at = seen.horizon_index
    return max(forecast.p_up[at], forecast.p_flat[at], forecast.p_down[at])


from explained_runs import LAST, replayed, run_id
from rich.console import Console

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.terminal.screen import ScreenState, screen
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.market import Bar


def main(folder: Path) -> None:
    """Replay with the new gates; write what every place says of them into files of *folder*."""
    database = replayed(folder)
    named = ("--db", str(database))
    question = "SELECT * FROM v_gates WHERE gate IN ('calm', 'certain')"
    page = folder / "page.html"
    for name, words in {
        "config": ("config", "init", str(folder / "written.toml")),
        "gates": ("audit", "sql", question, *named),
        "explain": ("explain", f"last:{LAST}", *named),
        "document": ("explain", f"last:{LAST}", "--json", *named),
        "report": ("report", "last", *named, "--html", str(page)),
        "figures": ("report", "last", "--json", *named),
        "verify": ("verify", "last", *named),
        "chain": ("audit", "verify", "last", *named),
    }.items():
        with (folder / f"{name}.txt").open("w", encoding="utf-8") as out, redirect_stdout(out):
            assert invoke(list(words)) == 0, name
    with (folder / "screen.txt").open("w", encoding="utf-8") as out:
        Console(file=out, width=200).print(screen(_state(database)))


def _state(database: Path) -> ScreenState:
    state = ScreenState()
    with Reader.open(database) as reader:
        stored = reader.stored_run(run_id(database))
        state.open(stored.run)
        instruments = {item.id: item for item in stored.run.instruments}
        for kept in reader.steps(stored.run.run_id):
            step = kept.step
            if isinstance(step.event, Bar):
                state.observe(step, instruments)
    return state


if __name__ == "__main__":
    main(Path(sys.argv[1]))
