"""``Retrainer``: trains in a process of its own and promotes the better model.

No decision waits for it. The process that trains answers with a judgement; what becomes of that is
an event of the run, and so is the change to a promoted model, which is warmed aside before.

The rules are docs/operations.md, O11 to O19.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from msgspec import convert, to_builtins
from msgspec.structs import replace

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.loading import Config, render
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.build import terms_for
from tracepaper.daemon.session.child import ChildFailed, ChildProcess, ScheduledJob, TimeLimits
from tracepaper.daemon.session.loop import Worker, WorkerPredictor
from tracepaper.daemon.session.models import forecaster_of
from tracepaper.daemon.session.run_row import start_event
from tracepaper.storage import checkpoints
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid, DataInvalid
from tracepaper.strategies.types.decisions import Run
from tracepaper.strategies.types.market import Event, RetrainingEnd, RetrainOutcome, RunKind
from tracepaper.strategies.units import DAY_MS, time_of, time_of_day_ms

BARS: Final = "bars"
"""The archive into which a retraining writes the bars that the runs of the database hold."""
BY_HAND: Final = "by_hand"
"""The folder in it in which one by hand works, so that it is not in the daemon's way."""
CANDIDATE: Final = "candidate"
"""The folder of the checkpoint that is being trained, in that in which a retraining works."""


J = TypeVar("J", bound=RetrainingEnd)


class CandidateJudgement(RetrainingEnd, frozen=True, gc=False):
    """The figures of ``tracepaper retrain``, the event that they become, and the model's folder."""

    candidate: str = ""

    @property
    def is_judged(self) -> bool:
        """Whether both models were judged."""
        return self.p is not None


