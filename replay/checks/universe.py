"""Checks a universe's choices against their own figures, their times, and the bars.

The rules are docs/universe.md, V17 and V18.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from decimal import Decimal

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.market import UniverseRule
from tracepaper.daemon.engine.state import decode_state
from tracepaper.daemon.feed.client import TradedSymbol
from tracepaper.daemon.session.universe import change_of, next_choice_ms
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.decisions import RunRow
from tracepaper.strategies.types.market import Bar, Event, Instrument, Source, UniverseChange
from tracepaper.strategies.units import DAY_MS, iso

Unlike = tuple[str, object, object]
"""The name of a field, its stored value, and the expected one."""


class ChoiceCheck:
    """Checks the choices of one run in the order of its events; without a rule there are none.

    A run over candle files chooses at its start and at each configured time, from bars in its own
    record. A live run gets the figures from the exchange, so only the choice is checked against
    them. *is_whole* means that the events begin with the first of the run.
    """

    def __init__(self, reader: Reader, run: RunRow, config: Config, *, is_whole: bool) -> None:
        self._run, self._rule = run, config.market.universe
        self._instruments = {item.id: item for item in run.instruments}
        self._due_ms: int | None = None
        self._slack_ms = config.exchange.ahead_ms  # clocks may be this far behind a bar's date
        self._has_choice = not is_whole
        self._is_of_candles = False
        self._days: dict[str, deque[Bar]] = defaultdict(deque)
        self._first_ms: dict[str, int] = {}
        self._begins_empty = False
        if self._rule is not None:
            row = reader.connection.execute(
                "SELECT source FROM v_bars WHERE run_id = ? ORDER BY sequence LIMIT 1",
                (run.run_id,),
            ).fetchone()
            self._is_of_candles = row is not None and row[0] == Source.ARCHIVE.value
            if is_whole and _begins_with_choice(reader, run):
                self._has_choice = True
                self._due_ms = next_choice_ms(self._rule, run.period_start_ms)
            elif self._is_of_candles and is_whole:
                self._due_ms = run.period_start_ms

    def of(self, *events: Event) -> Iterator[Unlike]:
        """Check *events*; a bar reveals that the choice before it is missing."""
        if self._rule is None:
            return
        for event in events:
            if isinstance(event, Bar):
                yield from self._of_bar(event)
            elif isinstance(event, UniverseChange):
                yield from self._of_time(event)
                yield from self._of_figures(event, self._rule)
                if self._is_of_candles:
                    yield from self._of_bars(event, self._rule)
                self._has_choice = True
                self._due_ms = next_choice_ms(self._rule, event.market_ms)

    def _of_bar(self, bar: Bar) -> Iterator[Unlike]:
        assert self._rule is not None
        is_decided = bar.open_time_ms >= self._run.period_start_ms
        if is_decided and not self._has_choice:
            yield "universe", "no choice", "one before the first decision"
            self._has_choice = True
        if self._is_of_candles:
            if self._due_ms is not None and bar.market_ms > self._due_ms:
                yield "universe", "no choice", f"one at {iso(self._due_ms)}"
                self._due_ms = next_choice_ms(self._rule, bar.market_ms - 1)
            self._first_ms.setdefault(bar.instrument, bar.open_time_ms)
            day = self._days[bar.instrument]
            day.append(bar)
            while day[0].market_ms <= bar.market_ms - 2 * DAY_MS:
                day.popleft()

    def _of_time(self, event: UniverseChange) -> Iterator[Unlike]:
        due_ms, at_ms = self._due_ms, event.market_ms
        if due_ms is None:
            return
        if at_ms != due_ms if self._is_of_candles else at_ms < due_ms - self._slack_ms:
            yield "universe", f"a choice at {iso(at_ms)}", f"none before {iso(due_ms)}"

    def _of_figures(self, event: UniverseChange, rule: UniverseRule) -> Iterator[Unlike]:
        """Choose again by the figures in the event."""
        items, at_ms, names = self._instruments, event.market_ms, None
        listed = [
            TradedSymbol(
                items[key].symbol,
                items[key].quote_coin,
                Decimal(turnover),
                Decimal(volatility),
                at_ms - age * DAY_MS if age >= 0 else 0,
            )
            for key, turnover, volatility, age in event.candidates
            if key in items
        ]
        if rule.file is not None:  # the record does not hold its list
            names = {items[key].symbol for key in event.chosen if key in items}
        due = change_of(rule, tuple(items.values()), listed, now_ms=at_ms, names=names)
        reason, due_reason = event.reason, due.reason
        if rule.file is not None:  # how many of the list pass is not known either
            due_reason = due_reason.rpartition(" the ")[0]
            reason = reason[: len(due_reason)] if listed else due_reason  # else it says why
        for name, stored, follows in (
            ("candidates", event.candidates, due.candidates),
            ("chosen", event.chosen, due.chosen),
            ("reason", reason, due_reason),
        ):
            if stored != follows:
                yield name, stored, follows

    def _of_bars(self, event: UniverseChange, rule: UniverseRule) -> Iterator[Unlike]:
        """Check the figures against the bars of the 24 hours before, where the record has them all.

        The first choice over a file has no such bars. A run that begins within its files has a
        symbol's full day only one day after the symbol's first bar.
        """
        at_ms = event.market_ms
        if at_ms == self._run.period_start_ms:
            self._begins_empty = not event.candidates
        stored = {row[0]: row for row in event.candidates}
        held = {key: item for key, item in self._instruments.items() if key in self._first_ms}
        complete = [
            key for key in held if self._begins_empty or at_ms - DAY_MS >= self._first_ms[key]
        ]
        listed = [
            candidate
            for item in held.values()
            if (candidate := self._listed(item, at_ms)) is not None
        ]
        due = change_of(rule, tuple(self._instruments.values()), listed, now_ms=at_ms)
        due_rows = {row[0]: row for row in due.candidates}
        for key in complete:
            stored_row, due_row = stored.get(key), due_rows.get(key)
            if stored_row is not None and due_row is not None and not self._begins_empty:
                # The file may begin before the record, so the symbol may be older.
                due_row = (*due_row[:3], max(due_row[3], stored_row[3]))
            if stored_row != due_row:
                yield "candidates", stored_row, due_row

    def _listed(self, item: Instrument, at_ms: int) -> TradedSymbol | None:
        """Return *item* with its ticker's figures at *at_ms*; None without a bar in that day."""
        day = [bar for bar in self._days[item.id] if at_ms - DAY_MS < bar.market_ms <= at_ms]
        if not day:
            return None
        high, low = max(bar.high for bar in day), min(bar.low for bar in day)
        return TradedSymbol(
            item.symbol,
            item.quote_coin,
            _turnover(day, item),
            Decimal(high - low) / day[-1].close,
            self._first_ms[item.id],
        )


def _begins_with_choice(reader: Reader, run: RunRow) -> bool:
    """Return whether *run* took over a choice with its parent's account."""
    if run.parent_run_id is None:
        return False
    first = next(iter(reader.steps(run.run_id)), None)
    if first is None or first.state is None:
        return False
    return decode_state(first.state).chosen is not None


def _turnover(day: Sequence[Bar], item: Instrument) -> Decimal:
    turnovers = [bar.turnover for bar in day if bar.turnover is not None]
    if len(turnovers) == len(day):
        return Decimal(sum(turnovers)).scaleb(-item.turnover_decimals)
    total = sum(bar.volume * bar.close for bar in day)
    return Decimal(total).scaleb(-item.volume_decimals - item.price_decimals)
