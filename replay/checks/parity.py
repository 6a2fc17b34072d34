"""``parity``: agreement of two runs, or of a day and its replay; settlements and published rates.

Decisions are aligned by instrument and open time and compared by what identifies them, exactly
where both runs went the same way over the same kind of device; elsewhere, and where bars were
batched, whose groups may differ, field by field within 1e-4. Equity is compared once a close, when
the last of its bars is decided. What only time explains (a late bar, a stale quote, a missed
deadline) is counted apart. Runs whose decisions depend on fills are compared, where these were
filled by other models, up to the first fill that differs.

The rules are docs/identity.md, I6, docs/operations.md, O21 to O24, and docs/money.md, M19 and M26.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Final

import numpy as np
from msgspec.structs import replace

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.commands.options import say
from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.session.parity import unchecked
from tracepaper.daemon.session.run_row import sessions_of
from tracepaper.replay.archive.series import FundingRates
from tracepaper.replay.backtest.predictors import Environment, measures_agree, predictions_agree
from tracepaper.replay.checks.compare import (
    Difference,
    decision_differences,
    differences_of,
    shown,
)
from tracepaper.replay.checks.identity import decision_identity, scale_factor
from tracepaper.replay.checks.verify import Verification, verify_run
from tracepaper.storage.checks import CheckedRun, StoredCheck, store_check
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.strategies.errors import DataInvalid, TracepaperError
from tracepaper.strategies.gates.gate import GATES
from tracepaper.strategies.sessions import Calendar, closes_of
from tracepaper.strategies.types.decisions import Decision, Fill, Forecast, Run, Step
from tracepaper.strategies.types.market import (
    Bar,
    Instrument,
    ModelChange,
    ParityCheck,
    ParityOutcome,
)
from tracepaper.strategies.units import (
    DAY_MS,
    MONEY_DECIMALS,
    day_text,
    iso,
    minute_text,
    unscaled,
    visible,
)

DIFFERENCES_KEPT: Final = 20
SHOWN: Final = 60
"""Characters of a differing value that a sentence shows."""

_PRICES: Final = ("open", "high", "low", "close")

Key = tuple[str, int]


@dataclass
class Parity:
    """What comparing two runs found."""

    first: str
    second: str
    exact: bool  # whether every bit was compared, rather than fields within the tolerance
    compared: int = 0
    identical: int = 0
    within_tolerance: int = 0
    only_in_first: int = 0
    only_in_second: int = 0
    missing: int = 0  # of those: between the first and the last bar that both runs decided
    timing: dict[str, int] = field(default_factory=dict)  # how many differ only in time, by gate
    differing: int = 0
    fills_compared: bool = False
    fills_differing: int = 0
    equity_differing: int = 0
    first_fill: str = ""  # the first that differs, where decisions depend on fills
    after_first_fill: int = 0  # decisions that may differ for it, and are not compared
    differences: list[Difference] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether something agrees, and nothing differs but for what only time explains."""
        differs = self.differing or self.missing or self.fills_differing or self.equity_differing
        return self.identical + self.within_tolerance > 0 and not differs


@dataclass(frozen=True)
class ComparedRun:
    """One of the two runs: the open database and the run's id."""

    reader: Reader
    run_id: str


