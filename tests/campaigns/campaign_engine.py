"""Random histories, which keep their laws at every step.

    python tests/campaigns/campaign_engine.py accounts|stretch|laws [--histories 300]

Of ``accounts`` (``histories``) and ``stretch`` (``stretches``) a history is one seed. Accounts take
the kinds of history in turn; a log stores the beginning of each, with restarts, and its record is
checked. A stretch is written by steps and at once: both end with the same digest.
``laws`` plays the state machine of ``engine_laws`` over engine and log with kills, in each of its
worlds; what breaks a law is shrunk to the fewest rules and printed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from engine_laws import MET, WORLDS, examine
from histories import KINDS, History, RecordedHistory
from stretches import HistoryBothWays

RECORDED_EVENTS: Final = 150


def accounts(seed: int, kind: str, folder: Path) -> Counter[str]:
    """Play a history, and its first events once more into a log; no daemon trades shares."""
    counted = History(seed, kind).counted
    if kind != "stock":
        recorded = RecordedHistory(seed, folder / f"{seed}.db", kind, most=RECORDED_EVENTS)
        counted += recorded.counted
    return counted


PARTS: Final[Mapping[str, Callable[[int, Path], Counter[str]]]] = {
    "accounts": lambda seed, folder: accounts(seed, tuple(KINDS)[seed % len(KINDS)], folder),
    "stretch": lambda seed, folder: HistoryBothWays(seed, folder, has_model=seed % 3 == 0).counted,
}


def played(part: str, seeds: range, folder: Path) -> Counter[str]:
    """Play the histories of *seeds*, and count what they reached."""
    reached: Counter[str] = Counter()
    for seed in seeds:
        try:
            reached += PARTS[part](seed, folder)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    return reached


def main() -> None:
    """Play as many histories as asked, and say what they reached."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=[*PARTS, "laws"])
    parser.add_argument("--histories", type=int, default=300, help="of the laws, in each world")
    parser.add_argument("--from-seed", type=int, default=0)
    given = parser.parse_args()
    reached = MET
    if given.part == "laws":
        for world in WORLDS:
            examine(world, examples=given.histories, steps=50, shrinks=True)
    else:
        seeds = range(given.from_seed, given.from_seed + given.histories)
        with tempfile.TemporaryDirectory() as folder:
            reached = played(given.part, seeds, Path(folder))
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(reached.items()))
    print(f"{given.histories:,} histories: {counts}.")


if __name__ == "__main__":
    main()
