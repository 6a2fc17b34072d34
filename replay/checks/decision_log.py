"""The decisions of a run in columns: of a record, or kept while a changed run is derived."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np

from tracepaper.replay.run_columns import Floats, Ints, RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_rows import NOT_STORED, Columns
from tracepaper.storage.record.columns import SEQUENCE_LIMIT
from tracepaper.storage.record.trades import inherited
from tracepaper.strategies.types.decisions import Decision, GateSet, QuietStretch, RunRow, Step
from tracepaper.strategies.types.market import Bar, Instrument
from tracepaper.strategies.units import MONEY_SCALE

_KEPT: Final = ("open_time_ms", "instrument", "target_quantity", "verdict", "equity")
Verdict = tuple[str, str | None]
"""An action, and the gate that refused it."""


@dataclass(frozen=True)
class DecidedRun:
    """The decisions of a run, one row each, with its place in the run and its verdict's code."""

    rows: Columns  # an absent target is infinite
    decision: Callable[[int], Decision]  # at a place
    account: Callable[[int, int], tuple[float, int, int]]
    """Maps two places to the equity before the first, and the fees and fills between them."""


class DecisionLog:
    """A log of only the compared values; storing rows would take as long as the derivation."""

    room = SEQUENCE_LIMIT  # no group of steps is ever full

    def __init__(self, cash: float, codes: dict[Verdict, int]) -> None:
        """Start with *cash*, or what the run took over; new verdicts are added to *codes*."""
        self._cash, self._fees, self._fills = cash, 0, 0  # up to the last step
        self._fees_before = 0
        self.first_notional = 0
        """The notional of the first fill, in money; 0 without one."""
        self._codes = codes
        self._columns = [array("q") for _ in _KEPT]
        self._firsts = array("q")  # first rows of ``_decisions``
        self._decisions: list[Callable[[int], Decision]] = []  # by the place from that row

    def begin(self, run: RunRow, gate_sets: Sequence[GateSet]) -> None:  # noqa: ARG002 - of a log
        """Take the instruments of *run*, and the account that it took over."""
        if (before := inherited(run)) is not None:
            own = before.totals[""]
            self._cash, self._fees_before = own.equity / MONEY_SCALE, own.fees_paid
        self._items = run.instruments
        self._place_of = {item.id: place for place, item in enumerate(run.instruments)}

    def append_now(self, *steps: Step) -> None:
        """Keep the decisions of *steps*."""
        for step in steps:
            self._fees = step.account.fees_paid
            self._fills += len(step.fills)
            if step.fills and not self.first_notional:
                self.first_notional = step.fills[0].notional
            if (decision := step.decision) is not None and isinstance(bar := step.event, Bar):
                row = bar.open_time_ms, *self._row(bar.instrument, decision), step.account.equity
                self._keep((decision,).__getitem__, *((value,) for value in row))

    def append_stretch(self, stretch: QuietStretch) -> None:
        """Keep the decision of each bar of *stretch*."""
        if stretch.answers:
            self.append_now(*chain.from_iterable(map(stretch.steps, range(stretch.units))))
            return
        repeats, units, first = stretch.repeats, stretch.units, stretch.bars[0]
        rows = [self._row(key, each.decision) for key, each in repeats.items()]
        worth, step_ms = stretch.marks.worth, first.interval_ms  # bars without gaps
        opens = [*range(first.open_time_ms, first.open_time_ms + units * step_ms, step_ms)]
        equity = [worth + profit for profit in stretch.marks.account_unrealized]
        if len(rows) > 1:
            opens, equity = ([value for value in each for _ in rows] for each in (opens, equity))
        decisions = [each.decision for each in repeats.values()]
        self._keep(
            lambda place: decisions[place % len(decisions)],
            opens,
            *(array("q", each) * units for each in zip(*rows, strict=True)),
            equity,
        )

    def append_waited(
        self, opens_ms: Ints, equity: Sequence[int], target: int, verdicts: Ints,
        decisions: Callable[[int], Decision],
    ) -> None:  # fmt: skip
        """Keep the decisions of the bars that opened at *opens_ms*, of a run of one instrument."""
        same = (array("q", (value,)) * opens_ms.size for value in (0, target))
        self._keep(decisions, opens_ms.tolist(), *same, verdicts.tolist(), equity)

    def code(self, verdict: Verdict) -> int:
        """Return the code of a *verdict*."""
        return self._codes.setdefault(verdict, len(self._codes))

    def _row(self, instrument: str, decision: Decision) -> tuple[int, int, int]:
        """Return the instrument, target and verdict code of a *decision*."""
        code, target = self.code((decision.action, decision.refused_by)), decision.target_quantity
        return self._place_of[instrument], NOT_STORED if target is None else target, code

    def _keep(self, decisions: Callable[[int], Decision], *columns: Iterable[int]) -> None:
        """Keep the *columns* of the next rows, and the function that makes their decisions."""
        self._firsts.append(len(self._columns[0]))
        self._decisions.append(decisions)
        for kept, column in zip(self._columns, columns, strict=True):
            kept.extend(column)

    def _decision(self, row: int) -> Decision:
        at = bisect_right(self._firsts, row) - 1
        return self._decisions[at](row - self._firsts[at])

    def flush(self) -> None:
        """Do nothing: all is kept already."""

    def decided(self) -> DecidedRun:
        """Return the decisions."""
        columns = (np.array(column, np.int64) for column in self._columns)
        rows: Columns = dict(zip(_KEPT, columns, strict=True))
        rows["place"] = np.arange(len(self._columns[0]))
        rows["target_quantity"] = _targets(rows, self._items)
        # Its first decision is always compared.
        account = self._cash, self._fees - self._fees_before, self._fills
        return DecidedRun(rows, self._decision, lambda _first, _last: account)


def _targets(rows: Columns, items: Iterable[Instrument]) -> Floats:
    """Return the target of each row in base currency."""
    scales = np.array([10.0**item.quantity_decimals for item in items])
    stored = rows["target_quantity"]
    return np.where(stored == NOT_STORED, np.inf, stored / scales[rows["instrument"]])


def recorded_decisions(
    reader: Reader, columns: RunColumns, codes: dict[Verdict, int], decided: Columns | None = None
) -> DecidedRun:
    """Return the decisions of a record; new verdicts are added to *codes*.

    *decided* are its rows, if they were read already.
    """
    run_id, rows = columns.run.run_id, dict(decided or columns.rows.decided())
    verdicts = [
        codes.setdefault((outcome.action, outcome.refused_by), len(codes))
        for outcome in columns.rows.outcomes
    ]
    rows["verdict"] = np.array(verdicts, np.int64)[rows["outcome"]]
    rows["target_quantity"] = _targets(rows, columns.instruments.values())

    def account(first: int, last: int) -> tuple[float, int, int]:
        begin, end = columns.span
        if last < rows["sequence"][-1]:  # else events after the last decision count too
            end = last
        paid = reader.step(run_id, end).account.fees_paid
        if first > begin:
            paid -= reader.step(run_id, first - 1).account.fees_paid
        return columns.equity_before(first), paid, len(columns.rows.filled((first, end)))

    return DecidedRun(rows | {"place": rows["sequence"]}, columns.decision, account)
