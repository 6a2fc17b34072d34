"""``HedgedBroker``: an account in hedge mode, which holds a long and a short side of each symbol.

A side is an account of its own but for the money: its fills and settlements move one common cash,
and its margin binds that. No side ever turns into the other.

The rules are docs/money.md, M90 to M102.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from broker_before.account import AccountState, BarOpening, EncodedAccount, PaperAccount
from broker_before.broker import (
    NOTHING_FILLED,
    SIDES,
    Broker,
    Filled,
    Save,
    _marked,
    refuse_switch,
)
from broker_before.ledger import Ledger, LedgerFunds
from broker_before.matching import Matched, worse_path
from broker_before.orders import FLATTEN, UNCHANGED, Moment, RestingOrders, Sent
from tracepaper.daemon.broker.account import BrokerSettings, Intent, SideIntents
from tracepaper.daemon.broker.execution import DayRange, TrueRange
from tracepaper.daemon.broker.rules import Bounds, MarginRules
from tracepaper.strategies.api.context import AccountView, Cancel, OrderRequest, Orders, Signal
from tracepaper.strategies.api.context import account_view as view_of
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.types.decisions import (
    Account,
    Action,
    Confirmation,
    Fill,
    FillModel,
    LedgerEntry,
    LedgerKind,
    Order,
    Position,
    PositionSide,
)
from tracepaper.strategies.types.market import Bar, Funding, Instrument, Quote, Side
from tracepaper.strategies.units import MONEY_DECIMALS, MONEY_LIMIT, MONEY_MAX, unscaled

OPENS: Final = {PositionSide.LONG: Side.BUY, PositionSide.SHORT: Side.SELL}
"""The orders that open a side; the others close it."""
_OF_ACTION: Final = {Action.LONG: PositionSide.LONG, Action.SHORT: PositionSide.SHORT}
_SHORTS_FIRST: Final = 1_000_000
"""The first ordinal of orders of the short side: in one step both sides bear some."""


class CommonCash(Ledger):
    """The money of a hedged account; what it holds is the sum of its sides."""

    def __init__(
        self, cash: int, instruments: Mapping[str, Instrument], margin: Mapping[str, MarginRules]
    ) -> None:
        super().__init__(cash, instruments, margin=margin, keeps_entries=True)
        self.sides: dict[PositionSide, SideLedger] = {}

    @property
    def available(self) -> int:
        """Cash that no side binds."""
        return self.cash - sum(side.bound for side in self.sides.values())

    def move(
        self,
        kind: LedgerKind,
        amount: int,
        instrument: str,
        order_id: str | None,
        side: PositionSide,
    ) -> None:
        """Move the cash by *amount*, for *side* of *instrument*."""
        self.cash += amount
        assert self.entries is not None
        self.entries.append(LedgerEntry(kind, amount, self.cash, instrument, order_id, side))

    def held(self, instrument: str) -> int:
        """Return the long side less the short one."""
        return sum(side.held(instrument) for side in self.sides.values())

    def position(self, instrument: str) -> Position:
        """Return the sums of both sides."""
        both = [side.position(instrument) for side in self.sides.values()]
        return Position(
            *(sum(getattr(one, name) for one in both) for name in Position.__struct_fields__)
        )

    def account(self) -> Account:
        """Return the account at the newest marks; raise where 64 bits do not hold it."""
        sides = [side.account() for side in self.sides.values()]
        unrealized = sum(one.unrealized_pnl for one in sides)
        equity = self.cash + unrealized
        if abs(equity) > MONEY_LIMIT or abs(self.cash) > MONEY_LIMIT:
            raise ConfigInvalid(
                f"The account came to {unscaled(equity, MONEY_DECIMALS)}, beyond {MONEY_MAX:,}; "
                "start a new one with less account.cash or a smaller [sizing]."
            )
        return Account(
            self.cash,
            equity,
            sum(one.realized_pnl for one in sides),
            unrealized,
            sum(one.fees_paid for one in sides),
            sum(one.funding_paid for one in sides),
        )

    def report(
        self, instrument: str | None
    ) -> tuple[Position | None, Account, tuple[LedgerEntry, ...]]:
        """Return the position, the account, and the movements of the cash since the last call."""
        moved, self.entries = self.entries or [], []
        position = None if instrument is None else self.position(instrument)
        return position, self.account(), tuple(moved)


class SideLedger(Ledger):
    """One side of every instrument; what moves its cash moves the common one by as much."""

    def __init__(
        self,
        cash: int,
        instruments: Mapping[str, Instrument],
        margin: Mapping[str, MarginRules],
        side: PositionSide,
        common: CommonCash,
    ) -> None:
        super().__init__(cash, instruments, margin=margin)
        self._side, self._common = side, common
        self._sign = 1 if side is PositionSide.LONG else -1

    @property
    def bound(self) -> int:
        """Cash that the margins of this side bind."""
        return self._bound

    @property
    def available(self) -> int:
        """Cash of the account that neither side binds."""
        return self._common.available

    def apply_fill(self, fill: Fill) -> Bounds | None:
        """Book a fill on this side; raise ``InvariantBroken`` where it would turn it."""
        bounds = super().apply_fill(fill)
        if self.held(fill.instrument) * self._sign < 0:
            raise InvariantBroken(
                f"order {fill.order_id} closed more of {fill.instrument} than its "
                f"{self._side} side held"
            )
        if fill.instrument in (told := self._common.fills):
            told[fill.instrument].append(replace(fill, position_side=self._side))
        return bounds

    def _move(
        self, kind: LedgerKind, amount: int, instrument: str, order_id: str | None = None
    ) -> None:
        super()._move(kind, amount, instrument, order_id)
        if amount:
            self._common.move(kind, amount, instrument, order_id, self._side)


class SideOrders(RestingOrders):
    """What rests for one side of an instrument."""

    first = 0  # the first ordinal of its orders

    def next_id(self, sequence: int, first: int = 0) -> str:
        """Return the id of the next order, which the other side has none of."""
        return super().next_id(sequence, self.first + first)


class SideAccount(PaperAccount):
    """One side of every instrument of a hedged account: orders, exit orders, position, margin."""

    resting_type = SideOrders

    def __init__(
        self,
        instruments: Sequence[Instrument],
        settings: BrokerSettings,
        whole: HedgedAccount,
        side: PositionSide,
        cash: int,
        ranges: Mapping[str, TrueRange],
    ) -> None:
        """Open *side* of the account *whole*; *cash* is what its own sums begin with."""
        super().__init__(instruments, settings, ranges=ranges)
        self._side, self._whole = side, whole
        self.ledger = SideLedger(cash, self._instruments, self._margin, side, whole.common)
        self._funds = {key: LedgerFunds(self.ledger, key) for key in self._instruments}
        self.held = self.ledger.held
        self.position = self.ledger.position
        self.report = self.ledger.report
        self.balance = whole.common.account  # sizes and limits follow from the whole account
        if side is PositionSide.SHORT:
            for orders in self.orders.values():
                assert isinstance(orders, SideOrders)
                orders.first = _SHORTS_FIRST

    def gross_of_others(self, instrument: str) -> int:
        """Return the notional at the marks of all other positions, without signs.

        The other side of *instrument* is one of them.
        """
        other = next(one for side, one in self._whole.sides.items() if side is not self._side)
        size = max(abs(other.held(instrument)), abs(other.target(instrument)))
        of_other = self.ledger.notional(instrument, size)
        return self._whole.gross_of_others(instrument) + of_other

    def gross_of_this(self, instrument: str) -> int:
        """Return the notional at the marks of all of this side but *instrument*."""
        return super().gross_of_others(instrument)

    def _spendable(self, instrument: str, *, is_reversal: bool = False) -> int:
        return self.ledger.available

    def tagged(self, orders: Iterable[Order]) -> tuple[Order, ...]:
        """Return *orders* with the name of this side."""
        return tuple(replace(order, position_side=self._side) for order in orders)


class HedgedAccount(PaperAccount):
    """An account in hedge mode: what decisions see of it is the sum of its sides."""

    def __init__(
        self,
        instruments: Sequence[Instrument],
        settings: BrokerSettings,
        ranges: Mapping[str, TrueRange],
    ) -> None:
        """Open the account; the sums of each side begin with half of its cash."""
        super().__init__(instruments, settings, ranges=ranges)
        self.common = CommonCash(settings.cash, self._instruments, self._margin)
        self.ledger = self.common
        self.held = self.common.held
        self.position = self.common.position
        self.balance = self.common.account
        self.report = self.common.report
        self.bars_since: Callable[[int], int] = int  # closes since a market time
        self.sides = {
            side: SideAccount(instruments, settings, self, side, half, ranges)
            for side, half in zip(SIDES, halves(settings.cash), strict=True)
        }
        for side, account in self.sides.items():
            assert isinstance(account.ledger, SideLedger)
            self.common.sides[side] = account.ledger

    def target(self, instrument: str) -> int:
        """Return the sum of both sides' targets, reached or not."""
        return sum(account.target(instrument) for account in self.sides.values())

    def confirmed_ms(self, instrument: str) -> int:
        """Return 0: each side is confirmed by itself."""
        return 0

    def confirm(self, instrument: str, open_time_ms: int) -> None:
        """Do nothing: each side is confirmed by itself."""

    def reach(self, instrument: str, asked: Orders) -> tuple[int, bool]:
        """Return the largest positions that *asked* could lead to, those of both sides added up.

        And whether all of it can only reduce.
        """
        both = [
            account.reach(instrument, replace(asked, requests=requests_of(asked, side)))
            for side, account in self.sides.items()
        ]
        return sum(reach for reach, _ in both), all(reduces for _, reduces in both)

    def gross_of_others(self, instrument: str) -> int:
        """Return the notional at the marks of both sides of all other instruments."""
        return sum(account.gross_of_this(instrument) for account in self.sides.values())

    def opened_ms(self, instrument: str) -> int:
        """Return the market time of the fill that opened the older side; 0 where none is held."""
        opened = (account.opened_ms(instrument) for account in self.sides.values())
        return min(filter(None, opened), default=0)

    def view(self, instrument: Instrument, *, bars_since: Callable[[int], int]) -> AccountView:
        """Return the view that a strategy has of the account; its fills are no news after that."""
        key = instrument.id
        told, self.ledger.fills[key] = self.ledger.fills[key], []
        orders = [
            order
            for account in self.sides.values()
            for order in account.tagged(account.orders[key].orders)
        ]
        balance = self.balance()
        long, short = (
            view_of(
                instrument,
                position=account.position(key),
                opened_ms=account.opened_ms(key),
                bars_held=bars_since(account.opened_ms(key)),
                orders=(),
                fills=(),
                account=balance,
            ).position
            for account in self.sides.values()
        )
        whole = view_of(
            instrument,
            position=self.position(key),
            opened_ms=self.opened_ms(key),
            bars_held=bars_since(self.opened_ms(key)),
            orders=orders,
            fills=told,
            account=balance,
        )
        return replace(whole, long=long, short=short)

    def state(self) -> AccountState:
        """Return the state that must survive a restart: the cash, since the sides hold the rest."""
        return AccountState(self.ledger.cash, {})

    def encoded_state(self) -> EncodedAccount:
        """Return the encoding of :meth:`state`."""
        return self.ledger.cash, {}


