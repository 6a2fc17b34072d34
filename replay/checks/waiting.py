"""Bars that a changed run only waits through: what the record measured judges them, by arrays.

Built-in strategies hold at known bars whatever they are shown, and what a gate refuses holds as
well. There the changed run keeps what it has, and only which gate refuses may be another. The gates
measure what they did, so their columns are compared with the thresholds: no forecast is read, and
no step is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from tracepaper.replay.checks.changed_run import ChangedRun
from tracepaper.replay.run_columns import Ints, RunColumns, with_usual
from tracepaper.storage.database.reader import Wait
from tracepaper.storage.database.run_rows import Columns
from tracepaper.storage.record.columns import measure_name
from tracepaper.strategies.api.strategy import AttentionStrategy
from tracepaper.strategies.builtin import NO_HOUR_CLOSED, TrendStrategy
from tracepaper.strategies.gates.gate import GATES, refusal
from tracepaper.strategies.types.decisions import Action, Decision, GateSet, Regime
from tracepaper.strategies.types.market import Bar, CloseStart
from tracepaper.strategies.units import HOUR_MS

if TYPE_CHECKING:
    from tracepaper.replay.checks.what_if import DecisionLog


def waiting_of(
    changed: ChangedRun, columns: RunColumns, rows: Columns, log: DecisionLog
) -> Wait | None:
    """Return a function that takes bars into *log* while *changed* waits; None where it may not.

    *rows* are the decisions of the record, of which *columns* are.

    What the gates measured is what they measure in the changed run where all is equal that they
    measure by, and the account has no limit.
    """
    engine, before = changed.engine, changed.recorded
    if changed.first_ms or not engine.may_wait or changed.reader.promoted(changed.run.run_id):
        return None  # a promoted model's card has thresholds of its own
    (state,), (recorded,) = (of.states.values() for of in (engine, before))
    gates, were = (of.gates.evaluator.gate_set for of in (state, recorded))
    if (
        columns.gate_sets != (were,)
        or not set(gates.gates) <= set(were.gates)
        or state.measured_by != recorded.measured_by
    ):
        return None
    # Of these alone it is known; a class of a user that extends one is behind a wrapper.
    is_hourly = isinstance(state.strategy, TrendStrategy) and bool(state.strategy.frames)
    if not is_hourly and not isinstance(state.strategy, AttentionStrategy):
        return None
    sequences, outcomes = rows["sequence"], rows["outcome"]
    passed = _passed(columns, sequences, outcomes, gates, were)
    refusing = ((1 << len(gates.gates)) - 1) & ~passed
    # The lowest bit is the first gate that refuses; none has the place -1.
    first = np.frexp((refusing & -refusing).astype(np.float64))[1] - 1
    verdicts = np.array([log.code((Action.HOLD, gate)) for gate in (*gates.gates, None)])[first]
    is_waited = refusing != 0  # else it goes with the forecast
    if is_hourly:
        is_waited = columns.times.closes_of(rows["open_time_ms"]) % HOUR_MS != 0
    # What comes between two decided bars is for the engine.
    ends = np.flatnonzero(~is_waited | (np.diff(sequences, prepend=-2) != 1))
    return _Waiting(
        changed, columns, log, gates, sequences, rows["open_time_ms"], outcomes, passed, verdicts,
        is_waited, np.append(ends, sequences.size),
    ).take  # fmt: skip


def _passed(columns: RunColumns, at: Ints, outcomes: Ints, gates: GateSet, were: GateSet) -> Ints:
    """Return which of *gates* passes at each step *at*: as it *were*, or by another threshold.

    *outcomes* are the places of what the record says of each.
    """
    (instrument,) = columns.instruments
    before = np.array([of.passed for of in columns.rows.outcomes], np.int64)[outcomes]
    limits = dict(zip(were.gates, were.thresholds, strict=True))
    passed = np.zeros(at.size, np.int64)
    for place, (gate, limit) in enumerate(zip(gates.gates, gates.thresholds, strict=True)):
        if limits[gate] == limit:
            lets = (before >> were.gates.index(gate) & 1).astype(np.bool_)
        else:
            name = measure_name(gate)
            stored = columns.forecasts(instrument, [name], at)[name]
            measured = with_usual(stored, gate, limits[gate])
            lets = measured >= limit if GATES[gate].at_least else measured <= limit
        passed |= lets.astype(np.int64) << place
    return passed


@dataclass(frozen=True)
class _Waiting:
    """Takes bars that are waited through; the columns have a row for each decided bar."""

    changed: ChangedRun
    columns: RunColumns
    log: DecisionLog
    gates: GateSet
    sequences: Ints
    opens_ms: Ints
    outcomes: Ints  # places of what the record says
    passed: Ints
    verdicts: Ints  # by their codes in the log
    is_waited: npt.NDArray[np.bool_]
    ends: Ints  # rows that none before them is taken together with, and the end

    def take(self, sequence: int, ahead: Iterator[Bar | CloseStart]) -> int:
        """Take the bars *ahead*, from a step on, that only value what is held; return how many.

        What is held can bear prices a quarter away.
        """
        first, engine = int(np.searchsorted(self.sequences, sequence)), self.changed.engine
        if first == self.sequences.size or self.sequences[first] != sequence:
            return 0
        if not self.is_waited[first] or (line := engine.waiting()) is None:
            return 0
        count = int(self.ends[np.searchsorted(self.ends, first + 1)]) - first
        bars = [bar for bar in islice(ahead, count) if isinstance(bar, Bar)]
        if line.held:
            lowest, highest = line.mark * 3 // 4, line.mark * 5 // 4
            bars = [*takewhile(lambda bar: lowest <= bar.close <= highest, bars)]
        if not bars:
            return 0
        rows = slice(first, first + len(bars))
        outcome = self.columns.rows.outcomes[self.outcomes[rows][-1]]
        equity = engine.wait(
            bars,
            NO_HOUR_CLOSED,
            int(self.passed[rows][-1]),
            Regime(outcome.regime),
            outcome.regime_cell,
        )
        decided = partial(self._decided, first, line.held)
        self.log.append_waited(self.opens_ms[rows], equity, line.held, self.verdicts[rows], decided)
        return len(bars)

    def _decided(self, first: int, target: int, place: int) -> Decision:
        """Return the decision at a *place* behind the row *first*, by what the record measured."""
        row, gates = first + place, self.gates
        stored = self.columns.decision(int(self.sequences[row]))
        passed = int(self.passed[row])
        (state,) = self.changed.engine.states.values()
        refused = state.gates.evaluator.first_failed(passed)
        reason = NO_HOUR_CLOSED.reason if refused is None else refusal(refused)
        outcome = replace(
            stored.outcome,
            action=Action.HOLD,
            reason=reason,
            allowed=refused is None,
            refused_by=refused,
            gate_set=gates,
            passed=passed,
            unfilled_reason=None,
            size_factor=None,
        )
        measures = dict(zip(stored.gate_set.gates, stored.measures, strict=True))
        return Decision(outcome, target, tuple(measures[gate] for gate in gates.gates))
