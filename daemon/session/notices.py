"""Makes the notices of a run, for people, from its steps and its feed; pure.

A notice is a kind and the fields of its template (``daemon/config/notify.py``), all of them text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from tracepaper.daemon.broker.line import signed_quantity
from tracepaper.daemon.config.notify import NoticeKind, NotifySection
from tracepaper.daemon.session.carried_account import CarriedAccount
from tracepaper.strategies.gates.declared import deadline, late, risk_daily_loss, risk_drawdown
from tracepaper.strategies.position_text import stored_position_text
from tracepaper.strategies.types.decisions import Action, Fill, OrderRole, Position, RunRow, Step
from tracepaper.strategies.types.market import Bar, Command, Gap, GapCause, ParityCheck, Side
from tracepaper.strategies.units import (
    DAY_MS,
    MONEY_SCALE,
    NOTHING,
    count_of,
    day_text,
    divide_half_even,
    duration,
    minute_text,
    money_text,
    percent,
    time_of,
    time_of_day_ms,
    unscaled,
    visible,
)
from tracepaper.strategies.without_fills import DecisionCounts

TEXT_MOST: Final = 300
"""Most characters of a text from a user, an operator or a strategy."""
_BREACHES: Final = frozenset({risk_drawdown.name, risk_daily_loss.name})
_PLAIN_ROLES: Final = frozenset({OrderRole.SIGNAL, OrderRole.LIST, OrderRole.COMMAND})
_HALTED: Final = "no new exposure until RESUME"
_CONSEQUENCES: Final = {
    "halt": _HALTED,
    "flatten": f"all positions are closed, and {_HALTED}",
    "resume": "new exposure is allowed",
    "refuse": "no new exposure while it lasts",
}
"""What follows from a command, and from a breach by ``risk.on_breach``."""


class Notice(Struct, frozen=True):
    """One notice, with the fields that a template of its kind may use."""

    kind: NoticeKind
    market_ms: int
    fields: Mapping[str, str]


class Notices:
    """Makes the notices of one run, each state once.

    It begins with the account that the run took over, if the run has that.

    Its counts begin at the start of the process; each text gives that time as ``since``.
    """

    def __init__(self, section: NotifySection, run: RunRow, *, on_breach: str) -> None:
        self._kinds = frozenset(section.kinds)
        self._instruments = {item.id: item for item in run.instruments}
        self._on_breach = on_breach
        self._start_ms = run.period_start_ms
        self._refused = ""  # the newest day and limit that only refuses
        self._late: set[str] = set()  # instruments whose newest decision was late
        self._is_lost = False
        self._held: dict[str, Position] = {}  # by instrument
        self._opened: dict[str, int] = {}  # net profit of earlier trades, of a trade seen to open
        if run.account is not None:
            self._take_over(run.account)
        self._refusals = _Period(time_of(section.refusals_every) or DAY_MS, 0)
        self._daily = _Period(DAY_MS, time_of_day_ms(section.daily_at))

    def _take_over(self, account: str) -> None:
        """Begin with the positions of *account*, JSON, and with the trades that are open in it."""
        carried = CarriedAccount.read(account)
        for key, line in carried.state["account"]["lines"].items():
            sums = ("quantity", "realized_pnl", "fees_paid", "funding_paid")
            self._held[key] = Position(**{name: line["holding"][name] for name in sums})
        for trade in carried.open_trades:
            if trade.shadow is None and not any(trade.exits):
                net = _net(self._held[trade.instrument]) + trade.fees + trade.funding
                self._opened[trade.instrument] = net

    def of_step(self, step: Step) -> list[Notice]:
        """Return the notices of a stored *step*. The cost does not grow with the run."""
        notices = [*self._fills(step)]
        self._daily.fills += len(step.fills)
        if limit := self._breached(step):
            action, equity = _CONSEQUENCES[self._on_breach], _money(step.account.equity)
            notices.append(_notice("limits", step, limit=limit, equity=equity, action=action))
        match step.event:
            case Bar() as bar if step.accepted and bar.open_time_ms >= self._start_ms:
                notices += self._bar(bar, step)
            case Command(kind=kind, note=note, giver=giver):
                text = _CONSEQUENCES[kind.value.lower()] + (
                    f" ({_shortened(note)})" if note else ""
                )
                notices.append(_notice("halt", step, command=kind.value, note=text, giver=giver))
            case ParityCheck(outcome=outcome, reason=reason):
                result = _shortened(reason)
                notices.append(_notice("parity", step, outcome=outcome.value, result=result))
            case Gap(repaired_by="") as gap:
                notices.append(self._hole(gap, step))
            case _:
                pass
        self._held |= _position(step)
        return [notice for notice in notices if notice.kind in self._kinds]

    def of_feed(self, age_s: float, lost_s: float, market_ms: int) -> list[Notice]:
        """Return the notice that the feed is lost, or back; *age_s* is its newest frame's age."""
        is_lost = age_s > lost_s
        if is_lost is self._is_lost or "feed" not in self._kinds:
            return []
        self._is_lost = is_lost
        state, words = "back", "data arrive again; REST is asked for the missing bars"
        if is_lost:
            state = "lost"
            words = f"no data for {duration(age_s * 1000)}; the daemon reconnects by itself"
        return [Notice("feed", market_ms, {"state": state, "words": words, "symbol": ""})]

    # ------------------------------------------------------------ of one step

    def _fills(self, step: Step) -> Iterator[Notice]:
        """Yield one notice for each fill; the last one that closes has the profit of the step."""
        positions = _position(step)
        last = {fill.instrument: fill for fill in step.fills}
        for fill in step.fills:
            key = fill.instrument
            before, after, profit = self._held.get(key, Position()), positions.get(key), ""
            if after is not None and last[key] is fill:
                own = [each for each in step.fills if each.instrument == key]
                profit = self._profit(before, after, own)
            yield self._fill(fill, after, profit, step)

    def _profit(self, before: Position, after: Position, fills: Sequence[Fill]) -> str:
        """Return what *fills*, a step's of one position, brought by closing; empty if they open."""
        key, fee = fills[0].instrument, sum(fill.fee for fill in fills)
        moved = sum(map(signed_quantity, fills))
        is_turn = before.quantity * after.quantity < 0
        # Without more than was filled: at a start the position before is unknown.
        is_new = not before.quantity and 0 < abs(after.quantity) <= abs(moved)
        net, opened = _net(after), self._opened.get(key)
        if is_turn:  # the fee is shared by quantity, as in ``v_trades``
            net += fee - divide_half_even(fee * abs(before.quantity), abs(moved))
        if is_turn or is_new:
            self._opened[key] = net if is_turn else net + fee
        if before.quantity * moved >= 0:
            return ""
        if opened is None or (after.quantity and not is_turn):
            # It began before this process, or goes on.
            realized = _money(after.realized_pnl - before.realized_pnl, signed=True)
            return f", profit {realized} before fees"
        return f", profit {_money(net - opened, signed=True)}"

    def _fill(self, fill: Fill, held: Position | None, profit: str, step: Step) -> Notice:
        item = self._instruments[fill.instrument]
        role = next((o.role for o in step.orders if o.order_id == fill.order_id), OrderRole.SIGNAL)
        # A fill changes the size of what protects its position, so the step has these orders.
        orders = [order for order in step.orders if order.instrument == item.id]
        return _notice(
            "fills" if role in _PLAIN_ROLES else "stops",
            step,
            symbol=item.symbol,
            side="bought" if fill.side is Side.BUY else "sold",
            quantity=unscaled(fill.quantity, item.quantity_decimals),
            price=unscaled(fill.price, item.price_decimals),
            fee=_money(fill.fee),
            order="order" if role in _PLAIN_ROLES else role.label,
            reason=_shortened(fill.reason),
            profit=profit,
            position="?" if held is None else stored_position_text(item, held, orders),
            equity=_money(step.account.equity),
        )

    def _bar(self, bar: Bar, step: Step) -> Iterator[Notice]:
        yield from self._lateness(bar, step)
        for period in (self._refusals, self._daily):
            period.add(bar, step)
        if bar.close_time_ms >= self._refusals.until_ms:
            yield from _refusals(self._refusals, step)
            self._refusals.begin(bar, step)
        if bar.close_time_ms >= self._daily.until_ms:
            yield _summary(self._daily, step)
            self._daily.begin(bar, step)

    def _breached(self, step: Step) -> str:
        """Return the limit that the step newly breached; one that only refuses is new each day."""
        if step.halted is not None:
            return step.halted.limit
        refused_by = "" if step.decision is None else step.decision.refused_by or ""
        if self._on_breach != "refuse" or refused_by not in _BREACHES:
            return ""
        before, self._refused = self._refused, f"{day_text(step.event.market_ms)} {refused_by}"
        return "" if before == self._refused else refused_by

    def _lateness(self, bar: Bar, step: Step) -> Iterator[Notice]:
        """Yield that decisions became late, or that those on all instruments are in time again."""
        if step.decision is None:
            return
        symbol, before = self._instruments[bar.instrument].symbol, bool(self._late)
        is_late = step.decision.refused_by in {late.name, deadline.name}
        if is_late:
            self._late.add(bar.instrument)
        else:
            self._late.discard(bar.instrument)
        if bool(self._late) is not before:
            state = "late" if is_late else "in time again"
            words = symbol
            if is_late:  # an exit passes (docs/decisions.md, G13)
                what = "is held" if step.decision.action is Action.HOLD else "enters nothing"
                words = f"{symbol} {what}: {_shortened(step.decision.reason)}"
            yield _notice("late", step, state=state, words=words, symbol=symbol)

    def _hole(self, gap: Gap, step: Step) -> Notice:
        symbol = self._instruments[gap.instrument].symbol
        words = (
            f"{symbol} has no bars from {minute_text(gap.from_ms)} to {minute_text(gap.until_ms)} "
            f"({gap.cause.value})"
        )
        if gap.cause is GapCause.FUNDING:
            words = f"{symbol} has no funding settlement of {minute_text(gap.from_ms)}"
        return _notice("feed", step, state="absent", words=words, symbol=symbol)


