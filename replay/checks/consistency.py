"""Consistency of recorded events with the rest of the record.

The rules are docs/identity.md, I12, and docs/storage.md, S12.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.session.loop import Close
from tracepaper.daemon.session.retraining import (
    CandidateJudgement,
    is_better,
    level_of,
    one_sided,
    verdict,
)
from tracepaper.daemon.session.run_row import NO_MODEL, code_version, start_event
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import Run
from tracepaper.strategies.types.market import Depths, Event, ModelChange, Retrained, RetrainOutcome

Unlike = tuple[str, object, object]
"""The name of a field, what is stored, and what is due."""

_BY_NOTHING: Final = (*NO_MODEL, "torch_version", "instruction_set")
_ALPHA: Final = re.compile(r", the share of test \d+ in ([0-9.e+-]+)")


class GivenEvents:
    """Checks the events of one run in their order."""

    def __init__(self, reader: Reader, run: Run, config: Config) -> None:
        self._run, self._config = run, config
        self._reader = reader
        self._keys = [item.id for item in run.instruments]

    def of_close(self, close: Close) -> Iterator[Unlike]:
        """Hold what a ``Closed`` says to the bars behind it."""
        names = [bar.instrument for bar in close.bars]
        absent = tuple(key for key in self._keys if key not in names)
        due = [key for key in self._keys if key in names]
        for name, said, follows in (
            ("absent", close.closed.absent, absent),
            ("bars", names, due),
        ):
            if said != follows:
                yield name, said, follows

    def of(self, event: Event, forecaster: Forecaster | None) -> Iterator[Unlike]:
        """Hold *event*, after which *forecaster* answers, to what else is known."""
        match event:
            case ModelChange():
                yield from of_start(event, forecaster)
            case Retrained():
                yield from self._of_retrained(event, forecaster)
            case Depths():
                yield from _of_books(event)
            case _:
                pass

    def of_run(self) -> Iterator[Unlike]:
        """Hold all retrainings and changes of model of the run, which a prune keeps, to each other.

        Of a run that is derived from its start ``of`` does it, event by event.
        """
        promoted = self._reader.promoted(self._run.run_id)
        for event in self._reader.retrained(self._run.run_id):
            yield from self._of_retrained(event, None)
        for one, two in pairwise(self._reader.starts(self._run.run_id)):
            if two.model_sha256 not in (one.model_sha256, *promoted):
                yield "model_sha256", two.model_sha256, one.model_sha256

    def _of_retrained(self, event: Retrained, running: Forecaster | None) -> Iterator[Unlike]:
        """Hold what became of a retraining to its own figures: what they say is told."""
        if running is not None and event.running_sha256 != running.model_sha256:
            yield "running_sha256", event.running_sha256, running.model_sha256
        yield from _of_verdict(event)
        if event.level is None:
            return
        symbols = [item.symbol for item in self._run.instruments]
        earlier = [
            one
            for _, one in self._reader.retrainings(self._run.kind, symbols)
            if one.level is not None and one.market_ms < event.market_ms
        ]
        if event.test != len(earlier) + 1:
            yield "test", event.test, len(earlier) + 1
            return
        alpha = float(self._config.retrain.alpha)
        said = _ALPHA.search(event.reason)
        starts = self._reader.starts(self._run.run_id)
        if sum(one.market_ms < event.market_ms for one in starts) > 1 and said is not None:
            alpha = float(said[1])  # a start may have brought another: it decides no bar
        level = level_of(alpha, event.test)
        if not math.isclose(event.level, level, rel_tol=1e-5):
            yield "level", event.level, level
        elif self._run.code_version == code_version():
            yield from _of_reason(event, alpha)


def of_start(said: Run | ModelChange, forecaster: Forecaster | None) -> Iterator[Unlike]:
    """Hold what a start says computes to the model and its configuration, where it follows."""
    due = start_event(forecaster, warm_from=(), market_ms=0)
    for name in _BY_NOTHING if forecaster is None else ("threads",):
        if getattr(said, name) != getattr(due, name):
            yield name, getattr(said, name), getattr(due, name)


def _of_verdict(event: Retrained) -> Iterator[Unlike]:
    from tracepaper.replay.training.paired import (
        DayDifference,
        chance,
    )

    if event.difference is not None and event.error is not None and event.p is not None:
        said = DayDifference(event.difference, event.error, event.days, 1.0)
        p = one_sided(event.difference, chance(said))
        if not math.isclose(event.p, p, rel_tol=1e-6, abs_tol=1e-300):
            yield "p", event.p, p
    is_taken = is_better(event.difference, event.p, event.level)
    if (event.outcome is RetrainOutcome.PROMOTED) is not is_taken:
        is_lost = event.outcome is RetrainOutcome.FAILED  # better, and it could not be loaded
        if not is_lost:
            taken = RetrainOutcome.PROMOTED if is_taken else RetrainOutcome.REFUSED
            yield "outcome", event.outcome.value, taken.value


def _of_reason(event: Retrained, alpha: float) -> Iterator[Unlike]:
    """Hold the sentence to the figures; what could not be loaded says more after it."""
    if event.difference is None or event.error is None or event.p is None:
        return
    judged = CandidateJudgement(
        "",
        event.running_sha256,
        horizon=event.horizon,
        days=event.days,
        difference=event.difference,
        error=event.error,
        p=event.p,
    )
    _, due = verdict(judged, test=event.test, alpha=alpha)
    if event.reason != due and not event.reason.startswith(f"{due}; but"):
        yield "reason", event.reason, due


def _of_books(event: Depths) -> Iterator[Unlike]:
    """Unpack order books, also where no decision looked at them."""
    from tracepaper.strategies.order_book import books_in

    try:
        books_in(event)
    except DataInvalid as error:
        yield "books", str(error), "books that an exchange can show"
