"""Plays histories of the simulated world from seeds, and prints what came of them.

    python tests/campaigns/campaign_world.py [--seed N] [--count M | --hours H | --kept | --each]
        [--bars B] [--kind KIND] [--minutes M] [--kills] [--without NAME,...] [--shrink] [--trace]
        [--folder F]

Without ``--seed`` it goes on from the seed that stands in ``world.toml`` beside it, adds what it
played to the totals there, and writes the next seed. A history that breaks a law is not counted:
its seed is kept there, and it prints the command that repeats it; ``--shrink`` then makes it
smaller. With ``--kills`` lives are short, and nearly each ends in a kill. The trace of every tick
goes to ``trace`` in the history's folder with ``--trace``.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import structlog

TESTS: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "campaigns")]

from world.history import Outcome, history, prepare  # noqa: E402 - after their folder
from world.spec import KILL_SHARE, KINDS, Spec, deadly, drawn, kinds_of, without  # noqa: E402

KEPT: Final = TESTS / "world" / "seeds.toml"
STATE: Final = TESTS / "campaigns" / "world.toml"
COUNT: Final = 40
BARS: Final = 120
LOGGED: Final = 5


class State(msgspec.Struct):
    """What was played so far, and the seed to go on from."""

    next_seed: int = 1_000
    histories: int = 0
    lives: int = 0
    kills: int = 0
    faults: int = 0
    decisions: int = 0
    broken: list[int] = []
    """Seeds of histories that broke a law."""
    years: dict[str, float] = {}
    """Simulated years by the minutes of a bar."""


def main() -> int:
    """Play; return 1 where a law was broken."""
    arguments = _parser().parse_args()
    # A library's warning about a fault is no news here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    base = arguments.folder or Path(tempfile.mkdtemp(prefix="world-", dir=_memory()))
    prepare(base / "prepared")
    state = msgspec.convert(tomllib.loads(STATE.read_text()), State) if STATE.exists() else State()
    first = state.next_seed if arguments.seed is None else arguments.seed
    until_s = time.monotonic() + arguments.hours * 3_600
    outcomes: list[Outcome] = []
    broken = 0
    for seed, bars, kind, left_out in _chosen(arguments, first):
        if arguments.hours and time.monotonic() > until_s:
            break
        spec = drawn(seed, bars=bars, kind=kind, minutes=arguments.minutes)
        spec = without(deadly(spec) if arguments.kills else spec, left_out.split(","))
        outcome = history(spec, base / str(seed), is_traced=arguments.trace)
        outcomes.append(outcome)
        print(_line(outcome), flush=True)
        if outcome.violations:
            broken += 1
            for law, sentence in outcome.violations[:LOGGED]:
                print(f"  {law}: {sentence}")
            print(f"  repeat: {_command(spec, left_out)}", flush=True)
            if arguments.shrink:
                _shrink(spec, base, outcome, left_out)
    print(_summary(outcomes, broken))
    if arguments.seed is None and not arguments.kept:
        _add(state, outcomes)
        state.next_seed = first + len(outcomes)
        STATE.write_text(_written(state), encoding="utf-8")
    return int(broken > 0)


def _chosen(arguments: argparse.Namespace, first: int) -> Iterator[tuple[int, int, str, str]]:
    """Yield seed, bars, kind and what is left out of each history; an empty kind is drawn."""
    bars, left_out = arguments.bars, arguments.without
    if arguments.kept:
        rows = tomllib.loads(KEPT.read_text(encoding="utf-8"))["history"]
        yield from ((row["seed"], row["bars"], row["kind"], row["without"]) for row in rows)
    elif arguments.each:
        yield from ((first + at, bars, kind, left_out) for at, kind in enumerate(KINDS))
    else:
        seeds = itertools.count(first) if arguments.hours else range(first, first + arguments.count)
        yield from ((seed, bars, arguments.kind, left_out) for seed in seeds)


def _memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: PTH112 - a name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--kept", action="store_true", help="the seeds that found a fault")
    parser.add_argument("--each", action="store_true", help="one history of each kind")
    parser.add_argument("--hours", type=float, default=0.0)
    parser.add_argument("--bars", type=int, default=BARS)
    parser.add_argument("--kind", choices=["", *KINDS], default="")
    parser.add_argument("--minutes", type=int, default=0)
    parser.add_argument("--kills", action="store_true", help="nearly each life ends in a kill")
    parser.add_argument("--without", default="", help="faults to leave out, by name")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--folder", type=Path, help="where histories are kept that broke a law")
    return parser


def _line(outcome: Outcome) -> str:
    ends = ", ".join(f"{count} {end}" for end, count in sorted(outcome.ends.items()))
    totals = ", ".join(f"{count} {name}" for name, count in outcome.totals.items())
    slowest_s = max(outcome.again_s, default=0.0)
    return (
        f"{outcome.seed} {outcome.kind} {outcome.minutes} min: {outcome.lives} lives ({ends}); "
        f"{totals}; again within {slowest_s} s; {outcome.cpu_s} CPU s"
    )


def _command(spec: Spec, left_out: str) -> str:
    options = f"--seed {spec.seed} --count 1 --bars {spec.bars}"
    options += f" --kind {spec.kind} --minutes {spec.minutes}"
    options += " --kills" * (spec.kill_share == KILL_SHARE)
    options += f" --without {left_out}" if left_out else ""
    return f"python tests/campaigns/campaign_world.py {options}"


def _shrink(spec: Spec, base: Path, broken: Outcome, without_: str) -> None:
    """Print the smallest history that still breaks the first law: fewer bars, fewer kinds.

    Then print where the trace of it differs first from that of a history that breaks no law.
    """
    law, left_out = broken.violations[0].law, [name for name in without_.split(",") if name]
    needed: list[str] = []

    def breaks(trial: Spec) -> bool:
        outcome = history(trial, base / "shrunk")
        return any(each.law == law for each in outcome.violations)

    while spec.bars > 4:
        half = drawn(spec.seed, bars=spec.bars // 2, kind=spec.kind, minutes=spec.minutes)
        if not breaks(without(half, left_out)):
            break
        spec = without(half, left_out)
    for name in kinds_of(spec):
        if breaks(trial := without(spec, [name])):
            spec = trial
            left_out.append(name)
        else:
            needed.append(name)
    print(f"  smallest: {_command(spec, ','.join(left_out))}", flush=True)
    # What was left out after it was tried may have changed what it does: it is tried again.
    nearest = (without(spec, [name]) for name in needed)
    passing = next(
        (each for each in nearest if not history(each, base / "shrunk").violations), None
    )
    if passing is None:
        print("  no smaller one passes", flush=True)
        return
    for name, trial in (("broken", spec), ("passing", passing)):
        history(trial, base / name, is_traced=True)
    print(f"  {_difference(base / 'passing' / 'trace', base / 'broken' / 'trace')}", flush=True)


def _difference(passing: Path, broken: Path) -> str:
    """Return the first tick in which two traces differ."""
    with passing.open() as first, broken.open() as second:
        for tick, (before, after) in enumerate(itertools.zip_longest(first, second), start=1):
            if before != after:
                was, now = (str(each).strip() for each in (before, after))
                return f"first difference from the nearest that passes: tick {tick}, {was} / {now}"
    return "the nearest that passes has the same trace"


def _add(state: State, outcomes: list[Outcome]) -> None:
    state.broken += [outcome.seed for outcome in outcomes if outcome.violations]
    for outcome in outcomes:
        if outcome.violations:
            continue
        state.histories += 1
        state.lives += outcome.lives
        state.kills += outcome.ends.get("killed", 0)
        state.faults += _faults(outcome)
        state.decisions += outcome.totals.get("decisions", 0)
        minutes = str(outcome.minutes)
        years = outcome.totals.get("decisions", 0) * outcome.minutes / (365 * 1440)
        state.years[minutes] = round(state.years.get(minutes, 0.0) + years, 4)


def _written(state: State) -> str:
    """Return *state* as TOML."""
    totals = msgspec.to_builtins(state)
    years = totals.pop("years")
    lines = [f"{name} = {value}" for name, value in totals.items()]
    lines += ["", "[years]", *(f"{minutes} = {value}" for minutes, value in sorted(years.items()))]
    return "\n".join(("# What campaign_world.py has played; it goes on here.", *lines, ""))


def _faults(outcome: Outcome) -> int:
    return sum(count for name, count in outcome.counts.items() if name.startswith("fault "))


def _summary(outcomes: list[Outcome], broken: int) -> str:
    """Return the row of this campaign."""
    ends, faults = Counter[str](), Counter[str]()
    for outcome in outcomes:
        ends.update(outcome.ends)
        faults.update(
            {
                name.removeprefix("fault "): count
                for name, count in outcome.counts.items()
                if name.startswith("fault ")
            }
        )
    again_s = sorted(each for outcome in outcomes for each in outcome.again_s)
    open_share = sum(outcome.hit_while_open for outcome in outcomes) / max(len(outcomes), 1)
    combinations = {each for outcome in outcomes for each in outcome.combinations}
    decisions = sum(outcome.totals.get("decisions", 0) for outcome in outcomes)
    years = sum(
        outcome.totals.get("decisions", 0) * outcome.minutes / (365 * 1440) for outcome in outcomes
    )
    median_s = again_s[len(again_s) // 2] if again_s else 0.0
    cpu_s = sum(outcome.cpu_s for outcome in outcomes)
    return (
        f"{len(outcomes)} histories, {sum(outcome.lives for outcome in outcomes)} lives, "
        f"{ends['killed']} kills, {decisions:,} decisions, {years:.2f} years, "
        f"{sum(faults.values()):,} faults of {len(faults)} kinds; "
        f"in {open_share:.0%} one hit while something was open; "
        f"{len(combinations):,} combinations of law, fault and phase; "
        f"decided again after {median_s} s (most {max(again_s, default=0.0)} s); "
        f"{cpu_s:.0f} CPU s; {broken} broke a law"
    )


if __name__ == "__main__":
    sys.exit(main())
