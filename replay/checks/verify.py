"""``verify``: derives every step of a run again from its record.

It walks the chain of what it reads, and finds a changed value even if all digests were recomputed,
since the value no longer follows from the rest. Values that follow from nothing else are the
exception (S12).

The rules are docs/identity.md, I12, and docs/storage.md, S12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from tracepaper.daemon.engine.state import decode_state
from tracepaper.daemon.session.carried_account import CarriedAccount, Origin
from tracepaper.daemon.session.loop import gathered, steps_of
from tracepaper.daemon.session.resume import check_state
from tracepaper.daemon.session.run_row import (
    ENVIRONMENT_FIELDS,
    NO_MODEL,
    sessions_of,
    start_event,
    strategy_sha256,
)
from tracepaper.replay.backtest.predictors import differs
from tracepaper.replay.backtest.recorded import (
    RecordedPredictor,
    RecordedRun,
    open_recorded,
    prober_of,
    run_in,
)
from tracepaper.replay.backtest.run import foreseen
from tracepaper.replay.checks.compare import Difference, RowCheck, Unlike, differences_of, shown
from tracepaper.replay.checks.diagnosis import Cause, diagnose
from tracepaper.storage.chain.verify import ChainProblem, verify_chain
from tracepaper.storage.database.chunks import StoredRun, commit_at
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.record.decode import StoredRows
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import DataInvalid, InvariantBroken
from tracepaper.strategies.order_book import books_in
from tracepaper.strategies.sessions import calendars_of
from tracepaper.strategies.types.decisions import BLOCK_BARS, RunRow, Step
from tracepaper.strategies.types.market import Bar, Close, Depths, Event, ModelChange, RunKind
from tracepaper.strategies.units import iso

DIFFERENCES_KEPT: Final = 100
PROGRESS_STEPS: Final = 250
EXACT: Final = frozenset({"sma_cross", "persistence"})
"""Strategies of whole numbers: no library and no machine rounds what they decide."""
_START_FIELDS: Final = ("model_id", "model_sha256", "mode", *ENVIRONMENT_FIELDS)
"""Fields that a run's row and its first start both have."""

_FIELDS_WITHOUT_MODEL: Final = (*NO_MODEL, "torch_version", "instruction_set")


@dataclass
class Verification:
    """The result of re-deriving a run; ``differences`` holds the first ones."""

    run_id: str
    steps: int = 0
    decisions: int = 0
    agreed: int = 0  # decisions that are equal in every bit
    tolerated: int = 0  # decisions that differ only in floats, within their tolerances
    differing: int = 0
    exact: bool = True  # whether every bit had to be equal
    taken: int = 0  # answers of an outside service, used from the record
    elsewhere: str = ""  # why not exact: what differs here from where the run was made
    from_step: int = 0  # the first compared step
    from_ms: int | None = None  # open time of the first compared bar, where not all are
    chained: int = 0  # decisions before that, which only the chain covers
    before: Origin | None = None  # the run whose account this one took over
    is_before_here: bool = False  # whether the file holds that run, so that the account was checked
    state_step: int | None = None  # the step whose stored state the derivation began from
    differences: list[Difference] = field(default_factory=list)
    culprit: Cause | None = None
    to_blame: str = ""  # the culprit, with "or the record" where that is possible too
    likely_cause: str = ""

    @property
    def passes(self) -> bool:
        """Whether there are decisions, every step follows from the record and its chain holds."""
        return self.decisions > 0 and self.differing == 0

    def add(self, at_ms: int, what: str, stored: object, due: object) -> None:
        """Count a difference of *stored* and *due* in the field *what*; keep the first ones."""
        self.differing += 1
        if len(self.differences) < DIFFERENCES_KEPT:
            self.differences.append(Difference("", at_ms, what, str(stored), str(due)))


