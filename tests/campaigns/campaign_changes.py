"""Changes of engine, broker and record, each of which drawn runs have to find.

    python tests/campaigns/campaign_changes.py [--only margin] [--jobs 2] [--runs 100]

``tests/world/changes.toml`` lists plausible errors about money, orders and bars by group. Each is
made in a fork of this process, and no file changes. Then drawn backtests of every kind are recorded
and judged by ``world.checker``, those that the group names first, until one breaks a law, raises an
error or is refused by ``audit verify``. The product's ``verify`` derives a run again by the changed
code, so it is asked about every tenth run only. A change that no run finds is printed; the command
fails if more than ``SPARE`` of them stay.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Final

from campaign_mutants import ROOT, Mutant, Mutation, Task, find, forked, sources, swap

sys.path.append(str(ROOT / "tests"))
sys.path.append(str(ROOT / "tests" / "support"))

from records import check_record
from world.backtests import KINDS, recorded_backtest
from world.checker import violations

TABLE: Final = "tests/world/changes.toml"
SPARE: Final = 5
"""Changes that may stay unfound."""
VERIFIED_EACH: Final = 10
"""Of so many runs one is verified by the product too."""


def changes(root: Path = ROOT) -> list[tuple[Mutation, tuple[str, ...]]]:
    """Return the changes, each with the kinds of runs that are drawn first."""
    table = tomllib.loads((root / TABLE).read_text(encoding="utf-8"))
    return [
        (Mutation(name, *row), tuple(group["kinds"]))
        for name, group in table.items()
        for row in group["changes"]
    ]


@contextmanager
def applied(mutation: Mutation, root: Path = ROOT) -> Iterator[None]:
    """Have the functions of the product run what *mutation* says, until the block ends."""
    mutant: Mutant = find(mutation, root)
    name, before = str(root / mutant.path), sources(root)[mutant.path]
    import_module(".".join(["tracepaper", *mutant.path.with_suffix("").parts]))
    functions = [
        each
        for each in gc.get_objects()
        if type(each) is FunctionType and each.__code__.co_filename == name
    ]
    swap(name, functions, before, mutant.source)
    try:
        yield
    finally:
        swap(name, functions, mutant.source, before)


def runs(first: Sequence[str], count: int) -> Iterator[tuple[str, int]]:
    """Return kind and seed of *count* runs, the kinds of *first* twice as often as the others."""
    drawn, seed = 0, 0
    while drawn < count:
        for kind in (*first, *first, *KINDS):
            if drawn < count:
                yield kind, 1_000 + seed
                drawn += 1
                seed += 1


def cause(kind: str, seed: int, folder: Path, *, is_verified: bool) -> str:
    """Return what is wrong with a drawn run; empty if nothing is."""
    try:
        database, truth = recorded_backtest(kind, seed, folder)
        found = violations([database], truth)
        if found:
            return f"{found[0].law}: {found[0].sentence}"
        if is_verified:
            check_record(database)
    except Exception as error:  # noqa: BLE001 - whatever the changed code raises tells of it
        return f"{type(error).__name__}: {str(error)[:100]}"
    return ""


def search(mutation: Mutation, first: Sequence[str], count: int) -> str:
    """Return which of *count* runs found *mutation* and why; empty if none did."""
    folder = Path(tempfile.mkdtemp(prefix="changes-"))
    try:
        with applied(mutation):
            for number, (kind, seed) in enumerate(runs(first, count), 1):
                is_verified = number % VERIFIED_EACH == 0
                if found := cause(kind, seed, folder, is_verified=is_verified):
                    return f"run {number} ({kind} {seed}): {found}"
                for path in folder.iterdir():
                    (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge all changes; return how many more than ``SPARE`` no run found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of a change's text")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=int, default=100, help="drawn runs of each change")
    given = parser.parse_args(arguments)
    wanted = [row for row in changes() if given.only in f"{row[0].group} {row[0]}"]
    for kind in KINDS:
        folder = Path(tempfile.mkdtemp(prefix="sound-"))
        found = cause(kind, 1, folder, is_verified=True)
        shutil.rmtree(folder, ignore_errors=True)
        if found:
            raise SystemExit(f"a sound run of {kind} is refused, so none can judge: {found}")
    tasks = [Task(row[0], partial(search, *row, given.runs), 600) for row in wanted]
    left = 0
    for mutation, found, seconds in forked(tasks, given.jobs):
        left += not found
        verdict = "found" if found else "NOT FOUND"
        print(f"{verdict:10}{mutation.group}  {mutation}  {found}  {seconds:.0f} s", flush=True)
    print(f"{len(wanted) - left} of {len(wanted)} changes were found.")
    return max(left - SPARE, 0)


if __name__ == "__main__":
    sys.exit(main())