def not_judged(
    reason: str, running_sha256: str, outcome: RetrainOutcome = RetrainOutcome.SKIPPED
) -> CandidateJudgement:
    """Return the end of a retraining without a judgement, for *reason*."""
    times = ("began_ms", "from_ms", "until_ms", "market_ms", "seen_ms")
    nothing: dict[str, object] = {
        **dict.fromkeys(("configured_sha256", "candidate_sha256", "recipe"), ""),
        **dict.fromkeys((*times, "horizon", "bars", "days", "test"), 0),
        **dict.fromkeys(("difference", "error", "p", "level")),
    }
    named = {"outcome": outcome, "reason": reason, "running_sha256": running_sha256}
    return convert({**nothing, **named}, CandidateJudgement)


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

    *p* is one-sided; None where nothing was judged.
    """
    if difference is None or p is None or level is None:
        return False
    return difference < 0 and p < level


def with_verdict(judged: J, *, test: int, alpha: float) -> J:
    """Return *judged*, of both models, with the outcome of judgement number *test* by *alpha*."""
    assert judged.difference is not None
    assert judged.p is not None
    error = "unknown" if judged.error is None else f"{judged.error:.5f}"
    level = level_of(alpha, test)
    is_taken = is_better(judged.difference, judged.p, level)
    reason = (
        f"QLIKE {judged.difference:+.5f} ± {error} over {judged.days} days at "
        f"{judged.horizon} bars: p {judged.p:.2g} is {'below' if is_taken else 'not below'} "
        f"{level:.2g}, the share of test {test} in {alpha:g}"
    )
    outcome = RetrainOutcome.PROMOTED if is_taken else RetrainOutcome.REFUSED
    return replace(judged, outcome=outcome, reason=reason, test=test, level=level, alpha=alpha)


def tests_of(events: Iterable[RetrainingEnd]) -> int:
    """Count the judgements among *events*, each of which spent its share."""
    return sum(event.level is not None for event in events)


def unlike(candidate: Forecaster, running: Forecaster) -> str:
    """Return why *candidate* cannot take the place of *running* within a run; empty if it can.

    A run's decisions depend on its model's context, measures and horizons; with others it would be
    another run.
    """
    differing: list[tuple[str, object, object]] = [
        ("context", candidate.context, running.context),
        ("horizons", list(candidate.horizons), list(running.horizons)),
        ("measures", sorted(candidate.measures), sorted(running.measures)),
    ]
    for name, trained, wanted in differing:
        if trained != wanted:
            return (
                f"the candidate's {name} {trained} differs from the running model's {wanted}; give "
                "a recipe that keeps it, or name the candidate in [model] checkpoint for a new run"
            )
    return ""


def retrain_folder(config: Config, database: Path) -> Path:
    """Return the folder in which retrainings for *database* work."""
    folder = config.retrain.folder
    return database.with_name(database.name + ".retrain") if folder is None else Path(folder)


def tidy(folder: Path) -> None:
    """Remove the temporary files of a retraining from *folder*, however it ended.

    The database needs the disk space: a full disk ends the daemon. A file that cannot be removed is
    left to the next retraining.
    """
    for pattern in (f"{CANDIDATE}.training", f".{CANDIDATE}-*", BARS):
        for old in folder.glob(pattern):
            shutil.rmtree(old, ignore_errors=True)
            with suppress(OSError):
                old.unlink()


def past_retrainings(database: Path, kind: RunKind, symbols: Sequence[str]) -> list[RetrainingEnd]:
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
        if event.takes_over:
            return event.candidate_sha256 if event.configured_sha256 == configured_sha256 else ""
    return ""


PROGRAM = (sys.executable, "-m", "tracepaper.daemon.cli", "retrain")
"""The process that trains and judges: the command that does the same by hand."""
CONFIG_FILE: Final = "config.toml"
LOG_FILE: Final = "log.txt"
MARK_FILE: Final = "began"
"""Holds the market time at which the training under way began."""
REFUSED: Final = "refused"
_JUDGED: Final = frozenset({RetrainOutcome.PROMOTED, RetrainOutcome.REFUSED})

log = Logger("retrain")


class Retrainer(ScheduledJob):
    """Watches the market time of a run's steps, and retrains its model whenever that is due.

    *running* is the model that decides now, and *configured_sha256* is of ``[model] checkpoint``.
    *submit* queues an event and returns once its step is stored.
    """

    key = "retraining"

    def __init__(  # noqa: PLR0913 - what a change of the model concerns
        self,
        config: Config,
        database: Path,
        run: Run,
        engine: Engine,
        predictor: WorkerPredictor,
        submit: Callable[[Event], Awaitable[int]],
        clock: Clock,
        *,
        running: Forecaster,
        configured_sha256: str,
    ) -> None:
        super().__init__()
        self.running = running
        self.is_training = False
        self.outcomes = dict.fromkeys(RetrainOutcome, 0)
        self._config = config
        self._database = database
        self._run = run
        self._configured_sha256 = configured_sha256
        self._engine, self._predictor = engine, predictor
        self._submit, self._clock = submit, clock
        self._folder = retrain_folder(config, database)
        self._every_ms = time_of(config.model.retrain or "") or 0
        self._worker = Worker("retrain")
        symbols = [item.symbol for item in run.instruments]
        past = past_retrainings(database, run.kind, symbols)
        for event in past:
            self.outcomes[event.outcome] += 1
        self._tests = tests_of(past)
        self.last: RetrainingEnd | None = past[-1] if past else None
        self._cut_off_ms = self._read_mark()
        self.due_ms = self._next_due(_first_start_ms(database, run, symbols))

    def status(self) -> dict[str, object]:
        """Return whether a model is trained, when the next is, the outcomes and the last one."""
        return {
            "training": self.is_training,
            "due_ms": self.due_ms,
            "outcomes": {outcome.value: count for outcome, count in self.outcomes.items()},
            "last": to_builtins(self.last),
        }

    def _next_due(self, since_ms: int) -> int:
        """Return when the next retraining begins: after the last one, else after *since_ms*.

        One that failed or was cut off is retried a day later, if that is sooner.
        """
        wait_ms = self._every_ms
        if (last := self.last) is not None:
            since_ms = last.began_ms
            if last.outcome not in _JUDGED:
                wait_ms = min(wait_ms, DAY_MS)
        if self._cut_off_ms is not None and self._cut_off_ms >= since_ms:
            return 0  # its failure is stored at once, before the next is due
        return _at(self._config.retrain.at, since_ms + wait_ms)

    def _read_mark(self) -> int | None:
        """Return when a training began that has no event: its daemon ended meanwhile."""
        try:
            began_ms = int((self._folder / MARK_FILE).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
        return None if self.last is not None and self.last.began_ms >= began_ms else began_ms

    async def _do(self) -> None:
        if self._cut_off_ms is not None:
            began_ms, self._cut_off_ms = self._cut_off_ms, None
            await self._store(
                self._failed("the daemon was ended while the model was trained"), began_ms
            )
        else:
            await self.retrain()
        self.due_ms = self._next_due(0)

    # ------------------------------------------------------------ one retraining

    async def retrain(self) -> None:
        """Train, judge and promote or refuse; store the outcome as an event."""
        began_ms = self._clock.market_ms()
        self.is_training = True
        log.info("retraining", folder=str(self._folder), model_id=self.running.model_id)
        try:
            judged, candidate = await self._decide(await self._judge(began_ms))
        except ChildFailed as error:
            judged, candidate = self._failed(str(error)), None
            await self._worker.submit(tidy, self._folder)
        finally:
            self.is_training = False
        await self._store(judged, began_ms)
        if candidate is not None:
            # The running model answers the bars that close meanwhile.
            await self._predictor.warm_aside(self._worker)
            now_ms = self._clock.market_ms()
            await self._submit(start_event(candidate, warm_from=(), market_ms=now_ms))
            self.running = candidate
            log.info("model changed", model_id=candidate.model_id)

    def _failed(self, reason: str) -> CandidateJudgement:
        return not_judged(reason, self.running.model_sha256, RetrainOutcome.FAILED)

    async def _store(self, judged: CandidateJudgement, began_ms: int) -> None:
        now_ms = self._clock.market_ms()
        configured = self._configured_sha256
        dated = {"began_ms": began_ms, "market_ms": now_ms, "seen_ms": now_ms}
        judged = replace(judged, configured_sha256=configured, **dated)
        event = convert(judged, RetrainingEnd, from_attributes=True)
        await self._submit(event)
        self.last = event
        self.outcomes[event.outcome] += 1
        self._tests += event.level is not None
        log.info("retrained", outcome=event.outcome.value, reason=event.reason)

    async def _decide(
        self, judged: CandidateJudgement
    ) -> tuple[CandidateJudgement, Forecaster | None]:
        """Return a judgement with its outcome, and the model that it promotes.

        Engine and predictor know a promoted model from here on.
        """
        if judged.running_sha256 != self.running.model_sha256:
            raise ChildFailed("the training judged another model than the one that decides")
        if not judged.is_judged:
            return judged, None
        alpha = float(self._config.retrain.alpha)
        judged = with_verdict(judged, test=self._tests + 1, alpha=alpha)
        if judged.outcome is RetrainOutcome.REFUSED:
            await self._worker.submit(self._keep_refused, Path(judged.candidate))
            return judged, None
        try:
            candidate = await self._worker.submit(self._load, judged)
            terms = terms_for(self._config, self._engine, candidate, self._run)
        except (CheckpointMismatch, ConfigInvalid, DataInvalid, OSError) as error:
            # It was judged, so its share is spent all the same.
            reason = f"{judged.reason}; but it cannot be promoted: {_reason(error)}"
            return replace(judged, outcome=RetrainOutcome.FAILED, reason=reason), None
        self._engine.prepare(candidate.model_sha256, terms)
        self._predictor.prepare(candidate)
        return judged, candidate

    def _load(self, judged: CandidateJudgement) -> Forecaster:
        """Copy the candidate beside the database, for good, and load it."""
        copy = checkpoints.keep(Path(judged.candidate), self._database)
        candidate = forecaster_of(copy, self._config, mode=self.running.mode)
        if candidate.model_sha256 != judged.candidate_sha256:
            raise CheckpointMismatch(f"{copy} is not the model that was judged; train again.")
        if reason := unlike(candidate, self.running):
            raise ConfigInvalid(f"{reason}.")
        return candidate

    def _keep_refused(self, folder: Path) -> None:
        """Keep the newest refused candidates, and remove the others."""
        refused = self._folder / REFUSED
        try:
            refused.mkdir(exist_ok=True)
            folder.rename(refused / f"{self._clock.market_ms()}")
            newest_first = sorted(refused.iterdir(), key=lambda folder: folder.name, reverse=True)
            for old in newest_first[self._config.retrain.keep :]:
                shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            log.warning("candidate not kept", error=_reason(error))

    # ------------------------------------------------------------ the process that trains

    async def _judge(self, began_ms: int) -> CandidateJudgement:
        """Train and judge in a process of its own; raise ``ChildFailed`` where it breaks off."""
        command = (
            *(*PROGRAM, self._run.run_id),
            *("--db", str(self._database), "--config", str(self._folder / CONFIG_FILE)),
            *("--folder", str(self._folder), "--to", str(began_ms), "--service"),
        )
        limit = self._config.retrain.time_limit
        limits = TimeLimits((time_of(limit) or 0) / 1000, f"retrain.time_limit, {limit}")
        environment = {"OMP_NUM_THREADS": str(self._config.retrain.threads)}
        try:
            # A disk may stall, so the worker opens and writes files, not the loop that decides.
            with await self._worker.submit(self._begin_folder, began_ms) as log_file:
                child = ChildProcess(
                    "training", command, limits, errors=log_file, environment=environment
                )
                async with child:
                    return await child.ask(CandidateJudgement)
        except OSError as error:
            reason = f"it could not begin in {self._folder} ({_reason(error)})"
            raise ChildFailed(reason) from None

    def _begin_folder(self, began_ms: int) -> BinaryIO:
        """Write the configuration and the mark of a training; return its open log file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / MARK_FILE).write_text(str(began_ms), encoding="ascii")
        (self._folder / CONFIG_FILE).write_text(render(self._config), encoding="utf-8")
        return (self._folder / LOG_FILE).open("w+b")


def _first_start_ms(database: Path, run: Run, symbols: Sequence[str]) -> int:
    """Return when the oldest run of the same kind and *symbols* began to decide."""
    with Reader.open(database) as reader:
        runs = [reader.run(name) for name in reader.run_ids()]
    starts = [
        past.period_start_ms
        for past in runs
        if past.kind is run.kind and {item.symbol for item in past.instruments} == set(symbols)
    ]
    return min([*starts, run.period_start_ms])


def _at(clock_time: str | None, due_ms: int) -> int:
    """Return *due_ms*, or the next *clock_time* (UTC) from there on where one is given."""
    if clock_time is None:
        return due_ms
    return due_ms + (time_of_day_ms(clock_time) - due_ms) % DAY_MS


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return str(error).rstrip(".")