def compare_runs(first: ComparedRun, second: ComparedRun) -> Parity:
    """Compare two runs; both databases stay open for reading.

    A bar that only one of them decided is counted, and is a difference where both runs decided
    bars before and after it.
    """
    first_run, second_run = first.reader.run(first.run_id), second.reader.run(second.run_id)
    exact = _exact(first_run, second_run) and _scanned_alike(first_run, first, second)
    comparison = Parity(first.run_id, second.run_id, exact=exact)
    comparison.fills_compared = _execution(first_run) == _execution(second_run)
    dependent = (
        first_run.sees_account or second_run.sees_account
    ) and not comparison.fills_compared
    after = _after_first_fill(comparison, first, second) if dependent else frozenset()
    others = {_key(step): step for step in _decided(second)}
    shared: set[Key] = set()
    alone: list[Key] = []
    agreed: dict[int, bool] = {}  # by open time: whether all bars of that close agree
    equities: dict[int, int] = {}  # by open time: after its last bar
    last: dict[int, Key] = {}  # by open time: the bar that was decided last
    for step in _decided(first):
        key = _key(step)
        other = others.get(key)
        if other is None:
            alone.append(key)
            continue
        shared.add(key)
        if key in after:
            comparison.after_first_fill += 1
            continue
        agrees = _judge(comparison, step, other, key, _scales(first_run), _scales(second_run))
        agreed[key[1]] = agreed.get(key[1], True) and agrees
        last[key[1]] = key
        equities[key[1]] = step.account.equity
    if comparison.fills_compared:
        theirs = {key[1]: step.account.equity for key, step in others.items()}
        for open_ms, key in last.items():
            if agreed[open_ms] and equities[open_ms] != theirs[open_ms]:
                comparison.equity_differing += 1
                texts = (unscaled(of[open_ms], MONEY_DECIMALS) for of in (equities, theirs))
                _keep(comparison, key, [("equity", next(texts), next(texts))])
    missed = sorted(others.keys() - shared)
    comparison.only_in_first, comparison.only_in_second = len(alone), len(missed)
    _count_holes(comparison, shared, alone, ("decided", "missing"))
    _count_holes(comparison, shared, missed, ("missing", "decided"))
    return comparison


def _after_first_fill(
    comparison: Parity, first: ComparedRun, second: ComparedRun
) -> frozenset[Key]:
    """Name the first fill that differs; return the bars that either run decided knowing it.

    Fills are compared one by one for each instrument. A fill is known to the decisions of its own
    step and of all later ones, of every instrument, for all of them share one account.
    """
    ours, theirs = _filled(first), _filled(second)
    differing: list[tuple[int, str]] = []
    known_from: list[list[int]] = [[], []]
    for key in sorted(ours.keys() | theirs.keys()):
        for fill, other in zip_longest(ours.get(key, ()), theirs.get(key, ())):
            if fill is not None and other is not None and fill[1:] == other[1:]:
                continue
            for side, filled in enumerate((fill, other)):
                known_from[side] += [] if filled is None else [filled[0]]
            at_ms = min(filled[1] for filled in (fill, other) if filled is not None)
            texts = ["none" if filled is None else filled[2] for filled in (fill, other)]
            fills = f"{texts[0]} in the first and {texts[1]} in the second"
            differing.append((at_ms, f"{key} at {iso(at_ms)}: {fills}"))
            break
    if not differing:
        return frozenset()
    comparison.first_fill = min(differing)[1]
    bars: set[Key] = set()
    for run, sequences in zip((first, second), known_from, strict=True):
        if sequences:
            start = min(sequences)
            bars.update(_key(step) for step in _decided(run) if step.sequence >= start)
    return frozenset(bars)


_Filled = tuple[int, int, str]
"""The sequence of its step, its time, and side with exact quantity and price of a fill."""


def _filled(source: ComparedRun) -> dict[str, list[_Filled]]:
    """Return the fills of the run's own account, by instrument, in order."""
    scales = _scales(source.reader.run(source.run_id))
    fills: dict[str, list[_Filled]] = {}
    for step in source.reader.steps(source.run_id):
        for fill in step.fills:
            item = scales[fill.instrument]
            fills.setdefault(fill.instrument, []).append(
                (step.sequence, fill.filled_ms, _fill_text(fill, item))
            )
    return fills


def _fill_text(fill: Fill, scale: Instrument) -> str:
    quantity = unscaled(fill.quantity, scale.quantity_decimals)
    return f"{fill.side} {quantity} at {unscaled(fill.price, scale.price_decimals)}"


def _fills_text(step: Step, scale: Instrument) -> str:
    texts = (
        f"{_fill_text(fill, scale)} (fee {unscaled(fill.fee, MONEY_DECIMALS)})"
        for fill in step.fills
    )
    return ", ".join(texts) or "none"


