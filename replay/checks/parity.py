"""``parity``: agreement of two runs, or of a day and its replay; settlements and published rates.

Decisions are aligned by instrument and open time, and compared by their identity. The comparison is
exact where both runs had the same mode and kind of device; else, and for batches, whose groups may
differ, it is field by field within 1e-4. Equity is compared once per close, at its last decided
bar. Differences that only time explains (a late bar, a stale quote, a missed deadline) are counted
separately. Where decisions depend on fills and the fill models differ, runs are compared up to the
first fill that differs.

The rules are docs/identity.md, I6, docs/operations.md, O21 to O24, and docs/money.md, M19 and M26.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import zip_longest
from pathlib import Path
from typing import Final, NamedTuple

from msgspec.structs import replace

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.commands.options import say
from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.session.parity import unchecked
from tracepaper.replay.archive.series import FundingRates
from tracepaper.replay.backtest.predictors import (
    ENVIRONMENT,
    differs,
    measures_agree,
    predictions_agree,
)
from tracepaper.replay.checks.compare import Difference, decision_differences, differences_of, shown
from tracepaper.replay.checks.identity import DecisionIdentity, decision_identity
from tracepaper.replay.checks.verify import Verification, verify_run
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.checks import StoredCheck, store_check
from tracepaper.storage.database.chunks import StoredRun
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid, TracepaperError
from tracepaper.strategies.gates.gate import GATES
from tracepaper.strategies.types.decisions import Decision, Fill, Forecast, RunRow, Step
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

_BAR: Final = ("bar open time", "bar open", "bar high", "bar low", "bar close", "bar volume")

Key = tuple[str, int]


@dataclass
class Parity:
    """The result of comparing two runs."""

    first: str
    second: str
    exact: bool  # whether every bit had to be equal, rather than fields within 1e-4
    compared: int = 0
    identical: int = 0
    within_tolerance: int = 0
    only_in_first: int = 0
    only_in_second: int = 0
    missing: int = 0  # those between the first and the last bar that both runs decided
    timing: dict[str, int] = field(default_factory=dict)  # explained by time, by gate
    differing: int = 0
    fills_compared: bool = False
    fills_differing: int = 0
    equity_differing: int = 0
    first_fill: str = ""  # the first fill that differs, where decisions depend on fills
    after_first_fill: int = 0  # decisions that may depend on it, which are not compared
    differences: list[Difference] = field(default_factory=list)

    @property
    def passes(self) -> bool:
        """Whether some decisions agree, and all differences are explained by time."""
        differs = self.differing or self.missing or self.fills_differing or self.equity_differing
        return self.identical + self.within_tolerance > 0 and not differs


class ComparedRun(NamedTuple):
    """One of the two runs: the open database, the run's id, and the bars to compare."""

    reader: Reader
    run_id: str
    open_ms: int | None = None  # only the bars that opened then; None: all

    @property
    def scales(self) -> dict[str, Instrument]:
        """The instruments by their ids."""
        return {item.id: item for item in self.reader.run(self.run_id).instruments}


class _DecidedStep(NamedTuple):
    """A decided step, and the instrument whose decimals it uses."""

    step: Step
    scale: Instrument

    @property
    def key(self) -> Key:
        """The instrument and the open time of its bar."""
        assert isinstance(self.step.event, Bar)
        return self.scale.id, self.step.event.open_time_ms

    @property
    def decision(self) -> Decision:
        """The decision."""
        assert self.step.decision is not None
        return self.step.decision

    @property
    def identity(self) -> DecisionIdentity:
        """The identity of the decision."""
        return decision_identity(self.step, self.scale)

    @property
    def fills(self) -> str:
        """The fills with their fees, without ids."""
        texts = (
            f"{_fill_text(fill, self.scale)} (fee {unscaled(fill.fee, MONEY_DECIMALS)})"
            for fill in self.step.fills
        )
        return ", ".join(texts) or "none"


