"""``Broker``: the run's account and its shadow accounts, and what events and intents do to them.

The engine shows it each event and hands it each intent, and learns what was filled and which orders
changed. Ledger, resting orders, exit orders and matching are its own. A shadow account is another
account at the same broker: every event meets both alike.

The rules are docs/money.md, M6 to M21, and docs/decisions.md, G18.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from msgspec.structs import replace

from broker_before.account import AccountState, EncodedAccount, PaperAccount, as_they_stand
from broker_before.cross_account import CrossAccount
from broker_before.matching import Matched, matters_from, touched
from broker_before.orders import FLATTEN, UNCHANGED, Moment, Sent
from tracepaper.daemon.broker.account import ENTRIES, BrokerSettings, Intent
from tracepaper.daemon.broker.broker import NOTHING_FILLED, Filled, Save
from tracepaper.daemon.broker.execution import DayRange, TrueRange
from tracepaper.daemon.broker.exit_plans import Plan
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.corporate_actions import adjusted_price
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed
from tracepaper.strategies.types.decisions import (
    Action,
    Confirmation,
    Fill,
    FillModel,
    Order,
    Position,
    PositionSide,
)
from tracepaper.strategies.types.market import (
    BY_REST,
    Bar,
    BookUpdate,
    CorporateAction,
    Funding,
    Gap,
    Instrument,
    Mark,
    Quote,
)

SIDES: Final = tuple(PositionSide)
ONE_WAY: Final = (
    "The strategy names a position_side, and the account is in one-way mode; set "
    'account.position_mode to "hedge", or name none.'
)
_LATER: Final = Save.LATER  # a member is slow to look up on its class, and entries do it


class Broker:
    """A paper broker: every account of a run.

    ``save`` says whether what the accounts carry has changed and has to be stored; whoever stores
    it sets it back.
    """

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
        """Open the run's account, and one for each name of *shadows*.

        Whoever sees the bars feeds *day_ranges*, by which exit orders are placed. Fills of the
        instruments *reports_fills* wait for their next decision. An entry on one of *confirms*
        lets its position stand for another horizon.
        """
        self.settings = settings
        self._by_quotes = settings.execution is FillModel.QUOTE
        self._by_book = settings.execution is FillModel.BOOK
        self.is_cross = settings.is_cross
        self._is_on_margin = settings.leverage is not None
        self._marked: dict[str, int] = {}  # the newest mark price since their last bar
        self._newest: dict[str, int] = {}  # those that the feed asked of, and no event brought yet
        # What moves prices by their range is fed only where it is asked for.
        self._ranges = {item.id: TrueRange() for item in instruments if settings.costs.ranges}
        opens = partial(CrossAccount, marked=self._marked) if self.is_cross else PaperAccount
        self.own = opens(instruments, settings, ranges=self._ranges, keeps_ledger=True)
        self.own.ledger.fills = {key: [] for key in reports_fills}
        self.shadows = {
            name: opens(instruments, settings, ranges=self._ranges) for name in sorted(shadows)
        }
        self._day_ranges = day_ranges
        self._confirms = frozenset(confirms)
        self._show_events_to(self.own, *self.shadows.values())
        self._missed_until_ms: dict[str, int] = {}  # bars before that time came without quotes
        self.save = Save.NO

    def _show_events_to(self, *accounts: PaperAccount) -> None:
        """Let every event meet *accounts* from now on."""
        self._accounts = accounts
        self._ledgers = tuple(account.ledger for account in accounts)
        # Of each instrument that of every account: at most bars nothing rests in any of them.
        self._resting = {
            key: tuple(account.orders[key] for account in accounts) for key in self.own.orders
        }

    def positions(self, instrument: str) -> dict[str | None, Position]:
        """Return the position of every account in *instrument*, the run's without a name."""
        positions: dict[str | None, Position] = {None: self.own.position(instrument)}
        for name, account in self.shadows.items():
            positions[name] = account.position(instrument)
        return positions

    # ------------------------------------------------------------ what the market does

    def on_bar(self, bar: Bar, sequence: int, *, is_last: bool = True) -> Filled:
        """Fill what rests by *bar*, which step *sequence* will hold, and value what is held.

        What rests was decided by an earlier bar; what this one decides waits for the next. A bar
        values by its close what no mark price has valued since the bar before. It liquidates what
        has reached that value: a fill or a settlement since may have moved the liquidation price.
        On cross margin the bar that *is_last* of its close does, when all have valued what is held.
        """
        key = bar.instrument
        filled = NOTHING_FILLED
        if self._by_quotes or self._by_book:
            filled = self._on_bar_of_quotes(bar, sequence)
        else:
            for resting in self._resting[key]:
                if (
                    resting.order is not None
                    or resting.others
                    or resting.is_guarded
                    or self.is_cross
                ):
                    filled = self._match_bar(bar, sequence)
                    break
        mark = self._marked.pop(key, None)
        if mark is None:
            self._newest.pop(key, None)
            mark = bar.close
            for ledger in self._ledgers:
                ledger.mark(key, mark)
        if self._is_on_margin and (is_last or not self.is_cross):
            liquidated = self._liquidate(key, mark, bar.close_time_ms, sequence)
            filled = filled.followed_by(liquidated)
        if self._ranges:
            self._ranges[key].push(bar)
        return filled

    def _on_bar_of_quotes(self, bar: Bar, sequence: int) -> Filled:
        """Let what rests meet *bar* where its quotes were missed; else end whose time is over."""
        key = bar.instrument
        expired = self.expire(key, bar.market_ms)
        if bar.open_time_ms >= self._missed_until_ms.get(key, 0):
            for account in self._accounts:
                if account.on_quoted_bar(key):
                    self.save = Save.NOW
            return expired
        filled = self._match_bar(bar, sequence, is_missed=True)
        return filled._replace(orders=as_they_stand(expired.orders, filled.orders))

    def _match_bar(self, bar: Bar, sequence: int, *, is_missed: bool = False) -> Filled:
        """Let *bar* meet every account; it *is_missed* where its quotes did not come."""
        return self._match(
            lambda account: account.match(bar, sequence, is_missed=is_missed),
            bar.instrument,
            sequence,
            while_down=is_missed,
        )

    def on_quote(self, quote: Quote, sequence: int) -> Filled:
        """Fill what rests by *quote*, where quotes fill orders."""
        if not self._by_quotes:
            return NOTHING_FILLED
        return self._match(
            lambda account: account.match(quote, sequence), quote.instrument, sequence
        )

    def on_book(self, update: BookUpdate, sequence: int) -> Filled:
        """Fill what rests by *update* of an order book, where books fill orders."""
        if not self._by_book:
            return NOTHING_FILLED
        self.save = Save.NOW  # places in queues
        raise NotImplementedError

    def on_mark(self, mark: Mark, sequence: int) -> Filled:
        """Value what is held by *mark*, and liquidate what it has reached."""
        self.mark(mark)
        return self._liquidate(mark.instrument, mark.price, mark.market_ms, sequence)

    def on_funding(self, funding: Funding, sequence: int) -> Filled:
        """Settle *funding*; return the run's orders that this changes, and who is called by it."""
        key = funding.instrument
        self.save = Save.NOW
        for account in self._accounts:
            account.pay_funding(key, funding.rate)
        changed = [
            account.set_liquidation_price(key, sequence, funding.market_ms)
            for account in self._accounts
        ]
        if self.is_cross:
            price = self.own.ledger.price(key)
            return self._liquidate(key, price, funding.market_ms, sequence)
        return Filled(orders=changed[0]) if changed[0] else NOTHING_FILLED

    def on_action(self, action: CorporateAction) -> tuple[Order, ...]:
        """Book a split or a dividend in every account; return the run's orders that it changes."""
        self.save = Save.NOW
        changed = [account.apply_action(action) for account in self._accounts]
        self.adjust(action)
        return changed[0]

    def adjust(self, action: CorporateAction) -> None:
        """Take the bars before a split as those of the shares after it, and their close too."""
        if not action.is_split:
            return
        self._marked.pop(action.instrument, None)
        self.mark_at_close(action.instrument, adjusted_price(action, action.close))
        if self._ranges:
            self._ranges[action.instrument].adjust(action)

    def on_gap(self, gap: Gap) -> None:
        """Learn which bars come late, by REST, perhaps without the quotes that went with them."""
        if gap.repaired_by == BY_REST and not self._by_book:  # by which bars fill nothing
            self._missed_until_ms[gap.instrument] = gap.until_ms

    def on_signal(self, instrument: str, signal: Signal) -> None:
        """Let whoever waits for another signal on *instrument* learn the newest one."""
        if signal.position_side is not None:
            raise StrategyFailed(ONE_WAY)
        for resting in self._resting[instrument]:
            if resting.is_guarded:
                break
        else:
            return  # as at most bars
        for account in self._accounts:
            if account.on_signal(instrument, signal.action):
                self.save = Save.NOW

    def expire(self, instrument: str, market_ms: int) -> Filled:
        """Cancel what no quote filled in time, where quotes fill orders."""
        if not (self._by_quotes or self._by_book):
            return NOTHING_FILLED
        expired = [account.expire(instrument, market_ms) for account in self._accounts]
        if any(expired):
            self.save = Save.NOW
        return Filled(orders=expired[0]) if expired[0] else NOTHING_FILLED

    def change(self, instrument: Instrument) -> None:
        """Use the exchange's new filters for orders and prices from now on."""
        for account in self._accounts:
            account.change(instrument)

    def _liquidate(self, instrument: str, mark: int, at_ms: int, sequence: int) -> Filled:
        """Liquidate in every account what *mark* has reached the liquidation price of."""
        if not self._is_on_margin:
            return NOTHING_FILLED
        return self._match(
            lambda account: account.match_mark(instrument, mark, sequence, at_ms),
            instrument,
            sequence,
        )

    def _match(
        self,
        match: Callable[[PaperAccount], Matched],
        instrument: str,
        sequence: int,
        *,
        while_down: bool = False,
    ) -> Filled:
        """Let one event of *instrument* meet every account; *while_down* marks the fills."""
        matched = match(self.own)
        orders = matched.orders
        if orders or matched.ended_plan:
            self.save = Save.NOW
        shadows = {}
        for name, account in self.shadows.items():
            of_shadow = match(account)
            if of_shadow.orders or of_shadow.ended_plan:
                self.save = Save.NOW
            if of_shadow.fills:
                shadows[name] = _marked(of_shadow.fills, while_down=while_down)
        if not orders and not shadows:
            return NOTHING_FILLED
        fills = _marked(matched.fills, while_down=while_down)
        return Filled(fills, orders, shadows, tuple(matched.booked))

    # ------------------------------------------------------------ what is asked for

    def submit(  # noqa: C901 - one case a kind of intent
        self,
        intent: Intent | Orders,
        bar: Bar,
        *,
        sequence: int,
        at_ms: int,
        shadow: str | None = None,
    ) -> Sent:
        """Ask the run's account, or a *shadow* account, for what was decided at *bar*'s close.

        Of a list, what the exchange would refuse is among the orders, REJECTED.
        """
        account = self.own if shadow is None else self.shadows[shadow]
        at_ms = self._sent_ms(bar, at_ms)
        if isinstance(intent, Orders):
            _refuse_sides(intent)
            listed = account.send(intent, bar, sequence=sequence, at_ms=at_ms)
            if listed:
                self.save = Save.NOW
            return Sent(listed, None)
        action, target, reason = intent.action, intent.target, intent.reason
        key = bar.instrument
        orders = account.orders[key]
        before = orders.target
        plan, refusal = self._enter(account, intent, bar, at_ms)
        if refusal is not None:
            action, target = Action.HOLD, before  # a refused entry leaves what stands
        if orders.order is None and target == before == account.held(key):
            sent = UNCHANGED  # as at most bars
        elif (
            orders.shortfall
            and target == before
            and action is Action.HOLD
            and not orders.is_reached(target, account.held(key))
        ):
            sent = Sent((), orders.shortfall)
        else:
            if target == before and action is Action.HOLD:
                reason = orders.reason  # a target that HOLD leaves standing keeps its own
            now = Moment(sequence, at_ms, bar.open_time_ms, bar.close, account.held(key))
            sent = account.submit(key, target, reason, now, order_id=orders.next_id(sequence))
            if sent.orders or before != target:
                self.save = Save.NOW
        changed: tuple[Order, ...] = ()
        is_refused = sent.refusal and orders.order is None and not account.held(key)
        if plan is not None and target and not is_refused:
            changed = account.protect(plan, bar, sequence=sequence, at_ms=at_ms)
            self.save = Save.NOW
        elif orders.is_guarded and action is Action.FLAT and target == 0:
            changed = account.leave(key, f"the signal is {action.value}")
            self.save = Save.NOW
        if changed or refusal is not None:
            orders_now = as_they_stand(sent.orders, changed)
            return Sent(orders_now, refusal or sent.refusal)
        return sent

    def _sent_ms(self, bar: Bar, at_ms: int) -> int:
        """Return when is sent what is decided at *bar*'s close, by *at_ms*.

        Where books fill orders the latency counts from the close, as it does for bars of a file,
        and no order arrives before the frame that closed the bar.
        """
        if not self._by_book:
            return at_ms
        return max(bar.closed_ms, at_ms - self.settings.latency.fixed_ms)

    def _enter(
        self, account: PaperAccount, intent: Intent, bar: Bar, at_ms: int
    ) -> tuple[Plan | None, str | None]:
        """Confirm the position of an entry; return its exit orders and why it cannot be entered."""
        if intent.action not in ENTRIES:
            return None, None
        if intent.refusal is not None:
            return None, intent.refusal
        key, signal = bar.instrument, intent.signal
        plan: Plan | None = None
        if signal is not None and (intent.is_protected or account.orders[key].is_guarded):
            planned = account.plan(signal, bar, at_ms, self._day_ranges[key], intent.expected)
            if isinstance(planned, str):
                return None, planned
            if not account.is_protected_by(planned, key):
                plan = planned
        # Not at once: the step says in a bit that a position was confirmed.
        self.save = self.save or _LATER
        if key in self._confirms:
            account.confirm(key, bar.open_time_ms)
        return plan, None

    def cancel(self, reason: str, *, opening_only: bool = False) -> tuple[Order, ...]:
        """Cancel the run's orders by list: all of them, or those that could open a position."""
        orders: tuple[Order, ...] = ()
        for key in self.own.orders:
            orders += self.own.withdraw(key, reason, opening_only=opening_only)
        if orders:
            self.save = Save.NOW
        return orders

    def flatten(self, closes: Mapping[str, int], *, sequence: int, at_ms: int) -> tuple[Order, ...]:
        """Close what the run holds, by the operator's command.

        *closes* are the newest ones of the instruments that have any.
        """
        orders: tuple[Order, ...] = ()
        for ordinal, key in enumerate(self.own.orders):
            if (close := closes.get(key)) is None:
                continue
            self.save = Save.NOW
            orders += self.own.leave(key, FLATTEN)
            now = Moment(sequence, at_ms, 0, close, self.own.held(key))
            order_id = f"{sequence}-{ordinal}"
            orders += self.own.submit(
                key, 0, FLATTEN, now, order_id=order_id, by_command=True
            ).orders
        return orders

    # ------------------------------------------------------------ what the feed asks

    def quote_from_ms(self, quote: Quote) -> int | None:
        """Return the earliest market time at which a quote such as *quote* can change an order.

        None where none rests that this one could change.
        """
        if not self._by_quotes:
            return None
        key = quote.instrument
        times = [
            from_ms
            for account in self._accounts
            for order in account.orders[key].orders
            if (from_ms := matters_from(order, quote, account.orders[key].trail)) is not None
        ]
        due = [account.matters_from(quote) for account in self._accounts]
        return min(times + [from_ms for from_ms in due if from_ms is not None], default=None)

    def liquidates(self, mark: Mark) -> bool:
        """Return whether *mark* takes a position away, of the run's account or a shadow account."""
        if not self._is_on_margin:
            return False
        if self.is_cross:
            self._newest[mark.instrument] = mark.price
            return any(
                isinstance(account, CrossAccount) and account.is_called_at(self._newest)
                for account in self._accounts
            )
        bounds = (account.orders[mark.instrument].liquidation for account in self._accounts)
        return any(order is not None and touched(order, mark.price) for order in bounds)

    # ------------------------------------------------------------ values, and what a start needs

    def mark(self, mark: Mark) -> None:
        """Value what is held by *mark*, and the next bar's close by nothing."""
        self._marked[mark.instrument] = mark.price
        self._newest.pop(mark.instrument, None)
        self.mark_at_close(mark.instrument, mark.price)

    def mark_at_close(self, instrument: str, close: int) -> None:
        """Value what is held of *instrument* at its newest *close*."""
        for ledger in self._ledgers:
            ledger.mark(instrument, close)

    def warm_up(self, bar: Bar) -> None:
        """Let *bar* value what no mark price has; it fills nothing, since accounts are younger."""
        key = bar.instrument
        if self._marked.pop(key, None) is None:
            self.mark_at_close(key, bar.close)
        if self._ranges:
            self._ranges[key].push(bar)

    def recall(self, bar: Bar) -> None:
        """Take in a bar that the run already holds."""
        self.mark_at_close(bar.instrument, bar.close)
        if self._ranges:
            self._ranges[bar.instrument].push(bar)

    def forget(self) -> None:
        """Drop what a restarted process does not know: mark prices, and which quotes are missed."""
        self._marked.clear()
        self._missed_until_ms.clear()

    def is_engaged(self, instrument: str) -> bool:
        """Return whether any account holds *instrument*, has a target, or orders that rest."""
        return any(
            account.held(instrument) or account.target(instrument) or rests.rests
            for account, rests in zip(self._accounts, self._resting[instrument], strict=True)
        )

    def fills_since_decided(self, instrument: str) -> tuple[Fill, ...]:
        """Return the run's fills that the next decision on *instrument* will be told of."""
        return tuple(self.own.ledger.fills.get(instrument, ()))

    def state(self) -> tuple[AccountState, dict[str, AccountState]]:
        """Return what must survive a restart: of the run's account, and of the shadow accounts."""
        return self.own.state(), {name: one.state() for name, one in self.shadows.items()}

    def encoded_state(self) -> tuple[EncodedAccount, dict[str, EncodedAccount]]:
        """Return what decodes as :meth:`state`, of which most is known already."""
        shadows = {name: account.encoded_state() for name, account in self.shadows.items()}
        return self.own.encoded_state(), shadows

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

        *confirmed* are the positions that were confirmed since, oldest first; *fills* those that
        decisions have not been told of.
        """
        self.own.restore(own, taken_over=taken_over)
        for name, state in shadows.items():
            if name in self.shadows:  # another run may have had other ones
                self.shadows[name].restore(state)
            elif name in SIDES:
                refuse_switch(state)
        self.save = Save.NO
        for one in confirmed:
            self.save = Save.LATER
            account = self.own if one.twin is None else self.shadows.get(one.twin)
            if account is not None and one.instrument in self._confirms:
                account.confirm(one.instrument, one.open_time_ms)
        known = self.own.ledger.fills
        known.update({key: list(given) for key, given in fills.items() if key in known})


def _refuse_sides(asked: Orders) -> None:
    if any(getattr(one, "position_side", None) for one in asked.requests):
        raise StrategyFailed(ONE_WAY)


def refuse_switch(*accounts: AccountState) -> None:
    """Raise ``ConfigInvalid`` where *accounts* of another position mode hold or order anything."""
    for account in accounts:
        for key, book in account.books.items():
            if book.holding.quantity or book.orders.order is not None or book.orders.others:
                raise ConfigInvalid(
                    f"The newest run in this database holds or orders {key} in another position "
                    "mode, and the exchange switches account.position_mode without positions and "
                    "orders alone; close them in that mode (FLATTEN), or take another database."
                )


def _marked(fills: Sequence[Fill], *, while_down: bool) -> tuple[Fill, ...]:
    return tuple(replace(one, while_down=True) for one in fills) if while_down else tuple(fills)