def halves(cash: int) -> tuple[int, int]:
    """Split *cash* into the first cash of each side."""
    return cash - cash // 2, cash // 2


def requests_of(asked: Orders, side: PositionSide) -> tuple[OrderRequest | Cancel, ...]:
    """Return the requests of a list for *side*; those that take orders back are of both."""
    return tuple(
        request
        for request in asked.requests
        if isinstance(request, Cancel) or request.position_side is side
    )


class HedgedBroker(Broker):
    """A broker whose one account holds both sides; each is shown to reports as a sub-account."""

    own: HedgedAccount

    def __init__(
        self,
        instruments: Sequence[Instrument],
        settings: BrokerSettings,
        day_ranges: Mapping[str, DayRange],
        *,
        shadows: Iterable[str] = (),
        reports_fills: Iterable[str] = (),
        confirms: Collection[str] = (),
    ) -> None:
        """Open the account; there are no shadow accounts.

        Raises ``ConfigInvalid`` for what hedge mode does not take.
        """
        for item in instruments:
            if item.quote_coin == "USDC":
                raise ConfigInvalid(
                    f"{item.id} is settled in USDC, whose contracts the exchange has in one-way "
                    'mode alone; set account.position_mode to "one_way".'
                )
        if settings.execution is FillModel.BOOK:
            raise ConfigInvalid(
                "Order books fill no orders of an account in hedge mode; set account.position_mode "
                'to "one_way", or leave --events out and execution.model at next_open.'
            )
        assert not settings.is_cross
        assert not tuple(shadows)
        super().__init__(instruments, settings, day_ranges, confirms=confirms)
        self.own = HedgedAccount(instruments, settings, self._ranges)
        self.own.ledger.fills = {key: [] for key in reports_fills}
        self.sides = self.own.sides
        self.shadows = {side.value: account for side, account in self.sides.items()}
        self._show_events_to(*self.sides.values())
        self._ledgers = (self.own.ledger, *self._ledgers)

    # ------------------------------------------------------------ what the market does

    def _match(
        self,
        match: Callable[[PaperAccount], Matched],
        instrument: str,
        sequence: int,
        *,
        while_down: bool = False,
    ) -> Filled:
        """Let one event meet the long side, and then the short one."""
        filled = NOTHING_FILLED
        for side, account in self.sides.items():
            matched = match(account)
            if matched.orders or matched.ended_plan:
                self.save = Save.NOW
            if not matched.orders:
                continue
            fills = tuple(
                replace(fill, position_side=side)
                for fill in _marked(matched.fills, while_down=while_down)
            )
            filled = filled.followed_by(
                Filled(
                    fills,
                    account.tagged(matched.orders),
                    {side.value: fills} if fills else {},
                    tuple(matched.booked),
                )
            )
        return filled

    def _match_bar(self, bar: Bar, sequence: int, *, is_missed: bool = False) -> Filled:
        """Let *bar* meet both sides, on the one path that leaves both with less."""
        opened: dict[PaperAccount, BarOpening] = {}

        def at_open(account: PaperAccount) -> Matched:
            opened[account] = account.open_bar(bar, sequence, is_missed=is_missed)
            return opened[account].trades

        def on_path(account: PaperAccount) -> Matched:
            later = Matched()  # what the open filled stands in the step already
            later.note(*opened[account].trades.orders)
            return account.follow(bar, opened[account]._replace(trades=later), path, sequence)

        filled = self._match(at_open, bar.instrument, sequence, while_down=is_missed)
        path = worse_path(*(one.tried for one in opened.values()))
        return filled.followed_by(
            self._match(on_path, bar.instrument, sequence, while_down=is_missed)
        )

    def on_quote(self, quote: Quote, sequence: int) -> Filled:
        """Fill what rests by *quote*, whose sizes both sides share: the long side is first."""
        if not self._by_quotes:
            return NOTHING_FILLED
        left = quote

        def match(account: PaperAccount) -> Matched:
            nonlocal left
            matched = account.match(left, sequence)
            taken = dict.fromkeys(Side, 0)
            for fill in matched.fills:
                taken[fill.side] += fill.quantity
            left = replace(
                left,
                ask_size=max(left.ask_size - taken[Side.BUY], 0),
                bid_size=max(left.bid_size - taken[Side.SELL], 0),
            )
            return matched

        return self._match(match, quote.instrument, sequence)

    def on_funding(self, funding: Funding, sequence: int) -> Filled:
        """Settle *funding* of each side: the one that receives comes first."""
        key = funding.instrument
        self.save = Save.NOW
        sides = list(self.sides.values())
        for account in reversed(sides) if funding.rate > 0 else sides:
            account.pay_funding(key, funding.rate)
        changed: tuple[Order, ...] = ()
        for account in sides:
            changed += account.tagged(
                account.set_liquidation_price(key, sequence, funding.market_ms)
            )
        return Filled(orders=changed) if changed else NOTHING_FILLED

    def on_signal(self, instrument: str, signal: Signal) -> None:
        """Let a side that waits for another signal on *instrument* learn the newest one."""
        for account in self.sides.values():
            if account.orders[instrument].is_guarded and account.on_signal(
                instrument, signal.action
            ):
                self.save = Save.NOW

    def expire(self, instrument: str, market_ms: int) -> Filled:
        """Cancel what no quote filled in time, where quotes fill orders."""
        if not self._by_quotes:
            return NOTHING_FILLED
        expired: tuple[Order, ...] = ()
        for account in self.sides.values():
            expired += account.tagged(account.expire(instrument, market_ms))
        if expired:
            self.save = Save.NOW
        return Filled(orders=expired) if expired else NOTHING_FILLED

    def change(self, instrument: Instrument) -> None:
        """Use the exchange's new filters for orders and prices from now on."""
        self.own.change(instrument)
        super().change(instrument)

    # ------------------------------------------------------------ what is asked for

    def submit(
        self,
        intent: Intent | Orders,
        bar: Bar,
        *,
        sequence: int,
        at_ms: int,
        shadow: str | None = None,
    ) -> Sent:
        """Ask each side for its part of what was decided at *bar*'s close."""
        changed: tuple[Order, ...] = ()
        if isinstance(intent, Orders):
            for side, account in self.sides.items():
                of_side = replace(intent, requests=requests_of(intent, side))
                changed += account.tagged(
                    account.send(of_side, bar, sequence=sequence, at_ms=at_ms)
                )
            if changed:
                self.save = Save.NOW
            return Sent(changed, None)
        asked = intent.sides if isinstance(intent, SideIntents) else dict.fromkeys(SIDES, intent)
        refusals = []
        for side, one in asked.items():
            if one is None:
                continue
            sent = super().submit(one, bar, sequence=sequence, at_ms=at_ms, shadow=side.value)
            changed += self.sides[side].tagged(sent.orders)
            if sent.refusal is not None:
                refusals.append(f"{side}: {sent.refusal}")
        if not changed and not refusals:
            return UNCHANGED
        return Sent(changed, "; ".join(refusals) or None)

    def cancel(self, reason: str, *, opening_only: bool = False) -> tuple[Order, ...]:
        """Cancel the orders by list: all of them, or those that could open a position."""
        orders: tuple[Order, ...] = ()
        for account in self.sides.values():
            for key in account.orders:
                ended = account.withdraw(key, reason, opening_only=opening_only)
                orders += account.tagged(ended)
        if orders:
            self.save = Save.NOW
        return orders

    def flatten(self, closes: Mapping[str, int], *, sequence: int, at_ms: int) -> tuple[Order, ...]:
        """Close both sides of what is held, by the operator's command."""
        orders: tuple[Order, ...] = ()
        for account in self.sides.values():
            for ordinal, (key, resting) in enumerate(account.orders.items()):
                if (close := closes.get(key)) is None:
                    continue
                self.save = Save.NOW
                assert isinstance(resting, SideOrders)
                made = account.leave(key, FLATTEN)
                now = Moment(sequence, at_ms, 0, close, account.held(key))
                order_id = f"{sequence}-{resting.first + ordinal}"
                made += account.submit(
                    key, 0, FLATTEN, now, order_id=order_id, by_command=True
                ).orders
                orders += account.tagged(made)
        return orders

    # ------------------------------------------------------------ what a start needs

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

        Of a run in one-way mode the cash alone. Raises ``ConfigInvalid`` where it holds or orders
        anything, ``InvariantBroken`` where the sides do not add up to the account.
        """
        if not shadows.keys() >= self.shadows.keys():
            refuse_switch(own)
            own = AccountState(own.cash, {})
            shadows = {
                name: AccountState(half, {})
                for name, half in zip(self.shadows, halves(own.cash), strict=True)
            }
        super().restore(own, shadows, confirmed=confirmed, fills=fills, taken_over=taken_over)
        of_sides = sum(account.ledger.cash for account in self._accounts)
        if of_sides != self.own.ledger.cash:
            raise InvariantBroken(
                f"the cash of both sides adds up to {of_sides}, and the account's is "
                f"{self.own.ledger.cash}; run `tracepaper audit verify` and restore a backup"
            )
