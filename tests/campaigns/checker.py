"""What a record has to add up to, from its database alone: fills, fees, sides, parts, universe.

Imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any, Final

from drawn import RoundFailed

FEES: Final = {"TAKER": Decimal("0.00055"), "MAKER": Decimal("0.0002")}
MONEY: Final = Decimal("1e-8")
ROUNDED: Final = Decimal("1e-6")
"""What rounding of the partial closes of a whole run comes to at most."""


def asked(database: Path, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of *query*."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


@dataclass
class Held:
    """A position as its fills make it: quantity, what it cost, and what was earned by closing."""

    quantity: Decimal = Decimal(0)
    cost: Decimal = Decimal(0)
    earned: Decimal = Decimal(0)

    def fill(self, signed: Decimal, price: Decimal) -> None:
        """Take a fill: what closes goes first, at its share of the cost."""
        if self.quantity * signed < 0:
            closes = min(abs(signed), abs(self.quantity)).copy_sign(self.quantity)
            cost = self.cost * closes / self.quantity
            self.earned += closes * price - cost
            self.cost -= cost
            self.quantity -= closes
            signed += closes
        self.quantity += signed
        self.cost += signed * price


def check_fills(database: Path, name: str, *, is_hedged: bool) -> None:
    """Hold each fee to its rate, and each position, of each side in hedge mode, to its fills."""
    held: dict[tuple[str, str | None], Held] = {}
    for key, of, side, quantity, price, fee, liquidity in asked(
        database,
        "SELECT instrument, position_side, side, quantity_text, price_text, fee_text, liquidity "
        "FROM v_fills ORDER BY sequence, ordinal",
    ):
        amount, at = Decimal(quantity), Decimal(price)
        right = (amount * at * FEES[liquidity]).quantize(MONEY, rounding=ROUND_HALF_EVEN)
        if Decimal(fee) != right:
            raise RoundFailed(f"{name}: a fee of {fee} was paid on {amount * at}, not {right}")
        if (of is None) is is_hedged:
            raise RoundFailed(f"{name}: a fill of {key} is of the side {of}")
        position = held.setdefault((key, of), Held())
        position.fill(amount if side == "BUY" else -amount, at)
        if (of == "LONG" and position.quantity < 0) or (of == "SHORT" and position.quantity > 0):
            raise RoundFailed(f"{name}: the {of} side of {key} became {position.quantity}")
    for (key, of), position in held.items():
        only = "" if of is None else f" AND side = '{of}'"
        ((text, earned),) = asked(
            database,
            "SELECT quantity_text, realized_pnl_text FROM v_positions "
            f"WHERE instrument = '{key}'{only} ORDER BY sequence DESC LIMIT 1",
        )
        if Decimal(text) != position.quantity:
            raise RoundFailed(f"{name}: {text} of {key} is held, and fills say {position.quantity}")
        if abs(Decimal(earned) - position.earned) > ROUNDED:
            raise RoundFailed(f"{name}: {key} earned {earned}, and fills say {position.earned}")


def check_sides(database: Path, name: str) -> None:
    """Hold both sides to the account, at every bar and to the last unit."""
    names = ("cash", "equity", "fees_paid", "funding_paid", "realized_pnl", "unrealized_pnl")
    texts = ", ".join(f"{one}_text" for one in names)
    sums: dict[int, list[Decimal]] = {}
    for sequence, *values in asked(database, f"SELECT sequence, {texts} FROM v_twin_equity"):
        before = sums.get(sequence, [Decimal(0)] * len(names))
        sums[sequence] = [one + Decimal(value) for one, value in zip(before, values, strict=True)]
    for sequence, *values in asked(
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
    rows = asked(
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
        for sequence, quantity, equity in asked(
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
        for sequence, content in asked(
            database,
            "SELECT sequence, content FROM v_events WHERE kind = 'universe' ORDER BY sequence",
        )
    ]
    if not choices:
        raise RoundFailed(f"{name}: nothing was ever chosen")
    times = [at for (at,) in asked(database, "SELECT market_ms FROM v_events WHERE kind = "
                                   "'universe' ORDER BY sequence")]  # fmt: skip
    if len(set(times)) < len(times):
        raise RoundFailed(f"{name}: a choice was made twice")
    held: dict[tuple[str, str | None], Decimal] = {}
    for key, of, order_id, side, quantity in asked(
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