def compare_runs(first: ComparedRun, second: ComparedRun) -> Parity:
    """Compare two runs; both databases stay open for reading.

    A bar that only one run decided is counted; it is a difference where both runs decided bars
    before and after it.
    """
    first_run, second_run = (each.reader.run(each.run_id) for each in (first, second))
    exact = _exact(first_run, second_run) and _scanned_alike(first_run, first, second)
    comparison = Parity(first.run_id, second.run_id, exact=exact)
    models = {restore(run.config).execution.model for run in (first_run, second_run)}
    comparison.fills_compared = len(models) == 1
    dependent = (
        first_run.sees_account or second_run.sees_account
    ) and not comparison.fills_compared
    apart = _first_fill_apart(first, second) if dependent else None
    apart_ms, comparison.first_fill = apart or (math.inf, "")
    others = {decided.key: decided for decided in _decided(second)}
    shared: set[Key] = set()
    alone: list[Key] = []
    # By open time: whether all bars of that close agree, and the last decided one.
    closes: dict[int, tuple[bool, _DecidedStep]] = {}
    for decided in _decided(first):
        key = decided.key
        other = others.get(key)
        if other is None:
            alone.append(key)
            continue
        shared.add(key)
        if decided.step.event.market_ms > apart_ms:
            comparison.after_first_fill += 1
            continue
        agreed, _ = closes.get(key[1], (True, decided))
        closes[key[1]] = _judge(comparison, decided, other) and agreed, decided
    if comparison.fills_compared:
        other_equity = {key[1]: other.step.account.equity for key, other in others.items()}
        for open_ms, (agreed, decided) in closes.items():
            equities = decided.step.account.equity, other_equity[open_ms]
            if agreed and equities[0] != equities[1]:
                comparison.equity_differing += 1
                first_text, second_text = (unscaled(equity, MONEY_DECIMALS) for equity in equities)
                _keep(comparison, decided.key, [("equity", first_text, second_text)])
    missed = sorted(others.keys() - shared)
    comparison.only_in_first, comparison.only_in_second = len(alone), len(missed)
    _count_holes(comparison, shared, alone, ("decided", "missing"))
    _count_holes(comparison, shared, missed, ("missing", "decided"))
    return comparison


def _first_fill_apart(first: ComparedRun, second: ComparedRun) -> tuple[int, str] | None:
    """Return time and text of the first fill that differs, or None; all decisions share a fill.

    Fills are compared in order for each instrument.
    """
    fills, other_fills = _filled(first), _filled(second)
    differing: list[tuple[int, str]] = []
    for key in fills.keys() | other_fills.keys():
        for pair in zip_longest(fills.get(key, ()), other_fills.get(key, ())):
            if pair[0] != pair[1]:
                at_ms = min(filled[0] for filled in pair if filled is not None)
                texts = ("none" if filled is None else filled[1] for filled in pair)
                both = "{} in the first and {} in the second".format(*texts)
                differing.append((at_ms, f"{key} at {iso(at_ms)}: {both}"))
                break
    return min(differing, default=None)


def _filled(source: ComparedRun) -> dict[str, list[tuple[int, str]]]:
    """Return time and text of the fills of the run's own account, by instrument, in order."""
    scales = source.scales
    fills: dict[str, list[tuple[int, str]]] = {}
    for step in source.reader.steps(source.run_id):
        for fill in step.fills:
            text = _fill_text(fill, scales[fill.instrument])
            fills.setdefault(fill.instrument, []).append((fill.filled_ms, text))
    return fills


def _fill_text(fill: Fill, scale: Instrument) -> str:
    quantity = unscaled(fill.quantity, scale.quantity_decimals)
    return f"{fill.side} {quantity} at {unscaled(fill.price, scale.price_decimals)}"


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
    # Holes come first, since later decisions may differ because of them.
    comparison.differences = [*holes, *comparison.differences][:DIFFERENCES_KEPT]


