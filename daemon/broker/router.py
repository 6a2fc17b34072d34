"""``Router``: from the wishes of several owners of an account to its targets and orders.

The owners' targets are netted into one position. What opposes each other crosses at once; the rest
is one order, whose fills are shared. At every step the shares add up to the account.

The rules are docs/one_account.md, J12 to J23.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from tracepaper.daemon.broker.account import Intent, PaperAccount
from tracepaper.daemon.broker.apportion import crossed
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.orders import UNCHANGED, Sent, as_they_stand
from tracepaper.strategies.types.decisions import (
    Action,
    Fill,
    FillModel,
    Liquidity,
    Order,
    OrderStatus,
)
from tracepaper.strategies.types.market import Side

Ask = Callable[[Line, Intent], Sent]
"""Asks a line for what was decided."""


class Proposal(NamedTuple):
    """What the owners ask for at a bar's close, and at what price opposing shares cross."""

    intents: Mapping[str, Intent]  # of those that no gate holds, by name
    target: int  # all of them together
    price: int


class Router:
    """Routes what the owners of *account* ask for."""

    def __init__(self, account: PaperAccount) -> None:
        self._account = account
        self.sent: dict[str, Sent] = {}  # what each owner's newest intent came to
        self._crossed: dict[str, list[Fill]] = {}  # of each owner, in no step yet
        self._proposal: Proposal | None = None
        self.is_reached = False  # whether every share stands as the newest proposal asks

    def propose(self, proposal: Proposal) -> None:
        """Keep what the owners ask for until the account is asked for all of it together."""
        self._proposal = proposal
        self.sent, self.is_reached = {}, False

    def submit(
        self,
        instrument: str,
        intent: Intent,
        ask: Ask,
        *,
        confirms: bool,
        sequence: int,
        at_ms: int,
    ) -> Sent:
        """Ask the position for the net *intent* of what was proposed, and each share for its own.

        It *confirms* where an entry lets its position stand for another horizon.
        """
        proposal = self._proposal
        assert proposal is not None
        position = self._account.line(instrument)
        if not confirms and self._stands(position, intent, proposal):  # as at most bars
            self.sent = dict.fromkeys(proposal.intents, UNCHANGED)
            self.is_reached = True
            return UNCHANGED
        changed: tuple[Order, ...] = ()
        is_breached = intent.target != proposal.target  # of a limit: all of it is closed
        for share in position.shares:
            asked = proposal.intents.get(share.owner)
            if asked is not None:
                sent = ask(share, Intent(Action.FLAT, 0, intent.reason) if is_breached else asked)
                self.sent[share.owner] = sent
                changed = as_they_stand(changed, sent.orders)
            elif is_breached:
                share.want(0, intent.reason)
        crossing = self.cross(instrument, proposal.price, sequence=sequence, at_ms=at_ms)
        sent = ask(position, intent)
        return sent._replace(orders=as_they_stand(as_they_stand(changed, crossing), sent.orders))

    @staticmethod
    def _stands(position: Line, intent: Intent, proposal: Proposal) -> bool:
        """Return whether every share stands where it is to stand, and no protection changes."""
        if intent.target != proposal.target or position.orders.rests:
            return False
        for share in position.shares:
            if (asked := proposal.intents.get(share.owner)) is None:
                continue
            if not asked.target == share.orders.target == share.held:
                return False
            if asked.is_protected or asked.refusal is not None or share.orders.is_guarded:
                return False
        return position.held == intent.target == position.orders.target

    def cross(self, instrument: str, price: int, *, sequence: int, at_ms: int) -> tuple[Order, ...]:
        """Let shares that oppose each other cross at *price*, without fee.

        Returns the protection that this changes; :meth:`take_crossed` has the fills.
        """
        shares = self._account.line(instrument).shares
        wanted = [share.orders.target - share.held for share in shares]
        changed: tuple[Order, ...] = ()
        for share, signed in zip(shares, crossed(wanted), strict=True):
            if not signed:
                continue
            orders = share.orders
            side, quantity = (Side.BUY, signed) if signed > 0 else (Side.SELL, -signed)
            order = Order(
                orders.next_id(sequence), instrument, side, quantity, quantity,
                OrderStatus.FILLED, orders.reason, at_ms, at_ms,
            )  # fmt: skip
            fill = Fill(
                order.order_id, instrument, side, quantity, price, price,
                share.notional(price, quantity), 0, 0, Liquidity.MAKER, FillModel.CROSSED,
                orders.reason, at_ms,
            )  # fmt: skip
            changed = as_they_stand(changed, share.take_part(fill, order, sequence))
            self._crossed.setdefault(share.owner, []).append(fill)
        return changed

    @property
    def intents(self) -> Collection[Intent]:
        """What was proposed last."""
        return () if self._proposal is None else self._proposal.intents.values()

    @property
    def has_crossed(self) -> bool:
        """Whether shares have crossed since :meth:`take_crossed`."""
        return bool(self._crossed)

    def take_crossed(self) -> dict[str, tuple[Fill, ...]]:
        """Return the crossings since the last call, by owner."""
        taken = {name: tuple(fills) for name, fills in self._crossed.items()}
        self._crossed.clear()
        return taken
