"""Makes the notices of a run, for people, from its steps and its feed; pure.

A notice is a kind and the fields of its template (``daemon/config/notify.py``), all of them text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from tracepaper.daemon.broker.account import SIDES
from tracepaper.daemon.config.notify import NoticeKind, NotifySection
from tracepaper.strategies.gates.declared import deadline, late, risk_daily_loss, risk_drawdown
from tracepaper.strategies.position_text import stored_position_text
from tracepaper.strategies.types.decisions import (
    Decision,
    Fill,
    OrderRole,
    Position,
    PositionSide,
    RunRow,
    Step,
)
from tracepaper.strategies.types.market import (
    Bar,
    Command,
    CommandKind,
    Gap,
    GapCause,
    ParityCheck,
    Side,
)
from tracepaper.strategies.units import (
    DAY_MS,
    MONEY_SCALE,
    NOTHING,
    count_of,
    day_text,
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
_LATE: Final = frozenset({late.name, deadline.name})
_BREACHES: Final = frozenset({risk_drawdown.name, risk_daily_loss.name})
_PLAIN_ROLES: Final = frozenset({OrderRole.SIGNAL, OrderRole.LIST, OrderRole.COMMAND})
_COMMANDS: Final = {
    CommandKind.HALT: "no new exposure until RESUME",
    CommandKind.RESUME: "new exposure is allowed",
    CommandKind.FLATTEN: "all positions are closed, and no new exposure until RESUME",
}
_ACTIONS: Final = {
    "halt": "no new exposure until RESUME",
    "flatten": "all positions are closed, and no new exposure until RESUME",
    "refuse": "no new exposure while it lasts",
}


class Notice(Struct, frozen=True):
    """One notice, with the fields that a template of its kind may use."""

    kind: NoticeKind
    market_ms: int
    fields: Mapping[str, str]


class Notices:
    """Makes the notices of one run, each state once.

    Its counts begin at the start of the process; each text gives that time as ``since``.
    """

    def __init__(self, section: NotifySection, run: RunRow, *, on_breach: str) -> None:
        self._kinds = frozenset(section.kinds)
        self._instruments = {item.id: item for item in run.instruments}
        self._on_breach = on_breach
        self._start_ms = run.period_start_ms
        self._breach = ""
        self._late: set[str] = set()  # instruments whose newest decision was late
        self._late_count = 0
        self._set_aside: set[str] = set()  # failed strategies of several that were reported
        self._is_lost = False
        self._held: dict[tuple[str, PositionSide | None], Position] = {}
        self._refusals = _Digest(time_of(section.refusals_every) or DAY_MS, 0)
        self._daily = _Digest(DAY_MS, time_of_day_ms(section.daily_at))

    def of_step(
        self, step: Step, breach: str, set_aside: Mapping[str, str] = MappingProxyType({})
    ) -> list[Notice]:
        """Return the notices of a stored *step*; *breach* is the limit that halts the run, if any.

        *set_aside* has the error of each strategy that failed. The cost does not grow with the run,
        and is negligible for a step without fills and decisions.
        """
        notices: list[Notice] = []
        if step.fills:
            self._daily.fills += len(step.fills)
            notices += self._fills(step)
        self._remember(step)
        match step.event:
            case Bar() as bar if step.accepted:
                notices += self._failures(set_aside, step)
                self._bar(bar, step, breach, notices)
            case Command() as command:
                self._breach = self._breach if breach else ""
                note = _shortened(command.note)
                note = f"{_COMMANDS[command.kind]} ({note})" if note else _COMMANDS[command.kind]
                notices.append(
                    _notice(
                        "halt", step, command=command.kind.value, note=note, giver=command.giver
                    )
                )
            case ParityCheck() as check:
                result = _shortened(check.reason)
                notices.append(_notice("parity", step, outcome=check.outcome.value, result=result))
            case Gap(repaired_by="") as gap:
                notices.append(self._hole(gap, step))
            case _:
                pass
        return [notice for notice in notices if notice.kind in self._kinds] if notices else notices

    def of_feed(self, age_s: float, lost_s: float, market_ms: int) -> list[Notice]:
        """Return the notice that the feed is lost, or back; *age_s* is its newest frame's age."""
        is_lost = age_s > lost_s
        if is_lost is self._is_lost or "feed" not in self._kinds:
            return []
        self._is_lost = is_lost
        if is_lost:
            words = f"no data for {duration(age_s * 1000)}; the daemon reconnects by itself"
            return [_feed("lost", words, market_ms)]
        return [_feed("back", "data arrive again; REST is asked for the missing bars", market_ms)]

    # ------------------------------------------------------------ of one step

    def _fills(self, step: Step) -> Iterator[Notice]:
        """Yield one notice for each fill; the last one that closes has the profit of the step."""
        for at, fill in enumerate(step.fills):
            key = fill.instrument, fill.position_side
            before, after = self._held.get(key), _position_of(fill, step)
            is_last = key not in {(f.instrument, f.position_side) for f in step.fills[at + 1 :]}
            profit = ""
            if is_last and before is not None and after is not None and _closes(fill, before):
                realized = _money(after.realized_pnl - before.realized_pnl, signed=True)
                profit = f", profit {realized} before fees"
            yield self._fill(fill, after, profit, step)

    def _fill(self, fill: Fill, held: Position | None, profit: str, step: Step) -> Notice:
        item = self._instruments[fill.instrument]
        role = next((o.role for o in step.orders if o.order_id == fill.order_id), OrderRole.SIGNAL)
        # A fill changes the size of what protects its position, so the step has these orders.
        orders = [
            order
            for order in step.orders
            if (order.instrument, order.position_side) == (item.id, fill.position_side)
        ]
        return _notice(
            "fills" if role in _PLAIN_ROLES else "stops",
            step,
            symbol=item.symbol,
            side="bought" if fill.side is Side.BUY else "sold",
            quantity=unscaled(fill.quantity, item.quantity_decimals),
            price=unscaled(fill.price, item.price_decimals),
            fee=_money(fill.fee),
            order="order" if role in _PLAIN_ROLES else role.words,
            reason=_shortened(fill.reason),
            profit=profit,
            position="?" if held is None else stored_position_text(item, held, orders),
            equity=_money(step.account.equity),
        )

    def _remember(self, step: Step) -> None:
        """Keep the position of the step's instrument, from which the next fill's profit follows."""
        if step.position is not None and (name := getattr(step.event, "instrument", "")):
            self._held[name, None] = step.position
            for shadow in step.shadows:
                if shadow.shadow in SIDES:
                    self._held[name, PositionSide(shadow.shadow)] = shadow.position

    def _bar(self, bar: Bar, step: Step, breach: str, notices: list[Notice]) -> None:
        if bar.open_time_ms < self._start_ms:
            return  # a bar before the run began
        refusals, daily = self._refusals, self._daily
        if daily.first is None:
            refusals.begin(bar, step)
            daily.begin(bar, step)
        if (decision := step.decision) is not None:
            refusals.count(bar, decision)
            daily.count(bar, decision)
            self._limit(decision, step, breach, notices)
            is_late = decision.refused_by in _LATE
            self._late_count += is_late
            if is_late is not (bar.instrument in self._late):
                self._lateness(bar, decision, step, notices)
        if bar.close_time_ms >= refusals.until_ms:
            if refusals.counts.refused:
                notices.append(_refusals(refusals, step))
            refusals.begin(bar, step)
        if bar.close_time_ms >= daily.until_ms:
            notices.append(_summary(daily, step))
            daily.begin(bar, step)

    def _failures(self, set_aside: Mapping[str, str], step: Step) -> Iterator[Notice]:
        """Yield one notice for each newly failed strategy."""
        for name in set_aside.keys() - self._set_aside:
            self._set_aside.add(name)
            note = _shortened(set_aside[name])
            yield _notice("halt", step, command=f"strategy {name}", note=note)

    def _limit(self, decision: Decision, step: Step, breach: str, notices: list[Notice]) -> None:
        """Add a notice when a limit is breached; at most daily where a breach only refuses."""
        if self._on_breach == "refuse":
            breach = decision.refused_by or ""
            breach = breach if breach in _BREACHES else ""
            day = day_text(step.event.market_ms)
            if not breach or f"{day} {breach}" == self._breach:
                return
            self._breach = f"{day} {breach}"
        elif breach == self._breach:
            return
        else:
            self._breach = breach
        if breach:
            equity, action = _money(step.account.equity), _ACTIONS[self._on_breach]
            notices.append(_notice("limits", step, limit=breach, equity=equity, action=action))

    def _lateness(self, bar: Bar, decision: Decision, step: Step, notices: list[Notice]) -> None:
        """Note that decisions on the bar's instrument became late, or are in time again."""
        symbol = self._instruments[bar.instrument].symbol
        if bar.instrument not in self._late:
            if not self._late:
                words = f"{symbol} is held: {_shortened(decision.reason)}"
                notices.append(_notice("late", step, state="late", words=words, symbol=symbol))
            self._late.add(bar.instrument)
            return
        self._late.discard(bar.instrument)
        if not self._late:
            count, self._late_count = self._late_count, 0
            words = f"after {count} that {'was' if count == 1 else 'were'} late"
            notices.append(_notice("late", step, state="in time again", words=words, symbol=symbol))

    def _hole(self, gap: Gap, step: Step) -> Notice:
        symbol = self._instruments[gap.instrument].symbol
        words = (
            f"{symbol} has no bars from {minute_text(gap.from_ms)} to {minute_text(gap.until_ms)} "
            f"({gap.cause.value})"
        )
        if gap.cause is GapCause.FUNDING:
            words = f"{symbol} has no funding settlement of {minute_text(gap.from_ms)}"
        return _notice("feed", step, state="absent", words=words, symbol=symbol)


