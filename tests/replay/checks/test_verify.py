"""A run re-derived from its record; two runs compared: what was changed is found and named."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import explained_runs
import numpy as np
import pytest
import user_strategies as users
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from forging import rechain, verified
from recordings import copied, crossing, record, recorded
from records import parity_of, tamper

from tracepaper.replay.archive import Candles, read_candles
from tracepaper.replay.backtest.make import resume_replay
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run import Tally
from tracepaper.replay.checks.diagnosis import Cause
from tracepaper.replay.checks.parity import check_span
from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.samples import DEMO_CANDLES
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.record.decode import StoredRows
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import ParityOutcome

BARS = 400


def replayed(
    path: Path, candles: Candles, *, stop_after: int | None = None, **sections: Any
) -> str:
    """Replay *candles* into *path*, a commit a step; return the run's id."""
    config = crossing(candles.symbol, **sections)
    return record(path, config, [candles], stop_after=stop_after, group_steps=1)


@pytest.fixture(scope="module")
def walk() -> Candles:
    return made_candles(walk_rows(BARS))


@pytest.fixture
def run(tmp_path: Path, walk: Candles) -> Path:
    return copied(recorded(crossing(walk.symbol), [walk]), tmp_path / "run.db")


def test_a_sample_compares_only_the_last_steps(run: Path) -> None:
    verification = verified(run, sample=50)
    assert verification.passes
    assert verification.decisions == 49  # and the end of the run
    assert verification.steps > BARS


@pytest.mark.parametrize(
    ("forged", "message"),
    [
        ("DELETE FROM gate_sets", "Row 0 of gate_sets is missing"),
        ("UPDATE runs SET interval_ms = 0", "holds what no run has"),
    ],
)
def test_what_cannot_be_read_is_a_sentence_and_no_agreement(
    run: Path, forged: str, message: str
) -> None:
    with sqlite3.connect(run) as raw:
        raw.execute(forged)
    with pytest.raises(DataInvalid, match=message):
        verified(run)


@pytest.mark.parametrize("column", ["mode", "device", "dtype", "backend"])
def test_parity_compares_hashes_only_where_both_runs_went_the_same_way(
    tmp_path: Path, walk: Candles, run: Path, column: str
) -> None:
    other = tmp_path / "other.db"
    replayed(other, walk)
    assert parity_of(run, other).exact
    tamper(other, f"UPDATE runs SET {column} = 'another'")
    parity = parity_of(run, other)
    assert parity.passes
    assert not parity.exact


def finer(candles: Candles) -> Candles:
    return candles.rescaled(volume_decimals=8)


def test_parity_takes_equal_volumes_of_other_decimals_as_equal(
    tmp_path: Path, walk: Candles, run: Path
) -> None:
    same, slow = tmp_path / "same.db", tmp_path / "slow.db"
    replayed(same, finer(walk))
    assert parity_of(run, same).identical == BARS
    replayed(
        slow, finer(walk), strategy={"name": "sma_cross", "fast": 3, "slow": 8, "long_only": False}
    )
    parity = parity_of(run, slow)
    assert parity.differing
    assert not any(difference.field.startswith("bar ") for difference in parity.differences)


@pytest.mark.parametrize("exact", [True, False])
def test_parity_names_a_volume_that_differs_in_its_last_decimal(
    tmp_path: Path, walk: Candles, run: Path, exact: bool
) -> None:
    other, candles = tmp_path / "other.db", finer(walk)
    volume = candles.volume.copy()
    volume[100] += 1
    replayed(other, replace(candles, volume=volume))
    if not exact:
        tamper(other, "UPDATE runs SET mode = 'another'")
    parity = parity_of(run, other)
    assert (parity.exact, parity.differing) == (exact, 1)
    first = parity.differences[0]
    assert first.field == "bar volume"
    assert first.second == f"{first.first}{'0' * (8 - len(first.first.partition('.')[2]) - 1)}1"


