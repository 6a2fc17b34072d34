"""Step → rows → Step is the identity."""

from __future__ import annotations

from hashlib import sha256
from math import inf, isfinite, nan
from pathlib import Path
from types import GenericAlias

import pytest
import storage_cases as cases
from builders import MINUTE, START_MS, bars, present
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import defstruct
from msgspec.structs import replace

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.views import VIEWS, file_number
from tracepaper.storage.memory_log import MemoryLog
from tracepaper.storage.record.columns import (
    ANSWER_GATES,
    SEQUENCE_LIMIT,
    TABLES,
    Row,
    measure_name,
)
from tracepaper.storage.record.encode import StepEncoder
from tracepaper.storage.record.hashing import all_finite, finite, pack, sealed
from tracepaper.storage.record.interning import GateSetPlan
from tracepaper.storage.record.rows import EVENT_TYPES, SCHEMA, layout_number
from tracepaper.strategies.errors import DataInvalid, InvariantBroken
from tracepaper.strategies.types.decisions import (
    AccountMarks,
    Answer,
    Explanation,
    Forecast,
    Position,
    Prediction,
    PredictionTimeout,
    QuietStretch,
    Repeat,
    ShadowStep,
    Step,
)
from tracepaper.strategies.types.forecast_columns import columns_of
from tracepaper.strategies.types.market import CloseStart, CovariateRow, InstrumentChange, RiskTier


def through_rows(steps: list[Step]) -> list[Step]:
    """Return *steps* as they are read of a database."""
    with MemoryLog() as log:
        log.begin(cases.run(), ())
        log.append_now(*steps)
        return list(log.reader.steps("r-1"))


@settings(max_examples=100, deadline=None)
@given(st.lists(cases.steps, min_size=1, max_size=4).map(cases.renumbered))
def test_rows_give_back_the_very_step(steps: list[Step]) -> None:
    assert through_rows(steps) == steps


SHADOWED = [
    replace(
        step, shadows=(ShadowStep("ungated", present(step.position), step.account, step.fills),)
    )
    for step in cases.plain_steps(60)
]
CLOSES = cases.renumbered(
    [
        replace(
            step,
            event=CloseStart(START_MS, 2 - len(absent), absent, seen_ms - delay_ms, seen_ms),
            decision=None,
            shadows=(),
        )
        for step in cases.plain_steps(2)
        for absent in ((), (cases.BTC.id,))
        for seen_ms in (START_MS + MINUTE, START_MS + MINUTE + 7)
        for delay_ms in (0, 2)
    ]
)
"""A close with a bar of every instrument is the row of its step alone."""


@pytest.mark.parametrize("steps", [cases.rich_steps(), cases.plain_steps(300), SHADOWED, CLOSES])
def test_whole_runs_come_back_from_a_file(steps: list[Step], tmp_path: Path) -> None:
    cases.write_run(tmp_path / "run.db", steps)
    with Reader.open(tmp_path / "run.db") as reader:
        assert list(reader.steps("r-1")) == steps
        assert list(reader.steps("r-1", after=3, until=9)) == steps[4:10]


def test_what_is_not_finite_is_stored_as_null_and_minus_zero_as_zero() -> None:
    (step,) = (step for step in cases.rich_steps() if step.sequence == 9)
    prediction = cases.model_forecast(0)
    broken = replace(prediction, mean_return=(nan, -0.0), volatility=(inf, 1.0))
    (back,) = through_rows([replace(step, sequence=0, prediction=broken)])
    assert back.prediction is not None
    assert repr(getattr(back.prediction, "mean_return")) == "(nan, 0.0)"  # noqa: B009
    assert repr(getattr(back.prediction, "volatility")) == "(nan, 1.0)"  # noqa: B009


def explained(
    numbers: st.SearchStrategy[float], spread: st.SearchStrategy[float],
    share: st.SearchStrategy[float],
) -> st.SearchStrategy[Forecast]:  # fmt: skip
    """Return forecasts of the run's model with columns of *numbers*, *spread* and *share*."""
    columns = [st.tuples(of, of) for of in (numbers, spread, share, share, share, spread)]
    buckets = st.sampled_from((b"\1\2\3\0\4\0\0\0", b"\5\0\0\0" * 2, b"\6\0\0\0" * 2))
    shares = st.builds(Explanation, *[numbers] * 8, st.binary(max_size=8), buckets)
    given = (st.just((10, 30)), *columns, shares)
    return st.builds(Forecast, *given, st.sampled_from((b"", b"members")))


FINITE = st.floats(allow_nan=False, allow_infinity=False) | st.just(-0.0)
USUAL = explained(FINITE, st.floats(1e-9, 1e9), st.floats(0, 1) | st.just(-0.0))
STRANGE = explained(*[st.floats()] * 3)
OTHER = st.none() | st.just(PredictionTimeout(5)) | STRANGE | cases.forecasts()


@settings(max_examples=100, deadline=None)
@given(st.lists(USUAL, min_size=2, max_size=4), st.lists(OTHER, max_size=1), st.booleans())
def test_the_answers_of_a_stretch_are_stored_as_those_of_its_steps(
    usual: list[Forecast], others: list[Prediction], is_known: bool
) -> None:
    answers = [
        Answer(prediction, cases.model_decision(number, prediction), ())
        for number, prediction in enumerate([*usual, *others])
    ]
    marks = AccountMarks(cases.ACCOUNT, [0] * len(answers), [0] * len(answers))
    repeats = {cases.BTC.id: Repeat(answers[0].decision, None, Position(), {})}
    measures = [0.0] * len(answers)
    forecasts = [other for other in [*others, *usual] if other is None or type(other) is Forecast]
    columns = columns_of(forecasts) if is_known else None
    stretch = QuietStretch(
        0, bars(len(answers)), (), measures, repeats, marks, (), answers,
        forecasts={} if columns is None else {cases.BTC.id: columns},
    )  # fmt: skip
    stored = []
    for groups in ([stretch], map(stretch.steps, range(stretch.units))):
        encoder = StepEncoder(cases.run(), 1)
        for group in groups:
            encoder.add_together(group if isinstance(group, QuietStretch) else [*group])
        stored.append(repr(encoder.seal()))
    assert stored[0] == stored[1]


