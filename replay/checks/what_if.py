"""Compares a recorded run with its changed form, or two runs, decision by decision.

The rule is docs/identity.md, I21.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tracepaper.daemon.session.run_row import is_this_code
from tracepaper.replay.backtest.effects import sentence_on
from tracepaper.replay.checks.changed_run import ChangedRun
from tracepaper.replay.checks.decision_log import (
    DecidedRun,
    DecisionLog,
    Verdict,
    recorded_decisions,
)
from tracepaper.replay.checks.waiting import waiting_of
from tracepaper.replay.document.values import (
    Cells,
    Estimate,
    Figure,
    Paragraph,
    Part,
    Table,
    TitledParts,
    documents,
    of_row,
    table,
)
from tracepaper.replay.report import metrics
from tracepaper.replay.run_columns import Floats, Ints, RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_rows import Columns
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.sessions import Calendar
from tracepaper.strategies.types.market import Instrument
from tracepaper.strategies.units import MONEY_SCALE, count_of, iso

CHANGES_KEPT: Final = 100
"""Changes that are listed, each at its first bar; all changed decisions are counted."""
ACCOUNTS: Final = (
    of_row("account", "account", "text"),
    of_row("profit", "profit", "gain"),
    of_row("mean_day", "a day, bp", "gain bp"),
    of_row("max_drawdown", "drawdown", "percent"),
    of_row("fees_paid", "fees", "money"),
    of_row("fills", "fills", "count"),
)
CAUSES: Final = (of_row("why", "why", "text"), of_row("decisions", "decisions", "count"))
_JUDGED: Final = ("target_quantity", "instrument")
DERIVED: Final = ("as recorded", "what if")


@dataclass(frozen=True)
class Comparison:
    """Two runs over the bars that both decided: ``changed`` of the ``decisions`` differ."""

    run_id: str  # of the first
    change: tuple[str, ...]
    names: tuple[str, str]
    decisions: int
    changed: int
    moved: int  # changed decisions with another target
    from_ms: int  # open time of the first compared bar
    until_ms: int  # close of the last
    accounts: tuple[Cells, ...]  # of the first, of the second, the difference
    causes: tuple[Cells, ...]  # the most frequent first
    changes: tuple[Cells, ...]  # the first ``CHANGES_KEPT``
    notes: tuple[str, ...]
    instruments: int  # of the first run
    chosen: tuple[Cells, ...] = ()  # the decision that was asked for, changed or not


def what_if(changed: ChangedRun, sequence: int | None = None) -> Comparison:
    """Derive *changed*, and compare each of its decisions with the record's.

    The decision *sequence* is listed also if it did not change. Raises ``DataInvalid`` if it is not
    among those compared.
    """
    codes: dict[Verdict, int] = {}
    log = DecisionLog(float(changed.config.account.cash), codes)
    columns = RunColumns(changed.reader, changed.stored.run.run_id)
    rows = columns.rows.decided()
    changed.derive(log, waiting_of(changed, columns, rows, log))
    stored = recorded_decisions(changed.reader, columns, codes, rows)
    notes = tuple(_notes(changed))
    both = stored, log.decided()
    return _compared(columns, both, list(codes), changed.words, DERIVED, notes, sequence)


def compare_recorded(
    left: tuple[Reader, RunColumns], right: tuple[Reader, RunColumns], names: tuple[str, str]
) -> Comparison:
    """Compare the decisions of two recorded runs under the given *names*.

    Raises ``DataInvalid`` where no bar was decided in both.
    """
    codes: dict[Verdict, int] = {}
    (reader, columns), (_, other) = left, right
    stored, second = recorded_decisions(reader, columns, codes), recorded_decisions(*right, codes)
    places = dict(zip(columns.instruments, range(len(columns.instruments)), strict=True))
    at = np.array([places.get(name, -1) for name in other.instruments])[second.rows["instrument"]]
    rows = {name: column[at >= 0] for name, column in (second.rows | {"instrument": at}).items()}
    both = stored, replace(second, rows=rows)
    return _compared(columns, both, list(codes), (" beside ".join(names),), names)


def _compared(
    columns: RunColumns,
    both: tuple[DecidedRun, DecidedRun],
    verdicts: Sequence[Verdict],
    change: tuple[str, ...],
    names: tuple[str, str],
    notes: tuple[str, ...] = (),
    sequence: int | None = None,
) -> Comparison:
    """Compare *both* runs, the first being that of *columns*; codes are places in *verdicts*.

    The decision *sequence* of the first is listed also if it did not change.
    """
    run, (stored, derived) = columns.run, both
    keys, others = (
        each.rows["open_time_ms"] * len(run.instruments) + each.rows["instrument"] for each in both
    )
    if not np.array_equal(keys, others):
        _, mine, theirs = np.intersect1d(keys, others, return_indices=True)
        order = np.argsort(mine)
        stored, derived = (
            replace(each, rows={name: column[rows[order]] for name, column in each.rows.items()})
            for each, rows in ((stored, mine), (derived, theirs))
        )
    if not (opens := stored.rows["open_time_ms"]).size:
        raise DataInvalid("No bar was decided both times; compare runs, or a --from, of one time.")
    moves, judged = (
        stored.rows[name] != derived.rows[name] for name in ("target_quantity", "verdict")
    )
    differs = moves | judged
    causes = Counter[str]()
    pairs = zip(
        *(each.rows["verdict"][differs].tolist() for each in (stored, derived)), strict=True
    )
    for (before, after), times in Counter(pairs).items():
        causes[_why(verdicts[before], verdicts[after])] += times
    closes = columns.times.closes_of(opens)
    listed = _beginnings(differs, stored.rows, derived.rows)[:CHANGES_KEPT]
    chosen = np.flatnonzero(stored.rows["sequence"] == (-1 if sequence is None else sequence))
    if sequence is not None and not chosen.size:
        raise DataInvalid(f"Decision {sequence} of run {run.run_id} is not among those compared.")
    return Comparison(
        run.run_id,
        change,
        names,
        int(opens.size),
        int(differs.sum()),
        int(moves.sum()),
        int(opens[0]),
        int(closes[-1]),
        _accounts(names, closes, columns.times.calendar, stored, derived),
        tuple({"why": why, "decisions": times} for why, times in causes.most_common()),
        tuple(_changes(run.instruments, listed, stored, derived)),
        notes,
        len(run.instruments),
        tuple(_changes(run.instruments, chosen, stored, derived)),
    )


def _beginnings(differs: npt.NDArray[np.bool_], stored: Columns, derived: Columns) -> Ints:
    """Return the places of changed decisions that differ from the instrument's one before."""
    order = np.argsort(stored["instrument"], kind="stable")
    rows = np.stack([each[name] for each in (stored, derived) for name in ("verdict", *_JUDGED)])
    rows = rows[:, order]
    begins = np.ones(order.size, np.bool_)
    begins[order[1:]] = (rows[:, 1:] != rows[:, :-1]).any(axis=0)
    return np.flatnonzero(differs & begins)


