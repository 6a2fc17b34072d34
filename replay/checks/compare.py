"""Differences of two steps, and of a step and its stored rows; the finding of ``lookahead``.

Rows are compared without decoding them, so that no column is missed: each must be equal in every
bit or within its tolerance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final, cast

import numpy as np
from msgspec import Struct

from tracepaper.replay.backtest.predictors import (
    EXPLANATION_FIELDS,
    RETURN_FIELDS,
    RETURNS,
    SHARE_FIELDS,
    SHARES,
    field_agrees,
    near,
    near_measure,
)
from tracepaper.replay.checks.external_inputs import ExternalInput
from tracepaper.storage.database.chunks import StoredRun, interned
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.trade_rows import trades_until
from tracepaper.storage.record.columns import ANSWER_GATES, TABLES, measure_name, stored_columns
from tracepaper.storage.record.decode import (
    HOLDING,
    OUTCOME,
    SHADOW_STEP,
    STEP,
    StepDecoder,
    StoredRows,
)
from tracepaper.storage.record.encode import StepEncoder
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.gates.gate import GATES
from tracepaper.strategies.types.decisions import Decision, Explanation, Forecast, Prediction, Step
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import iso

Unlike = tuple[str, object, object]
"""The name of a field, its stored value, and the expected one."""


@dataclass(frozen=True)
class Difference:
    """One field of one decision that differs."""

    instrument: str
    open_time_ms: int
    field: str
    first: str
    second: str

    @classmethod
    def of(cls, step: Step, name: str, first: str, second: str) -> Difference:
        """Return the difference of field *name* at the bar of *step*, if it has one."""
        event = step.event
        key = (event.instrument, event.open_time_ms) if isinstance(event, Bar) else ("", 0)
        return cls(*key, name, first, second)

    def sentence(self) -> str:
        """Return the difference as one sentence."""
        return (
            f"{self.instrument} bar {iso(self.open_time_ms)}: {self.field} is {self.first} in the "
            f"first and {self.second} in the second"
        )


def differences_of(
    first: Struct, second: Struct, prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Yield (field, first, second) for every field in which two steps or forecasts differ."""
    for name in first.__struct_fields__:
        first_value, second_value = getattr(first, name), getattr(second, name)
        match first_value, second_value:
            case _ if first_value == second_value:
                pass
            case Decision(), Decision():
                yield from decision_differences(first_value, second_value)
            case Forecast(), Forecast():
                yield from differences_of(first_value, second_value)
            case Explanation(), Explanation():
                yield from differences_of(first_value, second_value, f"{name}.")
            case _:
                yield f"{prefix}{name}", shown(first_value), shown(second_value)


def decision_differences(first: Decision, second: Decision) -> Iterator[tuple[str, str, str]]:
    """Yield every field in which two decisions differ; gates by their names."""
    names = ("action", "target_quantity", "reason", "allowed", "refused_by", "regime")
    pairs = [(name, getattr(first, name), getattr(second, name)) for name in names]
    pairs += [
        (name, getattr(first.outcome, name), getattr(second.outcome, name))
        for name in ("regime_cell", "size_factor")
    ]
    note, other = first.note or {}, second.note or {}
    pairs += [
        (f"note {name}", note.get(name, "absent"), other.get(name, "absent"))
        for name in dict.fromkeys((*note, *other))
    ]
    if first.gate_set == second.gate_set:
        gates = (f"gate {gate}" for gate in first.gate_set.gates)
        pairs += zip(gates, first.measures, second.measures, strict=True)
    else:
        pairs.append(("gate set", first.gate_set, second.gate_set))
    for name, first_value, second_value in pairs:
        if first_value != second_value:
            yield name, shown(first_value), shown(second_value)


def shown(value: object) -> str:
    """Return *value* as text for a difference; of hashes and blobs the first digits."""
    if isinstance(value, bytes):
        return value.hex()[:24] + ("…" if len(value) > 12 else "")  # 24 digits
    if isinstance(value, tuple):
        return ", ".join(map(shown, value)) or "none"
    if isinstance(value, Struct):
        fields = (f"{name} {shown(getattr(value, name))}" for name in value.__struct_fields__)
        return f"({', '.join(fields)})"
    return "none" if value is None else str(value)


