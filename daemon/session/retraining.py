"""``Retrainer``: retrains the model in a separate process and promotes a better one.

No decision waits for it. The process trains a candidate and answers with its judgement. The outcome
is an event of the run; so is the change to a promoted model, which is warmed up beforehand.

The rules are docs/operations.md, O11 to O19.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from msgspec import convert, to_builtins
from msgspec.structs import replace

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.loading import Config, render
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.background import ScheduledJob
from tracepaper.daemon.session.build import terms_for
from tracepaper.daemon.session.child import (
    ChildFailed,
    ChildProcess,
    StartProcess,
    TimeLimits,
)
from tracepaper.daemon.session.loop import Worker, WorkerPredictor
from tracepaper.daemon.session.models import forecaster_of
from tracepaper.daemon.session.run_row import start_event
from tracepaper.storage import checkpoints
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid, DataInvalid
from tracepaper.strategies.types.decisions import RunRow
from tracepaper.strategies.types.market import Event, RetrainingEnd, RetrainOutcome, RunKind
from tracepaper.strategies.units import DAY_MS, time_of, time_of_day_ms

BARS: Final = "bars"
"""The archive, in a retraining's folder, of the bars that the runs of the database hold."""
BY_HAND: Final = "by_hand"
"""The folder in it for ``tracepaper retrain``, so that the command never disturbs the daemon."""
CANDIDATE: Final = "candidate"
"""The folder in it of the checkpoint that is being trained."""


J = TypeVar("J", bound=RetrainingEnd)


class CandidateJudgement(RetrainingEnd, frozen=True, gc=False):
    """The result of ``tracepaper retrain``: the coming event, and the candidate's folder."""

    candidate: str = ""

    @property
    def is_judged(self) -> bool:
        """Whether both models were judged."""
        return self.p is not None


def level_of(alpha: float, test: int) -> float:
    """Return the significance level of judgement number *test*, counted from 1.

    The levels α ÷ (k (k + 1)) add up to α over all k. So the probability of any false promotion
    stays below α, however many models are judged and whatever data their tests share.
    """
    return alpha / (test * (test + 1))


def one_sided(difference: float, p: float) -> float:
    """Return the one-sided p of a *difference* below zero, given its two-sided *p*."""
    return p / 2 if difference < 0 else 1 - p / 2


def with_verdict(judged: J, *, test: int, alpha: float) -> J:
    """Return *judged* with the outcome of judgement number *test* at overall level *alpha*."""
    assert judged.difference is not None
    assert judged.p is not None
    level = level_of(alpha, test)
    is_promoted = judged.difference < 0 and judged.p < level
    reason = (
        f"QLIKE {judged.difference:+.5f} over {judged.days} days at "
        f"{judged.horizon} bars: p {judged.p:.2g} is {'below' if is_promoted else 'not below'} "
        f"{level:.2g}, the share of test {test} in {alpha:g}"
    )
    outcome = RetrainOutcome.PROMOTED if is_promoted else RetrainOutcome.REFUSED
    return replace(judged, outcome=outcome, reason=reason, test=test, level=level, alpha=alpha)