def _exact(first_run: RunRow, second_run: RunRow) -> bool:
    """Return whether the two runs' forecasts must be equal in every bit.

    Forecasts of a batch depend on its members, and two runs may have grouped a close differently.
    """
    if first_run.mode == "batched":
        return False
    # Without a model no library computed anything.
    names = [name for name in ENVIRONMENT if name != "libraries" or first_run.model_id]
    same_model = first_run.model_sha256 == second_run.model_sha256
    return same_model and not differs(first_run, second_run, names)


def _scanned_alike(run: RunRow, first: ComparedRun, second: ComparedRun) -> bool:
    """Return whether two runs with the mode of *run* started and resumed at the same bars.

    A scan processes known bars in chunks from each start on, and chunks that begin elsewhere round
    differently.
    """
    if run.mode != "scan":
        return True
    starts, other_starts = (
        [start.market_ms for start in source.reader.of_type(source.run_id, ModelChange)]
        for source in (first, second)
    )
    return starts == other_starts


def _decided(source: ComparedRun) -> Iterator[_DecidedStep]:
    scales = source.scales
    for step in source.reader.steps(source.run_id):
        if step.decision is None or not isinstance(step.event, Bar):
            continue
        if source.open_ms in {None, step.event.open_time_ms}:
            yield _DecidedStep(step, scales[step.event.instrument])


def _judge(comparison: Parity, first: _DecidedStep, second: _DecidedStep) -> bool:
    """Compare two steps of one bar; return whether their decisions agree."""
    comparison.compared += 1
    if first.identity == second.identity:
        comparison.identical += 1
    elif timing := _only_timing(first, second):
        comparison.timing[timing] = comparison.timing.get(timing, 0) + 1
        return False
    elif not comparison.exact and _within_tolerance(first, second):
        comparison.within_tolerance += 1
    else:
        comparison.differing += 1
        _keep(comparison, first.key, _fields(first, second))
        return False
    if comparison.fills_compared and first.fills != second.fills:
        comparison.fills_differing += 1
        _keep(comparison, first.key, [("fills", first.fills, second.fills)])
    return True


def _keep(comparison: Parity, key: Key, fields: list[tuple[str, str, str]]) -> None:
    for name, a, b in fields[:3]:
        if len(comparison.differences) < DIFFERENCES_KEPT:
            comparison.differences.append(Difference(*key, name, a, b))


def _only_timing(first: _DecidedStep, second: _DecidedStep) -> str:
    """Return the timing gate that refused only one of the two decisions; '' if none did."""
    a, b = first.decision, second.decision
    for this, that in ((a, b), (b, a)):
        refused = this.refused_by
        if refused is not None and GATES[refused].is_timing and that.refused_by != refused:
            return str(refused)
    targets = {each.identity.verdict.target for each in (first, second)}
    if len(targets) > 1 and a.action == b.action == "HOLD":
        return "held since a refusal by time"  # which left different targets
    return ""


def _within_tolerance(first: _DecidedStep, second: _DecidedStep) -> bool:
    """Return whether two steps decide the same on the same bar, with forecasts that agree.

    Targets may differ by one quantity step, since sizes that depend on forecasts are rounded to it.
    """
    a, b = first.decision, second.decision
    target, other = (each.identity.verdict.target for each in (first, second))
    if target is None or other is None:
        return False  # lists of orders must be identical
    step = max(
        Decimal(each.scale.quantity_step).scaleb(-each.scale.quantity_decimals)
        for each in (first, second)
    )
    return (
        (a.action, a.refused_by, a.regime) == (b.action, b.refused_by, b.regime)
        and abs(Decimal(target) - Decimal(other)) <= step
        and first.identity.bar == second.identity.bar
        and predictions_agree(first.step.prediction, second.step.prediction)
        and measures_agree(a, b)
    )