def verify_run(  # noqa: PLR0913 - the options of verify
    reader: Reader,
    database: Path,
    run_id: str,
    *,
    sample: int | None = None,
    from_ms: int | None = None,
    until_ms: int | None = None,
    commit: int | None = None,
    from_start: bool = False,
    probes: bool = True,
    progressed: Callable[[int, int], object] = lambda _done, _total: None,
) -> Verification:
    """Derive *run_id* again and compare each step with its stored rows, in every column.

    The chain of all rows that are read must hold too.

    After a start in the present environment every bit must be equal; after others floats may differ
    within their tolerances. *sample* compares only that many steps at the end, though all are
    derived, since the account depends on them. *from_ms* and *until_ms* compare only the bars that
    opened in that span, and *commit* only the commit with that step; the state before is then the
    record's, or derived as well with *from_start*. *probes* compute some bars of a batched pass
    once more by themselves, which finds a network that sees later bars. *progressed* is called now
    and then with the number of derived steps and their total.
    """
    stored = reader.stored_run(run_id)
    begin, end = _bounds(reader, stored, (from_ms, until_ms), commit)
    from_step = None if from_start else begin
    recorded = open_recorded(reader, database, run_id, from_step=from_step)
    verification = Verification(run_id)
    _, total = reader.counted(run_id)
    first_compared = recorded.first if sample is None else max(recorded.first, total - sample)
    predictor = RecordedPredictor(
        recorded, prober_of(recorded, database) if probes else None, probes=probes
    )
    check = RowCheck(
        reader, stored, member_shape=getattr(recorded.forecaster, "member_shape", None)
    )
    here = start_event(recorded.forecaster, warm_from=(), market_ms=0)
    beginning = recorded.beginning
    start = (
        None if beginning is None else reader.newest_of(run_id, ModelChange, until=beginning.after)
    )
    elsewhere = _cut(recorded) or differs(start or recorded.run, here)
    _judge_run(verification, reader, stored, recorded)
    if beginning is None:
        _judge_joint(verification, reader, stored.run)
    if beginning is not None or begin is not None:
        first_compared = max(first_compared, begin or 0)
        _judge_state(verification, reader, recorded, first_compared)
    verification.from_step = first_compared
    if end is not None:
        total = max(end, recorded.first)
    chain_problem = verify_chain(
        reader.connection,
        run_id,
        first=0 if beginning is None else min(beginning.fed_from, verification.state_step or 0),
        last=None if end is None else total - 1,
    ).problem
    # The run may grow meanwhile; later steps are not compared.
    rows = reader.rows(run_id, after=recorded.first - 1, until=total - 1)
    run_events = run_in(reader, recorded, predictor, _events(reader, recorded, predictor))
    events = islice(run_events, total - recorded.first)
    checks = GivenEvents(reader, stored.run, recorded.forecaster)
    if beginning is not None:
        _judge_given(
            verification, checks.of_run(), at_ms=verification.from_ms or 0, sequence=beginning.after
        )
    derived_steps = _derived(verification, recorded, predictor, events, checks, first_compared)
    computes = recorded.forecaster is not None or recorded.config.strategy.name not in EXACT
    for derived, stored_step in zip(derived_steps, rows, strict=True):
        if isinstance(derived.event, ModelChange):
            is_cut = bool(recorded.beginning and not derived.event.warm_from)
            elsewhere = (_cut(recorded) if is_cut else "") or differs(derived.event, here)
        if computes and elsewhere and not verification.elsewhere:
            verification.exact, verification.elsewhere = False, elsewhere
        if verification.steps % PROGRESS_STEPS == 0:
            progressed(verification.steps, total - recorded.first)
        verification.steps += 1
        if derived.sequence >= first_compared:
            _judge(verification, check, derived, stored_step, exact=not (computes and elsewhere))
    verification.taken = predictor.taken
    _add_causes(verification, stored, chain_problem)
    return verification


def _events(reader: Reader, recorded: RecordedRun, predictor: RecordedPredictor) -> Iterable[Event]:
    """Return the recorded events; declared columns are computed in blocks, and probed."""
    events, engine = predictor.events(reader, recorded.run.run_id), recorded.engine
    if not engine.has_columns or recorded.forecaster is not None:
        return events
    engine.probe_columns()
    return foreseen(events, engine)


def _add_causes(
    verification: Verification, stored: StoredRun, chain_problem: ChainProblem | None
) -> None:
    """Add the likely cause of all differences, and the difference of a broken chain."""
    if not verification.differences and chain_problem is None:
        return
    diagnosis = diagnose(stored, verification.differences, chain_problem, exact=verification.exact)
    verification.culprit, verification.to_blame = diagnosis.culprit, diagnosis.named
    verification.likely_cause = diagnosis.sentence
    if chain_problem is not None:
        at = "" if chain_problem.sequence is None else f" (step {chain_problem.sequence})"
        verification.add(verification.from_ms or 0, f"the chain{at}", "broken", "whole")