def _count_holes(
    comparison: Parity, shared: Collection[Key], alone: Sequence[Key], words: tuple[str, str]
) -> None:
    """Count the bars *alone* in one run that lie between bars *shared* by both."""
    times: dict[str, list[int]] = {}
    for instrument, open_ms in shared:
        times.setdefault(instrument, []).append(open_ms)
    spans = {instrument: (min(opens), max(opens)) for instrument, opens in times.items()}
    holes = [
        Difference(instrument, open_ms, "the bar", *words)
        for instrument, open_ms in alone
        if instrument in spans and spans[instrument][0] < open_ms < spans[instrument][1]
    ]
    comparison.missing += len(holes)
    # First of all: what is decided after a hole may differ for it.
    comparison.differences = [*holes, *comparison.differences][:DIFFERENCES_KEPT]


def _exact(first_run: Run, second_run: Run) -> bool:
    """Return whether every bit of the two runs' forecasts must be equal.

    Those of a batch depend on its members, and two runs may have gathered a close differently.
    """
    if first_run.mode == "batched":
        return False
    here, there = Environment.recorded(first_run), Environment.recorded(second_run)
    if not first_run.model_id:  # nothing was computed by them
        here, there = here._replace(libraries=""), there._replace(libraries="")
    return here == there and first_run.model_sha256 == second_run.model_sha256


def _scanned_alike(run: Run, first: ComparedRun, second: ComparedRun) -> bool:
    """Return whether two runs like *run* began and went on at the same bars.

    A scan takes known bars in chunks from each start on, and a chunk that begins elsewhere rounds
    otherwise.
    """
    if run.mode != "scan":
        return True
    starts, other_starts = (
        [start.market_ms for start in source.reader.of_type(source.run_id, ModelChange)]
        for source in (first, second)
    )
    return starts == other_starts


def _execution(run: Run) -> str:
    return restore(run.config).execution.model


def _scales(run: Run) -> dict[str, Instrument]:
    return {item.id: item for item in run.instruments}


def _decided(source: ComparedRun) -> Iterator[Step]:
    for step in source.reader.steps(source.run_id):
        if step.decision is not None:
            yield step


def _key(step: Step) -> Key:
    assert isinstance(step.event, Bar)
    return step.event.instrument, step.event.open_time_ms


def _judge(
    comparison: Parity,
    first_step: Step,
    second_step: Step,
    key: Key,
    first_scales: dict[str, Instrument],
    second_scales: dict[str, Instrument],
) -> bool:
    """Compare two steps of one bar; return whether their decisions agree."""
    assert first_step.decision is not None
    assert second_step.decision is not None
    scale = first_scales[key[0]], second_scales[key[0]]
    comparison.compared += 1
    if decision_identity(first_step, scale[0]) == decision_identity(second_step, scale[1]):
        comparison.identical += 1
    elif timing := _only_timing(first_step.decision, second_step.decision, *scale):
        comparison.timing[timing] = comparison.timing.get(timing, 0) + 1
        return False
    elif not comparison.exact and _within_tolerance(first_step, second_step, *scale):
        comparison.within_tolerance += 1
    else:
        comparison.differing += 1
        _keep(comparison, key, _fields(first_step, second_step, *scale))
        return False
    if comparison.fills_compared and not _same_fills(first_step, second_step, *scale):
        comparison.fills_differing += 1
        fills = _fills_text(first_step, scale[0]), _fills_text(second_step, scale[1])
        _keep(comparison, key, [("fills", *fills)])
    return True


def _keep(comparison: Parity, key: Key, fields: list[tuple[str, str, str]]) -> None:
    for name, a, b in fields[:3]:
        if len(comparison.differences) < DIFFERENCES_KEPT:
            comparison.differences.append(Difference(*key, name, a, b))


def _only_timing(
    first_decision: Decision, second_decision: Decision, first: Instrument, second: Instrument
) -> str:
    """Return the timing gate that refused one of the two and not the other, if that is all."""
    for this, that in ((first_decision, second_decision), (second_decision, first_decision)):
        refused = this.refused_by
        if refused is not None and GATES[refused].is_timing and that.refused_by != refused:
            return str(refused)
    same = _target(first_decision, first) == _target(second_decision, second)
    if not same and first_decision.action == second_decision.action == "HOLD":
        return "held since a refusal by time"  # which left another target standing
    return ""