class _Period:
    """Decisions and fills of a period, which ends at a multiple of its length plus an offset."""

    def __init__(self, length_ms: int, offset_ms: int) -> None:
        self._length_ms, self._offset_ms = length_ms, offset_ms
        self.first: Step | None = None
        self.fills = 0

    def begin(self, bar: Bar, step: Step) -> None:
        """Begin a period with the step of *bar*."""
        past_ms = (bar.close_time_ms - self._offset_ms) % self._length_ms
        self.until_ms = bar.close_time_ms - past_ms + self._length_ms
        self.first, self.fills, self.counts = step, 0, DecisionCounts()

    def add(self, bar: Bar, step: Step) -> None:
        """Count the decision on *bar*; the first bar begins the first period."""
        if self.first is None:
            self.begin(bar, step)
        if (decision := step.decision) is not None:
            self.counts.add(
                decision.action,
                decision.refused_by,
                decision.reason,
                decision.unfilled_reason,
                open_ms=bar.open_time_ms,
            )
        self.counts.add_orders(step.orders)

    def fields(self) -> dict[str, str]:
        """Return what the notices of both periods say."""
        return {
            "refused": str(self.counts.refused.total()),
            "decisions": count_of(self.counts.bars, "decision"),
            "since": NOTHING if self.first is None else minute_text(self.first.event.market_ms),
        }


