"""When a model that was trained in service may take over, and which model a start uses.

The rules are docs/operations.md, O11 to O19.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from tracepaper.daemon.config.loading import Config
from tracepaper.storage.reader import Reader
from tracepaper.strategies.strategy import Forecaster
from tracepaper.strategies.types import Retrained, RetrainOutcome, RunKind

BARS_FILE: Final = "bars.db"
"""The archive into which a retraining writes the bars that the runs of the database hold."""
BY_HAND: Final = "by_hand"
"""The folder in it in which one by hand works, so that it is not in the daemon's way."""
CANDIDATE: Final = "candidate"
"""The folder of the checkpoint that is being trained, in that in which a retraining works."""
CACHE: Final = "cache"
"""The folder in which a training keeps its features, there as well."""


class CandidateJudgement(Struct, frozen=True):
    """What ``tracepaper retrain`` found; ``reason`` says why nothing was judged."""

    reason: str
    running_sha256: str
    candidate: str = ""  # its folder
    candidate_sha256: str = ""
    recipe: str = ""
    from_ms: int = 0
    until_ms: int = 0
    horizon: int = 0
    bars: int = 0
    days: int = 0
    difference: float | None = None
    error: float | None = None
    p: float | None = None
    test: int = 0
    level: float | None = None

    @property
    def is_judged(self) -> bool:
        """Whether both models were judged."""
        return self.p is not None


def level_of(alpha: float, test: int) -> float:
    """Return the share of *alpha* that judgement number *test*, from 1 on, may spend.

    α ÷ (k (k + 1)) adds up to α over all k, so that the chance of any false promotion stays below
    α however many models are judged, and whatever their slices share.
    """
    return alpha / (test * (test + 1))


def one_sided(difference: float, p: float) -> float:
    """Return the chance of a *difference* so far below zero, given the two-sided *p*."""
    return p / 2 if difference < 0 else 1 - p / 2


def is_better(difference: float | None, p: float | None, level: float | None) -> bool:
    """Return whether a candidate is credibly better than the running model at *level*.

    *p* is one-sided; None says that nothing was judged.
    """
    if difference is None or p is None or level is None:
        return False
    return difference < 0 and p < level


def verdict(found: CandidateJudgement, *, test: int, alpha: float) -> tuple[RetrainOutcome, str]:
    """Return what becomes of a judged candidate, and why in one sentence."""
    assert found.difference is not None
    assert found.error is not None
    assert found.p is not None
    level = level_of(alpha, test)
    taken = is_better(found.difference, found.p, level)
    return RetrainOutcome.PROMOTED if taken else RetrainOutcome.REFUSED, (
        f"QLIKE {found.difference:+.5f} ± {found.error:.5f} over {found.days} days at "
        f"{found.horizon} bars: p {found.p:.2g} is {'below' if taken else 'not below'} "
        f"{level:.2g}, the share of test {test} in {alpha:g}"
    )


def tests_of(events: Iterable[Retrained]) -> int:
    """Return how many of *events* were judgements, each of which spent its share."""
    return sum(event.level is not None for event in events)


def unlike(candidate: Forecaster, running: Forecaster) -> str:
    """Return why *candidate* cannot take the place of *running* within a run; empty if it can.

    A run's decisions depend on so many bars, gates and horizons as its model has; another number
    of them is another run.
    """
    differing: list[tuple[str, object, object]] = [
        ("context", candidate.context, running.context),
        ("horizons", list(candidate.horizons), list(running.horizons)),
        ("measures", sorted(candidate.measures), sorted(running.measures)),
    ]
    for name, own, wanted in differing:
        if own != wanted:
            return (
                f"the candidate's {name} {own} differs from the running model's {wanted}; give a "
                "recipe that keeps it, or name the candidate in [model] checkpoint for a new run"
            )
    return ""


def retrain_folder(config: Config, database: Path) -> Path:
    """Return the folder in which retrainings for *database* work."""
    given = config.retrain.folder
    return database.with_name(database.name + ".retrain") if given is None else Path(given)


def tidy(folder: Path) -> None:
    """Remove from *folder* what a retraining needs while it runs alone, however that ended.

    The room is the database's, which ends the daemon where it finds none. What cannot be removed
    is left to the next retraining.
    """
    for pattern in (CACHE, f"{CANDIDATE}.training", f".{CANDIDATE}-*", f"{BARS_FILE}*"):
        for old in folder.glob(pattern):
            shutil.rmtree(old, ignore_errors=True)
            with suppress(OSError):
                old.unlink()


def past_retrainings(database: Path, kind: RunKind, symbols: Sequence[str]) -> list[Retrained]:
    """Return the retrainings of all runs of *kind* on *symbols*, oldest first."""
    with Reader.open(database) as reader:
        return [event for _, event in reader.retrainings(kind, symbols)]


def promoted_for(
    database: Path, kind: RunKind, symbols: Sequence[str], configured_sha256: str
) -> str:
    """Return the hash of the model that was promoted last in place of the configured one.

    Empty where none was, or where that was promoted in place of another configured model.
    """
    for event in reversed(past_retrainings(database, kind, symbols)):
        if event.outcome is RetrainOutcome.PROMOTED:
            return event.candidate_sha256 if event.configured_sha256 == configured_sha256 else ""
    return ""