def _target(decision: Decision, scale: Instrument) -> int | None:
    """Return the target at the one scale on which runs of other decimals meet."""
    if decision.target_quantity is None:
        return None
    return decision.target_quantity * scale_factor(scale.quantity_decimals)


def _within_tolerance(
    first_step: Step, second_step: Step, first: Instrument, second: Instrument
) -> bool:
    """Return whether two steps decide the same on the same bar, by forecasts that agree.

    A target may differ by a step of the quantity, to which a size by the forecast is rounded.
    """
    a, b = first_step.decision, second_step.decision
    assert a is not None
    assert b is not None
    same = (a.action, a.refused_by, a.regime) == (b.action, b.refused_by, b.regime)
    step = max(
        item.quantity_step * scale_factor(item.quantity_decimals) for item in (first, second)
    )
    wanted, other = _target(a, first), _target(b, second)
    if wanted is None or other is None:
        return False  # lists of orders are the same or they are not, and these were not
    same &= abs(wanted - other) <= step
    same &= not _bar_fields(first_step, second_step, first, second)
    return (
        same
        and predictions_agree(first_step.prediction, second_step.prediction)
        and measures_agree(a, b)
    )


def _bar_fields(
    first_step: Step, second_step: Step, first: Instrument, second: Instrument
) -> list[tuple[str, str, str]]:
    """Return the fields in which two bars differ as exact numbers, whatever their decimals."""
    a, b = first_step.event, second_step.event
    decimals = [
        *((name, first.price_decimals, second.price_decimals) for name in _PRICES),
        ("volume", first.volume_decimals, second.volume_decimals),
    ]
    texts = [
        (f"bar {name}", unscaled(getattr(a, name), mine), unscaled(getattr(b, name), theirs))
        for name, mine, theirs in decimals
    ]
    return [text for text in texts if text[1] != text[2]]


def _fields(
    first_step: Step, second_step: Step, first: Instrument, second: Instrument
) -> list[tuple[str, str, str]]:
    """Return the fields in which two decisions differ, the bar's own first."""
    fields = _bar_fields(first_step, second_step, first, second)
    if isinstance(first_step.prediction, Forecast) and isinstance(second_step.prediction, Forecast):
        fields += list(differences_of(first_step.prediction, second_step.prediction))
    if first_step.decision is not None and second_step.decision is not None:
        a, b = first_step.decision, second_step.decision
        for name, mine, theirs in decision_differences(a, b):
            if name != "target_quantity":
                fields.append((name, mine, theirs))
            elif _target(a, first) != _target(b, second):
                wanted = ((a.target_quantity, first), (b.target_quantity, second))
                texts = [
                    "a list of orders"
                    if target is None
                    else unscaled(target, scale.quantity_decimals)
                    for target, scale in wanted
                ]
                fields.append((name, texts[0], texts[1]))
    return fields or _identity_fields(first_step, second_step, first, second)


def _identity_fields(
    first_step: Step, second_step: Step, first: Instrument, second: Instrument
) -> list[tuple[str, str, str]]:
    """Return which parts of the identities of two decisions differ."""
    mine, theirs = decision_identity(first_step, first), decision_identity(second_step, second)
    return [
        (name, shown(a), shown(b))
        for name, a, b in zip(mine._fields, mine, theirs, strict=True)
        if a != b
    ]