def retrain_folder(config: Config, database: Path) -> Path:
    """Return the working folder of retrainings for *database*."""
    folder = config.retrain.folder
    return database.with_name(database.name + ".retrain") if folder is None else Path(folder)


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of a retraining from *folder*, whether it succeeded or not.

    The database needs the disk space: a full disk ends the daemon.
    """
    for pattern in (f"{CANDIDATE}.training", f".{CANDIDATE}-*", BARS):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                path.unlink()


def past_retrainings(database: Path, kind: RunKind, symbols: Sequence[str]) -> list[RetrainingEnd]:
    """Return the retrainings of all runs of *kind* on *symbols*, oldest first."""
    with Reader.open(database) as reader:
        return [event for _, event in reader.retrainings(kind, symbols)]


def promoted_sha256(
    database: Path, kind: RunKind, symbols: Sequence[str], configured_sha256: str
) -> str:
    """Return the hash of the model that replaced the configured one; empty if none did.

    A promotion that replaced another configured model does not count.
    """
    for event in reversed(past_retrainings(database, kind, symbols)):
        if event.takes_over:
            return event.candidate_sha256 if event.configured_sha256 == configured_sha256 else ""
    return ""


PROGRAM = (sys.executable, "-m", "tracepaper.daemon.cli", "retrain")
"""The process that trains and judges: the same command that a user may run."""
CONFIG_FILE: Final = "config.toml"
LOG_FILE: Final = "log.txt"
_JUDGED: Final = frozenset({RetrainOutcome.PROMOTED, RetrainOutcome.REFUSED})

log = Logger("retrain")


class Retrainer(ScheduledJob):
    """Retrains a run's model at intervals of its market time.

    *running* is the model that decides now, *configured_sha256* the hash of ``[model] checkpoint``.
    *submit* queues an event and returns once its step is stored.
    """

    key = "retraining"

    def __init__(  # noqa: PLR0913 - all parts that a change of the model affects
        self,
        config: Config,
        database: Path,
        run: RunRow,
        engine: Engine,
        predictor: WorkerPredictor,
        submit: Callable[[Event], Awaitable[int]],
        clock: Clock,
        *,
        running: Forecaster,
        configured_sha256: str,
        start_process: StartProcess = ChildProcess,
    ) -> None:
        super().__init__()
        self._start_process = start_process
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
        self._tests = sum(event.level is not None for event in past)
        self.last: RetrainingEnd | None = past[-1] if past else None
        self.due_ms = self._next_due(_first_start_ms(database, run, symbols))

    def status(self) -> dict[str, object]:
        """Return whether a training runs, when the next one is due, and the outcomes so far."""
        return {
            "training": self.is_training,
            "due_ms": self.due_ms,
            "outcomes": {outcome.value: count for outcome, count in self.outcomes.items()},
            "last": to_builtins(self.last),
        }

    def _next_due(self, since_ms: int) -> int:
        """Return when the next retraining is due: one interval after the last, else *since_ms*.

        One that failed or was skipped is retried after a day, if that is sooner.
        """
        wait_ms = self._every_ms
        if (last := self.last) is not None:
            since_ms = last.began_ms
            if last.outcome not in _JUDGED:
                wait_ms = min(wait_ms, DAY_MS)
        due_ms = since_ms + wait_ms
        if (at := self._config.retrain.at) is not None:
            due_ms += (time_of_day_ms(at) - due_ms) % DAY_MS
        return due_ms

    async def _run_job(self) -> None:
        await self._retrain()
        self.due_ms = self._next_due(0)

    # ------------------------------------------------------------ one retraining

    async def _retrain(self) -> None:
        """Train and judge a candidate, promote or refuse it, and store the outcome as an event."""
        began_ms = self._clock.market_ms()
        self.is_training = True
        log.info("retraining", folder=str(self._folder), model_id=self.running.model_id)
        try:
            judged, candidate = await self._decide(await self._judge(began_ms))
        except ChildFailed as error:
            running_sha256 = self.running.model_sha256
            judged = CandidateJudgement(
                RetrainOutcome.FAILED, str(error), running_sha256=running_sha256
            )
            candidate = None
            await self._worker.submit(remove_temporary_files, self._folder)
        finally:
            self.is_training = False
        await self._store(judged, began_ms)
        if candidate is not None:
            # Meanwhile the running model continues to forecast.
            await self._predictor.warm_promoted(self._worker)
            now_ms = self._clock.market_ms()
            await self._submit(start_event(candidate, warm_from=(), market_ms=now_ms))
            self.running = candidate
            log.info("model changed", model_id=candidate.model_id)

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
        """Return the judgement with its outcome, and the promoted model, if any.

        A promoted model is prepared in engine and predictor.
        """
        if judged.running_sha256 != self.running.model_sha256:
            raise ChildFailed("the training judged another model than the one that decides")
        if not judged.is_judged:
            return judged, None
        alpha = float(self._config.retrain.alpha)
        judged = with_verdict(judged, test=self._tests + 1, alpha=alpha)
        if judged.outcome is RetrainOutcome.REFUSED:
            return judged, None
        try:
            candidate = await self._worker.submit(self._load, judged)
            terms = terms_for(self._config, self._engine, candidate, self._run)
        except (CheckpointMismatch, ConfigInvalid, DataInvalid, OSError) as error:
            # It was judged, so its significance level is used up.
            reason = f"{judged.reason}; but it cannot be promoted: {str(error).rstrip('.')}"
            return replace(judged, outcome=RetrainOutcome.FAILED, reason=reason), None
        self._engine.prepare(candidate.model_sha256, terms)
        self._predictor.prepare(candidate)
        return judged, candidate

    def _load(self, judged: CandidateJudgement) -> Forecaster:
        """Copy the candidate permanently beside the database, and load it."""
        copy = checkpoints.keep(Path(judged.candidate), self._database)
        candidate = forecaster_of(copy, self._config, mode=self.running.mode)
        if candidate.model_sha256 != judged.candidate_sha256:
            raise CheckpointMismatch(f"{copy} is not the model that was judged; train again.")
        return candidate

    # ------------------------------------------------------------ the process that trains

    async def _judge(self, began_ms: int) -> CandidateJudgement:
        """Train and judge in a separate process; raise ``ChildFailed`` if it fails."""
        command = (
            *(*PROGRAM, self._run.run_id),
            *("--db", str(self._database), "--config", str(self._folder / CONFIG_FILE)),
            *("--folder", str(self._folder), "--to", str(began_ms), "--service"),
        )
        limit = self._config.retrain.time_limit
        limits = TimeLimits((time_of(limit) or 0) / 1000, f"retrain.time_limit, {limit}")
        environment = {"OMP_NUM_THREADS": str(self._config.retrain.threads)}
        try:
            # The worker opens and writes files: a slow disk must not stall the event loop.
            with await self._worker.submit(self._begin_folder) as log_file:
                child = self._start_process(
                    "training", command, limits, errors=log_file, environment=environment
                )
                async with child:
                    return await child.ask(CandidateJudgement)
        except OSError as error:
            reason = f"it could not begin in {self._folder} ({error})"
            raise ChildFailed(reason) from None

    def _begin_folder(self) -> BinaryIO:
        """Write the configuration of a training; return its open log file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / CONFIG_FILE).write_text(render(self._config), encoding="utf-8")
        return (self._folder / LOG_FILE).open("w+b")


def _first_start_ms(database: Path, run: RunRow, symbols: Sequence[str]) -> int:
    """Return the period start of the oldest run of the same kind and *symbols*."""
    with Reader.open(database) as reader:
        runs = [reader.run(name) for name in reader.run_ids()]
    starts = [
        past.period_start_ms
        for past in runs
        if past.kind is run.kind and {item.symbol for item in past.instruments} == set(symbols)
    ]
    return min([*starts, run.period_start_ms])