def _notes(changed: ChangedRun) -> Iterator[str]:
    """Yield notes on keys without effect, and on other causes of differences."""
    run = changed.stored.run
    if changed.without_effect:
        yield f"{sentence_on(changed.without_effect)}."
    if not is_this_code(run.code_version):
        yield f"{run.code_version} made the run, and what has changed since counts as well."
    if changed.forecaster is not None and changed.first_ms and run.mode == "scan":
        yield (
            "Forecasts are those of one pass over all bars: a replay that begins here rounds their "
            "last bits otherwise."
        )


def _why(before: Verdict, after: Verdict) -> str:
    (action, refused), (action_after, refused_after) = before, after
    if refused == refused_after:
        return "another target" if action == action_after else f"{action_after}, not {action}"
    if refused_after is None:
        return f"{refused} does not refuse"
    return f"{refused_after} refuses" + (f" before {refused}" if refused else "")


def _changes(
    items: Sequence[Instrument], listed: Ints, stored: DecidedRun, derived: DecidedRun
) -> Iterator[Cells]:
    """Yield the decisions of the rows *listed* as they were and as they are."""
    for row in listed.tolist():
        before, after = (each.decision(int(each.rows["place"][row])) for each in (stored, derived))
        gate, judged = after.refused_by, after
        if gate is None or gate == before.refused_by:
            gate, judged = before.refused_by, before
        at = None if gate is None else judged.gate_set.gates.index(gate)
        verdicts = [(each.action.value, each.refused_by) for each in (before, after)]
        targets = [float(each.rows["target_quantity"][row]) for each in (stored, derived)]
        target, target_after = (None if math.isinf(target) else target for target in targets)
        yield {
            "open_time_ms": int(stored.rows["open_time_ms"][row]),
            "instrument": items[int(stored.rows["instrument"][row])].id,
            "sequence": int(stored.rows["sequence"][row]),
            "beside": int(derived.rows["place"][row]),
            "before": _verdict_text(verdicts[0]),
            "target_before": target,
            "after": _verdict_text(verdicts[1]),
            "target_after": target_after,
            "why": _why(*verdicts),
            "measure": None if at is None else judged.measures[at],
            "threshold": None if at is None else judged.gate_set.thresholds[at],
        }


