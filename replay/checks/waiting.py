"""Bars at which a changed run surely holds: the recorded measures decide them, in arrays.

At some bars a built-in strategy holds whatever its inputs, and so does a signal that a gate
refuses. There the changed run keeps its position, and only the refusing gate may change. The gates'
measures are the recorded ones, so their columns are compared with the thresholds, without forecasts
or steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from tracepaper.replay.checks.changed_run import ChangedRun
from tracepaper.replay.checks.decision_log import DecisionLog
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


def waiting_of(
    changed: ChangedRun, columns: RunColumns, rows: Columns, log: DecisionLog
) -> Wait | None:
    """Return a function that takes bars into *log* while *changed* waits; None where it may not.

    *rows* are the decisions of the record in *columns*. The recorded measures hold in the changed
    run where the settings behind the measures are equal and the account has no limit.
    """
    engine, before = changed.engine, changed.recorded
    if changed.first_ms or not engine.may_wait:
        return None
    (decider,), (recorded,) = (each.deciders.values() for each in (engine, before))
    gates, recorded_gates = (each.evaluator.gate_set for each in (decider, recorded))
    if (
        columns.gate_sets != (recorded_gates,)
        or not set(gates.gates) <= set(recorded_gates.gates)
        or decider.measured_by != recorded.measured_by
    ):
        return None
    # Known only of these two; a user's class that extends one is behind a wrapper.
    is_hourly = isinstance(decider.strategy, TrendStrategy) and bool(decider.strategy.frames)
    if not is_hourly and not isinstance(decider.strategy, AttentionStrategy):
        return None
    sequences, outcomes = rows["sequence"], rows["outcome"]
    passed = _passed(columns, sequences, outcomes, gates, recorded_gates)
    refusing = ((1 << len(gates.gates)) - 1) & ~passed
    # The lowest bit is the first gate that refuses; -1 means none.
    first = np.frexp((refusing & -refusing).astype(np.float64))[1] - 1
    verdicts = np.array([log.code((Action.HOLD, gate)) for gate in (*gates.gates, None)])[first]
    is_waited = refusing != 0  # else it follows the forecast
    if is_hourly:
        is_waited = columns.times.closes_of(rows["open_time_ms"]) % HOUR_MS != 0
    # The engine takes events between two decided bars.
    ends = np.flatnonzero(~is_waited | (np.diff(sequences, prepend=-2) != 1))
    return _Waiting(
        changed, columns, log, gates, sequences, rows["open_time_ms"], outcomes, passed, verdicts,
        is_waited, np.append(ends, sequences.size),
    ).take  # fmt: skip


def _passed(
    columns: RunColumns, at: Ints, outcomes: Ints, gates: GateSet, recorded_gates: GateSet
) -> Ints:
    """Return the bits of *gates* that pass at each step *at*: as recorded, or by a new threshold.

    *outcomes* are the places of the recorded outcomes.
    """
    (instrument,) = columns.instruments
    before = np.array([each.passed for each in columns.rows.outcomes], np.int64)[outcomes]
    limits = dict(zip(recorded_gates.gates, recorded_gates.thresholds, strict=True))
    passed = np.zeros(at.size, np.int64)
    for place, (gate, limit) in enumerate(zip(gates.gates, gates.thresholds, strict=True)):
        if limits[gate] == limit:
            passes = (before >> recorded_gates.gates.index(gate) & 1).astype(np.bool_)
        else:
            name = measure_name(gate)
            stored = columns.forecasts(instrument, [name], at)[name]
            measured = with_usual(stored, gate, limits[gate])
            passes = measured >= limit if GATES[gate].at_least else measured <= limit
        passed |= passes.astype(np.int64) << place
    return passed


@dataclass(frozen=True)
class _Waiting:
    """Takes bars while the run waits; the columns have a row for each decided bar."""

    changed: ChangedRun
    columns: RunColumns
    log: DecisionLog
    gates: GateSet
    sequences: Ints
    opens_ms: Ints
    outcomes: Ints  # places of the recorded outcomes
    passed: Ints
    verdicts: Ints  # as codes of the log
    is_waited: npt.NDArray[np.bool_]
    ends: Ints  # first rows of a new group, and the end

    def take(self, sequence: int, ahead: Iterator[Bar | CloseStart]) -> int:
        """Take the bars *ahead*, from step *sequence* on, at which the run waits; return how many.

        An open position is safe while prices stay within a quarter of its mark.
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
        """Return the decision at row *first* + *place*, by the recorded measures."""
        row, gates = first + place, self.gates
        stored = self.columns.decision(int(self.sequences[row]))
        passed = int(self.passed[row])
        (decider,) = self.changed.engine.deciders.values()
        refused = decider.evaluator.first_failed(passed)
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
