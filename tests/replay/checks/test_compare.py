"""What a run made elsewhere may differ in: floats, each within its tolerance, and nothing else."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import explained_runs
import numpy as np
import pytest
from command_line import Cli
from forging import forged, rechain, verified
from native_objects import built, loops_of

from tracepaper.replay.backtest.predictors import RETURNS
from tracepaper.replay.checks.compare import TOLERATED, RowCheck, StepComparison, is_rounding
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.schema import metadata
from tracepaper.storage.record.columns import HEAD_COLUMNS
from tracepaper.strategies.attention import compiled
from tracepaper.strategies.types.decisions import WEIGHT_UNITS

AT = "sequence = (SELECT max(sequence) - 3 FROM answers)"


@pytest.fixture(scope="module")
def run() -> Path:
    """Return a run of a small model, with its checkpoint beside it."""
    return explained_runs.recorded()


ELSEWHERE = (
    "UPDATE runs SET torch_version = '1.0'",
    (
        "UPDATE events SET content = json_set(content, '$.torch_version', '1.0') "
        "WHERE kind = 'model_change'"
    ),
)


def test_a_run_made_elsewhere_says_what_differs(run: Path, tmp_path: Path) -> None:
    verification = verified(forged(run, tmp_path / "a.db", *ELSEWHERE), run)
    assert (verification.passes, verification.exact) == (True, False)
    assert verification.elsewhere.startswith("torch_version was 1.0 and is ")


def forged_place(run: Path, path: Path, name: str, value: str) -> Path:
    """Copy *run* with another *value* of what computed it, in its row and in its start."""
    return forged(
        run,
        path,
        f"UPDATE runs SET {name} = {value}",
        f"UPDATE events SET content = json_set(content, '$.{name}', {value}) "
        "WHERE kind = 'model_change'",
    )


def test_threads_follow_from_the_configuration(run: Path, tmp_path: Path) -> None:
    verification = verified(forged_place(run, tmp_path / "a.db", "threads", "7"), run)
    assert not verification.passes
    assert "threads" in verification.differences[0].field


@pytest.mark.parametrize("name", ["device", "backend", "instruction_set", "libraries"])
def test_each_part_of_the_environment_counts(run: Path, tmp_path: Path, name: str) -> None:
    verification = verified(forged_place(run, tmp_path / "a.db", name, "'x'"), run)
    assert (verification.passes, verification.exact) == (True, False)
    assert name in verification.elsewhere


def test_a_run_by_loops_is_repeated_by_them_and_near_them_without(tmp_path: Path) -> None:
    folder = built(tmp_path)
    with loops_of(folder) as available:
        if not available:
            pytest.skip("this processor lacks AVX2")
        fastest = available[0]
        run = explained_runs.replayed(tmp_path)
        with closing(sqlite3.connect(run)) as raw:
            [(backend, libraries)] = raw.execute("SELECT backend, libraries FROM runs")
        assert backend == fastest
        assert json.loads(libraries)[fastest] == compiled.loops()[fastest].sha256
        assert verified(run, run).exact
    with loops_of(tmp_path / "none"):
        proof = verified(run, run)
        assert (proof.passes, proof.exact) == (True, False)
        assert proof.elsewhere.startswith(f"backend was {fastest} and is tiles here, libraries")
        assert proof.tolerated > 0


def test_a_run_by_tiles_is_repeated_by_tiles_where_loops_are(tmp_path: Path) -> None:
    folder = built(tmp_path)
    with loops_of(tmp_path / "none"):
        run = explained_runs.replayed(tmp_path)
    with loops_of(folder):
        proof = verified(run, run)
    assert (proof.passes, proof.exact, proof.agreed) == (True, True, proof.decisions)


def test_the_last_bit_of_one_float_is_found_here_and_excused_elsewhere(
    run: Path, tmp_path: Path
) -> None:
    change = f"UPDATE answers SET mean_return = mean_return * (1 + 1e-15) WHERE {AT}"
    assert not verified(forged(run, tmp_path / "here.db", change), run).passes
    path = forged(run, tmp_path / "elsewhere.db", *ELSEWHERE, change)
    rechain(path)
    verification = verified(path, run)
    assert (verification.passes, verification.tolerated) == (True, 1)
    assert not verified(
        forged(path, tmp_path / "b.db", ELSEWHERE[0].replace("1.0", "2")), run
    ).passes


def compared(
    run: Path, change: Callable[[str, list[object]], None], *, exact: bool
) -> StepComparison:
    """Compare a stored step with itself after *change* was done to its rows."""
    with Reader.open(run) as reader:
        run_id = reader.find("last")
        stored = reader.stored_run(run_id)
        check = RowCheck(reader, stored)
        *_, rows, _ = reader.rows(run_id)
        step = check.stored(rows)
        sparse = {table: [list(row) for row in given] for table, given in rows.sparse.items()}
        change("answers", sparse["answers"][0])
        return check.compare(step, rows._replace(sparse=sparse), exact=exact)


NOT_DECLARED = {
    *(f"answers.measure_{gate}" for gate in ("confidence_calibrated", "confidence_margin")),
    *(f"answers.measure_{gate}" for gate in ("learned_regime", "risk_tail", "risk_tail_share")),
    "answers.measure_dropout_spread",
    "answers.measure_risk_expected_drawdown",
    *(f"answers.{name}" for name in HEAD_COLUMNS),
}
"""What this run's model does not say, and measures of gates that it does not declare: null."""