def _verdict_text(verdict: Verdict) -> str:
    action, refused = verdict
    return action if refused is None else f"{action}, {refused} refused"


def _accounts(
    names: tuple[str, str],
    closes: Ints,
    calendar: Calendar | None,
    stored: DecidedRun,
    derived: DecidedRun,
) -> tuple[Cells, ...]:
    """Return the account's results in both runs, and their difference."""
    days = metrics.return_days(closes, calendar)
    ends = np.concatenate(([0], metrics.day_ends(closes, calendar) + 1))
    rows: list[tuple[Floats, Floats, float | None, float, int]] = []
    for each in (stored, derived):
        start, paid, fills = each.account(*each.rows["place"][[0, -1]].tolist())
        curve = np.concatenate(([start], each.rows["equity"] / MONEY_SCALE))
        fall = float(metrics.drawdowns(curve).max()) if (curve > 0).all() else None
        daily = metrics.daily_returns(closes, curve, calendar)
        rows.append((np.diff(curve[ends]), daily, fall, paid / MONEY_SCALE, fills))
    (profits, daily, fall, fees, fills), (profits2, daily2, fall2, fees2, fills2) = rows
    daily_change = daily2 - daily if daily.size == daily2.size else daily[:0]
    worse = None if fall is None or fall2 is None else fall2 - fall
    rows.append((profits2 - profits, daily_change, worse, fees2 - fees, fills2 - fills))
    return tuple(
        {
            "account": name,
            "profit": _estimate(profit, days, profit.size),
            "mean_day": _estimate(of_day, days) if of_day.size else None,
            "max_drawdown": drawdown,
            "fees_paid": cost,
            "fills": count,
        }
        for name, (profit, of_day, drawdown, cost, count) in zip(
            (*names, "difference"), rows, strict=True
        )
    )


def _estimate(values: Floats, days: Ints, times: int = 1) -> Estimate:
    """Return the mean of *values* and its error, both multiplied by *times*."""
    error = metrics.mean_error(values, days)
    return float(values.mean()) * times, None if error is None else error * times


# ---------------------------------------------------------------- the document


def _columns(result: Comparison) -> Iterator[Figure[Cells]]:
    """Yield the columns of the changes; with two records both decisions have links."""
    before, after = result.names
    is_recorded = result.names != DERIVED
    yield of_row("open_time_ms", "bar", "minute")
    yield of_row("instrument", "symbol", "text", wide=result.instruments == 1)
    yield of_row("sequence", "sequence", "step" if is_recorded else "text", wide=True)
    if is_recorded:
        yield of_row("beside", "beside", "text")
    yield of_row("before", before, "text")
    yield of_row("target_before", "target", "text")
    yield of_row("after", after, "text")
    yield of_row("target_after", "target", "text")
    yield of_row("why", "why", "text", wide=True)
    yield of_row("measure", "measure", "measure")
    yield of_row("threshold", "threshold", "measure", wide=True)


def tables(result: Comparison) -> tuple[Table, ...]:
    """Return the tables of a comparison."""
    note = (
        "± is an error, by blocks of at least five days; chance exceeds two in one of twenty runs."
    )
    columns = tuple(_columns(result))
    return (
        table("chosen", "At this decision", columns, result.chosen),
        table("accounts", "Result", ACCOUNTS, result.accounts, notes=(note,)),
        table("causes", "Why decisions change", CAUSES, result.causes),
        table("changes", "Where the changes begin", columns, result.changes),
    )


def what_if_document(result: Comparison) -> TitledParts:
    """Return the document of a comparison, which begins with a sentence."""
    sentence = (
        f"{result.changed:,} of {count_of(result.decisions, 'decision')} change, "
        f"{result.moved:,} of them the target; {iso(result.from_ms)} to {iso(result.until_ms)}."
    )
    parts: tuple[Part, ...] = (
        Paragraph(f"{'; '.join(result.change)}.", "lead"),
        Paragraph(sentence),
        *(Paragraph(note, "warning") for note in result.notes),
        *(each for each in tables(result) if each.rows),
    )
    return TitledParts(f"run {result.run_id} · what if", parts)


def as_json(result: Comparison) -> dict[str, Any]:
    """Return the document as plain values."""
    names = ("run_id", "change", "decisions", "changed", "moved", "from_ms", "until_ms", "notes")
    return {name: getattr(result, name) for name in names} | documents(tables(result))