def _refusals(period: _Period, step: Step) -> Iterator[Notice]:
    refused = period.counts.refused
    if refused:
        gates = ", ".join(f"{gate} {count}" for gate, count in refused.most_common())
        yield _notice("refusals", step, **period.fields(), gates=gates)


def _summary(period: _Period, step: Step) -> Notice:
    first = period.first or step
    before, after = first.account, step.account
    equities = {shadow.shadow: shadow.account.equity for shadow in first.shadows}
    why = "" if period.fills else period.counts.why_no_fill()
    return _notice(
        "daily",
        step,
        **period.fields(),
        equity=_money(after.equity),
        change=_money(after.equity - before.equity, signed=True),
        percent=_percent(before.equity, after.equity),
        fills=count_of(period.fills, "fill"),
        fees=_money(after.fees_paid - before.fees_paid),
        funding=_money(after.funding_paid - before.funding_paid),
        shadows="".join(
            f"; {shadow.shadow} {_percent(equities[shadow.shadow], shadow.account.equity)}"
            for shadow in step.shadows
            if shadow.shadow in equities
        ),
        without_fills=f". {_shortened(why)}" if why else "",
    )


def _net(position: Position) -> int:
    """Return the net profit of all trades so far, as ``v_trades`` has it."""
    return position.realized_pnl - position.fees_paid - position.funding_paid


def _position(step: Step) -> dict[str, Position]:
    """Return the position after *step* in its instrument, by that; empty if it has none."""
    name = getattr(step.event, "instrument", "")
    return {} if step.position is None or not name else {name: step.position}


def _notice(kind: NoticeKind, step: Step, **fields: str) -> Notice:
    return Notice(kind, step.event.market_ms, fields)


def _money(value: int, *, signed: bool = False) -> str:
    return money_text(value / MONEY_SCALE, signed=signed)


def _percent(before: int, after: int) -> str:
    return NOTHING if before <= 0 else percent(after / before - 1, signed=True)


def _shortened(text: str) -> str:
    """Return *text* on one line, without control characters, cut to ``TEXT_MOST``."""
    text = " ".join(visible(text).split())
    return text if len(text) <= TEXT_MOST else f"{text[: TEXT_MOST - 1]}…"