class _Digest:
    """Counts decisions, refusals and fills over periods of market time."""

    def __init__(self, every_ms: int, at_ms: int) -> None:
        self._every_ms, self._at_ms = every_ms, at_ms
        self.until_ms = 0
        self.first: Step | None = None  # the first step of the period
        self.counts = DecisionCounts()
        self.fills = 0

    def count(self, bar: Bar, decision: Decision) -> None:
        """Count the decision on *bar*."""
        self.counts.add(
            decision.action,
            decision.refused_by,
            decision.reason,
            decision.unfilled_reason,
            open_ms=bar.open_time_ms,
        )

    def begin(self, bar: Bar, step: Step) -> None:
        """Begin a period with the step of *bar*; it ends at the next multiple of its length."""
        past_ms = (bar.close_time_ms - self._at_ms) % self._every_ms
        self.until_ms = bar.close_time_ms - past_ms + self._every_ms
        self.first = step
        self.fills = 0
        self.counts = DecisionCounts()

    def since(self) -> str:
        """Return the market time at which the period began, as text."""
        return NOTHING if self.first is None else minute_text(self.first.event.market_ms)


def _refusals(digest: _Digest, step: Step) -> Notice:
    gates = ", ".join(f"{gate} {count}" for gate, count in digest.counts.refused.most_common())
    return _notice(
        "refusals",
        step,
        refused=str(digest.counts.refused.total()),
        decisions=count_of(digest.counts.bars, "decision"),
        since=digest.since(),
        gates=gates,
    )


