"""Cross margin: the account's balance, its margins and the steps of its liquidation; pure.

One balance, cash and all unrealized results, answers for every position and resting order. Where
the maintenance margin of all of them reaches it, the exchange's engine cancels orders, reduces
positions to lower risk tiers, and else takes all of them over.

The rules are docs/money.md, M49 to M60. Money is in 10⁻⁸, prices and quantities in units of the
instrument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

from tracepaper.daemon.broker.rules import MarginRules, beyond


class CrossLine(NamedTuple):
    """What an account holds of one instrument and may come to hold, valued at one price."""

    rules: MarginRules
    held: int  # signed
    entry: int  # entry notional, signed
    value: int  # of what is held, signed
    exposed: int  # value of the largest position that resting orders lead to, signed

    @property
    def profit(self) -> int:
        """The unrealized result."""
        return self.value - self.entry

    @property
    def initial(self) -> int:
        """The initial margin of position and orders, with the fee of closing."""
        return self.rules.required(self.exposed)

    @property
    def maintenance(self) -> int:
        """The maintenance margin of position and orders, with the fee of closing."""
        return self.rules.maintenance(self.exposed)


K = TypeVar("K")
"""Names a position: by its instrument, or in hedge mode by its side as well."""
Lines = Mapping[K, CrossLine]
"""Of each position in which anything is held or rests."""


class Reduction(NamedTuple, Generic[K]):
    """What a position is reduced by, to the limit of which tier."""

    key: K
    quantity: int  # unsigned
    tier: int


Reduced = Callable[[K, CrossLine, int], tuple[CrossLine, int]]
"""From position, line and quantity to the line after a close at the market, and its cash."""


def balance_of(cash: int, lines: Lines[K]) -> int:
    """Return the margin balance: *cash* and the unrealized results."""
    return cash + sum(line.profit for line in lines.values())


def is_called(cash: int, lines: Lines[K]) -> bool:
    """Return whether the maintenance ratio is at 100 % or above: the account is liquidated."""
    if not any(line.exposed or line.held for line in lines.values()):
        return False
    return sum(line.maintenance for line in lines.values()) >= balance_of(cash, lines)


def reductions(
    cash: int, lines: Lines[K], step_of: Mapping[K, int], reduced: Reduced[K]
) -> list[Reduction[K]]:
    """Return the reductions to lower risk tiers that end the liquidation, or none.

    The position with the largest maintenance margin comes first. It goes to the highest tier that
    ends the liquidation; where none does, to the lowest, and the next position follows. Where all
    of that would not do, nothing is sold: fill or kill. *step_of* are the steps of the quantities.
    """
    after, done = dict(lines), list[Reduction[K]]()
    for key in sorted(lines, key=lambda key: -lines[key].maintenance):
        line, least = lines[key], None
        for tier, limit in line.rules.lower_tiers(line.value):
            quantity = beyond(abs(line.value), abs(line.held), limit, step_of[key])
            smaller, moved = reduced(key, line, quantity)
            least = Reduction(key, quantity, tier), smaller, moved
            tried = {**after, key: smaller}
            # Without any position nothing is called, and a debt would remain.
            if not is_called(cash + moved, tried) and balance_of(cash + moved, tried) >= 0:
                return [*done, least[0]]
        if least is not None:
            done.append(least[0])
            after[key] = least[1]
            cash += least[2]
    return []


def takeover_order(lines: Lines[K]) -> list[K]:
    """Return the held positions in which order the engine takes them over.

    Shorts first, the largest first: a price has no limit above, so a long can bear what is left.
    """
    held = [key for key, line in lines.items() if line.held]
    return sorted(held, key=lambda key: (lines[key].held > 0, -abs(lines[key].value)))


def loss_of(key: K, cash: int, lines: Lines[K]) -> int:
    """Return the part of the balance that the takeover of *key* loses: its share of the value.

    Below 0 where the balance is: the exchange's fund bears that. The last one loses all of it.
    """
    whole = sum(abs(line.value) for line in lines.values() if line.held)
    balance, others = balance_of(cash, lines), sum(line.held != 0 for line in lines.values()) - 1
    if not others or not whole:
        return balance
    return balance * abs(lines[key].value) // whole