@given(st.lists(st.none() | st.floats(), max_size=5))
def test_numbers_are_stored_alone_as_together(numbers: list[float | None]) -> None:
    stored = [number if number is not None and isfinite(number) else None for number in numbers]
    assert [finite(number) for number in numbers] == [*all_finite(numbers)] == stored
    assert repr([finite(number) for number in numbers]) == repr([*all_finite(numbers)])


def test_a_threshold_of_minus_zero_is_stored_as_zero() -> None:
    gates = replace(cases.CROSS_GATES, thresholds=(-0.0,) * len(cases.CROSS_GATES.gates))
    rows = GateSetPlan(gates, 0).rows(1, None)
    assert [repr(threshold) for *_, threshold, _ in rows] == ["0.0"] * len(rows) != []


def test_a_run_holds_no_more_steps_than_a_key_can_count() -> None:
    step = cases.plain_steps(1)[0]
    encoder = StepEncoder(cases.run(), 1)
    for sequence in (-1, SEQUENCE_LIMIT):
        with pytest.raises(InvariantBroken, match=r"open a new run\."):
            encoder.add(replace(step, sequence=sequence))
    encoder.add(replace(step, sequence=SEQUENCE_LIMIT - 1))


def test_new_decimals_within_a_run_are_refused() -> None:
    finer = replace(cases.BTC, price_decimals=3)
    step = replace(cases.rich_steps()[0], event=InstrumentChange(finer, 1, 1))
    with pytest.raises(DataInvalid, match="restart to open a new run"):
        StepEncoder(cases.run(), 1).add(step)


def test_a_number_beyond_64_bits_is_refused_before_it_is_stored(tmp_path: Path) -> None:
    step = cases.plain_steps(1)[0]
    with_huge = replace(step, event=replace(step.event, volume=2**64))
    log = SqlAuditLog.open(tmp_path / "x.db")
    log.begin(cases.run())
    log.append_now(with_huge)
    with pytest.raises(InvariantBroken, match="does not fit 64 bits"):
        log.flush()
    log.close()


def test_a_gate_without_a_column_is_refused() -> None:
    step = cases.plain_steps(1)[0]
    assert step.decision is not None
    gates = replace(cases.CROSS_GATES, gates=(*cases.CROSS_GATES.gates[:-1], "undeclared"))
    outcome = replace(step.decision.outcome, gate_set=gates)
    strange = replace(step, decision=replace(step.decision, outcome=outcome))
    with pytest.raises(InvariantBroken, match="undeclared has no column"):
        StepEncoder(cases.run(), 1).add(strange)


# ---------------------------------------------------------------- hashing


def test_a_commit_is_the_hash_of_the_one_before_and_of_its_rows() -> None:
    before = sha256(b"before").digest()
    steps: list[Row] = [(1, 7, None, 2.5, None), (1, 8, 3)]
    rows: dict[str, list[Row]] = {
        "steps": steps,
        "fills": [(1, 8, 0, "7-0", None)],
        "states": [(1, 8, b"state")],
    }
    commit = sealed(before, 7, 8, rows)
    parts = [
        ("steps", 2, sha256(pack([(1, 7, None, 2.5), (1, 8, 3)])).digest()),
        ("states", 1, sha256(pack([(1, 8, b"state")])).digest()),
        ("fills", 1, sha256(pack([(1, 8, 0, "7-0")])).digest()),
    ]
    assert commit.digest == sha256(before + pack((SCHEMA, 7, 8, parts))).digest()


def test_a_layout_with_another_column_field_or_packing_has_another_number() -> None:
    numbers = [SCHEMA, layout_number(packings="<d")]
    for table, columns in TABLES.items():
        for place, column in enumerate(columns):
            if column.name in map(measure_name, ANSWER_GATES):
                continue  # more come with gates that are declared beside ours
            for changed in ((), (replace(column, null=not column.null),),
                            (replace(column, scale=column.scale + "?"),)):  # fmt: skip
                kept = (*columns[:place], *changed, *columns[place + 1 :])
                numbers.append(layout_number({**TABLES, table: kept}))
    numbers += [layout_number(events={**EVENT_TYPES, kind: Step}) for kind in EVENT_TYPES]
    for nested in (CovariateRow, Step, RiskTier | None, dict[str, RiskTier]):
        event = defstruct("CovariatesRead", [("rows", GenericAlias(tuple, (nested, ...)))])
        numbers.append(layout_number(events={**EVENT_TYPES, "covariates": event}))
    numbers += [file_number(VIEWS[:place]) for place in range(len(VIEWS) + 1)]
    assert len({*numbers}) == len(numbers)


def test_rows_that_are_written_otherwise_have_another_number() -> None:
    # Where the digest alone has changed, count RULES up (not for a gate); then write both here.
    encoder = StepEncoder(cases.run(), 1)
    for step in (*cases.rich_steps(), *SHADOWED, *CLOSES):
        encoder.add(step)
    assert {SCHEMA: encoder.seal().digest.hex()} == {
        389088386: "45c6357da45f14f909e7d4b1dcbd0f96c9c9c4b8db44ab7c66db7781205dc45d"
    }