def _fields(first: _DecidedStep, second: _DecidedStep) -> list[tuple[str, str, str]]:
    """Return the fields in which two decisions differ, those of the bar first."""
    identity, other = first.identity, second.identity
    bars = zip(_BAR, identity.bar, other.bar, strict=True)
    fields = [(name, a, b) for name, a, b in bars if a != b]
    first_value, second_value = first.step.prediction, second.step.prediction
    if isinstance(first_value, Forecast) and isinstance(second_value, Forecast):
        fields += differences_of(first_value, second_value)
    targets = [each.verdict.target or "a list of orders" for each in (identity, other)]
    for name, a, b in decision_differences(first.decision, second.decision):
        if name != "target_quantity":
            fields.append((name, a, b))
        elif targets[0] != targets[1]:
            fields.append((name, targets[0], targets[1]))
    identities = zip(identity._fields, identity, other, strict=True)
    return fields or [(name, shown(a), shown(b)) for name, a, b in identities if a != b]


# ---------------------------------------------------------------- a span of one run


def check_span(
    reader: Reader,
    database: Path,
    run_id: str,
    *,
    from_ms: int | None = None,
    until_ms: int | None = None,
) -> ParityCheck:
    """Replay the bars of *run_id* that opened within a span from the run's record.

    Every stored value of these steps is compared (``verify_run``), beginning with the record's
    state. Without bounds all decided bars are replayed. The result also says if a check was
    impossible.
    """
    run = reader.run(run_id)
    run_key = reader.stored_run(run_id).run_key
    decided = reader.decided_within(run_key, from_ms, until_ms)
    if decided is None:
        at_ms = run.period_start_ms
        span = at_ms if from_ms is None else from_ms, at_ms if until_ms is None else until_ms
        return unchecked(*span, f"run {run_id} decided no bar of it")
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
            from_start=run.mode == "scan",  # its passes round the same only from the start
        )
    except TracepaperError as error:
        return unchecked(*span, str(error))
    bounds = max(decided[0], verification.from_ms or 0), decided[1] + run.interval_ms
    part = ""
    if from_ms is not None and until_ms is not None:
        part = f" of {_span_text(from_ms, until_ms, *bounds)}"
    return _check_of(verification, span, part)


def check_of_run(reader: Reader, verification: Verification) -> ParityCheck:
    """Return the *verification* of a whole run as a ``ParityCheck``."""
    run, run_key = reader.run(verification.run_id), reader.stored_run(verification.run_id).run_key
    first, last = reader.decided_within(run_key, None, None) or (run.period_start_ms,) * 2
    return _check_of(verification, (verification.from_ms or first, last + run.interval_ms))


def _check_of(verification: Verification, span: tuple[int, int], part: str = "") -> ParityCheck:
    """Return a *verification* of the bars within *span* as a ``ParityCheck``.

    *part* names the span in the sentence, where that is not the whole run.
    """
    run_id = verification.run_id
    if not verification.decisions and not verification.differing:
        return unchecked(*span, f"run {run_id} holds no decision{part} that can be derived")
    sentence = f"identical {verification.agreed} of {verification.decisions} decisions{part}"
    if verification.tolerated:
        sentence += f", {verification.tolerated} more within 1e-4, since {verification.elsewhere}"
    check = ParityCheck(
        ParityOutcome.IDENTICAL,
        sentence,
        *span,
        verification.decisions,
        verification.agreed,
        verification.tolerated,
    )
    return check if verification.passes else _with_difference(check, verification)


def check_whole(database: Path, run_id: str, kind: str) -> ParityCheck:
    """Replay all decisions of *run_id* from its record, and store the result under *kind*.

    This may take half a minute.
    """
    with Reader.open(database) as reader:
        checked = reader.stored_run(run_id)
        check = check_span(reader, database, run_id)
    keep_check(database, checked, kind, check)
    return check


