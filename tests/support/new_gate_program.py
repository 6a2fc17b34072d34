"""A program that declares two gates and nothing else, and then calls the product's commands.

Gates must be declared before configuration and storage are imported, so it runs as a process.
"""

# ruff: noqa: E402 - the imports below are the point

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

from tracepaper.strategies.gates.gate import (
    Gate,
    GateInputs,
    GateKind,
    ThresholdForm,
    ThresholdKey,
    at_least,
    at_most,
)

HALVES = ThresholdKey("calm_halves", ThresholdForm.NUMBER, default="3")
CERTAINTY = ThresholdKey("certain", ThresholdForm.QUANTILE, default="0.4")


@Gate(GateKind.INTEGRITY, "usual half ranges", at_most(HALVES))
def calm(inputs: GateInputs) -> float | None:
    """Distance of the close from the last one, in halves of the usual range.

    At most so many halves.
    """
    return 2 * inputs.plausible


@Gate(GateKind.JUDGEMENT, "of certainty", at_least(CERTAINTY))
def certain(inputs: GateInputs) -> float | None:
    """Probability of the likeliest class.

    At least so much certainty.
    """
    if (forecast := inputs.forecast) is None:
        return None
    at = inputs.horizon_index
    return max(forecast.p_up[at], forecast.p_flat[at], forecast.p_down[at])


from explained_runs import LAST, replayed, run_id

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.terminal.status import status_text
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
        out.writelines(f"{line}\n" for line in _screens(database))


def _screens(database: Path) -> Iterator[str]:
    """Yield the status at the first bar that each new gate refused."""
    awaited = {"calm", "certain"}
    with Reader.open(database) as reader:
        stored = reader.stored_run(run_id(database))
        monitor = Monitor(run=stored.run, clock=SystemClock())
        for step in reader.steps(stored.run.run_id):
            if not isinstance(step.event, Bar):
                continue
            monitor.observe(step)
            if step.decision is None:
                continue
            gates, passed = step.decision.gate_set.gates, step.decision.passed
            failed = {name for at, name in enumerate(gates) if not passed >> at & 1}
            if failed & awaited:
                awaited -= failed
                yield from status_text(monitor.status()).plain.splitlines()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