def _same_fills(first_step: Step, second_step: Step, first: Instrument, second: Instrument) -> bool:
    """Return whether two steps have the same fills, ids apart, whatever their decimals."""

    def plain(step: Step, scale: Instrument) -> list[tuple[object, ...]]:
        price, quantity = 10**scale.price_decimals, 10**scale.quantity_decimals
        return [
            (fill.side, fill.price * 10**18 // price, fill.quantity * 10**18 // quantity, fill.fee)
            for fill in step.fills
        ]

    return plain(first_step, first) == plain(second_step, second)


# ---------------------------------------------------------------- a span of one run


def check_span(
    reader: Reader,
    database: Path,
    run_id: str,
    *,
    from_ms: int | None = None,
    until_ms: int | None = None,
) -> ParityCheck:
    """Replay the bars of *run_id* that opened within a span from the run's own record.

    Every stored value of these steps is compared (``verify_run``); the state before the first of
    them is the record's. Without bounds all that the run decided is replayed. What cannot be is an
    outcome too.
    """
    run = reader.run(run_id)
    run_key = reader.stored_run(run_id).run_key
    decided = reader.decided_within(run_key, from_ms, until_ms)
    if decided is None:
        at_ms = run.period_start_ms
        span = at_ms if from_ms is None else from_ms, at_ms if until_ms is None else until_ms
        cut = " that it still holds: it was pruned" * (reader.pruned(run_key) is not None)
        return unchecked(*span, f"run {run_id} decided no bar of it{cut}")
    span = (
        decided[0] if from_ms is None else from_ms,
        decided[1] + run.interval_ms if until_ms is None else until_ms,
    )
    try:
        verification = verify_run(
            reader,
            database,
            run_id,
            from_ms=from_ms,
            until_ms=until_ms,
            from_start=run.mode == "scan",  # its passes over known bars have their bits only so
        )
    except TracepaperError as error:
        return unchecked(*span, str(error))
    if not verification.decisions and not verification.differing:
        return unchecked(*span, f"run {run_id} holds less of it than its decisions look back on")
    bounds = max(decided[0], verification.from_ms or 0), decided[1] + run.interval_ms
    sentence = f"identical {verification.agreed} of {verification.decisions} decisions"
    if from_ms is not None and until_ms is not None:
        sentence += f" of {_span_text(from_ms, until_ms, *bounds)}"
    if verification.tolerated:
        sentence += f", {verification.tolerated} more within 1e-4, since {verification.elsewhere}"
    return _check_of(verification, sentence, span)


def check_of_run(reader: Reader, verification: Verification) -> ParityCheck:
    """Return the *verification* of a whole run as a comparison with its replay."""
    run = reader.run(verification.run_id)
    decided = reader.decided_within(reader.stored_run(verification.run_id).run_key, None, None)
    first, last = (run.period_start_ms,) * 2 if decided is None else decided
    span = first if verification.from_ms is None else verification.from_ms, last + run.interval_ms
    if not verification.decisions and not verification.differing:
        return unchecked(
            *span, f"run {verification.run_id} has decided nothing that could be compared"
        )
    return _check_of(
        verification, f"identical {verification.agreed} of {verification.decisions} decisions", span
    )


def _check_of(verification: Verification, sentence: str, span: tuple[int, int]) -> ParityCheck:
    check = ParityCheck(
        ParityOutcome.IDENTICAL,
        sentence,
        *span,
        verification.decisions,
        verification.agreed,
        verification.tolerated,
    )
    return check if verification.holds else _with_difference(check, verification)


def check_whole(database: Path, run_id: str, kind: str) -> ParityCheck:
    """Replay all that *run_id* decided from its record, and store the result as one of *kind*.

    This may take half a minute.
    """
    with Reader.open(database) as reader:
        checked = CheckedRun.of(reader, run_id)
        check = check_span(reader, database, run_id)
    keep_check(database, checked, kind, check)
    return check


def keep_check(database: Path, checked: CheckedRun, kind: str, result: ParityCheck) -> None:
    """Store what a check found beside the record; say on stderr where it cannot be stored."""
    reason = store_check(database, checked, StoredCheck(kind, SystemClock().wall_ms(), result))
    if reason:
        say(f"The result is not stored: {reason}", err=True)


def last_day(reader: Reader, run_id: str) -> int | None:
    """Return when the last UTC day began that *run_id* has gone through; None where it has none.

    Of bars that are longer than a day it is the one in which the last of them opened.
    """
    run = reader.run(run_id)
    decided = reader.decided_within(reader.stored_run(run_id).run_key, None, None)
    if decided is None:
        return None
    if run.interval_ms > DAY_MS:
        return decided[1] // DAY_MS * DAY_MS
    from_ms = _close_ms(run, decided[1]) // DAY_MS * DAY_MS - DAY_MS
    return None if from_ms + DAY_MS <= decided[0] else from_ms


def _close_ms(run: Run, open_ms: int) -> int:
    """Return when the bar of *run* closes that opens at *open_ms*."""
    sessions = sessions_of(run)
    calendar = None if sessions is None else Calendar(sessions, run.interval_ms)
    return int(closes_of(np.array([open_ms]), run.interval_ms, calendar)[0])


def _with_difference(check: ParityCheck, verification: Verification) -> ParityCheck:
    """Return *check* with the first difference of *verification*, and its culprit."""
    first = verification.differences[0]
    at = f"{first.instrument} {minute_text(first.open_time_ms)}" if first.instrument else ""
    stored, replayed = map(_shown, (first.first, first.second))
    sentence = (
        f"{check.reason}; first difference{at and f' at {at}'}: {first.field} is {stored} in the "
        f"record and {replayed} in its replay; {verification.to_blame} is to blame: "
        f"{verification.likely_cause}"
    )
    return replace(
        check,
        outcome=ParityOutcome.DIFFERENT,
        reason=sentence,
        differs_at=at,
        field=first.field,
        stored=stored,
        replayed=replayed,
        culprit="" if verification.culprit is None else verification.culprit.value,
    )


def _shown(text: str) -> str:
    return visible(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def _span_text(from_ms: int, until_ms: int, first_ms: int, end_ms: int) -> str:
    """Name a day, and which part of it was decided where that is not all of it."""
    text = day_text(from_ms)
    if first_ms > from_ms:
        text += f", from {minute_text(first_ms)[11:]} on"
    if end_ms < until_ms:
        text += f", until {minute_text(end_ms)[11:]}"
    return text


@dataclass(frozen=True)
class FundingCheck:
    """What a run booked of one instrument beside what was published; times are UTC ms."""

    instrument: str
    published: int  # settlements of the history that fall into the run
    booked: int  # of those, how many the run booked at the published rate
    differing: tuple[tuple[int, int, int], ...]  # time, booked and published rate in 10⁻¹⁰
    missing: tuple[int, ...]  # published and not booked
    unpublished: tuple[int, ...]  # booked and not published, within the history's own time

    @property
    def holds(self) -> bool:
        """Whether exactly what was published is what was booked."""
        return not (self.differing or self.missing or self.unpublished)


def check_funding(reader: Reader, run_id: str, rates: FundingRates) -> FundingCheck:
    """Compare the settlements of *run_id* with the history *rates* of one of its instruments.

    A settlement that came twice is booked once. Raises ``DataInvalid`` where the run trades no
    such instrument, or the history does not reach into its time.
    """
    views = RunViews(reader.connection, run_id)
    run = reader.stored_run(run_id).run
    key = rates.instrument
    if key not in {item.id for item in run.instruments}:
        traded = ", ".join(item.id for item in run.instruments)
        raise DataInvalid(f"{rates.path} is of {key}, and run {run_id} trades {traded}.")
    bars = views.rows("v_bars", newest=1, instrument=key)
    from_ms = run.period_start_ms
    until_ms = _close_ms(run, bars[0]["open_time_ms"]) if bars else from_ms
    published = {
        at: rate
        for at, rate in zip(rates.time_ms.tolist(), rates.rate.tolist(), strict=True)
        if from_ms < at <= until_ms
    }
    if not published:
        raise DataInvalid(
            f"{rates.path} has no settlement within the time of run {run_id}: give the history of "
            "that time."
        )
    booked: dict[int, int] = {}
    for row in views.rows("v_events", kind="funding", instrument=key):
        booked.setdefault(row["market_ms"], json.loads(row["content"])["rate"])
    shared = sorted(booked.keys() & published.keys())
    return FundingCheck(
        key,
        len(published),
        sum(booked[at] == published[at] for at in shared),
        tuple((at, booked[at], published[at]) for at in shared if booked[at] != published[at]),
        tuple(sorted(published.keys() - booked.keys())),
        tuple(
            at
            for at in sorted(booked.keys() - published.keys())
            if min(published) < at < max(published)
        ),
    )
