"""A forged yes or no, in every column and event that holds one, by who recomputes the chain."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from exchange_client import candles, walk_rows
from forging import audited, believed, forged, unequal
from recordings import record

from tracepaper.daemon.config.loading import load
from tracepaper.storage.record.columns import FLAG, TABLES
from tracepaper.strategies.api.context import BarContext, Orders, buy, sell
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.units import to_tick

BARS = 20


class EveryFlag(Strategy):
    """Rest on both sides, take now and then, and stop out of what is held: each flag is set."""

    sees_account = True

    def decide(self, context: BarContext) -> Orders:
        assert context.account is not None
        close, held = float(context.history.close[-1]), context.account.position.quantity
        bid, ask = (to_tick(close + away, context.instrument) for away in (-0.3, 0.3))
        wanted = [buy(1.5, limit=bid, post_only=True, tag="bid"), sell(1.5, limit=ask, tag="ask")]
        wanted.append(buy(0.5, stop=ask, tag="breakout"))
        if abs(held) > 3:
            leaves = sell if held > 0 else buy
            wanted.append(leaves(abs(held), reduce_only=True, tag="out"))
        return Orders(tuple(wanted), "quotes")


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with a decision of every kind of order."""
    path = tmp_path_factory.mktemp("listed") / "run.db"
    config = load(
        None,
        {
            "market": {"symbols": ["BTCUSDT"], "interval": "1"},
            "strategy": {"name": f"{__name__}:EveryFlag"},
            "account": {"cash": "100000000"},
        },
    )
    record(path, config, [candles(walk_rows(BARS))])
    assert believed(path)
    return path


FLAGS = [
    *(f"{table}.{column.name}" for table in TABLES for column in TABLES[table]
      if column.scale == FLAG),
    "runs.sees_account",
    "shadow_steps.confirmed",
]  # fmt: skip
"""Every column of the schema that says yes or no."""
UNSEEN = {"fills.while_down"}
"""Of them those that a replay never sets: of a live run alone."""


def plantings(path: Path, column: str) -> Iterator[str]:
    """Yield statements that say another thing in a row of each value that *column* has."""
    table, name = column.split(".")
    keys = [column.name for column in TABLES[table] if column.is_key]
    is_null = next(column.null for column in TABLES[table] if column.name == name)
    with closing(sqlite3.connect(path)) as raw:
        rows = raw.execute(f"SELECT {name}, {', '.join(keys)} FROM {table}").fetchall()
    by_value = {value: key for value, *key in rows}
    assert len(by_value) == 2 or column in UNSEEN or table == "runs", by_value
    for value, key in by_value.items():
        where = " AND ".join(f"{name} = {at}" for name, at in zip(keys, key, strict=True))
        for other in (0, 1, 2, -1, *((None,) if is_null else ())):
            if other != value:
                literal = "NULL" if other is None else str(other)
                yield f"UPDATE {table} SET {name} = {literal} WHERE {where}"


OF_A_MODEL = ("shadow_steps", "outcomes")
"""Tables of which the run without a model has no rows, or of one value alone."""


def test_a_forged_flag_is_found(listed: Path, modelled: Path, tmp_path: Path) -> None:
    for column in FLAGS:
        path = modelled if column.startswith(OF_A_MODEL) else listed
        for statement in plantings(path, column):
            copy = forged(path, tmp_path / "forged.db", statement)
            is_found = not audited(copy) or (
                not believed(copy) if column.startswith("runs.") else column in unequal(copy, path)
            )
            assert is_found, statement


def test_a_row_of_the_run_that_no_run_writes_is_found_by_the_audit(
    listed: Path, tmp_path: Path
) -> None:
    assert audited(listed)
    for change in (
        "runs SET sees_account = 2",
        """runs SET warnings = '[ ]'""",
        "runs SET kind = 'neither'",
        "instruments SET max_leverage = 0",
        """instruments SET risk_tiers = '[ ]'""",
    ):
        path = forged(listed, tmp_path / "forged.db", f"UPDATE {change}")
        assert not audited(path), change