LOOKAHEAD: Final = "lookahead"
RECURSIVE: Final = "recursive"


@dataclass
class CheckFinding:
    """The result of a check: how much was probed, and the first difference."""

    check: str
    planned: int = 0  # probes planned: futures to change or cut off, or later starts
    probes: int = 0  # probes done
    compared: int = 0  # decisions
    differences: list[Difference] = field(default_factory=list)
    cause: str = ""  # the cause that the first difference indicates
    given: int = 0  # bars of all instruments
    bars: int = 0  # replayed bars
    without_later: int = 0  # bars decided before the next bar was passed on
    warmup: int = 0
    opened: list[ExternalInput] = field(default_factory=list)  # neither declared nor allowed
    allowed: list[ExternalInput] = field(default_factory=list)
    unproved: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)  # runs for which the time was too short
    changed: int = 0  # decisions that differ with twice the history
    tried: int = 0  # decisions that were compared with those; 0 where none can be
    short_history: str = ""  # a sentence, without a full stop

    @property
    def passes(self) -> bool:
        """Whether all was probed, nothing differs, and nothing was opened that is not allowed."""
        return self.verdict == "nothing differs"

    @property
    def verdict(self) -> str:
        """``differs``, ``read`` or ``nothing differs``, with ``so far`` if not all was probed."""
        if self.differences or self.short_history:
            return "differs"
        if self.opened:
            return "read"
        is_withheld = self.check == RECURSIVE or self.without_later
        probed = is_withheld and self.probes and self.compared
        return "nothing differs" if probed and not self.unfinished else "nothing differs so far"

    def sentence(self) -> str:
        """Return the verdict as one sentence, with how much was probed."""
        if self.differences:
            return f"differs: {self.differences[0].sentence()}: {self.cause}."
        if self.short_history:
            return f"differs: {self.short_history}."
        counted = f"{self.compared:,} decisions compared, {self.verdict}"
        if self.check == RECURSIVE:
            counted = f"{self.probes} later starts over {self.bars:,} bars, {counted}"
            if self.tried:
                counted += f"; with twice the history {self.changed:,} of {self.tried:,} differ"
            return f"{counted}." if self.passes else f"{counted}; give more bars."
        if self.opened:
            return f"read: the strategy {self._reading()}."
        counted = (
            f"{self.without_later:,} of {self.given:,} bars decided without a later one, "
            f"{self.probes} of {self.planned} futures changed or cut off, {counted}"
        )
        if self.passes:
            return f"{counted}."
        return f"not probed to the end: {counted}; give more --seconds, or fewer --bars."

    def _reading(self) -> str:
        """Return what was opened, and what to do about it."""
        files = [item.name for item in self.opened if item.what == "file"]
        others = [f"{item.what} {item.name}" for item in self.opened if item.what != "file"]
        did = [f"reads {', '.join(files)}, which `files` does not name"] if files else []
        did += [f"opens {', '.join(others)}"] if others else []
        declare = "declare the files, and " if files else ""
        excuse = "pass what cannot tell the future with --allow-reading"
        return f"{' and '.join(did)}; {declare}{excuse}"


# ---------------------------------------------------------------- a step against stored rows

_HEAD_COLUMNS: Final = ("expected_shortfall_long", "expected_shortfall_short", "expected_drawdown")
"""Columns of answers with fractions of the price, from auxiliary heads."""
_PREDICTED: Final = (
    *("horizons", "heads"),
    *(*RETURN_FIELDS, *SHARE_FIELDS, *EXPLANATION_FIELDS),
)
"""Columns of answers that are fields of a prediction; the first holds other horizons."""
_FIELDS: Final = {"horizons": (*RETURN_FIELDS, *SHARE_FIELDS)}
_MEASURES: Final = tuple(measure_name(gate) for gate in ANSWER_GATES if GATES[gate].of_prediction)
TOLERATED: Final = frozenset(
    f"answers.{name}" for name in (*_PREDICTED, *_MEASURES, *_HEAD_COLUMNS, "learned_allocation")
)
"""Columns whose floats may be rounded differently on another machine; no other column may."""

Unequal = tuple[str, object, object]
"""A column, its stored value, and the derived one."""