def _bounds(
    reader: Reader, stored: StoredRun, times_ms: tuple[int | None, int | None], commit: int | None
) -> tuple[int | None, int | None]:
    """Return the first requested step and the one after the last; None without such a bound."""
    if commit is not None:
        if (bounds := commit_at(reader.connection, stored.run_key, commit)) is None:
            raise DataInvalid(f"Run {stored.run.run_id} holds no commit with step {commit}.")
        return bounds[0], bounds[1] + 1
    from_ms, until_ms = times_ms
    first = None
    if from_ms is not None and (first := reader.step_opened(stored.run_key, from_ms)) is None:
        raise DataInvalid(f"Run {stored.run.run_id} has no bar at that time or later.")
    return first, None if until_ms is None else reader.steps_before(stored.run_key, until_ms)


def _cut(recorded: RecordedRun) -> str:
    """Return why a model that begins within a run cannot give equal bits; '' where it can."""
    if recorded.beginning is None or recorded.run.mode != "scan":
        return ""
    return f"the model's passes over known bars begin elsewhere, before step {recorded.first}"


def _judge_state(
    verification: Verification, reader: Reader, recorded: RecordedRun, first: int
) -> None:
    """Check the recorded state against fills and ledger, and note where the comparison begins.

    Only the chain covers what is stored before step *first*.
    """
    run_id, run = recorded.run.run_id, recorded.run
    run_key = reader.stored_run(run_id).run_key
    verification.from_ms, verification.chained = reader.decided_before(run_key, first)
    if recorded.beginning is None:
        return
    stored = reader.state_at(run_id, until=recorded.beginning.after)
    assert stored is not None, "an engine was given it"
    state, verification.state_step = stored
    try:
        check_state(reader, run, decode_state(state), verification.state_step)
    except InvariantBroken as error:
        what = f"states.state (step {verification.state_step})"
        verification.add(verification.from_ms or 0, what, "another", error)


def _judge_joint(verification: Verification, reader: Reader, run: RunRow) -> None:
    """Check the account that *run* took over against the run before, if this file holds it."""
    carried = None if run.account is None else CarriedAccount.read(run.account)
    verification.before = None if carried is None else carried.origin
    due = None if carried is None else carried.origin.run_id
    before = reader.before(run) if run.kind is RunKind.LIVE else None
    if before is not None:
        verification.is_before_here = True
        account = CarriedAccount.of(reader, before)
        # With other symbols a start leaves an account in which nothing is open.
        if account is not None and (account.is_of(run.instruments) or account.is_open):
            due = before.run_id
            if account.json() != run.account:
                verification.add(run.period_start_ms, "runs.account", "another", "that at its end")
    if run.parent_run_id != due:
        verification.add(run.period_start_ms, "runs.parent_run_id", run.parent_run_id, due)


def _judge_run(
    verification: Verification, reader: Reader, stored: StoredRun, recorded: RecordedRun
) -> None:
    """Check the run's own row against its configuration, its model and its first start."""
    run, config = stored.run, recorded.config
    model = recorded.forecaster
    due: dict[str, object] = {
        "config": config.canonical_json(),
        "config_sha256": config.sha256(),
        "strategy": config.strategy.name,
        "interval_ms": config.market.interval_ms,
        "gate_horizon": config.gate.horizon,
        "bucket_bars": BLOCK_BARS if model is None else model.bucket_bars,
        "sees_account": recorded.engine.sees_account,
        "model_id": "" if model is None else model.model_id,
        "model_sha256": "" if model is None else model.model_sha256,
    }
    due |= {name: value for name, _, value in of_start(run, model)}
    if starts := reader.of_type(run.run_id, ModelChange):
        due = {name: getattr(starts[0], name) for name in _START_FIELDS} | due
    due["strategy_sha256"] = strategy_sha256(config)
    wrong = [(name, getattr(run, name), value) for name, value in due.items()]
    wrong.append(("step_count", *reader.counted(run.run_id)))
    sets = recorded.engine.gate_sets
    wrong.append(("opened_gate_sets", stored.opened[-1], len(sets)))
    wrong.append(("gate_sets", reader.gate_sets(stored.run_key)[: len(sets)], sets))
    for name, stored_value, due_value in wrong:
        if stored_value != due_value:
            verification.add(run.period_start_ms, f"runs.{name}", stored_value, due_value)


def _derived(
    verification: Verification,
    recorded: RecordedRun,
    predictor: RecordedPredictor,
    events: Iterable[Event],
    checks: GivenEvents,
    first_compared: int,
) -> Iterator[Step]:
    """Yield the steps of *events*; from *first_compared* on, check the events themselves."""
    for unit in gathered(events):
        steps = steps_of(recorded.engine, unit, predictor.predict(unit))
        at = steps[0].sequence
        if isinstance(unit, Close):
            wrong_fields, at_ms = [*checks.of_close(unit)], unit.closed.open_time_ms
        else:
            wrong_fields, at_ms = [*checks.of(unit)], unit.market_ms
        if at >= first_compared:
            _judge_given(verification, wrong_fields, at_ms=at_ms, sequence=at)
        yield from steps


