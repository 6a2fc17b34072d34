"""``DividedBroker``: one account that several strategies share, and the sub-account of each.

The strategies' targets are netted into one position. What opposes each other crosses at once; the
rest is one order, whose fills are shared. At every step the parts add up to the account.

The rules are docs/one_account.md, J12 to J23.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

from msgspec.structs import replace

from broker_before.account import AccountState, PaperAccount, as_they_stand
from broker_before.broker import NOTHING_FILLED, Broker, Filled, Save, _marked
from broker_before.matching import Matched
from broker_before.orders import FLATTEN, UNCHANGED, Sent
from broker_before.sub_accounts import (
    SharedAccount,
    SharedCrossAccount,
    SubAccount,
    apportion,
    crossed,
    funding_parts,
)
from tracepaper.daemon.broker.account import ENTRIES, BrokerSettings, Intent
from tracepaper.daemon.broker.router import Proposal
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import (
    Action,
    Confirmation,
    Fill,
    FillModel,
    Liquidity,
    Order,
    OrderStatus,
)
from tracepaper.strategies.types.market import Bar, Funding, Instrument, Side
from tracepaper.strategies.units import MONEY_DECIMALS, RATE_SCALE, Notional


class DividedBroker(Broker):
    """A broker whose one account is shared; :meth:`divide` opens the parts."""

    own: SharedAccount
    parts: dict[str, SubAccount]  # by the strategies' names, in their order
    reserve: int  # money that no strategy has a share of

    def divide(
        self,
        instruments: Sequence[Instrument],
        settings: Mapping[str, BrokerSettings],
        shares: Mapping[str, int],
        *,
        reports_fills: Mapping[str, Collection[str]],
        confirms: Collection[str],
    ) -> None:
        """Open a part of the account for each strategy of *shares* (10⁻¹⁰ of its cash).

        *settings* are of each strategy: its exits are its own. *reports_fills* names the
        instruments whose fills each is told of. Raises ``ConfigInvalid`` where money of 10⁻⁸
        could not be shared exactly, and where order books fill.
        """
        for item in instruments:
            if item.price_decimals + item.quantity_decimals > MONEY_DECIMALS:
                raise ConfigInvalid(
                    f"{item.id} counts price times quantity in more than {MONEY_DECIMALS} "
                    "decimals, which no two strategies can share exactly; trade it by [strategy]."
                )
        usual = next(iter(settings.values()))
        if usual.execution is FillModel.BOOK:
            raise ConfigInvalid(
                "Order books fill no orders of several strategies; trade by [strategy], or leave "
                "--events out and execution.model at next_open."
            )
        self._instruments = {item.id: item for item in instruments}
        opens = partial(SharedCrossAccount, marked=self._marked) if self.is_cross else SharedAccount
        own = opens(instruments, replace(usual, exits=None), ranges=self._ranges, keeps_ledger=True)
        rest = RATE_SCALE - sum(shares.values())
        self._weights = [*shares.values(), rest]
        *cash, self.reserve = apportion(usual.cash, self._weights)
        self.own = own
        self.parts = {
            name: SubAccount(instruments, replace(settings[name], cash=money), name, place=place)
            for place, (name, money) in enumerate(zip(shares, cash, strict=True))
        }
        own.join(self.parts)
        for name, keys in reports_fills.items():
            self.parts[name].ledger.fills = {key: [] for key in keys}
        self.shadows = dict(self.parts)
        self._confirms = frozenset(confirms)
        self._show_events_to(own, *self.parts.values())
        self.sent: dict[str, Sent] = {}  # what each strategy's newest intent came to
        self.crossed: dict[str, list[Fill]] = {}  # of each strategy, in no step yet
        self._proposal: Proposal | None = None
        self.is_reached = False  # whether every part stands as the newest proposal asks

    # ------------------------------------------------------------ what the market does

    def _match(
        self,
        match: Callable[[PaperAccount], Matched],
        instrument: str,
        sequence: int,
        *,
        while_down: bool = False,
    ) -> Filled:
        """Let one event meet all that rests in the account: the net order and all protection."""
        matched = match(self.own)
        filled = self.own.take_filled()
        if matched.orders or matched.ended_plan:
            self.save = Save.NOW
        if not matched.orders and not filled:
            return NOTHING_FILLED
        by_name = {name: _marked(fills, while_down=while_down) for name, fills in filled.items()}
        fills = _marked(matched.fills, while_down=while_down)
        return Filled(fills, matched.orders, by_name, tuple(matched.booked))

    def on_funding(self, funding: Funding, sequence: int) -> Filled:
        """Settle *funding* by each part's position; return the account's orders it changes."""
        key = funding.instrument
        self.save = Save.NOW
        accounts = list(self.parts.values())
        due = [one.ledger.notional(key, one.held(key)) * funding.rate for one in accounts]
        paid = self.own.pay_funding(key, funding.rate)
        if not self._instruments[key].category.is_cash and any(due):
            for account, part in zip(accounts, funding_parts(paid, due), strict=True):
                account.book_funding(key, part)
        if self.is_cross:
            return self._liquidate(key, self.own.ledger.price(key), funding.market_ms, sequence)
        changed = self.own.set_liquidation_price(key, sequence, funding.market_ms)
        return Filled(orders=changed)

    def on_signal(self, instrument: str, signal: Signal) -> None:
        """Do nothing: the account has no signal, and each part learns its own by :meth:`hear`."""

    def change(self, instrument: Instrument) -> None:
        """Use the exchange's new filters for orders and prices from now on."""
        super().change(instrument)
        self._instruments[instrument.id] = instrument

    # ------------------------------------------------------------ what is asked for

    def hear(self, name: str, instrument: str, signal: Signal) -> None:
        """Let the part of strategy *name* learn its newest *signal*."""
        part = self.parts[name]
        if part.orders[instrument].is_guarded and part.on_signal(instrument, signal.action):
            self.save = Save.NOW

    def refusal_of(self, name: str, intent: Intent, bar: Bar, at_ms: int) -> str | None:
        """Return why strategy *name* cannot enter as *intent* asks; None where it can, or exits."""
        if intent.action not in ENTRIES or intent.refusal is not None:
            return intent.refusal if intent.action in ENTRIES else None
        part, key = self.parts[name], bar.instrument
        if intent.signal is None or not (intent.is_protected or part.orders[key].is_guarded):
            return None
        planned = part.plan(intent.signal, bar, at_ms, self._day_ranges[key], intent.expected)
        return planned if isinstance(planned, str) else None

    def propose(self, proposal: Proposal | None) -> None:
        """Keep what the strategies ask for until the account is asked for all of it together."""
        self._proposal = proposal
        self.sent, self.is_reached = {}, False

    def submit(
        self,
        intent: Intent | Orders,
        bar: Bar,
        *,
        sequence: int,
        at_ms: int,
        shadow: str | None = None,
    ) -> Sent:
        """Ask the account for the net of what was proposed, and each part for its own."""
        proposal = self._proposal
        assert isinstance(intent, Intent)
        assert proposal is not None
        if self._is_reached(bar.instrument, intent, proposal):  # as at most bars
            return UNCHANGED
        changed: tuple[Order, ...] = ()
        for name, asked in proposal.intents.items():
            one = asked
            if intent.target != proposal.target:  # a limit was breached: all of it is closed
                one = Intent(Action.FLAT, 0, intent.reason)
            sent = super().submit(one, bar, sequence=sequence, at_ms=at_ms, shadow=name)
            self.sent[name] = sent
            changed = as_they_stand(changed, sent.orders)
        if intent.target != proposal.target:
            for name, part in self.parts.items():
                if name not in proposal.intents:
                    part.want(bar.instrument, 0, intent.reason)
        changed = as_they_stand(
            changed, self.cross(bar.instrument, proposal.price, sequence=sequence, at_ms=at_ms)
        )
        sent = super().submit(intent, bar, sequence=sequence, at_ms=at_ms)
        return sent._replace(orders=as_they_stand(changed, sent.orders))

    def _is_reached(self, instrument: str, intent: Intent, proposal: Proposal) -> bool:
        """Return whether every part stands where it is to stand, and no protection changes."""
        own = self.own.orders[instrument]
        if intent.target != proposal.target or self._confirms or own.rests:
            return False
        for name, asked in proposal.intents.items():
            part = self.parts[name]
            orders = part.orders[instrument]
            if not asked.target == orders.target == part.held(instrument):
                return False
            if asked.is_protected or asked.refusal is not None or orders.is_guarded:
                return False
        if not self.own.held(instrument) == intent.target == own.target:
            return False
        self.sent = dict.fromkeys(proposal.intents, UNCHANGED)
        self.is_reached = True
        if intent.is_entry or any(one.is_entry for one in proposal.intents.values()):
            self.save = self.save or Save.LATER
        return True

    def cross(self, instrument: str, price: int, *, sequence: int, at_ms: int) -> tuple[Order, ...]:
        """Let parts that oppose each other cross at *price*, without fee.

        Returns the protection that this changes; ``crossed`` holds the fills.
        """
        wanted = [part.open_part(instrument) for part in self.parts.values()]
        changed: tuple[Order, ...] = ()
        if min(wanted) >= 0 or max(wanted) <= 0:
            return changed
        notional = Notional.of(self._instruments[instrument])
        for (name, part), signed in zip(self.parts.items(), crossed(wanted), strict=True):
            if not signed:
                continue
            orders = part.orders[instrument]
            side, quantity = (Side.BUY, signed) if signed > 0 else (Side.SELL, -signed)
            order = Order(
                orders.next_id(sequence), instrument, side, quantity, quantity,
                OrderStatus.FILLED, orders.reason, at_ms, at_ms,
            )  # fmt: skip
            fill = Fill(
                order.order_id, instrument, side, quantity, price, price,
                notional(price, quantity), 0, 0, Liquidity.MAKER, FillModel.CROSSED,
                orders.reason, at_ms,
            )  # fmt: skip
            made = part.take(fill, order, sequence=sequence)
            changed = as_they_stand(changed, made)
            self.crossed.setdefault(name, []).append(fill)
        self.save = Save.NOW
        return changed

    def take_crossed(self) -> dict[str, tuple[Fill, ...]]:
        """Return the crossings since the last call, by strategy."""
        taken = {name: tuple(fills) for name, fills in self.crossed.items()}
        self.crossed.clear()
        return taken

    def flatten(self, closes: Mapping[str, int], *, sequence: int, at_ms: int) -> tuple[Order, ...]:
        """Close what the account holds; opposing parts cross at the next close."""
        orders: tuple[Order, ...] = ()
        for part in self.parts.values():
            for key in closes:
                orders += part.leave(key, FLATTEN)
                part.want(key, 0, FLATTEN)
        return orders + super().flatten(closes, sequence=sequence, at_ms=at_ms)

    # ------------------------------------------------------------ money, and what a start needs

    def share_out(self) -> None:
        """Give each strategy its share of the account's equity anew, and the rest to the reserve.

        Positions stay where they are: cash moves.
        """
        equity = self.own.balance().equity
        *wanted, self.reserve = apportion(max(equity, 0), self._weights)
        for part, money in zip(self.parts.values(), wanted, strict=True):
            part.ledger.transfer(money - part.balance().equity)
        if equity < 0:
            self.reserve += equity
        self.save = Save.NOW

    def restore(
        self,
        own: AccountState,
        shadows: Mapping[str, AccountState],
        *,
        confirmed: Iterable[Confirmation] = (),
        fills: Mapping[str, Sequence[Fill]] = {},
        taken_over: bool = False,
    ) -> None:
        """Take over what survived a restart, or what another run left (*taken_over*).

        An account of other strategies is shared out: of cash and position each gets its share.
        """
        super().restore(own, shadows, confirmed=confirmed, fills=fills, taken_over=taken_over)
        if not taken_over or shadows.keys() == self.parts.keys():
            return
        weights, accounts = self._weights[:-1], list(self.parts.values())
        *cash, self.reserve = apportion(own.cash, self._weights)
        for key, holding in own.holdings.items():
            held = apportion(holding.quantity, weights)
            sizes = [abs(one) for one in held]
            entries = apportion(holding.entry_notional, sizes if any(sizes) else weights)
            wanted = apportion(self.own.target(key), weights)
            for at, part in enumerate(accounts):
                part.open_with(key, held[at], entries[at], cash[at])
                part.want(key, wanted[at], "taken over")
        for at, part in enumerate(accounts):
            part.restore(replace(part.state(), cash=cash[at]))
