"""A run re-derived from its own record: events, configuration and checkpoint → every step again.

A stored bar that was changed, with the chain's digests recomputed to hide it, is still found: the
decision that was stored no longer follows from it (SEMANTICS 26).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from tracepaper.daemon.building import code_version
from tracepaper.daemon.models import forecaster_of
from tracepaper.replay.compare import (
    Difference,
    answers_agree,
    measures_agree,
    step_differences,
)
from tracepaper.replay.recorded import Recorded, RecordedThinker, open_recorded
from tracepaper.storage import checkpoints
from tracepaper.storage.reader import Reader
from tracepaper.strategies.forecaster import Forecaster
from tracepaper.strategies.types import Bar, Event, Run, Step

DIFFERENCES_KEPT: Final = 100

_CAUSES: Final = (
    ("a stored event was changed", ("event", "accepted")),
    (
        "the weights, or a bar in the model's window, were changed",
        ("mean_return", "stdev_return", "p_", "volatility", "explanation", "model_id"),
    ),
    ("a stored bar was changed", ("window_sha256", "decision_sha256")),
    (
        "a stored fill, order or account value was changed",
        ("account", "position", "fills", "orders", "twins", "state"),
    ),
)
"""What the fields of the first differing step tell, the most telling first."""


@dataclass
class Verification:
    """What re-deriving a run found; ``differences`` holds the first of them."""

    run_id: str
    steps: int = 0
    decisions: int = 0
    agreed: int = 0  # decisions that are equal in every field
    tolerated: int = 0  # decisions whose numbers differ within the tolerance alone
    differing: int = 0
    exact: bool = True  # whether path, device, dtype and threads promise bit equality
    differences: list[Difference] = field(default_factory=list)
    likely_cause: str = ""

    @property
    def holds(self) -> bool:
        """Whether every step follows from the record."""
        return self.differing == 0


def verify_run(
    reader: Reader,
    database: Path,
    run_id: str,
    *,
    sample: int | None = None,
    progress: Callable[[int], None] = lambda _steps: None,
) -> Verification:
    """Step *run_id* through again and compare each step with what is stored.

    With *sample* only the last that many decisions are compared; the steps before them are
    still derived, since an account depends on all of them.
    """
    recorded = open_recorded(reader, database, run_id)
    found = Verification(run_id)
    total = reader.stored_run(run_id).step_count
    first_compared = 0 if sample is None else max(0, total - sample)
    thinker = RecordedThinker(recorded, _prober(recorded, database))
    # The run may grow meanwhile, and what it had is what is compared.
    stored = reader.steps(run_id, until=total - 1)
    events = islice(_events(thinker, reader, run_id), total)
    for event, kept in zip(events, stored, strict=True):
        derived = recorded.engine.step(event, thinker.answer(event))
        found.steps += 1
        if derived.sequence >= first_compared:
            _judge(found, derived, kept.step)
        if found.steps % 4_096 == 0:
            progress(found.steps)
    if found.differences:
        found.likely_cause = _likely_cause(recorded.run, found.differences)
    return found


def _events(thinker: RecordedThinker, reader: Reader, run_id: str) -> Iterator[Event]:
    return thinker.events(reader, run_id)


def _prober(recorded: Recorded, database: Path) -> Forecaster | None:
    run = recorded.run
    if recorded.forecaster is None or run.path != "scan":
        return None
    kept = checkpoints.kept_folder(database, run.model_id)
    return forecaster_of(kept, recorded.config, path=run.path)


def _judge(found: Verification, derived: Step, stored: Step) -> None:
    decided = stored.decision is not None
    found.decisions += decided
    if derived == stored:
        found.agreed += decided
        return
    if _only_rounding(derived, stored):
        found.tolerated += decided
        found.exact = False
        return
    found.differing += 1
    if len(found.differences) < DIFFERENCES_KEPT:
        event = stored.event
        instrument = event.instrument if isinstance(event, Bar) else ""
        opened = event.open_time_ms if isinstance(event, Bar) else event.market_ms
        for name, one, two in step_differences(stored, derived):
            found.differences.append(
                Difference(instrument, opened, f"{name} (step {stored.sequence})", one, two)
            )


def _only_rounding(derived: Step, stored: Step) -> bool:
    """Return whether two steps decide and do the same, on forecasts within the tolerance."""
    one, two = derived.decision, stored.decision
    if one is None or two is None:
        return False
    same_deed = (
        one.action is two.action
        and one.target_quantity == two.target_quantity
        and one.refused_by is two.refused_by
        and derived.orders == stored.orders
        and derived.fills == stored.fills
        and derived.account == stored.account
    )
    return same_deed and answers_agree(derived.answer, stored.answer) and measures_agree(one, two)


def _likely_cause(run: Run, differences: list[Difference]) -> str:
    """Return what most likely made the first step that differs differ."""
    if run.code_version != code_version():
        return f"the run was made by code {run.code_version}, and this is {code_version()}"
    first = differences[0]
    names = " ".join(
        one.field for one in differences if one.open_time_ms == first.open_time_ms
    ).split()
    for cause, fields in _CAUSES:
        if any(name.startswith(fields) for name in names):
            return cause
    return "a stored decision or gate was changed"