_NAMES: Final = {
    table: tuple(f"{table}.{column}" for column in stored_columns(table)) for table in TABLES
}
_ROW_REFERENCES: Final = {SHADOW_STEP.sequence, SHADOW_STEP.holding}
_STEP_TABLES: Final = (
    "events",
    "states",
    "answers",
    "orders",
    "fills",
    "trades",
    "ledger",
    "halts",
)


@dataclass(frozen=True)
class StepComparison:
    """The result of comparing one step."""

    unequal: tuple[Unequal, ...] = ()  # not excused by rounding
    rounded: bool = False  # some number differs within its tolerance


class RowCheck:
    """Compares the steps of one run, in their order, with their stored rows.

    For an ensemble, *member_shape* is (members, numbers of each at a horizon), whose values have a
    tolerance; those of other models must be equal in every bit.
    """

    def __init__(
        self,
        reader: Reader,
        stored: StoredRun,
        *,
        member_shape: tuple[int, int] | None = None,
    ) -> None:
        self.member_shape = member_shape
        self._reader, self._of = reader, stored
        self._encoder: StepEncoder | None = None
        self._interned = interned(reader.connection, stored.run_key)
        self._decoder = StepDecoder(stored.run, self._interned)

    def stored(self, rows: StoredRows) -> Step:
        """Return the step that *rows* hold."""
        return self._decoder.step(rows)

    def compare(self, derived: Step, rows: StoredRows, *, exact: bool) -> StepComparison:
        """Compare *derived* with *rows*; within the tolerances unless *exact*."""
        unequal = list(self._unequal(derived, rows))
        if exact or not unequal:
            return StepComparison(tuple(unequal))
        stored = self.stored(rows).prediction if rows.sparse.get("answers") else None
        kept = [
            difference
            for difference in unequal
            if not is_rounding(
                difference, stored, derived.prediction, member_shape=self.member_shape
            )
        ]
        return StepComparison(tuple(kept), rounded=len(kept) < len(unequal))

    def _unequal(self, derived: Step, rows: StoredRows) -> Iterator[Unequal]:
        if self._encoder is None:
            of, reader = self._of, self._reader
            trades, _ = trades_until(reader.connection, of.run_key, of.run, derived.sequence - 1)
            sets = reader.gate_sets(of.run_key)
            self._encoder = StepEncoder(of.run, of.run_key, sets, trades=trades)
        encoder = self._encoder
        encoder.forget()  # so that every row is made, and no row of an earlier step is reused
        encoder.add(derived)
        sparse = encoder.take()
        if sparse["gate_sets"]:
            yield "gate_sets", "no such set", f"a set of {len(sparse['gate_sets'])} gates"
        core = rows.core
        sequence = core[STEP.sequence]
        (row,) = sparse["steps"]
        yield from _row("steps", core, row, {STEP.outcome, STEP.holding, STEP.shadows})
        for table in _STEP_TABLES:
            yield from _rows(table, rows.sparse.get(table, ()), sparse.get(table, ()))
        self._check_place("shadow_steps", core[STEP.shadows], sequence)
        shadows = self._decoder.shadow_rows(core)
        yield from _rows("shadow_steps", shadows, sparse["shadow_steps"], _ROW_REFERENCES)
        if core[STEP.shadows] != sequence and "shadow_steps" in rows.sparse:
            yield "shadow_steps.sequence", sequence, None
        yield from self._outcome(core[STEP.outcome], sequence, rows, sparse["outcomes"])
        holdings = {shadow[SHADOW_STEP.account]: shadow[SHADOW_STEP.holding] for shadow in shadows}
        holdings[0] = core[STEP.holding]
        yield from self._holdings(holdings, sequence, rows, sparse["holdings"])

    def _outcome(
        self, at: int | None, sequence: int, rows: StoredRows, derived: Sequence[Sequence[Any]]
    ) -> Iterator[Unequal]:
        """Compare the outcome that step *sequence* refers to by *at*; its own must be in use."""
        if (at is None) != (not derived):
            yield "outcomes.sequence", at, derived[0] if derived else None
        elif at is not None:
            self._check_place("outcomes", at, sequence)
            row = self._interned.outcome(at)
            yield from _row("outcomes", row, derived[0], {OUTCOME.sequence})
        if at != sequence and "outcomes" in rows.sparse:
            yield "outcomes.sequence", sequence, None

    def _holdings(
        self,
        named: Mapping[int, int],
        sequence: int,
        rows: StoredRows,
        derived: Sequence[Sequence[Any]],
    ) -> Iterator[Unequal]:
        """Compare the holdings of each account, and check that each row of the step is in use.

        *named* maps each account to the sequence of the step that holds its row.
        """
        derived_rows = {row[HOLDING.account]: row for row in derived}
        for account, at in named.items():
            if account not in derived_rows:
                yield "holdings.sequence", at, None
                continue
            self._check_place("holdings", at, sequence)
            row = self._interned.holding(at, account)
            yield from _row("holdings", row, derived_rows[account], {HOLDING.sequence})
        for row in rows.sparse.get("holdings", ()):
            if named.get(row[HOLDING.account]) != sequence:
                yield "holdings.sequence", row[HOLDING.sequence], None

    @staticmethod
    def _check_place(table: str, named: int | None, sequence: int) -> None:
        """Raise ``DataInvalid`` where step *sequence* refers to a later row of *table*."""
        if named is not None and named > sequence:
            raise DataInvalid(
                f"Step {sequence} names row {named} of {table}, which is later; run `tracepaper "
                "audit verify` and restore a backup."
            )


