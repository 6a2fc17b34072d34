"""What a record has to add up to, from its database alone: sides, parts, universe.

Imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from drawn import RoundFailed

FEES: Final = {"TAKER": Decimal("0.00055"), "MAKER": Decimal("0.0002")}
MONEY: Final = Decimal("1e-8")


def rows_of(database: Path, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of *query*."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def check_sides(database: Path, name: str) -> None:
    """Hold both sides to the account, at every bar and to the last unit."""
    names = ("cash", "equity", "fees_paid", "funding_paid", "realized_pnl", "unrealized_pnl")
    texts = ", ".join(f"{name}_text" for name in names)
    sums: dict[int, list[Decimal]] = {}
    of_sides = f"SELECT sequence, {texts} FROM v_shadow_equity WHERE shadow IN ('LONG', 'SHORT')"
    for sequence, *values in rows_of(database, of_sides):
        before = sums.get(sequence, [Decimal(0)] * len(names))
        sums[sequence] = [old + Decimal(value) for old, value in zip(before, values, strict=True)]
    for sequence, *values in rows_of(
        database, f"SELECT sequence, {texts} FROM v_equity JOIN v_decisions USING (sequence)"
    ):
        of_account = [Decimal(value) for value in values]
        if sums.get(sequence) != of_account:
            raise RoundFailed(
                f"{name}: at {sequence} both sides have {sums.get(sequence)}, and the account "
                f"{of_account}, of {', '.join(names)}"
            )


def check_parts(database: Path, name: str, *, is_all: bool) -> None:
    """Hold the sub-accounts to the account, at every step; *is_all*: their shares add up to 1."""
    rows = rows_of(
        database,
        "SELECT sequence, instrument, strategy, quantity_text, equity_text "
        "FROM v_strategy_decisions ORDER BY sequence",
    )
    sums: dict[int, Decimal] = {}
    worth: dict[int, Decimal] = {}
    for sequence, _, _, quantity, equity in rows:
        sums[sequence] = sums.get(sequence, Decimal(0)) + Decimal(quantity)
        worth[sequence] = worth.get(sequence, Decimal(0)) + Decimal(equity)
    account = {
        sequence: (Decimal(quantity), Decimal(equity))
        for sequence, quantity, equity in rows_of(
            database,
            "SELECT d.sequence, p.quantity_text, e.equity_text FROM v_decisions d JOIN "
            "v_positions p USING (run_id, sequence) JOIN v_equity e USING (run_id, sequence)",
        )
    }
    for sequence, total in sums.items():
        if sequence not in account:
            continue
        quantity, equity = account[sequence]
        if total != quantity:
            raise RoundFailed(f"{name}: parts hold {total} at {sequence}, it {quantity}")
        if is_all and worth[sequence] != equity:
            raise RoundFailed(f"{name}: parts are worth {worth[sequence]}, it {equity}")


def check_universe(database: Path, name: str) -> None:
    """Hold every fill that opens or raises a position to the choice when its order was born."""
    choices = [
        (sequence, set(json.loads(content)["chosen"]))
        for sequence, content in rows_of(
            database,
            "SELECT sequence, content FROM v_events WHERE kind = 'universe' ORDER BY sequence",
        )
    ]
    if not choices:
        raise RoundFailed(f"{name}: nothing was ever chosen")
    times = [at for (at,) in rows_of(database, "SELECT market_ms FROM v_events WHERE kind = "
                                   "'universe' ORDER BY sequence")]  # fmt: skip
    if len(set(times)) < len(times):
        raise RoundFailed(f"{name}: a choice was made twice")
    held: dict[tuple[str, str | None], Decimal] = {}
    for key, of, order_id, side, quantity in rows_of(
        database,
        "SELECT instrument, position_side, order_id, side, quantity_text FROM v_fills "
        "ORDER BY sequence, ordinal",
    ):
        before = held.get((key, of), Decimal(0))
        after = before + (1 if side == "BUY" else -1) * Decimal(quantity)
        held[key, of] = after
        born = int(order_id.partition("-")[0])
        chosen = [names for at, names in choices if at < born]
        if abs(after) > abs(before) and not (chosen and key in chosen[-1]):
            raise RoundFailed(f"{name}: {order_id} opened {key} outside the universe")