def _summary(digest: _Digest, step: Step) -> Notice:
    first = step if digest.first is None else digest.first
    why = "" if digest.fills else digest.counts.why_no_fill()
    before, after = first.account, step.account
    equity_before = {shadow.shadow: shadow.account.equity for shadow in first.shadows}
    shadows = "".join(
        f"; {shadow.shadow} {_percent(equity_before[shadow.shadow], shadow.account.equity)}"
        for shadow in step.shadows
        if shadow.shadow in equity_before
    )
    return _notice(
        "daily",
        step,
        equity=_money(after.equity),
        change=_money(after.equity - before.equity, signed=True),
        percent=_percent(before.equity, after.equity),
        since=digest.since(),
        fills=count_of(digest.fills, "fill"),
        fees=_money(after.fees_paid - before.fees_paid),
        funding=_money(after.funding_paid - before.funding_paid),
        refused=str(digest.counts.refused.total()),
        decisions=count_of(digest.counts.bars, "decision"),
        shadows=shadows,
        without_fills=f". {_shortened(why)}" if why else "",
    )


def _position_of(fill: Fill, step: Step) -> Position | None:
    """Return the position that *fill* changed, after the step; None if the step lacks it."""
    if getattr(step.event, "instrument", "") != fill.instrument:
        return None
    if fill.position_side is None:
        return step.position
    return next(each.position for each in step.shadows if each.shadow == fill.position_side)


def _closes(fill: Fill, before: Position) -> bool:
    """Return whether *fill* makes the position *before* smaller, or turns it."""
    return before.quantity * (1 if fill.side is Side.BUY else -1) < 0


def _notice(kind: NoticeKind, step: Step, **fields: str) -> Notice:
    return Notice(kind, step.event.market_ms, fields)


def _feed(state: str, words: str, market_ms: int) -> Notice:
    return Notice("feed", market_ms, {"state": state, "words": words, "symbol": ""})


def _money(value: int, *, signed: bool = False) -> str:
    return money_text(value / MONEY_SCALE, signed=signed)


def _percent(before: int, after: int) -> str:
    return NOTHING if before <= 0 else percent(after / before - 1, signed=True)


def _shortened(text: str) -> str:
    """Return *text* on one line, without control characters, cut to ``TEXT_MOST``."""
    text = " ".join(visible(text).split())
    return text if len(text) <= TEXT_MOST else f"{text[: TEXT_MOST - 1]}…"