def test_parity_within_tolerances_still_compares_targets(
    tmp_path: Path, walk: Candles, run: Path
) -> None:
    other = tmp_path / "other.db"
    replayed(other, walk, sizing={"mode": "fixed", "quantity": "2"})
    tamper(other, "UPDATE runs SET mode = 'another'")
    parity = parity_of(run, other)
    assert parity.differing > BARS // 2
    assert [difference.field for difference in parity.differences[:1]] == ["target_quantity"]
    assert (parity.differences[0].first, parity.differences[0].second) in (("1", "2"), ("-1", "-2"))


def test_parity_says_which_bars_only_one_run_has(tmp_path: Path, walk: Candles, run: Path) -> None:
    shorter = tmp_path / "shorter.db"
    replayed(shorter, walk[:300])
    parity = parity_of(run, shorter)
    assert (parity.compared, parity.only_in_first, parity.only_in_second) == (300, 100, 0)
    assert parity.passes


@pytest.mark.parametrize("turned", [False, True])
def test_parity_does_not_hold_over_a_bar_that_one_run_lacks_in_the_middle(
    tmp_path: Path, walk: Candles, run: Path, turned: bool
) -> None:
    holed = tmp_path / "holed.db"
    parts = [np.arange(200), np.arange(201, BARS)]
    replayed(holed, walk[np.concatenate(parts)])
    parity = parity_of(*((holed, run) if turned else (run, holed)))
    assert not parity.passes
    assert parity.missing == 1
    differences = [difference for difference in parity.differences if difference.field == "the bar"]
    assert [candles.open_time_ms for candles in differences] == [int(walk.open_time_ms[200])]
    assert (differences[0].first, differences[0].second) == (
        ("missing", "decided") if turned else ("decided", "missing")
    )


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run of the default model over real candles: 240 decisions after its warm-up."""
    path = tmp_path_factory.mktemp("model") / "model.db"
    replayed(
        path, read_candles(DEMO_CANDLES)[:5_100],
        strategy={"name": "attention"},
    )  # fmt: skip
    return path


def test_a_run_of_the_default_model_is_rederived_bit_for_bit(explained: Path) -> None:
    verification = verified(explained)
    assert verification.passes
    assert verification.exact
    assert verification.agreed == verification.decisions == 5_100


def test_one_pass_and_bar_by_bar_decide_alike() -> None:
    parity = parity_of(explained_runs.recorded(), explained_runs.recorded(mode="step"))
    assert not parity.exact
    assert parity.passes, parity.differences[:3]
    assert parity.identical + parity.within_tolerance == explained_runs.BARS


class GrowingReader(Reader):
    """A reader of a run that goes on between the reading of its events and of its steps."""

    grow: Callable[[], object]

    def rows(
        self, run_id: str, *, after: int = -1, until: int | None = None
    ) -> Iterator[StoredRows]:
        self.grow()
        yield from super().rows(run_id, after=after, until=until)


def test_a_run_that_grows_meanwhile_is_verified_as_far_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, walk: Candles
) -> None:
    from tracepaper.replay.backtest import run as backtest

    monkeypatch.setattr(backtest, "PROGRESS_EVENTS", 64)
    path = tmp_path / "growing.db"
    run_id = replayed(path, walk, stop_after=BARS // 2)

    def grow() -> None:
        audit = SqlAuditLog.open(path)
        resume_replay(run_id, MarketData([walk]), audit, path, Tally())
        audit.close()

    with GrowingReader.open(path) as reader:
        before = reader.stored_run(run_id).step_count
        reader.grow = grow
        verification = verify_run(reader, path, run_id)
        assert reader.stored_run(run_id).step_count > before
    assert verification.passes
    assert verification.steps == before


# ---------------------------------------------------------------- who is to blame

RISES = users.source(decide="return by(bar.close > bar.open)")
BLAMED: dict[str, tuple[str, str, str, str]] = {
    "another source": (RISES, RISES.replace("> bar", "< bar"), "", "was changed since: its source"),
    "a comment in its source": (RISES, f"{RISES}\n# new", "", "every step follows, but the"),
    "an unseeded draw": (
        users.source(top="import random", decide="return by(random.random() < 0.5)"),
        "",
        "",
        "decides by more than its bars",
    ),
    "a file that it reads": (
        users.source(
            top="from pathlib import Path\nHERE = Path(__file__).with_name('said.txt')",
            init="self.said = HERE.read_text()",
            decide="return by((bar.close > bar.open) == bool(self.said))",
        ),
        "",
        "it changed",
        "decides by more than its bars",
    ),
    "a file that it declares": (
        users.source(
            head="files = ('said.txt',)",
            init="self.said = self.files['said.txt'].read_text()",
            decide="return by((bar.close > bar.open) == bool(self.said))",
        ),
        "",
        "it changed",
        "was changed since: its source and files hash to",
    ),
}


@pytest.mark.parametrize("name", BLAMED)
def test_a_strategy_that_decides_otherwise_is_to_blame(
    tmp_path: Path, walk: Candles, name: str
) -> None:
    then, now, text, cause = BLAMED[name]
    module = f"blamed_{list(BLAMED).index(name)}"
    source, path = tmp_path / f"{module}.py", tmp_path / "run.db"
    source.write_text(then)
    (tmp_path / "said.txt").write_text("")
    with users.importable(tmp_path):
        replayed(path, walk, strategy={"name": f"{module}:Mine"})
        (tmp_path / "said.txt").write_text(text)
        source.write_text(now or then)
        if now:
            del sys.modules[module]
        verification = verified(path)
    assert (verification.passes, verification.culprit) == (False, Cause.STRATEGY)
    assert cause in verification.likely_cause


def test_a_changed_decision_may_be_the_record_or_the_class(tmp_path: Path, walk: Candles) -> None:
    (tmp_path / "honest.py").write_text(RISES)
    path = tmp_path / "run.db"
    with users.importable(tmp_path):
        replayed(path, walk, strategy={"name": "honest:Mine"})
        tamper(path, "UPDATE outcomes SET reason = 'another' WHERE sequence % 2")
        rechain(path)
        assert verified(path).to_blame == "the strategy, or the record,"


@pytest.mark.parametrize(
    ("column", "value", "culprit"),
    [
        ("config_sha256", "00" * 32, Cause.CONFIGURATION),
        ("code_version", "0.0.1+other", Cause.CODE),
        ("model_id", "other", Cause.MODEL),
        ("torch_version", "9.9", Cause.RECORD),
    ],
)
def test_the_part_of_the_run_that_differs_is_named(
    run: Path, column: str, value: str, culprit: Cause
) -> None:
    tamper(run, f"UPDATE runs SET {column} = '{value}'")
    verification = verified(run)
    assert (verification.passes, verification.culprit) == (False, culprit)


def test_one_culprit_is_named_only_where_all_else_is_equal(tmp_path: Path, walk: Candles) -> None:
    """A forgery by whoever recomputes the chain looks like other code; a broken chain, like all."""
    blamed = {}
    for version in ("", "0.0.1+other"):
        path = tmp_path / f"run{version}.db"
        replayed(path, walk)
        tamper(path, "UPDATE outcomes SET reason = 'another' WHERE sequence % 2")
        if version:
            tamper(path, f"UPDATE runs SET code_version = '{version}'")
        rechain(path)
        blamed[version] = verified(path).to_blame
    assert blamed == {"": "the record", "0.0.1+other": "the code, or the record,"}


def test_a_broken_chain_is_said_where_the_strategy_seems_another(
    tmp_path: Path, walk: Candles
) -> None:
    (tmp_path / "upright.py").write_text(RISES)
    path = tmp_path / "run.db"
    with users.importable(tmp_path):
        replayed(path, walk, strategy={"name": "upright:Mine"})
        tamper(path, f"UPDATE runs SET strategy_sha256 = '{'0' * 64}'")
        assert verified(path).to_blame == "the strategy, or the record,"
        rechain(path)
        assert verified(path).to_blame == "the strategy"


ROWS = ("steps", "events", "states", "orders", "fills")
LOST = {
    "the tail": [f"DELETE FROM {table} WHERE sequence >= 300" for table in ROWS],
    "every step": [f"DELETE FROM {table}" for table in (*ROWS, "outcomes", "holdings")],
}


@pytest.mark.parametrize("lost", list(LOST))
def test_steps_that_are_lost_are_no_run_that_follows(run: Path, lost: str) -> None:
    tamper(run, *LOST[lost])
    verification = verified(run)
    assert (verification.passes, verification.culprit) == (False, Cause.RECORD)
    assert "402" in [difference.first for difference in verification.differences]


@pytest.mark.parametrize("count", [-5, 0, 100, 5_000])
def test_a_count_of_steps_that_is_not_theirs_is_found(run: Path, count: int) -> None:
    tamper(run, f"UPDATE runs SET step_count = {count}")
    verification = verified(run)
    assert (verification.passes, verification.culprit) == (False, Cause.RECORD)
    assert "runs.step_count" in [difference.field for difference in verification.differences]


# ---------------------------------------------------------------- a chain that does not hold

BROKEN = {
    "a high by one unit": "UPDATE steps SET high = high + 1 WHERE sequence = 200",
    "a volume times 10": "UPDATE steps SET volume = volume * 10 WHERE sequence = 200",
    "a digest": "UPDATE commits SET digest = zeroblob(32) WHERE first_sequence = 200",
    "a commit": "DELETE FROM commits WHERE first_sequence = 199",
}
ASKED: dict[str, Callable[[Reader, Path, str], bool]] = {
    "the run": lambda *run: verify_run(*run).passes,
    "its last steps": lambda *run: verify_run(*run, sample=50).passes,
    "one commit": lambda *run: verify_run(*run, commit=200).passes,
    "a commit whose bars look back on it": lambda *run: verify_run(*run, commit=202).passes,
    "parity": lambda *run: check_span(*run).outcome is ParityOutcome.IDENTICAL,
}


@pytest.fixture(scope="module")
def chained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of hours, whose decisions look back on 61 bars, with a commit a step."""
    hours = made_candles(walk_rows(300), interval_ms=3_600_000)
    path = tmp_path_factory.mktemp("chained") / "run.db"
    replayed(path, hours, market={"symbols": [hours.symbol], "interval": "60"})
    return path


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("broken", BROKEN)
def test_a_run_whose_chain_is_broken_is_not_verified(
    tmp_path: Path, chained: Path, broken: str, asked: str
) -> None:
    path = copied(chained, tmp_path / "run.db")
    with Reader.open(path) as reader:
        assert ASKED[asked](reader, path, reader.find("last"))
    tamper(path, BROKEN[broken])
    with Reader.open(path) as reader:
        assert not ASKED[asked](reader, path, reader.find("last"))


def test_a_broken_chain_is_named_with_its_steps_and_tables(tmp_path: Path, chained: Path) -> None:
    path = copied(chained, tmp_path / "run.db")
    tamper(path, BROKEN["a high by one unit"])
    verification = verified(path)
    assert (verification.culprit, verification.to_blame) == (Cause.RECORD, "the record")
    assert "Steps 200 to 200 do not match the digest" in verification.likely_cause
    assert [difference.field for difference in verification.differences] == ["the chain (step 200)"]


def test_a_commit_is_verified_whatever_became_of_those_that_it_does_not_look_back_on(
    tmp_path: Path, chained: Path
) -> None:
    path = copied(chained, tmp_path / "run.db")
    tamper(path, BROKEN["a high by one unit"])
    assert verified(path, commit=150).passes
    assert verified(path, commit=290).passes
    tamper(path, "UPDATE fills SET fee = fee + 1 WHERE sequence < 100")
    assert not verified(path, commit=290).passes  # its account rests on every fill before
