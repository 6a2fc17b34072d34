"""``Broker``: all accounts of a run, to which it applies events and intents.

The engine passes each event and each intent to the broker, and gets back fills and changed orders.
Accounts, resting orders, exit orders and matching are internal to the broker. A shadow account is
another account at the same broker: every event reaches all accounts.

The rules are docs/money.md, M6 to M21, and docs/decisions.md, G18.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from functools import partial
from typing import Final

from tracepaper.daemon.broker.account import ENTRIES, AccountState, Intent, PaperAccount
from tracepaper.daemon.broker.execution import RANGE_BARS, MeanRange
from tracepaper.daemon.broker.exit_orders import (
    due_from_ms,
    entry_refusal,
    follow,
    leave,
    on_signal,
)
from tracepaper.daemon.broker.exit_plans import HeldPosition, Plan
from tracepaper.daemon.broker.ledger import FilledEvent, StepNumber
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.matching import Market
from tracepaper.daemon.broker.orders import FLATTEN, OrderContext, matters_from
from tracepaper.daemon.broker.settings import BrokerSettings
from tracepaper.daemon.broker.settlements import STAMPED_LATE_MS, Moment, Note, Settlements
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.types.decisions import (
    Action,
    Confirmation,
    Fill,
    FillModel,
    Order,
    Position,
)
from tracepaper.strategies.types.market import (
    BY_REST,
    Bar,
    Funding,
    Gap,
    GapCause,
    Instrument,
    Mark,
    Quote,
)


class Save(IntEnum):
    """Whether the state has to be stored."""

    NO = 0
    LATER = 1  # periodically: the steps in between hold the changes
    NOW = 2  # with this step; within a close, with its last one


_LATER: Final = Save.LATER  # looking up an enum member is slow, and entries do it at each bar


NOTHING_FILLED: Final = FilledEvent()


class Broker:
    """A paper broker: all accounts of a run.

    ``save`` says whether the state has changed and has to be stored. The caller resets it after
    storing the state.
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        settings: BrokerSettings,
        day_ranges: Mapping[str, MeanRange],
        *,
        shadows: Iterable[str] = (),
        reports_fills: Iterable[str] = (),
        confirms: Collection[str] = (),
    ) -> None:
        """Open the run's account, and one for each name of *shadows*.

        The caller feeds bars to *day_ranges*, by which exit orders are placed. Fills of the
        instruments *reports_fills* are kept until their next decision. An entry in one of the
        instruments *confirms* lets its position live for another horizon.
        """
        self.settings = settings
        self._by_quotes = settings.execution is FillModel.QUOTE
        self.is_cross = settings.is_cross
        self._is_on_margin = settings.leverage is not None
        self._marked: dict[str, int] = {}  # by instrument: its newest mark price since its last bar
        self._newest: dict[str, int] = {}  # mark prices that the feed announced before their event
        # Mean ranges are fed only if slippage depends on them.
        ranged = instruments if settings.costs.ranges else ()
        self._ranges = {item.id: MeanRange(RANGE_BARS) for item in ranged}
        self.step = StepNumber()
        """The number of the step that acts now, which new orders get."""
        opens = partial(
            PaperAccount,
            instruments,
            step=self.step,
            ranges=self._ranges,
            marked=self._marked,
        )
        self.account = opens(settings, keeps_ledger=True, reports_fills=reports_fills)
        self.shadows = {name: opens(settings, name=name) for name in sorted(shadows)}
        self._day_ranges = day_ranges
        self._confirms = frozenset(confirms)
        self._accounts = (self.account, *self.shadows.values())
        # All lines of each instrument, for a quick check: at most bars no order rests in any.
        self._lines: dict[str, tuple[Line, ...]] = {
            item.id: tuple(account.lines[item.id] for account in self._accounts)
            for item in instruments
        }
        self._missed_until_ms: dict[str, int] = {}  # earlier bars arrived without their quotes
        self.settlements = Settlements()
        for item in instruments if self._by_quotes else ():
            self.settlements.change(item)
        self.save = Save.NOW

    def positions(self, instrument: str) -> dict[str | None, Position]:
        """Return the position of every account in *instrument*, by name; None is the run's."""
        positions: dict[str | None, Position] = {None: self.account.lines[instrument].position}
        for name, shadow in self.shadows.items():
            positions[name] = shadow.lines[instrument].position
        return positions

    # ------------------------------------------------------------ market events

    def take(self) -> FilledEvent:
        """Return the fills and order changes since the last call, or ``NOTHING_FILLED``."""
        shadow_fills: dict[str, tuple[Fill, ...]] = {}
        for name, shadow in self.shadows.items():
            if shadow.ledger.has_changes:
                self.save = Save.NOW
                if fills := shadow.ledger.take().fills:
                    shadow_fills[name] = fills
        ledger = self.account.ledger
        if not (ledger.has_changes or shadow_fills):  # as at most bars
            return NOTHING_FILLED
        if ledger.has_changes:
            self.save = Save.NOW
        filled = ledger.take()
        if not shadow_fills:
            return filled
        return filled._replace(shadow_fills=shadow_fills)

    def on_bar(self, bar: Bar, *, is_last: bool = True) -> FilledEvent:
        """Match the resting orders against *bar*, value the positions, and return what was filled.

        All resting orders were decided before this bar. If no mark price arrived since the bar
        before, the close values the positions. Then positions at their liquidation price are
        liquidated, since a fill may have moved it, and settlements at the close follow: where one
        moves a liquidation price, the next price is compared with it. On cross margin only the bar
        that *is_last* of its close liquidates, after all of them have valued their positions.
        """
        key = bar.instrument
        self.settlements.begin(key, bar.open_time_ms)
        is_due = self.settlements.may_be_due(bar.close_time_ms + STAMPED_LATE_MS)
        moments = self._moments_inside(bar) if is_due else ()
        if self._by_quotes:
            self._on_bar_of_quotes(bar, moments)
        else:
            for account in self._accounts:
                account.markets[key].match_bar(bar, moments)
        for moment in moments:
            self._note(key, moment)
        mark = self._marked.pop(key, None)
        if mark is None:
            self._newest.pop(key, None)
            mark = bar.close
            for line in self._lines[key]:
                line.mark_to(mark)
        if self._is_on_margin and (is_last or not self.is_cross):
            # Dated as what the bar's path fills, and so before a settlement at the close.
            self._liquidate(key, mark, bar.close_time_ms - 1)
        if is_due:
            self._settle(key, bar.close_time_ms + STAMPED_LATE_MS)
        if self._by_quotes:
            mark = self.account.lines[key].mark
            self.settlements.close(key, bar.close_time_ms, mark, self._held(key))
        if self._ranges:
            self._ranges[key].push(bar)
        return self.take()

    def _on_bar_of_quotes(self, bar: Bar, moments: Sequence[Moment]) -> None:
        """Match *bar* if its quotes were missed; in any case cancel expired orders."""
        key = bar.instrument
        self.expire(key, bar.market_ms)
        moved = [line for line in self._lines[key] if line.before_quotes]
        if moved:  # this bar drops what no later one needs
            self.save = Save.NOW
        if bar.open_time_ms >= self._missed_until_ms.get(key, 0):
            for line in moved:
                line.before_quotes = ()
            for account in self._accounts:
                account.markets[key].settle(moments)
            return
        for account in self._accounts:
            account.markets[key].match_bar(bar, moments, is_missed=True)
            account.ledger.mark_while_down()

    def meet(self, bar: Bar) -> None:
        """Match *bar* in the shadow accounts, and value them, as :meth:`on_bar` does."""
        for shadow in self.shadows.values():
            shadow.markets[bar.instrument].match_bar(bar)
            shadow.lines[bar.instrument].mark_to(bar.close)

    def on_quote(self, quote: Quote) -> None:
        """Match the resting orders against *quote*, if quotes fill orders."""
        if self._by_quotes:
            self.settlements.begin(quote.instrument, quote.market_ms)
            with self._noting(quote.market_ms):
                for account in self._accounts:
                    account.markets[quote.instrument].match_quote(quote)

    def on_mark(self, mark: Mark) -> None:
        """Value the positions at *mark*, and liquidate those whose liquidation price it reached."""
        with self._noting(mark.market_ms):
            self.mark(mark)
            self._liquidate(mark.instrument, mark.price, mark.market_ms)

    # ------------------------------------------------------------ settlements

    def on_funding(self, funding: Funding, closed_ms: int) -> None:
        """Settle *funding* on what was held at its time, or keep it until that has come.

        *closed_ms* is the close of the instrument's newest bar.
        """
        self.save = Save.NOW
        key, at_ms = funding.instrument, funding.market_ms
        newest = Note(at_ms, self.account.lines[key].mark, self._held(key))
        noted = self.settlements.arrive(funding, closed_ms, newest)
        if noted is not None:
            moment = Moment(at_ms, noted.mark, funding.rate, noted.held)
            self._book(key, moment, funding.seen_ms)

    def on_hole(self, gap: Gap) -> None:
        """Settle what waits for bars that *gap* says will never arrive."""
        if not gap.repaired_by and gap.cause is not GapCause.FUNDING:
            self._settle(gap.instrument, gap.until_ms + STAMPED_LATE_MS)

    def _held(self, instrument: str) -> dict[str, int]:
        """Return the quantity that each account holds of *instrument*, as in ``Note``."""
        lines = zip(self._accounts, self._lines[instrument], strict=True)
        return {account.name: line.held for account, line in lines if line.held}

    def _moments_inside(self, bar: Bar) -> Sequence[Moment]:
        """Settle what was due by the open of *bar*; return the moments inside the bar."""
        self._settle(bar.instrument, bar.open_time_ms + STAMPED_LATE_MS)
        return self._take(bar.instrument, bar.close_time_ms)

    def _take(self, instrument: str, until_ms: int) -> Sequence[Moment]:
        """Take the moments before *until_ms*."""
        mark = self.account.lines[instrument].mark
        moments = self.settlements.take(instrument, until_ms, mark)
        if any(moment.rate is not None for moment in moments):
            self.save = Save.NOW
        return moments

    def _settle(self, instrument: str, until_ms: int) -> None:
        """Settle or note what is due before *until_ms* on what is held."""
        moments = self._take(instrument, until_ms)
        for account in self._accounts if moments else ():
            account.markets[instrument].settle(moments)
        for moment in moments:
            self._note(instrument, moment)

    def _note(self, instrument: str, moment: Moment) -> None:
        """Keep what was held at *moment*, if its rate has not come."""
        if moment.rate is None and self.settlements.note(instrument, moment):
            self.save = Save.NOW

    def _book(self, instrument: str, moment: Moment, at_ms: int) -> None:
        """Settle *moment* at *at_ms*, after what was held then may have changed."""
        for account in self._accounts if moment.rate is not None else ():
            account.markets[instrument].pay(moment, at_ms)
        self._note(instrument, moment)

    @contextmanager
    def _noting(self, at_ms: int) -> Iterator[None]:
        """Settle or note what was held before, if the block, an event of *at_ms*, changes it."""
        due = self.settlements.due_by(at_ms)
        before = [(key, self.account.lines[key].mark, self._held(key)) for key in due]
        yield
        for key, mark, held in before:
            if held != self._held(key):
                for moment in self.settlements.take(key, at_ms + 1, mark):
                    self._book(key, moment._replace(held=held), at_ms)

    def on_gap(self, gap: Gap) -> None:
        """Note which bars arrive late by REST, so perhaps without their quotes."""
        if gap.repaired_by == BY_REST:
            self._missed_until_ms[gap.instrument] = gap.until_ms

    def on_signal(self, instrument: str, signal: Signal) -> None:
        """Pass a *signal* on *instrument* to entries that wait for another signal."""
        for line in self._lines[instrument]:
            if line.is_guarded:
                on_signal(line, signal.action)

    def expire(self, instrument: str, market_ms: int) -> None:
        """Cancel orders that were not filled in time, if quotes fill orders."""
        if self._by_quotes:
            for line in self._lines[instrument]:
                line.expire(market_ms)

    def change(self, instrument: Instrument) -> None:
        """Use the exchange's new filters from now on."""
        for line in self._lines[instrument.id]:
            line.change(instrument)
        self.settlements.change(instrument)

    def _liquidate(self, instrument: str, mark: int, at_ms: int) -> None:
        """Liquidate the positions of all accounts whose liquidation price *mark* has reached."""
        for account in self._accounts:
            account.policy.match_mark(account.lines[instrument], mark, at_ms)

    # ------------------------------------------------------------ intents

    def route(
        self,
        intent: Intent | Orders,
        bar: Bar,
        at_ms: int,
        *,
        shadow: str | None = None,
    ) -> str | None:
        """Apply *intent*, as decided at the close of *bar*.

        The account is the run's, or a *shadow* account. Returns why the intent cannot be reached,
        or None. Orders by list that the exchange would refuse are recorded as REJECTED instead.
        """
        account = self.account if shadow is None else self.shadows[shadow]
        line, policy = account.lines[bar.instrument], account.policy
        if isinstance(intent, Orders):
            cash = policy.spendable(line, is_reversal=False)
            context = OrderContext(at_ms, bar.open_time_ms, bar.close, cash)
            line.send(intent.requests, intent.reason, context)
            return None
        action, target, reason = intent.action, intent.target, intent.reason
        if intent.ends_lists:
            line.cancel_listed("", reason, opening_only=True)
        before, held = line.target, line.holding.quantity
        plan, refusal = self._enter(line, intent, bar, at_ms)
        if refusal is not None:
            action, target = Action.HOLD, before  # a refused entry keeps the target
        shortfall = None
        if line.order is None and target == before == held:
            pass  # as at most bars
        elif (
            line.shortfall
            and target == before
            and action is Action.HOLD
            and not line.is_reached(target)
        ):
            shortfall = line.shortfall
        else:
            if target == before and action is Action.HOLD:
                reason = line.reason  # HOLD keeps the target's reason too
            cash = policy.spendable(line, is_reversal=target * held < 0)
            context = OrderContext(at_ms, bar.open_time_ms, bar.close, cash)
            shortfall = line.submit(target, reason, context)
        is_refused = shortfall and line.order is None and not held
        if plan is not None and target and not is_refused:
            follow(line, plan, bar.close, at_ms)
        elif line.is_guarded and action is Action.FLAT and target == 0:
            leave(line, f"the signal is {action.value}")
        return refusal or shortfall

    def place_following(self, bar: Bar, at_ms: int) -> None:
        """Order what follows a delayed order that has arrived, at the close of *bar*."""
        for account in self._accounts if self.settings.latency.bars else ():
            line = account.lines[bar.instrument]
            if line.following:
                is_reversal = line.following[0].target * line.held < 0
                cash = account.policy.spendable(line, is_reversal=is_reversal)
                line.place_following(OrderContext(at_ms, bar.open_time_ms, bar.close, cash))

    def _enter(
        self, line: Line, intent: Intent, bar: Bar, at_ms: int
    ) -> tuple[Plan | None, str | None]:
        """Confirm the position of an entry; return its exit plan and why it cannot be entered.

        The plan is None as well where it repeats the plan before.
        """
        plan, refusal = self.planned(line, intent, bar, at_ms)
        if intent.action not in ENTRIES or refusal is not None:
            if refusal is not None and line.key in self._confirms:
                self.save = Save.NOW  # else a restart takes its entry for a confirmation
            return None, refusal
        self.confirm(line, bar)
        state = line.protection
        # With [exits] every signal gives a plan, mostly the same.
        is_known = (state.plan, state.closed, state.next_plan) == (plan, 0, None)
        return None if is_known and line.exits is not None else plan, None

    def confirm(self, line: Line, bar: Bar) -> None:
        """Let the position of *line* live for another horizon from *bar* on."""
        # Later is enough: the step itself records the confirmation.
        self.save = self.save or _LATER
        if line.key in self._confirms:
            line.confirmed_ms = bar.open_time_ms

    def planned(
        self, line: Line, intent: Intent, bar: Bar, at_ms: int
    ) -> tuple[Plan | None, str | None]:
        """Return the exit plan of an entry, and why it cannot be entered."""
        if intent.action not in ENTRIES or intent.refusal is not None:
            return None, intent.refusal
        signal = intent.signal
        if signal is None or not (intent.is_protected or line.is_guarded):
            return None, None
        entry, held = bar.close, None
        if (refusal := entry_refusal(line, signal)) is not None:
            return None, refusal
        if line.held * (1 if signal.action is Action.LONG else -1) > 0:
            entry = line.entry_price
            held = HeldPosition(line.protection.plan, at_ms - line.holding.opened_ms)
        planned = line.planner.plan(
            signal, bar.close, entry, at_ms, self._day_ranges[line.key], expected=intent.expected,
            held=held,
        )  # fmt: skip
        return (None, planned) if isinstance(planned, str) else (planned, None)

    def cancel(self, reason: str, *, opening_only: bool = False) -> None:
        """Cancel the run's orders by list: all, or only those that could open a position."""
        for line in self.account.lines.values():
            line.cancel_listed("", reason, opening_only=opening_only)
            line.keep_exits()

    def flatten(self, closes: Mapping[str, int], at_ms: int) -> None:
        """Close the run's positions, by the operator's command.

        *closes* has the newest close of each instrument that has one. A position that was taken
        over is closed before the first bar as well, at its entry price.
        """
        for key, line in self.account.lines.items():
            price = closes.get(key) or (line.entry_price if line.held else 0)
            if not (price or line.rests):
                continue
            self.save = Save.NOW
            leave(line, FLATTEN)
            cash = self.account.policy.spendable(line, is_reversal=False)
            context = OrderContext(at_ms, 0, price, cash)
            line.submit(0, FLATTEN, context, by_command=True)

    # ------------------------------------------------------------ questions of the feed

    def quote_from_ms(self, quote: Quote) -> int | None:
        """Return the market time from which a quote like *quote* changes an order, or None."""
        if not self._by_quotes:
            return None
        key = quote.instrument
        times = [
            from_ms
            for line in self._lines[key]
            for order in line.orders
            if (from_ms := matters_from(order, quote, line.protection.trail)) is not None
        ]
        due_times = [due_from_ms(line, quote) for line in self._lines[key]]
        return min(times + [from_ms for from_ms in due_times if from_ms is not None], default=None)

    def liquidates(self, mark: Mark) -> bool:
        """Return whether *mark* liquidates a position of the run's or a shadow account."""
        prices = {mark.instrument: mark.price}
        if self.is_cross:
            self._newest.update(prices)
            prices = self._newest
        return any(account.policy.is_reached(mark.instrument, prices) for account in self._accounts)

    # ------------------------------------------------------------ marks and state

    def mark(self, mark: Mark) -> None:
        """Value the positions at *mark*; the close of the next bar then values none."""
        self._marked[mark.instrument] = mark.price
        self._newest.pop(mark.instrument, None)
        self.mark_at_close(mark.instrument, mark.price)

    def mark_at_close(self, instrument: str, close: int) -> None:
        """Value the positions in *instrument* at its newest *close*."""
        for line in self._lines[instrument]:
            line.mark_to(close)

    def warm_up(self, bar: Bar) -> None:
        """Let *bar*, from before the run's first step, value the positions; it fills no order."""
        key = bar.instrument
        if self._marked.pop(key, None) is None:
            self.mark_at_close(key, bar.close)
        if self._ranges:
            self._ranges[key].push(bar)

    def is_quiet(self) -> bool:
        """Return whether coming bars with prices within a quarter can only change values.

        That needs accounts in which nothing can be liquidated. The caller has to check that each
        bar passes the positions of :meth:`resting`.
        """
        if self.save is Save.NOW or self._marked or self.account.ledger.entries:
            return False
        if self._by_quotes or self.settlements.waiting or self.settlements.takes_notes:
            return False
        for lines in self._lines.values():
            for line in lines:
                is_own = line.ledger is self.account.ledger
                if line.following or (line.order is not None if is_own else line.is_guarded):
                    return False
                if self._is_on_margin and (line.holding.quantity or (line.rests and not is_own)):
                    return False
        return all(account.fits_a_quarter_away for account in self._accounts)

    def is_settled(self, instrument: str) -> bool:
        """Return whether the run holds its target of *instrument*, and none of its orders waits."""
        line = self.account.lines[instrument]
        is_reached = line.target == line.held and not line.shortfall
        return is_reached and not (line.is_guarded or self.account.markets[instrument].waits)

    @property
    def shadows_wait(self) -> bool:
        """Whether the next bar may fill an order of a shadow account."""
        shadows = self.shadows.values()
        return any(market.waits for shadow in shadows for market in shadow.markets.values())

    def resting(self) -> dict[str, Market]:
        """Return the positions of the account that an event could change, by instrument."""
        return {key: market for key, market in self.account.markets.items() if market.waits}

    def resting_orders(self, instrument: str) -> Sequence[Order]:
        """Return the resting orders of the account in *instrument*."""
        return self.account.lines[instrument].orders

    def follow(self, bars: Sequence[Bar], *, shadows_only: bool = False) -> None:
        """Value the positions by the last of *bars*, of one instrument; nothing else changes.

        With *shadows_only* the run's account keeps its marks.
        """
        key, close = bars[-1].instrument, bars[-1].close
        self._newest.pop(key, None)
        for line in self._lines[key]:
            if not (shadows_only and line.ledger is self.account.ledger):
                line.mark_to(close)
        if self._ranges:
            for bar in bars:
                self._ranges[key].push(bar)

    def forget(self) -> None:
        """Forget what a restart loses: mark prices, and which quotes were missed."""
        self._marked.clear()
        self._missed_until_ms.clear()
        self.settlements.forget()

    def is_engaged(self, instrument: str) -> bool:
        """Return whether any account has a position, a target or orders in *instrument*."""
        return any(line.held or line.target or line.rests for line in self._lines[instrument])

    def restore_settlements(
        self, waiting: Mapping[str, Iterable[Funding]], notes: Mapping[str, Iterable[Note]]
    ) -> None:
        """Restore what waits for its moment, and the notes that wait for their rate."""
        self.settlements.restore(
            {key: kept for key, kept in waiting.items() if key in self._lines},
            {key: kept for key, kept in notes.items() if key in self._lines},
        )

    def notes(self) -> dict[str, list[Note]]:
        """Return the notes to store, by instrument.

        A note of nothing held matters only while something is held, and the fill that opened that
        stored it: hours without a position store no state. It also matters while a rate waits for
        its moment, since no hour before that needs a note.
        """
        waiting = self.settlements.waiting
        kept = {
            key: [note for note in self.settlements.notes.get(key, ()) if note.held or matters]
            for key in self._lines
            for matters in (key in waiting or bool(self._held(key)),)
        }
        return {key: notes for key, notes in kept.items() if notes}

    def state(self) -> tuple[AccountState, dict[str, AccountState]]:
        """Return the state to store: of the run's account, and of the shadow accounts by name."""
        return self.account.state(), {name: shadow.state() for name, shadow in self.shadows.items()}

    def restore(
        self,
        state: AccountState,
        shadows: Mapping[str, AccountState] = {},
        *,
        confirmed: Iterable[Confirmation] = (),
        fills: Mapping[str, Sequence[Fill]] = {},
        taken_over: bool = False,
    ) -> None:
        """Restore the stored state of this run, or of another run (*taken_over*).

        *shadows* are the states of the shadow accounts; another run may have had fewer. *confirmed*
        are the confirmations since then, oldest first; *fills* those that no decision has seen.
        """
        self.account.restore(state, taken_over=taken_over)
        for name, shadow in self.shadows.items():
            if name in shadows:
                shadow.restore(shadows[name])
        self.save = Save.NOW if taken_over else Save.NO
        for confirmation in confirmed:
            self.save = self.save or Save.LATER
            account = (
                self.account
                if confirmation.shadow is None
                else self.shadows.get(confirmation.shadow)
            )
            if account is not None and confirmation.instrument in self._confirms:
                account.lines[confirmation.instrument].confirmed_ms = confirmation.open_time_ms
        reported = self.account.ledger.unseen
        reported.update({key: list(unseen) for key, unseen in fills.items() if key in reported})
