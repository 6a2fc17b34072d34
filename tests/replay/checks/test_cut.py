"""A derivation that begins in the midst of a run: what is left of a pruned one, or from a time."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import explained_runs
import pytest
from builders import present
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from forging import rechain, verified
from msgspec.structs import replace
from recordings import copied, recorded
from records import prune, run_again, tamper

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.engine.history import InstrumentState
from tracepaper.replay.checks.diagnosis import Cause
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage import maintenance
from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.database.chunks import KeptStart, commit_at
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.record.decode import BAR_READ
from tracepaper.strategies.errors import DataInvalid

HOUR = 3_600_000
HOURS = 240
CROSSING: dict[str, Any] = {
    "market": {"symbols": ["BTCUSDT"], "interval": "60"},
    "strategy": {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False},
    "sizing": {"mode": "equity", "fraction": "0.5"},
    "execution": {"taker_fee": "0.0007"},
}


def replayed(path: Path, group_steps: int = 1) -> str:
    """Replay the run into *path*; return its id."""
    data = [made_candles(walk_rows(HOURS), interval_ms=HOUR)]
    original = recorded(load(None, CROSSING), data, started_at_ms=1, group_steps=group_steps)
    with Reader.open(copied(original, path)) as reader:
        return reader.find("last")


def audited(path: Path) -> str:
    """Return what ``audit verify`` says of the last run; nothing where it holds."""
    with Reader.open(path) as reader:
        audit_result = audit(reader.connection, reader.find("last"))
    return "" if audit_result.problem is None else audit_result.problem.sentence


def opened(path: Path) -> list[int]:
    """Return the open time of every bar that was decided, in order."""
    with closing(sqlite3.connect(path)) as raw:
        query = "SELECT DISTINCT open_time_ms FROM steps WHERE outcome IS NOT NULL ORDER BY 1"
        return [time for (time,) in raw.execute(query)]


def forge(path: Path, *statements: str) -> None:
    """Change rows of *path*, and compute every digest anew."""
    tamper(path, *statements)
    rechain(path)


# ---------------------------------------------------------------- models, books, quotes, starts


@pytest.fixture
def short_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs of minutes be pruned: none of them asks for the range of a day."""
    monkeypatch.setattr(InstrumentState, "lookback", property(lambda of: of.reach))
    monkeypatch.setattr(maintenance, "DAY_MS", 240_000)


def test_one_commit_is_derived_alone_from_the_state_before_it(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    run_id = replayed(path, group_steps=50)
    with Reader.open(path) as reader:
        bounds = present(commit_at(reader.connection, 1, 160))
        proof = verify_run(reader, path, run_id, commit=160)
        assert (proof.passes, proof.steps, proof.from_step) == (True, 50, bounds[0])
        assert bounds[0] <= 160 <= bounds[1]
        forge(path, f"UPDATE steps SET target_quantity = 3 WHERE sequence = {bounds[1]}")
        assert verify_run(reader, path, run_id, commit=160).differing == 1
        assert verify_run(reader, path, run_id, commit=bounds[1] + 1).passes
        with pytest.raises(DataInvalid, match="no commit with step 4000"):
            verify_run(reader, path, run_id, commit=4_000)


@pytest.mark.usefixtures("short_days")
def test_a_model_in_one_pass_is_asked_anew_from_a_context_before(tmp_path: Path) -> None:
    path = explained_runs.replayed(tmp_path, bars=3 * explained_runs.CONTEXT)
    pruned = prune(path, keep_days=3)
    assert pruned.steps > 100
    assert not audited(path)
    verification = verified(path)
    assert verification.passes, verification.differences[:3]
    assert verification.decisions >= 12
    assert not verification.exact  # a pass over many begins elsewhere
    with pytest.raises(DataInvalid, match="was pruned, so it is not fed again"):
        run_again(path, tmp_path / "again.db")


# ---------------------------------------------------------------- forged, and older


def test_a_forged_state_or_warm_up_bar_is_found(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    replayed(path)
    prune(path, keep_days=3)
    assert verified(path).passes
    oldest = "sequence = (SELECT min(sequence) FROM states)"
    for number, statement in enumerate(
        (
            "UPDATE prunes SET run_in = replace_close(run_in)",
            "UPDATE prunes SET state = replace_cash(state)",
            f"UPDATE states SET state = replace_cash(state) WHERE {oldest}",
            f"DELETE FROM states WHERE {oldest}",
        )
    ):
        forged = Path(shutil.copy(path, tmp_path / f"{number}.db"))
        with closing(sqlite3.connect(forged)) as raw:
            raw.create_function("replace_cash", 1, richer)
            raw.create_function("replace_close", 1, dearer)
            assert raw.execute(statement).rowcount == 1
            raw.commit()
        assert audited(forged), statement
        rechain(forged)
        if statement.startswith("DELETE"):
            continue
        assert not audited(forged), "the chain holds again"
        again = verified(forged)
        assert not again.passes, statement
        assert again.culprit is Cause.RECORD


def dearer(run_in: bytes) -> bytes:
    """Return what a prune kept with twice the high and close of its last bar."""
    import msgspec

    kept = msgspec.msgpack.decode(run_in, type=KeptStart)
    *earlier, last = kept.run_in.steps
    values = list(last)
    for name in ("high", "close"):
        values[BAR_READ.index(name)] *= 2
    steps = [*earlier, tuple(values)]
    return msgspec.msgpack.encode(replace(kept, run_in=kept.run_in._replace(steps=steps)))


def richer(state: bytes) -> bytes:
    """Return the engine's *state* with more cash."""
    import msgspec

    fields = msgspec.msgpack.decode(state)
    fields[3][0] += 1
    return msgspec.msgpack.encode(fields)


def test_every_decision_that_a_prune_keeps_is_derived(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    replayed(path)
    whole = len(opened(path))
    for keep_days in (6, 5, 2):  # the second one looks back on bars that the first one dropped
        done = prune(path, keep_days=keep_days)
        assert done.steps > 0
        assert not audited(path)
        verification = verified(path)
        assert verification.passes, verification.differences[:3]
        assert (verification.exact, verification.chained) == (True, 0)
        assert 24 * keep_days <= verification.decisions == len(opened(path)) < whole