def keep_check(database: Path, checked: StoredRun, kind: str, result: ParityCheck) -> None:
    """Store the result of a check beside the record; print on stderr why it cannot be stored."""
    reason = store_check(database, checked, StoredCheck(kind, SystemClock().wall_ms(), result))
    if reason:
        say(f"The result is not stored: {reason}", err=True)


def last_day(reader: Reader, run_id: str) -> int | None:
    """Return the start of the last complete UTC day of *run_id*; None where it has none.

    With bars longer than a day it is the day in which the last of them opened.
    """
    columns = RunColumns(reader, run_id)
    decided = reader.decided_within(columns.run_key, None, None)
    if decided is None:
        return None
    if columns.interval_ms > DAY_MS:
        return decided[1] // DAY_MS * DAY_MS
    from_ms = columns.times.close_ms(decided[1]) // DAY_MS * DAY_MS - DAY_MS
    return None if from_ms + DAY_MS <= decided[0] else from_ms


def _with_difference(check: ParityCheck, verification: Verification) -> ParityCheck:
    """Return *check* with the first difference of *verification* and its cause."""
    first = verification.differences[0]
    at = f"{first.instrument} {minute_text(first.open_time_ms)}" if first.instrument else ""
    stored, replayed = (
        visible(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
        for text in (first.first, first.second)
    )
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


def _span_text(from_ms: int, until_ms: int, first_ms: int, end_ms: int) -> str:
    """Return a day as text, with the decided part of it where that is not all; or a bar."""
    if until_ms - from_ms < DAY_MS:
        return f"the bar of {minute_text(from_ms)}"
    text = day_text(from_ms)
    if first_ms > from_ms:
        text += f", from {minute_text(first_ms)[11:]} on"
    if end_ms < until_ms:
        text += f", until {minute_text(end_ms)[11:]}"
    return text


class UnequalRate(NamedTuple):
    """A settlement whose rates differ, in 10⁻¹⁰; None where not booked or not published."""

    market_ms: int
    booked: int | None
    published: int | None


@dataclass(frozen=True)
class FundingCheck:
    """A run's booked funding of one instrument, compared with the published; times are UTC ms."""

    instrument: str
    published: int  # settlements of the history within the run's time
    booked: int  # those that the run booked at the published rate
    differing: tuple[UnequalRate, ...]  # within the time of the history

    @property
    def passes(self) -> bool:
        """Whether exactly the published settlements were booked."""
        return not self.differing


def check_funding(reader: Reader, run_id: str, rates: FundingRates) -> FundingCheck:
    """Compare the settlements of *run_id* with the history *rates* of one of its instruments.

    A repeated settlement is booked once. Raises ``DataInvalid`` where the run does not trade the
    instrument, or the history does not cover its time.
    """
    columns, key = RunColumns(reader, run_id), rates.instrument
    if key not in columns.instruments:
        traded = ", ".join(columns.instruments)
        raise DataInvalid(f"{rates.path} is of {key}, and run {run_id} trades {traded}.")
    begun_ms = columns.run.period_start_ms
    _, until_ms = columns.bounds_ms(key) or (0, begun_ms)
    published = {
        at: rate
        for at, rate in zip(rates.time_ms.tolist(), rates.rate.tolist(), strict=True)
        if begun_ms < at <= until_ms
    }
    if not published:
        raise DataInvalid(
            f"{rates.path} has no settlement within the time of run {run_id}: give the history of "
            "that time."
        )
    settled, _ = columns.settled()
    first_ms, last_ms = min(published), max(published)
    booked = {at: int(rate) for at, rate in settled[key].items() if first_ms <= at <= last_ms}
    times = sorted(booked.keys() | published.keys())
    rows = [UnequalRate(at, booked.get(at), published.get(at)) for at in times]
    differing = tuple(row for row in rows if row.booked != row.published)
    return FundingCheck(key, len(published), len(rows) - len(differing), differing)