def _judge_given(
    verification: Verification, wrong_fields: Iterable[Unlike], *, at_ms: int, sequence: int
) -> None:
    """Add the fields of an event that contradict the rest of the record."""
    for name, stored, follows in wrong_fields:
        verification.add(at_ms, f"event.{name} (step {sequence})", stored, follows)


def _judge(
    verification: Verification, check: RowCheck, derived: Step, rows: StoredRows, *, exact: bool
) -> None:
    compared = check.compare(derived, rows, exact=exact)
    decided = derived.decision is not None
    verification.decisions += decided
    if not compared.unequal:
        verification.tolerated += decided and compared.rounded
        verification.agreed += decided and not compared.rounded
        return
    verification.differing += 1
    if len(verification.differences) >= DIFFERENCES_KEPT:
        return
    stored = check.stored(rows)
    event = stored.event
    instrument = event.instrument if isinstance(event, Bar) else ""
    opened = event.open_time_ms if isinstance(event, Bar) else event.market_ms
    # Where some numbers differ by rounding, only the columns show which one differs by more.
    fields = [] if compared.rounded else list(differences_of(stored, derived))
    fields = fields or [
        (name, shown(first), shown(second)) for name, first, second in compared.unequal
    ]
    for name, first, second in fields:
        verification.differences.append(
            Difference(instrument, opened, f"{name} (step {stored.sequence})", first, second)
        )


# ---------------------------------------------------------------- recorded events


class GivenEvents:
    """Checks the events of one run in their order."""

    def __init__(self, reader: Reader, run: RunRow, forecaster: Forecaster | None) -> None:
        self._run, self._forecaster = run, forecaster
        self._reader = reader
        self._keys = [item.id for item in run.instruments]
        self._calendars = calendars_of(sessions_of(run), run.interval_ms)

    def of_close(self, close: Close) -> Iterator[Unlike]:
        """Check a ``CloseStart`` against the bars that follow it."""
        names = [bar.instrument for bar in close.bars]
        absent = tuple(key for key in self._keys if key not in names)
        due = [key for key in self._keys if key in names]
        for name, stored, follows in (
            ("absent", close.closed.absent, absent),
            ("bars", names, due),
        ):
            if stored != follows:
                yield name, stored, follows
        for bar in close.bars:
            yield from self._in_session(bar)

    def of(self, event: Event) -> Iterator[Unlike]:
        """Check *event* against the rest of the record."""
        match event:
            case Bar():
                yield from self._in_session(event)
            case ModelChange():
                yield from of_start(event, self._forecaster)
            case Depths():
                try:  # also where no decision used them
                    books_in(event)
                except DataInvalid as error:
                    yield "books", str(error), "books that an exchange can show"
            case _:
                pass

    def _in_session(self, bar: Bar) -> Iterator[Unlike]:
        """Check that the *bar* of a share is one of its sessions, which the run holds."""
        if (calendar := self._calendars.get(bar.instrument)) is not None:
            place = calendar.place(bar.open_time_ms)
            opens, closes = int(calendar.opens[place]), int(calendar.closes[place])
            if (opens, closes) != (bar.open_time_ms, bar.closed_ms):
                due = f"{iso(opens)} to {iso(closes)}"
                yield "session", f"{iso(bar.open_time_ms)} to {iso(bar.closed_ms)}", due

    def of_run(self) -> Iterator[Unlike]:
        """Check the model of every start against that of the run.

        In a run derived from its start, ``of`` checks them event by event.
        """
        for start in self._reader.of_type(self._run.run_id, ModelChange):
            if start.model_sha256 != self._run.model_sha256:
                yield "model_sha256", start.model_sha256, self._run.model_sha256


def of_start(start: RunRow | ModelChange, forecaster: Forecaster | None) -> Iterator[Unlike]:
    """Check the environment in a start event against the model and its configuration."""
    due = start_event(forecaster, warm_from=(), market_ms=0)
    for name in _FIELDS_WITHOUT_MODEL if forecaster is None else ("threads",):
        if getattr(start, name) != getattr(due, name):
            yield name, getattr(start, name), getattr(due, name)