def _row(
    table: str,
    stored: Sequence[Any],
    derived: Sequence[Any],
    skipped: Collection[int] = (),
) -> Iterator[Unequal]:
    """Yield every column in which two rows of *table* differ, except the *skipped* ones.

    The derived row omits nulls at its end.
    """
    for at, (stored_value, derived_value) in enumerate(zip_longest(stored, derived)):
        if stored_value != derived_value and at not in skipped:
            yield _NAMES[table][at], stored_value, derived_value


def _rows(
    table: str,
    stored: Sequence[Sequence[Any]],
    derived: Sequence[Sequence[Any]],
    skipped: Collection[int] = (),
) -> Iterator[Unequal]:
    """Yield every column in which the rows of *table* differ, except the *skipped* ones."""
    if len(stored) != len(derived):
        yield table, f"{len(stored)} rows", f"{len(derived)} rows"
        return
    for stored_row, derived_row in zip(stored, derived, strict=True):
        yield from _row(table, stored_row, derived_row, skipped)


# ---------------------------------------------------------------- rounding


def is_rounding(
    unequal: Unequal,
    stored: Prediction,
    derived: Prediction,
    *,
    member_shape: tuple[int, int] | None = None,
) -> bool:
    """Return whether a difference between two predictions lies within its column's tolerance."""
    name, first, second = unequal
    if name == "answers.members" and member_shape is not None:
        return _members_agree(first, second, member_shape)
    if name not in TOLERATED or type(first) is not type(second):
        return False
    column = name.removeprefix("answers.")
    if column in _PREDICTED:
        return (
            isinstance(stored, Forecast)
            and isinstance(derived, Forecast)
            # ``field_agrees`` compares only the common length of arrays.
            and not (isinstance(first, bytes) and len(first) != len(cast("bytes", second)))
            and all(field_agrees(name, stored, derived) for name in _FIELDS.get(column, (column,)))
        )
    if not isinstance(first, float) or not isinstance(second, float):
        return False
    if column in _MEASURES:
        return near_measure(first, second)
    return near(first, second, SHARES * (abs(first) if column in _HEAD_COLUMNS else 1.0))


def _members_agree(stored: object, derived: object, shape: tuple[int, int]) -> bool:
    """Return whether the members' numbers agree within a tolerance times each member's volatility.

    *shape* is (members, numbers of each at a horizon).
    """
    if not isinstance(stored, bytes) or not isinstance(derived, bytes):
        return False
    members, columns = shape
    if not stored or len(stored) != len(derived) or len(stored) % (4 * members * columns):
        return False
    stored_values, derived_values = (
        np.frombuffer(total_bars, "<f4").astype(np.float64).reshape(*shape, -1)
        for total_bars in (stored, derived)
    )
    if not np.isfinite(stored_values).all():
        return stored == derived
    return bool((np.abs(stored_values - derived_values) <= RETURNS * stored_values[:, 1:2]).all())