@pytest.mark.parametrize("name", sorted(TOLERATED - NOT_DECLARED))
@pytest.mark.parametrize(("share", "holds"), [(0.5, True), (50.0, False)])
def test_each_float_has_its_tolerance(run: Path, name: str, share: float, holds: bool) -> None:
    place = [f"answers.{c.name}" for c in metadata.tables["answers"].columns].index(name)
    stdev = [c.name for c in metadata.tables["answers"].columns].index("stdev_return")

    def change(_table: str, row: list[object]) -> None:
        value, scale = row[place], row[stdev]
        assert isinstance(scale, float)
        match value:
            case bytes() if name == "answers.horizons":
                layout = "<B2I6d"  # two horizons: of each column the number at the other
                first, *rest = struct.unpack(layout, value)
                rest[2] += share * RETURNS * rest[3]
                row[place] = struct.pack(layout, first, *rest)
            case str() if name == "answers.buckets":
                first, *rest = json.loads(value)
                first += round(share * RETURNS * WEIGHT_UNITS)
                row[place] = json.dumps([first, *rest], separators=(",", ":"))
            case bytes():
                first = struct.unpack_from("<f", value)[0] + share * RETURNS
                row[place] = struct.pack("<f", first) + value[4:]
            case float():
                of_stdev = name.split(".")[1] in ("mean_return", "stdev_return", "volatility")
                size = scale if of_stdev else 1.0
                if "measure" in name:
                    size = max(abs(value), 1.0)
                row[place] = value + share * RETURNS * size
            case _:
                raise AssertionError(name)

    comparison = compared(run, change, exact=False)
    assert (name in {column for column, *_ in comparison.unequal}) is not holds
    assert name in {column for column, *_ in compared(run, change, exact=True).unequal}


# ---------------------------------------------------------------- parity in words and numbers


def test_what_differs_only_in_time_is_counted_by_its_gate_in_json(
    run: Path, tmp_path: Path, cli: Cli
) -> None:
    late = tmp_path / "late.db"
    shutil.copy(run, late)
    with closing(sqlite3.connect(late)) as raw:
        ((outcome,),) = raw.execute("SELECT max(outcome) FROM steps").fetchall()
        raw.execute(
            "UPDATE outcomes SET action = 'HOLD', reason = 'refused by late', allowed = 0, "
            f"refused_by = 'late', passed = passed & ~4 WHERE sequence = {outcome}"
        )
        raw.commit()
    assert cli.json("parity", f"{run}#last", f"{late}#last")["timing"]["late"] > 0


# ---------------------------------------------------------------- the members of an ensemble

MEMBERS = np.array([[[1e-4], [1e-3]], [[3e-4], [2e-3]], [[0.0], [4e-3]]], dtype="<f4")
"""[member; mean or volatility; horizon]."""


def moved(place: tuple[int, int, int], change: float) -> bytes:
    members = MEMBERS.astype(np.float64)
    members[place] += change
    return members.astype("<f4").tobytes()


@pytest.mark.parametrize(
    "derived",
    [
        b"",
        None,
        MEMBERS.tobytes()[:-4],
        MEMBERS.tobytes() + b"\0" * 8,
        moved((0, 0, 0), float("nan")),
        moved((1, 1, 0), float("inf")),
        MEMBERS[::-1].tobytes(),
    ],
)
def test_members_of_another_shape_or_without_a_value_differ(derived: bytes | None) -> None:
    stored = MEMBERS.tobytes()
    assert not is_rounding(("answers.members", stored, derived), None, None, member_shape=(3, 2))
    assert not is_rounding(("answers.members", derived, stored), None, None, member_shape=(3, 2))


@pytest.mark.parametrize("place", list(np.ndindex(3, 2, 1)))
@pytest.mark.parametrize(("share", "holds"), [(0.5, True), (2.0, False)])
def test_a_member_s_numbers_have_its_volatility_as_unit_of_their_tolerance(
    place: tuple[int, int, int], share: float, holds: bool
) -> None:
    member, _, horizon = place
    derived = moved(place, share * RETURNS * float(MEMBERS[member, 1, horizon]))
    unequal = ("answers.members", MEMBERS.tobytes(), derived)
    assert is_rounding(unequal, None, None, member_shape=(3, 2)) is holds
    assert is_rounding(unequal, None, None, member_shape=(5, 2)) is False
    assert is_rounding(unequal, None, None) is False
