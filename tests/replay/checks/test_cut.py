"""A derivation that begins in the midst of a run: at a commit, or from a time."""

from __future__ import annotations

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
from recordings import copied, recorded
from records import tamper

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.engine.history import InstrumentState
from tracepaper.replay.backtest.recorded import open_recorded
from tracepaper.replay.checks.diagnosis import Cause
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.database.chunks import commit_at
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid

HOUR = 3_600_000
HOURS = 240
CROSSING: dict[str, Any] = {
    "market": {"symbols": ["BTCUSDT"], "interval": "60"},
    "strategy": {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False},
    "sizing": {"mode": "equity", "fraction": "0.5"},
    "execution": {"taker_fee": "0.0007"},
}


def replayed(path: Path, group_steps: int = 1, *, is_flat: bool = False) -> str:
    """Replay the run, over prices that stay where *is_flat*, into *path*; return its id."""
    prices = walk_rows(HOURS)
    data = [made_candles(prices[:1] * HOURS if is_flat else prices, interval_ms=HOUR)]
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


def test_a_model_in_one_pass_is_asked_anew_from_a_context_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run of minutes: no decision asks for the range of a day.
    monkeypatch.setattr(InstrumentState, "lookback", property(lambda of: of.reach))
    path = explained_runs.replayed(tmp_path, bars=3 * explained_runs.CONTEXT)
    from_ms = opened(path)[-12]
    verification = verified(path, from_ms=from_ms)
    assert verification.passes, verification.differences[:3]
    assert (verification.decisions, verification.from_ms) == (12, from_ms)
    assert not verification.exact  # a pass over many begins elsewhere


@pytest.mark.parametrize("is_flat", [False, True])
def test_the_chain_is_walked_from_the_state_or_from_the_first_bar_that_is_fed(
    tmp_path: Path, is_flat: bool
) -> None:
    path = tmp_path / "run.db"
    replayed(path, is_flat=is_flat)
    from_ms = opened(path)[-30]
    derived = verified(path, from_ms=from_ms)
    with Reader.open(path) as reader:
        recorded_run = open_recorded(reader, path, reader.find("last"), from_step=derived.from_step)
    fed_from, state_step = present(recorded_run.beginning).fed_from, present(derived.state_step)
    assert (state_step < fed_from) is is_flat
    first = min(fed_from, state_step)
    if first:  # else the walk begins with the run
        tamper(path, f"UPDATE steps SET volume = volume + 1 WHERE sequence = {first - 1}")
        assert verified(path, from_ms=from_ms).passes
    tamper(path, f"UPDATE steps SET turnover = 7 WHERE sequence = {first}")
    assert not verified(path, from_ms=from_ms).passes


# ---------------------------------------------------------------- forged


USED = "sequence = (SELECT max(sequence) FROM states WHERE sequence < {})"
FORGED = (
    f"UPDATE states SET state = richer(state) WHERE {USED}",
    f"DELETE FROM states WHERE {USED}",
    "UPDATE steps SET close = 2 * close, high = 2 * high WHERE sequence = {} - 2",
    "UPDATE fills SET fee = fee + 1 WHERE sequence = (SELECT min(sequence) FROM fills)",
    (
        "UPDATE ledger SET amount = amount + 1, balance = balance + 1 "
        "WHERE sequence = (SELECT max(sequence) FROM ledger WHERE sequence < {})"
    ),
)


@pytest.mark.parametrize("statement", FORGED)
@pytest.mark.parametrize("is_hidden", [False, True])
def test_what_is_forged_before_the_first_derived_step_is_found(
    tmp_path: Path, statement: str, is_hidden: bool
) -> None:
    path = tmp_path / "run.db"
    replayed(path)
    from_ms = opened(path)[-30]
    first = verified(path, from_ms=from_ms)
    assert first.passes
    assert first.state_step is not None
    assert first.state_step < first.from_step - 2
    with closing(sqlite3.connect(path)) as raw:
        raw.create_function("richer", 1, richer)
        assert raw.execute(statement.format(first.from_step)).rowcount > 0
        raw.commit()
    if is_hidden:
        rechain(path)
    again = verified(path, from_ms=from_ms)
    if is_hidden and statement.startswith("DELETE"):
        assert again.state_step != first.state_step  # an older one serves, and says the same
    else:
        assert not again.passes
        assert again.culprit is Cause.RECORD


def richer(state: bytes) -> bytes:
    """Return the engine's *state* with more cash."""
    import msgspec

    fields = msgspec.msgpack.decode(state)
    fields[3][0] += 1
    return msgspec.msgpack.encode(fields)
